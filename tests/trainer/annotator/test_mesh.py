"""The mesh table and the regions it makes: mirror symmetry, the shared proposal, one atom a pixel, the subject's sides."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engines import fict
from trainer.annotator import mesh, regions

pytest.importorskip("ai_edge_litert", reason="the mesh needs the annotate extra (ai-edge-litert)")

SHARED = Path(os.environ.get("FIFA_SHARED", Path(__file__).parents[4] / "shared"))
FIXED = {
    **dict.fromkeys((38, 72, 82), "upper_lip_center"),
    **dict.fromkeys((85, 86, 87), "lower_lip_center"),
    91: "lower_lip_right",
    104: "forehead_lower_right",
}
"""Vertices whose label differs from the shared proposal, which leans to the subject's left there."""


def _other_side(name: str) -> str:
    return "_".join({"right": "left", "left": "right"}.get(word, word) for word in name.split("_"))


@pytest.fixture(scope="module")
def portrait_HWC() -> NDArray[np.uint8]:
    """NASA's astronaut portrait in scikit-image (public domain), cut to the face."""
    data = pytest.importorskip("skimage.data")
    cut: NDArray[np.uint8] = np.ascontiguousarray(data.astronaut()[50:210, 145:305])
    return cut


@pytest.fixture(scope="module")
def found(portrait_HWC: NDArray[np.uint8]) -> regions.Regions:
    face = mesh.FaceMesh()(portrait_HWC)
    return regions.regions(face.landmarks_NM2[0], (160, 160), 224)


def _center_x(region_HW: NDArray[np.bool_]) -> float:
    return float(np.nonzero(region_HW)[1].mean())


def test_every_vertex_has_an_atom_and_its_mirror_has_the_mirrored_one() -> None:
    names = fict.cells(112)
    atoms, mirror = mesh.vertex_atoms(), mesh.vertex_mirror()
    assert (mirror[mirror] == np.arange(mesh.NUM_VERTICES)).all()
    assert atoms.min() >= 0
    assert all(names[atoms[mirror[vertex]]] == _other_side(names[atom]) for vertex, atom in enumerate(atoms))


def test_table_departs_from_the_shared_proposal_only_where_that_leans_to_one_side() -> None:
    source = SHARED / "facts" / "fict.json"
    if not source.exists():
        pytest.skip(f"{source} is not here; set FIFA_SHARED to compare with the proposal")
    proposal = json.loads(source.read_text())["vertex_label"]
    names = fict.cells(112)
    changed = {vertex: names[atom] for vertex, atom in enumerate(mesh.vertex_atoms()) if names[atom] != proposal[str(vertex)]}
    assert changed == FIXED


def test_a_face_has_a_mesh_and_noise_has_none(portrait_HWC: NDArray[np.uint8]) -> None:
    find = mesh.FaceMesh()
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3)).astype(np.uint8)
    assert find(portrait_HWC).presence >= mesh.PRESENCE_MIN
    assert find(noise).presence < 0.01


def test_a_face_too_small_for_the_model_is_found_in_the_middle(portrait_HWC: NDArray[np.uint8]) -> None:
    wide = np.full((320, 320, 3), 127, np.uint8)
    wide[80:240, 80:240] = portrait_HWC
    found = mesh.FaceMesh()(wide)
    assert found.presence >= mesh.PRESENCE_MIN
    assert 80 < found.landmarks_NM2[0, 1, 0] < 240


def test_subjects_right_is_on_the_images_left(found: regions.Regions) -> None:
    for concept in fict.concepts().values():
        if concept.phrase.startswith("right "):
            twin = fict.by_phrase()[concept.phrase.replace("right ", "left ", 1)]
            pair = found.mask(concept.id), found.mask(twin)
            if all(int(region.sum()) >= regions.MIN_VISIBLE_PX for region in pair):
                assert _center_x(pair[0]) < _center_x(pair[1]), concept.id


def test_mirrored_portrait_swaps_the_sides(portrait_HWC: NDArray[np.uint8]) -> None:
    find = mesh.FaceMesh()
    plain, flipped = (find(np.ascontiguousarray(image)).landmarks_NM2[0] for image in (portrait_HWC, portrait_HWC[:, ::-1]))
    mirrored = flipped[mesh.vertex_mirror()] * [-1, 1] + [160, 0]
    assert float(np.abs(mirrored - plain).mean()) < 4.0


def test_atoms_divide_the_crop_and_parents_hold_their_children(found: regions.Regions) -> None:
    parts = np.sum([found.mask(group) for group in fict.cells(5)], 0)
    assert parts.max() == 1
    assert int(parts.sum()) >= 0.99 * parts.size  # cells under MIN_VISIBLE_PX are left out
    assert (found.mask("mouth") <= found.mask("lower_face")).all()
    assert not found.mask("scene")[found.oval_HW].any()


def test_what_the_mesh_does_not_give_is_not_visible(found: regions.Regions) -> None:
    underived = {"eyeglasses", "headwear", "jewellery", "hair_fringe", "right_upper_lash_line", "left_pupil", "right_ear_lobe", "clothing"}
    assert not found.visible & underived
    assert {"nose_tip", "right_iris", "left_iris", "philtrum", "hair_top", "neck_front"} <= found.visible


def test_ring_runs_around_the_oval_in_eight_arcs(found: regions.Regions) -> None:
    assert set(fict.BOUNDARY_ARCS) <= found.visible
    ring = found.mask(fict.BOUNDARY)
    assert (ring & found.oval_HW).any() and (ring & ~found.oval_HW).any()
    tops = {arc: float(np.nonzero(found.mask(arc))[0].mean()) for arc in fict.BOUNDARY_ARCS}
    assert min(tops, key=tops.__getitem__) == "boundary_hairline_center"
    assert max(tops, key=tops.__getitem__) == "boundary_chin"
