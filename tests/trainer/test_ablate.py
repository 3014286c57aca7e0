"""Ablations: rows differ in what they say, nothing is run twice, and what is evaluated was not trained on."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines import fict
from engines.prompts import Vocabulary, parse_markup
from trainer import ablate, ablation_evaluation, shards
from trainer.ablate import (
    LanguageVariant,
    VisionVariant,
    ablate_language,
    ablate_vision,
    batches_of,
    families_grid,
    language_base,
    language_grid,
    train_language_variant,
    vision_base,
    vision_grid,
)
from trainer.ablation_evaluation import ancestor, evaluate_language, evaluated_faces, trained_faces
from trainer.ablation_table import BASE, Variant, markdown
from trainer.config import LanguageConfig, tiny
from trainer.faces import Face
from trainer.instruct import Recipe, Subject
from trainer.language_data import LanguageBatches, encode_views, vocabulary_of
from trainer.model import FiFaMLLM
from trainer.shards import write_instructions
from trainer.train import VisionStep, language_losses

LANGUAGE = language_base(tiny(), steps=2)
VISION = vision_base(tiny(), steps=2, pairs={"dfdc": 1, "stargan": 1, "stylegan2": 1, "diffusion": 1})


# --- Grids --------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [lambda: language_grid(LANGUAGE), lambda: vision_grid(VISION), lambda: families_grid(VISION)])
def test_a_grid_is_the_same_each_time_and_every_row_changes_something(grid: Callable[[], Sequence[Variant]]) -> None:
    variants = grid()
    assert variants == grid()
    recipes = [replace(variant, name="", against="", not_compared=()) for variant in variants]
    assert all(recipe not in recipes[:number] for number, recipe in enumerate(recipes))
    names = [variant.name for variant in variants]
    assert names[0] == BASE and len(set(names)) == len(names) and {variant.against for variant in variants} <= set(names)


def test_without_a_backbone_what_needs_one_is_skipped_and_nothing_is_compared_with_it() -> None:
    for variants in (language_grid(LANGUAGE, pretrained=False), vision_grid(VISION, pretrained=False)):
        skipped = {variant.name for variant in variants if variant.skipped}
        assert skipped and not skipped & {variant.against for variant in variants}


def test_a_recipe_is_cut_to_its_steps_and_keeps_its_weights() -> None:
    assert (LANGUAGE.language.steps, LANGUAGE.language.views, LANGUAGE.language.warmup_steps) == (2, 1, 1)
    assert LANGUAGE.language.area_masks == tiny().language.area_masks and LANGUAGE.model == tiny().model
    assert VISION.vision.steps == 2 and VISION.vision.keep_patches == tiny().vision.keep_patches


# --- Language runs ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(
    make_face: Callable[..., Face], annotation_row: Callable[..., dict[str, Any]], grid_annotator: Callable[..., Any], tmp_path_factory: Any
) -> tuple[Path, Path]:
    """Instruction data of five faces to train on, and of three others."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "process_annotator", grid_annotator)
        for name, numbers in (("train", range(5)), ("select", range(10, 13))):
            faces = [make_face(number, dataset="dfdc", part=name, fake=number % 4 != 0) for number in numbers]
            found.append(tmp_path_factory.mktemp(name))
            write_instructions([Subject(face, None, annotation_row(face)) for face in faces], found[-1], Recipe(queries=2))
    return found[0], found[1]


@pytest.fixture(scope="module")
def encoder() -> FiFaMLLM:
    torch.manual_seed(0)
    return FiFaMLLM(tiny().model).eval()


@pytest.fixture(scope="module")
def vocabulary(folders: tuple[Path, Path]) -> Vocabulary:
    return vocabulary_of(folders[0], tiny().model.vocab_size)


GRID = language_grid(LANGUAGE, pretrained=False)


def no_run(*_args: object, **_kwargs: object) -> None:
    raise AssertionError("this run is finished and must not be made again")


def test_finished_runs_are_kept_and_an_interrupted_grid_ends_as_one_that_was_not(
    folders: tuple[Path, Path], encoder: FiFaMLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = [GRID[0], GRID[2], GRID[5]]
    straight = ablate_language(variants, encoder, *folders, tmp_path / "straight", seeds=1)
    ticks = iter(range(10_000))
    resumed = ablate_language(variants, encoder, *folders, tmp_path / "resumed", seeds=1, minutes=5 / 60, clock=lambda: float(next(ticks)))
    assert [row.seeds for row in resumed.rows].count(0) in (1, 2), "the clock lets some runs begin and stops before the last"
    assert "no time was left" in (tmp_path / "resumed" / "language" / "ablation.md").read_text()
    assert ablate_language(variants, encoder, *folders, tmp_path / "resumed", seeds=1) == straight
    assert [row.seeds for row in straight.rows] == [1, 1, 1]
    monkeypatch.setattr(ablate, "train_language_variant", no_run)
    monkeypatch.setattr(ablate, "encode_views", no_run)
    assert ablate_language(variants, encoder, *folders, tmp_path / "resumed", seeds=1) == straight
    assert (tmp_path / "resumed" / "language" / "ablation.md").read_text() == markdown(straight)


def test_runs_made_of_something_else_are_not_mixed_in(folders: tuple[Path, Path], encoder: FiFaMLLM, tmp_path: Path) -> None:
    ablate_language(GRID[:1], encoder, *folders, tmp_path, seeds=1)
    with pytest.raises(ValueError, match=r"base-0\.json was run with other settings or data"):
        ablate_language(language_grid(language_base(tiny(), steps=3))[:1], encoder, *folders, tmp_path, seeds=1)


def test_data_that_is_still_being_made_is_refused_before_anything_runs(folders: tuple[Path, Path], encoder: FiFaMLLM, tmp_path: Path) -> None:
    shutil.copytree(folders[1], half := tmp_path / "half")
    manifest = json.loads((half / "manifest.json").read_text())
    (half / "manifest.json").write_text(json.dumps({**manifest, "complete": False, "samples_sha256": None}))
    with pytest.raises(ValueError, match=r"half is not complete; run the same command again to finish it"):
        ablate_language(GRID, encoder, folders[0], half, tmp_path / "out", backbone=None)


def test_faces_that_are_trained_on_are_not_evaluated(folders: tuple[Path, Path], encoder: FiFaMLLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 evaluated faces are trained on"):
        ablate_language(GRID[:1], encoder, folders[0], folders[0], tmp_path, seeds=1)


def test_faces_are_the_same_at_every_depth_and_their_words_are_in_the_vocabulary(folders: tuple[Path, Path], vocabulary: Vocabulary) -> None:
    by_depth = {depth: trained_faces(folders[0], vocabulary, tiny().model, depth=depth, limit=4) for depth in (112, 33, 14)}
    assert len({tuple(face.name for face in faces) for faces in by_depth.values()}) == 1 and len(by_depth[14]) == 4
    for depth, faces in by_depth.items():
        questions = [question for face in faces for question in face.questions]
        phrases = [span.phrase for q in questions if q.task == "age" for span in parse_markup(vocabulary.markup(q.answer_ids))[1]]
        assert phrases and all(ancestor(fict.by_phrase()[phrase], depth) == fict.by_phrase()[phrase] for phrase in phrases)
        assert [len(question.mask_MHW) for question in questions] == [len(q.mask_MHW) for face in by_depth[112] for q in face.questions]


def test_evaluation_tells_the_truth_from_silence(
    folders: tuple[Path, Path], vocabulary: Vocabulary, encoder: FiFaMLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = evaluated_faces(folders[1], vocabulary, tiny().model, depth=112, limit=3)
    features = encode_views(encoder, [item.face for item in faces], views=1, seed=0)
    answers = {"right": (40.0, 1), "silent": (0.0, -1)}

    def measured(kind: str) -> dict[str, float]:
        surety, sign = answers[kind]

        def answered(_model: object, _features: object, batch: Any, _config: object) -> ablation_evaluation.Answered:
            logits = surety * torch.nn.functional.one_hot(batch.target_BL.clamp(min=0), vocabulary.size).float()
            return ablation_evaluation.Answered(logits, (batch.mask_MHW - 0.5) * sign if sign > 0 else -torch.ones_like(batch.mask_MHW))

        monkeypatch.setattr(ablation_evaluation, "answered", answered)
        return evaluate_language(encoder, features, faces, vocabulary, LANGUAGE)

    right, silent = measured("right"), measured("silent")
    overlaps = {"loc_miou_image", "loc_miou_region", "loc_miou_box", "age_miou", "age_miou_33", "age_miou_14"}
    assert overlaps <= set(right) and all(silent[name] == 0 for name in overlaps)
    assert all(right[name] == 1 for name in overlaps - {"age_miou_33", "age_miou_14"}), "joined, the named places are all of neither ancestor"
    assert right["balanced_region"] == right["balanced_box"] == 1 and silent["balanced_region"] == silent["balanced_box"] == 0.5
    for task in ("loc", "toe", "age"):
        assert right[f"text_{task}"] < 1e-6 and silent[f"text_{task}"] == pytest.approx(np.log(vocabulary.size))
    assert right["age_inside"] == 1 and "age_inside" not in silent


def test_a_face_without_masks_is_evaluated(folders: tuple[Path, Path], vocabulary: Vocabulary, encoder: FiFaMLLM) -> None:
    faces = [
        item
        for item in evaluated_faces(folders[1], vocabulary, tiny().model, depth=112, limit=3)
        if not any(len(question.mask_MHW) for question in item.face.questions)
    ]
    features = encode_views(encoder, [item.face for item in faces], views=1, seed=0)
    assert len(faces) == 1 and set(evaluate_language(encoder, features, faces, vocabulary, LANGUAGE)) == {"text_age", "text_loc", "text_toe"}


def gradients(encoder: FiFaMLLM, vocabulary: Vocabulary, folder: Path, variant: LanguageVariant, *, areas: float) -> list[torch.Tensor]:
    """Of a young model's first step, all area targets moved by `areas`."""
    faces = trained_faces(folder, vocabulary, tiny().model, depth=variant.depth, limit=4)
    features = encode_views(encoder, faces, views=1, seed=0)
    torch.manual_seed(0)
    model = FiFaMLLM(variant.config.model)
    batch = LanguageBatches(faces, features.face_N, vocabulary, LanguageConfig(batch_faces=4))[0]
    assert batch.area_weight_M.any()
    batch = batch._replace(area_MHW=(batch.area_MHW - areas).abs())
    language_losses(model, features, batch, variant.config.language).total(variant.config.language).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_without_area_masks_no_gradient_knows_the_areas(folders: tuple[Path, Path], encoder: FiFaMLLM, vocabulary: Vocabulary) -> None:
    base, without = GRID[0], GRID[1]
    assert without.config.language.area_masks == 0 < base.config.language.area_masks

    def alike(variant: LanguageVariant) -> bool:
        pair = (gradients(encoder, vocabulary, folders[0], variant, areas=areas) for areas in (0.0, 1.0))
        return all(torch.equal(one, other) for one, other in zip(*pair, strict=True))

    assert alike(without) and not alike(base)


@pytest.mark.parametrize("variant", [pytest.param(v, id=v.name) for v in GRID if v.skipped is None])
def test_every_language_variant_is_the_same_under_one_seed_and_another_under_the_next(
    variant: LanguageVariant, folders: tuple[Path, Path], encoder: FiFaMLLM, vocabulary: Vocabulary
) -> None:
    faces = trained_faces(folders[0], vocabulary, tiny().model, depth=variant.depth, limit=4)
    asked = evaluated_faces(folders[1], vocabulary, tiny().model, depth=variant.depth, limit=3)
    learned, shown = (encode_views(encoder, of, views=1, seed=0) for of in (faces, [item.face for item in asked]))
    first, again, other = (
        evaluate_language(train_language_variant(variant, seed, learned, faces, vocabulary), shown, asked, vocabulary, variant.config)
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert {f"age_miou_{depth}" for depth in (33, 14) if depth <= variant.depth} == {name for name in first if name.startswith("age_miou_")}


@pytest.mark.skipif(not ablate.SECOND_ENCODER, reason="features keep no tokens of a second encoder")
def test_a_mask_encoder_of_its_own_feeds_the_mask_decoder_alone(
    folders: tuple[Path, Path], encoder: FiFaMLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    FiFaMLLM(tiny().model).encoder.backbone.save_pretrained(tmp_path / "backbone")
    variants = [variant for variant in language_grid(LANGUAGE) if variant.name in (BASE, "mask encoder of its own")]
    assert len(variants) == 2 and not variants[1].skipped
    with pytest.raises(ValueError, match="give the folder of a backbone"):
        ablate_language(variants, encoder, *folders, tmp_path / "out", seeds=1)
    base, own = ablate_language(variants, encoder, *folders, tmp_path / "out", seeds=1, backbone=tmp_path / "backbone").rows
    assert [cell.mean for cell in base.cells.values()] != [cell.mean for cell in own.cells.values()]


# --- Vision runs --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [pytest.param(v, id=v.name) for v in families_grid(VISION)])
def test_fakes_of_a_family_that_is_left_out_are_never_drawn(variant: VisionVariant, faces: list[Face], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: set[tuple[str, bool]] = set()
    decode = Face.image

    def watched(face: Face) -> np.ndarray:
        drawn.add((face.dataset, face.is_fake))
        return decode(face)

    monkeypatch.setattr(Face, "image", watched)
    batches = batches_of(variant, faces, seed=0)
    sizes = {len(batches[step].is_fake_B) for step in range(8)}
    fakes = {dataset for dataset, is_fake in drawn if is_fake}
    hidden = {ablate.FAMILIES[variant.left_out]} if variant.left_out else set()
    assert fakes == {"dfdc", *ablate.FAMILIES.values()} - hidden
    assert sizes == {8}, "the batch keeps its size"


def test_auxiliary_tasks_that_are_off_leave_no_gradient(faces: list[Face]) -> None:
    variants = {variant.name: variant for variant in vision_grid(VISION)}
    batch = batches_of(variants["base"], faces, seed=0)[0]
    assert batch.patch_weight_BHW.any() and batch.patch_target_BHW.any()

    def step(name: str, *, patches: float) -> tuple[bool, list[torch.Tensor]]:
        torch.manual_seed(0)
        model = FiFaMLLM(variants[name].config.model)
        moved = batch._replace(patch_target_BHW=(batch.patch_target_BHW - patches).abs())
        config = variants[name].config
        VisionStep(model.encoder, config)(moved, None).total(config.vision).backward()
        types = any(parameter.grad is not None and parameter.grad.any() for parameter in model.encoder.cls_head.parameters())
        return types, [parameter.grad for parameter in model.encoder.parameters() if parameter.grad is not None]

    for name, has_masks, has_types in (("base", True, True), ("no masks", False, True), ("no masks, no types", False, False)):
        (types, one), (_, other) = (step(name, patches=patches) for patches in (0.0, 1.0))
        assert types is has_types
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)) is not has_masks


def test_the_vision_grid_runs_and_resumes(faces: list[Face], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = vision_grid(VISION, pretrained=False)
    table = ablate_vision("vision", variants, faces, tmp_path, backbone=None, seeds=1)
    assert {row.variant for row in table.rows if not row.seeds} == {"random encoder"}
    assert all({"auc_stylegan2", "auc_mean"} <= set(row.cells) for row in table.rows if row.seeds)
    monkeypatch.setattr(ablate, "train_vision_variant", no_run)
    assert ablate_vision("vision", variants, faces, tmp_path, backbone=None, seeds=1) == table
