"""What metrics and traces cost a record: the no-op loop without either, with all metrics, and with traces of 1 % and of 100 % of the frames.

`python -m bench.telemetry_overhead` measures on the in-memory broker, where nothing but the loop runs; with `--kafka` on Apache Kafka as well (needs
KAFKA_HOME and Java). 20 KB frames; the engine is a no-op. All frames carry a `traceparent`, as those of a producer with parent-based sampling do: 1
in 100 says yes, in the last loop all do. Spans go by OTLP to a collector in a process of its own, which throws them away. Each run is a process of
its own; the loops take turns, and the median of the rounds counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kafka as kafka_python

from bench.overhead import FRAME, Counting
from fifa_stream.cluster import create_topics, find_cluster
from fifa_stream.config import BatchSettings, KafkaSettings, LimitSettings, RuntimeSettings, Settings, TelemetrySettings
from fifa_stream.consume import KafkaConsumer
from fifa_stream.records import OutRecord
from fifa_stream.runner import Runner
from fifa_stream.send import frame_record
from fifa_stream.serve import Clients, spare_the_collector
from fifa_stream.telemetry import Meter, Metric
from fifa_stream.testing import InlineWorker, MemoryBroker, MemoryConsumer, MemoryProducer
from fifa_stream.tracing import open_tracing
from tests.integration.apache_kafka import ApacheKafka

ROOT = Path(__file__).resolve().parent.parent
LOOPS = {
    "nothing": "neither metrics nor traces",
    "metrics": "all metrics",
    "traces_1": "all metrics, traces of 1 %",
    "traces_100": "all metrics, traces of 100 %",
}
BROKERS = {"memory": "in-memory broker", "kafka": "Apache Kafka"}
SAMPLED_OF_100 = {"nothing": 1, "metrics": 1, "traces_1": 1, "traces_100": 100}
NUM_PARTITIONS = 3


class Silent(Meter):
    """Measures nothing."""

    def add(self, metric: Metric, amount: float = 1, /, **labels: str) -> None:
        """Nothing."""

    def add_all(self, metric: Metric, amounts: Mapping[str, float]) -> None:
        """Nothing."""

    def set(self, metric: Metric, value: float, /, **labels: str) -> None:
        """Nothing."""

    def observe_all(self, metric: Metric, values: Iterable[float], /, **labels: str) -> None:
        """Nothing."""


class Unmeasured(Runner):
    """The loop without what it does for metrics alone."""

    def _count_acknowledged(self) -> None:
        self._acknowledged.clear()

    def _report(self) -> None:
        self._count_acknowledged()
        if not self._health.ready and self._consumer.joined:
            self._health.ready = True


def topic(loop: str) -> str:
    """Frames of which so many are traced."""
    return f"telemetry.frames-{SAMPLED_OF_100[loop]}"


def frames(loop: str, count: int) -> Iterator[OutRecord]:
    """As a producer sends them."""
    for number in range(count):
        record = frame_record(FRAME, stream_id=f"stream-{number % 30}", frame_index=number)
        flag = number % 100 < SAMPLED_OF_100[loop]
        yield record._replace(headers=(*record.headers, ("traceparent", f"00-{number + 1:032x}-{number + 1:016x}-{flag:02x}".encode())))


def settings(loop: str, bootstrap: str, run: str, endpoint: str) -> Settings:
    """Each run has a group of its own."""
    return Settings(
        kafka=KafkaSettings(
            bootstrap_servers=bootstrap,
            group_id=run,
            frames_topic=topic(loop),
            verdicts_topic="telemetry.verdicts",
            dead_letters_topic="telemetry.dead-letters",
            compression="none",
        ),
        batch=BatchSettings(max_frames=250),
        limits=LimitSettings(max_in_flight_records=2_000),
        runtime=RuntimeSettings(health_port=0),
        telemetry=TelemetrySettings(otlp_endpoint=endpoint if endpoint and loop.startswith("traces") else None),
    )


def run(loop: str, tree: Settings, count: int, *, on_kafka: bool) -> dict[str, float]:
    """One loop over all frames: seconds on the clock and on the processors, the exporter's among them."""
    processor = Counting(count)
    meter = Silent() if loop == "nothing" else Meter()
    tracing = open_tracing(tree.telemetry, group=tree.kafka.group_id, meter=meter)
    kind = Unmeasured if loop == "nothing" else Runner
    if on_kafka:
        consumer = KafkaConsumer(tree.kafka, is_tansu=find_cluster(tree.kafka).is_tansu, max_poll_records=500)
        runner = kind(tree, processor, consumer=consumer, open_producer=Clients().producers(tree.kafka), meter=meter, tracing=tracing)
    else:
        broker = MemoryBroker({tree.kafka.frames_topic: NUM_PARTITIONS, tree.kafka.verdicts_topic: NUM_PARTITIONS, tree.kafka.dead_letters_topic: 1})
        for record in frames(loop, count):
            broker.append(tree.kafka.frames_topic, record)
        runner = kind(
            tree,
            processor,
            consumer=MemoryConsumer(broker, tree.kafka.group_id),
            open_producer=lambda: MemoryProducer(broker),
            worker=InlineWorker,
            meter=meter,
            tracing=tracing,
        )
    processor.runner = runner
    spare_the_collector()
    cpu = time.process_time()
    runner.run()
    wall = time.perf_counter() - processor.began
    tracing.close()
    return {"wall": wall, "cpu": time.process_time() - cpu}


class Discard(BaseHTTPRequestHandler):
    """A collector that keeps nothing."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Take it."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@contextmanager
def collector() -> Iterator[str]:
    """A process that discards; gives its address."""
    process = subprocess.Popen([sys.executable, "-m", "bench.telemetry_overhead", "--collector"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def fill(bootstrap: str, count: int) -> None:
    """Both topics of frames."""
    for loop in ("traces_1", "traces_100"):
        kafka = settings(loop, bootstrap, "fill", "").kafka
        create_topics(kafka, {kafka.frames_topic: NUM_PARTITIONS, kafka.verdicts_topic: NUM_PARTITIONS, kafka.dead_letters_topic: 1}, replication=1)
        producer = kafka_python.KafkaProducer(**kafka.client_options(), batch_size=256 << 10, linger_ms=5)
        for number, record in enumerate(frames(loop, count)):
            producer.send(kafka.frames_topic, key=record.key, value=record.value, headers=list(record.headers))
            if number % 1_000 == 999:
                producer.flush()
        producer.close()


def measure(broker: str, bootstrap: str, endpoint: str, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """All rounds of one broker, in microseconds a record."""
    found: dict[str, list[dict[str, float]]] = {loop: [] for loop in LOOPS}
    for number in range(options.rounds):
        for loop in LOOPS:
            command = [sys.executable, "-m", "bench.telemetry_overhead", "--loop", loop, "--broker", broker, "--bootstrap", bootstrap]
            command += ["--run", f"{loop}-{number}", "--endpoint", endpoint, "--records", str(options.records)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            if done.returncode:
                raise RuntimeError(done.stderr)
            seconds = json.loads(done.stdout.splitlines()[-1])
            found[loop].append({name: 1e6 * value / options.records for name, value in seconds.items()})
            print(f"{broker}, round {number}: {loop} {found[loop][-1]['wall']:.0f} us", file=sys.stderr)
    return found


def table(broker: str, found: dict[str, list[dict[str, float]]]) -> list[str]:
    """Medians, ranges, and what each loop adds to the one without."""
    wall = {loop: statistics.median(one["wall"] for one in rounds) for loop, rounds in found.items()}
    lines = [f"## {BROKERS[broker][0].upper()}{BROKERS[broker][1:]}", "", "| loop | us a record | range | CPU us | added |", "|---|---|---|---|---|"]
    for loop, rounds in found.items():
        walls, cpu = [one["wall"] for one in rounds], statistics.median(one["cpu"] for one in rounds)
        added = f"{100 * (wall[loop] / wall['nothing'] - 1):.1f} %"
        lines.append(f"| {LOOPS[loop]} | {wall[loop]:.1f} | {min(walls):.1f}-{max(walls):.1f} | {cpu:.1f} | {added} |")
    return [*lines, ""]


def main() -> int:
    """Take turns, write the page."""
    parser = argparse.ArgumentParser(description="What metrics and traces cost a record.")
    parser.add_argument("--kafka", action="store_true", help="on Apache Kafka as well")
    parser.add_argument("--records", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench" / "telemetry.md")
    for name in ("--loop", "--broker", "--bootstrap", "--run", "--endpoint"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--collector", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.collector:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Discard)
        print(server.server_address[1], flush=True)
        server.serve_forever()
    if options.loop:
        tree = settings(options.loop, options.bootstrap, options.run, options.endpoint)
        print(json.dumps(run(options.loop, tree, options.records, on_kafka=options.broker == "kafka")))
        sys.stdout.flush()
        os._exit(0)
    home = os.environ.get("KAFKA_HOME")
    if options.kafka and home is None:
        print("nothing was measured: --kafka needs Apache Kafka; set KAFKA_HOME to its folder", file=sys.stderr)
        return 2
    with collector() as endpoint:
        lines = table("memory", measure("memory", "unused:9092", endpoint, options))
        if options.kafka:
            assert home is not None
            with tempfile.TemporaryDirectory() as folder, ApacheKafka(Path(home), Path(folder)) as broker:
                fill(broker.bootstrap_servers, options.records)
                lines += table("kafka", measure("kafka", broker.bootstrap_servers, endpoint, options))
    command = "python -m bench.telemetry_overhead" + (" --kafka" if options.kafka else "")
    head = [
        "# Cost of metrics and traces",
        "",
        f"`{command}`, {date.today():%Y-%m-%d}: {options.records} frames of 20 KB, no-op engine, collector and broker on the same machine "
        f"({os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}); medians of {options.rounds} interleaved rounds.",
        "",
    ]
    options.out.write_text("\n".join([*head, *lines]))
    print("\n".join([*head, *lines]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
