"""Who is wrongly suspected: false alarms and inconclusive verdicts on real faces, group by group.

Groups are what the sets themselves say (their name; the pose and the letter F or M in file names) and, in each set, thirds by how bright the skin
is. Skin luma is measured by us: light and exposure are in it as much as complexion, and it is no label of a person.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.faces import ImageHWC, fit
from trainer.fifa_bench.intervals import error_interval
from trainer.fifa_bench.masks import MaskHW
from trainer.samples import SIDE

Row = dict[str, float]

FAIRNESS_SETS = ("dfdc", "ffhq_stylegan2", "london", "amfd")
SKIN = ("forehead_main", "right_infraorbital_cheek", "left_infraorbital_cheek", "right_mid_cheek", "left_mid_cheek")
"""FICT concepts that show skin alone: neither beard, lips nor lids."""
MIN_SKIN_PX = 200
THIRDS = ("darkest third of skin luma", "middle third of skin luma", "brightest third of skin luma")
MIN_NAMED = 20
"""Faces of a group that may be named worst: among fewer, one error is more than 5 %."""


class RealFace(NamedTuple):
    """A real face and what was said of it."""

    dataset: str
    name: str
    unit: str
    """What intervals are drawn over."""
    fake_score: float
    skin_luma: float | None
    """`skin_luma`, None where no skin was found."""


def labels_of(dataset: str, name: str) -> tuple[str, ...]:
    """What a set's file names say of a face.

    'SF-1048.jpg' of AMFD is smiling and bears an F, 'neutral_front/005_03.jpg' of London is neutral. Nothing more is labelled in our data.
    """
    if dataset == "amfd":
        file = name.rpartition("/")[2]
        return {"N": "neutral", "S": "smiling"}[file[0]], f"{file[1]} in the file name"
    if dataset == "london":
        return (name.partition("_")[0],)
    return ()


def skin_luma(crop_HWC: ImageHWC, region_of: Callable[[str], MaskHW]) -> float | None:
    """Mean Rec. 601 luma of forehead and cheeks, 0 to 255; None where fewer than `MIN_SKIN_PX` of 224 x 224 px show them."""
    skin_HW = np.any([region_of(concept) for concept in SKIN], axis=0)
    if skin_HW.sum() < MIN_SKIN_PX:
        return None
    return float(cv2.cvtColor(np.ascontiguousarray(fit(crop_HWC, SIDE)), cv2.COLOR_RGB2GRAY)[skin_HW].mean())


def error_rates(faces: Sequence[RealFace], *, real_below: float, fake_at: float) -> dict[str, Row]:
    """Share of real faces called fake and called inconclusive in each group, with intervals; then the worst groups of `MIN_NAMED` faces or more."""
    groups: dict[str, list[RealFace]] = {}
    for dataset in sorted({face.dataset for face in faces}):
        of_set = [face for face in faces if face.dataset == dataset]
        groups[dataset] = of_set
        labelled: dict[str, list[RealFace]] = defaultdict(list)
        for face in of_set:
            for label in labels_of(dataset, face.name):
                labelled[label].append(face)
        groups |= {f"{dataset}, {label}": labelled[label] for label in sorted(labelled)}
        groups |= {f"{dataset}, {third}": members for third, members in zip(THIRDS, _thirds(of_set), strict=True) if members}
        if unseen := [face for face in of_set if face.skin_luma is None]:
            groups[f"{dataset}, no skin found"] = unseen
    table = {name: _row(members, real_below, fake_at) for name, members in groups.items()}
    named = {name: row for name, row in table.items() if row["faces"] >= MIN_NAMED}
    for measure, words in (("called_fake", "worst in false alarms"), ("called_inconclusive", "worst in inconclusive")):
        if named:
            worst = max(named, key=lambda name: named[name][measure])
            table[f"{words}: {worst}"] = named[worst]
    return table


def _thirds(faces: Sequence[RealFace]) -> list[list[RealFace]]:
    """Equal thirds of the faces whose skin was measured, from dark to bright."""
    measured = sorted((face for face in faces if face.skin_luma is not None), key=lambda face: (face.skin_luma or 0.0, face.name))
    ends = [round(len(measured) * part / len(THIRDS)) for part in range(len(THIRDS) + 1)]
    return [measured[start:end] for start, end in pairwise(ends)]


def _row(faces: Sequence[RealFace], real_below: float, fake_at: float) -> Row:
    score_N: NDArray[np.float64] = np.array([face.fake_score for face in faces])
    units = [face.unit for face in faces]
    row = {"faces": float(len(faces)), "people": float(len(set(units)))}
    for name, error_N in (("called_fake", score_N >= fake_at), ("called_inconclusive", (score_N >= real_below) & (score_N < fake_at))):
        low, high = error_interval(error_N.tolist(), units)
        row |= {name: float(error_N.mean()), f"{name}_low": low, f"{name}_high": high}
    luma = [face.skin_luma for face in faces if face.skin_luma is not None]
    return row | ({"skin_luma": float(np.mean(luma))} if luma else {})
