"""One annotated face -> the samples of the eleven tasks."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from engines.prompts import SEG, parse_markup
from trainer.annotator.annotate import decode_mask
from trainer.annotator.reference_mask import frozen_mask
from trainer.faces import Face, fit
from trainer.instruct import GROUPS, Recipe, Subject, groups_of, instruct, shuffled_labels, subjects
from trainer.samples import ELEVEN_TASKS, Sample

MakeFace = Callable[..., Face]
MakeRow = Callable[..., dict[str, Any]]
MakeAnnotator = Callable[..., Any]


@pytest.fixture
def fake(make_face: MakeFace, annotation_row: MakeRow) -> Subject:
    """A curated DFDC pair."""
    face = make_face(1, dataset="dfdc", fake=True)
    return Subject(face, make_face(1, dataset="dfdc"), annotation_row(face))


@pytest.fixture
def real(make_face: MakeFace, annotation_row: MakeRow) -> Subject:
    face = make_face(2, dataset="dfdc")
    return Subject(face, None, annotation_row(face))


def kinds(samples: list[Sample]) -> Counter[tuple[str, str]]:
    return Counter((sample.task, sample.level) for sample in samples if sample.probe is None)


def test_a_fake_is_asked_the_eleven_tasks(fake: Subject, grid_annotator: MakeAnnotator) -> None:
    samples = instruct(fake, Recipe(queries=4), grid_annotator())
    assert kinds(samples) == {kind: 1 if kind[1] == "image" else 4 for kind in ELEVEN_TASKS}
    assert len({sample.id for sample in samples}) == len(samples)
    assert {"dfdc/1f.png#det-image", "dfdc/1f.png#loc-image", "dfdc/1f.png#age-region-3", "dfdc/1f.png#toe-box-0"} <= {
        sample.id for sample in samples
    }
    assert {(sample.is_fake, sample.forgery_type, sample.unit, sample.group) for sample in samples} == {(True, "swap", "1", ("dfdc", "dfdc_curated"))}
    by_task = {sample.task: sample for sample in samples if sample.level == "image"}
    assert [by_task[task].answer for task in ("det", "cls", "loc")] == [
        "fake [DET]", "identity swap or expression swap [CLS]", "The manipulated area is here. [SEG]",
    ]  # fmt: skip


def test_a_real_face_is_asked_too_and_every_answer_is_clean(real: Subject, grid_annotator: MakeAnnotator) -> None:
    samples = instruct(real, Recipe(), grid_annotator())
    assert kinds(samples) == {kind: 1 if kind[1] == "image" else 3 for kind in ELEVEN_TASKS if kind[0] != "cls"}
    assert not any(sample.tampered or sample.masks or SEG in sample.answer for sample in samples)
    assert samples[0].answer == "real [DET]"


def test_masks_stay_in_the_asked_area_and_stand_behind_their_seg(fake: Subject, grid_annotator: MakeAnnotator) -> None:
    assert fake.row is not None
    mask_HW = decode_mask(fake.row["mask"])
    samples = instruct(fake, Recipe(queries=8), grid_annotator())
    for sample in samples:
        assert sample.answer.count(SEG) == len(sample.masks)
        if sample.area is None:
            continue
        area_HW = sample.area.decode()
        assert all((mask.rle.decode() & ~area_HW).sum() == 0 for mask in sample.masks)
        if sample.task == "loc" and sample.tampered:
            np.testing.assert_array_equal(sample.masks[0].rle.decode(), mask_HW & area_HW)
        if sample.level == "box":
            assert sample.box_xyxy is not None
            x0, y0, x1, y1 = (int(edge) for edge in sample.box_xyxy)
            assert area_HW[y0:y1, x0:x1].all() and area_HW.sum() == (y1 - y0) * (x1 - x0)


def test_text_only_answers_are_the_explanation_without_markup(fake: Subject, grid_annotator: MakeAnnotator) -> None:
    by_id = {sample.id: sample for sample in instruct(fake, Recipe(), grid_annotator())}
    for name, sample in by_id.items():
        if sample.task == "age":
            assert by_id[name.replace("#age", "#toe")].answer == parse_markup(sample.answer)[0]


def test_three_of_ten_queries_on_fakes_ask_of_a_clean_area(make_face: MakeFace, annotation_row: MakeRow, grid_annotator: MakeAnnotator) -> None:
    tampered = []
    for number in range(40):
        face = make_face(number, dataset="dfdc", fake=True)
        samples = instruct(Subject(face, None, annotation_row(face)), Recipe(queries=6), grid_annotator())
        tampered += [sample.tampered for sample in samples if sample.task == "age" and sample.level != "image"]
    assert len(tampered) == 480
    assert np.mean(tampered) == pytest.approx(0.7, abs=0.07)  # three standard deviations of 480 draws


def test_a_face_synthesised_whole_has_no_clean_area(make_face: MakeFace, annotation_row: MakeRow, grid_annotator: MakeAnnotator) -> None:
    face = make_face(3, fake=True)
    samples = instruct(Subject(face, None, annotation_row(face)), Recipe(queries=6), grid_annotator())
    assert kinds(samples)["age", "region"] == kinds(samples)["age", "box"] == 6 and all(sample.tampered for sample in samples)


def test_what_the_annotator_does_not_see_is_not_asked(fake: Subject, grid_annotator: MakeAnnotator) -> None:
    samples = instruct(fake, Recipe(queries=4, clean_share=0.0), grid_annotator(believes=False))
    assert {sample.level for sample in samples} == {"image"}


def test_the_benchmark_hears_the_other_grammar_and_training_never_does(fake: Subject, grid_annotator: MakeAnnotator) -> None:
    def answers(recipe: Recipe) -> set[str]:
        return {sample.answer for sample in instruct(fake, recipe, grid_annotator()) if sample.task in ("age", "toe")}

    training, held_out = answers(Recipe(grammar="training")), answers(Recipe(grammar="held_out"))
    assert training and held_out and not training & held_out
    assert "The <p> main forehead </p> [SEG] is too smooth." in training and "Smoothness marks the <p> main forehead </p> [SEG]." in held_out


def test_regions_stand_where_they_are_used(fake: Subject, grid_annotator: MakeAnnotator) -> None:
    for grammar, levels in (("training", {"image"}), ("held_out", {"image", "region", "box"})):
        samples = instruct(fake, Recipe(grammar=grammar), grid_annotator())  # type: ignore[arg-type]
        told = [sample for sample in samples if sample.regions]
        assert {sample.level for sample in told} == levels and {sample.task for sample in told} == {"age"}
        assert all(len(sample.regions) == 112 for sample in told)


def test_a_refused_fake_is_asked_no_mask_and_no_text(fake: Subject, grid_annotator: MakeAnnotator) -> None:
    assert fake.row is not None
    refused = replace(fake, row=fake.row | {"refused": "no_mesh", "quality": "refused", "markup": "", "held_out": "", "concepts": []})
    assert kinds(instruct(refused, Recipe(), grid_annotator())) == {("det", "image"): 1, ("cls", "image"): 1}
    *_, loc = instruct(refused, Recipe(grammar="held_out"), grid_annotator())  # the frozen reference judges every curated pair
    assert (loc.task, loc.level, loc.mask_known) == ("loc", "image", False) and loc.frozen is not None
    unpaired = replace(refused, twin=None)
    assert kinds(instruct(unpaired, Recipe(grammar="held_out"), grid_annotator())) == {("det", "image"): 1, ("cls", "image"): 1}


def test_the_frozen_reference_stands_beside_our_mask(fake: Subject, grid_annotator: MakeAnnotator) -> None:
    assert fake.twin is not None
    (loc,) = (s for s in instruct(fake, Recipe(grammar="held_out"), grid_annotator()) if s.task == "loc" and s.level == "image")
    assert loc.frozen is not None and loc.mask_known
    np.testing.assert_array_equal(loc.frozen.decode(), frozen_mask(fit(fake.twin.image(), 224), fit(fake.face.image(), 224)))
    assert not any(sample.frozen for sample in instruct(fake, Recipe(), grid_annotator()))


def test_a_diffuse_mask_is_not_asked_for(fake: Subject, grid_annotator: MakeAnnotator) -> None:
    assert fake.row is not None
    samples = instruct(replace(fake, row=fake.row | {"quality": "diffuse"}), Recipe(), grid_annotator())
    assert kinds(samples) == {("det", "image"): 1, ("cls", "image"): 1, ("toe", "image"): 1, ("age", "image"): 1}
    assert [sample.mask_known for sample in samples if sample.task == "age"] == [False]


def test_a_face_without_annotation_is_asked_for_its_scores(fake: Subject, real: Subject) -> None:
    assert kinds(instruct(replace(fake, row=None), Recipe(), None)) == {("det", "image"): 1, ("cls", "image"): 1}
    assert kinds(instruct(replace(real, row=None), Recipe(), None)) == {("det", "image"): 1}


def test_samples_depend_on_recipe_and_face_alone(fake: Subject, real: Subject, grid_annotator: MakeAnnotator) -> None:
    recipe = Recipe(shuffled_queries=0.5)
    one = [instruct(fake, recipe, grid_annotator()), instruct(real, recipe, grid_annotator())]
    other = [instruct(real, recipe, grid_annotator()), instruct(fake, recipe, grid_annotator())]
    assert one == other[::-1]
    assert one[0] != instruct(fake, replace(recipe, seed=1), grid_annotator())


def test_a_probe_asks_another_question_and_keeps_the_answer(fake: Subject, grid_annotator: MakeAnnotator) -> None:
    samples = instruct(fake, Recipe(queries=8, shuffled_queries=1.0), grid_annotator())
    by_id = {sample.id: sample for sample in samples}
    probes = [sample for sample in samples if sample.probe]
    assert {(probe.task, probe.level) for probe in probes} == {(task, level) for task in ("loc", "age") for level in ("region", "box")}
    asked = {(sample.task, sample.prompt, sample.concept, sample.box_xyxy) for sample in samples if not sample.probe}
    for probe in probes:
        probed = by_id[probe.probed or ""]
        assert probe.id == f"{probed.id}~shuffled" and probed.tampered
        assert (probe.answer, probe.masks, probe.area, probe.tampered) == (probed.answer, probed.masks, probed.area, probed.tampered)
        assert (probe.concept, probe.box_xyxy) != (probed.concept, probed.box_xyxy)
        assert (probe.task, probe.prompt, probe.concept, probe.box_xyxy) in asked
        assert Sample.model_validate(probe.model_dump()) == probe
    assert not any(sample.probe for sample in instruct(fake, Recipe(queries=8), grid_annotator()))


def test_shuffled_labels_stay_in_the_family_and_leave_nobody_its_own(
    make_face: MakeFace, annotation_row: MakeRow, grid_annotator: MakeAnnotator
) -> None:
    faces = [make_face(number, dataset=dataset, fake=fake) for number in range(4) for dataset in ("dfdc", "stargan") for fake in (False, True)]
    lonely = make_face(9, dataset="sd21_faces", fake=True)
    asked = [Subject(face, None, annotation_row(face)) for face in (*faces, lonely)]
    moved = shuffled_labels(asked, 3)
    assert shuffled_labels(asked[::-1], 3) == moved != shuffled_labels(asked, 4)
    assert Counter(subject.face.name for subject in moved) == Counter(subject.seen.name for subject in moved) == Counter(face.name for face in faces)
    for subject in moved:
        assert subject.seen is not subject.face
        assert (subject.seen.dataset, subject.seen.forgery_type) == (subject.face.dataset, subject.face.forgery_type)
    samples = instruct(moved[0], Recipe(), grid_annotator())
    own = instruct(replace(moved[0], shown=None), Recipe(), grid_annotator())
    assert {sample.name for sample in samples} == {moved[0].seen.name}
    assert [(s.prompt, s.answer, s.masks) for s in samples] == [(s.prompt, s.answer, s.masks) for s in own]


def test_rows_find_their_faces_twins_and_own_images(make_face: MakeFace, annotation_row: MakeRow, tmp_path: Path) -> None:
    real, fake = make_face(1, dataset="dfdc"), make_face(1, dataset="dfdc", fake=True)
    (tmp_path / "own").mkdir()
    cv2.imwrite(str(tmp_path / "own" / "0000.jpg"), np.full((8, 8, 3), 99, np.uint8))
    own = annotation_row(fake) | {"dataset": "own", "name": "own/0000.jpg", "source": ["dfdc", real.name], "forgery_type": "identity_swap"}
    more = make_face(5, dataset="dfdc")
    found = subjects([annotation_row(fake), own, annotation_row(real)], [real, fake], tmp_path, extra=[real, more])
    assert [(s.face.name, s.twin and s.twin.name, s.row is not None) for s in found] == [
        (fake.name, real.name, True), ("own/0000.jpg", real.name, True), (real.name, None, True), (more.name, None, False),
    ]  # fmt: skip
    assert found[1].face.unit == real.unit and found[1].face.is_fake and found[1].face.image().shape == (8, 8, 3)
    with pytest.raises(ValueError, match="which the data folder does not hold"):
        subjects([annotation_row(make_face(8))], [real], tmp_path)
    with pytest.raises(ValueError, match=r"0001\.jpg is missing"):
        subjects([own | {"name": "own/0001.jpg"}], [real], tmp_path)


@pytest.mark.parametrize("made_here", [False, True], ids=["face", "own-manipulation"])
def test_a_face_that_was_annotated_for_another_part_is_refused(make_face: MakeFace, annotation_row: MakeRow, tmp_path: Path, made_here: bool) -> None:
    """It would train here and be judged there."""
    real = make_face(1, dataset="dfdc")
    row = annotation_row(real)
    if made_here:
        (tmp_path / "own.jpg").write_bytes(real.encoded)
        row |= {"dataset": "own", "name": "own.jpg", "source": ["dfdc", real.name], "forgery_type": "identity_swap"}
    assert len(subjects([row], [real], tmp_path)) == 1
    with pytest.raises(ValueError, match=rf"was annotated as {real.part} and is of calibrate now"):
        subjects([row], [replace(real, part="calibrate")], tmp_path)


def test_every_face_counts_in_a_group(make_face: MakeFace) -> None:
    assert groups_of(make_face(1, dataset="dfdc", fake=True)) == ("dfdc", "dfdc_curated")
    assert groups_of(replace(make_face(1, dataset="dfdc", fake=True), pair_quality="loose")) == ("dfdc",)
    assert groups_of(make_face(1)) == ("ffhq_stylegan2", "sd21_photographs")
    assert groups_of(make_face(1, dataset="elsewhere")) == ("elsewhere",)
    assert all(any(holds(make_face(1, dataset=name, fake=True)) for name in ("dfdc", "stargan", "ffhq_stylegan2", "sd21_faces", "survey_stylegan2"))
               for holds in GROUPS.values())  # fmt: skip


def test_faults_are_named(fake: Subject, grid_annotator: MakeAnnotator) -> None:
    with pytest.raises(ValueError, match=r"1f\.png has no forgery type"):
        instruct(replace(fake, face=replace(fake.face, forgery_type=None)), Recipe(), grid_annotator())
    assert fake.row is not None
    with pytest.raises(ValueError, match=r"1f\.png: 0 masks but 1 \[SEG\]"):
        instruct(replace(fake, row=fake.row | {"concepts": []}), Recipe(), grid_annotator())
    with pytest.raises(ValueError, match="shares lie in"):
        Recipe(clean_share=1.5)
