"""`fifa_stream.tracing` on OpenTelemetry: spans with the attributes of its messaging conventions, handed to a collector by OTLP over HTTP.

Imported only where tracing is on. The tracer is our own: a global one, and instrumentation that would use it, is left alone. Attribute names are
those of the messaging conventions 1.44, which are still in development: here is the only place that knows them.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from fifa_stream import __version__
from fifa_stream.config import ConfigError, TelemetrySettings
from fifa_stream.records import FrameRecord, Headers, RawRecord
from fifa_stream.telemetry import LOGGERS, SPANS, Meter

logger = logging.getLogger(__name__)

SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
TRACES_PATH = "/v1/traces"
EXPORT_TIMEOUT_S = 5.0
"""Of one request with its retries, on the exporter's thread."""
EXPORT_EVERY_S = 2.0
MAX_WAITING_SPANS = 8_192
"""More are dropped: a collector that is away costs at most this much memory."""
MAX_STATE_BYTES = 512
"""Of a `tracestate` that goes on: what the standard asks for at least."""
MAX_LINKS = 128
"""Of a batch to the contexts of its frames; the library keeps no more."""
CLOSE_S = 3.0

_PROPAGATOR = TraceContextTextMapPropagator()


def exporter(endpoint: str) -> SpanExporter:
    """To a collector. Raises ConfigError where it is not installed."""
    try:
        from opentelemetry.exporter.otlp.proto.http import Compression
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise ConfigError(
            f"telemetry.otlp_endpoint {endpoint!r} needs {error.name}, which is not installed; pip install 'fifa-stream[otlp]', or unset it"
        ) from None
    url = endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + TRACES_PATH
    return OTLPSpanExporter(endpoint=url, timeout=EXPORT_TIMEOUT_S, compression=Compression.Gzip)


class OtlpTracing:
    """`Tracing` with spans that are exported."""

    is_on = True

    def __init__(self, telemetry: TelemetrySettings, exporter: SpanExporter, *, group: str | None, meter: Meter) -> None:
        """`group` of a worker; None for a sender."""
        self._ratio = telemetry.trace_sample_ratio
        self._common: dict[str, AttributeValue] = {"messaging.system": "kafka"}
        if group is not None:
            self._common["messaging.consumer.group.name"] = group
        # A worker decides before it makes a span, which costs far more than to decide; only a sender has to tell others of a no.
        root = ALWAYS_ON if group is not None else TraceIdRatioBased(self._ratio)
        resource = Resource.create({"service.name": telemetry.service_name, "service.version": __version__})
        self._provider = TracerProvider(sampler=ParentBased(root), resource=resource, shutdown_on_exit=False)
        watched = WatchedExporter(exporter, meter, telemetry.otlp_endpoint or "")
        self._provider.add_span_processor(BatchSpanProcessor(watched, max_queue_size=MAX_WAITING_SPANS, schedule_delay_millis=1_000 * EXPORT_EVERY_S))
        self._tracer = self._provider.get_tracer("fifa_stream", __version__, schema_url=SCHEMA_URL)
        self._trace_ids = _TraceIds()
        self._handlers = {handler for name in LOGGERS for handler in logging.getLogger(name).handlers}
        for handler in self._handlers:
            handler.addFilter(self._trace_ids)

    @contextlib.contextmanager
    def batch(self, frames: Sequence[FrameRecord]) -> Iterator[SpanContext | None]:
        """Current on this thread, so that log lines name it."""
        traced = [(frame.raw, frame.traceparent) for frame in frames if frame.traceparent is not None and _is_sampled(frame.traceparent)]
        if not traced and not any(frame.traceparent is None and self._begins_with(frame.raw) for frame in frames):
            yield None
            return
        topic = frames[0].raw.topic
        attributes = self._attributes("infer", "process", topic) | {"messaging.batch.message_count": len(frames)}
        links = [Link(_context_of(raw, traceparent)) for raw, traceparent in traced[:MAX_LINKS]]
        with self._tracer.start_as_current_span(f"infer {topic}", Context(), SpanKind.CONSUMER, attributes, links) as span:
            yield span.get_span_context()

    def answer(self, raw: RawRecord, traceparent: str | None, *, seconds_ago: float, batch: object | None) -> "OtlpSpan | None":
        """A child of the sender's span."""
        if traceparent is None:
            if not self._begins_with(raw):
                return None
            parent = Context()
        elif _is_sampled(traceparent):
            parent = trace.set_span_in_context(NonRecordingSpan(_context_of(raw, traceparent)), Context())
        else:
            return None
        attributes = self._attributes("process", "process", raw.topic) | {
            "messaging.destination.partition.id": str(raw.partition),
            "messaging.kafka.offset": raw.offset,
        }
        links = [Link(batch)] if isinstance(batch, SpanContext) else None
        began_ns = time.time_ns() - round(1e9 * seconds_ago)
        return OtlpSpan(self._tracer.start_span(f"process {raw.topic}", parent, SpanKind.CONSUMER, attributes, links, start_time=began_ns))

    def send(self, topic: str) -> "OtlpSpan":
        """Sampled or not: what is not sampled says so to whoever reads it."""
        return OtlpSpan(self._tracer.start_span(f"send {topic}", Context(), SpanKind.PRODUCER, self._attributes("send", "send", topic)))

    def _begins_with(self, raw: RawRecord) -> bool:
        """Whether a trace begins with a frame that came without one."""
        return raw.is_in_share(self._ratio)

    def _attributes(self, name: str, kind: str, topic: str) -> dict[str, AttributeValue]:
        return {
            **self._common,
            "messaging.operation.name": name,
            "messaging.operation.type": kind,
            "messaging.destination.name": topic,
        }

    def close(self) -> None:
        """On a thread of its own, because the library would wait for a collector that is away for half a minute."""
        for handler in self._handlers:
            handler.removeFilter(self._trace_ids)
        ending = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        ending.start()
        ending.join(CLOSE_S)


def _is_sampled(traceparent: str) -> bool:
    """Whether the sender records this trace."""
    return int(traceparent[53:55], 16) & 1 == 1


def _context_of(raw: RawRecord, traceparent: str) -> SpanContext:
    """The context that a record came with; its form is checked where headers are read."""
    states = [value.decode("ascii", "replace") for name, value in raw.headers if name.lower() == "tracestate" and len(value) <= MAX_STATE_BYTES]
    flags = trace.TraceFlags(int(traceparent[53:55], 16))
    return SpanContext(int(traceparent[3:35], 16), int(traceparent[36:52], 16), True, flags, trace.TraceState.from_header(states[-1:]))


class OtlpSpan:
    """`OpenSpan` of OpenTelemetry."""

    __slots__ = ("_span", "headers")

    def __init__(self, span: Span) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(span, Context()))
        self.headers: Headers = tuple((name, value.encode()) for name, value in carrier.items())

    def end(self, *, label: str | None = None, error: str | None = None) -> None:
        """An error makes the span one that failed."""
        if label is not None:
            self._span.set_attribute("fifa.label", label)
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class WatchedExporter(SpanExporter):
    """Counts what another exporter exports, and says once when it begins to fail and once when it works again."""

    def __init__(self, exporter: SpanExporter, meter: Meter, endpoint: str) -> None:
        self._exporter, self._meter, self._endpoint = exporter, meter, endpoint
        self._is_failing = False
        self._library = _LastWords()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """On the processor's thread."""
        result = self._exporter.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        self._meter.add(SPANS, len(spans), outcome="failed" if failed else "exported")
        if failed and not self._is_failing:
            logger.warning(
                "spans are not exported, frames are answered all the same: telemetry.otlp_endpoint=%s cause=%s", self._endpoint, self._library.message
            )
        elif self._is_failing and not failed:
            logger.info("spans are exported again: telemetry.otlp_endpoint=%s", self._endpoint)
        self._is_failing = failed
        return result

    def shutdown(self) -> None:
        """The other one as well."""
        self._exporter.shutdown()
        self._library.close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing waits here."""
        return self._exporter.force_flush(timeout_millis)


class _LastWords(logging.Handler):
    """Keeps what the library logged last, and so keeps it off standard error. It logs every try of every batch; one line of ours says as much."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.message = "unknown"
        self._logger = logging.getLogger("opentelemetry")
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        # The first try says why; the last one only that it was the last. Others of the library speak of frames' headers: not of export.
        is_cause = "retrying" in (message := record.getMessage()) or self.message == "unknown"
        if is_cause and record.name.startswith("opentelemetry.exporter"):
            self.message = " ".join(message.split())[:300]

    def close(self) -> None:
        self._logger.removeHandler(self)
        super().close()


class _TraceIds(logging.Filter):
    """Lets every line through, with the ids of the span that is current where it was logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            record.trace_id, record.span_id = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
        return True
