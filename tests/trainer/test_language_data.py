"""Questions of stage 2: every [SEG] finds its mask and its area, every box its token, and only answers are learned."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from engines.preprocess import to_model_input
from engines.prompts import BBOX, SEG, SEP, Vocabulary, loc_answer, question
from trainer import language_data
from trainer.config import LanguageConfig, tiny
from trainer.language_data import InstructedFace, LanguageBatches, collate, draw_questions, encode_views, instructed_faces, texts_of
from trainer.model import FiFaMLLM
from trainer.samples import SIDE, BoxXYXY, Level, Rle, Sample, TrueMask
from trainer.tokenizer import train_tokenizer

MARKUP = "The <p> mouth </p> [SEG] is soft and the <p> left iris </p> [SEG] is flat."
PLAIN = "The mouth is soft and the left iris is flat."
MASK_SIZE = 16


def rectangle(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y0:y1, x0:x1] = True
    return mask


MOUTH, IRIS = rectangle(84, 168, 140, 196), rectangle(140, 84, 154, 98)
LIP = rectangle(98, 168, 126, 196)
"""All of the mouth that this face shows."""


def sample(task: str, level: Level = "image", number: int = 0, *, tampered: bool = True, known: bool = True) -> Sample:
    phrase = "mouth" if level == "region" else None
    box: BoxXYXY | None = (84.0, 168.0, 140.0, 196.0) if level == "box" else None
    named = (TrueMask(concept="mouth", rle=Rle.of(MOUTH)), TrueMask(concept="left_iris", rle=Rle.of(IRIS)))
    answers = {"loc": loc_answer(tampered, level, phrase), "toe": PLAIN, "age": MARKUP, "det": "fake [DET]"}
    whole = (TrueMask(concept=None, rle=Rle.of(MOUTH | IRIS)),)
    return Sample(
        id=f"toy/a.jpg#{task}-{level}-{number}", dataset="toy", name="a.jpg", unit="a", task=task, level=level,  # type: ignore[arg-type]
        concept="mouth" if level == "region" else None, box_xyxy=box,
        prompt=question(task, level, phrase), answer=answers[task], is_fake=True, forgery_type="identity_swap", tampered=tampered,  # type: ignore[arg-type]
        mask_known=known, masks=named if task == "age" else whole if task == "loc" and tampered else (),
        area=None if level == "image" else Rle.of(MOUTH), regions={"upper_lip_center": Rle.of(LIP)} if task == "age" and level == "image" else {},
    )  # fmt: skip


SAMPLES = [
    sample("det"), sample("age"), sample("loc"), sample("toe"), sample("loc", "region"), sample("age", "region", 1), sample("loc", "box"),
    sample("loc", "box", 1, tampered=False),
]  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(train_tokenizer([text for s in SAMPLES for text in (s.prompt, s.answer)] * 3, tiny().model.vocab_size))


def read(vocabulary: Vocabulary, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, side: int = 56) -> list[InstructedFace]:
    image = np.full((SIDE, SIDE, 3), 128, np.uint8)
    monkeypatch.setattr(language_data, "read_shards", lambda folder: iter([(image, samples), (image, samples[:1])]))
    return instructed_faces(Path("any"), vocabulary, image_size=side, mask_size=MASK_SIZE)


def batches(vocabulary: Vocabulary, faces: list[InstructedFace], seed: int = 0) -> LanguageBatches:
    return LanguageBatches(faces, np.arange(len(faces)), vocabulary, LanguageConfig(batch_faces=3, seed=seed))


def test_faces_without_a_question_of_stage_2_are_left_out(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    (face,) = read(vocabulary, SAMPLES, monkeypatch)
    assert [(q.task, q.level) for q in face.questions] == [(s.task, s.level) for s in SAMPLES[1:]]
    assert face.image_HWC.shape == (56, 56, 3)


def test_a_phrase_shows_its_mask_within_its_region_and_localisation_within_what_was_asked(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    age, loc, toe, region, _, box, clean = read(vocabulary, SAMPLES, monkeypatch)[0].questions
    assert age.mask_MHW.shape == (2, MASK_SIZE, MASK_SIZE) and toe.mask_MHW.shape[0] == clean.mask_MHW.shape[0] == 0
    small = [cv2.resize(part.astype(np.uint8) * 255, (MASK_SIZE, MASK_SIZE), interpolation=cv2.INTER_AREA) for part in (MOUTH, IRIS)]
    np.testing.assert_array_equal(age.mask_MHW, np.stack(small))
    assert age.area_known_M.tolist() == [True, False], "this face shows no left iris"
    rows, columns = np.nonzero(age.area_MHW[0])
    grown = (columns.min() * 14 <= 98 - 2, (columns.max() + 1) * 14 >= 126 + 2, rows.min() * 14 <= 168 - 2, rows.max() * 14 >= 182)
    assert all(grown), "the region is grown as the annotator grows it"
    assert (loc.area_MHW == 255).all(), "of the whole face everything is spoken of"
    np.testing.assert_array_equal(region.area_MHW[0], small[0])
    assert box.box_xyxy == (21.0, 42.0, 35.0, 49.0), "boxes are taken to the model's crop"


def test_every_seg_and_every_box_stands_where_the_batch_says(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = read(vocabulary, SAMPLES, monkeypatch)
    age, loc, toe, region, _, box, clean = faces[0].questions
    batch = collate(vocabulary, np.array([0, 0]), [[age, clean, box], [toe, region, loc]])
    ids = batch.input_ids_BL
    assert all(ids[row, column] == vocabulary.ids[SEG] for row, column in batch.seg_at_M2.tolist())
    assert all(ids[row, column] == vocabulary.ids[BBOX] for row, column in batch.box_at_K2.tolist())
    assert batch.seg_at_M2[:, 0].tolist() == [0, 0, 0, 1, 1] and batch.box_at_K2[:, 0].tolist() == [0, 0]
    wanted = np.concatenate([q.mask_MHW for q in (age, box, region, loc)]) / 255
    np.testing.assert_allclose(batch.mask_MHW.numpy(), wanted, atol=1e-6)
    assert batch.area_weight_M.tolist() == [1, 0, 1, 1, 1] and batch.mask_weight_M.tolist() == [1] * 5
    assert batch.box_K4.tolist() == [[21, 42, 35, 49]] * 2


def test_only_answers_are_learned_and_each_question_counts_for_itself(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = read(vocabulary, SAMPLES, monkeypatch)
    age, loc, *_ = faces[0].questions
    batch = collate(vocabulary, np.array([0, 0]), [[loc, age], [loc]])
    for number, q in enumerate((loc, age)):
        own = batch.question_BL[0] == number
        ids, target = batch.input_ids_BL[0][own], batch.target_BL[0][own]
        assert ids.tolist() == [*q.prompt_ids, *q.answer_ids][:-1]
        assert batch.position_BL[0][own].tolist() == list(range(len(ids)))
        assert target[target != -100].tolist() == list(q.answer_ids)
        assert ids[int((target != -100).nonzero()[0])] == vocabulary.ids[SEP], "the first answer token is told at <sep>"
    assert (batch.question_BL[1] == -1).sum() == (batch.target_BL[1] == -100).sum() - len(loc.prompt_ids) + 1


def test_doubtful_masks_do_not_count(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = read(vocabulary, [sample("age", known=False)], monkeypatch)
    assert collate(vocabulary, np.array([0]), [faces[0].questions]).mask_weight_M.tolist() == [0, 0]


def test_a_batch_depends_on_seed_and_step_alone(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    faces = read(vocabulary, SAMPLES, monkeypatch)
    one, same, other = batches(vocabulary, faces)[3], batches(vocabulary, faces)[3], batches(vocabulary, faces, seed=1)[3]
    assert torch.equal(one.input_ids_BL, same.input_ids_BL) and torch.equal(one.mask_MHW, same.mask_MHW)
    assert one.input_ids_BL.shape != other.input_ids_BL.shape or not torch.equal(one.input_ids_BL, other.input_ids_BL)


def test_no_question_is_asked_twice_and_every_level_comes_up(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = read(vocabulary, SAMPLES, monkeypatch)[0].questions
    for seed in range(20):
        drawn = draw_questions(np.random.default_rng(seed), questions, LanguageConfig())
        assert len({id(q) for q in drawn}) == len(drawn) == 6
        assert {q.level for q in drawn} == {"image", "region", "box"}


def test_a_task_without_a_share_is_never_asked(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = read(vocabulary, SAMPLES, monkeypatch)[0].questions
    located = LanguageConfig(questions={"image": 2, "box": 1}, task_shares={"age": 0.0, "loc": 1.0})
    for seed in range(20):
        drawn = draw_questions(np.random.default_rng(seed), questions, located)
        assert [(q.task, q.level) for q in drawn] == [("loc", "image"), ("loc", "box")]


@pytest.mark.parametrize(
    "wrong",
    [
        {"task_shares": {"age": 1.0, "locate": 1.0}},
        {"task_shares": {"age": 0.0}},
        {"task_shares": {"age": 1.0, "loc": -0.5}},
        {"questions": {}},
        {"questions": {"face": 2}},
    ],
)
def test_questions_that_nobody_can_ask_are_refused_before_training(wrong: dict[str, dict[str, float]]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"^{name} is .*; give numbers from 0 on, one of them above 0, for "):
        replace(LanguageConfig(), **wrong)  # type: ignore[arg-type]


def test_an_answer_whose_masks_do_not_match_is_refused(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = sample("age").model_copy(update={"masks": ()})
    with pytest.raises(ValueError, match=r"0 masks but 2 \[SEG\]"):
        read(vocabulary, [broken], monkeypatch)


def test_the_tokenizer_learns_prompts_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_data, "read_shards", lambda folder: iter([(np.zeros(0), SAMPLES[:2])]))
    assert list(texts_of(Path("any"))) == [SAMPLES[0].prompt, SAMPLES[0].answer, SAMPLES[1].prompt, SAMPLES[1].answer]


def test_views_are_the_face_as_it_is_and_then_drawn(vocabulary: Vocabulary) -> None:
    model = FiFaMLLM(tiny().model).eval()
    rng = np.random.default_rng(0)
    faces = [InstructedFace(str(number), rng.integers(0, 256, (56, 56, 3), np.uint8), ()) for number in range(3)]
    features = encode_views(model, faces, views=2, seed=4, batch=4)
    assert features.face_N.tolist() == [0, 1, 2, 0, 1, 2] and len(features.statistics_NTS) == 6
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        plain = model.encoder(torch.from_numpy(to_model_input(np.stack([face.image_HWC for face in faces]))))
    torch.testing.assert_close(features.image_embeds_NTD[:3].float(), plain.image_embeds_BTD.float(), atol=0.05, rtol=0.05)
    assert not torch.equal(features.image_embeds_NTD[:3], features.image_embeds_NTD[3:])
    again = encode_views(model, faces[:1], views=1, seed=9)
    torch.testing.assert_close(again.image_embeds_NTD[0], features.image_embeds_NTD[0], atol=0.05, rtol=0.05)
