"""One question about one face and what a perfect system answers; and what a system did answer. The two records of FiFa-Bench and of training.

The eleven tasks (FiFa-11): `det` and `cls` of the whole face; `loc`, `toe` and `age` each of the image, of a FICT region, of a box. Both records are
JSON lines, closed (an unknown field is an error), and say everything a scorer needs: no metric looks into a data set.

Frames of reference: masks and boxes live on the face crop at 224 x 224 px, x to the right, y down; a box is (x0, y0, x1, y1) with the far edges
exclusive. Left and right in texts are the subject's.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines import fict
from engines.contracts import Mask, MaskError

TaskKind = Literal["det", "cls", "loc", "toe", "age"]
Level = Literal["image", "region", "box"]
Probe = Literal["shuffled_query"]
ELEVEN_TASKS: tuple[tuple[TaskKind, Level], ...] = (
    ("det", "image"), ("cls", "image"),
    *((kind, level) for level in ("image", "region", "box") for kind in ("loc", "toe", "age")),
)  # fmt: skip
SIDE = 224
"""Pixels of the square on which masks and boxes live."""

R = TypeVar("R", bound=BaseModel)
UnitInterval = Annotated[float, Field(ge=0, le=1)]
BoxXYXY = tuple[float, float, float, float]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rle(_Record):
    """COCO run lengths over the crop."""

    size: tuple[int, int] = (SIDE, SIDE)
    counts: str = Field(max_length=100_000)

    @staticmethod
    def of(mask_HW: NDArray[np.bool_]) -> "Rle":
        """Encode an (H, W) mask."""
        mask = Mask.encode(mask_HW)
        return Rle(size=mask.size_hw, counts=mask.counts)

    def decode(self) -> NDArray[np.bool_]:
        """(H, W) bool. Raises `engines.contracts.MaskError` for run lengths that do not fill the size."""
        return Mask(self.size, self.counts).decode()

    @property
    def fills_its_size(self) -> bool:
        """Whether the run lengths are all pixels: of others pycocotools shows foreign memory, or never ends."""
        try:
            Mask(self.size, self.counts).runs()
        except MaskError:
            return False
        return True


class TrueMask(_Record):
    """What one [SEG] of the answer must show."""

    concept: str | None
    """FICT id; None where the answer names no concept (localisation)."""
    rle: Rle


class Sample(_Record):
    """A question about a face, and the answer."""

    id: str
    """Unique in a file: 'dfdc/abc.jpg#age-region-0'."""
    dataset: str
    name: str
    """The face, unique within its set."""
    unit: str
    """Identity, person, prompt or grid: what intervals are drawn over."""
    group: tuple[str, ...] = ()
    """Detection groups the face counts in ('dfdc_curated', ...)."""
    task: TaskKind
    level: Level = "image"
    concept: str | None = None
    """Region queries: the FICT id asked for."""
    box_xyxy: BoxXYXY | None = None
    """Box queries."""
    prompt: str
    """What the model is asked; `<bbox>` stands for the box feature."""
    answer: str
    """Markup of a perfect answer, clean answers included."""
    is_fake: bool
    forgery_type: str | None
    """One of `engines.contracts.FORGERY_TYPES`, 'swap' where identity and expression swap are not told apart, None for real faces."""
    tampered: bool
    """Whether the asked area holds an artifact; at image level, whether the face is fake."""
    mask_known: bool = True
    """False where where-it-was-changed is not known (a fake whose pair was refused): such a sample scores no mask."""
    masks: tuple[TrueMask, ...] = ()
    """One for each [SEG] of `answer`, in order."""
    frozen: Rle | None = None
    """The frozen reference mask within the asked area, for pairs (image-level `loc` only)."""
    area: Rle | None = None
    """Region and box queries: the asked area on this face."""
    regions: dict[str, Rle] = {}
    """`age`: where FICT lies on this face, as its visible atoms and boundary arcs by id; a parent is the union of its atoms."""
    probe: Probe | None = None
    """'shuffled_query': the question was swapped with another sample's while the answer is still that of `probed`; a system that reads the question
    must do badly here."""
    probed: str | None = None
    """Probes: the id of the sample whose answer this is."""

    @model_validator(mode="after")
    def _asks_one_of_the_eleven(self) -> "Sample":
        if (self.task, self.level) not in ELEVEN_TASKS:
            raise ValueError(f"{self.task} at level {self.level} is none of the eleven tasks; det and cls are asked of the image")
        if (self.level == "region") != (self.concept is not None) or (self.level == "box") != (self.box_xyxy is not None):
            raise ValueError(f"level {self.level} needs exactly its own query: a concept for regions, box_xyxy for boxes")
        if (self.probe is None) != (self.probed is None):
            raise ValueError("a probe names the sample it probes in `probed`, and only a probe does")
        for concept in (self.concept, *(mask.concept for mask in self.masks), *self.regions):
            if concept is not None and concept not in fict.concepts():
                raise ValueError(f"{concept!r} is no FICT concept; see `engines.fict.concepts()`")
        if self.box_xyxy is not None and not (0 <= self.box_xyxy[0] < self.box_xyxy[2] <= SIDE and 0 <= self.box_xyxy[1] < self.box_xyxy[3] <= SIDE):
            raise ValueError(f"box {self.box_xyxy} is empty or leaves the {SIDE} px crop")
        return self


class PredictedMask(_Record):
    """One mask of an answer."""

    concept: str | None = None
    """FICT id of its phrase; None without one."""
    phrase: str | None = None
    """The phrase as written, for systems that do not speak FICT."""
    rle: Rle
    confidence: UnitInterval = 1.0


class Prediction(_Record):
    """What a system answered to one sample; what a task does not ask may be left out."""

    id: str
    fake_score: UnitInterval | None = None
    """`det`: 1 = fake."""
    type_probs: dict[str, UnitInterval] | None = None
    """`cls`: over `engines.contracts.FORGERY_TYPES`."""
    text: str | None = Field(default=None, max_length=20_000)
    """`toe` and `age`: plain text without markup."""
    masks: tuple[PredictedMask, ...] = ()
    """`loc`: none or one; `age`: one for each phrase."""
    refused: str | None = None
    """Why there is no answer ('query_not_answered'); counts as a miss and is reported."""


def write_jsonl(path: Path, records: Iterable[BaseModel]) -> int:
    """Write one JSON line a record; returns how many. A file that is not finished does not have that name."""
    count, unfinished = 0, path.with_name(f"{path.name}.part")
    with unfinished.open("w", encoding="utf-8") as sink:
        for record in records:
            sink.write(record.model_dump_json(exclude_defaults=True) + "\n")
            count += 1
    unfinished.replace(path)
    return count


def read_samples(path: Path) -> Iterator[Sample]:
    """Read samples. Raises ValueError naming the line that is none."""
    return _read(path, Sample)


def read_predictions(path: Path) -> Iterator[Prediction]:
    """Read predictions. Raises ValueError naming the line that is none."""
    return _read(path, Prediction)


def _read(path: Path, record: type[R]) -> Iterator[R]:
    with path.open(encoding="utf-8") as source:
        for number, line in enumerate(source, 1):
            try:
                yield record.model_validate_json(line)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                where = ".".join(str(part) for part in first["loc"]) or "the line"
                raise ValueError(f"{path}, line {number}: {where}: {first['msg']}; see the record {record.__name__} in docs/fifa-bench.md") from None
