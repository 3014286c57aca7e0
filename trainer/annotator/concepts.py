"""Which FICT concepts name a mask: atoms by stated rules, parents for most of their children; or the cells of one depth; arcs of the boundary."""

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engines import fict
from trainer.annotator.artifact import ArtifactMask
from trainer.annotator.regions import Regions

MIN_CONCEPT_PX = 60
"""Pixels of the 224 px crop; less is not named."""
MAX_CONCEPTS = 6
COVERED, MASS, MASS_COVERED = 0.20, 0.10, 0.02
"""A cell is named if that share of it is masked, or if it holds `MASS` of the mask and `MASS_COVERED` of it is masked (our choice: the paper does not
say). On 222 own manipulations the rule on the estimated mask repeats that on the exact one at depth 33 with precision 0.93 and recall 0.94; shares of
0.1 to 0.5 and 0.05 to 0.15 change either by less than 0.03."""
PARENT_SHARE = 0.60
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
    if within is not None and fict.concepts()[within].level == "overlay":
        mass = _covered_arcs(found, mask_HW, within)
    elif depth is not None:
        mass = _covered_cells(found, mask_HW, _cells_below(depth, within), within)
    else:
        mass = _mixed_levels(found, mask_HW, coarsest, within)
    ranked = sorted(mass, key=lambda name: (fict.concepts()[name].path[0] == "scene", -mass[name]))
    return [name for name in ranked if mass[name] >= max(1, min_px)][:max_concepts]


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


def _is_named(pixels: NDArray[np.int64], covered: NDArray[np.int64], mask_pixels: int) -> NDArray[np.bool_]:
    share = covered / np.maximum(pixels, 1)
    named: NDArray[np.bool_] = (share >= COVERED) | ((covered >= MASS * max(1, mask_pixels)) & (share >= MASS_COVERED))
    return named


def _covered_cells(found: Regions, mask_HW: NDArray[np.bool_], cells: tuple[str, ...], within: str | None) -> dict[str, int]:
    """Masked pixels of the cells that the rule names."""
    holds = np.array([[atom in fict.concepts()[cell].atoms for atom in fict.cells(112)] for cell in cells])
    pixels, covered = _atom_counts(found, mask_HW, within)
    named = _is_named(holds @ pixels, holds @ covered, _mask_pixels(found, mask_HW, within))
    return {cell: int(mass) for cell, mass, is_named in zip(cells, holds @ covered, named, strict=True) if is_named}


def _covered_arcs(found: Regions, mask_HW: NDArray[np.bool_], within: str) -> dict[str, int]:
    arcs = [k for k, arc in enumerate(fict.BOUNDARY_ARCS) if arc in fict.concepts()[within].atoms]
    pixels, covered = (np.bincount(ring.ravel() + 1, minlength=9)[1:][arcs] for ring in (found.arc_HW, found.arc_HW[mask_HW]))
    named = _is_named(pixels, covered, int(covered.sum()))
    return {fict.BOUNDARY_ARCS[k]: int(mass) for k, mass, is_named in zip(arcs, covered, named, strict=True) if is_named}


def _mixed_levels(found: Regions, mask_HW: NDArray[np.bool_], coarsest: Literal["group", "part"], within: str | None) -> dict[str, int]:
    pixels, covered = _atom_counts(found, mask_HW, within)
    named = _is_named(pixels, covered, _mask_pixels(found, mask_HW, within))
    selected = {atom for atom, is_named in zip(fict.cells(112), named, strict=True) if is_named and atom in found.visible}
    chosen = [name for root in _cells_below(5 if coarsest == "group" else 14, within) for name in _resolve(root, selected, found.visible)]
    mass = dict(zip(fict.cells(112), covered.tolist(), strict=True))
    return {name: sum(mass[atom] for atom in fict.concepts()[name].atoms) for name in chosen}


def _mask_pixels(found: Regions, mask_HW: NDArray[np.bool_], within: str | None) -> int:
    """Size of the mask, or of its part inside the asked area."""
    return int(mask_HW.sum()) if within is None else int((mask_HW & found.mask(within)).sum())


def _cells_below(depth: fict.Depth, within: str | None) -> tuple[str, ...]:
    """Cells of a depth at or below a node, or the node itself where it is finer."""
    if within is None:
        return fict.cells(depth)
    return tuple(cell for cell in fict.cells(depth) if within in fict.concepts()[cell].path) or (within,)


def _resolve(name: str, selected: set[str], visible: frozenset[str]) -> list[str]:
    """The fewest nodes at or below `name` that stand for the selected atoms."""
    node = fict.concepts()[name]
    shown = [atom for atom in node.atoms if atom in visible]
    hit = [atom for atom in shown if atom in selected]
    if not hit:
        return []
    if node.level == "atom" or name in node.atoms:
        return [name]
    children = [child for child in _children(name) if any(atom in visible for atom in fict.concepts()[child].atoms)]
    only_child = len(children) == 1 and node.level in ("group", "part") and fict.concepts()[children[0]].phrase != node.phrase
    if len(hit) >= PARENT_SHARE * len(shown) and not only_child:
        return [name]
    return [found for child in children for found in _resolve(child, selected, visible)]


@cache
def _children(name: str) -> tuple[str, ...]:
    parent = fict.concepts()[name]
    if parent.level == "sub_part":
        return parent.atoms
    level = len(parent.path)
    below = (node.path for node in fict.concepts().values() if node.path[:level] == parent.path and len(node.path) > level)
    return tuple(dict.fromkeys(path[level] for path in below))
