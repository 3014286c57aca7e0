"""Score drift: an index that is symmetric and never negative, over the last scores only, and absent rather than 0 when there is nothing to say."""

import json
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fifa_stream.drift import MIN_SCORES, ScoreDrift, population_stability_index
from fifa_stream.telemetry import SCORE_BUCKETS

SHARES = st.lists(st.floats(0, 1), min_size=2, max_size=30).filter(lambda shares: sum(shares) > 0)
EVEN = (0.05,) * 20


def spread(num_scores: int) -> list[float]:
    return [(number % 20 + 0.5) / 20 for number in range(num_scores)]


@given(SHARES)
def test_the_index_is_symmetric_and_0_only_for_equal_shares(shares: list[float]) -> None:
    other = shares[::-1]
    index = population_stability_index(shares, other)
    assert index >= 0
    assert index == pytest.approx(population_stability_index(other, shares))
    assert population_stability_index(shares, shares) == 0
    assert population_stability_index([3 * share for share in shares], shares) == pytest.approx(0, abs=1e-9)


def test_the_index_is_that_of_the_formula() -> None:
    assert population_stability_index((0.5, 0.5), (0.25, 0.75)) == pytest.approx(0.25 * np.log(2) - 0.25 * np.log(2 / 3))


@pytest.mark.parametrize(
    ("shares", "baseline"),
    [
        pytest.param((), (), id="none"),
        pytest.param((1.0,), (0.5, 0.5), id="other bins"),
        pytest.param((0.0, 0.0), (0.5, 0.5), id="all zeros"),
        pytest.param((0.5, 0.5), (1.5, -0.5), id="negative"),
        pytest.param((0.5, 0.5), (float("nan"), 0.5), id="no number"),
    ],
)
def test_what_is_no_distribution_has_no_index(shares: tuple[float, ...], baseline: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="shares"):
        population_stability_index(shares, baseline)


@given(st.lists(st.lists(st.floats(0, 1), max_size=40), max_size=12), st.integers(1, 50))
def test_only_the_last_scores_count_however_they_came(batches: list[list[float]], window: int) -> None:
    drift, at_once = (ScoreDrift(EVEN, window=window, min_scores=1) for _ in range(2))
    for batch in batches:
        drift.add(batch)
    last = [score for batch in batches for score in batch][-window:]
    at_once.add(last)
    assert drift.psi == at_once.psi
    assert (drift.psi is None) == (not last)
    if last:
        counts = np.bincount(np.minimum((np.array(last) * 20).astype(int), 19), minlength=20)
        assert drift.psi == pytest.approx(population_stability_index(counts.tolist(), EVEN))


def test_bins_are_those_of_the_bundle_s_baseline_and_of_the_histogram() -> None:
    baseline = json.loads((files("engines") / "bundles" / "small" / "manifest.json").read_text("utf-8"))["score_baseline"]
    assert len(baseline) == len(SCORE_BUCKETS)
    drift = ScoreDrift(baseline, window=10_000)
    scores = np.repeat(np.arange(0.025, 1, 0.05), np.round(np.array(baseline) * 5_000).astype(int))
    drift.add(scores.tolist())
    assert drift.psi == pytest.approx(0, abs=1e-5)
    drift.add([1.0] * 5_000)
    assert (drift.psi or 0) > 0.5


def test_too_few_scores_have_no_index() -> None:
    drift = ScoreDrift(EVEN, window=2 * MIN_SCORES)
    drift.add(spread(MIN_SCORES - 1))
    assert drift.psi is None
    drift.add(spread(1))
    assert drift.psi == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("baseline", [(), (1.0,)])
def test_without_a_baseline_there_is_no_index(baseline: tuple[float, ...]) -> None:
    drift = ScoreDrift(baseline, window=MIN_SCORES)
    drift.add(spread(MIN_SCORES))
    assert not drift.has_baseline
    assert drift.psi is None


def test_a_window_that_never_fills_is_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        ScoreDrift(EVEN, window=MIN_SCORES - 1)


def test_scores_at_the_ends_fall_into_the_last_bins() -> None:
    drift = ScoreDrift((0.5, 0.5), window=2, min_scores=1)
    drift.add([0.0, 1.0])
    assert drift.psi == 0
