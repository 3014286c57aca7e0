"""The Kafka consumer: its options, what its thread may do, and which refused commits are harmless."""

import sys
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import kafka as kafka_python
import pytest
from kafka import OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaTimeoutError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

from fifa_stream.config import KafkaSettings
from fifa_stream.consume import CodecMissing, KafkaConsumer, Partition

ZERO, ONE = TopicPartition("fifa.frames", 0), TopicPartition("fifa.frames", 1)


class ToyClient:
    """What is used of kafka.KafkaConsumer."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.assigned: set[TopicPartition] = set()
        self.is_paused: set[TopicPartition] = set()
        self.records: dict[TopicPartition, list[Any]] = {}
        self.sync_commits: list[Any] = []
        self.async_commits: list[Any] = []
        self.error: Exception | None = None
        self.listener: Any = None
        self.state = "<unjoined>"
        self.num_rejoins = 0
        self._coordinator = self

    def request_rejoin(self) -> None:
        self.num_rejoins += 1

    def subscribe(self, topics: list[str], *, listener: Any) -> None:
        self.listener = listener

    def poll(self, *, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        if self.error:
            raise self.error
        return self.records

    def assignment(self) -> set[TopicPartition]:
        return self.assigned

    def pause(self, *partitions: TopicPartition) -> None:
        self.is_paused |= set(partitions)

    def paused(self) -> set[TopicPartition]:
        return set(self.is_paused)

    def resume(self, *partitions: TopicPartition) -> None:
        self.is_paused -= set(partitions)

    def commit(self, offsets: Any, *, timeout_ms: int) -> None:
        if self.error:
            raise self.error
        self.sync_commits.append(offsets)

    def commit_async(self, offsets: Any) -> None:
        self.async_commits.append(offsets)

    def group_metadata(self) -> Any:
        return SimpleNamespace(state=self.state)

    def close(self, *, timeout_ms: int) -> None:
        if self.error:
            raise self.error

    def highwater(self, partition: TopicPartition) -> int | None:
        return {ZERO: 10, ONE: None}[partition]

    def position(self, partition: TopicPartition, *, timeout_ms: int) -> int:
        return 7

    def end_offsets(self, partitions: list[TopicPartition], *, timeout_ms: int) -> dict[TopicPartition, int]:
        if self.error:
            raise self.error
        return dict.fromkeys(partitions, 12)


class Log:
    """A `Rebalance` that writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, list[Partition]]] = []

    def assigned(self, partitions: Iterable[Partition]) -> None:
        self.events.append(("assigned", list(partitions)))

    def revoked(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        self.events.append(("revoked", list(partitions)))
        return {partition: 7 for partition in partitions if partition[1] == 0}

    def lost(self, partitions: Iterable[Partition]) -> None:
        self.events.append(("lost", list(partitions)))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[[], ToyClient]:
    made: list[ToyClient] = []

    def make(**options: Any) -> ToyClient:
        made.append(ToyClient(**options))
        return made[-1]

    monkeypatch.setattr(kafka_python, "KafkaConsumer", make)
    return lambda: made[-1]


def consumer(*, is_tansu: bool = False, **settings: Any) -> KafkaConsumer:
    return KafkaConsumer(KafkaSettings(**settings), is_tansu=is_tansu, max_poll_records=8)


def test_on_kafka_rebalances_are_cooperative_and_commits_ours(client: Callable[[], ToyClient]) -> None:
    consumer()
    options = client().options
    assert options["partition_assignment_strategy"] == (CooperativeStickyAssignor,)
    assert (options["enable_auto_commit"], options["auto_offset_reset"], options["isolation_level"]) == (False, "earliest", "read_committed")
    assert (options["session_timeout_ms"], options["heartbeat_interval_ms"]) == (45_000, 3_000)


def test_on_tansu_sessions_are_short(client: Callable[[], ToyClient]) -> None:
    consumer(is_tansu=True)
    options = client().options
    assert options["partition_assignment_strategy"] == (RangePartitionAssignor,)
    assert (options["session_timeout_ms"], options["heartbeat_interval_ms"]) == (2_000, 500)


def test_without_the_c_checksum_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crc32c", None)
    with pytest.raises(CodecMissing, match="pip install crc32c"):
        consumer()


def test_records_come_as_bytes_and_null_headers_as_empty(client: Callable[[], ToyClient]) -> None:
    member = consumer()
    record = SimpleNamespace(topic="t", partition=0, offset=3, timestamp=9, key=None, value=b"v", headers=[("a", None), ("b", b"1")])
    client().records = {ZERO: [record]}
    (raw,) = member.poll(max_records=1, timeout_s=0.0)
    assert (raw.offset, raw.timestamp_ms, raw.key, raw.value, raw.headers) == (3, 9, None, b"v", (("a", b""), ("b", b"1")))


def test_partitions_that_arrive_during_a_pause_are_paused(client: Callable[[], ToyClient]) -> None:
    member, log = consumer(), Log()
    member.subscribe("fifa.frames", log)
    client().assigned = {ZERO}
    member.pause()
    client().assigned = {ZERO, ONE}
    client().listener.on_partitions_assigned([ONE])
    assert client().is_paused == {ZERO, ONE}
    member.resume()
    assert client().is_paused == set()
    assert log.events == [("assigned", [("fifa.frames", 1)])]


def test_revoked_partitions_are_committed_without_waiting(client: Callable[[], ToyClient]) -> None:
    member, log = consumer(), Log()
    member.subscribe("fifa.frames", log)
    client().listener.on_partitions_revoked([ONE, ZERO])
    assert client().async_commits == [{ZERO: OffsetAndMetadata(7, "", -1)}]
    assert client().sync_commits == [], "a blocking call raises on the client's thread"


def test_lost_partitions_are_not_committed(client: Callable[[], ToyClient]) -> None:
    member, log = consumer(), Log()
    member.subscribe("fifa.frames", log)
    client().listener.on_partitions_lost([ZERO])
    assert client().async_commits == []
    assert log.events == [("lost", [("fifa.frames", 0)])]


@pytest.mark.parametrize(
    "error", [CommitFailedError(), RebalanceInProgressError(), UnknownMemberIdError(), KafkaTimeoutError()], ids=lambda e: type(e).__name__
)
def test_a_commit_refused_in_a_rebalance_is_not_fatal(client: Callable[[], ToyClient], error: Exception) -> None:
    member = consumer()
    client().error = error
    assert member.commit({("fifa.frames", 0): 3}) is False


def test_a_forbidden_commit_is_fatal(client: Callable[[], ToyClient]) -> None:
    member = consumer()
    client().error = GroupAuthorizationFailedError()
    with pytest.raises(GroupAuthorizationFailedError):
        member.commit({("fifa.frames", 0): 3})


def test_a_commit_is_the_next_offset(client: Callable[[], ToyClient]) -> None:
    member = consumer()
    assert member.commit({("fifa.frames", 0): 3})
    assert client().sync_commits == [{ZERO: OffsetAndMetadata(3, "", -1)}]


def test_joined_means_that_the_group_is_stable(client: Callable[[], ToyClient]) -> None:
    member = consumer()
    assert not member.joined
    client().state = "<stable>"
    assert member.joined


def test_a_join_that_outlasts_a_poll_is_taken_up_by_the_next(client: Callable[[], ToyClient]) -> None:
    """kafka-python would forget it; tests/integration/test_faults.py shows how."""
    member = consumer()
    for state, asked in (("<unjoined>", 0), ("<rebalancing>", 1), ("<stable>", 1)):
        client().state = state
        member.poll(max_records=1, timeout_s=0.0)
        assert client().num_rejoins == asked, state


def test_a_poll_that_finds_no_broker_is_an_empty_one_and_told_once(client: Callable[[], ToyClient], caplog: pytest.LogCaptureFixture) -> None:
    member = consumer()
    client().error = KafkaConnectionError("111 ECONNREFUSED")
    assert [member.poll(max_records=1, timeout_s=0.0) for _ in range(3)] == [[], [], []]
    assert [record.getMessage() for record in caplog.records] == [
        "the broker is away, polling on: group=fifa-stream error=KafkaConnectionError: 111 ECONNREFUSED"
    ]


def test_a_poll_that_is_forbidden_ends_the_loop(client: Callable[[], ToyClient]) -> None:
    member = consumer()
    client().error = GroupAuthorizationFailedError()
    with pytest.raises(GroupAuthorizationFailedError):
        member.poll(max_records=1, timeout_s=0.0)


def test_leaving_a_dead_broker_is_not_an_error(client: Callable[[], ToyClient]) -> None:
    member = consumer()
    client().error = KafkaTimeoutError()
    member.close()


def test_watermarks_come_with_fetches_and_while_paused_from_the_broker(client: Callable[[], ToyClient]) -> None:
    member = consumer()
    client().assigned = {ZERO, ONE}
    assert member.watermarks() == {("fifa.frames", 0): (7, 10)}, "of the other nothing was fetched yet"
    member.pause()
    assert member.watermarks() == {("fifa.frames", 0): (7, 12), ("fifa.frames", 1): (7, 12)}
    client().error = KafkaTimeoutError()
    assert member.watermarks() == {("fifa.frames", 0): (7, 10)}, "an old one rather than an error"


def test_tansu_is_not_asked_for_watermarks(client: Callable[[], ToyClient]) -> None:
    member = consumer(is_tansu=True)
    client().assigned = {ZERO}
    member.pause()
    assert member.watermarks() == {("fifa.frames", 0): (7, 10)}
