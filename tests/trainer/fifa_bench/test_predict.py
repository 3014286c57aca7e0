"""Predictions of a toy engine: every sample answered, every face encoded once, and the answers those of serving."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.contracts import FORGERY_TYPES
from engines.prompts import BBOX, LOC_ANSWER, LOC_CLEAN_ANSWER, loc_answer
from trainer.fifa_bench.masks import mask_iou
from trainer.fifa_bench.predict import AskedFace, phrase_masks, predict, predict_to_file, resized_mask
from trainer.samples import SIDE, Prediction, Sample, read_predictions

Make = Callable[..., Any]
PLACES = ("nose", "mouth", "eyes", "cheeks", "forehead")
"""The phrases that the toy knows."""
EXPLANATION = "The <p> mouth </p> [SEG] is odd. So is the <p> nose </p> [SEG] of face {}."


def write(face: int, task: str) -> str:
    """Odd faces are called clean."""
    if task == "loc":
        return LOC_ANSWER if face % 2 == 0 else LOC_CLEAN_ANSWER
    return EXPLANATION.format(face) if task == "age" else f"Face {face} is odd."


@pytest.fixture
def items(crop: Make, ask: Make) -> list[AskedFace]:
    """Five faces with the image-level tasks."""
    return [(crop(number, bright=["nose"][number % 2 :]), [ask(number, task) for task in ("det", "cls", "loc", "toe", "age")]) for number in range(5)]


def test_every_sample_is_answered_in_its_order(toy_analyzer: Make, items: list[AskedFace]) -> None:
    predictions = list(predict(toy_analyzer(write), items, batch=2))
    assert [prediction.id for prediction in predictions] == [sample.id for _, samples in items for sample in samples]
    det, cls, loc, toe, age = predictions[10:15]
    assert det.fake_score is not None and det.fake_score > 0.9 and predictions[5].fake_score < 0.1  # type: ignore[operator]
    assert cls.type_probs is not None and sum(cls.type_probs.values()) == pytest.approx(1) and tuple(cls.type_probs) == FORGERY_TYPES
    assert toe.text == "Face 2 is odd." and age.text == "The mouth is odd. So is the nose of face 2."
    assert len(loc.masks) == 1 and predictions[7].masks == ()


def test_a_face_is_encoded_once_whatever_is_asked_of_it(toy_analyzer: Make, items: list[AskedFace]) -> None:
    analyzer = toy_analyzer(write)
    list(predict(analyzer, items, batch=3))
    assert analyzer._bundle.engines["encoder"].faces == [0, 1, 2, 3, 4]


def test_a_question_that_two_samples_ask_is_decoded_once(toy_analyzer: Make, crop: Make, ask: Make) -> None:
    analyzer = toy_analyzer(write)
    one, other = predict(analyzer, [(crop(0), [ask(0, "age"), ask(0, "age", id="again")])])
    assert other.id == "again" and one.model_copy(update={"id": "again"}) == other
    assert analyzer._bundle.engines["decoder"].prefills == 1


def test_the_size_of_a_batch_changes_nothing(toy_analyzer: Make, items: list[AskedFace]) -> None:
    one, other = (list(predict(toy_analyzer(write), items, batch=batch)) for batch in (1, 4))
    assert one == other


def test_an_explanation_is_that_of_serving(toy_analyzer: Make, items: list[AskedFace]) -> None:
    analyzer = toy_analyzer(write)
    crops_BHWC = np.stack([crop_HWC for crop_HWC, _ in items])
    served = analyzer.analyze(crops_BHWC, explain=["always"] * len(items))
    answered = [prediction for prediction in predict(analyzer, items) if prediction.id.endswith("#age")]
    for analysis, prediction in zip(served, answered, strict=True):
        assert prediction.text == analysis.explanation.text
        assert [(m.phrase, m.concept, m.confidence) for m in prediction.masks] == [
            (e.phrase, e.concept, pytest.approx(e.mask_confidence)) for e in analysis.explanation.evidence
        ]
        for mask, evidence in zip(prediction.masks, analysis.explanation.evidence, strict=True):
            np.testing.assert_array_equal(mask.rle.decode(), resized_mask(evidence.mask_probability_HW))


def test_localisation_is_the_union_of_its_masks(toy_analyzer: Make, crop: Make, ask: Make, region: Make) -> None:
    """There is one: the answer is read off one run, whatever else the engine would go on to write."""
    analyzer = toy_analyzer(lambda face, task: f"{LOC_ANSWER} [SEG]")
    (prediction,) = predict(analyzer, [(crop(0), [ask(0, "loc")])])
    assert mask_iou(prediction.masks[0].rle.decode(), region("nose")) > 0.99  # the toy's first place; corners are rounded
    assert prediction.masks[0].confidence == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert analyzer._bundle.engines["decoder"].prefills == 1


# --- Queries ----------------------------------------------------------------------------------------------------------------------------------

BOX = (60.0, 58.0, 101.0, 97.0)
"""On the toy's cell of the nose, and not on the borders of its mask grid."""


def write_about(face: int, task: str, area: str = "") -> str:
    """An engine that finds the asked area of even faces tampered, and says so."""
    if task == "loc":
        return loc_answer(face % 2 == 0, "box" if area == BBOX else "region" if area else "image", area if area in PLACES else None)
    phrase = area if area in PLACES else "nose"
    return f"The <p> {phrase} </p> [SEG] is odd." if face % 2 == 0 else "All is well there."


@pytest.fixture
def queries(ask: Make) -> list[Sample]:
    """Of face 0: a region, the same region again, and a box."""
    return [
        ask(0, "age", id="region", level="region", concept="mouth"), ask(0, "loc", id="same", level="region", concept="mouth"),
        ask(0, "toe", id="box", level="box", box_xyxy=BOX),
    ]  # fmt: skip


def test_an_engine_for_whole_faces_refuses_queries(toy_analyzer: Make, crop: Make, queries: list[Sample]) -> None:
    analyzer = toy_analyzer(write)
    predictions = list(predict(analyzer, [(crop(0), queries)]))
    assert [prediction.refused for prediction in predictions] == ["query_not_answered"] * 3
    assert all(not prediction.masks and prediction.text is None for prediction in predictions)
    assert analyzer._bundle.engines["decoder"].prefills == 0


def test_an_engine_that_takes_queries_is_asked(toy_analyzer: Make, crop: Make, queries: list[Sample], region: Make) -> None:
    analyzer = toy_analyzer(write_about, query_levels=("region",))
    age, loc, box = predict(analyzer, [(crop(0), queries)])
    assert age.text == "The mouth is odd." and [mask.concept for mask in age.masks] == ["mouth"]
    assert mask_iou(loc.masks[0].rle.decode(), region("mouth")) > 0.99
    assert box.refused == "query_not_answered"


def test_a_box_is_asked_in_pixels_of_the_engine(toy_analyzer: Make, crop: Make, ask: Make) -> None:
    analyzer = toy_analyzer(write_about, query_levels=("region", "box"))
    whole = (0.0, 0.0, float(SIDE), float(SIDE))
    corner = (0.0, 112.0, 56.0, float(SIDE))
    predictions = list(predict(analyzer, [(crop(0), [ask(0, "toe", id=str(box), level="box", box_xyxy=box) for box in (whole, corner)])]))
    assert [prediction.refused for prediction in predictions] == [None, None]
    assert sorted(analyzer._bundle.engines["box_encoder"].boxes) == [(0, 0, 64, 64), (0, 32, 16, 64)]  # 64 px of 224


def test_masks_of_a_box_end_at_the_box(toy_analyzer: Make, crop: Make, ask: Make, region: Make) -> None:
    analyzer = toy_analyzer(write_about, query_levels=("region", "box"))
    loc, age = predict(analyzer, [(crop(0), [ask(0, task, level="box", box_xyxy=BOX) for task in ("loc", "age")])])
    x0, y0, x1, y1 = map(int, BOX)
    asked_HW = np.zeros((SIDE, SIDE), bool)
    asked_HW[y0:y1, x0:x1] = True
    for mask in (*loc.masks, *age.masks):
        assert mask_iou(mask.rle.decode(), asked_HW & region("nose")) > 0.8  # the engine's own cut follows its grid of 7 px cells
        assert not (mask.rle.decode() & ~asked_HW).any()
    assert [mask.concept for mask in age.masks] == ["nose"]


@pytest.mark.parametrize("text", [pytest.param(None, id="of-one-mind"), pytest.param("Nothing is odd there.", id="text-contradicts")])
def test_of_an_area_localisation_and_explanation_are_those_of_serving(toy_analyzer: Make, crop: Make, ask: Make, text: str | None) -> None:
    analyzer = toy_analyzer(
        lambda face, task, area="": text if text and task == "age" else write_about(face, task, area), query_levels=("region", "box")
    )
    asked: list[dict[str, Any]] = [{"level": "region", "concept": "cheeks"}, {"level": "box", "box_xyxy": (56.0, 56.0, 112.0, 112.0)}]
    for face in (0, 1):
        samples = [ask(face, task, id=f"{task}{number}", **query) for number, query in enumerate(asked) for task in ("loc", "age")]
        answered = {prediction.id: prediction for prediction in predict(analyzer, [(crop(face), samples)])}
        for number, query in enumerate(("cheeks", (16.0, 16.0, 32.0, 32.0))):
            served = analyzer.analyze(crop(face)[None], explain=["never"], queries=[query])[0].answer
            assert bool(answered[f"loc{number}"].masks) == served.tampered == (face == 0)
            assert answered[f"age{number}"].text == served.explanation.text
            assert [mask.concept for mask in answered[f"age{number}"].masks] == [evidence.concept for evidence in served.explanation.evidence]
            for mask in answered[f"loc{number}"].masks:
                assert mask_iou(mask.rle.decode(), resized_mask(served.mask_probability_HW)) > 0.99
                assert mask.confidence == served.mask_confidence


def test_of_an_area_what_two_samples_ask_is_decoded_once(toy_analyzer: Make, crop: Make, queries: list[Sample]) -> None:
    analyzer = toy_analyzer(write_about, query_levels=("region", "box"))
    list(predict(analyzer, [(crop(0), [*queries, *(sample.model_copy(update={"id": f"again {sample.id}"}) for sample in queries)])]))
    assert analyzer._bundle.engines["decoder"].prefills == 3  # where, what, and the text about the box


# --- Pieces -----------------------------------------------------------------------------------------------------------------------------------


def test_masks_beyond_the_last_phrase_are_dropped() -> None:
    grids = np.stack([np.full((8, 8), value, np.float32) for value in (0.9, 0.1, 0.9)])
    masks = phrase_masks("The <p> nose </p> [SEG] and the <p> left iris </p> [SEG].", grids, np.array([0.5, 0.25, 1.0], np.float32))
    assert [(mask.concept, mask.confidence) for mask in masks] == [("nose", 0.5), ("left_iris", 0.25)]
    assert masks[0].rle.decode().all() and not masks[1].rle.decode().any()


def test_a_mask_is_cut_at_one_half_on_the_way_between_its_cells() -> None:
    ramp_HW = np.tile(np.array([0.0, 1.0], np.float32), (2, 1))
    mask_HW = resized_mask(ramp_HW)
    assert mask_HW.shape == (SIDE, SIDE) and not mask_HW[:, : SIDE // 2].any() and mask_HW[:, SIDE // 2 :].all()


def test_a_batch_of_no_face_is_refused(toy_analyzer: Make, items: list[AskedFace]) -> None:
    with pytest.raises(ValueError, match="batch is 0"):
        list(predict(toy_analyzer(write), items, batch=0))


def test_the_file_holds_the_predictions(toy_analyzer: Make, items: list[AskedFace], tmp_path: Path) -> None:
    predictor = partial(predict, toy_analyzer(write))
    path = tmp_path / "predictions.jsonl"
    assert predict_to_file(predictor, items, path, batch=2) == 25
    assert list(read_predictions(path)) == list(predictor(items))
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_a_predictor_that_fails_leaves_no_file_that_looks_whole(items: list[AskedFace], tmp_path: Path) -> None:
    def fails(items: Iterable[AskedFace], *, batch: int = 1) -> Iterator[Prediction]:
        yield Prediction(id="first", masks=())
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        predict_to_file(fails, items, tmp_path / "predictions.jsonl")
    assert not (tmp_path / "predictions.jsonl").exists()
