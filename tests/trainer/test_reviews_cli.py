"""The loop by its commands: reviews to figures, to rows, to a proposal, to another engine; wrong options and files in one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.bundle import read_manifest, seal_manifest
from engines.contracts import Manifest, PartSpec
from engines.export import file_spec
from engines.reviews import Review
from trainer import cli
from trainer.bundle import draft_manifest
from trainer.config import tiny

MakeReview = Callable[..., Review]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | None:
    monkeypatch.delenv("FIFA_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["fifa-train", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code  # type: ignore[return-value]


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "encoder.onnx").write_bytes(b"graph")
    part = PartSpec(**file_spec(folder / "encoder.onnx").model_dump(), inputs=(), outputs=())
    draft = draft_manifest(tiny().model, {"encoder": part}, folder, name="toy", version_="1", precision="fp16", provenance={"checkpoint_sha256": "x"})
    seal_manifest(folder, Manifest.model_validate(draft | {"digest": "0" * 64}))
    return folder


@pytest.fixture
def reviews(tmp_path: Path, engine: Path, make_review: MakeReview) -> Path:
    """300 faces of 300 streams, a tenth of them fake, that were drawn at random."""
    rng, digest = np.random.default_rng(0), read_manifest(engine).digest
    lines = []
    for number in range(300):
        is_fake = number % 10 == 0
        raw = float(rng.normal(2 if is_fake else 0, 1))
        label = "fake" if raw >= 0 else "real"
        score = float(1 / (1 + np.exp(-raw)))
        review = make_review(number, truth="fake" if is_fake else "real", label=label, raw_score=raw, fake_score=score, engine=digest)
        lines.append(review.model_dump_json() + "\n")
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(lines))
    return path


def test_reviews_become_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reviews: Path, engine: Path, tmp_path: Path
) -> None:
    assert not run(monkeypatch, "evaluate", "--reviews", reviews, "--engine", engine, "--out", tmp_path / "out", "--without-stream", "cam-0")
    shown = capsys.readouterr().out
    assert "## labels" in shown and "| called fake | " in shown and "300" not in shown.split("## decisions")[0].split("| engine")[1]
    tables = json.loads((tmp_path / "out" / "reviews.json").read_text())
    assert tables["reviews"]["left out"]["reviews"] == 1 and tables["over the whole queue"]["fakes in the queue"]["share"] == pytest.approx(29 / 299)


def test_a_queue_is_counted_in_its_verdicts(monkeypatch: pytest.MonkeyPatch, reviews: Path, engine: Path, tmp_path: Path) -> None:
    scores = [json.loads(line)["fake_score"] for line in reviews.read_text().splitlines()]
    faces = [
        {"id": number, "box": [0, 0, 9, 9], "detection_confidence": 1.0, "quality": {"passed": True}, "fake_score": score}
        for number, score in enumerate(scores * 2)
    ]
    verdicts = [{"id": "v", "engine": {"manifest_sha256": digest}, "faces": faces} for digest in (read_manifest(engine).digest, "f" * 64)]
    (tmp_path / "verdicts.jsonl").write_text("".join(json.dumps(verdict) + "\n" for verdict in verdicts))
    command = ("evaluate", "--reviews", reviews, "--engine", engine, "--verdicts", tmp_path / "verdicts.jsonl", "--out", tmp_path / "out")
    assert not run(monkeypatch, *command)
    strata = json.loads((tmp_path / "out" / "reviews.json").read_text())["by stratum of score"]
    assert sum(row["in queue"] for row in strata.values()) == 600, "faces that another engine answered for are not counted"


def test_a_calibration_is_proposed_then_applied_by_a_command_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reviews: Path, engine: Path, tmp_path: Path
) -> None:
    before = (engine / "manifest.json").read_bytes()
    assert not run(monkeypatch, "recalibrate", "--reviews", reviews, "--engine", engine, "--out", tmp_path / "p", "--reviewer-error", 0)
    assert "nothing was changed" in (told := capsys.readouterr()).out and "stated, not measured" in told.err
    assert (engine / "manifest.json").read_bytes() == before
    command = ("apply-calibration", tmp_path / "p" / "proposal.json", "--engine", engine, "--out", tmp_path / "new", "--bundle-version", "2")
    assert not run(monkeypatch, *command)
    assert read_manifest(tmp_path / "new").version == "2" and "toy 2" in capsys.readouterr().out
    assert (engine / "manifest.json").read_bytes() == before


def test_rows_are_made_and_forgotten(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reviews: Path, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    assert not run(monkeypatch, "annotate", "--reviews", reviews, "--frames", tmp_path / "frames", "--out", tmp_path / "rows")
    told = capsys.readouterr().out
    assert "no rows" in told and "no_picture" in told
    assert not run(monkeypatch, "forget", "--annotations", tmp_path / "rows", "--stream", "cam-3")
    assert "0 rows removed" in capsys.readouterr().out
    assert '"cam-3"' not in (tmp_path / "rows" / "left-out.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(("annotate", "--out", "o"), "give --data or --reviews", id="nothing-to-annotate"),
        pytest.param(("annotate", "--out", "o", "--reviews", "REVIEWS"), "--frames", id="no-frames"),
        pytest.param(("annotate", "--out", "o", "--reviews", "none.jsonl", "--frames", "f"), "none.jsonl is missing", id="no-reviews"),
        pytest.param(("annotate", "--out", "OUT", "--reviews", "REVIEWS", "--frames", "nowhere"), "nowhere is missing", id="no-pictures"),
        pytest.param(("evaluate", "--reviews", "REVIEWS", "--of", "123"), "begins 0 of the reviewed engines", id="no-such-engine"),
        pytest.param(("evaluate", "--reviews", "REVIEWS", "--totals", "REVIEWS"), "write a list of 20 counts", id="totals"),
        pytest.param(("recalibrate", "--reviews", "REVIEWS", "--out", "o"), "no review speaks of engine", id="other-engine"),
        pytest.param(("recalibrate", "--reviews", "REVIEWS", "--out", "o", "--reviewer-error", "0.9"), "not in 0 to 0.4", id="error"),
        pytest.param(
            ("apply-calibration", "none.json", "--engine", "ENGINE", "--out", "o"), "make it again with `fifa-train recalibrate`", id="proposal"
        ),
        pytest.param(("forget", "--annotations", "nowhere", "--stream", "s"), "is missing", id="nothing-to-forget"),
    ],
)
def test_what_does_not_work_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reviews: Path,
    engine: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    places = {"REVIEWS": str(reviews), "ENGINE": str(engine), "OUT": str(tmp_path / "out")}
    assert run(monkeypatch, *(places.get(argument, argument) for argument in arguments)) == 2
    error = capsys.readouterr().err
    last = error.splitlines()[-1]
    assert words in last and last.startswith("fifa-train: ")
