"""The consumers of examples/ read what a worker writes, in Python and in Node.js."""

import functools
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fifa_stream.cluster import create_topics
from fifa_stream.config import KafkaSettings
from fifa_stream.produce import KafkaProducer
from fifa_stream.records import RawRecord, Verdict, parse_frame, verdict_record
from fifa_stream.testing import toy_result
from fifa_stream.topic_reader import read_topic

from .conftest import address_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NUM_FRAMES = 20
DEADLINE_S = 120.0


@pytest.fixture(scope="module", params=["embedded", pytest.param("apache", marks=pytest.mark.kafka)])
def answered(request: pytest.FixtureRequest) -> KafkaSettings:
    """A verdicts topic with what a worker writes, by the producer that it writes with."""
    kafka = KafkaSettings(bootstrap_servers=address_of(request.getfixturevalue(request.param)))
    create_topics(kafka, {kafka.verdicts_topic: 3}, replication=1)
    producer, acknowledged = KafkaProducer(kafka), list[int]()
    try:
        for number in range(NUM_FRAMES):
            raw = RawRecord(kafka.frames_topic, 0, number, 0, b"stream-%d" % (number % 7), b"image%d" % number, ())
            frame = parse_frame(raw, max_value_bytes=100)
            verdict = toy_result(frame)
            assert isinstance(verdict, Verdict)
            producer.send(
                kafka.verdicts_topic, verdict_record(verdict, frame), answers=raw, on_delivery=functools.partial(acknowledged.append, number)
            )
        deadline = time.monotonic() + DEADLINE_S
        while len(acknowledged) < NUM_FRAMES:
            assert time.monotonic() < deadline
            producer.poll()
    finally:
        producer.close(timeout_s=3.0)
    return kafka


def first_lines(command: Sequence[str | Path], folder: Path, count: int) -> list[str]:
    """What a program prints that never ends by itself; standard error is not looked at."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FIFA_")}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    deadline = threading.Timer(DEADLINE_S, process.kill)
    deadline.start()
    assert process.stdout is not None
    try:
        return list(itertools.islice(process.stdout, count))
    finally:
        deadline.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def expected(kafka: KafkaSettings) -> set[tuple[str, str, float | None]]:
    verdicts = [Verdict.from_bytes(raw.value or b"") for raw in read_topic(kafka, kafka.verdicts_topic)]
    assert len(verdicts) == NUM_FRAMES
    return {(verdict.id, verdict.label.value, verdict.fake_score) for verdict in verdicts}


def test_the_python_example_prints_every_verdict(answered: KafkaSettings) -> None:
    command = [sys.executable, EXAMPLES / "consumer.py", answered.bootstrap_servers, answered.verdicts_topic]
    lines = first_lines(command, EXAMPLES, NUM_FRAMES)
    found = (re.fullmatch(r"id='(.+)' label='(.+)' fake_score=(.+)\n", line) for line in lines)
    printed = {(match[1], match[2], None if match[3] == "None" else float(match[3])) for match in found if match}
    assert printed == expected(answered)


def test_the_node_example_prints_every_verdict(answered: KafkaSettings, npm_ci: Callable[[Path], Path]) -> None:
    folder = npm_ci(EXAMPLES)
    program = folder / "consumer.mjs"  # modules are looked for beside the program
    program.write_bytes((EXAMPLES / "consumer.mjs").read_bytes())
    lines = first_lines(["node", program, answered.bootstrap_servers, answered.verdicts_topic], folder, NUM_FRAMES)
    printed = {(row["id"], row["label"], row["fake_score"]) for row in map(json.loads, lines)}
    assert printed == expected(answered)


@pytest.mark.parametrize("name", ["examples", "tests/asyncapi"])
def test_a_lock_of_npm_names_no_host_and_has_every_digest(name: str) -> None:
    lock = (EXAMPLES.parent / name / "package-lock.json").read_text("utf-8")
    assert "://" not in lock, "npm config set omit-lockfile-registry-resolved true"
    packages = {name: package for name, package in json.loads(lock)["packages"].items() if name}
    assert packages and all(package["integrity"].startswith("sha512-") for package in packages.values())
