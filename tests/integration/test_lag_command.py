"""`fifa-stream lag`: records and seconds of every partition, whoever has committed what, and the members of the group."""

import json
import signal
import time
from typing import Any

import kafka as kafka_python
import pytest
from typer.testing import CliRunner

from fifa_stream.cli import app
from fifa_stream.config import KafkaSettings
from fifa_stream.exits import ExitCode
from fifa_stream.group import find_group

from .apache_kafka import ApacheKafka

pytestmark = pytest.mark.usefixtures("clean_environment")

HOUR_MS = 3_600_000


def invoke(kafka: KafkaSettings, *options: str) -> Any:
    names = ("bootstrap_servers", "group_id", "frames_topic", "verdicts_topic", "dead_letters_topic")
    environment = {f"FIFA_KAFKA__{name.upper()}": getattr(kafka, name) for name in names} | {
        "FIFA_KAFKA__BOOTSTRAP_TIMEOUT_MS": str(kafka.bootstrap_timeout_ms)
    }
    return CliRunner().invoke(app, ["lag", *options], env=environment)


def lag(kafka: KafkaSettings) -> dict[str, Any]:
    result = invoke(kafka, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def put(kafka: KafkaSettings, partition: int, *timestamps_ms: int) -> None:
    """A record for each, in a batch of its own: Tansu's end is that of its last batch."""
    producer = kafka_python.KafkaProducer(**kafka.client_options())
    try:
        for timestamp_ms in timestamps_ms:
            producer.send(kafka.frames_topic, value=b"image", partition=partition, timestamp_ms=timestamp_ms).get(timeout=60)
    finally:
        producer.close(timeout=10)


def by_partition(found: dict[str, Any], field: str) -> list[Any]:
    assert [row["partition"] for row in found["partitions"]] == [0, 1, 2]
    return [row[field] for row in found["partitions"]]


def test_without_a_commit_everything_that_is_kept_is_behind(bootstrap_servers: str, new_stream: Any) -> None:
    kafka = new_stream(bootstrap_servers).settings
    assert (lag(kafka)["lag_records"], lag(kafka)["oldest_age_s"]) == (0, None)
    now_ms = round(time.time() * 1000)
    put(kafka, 0, now_ms - HOUR_MS, now_ms)
    put(kafka, 2, now_ms)
    found = lag(kafka)
    assert (found["group"], found["topic"], found["lag_records"]) == (kafka.group_id, kafka.frames_topic, 3)
    assert by_partition(found, "committed") == [None, None, None]
    assert by_partition(found, "end") == [2, 0, 1] and by_partition(found, "lag_records") == [2, 0, 1]
    first, second, third = by_partition(found, "oldest_age_s")
    assert 3_600 <= first < 4_200 and second is None and 0 <= third < 600
    assert found["oldest_age_s"] == first and found["members"] == []


def test_what_a_worker_committed_is_no_lag_and_what_came_since_is(bootstrap_servers: str, new_stream: Any) -> None:
    stream = new_stream(bootstrap_servers)
    kafka = stream.settings
    now_ms = round(time.time() * 1000)
    put(kafka, 1, *[now_ms] * 5)
    worker = stream.start_worker()
    worker.wait_ready()
    stream.answers(at_least=5)
    assert worker.end(signal.SIGTERM) == 0
    found = lag(kafka)
    assert by_partition(found, "committed")[1] == 5 and found["lag_records"] == 0 and found["oldest_age_s"] is None
    put(kafka, 1, now_ms - 2 * HOUR_MS, now_ms)
    found = lag(kafka)
    assert by_partition(found, "lag_records") == [0, 2, 0] and 7_200 <= found["oldest_age_s"] < 7_800
    told = invoke(kafka)
    assert told.exit_code == 0
    assert told.stdout.splitlines()[2].split()[:4] == ["1", "5", "7", "2"]
    assert "is 2 records behind, the oldest 72" in told.stdout.splitlines()[-1]
    assert all(line.isprintable() for line in told.stdout.split("\n"))


@pytest.mark.kafka
def test_members_and_their_partitions_are_named(apache: ApacheKafka, new_stream: Any) -> None:
    stream = new_stream(apache.bootstrap_servers)
    assert find_group(stream.settings).state == "Dead"
    worker = stream.start_worker()
    worker.wait_ready()
    found = lag(stream.settings)
    (member,) = found["members"]
    assert found["state"] == "Stable" and member["partitions"] == [0, 1, 2] and member["host"] == "127.0.0.1"
    assert by_partition(found, "member") == [member["client_id"]] * 3
    assert worker.end(signal.SIGTERM) == 0
    assert lag(stream.settings)["state"] == "Empty" and lag(stream.settings)["members"] == []


def test_on_tansu_the_lag_is_said_to_be_uncertain(embedded: str, new_stream: Any) -> None:
    told = invoke(new_stream(embedded).settings)
    assert told.exit_code == 0 and "the broker is Tansu" in told.stderr


def test_a_missing_topic_is_one_line_and_its_status(embedded: str) -> None:
    told = invoke(KafkaSettings(bootstrap_servers=embedded, frames_topic="none"))
    assert told.exit_code == ExitCode.BROKER and "there is no topic 'none'" in told.stderr


def test_an_unreachable_broker_is_one_line_and_its_status() -> None:
    told = invoke(KafkaSettings(bootstrap_servers="127.0.0.1:1", bootstrap_timeout_ms=300))
    assert told.exit_code == ExitCode.BROKER and "127.0.0.1:1" in told.stderr and told.stderr.count("\n") == 1
