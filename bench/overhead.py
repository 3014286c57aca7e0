"""`make overhead`: what a record costs on Apache Kafka, with either client, beside a bare loop and Quix Streams, which write the same bytes.

20 KB frames; the engine is a no-op: no decoding, no detection, the smallest valid verdict. Every loop commits once a second. Each run is a process of
its own on a topic that is full already, timed from its first record to its last commit; the loops take turns, and the median of the rounds counts.
Needs KAFKA_HOME and Java.
"""

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import kafka as kafka_python
from kafka import OffsetAndMetadata, TopicPartition

from fifa_stream.cluster import create_topics
from fifa_stream.config import BatchSettings, KafkaSettings, LimitSettings, RuntimeSettings, Settings
from fifa_stream.engine_thread import Result
from fifa_stream.records import InputCoordinates, OutRecord, RawRecord, Verdict, parse_frame, verdict_record
from fifa_stream.runner import Runner
from fifa_stream.send import frame_record
from fifa_stream.serve import Clients, spare_the_collector
from fifa_stream.testing import ToyProcessor, toy_result
from tests.integration.apache_kafka import ApacheKafka

ROOT = Path(__file__).resolve().parent.parent
OURS = ("at_least_once", "exactly_once", "confluent_at_least_once", "confluent_exactly_once")
PEERS = ("quix_at_least_once", "quix_exactly_once")
LOOPS = ("bare", *OURS, *PEERS)
FRAME = os.urandom(20_000)
TOPIC, NUM_PARTITIONS = "overhead.frames", 3


def settings(bootstrap: str, loop: str, run: str) -> KafkaSettings:
    """Each run has a group and an output topic of its own."""
    return KafkaSettings(
        client="confluent-kafka" if loop.startswith("confluent") else "kafka-python",
        bootstrap_servers=bootstrap,
        group_id=run,
        frames_topic=TOPIC,
        verdicts_topic="overhead.verdicts",
        dead_letters_topic="overhead.dead-letters",
        processing_guarantee="exactly_once" if loop.endswith("exactly_once") else "at_least_once",
        compression="none",
    )


def the_answer() -> OutRecord:
    """What loops that judge nothing write."""
    raw = RawRecord(TOPIC, 0, 0, 0, b"stream-0", FRAME, ())
    frame = parse_frame(raw, max_value_bytes=1 << 20)
    result: Any = toy_result(frame)
    return verdict_record(result, frame)


def bare(kafka: KafkaSettings, count: int) -> float:
    """poll, send, and once a second flush and commit. The bytes of the answer are made once."""
    answer = the_answer()
    consumer = kafka_python.KafkaConsumer(
        TOPIC,
        **kafka.client_options(),
        group_id=kafka.group_id,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_poll_records=500,
        max_partition_fetch_bytes=4 << 20,
        fetch_max_bytes=16 << 20,
    )
    producer = kafka_python.KafkaProducer(**kafka.client_options(), acks="all", linger_ms=5, batch_size=256 << 10)
    seen, began, positions = 0, 0.0, {}
    next_commit = time.perf_counter() + 1

    def commit() -> None:
        producer.flush()
        consumer.commit({TopicPartition(TOPIC, partition): OffsetAndMetadata(position, "", -1) for partition, position in positions.items()})

    while seen < count:
        for records in consumer.poll(timeout_ms=100).values():
            began = began or time.perf_counter()
            for record in records:
                producer.send(kafka.verdicts_topic, key=answer.key, value=answer.value, headers=list(answer.headers))
                positions[record.partition] = record.offset + 1
                seen += 1
        if time.perf_counter() >= next_commit:
            commit()
            next_commit = time.perf_counter() + 1
    commit()
    return time.perf_counter() - began


class Counting(ToyProcessor):
    """The no-op engine; stops the loop when everything was seen. What depends on pixels was made once, their digest among it: all frames are one."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left, self.began = count, 0.0
        self.runner: Runner | None = None
        self._made: Verdict | None = None

    def process(self, frames: Any) -> list[Result]:
        """The smallest valid verdict of each frame."""
        self.began = self.began or time.perf_counter()
        if self._made is None:
            made = toy_result(frames[0])
            assert isinstance(made, Verdict)
            self._made = made
        results: list[Result] = [self._made.model_copy(update={"id": frame.raw.place, "input": InputCoordinates.of(frame)}) for frame in frames]
        self.left -= len(frames)
        if self.left <= 0 and self.runner is not None:
            self.runner.stop()
        return results


def ours(kafka: KafkaSettings, count: int) -> float:
    """The loop of `fifa-stream run`."""
    from fifa_stream.cluster import find_cluster

    tree = Settings(
        kafka=kafka,
        batch=BatchSettings(max_frames=250),
        limits=LimitSettings(max_in_flight_records=2_000),
        runtime=RuntimeSettings(health_port=0),
    )
    processor = Counting(count)
    clients = Clients()
    consumer = clients.consumer(kafka, find_cluster(kafka), 500)
    runner = Runner(tree, processor, consumer=consumer, open_producer=clients.producers(kafka))
    processor.runner = runner
    spare_the_collector()
    runner.run()
    return time.perf_counter() - processor.began


def quix_command(python: Path, loop: str, kafka: KafkaSettings, folder: Path) -> list[str]:
    """Of a run of Quix Streams; `--run` and `--records` are to be added."""
    answer, file = the_answer(), folder / "answer.json"
    headers = [(name, base64.b64encode(data).decode()) for name, data in answer.headers]
    file.write_text(json.dumps({"value": base64.b64encode(answer.value or b"").decode(), "headers": headers}))
    guarantee = loop.removeprefix("quix_").replace("_", "-")
    command = [str(python), str(ROOT / "bench" / "quix_peer.py"), "--bootstrap", kafka.bootstrap_servers, "--guarantee", guarantee]
    return [*command, "--frames", TOPIC, "--verdicts", kafka.verdicts_topic, "--answer", str(file)]


def why_no_peers(python: Path) -> str | None:
    """Why Quix Streams cannot be run, or None."""
    if not python.is_file():
        return f"{python} does not exist"
    done = subprocess.run([str(python), "-c", "import quixstreams"], capture_output=True, text=True, check=False)
    return done.stderr.splitlines()[-1] if done.returncode else None


def beside_quix(wall: dict[str, float]) -> str:
    """Both ratios."""
    once, exactly = (wall[f"confluent_{guarantee}"] / wall[f"quix_{guarantee}"] for guarantee in ("at_least_once", "exactly_once"))
    return f"at least once {once:.2f}, exactly once {exactly:.2f} (asked 1.25)"


def measured(command: Sequence[str]) -> Any:
    """What a run says. A consumer of kafka-python 3.0.12 that nobody helps may forget its join and wait for ever: the bare one gets another try."""
    for tries in range(3):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        except subprocess.TimeoutExpired:
            print(f"no answer within a minute, try {tries + 1}: {' '.join(command)}", file=sys.stderr)
        else:
            return json.loads(done.stdout.splitlines()[-1])
    raise SystemExit(f"{' '.join(command)} gave no answer in three tries")


def main() -> int:
    """Fill the topic, take turns, write the page."""
    parser = argparse.ArgumentParser(description="What a record costs.")
    parser.add_argument("--records", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench" / "overhead.md")
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers" / "bin" / "python", help="Python of an environment with Quix Streams")
    parser.add_argument("--loop", choices=("bare", *OURS), help=argparse.SUPPRESS)
    parser.add_argument("--bootstrap", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop:
        kafka = settings(options.bootstrap, options.loop, options.run)
        cpu = time.process_time()
        seconds = (bare if options.loop == "bare" else ours)(kafka, options.records)
        print(json.dumps({"wall": seconds, "cpu": time.process_time() - cpu}))
        sys.stdout.flush()
        os._exit(0)
    home = os.environ.get("KAFKA_HOME")
    if home is None:
        print("nothing was measured: it needs Apache Kafka; set KAFKA_HOME to its folder", file=sys.stderr)
        return 2
    no_peers = why_no_peers(options.peers)
    loops = [loop for loop in LOOPS if no_peers is None or loop not in PEERS]
    walls: dict[str, list[float]] = {loop: [] for loop in loops}
    cpus: dict[str, list[float]] = {loop: [] for loop in loops}
    with tempfile.TemporaryDirectory() as folder, ApacheKafka(Path(home), Path(folder)) as broker:
        kafka = settings(broker.bootstrap_servers, "bare", "fill")
        create_topics(kafka, {TOPIC: NUM_PARTITIONS, kafka.verdicts_topic: NUM_PARTITIONS, kafka.dead_letters_topic: 1}, replication=1)
        producer = kafka_python.KafkaProducer(**kafka.client_options(), batch_size=256 << 10, linger_ms=5)
        for number in range(options.records):
            record = frame_record(FRAME, stream_id=f"stream-{number % 30}", frame_index=number)
            producer.send(TOPIC, key=record.key, value=record.value, headers=list(record.headers))
            if number % 1_000 == 999:
                producer.flush()
        producer.close()
        for round_number in range(options.rounds):
            for loop in loops:
                command = [sys.executable, "-m", "bench.overhead", "--loop", loop, "--bootstrap", broker.bootstrap_servers]
                if loop in PEERS:
                    command = quix_command(options.peers, loop, kafka, Path(folder))
                command += ["--run", f"{loop}-{round_number}", "--records", str(options.records)]
                answer = measured(command)
                walls[loop].append(1e6 * answer["wall"] / options.records)
                cpus[loop].append(1e6 * answer["cpu"] / options.records)
                print(f"round {round_number}: {loop} {walls[loop][-1]:.0f} us", file=sys.stderr)
    wall = {loop: statistics.median(values) for loop, values in walls.items()}
    lines = [
        "# Cost of a record",
        "",
        f"`make overhead`, {date.today():%Y-%m-%d}: {options.records} frames of 20 KB, {NUM_PARTITIONS} partitions, one commit or transaction a "
        "second, broker on the same machine "
        f"({os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}); medians of {options.rounds} interleaved rounds.",
        "",
        "| loop | us a record | CPU us | range |",
        "|---|---|---|---|",
    ]
    for loop in loops:
        lines.append(f"| {loop} | {wall[loop]:.0f} | {statistics.median(cpus[loop]):.0f} | {min(walls[loop]):.0f}-{max(walls[loop]):.0f} |")
    lines += [
        "",
        f"At least once / bare: {wall['at_least_once'] / wall['bare']:.2f} (asked 1.25). Exactly once / at least once: "
        f"{wall['exactly_once'] / wall['at_least_once']:.2f} (asked 1.35).",
        f"On confluent-kafka / Quix Streams: {beside_quix(wall) if no_peers is None else f'not run: {no_peers}'}.",
        "",
    ]
    options.out.write_text("\n".join(lines))
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
