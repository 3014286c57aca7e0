"""How often reviewers err, out of the faces that more than one of them saw, and what figures would be without it.

One error rate for all, the same for real and fake, independent of each other: two then differ on 2 e (1 - e) of the faces. Where a face is hard for
everybody, errors come together, and the rate is too low.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from trainer.fifa_bench.intervals import Interval, clustered_wilson
from trainer.reviews import Case

Shares = TypeVar("Shares", float, NDArray[np.float64])

MIN_SHARED = 30
"""Faces that two reviewers at least must have seen."""
MOST = 0.4
"""Who errs more often than this tells next to nothing."""


class ReviewerError(NamedTuple):
    """A rate, with the bounds of its 95 % interval over streams."""

    rate: float
    low: float
    high: float
    shared: int
    """Faces it rests on; 0 for a rate that somebody stated."""


def stated_error(rate: float) -> ReviewerError:
    """A rate that is not measured. Raises ValueError for one outside [0, `MOST`]."""
    if not 0 <= rate <= MOST:
        raise ValueError(f"a reviewer error of {rate:g} is not in 0 to {MOST:g}; state the share of faces on which a reviewer is wrong")
    return ReviewerError(rate, rate, rate, 0)


def reviewer_error(cases: Sequence[Case]) -> ReviewerError | None:
    """The rate behind how often reviewers differ on the truth; None with fewer than `MIN_SHARED` shared faces."""
    shared = [(case, fakes, voices) for case in cases for fakes, voices in (_voices(case),) if voices > 1]
    if len(shared) < MIN_SHARED:
        return None
    apart_N = np.array([fakes * (voices - fakes) / (voices * (voices - 1) / 2) for _, fakes, voices in shared])
    bounds = clustered_wilson(apart_N, [case.stream for case, _, _ in shared])
    return ReviewerError(_rate(float(apart_N.mean())), _rate(bounds.low), _rate(bounds.high), len(shared))


def fake_voices(case: Case) -> float:
    """Share of those who tell that say fake. At least one must."""
    fakes, voices = _voices(case)
    return fakes / voices


def chance_of_fake(case: Case, rate: float) -> float:
    """What the voices alone make of a face, real and fake being as likely before them. `rate` must be above 0."""
    fakes, voices = _voices(case)
    return float(expit((2 * fakes - voices) * (np.log1p(-rate) - np.log(rate))))


def without_error(share: Shares, rate: float) -> Shares:
    """What a mean of `fake_voices` would be if nobody erred: unbiased, so a single face may leave [0, 1] (Natarajan et al., NeurIPS 2013)."""
    return (share - rate) / (1 - 2 * rate)


def bounds_without_error(bounds: Interval, error: ReviewerError) -> Interval:
    """The same of an interval, wherever in its own the rate lies; within [0, 1]."""
    ends = [without_error(share, min(rate, MOST)) for share in bounds for rate in (error.low, error.high)]
    return Interval(min(max(min(ends), 0.0), 1.0), min(max(max(ends), 0.0), 1.0))


def _voices(case: Case) -> tuple[int, int]:
    said = [review.truth for review in case.told if review.truth is not None]
    return said.count("fake"), len(said)


def _rate(apart: float) -> float:
    return float((1 - np.sqrt(max(0.0, 1 - 2 * apart))) / 2)
