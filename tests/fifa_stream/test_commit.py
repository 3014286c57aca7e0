"""Exactly once on an in-memory broker: whatever fails and whoever joins, readers see one answer for each record, and none that is not committed."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fifa_stream.cluster import BrokerError
from fifa_stream.commit import ExactlyOnce
from fifa_stream.config import BatchSettings, KafkaSettings, Settings
from fifa_stream.offsets import OffsetTracker
from fifa_stream.produce import DeliveryError
from fifa_stream.records import OutRecord, RawRecord, Verdict
from fifa_stream.runner import Outcome, Runner
from fifa_stream.serve import refuse_pretence
from fifa_stream.testing import FakeClock, InlineWorker, MemoryBroker, MemoryConsumer, MemoryTransactions, ToyProcessor
from fifa_stream.watchdog import Watchdog

FRAMES, VERDICTS, DEAD = "fifa.frames", "fifa.verdicts", "fifa.dead-letters"
SETTINGS = Settings(kafka=KafkaSettings(group_id="g", processing_guarantee="exactly_once"), batch=BatchSettings(max_frames=3, max_delay_ms=20))


class Member:
    """A runner that may be killed, with every producer it has had."""

    def __init__(self, broker: MemoryBroker, clock: FakeClock) -> None:
        self.producers: list[MemoryTransactions] = []
        self.workers: list[InlineWorker] = []
        self.consumer = MemoryConsumer(broker, "g", clock=clock)
        self.runner = Runner(
            SETTINGS,
            ToyProcessor(),
            consumer=self.consumer,
            open_producer=lambda: self.producers.append(MemoryTransactions(broker)) or self.producers[-1],  # type: ignore[func-returns-value]
            worker=lambda process: self.workers.append(InlineWorker(process)) or self.workers[-1],  # type: ignore[func-returns-value, arg-type]
            clock=clock,
            pause=clock.advance,
        )
        self.consumer.subscribe(FRAMES, self.runner)


def answered(broker: MemoryBroker) -> Counter[tuple[int, int]]:
    """(partition, offset) of the input of every answer that readers see."""
    seen = Counter[tuple[int, int]]()
    for record in broker.records(VERDICTS):
        source = Verdict.from_bytes(record.value or b"").input
        assert source is not None
        seen[source.partition, source.offset] += 1
    for record in broker.records(DEAD):
        headers = dict(record.headers)
        seen[int(headers["dlq-partition"]), int(headers["dlq-offset"])] += 1
    return seen


def the_committed(broker: MemoryBroker) -> Counter[tuple[int, int]]:
    """Every record below the group's offsets, once."""
    committed = broker.committed("g")
    return Counter((r.partition, r.offset) for r in broker.records(FRAMES) if r.offset < committed.get((FRAMES, r.partition), 0))


EVENTS = ("feed", "turn", "turn", "turn", "tick", "join", "leave", "kill", "lose", "fail before", "fail after", "hold acks", "hold engine", "let go")


@given(events=st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 2)), max_size=60))
@settings(deadline=None, max_examples=300)
def test_readers_see_exactly_what_is_committed_whatever_happens(events: list[tuple[str, int]]) -> None:
    clock = FakeClock()
    broker = MemoryBroker({FRAMES: 3, VERDICTS: 3, DEAD: 1})
    members = [Member(broker, clock)]
    for event, number in events:
        member = members[number % len(members)]
        if event == "feed":
            for value in (b"one", b"bad", b"", b"two"):
                broker.append(FRAMES, OutRecord(b"s", value, ()), partition=number, skip=number)
        elif event == "turn":
            try:
                member.runner.turn()
            except DeliveryError:  # it gave up: gone, and replaced
                event = "kill"
        elif event == "tick":
            clock.advance(1.0)
        elif event == "join" and len(members) < 3:
            members.append(Member(broker, clock))
        elif event == "leave" and len(members) > 1:
            members.remove(member)
            member.consumer.close()
        elif event == "lose":
            member.consumer.lose()
            broker.join("g", member.consumer, FRAMES)
        elif event == "fail before" or event == "fail after":
            member.producers[-1].commits_until_failure, member.producers[-1].lose_answer = 0, event == "fail after"
        elif event == "hold acks":
            member.producers[-1].hold = True
        elif event == "hold engine":
            member.workers[-1].hold = True
        elif event == "let go":
            member.producers[-1].hold = member.workers[-1].hold = False
        if event == "kill":
            members.remove(member)
            member.consumer.lose()  # the group's session timeout, without a word from the dead
            members += [] if members else [Member(broker, clock)]
        assert answered(broker) == the_committed(broker)
    for member in members:
        member.producers[-1].hold = member.workers[-1].hold = False
    for _ in range(40):
        clock.advance(0.5)
        for member in members:
            member.runner.turn()
    assert answered(broker) == the_committed(broker)
    assert answered(broker) == Counter((record.partition, record.offset) for record in broker.records(FRAMES))
    assert [member.runner.num_in_flight for member in members] == [0] * len(members)


def test_a_stop_commits_what_is_open() -> None:
    clock = FakeClock()
    broker = MemoryBroker({FRAMES: 3, VERDICTS: 3, DEAD: 1})
    for _ in range(5):
        broker.append(FRAMES, OutRecord(b"s", b"one", ()), partition=0)
    member = Member(broker, clock)
    member.runner.turn()
    member.runner.stop()
    assert member.runner._drain() is Outcome.DRAINED
    assert answered(broker) == the_committed(broker)
    assert sum(answered(broker).values()) == 5


def test_partitions_that_go_take_no_uncommitted_answer_along() -> None:
    """Acknowledgements that do not come in time spoil the transaction: it is never committed."""
    broker = MemoryBroker({FRAMES: 1, VERDICTS: 1, DEAD: 1})
    tracker, consumer, producer = OffsetTracker(), MemoryConsumer(broker, "g"), MemoryTransactions(broker)
    committer = ExactlyOnce(tracker, consumer, lambda: producer, watchdog=Watchdog(), call_timeout_s=1)
    tracker.assign([(FRAMES, 0)])
    ticket = tracker.start(RawRecord(FRAMES, 0, 0, 0, None, b"x", ()))
    assert ticket is not None
    producer.hold = True
    assert committer.send(VERDICTS, OutRecord(None, b"answer", ()), ticket=ticket, on_delivery=lambda: None)
    assert committer.revoked([(FRAMES, 0)]) == {}
    for call in (committer.poll, committer.commit):
        with pytest.raises(DeliveryError, match="not acknowledged before their partitions went"):
            call()
    assert broker.records(VERDICTS) == []


def test_a_broker_that_only_pretends_is_refused() -> None:
    refuse_pretence(KafkaSettings())
    with pytest.raises(BrokerError, match=r"Tansu.*use Apache Kafka 2\.5 or newer, or set at_least_once"):
        refuse_pretence(KafkaSettings(processing_guarantee="exactly_once"))


@pytest.mark.parametrize("passed", [0.5, 1.5])
def test_the_watchdog_reports_a_step_that_is_over_its_limit_and_no_other(passed: float) -> None:
    clock, reasons = FakeClock(), list[str]()
    report: Callable[[str], object] = reasons.append
    watchdog = Watchdog(clock=clock, expired=report)
    with watchdog.limit("the commit of a transaction", 1.0):
        clock.advance(passed)
        assert watchdog.check() is (passed < 1)
    clock.advance(10)
    assert watchdog.check()
    assert len(reasons) == (passed > 1)
    assert all("the commit of a transaction takes longer than 1 s" in reason for reason in reasons)
