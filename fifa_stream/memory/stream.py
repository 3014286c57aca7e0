"""One stream: frames in, tracks, segments and the stream's verdict out. Pure: the same frames in the same order give the same bytes, whoever asks.

Time is the stream's own, in milliseconds. Frames that are not newer than the newest one are late: judged alone, they move nothing. After `max_gap_ms`
of silence, at `max_length_ms`, and after a frame that says it is the last, the stream begins anew: what was open closes, tracks are forgotten,
`epoch` grows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final, Literal, NamedTuple, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from engines.contracts import Label, label_of
from fifa_stream.memory.segments import Course, Seen, Stretch
from fifa_stream.memory.smoothing import FITTED, Count, LogOdds, Milliseconds, Smoothing, stream_score
from fifa_stream.memory.tracks import Sighting, Track, match
from fifa_stream.records import Note, NoteCode, OperatingPointUsed, Segment, StreamVerdict, TimelinePoint

STATE_VERSION: Final = 1
"""Of what `dump` writes."""


class Moment(NamedTuple):
    """When a frame is: an epoch goes by the clock that its first frame has, and of a later one without that time nobody knows when it was."""

    pts_ms: int | None
    """`pts-ms` of its record; in a chunk the frame's own place on the container's time line added."""
    timestamp_ms: int
    """Of its record, as the broker has it; in a chunk the same added."""


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """Bounds of one stream."""

    max_tracks: int = 16
    """People remembered; beyond it the one that was away for longest is forgotten."""
    max_gap_ms: int = 10_000
    """Silence after which the stream begins anew."""
    max_length_ms: int = 3_600_000
    """Longest time from its first to its newest frame; then it begins anew."""


@dataclass(slots=True)
class Told:
    """What the frames of one record make of their stream: the parts of a verdict."""

    timeline: list[TimelinePoint] = field(default_factory=list)
    segments: dict[str, Segment] = field(default_factory=dict)
    """Moved ones, by id."""
    num_live: int = 0
    num_late: int = 0
    """Frames of this record, so far."""


@dataclass(slots=True)
class _Memory:
    """All that is remembered, as it is kept in Kafka."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, ser_json_bytes="base64", val_json_bytes="base64", allow_inf_nan=False
    )

    version: Literal[1] = STATE_VERSION
    epoch: Count = 0
    has_ended: bool = False
    clock: Literal["pts", "timestamp"] | None = None
    """None before the first frame."""
    start_ms: Milliseconds = 0
    t_ms: Milliseconds = 0
    num_frames: Count = 0
    num_late: Count = 0
    num_tracks: Count = 0
    num_segments: Count = 0
    closed_fake_ms: Count = 0
    highest_run: Annotated[float, Field(ge=0)] = 0.0
    highest_level: LogOdds | None = None
    """Of all tracks so far; None before a face was fit."""
    tracks: list[Track] = field(default_factory=list)


_AS_JSON = TypeAdapter(_Memory)


class StreamState:
    """What is remembered of one stream. For every record in order: `observe` for each of its frames, `end` where it says it is the last, then
    `verdict`; one `Told` a record."""

    def __init__(self, limits: MemoryLimits, *, epoch: int = 0, smoothing: Smoothing = FITTED) -> None:
        """`epoch`: of its first frames; every new beginning adds one."""
        self._limits, self._smoothing = limits, smoothing
        self._memory = _Memory(epoch=epoch)

    def observe(
        self, moment: Moment, sightings: Sequence[Sighting], *, verdict: str, told: Told, frame: int | None = None
    ) -> Literal["live", "late"]:
        """Take a frame in and add what it says to `told`. `verdict` is the id of its verdict, `frame` its index in a chunk."""
        memory = self._memory
        is_first = memory.clock is None or memory.has_ended
        clock = memory.clock
        if clock is None or is_first:
            clock = "timestamp" if moment.pts_ms is None else "pts"
        t_ms = moment.timestamp_ms if clock == "timestamp" else moment.pts_ms
        if t_ms is None or (not is_first and t_ms <= memory.t_ms):
            memory.num_late += 1
            told.num_late += 1
            return "late"
        if is_first or t_ms - memory.t_ms > self._limits.max_gap_ms or t_ms - memory.start_ms > self._limits.max_length_ms:
            self._begin(t_ms, clock, told)
            memory = self._memory
        memory.t_ms = t_ms
        memory.num_frames += 1
        told.num_live += 1
        self._leave(t_ms, told)
        for sighting, number in zip(sightings, match(memory.tracks, sightings, t_ms), strict=True):
            track = self._new_track(sighting, t_ms) if number is None else memory.tracks[number]
            if number is not None:
                track.see(sighting, t_ms)
            self._judge(track, sighting, t_ms, verdict, told)
            told.timeline.append(
                TimelinePoint(
                    t_ms=t_ms, frame=frame, face=sighting.face, track=track.number, fake_score=sighting.fake_score, smoothed=track.belief.probability
                )
            )
        self._forget(told)
        return "live"

    def end(self, told: Told) -> None:
        """The last frame has been: close what is open; the next frame begins anew."""
        for track in self._memory.tracks:
            self._close(track, told)
        self._memory.tracks = []
        self._memory.has_ended = True

    def verdict(self, stream_id: str, told: Told, point: OperatingPointUsed) -> StreamVerdict:
        """What the stream says by now, after the record of `told`, at that operating point."""
        memory = self._memory
        score = None if memory.highest_level is None else stream_score(memory.highest_run, memory.highest_level, self._smoothing)
        notes: tuple[Note, ...] = ()
        if score is None:
            label, notes = Label.INCONCLUSIVE, (Note(code=NoteCode.NO_FACE, message="no face of the stream was fit to decide so far"),)
        else:
            label = label_of(score, fake_at=point.fake_at, real_below=point.real_below)
        open_ms = sum(stretch.end_ms - stretch.start_ms for track in memory.tracks if (stretch := _open_segment(track)) is not None)
        return StreamVerdict(
            id=stream_id,
            epoch=memory.epoch,
            state="ended" if memory.has_ended else "late" if told.num_late and not told.num_live else "live",
            label=label,
            fake_score=score,
            start_ms=memory.start_ms,
            t_ms=memory.t_ms,
            fake_ms=memory.closed_fake_ms + open_ms,
            num_frames=memory.num_frames,
            num_late=memory.num_late,
            num_tracks=memory.num_tracks,
            num_segments=memory.num_segments,
            notes=notes,
        )

    def dump(self) -> bytes:
        """The whole state as JSON; `load` of it goes on exactly as this one would."""
        return _AS_JSON.dump_json(self._memory)

    @classmethod
    def load(cls, data: bytes, limits: MemoryLimits) -> Self:
        """Raises ValueError for what `dump` never wrote."""
        state = cls(limits)
        try:
            state._memory = _AS_JSON.validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"the remembered state of a stream cannot be read: {place or 'as a whole'}: {first['msg']}; forget the stream") from None
        for track in state._memory.tracks:
            fit_ms = track.last_ms if track.belief.fit_ms is None else track.belief.fit_ms
            if not fit_ms <= track.last_ms <= state._memory.t_ms:
                raise ValueError(f"the remembered state of a stream cannot be read: track {track.number} was seen in the future; forget the stream")
        return state

    def forget_appearances(self) -> None:
        """What anybody looks like, from a time when it was kept."""
        for track in self._memory.tracks:
            track.appearance = b""

    def _begin(self, t_ms: int, clock: Literal["pts", "timestamp"], told: Told) -> None:
        """A new epoch. The very first keeps the number it was given, every later one adds one."""
        old = self._memory
        if old.clock is not None and not old.has_ended:
            self.end(told)
        self._memory = _Memory(epoch=old.epoch + (old.clock is not None), clock=clock, start_ms=t_ms, t_ms=t_ms)

    def _new_track(self, sighting: Sighting, t_ms: int) -> Track:
        memory = self._memory
        track = Track.of(memory.num_tracks, sighting, t_ms, self._smoothing)
        memory.num_tracks += 1
        memory.tracks.append(track)
        return track

    def _judge(self, track: Track, sighting: Sighting, t_ms: int, verdict: str, told: Told) -> None:
        if not sighting.is_fit:
            return
        memory, epoch = self._memory, self._memory.epoch
        source = track.belief.hear(sighting.fake_score, t_ms, self._smoothing)
        was_open = track.course.settled is not None
        closed = track.course.go(source, Seen(t_ms, track.belief.probability, sighting.types, sighting.concepts, verdict))
        if closed is not None:
            self._tell(closed, track, told)
        stretch = _open_segment(track)
        if stretch is not None:
            memory.num_segments += not was_open or closed is not None
            segment = stretch.told(epoch, track.number, is_open=True)
            told.segments[segment.id] = segment
        memory.highest_run = max(memory.highest_run, track.belief.run)
        level = track.belief.level
        assert level is not None, "a belief that has heard a frame has a level"
        memory.highest_level = level if memory.highest_level is None else max(memory.highest_level, level)

    def _leave(self, t_ms: int, told: Told) -> None:
        """A person may be away for as long as a stream may be silent: then what was open closes at the last frame that showed them."""
        for track in self._memory.tracks:
            if t_ms - track.last_ms > self._limits.max_gap_ms and track.belief.fit_ms is not None:
                self._close(track, told)
                track.belief.leave(self._smoothing)

    def _forget(self, told: Told) -> None:
        """Those away for longest, until the rest is few enough; of equals the one that came last, so that in a crowd somebody is followed at all."""
        tracks = self._memory.tracks
        while len(tracks) > self._limits.max_tracks:
            away = min(range(len(tracks)), key=lambda place: (tracks[place].last_ms, -tracks[place].number))
            self._close(tracks.pop(away), told)

    def _close(self, track: Track, told: Told) -> None:
        """No frame of the track follows: what is likely by now is what was."""
        stretch = track.course.likely(track.belief.lead)
        if stretch is not None:
            self._memory.num_segments += track.course.settled is None
            self._tell(stretch, track, told)
        track.course = Course()

    def _tell(self, closed: Stretch, track: Track, told: Told) -> None:
        segment = closed.told(self._memory.epoch, track.number, is_open=False)
        told.segments[segment.id] = segment
        self._memory.closed_fake_ms += closed.end_ms - closed.start_ms


def _open_segment(track: Track) -> Stretch | None:
    return None if track.course.settled is None else track.course.likely(track.belief.lead)
