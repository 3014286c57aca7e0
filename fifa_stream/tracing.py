"""Traces from the producer of a frame to its verdict, through Kafka headers (W3C trace context); `fifa_stream.otlp` makes the spans.

    producer's span -> `process TOPIC`, one for each traced frame -> header `traceparent` of its verdict -> whoever reads it
                              | link
                       `infer TOPIC`, one for each batch, with links to the contexts that its frames came with

Off unless `telemetry.otlp_endpoint` is set, and nothing of OpenTelemetry is imported then. A frame whose sender did not sample it costs a look at one
character. A header is replaced, never added a second time; dead letters keep the headers that came.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from types import MethodType
from typing import Any, Protocol

from fifa_stream.config import TelemetrySettings
from fifa_stream.records import FrameRecord, Headers, OutRecord, RawRecord
from fifa_stream.telemetry import Meter

HEADER_NAMES = ("traceparent", "tracestate")


class OpenSpan(Protocol):
    """A span that has begun."""

    @property
    def headers(self) -> Headers:
        """What a record carries so that its reader goes on with this trace."""
        ...

    def end(self, *, label: str | None = None, error: str | None = None) -> None:
        """It is done: with what label, or why not. Once."""
        ...


class Tracing(Protocol):
    """Where spans begin. Any thread may call; nothing here waits for a collector or raises for the want of one."""

    @property
    def is_on(self) -> bool:
        """False: do not ask for spans."""
        ...

    def batch(self, frames: Sequence[FrameRecord]) -> AbstractContextManager[object | None]:
        """Around the processing of a batch, on its thread: something for `answer`, or None where none of its frames is traced."""
        ...

    def answer(self, raw: RawRecord, traceparent: str | None, *, seconds_ago: float, batch: object | None) -> OpenSpan | None:
        """Of one frame, from its poll that many seconds ago to the acknowledgement of its answer. None: it is not traced."""
        ...

    def send(self, topic: str) -> OpenSpan | None:
        """Of one frame that is sent, to its acknowledgement; a trace begins here."""
        ...

    def close(self) -> None:
        """Hand over what has ended, within a few seconds; what takes longer is lost."""
        ...


class NoTracing:
    """`Tracing` that is off."""

    is_on = False

    @contextlib.contextmanager
    def batch(self, frames: Sequence[FrameRecord]) -> Iterator[None]:
        """Nothing."""
        yield None

    def answer(self, raw: RawRecord, traceparent: str | None, *, seconds_ago: float, batch: object | None) -> None:
        """Nothing."""

    def send(self, topic: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def open_tracing(telemetry: TelemetrySettings, *, group: str | None = None, meter: Meter | None = None) -> Tracing:
    """As the settings say; `group` is the consumer group of a worker. Raises ConfigError where the exporter is not installed."""
    if telemetry.otlp_endpoint is None:
        return NoTracing()
    from fifa_stream.otlp import OtlpTracing, exporter

    return OtlpTracing(telemetry, exporter(telemetry.otlp_endpoint), group=group, meter=meter or Meter())


def carrying(record: OutRecord, span: OpenSpan) -> OutRecord:
    """A record that goes on with a span, whatever trace context it had."""
    return record._replace(headers=(*(header for header in record.headers if header[0] not in HEADER_NAMES), *span.headers))


def plain_send(producer: Any) -> Any:
    """`send` of a kafka-python producer as its library wrote it: automatic instrumentation would add a second `traceparent` behind ours."""
    original = getattr(type(producer).send, "__wrapped__", None)
    return producer.send if original is None else MethodType(original, producer)
