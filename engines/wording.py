"""What an engine says of a face in measured words: the annotator's rules and grammar on what serving sees, so that a sentence states what is there.

A decoder that learned such texts writes their words fluently and their facts as a guess: it has seen no measurement. Here each place is measured on
the crop, against its surroundings and against what real faces show (`engines.findings`), and worded by the grammar (`engines.grammar`).

Shapes: S the side of the crop in pixels.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines import grammar
from engines.findings import MIN_BASELINE_PX, MIN_CONCEPT_PX, ConceptEvidence, measured_at, steady_for, worth_saying
from engines.prompts import Level
from engines.regions import Regions

MOST_PLACES = 4
"""That an explanation names."""


class Worded(NamedTuple):
    """Markup, and what each of its phrases is about, in their order."""

    markup: str
    told: tuple[ConceptEvidence, ...]


def measured(crop_HWC: NDArray[np.uint8], found: Regions, marked: Mapping[str, NDArray[np.bool_]], *, level: Level) -> tuple[ConceptEvidence, ...]:
    """Measure (S, S) masks by concept on an (S, S, 3) uint8 RGB crop; specks are left out, of areas only what is empty."""
    least = MIN_CONCEPT_PX if level == "image" else 1
    return tuple(measured_at(concept, mask_HW, found, crop_HWC) for concept, mask_HW in marked.items() if int(mask_HW.sum()) >= least)


def worded(evidence: Sequence[ConceptEvidence], *, forgery_type: str, level: Level, asked: str | None, most: int = MOST_PLACES) -> Worded | None:
    """Say what departs; `asked` is the region of a question about one. None where there is nothing to speak of."""
    told = worth_saying(evidence, most)
    if not told:
        return None
    claims = [item.claim for item in told]
    return Worded(grammar.explain(forgery_type, claims) if level == "image" else grammar.explain_area(claims, asked), told)


def clean(crop_HWC: NDArray[np.uint8], found: Regions, *, level: Level, asked: str | None, area_HW: NDArray[np.bool_] | None) -> str | None:
    """What an untouched face, or an (S, S) area of it, is told; None where too little of it is seen to be measured."""
    if level != "image" and (area_HW is None or int(area_HW.sum()) < MIN_BASELINE_PX):
        return None
    try:
        steady = steady_for(crop_HWC, found, area_HW, asked)
    except ValueError:  # a crop that shows no part of a face
        return None
    return grammar.clean(steady) if level == "image" else grammar.clean_area(asked, steady)
