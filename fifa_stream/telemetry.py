"""What an operator sees: one typed list of metrics, one-line logs, and the health port."""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

logger = logging.getLogger(__name__)

STALL_AFTER_S = 60.0
"""Without a turn of the loop for this long the process is not alive: the loop turns even while inference is busy."""
LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZE_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One time series. Labels are bounded: never a stream id."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


RECORDS_POLLED = Metric("fifa_records_polled_total", "counter", "records", "Records taken from the frames topic.")
VERDICTS_SENT = Metric("fifa_verdicts_total", "counter", "records", "Verdicts acknowledged by the broker, by frame label.", ("label",))
DEAD_LETTERS_SENT = Metric("fifa_dead_letters_total", "counter", "records", "Dead letters acknowledged by the broker, by reason.", ("reason",))
RECORDS_HANDED_OVER = Metric(
    "fifa_records_handed_over_total",
    "counter",
    "records",
    "Records let go unanswered: their partition went, or the loop began again.",
)
BATCH_SIZE = Metric("fifa_batch_frames", "histogram", "frames", "Frames per inference batch.", (), SIZE_BUCKETS)
BATCH_SECONDS = Metric("fifa_batch_seconds", "histogram", "seconds", "Decode, detection and inference of one batch.", (), LATENCY_BUCKETS_S)
FRAME_SECONDS = Metric(
    "fifa_frame_seconds", "histogram", "seconds", "From the poll to the broker's acknowledgement of the answer.", (), LATENCY_BUCKETS_S
)
BATCH_RETRIES = Metric("fifa_batch_retries_total", "counter", "batches", "Batches tried again after a transient error.")
IN_FLIGHT_RECORDS = Metric("fifa_in_flight_records", "gauge", "records", "Polled and not yet answered.")
IN_FLIGHT_BYTES = Metric("fifa_in_flight_bytes", "gauge", "bytes", "Encoded bytes of the records in flight.")
PAUSED = Metric("fifa_consumption_paused", "gauge", "0 or 1", "1 while back-pressure holds consumption.")
PARTITIONS = Metric("fifa_assigned_partitions", "gauge", "partitions", "Partitions of the frames topic held by this member.")
RESTARTS = Metric("fifa_restarts_total", "counter", "restarts", "Returns to the committed offsets with a new producer, after a failed delivery.")
COMMITS = Metric("fifa_commits_total", "counter", "commits", "Offset commits, by outcome.", ("outcome",))

METRICS = (
    RECORDS_POLLED,
    VERDICTS_SENT,
    DEAD_LETTERS_SENT,
    RECORDS_HANDED_OVER,
    BATCH_SIZE,
    BATCH_SECONDS,
    FRAME_SECONDS,
    BATCH_RETRIES,
    IN_FLIGHT_RECORDS,
    IN_FLIGHT_BYTES,
    PAUSED,
    PARTITIONS,
    RESTARTS,
    COMMITS,
)
"""The whole list; docs/configuration.md is generated from it."""


class Meter:
    """Counts and measures by `Metric`; one per process or test."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._series: dict[Metric, Counter | Gauge | Histogram] = {metric: _series(metric, self._registry) for metric in METRICS}

    def add(self, metric: Metric, amount: float = 1, /, **labels: str) -> None:
        """Count one, or `amount`."""
        series = self._series[metric]
        assert isinstance(series, Counter), f"{metric.name} is not a counter"
        (series.labels(**labels) if labels else series).inc(amount)

    def set(self, metric: Metric, value: float) -> None:
        """Set a gauge."""
        series = self._series[metric]
        assert isinstance(series, Gauge), f"{metric.name} is not a gauge"
        series.set(value)

    def observe(self, metric: Metric, value: float) -> None:
        """Add one observation to a histogram."""
        series = self._series[metric]
        assert isinstance(series, Histogram), f"{metric.name} is not a histogram"
        series.observe(value)

    def value(self, metric: Metric, **labels: str) -> float:
        """Read a counter or gauge back; a histogram gives its number of observations."""
        name = f"{metric.name}_count" if metric.kind == "histogram" else metric.name
        return self._registry.get_sample_value(name, labels) or 0.0

    def exposition(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)


def _series(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    if metric.kind == "counter":
        return Counter(metric.name, metric.meaning, metric.labels, registry=registry)
    if metric.kind == "gauge":
        return Gauge(metric.name, metric.meaning, metric.labels, registry=registry)
    return Histogram(metric.name, metric.meaning, metric.labels, registry=registry, buckets=metric.buckets)


def reference() -> str:
    """Every metric as a Markdown table."""
    rows = [f"| `{m.name}` | {m.kind} | {m.unit} | {', '.join(f'`{label}`' for label in m.labels) or '-'} | {m.meaning} |" for m in METRICS]
    return "\n".join(["| metric | kind | unit | labels | meaning |", "|---|---|---|---|---|", *rows, ""])


@dataclass(slots=True)
class Health:
    """The state behind the three probes; written by the loop, read by the health port."""

    clock: Callable[[], float] = time.monotonic
    started: bool = False
    """The engine is loaded and the group joined once."""
    ready: bool = False
    """Takes part in the group and is not draining."""
    last_turn: float = field(init=False)

    def __post_init__(self) -> None:
        self.last_turn = self.clock()

    def turn(self) -> None:
        """Note that the loop went round."""
        self.last_turn = self.clock()

    @property
    def live(self) -> bool:
        """Whether the loop still turns."""
        return self.clock() - self.last_turn <= STALL_AFTER_S


class PortTaken(OSError):
    """The health port cannot be bound."""


class HealthServer:
    """`/health/live`, `/health/ready`, `/health/started` (200 or 503) and `/metrics`, on a thread of its own."""

    def __init__(self, health: Health, meter: Meter, *, host: str, port: int) -> None:
        probes: dict[str, Callable[[], bool]] = {
            "/health/live": lambda: health.live,
            "/health/ready": lambda: health.ready and health.live,
            "/health/started": lambda: health.started,
        }

        class Handler(BaseHTTPRequestHandler):
            timeout = 5

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, meter.exposition())
                elif path in probes:
                    good = probes[path]()
                    self._answer(200 if good else 503, "text/plain", b"ok\n" if good else b"no\n")
                else:
                    self._answer(404, "text/plain", b"/health/live /health/ready /health/started /metrics\n")

            def _answer(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Probes come every few seconds: not logged."""

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise PortTaken(
                f"health port {host}:{port} cannot be bound: {error.strerror}; set runtime.health_port to a free port, or to 0 to turn it off"
            ) from None
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        # A client chooses header text, and header text reaches messages: one event stays one line.
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        text = f"{time} {record.levelname:<7} {record.name}: {message}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def configure_logging(*, level: str, style: Literal["text", "json"], kafka_level: str) -> None:
    """Send our loggers and kafka-python's to standard error, one line an event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if style == "json" else _TextLines())
    for name, its_level in (("fifa_stream", level), ("engines", level), ("kafka", kafka_level)):
        named = logging.getLogger(name)
        named.handlers = [handler]
        named.setLevel(its_level)
        named.propagate = False
