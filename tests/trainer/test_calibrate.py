"""Cuts and weights from scores that are known."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.calibrate import FITTED_PARTS, MAX_INCONCLUSIVE, Scored, calibrate, even_weights, family_of, of_part
from trainer.faces import Face
from trainer.fifa_bench.detection import balanced_ece, fit_platt


def scored_faces(counts: dict[tuple[str, bool], int], logit: Callable[[np.random.Generator, str, bool], float], per_unit: int = 2) -> Scored:
    """Faces of some sets and classes with drawn raw scores."""
    rng = np.random.default_rng(0)
    faces, raw = [], []
    for (dataset, fake), count in counts.items():
        for number in range(count):
            faces.append(Face(f"{fake}{number}", dataset, b"", None, fake, "swap" if fake else None, f"{fake}{number // per_unit}", "calibrate"))
            raw.append(logit(rng, dataset, fake))
    types = rng.dirichlet(np.ones(4), len(faces))
    return Scored(tuple(faces), np.array(raw), 1 / (1 + np.exp(-np.array(raw))), types)


def separated(by: float) -> Callable[[np.random.Generator, str, bool], float]:
    """Fakes higher than reals, with an overlap."""
    return lambda rng, dataset, fake: float(rng.normal(by if fake else -by, 1.2))


SETS = {("dfdc", False): 300, ("dfdc", True): 300, ("ffhq_stylegan2", False): 200, ("sd21_faces", True): 100}


@pytest.fixture(scope="module")
def scored() -> Scored:
    """900 faces of two families."""
    return scored_faces(SETS, separated(2.0))


def rows(scored: Scored, keep: Callable[[Face], bool]) -> NDArray[np.bool_]:
    return np.array([keep(face) for face in scored.faces])


def test_cuts_keep_their_promises_on_the_faces_they_were_fitted_on(scored: Scored) -> None:
    calibration, points, probability = calibrate(scored)
    assert calibration.ece is not None and calibration.ece < 0.05
    assert (np.argsort(probability, kind="stable") == np.argsort(scored.raw_N, kind="stable")).all()
    for name, fpr, miss in (("standard", 0.01, 0.20), ("screening", 0.05, 0.05)):
        point = points[name]
        for dataset in ("dfdc", "ffhq_stylegan2"):
            reals = rows(scored, lambda f, dataset=dataset: not f.is_fake and f.dataset == dataset)
            assert (probability[reals] >= point.fake_at).mean() <= fpr
        for dataset in ("dfdc", "sd21_faces"):
            fakes = rows(scored, lambda f, dataset=dataset: f.is_fake and f.dataset == dataset)
            assert (probability[fakes] < point.real_below).mean() <= miss
        assert point.real_below <= point.fake_at and point.explain_at == point.real_below


def test_few_are_inconclusive_as_far_as_misses_allow(scored: Scored) -> None:
    _, points, probability = calibrate(scored)
    point = points["standard"]
    undecided = (probability >= point.real_below) & (probability < point.fake_at)
    for dataset, fake in SETS:
        assert undecided[rows(scored, lambda f, dataset=dataset, fake=fake: (f.dataset, f.is_fake) == (dataset, fake))].mean() <= MAX_INCONCLUSIVE
    hard = scored_faces(SETS, separated(0.7))  # here no cut can have both: misses end at a fifth of a family's fakes
    _, points, probability = calibrate(hard)
    missed = [
        (probability[rows(hard, lambda f, d=d: f.is_fake and f.dataset == d)] < points["standard"].real_below).mean() for d in ("dfdc", "sd21_faces")
    ]
    assert max(missed) == pytest.approx(0.20, abs=0.01)


def test_a_cut_allows_for_people_it_has_not_seen(scored: Scored) -> None:
    """One percent of 300 real faces are three; where they are one person's, and others might be three of the kind, one of them is enough."""
    reals = np.flatnonzero(rows(scored, lambda f: not f.is_fake and f.dataset == "dfdc"))
    raw, faces = scored.raw_N.copy(), list(scored.faces)
    raw[reals] = np.minimum(raw[reals], 0.0)
    raw[reals[:3]] = 2.5, 2.6, 2.7
    for place in reals[:3]:
        faces[place] = replace(faces[place], unit="one")
    _, points, probability = calibrate(replace(scored, faces=tuple(faces), raw_N=raw))
    assert (probability[reals] >= points["standard"].fake_at).sum() == 1
    assert (probability[reals] >= points["screening"].fake_at).sum() == 3


def test_every_family_and_class_has_the_same_say(scored: Scored) -> None:
    weight = even_weights(scored)
    for family, fake in (("dfdc", False), ("dfdc", True), ("photographs", False), ("photographs", True)):
        chosen = rows(scored, lambda f, family=family, fake=fake: (family_of(f), f.is_fake) == (family, fake))
        assert weight[chosen].sum() == pytest.approx(1)


def test_a_large_set_of_many_fakes_does_not_spoil_the_probabilities_of_a_small_one() -> None:
    """Scores of both sets mean the same; one set is nearly all fakes, so that its mix alone would lift every probability."""
    counts = {("dfdc", False): 200, ("dfdc", True): 200, ("stargan", False): 100, ("stargan", True): 4000}
    scored = scored_faces(counts, separated(1.0))
    calibration, _, probability = calibrate(scored)
    dfdc = rows(scored, lambda f: f.dataset == "dfdc")
    plain = fit_platt(scored.is_fake_N, scored.raw_N)
    assert plain.bias > 1 and abs(calibration.bias) < 0.4
    errors = [balanced_ece(scored.is_fake_N[dfdc], values[dfdc]) for values in (probability, plain.probability(scored.raw_N))]
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_the_map_that_made_the_labels_is_found(shift: float) -> None:
    """Reals and fakes of unit spread, one above and one below the shift: scale 2, bias -2 * shift."""
    counts = {("dfdc", fake): 1500 for fake in (False, True)}
    calibration, _, _ = calibrate(scored_faces(counts, lambda rng, dataset, fake: float(rng.normal(shift + (1 if fake else -1), 1.0))))
    assert calibration.bias == pytest.approx(-2 * shift, abs=0.3) and calibration.scale == pytest.approx(2, abs=0.3)
    assert calibration.method == "platt" or (shift == 0 and calibration.bias == 0)


def test_sets_that_no_family_knows_are_calibrated_too() -> None:
    counts = {("csv-mine", False): 60, ("csv-mine", True): 60}
    _, points, probability = calibrate(scored_faces(counts, separated(2.0)))
    assert 0 < points["standard"].real_below <= points["standard"].fake_at <= 1 and len(probability) == 120


def test_what_was_fitted_on_is_said_in_words(scored: Scored) -> None:
    calibration, _, _ = calibrate(scored)
    assert calibration.fitted_on == "400 fakes and 500 reals of calibrate (600 DFDC), families and classes weighted alike"
    assert "report" not in FITTED_PARTS


def test_parts_are_chosen_by_name(faces: list[Face]) -> None:
    assert {face.part for face in of_part(faces, "select")} == {"select"}
