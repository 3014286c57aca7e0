"""How far behind: the two gauges follow what is committed, written and held, and show no partition that went."""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace

import kafka as kafka_python
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition

from fifa_stream import lag
from fifa_stream.config import KafkaSettings
from fifa_stream.consume import Partition, Watermark
from fifa_stream.lag import REPORT_EVERY_S, LagReport
from fifa_stream.offsets import OffsetTracker, Ticket
from fifa_stream.records import OutRecord, RawRecord
from fifa_stream.telemetry import LAG_RECORDS, LAG_SECONDS, Meter
from fifa_stream.testing import FakeClock, MemoryBroker, MemoryConsumer

TOPIC = "fifa.frames"
BEGAN_S = 1_700_000_000.0
"""Timestamp of the first record of a `MemoryBroker`."""


class Tracking:
    """What of the runner a consumer talks to."""

    def __init__(self, offsets: OffsetTracker) -> None:
        self.offsets = offsets

    def assigned(self, partitions: Iterable[Partition]) -> None:
        self.offsets.assign(partitions)

    def revoked(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        return self.offsets.revoke(partitions)

    def lost(self, partitions: Iterable[Partition]) -> None:
        self.offsets.revoke(partitions)


class Member:
    """A consumer, its offsets and its gauges."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.clock, self.unix = FakeClock(), FakeClock(BEGAN_S)
        self.offsets, self.meter = OffsetTracker(), Meter()
        self.consumer = MemoryConsumer(broker, "g")
        self.consumer.subscribe(TOPIC, Tracking(self.offsets))
        self.report = LagReport(self.consumer, self.offsets, self.meter, group="g", clock=self.clock, unix_time_s=self.unix)

    def start(self, limit: int) -> list[Ticket]:
        return [ticket for record in self.consumer.poll(max_records=limit, timeout_s=0) if (ticket := self.offsets.start(record))]

    def commit(self) -> None:
        if positions := self.offsets.to_commit():
            assert self.consumer.commit(positions)
            self.offsets.committed(positions)

    def shown(self) -> dict[str, float]:
        """Lag by partition, the next time it is due."""
        self.clock.advance(REPORT_EVERY_S)
        self.report.turn()
        lines = [line for line in self.meter.exposition().decode().splitlines() if line.startswith(LAG_RECORDS.name)]
        return {line.partition('partition="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}

    @property
    def seconds(self) -> float:
        return self.meter.value(LAG_SECONDS, group="g", topic=TOPIC)


def filled(*num_records: int) -> MemoryBroker:
    broker = MemoryBroker({TOPIC: len(num_records)})
    for partition, count in enumerate(num_records):
        for _ in range(count):
            broker.append(TOPIC, OutRecord(b"k", b"v", ()), partition=partition)
    return broker


def test_lag_is_what_is_not_committed_whether_or_not_it_was_polled() -> None:
    member = Member(filled(10, 3, 0))
    assert member.shown() == {"0": 10, "1": 3, "2": 0}
    tickets = member.start(5)
    assert member.shown() == {"0": 10, "1": 3, "2": 0}, "polled is not committed"
    for ticket in tickets[:4]:
        member.offsets.done(ticket)
    assert member.shown() == {"0": 10, "1": 3, "2": 0}, "answered is not committed"
    member.commit()
    assert member.shown() == {"0": 6, "1": 3, "2": 0}


def test_seconds_are_the_age_of_the_oldest_record_that_is_not_committed() -> None:
    member = Member(filled(10))
    member.unix.advance(60)
    member.shown()
    assert member.seconds == 0, "nothing came yet"
    tickets = member.start(2)
    member.shown()
    assert member.seconds == pytest.approx(60)
    member.offsets.done(tickets[0])
    member.shown()
    assert member.seconds == pytest.approx(60), "answered is not committed"
    member.commit()
    member.shown()
    assert member.seconds == pytest.approx(59.999), "of the second record, a millisecond later"
    member.offsets.done(tickets[1])
    member.commit()
    member.shown()
    assert member.seconds == 0


def test_a_clock_of_a_producer_that_is_ahead_makes_no_negative_age() -> None:
    member = Member(filled(1))
    member.unix.advance(-60)
    member.start(1)
    member.shown()
    assert member.seconds == 0


def test_a_partition_that_went_is_no_longer_shown_here() -> None:
    broker = filled(4, 4)
    first = Member(broker)
    assert first.shown().keys() == {"0", "1"}
    second = Member(broker)
    assert first.shown().keys() == {"0"}
    assert second.shown().keys() == {"1"}
    first.consumer.close()
    assert first.shown() == {}
    assert "fifa_consumer_lag_seconds{" not in first.meter.exposition().decode()


def test_markers_of_transactions_behind_the_last_record_are_no_lag() -> None:
    class Behind(MemoryConsumer):
        def watermarks(self) -> dict[Partition, Watermark]:
            """As kafka-python says it once the position went past the marker."""
            return {partition: Watermark(mark.position + 1, mark.end + 1) for partition, mark in super().watermarks().items()}

    member = Member(filled(2))
    tickets = member.start(2)
    member.report = LagReport(behind := Behind(filled(2), "g"), member.offsets, member.meter, group="g", clock=member.clock, unix_time_s=member.unix)
    behind.positions = {(TOPIC, 0): 2}
    for ticket in tickets:
        member.offsets.done(ticket)
    assert member.shown() == {"0": 3}
    member.commit()
    assert member.shown() == {"0": 0}


def test_the_consumer_is_asked_once_in_a_while_and_not_every_turn() -> None:
    member = Member(filled(1))
    asked = []
    watermarks = member.consumer.watermarks
    member.consumer.watermarks = lambda: asked.append(member.clock.now) or watermarks()  # type: ignore[method-assign,func-returns-value]
    for _ in range(1_000):
        member.report.turn()
        member.clock.advance(REPORT_EVERY_S / 100)
    assert len(asked) == 10


@given(st.lists(st.sampled_from(["poll", "first", "last", "commit"]), max_size=60))
def test_backlog_begins_where_the_group_would_begin_again(steps: list[str]) -> None:
    member = Member(filled(40, 40))
    running: list[Ticket] = []
    for step in steps:
        if step == "poll":
            running += member.start(3)
        elif step == "commit":
            member.commit()
        elif running:
            member.offsets.done(running.pop(0 if step == "first" else -1))
    position = member.consumer.positions
    for partition in position:
        committed = member.consumer._broker.committed("g").get(partition, 0)
        backlog = member.offsets.backlog().get(partition)
        assert (backlog is None) == (committed == position[partition])
        if backlog is not None:
            assert backlog.offset == committed
            assert backlog.timestamp_ms == round(1_000 * BEGAN_S) + committed


def test_records_without_a_timestamp_have_no_age() -> None:
    offsets, meter, clock = OffsetTracker(), Meter(), FakeClock()
    broker = filled(1)
    member = MemoryConsumer(broker, "g")
    member.subscribe(TOPIC, Tracking(offsets))
    offsets.start(RawRecord(TOPIC, 0, 0, -1, None, b"v", ()))
    LagReport(member, offsets, meter, group="g", clock=clock, unix_time_s=lambda: BEGAN_S).turn()
    assert meter.value(LAG_SECONDS, group="g", topic=TOPIC) == 0


def test_the_lag_of_a_group_has_no_age_where_the_first_record_has_no_timestamp(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def __init__(self, **options: object) -> None:
            self.assigned: list[TopicPartition] = []

        def partitions_for_topic(self, topic: str) -> set[int]:
            return {0, 1}

        def assign(self, partitions: list[TopicPartition]) -> None:
            self.assigned = partitions

        def assignment(self) -> set[TopicPartition]:
            return set(self.assigned)

        def end_offsets(self, partitions: list[TopicPartition], timeout_ms: int) -> dict[TopicPartition, int]:
            return dict.fromkeys(partitions, 5)

        def beginning_offsets(self, partitions: list[TopicPartition], timeout_ms: int) -> dict[TopicPartition, int]:
            return dict.fromkeys(partitions, 0)

        def committed(self, partition: TopicPartition, timeout_ms: int) -> int:
            return 3

        def poll(self, timeout_ms: int) -> dict[TopicPartition, list[SimpleNamespace]]:
            return {partition: [SimpleNamespace(timestamp=9_000 if partition.partition else -1)] for partition in self.assigned}

        def seek(self, partition: TopicPartition, offset: int) -> None: ...

        def pause(self, *partitions: TopicPartition) -> None: ...

        def close(self, timeout_ms: int) -> None: ...

    monkeypatch.setattr(kafka_python, "KafkaConsumer", Client)
    monkeypatch.setattr(lag, "find_cluster", lambda kafka: None)
    assert [(one.records, one.oldest_ms) for one in lag.group_lag(KafkaSettings())] == [(2, None), (2, 9_000)]
