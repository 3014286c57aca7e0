"""Who the broker is, and one clear line when there is none."""

import gc
import socket
import threading
from collections.abc import Iterator

import pytest

from fifa_stream.cluster import BrokerError, Cluster, find_cluster
from fifa_stream.config import KafkaSettings


def test_the_embedded_broker_is_known_by_its_cluster_id() -> None:
    assert Cluster("tansu_cluster", 1).is_tansu
    assert not Cluster("MkU3OEVBNTcwNTJENDM2Qg", 1).is_tansu


@pytest.mark.parametrize(
    ("address", "says"),
    [
        pytest.param("127.0.0.1:1", "127.0.0.1:1: tcp: Connection refused", id="nobody listens"),
        pytest.param("no-such-host.invalid:9092", "no-such-host.invalid:9092: ", id="no such host"),
        pytest.param("127.0.0.1:1,[::1]:1", r"127.0.0.1:1: .*\[::1\]:1: ", id="none of several"),
        pytest.param("localhost", "localhost: address: is not host:port", id="no port"),
    ],
)
def test_an_unreachable_broker_is_one_line_with_the_cause(address: str, says: str) -> None:
    with pytest.raises(BrokerError, match=says) as caught:
        find_cluster(KafkaSettings(bootstrap_servers=address, bootstrap_timeout_ms=200))
    assert "kafka.bootstrap_servers" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Takes connections and never says a word."""
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connections.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in connections:
        connection.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kafka-python leaves sockets open when it cannot bootstrap
def test_a_port_that_does_not_speak_kafka_is_told_from_a_closed_one(silent_port: int) -> None:
    with pytest.raises(BrokerError, match=r"kafka: no answer within 0\.3 s; the broker hangs, or this is another port"):
        find_cluster(KafkaSettings(bootstrap_servers=f"127.0.0.1:{silent_port}", bootstrap_timeout_ms=300))
    gc.collect()  # here, not in a later test
