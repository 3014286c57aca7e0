"""How far behind: of a member, out of what its own consumer and its commits know, and of a whole group, asked by a client that joins nothing.

Lag in records is the high watermark minus the committed offset. Lag in seconds is the age of the oldest record that is not committed, by the record's
timestamp and this machine's clock.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import kafka as kafka_python
from kafka import TopicPartition
from kafka.errors import KafkaError

from fifa_stream.cluster import BrokerError, find_cluster
from fifa_stream.config import KafkaSettings
from fifa_stream.consume import Consumer, Partition
from fifa_stream.offsets import OffsetTracker
from fifa_stream.telemetry import LAG_RECORDS, LAG_SECONDS, Meter

REPORT_EVERY_S = 5.0
READ_TIMEOUT_S = 10.0
POLL_S = 0.5


class LagReport:
    """Keeps the two gauges of one member; for the loop's thread."""

    def __init__(
        self,
        consumer: Consumer,
        offsets: OffsetTracker,
        meter: Meter,
        *,
        group: str,
        clock: Callable[[], float] = time.monotonic,
        unix_time_s: Callable[[], float] = time.time,
    ) -> None:
        """`clock` says when a report is due, `unix_time_s` is held against timestamps."""
        self._consumer, self._offsets, self._meter, self._group = consumer, offsets, meter, group
        self._clock, self._unix_time_s = clock, unix_time_s
        self._next = clock()

    def turn(self) -> None:
        """Every `REPORT_EVERY_S`: show the partitions of this member, and no longer those that went."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + REPORT_EVERY_S
        backlog, watermarks = self._offsets.backlog(), self._consumer.watermarks()
        records: dict[tuple[str, ...], float] = {}
        for (topic, number), mark in watermarks.items():
            waiting = backlog.get((topic, number))
            # Where all that came is committed, the position also lies behind the markers of transactions, which nobody will ever commit.
            begin = mark.position if waiting is None else waiting.offset
            records[self._group, topic, str(number)] = max(0, mark.end - begin)
        seconds: dict[tuple[str, ...], float] = {(self._group, topic): 0.0 for topic, _ in watermarks}
        for (topic, _), waiting in backlog.items():
            age_s = self._unix_time_s() - waiting.timestamp_ms / 1000 if waiting.timestamp_ms > 0 else 0.0  # -1: the record has none
            seconds[self._group, topic] = max(seconds.get((self._group, topic), 0.0), age_s)
        self._meter.set_all(LAG_RECORDS, records)
        self._meter.set_all(LAG_SECONDS, seconds)


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """One partition of a group."""

    partition: Partition
    committed: int | None
    """None: the group committed nothing here, and begins at the oldest record that is kept."""
    end: int
    """High watermark; with open transactions the end of what is decided."""
    records: int
    """Records kept from the committed offset to the end. Markers of transactions count as records."""
    oldest_ms: int | None
    """Timestamp of the first of them; None where there is none, it has no timestamp, or none came in time."""


def group_lag(kafka: KafkaSettings, *, timeout_s: float = READ_TIMEOUT_S) -> list[PartitionLag]:
    """Of every partition of the frames topic, in order. Reads one record of each that has a lag, joins no group and commits nothing.

    Raises BrokerError. Not to be trusted on Tansu, whose end offsets are those of its last batch.
    """
    find_cluster(kafka)
    try:
        consumer = kafka_python.KafkaConsumer(
            **kafka.client_options(),
            group_id=kafka.group_id,  # whose offsets are asked for; without `subscribe` nobody joins
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_partition_fetch_bytes=1,  # one batch is sent all the same
        )
        try:
            return _read(consumer, kafka, timeout_s)
        finally:
            consumer.close(timeout_ms=3_000)
    except KafkaError as error:
        raise BrokerError(
            f"the lag of group {kafka.group_id!r} cannot be read: {type(error).__name__}: {error}; check the kafka.* settings"
        ) from None


def _read(consumer: Any, kafka: KafkaSettings, timeout_s: float) -> list[PartitionLag]:
    known = consumer.partitions_for_topic(kafka.frames_topic)
    if not known:
        raise BrokerError(f"there is no topic {kafka.frames_topic!r}; name another, or make it with 'fifa-stream topics create'")
    partitions = [TopicPartition(kafka.frames_topic, number) for number in sorted(known)]
    consumer.assign(partitions)
    timeout_ms = round(timeout_s * 1000)
    ends, kept = consumer.end_offsets(partitions, timeout_ms=timeout_ms), consumer.beginning_offsets(partitions, timeout_ms=timeout_ms)
    committed = {partition: consumer.committed(partition, timeout_ms=timeout_ms) for partition in partitions}
    # What retention deleted is no longer waiting.
    begins = {partition: min(max(committed[partition] or 0, kept[partition]), ends[partition]) for partition in partitions}
    oldest_ms = _first_timestamps(consumer, {partition: begin for partition, begin in begins.items() if begin < ends[partition]}, timeout_s)
    return [
        PartitionLag(
            (partition.topic, partition.partition),
            committed[partition],
            ends[partition],
            ends[partition] - begins[partition],
            oldest if (oldest := oldest_ms.get(partition, -1)) >= 0 else None,
        )
        for partition in partitions
    ]


def _first_timestamps(consumer: Any, begins: dict[Any, int], timeout_s: float) -> dict[Any, int]:
    """Of the first record at or behind each offset."""
    consumer.assign(list(begins))
    for partition, begin in begins.items():
        consumer.seek(partition, begin)
    found: dict[Any, int] = {}
    deadline = time.monotonic() + timeout_s
    while (missing := begins.keys() - found.keys()) and time.monotonic() < deadline:
        for partition, records in consumer.poll(timeout_ms=round(POLL_S * 1000)).items():
            found.setdefault(partition, records[0].timestamp)
        if done := _seen_to_the_end(consumer, missing - found.keys()):
            begins = {partition: begin for partition, begin in begins.items() if partition not in done}
        consumer.pause(*(partition for partition in consumer.assignment() if partition in found or partition not in begins))
    return found


def _seen_to_the_end(consumer: Any, partitions: Iterable[Any]) -> set[Any]:
    """Those that hold nothing but markers of transactions from where they were read on."""
    ends = {partition: consumer.highwater(partition) for partition in partitions}
    return {partition for partition, end in ends.items() if end is not None and consumer.position(partition) >= end}
