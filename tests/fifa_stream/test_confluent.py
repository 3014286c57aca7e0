"""The clients on librdkafka: their options, what they keep back, which refusals are harmless. On a broker: tests/integration/test_confluent.py."""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.errors import GroupAuthorizationFailedError, KafkaError, TopicAuthorizationFailedError
from pydantic import SecretStr

pytest.importorskip("confluent_kafka", reason="needs confluent-kafka: the extra `confluent`")

import confluent_kafka as ck

from fifa_stream import confluent
from fifa_stream.config import ConfigError, KafkaSettings
from fifa_stream.confluent import FIRST_NAP_S, KEPT_FETCHES, ConfluentConsumer, ConfluentProducer, client_options
from fifa_stream.consume import GroupError, Partition
from fifa_stream.produce import DeliveryError, Fenced
from fifa_stream.records import OutRecord, RawRecord
from fifa_stream.serve import require_client
from fifa_stream.testing import FakeClock

FETCH = 1 << 10
JOINED = b"CGMDv2:" + (7).to_bytes(4, "little") + b"fifa-stream\0member-1\0\1"
FRAME = RawRecord("fifa.frames", 1, 5, 0, b"k", b"image", ())


class Message:
    """What is used of confluent_kafka.Message."""

    def __init__(self, offset: int = 0, *, partition: int = 0, value: bytes = b"v", headers: Any = None, error: Any = None) -> None:
        self._offset, self._partition, self._value, self._headers, self._error = offset, partition, value, headers, error

    def __len__(self) -> int:
        return len(self._value)

    def topic(self) -> str:
        return "fifa.frames"

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 1, 9

    def key(self) -> bytes | None:
        return None

    def value(self) -> bytes:
        return self._value

    def headers(self) -> Any:
        if isinstance(self._headers, Exception):
            raise self._headers
        return self._headers

    def error(self) -> Any:
        return self._error


class ToyClient:
    """What is used of confluent_kafka.Consumer. Its line holds messages and events, functions that are called when they are at its head; as in
    librdkafka, pausing drops what stands there, and resuming brings it again."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.line: deque[Any] = deque()
        self.dropped: list[Any] = []
        self.is_paused = False
        self.num_pauses = 0
        self.metadata = JOINED
        self.commits: list[dict[int, int]] = []
        self.committed_at: dict[int, int] = {}
        self.error: Any = None
        self.seeks: list[tuple[int, int]] = []
        self.begins: list[tuple[int, int]] = []
        self.log = (5, 100)
        self.assigned = [0, 1]
        self.callbacks: dict[str, Callable[..., None]] = {}

    def subscribe(self, topics: list[str], **callbacks: Callable[..., None]) -> None:
        self.callbacks = callbacks

    def poll(self, timeout: float) -> Any:
        messages = self.consume(1, timeout)
        return messages[0] if messages else None

    def consume(self, count: int, timeout: float) -> list[Any]:
        taken = list[Any]()
        while self.line and len(taken) < count:
            head = self.line.popleft()
            if callable(head):
                head()
            else:
                taken.append(head)
        return taken

    def assignment(self) -> list[Any]:
        return [ck.TopicPartition("fifa.frames", number) for number in self.assigned]

    def pause(self, partitions: list[Any]) -> None:
        self.num_pauses += not self.is_paused
        self.is_paused = True
        self.dropped += [head for head in self.line if not callable(head)]
        self.line = deque(head for head in self.line if callable(head))

    def resume(self, partitions: list[Any]) -> None:
        self.is_paused = False
        self.line += self.dropped
        self.dropped = []

    def commit(self, *, offsets: list[Any], asynchronous: bool) -> None:
        assert asynchronous, "the other kind waits for ever"
        self.commits.append({at.partition: at.offset for at in offsets})
        self.committed_at |= self.commits[-1]

    def committed(self, partitions: list[Any], timeout: float) -> list[Any]:
        if self.error:
            raise ck.KafkaException(self.error)
        return [ck.TopicPartition(at.topic, at.partition, self.committed_at.get(at.partition, ck.OFFSET_INVALID)) for at in partitions]

    def consumer_group_metadata(self) -> bytes:
        return self.metadata

    def seek(self, at: Any) -> None:
        self.seeks.append((at.partition, at.offset))

    def position(self, partitions: list[Any]) -> list[Any]:
        return [ck.TopicPartition(at.topic, at.partition, 12 if at.partition else ck.OFFSET_INVALID) for at in partitions]

    def get_watermark_offsets(self, at: Any, timeout: float) -> tuple[int, int]:
        return self.log

    def incremental_unassign(self, partitions: list[Any]) -> None:
        assert {at.partition for at in partitions} <= {at.partition for at in self.assignment()}

    def incremental_assign(self, partitions: list[Any]) -> None:
        self.begins += [(at.partition, at.offset) for at in partitions]

    def close(self) -> None:
        self.callbacks["on_revoke"](self, self.assignment())


class Log:
    """A `Rebalance` that writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, list[Partition]]] = []

    def assigned(self, partitions: Iterable[Partition]) -> None:
        self.events.append(("assigned", list(partitions)))

    def revoked(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        self.events.append(("revoked", list(partitions)))
        return {partition: 7 for partition in partitions if partition[1] == 0}

    def lost(self, partitions: Iterable[Partition]) -> None:
        self.events.append(("lost", list(partitions)))


class Toy:
    """A consumer on a toy client."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_tansu: bool = False, **settings: Any) -> None:
        made: list[ToyClient] = []

        def make(options: dict[str, Any]) -> ToyClient:
            made.append(ToyClient(options))
            return made[-1]

        monkeypatch.setattr(ck, "Consumer", make)
        self.log, self.slept, self.clock = Log(), list[float](), FakeClock(100.0)
        settings = {"max_partition_fetch_bytes": FETCH, **settings}
        self.member = ConfluentConsumer(KafkaSettings(**settings), is_tansu=is_tansu, clock=self.clock, sleep=self.slept.append)
        self.member.subscribe("fifa.frames", self.log)
        self.client = made[-1]

    def poll(self, *, max_records: int = 100) -> list[int]:
        return [record.offset for record in self.member.poll(max_records=max_records, timeout_s=0.01)]

    def tell(self, event: str, *numbers: int) -> Callable[[], None]:
        return lambda: self.client.callbacks[event](self.client, [ck.TopicPartition("fifa.frames", number) for number in numbers])


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    yield Toy(monkeypatch)


def test_on_kafka_rebalances_are_cooperative_and_commits_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Toy(monkeypatch).client.options
    assert options["partition.assignment.strategy"] == "cooperative-sticky"
    assert (options["enable.auto.commit"], options["auto.offset.reset"], options["isolation.level"]) == (False, "error", "read_committed")
    assert (options["session.timeout.ms"], options["heartbeat.interval.ms"]) == (45_000, 3_000)
    assert "group.instance.id" not in options
    assert Toy(monkeypatch, group_instance_id="pod-0").client.options["group.instance.id"] == "pod-0"


def test_on_tansu_sessions_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    options = Toy(monkeypatch, is_tansu=True).client.options
    assert options["auto.offset.reset"] == "earliest", "its end offsets are wrong, so no offset can be held against them; it has no transactions"
    assert (options["partition.assignment.strategy"], options["session.timeout.ms"], options["heartbeat.interval.ms"]) == ("range", 2_000, 500)


@pytest.mark.parametrize("fetch_bytes", [1 << 14, 4 << 20, 1 << 40])
def test_librdkafka_takes_our_options(fetch_bytes: int) -> None:
    kafka = KafkaSettings(
        bootstrap_servers="127.0.0.1:1", max_partition_fetch_bytes=fetch_bytes, max_request_bytes=fetch_bytes, group_instance_id="a"
    )
    member = ConfluentConsumer(kafka, is_tansu=False)
    assert member.member() is None, "it has not joined"
    member.close()
    ConfluentProducer(kafka).close(0.0)


def test_security_is_passed_on_by_librdkafkas_names(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text("pem")
    kafka = KafkaSettings(
        security_protocol="SASL_SSL",
        ssl_cafile=tmp_path / "ca",
        ssl_certfile=tmp_path / "cert",
        ssl_keyfile=tmp_path / "key",
        ssl_password=SecretStr("of the key"),
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="user",
        sasl_password=SecretStr("secret"),
    )
    options = client_options(kafka)
    assert options["security.protocol"] == "SASL_SSL"
    assert [Path(options[f"ssl.{name}.location"]).name for name in ("ca", "certificate", "key")] == ["ca", "cert", "key"]
    assert (options["ssl.key.password"], options["sasl.mechanism"]) == ("of the key", "SCRAM-SHA-512")
    assert (options["sasl.username"], options["sasl.password"]) == ("user", "secret")
    assert options["ssl.endpoint.identification.algorithm"] == "https"


def token_settings(file: Path, text: str) -> KafkaSettings:
    file.write_text(text)
    return KafkaSettings(
        bootstrap_servers="127.0.0.1:1", security_protocol="SASL_PLAINTEXT", sasl_mechanism="OAUTHBEARER", sasl_oauth_token_file=file
    )


def test_a_token_is_shown_with_its_end(tmp_path: Path) -> None:
    text, expires_at = client_options(token_settings(tmp_path / "token", "opaque"))["oauth_cb"]("")
    assert text == "opaque" and time.time() < expires_at <= time.time() + 300


def test_a_missing_token_is_told_at_once_and_by_its_file(tmp_path: Path) -> None:
    kafka = token_settings(tmp_path / "token", "not a token")
    with pytest.raises(DeliveryError, match=r"token' holds no bearer token"):
        ConfluentProducer(kafka)


def test_the_clients_log_is_below_the_level_that_is_set_for_it(caplog: pytest.LogCaptureFixture) -> None:
    assert "stats_cb" not in client_options(KafkaSettings())
    with caplog.at_level(logging.DEBUG, logger="kafka"):
        options = client_options(KafkaSettings())
        options["stats_cb"]('{"rxmsgs":1}')
    assert options["logger"].name.startswith("kafka.")
    assert "rxmsgs" in caplog.text


def test_without_the_package_the_setting_names_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    require_client(KafkaSettings(client="confluent-kafka"))
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    require_client(KafkaSettings())
    with pytest.raises(ConfigError, match=r"kafka\.client confluent-kafka: .*pip install 'fifa-stream\[confluent\]'"):
        require_client(KafkaSettings(client="confluent-kafka"))


def test_records_come_as_bytes_and_null_headers_as_empty(toy: Toy) -> None:
    toy.client.line.append(Message(3, headers=[("a", None), ("b", b"1")]))
    (raw,) = toy.member.poll(max_records=1, timeout_s=0.0)
    assert (raw.offset, raw.timestamp_ms, raw.key, raw.value, raw.headers) == (3, 9, None, b"v", (("a", b""), ("b", b"1")))


def test_a_pause_hands_nothing_on_and_still_hears_of_rebalances(toy: Toy) -> None:
    toy.member.pause()
    toy.client.line += [Message(0), toy.tell("on_assign", 0), Message(1)]
    assert toy.poll() == [] and toy.poll() == [] and toy.poll() == []
    assert toy.log.events == [("assigned", [("fifa.frames", 0)])]
    assert toy.slept == [FIRST_NAP_S, 2 * FIRST_NAP_S, 4 * FIRST_NAP_S], "it waits by itself: the client would return at once"
    assert toy.client.num_pauses == 0
    toy.member.resume()
    toy.client.line.append(Message(2))
    assert toy.poll() + toy.poll() == [0, 1, 2]
    toy.member.pause()
    for _ in range(20):
        toy.poll()
    assert toy.slept[3] == FIRST_NAP_S and toy.slept[-1] == 0.01, "a short pause costs little, and a long one few turns"


def test_what_is_kept_is_bounded_by_a_pause_of_the_client(toy: Toy) -> None:
    count = 3 * KEPT_FETCHES
    toy.client.line += [Message(number, value=b"x" * (FETCH // 2)) for number in range(count)]
    toy.member.pause()
    for _ in range(count):
        assert toy.poll() == []
    assert toy.client.is_paused and len(toy.client.dropped) == count - 2 * KEPT_FETCHES
    toy.member.resume()
    seen = list[int]()
    while len(seen) < count:
        seen += toy.poll(max_records=1)
    assert seen == list(range(count)), "in order, over the line and what was kept"


def test_partitions_paused_in_the_client_go_on_when_what_was_kept_is_taken_away(toy: Toy) -> None:
    toy.client.line += [Message(number, value=b"x" * FETCH) for number in range(KEPT_FETCHES)]
    toy.member.pause()
    for _ in range(KEPT_FETCHES):
        toy.poll()
    assert toy.client.is_paused
    toy.client.line.append(toy.tell("on_revoke", 0))
    assert toy.poll() == []
    toy.member.resume()
    toy.client.line.append(Message(40, partition=1))
    assert toy.poll() == [40] and not toy.client.is_paused


@pytest.mark.parametrize("event", ["on_revoke", "on_lost"])
def test_what_is_kept_of_partitions_that_go_is_dropped(toy: Toy, event: str) -> None:
    toy.client.line += [Message(0), Message(50, partition=1), toy.tell(event, 0)]
    toy.member.pause()
    for _ in range(3):
        assert toy.poll() == []
    toy.member.resume()
    assert toy.poll() == [50]


def test_revoked_partitions_are_committed_without_waiting_and_lost_ones_are_not(toy: Toy) -> None:
    toy.client.line += [toy.tell("on_revoke", 1, 0), toy.tell("on_lost", 1)]
    toy.poll()
    assert toy.client.commits == [{0: 7}]
    assert toy.log.events == [("revoked", [("fifa.frames", 0), ("fifa.frames", 1)]), ("lost", [("fifa.frames", 1)])]


def test_joined_means_an_assignment_that_was_not_lost(toy: Toy) -> None:
    assert not toy.member.joined
    toy.client.line.append(toy.tell("on_assign"))
    toy.poll()
    assert toy.member.joined, "without partitions too"
    toy.client.line.append(toy.tell("on_lost", 0))
    toy.poll()
    assert not toy.member.joined


def test_a_commit_is_accepted_when_the_group_says_so(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert toy.member.commit({("fifa.frames", 0): 3})
    assert toy.client.commits == [{0: 3}]
    monkeypatch.setattr(toy.client, "commit", lambda **_: None)  # as in a rebalance: refused, the reason comes later
    assert not toy.member.commit({("fifa.frames", 0): 5})


@pytest.mark.parametrize("code", [ck.KafkaError._TIMED_OUT, ck.KafkaError._WAIT_COORD, ck.KafkaError.COORDINATOR_NOT_AVAILABLE])
def test_a_commit_without_an_answer_is_not_fatal(toy: Toy, code: int) -> None:
    toy.client.error = ck.KafkaError(code)
    assert not toy.member.commit({("fifa.frames", 0): 3})


def test_a_forbidden_commit_is_fatal(toy: Toy) -> None:
    toy.client.error = ck.KafkaError(ck.KafkaError.GROUP_AUTHORIZATION_FAILED)
    with pytest.raises(GroupAuthorizationFailedError):
        toy.member.commit({("fifa.frames", 0): 3})


@pytest.mark.parametrize(
    "metadata",
    [
        b"CGMDv2:" + (-1).to_bytes(4, "little", signed=True) + b"fifa-stream\0\0\1",
        b"CGMDv2:" + (-1).to_bytes(4, "little", signed=True) + b"fifa-stream\0member-1\0\1",
        b"CGMDv2:" + (3).to_bytes(4, "little") + b"fifa-stream\0\0\1",
        b"CGMDv9:" + (3).to_bytes(4, "little") + b"fifa-stream\0member-1\0\1",
    ],
    ids=["put out", "without a generation", "without a name", "written otherwise"],
)
def test_who_is_no_member_commits_nothing(toy: Toy, metadata: bytes) -> None:
    assert toy.member.member() == JOINED
    toy.client.metadata = metadata
    assert toy.member.member() is None
    assert not toy.member.commit({("fifa.frames", 0): 3})
    toy.client.line.append(toy.tell("on_revoke", 0))
    toy.poll()
    assert toy.client.commits == []


def test_going_back_seeks_to_what_is_committed_and_forgets_what_was_kept(toy: Toy) -> None:
    toy.client.line += [Message(50), Message(60, partition=1), Message(70, partition=2)]
    toy.member.pause()
    for _ in range(3):
        toy.poll()
    toy.member.resume()
    toy.client.committed_at = {0: 44}
    toy.member.rewind({("fifa.frames", 0): 40, ("fifa.frames", 1): 55, ("fifa.frames", 9): 1})
    assert sorted(toy.client.seeks) == [(0, 44), (1, 55)], "nothing is committed of 1, and 9 is no longer ours"
    assert toy.poll() == [70]
    toy.client.error = ck.KafkaError(ck.KafkaError._TIMED_OUT)
    with pytest.raises(GroupError, match="_TIMED_OUT"):
        toy.member.rewind({("fifa.frames", 0): 40})


RESET = ck.KafkaError(ck.KafkaError._AUTO_OFFSET_RESET, "no previously committed offset available")


@pytest.mark.parametrize(
    ("committed", "begin"),
    [pytest.param(44, 44, id="where the group says"), pytest.param(None, ck.OFFSET_BEGINNING, id="nothing is committed"),
     pytest.param(3, 5, id="before the log"), pytest.param(101, 5, id="beyond the log")],
)  # fmt: skip
def test_a_partition_without_a_place_is_asked_for_at_the_group(toy: Toy, committed: int | None, begin: int) -> None:
    toy.client.committed_at = {} if committed is None else {1: committed}
    toy.client.line += [Message(error=RESET, partition=1), Message(7)]
    assert toy.poll() == [7], "the others go on"
    assert toy.poll() == [] and toy.client.begins == [(1, begin)]
    toy.clock.advance(60.0)
    assert toy.poll() == [] and len(toy.client.begins) == 1


def test_partitions_begin_where_the_group_says_without_the_clients_asking(toy: Toy) -> None:
    toy.client.committed_at = {0: 44}
    toy.client.line.append(toy.tell("on_assign", 0, 1))
    toy.poll()
    assert toy.client.begins == [(0, 44), (1, ck.OFFSET_BEGINNING)]
    toy.client.error = ck.KafkaError(ck.KafkaError._TIMED_OUT)
    toy.client.line.append(toy.tell("on_assign", 1))
    toy.poll()
    assert toy.client.begins[2:] == [(1, ck.OFFSET_STORED)], "then it asks, and says when it does not find out"


def test_a_place_that_is_not_known_yet_is_asked_for_again(toy: Toy) -> None:
    """While an open transaction holds the offset. To begin anywhere else would answer everything anew."""
    toy.client.line.append(Message(error=RESET, partition=1))
    toy.client.error = ck.KafkaError(ck.KafkaError._TIMED_OUT)
    for _ in range(10):
        assert toy.poll() == []
        toy.clock.advance(60.0)
    assert toy.client.begins == []
    toy.client.error, toy.client.committed_at = None, {1: 44}
    toy.poll()
    assert toy.client.begins == [(1, 44)]


def test_a_partition_without_a_place_that_goes_is_not_asked_for(toy: Toy) -> None:
    toy.client.line += [Message(error=RESET, partition=1), toy.tell("on_revoke", 1)]
    toy.client.committed_at = {1: 44}
    assert toy.poll() == []
    toy.client.assigned = [0]
    assert toy.poll() == []
    assert toy.client.begins == []


def test_partitions_that_gave_nothing_are_asked_for_when_the_client_has_trouble(toy: Toy) -> None:
    toy.client.committed_at = {0: 44, 1: 11}
    toy.client.line.append(Message(error=ck.KafkaError(ck.KafkaError._TRANSPORT)))
    toy.poll()
    toy.poll()
    assert toy.client.begins == [(0, 44)], "1 has given records already"


def test_a_forbidden_topic_is_fatal_and_other_words_in_the_line_are_not(toy: Toy) -> None:
    toy.client.line += [Message(error=ck.KafkaError(ck.KafkaError.UNKNOWN_TOPIC_OR_PART)), Message(1)]
    assert toy.poll() == [1]
    toy.client.line.append(Message(error=ck.KafkaError(ck.KafkaError.TOPIC_AUTHORIZATION_FAILED)))
    with pytest.raises(TopicAuthorizationFailedError):
        toy.poll()
    toy.client.line.append(Message(error=ck.KafkaError(ck.KafkaError._FENCED, "static member", True)))
    with pytest.raises(KafkaError, match="static member"):
        toy.poll()


def test_leaving_waits_no_longer_than_it_may(toy: Toy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(confluent, "CLOSE_TIMEOUT_S", 0.05)
    toy.member.close()
    assert toy.client.commits == [{0: 7}] and "without the broker" not in caplog.text
    monkeypatch.setattr(toy.client, "close", lambda: time.sleep(0.5))
    toy.member.close()
    assert "without the broker" in caplog.text


@given(st.lists(st.sampled_from(["poll", "poll one", "pause", "resume", "arrives", "arrives large", "moves"]), max_size=60))
def test_whatever_happens_records_come_once_and_in_order(steps: list[str]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        toy, next_offset, seen = Toy(monkeypatch), 0, list[int]()
        for step in steps:
            if step.startswith("arrives"):
                message = Message(next_offset, value=b"x" * (FETCH if step.endswith("large") else 1))
                (toy.client.dropped if toy.client.is_paused else toy.client.line).append(message)
                next_offset += 1
            elif step == "moves":
                toy.client.line.append(toy.tell("on_assign", 1))
            elif step in ("pause", "resume"):
                getattr(toy.member, step)()
            else:
                is_paused = toy.member._is_paused
                taken = toy.poll(max_records=1 if step == "poll one" else 100)
                assert not (is_paused and taken)
                seen += taken
            assert toy.member._kept_bytes <= (KEPT_FETCHES + 1) * FETCH
        toy.member.resume()
        for _ in range(3 * (next_offset + 1)):
            seen += toy.poll()
        assert seen == list(range(next_offset))


class ToyProducer:
    """What is used of confluent_kafka.Producer; what was sent is answered by the test."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.sent: list[Callable[[Any, Any], None]] = []
        self.answers: list[Callable[[], None]] = []
        self.refusal: Any = None
        self.fatal: Any = None
        self.calls: list[str] = []

    def produce(self, topic: str, value: bytes, key: bytes, partition: int, *, on_delivery: Callable[[Any, Any], None], headers: list[Any]) -> None:
        if self.refusal:
            raise ck.KafkaException(self.refusal)
        self.sent.append(on_delivery)

    def poll(self, timeout: float) -> None:
        if self.fatal:
            fatal, self.fatal = self.fatal, None
            raise ck.KafkaException(fatal)
        while self.answers:
            self.answers.pop(0)()

    def flush(self, timeout: float) -> int:
        self.poll(timeout)
        return len(self.sent)

    def answer(self, error: Any = None) -> None:
        on_delivery = self.sent.pop(0)
        self.answers.append(lambda: on_delivery(error, None))

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            self.calls.append(name)
            if self.refusal:
                raise ck.KafkaException(self.refusal)

        return call


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Callable[[], ToyProducer]:
    made: list[ToyProducer] = []

    def make(options: dict[str, Any]) -> ToyProducer:
        made.append(ToyProducer(options))
        return made[-1]

    monkeypatch.setattr(ck, "Producer", make)
    return lambda: made[-1]


def send(producer: ConfluentProducer, delivered: list[str], size: int = 10) -> None:
    producer.send("fifa.verdicts", OutRecord(b"k", b"x" * size, ()), answers=FRAME, on_delivery=lambda: delivered.append("one"))


def test_the_producer_is_idempotent_and_keys_go_where_kafka_python_puts_them(client: Callable[[], ToyProducer]) -> None:
    ConfluentProducer(KafkaSettings(transaction_timeout_ms=9_000), transactional_id="a")
    options = client().options
    assert options["enable.idempotence"] and options["partitioner"] == "murmur2_random" and options["compression.type"] == "gzip"
    assert (options["transactional.id"], options["transaction.timeout.ms"], options["message.timeout.ms"]) == ("a", 9_000, 9_000)
    ConfluentProducer(KafkaSettings())
    assert "transactional.id" not in client().options and client().options["message.timeout.ms"] == 120_000


def test_a_delivery_is_reported_in_poll_also_when_a_flush_has_brought_it(client: Callable[[], ToyProducer]) -> None:
    producer, delivered = ConfluentProducer(KafkaSettings()), list[str]()
    send(producer, delivered)
    assert not producer.flush(0.0)
    client().answer()
    assert producer.flush(0.0) and delivered == []
    producer.poll()
    assert delivered == ["one"]


def test_unacknowledged_bytes_are_bounded(client: Callable[[], ToyProducer]) -> None:
    producer = ConfluentProducer(KafkaSettings(max_unacknowledged_bytes=1024))
    send(producer, [], size=1023)
    assert producer.has_room
    send(producer, [], size=1)
    assert not producer.has_room
    client().answer()
    producer.poll()
    assert producer.has_room


def test_a_failed_delivery_names_the_record_it_answers(client: Callable[[], ToyProducer]) -> None:
    producer = ConfluentProducer(KafkaSettings())
    send(producer, [])
    client().answer(ck.KafkaError(ck.KafkaError._MSG_TIMED_OUT))
    with pytest.raises(DeliveryError, match=r"fifa.frames/1/5 was not delivered to fifa.verdicts: _MSG_TIMED_OUT"):
        producer.poll()
    client().refusal = ck.KafkaError(ck.KafkaError.MSG_SIZE_TOO_LARGE)
    with pytest.raises(DeliveryError, match=r"fifa.frames/1/5 was not delivered to fifa.verdicts: MSG_SIZE_TOO_LARGE"):
        send(producer, [])


FENCED = ck.KafkaError(ck.KafkaError._FENCED, "fenced", True)


@pytest.mark.parametrize("is_named", [True, False])
def test_being_fenced_under_a_name_is_told_apart_wherever_it_is_met(client: Callable[[], ToyProducer], is_named: bool) -> None:
    """Without a name of its own nobody else can have it: the broker was told nothing for too long."""
    kafka = KafkaSettings(transactional_id="pod-0" if is_named else None)
    expected = Fenced if is_named else DeliveryError

    def made() -> ConfluentProducer:
        return ConfluentProducer(kafka, transactional_id="pod-0")

    producer = made()
    client().fatal = FENCED
    with pytest.raises(expected, match="the producer has failed: _FENCED"):
        producer.poll()
    producer = made()
    client().fatal = FENCED
    with pytest.raises(expected, match="the producer has failed: _FENCED"):
        producer.flush(0.0)
    producer = made()
    client().refusal, client().fatal = ck.KafkaError(ck.KafkaError._FATAL), FENCED
    with pytest.raises(expected, match=r"was not delivered to .*_FENCED"):
        send(producer, [])
    producer = made()
    client().refusal = FENCED
    with pytest.raises(expected, match="a transaction was not committed: _FENCED"):
        producer.commit({}, None)


def test_offsets_without_a_member_are_not_sent(client: Callable[[], ToyProducer]) -> None:
    producer = ConfluentProducer(KafkaSettings(), transactional_id="a")
    producer.begin()
    with pytest.raises(DeliveryError, match="put this member out"):
        producer.commit({("fifa.frames", 0): 3}, None)
    assert "send_offsets_to_transaction" not in client().calls and "commit_transaction" not in client().calls
    producer.commit({("fifa.frames", 0): 3}, JOINED)
    assert client().calls[-2:] == ["send_offsets_to_transaction", "commit_transaction"]


def test_a_transaction_that_is_open_at_the_end_is_aborted_and_the_client_let_go(client: Callable[[], ToyProducer]) -> None:
    producer = ConfluentProducer(KafkaSettings(), transactional_id="a")
    producer.begin()
    producer.close(1.0)
    assert "abort_transaction" in client().calls and not hasattr(producer, "_client")
    producer.close(1.0)


def test_a_producer_that_was_not_let_in_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would go on asking for its id, and take it from the one that replaces it."""

    def times_out(*_: Any) -> None:
        raise ck.KafkaException(ck.KafkaError(ck.KafkaError._TIMED_OUT))

    monkeypatch.setattr(ToyProducer, "init_transactions", times_out, raising=False)
    let_go = list[ConfluentProducer]()
    monkeypatch.setattr(ck, "Producer", ToyProducer)
    close = ConfluentProducer.close

    def noted(self: ConfluentProducer, timeout_s: float) -> None:
        let_go.append(self)
        close(self, timeout_s)

    monkeypatch.setattr(ConfluentProducer, "close", noted)
    with pytest.raises(DeliveryError, match="transactional id 'a' cannot be used: _TIMED_OUT"):
        ConfluentProducer(KafkaSettings(), transactional_id="a")
    assert len(let_go) == 1 and not hasattr(let_go[0], "_client")


def test_a_header_whose_name_is_no_text_is_told_by_its_record_and_the_way_out() -> None:
    unreadable = Message(17, headers=SystemError("<method 'headers'> returned a result with an exception set"))
    with pytest.raises(KafkaError, match=r"fifa\.frames/0/17 has a header whose name is not UTF-8.*set kafka\.client to kafka-python"):
        confluent.raw_record(unreadable)
