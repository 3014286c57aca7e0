"""Own manipulations: the mask is exact, because nothing else changes; with a guide, place and size are as asked."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.contracts import FORGERY_TYPES
from trainer.annotator.manipulate import (
    ALPHA_CUT,
    FEATURES,
    OUTER_CANTHI,
    RECIPES,
    Guide,
    Manipulation,
    attribute_edit,
    blob,
    change_levels,
    expression_warp,
    face_swap,
    grown,
    local_edit,
    make,
    self_blend,
)  # fmt: skip
from trainer.annotator.pixel_edits import EDITS, match_colours, reflect

SIDE = 64
REAL = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
DONOR = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
ALL_RECIPES = [(family, recipe) for family, recipes in RECIPES.items() for recipe in recipes]


def ellipse(center_xy: tuple[float, float], radii_xy: tuple[float, float]) -> NDArray[np.bool_]:
    ys, xs = np.mgrid[:SIDE, :SIDE]
    return np.asarray(((xs - center_xy[0]) / radii_xy[0]) ** 2 + ((ys - center_xy[1]) / radii_xy[1]) ** 2 <= 1)


def landmarks() -> NDArray[np.float32]:
    """A face of 468 points: its own spiral in the oval, with the mouth and the eyes as ellipses."""
    turn, reach = np.arange(468) * 2.4, np.sqrt((np.arange(468) + 1) / 468)
    points = np.stack([32 + 22 * reach * np.cos(turn), 32 + 28 * reach * np.sin(turn)], 1)
    for contour, center in ((FEATURES["mouth"][0], (32, 46)), (FEATURES["eye"][0], (22, 24)), (FEATURES["eye"][1], (42, 24))):
        around = np.linspace(0, 2 * np.pi, len(contour), endpoint=False)
        points[list(contour)] = np.stack([center[0] + 6 * np.cos(around), center[1] + 3 * np.sin(around)], 1)
    points[list(OUTER_CANTHI)] = (16, 24), (48, 24)
    return points.astype(np.float32)


GUIDE = Guide(landmarks(), ellipse((32, 32), (22, 28)), lambda concept: ellipse((32, 46), (8, 4)))


def unguided(kind: str, seed: int) -> Manipulation:
    rng = np.random.default_rng(seed)
    if kind == "face_swap":
        return face_swap(rng, REAL, DONOR)
    return (self_blend if kind == "self_blend" else local_edit)(rng, REAL)


def guided(recipe: str, seed: int, area: float | None) -> Manipulation:
    return make(np.random.default_rng(seed), recipe, REAL, GUIDE, DONOR, landmarks() + np.float32(2), area)


@pytest.mark.parametrize("kind", ["self_blend", "face_swap", "local_edit"])
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_pixels_change_only_where_alpha_says(kind: str, seed: int) -> None:
    before = REAL.copy(), DONOR.copy()
    image, alpha, forgery_type, _ = unguided(kind, seed)
    assert image.shape == REAL.shape and image.dtype == np.uint8 and alpha.dtype == np.float32
    assert alpha.min() >= 0 and alpha.max() <= 1
    assert forgery_type in FORGERY_TYPES
    np.testing.assert_array_equal(image[alpha == 0], REAL[alpha == 0])
    np.testing.assert_array_equal(REAL, before[0])
    np.testing.assert_array_equal(DONOR, before[1])


@pytest.mark.parametrize(("family", "recipe"), ALL_RECIPES)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), area=st.floats(0.005, 0.4))
def test_a_guided_manipulation_has_the_asked_area_and_an_exact_mask(family: str, recipe: str, seed: int, area: float) -> None:
    before = REAL.copy()
    image, alpha, forgery_type, made_by = guided(recipe, seed, area)
    assert (forgery_type, made_by) == (family, recipe)
    assert alpha.dtype == np.float32 and alpha.min() >= 0 and alpha.max() <= 1
    assert int((alpha > ALPHA_CUT).sum()) == pytest.approx(area * GUIDE.oval_HW.sum(), abs=2)
    np.testing.assert_array_equal(image[alpha == 0], REAL[alpha == 0])
    np.testing.assert_array_equal(REAL, before)


@pytest.mark.parametrize(("family", "recipe"), ALL_RECIPES)
def test_something_changes_and_the_generator_decides_what(family: str, recipe: str) -> None:
    made = [guided(recipe, seed, None) for seed in range(6)]
    assert all((item.image_HWC != REAL).any() for item in made)
    np.testing.assert_array_equal(made[0].image_HWC, guided(recipe, 0, None).image_HWC)
    assert not np.array_equal(made[0].alpha_HW, made[1].alpha_HW)


@pytest.mark.parametrize("kind", ["self_blend", "face_swap", "local_edit"])
def test_training_draws_manipulations_without_landmarks(kind: str) -> None:
    made = [unguided(kind, seed) for seed in range(8)]
    assert all((item.image_HWC != REAL).any() for item in made)
    np.testing.assert_array_equal(made[0].image_HWC, unguided(kind, 0).image_HWC)
    assert not np.array_equal(made[0].alpha_HW, made[1].alpha_HW)


def test_the_families_are_those_with_a_local_mask() -> None:
    assert set(RECIPES) == set(FORGERY_TYPES) - {"real", "entire_synthesis"}
    assert set(EDITS) == set(RECIPES["attribute_manipulation"])


def test_an_unknown_recipe_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'nose_job' is no manipulator; choose from recolor"):
        make(np.random.default_rng(0), "nose_job", REAL, GUIDE, DONOR, None)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), pixels=st.integers(1, SIDE * SIDE // 2))
def test_a_region_grows_or_shrinks_to_the_pixel(seed: int, pixels: int) -> None:
    alpha = grown(np.random.default_rng(seed), ellipse((20, 40), (9, 6)), pixels)
    assert int((alpha > ALPHA_CUT).sum()) == pytest.approx(pixels, abs=2)


def test_an_edit_lies_over_the_region_of_its_concept() -> None:
    place = GUIDE.mask("mouth")
    alpha = attribute_edit(np.random.default_rng(0), REAL, GUIDE, float(place.sum() / GUIDE.oval_HW.sum()), edit="recolor").alpha_HW
    exact = alpha > ALPHA_CUT
    assert (exact & place).sum() / (exact | place).sum() > 0.7


@pytest.mark.parametrize(("feature", "row"), [("mouth", 46), ("eye", 24)])
def test_an_expression_moves_its_feature(feature: str, row: int) -> None:
    alpha = expression_warp(np.random.default_rng(3), REAL, GUIDE, 0.05, feature=feature).alpha_HW
    rows = np.nonzero(alpha > ALPHA_CUT)[0]
    assert rows.mean() == pytest.approx(row, abs=2)


def test_a_swap_takes_the_targets_colours() -> None:
    dark: NDArray[np.uint8] = (REAL // 4).astype(np.uint8)
    image, alpha, _, _ = face_swap(np.random.default_rng(0), dark, DONOR)
    assert image[alpha > 0.5].mean() == pytest.approx(dark[alpha > 0.5].mean(), abs=12)


def test_colours_match_inside_the_mask_and_nothing_is_done_without_one() -> None:
    source, target = REAL.astype(np.float32), DONOR.astype(np.float32) / np.float32(3) + np.float32(60)
    inside = ellipse((32, 32), (12, 12))
    matched = match_colours(source, target, inside)
    np.testing.assert_allclose(matched[inside].mean(0), target[inside].mean(0), atol=1)
    np.testing.assert_allclose(matched[inside].std(0), target[inside].std(0), rtol=0.05)
    assert match_colours(source, target, np.zeros_like(inside)) is source


def test_a_donor_is_laid_on_the_targets_landmarks() -> None:
    smooth = cv2.GaussianBlur(REAL, (0, 0), 3.0)
    moved = np.roll(smooth, (6, -4), (0, 1))  # the same face, 6 px lower and 4 px to the left
    there = landmarks() + np.array([-4, 6], np.float32)

    def miss(points: NDArray[np.float32] | None, seed: int) -> float:
        made = face_swap(np.random.default_rng(seed), smooth, moved, GUIDE, points, 0.3)
        return float(np.abs(made.image_HWC.astype(float) - smooth).mean())

    aligned, lost = (np.mean([miss(points, seed) for seed in range(6)]) for points in (there, None))
    assert aligned < 0.3 * lost


def test_a_mirrored_face_keeps_its_axis() -> None:
    image = np.zeros((SIDE, SIDE, 3), np.float32)
    image[24, 20] = 255
    mirrored = reflect(image, *landmarks()[list(OUTER_CANTHI)])
    assert np.argwhere(mirrored[..., 0] > 200).tolist() == [[24, 44]]


def test_visibility_is_the_change_inside_beyond_that_outside() -> None:
    exact = ellipse((32, 32), (10, 10))
    noisy = np.clip(REAL.astype(int) // 2 + 40 + 2, 0, 255).astype(np.uint8)
    base: NDArray[np.uint8] = (REAL // 2 + 40).astype(np.uint8)
    changed = noisy.copy()
    changed[exact] += 7
    assert change_levels(base, changed, exact) == pytest.approx(7.0)
    assert change_levels(base, noisy, exact) == pytest.approx(0.0)
    assert change_levels(base, changed, np.zeros_like(exact)) == 0.0


def test_a_blob_stands_at_its_centre() -> None:
    soft = blob(np.random.default_rng(0), (SIDE, SIDE), (0.3, 0.6), (0.2, 0.2))
    ys, xs = np.mgrid[:SIDE, :SIDE] + 0.5
    assert (xs * soft).sum() / soft.sum() / SIDE == pytest.approx(0.3, abs=0.05)
    assert (ys * soft).sum() / soft.sum() / SIDE == pytest.approx(0.6, abs=0.05)
