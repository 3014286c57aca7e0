"""Faces that an engine was made to explain: what every probe of a running engine looks at, and how a probe states a figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.analyzer import Analyzer
from trainer.faces import ImageHWC
from trainer.fifa_bench.intervals import mean_interval
from trainer.fifa_bench.masks import MaskHW
from trainer.fifa_bench.predict import Encoded, engine_crops, masks_by_answer, phrase_masks
from trainer.samples import SIDE, Sample

Row = dict[str, float]


class Cited(NamedTuple):
    """A phrase of an answer and its mask."""

    concept: str
    mask_HW: MaskHW


@dataclass(frozen=True, slots=True)
class ExplainedFaces:
    """A batch, encoded and explained whatever its scores."""

    crops: Sequence[ImageHWC]
    """As they were given."""
    samples: Sequence[Sample]
    """The image-level `age` sample of each face: its truth and its unit."""
    encoded: Encoded
    score_B: NDArray[np.float32]
    markups: Sequence[str]
    cited: Sequence[Sequence[Cited]]
    """By face, in the order of the phrases."""

    @property
    def fakes(self) -> list[int]:
        """Rows of the manipulated faces."""
        return [row for row, sample in enumerate(self.samples) if sample.is_fake]

    @property
    def reals(self) -> list[int]:
        """Rows of the others."""
        return [row for row, sample in enumerate(self.samples) if not sample.is_fake]

    def unit(self, row: int) -> str:
        """What intervals are drawn over; names of units are unique within a set only."""
        return f"{self.samples[row].dataset}/{self.samples[row].unit}"

    def cited_area(self, row: int) -> MaskHW:
        """All that a face's answer cites, (224, 224)."""
        return np.any([np.zeros((SIDE, SIDE), bool), *(cited.mask_HW for cited in self.cited[row])], axis=0)


def explain_faces(analyzer: Analyzer, faces: Sequence[tuple[ImageHWC, Sample]]) -> ExplainedFaces:
    """Encode and explain faces, each with its image-level `age` sample."""
    crops, samples = zip(*faces, strict=True)
    encoded = analyzer.encode(engine_crops(analyzer, crops))
    answers = analyzer.tell(encoded, range(len(faces)), "age")
    markups = [analyzer.markup(answer) for answer in answers]
    found = masks_by_answer(analyzer, encoded, range(len(faces)), answers)
    masks = [phrase_masks(markup, *pair) for markup, pair in zip(markups, found, strict=True)]
    return ExplainedFaces(
        crops,
        samples,
        encoded,
        analyzer.calibrated(encoded["det_logit"]),
        markups,
        [[Cited(mask.concept, mask.rle.decode()) for mask in of_face if mask.concept is not None] for of_face in masks],
    )


def figure(name: str, values: Sequence[float], units: Sequence[str]) -> Row:
    """A mean and its interval over units; nothing without values."""
    if not values:
        return {}
    low, high = mean_interval(values, units)
    return {name: float(np.mean(values)), f"{name}_low": low, f"{name}_high": high}
