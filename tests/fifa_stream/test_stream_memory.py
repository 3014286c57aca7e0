"""What verdicts say of their streams, on an in-memory broker: the same whoever answers, however often, and whatever fails in between."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fifa_stream.cluster import BrokerError
from fifa_stream.config import BatchSettings, DeadLetterSettings, KafkaSettings, Settings, StreamSettings
from fifa_stream.consume import GroupError
from fifa_stream.dead_letters import TooManyDeadLetters
from fifa_stream.produce import DeliveryError
from fifa_stream.records import OutRecord, Verdict
from fifa_stream.runner import Runner
from fifa_stream.send import frame_record
from fifa_stream.telemetry import RESTARTS, STREAM_RESTORE_SECONDS, STREAM_SNAPSHOT_BYTES, STREAMS_FORGOTTEN, STREAMS_REMEMBERED, Meter
from fifa_stream.testing import (
    FakeClock,
    InlineWorker,
    MemoryBroker,
    MemoryChangelog,
    MemoryConsumer,
    MemoryProducer,
    MemoryTransactions,
    ToyProcessor,
)

FRAMES, VERDICTS, DEAD, STATE = "fifa.frames", "fifa.verdicts", "fifa.dead-letters", "fifa.stream-state"
NUM_PARTITIONS = 3
Guarantee = Literal["at_least_once", "exactly_once"]
GUARANTEES: tuple[Guarantee, ...] = ("at_least_once", "exactly_once")


@pytest.fixture(autouse=True, scope="module")
def no_collections() -> Iterator[None]:
    """The loop collects garbage by a clock that runs fast here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fifa_stream.runner.gc", SimpleNamespace(collect=lambda: None))
        yield


Told = tuple[Any, Any, Any]
"""Timeline, segments and stream of a verdict."""


def configured(guarantee: Guarantee = "at_least_once", *, memory: str = "topic", max_frames: int = 3, **streams: Any) -> Settings:
    return Settings(
        kafka=KafkaSettings(group_id="g", processing_guarantee=guarantee),
        batch=BatchSettings(max_frames=max_frames, max_delay_ms=20),
        streams=StreamSettings(memory=memory, **({"max_streams": 4, "max_gap_s": 2.0} | streams)),  # type: ignore[arg-type]
        dead_letters=DeadLetterSettings(max_run=0, max_ratio=1.0),
    )


def new_broker() -> MemoryBroker:
    return MemoryBroker({FRAMES: NUM_PARTITIONS, VERDICTS: NUM_PARTITIONS, DEAD: 1, STATE: NUM_PARTITIONS})


class Member:
    """A runner that may be killed, with every producer it has had."""

    def __init__(self, broker: MemoryBroker, clock: FakeClock, config: Settings) -> None:
        self.producers: list[MemoryProducer] = []
        self.num_refused = 0
        """Producers that are still not to be had."""
        self.workers: list[InlineWorker] = []
        self.consumer = MemoryConsumer(broker, "g", clock=clock)
        self.changelog = MemoryChangelog(broker, STATE, "g")
        self.meter = Meter()
        producer: Callable[[MemoryBroker], MemoryProducer] = (
            MemoryTransactions if config.kafka.processing_guarantee == "exactly_once" else MemoryProducer
        )

        def open_producer() -> MemoryProducer:
            if self.num_refused:
                self.num_refused -= 1
                raise DeliveryError("no producer is to be had")
            self.producers.append(producer(broker))
            return self.producers[-1]

        self.runner = Runner(
            config,
            ToyProcessor(),
            consumer=self.consumer,
            open_producer=open_producer,
            worker=lambda process: self.workers.append(InlineWorker(process)) or self.workers[-1],  # type: ignore[func-returns-value, arg-type]
            meter=self.meter,
            changelog=self.changelog if config.streams.memory == "topic" else None,
            clock=clock,
            pause=clock.advance,
        )
        self.consumer.subscribe(FRAMES, self.runner)


def told(broker: MemoryBroker) -> dict[tuple[int, int], list[Told]]:
    """By partition and offset of the input: what each of its answers says of its stream."""
    found: dict[tuple[int, int], list[Told]] = {}
    for record in broker.records(VERDICTS):
        verdict = Verdict.from_bytes(record.value or b"")
        assert verdict.input is not None
        found.setdefault((verdict.input.partition, verdict.input.offset), []).append((verdict.timeline, verdict.segments, verdict.stream))
    return found


def undisturbed(broker: MemoryBroker, config: Settings) -> dict[tuple[int, int], Told]:
    """What one member says that keeps everything in memory, of the same logs."""
    other, clock = new_broker(), FakeClock()
    for number in range(NUM_PARTITIONS):
        other.rewrite(FRAMES, number, [record for record in broker.records(FRAMES) if record.partition == number])
    member = Member(other, clock, configured(memory="volatile", max_frames=7, **config.streams.model_dump(exclude={"memory"})))
    turn_all([member], clock)
    return {place: answers[0] for place, answers in told(other).items()}


def turn_all(members: Iterable[Member], clock: FakeClock, *, times: int = 40) -> None:
    for _ in range(times):
        clock.advance(0.5)
        for member in members:
            member.runner.turn()


class Streams:
    """Frames of a few streams, each on its partition."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._numbers: dict[str, int] = {}

    def send(self, name: str, *, value: bytes = b"face", step_ms: int = 100, last: bool = False, clock: bool = True) -> None:
        number = self._numbers.get(name, 0)
        self._numbers[name] = number + 1
        key, _, headers = frame_record(value, stream_id=name, frame_index=number)
        headers += (("stream-end", b"true"),) if last else ()
        headers += (("pts-ms", str(number * step_ms).encode()),) if clock else ()
        self._broker.append(FRAMES, OutRecord(key, value, headers))

    def burst(self, seed: int) -> None:
        """A dozen records: streams interleaved, a bad one, an end, one without its clock, one that comes out of order."""
        for number in range(12):
            name = f"stream-{(seed * 5 + number * 7) % 9}"
            kind = (seed * 31 + number * 17) % 23
            if kind == 0:
                self.send(name, value=b"bad")
            elif kind == 1:
                self.send(name, last=True)
            elif kind == 2:
                self.send(name, clock=False)
            elif kind == 3:
                self._numbers[name] = max(0, self._numbers.get(name, 0) - 2)
            elif kind == 4:
                self._numbers[name] = self._numbers.get(name, 0) + 40  # a gap
            else:
                self.send(name)


FAULTS = ("leave", "kill", "lose", "fail before", "fail after", "no producer", "hold acks", "refuse")
EVENTS = ("feed", "feed", "turn", "turn", "turn", "tick", "join", "let go", *FAULTS)


@given(
    guarantee=st.sampled_from(GUARANTEES),
    max_frames=st.sampled_from((1, 4, 16)),
    events=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 20)), max_size=40),
)
@example("at_least_once", 4, [("feed", 1), ("turn", 0), ("turn", 0), ("refuse", 0), ("tick", 0), ("turn", 0), ("turn", 0), ("kill", 0)])
@settings(deadline=None, max_examples=200)
def test_a_record_is_told_the_same_of_its_stream_whatever_happens(guarantee: Guarantee, max_frames: int, events: list[tuple[str, int]]) -> None:
    clock, broker, config = FakeClock(), new_broker(), configured(guarantee, max_frames=max_frames)
    members, streams = [Member(broker, clock, config)], Streams(broker)
    for event, number in events:
        member = members[number % len(members)]
        if event == "feed":
            streams.burst(number)
        elif event == "turn":
            try:
                member.runner.turn()
            except DeliveryError:  # it gave up: gone, and replaced
                event = "kill"
        elif event == "tick":
            clock.advance(1.0)
        elif event == "join" and len(members) < 3:
            members.append(Member(broker, clock, config))
        elif event == "leave" and len(members) > 1:
            members.remove(member)
            member.consumer.close()
        elif event == "lose":
            member.consumer.lose()
            broker.join("g", member.consumer, FRAMES)
        elif event in ("fail before", "fail after"):
            if isinstance(producer := member.producers[-1], MemoryTransactions):
                producer.commits_until_failure, producer.lose_answer = 0, event == "fail after"
            else:
                producer.fail_after = number
        elif event == "no producer":
            member.num_refused = number % 3
        elif event == "hold acks":
            member.producers[-1].hold = True
        elif event == "refuse":
            member.consumer.refuse_commits = True
        elif event == "let go":
            member.producers[-1].hold = member.consumer.refuse_commits = False
        if event == "kill":
            members.remove(member)
            member.consumer.lose()  # the group's session timeout, without a word from the dead
            members += [] if members else [Member(broker, clock, config)]
    for member in members:
        member.producers[-1].hold = member.consumer.refuse_commits = False
    turn_all(members, clock)
    expected, found = undisturbed(broker, config), told(broker)
    assert found.keys() == expected.keys()
    for place, answers in found.items():
        assert set(map(repr, answers)) == {repr(expected[place])}, place
        assert guarantee == "at_least_once" or len(answers) == 1


def member_of(config: Settings, broker: MemoryBroker | None = None) -> tuple[MemoryBroker, FakeClock, Member, Streams]:
    broker, clock = broker or new_broker(), FakeClock()
    return broker, clock, Member(broker, clock, config), Streams(broker)


def in_state_topic(broker: MemoryBroker) -> dict[tuple[int, bytes], bytes | None]:
    return {(record.partition, record.key or b""): record.value for record in broker.records(STATE)}


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_a_snapshot_lies_on_the_partition_of_its_frames_under_group_and_stream_and_an_end_removes_it(guarantee: Guarantee) -> None:
    broker, clock, member, streams = member_of(configured(guarantee))
    for _ in range(2):
        for name in ("a", "b", "c"):
            streams.send(name)
        turn_all([member], clock, times=4)
    frames = {(record.partition, b"g\0" + (record.key or b"")) for record in broker.records(FRAMES)}
    assert in_state_topic(broker).keys() == frames and all(in_state_topic(broker).values())
    assert member.meter.value(STREAMS_REMEMBERED) == 3
    assert member.meter.value(STREAM_SNAPSHOT_BYTES) == sum(OutRecord(r.key, r.value, r.headers).size for r in broker.records(STATE))
    streams.send("b", last=True)
    turn_all([member], clock, times=4)
    assert {key for (_, key), value in in_state_topic(broker).items() if value is None} == {b"g\0b"}
    assert (member.meter.value(STREAMS_FORGOTTEN, reason="ended"), member.meter.value(STREAMS_REMEMBERED)) == (1, 2)
    assert member.meter.value(STREAM_RESTORE_SECONDS) == len(member.changelog.reads)


def test_at_least_once_no_offset_is_committed_that_no_snapshot_stands_for() -> None:
    """While snapshots are not acknowledged answers go on, and what they answer waits for the next checkpoint."""
    broker, clock, member, streams = member_of(configured(max_frames=1))
    streams.send("a")
    turn_all([member], clock, times=3)
    committed = broker.committed("g")
    streams.send("a")
    member.runner.turn()
    member.runner.turn()
    assert len(broker.records(VERDICTS)) == 2
    clock.advance(1.0)
    member.producers[0].hold = True
    member.runner.turn()
    streams.send("a")
    member.runner.turn()
    assert broker.committed("g") == committed and member.producers[0].num_waiting >= 1
    member.producers[0].hold = False
    member.runner.turn()
    member.runner.turn()
    assert max(broker.committed("g").values()) == 2, "the third was answered after the checkpoint began"
    turn_all([member], clock, times=3)
    assert max(broker.committed("g").values()) == 3


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_partitions_that_go_in_peace_take_everything_along(guarantee: Guarantee) -> None:
    broker, clock, member, streams = member_of(configured(guarantee))
    for number in range(6):
        streams.send("abc"[number % 3])
    for _ in range(3):
        member.runner.turn()
    member.consumer.close()
    assert sum(broker.committed("g").values()) == 6
    heir = Member(broker, clock, configured(guarantee))
    for name in "abc":
        streams.send(name)
    turn_all([heir], clock, times=4)
    assert {place: answers for place, answers in told(broker).items()} == {
        place: [answer] for place, answer in undisturbed(broker, configured(guarantee)).items()
    }


def test_what_a_dead_member_left_beyond_the_offsets_is_deleted_when_its_stream_ends() -> None:
    """Whoever answers it again has no snapshot of it to replace."""
    config = configured()
    broker, clock, dead, streams = member_of(config)
    streams.send("a")
    dead.consumer.refuse_commits = True
    turn_all([dead], clock, times=4)
    assert len(in_state_topic(broker)) == 1 and broker.committed("g") == {}
    dead.consumer.lose()
    streams.send("a", last=True)
    heir = Member(broker, clock, config)
    turn_all([heir], clock, times=4)
    heir.consumer.lose()
    streams.send("a")
    turn_all([Member(broker, clock, config)], clock, times=4)
    expected = undisturbed(broker, config)
    assert {place: set(map(repr, answers)) for place, answers in told(broker).items()} == {
        place: {repr(answer)} for place, answer in expected.items()
    }


def fails_to_deliver() -> None:
    raise DeliveryError("an answer was not delivered")


@pytest.mark.parametrize("fails", ["the new producer", "the return to the offsets"])
@pytest.mark.parametrize("memory", ["off", "topic"])
@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_a_restart_that_fails_and_is_tried_again_skips_no_record(
    guarantee: Guarantee, memory: str, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, clock, member, streams = member_of(configured(guarantee, memory=memory))
    for _ in range(5):
        streams.send("a")
    rewind, silences = member.consumer.rewind, iter([GroupError("the group says nothing")])

    def says_nothing_at_first(begins: Mapping[tuple[str, int], int]) -> None:
        for silence in silences:
            raise silence
        rewind(begins)

    if fails == "the new producer":
        member.num_refused = 1
    else:
        monkeypatch.setattr(member.consumer, "rewind", says_nothing_at_first)
    member.producers[0].hold = True
    for _ in range(3):
        member.runner.turn()
    monkeypatch.setattr(member.producers[0], "poll", fails_to_deliver)
    turn_all([member], clock)
    assert member.meter.value(RESTARTS) == 2
    assert sorted(offset for _, offset in told(broker)) == list(range(5)) and sum(broker.committed("g").values()) == 5


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_partitions_that_go_after_a_restart_failed_ask_nothing_of_the_producer_that_was_closed(
    guarantee: Guarantee, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, clock, member, streams = member_of(configured(guarantee))
    streams.send("a")
    member.runner.turn()
    closed, committer = member.producers[0], member.runner._committer
    closed.hold = True
    clock.advance(2.0)
    member.runner.turn()  # a checkpoint, or a transaction, is open

    def flush(timeout_s: float) -> bool:
        raise AssertionError("it is closed")

    member.num_refused = 1
    with pytest.raises(DeliveryError, match="no producer"):
        committer.restart()
    monkeypatch.setattr(closed, "flush", flush)
    assert closed.closed and committer.revoked(list(member.consumer.positions)) == {}


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_a_verdict_too_large_for_its_topic_becomes_a_dead_letter_and_its_stream_knows_nothing_of_it(
    guarantee: Guarantee, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, clock, member, streams = member_of(configured(guarantee))
    streams.send("a")
    turn_all([member], clock, times=3)
    monkeypatch.setattr("fifa_stream.runner.HEADER_BYTES", member.runner._settings.kafka.max_request_bytes - 700)
    streams.send("a")
    turn_all([member], clock, times=3)
    monkeypatch.undo()
    streams.send("a")
    turn_all([member], clock, times=3)
    (letter,) = broker.records(DEAD)
    assert dict(letter.headers)["dlq-reason"] == b"record_too_large"
    assert [answers[0][2].num_frames for _, answers in sorted(told(broker).items())] == [1, 2]


@pytest.mark.parametrize("guarantee", GUARANTEES)
def test_a_worker_that_stops_over_its_dead_letters_leaves_what_it_remembers(guarantee: Guarantee) -> None:
    config = configured(guarantee).model_copy(update={"dead_letters": DeadLetterSettings(max_run=2, max_ratio=1.0)})
    broker, _, member, streams = member_of(config)
    streams.send("a")
    for _ in range(2):
        streams.send("a", value=b"bad")
    with pytest.raises(TooManyDeadLetters):
        member.runner.run()
    assert max(broker.committed("g").values()) == 2 and len(in_state_topic(broker)) == 1


def test_volatile_memory_ends_with_the_stay_and_leaves_nothing_behind() -> None:
    broker, clock, member, streams = member_of(configured(memory="volatile"))
    streams.send("a")
    turn_all([member], clock, times=4)
    member.consumer.lose()
    member.runner.turn()
    assert member.meter.value(STREAMS_REMEMBERED) == 0
    broker.join("g", member.consumer, FRAMES)
    streams.send("a")
    turn_all([member], clock, times=2)
    assert [answers[-1][2].num_frames for _, answers in sorted(told(broker).items())] == [1, 1] and broker.records(STATE) == []


def test_without_a_memory_a_verdict_says_nothing_of_its_stream() -> None:
    broker, clock, member, streams = member_of(configured(memory="off"))
    streams.send("a")
    turn_all([member], clock, times=2)
    assert list(told(broker).values()) == [[(None, None, None)]]
    assert "\nfifa_streams_remembered " not in member.meter.exposition().decode()


def test_what_cannot_be_restored_ends_the_process_after_a_few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    broker, _, member, streams = member_of(configured())

    def fails(begins: object) -> None:
        raise BrokerError("fifa.stream-state cannot be read")

    monkeypatch.setattr(member.changelog, "read", fails)
    streams.send("a")
    with pytest.raises(DeliveryError, match=r"cannot be restored: fifa\.stream-state cannot be read"):
        for _ in range(60):
            member.runner.turn()
    assert broker.committed("g") == {} and broker.records(VERDICTS) == []


def test_a_restore_waits_until_the_open_transaction_is_committed() -> None:
    """It may take longer than the broker leaves one open."""
    broker, _, member, streams = member_of(configured("exactly_once", max_frames=1))
    member.runner.turn()  # the first interval begins
    streams.send("a")
    for _ in range(3):
        member.runner.turn()
    assert broker.records(VERDICTS) == [] and len(member.changelog.reads) == 1
    member.producers[0].hold = True
    streams.send("b")
    for _ in range(3):
        member.runner.turn()
    assert len(member.changelog.reads) == 1
    member.producers[0].hold = False
    for _ in range(3):
        member.runner.turn()
    assert len(member.changelog.reads) == 2 and len(broker.records(VERDICTS)) == 1
