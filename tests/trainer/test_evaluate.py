"""A part of the dev sets becomes a bench, and whoever writes predictions for it is scored."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer import cli, shards
from trainer.evaluate import baseline_row, bench_faces, beside, build_bench, detections, judged_faces, leads, other_row, read_scores, score_file
from trainer.faces import Face
from trainer.fifa_bench import baselines
from trainer.fifa_bench import score as score_module
from trainer.fifa_bench.predict import predict_to_file
from trainer.fifa_bench.score import score
from trainer.fifa_bench.text import CorpusScores
from trainer.samples import write_jsonl
from trainer.shards import read_manifest


@pytest.fixture
def dev(make_face: Callable[..., Face]) -> list[Face]:
    """Four pairs of *report*, one of *select*, one of train."""
    parts = ["report"] * 4 + ["select", "train"]
    return [make_face(number, dataset="dfdc", part=part, fake=fake) for number, part in enumerate(parts) for fake in (False, True)]


@pytest.fixture
def bench(
    dev: list[Face],
    annotation_row: Callable[..., dict[str, Any]],
    grid_annotator: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Path:
    """FiFa-Bench of *report*: every pair annotated but the last, whose fake was refused."""
    monkeypatch.setattr(shards, "process_annotator", grid_annotator)
    rows = [annotation_row(face) for face in dev if face.part != "train"]
    rows = [row | {"quality": "refused", "refused": "empty_mask"} if row["name"] == "3f.png" else row for row in rows]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_bench(dev, tmp_path, "report", tmp_path / "bench")
    return tmp_path / "bench"


def test_a_bench_holds_its_part_alone_in_the_held_out_grammar(bench: Path) -> None:
    assert read_manifest(bench).parts == {"report": 8}
    answers = [sample.answer for _, samples in bench_faces(bench) for sample in samples if sample.task == "age" and sample.level == "image"]
    assert len(answers) == 7 and not any("is too smooth" in answer for answer in answers)


def test_a_refused_pair_is_still_asked_whether_it_is_fake_and_where_by_the_frozen_reference(bench: Path) -> None:
    asked = {sample.task: sample for _, samples in bench_faces(bench) for sample in samples if sample.name == "3f.png"}
    assert set(asked) == {"det", "cls", "loc"} and not asked["loc"].mask_known and asked["loc"].frozen is not None


def test_originals_stand_in_for_the_second_jpeg(bench: Path, dev: list[Face]) -> None:
    by_name = {face.name: face for face in dev}
    for crop_HWC, samples in bench_faces(bench, dev):
        np.testing.assert_array_equal(crop_HWC, by_name[samples[0].name].image())


def test_a_file_of_perfect_answers_scores_best_and_a_silent_one_worst(bench: Path, tmp_path: Path) -> None:
    predict_to_file(baselines.oracle, bench_faces(bench), tmp_path / "oracle.jsonl")
    tables = score_file(bench, tmp_path / "oracle.jsonl", text=False)
    assert tables["detection"]["dfdc"]["auc"] == 1.0 and tables["localisation"]["image"]["miou"] == 1.0
    assert tables["grounding"]["region"]["miou"] == 1.0 and tables["text-mask alignment"]["image"]["hallucination"] == 0.0
    silent = [json.dumps({"id": json.loads(line)["id"], "refused": "no"}) for line in (tmp_path / "oracle.jsonl").read_text().splitlines()]
    (tmp_path / "silent.jsonl").write_text("\n".join(silent) + "\n")
    refused = score_file(bench, tmp_path / "silent.jsonl", text=False)
    assert refused["grounding"]["region"]["miou"] == 0.0 and refused["localisation"]["image"]["miou"] == 0.0
    assert "detection" not in refused and refused["coverage"]["det/image"]["answered"] == 0.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"system": "lisa"}, "choose from ours, glamm", id="unknown-system"),
        pytest.param({"system": "sida"}, "needs its folder of masks", id="no-masks"),
        pytest.param({"masks": Path("m")}, "has no folder of masks", id="masks-of-ours"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(bench: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        score_file(bench, tmp_path / "p.jsonl", **options)


# --- Beside other systems ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def scores(dev: list[Face]) -> dict[str, float]:
    """Raw scores of a plain classifier on the dev faces: right, but for one fake that it ranks last."""
    return {f"{face.dataset}/{face.name}": -1e6 if face.name == "0f.png" else 40.0 * face.is_fake for face in dev}


def test_a_classifier_that_is_no_engine_answers_det_alone(bench: Path, dev: list[Face], tmp_path: Path) -> None:
    def logits(faces: list[Face]) -> np.ndarray:
        return np.array([-9.0 if face.name == "0f.png" else 9.0 * face.is_fake for face in faces], np.float32)

    assert write_jsonl(tmp_path / "plain.jsonl", detections(bench, dev, logits)) == 8
    tables = score_file(bench, tmp_path / "plain.jsonl", text=False)
    assert tables["detection"]["dfdc"]["auc"] == 0.75 and tables["coverage"]["det/image"]["answered"] == 8
    assert other_row([sample for _, of_face in bench_faces(bench) for sample in of_face], tmp_path / "plain.jsonl")["auc_dfdc"] == 0.75
    with pytest.raises(ValueError, match=r"2 faces of .* are not in the data, dfdc/[0-9a-z.]+ first"):
        list(detections(bench, dev[2:], logits))


def test_manipulations_of_our_own_are_taken_from_the_bench(bench: Path, dev: list[Face], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("trainer.evaluate.OWN", "dfdc")
    shown: dict[str, np.ndarray] = {}

    def logits(faces: list[Face]) -> np.ndarray:
        shown.update((face.name, face.image()) for face in faces)
        return np.zeros(len(faces), np.float32)

    assert len(list(detections(bench, [], logits))) == len(shown) == 8
    for crop_HWC, samples in bench_faces(bench):
        np.testing.assert_array_equal(shown[samples[0].name], crop_HWC)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="not in the data"):
        write_jsonl(tmp_path / "plain.jsonl", detections(bench, [], logits))
    assert not (tmp_path / "plain.jsonl").exists()


def test_a_plain_classifier_has_a_row_of_its_ranking_alone(bench: Path, scores: dict[str, float], tmp_path: Path) -> None:
    samples = [sample for _, of_face in bench_faces(bench) for sample in of_face]
    assert baseline_row(samples, scores) == {"auc_dfdc": 0.75}  # raw scores of any scale, faces of other parts passed over
    (tmp_path / "plain.json").write_text(json.dumps(scores))
    assert other_row(samples, tmp_path / "plain.json") == {"auc_dfdc": 0.75}


def test_a_file_of_predictions_has_the_row_of_a_whole_system(bench: Path, tmp_path: Path) -> None:
    predict_to_file(baselines.oracle, bench_faces(bench), tmp_path / "other.jsonl")
    samples = [sample for _, of_face in bench_faces(bench) for sample in of_face]
    row = other_row(samples, tmp_path / "other.jsonl")
    assert row["auc_dfdc"] == row["loc_miou"] == row["age_miou"] == 1 and row["hallucination"] == 0


def test_other_systems_stand_beside_the_engine_under_names_of_their_own(bench: Path, scores: dict[str, float], tmp_path: Path) -> None:
    asked = list(bench_faces(bench))
    samples = [sample for _, of_face in asked for sample in of_face]
    tables = score(samples, baselines.oracle(asked), intervals=False, text=False)
    (tmp_path / "plain.json").write_text(json.dumps(scores))
    rows = beside(tables, asked, samples, {"plain": tmp_path / "plain.json"})
    assert list(rows) == ["engine", "constant", "residual heuristic", "oracle", "plain"] and rows["engine"] == rows["oracle"]
    with pytest.raises(ValueError, match="'oracle' names a row of the table already"):
        beside(tables, asked, samples, {"oracle": tmp_path / "plain.json"})


@pytest.fixture
def scored_texts(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The texts of each run of the text metrics, in which a METEOR that counts equal texts stands for Java's."""
    runs: list[set[str]] = []

    def scorer(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> CorpusScores:
        equal_N = np.array([float(said in wanted) for said, wanted in zip(predicted, references, strict=True)])
        return CorpusScores(float(equal_N.mean()), 0.0, 0.0, 0.0, equal_N, equal_N, equal_N)

    @contextmanager
    def start(texts: Iterable[str]) -> Iterator[Callable[..., CorpusScores]]:
        runs.append(set(texts))
        yield scorer

    monkeypatch.setattr(score_module, "text_scorer", start)
    return runs


def test_the_constant_has_every_figure_that_it_rivals(bench: Path, scored_texts: list[set[str]]) -> None:
    asked = list(bench_faces(bench))
    samples = [sample for _, of_face in asked for sample in of_face]
    constant = baselines.Constant.of(samples)
    tables = score(samples, constant(asked), intervals=False)
    row = beside(tables, asked, samples, text=True)["constant"]
    areas = {f"{name}_{level}" for name in ("loc_miou", "age_miou", "balanced_accuracy") for level in ("region", "box")}
    assert areas | {"loc_miou", "loc_miou_frozen", "age_miou", "balanced_accuracy", "hallucination", "unlisted", "age_meteor"} <= set(row)
    assert row["balanced_accuracy"] == 0.5 and row["hallucination"] > 0, "whoever marks everything is wrong of real faces"
    assert row["age_meteor"] == tables["text"]["age/image"]["meteor"] > 0
    assert len(scored_texts) == 2 and scored_texts[1] < scored_texts[0], "one more run, of whole faces alone"


def test_without_text_metrics_nobody_has_meteor(bench: Path, scored_texts: list[set[str]]) -> None:
    asked = list(bench_faces(bench))
    samples = [sample for _, of_face in asked for sample in of_face]
    rows = beside(score(samples, baselines.oracle(asked), intervals=False, text=False), asked, samples)
    assert not any("age_meteor" in row for row in rows.values()) and scored_texts == []


def test_a_lead_below_zero_says_that_not_looking_is_better() -> None:
    engine = {"auc_dfdc": 0.9, "age_miou": 0.2, "hallucination": 0.4, "type_macro_f1": 1.0}
    table = leads({"engine": engine, "constant": {"auc_dfdc": 0.5, "age_miou": 0.25, "hallucination": 0.3}})
    assert list(table) == ["hallucination", "age_miou", "auc_dfdc"]
    assert [row["lead"] for row in table.values()] == pytest.approx([-0.1, -0.05, 0.4])
    assert (table["hallucination"]["engine"], table["hallucination"]["constant"]) == (0.4, 0.3)


def test_a_classifier_that_leaves_faces_of_a_group_out_is_refused(bench: Path, scores: dict[str, float]) -> None:
    samples = [sample for _, of_face in bench_faces(bench) for sample in of_face]
    with pytest.raises(ValueError, match=r"1 of 8 faces of dfdc have no score, the first is dfdc/2r\.png"):
        baseline_row(samples, {face: value for face, value in scores.items() if face != "dfdc/2r.png"})
    with pytest.raises(ValueError, match="not one detection group is scored"):
        baseline_row(samples, {face.removeprefix("dfdc/"): value for face, value in scores.items()})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("auc: 0.9", "is no JSON", id="no-json"),
        pytest.param("[0.1, 0.9]", "no object of face", id="a-list"),
        pytest.param('{"dfdc/a.jpg": "high"}', "no object of face", id="words"),
        pytest.param('{"dfdc/a.jpg": NaN}', "no object of face", id="not-finite"),
        pytest.param("{}", "no object of face", id="empty"),
    ],
)
def test_a_file_that_holds_no_scores_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ValueError, match=rf"scores\.json.*{words}"):
        read_scores(tmp_path / "scores.json")


def test_each_scored_face_is_judged_once(bench: Path) -> None:
    asked = list(bench_faces(bench))
    judged = judged_faces(asked, list(baselines.oracle(asked))[:-1])
    assert len(judged) == 8 and {sample.task for _, sample in judged} == {"det"}
    assert all(face.fake_score == sample.is_fake and "dfdc" in face.groups and face.unit == f"dfdc/{sample.unit}" for face, sample in judged)
    assert judged_faces(asked, []) == []


def test_an_engine_is_not_measured_on_a_bench_of_another_part(
    bench: Path, dev: list[Face], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures of training faces, or of those that the cuts were fitted on, would stand as those of people never seen."""
    monkeypatch.setattr(cli, "_faces", lambda data: dev)
    monkeypatch.setattr("sys.argv", ["fifa-train", "evaluate", "--data", "d", "--bench", str(bench), "--part", "select"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "holds faces of report, not of select alone" in capsys.readouterr().err


def test_faces_of_a_bench_do_not_train(bench: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["fifa-train", "train", "--data", "d", "--run", str(tmp_path / "run"), "--instructions", str(bench)]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit):
        cli.main()
    assert "holds faces of report; only those of train may train" in capsys.readouterr().err and not (tmp_path / "run").exists()
