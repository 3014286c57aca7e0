"""Which FICT concepts name a mask: atoms by stated rules, parents for most of their children, arcs of the face boundary."""

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engines import fict
from trainer.annotator.artifact import ArtifactMask
from trainer.annotator.regions import Regions

MIN_CONCEPT_PX = 60
ATOM_COVERED, ATOM_MASS, ATOM_MASS_COVERED, PARENT_SHARE = 0.20, 0.10, 0.02, 0.60


def select_concepts(
    found: Regions, mask_HW: NDArray[np.bool_], *, coarsest: Literal["group", "part"] = "part", max_concepts: int = 6, min_px: int = MIN_CONCEPT_PX
) -> list[str]:
    """Name a mask by FICT, most mask pixels first, what lies off the head last.

    An atom is selected if at least 20 % of it is masked, or if it holds 10 % of the mask with 2 % of it covered; a parent replaces its children when
    60 % of its visible atoms are selected, up to the `coarsest` level: by groups, nearly every swap would read "upper face, mid face, lower face".
    """
    covered = np.bincount(found.atom_HW[mask_HW], minlength=112)
    share = covered / np.maximum(found.atom_pixels, 1)
    chosen = (share >= ATOM_COVERED) | ((covered >= ATOM_MASS * max(1, int(mask_HW.sum()))) & (share >= ATOM_MASS_COVERED))
    selected = {atom for atom, is_chosen in zip(fict.cells(112), chosen, strict=True) if is_chosen and atom in found.visible}
    pixels = dict(zip(fict.cells(112), covered.tolist(), strict=True))
    roots = tuple(fict.TREE) if coarsest == "group" else fict.cells(14)
    named = [name for root in roots for name in _resolve(root, selected, found.visible)]
    mass = {name: sum(pixels[atom] for atom in fict.concepts()[name].atoms) for name in named}
    ranked = sorted(mass, key=lambda name: (fict.concepts()[name].path[0] == "scene", -mass[name]))
    return [name for name in ranked if mass[name] >= min_px][:max_concepts]


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
        if int(masked.sum()) >= max(MIN_CONCEPT_PX, 0.5 * int(ring.sum())):
            level = float(artifact.difference_HW[masked].mean())
            if level > best_level:
                best, best_level = arc, level
    return best


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
