"""Dead letters for an operator: read them back, and send their originals once more."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import kafka as kafka_python
from kafka.errors import KafkaError

from fifa_stream.cluster import BrokerError, find_cluster
from fifa_stream.config import KafkaSettings
from fifa_stream.produce import close_client
from fifa_stream.records import DeadLetter, Kept, NotADeadLetter, OutRecord
from fifa_stream.topic_reader import Span, read_topic

MAX_UNACKNOWLEDGED = 200
"""Records sent before their acknowledgements are waited for."""
UNLIMITED_REQUEST_BYTES = 1 << 30
"""The broker says what is too large: the letter went through it once."""


def read_letters(kafka: KafkaSettings, span: Span | None = None, *, reason: str | None = None) -> Iterator[DeadLetter | NotADeadLetter]:
    """The letters on `kafka.dead_letters_topic`, with `reason` those of one reason only; a record of somebody else is its NotADeadLetter.

    Raises BrokerError.
    """
    for record in read_topic(kafka, kafka.dead_letters_topic, span):
        try:
            letter = DeadLetter.of(record)
        except NotADeadLetter as stray:
            yield stray
        else:
            if reason in (None, letter.reason):
                yield letter


@dataclass(frozen=True, slots=True)
class Replay:
    """What was done with one letter."""

    letter: DeadLetter
    topic: str
    """Where its original goes."""
    record: OutRecord | None
    """What was sent, or with a dry run would be; None where the letter is skipped."""
    skipped: str = ""
    """Why."""


def replay(kafka: KafkaSettings, letters: Iterable[DeadLetter], *, topic: str | None = None, dry_run: bool = False) -> Iterator[Replay]:
    """Send originals back to where they lay, same partition, or to `topic`, by key; each is yielded once it is acknowledged.

    The letters stay where they are. Raises BrokerError at the first record that is not taken.
    """
    planned = (_plan(letter, topic or letter.topic, kafka) for letter in letters)
    if dry_run:
        yield from planned
        return
    find_cluster(kafka)  # says what a client would keep to itself
    try:
        producer = kafka_python.KafkaProducer(
            **kafka.client_options(),
            acks="all",
            batch_size=256 << 10,
            max_request_size=UNLIMITED_REQUEST_BYTES,
            delivery_timeout_ms=kafka.delivery_timeout_ms,
            request_timeout_ms=min(30_000, kafka.delivery_timeout_ms - 100),
            max_block_ms=kafka.bootstrap_timeout_ms,
        )
    except KafkaError as error:
        raise BrokerError(f"the broker at {kafka.bootstrap_servers} refused: {type(error).__name__}: {error}; check the kafka.* settings") from None
    try:
        sent: list[tuple[Replay, object]] = []
        for one in planned:
            sent.append((one, None if one.record is None else _send(producer, one, one.record)))
            is_full = sum(0 if one.record is None else one.record.size for one, _ in sent) >= kafka.max_unacknowledged_bytes
            if is_full or len(sent) >= MAX_UNACKNOWLEDGED:
                yield from _acknowledged(sent, kafka)
                sent = []
        yield from _acknowledged(sent, kafka)
    finally:
        close_client(producer)


def _plan(letter: DeadLetter, topic: str, kafka: KafkaSettings) -> Replay:
    skipped = ""
    if letter.kept is Kept.HEADERS:
        skipped = "the image was left out of the letter"
    elif letter.kept is Kept.NOTHING:
        skipped = "key, headers and image were left out of the letter"
    elif not letter.is_whole:
        skipped = "the letter's value is not the original's: its digest differs"
    elif topic in (".", ".."):
        skipped = "no topic can have the name it gives"
    elif topic in kafka.answer_topics:
        # Whoever may write letters only must not write verdicts by the hand of who replays them.
        skipped = "its original would go where answers go"
    return Replay(letter, topic, None, skipped) if skipped else Replay(letter, topic, letter.original())


def _send(producer: kafka_python.KafkaProducer, one: Replay, record: OutRecord) -> object:
    try:
        partitions = producer.partitions_for(one.topic)
        # The stream's other frames lie on this partition, whatever partitioner their producer has.
        partition = one.letter.partition if one.topic == one.letter.topic and one.letter.partition in partitions else None
        return producer.send(one.topic, key=record.key, value=record.value, headers=list(record.headers), partition=partition)
    except (KafkaError, ValueError) as error:  # the second for what is no name of a topic
        raise _not_taken(one, error) from None


def _acknowledged(sent: Iterable[tuple[Replay, object]], kafka: KafkaSettings) -> Iterator[Replay]:
    for one, future in sent:
        if future is not None:
            try:
                future.get(timeout=kafka.delivery_timeout_ms / 1000)  # type: ignore[attr-defined]  # kafka-python is untyped
            except KafkaError as error:
                raise _not_taken(one, error) from None
        yield one


def _not_taken(one: Replay, error: Exception) -> BrokerError:
    where = f"{one.letter.raw.partition}/{one.letter.raw.offset}"
    return BrokerError(f"the original of letter {where} was not taken by topic {one.topic!r}: {type(error).__name__}: {error}; replay from there")
