"""Detection, calibration and type figures against values computed by hand; perfect is best, empty is worst, order is irrelevant."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk

from trainer.fifa_bench import detection
from trainer.fifa_bench.intervals import UndefinedMetric, bootstrap_interval

FAKE = np.array([False, False, False, False, True, True, True, True])
SCORE = np.array([0.1, 0.2, 0.3, 0.6, 0.4, 0.7, 0.8, 0.9])


@st.composite
def labelled_scores(draw: st.DrawFn) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """At least one face of each class, scores with ties."""
    fakes = draw(st.lists(st.integers(0, 20), min_size=1, max_size=30))
    reals = draw(st.lists(st.integers(0, 20), min_size=1, max_size=30))
    return np.array([True] * len(fakes) + [False] * len(reals)), np.array([*fakes, *reals]) / 20


RANKING: list[tuple[str, Callable[..., float], float, float]] = [
    ("auc", detection.auc, 15 / 16, 1.0),  # one of 16 pairs is ranked wrongly
    ("average_precision", detection.average_precision, (1 + 1 + 1 + 4 / 5) / 4, 1.0),
    ("eer", detection.eer, 0.25, 0.0),
    ("tpr_at_1_percent", lambda is_fake, score: detection.tpr_at_fpr(is_fake, score, 0.01), 0.75, 1.0),
    ("balanced_accuracy", lambda is_fake, score: detection.balanced_accuracy(is_fake, score, 0.5), 0.75, 1.0),
]


@pytest.mark.parametrize(("metric", "by_hand"), [pytest.param(metric, value, id=name) for name, metric, value, _ in RANKING])
def test_detection_metric_equals_the_hand_computed_value(metric: Callable[..., float], by_hand: float) -> None:
    assert metric(FAKE, SCORE) == pytest.approx(by_hand)


@pytest.mark.parametrize(("metric", "best"), [pytest.param(metric, value, id=name) for name, metric, _, value in RANKING])
@settings(max_examples=30, deadline=None)
@given(case=labelled_scores(), seed=st.integers(0, 2**31))
def test_detection_metric_is_best_for_perfect_scores_and_blind_to_order(metric: Callable[..., float], best: float, case: Any, seed: int) -> None:
    is_fake, score = case
    order = np.random.default_rng(seed).permutation(is_fake.size)
    assert metric(is_fake[order], score[order]) == pytest.approx(metric(is_fake, score), abs=1e-12)
    assert metric(is_fake, is_fake.astype(float)) == best


@pytest.mark.parametrize(
    ("metric", "chance"),
    [pytest.param(detection.auc, 0.5, id="auc"), pytest.param(detection.eer, 0.5, id="eer"), pytest.param(detection.average_precision, 0.5, id="ap")],
)
def test_scores_without_information_give_chance(metric: Callable[..., float], chance: float) -> None:
    assert metric(FAKE, np.full(8, 0.3)) == pytest.approx(chance)


def test_eer_is_interpolated_between_points_of_the_curve() -> None:
    # ROC points (0, 0), (0, 1/2), (1/3, 1/2), (1/3, 1), ...; the anti-diagonal meets the vertical piece at fpr 1/3
    is_fake = np.array([True, False, True, False, False])
    assert detection.eer(is_fake, np.array([0.9, 0.8, 0.7, 0.6, 0.5])) == pytest.approx(1 / 3)
    # a tie of one real and one fake makes a slanted piece (0, 1/2) to (1/2, 1): met at fpr 1/4, where no point is
    assert detection.eer(np.array([True, True, False, False]), np.array([0.9, 0.5, 0.5, 0.1])) == pytest.approx(0.25)


@pytest.mark.parametrize("metric", [pytest.param(m, id=n) for n, m, _, _ in RANKING] + [pytest.param(detection.fit_platt, id="fit_platt")])
def test_one_class_is_undefined_not_a_number(metric: Callable[..., Any]) -> None:
    with pytest.raises(UndefinedMetric, match="one class"):
        metric(np.array([True, True]), np.array([0.1, 0.9]))


@settings(max_examples=60, deadline=None)
@given(case=labelled_scores(), target=st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.0]))
def test_cuts_keep_their_promise_and_give_away_nothing(case: Any, target: float) -> None:
    is_fake, score = case
    cut = detection.fake_cut(is_fake, score, target)
    assert (score[~is_fake] >= cut).mean() <= target
    assert (score[is_fake] >= cut).mean() == detection.tpr_at_fpr(is_fake, score, target)
    assert (score[is_fake] < detection.real_cut(is_fake, score, target)).mean() <= target


def test_a_safe_cut_allows_for_other_people() -> None:
    """One person of twenty has all the false alarms, and among twenty others might be three of the kind."""
    units = [str(number // 20) for number in range(400)] + ["fake"] * 3
    is_fake = np.array([False] * 400 + [True] * 3)
    score = np.r_[np.linspace(0.0, 0.4, 380), np.linspace(0.5, 0.6, 20), 0.55, 0.58, 0.9]
    plain, safe = detection.fake_cut(is_fake, score, 0.02), detection.safe_fake_cut(is_fake, score, units, 0.02)
    assert (score[~is_fake] >= plain).sum() == 8 and (score[~is_fake] >= safe).sum() == 2
    alone = [str(number) for number in range(403)]
    spread = detection.safe_fake_cut(is_fake, score, alone, 0.02)
    assert plain < spread < safe  # the same scores of as many people


@settings(max_examples=30, deadline=None)
@given(case=labelled_scores(), target=st.sampled_from([0.0, 0.01, 0.1, 0.3]))
def test_a_safe_cut_keeps_the_promise_of_the_plain_one(case: Any, target: float) -> None:
    is_fake, score = case
    cut = detection.safe_fake_cut(is_fake, score, [str(number) for number in range(is_fake.size)], target, resamples=50)
    assert (score[~is_fake] >= cut).mean() <= target and cut >= detection.fake_cut(is_fake, score, target)


# --- calibration


@settings(max_examples=30, deadline=None)
@given(case=labelled_scores(), seed=st.integers(0, 2**31))
def test_a_face_of_weight_two_is_two_faces(case: Any, seed: int) -> None:
    is_fake, score = case
    weight = np.random.default_rng(seed).integers(1, 4, is_fake.size)
    rows = np.repeat(np.arange(is_fake.size), weight)
    probability = np.clip(score, 0, 1)
    repeated = detection.ece(is_fake[rows], probability[rows], weight_N=np.ones(rows.size))
    assert detection.ece(is_fake, probability, weight_N=weight.astype(float)) == pytest.approx(repeated, abs=1e-9)
    assert detection.nll(is_fake, probability, weight_N=weight) == pytest.approx(detection.nll(is_fake[rows], probability[rows]))


def test_weights_move_a_fit_to_what_they_favour() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, 20_000)
    shifted = np.arange(logit.size) % 2 == 0  # half of the faces come from a set whose scores run one too high
    is_fake = rng.random(logit.size) < 1 / (1 + np.exp(-(logit - shifted)))
    assert detection.fit_platt(is_fake, logit, shifted.astype(float)) == pytest.approx((1, -1), abs=0.06)
    assert detection.fit_platt(is_fake, logit, (~shifted).astype(float)) == pytest.approx((1, 0), abs=0.06)
    assert detection.fit_platt(is_fake, logit, np.full(logit.size, 3.0)) == pytest.approx(detection.fit_platt(is_fake, logit), abs=1e-4)


def test_the_balanced_calibration_error_does_not_ask_how_many_fakes_there_are() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, 4000)
    is_fake = rng.random(4000) < 1 / (1 + np.exp(-logit))
    probability = 1 / (1 + np.exp(-logit))
    kept = ~is_fake | (rng.random(4000) < 0.2)  # most fakes are lost: the same scores, another mix
    assert detection.ece(is_fake[kept], probability[kept]) > 0.1
    assert detection.balanced_ece(is_fake, probability) < 0.03 and detection.balanced_ece(is_fake[kept], probability[kept]) < 0.04


def test_calibration_error_equals_the_hand_computed_value() -> None:
    is_fake, probability = np.array([True, False, True, True]), np.array([0.6, 0.6, 0.9, 0.9])
    assert detection.ece(is_fake, probability, bins=2) == pytest.approx((2 * 0.1 + 2 * 0.1) / 4)
    assert detection.brier(is_fake, probability) == pytest.approx((0.16 + 0.36 + 0.01 + 0.01) / 4)


@pytest.mark.parametrize("metric", [pytest.param(detection.ece, id="ece"), pytest.param(detection.brier, id="brier")])
@settings(max_examples=30, deadline=None)
@given(case=labelled_scores(), seed=st.integers(0, 2**31))
def test_calibration_metric_is_0_when_certain_and_right_and_1_when_certain_and_wrong(metric: Callable[..., float], case: Any, seed: int) -> None:
    is_fake, score = case
    order = np.random.default_rng(seed).permutation(is_fake.size)
    assert metric(is_fake[order], score[order]) == pytest.approx(metric(is_fake, score), abs=1e-12)
    assert metric(is_fake, is_fake.astype(float)) == 0
    assert metric(np.ones(4, bool), np.zeros(4)) == 1


def test_fits_recover_the_map_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 3, 20_000)
    is_fake = rng.random(logit.size) < 1 / (1 + np.exp(-(0.5 * logit - 1)))
    platt = detection.fit_platt(is_fake, logit)
    assert platt == pytest.approx((0.5, -1), abs=0.05)
    assert detection.ece(is_fake, platt.probability(logit)) < detection.ece(is_fake, detection.LogitMap(1, 0).probability(logit))
    centred = rng.random(logit.size) < 1 / (1 + np.exp(-0.5 * logit))
    assert detection.fit_temperature(centred, logit) == pytest.approx((0.5, 0), abs=0.03)


def test_fit_stays_finite_and_keeps_the_ranking_on_separable_logits() -> None:
    fitted = detection.fit_platt(FAKE, np.where(FAKE, 3.0, -3.0))
    assert np.isfinite(fitted).all()
    assert fitted.scale > 0


# --- forgery type

SWAP, EXPRESSION, ATTRIBUTE, SYNTHESIS = np.eye(4, dtype=bool)


def test_a_swap_of_unnamed_method_is_right_when_the_sum_of_both_types_wins() -> None:
    allowed = np.stack([SWAP | EXPRESSION, ATTRIBUTE])
    split = np.array([[0.3, 0.3, 0.4, 0.0], [0.1, 0.1, 0.6, 0.2]])
    assert detection.type_macro_f1(split, allowed) == 1.0


def test_type_f1_equals_the_hand_computed_value() -> None:
    allowed = np.stack([SWAP, SWAP, ATTRIBUTE, SYNTHESIS])
    probs = np.stack([SWAP, ATTRIBUTE, ATTRIBUTE, SYNTHESIS]).astype(float)
    assert detection.type_macro_f1(probs, allowed) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


@settings(max_examples=40, deadline=None)
@given(types=st.lists(st.integers(0, 3), min_size=1, max_size=20), seed=st.integers(0, 2**31))
def test_type_f1_is_1_for_the_truth_0_for_another_type_and_blind_to_order(types: list[int], seed: int) -> None:
    allowed = np.eye(4, dtype=bool)[types]
    assert detection.type_macro_f1(allowed.astype(float), allowed) == 1.0
    only_swaps = np.tile(SWAP, (len(types), 1))
    assert detection.type_macro_f1(np.tile(SYNTHESIS, (len(types), 1)).astype(float), only_swaps) == 0.0
    rng = np.random.default_rng(seed)
    probs, order = rng.dirichlet(np.ones(4), len(types)), rng.permutation(len(types))
    assert detection.type_macro_f1(probs[order], allowed[order]) == pytest.approx(detection.type_macro_f1(probs, allowed))


def test_type_f1_refuses_real_faces() -> None:
    with pytest.raises(UndefinedMetric, match="leave real faces out"):
        detection.type_macro_f1(np.full((1, 4), 0.25), np.zeros((1, 4), bool))


# --- calibration curve, likelihood, intervals


def test_the_reliability_curve_holds_every_face_once_and_explains_the_calibration_error() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random(500).round(2)
    is_fake = rng.random(500) < probability**2
    curve = detection.reliability(is_fake, probability)
    assert curve.mass.sum() == 500
    assert (curve.predicted * curve.mass).sum() == pytest.approx(probability.sum()) and (curve.observed * curve.mass).sum() == is_fake.sum()
    assert (np.abs(curve.predicted - curve.observed) * curve.mass).sum() / 500 == pytest.approx(detection.ece(is_fake, probability))


def test_the_likelihood_equals_the_hand_computed_value_and_a_certain_mistake_is_finite() -> None:
    assert detection.nll(np.array([True, False]), np.array([0.8, 0.4])) == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)
    assert detection.nll(np.array([True]), np.array([0.0])) == pytest.approx(-np.log(detection.NLL_CLIP))
    assert detection.nll(FAKE, FAKE.astype(float)) == pytest.approx(0, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(case=labelled_scores(), seed=st.integers(0, 2**31))
def test_resampled_curves_give_what_scikit_learn_gives_with_weights(case: Any, seed: int) -> None:
    is_fake, score = case
    weight = np.random.default_rng(seed).integers(0, 4, is_fake.size)
    weight[[np.flatnonzero(is_fake)[0], np.flatnonzero(~is_fake)[0]]] = 1  # both classes stay
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)
    got = detection._weighted_ranking(is_fake[order], last, weight[order][None], (0.01, 0.3))
    assert got["auc"][0] == pytest.approx(sk.roc_auc_score(is_fake, score, sample_weight=weight))
    assert got["ap"][0] == pytest.approx(sk.average_precision_score(is_fake, score, sample_weight=weight))
    repeated = np.repeat(np.arange(is_fake.size), weight)
    assert got["eer"][0] == pytest.approx(detection.eer(is_fake[repeated], score[repeated]))
    for target in (0.01, 0.3):
        assert got[f"tpr@{target:g}"][0] == pytest.approx(detection.tpr_at_fpr(is_fake[repeated], score[repeated], target))


def test_ranking_intervals_are_those_of_the_general_bootstrap() -> None:
    rng = np.random.default_rng(1)
    is_fake = np.arange(120) % 2 == 1
    score, units = rng.normal(is_fake * 1.0, 1.0), [str(i // 4) for i in range(120)]
    quick = detection.ranking_intervals(is_fake, score, units, resamples=100)["auc"]
    assert quick == pytest.approx(bootstrap_interval(lambda rows: detection.auc(is_fake[rows], score[rows]), units, resamples=100))


def test_a_resampled_auc_is_that_of_the_rows_drawn() -> None:
    rng = np.random.default_rng(2)
    is_fake, units = np.arange(40) % 2 == 1, np.arange(40) // 5
    score = rng.normal(is_fake * 1.0, 1.0).round(1)
    counts = rng.integers(0, 3, (6, 8))
    rows = [np.flatnonzero(np.repeat(count, 5)).repeat(np.repeat(count, 5)[np.repeat(count, 5) > 0]) for count in counts]
    got = detection.resampled_auc(is_fake, score, units, counts)
    assert got == pytest.approx([detection.auc(is_fake[drawn], score[drawn]) for drawn in rows])
    assert np.isnan(detection.resampled_auc(np.ones(40, bool), score, units, counts)).all()
    assert detection.usable_percentiles(np.array([0.5, np.nan, np.nan])) is None


def test_ranking_intervals_refuse_units_that_mostly_hold_one_class() -> None:
    with pytest.raises(UndefinedMetric, match="one class"):
        detection.ranking_intervals(np.array([True, False]), np.array([0.9, 0.1]), ["a", "b"], ())


def test_a_fake_without_an_answer_has_no_type() -> None:
    answers = detection.type_answers(np.array([[0.0] * 4, SWAP, SYNTHESIS]), np.stack([SWAP | EXPRESSION, SWAP, ATTRIBUTE]))
    assert answers.classes == ((0, 1), (2,))
    assert answers.true_N.tolist() == [0, 0, 1] and answers.predicted_N.tolist() == [-1, 0, -1]
