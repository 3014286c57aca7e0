"""`make faults`: members are killed by SIGKILL over and over on Apache Kafka; what do readers see?

A seeded schedule: each round sends sequence-numbered records to a fleet of one to three members and kills one of them, in every second round at a
uniform time, else at a named point (`DyingClients`). Its replacement takes its name over, as a pod of a StatefulSet does. In the
end every answer is read with read_committed and held against what was sent, and what at-least-once repeats against what the victims had answered and
not committed (`bench.exposure`). Writes docs/bench/faults.md; `--client` has a page of its own.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal, cast, get_args

import kafka as kafka_python

from bench.exposure import Answer, Exposure, NotedRebalance, Witness, bounds, num_moves
from bench.told import told, undisturbed
from fifa_stream.cluster import Cluster
from fifa_stream.config import BatchSettings, KafkaSettings, LimitSettings, StreamSettings, load
from fifa_stream.consume import Consumer, Partition, Rebalance
from fifa_stream.produce import Producer
from fifa_stream.records import Verdict
from fifa_stream.runner import Outcome
from fifa_stream.send import frame_record
from fifa_stream.serve import Clients, serve
from fifa_stream.testing import ToyProcessor
from fifa_stream.topic_reader import read_topic
from fifa_stream.topics import create
from tests.integration.apache_kafka import ApacheKafka

ROOT = Path(__file__).resolve().parent.parent
COMMIT_INTERVAL_MS = 200
SESSION_TIMEOUT_MS = 1_000
MOVE_MAY_REPEAT = LimitSettings().max_in_flight_records + 2 * BatchSettings().max_frames
"""What a member may have in work when partitions go: its limit, and the poll that passed it."""
NUM_PARTITIONS = 6
NUM_STREAMS, FRAME_MS = 50, 300
GUARANTEES = ("exactly_once", "at_least_once")
Client = Literal["kafka-python", "confluent-kafka"]


class NotingClients(Clients):
    """Clients that keep a file with the partitions of this member."""

    def __init__(self, owned: Path) -> None:
        self._owned = owned

    def consumer(self, kafka: KafkaSettings, cluster: Cluster, max_poll_records: int) -> Consumer:
        """Notes what is assigned."""
        return cast(Consumer, _Noting(super().consumer(kafka, cluster, max_poll_records), self._owned))


class _Noting:
    """A consumer whose `Rebalance` is noted."""

    def __init__(self, consumer: Consumer, owned: Path) -> None:
        self._consumer, self._owned = consumer, owned

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consumer, name)

    def subscribe(self, topic: str, rebalance: Rebalance) -> None:
        """Between the client and whoever listens."""
        self._consumer.subscribe(topic, NotedRebalance(rebalance, self._owned))


class DyingClients(NotingClients):
    """Clients that end the process by SIGKILL at a named point, after it was passed a number of times.

    sent: an answer is with the producer. flushed: answers are acknowledged, the transaction is open. before-commit, after-commit: of offsets or of a
    transaction. revoke: partitions are about to go.
    """

    POINTS = ("sent", "flushed", "before-commit", "after-commit", "revoke")

    def __init__(self, owned: Path, point: str, times: int) -> None:
        super().__init__(owned)
        self._point, self._left = point, times

    def passed(self, point: str) -> None:
        """Die here?"""
        if point == self._point:
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def consumer(self, kafka: KafkaSettings, cluster: Cluster, max_poll_records: int) -> Consumer:
        """Dies around its commits and in its revocations."""
        return cast(Consumer, _Dying(super().consumer(kafka, cluster, max_poll_records), self))

    def producers(self, kafka: KafkaSettings) -> Callable[[], Producer]:
        """Die behind a send, a flush, and around their commits."""
        make = super().producers(kafka)
        return lambda: cast(Producer, _Dying(make(), self))


class _Dying:
    """A client with points of death between its calls."""

    def __init__(self, client: object, points: DyingClients) -> None:
        self._client, self._points = client, points

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        behind = {"send": "sent", "flush": "flushed", "commit": "after-commit"}.get(name)
        if name == "subscribe":
            return lambda topic, rebalance: value(topic, _DyingRebalance(rebalance, self._points))
        if behind is None:
            return value

        def call(*arguments: Any, **options: Any) -> Any:
            if name == "commit":
                self._points.passed("before-commit")
            result = value(*arguments, **options)
            self._points.passed(behind)
            return result

        return call


class _DyingRebalance:
    """Dies before partitions are given up."""

    def __init__(self, rebalance: Rebalance, points: DyingClients) -> None:
        self.assigned, self.lost = rebalance.assigned, rebalance.lost
        self._revoked, self._points = rebalance.revoked, points

    def revoked(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        """Maybe the last thing it hears."""
        self._points.passed("revoke")
        return self._revoked(partitions)


@dataclass
class Fleet:
    """Members by name; a replacement takes over the name."""

    kafka: KafkaSettings
    guarantee: str
    folder: Path
    remembers: bool = False
    """`streams.memory` is `topic`."""
    members: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def owned(self, name: str) -> Path:
        """Where a member notes its partitions."""
        return self.folder / f"{name}.json"

    def start(self, name: str, *die: str) -> None:
        """One member; `die` are its options --die-at and --die-after."""
        values = {
            "client": self.kafka.client,
            "bootstrap_servers": self.kafka.bootstrap_servers,
            "group_id": self.kafka.group_id,
            "frames_topic": self.kafka.frames_topic,
            "verdicts_topic": self.kafka.verdicts_topic,
            "dead_letters_topic": self.kafka.dead_letters_topic,
            "state_topic": self.kafka.state_topic,
            "session_timeout_ms": SESSION_TIMEOUT_MS,
            "processing_guarantee": self.guarantee,
            "commit_interval_ms": COMMIT_INTERVAL_MS,
        } | ({"transactional_id": name} if self.guarantee == "exactly_once" else {})
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FIFA_")}
        environment |= {f"FIFA_KAFKA__{key.upper()}": str(value) for key, value in values.items()} | {"FIFA_RUNTIME__HEALTH_PORT": "0"}
        environment |= {"FIFA_STREAMS__MEMORY": "topic"} if self.remembers else {}
        self.members[name] = subprocess.Popen(
            [sys.executable, "-m", "bench.faults", "--member", "--owned", str(self.owned(name)), *die],
            env=environment,
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill(self, name: str) -> None:
        """SIGKILL, whether or not it has died by itself."""
        process = self.members.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()


@dataclass
class Tally:
    """What came of a run."""

    kills: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    lost: int = 0
    repeated: int = 0
    foreign: int = 0
    """Answers to records that were never sent."""
    exposed: int = 0
    """Answers that victims had given and not committed: at least once, so many may be repeated."""
    beyond: int = 0
    """Answers repeated beyond that: by partitions that moved between live members."""
    moves: int = 0
    """How often members gave up partitions."""
    told_otherwise: int | None = None
    """Records of which an answer says something else of its stream than one undisturbed member does; None where nobody remembers."""
    seconds: float = 0.0
    others: Counter[str] = field(default_factory=Counter)
    """Members that ended otherwise than they were told to, by exit status."""

    def keeps(self, guarantee: str) -> bool:
        """Nothing lost or told otherwise; exactly once nothing repeated, at least once nothing that neither a kill nor a move explains."""
        unexplained = self.repeated if guarantee == "exactly_once" else self.beyond > self.moves * MOVE_MAY_REPEAT
        return not (self.lost or self.foreign or unexplained or self.told_otherwise)


def answers(kafka: KafkaSettings, wanted: int, timeout_s: float) -> tuple[Counter[int], list[Answer]]:
    """How often each sequence number was answered, as a read_committed reader sees it; and every answer."""
    seen, given = Counter[int](), list[Answer]()
    consumer = kafka_python.KafkaConsumer(
        kafka.verdicts_topic, **kafka.client_options(), auto_offset_reset="earliest", isolation_level="read_committed", max_poll_records=2_000
    )
    deadline, is_last = time.monotonic() + timeout_s, False
    while time.monotonic() < deadline:
        batches = consumer.poll(timeout_ms=1_000, max_records=2_000)
        for record in (record for records in batches.values() for record in records):
            source = Verdict.from_bytes(record.value).input
            assert source is not None and source.frame_index is not None
            seen[source.frame_index] += 1
            given.append(Answer(record.partition, record.offset, source.partition, source.offset))
        if is_last and not batches:
            break
        is_last = len(seen) >= wanted and not batches
    consumer.close()
    return seen, given


def run(
    broker: ApacheKafka, guarantee: str, *, kills: int, records: int, seed: int, client: Client = "kafka-python", remembers: bool = False
) -> Tally:
    """One schedule; `remembers`: members keep the memory of their streams in a topic."""
    schedule = random.Random(seed)
    name = f"faults-{client}-{guarantee.replace('_', '-')}-{seed}"
    kafka = KafkaSettings(
        client=client,
        bootstrap_servers=broker.bootstrap_servers,
        group_id=name,
        frames_topic=f"{name}.frames",
        verdicts_topic=f"{name}.verdicts",
        dead_letters_topic=f"{name}.dead-letters",
        state_topic=f"{name}.state",
    )
    create(kafka, partitions=NUM_PARTITIONS, has_state=remembers)
    producer = kafka_python.KafkaProducer(**kafka.client_options(), batch_size=256 << 10, linger_ms=5)
    folder = tempfile.TemporaryDirectory()
    fleet, tally, began = Fleet(kafka, guarantee, Path(folder.name), remembers), Tally(), time.monotonic()
    witness, exposures = Witness(kafka, NUM_PARTITIONS), list[Exposure]()

    def kill(member: str, point: str) -> None:
        fleet.kill(member)
        exposures.append(witness.look(fleet.owned(member), within_s=SESSION_TIMEOUT_MS / 1000 - 0.2))
        tally.kills[point] += 1

    points = [point for point in DyingClients.POINTS if guarantee == "exactly_once" or point != "flushed"]
    try:
        for round_number in range(kills):
            size = schedule.randint(1, 3)
            for number in range(3):
                member = f"{name}-{number}"
                process = fleet.members.get(member)
                if process is not None and (status := process.poll()) is not None:
                    tally.others[str(status)] += 1
                    del fleet.members[member]
                if number >= size and member in fleet.members:
                    fleet.members[member].terminate()
                    # One that is told to go before it has got to its handlers dies of the signal, and had nothing.
                    if (status := fleet.members.pop(member).wait(60)) not in (0, -signal.SIGTERM):
                        tally.others[f"drain: {status}"] += 1
                elif number < size and member not in fleet.members:
                    fleet.start(member)
            victim = f"{name}-{schedule.randrange(size)}"
            point = "uniform" if round_number % 2 else schedule.choice(points)
            if point != "uniform":
                kill(victim, "in between")
                passes = schedule.randint(0, 400) if point == "sent" else 0 if point == "revoke" else schedule.randint(0, 4)
                fleet.start(victim, "--die-at", point, "--die-after", str(passes))
            time.sleep(1.5)  # the interpreters start
            for _ in range(records):
                record = frame_record(b"face" if remembers else b"image", stream_id=f"stream-{tally.sent % NUM_STREAMS}", frame_index=tally.sent)
                shown = ("pts-ms", str(tally.sent // NUM_STREAMS * FRAME_MS).encode())
                producer.send(kafka.frames_topic, key=record.key, value=record.value, headers=[*record.headers, shown])
                tally.sent += 1
            producer.flush(timeout=60)
            if point == "revoke" and size < 3:  # a further member makes partitions move
                fleet.start(f"{name}-{size}")
            if point == "uniform":
                time.sleep(schedule.uniform(0, 2.5))
            else:
                deadline = time.monotonic() + 6
                while fleet.members[victim].poll() is None and time.monotonic() < deadline:
                    time.sleep(0.05)
                if fleet.members[victim].poll() is None:
                    point = f"uniform ({point} not met)"
            kill(victim, point)
            print(f"\r{guarantee}: kill {round_number + 1} of {kills} ({point}), {tally.sent} sent          ", end="", file=sys.stderr, flush=True)
        fleet.start(f"{name}-0") if f"{name}-0" not in fleet.members else None
        seen, given = answers(kafka, tally.sent, timeout_s=300)
        moves = num_moves(fleet.folder)
        if remembers:
            expected = undisturbed(kafka, StreamSettings())
            found = told(read_topic(kafka, kafka.verdicts_topic))
            tally.told_otherwise = sum(set(said) != set(expected[place]) for place, said in found.items())
    finally:
        producer.close(timeout=5)
        witness.close()
        for member in list(fleet.members):
            fleet.kill(member)
        folder.cleanup()
    tally.lost = len(set(range(tally.sent)) - seen.keys())
    tally.foreign = len(seen.keys() - set(range(tally.sent)))
    tally.repeated = sum(seen.values()) - len(seen)
    tally.exposed, tally.beyond = bounds(given, exposures)
    tally.moves = moves
    tally.seconds = time.monotonic() - began
    return tally


def page(tallies: dict[str, Tally], options: argparse.Namespace) -> str:
    """Markdown."""
    lines = [
        "# Kills",
        "",
        f"`make faults`, {date.today():%Y-%m-%d}: Apache Kafka on one machine, seed {options.seed}, {options.records} records a round, one to "
        f"three members on {options.client}, {NUM_PARTITIONS} partitions, commits every {COMMIT_INTERVAL_MS} ms. Counted as a read_committed reader "
        "sees it."
        + (
            f" `streams.memory` is `topic`, {NUM_STREAMS} streams; told otherwise: records of which an answer says something else of its stream than "
            "one member that keeps all in memory and is never disturbed."
            if options.memory
            else ""
        ),
        "",
        "| guarantee | kills | records | lost | repeated | by kills, of answered and not committed | by moves between live members | told otherwise "
        "| minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for guarantee, tally in tallies.items():
        kills = sum(tally.kills.values())
        by_kills = f"{tally.repeated - tally.beyond} of {tally.exposed}" if guarantee == "at_least_once" else "0"
        by_moves = f"{tally.beyond} in {tally.moves}"
        otherwise = "-" if tally.told_otherwise is None else tally.told_otherwise
        lines.append(
            f"| {guarantee} | {kills} | {tally.sent} | {tally.lost} | {tally.repeated} | {by_kills} | {by_moves} | {otherwise} | "
            f"{tally.seconds / 60:.1f} |"
        )
    lines += ["", "| died at | " + " | ".join(tallies) + " |", "|---" * (1 + len(tallies)) + "|"]
    for point in sorted({point for tally in tallies.values() for point in tally.kills}):
        lines.append(f"| {point} | " + " | ".join(str(tally.kills[point]) for tally in tallies.values()) + " |")
    ended = {guarantee: dict(tally.others) for guarantee, tally in tallies.items() if tally.others}
    lines += ["", f"Members that ended by themselves, by exit status: {ended or 'none'}.", ""]
    return "\n".join(lines)


def main() -> int:
    """Run both guarantees; 1 where the promise was broken."""
    parser = argparse.ArgumentParser(description="Kill members of a group over and over.")
    parser.add_argument("--kills", type=int, default=100, help="of each guarantee")
    parser.add_argument("--records", type=int, default=2_000, help="sent between kills")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--guarantee", choices=GUARANTEES, action="append")
    parser.add_argument("--client", choices=get_args(Client), default="kafka-python", help="kafka.client of the members")
    parser.add_argument("--memory", action="store_true", help="streams.memory is topic; answers are held against one member that nothing disturbs")
    parser.add_argument("--out", type=Path, help="default: docs/bench/faults.md, with confluent-kafka or --memory a page of its own")
    parser.add_argument("--member", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--owned", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--die-at", choices=DyingClients.POINTS, help=argparse.SUPPRESS)
    parser.add_argument("--die-after", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.member:
        clients = NotingClients(options.owned) if options.die_at is None else DyingClients(options.owned, options.die_at, options.die_after)
        return 0 if serve(load(), ToyProcessor, clients=clients) is Outcome.DRAINED else 75
    home = os.environ.get("KAFKA_HOME")
    if home is None:
        print("nothing was measured: it needs Apache Kafka; set KAFKA_HOME to its folder", file=sys.stderr)
        return 2
    tallies = {}
    with tempfile.TemporaryDirectory() as folder, ApacheKafka(Path(home), Path(folder)) as broker:
        for guarantee in options.guarantee or GUARANTEES:
            tallies[guarantee] = run(
                broker, guarantee, kills=options.kills, records=options.records, seed=options.seed, client=options.client, remembers=options.memory
            )
    text = page(tallies, options)
    name = "-".join(["faults", *([options.client] if options.client != "kafka-python" else []), *(["memory"] if options.memory else [])]) + ".md"
    (options.out or ROOT / "docs" / "bench" / name).write_text(text)
    print(text)
    return int(not all(tally.keeps(guarantee) for guarantee, tally in tallies.items()))


if __name__ == "__main__":
    sys.exit(main())
