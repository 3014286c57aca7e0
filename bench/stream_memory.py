"""`python -m bench.stream_memory`: what it costs to remember 10,000 streams at once, beside the loop without a memory.

In memory: the whole loop on an in-memory broker with toy faces, in processes of their own, so that resident memory is that of one run; the memory of
streams by itself, a frame at a time. On Apache Kafka (KAFKA_HOME and Java): how long a member that takes over waits for 10,000 streams, each written
once, and for an hour of 25 snapshots a second, as between two compactions.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from engines import fict
from fifa_stream.config import BatchSettings, KafkaSettings, LimitSettings, RuntimeSettings, Settings, StreamSettings
from fifa_stream.engine_thread import Result
from fifa_stream.memory.changelog import KafkaChangelog, snapshot_record
from fifa_stream.memory.partition import PartitionMemory, Snapshot
from fifa_stream.memory.stream import MemoryLimits
from fifa_stream.produce import KafkaProducer
from fifa_stream.records import OutRecord, RawRecord, Verdict, parse_frame
from fifa_stream.runner import Runner
from fifa_stream.send import frame_record
from fifa_stream.serve import spare_the_collector
from fifa_stream.testing import (
    InlineWorker,
    MemoryBroker,
    MemoryChangelog,
    MemoryConsumer,
    MemoryProducer,
    ToyProcessor,
    toy_faces,
    toy_result,
)
from fifa_stream.topics import create
from fifa_stream.watchdog import Watchdog
from tests.integration.apache_kafka import ApacheKafka

ROOT = Path(__file__).resolve().parent.parent
NUM_STREAMS, NUM_PARTITIONS, FRAMES_OF_STREAM = 10_000, 3, 3
MAX_TRACKS = 16
SCORE_MS = 40
"""A face of the score path on two cores, as docs/bench/2026-11-29.md has it."""
ASKED_SHARE = 0.05
BYTES_OF_STREAM = 4 << 10
"""Stated: what a stream with one or two people may add to resident memory."""
FRAMES_A_SECOND = 25
"""What a worker that takes 40 ms a frame gives in an hour stands uncompacted in the state topic."""
LOOPS = ("off", "volatile", "topic")


def frames(count: int) -> Iterator[OutRecord]:
    """The streams in turn, with times of their own."""
    for number in range(count):
        key, value, headers = frame_record(b"face", stream_id=f"stream-{number % NUM_STREAMS}", frame_index=number // NUM_STREAMS)
        yield OutRecord(key, value, (*headers, ("pts-ms", str(number // NUM_STREAMS * 400).encode())))


class Counting(ToyProcessor):
    """Toy faces; stops the loop when everything was seen."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left, self.began = count, 0.0
        self.runner: Runner | None = None

    def process(self, frames: Any) -> list[Result]:
        """As the toy does."""
        self.began = self.began or time.perf_counter()
        results = super().process(frames)
        self.left -= len(frames)
        if self.left <= 0 and self.runner is not None:
            self.runner.stop()
        return results


def resident_bytes() -> int:
    """Of this process, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Forgetful(MemoryBroker):
    """Keeps what is read again, and of the rest how much there was."""

    def __init__(self, topics: dict[str, int], keep: Sequence[str]) -> None:
        super().__init__(topics)
        self._keep = keep
        self.num_bytes: dict[str, int] = {}

    def append(self, topic: str, record: OutRecord, *, partition: int | None = None, skip: int = 0) -> RawRecord:
        """Count, or keep."""
        self.num_bytes[topic] = self.num_bytes.get(topic, 0) + record.size
        if topic in self._keep:
            return super().append(topic, record, partition=partition, skip=skip)
        return RawRecord(topic, 0, 0, 0, record.key, None, ())


def loop(memory: str, count: int) -> dict[str, float]:
    """One run of the loop over all frames."""
    kafka = KafkaSettings(group_id="bench")
    topics = {
        kafka.frames_topic: NUM_PARTITIONS,
        kafka.verdicts_topic: NUM_PARTITIONS,
        kafka.dead_letters_topic: 1,
        kafka.state_topic: NUM_PARTITIONS,
    }
    broker = Forgetful(topics, (kafka.frames_topic,))
    for record in frames(count):
        broker.append(kafka.frames_topic, record)
    processor = Counting(count)
    runner = Runner(
        Settings(
            kafka=kafka,
            batch=BatchSettings(max_frames=250),
            limits=LimitSettings(max_in_flight_records=2_000),
            runtime=RuntimeSettings(health_port=0),
            streams=StreamSettings(memory=memory),  # type: ignore[arg-type]
        ),
        processor,
        consumer=MemoryConsumer(broker, kafka.group_id),
        open_producer=lambda: MemoryProducer(broker),
        worker=InlineWorker,
        changelog=MemoryChangelog(broker, kafka.state_topic, kafka.group_id) if memory == "topic" else None,
    )
    processor.runner = runner
    spare_the_collector()
    before, cpu = resident_bytes(), time.process_time()
    runner.run()
    return {
        "us": 1e6 * (time.perf_counter() - processor.began) / count,
        "cpu_us": 1e6 * (time.process_time() - cpu) / count,
        "bytes": float(resident_bytes() - before),
        "snapshot_bytes": float(broker.num_bytes.get(kafka.state_topic, 0)),
    }


def alone(count: int) -> dict[str, float]:
    """The memory of streams by itself: microseconds a frame, and what it adds to resident memory for each stream."""
    judged = []
    for offset, (key, value, headers) in enumerate(frames(count)):
        frame = parse_frame(RawRecord("frames", 0, offset, 1, key, value, headers), max_value_bytes=1 << 10)
        verdict = toy_result(frame)
        assert isinstance(verdict, Verdict)
        judged.append((frame, verdict))
    spare_the_collector()
    memory = PartitionMemory(MemoryLimits(), max_streams=NUM_STREAMS)
    before, durations = resident_bytes(), []
    for frame, verdict in judged:
        began = time.perf_counter()
        seen = memory.see(frame, verdict)
        assert seen is not None
        memory.keep(seen)
        durations.append(time.perf_counter() - began)
    after, began = resident_bytes(), time.perf_counter()
    snapshots = memory.take_snapshots()
    took_s = time.perf_counter() - began
    return {
        "us": 1e6 * statistics.median(durations),
        "p99_us": 1e6 * sorted(durations)[len(durations) * 99 // 100],
        "bytes": (after - before) / NUM_STREAMS,
        "state_bytes": statistics.mean(len(snapshot.state or b"") for snapshot in snapshots),
        "largest_bytes": float(max(len(snapshot.state or b"") for snapshot in snapshots)),
        "take_ms": 1e3 * took_s,
    }


def restores(home: Path) -> list[tuple[str, int, int, float]]:
    """What was written, snapshots, streams restored, seconds; all of it in one partition."""
    state = snapshots_of(NUM_STREAMS)
    found = []
    with tempfile.TemporaryDirectory() as folder, ApacheKafka(home, Path(folder)) as broker:
        for what, count in (("each stream once", NUM_STREAMS), (f"an hour of {FRAMES_A_SECOND} frames a second", FRAMES_A_SECOND * 3_600)):
            kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, group_id="bench", state_topic=f"state-{count}", compression="none")
            create(kafka, partitions=1, has_state=True)
            producer = KafkaProducer(kafka)
            for number in range(count):
                snapshot = Snapshot(f"stream-{number % NUM_STREAMS}", number + 1, 1, state[number % NUM_STREAMS])
                record = snapshot_record(kafka.group_id, snapshot)
                producer.send(kafka.state_topic, record, answers=RawRecord("frames", 0, number, 0, None, None, ()), on_delivery=int, partition=0)
                if number % 5_000 == 4_999:
                    assert producer.flush(60.0)
                    producer.poll()
            producer.flush(60.0)
            producer.close(5.0)
            began = time.perf_counter()
            restored = KafkaChangelog(kafka, is_tansu=False, watchdog=Watchdog()).read({0: count})
            found.append((what, count, len(restored[0]), time.perf_counter() - began))
    return found


def snapshots_of(count: int) -> list[bytes]:
    """States of as many streams, after a few frames each."""
    memory = PartitionMemory(MemoryLimits(), max_streams=count)
    for offset, (key, value, headers) in enumerate(frames(2 * count)):
        frame = parse_frame(RawRecord("frames", 0, offset, 1, key, value, headers), max_value_bytes=1 << 10)
        verdict = toy_result(frame)
        assert isinstance(verdict, Verdict)
        seen = memory.see(frame, verdict)
        assert seen is not None
        memory.keep(seen)
    return [snapshot.state or b"" for snapshot in memory.take_snapshots()]


def crowded() -> int:
    """Bytes of a stream with as many people as are remembered, each in the middle of a segment with all the evidence that is kept."""
    memory, size = PartitionMemory(MemoryLimits(max_tracks=MAX_TRACKS), max_streams=1), 0
    (face, *_) = max((toy_faces(name, 7) for name in map(str, range(100))), key=lambda faces: faces[0].fake_score)
    evidence = tuple(face.evidence[0].model_copy(update={"concept": concept}) for concept in list(fict.concepts())[:8])
    for number in range(30):
        key, value, headers = frame_record(b"face", stream_id="crowd", frame_index=number)
        raw = RawRecord("fifa.frames", 0, number, 1, key, value, (*headers, ("pts-ms", str(100 * number).encode())))
        frame = parse_frame(raw, max_value_bytes=1 << 10)
        verdict = toy_result(frame)
        assert isinstance(verdict, Verdict)
        people = [
            face.model_copy(update={"id": person, "box": (200.0 * person, 0.0, 200.0 * person + 100, 120.0), "evidence": evidence}).seen_as(
                bytes([person] * 32)
            )
            for person in range(MAX_TRACKS)
        ]
        seen = memory.see(frame, verdict.model_copy(update={"faces": tuple(people)}))
        assert seen is not None and seen.verdict.stream is not None and seen.verdict.stream.num_tracks == MAX_TRACKS
        memory.keep(seen)
        size = max(size, len(seen.snapshot.state or b""))
    return size


def in_process(*arguments: str) -> dict[str, float]:
    """A measurement in a process of its own."""
    command = [sys.executable, "-m", "bench.stream_memory", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> int:
    """Measure, write the page; 1 where what is asked is not kept."""
    parser = argparse.ArgumentParser(description="What it costs to remember streams.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench" / "stream-memory.md")
    parser.add_argument("--loop", choices=(*LOOPS, "alone"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    count = NUM_STREAMS * FRAMES_OF_STREAM
    if options.loop:
        print(json.dumps(alone(count) if options.loop == "alone" else loop(options.loop, count)))
        return 0
    rounds = [{name: in_process("--loop", name) for name in (*LOOPS, "alone")} for _ in range(options.rounds)]

    def median(name: str, what: str) -> float:
        return statistics.median(one[name][what] for one in rounds)

    added_us = {name: median(name, "cpu_us") - median("off", "cpu_us") for name in LOOPS}
    added_bytes = {name: (median(name, "bytes") - median("off", "bytes")) / NUM_STREAMS for name in LOOPS}
    share = added_us["topic"] / (1e3 * SCORE_MS)
    is_kept = share <= ASKED_SHARE and max(added_bytes["topic"], median("alone", "bytes")) <= BYTES_OF_STREAM
    per_frame = median("topic", "snapshot_bytes") / count
    lines = [
        "# Cost of remembering streams",
        "",
        f"`python -m bench.stream_memory`, {date.today():%Y-%m-%d}: {NUM_STREAMS} streams at once, {FRAMES_OF_STREAM} frames in turn with one or two "
        f"toy faces each, {NUM_PARTITIONS} partitions, in-memory broker; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} (above the cores "
        f"look at CPU time); medians of {options.rounds} processes.",
        "",
        "| `streams.memory` | us a frame | CPU us | added CPU us | of a face's score, 40 ms | resident bytes a stream |",
        "|---|---|---|---|---|---|",
    ]
    for name in LOOPS:
        cells = (f"{added_us[name]:.0f}", f"{added_us[name] / (10 * SCORE_MS):.2f} %", f"{added_bytes[name]:.0f}") if name != "off" else ("", "", "")
        lines.append(f"| {name} | {median(name, 'us'):.0f} | {median(name, 'cpu_us'):.0f} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Asked: at most {100 * ASKED_SHARE:g} % of the score path. Stated: at most {BYTES_OF_STREAM} bytes a stream of one or two people, "
        f"{BYTES_OF_STREAM * NUM_STREAMS >> 20} MiB for {NUM_STREAMS}. {'Both are kept.' if is_kept else 'NOT kept.'}",
        "",
        f"The memory by itself takes {median('alone', 'us'):.0f} us a frame (99th percentile {median('alone', 'p99_us'):.0f}) and "
        f"{median('alone', 'bytes'):.0f} resident bytes a stream, of which {median('alone', 'state_bytes'):.0f} are its state. The largest that was "
        f"made with `streams.max_tracks` {MAX_TRACKS} has {crowded()} bytes: as many people, each in the middle of a segment with all its evidence.",
        "",
        f"A commit writes one snapshot of each stream that moved since the one before: with `topic` {per_frame:.0f} bytes a frame, so "
        f"{per_frame * FRAMES_A_SECOND / 1e3:.0f} kB a second for a worker of {FRAMES_A_SECOND} frames a second, and "
        f"{per_frame * NUM_STREAMS / 1e6:.1f} MB where all {NUM_STREAMS} moved at once; these are taken in {median('alone', 'take_ms'):.0f} ms.",
        "",
    ]
    home = os.environ.get("KAFKA_HOME")
    if home is None:
        lines += ["Restores were not measured: they need Apache Kafka (KAFKA_HOME).", ""]
    else:
        lines += ["| written to one partition of Apache Kafka | snapshots | streams restored | seconds |", "|---|---|---|---|"]
        lines += [f"| {what} | {written} | {streams} | {seconds:.2f} |" for what, written, streams, seconds in restores(Path(home))]
        lines += ["", "The loop waits meanwhile; the client's thread keeps the membership, up to `kafka.max_poll_interval_ms`.", ""]
    options.out.write_text("\n".join(lines))
    print("\n".join(lines))
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
