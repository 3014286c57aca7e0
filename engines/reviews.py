"""What a reviewer decided about one verdict: the record that the desk writes and the trainer reads.

A review carries everything that scoring needs, so that neither the verdict nor the engine has to be at hand: what was said, by which engine, of which
pixels, and what the reviewer made of it. JSON, one object a line or a record.
"""

from datetime import datetime
from enum import StrEnum
from math import isfinite
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engines.contracts import Box, Label, Sha256

REVIEW_SCHEMA: Final = "1.0"

Score = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class Decision(StrEnum):
    """What a reviewer may say: the whole list."""

    AGREE = "agree"
    """Label, place and text hold."""
    DISAGREE = "disagree"
    """The label is wrong. Of an inconclusive one it says that the face can be told, and `truth` says as what."""
    WRONG_PLACE = "wrong_place"
    """The label holds; some mask does not lie on what is wrong with the face."""
    WRONG_TEXT = "wrong_text"
    """The label holds; some words do not describe what is there."""
    SKIP = "skip"
    """Not to be told."""


class Sampling(StrEnum):
    """How the queue was ordered that a case was taken from: what may be concluded beyond the reviewed cases hangs on it."""

    RANDOM = "random"
    """Drawn from all cases alike: figures speak of the whole queue."""
    SCORE = "score"
    UNCERTAINTY = "uncertainty"
    """Both by the score alone: figures speak of cases with like scores."""
    DISAGREEMENT = "disagreement"
    """By what two engines, or a frame and its stream, make of it."""
    OTHER = "other"
    """By time, by stream, by a reviewer's choice: figures speak of the reviewed cases."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Review(_Closed):
    """One decision about one face, or about a picture without one. Of the same (verdict, frame, face, reviewer) the latest counts."""

    schema_version: Literal["1.0"] = REVIEW_SCHEMA
    verdict: Annotated[str, Field(min_length=1, max_length=512)]
    """`id` of the verdict: 'topic/partition/offset', or the digest of a file."""
    verdict_sha256: Sha256
    """Of the verdict's bytes as they were shown."""
    media_sha256: Sha256
    """Of the image or chunk."""
    engine: Sha256
    """Manifest digest of the engine that answered."""
    stream: Name | None = None
    frame: int | None = Field(None, ge=0)
    """Which sampled frame of a chunk, by its `index`; null for an image."""
    t_ms: int | None = None
    """When in the stream, where that is known."""
    face: int | None = Field(None, ge=0)
    """`id` of the face; null where there was none."""
    box: Box | None = None
    """Of the face, in frame pixels."""
    segment: Name | None = None
    """`id` of the segment that the reviewer came from."""
    label: Label
    """As the verdict had it."""
    fake_score: Score | None
    raw_score: float | None = Field(None, allow_inf_nan=False)
    """Uncalibrated, of the face."""
    forgery_type: Name | None = None
    """As the verdict had it."""
    concepts: tuple[Name, ...] = Field((), max_length=200)
    """FICT ids that the explanation pointed at."""
    decision: Decision
    evidence: tuple[Name, ...] = Field((), max_length=200)
    """`id`s of the phrases that a decision about place or text speaks of; empty: of all."""
    objected: tuple[Name, ...] = Field((), max_length=200)
    """FICT ids of the phrases that `evidence` names; empty where the desk did not say."""
    truth: Literal["real", "fake"] | None = None
    """What the face is, in the reviewer's eyes; null where the decision does not say."""
    true_forgery_type: Name | None = None
    """What family it is, where the reviewer corrects that too."""
    reviewer: Name
    decided_at: datetime
    """With a time zone."""
    comment: str = Field("", max_length=2_000)
    sampling: Sampling | None = None
    """How the case came to the reviewer; null: not said."""
    withdrawn: bool = False
    """The reviewer took back what was decided before; the decision is then `skip`, so that a reader without this field counts nothing either."""

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.box is not None and not all(map(isfinite, self.box)):
            raise ValueError(f"a box has finite sides, got {self.box}")
        if self.decided_at.tzinfo is None:
            raise ValueError("decided_at needs a time zone")
        told = truth_of(self.label, self.decision)
        if told is not None and self.truth != told:
            raise ValueError(f"decision {self.decision.value} on label {self.label.value} means truth {told}, got {self.truth}")
        if self.decision is Decision.SKIP and self.truth is not None:
            raise ValueError(f"decision skip tells nothing, got truth {self.truth}")
        if self.decision is Decision.DISAGREE and self.truth is None:
            raise ValueError("decision disagree on label inconclusive needs the truth: real or fake")
        if self.withdrawn and self.decision is not Decision.SKIP:
            raise ValueError(f"what was withdrawn is told as skip, got {self.decision.value}")
        return self


def truth_of(label: Label, decision: Decision) -> Literal["real", "fake"] | None:
    """What a decision says the face is; None where it is open: a skip, and whatever is said of an inconclusive label. There the reviewer names the
    truth beside the decision: always with `disagree`, else if it can be told."""
    if decision is Decision.SKIP or label is Label.INCONCLUSIVE:
        return None
    return "fake" if (label is Label.FAKE) != (decision is Decision.DISAGREE) else "real"
