"""The loop against Apache Kafka: nothing is lost over five kills, repeats stay within what was in flight, and SIGTERM drains."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from bench import faults
from fifa_stream.exits import ExitCode
from fifa_stream.produce import Fenced, TransactionalProducer
from fifa_stream.records import OutRecord, RawRecord
from fifa_stream.serve import Clients
from fifa_stream.topic_reader import read_topic

from .apache_kafka import ApacheKafka
from .conftest import Client

pytestmark = pytest.mark.kafka

NUM_KILLS = 5


@pytest.fixture
def bootstrap_servers(apache: ApacheKafka) -> str:
    return apache.bootstrap_servers


def test_a_plaintext_client_learns_that_a_broker_does_not_speak_tls(bootstrap_servers: str) -> None:
    """In a process of its own: kafka-python 3.0.12 leaves the sockets of a failed handshake open."""
    settings = {"BOOTSTRAP_SERVERS": bootstrap_servers, "SECURITY_PROTOCOL": "SSL", "BOOTSTRAP_TIMEOUT_MS": "1000"}
    environment = {**os.environ, **{f"FIFA_KAFKA__{name}": value for name, value in settings.items()}}
    told = subprocess.run([sys.executable, "-m", "fifa_stream.cli", "topics", "create"], env=environment, capture_output=True, text=True, timeout=120)
    assert told.returncode == ExitCode.BROKER, told.stderr
    assert "tls: this port speaks Kafka without TLS" in told.stderr and told.stderr.count("\n") == 1


def test_every_record_ends_as_exactly_one_answer_and_sigterm_drains(
    bootstrap_servers: str, new_stream: Any, exactly_once_answered: Callable[[Any], tuple[int, int]]
) -> None:
    stream = new_stream(bootstrap_servers)
    worker = stream.start_worker(frame_ms=1.0)
    worker.wait_ready()
    stream.send([b"" if index % 50 == 7 else b"bad" if index % 50 == 3 else b"image" * 1000 for index in range(1_000)])
    stream.answers(at_least=100)
    assert worker.end(signal.SIGTERM) == 0, "".join(worker.lines)  # in the middle of its work
    stream.start_worker().wait_ready()
    assert exactly_once_answered(stream) == (960, 40)


@pytest.mark.parametrize("guarantee", faults.GUARANTEES)
def test_five_kills_lose_nothing_and_repeat_nothing_that_was_committed(apache: ApacheKafka, guarantee: str, client: Client) -> None:
    """The schedule of `make faults`, short. With exactly_once nothing is repeated at all."""
    tally = faults.run(apache, guarantee, kills=NUM_KILLS, records=1_000, seed=1, client=client)
    assert tally.keeps(guarantee), tally
    assert (tally.sent, dict(tally.others)) == (NUM_KILLS * 1_000, {})


def test_the_older_of_two_producers_under_one_transactional_id_is_told_and_nothing_of_it_is_seen(bootstrap_servers: str, new_stream: Any) -> None:
    stream = new_stream(bootstrap_servers)
    kafka = stream.settings.model_copy(update={"transactional_id": "pod-0", "processing_guarantee": "exactly_once"})
    raw = RawRecord(kafka.frames_topic, 0, 0, 0, None, b"image", ())
    open_producer = cast(Callable[[], TransactionalProducer], Clients().producers(kafka))
    older = open_producer()
    older.begin()
    newer = open_producer()
    try:
        with pytest.raises(Fenced, match=r"another process uses kafka\.transactional_id"):
            older.send(kafka.verdicts_topic, OutRecord(b"s", b"of the older", ()), answers=raw, on_delivery=lambda: None)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                older.poll()
                time.sleep(0.05)
    finally:
        older.close(timeout_s=0.0)
        newer.close(timeout_s=0.0)
    last = open_producer()
    last.begin()
    last.send(kafka.verdicts_topic, OutRecord(b"s", b"of the last", ()), answers=raw, on_delivery=lambda: None)
    assert last.flush(30.0)
    last.poll()
    last.commit({}, None)
    last.close(timeout_s=3.0)
    assert [record.value for record in read_topic(kafka, kafka.verdicts_topic)] == [b"of the last"]


def test_two_members_share_and_hand_over(bootstrap_servers: str, new_stream: Any) -> None:
    stream = new_stream(bootstrap_servers)
    first = stream.start_worker(frame_ms=1.0)
    first.wait_ready()
    stream.send([b"image"] * 500)
    second = stream.start_worker(frame_ms=1.0)
    second.wait_ready()
    stream.send([b"image"] * 500)
    stream.answers(at_least=700)
    assert first.end(signal.SIGTERM) == 0, "".join(first.lines)
    stream.send([b"image"] * 200)
    verdicts, _ = stream.answers()
    assert verdicts.keys() == stream.sent
    assert any("partitions assigned" in line for line in second.lines)
