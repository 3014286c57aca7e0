"""Mask metrics against hand-computed and pycocotools values; perfect is best, empty is worst, order is irrelevant."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from trainer.fifa_bench import masks as mask_metrics
from trainer.fifa_bench.intervals import UndefinedMetric
from trainer.fifa_bench.masks import Ranked, ap50, boundary_f1, cumulative_iou, encoded, iou_matrix, num_found, oval_mask


def square(x: int, y: int, side: int, size: int = 8) -> NDArray[np.bool_]:
    mask_HW = np.zeros((size, size), bool)
    mask_HW[y : y + side, x : x + side] = True
    return mask_HW


masks = st.builds(square, st.integers(0, 7), st.integers(0, 7), st.integers(0, 6))
solid_masks = st.builds(square, st.integers(0, 4), st.integers(0, 4), st.integers(1, 4))
mask_sets = st.lists(st.lists(solid_masks, min_size=1, max_size=4), min_size=1, max_size=5)


def test_mask_iou_equals_the_hand_computed_value() -> None:
    assert mask_metrics.mask_iou(square(0, 0, 4), square(2, 0, 4)) == pytest.approx(8 / 24)
    assert mask_metrics.mask_iou(square(0, 0, 0), square(0, 0, 0)) == 1.0


@settings(max_examples=60, deadline=None)
@given(predicted=masks, reference=solid_masks)
def test_mask_iou_is_1_for_the_reference_0_for_nothing_and_symmetric(predicted: NDArray[np.bool_], reference: NDArray[np.bool_]) -> None:
    assert mask_metrics.mask_iou(reference, reference) == 1.0
    assert mask_metrics.mask_iou(np.zeros_like(reference), reference) == 0.0
    union = (predicted | reference).sum()
    assert mask_metrics.mask_iou(predicted, reference) == pytest.approx((predicted & reference).sum() / union)
    assert mask_metrics.mask_iou(predicted, reference) == mask_metrics.mask_iou(reference, predicted)


def test_honest_miou_counts_a_miss_as_0_and_leaves_reals_out() -> None:
    nothing = square(0, 0, 0)
    assert mask_metrics.honest_miou([square(0, 0, 4), nothing, square(1, 1, 2)], [square(0, 0, 4), square(0, 0, 4), nothing]) == pytest.approx(0.5)


def test_false_area_is_the_mean_masked_share() -> None:
    assert mask_metrics.false_area([square(0, 0, 4), square(0, 0, 0)]) == pytest.approx(0.125)


def test_unmatched_masks_cost_in_the_hungarian_but_not_in_the_legacy_miou() -> None:
    target, spurious = square(0, 0, 4), square(4, 4, 4)
    assert mask_metrics.hungarian_miou([[target, spurious]], [[target]]) == pytest.approx(0.5)
    assert mask_metrics.hungarian_miou([[target]], [[target, spurious]]) == pytest.approx(0.5)
    assert mask_metrics.legacy_miou([[target, spurious]], [[target]]) == 1.0
    assert mask_metrics.legacy_miou([[target]], [[target, spurious]]) == 1.0


def test_hungarian_finds_the_pairing_that_greedy_misses() -> None:
    def line(start: int, stop: int) -> NDArray[np.bool_]:
        mask_HW = np.zeros((1, 16), bool)
        mask_HW[:, start:stop] = True
        return mask_HW

    # IoU rows 6/10, 4/8 and 4/8, 0: greedy takes 0.6 and is left with nothing, the best assignment is 0.5 + 0.5
    predicted, reference = [line(4, 12), line(2, 6)], [line(2, 10), line(8, 12)]
    assert mask_metrics.hungarian_miou([predicted], [reference]) == pytest.approx(0.5)
    assert mask_metrics.legacy_miou([predicted], [reference]) == pytest.approx(0.6)


@pytest.mark.parametrize("metric", [pytest.param(mask_metrics.hungarian_miou, id="hungarian"), pytest.param(mask_metrics.legacy_miou, id="legacy")])
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
        value = mask_metrics.hungarian_miou([found], [wanted])
        iou = coco_mask.iou(*([coco_mask.encode(np.asfortranarray(m, np.uint8)) for m in masks] for masks in (found, wanted)), [0] * len(wanted))
        assert 0 <= value <= iou.max(0).sum() / max(len(found), len(wanted)) + 1e-12


# --- boundaries


def test_a_boundary_within_the_tolerance_is_found_and_beyond_it_is_not() -> None:
    reference = square(60, 60, 80, 224)
    near, far = square(66, 60, 80, 224), square(80, 60, 80, 224)
    assert boundary_f1(near, reference) == 1.0  # 2 % of the diagonal of 317 px is 6 px
    assert boundary_f1(near, reference, mask_metrics.STRICT_BOUNDARY_SHARE) < 0.6
    # 20 px away the two upright sides are missed except where they cross the level ones, whose common part is found
    assert 0.3 < boundary_f1(far, reference) < 0.5


def test_boundary_f1_equals_the_hand_computed_value() -> None:
    # one pixel against a line of 20: precision 1, recall the 7 pixels within 3 px
    line, point = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    line[20, 10:30] = point[20, 20] = True
    assert boundary_f1(point, line, 3 / np.hypot(40, 40)) == pytest.approx(2 * 1 * (7 / 20) / (1 + 7 / 20))


@settings(max_examples=30, deadline=None)
@given(predicted=masks, reference=solid_masks)
def test_boundary_f1_is_1_for_the_reference_0_for_nothing_and_symmetric(predicted: NDArray[np.bool_], reference: NDArray[np.bool_]) -> None:
    assert boundary_f1(reference, reference) == 1.0
    assert boundary_f1(np.zeros_like(reference), reference) == 0.0
    assert 0 <= boundary_f1(predicted, reference) == pytest.approx(boundary_f1(reference, predicted))


def test_the_edge_of_the_crop_is_no_boundary() -> None:
    whole = np.ones((16, 16), bool)
    assert boundary_f1(whole, whole) == 1.0 and boundary_f1(whole, square(4, 4, 4, 16)) == 0.0


# --- pooled overlap, recall, average precision


def test_pooled_overlap_weighs_large_masks_more() -> None:
    predicted, reference = [square(0, 0, 4), square(0, 0, 1)], [square(0, 0, 4), square(4, 4, 1)]
    assert cumulative_iou([encoded(m) for m in predicted], [encoded(m) for m in reference]) == pytest.approx(16 / 18)
    assert mask_metrics.honest_miou(predicted, reference) == pytest.approx(0.5)


def test_a_mask_is_found_once_and_only_under_a_fitting_phrase() -> None:
    target = [encoded(square(0, 0, 4))]
    iou = iou_matrix(target * 2, target)
    assert num_found(iou, np.array([[True], [True]])) == 1
    assert num_found(iou, np.array([[False], [False]])) == 0
    # one prediction fits both truths, the other only the first: the largest matching finds both
    iou = np.array([[0.6, 0.6], [0.6, 0.0]])
    assert num_found(iou, np.ones((2, 2), bool)) == 2
    assert num_found(np.zeros((0, 2)), np.zeros((0, 2), bool)) == 0


def _ranked(*masks_and_confidences: tuple[NDArray[np.bool_], float]) -> list[Ranked]:
    return [Ranked(encoded(mask_HW), confidence) for mask_HW, confidence in masks_and_confidences]


def test_average_precision_equals_the_hand_computed_value_and_needs_real_confidences() -> None:
    hit, miss = square(0, 0, 4), square(4, 4, 4)
    reference = [[encoded(hit)], [encoded(hit)], []]
    sure_of_hits = [_ranked((hit, 0.9)), _ranked((hit, 0.8)), _ranked((miss, 0.1))]
    assert ap50(sure_of_hits, reference) == pytest.approx(1.0)
    # the false one first: precision 1/2 up to recall 1/2, then 2/3; COCO takes the largest precision at or beyond each of 101 recalls
    sure_of_misses = [_ranked((hit, 0.2)), _ranked((hit, 0.1)), _ranked((miss, 0.9))]
    assert ap50(sure_of_misses, reference) == pytest.approx(2 / 3)
    # one of two found by the only mask: precision 1 for 51 of 101 recalls
    assert ap50([_ranked((hit, 0.5)), [], []], reference) == pytest.approx(51 / 101)


@settings(max_examples=15, deadline=None)
@given(reference=mask_sets, seed=st.integers(0, 2**31))
def test_average_precision_is_1_for_the_reference_0_for_nothing_and_blind_to_order(reference: list[list[NDArray[np.bool_]]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = [[encoded(m) for m in masks] for masks in reference]
    assert ap50([[Ranked(rle, 0.5) for rle in rles] for rles in truth], truth) == pytest.approx(1.0)
    assert ap50([[] for _ in truth], truth) == 0.0
    guessed = [_ranked((square(1, 1, 3), float(rng.random())), (square(3, 2, 4), float(rng.random()))) for _ in truth]
    order = rng.permutation(len(truth))
    assert ap50([guessed[i] for i in order], [truth[i] for i in order]) == pytest.approx(ap50(guessed, truth))


def test_the_trivial_oval_is_a_face_in_the_middle() -> None:
    oval = oval_mask()
    assert oval.shape == (224, 224) and oval.mean() == pytest.approx(np.pi * 0.32 * 0.40, abs=2e-3)
    assert oval[117, 112] and not oval[0, 112] and not oval[112, 0]


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: mask_metrics.honest_miou([square(0, 0, 1)], [square(0, 0, 0)]), id="honest_miou"),
        pytest.param(lambda: mask_metrics.false_area([]), id="false_area"),
        pytest.param(lambda: mask_metrics.hungarian_miou([[]], [[]]), id="hungarian_miou"),
        pytest.param(lambda: mask_metrics.hungarian_iou(np.zeros((0, 0))), id="hungarian_iou"),
        pytest.param(lambda: mask_metrics.legacy_miou([], []), id="legacy_miou"),
        pytest.param(lambda: cumulative_iou([], []), id="cumulative_iou"),
        pytest.param(lambda: ap50([[]], [[]]), id="ap50"),
    ],
)
def test_nothing_to_measure_is_undefined(call: Callable[[], object]) -> None:
    with pytest.raises(UndefinedMetric):
        call()
