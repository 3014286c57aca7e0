"""Where FICT lies on a face crop, as the bundle's region parser sees it.

Shapes: B faces, A the 112 atoms and then the 8 arcs of the boundary, H W the mask decoder's grid, which covers the whole crop.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from engines import fict
from engines.naming import mixed_levels, ranked

NUM_ATOMS = len(fict.cells(112))
NUM_ARCS = len(fict.BOUNDARY_ARCS)
NUM_CHANNELS = NUM_ATOMS + NUM_ARCS
MIN_VISIBLE_PX = 8
"""Of the 224 px crop: an atom or arc that takes less is not seen."""
VISIBLE_SHARE, LEAST_SHARE = MIN_VISIBLE_PX / 224**2, 60 / 224**2
"""Of the crop: the same, and the annotator's 60 px; a concept with less of it masked is not named."""
ARC_TAKEN = 0.5
"""A pixel lies on the arc that takes most of it, and at least so much."""
RIM = np.float32(0.2)
"""Of a cell: a rim of less than one on the mask decoder's grid. The annotator cuts the masks of explanations to regions grown by 2 of its pixels."""


@cache
def channels(concept: str) -> NDArray[np.intp]:
    """Which channels of a parser together are a concept: its atoms or its arcs. Raises KeyError for what is no FICT id."""
    names = (*fict.cells(112), *fict.BOUNDARY_ARCS)
    return np.array([names.index(atom) for atom in fict.concepts()[concept].atoms])


@dataclass(frozen=True)
class Regions:
    """FICT on one face, rasterised over the whole crop."""

    atom_HW: NDArray[np.int16]
    """(S, S) int16 index into `fict.cells(112)`; every pixel has one atom."""
    arc_HW: NDArray[np.int8]
    """(S, S) int8 index into `fict.BOUNDARY_ARCS`, -1 off the ring."""

    @cached_property
    def atom_pixels(self) -> NDArray[np.int64]:
        """(112,) pixels of each atom."""
        return np.bincount(self.atom_HW.ravel(), minlength=NUM_ATOMS)

    @cached_property
    def visible(self) -> frozenset[str]:
        """Atoms and arcs that this face shows."""
        arcs = np.bincount(self.arc_HW.ravel() + 1, minlength=NUM_ARCS + 1)[1:]
        counted = (*zip(fict.cells(112), self.atom_pixels, strict=True), *zip(fict.BOUNDARY_ARCS, arcs, strict=True))
        return frozenset(name for name, pixels in counted if pixels >= MIN_VISIBLE_PX)

    def mask(self, concept: str) -> NDArray[np.bool_]:
        """Return the (S, S) region of any concept: its visible atoms or arcs together."""
        node = fict.concepts()[concept]
        if node.level == "overlay":
            return np.isin(self.arc_HW, [k for k, arc in enumerate(fict.BOUNDARY_ARCS) if arc in node.atoms])
        chosen = np.array([atom in node.atoms and atom in self.visible for atom in fict.cells(112)])
        region: NDArray[np.bool_] = chosen[self.atom_HW]
        return region


@dataclass(frozen=True, slots=True)
class FaceRegions:
    """FICT on one face, as shares of cells."""

    shares_AHW: NDArray[np.float32]
    """(120, H, W) float32 in [0, 1]: what each atom takes of a cell, which together take all of it; what each arc takes, which overlap the atoms."""

    def of(self, concept: str, *, rim: bool = False) -> NDArray[np.float32]:
        """(H, W) float32 in [0, 1]: how much of each cell lies in a concept, or in it and its rim. Raises KeyError for what is no FICT id."""
        share_HW: NDArray[np.float32] = self.shares_AHW[channels(concept)].sum(0)
        return np.minimum(share_HW + RIM * (share_HW > 0) if rim else share_HW, 1)

    def drawn(self, size: int) -> Regions:
        """At `size` x `size` pixels: each has the atom that takes most of it, between cells by interpolation; atoms that are not seen take none."""
        seen = np.flatnonzero(self.shares_AHW[:NUM_ATOMS].mean((1, 2)) >= VISIBLE_SHARE)
        atoms_HW, _ = _winners(self.shares_AHW[seen], size, least=1 / NUM_ATOMS)
        arcs_HW, shares_HW = _winners(self.shares_AHW[NUM_ATOMS:], size, least=ARC_TAKEN)
        return Regions(seen[atoms_HW].astype(np.int16), np.where(shares_HW >= ARC_TAKEN, arcs_HW, -1).astype(np.int8))

    def named(self, mask_HW: NDArray[np.bool_], *, within: str | None = None, most: int) -> tuple[str, ...]:
        """Which concepts name an (H, W) mask, the heaviest first, by the annotator's rule (`engines.naming`); at or below a node, where one is given.

        The boundary lies outside that rule: what is asked of it is answered by itself.
        """
        if within is not None and fict.concepts()[within].level == "overlay":
            return (within,)
        atoms_AHW = self.shares_AHW[:NUM_ATOMS]
        asked_A = np.isin(fict.cells(112), fict.cells(112) if within is None else fict.concepts()[within].atoms)
        cells_A, covered_A = atoms_AHW.sum((1, 2)) * asked_A, (atoms_AHW * mask_HW).sum((1, 2)) * asked_A
        visible = {atom for atom, cells in zip(fict.cells(112), cells_A, strict=True) if cells >= VISIBLE_SHARE * mask_HW.size}
        mass = mixed_levels(cells_A, covered_A, visible, float(covered_A.sum()), within=within)
        return tuple(ranked(mass, least=LEAST_SHARE * mask_HW.size, most=most))


def _winners(maps_CHW: NDArray[np.float32], size: int, *, least: float) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """(size, size) which map is the largest at each pixel, and its value there, interpolated between the centres of cells.

    Maps are looked at only around cells where they reach `least`: below it none may win.
    """
    winner_HW, value_HW = np.zeros((size, size), np.intp), np.zeros((size, size), np.float32)
    at, weights = _between(size, maps_CHW.shape[1])
    for number, map_HW in enumerate(maps_CHW):
        reached_HW = map_HW >= least
        if not reached_HW.any():
            continue
        spans = []
        for reached in (np.flatnonzero(reached_HW.any(1)), np.flatnonzero(reached_HW.any(0))):
            pixels = slice(int(np.searchsorted(at, reached[0] - 1, "right")), int(np.searchsorted(at, reached[-1] + 1, "left")))
            spans.append((pixels, slice(max(0, int(reached[0]) - 1), int(reached[-1]) + 2)))
        (rows, cells_down), (columns, cells_across) = spans
        found_HW = weights[rows, cells_down] @ map_HW[cells_down, cells_across] @ weights[columns, cells_across].T
        wins_HW = found_HW > value_HW[rows, columns]
        winner_HW[rows, columns][wins_HW] = number
        value_HW[rows, columns][wins_HW] = found_HW[wins_HW]
    return winner_HW, value_HW


@cache
def _between(size: int, cells: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """(size,) where the pixels of a row lie, in cells from the centre of the first, and (size, cells) what each cell weighs there."""
    at = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
    return at, np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells))).astype(np.float32)
