"""Concepts named against concepts true, and masks against regions: hand-computed cases, and the limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines import fict, findings
from trainer.annotator import annotate
from trainer.fifa_bench import alignment
from trainer.fifa_bench.alignment import concept_overlap, is_hallucinated, phrase_fits, region_of, share_inside
from trainer.fifa_bench.intervals import UndefinedMetric
from trainer.fifa_bench.masks import area, decoded, encoded

NOSE, TIP, CHIN, CHEEK = (frozenset({name}) for name in ("nose", "nose_tip", "chin", "right_cheek"))
NOTHING: frozenset[str] = frozenset()


def test_a_parent_is_listed_where_one_of_its_atoms_is() -> None:
    assert alignment.unlisted_rate([NOSE], [TIP]) == 0.0
    assert alignment.omission_rate([NOSE], [TIP]) == 0.0


def test_unlisted_and_omitted_shares_equal_the_hand_computed_values() -> None:
    named, true = [NOSE | CHIN, CHEEK, NOTHING], [TIP, NOTHING, CHIN | CHEEK]
    assert alignment.unlisted_rate(named, true) == pytest.approx(2 / 3)  # chin and right cheek of three named
    assert alignment.omission_rate(named, true) == pytest.approx(2 / 3)  # chin and right cheek of three true
    assert alignment.mention_rate([NOSE, NOTHING, NOTHING, CHIN]) == 0.5


@settings(max_examples=40, deadline=None)
@given(true=st.lists(st.sampled_from([NOSE, TIP, CHIN, CHEEK, NOSE | CHIN]), min_size=1, max_size=6), seed=st.integers(0, 2**31))
def test_concept_rates_are_0_for_the_truth_worst_for_the_opposite_and_blind_to_order(true: list[frozenset[str]], seed: int) -> None:
    silent = [NOTHING] * len(true)
    assert alignment.unlisted_rate(true, true) == alignment.omission_rate(true, true) == alignment.mention_rate(silent) == 0.0
    assert alignment.unlisted_rate(true, silent) == alignment.omission_rate(silent, true) == alignment.mention_rate(true) == 1.0
    order = np.random.default_rng(seed).permutation(len(true))
    named = [NOSE, CHEEK, CHIN, NOTHING, TIP, NOSE][: len(true)]
    for rate in (alignment.unlisted_rate, alignment.omission_rate):
        assert rate([named[i] for i in order], [true[i] for i in order]) == rate(named, true)


def test_only_an_ancestor_or_a_descendant_may_stand_for_a_concept() -> None:
    assert phrase_fits("nose", "nose_tip") and phrase_fits("nose_tip", "nose") and phrase_fits("nose", "nose")
    assert not phrase_fits("left_cheek", "right_cheek") and not phrase_fits("nasal_bridge", "nose_tip")
    assert not phrase_fits(None, "nose") and not phrase_fits("nose", None)
    assert not phrase_fits("nose", "nose_tip", exact=True) and phrase_fits("nose", "nose", exact=True)


def test_concept_overlap_equals_the_hand_computed_value_at_every_depth() -> None:
    named, true = [frozenset({"right_cheek", "nose_tip"})], [frozenset({"left_cheek", "nose_tip"})]
    assert concept_overlap(named, true, 5) == (1.0, 1.0, 1.0)  # one group
    assert concept_overlap(named, true, 14) == (1.0, 1.0, 1.0)  # cheeks and nose: the part does not know sides
    assert concept_overlap(named, true, 33) == pytest.approx((0.5, 0.5, 0.5))
    assert concept_overlap(named, true, 112) == pytest.approx((1 / 7, 1 / 7, 1 / 7))  # six atoms a cheek


@settings(max_examples=30, deadline=None)
@given(true=st.lists(st.frozensets(st.sampled_from(list(fict.concepts())[:-9]), min_size=1, max_size=4), min_size=1, max_size=5))
def test_concept_overlap_is_1_for_the_truth_and_0_for_silence(true: list[frozenset[str]]) -> None:
    for depth in (5, 14, 33, 112):
        assert concept_overlap(true, true, depth) == (1.0, 1.0, 1.0)
        assert concept_overlap([NOTHING] * len(true), true, depth) == (0.0, 0.0, 0.0)
        assert concept_overlap(true[::-1], true[::-1], depth) == concept_overlap(true, true, depth)


def _square(x: int, y: int, side: int) -> NDArray[np.bool_]:
    mask_HW = np.zeros((32, 32), bool)
    mask_HW[y : y + side, x : x + side] = True
    return mask_HW


def test_a_region_is_its_visible_atoms_grown_by_two_pixels() -> None:
    atoms = {"nose_tip": encoded(_square(4, 4, 4)), "nasal_root": encoded(_square(20, 20, 2))}
    assert (decoded(region_of("nose_tip", atoms, 32)) == _square(2, 2, 8)).all()
    assert (decoded(region_of("nose", atoms, 32)) == (_square(2, 2, 8) | _square(18, 18, 6))).all()
    assert area(region_of("chin", atoms, 32)) == 0


ATOMS = {"nose_tip": encoded(_square(4, 4, 20)), "nasal_root": encoded(_square(28, 28, 2))}  # 400 px and 4 px


@pytest.mark.parametrize(
    ("concept", "artifact_HW", "hallucinated"),
    [
        pytest.param("nose_tip", _square(10, 10, 2), False, id="1 % of the region is enough"),
        pytest.param("nose_tip", _square(10, 10, 2) & ~_square(10, 10, 1), True, id="one pixel less is not"),
        pytest.param("nose", _square(10, 10, 2), True, id="a parent is as large as its atoms together"),
        pytest.param("nose", _square(28, 28, 2) | _square(10, 10, 1), False, id="whichever of its atoms holds the artifact"),
        pytest.param("nasal_root", _square(28, 28, 1), False, id="one pixel is enough for a small region"),
        pytest.param("nasal_root", _square(10, 10, 8), True, id="none is never"),
        pytest.param("nose_tip", _square(24, 4, 2), False, id="the rim counts, and does not raise the bar"),
        pytest.param("nose_tip", _square(26, 4, 6), True, id="beyond the rim"),
        pytest.param("chin", np.ones((32, 32), bool), True, id="a concept that the face does not show"),
    ],
)
def test_a_concept_is_hallucinated_where_the_annotator_would_call_its_region_clean(
    concept: str, artifact_HW: NDArray[np.bool_], hallucinated: bool
) -> None:
    assert is_hallucinated(concept, ATOMS, encoded(artifact_HW), 32) is hallucinated


def test_the_bench_and_the_annotator_agree_on_the_rim_and_on_what_is_clean() -> None:
    assert (alignment.REGION_DILATION_PX, alignment.CLEAN_SHARE) == (findings.REGION_DILATION_PX, annotate.CLEAN_SHARE)


def test_the_share_inside_counts_what_leaves_the_region() -> None:
    region = encoded(_square(0, 0, 8))
    assert share_inside(region, region) == 1.0
    assert share_inside(encoded(_square(4, 0, 8)), region) == 0.5
    assert share_inside(encoded(_square(20, 20, 4)), region) == 0.0
    with pytest.raises(UndefinedMetric, match="empty"):
        share_inside(encoded(_square(0, 0, 0)), region)


def test_nothing_to_measure_is_undefined() -> None:
    with pytest.raises(UndefinedMetric):
        alignment.mention_rate([])
    with pytest.raises(UndefinedMetric):
        concept_overlap([NOSE], [frozenset({"boundary_chin"})], 33)
