"""`python -m bench.reviews`: the simulated queue, its reviewers, and that the truth reaches nothing but the reviewers."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.reviews import CARE, QUEUES, SEEN, ScoredFace, agreement_rows, as_cases, calibration_rows, drawn_queue, interval_rows, needed, reviewed
from engines.contracts import Calibration, Label, OperatingPoint
from engines.reviews import Sampling


@pytest.fixture(scope="module")
def manifest() -> Any:
    point = OperatingPoint(name="standard", fake_at=0.8, real_below=0.4, explain_at=0.4)
    calibration = Calibration(method="platt", scale=1.0, bias=0.0, fitted_on="toys")
    return SimpleNamespace(
        digest="e" * 64, name="toy", version="1", calibration=calibration, operating_points={"standard": point}, default_operating_point="standard",
        score_baseline=(), metrics={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def faces() -> list[ScoredFace]:
    rng = np.random.default_rng(0)
    return [
        ScoredFace(f"family {number % 2}", f"cluster {number // 4}", fake, float(rng.normal(1.5 if fake else -1.5, 1)), "identity_swap")
        for number in range(200)
        for fake in (False, True)
    ]


def test_a_stream_is_of_one_cluster_and_one_class(faces: list[ScoredFace], manifest: Any) -> None:
    queue = drawn_queue(np.random.default_rng(0), faces, manifest, 0.1)
    kinds: dict[int, set[bool]] = {}
    for stream, is_fake in zip(queue.stream_M.tolist(), queue.is_fake_M.tolist(), strict=True):
        kinds.setdefault(stream, set()).add(is_fake)
    assert all(len(kind) == 1 for kind in kinds.values()) and 0.07 < np.mean([kind == {True} for kind in kinds.values()]) < 0.13
    assert sum(queue.totals) == queue.raw_M.size


@pytest.mark.parametrize("name", QUEUES)
def test_a_queue_hands_out_each_face_once(faces: list[ScoredFace], manifest: Any, name: str) -> None:
    queue = drawn_queue(np.random.default_rng(1), faces, manifest, 0.2)
    draw, _ = QUEUES[name]
    rows = draw(np.random.default_rng(2), queue, 300)
    assert len(set(rows.tolist())) == len(rows) and 300 <= len(rows) < 400
    rest = np.setdiff1d(np.arange(queue.raw_M.size), rows)
    if name == "by score":
        assert queue.score_M[rows].min() >= queue.score_M[rest].max()
    if name == "by uncertainty":
        assert (queue.label_M[rest] == Label.INCONCLUSIVE).sum() == 0 or (queue.label_M[rows] == Label.INCONCLUSIVE).all()


def test_reviewers_err_as_often_as_they_are_told_to(faces: list[ScoredFace], manifest: Any) -> None:
    queue = drawn_queue(np.random.default_rng(1), faces, manifest, 0.2)
    rows = np.arange(2000)
    for error, seen in ((0.0, "all once"), (0.2, "all three times")):
        reviews = reviewed(np.random.default_rng(3), queue, rows, manifest, error=error, seen=seen, sampling=Sampling.RANDOM)
        wrong = np.mean([(review.truth == "fake") != queue.is_fake_M[int(review.verdict.rpartition("/")[2])] for review in reviews])
        assert wrong == pytest.approx(error, abs=0.015)
        assert len(as_cases(reviews)) == 2000 and len(reviews) == 2000 * SEEN[seen](1)


def test_every_row_of_the_page_is_made(faces: list[ScoredFace], manifest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.reviews.STREAMS", 400)
    monkeypatch.setattr("bench.reviews.CARE", CARE[:2])
    queues = [drawn_queue(np.random.default_rng(seed), faces, manifest, 0.1) for seed in range(2)]
    agreement, intervals = agreement_rows(queues, manifest), interval_rows(queues)
    calibration = calibration_rows(queues, manifest, (400,), ("random faces", "by score"), ((0.0, "a quarter twice"),))
    assert len(agreement) == 2 + 2 * (2 + 2 + 1 + 1) and len(intervals) == 2 + 12 and len(calibration) == 2
    for table in (agreement, intervals):
        assert len({line.count("|") for line in table}) == 1
    assert "2 of 2" in calibration[0].line and "unseen_strata 2" in calibration[1].line and calibration[0].proposed == 1
    assert needed(calibration[:1]) == "Nine queues in ten give a proposal from: 400 faces where reviewers err on 0% (a quarter twice)."
