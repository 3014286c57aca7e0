"""`fifa-stream topics create`: topics as they should be, once, and what differs of those that are there."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from fifa_stream.cli import app
from fifa_stream.cluster import admin_client, create_topics
from fifa_stream.config import KafkaSettings
from fifa_stream.exits import ExitCode
from fifa_stream.topics import UNKNOWN, Topic, default_replication, look_up, plans

from .conftest import address_of

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.fixture(params=["embedded", pytest.param("apache", marks=pytest.mark.kafka)])
def kafka(request: pytest.FixtureRequest) -> KafkaSettings:
    """Settings with topics that nobody has made."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[:60]
    topics = {f"{kind}_topic": f"{name}.{kind}" for kind in ("frames", "verdicts", "dead_letters", "state")}
    return KafkaSettings(bootstrap_servers=address_of(request.getfixturevalue(request.param)), **topics)  # type: ignore[arg-type]


def invoke(kafka: KafkaSettings, *arguments: str, memory: str = "off") -> Any:
    names = ("bootstrap_servers", "frames_topic", "verdicts_topic", "dead_letters_topic", "state_topic")
    environment = {f"FIFA_KAFKA__{name.upper()}": getattr(kafka, name) for name in names} | {"FIFA_STREAMS__MEMORY": memory}
    return CliRunner().invoke(app, ["topics", "create", *arguments], env=environment)


def found(kafka: KafkaSettings) -> list[Topic]:
    with admin_client(kafka) as admin:
        return list(look_up(admin, (kafka.frames_topic, kafka.verdicts_topic, kafka.dead_letters_topic)).values())


def test_topics_are_made_with_partitions_copies_and_settings(kafka: KafkaSettings) -> None:
    result = invoke(kafka, "--partitions", "4", "--keep-frames", "90m", "--keep-verdicts", "2d")
    assert result.exit_code == 0, result.output
    assert [line.partition(",")[0] for line in result.output.splitlines()] == [f"{topic.name}: created" for topic in found(kafka)]
    frames, verdicts, letters = found(kafka)
    assert [(topic.partitions, topic.replication) for topic in (frames, verdicts, letters)] == [(4, 1), (4, 1), (1, 1)]
    assert [topic.configs["retention.ms"] for topic in (frames, verdicts, letters)] == ["5400000", "172800000", "1209600000"]
    for topic in (frames, verdicts, letters):
        wanted = {"cleanup.policy": "delete", "compression.type": "producer", "max.message.bytes": "1048588", "min.insync.replicas": "1"}
        assert wanted.items() <= topic.configs.items()


def test_the_topic_of_snapshots_is_compacted_late_and_made_only_where_streams_are_remembered(kafka: KafkaSettings) -> None:
    assert kafka.state_topic not in invoke(kafka, "--dry-run", memory="volatile").output
    result = invoke(kafka, "--partitions", "2", memory="topic")
    assert result.exit_code == 0 and f"{kafka.state_topic}: created, 2 partitions, replication 1" in result.output
    with admin_client(kafka) as admin:
        topic = look_up(admin, [kafka.state_topic])[kafka.state_topic]
    wanted = {"cleanup.policy": "compact,delete", "min.compaction.lag.ms": "3600000", "max.compaction.lag.ms": "86400000"}
    assert topic.partitions == 2 and (wanted | {"retention.ms": "259200000"}).items() <= topic.configs.items()


def test_a_dry_run_makes_nothing(kafka: KafkaSettings) -> None:
    result = invoke(kafka, "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.output.count("would be created, ") == 3 and f"{kafka.frames_topic}: would be created, 3 partitions, replication 1" in result.output
    assert {topic.error_code for topic in found(kafka)} == {UNKNOWN}


def test_topics_that_are_there_stay_as_they_are_and_what_differs_is_told(kafka: KafkaSettings) -> None:
    create_topics(kafka, {kafka.frames_topic: 2}, replication=1)
    assert invoke(kafka).exit_code == 0
    before = found(kafka)
    again = invoke(kafka, "--partitions", "3", "--keep-verdicts", "1d")
    assert again.exit_code == 0 and found(kafka) == before
    lines = again.output.splitlines()
    assert lines[0] == f"{kafka.frames_topic}: exists, and stays as it is:" and "  2 partitions instead of 3" in lines
    assert "  retention.ms 604800000 instead of 86400000" in lines and lines[-1] == f"{kafka.dead_letters_topic}: exists"
    rows = json.loads(invoke(kafka, "--json").output)
    assert [(row["topic"], row["created"]) for row in rows] == [(topic.name, False) for topic in before]
    assert "2 partitions instead of 3" in rows[0]["differences"] and rows[2]["differences"] == []


def test_more_copies_than_brokers_are_refused_before_anything_is_made(kafka: KafkaSettings) -> None:
    result = invoke(kafka, "--replication", "3")
    assert result.exit_code == ExitCode.BROKER
    (line,) = result.stderr.strip().splitlines()
    assert "replication 3 needs as many brokers, and the cluster has 1; give --replication 1" in line
    assert {topic.error_code for topic in found(kafka)} == {UNKNOWN}


@pytest.mark.parametrize("text", ["soon", "0d", "5", "1.5h", "-1d", "99999999d"])
def test_a_time_that_is_none_is_refused_before_the_broker_is_asked(text: str) -> None:
    result = CliRunner().invoke(app, ["topics", "create", f"--keep-frames={text}", "--bootstrap", "127.0.0.1:1"])
    assert result.exit_code == ExitCode.USAGE and "write 90m, 24h or 7d" in result.stderr


@pytest.mark.parametrize(("brokers", "copies", "in_sync"), [(1, 1, "1"), (2, 2, "1"), (3, 3, "2"), (9, 3, "2")])
def test_copies_follow_the_number_of_brokers_and_one_may_always_be_down(brokers: int, copies: int, in_sync: str) -> None:
    assert default_replication(brokers) == copies
    plan, *_ = plans(KafkaSettings(), partitions=3, replication=copies)
    assert plan.configs["min.insync.replicas"] == in_sync


def test_the_topics_take_whatever_the_worker_may_write() -> None:
    plan, *_ = plans(KafkaSettings(max_request_bytes=5 << 20), partitions=3, replication=1)
    assert plan.configs["max.message.bytes"] == str(5 << 20)
