"""What may be said of a figure: that it has no value here, or how far it would move with other people.

Frames of one identity are not independent, so intervals resample whole units (identities, persons, prompts, grids), never rows.

Shapes: N rows, R resamples, U units.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 1000
LEVEL = 0.95


class UndefinedMetric(ValueError):
    """The metric has no value on this input; the message names what is missing."""


class Interval(NamedTuple):
    """Bounds of a percentile interval."""

    low: float
    high: float


def bootstrap_interval(
    metric: Callable[[NDArray[np.intp]], float], unit_N: Sequence[str], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Percentile interval of `metric(rows)` when whole units (identities) are drawn with replacement, all rows of a unit together.

    Resamples on which the metric is undefined are drawn again, at most `resamples` times in all. Raises UndefinedMetric beyond that.
    """
    names, unit_index_N = np.unique(np.asarray(unit_N), return_inverse=True)
    if names.size == 0:
        raise UndefinedMetric("no rows to resample")
    rows_of_unit = np.split(np.argsort(unit_index_N, kind="stable"), np.cumsum(np.bincount(unit_index_N))[:-1])
    rng = np.random.default_rng(seed)
    values: list[float] = []
    for _ in range(2 * resamples):
        drawn = rng.integers(names.size, size=names.size)
        try:
            values.append(metric(np.concatenate([rows_of_unit[unit] for unit in drawn])))
        except UndefinedMetric:
            continue
        if len(values) == resamples:
            return percentiles(np.array(values), level)
    raise UndefinedMetric(
        f"the metric is undefined on {2 * resamples - len(values)} of {2 * resamples} resamples of {names.size} units; take more units"
    )


def drawn_units(unit_N: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """The same draws as `bootstrap_interval`, as counts: each row's unit (N,), and how often each unit is drawn (R, U).

    Raises UndefinedMetric without rows.
    """
    names, unit_index_N = np.unique(np.asarray(unit_N), return_inverse=True)
    if names.size == 0:
        raise UndefinedMetric("no rows to resample")
    drawn_RU = np.random.default_rng(seed).integers(names.size, size=(resamples, names.size))
    offset_R1 = np.arange(resamples)[:, None] * names.size
    return unit_index_N, np.bincount((drawn_RU + offset_R1).ravel(), minlength=resamples * names.size).reshape(resamples, names.size)


def ratio_interval(
    above_N: Sequence[float] | NDArray[np.float64],
    below_N: Sequence[float] | NDArray[np.float64],
    unit_N: Sequence[str],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Interval of sum(above) / sum(below) over rows: a mean where `below` is 1. Resamples with a zero below are left out; raises if half are."""
    unit_index_N, count_RU = drawn_units(unit_N, resamples=resamples, seed=seed)
    above_U, below_U = (np.bincount(unit_index_N, weights=np.asarray(values, float)) for values in (above_N, below_N))
    above_R, below_R = count_RU @ above_U, count_RU @ below_U
    if (below_R > 0).mean() < 0.5:
        raise UndefinedMetric(f"the ratio is undefined on {int((below_R <= 0).sum())} of {resamples} resamples; take more units")
    return percentiles(above_R[below_R > 0] / below_R[below_R > 0], level)


def mean_interval(value_N: Sequence[float] | NDArray[np.float64], unit_N: Sequence[str]) -> Interval:
    """Interval of the mean over rows."""
    return ratio_interval(value_N, np.ones(len(value_N)), unit_N)


def class_mean_interval(value_N: Sequence[float], first_N: Sequence[bool], unit_N: Sequence[str]) -> Interval:
    """Interval of the mean of two classes' means (balanced accuracy). Resamples without one of them are left out; raises if half are."""
    unit_index_N, count_RU = drawn_units(unit_N)
    values, first = np.asarray(value_N, float), np.asarray(first_N, bool)
    means = []
    for chosen in (first, ~first):
        size_R = count_RU @ np.bincount(unit_index_N, weights=chosen)
        total_R = count_RU @ np.bincount(unit_index_N, weights=values * chosen)
        means.append(np.divide(total_R, size_R, out=np.full(len(size_R), np.nan), where=size_R > 0))
    mean_R = (means[0] + means[1]) / 2
    usable_R = ~np.isnan(mean_R)
    if usable_R.mean() < 0.5:
        raise UndefinedMetric(f"{int((~usable_R).sum())} of {len(usable_R)} resamples hold one class only; take more units")
    return percentiles(mean_R[usable_R])


def error_interval(is_error_N: Sequence[bool], unit_N: Sequence[str]) -> Interval:
    """Interval of the share of errors. Where nobody or everybody errs, resampling has no width: the far bound is then that of as many independent
    trials as there are units, (1 - level) ** (1 / units)."""
    share, units = float(np.mean(is_error_N)), len(set(unit_N))
    if 0 < share < 1:
        return mean_interval(np.asarray(is_error_N, float), unit_N)
    reach = (1 - LEVEL) ** (1 / units)
    return Interval(0.0, 1 - reach) if share == 0 else Interval(reach, 1.0)


def clustered_wilson(
    above_N: Sequence[float] | NDArray[np.float64], unit_N: Sequence[str], weight_N: NDArray[np.float64] | None = None, *, level: float = LEVEL
) -> Interval:
    """Wilson's interval of a weighted share, with as many independent trials as the spread between units leaves of the rows.

    For few units and rare events, where resampling is too narrow (Franco et al., J. Surv. Stat. Methodol. 7, 2019; the number of trials by Korn and
    Graubard, Surv. Methodol. 24, 1998). Where nobody or everybody counts, a unit is one trial. Raises UndefinedMetric without rows.
    """
    hit_N = np.asarray(above_N, np.float64)
    if hit_N.size == 0:
        raise UndefinedMetric("no rows; a share needs at least one")
    weights_N = np.ones(hit_N.size) if weight_N is None else np.asarray(weight_N, np.float64)
    names, unit_index_N = np.unique(np.asarray(unit_N), return_inverse=True)
    total, units = float(weights_N.sum()), int(names.size)
    share = float((weights_N * hit_N).sum() / total)
    most = total**2 / float((weights_N**2).sum())
    if 0 < share < 1 and units > 1:
        off_U = np.bincount(unit_index_N, weights=weights_N * (hit_N - share))
        variance = units / (units - 1) * float((off_U**2).sum()) / total**2
        narrowed = (stats.norm.ppf((1 + level) / 2) / stats.t.ppf((1 + level) / 2, units - 1)) ** 2
        trials = min(share * (1 - share) / variance if variance > 0 else most, most) * narrowed
    else:
        trials = min(float(units), most)
    half = stats.norm.ppf((1 + level) / 2) ** 2 / trials
    middle = (share + half / 2) / (1 + half)
    reach = float(np.sqrt(half * (share * (1 - share) + half / 4))) / (1 + half)
    return Interval(max(0.0, middle - reach), min(1.0, middle + reach))


def percentiles(value_R: NDArray[np.float64], level: float = LEVEL) -> Interval:
    """The middle `level` of resampled values."""
    low, high = np.quantile(value_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
