"""What streams are remembered by, in Kafka: `kafka.state_topic`, compacted, its partitions those of the frames topic.

    key       group NUL stream id: a group's members share it, and groups beside each other do not overwrite each other's
    value     the bytes of `StreamState.dump`; null: forgotten
    headers   fifa-next-offset, fifa-timestamp-ms: as `Snapshot` has them

A snapshot stands for all records of its partition below some offset that is committed with it, or right after it (`fifa_stream.commit`). Who begins
at an offset therefore takes, of each stream, the snapshot with the highest next offset that is not above: one above was written and its offsets were
not committed, and what it stands for is answered again.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import kafka as kafka_python
from kafka import TopicPartition
from kafka.errors import KafkaError

from fifa_stream.cluster import BrokerError, admin_client
from fifa_stream.config import KafkaSettings
from fifa_stream.consume import raw_record
from fifa_stream.memory.partition import Snapshot
from fifa_stream.records import Headers, OutRecord, RawRecord
from fifa_stream.watchdog import Watchdog

logger = logging.getLogger(__name__)

OFFSET_HEADER, TIMESTAMP_HEADER = "fifa-next-offset", "fifa-timestamp-ms"
LATEST = -1
"""Asked for as a timestamp: where a partition ends."""
POLL_S = 0.5
POLL_RECORDS = 10_000
FETCH_BYTES = 16 << 20
"""Of one partition; a state topic is read by a client that lives for seconds."""
RETRY_FIRST_S = 0.5
"""Wait before the second try to read; doubled each time."""
SILENCE_S = 30.0
"""Longest time without a record before the end. On Apache Kafka an open transaction may stand there: its owner is dead, and the broker ends it within
kafka.transaction_timeout_ms, which is added."""


class Changelog(Protocol):
    """Where snapshots are read. They are written as answers are, by the committer."""

    def read(self, begins: Mapping[int, int]) -> dict[int, list[Snapshot]]:
        """What is remembered of the streams of each partition at the offset it begins at. Raises BrokerError."""
        ...


def snapshot_record(group: str, snapshot: Snapshot) -> OutRecord:
    """A snapshot on the wire."""
    headers: Headers = (
        (OFFSET_HEADER, str(snapshot.next_offset).encode()),
        (TIMESTAMP_HEADER, str(snapshot.timestamp_ms).encode()),
    )
    return OutRecord(_prefix(group) + snapshot.stream_id.encode(), snapshot.state, headers)


def _prefix(group: str) -> bytes:
    return group.encode() + b"\0"


class Restore:
    """Snapshots of one partition as they come, down to those that hold where it begins."""

    def __init__(self, group: str, begin: int) -> None:
        self._prefix, self._begin = _prefix(group), begin
        self._latest: dict[bytes, tuple[int, int, bytes | None]] = {}
        self._has_warned = False
        self.num_unreadable = 0

    def add(self, record: RawRecord) -> None:
        """Those of other groups, and those that stand for records that are still to come, are nothing to us."""
        key = record.key
        if key is None or not key.startswith(self._prefix):
            return
        try:
            (first, next_offset), (second, timestamp_ms) = record.headers
            if (first, second) != (OFFSET_HEADER, TIMESTAMP_HEADER):
                raise ValueError(f"headers {first}, {second}")
            found = int(next_offset), int(timestamp_ms), record.value
            key[len(self._prefix) :].decode()
        except ValueError as error:
            self.num_unreadable += 1
            if not self._has_warned:
                logger.warning("a snapshot is left out, and others may be that this line does not tell of: record=%s error=%s", record.place, error)
                self._has_warned = True
            return
        if found[0] > self._begin:
            return
        known = self._latest.get(key)
        if known is None or found[0] >= known[0]:
            self._latest[key] = found

    def snapshots(self) -> Iterator[Snapshot]:
        """One for each stream that is remembered."""
        for key, (next_offset, timestamp_ms, state) in self._latest.items():
            if state is not None:
                yield Snapshot(key[len(self._prefix) :].decode(), next_offset, timestamp_ms, state)


class KafkaChangelog:
    """`Changelog` on kafka-python, whatever `kafka.client` is. One client for each call."""

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        is_tansu: bool,
        watchdog: Watchdog,
        alive: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        """`alive` is called as often as something comes: reading many streams takes seconds."""
        self._kafka, self._is_tansu, self._alive, self._clock, self._pause = kafka, is_tansu, alive, clock, pause
        self._silence_s = SILENCE_S + kafka.transaction_timeout_ms / 1000
        self._limit: Callable[[], AbstractContextManager[None]] = lambda: watchdog.limit(
            f"a read of {kafka.state_topic}", self._silence_s + kafka.call_timeout_ms / 1000
        )

    def read(self, begins: Mapping[int, int]) -> dict[int, list[Snapshot]]:
        """Up to what is written by now, committed or not: what is not yet is waited for. A broker that is away is asked again for a while."""
        give_up_at, wait_s = self._clock() + SILENCE_S, RETRY_FIRST_S
        while True:
            try:
                return self._read(begins)
            except BrokerError as error:
                if self._clock() + wait_s > give_up_at:
                    raise
                logger.warning("trying again to restore streams: error=%s", error)
            self._alive()
            self._pause(wait_s)
            wait_s *= 2

    def _read(self, begins: Mapping[int, int]) -> dict[int, list[Snapshot]]:
        restores = {number: Restore(self._kafka.group_id, begin) for number, begin in begins.items()}
        try:
            for record in self._records(restores):
                restores[record.partition].add(record)
        except KafkaError as error:
            raise BrokerError(f"{self._kafka.state_topic} cannot be read: {type(error).__name__}: {error}; check the kafka.* settings") from None
        return {number: list(restore.snapshots()) for number, restore in restores.items()}

    def _records(self, numbers: Iterable[int]) -> Iterator[RawRecord]:
        partitions = [TopicPartition(self._kafka.state_topic, number) for number in numbers]
        with self._limit():
            ends = self._ends(partitions)
            consumer = kafka_python.KafkaConsumer(
                **self._kafka.client_options(),
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                max_poll_records=POLL_RECORDS,
                max_partition_fetch_bytes=FETCH_BYTES,
                fetch_max_bytes=4 * FETCH_BYTES,
            )
        try:
            consumer.assign(partitions)
            last, places = self._clock(), dict[Any, int]()
            while True:
                with self._limit():
                    batches = consumer.poll(timeout_ms=round(POLL_S * 1000))
                    before, places = places, {partition: consumer.position(partition) for partition in partitions}
                self._alive()
                for records in batches.values():
                    yield from map(raw_record, records)
                unfinished = [partition for partition in partitions if not self._is_finished(consumer, partition, places[partition], ends)]
                if not unfinished:
                    return
                if places != before:
                    last = self._clock()
                elif self._clock() - last > self._silence_s:
                    where = ", ".join(f"{partition.topic}/{partition.partition}/{places[partition]}" for partition in unfinished)
                    raise BrokerError(f"nothing came for {self._silence_s:g} s from {where}, which is not the end; look at the broker")
        finally:
            consumer.close(timeout_ms=3_000)

    def _ends(self, partitions: list[Any]) -> dict[Any, int]:
        """High watermarks, not where what is committed ends: a transaction whose offsets the group shows already may still be open here."""
        if self._is_tansu:  # what it says is wrong, but for what it says with fetched records
            return {}
        with admin_client(self._kafka) as admin:
            found = admin.list_partition_offsets(dict.fromkeys(partitions, LATEST))
        return {partition: found[partition].offset for partition in partitions}

    def _is_finished(self, consumer: Any, partition: Any, place: int, ends: dict[Any, int]) -> bool:
        if partition not in ends and (end := consumer.highwater(partition)) is not None:
            ends[partition] = end
        return partition in ends and place >= ends[partition]
