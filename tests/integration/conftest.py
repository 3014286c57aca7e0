"""Real brokers, and the real loop in a process of its own with a toy processor, so that it can be killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import kafka as kafka_python
import pytest

from fifa_stream.cluster import create_topics
from fifa_stream.config import KafkaSettings
from fifa_stream.records import Verdict
from fifa_stream.send import frame_record

Coordinates = tuple[str, int, int]
NUM_PARTITIONS = 3


class ToyWorker:
    """`python -m fifa_stream.testing worker`."""

    def __init__(self, settings: KafkaSettings, *, frame_ms: float) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FIFA_")}
        for name in ("bootstrap_servers", "group_id", "frames_topic", "verdicts_topic", "dead_letters_topic", "session_timeout_ms"):
            environment[f"FIFA_KAFKA__{name.upper()}"] = str(getattr(settings, name))
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fifa_stream.testing", "worker", "--frame-ms", str(frame_ms)],
            env=environment | {"FIFA_RUNTIME__HEALTH_PORT": "0", "FIFA_KAFKA__COMMIT_INTERVAL_MS": "200"},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.ready_after_s: float | None = None
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if "fifa_stream.runner: ready" in line:
                self.ready_after_s = time.monotonic() - self.began
                self._ready.set()
        self._ready.set()

    def wait_ready(self, timeout_s: float = 180.0) -> None:
        """Until the group has settled."""
        assert self._ready.wait(timeout_s) and self.ready_after_s is not None, "".join(self.lines)

    def end(self, number: signal.Signals) -> int:
        """Send a signal; return the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self, timeout_s: float = 180.0) -> int:
        """The exit status."""
        status = self.process.wait(timeout_s)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@dataclass
class Stream:
    """Frames sent and answers seen, on topics of its own."""

    settings: KafkaSettings
    sent: set[Coordinates] = field(default_factory=set)
    workers: list[ToyWorker] = field(default_factory=list)

    def start_worker(self, *, frame_ms: float = 0.0) -> ToyWorker:
        """One more member of the group."""
        self.workers.append(ToyWorker(self.settings, frame_ms=frame_ms))
        return self.workers[-1]

    def send(self, values: Sequence[bytes]) -> None:
        """Frames of seven streams, acknowledged."""
        producer = kafka_python.KafkaProducer(**self.settings.client_options(), batch_size=256 << 10, linger_ms=5)
        try:
            futures = []
            for index, value in enumerate(values):
                record = frame_record(value, stream_id=f"stream-{index % 7}", frame_index=index)
                futures.append(producer.send(self.settings.frames_topic, key=record.key, value=record.value, headers=list(record.headers)))
            self.sent |= {(done.topic, done.partition, done.offset) for done in (future.get(timeout=60) for future in futures)}
        finally:
            producer.close(timeout=10)

    def answers(self, *, at_least: int | None = None, timeout_s: float = 180.0) -> tuple[Counter[Coordinates], Counter[Coordinates]]:
        """How often each input was answered, by verdicts and by dead letters; waits until `at_least` inputs (all that were sent) have an answer."""
        wanted = len(self.sent) if at_least is None else at_least
        verdicts, letters = Counter[Coordinates](), Counter[Coordinates]()
        consumer = kafka_python.KafkaConsumer(
            self.settings.verdicts_topic,
            self.settings.dead_letters_topic,
            **self.settings.client_options(),
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        try:
            deadline = time.monotonic() + timeout_s
            is_last = False  # once all are seen one more empty poll looks for repeats
            while time.monotonic() < deadline:
                batches = consumer.poll(timeout_ms=500)
                for record in (record for records in batches.values() for record in records):
                    if record.topic == self.settings.verdicts_topic:
                        source = Verdict.from_bytes(record.value).input
                        assert source is not None
                        verdicts[source.topic, source.partition, source.offset] += 1
                    else:
                        headers = dict(record.headers)
                        letters[headers["dlq-topic"].decode(), int(headers["dlq-partition"]), int(headers["dlq-offset"])] += 1
                if is_last and not batches:
                    break
                is_last = len(verdicts.keys() | letters.keys()) >= wanted
        finally:
            consumer.close()
        return verdicts, letters


class StreamFactory(Protocol):
    """Makes streams on a broker."""

    def __call__(self, bootstrap_servers: str, *, session_timeout_ms: int = 3_000) -> Stream: ...


@pytest.fixture
def new_stream(request: pytest.FixtureRequest) -> Iterator[StreamFactory]:
    """Topics and a group of the test's own; its workers are ended with it."""
    streams: list[Stream] = []

    def make(bootstrap_servers: str, *, session_timeout_ms: int = 3_000) -> Stream:
        name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[:60] + f"-{len(streams)}"
        settings = KafkaSettings(
            bootstrap_servers=bootstrap_servers,
            group_id=name,
            frames_topic=f"{name}.frames",
            verdicts_topic=f"{name}.verdicts",
            dead_letters_topic=f"{name}.dead-letters",
            session_timeout_ms=session_timeout_ms,
        )
        create_topics(
            settings,
            {settings.frames_topic: NUM_PARTITIONS, settings.verdicts_topic: NUM_PARTITIONS, settings.dead_letters_topic: 1},
            replication=1,
        )
        streams.append(Stream(settings))
        return streams[-1]

    yield make
    for worker in (worker for stream in streams for worker in stream.workers):
        if worker.process.poll() is None:
            worker.end(signal.SIGKILL)


@pytest.fixture
def exactly_once_answered() -> Callable[[Stream], tuple[int, int]]:
    """Check that every input has exactly one answer; return the numbers of verdicts and dead letters."""

    def check(stream: Stream) -> tuple[int, int]:
        verdicts, letters = stream.answers()
        assert verdicts.keys() | letters.keys() == stream.sent
        assert not verdicts.keys() & letters.keys()
        assert set((verdicts + letters).values()) == {1}
        return len(verdicts), len(letters)

    return check
