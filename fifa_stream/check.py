"""The whole deployment looked at before the first frame: one line for each thing, with why and how to mend it. Joins no group and writes nothing.

Order: settings, the way to the broker, topics and permissions, the group and transactions, then what is on this machine. What needs a step that
failed is skipped, and says so.
"""

import enum
import http.client
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import AuthorizationError, KafkaError, TransactionalIdAuthorizationFailedError, TransactionalIdNotFoundError, for_code

from engines.bundle import bundled_engine, read_manifest
from engines.contracts import EngineError, Manifest
from engines.doctor import examine
from fifa_stream.claims import ClaimStore
from fifa_stream.cluster import TANSU_CLUSTER_ID, BrokerError, admin_client
from fifa_stream.config import ConfigError, KafkaSettings, Settings
from fifa_stream.connect import diagnose
from fifa_stream.group import NO_GROUP, UNKNOWN_GROUP, describe, with_coordinator
from fifa_stream.records import Claim, RecordError, TransientError
from fifa_stream.topics import FORBIDDEN, HOUR_MS, KAFKA_MAX_MESSAGE_BYTES, UNKNOWN, Topic, look_up

TXN_OFFSET_COMMIT: Final = 28
"""API key. Version 3 (Apache Kafka 2.5) fences members that left the group (KIP-447)."""
HEALTH_TIMEOUT_S: Final = 1.0
PROBE: Final = Claim("", "0" * 64, 1, None)
"""Of no image: whether a store answers at all."""


class State(enum.StrEnum):
    """What was found."""

    OK = "ok"
    ADVICE = "advice"
    """Works, and may surprise."""
    WRONG = "wrong"
    """`run` ends, or loses its way, because of this."""
    SKIPPED = "skipped"
    """Not looked at."""


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at."""

    subject: str
    state: State
    why: str
    remedy: str = ""
    """How to mend it; empty where nothing is to be done."""


def check(settings: Settings) -> Iterator[Line]:
    """Look at everything, in order; each line as soon as it is known. Raises nothing that a setting, a network or a file can cause."""
    yield Line("settings", State.OK, "every setting is known and fits the others")
    yield from _broker(settings)
    yield from _packages(settings)
    yield from _engine(settings)
    yield from _claims(settings)
    yield from _health(settings)


def _ok(subject: str, why: str) -> Line:
    return Line(subject, State.OK, why)


def _wrong(subject: str, why: str, remedy: str) -> Line:
    return Line(subject, State.WRONG, why, remedy)


def _advice(subject: str, why: str, remedy: str) -> Line:
    return Line(subject, State.ADVICE, why, remedy)


def _skipped(subject: str, why: str, remedy: str = "") -> Line:
    return Line(subject, State.SKIPPED, why, remedy)


def _told(subject: str, error: Exception) -> Line:
    """Of an error whose message ends with its remedy, as all of ours do."""
    why, _, remedy = " ".join(str(error).split()).rpartition("; ")
    return _wrong(subject, why or remedy, remedy if why else "")


# --- the way to the broker


def _broker(settings: Settings) -> Iterator[Line]:
    kafka = settings.kafka
    try:
        walks = diagnose(kafka)
    except ConfigError as error:
        yield _told("broker", error)
        walks = ()
    is_reached = any(walk.failure is None for walk in walks)
    for walk in walks:
        for step in walk.steps:
            subject = f"broker {walk.address} {step.step.value}"
            if step.ok:
                yield _ok(subject, step.why)
            else:
                # One address of several is enough to begin with.
                yield (_advice if is_reached else _wrong)(subject, step.why, step.remedy)
    if not is_reached:
        yield _skipped("topics, permissions, group and transactions", "no broker was reached")
        return
    try:
        with admin_client(kafka) as admin:
            yield from _cluster(admin, settings)
    except BrokerError as error:
        yield _told("broker", error)


def _cluster(admin: Any, settings: Settings) -> Iterator[Line]:
    kafka = settings.kafka
    cluster = admin.describe_cluster()
    is_tansu, num_brokers = cluster["cluster_id"] == TANSU_CLUSTER_ID, len(cluster["brokers"])
    if is_tansu:
        yield _advice("cluster", "the broker is Tansu: in memory, for demonstration; nothing survives its end", "use Apache Kafka to serve")
    else:
        yield _ok("cluster", f"{cluster['cluster_id']}, {num_brokers} brokers")
    topics = look_up(admin, [*kafka.topics.values(), *([kafka.state_topic] if settings.has_state_topic else [])])
    yield from _topics(topics, settings, num_brokers)
    yield from _group(admin, kafka)
    broker = {} if is_tansu else _broker_configs(admin, cluster)
    yield from _timeouts(kafka, broker, is_tansu=is_tansu)
    if kafka.processing_guarantee == "exactly_once":
        yield from _exactly_once(admin, kafka, broker, is_tansu=is_tansu)


def _broker_configs(admin: Any, cluster: Mapping[str, Any]) -> dict[str, str]:
    """Of the first broker; empty without the right to read them."""
    name = str(cluster["brokers"][0]["broker_id"])
    try:
        found = admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, name)], config_filter="all")
    except AuthorizationError:
        return {}
    return {key: config["value"] for key, config in found.get("broker", {}).get(name, {}).items() if config["value"] is not None}


# --- topics and permissions


def _topics(topics: Mapping[str, Topic], settings: Settings, num_brokers: int) -> Iterator[Line]:
    kafka = settings.kafka
    for setting, name in kafka.topics.items():
        operation, word = ("READ", "Read") if setting == "frames_topic" else ("WRITE", "Write")  # in the words of the protocol, and of ACLs
        topic = topics[name]
        yield from _permission(topic, setting, operation, word, kafka)
        if topic.error_code == 0:
            yield from _topic(topic, setting, kafka, num_brokers)
    frames = topics[kafka.frames_topic]
    if frames.error_code == 0:
        yield from _frames(frames, settings)
    if settings.has_state_topic:
        yield from _state(topics[kafka.state_topic], frames, kafka, num_brokers)


def _state(topic: Topic, frames: Topic, kafka: KafkaSettings, num_brokers: int) -> Iterator[Line]:
    subject = f"topic {topic.name}"
    for operation, word in (("READ", "Read"), ("WRITE", "Write")):
        yield from _permission(topic, "state_topic", operation, word, kafka)
        if topic.error_code:
            return
    if frames.error_code == 0 and topic.partitions != frames.partitions:
        why = f"{topic.partitions}, and {frames.name} has {frames.partitions}: what is remembered of a stream lies on the partition of its frames"
        yield _wrong(f"{subject} partitions", why, "make the topic anew, with as many")
    else:
        yield _ok(f"{subject} partitions", str(topic.partitions))
    yield copies(topic, num_brokers)
    policy, lag_ms = topic.configs.get("cleanup.policy"), _number(topic.configs, "min.compaction.lag.ms")
    if policy is None:
        remedy = f"have the broker permit {_who(kafka)} DescribeConfigs on the topic to have them checked"
        yield _skipped(f"{subject} settings", "none could be read", remedy)
    elif "compact" not in policy:
        why = f"cleanup.policy is {policy}: whoever takes a partition over reads every change of every stream"
        yield _wrong(f"{subject} cleanup.policy", why, "set cleanup.policy of the topic to compact,delete")
    elif kafka.processing_guarantee == "at_least_once" and lag_ms is not None and lag_ms < HOUR_MS:
        why = f"{lag_ms}: after a crash what streams are remembered by may be gone before its offsets are committed again"
        yield _wrong(f"{subject} min.compaction.lag.ms", why, f"set it to {HOUR_MS}")
    elif "delete" not in policy:
        why = f"cleanup.policy is {policy}: what is remembered of streams that fell silent is kept for ever"
        yield _advice(f"{subject} cleanup.policy", why, "set cleanup.policy of the topic to compact,delete")
    else:
        yield _ok(f"{subject} cleanup.policy", policy)


def _permission(topic: Topic, setting: str, operation: str, word: str, kafka: KafkaSettings) -> Iterator[Line]:
    who, subject = _who(kafka), f"topic {topic.name} permission"
    if topic.error_code == UNKNOWN:
        yield _wrong(f"topic {topic.name}", f"kafka.{setting} {topic.name!r} does not exist", "make it with 'fifa-stream topics create'")
    elif topic.error_code == FORBIDDEN or (topic.permitted is not None and operation not in topic.permitted):
        remedy = f"have the broker permit {who} Describe and {word} on the topic, or name another one in kafka.{setting}"
        yield _wrong(subject, f"{word} is not permitted", remedy)
    elif topic.error_code:
        error = for_code(topic.error_code).__name__
        yield _wrong(f"topic {topic.name}", f"the broker answers {error}", "look at the broker's log")
    elif topic.permitted is None:
        yield _skipped(subject, "the broker does not say what is permitted")
    else:
        yield _ok(subject, f"{word} is permitted")


def _who(kafka: KafkaSettings) -> str:
    """Whom an ACL has to name."""
    if kafka.security_protocol.startswith("SASL"):
        return f"User:{kafka.sasl_username}" if kafka.sasl_username else "the subject of the token"
    return "the subject of kafka.ssl_certfile" if kafka.security_protocol == "SSL" and kafka.ssl_certfile else "User:ANONYMOUS"


def _topic(topic: Topic, setting: str, kafka: KafkaSettings, num_brokers: int) -> Iterator[Line]:
    subject = f"topic {topic.name}"
    share = f", so at most {topic.partitions} members share the work" if setting == "frames_topic" else ""
    yield _ok(f"{subject} partitions", f"{topic.partitions}{share}")
    yield copies(topic, num_brokers)
    policy = topic.configs.get("cleanup.policy", "delete")
    if "compact" in policy:
        why = f"cleanup.policy is {policy}: of each stream only the newest record would be kept, because its id is the key"
        yield _wrong(f"{subject} cleanup.policy", why, "set cleanup.policy of the topic to delete")
    if setting != "frames_topic" and (limit := _number(topic.configs, "max.message.bytes")) is not None:
        if limit < kafka.max_request_bytes:
            why = f"{limit} is below kafka.max_request_bytes {kafka.max_request_bytes}: the broker would refuse an answer, and `run` stop"
            yield _wrong(f"{subject} max.message.bytes", why, "raise it on the topic, or lower kafka.max_request_bytes")
        else:
            yield _ok(f"{subject} max.message.bytes", f"{limit}, kafka.max_request_bytes is {kafka.max_request_bytes}")
    if not topic.configs:
        yield _skipped(
            f"{subject} settings", "none could be read", f"have the broker permit {_who(kafka)} DescribeConfigs on the topic to have them checked"
        )


def copies(topic: Topic, num_brokers: int) -> Line:
    """Whether acks=all can be given, now and with a broker down."""
    subject, needed = f"topic {topic.name} replication", _number(topic.configs, "min.insync.replicas") or 1
    found = f"{topic.replication} copies, {needed} of which must be in sync"
    if topic.num_leaderless:
        return _wrong(subject, f"{topic.num_leaderless} partitions have no leader", "start the brokers that hold them")
    if needed > topic.replication:
        return _wrong(subject, f"{found}: nothing can be written", "lower min.insync.replicas of the topic, or raise its replication")
    if topic.fewest_in_sync < needed:
        return _wrong(subject, f"{found}, and {topic.fewest_in_sync} are: nothing can be written now", "start the brokers that are down")
    if num_brokers > 1 and topic.replication == 1:
        return _advice(
            subject,
            f"1 copy on a cluster of {num_brokers} brokers: records are lost with theirs",
            "raise its replication to 3, or as many as there are",
        )
    if needed == topic.replication > 1:
        return _advice(subject, f"{found}: nothing can be written while a broker restarts", f"set min.insync.replicas of the topic to {needed - 1}")
    return _ok(subject, found)


def _frames(topic: Topic, settings: Settings) -> Iterator[Line]:
    subject, limits, kafka = f"topic {topic.name} max.message.bytes", settings.limits, settings.kafka
    largest = _number(topic.configs, "max.message.bytes")
    if largest is not None and largest > limits.max_record_bytes:
        why = f"{largest}: frames above limits.max_record_bytes {limits.max_record_bytes} become dead letters"
        yield _advice(subject, why, "lower it on the topic, or raise limits.max_record_bytes")
    elif largest is not None and largest > max(KAFKA_MAX_MESSAGE_BYTES, kafka.max_request_bytes):
        why = f"{largest}: a frame above kafka.max_request_bytes {kafka.max_request_bytes} leaves its image out of its dead letter"
        yield _advice(
            subject, why, "send large images as claims (docs/claims.md), or raise kafka.max_request_bytes and max.message.bytes of the answers"
        )
    elif largest is not None:
        yield _ok(subject, f"{largest}, limits.max_record_bytes is {limits.max_record_bytes}")
    if settings.shedding.policy == "late" and topic.configs.get("message.timestamp.type", "CreateTime") == "CreateTime":
        why = "shedding.policy late judges age by the producers' clocks"
        yield _advice(f"topic {topic.name} message.timestamp.type", why, "set it to LogAppendTime, or keep the producers' clocks right")


def _number(configs: Mapping[str, str], name: str) -> int | None:
    text = configs.get(name, "")
    return int(text) if text.removeprefix("-").isdigit() else None


# --- the group, its timeouts, transactions


def _group(admin: Any, kafka: KafkaSettings) -> Iterator[Line]:
    subject, remedy = f"group {kafka.group_id}", f"have the broker permit {_who(kafka)} Read on the group, or name another one in kafka.group_id"
    try:
        group = describe(admin, kafka)
    except AuthorizationError:
        yield _wrong(subject, "Read is not permitted", remedy)
        return
    if group is UNKNOWN_GROUP:
        yield _skipped(subject, "the broker does not say who is in it")
    elif group.may_read is False:
        yield _wrong(subject, "Read is not permitted", remedy)
    elif group is NO_GROUP or group.may_read is None:
        yield _ok(subject, "nobody has joined yet; Describe is permitted, Read cannot be asked for before")
    else:
        yield _ok(subject, f"{group.state}, {len(group.members)} members")


def _timeouts(kafka: KafkaSettings, broker: Mapping[str, str], *, is_tansu: bool) -> Iterator[Line]:
    subject, session_ms = "kafka.session_timeout_ms", kafka.session_timeout_ms
    least, most = _number(broker, "group.min.session.timeout.ms"), _number(broker, "group.max.session.timeout.ms")
    if is_tansu:
        yield _ok(subject, "2000 is used on Tansu, whatever is set")
    elif least is None or most is None:
        yield _skipped(subject, "the broker's limits could not be read", f"have the broker permit {_who(kafka)} DescribeConfigs on the cluster")
    elif not least <= session_ms <= most:
        why = f"{session_ms}, the broker's group.min.session.timeout.ms is {least} and group.max.session.timeout.ms {most}: the group takes nobody in"
        yield _wrong(subject, why, f"set it between {least} and {most}")
    else:
        yield _ok(subject, f"{session_ms}, the broker takes {least} to {most}")
    if kafka.max_poll_interval_ms < session_ms:
        yield _advice(
            "kafka.max_poll_interval_ms", f"{kafka.max_poll_interval_ms} is below session_timeout_ms {session_ms}, which is used instead", "raise it"
        )
    if kafka.delivery_timeout_ms < kafka.commit_interval_ms:
        why = f"{kafka.delivery_timeout_ms} is below commit_interval_ms {kafka.commit_interval_ms}"
        yield _advice("kafka.delivery_timeout_ms", why, "raise it, so that a slow broker does not make `run` begin again")


def _exactly_once(admin: Any, kafka: KafkaSettings, broker: Mapping[str, str], *, is_tansu: bool) -> Iterator[Line]:
    subject = "exactly once"
    if is_tansu:
        why = "the broker is Tansu, which shows aborted records to read_committed readers"
        yield _wrong(subject, why, "use Apache Kafka 2.5 or newer, or set kafka.processing_guarantee to at_least_once")
        return
    versions = {int(key): version for key, version in admin.api_versions().items()}
    if versions.get(TXN_OFFSET_COMMIT, (0, 0))[1] < 3:
        yield _wrong(subject, "the broker is older than Apache Kafka 2.5", "update it, or set kafka.processing_guarantee to at_least_once")
        return
    yield _ok(subject, "the broker has transactions that fence (KIP-447)")
    most, timeout_ms = _number(broker, "transaction.max.timeout.ms"), kafka.transaction_timeout_ms
    if most is not None and timeout_ms > most:
        why = f"{timeout_ms} is above the broker's transaction.max.timeout.ms {most}: no transaction can be begun"
        yield _wrong("kafka.transaction_timeout_ms", why, f"set it to {most} or less")
    elif timeout_ms < 5 * kafka.commit_interval_ms:
        why = f"{timeout_ms} is less than five times commit_interval_ms {kafka.commit_interval_ms}: a slow commit is aborted"
        yield _advice("kafka.transaction_timeout_ms", why, "raise it")
    else:
        yield _ok("kafka.transaction_timeout_ms", f"{timeout_ms}, commits come every {kafka.commit_interval_ms} ms")
    yield from _transactional_id(admin, kafka)


def _transactional_id(admin: Any, kafka: KafkaSettings) -> Iterator[Line]:
    """Describe is all that can be asked without ending what a running member has open."""
    name = kafka.transactional_id or f"{kafka.group_id}-check"
    subject = f"transactional id {kafka.transactional_id or f'{kafka.group_id}-...'}"
    try:
        with_coordinator(lambda: admin.describe_transactions([name]))
    except TransactionalIdAuthorizationFailedError:
        on = f"transactional id {name}" if kafka.transactional_id else f"transactional ids that begin with {kafka.group_id}-"
        yield _wrong(subject, "Describe is not permitted, so Write is not either", f"have the broker permit {_who(kafka)} Write on {on}")
        return
    except TransactionalIdNotFoundError:
        pass
    except KafkaError as error:
        yield _skipped(subject, f"the broker answers {type(error).__name__}")
        return
    if kafka.transactional_id is None:
        why = f"Describe is permitted; kafka.transactional_id is unset, so readers wait for {kafka.transaction_timeout_ms} ms after a crash"
        yield _advice(subject, why, "set it to a name that this member keeps over restarts, such as the pod's")
    else:
        yield _ok(subject, "Describe is permitted")


# --- this machine


def _packages(settings: Settings) -> Iterator[Line]:
    if find_spec("crc32c") is None:
        yield _wrong("crc32c", "the package is not installed, and checksums in Python allow 4 MB/s", "pip install crc32c")
    if settings.kafka.client == "confluent-kafka" and find_spec("confluent_kafka") is None:
        yield _wrong("kafka.client", "confluent-kafka is not installed", "pip install 'fifa-stream[confluent]', or set kafka.client to kafka-python")
    if settings.telemetry.otlp_endpoint is not None and find_spec("opentelemetry.exporter") is None:
        why = f"telemetry.otlp_endpoint {settings.telemetry.otlp_endpoint!r} needs an exporter, which is not installed"
        yield _wrong("telemetry.otlp_endpoint", why, "pip install 'fifa-stream[otlp]', or unset it")
    if find_spec("av") is None:
        yield _skipped(
            "video", "chunks of video become dead letters: the extra is not installed", "pip install 'fifa-stream[video]' where they are sent"
        )
    else:
        yield _ok("video", "H.264 in MP4 is decoded")


def _engine(settings: Settings) -> Iterator[Line]:
    engine = settings.engine
    yield from _bundle("engine", engine.folder or bundled_engine(), ("engine.pinned_digest", engine.pinned_digest), settings)
    if engine.roll_out != "off" and engine.candidate is not None:
        yield from _bundle("candidate", engine.candidate, ("engine.candidate_digest", engine.candidate_digest), settings)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if engine.threads > cores:
        yield _advice("engine.threads", f"{engine.threads} threads on {cores} cores take turns", f"set it to {cores}, or to 0")
    else:
        yield _ok("engine.threads", f"{engine.threads or 'as many as the runtime likes'} on {cores} cores")


def _bundle(name: str, folder: Path, pinned: tuple[str, str | None], settings: Settings) -> Iterator[Line]:
    try:
        manifest = read_manifest(folder)
    except EngineError as error:
        yield _told(name, error)
        return
    setting, digest = pinned
    if digest not in (None, manifest.digest):
        why = f"{folder} has manifest {manifest.digest}, {setting} is {digest}"
        yield _wrong(f"{name} digest", why, "install the pinned bundle, or pin this one after you have looked at it")
    elif digest is None:
        yield _ok(f"{name} digest", f"{manifest.digest}, not pinned")
    else:
        yield _ok(f"{name} digest", f"{manifest.digest} is the pinned one")
    yield from _operating_points(settings, manifest)
    wanted = {"bundle", "cpu", manifest.backend, *(() if manifest.backend == "onnxruntime" else ("gpu",))}
    for finding in examine(folder, threads=settings.engine.threads):
        if finding.subject in wanted:
            state = {"ok": State.OK, "broken": State.WRONG, "absent": State.WRONG}[finding.state]
            yield Line(f"{name} {finding.subject}", state, finding.found, finding.remedy)


def _operating_points(settings: Settings, manifest: Manifest) -> Iterator[Line]:
    engine, known = settings.engine, manifest.operating_points
    asked = {"engine.operating_point": engine.operating_point or manifest.default_operating_point}
    asked |= {f"engine.stream_operating_points {pattern}": name for pattern, name in engine.stream_operating_points.items()}
    for subject, name in asked.items():
        if name in known:
            yield _ok(subject, f"{name}: fake from {known[name].fake_at:g}, real below {known[name].real_below:g}")
        else:
            yield _wrong(subject, f"{name!r} is none of the bundle's", f"choose from {', '.join(sorted(known))}")


def _claims(settings: Settings) -> Iterator[Line]:
    claims = settings.claims
    if not claims.allowed:
        yield _ok("claims", "claims.allowed is empty: every claim becomes a dead letter")
        return
    try:
        store = ClaimStore(claims)
    except ConfigError as error:
        yield _told("claims.allowed", error)
        return
    for prefix in claims.allowed:
        yield _answers(store.fetch, prefix)


def _answers(fetch: Callable[[Claim], bytes], prefix: str) -> Line:
    """Ask a store for an image that is not there, and listen to how it says so."""
    subject, claim = f"claims {prefix}", Claim(f"{prefix}fifa-stream-check", PROBE.sha256, PROBE.size, PROBE.content_type)
    try:
        fetch(claim)
    except TransientError as error:
        return _wrong(subject, _short(error), "check the place, its name and the network, or take it out of claims.allowed")
    except RecordError as error:
        said = _short(error)
        if "status 401" in said or "status 3" in said:
            return _wrong(subject, said, "give the credentials, region or endpoint of the place (claims.s3_*), or its own host")
        if "status 403" in said:
            return _advice(subject, said, "without the right to list, S3 says so of what is not there too; if frames fail, give the right to read")
    return _ok(subject, "answers")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _health(settings: Settings) -> Iterator[Line]:
    host, port = settings.runtime.health_host, settings.runtime.health_port
    subject = f"health port {host}:{port}"
    if not port:
        yield _advice("health port", "runtime.health_port is 0: no probes and no metrics", "set it, unless this is a trial")
        return
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        if _is_ours(host, port):
            yield _ok(subject, "a worker answers there")
        else:
            yield _wrong(subject, f"cannot be bound: {error.strerror or error}", "set runtime.health_port to a free port, or to 0 to turn it off")
        return
    yield _ok(subject, "is free")


def _is_ours(host: str, port: int) -> bool:
    """Whether what holds the port answers as a worker does."""
    connection = http.client.HTTPConnection("127.0.0.1" if host == "0.0.0.0" else host, port, timeout=HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        return b"fifa_records_polled_total" in connection.getresponse().read(1 << 20)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def checked(load: Callable[[], Settings]) -> Iterator[Line]:
    """`check` of settings that may be wrong themselves: then they are all that is told."""
    try:
        settings = load()
    except ConfigError as error:
        yield _told("settings", error)
        return
    yield from check(settings)
