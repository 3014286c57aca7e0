"""Scores to probabilities and cuts: one scale, one bias and operating points, fitted through the graphs that will serve.

Fitted on *select* and *calibrate* together: both hold few people, and the cuts rest on the few whose real faces look forged. *report* is never seen.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from engines.analyzer import Analyzer
from engines.contracts import Calibration, OperatingPoint
from trainer.faces import Face, Part, fit
from trainer.fifa_bench.detection import LogitMap, ece, fit_platt, fit_temperature, nll, safe_fake_cut
from trainer.instruct import GROUPS, PHOTOGRAPHS

BATCH = 16
FITTED_PARTS: tuple[Part, ...] = ("select", "calibrate")
SYNTHESISED = ("sd21_faces", "survey_stylegan2")
"""Sets of synthesised faces whose reals are the photographs."""
CUT_FAMILIES = ("dfdc", "photographs")
"""Families whose reals bound false alarms; where none of them is there, all are. CelebA's 128 px tiles are like no camera's picture."""
MAX_INCONCLUSIVE = 0.20
"""Of a family's reals, and of its fakes, as far as misses allow."""
FOLDS = 5

Fit = Callable[[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]], LogitMap]
"""Labels, raw scores and weights to a map."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Faces and what the score path said of them."""

    faces: tuple[Face, ...]
    raw_N: NDArray[np.float64]
    score_N: NDArray[np.float64]
    type_prob_NF: NDArray[np.float64]

    def where(self, keep: Callable[[Face], bool]) -> "Scored":
        """The faces that `keep` accepts."""
        chosen = np.array([keep(face) for face in self.faces], bool)
        return Scored(
            tuple(f for f, c in zip(self.faces, chosen, strict=True) if c), self.raw_N[chosen], self.score_N[chosen], self.type_prob_NF[chosen]
        )

    @property
    def is_fake_N(self) -> NDArray[np.bool_]:
        """Truth."""
        return np.array([face.is_fake for face in self.faces], bool)


def score_faces(analyzer: Analyzer, faces: Sequence[Face]) -> Scored:
    """Run the score path over faces that already are crops."""
    size = analyzer.manifest.preprocess.image_size
    raw, scores, types = [], [], []
    for start in track(range(0, len(faces), BATCH), description="score"):
        crops = np.stack([fit(face.image(), size) for face in faces[start : start + BATCH]])
        for analysis in analyzer.analyze(crops, explain=["never"] * len(crops)):
            raw.append(analysis.raw_score)
            scores.append(analysis.fake_score)
            types.append(analysis.type_probs)
    return Scored(tuple(faces), np.array(raw), np.array(scores), np.array(types).reshape(len(faces), -1))


def of_part(faces: Sequence[Face], part: Part) -> list[Face]:
    """The faces of one part."""
    return [face for face in faces if face.part == part]


def family_of(face: Face) -> str:
    """What is weighted as one: photographs and the faces synthesised to look like them together, every other set by itself."""
    return "photographs" if face.dataset in (*PHOTOGRAPHS, *SYNTHESISED) else face.dataset


def even_weights(scored: Scored) -> NDArray[np.float64]:
    """(N,) weights by which every family has the same say, and real and fake within it: a stream's mix is unknown, that of our sets an accident."""
    members: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for number, face in enumerate(scored.faces):
        members[family_of(face), face.is_fake].append(number)
    weight_N = np.zeros(len(scored.faces))
    for rows in members.values():
        weight_N[rows] = 1 / len(rows)
    return weight_N


def calibrate(scored: Scored) -> tuple[Calibration, dict[str, OperatingPoint], NDArray[np.float64]]:
    """Fit the map to probabilities and the cuts on all given faces: those of `FITTED_PARTS`, never of *report*.

    Temperature or Platt, whichever has the lower cross-validated log-likelihood; both weigh families and classes alike (`even_weights`). The manifest
    holds a scale and a bias, so beta calibration (Kull et al., AISTATS 2017), whose slope differs on the two sides, is not among them.

    `standard`: `fake_at` keeps false alarms at 1 % or less in each of `CUT_FAMILIES`, in 95 % of the resamples of people; `real_below` calls a tenth
    of any family's fakes real at most, or up to a fifth as long as more than a fifth of a family's reals or fakes would be inconclusive. `screening`
    allows 5 % false alarms and misses 5 %. Faces are explained from `real_below` on: whatever is not called real.
    """
    weight_N = even_weights(scored)
    fits: dict[Literal["temperature", "platt"], Fit] = {"temperature": fit_temperature, "platt": fit_platt}
    unseen = {method: _cross_validated(scored, weight_N, fit) for method, fit in fits.items()}
    method = min(unseen, key=lambda name: nll(scored.is_fake_N, unseen[name], weight_N=weight_N))
    fitted = fits[method](scored.is_fake_N, scored.raw_N, weight_N)
    probability = fitted.probability(scored.raw_N)
    points = {
        name: _operating_point(name, scored, probability, fpr=fpr, missed=missed, most_missed=most_missed)
        for name, fpr, missed, most_missed in (("standard", 0.01, 0.10, 0.20), ("screening", 0.05, 0.05, 0.05))
    }
    parts = " and ".join(part for part in FITTED_PARTS if any(face.part == part for face in scored.faces))
    dfdc = len(scored.where(GROUPS["dfdc"]).faces)
    fakes, reals = int(scored.is_fake_N.sum()), int((~scored.is_fake_N).sum())
    count = f"{fakes} fakes and {reals} reals of {parts} ({dfdc} DFDC), families and classes weighted alike"
    error = ece(scored.is_fake_N, unseen[method], weight_N=weight_N)
    return (
        Calibration(method=method, scale=round(fitted.scale, 6), bias=round(fitted.bias, 6), fitted_on=count, ece=round(error, 4)),
        points,
        probability,
    )


def _cross_validated(scored: Scored, weight_N: NDArray[np.float64], fit: Fit) -> NDArray[np.float64]:
    """Probability of each face by a map that was fitted without its fold's people."""
    _, unit_N = np.unique([f"{face.dataset}/{face.unit}" for face in scored.faces], return_inverse=True)
    probability_N = np.zeros(len(scored.faces))
    for fold in range(FOLDS):
        held_N = unit_N % FOLDS == fold
        if held_N.any():
            rest_N = ~held_N
            probability_N[held_N] = fit(scored.is_fake_N[rest_N], scored.raw_N[rest_N], weight_N[rest_N]).probability(scored.raw_N[held_N])
    return probability_N


def _operating_point(
    name: str, scored: Scored, probability_N: NDArray[np.float64], *, fpr: float, missed: float, most_missed: float
) -> OperatingPoint:
    families = np.array([family_of(face) for face in scored.faces])
    units = np.array([f"{face.dataset}/{face.unit}" for face in scored.faces])  # a name is unique within its set only
    is_fake_N = scored.is_fake_N
    real_families = sorted(set(families[~is_fake_N]))
    cut_on = [family for family in real_families if family in CUT_FAMILIES] or real_families
    fake_at = max(
        safe_fake_cut(is_fake_N[rows], probability_N[rows], units[rows].tolist(), fpr)
        for rows in (is_fake_N | (families == family) for family in cut_on)
    )
    by_family = [probability_N[is_fake_N & (families == family)] for family in sorted(set(families[is_fake_N]))]
    classes = [*by_family, *(probability_N[~is_fake_N & (families == family)] for family in cut_on)]
    fewest_missed, most = (min(_quantile_cut(fakes, share) for fakes in by_family) for share in (missed, most_missed))
    decided = max(_undecided_cut(values, fake_at, MAX_INCONCLUSIVE) for values in classes)
    fake_at = min(fake_at, 1.0)
    real_below = min(max(fewest_missed, decided), most, fake_at)
    return OperatingPoint(name=name, fake_at=round(fake_at, 6), real_below=round(real_below, 6), explain_at=round(real_below, 6), fpr_target=fpr)


def _quantile_cut(value_M: NDArray[np.float64], share: float) -> float:
    """Largest cut with at most that share of the values below it."""
    return float(np.sort(value_M)[min(int(np.floor(share * value_M.size + 1e-9)), value_M.size - 1)])


def _undecided_cut(value_M: NDArray[np.float64], fake_at: float, share: float) -> float:
    """Smallest cut that leaves at most that share of the values between it and `fake_at`; 0 where that holds of itself."""
    below_desc = np.sort(value_M[value_M < fake_at])[::-1]
    allowed = int(np.floor(share * value_M.size + 1e-9))
    return float(np.nextafter(below_desc[allowed], 1.0)) if allowed < below_desc.size else 0.0
