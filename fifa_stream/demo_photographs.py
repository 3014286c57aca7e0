"""The frames of the demo: public-domain photographs as they are, manipulated in a known place, without a face, and broken.

The manipulations are simple, deterministic and their place is known: they show what the stream does, not what the best forgers can. A manipulated
frame and its untouched twin go through the same codec once, so that nothing but the manipulation tells them apart.
"""

from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.float32]
"""(H, W, 3) RGB, 0..255."""

_ASTRONAUT_POINTS_52 = np.array([[203.4, 101.6], [247.2, 104.8], [223.3, 125.2], [203.3, 142.4], [241.2, 144.7]], np.float32)
"""Right eye, left eye, nose tip, right and left mouth corner (the subject's sides) in astronaut.jpg, as CenterFace finds them."""

_JPEG_QUALITY = 92


@dataclass(frozen=True, slots=True)
class DemoFrame:
    """One record of the demo and what should become of it."""

    name: str
    encoded: bytes
    kind: Literal["untouched", "manipulated", "no_face", "broken", "own"]
    twin: str | None = None
    """Name of the untouched frame that this one must score above."""
    place: str = ""
    """Where it was manipulated, in words."""


@dataclass(frozen=True, slots=True)
class _Portrait:
    image_HWC: Pixels
    points_52: NDArray[np.float32]

    @property
    def eye_distance(self) -> float:
        return float(np.linalg.norm(self.points_52[1] - self.points_52[0]))


def demo_frames() -> list[DemoFrame]:
    """Every frame in the order it is sent; each untouched photograph comes before its manipulated copies."""
    portraits = _portraits()
    frames = []
    for name, portrait in portraits.items():
        frames.append(DemoFrame(name, _jpeg(portrait.image_HWC), "untouched"))
        for strength in _STRENGTHS[name]:
            edited = _mouth_warp(portrait, strength)
            frames.append(DemoFrame(f"{name}, mouth widened ({strength:g})", _jpeg(edited), "manipulated", name, "the mouth"))
    frames.append(DemoFrame("rocket launch", _photograph("rocket.jpg"), "no_face"))
    frames.append(DemoFrame("cat", _photograph("chelsea.jpg"), "no_face"))
    whole = _photograph("astronaut.jpg")
    frames.append(DemoFrame("astronaut, file cut short", whole[: len(whole) // 3], "broken"))
    return frames


def _photograph(name: str) -> bytes:
    return (files("fifa_stream") / "demo_frames" / name).read_bytes()


def _portraits() -> dict[str, _Portrait]:
    """The portrait as it is, mirrored, and cut closer: three untouched frames of one public-domain face."""
    with Image.open(BytesIO(_photograph("astronaut.jpg"))) as opened:
        image = np.asarray(opened.convert("RGB"), np.float32)
    points = _ASTRONAUT_POINTS_52
    mirrored = points[[1, 0, 2, 4, 3]] * (-1, 1) + (image.shape[1], 0)
    left, top, side = 96, 0, 272
    return {
        "astronaut": _Portrait(image, points),
        "astronaut, mirrored": _Portrait(np.ascontiguousarray(image[:, ::-1]), mirrored.astype(np.float32)),
        "astronaut, closer": _Portrait(image[top : top + side, left : left + side].copy(), points - np.array([left, top], np.float32)),
    }


def _mouth_warp(portrait: _Portrait, strength: float) -> Pixels:
    """The mouth pulled larger and softened: another expression."""
    unit = portrait.eye_distance
    center = portrait.points_52[3:5].mean(0)
    alpha_HW = _oval(portrait, center, (0.72 * unit, 0.5 * unit), feather=0.1)
    ys, xs = np.mgrid[0 : portrait.image_HWC.shape[0], 0 : portrait.image_HWC.shape[1]].astype(np.float32)
    zoom = 1 - np.float32(0.3 * strength) * alpha_HW
    warped = _sample(portrait.image_HWC, center[0] + (xs - center[0]) * zoom, center[1] + (ys - center[1]) * zoom)
    soft = np.asarray(_image(warped).filter(ImageFilter.GaussianBlur(0.02 * unit * strength)), np.float32)
    return _blended(soft, portrait.image_HWC, alpha_HW)


_STRENGTHS = {"astronaut": (1.0, 1.2), "astronaut, mirrored": (0.8, 1.1), "astronaut, closer": (0.8, 1.2)}
"""Portrait to how strongly its mouth is widened (1 = plain to see). What the engine misses on these portraits is in docs/experiments.md."""


def _oval(portrait: _Portrait, center_xy: NDArray[np.float32], radii_xy: tuple[float, float], *, feather: float) -> NDArray[np.float32]:
    """(H, W) alpha of an ellipse that turns with the eye line; `feather` is the blur of its edge in eye distances."""
    height, width = portrait.image_HWC.shape[:2]
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    across = (portrait.points_52[1] - portrait.points_52[0]) / portrait.eye_distance
    u = (xs - center_xy[0]) * across[0] + (ys - center_xy[1]) * across[1]
    v = (ys - center_xy[1]) * across[0] - (xs - center_xy[0]) * across[1]
    inside = (u / radii_xy[0]) ** 2 + (v / radii_xy[1]) ** 2 < 1
    alpha = Image.fromarray(inside.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(feather * portrait.eye_distance))
    return np.asarray(alpha, np.float32) / np.float32(255)


def _sample(image_HWC: Pixels, xs_HW: NDArray[np.float32], ys_HW: NDArray[np.float32]) -> Pixels:
    """Bilinear look-up at pixel positions, clamped to the border."""
    height, width = image_HWC.shape[:2]
    xs, ys = np.clip(xs_HW, 0, width - 1.001), np.clip(ys_HW, 0, height - 1.001)
    x0, y0 = xs.astype(np.intp), ys.astype(np.intp)
    fx, fy = (xs - x0)[..., None], (ys - y0)[..., None]
    above = image_HWC[y0, x0] * (1 - fx) + image_HWC[y0, x0 + 1] * fx
    below = image_HWC[y0 + 1, x0] * (1 - fx) + image_HWC[y0 + 1, x0 + 1] * fx
    return np.asarray(above * (1 - fy) + below * fy, np.float32)


def _blended(source_HWC: Pixels, target_HWC: Pixels, alpha_HW: NDArray[np.float32]) -> Pixels:
    alpha = alpha_HW[..., None]
    return np.asarray(source_HWC * alpha + target_HWC * (1 - alpha), np.float32)


def _image(image_HWC: Pixels) -> Image.Image:
    return Image.fromarray(np.clip(image_HWC + 0.5, 0, 255).astype(np.uint8))


def _jpeg(image_HWC: Pixels) -> bytes:
    buffer = BytesIO()
    _image(image_HWC).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
