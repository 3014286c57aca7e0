"""The loops: an interrupted run is the run that was not interrupted, and training trains."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines.contracts import Mask
from engines.prompts import Vocabulary
from trainer import train
from trainer.checkpoint import load_model
from trainer.config import TrainConfig, VisionConfig, small, tiny
from trainer.faces import Face
from trainer.language_data import AnnotatedFace
from trainer.model import FiFaMLLM
from trainer.tokenizer import train_tokenizer
from trainer.train import kept_patches, schedule, train_language, train_vision, vision_groups

MARKUP = "The <p> mouth </p> [SEG] is soft."


class Killed(Exception):
    """The process ended right after a checkpoint."""


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def unclocked(line: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in line.items() if key != "seconds"}


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_model(folder)[0].state_dict() for folder in (one, other))
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


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


def test_an_interrupted_vision_run_is_the_same_run(faces: list[Face], tmp_path: Path, kill_at: Any) -> None:
    config: TrainConfig = replace(tiny(), vision=replace(tiny().vision, pairs={"self_blend": 1, "stylegan2": 1}))
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
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".safetensors", ".json", ".jsonl")]


def annotated(count: int) -> list[AnnotatedFace]:
    rng = np.random.default_rng(0)
    mask = np.zeros((224, 224), bool)
    mask[140:190, 80:150] = True
    encoded = Mask.encode(mask)
    rle = {"size": [224, 224], "counts": encoded.counts}
    row = {"name": "toy", "is_fake": True, "quality": "good", "mask": rle, "markup": MARKUP, "concepts": [{"concept": "mouth", "mask": rle}]}
    return [AnnotatedFace(row, rng.integers(0, 256, (56, 56, 3), np.uint8)) for _ in range(count)]


def run_language(run: Path, *, steps: int) -> None:
    run.mkdir(exist_ok=True)
    config = replace(tiny(), language=replace(tiny().language, steps=steps, save_every=2, lr=5e-3))
    torch.manual_seed(5)
    train_language(config, FiFaMLLM(config.model), annotated(4), Vocabulary(train_tokenizer([MARKUP] * 5, config.model.vocab_size)), run)


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
    groups = vision_groups(model, config)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    wanted = {id(p) for name, p in model.encoder.named_parameters() if "mask_token" not in name}
    assert len(grouped) == len(set(grouped)) and set(grouped) == wanted
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    blocks = [rate[id(block.norm1.weight)] for block in model.encoder.backbone.encoder.layer]
    vision = config.vision
    assert blocks == pytest.approx([vision.lr_last_block * vision.lr_decay, vision.lr_last_block])
    assert rate[id(model.encoder.queries_QD)] == vision.lr_heads


def test_the_rate_rises_then_falls_to_a_fiftieth() -> None:
    rates = [schedule(step, steps=100, warmup=10) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.02 + 0.98 / 2)
    assert all(a >= b for a, b in pairwise(rates[10:])) and rates[-1] < 0.03
    assert math.isfinite(schedule(0, steps=1, warmup=0))


def test_the_shipped_recipe_warms_up_before_it_ends() -> None:
    config = small()
    assert config.vision.warmup_steps < config.vision.steps and config.language.warmup_steps < config.language.steps
