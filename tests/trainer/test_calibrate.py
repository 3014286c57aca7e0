"""Cuts from scores that are known."""

import numpy as np
import pytest

from trainer.calibrate import Scored, calibrate, of_part
from trainer.faces import Face


@pytest.fixture(scope="module")
def scored() -> Scored:
    """400 faces of two sets; fakes score higher, with an overlap."""
    faces, raw = [], []
    rng = np.random.default_rng(0)
    for number in range(400):
        fake = number % 2 == 1
        dataset, kind = "dfdc" if number % 4 < 2 else "ffhq_stylegan2", "swap" if fake else None
        faces.append(Face(str(number), dataset, b"", None, fake, kind, str(number // 2), "calibrate"))
        raw.append(rng.normal(2.0 if fake else -2.0, 1.2))
    types = rng.dirichlet(np.ones(4), len(faces))
    return Scored(tuple(faces), np.array(raw), 1 / (1 + np.exp(-np.array(raw))), types)


def test_cuts_keep_their_promises_on_the_faces_they_were_fitted_on(scored: Scored) -> None:
    calibration, points, probability = calibrate(scored)
    assert calibration.method == "platt" and calibration.ece is not None and calibration.ece < 0.05
    assert (np.argsort(probability, kind="stable") == np.argsort(scored.raw_N, kind="stable")).all()
    for name, fpr, miss in (("standard", 0.01, 0.10), ("screening", 0.05, 0.05)):
        point = points[name]
        for dataset in ("dfdc", "ffhq_stylegan2"):
            reals = np.array([not f.is_fake and f.dataset == dataset for f in scored.faces])
            assert (probability[reals] >= point.fake_at).mean() <= fpr
        assert (probability[scored.is_fake_N] < point.real_below).mean() <= miss
        assert point.real_below <= point.fake_at and point.explain_at == point.real_below


def test_parts_are_chosen_by_name(faces: list[Face]) -> None:
    assert {face.part for face in of_part(faces, "select")} == {"select"}
