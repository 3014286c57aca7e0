"""FICT on one face: where each atom and each arc of the face boundary lies.

Cells of the face come from the labelled vertices of the mesh (each pixel of the oval takes its nearest vertex's atom); eyeballs and the open mouth
from their contours; hair and neck from rules on the oval. What is not derived is not visible.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from engines import fict
from trainer.annotator.mesh import vertex_atoms

MIN_VISIBLE_PX = 8
RING_SHARE = 0.03
"""Half-width of the boundary ring as a fraction of the oval's width."""

OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234,
    127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
EYES = {
    "right": (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
    "left": (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
}
"""Contours, outer corner first, the inner corner in the middle."""
INNER_LIPS = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)


@dataclass(frozen=True)
class Regions:
    """FICT on one face, rasterised over the whole crop."""

    atom_HW: NDArray[np.int16]
    """(S, S) int16 index into `fict.cells(112)`; every pixel has one atom."""
    arc_HW: NDArray[np.int8]
    """(S, S) int8 index into `fict.BOUNDARY_ARCS`, -1 off the ring."""
    oval_HW: NDArray[np.bool_]
    """(S, S) the face oval."""

    @cached_property
    def atom_pixels(self) -> NDArray[np.int64]:
        """(112,) pixels of each atom."""
        return np.bincount(self.atom_HW.ravel(), minlength=112)

    @cached_property
    def visible(self) -> frozenset[str]:
        """Atoms and arcs that this face shows."""
        arcs = np.bincount(self.arc_HW.ravel() + 1, minlength=9)[1:]
        counted = (*zip(fict.cells(112), self.atom_pixels, strict=True), *zip(fict.BOUNDARY_ARCS, arcs, strict=True))
        return frozenset(name for name, pixels in counted if pixels >= MIN_VISIBLE_PX)

    def mask(self, concept: str) -> NDArray[np.bool_]:
        """Return the (S, S) region of any concept: its visible atoms or arcs together."""
        node = fict.concepts()[concept]
        if node.level == "overlay":
            return np.isin(self.arc_HW, [k for k, arc in enumerate(fict.BOUNDARY_ARCS) if arc in node.atoms])
        chosen = np.array([atom in node.atoms and atom in self.visible for atom in fict.cells(112)])
        region: NDArray[np.bool_] = chosen[self.atom_HW]
        return region


def regions(landmarks_M2: NDArray[np.float32], crop_hw: tuple[int, int], size: int) -> Regions:
    """Divide a crop into FICT, at `size` x `size` pixels. `landmarks_M2` is (468, 2) float32 in pixels of the crop."""
    points = (landmarks_M2 * (size / np.array(crop_hw[::-1], np.float32))).astype(np.float32)
    oval = _polygon(points[list(OVAL)], size)
    a_HW, b_HW, half_width = _face_axes(points, size)
    atom_HW = np.where(oval, _nearest_vertex_atom(points, size), _around_the_oval(a_HW, b_HW)).astype(np.int16)
    index = {atom: k for k, atom in enumerate(fict.cells(112))}
    for side, contour in EYES.items():
        _paint_eyeball(atom_HW, points, contour, {name: index[f"{side}_{name}"] for name in ("iris", "sclera_inner", "sclera_outer")})
    if np.linalg.norm(points[13] - points[14]) > 0.12 * np.linalg.norm(points[78] - points[308]):
        atom_HW[_polygon(points[list(INNER_LIPS)], size)] = index["oral_cavity"]  # teeth and tongue are not told apart
    ring = np.zeros((size, size), np.uint8)
    thickness = max(2, round(2 * RING_SHARE * 2 * half_width))
    cv2.polylines(ring, [np.round(points[list(OVAL)]).astype(np.int32)], True, 1, thickness)
    return Regions(atom_HW, np.where(ring > 0, _arc(a_HW, b_HW), -1).astype(np.int8), oval)


def _polygon(points_K2: NDArray[np.float32], size: int) -> NDArray[np.bool_]:
    filled = np.zeros((size, size), np.uint8)
    cv2.fillPoly(filled, [np.round(points_K2).astype(np.int32)], 1)
    return filled.astype(bool)


def _nearest_vertex_atom(points: NDArray[np.float32], size: int) -> NDArray[np.int16]:
    """Voronoi cells of the vertices by a labelled distance transform."""
    seeds = np.full((size, size), 255, np.uint8)
    columns, rows = np.clip(np.round(points).astype(np.int32), 0, size - 1).T
    seeds[rows, columns] = 0
    _, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL)
    atom_of_label = np.zeros(int(labels.max()) + 1, np.int16)
    atom_of_label[labels[rows, columns]] = vertex_atoms()
    nearest: NDArray[np.int16] = atom_of_label[labels]
    return nearest


def _face_axes(points: NDArray[np.float32], size: int) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Coordinates of every pixel in the face's own frame: a = -1 at the subject's right edge of the oval and +1 at the left, b = -1 at its top
    and +1 at the chin; and the oval's half-width in pixels."""
    across = points[263] - points[33]
    across = across / (np.linalg.norm(across) + 1e-6)
    down = np.array([-across[1], across[0]], np.float32)
    edge = points[list(OVAL)]
    (a_min, a_max), (b_min, b_max) = ((float((edge @ axis).min()), float((edge @ axis).max())) for axis in (across, down))
    half_a, half_b = max((a_max - a_min) / 2, 1.0), max((b_max - b_min) / 2, 1.0)
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32)
    a_HW = ((xs * across[0] + ys * across[1]) - (a_min + a_max) / 2) / half_a
    b_HW = ((xs * down[0] + ys * down[1]) - (b_min + b_max) / 2) / half_b
    return a_HW, b_HW, half_a


def _around_the_oval(a_HW: NDArray[np.float32], b_HW: NDArray[np.float32]) -> NDArray[np.int16]:
    """Hair, neck and background by place alone: the mesh ends at the oval. Ears are not told from the hair that hides them: they are background."""
    index = {atom: k for k, atom in enumerate(fict.cells(112))}
    head = (a_HW / 1.4) ** 2 + ((b_HW + 0.15) / 1.5) ** 2 <= 1.0
    found = np.full(a_HW.shape, index["background"], np.int16)
    for side, sign in (("right", -1.0), ("left", 1.0)):
        here = a_HW * sign > 0
        beside = here & head & (np.abs(a_HW) > 0.6)
        found[beside & (b_HW < -0.3)] = index[f"hair_{side}_side"]
        found[here & (b_HW > 0.55) & (b_HW < 1.6) & (np.abs(a_HW) < 0.75)] = index[f"neck_{side}"]
    found[head & (b_HW < -0.45) & (np.abs(a_HW) <= 0.6)] = index["hair_top"]
    found[(b_HW > 0.9) & (b_HW < 1.6) & (np.abs(a_HW) < 0.35)] = index["neck_front"]
    return found


def _paint_eyeball(atom_HW: NDArray[np.int16], points: NDArray[np.float32], contour: tuple[int, ...], index: dict[str, int]) -> None:
    """Iris and sclera of an open eye; the iris is assumed in the middle of the contour (the mesh has no iris points)."""
    outer, inner = points[contour[0]], points[contour[8]]
    width = float(np.linalg.norm(outer - inner))
    opening = float(np.linalg.norm(points[contour[4]] - points[contour[12]]))
    if width < 6 or opening < 0.15 * width:
        return
    ball = _polygon(points[list(contour)], atom_HW.shape[0])
    ys, xs = np.nonzero(ball)
    offset = np.stack([xs, ys], 1) - points[list(contour)].mean(0)
    toward_nose = offset @ (inner - outer) > 0
    iris = (offset**2).sum(1) <= (0.2 * width) ** 2
    atom_HW[ys, xs] = np.where(iris, index["iris"], np.where(toward_nose, index["sclera_inner"], index["sclera_outer"]))


def _arc(a_HW: NDArray[np.float32], b_HW: NDArray[np.float32]) -> NDArray[np.int8]:
    """Eight arcs of 45 degrees in the face's own frame, the hairline's centre upward."""
    turn = np.round(np.arctan2(a_HW, -b_HW) / (math.pi / 4)).astype(np.int8)  # 0 up, +2 the subject's left, -2 the right, +-4 the chin
    order = {
        0: "boundary_hairline_center", 1: "boundary_hairline_left", 2: "boundary_temple_left", 3: "boundary_jaw_left", 4: "boundary_chin",
        -1: "boundary_hairline_right", -2: "boundary_temple_right", -3: "boundary_jaw_right", -4: "boundary_chin",
    }  # fmt: skip
    lookup = np.array([fict.BOUNDARY_ARCS.index(order[k]) for k in range(-4, 5)], np.int8)
    arcs: NDArray[np.int8] = lookup[turn + 4]
    return arcs
