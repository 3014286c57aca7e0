"""Does a detector take sharpness for truth: its AUC on reals and fakes that are equally sharp, and after blur and sharpening.

Fakes are softer than photographs in many sets, so "sharp = real" ranks them well and says nothing of forgery. A detector that rests on it falls to
one half where sharpness is matched, and below where reals are softened and fakes sharpened. The other way round it would gain; a detector that loses
there holds the opposite, "sharpened = fake", as training teaches that softens reals and sharpens fakes alone. Blur also takes true evidence away: a
loss there is an upper bound of what a shortcut is worth.

Shapes: N faces of a group, P pairs, R resamples.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from trainer.faces import ImageHWC, fit
from trainer.fifa_bench.detection import Labels, Scores, auc, resampled_auc, usable_percentiles
from trainer.fifa_bench.intervals import drawn_units
from trainer.fifa_bench.predict import BATCH, grouped
from trainer.fifa_bench.robustness import ScoreFaces, blurred
from trainer.samples import SIDE

Row = dict[str, float]
Change = Callable[[ImageHWC], ImageHWC]

SHORTCUT_GROUPS = ("dfdc", "stargan", "ffhq_stylegan2", "sd21_photographs")
CALIPER = 0.05
"""Natural logarithm: the two faces of a pair differ by at most 5 % in sharpness."""
BLUR_PX = 1.5
"""Sigma of the blur, and of what sharpening adds once more, at 224 px."""
DRAWN = 75
"""Reals, and as many fakes, of each group that are blurred, sharpened and scored again: at most 1,200 passes for the four groups."""
MIN_PAIRS = 10
"""Fewer matched pairs give no figure."""
LEFT_OVER = 1e4
"""Cost of a face without a partner: above any sum of distances within the caliper."""


class JudgedFace(NamedTuple):
    """A face with its truth and what the detector said of it as it is."""

    crop_HWC: ImageHWC
    is_fake: bool
    unit: str
    """What intervals are drawn over."""
    groups: tuple[str, ...]
    fake_score: float


def shortcut_table(
    score: ScoreFaces, faces: Sequence[JudgedFace], *, size: int, groups: Sequence[str] = SHORTCUT_GROUPS, drawn: int = DRAWN,
    resamples: int = 500, seed: int = 0,
) -> dict[str, Row]:  # fmt: skip
    """One row for each group that holds both classes; every loss is an AUC as it is less one under a change.

    `score` takes (B, size, size, 3) crops, on the scale of `fake_score`. Which faces are scored again depends on `seed` and the order of `faces`.
    """
    members = {name: [number for number, face in enumerate(faces) if name in face.groups] for name in groups}
    members = {name: rows for name, rows in members.items() if len({faces[number].is_fake for number in rows}) == 2}
    chosen = {name: _drawn(faces, rows, drawn, seed) for name, rows in members.items()}
    blur_px = BLUR_PX * size / SIDE
    everyone = sorted({number for rows in chosen.values() for number in rows})
    soft = _rescored(score, faces, everyone, size, lambda crop_HWC: blurred(crop_HWC, blur_px))
    sharp = _rescored(score, faces, everyone, size, lambda crop_HWC: sharpened(crop_HWC, blur_px))
    table = {}
    for name, rows in members.items():
        whole = _Group.of(faces, rows)
        part = _Group.of(faces, chosen[name])
        row = {"faces": float(len(rows)), "auc": whole.auc} | _matched_row(whole, np.array([sharpness(faces[n].crop_HWC) for n in rows]), resamples)
        row |= {"rescored": float(len(chosen[name])), "auc_rescored": part.auc}
        fakes_N, soft_N, sharp_N = part.is_fake_N, *(np.array([found[number] for number in chosen[name]]) for found in (soft, sharp))
        row |= part.loss_row("equal_blur", soft_N, resamples)
        row |= part.loss_row("soft_reals_sharp_fakes", np.where(fakes_N, sharp_N, soft_N), resamples)
        table[name] = row | part.loss_row("sharp_reals_soft_fakes", np.where(fakes_N, soft_N, sharp_N), resamples)
    return table


class _Group(NamedTuple):
    """Truth, scores and units of some faces."""

    is_fake_N: Labels
    score_N: Scores
    units: tuple[str, ...]

    @staticmethod
    def of(faces: Sequence[JudgedFace], rows: Sequence[int]) -> "_Group":
        chosen = [faces[number] for number in rows]
        return _Group(np.array([f.is_fake for f in chosen], bool), np.array([f.fake_score for f in chosen]), tuple(f.unit for f in chosen))

    @property
    def auc(self) -> float:
        return auc(self.is_fake_N, self.score_N)

    def loss_row(self, name: str, score_N: Scores, resamples: int) -> Row:
        """The AUC of other scores of the same faces, and what is lost; the interval draws the same units for both."""
        changed = auc(self.is_fake_N, score_N)
        unit_N, count_RU = drawn_units(self.units, resamples=resamples)
        before_R, after_R = (resampled_auc(self.is_fake_N, values_N, unit_N, count_RU) for values_N in (self.score_N, score_N))
        return {f"auc_{name}": changed} | _with_bounds(f"loss_{name}", self.auc - changed, before_R - after_R)


def _matched_row(group: _Group, sharpness_N: NDArray[np.float64], resamples: int) -> Row:
    """AUC over pairs of equal sharpness; the AUC of softness alone, before and after, says what there was to match and whether it is gone."""
    row = {"auc_of_softness": auc(group.is_fake_N, -sharpness_N)}
    pair_P2 = matched_pairs(group.is_fake_N, sharpness_N)
    row["pairs"] = float(len(pair_P2))
    if len(pair_P2) < MIN_PAIRS:
        return row
    rows_M = pair_P2.ravel()
    fake_M, score_M = group.is_fake_N[rows_M], group.score_N[rows_M]
    matched = auc(fake_M, score_M)
    unit_N, count_RU = drawn_units(group.units, resamples=resamples)
    after_R = resampled_auc(fake_M, score_M, unit_N[rows_M], count_RU)
    row |= {"auc_of_softness_matched": auc(fake_M, -sharpness_N[rows_M])} | _with_bounds("auc_matched", matched, after_R)
    return row | _with_bounds("loss_matched", group.auc - matched, resampled_auc(group.is_fake_N, group.score_N, unit_N, count_RU) - after_R)


def _with_bounds(name: str, value: float, value_R: NDArray[np.float64]) -> Row:
    bounds = usable_percentiles(value_R)
    return {name: value} | ({} if bounds is None else {f"{name}_low": bounds.low, f"{name}_high": bounds.high})


def sharpness(crop_HWC: ImageHWC) -> float:
    """Standard deviation of the Laplacian of luma at 224 px, in grey levels."""
    luma_HW = cv2.cvtColor(np.ascontiguousarray(fit(crop_HWC, SIDE)), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(luma_HW, cv2.CV_64F).std())


def matched_pairs(is_fake_N: Labels, sharpness_N: NDArray[np.float64], caliper: float = CALIPER) -> NDArray[np.intp]:
    """(P, 2) rows of a fake and of a real that differ by less than the caliper in log sharpness, nobody twice: most pairs, then least distance."""
    fake_F, real_M = np.flatnonzero(is_fake_N), np.flatnonzero(~is_fake_N)
    log_N = np.log(np.maximum(sharpness_N, 1e-6))  # a flat image has none
    distance_FM = np.abs(log_N[fake_F][:, None] - log_N[real_M][None, :])
    first, second = linear_sum_assignment(np.where(distance_FM < caliper, distance_FM, LEFT_OVER))
    near = distance_FM[first, second] < caliper
    return np.stack([fake_F[first[near]], real_M[second[near]]], 1)


def sharpened(crop_HWC: ImageHWC, sigma: float) -> ImageHWC:
    """Unsharp mask of amount 1: what a blur of `sigma` pixels takes away is added once more."""
    return np.clip(2 * crop_HWC.astype(np.int16) - blurred(crop_HWC, sigma), 0, 255).astype(np.uint8)


def _drawn(faces: Sequence[JudgedFace], rows: Sequence[int], count: int, seed: int) -> list[int]:
    """As many of each class, in order."""
    drawn: list[int] = []
    for fake in (False, True):
        pool = [number for number in rows if faces[number].is_fake is fake]
        drawn += [pool[index] for index in np.random.default_rng(seed).permutation(len(pool))[:count]]
    return sorted(drawn)


def _rescored(score: ScoreFaces, faces: Sequence[JudgedFace], rows: Sequence[int], size: int, change: Change) -> Mapping[int, float]:
    found: dict[int, float] = {}
    for together in grouped(rows, BATCH):
        crops_BHWC = np.stack([change(np.ascontiguousarray(fit(faces[number].crop_HWC, size))) for number in together])
        found |= zip(together, np.asarray(score(crops_BHWC), np.float64).tolist(), strict=True)
    return found
