"""Recorded frames sent again, no faster than asked: to see a stream once more, or to judge what was set aside."""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import kafka as kafka_python
from kafka.errors import KafkaError

from fifa_stream.cluster import BrokerError, find_cluster
from fifa_stream.config import KafkaSettings
from fifa_stream.produce import close_client
from fifa_stream.recording import Line, RecordingError, read_lines
from fifa_stream.records import RawRecord

MAX_UNACKNOWLEDGED = 200
"""Records sent before the first of them has to be acknowledged."""
UNLIMITED_REQUEST_BYTES = 1 << 30
"""The broker says what is too large."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sent:
    """One line that was taken by the broker, or with a dry run would be sent."""

    line: int
    record: RawRecord
    """As it was recorded."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds, all of whose lines can be read."""

    records: int
    value_bytes: int
    without_original: int
    """Dead letters that do not hold theirs."""


def examine(file: Path) -> Contents:
    """Read a file to its end before anything of it is sent. Raises RecordingError."""
    if file.exists() and not file.is_file():
        # Of a pipe nothing would be left to send.
        raise RecordingError(f"{file} is read twice, and is no regular file; write it to a file first")
    records, value_bytes, without = 0, 0, 0
    for line in read_lines(file):
        if line.record is None:
            without += 1
        else:
            records += 1
            value_bytes += len(line.record.value or b"")
    return Contents(records, value_bytes, without)


def replay(
    kafka: KafkaSettings,
    lines: Iterable[Line],
    *,
    topic: str,
    rate: float,
    keep_timestamps: bool = True,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], object] = time.sleep,
) -> Iterator[Sent]:
    """Send every record to `topic`, at most `rate` a second: key, value, headers and timestamp as they were, on the partition where it lay if it lay
    on this topic. Each is yielded once it is acknowledged.

    Raises BrokerError at the first record that is not taken; it names the line, and what was sent before stays.
    """
    find_cluster(kafka)  # says what a client would keep to itself
    producer = _producer(kafka)
    try:
        waiting: deque[tuple[Sent, Any]] = deque()
        for line, record in paced(((line, line.record) for line in lines if line.record is not None), rate, clock=clock, pause=pause):
            while waiting and (waiting[0][1].is_done or _is_full(waiting, kafka)):
                yield _acknowledged(*waiting.popleft(), topic, kafka)
            one = Sent(line.number, record)
            waiting.append((one, _send(producer, one, topic, keep_timestamps=keep_timestamps)))
        while waiting:
            yield _acknowledged(*waiting.popleft(), topic, kafka)
    finally:
        close_client(producer)


def paced(items: Iterable[T], rate: float, *, clock: Callable[[], float], pause: Callable[[float], object]) -> Iterator[T]:
    """Each item no earlier than its turn at `rate` a second; time lost is not made up for."""
    due = clock()
    for item in items:
        if (early_s := due - clock()) > 0:
            pause(early_s)
        due = max(due, clock()) + 1 / rate
        yield item


def _producer(kafka: KafkaSettings) -> Any:
    try:
        return kafka_python.KafkaProducer(
            **kafka.client_options(),
            acks="all",
            batch_size=256 << 10,
            linger_ms=5,
            max_request_size=UNLIMITED_REQUEST_BYTES,
            delivery_timeout_ms=kafka.delivery_timeout_ms,
            request_timeout_ms=min(30_000, kafka.delivery_timeout_ms - 100),
            max_block_ms=kafka.bootstrap_timeout_ms,
        )
    except KafkaError as error:
        raise BrokerError(f"the broker at {kafka.bootstrap_servers} refused: {type(error).__name__}: {error}; check the kafka.* settings") from None


def _send(producer: Any, one: Sent, topic: str, *, keep_timestamps: bool) -> Any:
    record = one.record
    is_null = record.key is None and record.value is None  # which kafka-python refuses to send
    try:
        # The stream's other frames lie on this partition, whatever partitioner their producer had.
        lay_here = record.topic == topic and record.partition in producer.partitions_for(topic)
        return producer.send(
            topic,
            key=record.key,
            value=b"" if is_null else record.value,
            headers=list(record.headers),
            partition=record.partition if lay_here else None,
            timestamp_ms=record.timestamp_ms if keep_timestamps and record.timestamp_ms >= 0 else None,
        )
    except (KafkaError, ValueError) as error:  # the second for what is no name of a topic
        raise _not_taken(one, topic, error) from None


def _is_full(waiting: Collection[tuple[Sent, Any]], kafka: KafkaSettings) -> bool:
    return len(waiting) >= MAX_UNACKNOWLEDGED or sum(len(one.record.value or b"") for one, _ in waiting) >= kafka.max_unacknowledged_bytes


def _acknowledged(one: Sent, future: Any, topic: str, kafka: KafkaSettings) -> Sent:
    try:
        future.get(timeout=kafka.delivery_timeout_ms / 1000)
    except KafkaError as error:
        raise _not_taken(one, topic, error) from None
    return one


def _not_taken(one: Sent, topic: str, error: Exception) -> BrokerError:
    said = " ".join(str(error).split())[:200]
    return BrokerError(f"line {one.line} was not taken by topic {topic!r}: {type(error).__name__}: {said}; replay from there with --from-line")
