"""Intervals draw identities, do not depend on order, and say when there is none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.fifa_bench import detection
from trainer.fifa_bench.intervals import (
    UndefinedMetric,
    bootstrap_interval,
    class_mean_interval,
    error_interval,
    mean_interval,
    ratio_interval,
)

FAKE = np.array([False, False, False, False, True, True, True, True])
SCORE = np.array([0.1, 0.2, 0.3, 0.6, 0.4, 0.7, 0.8, 0.9])


def test_bootstrap_draws_identities_not_rows() -> None:
    values = np.repeat([0.0, 1.0], 500)
    by_unit = bootstrap_interval(lambda rows: float(values[rows].mean()), ["a"] * 500 + ["b"] * 500, resamples=200)
    by_row = bootstrap_interval(lambda rows: float(values[rows].mean()), [str(i) for i in range(1000)], resamples=200)
    assert by_unit == (0.0, 1.0)
    assert 0.4 < by_row.low < 0.5 < by_row.high < 0.6


def test_bootstrap_redraws_where_the_metric_is_undefined_and_gives_up_loudly() -> None:
    units = [f"person {i // 2}" for i in range(8)]
    low, high = bootstrap_interval(lambda rows: detection.auc(FAKE[rows], SCORE[rows]), units, resamples=50)
    assert 0 <= low <= detection.auc(FAKE, SCORE) <= high <= 1
    with pytest.raises(UndefinedMetric, match="more units"):
        bootstrap_interval(lambda rows: detection.auc(FAKE[rows], SCORE[rows]), np.where(FAKE, "a", "b").tolist()[:4], resamples=20)


def test_bootstrap_does_not_depend_on_the_order_of_rows() -> None:
    units = np.array([f"person {i // 2}" for i in range(8)])
    order = np.random.default_rng(3).permutation(8)
    straight = bootstrap_interval(lambda rows: float(SCORE[rows].mean()), units.tolist(), resamples=50)
    shuffled = bootstrap_interval(lambda rows: float(SCORE[order][rows].mean()), units[order].tolist(), resamples=50)
    assert straight == pytest.approx(shuffled)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 5)), min_size=1, max_size=30))
def test_the_interval_of_a_mean_is_that_of_the_general_bootstrap(rows: list[tuple[float, int]]) -> None:
    values, units = np.array([value for value, _ in rows]), [str(unit) for _, unit in rows]
    general = bootstrap_interval(lambda drawn: float(values[drawn].mean()), units, resamples=100)
    assert ratio_interval(values, np.ones(len(values)), units, resamples=100) == pytest.approx(general, abs=1e-9)


def test_a_ratio_weighs_rows_by_what_stands_below() -> None:
    assert ratio_interval([1, 0], [1, 3], ["a", "a"]) == (0.25, 0.25)
    with pytest.raises(UndefinedMetric, match="more units"):
        ratio_interval([0.0], [0.0], ["a"])
    with pytest.raises(UndefinedMetric, match="no rows"):
        mean_interval([], [])


def test_the_mean_of_two_classes_is_resampled_class_by_class() -> None:
    right, first, units = [True] * 6 + [False] * 2, [True] * 4 + [False] * 4, [str(number) for number in range(8)]
    low, high = class_mean_interval(right, first, units)
    assert low < 0.75 < high <= 1
    assert class_mean_interval([True, False], [True, False], ["a", "a"]) == (0.5, 0.5)
    with pytest.raises(UndefinedMetric, match="one class"):
        class_mean_interval([True, True], [True, True], ["a", "b"])


@pytest.mark.parametrize("units", [1, 10, 300])
def test_where_nobody_errs_the_bound_is_that_of_as_many_trials_as_people(units: int) -> None:
    names = [str(number % units) for number in range(600)]
    low, high = error_interval([False] * 600, names)
    assert low == 0 and (1 - high) ** units == pytest.approx(0.05)
    assert error_interval([True] * 600, names) == (pytest.approx(1 - high), 1)
    some = [number < 60 for number in range(600)]
    assert error_interval(some, names) == mean_interval(np.array(some, float), names)
