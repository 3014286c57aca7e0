"""What the loop measures of itself: stages by batch, ages by frame, scores by label, and every series there from the start."""

import logging
from collections.abc import Sequence

import pytest

from engines.contracts import Label
from fifa_stream.batch_metrics import BatchMetrics
from fifa_stream.config import BatchSettings, KafkaSettings, Settings, SheddingSettings, TelemetrySettings
from fifa_stream.drift import MIN_SCORES, ScoreDrift
from fifa_stream.produce import Producer
from fifa_stream.records import (
    FaceVerdict,
    ForgeryType,
    OutRecord,
    Quality,
    RawRecord,
    Reason,
    RecordError,
    SampledFrame,
    Verdict,
    parse_frame,
)
from fifa_stream.runner import Runner
from fifa_stream.telemetry import (
    BATCH_SIZE,
    COMMITS,
    DEAD_LETTERS_SENT,
    E2E_SECONDS,
    FACE_SCORE,
    FRAMES_SHED,
    LAG_RECORDS,
    LAST_POLL,
    QUEUE_DEPTH,
    REBALANCES,
    SCORE_PSI,
    STAGE_SECONDS,
    VERDICTS_SENT,
    Meter,
)
from fifa_stream.testing import FakeClock, InlineWorker, MemoryBroker, MemoryConsumer, MemoryProducer, ToyProcessor, toy_result

FRAMES, VERDICTS, DEAD = "fifa.frames", "fifa.verdicts", "fifa.dead-letters"
EVEN = (0.05,) * 20


def face(score: float, label: Label, *, passed: bool = True) -> FaceVerdict:
    return FaceVerdict(
        id=0,
        box=(0, 0, 9, 9),
        detection_confidence=None,
        quality=Quality(passed=passed, face_px=9, sharpness=9, brightness=99),
        fake_score=score,
        raw_score=0,
        label=label,
        forgery_type=ForgeryType(label="identity_swap", probs={}),
    )


def verdict(*faces: FaceVerdict, timings_ms: dict[str, float] | None = None, frames: tuple[SampledFrame, ...] | None = None) -> Verdict:
    result = toy_result(parse_frame(RawRecord(FRAMES, 0, 0, 0, None, b"x", ()), max_value_bytes=9))
    assert isinstance(result, Verdict)
    return result.model_copy(update={"faces": faces, "timings_ms": timings_ms or {}, "frames": frames})


def sampled(*faces: FaceVerdict) -> SampledFrame:
    return SampledFrame(index=0, pts_ms=0, label=Label.REAL, fake_score=0.1, faces=faces)


def series_sum(meter: Meter, name: str) -> dict[str, float]:
    """Sums of a histogram by its one label."""
    lines = [line for line in meter.exposition().decode().splitlines() if line.startswith(f"{name}_sum")]
    return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in lines}


def test_stages_are_sums_over_a_batch() -> None:
    meter = Meter()
    timings = {"decode": 10.0, "detect": 20.0, "analyze": 30.0, "masks": 5.0, "total": 65.0}
    bad = RecordError(Reason.UNDECODABLE_IMAGE, "bad")
    BatchMetrics(meter, ScoreDrift((), window=MIN_SCORES)).take(
        [verdict(timings_ms=timings), bad, verdict(timings_ms=timings)], waited_s=0.5, seconds=0.14
    )
    assert series_sum(meter, "fifa_stage_seconds") == pytest.approx({"queue": 0.5, "decode": 0.02, "detect": 0.04, "infer": 0.07})
    assert all(meter.value(STAGE_SECONDS, stage=stage) == 1 for stage in ("queue", "decode", "detect", "infer")), "once a batch"
    assert meter.value(BATCH_SIZE) == 1


def test_scores_are_those_of_faces_fit_to_be_judged_in_images_and_chunks() -> None:
    meter = Meter()
    chunk = verdict(frames=(sampled(face(0.2, Label.REAL)), sampled(face(0.99, Label.FAKE), face(0.4, Label.INCONCLUSIVE, passed=False))))
    image = verdict(face(0.5, Label.INCONCLUSIVE), face(0.1, Label.REAL))
    BatchMetrics(meter, ScoreDrift(EVEN, window=MIN_SCORES)).take([chunk, image], waited_s=0, seconds=0)
    assert series_sum(meter, "fifa_face_score") == pytest.approx({"real": 0.3, "fake": 0.99, "inconclusive": 0.5})
    assert meter.value(FACE_SCORE, label="real") == 2


def test_drift_is_shown_once_there_are_enough_scores() -> None:
    meter = Meter()
    metrics = BatchMetrics(meter, ScoreDrift(EVEN, window=MIN_SCORES))
    images = [verdict(*(face(score, Label.REAL) for score in (0.01, 0.02))) for _ in range(MIN_SCORES // 2 - 1)]
    metrics.take(images, waited_s=0, seconds=0)
    assert f"\n{SCORE_PSI.name} " not in meter.exposition().decode()
    metrics.take([verdict(face(0.01, Label.REAL), face(0.02, Label.REAL))], waited_s=0, seconds=0)
    assert meter.value(SCORE_PSI) > 1


def test_without_a_baseline_it_is_said_once_why_there_is_no_index(caplog: pytest.LogCaptureFixture) -> None:
    meter = Meter()
    with caplog.at_level(logging.INFO):
        metrics = BatchMetrics(meter, ScoreDrift((), window=MIN_SCORES))
        for _ in range(2):
            metrics.take([verdict(*(face(0.5, Label.REAL),) * MIN_SCORES)], waited_s=0, seconds=0)
    assert f"\n{SCORE_PSI.name} " not in meter.exposition().decode()
    assert [record.getMessage() for record in caplog.records if "fifa_score_psi" in record.getMessage()] == [
        "fifa_score_psi is absent: neither the engine bundle nor telemetry.score_baseline has a baseline of scores"
    ]


class Rig:
    """A loop, its broker and what it measures."""

    def __init__(self, *, shedding: SheddingSettings | None = None) -> None:
        self.clock, self.unix = FakeClock(), FakeClock(1_700_000_000.0)
        self.broker = MemoryBroker({FRAMES: 2, VERDICTS: 2, DEAD: 1})
        self.consumer = MemoryConsumer(self.broker, "g", clock=self.clock)
        self.producer = MemoryProducer(self.broker)
        self.meter = Meter()
        self.worker: InlineWorker | None = None
        self.runner = Runner(
            Settings(
                kafka=KafkaSettings(group_id="g"),
                batch=BatchSettings(max_frames=4),
                shedding=shedding or SheddingSettings(),
                telemetry=TelemetrySettings(),
            ),
            ToyProcessor(),
            consumer=self.consumer,
            open_producer=self._open,
            worker=self._inline,
            meter=self.meter,
            clock=self.clock,
            unix_time_s=self.unix,
        )
        self.consumer.subscribe(FRAMES, self.runner)

    def _open(self) -> Producer:
        return self.producer

    def _inline(self, process: object) -> InlineWorker:
        self.worker = InlineWorker(process)  # type: ignore[arg-type]
        return self.worker

    def turn(self, values: Sequence[bytes] = (), *, times: int = 4) -> None:
        for value in values:
            self.broker.append(FRAMES, OutRecord(b"s", value, ()), partition=0)
        for _ in range(times):
            self.runner.turn()


def test_every_series_with_known_labels_is_there_from_the_start() -> None:
    text = Rig().meter.exposition().decode()
    for sample in (
        'fifa_verdicts_total{label="fake"} 0.0',
        *(f'fifa_dead_letters_total{{reason="{reason.value}"}} 0.0' for reason in Reason),
        'fifa_frames_shed_total{reason="too_old"} 0.0',
        'fifa_commits_total{outcome="refused"} 0.0',
        'fifa_rebalances_total{event="lost"} 0.0',
    ):
        assert f"\n{sample}\n" in text


def test_every_answer_has_an_age_and_every_stage_its_time() -> None:
    rig = Rig()
    rig.unix.advance(5.0)
    rig.turn([b"one", b"bad", b"two"])
    rig.clock.advance(2.0)
    rig.turn()
    assert (rig.meter.value(VERDICTS_SENT, label="inconclusive"), rig.meter.value(DEAD_LETTERS_SENT, reason="undecodable_image")) == (2, 1)
    assert rig.meter.value(E2E_SECONDS) == 3
    line = next(line for line in rig.meter.exposition().decode().splitlines() if line.startswith("fifa_e2e_latency_seconds_sum"))
    assert float(line.split()[1]) == pytest.approx(3 * 5.0, abs=0.01), "timestamps of the memory broker are a millisecond apart"
    assert {stage: rig.meter.value(STAGE_SECONDS, stage=stage) for stage in ("poll", "queue", "produce", "commit")} == {
        "poll": 1,
        "queue": 1,
        "produce": 1,
        "commit": 1,
    }
    assert rig.meter.value(COMMITS, outcome="accepted") == 1
    assert rig.meter.value(LAST_POLL) == rig.unix.now
    assert rig.meter.value(REBALANCES, event="assigned") == 1


def test_the_way_to_the_broker_is_timed_until_the_acknowledgement() -> None:
    rig = Rig()
    rig.producer.hold = True
    rig.turn([b"one"])
    assert rig.meter.value(STAGE_SECONDS, stage="produce") == 0
    rig.clock.advance(3.0)
    rig.producer.hold = False
    rig.turn()
    assert rig.meter.value(STAGE_SECONDS, stage="produce") == 1
    assert series_sum(rig.meter, "fifa_stage_seconds")["produce"] >= 3.0


def test_queues_and_lag_are_shown_while_the_engine_is_busy() -> None:
    rig = Rig()
    assert rig.worker is not None
    rig.worker.hold, rig.worker.capacity = True, 1
    rig.turn([b"frame"] * 7)
    rig.clock.advance(10.0)
    rig.turn(times=1)
    assert {queue: rig.meter.value(QUEUE_DEPTH, queue=queue) for queue in ("fetch", "engine", "send")} == {"fetch": 0, "engine": 3, "send": 0}
    assert rig.meter.value(LAG_RECORDS, group="g", topic=FRAMES, partition="0") == 7
    rig.worker.hold = False
    rig.turn(times=8)
    rig.clock.advance(10.0)
    rig.turn(times=2)
    assert rig.meter.value(LAG_RECORDS, group="g", topic=FRAMES, partition="0") == 0


def test_shed_frames_are_counted_with_their_reason() -> None:
    rig = Rig(shedding=SheddingSettings(policy="late", max_age_ms=1_000))
    assert rig.worker is not None
    rig.worker.hold, rig.worker.capacity = True, 1
    rig.unix.advance(60)
    rig.turn([b"frame"] * 6)
    assert rig.meter.value(FRAMES_SHED, reason="too_old") == 2
