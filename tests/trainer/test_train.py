"""The loops: an interrupted run is the run that was not interrupted, and training trains."""

import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines.prompts import Vocabulary
from trainer import train
from trainer.backbones import block_of
from trainer.checkpoint import load_model
from trainer.config import LanguageConfig, TrainConfig, VisionConfig, small, tiny
from trainer.data import PairedBatch
from trainer.faces import Face
from trainer.language_data import Features, InstructedFace, LanguageBatches, Question
from trainer.model import FiFaMLLM
from trainer.tokenizer import train_tokenizer
from trainer.train import LanguageStep, VisionStep, choose_trained, kept_patches, schedule, train_language, train_vision, vision_groups, with_features

MARKUP = "The <p> mouth </p> [SEG] is soft."
CLOCK = "seconds", "faces_per_second", "memory_gib"
"""What a line says of the machine."""


class Killed(Exception):
    """The process ended right after a checkpoint."""


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def unclocked(line: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in line.items() if key not in CLOCK}


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_model(folder)[0].state_dict() for folder in (one, other))
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several wait for each other in models as small as these: on a busy machine twenty times longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`kill_at(step)` ends the next run right after its checkpoint of that step; `kill_at(None)` lets it live."""
    save = train.save_training

    def arrange(when: int | None) -> None:
        def save_and_end(folder: Path, **state: Any) -> None:
            save(folder, **state)
            if state["step"] == when:
                raise Killed

        monkeypatch.setattr(train, "save_training", save_and_end)

    return arrange


def vision_config(**changed: Any) -> TrainConfig:
    return replace(tiny(), vision=replace(tiny().vision, pairs={"self_blend": 1, "stylegan2": 1}, **changed))


def test_an_interrupted_vision_run_is_the_same_run(faces: list[Face], tmp_path: Path, kill_at: Any) -> None:
    config = vision_config()
    train_vision(config, faces, tmp_path / "straight")
    kill_at(2)
    with pytest.raises(Killed):
        train_vision(config, faces, tmp_path / "resumed")
    kill_at(None)
    train_vision(config, faces, tmp_path / "resumed")
    straight, resumed = lines(tmp_path / "straight"), lines(tmp_path / "resumed")
    assert [line["step"] for line in straight] == [0, 1, 2, 3]
    assert [unclocked(line) for line in resumed] == [unclocked(line) for line in straight]
    assert "auc_stylegan2" in straight[1] and "auc_stylegan2" in straight[3]
    assert same_weights(tmp_path / "straight" / "vision", tmp_path / "resumed" / "vision")
    state = [path for path in tmp_path.rglob("*") if path.is_file() and not {"tensorboard", "plots"} & set(path.parts)]
    assert state and not [path for path in state if path.suffix not in (".safetensors", ".json", ".jsonl")]


def instructed(vocabulary: Vocabulary, count: int = 4) -> list[InstructedFace]:
    """Faces with an answer of one mask; every second is asked for a place without a mask too, so that halves of a batch hold unlike numbers."""
    rng = np.random.default_rng(0)
    cells = np.zeros((1, 16, 16), np.uint8)
    cells[:, 10:14, 6:11] = 255
    prompt, known = tuple(vocabulary.question_ids("What is wrong?")), np.ones(1, bool)
    masked = Question("age", "image", prompt, tuple(vocabulary.answer_ids(MARKUP)), None, cells, cells, True, known)
    plain = Question("toe", "region", prompt, tuple(vocabulary.answer_ids("Nothing at all.")), None, cells[:0], cells[:0], True, known[:0])
    images = rng.integers(0, 256, (count, 56, 56, 3), np.uint8)
    return [InstructedFace(f"toy/{number}", image, (masked, plain) if number % 2 else (masked,)) for number, image in enumerate(images)]


def toy_vocabulary() -> Vocabulary:
    return Vocabulary(train_tokenizer([MARKUP, "What is wrong?", "Nothing at all."] * 5, tiny().model.vocab_size))


def run_language(run: Path, *, precision: Any = "bf16", **changed: Any) -> None:
    config = replace(tiny(), precision=precision, language=replace(tiny().language, **{"save_every": 2, "lr": 5e-3, **changed}))
    vocabulary = toy_vocabulary()
    torch.manual_seed(5)
    train_language(config, FiFaMLLM(config.model), instructed(vocabulary), vocabulary, run)


def test_language_training_lowers_the_text_loss_and_leaves_the_encoder_alone(tmp_path: Path) -> None:
    run_language(tmp_path, steps=24)
    text = [line["text"] for line in lines(tmp_path)]
    assert np.mean(text[-4:]) < 0.7 * text[0]
    torch.manual_seed(5)
    before = FiFaMLLM(tiny().model).encoder.state_dict()
    model, _ = load_model(tmp_path / "model")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder.state_dict().items())
    assert (tmp_path / "model" / "tokenizer.json").is_file()


def test_an_interrupted_language_run_is_the_same_run(tmp_path: Path, kill_at: Any) -> None:
    run_language(tmp_path / "straight", steps=4)
    kill_at(2)
    with pytest.raises(Killed):
        run_language(tmp_path / "resumed", steps=4)
    kill_at(None)
    run_language(tmp_path / "resumed", steps=4)
    assert [unclocked(line) for line in lines(tmp_path / "resumed")] == [unclocked(line) for line in lines(tmp_path / "straight")]
    assert same_weights(tmp_path / "straight" / "model", tmp_path / "resumed" / "model")


def test_a_step_read_in_pieces_is_the_step_read_at_once(faces: list[Face], tmp_path: Path) -> None:
    for pieces in (1, 2):
        train_vision(replace(vision_config(steps=2, accumulate=pieces), precision="fp32"), faces, tmp_path / f"vision{pieces}")
        run_language(tmp_path / f"language{pieces}", precision="fp32", steps=3, batch_faces=3, accumulate=pieces)
    for stage in ("vision", "language"):
        for whole, halves in zip(lines(tmp_path / f"{stage}1"), lines(tmp_path / f"{stage}2"), strict=True):
            assert unclocked(halves) == pytest.approx(unclocked(whole), abs=2e-5, rel=2e-5)


def test_a_step_whose_activations_are_computed_twice_is_the_same_step(faces: list[Face], tmp_path: Path) -> None:
    for recompute in (False, True):
        train_vision(vision_config(steps=2, recompute=recompute), faces, tmp_path / f"vision{recompute}")
        run_language(tmp_path / f"language{recompute}", steps=2, recompute=recompute)
    for stage in ("vision", "language"):
        kept, twice = (lines(tmp_path / f"{stage}{recompute}") for recompute in (False, True))
        assert [unclocked(line) for line in twice] == [unclocked(line) for line in kept]


def test_a_step_computes_where_its_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # The meta device stands for a GPU here: it refuses to meet a tensor of the CPU. Autocast does not know it.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    config, meta = tiny(), torch.device("meta")
    model = FiFaMLLM(config.model).to(meta)
    model.language.set_attn_implementation("sdpa")  # where packed questions stand is read off their numbers, and meta tensors have none
    side, grid = config.model.image_size, config.model.grid
    shapes = (4, 3, side, side), (4,), (4, grid, grid), (4, grid, grid), (4, 4)
    batch = PairedBatch(*(torch.empty(shape, device=meta) for shape in shapes))
    for keep_K in (None, torch.tensor([0, 3, 5], device=meta)):
        found = VisionStep(model.encoder, config)(batch, keep_K)
        assert {loss.device for loss in found} == {meta} and VisionStep.counts(batch, keep_K).device == meta
        found.total(config.vision).backward()
    vocabulary, views = toy_vocabulary(), np.arange(4)
    widths = (grid**2, config.model.encoder_width), (grid**2,), (2, config.model.query_width), (grid**2, 8)
    features = Features(*(torch.zeros(4, *width, dtype=torch.half) for width in widths), face_N=views)
    questions = LanguageBatches(instructed(vocabulary), views, vocabulary, replace(config.language, batch_faces=3))
    answered = LanguageStep(model, config)(*with_features(questions[0], features, meta))
    assert {loss.device for loss in answered} == {meta}
    answered.total(config.language).backward()


def test_the_patches_a_step_sees_depend_on_the_step_until_all_are_seen() -> None:
    config = replace(tiny(), vision=VisionConfig(steps=100, keep_patches=0.5, full_from=0.9))
    first, again, other = (kept_patches(config, step) for step in (3, 3, 4))
    assert first is not None and again is not None and other is not None
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.tolist() == sorted(set(first.tolist())) and len(first) == config.model.grid**2 // 2
    assert kept_patches(config, 89) is not None and kept_patches(config, 90) is None


def test_every_parameter_of_the_encoder_learns_once_and_low_blocks_slowly() -> None:
    config = tiny()
    model = FiFaMLLM(config.model)
    choose_trained(model, config)
    groups = vision_groups(model, config)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    wanted = {id(p) for name, p in model.encoder.named_parameters() if "mask_token" not in name}
    assert len(grouped) == len(set(grouped)) and set(grouped) == wanted
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    blocks = [rate[id(block.norm1.weight)] for block in model.encoder.backbone.encoder.layer]
    vision = config.vision
    assert blocks == pytest.approx([vision.lr_last_block * vision.lr_decay, vision.lr_last_block])
    assert rate[id(model.encoder.queries_QD)] == vision.lr_heads


def test_blocks_at_rest_keep_their_weights_and_what_is_above_learns(faces: list[Face], tmp_path: Path) -> None:
    config = vision_config(steps=2, resting_blocks=1)
    train_vision(config, faces, tmp_path)
    torch.manual_seed(config.vision.seed)
    begun, trained = FiFaMLLM(config.model), load_model(tmp_path / "vision")[0]
    moved = {name for name, parameter in begun.encoder.named_parameters() if not torch.equal(parameter, trained.encoder.get_parameter(name))}
    assert moved and not any(block_of(name, 2) in (-1, 0) for name in moved)
    assert any(block_of(name, 2) == 1 for name in moved) and any(block_of(name, 2) is None for name in moved)


def test_a_run_does_not_go_on_with_other_blocks_at_rest(faces: list[Face], tmp_path: Path, kill_at: Any) -> None:
    kill_at(2)
    with pytest.raises(Killed):
        train_vision(vision_config(steps=4), faces, tmp_path)
    kill_at(None)
    before = (tmp_path / "vision-checkpoint" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"parameters learned in the run of .*vision-checkpoint, \d+ would now; go on with the recipe"):
        train_vision(vision_config(steps=4, resting_blocks=1), faces, tmp_path)
    assert (tmp_path / "vision-checkpoint" / "model.safetensors").read_bytes() == before


def test_the_rate_rises_then_falls_to_a_fiftieth() -> None:
    rates = [schedule(step, steps=100, warmup=10) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.02 + 0.98 / 2)
    assert all(a >= b for a, b in pairwise(rates[10:])) and rates[-1] < 0.03
    assert math.isfinite(schedule(0, steps=1, warmup=0))


def test_the_shipped_recipe_warms_up_before_it_ends() -> None:
    config = small()
    assert config.vision.warmup_steps < config.vision.steps and config.language.warmup_steps < config.language.steps


@pytest.mark.parametrize("config", [VisionConfig, LanguageConfig])
def test_a_step_in_no_pieces_is_refused(config: Any) -> None:
    with pytest.raises(ValueError, match="accumulate is 0"):
        config(accumulate=0)


def test_weights_that_are_cut_do_not_go_with_separate_adapters() -> None:
    with pytest.raises(ValueError, match="turn shard off"):
        LanguageConfig(shard=True, routing="separate")
