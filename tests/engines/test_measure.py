"""Measurements of a region: signs, finiteness, invariances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from engines.measure import UNREMARKABLE, dilate, measure_region

SIZE = 96


@pytest.fixture(scope="module")
def crop_HWC() -> NDArray[np.uint8]:
    """A textured crop with edges and grain, symmetric about the middle column but for the grain."""
    rng = np.random.default_rng(3)
    ys, xs = np.mgrid[0:SIZE, 0:SIZE]
    waves = 120 + 40 * np.sin(np.abs(xs - SIZE / 2 + 0.5) / 3) * np.cos(ys / 4)
    return np.clip(waves[..., None] + rng.normal(0, 4, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def mask_HW() -> NDArray[np.bool_]:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[30:60, 12:42] = True
    return mask


def _changed(crop_HWC: NDArray[np.uint8], mask_HW: NDArray[np.bool_], change: str) -> NDArray[np.uint8]:
    x = crop_HWC.astype(np.float32)
    if change == "blur":
        kernel = np.ones(7) / 7
        new = x
        for axis in (0, 1):
            new = np.apply_along_axis(lambda line: np.convolve(line, kernel, "same"), axis, new)
    elif change == "noise":
        new = x + np.random.default_rng(0).normal(0, 14, x.shape)
    elif change == "light":
        new = x + 30
    elif change == "red":
        new = x + np.array([25, 0, 0])
    else:
        new = x + np.array([12, 12, -20])
    return np.clip(np.where(mask_HW[..., None], new, x), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "measurement", "sign"),
    [
        pytest.param("blur", "sharpness_ratio", -1, id="blur is softer"),
        pytest.param("blur", "noise_ratio", -1, id="blur is smoother"),
        pytest.param("noise", "noise_ratio", 1, id="noise is noisier"),
        pytest.param("light", "brightness_shift", 1, id="light is brighter"),
        pytest.param("light", "boundary_gradient", 1, id="a step makes a hard edge"),
        pytest.param("light", "asymmetry", 1, id="one side alone is uneven"),
        pytest.param("red", "red_shift", 1, id="red is redder"),
        pytest.param("red", "color_shift", 1, id="red is a colour shift"),
        pytest.param("yellow", "yellow_shift", 1, id="yellow is warmer"),
    ],
)
def test_a_change_moves_its_measurement_to_its_side(
    crop_HWC: NDArray[np.uint8], mask_HW: NDArray[np.bool_], change: str, measurement: str, sign: int
) -> None:
    before = measure_region(crop_HWC, mask_HW)[measurement]
    after = measure_region(_changed(crop_HWC, mask_HW, change), mask_HW)[measurement]
    assert sign * (after - before) > 0.02


@pytest.mark.parametrize("fill", [pytest.param(False, id="empty mask"), pytest.param(True, id="full mask")])
def test_a_mask_without_surroundings_measures_as_unremarkable(crop_HWC: NDArray[np.uint8], fill: bool) -> None:
    assert measure_region(crop_HWC, np.full((SIZE, SIZE), fill)) == UNREMARKABLE


@settings(max_examples=30, deadline=None)
@given(
    crop=hnp.arrays(np.uint8, (32, 32, 3)),
    rows=st.tuples(st.integers(0, 32), st.integers(0, 32)),
    columns=st.tuples(st.integers(0, 32), st.integers(0, 32)),
)
def test_every_mask_measures_finite(crop: NDArray[np.uint8], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    mask = np.zeros((32, 32), bool)
    mask[min(rows) : max(rows), min(columns) : max(columns)] = True
    measured = measure_region(crop, mask)
    assert measured.keys() == UNREMARKABLE.keys()
    assert all(np.isfinite(value) for value in measured.values())


@settings(max_examples=30, deadline=None)
@given(mask=hnp.arrays(np.bool_, (17, 23)), radius=st.integers(0, 9))
def test_dilation_is_the_union_of_shifts(mask: NDArray[np.bool_], radius: int) -> None:
    padded = np.pad(mask, radius)
    shifts = [padded[y : y + 17, x : x + 23] for y in range(2 * radius + 1) for x in range(2 * radius + 1)]
    np.testing.assert_array_equal(dilate(mask, radius), np.any(shifts, 0))
