"""Traces: one goes from the producer of a frame to its verdict, a header is never doubled, and a collector that is away costs nothing but spans."""

import functools
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from pydantic import ValidationError

from fifa_stream import otlp
from fifa_stream.config import BatchSettings, ConfigError, KafkaSettings, Settings, TelemetrySettings
from fifa_stream.engine_thread import Result
from fifa_stream.otlp import OtlpTracing
from fifa_stream.records import FrameRecord, Headers, OutRecord, RawRecord, parse_frame
from fifa_stream.runner import Runner
from fifa_stream.send import frame_record
from fifa_stream.telemetry import SPANS, Meter, configure_logging
from fifa_stream.testing import FakeClock, InlineWorker, MemoryBroker, MemoryConsumer, MemoryProducer, ToyProcessor
from fifa_stream.tracing import NoTracing, Tracing, carrying, open_tracing, plain_send

from .otlp_collector import Collector, attributes, collector

FRAMES, VERDICTS, DEAD = "fifa.frames", "fifa.verdicts", "fifa.dead-letters"
SAMPLED = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = SAMPLED[:-1] + b"0"


@pytest.fixture
def traces() -> Iterator[Collector]:
    """A collector that listens."""
    with collector() as ours:
        yield ours


@pytest.fixture
def logging_restored() -> Iterator[None]:
    names = ("fifa_stream", "engines", "kafka")
    before = [(logging.getLogger(name), logging.getLogger(name).handlers, logging.getLogger(name).level) for name in names]
    yield
    for logger, handlers, level in before:
        logger.handlers, logger.propagate = handlers, True
        logger.setLevel(level)


def worker_tracing(traces: Collector, *, ratio: float = 0.0, meter: Meter | None = None) -> Tracing:
    return open_tracing(TelemetrySettings(otlp_endpoint=traces.endpoint, trace_sample_ratio=ratio), group="g", meter=meter)


class Rig:
    """A loop with tracing over an in-memory broker."""

    def __init__(self, tracing: Tracing, processor: ToyProcessor | None = None) -> None:
        self.clock = FakeClock()
        self.worker: InlineWorker | None = None
        self.broker = MemoryBroker({FRAMES: 1, VERDICTS: 1, DEAD: 1})
        self.consumer = MemoryConsumer(self.broker, "g", clock=self.clock)
        self.producer = MemoryProducer(self.broker)
        self.runner = Runner(
            Settings(kafka=KafkaSettings(group_id="g"), batch=BatchSettings(max_frames=4)),
            processor or ToyProcessor(),
            consumer=self.consumer,
            open_producer=lambda: self.producer,
            worker=self._inline,
            tracing=tracing,
            clock=self.clock,
        )
        self.consumer.subscribe(FRAMES, self.runner)

    def _inline(self, process: Callable[..., Any]) -> InlineWorker:
        self.worker = InlineWorker(process)
        return self.worker

    def answer(self, *records: OutRecord) -> list[Headers]:
        """Send frames, let the loop answer them; headers of the verdicts and dead letters."""
        for record in records:
            self.broker.append(FRAMES, record)
        for _ in range(5 + len(records)):
            self.runner.turn()
        return [record.headers for topic in (VERDICTS, DEAD) for record in self.broker.records(topic)]


def frame(*headers: tuple[str, bytes], value: bytes = b"image") -> OutRecord:
    return OutRecord(b"cam-1", value, headers)


def named(headers: Headers, name: str) -> list[bytes]:
    return [value for its, value in headers if its == name]


def kinds(spans: Sequence[Span]) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = {}
    for span in spans:
        found.setdefault(span.name, []).append(span)
    return found


def test_a_trace_goes_from_the_producer_through_the_worker_to_the_verdict(traces: Collector) -> None:
    sender = open_tracing(TelemetrySettings(otlp_endpoint=traces.endpoint, trace_sample_ratio=1.0, service_name="camera"))
    sending = sender.send(FRAMES)
    assert sending is not None
    record = carrying(frame_record(b"image", stream_id="cam-1", frame_index=0), sending)
    sending.end()
    sender.close()

    worker = worker_tracing(traces)
    (verdict,) = Rig(worker).answer(record)
    worker.close()

    assert [request.resource_spans[0].scope_spans[0].scope.name for request in traces.requests] == ["fifa_stream"] * 2
    services = [attributes(request.resource_spans[0].resource)["service.name"] for request in traces.requests]
    assert services == ["camera", "fifa-stream"]
    assert set(traces.paths) == {"/v1/traces"}
    spans = kinds(traces.spans)
    (sent,), (processed,), (inferred,) = spans["send fifa.frames"], spans["process fifa.frames"], spans["infer fifa.frames"]
    assert (sent.kind, processed.kind, inferred.kind) == (Span.SPAN_KIND_PRODUCER, Span.SPAN_KIND_CONSUMER, Span.SPAN_KIND_CONSUMER)
    assert not sent.parent_span_id
    assert (processed.trace_id, processed.parent_span_id) == (sent.trace_id, sent.span_id)
    assert [(link.trace_id, link.span_id) for link in inferred.links] == [(sent.trace_id, sent.span_id)]
    assert [(link.trace_id, link.span_id) for link in processed.links] == [(inferred.trace_id, inferred.span_id)]
    (value,) = named(verdict, "traceparent")
    assert value[:53] == f"00-{sent.trace_id.hex()}-{processed.span_id.hex()}-".encode()
    assert int(value[53:], 16) & 1
    assert attributes(processed) == {
        "messaging.system": "kafka",
        "messaging.consumer.group.name": "g",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": FRAMES,
        "messaging.destination.partition.id": "0",
        "messaging.kafka.offset": 0,
        "fifa.label": "inconclusive",
    }
    assert attributes(inferred)["messaging.batch.message_count"] == 1
    assert attributes(sent)["messaging.operation.type"] == "send"


def test_one_span_for_each_batch_and_one_for_each_traced_frame_of_it(traces: Collector) -> None:
    tracing = worker_tracing(traces)
    contexts = [SAMPLED.replace(b"00f067aa0ba902b7", f"{number:016x}".encode()) for number in (1, 2, 3)]
    answers = Rig(tracing).answer(*(frame(("traceparent", context)) for context in contexts), frame(("traceparent", UNSAMPLED)))
    tracing.close()
    spans = kinds(traces.spans)
    (inferred,) = spans["infer fifa.frames"]
    assert attributes(inferred)["messaging.batch.message_count"] == 4
    assert [link.span_id.hex() for link in inferred.links] == [f"{number:016x}" for number in (1, 2, 3)]
    assert [span.parent_span_id.hex() for span in spans["process fifa.frames"]] == [f"{number:016x}" for number in (1, 2, 3)]
    assert all(len(named(headers, "traceparent")) == 1 for headers in answers)


def test_a_context_that_came_twice_goes_on_once_and_with_its_state(traces: Collector) -> None:
    tracing = worker_tracing(traces)
    old = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    (verdict,) = Rig(tracing).answer(frame(("traceparent", old), ("traceparent", SAMPLED), ("tracestate", b"vendor=1")))
    tracing.close()
    (value,) = named(verdict, "traceparent")
    assert value.startswith(SAMPLED[:36]) and value != SAMPLED, "the same trace, our span"
    assert named(verdict, "tracestate") == [b"vendor=1"]


@pytest.mark.parametrize("state", [pytest.param(b"no list, = of pairs", id="malformed"), pytest.param(b"a=" + b"x" * 1_000_000, id="a megabyte")])
def test_a_state_that_is_none_is_left_out_and_the_trace_goes_on(traces: Collector, state: bytes) -> None:
    tracing = worker_tracing(traces)
    (verdict,) = Rig(tracing).answer(frame(("traceparent", SAMPLED), ("tracestate", state)))
    tracing.close()
    (value,) = named(verdict, "traceparent")
    assert value.startswith(SAMPLED[:36]) and value != SAMPLED
    assert named(verdict, "tracestate") == []


def test_a_frame_that_its_sender_does_not_trace_is_not_traced_here(traces: Collector) -> None:
    tracing = worker_tracing(traces, ratio=1.0)
    (verdict,) = Rig(tracing).answer(frame(("traceparent", UNSAMPLED)))
    tracing.close()
    assert named(verdict, "traceparent") == [UNSAMPLED]
    assert traces.spans == []


@pytest.mark.parametrize(("ratio", "fewest", "most"), [(0.0, 0, 0), (0.01, 8, 12), (0.25, 245, 255), (1.0, 1_000, 1_000)])
def test_traces_begin_with_the_asked_part_of_frames_that_came_without(traces: Collector, ratio: float, fewest: int, most: int) -> None:
    tracing = worker_tracing(traces, ratio=ratio)
    raws = [RawRecord(FRAMES, 2, offset, 0, None, b"image", ()) for offset in range(1_000)]
    begun = [span for raw in raws if (span := tracing.answer(raw, None, seconds_ago=0.0, batch=None)) is not None]
    assert fewest <= len(begun) <= most
    for raw in raws:
        with tracing.batch([parse_frame(raw, max_value_bytes=10)]) as batch:
            again = tracing.answer(raw, None, seconds_ago=0.0, batch=batch)
            assert (batch is None) == (again is None), "batch and answer agree on every frame"
    tracing.close()


def test_a_sender_tells_the_worker_what_it_does_not_sample(traces: Collector) -> None:
    sender = open_tracing(TelemetrySettings(otlp_endpoint=traces.endpoint, trace_sample_ratio=0.0))
    sending = sender.send(FRAMES)
    assert sending is not None
    (value,) = named(sending.headers, "traceparent")
    assert int(value[-2:], 16) & 1 == 0
    sender.close()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        pytest.param(frame(("traceparent", SAMPLED), value=b"bad"), "undecodable_image", id="by the engine"),
        pytest.param(frame(("traceparent", SAMPLED), ("frame-index", b"x")), "invalid_header", id="by its headers"),
    ],
)
def test_a_dead_letter_keeps_the_headers_that_came_and_its_span_says_why(traces: Collector, record: OutRecord, reason: str) -> None:
    tracing = worker_tracing(traces)
    (letter,) = Rig(tracing).answer(record)
    tracing.close()
    assert letter[: len(record.headers)] == record.headers
    assert len(named(letter, "traceparent")) == 1
    (processed,) = kinds(traces.spans)["process fifa.frames"]
    assert attributes(processed)["error.type"] == reason
    assert processed.status.code == Status.STATUS_CODE_ERROR


def test_a_frame_that_goes_to_another_member_ends_its_span(traces: Collector) -> None:
    tracing = worker_tracing(traces)
    rig = Rig(tracing)
    rig.producer.hold = True
    rig.answer(frame(("traceparent", SAMPLED)))
    rig.producer.hold, rig.producer.fail_after = False, 0
    rig.runner.turn()
    tracing.close()
    (processed,) = kinds(traces.spans)["process fifa.frames"]
    assert attributes(processed)["error.type"] == "handed_over"


def test_a_span_begins_at_the_poll_and_ends_at_the_acknowledgement(traces: Collector) -> None:
    tracing = worker_tracing(traces)
    rig = Rig(tracing)
    assert rig.worker is not None
    rig.worker.hold = rig.producer.hold = True
    rig.answer(frame(("traceparent", SAMPLED)))
    rig.clock.advance(7.0)
    rig.worker.hold = False
    rig.runner.turn()
    answered_ns = time.time_ns()
    rig.producer.hold = False
    rig.runner.turn()
    tracing.close()
    (processed,), (inferred,) = kinds(traces.spans)["process fifa.frames"], kinds(traces.spans)["infer fifa.frames"]
    assert processed.start_time_unix_nano <= inferred.start_time_unix_nano - 7_000_000_000
    assert inferred.end_time_unix_nano <= answered_ns <= processed.end_time_unix_nano


class Talking(ToyProcessor):
    """Logs while it works."""

    def process(self, frames: Sequence[FrameRecord]) -> list[Result]:
        logging.getLogger("engines.toy").info("looking")
        return super().process(frames)


@pytest.mark.parametrize("style", ["text", "json"])
def test_log_lines_of_a_traced_batch_name_its_trace(
    traces: Collector, style: str, capsys: pytest.CaptureFixture[str], logging_restored: None
) -> None:
    configure_logging(level="INFO", style="json" if style == "json" else "text", kafka_level="CRITICAL")
    tracing = worker_tracing(traces)
    rig = Rig(tracing, Talking())
    rig.answer(frame(("traceparent", SAMPLED)))
    rig.answer(frame())
    tracing.close()
    logging.getLogger("engines.toy").info("looking")
    (inferred,) = kinds(traces.spans)["infer fifa.frames"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "looking" in line]
    assert len(lines) == 3
    if style == "json":
        first, *others = (json.loads(line) for line in lines)
        assert (first["trace_id"], first["span_id"]) == (inferred.trace_id.hex(), inferred.span_id.hex())
        assert all("trace_id" not in other for other in others)
    else:
        assert lines[0].endswith(f" trace_id={inferred.trace_id.hex()} span_id={inferred.span_id.hex()}")
        assert all("trace_id" not in line for line in lines[1:])


def test_a_collector_that_refuses_costs_spans_and_one_line(
    traces: Collector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "EXPORT_EVERY_S", 0.02)
    meter = Meter()
    traces.status = 400
    tracing = worker_tracing(traces, meter=meter)
    rig = Rig(tracing)
    with caplog.at_level(logging.INFO):
        for number in range(1, 4):
            assert len(rig.answer(frame(("traceparent", SAMPLED)))) == number, "every frame is answered"
            with traces.arrived:
                assert traces.arrived.wait_for(lambda want=number: len(traces.paths) >= want, 60)  # type: ignore[misc]
        traces.status = 200
        rig.answer(frame(("traceparent", SAMPLED)))
        traces.wait(1)
        tracing.close()
    said = [record for record in caplog.records if record.name.startswith("fifa_stream")]
    warnings = [record.getMessage() for record in said if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert (
        warnings[0].startswith("spans are not exported, frames are answered all the same") and traces.endpoint in warnings[0] and "400" in warnings[0]
    )
    assert sum("exported again" in record.getMessage() for record in said) == 1
    assert meter.value(SPANS, outcome="failed") + meter.value(SPANS, outcome="exported") == 8
    assert meter.value(SPANS, outcome="failed") >= 1


def test_nobody_at_the_endpoint_is_told_with_its_cause(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "EXPORT_TIMEOUT_S", 0.2)
    with collector() as gone:
        pass
    meter = Meter()
    tracing = worker_tracing(gone, meter=meter)
    assert len(Rig(tracing).answer(frame(("traceparent", SAMPLED)))) == 1
    tracing.close()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING and record.name == "fifa_stream.otlp"]
    assert "refused" in warning or "timeout" in warning
    assert meter.value(SPANS, outcome="failed") == 2


class Stuck(SpanExporter):
    """Never comes back from its first export, until released."""

    def __init__(self) -> None:
        self.entered, self.release = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        self.release.wait()
        return SpanExportResult.SUCCESS


def test_an_exporter_that_hangs_neither_stops_the_loop_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "MAX_WAITING_SPANS", 512)
    monkeypatch.setattr(otlp, "EXPORT_EVERY_S", 0.02)
    monkeypatch.setattr(otlp, "CLOSE_S", 0.1)
    stuck = Stuck()
    tracing = OtlpTracing(TelemetrySettings(trace_sample_ratio=1.0), stuck, group="g", meter=Meter())
    rig = Rig(tracing)
    try:
        rig.answer(frame())
        assert stuck.entered.wait(60)
        assert len(rig.answer(*(frame() for _ in range(1_500)))) == 1_501, "more than the queue holds"
        tracing.close()
        assert not stuck.release.is_set()
    finally:
        stuck.release.set()
        for thread in threading.enumerate():
            if thread.name == "spans":
                thread.join(60)


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    assert isinstance(open_tracing(TelemetrySettings()), NoTracing)
    code = (
        "import sys, fifa_stream.cli, fifa_stream.serve, fifa_stream.send\n"
        "from fifa_stream.config import TelemetrySettings\n"
        "from fifa_stream.tracing import open_tracing\n"
        "open_tracing(TelemetrySettings())\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_exporter_is_one_line_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with pytest.raises(ConfigError, match=r"telemetry\.otlp_endpoint 'http://collector:4318' needs .*pip install 'fifa-stream\[otlp\]'"):
        open_tracing(TelemetrySettings(otlp_endpoint="http://collector:4318"), group="g")


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://[::1]:4318/otlp/v1/traces", "https://[::1]:4318/otlp/v1/traces"),
    ],
)
def test_an_endpoint_without_a_path_gets_the_standard_s(endpoint: str, url: str) -> None:
    found = otlp.exporter(TelemetrySettings(otlp_endpoint=endpoint).otlp_endpoint or "")
    assert found._endpoint == url  # type: ignore[attr-defined]
    found.shutdown()


@pytest.mark.parametrize(
    "endpoint", ["collector:4318", "http://user:secret@collector:4318", "grpc://collector:4317", "http://c:99999", "http://c/?a=b"]
)
def test_an_endpoint_that_is_none_or_holds_a_secret_is_refused(endpoint: str) -> None:
    with pytest.raises(ValidationError):
        TelemetrySettings(otlp_endpoint=endpoint)


def test_automatic_instrumentation_does_not_add_its_own_context() -> None:
    class Producer:
        def send(self, topic: str, *, headers: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
            return headers

    original: Any = Producer.send

    @functools.wraps(original)
    def instrumented(self: Producer, topic: str, *, headers: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return list(original(self, topic, headers=[*headers, ("traceparent", UNSAMPLED)]))

    assert plain_send(Producer())("t", headers=[("traceparent", SAMPLED)]) == [("traceparent", SAMPLED)]
    Producer.send = instrumented  # type: ignore[method-assign]
    producer = Producer()
    assert len(producer.send("t", headers=[("traceparent", SAMPLED)])) == 2
    assert plain_send(producer)("t", headers=[("traceparent", SAMPLED)]) == [("traceparent", SAMPLED)]
