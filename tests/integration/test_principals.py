"""docs/secure.md says which rights each principal needs. Here each has those and no other on Apache Kafka, and does its work."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import kafka as kafka_python
import pytest
from kafka.admin import ACL, ACLOperation, ACLPermissionType, KafkaAdminClient, ResourcePattern, ResourceType

from fifa_stream.config import KafkaSettings
from fifa_stream.send import send_images
from fifa_stream.topics import create

from .apache_kafka import ApacheKafka

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).resolve().parents[2]
PORTRAIT = ROOT / "fifa_stream" / "demo_frames" / "astronaut.jpg"
FIFA_STREAM = Path(sys.executable).with_name("fifa-stream")
PASSWORD = "for this test"
TRANSACTIONAL_ID, READERS = "worker-1", "readers"
OPERATIONS = {"Create": ACLOperation.CREATE, "Describe": ACLOperation.DESCRIBE, "DescribeConfigs": ACLOperation.DESCRIBE_CONFIGS}
OPERATIONS |= {"Read": ACLOperation.READ, "Write": ACLOperation.WRITE}
DEADLINE_S = 120.0


def table() -> dict[str, list[list[str]]]:
    """Operations by principal and column: frames, verdicts, dead letters, group, transactional id."""
    page = (ROOT / "docs" / "secure.md").read_text("utf-8")
    lines = page.partition("| who | frames |")[2].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].replace("`", ""): [[one for one in re.split(r",\s*", cell) if one] for cell in row[1:]] for row in rows}


TABLE = table()


def user(who: str) -> str:
    return re.sub(r"\W+", "-", who)


def topics_of(who: str) -> tuple[str, str, str]:
    """Whoever makes topics needs some that are not there."""
    return ("made.frames", "made.verdicts", "made.letters") if who == "topics create" else ("fifa.frames", "fifa.verdicts", "fifa.dead-letters")


class Guarded:
    """A broker that permits nothing to users with a password but what the table says, and everything to those without."""

    def __init__(self, broker: ApacheKafka) -> None:
        self._broker = broker
        self.open = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)

    def grant(self, who: str) -> None:
        """The row of a principal."""
        *topics, groups, ids = TABLE[who]
        group = READERS if "reader" in who else self.open.group_id
        resources = [(ResourceType.TOPIC, name, found) for name, found in zip(topics_of(who), topics, strict=True)]
        resources += [(ResourceType.GROUP, group, groups), (ResourceType.TRANSACTIONAL_ID, TRANSACTIONAL_ID, ids)]
        rights = [
            ACL(f"User:{user(who)}", "*", OPERATIONS[one], ACLPermissionType.ALLOW, ResourcePattern(kind, name))
            for kind, name, found in resources
            for one in found
        ]
        assert rights
        admin = KafkaAdminClient(bootstrap_servers=self.open.bootstrap_servers)
        try:
            admin.create_acls(rights)
        finally:
            admin.close()

    def environment(self, who: str) -> dict[str, str]:
        """Variables that make a command this principal's."""
        given = {
            "BOOTSTRAP_SERVERS": self._broker.address("PASSWORD"),
            "SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "SASL_MECHANISM": "SCRAM-SHA-512",
            "SASL_USERNAME": user(who),
            "SASL_PASSWORD": PASSWORD,
        }
        given |= dict(zip(("FRAMES_TOPIC", "VERDICTS_TOPIC", "DEAD_LETTERS_TOPIC"), topics_of(who), strict=True))
        if "exactly once" in who:
            given |= {"PROCESSING_GUARANTEE": "exactly_once", "TRANSACTIONAL_ID": TRANSACTIONAL_ID}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FIFA_")}
        return clean | {f"FIFA_KAFKA__{name}": value for name, value in given.items()} | {"FIFA_RUNTIME__HEALTH_PORT": "0"}

    def ends(self) -> list[int]:
        """Where committed verdicts and dead letters end."""
        answers = [kafka_python.TopicPartition(topic, 0) for topic in (self.open.verdicts_topic, self.open.dead_letters_topic)]
        options = {"bootstrap_servers": self.open.bootstrap_servers, "isolation_level": "read_committed"}
        with contextlib.closing(kafka_python.KafkaConsumer(**options)) as consumer:
            found = consumer.end_offsets(answers)
            return [found[answer] for answer in answers]


@pytest.fixture(scope="module")
def guarded(kafka_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """With the topics, a portrait and a record that is no image in them."""
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "listener.name.password.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.password.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
    }
    folder = tmp_path_factory.mktemp("principals")
    users = {user(who): PASSWORD for who in TABLE}
    with ApacheKafka(kafka_home, folder, properties, scram_users=users, listeners={"PASSWORD": "SASL_PLAINTEXT"}) as broker:
        made = Guarded(broker)
        create(made.open, partitions=1)
        yield made


def command(guarded: Guarded, who: str, *arguments: str) -> str:
    done = subprocess.run([FIFA_STREAM, *arguments], env=guarded.environment(who), capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def serve(guarded: Guarded, who: str, folder: Path) -> None:
    """Send a portrait and what is none as somebody who may; the worker answers both and drains."""
    broken = folder / "broken.jpg"
    broken.write_bytes(PORTRAIT.read_bytes()[:2_000])
    before = guarded.ends()
    send_images(guarded.open, [PORTRAIT, broken], topic=guarded.open.frames_topic, stream_id="test")
    log = folder / "worker.log"
    with log.open("wb") as file:
        worker = subprocess.Popen([FIFA_STREAM, "run"], env=guarded.environment(who), stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while any(now <= then for now, then in zip(guarded.ends(), before, strict=True)):
            assert time.monotonic() < deadline and worker.poll() is None, log.read_text()
            time.sleep(0.2)
    finally:
        worker.send_signal(signal.SIGTERM)
        status = worker.wait(DEADLINE_S)
    assert status == 0, log.read_text()


def read_a_verdict(guarded: Guarded) -> None:
    consumer = kafka_python.KafkaConsumer(
        guarded.open.verdicts_topic,
        bootstrap_servers=guarded.environment("a reader of verdicts")["FIFA_KAFKA__BOOTSTRAP_SERVERS"],
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_plain_username=user("a reader of verdicts"),
        sasl_plain_password=PASSWORD,
        group_id=READERS,
        auto_offset_reset="earliest",
        consumer_timeout_ms=round(1000 * DEADLINE_S),
    )
    with contextlib.closing(consumer):
        assert b'"fake_score"' in next(consumer).value
        consumer.commit()


WORK: dict[str, Callable[[Guarded, Path], object]] = {
    "send": lambda guarded, _: command(guarded, "send", "send", str(PORTRAIT)),
    "run": lambda guarded, folder: serve(guarded, "run", folder),
    "run, exactly once": lambda guarded, folder: serve(guarded, "run, exactly once", folder),
    "a reader of verdicts": lambda guarded, _: read_a_verdict(guarded),
    "dead-letters list": lambda guarded, _: command(guarded, "dead-letters list", "dead-letters", "list"),
    "dead-letters replay": lambda guarded, _: command(guarded, "dead-letters replay", "dead-letters", "replay"),
    "lag": lambda guarded, _: command(guarded, "lag", "lag", "--json"),
    "topics create": lambda guarded, _: command(guarded, "topics create", "topics", "create"),
}


def test_each_principal_of_the_table_is_tried() -> None:
    assert list(TABLE) == list(WORK)


@pytest.mark.parametrize("who", ["run", "run, exactly once"])
def test_check_finds_nothing_wrong_with_the_rights_of_run(guarded: Guarded, who: str) -> None:
    guarded.grant(who)
    assert "is permitted" in command(guarded, who, "check")


@pytest.mark.parametrize("who", WORK)
def test_the_rights_of_the_table_are_enough(guarded: Guarded, tmp_path: Path, who: str) -> None:
    guarded.grant(who)
    WORK[who](guarded, tmp_path)


REFUSED: Sequence[tuple[str, tuple[str, ...]]] = (
    ("send", ("topics", "create")),
    ("lag", ("send", str(PORTRAIT))),
    ("send", ("dead-letters", "list")),
)


@pytest.mark.parametrize(("who", "arguments"), REFUSED)
def test_a_principal_can_do_nothing_else(guarded: Guarded, who: str, arguments: tuple[str, ...]) -> None:
    guarded.grant(who)
    done = subprocess.run([FIFA_STREAM, *arguments], env=guarded.environment(who), capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode in (1, 3), done.stdout + done.stderr
