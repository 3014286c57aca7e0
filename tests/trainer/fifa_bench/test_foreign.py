"""Files of other systems, written here as those systems write them, become predictions; files of another shape are one clear error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from engines import fict
from trainer.fifa_bench.foreign import concept_of, fakeshield, ffaa, glamm, image_stem, sida
from trainer.fifa_bench.score import score
from trainer.samples import SIDE, Prediction, Sample, TaskKind

TASKS: tuple[TaskKind, ...] = ("det", "cls", "loc", "toe", "age")


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Two faces, the second a fake, asked of the image; and a region query that no such system answers."""
    common: dict[str, Any] = {"dataset": "set", "unit": "u", "prompt": "?", "answer": "", "forgery_type": None}
    whole = [
        Sample(id=f"{name}#{task}", name=name, task=task, is_fake=fake, tampered=fake, **common)
        for name, fake in (("real.png", False), ("fake 1.png", True))
        for task in TASKS
    ]
    return [*whole, Sample(id="r", name="fake 1.png", task="loc", level="region", concept="nose", is_fake=True, tampered=True, **common)]


@pytest.fixture(scope="module")
def stem(samples: list[Sample]) -> str:
    return image_stem(samples[5])


def box(height: int, width: int) -> NDArray[np.bool_]:
    """The left upper quarter."""
    mask_HW = np.zeros((height, width), bool)
    mask_HW[: height // 2, : width // 2] = True
    return mask_HW


def rle(mask_HW: NDArray[np.bool_], *, compressed: bool) -> dict[str, Any]:
    if compressed:
        coded = coco_mask.encode(np.asfortranarray(mask_HW, np.uint8))
        return {"size": list(mask_HW.shape), "counts": coded["counts"].decode()}
    flat = np.r_[False, mask_HW.ravel(order="F"), ~mask_HW.ravel(order="F")[-1]]
    edges = np.flatnonzero(np.diff(flat))
    return {"size": list(mask_HW.shape), "counts": np.diff(np.r_[0, edges]).tolist()}


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def by_id(predictions: list[Prediction]) -> dict[str, Prediction]:
    return {prediction.id: prediction for prediction in predictions}


def test_the_stem_of_a_face_is_safe_and_its_own(stem: str) -> None:
    assert stem == "set__fake_1_png"


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_glamm_captions_become_explanations_and_phrases_concepts(
    samples: list[Sample], stem: str, tmp_path: Path, compressed: bool, nested: bool
) -> None:
    row = {
        "image_id": stem, "caption": "A face with an odd left cheek and nose", "phrases": ["an odd left cheek", "aura"],
        "pred_masks": [rle(box(448, 640), compressed=compressed), rle(~box(448, 640), compressed=compressed)],
    }  # fmt: skip
    (tmp_path / f"{stem}.json").write_text(json.dumps({stem: row} if nested else row))
    got = by_id(glamm(samples, tmp_path))
    assert set(got) == {f"fake 1.png#{task}" for task in ("loc", "toe", "age")}, "GLaMM gives no score and no type"
    age = got["fake 1.png#age"]
    assert [(mask.concept, mask.phrase, mask.confidence) for mask in age.masks] == [("left_cheek", "an odd left cheek", 1.0), (None, "aura", 1.0)]
    assert (age.masks[0].rle.decode() == box(SIDE, SIDE)).all()
    assert got["fake 1.png#loc"].masks[0].rle.decode().all(), "localisation takes all phrases together"
    assert age.text == row["caption"]


def test_sida_gives_a_hard_score_a_mask_and_a_description(samples: list[Sample], stem: str, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / f"{stem}_mask_0.jpg"), box(300, 300).astype(np.uint8) * 100)
    file = lines(
        tmp_path / "answers.jsonl",
        {
            "image": f"crops/{stem}.png",
            "text_output": "<s> [CLS] This image is classified as tampered. It has been altered. [SEG] A mask is provided.",
        },
        {"image": "crops/set__real_png.png", "text_output": "ignored", "class": "real"},
    )
    got = by_id(sida(samples, file, tmp_path))
    assert got["fake 1.png#det"].fake_score == 1 and got["real.png#det"].fake_score == 0
    assert got["fake 1.png#toe"].text == "This image is classified as tampered. It has been altered. A mask is provided."
    overlap = got["fake 1.png#loc"].masks[0].rle.decode() == box(SIDE, SIDE)
    assert overlap.mean() > 0.99, "JPEG may move the border"
    assert got["real.png#loc"].masks == ()


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("The image has not been tampered with, it looks real.", 0.0),
        ("It was tampered with: its edges do not look real.", 1.0),
        ("full_synthetic", 1.0),
    ],
)
def test_a_verdict_that_sida_denies_is_not_its_verdict(samples: list[Sample], stem: str, tmp_path: Path, text: str, score: float) -> None:
    file = lines(tmp_path / "answers.jsonl", {"image": f"{stem}.png", "text_output": text})
    assert by_id(sida(samples, file, tmp_path))["fake 1.png#det"].fake_score == score


@pytest.mark.parametrize("key", ["outputs", "text"])
def test_fakeshield_is_read_by_its_substring(samples: list[Sample], stem: str, tmp_path: Path, key: str) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    cv2.imwrite(str(masks / f"{stem}.jpg"), box(100, 100).astype(np.uint8) * 255)
    file = lines(
        tmp_path / "out.jsonl",
        {"image": f"/data/{stem}.jpg", key: "The picture has been tampered with, at the nose."},
        {"image": "/data/set__real_png.jpg", key: "The picture has not been tampered with."},
    )
    got = by_id(fakeshield(samples, file, masks))
    assert got["fake 1.png#det"].fake_score == 1 and got["real.png#det"].fake_score == 0
    assert 0.2 < got["fake 1.png#loc"].masks[0].rle.decode().mean() < 0.3 and got["real.png#loc"].masks == ()
    assert "#cls" not in "".join(got)


def _ffaa_content(result: str, kind: str) -> str:
    return f"Image description: A face.\nForgery reasoning: The skin is waxy.\nAnalysis result: {result}\nProbability: 0.9\nForgery type: {kind}"


def test_ffaa_match_scores_become_forgery_scores(samples: list[Sample], stem: str, tmp_path: Path) -> None:
    file = lines(
        tmp_path / "out.jsonl",
        {"id": f"{stem}.png", "difficulty": "easy", "correct": True, "match score": 0.8, "content": _ffaa_content("fake", "Facial expression swap")},
        {"id": "set__real_png.png", "difficulty": "hard", "correct": True, "match score": 0.7, "content": _ffaa_content("real", "None")},
        {"acc": 1.0, "auc": 1.0},
    )
    got = by_id(ffaa(samples, file))
    assert got["fake 1.png#det"].fake_score == pytest.approx(0.8) and got["real.png#det"].fake_score == pytest.approx(0.3)
    assert got["fake 1.png#cls"].type_probs == {"expression_swap": 1.0} and "real.png#cls" not in got
    assert got["fake 1.png#toe"].text == "The skin is waxy." and "fake 1.png#loc" not in got


def test_what_the_adapters_give_can_be_scored(samples: list[Sample], stem: str, tmp_path: Path) -> None:
    file = lines(tmp_path / "out.jsonl", {"id": f"{stem}.png", "content": _ffaa_content("fake", "identity swap")}, {"id": "set__real_png.png",
                 "content": _ffaa_content("real", "")})  # fmt: skip
    tables = score(samples, ffaa(samples, file), text=False, intervals=False)
    assert tables["detection"]["all"]["auc"] == 1 and tables["coverage"]["loc/image"]["missing"] == 2 and "localisation" not in tables


Adapter = Callable[[list[Sample], Path], object]


def _sida_here(samples: list[Sample], file: Path) -> object:
    return sida(samples, file, file.parent)


def _fakeshield_here(samples: list[Sample], file: Path) -> object:
    return fakeshield(samples, file, file.parent)


@pytest.mark.parametrize(
    ("adapter", "row", "says"),
    [
        pytest.param(ffaa, {"id": "x.png"}, "line 1: no 'content' of type str, but id", id="ffaa-field"),
        pytest.param(ffaa, {"id": "x.png", "content": "hello"}, "Analysis result", id="ffaa-content"),
        pytest.param(ffaa, {"id": "x.png", "content": _ffaa_content("fake", "")}, "belong to no sample, the first is 'x'", id="unknown-image"),
        pytest.param(_sida_here, {"image": "x.png"}, "no 'text_output' of type str, but image", id="sida-field"),
        pytest.param(_sida_here, {"image": "x.png", "text_output": "hello"}, "neither real, synthetic nor tampered", id="sida-class"),
        pytest.param(_sida_here, {"image": "x.png", "text_output": "Really realistic."}, "neither real, synthetic nor tampered", id="sida-words"),
        pytest.param(_fakeshield_here, {"image": 3, "outputs": ""}, "no 'image' of type str", id="fakeshield-field"),
        pytest.param(_fakeshield_here, ["a"], "a JSON object is expected, not list", id="no-object"),
    ],
)
def test_a_file_of_another_shape_is_one_clear_error(samples: list[Sample], tmp_path: Path, adapter: Adapter, row: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        adapter(samples, lines(tmp_path / "out.jsonl", row))


def test_an_image_that_is_answered_twice_is_an_error(samples: list[Sample], stem: str, tmp_path: Path) -> None:
    """Which of two answers counts would be ours to choose."""
    answers: dict[Adapter, list[dict[str, Any]]] = {
        ffaa: [{"id": f"{stem}.png", "content": _ffaa_content(verdict, "")} for verdict in ("real", "fake")],
        _sida_here: [{"image": f"{stem}.png", "text_output": verdict} for verdict in ("real", "tampered")],
        _fakeshield_here: [{"image": f"{stem}.png", "outputs": verdict} for verdict in ("has not been tampered with", "tampered")],
    }
    for adapter, rows in answers.items():
        with pytest.raises(ValueError, match=r"line 2: image .* is answered a second time"):
            adapter(samples, lines(tmp_path / "out.jsonl", *rows))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"phrases": []}, "1 masks but 0 phrases", id="phrases"),
        pytest.param({"pred_masks": ["abc"]}, "not in COCO run lengths", id="mask"),
        pytest.param({"pred_masks": [{"size": [4, 4], "counts": [3]}]}, "3 of 16 px", id="counts"),
        pytest.param({"pred_masks": [{"size": [4, 4], "counts": "3"}]}, "cover 3 of 4 x 4 pixels", id="compressed-counts"),
        pytest.param({"pred_masks": [{"size": [90_000, 90_000], "counts": "0"}]}, "90000 x 90000 px", id="size"),
        pytest.param({"caption": None}, "no 'caption' of type str", id="caption"),
    ],
)
def test_a_glamm_file_of_another_shape_is_one_clear_error(
    samples: list[Sample], stem: str, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    row = {"image_id": stem, "caption": "", "phrases": ["nose"], "pred_masks": [rle(box(8, 8), compressed=True)]} | change
    (tmp_path / f"{stem}.json").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=says):
        glamm(samples, tmp_path)


def test_no_file_and_no_json_say_so(samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="output_dir"):
        glamm(samples, tmp_path)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        glamm(samples, tmp_path)


@pytest.mark.parametrize(
    ("phrase", "concept"),
    [
        ("the left cheek", "left_cheek"),
        ("a cheek on the right", "right_cheek"),
        ("the viewer's left cheek", "right_cheek"),
        ("left side of the image, the cheek", "right_cheek"),
        ("The person's blurred NOSE TIP", "nose_tip"),
        ("nose", "nose"),
        ("left nostril", "nostril_left"),
        ("left eye", "eyes"),
        ("right eyebrows", "right_eyebrow"),
        ("both left and right cheeks", "cheeks"),
        ("left nose", "nose"),
        ("hair on the left side", "hair_left_side"),
        ("background", "background"),
        ("noseband", None),
        ("a mysterious aura", None),
        ("left", None),
    ],
)
def test_a_phrase_is_the_longest_concept_it_contains(phrase: str, concept: str | None) -> None:
    assert concept_of(phrase) == concept


def test_every_phrase_of_fict_names_itself_or_a_concept_of_the_same_words() -> None:
    for concept in fict.concepts().values():
        found = concept_of(concept.phrase)
        assert found is not None and (found in concept.path or concept.id in fict.concepts()[found].path), concept.phrase
