"""What is asked of the cluster itself, before a client joins in: whether it answers, which broker it is, and its topics."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import InvalidPartitionsError, KafkaError, KafkaTimeoutError, TopicAlreadyExistsError, for_code

from fifa_stream.config import KafkaSettings
from fifa_stream.connect import DIAGNOSIS_TIMEOUT_S, diagnose

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


def find_cluster(kafka: KafkaSettings, *, access: bool = False) -> Cluster:
    """Ask who is there, with `access` also whether topics and group are permitted to us. Raises BrokerError within `bootstrap_timeout_ms`."""
    with admin_client(kafka, access=access) as admin:
        answer: dict[str, Any] = admin.describe_cluster()
        return Cluster(str(answer["cluster_id"]), len(answer["brokers"]))


def create_topics(kafka: KafkaSettings, partitions: Mapping[str, int], *, replication: int) -> list[str]:
    """Make the topics that do not exist; return their names. Existing ones stay as they are. Raises BrokerError."""
    with admin_client(kafka) as admin:
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


def _await_broker(kafka: KafkaSettings, *, access: bool) -> None:
    """Walk to the addresses until one answers as a broker that takes us in. What waiting may mend (a broker that starts) is waited for; a refused
    certificate or password is told at once: kafka-python would only say that it timed out."""
    deadline = time.monotonic() + kafka.bootstrap_timeout_ms / 1000
    while True:
        left_s = max(0.1, deadline - time.monotonic())
        failures = [(walk.address, walk.failure) for walk in diagnose(kafka, access=access, timeout_s=min(DIAGNOSIS_TIMEOUT_S, left_s))]
        if any(failure is None for _, failure in failures):
            return
        told = [(address, failure) for address, failure in failures if failure is not None]
        final = [(address, failure) for address, failure in told if not failure.may_pass]
        if final or time.monotonic() + RETRY_S > deadline:
            address, failure = (final or told)[0]
            others = ", ".join(f"{other}: {its.why}" for other, its in told if other != address)
            raise BrokerError(
                f"no broker at {address}: {failure.step.value}: {failure.why}; {failure.remedy}" + (f" (and {others})" if others else "")
            )
        time.sleep(RETRY_S)


@contextlib.contextmanager
def admin_client(kafka: KafkaSettings, *, access: bool = False) -> Iterator[KafkaAdminClient]:
    """A client that asks and joins nothing. Raises BrokerError, also for what Kafka answers inside."""
    _await_broker(kafka, access=access)
    try:
        admin = KafkaAdminClient(**kafka.client_options())
        try:
            yield admin
        finally:
            admin.close()
    except KafkaTimeoutError:
        raise BrokerError(
            f"{kafka.bootstrap_servers} answered, and then not again within {kafka.bootstrap_timeout_ms / 1000:g} s; check what the broker "
            "advertises (its advertised.listeners must be reachable from here)"
        ) from None
    except (KafkaError, OSError, ValueError) as error:
        raise BrokerError(f"the broker at {kafka.bootstrap_servers} refused: {type(error).__name__}: {error}; check the kafka.* settings") from None
