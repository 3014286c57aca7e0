"""Between a face crop and its frame: boxes and masks, in coordinates where a pixel is a unit square, origin top left, as Pillow has them."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.contracts import Box
from engines.preprocess import Crop

MASK_THRESHOLD = 0.5
"""A frame pixel belongs to a mask from this probability on."""


def whole_pixels(box_xyxy: Box, frame_size_hw: tuple[int, int]) -> Box | None:
    """The pixels of the frame that lie inside a box with their whole area, as a box; None where there is none."""
    height, width = frame_size_hw
    x0, y0, x1, y1 = box_xyxy
    left, top = max(0.0, float(np.ceil(x0))), max(0.0, float(np.ceil(y0)))
    right, bottom = min(float(width), float(np.floor(x1))), min(float(height), float(np.floor(y1)))
    return (left, top, right, bottom) if left < right and top < bottom else None


def box_in_crop(box_xyxy: Box, crop: Crop) -> Box | None:
    """Bounds, in crop pixels, of what a box in frame pixels shares with a crop; None where that is less than a crop pixel wide or high.

    On a turned crop the bounds hold more than the box: the answer's mask is cut to the box once more when it is back in the frame.
    """
    size = crop.image_HWC.shape[0]
    to_frame_33 = np.vstack([crop.to_frame_23, [0.0, 0.0, 1.0]])
    # First to the crop's bounds in the frame: what lies beyond them would only widen the bounds in the crop, or let it touch by a corner.
    around = _bounds((0.0, 0.0, float(size), float(size)), to_frame_33)
    shared = _overlap(box_xyxy, around)
    if shared is None:
        return None
    inside = _overlap(_bounds(shared, np.linalg.inv(to_frame_33)), (0.0, 0.0, float(size), float(size)))
    return inside if inside is not None and inside[2] - inside[0] >= 1 and inside[3] - inside[1] >= 1 else None


def _bounds(box_xyxy: Box, to_33: NDArray[np.float64]) -> Box:
    """Bounds of a box whose four corners are mapped; in coordinates where a pixel is a unit square, as Pillow's."""
    x0, y0, x1, y1 = box_xyxy
    xs, ys, _ = to_33 @ np.array([[x0, x1, x1, x0], [y0, y0, y1, y1], [1.0, 1.0, 1.0, 1.0]])
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def _overlap(one: Box, other: Box) -> Box | None:
    left, top, right, bottom = max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])
    return (left, top, right, bottom) if left < right and top < bottom else None


def mask_in_frame(
    mask_probability_HW: NDArray[np.float32], crop: Crop, frame_size_hw: tuple[int, int], *, only_in: Box | None = None
) -> NDArray[np.bool_]:
    """Warp a mask grid that covers the whole crop to frame pixels and cut it at `MASK_THRESHOLD`; what lies beyond the frame is lost.

    `only_in` (frame pixels) leaves the pixels that lie inside a box with their whole area.
    """
    height, width = frame_size_hw
    crop_size = crop.image_HWC.shape[0]
    to_frame_33 = np.vstack([crop.to_frame_23, [0.0, 0.0, 1.0]])
    x0, y0, x1, y1 = _bounds((0.0, 0.0, float(crop_size), float(crop_size)), to_frame_33)
    left, top = max(0, int(np.floor(x0))), max(0, int(np.floor(y0)))
    right, bottom = min(width, int(np.ceil(x1))), min(height, int(np.ceil(y1)))
    frame_HW = np.zeros((height, width), bool, order="F")  # as run lengths read it: turning a large frame over takes longer than the rest
    if right <= left or bottom <= top:
        return frame_HW
    # Window pixels to frame pixels to crop pixels to grid cells; all in coordinates where a pixel is a unit square, as Pillow's.
    grid_height, grid_width = mask_probability_HW.shape
    to_grid_33 = np.diag([grid_width / crop_size, grid_height / crop_size, 1.0]) @ np.linalg.inv(to_frame_33)
    to_grid_33 = to_grid_33 @ np.array([[1.0, 0.0, left], [0.0, 1.0, top], [0.0, 0.0, 1.0]])
    grid = Image.fromarray(np.ascontiguousarray(mask_probability_HW, np.float32))
    window = grid.transform((right - left, bottom - top), Image.Transform.AFFINE, tuple(to_grid_33[:2].ravel().tolist()), Image.Resampling.BILINEAR)
    frame_HW[top:bottom, left:right] = np.asarray(window) >= MASK_THRESHOLD
    if only_in is None:
        return frame_HW
    left, top, right, bottom = map(int, whole_pixels(only_in, frame_size_hw) or (0, 0, 0, 0))
    inside_HW = np.zeros_like(frame_HW)
    inside_HW[top:bottom, left:right] = frame_HW[top:bottom, left:right]
    return inside_HW
