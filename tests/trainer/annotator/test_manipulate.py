"""Own manipulations: the mask is exact, because nothing else changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.contracts import FORGERY_TYPES
from trainer.annotator.manipulate import Manipulation, blob, face_swap, local_edit, self_blend

SIDE = 64
REAL = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
DONOR = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def make(kind: str, seed: int) -> Manipulation:
    rng = np.random.default_rng(seed)
    if kind == "face_swap":
        return face_swap(rng, REAL, DONOR)
    return (self_blend if kind == "self_blend" else local_edit)(rng, REAL)


@pytest.mark.parametrize("kind", ["self_blend", "face_swap", "local_edit"])
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_pixels_change_only_where_alpha_says(kind: str, seed: int) -> None:
    before = REAL.copy(), DONOR.copy()
    image, alpha, forgery_type = make(kind, seed)
    assert image.shape == REAL.shape and image.dtype == np.uint8 and alpha.dtype == np.float32
    assert alpha.min() >= 0 and alpha.max() <= 1
    assert forgery_type in FORGERY_TYPES
    np.testing.assert_array_equal(image[alpha == 0], REAL[alpha == 0])
    np.testing.assert_array_equal(REAL, before[0])
    np.testing.assert_array_equal(DONOR, before[1])


@pytest.mark.parametrize("kind", ["self_blend", "face_swap", "local_edit"])
def test_something_changes_and_the_generator_decides_what(kind: str) -> None:
    made = [make(kind, seed) for seed in range(8)]
    assert all((image != REAL).any() for image, _, _ in made)
    np.testing.assert_array_equal(made[0].image_HWC, make(kind, 0).image_HWC)
    assert not np.array_equal(made[0].alpha_HW, made[1].alpha_HW)


def test_a_swap_takes_the_targets_colours() -> None:
    dark: NDArray[np.uint8] = (REAL // 4).astype(np.uint8)
    image, alpha, _ = face_swap(np.random.default_rng(0), dark, DONOR)
    assert image[alpha > 0.5].mean() == pytest.approx(dark[alpha > 0.5].mean(), abs=12)


def test_a_blob_stands_at_its_centre() -> None:
    soft = blob(np.random.default_rng(0), (SIDE, SIDE), (0.3, 0.6), (0.2, 0.2))
    ys, xs = np.mgrid[:SIDE, :SIDE] + 0.5
    assert (xs * soft).sum() / soft.sum() / SIDE == pytest.approx(0.3, abs=0.05)
    assert (ys * soft).sum() / soft.sum() / SIDE == pytest.approx(0.6, abs=0.05)
