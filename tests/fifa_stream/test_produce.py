"""The Kafka producer: bounded, with a deadline, and every failure says which record it answers."""

from collections.abc import Callable
from typing import Any

import kafka as kafka_python
import pytest
from kafka.errors import KafkaTimeoutError, MessageSizeTooLargeError
from kafka.future import Future

from fifa_stream.config import KafkaSettings
from fifa_stream.produce import DEADLINE_MARGIN_S, DeliveryError, KafkaProducer, TopicError, check_topics
from fifa_stream.records import OutRecord, RawRecord
from fifa_stream.testing import FakeClock

FRAME = RawRecord("fifa.frames", 1, 5, 0, b"k", b"image", ())


class ToyClient:
    """What is used of kafka.KafkaProducer; futures are resolved by the test."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.futures: list[Any] = []
        self.error: Exception | None = None
        self.closed_within: float | None = None
        self.is_sender_ended = False
        self._sender = self

    def send(self, topic: str, *, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]], partition: int | None = None) -> Any:
        if self.error:
            raise self.error
        self.futures.append(Future())
        return self.futures[-1]

    def partitions_for(self, topic: str) -> set[int]:
        if self.error:
            raise self.error
        return {0}

    def close(self, timeout: float) -> None:
        self.closed_within = timeout
        if self.error:
            raise self.error

    def force_close(self) -> None:
        self.is_sender_ended = True


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[[], ToyClient]:
    made: list[ToyClient] = []

    def make(**options: Any) -> ToyClient:
        made.append(ToyClient(**options))
        return made[-1]

    monkeypatch.setattr(kafka_python, "KafkaProducer", make)
    return lambda: made[-1]


def send(producer: KafkaProducer, delivered: list[str], name: str = "one", size: int = 10) -> None:
    producer.send("fifa.verdicts", OutRecord(b"k", b"x" * size, ()), answers=FRAME, on_delivery=lambda: delivered.append(name))


def test_a_delivery_is_reported_in_poll_and_not_on_the_clients_thread(client: Callable[[], ToyClient]) -> None:
    producer, delivered = KafkaProducer(KafkaSettings()), list[str]()
    send(producer, delivered)
    client().futures[0].success("metadata")
    assert delivered == []
    producer.poll()
    assert delivered == ["one"]


def test_unacknowledged_bytes_are_bounded(client: Callable[[], ToyClient]) -> None:
    producer, delivered = KafkaProducer(KafkaSettings(max_unacknowledged_bytes=1024)), list[str]()
    send(producer, delivered, size=1023)
    assert producer.has_room
    send(producer, delivered, size=1)
    assert not producer.has_room
    client().futures[0].success("metadata")
    producer.poll()
    assert producer.has_room


def test_a_failed_delivery_names_the_record_it_answers(client: Callable[[], ToyClient]) -> None:
    producer = KafkaProducer(KafkaSettings())
    send(producer, [])
    client().futures[0].failure(MessageSizeTooLargeError("too large"))
    with pytest.raises(DeliveryError, match=r"fifa.frames/1/5 was not delivered to fifa.verdicts: MessageSizeTooLargeError"):
        producer.poll()


def test_a_refusal_at_once_is_a_failed_delivery(client: Callable[[], ToyClient]) -> None:
    producer = KafkaProducer(KafkaSettings())
    client().error = KafkaTimeoutError("no metadata")
    with pytest.raises(DeliveryError, match="KafkaTimeoutError"):
        send(producer, [])


def test_a_future_that_never_answers_meets_the_deadline(client: Callable[[], ToyClient]) -> None:
    clock = FakeClock()
    producer = KafkaProducer(KafkaSettings(delivery_timeout_ms=2_000), clock=clock)
    send(producer, [])
    clock.advance(2.0 + DEADLINE_MARGIN_S)
    producer.poll()
    clock.advance(0.1)
    with pytest.raises(DeliveryError, match="no answer within 7 s"):
        producer.poll()


def test_the_producer_is_idempotent_and_waits_for_all_replicas(client: Callable[[], ToyClient]) -> None:
    KafkaProducer(KafkaSettings())
    options = client().options
    assert options["acks"] == "all"
    assert options.get("enable_idempotence", True)
    assert options["batch_size"] == 256 << 10
    assert options["compression_type"] == "gzip"


def test_a_missing_topic_is_said_with_its_remedy(client: Callable[[], ToyClient], monkeypatch: pytest.MonkeyPatch) -> None:
    check_topics(KafkaSettings())

    def missing(self: ToyClient, topic: str) -> None:
        raise KafkaTimeoutError("Failed to update metadata")

    monkeypatch.setattr(ToyClient, "partitions_for", missing)
    with pytest.raises(TopicError, match=r"'fifa\.frames' cannot be used.*topics create"):
        check_topics(KafkaSettings())


def test_closing_without_the_broker_is_not_an_error_and_ends_the_sender(client: Callable[[], ToyClient]) -> None:
    """kafka-python would leave it running; tests/integration/test_faults.py shows it."""
    producer = KafkaProducer(KafkaSettings())
    client().error = KafkaTimeoutError("flush")
    producer.close(0.5)
    assert client().closed_within == 0.5 and client().is_sender_ended
