"""FiFa-Annotator: masks of pairs, selection of concepts, evidence behind each sentence, JSON lines that resume."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from engines import fict
from engines.prompts import parse_markup
from trainer.annotator import annotate, evidence, grammar, manipulate, mesh, regions
from trainer.annotator.artifact import SIZE, ArtifactMask, artifact_mask, iou
from trainer.annotator.concepts import select_arc, select_concepts
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
def found(real_HWC: ImageHWC) -> regions.Regions:
    return regions.regions(mesh.FaceMesh()(real_HWC).landmarks_NM2[0], (SIZE, SIZE), SIZE)


def _edited(real_HWC: ImageHWC, region_HW: NDArray[np.bool_]) -> tuple[ImageHWC, NDArray[np.float32]]:
    """Blur and redden a region: a manipulation whose place and kind are known."""
    alpha = cv2.GaussianBlur(region_HW.astype(np.float32), (0, 0), 1.5)
    source = cv2.GaussianBlur(real_HWC, (0, 0), 4.0).astype(np.float32) + np.array([26.0, 0.0, 0.0])
    blended = source * alpha[..., None] + real_HWC * (1 - alpha[..., None])
    return np.clip(blended, 0, 255).astype(np.uint8), alpha


@pytest.mark.parametrize("quality", [95, 85, 75, 60])
def test_a_real_face_and_its_own_reencode_have_an_empty_mask(real_HWC: ImageHWC, quality: int) -> None:
    artifact = artifact_mask(real_HWC, _decoded(_jpeg(real_HWC, quality)))
    assert not artifact.mask_HW.any()


def test_identical_images_are_refused_as_empty(real_HWC: ImageHWC) -> None:
    annotation = annotate.annotate_pair(real_HWC, real_HWC, forgery_type="swap", seed=1)
    assert (annotation.quality, annotation.refused, annotation.markup) == ("refused", "empty_mask", "")


@pytest.mark.parametrize("concept", ["mouth", "right_cheek", "left_eyebrow", "forehead"])
def test_adaptive_mask_finds_a_known_edit_after_the_codec(real_HWC: ImageHWC, found: regions.Regions, concept: str) -> None:
    fake, alpha = _edited(real_HWC, found.mask(concept))
    artifact = artifact_mask(real_HWC, _decoded(_jpeg(fake, 90)))
    assert iou(artifact.mask_HW, alpha > 0.1) > 0.6
    assert artifact.facts["area"] == pytest.approx(float(artifact.mask_HW.mean()), abs=1e-4)
    assert artifact.facts["threshold"] >= artifact.facts["threshold_low"] > 0


@pytest.mark.parametrize("side", ["right", "left"])
def test_an_edit_of_one_side_is_named_on_that_side(real_HWC: ImageHWC, found: regions.Regions, side: str) -> None:
    fake, _ = _edited(real_HWC, found.mask(f"{side}_cheek"))
    annotation = annotate.annotate_pair(real_HWC, fake, forgery_type="attribute_manipulation", seed=3)
    assert annotation.concepts[0].concept.startswith(side)
    other = "left" if side == "right" else "right"
    assert other not in annotation.text.split()


def test_the_kind_said_is_the_one_measured(real_HWC: ImageHWC, found: regions.Regions) -> None:
    fake, alpha = _edited(real_HWC, found.mask("left_cheek"))
    annotation = annotate.annotate_exact(real_HWC, fake, alpha, forgery_type="attribute_manipulation", seed=0)
    assert annotation.concepts[0].kind in ("softer", "redder", "smoother")
    assert annotation.concepts[0].strength > evidence.BELIEVED
    assert annotation.facts["iou_adaptive"] > annotation.facts["iou_top5"] - 0.2


def test_concept_masks_lie_within_the_artifact_and_their_dilated_region(real_HWC: ImageHWC, found: regions.Regions) -> None:
    made = manipulate.self_blend(np.random.default_rng(4), real_HWC)
    annotation = annotate.annotate_pair(real_HWC, made.image_HWC, forgery_type="identity_swap", seed=5)
    assert 1 <= len(annotation.concepts) <= annotate.MAX_CONCEPTS
    for item in annotation.concepts:
        assert (item.mask_HW <= annotation.mask_HW).all()
        grown = cv2.dilate(found.mask(item.concept).astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
        assert float((item.mask_HW & grown).sum()) >= 0.9 * float(item.mask_HW.sum())


def test_text_names_exactly_the_concepts_in_order(real_HWC: ImageHWC) -> None:
    made = manipulate.face_swap(np.random.default_rng(2), real_HWC, np.ascontiguousarray(real_HWC[:, ::-1]))
    annotation = annotate.annotate_exact(real_HWC, made.image_HWC, made.alpha_HW, forgery_type=made.forgery_type, seed=6)
    _, spans = parse_markup(annotation.markup)
    assert [span.phrase for span in spans] == [fict.concepts()[item.concept].phrase for item in annotation.concepts]


def test_a_fake_without_twin_is_told_by_parts_within_its_face(real_HWC: ImageHWC, found: regions.Regions) -> None:
    annotation = annotate.annotate_pair(None, real_HWC, forgery_type="entire_synthesis", seed=7)
    np.testing.assert_array_equal(annotation.mask_HW, found.oval_HW)
    assert {item.concept for item in annotation.concepts} <= set(fict.cells(14))


def test_a_crop_without_a_face_is_refused() -> None:
    flat = np.full((SIZE, SIZE, 3), 90, np.uint8)
    patched = flat.copy()
    patched[60:160, 60:160] += 60
    assert annotate.annotate_pair(flat, patched, forgery_type="swap", seed=1).refused == "no_mesh"
    assert annotate.annotate_pair(None, flat, forgery_type="entire_synthesis", seed=1).refused == "no_mesh"


def _selected(found: regions.Regions, *concepts: str, coarsest: str = "part") -> list[str]:
    mask = np.any([found.mask(concept) for concept in concepts], 0)
    return select_concepts(found, mask, coarsest="group" if coarsest == "group" else "part")


def test_a_whole_part_is_named_by_the_part_and_one_side_by_its_sub_part(found: regions.Regions) -> None:
    assert _selected(found, "mouth") == ["mouth"]
    assert _selected(found, "right_cheek") == ["right_cheek"]
    assert _selected(found, "nose_tip") == ["nose_tip"]


def test_groups_stand_for_their_parts_only_when_asked(found: regions.Regions) -> None:
    assert _selected(found, "mid_face", coarsest="group") == ["mid_face"]
    assert set(_selected(found, "mid_face")) == {"nose", "cheeks"}


def test_what_lies_off_the_head_comes_last(found: regions.Regions) -> None:
    assert _selected(found, "background", "nose")[-1] == "background"


def test_a_lightly_covered_atom_is_not_named(found: regions.Regions) -> None:
    mask = found.mask("mouth")
    stray = np.flatnonzero(found.mask("forehead_lower_center").ravel())
    mask.ravel()[stray[: len(stray) // 10]] = True
    assert select_concepts(found, mask) == ["mouth"]


def test_an_arc_is_named_only_where_the_ring_holds_the_difference(found: regions.Regions) -> None:
    even = np.full((SIZE, SIZE), 10.0, np.float32)
    jaw = np.where(found.mask("boundary_jaw_left"), 30.0, even).astype(np.float32)
    assert select_arc(found, ArtifactMask(found.oval_HW | found.mask(fict.BOUNDARY), jaw, {})) == "boundary_jaw_left"
    assert select_arc(found, ArtifactMask(found.oval_HW | found.mask(fict.BOUNDARY), even, {})) is None
    assert select_arc(found, ArtifactMask(np.zeros((SIZE, SIZE), bool), jaw, {})) is None


def test_baseline_covers_every_concept_that_can_be_named(found: regions.Regions) -> None:
    for concept in fict.concepts().values():
        if concept.id in found.visible or any(atom in found.visible for atom in concept.atoms):
            assert any(node in evidence.baseline() for node in concept.path), concept.id


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
        assert all(item["kind"] in grammar.KINDS and annotate.decode_mask(item["mask"]).any() for item in row["concepts"])
    assert json.loads(json.dumps(rows)) == rows


def test_two_workers_write_what_one_writes(real_HWC: ImageHWC, found: regions.Regions, tmp_path: Path) -> None:
    faces = _faces(real_HWC, found)
    annotate.annotate_faces(faces, tmp_path / "one.jsonl", 1)
    annotate.annotate_faces(faces, tmp_path / "two.jsonl", 2)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
