"""Answers without an engine: the constant one, the perfect one, and one that only measures softness."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.contracts import FORGERY_TYPES
from engines.prompts import parse_markup
from trainer.fifa_bench.baselines import CANDIDATES, CUTS, Constant, best_cut, medoid, oracle, residual_heuristic, softness, unigram_f1
from trainer.fifa_bench.detection import auc
from trainer.fifa_bench.masks import encoded, honest_miou, hungarian_miou, mask_iou, oval_mask
from trainer.fifa_bench.predict import AskedFace, Predictor
from trainer.fifa_bench.score import score
from trainer.fifa_bench.text import words
from trainer.samples import SIDE, Prediction, Rle, Sample, TrueMask

Make = Callable[..., Any]
BOX = (20.0, 30.0, 80.0, 120.0)


@pytest.fixture
def items(crop: Make, ask: Make, region: Make) -> list[AskedFace]:
    """Six faces, fakes with a soft nose, the first with a flat mouth too."""

    def masks(*concepts: str) -> tuple[TrueMask, ...]:
        return tuple(TrueMask(concept=concept, rle=Rle.of(region(concept))) for concept in concepts)

    faces = []
    for number in range(6):
        fake = number % 2 == 0
        text = "The <p> mouth </p> [SEG] is flat. " * (number == 0) + "The <p> nose </p> [SEG] is soft."
        told = {"answer": text, "masks": masks(*["mouth"] * (number == 0), "nose")} if fake else {"answer": "Nothing is odd."}
        whole = TrueMask(concept=None, rle=Rle.of(region("nose") | (region("mouth") & (number == 0))))
        area = Rle.of(region("nose"))
        samples = [
            ask(number, "det"), ask(number, "cls"), ask(number, "loc", masks=(whole,) if fake else ()),
            ask(number, "toe", answer=parse_markup(told["answer"])[0]), ask(number, "age", **told),
            ask(number, "age", id=f"{number}#region", level="region", concept="nose", area=area, **told),
            ask(number, "loc", id=f"{number}#box", level="box", box_xyxy=BOX),
        ]  # fmt: skip
        faces.append((crop(number), samples))
    return faces


def answers(predictor: Predictor, items: list[AskedFace]) -> dict[str, tuple[Sample, Prediction]]:
    predictions = list(predictor(items))
    samples = [sample for _, own in items for sample in own]
    assert [prediction.id for prediction in predictions] == [sample.id for sample in samples]
    return {sample.id: (sample, prediction) for sample, prediction in zip(samples, predictions, strict=True)}


# --- Constant ---------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def constant(items: list[AskedFace]) -> dict[str, tuple[Sample, Prediction]]:
    """Its answers to the faces it has counted."""
    return answers(Constant.of(sample for _, own in items for sample in own), items)


def test_the_constant_says_the_same_of_every_face(constant: dict[str, tuple[Sample, Prediction]]) -> None:
    for key in ("det", "cls", "loc", "toe", "age", "box"):
        said = {prediction.model_dump_json(exclude={"id"}) for name, (_, prediction) in constant.items() if name.endswith(f"#{key}")}
        assert len(said) == 1


def test_the_constant_never_looks(items: list[AskedFace], crop: Make) -> None:
    fitted = Constant.of(sample for _, own in items for sample in own)
    assert list(fitted(items)) == list(fitted([(crop(99, bright=["nose", "eyes"]), own) for _, own in items]))


def test_the_constant_gives_priors_and_the_answer_most_like_all(constant: dict[str, tuple[Sample, Prediction]]) -> None:
    assert constant["0#det"][1].fake_score == 0.5
    assert constant["0#cls"][1].type_probs == dict(zip(FORGERY_TYPES, (1, 0, 0, 0), strict=True))
    assert constant["0#toe"][1].text == constant["1#age"][1].text == "The nose is soft."
    assert [(mask.concept, mask.phrase) for mask in constant["1#age"][1].masks] == [("nose", "nose")]


def test_the_constant_marks_what_most_masks_hold_or_the_whole_asked_area(constant: dict[str, tuple[Sample, Prediction]], region: Make) -> None:
    for key in ("1#loc", "1#age", "0#region"):
        np.testing.assert_array_equal(constant[key][1].masks[0].rle.decode(), region("nose"), err_msg=key)
    box_HW = constant["0#box"][1].masks[0].rle.decode()
    assert box_HW[30:120, 20:80].all() and box_HW.sum() == 90 * 60


def test_a_named_place_has_the_mask_of_its_concept(ask: Make, region: Make) -> None:
    told = "The <p> mouth </p> [SEG] and the <p> nose </p> [SEG] are odd, and so are the <p> eyes </p> [SEG]."
    nowhere = TrueMask(concept="eyes", rle=Rle.of(np.zeros((SIDE, SIDE), bool)))  # a place without a pixel teaches nothing
    masks = (*(TrueMask(concept=name, rle=Rle.of(region(name))) for name in ("mouth", "nose")), nowhere)
    whole = (TrueMask(concept=None, rle=Rle.of(region("cheeks"))),)
    unknown = ask(2, "age", answer=told, masks=(TrueMask(concept="mouth", rle=Rle.of(region("forehead"))),) * 3, mask_known=False)
    fitted = Constant.of([ask(0, "age", answer=told, masks=masks), ask(0, "loc", masks=whole), unknown])
    (answer,) = fitted([(np.zeros((1, 1, 3), np.uint8), [ask(1, "age")])])
    shown = {mask.concept: mask.rle for mask in answer.masks}
    assert shown == {"mouth": masks[0].rle, "nose": masks[1].rle, "eyes": whole[0].rle}


def test_where_no_mask_is_known_the_constant_marks_a_face_oval(ask: Make) -> None:
    fitted = Constant.of([ask(0, "loc"), ask(0, "age", answer="The <p> nose </p> [SEG] is soft.")])
    np.testing.assert_array_equal(fitted.located.decode(), oval_mask(SIDE))
    assert fitted.shown == {}


def test_without_grounded_answers_the_constant_tells_those_in_words(ask: Make) -> None:
    assert Constant.of([ask(0, "toe", answer="The nose is soft.")]).told == {"image": "The nose is soft."}


def test_the_order_of_samples_is_irrelevant_and_probes_teach_nothing(items: list[AskedFace], region: Make) -> None:
    samples = [sample for _, own in items for sample in own]
    asked = next(sample for sample in samples if sample.id == "0#region")
    elsewhere = (TrueMask(concept="nose", rle=Rle.of(region("eyes"))),)
    probe = asked.model_copy(update={"id": "probe", "probe": "shuffled_query", "probed": asked.id, "masks": elsewhere, "answer": "?"})
    assert Constant.of(reversed(samples)) == Constant.of(samples) == Constant.of([*samples, *[probe] * 9])


@st.composite
def rectangles(draw: st.DrawFn) -> np.ndarray:
    (x0, x1), (y0, y1) = (sorted(draw(st.lists(st.integers(0, SIDE), min_size=2, max_size=2, unique=True))) for _ in range(2))
    mask_HW = np.zeros((SIDE, SIDE), bool)
    mask_HW[y0:y1, x0:x1] = True
    return mask_HW


@settings(max_examples=25)
@given(st.lists(rectangles(), min_size=1, max_size=6))
def test_no_other_cut_of_the_grid_fits_the_masks_better(masks: list[np.ndarray]) -> None:
    chosen_HW = best_cut([encoded(mask_HW) for mask_HW in masks]).decode()
    grid = [np.sum(masks, 0) >= cut / 100 * len(masks) for cut in CUTS]
    scores = [honest_miou([cut_HW] * len(masks), masks) for cut_HW in grid]
    assert any(np.array_equal(chosen_HW, cut_HW) for cut_HW in grid)
    assert honest_miou([chosen_HW] * len(masks), masks) == pytest.approx(max(scores))


ANSWERS = st.lists(
    st.lists(st.sampled_from(["the", "<p> nose </p> [SEG]", "is", "soft", "flat", "odd."]), min_size=1, max_size=6).map(" ".join), min_size=1
)


@given(ANSWERS, st.randoms())
def test_everybodys_answer_is_the_marked_one_most_like_all(answers: list[str], rng: Any) -> None:
    chosen = medoid(answers)
    marked = [answer for answer in answers if "[SEG]" in answer] or answers
    bags = [Counter(words(parse_markup(answer)[0])) for answer in answers]

    def likeness(answer: str) -> float:
        return sum(unigram_f1(Counter(words(parse_markup(answer)[0])), bag) for bag in bags)

    assert chosen in marked and likeness(chosen) == pytest.approx(max(map(likeness, marked)))
    assert medoid(rng.sample(answers, len(answers))) == chosen


def test_the_most_frequent_sentence_is_nobodys_answer_where_it_names_no_place() -> None:
    assert medoid(["Manipulated."] * 5 + ["Manipulated. The <p> nose </p> [SEG] is soft."]) == "Manipulated. The <p> nose </p> [SEG] is soft."


def test_of_many_answers_the_repeated_ones_are_tried_and_a_draw_of_the_others() -> None:
    others = [f"word{number} alone" for number in range(3 * CANDIDATES)]
    assert medoid([*others, "zeal alone", "zeal alone"]) == "zeal alone"


@pytest.mark.parametrize(("said", "wanted", "f1"), [("a a b", "a b b", 2 / 3), ("a", "b", 0), ("", "", 0), ("a b", "a b", 1)])
def test_likeness_counts_each_occurrence_of_a_word(said: str, wanted: str, f1: float) -> None:
    assert unigram_f1(Counter(said.split()), Counter(wanted.split())) == pytest.approx(f1)


def test_a_swap_of_unnamed_method_counts_half_for_each_swap(ask: Make) -> None:
    fitted = Constant.of([ask(0, "cls", forgery_type="swap"), ask(2, "cls", forgery_type="entire_synthesis"), ask(1, "det")])
    assert fitted.type_probs == dict(zip(FORGERY_TYPES, (0.25, 0.25, 0.0, 0.5), strict=True))
    assert fitted.fake_score == pytest.approx(2 / 3)


def test_without_a_fake_there_is_nothing_to_count(ask: Make) -> None:
    with pytest.raises(ValueError, match="there are none"):
        Constant.of([ask(1, "det"), ask(3, "toe")])


# --- Oracle -----------------------------------------------------------------------------------------------------------------------------------


def test_the_oracle_is_perfect(items: list[AskedFace]) -> None:
    found = answers(oracle, items)
    fake_N = np.array([sample.is_fake for name, (sample, _) in found.items() if name.endswith("#det")])
    score_N = np.array([prediction.fake_score for name, (_, prediction) in found.items() if name.endswith("#det")], float)
    assert auc(fake_N, score_N) == 1
    for sample, prediction in found.values():
        wanted = [mask.rle.decode() for mask in sample.masks]
        if sample.task == "loc" and wanted:
            assert mask_iou(prediction.masks[0].rle.decode(), wanted[0]) == 1
        if sample.task == "age" and wanted:
            assert hungarian_miou([[mask.rle.decode() for mask in prediction.masks]], [wanted]) == 1
            assert [mask.concept for mask in prediction.masks] == [mask.concept for mask in sample.masks]
        if sample.task in ("toe", "age"):
            assert prediction.text == parse_markup(sample.answer)[0]
        if not sample.is_fake and sample.task in ("loc", "age"):
            assert prediction.masks == ()
        if sample.task == "cls" and sample.is_fake:
            assert prediction.type_probs == dict(zip(FORGERY_TYPES, (1, 0, 0, 0), strict=True))


def test_no_figure_of_the_bench_is_better_than_the_oracles(items: list[AskedFace]) -> None:
    samples = [sample for _, own in items for sample in own]
    best, other = (score(samples, list(predictor(items)), intervals=False, text=False) for predictor in (oracle, Constant.of(samples)))
    assert best["detection"]["all"]["auc"] == 1 and best["forgery type"]["all"]["macro_f1"] == 1
    for table, level in (("localisation", "image"), ("grounding", "image"), ("grounding", "region")):
        assert best[table][level]["miou"] == pytest.approx(1) and other[table][level]["miou"] < 0.99
    assert best["localisation"]["image"]["false_area_on_reals"] == 0 < other["localisation"]["image"]["false_area_on_reals"]


def test_the_oracle_shows_no_mask_where_none_is_known(ask: Make, crop: Make) -> None:
    sample = ask(0, "age", answer="The <p> nose </p> [SEG] is soft.", mask_known=False)
    (prediction,) = oracle([(crop(0), [sample])])
    assert prediction.text == "The nose is soft." and prediction.masks == ()


# --- Residual heuristic -----------------------------------------------------------------------------------------------------------------------


def grain(seed: int, side: int = 96) -> np.ndarray:
    """Shading under fine noise."""
    rng = np.random.default_rng(seed)
    ramp_HW1 = np.linspace(60, 180, side)[None, :, None] * np.ones((side, 1, 1))
    return np.clip(ramp_HW1 + rng.normal(0, 12, (side, side, 3)), 0, 255).astype(np.uint8)


@given(st.integers(0, 50), st.floats(0.6, 4.0))
def test_blur_raises_the_softness(seed: int, sigma: float) -> None:
    sharp_HWC = grain(seed, SIDE)
    soft, sharp = softness(np.asarray(cv2.GaussianBlur(sharp_HWC, (0, 0), sigma), np.uint8)), softness(sharp_HWC)
    assert 0 <= sharp < soft <= 1


def test_an_even_image_is_neither_soft_nor_sharp() -> None:
    assert softness(np.full((SIDE, SIDE, 3), 90, np.uint8)) == 0.5


def test_the_heuristic_scores_every_face_and_offers_nothing_else(items: list[AskedFace]) -> None:
    predictions = list(residual_heuristic(items))
    assert [prediction.id for prediction in predictions] == [f"{number}#det" for number in range(6)]
    assert [prediction.fake_score for prediction in predictions] == [softness(crop_HWC) for crop_HWC, _ in items]
    tables = score([sample for _, own in items for sample in own], predictions, intervals=False, text=False)
    assert tables["coverage"]["age/image"]["missing"] == 6 and set(tables["detection"]) == {"all"}
