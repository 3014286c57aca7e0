"""Checkpoints without pickle: weights, EMA and optimizer state as safetensors, config and progress as JSON; resume continues the same run.

Every process of a run calls what is here. The first writes and the others wait; all of them read. Files hold whole tensors, so that a run may go on
with another number of processes, its weights cut or not.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer.config import TrainConfig
from trainer.model import SEG_ADAPTER, FiFaMLLM, add_adapters

HEAD, EMBEDDINGS = "language.lm_head.weight", "language.model.embed_tokens.weight"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file. Raises ValueError for one that is torn or no such file."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} holds no tensors ({error}); copy it again, or remove it and run again what writes it") from None


def read_note(path: Path) -> dict[str, Any]:
    """A JSON file of a run. Raises ValueError for one that is torn or no JSON."""
    try:
        note: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); copy it again, or remove its folder and run again what writes it") from None
    return note


def _is_tied(model: FiFaMLLM) -> bool:
    return model.get_parameter(HEAD) is model.get_parameter(EMBEDDINGS)


def _tensors(model: FiFaMLLM) -> dict[str, Tensor]:
    """State without the duplicate of tied weights, which safetensors refuses."""
    return {name: tensor for name, tensor in model.state_dict().items() if name != HEAD or not _is_tied(model)}


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As files hold them, gathered from the processes that have cut them; empty in all processes but the first."""
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if PartialState().is_main_process:
            whole[name] = full.detach().cpu().contiguous()
    return whole


def _like(own: Tensor, saved: Tensor) -> Tensor:
    """A tensor of a file in the place of `own`: on its device, and cut where it is cut."""
    saved = saved.to(own.device)
    return distribute_tensor(saved, own.device_mesh, own.placements, src_data_rank=None) if isinstance(own, DTensor) else saved


def _load(model: FiFaMLLM, folder: Path) -> None:
    """The inverse of writing `_tensors`: every tensor but a tied one must be there."""
    tensors = read_tensors(folder / "model.safetensors")
    if not model.adapters and any(f".{SEG_ADAPTER}." in name for name in tensors):
        add_adapters(model, "separate", train_base=True)
    own = model.state_dict()
    if _is_tied(model):
        tensors[HEAD] = tensors[EMBEDDINGS]
    model.load_state_dict({name: _like(own[name], tensor) if name in own else tensor for name, tensor in tensors.items()})


class Ema:
    """Exponential moving average of a module's trained parameters (the others and buffers are constant)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: parameter.detach().clone() for name, parameter in module.named_parameters() if parameter.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the current weights; young averages move faster."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = dict(module.named_parameters())
        for name, average in self.shadow.items():
            average.lerp_(current[name].detach(), 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's parameters with the average."""
        current = dict(module.named_parameters())
        for name, average in self.shadow.items():
            current[name].copy_(average)


def save_training(folder: Path, *, model: FiFaMLLM, ema: Ema, optimizer: torch.optim.Optimizer, step: int, config: TrainConfig) -> None:
    """Write everything needed to go on from `step`; a crash leaves the old or the new state, never half of one."""
    contents = {name: _whole(tensors) for name, tensors in (("model", _tensors(model)), ("ema", ema.shadow), ("optimizer", moments_of(optimizer)))}
    if PartialState().is_main_process:
        write_state(folder, contents, {"config": config.to_json(), "progress": {"step": step}})
    PartialState().wait_for_everyone()


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an optimizer as tensors by name, "parameter.moment"."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items()}


def load_moments(optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    """The inverse of `moments_of`, each moment on the device of its parameter and cut as it is cut."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in saved.items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = _like(parameters[int(index)], tensor) if tensor.ndim else tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def write_state(folder: Path, tensors: Mapping[str, dict[str, Tensor]], notes: Mapping[str, Any]) -> None:
    """Write files of tensors and of JSON by their names; a crash leaves the old or the new folder, never half of one (`find_state`)."""
    fresh, old = _sibling(folder, "new"), _sibling(folder, "old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name, content in tensors.items():
        save_file(content, fresh / f"{name}.safetensors")
    for name, note in notes.items():
        (fresh / f"{name}.json").write_text(json.dumps(note, indent=1))
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def find_state(folder: Path) -> bool:
    """Whether there is something to go on from; where a crash came between the two renames of `write_state`, the old folder."""
    if not folder.exists() and _sibling(folder, "old").exists():
        _sibling(folder, "old").rename(folder)
    return (folder / "progress.json").exists()


def _sibling(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def resume_training(folder: Path, *, model: FiFaMLLM, ema: Ema, optimizer: torch.optim.Optimizer) -> int:
    """Load what `save_training` wrote; return the step to go on from, 0 when there is nothing.

    Raises ValueError, with nothing loaded, where other parameters learned: moments are kept by their order and would go to others.
    """
    if PartialState().is_main_process:
        find_state(folder)
    PartialState().wait_for_everyone()
    if not find_state(folder):
        return 0
    averages = read_tensors(folder / "ema.safetensors")
    if averages.keys() != ema.shadow.keys():
        told = f"{len(averages)} parameters learned in the run of {folder}, {len(ema.shadow)} would now"
        raise ValueError(f"{told}; go on with the recipe in its config.json, or choose another --run")
    _load(model, folder)
    ema.shadow = {name: _like(own, averages[name]) for name, own in ema.shadow.items()}
    load_moments(optimizer, read_tensors(folder / "optimizer.safetensors"))
    step: int = read_note(folder / "progress.json")["step"]
    return step


def save_model(folder: Path, model: FiFaMLLM, config: TrainConfig, facts: dict[str, Any]) -> None:
    """Write a finished model: weights, config and what is known of its making."""
    tensors = _whole(_tensors(model))
    if PartialState().is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config.to_json(), indent=1))
        (folder / "facts.json").write_text(json.dumps(facts, indent=1))
    PartialState().wait_for_everyone()


def load_model(folder: Path) -> tuple[FiFaMLLM, TrainConfig]:
    """Load a finished model for evaluation or export. Raises FileNotFoundError where there is none."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no model; finish its stage first with: fifa-train train --run {folder.parent}")
    config = TrainConfig.from_json(read_note(folder / "config.json"))
    model = FiFaMLLM(config.model)
    _load(model, folder)
    return model.eval(), config
