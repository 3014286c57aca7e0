"""`make overhead`: what a record costs on Apache Kafka, beside a bare kafka-python loop that writes the same bytes.

20 KB frames; the engine is a no-op: no decoding, no detection, the smallest valid verdict. Every loop commits once a second. Each run is a process of
its own on a topic that is full already, timed from its first record to its last commit; the loops take turns, and the median of the rounds counts.
Needs KAFKA_HOME and Java.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import kafka as kafka_python
from kafka import OffsetAndMetadata, TopicPartition

from fifa_stream.cluster import create_topics
from fifa_stream.config import BatchSettings, KafkaSettings, LimitSettings, RuntimeSettings, Settings
from fifa_stream.consume import KafkaConsumer
from fifa_stream.records import InputCoordinates, RawRecord, Verdict, parse_frame, verdict_record
from fifa_stream.runner import Clients, Result, Runner, spare_the_collector
from fifa_stream.send import frame_record
from fifa_stream.testing import ToyProcessor, toy_result
from tests.integration.apache_kafka import ApacheKafka

ROOT = Path(__file__).resolve().parent.parent
LOOPS = ("bare", "at_least_once", "exactly_once")
FRAME = os.urandom(20_000)
TOPIC, NUM_PARTITIONS = "overhead.frames", 3


def settings(bootstrap: str, loop: str, run: str) -> KafkaSettings:
    """Each run has a group and an output topic of its own."""
    return KafkaSettings(
        bootstrap_servers=bootstrap,
        group_id=run,
        frames_topic=TOPIC,
        verdicts_topic="overhead.verdicts",
        dead_letters_topic="overhead.dead-letters",
        processing_guarantee="exactly_once" if loop == "exactly_once" else "at_least_once",
        compression="none",
    )


def bare(kafka: KafkaSettings, count: int) -> float:
    """poll, send, and once a second flush and commit. The bytes of the answer are made once."""
    raw = RawRecord(TOPIC, 0, 0, 0, b"stream-0", FRAME, ())
    frame = parse_frame(raw, max_value_bytes=1 << 20)
    result: Any = toy_result(frame)
    answer = verdict_record(result, frame)
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
        results: list[Result] = [
            self._made.model_copy(update={"id": frame.raw.place, "input": InputCoordinates.of(frame)}) for frame in frames
        ]
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
    consumer = KafkaConsumer(kafka, is_tansu=find_cluster(kafka).is_tansu, max_poll_records=500)
    runner = Runner(tree, processor, consumer=consumer, open_producer=clients.producers(kafka))
    processor.runner = runner
    spare_the_collector()
    runner.run()
    return time.perf_counter() - processor.began


def main() -> int:
    """Fill the topic, take turns, write the page."""
    parser = argparse.ArgumentParser(description="What a record costs.")
    parser.add_argument("--records", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench" / "overhead.md")
    parser.add_argument("--loop", choices=LOOPS, help=argparse.SUPPRESS)
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
        print("skipped: needs Apache Kafka; set KAFKA_HOME")
        return 0
    walls: dict[str, list[float]] = {loop: [] for loop in LOOPS}
    cpus: dict[str, list[float]] = {loop: [] for loop in LOOPS}
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
            for loop in LOOPS:
                command = [sys.executable, "-m", "bench.overhead", "--loop", loop, "--bootstrap", broker.bootstrap_servers]
                command += ["--run", f"{loop}-{round_number}", "--records", str(options.records)]
                answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout.splitlines()[-1])
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
    for loop in LOOPS:
        lines.append(f"| {loop} | {wall[loop]:.0f} | {statistics.median(cpus[loop]):.0f} | {min(walls[loop]):.0f}-{max(walls[loop]):.0f} |")
    lines += [
        "",
        f"At least once / bare: {wall['at_least_once'] / wall['bare']:.2f} (asked 1.25). Exactly once / at least once: "
        f"{wall['exactly_once'] / wall['at_least_once']:.2f} (asked 1.35).",
        "",
    ]
    options.out.write_text("\n".join(lines))
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
