"""FICT on one face: where each atom and each arc of the face boundary lies.

92 atoms come from the mesh: each pixel of the oval takes its nearest vertex's atom; eyeballs, lash lines and canthi are drawn from the contours of
the eyes and the measured irises. The other 20 come from stated image rules (`surroundings`, `mouth_and_glasses`). Every pixel has one atom; what is
not found is not visible. Jewellery is never found: its pixels go to what it lies on.
"""

import math
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from engines import fict
from engines.regions import Regions
from trainer.annotator.face_axes import OVAL, FaceAxes, face_axes, polygon
from trainer.annotator.mesh import EYE_OPEN_MIN, EYES, ImageHWC, Mesh, iris_radius, vertex_atoms
from trainer.annotator.mouth_and_glasses import eyeglasses, mouth_interior
from trainer.annotator.surroundings import Surroundings, cheek_colour, divide

RING_SHARE = 0.03
"""Half-width of the boundary ring as a fraction of the oval's width."""
PUPIL_SHARE = 0.42
"""Radius of the pupil over that of the iris: 4.5-5 mm of 11.8 in indoor light; the models measure the iris alone."""
LASH_SHARE = 0.09
"""Thickness of a lash line over the width of the eye."""
CANTHUS_SHARE = 0.12
"""Radius of the disc at a corner of the eye over its width."""
SKIN_REACH = 0.25
"""Skin above the oval is forehead up to that many half-widths off it (a bald head, a high forehead)."""
CHEEK_REACH = 0.08
EAR_REACH, EAR_HEIGHT, EAR_WIDTH, LOBE_SHARE = 0.45, 0.35, 0.1, 0.3
"""Ears: skin beside the oval, not farther off it, over at least that share of the way from brow to nose base, at least that broad on average (slivers
of cheek are not); their lowest part is the lobe."""
EAR_HIDDEN = 0.3
"""Turn of the face from which on the ear on the far side is not to be seen, and skin beside the oval is cheek."""
HAIR_TOP_HALF = 0.6
"""Hair above the brows is `hair_top` that far to either side, then a side."""
FRINGE_HALF, FRINGE_SHARE = 0.75, 0.02
"""Hair on the forehead, so far to either side, is a fringe if it covers that share of the oval; less is the hairline, and counts as hair above."""
NECK_FRONT_HALF = 0.35


@dataclass(frozen=True)
class MeshRegions(Regions):
    """With the face oval."""

    oval_HW: NDArray[np.bool_]
    """(S, S) the face oval."""


def regions(mesh: Mesh, crop_HWC: ImageHWC, size: int) -> MeshRegions:
    """Divide an (H, W, 3) uint8 RGB crop, whose mesh is given, into FICT at `size` x `size` pixels."""
    axes = face_axes(mesh.landmarks_NM2[0], (crop_HWC.shape[0], crop_HWC.shape[1]), size)
    raster_HWC = cv2.resize(crop_HWC, (size, size), interpolation=cv2.INTER_AREA) if crop_HWC.shape[:2] != (size, size) else crop_HWC
    scale = np.array([size / crop_HWC.shape[1], size / crop_HWC.shape[0]], np.float32)
    nearest = _nearest_vertex_atom(axes)
    atom_HW = np.where(axes.oval_HW, nearest, _index()["background"]).astype(np.int16)
    _paint_surroundings(atom_HW, nearest, divide(raster_HWC, axes), axes)
    for side, iris in (("right", mesh.right_iris_52), ("left", mesh.left_iris_52)):
        _paint_eye(atom_HW, axes.points_M2[list(EYES[side])], None if iris is None else iris * scale, side)
    lab_HWC = cv2.cvtColor(raster_HWC.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    for atom, mask_HW in mouth_interior(lab_HWC, cheek_colour(lab_HWC, axes), axes).items():
        atom_HW[mask_HW] = _index()[atom]
    atom_HW[eyeglasses(cv2.cvtColor(raster_HWC, cv2.COLOR_RGB2GRAY), axes)] = _index()["eyeglasses"]
    return MeshRegions(atom_HW, _arcs(axes), axes.oval_HW)


@cache
def _index() -> dict[str, int]:
    return {atom: k for k, atom in enumerate(fict.cells(112))}


def _nearest_vertex_atom(axes: FaceAxes) -> NDArray[np.int16]:
    """Voronoi cells of the vertices by a labelled distance transform."""
    seeds = np.full((axes.size, axes.size), 255, np.uint8)
    columns, rows = np.clip(np.round(axes.points_M2).astype(np.int32), 0, axes.size - 1).T
    seeds[rows, columns] = 0
    _, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL)
    atom_of_label = np.zeros(int(labels.max()) + 1, np.int16)
    atom_of_label[labels[rows, columns]] = vertex_atoms()
    nearest: NDArray[np.int16] = atom_of_label[labels]
    return nearest


def _paint_surroundings(atom_HW: NDArray[np.int16], nearest_HW: NDArray[np.int16], around: Surroundings, axes: FaceAxes) -> None:
    """Name skin by where it lies (forehead, ear, neck, cheek), hair by side; what is left over stays background."""
    a, b, index = axes.across_HW, axes.down_HW, _index()
    outside = ~axes.oval_HW
    off = cv2.distanceTransform(outside.astype(np.uint8), cv2.DIST_L2, 3) / axes.half_width
    skin = outside & around.skin_HW
    extends = skin & (((b < axes.brow) & (off < SKIN_REACH)) | ((b < 0.8) & (off < CHEEK_REACH)))
    atom_HW[extends] = nearest_HW[extends]
    neck = skin & (b > 0.5) & ~extends
    beside = skin & (b >= axes.brow - 0.1) & (b <= axes.nose_base + 0.25) & (off < EAR_REACH)
    for side, here in (("right", a < 0), ("left", a >= 0)):
        atom_HW[neck & here] = index[f"neck_{side}"]
        _paint_ear(atom_HW, beside & here, side, axes)
        atom_HW[around.hair_HW & here] = index[f"hair_{side}_side"]
    atom_HW[neck & (np.abs(a) < NECK_FRONT_HALF)] = index["neck_front"]
    high = around.hair_HW & (b < axes.brow)
    atom_HW[high & (np.abs(a) <= HAIR_TOP_HALF)] = index["hair_top"]
    fringe = high & axes.oval_HW & (np.abs(a) <= FRINGE_HALF)
    if int(fringe.sum()) >= FRINGE_SHARE * int(axes.oval_HW.sum()):
        atom_HW[fringe] = index["hair_fringe"]
    atom_HW[around.headwear_HW] = index["headwear"]
    atom_HW[around.clothing_HW & outside] = index["clothing"]


def _paint_ear(atom_HW: NDArray[np.int16], beside_HW: NDArray[np.bool_], side: str, axes: FaceAxes) -> None:
    """The largest patch of skin beside the oval, if it is as tall and as broad as an ear."""
    _, patches, stats, _ = cv2.connectedComponentsWithStats(beside_HW.astype(np.uint8), connectivity=4)
    if len(stats) < 2 or axes.turn * (1 if side == "left" else -1) > EAR_HIDDEN:
        return
    ear = patches == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    b = axes.down_HW[ear]
    height = float(np.ptp(b))
    width = len(b) / (np.ptp(np.nonzero(ear)[0]) + 1) / axes.half_width
    if height < EAR_HEIGHT * (axes.nose_base - axes.brow) or width < EAR_WIDTH:
        return
    atom_HW[ear] = np.where(b > b.max() - LOBE_SHARE * height, _index()[f"{side}_ear_lobe"], _index()[f"{side}_ear_helix"])


def _paint_eye(atom_HW: NDArray[np.int16], contour_K2: NDArray[np.float32], iris_52: NDArray[np.float32] | None, side: str) -> None:
    """Canthi, eyeball and lash lines. An eye without a found iris shows no eyeball; a closed one only its upper lash line."""
    index, size = _index(), atom_HW.shape[0]
    outer, inner = contour_K2[0], contour_K2[8]
    width, opening = float(np.linalg.norm(outer - inner)), float(np.linalg.norm(contour_K2[4] - contour_K2[12]))
    for name, corner in (("outer", outer), ("inner", inner)):
        atom_HW[_disc(corner, CANTHUS_SHARE * width, size)] = index[f"{side}_{name}_canthus"]
    if iris_52 is not None:
        ys, xs = np.nonzero(polygon(contour_K2, size))
        pixels = np.stack([xs, ys], 1).astype(np.float32)
        from_iris = np.linalg.norm(pixels - iris_52[0], axis=1) / max(iris_radius(iris_52), 1e-3)
        toward_nose = (pixels - iris_52[0]) @ (inner - outer) > 0
        canthus = np.minimum(np.linalg.norm(pixels - outer, axis=1), np.linalg.norm(pixels - inner, axis=1)) < CANTHUS_SHARE * width
        ball = np.where(toward_nose, index[f"{side}_sclera_inner"], index[f"{side}_sclera_outer"])
        ball = np.where(canthus & (from_iris > 1), atom_HW[ys, xs], ball)
        ball = np.where(from_iris <= 1, index[f"{side}_iris"], ball)
        atom_HW[ys, xs] = np.where(from_iris <= PUPIL_SHARE, index[f"{side}_pupil"], ball)
    thickness = max(1, round(LASH_SHARE * width))
    outward = (contour_K2[12] - contour_K2[4]) / max(opening, 1e-3) * thickness / 2
    upper, lower = contour_K2[9:] + outward, contour_K2[1:8] - outward
    if opening >= EYE_OPEN_MIN * width:
        atom_HW[_line(lower, thickness, size)] = index[f"{side}_lower_lash_line"]
    atom_HW[_line(upper, thickness, size)] = index[f"{side}_upper_lash_line"]


def _disc(center_2: NDArray[np.float32], radius: float, size: int) -> NDArray[np.bool_]:
    ys, xs = np.ogrid[0:size, 0:size]
    return (xs - float(center_2[0])) ** 2 + (ys - float(center_2[1])) ** 2 <= radius**2


def _line(points_K2: NDArray[np.float32], thickness: int, size: int) -> NDArray[np.bool_]:
    drawn = np.zeros((size, size), np.uint8)
    cv2.polylines(drawn, [np.round(points_K2).astype(np.int32)], False, 1, thickness)
    return drawn.astype(bool)


def _arcs(axes: FaceAxes) -> NDArray[np.int8]:
    """The ring in eight arcs of 45 degrees in the face's own frame, the hairline's centre upward."""
    ring = np.zeros((axes.size, axes.size), np.uint8)
    thickness = max(2, round(2 * RING_SHARE * 2 * axes.half_width))
    cv2.polylines(ring, [np.round(axes.points_M2[list(OVAL)]).astype(np.int32)], True, 1, thickness)
    # 0 up, +2 the subject's left, -2 the right, +-4 the chin
    ys, xs = np.nonzero(ring)
    turn = np.round(np.arctan2(axes.across_HW[ys, xs], -axes.down_HW[ys, xs]) / (math.pi / 4)).astype(np.int8)
    order = {
        0: "boundary_hairline_center", 1: "boundary_hairline_left", 2: "boundary_temple_left", 3: "boundary_jaw_left", 4: "boundary_chin",
        -1: "boundary_hairline_right", -2: "boundary_temple_right", -3: "boundary_jaw_right", -4: "boundary_chin",
    }  # fmt: skip
    lookup = np.array([fict.BOUNDARY_ARCS.index(order[k]) for k in range(-4, 5)], np.int8)
    arcs = np.full(ring.shape, -1, np.int8)
    arcs[ys, xs] = lookup[turn + 4]
    return arcs
