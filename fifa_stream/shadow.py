"""A second engine that judges a share of the frames beside the first: on its own topic, and as a figure of how often the two disagree.

The shadow scores and never explains, on the engine's thread, behind the batch it looks at again: at a share of s a worker gives up about s scorings
of every frame. What goes wrong with it is counted and costs no verdict. Which frames it sees is a function of their offsets, so that a record that is
answered again is compared again, and nothing else is.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

from fifa_stream.records import EngineIdentity, FrameRecord, RecordError, Verdict
from fifa_stream.telemetry import SHADOW_FRAMES, SHADOW_SCORE_DIFFERENCE, Meter

logger = logging.getLogger(__name__)

Process = Callable[[Sequence[FrameRecord]], Sequence[Verdict | RecordError]]


class Shadow:
    """Compares. For the engine's thread."""

    def __init__(self, engine: EngineIdentity, process: Process, *, share: float, meter: Meter) -> None:
        """`process` is that of a pipeline which explains nothing; `share` in (0, 1] of the frames."""
        self.engine = engine
        self._process, self._share, self._meter = process, share, meter
        self._has_failed = False

    def judge(self, frames: Sequence[FrameRecord], results: Sequence[Verdict | RecordError]) -> Mapping[int, Verdict]:
        """Second verdicts on some of the frames that got a first one, by their place in the batch. Never raises for what the shadow does."""
        places = [
            place
            for place, (frame, result) in enumerate(zip(frames, results, strict=True))
            if isinstance(result, Verdict) and frame.raw.is_in_share(self._share)
        ]
        if not places:
            return {}
        try:
            # A question is answered by decoding, which is what a shadow is spared.
            seconds = self._process([frames[place]._replace(query=None) for place in places])
            if len(seconds) != len(places):
                raise ValueError(f"{len(seconds)} results for {len(places)} frames")
        except Exception:  # whatever a candidate does wrong, the engine that answers has answered
            if not self._has_failed:
                logger.exception("the shadow engine failed, frames are answered all the same: engine=%s", self.engine.manifest_sha256)
            self._has_failed = True
            self._meter.add(SHADOW_FRAMES, len(places), outcome="failed")
            return {}
        found = {place: second for place, second in zip(places, seconds, strict=True) if isinstance(second, Verdict)}
        self._compare([(results[place], second) for place, second in found.items()], len(places))
        return found

    def _compare(self, pairs: Sequence[tuple[Verdict | RecordError, Verdict]], asked: int) -> None:
        labels = [isinstance(first, Verdict) and first.label is second.label for first, second in pairs]
        counts = {"agreed": sum(labels), "disagreed": len(labels) - sum(labels), "failed": asked - len(labels)}
        self._meter.add_all(SHADOW_FRAMES, {outcome: count for outcome, count in counts.items() if count})
        differences = [
            abs(first.fake_score - second.fake_score)
            for first, second in pairs
            if isinstance(first, Verdict) and first.fake_score is not None and second.fake_score is not None
        ]
        self._meter.observe_all(SHADOW_SCORE_DIFFERENCE, differences)
