"""What an operator sees: metrics, probes and logs."""

import contextlib
import json
import logging
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from fifa_stream.telemetry import (
    BATCH_SIZE,
    COMMITS,
    E2E_SECONDS,
    IN_FLIGHT_BYTES,
    LAG_RECORDS,
    MAX_CLIENTS,
    METRICS,
    SCORE_PSI,
    STAGE_SECONDS,
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


def samples(meter: Meter) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """What Prometheus reads, by name and labels."""
    families = text_string_to_metric_families(meter.exposition().decode())
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}


def test_prometheus_reads_every_metric_with_its_kind_and_labels() -> None:
    meter = Meter()
    for metric in METRICS:
        labels = dict.fromkeys(metric.labels, 'a "quoted"\nvalue\\')
        {"counter": meter.add, "gauge": meter.set, "histogram": meter.observe}[metric.kind](metric, 0.5, **labels)
    families = {family.name: family for family in text_string_to_metric_families(meter.exposition().decode())}
    for metric in METRICS:
        family = families.pop(metric.name.removesuffix("_total"))
        assert (family.type, family.documentation) == (metric.kind, metric.meaning)
        for sample in family.samples:
            assert {**sample.labels, "le": ""}.keys() == {*metric.labels, "le"}
            assert all(sample.labels[name] == 'a "quoted"\nvalue\\' for name in metric.labels)
    assert not families


def test_a_gauge_is_absent_until_it_is_set_and_a_counter_begins_at_0() -> None:
    text = Meter().exposition().decode()
    assert "\nfifa_records_polled_total 0.0" in text
    assert "\nfifa_e2e_latency_seconds_count 0.0" in text
    assert f"\n{SCORE_PSI.name}" not in text


def test_a_gauge_that_is_set_as_a_whole_forgets_what_went() -> None:
    meter = Meter()
    meter.set_all(LAG_RECORDS, {("g", "t", "0"): 5, ("g", "t", "1"): 6})
    meter.set_all(LAG_RECORDS, {("g", "t", "1"): 7})
    shown = {name: value for name, value in samples(meter).items() if name[0] == LAG_RECORDS.name}
    assert shown == {(LAG_RECORDS.name, frozenset({("group", "g"), ("topic", "t"), ("partition", "1")})): 7}


@given(st.lists(st.one_of(st.floats(0, 3_000), st.sampled_from(E2E_SECONDS.buckets)), max_size=50))
def test_observations_fall_where_prometheus_client_puts_them(values: list[float]) -> None:
    registry = CollectorRegistry()
    theirs = Histogram(E2E_SECONDS.name, E2E_SECONDS.meaning, registry=registry, buckets=E2E_SECONDS.buckets)
    for value in values:
        theirs.observe(value)
    meter, one_by_one = Meter(), Meter()
    meter.observe_all(E2E_SECONDS, values)
    for value in values:
        one_by_one.observe(E2E_SECONDS, value)
    expected = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    for ours in (meter, one_by_one):
        found = {name: value for name, value in samples(ours).items() if name[0].startswith(E2E_SECONDS.name)}
        assert found == pytest.approx(expected)
    assert meter.value(E2E_SECONDS) == len(values)


def test_counts_at_once_are_counts_one_by_one() -> None:
    meter = Meter()
    meter.add_all(VERDICTS_SENT, {"fake": 2, "real": 1})
    meter.add(VERDICTS_SENT, 3, label="fake")
    meter.add(COMMITS, 0, outcome="refused")
    assert (meter.value(VERDICTS_SENT, label="fake"), meter.value(VERDICTS_SENT, label="real")) == (5, 1)
    assert samples(meter)["fifa_commits_total", frozenset({("outcome", "refused")})] == 0


def test_a_label_that_a_metric_does_not_have_is_our_mistake() -> None:
    meter = Meter()
    with pytest.raises(AssertionError, match="fifa_verdicts_total has labels"):
        meter.add(VERDICTS_SENT, reason="fake")
    with pytest.raises(AssertionError, match="fifa_verdicts_total has labels"):
        meter.add(VERDICTS_SENT)
    with pytest.raises(AssertionError, match="is not a gauge"):
        meter.set(VERDICTS_SENT, 1)


def test_nothing_is_lost_between_threads_that_count_and_one_that_reads() -> None:
    meter = Meter()

    def count() -> None:
        for _ in range(2_000):
            meter.add_all(VERDICTS_SENT, {"fake": 1})
            meter.observe(STAGE_SECONDS, 0.5, stage="poll")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert samples(meter)
    for thread in threads:
        thread.join()
    assert meter.value(VERDICTS_SENT, label="fake") == 8_000
    assert meter.value(STAGE_SECONDS, stage="poll") == 8_000


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


@pytest.mark.parametrize("host", ["::", "::1"])
def test_the_health_port_binds_to_addresses_of_ipv6(host: str) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    server = HealthServer(Health(), Meter(), host=host, port=0)
    try:
        with urllib.request.urlopen(f"http://[::1]:{server.port}/health/live", timeout=10) as answer:
            assert answer.status == 200
        if host == "::":
            assert get(server, "/health/live")[0] == 200, "the kubelet may come by IPv4"
    finally:
        server.close()


def test_a_client_that_hangs_up_leaves_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    server = HealthServer(Health(), Meter(), host="127.0.0.1", port=0)
    try:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, as load balancers end a check
        client.sendall(b"GET /hea")
        time.sleep(0.1)
        client.close()
        time.sleep(0.1)
        assert get(server, "/health/live")[0] == 200
    finally:
        server.close()
    assert capfd.readouterr().err == ""


def test_clients_that_hold_connections_neither_fill_the_process_with_threads_nor_keep_a_probe_out() -> None:
    server = HealthServer(Health(), Meter(), host="127.0.0.1", port=0)
    before = threading.active_count()
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3 * MAX_CLIENTS)]
    try:
        for client in held:
            with contextlib.suppress(OSError):
                client.sendall(b"GET /health/live HTTP/1.1\r\nX-Slow: ")
        assert get(server, "/health/live")[0] == 200
        deadline = time.monotonic() + 3  # below the timeout of a silent one
        while threading.active_count() > before + MAX_CLIENTS and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() <= before + MAX_CLIENTS
    finally:
        for client in held:
            client.close()
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


def test_text_of_a_client_neither_steers_the_terminal_nor_ends_a_line_of_its_own(capsys: pytest.CaptureFixture[str], logging_restored: None) -> None:
    configure_logging(level="INFO", style="text", kafka_level="CRITICAL")
    logging.getLogger("fifa_stream.test").info("header=%s", "\x1b[2J\x9b2J\u2028\x85gone \u00e9")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("header=\\x1b[2J\\x9b2J\\u2028\\x85gone \u00e9")


def test_a_traceback_is_kept(capsys: pytest.CaptureFixture[str], logging_restored: None) -> None:
    configure_logging(level="INFO", style="json", kafka_level="CRITICAL")
    try:
        raise ZeroDivisionError("zero")
    except ZeroDivisionError:
        logging.getLogger("fifa_stream.test").exception("stopped")
    assert "ZeroDivisionError: zero" in json.loads(capsys.readouterr().err)["exception"]
