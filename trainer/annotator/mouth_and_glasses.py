"""Teeth, tongue and eyeglasses by stated image rules: the mesh knows the opening of a mouth, not what shows in it, and nothing of what is worn.

All thresholds are relative to the cheeks of the same face, so that light and camera cancel. What a rule does not find is not there.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.annotator.face_axes import INNER_LIPS, FaceAxes, grown, polygon
from trainer.annotator.mesh import EYES

ImageHWC = NDArray[np.uint8]

MOUTH_OPEN, MOUTH_OPEN_PX = 0.08, 3.0
"""A mouth is open from this gap between the lips on: share of its width, and pixels of the raster."""
TEETH_LIGHTNESS, TEETH_CHROMA = 0.62, 0.85
"""Teeth are at least that light and at most that colourful, as shares of the cheeks' lightness and chroma."""
TONGUE_LIGHTNESS, TONGUE_REDNESS = 0.35, 1.15
"""A tongue is lighter than the dark of the mouth and redder than the cheeks."""
TONGUE_GAP, TONGUE_THICKNESS = 0.25, 0.1
"""Shares of the mouth's width: tongues are looked for in mouths open that wide, and are that thick; thinner red is the lip's inside."""
SEAM_ROWS, SEAM_DEPTH = 8, 0.85
"""The opening is looked at in eight rows. Rows of teeth meet where the lightness falls below this share of the teeth on both sides."""
MIN_PART_PX = 8

BRIDGE_DARKER, RIM_DARKER = 0.22, 0.10
"""Least darkness, as a share of the face's brightness, of the lines that a frame draws over the root of the nose and below one of the eyes. On the
399 faces they were chosen on they find 36 of 52 glasses, with 2 false finds."""
LINE_SHARE, LINE_WIDTH = 0.7, 13
"""A line crosses that share of its strip, and is at most so many rows of the level window thick."""
FRAME_DARKER = 0.08
FRAME_WIDTH = 0.11
"""Widest bar of a frame, as a share of the distance between the outer corners of the eyes."""
SPECK = 0.0022
"""Dark patches smaller than this share of the square of that distance are no part of the frame."""
BROWS = ((46, 53, 52, 65, 66, 105, 63, 70), (276, 283, 282, 295, 296, 334, 293, 300))


def mouth_interior(lab_HWC: NDArray[np.float32], cheeks_3: NDArray[np.float32], axes: FaceAxes) -> dict[str, NDArray[np.bool_]]:
    """Masks of upper_teeth, lower_teeth, tongue and oral_cavity on the raster of `axes`; {} for a closed mouth.

    Args:
        lab_HWC: the crop on that raster, float32 CIELAB.
        cheeks_3: median colour of the cheeks, CIELAB.
        axes: the face.
    """
    points, size = axes.points_M2, axes.size
    gap, width = float(np.linalg.norm(points[13] - points[14])), float(np.linalg.norm(points[78] - points[308]))
    if gap < max(MOUTH_OPEN * width, MOUTH_OPEN_PX):
        return {}
    opening = polygon(points[list(INNER_LIPS)], size)
    lightness, chroma = lab_HWC[..., 0], np.hypot(lab_HWC[..., 1], lab_HWC[..., 2])
    bright = opening & (lightness > TEETH_LIGHTNESS * cheeks_3[0]) & (chroma < TEETH_CHROMA * float(np.hypot(*cheeks_3[1:])))
    teeth = cv2.morphologyEx(bright.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)).astype(bool)
    upper, lower = _rows_of_teeth(teeth, lightness, axes)
    lower_half = _height_in_mouth(axes) > 0.4
    red = (lightness > TONGUE_LIGHTNESS * cheeks_3[0]) & (lab_HWC[..., 1] > TONGUE_REDNESS * cheeks_3[1])
    tongue = opening & red & lower_half & ~teeth if gap > TONGUE_GAP * width else np.zeros_like(opening)
    thick = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (max(3, round(TONGUE_THICKNESS * width)),) * 2)
    tongue = cv2.morphologyEx(tongue.astype(np.uint8), cv2.MORPH_OPEN, thick).astype(bool)
    parts = {"upper_teeth": upper, "lower_teeth": lower, "tongue": tongue}
    found = {name: mask for name, mask in parts.items() if int(mask.sum()) >= MIN_PART_PX}
    taken = np.any(list(found.values()), 0) if found else np.zeros_like(opening)
    return found | {"oral_cavity": opening & ~taken}


def _rows_of_teeth(teeth_HW: NDArray[np.bool_], lightness_HW: NDArray[np.float32], axes: FaceAxes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Upper and lower teeth, parted at the seam; one row alone is the upper one: a smile shows it first."""
    height_HW = _height_in_mouth(axes)
    none = np.zeros_like(teeth_HW)
    if not teeth_HW.any():
        return none, none
    seam = _seam(lightness_HW, height_HW, axes)
    if seam is None:
        return teeth_HW, none
    return teeth_HW & (height_HW < seam), teeth_HW & (height_HW >= seam)


def _seam(lightness_HW: NDArray[np.float32], height_HW: NDArray[np.float32], axes: FaceAxes) -> float | None:
    """Height of the darkest of the inner rows in the middle of the mouth, if it is clearly darker than a row above and a row below."""
    opening = polygon(grown(axes.points_M2[list(INNER_LIPS)], 0.6), axes.size) | polygon(axes.points_M2[[13, 82, 87, 14, 317, 312]], axes.size)
    row_N = np.clip((height_HW[opening] * SEAM_ROWS).astype(int), 0, SEAM_ROWS - 1)
    pixels_R = np.bincount(row_N, minlength=SEAM_ROWS)
    if pixels_R.min() == 0:
        return None
    light_R = np.bincount(row_N, weights=lightness_HW[opening], minlength=SEAM_ROWS) / pixels_R
    row = int(np.argmin(light_R[2:-2])) + 2
    is_dark = light_R[row] < SEAM_DEPTH * min(light_R[:row].max(), light_R[row + 1 :].max())
    return (row + 0.5) / SEAM_ROWS if is_dark else None


def _height_in_mouth(axes: FaceAxes) -> NDArray[np.float32]:
    """0 at the middle of the upper lip's edge, 1 at the lower lip's."""
    top, bottom = axes.points_M2[13], axes.points_M2[14]
    line = bottom - top
    steps = np.arange(axes.size, dtype=np.float32)
    along = (steps - top[0])[None] * line[0] + (steps - top[1])[:, None] * line[1]
    return (along / max(float(line @ line), 1e-6)).astype(np.float32)


def eyeglasses(gray_HW: ImageHWC, axes: FaceAxes) -> NDArray[np.bool_]:
    """Frame of eyeglasses on the raster of `axes`; empty unless dark lines cross the root of the nose and run below an eye.

    Rimless and light frames are missed; lenses, tinted or not, are not part of the frame.
    """
    points = axes.points_M2
    reach = float(np.linalg.norm(points[EYES["left"][0]] - points[EYES["right"][0]]))
    window, brightness = _eye_window(gray_HW, axes)
    bridge, rim = _line_darkness(window, axes)
    if bridge < BRIDGE_DARKER * brightness or rim < RIM_DARKER * brightness:
        return np.zeros_like(axes.oval_HW)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (max(3, round(FRAME_WIDTH * reach) | 1),) * 2)
    darker = cv2.morphologyEx(gray_HW, cv2.MORPH_BLACKHAT, kernel) > FRAME_DARKER * brightness
    zone = (axes.down_HW > axes.brow - 0.05) & (axes.down_HW < 0.5 * (axes.brow + axes.nose_base) + 0.25) & (np.abs(axes.across_HW) < 1.05)
    for contour in EYES.values():
        zone &= ~polygon(grown(points[list(contour)], 1.25), axes.size)
    for brow in BROWS:
        zone &= ~polygon(cv2.convexHull(points[list(brow)])[:, 0], axes.size)
    _, parts, stats, _ = cv2.connectedComponentsWithStats((darker & zone).astype(np.uint8), connectivity=8)
    large = 1 + np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] >= SPECK * reach * reach)
    frame: NDArray[np.bool_] = np.isin(parts, large)
    return frame


def _eye_axes(axes: FaceAxes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(2, 2) step and (2,) origin, in pixels of the raster, of a window with level eyes, their outer corners 80 of its 120 columns apart."""
    right, left = (axes.points_M2[EYES[side][0]] for side in ("right", "left"))
    across = (left - right) / 80.0
    step_22 = np.stack([across, np.array([-across[1], across[0]], np.float32)], 1)
    return step_22, (right + left) / 2 - step_22 @ np.array([60.0, 26.0], np.float32)


def _eye_window(gray_HW: ImageHWC, axes: FaceAxes) -> tuple[ImageHWC, float]:
    """(72, 120) uint8 window, and the brightness of the face in it."""
    step_22, origin = _eye_axes(axes)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    window = cv2.warpAffine(gray_HW, np.column_stack([step_22, origin]), (120, 72), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return window, float(np.median(window[20:60, 20:100])) + 10.0  # grey levels; the ten keep near-black faces from finding lines in noise


def _line_darkness(window_HW: ImageHWC, axes: FaceAxes) -> tuple[float, float]:
    """Grey levels by which a level line over the root of the nose, and one below either eye, is darker than what lies above and below it."""
    step_22, origin = _eye_axes(axes)
    points = (axes.points_M2 - origin) @ np.linalg.pinv(step_22).T
    darker = cv2.morphologyEx(window_HW, cv2.MORPH_BLACKHAT, np.ones((LINE_WIDTH, 1), np.uint8))
    darker = cv2.dilate(darker, np.ones((5, 1), np.uint8))  # a line may sag by two rows

    def darkest(top: float, bottom: float, left: float, right: float) -> float:
        strip = darker[max(0, int(top)) : max(0, int(bottom)), max(0, int(left)) : max(0, int(right))]
        return float(np.quantile(strip, 1 - LINE_SHARE, axis=1).max()) if strip.size else 0.0

    middle, half = points[168, 0], 0.28 * abs(points[EYES["left"][8], 0] - points[EYES["right"][8], 0])
    rims = []
    for contour in EYES.values():
        corners, below = np.sort(points[[contour[0], contour[8]], 0]), points[contour[4], 1] + 4
        inset = 0.2 * float(np.ptp(corners))
        rims.append(darkest(below, below + 20, corners[0] + inset, corners[1] - inset))
    return darkest(points[9, 1] + 2, points[197, 1], middle - half, middle + half), max(rims)
