"""What a batch of verdicts says of stages and scores: metrics by batch, never by frame."""

import logging
from collections import defaultdict
from collections.abc import Sequence

from fifa_stream.drift import ScoreDrift
from fifa_stream.records import RecordError, Verdict
from fifa_stream.telemetry import BATCH_SECONDS, BATCH_SIZE, FACE_SCORE, SCORE_PSI, STAGE_SECONDS, Meter

logger = logging.getLogger(__name__)

STAGE_OF_TIMING = {"decode": "decode", "detect": "detect", "analyze": "infer", "masks": "infer"}
"""From `timings_ms` of a verdict to the label of `STAGE_SECONDS`."""


class BatchMetrics:
    """For the loop's thread."""

    def __init__(self, meter: Meter, drift: ScoreDrift) -> None:
        """Says once why there is no `fifa_score_psi`."""
        self._meter, self._drift = meter, drift
        if not drift.has_baseline:
            logger.info("fifa_score_psi is absent: neither the engine bundle nor telemetry.score_baseline has a baseline of scores")

    def take(self, results: Sequence[Verdict | RecordError], *, waited_s: float, seconds: float) -> None:
        """Of one batch: how long its first frame waited for the engine, and how long the engine took."""
        self._meter.observe(BATCH_SIZE, len(results))
        self._meter.observe(BATCH_SECONDS, seconds)
        self._meter.observe(STAGE_SECONDS, waited_s, stage="queue")
        stages: dict[str, float] = defaultdict(float)
        scores: dict[str, list[float]] = defaultdict(list)
        for result in results:
            if isinstance(result, RecordError):
                continue
            for timing, milliseconds in result.timings_ms.items():
                if timing in STAGE_OF_TIMING:
                    stages[STAGE_OF_TIMING[timing]] += milliseconds / 1000
            for face in result.all_faces:
                if face.quality.passed:
                    scores[face.label.value].append(face.fake_score)
        for stage, of_stage_s in stages.items():
            self._meter.observe(STAGE_SECONDS, of_stage_s, stage=stage)
        for label, of_label in scores.items():
            self._meter.observe_all(FACE_SCORE, of_label, label=label)
            self._drift.add(of_label)
        if scores and (psi := self._drift.psi) is not None:
            self._meter.set(SCORE_PSI, psi)
