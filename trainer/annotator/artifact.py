"""Where a fake departs from its real twin: an adaptive mask at a chosen false-discovery rate, beside the paper's fixed share.

1. `nuisance.explain`: the real image is registered (landmarks, ECC), toned and filtered as a whole, fitted where nothing was manipulated.
2. The signed residual in luma and chroma is smoothed at three scales before its magnitude is taken: codec noise cancels, changes stay.
3. It is divided by the noise expected at each pixel: the variance of the codec re-encodes of both twins, of gradients and of fine texture, in the
   proportions that the unmanipulated blocks of this very pair show, and the fit's own doubt.
4. High threshold: the least level at which the share of null pixels above it (exponential tail) falls to the false-discovery rate times the share
   of the pair's; low threshold at five times the rate. Two nulls, the stricter wins: the re-encodes, and the pair outside of what stands out clearly.
5. Hysteresis; a pixel of the extent must hold a part of the change nearby (coarse scales bleed) and a seventh of the whole mask's.
6. Gaps are closed and specks opened by discs that grow with the mask.

Measured worse, each against what stood then: the unsigned difference over the codec's noise alone (dev faces: 27 % of disturbed real pairs keep a
mask against 0.1 %, IoU with exact masks 0.71 against 0.75); one re-encode instead of their mean (idempotent blocks are found); no second null (24 %
of real pairs saved at two qualities of 45 to 97 keep a mask against 0.4 %); no doubt of the fit (lips and glare are found in toned pairs); blocks up
to 2.5 times the expected noise let into the noise model instead of 1.7 (62 % of DFDC's curated pairs are found against 75 %); a floor at quality 80
or 70 (own manipulations missed: 2 and 4 % against 1 %). What it costs: about ten times the time of the unsigned difference.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from trainer.annotator.nuisance import SIZE as SIZE
from trainer.annotator.nuisance import Explained, Landmarks, block_mean, explain
from trainer.annotator.reference_mask import border_difference
from trainer.augment import jpeg

ImageHWC = NDArray[np.uint8]
Float = NDArray[np.float32]
Quality = Literal["good", "diffuse", "refused"]
Refusal = Literal["different_scene", "misregistered", "too_noisy", "empty_mask"]

CODEC_QUALITIES = (95, 88, 80, 70, 55)
"""JPEG re-encodes of the real twin that make up the noise floor; their variance maps are averaged, each scaled to the pair's noise (the nearest one
alone is near zero wherever the twin was itself saved at that quality)."""
FAKE_QUALITIES = (80, 55)
"""The fake is re-encoded too: where the twin was saved worse than the fake, its own re-encodes show less noise than the pair has."""
CLEANEST = 1
"""Index of the re-encode below whose noise no pair is believed to be: a twin saved again at its own quality changes in a few blocks only."""
FALSE_DISCOVERY = 0.01
LOW_FACTOR = 5.0
"""Second threshold of the hysteresis, in false-discovery rates: pixels above it count where they touch one above the first."""
SCALES = (0.8, 1.6, 3.2)
"""Gaussian sigma in pixels."""
TAIL, SEED_PX = 0.03, 20
"""Share of the null's pixels that its exponential tail is fitted to; pixels that must stand above a threshold for it to count as reached."""
CLEAR, CLEAR_FROM, REST_MIN_PX = 1.5, 2.5, 2000
"""What peaks above so many codec thresholds is no noise; the rest of the pair is a second null, which lifts the threshold where noise is of a kind
that the re-encodes do not show. At 1.6 fewer of DFDC's curated pairs are found (90 %, not 94), at 1.4 more real pairs keep a mask (2.8 %, not 2.2,
before `CHANGE_MIN`)."""
LEVEL_MIN, LEVEL_LOW_MIN, LOW_MAX = (4.4, 4.7, 5.8), 1.75, 2.2
"""Expected noises, by scale; levels below the first are not believed whatever the rate says: clean real pairs of the training faces reach 3.8, 4.1
and 5.4 in one of 200."""
NEARBY, NEARBY_SIGMAS = (0.25, 0.42, 0.6), 2.0
"""Share of the largest change within so many sigmas that a pixel must hold, by scale."""
MASK_SHARE, MASK_QUANTILE = 0.14, 0.8
"""Share of the mask's own large changes that a pixel must hold; the exact mask of a blend ends at a tenth, but the codec spreads about as much."""
CHANGE_MIN = 3.1
"""Grey levels (root mean square over luma and chroma, middle scale) that a mask must reach somewhere: codecs that meet their own blocks again leave
patches of up to so much. Real training pairs with a mask fall from 1.7 to 0.7 %; own manipulations that are missed rise from 1 to 8 %, the faint
ones."""
LEAST_NOISE = (0.22, 0.18, 0.15)
"""Grey levels, by scale: rounding to 8 bits moves whole areas by half a level, so that it hardly falls with the scale."""
GROWTH = 1.4
"""Blocks up to so many times the expected variance inform it; 4 lets swaps that fill the crop explain themselves away."""
VARIANCE_PX = 0.75
"""Sigma in blocks of 8 px over which the codec's variance is averaged."""
DOUBT = 40.0
"""Grey levels squared for each unit of the fit's leverage: colours that its blocks did not hold are doubted."""
CLOSE, OPEN = 0.7, 0.12
"""Diameters of the discs over the radius of a disc of the mask's area."""
CLOSE_MAX_PX, OPEN_MAX_PX = 25.0, 11.0
MIN_COMPONENT_PX, MAX_HOLE = 40, 0.01
AREA_DIFFUSE = 0.7
"""Share of the crop from which a mask no longer says where."""
MISFIT_MAX, NOISE_MAX = 4.0, 12.0
"""DFDC's curated pairs reach a misfit of 2.9, StarGAN's (whole tile synthesised again) 4.3; the median pair of strangers has 5.3 and a correlation of
0.1. Not noticed: 8 % of strangers, and turns by 6 degrees and more without landmarks."""
MISFIT_STRANGE, CORRELATION_STRANGE = 3.0, 0.6
LUMA_CHROMA = np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], np.float32).T
_PAD = 32
"""Pixels of replicated border, more than the largest disc reaches."""


@dataclass(frozen=True, slots=True)
class ArtifactMask:
    """Where a fake departs from its twin, and how that was decided."""

    mask_HW: NDArray[np.bool_]
    """(224, 224); empty where refused."""
    difference_HW: Float
    """(224, 224) float32 grey levels: max over channels of |registered real - fake|, smoothed 5x5."""
    facts: dict[str, float]
    """threshold, threshold_low (expected noises at the finest scale), false_discovery, noise_floor (grey levels), noise_quality, area,
    registration_error (grey levels at the border), misfit, correlation, shift_x, shift_y, edge_motion (px)."""
    quality: Quality = "good"
    refused: Refusal | None = None


class _Scale(NamedTuple):
    level_HW: Float
    """Change over expected noise."""
    null_HW: Float
    """The same of a re-encode of the real twin."""
    change_HW: Float
    """Grey levels."""


def artifact_mask(
    real_HWC: ImageHWC, fake_HWC: ImageHWC, *, landmarks: Landmarks | None = None, false_discovery: float = FALSE_DISCOVERY
) -> ArtifactMask:
    """Adaptive mask of a pair, both (224, 224, 3) uint8 RGB.

    `landmarks`: (468, 2) of the real and of the fake, in pixels of the crop; used only where the pair is clearly misaligned. Raises ValueError for
    other sizes or a rate outside (0, 1).
    """
    if real_HWC.shape != (SIZE, SIZE, 3) or fake_HWC.shape != (SIZE, SIZE, 3):
        raise ValueError(f"a pair is two {SIZE} x {SIZE} RGB crops, not {real_HWC.shape} and {fake_HWC.shape}; resize them with trainer.faces.fit")
    if not 0 < false_discovery < 1:
        raise ValueError(f"false_discovery is {false_discovery}; give a rate between 0 and 1")
    told = explain(real_HWC, fake_HWC, landmarks)
    change_HWC = np.abs(fake_HWC.astype(np.float32) - told.image_HWC)
    difference = np.asarray(cv2.GaussianBlur(change_HWC.max(-1), (5, 5), 0), np.float32)
    scales, noise, quality = _scales(told, fake_HWC)
    thresholds = _thresholds(scales, told, false_discovery)
    facts = {
        "threshold": thresholds[0][0], "threshold_low": thresholds[0][1], "false_discovery": false_discovery,
        "noise_floor": noise, "noise_quality": float(quality), "registration_error": border_difference(change_HWC.mean(-1)),
        "misfit": told.misfit, "correlation": told.correlation,
        "shift_x": told.motion.shift_xy[0], "shift_y": told.motion.shift_xy[1], "edge_motion": told.motion.edge_px,
    }  # fmt: skip
    refused = _distrusted(told, noise)
    mask = np.zeros((SIZE, SIZE), bool) if refused else _mask(scales, thresholds, told.margin)
    if refused is None and not mask.any():
        refused = "empty_mask"
    facts["area"] = float(mask.mean())
    grade: Quality = "refused" if refused else "diffuse" if facts["area"] > AREA_DIFFUSE else "good"
    return ArtifactMask(mask, difference, {name: round(value, 4) for name, value in facts.items()}, grade, refused)


def top_share_mask(difference_HW: Float, share: float = 0.05) -> NDArray[np.bool_]:
    """The paper's mask: the pixels with the largest differences, a fixed share of them whatever they are."""
    top: NDArray[np.bool_] = difference_HW >= np.quantile(difference_HW, 1 - share)
    return top


def iou(a_HW: NDArray[np.bool_], b_HW: NDArray[np.bool_]) -> float:
    """Intersection over union; 1 for two empty masks."""
    union = int((a_HW | b_HW).sum())
    return int((a_HW & b_HW).sum()) / union if union else 1.0


def _distrusted(told: Explained, noise: float) -> Refusal | None:
    if told.misfit > MISFIT_MAX or (told.misfit > MISFIT_STRANGE and told.correlation < CORRELATION_STRANGE):
        return "different_scene" if told.correlation < CORRELATION_STRANGE else "misregistered"
    return "too_noisy" if noise > NOISE_MAX else None


# Change over expected noise.


def _scales(told: Explained, fake: ImageHWC) -> tuple[list[_Scale], float, int]:
    """Levels at each scale, the noise floor in grey levels, and the codec quality nearest to it."""
    real = np.ascontiguousarray(np.round(told.image_HWC).astype(np.uint8))
    residual = np.asarray((fake.astype(np.float32) - told.image_HWC) @ LUMA_CHROMA, np.float32)
    inside = slice(told.margin, SIZE - told.margin)
    known = np.zeros_like(residual)
    known[inside, inside] = residual[inside, inside]
    pictures = [(real, quality) for quality in CODEC_QUALITIES] + [(np.ascontiguousarray(fake), quality) for quality in FAKE_QUALITIES]
    nulls = [np.asarray((jpeg(image, quality).astype(np.float32) - image) @ LUMA_CHROMA, np.float32) for image, quality in pictures]
    power, null_powers = _quiet_power(known, told), [_quiet_power(null, told) for null in nulls]
    nearest = int(np.argmin([abs(math.log((null + 0.05) / (power + 0.05))) for null in null_powers[: len(CODEC_QUALITIES)]]))
    texture = _texture(real)
    scales = []
    for sigma, least_noise in zip(SCALES, LEAST_NOISE, strict=True):
        smooth = cv2.GaussianBlur(known, (0, 0), sigma)
        smooth_nulls = [cv2.GaussianBlur(null, (0, 0), sigma) for null in nulls]
        variances = [cv2.GaussianBlur(block_mean(null * null), (0, 0), VARIANCE_PX) for null in smooth_nulls]
        pooled = sum(variance * (power / (null + 0.05)) for variance, null in zip(variances, null_powers, strict=True)) / len(nulls)
        least = least_noise**2
        floor = np.maximum(_full(variances[CLEANEST]), least)
        expected = np.maximum(_expected(block_mean(smooth * smooth), np.asarray(pooled), texture, told, least), floor)
        expected += DOUBT * told.doubt_HW[..., None]
        own = np.maximum(_full(variances[nearest]), least)
        scales.append(_Scale(_level(smooth, expected, sigma), _level(smooth_nulls[nearest], own, sigma), _level(smooth, None, sigma)))
    return scales, math.sqrt(power), CODEC_QUALITIES[nearest]


def _expected(observed_BBC: Float, codec_BBC: Float, texture_HWCK: Float, told: Explained, least: float) -> Float:
    """(224, 224, 3) variance: codec, gradients, fine texture and a constant, mixed as the blocks show that do not exceed four times the mix."""
    columns = []
    for channel in range(3):
        texture = texture_HWCK[:, :, channel]
        terms = [codec_BBC[..., channel, None], block_mean(texture), np.full((*codec_BBC.shape[:2], 1), least, np.float32)]
        design, target = np.concatenate(terms, -1).reshape(-1, texture.shape[-1] + 2), observed_BBC[..., channel].ravel()
        chosen, share = told.quiet_BB.ravel(), np.array([1.0, *[0.01] * texture.shape[-1], 1.0])
        for step in range(3):
            variance = design @ share + least
            if step:
                chosen = target < GROWTH * variance
            if int(chosen.sum()) < 100:
                chosen = told.quiet_BB.ravel()
            weight = 1 / variance[chosen]
            share, _ = nnls(design[chosen] * weight[:, None], target[chosen] * weight)
            share[-1] = max(share[-1], 1.0)
        columns.append(share[0] * _full(codec_BBC[..., channel]) + cv2.GaussianBlur(texture, (0, 0), 2.0) @ share[1:-1] + share[-1] * least)
    return np.stack(columns, -1).astype(np.float32)


def _texture(image: ImageHWC) -> Float:
    """(224, 224, 3, 3) for each of luma and chroma: a hundredth of the luma's squared gradient, of its own, of its own finest texture."""
    planes = image.astype(np.float32) @ LUMA_CHROMA
    gx, gy = cv2.Sobel(planes, -1, 1, 0, scale=0.125), cv2.Sobel(planes, -1, 0, 1, scale=0.125)
    gradient = gx * gx + gy * gy
    fine = (planes - cv2.GaussianBlur(planes, (0, 0), 1.0)) ** 2
    return np.asarray(0.01 * np.stack([np.repeat(gradient[..., :1], 3, -1), gradient, fine], -1), np.float32)


def _level(smooth_HWC: Float, expected_HWC: Float | None, sigma: float) -> Float:
    """Root mean square over channels, and over a neighbourhood of three quarters of the scale."""
    power = (smooth_HWC**2 if expected_HWC is None else smooth_HWC**2 / expected_HWC).mean(-1)
    return np.sqrt(np.maximum(cv2.GaussianBlur(power, (0, 0), 0.75 * sigma), 0.0)).astype(np.float32)


def _quiet_power(residual_HWC: Float, told: Explained) -> float:
    return float(block_mean((residual_HWC**2).sum(-1))[told.quiet_BB].mean())


def _full(blocks: Float) -> Float:
    return np.asarray(cv2.resize(blocks, (SIZE, SIZE)), np.float32)


# Levels -> mask.


def _thresholds(scales: list[_Scale], told: Explained, rate: float) -> list[tuple[float, float]]:
    """High and low threshold of each scale: by the codec's null, then also by the pair's own levels outside of what stands out clearly."""
    by_codec = []
    for scale, least in zip(scales, LEVEL_MIN, strict=True):
        quiet = [float(np.median(block_mean(levels)[told.quiet_BB])) for levels in (scale.level_HW, scale.null_HW)]
        null = scale.null_HW * max(1.0, quiet[0] / max(quiet[1], 1e-3))
        by_codec.append((max(_at_rate(null, scale.level_HW, rate), least), max(_at_rate(null, scale.level_HW, LOW_FACTOR * rate), LEVEL_LOW_MIN)))
    clear = np.zeros((SIZE, SIZE), bool)
    for scale, (high, low) in zip(scales, by_codec, strict=True):
        clear |= _touching(scale.level_HW >= max(low, CLEAR_FROM), scale.level_HW >= CLEAR * high)
    rest = cv2.dilate(clear.astype(np.uint8), np.ones((7, 7), np.uint8)) == 0
    if int(rest.sum()) < REST_MIN_PX:
        return by_codec
    found = []
    for scale, (high, low) in zip(scales, by_codec, strict=True):
        own = [_at_rate(scale.level_HW[rest], scale.level_HW, each) for each in (rate, LOW_FACTOR * rate)]
        found.append((max(high, own[0]), max(low, min(own[1], LOW_MAX))))
    return found


def _at_rate(null: Float, seen: Float, rate: float) -> float:
    """The least level above which the null's share is `rate` times the pair's; the null's tail is taken as exponential."""
    null, seen = np.sort(null, axis=None), np.sort(seen, axis=None)
    levels = np.linspace(0.0, float(seen[-1]), 512)
    start = int((1 - TAIL) * null.size)
    decay = max(float(null[start:].mean() - null[start]), 0.05)
    tail = TAIL * np.exp(-np.maximum(levels - null[start], 0.0) / decay)
    above_null = np.where(levels > null[start], tail, 1 - np.searchsorted(null, levels) / null.size)
    above = 1 - np.searchsorted(seen, levels) / seen.size
    reached = np.flatnonzero((above_null <= min(rate, 0.5) * above) & (above * seen.size >= SEED_PX))
    return float(levels[reached[0]]) if len(reached) else float(levels[-1]) + 1e-3


def _mask(scales: list[_Scale], thresholds: list[tuple[float, float]], margin: int) -> NDArray[np.bool_]:
    seed, extent = np.zeros((SIZE, SIZE), bool), np.zeros((SIZE, SIZE), bool)
    for scale, (high, low), sigma, nearby in zip(scales, thresholds, SCALES, NEARBY, strict=True):
        reach = 2 * round(NEARBY_SIGMAS * sigma) + 1
        largest = cv2.dilate(scale.change_HW, np.ones((reach, reach), np.uint8))
        seed |= scale.level_HW >= high
        extent |= (scale.level_HW >= low) & (scale.change_HW >= nearby * largest)
    seed, extent = _outward(seed & (scales[1].change_HW >= CHANGE_MIN), margin), _outward(extent, margin)
    mask = _touching(extent, seed)
    if not mask.any():
        return mask
    change = scales[0].change_HW
    mask = _touching(mask & _outward(change >= MASK_SHARE * np.quantile(change[mask], MASK_QUANTILE), margin), seed)
    return _clean(mask)


def _outward(map_HW: NDArray[np.bool_], margin: int) -> NDArray[np.bool_]:
    """The margin, about which nothing is known, continues what lies within it."""
    inner = np.ascontiguousarray(map_HW[margin:-margin, margin:-margin], np.uint8)
    return np.asarray(cv2.copyMakeBorder(inner, margin, margin, margin, margin, cv2.BORDER_REPLICATE), bool)


def _touching(extent_HW: NDArray[np.bool_], seed_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    _, labels = cv2.connectedComponents(extent_HW.astype(np.uint8))
    kept = np.zeros(int(labels.max()) + 1, bool)
    kept[np.unique(labels[seed_HW & extent_HW])] = True
    kept[0] = False
    connected: NDArray[np.bool_] = kept[labels]
    return connected


def _clean(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Close gaps and holes where the fake happens to equal its twin, then drop specks."""
    radius = math.sqrt(int(mask_HW.sum()) / math.pi)
    solid = cv2.copyMakeBorder(mask_HW.astype(np.uint8), _PAD, _PAD, _PAD, _PAD, cv2.BORDER_REPLICATE)
    solid = cv2.morphologyEx(solid, cv2.MORPH_CLOSE, _disc(min(CLOSE * radius, CLOSE_MAX_PX)))
    solid = cv2.morphologyEx(solid, cv2.MORPH_OPEN, _disc(min(OPEN * radius, OPEN_MAX_PX)))[_PAD:-_PAD, _PAD:-_PAD]
    _, labels, stats, _ = cv2.connectedComponentsWithStats(solid)
    kept = stats[:, cv2.CC_STAT_AREA] >= MIN_COMPONENT_PX
    kept[0] = False
    cleaned: NDArray[np.bool_] = kept[labels]
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~cleaned).astype(np.uint8), connectivity=4)
    holes = stats[:, cv2.CC_STAT_AREA] < MAX_HOLE * solid.size
    holes[0] = False
    filled: NDArray[np.bool_] = cleaned | holes[labels]
    return filled


def _disc(diameter: float) -> NDArray[np.uint8]:
    pixels = max(1, round(diameter)) | 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (pixels, pixels)), np.uint8)
