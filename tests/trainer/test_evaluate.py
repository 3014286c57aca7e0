"""Cuts and tables from scores that are known."""

import numpy as np
import pytest

from trainer.evaluate import Scored, calibrate, detection_table, markdown, of_part, oval_mask, resized_mask, type_table
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


def test_a_group_with_one_label_has_no_row(scored: Scored) -> None:
    _, points, _ = calibrate(scored)
    table = detection_table(scored.where(lambda face: face.dataset == "dfdc" or not face.is_fake), points["standard"])
    assert set(table) == {"dfdc"}  # none of these fakes is curated, the other groups have reals only
    row = table["dfdc"]
    assert row["auc_low"] <= row["auc"] <= row["auc_high"] and row["faces"] == 200
    assert row["fake_on_reals"] <= 0.01 + 1e-9


def test_dfdc_types_count_as_the_sum_of_the_swaps(scored: Scored) -> None:
    certain = Scored(scored.faces, scored.raw_N, scored.score_N, np.tile([0.3, 0.3, 0.4, 0.0], (len(scored.faces), 1)))
    assert type_table(certain)["type_macro_f1"] == pytest.approx(1.0)


def test_masks_grow_to_the_reference_size() -> None:
    grid = np.zeros((4, 4), np.float32)
    grid[:2] = 1.0
    mask = resized_mask(grid)
    assert mask.shape == (224, 224) and mask[:100].all() and not mask[124:].any()


def test_the_trivial_oval_is_a_face_in_the_middle() -> None:
    oval = oval_mask()
    assert oval.mean() == pytest.approx(np.pi * 0.32 * 0.40, abs=2e-3)
    np.testing.assert_array_equal(oval, oval[:, ::-1])


def test_parts_are_chosen_by_name(faces: list[Face]) -> None:
    assert {face.part for face in of_part(faces, "select")} == {"select"}


def test_tables_become_markdown() -> None:
    shown = markdown({"Nested": {"dfdc": {"auc": 0.91234, "faces": 200.0}}, "Flat": {"miou": 0.5}})
    nested = ["## Nested", "", "| | auc | faces |", "|---|---|---|", "| dfdc | 0.9123 | 200 |", ""]
    assert shown.split("\n") == [*nested, "## Flat", "", "| measure | value |", "|---|---|", "| miou | 0.5 |", ""]
