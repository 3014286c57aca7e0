"""Which offsets are safe to commit: completions in any order in, a contiguous watermark per assignment out.

An assignment is one stay of a partition with this member. A completion is reported to the assignment its record came from, so what finishes after the
partition was given up moves nothing. Safe for two threads: the loop, and the client's thread that reports rebalances.
"""

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from fifa_stream.records import RawRecord

T = TypeVar("T")

Partition = tuple[str, int]
"""(topic, partition)."""


@dataclass(slots=True, eq=False)
class Assignment:
    """One stay of a partition with this member; compared by identity."""

    pending: dict[int, int] = field(default_factory=dict)
    """Offsets started and not finished, in increasing order, with their records' timestamps."""
    last_started: int = -1
    committed: int = 0
    """Position of the last accepted commit; before one, where this stay began."""
    oldest_ms: int | None = None
    """Timestamp of the first record at or behind `committed`; None when every record that came is committed."""
    live: bool = True
    before: "Assignment | None" = None
    """The same stay before its log went back, while records of that are in work."""

    def end(self) -> None:
        """What is in work is another member's, or comes again."""
        stay: Assignment | None = self
        while stay is not None:
            stay.live = False
            stay = stay.before

    @property
    def position(self) -> int:
        """The next offset to commit: everything below it is finished. 0 before the first record."""
        # The first pending offset is one that was delivered, so gaps (compaction, transaction markers) are stepped over.
        return next(iter(self.pending), self.last_started + 1)


class Backlog(NamedTuple):
    """Where a partition's uncommitted records begin."""

    offset: int
    timestamp_ms: int


class Ticket(NamedTuple):
    """Names one record in work; handed back once, when its answer is acknowledged."""

    record: RawRecord
    assignment: Assignment

    @property
    def live(self) -> bool:
        """Whether the partition is still ours; otherwise another member answers the record."""
        return self.assignment.live

    @property
    def size(self) -> int:
        """Bytes held."""
        return len(self.record.value or b"")


class OffsetTracker:
    """Every record started is finished once; only a gapless run of finished records is committed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._assignments: dict[Partition, Assignment] = {}
        self._num_in_flight = 0
        self._bytes_in_flight = 0
        self.num_times_back = 0
        """How often a partition delivered an offset again without having been given up."""

    @property
    def num_in_flight(self) -> int:
        """Records started and not finished, those of partitions given up included: they still hold memory."""
        return self._num_in_flight

    @property
    def bytes_in_flight(self) -> int:
        """Encoded bytes of the records in flight."""
        return self._bytes_in_flight

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """What is assigned now."""
        with self._lock:
            return tuple(self._assignments)

    def assign(self, partitions: Iterable[Partition]) -> None:
        """Begin a new stay for each partition."""
        with self._lock:
            for partition in partitions:
                self._end(partition)
                self._assignments[partition] = Assignment()

    def restart(self) -> dict[Partition, int]:
        """End every stay and begin it anew: nothing in flight counts any more. Returns, of each partition that delivered anything, where its
        uncommitted records begin."""
        with self._lock:
            begins = {}
            for partition, assignment in self._assignments.items():
                assignment.end()
                if assignment.last_started >= 0:
                    begins[partition] = assignment.committed
                self._assignments[partition] = Assignment()
            return begins

    def revoke(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """End the stays; return what may be committed before the partitions go. After a loss the return value is for nobody."""
        with self._lock:
            return {partition: position for partition in partitions if (position := self._end(partition)) is not None}

    def _end(self, partition: Partition) -> int | None:
        assignment = self._assignments.pop(partition, None)
        if assignment is None:
            return None
        assignment.end()
        return assignment.position if assignment.position > assignment.committed else None

    def start(self, record: RawRecord) -> Ticket | None:
        """Enter a polled record. None: its partition was given up since it was fetched, so it is no longer ours to answer."""
        partition = (record.topic, record.partition)
        with self._lock:
            assignment = self._assignments.get(partition)
            if assignment is None:
                return None
            if record.offset <= assignment.last_started:
                # The log went back (topic made anew, truncation, a position reset): what came before no longer bounds the watermark.
                assignment = self._assignments[partition] = Assignment(before=assignment if assignment.pending else assignment.before)
                self.num_times_back += 1
            if assignment.last_started < 0:
                assignment.committed = record.offset
            if assignment.oldest_ms is None:
                assignment.oldest_ms = record.timestamp_ms
            assignment.pending[record.offset] = record.timestamp_ms
            assignment.last_started = record.offset
            ticket = Ticket(record, assignment)
            self._num_in_flight += 1
            self._bytes_in_flight += ticket.size
            return ticket

    def done(self, ticket: Ticket) -> None:
        """Finish a record: its answer is acknowledged, or it is no longer ours. ValueError on a second time."""
        with self._lock:
            if ticket.record.offset not in ticket.assignment.pending:
                raise ValueError(f"offset {ticket.record.offset} of {ticket.record.topic}/{ticket.record.partition} is finished already")
            del ticket.assignment.pending[ticket.record.offset]
            self._num_in_flight -= 1
            self._bytes_in_flight -= ticket.size

    def stays(self) -> dict[Partition, Assignment]:
        """What is assigned now, each with its stay."""
        with self._lock:
            return dict(self._assignments)

    def reached(self, assignment: Assignment, offset: int) -> bool:
        """Whether everything below an offset is finished."""
        with self._lock:
            return assignment.position >= offset

    def to_commit(self) -> dict[Partition, int]:
        """Positions that moved since the last accepted commit."""
        with self._lock:
            return {
                partition: assignment.position for partition, assignment in self._assignments.items() if assignment.position > assignment.committed
            }

    def committed(self, positions: Mapping[Partition, int]) -> None:
        """Note an accepted commit. Where it stays behind what is finished, the lag is shown as if it did not, until the next one."""
        with self._lock:
            for partition, position in positions.items():
                if (assignment := self._assignments.get(partition)) is not None:
                    assignment.committed = position
                    # What is pending begins at the committed position: nothing finishes between `to_commit` and here. (With checkpoints what is
                    # finished may lie further.)
                    assignment.oldest_ms = next(iter(assignment.pending.values()), None)

    def backlog(self) -> dict[Partition, Backlog]:
        """Of each assigned partition with records that came and are not committed: where they begin."""
        with self._lock:
            return {
                partition: Backlog(assignment.committed, assignment.oldest_ms)
                for partition, assignment in self._assignments.items()
                if assignment.oldest_ms is not None
            }


class InOrder(Generic[T]):
    """Answers in any order in, in the order of their records out, by assignment: a stream's verdicts keep its order, and what was sent of a
    partition is always a gapless run, so that a transaction holds exactly the answers below the offsets that it commits. One thread."""

    def __init__(self) -> None:
        self._waiting: dict[Assignment, deque[Ticket]] = {}
        """Not released, in the order of their records."""
        self._ready: dict[Assignment, dict[int, T]] = {}

    def expect(self, ticket: Ticket) -> None:
        """A record begins."""
        waiting = self._waiting.get(ticket.assignment)
        if waiting is None:
            waiting = self._waiting[ticket.assignment] = deque()
        waiting.append(ticket)

    def ready(self, ticket: Ticket, answer: T) -> list[T]:
        """An answer comes; return what may go now. Every record that was expected comes back once, if only to be dropped."""
        assignment, offset = ticket.assignment, ticket.record.offset
        waiting = self._waiting[assignment]
        if waiting[0].record.offset != offset:
            self._ready.setdefault(assignment, {})[offset] = answer
            return []
        waiting.popleft()
        released = [answer]
        if ready := self._ready.get(assignment):
            while waiting and waiting[0].record.offset in ready:
                released.append(ready.pop(waiting.popleft().record.offset))
        if not waiting:
            del self._waiting[assignment]
            self._ready.pop(assignment, None)
        return released
