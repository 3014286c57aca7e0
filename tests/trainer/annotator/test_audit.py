"""The audit: what its tables count, that its verdicts can fail, and that rows do not depend on who made them."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from engines import fict
from trainer.annotator import audit, audit_speed
from trainer.annotator.artifact import CODEC_QUALITIES
from trainer.annotator.audit_tables import MASKS, concept_table, control_table, markdown, mask_table, speed_table
from trainer.annotator.regions import MeshRegions
from trainer.faces import Face

pytest.importorskip("ai_edge_litert", reason="the annotator needs the annotate extra (ai-edge-litert)")

SIZE = 224


@pytest.fixture(scope="module")
def faces() -> list[Face]:
    """NASA's astronaut portrait in scikit-image (public domain), cut to the face three ways, and a forgery of the first."""
    data = pytest.importorskip("skimage.data")

    def face(name: str, image: NDArray[np.uint8], twin: str | None = None) -> Face:
        encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
        return Face(name, "london", encoded, None, twin is not None, "identity_swap" if twin else None, name, "report", twin)

    portrait = data.astronaut()
    cuts = [cv2.resize(np.ascontiguousarray(portrait[50 + k : 210 + k, 145:305]), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for k in (0, 4, 8)]
    forged = cuts[0].copy()
    forged[130:190, 80:150] = forged[130:190, 80:150] // 2 + 60
    return [*(face(f"{k}.jpg", cut) for k, cut in enumerate(cuts)), face("forged.jpg", forged, "0.jpg")]


def mask_row(family: str, area: float, adaptive: float, fixed_5: float, *, faint: bool = False) -> dict[str, Any]:
    iou = dict.fromkeys(MASKS, 0.0) | {"adaptive": adaptive, "fixed_5": fixed_5}
    return {"family": family, "recipe": f"{family} recipe", "area": area, "faint": faint, "iou": iou}


def line(table: dict[str, Any], **where: Any) -> dict[str, Any]:
    (found,) = [one for one in table["lines"] if all(one[key] == value for key, value in where.items())]
    return dict(found)


def test_mask_table_averages_by_family_and_quintile_of_area() -> None:
    rows = [mask_row("swap", 0.01 * k, adaptive=0.1 * k, fixed_5=0.1) for k in range(1, 11)]
    rows += [mask_row("edit", 0.01 * k, adaptive=0.5, fixed_5=0.3) for k in range(1, 11)]
    table = mask_table(rows)
    assert line(table, family="swap", quintile="all")["adaptive"] == pytest.approx(0.55)
    assert line(table, family="edit", quintile="all")["fixed_5"] == pytest.approx(0.3)
    assert [line(table, family="all", quintile=str(k))["n"] for k in range(1, 6)] == [4] * 5
    assert line(table, family="swap", quintile="5")["adaptive"] == pytest.approx(0.95)
    assert table["verdicts"]["gain_over_fixed_5_by_family"]["figures"] == pytest.approx({"edit": 0.2, "swap": 0.45})


def test_a_family_without_gain_and_a_quintile_that_loses_fail_the_verdicts() -> None:
    good = [mask_row("swap", 0.01 * k, adaptive=0.6, fixed_5=0.3) for k in range(1, 11)]
    assert all(verdict["holds"] for verdict in mask_table(good)["verdicts"].values())
    weak = mask_table([*good, *(mask_row("edit", 0.01 * k, adaptive=0.39, fixed_5=0.3) for k in range(1, 11))])["verdicts"]
    assert not weak["gain_over_fixed_5_by_family"]["holds"] and weak["gain_over_fixed_5_by_quintile"]["holds"]
    lost = mask_table([*good[:-2], *(mask_row("swap", 0.1, adaptive=0.2, fixed_5=0.3) for _ in range(2))])["verdicts"]
    assert lost["gain_over_fixed_5_by_family"]["holds"] and not lost["gain_over_fixed_5_by_quintile"]["holds"]


def test_faint_manipulations_count_in_the_mean_and_their_misses_stand_apart() -> None:
    rows = [mask_row("swap", 0.1, 0.8, 0.3), mask_row("swap", 0.2, 0.0, 0.3, faint=True), mask_row("swap", 0.3, 0.4, 0.3, faint=True)]
    found = line(mask_table(rows), family="swap", quintile="all")
    assert found["adaptive"] == pytest.approx(0.4) and found["adaptive_not_faint"] == pytest.approx(0.8)
    assert (found["n"], found["faint"]) == (3, 2)
    assert (found["missed"], found["missed_faint"], found["missed_not_faint"]) == pytest.approx((1 / 3, 0.5, 0.0), abs=1e-4)


def test_real_pairs_are_counted_by_disturbance_and_one_text_in_ten_fails() -> None:
    rows = [{"disturbance": "jpeg", "empty_mask": True, "empty_text": k > 0, "area": 0.0, "refused": "empty_mask"} for k in range(10)]
    rows += [{"disturbance": "gamma", "empty_mask": True, "empty_text": True, "area": 0.0, "refused": "empty_mask"} for _ in range(10)]
    table = control_table(rows)
    assert line(table, disturbance="jpeg")["both"] == pytest.approx(0.9) and line(table, disturbance="gamma")["both"] == 1.0
    assert line(table, disturbance="all")["both"] == pytest.approx(0.95)
    assert not table["verdicts"]["empty_mask_and_text"]["holds"]
    assert control_table(rows[10:])["verdicts"]["empty_mask_and_text"]["holds"]


def concept_row(truth: list[str], told: list[str], *, refused: str | None = None, hallucinated: list[str] | None = None) -> dict[str, Any]:
    cells = {str(depth): {"truth": truth, "selected": told, "told": told} for depth in (14, 33, 112)}
    return {
        "face": "dfdc/a.jpg",
        "recipe": "copy",
        "cells": cells,
        "told": told,
        "refused": refused,
        "hallucinated": hallucinated or [],
        "wrong_side": [],
    }


def test_concepts_are_micro_averaged_and_refusals_are_misses() -> None:
    rows = [concept_row(["nose", "mouth", "eyes"], ["nose", "mouth", "hair"]), concept_row(["nose"], [], refused="empty_mask")]
    table = concept_table(rows)
    annotated, every = (line(table, depth=33, basis="told", pairs=pairs) for pairs in ("annotated", "all"))
    assert (annotated["n"], annotated["precision"], annotated["recall"]) == (1, pytest.approx(2 / 3, abs=1e-4), pytest.approx(2 / 3, abs=1e-4))
    assert (every["n"], every["precision"], every["recall"]) == (2, pytest.approx(2 / 3, abs=1e-4), 0.5)
    assert table["verdicts"]["no_hallucinated_concept_and_no_side_error"]["holds"]
    assert not table["verdicts"]["told_at_33"]["holds"]
    worse = concept_table([*rows, concept_row(["nose"], ["nose"], hallucinated=["nose"])])
    assert not worse["verdicts"]["no_hallucinated_concept_and_no_side_error"]["holds"]
    assert (worse["hallucinated"], worse["named"], worse["examples"]) == (1, 4, ["dfdc/a.jpg, copy: nose"])


def test_speed_verdicts_compare_ratios() -> None:
    good = speed_table([10.0, 19.0], (10, 100), [1000, 1040])["verdicts"]
    assert good["speed_up"]["holds"] and good["memory"]["holds"]
    bad = speed_table([10.0, 17.0], (10, 100), [1000, 1060])["verdicts"]
    assert not bad["speed_up"]["holds"] and not bad["memory"]["holds"]


def halves() -> MeshRegions:
    """A face of four atoms, one a quadrant: right brow, left brow, right cheek, left cheek (the subject's right is on the left of the image)."""
    index = {atom: k for k, atom in enumerate(fict.cells(112))}
    atom_HW = np.zeros((SIZE, SIZE), np.int16)
    half = SIZE // 2
    atom_HW[:half, :half], atom_HW[:half, half:] = index["right_brow_inner"], index["left_brow_inner"]
    atom_HW[half:, :half], atom_HW[half:, half:] = index["right_mid_cheek"], index["left_mid_cheek"]
    return MeshRegions(atom_HW, np.full((SIZE, SIZE), -1, np.int8), np.ones((SIZE, SIZE), bool))


def test_a_cell_counts_as_named_when_it_shares_a_visible_atom() -> None:
    visible = frozenset({"right_brow_inner", "right_mid_cheek", "left_mid_cheek"})
    assert audit.cells_of(["right_brow_inner"], 33, visible) == ["right_eyebrow"]
    assert audit.cells_of(["cheeks"], 33, visible) == ["right_cheek", "left_cheek"]
    assert audit.cells_of(["cheeks"], 112, visible) == ["right_mid_cheek", "left_mid_cheek"]
    assert audit.cells_of(["left_brow_inner", "boundary_chin"], 14, visible) == []


def test_hallucinated_concepts_and_wrong_sides_are_told_apart() -> None:
    exact = np.zeros((SIZE, SIZE), bool)
    exact[:100, 120:200] = True  # in the left brow's quadrant
    facts = audit.concept_facts(halves(), exact, exact, ["left_brow_inner", "left_mid_cheek", "right_mid_cheek"])
    assert facts["hallucinated"] == ["left_mid_cheek", "right_mid_cheek"]
    assert facts["wrong_side"] == ["right_mid_cheek"]
    assert facts["cells"]["33"]["truth"] == facts["cells"]["33"]["selected"] == ["left_eyebrow"]
    assert facts["cells"]["33"]["told"] == ["left_eyebrow", "right_cheek", "left_cheek"]


def test_only_real_dev_faces_are_audited_and_photographs_come_as_early_as_frames() -> None:
    def face(dataset: str, name: str, part: str = "report", fake: bool = False) -> Face:
        return Face(name, dataset, b"", None, fake, None, name, part, None)  # type: ignore[arg-type]

    held = [face("dfdc", str(k)) for k in range(50)] + [face("amfd", str(k)) for k in range(3)]
    chosen = audit.unseen([*held, face("dfdc", "t", "train"), face("dfdc", "f", fake=True), face("stargan", "s")])
    assert chosen == held
    queue = audit.trials(chosen, seed=1)
    assert len(queue) == audit.ROUNDS * len(held)
    assert [trial.face.dataset for trial in queue[:6]] == ["amfd", "dfdc"] * 3
    assert all(trial.donor is not trial.face for trial in queue[:6])
    assert {(trial.face.dataset, trial.face.name) for trial in queue[: len(held)]} == {(one.dataset, one.name) for one in held}
    with pytest.raises(ValueError, match="at least two real dev faces"):
        audit.trials(held[:1], seed=1)


def test_codecs_of_real_pairs_are_unseen_by_the_noise_floor() -> None:
    assert not set(audit.UNSEEN_QUALITIES) & set(CODEC_QUALITIES)


@pytest.mark.parametrize("kind", list(audit.DISTURBANCES))
def test_a_disturbance_changes_pixels_a_little_everywhere(kind: str, faces: list[Face]) -> None:
    image = np.ascontiguousarray(faces[0].image())
    other = audit.DISTURBANCES[kind](np.random.default_rng(0), image)
    assert other.shape == image.shape and other.dtype == np.uint8
    assert 0 < np.abs(other.astype(float) - image).mean() < 25


def test_rows_do_not_depend_on_the_number_of_processes(faces: list[Face]) -> None:
    queue = audit.trials(audit.unseen(faces), seed=3)
    alone, shared = (audit.rows(partial(audit.exact_row, seed=3), queue, 3, workers, "rows") for workers in (1, 2))
    assert alone == shared
    assert all(row["area"] <= audit.AREA[1] and set(row["iou"]) == set(MASKS) for row in alone)


def test_asking_for_more_rows_than_trials_give_is_an_error(faces: list[Face]) -> None:
    with pytest.raises(ValueError, match="2 asked, but 1 trials gave 1"):
        audit.rows(partial(audit.control_row, seed=0), audit.trials(audit.unseen(faces), 0)[:1], 2, 1, "rows")


def test_the_audit_writes_json_and_a_page_that_say_the_same(faces: list[Face], tmp_path: Path) -> None:
    report = audit.audit(faces, tmp_path / "out", count=3, seed=0, workers=1)
    assert json.loads((tmp_path / "out" / "audit.json").read_text()) == report
    page = (tmp_path / "out" / "audit.md").read_text()
    assert page == markdown(report) and page.count("asked") >= 6
    assert report["speed"] is None and "## Speed" not in page
    assert line(report["masks"], family="all", quintile="all")["n"] == 3
    assert line(report["real_pairs"], disturbance="all")["n"] == 3


def test_memory_is_read_after_each_number_of_pairs_and_the_environment_is_put_back(faces: list[Face]) -> None:
    before = dict(os.environ)
    (pair,) = audit_speed.pairs_of(faces, 8)
    assert (pair[0].name, pair[1].name) == ("0.jpg", "forged.jpg")
    resident = audit_speed.resident_bytes([pair], (1, 2))
    assert len(resident) == 2 and min(resident) > 2**20
    assert dict(os.environ) == before


def test_speed_needs_pairs(faces: list[Face]) -> None:
    with pytest.raises(ValueError, match="no fake among these faces has its real twin"):
        audit_speed.pairs_of(faces[1:], 8)
