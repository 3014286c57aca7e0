"""Images onto the frames topic, as the loop expects them: for trying things out, and for the demo."""

from collections.abc import Sequence
from pathlib import Path

import kafka as kafka_python
from kafka.errors import KafkaError

from fifa_stream.claims import ClaimStore, PutError
from fifa_stream.cluster import BrokerError, find_cluster
from fifa_stream.config import ClaimSettings, ConfigError, KafkaSettings
from fifa_stream.produce import close_client
from fifa_stream.recording import Recorded
from fifa_stream.records import Claim, OutRecord, Query, RecordError
from fifa_stream.tracing import NoTracing, Tracing, carrying, plain_send

CONTENT_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}


class SendError(Exception):
    """An image could not be read, or was not taken by the store or the broker."""


class LargeImages:
    """Where images too large for a record go: `threshold_bytes` of the settings says which are."""

    def __init__(self, prefix: str, settings: ClaimSettings) -> None:
        """`prefix` is file:///FOLDER/ or s3://BUCKET/PREFIX/, and stands in for claims.allowed. Raises ConfigError."""
        try:
            self._store = ClaimStore(settings.model_copy(update={"allowed": (prefix,)}))
        except ConfigError as error:
            raise ConfigError(f"store {prefix!r} cannot be used: {error}") from None
        self._prefix, self._threshold_bytes = prefix, settings.threshold_bytes

    def claim_for(self, path: Path, image: bytes) -> Claim | None:
        """Store a large image under its digest; None for one that travels in its record. Raises SendError."""
        if len(image) <= self._threshold_bytes:
            return None
        suffix = path.suffix.lower()
        try:
            return self._store.put(self._prefix, image, suffix=suffix if suffix in CONTENT_TYPES else "", content_type=CONTENT_TYPES.get(suffix))
        except (PutError, RecordError) as error:
            raise SendError(f"{path} was not stored: {error}") from None


def frame_record(
    image: bytes | Claim, *, stream_id: str, frame_index: int, content_type: str | None = None, crop: bool = False, query: Query | None = None
) -> OutRecord:
    """Wrap an encoded image, or the claim to one; the key is the stream id, so a stream stays in order."""
    headers = {"stream-id": stream_id, "frame-index": str(frame_index)}
    if isinstance(image, Claim):
        headers |= image.headers
        image = b""
    elif content_type:
        headers["content-type"] = content_type
    if crop:
        headers["fifa-crop"] = "true"
    if query is not None:
        headers["fifa-query"] = query.text
    return OutRecord(stream_id.encode(), image, tuple((name, value.encode()) for name, value in headers.items()))


def send_images(
    kafka: KafkaSettings,
    images: Sequence[Path],
    *,
    topic: str,
    stream_id: str,
    crop: bool = False,
    query: Query | None = None,
    large_images: LargeImages | None = None,
    record_to: Path | None = None,
    tracing: Tracing | None = None,
) -> int:
    """Send the files in order and wait until all are acknowledged; return how many. `record_to` is a new file for `fifa-stream replay`.

    With `tracing` every frame begins a trace.
    Raises SendError, BrokerError.
    """
    encoded = [_read(path) for path in images]
    find_cluster(kafka)
    records = [
        frame_record(
            (large_images.claim_for(path, image) if large_images else None) or image,
            stream_id=stream_id,
            frame_index=index,
            content_type=CONTENT_TYPES.get(path.suffix.lower()),
            crop=crop,
            query=query,
        )
        for index, (path, image) in enumerate(zip(images, encoded, strict=True))
    ]
    spans = [(tracing or NoTracing()).send(topic) for _ in records]
    records = [record if span is None else carrying(record, span) for record, span in zip(records, spans, strict=True)]
    largest = max((len(record.value or b"") for record in records), default=0)
    try:
        recording = None if record_to is None else record_to.open("x", encoding="ascii")
    except OSError as error:
        raise SendError(f"{record_to} cannot be written: {error.strerror}; give a new file to --record") from None
    try:
        producer = kafka_python.KafkaProducer(
            **kafka.client_options(),
            acks="all",
            batch_size=256 << 10,
            max_request_size=max(kafka.max_request_bytes, largest + (64 << 10)),
            max_block_ms=kafka.bootstrap_timeout_ms,
        )
        try:
            send = plain_send(producer)
            futures = [send(topic, key=record.key, value=record.value, headers=list(record.headers)) for record in records]
            for path, record, future, span in zip(images, records, futures, spans, strict=True):
                try:
                    place = future.get(timeout=kafka.delivery_timeout_ms / 1000)
                except KafkaError as error:
                    if span is not None:
                        span.end(error=type(error).__name__)
                    raise SendError(f"{path} was not taken by topic {topic!r}: {type(error).__name__}: {error}") from None
                if span is not None:
                    span.end()
                if recording is not None:
                    where = Recorded.of(record, topic=topic, partition=place.partition, offset=place.offset, timestamp_ms=place.timestamp)
                    recording.write(f"{where.line()}\n")
        finally:
            close_client(producer)
    except (KafkaError, ValueError) as error:  # the second for what is no name of a topic
        message = f"sending to topic {topic!r} failed: {type(error).__name__}: {error}; make the topic with 'fifa-stream topics create'"
        raise BrokerError(message) from None
    finally:
        if recording is not None:
            recording.close()
    return len(records)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SendError(f"{path} cannot be read: {error.strerror}; give an image file") from None
