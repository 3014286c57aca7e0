"""The topics: how they should be made, how they are, and what differs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from fifa_stream.cluster import BrokerError, admin_client
from fifa_stream.config import KafkaSettings

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
KAFKA_MAX_MESSAGE_BYTES = 1_048_588
"""Kafka's own default of max.message.bytes: a record batch of 1 MiB and its header."""
STATE_SEGMENT_BYTES = 64 << 20
"""What is being written is not compacted: whoever takes a partition over reads that much more."""
SAFE_REPLICATION = 3
"""Copies where there are as many brokers: one may fail, and one be restarted meanwhile."""
FORBIDDEN = 29
"""TOPIC_AUTHORIZATION_FAILED."""
UNKNOWN = 3
"""UNKNOWN_TOPIC_OR_PARTITION."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long each topic keeps records, in milliseconds. They are faces of people: no longer than needed."""

    frames_ms: int = DAY_MS
    """At least as long as a worker may be down."""
    verdicts_ms: int = 7 * DAY_MS
    dead_letters_ms: int = 14 * DAY_MS
    """Time to look at them and to send them again."""

    @property
    def state_ms(self) -> int:
        """Of what streams are remembered by, after its last change: a worker forgets what was silent for a day, and no frame comes later than
        frames are kept."""
        return self.frames_ms + 2 * DAY_MS


@dataclass(frozen=True, slots=True)
class Plan:
    """A topic as it should be made."""

    name: str
    partitions: int
    replication: int
    configs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is."""

    name: str
    error_code: int
    """0, `UNKNOWN`, `FORBIDDEN`, or another code of Kafka's."""
    partitions: int
    replication: int
    """Copies of the partition that has fewest."""
    fewest_in_sync: int
    """Copies in sync, of the partition that has fewest."""
    num_leaderless: int
    """Partitions that nobody can read or write now."""
    permitted: frozenset[str] | None
    """Operations permitted to us, as READ and WRITE; None where the broker does not say."""
    configs: Mapping[str, str]
    """Those that could be read: none without the right to, on Tansu only those that were set."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one plan."""

    plan: Plan
    made: bool
    """Or, with a dry run, would be."""
    differences: tuple[str, ...] = ()
    """Of a topic that was there and stays as it is."""


def plans(
    kafka: KafkaSettings, *, partitions: int, replication: int, retention: Retention | None = None, has_state: bool = False
) -> tuple[Plan, ...]:
    """The topics of the settings, with `has_state` that of snapshots too. Dead letters are few and have one partition."""
    retention = retention or Retention()
    shared = {
        "cleanup.policy": "delete",  # compacted, a stream would keep one record: its id is the key
        "compression.type": "producer",  # images are compressed already, verdicts by whoever writes them
        "max.message.bytes": str(max(KAFKA_MAX_MESSAGE_BYTES, kafka.max_request_bytes)),
        "min.insync.replicas": str(min(2, max(1, replication - 1))),
    }
    kept_ms = {"frames_topic": retention.frames_ms, "dead_letters_topic": retention.dead_letters_ms}
    plans = []
    for setting, name in kafka.topics.items():
        number = 1 if setting == "dead_letters_topic" else partitions
        ms = kept_ms.get(setting, retention.verdicts_ms)
        # A segment is deleted whole, and the newest one never: by default a slow topic would keep a picture for a week longer than it says.
        plans.append(Plan(name, number, replication, {**shared, "retention.ms": str(ms), "segment.ms": str(max(HOUR_MS, ms // 24))}))
    if has_state:
        plans.append(Plan(kafka.state_topic, partitions, replication, shared | _compacted(retention)))
    return tuple(plans)


def _compacted(retention: Retention) -> dict[str, str]:
    return {
        "cleanup.policy": "compact,delete",  # the second for streams that fell silent: what is kept of a face is not kept for ever
        # A snapshot whose offsets were not committed must not replace the one before, whose offsets were: time for a dead group to come back.
        "min.compaction.lag.ms": str(HOUR_MS),
        "max.compaction.lag.ms": str(DAY_MS),
        "retention.ms": str(retention.state_ms),
        "segment.ms": str(HOUR_MS),
        "segment.bytes": str(STATE_SEGMENT_BYTES),
    }


def look_up(admin: Any, names: Iterable[str]) -> dict[str, Topic]:
    """Topics by name, missing and forbidden ones among them. Raises KafkaError."""
    described = {one["name"]: one for one in admin.describe_topics(list(names))}
    there = [name for name, one in described.items() if one["error_code"] == 0]
    configs = _configs(admin, there) if there else {}
    return {name: _topic(one, configs.get(name, {})) for name, one in described.items()}


def _configs(admin: Any, names: Iterable[str]) -> dict[str, dict[str, str]]:
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found = admin.describe_configs(resources, config_filter="all").get("topic", {})
    return {topic: {name: config["value"] for name, config in configs.items() if config["value"] is not None} for topic, configs in found.items()}


def _topic(described: Mapping[str, Any], configs: Mapping[str, str]) -> Topic:
    partitions = [one for one in described["partitions"] if one["error_code"] in (0, 5, 9)]  # 5: without a leader, 9: without a copy
    permitted = described.get("authorized_operations")
    return Topic(
        name=described["name"],
        error_code=described["error_code"],
        partitions=len(partitions),
        replication=min((len(one["replica_nodes"]) for one in partitions), default=0),
        fewest_in_sync=min((len(one["isr_nodes"]) for one in partitions), default=0),
        num_leaderless=sum(one["leader_id"] < 0 for one in partitions),
        permitted=None if permitted is None else frozenset(permitted),
        configs=configs,
    )


def default_replication(num_brokers: int) -> int:
    """As many copies as brokers, up to `SAFE_REPLICATION`."""
    return max(1, min(SAFE_REPLICATION, num_brokers))


def differences(plan: Plan, topic: Topic) -> tuple[str, ...]:
    """What a topic is and should not be, one line each; what cannot be read does not differ."""
    found = []
    if topic.partitions != plan.partitions:
        found.append(f"{topic.partitions} partitions instead of {plan.partitions}")
    if topic.replication != plan.replication:
        found.append(f"replication {topic.replication} instead of {plan.replication}")
    for name, wanted in plan.configs.items():
        if (has := topic.configs.get(name)) not in (None, wanted):
            found.append(f"{name} {has} instead of {wanted}")
    return tuple(found)


def create(
    kafka: KafkaSettings,
    *,
    partitions: int,
    replication: int | None = None,
    retention: Retention | None = None,
    has_state: bool = False,
    dry_run: bool = False,
) -> tuple[Outcome, ...]:
    """Make the topics that are not there, in the order of `plans`; `replication` is by default what the number of brokers allows.

    Raises BrokerError.
    """
    with admin_client(kafka) as admin:
        num_brokers = len(admin.describe_cluster()["brokers"])
        replication = default_replication(num_brokers) if replication is None else replication
        if replication > num_brokers:
            raise BrokerError(f"replication {replication} needs as many brokers, and the cluster has {num_brokers}; give --replication {num_brokers}")
        wanted = plans(kafka, partitions=partitions, replication=replication, retention=retention, has_state=has_state)
        topics = look_up(admin, [plan.name for plan in wanted])
        outcomes = tuple(_outcome(admin, plan, topics[plan.name], dry_run=dry_run) for plan in wanted)
        if not dry_run:
            admin.wait_for_topics([plan.name for plan in wanted])
        return outcomes


def _outcome(admin: Any, plan: Plan, topic: Topic, *, dry_run: bool) -> Outcome:
    if topic.error_code == 0:
        return Outcome(plan, made=False, differences=differences(plan, topic))
    if topic.error_code != UNKNOWN:
        raise _refused(plan, for_code(topic.error_code)())
    if not dry_run:
        options = {"num_partitions": plan.partitions, "replication_factor": plan.replication, "configs": dict(plan.configs)}
        answer = admin.create_topics({plan.name: options}, raise_errors=False)["topics"][0]
        error = for_code(answer["error_code"])(answer.get("error_message"))
        if isinstance(error, TopicAlreadyExistsError):  # by somebody else, just now
            return Outcome(plan, made=False, differences=differences(plan, look_up(admin, [plan.name])[plan.name]))
        if answer["error_code"]:
            raise _refused(plan, error)
    return Outcome(plan, made=True)


def _refused(plan: Plan, error: KafkaError) -> BrokerError:
    said = " ".join(str(error).split())[:300]
    return BrokerError(
        f"topic {plan.name!r} was not made: {said}; have the broker permit Describe and Create on it, or change --partitions and --replication"
    )
