"""What was measured at a named place, and which claim it amounts to: the facts behind every sentence, in training and in serving.

Measurements become comparable as departures in standard deviations over real faces, at the same concept and for a like share of it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from engines import fict
from engines.claims import KINDS, Basis, Bearing, Claim, Finding, Kind, Measurement, Place, Steady, holds
from engines.contracts import Mask
from engines.measure import GAP_PX, SURROUNDINGS_PX, dilate, measure_region
from engines.regions import Regions

BELIEVED = 0.7
"""Departures under this many standard deviations (over real faces) are not named; the sentence then says only that the place is changed."""
VISIBLE = 0.3
"""A departure from the twin is named only if the fake alone departs from real faces by so much: who reads the text has no twin."""
BELIEVED_ALSO = 1.0
"""A second finding needs more than the first: it is said in passing."""
NEUTRAL = 0.5
"""Real faces show no difference from the surroundings where their mean is within so many standard deviations of none."""
WHOLE_EXTENT, PATCH_EXTENT = 0.8, 0.3
"""Masks that cover this share of a concept, and more or less, are held against whole concepts or against patches; between, against both by weight."""
PLACED = 0.3
"""A mask lies in the upper part where its centroid is so many spreads of the concept above the concept's; likewise the other ways."""
GATHERED = 0.7
"""A mask lies in the centre where its spread is below this share of the concept's."""
MAJORITY = 0.5
"""Share of the ring around a mask that a neighbour must fill to be named."""
SURROUNDS = 0.35
"""A neighbour whose centroid in the ring is nearer to the mask's than this share of the ring's radius lies around it."""

MIN_CONCEPTS, MIN_CONCEPT_PX = 2, 60
"""Places without a believed measurement are named only to reach the former number; of the 224 px crop, less of a place is not named."""
REGION_DILATION_PX = 2
"""By which the mask of a place may leave its region: edges of regions are no more exact; for a crop of 224 px."""
MOST_PARTS = 3
"""That are told of a face which was synthesised as a whole."""
FACE_PARTS = tuple(part for part in fict.cells(14) if fict.concepts()[part].path[0] != "scene")
MIN_BASELINE_PX = 60
"""Least pixels of a region that is held against real faces as a whole."""


@dataclass(frozen=True, slots=True)
class ConceptEvidence:
    """One named place of an annotation, what was measured there, and what is said of it."""

    mask_HW: NDArray[np.bool_]
    """(224, 224): artifact and region."""
    measured: dict[str, float]
    """`engines.measure` on the fake."""
    claim: Claim

    @property
    def concept(self) -> str:
        """FICT id."""
        return self.claim.concept

    @property
    def kind(self) -> Kind:
        """Of the claim."""
        return self.claim.kind

    @property
    def strength(self) -> float:
        """Departure behind the sentence, in standard deviations over real faces."""
        return self.claim.strength

    def to_json(self) -> dict[str, Any]:
        """As in the JSON line; `claim` is read back by `claims.read_claim`."""
        mask = Mask.encode(self.mask_HW)
        return {
            "concept": self.concept, "phrase": self.claim.phrase, "mask": rle(mask), "area": round(float(self.mask_HW.mean()), 5),
            "kind": self.kind, "strength": self.strength, "measured": self.measured, "claim": self.claim.to_json(),
        }  # fmt: skip


def measured_at(
    concept: str, mask_HW: NDArray[np.bool_], found: Regions, fake: NDArray[np.uint8], real: NDArray[np.uint8] | None = None
) -> ConceptEvidence:
    """Measure a mask (S, S) within a concept on an (S, S, 3) uint8 crop and say what departs: from the twin `real`, or from what real faces show."""
    measured = measure_region(fake, mask_HW)
    return ConceptEvidence(mask_HW, measured, claim_for(concept, mask_HW, found, measured, None if real is None else measure_region(real, mask_HW)))


def within(concept: str, mask_HW: NDArray[np.bool_], found: Regions) -> NDArray[np.bool_]:
    """What of an (S, S) mask lies in a concept and a rim of `REGION_DILATION_PX`."""
    return mask_HW & dilate(found.mask(concept), max(1, round(REGION_DILATION_PX * mask_HW.shape[0] / 224)))


def farthest(parts: Mapping[str, NDArray[np.bool_]], found: Regions, fake: NDArray[np.uint8], most: int = MOST_PARTS) -> tuple[ConceptEvidence, ...]:
    """Of a face that was synthesised as a whole: which of its parts, given with their (S, S) regions, look least like those of real faces."""
    evidence = [measured_at(part, region_HW, found, fake) for part, region_HW in parts.items() if int(region_HW.sum()) >= MIN_CONCEPT_PX]
    return tuple(sorted(evidence, key=lambda item: -item.strength)[:most])


def worth_saying(evidence: Sequence[ConceptEvidence], most: int) -> tuple[ConceptEvidence, ...]:
    """What was measured comes first; places where nothing departs are named only to reach the least number of sentences."""
    believed = [item for item in evidence if item.strength >= BELIEVED]
    unmeasured = [item for item in evidence if item.strength < BELIEVED]
    return tuple((believed + unmeasured[: max(0, MIN_CONCEPTS - len(believed))])[:most])


def claim_for(concept: str, mask_HW: NDArray[np.bool_], found: Regions, fake: dict[str, float], twin: dict[str, float] | None) -> Claim:
    """Turn a mask (S, S) within a concept, and what `measure_region` gave for it on the fake and on its twin, into what is to be said."""
    region_HW = found.mask(concept)
    extent = round(float((mask_HW & region_HW).sum()) / max(1, int(region_HW.sum())), 3)
    findings = departures(concept, extent, fake, twin)
    first = findings[0] if findings else Finding("altered", 0.0, 0.0, 0.0, "around")
    others = [other for other in findings[1:] if other.strength >= BELIEVED_ALSO]
    neighbours, bearing = _neighbours(concept, mask_HW, found)
    return Claim(concept, first, extent, _place(concept, mask_HW & region_HW, region_HW, found), neighbours, bearing, others[0] if others else None)


def departures(concept: str, extent: float, fake: dict[str, float], twin: dict[str, float] | None) -> list[Finding]:
    """Return what departs from the twin and, on the fake alone, to the same side of what real faces show there: the strongest first.

    Without a twin (entire synthesis), what departs from real faces.
    """
    found = []
    values, reference = comparable(fake), comparable(twin) if twin is not None else None
    for kind, (name, sign) in KINDS.items():
        mean, spread = usual(concept, name, extent)
        alone = sign * (values[name] - mean) / spread
        strength = alone if reference is None else min(sign * (values[name] - reference[name]) / spread, alone + BELIEVED - VISIBLE)
        if strength >= BELIEVED:  # which asks of `alone` at least VISIBLE
            basis: Basis = "around" if abs(mean) < NEUTRAL * spread and sign * values[name] > 0 else "usual"
            found.append(Finding(kind, round(strength, 3), fake[name], round(_literal(name, mean), 4), basis))
    return sorted(found, key=lambda finding: -finding.strength)


def steady_for(image_HWC: NDArray[np.uint8], found: Regions, area_HW: NDArray[np.bool_] | None = None, concept: str | None = None) -> Steady:
    """Say which measurements of an untouched face (or of an area of it, (S, S)) are as on real faces; `concept` names the area, if FICT does.

    A face is measured part by part, a named area against its concept, a box against the finest concept that holds most of it.
    """
    departed: dict[Measurement, float]
    if area_HW is not None:
        held = concept if concept is not None else _holder(area_HW, found)
        departed = _departed(image_HWC, area_HW, held, found)
    else:
        parts = [(part, found.mask(part)) for part in fict.cells(14) if fict.concepts()[part].path[0] not in ("scene", "head_surround")]
        tables = [_departed(image_HWC, region, part, found) for part, region in parts if int(region.sum()) >= MIN_BASELINE_PX]
        if not tables:
            raise ValueError("the face shows no part of FICT; clean answers need a face with a mesh")
        departed = {name: float(np.mean([table[name] for table in tables])) for name in get_args(Measurement)}
    ordered = sorted(departed, key=lambda name: departed[name])
    return Steady(concept, tuple(ordered[:2]), ordered[-1], round(departed[ordered[-1]], 3))


def comparable(measured: dict[str, float]) -> dict[str, float]:
    """Ratios as logarithms, shifts in grey levels as they are: values whose differences mean the same everywhere."""
    return {name: value if name.endswith("_shift") else math.log(max(value, 1e-3)) for name, value in measured.items()}


def rle(mask: Mask) -> dict[str, Any]:
    """COCO run lengths as they stand in a JSON line."""
    return {"size": list(mask.size_hw), "counts": mask.counts}


# What real faces show.


@cache
def baseline() -> dict[str, dict[str, dict[str, list[float]]]]:
    """Concept -> 'whole' or 'patch' -> measurement -> [mean, standard deviation] of `comparable` values over real training faces."""
    table: dict[str, dict[str, dict[str, list[float]]]] = json.loads((files("engines") / "measure_baseline.json").read_text())
    return table


def baseline_of(concept: str) -> dict[str, dict[str, list[float]]]:
    """Of a concept; of a rare atom that of its sub-part."""
    return next(baseline()[node] for node in reversed(fict.concepts()[concept].path) if node in baseline())


def usual(concept: str, measurement: Measurement, extent: float) -> tuple[float, float]:
    """Mean and standard deviation of a `comparable` measurement over real faces, for a mask that covers `extent` of the concept."""
    normal = baseline_of(concept)
    weight = min(max((extent - PATCH_EXTENT) / (WHOLE_EXTENT - PATCH_EXTENT), 0.0), 1.0)
    (whole, whole_spread), (patch, patch_spread) = normal["whole"][measurement], normal["patch"][measurement]
    return weight * whole + (1 - weight) * patch, weight * whole_spread + (1 - weight) * patch_spread


def usual_at(concept: str, measured: Mapping[str, float], extent: float) -> dict[str, float]:
    """What real faces show, on average, of each measurement that a baseline is known of, in the units of `engines.measure`."""
    known = baseline_of(concept)["whole"]
    return {name: round(_literal(name, usual(concept, name, extent)[0]), 4) for name in get_args(Measurement) if name in measured and name in known}


def _departed(image_HWC: NDArray[np.uint8], area_HW: NDArray[np.bool_], concept: str, found: Regions) -> dict[Measurement, float]:
    values = comparable(measure_region(image_HWC, area_HW))
    region_HW = found.mask(concept)
    extent = float((area_HW & region_HW).sum()) / max(1, int(region_HW.sum()))
    norms: dict[Measurement, tuple[float, float]] = {name: usual(concept, name, extent) for name in get_args(Measurement)}
    return {name: abs(values[name] - mean) / spread for name, (mean, spread) in norms.items()}


def _literal(measurement: Measurement, comparable_value: float) -> float:
    return comparable_value if measurement.endswith("_shift") else math.exp(comparable_value)


# Where in the concept, and next to what.


def _place(concept: str, mask_HW: NDArray[np.bool_], region_HW: NDArray[np.bool_], found: Regions) -> Place | None:
    if not mask_HW.any() or fict.concepts()[concept].level == "overlay":
        return None
    across, down = _face_axes(found)
    axes = np.stack([across, down], 1)
    masked, region = np.argwhere(mask_HW)[:, ::-1] @ axes, np.argwhere(region_HW)[:, ::-1] @ axes
    spread = np.maximum(region.std(0), 1.0)
    leftward, downward = ((masked.mean(0) - region.mean(0)) / spread).tolist()
    if max(abs(leftward), abs(downward)) < PLACED:
        return "centre" if float((masked.std(0) / spread).max()) < GATHERED else None
    if abs(downward) >= abs(leftward):
        return "lower" if downward > 0 else "upper"
    side: Place = "left" if leftward > 0 else "right"
    own = side_of(concept)
    if own is None:
        return side
    return "outer" if side == own else "inner"


def side_of(concept: str) -> str | None:
    """The subject's side that a concept belongs to, 'right' or 'left'; None for one of both sides or of the middle."""
    words = concept.split("_")
    return next((word for word in words if word in ("right", "left")), None)


def _neighbours(concept: str, mask_HW: NDArray[np.bool_], found: Regions) -> tuple[tuple[str, ...], Bearing]:
    """What fills most of the ring around a mask: the rest of the concept, else one sub-part, one part, or two parts."""
    ring_HW = dilate(mask_HW, GAP_PX + SURROUNDINGS_PX) & ~dilate(mask_HW, GAP_PX)
    total = int(ring_HW.sum())
    if not total:
        return (), "around"
    counted = dict(zip(fict.cells(112), np.bincount(found.atom_HW[ring_HW], minlength=112).tolist(), strict=True))
    shares: dict[str, float] = {}
    for candidates in ((concept,), fict.cells(33), fict.cells(14)):
        shares = {name: sum(counted.get(atom, 0) for atom in fict.concepts()[name].atoms) / total for name in candidates}
        best = max(shares, key=lambda name: shares[name])
        if shares[best] >= MAJORITY:
            name = _plainest(best)
            return (name,), "around" if holds(name, concept) else _bearing(mask_HW, ring_HW & found.mask(best), found)
    first, second = sorted(
        sorted((name for name in shares if not holds(name, concept)), key=lambda name: -shares[name])[:2], key=fict.cells(14).index
    )
    return ((first, second), "around") if shares[first] + shares[second] >= MAJORITY else ((), "around")


def _plainest(concept: str) -> str:
    """The part where its sub-part's words add nothing ('main forehead', 'hair')."""
    node = fict.concepts()[concept]
    return node.path[1] if node.level == "sub_part" and concept.endswith(("_all", "_main", "_zone")) else concept


def _bearing(mask_HW: NDArray[np.bool_], beside_HW: NDArray[np.bool_], found: Regions) -> Bearing:
    axes = np.stack(_face_axes(found), 1)
    masked, beside = np.argwhere(mask_HW)[:, ::-1] @ axes, np.argwhere(beside_HW)[:, ::-1] @ axes
    leftward, downward = (beside.mean(0) - masked.mean(0)).tolist()
    radius = float(np.sqrt(((beside - masked.mean(0)) ** 2).sum(1).mean()))
    if math.hypot(leftward, downward) < SURROUNDS * radius:
        return "around"
    if abs(downward) >= abs(leftward):
        return "below" if downward > 0 else "above"
    return "beside"


def _face_axes(found: Regions) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors (x, y) to the subject's left and to the chin, from cheek to cheek; those of the image where a cheek is hidden."""
    right, left = (np.argwhere(found.mask(f"{side}_cheek")) for side in ("right", "left"))
    across = np.array([1.0, 0.0])
    if len(right) and len(left):
        between = (left.mean(0) - right.mean(0))[::-1]
        across = between / max(float(np.hypot(*between)), 1e-6)
    return across, np.array([-across[1], across[0]])


def _holder(area_HW: NDArray[np.bool_], found: Regions) -> str:
    """The finest concept of the face that holds half of an area, else its group with the most of it."""
    for depth in (33, 14, 5):
        shares = {name: float((found.mask(name) & area_HW).sum()) / max(1, int(area_HW.sum())) for name in fict.cells(depth)}
        best = max(shares, key=lambda name: shares[name])
        if shares[best] >= MAJORITY or depth == 5:
            return best
    raise AssertionError("unreachable")
