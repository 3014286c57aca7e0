"""Which areas of a face are asked, and that each is what it is asked as."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import fict
from engines.regions import Regions
from trainer.queries import BOX_SIDE_PX, MAX_BOX_SHARE, MIN_AREA_PX, AskedAreas, Query, tampered_state


@pytest.fixture(scope="module")
def found(grid_annotator: Callable[..., Any]) -> Regions:
    return grid_annotator().regions(np.zeros((224, 224, 3), np.uint8))


def blob(seed: int) -> np.ndarray:
    """A rectangle of (224, 224), from a speck to the whole crop."""
    rng = np.random.default_rng(seed)
    mask_HW = np.zeros((224, 224), bool)
    height, width = np.exp(rng.uniform(np.log(4), np.log(224), 2)).astype(int)
    y, x = rng.integers(0, 225 - height), rng.integers(0, 225 - width)
    mask_HW[y : y + height, x : x + width] = True
    return mask_HW


def all_queries(areas: AskedAreas, *, tampered: bool) -> list[Query]:
    return [*areas.regions(tampered=tampered), *areas.boxes(tampered=tampered)]


@pytest.mark.parametrize(
    ("masked", "area", "mask", "state"),
    [
        (0, 100, 0, False),
        (10, 100, 1000, True),
        (9, 100, 1000, None),
        (1, 100, 1000, None),
        (0, 100, 1000, False),
        (9, 1000, 1000, False),
        (9, 1000, 90, True),
    ],
)
def test_an_area_is_tampered_clean_or_not_asked(masked: int, area: int, mask: int, state: bool | None) -> None:
    assert tampered_state(masked, area, mask) is state


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_every_asked_area_is_what_it_is_asked_as(found: Regions, seed: int) -> None:
    mask_HW = blob(seed)
    areas = AskedAreas(np.random.default_rng(seed), found, mask_HW, outside_is_clean=True)
    tampered, clean = all_queries(areas, tampered=True), all_queries(areas, tampered=False)
    for query in tampered:
        inside = int((mask_HW & query.area_HW).sum())
        assert inside >= 0.1 * query.area_HW.sum() or inside >= 0.1 * mask_HW.sum()
    assert all((mask_HW & query.area_HW).sum() < 0.01 * query.area_HW.sum() for query in clean)
    names = [(query.concept, query.box_xyxy) for query in (*tampered, *clean)]
    assert len(set(names)) == len(names)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_boxes_lie_in_the_crop_and_are_neither_specks_nor_the_whole(found: Regions, seed: int) -> None:
    areas = AskedAreas(np.random.default_rng(seed), found, np.zeros((224, 224), bool), outside_is_clean=True)
    boxes = list(areas.boxes(tampered=False))
    assert len(boxes) > 20
    for query in boxes:
        assert query.box_xyxy is not None and query.concept is None and query.phrase is None
        x0, y0, x1, y1 = query.box_xyxy
        assert x0 >= 0 and x1 <= 224 and y0 >= 0 and y1 <= 224 and min(x1 - x0, y1 - y0) >= BOX_SIDE_PX[0]
        assert query.area_HW.sum() == (x1 - x0) * (y1 - y0) <= MAX_BOX_SHARE * 224 * 224
        assert query.area_HW[y0:y1, x0:x1].all()


def test_parts_sub_parts_and_atoms_are_asked_alike_often(found: Regions) -> None:
    firsts: Counter[str] = Counter()
    for seed in range(100):
        areas = AskedAreas(np.random.default_rng(seed), found, np.zeros((224, 224), bool), outside_is_clean=True)
        firsts[fict.concepts()[next(areas.regions(tampered=False)).concept or ""].level] += 1
    assert set(firsts) == {"part", "sub_part", "atom"} and min(firsts.values()) > 20


def test_a_region_is_asked_by_words_that_mean_it(found: Regions) -> None:
    areas = AskedAreas(np.random.default_rng(0), found, np.zeros((224, 224), bool), outside_is_clean=True)
    for query in areas.regions(tampered=False):
        assert fict.by_phrase()[query.phrase or ""] == query.concept and query.box_xyxy is None
        np.testing.assert_array_equal(query.area_HW, found.mask(query.concept or ""))


def test_what_a_face_does_not_show_is_not_asked(found: Regions) -> None:
    atom_HW = found.atom_HW.copy()
    nostril, tip = (fict.cells(112).index(name) for name in ("nostril_right", "nose_tip"))
    atom_HW[atom_HW == nostril] = tip
    atom_HW.ravel()[: MIN_AREA_PX - 1] = nostril
    shown = Regions(atom_HW, found.arc_HW)
    areas = AskedAreas(np.random.default_rng(0), shown, np.zeros((224, 224), bool), outside_is_clean=True)
    asked = {query.concept for query in areas.regions(tampered=False)}
    assert "nostril_right" not in asked and "nose_tip" in asked


def test_nothing_is_clean_on_a_face_synthesised_whole(found: Regions) -> None:
    areas = AskedAreas(np.random.default_rng(0), found, blob(5), outside_is_clean=False)
    assert not all_queries(areas, tampered=False) and all_queries(areas, tampered=True)
