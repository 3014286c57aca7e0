"""Manipulations made here, whose mask is known exactly: attribute edits, self-blends, swaps between identities, expression warps, inpainting.

They teach what differences of a dataset cannot: where the change is, without its generator's fingerprint (self-blended images, arXiv:2204.08376); and
they are the truth against which masks are audited. Every manipulator takes a generator and an (H, W, 3) uint8 RGB face crop, never changes it, and
returns a `Manipulation`: pixels with alpha 0 are those of the real face, the exact mask is `alpha_HW > ALPHA_CUT`.

With a `Guide` (where the face lies on the crop) the place is a FICT region and `area`, a share of the face oval, is met to the pixel; without one the
place is a rough spot of a x1.3 crop, which takes a few milliseconds and is what training draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from engines import fict
from trainer.annotator.pixel_edits import EDITS, ImageF, displace, match_colours, nudge, recolor, reflect, refocus, smooth_field

ImageHWC = NDArray[np.uint8]

GRID = 29
"""Nodes a side of the grid on which a donor is aligned."""
ALPHA_CUT = 0.1
"""Pixels of which more than a tenth is new belong to the exact mask."""
FAINT_LEVELS = 3.0
"""Grey levels. Two JPEGs of one face at the qualities of data sets (75 to 95) differ by 1 in the median and by less than 2.5 in nine of ten."""

OUTER_CANTHI = (33, 263)
"""Mesh vertices: the subject's right and left outer eye corner."""
FEATURES: dict[str, tuple[tuple[int, ...], ...]] = {
    "mouth": ((61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185),),
    "eye": (
        (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246, 70, 63, 105, 66, 107),
        (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466, 300, 293, 334, 296, 336),
    ),
}
"""Mesh vertices around what an expression moves: the outer lip line; each eye with its brow."""
EDITED_CONCEPTS = tuple(name for name, node in fict.concepts().items() if node.level in ("part", "sub_part", "atom") and node.path[0] != "scene")
SWAPPED_CONCEPTS = tuple(
    name for name, node in fict.concepts().items() if node.level in ("group", "part") and node.path[0] in ("upper_face", "mid_face", "lower_face")
)


class Manipulation(NamedTuple):
    """A fake and where it was changed."""

    image_HWC: ImageHWC
    alpha_HW: NDArray[np.float32]
    """How much of each pixel is new, in [0, 1]; the exact mask is `alpha_HW > ALPHA_CUT`."""
    forgery_type: str
    recipe: str
    """Which manipulator made it: 'face_swap', 'mouth_warp', 'inpaint', ..."""


@dataclass(frozen=True, slots=True)
class Guide:
    """Where the face lies on a crop: its mesh and its FICT regions, as plain arrays of the crop's size."""

    landmarks_M2: NDArray[np.float32]
    """(468, 2) float32 (x, y) in pixels of the crop."""
    oval_HW: NDArray[np.bool_]
    """The face oval: what `area` is a share of."""
    mask: Callable[[str], NDArray[np.bool_]]
    """FICT concept -> its (H, W) region, all False where the face does not show it."""


RECIPES: dict[str, tuple[str, ...]] = {
    "attribute_manipulation": tuple(EDITS),
    "identity_swap": ("self_blend", "face_swap"),
    "expression_swap": ("mouth_warp", "eye_warp", "mouth_reenact", "eye_reenact"),
}
"""Local families -> their guided manipulators. Entire synthesis has no local mask."""


def change_levels(real_HWC: ImageHWC, fake_HWC: ImageHWC, exact_HW: NDArray[np.bool_]) -> float:
    """How visible a manipulation is, in grey levels: mean |real - fake| (max over channels) inside the exact mask less that outside.

    Taken on the images as saved, so that the codec's own noise is not counted as a change. Below `FAINT_LEVELS` a manipulation is called faint.
    """
    difference = cv2.absdiff(np.ascontiguousarray(real_HWC), np.ascontiguousarray(fake_HWC)).max(-1).astype(np.float32)
    outside = float(difference[~exact_HW].mean()) if not exact_HW.all() else 0.0
    return float(difference[exact_HW].mean()) - outside if exact_HW.any() else 0.0


# Where: soft places.


def blob(rng: np.random.Generator, shape: tuple[int, int], center_xy: tuple[float, float], radii_xy: tuple[float, float]) -> NDArray[np.float32]:
    """A soft, irregular ellipse: centre and radii as fractions of the crop; (H, W) float32 in [0, 1]."""
    height, width = shape
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    distance = ((xs / width - center_xy[0]) / radii_xy[0]) ** 2 + ((ys / height - center_xy[1]) / radii_xy[1]) ** 2
    inside = (distance + smooth_field(rng, shape, 5, 0.18) < 1.0).astype(np.float32)
    sigma = float(rng.uniform(0.004, 0.05)) * width * max(radii_xy) / 0.3
    return np.clip(cv2.GaussianBlur(inside, (0, 0), max(0.6, sigma)), 0.0, 1.0)


def face_oval(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The inner face of a x1.3 crop, jittered: what a swap replaces."""
    kind = rng.random()
    top = 0.0 if kind < 0.7 else 0.12  # some swaps stop below the brows
    radii = (rng.uniform(0.24, 0.36), rng.uniform(0.28, 0.40) - top / 2)
    return blob(rng, shape, (0.5 + rng.uniform(-0.03, 0.03), 0.52 + top + rng.uniform(-0.03, 0.03)), radii)


def grown(rng: np.random.Generator, region_HW: NDArray[np.bool_], pixels: int) -> NDArray[np.float32]:
    """Grow or shrink a region, its edge made irregular and soft, until `pixels` of them (fewer than all) exceed `ALPHA_CUT`."""
    outside, inside = (cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 3) for part in (~region_HW, region_HW))
    radius = float(np.sqrt(pixels / np.pi))
    field = outside - inside + smooth_field(rng, region_HW.shape, 9, 0.12 * radius)
    level = np.partition(field.ravel(), pixels)[pixels]
    ramp = max(1.0, float(rng.uniform(0.05, 0.5)) * radius)
    return np.clip((level - field) / ramp + ALPHA_CUT, 0.0, 1.0).astype(np.float32)


def _place(rng: np.random.Generator, guide: Guide, concepts: Sequence[str], area: float | None) -> NDArray[np.float32]:
    """Alpha over one of the concepts: the one nearest in size to the wanted area among eight drawn."""
    drawn = rng.choice(concepts, min(8, len(concepts)), replace=False)
    regions = [region for region in (guide.mask(str(name)) for name in drawn) if region.any()]
    face = int(guide.oval_HW.sum())
    if not regions:
        regions = [guide.oval_HW]
    if area is None:
        region = regions[0]
        return grown(rng, region, max(1, int(region.sum() * rng.uniform(0.6, 1.4))))
    pixels = min(max(1, round(area * face)), guide.oval_HW.size // 2)
    return grown(rng, min(regions, key=lambda region: abs(np.log(region.sum() / pixels))), pixels)


def _blend(source: ImageF, target: ImageF, alpha_HW: NDArray[np.float32]) -> ImageHWC:
    alpha = alpha_HW[..., None]
    return np.clip(np.clip(source, 0, 255) * alpha + target * (1 - alpha) + 0.5, 0, 255).astype(np.uint8)


# What: the manipulators.


def self_blend(rng: np.random.Generator, real_HWC: ImageHWC, guide: Guide | None = None, area: float | None = None) -> Manipulation:
    """Blend a face with a recoloured, refocused, nudged copy of itself: inside its oval, or over FICT regions where a guide tells them."""
    real = real_HWC.astype(np.float32)
    alpha = face_oval(rng, real.shape[:2]) * float(rng.choice([0.5, 0.75, 1.0, 1.0])) if guide is None else _swapped_place(rng, guide, area)
    source = nudge(rng, refocus(rng, recolor(rng, real, float(rng.uniform(0.3, 1.0)))), 1.0)
    return Manipulation(_blend(source, real, alpha), alpha, "identity_swap", "self_blend")


def face_swap(
    rng: np.random.Generator,
    real_HWC: ImageHWC,
    donor_HWC: ImageHWC,
    guide: Guide | None = None,
    donor_landmarks_M2: NDArray[np.float32] | None = None,
    area: float | None = None,
) -> Manipulation:
    """Paste another person's face, its colours matched to the target's; donor and target have one size.

    With a guide and the donor's (468, 2) landmarks the donor's features are laid on the target's; without, the two crops are taken as aligned.
    """
    real, donor = real_HWC.astype(np.float32), donor_HWC.astype(np.float32)
    alpha = face_oval(rng, real.shape[:2]) if guide is None else _swapped_place(rng, guide, area)
    aligned = guide is not None and donor_landmarks_M2 is not None
    if guide is not None and donor_landmarks_M2 is not None:
        donor = _aligned(donor, donor_landmarks_M2, guide.landmarks_M2)
    donor = match_colours(donor, real, alpha > 0.5)
    if rng.random() < 0.5:
        donor = refocus(rng, donor)
    return Manipulation(_blend(donor if aligned else nudge(rng, donor, 0.7), real, alpha), alpha, "identity_swap", "face_swap")


def attribute_edit(rng: np.random.Generator, real_HWC: ImageHWC, guide: Guide, area: float | None = None, *, edit: str | None = None) -> Manipulation:
    """Change one FICT region by one of `EDITS` (drawn where none is asked): another colour, focus, texture, make-up, a copy, a painted-over place."""
    real = real_HWC.astype(np.float32)
    alpha = _place(rng, guide, EDITED_CONCEPTS, area)
    edit = str(rng.choice(list(EDITS))) if edit is None else edit
    if edit == "mirror":
        source = reflect(real, guide.landmarks_M2[OUTER_CANTHI[0]], guide.landmarks_M2[OUTER_CANTHI[1]])
    else:
        source = EDITS[edit](rng, real, alpha)
    return Manipulation(_blend(source, real, alpha), alpha, "attribute_manipulation", edit)


def expression_warp(
    rng: np.random.Generator, real_HWC: ImageHWC, guide: Guide, area: float | None = None, *, feature: str = "mouth", render: bool = False
) -> Manipulation:
    """Move the 'mouth' or the 'eye's as an expression would: open, close, stretch, purse, raise or pull aside.

    `render` also recolours and refocuses what moved, as the decoder of a reenactment network does; without, the warp is all there is.
    """
    real = real_HWC.astype(np.float32)
    contours = [guide.landmarks_M2[list(points)] for points in FEATURES[feature]]
    if feature == "eye" and rng.random() < 0.5:
        contours = [contours[int(rng.integers(2))]]
    around = np.zeros(real.shape[:2], np.uint8)
    for contour in contours:
        cv2.fillConvexPoly(around, cv2.convexHull(np.round(contour).astype(np.int32)), 1)
    pixels = around.sum() * rng.uniform(1.0, 3.0) if area is None else area * guide.oval_HW.sum()
    pixels = min(max(1, round(float(pixels))), around.size // 2)
    alpha = grown(rng, around.astype(bool), pixels)
    dx_HW, dy_HW = _motion(rng, contours, guide.landmarks_M2, real.shape[:2], float(np.sqrt(pixels / len(contours) / np.pi)))
    moved = displace(real, dx_HW * alpha, dy_HW * alpha)
    if render:
        moved = refocus(rng, recolor(rng, moved, float(rng.uniform(0.2, 0.6)))) * alpha[..., None] + moved * (1 - alpha[..., None])
    return Manipulation(np.clip(moved + 0.5, 0, 255).astype(np.uint8), alpha, "expression_swap", f"{feature}_{'reenact' if render else 'warp'}")


def make(
    rng: np.random.Generator,
    recipe: str,
    real_HWC: ImageHWC,
    guide: Guide,
    donor_HWC: ImageHWC,
    donor_landmarks_M2: NDArray[np.float32] | None,
    area: float | None = None,
) -> Manipulation:
    """Run any recipe of `RECIPES` by name; only a face swap looks at the donor, whose landmarks may be unknown. Raises ValueError for other names."""
    if recipe not in chain.from_iterable(RECIPES.values()):
        raise ValueError(f"{recipe!r} is no manipulator; choose from {', '.join(chain.from_iterable(RECIPES.values()))}")
    if recipe == "self_blend":
        return self_blend(rng, real_HWC, guide, area)
    if recipe == "face_swap":
        return face_swap(rng, real_HWC, donor_HWC, guide, donor_landmarks_M2, area)
    if recipe in EDITS:
        return attribute_edit(rng, real_HWC, guide, area, edit=recipe)
    feature, _, manner = recipe.partition("_")
    return expression_warp(rng, real_HWC, guide, area, feature=feature, render=manner == "reenact")


def _swapped_place(rng: np.random.Generator, guide: Guide, area: float | None) -> NDArray[np.float32]:
    """A swap's own place is the hull of brows, eyes and mouth; of a wanted size, a part of the face."""
    if area is not None:
        return _place(rng, guide, SWAPPED_CONCEPTS, area)
    hull = np.zeros(guide.oval_HW.shape, np.uint8)
    features = [index for contours in FEATURES.values() for contour in contours for index in contour]
    cv2.fillConvexPoly(hull, cv2.convexHull(np.round(guide.landmarks_M2[features]).astype(np.int32)), 1)
    return grown(rng, hull.astype(bool), min(max(1, round(float(hull.sum() * rng.uniform(0.9, 1.6)))), hull.size // 2))


def _aligned(donor_HWC: ImageF, donor_M2: NDArray[np.float32], target_M2: NDArray[np.float32]) -> ImageF:
    """Thin-plate warp that lays the donor's landmarks on the target's."""
    height, width = donor_HWC.shape[:2]
    ys, xs = np.meshgrid(np.linspace(0, height - 1, GRID), np.linspace(0, width - 1, GRID), indexing="ij")
    spline = RBFInterpolator(target_M2[:468:3], donor_M2[:468:3], smoothing=1.0)  # every third of the 468 points is plenty
    source_GG2 = spline(np.stack([xs.ravel(), ys.ravel()], 1)).reshape(GRID, GRID, 2).astype(np.float32)
    # the grid's outer nodes lie on the outer pixels: cv2.resize would shift them by half a cell
    columns, rows = np.meshgrid(np.linspace(0, GRID - 1, width, dtype=np.float32), np.linspace(0, GRID - 1, height, dtype=np.float32))
    dense = cv2.remap(source_GG2, columns, rows, cv2.INTER_LINEAR)
    return cv2.remap(donor_HWC, dense[..., 0], dense[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _motion(
    rng: np.random.Generator, contours: Sequence[NDArray[np.float32]], landmarks_M2: NDArray[np.float32], shape: tuple[int, int], radius: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where each pixel is taken from, (dx, dy) in pixels: an expression's motion about the nearest contour, in the face's own axes."""
    across = landmarks_M2[OUTER_CANTHI[1]] - landmarks_M2[OUTER_CANTHI[0]]
    across = across / (np.linalg.norm(across) + 1e-6)
    down = np.array([-across[1], across[0]], np.float32)
    ys, xs = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    centres = np.stack([contour.mean(0) for contour in contours])
    nearest = np.argmin([(xs - x) ** 2 + (ys - y) ** 2 for x, y in centres], 0)
    offset_HW2 = np.stack([xs, ys], -1) - centres[nearest]
    half = max(float(np.ptp(contours[0] @ across)) / 2, 1.0)
    u_HW, v_HW = offset_HW2 @ across / half, offset_HW2 @ down / half
    # folds begin where a pixel is taken from about a radius away
    reach = float(rng.uniform(0.25, 0.6)) * radius * float(rng.choice([-1.0, 1.0]))
    along, upright = {
        "part": (0.0, np.tanh(3 * v_HW)), "stretch": (np.tanh(2 * u_HW), 0.0), "smile": (0.0, np.clip(u_HW**2, 0, 1) - 0.3),
        "raise": (0.0, 1.0), "pull": (1.0, 0.3),
    }[str(rng.choice(["part", "stretch", "smile", "raise", "pull"]))]  # fmt: skip
    motion_HW2 = reach * (np.broadcast_to(along, shape)[..., None] * across + np.broadcast_to(upright, shape)[..., None] * down)
    return motion_HW2[..., 0].astype(np.float32), motion_HW2[..., 1].astype(np.float32)


# Without a guide: rough places of a x1.3 crop, fast enough to draw in training.

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
"""Rough centres, (x, y) as fractions of the crop."""
_QUICK_EDITS = ("recolor", "refocus", "smooth", "copy", "mirror", "texture", "makeup")


def local_edit(rng: np.random.Generator, real_HWC: ImageHWC) -> Manipulation:
    """Change one rough place: recolour, refocus, smooth away, copy from elsewhere, make up, add texture, or warp."""
    real = real_HWC.astype(np.float32)
    shape = real.shape[:2]
    place = str(rng.choice(list(_PLACES)))
    spots = _PLACES[place]
    chosen = spots if rng.random() < 0.4 else (spots[int(rng.integers(len(spots)))],)
    alpha = np.zeros(shape, np.float32)
    for x, y in chosen:
        radii = (rng.uniform(0.06, 0.2), rng.uniform(0.05, 0.16))
        alpha = np.maximum(alpha, blob(rng, shape, (x + rng.uniform(-0.05, 0.05), y + rng.uniform(-0.05, 0.05)), radii))
    edit = str(rng.choice([*_QUICK_EDITS, "warp"]))
    if edit != "warp":
        return Manipulation(_blend(EDITS[edit](rng, real, alpha), real, alpha), alpha, "attribute_manipulation", edit)
    dx, dy = (smooth_field(rng, shape, 4, 0.02 * shape[1]) * alpha for _ in range(2))
    forgery_type = "expression_swap" if place in ("mouth", "eyes", "brows") else "attribute_manipulation"
    return Manipulation(_blend(displace(real, dx, dy), real, alpha), alpha, forgery_type, "warp")
