"""What can be measured of a region on one crop, inside against around: the numbers behind each sentence, in training and in serving.

NumPy only, no twin needed. Every figure is finite for every mask; an empty mask, a full one, or one without surroundings measures as unremarkable.
Left/right mirroring assumes what a face crop gives: the face's axis near the middle column.
"""

import math

import numpy as np
from numpy.typing import NDArray

SURROUNDINGS_PX = 8
"""Width of the ring that counts as 'around', after a gap of `GAP_PX` for what the mask's border mixes; for a crop of 224 px."""
GAP_PX = 2
EDGE_PX = 2
MIN_PIXELS = 12

UNREMARKABLE = {
    "sharpness_ratio": 1.0, "noise_ratio": 1.0, "texture_ratio": 1.0, "brightness_shift": 0.0, "color_shift": 0.0, "red_shift": 0.0,
    "yellow_shift": 0.0, "boundary_gradient": 1.0, "asymmetry": 1.0,
}  # fmt: skip
"""Each measurement and its value where there is nothing to compare.

sharpness_ratio: steepness of edges (mean |second difference| over mean |gradient|), inside / around; < 1 is softer.
noise_ratio: median |residual of a 3x3 mean|, inside / around; < 1 is smoother.
texture_ratio: spread of the band between 3x3 and 9x9 means, inside / around; < 1 is flatter.
brightness_shift: luma inside - around, grey levels.
red_shift, yellow_shift: opponent colour inside - around, grey levels (R - G; (R + G) / 2 - B); color_shift is the length of the two.
boundary_gradient: gradient on the mask's edge over the mean of inside and around; > 1 is a hard edge, < 1 a smeared one.
asymmetry: |luma - mirrored luma| inside / over the whole crop; > 1 is less symmetric than the face at large.
"""


def measure_region(crop_HWC: NDArray[np.uint8], mask_HW: NDArray[np.bool_]) -> dict[str, float]:
    """Measure one region of a uint8 RGB crop; the keys are those of `UNREMARKABLE`. Values are rounded to 4 decimals."""
    found = dict(UNREMARKABLE)
    if int(mask_HW.sum()) < MIN_PIXELS:
        return found
    luma_HW = _luma(crop_HWC)
    mirrored = np.abs(luma_HW - luma_HW[:, ::-1])
    found["asymmetry"] = _ratio(float(mirrored[mask_HW].mean()), float(mirrored.mean()), 2.0)

    scale = mask_HW.shape[0] / 224
    gap, ring, edge = (max(1, round(px * scale)) for px in (GAP_PX, SURROUNDINGS_PX, EDGE_PX))
    window = _window(mask_HW, gap + ring + 2)
    inside, luma, crop = mask_HW[window], luma_HW[window], crop_HWC[window].astype(np.float32)
    around = dilate(inside, gap + ring) & ~dilate(inside, gap)
    if int(around.sum()) >= MIN_PIXELS:
        gradient, steepness = _gradients(luma)
        blurred = _box_mean(luma, 1)
        residual = np.abs(luma - blurred)
        band = blurred - _box_mean(luma, 4)
        found["sharpness_ratio"] = _ratio(_acuity(gradient, steepness, inside), _acuity(gradient, steepness, around), 0.05)
        found["noise_ratio"] = _ratio(float(np.median(residual[inside])), float(np.median(residual[around])), 0.3)
        found["texture_ratio"] = _ratio(float(band[inside].std()), float(band[around].std()), 0.5)
        found["brightness_shift"] = float(luma[inside].mean() - luma[around].mean())
        red, yellow = crop[..., 0] - crop[..., 1], (crop[..., 0] + crop[..., 1]) / 2 - crop[..., 2]
        found["red_shift"] = float(red[inside].mean() - red[around].mean())
        found["yellow_shift"] = float(yellow[inside].mean() - yellow[around].mean())
        found["color_shift"] = math.hypot(found["red_shift"], found["yellow_shift"])
        border = dilate(inside, edge) & dilate(~inside, edge)
        deep = inside & ~border
        if int(border.sum()) >= MIN_PIXELS and int(deep.sum()) >= MIN_PIXELS:
            off_edge = float(gradient[deep].mean() + gradient[around].mean()) / 2
            found["boundary_gradient"] = _ratio(float(gradient[border].mean()), off_edge, 0.5)
    return {name: round(value, 4) for name, value in found.items()}


def dilate(mask_HW: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Grow a mask by a square of `radius` pixels; the outside of the image counts as empty."""
    grown = mask_HW
    for axis in (0, 1):
        reach = 0
        while reach < radius:
            step = min(reach + 1, radius - reach)
            wider = grown.copy()
            low, high = (slice(None, -step), slice(step, None))
            if axis == 0:
                wider[high] |= grown[low]
                wider[low] |= grown[high]
            else:
                wider[:, high] |= grown[:, low]
                wider[:, low] |= grown[:, high]
            grown, reach = wider, reach + step
    return grown


def _luma(crop_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Rec. 601 luma, float32 in [0, 255]."""
    luma: NDArray[np.float32] = crop_HWC.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return luma


def _window(mask_HW: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    return (
        slice(max(0, int(rows[0]) - margin), int(rows[-1]) + margin + 1),
        slice(max(0, int(columns[0]) - margin), int(columns[-1]) + margin + 1),
    )


def _gradients(luma: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean of |first| and of |second| differences over the two axes, each (H, W)."""
    padded = np.pad(luma, 1, mode="edge")
    up, down, left, right = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
    first = (np.abs(down - up) + np.abs(right - left)) / 4
    second = (np.abs(up + down - 2 * luma) + np.abs(left + right - 2 * luma)) / 2
    return first, second


def _box_mean(luma: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Mean over a (2 radius + 1) square, edges repeated."""
    width = 2 * radius + 1
    summed: NDArray[np.floating] = np.pad(luma, radius, mode="edge")
    for axis in (0, 1):
        total = np.cumsum(summed, axis=axis, dtype=np.float64)
        total = np.concatenate([np.zeros_like(total.take([0], axis)), total], axis)
        length = total.shape[axis]
        summed = (total.take(range(width, length), axis) - total.take(range(length - width), axis)) / width
    return summed.astype(np.float32)


def _acuity(gradient: NDArray[np.float32], steepness: NDArray[np.float32], where: NDArray[np.bool_]) -> float:
    return float(steepness[where].mean()) / (float(gradient[where].mean()) + 0.5)


def _ratio(inside: float, around: float, floor: float) -> float:
    """inside / around with a floor under both, so that flat regions compare as equal."""
    return (inside + floor) / (around + floor)
