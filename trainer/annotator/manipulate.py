"""Manipulations made here, whose mask is known exactly: self-blends, swaps between identities, local edits.

They teach what differences of a dataset cannot: where the change is, without its generator's fingerprint (self-blended images, arXiv:2204.08376).
Each takes (H, W, 3) uint8 RGB face crops and a generator, and returns the fake, its (H, W) float32 alpha in [0, 1] and its forgery type.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

ImageHWC = NDArray[np.uint8]


class Manipulation(NamedTuple):
    """A fake and where it was changed."""

    image_HWC: ImageHWC
    alpha_HW: NDArray[np.float32]
    """How much of each pixel is new; the exact mask is `alpha_HW > 0.1`."""
    forgery_type: str


def _smooth_field(rng: np.random.Generator, shape: tuple[int, int], cells: int, amplitude: float) -> NDArray[np.float32]:
    coarse = rng.standard_normal((cells, cells)).astype(np.float32) * amplitude
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def blob(rng: np.random.Generator, shape: tuple[int, int], center_xy: tuple[float, float], radii_xy: tuple[float, float]) -> NDArray[np.float32]:
    """A soft, irregular ellipse: centre and radii as fractions of the crop; (H, W) float32 in [0, 1]."""
    height, width = shape
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    distance = ((xs / width - center_xy[0]) / radii_xy[0]) ** 2 + ((ys / height - center_xy[1]) / radii_xy[1]) ** 2
    inside = (distance + _smooth_field(rng, shape, 5, 0.18) < 1.0).astype(np.float32)
    sigma = float(rng.uniform(0.004, 0.05)) * width * max(radii_xy) / 0.3
    return np.clip(cv2.GaussianBlur(inside, (0, 0), max(0.6, sigma)), 0.0, 1.0)


def face_oval(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The inner face of a x1.3 crop, jittered: what a swap replaces."""
    kind = rng.random()
    top = 0.0 if kind < 0.7 else 0.12  # some swaps stop below the brows
    radii = (rng.uniform(0.24, 0.36), rng.uniform(0.28, 0.40) - top / 2)
    return blob(rng, shape, (0.5 + rng.uniform(-0.03, 0.03), 0.52 + top + rng.uniform(-0.03, 0.03)), radii)


def _recolor(rng: np.random.Generator, image: NDArray[np.float32], strength: float) -> NDArray[np.float32]:
    gain = 1.0 + rng.uniform(-0.15, 0.15, 3) * strength
    shift = rng.uniform(-18, 18, 3) * strength
    gray = image.mean(-1, keepdims=True)
    saturation = 1.0 + rng.uniform(-0.4, 0.4) * strength
    return np.clip((gray + (image - gray) * saturation) * gain + shift, 0, 255).astype(np.float32)


def _refocus(rng: np.random.Generator, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Soften, sharpen or pass through a smaller size: fakes are soft *and* sharp here, so that neither means fake."""
    choice = rng.random()
    height, width = image.shape[:2]
    if choice < 0.35:
        return cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.5, 1.6)))
    if choice < 0.7:
        soft = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.8, 2.0)))
        return np.clip(image + (image - soft) * rng.uniform(0.5, 1.5), 0, 255).astype(np.float32)
    scale = float(rng.uniform(0.35, 0.9))
    small = cv2.resize(image, (max(8, int(width * scale)), max(8, int(height * scale))), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC])))


def _nudge(rng: np.random.Generator, image: NDArray[np.float32], amount: float) -> NDArray[np.float32]:
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), float(rng.uniform(-4, 4)) * amount, 1 + float(rng.uniform(-0.04, 0.04)) * amount)
    matrix[:, 2] += rng.uniform(-0.02, 0.02, 2) * width * amount
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _blend(source: NDArray[np.float32], target: NDArray[np.float32], alpha_HW: NDArray[np.float32]) -> ImageHWC:
    alpha = alpha_HW[..., None]
    return np.clip(source * alpha + target * (1 - alpha) + 0.5, 0, 255).astype(np.uint8)


def self_blend(rng: np.random.Generator, real_HWC: ImageHWC) -> Manipulation:
    """Blend a face with a recoloured, refocused, nudged copy of itself inside its oval."""
    real = real_HWC.astype(np.float32)
    alpha = face_oval(rng, real.shape[:2]) * float(rng.choice([0.5, 0.75, 1.0, 1.0]))
    source = _nudge(rng, _refocus(rng, _recolor(rng, real, float(rng.uniform(0.3, 1.0)))), 1.0)
    return Manipulation(_blend(source, real, alpha), alpha, "identity_swap")


def face_swap(rng: np.random.Generator, real_HWC: ImageHWC, donor_HWC: ImageHWC) -> Manipulation:
    """Paste the inner face of another person, its colours matched to the target's inside the oval."""
    real, donor = real_HWC.astype(np.float32), donor_HWC.astype(np.float32)
    alpha = face_oval(rng, real.shape[:2])
    inside = alpha > 0.5
    for channel in range(3):
        mean, std = donor[inside, channel].mean(), donor[inside, channel].std() + 1e-3
        donor[..., channel] = (donor[..., channel] - mean) * (real[inside, channel].std() / std) + real[inside, channel].mean()
    donor = np.clip(donor, 0, 255)
    if rng.random() < 0.5:
        donor = _refocus(rng, donor)
    return Manipulation(_blend(_nudge(rng, donor, 0.7), real, alpha), alpha, "identity_swap")


_PLACES = {
    "eyes": ((0.33, 0.40), (0.67, 0.40)),
    "brows": ((0.33, 0.31), (0.67, 0.31)),
    "nose": ((0.5, 0.56),),
    "mouth": ((0.5, 0.75),),
    "cheeks": ((0.26, 0.60), (0.74, 0.60)),
    "forehead": ((0.5, 0.18),),
    "chin": ((0.5, 0.90),),
    "hair": ((0.5, 0.06), (0.1, 0.25), (0.9, 0.25)),
}
"""Rough centres in a x1.3 crop, (x, y) as fractions: the mesh-guided editor replaces them where landmarks are at hand."""


def local_edit(rng: np.random.Generator, real_HWC: ImageHWC) -> Manipulation:
    """Change one place: recolour, refocus, warp, smooth away, copy from elsewhere, or add noise."""
    real = real_HWC.astype(np.float32)
    height, width = real.shape[:2]
    place = str(rng.choice(list(_PLACES)))
    spots = _PLACES[place]
    chosen = spots if rng.random() < 0.4 else (spots[int(rng.integers(len(spots)))],)
    alpha = np.zeros((height, width), np.float32)
    for x, y in chosen:
        radii = (rng.uniform(0.06, 0.2), rng.uniform(0.05, 0.16))
        alpha = np.maximum(alpha, blob(rng, (height, width), (x + rng.uniform(-0.05, 0.05), y + rng.uniform(-0.05, 0.05)), radii))
    edit = str(rng.choice(["recolor", "refocus", "warp", "smooth", "copy", "texture"]))
    forgery_type = "attribute_manipulation"
    if edit == "recolor":
        source = _recolor(rng, real, 1.6)
    elif edit == "refocus":
        source = _refocus(rng, _recolor(rng, real, 0.3))
    elif edit == "warp":
        ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
        amplitude = 0.02 * width
        dx, dy = (_smooth_field(rng, (height, width), 4, amplitude) * alpha for _ in range(2))
        source = cv2.remap(real, xs + dx, ys + dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        forgery_type = "expression_swap" if place in ("mouth", "eyes", "brows") else forgery_type
    elif edit == "smooth":
        source = cv2.bilateralFilter(real, 9, float(rng.uniform(25, 60)), float(rng.uniform(5, 11)))
        source = source + rng.normal(0, rng.uniform(0, 2.5), real.shape).astype(np.float32)
    elif edit == "copy":
        source = (
            np.roll(real, tuple(int(v) for v in rng.integers(-width // 8, width // 8, 2)), (0, 1)) if rng.random() < 0.5 else real[:, ::-1].copy()
        )
    else:
        source = real + _smooth_field(rng, (height, width), int(rng.integers(24, 64)), float(rng.uniform(5, 14)))[..., None]
    return Manipulation(_blend(np.clip(source, 0, 255).astype(np.float32), real, alpha), alpha, forgery_type)
