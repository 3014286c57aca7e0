"""Apache Kafka as a process of the test's own: one KRaft node, or a broker and its controller apart, that can be stopped, killed, frozen and started
again on the same data."""

import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Self

from fifa_stream.cluster import find_cluster
from fifa_stream.config import KafkaSettings

CLUSTER_ID = "MkU3OEVBNTcwNTJENDM2Qg"
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
NOTHING: Mapping[str, str] = MappingProxyType({})


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 that nobody listens on."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class _Node:
    """One process, formatted when made, started by `start`."""

    def __init__(self, kafka_home: Path, folder: Path, properties: Mapping[str, str], format_options: Sequence[str]) -> None:
        folder.mkdir(exist_ok=True)
        self._home, self._folder = kafka_home, folder
        self._process: subprocess.Popen[bytes] | None = None
        self._properties = folder / "server.properties"
        written = {**_read_properties(kafka_home / "config" / "server.properties"), "log.dirs": str(folder / "data"), **properties}
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in written.items()))
        command = [str(kafka_home / "bin" / "kafka-storage.sh"), "format", "-t", CLUSTER_ID, "-c", str(self._properties), *format_options]
        formatted = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S)
        assert formatted.returncode == 0, formatted.stdout + formatted.stderr

    @property
    def log(self) -> str:
        """What it has said so far, over all its starts."""
        return (self._folder / "broker.log").read_text(errors="replace")

    def start(self) -> Self:
        """Start on the data that is there."""
        assert self._process is None, "it is running"
        with (self._folder / "broker.log").open("ab") as log:
            script = self._home / "bin" / "kafka-server-start.sh"
            self._process = subprocess.Popen([str(script), str(self._properties)], stdout=log, stderr=log)
        return self

    def stop(self) -> None:
        """SIGTERM, and until it is gone; nothing happens when it is not running."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and until it is gone."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "it is not running"
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)  # a frozen one would not hear SIGTERM
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


class ApacheController(_Node):
    """A controller by itself, for an `ApacheKafka` that may be killed while the cluster lives on."""

    def __init__(self, kafka_home: Path, folder: Path, properties: Mapping[str, str] = NOTHING) -> None:
        """`properties` win over those of KAFKA_HOME's server.properties."""
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        own = {
            "process.roles": "controller",
            "node.id": "0",
            "controller.quorum.bootstrap.servers": self.address,
            "listeners": f"CONTROLLER://{self.address}",
            "advertised.listeners": f"CONTROLLER://{self.address}",
        }
        super().__init__(kafka_home, folder, {**own, **properties}, ["--standalone"])


class ApacheKafka(_Node):
    """A broker, with its controller in it unless that is named; ports and data stay the same over restarts."""

    def __init__(
        self,
        kafka_home: Path,
        folder: Path,
        properties: Mapping[str, str] = NOTHING,
        *,
        scram_users: Mapping[str, str] = NOTHING,
        listeners: Mapping[str, str] = NOTHING,
        advertised: Mapping[str, str] = NOTHING,
        controller: ApacheController | None = None,
    ) -> None:
        """`properties` win over those of KAFKA_HOME's server.properties. `scram_users` are passwords by name, made for both SCRAM mechanisms.
        `listeners` are protocols by name, beside PLAINTEXT, each on a port of `ports`. `advertised` are host:port by name of a listener: where its
        clients are sent to instead of its own address, a proxy in front of it.
        """
        self.broker_port, controller_port, *more = free_ports(2 + len(listeners))
        self.ports = {"PLAINTEXT": self.broker_port, **dict(zip(listeners, more, strict=True))}
        self.bootstrap_servers = f"127.0.0.1:{self.broker_port}"
        """Where PLAINTEXT clients begin."""
        addresses = {name: f"{name}://127.0.0.1:{port}" for name, port in self.ports.items()}
        protocols = {"CONTROLLER": "PLAINTEXT", "PLAINTEXT": "PLAINTEXT", **listeners}
        quorum = f"127.0.0.1:{controller_port}" if controller is None else controller.address
        own = {
            "process.roles": "broker,controller" if controller is None else "broker",
            "controller.quorum.bootstrap.servers": quorum,
            "listeners": ",".join([*addresses.values(), *([f"CONTROLLER://{quorum}"] if controller is None else [])]),
            "advertised.listeners": ",".join({**addresses, **{name: f"{name}://{address}" for name, address in advertised.items()}}.values()),
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        }
        options = ["--standalone"] if controller is None else []
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            for name, password in scram_users.items():
                options += ["--add-scram", f"{mechanism}=[name={name},password={password}]"]
        super().__init__(kafka_home, folder, {**own, **properties}, options)

    @property
    def pid(self) -> int:
        """Of the broker itself: the start script becomes Java."""
        assert self._process is not None, "the broker is not running"
        return self._process.pid

    def address(self, listener: str) -> str:
        """host:port of one of `listeners`."""
        return f"127.0.0.1:{self.ports[listener]}"

    def start(self, *, wait: bool = True) -> Self:
        """Start on the data that is there; by default return when PLAINTEXT clients are answered."""
        super().start()
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Until PLAINTEXT clients are answered."""
        settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{self.broker_port}", bootstrap_timeout_ms=int(START_TIMEOUT_S * 1000))
        assert find_cluster(settings).cluster_id == CLUSTER_ID

    def restart(self) -> None:
        """Stop in order and start on the same data and ports."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT after `freeze`."""
        self._signal(signal.SIGCONT)


def _read_properties(path: Path) -> dict[str, str]:
    """`name=value` lines; continuation lines are not in use there."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines if line and not line.startswith("#"))}
