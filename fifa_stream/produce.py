"""Verdicts and dead letters out; acknowledgements come back on the thread that sends.

kafka-python bounds neither the bytes it accepts nor the time a future may take, and its idempotent producer can fall silent for ever after one
delivery timeout. So both bounds are kept here, and a producer with one failed delivery is of no more use: `fifa_stream.commit` replaces it.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import kafka as kafka_python
from kafka import OffsetAndMetadata, TopicPartition
from kafka.errors import InvalidProducerEpochError, KafkaError, KafkaTimeoutError, ProducerFencedError

from fifa_stream.config import KafkaSettings
from fifa_stream.records import OutRecord, RawRecord
from fifa_stream.tracing import plain_send

logger = logging.getLogger(__name__)

DEADLINE_MARGIN_S = 5.0
"""Added to delivery_timeout_ms before a future without an answer counts as failed."""
CLOSE_TIMEOUT_S = 3.0
"""For what a command has not sent when it ends."""


class DeliveryError(Exception):
    """A record was not acknowledged, or a transaction not committed. Nothing more may be committed through this producer."""


class Fenced(Exception):
    """Another process works under our transactional id: stop, it answers what we do not."""


class TopicError(Exception):
    """A topic is missing or forbidden."""


class Producer(Protocol):
    """Sends records. One thread owns it."""

    @property
    def has_room(self) -> bool:
        """Whether the bound on unacknowledged bytes allows another record."""
        ...

    def send(self, topic: str, record: OutRecord, *, answers: RawRecord, on_delivery: Callable[[], None], partition: int | None = None) -> None:
        """Hand a record over; `on_delivery` runs inside a later `poll`. Its key says which partition it goes to, unless one is given. Raises
        DeliveryError when it is refused at once."""
        ...

    def poll(self) -> None:
        """Run `on_delivery` of what was acknowledged since the last call. Raises DeliveryError."""
        ...

    def flush(self, timeout_s: float) -> bool:
        """Send what is buffered and wait for its acknowledgements; False where some are still missing."""
        ...

    def close(self, timeout_s: float) -> None:
        """Send what is buffered, then disconnect."""
        ...


class TransactionalProducer(Producer, Protocol):
    """Sends records that readers see with their offsets, or not at all."""

    def begin(self) -> None:
        """Open a transaction. Raises DeliveryError."""
        ...

    def commit(self, positions: Mapping[tuple[str, int], int], member: object) -> None:
        """Close the transaction with next offsets of a group; `member` is `Consumer.member()`. Raises DeliveryError, Fenced."""
        ...


class _Sent(NamedTuple):
    future: Any
    """kafka-python's. It is asked whether it is done: being called back costs two locks a record."""
    topic: str
    answers: RawRecord
    size: int
    sent_at: float
    on_delivery: Callable[[], None]


class KafkaProducer:
    """`TransactionalProducer` on kafka-python: idempotent, acknowledged by all in-sync replicas. Without an id it has no transactions."""

    def __init__(self, kafka: KafkaSettings, *, transactional_id: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """With an id: ends what an earlier producer of that id left open. Raises DeliveryError when the broker does not answer."""
        self._clock = clock
        self._is_named = kafka.transactional_id is not None
        self._max_bytes = kafka.max_unacknowledged_bytes
        self._deadline_s = kafka.delivery_timeout_ms / 1000 + DEADLINE_MARGIN_S
        # One producer, so one compression: dead letters hold compressed images and are rare enough not to deserve a second connection.
        self._producer = kafka_python.KafkaProducer(
            **kafka.client_options(),
            acks="all",
            linger_ms=5,
            batch_size=256 << 10,  # the default of 16 KiB would put every 20 KB record in a batch of its own
            compression_type=None if kafka.compression == "none" else kafka.compression,
            delivery_timeout_ms=kafka.delivery_timeout_ms,
            request_timeout_ms=min(30_000, kafka.delivery_timeout_ms - 100),
            max_request_size=kafka.max_request_bytes,
            max_block_ms=kafka.bootstrap_timeout_ms,
            **({} if transactional_id is None else {"transactional_id": transactional_id, "transaction_timeout_ms": kafka.transaction_timeout_ms}),
        )
        if transactional_id is not None:
            try:
                self._producer.init_transactions()
            except KafkaError as error:
                self.close(timeout_s=0.0)
                raise DeliveryError(f"transactional id {transactional_id!r} cannot be used: {type(error).__name__}: {error}") from None
        self._send = plain_send(self._producer)
        self._unacknowledged: list[_Sent] = []
        """Oldest first."""
        self._bytes = 0

    @property
    def has_room(self) -> bool:
        """True while unacknowledged bytes are below the bound; one record may pass it."""
        return self._bytes < self._max_bytes

    def send(self, topic: str, record: OutRecord, *, answers: RawRecord, on_delivery: Callable[[], None], partition: int | None = None) -> None:
        """Hand over; blocks only while the topic's partitions are looked up for the first time."""
        try:
            future = self._send(topic, key=record.key, value=record.value, headers=list(record.headers), partition=partition)
        except KafkaError as error:
            raise self._failure(topic, answers, error) from None
        size = len(record.value or b"")
        self._unacknowledged.append(_Sent(future, topic, answers, size, self._clock(), on_delivery))
        self._bytes += size

    def poll(self) -> None:
        """Take in the answers that have come."""
        sent_before, self._unacknowledged = self._unacknowledged, []
        for sent in sent_before:
            if not sent.future.is_done:
                self._unacknowledged.append(sent)
                continue
            self._bytes -= sent.size
            if sent.future.exception is not None:
                raise self._failure(sent.topic, sent.answers, sent.future.exception)
            sent.on_delivery()
        if self._unacknowledged and self._clock() - (oldest := self._unacknowledged[0]).sent_at > self._deadline_s:
            raise self._failure(oldest.topic, oldest.answers, TimeoutError(f"no answer within {self._deadline_s:.0f} s"))

    def begin(self) -> None:
        """Open a transaction; nothing is sent yet."""
        try:
            self._producer.begin_transaction()
        except KafkaError as error:
            raise DeliveryError(f"no transaction can be opened: {type(error).__name__}: {error}") from None

    def flush(self, timeout_s: float) -> bool:
        """Wait for the acknowledgements; what they run comes with `poll`."""
        try:
            self._producer.flush(timeout=timeout_s)
        except KafkaTimeoutError:
            return False
        return all(sent.future.is_done for sent in self._unacknowledged)

    def commit(self, positions: Mapping[tuple[str, int], int], member: object) -> None:
        """Two calls without a timeout of their own: the caller watches them."""
        offsets = {TopicPartition(*partition): OffsetAndMetadata(offset, "", -1) for partition, offset in positions.items()}
        try:
            if offsets:
                self._producer.send_offsets_to_transaction(offsets, member)
            self._producer.commit_transaction()
        except KafkaError as error:
            raise self._classified(error, f"a transaction was not committed: {type(error).__name__}: {error}") from None

    def _failure(self, topic: str, raw: RawRecord, error: BaseException) -> Exception:
        return self._classified(
            error,
            f"the answer to {raw.place} was not delivered to {topic}: {type(error).__name__}: {error}; "
            "its offset stays uncommitted, so it is answered again",
        )

    def _classified(self, error: BaseException, message: str) -> Exception:
        if self._is_named and isinstance(error, InvalidProducerEpochError | ProducerFencedError):
            return Fenced(f"{message}; another process uses kafka.transactional_id, or this one was silent beyond transaction_timeout_ms")
        return DeliveryError(message)

    def close(self, timeout_s: float) -> None:
        """Flush and disconnect within the time; what is not acknowledged by then was never committed."""
        close_client(self._producer, timeout_s)


def close_client(producer: Any, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
    """Flush and close a producer of kafka-python within the time. Raises nothing: whoever closes after a failure has that one to tell."""
    try:
        producer.close(timeout=timeout_s)
    except KafkaError as error:
        logger.warning("producer closed without the broker: %s", type(error).__name__)
        # kafka-python 3.0.12 raises before it has ended its sender, which then goes on sending for ever; and raises again when it is collected.
        producer._sender.force_close()
        producer._closed = True


def check_topics(kafka: KafkaSettings, *, has_state: bool = False) -> None:
    """Look the topics up, with `has_state` that of snapshots too, so that one that is missing or forbidden is found before the first frame.

    Raises TopicError, also where frames and snapshots differ in partitions.
    """
    names = [*kafka.topics.values(), *([kafka.state_topic] if has_state else [])]
    producer = kafka_python.KafkaProducer(**kafka.client_options(), max_block_ms=kafka.bootstrap_timeout_ms)
    numbers = {}
    try:
        for topic in names:
            try:
                numbers[topic] = len(producer.partitions_for(topic) or ())
            except KafkaError as error:
                raise TopicError(
                    f"topic {topic!r} cannot be used: {type(error).__name__}: {error}; make it with 'fifa-stream topics create', or grant access"
                ) from None
    finally:
        producer.close(timeout=0)
    if has_state and numbers[kafka.state_topic] != numbers[kafka.frames_topic]:
        raise TopicError(
            f"kafka.state_topic {kafka.state_topic!r} has {numbers[kafka.state_topic]} partitions and kafka.frames_topic {kafka.frames_topic!r} "
            f"{numbers[kafka.frames_topic]}, and what is remembered of a stream lies on the partition of its frames; make the state topic anew, with "
            "as many"
        )
