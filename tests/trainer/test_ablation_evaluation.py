"""Answers at a depth of FICT: phrases, masks and questions stay together, and masks are joined against all artifact of an ancestor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import fict
from engines.prompts import SEG, Vocabulary, parse_markup
from trainer import ablation_evaluation
from trainer.ablation_evaluation import Joined, ancestor, at_depth, evaluated_faces
from trainer.config import tiny
from trainer.samples import Rle, Sample, TrueMask
from trainer.tokenizer import train_tokenizer


def side_of(concept: str) -> set[str]:
    return {"left", "right"} & set(fict.concepts()[concept].phrase.split())


@pytest.mark.parametrize("depth", [5, 14, 33, 112])
def test_an_ancestor_holds_its_concept_and_never_changes_sides(depth: fict.Depth) -> None:
    for concept, node in fict.concepts().items():
        above = ancestor(concept, depth)
        assert set(node.atoms) <= set(fict.concepts()[above].atoms)
        assert side_of(above) <= side_of(concept), "a coarser place may lose its side, it never takes another"
        assert above in (*fict.cells(depth), *fict.BOUNDARY_ARCS, fict.BOUNDARY, *node.path[:-1], concept)
        assert depth != 112 or above == concept


def area(rows: slice, columns: slice) -> np.ndarray:
    mask_HW = np.zeros((224, 224), bool)
    mask_HW[rows, columns] = True
    return mask_HW


UPPER, LOWER, INNER, OUTER = slice(80, 90), slice(90, 100), slice(140, 150), slice(150, 160)
REGIONS = {
    "left_iris": Rle.of(area(UPPER, INNER)), "left_pupil": Rle.of(area(UPPER, OUTER)), "left_upper_eyelid": Rle.of(area(LOWER, INNER)),
    "right_iris": Rle.of(area(UPPER, slice(70, 80))), "chin_tip": Rle.of(area(slice(200, 210), INNER)),
}  # fmt: skip
MARKUP = "The <p> left iris </p> [SEG] is flat, the <p> right iris </p> [SEG] is not; the <p> chin </p> [SEG] is soft."
ARTIFACT = np.any([rle.decode() for rle in REGIONS.values()], 0)


def sample(task: str, answer: str, masks: Sequence[TrueMask] = (), **changed: Any) -> Sample:
    facts = {"dataset": "toy", "name": "a.png", "unit": "0", "is_fake": True, "forgery_type": "swap", "tampered": True}
    return Sample(id=f"toy/a.png#{task}-image", task=task, prompt="What?", answer=answer, masks=tuple(masks), **facts | changed)


def explained_face() -> list[Sample]:
    """An explanation of both irises and the chin, whose artifact also covers the left pupil and eyelid, which nothing names."""
    named = [TrueMask(concept=concept, rle=REGIONS[atom]) for concept, atom in (("left_iris",) * 2, ("right_iris",) * 2, ("chin", "chin_tip"))]
    return [
        sample("loc", "The manipulated area is here. [SEG]", [TrueMask(concept=None, rle=Rle.of(ARTIFACT))]),
        sample("toe", parse_markup(MARKUP)[0]),
        sample("age", MARKUP, named, regions=REGIONS),
    ]


def test_phrases_and_masks_move_up_together() -> None:
    loc, toe, age = at_depth(explained_face(), 33)
    assert loc == explained_face()[0]
    assert age.answer == "The <p> left eyeball </p> [SEG] is flat, the <p> right eyeball </p> [SEG] is not; the <p> chin </p> [SEG] is soft."
    assert toe.answer == parse_markup(age.answer)[0]
    assert [mask.concept for mask in age.masks] == ["left_eyeball", "right_eyeball", "chin"]
    left, right, chin = (mask.rle.decode() for mask in age.masks)
    assert (left & area(UPPER, slice(140, 160))).sum() == 200, "the pupil lies in the eyeball, named or not"
    assert not (left & right).any() and (chin == REGIONS["chin_tip"].decode()).all()
    assert not (left | right | chin)[~ARTIFACT].any()


def test_phrases_that_meet_in_one_ancestor_show_the_same_mask() -> None:
    age = at_depth(explained_face(), 14)[2]
    assert [mask.concept for mask in age.masks] == ["eyes", "eyes", "chin_jaw"] and age.answer.count(SEG) == 3
    assert [span.phrase for span in parse_markup(age.answer)[1]] == ["eyes", "eyes", "chin jaw"]
    eyes = age.masks[0].rle.decode()
    assert age.masks[0] == age.masks[1] and (eyes == ARTIFACT & ~REGIONS["chin_tip"].decode()).all()


def test_as_annotated_nothing_moves_and_without_a_located_artifact_only_what_was_shown_does() -> None:
    assert at_depth(explained_face(), 112) == explained_face()
    _, toe, age = explained_face()
    left = at_depth([toe, age], 33)[1].masks[0].rle.decode()
    assert (left == REGIONS["left_iris"].decode()).all()


def test_samples_that_do_not_belong_together_are_refused_by_name() -> None:
    loc, toe, age = explained_face()
    with pytest.raises(ValueError, match=r"#toe-image: its text is not that"):
        at_depth([loc, toe.model_copy(update={"answer": "Another text."}), age], 33)
    with pytest.raises(ValueError, match=r"#age-image: 2 masks, but other phrases"):
        at_depth([loc, toe, age.model_copy(update={"masks": age.masks[:2]})], 33)


def test_masks_are_joined_by_ancestor_against_all_artifact_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = Vocabulary(train_tokenizer([MARKUP], tiny().model.vocab_size))
    monkeypatch.setattr(ablation_evaluation, "read_shards", lambda _folder: iter([(np.zeros((224, 224, 3), np.uint8), explained_face())]))

    def joined(depth: fict.Depth) -> dict[fict.Depth, Joined]:
        (item,) = evaluated_faces(Path(), vocabulary, tiny().model, depth=depth, limit=9)
        (found,) = (dict(found) for question, found in zip(item.face.questions, item.joined, strict=True) if question.task == "age")
        return found

    annotated, coarse = joined(112), joined(14)
    assert {depth: found.group_M for depth, found in annotated.items()} == {33: (0, 1, 2), 14: (0, 0, 1)}
    assert set(coarse) == {14}
    np.testing.assert_array_equal(coarse[14].mask_GHW, annotated[14].mask_GHW)
    eyes, chin = annotated[14].mask_GHW.astype(float)
    assert eyes.sum() == pytest.approx(4 * chin.sum(), rel=0.02), "four places of one size, and a fifth"
