"""Real or fake, how sure, and which kind of forgery: ranking, calibration and type figures as pure functions of arrays.

Scores run from 0 (real) to 1 (fake), labels are 1 for fake. Point values come from scikit-learn; the resampled curves behind intervals are ours and
tested against it. A metric without a value on its input raises `UndefinedMetric`.

Shapes: N faces, F forgery types, R resamples, T distinct thresholds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from sklearn import metrics as sk

from trainer.fifa_bench.intervals import RESAMPLES, Interval, UndefinedMetric, drawn_units, percentiles

Scores = NDArray[np.float64]
Labels = NDArray[np.bool_]

ECE_BINS = 15
NLL_CLIP = 1e-6
"""Probabilities are kept this far from 0 and 1 in the log-likelihood: one certain mistake costs 13.8 nats, not infinity."""
MIN_USABLE = 0.6
"""Share of resamples that must hold both classes: two units of one class each leave a half, and no interval."""
CHUNK = 100
"""Resamples held at once: (100, 5000) doubles are 4 MB."""


def _both_classes(is_fake_N: Labels) -> None:
    if is_fake_N.all() or not is_fake_N.any():
        raise UndefinedMetric(f"{is_fake_N.size} faces of one class only; detection metrics need real and fake faces")


# --- Ranking ----------------------------------------------------------------------------------------------------------------------------------


def auc(is_fake_N: Labels, score_N: Scores) -> float:
    """Area under the ROC curve; ties count half."""
    _both_classes(is_fake_N)
    return float(sk.roc_auc_score(is_fake_N, score_N))


def average_precision(is_fake_N: Labels, score_N: Scores) -> float:
    """Area under the precision-recall curve as a sum of steps, fake being the positive class."""
    _both_classes(is_fake_N)
    return float(sk.average_precision_score(is_fake_N, score_N))


def eer(is_fake_N: Labels, score_N: Scores) -> float:
    """Equal error rate: where the ROC curve, linear between its points, meets false positives = misses."""
    fpr_T, tpr_T = roc(is_fake_N, score_N)
    return float(np.interp(0.0, fpr_T + tpr_T - 1, fpr_T))  # strictly increasing: each threshold adds at least one face


def tpr_at_fpr(is_fake_N: Labels, score_N: Scores, fpr_target: float) -> float:
    """Share of fakes found by the best cut that flags at most `fpr_target` of the reals."""
    fpr_T, tpr_T = roc(is_fake_N, score_N)
    return float(tpr_T[fpr_T <= fpr_target].max())


def roc(is_fake_N: Labels, score_N: Scores) -> tuple[Scores, Scores]:
    """False and true positive rate at every distinct threshold, (T,) each, from (0, 0) to (1, 1)."""
    _both_classes(is_fake_N)
    fpr_T, tpr_T, _ = sk.roc_curve(is_fake_N, score_N, drop_intermediate=False)
    return fpr_T, tpr_T


def balanced_accuracy(is_fake_N: Labels, score_N: Scores, fake_at: float) -> float:
    """Mean of the two classes' accuracies when a face is called fake at or above `fake_at`."""
    _both_classes(is_fake_N)
    return float(sk.balanced_accuracy_score(is_fake_N, score_N >= fake_at))


def fake_cut(is_fake_N: Labels, score_N: Scores, fpr_target: float) -> float:
    """Smallest cut with at most `fpr_target` of the reals at or above it, in the middle of the gap to the next higher score."""
    _both_classes(is_fake_N)
    real_desc = np.sort(score_N[~is_fake_N])[::-1]
    num_allowed = int(np.floor(fpr_target * real_desc.size + 1e-9))
    if num_allowed >= real_desc.size:
        return float(score_N.min())
    return _just_above(score_N, real_desc[num_allowed])


def safe_fake_cut(
    is_fake_N: Labels, score_N: Scores, unit_N: Sequence[str], fpr_target: float, *, level: float = 0.95, resamples: int = RESAMPLES
) -> float:
    """As `fake_cut`, but other people would be flagged at most as often: `level` of the resamples of whole units keep the target.

    Frames of one person are flagged together, so that a cut which just meets the target on these people misses it on the next.
    """
    _both_classes(is_fake_N)
    real_M = score_N[~is_fake_N]
    real_desc = np.sort(real_M)[::-1]
    unit_M, count_RU = drawn_units([unit for unit, fake in zip(unit_N, is_fake_N, strict=True) if not fake], resamples=resamples)
    weight_RU = count_RU.astype(np.float64)
    drawn_R = weight_RU @ np.bincount(unit_M)
    for num_allowed in range(min(int(np.floor(fpr_target * real_desc.size + 1e-9)), real_desc.size - 1), 0, -1):
        cut = _just_above(score_N, real_desc[num_allowed])
        flagged_R = weight_RU @ np.bincount(unit_M, weights=real_M >= cut, minlength=weight_RU.shape[1]) / drawn_R
        if np.quantile(flagged_R, level) <= fpr_target:
            return cut
    return _just_above(score_N, real_desc[0])


def real_cut(is_fake_N: Labels, score_N: Scores, miss_target: float) -> float:
    """Largest cut with at most `miss_target` of the fakes below it: faces below are called real."""
    _both_classes(is_fake_N)
    fake_asc = np.sort(score_N[is_fake_N])
    num_allowed = int(np.floor(miss_target * fake_asc.size + 1e-9))
    return float(fake_asc[min(num_allowed, fake_asc.size - 1)])


def _just_above(score_N: Scores, value: float) -> float:
    higher = score_N[score_N > value]
    return float((value + higher.min()) / 2) if higher.size else float(np.nextafter(value, np.inf))


def ranking_intervals(
    is_fake_N: Labels, score_N: Scores, unit_N: Sequence[str], fpr_targets: Sequence[float] = (0.01,), *, resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """Intervals over units of 'auc', 'ap', 'eer' and 'tpr@<target>', all from the same resamples.

    One sort serves every resample: a resample only weighs the faces. Resamples of one class are left out. Raises UndefinedMetric where fewer than
    `MIN_USABLE` are left.
    """
    _both_classes(is_fake_N)
    order_N = np.argsort(-score_N, kind="stable")
    fake_N, last_N = is_fake_N[order_N], np.append(np.diff(score_N[order_N]) != 0, True)
    unit_index_N, count_RU = drawn_units(unit_N, resamples=resamples)
    figures: dict[str, list[NDArray[np.float64]]] = {}
    for start in range(0, len(count_RU), CHUNK):
        weight_RN = count_RU[start : start + CHUNK][:, unit_index_N[order_N]]
        for name, value_R in _weighted_ranking(fake_N, last_N, weight_RN, fpr_targets).items():
            figures.setdefault(name, []).append(value_R)
    resampled = {name: np.concatenate(values) for name, values in figures.items()}
    if len(resampled["auc"]) < MIN_USABLE * len(count_RU):
        raise UndefinedMetric(f"{len(count_RU) - len(resampled['auc'])} of {len(count_RU)} resamples hold one class only; take more units")
    return {name: percentiles(value_R) for name, value_R in resampled.items()}


def _weighted_ranking(fake_N: Labels, last_N: Labels, weight_RN: NDArray[np.int64], fpr_targets: Sequence[float]) -> dict[str, NDArray[np.float64]]:
    """Ranking figures of weighted faces in falling order of score; `last_N` marks the last face of each tie."""
    found_RT, flagged_RT = (np.cumsum(weight_RN * chosen_N, axis=1)[:, last_N] for chosen_N in (fake_N, ~fake_N))
    usable_R = (found_RT[:, -1] > 0) & (flagged_RT[:, -1] > 0)
    found_RT, flagged_RT = found_RT[usable_R], flagged_RT[usable_R]
    start_R1 = np.zeros((len(found_RT), 1))
    tpr_RT, fpr_RT = (np.hstack([start_R1, count_RT / count_RT[:, -1:]]) for count_RT in (found_RT, flagged_RT))
    precision_RT = found_RT / np.maximum(found_RT + flagged_RT, 1)
    figures = {"auc": np.trapezoid(tpr_RT, fpr_RT, axis=1), "ap": (np.diff(tpr_RT, axis=1) * precision_RT).sum(1)}
    excess_RT = fpr_RT + tpr_RT - 1
    after_R1 = (excess_RT >= 0).argmax(1)[:, None]
    (low, high), (fpr_low, fpr_high) = (
        (np.take_along_axis(values, after_R1 - 1, 1)[:, 0], np.take_along_axis(values, after_R1, 1)[:, 0]) for values in (excess_RT, fpr_RT)
    )
    figures["eer"] = fpr_low + (fpr_high - fpr_low) * -low / (high - low)
    for target in fpr_targets:
        figures[f"tpr@{target:g}"] = np.where(fpr_RT <= target, tpr_RT, 0).max(1)
    return figures


def resampled_auc(is_fake_N: Labels, score_N: Scores, unit_N: NDArray[np.intp], count_RU: NDArray[np.int64]) -> NDArray[np.float64]:
    """AUC of every resample of whole units (R,), NaN where one holds a single class; units and counts are those of `drawn_units`.

    Differences of two scores over the same draws are paired. Pairs of units are counted once, so that a resample costs no sort.
    """
    fakes_U, reals_U = (np.bincount(unit_N, weights=chosen_N, minlength=count_RU.shape[1]) for chosen_N in (is_fake_N, ~is_fake_N))
    pairs_R = (count_RU @ fakes_U) * (count_RU @ reals_U)
    won_R = ((count_RU @ _won_UU(is_fake_N, score_N, unit_N, count_RU.shape[1])) * count_RU).sum(1)
    return np.divide(won_R, pairs_R, out=np.full(len(pairs_R), np.nan), where=pairs_R > 0)


def _won_UU(is_fake_N: Labels, score_N: Scores, unit_N: NDArray[np.intp], units: int) -> NDArray[np.float64]:
    """How many pairs of a fake of one unit (row) and a real of another (column) the fake wins, a tie being half a win: their share is the AUC."""
    won_UU = np.zeros((units, units))
    real_score_M, real_unit_M = score_N[~is_fake_N], unit_N[~is_fake_N]
    for score, unit in zip(score_N[is_fake_N], unit_N[is_fake_N], strict=True):
        wins_M = (real_score_M < score) + 0.5 * (real_score_M == score)
        won_UU[unit] += np.bincount(real_unit_M, weights=wins_M, minlength=units)
    return won_UU


def usable_percentiles(value_R: NDArray[np.float64]) -> Interval | None:
    """The interval of resampled values that may be NaN; None where fewer than half have a value (one class, or too few units)."""
    usable_R = ~np.isnan(value_R)
    return percentiles(value_R[usable_R]) if usable_R.mean() >= 0.5 else None


# --- Calibration ------------------------------------------------------------------------------------------------------------------------------


class Reliability(NamedTuple):
    """One point a bin that is not empty."""

    predicted: Scores
    """Mean probability of the bin."""
    observed: Scores
    """Share of fakes in the bin."""
    mass: Scores
    """Faces, or their weights."""


def reliability(is_fake_N: Labels | Scores, probability_N: Scores, bins: int = ECE_BINS, *, weight_N: Scores | None = None) -> Reliability:
    """Probability against frequency in equal-mass bins; equal probabilities share a bin. Faces of another weight count and fill bins by it.

    Where the truth is only estimated, `is_fake_N` holds unbiased estimates of it.
    """
    if is_fake_N.size == 0:
        raise UndefinedMetric("no faces; calibration error needs at least one")
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    if weight_N is None:
        weight_N, edges = np.ones(is_fake_N.size), np.quantile(probability_N, inner)
    else:
        order_N = np.argsort(probability_N, kind="stable")
        reached_N = np.cumsum(weight_N[order_N]) / weight_N.sum()
        edges = probability_N[order_N][np.minimum(np.searchsorted(reached_N, inner, side="right"), is_fake_N.size - 1)]
    bin_N = np.searchsorted(edges, probability_N, side="right")
    mass, predicted, observed = (
        np.asarray(np.bincount(bin_N, weights=weights_N, minlength=bins), np.float64)
        for weights_N in (weight_N, weight_N * probability_N, weight_N * is_fake_N)
    )
    filled = mass > 0
    return Reliability(predicted[filled] / mass[filled], observed[filled] / mass[filled], mass[filled])


def ece(is_fake_N: Labels | Scores, probability_N: Scores, bins: int = ECE_BINS, *, weight_N: Scores | None = None) -> float:
    """Expected calibration error over equal-mass bins; equal probabilities share a bin."""
    curve = reliability(is_fake_N, probability_N, bins, weight_N=weight_N)
    return float((np.abs(curve.predicted - curve.observed) * curve.mass).sum() / curve.mass.sum())


def balanced_ece(is_fake_N: Labels, probability_N: Scores) -> float:
    """Calibration error if real and fake were as frequent: comparable between groups of different mix."""
    _both_classes(is_fake_N)
    return ece(is_fake_N, probability_N, weight_N=np.where(is_fake_N, 0.5 / is_fake_N.sum(), 0.5 / (~is_fake_N).sum()))


def brier(is_fake_N: Labels, probability_N: Scores) -> float:
    """Mean squared difference between probability and outcome."""
    if is_fake_N.size == 0:
        raise UndefinedMetric("no faces; the Brier score needs at least one")
    return float(np.mean((probability_N - is_fake_N) ** 2))


def nll(is_fake_N: Labels, probability_N: Scores, *, weight_N: Scores | None = None) -> float:
    """Mean negative log-likelihood in nats, probabilities clipped by `NLL_CLIP`."""
    if is_fake_N.size == 0:
        raise UndefinedMetric("no faces; the log-likelihood needs at least one")
    return float(sk.log_loss(is_fake_N, np.clip(probability_N, NLL_CLIP, 1 - NLL_CLIP), labels=[False, True], sample_weight=weight_N))


class LogitMap(NamedTuple):
    """probability = sigmoid(logit * scale + bias)."""

    scale: float
    bias: float

    def probability(self, logit_N: Scores) -> Scores:
        """Calibrated probabilities in [0, 1]."""
        return np.asarray(expit(np.asarray(logit_N, np.float64) * self.scale + self.bias))


def fit_platt(is_fake_N: Labels, logit_N: Scores, weight_N: Scores | None = None) -> LogitMap:
    """Scale and bias of least cross entropy against Platt's smoothed targets, which keep separable data finite (Platt 1999, Sec. 2.2)."""
    return _fit(is_fake_N, logit_N, weight_N, with_bias=True)


def fit_temperature(is_fake_N: Labels, logit_N: Scores, weight_N: Scores | None = None) -> LogitMap:
    """Scale alone (temperature = 1 / scale), bias 0; same targets as `fit_platt`."""
    return _fit(is_fake_N, logit_N, weight_N, with_bias=False)


def _fit(is_fake_N: Labels, logit_N: Scores, weight_N: Scores | None, *, with_bias: bool) -> LogitMap:
    _both_classes(is_fake_N)
    weight_N = np.ones(is_fake_N.size) if weight_N is None else weight_N * (is_fake_N.size / weight_N.sum())
    num_fake = int(is_fake_N.sum())
    num_real = is_fake_N.size - num_fake
    target_N = np.where(is_fake_N, (num_fake + 1) / (num_fake + 2), 1 / (num_real + 2))
    logit_N = np.asarray(logit_N, np.float64)

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scale, bias = float(np.exp(parameters[0])), float(parameters[1]) if with_bias else 0.0
        x_N = logit_N * scale + bias
        residual_N = weight_N * (expit(x_N) - target_N)
        gradient = [float(np.mean(residual_N * logit_N)) * scale, float(residual_N.mean())]
        return float(np.mean(weight_N * (np.logaddexp(0, x_N) - target_N * x_N))), np.array(gradient[: parameters.size])

    found = minimize(loss, np.zeros(2 if with_bias else 1), jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-10})
    return LogitMap(float(np.exp(found.x[0])), float(found.x[1]) if with_bias else 0.0)


# --- Forgery type -----------------------------------------------------------------------------------------------------------------------------


class TypeAnswers(NamedTuple):
    """Fakes by class of forgery type, where types that some label allows together are one class."""

    classes: tuple[tuple[int, ...], ...]
    """The types of each class some label names."""
    true_N: NDArray[np.intp]
    """Index into `classes`."""
    predicted_N: NDArray[np.intp]
    """Index into `classes`; -1 for a class no label names, and where nothing was predicted."""


def type_answers(type_prob_NF: NDArray[np.float64], allowed_NF: NDArray[np.bool_]) -> TypeAnswers:
    """Merge types, sum their probabilities and take the best class; a row of zeros predicts nothing.

    A label may allow several types: a swap of unnamed method allows two. Raises UndefinedMetric where a row allows none (a real face).
    """
    if allowed_NF.size == 0 or not allowed_NF.any(1).all():
        raise UndefinedMetric("every row must be a fake with at least one allowed type; leave real faces out")
    class_of_type = np.arange(allowed_NF.shape[1])
    for allowed_F in np.unique(allowed_NF, axis=0).astype(bool):
        together = np.isin(class_of_type, class_of_type[allowed_F])
        class_of_type[together] = class_of_type[together].min()
    class_prob_NF = np.stack([type_prob_NF[:, class_of_type == c].sum(1) for c in range(class_of_type.size)], 1)
    named, true_N = np.unique(class_of_type[allowed_NF.argmax(1)], return_inverse=True)
    best_N = class_prob_NF.argmax(1)
    position = {int(c): index for index, c in enumerate(named)}
    silent_N = class_prob_NF.max(1) <= 0
    predicted_N = np.array([-1 if silent else position.get(int(best), -1) for best, silent in zip(best_N, silent_N, strict=True)], np.intp)
    return TypeAnswers(tuple(tuple(np.flatnonzero(class_of_type == c).tolist()) for c in named), true_N, predicted_N)


def type_macro_f1(type_prob_NF: NDArray[np.float64], allowed_NF: NDArray[np.bool_]) -> float:
    """Macro F1 of the forgery type over fakes, where a label may allow several types (a swap of unnamed method allows two).

    Types that some label allows together are one class, predicted with the sum of their probabilities; classes that no label names are left out.
    """
    return float(np.mean(type_f1s(type_answers(type_prob_NF, allowed_NF))))


def type_f1s(answers: TypeAnswers) -> NDArray[np.float64]:
    """F1 of each class."""
    labels = np.arange(len(answers.classes))
    return np.asarray(sk.f1_score(answers.true_N, answers.predicted_N, labels=labels, average=None, zero_division=0.0), np.float64)
