"""Predictions of a toy engine: every sample answered, every face encoded once, and the answers those of serving."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.analyzer import Analyzer, Answer
from engines.contracts import FORGERY_TYPES
from engines.prompts import LOC_ANSWER, LOC_CLEAN_ANSWER, Task
from engines.runtime import Bundle
from trainer.fifa_bench.masks import mask_iou
from trainer.fifa_bench.predict import AskedFace, Encoded, Query, phrase_masks, predict, predict_to_file, resized_mask
from trainer.samples import SIDE, Prediction, Sample, read_predictions

Make = Callable[..., Any]
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
    analyzer = toy_analyzer(lambda face, task: f"{LOC_ANSWER} [SEG]")
    (prediction,) = predict(analyzer, [(crop(0), [ask(0, "loc")])])
    assert mask_iou(prediction.masks[0].rle.decode(), region("nose") | region("mouth")) > 0.99  # the toy's first two places; corners are rounded
    assert prediction.masks[0].confidence == pytest.approx(1 / (1 + np.exp(-1.0)))  # of the surer one


# --- Queries ----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def queries(ask: Make) -> list[Sample]:
    """Of face 0: a region, the same region again, and a box."""
    box = (56.0, 56.0, 112.0, 112.0)
    return [
        ask(0, "age", id="region", level="region", concept="nose"), ask(0, "loc", id="same", level="region", concept="nose"),
        ask(0, "toe", id="box", level="box", box_xyxy=box),
    ]  # fmt: skip


class Regional(Analyzer):
    """An engine that answers about regions and not about boxes."""

    query_levels: Sequence[str] = ("region",)

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.asked: list[tuple[Task, Query]] = []

    def ask(self, encoded: Encoded, rows: Sequence[int], task: Task, queries: Sequence[Query]) -> list[Answer]:
        self.asked += [(task, query) for query in queries]
        return self.force(encoded["prefix_embeds"][list(rows)], [f"The <p> {query} </p> [SEG] is odd." for query in queries], task)


class Boxed(Regional):
    """One that answers about both."""

    query_levels = ("region", "box")


def test_an_engine_for_whole_faces_refuses_queries(toy_analyzer: Make, crop: Make, queries: list[Sample]) -> None:
    analyzer = toy_analyzer(write)
    predictions = list(predict(analyzer, [(crop(0), queries)]))
    assert [prediction.refused for prediction in predictions] == ["query_not_answered"] * 3
    assert all(not prediction.masks and prediction.text is None for prediction in predictions)
    assert analyzer._bundle.engines["decoder"].prefills == 0


def test_an_engine_that_takes_queries_is_asked(toy_bundle: Make, crop: Make, queries: list[Sample], region: Make) -> None:
    analyzer = Regional(toy_bundle(write))
    age, loc, box = predict(analyzer, [(crop(0), queries)])
    assert age.text == "The nose is odd." and [mask.concept for mask in age.masks] == ["nose"]
    assert mask_iou(loc.masks[0].rle.decode(), region("nose")) > 0.99
    assert box.refused == "query_not_answered"
    assert sorted(analyzer.asked) == [("age", "nose"), ("loc", "nose")]


def test_a_box_is_asked_in_pixels_of_the_engine(toy_bundle: Make, crop: Make, queries: list[Sample]) -> None:
    analyzer = Boxed(toy_bundle(write))
    analyzer.force = lambda prefix, markups, task: [Answer()] * len(markups)  # type: ignore[method-assign]
    *_, box = predict(analyzer, [(crop(0), queries)])
    assert box.refused is None and ("toe", (16.0, 16.0, 32.0, 32.0)) in analyzer.asked  # 64 px of 224


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
