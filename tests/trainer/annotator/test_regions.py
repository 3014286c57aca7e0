"""FICT on a portrait: one atom a pixel, the subject's sides, eyes by measurement, what the image rules find and leave alone."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines import fict
from engines.regions import MIN_VISIBLE_PX
from trainer.annotator import mesh, regions
from trainer.annotator.face_axes import NOSE_TIP, face_axes

pytest.importorskip("ai_edge_litert", reason="the mesh needs the annotate extra (ai-edge-litert)")

ImageHWC = NDArray[np.uint8]
SIZE = 224
FROM_RULES = (
    {"upper_teeth", "lower_teeth", "tongue", "oral_cavity", "eyeglasses", "headwear", "jewellery", "clothing", "background"}
    | {"hair_top", "hair_fringe", "hair_right_side", "hair_left_side", "neck_front", "neck_right", "neck_left"}
    | {f"{side}_ear_{part}" for side in ("right", "left") for part in ("helix", "lobe")}
)


@pytest.fixture(scope="module")
def portrait_HWC() -> ImageHWC:
    """NASA's astronaut portrait in scikit-image (public domain), cut to head and collar."""
    data = pytest.importorskip("skimage.data")
    cut: ImageHWC = cv2.resize(np.ascontiguousarray(data.astronaut()[40:220, 135:315]), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return cut


@pytest.fixture(scope="module")
def face(portrait_HWC: ImageHWC) -> mesh.Mesh:
    return mesh.FaceMesh()(portrait_HWC)


@pytest.fixture(scope="module")
def found(face: mesh.Mesh, portrait_HWC: ImageHWC) -> regions.Regions:
    return regions.regions(face, portrait_HWC, SIZE)


def _center(region_HW: NDArray[np.bool_]) -> NDArray[np.float64]:
    ys, xs = np.nonzero(region_HW)
    return np.array([xs.mean(), ys.mean()])


def test_the_mesh_gives_ninety_two_atoms_of_an_open_face(found: regions.Regions) -> None:
    from_mesh = set(fict.cells(112)) - FROM_RULES
    assert len(from_mesh) == 92
    assert from_mesh <= found.visible


def test_subjects_right_is_on_the_images_left(found: regions.Regions) -> None:
    for concept in fict.concepts().values():
        if concept.phrase.startswith("right "):
            twin = fict.by_phrase()[concept.phrase.replace("right ", "left ", 1)]
            pair = found.mask(concept.id), found.mask(twin)
            if all(int(region.sum()) >= MIN_VISIBLE_PX for region in pair):
                assert _center(pair[0])[0] < _center(pair[1])[0], concept.id


def test_atoms_divide_the_crop_and_parents_hold_their_children(found: regions.Regions) -> None:
    parts = np.sum([found.mask(group) for group in fict.cells(5)], 0)
    assert parts.max() == 1
    assert int(parts.sum()) >= 0.99 * parts.size  # cells under MIN_VISIBLE_PX are left out
    assert (found.mask("mouth") <= found.mask("lower_face")).all()
    assert int(found.atom_pixels.sum()) == SIZE * SIZE


def test_pupil_lies_in_iris_lies_in_sclera_between_lash_lines_and_canthi(found: regions.Regions, face: mesh.Mesh) -> None:
    for side, iris in (("right", face.right_iris_52), ("left", face.left_iris_52)):
        assert iris is not None
        assert float(np.linalg.norm(_center(found.mask(f"{side}_pupil")) - iris[0])) < 1.0
        upper, lower = _center(found.mask(f"{side}_upper_lash_line")), _center(found.mask(f"{side}_lower_lash_line"))
        assert upper[1] < iris[0, 1] < lower[1]
        inner, outer = _center(found.mask(f"{side}_inner_canthus")), _center(found.mask(f"{side}_outer_canthus"))
        assert min(inner[0], outer[0]) < iris[0, 0] < max(inner[0], outer[0])
        assert abs(inner[0] - SIZE / 2) < abs(outer[0] - SIZE / 2)


def test_an_eye_without_an_iris_shows_no_eyeball(face: mesh.Mesh, portrait_HWC: ImageHWC) -> None:
    shut = face.landmarks_NM2.copy()
    contour = list(mesh.EYES["right"])
    shut[0, contour, 1] = shut[0, contour, 1].mean()
    seen = regions.regions(mesh.Mesh(shut, face.presence, None, face.left_iris_52), portrait_HWC, SIZE).visible
    eyeball = set(fict.concepts()["right_eyeball"].atoms)
    assert not seen & (eyeball | {"right_lower_lash_line"})
    assert {"right_upper_lash_line", "right_inner_canthus", "left_pupil"} <= seen


def test_rules_find_what_the_portrait_shows_and_nothing_else(found: regions.Regions, portrait_HWC: ImageHWC) -> None:
    assert {"upper_teeth", "hair_right_side", "hair_left_side", "neck_front", "clothing", "background"} <= found.visible
    assert not found.visible & {"jewellery", "headwear", "eyeglasses", "tongue"}
    brightness = portrait_HWC.astype(np.float32).mean(-1)
    hair, background = (float(np.median(brightness[found.mask(name)])) for name in ("hair", "background"))
    assert hair < background - 40  # brown hair before a pale wall


def test_hair_is_found_by_colour_not_by_place_alone(face: mesh.Mesh, portrait_HWC: ImageHWC, found: regions.Regions) -> None:
    """With the wall's colour where the hair of one side was, most of that side is no longer hair."""
    axes = face_axes(face.landmarks_NM2[0], (SIZE, SIZE), SIZE)
    shorn_HW = ~axes.oval_HW & (axes.across_HW > 0.8) & (axes.down_HW < 0.9)
    shorn = portrait_HWC.copy()
    shorn[shorn_HW] = np.median(portrait_HWC[found.mask("background")], 0)
    after = regions.regions(face, shorn, SIZE)
    was, still = (int((r.mask("hair") & shorn_HW).sum()) for r in (found, after))
    assert was > 1500 and still < 0.5 * was
    assert int(after.mask("hair_right_side").sum()) > 0.8 * int(found.mask("hair_right_side").sum())


def test_a_painted_frame_is_eyeglasses(face: mesh.Mesh, portrait_HWC: ImageHWC, found: regions.Regions) -> None:
    worn, frame = portrait_HWC.copy(), np.zeros((SIZE, SIZE), np.uint8)
    (right_x, right_y), (left_x, left_y) = (face.landmarks_NM2[0][list(mesh.EYES[side])].mean(0).astype(int).tolist() for side in ("right", "left"))
    for center in ((right_x, right_y + 3), (left_x, left_y + 3)):
        cv2.ellipse(frame, center, (18, 13), 0, 0, 360, 1, 2)
    cv2.line(frame, (right_x + 18, right_y), (left_x - 18, left_y), 1, 2)
    worn[frame > 0] = 20
    after = regions.regions(face, worn, SIZE)
    assert "eyeglasses" not in found.visible
    assert float(after.mask("eyeglasses")[frame > 0].mean()) > 0.7


def test_a_coloured_cap_is_headwear_and_not_hair(face: mesh.Mesh, portrait_HWC: ImageHWC) -> None:
    axes = face_axes(face.landmarks_NM2[0], (SIZE, SIZE), SIZE)
    cap = (axes.down_HW < -0.8) & (np.hypot(axes.across_HW, axes.down_HW + 0.8) < 0.9)
    capped = portrait_HWC.copy()
    capped[cap] = (40, 60, 200)
    after = regions.regions(face, capped, SIZE)
    assert float(after.mask("headwear")[cap].mean()) > 0.5
    assert float(cap[after.mask("headwear")].mean()) > 0.8
    assert float(after.mask("hair")[cap].mean()) < 0.2


def test_a_closed_mouth_shows_no_inside(face: mesh.Mesh, portrait_HWC: ImageHWC) -> None:
    closed = face.landmarks_NM2.copy()
    closed[0, [14, 87, 317, 88, 95, 178, 318, 324, 402]] = closed[0, [13, 82, 312, 191, 80, 81, 415, 310, 311]]
    seen = regions.regions(mesh.Mesh(closed, face.presence), portrait_HWC, SIZE).visible
    assert not seen & set(fict.concepts()["mouth_interior"].atoms)


def test_teeth_are_the_bright_part_of_the_open_mouth(found: regions.Regions, portrait_HWC: ImageHWC) -> None:
    brightness = portrait_HWC.astype(np.float32).mean(-1)
    assert np.median(brightness[found.mask("upper_teeth")]) > np.median(brightness[found.mask("oral_cavity")]) + 20


def test_regions_of_a_larger_crop_are_those_of_the_small_one(face: mesh.Mesh, portrait_HWC: ImageHWC, found: regions.Regions) -> None:
    large = cv2.resize(portrait_HWC, (448, 448), interpolation=cv2.INTER_LINEAR)
    doubled = mesh.Mesh(face.landmarks_NM2 * 2, face.presence, *(None if i is None else i * 2 for i in (face.right_iris_52, face.left_iris_52)))
    again = regions.regions(doubled, large, SIZE)
    assert float((again.atom_HW == found.atom_HW).mean()) > 0.97


def test_ring_runs_around_the_oval_in_eight_arcs(found: regions.Regions) -> None:
    assert set(fict.BOUNDARY_ARCS) <= found.visible
    ring = found.mask(fict.BOUNDARY)
    assert (ring & found.oval_HW).any() and (ring & ~found.oval_HW).any()
    tops = {arc: _center(found.mask(arc))[1] for arc in fict.BOUNDARY_ARCS}
    assert min(tops, key=tops.__getitem__) == "boundary_hairline_center"
    assert max(tops, key=tops.__getitem__) == "boundary_chin"


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.0, 0.2, 1.0, 3.0]), turn=st.floats(-3.1, 3.1), size=st.sampled_from([64, 224]),
    noise=st.booleans(),
)  # fmt: skip
def test_any_mesh_on_any_crop_divides_it(
    face: mesh.Mesh, portrait_HWC: ImageHWC, seed: int, scale: float, turn: float, size: int, noise: bool
) -> None:
    """Faces that are upside down, beyond the crop or a single point: one atom a pixel, sides from the mesh, no error."""
    rng = np.random.default_rng(seed)
    crop = rng.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8) if noise else portrait_HWC
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = (face.landmarks_NM2[0] - SIZE / 2) @ rotation * scale + SIZE / 2 + rng.uniform(-80, 80, 2)
    found = regions.regions(mesh.Mesh(points[None].astype(np.float32), 1.0), crop, size)
    assert found.atom_HW.shape == found.arc_HW.shape == (size, size)
    assert set(np.unique(found.atom_HW).tolist()) <= set(range(112))
    assert int(found.atom_pixels.sum()) == size * size
    assert not found.visible & {"right_iris", "left_pupil", "jewellery"}


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_patch_of_skin_beside_the_cheek_is_an_ear_unless_the_face_turns_that_way(face: mesh.Mesh, portrait_HWC: ImageHWC, side: str) -> None:
    """Skin is painted where an ear would show; the same patch on the far side of a turned face is not one."""
    axes = face_axes(face.landmarks_NM2[0], (SIZE, SIZE), SIZE)
    sign = 1 if side == "left" else -1
    beside = ~axes.oval_HW & (axes.across_HW * sign > 0.8) & (axes.across_HW * sign < 1.2)
    patch = beside & (axes.down_HW > axes.brow) & (axes.down_HW < axes.nose_base + 0.1)
    eared = portrait_HWC.copy()
    eared[~axes.oval_HW & (axes.across_HW * sign > 0.8)] = (60, 60, 60)
    cheeks = portrait_HWC[axes.oval_HW & (axes.down_HW > axes.brow + 0.35) & (axes.down_HW < axes.mouth - 0.2)]
    eared[patch] = cheeks[np.random.default_rng(0).integers(0, len(cheeks), int(patch.sum()))]
    ear = regions.regions(face, eared, SIZE).mask(f"{side}_ear")
    assert float(ear[patch].mean()) > 0.6
    turned = face.landmarks_NM2.copy()
    turned[0, NOSE_TIP, 0] += sign * 0.5 * axes.half_width
    assert not regions.regions(mesh.Mesh(turned, face.presence), eared, SIZE).mask(f"{side}_ear").any()
