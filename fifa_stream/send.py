"""Images onto the frames topic, as the loop expects them: for trying things out, and for the demo."""

from collections.abc import Sequence
from pathlib import Path

import kafka as kafka_python
from kafka.errors import KafkaError

from fifa_stream.cluster import BrokerError, find_cluster
from fifa_stream.config import KafkaSettings
from fifa_stream.records import OutRecord, Query

CONTENT_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}


class SendError(Exception):
    """An image could not be read or was not taken by the broker."""


def frame_record(
    image: bytes, *, stream_id: str, frame_index: int, content_type: str | None = None, crop: bool = False, query: Query | None = None
) -> OutRecord:
    """Wrap an encoded image; the key is the stream id, so a stream stays in order."""
    headers = {"stream-id": stream_id, "frame-index": str(frame_index)}
    if content_type:
        headers["content-type"] = content_type
    if crop:
        headers["fifa-crop"] = "true"
    if query is not None:
        headers["fifa-query"] = query.text
    return OutRecord(stream_id.encode(), image, tuple((name, value.encode()) for name, value in headers.items()))


def send_images(kafka: KafkaSettings, images: Sequence[Path], *, topic: str, stream_id: str, crop: bool = False, query: Query | None = None) -> int:
    """Send the files in order and wait until all are acknowledged; return how many. Raises SendError, BrokerError."""
    records = [_record(path, index, stream_id=stream_id, crop=crop, query=query) for index, path in enumerate(images)]
    find_cluster(kafka)
    largest = max((len(record.value or b"") for record in records), default=0)
    try:
        producer = kafka_python.KafkaProducer(
            **kafka.client_options(),
            acks="all",
            batch_size=256 << 10,
            max_request_size=max(kafka.max_request_bytes, largest + (64 << 10)),
            max_block_ms=kafka.bootstrap_timeout_ms,
        )
        try:
            futures = [producer.send(topic, key=record.key, value=record.value, headers=list(record.headers)) for record in records]
            for path, future in zip(images, futures, strict=True):
                try:
                    future.get(timeout=kafka.delivery_timeout_ms / 1000)
                except KafkaError as error:
                    raise SendError(f"{path} was not taken by topic {topic!r}: {type(error).__name__}: {error}") from None
        finally:
            producer.close(timeout=3.0)
    except KafkaError as error:
        message = f"sending to topic {topic!r} failed: {type(error).__name__}: {error}; make the topic with 'fifa-stream topics create'"
        raise BrokerError(message) from None
    return len(records)


def _record(path: Path, index: int, *, stream_id: str, crop: bool, query: Query | None) -> OutRecord:
    try:
        image = path.read_bytes()
    except OSError as error:
        raise SendError(f"{path} cannot be read: {error.strerror}; give an image file") from None
    return frame_record(image, stream_id=stream_id, frame_index=index, content_type=CONTENT_TYPES.get(path.suffix.lower()), crop=crop, query=query)
