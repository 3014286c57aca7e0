"""Evidence: what departs, to which side, by how much; where in a concept a mask lies, seen by the subject; what real faces show."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines import fict
from engines.claims import KINDS, Claim, Finding, read_claim
from engines.findings import BELIEVED, BELIEVED_ALSO, NEUTRAL, VISIBLE, ConceptEvidence, claim_for, comparable, departures, steady_for, usual
from engines.measure import UNREMARKABLE, measure_region
from engines.regions import Regions

S = 120
BOXES = {
    "forehead_lower_center": (10, 30, 30, 90), "nose_tip": (40, 80, 50, 70), "right_mid_cheek": (40, 80, 15, 50), "left_mid_cheek": (40, 80, 70, 105),
    "chin_center": (80, 105, 40, 80),
}  # fmt: skip
"""Atoms of a face of boxes: rows, then columns; the subject's right is at the left of the image."""


def _box(rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros((S, S), bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


@pytest.fixture(scope="module")
def found() -> Regions:
    index = {atom: k for k, atom in enumerate(fict.cells(112))}
    atoms = np.full((S, S), index["background"], np.int16)
    for atom, (top, bottom, left, right) in BOXES.items():
        atoms[top:bottom, left:right] = index[atom]
    return Regions(atoms, np.full((S, S), -1, np.int8))


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(90, 160, (S, S, 3), np.uint8)


def _turned(found: Regions, quarter_turns: int) -> Regions:
    return Regions(*(np.rot90(part, quarter_turns).copy() for part in (found.atom_HW, found.arc_HW)))


PLACES = [
    ("nose_tip", _box((40, 52), (50, 70)), "upper"), ("nose_tip", _box((68, 80), (50, 70)), "lower"),
    ("nose_tip", _box((40, 80), (50, 56)), "right"), ("nose_tip", _box((40, 80), (64, 70)), "left"), ("nose_tip", _box((55, 65), (57, 63)), "centre"),
    ("right_cheek", _box((40, 80), (38, 50)), "inner"), ("right_cheek", _box((40, 80), (15, 25)), "outer"),
    ("left_cheek", _box((40, 80), (70, 80)), "inner"), ("left_cheek", _box((40, 80), (95, 105)), "outer"),
    ("nose_tip", _box((40, 80), (50, 70)), None),
]  # fmt: skip


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
@pytest.mark.parametrize(("concept", "mask", "place"), PLACES)
def test_the_place_is_the_subjects_however_the_head_is_turned(
    found: Regions, concept: str, mask: NDArray[np.bool_], place: str | None, quarter_turns: int
) -> None:
    claim = claim_for(concept, np.rot90(mask, quarter_turns), _turned(found, quarter_turns), UNREMARKABLE, None)
    assert claim.place == place


def test_extent_and_reach_are_the_share_of_the_concept(found: Regions) -> None:
    reaches = [claim_for("nose_tip", _box((40, 40 + rows), (50, 70)), found, UNREMARKABLE, None).reach for rows in (4, 12, 24, 36)]
    assert reaches == ["patch", "part", "most", "whole"]


def test_neighbours_fill_most_of_the_ring_and_lie_where_they_are_said_to(found: Regions) -> None:
    chin = claim_for("chin", _box((82, 105), (40, 80)), found, UNREMARKABLE, None)
    assert chin.neighbours == ("background",)
    patch = claim_for("right_cheek", _box((58, 62), (28, 34)), found, UNREMARKABLE, None)
    assert (patch.neighbours, patch.bearing) == (("right_cheek",), "around")
    nose = claim_for("nose_tip", _box((40, 80), (50, 70)), found, UNREMARKABLE, None)
    assert nose.neighbours == ("cheeks", "chin_jaw")
    tuft = claim_for("background", _box((0, 10), (35, 85)), found, UNREMARKABLE, None)
    assert (tuft.neighbours, tuft.bearing) == (("forehead",), "below")
    brow = claim_for("forehead", _box((10, 30), (30, 90)), found, UNREMARKABLE, None)
    assert brow.neighbours == ("background",)
    below = claim_for("chin", _box((105, 110), (40, 80)), found, UNREMARKABLE, None)
    assert below.neighbours == ("background",)
    strip = claim_for("chin", _box((81, 84), (52, 68)), found, UNREMARKABLE, None)
    assert strip.neighbours == ("chin",)


def test_a_claims_concept_overlaps_its_mask_and_every_name_is_one_of_fict(found: Regions, image: NDArray[np.uint8]) -> None:
    for concept, mask, _ in PLACES:
        claim = claim_for(concept, mask, found, measure_region(image, mask), None)
        assert (found.mask(claim.concept) & mask).any()
        assert claim.extent > 0
        assert set(claim.neighbours) <= set(fict.concepts())


ratios, shifts = st.floats(0.1, 8), st.floats(-90, 90)
measured = st.fixed_dictionaries({name: shifts if name.endswith("_shift") else ratios for name in UNREMARKABLE})


@given(fake=measured, twin=st.none() | measured, concept=st.sampled_from(list(fict.concepts())), extent=st.floats(0, 1))
def test_findings_depart_to_their_side_on_the_fake_alone_and_from_the_twin(
    fake: dict[str, float], twin: dict[str, float] | None, concept: str, extent: float
) -> None:
    findings = departures(concept, extent, fake, twin)
    assert [each.strength for each in findings] == sorted((each.strength for each in findings), reverse=True)
    for each in findings:
        name, sign = KINDS[each.kind]
        mean, spread = usual(concept, name, extent)
        assert sign * (comparable(fake)[name] - mean) / spread >= VISIBLE - 1e-6
        assert twin is None or sign * (comparable(fake)[name] - comparable(twin)[name]) / spread >= BELIEVED - 1e-3
        assert each.amount > 0
        assert sign * (each.against_basis - (0 if each.unit == "levels" else 1)) > -1e-3


def test_a_fake_like_its_twin_has_no_finding(image: NDArray[np.uint8], found: Regions) -> None:
    mask = found.mask("nose_tip")
    values = measure_region(image, mask)
    claim = claim_for("nose_tip", mask, found, values, values)
    assert (claim.kind, claim.strength, claim.also) == ("altered", 0.0, None)


def test_a_reddened_place_is_told_as_redder_by_what_was_added(image: NDArray[np.uint8], found: Regions) -> None:
    mask = found.mask("nose_tip")
    fake = image.copy()
    fake[mask, 0] = np.clip(fake[mask, 0].astype(int) + 40, 0, 255)
    claim = claim_for("nose_tip", mask, found, measure_region(fake, mask), measure_region(image, mask))
    assert claim.kind == "redder"
    assert abs(claim.finding.value - 40) < 4


def test_second_findings_measure_something_else(image: NDArray[np.uint8], found: Regions) -> None:
    mask = found.mask("nose_tip")
    fake = image.copy()
    fake[mask] = np.clip(fake[mask].astype(int) + np.array((60, 30, 0)), 0, 255)
    claim = claim_for("nose_tip", mask, found, measure_region(fake, mask), measure_region(image, mask))
    assert claim.also is not None
    assert KINDS[claim.also.kind].measurement != KINDS[claim.kind].measurement
    assert BELIEVED_ALSO <= claim.also.strength <= claim.strength


def test_the_basis_is_the_surroundings_only_where_real_faces_show_no_difference() -> None:
    for concept in ("nose", "left_cheek", "hair", "forehead", "mouth"):
        for name, value in (("brightness_shift", 120.0), ("sharpness_ratio", 6.0)):
            finding = next(each for each in departures(concept, 1.0, UNREMARKABLE | {name: value}, None) if KINDS[each.kind].measurement == name)
            mean, spread = usual(concept, name, 1.0)
            assert (finding.basis == "around") == (abs(mean) < NEUTRAL * spread)


def test_evidence_survives_the_json_line(found: Regions, image: NDArray[np.uint8]) -> None:
    mask = found.mask("nose_tip")
    measured_values = measure_region(image, mask)
    row = ConceptEvidence(mask, measured_values, claim_for("nose_tip", mask, found, measured_values, None)).to_json()
    claim = read_claim(row["claim"])
    assert (row["concept"], row["kind"], row["strength"]) == (claim.concept, claim.kind, claim.strength)
    assert claim.to_json() == row["claim"]


@pytest.mark.parametrize("spoilt", [{"concept": "snout"}, {"place": "front"}, {"finding": {"kind": "uglier"}}])
def test_a_stored_claim_that_does_not_fit_is_refused_by_name(spoilt: dict[str, object]) -> None:
    stored = Claim("nose", Finding("softer", 1.0, 0.8, 1.0, "around")).to_json() | spoilt
    with pytest.raises(ValueError, match=r"snout|place|kind"):
        read_claim(stored)


def test_baseline_knows_every_concept_and_has_no_zero_spread() -> None:
    for concept in fict.concepts():
        for name, _ in KINDS.values():
            mean, spread = usual(concept, name, 0.5)
            assert np.isfinite(mean)
            assert spread >= 0.05


def test_steady_names_what_is_nearest_to_real_faces(found: Regions, image: NDArray[np.uint8]) -> None:
    steady = steady_for(image, found, found.mask("nose"), "nose")
    mask = found.mask("nose")
    values = comparable(measure_region(image, mask))
    off = {name: abs(values[name] - usual("nose", name, 1.0)[0]) / usual("nose", name, 1.0)[1] for name, _ in KINDS.values()}
    assert steady.agree[0] == min(off, key=lambda name: off[name])
    assert steady.farthest == max(off, key=lambda name: off[name])
    assert steady.departure == pytest.approx(max(off.values()), abs=1e-3)


def test_steady_answers_for_faces_and_boxes_too(found: Regions, image: NDArray[np.uint8]) -> None:
    assert steady_for(image, found).concept is None
    assert steady_for(image, found, _box((45, 75), (20, 45))).concept is None
    with pytest.raises(ValueError, match="mesh"):
        steady_for(image, Regions(np.full((S, S), 111, np.int16), found.arc_HW))
