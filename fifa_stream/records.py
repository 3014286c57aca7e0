"""The wire: frames in, verdicts and dead letters out. The only place that knows header names and JSON field names.

Frames are raw image bytes, or a chunk of video, under plain or CloudEvents (`ce_*`) headers; verdicts are JSON and CloudEvents in binary mode; dead
letters keep key, value and headers of the input and add `dlq-*` headers. Boxes and masks are in frame pixels, origin top left.

    RecordError      this record cannot become a verdict: dead-letter it and go on; carries one of `Reason`
    TransientError   worth a bounded retry (a claim-check store that does not answer)
"""

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from engines import fict
from engines.contracts import Label, Words

SCHEMA_VERSION: Final = "1.4"
"""Of the verdict: minor grows with optional fields, major breaks. 1.1 gives `query` a type and answers; in 1.0 it was the bare question.
1.2 adds video: `frames`, and `duration_ms` and `num_frames` of `media`; and the note `shed`, with which `width` and `height` of `media` are null.
1.3 fills `timeline`, `segments` and `stream`, which were reserved. 1.4 adds `words` to explanations and `usual` to evidence."""

VERDICT_TYPE = "fifa.verdict.v1"
VERDICT_SCHEMA = f"urn:fifa-stream:verdict:{SCHEMA_VERSION}"
EVENT_SOURCE = "urn:fifa-stream"
SHADOW_SOURCE = "urn:fifa-stream:shadow"
"""Of the verdicts of an engine that does not answer: an event's id is its frame's, so the source tells the two apart."""

OF_THE_STREAM = ("timeline", "segments", "stream")
"""Verdict fields that only a worker with a memory fills (`streams.memory`)."""

Headers = tuple[tuple[str, bytes], ...]


class Reason(StrEnum):
    """Why a record is dead-lettered: the whole list."""

    EMPTY_VALUE = "empty_value"
    INVALID_HEADER = "invalid_header"
    RECORD_TOO_LARGE = "record_too_large"
    UNSUPPORTED_MEDIA = "unsupported_media"
    MEDIA_MISMATCH = "media_mismatch"
    UNDECODABLE_IMAGE = "undecodable_image"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_TOO_SMALL = "image_too_small"
    UNDECODABLE_VIDEO = "undecodable_video"
    VIDEO_TOO_LONG = "video_too_long"
    CLAIM_FORBIDDEN = "claim_forbidden"
    CLAIM_UNAVAILABLE = "claim_unavailable"
    CLAIM_MISMATCH = "claim_mismatch"


class RecordError(Exception):
    """One bad record. The message gives cause, value and remedy, and never holds image bytes."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class TransientError(Exception):
    """Worth another try, up to the configured limit."""


class RawRecord(NamedTuple):
    """A record as the broker gave it. What is made for every record is a tuple here: making a frozen dataclass takes longer."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def place(self) -> str:
        """'topic/partition/offset': names the record in messages, and its verdict."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    def is_in_share(self, share: float) -> bool:
        """Whether this record belongs to a fixed part of all, evenly spread over the offsets of each partition; the same whoever asks."""
        # Fibonacci hashing: 2**32 over the golden ratio spreads consecutive numbers evenly.
        return ((self.offset * 2_654_435_761 + self.partition * 2_246_822_519) & 0xFFFF_FFFF) < share * 2**32


@dataclass(frozen=True, slots=True)
class Query:
    """What was asked of this frame: one FICT concept, or one box in frame pixels; never both."""

    region: str | None = None
    box_xyxy: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if (self.region is None) == (self.box_xyxy is None):
            raise ValueError(f"a query asks about a region or a box, got region {self.region!r} and box {self.box_xyxy!r}; give one of them")

    @property
    def text(self) -> str:
        """As header `fifa-query` carries it: `parse_query` gives the same query back."""
        return self.region or "" if self.box_xyxy is None else ",".join(repr(float(side)) for side in self.box_xyxy)


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim check: where the image lies that a record does not carry, and what it must be."""

    uri: str
    """In plain spelling (`is_plain_uri`); whether it may be read is for `fifa_stream.claims` to say."""
    sha256: str
    """Of the image, in lower-case hex."""
    size: int
    """Bytes of the image, at least 1."""
    content_type: str | None
    expires_at_ms: int | None = None
    """Unix time after which the image is no longer promised to be there."""

    @property
    def headers(self) -> dict[str, str]:
        """As a record carries it: `parse_frame` gives the same claim back."""
        headers = {"claim-uri": self.uri, "claim-sha256": self.sha256, "claim-size": str(self.size)}
        if self.expires_at_ms is not None:
            headers["claim-expires-ms"] = str(self.expires_at_ms)
        if self.content_type:
            headers["content-type"] = self.content_type
        return headers


class FrameRecord(NamedTuple):
    """A record whose headers have been read. The image is still encoded."""

    raw: RawRecord
    stream_id: str
    """Header `stream-id`, else the key as text, else 'topic/partition'."""
    content_type: str | None
    frame_index: int | None
    pts_ms: int | None
    deadline_ms: int | None
    """Unix time by which the verdict is still of use; afterwards the frame is scored but not explained."""
    is_crop: bool
    """`fifa-crop: true`: the image already is one face crop; no detection."""
    query: Query | None
    traceparent: str | None
    """W3C trace context; one that is none is left out, as the standard asks."""
    is_last: bool = False
    """`stream-end: true`: no frame of this stream follows."""
    claim: Claim | None = None
    """Set where the image lies elsewhere; the record's own value is then empty."""
    fetched: bytes | None = None
    """What the claim led to, once it was fetched and found to be what the claim says."""

    @property
    def value(self) -> bytes:
        """The encoded image: the record's own, or the fetched one."""
        if self.claim is None:
            return self.raw.value or b""
        assert self.fetched is not None, f"{self.claim.uri} was to be fetched first"
        return self.fetched


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in frame pixels."""
Score = Annotated[float, Field(ge=0, le=1)]


class NoteCode(StrEnum):
    """Typed remarks on a frame or face: the whole list."""

    NO_FACE = "no_face"
    FACE_TOO_SMALL = "face_too_small"
    BLURRED = "blurred"
    TOO_DARK = "too_dark"
    TOO_BRIGHT = "too_bright"
    PARTLY_OUTSIDE = "partly_outside"
    ROTATED = "rotated"
    TOO_MANY_FACES = "too_many_faces"
    NOT_EXPLAINED = "not_explained"
    EXPLANATION_TRUNCATED = "explanation_truncated"
    DEADLINE_PASSED = "deadline_passed"
    QUERY_NOT_ANSWERED = "query_not_answered"
    QUERY_NOT_ON_A_FACE = "query_not_on_a_face"
    SHED = "shed"


class Note(_Wire):
    """One typed remark."""

    code: NoteCode
    message: str


class InputCoordinates(_Wire):
    """Which record this verdict answers; (topic, partition, offset) is the idempotency key for sinks."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    stream_id: str
    frame_index: int | None = None
    pts_ms: int | None = None

    @classmethod
    def of(cls, frame: FrameRecord) -> Self:
        """Of a record whose headers were read."""
        raw = frame.raw
        return cls(
            topic=raw.topic,
            partition=raw.partition,
            offset=raw.offset,
            timestamp_ms=raw.timestamp_ms,
            stream_id=frame.stream_id,
            frame_index=frame.frame_index,
            pts_ms=frame.pts_ms,
        )


class EngineIdentity(_Wire):
    """Which weights and which runtime answered."""

    name: str
    version: str
    manifest_sha256: str
    encoder_sha256: str
    precision: str
    backend: str


class Media(_Wire):
    """The image or video chunk that was looked at, or left out: with the note `shed` it is what its record says, unchecked."""

    type: Literal["image", "video"] = "image"
    content_type: str
    sha256: str
    size_bytes: int
    width: int | None
    """Upright, as boxes and masks are; null with the note `shed`."""
    height: int | None
    uri: str | None = None
    duration_ms: int | None = None
    """Of a chunk, from its first frame's start to its last one's end."""
    num_frames: int | None = None
    """In a chunk; how many of them were looked at is the length of `frames`."""


class OperatingPointUsed(_Wire):
    """The two cuts behind a label."""

    name: str
    fake_at: Score
    real_below: Score
    fpr_target: float | None = None


class RunLengths(_Wire):
    """COCO run lengths (compressed string) over the whole frame."""

    size: tuple[int, int]
    """(height, width)."""
    counts: str


class EvidenceItem(_Wire):
    """A phrase of the explanation and the pixels it speaks of."""

    id: str
    phrase: str
    char_span: tuple[int, int]
    """Unicode code points into the `text` of the explanation beside it, end exclusive."""
    concept: str
    concept_path: tuple[str, ...]
    mask: RunLengths
    mask_confidence: Score
    box: Box | None
    """Tight box of the mask; null when the mask is empty."""
    measured: dict[str, float] = {}
    """Measurements of the face crop inside the mask against around it, by name."""
    usual: dict[str, float] = Field(default={}, exclude_if=lambda usual: not usual)
    """The same of real faces at this place: their mean. Left out of a text that was not worded from measurements, and before 1.4."""


class ExplanationText(_Wire):
    """The explanation, plain and with `<p> phrase </p> [SEG]`."""

    text: str
    markup: str
    words: Words | None = Field(default=None, exclude_if=lambda words: words is None)
    """Whose words these are: "measured" (every amount was measured on this face), "decoded" (the language decoder's; amounts are what such faces
    tend to show) or "fixed" (a set sentence without amounts). Left out before 1.4."""


class Quality(_Wire):
    """What the face crop is like; a face that fails does not decide the frame's label."""

    passed: bool
    face_px: float
    """Shorter side of the face box in frame pixels."""
    sharpness: float
    """Standard deviation of the Laplacian of luma on the crop, 0..255 scale."""
    brightness: float
    """Mean luma, 0..255."""
    roll_deg: float | None = None


class ForgeryType(_Wire):
    """Which family, given that the face is fake."""

    label: str
    probs: dict[str, Score]


class FaceVerdict(_Wire):
    """One face."""

    id: int
    box: Box
    detection_confidence: Score | None
    """Null for images that came as a crop."""
    quality: Quality
    fake_score: Score
    """Calibrated; 1 = fake."""
    raw_score: float
    label: Label
    forgery_type: ForgeryType
    evidence: tuple[EvidenceItem, ...] = ()
    explanation: ExplanationText | None = None
    notes: tuple[Note, ...] = ()
    _appearance: bytes = PrivateAttr(b"")

    @property
    def appearance(self) -> bytes:
        """What tracks tell people apart by (`engines.contracts.Analysis.appearance`); empty where nobody keeps any. Never on the wire."""
        return self._appearance

    def seen_as(self, appearance: bytes) -> Self:
        """The same face with an appearance."""
        self._appearance = appearance
        return self


class FaceAnswer(_Wire):
    """What one face shows in the asked area."""

    face: int
    """`id` of the face among `faces`."""
    tampered: bool
    """Whether the area holds an artifact; `tampered_probability` is then 0.5 or more."""
    tampered_probability: Score
    mask: RunLengths
    """The artifact, in frame pixels and never outside an asked box; empty for a clean area."""
    mask_confidence: Score
    """Predicted IoU of the mask; 0 for a clean area."""
    box: Box | None
    """Tight box of the mask; null when the mask is empty."""
    explanation: ExplanationText
    """Speaks of the asked area only."""
    evidence: tuple[EvidenceItem, ...] = ()
    """Where the phrases of this explanation point; none for a clean area."""


class QueryAnswered(_Wire):
    """What was asked beside the whole face, and what every face that could be asked shows there: a region or a box, the other is null."""

    region: str | None = None
    """FICT id."""
    box: Box | None = None
    """As asked, in frame pixels."""
    answers: tuple[FaceAnswer, ...] = ()
    """In the order of `faces`. Faces unfit to be judged and those that the box does not touch are left out; where none is left a note says why."""

    @property
    def words(self) -> str:
        """The asked area for a reader: 'right cheek', 'box 10, 20, 30, 40'."""
        return (self.region or "").replace("_", " ") if self.box is None else f"box {', '.join(f'{side:g}' for side in self.box)}"


class SampledFrame(_Wire):
    """What is said of one frame of a chunk, as a verdict says it of an image."""

    index: int
    """Among the frames of the chunk in the order they are shown, from 0."""
    pts_ms: int
    """When it is shown: its time on the time line of the container, edit list applied, plus the record's header `pts-ms` where there is one."""
    label: Label
    """That of the face with the highest fake_score among faces that pass quality; else inconclusive, with a note."""
    fake_score: Score | None
    faces: tuple[FaceVerdict, ...]
    notes: tuple[Note, ...] = ()
    query: QueryAnswered | None = None
    """The question of the record, asked of this frame."""


class TimelinePoint(_Wire):
    """One face at one time of its stream: what its frame says alone, and what the stream says by then."""

    t_ms: int
    """Time of the stream: `pts_ms` of the frame, or the record's timestamp where the stream began without one."""
    frame: int | None = None
    """Which of `frames` of a chunk, by its `index`; null for an image."""
    face: int
    """`id` of the face among the faces of its frame."""
    track: int
    """Which person: a number of the stream, counted from 0 in the order of appearance."""
    fake_score: Score
    """Of this frame alone, as its face has it."""
    smoothed: Score
    """Probability that this track is manipulated now, given all its frames so far."""


class SegmentEvidence(_Wire):
    """A concept that explanations inside a segment pointed at."""

    concept: str
    """FICT id."""
    weight: Score
    """Highest confidence of its masks."""
    verdict: str
    """`id` of the verdict that shows it so."""


class Segment(_Wire):
    """A stretch of a track that is manipulated. It comes again with every verdict that moves it: of one `id` the last one counts."""

    id: str
    """Unique in its stream, and the same whoever answers: 'epoch.track.start_ms'."""
    track: int
    start_ms: int
    """First frame of the stretch."""
    end_ms: int
    """Last frame of it so far."""
    is_open: bool
    """Whether later frames may still lengthen it."""
    peak_ms: int
    peak: Score
    """Highest `smoothed`, and when."""
    num_frames: int
    forgery_type: str
    """Most likely family over its frames."""
    evidence: tuple[SegmentEvidence, ...] = ()
    """Strongest first."""

    @property
    def words(self) -> str:
        """For a reader: 'track 0, 12.4-15.0 s: identity swap, 0.97 at 13.2 s; mouth, nose'."""
        places = ", ".join(item.concept.replace("_", " ") for item in self.evidence)
        return (
            f"track {self.track}, {self.start_ms / 1000:.1f}-{self.end_ms / 1000:.1f} s: {self.forgery_type.replace('_', ' ')}, "
            f"{self.peak:.2f} at {self.peak_ms / 1000:.1f} s{'; ' if places else ''}{places}"
        )


class StreamVerdict(_Wire):
    """What the stream says of itself by this record, by the same three labels."""

    id: str
    """Of the stream, as `input.stream_id`."""
    epoch: int
    """Grows whenever the stream begins anew: after a gap, an end, or `streams.max_length_s`. The first is the offset of the stream's first record,
    so that no two epochs of a stream are alike even where nobody remembers the one before; in a file 0."""
    state: Literal["live", "late", "ended"]
    """late: the frame is older than the newest one, is judged alone and moves nothing. ended: its last frame; what comes later begins anew."""
    label: Label
    fake_score: Score | None
    """Calibrated: that some track of the stream is manipulated for long enough. Null before a face was fit to decide."""
    start_ms: int
    t_ms: int
    """Times of the first and the newest frame of this epoch."""
    fake_ms: int
    """Summed length of the segments."""
    num_frames: int
    num_late: int
    num_tracks: int
    num_segments: int
    notes: tuple[Note, ...] = ()


class Verdict(_Wire):
    """What is said of one image or of one video chunk; with a memory also of its stream: `timeline`, the `segments` that it moved, and `stream`.

    A chunk has its faces and answers in `frames`, `faces` is empty and `query` left out; `label` and `fake_score` are those of the sampled frame with
    the highest fake_score.
    """

    schema_version: Literal["1.0", "1.1", "1.2", "1.3", "1.4"] = SCHEMA_VERSION
    id: str
    """'topic/partition/offset', or the media digest where there is no broker."""
    input: InputCoordinates | None
    engine: EngineIdentity
    media: Media
    label: Label
    """That of the face with the highest fake_score among faces that pass quality, in any sampled frame of a chunk; else inconclusive, with a note."""
    fake_score: Score | None
    operating_point: OperatingPointUsed
    faces: tuple[FaceVerdict, ...]
    notes: tuple[Note, ...] = ()
    timings_ms: dict[str, float]
    query: QueryAnswered | None = None
    """The question of header `fifa-query` and its answers."""
    frames: tuple[SampledFrame, ...] | None = None
    """The sampled frames of a chunk in the order they are shown; none for an image."""
    timeline: tuple[TimelinePoint, ...] | None = None
    """Every face of this image or chunk that belongs to a track, in the order of time."""
    segments: tuple[Segment, ...] | None = None
    """Those that this record began, lengthened or closed."""
    stream: StreamVerdict | None = None

    @property
    def all_faces(self) -> tuple[FaceVerdict, ...]:
        """Of the image, or of all sampled frames of the chunk: there a person counts once a frame."""
        return self.faces if self.frames is None else tuple(face for frame in self.frames for face in frame.faces)

    def to_bytes(self) -> bytes:
        """UTF-8 JSON without what nobody filled: `query` where nothing was asked, what belongs to video on images, and what only a memory knows."""
        exclude: dict[str, Any] = {name: True for name in ("query", "frames", *OF_THE_STREAM) if getattr(self, name) is None}
        if self.media.type == "image":
            exclude["media"] = {"duration_ms", "num_frames"}
        if self.frames is not None:
            exclude["frames"] = {number: {"query"} for number, frame in enumerate(self.frames) if frame.query is None}
        return self.model_dump_json(exclude=exclude).encode()

    @classmethod
    def from_bytes(cls, payload: bytes) -> Self:
        """Validate a verdict read from the topic."""
        return cls.model_validate_json(payload)


def parse_frame(raw: RawRecord, *, max_value_bytes: int) -> FrameRecord:
    """Read the headers of one record. CloudEvents and plain names are both understood; of a repeated header the last counts.

    Raises RecordError (`empty_value`, `record_too_large`, `invalid_header`).
    """
    size = len(raw.value or b"")
    if size > max_value_bytes:
        raise RecordError(
            Reason.RECORD_TOO_LARGE,
            f"the value has {size} bytes, limits.max_record_bytes is {max_value_bytes}; send a smaller image or a claim check",
        )
    try:
        text = {name.lower(): value.decode() for name, value in raw.headers}
    except UnicodeDecodeError:
        text = {name.lower(): _text(name, value) for name, value in raw.headers}  # names the header
    content_type = (text.get("content-type") or text.get("ce_datacontenttype") or "").split(";")[0].strip().lower() or None
    claim = _claim(text, content_type)
    if claim is None and size == 0:
        raise RecordError(Reason.EMPTY_VALUE, "the record's value is empty and it has no claim-uri; send the encoded image as the value")
    if claim is not None and size > 0:
        raise RecordError(Reason.INVALID_HEADER, f"the record has a value of {size} bytes and a claim-uri; send the image or the claim, not both")
    stream_id = text.get("stream-id") or text.get("ce_partitionkey") or (_text("key", raw.key) if raw.key else "") or f"{raw.topic}/{raw.partition}"
    return FrameRecord(
        raw=raw,
        stream_id=_bounded("stream-id", stream_id),
        content_type=content_type,
        frame_index=_integer(text, "frame-index"),
        pts_ms=_integer(text, "pts-ms"),
        deadline_ms=_integer(text, "deadline-ms"),
        is_crop=_flag(text, "fifa-crop"),
        query=parse_query(text["fifa-query"]) if text.get("fifa-query") else None,
        traceparent=_trace_parent(text),
        is_last=_flag(text, "stream-end"),
        claim=claim,
    )


_IDS = r"-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_TRACEPARENT = re.compile(rf"00{_IDS}|(?!00|ff)[0-9a-f]{{2}}{_IDS}(-.{{0,100}})?")
"""W3C trace context; later versions may add fields at the end."""


def _trace_parent(text: Mapping[str, str]) -> str | None:
    value = text.get("traceparent") or text.get("ce_traceparent")
    return value if value and _TRACEPARENT.fullmatch(value) else None


def trace_parent(headers: Headers) -> str | None:
    """The trace context of a record whose headers could not be read as a frame's."""
    return _trace_parent({name.lower(): value.decode("utf-8", "replace") for name, value in headers})


_PLAIN_URI = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9.:-]*/[A-Za-z0-9._~!$&'()*+,;=@:/-]+")
"""Scheme, host or bucket, path. No percent-encoding, user, query, fragment, white space or backslash: one spelling for one place."""
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_CLAIM_HEADERS = frozenset(("claim-uri", "claim-sha256", "claim-size", "claim-expires-ms"))


def is_plain_uri(text: str) -> bool:
    """Whether a URI has the one spelling that may be compared byte by byte: no escapes, no query, no `.`, `..` or empty part in its path."""
    if not _PLAIN_URI.fullmatch(text):
        return False
    return not {"", ".", ".."} & set(text.split("://", 1)[1].split("/")[1:])


def _claim(text: dict[str, str], content_type: str | None) -> Claim | None:
    names = ("claim-uri", "claim-sha256", "claim-size")
    if _CLAIM_HEADERS.isdisjoint(text) or not any(text.get(name) for name in _CLAIM_HEADERS):
        return None
    if missing := [name for name in names if not text.get(name)]:
        raise RecordError(Reason.INVALID_HEADER, f"the claim lacks {', '.join(missing)}; a claim needs {', '.join(names)}")
    uri, sha256 = _bounded("claim-uri", text["claim-uri"], limit=1024), text["claim-sha256"]
    if not is_plain_uri(uri):
        message = f"claim-uri {uri[:160]!r} is not plain scheme://place/path; leave out escapes, '..', user, query and fragment"
        raise RecordError(Reason.INVALID_HEADER, message)
    if not _SHA256.fullmatch(sha256):
        raise RecordError(Reason.INVALID_HEADER, f"claim-sha256 {sha256[:80]!r} is not 64 hex digits")
    size = _integer(text, "claim-size")
    if not size:
        raise RecordError(Reason.INVALID_HEADER, f"claim-size {size} must be at least 1: the bytes of the image")
    return Claim(uri, sha256.lower(), size, content_type, _integer(text, "claim-expires-ms"))


def parse_query(text: str, *, source: str = "fifa-query") -> Query:
    """'right_cheek', 'right cheek' or 'x0,y0,x1,y1'; errors name `source`. Raises RecordError (`invalid_header`)."""
    if "," not in text:
        name = _bounded(source, text.strip())
        region = name if name in fict.concepts() else fict.by_phrase().get(name)
        if region is None:
            raise RecordError(Reason.INVALID_HEADER, f"{source} {name[:80]!r} names no facial concept; use a FICT id such as right_cheek")
        return Query(region=region)
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise RecordError(Reason.INVALID_HEADER, f"{source} {text[:80]!r} is neither a FICT name nor four numbers x0,y0,x1,y1") from None
    if not (0 <= x0 < x1 < 1e6 and 0 <= y0 < y1 < 1e6):  # also refuses NaN
        raise RecordError(Reason.INVALID_HEADER, f"{source} box {text[:80]!r} must have 0 <= x0 < x1 and 0 <= y0 < y1, in pixels")
    return Query(box_xyxy=(x0, y0, x1, y1))


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise RecordError(Reason.INVALID_HEADER, f"{name} is not UTF-8: {value[:16].hex()}...; encode headers and key as UTF-8") from None


def _bounded(name: str, text: str, limit: int = 256) -> str:
    if len(text) > limit:
        raise RecordError(Reason.INVALID_HEADER, f"{name} has {len(text)} characters, at most {limit} are accepted")
    return text


def _integer(text: dict[str, str], name: str) -> int | None:
    value = text.get(name)
    if value is None or value == "":
        return None
    try:
        number = int(value)
    except ValueError:
        raise RecordError(Reason.INVALID_HEADER, f"{name} {value[:40]!r} is not an integer") from None
    if not 0 <= number < 2**63:
        raise RecordError(Reason.INVALID_HEADER, f"{name} {number} is out of range 0..2^63-1")
    return number


def _flag(text: dict[str, str], name: str) -> bool:
    value = text.get(name, "false").strip().lower()
    if value not in ("true", "false", "1", "0"):
        raise RecordError(Reason.INVALID_HEADER, f"{name} {value[:40]!r} is not true or false")
    return value in ("true", "1")


class OutRecord(NamedTuple):
    """A record to produce."""

    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def size(self) -> int:
        """Bytes of key, value and headers."""
        return len(self.key or b"") + len(self.value or b"") + sum(len(name.encode()) + len(data) for name, data in self.headers)


@functools.lru_cache(64)
def _shared_headers(source: str, schema_version: str, label: Label, engine: str) -> Headers:
    """Those that many verdicts share."""
    return (
        ("content-type", b"application/json"),
        ("ce_specversion", b"1.0"),
        ("ce_source", source.encode()),
        ("ce_type", VERDICT_TYPE.encode()),
        ("ce_dataschema", VERDICT_SCHEMA.encode()),
        ("fifa-schema-version", schema_version.encode()),
        ("fifa-label", label.value.encode()),
        ("fifa-engine", engine.encode()),
    )


def event_time(now: datetime | None = None) -> bytes:
    """Header `ce_time`: when an answer was made, now by default."""
    return (now or datetime.now(UTC)).isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()


def verdict_record(verdict: Verdict, frame: FrameRecord, *, time: bytes | None = None, source: str = EVENT_SOURCE) -> OutRecord:
    """Wrap a verdict as CloudEvents binary; the key is the stream id, so a stream's verdicts stay in order. `time` is an `event_time`."""
    stream_id, identity = frame.stream_id.encode(), verdict.id.encode()
    headers = [
        *_shared_headers(source, verdict.schema_version, verdict.label, verdict.engine.manifest_sha256),
        ("ce_id", identity),
        ("ce_time", time or event_time()),
        ("ce_subject", stream_id),
        ("ce_partitionkey", stream_id),
        ("stream-id", stream_id),
        ("fifa-input", identity),
    ]
    if frame.frame_index is not None:
        headers.append(("frame-index", str(frame.frame_index).encode()))
    if frame.pts_ms is not None:
        headers.append(("pts-ms", str(frame.pts_ms).encode()))
    if frame.traceparent:
        headers.append(("traceparent", frame.traceparent.encode()))
    return OutRecord(stream_id, verdict.to_bytes(), tuple(headers))


REPLAYED_HEADER = "dlq-replayed"
"""On a record that was dead-lettered and sent back: how often."""


class Kept(StrEnum):
    """How much of the original a dead letter holds."""

    ALL = "all"
    HEADERS = "headers"
    """Key and headers; the image was left out."""
    NOTHING = "nothing"
    """Neither: they alone are too large for a record."""


def dead_letter_record(raw: RawRecord, error: RecordError, *, group: str, keep_value: bool = True, keep_headers: bool = True) -> OutRecord:
    """Key, value and headers as they came, and behind them where it failed and why. `keep_value=False` leaves the image out and its digest in;
    `keep_headers=False` leaves out key and headers as well."""
    kept = Kept.NOTHING if not keep_headers else Kept.ALL if keep_value or not raw.value else Kept.HEADERS
    added = {
        "dlq-reason": error.reason.value,
        "dlq-error": str(error)[:500],
        "dlq-topic": raw.topic,
        "dlq-partition": str(raw.partition),
        "dlq-offset": str(raw.offset),
        "dlq-timestamp": str(raw.timestamp_ms),
        "dlq-attempts": str(1 + _num_replays(raw.headers)),
        "dlq-consumer-group": group,
        "dlq-version": "1",
        "dlq-value-sha256": hashlib.sha256(raw.value or b"").hexdigest(),
        "dlq-kept": kept.value,
    }
    assert tuple(added) == _DLQ_HEADERS, "a reader knows our headers by their names and order"
    ours = tuple((name, data.encode()) for name, data in added.items())
    if kept is Kept.NOTHING:
        return OutRecord(None, b"", ours)
    is_null = raw.key is None and raw.value is None  # which kafka-python refuses to send
    return OutRecord(raw.key, b"" if kept is Kept.HEADERS or is_null else raw.value, raw.headers + ours)


def _num_replays(headers: Headers) -> int:
    """The last `dlq-replayed` counts; what is no number of at most six digits does not."""
    last = next((data for name, data in reversed(headers) if name == REPLAYED_HEADER), b"")
    return int(last) if re.fullmatch(rb"[0-9]{1,6}", last) else 0


_DLQ_HEADERS = (
    "dlq-reason",
    "dlq-error",
    "dlq-topic",
    "dlq-partition",
    "dlq-offset",
    "dlq-timestamp",
    "dlq-attempts",
    "dlq-consumer-group",
    "dlq-version",
    "dlq-value-sha256",
    "dlq-kept",
)


class NotADeadLetter(ValueError):
    """A record on the dead-letters topic that the worker did not write."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as it is read back. Reason, error and group are text of whoever wrote the record: unsafe for a terminal."""

    raw: RawRecord
    """As it lies on the dead-letters topic."""
    reason: str
    """One of `Reason`, or of a newer version."""
    error: str
    topic: str
    """Where the original lay, with partition, offset and timestamp."""
    partition: int
    offset: int
    timestamp_ms: int
    attempts: int
    """How often the original was tried, with this time."""
    group: str
    value_sha256: str
    """Of the original's value, whether or not it is kept."""
    kept: Kept
    headers: Headers
    """Of the original."""

    @classmethod
    def of(cls, raw: RawRecord) -> Self:
        """Take a letter apart: our headers are the last ones, whatever the original had. Raises NotADeadLetter."""
        start = len(raw.headers) - len(_DLQ_HEADERS)
        ours = raw.headers[max(start, 0) :]
        if tuple(name for name, _ in ours) != _DLQ_HEADERS:
            raise NotADeadLetter(f"{raw.place} has no dlq- headers of ours at its end")
        reason, error, topic, partition, offset, timestamp, attempts, group, _, sha256, kept = (data.decode("utf-8", "replace") for _, data in ours)
        try:
            if not _TOPIC.fullmatch(topic):
                raise ValueError(f"{topic[:80]!r} is no name of a topic")
            return cls(
                raw=raw,
                reason=reason,
                error=error,
                topic=topic,
                partition=_number(partition),
                offset=_number(offset),
                timestamp_ms=_number(timestamp),
                attempts=_number(attempts),
                group=group,
                value_sha256=sha256,
                kept=Kept(kept),
                headers=raw.headers[:start],
            )
        except ValueError as cause:
            raise NotADeadLetter(f"{raw.place} has dlq- headers that cannot be read: {cause}") from None

    @property
    def is_whole(self) -> bool:
        """Whether the original's bytes are all here."""
        return self.kept is Kept.ALL and hashlib.sha256(self.raw.value or b"").hexdigest() == self.value_sha256

    def original(self) -> OutRecord:
        """The record to send back: as it came, and behind its headers how often that has been done. Only of a whole letter."""
        assert self.is_whole, f"{self.raw.place} lacks a part of the original"
        headers = tuple((name, data) for name, data in self.headers if name != REPLAYED_HEADER)
        return OutRecord(self.raw.key, self.raw.value, (*headers, (REPLAYED_HEADER, str(self.attempts).encode())))


_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")


def _number(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII):
        raise ValueError(f"{text[:40]!r} is no number")
    return int(text)
