"""The Compose file: the specification's schema, what it refers to, its settings, and its broker and commands on Apache Kafka without Docker."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from fifa_stream.config import RuntimeSettings, load

from ..integration.apache_kafka import CLUSTER_ID, STOP_TIMEOUT_S, free_ports
from .dockerfile import ROOT, Dockerfile

COMPOSE_PATH = ROOT / "deploy" / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_PATH.read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = tuple(name for name, service in SERVICES.items() if "build" in service)
BIN = Path(sys.executable).parent


def test_it_follows_the_compose_specification(tmp_path: Path) -> None:
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run([*command, COMPOSE_PATH], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    misspelt = tmp_path / "compose.yaml"
    misspelt.write_text(COMPOSE_PATH.read_text("utf-8").replace("depends_on:", "depend_on:", 1))
    refused = subprocess.run([*command, misspelt], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and "depend_on" in refused.stdout


def test_images_are_built_here_or_pinned_by_version_and_digest() -> None:
    assert set(OURS) == {"topics", "worker", "console"}
    for name, service in SERVICES.items():
        if name in OURS:
            build = service["build"]
            assert (COMPOSE_PATH.parent / build["context"]).resolve() == ROOT
            assert build["target"] in Dockerfile.read(ROOT / build["dockerfile"]).stages
        else:
            assert re.fullmatch(r"\S+:\d+\.\d+\.\d+@sha256:[0-9a-f]{64}", service["image"])


def test_a_service_waits_for_what_can_come_true() -> None:
    for service in SERVICES.values():
        for awaited, how in service.get("depends_on", {}).items():
            other = SERVICES[awaited]
            if how["condition"] == "service_healthy":
                assert other["healthcheck"]["test"][0] == "CMD"
            else:
                assert how["condition"] == "service_completed_successfully" and "restart" not in other


@pytest.mark.parametrize("name", OURS)
def test_its_settings_exist_and_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith("FIFA_"):
            monkeypatch.delenv(variable)
    for variable, value in SERVICES[name]["environment"].items():
        assert isinstance(value, str), f"{variable} would not reach the program as written"
        monkeypatch.setenv(variable, value)
    settings = load()
    assert settings.kafka.bootstrap_servers == "kafka:9092"
    assert SERVICES["verdicts"]["command"][2] == f"--topic={settings.kafka.verdicts_topic}"


@pytest.mark.parametrize("name", OURS)
def test_our_containers_have_a_read_only_root_and_no_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] and service["tmpfs"] == ["/tmp"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"] and "user" not in service and "privileged" not in service


def test_nothing_is_published_beyond_this_machine() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(ports) == 2 and all(port.startswith("127.0.0.1:") for port in ports)


def test_a_worker_has_time_to_drain() -> None:
    drain_s = float(SERVICES["worker"]["environment"].get("FIFA_RUNTIME__DRAIN_TIMEOUT_S", RuntimeSettings().drain_timeout_s))
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) >= drain_s + 10, (
        "as the chart asks: the group is left and spans are handed over after it"
    )


class ComposedBroker:
    """The service `kafka` as a process: its variables as properties, as the image's entry point writes them, with addresses of the test's own."""

    def __init__(self, home: Path, folder: Path) -> None:
        self.port, controller, host = free_ports(3)
        self.addresses = {"kafka:9092": f"127.0.0.1:{self.port}", "kafka:9093": f"127.0.0.1:{controller}", ":29092": f":{host}"}
        self.addresses |= {
            "://:9092": f"://127.0.0.1:{self.port}",
            "://:9093": f"://127.0.0.1:{controller}",
            "/var/lib/kafka/data": str(folder / "data"),
        }
        self._home, self._properties = home, folder / "server.properties"
        environment = SERVICES["kafka"]["environment"]
        written = {name.removeprefix("KAFKA_").lower().replace("_", "."): self.here(value) for name, value in environment.items()}
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in written.items()))

    def here(self, text: str) -> str:
        """With the addresses of the container replaced."""
        for inside, outside in self.addresses.items():
            text = text.replace(inside, outside)
        return text

    @contextlib.contextmanager
    def running(self, log_path: Path) -> Iterator[None]:
        """Until the health check of the service passes; stopped at the end."""
        bin_ = self._home / "bin"
        command = [bin_ / "kafka-storage.sh", "format", "-t", CLUSTER_ID, "-c", self._properties]
        formatted = subprocess.run(command, capture_output=True, text=True, check=False)
        assert formatted.returncode == 0, formatted.stdout + formatted.stderr
        with log_path.open("wb") as log:
            process = subprocess.Popen([bin_ / "kafka-server-start.sh", self._properties], stdout=log, stderr=log)
        try:
            check = [self.here(word).replace("/opt/kafka", str(self._home)) for word in SERVICES["kafka"]["healthcheck"]["test"][1:]]
            until(lambda: subprocess.run(check, capture_output=True, check=False).returncode == 0, what=log_path.read_text)
            yield
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)


def until(is_so: Any, *, what: Any, timeout_s: float = 180.0) -> None:
    """Ask until it is so. AssertionError with what it was instead."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


@pytest.mark.kafka
def test_the_services_serve_a_frame_on_apache_kafka(kafka_home: Path, tmp_path: Path) -> None:
    broker, (health_port,) = ComposedBroker(kafka_home, tmp_path), free_ports(1)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FIFA_")}

    def environment(name: str) -> Mapping[str, str]:
        return (
            clean
            | {key: broker.here(value) for key, value in SERVICES[name]["environment"].items()}
            | {"FIFA_RUNTIME__HEALTH_PORT": str(health_port)}
        )

    def finished(name: str, *arguments: str) -> str:
        done = subprocess.run([BIN / "fifa-stream", *arguments], env=environment(name), capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with broker.running(tmp_path / "broker.log"):
        finished("topics", *SERVICES["topics"]["command"])
        with (tmp_path / "worker.log").open("wb") as log:
            worker = subprocess.Popen([BIN / "fifa-stream", *SERVICES["worker"]["command"]], env=environment("worker"), stdout=log, stderr=log)
        try:
            check = [word.replace(":8080/", f":{health_port}/") for word in SERVICES["worker"]["healthcheck"]["test"][1:]]
            command = [BIN / check[0], *check[1:]]
            until(lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0, what=(tmp_path / "worker.log").read_text)
            sent, portrait = SERVICES["console"]["command"]
            inside = re.sub(r"^/opt/fifa/lib/python3\.12/site-packages/", f"{ROOT}/", portrait)
            finished("console", sent, inside)
            reader = [broker.here(word).replace("/opt/kafka", str(kafka_home)) for word in SERVICES["verdicts"]["command"]]
            verdict = subprocess.run(reader, capture_output=True, text=True, timeout=120, check=False)
            assert '"fake_score"' in verdict.stdout, verdict.stderr
            assert b"fifa_verdicts_total" in urlopen(f"http://127.0.0.1:{health_port}/metrics", timeout=5).read()
        finally:
            worker.terminate()
            ended = worker.wait(60)
    assert ended == 0, (tmp_path / "worker.log").read_text()
