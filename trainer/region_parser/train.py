"""Train the parser: cross entropy against the annotator's maps, AdamW, cosine, EMA; measured on the *select* part.

A run resumes from its last checkpoint and sees the batches it would have seen.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from engines import fict
from engines.preprocess import to_model_input
from engines.regions import NUM_ARCS, NUM_ATOMS, channels
from trainer.checkpoint import find_state, load_moments, moments_of, read_note, read_tensors, write_state
from trainer.faces import Face, fit
from trainer.region_parser.labels import UNKNOWN, RegionBatch, RegionBatches, region_map
from trainer.region_parser.model import RegionParser, every_second
from trainer.samples import SIDE

COUNTED = 16
"""Every so many faces are counted for the weights of classes."""
LEVELS = "part", "sub_part", "atom", "overlay"


@dataclass(frozen=True, slots=True)
class ParserConfig:
    """One run, saved beside its weights."""

    steps: int = 2200
    batch: int = 16
    lr: float = 2.5e-3
    weight_decay: float = 0.02
    warmup_steps: int = 80
    ema_decay: float = 0.995
    arc_weight: float = 0.5
    seed: int = 3
    save_every: int = 100


def class_weights(labels_N: NDArray[np.uint8], classes: int) -> Tensor:
    """(classes,) float32 with mean about 1: rare regions weigh more, by the root of how rare they are."""
    share = np.bincount(labels_N.ravel(), minlength=classes)[:classes] / labels_N.size
    weights = np.sqrt(1 / classes / np.maximum(share, 1e-6)).clip(0.25, 4.0)
    return torch.from_numpy(weights.astype(np.float32))


def region_loss(model: RegionParser, batch: RegionBatch, atom_weights: Tensor, arc_weights: Tensor, config: ParserConfig) -> Tensor:
    """Cross entropy over known pixels."""
    found = every_second(model.logits(batch.image_BCHW.to(memory_format=torch.channels_last)), batch.phase)
    atoms = F.cross_entropy(found[:, :NUM_ATOMS], batch.atom_BHW, weight=atom_weights, ignore_index=UNKNOWN)
    arcs = F.cross_entropy(found[:, NUM_ATOMS:], batch.arc_BHW, weight=arc_weights, ignore_index=UNKNOWN)
    return atoms + config.arc_weight * arcs


def train_parser(labels: Path, run: Path, config: ParserConfig, select: Sequence[Face]) -> RegionParser:
    """Train to `config.steps`, or go on; write the EMA weights to `run/parser` with what *select* says of them."""
    torch.manual_seed(config.seed)
    model = RegionParser().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, weight_decay=config.weight_decay)
    average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    begun = _resume(run / "parser_checkpoint", model, average, optimizer)
    atom_weights, arc_weights = _weights(labels / "atoms.npy", NUM_ATOMS), _weights(labels / "arcs.npy", NUM_ARCS + 1)
    batches = RegionBatches(labels, batch=config.batch, steps=config.steps, seed=config.seed)
    loader = DataLoader(torch.utils.data.Subset(batches, range(begun, config.steps)), batch_size=None, num_workers=1, prefetch_factor=4)
    run.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (run / "parser_metrics.jsonl").open("a", buffering=1) as lines:
        for step, batch in enumerate(loader, begun):
            lr = config.lr * _schedule(step, config)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss = region_loss(model.train(), batch, atom_weights, arc_weights, config)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            _average(average, model, min(config.ema_decay, (1 + step) / (10 + step)))
            lines.write(json.dumps({"step": step, "loss": round(loss.item(), 4), "lr": lr, "seconds": round(time.monotonic() - began, 1)}) + "\n")
            if (step + 1) % config.save_every == 0:
                _save(run / "parser_checkpoint", model, average, optimizer, step + 1)
    model.load_state_dict(average)
    folder = run / "parser"
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    measured = {"config": asdict(config), "select": region_iou(model.eval(), select)}
    (folder / "facts.json").write_text(json.dumps(measured, indent=1))
    return model


def finished_steps(run: Path) -> int:
    """How many steps a finished run took; 0 for one that is not finished."""
    facts = run / "parser" / "facts.json"
    return int(read_note(facts)["config"]["steps"]) if facts.is_file() else 0


def load_parser(run: Path, *, grid: int = 64) -> RegionParser:
    """The finished parser of a run. Raises FileNotFoundError where there is none, ValueError for a torn one."""
    path = run / "parser" / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; train it with: fifa-train regions --run {run}")
    model = RegionParser(grid)
    model.load_state_dict(read_tensors(path))
    return model.eval()


@torch.no_grad()
def region_iou(model: RegionParser, faces: Sequence[Face]) -> dict[str, float]:
    """Mean IoU with the annotator's regions by level of FICT, over the concepts that a face shows with 60 px or more; `error_px` of 224 is the mean
    distance between the centres of the same sub-part."""
    by_level: dict[str, list[float]] = {level: [] for level in LEVELS}
    away: list[float] = []
    for face in faces:
        crop_HWC = np.ascontiguousarray(fit(face.image(), SIDE))
        truth = region_map(crop_HWC)
        if truth is None:
            continue
        shares = model(torch.from_numpy(to_model_input(crop_HWC[None])))
        shares_AHW = F.interpolate(shares, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0].numpy()
        for concept in fict.concepts().values():
            if concept.level not in by_level:
                continue
            true_HW, found_HW = truth.region(concept.id), shares_AHW[channels(concept.id)].sum(0) >= 0.5
            if int(true_HW.sum()) < 60:
                continue
            by_level[concept.level].append(float((true_HW & found_HW).sum() / (true_HW | found_HW).sum()))
            if concept.level == "sub_part" and found_HW.any():
                away.append(float(np.linalg.norm(np.argwhere(true_HW).mean(0) - np.argwhere(found_HW).mean(0))))
    figures = {**by_level, "error_px": away}
    return {name: round(float(np.mean(values)), 4) for name, values in figures.items() if values}


def _weights(path: Path, classes: int) -> Tensor:
    return class_weights(np.load(path, mmap_mode="r")[::COUNTED], classes)


def _schedule(step: int, config: ParserConfig) -> float:
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    return 0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))))


@torch.no_grad()
def _average(average: dict[str, Tensor], model: RegionParser, decay: float) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.dtype.is_floating_point:
            average[name].lerp_(tensor, 1 - decay)
        else:
            average[name].copy_(tensor)


def _save(folder: Path, model: RegionParser, average: dict[str, Tensor], optimizer: torch.optim.Optimizer, step: int) -> None:
    tensors = {"model": model.state_dict(), "average": average, "optimizer": moments_of(optimizer)}
    plain = {name: {key: tensor.contiguous() for key, tensor in content.items()} for name, content in tensors.items()}
    write_state(folder, plain, {"progress": {"step": step}})


def _resume(folder: Path, model: RegionParser, average: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    if not find_state(folder):
        return 0
    model.load_state_dict(read_tensors(folder / "model.safetensors"))
    average.update(read_tensors(folder / "average.safetensors"))
    load_moments(optimizer, read_tensors(folder / "optimizer.safetensors"))
    return int(read_note(folder / "progress.json")["step"])
