"""What an engine says of a face in measured words: the annotator's rules and grammar on what serving sees, so that a sentence states what is there.

A decoder that learned such texts writes their words fluently and their facts as a guess: it has seen no measurement. Here each place is measured on
the crop, against its surroundings and against what real faces show (`engines.findings`), and worded by the grammar (`engines.grammar`).

Shapes: S the side of the crop in pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines import fict, grammar
from engines.findings import MIN_BASELINE_PX, MIN_CONCEPT_PX, measured_at, steady_for, worth_saying
from engines.measure import dilate
from engines.prompts import Level
from engines.regions import Regions

REGION_DILATION_PX = 2
"""By which the mask of a place may leave its region: edges of regions are no more exact; for a crop of 224 px."""
MOST_PLACES, MOST_PARTS = 4, 3
"""That an explanation names; of a face that was synthesised as a whole."""
BESIDES_THE_FACE = ("scene",)
"""Groups of FICT whose parts are not held against real faces where all of a face was synthesised."""


class Marked(NamedTuple):
    """A place with its mask."""

    concept: str
    mask_HW: NDArray[np.bool_]
    """(S, S)."""


class Worded(NamedTuple):
    """Markup, and which of the places given each phrase of it is about."""

    markup: str
    places: tuple[int, ...]


def within_regions(names: Sequence[str], mask_HW: NDArray[np.bool_], found: Regions) -> list[Marked]:
    """Each named place with its part of an (S, S) mask."""
    rim = max(1, round(REGION_DILATION_PX * mask_HW.shape[0] / 224))
    return [Marked(name, mask_HW & dilate(found.mask(name), rim)) for name in names]


def farthest_parts(crop_HWC: NDArray[np.uint8], found: Regions) -> list[Marked]:
    """Of a face that was synthesised as a whole: the parts that look least like those of real faces, the farthest first."""
    parts = [Marked(part, found.mask(part)) for part in fict.cells(14) if fict.concepts()[part].path[0] not in BESIDES_THE_FACE]
    measured = [measured_at(*part, found, crop_HWC) for part in parts if int(part.mask_HW.sum()) >= MIN_CONCEPT_PX]
    measured.sort(key=lambda item: -item.strength)
    return [Marked(item.concept, item.mask_HW) for item in measured[:MOST_PARTS]]


def worded(
    crop_HWC: NDArray[np.uint8],
    found: Regions,
    marked: Sequence[Marked],
    *,
    forgery_type: str,
    level: Level,
    asked: str | None,
    most: int = MOST_PLACES,
) -> Worded | None:
    """Say what departs at marked places of an (S, S, 3) uint8 RGB crop; `asked` is the region of a question about one. None where no mask is left."""
    least = MIN_CONCEPT_PX if level == "image" else 1
    measured = {number: measured_at(*place, found, crop_HWC) for number, place in enumerate(marked) if int(place.mask_HW.sum()) >= least}
    chosen = worth_saying(tuple(measured.values()), most)
    if not chosen:
        return None
    claims = [item.claim for item in chosen]
    markup = grammar.explain(forgery_type, claims) if level == "image" else grammar.explain_area(claims, asked)
    number_of = {id(item): number for number, item in measured.items()}
    return Worded(markup, tuple(number_of[id(item)] for item in chosen))


def clean(crop_HWC: NDArray[np.uint8], found: Regions, *, level: Level, asked: str | None, area_HW: NDArray[np.bool_] | None) -> str | None:
    """What an untouched face, or an (S, S) area of it, is told; None where too little of it is seen to be measured."""
    if level != "image" and (area_HW is None or int(area_HW.sum()) < MIN_BASELINE_PX):
        return None
    try:
        steady = steady_for(crop_HWC, found, area_HW, asked)
    except ValueError:  # a crop that shows no part of a face
        return None
    return grammar.clean(steady) if level == "image" else grammar.clean_area(asked, steady)
