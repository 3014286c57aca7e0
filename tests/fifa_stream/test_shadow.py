"""A second engine beside the first: compared, written to its own topic, and never in the way."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.contracts import Label
from fifa_stream.config import BatchSettings, EngineSettings, KafkaSettings, Settings
from fifa_stream.engine_thread import Result, Worker
from fifa_stream.produce import DeliveryError
from fifa_stream.records import SHADOW_SOURCE, FrameRecord, OutRecord, RawRecord, Reason, RecordError, Verdict, parse_frame
from fifa_stream.runner import Runner
from fifa_stream.shadow import Shadow
from fifa_stream.telemetry import SHADOW_FRAMES, SHADOW_SCORE_DIFFERENCE, Meter
from fifa_stream.testing import (
    TOY_ENGINE,
    FakeClock,
    InlineWorker,
    MemoryBroker,
    MemoryConsumer,
    MemoryProducer,
    MemoryTransactions,
    ToyProcessor,
    toy_result,
)

FRAMES, VERDICTS, DEAD, SHADOWS = "fifa.frames", "fifa.verdicts", "fifa.dead-letters", "fifa.shadow-verdicts"
CANDIDATE = TOY_ENGINE.model_copy(update={"name": "candidate"})


def frame(offset: int, value: bytes = b"image") -> FrameRecord:
    return parse_frame(RawRecord(FRAMES, 0, offset, 0, b"s", value, ()), max_value_bytes=100)


def scored(score: float, label: Label) -> Callable[[Sequence[FrameRecord]], list[Result]]:
    def process(frames: Sequence[FrameRecord]) -> list[Result]:
        results: list[Result] = []
        for one in frames:
            result = toy_result(one)
            is_good = isinstance(result, Verdict)
            results.append(result.model_copy(update={"fake_score": score, "label": label, "engine": CANDIDATE}) if is_good else result)  # type: ignore[union-attr]
        return results

    return process


def fails(frames: Sequence[FrameRecord]) -> list[Result]:
    raise RuntimeError("out of memory")


def test_labels_and_scores_are_compared_frame_by_frame() -> None:
    meter = Meter()
    frames = [frame(offset) for offset in range(4)]
    first = scored(0.9, Label.FAKE)(frames)
    found = Shadow(CANDIDATE, scored(0.7, Label.INCONCLUSIVE), share=1.0, meter=meter).judge(frames, first)
    assert set(found) == {0, 1, 2, 3}
    Shadow(CANDIDATE, scored(0.95, Label.FAKE), share=1.0, meter=meter).judge(frames[:1], first[:1])
    assert (meter.value(SHADOW_FRAMES, outcome="disagreed"), meter.value(SHADOW_FRAMES, outcome="agreed")) == (4, 1)
    assert meter.value(SHADOW_SCORE_DIFFERENCE) == 5


def test_a_dead_letter_is_not_compared() -> None:
    frames = [frame(0, b"bad"), frame(1)]
    shadow = Shadow(CANDIDATE, scored(0.5, Label.REAL), share=1.0, meter=Meter())
    assert set(shadow.judge(frames, scored(0.5, Label.REAL)(frames))) == {1}


def test_a_shadow_that_fails_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    meter, frames = Meter(), [frame(0), frame(1)]
    shadow = Shadow(CANDIDATE, fails, share=1.0, meter=meter)
    with caplog.at_level(logging.ERROR, "fifa_stream.shadow"):
        assert shadow.judge(frames, scored(0.5, Label.REAL)(frames)) == {}
        assert shadow.judge(frames, scored(0.5, Label.REAL)(frames)) == {}
    assert meter.value(SHADOW_FRAMES, outcome="failed") == 4
    assert len(caplog.records) == 1


def test_a_shadow_is_not_asked_questions() -> None:
    seen: list[FrameRecord] = []

    def process(frames: Sequence[FrameRecord]) -> list[Result]:
        seen.extend(frames)
        return scored(0.5, Label.REAL)(frames)

    asked = parse_frame(RawRecord(FRAMES, 0, 0, 0, b"s", b"image", (("fifa-query", b"nose"),)), max_value_bytes=100)
    Shadow(CANDIDATE, process, share=1.0, meter=Meter()).judge([asked], scored(0.5, Label.REAL)([asked]))
    assert asked.query is not None and seen[0].query is None


@given(share=st.floats(0.01, 1.0), begin=st.integers(0, 2**40), partition=st.integers(0, 1000))
def test_a_share_is_what_it_says_of_any_run_of_offsets(share: float, begin: int, partition: int) -> None:
    records = [RawRecord(FRAMES, partition, begin + number, 0, None, None, ()) for number in range(2_000)]
    part = sum(record.is_in_share(share) for record in records) / len(records)
    assert abs(part - share) < 0.01
    assert all(record.is_in_share(1.0) for record in records[:10])


class Rig:
    """The loop with two engines on the in-memory broker."""

    def __init__(self, guarantee: str, share: float = 1.0) -> None:
        kafka = KafkaSettings(group_id="g", shadow_topic=SHADOWS, processing_guarantee=guarantee, transaction_timeout_ms=10_000)  # type: ignore[arg-type]
        config = Settings(kafka=kafka, batch=BatchSettings(max_frames=4, max_delay_ms=20), engine=EngineSettings())
        self.clock, self.broker, self.meter = FakeClock(), MemoryBroker({FRAMES: 2, VERDICTS: 2, DEAD: 1, SHADOWS: 2}), Meter()
        self.consumer = MemoryConsumer(self.broker, "g", clock=self.clock)
        self.producers: list[MemoryProducer] = []
        self._is_exact = guarantee == "exactly_once"
        self.runner = Runner(
            config,
            ToyProcessor(),
            consumer=self.consumer,
            open_producer=self._open,
            worker=self._inline,
            meter=self.meter,
            shadow=Shadow(CANDIDATE, scored(0.5, Label.REAL), share=share, meter=self.meter),
            clock=self.clock,
            pause=lambda _: None,
        )
        self.consumer.subscribe(FRAMES, self.runner)

    def _open(self) -> MemoryProducer:
        self.producers.append(MemoryTransactions(self.broker) if self._is_exact else MemoryProducer(self.broker))
        return self.producers[-1]

    def _inline(self, process: Callable[..., object]) -> Worker:
        return InlineWorker(process)  # type: ignore[arg-type]

    def feed(self, count: int) -> None:
        for number in range(count):
            self.broker.append(FRAMES, OutRecord(b"s", b"image", ()), partition=number % 2)

    def turn(self, times: int = 4) -> None:
        for _ in range(times):
            self.clock.advance(1.1)
            self.runner.turn()

    def places(self, topic: str) -> list[str]:
        return [Verdict.from_bytes(record.value or b"").id for record in self.broker.records(topic)]


@pytest.mark.parametrize("guarantee", ["at_least_once", "exactly_once"])
def test_both_verdicts_of_a_frame_are_written_once_and_the_shadow_names_itself(guarantee: str) -> None:
    rig = Rig(guarantee)
    rig.feed(10)
    rig.turn(6)
    assert sorted(rig.places(VERDICTS)) == sorted(rig.places(SHADOWS)) and len(rig.places(VERDICTS)) == 10
    headers = dict(rig.broker.records(SHADOWS)[0].headers)
    assert headers["ce_source"] == SHADOW_SOURCE.encode()
    assert Verdict.from_bytes(rig.broker.records(SHADOWS)[0].value or b"").engine.name == "candidate"
    assert sum(rig.broker.committed("g").values()) == 10
    assert rig.runner.num_in_flight == 0


def test_only_the_share_is_written() -> None:
    rig = Rig("at_least_once", share=0.3)
    rig.feed(100)
    rig.turn(40)
    assert len(rig.places(VERDICTS)) == 100
    assert 20 <= len(rig.places(SHADOWS)) <= 40


def test_an_offset_is_committed_only_when_both_verdicts_are_acknowledged() -> None:
    rig = Rig("at_least_once")
    rig.feed(1)
    rig.turn(1)
    held = rig.producers[-1]
    held.fail_after = 1  # the verdict goes, the shadow's does not
    with pytest.raises(DeliveryError):
        for _ in range(20):
            rig.turn(1)
            rig.producers[-1].fail_after = 1
    assert rig.broker.committed("g") == {}


def test_after_a_failed_delivery_of_the_shadow_both_are_written_and_nothing_stays_in_flight() -> None:
    rig = Rig("exactly_once")
    rig.feed(4)
    producer = rig.producers[-1]
    assert isinstance(producer, MemoryTransactions)
    producer.commits_until_failure = 0
    rig.turn(12)
    assert sorted(rig.places(VERDICTS)) == sorted(rig.places(SHADOWS)) and len(set(rig.places(VERDICTS))) == len(rig.places(VERDICTS)) == 4
    assert rig.runner.num_in_flight == 0


@pytest.mark.parametrize("guarantee", ["at_least_once", "exactly_once"])
def test_after_a_shadow_that_is_refused_at_once_both_are_written_and_nothing_stays_in_flight(guarantee: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while its topic cannot be looked up."""
    rig = Rig(guarantee)
    rig.feed(4)
    accept = rig.producers[0].send

    def send(topic: str, record: OutRecord, **options: Any) -> None:
        if topic == SHADOWS:
            raise DeliveryError("nobody knows the topic")
        accept(topic, record, **options)

    monkeypatch.setattr(rig.producers[0], "send", send)
    rig.turn(12)
    assert len(rig.producers) == 2 and set(rig.places(VERDICTS)) == set(rig.places(SHADOWS)) and len(set(rig.places(VERDICTS))) == 4
    assert rig.runner.num_in_flight == 0


def test_a_second_result_that_is_an_error_counts_as_failed() -> None:
    meter, frames = Meter(), [frame(0)]

    def refuses(_: Sequence[FrameRecord]) -> list[Result]:
        return [RecordError(Reason.IMAGE_TOO_SMALL, "too small")]

    assert Shadow(CANDIDATE, refuses, share=1.0, meter=meter).judge(frames, scored(0.5, Label.REAL)(frames)) == {}
    assert meter.value(SHADOW_FRAMES, outcome="failed") == 1
