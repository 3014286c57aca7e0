"""Verdicts as cases: one picture each, with what the queue sorts by, and the streams that they belong to.

Only an index is kept in memory, about 3.5 KiB a case with its point of the timeline; the verdicts' bytes lie in a nameless temporary file, pictures
where they came from. Of two verdicts with the same id the later one counts, and of two states of a segment as well.
"""

import math
import os
import re
import tempfile
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pydantic import ValidationError

from engines.contracts import Label
from fifa_stream.records import FaceVerdict, SampledFrame, Segment, StreamVerdict, Verdict

MAX_CASES: Final = 100_000
"""Kept at once, by default; beyond it the oldest are left out."""
MAX_VERDICT_BYTES: Final = 64 << 20
"""Of one verdict; a video of hours has that many."""
KEPT_VERDICTS: Final = 4
"""Read and checked, so that stepping through a video does not read it anew for each frame."""
MAX_DROPPED_BYTES: Final = 64 << 20
"""Of verdicts that a later one replaced, or that were left out, on disk before the rest is written anew."""
MAX_FACES: Final = 256
"""Of one picture."""
MAX_PHRASES: Final = 200
"""Of one face: as many as a review can name."""
UNNAMED: Final = "(no stream)"
"""Where verdicts without a broker belong."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class VerdictBytes:
    """Verdicts as they came, on disk: a file without a name, gone with the process. Threads may read once all are appended."""

    def __init__(self) -> None:
        self._file, self._close = self._opened()
        self._places: dict[int, tuple[int, int]] = {}
        self._end = self._num_appended = self._dropped_bytes = 0

    def _opened(self) -> tuple[int, Callable[[], object]]:
        """A new file, and what closes it."""
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
        return descriptor, weakref.finalize(self, os.close, descriptor)

    def append(self, payload: bytes) -> int:
        """Keep one; return its number."""
        os.pwrite(self._file, payload, self._end)
        number = self._num_appended
        self._places[number] = self._end, len(payload)
        self._end += len(payload)
        self._num_appended += 1
        return number

    def drop(self, number: int) -> None:
        """Let one go. The file is written anew when more than half of it, and more than `MAX_DROPPED_BYTES`, are of no use."""
        self._dropped_bytes += self._places.pop(number)[1]
        if self._dropped_bytes <= max(MAX_DROPPED_BYTES, self._end // 2):
            return
        file, close = self._opened()
        end = 0
        for kept, (begin, size) in self._places.items():
            os.pwrite(file, os.pread(self._file, size, begin), end)
            self._places[kept] = end, size
            end += size
        self._close()
        self._file, self._close, self._end, self._dropped_bytes = file, close, end, 0

    def read(self, number: int) -> bytes:
        """Give one back."""
        begin, size = self._places[number]
        return os.pread(self._file, size, begin)

    @property
    def num_bytes(self) -> int:
        """Of the file, with what was dropped and still lies there."""
        return self._end

    def close(self) -> None:
        """The file goes."""
        self._close()


class Point(NamedTuple):
    """One face at one time of its stream."""

    t_ms: int
    epoch: int
    track: int
    fake_score: float
    smoothed: float
    case: int


@dataclass(slots=True)
class Stream:
    """What is known of one stream."""

    name: str
    cases: list[int] = field(default_factory=list)
    """In the order of time."""
    points: list[Point] = field(default_factory=list)
    """Of its timeline, in the order of time; none where streams are not remembered."""
    segments: dict[str, Segment] = field(default_factory=dict)
    verdict: StreamVerdict | None = None
    """The newest."""


class Said(NamedTuple):
    """A label and a score: of another engine, or of the stream."""

    label: Label
    fake_score: float | None


@dataclass(frozen=True, slots=True)
class Case:
    """One picture with its verdict: an image, or a sampled frame of a chunk."""

    number: int
    payload: int
    """Which of the `VerdictBytes`."""
    verdict_id: str
    name: str
    """For a reader: of the stream, or of the file where there is none."""
    engine: str
    frame: int | None
    """`index` of the sampled frame; None for an image."""
    stream: int
    t_ms: int | None
    label: Label
    fake_score: float | None
    fake_at: float
    real_below: float
    forgery_type: str | None
    """Of the leading face."""
    lead: int | None
    """`id` of the face that gave the label, or that comes nearest to it; None without a face."""
    shadow: Said | None
    told: Said | None
    """By the stream, when this verdict was given."""

    @property
    def uncertainty(self) -> tuple[float, float]:
        """Smallest first: how far the score lies outside the two cuts, then how far from the middle between them. Without a score last."""
        if self.fake_score is None:
            return (math.inf, math.inf)
        outside = max(0.0, self.fake_score - self.fake_at, self.real_below - self.fake_score)
        return (outside, abs(self.fake_score - (self.fake_at + self.real_below) / 2))

    @property
    def disagreement(self) -> float:
        """With the engine that does not answer, and with the stream, whichever is larger: 2 for opposite labels, 1 for other ones, and the distance
        of the scores. -1 where there is nothing to compare with."""
        return max((_apart(Said(self.label, self.fake_score), other) for other in (self.shadow, self.told) if other is not None), default=-1.0)


def _apart(one: Said, other: Said) -> float:
    labels = {one.label, other.label}
    gap = 0.0 if one.fake_score is None or other.fake_score is None else abs(one.fake_score - other.fake_score)
    return (2 if labels == {Label.REAL, Label.FAKE} else len(labels) - 1) + gap


@dataclass(frozen=True, slots=True)
class Refused:
    """A verdict that is not shown."""

    where: str
    why: str


@dataclass(slots=True)
class CaseBook:
    """All cases, with the streams they belong to."""

    payloads: VerdictBytes
    cases: list[Case] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    """Verdicts that are not shown, by reason."""
    first_refused: Refused | None = None
    num_left_out: int = 0
    """Beyond the limit."""
    _kept: OrderedDict[int, tuple[Verdict, bytes]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def verdict(self, case: Case) -> tuple[Verdict, bytes]:
        """The verdict of a case, and its bytes. Any thread."""
        with self._lock:
            if (found := self._kept.pop(case.payload, None)) is None:
                payload = self.payloads.read(case.payload)
                found = Verdict.from_bytes(payload), payload
            self._kept[case.payload] = found
            while len(self._kept) > KEPT_VERDICTS:
                self._kept.popitem(last=False)
            return found

    def find(self, verdict_id: str, frame: int | None = None) -> Case | None:
        """By the id of the verdict; of a chunk the frame with this index, else the first one."""
        found = [case for case in self.cases if case.verdict_id == verdict_id]
        return next((case for case in found if case.frame == frame), found[0] if found and frame is None else None)


class _Seen(NamedTuple):
    """What is kept of a verdict until all are read."""

    payload: int
    name: str
    engine: str
    stream: str
    fake_at: float
    real_below: float
    pictures: tuple[tuple[int | None, int | None, Label, float | None, int | None, str | None], ...]
    """(frame index, t_ms, label, score, leading face, its forgery type)."""
    points: tuple[tuple[int, int, float, float, int | None], ...]
    """(t_ms, track, score, smoothed, frame index)."""
    told: StreamVerdict | None
    segments: tuple[str, ...]
    """`id`s of those that it moved."""


def collect(verdicts: Iterable[tuple[str, bytes]], *, shadow: Iterable[tuple[str, bytes]] = (), max_cases: int = MAX_CASES) -> CaseBook:
    """Index verdicts, given as (where it stands, its bytes), in the order in which they were written; `shadow` are those of the engine that does not
    answer. What is no verdict is counted and left out."""
    book = CaseBook(VerdictBytes())
    seen: dict[str, _Seen] = {}
    segments: dict[str, dict[str, tuple[Segment, str]]] = {}  # by stream and id: the last state, and the verdict that tells it
    num_pictures = 0
    for where, payload in verdicts:
        verdict = _checked(book, where, payload)
        if verdict is None:
            continue
        stream = _stream_of(verdict)
        before = seen.pop(verdict.id, None)
        one = _seen(verdict, stream, book.payloads.append(payload))
        seen[verdict.id] = one
        num_pictures += len(one.pictures)
        if before is not None:
            num_pictures -= len(before.pictures)
            book.payloads.drop(before.payload)
        for segment in verdict.segments or ():
            segments.setdefault(stream, {})[segment.id] = segment, verdict.id
        while num_pictures > max_cases and len(seen) > 1:
            oldest = next(iter(seen))
            left_out = seen.pop(oldest)
            book.payloads.drop(left_out.payload)
            _forget_segments(segments, left_out, oldest)
            num_pictures -= len(left_out.pictures)
            book.num_left_out += len(left_out.pictures)
    _fill(book, seen, dict(_shadowed(book, shadow, seen)))
    for one_stream in book.streams:
        one_stream.segments = {name: segment for name, (segment, _) in segments.get(one_stream.name, {}).items()}
    return book


def _forget_segments(segments: dict[str, dict[str, tuple[Segment, str]]], left_out: _Seen, verdict_id: str) -> None:
    """Those that no later verdict speaks of go with it: none of their frames is left."""
    of_stream = segments.get(left_out.stream, {})
    for name in left_out.segments:
        if name in of_stream and of_stream[name][1] == verdict_id:
            del of_stream[name]
    if not of_stream:
        segments.pop(left_out.stream, None)


def _checked(book: CaseBook, where: str, payload: bytes) -> Verdict | None:
    try:
        if len(payload) > MAX_VERDICT_BYTES:
            raise ValueError(f"it has more than {MAX_VERDICT_BYTES} bytes")
        verdict = Verdict.from_bytes(payload)
        if why := flaw(verdict):
            raise ValueError(why)
        return verdict
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier())[:80]
        why = f"it is no verdict: {name}: {first['msg'][:120]}"
    except ValueError as error:
        why = str(error)
    book.refused[why] += 1
    book.first_refused = book.first_refused or Refused(where, why)
    return None


def _stream_of(verdict: Verdict) -> str:
    if verdict.input is not None:
        return verdict.input.stream_id
    return UNNAMED if verdict.stream is None else verdict.stream.id  # a video file is a stream of its own


def flaw(verdict: Verdict) -> str | None:
    """Why a verdict of the right form can be neither shown nor reviewed; None for one that can."""
    if not 1 <= len(verdict.id) <= 512:
        return f"its id has {len(verdict.id)} characters"
    for name, digest in (("media.sha256", verdict.media.sha256), ("engine.manifest_sha256", verdict.engine.manifest_sha256)):
        if not _SHA256.fullmatch(digest):
            return f"its {name} is no SHA-256"
    indices = [frame.index for frame in verdict.frames or ()]
    if len(set(indices)) != len(indices) or any(index < 0 for index in indices):
        return "the indices of its frames are none"
    if any(abs(time_ms) >= 1 << 63 for one in verdict.segments or () for time_ms in (one.start_ms, one.end_ms, one.peak_ms)):
        return "a time of its segments is none"
    size = (verdict.media.height, verdict.media.width)
    for seen in _pictures(verdict):
        if len(seen.faces) > MAX_FACES:
            return f"it has {len(seen.faces)} faces in one picture"
        answers = () if seen.query is None else seen.query.answers
        boxes = [face.box for face in seen.faces] + ([] if seen.query is None or seen.query.box is None else [seen.query.box])
        if any(not all(map(math.isfinite, box)) or box[2] < box[0] or box[3] < box[1] or max(map(abs, box)) > 1e7 for box in boxes):
            return "a box of it is none"
        if seen.faces and (size[0] is None or size[1] is None or not 1 <= size[0] * size[1] < 1 << 31):
            return "it has faces and no size of its picture"
        ids = {face.id for face in seen.faces}
        if len(ids) != len(seen.faces) or any(number < 0 for number in ids):
            return "the ids of its faces are none"
        for evidence in (*(face.evidence for face in seen.faces), *(answer.evidence for answer in answers)):
            if len(evidence) > MAX_PHRASES:
                return f"a face of it has {len(evidence)} phrases"
            if any(not 1 <= len(item.id) <= 256 for item in evidence):
                return "the ids of its phrases are none"
    return None


def _pictures(verdict: Verdict) -> tuple[Verdict | SampledFrame, ...]:
    return (verdict,) if verdict.frames is None else verdict.frames


def picture_of(verdict: Verdict, frame: int | None) -> Verdict | SampledFrame:
    """What a verdict says of one of its pictures. Raises LookupError."""
    return verdict if frame is None else next(seen for seen in verdict.frames or () if seen.index == frame)


def leading(faces: tuple[FaceVerdict, ...]) -> FaceVerdict | None:
    """The face that a label rests on: the highest score among those that passed quality, else among all."""
    return max([face for face in faces if face.quality.passed] or faces, key=lambda face: face.fake_score, default=None)


def _seen(verdict: Verdict, stream: str, payload: int) -> _Seen:
    base_ms = None
    if verdict.input is not None:
        base_ms = verdict.input.timestamp_ms if verdict.input.pts_ms is None else verdict.input.pts_ms
    times = {point.frame: point.t_ms for point in verdict.timeline or ()}
    pictures = []
    for seen in _pictures(verdict):
        frame = seen.index if isinstance(seen, SampledFrame) else None
        t_ms = times.get(frame, seen.pts_ms if isinstance(seen, SampledFrame) else base_ms)
        lead = leading(seen.faces)
        pictures.append((frame, t_ms, seen.label, seen.fake_score, *((None, None) if lead is None else (lead.id, lead.forgery_type.label[:256]))))
    file = (verdict.media.uri or verdict.id).rstrip("/").rpartition("/")[2]
    return _Seen(
        payload,
        (file if verdict.input is None else stream)[:256],
        verdict.engine.manifest_sha256,
        stream,
        verdict.operating_point.fake_at,
        verdict.operating_point.real_below,
        tuple(pictures),
        tuple((point.t_ms, point.track, point.fake_score, point.smoothed, point.frame) for point in verdict.timeline or ()),
        verdict.stream,
        tuple(segment.id for segment in verdict.segments or ()),
    )


def _shadowed(book: CaseBook, shadow: Iterable[tuple[str, bytes]], seen: dict[str, _Seen]) -> Iterator[tuple[tuple[str, int | None], Said]]:
    for where, payload in shadow:
        verdict = _checked(book, where, payload)
        if verdict is not None and verdict.id in seen:
            for picture in _pictures(verdict):
                yield (verdict.id, picture.index if isinstance(picture, SampledFrame) else None), Said(picture.label, picture.fake_score)


def _fill(book: CaseBook, seen: dict[str, _Seen], shadows: dict[tuple[str, int | None], Said]) -> None:
    streams: dict[str, int] = {}
    for verdict_id, one in seen.items():
        place = streams.setdefault(one.stream, len(streams))
        if place == len(book.streams):
            book.streams.append(Stream(one.stream))
        stream, by_frame = book.streams[place], dict[int | None, int]()
        told = None if one.told is None else Said(one.told.label, one.told.fake_score)
        for frame, t_ms, label, score, lead, forgery_type in one.pictures:
            case = Case(
                number=len(book.cases),
                payload=one.payload,
                verdict_id=verdict_id,
                name=one.name,
                engine=one.engine,
                frame=frame,
                stream=place,
                t_ms=t_ms,
                label=label,
                fake_score=score,
                fake_at=one.fake_at,
                real_below=one.real_below,
                forgery_type=forgery_type,
                lead=lead,
                shadow=shadows.get((verdict_id, frame)),
                told=told,
            )
            by_frame[frame] = case.number
            book.cases.append(case)
            stream.cases.append(case.number)
        epoch = 0 if one.told is None else one.told.epoch
        stream.points += [
            Point(t_ms, epoch, track, score, smoothed, by_frame[frame]) for t_ms, track, score, smoothed, frame in one.points if frame in by_frame
        ]
        if one.told is not None and (stream.verdict is None or (stream.verdict.epoch, stream.verdict.num_frames) <= (epoch, one.told.num_frames)):
            stream.verdict = one.told
    for stream in book.streams:
        stream.cases.sort(key=lambda number: (-1 if book.cases[number].t_ms is None else book.cases[number].t_ms or 0, number))
        stream.points.sort(key=lambda point: (point.t_ms, point.case))
