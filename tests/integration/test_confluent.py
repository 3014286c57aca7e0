"""kafka.client = confluent-kafka on Apache Kafka: the loop's suite again with workers on librdkafka, and what its clients promise by themselves."""

import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from kafka import KafkaAdminClient

pytest.importorskip("confluent_kafka", reason="needs confluent-kafka: the extra `confluent`")

import confluent_kafka as ck

from bench import faults
from fifa_stream import confluent
from fifa_stream.config import KafkaSettings
from fifa_stream.confluent import ConfluentConsumer, ConfluentProducer
from fifa_stream.consume import Partition
from fifa_stream.exits import ExitCode
from fifa_stream.produce import DeliveryError, KafkaProducer
from fifa_stream.records import OutRecord, RawRecord
from fifa_stream.topic_reader import read_topic

from .apache_kafka import ApacheKafka
from .conftest import Client, StreamFactory
from .test_faults import (  # noqa: F401  (the tests among them are collected here, for this client)
    drained,
    in_work,
    keep_their_promise,
    test_a_broker_frozen_for_longer_than_the_session_costs_nothing,
    test_connections_cut_over_and_over_cost_nothing,
    under_both,
    within,
)
from .test_kafka import (  # noqa: F401
    bootstrap_servers,
    test_every_record_ends_as_exactly_one_answer_and_sigterm_drains,
    test_the_older_of_two_producers_under_one_transactional_id_is_told_and_nothing_of_it_is_seen,
)

pytestmark = pytest.mark.kafka

NUM_KILLS = 3
FRAME = RawRecord("frames", 0, 0, 0, None, b"image", ())


@pytest.fixture
def client() -> Client:
    return "confluent-kafka"


def test_with_exactly_once_kills_lose_and_repeat_nothing(apache: ApacheKafka, client: Client) -> None:
    """The schedule of `make faults`, shorter still."""
    tally = faults.run(apache, "exactly_once", kills=NUM_KILLS, records=1_000, seed=1, client=client)
    assert tally.keeps("exactly_once"), tally
    assert (tally.sent, dict(tally.others)) == (NUM_KILLS * 1_000, {})


def test_a_member_that_wakes_after_its_partitions_went_on_adds_nothing(apache: ApacheKafka, new_stream: StreamFactory) -> None:
    streams = under_both(new_stream, apache, session_timeout_ms=1_000, commit_interval_ms=900)
    zombies = [stream.start_worker(frame_ms=10.0) for stream in streams]
    in_work(streams, zombies, 1_000)
    for zombie in zombies:
        zombie.process.send_signal(signal.SIGSTOP)
    others = [stream.start_worker() for stream in streams]
    for other in others:
        other.wait_ready()
        assert within(60.0, lambda other=other: "partitions assigned: [(" in "".join(other.lines)), "".join(other.lines)
    time.sleep(1.0)
    for zombie in zombies:
        zombie.process.send_signal(signal.SIGCONT)
    keep_their_promise(streams)
    drained([*zombies, *others])
    for zombie in zombies:
        assert "partitions lost" in "".join(zombie.lines), "".join(zombie.lines)


def test_members_on_either_client_share_a_group_and_hand_over(apache: ApacheKafka, new_stream: StreamFactory) -> None:
    stream = new_stream(apache.bootstrap_servers)
    first = stream.start_worker(frame_ms=1.0)
    first.wait_ready()
    stream.send([b"image"] * 500)
    others = [stream.start_worker(frame_ms=1.0), stream.start_worker(frame_ms=1.0, client="kafka-python")]
    for other in others:
        other.wait_ready()
    stream.send([b"image"] * 500)
    stream.answers(at_least=700)
    for leaver in (first, others[0]):
        assert leaver.end(signal.SIGTERM) == ExitCode.OK, "".join(leaver.lines)
        stream.send([b"image"] * 200)
    verdicts, _ = stream.answers()
    assert verdicts.keys() == stream.sent
    for worker in stream.workers:
        assert any("partitions assigned: [(" in line for line in worker.lines), "".join(worker.lines)
    assert any("fifa_stream.consume" in line for line in others[1].lines) and any("fifa_stream.confluent" in line for line in others[0].lines)


class Stays:
    """A `Rebalance` that knows what is assigned, and gives nothing to commit."""

    def __init__(self) -> None:
        self.owned: set[Partition] = set()
        self.lost_some = False

    def assigned(self, partitions: Iterable[Partition]) -> None:
        self.owned |= set(partitions)

    def revoked(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        self.owned -= set(partitions)
        return {}

    def lost(self, partitions: Iterable[Partition]) -> None:
        self.lost_some = True
        self.owned -= set(partitions)


@pytest.fixture
def kafka(apache: ApacheKafka, new_stream: StreamFactory) -> KafkaSettings:
    """Topics of the test's own."""
    return new_stream(apache.bootstrap_servers).settings


@pytest.fixture
def member(kafka: KafkaSettings) -> Iterator[ConfluentConsumer]:
    consumer = ConfluentConsumer(kafka.model_copy(update={"max_partition_fetch_bytes": 1 << 16}), is_tansu=False)
    yield consumer
    consumer.close()


def put(kafka: KafkaSettings, values: Sequence[bytes]) -> None:
    """Frames, acknowledged."""
    producer, acknowledged = ConfluentProducer(kafka), list[int]()
    for number, value in enumerate(values):
        record = OutRecord(b"%d" % (number % 7), value, (("n", b"%d" % number),))
        producer.send(kafka.frames_topic, record, answers=FRAME, on_delivery=lambda: acknowledged.append(1))
    assert producer.flush(30.0)
    producer.poll()
    producer.close(3.0)
    assert len(acknowledged) == len(values)


def take(member: ConfluentConsumer, number: int, *, timeout_s: float = 30.0) -> list[RawRecord]:
    """So many records, or what there is when time is up."""
    taken, deadline = list[RawRecord](), time.monotonic() + timeout_s
    while len(taken) < number and time.monotonic() < deadline:
        taken += member.poll(max_records=100, timeout_s=0.1)
    return taken


def ends(records: Iterable[RawRecord]) -> dict[Partition, int]:
    """What to commit after them."""
    return {(record.topic, record.partition): record.offset + 1 for record in records}


def assert_gapless(records: Sequence[RawRecord]) -> None:
    """Each partition from 0 on, in order, nothing twice."""
    for number in {record.partition for record in records}:
        offsets = [record.offset for record in records if record.partition == number]
        assert offsets == list(range(len(offsets)))


def test_either_client_puts_a_key_on_the_same_partition(kafka: KafkaSettings) -> None:
    for producer in (ConfluentProducer(kafka), KafkaProducer(kafka)):
        for number in range(30):
            producer.send(kafka.verdicts_topic, OutRecord(b"stream-%d" % number, b"v", ()), answers=FRAME, on_delivery=lambda: None)
        assert producer.flush(30.0)
        producer.close(3.0)
    places = {(record.key, record.partition) for record in read_topic(kafka, kafka.verdicts_topic)}
    assert len(places) == 30
    assert len({partition for _, partition in places}) == 3


def test_records_arrive_byte_for_byte_whatever_their_size(kafka: KafkaSettings, member: ConfluentConsumer) -> None:
    large = bytes(range(256)) * 2_000  # eight times what one fetch may bring
    put(kafka, [large, b""])
    member.subscribe(kafka.frames_topic, Stays())
    records = {record.value: record for record in take(member, 2)}
    assert records.keys() == {large, b""}
    assert (records[large].key, records[large].headers) == (b"0", (("n", b"0"),))
    assert abs(records[large].timestamp_ms / 1000 - time.time()) < 60


def test_a_commit_with_much_fetched_is_answered_and_nothing_is_lost_or_comes_twice(kafka: KafkaSettings, member: ConfluentConsumer) -> None:
    put(kafka, [b"x" * 2_000] * 1_500)
    member.subscribe(kafka.frames_topic, Stays())
    taken = take(member, 100)
    for _ in range(12):
        assert member.commit(ends(taken))
        time.sleep(0.05)  # the client fetches on
        taken += take(member, 50)
    taken += take(member, 1_500 - len(taken))
    assert len(taken) == 1_500
    assert_gapless(taken)
    assert member.commit(ends(taken))


def test_a_paused_member_stays_in_the_group_and_goes_on_where_it_was(kafka: KafkaSettings) -> None:
    """Longer than a poll may be late, with more fetched than is kept."""
    brief = kafka.model_copy(update={"max_partition_fetch_bytes": 1 << 14, "max_poll_interval_ms": 1_500, "session_timeout_ms": 1_500})
    put(kafka, [b"x" * 2_000] * 600)
    member, stays = ConfluentConsumer(brief, is_tansu=False), Stays()
    try:
        member.subscribe(kafka.frames_topic, stays)
        taken = take(member, 50)
        member.pause()
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline:
            assert member.poll(max_records=100, timeout_s=0.01) == []
        member.resume()
        taken += take(member, 600 - len(taken))
        assert len(taken) == 600
        assert_gapless(taken)
        assert not stays.lost_some
    finally:
        member.close()


def test_partitions_that_come_during_a_pause_give_nothing_before_its_end(kafka: KafkaSettings, member: ConfluentConsumer) -> None:
    put(kafka, [b"x" * 2_000] * 300)
    other, its, stays = ConfluentConsumer(kafka, is_tansu=False), Stays(), Stays()
    other.subscribe(kafka.frames_topic, its)
    member.subscribe(kafka.frames_topic, stays)
    member.pause()
    deadline = time.monotonic() + 30
    while (len(stays.owned), len(its.owned)) not in {(1, 2), (2, 1)} and time.monotonic() < deadline:
        other.pause()
        assert other.poll(max_records=1, timeout_s=0.05) == []
        assert member.poll(max_records=1, timeout_s=0.05) == []
    other.close()
    while len(stays.owned) < 3 and time.monotonic() < deadline:
        assert member.poll(max_records=1, timeout_s=0.05) == []
    assert len(stays.owned) == 3
    member.resume()
    taken = take(member, 300)
    assert len(taken) == 300
    assert_gapless(taken)


def test_a_member_goes_back_to_what_is_committed(kafka: KafkaSettings, member: ConfluentConsumer) -> None:
    put(kafka, [b"x" * 2_000] * 400)
    member.subscribe(kafka.frames_topic, Stays())
    first = take(member, 400)
    half = ends(record for record in first if record.offset < 40)
    begun = half.popitem()[0]  # of this partition nothing is committed
    assert member.commit(half)
    member.rewind(dict.fromkeys((*half, begun), 0))
    again = take(member, 400 - sum(half.values()))
    for partition in (*half, begun):
        offsets = [record.offset for record in again if (record.topic, record.partition) == partition]
        assert offsets[0] == half.get(partition, 0)
        assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
    assert len(again) == 400 - sum(half.values())


def test_watermarks_say_what_is_left_also_while_paused(kafka: KafkaSettings, member: ConfluentConsumer) -> None:
    put(kafka, [b"x"] * 50)
    member.subscribe(kafka.frames_topic, Stays())
    taken = take(member, 50)
    assert {partition: mark.position for partition, mark in member.watermarks().items()} == ends(taken)
    assert all(mark.end == mark.position for mark in member.watermarks().values())
    assert member.commit(ends(taken))
    member.pause()
    put(kafka, [b"x"] * 30)
    left = member.watermarks()
    assert sum(mark.end - mark.position for mark in left.values()) == 30
    next_member = ConfluentConsumer(kafka, is_tansu=False)
    member.close()
    next_member.subscribe(kafka.frames_topic, Stays())
    next_member.pause()
    deadline = time.monotonic() + 30
    while not next_member.joined and time.monotonic() < deadline:
        next_member.poll(max_records=1, timeout_s=0.05)
    assert next_member.watermarks() == left, "of what was committed, before a record came"
    next_member.close()


def test_offsets_of_a_member_without_an_identity_are_not_sent(kafka: KafkaSettings, member: ConfluentConsumer) -> None:
    """The broker would take them: for compatibility it does not ask who commits in a transaction without naming a member."""
    exactly_once = kafka.model_copy(update={"processing_guarantee": "exactly_once"})
    position = {(kafka.frames_topic, 0): 5}
    raw_identity = member._client.consumer_group_metadata()
    assert member.member() is None and member.commit(position) is False
    producer = ConfluentProducer(exactly_once, transactional_id=kafka.group_id)
    producer.begin()
    producer.send(kafka.verdicts_topic, OutRecord(b"k", b"v", ()), answers=FRAME, on_delivery=lambda: None)
    with pytest.raises(DeliveryError, match="the group has put this member out"):
        producer.commit(position, member.member())
    admin = KafkaAdminClient(**kafka.client_options())
    try:
        assert not committed(admin, kafka)
        producer.commit(position, raw_identity)
        deadline = time.monotonic() + 30
        while not committed(admin, kafka) and time.monotonic() < deadline:  # visible with the marker, which follows the commit
            time.sleep(0.05)
        assert committed(admin, kafka) == {0: 5}, "if this fails the broker asks by now"
    finally:
        admin.close()
        producer.close(3.0)


def test_a_rebalance_that_meets_an_open_transaction_does_not_go_back_to_the_beginning(kafka: KafkaSettings) -> None:
    """librdkafka 2.16 by itself does: partitions whose offsets it asks for while others move count as without one, and are reset."""
    put(kafka, [b"x"] * 90)
    exactly_once = kafka.model_copy(update={"processing_guarantee": "exactly_once", "transaction_timeout_ms": 60_000})
    partitions = [(kafka.frames_topic, number) for number in range(3)]
    outsider = ConfluentConsumer(kafka, is_tansu=False)
    identity = outsider._client.consumer_group_metadata()
    producer = ConfluentProducer(exactly_once, transactional_id=kafka.group_id)
    members, begins = list[ConfluentConsumer](), dict[Partition, int]()

    def open_transaction() -> None:
        producer.begin()
        producer.send(kafka.verdicts_topic, OutRecord(b"k", b"v", ()), answers=FRAME, on_delivery=lambda: None)
        assert producer.flush(30.0)
        producer.poll()

    def turn(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and len(begins) < 3:
            for member in members:
                for record in member.poll(max_records=100, timeout_s=0.02):
                    begins.setdefault((record.topic, record.partition), record.offset)

    try:
        open_transaction()
        producer.commit(dict.fromkeys(partitions, 5), identity)
        open_transaction()
        producer._client.send_offsets_to_transaction([ck.TopicPartition(*partition, 8) for partition in partitions], identity, 30.0)
        for _ in range(3):
            members.append(ConfluentConsumer(kafka, is_tansu=False))
            members[-1].subscribe(kafka.frames_topic, Stays())
            turn(1.2)
        assert begins == {}, "whether they begin at 5 or at 8 is not decided"
        producer.commit({}, None)
        turn(30.0)
        assert begins == dict.fromkeys(partitions, 8)
    finally:
        for member in (*members, outsider):
            member.close()
        producer.close(3.0)


def test_a_committed_offset_that_is_not_in_the_log_begins_at_its_start(kafka: KafkaSettings, member: ConfluentConsumer) -> None:
    put(kafka, [b"x"] * 30)
    member.subscribe(kafka.frames_topic, Stays())
    taken = take(member, 30)
    assert member.commit({partition: end + 1_000 for partition, end in ends(taken).items()})
    member.close()
    next_member = ConfluentConsumer(kafka, is_tansu=False)
    try:
        next_member.subscribe(kafka.frames_topic, Stays())
        again = take(next_member, 30)
        assert len(again) == 30
        assert_gapless(again)
    finally:
        next_member.close()


def committed(admin: Any, kafka: KafkaSettings) -> dict[int, int]:
    """Offsets of the group, by partition."""
    return {at.partition: found.offset for at, found in admin.list_group_offsets(kafka.group_id)[kafka.group_id].items()}


def test_what_a_frozen_broker_does_not_acknowledge_in_time_is_a_failed_delivery_and_the_next_producer_delivers(
    apache: ApacheKafka, kafka: KafkaSettings
) -> None:
    brief = kafka.model_copy(update={"delivery_timeout_ms": 1_500})
    producer, acknowledged = ConfluentProducer(brief), list[int]()

    def send() -> None:
        producer.send(kafka.verdicts_topic, OutRecord(b"k", b"v" * 1_000, ()), answers=FRAME, on_delivery=lambda: acknowledged.append(1))

    send()
    assert producer.flush(30.0)
    producer.poll()
    apache.freeze()
    try:
        time.sleep(0.3)  # a thread of the broker may be in the middle of an answer
        send()
        assert not producer.flush(0.1)
        began = time.monotonic()
        with pytest.raises(DeliveryError, match=r"the answer to frames/0/0 was not delivered to .*_MSG_TIMED_OUT"):
            while time.monotonic() < began + 20.0:
                producer.poll()
                time.sleep(0.05)
        producer.close(0.0)
    finally:
        apache.thaw()
    producer = ConfluentProducer(brief)
    send()
    assert producer.flush(30.0)
    producer.poll()
    producer.close(3.0)
    assert len(acknowledged) == 2


def test_leaving_a_silent_broker_takes_seconds(apache: ApacheKafka, kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a commit on its way, whose answer librdkafka itself would wait for."""
    monkeypatch.setattr(confluent, "COMMIT_TIMEOUT_MS", 500)
    monkeypatch.setattr(confluent, "CLOSE_TIMEOUT_S", 1.0)
    put(kafka, [b"x"] * 50)
    member = ConfluentConsumer(kafka, is_tansu=False)
    member.subscribe(kafka.frames_topic, Stays())
    taken = take(member, 50)
    apache.freeze()
    try:
        assert member.commit(ends(taken)) is False
        began = time.monotonic()
        member.close()
        frozen_s = time.monotonic() - began
    finally:
        apache.thaw()
    assert frozen_s < 20.0, "it was waited for"


def test_unacknowledged_bytes_are_bounded(apache: ApacheKafka, kafka: KafkaSettings) -> None:
    producer = ConfluentProducer(kafka.model_copy(update={"max_unacknowledged_bytes": 10_000}))
    sent: Callable[[], None] = lambda: producer.send(  # noqa: E731
        kafka.verdicts_topic, OutRecord(b"k", b"v" * 5_000, ()), answers=FRAME, on_delivery=lambda: None
    )
    sent()
    assert producer.has_room
    sent()
    assert not producer.has_room
    assert producer.flush(30.0)
    producer.poll()
    assert producer.has_room
    producer.close(3.0)


def test_a_record_above_the_limit_is_refused_by_name(kafka: KafkaSettings) -> None:
    producer = ConfluentProducer(kafka.model_copy(update={"max_request_bytes": 10_000}))
    with pytest.raises(DeliveryError, match=r"frames/0/0 was not delivered to .*MSG_SIZE_TOO_LARGE"):
        producer.send(kafka.verdicts_topic, OutRecord(b"k", b"v" * 20_000, ()), answers=FRAME, on_delivery=lambda: None)
    producer.close(0.0)
