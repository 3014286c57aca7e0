"""Which areas of a face are asked about: FICT concepts and boxes, some of them tampered and some clean.

Frame: the face crop at 224 x 224 px; a box is (x0, y0, x1, y1) in whole pixels, far edges exclusive.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines import fict
from engines.regions import Regions
from trainer.annotator.annotate import CLEAN_SHARE, TAMPERED_SHARE
from trainer.samples import SIDE

ASKED_LEVELS = ("part", "sub_part", "atom")
MIN_AREA_PX = 60
"""Smaller regions are not asked: the annotator names none either."""
NUM_BOXES = 48
"""Boxes drawn for a face; the asked ones are taken from these."""
RANDOM_BOXES = 1 / 3
"""Share of boxes that lie anywhere; the others lie around a concept."""
BOX_GROWTH, BOX_SHIFT = 0.35, 0.10
"""A box around a concept is larger than it by up to this share of its sides, and moved by up to this share of them."""
BOX_SIDE_PX = (16, 160)
"""Sides of boxes that lie anywhere, and the least side of all."""
MAX_BOX_SHARE = 0.6
"""Boxes over more of the crop would ask about the whole image."""


@dataclass(frozen=True, slots=True)
class Query:
    """One asked area: a concept or a box."""

    concept: str | None
    """FICT id, None for boxes."""
    box_xyxy: tuple[int, int, int, int] | None
    """None for concepts."""
    area_HW: NDArray[np.bool_]
    """(224, 224) the asked area on this face."""

    @property
    def phrase(self) -> str | None:
        """The concept in FICT's words."""
        return None if self.concept is None else fict.concepts()[self.concept].phrase


def tampered_state(masked_px: int, area_px: int, mask_px: int) -> bool | None:
    """Whether an area of `area_px` that holds `masked_px` of the `mask_px` artifact pixels is tampered; None where it is neither that nor clean.

    A small artifact that lies in a large area makes it tampered, however small its share of that area.
    """
    if masked_px >= TAMPERED_SHARE * area_px or (mask_px and masked_px >= TAMPERED_SHARE * mask_px):
        return True
    return False if masked_px < CLEAN_SHARE * area_px else None


class AskedAreas:
    """The areas of one face that could be asked, in a drawn order."""

    def __init__(self, rng: np.random.Generator, found: Regions, mask_HW: NDArray[np.bool_], *, outside_is_clean: bool) -> None:
        """`mask_HW` is the (224, 224) artifact mask. Without `outside_is_clean` (a face synthesised whole) no area counts as clean."""
        self._found, self._mask_HW, self._outside_is_clean = found, mask_HW, outside_is_clean
        self._mask_px = int(mask_HW.sum())
        self._atom_px = dict(zip(fict.cells(112), found.atom_pixels.tolist(), strict=True))
        self._masked_px = dict(zip(fict.cells(112), np.bincount(found.atom_HW[mask_HW], minlength=112).tolist(), strict=True))
        self._concepts = self._ordered_concepts(rng)
        self._boxes = self._drawn_boxes(rng)

    def regions(self, *, tampered: bool) -> Iterator[Query]:
        """Concepts of one state, part, sub-part and atom alike often."""
        for concept in self._concepts:
            if self._stated(self._pixels(self._masked_px, concept), self._pixels(self._atom_px, concept)) is tampered:
                yield Query(concept, None, self._found.mask(concept))

    def boxes(self, *, tampered: bool) -> Iterator[Query]:
        """Boxes of one state, around concepts or anywhere."""
        for x0, y0, x1, y1 in self._boxes:
            if self._stated(int(self._mask_HW[y0:y1, x0:x1].sum()), (y1 - y0) * (x1 - x0)) is tampered:
                area_HW = np.zeros((SIDE, SIDE), bool)
                area_HW[y0:y1, x0:x1] = True
                yield Query(None, (x0, y0, x1, y1), area_HW)

    def _stated(self, masked_px: int, area_px: int) -> bool | None:
        state = tampered_state(masked_px, area_px, self._mask_px)
        return None if state is False and not self._outside_is_clean else state

    def _pixels(self, by_atom: dict[str, int], concept: str) -> int:
        return sum(by_atom[atom] for atom in fict.concepts()[concept].atoms if atom in self._found.visible)

    def _ordered_concepts(self, rng: np.random.Generator) -> list[str]:
        by_level = {
            level: [concept for concept in _asked_concepts(level) if self._pixels(self._atom_px, concept) >= MIN_AREA_PX] for level in ASKED_LEVELS
        }
        # A weighted random order: first come first served by exponential clocks, a level's concepts sharing one rate.
        clock = {concept: rng.exponential(len(concepts)) for concepts in by_level.values() for concept in concepts}
        return sorted(clock, key=lambda concept: clock[concept])

    def _drawn_boxes(self, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
        boxes = []
        for number in range(NUM_BOXES):
            if rng.random() < RANDOM_BOXES or not self._concepts:
                boxes.append(_anywhere(rng))
            else:
                boxes.append(_around(rng, self._found.mask(self._concepts[number % len(self._concepts)])))
        return [box for box in dict.fromkeys(boxes) if (box[2] - box[0]) * (box[3] - box[1]) <= MAX_BOX_SHARE * SIDE * SIDE]


def _asked_concepts(level: str) -> Sequence[str]:
    """Concepts of a level; where two share their words ('hair'), the one that the words mean."""
    return [name for name, node in fict.concepts().items() if node.level == level and fict.by_phrase()[node.phrase] == name]


def _anywhere(rng: np.random.Generator) -> tuple[int, int, int, int]:
    low, high = np.log(BOX_SIDE_PX)
    width, height = np.exp(rng.uniform(low, high, 2))
    x, y = rng.uniform(0, SIDE - width), rng.uniform(0, SIDE - height)
    return _in_crop(x, y, x + width, y + height)


def _around(rng: np.random.Generator, region_HW: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(region_HW.any(1)), np.flatnonzero(region_HW.any(0))
    low, high = np.array([columns[0], rows[0]], float), np.array([columns[-1] + 1, rows[-1] + 1], float)
    center = (low + high) / 2 + rng.uniform(-BOX_SHIFT, BOX_SHIFT, 2) * (high - low)
    half = np.maximum((high - low) * rng.uniform(1, 1 + BOX_GROWTH, 2), BOX_SIDE_PX[0]) / 2
    return _in_crop(*(center - half), *(center + half))


def _in_crop(x0: float, y0: float, x1: float, y1: float) -> tuple[int, int, int, int]:
    """Whole pixels inside the crop, `BOX_SIDE_PX[0]` of them at least along each side."""
    least = BOX_SIDE_PX[0]
    left, top = (int(np.clip(round(float(low)), 0, SIDE - least)) for low in (x0, y0))
    right, bottom = (int(np.clip(round(float(high)), low + least, SIDE)) for high, low in ((x1, left), (y1, top)))
    return left, top, right, bottom
