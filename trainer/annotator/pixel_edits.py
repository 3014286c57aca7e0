"""What an own manipulation puts in a place: recoloured, refocused, smoothed, copied, painted over or warped pixels.

All take and return (H, W, 3) float32 RGB in grey levels 0-255 and work on the whole crop; `manipulate` decides where the result is blended in.
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

ImageF = NDArray[np.float32]
AlphaHW = NDArray[np.float32]


def smooth_field(rng: np.random.Generator, shape: tuple[int, int], cells: int, amplitude: float) -> NDArray[np.float32]:
    """(H, W) noise that is smooth over a `cells`-th of the crop."""
    coarse = rng.standard_normal((cells, cells)).astype(np.float32) * amplitude
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def recolor(rng: np.random.Generator, image_HWC: ImageF, strength: float) -> ImageF:
    """Another gain and offset for each channel, and another saturation."""
    gain = 1.0 + rng.uniform(-0.15, 0.15, 3) * strength
    shift = rng.uniform(-18, 18, 3) * strength
    gray = image_HWC.mean(-1, keepdims=True)
    saturation = 1.0 + rng.uniform(-0.4, 0.4) * strength
    return np.clip((gray + (image_HWC - gray) * saturation) * gain + shift, 0, 255).astype(np.float32)


def refocus(rng: np.random.Generator, image_HWC: ImageF) -> ImageF:
    """Soften, sharpen or pass through a smaller size: fakes are soft *and* sharp here, so that neither means fake."""
    choice = rng.random()
    height, width = image_HWC.shape[:2]
    if choice < 0.35:
        return cv2.GaussianBlur(image_HWC, (0, 0), float(rng.uniform(0.5, 1.6)))
    if choice < 0.7:
        soft = cv2.GaussianBlur(image_HWC, (0, 0), float(rng.uniform(0.8, 2.0)))
        return np.clip(image_HWC + (image_HWC - soft) * rng.uniform(0.5, 1.5), 0, 255).astype(np.float32)
    scale = float(rng.uniform(0.35, 0.9))
    small = cv2.resize(image_HWC, (max(8, int(width * scale)), max(8, int(height * scale))), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC])))


def nudge(rng: np.random.Generator, image_HWC: ImageF, amount: float) -> ImageF:
    """Turn, scale and shift a little; `amount` 1 means up to 4 degrees, 4 % and 2 % of the width."""
    height, width = image_HWC.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), float(rng.uniform(-4, 4)) * amount, 1 + float(rng.uniform(-0.04, 0.04)) * amount)
    matrix[:, 2] += rng.uniform(-0.02, 0.02, 2) * width * amount
    return cv2.warpAffine(image_HWC, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def match_colours(source_HWC: ImageF, target_HWC: ImageF, inside_HW: NDArray[np.bool_]) -> ImageF:
    """Give the source the target's mean and spread of each channel inside a mask."""
    if not inside_HW.any():
        return source_HWC
    source, target = source_HWC[inside_HW], target_HWC[inside_HW]
    gain = target.std(0) / (source.std(0) + 1e-3)
    return np.clip((source_HWC - source.mean(0)) * gain + target.mean(0), 0, 255).astype(np.float32)


def displace(image_HWC: ImageF, dx_HW: NDArray[np.float32], dy_HW: NDArray[np.float32]) -> ImageF:
    """Take each pixel from (x + dx, y + dy), in pixels."""
    ys, xs = np.mgrid[0 : image_HWC.shape[0], 0 : image_HWC.shape[1]].astype(np.float32)
    return cv2.remap(image_HWC, xs + dx_HW, ys + dy_HW, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def reflect(image_HWC: ImageF, a_xy: NDArray[np.float32], b_xy: NDArray[np.float32]) -> ImageF:
    """Mirror the crop in the line that keeps two twin points (the outer eye corners) each other's image."""
    normal = (b_xy - a_xy) / (np.linalg.norm(b_xy - a_xy) + 1e-6)
    turn = np.eye(2) - 2 * np.outer(normal, normal)
    middle = (a_xy + b_xy) / 2
    matrix = np.concatenate([turn, (middle - turn @ middle)[:, None]], 1)
    return cv2.warpAffine(image_HWC, matrix, image_HWC.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _strong_recolor(rng: np.random.Generator, image: ImageF, alpha: AlphaHW) -> ImageF:
    return recolor(rng, image, 1.6)


def _refocused(rng: np.random.Generator, image: ImageF, alpha: AlphaHW) -> ImageF:
    return refocus(rng, recolor(rng, image, 0.3))


def _smooth(rng: np.random.Generator, image: ImageF, alpha: AlphaHW) -> ImageF:
    """A beauty filter: flat and a little lighter skin, sometimes with fresh grain."""
    flat = cv2.bilateralFilter(image, 9, float(rng.uniform(25, 60)), float(rng.uniform(5, 11)))
    return flat + float(rng.uniform(0, 12)) + rng.normal(0, rng.uniform(0, 2.5), image.shape).astype(np.float32)


def _texture(rng: np.random.Generator, image: ImageF, alpha: AlphaHW) -> ImageF:
    return image + smooth_field(rng, image.shape[:2], int(rng.integers(24, 64)), float(rng.uniform(5, 14)))[..., None]


def _copy(rng: np.random.Generator, image: ImageF, alpha: AlphaHW) -> ImageF:
    width = image.shape[1]
    return np.roll(image, tuple(int(v) for v in rng.integers(-width // 8, width // 8, 2)), (0, 1))


def _mirror(rng: np.random.Generator, image: ImageF, alpha: AlphaHW) -> ImageF:
    return np.ascontiguousarray(image[:, ::-1])


def _makeup(rng: np.random.Generator, image: ImageF, alpha: AlphaHW) -> ImageF:
    """Rouge, lipstick, eye shadow: mixes in one colour and keeps the place's light and shade."""
    hue = np.array([[[rng.uniform(0, 360), rng.uniform(0.35, 0.9), 1.0]]], np.float32)
    colour = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0]
    shade = image.max(-1, keepdims=True) * float(rng.uniform(0.75, 1.1))
    return image + (shade * colour - image) * float(rng.uniform(0.25, 0.7))


def _inpaint(rng: np.random.Generator, image: ImageF, alpha: AlphaHW) -> ImageF:
    """Fill the place from its rim (Telea, or Navier-Stokes), with some grain: what an object remover leaves."""
    method = cv2.INPAINT_TELEA if rng.random() < 0.5 else cv2.INPAINT_NS
    hole = (alpha > 0).astype(np.uint8)
    filled = cv2.inpaint(image.astype(np.uint8), hole, 3, method).astype(np.float32)
    return filled + rng.normal(0, rng.uniform(0, 3.0), image.shape).astype(np.float32)


def _patch(rng: np.random.Generator, image: ImageF, alpha: AlphaHW) -> ImageF:
    """Fill the place with texture from elsewhere on its own light and colour: a clone stamp."""
    sigma = float(rng.uniform(3, 8))
    moved = _copy(rng, image, alpha)
    return cv2.GaussianBlur(image, (0, 0), sigma) + moved - cv2.GaussianBlur(moved, (0, 0), sigma)


EDITS: dict[str, Callable[[np.random.Generator, ImageF, AlphaHW], ImageF]] = {
    "recolor": _strong_recolor, "refocus": _refocused, "smooth": _smooth, "texture": _texture, "copy": _copy, "mirror": _mirror,
    "makeup": _makeup, "inpaint": _inpaint, "patch": _patch,
}  # fmt: skip
"""Attribute edits by name: generator, crop and the alpha it will be blended with -> the crop to blend in."""
