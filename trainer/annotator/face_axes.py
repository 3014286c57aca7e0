"""The face's own frame of reference on a square raster: its oval, and how far across and down each pixel lies."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.annotator.mesh import EYES

OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234,
    127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
"""Vertices of the oval, clockwise in the image from the top of the forehead."""
INNER_LIPS = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
"""Vertices of the opening of the mouth: right corner, lower lip, left corner (the eleventh), upper lip back."""
OUTER_LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
BROW_VERTICES, NOSE_BASE, MOUTH_CORNERS = (105, 334), (2,), (61, 291)
NOSE_TIP = 4


@dataclass(frozen=True, slots=True)
class FaceAxes:
    """One face on a raster of `size` x `size` pixels, in units of its own half-width and half-height."""

    points_M2: NDArray[np.float32]
    """(468, 2) float32, (x, y) in pixels of the raster."""
    oval_HW: NDArray[np.bool_]
    across_HW: NDArray[np.float32]
    """-1 at the subject's right edge of the oval, +1 at the left."""
    down_HW: NDArray[np.float32]
    """-1 at the top of the oval, +1 at the chin."""
    half_width: float
    """Pixels."""
    brow: float
    """Heights of the brows, of the base of the nose and of the corners of the mouth, as `down_HW` counts."""
    nose_base: float
    mouth: float
    turn: float
    """Where the tip of the nose lies, as `across_HW` counts: 0 for a face seen from the front, above 0 for one turned to its left."""

    @property
    def size(self) -> int:
        """Side of the raster in pixels."""
        return int(self.oval_HW.shape[0])


def face_axes(landmarks_M2: NDArray[np.float32], crop_hw: tuple[int, int], size: int) -> FaceAxes:
    """Lay (468, 2) float32 landmarks, in pixels of a crop of `crop_hw`, onto a raster of `size` pixels a side."""
    points = (landmarks_M2 * (size / np.array(crop_hw[::-1], np.float32))).astype(np.float32)
    across = points[EYES["left"][0]] - points[EYES["right"][0]]
    across = across / (np.linalg.norm(across) + 1e-6)
    down = np.array([-across[1], across[0]], np.float32)
    a_K, b_K = points[list(OVAL)] @ across, points[list(OVAL)] @ down
    half_a, half_b = max(float(np.ptp(a_K)) / 2, 1.0), max(float(np.ptp(b_K)) / 2, 1.0)
    middle_a, middle_b = float(a_K.min() + a_K.max()) / 2, float(b_K.min() + b_K.max()) / 2
    steps = np.arange(size, dtype=np.float32)
    across_HW = ((steps * across[0])[None] + (steps * across[1] - middle_a)[:, None]) / half_a
    down_HW = ((steps * down[0])[None] + (steps * down[1] - middle_b)[:, None]) / half_b

    def height(vertices: tuple[int, ...]) -> float:
        return float((points[list(vertices)] @ down).mean() - middle_b) / half_b

    oval = polygon(points[list(OVAL)], size)
    turn = (float(points[NOSE_TIP] @ across) - middle_a) / half_a
    return FaceAxes(points, oval, across_HW, down_HW, half_a, height(BROW_VERTICES), height(NOSE_BASE), height(MOUTH_CORNERS), turn)


def polygon(points_K2: NDArray[np.float32], size: int) -> NDArray[np.bool_]:
    """(size, size) bool: the filled polygon."""
    filled = np.zeros((size, size), np.uint8)
    cv2.fillPoly(filled, [np.round(points_K2).astype(np.int32)], 1)
    return filled.astype(bool)


def grown(points_K2: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """The contour blown up about its middle."""
    middle = points_K2.mean(0)
    return (middle + factor * (points_K2 - middle)).astype(np.float32)
