"""The consumer group as its coordinator sees it: state, members, and which partitions each has."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kafka.errors import CoordinatorLoadInProgressError, CoordinatorNotAvailableError, GroupIdNotFoundError, NotCoordinatorError

from fifa_stream.cluster import RETRY_S, admin_client
from fifa_stream.config import KafkaSettings

COORDINATOR_TIMEOUT_S = 10.0
"""The first question ever about a group or a transaction makes the broker create the topic behind it."""


@dataclass(frozen=True, slots=True)
class Member:
    """One consumer."""

    member_id: str
    client_id: str
    host: str
    instance_id: str | None
    """Of a static member: kafka.group_instance_id."""
    partitions: tuple[int, ...]
    """Of the frames topic."""


@dataclass(frozen=True, slots=True)
class Group:
    """Who is in it."""

    state: str
    """Stable, PreparingRebalance, CompletingRebalance, Empty; Dead before anybody joined; 'unknown' where the broker does not say (Tansu)."""
    members: tuple[Member, ...]
    may_read: bool | None
    """Whether joining is permitted to us; None where the broker does not say."""


UNKNOWN_GROUP = Group("unknown", (), None)
NO_GROUP = Group("Dead", (), None)
"""Nobody has joined yet, or all is forgotten."""


def find_group(kafka: KafkaSettings) -> Group:
    """Look at `kafka.group_id` without joining it. Raises BrokerError."""
    with admin_client(kafka) as admin:
        return describe(admin, kafka)


def describe(admin: Any, kafka: KafkaSettings) -> Group:
    """The same with a client that is there. Raises KafkaError."""

    def ask() -> dict[str, Any]:
        answer: dict[str, Any] = admin.describe_groups([kafka.group_id])[kafka.group_id]
        if not answer["group_state"]:  # an error, of which kafka-python keeps the text only; for a group of nobody the state is Dead
            raise CoordinatorLoadInProgressError(answer["error"])
        return answer

    try:
        answer = with_coordinator(ask)
    except GroupIdNotFoundError:
        return NO_GROUP
    except ValueError:  # Tansu 0.6.0 answers with permissions that kafka-python cannot read
        return UNKNOWN_GROUP
    permitted = answer.get("authorized_operations")
    members = tuple(_member(one, kafka.frames_topic) for one in answer["members"])
    return Group(answer["group_state"], members, None if permitted is None else "READ" in permitted)


def with_coordinator(ask: Callable[[], Any], *, timeout_s: float = COORDINATOR_TIMEOUT_S) -> Any:
    """What `ask` returns, once there is a coordinator to ask. Raises KafkaError."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return ask()
        except (CoordinatorNotAvailableError, CoordinatorLoadInProgressError, NotCoordinatorError):
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)


def _member(described: dict[str, Any], topic: str) -> Member:
    assignment = described.get("member_assignment")
    assigned = assignment.get("assigned_partitions", ()) if isinstance(assignment, dict) else ()
    partitions = sorted(number for one in assigned if one["topic"] == topic for number in one["partitions"])
    return Member(
        described["member_id"],
        described["client_id"],
        described["client_host"].removeprefix("/"),
        described.get("group_instance_id"),
        tuple(partitions),
    )
