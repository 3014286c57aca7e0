"""Which FICT concepts name a mask on an annotated face: of mixed levels (`engines.naming`), or the cells of one depth; arcs of the boundary."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engines import fict
from engines.findings import MIN_CONCEPT_PX
from engines.naming import cells_below, is_named, mixed_levels, ranked
from engines.regions import Regions
from trainer.annotator.artifact import ArtifactMask

MAX_CONCEPTS = 6
ARC_COVERED = 0.5


def select_concepts(
    found: Regions,
    mask_HW: NDArray[np.bool_],
    *,
    depth: fict.Depth | None = None,
    within: str | None = None,
    coarsest: Literal["group", "part"] = "part",
    max_concepts: int = MAX_CONCEPTS,
    min_px: int = MIN_CONCEPT_PX,
) -> list[str]:
    """Name a mask by FICT, most mask pixels first, what lies off the head last; no concept stands beside one that contains it.

    Args:
        found: FICT on the face, S x S pixels.
        mask_HW: (S, S) bool.
        depth: name cells of this depth alone, each judged by its visible pixels (`COVERED`, `MASS`). None mixes levels: atoms are judged so, and a
            parent replaces its children when 60 % of its visible atoms are selected, up to the `coarsest` level: by groups, nearly every swap would
            read "upper face, mid face, lower face".
        within: only concepts at or below this node, and only the mask inside it (a region query). A node finer than `depth` stands for itself; the
            face boundary and its arcs are answered by arcs.
        coarsest: the highest level named without a depth; `within` may lie below it.
        max_concepts: at most so many names.
        min_px: least pixels of the mask in a named concept.

    Raises ValueError for a `within` that is no FICT concept.
    """
    if within is not None and within not in fict.concepts():
        raise ValueError(f"{within!r} is no FICT concept; see `engines.fict.concepts()`")
    mass: Mapping[str, float]
    if within is not None and fict.concepts()[within].level == "overlay":
        mass = _covered_arcs(found, mask_HW, within)
    elif depth is not None:
        mass = _covered_cells(found, mask_HW, cells_below(depth, within), within)
    else:
        mass = _mixed_levels(found, mask_HW, coarsest, within)
    return ranked(mass, least=max(1, min_px), most=max_concepts)


def select_arc(found: Regions, artifact: ArtifactMask) -> str | None:
    """The arc of the face boundary that holds more difference a pixel than the mask at large and is half masked, or None."""
    inside = artifact.mask_HW
    if not inside.any():
        return None
    average = float(artifact.difference_HW[inside].mean())
    best, best_level = None, average
    for k, arc in enumerate(fict.BOUNDARY_ARCS):
        ring = found.arc_HW == k
        masked = ring & inside
        if int(masked.sum()) >= max(MIN_CONCEPT_PX, ARC_COVERED * int(ring.sum())):
            level = float(artifact.difference_HW[masked].mean())
            if level > best_level:
                best, best_level = arc, level
    return best


def _atom_counts(found: Regions, mask_HW: NDArray[np.bool_], within: str | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(112,) pixels and masked pixels of the visible atoms at or below `within`; 0 for all others."""
    asked = fict.cells(112) if within is None else fict.concepts()[within].atoms
    counts = np.array([atom in found.visible and atom in asked for atom in fict.cells(112)])
    return found.atom_pixels * counts, np.bincount(found.atom_HW[mask_HW], minlength=112) * counts


def _covered_cells(found: Regions, mask_HW: NDArray[np.bool_], cells: tuple[str, ...], within: str | None) -> dict[str, int]:
    """Masked pixels of the cells that the rule names."""
    holds = np.array([[atom in fict.concepts()[cell].atoms for atom in fict.cells(112)] for cell in cells])
    pixels, covered = _atom_counts(found, mask_HW, within)
    named = is_named(holds @ pixels, holds @ covered, _mask_pixels(found, mask_HW, within))
    return {cell: int(mass) for cell, mass, is_one in zip(cells, holds @ covered, named, strict=True) if is_one}


def _covered_arcs(found: Regions, mask_HW: NDArray[np.bool_], within: str) -> dict[str, int]:
    arcs = [k for k, arc in enumerate(fict.BOUNDARY_ARCS) if arc in fict.concepts()[within].atoms]
    pixels, covered = (np.bincount(ring.ravel() + 1, minlength=9)[1:][arcs] for ring in (found.arc_HW, found.arc_HW[mask_HW]))
    named = is_named(pixels, covered, int(covered.sum()))
    return {fict.BOUNDARY_ARCS[k]: int(mass) for k, mass, is_one in zip(arcs, covered, named, strict=True) if is_one}


def _mixed_levels(found: Regions, mask_HW: NDArray[np.bool_], coarsest: Literal["group", "part"], within: str | None) -> dict[str, float]:
    pixels, covered = _atom_counts(found, mask_HW, within)
    return mixed_levels(pixels, covered, found.visible, _mask_pixels(found, mask_HW, within), coarsest=coarsest, within=within)


def _mask_pixels(found: Regions, mask_HW: NDArray[np.bool_], within: str | None) -> int:
    """Size of the mask, or of its part inside the asked area."""
    return int(mask_HW.sum()) if within is None else int((mask_HW & found.mask(within)).sum())
