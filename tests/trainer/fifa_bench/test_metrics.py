"""Metrics against values computed by hand, and one property per metric: perfect is best, empty is worst, order is irrelevant."""

from collections.abc import Callable
from shutil import which
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from trainer.fifa_bench import metrics

needs_java = pytest.mark.skipif(which("java") is None, reason="METEOR and the PTB tokenizer need Java")

FAKE = np.array([False, False, False, False, True, True, True, True])
SCORE = np.array([0.1, 0.2, 0.3, 0.6, 0.4, 0.7, 0.8, 0.9])


@st.composite
def labelled_scores(draw: st.DrawFn) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """At least one face of each class, scores with ties."""
    fakes = draw(st.lists(st.integers(0, 20), min_size=1, max_size=30))
    reals = draw(st.lists(st.integers(0, 20), min_size=1, max_size=30))
    return np.array([True] * len(fakes) + [False] * len(reals)), np.array([*fakes, *reals]) / 20


def square(x: int, y: int, side: int, size: int = 8) -> NDArray[np.bool_]:
    mask_HW = np.zeros((size, size), bool)
    mask_HW[y : y + side, x : x + side] = True
    return mask_HW


masks = st.builds(square, st.integers(0, 7), st.integers(0, 7), st.integers(0, 6))
solid_masks = st.builds(square, st.integers(0, 4), st.integers(0, 4), st.integers(1, 4))
mask_sets = st.lists(st.lists(solid_masks, min_size=1, max_size=4), min_size=1, max_size=5)

RANKING: list[tuple[str, Callable[..., float], float, float]] = [
    ("auc", metrics.auc, 15 / 16, 1.0),  # one of 16 pairs is ranked wrongly
    ("average_precision", metrics.average_precision, (1 + 1 + 1 + 4 / 5) / 4, 1.0),
    ("eer", metrics.eer, 0.25, 0.0),
    ("tpr_at_1_percent", lambda is_fake, score: metrics.tpr_at_fpr(is_fake, score, 0.01), 0.75, 1.0),
    ("balanced_accuracy", lambda is_fake, score: metrics.balanced_accuracy(is_fake, score, 0.5), 0.75, 1.0),
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
    [pytest.param(metrics.auc, 0.5, id="auc"), pytest.param(metrics.eer, 0.5, id="eer"), pytest.param(metrics.average_precision, 0.5, id="ap")],
)
def test_scores_without_information_give_chance(metric: Callable[..., float], chance: float) -> None:
    assert metric(FAKE, np.full(8, 0.3)) == pytest.approx(chance)


def test_eer_is_interpolated_between_points_of_the_curve() -> None:
    # ROC points (0, 0), (0, 1/2), (1/3, 1/2), (1/3, 1), ...; the anti-diagonal meets the vertical piece at fpr 1/3
    is_fake = np.array([True, False, True, False, False])
    assert metrics.eer(is_fake, np.array([0.9, 0.8, 0.7, 0.6, 0.5])) == pytest.approx(1 / 3)
    # a tie of one real and one fake makes a slanted piece (0, 1/2) to (1/2, 1): met at fpr 1/4, where no point is
    assert metrics.eer(np.array([True, True, False, False]), np.array([0.9, 0.5, 0.5, 0.1])) == pytest.approx(0.25)


@pytest.mark.parametrize("metric", [pytest.param(m, id=n) for n, m, _, _ in RANKING] + [pytest.param(metrics.fit_platt, id="fit_platt")])
def test_one_class_is_undefined_not_a_number(metric: Callable[..., Any]) -> None:
    with pytest.raises(metrics.UndefinedMetric, match="one class"):
        metric(np.array([True, True]), np.array([0.1, 0.9]))


@settings(max_examples=60, deadline=None)
@given(case=labelled_scores(), target=st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.0]))
def test_cuts_keep_their_promise_and_give_away_nothing(case: Any, target: float) -> None:
    is_fake, score = case
    cut = metrics.fake_cut(is_fake, score, target)
    assert (score[~is_fake] >= cut).mean() <= target
    assert (score[is_fake] >= cut).mean() == metrics.tpr_at_fpr(is_fake, score, target)
    assert (score[is_fake] < metrics.real_cut(is_fake, score, target)).mean() <= target


# --- calibration


def test_calibration_error_equals_the_hand_computed_value() -> None:
    is_fake, probability = np.array([True, False, True, True]), np.array([0.6, 0.6, 0.9, 0.9])
    assert metrics.ece(is_fake, probability, bins=2) == pytest.approx((2 * 0.1 + 2 * 0.1) / 4)
    assert metrics.brier(is_fake, probability) == pytest.approx((0.16 + 0.36 + 0.01 + 0.01) / 4)


@pytest.mark.parametrize("metric", [pytest.param(metrics.ece, id="ece"), pytest.param(metrics.brier, id="brier")])
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
    platt = metrics.fit_platt(is_fake, logit)
    assert platt == pytest.approx((0.5, -1), abs=0.05)
    assert metrics.ece(is_fake, platt.probability(logit)) < metrics.ece(is_fake, metrics.LogitMap(1, 0).probability(logit))
    centred = rng.random(logit.size) < 1 / (1 + np.exp(-0.5 * logit))
    assert metrics.fit_temperature(centred, logit) == pytest.approx((0.5, 0), abs=0.03)


def test_fit_stays_finite_and_keeps_the_ranking_on_separable_logits() -> None:
    fitted = metrics.fit_platt(FAKE, np.where(FAKE, 3.0, -3.0))
    assert np.isfinite(fitted).all()
    assert fitted.scale > 0


# --- intervals


def test_bootstrap_draws_identities_not_rows() -> None:
    values = np.repeat([0.0, 1.0], 500)
    by_unit = metrics.bootstrap_interval(lambda rows: float(values[rows].mean()), ["a"] * 500 + ["b"] * 500, resamples=200)
    by_row = metrics.bootstrap_interval(lambda rows: float(values[rows].mean()), [str(i) for i in range(1000)], resamples=200)
    assert by_unit == (0.0, 1.0)
    assert 0.4 < by_row.low < 0.5 < by_row.high < 0.6


def test_bootstrap_redraws_where_the_metric_is_undefined_and_gives_up_loudly() -> None:
    units = [f"person {i // 2}" for i in range(8)]
    low, high = metrics.bootstrap_interval(lambda rows: metrics.auc(FAKE[rows], SCORE[rows]), units, resamples=50)
    assert 0 <= low <= metrics.auc(FAKE, SCORE) <= high <= 1
    with pytest.raises(metrics.UndefinedMetric, match="more units"):
        metrics.bootstrap_interval(lambda rows: metrics.auc(FAKE[rows], SCORE[rows]), np.where(FAKE, "a", "b").tolist()[:4], resamples=20)


def test_bootstrap_does_not_depend_on_the_order_of_rows() -> None:
    units = np.array([f"person {i // 2}" for i in range(8)])
    order = np.random.default_rng(3).permutation(8)
    straight = metrics.bootstrap_interval(lambda rows: float(SCORE[rows].mean()), units.tolist(), resamples=50)
    shuffled = metrics.bootstrap_interval(lambda rows: float(SCORE[order][rows].mean()), units[order].tolist(), resamples=50)
    assert straight == pytest.approx(shuffled)


# --- forgery type

SWAP, EXPRESSION, ATTRIBUTE, SYNTHESIS = np.eye(4, dtype=bool)


def test_a_swap_of_unnamed_method_is_right_when_the_sum_of_both_types_wins() -> None:
    allowed = np.stack([SWAP | EXPRESSION, ATTRIBUTE])
    split = np.array([[0.3, 0.3, 0.4, 0.0], [0.1, 0.1, 0.6, 0.2]])
    assert metrics.type_macro_f1(split, allowed) == 1.0


def test_type_f1_equals_the_hand_computed_value() -> None:
    allowed = np.stack([SWAP, SWAP, ATTRIBUTE, SYNTHESIS])
    probs = np.stack([SWAP, ATTRIBUTE, ATTRIBUTE, SYNTHESIS]).astype(float)
    assert metrics.type_macro_f1(probs, allowed) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


@settings(max_examples=40, deadline=None)
@given(types=st.lists(st.integers(0, 3), min_size=1, max_size=20), seed=st.integers(0, 2**31))
def test_type_f1_is_1_for_the_truth_0_for_another_type_and_blind_to_order(types: list[int], seed: int) -> None:
    allowed = np.eye(4, dtype=bool)[types]
    assert metrics.type_macro_f1(allowed.astype(float), allowed) == 1.0
    only_swaps = np.tile(SWAP, (len(types), 1))
    assert metrics.type_macro_f1(np.tile(SYNTHESIS, (len(types), 1)).astype(float), only_swaps) == 0.0
    rng = np.random.default_rng(seed)
    probs, order = rng.dirichlet(np.ones(4), len(types)), rng.permutation(len(types))
    assert metrics.type_macro_f1(probs[order], allowed[order]) == pytest.approx(metrics.type_macro_f1(probs, allowed))


def test_type_f1_refuses_real_faces() -> None:
    with pytest.raises(metrics.UndefinedMetric, match="leave real faces out"):
        metrics.type_macro_f1(np.full((1, 4), 0.25), np.zeros((1, 4), bool))


# --- masks


def test_mask_iou_equals_the_hand_computed_value() -> None:
    assert metrics.mask_iou(square(0, 0, 4), square(2, 0, 4)) == pytest.approx(8 / 24)
    assert metrics.mask_iou(square(0, 0, 0), square(0, 0, 0)) == 1.0


@settings(max_examples=60, deadline=None)
@given(predicted=masks, reference=solid_masks)
def test_mask_iou_is_1_for_the_reference_0_for_nothing_and_symmetric(predicted: NDArray[np.bool_], reference: NDArray[np.bool_]) -> None:
    assert metrics.mask_iou(reference, reference) == 1.0
    assert metrics.mask_iou(np.zeros_like(reference), reference) == 0.0
    union = (predicted | reference).sum()
    assert metrics.mask_iou(predicted, reference) == pytest.approx((predicted & reference).sum() / union)
    assert metrics.mask_iou(predicted, reference) == metrics.mask_iou(reference, predicted)


def test_honest_miou_counts_a_miss_as_0_and_leaves_reals_out() -> None:
    nothing = square(0, 0, 0)
    assert metrics.honest_miou([square(0, 0, 4), nothing, square(1, 1, 2)], [square(0, 0, 4), square(0, 0, 4), nothing]) == pytest.approx(0.5)


def test_false_area_is_the_mean_masked_share() -> None:
    assert metrics.false_area([square(0, 0, 4), square(0, 0, 0)]) == pytest.approx(0.125)


def test_unmatched_masks_cost_in_the_hungarian_but_not_in_the_legacy_miou() -> None:
    target, spurious = square(0, 0, 4), square(4, 4, 4)
    assert metrics.hungarian_miou([[target, spurious]], [[target]]) == pytest.approx(0.5)
    assert metrics.hungarian_miou([[target]], [[target, spurious]]) == pytest.approx(0.5)
    assert metrics.legacy_miou([[target, spurious]], [[target]]) == 1.0
    assert metrics.legacy_miou([[target]], [[target, spurious]]) == 1.0


def test_hungarian_finds_the_pairing_that_greedy_misses() -> None:
    def line(start: int, stop: int) -> NDArray[np.bool_]:
        mask_HW = np.zeros((1, 16), bool)
        mask_HW[:, start:stop] = True
        return mask_HW

    # IoU rows 6/10, 4/8 and 4/8, 0: greedy takes 0.6 and is left with nothing, the best assignment is 0.5 + 0.5
    predicted, reference = [line(4, 12), line(2, 6)], [line(2, 10), line(8, 12)]
    assert metrics.hungarian_miou([predicted], [reference]) == pytest.approx(0.5)
    assert metrics.legacy_miou([predicted], [reference]) == pytest.approx(0.6)


@pytest.mark.parametrize("metric", [pytest.param(metrics.hungarian_miou, id="hungarian"), pytest.param(metrics.legacy_miou, id="legacy")])
@settings(max_examples=30, deadline=None)
@given(reference=mask_sets, predicted=mask_sets, seed=st.integers(0, 2**31))
def test_grounding_miou_is_1_for_the_reference_0_for_nothing_and_blind_to_order(
    metric: Callable[..., float], reference: list[list[NDArray[np.bool_]]], predicted: list[list[NDArray[np.bool_]]], seed: int
) -> None:
    assert metric(reference, reference) == pytest.approx(1.0)
    assert metric([[] for _ in reference], reference) == 0.0
    count = min(len(reference), len(predicted))
    order = np.random.default_rng(seed).permutation(count)
    straight = metric(predicted[:count], reference[:count])
    assert metric([predicted[i] for i in order], [reference[i] for i in order]) == pytest.approx(straight)


@settings(max_examples=30, deadline=None)
@given(reference=mask_sets, predicted=mask_sets)
def test_hungarian_miou_never_flatters(reference: list[list[NDArray[np.bool_]]], predicted: list[list[NDArray[np.bool_]]]) -> None:
    count = min(len(reference), len(predicted))
    for found, wanted in zip(predicted[:count], reference[:count], strict=True):
        value = metrics.hungarian_miou([found], [wanted])
        iou = coco_mask.iou(*([coco_mask.encode(np.asfortranarray(m, np.uint8)) for m in masks] for masks in (found, wanted)), [0] * len(wanted))
        assert 0 <= value <= iou.max(0).sum() / max(len(found), len(wanted)) + 1e-12


# --- text

TEXTS = ["The right cheek is softer than the left cheek.", "A seam runs along the jaw line below the mouth.", "The hair has lost its fine texture."]


@needs_java
def test_text_scores_are_best_for_the_references_worst_for_silence_and_blind_to_order() -> None:
    references = [[text] for text in TEXTS]
    perfect = metrics.text_scores(TEXTS, references)
    assert perfect == pytest.approx((1.0, 10.0, 1.0))
    assert metrics.text_scores(["", "", ""], references) == pytest.approx((0.0, 0.0, 0.0))
    partial = metrics.text_scores([TEXTS[0], TEXTS[1], "The hair is short."], references)
    assert (0.0, 0.0, 0.0) < partial < perfect
    # longest common subsequence "the hair": precision 2/4, recall 2/7, beta 1.2
    assert partial.rouge_l == pytest.approx((1 + 1 + (1 + 1.44) * (2 / 4) * (2 / 7) / (2 / 7 + 1.44 * (2 / 4))) / 3)
    assert metrics.text_scores(["The hair is short.", TEXTS[0], TEXTS[1]], [references[2], *references[:2]]) == pytest.approx(partial)


def test_text_scores_without_java_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="install a Java runtime"):
        metrics.text_scores(TEXTS, [[text] for text in TEXTS])


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.sampled_from(TEXTS), min_size=2, max_size=8), seed=st.integers(0, 2**31))
def test_diversity_is_worst_for_one_text_repeated_and_blind_to_order(texts: list[str], seed: int) -> None:
    shuffled = [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]
    assert metrics.self_bleu_4(shuffled) == pytest.approx(metrics.self_bleu_4(texts), abs=1e-9)
    assert metrics.distinct_2(shuffled) == metrics.distinct_2(texts)
    assert metrics.self_bleu_4([texts[0]] * len(texts)) == pytest.approx(1.0, abs=1e-6)
    assert metrics.distinct_2([texts[0]] * len(texts)) == pytest.approx(1 / len(texts))


def test_diversity_is_best_for_texts_that_share_nothing() -> None:
    assert metrics.self_bleu_4(["one two three four five", "six seven eight nine ten"]) == pytest.approx(0.0, abs=1e-6)
    assert metrics.distinct_2(["one two three", "four five six"]) == 1.0
    assert metrics.distinct_2(["one", ""]) == 0.0


def test_self_bleu_equals_the_hand_computed_value() -> None:
    # "a b c d e" and "a b c d f": precisions 4/5, 3/4, 2/3, 1/2, no brevity penalty
    assert metrics.self_bleu_4(["a b c d e", "a b c d f"]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, abs=1e-6)


def test_most_frequent_sentence_counts_texts_and_breaks_ties_by_alphabet() -> None:
    texts = ["The nose is soft. The chin is soft.", "The chin is soft. The chin is soft.", "The nose is soft."]
    assert metrics.most_frequent_sentence(texts) == "The chin is soft."
    assert metrics.most_frequent_sentence(texts[::-1]) == "The chin is soft."


# --- concepts

NOSE, TIP, CHIN, CHEEK = (frozenset({name}) for name in ("nose", "nose_tip", "chin", "right_cheek"))
NOTHING: frozenset[str] = frozenset()


def test_a_parent_is_true_where_one_of_its_atoms_is() -> None:
    assert metrics.hallucination_rate([NOSE], [TIP]) == 0.0
    assert metrics.omission_rate([NOSE], [TIP]) == 0.0


def test_hallucination_and_omission_equal_the_hand_computed_values() -> None:
    named, true = [NOSE | CHIN, CHEEK, NOTHING], [TIP, NOTHING, CHIN | CHEEK]
    assert metrics.hallucination_rate(named, true) == pytest.approx(2 / 3)  # chin and right cheek of three named
    assert metrics.omission_rate(named, true) == pytest.approx(2 / 3)  # chin and right cheek of three true
    assert metrics.mention_rate([NOSE, NOTHING, NOTHING, CHIN]) == 0.5


@settings(max_examples=40, deadline=None)
@given(true=st.lists(st.sampled_from([NOSE, TIP, CHIN, CHEEK, NOSE | CHIN]), min_size=1, max_size=6), seed=st.integers(0, 2**31))
def test_concept_rates_are_0_for_the_truth_worst_for_the_opposite_and_blind_to_order(true: list[frozenset[str]], seed: int) -> None:
    silent = [NOTHING] * len(true)
    assert metrics.hallucination_rate(true, true) == metrics.omission_rate(true, true) == metrics.mention_rate(silent) == 0.0
    assert metrics.hallucination_rate(true, silent) == metrics.omission_rate(silent, true) == metrics.mention_rate(true) == 1.0
    order = np.random.default_rng(seed).permutation(len(true))
    named = [NOSE, CHEEK, CHIN, NOTHING, TIP, NOSE][: len(true)]
    for rate in (metrics.hallucination_rate, metrics.omission_rate):
        assert rate([named[i] for i in order], [true[i] for i in order]) == rate(named, true)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: metrics.honest_miou([square(0, 0, 1)], [square(0, 0, 0)]), id="honest_miou"),
        pytest.param(lambda: metrics.false_area([]), id="false_area"),
        pytest.param(lambda: metrics.hungarian_miou([[]], [[]]), id="hungarian_miou"),
        pytest.param(lambda: metrics.legacy_miou([], []), id="legacy_miou"),
        pytest.param(lambda: metrics.text_scores([], []), id="text_scores"),
        pytest.param(lambda: metrics.self_bleu_4(["one text"]), id="self_bleu_4"),
        pytest.param(lambda: metrics.most_frequent_sentence([]), id="most_frequent_sentence"),
        pytest.param(lambda: metrics.mention_rate([]), id="mention_rate"),
        pytest.param(lambda: metrics.ece(np.array([], bool), np.array([])), id="ece"),
        pytest.param(lambda: metrics.brier(np.array([], bool), np.array([])), id="brier"),
        pytest.param(lambda: metrics.bootstrap_interval(lambda _: 0.0, []), id="bootstrap_interval"),
    ],
)
def test_nothing_to_measure_is_undefined(call: Callable[[], object]) -> None:
    with pytest.raises(metrics.UndefinedMetric):
        call()
