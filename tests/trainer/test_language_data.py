"""Texts and masks of stage 2: every [SEG] finds its mask, and only answers are learned."""

from typing import Any

import numpy as np
import pytest
import torch

from engines.contracts import Mask
from engines.prompts import SEG, SEP, Task, Vocabulary
from trainer.config import tiny
from trainer.language_data import AnnotatedFace, Features, LanguageBatches, encode_views, small_mask
from trainer.model import FiFaMLLM
from trainer.tokenizer import train_tokenizer

MARKUP = "The <p> mouth </p> [SEG] is soft and the <p> left iris </p> [SEG] is flat."
CLEAN = "Nothing on this face looks manipulated."


def rle(mask_HW: np.ndarray) -> dict[str, Any]:
    encoded = Mask.encode(mask_HW)
    return {"size": list(encoded.size_hw), "counts": encoded.counts}


def annotated(*, fake: bool = True, quality: str = "good") -> AnnotatedFace:
    whole, mouth, iris = (np.zeros((224, 224), bool) for _ in range(3))
    mouth[168:196, 84:140] = True
    iris[84:98, 140:154] = True
    whole |= mouth | iris
    row = {
        "name": "toy", "is_fake": fake, "quality": quality, "mask": rle(whole), "markup": MARKUP if fake else CLEAN,
        "concepts": [{"concept": "mouth", "mask": rle(mouth)}, {"concept": "left_iris", "mask": rle(iris)}] if fake else [],
    }  # fmt: skip
    return AnnotatedFace(row, np.full((64, 64, 3), 128, np.uint8))


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(train_tokenizer([MARKUP, CLEAN] * 5, tiny().model.vocab_size))


def batches(vocabulary: Vocabulary, faces: list[AnnotatedFace], seed: int = 0) -> LanguageBatches:
    empty = torch.zeros(len(faces), 0)
    features = Features(empty, empty, empty, np.arange(len(faces)))
    return LanguageBatches(faces, features, vocabulary, batch_faces=6, mask_size=16, seed=seed)


def test_each_task_has_its_answer_and_its_masks(vocabulary: Vocabulary) -> None:
    made = batches(vocabulary, [annotated(), annotated(fake=False)])
    tasks: tuple[Task, ...] = ("age", "toe", "loc")
    assert [(made.answer(0, task)[0], len(made.answer(0, task)[1])) for task in tasks] == [
        (MARKUP, 2), ("The mouth is soft and the left iris is flat.", 0), ("The manipulated area is here. [SEG]", 1),
    ]  # fmt: skip
    assert [made.answer(1, task) for task in tasks] == [(CLEAN, []), (CLEAN, []), ("No area of this face is manipulated.", [])]


def test_every_seg_stands_where_its_mask_says(vocabulary: Vocabulary) -> None:
    made = batches(vocabulary, [annotated(), annotated(quality="poor"), annotated(fake=False)])
    batch = made.collate(np.array([1, 2, 0, 0]), ["age", "age", "loc", "age"])
    assert batch.seg_row_M.tolist() == [0, 0, 2, 3, 3]
    assert (batch.input_ids_BL[batch.seg_row_M, batch.seg_column_M] == vocabulary.ids[SEG]).all()
    expected = [made._masks[1][0], made._masks[1][1], made._whole[0], made._masks[0][0], made._masks[0][1]]
    np.testing.assert_array_equal(batch.mask_MHW.numpy(), np.stack(expected))
    assert batch.mask_weight_M.tolist() == [0, 0, 1, 1, 1]


def test_only_the_answer_is_learned_one_token_ahead(vocabulary: Vocabulary) -> None:
    batch = batches(vocabulary, [annotated(), annotated(fake=False)]).collate(np.array([0, 1]), ["age", "loc"])
    for row, markup in enumerate((MARKUP, "No area of this face is manipulated.")):
        learned = batch.target_BL[row] != -100
        assert batch.target_BL[row, learned].tolist() == vocabulary.answer_ids(markup)
        first = int(learned.nonzero()[0])
        assert batch.input_ids_BL[row, first] == vocabulary.ids[SEP]
        assert batch.input_ids_BL[row, first + 1 : first + int(learned.sum())].tolist() == vocabulary.answer_ids(markup)[:-1]


def test_masks_and_segs_that_do_not_match_are_refused_by_name(vocabulary: Vocabulary) -> None:
    face = annotated()
    face.row["concepts"].pop()
    with pytest.raises(ValueError, match=r"toy: 1 masks but 2 \[SEG\]"):
        batches(vocabulary, [face]).collate(np.array([0]), ["age"])


def test_a_batch_depends_on_seed_and_step_alone(vocabulary: Vocabulary) -> None:
    faces = [annotated(), annotated(fake=False)]
    one, other = batches(vocabulary, faces), batches(vocabulary, faces)
    steps = {step: one[step] for step in (0, 1, 2)}
    for step in (2, 0, 1):
        assert all(torch.equal(a, b) for a, b in zip(steps[step], other[step], strict=True))
    assert not torch.equal(one[0].view_B, batches(vocabulary, faces, seed=1)[0].view_B)


def test_a_batch_without_a_mask_is_a_batch(vocabulary: Vocabulary) -> None:
    batch = batches(vocabulary, [annotated(fake=False)]).collate(np.array([0]), ["age"])
    assert batch.mask_MHW.shape == (0, 16, 16) and batch.seg_row_M.numel() == 0


def test_small_masks_hold_shares() -> None:
    mask_HW = np.zeros((224, 224), bool)
    mask_HW[:14, :7] = True
    small = small_mask(mask_HW, 16)
    assert small[0, 0] == pytest.approx(0.5) and small.sum() == pytest.approx(0.5)


def test_views_know_their_face_and_the_first_is_the_face_itself() -> None:
    torch.manual_seed(0)
    model = FiFaMLLM(tiny().model)
    rng = np.random.default_rng(0)
    faces = [AnnotatedFace({}, rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(3)]
    features = encode_views(model, faces, views=2, seed=4, batch=4)
    assert features.face_N.tolist() == [0, 1, 2, 0, 1, 2]
    assert features.image_embeds_NTD.dtype == torch.float16
    again = encode_views(model, faces[:1], views=1, seed=9)
    torch.testing.assert_close(features.artifact_logits_NT[:1], again.artifact_logits_NT, atol=2e-2, rtol=2e-2)
    assert not torch.equal(features.artifact_logits_NT[0], features.artifact_logits_NT[3])
