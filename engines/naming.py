"""Which FICT concepts name a mask: atoms by stated rules, and a parent for most of its children.

One rule for the annotator, which counts pixels of what was changed, and for serving, which counts what the engine sees.

Shapes: A the 112 atoms, in the order of `fict.cells(112)`.
"""

from collections.abc import Collection, Mapping
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engines import fict

COVERED, MASS, MASS_COVERED = 0.20, 0.10, 0.02
"""A cell is named if that share of it is masked, or if it holds `MASS` of the mask and `MASS_COVERED` of it is masked (our choice: the paper does not
say). On 222 own manipulations the rule on the estimated mask repeats that on the exact one at depth 33 with precision 0.93 and recall 0.94; shares of
0.1 to 0.5 and 0.05 to 0.15 change either by less than 0.03."""
PARENT_SHARE = 0.60
Counts = NDArray[np.int64] | NDArray[np.floating]


def is_named(pixels: Counts, covered: Counts, mask_pixels: float) -> NDArray[np.bool_]:
    """Which cells the rule names: `pixels` and masked pixels of each, and pixels of the mask."""
    share = covered / np.maximum(pixels, 1)
    named: NDArray[np.bool_] = (share >= COVERED) | ((covered >= MASS * max(1, mask_pixels)) & (share >= MASS_COVERED))
    return named


def mixed_levels(
    pixels_A: Counts,
    covered_A: Counts,
    visible: Collection[str],
    mask_pixels: float,
    *,
    coarsest: Literal["group", "part"] = "part",
    within: str | None = None,
) -> dict[str, float]:
    """The fewest concepts that stand for the atoms which the rule names, with the masked pixels of each.

    A parent replaces its children when `PARENT_SHARE` of its visible atoms are named, up to the `coarsest` level; `within` keeps to a node and what
    lies below it.
    """
    named = is_named(pixels_A, covered_A, mask_pixels)
    selected = {atom for atom, is_one in zip(fict.cells(112), named, strict=True) if is_one and atom in visible}
    chosen = [name for root in cells_below(5 if coarsest == "group" else 14, within) for name in _resolve(root, selected, visible)]
    mass = dict(zip(fict.cells(112), covered_A.tolist(), strict=True))
    return {name: sum(mass[atom] for atom in fict.concepts()[name].atoms) for name in chosen}


def ranked(mass: Mapping[str, float], *, least: float, most: int) -> list[str]:
    """The heaviest first, what lies off the head last; at most so many, none lighter than `least`."""
    order = sorted(mass, key=lambda name: (fict.concepts()[name].path[0] == "scene", -mass[name]))
    return [name for name in order if mass[name] >= least][:most]


def cells_below(depth: fict.Depth, within: str | None) -> tuple[str, ...]:
    """Cells of a depth at or below a node, or the node itself where it is finer."""
    if within is None:
        return fict.cells(depth)
    return tuple(cell for cell in fict.cells(depth) if within in fict.concepts()[cell].path) or (within,)


def _resolve(name: str, selected: set[str], visible: Collection[str]) -> list[str]:
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
