"""The loop, on an in-memory broker and a clock set by hand: one answer per record, commits only behind answers, and a clean end."""

import gc
import hashlib
import os
import signal
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fifa_stream.config import (
    BatchSettings,
    ClaimSettings,
    ConfigError,
    DeadLetterSettings,
    KafkaSettings,
    LimitSettings,
    RuntimeSettings,
    Settings,
    SheddingSettings,
)
from fifa_stream.dead_letters import TooManyDeadLetters
from fifa_stream.engine_thread import BATCHES_AT_WORKER, FrameProcessor, Result, Worker, WorkerThread
from fifa_stream.infer import FramePipeline, PipelineLimits
from fifa_stream.produce import DeliveryError
from fifa_stream.records import (
    FrameRecord,
    Note,
    NoteCode,
    OutRecord,
    QueryAnswered,
    RawRecord,
    RecordError,
    TransientError,
    Verdict,
    parse_frame,
    verdict_record,
)
from fifa_stream.runner import COLLECT_EVERY_S, HEADER_BYTES, Outcome, ProcessingError, Runner, TimedCollection
from fifa_stream.serve import serve, stop_on_signals
from fifa_stream.telemetry import BATCH_RETRIES, COMMITS, DEAD_LETTERS_SENT, RECORDS_HANDED_OVER, RESTARTS, VERDICTS_SENT, Health, Meter
from fifa_stream.testing import (
    FakeClock,
    InlineWorker,
    MemoryBroker,
    MemoryConsumer,
    MemoryProducer,
    ToyAnalyzer,
    ToyProcessor,
    toy_bundle,
    toy_result,
)

FRAMES, VERDICTS, DEAD = "fifa.frames", "fifa.verdicts", "fifa.dead-letters"
SETTINGS = Settings(kafka=KafkaSettings(group_id="g"), batch=BatchSettings(max_frames=4, max_delay_ms=20))


class Rig:
    """A runner and everything around it."""

    def __init__(
        self,
        config: Settings = SETTINGS,
        *,
        processor: FrameProcessor | None = None,
        broker: MemoryBroker | None = None,
        partitions: int = 2,
    ) -> None:
        self.clock = FakeClock()
        self.broker = broker or MemoryBroker({FRAMES: partitions, VERDICTS: partitions, DEAD: 1})
        self.consumer = MemoryConsumer(self.broker, "g", clock=self.clock)
        self.producer = MemoryProducer(self.broker)
        self.processor = processor or ToyProcessor()
        self.meter = Meter()
        self.health = Health(clock=self.clock)
        self.pauses: list[float] = []
        self.worker: InlineWorker | None = None
        self.runner = Runner(
            config,
            self.processor,
            consumer=self.consumer,
            open_producer=lambda: self.producer,
            worker=self._inline,
            meter=self.meter,
            health=self.health,
            clock=self.clock,
            pause=self.pauses.append,
        )

    def _inline(self, process: Callable[..., object]) -> Worker:
        self.worker = InlineWorker(process)  # type: ignore[arg-type]
        return self.worker

    def feed(self, *values: bytes, partition: int = 0) -> None:
        for value in values:
            self.broker.append(FRAMES, OutRecord(b"s", value, ()), partition=partition)

    def join(self) -> None:
        self.consumer.subscribe(FRAMES, self.runner)

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.runner.turn()

    def answers(self) -> list[tuple[str, int, int]]:
        """(topic, partition, offset) of the input of every answer."""
        coordinates = []
        for record in self.broker.records(VERDICTS):
            source = Verdict.from_bytes(record.value or b"").input
            assert source is not None
            coordinates.append((source.topic, source.partition, source.offset))
        for record in self.broker.records(DEAD):
            headers = dict(record.headers)
            coordinates.append((headers["dlq-topic"].decode(), int(headers["dlq-partition"]), int(headers["dlq-offset"])))
        return sorted(coordinates)


def stop_after(rig: Rig, polls: int, *, times: int = 1) -> None:
    """Ask for a stop at the given poll."""
    count = iter(range(1_000_000))

    def on_poll() -> None:
        if next(count) == polls:
            for _ in range(times):
                rig.runner.stop()

    rig.consumer.on_poll = on_poll


def test_every_record_leaves_as_one_verdict_or_one_dead_letter() -> None:
    rig = Rig()
    rig.feed(b"one", b"bad", b"", b"two")
    rig.feed(b"three", partition=1)
    stop_after(rig, 10)
    assert rig.runner.run() is Outcome.DRAINED
    assert rig.answers() == [(FRAMES, 0, 0), (FRAMES, 0, 1), (FRAMES, 0, 2), (FRAMES, 0, 3), (FRAMES, 1, 0)]
    assert rig.broker.committed("g") == {(FRAMES, 0): 4, (FRAMES, 1): 1}
    assert rig.consumer.closed and rig.producer.closed
    reasons = [dict(record.headers)["dlq-reason"] for record in rig.broker.records(DEAD)]
    assert sorted(reasons) == [b"empty_value", b"undecodable_image"]
    assert rig.meter.value(VERDICTS_SENT, label="inconclusive") == 3
    assert rig.meter.value(DEAD_LETTERS_SENT, reason="empty_value") == 1


@pytest.mark.parametrize(
    ("question", "query", "box"),
    [
        pytest.param(b"right cheek", QueryAnswered(region="right_cheek"), (45, 45, 211, 128), id="region"),
        pytest.param(b"70,70,120.5,100", QueryAnswered(box=(70, 70, 120.5, 100)), (70, 70, 120, 100), id="box"),
    ],
)
def test_a_question_in_the_header_is_answered_in_the_verdict(
    make_image: Callable[..., bytes], question: bytes, query: QueryAnswered, box: tuple[float, ...]
) -> None:
    rig = Rig(processor=FramePipeline(PipelineLimits(), ToyAnalyzer(), toy_bundle()), partitions=1)
    for headers in ((("fifa-query", question),), (), (("fifa-query", b"third_eye"),)):
        rig.broker.append(FRAMES, OutRecord(b"s", make_image(width=256, height=256, level=220), headers))
    stop_after(rig, 10)
    assert rig.runner.run() is Outcome.DRAINED
    asked, plain = (Verdict.from_bytes(record.value or b"") for record in rig.broker.records(VERDICTS))
    assert asked.query is not None and asked.query.model_copy(update={"answers": ()}) == query
    (answer,) = asked.query.answers
    assert (answer.face, answer.tampered, asked.notes) == (0, True, ()) and answer.box == pytest.approx(box, abs=3)
    assert plain.query is None and plain.faces == asked.faces
    (dead,) = rig.broker.records(DEAD)
    assert dict(dead.headers)["dlq-reason"] == b"invalid_header"


def test_verdicts_of_a_stream_keep_its_order() -> None:
    rig = Rig()
    rig.feed(*(str(number).encode() for number in range(30)))
    stop_after(rig, 40)
    rig.runner.run()
    written = [Verdict.from_bytes(record.value or b"").input for record in rig.broker.records(VERDICTS)]
    assert [source.offset for source in written if source] == list(range(30))


def test_nothing_is_committed_before_the_broker_acknowledged_the_answer() -> None:
    rig = Rig()
    rig.join()
    rig.feed(b"one")
    rig.producer.hold = True
    for _ in range(5):
        rig.clock.advance(1.0)
        rig.turn()
    assert rig.producer.num_waiting == 1
    assert rig.consumer.commits == []
    rig.producer.hold = False
    rig.clock.advance(1.0)
    rig.turn()
    assert rig.consumer.commits == [{(FRAMES, 0): 1}]


def test_commits_go_by_time_not_by_count() -> None:
    rig = Rig()
    rig.join()
    rig.turn()  # the first interval begins
    rig.consumer.commits.clear()
    start = rig.clock.now
    while rig.clock.now < start + 3.5:
        rig.feed(b"one")
        rig.turn()
        rig.clock.advance(0.05)
    assert 3 <= len(rig.consumer.commits) <= 4


def test_a_refused_commit_is_made_good_by_the_next() -> None:
    rig = Rig()
    rig.join()
    rig.feed(b"one")
    rig.consumer.refuse_commits = True
    rig.clock.advance(1.0)
    rig.turn(3)
    rig.clock.advance(1.0)
    rig.turn()
    assert rig.meter.value(COMMITS, outcome="refused") >= 1
    rig.consumer.refuse_commits = False
    rig.clock.advance(1.0)
    rig.turn()
    assert rig.broker.committed("g") == {(FRAMES, 0): 1}


def test_deliveries_that_keep_failing_stop_before_the_commit() -> None:
    rig = Rig()
    rig.feed(b"one", b"two", b"three")
    rig.producer.fail_after = 1
    with pytest.raises(DeliveryError, match=f"{FRAMES}/0/"):
        rig.runner.run()
    assert rig.broker.committed("g").get((FRAMES, 0), 0) <= 1
    assert rig.meter.value(RESTARTS) == SETTINGS.runtime.transient_attempts - 1
    assert rig.consumer.closed


def test_after_a_failed_delivery_everything_uncommitted_is_answered_through_a_new_producer() -> None:
    rig = Rig()
    rig.feed(b"one", b"two", b"three")
    rig.producer.fail_after = 1
    rig.consumer.on_poll = lambda: setattr(rig.producer, "fail_after", None) if rig.meter.value(RESTARTS) else None
    rig.join()
    rig.turn(10)
    rig.clock.advance(2)
    rig.turn()
    assert sorted(set(rig.answers())) == [(FRAMES, 0, 0), (FRAMES, 0, 1), (FRAMES, 0, 2)]
    assert rig.broker.committed("g") == {(FRAMES, 0): 3}
    assert rig.meter.value(RESTARTS) == 1
    assert rig.runner.num_in_flight == 0, "what the old producer never had acknowledged is let go of"


class Failing:
    """Raises, for a number of calls."""

    def __init__(self, error: Exception, times: int = 1_000) -> None:
        self.error, self.times = error, times

    def process(self, frames: Sequence[FrameRecord]) -> list[Result]:
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return [toy_result(frame) for frame in frames]


def test_an_unexpected_error_names_the_record_and_stops_before_the_commit() -> None:
    rig = Rig(processor=Failing(ZeroDivisionError("division by zero")))
    rig.feed(b"one")
    with pytest.raises(ProcessingError, match=f"ZeroDivisionError while processing {FRAMES}/0/0"):
        rig.runner.run()
    assert rig.broker.committed("g") == {}
    assert rig.answers() == []


def test_a_processor_that_loses_a_frame_stops_the_process() -> None:
    class Forgetful:
        def process(self, frames: Sequence[FrameRecord]) -> list[Result]:
            return []

    rig = Rig(processor=Forgetful())
    rig.feed(b"one")
    with pytest.raises(ProcessingError, match="0 results for 1 frames"):
        rig.runner.run()


def test_a_transient_error_is_tried_again_with_growing_waits() -> None:
    rig = Rig(processor=Failing(TransientError("store does not answer"), times=3))
    rig.feed(b"one")
    stop_after(rig, 10)
    assert rig.runner.run() is Outcome.DRAINED
    assert rig.pauses == [0.1, 0.2, 0.4]
    assert rig.meter.value(BATCH_RETRIES) == 3
    assert rig.answers() == [(FRAMES, 0, 0)]


def test_a_transient_error_that_stays_stops_the_process() -> None:
    rig = Rig(Settings(runtime=RuntimeSettings(transient_attempts=2)), processor=Failing(TransientError("store does not answer")))
    rig.feed(b"one")
    with pytest.raises(ProcessingError, match=f"gave up after 2 tries of {FRAMES}/0/0: store does not answer"):
        rig.runner.run()
    assert rig.broker.committed("fifa-stream") == {}


def test_batches_form_by_count() -> None:
    rig = Rig()
    processor = rig.processor
    assert isinstance(processor, ToyProcessor)
    rig.join()
    rig.feed(*[b"x"] * 8)
    rig.turn(2)
    assert processor.batches == [4, 4]


def test_batches_form_by_delay() -> None:
    rig = Rig()
    processor = rig.processor
    assert isinstance(processor, ToyProcessor)
    rig.join()
    rig.feed(b"x", b"x")
    rig.turn()
    assert processor.batches == []
    rig.clock.advance(0.021)
    rig.turn()
    assert processor.batches == [2]


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param(LimitSettings(max_in_flight_records=8), id="by records"),
        pytest.param(LimitSettings(max_in_flight_bytes=8 << 10), id="by bytes"),
    ],
)
def test_back_pressure_pauses_and_resumes(limits: LimitSettings) -> None:
    rig = Rig(SETTINGS.model_copy(update={"limits": limits}))
    rig.join()
    rig.feed(*[b"x" * 1024] * 100)
    rig.producer.hold = True
    rig.turn(30)
    assert rig.producer.num_waiting <= 16, "one poll may pass the limit"
    rig.producer.hold = False
    rig.turn(100)
    assert len(rig.answers()) == 100


def test_a_full_producer_holds_results_back() -> None:
    rig = Rig()
    rig.producer = MemoryProducer(rig.broker, max_unacknowledged=3)
    rig.runner = Runner(
        SETTINGS,
        rig.processor,
        consumer=rig.consumer,
        open_producer=lambda: rig.producer,
        worker=rig._inline,
        clock=rig.clock,
        pause=rig.pauses.append,
    )
    rig.join()
    rig.feed(*[b"x"] * 20)
    rig.producer.hold = True
    rig.turn(10)
    assert rig.producer.num_waiting == 3
    rig.producer.hold = False
    rig.turn(20)
    assert len(rig.answers()) == 20


def test_a_stop_finishes_what_is_in_flight_and_takes_nothing_new() -> None:
    rig = Rig()
    rig.feed(*[b"x"] * 8)
    polls = iter(range(1_000))

    def on_poll() -> None:
        if next(polls) == 1:
            rig.runner.stop()
            rig.feed(*[b"y"] * 50)

    rig.consumer.on_poll = on_poll
    assert rig.runner.run() is Outcome.DRAINED
    assert len(rig.answers()) == 8
    assert rig.broker.committed("g") == {(FRAMES, 0): 8}
    assert not rig.health.ready


def test_a_drain_that_takes_too_long_commits_what_is_finished() -> None:
    rig = Rig(SETTINGS.model_copy(update={"runtime": RuntimeSettings(drain_timeout_s=2.0)}))
    rig.feed(b"one", b"two")
    polls = iter(range(1_000_000))

    def on_poll() -> None:
        if next(polls) == 3:
            assert rig.worker is not None
            rig.worker.hold = True
            rig.feed(b"stuck")
        if len(rig.answers()) == 2 and rig.clock.now > 1.0:
            rig.runner.stop()
            rig.consumer.on_poll = lambda: None

    rig.consumer.on_poll = on_poll
    assert rig.runner.run() is Outcome.DRAIN_TIMEOUT
    assert rig.broker.committed("g") == {(FRAMES, 0): 2}


def test_a_second_stop_abandons_what_is_in_flight() -> None:
    rig = Rig()
    rig.feed(b"one")
    assert rig.worker is not None
    rig.worker.hold = True
    stop_after(rig, 1, times=2)
    assert rig.runner.run() is Outcome.ABORTED
    assert rig.answers() == []
    assert rig.broker.committed("g") == {}


def test_a_record_of_a_lost_partition_is_left_to_the_next_member() -> None:
    rig = Rig()
    rig.join()
    rig.feed(b"one")
    rig.turn()  # polled, waiting for its batch
    rig.consumer.lose()
    other = Rig(broker=rig.broker)
    other.join()
    rig.clock.advance(1.0)
    rig.turn(3)
    other.turn()
    other.clock.advance(1.0)
    other.turn(3)
    assert rig.meter.value(RECORDS_HANDED_OVER) == 1
    assert rig.consumer.commits == []
    assert rig.answers() == [(FRAMES, 0, 0)], "answered once, by the other member"


def test_a_rebalance_moves_partitions_without_loss_or_repeat() -> None:
    first = Rig()
    first.join()
    for partition in (0, 1):
        first.feed(*[b"x"] * 6, partition=partition)
    first.turn(2)
    first.clock.advance(1.0)
    first.turn(2)
    second = Rig(broker=first.broker)
    second.join()  # takes a partition over
    for partition in (0, 1):
        first.feed(*[b"y"] * 6, partition=partition)
    for _ in range(6):
        for rig in (first, second):
            rig.clock.advance(0.5)
            rig.turn()
    assert first.answers() == [(FRAMES, partition, offset) for partition in (0, 1) for offset in range(12)]
    assert first.broker.committed("g") == {(FRAMES, 0): 12, (FRAMES, 1): 12}


def test_a_topic_made_anew_is_followed_from_its_start() -> None:
    rig = Rig(partitions=1)
    rig.join()
    rig.feed(*[b"x"] * 5)
    rig.turn(3)
    rig.clock.advance(2.0)
    rig.turn()
    assert rig.broker.committed("g") == {(FRAMES, 0): 5}
    rig.broker.rewrite(FRAMES, 0, [])
    rig.feed(b"again")
    rig.consumer.positions[FRAMES, 0] = 0
    rig.turn(2)
    rig.clock.advance(2.0)
    rig.turn(2)
    assert rig.broker.committed("g") == {(FRAMES, 0): 1}
    assert len(rig.answers()) == 6


def headers_of(record: RawRecord) -> dict[str, bytes]:
    return dict(record.headers)


def test_a_dead_letter_too_large_for_the_topic_goes_without_the_image() -> None:
    rig = Rig(Settings(kafka=KafkaSettings(group_id="g", max_request_bytes=16 << 10)))
    rig.join()
    rig.feed(b"bad" + b"x" * (16 << 10))
    rig.turn(2)
    rig.clock.advance(1.0)
    rig.turn(2)
    (letter,) = rig.broker.records(DEAD)
    assert (letter.key, letter.value) == (b"s", b"")
    assert len(headers_of(letter)["dlq-value-sha256"]) == 64


def test_a_dead_letter_whose_headers_are_too_large_says_where_and_why() -> None:
    rig = Rig(Settings(kafka=KafkaSettings(group_id="g", max_request_bytes=16 << 10)))
    rig.join()
    rig.broker.append(FRAMES, OutRecord(b"s", b"bad", (("junk", b"x" * (16 << 10)),)), partition=0)
    rig.turn(2)
    rig.clock.advance(1.0)
    rig.turn(2)
    (letter,) = rig.broker.records(DEAD)
    assert headers_of(letter)["dlq-reason"] == b"undecodable_image"
    assert "junk" not in headers_of(letter)


def test_a_null_value_becomes_a_dead_letter_that_kafka_accepts() -> None:
    rig = Rig()
    rig.join()
    rig.broker.append(FRAMES, OutRecord(None, None, ()), partition=0)
    rig.turn(2)
    (letter,) = rig.broker.records(DEAD)
    assert letter.value == b"", "kafka-python refuses a record that has neither key nor value"


def test_a_verdict_too_large_for_the_topic_becomes_a_dead_letter() -> None:
    class Verbose(ToyProcessor):
        def process(self, frames: Sequence[FrameRecord]) -> list[Result]:
            note = Note(code=NoteCode.NO_FACE, message="x" * (8 << 10))
            return [one.model_copy(update={"notes": (note,)}) for one in super().process(frames) if isinstance(one, Verdict)]

    rig = Rig(Settings(kafka=KafkaSettings(group_id="g", max_request_bytes=16 << 10)), processor=Verbose())
    rig.join()
    rig.feed(b"one")
    rig.turn()
    rig.clock.advance(1.0)
    rig.turn(2)
    (letter,) = rig.broker.records(DEAD)
    assert headers_of(letter)["dlq-reason"] == b"record_too_large"
    assert b"max_request_bytes" in headers_of(letter)["dlq-error"]


def test_ready_and_started_follow_the_group() -> None:
    rig = Rig()
    assert not rig.health.started
    rig.join()
    rig.turn()
    assert (rig.health.started, rig.health.ready, rig.health.live) == (True, True, True)
    rig.clock.advance(61.0)
    assert not rig.health.live, "the loop does not turn"


@settings(max_examples=20, deadline=None)
@given(stream_id=st.text(min_size=1, max_size=256), topic=st.text("a", min_size=249, max_size=249))
def test_key_and_headers_of_a_verdict_fit_what_is_kept_free_for_them(stream_id: str, topic: str) -> None:
    headers = (("stream-id", stream_id.encode()), ("traceparent", b"01-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01-" + b"c" * 100))
    raw = RawRecord(topic, 2**31 - 1, 2**63 - 1, 0, None, b"image", (*headers, ("frame-index", b"9" * 18), ("pts-ms", b"9" * 18)))
    frame = parse_frame(raw, max_value_bytes=10)
    verdict = toy_result(frame)
    assert isinstance(verdict, Verdict)
    record = verdict_record(verdict, frame)
    assert record.size - len(record.value or b"") < HEADER_BYTES


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_happens_nothing_is_lost(data: st.DataObject) -> None:
    """Members come, go and are thrown out, commits are refused, acknowledgements are late: in the end every record has an answer, and committed
    offsets never pass an unanswered one."""
    broker = MemoryBroker({FRAMES: 2, VERDICTS: 1, DEAD: 1})
    rigs: list[Rig] = []
    sent = 0

    def join() -> None:
        rig = Rig(broker=broker)
        rig.join()
        rigs.append(rig)

    def check() -> None:
        if rigs:
            answered = set(rigs[0].answers())
            for (topic, partition), position in broker.committed("g").items():
                assert all((topic, partition, offset) in answered for offset in range(position))

    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["feed", "feed", "turn", "turn", "join", "lose", "leave", "hold", "release", "refuse"]))
        rig = data.draw(st.sampled_from(rigs)) if rigs else None
        if action == "feed":
            broker.append(FRAMES, OutRecord(b"s", data.draw(st.sampled_from([b"x", b"bad", b""])), ()), partition=data.draw(st.integers(0, 1)))
            sent += 1
        elif action == "join" and len(rigs) < 3:
            join()
        elif rig is not None:
            if action == "turn":
                rig.clock.advance(data.draw(st.sampled_from([0.0, 0.03, 1.1])))
                rig.turn()
            elif action in ("lose", "leave"):
                (rig.consumer.lose if action == "lose" else rig.consumer.close)()
                rigs.remove(rig)
            elif action == "refuse":
                rig.consumer.refuse_commits = not rig.consumer.refuse_commits
            else:
                rig.producer.hold = action == "hold"
        check()
    if not rigs:
        join()
    for rig in rigs:
        rig.producer.hold = rig.consumer.refuse_commits = False
    for _ in range(30):
        for rig in rigs:
            rig.clock.advance(1.1)
            rig.turn()
        check()
    assert len(set(rigs[0].answers())) == sent
    assert sum(broker.committed("g").values()) == sent


def test_results_come_back_in_order_from_the_worker_thread() -> None:
    arrived = threading.Semaphore(0)

    def process(batch: Sequence[object]) -> object:
        arrived.release()
        return list(batch)

    worker = WorkerThread(process)  # type: ignore[arg-type]
    for number in range(BATCHES_AT_WORKER):
        assert worker.has_room
        worker.submit([number])  # type: ignore[list-item]
    assert not worker.has_room
    for _ in range(BATCHES_AT_WORKER):
        assert arrived.acquire(timeout=10)
    results: list[object] = []
    while len(results) < BATCHES_AT_WORKER:
        results += worker.results()
    assert results == [[0], [1]]
    worker.close()


def test_the_loop_turns_while_the_worker_thread_is_busy() -> None:
    release = threading.Event()

    class Slow:
        def process(self, frames: Sequence[FrameRecord]) -> list[Result]:
            assert release.wait(timeout=30)
            return [toy_result(frame) for frame in frames]

    broker = MemoryBroker({FRAMES: 1, VERDICTS: 1, DEAD: 1})
    consumer, producer = MemoryConsumer(broker, "g"), MemoryProducer(broker)
    runner = Runner(Settings(batch=BatchSettings(max_delay_ms=0)), Slow(), consumer=consumer, open_producer=lambda: producer)
    broker.append(FRAMES, OutRecord(b"s", b"x", ()))
    polls = iter(range(1_000_000_000))

    def on_poll() -> None:
        count = next(polls)
        if count == 100:  # polled a hundred times with the frame still inside
            assert not broker.records(VERDICTS)
            release.set()
            runner.stop()

    consumer.on_poll = on_poll
    assert runner.run() is Outcome.DRAINED
    assert len(broker.records(VERDICTS)) == 1


def test_an_error_on_the_worker_thread_reaches_the_loop() -> None:
    broker = MemoryBroker({FRAMES: 1, VERDICTS: 1, DEAD: 1})
    broker.append(FRAMES, OutRecord(b"s", b"x", ()))
    runner = Runner(SETTINGS, Failing(ZeroDivisionError("zero")), consumer=MemoryConsumer(broker, "g"), open_producer=lambda: MemoryProducer(broker))
    with pytest.raises(ProcessingError, match="ZeroDivisionError"):
        runner.run()


def test_sigterm_drains_and_the_handler_is_put_back() -> None:
    rig = Rig()
    rig.feed(b"one")
    before = signal.getsignal(signal.SIGTERM)
    polls = iter(range(1_000_000))

    def on_poll() -> None:
        if next(polls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    rig.consumer.on_poll = on_poll
    with stop_on_signals(rig.runner):
        assert rig.runner.run() is Outcome.DRAINED
    assert signal.getsignal(signal.SIGTERM) is before
    assert rig.answers() == [(FRAMES, 0, 0)]


def test_toy_results_are_what_the_loop_expects() -> None:
    assert isinstance(toy_result(frame_of(b"bad image")), RecordError)
    assert isinstance(toy_result(frame_of(b"image")), Verdict)


def frame_of(value: bytes) -> FrameRecord:
    raw = RawRecord(FRAMES, 0, 0, 0, None, value, ())
    return FrameRecord(raw, "s", None, None, None, None, False, None, None)


def test_a_topic_of_bad_records_stops_the_worker_before_the_letter_at_the_limit() -> None:
    rig = Rig(SETTINGS.model_copy(update={"dead_letters": DeadLetterSettings(max_run=3)}), partitions=1)
    rig.feed(*[b"bad"] * 5)
    with pytest.raises(TooManyDeadLetters, match="3 records in a row"):
        rig.runner.run()
    assert len(rig.broker.records(DEAD)) == 2
    assert rig.broker.committed("g")[FRAMES, 0] == 2


def test_shed_frames_are_answered_by_verdicts_that_say_so() -> None:
    rig = Rig(SETTINGS.model_copy(update={"shedding": SheddingSettings(policy="newest", max_waiting_per_stream=2)}), partitions=1)
    rig.feed(*[b"frame"] * 16)
    rig.join()
    assert rig.worker is not None
    rig.worker.hold = True
    rig.turn(4)
    rig.worker.hold = False
    stop_after(rig, 5)
    rig.turn(20)
    assert rig.answers() == [(FRAMES, 0, offset) for offset in range(16)]
    verdicts = [Verdict.from_bytes(record.value or b"") for record in rig.broker.records(VERDICTS)]
    assert [any(note.code is NoteCode.SHED for note in verdict.notes) for verdict in verdicts] == [False] * 8 + [True] * 6 + [False] * 2


def test_an_image_elsewhere_is_fetched_beside_the_loop(tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(b"image")
    rig = Rig(SETTINGS.model_copy(update={"claims": ClaimSettings(allowed=(f"file://{tmp_path}/",))}), partitions=1)
    claim = (("claim-uri", f"file://{tmp_path}/one.png".encode()), ("claim-size", b"5"), ("content-type", b"image/png"))
    for digest in (hashlib.sha256(b"image").hexdigest(), "0" * 64):
        rig.broker.append(FRAMES, OutRecord(b"s", b"", (*claim, ("claim-sha256", digest.encode()))))
    rig.join()
    while len(rig.answers()) < 2:
        rig.turn()
        threading.Event().wait(0.005)  # the pool has a thread of its own
    (verdict,) = rig.broker.records(VERDICTS)
    assert Verdict.from_bytes(verdict.value or b"").media.sha256 == hashlib.sha256(b"image").hexdigest()
    assert [dict(record.headers)["dlq-reason"] for record in rig.broker.records(DEAD)] == [b"claim_mismatch"]
    rig.runner.stop()
    assert rig.runner.run() is Outcome.DRAINED


def test_an_answer_that_waits_to_be_sent_holds_no_fetched_image(tmp_path: Path) -> None:
    """limits.max_in_flight_bytes counts the records' own bytes, and behind a claim that is slow hundreds of answers may wait."""
    (tmp_path / "one.png").write_bytes(b"image")
    rig = Rig(SETTINGS.model_copy(update={"claims": ClaimSettings(allowed=(f"file://{tmp_path}/",))}), partitions=1)
    claim = (
        ("claim-uri", f"file://{tmp_path}/one.png".encode()),
        ("claim-size", b"5"),
        ("claim-sha256", hashlib.sha256(b"image").hexdigest().encode()),
    )
    rig.broker.append(FRAMES, OutRecord(b"s", b"", claim))
    rig.producer._max_unacknowledged = 0
    rig.join()
    while not rig.runner._answers:
        rig.turn()
        threading.Event().wait(0.005)
    (answer,) = rig.runner._answers
    assert answer.frame is not None and answer.frame.claim is not None and answer.frame.fetched is None
    rig.producer._max_unacknowledged = 1
    rig.runner.stop()
    assert rig.runner.run() is Outcome.DRAINED and len(rig.broker.records(VERDICTS)) == 1


def test_a_place_for_claims_that_is_none_is_refused_before_the_broker_is_asked() -> None:
    settings = Settings(
        kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1"), claims=ClaimSettings(allowed=("ftp://x/",)), runtime=RuntimeSettings(health_port=0)
    )
    with pytest.raises(ConfigError, match=r"claims\.allowed: 'ftp://x/' is none of file:///FOLDER/"):
        serve(settings, ToyProcessor)


class Tangled:
    """Holds itself, as what kafka-python leaves of a poll that timed out."""

    def __init__(self) -> None:
        self.itself = self


def test_garbage_that_forms_cycles_is_collected_by_time_however_little_is_allocated() -> None:
    clock = FakeClock()
    collection = TimedCollection(clock=clock)
    gc.collect()
    gc.disable()
    try:
        left = weakref.ref(Tangled())
        clock.advance(COLLECT_EVERY_S / 2)
        collection.turn()
        assert left() is not None
        clock.advance(COLLECT_EVERY_S / 2)
        collection.turn()
        assert left() is None
    finally:
        gc.enable()
