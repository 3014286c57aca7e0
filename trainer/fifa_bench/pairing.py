"""Every sample with the answer to it: what a scorer may rely on once two files have been read.

Answers come in any order; a sample without one, or with a refusal, is a miss that stays in the count. Two samples or two answers of one id, and an
answer to no sample, are errors.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np

from engines.contracts import FORGERY_TYPES
from engines.prompts import parse_markup
from trainer.fifa_bench.masks import CocoRle, area, encoded, union
from trainer.samples import SIDE, Level, Prediction, Rle, Sample, TaskKind

Truths = tuple[tuple[str | None, CocoRle], ...]
"""Concept and mask of each [SEG] of a perfect answer."""


@dataclass(frozen=True)
class Item:
    """One sample and what was answered."""

    sample: Sample
    prediction: Prediction | None
    """None where there is no answer, or only a refusal."""
    refused: bool = False
    artifact: CocoRle | None = None
    """All that was manipulated on the face of a fake, whatever the sample asks; None where that is not known, and for a real face."""
    face_regions: Mapping[str, Rle] | None = None
    """Where FICT lies on the face, by the image-level `age` sample; None without one."""

    @property
    def unit(self) -> str:
        """What intervals are drawn over; names of units are unique within a set only."""
        return f"{self.sample.dataset}/{self.sample.unit}"

    @cached_property
    def truths(self) -> Truths:
        """True masks, empty ones left out."""
        return tuple((mask.concept, rle) for mask in self.sample.masks if area(rle := coco(mask.rle)))

    @cached_property
    def true_mask(self) -> CocoRle:
        """All true masks together."""
        return union([rle for _, rle in self.truths], SIDE)

    @cached_property
    def masks(self) -> tuple[CocoRle, ...]:
        """Predicted masks in the order given, empty ones included."""
        return tuple(coco(mask.rle) for mask in self.prediction.masks) if self.prediction else ()

    @cached_property
    def mask(self) -> CocoRle:
        """All predicted masks together."""
        return union(self.masks, SIDE)

    @cached_property
    def asked_area(self) -> CocoRle | None:
        """The area a region or box query asks about; a box without one is drawn from its corners, by pixel centres."""
        if self.sample.area is not None:
            return coco(self.sample.area)
        if self.sample.box_xyxy is None:
            return None
        x0, y0, x1, y1 = self.sample.box_xyxy
        centre = np.arange(SIDE) + 0.5
        return encoded(((y0 <= centre) & (centre < y1))[:, None] & ((x0 <= centre) & (centre < x1))[None, :])

    @property
    def named(self) -> frozenset[str]:
        """FICT concepts the answer names."""
        return frozenset(mask.concept for mask in self.prediction.masks if mask.concept is not None) if self.prediction else frozenset()

    @property
    def true_concepts(self) -> frozenset[str]:
        """FICT concepts of a perfect answer."""
        return frozenset(concept for concept, _ in self.truths if concept is not None)

    @cached_property
    def regions(self) -> dict[str, CocoRle]:
        """Where FICT lies on the face, as `Sample.regions`: of the sample, or of the face's image-level `age`; empty where neither says."""
        return {name: coco(rle) for name, rle in (self.sample.regions or self.face_regions or {}).items()}

    @property
    def text(self) -> str:
        """What was answered, '' for a miss."""
        return (self.prediction.text or "") if self.prediction else ""

    @cached_property
    def reference(self) -> str:
        """The perfect answer without markup."""
        return parse_markup(self.sample.answer)[0]


def coco(rle: Rle) -> CocoRle:
    """A record's run lengths as pycocotools takes them."""
    return {"size": list(rle.size), "counts": rle.counts.encode("ascii")}


def paired(samples: Iterable[Sample], predictions: Iterable[Prediction]) -> list[Item]:
    """Samples with their answers, in the order of sample ids.

    Raises ValueError for ids that occur twice or answer nothing, masks at another size and types that are none.
    """
    by_id: dict[str, Prediction] = {}
    for prediction in predictions:
        if prediction.id in by_id:
            raise ValueError(f"two predictions have the id {prediction.id!r}; keep one answer a sample")
        _check(prediction)
        by_id[prediction.id] = prediction
    items = []
    seen: set[str] = set()
    ordered = sorted(samples, key=lambda sample: sample.id)
    _check_truths(ordered)
    artifacts, regions = _artifacts(ordered), _regions(ordered)
    for sample in ordered:
        if sample.id in seen:
            raise ValueError(f"two samples have the id {sample.id!r}; ids must be unique in a split")
        seen.add(sample.id)
        prediction_or_none = by_id.pop(sample.id, None)
        refused = prediction_or_none is not None and prediction_or_none.refused is not None
        face = sample.dataset, sample.name
        items.append(Item(sample, None if refused else prediction_or_none, refused, artifacts.get(face), regions.get(face)))
    if by_id:
        raise ValueError(f"{len(by_id)} predictions answer no sample, the first is {min(by_id)!r}; score them against the split they were made for")
    return items


def _artifacts(samples: Iterable[Sample]) -> dict[tuple[str, str], CocoRle]:
    """What was manipulated on each fake: all masks of its image-level samples, so far as these are known.

    `loc` shows the whole of it and `age` its parts; of a face without a twin, `age` also names what lies outside the oval that `loc` shows.
    """
    masks: dict[tuple[str, str], list[CocoRle]] = defaultdict(list)
    for sample in samples:
        if sample.is_fake and sample.mask_known and sample.level == "image" and sample.probe is None:
            masks[sample.dataset, sample.name] += [rle for mask in sample.masks if area(rle := coco(mask.rle))]
    return {face: union(rles, SIDE) for face, rles in masks.items() if rles}


def _regions(samples: Iterable[Sample]) -> dict[tuple[str, str], Mapping[str, Rle]]:
    return {(s.dataset, s.name): s.regions for s in samples if s.regions and s.level == "image" and s.probe is None}


def _check_truths(samples: Iterable[Sample]) -> None:
    known: set[int] = set()
    for sample in samples:
        regions = () if id(sample.regions) in known else sample.regions.values()  # those of a face may be one object
        known.add(id(sample.regions))
        others = (rle for rle in (sample.frozen, sample.area) if rle is not None)
        for rle in (*(mask.rle for mask in sample.masks), *others, *regions):
            if rle.size != (SIDE, SIDE) or not rle.fills_its_size:
                raise ValueError(f"the sample {sample.id!r} has a mask that is not of {SIDE} x {SIDE} px; make the split again")


def _check(prediction: Prediction) -> None:
    for mask in prediction.masks:
        if mask.rle.size != (SIDE, SIDE):
            height, width = mask.rle.size
            raise ValueError(f"{prediction.id!r}: a mask is {height} x {width} px; masks live on the {SIDE} x {SIDE} px crop, resize them")
        if not _fills_its_size(mask.rle):
            raise ValueError(f"{prediction.id!r}: the run lengths of a mask do not fill {SIDE} x {SIDE} px; write them with pycocotools' encode")
    unknown = set(prediction.type_probs or ()) - set(FORGERY_TYPES)
    if unknown:
        raise ValueError(f"{prediction.id!r}: {min(unknown)!r} is no forgery type; choose from {', '.join(FORGERY_TYPES)}")


def _fills_its_size(rle: Rle) -> bool:
    """Whether the run lengths are what pycocotools writes: on others it computes areas and overlaps of pixels that are not there."""
    try:
        return Rle.of(rle.decode()) == rle
    except ValueError:
        return False


def asked(items: Sequence[Item], task: TaskKind, level: Level = "image") -> list[Item]:
    """The items of one of the eleven tasks, probes left out."""
    return [item for item in items if item.sample.task == task and item.sample.level == level and item.sample.probe is None]


def attempted(items: Sequence[Item]) -> bool:
    """Whether anything was answered or refused; a task that a system does not offer gets no figures."""
    return any(item.prediction is not None or item.refused for item in items)


def coverage(items: Sequence[Item]) -> dict[str, dict[str, float]]:
    """Samples, answers, refusals and silence by task and level, probes apart."""

    def kind(item: Item) -> tuple[str, ...]:
        return (item.sample.task, item.sample.level, *([item.sample.probe] if item.sample.probe else []))

    table = {}
    for key, members in groupby(sorted(items, key=kind), key=kind):
        rows = list(members)
        answered, refused = sum(item.prediction is not None for item in rows), sum(item.refused for item in rows)
        table["/".join(key)] = {
            "samples": float(len(rows)), "answered": float(answered), "refused": float(refused), "missing": float(len(rows) - answered - refused),
        }  # fmt: skip
    return table
