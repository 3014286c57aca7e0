"""What an operator sees: one typed list of metrics, one-line logs, and the health port."""

import contextlib
import itertools
import json
import logging
import socket
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

logger = logging.getLogger(__name__)

STALL_AFTER_S = 60.0
"""Without a turn of the loop for this long the process is not alive: the loop turns even while inference is busy."""
MAX_CLIENTS = 32
"""Of the health port at once, each on a thread; beyond it the one that came first is cut off, so a probe is always heard."""
LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
END_TO_END_BUCKETS_S = (*LATENCY_BUCKETS_S, 60.0, 300.0, 1800.0)
"""A backlog makes frames old by minutes."""
STAGE_BUCKETS_S = (0.001, 0.0025, *LATENCY_BUCKETS_S)
SIZE_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
DIFFERENCE_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
SCORE_BUCKETS = tuple(number / 20 for number in range(1, 21))
"""The bins of a bundle's score baseline."""

Labels = tuple[str, ...]
"""Values of a metric's labels, in the order of `Metric.labels`."""


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One family of time series, compared by identity. Labels are bounded: never a stream id. A gauge is absent until it is set."""

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
FRAMES_SHED = Metric("fifa_frames_shed_total", "counter", "records", "Frames skipped by the shedding policy, by reason.", ("reason",))
LAG_RECORDS = Metric(
    "fifa_consumer_lag_records",
    "gauge",
    "records",
    "High watermark minus committed offset of each partition of this member, as known to its own consumer.",
    ("group", "topic", "partition"),
)
LAG_SECONDS = Metric(
    "fifa_consumer_lag_seconds",
    "gauge",
    "seconds",
    "Age of the oldest record that this member polled and has not committed, by the record's timestamp; 0 without one.",
    ("group", "topic"),
)
E2E_SECONDS = Metric(
    "fifa_e2e_latency_seconds",
    "histogram",
    "seconds",
    "From the record's timestamp to the broker's acknowledgement of the answer. With exactly_once readers see it at the next commit.",
    (),
    END_TO_END_BUCKETS_S,
)
FRAME_SECONDS = Metric(
    "fifa_frame_seconds", "histogram", "seconds", "From the poll to the broker's acknowledgement of the answer.", (), LATENCY_BUCKETS_S
)
STAGE_SECONDS = Metric(
    "fifa_stage_seconds",
    "histogram",
    "seconds",
    "Each stage, once a batch or call and never once a frame: poll (that brought records), queue (a batch's first frame, from the poll to the "
    "engine), decode, detect, infer (explanations and masks as well), produce (one answer at a time, from hand-over to acknowledgement), commit.",
    ("stage",),
    STAGE_BUCKETS_S,
)
BATCH_SIZE = Metric("fifa_batch_frames", "histogram", "frames", "Frames per inference batch.", (), SIZE_BUCKETS)
BATCH_SECONDS = Metric("fifa_batch_seconds", "histogram", "seconds", "Decode, detection and inference of one batch.", (), LATENCY_BUCKETS_S)
BATCH_RETRIES = Metric("fifa_batch_retries_total", "counter", "batches", "Batches tried again after a transient error.")
QUEUE_DEPTH = Metric(
    "fifa_queue_depth", "gauge", "records", "Records that wait: for a claimed image (fetch), for the engine (engine), to be sent (send).", ("queue",)
)
IN_FLIGHT_RECORDS = Metric("fifa_in_flight_records", "gauge", "records", "Polled and not yet answered.")
IN_FLIGHT_BYTES = Metric("fifa_in_flight_bytes", "gauge", "bytes", "Encoded bytes of the records in flight.")
PAUSED = Metric("fifa_consumption_paused", "gauge", "0 or 1", "1 while back-pressure holds consumption.")
LAST_POLL = Metric("fifa_last_poll_timestamp_seconds", "gauge", "Unix time", "When the loop last came back from a poll.")
PARTITIONS = Metric("fifa_assigned_partitions", "gauge", "partitions", "Partitions of the frames topic held by this member.")
REBALANCES = Metric(
    "fifa_rebalances_total",
    "counter",
    "rebalances",
    "Changes of assignment that this member was told of: partitions assigned, revoked, or lost without notice.",
    ("event",),
)
RESTARTS = Metric("fifa_restarts_total", "counter", "restarts", "Returns to the committed offsets with a new producer, after a failed delivery.")
COMMITS = Metric("fifa_commits_total", "counter", "commits", "Offset commits, by outcome.", ("outcome",))
FACE_SCORE = Metric(
    "fifa_face_score",
    "histogram",
    "calibrated score",
    "fake_score of every face that passed quality, by its label, in the bins of the bundle's baseline.",
    ("label",),
    SCORE_BUCKETS,
)
SCORE_PSI = Metric(
    "fifa_score_psi",
    "gauge",
    "PSI",
    "Population stability index of the last scores against the baseline; absent without a baseline, and until there are enough scores.",
)
ENGINE_INFO = Metric(
    "fifa_engine_info", "gauge", "1", "The engine that answers here.", ("name", "version", "manifest_sha256", "backend", "precision")
)
ENGINE_LOAD_SECONDS = Metric("fifa_engine_load_seconds", "gauge", "seconds", "How long it took to load the engine.")
SHADOW_FRAMES = Metric(
    "fifa_shadow_frames_total",
    "counter",
    "frames",
    "Frames that a second engine judged as well: their labels agreed, disagreed, or it failed.",
    ("outcome",),
)
SHADOW_SCORE_DIFFERENCE = Metric(
    "fifa_shadow_score_difference",
    "histogram",
    "calibrated score",
    "How far the frame's fake_score of the second engine lies from that of the first.",
    (),
    DIFFERENCE_BUCKETS,
)
SHADOW_INFO = Metric(
    "fifa_shadow_info",
    "gauge",
    "1",
    "The engine that is compared and does not answer.",
    ("name", "version", "manifest_sha256", "backend", "precision"),
)
STREAMS_REMEMBERED = Metric("fifa_streams_remembered", "gauge", "streams", "Streams that this member remembers; absent with streams.memory = off.")
STREAMS_FORGOTTEN = Metric(
    "fifa_streams_forgotten_total",
    "counter",
    "streams",
    "Streams that this member forgot, by reason: ended, no_room (streams.max_streams), silent (for a day), unreadable.",
    ("reason",),
)
STREAM_RESTORE_SECONDS = Metric(
    "fifa_stream_restore_seconds",
    "histogram",
    "seconds",
    "Reading what is remembered of the streams of partitions that have come; the loop waits meanwhile.",
    (),
    END_TO_END_BUCKETS_S,
)
STREAM_SNAPSHOT_BYTES = Metric("fifa_stream_snapshot_bytes_total", "counter", "bytes", "Written to kafka.state_topic, with keys and headers.")
WORKER_INFO = Metric("fifa_worker_info", "gauge", "1", "This member of the group.", ("version", "group", "topic", "guarantee"))
SPANS = Metric("fifa_spans_total", "counter", "spans", "Spans handed to the collector, by outcome: exported or failed.", ("outcome",))

METRICS = (
    RECORDS_POLLED,
    VERDICTS_SENT,
    DEAD_LETTERS_SENT,
    RECORDS_HANDED_OVER,
    FRAMES_SHED,
    LAG_RECORDS,
    LAG_SECONDS,
    E2E_SECONDS,
    FRAME_SECONDS,
    STAGE_SECONDS,
    BATCH_SIZE,
    BATCH_SECONDS,
    BATCH_RETRIES,
    QUEUE_DEPTH,
    IN_FLIGHT_RECORDS,
    IN_FLIGHT_BYTES,
    PAUSED,
    LAST_POLL,
    PARTITIONS,
    REBALANCES,
    RESTARTS,
    COMMITS,
    FACE_SCORE,
    SCORE_PSI,
    ENGINE_INFO,
    ENGINE_LOAD_SECONDS,
    SHADOW_FRAMES,
    SHADOW_SCORE_DIFFERENCE,
    SHADOW_INFO,
    STREAMS_REMEMBERED,
    STREAMS_FORGOTTEN,
    STREAM_RESTORE_SECONDS,
    STREAM_SNAPSHOT_BYTES,
    WORKER_INFO,
    SPANS,
)
"""The whole list; docs/configuration.md, the alerts and the dashboard are generated from it."""


class _Distribution:
    """One series of a histogram: how many observations fell at or below each bound and above the one before, and their sum."""

    __slots__ = ("counts", "total")

    def __init__(self, num_bounds: int) -> None:
        self.counts = [0] * (num_bounds + 1)
        self.total = 0.0


class Meter(Collector):
    """Counts and measures by `Metric`; one per process or test. Any thread may call.

    Holds the numbers itself and hands them to prometheus_client when they are read: its own objects look a series up, take two locks and search the
    buckets for each single observation, which the loop would pay for every record.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[Metric, dict[Labels, float]] = {
            metric: {(): 0.0} if metric.kind == "counter" and not metric.labels else {} for metric in METRICS if metric.kind != "histogram"
        }
        self._distributions: dict[Metric, dict[Labels, _Distribution]] = {
            metric: {} if metric.labels else {(): _Distribution(len(metric.buckets))} for metric in METRICS if metric.kind == "histogram"
        }
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def add(self, metric: Metric, amount: float = 1, /, **labels: str) -> None:
        """Count one, or `amount`. 0 makes the series known: a rate needs one before its first event."""
        assert metric.kind == "counter", f"{metric.name} is not a counter"
        self._add(metric, _key(metric, labels), amount)

    def add_all(self, metric: Metric, amounts: Mapping[str, float]) -> None:
        """Count for each value of the metric's one label, at once."""
        assert metric.kind == "counter" and len(metric.labels) == 1, f"{metric.name} is not a counter with one label"
        series = self._numbers[metric]
        with self._lock:
            for label, amount in amounts.items():
                series[label,] = series.get((label,), 0.0) + amount

    def _add(self, metric: Metric, key: Labels, amount: float) -> None:
        series = self._numbers[metric]
        with self._lock:
            series[key] = series.get(key, 0.0) + amount

    def set(self, metric: Metric, value: float, /, **labels: str) -> None:
        """Set one series of a gauge."""
        assert metric.kind == "gauge", f"{metric.name} is not a gauge"
        key = _key(metric, labels)
        with self._lock:
            self._numbers[metric][key] = value

    def set_all(self, metric: Metric, values: Mapping[Labels, float]) -> None:
        """Make these the only series of a gauge: what is no longer there is no longer shown."""
        assert metric.kind == "gauge", f"{metric.name} is not a gauge"
        assert all(len(key) == len(metric.labels) for key in values), f"{metric.name} has labels {metric.labels}"
        with self._lock:
            self._numbers[metric] = dict(values)

    def observe(self, metric: Metric, value: float, /, **labels: str) -> None:
        """Add one observation to a histogram."""
        self.observe_all(metric, (value,), **labels)

    def observe_all(self, metric: Metric, values: Iterable[float], /, **labels: str) -> None:
        """Add observations to one series of a histogram, at once."""
        assert metric.kind == "histogram", f"{metric.name} is not a histogram"
        key, bounds, series = _key(metric, labels), metric.buckets, self._distributions[metric]
        with self._lock:
            distribution = series.get(key)
            if distribution is None:
                distribution = series[key] = _Distribution(len(bounds))
            counts = distribution.counts
            for value in values:
                counts[bisect_left(bounds, value)] += 1
                distribution.total += value

    def value(self, metric: Metric, **labels: str) -> float:
        """Read a counter or gauge back, 0 where it is absent; a histogram gives its number of observations."""
        key = _key(metric, labels)
        with self._lock:
            if metric.kind == "histogram":
                distribution = self._distributions[metric].get(key)
                return 0 if distribution is None else sum(distribution.counts)
            return self._numbers[metric].get(key, 0.0)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        """What prometheus_client asks of a collector."""
        with self._lock:
            families = [self._family(metric) for metric in METRICS]
        yield from families

    def _family(self, metric: Metric) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
        if metric.kind == "histogram":
            family = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
            bounds = [*map(floatToGoString, metric.buckets), "+Inf"]
            for key, distribution in self._distributions[metric].items():
                below = itertools.accumulate(distribution.counts)
                family.add_metric(key, list(zip(bounds, map(float, below), strict=True)), distribution.total)
            return family
        numbers = (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(metric.name, metric.meaning, labels=metric.labels)
        for key, value in self._numbers[metric].items():
            numbers.add_metric(key, value)
        return numbers

    def exposition(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)


def _key(metric: Metric, labels: Mapping[str, str]) -> Labels:
    if not labels and not metric.labels:
        return ()
    assert labels.keys() == set(metric.labels), f"{metric.name} has labels {metric.labels}, got {tuple(labels)}"
    return tuple([labels[name] for name in metric.labels])


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


class _Server(ThreadingHTTPServer):
    """For clients that nobody chose: scanners that hang up, and whoever holds a connection without asking for anything."""

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._clients: dict[Any, None] = {}
        """Connections, in the order in which they came."""
        self._lock = threading.Lock()
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # `::` is IPv4 too, whatever the machine's default is
        super().server_bind()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._clients[request] = None
            if len(self._clients) > MAX_CLIENTS:
                oldest = next(iter(self._clients))
                del self._clients[oldest]
                with contextlib.suppress(OSError):  # it has just gone by itself
                    oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The library prints a traceback, in any format of logs, for each client that hangs up."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            logger.exception("the health port failed on a request")


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
            self._server = _Server(host, port, Handler)
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


LOGGERS = ("fifa_stream", "engines")
"""Ours."""
TRACE_FIELDS = ("trace_id", "span_id")
"""On lines logged while a span is current, where tracing is on (`fifa_stream.otlp`)."""


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
        line |= {name: getattr(record, name) for name in TRACE_FIELDS if hasattr(record, name)}
        return json.dumps(line, ensure_ascii=False)


_CONTROLS = {code: ascii(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}
"""What ends a line somewhere, or steers a terminal, to its escape."""


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        # A client chooses header text, and header text reaches messages: one event stays one line, and says nothing to a terminal.
        text = f"{time} {record.levelname:<7} {record.name}: {record.getMessage().translate(_CONTROLS)}"
        text += "".join(f" {name}={getattr(record, name)}" for name in TRACE_FIELDS if hasattr(record, name))
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def configure_logging(*, level: str, style: Literal["text", "json"], kafka_level: str) -> None:
    """Send our loggers and kafka-python's to standard error, one line an event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if style == "json" else _TextLines())
    for name, its_level in (*((ours, level) for ours in LOGGERS), ("kafka", kafka_level)):
        named = logging.getLogger(name)
        named.handlers = [handler]
        named.setLevel(its_level)
        named.propagate = False
