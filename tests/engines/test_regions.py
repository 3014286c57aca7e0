"""Where FICT lies on a face: channels of a parser, summed to concepts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines import fict
from engines.regions import ARC_TAKEN, NUM_CHANNELS, FaceRegions, channels

CONCEPTS = tuple(fict.concepts())


def drawn(seed: int) -> FaceRegions:
    """Shares as a parser gives them: atoms together all of a cell, arcs anything."""
    rng = np.random.default_rng(seed)
    atoms, arcs = rng.dirichlet(np.ones(112), (6, 6)).transpose(2, 0, 1), rng.uniform(0, 1 / 8, (8, 6, 6))
    return FaceRegions(np.concatenate([atoms, arcs]).astype(np.float32))


@given(st.integers(0, 99), st.sampled_from(CONCEPTS))
def test_a_concept_takes_what_its_atoms_take_together(seed: int, concept: str) -> None:
    face = drawn(seed)
    together_HW = np.sum([face.of(atom) for atom in fict.concepts()[concept].atoms], 0)
    np.testing.assert_allclose(face.of(concept), together_HW, atol=1e-6)


@given(st.integers(0, 99))
@pytest.mark.parametrize("depth", [5, 14, 33, 112])
def test_the_cells_of_every_depth_share_out_the_crop(depth: fict.Depth, seed: int) -> None:
    face = drawn(seed)
    np.testing.assert_allclose(np.sum([face.of(cell) for cell in fict.cells(depth)], 0), 1, atol=1e-5)


def test_no_share_exceeds_a_cell() -> None:
    for rim in (False, True):
        assert FaceRegions(np.ones((NUM_CHANNELS, 4, 4), np.float32)).of("face_boundary", rim=rim).max() == 1


@given(st.integers(0, 99), st.sampled_from(CONCEPTS))
def test_a_rim_only_adds_and_not_where_the_region_is_not(seed: int, concept: str) -> None:
    face = drawn(seed)
    plain_HW, grown_HW = face.of(concept), face.of(concept, rim=True)
    assert (grown_HW >= plain_HW).all() and not grown_HW[plain_HW == 0].any()


def face_of(**places: tuple[slice, slice]) -> FaceRegions:
    """Background, but for these atoms."""
    shares = np.zeros((NUM_CHANNELS, 64, 64), np.float32)
    shares[channels("background")] = 1
    for atom, where in places.items():
        shares[:112, where[0], where[1]] = 0
        shares[channels(atom)[0], where[0], where[1]] = 1
    return FaceRegions(shares)


TOP, MIDDLE = slice(8, 20), slice(24, 40)
FACE = face_of(right_iris=(TOP, slice(8, 20)), left_iris=(TOP, slice(44, 56)), nose_tip=(MIDDLE, slice(26, 38)))


def masked(*where: tuple[slice, slice]) -> NDArray[np.bool_]:
    mask_HW = np.zeros((64, 64), bool)
    for rows, columns in where:
        mask_HW[rows, columns] = True
    return mask_HW


def test_what_is_masked_is_named_the_heaviest_first() -> None:
    named = FACE.named(masked((MIDDLE, slice(26, 38)), (TOP, slice(8, 20))), most=4)
    assert [fict.concepts()[one].path[:2][-1] for one in named] == ["nose", "eyes"] and len(named) == 2
    assert FACE.named(masked((MIDDLE, slice(26, 38)), (TOP, slice(8, 20))), most=1) == named[:1]


def test_nothing_is_named_where_nothing_is_masked() -> None:
    assert FACE.named(masked(), most=4) == ()


def test_an_asked_region_is_named_by_what_lies_in_it() -> None:
    everything = np.ones((64, 64), bool)
    assert all("eyes" in fict.concepts()[one].path for one in FACE.named(everything, within="eyes", most=4))
    assert FACE.named(everything, within="right_iris", most=4) == ("right_iris",)
    assert FACE.named(everything, within="face_boundary", most=4) == ("face_boundary",)


def test_what_is_no_concept_has_no_channels() -> None:
    with pytest.raises(KeyError, match="third_eye"):
        channels("third_eye")


@given(st.integers(0, 99), st.integers(5, 40))
def test_each_pixel_goes_to_the_atom_that_interpolates_highest(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (112, 6, 6))  # some atoms rule, as on a face
    atoms = np.exp(logits) / np.exp(logits).sum(0)
    face = FaceRegions(np.concatenate([atoms, rng.uniform(0, 1, (8, 6, 6))]).astype(np.float32))
    at = np.clip((np.arange(size) + 0.5) * 6 / size - 0.5, 0, 5)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(6)))
    stretched = weights @ face.shares_AHW @ weights.T
    found, taken = face.drawn(size), np.take_along_axis(stretched[:112], face.drawn(size).atom_HW[None].astype(int), 0)[0]
    np.testing.assert_allclose(taken, stretched[:112].max(0), atol=1e-5)
    arcs_HW = stretched[112:].max(0)
    sure = np.abs(arcs_HW - ARC_TAKEN) > 1e-5
    np.testing.assert_array_equal((found.arc_HW >= 0)[sure], (arcs_HW >= ARC_TAKEN)[sure])


def test_drawn_regions_are_those_that_were_drawn() -> None:
    found = FACE.drawn(64)
    for concept in ("right_iris", "left_iris", "nose_tip", "nose"):
        np.testing.assert_array_equal(found.mask(concept), FACE.of(concept) > 0.5)
    assert found.visible == {"right_iris", "left_iris", "nose_tip", "background"} and found.arc_HW.max() == -1
    assert face_of(right_iris=(slice(0, 8), slice(0, 8))).drawn(224).mask("right_iris").sum() == pytest.approx(28**2, abs=1)  # the corner is rounded
