"""What a reviewer decided about one verdict: the record that the desk writes and the trainer reads.

A review carries everything that scoring needs, so that neither the verdict nor the engine has to be at hand: what was said, by which engine, of which
pixels, and what the reviewer made of it. JSON, one object a line or a record.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engines.contracts import Box, Label, Sha256

REVIEW_SCHEMA = "1.0"

Score = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class Decision(StrEnum):
    """What a reviewer may say: the whole list."""

    AGREE = "agree"
    """Label, place and text hold."""
    DISAGREE = "disagree"
    """The label is wrong."""
    WRONG_PLACE = "wrong_place"
    """The label holds; some mask does not lie on what is wrong with the face."""
    WRONG_TEXT = "wrong_text"
    """The label holds; some words do not describe what is there."""
    SKIP = "skip"
    """Not to be told."""


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
    raw_score: float | None = None
    """Uncalibrated, of the face."""
    forgery_type: Name | None = None
    """As the verdict had it."""
    concepts: tuple[Name, ...] = Field((), max_length=200)
    """FICT ids that the explanation pointed at."""
    decision: Decision
    evidence: tuple[Name, ...] = Field((), max_length=200)
    """`id`s of the phrases that a decision about place or text speaks of; empty: of all."""
    truth: Literal["real", "fake"] | None = None
    """What the face is, in the reviewer's eyes; null where the decision does not say."""
    true_forgery_type: Name | None = None
    """What family it is, where the reviewer corrects that too."""
    reviewer: Name
    decided_at: datetime
    """With a time zone."""
    comment: str = Field("", max_length=2_000)

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if self.decided_at.tzinfo is None:
            raise ValueError("decided_at needs a time zone")
        told = truth_of(self.label, self.decision)
        if told is not None and self.truth != told:
            raise ValueError(f"decision {self.decision.value} on label {self.label.value} means truth {told}, got {self.truth}")
        if (self.decision is Decision.SKIP) != (self.truth is None) and self.label is not Label.INCONCLUSIVE:
            raise ValueError(f"decision {self.decision.value} does not go with truth {self.truth}")
        return self


def truth_of(label: Label, decision: Decision) -> Literal["real", "fake"] | None:
    """What a decision says the face is; None where it is open: a skip, and whatever is said of an inconclusive label without naming the truth."""
    if decision is Decision.SKIP or label is Label.INCONCLUSIVE:
        return None
    return "fake" if (label is Label.FAKE) != (decision is Decision.DISAGREE) else "real"
