"""The two training stages, each loop visible whole.

1. Vision: encoder, artifact map, DET and CLS on paired batches (the encoder learns here, then rests).
2. Language: projector, decoder and mask decoder on the frozen encoder's features.
Metrics go to `metrics.jsonl`, one object a line; both stages resume from their last checkpoint and see the batches they would have seen.
"""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.progress import Progress
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader
from transformers import Dinov2Model

from engines.preprocess import to_model_input
from engines.prompts import Vocabulary
from trainer import losses
from trainer.checkpoint import Ema, resume_training, save_model, save_training
from trainer.config import ModelConfig, TrainConfig
from trainer.data import PairedBatch, PairedBatches
from trainer.faces import Face, fit
from trainer.language_data import AnnotatedFace, LanguageBatches, encode_views
from trainer.model import FaceEncoder, FiFaMLLM
from trainer.warm_start import load_bundle_weights


def load_backbone(encoder: FaceEncoder, folder: Path, config: ModelConfig) -> None:
    """Fill the encoder's blocks from a local Hugging Face folder, cutting depth and resizing positions (bicubic, once)."""
    source = Dinov2Model.from_pretrained(folder)
    wanted = encoder.backbone.state_dict()
    state = {name: tensor for name, tensor in source.state_dict().items() if name in wanted}
    positions = state["embeddings.position_embeddings"]
    side = math.isqrt(positions.shape[1] - 1)
    grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, size=(config.grid, config.grid), mode="bicubic", align_corners=False, antialias=True)
    state["embeddings.position_embeddings"] = torch.cat([positions[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    encoder.backbone.load_state_dict(state)


def vision_groups(model: FiFaMLLM, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameter groups with layer-wise learning rates: the last block at `lr_last_block`, each lower one at `lr_decay` of the next."""
    vision, layers = config.vision, config.model.encoder_layers
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.encoder.named_parameters():
        if "mask_token" in name:
            continue
        if name.startswith("backbone.encoder.layer."):
            depth = int(name.split(".")[3])
            lr = vision.lr_last_block * vision.lr_decay ** (layers - 1 - depth)
        elif name.startswith("backbone.embeddings"):
            lr = vision.lr_last_block * vision.lr_decay**layers
        elif name.startswith("backbone.layernorm"):
            lr = vision.lr_last_block
        else:
            lr = vision.lr_heads
        decay = vision.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": parameters, "lr": lr, "peak_lr": lr, "weight_decay": decay} for (lr, decay), parameters in groups.items()]


def schedule(step: int, *, steps: int, warmup: int) -> float:
    """Linear warm-up, then cosine to 2 % of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def kept_patches(config: TrainConfig, step: int) -> torch.Tensor | None:
    """The patches that step sees: a function of (seed, step), all of them near the end."""
    vision = config.vision
    if step >= vision.full_from * vision.steps or vision.keep_patches >= 1:
        return None
    count = config.model.grid**2
    rng = np.random.default_rng([vision.seed, step, 1])
    return torch.from_numpy(np.sort(rng.permutation(count)[: int(count * vision.keep_patches)]))


@torch.no_grad()
def score(model: FiFaMLLM, faces: list[Face], batch: int = 32) -> np.ndarray:
    """Raw fake logits, float32, one per face."""
    scores = []
    for start in range(0, len(faces), batch):
        crops = np.stack([fit(face.image(), model.config.image_size) for face in faces[start : start + batch]])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores.append(model.encoder(torch.from_numpy(to_model_input(crops))).det_logit_B.float().numpy())
    return np.concatenate(scores)


def select_subset(faces: list[Face]) -> dict[str, list[Face]]:
    """Small fixed groups of the *select* part, to steer by: never what a table reports."""
    chosen = [face for face in faces if face.part == "select"]
    photographs = [f for f in chosen if f.dataset in ("ffhq_stylegan2", "london", "amfd") and not f.is_fake]
    return {
        "dfdc": [f for f in chosen if f.dataset == "dfdc"][::3],
        "stargan": [f for f in chosen if f.dataset == "stargan"][::4],
        "stylegan2": [f for f in chosen if f.dataset == "ffhq_stylegan2"],
        "diffusion": [f for f in chosen if f.dataset == "sd21_faces"] + photographs,
    }


def evaluate_selection(model: FiFaMLLM, groups: dict[str, list[Face]]) -> dict[str, float]:
    """AUC by group."""
    model.eval()
    return {
        f"auc_{name}": round(float(roc_auc_score([f.is_fake for f in faces], score(model, faces))), 4)
        for name, faces in groups.items()
        if len({f.is_fake for f in faces}) == 2
    }


def train_vision(config: TrainConfig, faces: list[Face], run: Path, *, backbone: Path | None = None, bundle: Path | None = None) -> None:
    """Stage 1. Blocks until done; leaves `run/vision/` with the averaged model.

    Begins with a pretrained `backbone` (Hugging Face folder), with all weights of a sealed `bundle`, or at random.
    """
    torch.manual_seed(config.vision.seed)
    model = FiFaMLLM(config.model)
    if bundle is not None:
        load_bundle_weights(model, bundle)
    elif backbone is not None:
        load_backbone(model.encoder, backbone, config.model)
    vision, grid = config.vision, config.model.grid
    optimizer = torch.optim.AdamW(vision_groups(model, config), betas=(0.9, 0.999))
    ema = Ema(model.encoder, vision.ema_decay)
    start = resume_training(run / "vision-checkpoint", model=model, ema=ema, optimizer=optimizer)
    batches = PairedBatches(faces, vision, image_size=config.model.image_size, grid=grid)
    cv2.setNumThreads(1)  # before the worker is forked: it would wait for ever for threads that only its parent has
    loader: DataLoader[PairedBatch] = DataLoader(batches, batch_size=None, sampler=range(start, vision.steps), num_workers=1, prefetch_factor=4)
    groups = select_subset(faces)
    run.mkdir(parents=True, exist_ok=True)
    with (run / "metrics.jsonl").open("a", buffering=1) as metrics, Progress() as progress:
        task = progress.add_task("vision", total=vision.steps, completed=start)
        for step, batch in enumerate(loader, start):
            began = time.monotonic()
            model.train()
            factor = schedule(step, steps=vision.steps, warmup=vision.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            keep_K = kept_patches(config, step)
            target_BT = batch.patch_target_BHW.flatten(1)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = model.encoder(batch.image_BCHW, keep_K)
            det = losses.detection_loss(out.det_logit_B, batch.is_fake_B, vision.label_smoothing)
            patch = losses.patch_loss(out.artifact_logits_BT, target_BT if keep_K is None else target_BT[:, keep_K], batch.patch_weight_B)
            kind = losses.type_loss(out.type_logits_BF, batch.type_target_BF)
            optimizer.zero_grad(set_to_none=True)
            (det + patch + 0.3 * kind).backward()
            norm = torch.nn.utils.clip_grad_norm_(model.encoder.parameters(), vision.clip_norm)
            optimizer.step()
            ema.update(model.encoder, step)
            line: dict[str, float] = {
                "stage": 1,
                "step": step,
                "det": det.item(),
                "patch": patch.item(),
                "type": kind.item(),
                "norm": norm.item(),
                "lr": vision.lr_last_block * factor,
                "seconds": time.monotonic() - began,
            }
            done = step + 1
            if done % vision.eval_every == 0 or done == vision.steps:
                for averaged in with_ema_encoder(model, ema):
                    line |= evaluate_selection(averaged, groups)
            metrics.write(json.dumps({k: round(v, 5) for k, v in line.items()}) + "\n")
            if done % vision.save_every == 0 or done == vision.steps:
                save_training(run / "vision-checkpoint", model=model, ema=ema, optimizer=optimizer, step=done, config=config)
            progress.update(task, completed=done, description=f"vision det {det.item():.3f} patch {patch.item():.3f}")
    ema.copy_to(model.encoder)
    save_model(run / "vision", model, config, {"stage": "vision", "steps": vision.steps, "seed": vision.seed})


def with_ema_encoder(model: FiFaMLLM, ema: Ema) -> Iterator[FiFaMLLM]:
    """Yield the model with the encoder's averaged weights, then put the current ones back."""
    current = {name: parameter.detach().clone() for name, parameter in model.encoder.named_parameters()}
    ema.copy_to(model.encoder)
    yield model
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            parameter.copy_(current[name])


def model_of_bundle(config: TrainConfig, bundle: Path) -> tuple[FiFaMLLM, TrainConfig]:
    """A model with a bundle's weights, in place of a checkpoint of the vision stage."""
    torch.manual_seed(config.language.seed)
    model = FiFaMLLM(config.model)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("encoder.")}
    load_bundle_weights(model, bundle)
    model.load_state_dict(fresh, strict=False)  # the language stage begins anew: its tokenizer is learned from the new texts
    return model, config


def train_language(config: TrainConfig, model: FiFaMLLM, faces: list[AnnotatedFace], vocabulary: Vocabulary, run: Path) -> None:
    """Stage 2 on a model whose encoder is trained. Blocks until done; leaves `run/model/` with the averaged weights."""
    language = config.language
    torch.manual_seed(language.seed)
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(False)
    features = encode_views(model, faces, views=language.views, seed=language.seed)
    trained = nn.ModuleList([model.projector, model.language, model.mask_decoder])
    grouped = [[p for p in trained.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": group, "weight_decay": decay} for group, decay in zip(grouped, (language.weight_decay, 0.0), strict=True)],
        lr=language.lr,
        betas=(0.9, 0.95),
    )
    ema = Ema(trained, language.ema_decay)
    start = resume_training(run / "language-checkpoint", model=model, ema=ema, optimizer=optimizer)
    batches = LanguageBatches(faces, features, vocabulary, batch_faces=language.batch_faces, mask_size=4 * config.model.grid, seed=language.seed)
    with (run / "metrics.jsonl").open("a", buffering=1) as metrics, Progress() as progress:
        task = progress.add_task("language", total=language.steps, completed=start)
        for step in range(start, language.steps):
            began = time.monotonic()
            model.train()
            factor = schedule(step, steps=language.steps, warmup=language.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = language.lr * factor
            batch = batches[step]
            image_embeds, artifact_logits, query_embeds = (tensor[batch.view_B].float() for tensor in features[:3])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                prefix = model.projector(image_embeds, artifact_logits, query_embeds)
                logits_BLV, hidden_BLE = model.read(prefix, batch.input_ids_BL)
                mask_logits, iou_logit = model.mask_decoder(
                    image_embeds[batch.seg_row_M], artifact_logits[batch.seg_row_M], hidden_BLE[batch.seg_row_M, batch.seg_column_M]
                )
            text = losses.text_loss(logits_BLV, batch.target_BL)
            mask = losses.mask_loss(mask_logits, batch.mask_MHW, batch.mask_weight_M, bce_weight=language.mask_bce, dice_weight=language.mask_dice)
            confidence = losses.confidence_loss(iou_logit, mask_logits, batch.mask_MHW, batch.mask_weight_M)
            optimizer.zero_grad(set_to_none=True)
            (text + mask + 0.2 * confidence).backward()
            norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), language.clip_norm)
            optimizer.step()
            ema.update(trained, step)
            line = {
                "stage": 2, "step": step, "text": text.item(), "mask": mask.item(), "confidence": confidence.item(), "norm": norm.item(),
                "lr": language.lr * factor, "seconds": time.monotonic() - began,
            }  # fmt: skip
            metrics.write(json.dumps({k: round(v, 5) for k, v in line.items()}) + "\n")
            done = step + 1
            if done % language.save_every == 0 or done == language.steps:
                save_training(run / "language-checkpoint", model=model, ema=ema, optimizer=optimizer, step=done, config=config)
            progress.update(task, completed=done, description=f"language text {text.item():.3f} mask {mask.item():.3f}")
    ema.copy_to(trained)
    save_model(run / "model", model, config, {"stage": "language", "steps": language.steps, "seed": language.seed, "faces": len(faces)})
    vocabulary.tokenizer.save(str(run / "model" / "tokenizer.json"))
