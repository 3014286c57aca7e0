"""`make soak`: one worker on Apache Kafka at half of what it can do, for half an hour; does it stay as it was?

Measures what the worker can do, sends half of that at a steady rate, and every 10 s looks at the process (resident memory, open files, threads), at
its lag and at the time from send to verdict. Afterwards: memory grows by no more than 2 MiB an hour (Theil-Sen, from minute 5 on), files stay, the
slowest hundredth at the end is no slower than 1.2 times that at the start, and nothing is left behind. Writes docs/bench/soak.md.

The toy engine takes `--frame-ms` a frame; `--engine` runs the bundle that ships on the demo's photographs.
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import kafka as kafka_python
from kafka import KafkaAdminClient, TopicPartition
from scipy.stats import theilslopes

from fifa_stream.cluster import create_topics
from fifa_stream.config import KafkaSettings
from fifa_stream.records import Verdict
from fifa_stream.send import frame_record
from tests.integration.apache_kafka import ApacheKafka

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_S = 10.0
NUM_PARTITIONS = 3
NUM_STREAMS = 12
WARM_UP_S = 300.0
"""At most, and never more than a quarter of the run."""
WINDOW_S = 300.0
"""At either end, in which the slowest hundredth is looked for; never more than a quarter of the run."""
CALIBRATION_S = 8.0
"""A burst that takes at least this long says what the worker can do."""
MAX_SLOPE_MIB_H = 2.0
MAX_P99_RATIO = 1.2
MAX_MORE_FILES = 1
DRAIN_S = 120.0
PROPERTIES = {"log.retention.bytes": str(256 << 20), "log.segment.bytes": str(32 << 20), "log.retention.check.interval.ms": "30000"}


@dataclass(frozen=True)
class Sample:
    """One look."""

    at_s: float
    rss_mib: float
    num_files: int
    num_threads: int
    lag: int
    """Records sent and not committed."""
    latencies_s: tuple[float, ...]
    """From send to verdict, of the verdicts since the last look."""


class Worker:
    """The process under test."""

    def __init__(self, kafka: KafkaSettings, log: Path, *, frame_ms: float | None) -> None:
        """`frame_ms` of the toy; None for the real engine."""
        toy = ["fifa_stream.testing", "worker", "--frame-ms", str(frame_ms)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FIFA_")}
        environment |= {f"FIFA_KAFKA__{name.upper()}": str(value) for name, value in kafka.model_dump(exclude_defaults=True).items()}
        command = [sys.executable, "-m", *(toy if frame_ms is not None else ["fifa_stream.cli", "run"])]
        with log.open("w") as errors:
            self._process = subprocess.Popen(command, env=environment | {"FIFA_RUNTIME__HEALTH_PORT": "0"}, cwd=ROOT, stderr=errors)
        self._proc = Path(f"/proc/{self._process.pid}")

    def look(self) -> tuple[float, int, int]:
        """Resident MiB, open files, threads. Raises FileNotFoundError when it is gone."""
        pages = int((self._proc / "statm").read_text().split()[1])
        status = dict(line.split(":\t", 1) for line in (self._proc / "status").read_text().splitlines() if ":\t" in line)
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20), len(list((self._proc / "fd").iterdir())), int(status["Threads"])

    def end(self) -> int:
        """SIGTERM; the exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(DRAIN_S)

    def kill(self) -> None:
        """Whatever it does."""
        self._process.kill()
        self._process.wait()


class Traffic:
    """Frames to a worker at a steady rate, and its verdicts with the time each took."""

    def __init__(self, kafka: KafkaSettings, values: Sequence[bytes]) -> None:
        self._kafka, self._values = kafka, values
        self._producer = kafka_python.KafkaProducer(**kafka.client_options(), linger_ms=5, batch_size=256 << 10)
        self._sent_at: dict[int, float] = {}
        self._latencies: deque[float] = deque()
        self.num_sent = self.num_answered = 0
        self.last_answer_at = 0.0
        self._stop = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, count: int) -> None:
        """As fast as they go."""
        for _ in range(count):
            number = self.num_sent
            record = frame_record(self._values[number % len(self._values)], stream_id=f"stream-{number % NUM_STREAMS}", frame_index=number)
            self._sent_at[number] = time.monotonic()
            self._producer.send(self._kafka.frames_topic, key=record.key, value=record.value, headers=list(record.headers))
            self.num_sent += 1

    def send_at(self, rate: float, until: Callable[[], bool]) -> None:
        """Steadily, `rate` a second."""
        began, already = time.monotonic(), self.num_sent
        while not until():
            due = int((time.monotonic() - began) * rate) - (self.num_sent - already)
            self.send(max(0, due))
            time.sleep(0.02)

    def flush(self) -> None:
        """Everything is with the broker."""
        self._producer.flush(timeout=60)

    def take_latencies(self) -> tuple[float, ...]:
        """Of the verdicts since the last call."""
        return tuple(self._latencies.popleft() for _ in range(len(self._latencies)))

    def close(self) -> None:
        """Stop reading and disconnect."""
        self._stop.set()
        self._reader.join(10)
        self._producer.close(timeout=5)

    def _read(self) -> None:
        consumer = kafka_python.KafkaConsumer(self._kafka.verdicts_topic, **self._kafka.client_options(), auto_offset_reset="earliest")
        while not self._stop.is_set():
            for records in consumer.poll(timeout_ms=200).values():
                now = time.monotonic()
                for record in records:
                    source = Verdict.from_bytes(record.value).input
                    assert source is not None and source.frame_index is not None
                    if (sent_at := self._sent_at.pop(source.frame_index, None)) is not None:
                        self._latencies.append(now - sent_at)
                        self.num_answered += 1
                        self.last_answer_at = now
        consumer.close()


class Lag:
    """Records sent and not committed, as the cluster knows it."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._admin = KafkaAdminClient(**kafka.client_options())
        self._reader = kafka_python.KafkaConsumer(**kafka.client_options(), enable_auto_commit=False)
        self._frames = [TopicPartition(kafka.frames_topic, number) for number in range(NUM_PARTITIONS)]

    def look(self) -> int:
        """Now."""
        committed = self._admin.list_group_offsets(self._kafka.group_id).get(self._kafka.group_id, {})
        ends = self._reader.end_offsets(self._frames)
        return sum(end - (max(0, committed[where].offset) if where in committed else 0) for where, end in ends.items())

    def close(self) -> None:
        """Disconnect."""
        self._admin.close()
        self._reader.close()


@dataclass(frozen=True)
class Judgement:
    """What the samples say, against what is asked."""

    slope_mib_h: float
    slope_range_mib_h: tuple[float, float]
    """95 %, Theil-Sen."""
    files: tuple[float, float]
    """Median after the warm-up and at the end."""
    p99_s: tuple[float, float]
    """In the first window after the warm-up and in the last."""
    lag_at_end: int
    status: int
    """Of the worker, after SIGTERM."""

    @property
    def failures(self) -> list[str]:
        """What does not hold."""
        found = {
            f"memory grows by {self.slope_mib_h:.2f} MiB an hour, {MAX_SLOPE_MIB_H:g} are asked": self.slope_mib_h > MAX_SLOPE_MIB_H,
            f"open files went from {self.files[0]:g} to {self.files[1]:g}": self.files[1] - self.files[0] > MAX_MORE_FILES,
            f"the 99th percentile went from {self.p99_s[0]:.3f} to {self.p99_s[1]:.3f} s": self.p99_s[1] > MAX_P99_RATIO * self.p99_s[0],
            f"{self.lag_at_end} records are left behind": self.lag_at_end != 0,
            f"the worker ended with status {self.status}": self.status != 0,
        }
        return [text for text, is_so in found.items() if is_so]


def percentile(latencies_s: Sequence[float], percent: int) -> float:
    """Of some; not a number where there are none."""
    return statistics.quantiles(latencies_s, n=100, method="inclusive")[percent - 1] if len(latencies_s) > 1 else float("nan")


def judge(samples: Sequence[Sample], *, lag_at_end: int, status: int) -> Judgement:
    """The first window begins where the warm-up ends."""
    total_s = samples[-1].at_s
    warm_s, window_s = min(WARM_UP_S, total_s / 4), min(WINDOW_S, total_s / 4)
    steady = [sample for sample in samples if sample.at_s >= warm_s]
    first = [sample for sample in steady if sample.at_s <= warm_s + window_s]
    last = [sample for sample in steady if sample.at_s >= total_s - window_s]
    slope, _, low, high = theilslopes([sample.rss_mib for sample in steady], [sample.at_s / 3600 for sample in steady], alpha=0.95)
    return Judgement(
        slope_mib_h=float(slope),
        slope_range_mib_h=(float(low), float(high)),
        files=(statistics.median(sample.num_files for sample in first), statistics.median(sample.num_files for sample in last)),
        p99_s=(
            percentile([latency for sample in first for latency in sample.latencies_s], 99),
            percentile([latency for sample in last for latency in sample.latencies_s], 99),
        ),
        lag_at_end=lag_at_end,
        status=status,
    )


@dataclass
class Run:
    """A soak in progress."""

    capacity: float = 0.0
    """Records a second."""
    rate: float = 0.0
    samples: list[Sample] = field(default_factory=list)


def wait_for(happened: Callable[[], bool], seconds: float, what: str) -> None:
    """Until it has; raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.1)


def capacity(traffic: Traffic) -> float:
    """Records a second out of a burst that keeps the worker busy for `CALIBRATION_S`."""
    count = 64
    while True:
        answered, began = traffic.num_answered, time.monotonic()
        traffic.send(count)
        traffic.flush()
        wait_for(lambda: traffic.num_answered == answered + count, 600, "the burst's last verdict")  # noqa: B023 (called at once)
        took_s = traffic.last_answer_at - began
        if took_s >= CALIBRATION_S:
            traffic.take_latencies()
            return count / took_s
        count = int(count * max(2.0, 1.3 * CALIBRATION_S / max(took_s, 0.1)))


@contextmanager
def broker(options: argparse.Namespace) -> Iterator[tuple[KafkaSettings, Path]]:
    """Apache Kafka that keeps little, with the topics."""
    with tempfile.TemporaryDirectory() as name, ApacheKafka(Path(os.environ["KAFKA_HOME"]), Path(name), PROPERTIES) as running:
        kafka = KafkaSettings(bootstrap_servers=running.bootstrap_servers, group_id="soak", processing_guarantee=options.guarantee)
        create_topics(kafka, {kafka.frames_topic: NUM_PARTITIONS, kafka.verdicts_topic: NUM_PARTITIONS, kafka.dead_letters_topic: 1}, replication=1)
        yield kafka, Path(name)


def soak(options: argparse.Namespace) -> tuple[Run, Judgement]:
    """Half an hour, or as long as was asked."""
    photographs = sorted((ROOT / "fifa_stream" / "demo_frames").glob("*.jpg"))
    values = [path.read_bytes() for path in photographs] if options.engine else [random.Random(number).randbytes(20_000) for number in range(16)]
    with broker(options) as (kafka, folder):
        worker = Worker(kafka, folder / "worker.log", frame_ms=None if options.engine else options.frame_ms)
        traffic, lag = Traffic(kafka, values), Lag(kafka)
        try:
            run = Run(capacity=capacity(traffic))
            run.rate = run.capacity * options.load
            print(f"{run.capacity:.1f} records a second at most, {run.rate:.1f} are sent", file=sys.stderr, flush=True)
            stop = threading.Event()
            sender = threading.Thread(target=traffic.send_at, args=(run.rate, stop.is_set), daemon=True)
            sender.start()
            began = time.monotonic()
            while (passed_s := time.monotonic() - began) < options.minutes * 60:
                time.sleep(min(SAMPLE_S, max(0.1, options.minutes * 60 - passed_s)))
                sample = Sample(time.monotonic() - began, *worker.look(), lag.look(), traffic.take_latencies())
                run.samples.append(sample)
                told = f"{sample.at_s:.0f} s: {sample.rss_mib:.1f} MiB, {sample.num_files} files, {sample.num_threads} threads, lag {sample.lag}"
                print(f"{told}, p99 {percentile(sample.latencies_s, 99):.3f} s", file=sys.stderr, flush=True)
            stop.set()
            sender.join()
            traffic.flush()
            wait_for(lambda: traffic.num_answered == traffic.num_sent, DRAIN_S, "the last verdict")
            status = worker.end()
            return run, judge(run.samples, lag_at_end=lag.look(), status=status)
        except BaseException:
            print((folder / "worker.log").read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            worker.kill()
            traffic.close()
            lag.close()


def page(run: Run, judgement: Judgement, options: argparse.Namespace) -> str:
    """Markdown."""
    low, high = judgement.slope_range_mib_h
    engine = "the engine that ships, on photographs" if options.engine else f"a toy engine of {options.frame_ms:g} ms a frame, 20 KB frames"
    load = f"{run.rate:.1f} records a second ({options.load:g} of the {run.capacity:.1f} that it can do)"
    slope = f"{judgement.slope_mib_h:.2f} ({low:.2f} to {high:.2f})"
    lines = [
        "# Soak",
        "",
        f"`make soak`, {date.today():%Y-%m-%d}: {options.minutes:g} minutes, {engine}, {options.guarantee.replace('_', ' ')}, {load}, "
        "Apache Kafka on the same machine.",
        "",
        "| what | measured | asked |",
        "|---|---|---|",
        f"| growth of resident memory, MiB an hour (95 % of Theil-Sen) | {slope} | <= {MAX_SLOPE_MIB_H:g} |",
        f"| open files, after the warm-up / at the end | {judgement.files[0]:g} / {judgement.files[1]:g} | the same |",
        f"| send to verdict, p99 in s, first / last window | {judgement.p99_s[0]:.3f} / {judgement.p99_s[1]:.3f} | <= {MAX_P99_RATIO:g} times |",
        f"| records not committed at the end | {judgement.lag_at_end} | 0 |",
        f"| exit status after SIGTERM | {judgement.status} | 0 |",
        "",
        f"Not held: {'; '.join(judgement.failures) or 'none'}.",
        "",
        "| minute | MiB | files | threads | lag | p50, s | p99, s |",
        "|---|---|---|---|---|---|---|",
    ]
    step = max(1, len(run.samples) // 30)
    for sample in run.samples[step - 1 :: step]:
        p50, p99 = (percentile(sample.latencies_s, percent) for percent in (50, 99))
        figures = f"{sample.rss_mib:.1f} | {sample.num_files} | {sample.num_threads} | {sample.lag} | {p50:.3f} | {p99:.3f}"
        lines.append(f"| {sample.at_s / 60:.1f} | {figures} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Soak; 1 where something does not hold."""
    parser = argparse.ArgumentParser(description="One worker at half of its load, for a long time.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--load", type=float, default=0.5, help="part of what the worker can do")
    parser.add_argument("--frame-ms", type=float, default=15.0, help="milliseconds a frame takes the toy engine")
    parser.add_argument("--engine", action="store_true", help="the engine that ships instead of the toy")
    parser.add_argument("--guarantee", choices=("at_least_once", "exactly_once"), default="at_least_once")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench" / "soak.md")
    options = parser.parse_args()
    if "KAFKA_HOME" not in os.environ:
        print("nothing was measured: it needs Apache Kafka; set KAFKA_HOME to its folder", file=sys.stderr)
        return 2
    run, judgement = soak(options)
    text = page(run, judgement, options)
    options.out.write_text(text)
    print(text)
    return int(bool(judgement.failures))


if __name__ == "__main__":
    sys.exit(main())
