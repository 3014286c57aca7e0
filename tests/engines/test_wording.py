"""What is said of a face in measured words."""

import numpy as np
import pytest
from numpy.typing import NDArray

from engines import fict
from engines.measure import measure_region
from engines.prompts import parse_markup
from engines.regions import Regions
from engines.wording import MOST_PARTS, MOST_PLACES, Marked, clean, farthest_parts, within_regions, worded

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


def brightened(*places: Marked, by: int = 60) -> NDArray[np.uint8]:
    image = NOISE.astype(int)
    for place in places:
        image[place.mask_HW] += by
    return np.clip(image, 0, 255).astype(np.uint8)


def test_a_sentence_is_about_its_place_and_states_what_is_measured_there(found: Regions) -> None:
    nose, eye = Marked("nose_tip", found.mask("nose_tip")), Marked("right_iris", found.mask("right_iris"))
    image = brightened(nose)
    said = worded(image, found, [eye, nose], forgery_type="identity_swap", level="image", asked=None)
    assert said is not None and 1 in said.places
    text, spans = parse_markup(said.markup)
    assert [span.phrase for span in spans] == [fict.concepts()[(eye, nose)[place].concept].phrase for place in said.places]
    assert measure_region(image, nose.mask_HW)["brightness_shift"] == pytest.approx(60, abs=5) and " levels" in text


def test_a_masks_parts_lie_in_their_regions_and_a_rim(found: Regions) -> None:
    places = within_regions(["nose_tip", "left_iris"], np.ones((S, S), bool), found)
    for place in places:
        assert (place.mask_HW & found.mask(place.concept)).sum() == found.mask(place.concept).sum()
        assert place.mask_HW.sum() <= 1.3 * found.mask(place.concept).sum()
    assert not within_regions(["nose_tip"], np.zeros((S, S), bool), found)[0].mask_HW.any()


def test_nothing_is_said_of_what_no_mask_covers(found: Regions) -> None:
    empty = [Marked("nose_tip", np.zeros((S, S), bool))]
    assert worded(NOISE, found, empty, forgery_type="identity_swap", level="image", asked=None) is None
    assert worded(NOISE, found, [], forgery_type="identity_swap", level="box", asked=None) is None


@pytest.mark.parametrize("most", [1, 2, MOST_PLACES])
def test_no_more_places_are_named_than_may_be(found: Regions, most: int) -> None:
    places = [Marked(name, found.mask(name)) for name in ("right_iris", "left_iris", "nose_tip", "background")]
    said = worded(brightened(*places[:3]), found, places, forgery_type="identity_swap", level="image", asked=None, most=most)
    assert said is not None and len(said.places) == len(parse_markup(said.markup)[1]) <= most


def test_an_asked_region_is_answered_in_its_name(found: Regions) -> None:
    place = Marked("nose_tip", found.mask("nose_tip"))
    said = worded(brightened(place), found, [place], forgery_type="identity_swap", level="region", asked="nose_tip")
    assert said is not None and said.markup.startswith("Yes, ")


def test_a_synthesised_face_is_told_by_the_parts_that_are_farthest_from_real_ones(found: Regions) -> None:
    parts = farthest_parts(brightened(Marked("nose", found.mask("nose"))), found)
    assert 0 < len(parts) <= MOST_PARTS and parts[0].concept == "nose"
    assert all(fict.concepts()[part.concept].path[0] != "scene" for part in parts)


def test_a_clean_answer_marks_nothing_and_rests_on_what_is_seen(found: Regions) -> None:
    face = clean(NOISE, found, level="image", asked=None, area_HW=None)
    nose = clean(NOISE, found, level="region", asked="nose_tip", area_HW=found.mask("nose_tip"))
    assert face and nose and not parse_markup(face)[1] and not parse_markup(nose)[1] and "nose tip" in nose
    assert clean(NOISE, found, level="region", asked="hair", area_HW=found.mask("hair")) is None  # not seen
    nowhere = Regions(np.full((S, S), fict.cells(112).index("background"), np.int16), found.arc_HW)
    assert clean(NOISE, nowhere, level="image", asked=None, area_HW=None) is None
