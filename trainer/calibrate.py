"""Scores to probabilities and cuts: Platt scaling and operating points, fitted on the *calibrate* part through the graphs that will serve."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from engines.analyzer import Analyzer
from engines.contracts import Calibration, OperatingPoint
from trainer.faces import Face, Part, fit
from trainer.fifa_bench.detection import ece, fake_cut, fit_platt, real_cut
from trainer.instruct import GROUPS, PHOTOGRAPHS

BATCH = 16


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


def calibrate(scored: Scored) -> tuple[Calibration, dict[str, OperatingPoint], NDArray[np.float64]]:
    """Fit Platt scaling and cuts on all faces of *calibrate*.

    `standard`: `fake_at` keeps false alarms at 1 % or less on DFDC and on photographs apart; `real_below` lets at most 10 % of the fakes through
    unremarked. `screening` allows 5 % false alarms. Faces are explained from `real_below` on: whatever is not called real.
    """
    dfdc = scored.where(GROUPS["dfdc"])
    fitted = fit_platt(scored.is_fake_N, scored.raw_N)
    probability = fitted.probability(scored.raw_N)
    real_sets = [
        [p for p, f in zip(probability, scored.faces, strict=True) if not f.is_fake and keep(f)]
        for keep in (lambda f: f.dataset == "dfdc", lambda f: f.dataset in PHOTOGRAPHS)
    ]
    points = {}
    for name, fpr, miss in (("standard", 0.01, 0.10), ("screening", 0.05, 0.05)):
        fake_at = max(fake_cut(np.r_[np.zeros(len(reals), bool), True], np.r_[reals, 1.0], fpr) for reals in real_sets if reals)
        real_below = min(real_cut(scored.is_fake_N, probability, miss), fake_at)
        points[name] = OperatingPoint(
            name=name, fake_at=round(fake_at, 6), real_below=round(real_below, 6), explain_at=round(real_below, 6), fpr_target=fpr
        )
    error = ece(scored.is_fake_N, probability)
    count = f"{int(scored.is_fake_N.sum())} fakes and {int((~scored.is_fake_N).sum())} reals of the calibrate part ({len(dfdc.faces)} DFDC)"
    return (
        Calibration(method="platt", scale=round(fitted.scale, 6), bias=round(fitted.bias, 6), fitted_on=count, ece=round(error, 4)),
        points,
        probability,
    )
