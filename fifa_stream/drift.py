"""Are scores distributed as they were when the engine was calibrated? The population stability index (PSI) over a window of the last scores.

PSI = sum over bins of (p - q) * ln(p / q), p the part of the window and q the part of the baseline in a bin; symmetric, 0 for equal shares. By custom
below 0.1 is steady and above 0.2 is a shift. It says that scores changed, not why: another camera, other people, more fakes, or an engine that fails.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence

SMALLEST_SHARE = 1e-4
"""An empty bin counts as this much: its logarithm would be infinite."""
MIN_SCORES = 1_000
"""With fewer the index is mostly chance: for n scores of the baseline itself and 20 bins it is about 19/n."""


def population_stability_index(shares: Sequence[float], baseline: Sequence[float]) -> float:
    """PSI of two lists of shares over the same bins. Neither has to sum to 1. ValueError for lists of different or no length, and for all zeros."""
    if len(shares) != len(baseline) or not shares:
        raise ValueError(f"{len(shares)} shares and {len(baseline)} of the baseline; give the same number of bins, at least 1")
    return sum((p - q) * math.log(p / q) for p, q in zip(_smoothed(shares), _smoothed(baseline), strict=True))


def _smoothed(shares: Sequence[float]) -> list[float]:
    total = math.fsum(shares)
    if not total > 0 or min(shares) < 0:
        raise ValueError("shares must be 0 or more, and one of them above 0")
    raised = [max(share / total, SMALLEST_SHARE) for share in shares]
    whole = math.fsum(raised)
    return [share / whole for share in raised]


class ScoreDrift:
    """The last `window` scores against a baseline of equal bins over [0, 1]. Memory: a small integer for each score of the window."""

    def __init__(self, baseline: Sequence[float], *, window: int, min_scores: int = MIN_SCORES) -> None:
        """A baseline of fewer than two bins is none. ValueError for one that is no distribution, and for a window below `min_scores`."""
        if window < min_scores:
            raise ValueError(f"a window of {window} scores never holds the {min_scores} that an index needs; make it larger")
        self._baseline = tuple(baseline)
        if self.has_baseline:
            population_stability_index(self._baseline, self._baseline)
        self._min_scores = min_scores
        self._bins: deque[int] = deque(maxlen=window)
        self._counts = [0] * len(self._baseline)

    @property
    def has_baseline(self) -> bool:
        """Whether there is anything to compare with."""
        return len(self._baseline) >= 2

    def add(self, scores: Iterable[float]) -> None:
        """Take scores in [0, 1]; the oldest make room."""
        if not self.has_baseline:
            return
        last = len(self._counts) - 1
        for score in scores:
            if len(self._bins) == self._bins.maxlen:
                self._counts[self._bins[0]] -= 1
            place = min(int(score * (last + 1)), last)
            self._bins.append(place)
            self._counts[place] += 1

    @property
    def psi(self) -> float | None:
        """None without a baseline or with too few scores: no index is not an index of 0."""
        if not self.has_baseline or len(self._bins) < self._min_scores:
            return None
        return population_stability_index(self._counts, self._baseline)
