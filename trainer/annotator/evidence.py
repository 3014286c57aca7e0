"""What was measured at a named place, and which kind of artifact it amounts to: the facts behind every sentence.

Measurements become comparable as departures in standard deviations over real faces.
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import fict
from engines.contracts import Mask
from trainer.annotator import grammar

BELIEVED = 0.7
"""Departures under this many standard deviations (over real faces) are not named; the sentence then says only that the place is changed."""


@cache
def baseline() -> dict[str, dict[str, list[float]]]:
    """Concept -> measurement -> [mean, standard deviation] of `comparable` values over real training faces."""
    table: dict[str, dict[str, list[float]]] = json.loads((files("trainer.annotator") / "measure_baseline.json").read_text())
    return table


def comparable(measured: dict[str, float]) -> dict[str, float]:
    """Ratios as logarithms, shifts in grey levels as they are: values whose differences mean the same everywhere."""
    return {name: value if name.endswith("_shift") else math.log(max(value, 1e-3)) for name, value in measured.items()}


@dataclass(frozen=True, slots=True)
class ConceptEvidence:
    """One named place of an annotation and what was measured there."""

    concept: str
    mask_HW: NDArray[np.bool_]
    """(224, 224): artifact and region."""
    measured: dict[str, float]
    """`engines.measure` on the fake."""
    kind: grammar.Kind
    strength: float
    """Departure behind the sentence, in standard deviations over real faces."""

    def to_json(self) -> dict[str, Any]:
        """As in the JSON line."""
        mask = Mask.encode(self.mask_HW)
        return {
            "concept": self.concept, "phrase": fict.concepts()[self.concept].phrase, "mask": rle(mask), "area": round(float(self.mask_HW.mean()), 5),
            "kind": self.kind, "strength": round(self.strength, 3), "measured": self.measured,
        }  # fmt: skip


def choose_kind(fake: dict[str, float], twin: dict[str, float] | None, concept: str) -> tuple[grammar.Kind, float]:
    """The kind whose measurement departs most from the twin and, on the fake alone, to the same side of what real faces show there."""
    normal = next(baseline()[node] for node in reversed(fict.concepts()[concept].path) if node in baseline())  # atoms: that of their sub-part
    best: tuple[grammar.Kind, float] = ("altered", 0.0)
    values, reference = comparable(fake), comparable(twin) if twin is not None else None
    for kind, spec in grammar.KINDS.items():
        if spec.measurement == "difference":
            continue
        mean, spread = normal[spec.measurement]
        alone = spec.sign * (values[spec.measurement] - mean) / spread
        against_twin = alone if reference is None else spec.sign * (values[spec.measurement] - reference[spec.measurement]) / spread
        strength = min(against_twin, alone + BELIEVED) if reference is not None else alone
        if alone > 0.0 and strength >= max(best[1], BELIEVED):
            best = (kind, strength)
    return best


def rle(mask: Mask) -> dict[str, Any]:
    """COCO run lengths as they stand in a JSON line."""
    return {"size": list(mask.size_hw), "counts": mask.counts}
