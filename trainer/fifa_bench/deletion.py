"""Does the score rest on what the answer cites: take the cited area away, and as much of the face that was not cited, and score again.

Paint (inpainting) needs nothing but the fake, but an engine may take paint for forgery: what it does to real faces stands beside it. A cover, flat
mid grey, is one of those that training lays on reals and fakes alike, for bars and stickers are no forgery: it hides and adds nothing, and what it
does to real faces says whether that was learned. Where the real twin of a fake is known, its pixels take the place of the cited ones: the forgery is
undone there, and nothing new comes in.

Shapes: B faces of a batch, H W pixels of a 224 px crop unless said otherwise.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from engines.analyzer import Analyzer
from trainer.faces import ImageHWC
from trainer.fifa_bench.explained import ExplainedFaces, Row, figure
from trainer.fifa_bench.masks import MaskHW, oval_mask
from trainer.fifa_bench.predict import BATCH, engine_crops, grouped
from trainer.samples import SIDE, Sample

Fill = Callable[[ImageHWC, MaskHW], ImageHWC]
"""A crop and what is to be taken away, to the crop without it."""
TwinOf = Callable[[Sample], ImageHWC | None]
"""The aligned real face that a fake was made from, a crop of the same window; None where it is not known."""

INPAINT_RADIUS_PX = 3.0
"""Of `cv2.inpaint`: wide enough to carry on a gradient, narrow enough not to smear across a face."""
MIN_MATCHED_SHARE = 0.01
"""Of the crop (500 px of 224 x 224): where less of the face is left beside what is cited, nothing is compared."""
FILLED_SHARE = 0.3
"""Of the crop, painted over or covered on reals: about what the shipped engine cites on a fake."""
COVER_GREY = 128
"""The mid grey of `trainer.augment.cover_fill`."""


class Deletion(NamedTuple):
    """How far the calibrated score fell without all that was cited; and, at one area, without a part of it and without a part of the face beside."""

    unit: str
    drop: float
    matched: "MatchedDrops | None"
    """None where too little of the face is left beside what was cited."""


class MatchedDrops(NamedTuple):
    """Two drops of one area, which is a share of the crop."""

    area: float
    cited: float
    control: float


class Filled(NamedTuple):
    """How far paint or a cover on the middle of a real face moved its score."""

    unit: str
    drop: float


def delete_by_paint(analyzer: Analyzer, faces: ExplainedFaces) -> list[Deletion]:
    """One finding for each fake that cites any pixel: cited areas are painted over."""
    return _delete(analyzer, faces, dict.fromkeys(faces.fakes, painted_over))


def delete_by_cover(analyzer: Analyzer, faces: ExplainedFaces) -> list[Deletion]:
    """One finding for each fake that cites any pixel: cited areas are hidden under flat mid grey."""
    return _delete(analyzer, faces, dict.fromkeys(faces.fakes, covered))


def delete_by_twin(analyzer: Analyzer, faces: ExplainedFaces, twin_of: TwinOf) -> list[Deletion]:
    """One finding for each fake that cites any pixel and whose twin is known: cited areas are as they were before the forgery."""
    twins = {row: twin_of(faces.samples[row]) for row in faces.fakes}
    return _delete(analyzer, faces, {row: partial(undone, twin) for row, twin in twins.items() if twin is not None})


def paint_reals(analyzer: Analyzer, faces: ExplainedFaces) -> list[Filled]:
    """One finding for each real face: an engine that takes paint for forgery cannot show by painting what its score rests on."""
    return _fill_reals(analyzer, faces, painted_over)


def cover_reals(analyzer: Analyzer, faces: ExplainedFaces) -> list[Filled]:
    """One finding for each real face: to an engine that holds a cover for neutral it changes little."""
    return _fill_reals(analyzer, faces, covered)


def _fill_reals(analyzer: Analyzer, faces: ExplainedFaces, fill: Fill) -> list[Filled]:
    middle_HW = _deepest(oval_mask(SIDE), oval_mask(SIDE), round(FILLED_SHARE * SIDE * SIDE))
    drops = _drops(analyzer, faces, [(row, fill(faces.crops[row], middle_HW)) for row in faces.reals])
    return [Filled(faces.unit(row), drop) for row, drop in zip(faces.reals, drops, strict=True)]


def _delete(analyzer: Analyzer, faces: ExplainedFaces, fill_of: Mapping[int, Fill]) -> list[Deletion]:
    changed: list[tuple[int, ImageHWC]] = []
    areas: dict[int, float | None] = {}
    for row, fill in fill_of.items():
        cited_HW = faces.cited_area(row)
        if cited_HW.any():
            matched = matched_areas(cited_HW)
            changed += [(row, fill(faces.crops[row], mask_HW)) for mask_HW in (cited_HW, *(matched or ()))]
            areas[row] = float(matched[0].mean()) if matched else None
    drops = iter(_drops(analyzer, faces, changed))
    findings = []
    for row, area in areas.items():
        drop = next(drops)
        findings.append(Deletion(faces.unit(row), drop, None if area is None else MatchedDrops(area, next(drops), next(drops))))
    return findings


def _drops(analyzer: Analyzer, faces: ExplainedFaces, changed: Sequence[tuple[int, ImageHWC]]) -> list[float]:
    """Score of the face before minus after."""
    drops: list[float] = []
    for together in grouped(changed, BATCH):
        score_N = analyzer.calibrated(analyzer.encode(engine_crops(analyzer, [crop_HWC for _, crop_HWC in together]))["det_logit"])
        drops += [float(faces.score_B[row] - score) for (row, _), score in zip(together, score_N, strict=True)]
    return drops


def matched_areas(cited_HW: MaskHW) -> tuple[MaskHW, MaskHW] | None:
    """A part of what is cited and a part of the face oval that is not, of as many pixels: all that is cited, or less where the oval has less left.

    What is kept of the cited lies deepest in it, the control lies farthest from it. None below `MIN_MATCHED_SHARE` of the crop.
    """
    free_HW = oval_mask(SIDE) & ~cited_HW
    pixels = min(int(cited_HW.sum()), int(free_HW.sum()))
    if pixels < MIN_MATCHED_SHARE * cited_HW.size:
        return None
    return _deepest(cited_HW, cited_HW, pixels), _deepest(free_HW, ~cited_HW, pixels)


def _deepest(allowed_HW: MaskHW, inside_HW: MaskHW, pixels: int) -> MaskHW:
    """The allowed pixels that lie farthest from the end of another mask, which holds them."""
    depth_HW = cv2.distanceTransform(inside_HW.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    order = np.argsort(-np.where(allowed_HW, depth_HW, -1.0), axis=None, kind="stable")
    chosen_HW = np.zeros(allowed_HW.shape, bool)
    chosen_HW.flat[order[:pixels]] = True
    return chosen_HW


def painted_over(crop_HWC: ImageHWC, mask_HW: MaskHW) -> ImageHWC:
    """The crop with a masked area filled in from its border (Telea, J. Graphics Tools 2004); the mask is stretched to the crop."""
    marked_HW = _stretched(mask_HW, crop_HWC).astype(np.uint8)
    return np.asarray(cv2.inpaint(np.ascontiguousarray(crop_HWC), marked_HW, INPAINT_RADIUS_PX, cv2.INPAINT_TELEA), np.uint8)


def covered(crop_HWC: ImageHWC, mask_HW: MaskHW) -> ImageHWC:
    """The crop with a masked area under flat mid grey; the mask is stretched to the crop."""
    return np.where(_stretched(mask_HW, crop_HWC)[..., None], np.uint8(COVER_GREY), crop_HWC)


def undone(twin_HWC: ImageHWC, crop_HWC: ImageHWC, mask_HW: MaskHW) -> ImageHWC:
    """The crop with its twin's pixels in a masked area; twin and mask are stretched to the crop."""
    if twin_HWC.shape != crop_HWC.shape:
        twin_HWC = np.asarray(cv2.resize(twin_HWC, crop_HWC.shape[1::-1], interpolation=cv2.INTER_AREA), np.uint8)
    return np.where(_stretched(mask_HW, crop_HWC)[..., None], twin_HWC, crop_HWC)


def _stretched(mask_HW: MaskHW, crop_HWC: ImageHWC) -> MaskHW:
    return np.asarray(cv2.resize(mask_HW.astype(np.uint8), crop_HWC.shape[1::-1], interpolation=cv2.INTER_NEAREST), bool)


def deletion_row(deletions: Sequence[Deletion], *, fakes: int) -> Row:
    """`fell`: share of faces whose score fell, and the mean drop, when all that is cited goes.

    `matched_*` and `control_*`: the same for parts of one area, cited and not; `drop_beyond_control`: their difference, face by face.
    """
    units = [item.unit for item in deletions]
    row = {"n": float(len(deletions)), "fakes": float(fakes)}
    row |= figure("fell", [item.drop > 0 for item in deletions], units) | figure("drop", [item.drop for item in deletions], units)
    pairs = [(item.unit, item.matched) for item in deletions if item.matched is not None]
    units = [unit for unit, _ in pairs]
    row |= {"n_matched": float(len(pairs))} | ({"matched_area": float(np.mean([pair.area for _, pair in pairs]))} if pairs else {})
    row |= figure("matched_fell", [pair.cited > 0 for _, pair in pairs], units) | figure("matched_drop", [pair.cited for _, pair in pairs], units)
    row |= figure("control_fell", [pair.control > 0 for _, pair in pairs], units)
    row |= figure("control_drop", [pair.control for _, pair in pairs], units)
    return row | figure("drop_beyond_control", [pair.cited - pair.control for _, pair in pairs], units)


def filled_row(filled: Sequence[Filled]) -> Row:
    """`fell` and `drop` of real faces of which nothing forged was hidden: far from 0, the paint or the cover itself moves the score."""
    units = [item.unit for item in filled]
    row = {"n": float(len(filled))} | figure("fell", [item.drop > 0 for item in filled], units)
    return row | figure("drop", [item.drop for item in filled], units)
