"""One draw of camera and codec for both members of a pair: whatever differs afterwards is the manipulation.

A quarter of the pairs get one more refocus on one member only (reals are softened, fakes sharpened): without it a detector learns "sharp = real".
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

ImageHWC = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Draw:
    """The parameters of one augmentation; apply it to as many images as share the scene."""

    size: int
    center_xy: tuple[float, float]
    zoom: float
    """Side of the window as a fraction of the image's."""
    angle_deg: float
    flip: bool
    gain: float
    bias: float
    saturation: float
    down: float | None
    blur: float | None
    noise: float | None
    jpeg: int | None
    noise_seed: int

    def geometry(self, shape_hw: tuple[int, int]) -> NDArray[np.float64]:
        """Affine map from output pixels to image pixels, pixel centres at +0.5."""
        height, width = shape_hw
        scale = self.zoom * min(height, width) / self.size
        angle = np.deg2rad(self.angle_deg)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
        if self.flip:
            rotation = rotation @ np.diag([-1.0, 1.0])
        half = np.array([self.size / 2, self.size / 2])
        center = np.array([self.center_xy[0] * width, self.center_xy[1] * height])
        return np.concatenate([rotation, (center - rotation @ half)[:, None]], 1)

    def image(self, image_HWC: ImageHWC) -> ImageHWC:
        """Cut, turn, light, degrade and encode; (size, size, 3) uint8 RGB out."""
        scale = self.zoom * min(image_HWC.shape[:2]) / self.size
        if scale > 1.5:  # warpAffine does not antialias
            image_HWC = cv2.resize(image_HWC, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA)
        to_image = self.geometry(image_HWC.shape[:2])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        cut = cv2.warpAffine(image_HWC, _half_pixel(to_image), (self.size, self.size), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        x = cut.astype(np.float32)
        gray = x.mean(-1, keepdims=True)
        x = (gray + (x - gray) * self.saturation - 127.5) * self.gain + 127.5 + self.bias
        x = np.clip(x, 0, 255)
        if self.down is not None:
            side = max(16, int(self.size * self.down))
            x = cv2.resize(cv2.resize(x, (side, side), interpolation=cv2.INTER_AREA), (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        if self.blur is not None:
            x = cv2.GaussianBlur(x, (0, 0), self.blur)
        if self.noise is not None:
            x = x + np.random.default_rng(self.noise_seed).standard_normal(x.shape, np.float32) * self.noise
        degraded = np.clip(x + 0.5, 0, 255).astype(np.uint8)
        return degraded if self.jpeg is None else jpeg(degraded, self.jpeg)

    def alpha(self, alpha_HW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take a mask along: same window, no light, no codec; mirrored beyond the border, as the image is."""
        to_image = self.geometry(alpha_HW.shape)
        return cv2.warpAffine(
            alpha_HW, _half_pixel(to_image), (self.size, self.size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101
        )


def _half_pixel(matrix_23: NDArray[np.float64]) -> NDArray[np.float64]:
    """OpenCV puts pixel centres on integers; our maps put them at +0.5."""
    shifted = matrix_23.copy()
    shifted[:, 2] += matrix_23[:, :2] @ np.array([0.5, 0.5]) - 0.5
    return shifted


def jpeg(image_HWC: ImageHWC, quality: int) -> ImageHWC:
    """Encode and decode."""
    _, encoded = cv2.imencode(".jpg", image_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]


def draw(rng: np.random.Generator, size: int) -> Draw:
    """The training distribution: flip, window 0.75-1, +-10 degrees, light, down-up scaling, blur, noise, JPEG 35-95."""
    zoom = float(np.sqrt(rng.uniform(0.75, 1.0)))
    slack = (1 - zoom) / 2
    return Draw(
        size=size,
        center_xy=(0.5 + float(rng.uniform(-slack, slack)), 0.5 + float(rng.uniform(-slack, slack))),
        zoom=zoom,
        angle_deg=float(rng.uniform(-10, 10)) if rng.random() < 0.5 else 0.0,
        flip=bool(rng.random() < 0.5),
        gain=float(rng.uniform(0.75, 1.25)),
        bias=float(rng.uniform(-20, 20)),
        saturation=float(rng.uniform(0.6, 1.4)),
        down=float(rng.uniform(0.35, 0.95)) if rng.random() < 0.4 else None,
        blur=float(rng.uniform(0.3, 1.5)) if rng.random() < 0.2 else None,
        noise=float(rng.uniform(1, 6)) if rng.random() < 0.2 else None,
        jpeg=int(rng.integers(35, 96)) if rng.random() < 0.7 else None,
        noise_seed=int(rng.integers(2**31)),
    )


def refocus_one(rng: np.random.Generator, real_HWC: ImageHWC, fake_HWC: ImageHWC) -> tuple[ImageHWC, ImageHWC]:
    """Soften the real or sharpen the fake, so that sharpness says nothing about truth."""
    if rng.random() < 0.6:
        return cv2.GaussianBlur(real_HWC, (0, 0), float(rng.uniform(0.5, 1.3))), fake_HWC
    soft = cv2.GaussianBlur(fake_HWC, (0, 0), float(rng.uniform(0.8, 1.6))).astype(np.float32)
    sharp = fake_HWC.astype(np.float32) * 2 - soft
    return real_HWC, np.clip(sharp, 0, 255).astype(np.uint8)
