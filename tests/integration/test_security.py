"""Security on real listeners of Apache Kafka: every mechanism serves, and every mistake is told by its step and its setting within five seconds."""

import base64
import gc
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from pydantic import SecretStr

from fifa_stream.cluster import BrokerError, create_topics, find_cluster
from fifa_stream.config import KafkaSettings
from fifa_stream.produce import check_topics
from fifa_stream.records import OutRecord, RawRecord

from .apache_kafka import ApacheKafka

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # kafka-python leaves TLS sockets to the garbage collector
]

USER, PASSWORD = "moderator", "the-password-of-this-test"
TOLD_WITHIN_S = 5.0


@dataclass(frozen=True)
class Secured:
    """A broker and what clients need."""

    broker: ApacheKafka
    folder: Path

    def settings(self, listener: str, **more: object) -> KafkaSettings:
        """Right in every respect, except for `more`."""
        values: dict[str, object] = {
            "bootstrap_servers": self.broker.address(listener).replace("127.0.0.1", "localhost"),
            "bootstrap_timeout_ms": 30_000,
            "security_protocol": "SSL" if listener in ("TLS", "MUTUAL") else "SASL_SSL",
            "ssl_cafile": self.folder / "ca.pem",
        }
        if listener == "MUTUAL":
            values |= {"ssl_certfile": self.folder / "client.pem", "ssl_keyfile": self.folder / "client.pem"}
        if listener == "PASSWORD":
            values |= {"sasl_mechanism": "SCRAM-SHA-512", "sasl_username": USER, "sasl_password": SecretStr(PASSWORD)}
        if listener == "TOKEN":
            values |= {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_file": self.folder / "token"}
        return KafkaSettings(**(values | more))  # type: ignore[arg-type]


def told(settings: KafkaSettings, *, access: bool = False) -> str:
    """What find_cluster says, in one line, within the time."""
    began = time.monotonic()
    with pytest.raises(BrokerError) as caught:
        find_cluster(settings, access=access)
    seconds, message = time.monotonic() - began, str(caught.value)
    print(f"{seconds:.2f} s: {message}")
    assert seconds <= TOLD_WITHIN_S
    assert "\n" not in message and PASSWORD not in message
    return message


def unsecured_token(subject: str, *, lives_s: float) -> str:
    """A JWT that nobody signed: Apache Kafka takes it for tests."""

    def part(value: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    now = time.time()
    return f"{part({'alg': 'none'})}.{part({'sub': subject, 'iat': now, 'exp': now + lives_s})}."


def write_identity(issued: trustme.LeafCert, path: Path) -> None:
    """Key and certificate in one file, the key in PKCS 8: Apache Kafka reads no other."""
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    chain = b"".join(certificate.bytes() for certificate in issued.cert_chain_pems)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + chain)


@pytest.fixture(scope="module")
def secured(kafka_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    stranger.cert_pem.write_to_path(str(folder / "other-ca.pem"))
    write_identity(authority.issue_cert("localhost", "127.0.0.1"), folder / "broker.pem")
    write_identity(authority.issue_cert("client.example"), folder / "client.pem")
    write_identity(stranger.issue_cert("client.example"), folder / "rogue.pem")
    write_identity(authority.issue_cert("elsewhere.example"), folder / "elsewhere.pem")
    yesterday = datetime.now(UTC) - timedelta(days=1)
    expired = authority.issue_cert("localhost", "127.0.0.1", not_before=yesterday - timedelta(days=1), not_after=yesterday)
    write_identity(expired, folder / "expired.pem")
    (folder / "token").write_text(unsecured_token(USER, lives_s=3_600))
    plain = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
    bearer = 'org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'
    properties = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "broker.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "ca.pem"),
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.elsewhere.ssl.keystore.type": "PEM",
        "listener.name.elsewhere.ssl.keystore.location": str(folder / "elsewhere.pem"),
        "listener.name.expired.ssl.keystore.type": "PEM",
        "listener.name.expired.ssl.keystore.location": str(folder / "expired.pem"),
        "listener.name.password.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.password.plain.sasl.jaas.config": plain,
        **{
            f"listener.name.password.scram-sha-{bits}.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            for bits in (256, 512)
        },
        "listener.name.token.sasl.enabled.mechanisms": "OAUTHBEARER",
        "listener.name.token.oauthbearer.sasl.jaas.config": bearer,
    }
    listeners = {"TLS": "SSL", "MUTUAL": "SSL", "ELSEWHERE": "SSL", "EXPIRED": "SSL", "PASSWORD": "SASL_SSL", "TOKEN": "SASL_SSL"}
    with ApacheKafka(kafka_home, folder, properties, scram_users={USER: PASSWORD}, listeners=listeners) as broker:
        yield Secured(broker, folder)
        gc.collect()  # here, under the filter above


every_mechanism = pytest.mark.parametrize(
    ("listener", "more"),
    [
        pytest.param("TLS", {}, id="TLS"),
        pytest.param("MUTUAL", {}, id="mutual TLS"),
        pytest.param("PASSWORD", {"sasl_mechanism": "PLAIN"}, id="PLAIN"),
        pytest.param("PASSWORD", {"sasl_mechanism": "SCRAM-SHA-256"}, id="SCRAM-SHA-256"),
        pytest.param("PASSWORD", {}, id="SCRAM-SHA-512"),
        pytest.param("TOKEN", {}, id="OAUTHBEARER"),
    ],
)


@every_mechanism
def test_every_mechanism_is_let_in(secured: Secured, listener: str, more: dict[str, object]) -> None:
    settings = secured.settings(listener, **more)
    assert find_cluster(settings).num_brokers == 1
    create_topics(settings, {settings.frames_topic: 1, settings.verdicts_topic: 1, settings.dead_letters_topic: 1}, replication=1)
    check_topics(settings)


class Joined:
    """A `Rebalance` that asks for nothing."""

    def assigned(self, partitions: object) -> None: ...

    def revoked(self, partitions: object) -> dict[tuple[str, int], int]:
        return {}

    def lost(self, partitions: object) -> None: ...


@every_mechanism
def test_librdkafka_writes_and_reads_by_every_mechanism(secured: Secured, listener: str, more: dict[str, object]) -> None:
    confluent = pytest.importorskip("fifa_stream.confluent", reason="needs confluent-kafka: the extra `confluent`")
    settings = secured.settings(listener, client="confluent-kafka", group_id=f"on-{listener}-{more}", frames_topic="secured-frames", **more)
    create_topics(settings, {settings.frames_topic: 1}, replication=1)
    producer, acknowledged = confluent.ConfluentProducer(settings), list[int]()
    frame = RawRecord("frames", 0, 0, 0, None, b"", ())
    producer.send(settings.frames_topic, OutRecord(None, b"image", ()), answers=frame, on_delivery=lambda: acknowledged.append(1))
    assert producer.flush(30.0)
    producer.poll()
    producer.close(3.0)
    assert acknowledged == [1]
    member = confluent.ConfluentConsumer(settings, is_tansu=False)
    try:
        member.subscribe(settings.frames_topic, Joined())
        deadline, values = time.monotonic() + 30, list[bytes | None]()
        while not values and time.monotonic() < deadline:
            values = [record.value for record in member.poll(max_records=100, timeout_s=0.1)]
        assert values[:1] == [b"image"]
        assert member.commit({(settings.frames_topic, 0): 1})
    finally:
        member.close()


def test_a_password_from_a_file_is_let_in(secured: Secured) -> None:
    (secured.folder / "password").write_text(f"{PASSWORD}\n")
    assert find_cluster(secured.settings("PASSWORD", sasl_password=None, sasl_password_file=secured.folder / "password")).num_brokers == 1


@pytest.mark.parametrize(
    ("listener", "more", "step", "names"),
    [
        pytest.param("TLS", {"ssl_cafile": "other-ca.pem"}, "tls", "kafka.ssl_cafile", id="wrong authority"),
        pytest.param("TLS", {"ssl_cafile": None}, "tls", "kafka.ssl_cafile", id="no authority"),
        pytest.param("MUTUAL", {"ssl_certfile": None, "ssl_keyfile": None}, "tls", "kafka.ssl_certfile", id="no client certificate"),
        pytest.param("MUTUAL", {"ssl_certfile": "rogue.pem", "ssl_keyfile": "rogue.pem"}, "tls", "kafka.ssl_certfile", id="rogue client certificate"),
        pytest.param("ELSEWHERE", {"security_protocol": "SSL"}, "tls", "kafka.bootstrap_servers", id="certificate of another host"),
        pytest.param("EXPIRED", {"security_protocol": "SSL"}, "tls", "ssl.keystore.location", id="expired certificate"),
        pytest.param("TLS", {"security_protocol": "PLAINTEXT"}, "tls", "kafka.security_protocol", id="plain text to a TLS port"),
        pytest.param("PLAINTEXT", {"security_protocol": "SSL"}, "tls", "kafka.security_protocol", id="TLS to a plain text port"),
        pytest.param("PASSWORD", {"sasl_password": SecretStr("wrong")}, "sasl", "kafka.sasl_password", id="wrong password"),
        pytest.param("PASSWORD", {"sasl_username": "nobody"}, "sasl", "kafka.sasl_username", id="unknown user"),
        pytest.param("TOKEN", {"sasl_mechanism": "PLAIN", "sasl_username": USER, "sasl_password": SecretStr("x")}, "sasl", "kafka.sasl_mechanism",
                     id="mechanism"),
    ],
)  # fmt: skip
def test_every_mistake_names_its_step_and_setting_within_five_seconds(
    secured: Secured, listener: str, more: dict[str, object], step: str, names: str
) -> None:
    paths = {name: secured.folder / str(value) for name, value in more.items() if str(value).endswith(".pem")}
    message = told(secured.settings(listener, **(more | paths)))
    assert f": {step}: " in message and names in message, message


@pytest.fixture(scope="module")
def guarded(kafka_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """A broker that permits nothing to anybody but the users of its PLAINTEXT listener."""
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "listener.name.password.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.password.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
    }
    folder = tmp_path_factory.mktemp("guarded")
    with ApacheKafka(kafka_home, folder, properties, scram_users={USER: PASSWORD}, listeners={"PASSWORD": "SASL_PLAINTEXT"}) as broker:
        yield broker


def test_what_is_not_permitted_is_named_one_by_one(guarded: ApacheKafka, kafka_home: Path) -> None:
    topics = KafkaSettings(bootstrap_servers=guarded.bootstrap_servers)
    create_topics(topics, {topics.frames_topic: 1, topics.verdicts_topic: 1, topics.dead_letters_topic: 1}, replication=1)
    settings = KafkaSettings(
        bootstrap_servers=guarded.address("PASSWORD"),
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username=USER,
        sasl_password=SecretStr(PASSWORD),
    )
    permissions = (
        ("Read on kafka.frames_topic", ["--topic", settings.frames_topic, "--operation", "Read", "--operation", "Describe"]),
        ("Write on kafka.verdicts_topic", ["--topic", settings.verdicts_topic, "--operation", "Write", "--operation", "Describe"]),
        ("Write on kafka.dead_letters_topic", ["--topic", settings.dead_letters_topic, "--operation", "Write", "--operation", "Describe"]),
        ("Read on kafka.group_id", ["--group", settings.group_id, "--operation", "Read"]),
    )
    for what, permission in permissions:
        message = told(settings, access=True)
        assert ": acl: " in message and f"{what} " in message and f"User:{USER}" in message, message
        command = [str(kafka_home / "bin" / "kafka-acls.sh"), "--bootstrap-server", guarded.bootstrap_servers, "--add"]
        subprocess.run([*command, "--allow-principal", f"User:{USER}", *permission], check=True, capture_output=True, timeout=120)
    assert find_cluster(settings, access=True).num_brokers == 1
