"""`score` over whole splits: a perfect system, a silent one, order, what is refused, and each table on cases computed by hand."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.fifa_bench import score as score_module
from trainer.fifa_bench.baselines import Constant
from trainer.fifa_bench.score import Tables, score
from trainer.fifa_bench.text import CorpusScores
from trainer.samples import ELEVEN_TASKS, SIDE, Level, PredictedMask, Prediction, Rle, Sample, TaskKind, TrueMask

PERFECT_TYPE = {"identity_swap": 1.0}


def square(x: int, y: int, side: int) -> Rle:
    mask_HW = np.zeros((SIDE, SIDE), bool)
    mask_HW[y : y + side, x : x + side] = True
    return Rle.of(mask_HW)


NOSE, CHIN, FOREHEAD = square(100, 90, 30), square(96, 160, 32), square(80, 30, 60)
REGIONS = {"nose_tip": NOSE, "chin_center": CHIN, "forehead_upper_center": FOREHEAD}
TRUTHS = (TrueMask(concept="nose_tip", rle=NOSE), TrueMask(concept="chin_center", rle=CHIN))


def sample(number: int, task: TaskKind, level: Level = "image", *, fake: bool, **changes: Any) -> Sample:
    """A fake is touched at nose and chin; a region query asks for the nose, a box for the upper half."""
    query: dict[str, Any] = {
        "image": {},
        "region": {"concept": "nose_tip", "area": NOSE},
        "box": {"box_xyxy": (0, 0, SIDE, 120)},
    }[level]
    inside = TRUTHS if level == "image" else TRUTHS[:1]
    loc = (TrueMask(concept=None, rle=NOSE),) if fake and task == "loc" else ()
    values: dict[str, Any] = {
        "id": f"{number}#{task}-{level}", "dataset": "set", "name": str(number), "unit": str(number // 2),
        "group": ("half",) if number % 4 < 2 else (),
        "task": task, "level": level, "prompt": "?", "is_fake": fake, "forgery_type": "identity_swap" if fake else None, "tampered": fake,
        "answer": "The <p> nose tip </p> [SEG] is soft. It is not natural." if fake else "Nothing is wrong here.",
        "masks": inside if fake and task == "age" else loc, "regions": REGIONS if task == "age" else {}, **query,
    }  # fmt: skip
    return Sample(**(values | changes))


def perfect(question: Sample) -> Prediction:
    """The answer that the sample itself holds."""
    return Prediction(
        id=question.id,
        fake_score=float(question.is_fake) if question.task == "det" else None,
        type_probs=PERFECT_TYPE if question.task == "cls" else None,
        text=question.answer.replace("<p> ", "").replace("</p> [SEG] ", "") if question.task in ("toe", "age") else None,
        masks=tuple(PredictedMask(concept=mask.concept, rle=mask.rle) for mask in question.masks),
    )


@pytest.fixture(scope="module")
def split() -> list[Sample]:
    """Twelve faces, half of them fake, each asked all eleven tasks."""
    return [sample(number, task, level, fake=number % 2 == 1) for number in range(12) for task, level in ELEVEN_TASKS]


class WordsInCommon:
    """Stands in for the Java metrics: the share of the reference's words that were said, as every score. The real ones are tested in test_text."""

    def __call__(self, predicted: Sequence[str], references: Sequence[Sequence[str]]) -> CorpusScores:
        pairs = [(set(said.split()), set(wanted.split())) for said, (wanted,) in zip(predicted, references, strict=True)]
        each = np.array([len(said & wanted) / len(wanted) for said, wanted in pairs])
        mean = float(each.mean())
        return CorpusScores(mean, mean, mean, mean, each, each, each)


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def start(_: object) -> Iterator[WordsInCommon]:
        yield WordsInCommon()

    monkeypatch.setattr(score_module, "text_scorer", start)


BEST: dict[tuple[str, str, str], float] = {
    ("detection", "all", "auc"): 1, ("detection", "all", "eer"): 0, ("detection", "all", "tpr_at_1pct_fpr"): 1, ("detection", "all", "brier"): 0,
    ("detection", "all", "ece"): 0, ("detection", "all", "ece_balanced"): 0,
    ("detection", "half", "auc"): 1, ("forgery type", "all", "accuracy"): 1, ("forgery type", "all", "macro_f1"): 1,
    **{("localisation", level, name): 1 for level in ("image", "region", "box")
       for name in ("miou", "miou_legacy", "ciou", "boundary_f1", "boundary_f1_strict", "balanced_accuracy")},
    **{("localisation", level, name): 0 for level in ("image", "region", "box") for name in ("missed", "false_area", "false_area_on_reals")},
    **{("localisation", level, "miou_in_area"): 1 for level in ("region", "box")},
    **{("localisation", level, "outside_area"): 0 for level in ("region", "box")},
    **{("grounding", level, name): 1 for level in ("image", "region", "box")
       for name in ("ap50", "ap50_confidence_1", "miou", "miou_legacy", "recall_50", "recall_50_same_concept", "recall_50_any_phrase")},
    **{("text-mask alignment", level, "in_region"): 1 for level in ("image", "region", "box")},
    **{("text-mask alignment", level, name): 0 for level in ("image", "region", "box")
       for name in ("hallucination", "hallucination_on_fakes", "artifact_unknown", "unlisted", "omission", "clean_mention",
                    "phrases_outside_fict", "phrases_without_a_pixel")},
    **{("concepts by depth", depth, "f1"): 1 for depth in ("5", "14", "33", "112")},
    ("text", "toe/image", "meteor"): 1, ("text", "age/box, clean", "meteor"): 1, ("text", "toe/region", "silent"): 0,
}  # fmt: skip


@pytest.mark.usefixtures("no_java")
def test_a_perfect_system_reaches_the_best_value_of_every_measure(split: list[Sample]) -> None:
    tables = score(split, map(perfect, split))
    for (table, row, measure), best in BEST.items():
        assert tables[table][row][measure] == pytest.approx(best), (table, row, measure)
    assert tables["coverage"]["age/box"] == {"samples": 12, "answered": 12, "refused": 0, "missing": 0}
    assert tables["text-mask alignment"]["image"]["in_other_phrases_region"] == 0.0


@pytest.mark.usefixtures("no_java")
def test_a_silent_system_reaches_the_worst_and_its_refusals_are_counted(split: list[Sample]) -> None:
    tables = score(split, [Prediction(id=question.id, refused="query_not_answered") for question in split])
    assert tables["coverage"]["loc/region"] == {"samples": 12, "answered": 0, "refused": 12, "missing": 0}
    assert "detection" not in tables, "no score, no ranking"
    for level in ("image", "region", "box"):
        loc, age = tables["localisation"][level], tables["grounding"][level]
        assert loc["miou"] == loc["ciou"] == loc["boundary_f1"] == loc["balanced_accuracy"] == 0 and loc["missed"] == 1
        assert "false_area" not in loc, "a refusal on a clean face is no clean answer"
        assert age["ap50"] == age["miou"] == age["recall_50"] == 0
        assert tables["text-mask alignment"][level]["omission"] == 1
        assert tables["text"][f"toe/{level}"]["meteor"] == 0 and tables["text"][f"toe/{level}"]["silent"] == 1
    assert tables["forgery type"]["all"] == {"fakes": 6, "accuracy": 0, "macro_f1": 0}


def test_a_task_for_which_nothing_was_answered_has_a_line_of_coverage_only(split: list[Sample]) -> None:
    tables = score(split, [perfect(question) for question in split if question.task == "det"], text=False)
    assert set(tables) == {"coverage", "curves", "detection"}
    assert tables["coverage"]["loc/image"] == {"samples": 12, "answered": 0, "refused": 0, "missing": 12}


@pytest.mark.usefixtures("no_java")
def test_the_order_of_the_files_is_irrelevant(split: list[Sample]) -> None:
    rng = random.Random(0)
    answers = [perfect(question) for question in split if rng.random() < 0.7]
    answers = [a.model_copy(update={"fake_score": rng.random()}) if a.fake_score is not None else a for a in answers]
    questions = rng.sample(split, len(split))
    assert score(questions, rng.sample(answers, len(answers))) == score(split, answers)


def test_the_same_id_twice_and_answers_to_nothing_are_errors(split: list[Sample]) -> None:
    answer = perfect(split[0])
    with pytest.raises(ValueError, match="two predictions have the id '0#det-image'"):
        score(split, [answer, answer])
    with pytest.raises(ValueError, match="two samples have the id"):
        score([split[0], split[0]], [])
    with pytest.raises(ValueError, match="1 predictions answer no sample, the first is 'elsewhere'"):
        score(split, [Prediction(id="elsewhere")])
    with pytest.raises(ValueError, match="no samples"):
        score([], [])


def test_masks_of_another_size_broken_masks_and_unknown_types_are_errors(split: list[Sample]) -> None:
    small = PredictedMask(rle=Rle(size=(8, 8), counts=Rle.of(np.ones((8, 8), bool)).counts))
    with pytest.raises(ValueError, match="8 x 8 px; masks live on the 224 x 224 px crop"):
        score(split, [Prediction(id=split[2].id, masks=(small,))])
    for counts in ("0", "zzzz", "oooooooooooooooooooo", NOSE.counts[:-3]):
        with pytest.raises(ValueError, match="do not fill 224 x 224 px"):
            score(split, [Prediction(id=split[2].id, masks=(PredictedMask(rle=Rle(counts=counts)),))])
    with pytest.raises(ValueError, match="'swap' is no forgery type"):
        score(split, [Prediction(id=split[1].id, type_probs={"swap": 1.0})])


@pytest.mark.parametrize("field", ["masks", "frozen", "area", "regions"])
@pytest.mark.parametrize("broken", [Rle.of(np.ones((8, 8), bool)), Rle(counts=NOSE.counts[:-3])], ids=["small", "short"])
def test_a_broken_mask_of_the_truth_is_an_error(split: list[Sample], field: str, broken: Rle) -> None:
    """pycocotools compares a mask whose run lengths end early for ever."""
    values: dict[str, Any] = {"masks": (TrueMask(concept=None, rle=broken),), "frozen": broken, "area": broken, "regions": {"glabella": broken}}
    damaged = split[2].model_copy(update={field: values[field]})
    with pytest.raises(ValueError, match="has a mask that is not of 224 x 224 px"):
        score([damaged], [], text=False)


def _scored(samples: Sequence[Sample], answer: Callable[[Sample], Prediction | None]) -> Tables:
    return score(samples, [given for question in samples if (given := answer(question)) is not None], intervals=False, text=False)


def _masked(question: Sample, *masks: PredictedMask) -> Prediction:
    return Prediction(id=question.id, masks=masks)


def test_faces_without_a_score_leave_the_ranking_and_their_share_is_shown() -> None:
    faces = [sample(number, "det", fake=number % 2 == 1) for number in range(8)]
    table = _scored(faces, lambda question: perfect(question) if int(question.name) < 6 else None)["detection"]["all"]
    assert table["faces"] == 6 and table["scored_share"] == 0.75 and table["auc"] == 1


def test_cuts_give_the_rates_of_their_labels() -> None:
    faces = [sample(number, "det", fake=number % 2 == 1) for number in range(8)]
    answers = [Prediction(id=face.id, fake_score=[0.1, 0.9, 0.5, 0.5, 0.9, 0.1, 0.1, 0.9][number]) for number, face in enumerate(faces)]
    assert score(faces, answers, cuts=(0.3, 0.7), intervals=False)["detection at the cuts"]["all"] == {
        "fake_on_reals": 0.25, "fake_on_fakes": 0.5, "inconclusive_on_reals": 0.25, "inconclusive_on_fakes": 0.25, "balanced_accuracy": 0.625,
    }  # fmt: skip


def test_a_swap_of_unnamed_method_counts_as_either_and_confusion_shows_where_fakes_go() -> None:
    kinds = ["swap", "swap", "attribute_manipulation", "attribute_manipulation"]
    fakes = [sample(number, "cls", fake=True, forgery_type=kind) for number, kind in enumerate(kinds)]
    said = [
        {"identity_swap": 0.3, "expression_swap": 0.3, "attribute_manipulation": 0.4},
        PERFECT_TYPE,
        PERFECT_TYPE,
        {"attribute_manipulation": 1.0},
    ]
    tables = score(fakes, [Prediction(id=f.id, type_probs=p) for f, p in zip(fakes, said, strict=True)])
    assert tables["forgery type"]["all"]["accuracy"] == 0.75
    (confusion,) = [table for title, table in tables.items() if "called each class" in title]
    assert confusion["attribute_manipulation"] == {"identity_swap+expression_swap": 0.5, "attribute_manipulation": 0.5, "another or none": 0.0}


def test_localisation_equals_the_hand_computed_values() -> None:
    faces = [sample(number, "loc", fake=number < 3) for number in range(5)]
    answers = {
        "0": square(100, 90, 30),
        "1": square(115, 90, 30),
        "3": square(0, 0, 112),
    }  # right, half beside it, none, a real marked, a real left out
    row = _scored(faces, lambda q: _masked(q, PredictedMask(rle=answers[q.name])) if q.name in answers else _masked(q))["localisation"]["image"]
    assert row["tampered"] == 3 and row["clean"] == 2
    assert row["miou"] == pytest.approx((1 + 1 / 3 + 0) / 3) and row["miou_legacy"] == pytest.approx((1 + 1 / 3) / 2)
    assert row["ciou"] == pytest.approx((900 + 450) / (900 + 1350 + 900))
    assert row["missed"] == pytest.approx(1 / 3) and row["mean_area"] == pytest.approx(900 / SIDE**2)
    assert row["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert row["false_area"] == row["false_area_on_reals"] == pytest.approx(0.25 / 2)
    assert 0 < row["miou_trivial"] < 0.1


def test_a_mask_that_is_not_known_scores_nothing() -> None:
    faces = [sample(number, "loc", fake=True, mask_known=number > 0) for number in range(2)]
    row = _scored(faces, lambda q: _masked(q, PredictedMask(rle=CHIN if q.name == "0" else NOSE)))["localisation"]["image"]
    assert row["mask_unknown"] == 1 and row["tampered"] == 1 and row["miou"] == 1


def test_region_queries_tell_what_leaves_the_area() -> None:
    asked = [sample(0, "loc", "region", fake=True), sample(1, "loc", "region", fake=False)]
    half_out = square(115, 90, 30)  # the left half of it lies in the asked nose
    row = _scored(asked, lambda q: _masked(q, PredictedMask(rle=half_out)))["localisation"]["region"]
    assert row["miou"] == pytest.approx(1 / 3) and row["miou_in_area"] == pytest.approx(0.5)
    assert row["outside_area"] == pytest.approx(0.5) and row["false_share_of_area"] == pytest.approx(0.5)
    assert row["miou_trivial"] == 1 and row["balanced_accuracy"] == 0.5
    box = _scored([sample(0, "loc", "box", fake=True)], lambda q: _masked(q, PredictedMask(rle=square(100, 97, 30))))["localisation"]["box"]
    assert box["outside_area"] == pytest.approx(7 / 30), "a box query without an area is drawn from its corners"


@pytest.mark.parametrize("level", ["image", "region", "box"])
def test_tampered_or_clean_is_told_at_each_level_with_both_halves(level: Level) -> None:
    """Marks every second tampered sample and one clean one of four."""
    asked = [sample(number, "loc", level, fake=number < 4) for number in range(8)]
    row = score(asked, [_masked(q, *[PredictedMask(rle=NOSE)] * (q.name in "024")) for q in asked], text=False)["localisation"][level]
    assert row["tampered_called_tampered"] == 0.5 and row["clean_called_clean"] == 0.75 and row["balanced_accuracy"] == 0.625
    assert row["balanced_accuracy_low"] < 0.625 < row["balanced_accuracy_high"]
    assert ("outside_area" in row) == (level != "image")


def test_what_leaves_the_asked_area_is_the_mean_over_samples_with_a_mask() -> None:
    asked = [sample(number, "loc", "region", fake=number < 2) for number in range(4)]
    answers = {"0": NOSE, "1": square(115, 90, 30), "2": CHIN}  # inside, half outside, wholly outside; the last marks nothing
    said = [_masked(q, *(PredictedMask(rle=answers[name]) for name in answers if name == q.name)) for q in asked]
    row = score(asked, said, text=False)["localisation"]["region"]
    assert row["masks_shown"] == 3 and row["outside_area"] == pytest.approx((0 + 0.5 + 1) / 3)
    assert row["outside_area_low"] <= row["outside_area"] <= row["outside_area_high"]


def test_the_frozen_reference_stands_beside_the_annotators_on_the_same_faces() -> None:
    faces = [sample(0, "loc", fake=True, frozen=square(115, 90, 30)), sample(1, "loc", fake=True)]
    row = _scored(faces, lambda q: _masked(q, PredictedMask(rle=NOSE)))["localisation against the frozen reference"]["image"]
    assert row["samples"] == 1 and row["miou"] == pytest.approx(1 / 3) and row["miou_annotator"] == 1


def test_families_are_told_apart() -> None:
    faces = [sample(0, "loc", fake=True), sample(1, "loc", fake=True, forgery_type="entire_synthesis")]
    table = _scored(faces, lambda q: _masked(q, PredictedMask(rle=NOSE)) if q.name == "0" else _masked(q))["localisation by family"]
    assert table["image, identity_swap"]["miou"] == 1 and table["image, entire_synthesis"]["miou"] == 0


def test_grounding_pays_for_spurious_masks_where_the_legacy_figure_does_not() -> None:
    said = [PredictedMask(concept="nose", rle=NOSE, confidence=0.9), PredictedMask(concept="right_cheek", rle=FOREHEAD, confidence=0.8)]
    row = _scored([sample(0, "age", fake=True)], lambda q: _masked(q, *said))["grounding"]["image"]
    assert row["miou"] == 0.5 and row["miou_legacy"] == 1
    assert row["recall_50"] == 0.5 and row["recall_50_same_concept"] == 0, "the parent may stand for its atom, but is not the same"
    assert row["ap50"] == pytest.approx(51 / 101)


def test_only_real_confidences_can_put_right_masks_first() -> None:
    said = [PredictedMask(concept=None, rle=FOREHEAD, confidence=0.1), PredictedMask(concept="nose_tip", rle=NOSE, confidence=0.9)]
    row = _scored([sample(0, "age", fake=True, masks=TRUTHS[:1])], lambda q: _masked(q, *said))["grounding"]["image"]
    assert row["ap50"] == pytest.approx(1) and row["ap50_confidence_1"] == pytest.approx(0.5)


def test_alignment_equals_the_hand_computed_values() -> None:
    shifted = square(117, 90, 30)  # of 30 columns 13 lie in the nose and 2 more in its dilated rim
    said = [
        PredictedMask(concept="nose_tip", rle=shifted),
        PredictedMask(concept="left_jaw", rle=square(0, 0, 0)),
        PredictedMask(phrase="aura", rle=CHIN),
    ]
    faces = [sample(0, "age", fake=True), sample(1, "age", fake=False)]
    row = _scored(faces, lambda q: _masked(q, *(said if q.is_fake else said[:1])))["text-mask alignment"]["image"]
    assert row["in_region"] == pytest.approx(15 / 30) and row["masks_in_known_regions"] == 2
    assert row["hallucination_on_fakes"] == 0.5 and row["hallucination"] == pytest.approx(2 / 3), "the jaw, and the nose of the real face"
    assert row["unlisted"] == 0.5 and row["omission"] == 0.5 and row["clean_mention"] == 1
    assert row["phrases"] == 4 and row["phrases_outside_fict"] == 0.25 and row["phrases_without_a_pixel"] == 0.25


def named(*concepts: str) -> tuple[PredictedMask, ...]:
    return tuple(PredictedMask(concept=concept, rle=NOSE) for concept in concepts)


def test_a_manipulated_place_that_the_reference_does_not_mention_is_unlisted_and_no_hallucination() -> None:
    whole_HW = NOSE.decode() | FOREHEAD.decode()
    face = [sample(0, "loc", fake=True, masks=(TrueMask(concept=None, rle=Rle.of(whole_HW)),)), sample(0, "age", fake=True, masks=TRUTHS[:1])]
    row = _scored(face, lambda q: _masked(q, *named("forehead_upper_center", "nose_tip", "chin_center")))["text-mask alignment"]["image"]
    assert row["hallucination"] == row["hallucination_on_fakes"] == pytest.approx(1 / 3), "the chin alone"
    assert row["unlisted"] == pytest.approx(2 / 3)


def test_whatever_is_named_on_a_real_face_is_hallucinated() -> None:
    faces = [sample(number, "age", fake=False, regions={}) for number in range(2)]
    row = _scored(faces, lambda q: _masked(q, *named("nose", "chin") * (q.name == "0")))["text-mask alignment"]["image"]
    assert row["hallucination"] == 1 and row["clean_mention"] == 0.5 and row["artifact_unknown"] == 0
    assert "hallucination_on_fakes" not in row and "unlisted" not in row


@pytest.mark.parametrize(
    ("known", "unknown"),
    [
        pytest.param([sample(0, "age", fake=True)], 0, id="masks of the explanation alone"),
        pytest.param([sample(0, "age", fake=True, mask_known=False)], 1, id="not known"),
        pytest.param([sample(0, "age", fake=True, mask_known=False), sample(0, "loc", fake=True)], 0, id="known by localisation"),
        pytest.param([sample(0, "age", fake=True, mask_known=False), sample(0, "loc", fake=True, mask_known=False)], 1, id="frozen reference only"),
        pytest.param([sample(0, "age", fake=True, masks=())], 1, id="a fake without a mask"),
        pytest.param([sample(0, "age", fake=True, regions={})], 1, id="FICT not known"),
    ],
)
def test_a_fake_whose_artifact_is_not_known_is_left_out_and_counted(known: list[Sample], unknown: int) -> None:
    other = [sample(2, "age", fake=True)]
    row = _scored([*known, *other], lambda q: _masked(q, *named("left_jaw" if q.name == "0" else "nose_tip")))["text-mask alignment"]["image"]
    assert row["artifact_unknown"] == unknown and row["hallucination"] == (0 if unknown else 0.5)


@pytest.mark.parametrize("level", ["region", "box"])
def test_of_an_area_names_are_judged_by_the_whole_face(level: Level) -> None:
    asked = sample(0, "age", level, fake=True, regions={})
    far = REGIONS | {"forehead_upper_center": square(0, 0, 20)}
    namesake = sample(0, "age", fake=True, id="elsewhere", dataset="other", masks=(), regions={})
    face = [sample(0, "loc", fake=True), sample(0, "age", fake=True, regions=far), namesake]
    table = _scored([asked, *face], lambda q: _masked(q, *named("chin_center", "forehead_upper_center")))["text-mask alignment"][level]
    assert table["hallucination"] == 0.5, "the chin is forged, though nobody asked about it"
    assert table["unlisted"] == 1
    alone = _scored([asked], lambda q: _masked(q, *named("chin_center")))["text-mask alignment"][level]
    assert alone["artifact_unknown"] == 1 and "hallucination" not in alone


def test_a_constant_that_names_a_forged_place_is_right_on_fakes_and_wrong_on_reals(split: list[Sample]) -> None:
    levels: tuple[Level, ...] = ("image", "region", "box")
    constant = Constant(0.5, PERFECT_TYPE, {level: "The <p> nose tip </p> [SEG] is soft." for level in levels})
    table = score(split, constant([(np.zeros((1, 1, 3), np.uint8), split)]), text=False)["text-mask alignment"]
    for level in levels:
        assert table[level]["hallucination"] == 0.5 and table[level]["hallucination_on_fakes"] == table[level]["unlisted"] == 0
        assert table[level]["hallucination_low"] <= 0.5 <= table[level]["hallucination_high"] and "unlisted_low" in table[level]


def test_the_query_probe_shows_who_does_not_read_the_question() -> None:
    asked = sample(0, "loc", "region", fake=True)
    probe = asked.model_copy(update={"id": "probe", "probe": "shuffled_query", "probed": asked.id, "concept": "chin_center"})
    by_question = {"nose_tip": NOSE, "chin_center": CHIN}
    reader = _scored([asked, probe], lambda q: _masked(q, PredictedMask(rle=by_question[q.concept or ""])))
    deaf = _scored([asked, probe], lambda q: _masked(q, PredictedMask(rle=NOSE)))
    assert reader["query shuffle"]["loc/region"] == {"pairs": 1, "miou": 1, "miou_shuffled_query": 0, "drop": 1}
    assert deaf["query shuffle"]["loc/region"]["drop"] == 0
    assert reader["localisation"]["region"]["samples"] == 1, "probes are no ordinary samples"
    assert reader["coverage"]["loc/region/shuffled_query"]["answered"] == 1
    with pytest.raises(ValueError, match="keep probes beside what they probe"):
        _scored([probe], perfect)


def test_shuffled_labels_show_what_a_system_reaches_without_looking() -> None:
    spots = [square(20 + 40 * number, 20, 30) for number in range(4)]
    faces = [sample(number, "loc", fake=True, masks=(TrueMask(concept=None, rle=spots[number]),)) for number in range(4)]
    sees = _scored(faces, perfect)["score under shuffled labels"]["loc/image, miou"]
    assert sees == {"samples": 4, "true_labels": 1, "shuffled_labels": 0, "difference": 1}
    same = [face.model_copy(update={"masks": faces[0].masks}) for face in faces]
    guesses = _scored(same, perfect)["score under shuffled labels"]["loc/image, miou"]
    assert guesses["shuffled_labels"] == 1 and guesses["difference"] == 0


def test_labels_are_shuffled_within_set_and_family_and_nobody_keeps_its_own() -> None:
    kinds = ["identity_swap"] * 3 + ["entire_synthesis"] * 2 + ["expression_swap"]
    faces = [sample(number, "loc", fake=True, forgery_type=kind) for number, kind in enumerate(kinds)]
    pairs = score_module.probes.shuffled_truths(score_module.paired(faces, map(perfect, faces)))
    assert len(pairs) == 5, "the only expression swap has nobody to change with"
    for item, other in pairs:
        assert item.sample.id != other.sample.id and item.sample.forgery_type == other.sample.forgery_type
    assert len({other.sample.id for _, other in pairs}) == 5


@pytest.mark.usefixtures("no_java")
def test_one_repeated_clean_sentence_does_not_lift_the_score_of_explanations(split: list[Sample]) -> None:
    tables = score(split, [Prediction(id=q.id, text="Nothing is wrong here.") for q in split if q.task == "toe"])
    explained, clean = tables["text"]["toe/image"], tables["text"]["toe/image, clean"]
    assert clean["meteor"] == 1 and explained["meteor"] < 0.3
    assert explained["self_bleu_4"] == pytest.approx(1, abs=1e-6) and explained["meteor_most_frequent_sentence"] > explained["meteor"]


def test_intervals_hold_their_figure_and_figures_of_the_engine_are_taken_over(split: list[Sample]) -> None:
    rng = np.random.default_rng(0)

    def sloppy(question: Sample) -> Prediction:
        x, y = rng.integers(90, 110, 2)
        answer = perfect(question)
        moved = tuple(mask.model_copy(update={"rle": square(int(x), int(y), 30)}) for mask in answer.masks)
        return answer.model_copy(update={"masks": moved, "fake_score": float(rng.random()) if question.task == "det" else None})

    tables = score(split, map(sloppy, split), text=False, engine_probes={"phrase swap": {"swapped": 0.5}})
    for table, row, name in (("detection", "all", "auc"), ("localisation", "image", "miou"), ("grounding", "image", "recall_50")):
        figures = tables[table][row]
        assert figures[f"{name}_low"] <= figures[name] <= figures[f"{name}_high"]
    assert tables["engine probes"] == {"phrase swap": {"swapped": 0.5}}


def test_a_box_is_drawn_by_pixel_centres() -> None:
    question = sample(0, "loc", "box", fake=True, box_xyxy=(0.6, 0, 2.5, 1))
    (item,) = score_module.paired([question], [])
    assert item.asked_area is not None
    area_HW: NDArray[np.bool_] = Rle(counts=item.asked_area["counts"].decode()).decode()
    assert np.argwhere(area_HW).tolist() == [[0, 1]]
