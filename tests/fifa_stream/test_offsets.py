"""Offsets: whatever the order of completion, a commit never passes an unfinished record."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from fifa_stream.offsets import OffsetTracker, Ticket
from fifa_stream.records import RawRecord

P = ("frames", 0)


def record(offset: int, partition: int = 0, size: int = 1) -> RawRecord:
    return RawRecord("frames", partition, offset, 0, None, b"x" * size, ())


def started(tracker: OffsetTracker, offset: int, partition: int = 0) -> Ticket:
    ticket = tracker.start(record(offset, partition))
    assert ticket is not None
    return ticket


def test_commit_waits_for_the_earliest_unfinished_record() -> None:
    tracker = OffsetTracker()
    tracker.assign([P])
    first, second, third = (started(tracker, offset) for offset in (0, 1, 2))
    tracker.done(third)
    tracker.done(second)
    assert tracker.to_commit() == {}
    tracker.done(first)
    assert tracker.to_commit() == {P: 3}


def test_gaps_in_the_log_are_stepped_over() -> None:
    tracker = OffsetTracker()
    tracker.assign([P])
    first, after_gap = started(tracker, 4), started(tracker, 9)
    tracker.done(first)
    assert tracker.to_commit() == {P: 9}
    tracker.done(after_gap)
    assert tracker.to_commit() == {P: 10}


def test_nothing_is_committed_before_progress() -> None:
    tracker = OffsetTracker()
    tracker.assign([P])
    started(tracker, 7)
    assert tracker.to_commit() == {}


def test_an_accepted_commit_is_not_repeated() -> None:
    tracker = OffsetTracker()
    tracker.assign([P])
    tracker.done(started(tracker, 0))
    tracker.committed(tracker.to_commit())
    assert tracker.to_commit() == {}


def test_a_completion_after_revocation_goes_nowhere() -> None:
    tracker = OffsetTracker()
    tracker.assign([P])
    late = started(tracker, 0)
    assert tracker.revoke([P]) == {}
    tracker.assign([P])
    tracker.done(late)
    assert not late.live
    assert tracker.to_commit() == {}
    assert tracker.num_in_flight == 0


def test_revocation_returns_what_is_finished_and_not_committed() -> None:
    tracker = OffsetTracker()
    tracker.assign([P, ("frames", 1)])
    tracker.done(started(tracker, 0))
    started(tracker, 1)
    started(tracker, 0, partition=1)
    assert tracker.revoke([P, ("frames", 1), ("frames", 2)]) == {P: 1}


def test_a_record_of_a_partition_given_up_is_not_started() -> None:
    assert OffsetTracker().start(record(0)) is None


def test_a_log_that_goes_back_is_followed() -> None:
    tracker = OffsetTracker()
    tracker.assign([P])
    old = started(tracker, 100)
    again = started(tracker, 0)
    tracker.done(again)
    assert tracker.to_commit() == {P: 1}
    tracker.done(old)
    assert tracker.to_commit() == {P: 1}
    assert old.live, "the partition is still ours, so the old record is still answered"


@pytest.mark.parametrize("end", ["restart", "revoke", "assign"])
def test_what_came_before_a_log_went_back_ends_with_its_partition(end: str) -> None:
    tracker = OffsetTracker()
    tracker.assign([P])
    tickets = [started(tracker, offset) for offset in (100, 50, 0)]
    assert all(ticket.live for ticket in tickets)
    if end == "restart":
        tracker.restart()
    elif end == "revoke":
        tracker.revoke([P])
    else:
        tracker.assign([P])
    assert not any(ticket.live for ticket in tickets), "another member answers these, or they come again"
    for ticket in tickets:
        tracker.done(ticket)
    assert tracker.num_in_flight == 0


def test_finishing_twice_is_an_error() -> None:
    tracker = OffsetTracker()
    tracker.assign([P])
    ticket = started(tracker, 0)
    tracker.done(ticket)
    with pytest.raises(ValueError, match="finished already"):
        tracker.done(ticket)


def test_bytes_in_flight_include_those_of_partitions_given_up() -> None:
    tracker = OffsetTracker()
    tracker.assign([P])
    ticket = tracker.start(record(0, size=100))
    assert ticket is not None
    tracker.revoke([P])
    assert (tracker.num_in_flight, tracker.bytes_in_flight) == (1, 100)
    tracker.done(ticket)
    assert (tracker.num_in_flight, tracker.bytes_in_flight) == (0, 0)


class Commits(RuleBasedStateMachine):
    """Against a model that knows every record of the log, and which of them was answered by anybody."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.tracker = OffsetTracker()
        self.committed: dict[int, int] = {0: 0, 1: 0}
        self.log_end: dict[int, int] = {0: 0, 1: 0}
        self.position: dict[int, int] = {}
        self.answered: dict[int, set[int]] = {0: set(), 1: set()}
        self.offsets: dict[int, list[int]] = {0: [], 1: []}
        self.open: list[Ticket] = []

    def _accept(self, positions: dict[tuple[str, int], int]) -> None:
        for (_, partition), position in positions.items():
            unanswered = [offset for offset in self.offsets[partition] if offset < position and offset not in self.answered[partition]]
            assert not unanswered, f"committed {position} past {unanswered}"
            self.committed[partition] = position

    @rule(partition=st.integers(0, 1))
    def assign(self, partition: int) -> None:
        if partition not in self.position:
            self.tracker.assign([("frames", partition)])
            self.position[partition] = self.committed[partition]

    @rule(partition=st.integers(0, 1), sent=st.booleans())
    def revoke(self, partition: int, sent: bool) -> None:
        positions = self.tracker.revoke([("frames", partition)])
        self.position.pop(partition, None)
        if sent:
            self._accept(positions)

    @rule(partition=st.integers(0, 1), gap=st.integers(0, 3))
    def append(self, partition: int, gap: int) -> None:
        self.offsets[partition].append(self.log_end[partition] + gap)
        self.log_end[partition] += gap + 1

    @rule(target=tickets, partition=st.integers(0, 1))
    def deliver(self, partition: int) -> Ticket | None:
        if partition not in self.position:
            assert self.tracker.start(record(0, partition)) is None
            return None
        offset = next((offset for offset in self.offsets[partition] if offset >= self.position[partition]), None)
        if offset is None:
            return None
        self.position[partition] = offset + 1
        ticket = started(self.tracker, offset, partition)
        self.open.append(ticket)
        return ticket

    @rule(ticket=tickets)
    def finish(self, ticket: Ticket | None) -> None:
        if ticket in self.open:
            self.open.remove(ticket)
            if ticket.live:  # otherwise it is dropped unanswered
                self.answered[ticket.record.partition].add(ticket.record.offset)
            self.tracker.done(ticket)

    @rule(accepted=st.booleans())
    def commit(self, accepted: bool) -> None:
        positions = self.tracker.to_commit()
        if accepted:
            self._accept(positions)
            self.tracker.committed(positions)

    @precondition(lambda self: self.position)
    @rule()
    def settle(self) -> None:
        """Everything finished is committed in the end."""
        for ticket in list(self.open):
            self.finish(ticket)
        self.commit(accepted=True)
        for partition in self.position:
            assert self.committed[partition] >= max((o + 1 for o in self.offsets[partition] if o < self.position[partition]), default=0)

    @invariant()
    def counts_match(self) -> None:
        assert self.tracker.num_in_flight == len(self.open)


TestCommits = Commits.TestCase
TestCommits.settings = settings(deadline=None, stateful_step_count=40)
