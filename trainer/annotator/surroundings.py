"""What lies around a face: skin, hair, headwear, clothing and background told apart by colour and place. No parser weights are installable.

Every face teaches its own colours. A place prior, laid down in the face's own frame, says where each class is expected; a colour histogram a class
is learned from the pixels that the prior gives it and refined by expectation maximisation (an atlas prior in the sense of Van Leemput et al., IEEE
TMI 1999), smoothed in space between rounds. Skin starts from the cheeks, darkened copies of them standing in for shadow. All lengths are in
half-widths and half-heights of the face's oval.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.annotator.face_axes import FaceAxes, face_axes, grown, polygon
from trainer.annotator.mesh import EYES

ImageHWC = NDArray[np.uint8]

GRID = 96
"""Colours are learned on this raster; the classes are drawn on the caller's."""
SKIN, HAIR, BACKGROUND, CLOTHING = range(4)
BINS = (16, 20, 20)
LAB_ORIGIN, LAB_SPAN = (0.0, -35.0, -30.0), (100.0, 80.0, 80.0)
"""Lightness, green-red and blue-yellow of CIELAB, cut into BINS; what lies outside falls into the outermost bin."""
NUM_BINS = BINS[0] * BINS[1] * BINS[2]
ROUNDS = 4
SHADES = ((1.1, 0.25), (1.0, 0.35), (0.82, 0.2), (0.65, 0.13), (0.5, 0.07))
"""(brightness, weight): the cheeks as they would look in more light and in shadow; necks and ears are darker than cheeks."""
FACE_WEIGHT = 600.0
"""Pixels that the cheeks count for in the skin's histogram, on GRID."""
EMPTY_BIN = 2e-3
UNSEEDED = 0.05
"""What a pixel counts for in the first histogram of a class that is not taken from its place."""
ALIKE_DISTANCE = 0.12
"""Colours nearer to the forehead's median (CIELAB) than that share of its lightness are like it."""
UNLIKELY = 0.15
"""Factor on the prior of hair where a place above the brows looks like the forehead, and on that of skin where a colour is odd."""
STRAND_SHARE = 0.004
"""Hair is in one piece with hair off the face, or is none; pieces under this share of the raster are dropped."""
ODD_HUE_DEG, ODD_CHROMA, ODD_SHARE, ODD_SHARE_LOW = 60.0, 18.0, 0.5, 0.35
"""Odd colours are strong, with a hue that far from the cheeks'. Headwear: more than half of what grows above the brows is odd, and less than a third
of what grows below them (dyed hair falls lower than hats)."""
BACKGROUND_DISTANCE = 15.0
"""CIELAB distance between the median colours of headwear and background, or it is a coloured wall behind the head."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Classes of the pixels off the face, and on its edge and forehead, on the caller's raster; nowhere two at once."""

    skin_HW: NDArray[np.bool_]
    hair_HW: NDArray[np.bool_]
    headwear_HW: NDArray[np.bool_]
    clothing_HW: NDArray[np.bool_]


def divide(raster_HWC: ImageHWC, on_raster: FaceAxes) -> Surroundings:
    """Tell the classes apart on an (S, S, 3) uint8 RGB crop, on whose raster the face's axes are given.

    What looks like the forehead above it is more forehead, or a bald head, unless its neighbours are hair.
    """
    size = on_raster.size
    axes = face_axes(on_raster.points_M2, (size, size), GRID)
    lab_HWC = cv2.cvtColor(cv2.resize(raster_HWC, (GRID, GRID), interpolation=cv2.INTER_AREA).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    prior_HWK, seed_HWK = _place_prior(axes)
    alike = _like_forehead(lab_HWC, axes)
    seed_HWK[alike, HAIR] = UNSEEDED
    prior_HWK[alike & (axes.down_HW < axes.brow), HAIR] *= UNLIKELY
    prior_HWK[_odd_colours(lab_HWC, cheek_colour(lab_HWC, axes)), SKIN] *= UNLIKELY
    posterior_HWK = _learn(lab_HWC, lab_HWC[_cheeks(axes)], prior_HWK, seed_HWK)
    classes_HW = cv2.resize(posterior_HWK, (size, size), interpolation=cv2.INTER_LINEAR).argmax(-1)
    skin, hair = classes_HW == SKIN, classes_HW == HAIR
    hair = _grown_from_outside(hair, on_raster)
    worn = hair & (cv2.resize(_headwear(lab_HWC, posterior_HWK, axes), (size, size), interpolation=cv2.INTER_LINEAR) > 0.5)
    return Surroundings(skin, hair & ~worn, worn, classes_HW == CLOTHING)


def cheek_colour(lab_HWC: NDArray[np.float32], axes: FaceAxes) -> NDArray[np.float32]:
    """(3,) float32 CIELAB: median over the cheeks and the nose of a crop on the raster of `axes`; mid-grey where the mesh shows none."""
    cheeks = lab_HWC[_cheeks(axes)]
    return np.median(cheeks, 0) if len(cheeks) else np.array([50.0, 0.0, 0.0], np.float32)


def _place_prior(axes: FaceAxes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two (G, G, 4) float32: how likely each class is at a place, and where its colours are first taken from."""
    a, b, side = axes.across_HW, axes.down_HW, np.abs(axes.across_HW)
    off = _distance(~axes.oval_HW) / axes.half_width
    within = _distance(axes.oval_HW) / axes.half_width
    above = _step(axes.brow + 0.15 - b, 0.12)
    neck = _step(b - 0.6, 0.1) * _step(0.75 - side, 0.08) * _step(1.9 - b, 0.2)
    ear = _step(b - axes.brow, 0.08) * _step(axes.nose_base + 0.2 - b, 0.08)
    skin = np.maximum(np.maximum(0.6 * ear * _near(off, 0.16), 0.9 * above * _near(off, 0.2)), 1.2 * neck) + 0.02
    hair = 0.9 * above * _near(off, 0.6) + 0.4 * (1 - above) * _near(off, 0.5) + 0.02
    background = (0.25 + 0.35 * (1 - _near(off, 0.45))) * (1 - 0.8 * neck)
    clothing = 0.6 * _step(b - 1.12, 0.06)
    # On the face itself only hair competes with skin: on the forehead, and along the edge down to the mouth.
    forehead, edge = _step(axes.brow - 0.05 - b, 0.05), _near(within, 0.12)
    strand = forehead * (0.15 + 0.3 * edge) + (1 - forehead) * 0.15 * edge * _step(axes.mouth - b, 0.1) * (side > 0.6)
    none = np.zeros_like(a)
    outside = np.stack([skin, hair, background, clothing], -1)
    prior = np.where(axes.oval_HW[..., None], np.stack([1 - strand, strand, none, none], -1), outside)
    # Hair's colours come first from above the face, the background's from afar: what lies beside a face may be either.
    crown, afar = (b < axes.brow) & (side < 0.8), (off > 0.35) & (b < 0.9)
    seed = np.stack([np.ones_like(a), np.where(crown, 1, UNSEEDED), np.where(afar, 1, UNSEEDED), np.ones_like(a)], -1)
    return (prior / prior.sum(-1, keepdims=True)).astype(np.float32), seed.astype(np.float32)


def _learn(
    lab_HWC: NDArray[np.float32], cheeks_N3: NDArray[np.float32], prior_HWK: NDArray[np.float32], seed_HWK: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Posterior (G, G, 4) of the classes after ROUNDS of expectation maximisation."""
    bins_HW = _bins(lab_HWC)
    shaded = [weight * np.bincount(_bins((cheeks_N3 * shade).astype(np.float32)), minlength=NUM_BINS) for shade, weight in SHADES]
    face_B = np.sum(shaded, 0) * (FACE_WEIGHT / max(len(cheeks_N3), 1))
    posterior = prior_HWK * seed_HWK
    colours_KB = np.empty((4, NUM_BINS), np.float32)
    for _ in range(ROUNDS):
        for k in range(4):
            counts = np.bincount(bins_HW.ravel(), weights=posterior[..., k].ravel(), minlength=NUM_BINS)
            spread = _smoothed(0.5 * counts + face_B if k == SKIN else counts) + EMPTY_BIN
            colours_KB[k] = spread / spread.sum()
        posterior = prior_HWK * colours_KB.T[bins_HW]
        posterior = cv2.GaussianBlur(posterior / posterior.sum(-1, keepdims=True), (0, 0), 1.0)
    return posterior


def _cheeks(axes: FaceAxes) -> NDArray[np.bool_]:
    """Skin for certain: the face between eyes and mouth, its edge left out (where long hair falls)."""
    sure = axes.oval_HW & (axes.down_HW > axes.brow + 0.2) & (axes.down_HW < axes.mouth - 0.1) & (np.abs(axes.across_HW) < 0.75)
    for contour in EYES.values():
        sure &= ~polygon(grown(axes.points_M2[list(contour)], 1.5), axes.size)
    return sure


def _like_forehead(lab_HWC: NDArray[np.float32], axes: FaceAxes) -> NDArray[np.bool_]:
    """(G, G) colours that the forehead has too: seen above it, they are more forehead, or a bald head."""
    forehead = axes.oval_HW & (axes.down_HW < axes.brow - 0.1) & (np.abs(axes.across_HW) < 0.5)
    if not forehead.any():
        return np.zeros_like(axes.oval_HW)
    skin_3 = np.median(lab_HWC[forehead], 0)
    alike: NDArray[np.bool_] = np.linalg.norm(lab_HWC - skin_3, axis=-1) < ALIKE_DISTANCE * float(skin_3[0])
    return alike


def _grown_from_outside(hair_HW: NDArray[np.bool_], axes: FaceAxes) -> NDArray[np.bool_]:
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(hair_HW.astype(np.uint8), connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] >= STRAND_SHARE * hair_HW.size
    outside = np.bincount(pieces[~axes.oval_HW], minlength=len(stats)) > 0
    kept = large & outside
    kept[0] = False
    grown_HW: NDArray[np.bool_] = kept[pieces]
    return grown_HW


def _headwear(lab_HWC: NDArray[np.float32], posterior_HWK: NDArray[np.float32], axes: FaceAxes) -> NDArray[np.float32]:
    """(G, G) float32, 1 where headwear is: colours above the brows that neither skin nor natural hair has in this light."""
    hair, above = posterior_HWK[..., HAIR] > 0.5, axes.down_HW < axes.brow
    odd = _odd_colours(lab_HWC, cheek_colour(lab_HWC, axes))
    worn, behind = odd & hair & above, posterior_HWK[..., BACKGROUND] > 0.5
    shares = [float(odd[part].mean()) if part.any() else 0.0 for part in (hair & above, hair & ~above)]
    none = np.zeros(odd.shape, np.float32)
    if shares[0] <= ODD_SHARE or shares[1] >= ODD_SHARE_LOW:
        return none
    if behind.any() and np.linalg.norm(np.median(lab_HWC[worn], 0) - np.median(lab_HWC[behind], 0)) < BACKGROUND_DISTANCE:
        return none
    return cv2.morphologyEx(worn.astype(np.float32), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))


def _odd_colours(lab_HWC: NDArray[np.float32], skin_3: NDArray[np.float32]) -> NDArray[np.bool_]:
    chroma, hue = np.hypot(lab_HWC[..., 1], lab_HWC[..., 2]), np.arctan2(lab_HWC[..., 2], lab_HWC[..., 1])
    turn = np.abs((hue - math.atan2(float(skin_3[2]), float(skin_3[1])) + math.pi) % (2 * math.pi) - math.pi)
    odd: NDArray[np.bool_] = (chroma > ODD_CHROMA) & (turn > math.radians(ODD_HUE_DEG))
    return odd


def _bins(lab: NDArray[np.float32]) -> NDArray[np.int32]:
    scaled = (lab - np.array(LAB_ORIGIN, np.float32)) * (np.array(BINS, np.float32) / np.array(LAB_SPAN, np.float32))
    cell = np.clip(scaled.astype(np.int32), 0, np.array(BINS, np.int32) - 1)
    return (cell[..., 0] * BINS[1] + cell[..., 1]) * BINS[2] + cell[..., 2]


def _smoothed(counts_B: NDArray[Any]) -> NDArray[np.float32]:
    """Spread a histogram over its neighbouring bins (sigma 0.9 bins along each axis)."""
    along_l = cv2.GaussianBlur(counts_B.astype(np.float32).reshape(BINS[0], -1), (1, 5), 0.9)
    planes = np.ascontiguousarray(along_l.reshape(BINS).transpose(1, 2, 0))
    return cv2.GaussianBlur(planes, (5, 5), 0.9).transpose(2, 0, 1).ravel()


def _distance(mask_HW: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Pixels to the nearest place off the mask; where there is none, the raster's perimeter (OpenCV says 1e38)."""
    return np.minimum(cv2.distanceTransform(mask_HW.astype(np.uint8), cv2.DIST_L2, 3), np.float32(4 * mask_HW.shape[0]))


def _step(x_HW: NDArray[np.floating], width: float) -> NDArray[np.float32]:
    """A soft step from 0 to 1."""
    return (0.5 + 0.5 * np.tanh(x_HW / (2 * width))).astype(np.float32)


def _near(distance_HW: NDArray[np.float32], reach: float) -> NDArray[np.float32]:
    return np.exp(-((distance_HW / reach) ** 2))
