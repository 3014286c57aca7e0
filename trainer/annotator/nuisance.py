"""What camera and codec did to the whole of a pair: registration, then one tone curve and one small filter for the whole crop.

A local manipulation is what remains after these. Both are fitted where the pair looks unmanipulated, by least trimmed squares: from three starts
(the frame around the face, everything, the least changed blocks) to the two fifths of the blocks that agree best, then to every block that fits.
The trimming is relative to local texture, so that flat blocks do not crowd out those that know about shift and blur. All images are (224, 224, 3).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
ImageHWC = NDArray[np.uint8]
Landmarks = tuple[Float, Float]
"""(468, 2) float32 of the real and of the fake crop, (x, y) in its pixels at 224."""

SIZE = 224
BLOCK = 8
BLOCKS = SIZE // BLOCK
MARGIN = 5
"""Pixels at the crop's edge that a shift or a filter cannot explain."""
RADIUS = 2
"""The filter is 5x5: it undoes half a pixel of shift, the blur of a resize, sharpening."""
TAPS = (2 * RADIUS + 1) ** 2
RIDGE = 1e-6
"""Of the mean eigenvalue; 1e-5 and more leave gamma in the shadows (empty-mask failures of real pairs double)."""
FRAME_BLOCKS = 3
TRIMMED = 0.4
"""Share of blocks taken as unmanipulated: swaps of tight crops change more than half (at 0.5, 88 % of DFDC's curated pairs are found, not 94)."""
GROWN = 2.0
"""Blocks below so many times the quiet blocks' median misfit join the last fits; without them lips and glare are extrapolated."""
WORTH, WORTH_WIDE = 0.93, 0.7
"""A fit must lower the quiet blocks' misfit to this share, or not raise it while that of `WIDE` of the blocks falls to the second (flat quiet blocks
say nothing of blur); else the images are left as they are."""
WIDE = 0.85
ROUNDING = 0.05
"""Misfit that rounding to 8 bits alone makes."""
TEXTURE = (1.5, 0.15)
"""Expected misfit in grey levels: constant, and per grey level a pixel of gradient."""
CLIPPED = (2.0, 253.0)
ECC_GAIN = 0.9
"""A motion is believed if it lowers 1 - correlation around the face to this share."""
ROTATION_PX = 0.35
"""Motion of the crop's edge by rotation or scale below which whole pixels of shift are enough: interpolation blurs, the filter does the rest."""
MISALIGNED_PX = 4.0
STILL = 0.3
"""Grey levels; quiet blocks that differ less need no registration."""


class Motion(NamedTuple):
    """How the real image was moved onto the fake."""

    shift_xy: tuple[float, float] = (0.0, 0.0)
    edge_px: float = 0.0
    """How far rotation and scale move the middle of an edge."""


@dataclass(frozen=True, slots=True)
class Explained:
    """The real twin as it would look had only the whole image been treated."""

    image_HWC: Float
    """(224, 224, 3) float32 in [0, 255]."""
    doubt_HW: Float
    """(224, 224) variance of the fit's own error, in grey levels squared: large for colours that the quiet blocks do not hold."""
    quiet_BB: NDArray[np.bool_]
    """(28, 28) blocks of 8 px that look unmanipulated."""
    misfit: float
    """Mean over the quiet blocks of the difference, in units of what their texture lets expect."""
    fitted: bool
    motion: Motion
    correlation: float
    """Enhanced correlation coefficient around the face after registration, -1 to 1."""
    margin: int
    """Pixels at the edge about which nothing is known."""


def explain(real_HWC: ImageHWC, fake_HWC: ImageHWC, landmarks: Landmarks | None = None) -> Explained:
    """Move, tone and filter the real image onto its fake."""
    moved, motion, correlation = _registered(real_HWC, fake_HWC, landmarks)
    real, fake = moved.astype(np.float32), fake_HWC.astype(np.float32)
    fit = _Fit(real, fake, gradient_power(moved))
    quiet, misfit = fit.run()
    margin = MARGIN + math.ceil(max(abs(motion.shift_xy[0]), abs(motion.shift_xy[1])) + motion.edge_px)
    return Explained(fit.predict(), fit.doubt(misfit), quiet, misfit, fit.parameters is not None, motion, correlation, margin)


def block_mean(map_HW: Float) -> Float:
    """(224, 224, ...) -> (28, 28, ...) means over blocks."""
    return np.asarray(cv2.resize(map_HW, (BLOCKS, BLOCKS), interpolation=cv2.INTER_AREA), np.float32)


def gradient_power(image_HWC: ImageHWC) -> Float:
    """(224, 224) squared gradient of luma, grey levels per pixel."""
    luma = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY).astype(np.float32)
    gx, gy = cv2.Sobel(luma, -1, 1, 0, scale=0.125), cv2.Sobel(luma, -1, 0, 1, scale=0.125)
    return np.asarray(gx * gx + gy * gy, np.float32)


class _Fit:
    """fake - real of each channel as a linear function of 25 neighbours, the other channels, and a curve; on every second pixel."""

    def __init__(self, real: Float, fake: Float, gradient: Float) -> None:
        self.real = real
        self.half = SIZE // 2
        self.features = [_features(real, channel) for channel in range(3)]
        self.before = [real[1::2, 1::2, channel].ravel() for channel in range(3)]
        self.after = [fake[1::2, 1::2, channel].ravel() for channel in range(3)]
        expected = TEXTURE[0] + TEXTURE[1] * np.sqrt(cv2.blur(gradient, (5, 5)))[1::2, 1::2].ravel()
        self.weights = [((after > CLIPPED[0]) & (after < CLIPPED[1])) / expected**2 for after in self.after]
        self.expected = TEXTURE[0] + TEXTURE[1] * np.sqrt(block_mean(gradient))
        self.parameters: list[Float] | None = None
        self.normal: list[NDArray[np.float64]] = []

    def run(self) -> tuple[NDArray[np.bool_], float]:
        """Fit; returns the quiet blocks and their misfit."""
        error = self._error(None)
        quiet, misfit = _trimmed(error)
        wide = untouched = _trimmed(error, WIDE)[1]
        for start in (_frame(), np.ones((BLOCKS, BLOCKS), bool), quiet):
            blocks = start
            for _ in range(2):
                parameters, normal = self._solve(blocks)
                error = self._error(parameters)
                blocks, level = _trimmed(error)
            level_wide = _trimmed(error, WIDE)[1]
            if level_wide > untouched:  # extrapolated from a plain background
                continue
            if level < WORTH * misfit or (level <= misfit + ROUNDING and level_wide < WORTH_WIDE * wide):
                wide = level_wide
                quiet, misfit, self.parameters, self.normal = blocks, level, parameters, normal
        for _ in range(2 if self.parameters is not None else 0):
            error = self._error(self.parameters)
            self.parameters, self.normal = self._solve(error <= GROWN * max(float(np.median(error[quiet])), 0.05))
            quiet, misfit = _trimmed(self._error(self.parameters))
        return quiet, misfit

    def predict(self) -> Float:
        """(224, 224, 3) the real image after the fit."""
        if self.parameters is None:
            return self.real
        channels = []
        for channel, theta in enumerate(self.parameters):
            kernel = np.ascontiguousarray(theta[:TAPS].reshape(2 * RADIUS + 1, -1))
            filtered = cv2.filter2D(self.real[..., channel], -1, kernel, borderType=cv2.BORDER_REPLICATE)
            curve = sum(weight * term for weight, term in zip(theta[TAPS:], _curve(self.real, channel), strict=True))
            channels.append(self.real[..., channel] + filtered + curve)
        return np.clip(np.stack(channels, -1), 0, 255).astype(np.float32)

    def doubt(self, misfit: float) -> Float:
        """(224, 224) leverage of each pixel under the fit, times the noise."""
        if self.parameters is None:
            return np.zeros((SIZE, SIZE), np.float32)
        leverage = np.zeros(self.half**2, np.float32)
        for features, normal in zip(self.features, self.normal, strict=True):
            leverage += np.einsum("ij,ij->i", features, np.linalg.solve(normal, features.T).T.astype(np.float32)) / 3
        spread = cv2.resize(leverage.reshape(self.half, self.half), (SIZE, SIZE))
        return np.asarray(spread * misfit**2, np.float32)

    def _solve(self, blocks: NDArray[np.bool_]) -> tuple[list[Float], list[NDArray[np.float64]]]:
        on = cv2.resize(blocks.astype(np.uint8), (self.half, self.half), interpolation=cv2.INTER_NEAREST).ravel()
        parameters, normals = [], []
        for features, weights, before, after in zip(self.features, self.weights, self.before, self.after, strict=True):
            kept = np.flatnonzero(weights * on)
            chosen = features[kept]
            weighted = chosen * weights[kept, None].astype(np.float32)
            normal = (chosen.T @ weighted).astype(np.float64)
            normal += np.eye(len(normal)) * (RIDGE * np.trace(normal) / len(normal) + 1e-9)
            parameters.append(np.linalg.solve(normal, weighted.T @ (after - before)[kept]).astype(np.float32))
            normals.append(normal)
        return parameters, normals

    def _error(self, parameters: list[Float] | None) -> Float:
        """(28, 28) largest channel's difference, over what the texture lets expect."""
        worst = np.zeros(self.half**2, np.float32)
        for channel, (before, after) in enumerate(zip(self.before, self.after, strict=True)):
            told = before if parameters is None else np.clip(before + self.features[channel] @ parameters[channel], 0, 255)
            worst = np.maximum(worst, np.abs(after - told))
        return np.asarray(block_mean(worst.reshape(self.half, self.half)) / self.expected, np.float32)


def _features(real: Float, channel: int) -> Float:
    padded = cv2.copyMakeBorder(real[..., channel], RADIUS, RADIUS, RADIUS, RADIUS, cv2.BORDER_REPLICATE)
    reach = range(2 * RADIUS + 1)
    neighbours = [padded[y + 1 : y + SIZE : 2, x + 1 : x + SIZE : 2] for y in reach for x in reach]
    return np.stack([*neighbours, *_curve(real[1::2, 1::2], channel)], -1).reshape(-1, TAPS + 6)


def _curve(real: Float, channel: int) -> list[Float]:
    """Terms of tone and colour: the other channels (saturation), a cubic, and a root for gamma in the shadows; all in grey levels."""
    value = (real[..., channel] - 128) / 128
    others = [real[..., (channel + 1) % 3], real[..., (channel + 2) % 3]]
    curved = [128 * value**2, 128 * value**3, np.full_like(value, 128.0), 128 * np.sqrt((1.03 + value) / 2)]
    return [*others, *(term.astype(np.float32) for term in curved)]


def _trimmed(error: Float, share: float = TRIMMED) -> tuple[NDArray[np.bool_], float]:
    kept = int(share * error.size)
    order = np.argpartition(error.ravel(), kept)[:kept]
    quiet = np.zeros(error.size, bool)
    quiet[order] = True
    return quiet.reshape(error.shape), float(error.ravel()[order].mean())


def _frame() -> NDArray[np.bool_]:
    frame = np.ones((BLOCKS, BLOCKS), bool)
    frame[FRAME_BLOCKS:-FRAME_BLOCKS, FRAME_BLOCKS:-FRAME_BLOCKS] = False
    return frame


# Registration.


def _registered(real: ImageHWC, fake: ImageHWC, landmarks: Landmarks | None) -> tuple[ImageHWC, Motion, float]:
    """Landmarks where the pair is clearly misaligned, then ECC around the face; whole pixels where shift is all."""
    around = _around_the_face()
    target, source = (cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY) for image in (fake, real))
    best = _ecc(target, source, around)
    if float(np.quantile(block_mean(cv2.absdiff(target, source).astype(np.float32)), TRIMMED)) < STILL:
        return np.ascontiguousarray(real), Motion(), best
    warp = np.eye(2, 3, dtype=np.float32)
    model = cv2.MOTION_EUCLIDEAN
    guess = _similarity(landmarks) if landmarks is not None else None
    if guess is not None and (found := _correlation(target, source, guess, around)) > 1 - ECC_GAIN * (1 - best):
        warp, model, best = guess, cv2.MOTION_AFFINE, found
    try:
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-5)
        _, refined = cv2.findTransformECC(target, source, warp.copy(), model, criteria, around, 3)
    except cv2.error:  # ECC does not converge on flat images, nor on two scenes
        refined = warp
    refined = _whole_pixels(np.asarray(refined, np.float32))
    if (found := _correlation(target, source, refined, around)) > 1 - ECC_GAIN * (1 - best):
        warp, best = refined, found
    if np.array_equal(warp, np.eye(2, 3, dtype=np.float32)):
        return np.ascontiguousarray(real), Motion(), best
    return _warped(real, warp), _motion(warp), best


def _around_the_face() -> NDArray[np.uint8]:
    """Where a swap does not reach: all but an ellipse in the middle."""
    around = np.full((SIZE, SIZE), 255, np.uint8)
    cv2.ellipse(around, (SIZE // 2, round(0.52 * SIZE)), (round(0.3 * SIZE), round(0.38 * SIZE)), 0, 0, 360, 0, -1)
    return around


def _similarity(landmarks: Landmarks) -> Float | None:
    """Similarity from the fake's pixels to the real's, or None where the pair is not clearly misaligned."""
    real, fake = landmarks
    matrix, _ = cv2.estimateAffinePartial2D(fake.astype(np.float32), real.astype(np.float32), method=cv2.LMEDS)
    if matrix is None:
        return None
    motion = _motion(matrix)
    return np.asarray(matrix, np.float32) if math.hypot(*motion.shift_xy) + motion.edge_px > MISALIGNED_PX else None


def _motion(warp: NDArray) -> Motion:
    center = np.array([(SIZE - 1) / 2] * 2)
    shift = warp[:, :2] @ center + warp[:, 2] - center
    edge = np.abs((warp[:, :2] - np.eye(2)) * SIZE / 2).max()
    return Motion((float(shift[0]), float(shift[1])), float(edge))


def _whole_pixels(warp: Float) -> Float:
    motion = _motion(warp)
    if motion.edge_px >= ROTATION_PX:
        return warp
    return np.array([[1, 0, round(motion.shift_xy[0])], [0, 1, round(motion.shift_xy[1])]], np.float32)


def _warped(image: NDArray[np.uint8], warp: Float) -> NDArray[np.uint8]:
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image, warp, (SIZE, SIZE), flags=flags, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _correlation(target: NDArray[np.uint8], source: NDArray[np.uint8], warp: Float, around: NDArray[np.uint8]) -> float:
    return _ecc(target, _warped(source, warp), around)


def _ecc(target: NDArray[np.uint8], source: NDArray[np.uint8], around: NDArray[np.uint8]) -> float:
    """Enhanced correlation coefficient; 0 where one of the two is flat and has none."""
    found = float(cv2.computeECC(target, source, around))
    return found if math.isfinite(found) else 0.0
