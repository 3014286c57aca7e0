"""What a kill may make at-least-once repeat: answers beyond what was committed of the partitions that the victim had.

Each member notes its partitions in a file, which survives its end. Right after a kill, while nobody has taken the partitions over, the group is asked
what is committed and the verdicts topic how long it is; once all answers are read, those in between are the kill's bound. What else is repeated comes
of partitions that went from one live member to another, which are counted: each time what was sent and not yet acknowledged.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import kafka as kafka_python
from kafka import KafkaAdminClient, TopicPartition
from kafka.errors import RetriableError

from fifa_stream.config import KafkaSettings
from fifa_stream.consume import Partition, Rebalance

MOVES = ".moves"
"""Suffix of the file that counts."""
SETTLE_S = 0.1
"""What a dead process has left in its sockets is still taken in by the broker."""


class NotedRebalance:
    """Keeps a file with the numbers of the partitions that are owned, beside it one with a line for each time some were given up, and hands
    everything on."""

    def __init__(self, rebalance: Rebalance, path: Path) -> None:
        self._rebalance, self._path = rebalance, path
        self._owned: set[int] = set()

    def assigned(self, partitions: Iterable[Partition]) -> None:
        """More."""
        partitions = list(partitions)
        self._note(self._owned | {number for _, number in partitions})
        self._rebalance.assigned(partitions)

    def revoked(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        """Fewer, once their last commit is on its way."""
        partitions = list(partitions)
        positions = self._rebalance.revoked(partitions)
        self._note(self._owned - {number for _, number in partitions}, is_move=True)
        return positions

    def lost(self, partitions: Iterable[Partition]) -> None:
        """Fewer."""
        partitions = list(partitions)
        self._rebalance.lost(partitions)
        self._note(self._owned - {number for _, number in partitions}, is_move=True)

    def _note(self, owned: set[int], *, is_move: bool = False) -> None:
        self._owned = owned
        if is_move:
            with self._path.with_suffix(MOVES).open("a") as moves:
                moves.write("given up\n")
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(sorted(owned)))
        os.replace(part, self._path)


class Answer(NamedTuple):
    """One record of the verdicts topic: where it lies, and the input that it answers."""

    partition: int
    offset: int
    input_partition: int
    input_offset: int


@dataclass(frozen=True)
class Exposure:
    """At the moment of a kill."""

    committed: Mapping[int, int]
    """Next offset of each partition that the victim had; 0 where nothing is committed, or where it was asked too late to know."""
    ends: Mapping[int, int]
    """Of the partitions of the verdicts topic."""

    def of(self, answers: Iterable[Answer]) -> set[tuple[int, int]]:
        """Inputs (partition, offset) that were answered and not committed: whoever takes over answers them again."""
        return {
            (answer.input_partition, answer.input_offset)
            for answer in answers
            if answer.offset < self.ends.get(answer.partition, 0)
            and answer.input_partition in self.committed
            and answer.input_offset >= self.committed[answer.input_partition]
        }


class Witness:
    """Looks at a group and its verdicts from outside."""

    def __init__(self, kafka: KafkaSettings, num_partitions: int) -> None:
        self._kafka = kafka
        self._admin = KafkaAdminClient(**kafka.client_options())
        self._reader = kafka_python.KafkaConsumer(**kafka.client_options(), enable_auto_commit=False)
        self._verdicts = [TopicPartition(kafka.verdicts_topic, number) for number in range(num_partitions)]

    def look(self, owned: Path, *, within_s: float) -> Exposure:
        """Right after a kill; the members' file of partitions is taken away. Beyond `within_s` another member may have committed already."""
        began = time.monotonic()
        numbers: list[int] = json.loads(owned.read_text()) if owned.exists() else []
        owned.unlink(missing_ok=True)
        time.sleep(SETTLE_S)
        try:
            offsets: Mapping[Any, Any] = self._admin.list_group_offsets(self._kafka.group_id).get(self._kafka.group_id, {})
        except RetriableError:  # the cluster keeps no offsets yet
            offsets = {}
        is_late = time.monotonic() - began > within_s
        committed = {where.partition: max(0, offset.offset) for where, offset in offsets.items() if where.topic == self._kafka.frames_topic}
        ends = {where.partition: end for where, end in self._reader.end_offsets(self._verdicts).items()}
        return Exposure({number: 0 if is_late else committed.get(number, 0) for number in numbers}, ends)

    def close(self) -> None:
        """Disconnect."""
        self._admin.close()
        self._reader.close()


def num_moves(folder: Path) -> int:
    """How often members whose files are here gave up partitions."""
    return sum(len(path.read_text().splitlines()) for path in folder.glob(f"*{MOVES}"))


def bounds(answers: Sequence[Answer], exposures: Iterable[Exposure]) -> tuple[int, int]:
    """How many answers the kills may have repeated, and how many were repeated beyond that."""
    allowed = Counter[tuple[int, int]]()
    for exposure in exposures:
        allowed.update(exposure.of(answers))
    given = Counter((answer.input_partition, answer.input_offset) for answer in answers)
    return allowed.total(), sum(max(0, count - 1 - allowed[place]) for place, count in given.items())
