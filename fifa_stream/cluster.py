"""What is asked of the cluster itself, before a client joins in: whether it answers, which broker it is, and its topics."""

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import InvalidPartitionsError, KafkaError, KafkaTimeoutError, TopicAlreadyExistsError, for_code

from fifa_stream.config import KafkaSettings

TANSU_CLUSTER_ID = "tansu_cluster"
"""The embedded broker; in 0.6.0 the cluster id is fixed."""

RETRY_S = 0.1


class BrokerError(Exception):
    """The broker cannot be reached or refuses; the message gives address, cause and setting."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The broker that answered."""

    cluster_id: str
    num_brokers: int

    @property
    def is_tansu(self) -> bool:
        """In-memory, joins take half the session timeout, transactions and end offsets are not to be trusted."""
        return self.cluster_id == TANSU_CLUSTER_ID


def find_cluster(kafka: KafkaSettings) -> Cluster:
    """Ask who is there. Raises BrokerError within `bootstrap_timeout_ms`."""
    with _admin(kafka) as admin:
        answer: dict[str, Any] = admin.describe_cluster()
        return Cluster(str(answer["cluster_id"]), len(answer["brokers"]))


def create_topics(kafka: KafkaSettings, partitions: Mapping[str, int], *, replication: int) -> list[str]:
    """Make the topics that do not exist; return their names. Existing ones stay as they are. Raises BrokerError."""
    with _admin(kafka) as admin:
        made = []
        for topic, num_partitions in partitions.items():
            try:
                answer = admin.create_topics({topic: {"num_partitions": num_partitions, "replication_factor": replication}}, raise_errors=False)
                code = answer["topics"][0]["error_code"]
                if code:
                    raise for_code(code)(answer["topics"][0].get("error_message"))
            except TopicAlreadyExistsError:
                continue
            except InvalidPartitionsError:
                raise BrokerError(f"topic {topic!r} cannot have {num_partitions} partitions; give --partitions 1 or more") from None
            made.append(topic)
        admin.wait_for_topics(list(partitions))
        return made


def _await_listener(kafka: KafkaSettings) -> None:
    """Try the addresses until one takes a connection: kafka-python says no more than that it timed out, and leaves its sockets open."""
    addresses: list[str] = kafka.client_options()["bootstrap_servers"]
    deadline = time.monotonic() + kafka.bootstrap_timeout_ms / 1000
    while True:
        causes = []
        for address in addresses:
            host, _, port = address.rpartition(":")
            try:
                with socket.create_connection((host.strip("[]"), int(port)), timeout=max(0.1, deadline - time.monotonic())):
                    return
            except ValueError:
                raise BrokerError(f"kafka.bootstrap_servers {address!r} is not host:port; write localhost:9092") from None
            except OSError as error:
                causes.append(f"{address}: {error.strerror or error}")
        if time.monotonic() + RETRY_S > deadline:
            raise BrokerError(
                f"no broker at {', '.join(causes)}, tried for {kafka.bootstrap_timeout_ms / 1000:g} s; start one, or mend kafka.bootstrap_servers"
            )
        time.sleep(RETRY_S)


@contextlib.contextmanager
def _admin(kafka: KafkaSettings) -> Iterator[KafkaAdminClient]:
    _await_listener(kafka)
    try:
        admin = KafkaAdminClient(**kafka.client_options())
        try:
            yield admin
        finally:
            admin.close()
    except KafkaTimeoutError:
        # kafka-python answers a wrong protocol, a refused certificate and a wrong password with this same timeout.
        raise BrokerError(
            f"{kafka.bootstrap_servers} takes connections but did not answer as Kafka over {kafka.security_protocol} within "
            f"{kafka.bootstrap_timeout_ms / 1000:g} s; check the address, kafka.security_protocol, and its certificates or password"
        ) from None
    except (KafkaError, OSError, ValueError) as error:
        raise BrokerError(f"the broker at {kafka.bootstrap_servers} refused: {type(error).__name__}: {error}; check the kafka.* settings") from None
