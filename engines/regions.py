"""Where FICT lies on a face crop, as the bundle's region parser sees it.

Shapes: B faces, A the 112 atoms and then the 8 arcs of the boundary, H W the mask decoder's grid, which covers the whole crop.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from engines import fict
from engines.naming import mixed_levels, ranked

NUM_ATOMS = len(fict.cells(112))
NUM_ARCS = len(fict.BOUNDARY_ARCS)
NUM_CHANNELS = NUM_ATOMS + NUM_ARCS
VISIBLE_SHARE, LEAST_SHARE = 8 / 224**2, 60 / 224**2
"""Of the crop: an atom that takes less is not seen, a concept with less of it masked is not named; the annotator's 8 and 60 px of its 224."""
RIM = np.float32(0.2)
"""Of a cell: a rim of less than one on the mask decoder's grid. The annotator cuts the masks of explanations to regions grown by 2 of its pixels."""


@cache
def channels(concept: str) -> NDArray[np.intp]:
    """Which channels of a parser together are a concept: its atoms or its arcs. Raises KeyError for what is no FICT id."""
    names = (*fict.cells(112), *fict.BOUNDARY_ARCS)
    return np.array([names.index(atom) for atom in fict.concepts()[concept].atoms])


@dataclass(frozen=True, slots=True)
class FaceRegions:
    """FICT on one face."""

    shares_AHW: NDArray[np.float32]
    """(120, H, W) float32 in [0, 1]: what each atom takes of a cell, which together take all of it; what each arc takes, which overlap the atoms."""

    def of(self, concept: str, *, rim: bool = False) -> NDArray[np.float32]:
        """(H, W) float32 in [0, 1]: how much of each cell lies in a concept, or in it and its rim. Raises KeyError for what is no FICT id."""
        share_HW: NDArray[np.float32] = self.shares_AHW[channels(concept)].sum(0)
        return np.minimum(share_HW + RIM * (share_HW > 0) if rim else share_HW, 1)

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
