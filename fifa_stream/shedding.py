"""Load shedding: which of the frames that wait are skipped, and the verdict that says so. Off unless `shedding.policy` says otherwise.

A skipped frame keeps its one answer: an inconclusive verdict without faces, whose note `shed` says why. Nothing of it is decoded or fetched.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from engines.contracts import Label
from fifa_stream.config import SheddingSettings
from fifa_stream.media import UNDECLARED, sniff
from fifa_stream.mp4 import MP4
from fifa_stream.records import EngineIdentity, FrameRecord, InputCoordinates, Media, Note, NoteCode, OperatingPointUsed, Verdict

MAX_TYPE_LENGTH = 127
"""Of a content type that a record declares; a longer one is none (RFC 6838)."""


class ShedReason(StrEnum):
    """Why a frame is skipped: the whole list."""

    TOO_OLD = "too_old"
    DEADLINE_PASSED = "deadline_passed"
    NEWER_FRAMES_WAIT = "newer_frames_wait"


@dataclass(frozen=True, slots=True)
class Shed:
    """One frame is to be skipped."""

    reason: ShedReason
    message: str


class Shedder:
    """The policy as a function of the frames that wait and the time."""

    def __init__(self, settings: SheddingSettings) -> None:
        self._settings = settings

    @property
    def is_off(self) -> bool:
        """Whether `choose` never sheds."""
        return self._settings.policy == "off"

    def choose(self, frames: Sequence[FrameRecord], now_ms: int) -> list[Shed | None]:
        """One answer for each frame that waits for the engine, in their order: why it is skipped, or None. `now_ms` is Unix time.

        With `newest` all frames that wait must be given, oldest first, or a newer one of the same stream is not seen.
        """
        match self._settings.policy:
            case "off":
                return [None] * len(frames)
            case "late":
                return [self._late(frame, now_ms) for frame in frames]
            case "newest":
                return self._all_but_newest(frames)

    def _late(self, frame: FrameRecord, now_ms: int) -> Shed | None:
        if frame.deadline_ms is not None and now_ms > frame.deadline_ms:
            return Shed(ShedReason.DEADLINE_PASSED, f"deadline-ms {frame.deadline_ms} had passed by {now_ms - frame.deadline_ms} ms")
        age_ms = now_ms - frame.raw.timestamp_ms
        if frame.raw.timestamp_ms >= 0 and age_ms > self._settings.max_age_ms:  # -1: the record has none
            return Shed(ShedReason.TOO_OLD, f"the record was {age_ms} ms old, shedding.max_age_ms is {self._settings.max_age_ms}")
        return None

    def _all_but_newest(self, frames: Sequence[FrameRecord]) -> list[Shed | None]:
        limit = self._settings.max_waiting_per_stream
        newer = Counter[tuple[str, str]]()
        chosen: list[Shed | None] = []
        for frame in reversed(frames):
            stream = (frame.raw.topic, frame.stream_id)
            number = newer[stream]
            message = f"{number} newer frames of the stream waited, shedding.max_waiting_per_stream is {limit}"
            chosen.append(Shed(ShedReason.NEWER_FRAMES_WAIT, message) if number >= limit else None)
            newer[stream] += 1
        return chosen[::-1]


def shed_verdict(frame: FrameRecord, shed: Shed, *, engine: EngineIdentity, operating_point: OperatingPointUsed) -> Verdict:
    """The answer to a frame that nobody looked at. Its media is what the record says: size and digest of a claim are the claim's."""
    claim, value = frame.claim, frame.raw.value or b""
    declared = frame.content_type or UNDECLARED
    content_type = sniff(value) or (declared if len(declared) <= MAX_TYPE_LENGTH else UNDECLARED)
    is_video = content_type == MP4 or content_type.startswith("video/")
    return Verdict(
        id=frame.raw.place,
        input=InputCoordinates.of(frame),
        engine=engine,
        media=Media(
            type="video" if is_video else "image",
            content_type=content_type,
            sha256=hashlib.sha256(value).hexdigest() if claim is None else claim.sha256,
            size_bytes=len(value) if claim is None else claim.size,
            width=None,
            height=None,
            uri=None if claim is None else claim.uri,
        ),
        label=Label.INCONCLUSIVE,
        fake_score=None,
        operating_point=operating_point,
        faces=(),
        notes=(Note(code=NoteCode.SHED, message=f"skipped, nobody looked at it: {shed.message}"),),
        timings_ms={},
        frames=() if is_video else None,
    )
