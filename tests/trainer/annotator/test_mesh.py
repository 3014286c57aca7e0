"""The mesh table and what the two models see: mirror symmetry, the shared proposal, small faces, irises."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from engines import fict
from trainer.annotator import mesh

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
def find() -> mesh.FaceMesh:
    return mesh.FaceMesh()


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


def test_eye_contours_mirror_each_other() -> None:
    assert tuple(int(mesh.vertex_mirror()[vertex]) for vertex in mesh.EYES["right"]) == mesh.EYES["left"]


def test_a_face_has_a_mesh_and_noise_has_none(find: mesh.FaceMesh, portrait_HWC: NDArray[np.uint8]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3)).astype(np.uint8)
    assert find(portrait_HWC).presence >= mesh.PRESENCE_MIN
    nothing = find(noise)
    assert nothing.presence < 0.01
    assert nothing.right_iris_52 is None and nothing.left_iris_52 is None


def test_a_face_too_small_for_the_model_is_found_in_the_middle(find: mesh.FaceMesh, portrait_HWC: NDArray[np.uint8]) -> None:
    wide = np.full((320, 320, 3), 127, np.uint8)
    wide[80:240, 80:240] = portrait_HWC
    found = find(wide)
    assert found.presence >= mesh.PRESENCE_MIN
    assert 80 < found.landmarks_NM2[0, 1, 0] < 240


def test_mirrored_portrait_swaps_the_sides(find: mesh.FaceMesh, portrait_HWC: NDArray[np.uint8]) -> None:
    plain, flipped = (find(np.ascontiguousarray(image)) for image in (portrait_HWC, portrait_HWC[:, ::-1]))
    mirrored = flipped.landmarks_NM2[0][mesh.vertex_mirror()] * [-1, 1] + [160, 0]
    assert float(np.abs(mirrored - plain.landmarks_NM2[0]).mean()) < 4.0
    assert plain.right_iris_52 is not None and flipped.left_iris_52 is not None
    assert float(np.linalg.norm(plain.right_iris_52[0] - (flipped.left_iris_52[0] * [-1, 1] + [160, 0]))) < 1.5


@pytest.mark.parametrize("side", ["right", "left"])
def test_an_iris_lies_in_its_eye_on_the_darkest_spot(find: mesh.FaceMesh, portrait_HWC: NDArray[np.uint8], side: str) -> None:
    found = find(portrait_HWC)
    iris = found.right_iris_52 if side == "right" else found.left_iris_52
    assert iris is not None
    contour = found.landmarks_NM2[0][list(mesh.EYES[side])]
    assert cv2.pointPolygonTest(contour, (float(iris[0, 0]), float(iris[0, 1])), measureDist=False) > 0
    width = float(np.linalg.norm(contour[0] - contour[8]))
    assert mesh.IRIS_RADIUS[0] < mesh.iris_radius(iris) / width < mesh.IRIS_RADIUS[1]
    gray = cv2.GaussianBlur(cv2.cvtColor(portrait_HWC, cv2.COLOR_RGB2GRAY), (0, 0), 1.0)
    eyeball = np.zeros(gray.shape, np.uint8)
    cv2.fillPoly(eyeball, [np.round(contour).astype(np.int32)], 1)
    x, y = np.round(iris[0]).astype(int)
    assert gray[y, x] < np.quantile(gray[eyeball > 0], 0.3)


def test_the_iris_follows_the_gaze(find: mesh.FaceMesh, portrait_HWC: NDArray[np.uint8]) -> None:
    """Move the picture of the eye inside its lids by three pixels: the iris moves along, the corners stay."""
    before = find(portrait_HWC)
    assert before.right_iris_52 is not None
    contour = before.landmarks_NM2[0][list(mesh.EYES["right"])]
    within = np.zeros(portrait_HWC.shape[:2], np.float32)
    cv2.fillPoly(within, [np.round(contour).astype(np.int32)], 1.0)
    alpha = cv2.GaussianBlur(within, (0, 0), 0.7)[..., None]
    looking = np.roll(portrait_HWC, 3, axis=1) * alpha + portrait_HWC * (1 - alpha)
    after = find(looking.astype(np.uint8))
    assert after.right_iris_52 is not None
    assert 1.0 < after.right_iris_52[0, 0] - before.right_iris_52[0, 0] < 5.0
    assert float(np.linalg.norm(after.landmarks_NM2[0, 133] - before.landmarks_NM2[0, 133])) < 1.5


def test_eyes_that_are_small_or_painted_shut_show_no_iris(find: mesh.FaceMesh, portrait_HWC: NDArray[np.uint8]) -> None:
    tiny = cv2.resize(portrait_HWC, (56, 56), interpolation=cv2.INTER_AREA)
    found = find(tiny)
    assert found.presence >= mesh.PRESENCE_MIN
    assert found.right_iris_52 is None and found.left_iris_52 is None
