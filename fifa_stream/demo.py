"""`fifa-stream demo`: the whole path on one machine, with an embedded broker, a worker process, known frames, and expected beside got."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import kafka as kafka_python
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from engines.contracts import Label
from fifa_stream.analyze import image_files, printable, shown
from fifa_stream.cluster import create_topics
from fifa_stream.config import ENV_PREFIX, KafkaSettings
from fifa_stream.demo_photographs import DemoFrame, demo_frames
from fifa_stream.embedded import EmbeddedBroker
from fifa_stream.page import PageEntry, write_page
from fifa_stream.records import NoteCode, Verdict
from fifa_stream.send import frame_record

BANNER = "The embedded broker keeps everything in memory and loses it at the end: right for a demo, wrong for anything else."
TIMEOUT_S = 120.0
"""For all answers; the worker's start is part of it."""
AFTERGLOW_S = 0.5
"""How long to listen on when all are answered: a second answer to one record would show here."""
WORKER_STOP_S = 40.0
"""More than the worker's own drain timeout."""

WORKER = ("-m", "fifa_stream.cli", "run")

Place = tuple[int, int]
"""(partition, offset) in the frames topic."""


class DemoError(Exception):
    """The demo could not run to its end; the message says why."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What the dead-letter topic says of a record."""

    reason: str
    message: str


@dataclass(slots=True)
class Ledger:
    """Every frame sent and everything that came back for it."""

    frames: list[DemoFrame]
    places: dict[Place, int] = field(default_factory=dict)
    """Where the broker put each frame, to its number."""
    answers: dict[int, list[Verdict | DeadLetter]] = field(default_factory=dict)
    strangers: int = 0
    """Answers to records that were not sent."""

    def add(self, place: Place, answer: Verdict | DeadLetter) -> None:
        """File one answer."""
        if place in self.places:
            self.answers.setdefault(self.places[place], []).append(answer)
        else:
            self.strangers += 1

    @property
    def is_complete(self) -> bool:
        """Every frame has an answer."""
        return len(self.answers) == len(self.frames)

    def answer(self, number: int) -> Verdict | DeadLetter | None:
        """The one answer to a frame; None while there is none."""
        answers = self.answers.get(number)
        return answers[0] if answers else None

    def score(self, name: str) -> float | None:
        """Frame score of the frame with this name."""
        number = next((index for index, frame in enumerate(self.frames) if frame.name == name), None)
        answer = None if number is None else self.answer(number)
        return answer.fake_score if isinstance(answer, Verdict) else None

    def expected(self, number: int) -> str:
        """What should come back, in words."""
        frame = self.frames[number]
        if frame.kind == "manipulated":
            score = self.score(frame.twin or "")
            return f"above {frame.twin}" + ("" if score is None else f" ({score:.3f})")
        return {"untouched": "not fake", "no_face": "no face", "broken": "a dead letter", "own": "one answer"}[frame.kind]

    def is_as_expected(self, number: int) -> bool:
        """Exactly one answer, and the one that belongs to the frame's kind."""
        frame, answers = self.frames[number], self.answers.get(number, [])
        if len(answers) != 1:
            return False
        answer = answers[0]
        if isinstance(answer, DeadLetter):
            return frame.kind in ("broken", "own")
        if frame.kind == "untouched":
            return answer.fake_score is not None and answer.label is not Label.FAKE
        if frame.kind == "manipulated":
            twin = self.score(frame.twin or "")
            return answer.fake_score is not None and twin is not None and answer.fake_score > twin
        if frame.kind == "no_face":
            return not answer.all_faces and any(note.code is NoteCode.NO_FACE for note in answer.notes)
        return frame.kind == "own"

    @property
    def has_failed(self) -> bool:
        """Something was lost, answered twice, or came out otherwise than expected."""
        return self.strangers > 0 or not all(self.is_as_expected(number) for number in range(len(self.frames)))


def run_demo(frames: Path | None, out: Path, *, worker: Sequence[str] = WORKER) -> int:
    """Run the demo on its own frames, or on the images of a folder; write `out`/index.html and verdicts.jsonl; return the exit status.

    `worker` is what Python runs as the serving process, configured by FIFA_ variables.
    Raises EmbeddedBrokerError, BrokerError and DemoError when the machinery fails rather than a verdict.
    """
    console = Console()
    ledger = Ledger(demo_frames() if frames is None else own_frames(frames))
    out.mkdir(parents=True, exist_ok=True)
    console.print(BANNER, style="yellow")
    began = time.monotonic()
    with EmbeddedBroker() as broker:
        kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        create_topics(kafka, {kafka.frames_topic: 1, kafka.verdicts_topic: 1, kafka.dead_letters_topic: 1}, replication=1)
        with _worker(kafka, worker, out / "worker.log") as process:
            _send(kafka, ledger)
            with Live(_table(ledger), console=console, refresh_per_second=8) as live:
                for _ in _answers(kafka, ledger, process, out / "worker.log"):
                    live.update(_table(ledger))
                live.update(_table(ledger))
    lines = [answer.to_bytes() + b"\n" for number in range(len(ledger.frames)) for answer in _verdicts(ledger, number)]
    (out / "verdicts.jsonl").write_bytes(b"".join(lines))
    write_page(out / "index.html", _page_entries(ledger), title="FiFa-Stream demo", banner=_page_banner(frames is None))
    console.print(f"{len(ledger.frames)} frames in {time.monotonic() - began:.1f} s; the page: {out / 'index.html'}", highlight=False, soft_wrap=True)
    if ledger.has_failed:
        console.print(Text("Not as expected:", style="bold red"))
        console.print(_table(ledger, only_failures=True))
    return int(ledger.has_failed)


def own_frames(folder: Path) -> list[DemoFrame]:
    """The images below a folder, with no expectation but an answer each. Raises DemoError."""
    found = [path for path in image_files([folder]) if path != folder]
    if not found:
        raise DemoError(f"{folder} holds no JPEG, PNG or WebP file; give --frames a folder of images")
    try:
        return [DemoFrame(shown(path.relative_to(folder)), path.read_bytes(), "own") for path in found]
    except OSError as error:
        raise DemoError(f"{error.filename} cannot be read: {error.strerror}; mend or remove it") from None


@contextlib.contextmanager
def _worker(kafka: KafkaSettings, arguments: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The real program in a process of its own, stopped by SIGTERM as an orchestrator does. Raises DemoError when it does not drain."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    environment |= {f"{ENV_PREFIX}KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers, f"{ENV_PREFIX}RUNTIME__HEALTH_PORT": "0"}
    with log.open("wb") as handle:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the demo, which then ends the worker
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(WORKER_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if process.returncode != 0:
        raise DemoError(f"the worker ended with status {process.returncode} instead of draining; its last line: {_last_line(log)}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "none"


def _send(kafka: KafkaSettings, ledger: Ledger) -> None:
    """Send every frame and note where the broker put it."""
    records = [frame_record(frame.encoded, stream_id="demo", frame_index=number) for number, frame in enumerate(ledger.frames)]
    producer = kafka_python.KafkaProducer(
        **kafka.client_options(), acks="all", max_request_size=max(len(frame.encoded) for frame in ledger.frames) + (64 << 10)
    )
    try:
        futures = [producer.send(kafka.frames_topic, key=record.key, value=record.value, headers=list(record.headers)) for record in records]
        for number, future in enumerate(futures):
            metadata = future.get(timeout=30)
            ledger.places[metadata.partition, metadata.offset] = number
    finally:
        producer.close(timeout=3.0)


def _answers(kafka: KafkaSettings, ledger: Ledger, worker: subprocess.Popen[bytes], log: Path) -> Iterator[None]:
    """File answers as they arrive; yield after each poll that brought some. Ends by itself, whether or not all arrived."""
    topics = (kafka.verdicts_topic, kafka.dead_letters_topic)
    consumer = kafka_python.KafkaConsumer(**kafka.client_options(), auto_offset_reset="earliest", enable_auto_commit=False, group_id=None)
    try:
        consumer.assign([kafka_python.TopicPartition(topic, 0) for topic in topics])
        deadline = time.monotonic() + TIMEOUT_S
        is_complete = False
        while time.monotonic() < deadline:
            if not is_complete and ledger.is_complete:
                is_complete, deadline = True, time.monotonic() + AFTERGLOW_S
            if worker.poll() is not None:
                raise DemoError(f"the worker ended with status {worker.returncode} before all was answered; its last line: {_last_line(log)}")
            polled = consumer.poll(timeout_ms=100)
            for records in polled.values():
                for record in records:
                    if record.topic == kafka.verdicts_topic:
                        _file_verdict(ledger, record.value)
                    else:
                        _file_dead_letter(ledger, record.headers)
            if polled:
                yield
    finally:
        consumer.close()


def _file_verdict(ledger: Ledger, payload: bytes) -> None:
    verdict = Verdict.from_bytes(payload)
    if verdict.input is None:
        ledger.strangers += 1
    else:
        ledger.add((verdict.input.partition, verdict.input.offset), verdict)


def _file_dead_letter(ledger: Ledger, headers: Sequence[tuple[str, bytes]]) -> None:
    text = {name: value.decode("utf-8", "replace") for name, value in headers}
    ledger.add((int(text["dlq-partition"]), int(text["dlq-offset"])), DeadLetter(text["dlq-reason"], text["dlq-error"]))


def _verdicts(ledger: Ledger, number: int) -> list[Verdict]:
    return [answer for answer in ledger.answers.get(number, []) if isinstance(answer, Verdict)]


def got(answers: Sequence[Verdict | DeadLetter]) -> str:
    """What came back for one frame, in words."""
    if len(answers) != 1:
        return "nothing" if not answers else f"{len(answers)} answers"
    answer = answers[0]
    if isinstance(answer, DeadLetter):
        return f"dead letter: {answer.reason}"
    if not answer.all_faces:
        return "no face"
    return answer.label.value if answer.fake_score is None else f"{answer.label.value} ({answer.fake_score:.3f})"


def _table(ledger: Ledger, *, only_failures: bool = False) -> Table:
    table = Table("frame", "expected", "got", "ok", "explanation")
    for number, frame in enumerate(ledger.frames):
        answers = ledger.answers.get(number, [])
        is_good = ledger.is_as_expected(number)
        if only_failures and is_good:
            continue
        faces = [face for answer in answers if isinstance(answer, Verdict) for face in answer.all_faces]
        texts = [face.explanation.text for face in faces if face.explanation is not None]
        # A twin that is still missing is no failure yet.
        mark = Text("yes", style="green") if is_good else Text("NO", style="bold red") if only_failures or ledger.is_complete else Text("...")
        row = (frame.name, ledger.expected(number), got(answers) if answers or only_failures else "...")
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in row), mark, Text(printable(" ".join(texts)), overflow="fold"))
    return table


def _page_entries(ledger: Ledger) -> list[PageEntry]:
    entries = []
    for number, frame in enumerate(ledger.frames):
        answer = ledger.answer(number)
        outcome = answer if isinstance(answer, Verdict) else "no answer" if answer is None else f"{answer.reason}: {answer.message}"
        remark = f"Manipulated by this demo: {frame.place}." if frame.place else ""
        entries.append(PageEntry(frame.name, frame.encoded, outcome, remark, ledger.expected(number), ledger.is_as_expected(number)))
    return entries


def _page_banner(is_own_stills: bool) -> str:
    if not is_own_stills:
        return BANNER
    return (
        "Photographs: NASA (Eileen Collins, public domain), SpaceX (public domain), Stefan van der Walt (CC0), by way of scikit-image. "
        f"Frames called manipulated were made by this demo. {BANNER}"
    )
