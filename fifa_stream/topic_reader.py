"""A topic read from a place to where it ended at the time of the call, without a group: for tools that look at topics or send them again."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import kafka as kafka_python
from kafka import TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from fifa_stream.cluster import BrokerError, find_cluster
from fifa_stream.config import KafkaSettings
from fifa_stream.consume import raw_record
from fifa_stream.records import RawRecord

IDLE_TIMEOUT_S = 30.0
"""Longest silence before the end is reached. An open transaction is no reason: on Apache Kafka the end lies before it."""
POLL_S = 0.5
LOOKUP_TIMEOUT_S = 10.0
"""Longest wait for a single record."""


@dataclass(frozen=True, slots=True)
class Span:
    """Which part of a topic; all of it unless told otherwise."""

    partition: int | None = None
    offset: int | None = None
    """Where to begin, in every partition that is read."""
    since_ms: int | None = None
    """Unix time: records with an older timestamp are left out."""


def read_topic(kafka: KafkaSettings, topic: str, span: Span | None = None, *, idle_timeout_s: float = IDLE_TIMEOUT_S) -> Iterator[RawRecord]:
    """Committed records, in order within each partition, up to the end at the time of the first `next`; one client, closed with the iterator.

    Raises BrokerError: no broker, no such topic or partition, or silence before the end.
    """
    span = span or Span()
    is_tansu = find_cluster(kafka).is_tansu
    try:
        consumer = kafka_python.KafkaConsumer(
            **kafka.client_options(),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_partition_fetch_bytes=kafka.max_partition_fetch_bytes,
            fetch_max_bytes=4 * kafka.max_partition_fetch_bytes,
        )
        try:
            yield from _read(consumer, topic, span, is_tansu=is_tansu, idle_timeout_s=idle_timeout_s)
        finally:
            consumer.close(timeout_ms=3_000)
    except KafkaError as error:
        raise BrokerError(f"topic {topic!r} cannot be read: {type(error).__name__}: {error}; check the kafka.* settings") from None


class TopicLookup:
    """Single records of a topic by where they lie: one client, made with the first and held open. Threads take turns."""

    def __init__(self, kafka: KafkaSettings, topic: str, *, timeout_s: float = LOOKUP_TIMEOUT_S) -> None:
        self._kafka, self._topic, self._timeout_s = kafka, topic, timeout_s
        self._lock = threading.Lock()
        self._consumer: Any = None

    def find(self, partition: int, offset: int) -> RawRecord | None:
        """The record at a place; None where there is none any more, or never was. Raises BrokerError."""
        with self._lock:
            try:
                if self._consumer is None:
                    self._consumer = kafka_python.KafkaConsumer(
                        **self._kafka.client_options(),
                        group_id=None,
                        enable_auto_commit=False,
                        auto_offset_reset="none",
                        max_partition_fetch_bytes=self._kafka.max_partition_fetch_bytes,
                    )
                return self._find(self._consumer, TopicPartition(self._topic, partition), offset)
            except OffsetOutOfRangeError:
                return None
            except KafkaError as error:
                self._close()
                cause = f"{type(error).__name__}: {error}"
                raise BrokerError(f"{self._topic}/{partition}/{offset} cannot be read: {cause}; check the kafka.* settings") from None

    def _find(self, consumer: Any, partition: Any, offset: int) -> RawRecord | None:
        if partition.partition not in (consumer.partitions_for_topic(self._topic) or ()):
            return None
        if consumer.assignment() != {partition}:
            consumer.assign([partition])
        if offset < consumer.beginning_offsets([partition])[partition]:
            return None
        consumer.seek(partition, offset)
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            for record in consumer.poll(timeout_ms=round(POLL_S * 1000), max_records=1).get(partition, ()):
                return raw_record(record) if record.offset == offset else None
            if consumer.highwater(partition) is not None and offset >= consumer.highwater(partition):
                return None
        return None

    def close(self) -> None:
        """Let the broker go."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._consumer is not None:
            self._consumer.close(timeout_ms=3_000)
            self._consumer = None


def _read(consumer: Any, topic: str, span: Span, *, is_tansu: bool, idle_timeout_s: float) -> Iterator[RawRecord]:
    known = consumer.partitions_for_topic(topic) or set()
    if not known:
        raise BrokerError(f"there is no topic {topic!r}; name another, or make it with 'fifa-stream topics create'")
    if span.partition is not None and span.partition not in known:
        raise BrokerError(f"topic {topic!r} has no partition {span.partition}; it has {', '.join(map(str, sorted(known)))}")
    partitions = [TopicPartition(topic, number) for number in sorted(known if span.partition is None else {span.partition})]
    consumer.assign(partitions)
    # Tansu's end offsets are those of its last batch and not of its last record; what it says with fetched records is right.
    ends: dict[Any, int] = {} if is_tansu else consumer.end_offsets(partitions)
    begins = consumer.beginning_offsets(partitions)
    found = {} if span.since_ms is None else consumer.offsets_for_times({partition: span.since_ms for partition in partitions})
    for partition in partitions:
        begin = max(begins[partition], span.offset or 0)
        if span.since_ms is not None:
            at = found.get(partition)
            begin = ends.get(partition, begin) if at is None else max(begin, at.offset)
        consumer.seek(partition, begin)

    def is_finished(partition: Any) -> bool:
        if partition not in ends and (end := consumer.highwater(partition)) is not None:
            ends[partition] = end
        # Beyond the last record lie the markers of transactions: the position goes past them, no record ever will.
        return partition in ends and consumer.position(partition) >= ends[partition]

    last = time.monotonic()
    while unfinished := [partition for partition in partitions if not is_finished(partition)]:
        consumer.pause(*(partition for partition in partitions if partition not in unfinished))
        batches = consumer.poll(timeout_ms=round(POLL_S * 1000))
        if batches:
            last = time.monotonic()
        elif time.monotonic() - last > idle_timeout_s:
            where = ", ".join(f"{partition.topic}/{partition.partition}/{consumer.position(partition)}" for partition in unfinished)
            raise BrokerError(f"nothing came for {idle_timeout_s:g} s from {where}, which is not the end; try again, or look at the broker")
        for partition, records in batches.items():
            ends.setdefault(partition, consumer.highwater(partition))
            for record in records:
                if record.offset < ends[partition] and (span.since_ms is None or record.timestamp >= span.since_ms):
                    yield raw_record(record)
                    last = time.monotonic()  # what the caller did meanwhile was no silence
