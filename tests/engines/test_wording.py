"""What is said of a face in measured words."""

import numpy as np
import pytest
from numpy.typing import NDArray

from engines import fict
from engines.findings import FACE_PARTS, MOST_PARTS, farthest, within
from engines.measure import measure_region
from engines.prompts import Level, parse_markup
from engines.regions import Regions
from engines.wording import MOST_PLACES, Worded, clean, measured, worded

S = 224
PLACES = {"right_iris": (40, 80, 40, 90), "left_iris": (40, 80, 134, 184), "nose_tip": (90, 130, 92, 132), "upper_lip": (150, 170, 80, 144)}
NOISE = np.random.default_rng(0).integers(90, 160, (S, S, 3), np.uint8)


@pytest.fixture(scope="module")
def found() -> Regions:
    index = {atom: k for k, atom in enumerate(fict.cells(112))}
    atoms = np.full((S, S), index["background"], np.int16)
    for atom, (top, bottom, left, right) in {name: box for name, box in PLACES.items() if name in index}.items():
        atoms[top:bottom, left:right] = index[atom]
    return Regions(atoms, np.full((S, S), -1, np.int8))


def brightened(*masks: NDArray[np.bool_], by: int = 60) -> NDArray[np.uint8]:
    image = NOISE.astype(int)
    for mask_HW in masks:
        image[mask_HW] += by
    return np.clip(image, 0, 255).astype(np.uint8)


def said(image: NDArray[np.uint8], found: Regions, marked: dict[str, NDArray[np.bool_]], asked: str | None = None, **limits: int) -> Worded | None:
    level: Level = "image" if asked is None else "region"
    return worded(measured(image, found, marked, level=level), forgery_type="identity_swap", level=level, asked=asked, **limits)


def test_a_sentence_is_about_its_place_and_states_what_is_measured_there(found: Regions) -> None:
    marked = {name: found.mask(name) for name in ("right_iris", "nose_tip")}
    image = brightened(marked["nose_tip"])
    told = said(image, found, marked)
    assert told is not None
    text, spans = parse_markup(told.markup)
    assert [span.phrase for span in spans] == [fict.concepts()[item.concept].phrase for item in told.told]
    (nose,) = (item for item in told.told if item.concept == "nose_tip")
    assert nose.measured == measure_region(image, marked["nose_tip"]) and nose.measured["brightness_shift"] == pytest.approx(60, abs=5)
    assert " levels" in text


def test_a_masks_parts_lie_in_their_regions_and_a_rim(found: Regions) -> None:
    for concept in ("nose_tip", "left_iris"):
        inside = within(concept, np.ones((S, S), bool), found)
        assert (inside & found.mask(concept)).sum() == found.mask(concept).sum()
        assert inside.sum() <= 1.3 * found.mask(concept).sum()
    assert not within("nose_tip", np.zeros((S, S), bool), found).any()


def test_nothing_is_said_of_what_no_mask_covers(found: Regions) -> None:
    for asked in (None, "nose_tip"):
        assert said(NOISE, found, {"nose_tip": np.zeros((S, S), bool)}, asked) is None
        assert said(NOISE, found, {}, asked) is None


@pytest.mark.parametrize("most", [1, 2, MOST_PLACES])
def test_no_more_places_are_named_than_may_be(found: Regions, most: int) -> None:
    marked = {name: found.mask(name) for name in ("right_iris", "left_iris", "nose_tip", "background")}
    told = said(brightened(*list(marked.values())[:3]), found, marked, most=most)
    assert told is not None and len(told.told) == len(parse_markup(told.markup)[1]) <= most


def test_an_asked_region_is_answered_in_its_name(found: Regions) -> None:
    told = said(brightened(found.mask("nose_tip")), found, {"nose_tip": found.mask("nose_tip")}, "nose_tip")
    assert told is not None and told.markup.startswith("Yes, ")


def test_a_synthesised_face_is_told_by_the_parts_that_are_farthest_from_real_ones(found: Regions) -> None:
    parts = farthest({part: found.mask(part) for part in FACE_PARTS}, found, brightened(found.mask("nose")))
    assert 0 < len(parts) <= MOST_PARTS and parts[0].concept == "nose"
    assert all(fict.concepts()[part.concept].path[0] != "scene" for part in parts)


def test_a_clean_answer_marks_nothing_and_rests_on_what_is_seen(found: Regions) -> None:
    face = clean(NOISE, found, level="image", asked=None, area_HW=None)
    nose = clean(NOISE, found, level="region", asked="nose_tip", area_HW=found.mask("nose_tip"))
    assert face and nose and not parse_markup(face)[1] and not parse_markup(nose)[1] and "nose tip" in nose
    assert clean(NOISE, found, level="region", asked="hair", area_HW=found.mask("hair")) is None  # not seen
    nowhere = Regions(np.full((S, S), fict.cells(112).index("background"), np.int16), found.arc_HW)
    assert clean(NOISE, nowhere, level="image", asked=None, area_HW=None) is None
