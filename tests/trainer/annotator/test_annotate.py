"""FiFa-Annotator: from a fake to what is said of it, as a whole and in an asked area; JSON lines that resume."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from engines import fict, findings
from engines.prompts import parse_markup
from trainer.annotator import annotate, manipulate, mesh, regions
from trainer.annotator.artifact import SIZE
from trainer.faces import Face

pytest.importorskip("ai_edge_litert", reason="the annotator needs the annotate extra (ai-edge-litert)")

ImageHWC = NDArray[np.uint8]


def _jpeg(image_HWC: ImageHWC, quality: int) -> bytes:
    return cv2.imencode(".jpg", np.ascontiguousarray(image_HWC[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _decoded(encoded: bytes) -> ImageHWC:
    return np.ascontiguousarray(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])


@pytest.fixture(scope="module")
def real_HWC() -> ImageHWC:
    """NASA's astronaut portrait in scikit-image (public domain), cut to the face, 224 px, once through JPEG."""
    data = pytest.importorskip("skimage.data")
    cut = cv2.resize(np.ascontiguousarray(data.astronaut()[50:210, 145:305]), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return _decoded(_jpeg(cut, 92))


@pytest.fixture(scope="module")
def annotator() -> annotate.Annotator:
    return annotate.process_annotator()


@pytest.fixture(scope="module")
def found(real_HWC: ImageHWC) -> regions.Regions:
    return regions.regions(mesh.FaceMesh()(real_HWC), real_HWC, SIZE)


def _edited(real_HWC: ImageHWC, region_HW: NDArray[np.bool_]) -> tuple[ImageHWC, NDArray[np.float32]]:
    """Blur and redden a region: a manipulation whose place and kind are known."""
    alpha = cv2.GaussianBlur(region_HW.astype(np.float32), (0, 0), 1.5)
    source = cv2.GaussianBlur(real_HWC, (0, 0), 4.0).astype(np.float32) + np.array([26.0, 0.0, 0.0])
    blended = source * alpha[..., None] + real_HWC * (1 - alpha[..., None])
    return np.clip(blended, 0, 255).astype(np.uint8), alpha


def test_identical_images_are_refused_as_empty(annotator: annotate.Annotator, real_HWC: ImageHWC) -> None:
    annotation = annotator.pair(real_HWC, real_HWC, forgery_type="swap")
    assert (annotation.quality, annotation.refused, annotation.markup) == ("refused", "empty_mask", "")


@pytest.mark.parametrize("side", ["right", "left"])
def test_an_edit_of_one_side_is_named_on_that_side(annotator: annotate.Annotator, real_HWC: ImageHWC, found: regions.Regions, side: str) -> None:
    fake, _ = _edited(real_HWC, found.mask(f"{side}_cheek"))
    annotation = annotator.pair(real_HWC, fake, forgery_type="attribute_manipulation")
    assert annotation.concepts[0].concept.startswith(side)
    other = "left" if side == "right" else "right"
    assert other not in annotation.text.split()


def test_the_kind_said_is_the_one_measured(annotator: annotate.Annotator, real_HWC: ImageHWC, found: regions.Regions) -> None:
    fake, alpha = _edited(real_HWC, found.mask("left_cheek"))
    annotation = annotator.exact(real_HWC, fake, alpha, forgery_type="attribute_manipulation")
    assert annotation.concepts[0].kind in ("softer", "redder", "smoother")
    assert annotation.concepts[0].strength > findings.BELIEVED
    assert annotation.facts["area"] == pytest.approx(float((alpha > manipulate.ALPHA_CUT).mean()), abs=1e-3)


def test_concept_masks_lie_within_the_artifact_and_their_dilated_region(
    annotator: annotate.Annotator, real_HWC: ImageHWC, found: regions.Regions
) -> None:
    made = manipulate.self_blend(np.random.default_rng(4), real_HWC)
    annotation = annotator.pair(real_HWC, made.image_HWC, forgery_type="identity_swap")
    assert 1 <= len(annotation.concepts) <= annotate.MAX_CONCEPTS
    for item in annotation.concepts:
        assert (item.mask_HW <= annotation.mask_HW).all()
        grown = cv2.dilate(found.mask(item.concept).astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
        assert float((item.mask_HW & grown).sum()) >= 0.9 * float(item.mask_HW.sum())


def test_text_names_exactly_the_concepts_in_order(annotator: annotate.Annotator, real_HWC: ImageHWC) -> None:
    made = manipulate.face_swap(np.random.default_rng(2), real_HWC, np.ascontiguousarray(real_HWC[:, ::-1]))
    annotation = annotator.exact(real_HWC, made.image_HWC, made.alpha_HW, forgery_type=made.forgery_type)
    _, spans = parse_markup(annotation.markup)
    assert [span.phrase for span in spans] == [fict.concepts()[item.concept].phrase for item in annotation.concepts]


def test_a_fake_without_twin_is_told_by_parts_within_its_face(annotator: annotate.Annotator, real_HWC: ImageHWC, found: regions.Regions) -> None:
    annotation = annotator.single(real_HWC, forgery_type="entire_synthesis")
    np.testing.assert_array_equal(annotation.mask_HW, found.oval_HW)
    assert {item.concept for item in annotation.concepts} <= set(fict.cells(14))


def test_a_crop_without_a_face_is_refused(annotator: annotate.Annotator) -> None:
    flat = np.full((SIZE, SIZE, 3), 90, np.uint8)
    patched = flat.copy()
    patched[60:160, 60:160] += 60
    assert annotator.pair(flat, patched, forgery_type="swap").quality == "refused"
    assert annotator.exact(flat, patched, (patched != flat).any(-1).astype(np.float32), forgery_type="swap").refused == "no_mesh"
    assert annotator.real(flat).refused == "no_mesh"
    assert annotator.single(flat, forgery_type="entire_synthesis").refused == "no_mesh"


def test_baseline_covers_every_concept_that_can_be_named(found: regions.Regions) -> None:
    for concept in fict.concepts().values():
        if concept.id in found.visible or any(atom in found.visible for atom in concept.atoms):
            assert any(node in findings.baseline() for node in concept.path), concept.id


def test_the_same_facts_are_worded_twice(annotator: annotate.Annotator, real_HWC: ImageHWC, found: regions.Regions) -> None:
    fake, alpha = _edited(real_HWC, found.mask("mouth"))
    texts = annotator.exact(real_HWC, fake, alpha, forgery_type="attribute_manipulation").texts
    marked, held_out = ([span.phrase for span in parse_markup(markup)[1]] for markup in (texts.markup, texts.held_out))
    assert marked == held_out and texts.markup != texts.held_out


def test_an_exact_mask_needs_no_twin(annotator: annotate.Annotator, real_HWC: ImageHWC, found: regions.Regions) -> None:
    fake, alpha = _edited(real_HWC, found.mask("left_cheek"))
    alone = annotator.exact(None, fake, alpha, forgery_type="attribute_manipulation")
    assert alone.refused is None and alone.concepts[0].concept.startswith("left")


def _asked(annotator: annotate.Annotator, real_HWC: ImageHWC, found: regions.Regions, query: str) -> annotate.AreaAnnotation:
    fake, alpha = _edited(real_HWC, found.mask("left_cheek"))
    return annotator.area(real_HWC, fake, alpha > manipulate.ALPHA_CUT, found, query=query, area_HW=found.mask(query))


def test_an_asked_area_is_answered_within_itself(annotator: annotate.Annotator, real_HWC: ImageHWC, found: regions.Regions) -> None:
    said = _asked(annotator, real_HWC, found, "cheeks")
    assert said.tampered and {fict.concepts()[item.concept].path[1] for item in said.concepts} == {"cheeks"}
    assert all((item.mask_HW <= found.mask("cheeks")).all() for item in said.concepts)


def test_an_untouched_area_of_a_fake_has_a_clean_answer(annotator: annotate.Annotator, real_HWC: ImageHWC, found: regions.Regions) -> None:
    said = _asked(annotator, real_HWC, found, "forehead")
    assert not said.tampered and said.texts.markup and not parse_markup(said.texts.markup)[1]


def test_a_box_is_answered_like_an_area_without_a_name(annotator: annotate.Annotator, real_HWC: ImageHWC, found: regions.Regions) -> None:
    fake, alpha = _edited(real_HWC, found.mask("left_cheek"))
    ys, xs = np.nonzero(found.mask("left_cheek"))
    box = np.zeros((SIZE, SIZE), bool)
    box[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = True
    said = annotator.area(real_HWC, fake, alpha > manipulate.ALPHA_CUT, found, query=None, area_HW=box)
    assert said.tampered and all((item.mask_HW <= box).all() for item in said.concepts)


def test_a_fake_without_a_type_is_an_error_that_says_so(real_HWC: ImageHWC) -> None:
    with pytest.raises(ValueError, match="has no forgery type"):
        annotate.annotate_face(Face("x", "pairs-x", _jpeg(real_HWC, 92), None, True, None, "u", "report"), None)


@pytest.mark.parametrize("kind", ["identity_swap", "expression_swap", "attribute_manipulation", "swap"])
def test_a_fake_of_which_a_part_was_changed_is_refused_without_its_twin(real_HWC: ImageHWC, kind: str) -> None:
    """The whole face as its true mask would reward whoever marks every face whole."""
    alone = Face("x", "csv-x", _jpeg(real_HWC, 92), None, True, kind, "u", "report", "a real face that is not read")
    said = annotate.annotate_face(alone, None)
    assert said.refused == "no_twin" and not said.mask_HW.any() and not said.markup
    assert annotate.annotate_face(replace(alone, forgery_type="entire_synthesis"), None).refused is None


def test_a_mask_whose_run_lengths_end_early_is_an_error() -> None:
    """pycocotools would show what the memory holds."""
    with pytest.raises(ValueError, match="cover 3 of 224 x 224 pixels"):
        annotate.decode_mask({"size": [SIZE, SIZE], "counts": "3"})


def _faces(real_HWC: ImageHWC, found: regions.Regions) -> list[Face]:
    real = Face("real.jpg", "dfdc", _jpeg(real_HWC, 92), None, False, None, "unit", "train")
    fakes = [
        Face(f"{concept}.jpg", "dfdc", _jpeg(_edited(real_HWC, found.mask(concept))[0], 92), None, True, "swap", "unit", "train", "real.jpg")
        for concept in ("mouth", "nose")
    ]
    return [real, *fakes]


def test_json_lines_resume_after_a_torn_line_and_are_the_same_again(real_HWC: ImageHWC, found: regions.Regions, tmp_path: Path) -> None:
    faces, out = _faces(real_HWC, found), tmp_path / "train.jsonl"
    annotate.annotate_faces(faces, out)
    whole = out.read_bytes()
    out.write_bytes(whole[: whole.rfind(b'{"dataset"') + 40])
    annotate.annotate_faces(faces, out)
    assert out.read_bytes() == whole


def test_rows_say_the_same_in_text_markup_and_masks(real_HWC: ImageHWC, found: regions.Regions, tmp_path: Path) -> None:
    out = tmp_path / "train.jsonl"
    annotate.annotate_faces(_faces(real_HWC, found), out)
    rows = annotate.load_annotations(out)
    assert [row["is_fake"] for row in rows] == [False, True, True]
    assert rows[0]["concepts"] == [] and not annotate.decode_mask(rows[0]["mask"]).any()
    for row in rows:
        text, spans = parse_markup(row["markup"])
        assert text == row["text"]
        assert [span.phrase for span in spans] == [item["phrase"] for item in row["concepts"]]
        assert all(annotate.decode_mask(item["mask"]).any() for item in row["concepts"])
        assert parse_markup(row["held_out"])[1] or not row["concepts"]
    assert json.loads(json.dumps(rows)) == rows


def test_two_workers_write_what_one_writes(real_HWC: ImageHWC, found: regions.Regions, tmp_path: Path) -> None:
    faces = _faces(real_HWC, found)
    annotate.annotate_faces(faces, tmp_path / "one.jsonl", 1)
    annotate.annotate_faces(faces, tmp_path / "two.jsonl", 2)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_a_folder_without_annotations_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"dev\.jsonl is missing; make it with `fifa-train annotate"):
        annotate.load_annotations(tmp_path / "dev.jsonl")
