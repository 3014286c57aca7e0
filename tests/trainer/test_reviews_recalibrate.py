"""A calibration out of reviews: what is proposed, what is refused and why, and that nothing changes until somebody applies it."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.bundle import read_manifest, seal_manifest, verify_files
from engines.contracts import Calibration, Manifest, OperatingPoint, PartSpec
from engines.export import file_spec
from engines.reviews import Review
from trainer.bundle import draft_manifest
from trainer.config import tiny
from trainer.fifa_bench.detection import LogitMap, fit_platt
from trainer.recalibrate import (
    MIN_FACES,
    PROPOSAL,
    Proposal,
    RecalibrationError,
    Refusal,
    apply,
    fit_voices,
    moved,
    propose,
    seen_through,
    write_proposal,
)
from trainer.review_sampling import SelectionError, Unrepresentative, counted_in_bins
from trainer.reviewer_error import stated_error
from trainer.reviews import Reviews

MakeReview = Callable[..., Review]
NOW = datetime(2026, 1, 2, tzinfo=UTC)
CURRENT = LogitMap(1.0, 0.0)
CAREFUL = stated_error(0.0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one part, calibrated for as many fakes as reals."""
    folder = tmp_path_factory.mktemp("engine")
    (folder / "encoder.onnx").write_bytes(b"graph")
    (folder / "MODEL_CARD.md").write_text("# Card\n")
    part = PartSpec(**file_spec(folder / "encoder.onnx").model_dump(), inputs=(), outputs=())
    draft = draft_manifest(tiny().model, {"encoder": part}, folder, name="toy", version_="1", precision="fp16", provenance={"checkpoint_sha256": "x"})
    point = OperatingPoint(name="standard", fake_at=0.9, real_below=0.3, explain_at=0.3, fpr_target=0.01)
    draft |= {
        "calibration": Calibration(method="platt", scale=CURRENT.scale, bias=CURRENT.bias, fitted_on="toys").model_dump(),
        "operating_points": {"standard": point.model_dump()}, "default_operating_point": "standard", "score_baseline": [0.05] * 20,
        "metrics": {"detection.all.auc": 0.9, "detection.all.ece": 0.01}, "files": {"model_card": file_spec(folder / "MODEL_CARD.md").model_dump()},
        "digest": "0" * 64,
    }  # fmt: skip
    seal_manifest(folder, Manifest.model_validate(draft))
    return folder


def reviewed(
    make_review: MakeReview,
    digest: str,
    *,
    faces: int,
    fake_share: float,
    error: float = 0.0,
    reviewers: int = 1,
    per_stream: int = 2,
    seed: int = 0,
    **changed: object,
) -> Reviews:
    """Raw scores that are the log odds of fake where both classes are alike: `CURRENT` is right for half fakes, and a shift from it for others."""
    rng = np.random.default_rng(seed)
    reviews = []
    for number in range(faces):
        stream = number // per_stream
        is_fake = bool(np.random.default_rng([seed, stream]).random() < fake_share)
        raw = float(rng.normal(1 if is_fake else -1, np.sqrt(2)))
        for reviewer in range(reviewers):
            truth = "fake" if is_fake != (rng.random() < error) else "real"
            told = {
                "label": "inconclusive",
                "fake_score": float(CURRENT.probability(np.array(raw))),
                "raw_score": raw,
                "truth": truth,
                "engine": digest,
            }
            reviews.append(make_review(number, **(told | {"stream": f"cam-{stream}", "reviewer": f"r{reviewer}"} | changed)))
    return Reviews(tuple(reviews), 0, 0, 0, "0" * 64)


@cache
def shifted(make_review: MakeReview, digest: str) -> Reviews:
    return reviewed(make_review, digest, faces=800, fake_share=0.08, reviewers=2, error=0.02)


@pytest.fixture(scope="module")
def proposal(engine: Path, make_review: MakeReview, tmp_path_factory: pytest.TempPathFactory) -> Path:
    manifest = read_manifest(engine)
    out = tmp_path_factory.mktemp("proposal")
    write_proposal(propose(shifted(make_review, manifest.digest), manifest, now=NOW), out)
    return out / PROPOSAL


def read(path: Path) -> Proposal:
    return Proposal.model_validate_json(path.read_bytes())


# --- Proposed ---------------------------------------------------------------------------------------------------------------------------------


def test_another_mix_of_real_and_fake_is_found_and_measured_on_streams_not_fitted_on(proposal: Path) -> None:
    found = read(proposal)
    assert found.proposed.bias == pytest.approx(np.log(0.08 / 0.92), abs=0.6) and found.proposed.scale == pytest.approx(1.0, abs=0.35)
    error = found.figures["ece"]
    assert error.after < error.before / 3 and error.change_high < 0 and found.figures["nll"].change_high < 0
    assert found.fake_share_low < 0.08 < found.fake_share_high
    assert found.reviewer_error == pytest.approx(0.02, abs=0.015) and found.shared_faces == 800 and found.reviewers == 2


def test_a_proposal_is_sealed_and_its_page_says_what_would_change(proposal: Path, engine: Path) -> None:
    page = (proposal.parent / "proposal.md").read_text()
    found = read(proposal)
    assert found.digest in page and found.engine in page and "Nothing has been changed" in page and "apply-calibration" in page
    assert f"{found.figures['ece'].before:.4f}" in page
    assert read_manifest(engine).calibration.bias == CURRENT.bias


def test_the_same_reviews_give_the_same_proposal(proposal: Path, engine: Path, make_review: MakeReview, tmp_path: Path) -> None:
    manifest = read_manifest(engine)
    write_proposal(propose(shifted(make_review, manifest.digest), manifest, now=NOW), tmp_path)
    assert (tmp_path / PROPOSAL).read_bytes() == proposal.read_bytes()


@given(
    scale=st.floats(0.3, 3),
    bias=st.floats(-4, 4),
    fake_at=st.floats(0.5, 0.99),
    real_below=st.floats(0.01, 0.49),
    raw=st.lists(st.floats(-8, 8), min_size=1),
)
def test_labels_stay_when_the_cuts_move_with_the_map(scale: float, bias: float, fake_at: float, real_below: float, raw: list[float]) -> None:
    old, new = LogitMap(1.2, -0.5), LogitMap(scale, bias)
    point = OperatingPoint(name="p", fake_at=fake_at, real_below=real_below, explain_at=real_below)
    there = moved(point, old, new)
    for value in raw:
        score = float(old.probability(np.array(value)))
        if min(abs(score - fake_at), abs(score - real_below)) > 1e-9:
            assert there.label(float(new.probability(np.array(value)))) is point.label(score)


@given(st.lists(st.integers(0, 100), min_size=20, max_size=20).filter(any), st.floats(0.3, 3), st.floats(-4, 4))
def test_a_baseline_seen_through_another_map_keeps_its_mass(counts: list[int], scale: float, bias: float) -> None:
    shares = [count / sum(counts) for count in counts]
    assert seen_through(shares, CURRENT, CURRENT) == pytest.approx(shares, abs=1e-5)
    assert sum(seen_through(shares, CURRENT, LogitMap(scale, bias))) == pytest.approx(1, abs=1e-4)


@given(st.integers(5, 60), st.integers(5, 60), st.floats(0, 0.3), st.integers(1, 3))
def test_a_fit_is_finite_whatever_was_said(fakes: int, reals: int, error: float, voices: int) -> None:
    rng = np.random.default_rng(fakes * reals)
    is_fake_N = np.repeat([True, False], [fakes, reals])
    raw_N = rng.normal(is_fake_N * 6.0 - 3, 1)  # the classes hardly touch
    said_N = np.array([2 * rng.binomial(voices, 1 - error if fake else error) - voices for fake in is_fake_N])
    chance_N = 1 / (1 + np.exp(-said_N * np.log((1 - max(error, 0.01)) / max(error, 0.01))))
    for options in ({}, {"bias": 0.0}, {"scale": 1.0}):
        found = fit_voices(chance_N, raw_N, np.ones(raw_N.size), **options)
        assert np.isfinite(found.scale) and np.isfinite(found.bias) and found.scale > 0
        assert options.get("scale", found.scale) == found.scale and options.get("bias", found.bias) == found.bias


def test_without_errors_the_fit_is_platts() -> None:
    rng = np.random.default_rng(0)
    is_fake_N = rng.random(4000) < 0.2
    raw_N = rng.normal(is_fake_N * 2.0 - 1, 1)
    ours, platt = fit_voices(np.where(is_fake_N, 0.9998, 0.0002), raw_N, np.ones(4000)), fit_platt(is_fake_N, raw_N)
    assert ours == pytest.approx(platt, abs=0.05)


# --- Refused ----------------------------------------------------------------------------------------------------------------------------------


def test_reviewers_who_err_do_not_pull_the_map(engine: Path, make_review: MakeReview) -> None:
    """One in ten answers is wrong: as many reals are called fake as there are fakes."""
    manifest = read_manifest(engine)
    found = propose(reviewed(make_review, manifest.digest, faces=1000, fake_share=0.1, error=0.1, reviewers=3), manifest, now=NOW)
    assert found.fake_share == pytest.approx(0.1, abs=0.03) and found.reviewer_error == pytest.approx(0.1, abs=0.02)
    assert found.proposed.bias == pytest.approx(np.log(0.1 / 0.9), abs=0.7)


def refusal(reviews: Reviews, manifest: Manifest, **options: object) -> str:
    with pytest.raises((RecalibrationError, SelectionError)) as refused:
        propose(reviews, manifest, now=NOW, **options)  # type: ignore[arg-type]
    assert str(refused.value).count("; ") >= 1, "cause; remedy"
    return str(refused.value.fault.value)


def test_what_cannot_be_claimed_is_refused_by_name(engine: Path, make_review: MakeReview) -> None:
    manifest, digest = read_manifest(engine), read_manifest(engine).digest
    assert refusal(reviewed(make_review, "f" * 64, faces=40, fake_share=0.5), manifest) == Refusal.OTHER_ENGINE
    assert refusal(reviewed(make_review, digest, faces=40, fake_share=0.5, raw_score=None), manifest) == Refusal.NO_RAW_SCORE
    assert refusal(reviewed(make_review, digest, faces=400, fake_share=0.5), manifest) == Refusal.UNKNOWN_ERROR
    assert refusal(reviewed(make_review, digest, faces=400, fake_share=0.5, error=0.45, reviewers=2), manifest) == Refusal.ERROR_TOO_HIGH
    assert refusal(reviewed(make_review, digest, faces=MIN_FACES, fake_share=0.5), manifest, error=CAREFUL) == Refusal.TOO_FEW
    two_streams = reviewed(make_review, digest, faces=200, fake_share=0.5, per_stream=50)
    assert refusal(two_streams, manifest, error=CAREFUL) == Refusal.TOO_FEW, "many faces of few streams are few"
    for sampling in (None, "score", "disagreement"):
        sorted_queue = reviewed(make_review, digest, faces=400, fake_share=0.1, sampling=sampling)
        assert refusal(sorted_queue, manifest, error=CAREFUL) == Unrepresentative.UNKNOWN_SELECTION


def test_no_gain_is_no_proposal(engine: Path, make_review: MakeReview) -> None:
    manifest = read_manifest(engine)
    assert refusal(reviewed(make_review, manifest.digest, faces=400, fake_share=0.5), manifest, error=CAREFUL) == Refusal.NO_GAIN


def test_totals_make_a_sorted_queue_speak_where_all_of_it_was_looked_at(engine: Path, make_review: MakeReview) -> None:
    """Every third face below a score of a half was reviewed and every one above; by its totals the queue has the mix it has."""
    manifest = read_manifest(engine)
    whole = reviewed(make_review, manifest.digest, faces=1500, fake_share=0.08, sampling="score")
    totals = counted_in_bins(review.fake_score for review in whole.counted if review.fake_score is not None)
    kept = tuple(r for number, r in enumerate(whole.counted) if (r.fake_score or 0) >= 0.5 or number % 3 == 0)
    found = propose(Reviews(kept, 0, 0, 0, "0" * 64), manifest, totals=totals, error=CAREFUL, now=NOW)
    truth = np.mean([review.truth == "fake" for review in whole.counted])
    assert abs(np.mean([review.truth == "fake" for review in kept]) - truth) > 0.04
    assert found.fake_share == pytest.approx(truth, abs=0.02) and "stated, not measured" in found.warnings[0]


# --- Applied ----------------------------------------------------------------------------------------------------------------------------------


def test_applying_makes_another_engine_and_leaves_the_old_one(proposal: Path, engine: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in engine.iterdir()}
    sealed = apply(proposal, engine, tmp_path / "new")
    old, told = read_manifest(engine), read(proposal)
    assert {path.name: path.read_bytes() for path in engine.iterdir()} == before
    verify_files(tmp_path / "new", sealed)
    assert sealed.digest != old.digest and sealed.calibration == told.proposed and sealed.version == f"1+reviews.{told.digest[:8]}"
    assert sealed.parts == old.parts and sealed.provenance["recalibrated_from"] == old.digest
    assert set(sealed.metrics) == {"detection.all.auc"}, "what was measured of the old scores is not said of the new ones"
    assert told.digest in (tmp_path / "new" / "MODEL_CARD.md").read_text()
    assert apply(proposal, engine, tmp_path / "again", version="2").version == "2"


def test_a_proposal_fits_its_engine_alone(proposal: Path, engine: Path, tmp_path: Path) -> None:
    apply(proposal, engine, tmp_path / "new")
    with pytest.raises(RecalibrationError, match="was made for engine") as refused:
        apply(proposal, tmp_path / "new", tmp_path / "newer")
    assert refused.value.fault is Refusal.OTHER_ENGINE and not (tmp_path / "newer").exists()


def test_a_proposal_that_was_touched_is_refused(proposal: Path, engine: Path, tmp_path: Path) -> None:
    body = json.loads(proposal.read_text())
    body["proposed"]["bias"] = 5.0
    (tmp_path / "p.json").write_text(json.dumps(body))
    with pytest.raises(RecalibrationError, match="was changed after export") as refused:
        apply(tmp_path / "p.json", engine, tmp_path / "new")
    assert refused.value.fault is Refusal.BROKEN_PROPOSAL


def test_no_bundle_is_written_over(proposal: Path, engine: Path, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("x")
    with pytest.raises(RecalibrationError, match="name a new folder"):
        apply(proposal, engine, tmp_path)
    with pytest.raises(RecalibrationError, match="name a new folder"):
        apply(proposal, engine, engine)
