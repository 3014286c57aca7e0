"""Do the words and the masks speak of the same place, and of a place that was touched: concepts named against concepts true, and masks in regions.

A concept is a FICT id; a parent stands for its atoms (or arcs). A metric without a value on its input raises `UndefinedMetric`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from engines import fict
from engines.fict import Depth
from engines.measure import dilate
from trainer.fifa_bench.intervals import UndefinedMetric
from trainer.fifa_bench.masks import CocoRle, area, decoded, encoded, intersection, union

REGION_DILATION_PX = 2
"""A mask may leave its concept's region by this much: the annotator grows regions by it before it cuts masks to them."""
CLEAN_SHARE = 0.01
"""Of a region's pixels: with less of them manipulated the annotator answers a question about it as clean."""


def _atoms(concept_ids: frozenset[str]) -> set[str]:
    return {atom for concept_id in concept_ids for atom in fict.concepts()[concept_id].atoms}


def unmet(concepts: frozenset[str], others: frozenset[str]) -> int:
    """How many of the first share no atom with the second."""
    other_atoms = _atoms(others)
    return sum(other_atoms.isdisjoint(fict.concepts()[concept_id].atoms) for concept_id in concepts)


def _share_without(concepts: Sequence[frozenset[str]], others: Sequence[frozenset[str]]) -> float:
    """Share of all concepts of the first that share no atom with the second, image by image; 0 when there are none."""
    total = sum(len(ids) for ids in concepts)
    return sum(unmet(ids, other_ids) for ids, other_ids in zip(concepts, others, strict=True)) / total if total else 0.0


def unlisted_rate(named: Sequence[frozenset[str]], true: Sequence[frozenset[str]]) -> float:
    """Named FICT concepts none of whose atoms the reference answer names / all named; 0 when nothing is named, which `omission_rate` then shows."""
    return _share_without(named, true)


def omission_rate(named: Sequence[frozenset[str]], true: Sequence[frozenset[str]]) -> float:
    """True FICT concepts none of whose atoms is named / all true ones."""
    return _share_without(true, named)


def mention_rate(named_on_clean: Sequence[frozenset[str]]) -> float:
    """Share of untouched faces on which any concept is named."""
    if not named_on_clean:
        raise UndefinedMetric("no clean images")
    return sum(bool(ids) for ids in named_on_clean) / len(named_on_clean)


def phrase_fits(named: str | None, true: str | None, *, exact: bool = False) -> bool:
    """Whether a named concept may stand for a true one: the same, or (unless `exact`) one an ancestor of the other in FICT."""
    if named is None or true is None or exact:
        return named is not None and named == true
    return named in fict.concepts()[true].path or true in fict.concepts()[named].path


class Overlap(NamedTuple):
    """How well named cells meet true cells."""

    precision: float
    recall: float
    f1: float


def concept_overlap(named: Sequence[frozenset[str]], true: Sequence[frozenset[str]], depth: Depth) -> Overlap:
    """Named against true cells of FICT at one depth, counted over all images: a concept stands for every cell it shares an atom with.

    The boundary ring lies outside the cells and is left out. Raises UndefinedMetric where no true concept has a cell.
    """
    named_cells, true_cells = ([_cells(ids, depth) for ids in concepts] for concepts in (named, true))
    hits = sum(len(said & wanted) for said, wanted in zip(named_cells, true_cells, strict=True))
    num_named, num_true = (sum(map(len, cells)) for cells in (named_cells, true_cells))
    if not num_true:
        raise UndefinedMetric("no true concept lies in the tree")
    precision, recall = hits / num_named if num_named else 0.0, hits / num_true
    return Overlap(precision, recall, 2 * hits / (num_named + num_true))


def _cells(concept_ids: frozenset[str], depth: Depth) -> set[str]:
    atoms = _atoms(concept_ids)
    return {cell for cell in fict.cells(depth) if not atoms.isdisjoint(fict.concepts()[cell].atoms)}


def region_of(concept: str, atom_regions: Mapping[str, CocoRle], size: int) -> CocoRle:
    """The region of a concept, its visible atoms together, grown by `REGION_DILATION_PX`; empty where none is visible."""
    return encoded(dilate(decoded(_visible(concept, atom_regions, size)), REGION_DILATION_PX))


def _visible(concept: str, atom_regions: Mapping[str, CocoRle], size: int) -> CocoRle:
    return union([atom_regions[atom] for atom in fict.concepts()[concept].atoms if atom in atom_regions], size)


def is_hallucinated(concept: str, atom_regions: Mapping[str, CocoRle], artifact: CocoRle, size: int) -> bool:
    """Whether a named concept has no true artifact: its region holds no pixel of one, or fewer than `CLEAN_SHARE` of the region's pixels.

    The rim that `region_of` grows may hold the artifact but does not raise that bar, or the annotator's own answers about thin places could miss it.
    A concept that the face does not show holds nothing.
    """
    held = area(intersection(region_of(concept, atom_regions, size), artifact))
    return not held or held < CLEAN_SHARE * area(_visible(concept, atom_regions, size))


def share_inside(mask: CocoRle, region: CocoRle) -> float:
    """Pixels of the mask that lie in the region over all its pixels. Raises UndefinedMetric for an empty mask."""
    if not area(mask):
        raise UndefinedMetric("an empty mask lies nowhere")
    return area(intersection(mask, region)) / area(mask)
