"""Faults on Apache Kafka, each under a guarantee: every input is answered; with exactly_once a read_committed reader sees one answer.

Connections cut, silent and slow; members that wake too late, come and go, restart one after the other; an engine that is slow, and one that hangs.
"""

import contextlib
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kafka as kafka_python
import pytest
from kafka import KafkaAdminClient

from fifa_stream.consume import KafkaConsumer, Partition
from fifa_stream.exits import ExitCode
from fifa_stream.produce import KafkaProducer
from fifa_stream.records import OutRecord, RawRecord

from .apache_kafka import ApacheController, ApacheKafka
from .conftest import Stream, StreamFactory, ToyWorker
from .fault_proxy import FaultProxy

pytestmark = pytest.mark.kafka

GUARANTEES = ("at_least_once", "exactly_once")
START_S = 180.0


def under_both(new_stream: StreamFactory, broker: ApacheKafka, **kafka: Any) -> list[Stream]:
    """A stream for each guarantee: both live through the same fault."""
    return [new_stream(broker.bootstrap_servers, processing_guarantee=guarantee, **kafka) for guarantee in GUARANTEES]


def within(seconds: float, happened: Callable[[], object]) -> bool:
    """Wait until it has."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def in_work(streams: Sequence[Stream], workers: Sequence[ToyWorker], num_records: int) -> None:
    """Send to streams whose workers have joined; return when all have begun to answer and none can be through."""
    for worker in workers:
        worker.wait_ready()

    def begin(stream: Stream) -> int:
        stream.send([b"image"] * num_records)
        verdicts, letters = stream.answers(at_least=20)
        return len(verdicts) + len(letters)

    with ThreadPoolExecutor(len(streams)) as pool:
        for num_answered in pool.map(begin, streams):
            assert num_answered < num_records, "the work is done before the fault"


def keep_their_promise(streams: Sequence[Stream]) -> None:
    for stream in streams:
        repeats = stream.keeps_its_promise()
        print(f"{stream.settings.processing_guarantee}: {len(stream.sent)} records, 0 lost, {repeats} answered again")


def drained(workers: Sequence[ToyWorker]) -> None:
    """SIGTERM ends them in order."""
    for worker in workers:
        worker.process.send_signal(signal.SIGTERM)
    for worker in workers:
        assert worker.wait() == ExitCode.OK, "".join(worker.lines)


@contextlib.contextmanager
def under_load(stream: Stream) -> Iterator[None]:
    """Some hundred records a second, from a thread, until the end of the block."""
    stop = threading.Event()

    def load() -> None:
        while not stop.wait(0.1):
            stream.send([b"image"] * 30)

    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        try:
            yield
        finally:
            stop.set()
            loading.result()


class Owned:
    """A `Rebalance` that knows what is assigned."""

    def __init__(self) -> None:
        self.partitions: set[Partition] = set()

    def assigned(self, partitions: Any) -> None:
        self.partitions |= set(partitions)

    def revoked(self, partitions: Any) -> dict[Partition, int]:
        self.partitions -= set(partitions)
        return {}

    def lost(self, partitions: Any) -> None:
        self.partitions -= set(partitions)


def test_a_leader_takes_up_new_partitions_over_a_link_slower_than_its_polls(
    apache: ApacheKafka, links: list[FaultProxy], new_stream: StreamFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kafka-python 3.0.12 by itself forgets such a join: the member stays in no group, for ever and in silence."""
    monkeypatch.setattr(kafka_python, "KafkaConsumer", functools.partial(kafka_python.KafkaConsumer, metadata_max_age_ms=300))
    kafka = new_stream(apache.bootstrap_servers).settings
    member, owned = KafkaConsumer(kafka.model_copy(update={"bootstrap_servers": links[0].address}), is_tansu=False, max_poll_records=8), Owned()
    try:
        member.subscribe(kafka.frames_topic, owned)

        def owns(number: int) -> bool:
            member.poll(max_records=8, timeout_s=0.1)
            return len(owned.partitions) == number and member.joined

        assert within(60, lambda: owns(3))
        links[0].delay_s = 0.08  # in each direction: no answer comes within one poll
        admin = KafkaAdminClient(**kafka.client_options())
        admin.create_partitions({kafka.frames_topic: 5})
        admin.close()
        assert within(60, lambda: owns(5)), owned.partitions
    finally:
        member.close()


def test_a_producer_that_is_given_up_leaves_no_thread_behind(apache: ApacheKafka, new_stream: StreamFactory) -> None:
    """kafka-python 3.0.12 by itself goes on sending, with its connections, whenever close runs out of time."""
    kafka = new_stream(apache.bootstrap_servers).settings
    raw = RawRecord(kafka.frames_topic, 0, 0, 0, None, b"image", ())
    threads = set(threading.enumerate())
    producer = KafkaProducer(kafka)
    producer.send(kafka.verdicts_topic, OutRecord(b"s", b"before", ()), answers=raw, on_delivery=lambda: None)
    assert producer.flush(60.0)
    apache.freeze()
    try:
        producer.send(kafka.verdicts_topic, OutRecord(b"s", b"after", ()), answers=raw, on_delivery=lambda: None)
        producer.close(timeout_s=0.0)
        assert within(60, lambda: set(threading.enumerate()) <= threads), threading.enumerate()
    finally:
        apache.thaw()


def test_connections_cut_over_and_over_cost_nothing(apache: ApacheKafka, links: list[FaultProxy], new_stream: StreamFactory) -> None:
    streams = under_both(new_stream, apache)
    workers = [stream.start_worker(frame_ms=6.0, link=link) for stream, link in zip(streams, links, strict=False)]
    in_work(streams, workers, 1_000)
    cuts = []
    for _ in range(6):
        cuts += [link.cut() for link in links[:2]]
        time.sleep(0.7)
    assert all(cuts), "nothing was cut"
    keep_their_promise(streams)
    drained(workers)


def test_connections_that_fall_silent_cost_nothing(apache: ApacheKafka, links: list[FaultProxy], new_stream: StreamFactory) -> None:
    """Half-open in both directions, and towards the client only: then the broker has done what the client believes undone. Nobody hears an end, so a
    request must run out of its time (30 s)."""
    streams = [*under_both(new_stream, apache), *under_both(new_stream, apache)]
    workers = [stream.start_worker(frame_ms=10.0, link=link) for stream, link in zip(streams, links, strict=True)]
    in_work(streams, workers, 600)
    silenced = [links[0].silence(), links[1].silence(), links[2].silence("to_client"), links[3].silence("to_client")]
    assert all(silenced), silenced
    for stream in streams:
        stream.send([b"image"] * 50)
    keep_their_promise(streams)
    drained(workers)


def test_a_broker_frozen_for_longer_than_the_session_costs_nothing(apache: ApacheKafka, new_stream: StreamFactory) -> None:
    streams = under_both(new_stream, apache)
    workers = [stream.start_worker(frame_ms=3.0) for stream in streams]
    in_work(streams, workers, 1_500)
    apache.freeze()
    time.sleep(8.0)
    apache.thaw()
    keep_their_promise(streams)
    drained(workers)


def test_a_broker_killed_and_started_again_costs_nothing(kafka_home: Path, tmp_path: Path, new_stream: StreamFactory) -> None:
    """Its controller lives on, as in any cluster, and has given it up before it comes back. A node that is both makes Kafka 4.3.1 break its own
    promise: docs/guarantees.md."""
    sessions = {"broker.session.timeout.ms": "6000", "broker.heartbeat.interval.ms": "1000"}
    with (
        ApacheController(kafka_home, tmp_path / "controller", sessions) as controller,
        ApacheKafka(kafka_home, tmp_path / "broker", sessions, controller=controller) as broker,
    ):
        streams = under_both(new_stream, broker)
        workers = [stream.start_worker(frame_ms=3.0) for stream in streams]
        in_work(streams, workers, 1_500)
        broker.kill()
        time.sleep(8.0)
        broker.start()
        keep_their_promise(streams)
        drained(workers)


def test_a_member_that_wakes_after_its_partitions_went_on_adds_nothing(apache: ApacheKafka, new_stream: StreamFactory) -> None:
    """With exactly_once it wakes once with its transaction still open, refused by the generation of the group, and once after the broker ended it."""
    short = {"session_timeout_ms": 1_000, "commit_interval_ms": 900}
    streams = under_both(new_stream, apache, **short)
    streams.append(new_stream(apache.bootstrap_servers, processing_guarantee="exactly_once", transaction_timeout_ms=2_000, **short))
    zombies = [stream.start_worker(frame_ms=10.0) for stream in streams]
    in_work(streams, zombies, 1_000)
    for zombie in zombies:
        zombie.process.send_signal(signal.SIGSTOP)
    others = [stream.start_worker() for stream in streams]
    for other in others:
        other.wait_ready()
        assert within(START_S, lambda other=other: "partitions assigned" in "".join(other.lines)), "".join(other.lines)
    time.sleep(3.0)
    for zombie in zombies:
        zombie.process.send_signal(signal.SIGCONT)
    keep_their_promise(streams)
    drained([*zombies, *others])
    for zombie in zombies:
        assert "partitions lost" in "".join(zombie.lines), "".join(zombie.lines)
    for zombie in zombies[1:]:
        assert "beginning again at the committed offsets" in "".join(zombie.lines), "".join(zombie.lines)


def test_members_that_come_and_go_each_second_repeat_nothing(apache: ApacheKafka, new_stream: StreamFactory) -> None:
    stream = new_stream(apache.bootstrap_servers, processing_guarantee="exactly_once")
    members = [stream.start_worker(frame_ms=3.0)]
    in_work([stream], members, 1_000)
    for _ in range(8):
        members.append(stream.start_worker(frame_ms=3.0))
        stream.send([b"image"] * 150)
        time.sleep(1.0)
        if len(members) > 2:
            leaver = members.pop(0)
            leaver.wait_ready()
            leaver.process.send_signal(signal.SIGTERM)
    assert stream.keeps_its_promise() == 0
    for member in members:
        member.wait_ready()
        member.process.send_signal(signal.SIGTERM)
    for worker in stream.workers:
        assert worker.wait() == ExitCode.OK, "".join(worker.lines)
    given = sum("partitions assigned" in "".join(worker.lines) for worker in stream.workers)
    assert given >= 4, f"only {given} of {len(stream.workers)} members were given partitions"  # the last may come when the work is done


def test_a_rolling_restart_under_load_loses_and_repeats_nothing(apache: ApacheKafka, new_stream: StreamFactory) -> None:
    stream = new_stream(apache.bootstrap_servers, processing_guarantee="exactly_once")

    def start(number: int) -> ToyWorker:
        return stream.start_worker(frame_ms=2.0, transactional_id=f"{stream.settings.group_id}-{number}")

    members = [start(number) for number in range(3)]
    in_work([stream], members, 300)
    with under_load(stream):
        for number, member in enumerate(members):
            assert member.end(signal.SIGTERM) == ExitCode.OK, "".join(member.lines)
            members[number] = start(number)
            members[number].wait_ready()
    assert stream.keeps_its_promise() == 0
    drained(members)


def test_an_engine_slower_than_the_session_keeps_its_partitions(apache: ApacheKafka, new_stream: StreamFactory) -> None:
    streams = under_both(new_stream, apache, session_timeout_ms=1_000)
    workers = [stream.start_worker(frame_ms=400.0, environment={"FIFA_BATCH__MAX_FRAMES": "4"}) for stream in streams]
    for stream, worker in zip(streams, workers, strict=True):
        worker.wait_ready()
        stream.send([b"image"] * 20)
    for stream in streams:
        assert stream.keeps_its_promise() == 0
    drained(workers)
    for worker in workers:
        assert not [line for line in worker.lines if "partitions lost" in line or "commit not accepted" in line], "".join(worker.lines)


def test_an_engine_that_hangs_ends_its_process_and_the_next_member_answers(apache: ApacheKafka, new_stream: StreamFactory) -> None:
    streams = under_both(new_stream, apache)
    hanging = [stream.start_worker(frame_ms=1.0, hang_after=100, environment={"FIFA_RUNTIME__BATCH_TIMEOUT_S": "2"}) for stream in streams]
    for stream, worker in zip(streams, hanging, strict=True):
        worker.wait_ready()
        stream.send([b"image"] * 400)
    for worker in hanging:
        assert worker.wait() == ExitCode.STOPPED, "".join(worker.lines)
        (told,) = (line for line in worker.lines if "stopped: a batch of" in line)
        assert "takes longer than 2 s; nothing unanswered was committed" in told
        assert "in process" in "".join(worker.lines), "the stack of the engine's thread is shown"
    workers = [stream.start_worker() for stream in streams]
    keep_their_promise(streams)
    drained(workers)
