"""Selection of concepts: what the rules promise for any mask, at every depth and within any asked area; arcs of the boundary."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines import fict
from engines.naming import COVERED
from engines.regions import MIN_VISIBLE_PX
from trainer.annotator import mesh, regions
from trainer.annotator.artifact import ArtifactMask
from trainer.annotator.concepts import MAX_CONCEPTS, MIN_CONCEPT_PX, select_arc, select_concepts

pytest.importorskip("ai_edge_litert", reason="regions need the annotate extra (ai-edge-litert)")

SIZE = 224
DEPTHS: tuple[fict.Depth | None, ...] = (None, 5, 14, 33, 112)
ATOMS = fict.cells(112)
NODES = tuple(node.id for node in fict.concepts().values())


@pytest.fixture(scope="module")
def found() -> regions.Regions:
    """FICT on NASA's astronaut portrait in scikit-image (public domain)."""
    data = pytest.importorskip("skimage.data")
    portrait = cv2.resize(np.ascontiguousarray(data.astronaut()[40:220, 135:315]), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return regions.regions(mesh.FaceMesh()(portrait), portrait, SIZE)


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.bool_]:
    """Up to three ellipses anywhere on the crop."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(draw(st.integers(1, 3))):
        center, axes = (tuple(draw(st.integers(low, high)) for _ in range(2)) for low, high in ((20, 203), (3, 60)))
        cv2.ellipse(mask, center, axes, draw(st.integers(0, 179)), 0, 360, 1, -1)
    return mask.astype(bool)


def _other_side(name: str) -> str:
    return "_".join({"right": "left", "left": "right"}.get(word, word) for word in name.split("_"))


def _mirrored(found: regions.Regions) -> regions.Regions:
    """The same face in a mirror: pixels change sides, and so do the names of atoms and arcs."""
    atoms = np.array([ATOMS.index(_other_side(atom)) for atom in ATOMS], np.int16)
    arcs = np.array([*(fict.BOUNDARY_ARCS.index(_other_side(arc)) for arc in fict.BOUNDARY_ARCS), -1], np.int8)
    return regions.MeshRegions(atoms[found.atom_HW][:, ::-1], arcs[found.arc_HW][:, ::-1], found.oval_HW[:, ::-1])


def _atoms_of(names: list[str], found: regions.Regions) -> set[str]:
    return {atom for name in names for atom in fict.concepts()[name].atoms} & found.visible


@settings(max_examples=60)
@given(mask_HW=masks(), depth=st.sampled_from(DEPTHS), within=st.none() | st.sampled_from(NODES), most=st.integers(1, 8))
def test_every_selection_keeps_its_promises(
    found: regions.Regions, mask_HW: NDArray[np.bool_], depth: fict.Depth | None, within: str | None, most: int
) -> None:
    names = select_concepts(found, mask_HW, depth=depth, within=within, max_concepts=most)
    assert len(names) <= most and len(set(names)) == len(names)
    mass = [int((found.mask(name) & mask_HW).sum()) for name in names]
    assert all(pixels >= MIN_CONCEPT_PX for pixels in mass)
    off_head = [fict.concepts()[name].path[0] == "scene" for name in names]
    assert list(zip(off_head, [-pixels for pixels in mass], strict=True)) == sorted(zip(off_head, [-pixels for pixels in mass], strict=True))
    atoms = [atom for name in names for atom in fict.concepts()[name].atoms]
    assert len(set(atoms)) == len(atoms)  # no parent beside its descendant
    assert all(set(fict.concepts()[name].atoms) & found.visible for name in names)
    if within is not None:
        assert all(within in fict.concepts()[name].path for name in names)
    if depth is not None and within is None:
        assert set(names) <= set(fict.cells(depth))


@settings(max_examples=40)
@given(mask_HW=masks(), depth=st.sampled_from(DEPTHS))
def test_a_mirrored_mask_on_the_mirrored_face_has_the_mirrored_names(
    found: regions.Regions, mask_HW: NDArray[np.bool_], depth: fict.Depth | None
) -> None:
    plain = select_concepts(found, mask_HW, depth=depth, max_concepts=112)
    flipped = select_concepts(_mirrored(found), mask_HW[:, ::-1], depth=depth, max_concepts=112)
    assert {_other_side(name) for name in plain} == set(flipped)


@settings(max_examples=40)
@given(mask_HW=masks(), more_HW=masks())
def test_what_is_covered_stays_named_when_the_mask_grows(found: regions.Regions, mask_HW: NDArray[np.bool_], more_HW: NDArray[np.bool_]) -> None:
    """The share of an atom can only grow with the mask; its share of the mask's mass may fall, and is no promise."""
    shares = np.bincount(found.atom_HW[mask_HW], minlength=112) / np.maximum(found.atom_pixels, 1)
    covered = {atom for atom, share in zip(ATOMS, shares, strict=True) if share >= COVERED and atom in found.visible}
    for depth in (None, 112):
        named = select_concepts(found, mask_HW | more_HW, depth=depth, max_concepts=112, min_px=1)
        assert covered <= _atoms_of(named, found)


@settings(max_examples=30)
@given(mask_HW=masks(), node=st.sampled_from([name for name in NODES if not name.startswith("boundary") and name != fict.BOUNDARY]))
def test_a_region_query_sees_only_the_mask_inside_the_region(found: regions.Regions, mask_HW: NDArray[np.bool_], node: str) -> None:
    inside = mask_HW & found.mask(node)
    for depth in DEPTHS:
        assert select_concepts(found, mask_HW, depth=depth, within=node) == select_concepts(found, inside, depth=depth, within=node)


def test_invisible_atoms_are_never_named_nor_counted(found: regions.Regions) -> None:
    """An atom below the visible size is named at no depth, though the mask holds all of it."""
    atom_HW = found.atom_HW.copy()
    spot = np.flatnonzero((atom_HW == ATOMS.index("nose_tip")).ravel())
    atom_HW.ravel()[spot[MIN_VISIBLE_PX - 1 :]] = ATOMS.index("columella")
    hidden = regions.MeshRegions(atom_HW, found.arc_HW, found.oval_HW)
    assert "nose_tip" in found.visible and "nose_tip" not in hidden.visible
    everywhere = np.ones((SIZE, SIZE), bool)
    assert set(select_concepts(hidden, everywhere, depth=112, max_concepts=112, min_px=1)) == hidden.visible & set(ATOMS)


@pytest.mark.parametrize("depth", [5, 14, 33, 112])
def test_the_whole_crop_names_every_visible_cell_of_a_depth(found: regions.Regions, depth: fict.Depth) -> None:
    everything = select_concepts(found, np.ones((SIZE, SIZE), bool), depth=depth, max_concepts=112, min_px=1)
    assert set(everything) == {cell for cell in fict.cells(depth) if set(fict.concepts()[cell].atoms) & found.visible}


@pytest.mark.parametrize("depth", [5, 14, 33, 112])
def test_a_cell_masked_alone_is_named_alone(found: regions.Regions, depth: fict.Depth) -> None:
    for cell in fict.cells(depth):
        if int(found.mask(cell).sum()) >= MIN_CONCEPT_PX:
            assert select_concepts(found, found.mask(cell), depth=depth) == [cell]


@pytest.mark.parametrize("depth", [14, 33])
def test_two_pixels_more_lose_no_name_and_two_less_add_none(found: regions.Regions, depth: fict.Depth) -> None:
    """Over the masks of all sub-parts of some size: names before and after their edge moved."""
    kernel, lost, added, before_all = np.ones((5, 5), np.uint8), 0, 0, 0
    for cell in fict.cells(33):
        mask = found.mask(cell)
        if int(mask.sum()) >= 400:
            before, more, less = (
                set(select_concepts(found, moved.astype(bool), depth=depth))
                for moved in (mask, cv2.dilate(mask.astype(np.uint8), kernel), cv2.erode(mask.astype(np.uint8), kernel))
            )
            lost, added, before_all = lost + len(before - more), added + len(less - before), before_all + len(before)
    assert before_all > 10
    assert lost == 0 and added == 0


def _selected(found: regions.Regions, *concepts: str, coarsest: str = "part", within: str | None = None) -> list[str]:
    mask = np.any([found.mask(concept) for concept in concepts], 0)
    return select_concepts(found, mask, coarsest="group" if coarsest == "group" else "part", within=within)


def test_a_whole_part_is_named_by_the_part_and_one_side_by_its_sub_part(found: regions.Regions) -> None:
    assert _selected(found, "mouth") == ["mouth"]
    assert _selected(found, "right_cheek") == ["right_cheek"]
    assert _selected(found, "nose_tip") == ["nose_tip"]


def test_groups_stand_for_their_parts_only_when_asked(found: regions.Regions) -> None:
    assert _selected(found, "mid_face", coarsest="group") == ["mid_face"]
    assert set(_selected(found, "mid_face")) == {"nose", "cheeks"}


def test_an_asked_area_is_answered_at_its_own_level_or_below(found: regions.Regions) -> None:
    assert _selected(found, "mid_face", "mouth", within="cheeks") == ["cheeks"]
    assert _selected(found, "right_cheek", "mouth", within="cheeks") == ["right_cheek"]
    assert _selected(found, "face_boundary", within="boundary_chin") == ["boundary_chin"]
    assert set(_selected(found, "face_boundary", within="face_boundary")) <= set(fict.BOUNDARY_ARCS)
    assert _selected(found, "mouth", within="nose") == []
    assert select_concepts(found, found.mask("nose"), depth=14, within="nose_tip") == ["nose_tip"]


def test_an_unknown_area_is_refused_by_name(found: regions.Regions) -> None:
    with pytest.raises(ValueError, match="'third_eye' is no FICT concept"):
        select_concepts(found, found.oval_HW, within="third_eye")


def test_what_lies_off_the_head_comes_last(found: regions.Regions) -> None:
    assert _selected(found, "background", "nose")[-1] == "background"


def test_a_lightly_covered_atom_is_not_named(found: regions.Regions) -> None:
    mask = found.mask("mouth")
    stray = np.flatnonzero(found.mask("forehead_lower_center").ravel())
    mask.ravel()[stray[: len(stray) // 10]] = True
    assert select_concepts(found, mask) == ["mouth"]


def test_an_empty_mask_names_nothing(found: regions.Regions) -> None:
    for depth in DEPTHS:
        assert select_concepts(found, np.zeros((SIZE, SIZE), bool), depth=depth, min_px=0) == []
    assert MAX_CONCEPTS == 6


def test_an_arc_is_named_only_where_the_ring_holds_the_difference(found: regions.Regions) -> None:
    even = np.full((SIZE, SIZE), 10.0, np.float32)
    jaw = np.where(found.mask("boundary_jaw_left"), 30.0, even).astype(np.float32)
    assert select_arc(found, ArtifactMask(found.oval_HW | found.mask(fict.BOUNDARY), jaw, {})) == "boundary_jaw_left"
    assert select_arc(found, ArtifactMask(found.oval_HW | found.mask(fict.BOUNDARY), even, {})) is None
    assert select_arc(found, ArtifactMask(np.zeros((SIZE, SIZE), bool), jaw, {})) is None
