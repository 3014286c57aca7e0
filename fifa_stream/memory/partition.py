"""The streams of one partition: what is remembered of each, from which record on, and which is forgotten first. Pure: it follows from the records of
the partition in the order of their offsets and from nothing else, so that whoever takes the partition over remembers the same.

Between two of its frames a stream is the bytes that `StreamState.dump` gives, here as in Kafka: small, and never anything but what a snapshot
restores. It is forgotten when it ends, when `max_streams` others spoke after it, and when it was silent for a day. What comes later begins anew,
under a larger `epoch`.
"""

import itertools
import logging
from collections import Counter, OrderedDict
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from fifa_stream.memory.stream import MemoryLimits, Moment, StreamState, Told
from fifa_stream.memory.tracks import Sighting
from fifa_stream.records import FrameRecord, NoteCode, SampledFrame, Verdict

logger = logging.getLogger(__name__)

FORGET_AFTER_MS = 24 * 3_600_000
"""Silence, by the timestamps of records, after which a stream is forgotten: what is kept of a face is not kept for a stream that never comes back."""

WRONG_CLOCKS = 16
"""Streams that may stand before the one that is silent for longest because their clocks are ahead: looked past at every record."""


class Forgotten(StrEnum):
    """Why a stream is no longer remembered: the whole list."""

    ENDED = "ended"
    NO_ROOM = "no_room"
    SILENT = "silent"
    UNREADABLE = "unreadable"
    """What was kept of it cannot be read."""


class Snapshot(NamedTuple):
    """What is remembered of a stream before the record at `next_offset`, and, of the records before it, behind the last one that moved it."""

    stream_id: str
    next_offset: int
    timestamp_ms: int
    """Of the record before; of one that was a day behind all others, the time as those said."""
    state: bytes | None
    """None: nothing, it is forgotten."""


class _Stream(NamedTuple):
    state: bytes
    next_offset: int
    timestamp_ms: int


class Seen(NamedTuple):
    """A record with its stream in mind; the memory has not moved yet."""

    verdict: Verdict
    """With timeline, segments and stream."""
    snapshot: Snapshot


class PartitionMemory:
    """Streams by id, the one that was silent for longest first."""

    def __init__(
        self, limits: MemoryLimits, *, max_streams: int, appearance: bool = True, snapshots: Iterable[Snapshot] = (), is_stored: bool = True
    ) -> None:
        """`snapshots`: of a partition at one offset, in any order, one for each stream. `appearance=False` tells people apart by place alone.
        `is_stored=False`: nobody takes snapshots, so none are noted."""
        self._limits, self._max_streams, self._has_appearance, self._is_stored = limits, max_streams, appearance, is_stored
        # A dict would step over all places of those that have spoken since, to find the first.
        self._streams = OrderedDict[str, _Stream]()
        for snapshot in sorted(snapshots, key=lambda snapshot: snapshot.next_offset):
            if snapshot.state is not None:
                self._streams[snapshot.stream_id] = _Stream(snapshot.state, snapshot.next_offset, snapshot.timestamp_ms)
        self._moved: set[str] = set()
        """Since the last snapshots."""
        self._gone: dict[str, Snapshot] = {}
        """Forgotten since then, also where no snapshot of ours is: one may lie there of a member whose offsets were not committed."""
        self._has_warned = False
        self.forgotten = Counter[Forgotten]()
        """By reason; who reads it may clear it."""

    def __len__(self) -> int:
        return len(self._streams)

    def see(self, frame: FrameRecord, verdict: Verdict) -> Seen | None:
        """What a verdict says with its stream in mind; `keep` moves the memory. None: the frame was skipped, and says nothing of its stream."""
        was_looked_at = all(note.code is not NoteCode.SHED for note in verdict.notes)
        if not was_looked_at and not (frame.is_last and frame.stream_id in self._streams):
            return None
        state, told = self._state(frame), Told()
        if was_looked_at:
            for moment, sampled in _moments(frame, verdict):
                sightings = [Sighting.of(face) for face in sampled.faces]
                if not self._has_appearance:
                    sightings = [sighting._replace(appearance=b"") for sighting in sightings]
                index = sampled.index if isinstance(sampled, SampledFrame) else None
                state.observe(moment, sightings, verdict=verdict.id, frame=index, told=told)
        if frame.is_last:
            state.end(told)
        parts = {
            "timeline": tuple(told.timeline),
            "segments": tuple(told.segments.values()),
            "stream": state.verdict(frame.stream_id, told, verdict.operating_point),
        }
        kept = None if frame.is_last else state.dump()
        return Seen(verdict.model_copy(update=parts), Snapshot(frame.stream_id, frame.raw.offset + 1, frame.raw.timestamp_ms, kept))

    def _state(self, frame: FrameRecord) -> StreamState:
        """Of a stream that begins, the epoch is the offset of its first record: it grows whenever a stream begins anew, though nobody remembers how
        often it has, and so the ids of its segments never come twice."""
        kept = self._streams.get(frame.stream_id)
        if kept is not None:
            try:
                state = StreamState.load(kept.state, self._limits)
                if not self._has_appearance:
                    state.forget_appearances()
                return state
            except ValueError as error:
                if not self._has_warned:
                    logger.warning("a stream begins anew, and others may that this line does not tell of: record=%s error=%s", frame.raw.place, error)
                    self._has_warned = True
                self.forgotten[Forgotten.UNREADABLE] += 1
        return StreamState(self._limits, epoch=frame.raw.offset)

    def keep(self, seen: Seen) -> None:
        """Remember it, now that its answer goes out."""
        stream_id, next_offset, timestamp_ms, state = seen.snapshot
        self._streams.pop(stream_id, None)
        if state is None:
            self._forget(seen.snapshot, Forgotten.ENDED)
        else:
            # Who speaks is not silent, though a camera's clock begins in 1970 or a film is of last week.
            if (now := self._now()) is not None and now - timestamp_ms > FORGET_AFTER_MS:
                timestamp_ms = now
            self._streams[stream_id] = _Stream(state, next_offset, timestamp_ms)
            if self._is_stored:
                self._moved.add(stream_id)
                self._gone.pop(stream_id, None)
        while (found := self._next_to_forget()) is not None:
            silent, reason = found
            del self._streams[silent]
            self._forget(Snapshot(silent, next_offset, timestamp_ms, None), reason)

    def _next_to_forget(self) -> tuple[str, Forgotten] | None:
        if len(self._streams) > self._max_streams:
            return next(iter(self._streams)), Forgotten.NO_ROOM
        now = self._now() if len(self._streams) > 2 else None
        if now is not None:
            for stream_id, stream in itertools.islice(self._streams.items(), WRONG_CLOCKS):
                if stream.timestamp_ms <= now:
                    return (stream_id, Forgotten.SILENT) if now - stream.timestamp_ms > FORGET_AFTER_MS else None
        return None

    def _now(self) -> int | None:
        """As the last two streams say: the clock of one producer may be wrong by years."""
        last = [stream.timestamp_ms for stream in itertools.islice(reversed(self._streams.values()), 2)]
        return min(last) if len(last) == 2 else None

    def _forget(self, snapshot: Snapshot, reason: Forgotten) -> None:
        if self._is_stored:
            self._moved.discard(snapshot.stream_id)
            self._gone[snapshot.stream_id] = snapshot
        self.forgotten[reason] += 1

    def take_snapshots(self) -> list[Snapshot]:
        """Of the streams that moved or were forgotten since the last call."""
        snapshots = [*self._gone.values(), *(Snapshot(stream_id, *self._place(stream_id)) for stream_id in self._moved)]
        self._gone, self._moved = {}, set()
        return snapshots

    def _place(self, stream_id: str) -> tuple[int, int, bytes]:
        stream = self._streams[stream_id]
        return stream.next_offset, stream.timestamp_ms, stream.state


def _moments(frame: FrameRecord, verdict: Verdict) -> list[tuple[Moment, Verdict | SampledFrame]]:
    """When each frame of a record is, by either clock of its stream."""
    sent_ms = max(0, frame.raw.timestamp_ms)  # -1: the record has none
    if verdict.frames is None:
        return [(Moment(frame.pts_ms, sent_ms), verdict)]
    begin_ms = frame.pts_ms or 0
    return [(Moment(None if frame.pts_ms is None else sampled.pts_ms, sent_ms + sampled.pts_ms - begin_ms), sampled) for sampled in verdict.frames]
