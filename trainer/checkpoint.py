"""Checkpoints without pickle: weights, EMA and optimizer state as safetensors, config and progress as JSON; resume continues the same run."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.model import FiFaMLLM


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """State without the duplicate of tied weights, which safetensors refuses."""
    return {name: tensor for name, tensor in module.state_dict().items() if name != "language.lm_head.weight"}


def _load(model: FiFaMLLM, folder: Path) -> None:
    """The inverse: every tensor but the tied one must be there."""
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({**tensors, "language.lm_head.weight": tensors["language.model.embed_tokens.weight"]})


class Ema:
    """Exponential moving average of a module's parameters (buffers are constant here)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the current weights; young averages move faster."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in module.named_parameters():
            self.shadow[name].lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's parameters with the average."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.shadow[name])


def save_training(folder: Path, *, model: FiFaMLLM, ema: Ema, optimizer: torch.optim.Optimizer, step: int, config: TrainConfig) -> None:
    """Write everything needed to go on from `step`; a crash leaves the old or the new state, never half of one."""
    fresh, old = _sibling(folder, "new"), _sibling(folder, "old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    state = optimizer.state_dict()["state"]
    moments = {f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}
    for name, tensors in (("model", _tensors(model)), ("ema", ema.shadow), ("optimizer", moments)):
        save_file({k: v.contiguous() for k, v in tensors.items()}, fresh / f"{name}.safetensors")
    (fresh / "config.json").write_text(json.dumps(config.to_json(), indent=1))
    (fresh / "progress.json").write_text(json.dumps({"step": step}))
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _sibling(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def resume_training(folder: Path, *, model: FiFaMLLM, ema: Ema, optimizer: torch.optim.Optimizer) -> int:
    """Load what `save_training` wrote; return the step to go on from, 0 when there is nothing."""
    if not folder.exists() and _sibling(folder, "old").exists():
        _sibling(folder, "old").rename(folder)  # the crash came between two renames
    progress = folder / "progress.json"
    if not progress.exists():
        return 0
    _load(model, folder)
    ema.shadow = load_file(folder / "ema.safetensors")
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in load_file(folder / "optimizer.safetensors").items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    step: int = json.loads(progress.read_text())["step"]
    return step


def save_model(folder: Path, model: FiFaMLLM, config: TrainConfig, facts: dict[str, Any]) -> None:
    """Write a finished model: weights, config and what is known of its making."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in _tensors(model).items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_json(), indent=1))
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))


def load_model(folder: Path) -> tuple[FiFaMLLM, TrainConfig]:
    """Load a finished model for evaluation or export."""
    config = TrainConfig.from_json(json.loads((folder / "config.json").read_text()))
    model = FiFaMLLM(config.model)
    _load(model, folder)
    return model.eval(), config
