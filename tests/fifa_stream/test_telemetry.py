"""What an operator sees: metrics, probes and logs."""

import json
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from fifa_stream.telemetry import (
    BATCH_SIZE,
    IN_FLIGHT_BYTES,
    METRICS,
    STALL_AFTER_S,
    VERDICTS_SENT,
    Health,
    HealthServer,
    Meter,
    PortTaken,
    configure_logging,
)
from fifa_stream.testing import FakeClock


@pytest.fixture
def logging_restored() -> Iterator[None]:
    names = ("fifa_stream", "engines", "kafka")
    before = [(logging.getLogger(name), logging.getLogger(name).handlers, logging.getLogger(name).level) for name in names]
    yield
    for logger, handlers, level in before:
        logger.handlers, logger.propagate = handlers, True
        logger.setLevel(level)


def get(server: HealthServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metric_names_are_unique_and_say_what_they_are() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("fifa_")
        assert metric.meaning.endswith(".")
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert (metric.kind == "histogram") == bool(metric.buckets)


def test_what_is_counted_is_exposed() -> None:
    meter = Meter()
    meter.add(VERDICTS_SENT, label="fake")
    meter.set(IN_FLIGHT_BYTES, 5)
    meter.observe(BATCH_SIZE, 3)
    text = meter.exposition().decode()
    assert 'fifa_verdicts_total{label="fake"} 1.0' in text
    assert "fifa_in_flight_bytes 5.0" in text
    assert "fifa_batch_frames_count 1.0" in text


def test_probes_follow_the_state() -> None:
    clock = FakeClock()
    health = Health(clock=clock)
    server = HealthServer(health, Meter(), host="127.0.0.1", port=0)
    try:
        assert get(server, "/health/live")[0] == 200
        assert get(server, "/health/started")[0] == 503
        assert get(server, "/health/ready")[0] == 503
        health.started = health.ready = True
        assert get(server, "/health/started?verbose")[0] == 200
        assert get(server, "/health/ready")[0] == 200
        clock.advance(STALL_AFTER_S + 1)
        assert get(server, "/health/live")[0] == 503
        assert get(server, "/health/ready")[0] == 503
        health.turn()
        assert get(server, "/health/live")[0] == 200
        assert "fifa_records_polled_total" in get(server, "/metrics")[1]
        assert get(server, "/elsewhere")[0] == 404
    finally:
        server.close()


def test_a_taken_port_is_one_line_with_its_setting() -> None:
    server = HealthServer(Health(), Meter(), host="127.0.0.1", port=0)
    try:
        with pytest.raises(PortTaken, match=r"runtime\.health_port"):
            HealthServer(Health(), Meter(), host="127.0.0.1", port=server.port)
    finally:
        server.close()


@pytest.mark.parametrize("style", ["text", "json"])
def test_an_event_is_one_line_whatever_a_client_wrote(style: str, capsys: pytest.CaptureFixture[str], logging_restored: None) -> None:
    configure_logging(level="INFO", style="json" if style == "json" else "text", kafka_level="CRITICAL")
    logging.getLogger("fifa_stream.test").info("header=%s", "a\nINFO forged")
    logging.getLogger("kafka.client").error("cannot connect")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    if style == "json":
        assert json.loads(lines[0])["message"] == "header=a\nINFO forged"
    else:
        assert lines[0].endswith("INFO    fifa_stream.test: header=a\\nINFO forged")


def test_a_traceback_is_kept(capsys: pytest.CaptureFixture[str], logging_restored: None) -> None:
    configure_logging(level="INFO", style="json", kafka_level="CRITICAL")
    try:
        raise ZeroDivisionError("zero")
    except ZeroDivisionError:
        logging.getLogger("fifa_stream.test").exception("stopped")
    assert "ZeroDivisionError: zero" in json.loads(capsys.readouterr().err)["exception"]
