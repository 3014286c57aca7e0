"""The two training stages, each loop visible whole.

1. Vision: encoder, artifact map, DET and CLS on paired batches (the encoder learns here, then rests).
2. Language: projector, decoder and mask decoder on the frozen encoder's features.
Both run alone or in several processes (`processes`), resume from their last checkpoint and see the batches they would have seen.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast, reduce, send_to_device
from rich.progress import Progress
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from engines.contracts import FORGERY_TYPES
from engines.preprocess import to_model_input
from engines.prompts import Vocabulary
from trainer import losses
from trainer.backbones import block_of, load_backbone
from trainer.checkpoint import Ema, resume_training, save_model, save_training
from trainer.config import LanguageConfig, Precision, TrainConfig, VisionConfig
from trainer.data import PairedBatch, PairedBatches
from trainer.faces import Face, fit
from trainer.language_data import Features, InstructedFace, LanguageBatch, LanguageBatches, encode_views
from trainer.metrics import Metrics
from trainer.model import FaceEncoder, FiFaMLLM, add_adapters
from trainer.processes import hold, join_processes, loss_shares, own_slices, seed_step, tell_of_emulation
from trainer.warm_start import load_encoder


def choose_trained(model: FiFaMLLM, config: TrainConfig) -> None:
    """Let those parameters of the encoder learn that are used and lie above the `resting_blocks`."""
    for name, parameter in model.encoder.named_parameters():
        depth = block_of(name, config.model.encoder_layers)
        rests = depth is not None and max(depth, 0) < config.vision.resting_blocks
        unused = "mask_token" in name  # serves DINOv2's pretraining only; DDP would wait for its gradient
        parameter.requires_grad_(not rests and not unused)


def vision_groups(model: FiFaMLLM, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameter groups with layer-wise learning rates: the last block at `lr_last_block`, each lower one at `lr_decay` of the next, none at rest."""
    vision, layers = config.vision, config.model.encoder_layers
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.encoder.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = block_of(name, layers)
        lr = vision.lr_heads if depth is None else vision.lr_last_block * vision.lr_decay ** (layers - 1 - depth)
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
def score(model: FiFaMLLM, faces: list[Face], *, precision: Precision = "bf16", batch: int = 32) -> np.ndarray:
    """Raw fake logits, float32, one per face. Processes share the faces, and each gets all logits."""
    process, device = PartialState(), next(model.encoder.parameters()).device
    logit_N = torch.zeros(len(faces), device=device)
    for start in range(process.process_index * batch, len(faces), process.num_processes * batch):
        crops = np.stack([fit(face.image(), model.config.image_size) for face in faces[start : start + batch]])
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logit_N[start : start + batch] = model.encoder(torch.from_numpy(to_model_input(crops)).to(device)).det_logit_B.float()
    return reduce(logit_N, "sum").cpu().numpy()


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


def evaluate_selection(model: FiFaMLLM, groups: dict[str, list[Face]], *, precision: Precision = "bf16") -> dict[str, float]:
    """AUC by group."""
    model.eval()
    return {
        f"auc_{name}": round(float(roc_auc_score([f.is_fake for f in faces], score(model, faces, precision=precision))), 4)
        for name, faces in groups.items()
        if len({f.is_fake for f in faces}) == 2
    }


class VisionLosses(NamedTuple):
    """Of one step of stage 1, or a piece of it."""

    det: Tensor
    patch: Tensor
    type: Tensor

    def total(self, config: VisionConfig) -> Tensor:
        """What is descended. A weight of 0 leaves gradients of zero, not none: every process then has the same ones to share."""
        return self.det + config.patch_weight * self.patch + config.type_weight * self.type


def seen_patches(patch_BHW: Tensor, keep_K: Tensor | None) -> Tensor:
    """(B, H, W) values of patches as (B, K): those that the encoder sees, row by row; all when None."""
    patch_BT = patch_BHW.flatten(1)
    return patch_BT if keep_K is None else patch_BT[:, keep_K]


class VisionStep(nn.Module):
    """Faces to the losses of stage 1: the one forward that processes share."""

    def __init__(self, encoder: FaceEncoder, config: TrainConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        if next(encoder.parameters()).device.type == "cpu":
            # torch's fused attention takes five times as long on the way back there in bfloat16: 1.39 s a step of 8 pairs, 1.20 s without it
            encoder.backbone.set_attn_implementation("eager")

    def forward(self, batch: PairedBatch, keep_K: Tensor | None) -> VisionLosses:
        """`keep_K` names the patches that the encoder sees."""
        target_BT, weight_BT = seen_patches(batch.patch_target_BHW, keep_K), seen_patches(batch.patch_weight_BHW, keep_K)
        with torch.autocast(batch.image_BCHW.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            out = self.encoder(batch.image_BCHW, keep_K)
        return VisionLosses(
            losses.detection_loss(out.det_logit_B, batch.is_fake_B, self.config.vision.label_smoothing),
            losses.patch_loss(out.artifact_logits_BT, target_BT, weight_BT),
            losses.type_loss(out.type_logits_BF, batch.type_target_BF),
        )

    @staticmethod
    def counts(batch: PairedBatch, keep_K: Tensor | None) -> Tensor:
        """What each loss is a mean over: faces, known patches among those seen, fakes."""
        fakes = (batch.type_target_BF.sum(1) > 0).float().sum()
        return torch.stack([torch.full_like(fakes, len(batch.is_fake_B)), seen_patches(batch.patch_weight_BHW, keep_K).sum(), fakes])


def vision_batches(batches: PairedBatches, accelerator: Accelerator, start: int) -> Iterator[PairedBatch]:
    """The whole batch of each step from `start` on, on every process. They make them in turn: twice the processes, twice the batches a second."""
    turns, device = accelerator.num_processes, accelerator.device
    cv2.setNumThreads(1)  # before the worker is forked: it would wait for ever for threads that only its parent has
    own = range(start + (accelerator.process_index - start) % turns, len(batches), turns)
    loader: Iterator[PairedBatch] = iter(DataLoader(batches, batch_size=None, sampler=own, num_workers=1, prefetch_factor=4))
    rows, side, grid = 2 * sum(batches.config.pairs.values()), batches.image_size, batches.grid
    for step in range(start, len(batches)):
        if step % turns == accelerator.process_index:
            batch = send_to_device(next(loader), device)
        else:
            shapes = (rows, 3, side, side), (rows,), (rows, grid, grid), (rows, grid, grid), (rows, len(FORGERY_TYPES))
            batch = PairedBatch(*(torch.empty(shape, device=device) for shape in shapes))
        yield broadcast(batch, from_process=step % turns)


def train_vision(config: TrainConfig, faces: list[Face], run: Path, *, backbone: Path | None = None, bundle: Path | None = None) -> None:
    """Stage 1. Blocks until done; leaves `run/vision/` with the averaged model.

    Begins with a pretrained `backbone` (Hugging Face folder), with the encoder of a sealed `bundle` or of another run's finished stage, or at random.
    """
    accelerator, vision = join_processes(), config.vision
    torch.manual_seed(vision.seed)
    model = FiFaMLLM(config.model)
    if bundle is not None:
        load_encoder(model, bundle)
    elif backbone is not None:
        load_backbone(model.encoder.backbone, backbone, config.model)
    if backbone is not None and model.mask_backbone is not None:
        load_backbone(model.mask_backbone, backbone, config.model)
    choose_trained(model, config)
    if vision.recompute:
        model.encoder.backbone.activation_checkpointing_enable({"use_reentrant": False})
    held = hold(accelerator, VisionStep(model.encoder, config))
    optimizer = torch.optim.AdamW(vision_groups(model, config), betas=(0.9, 0.999))
    ema = Ema(model.encoder, vision.ema_decay)
    start = resume_training(run / "vision-checkpoint", model=model, ema=ema, optimizer=optimizer)
    pairs = sum(vision.pairs.values())
    own = [slice(2 * pair.start, 2 * pair.stop) for pair in own_slices(accelerator, pairs, vision.accumulate)]
    batches = PairedBatches(faces, vision, image_size=config.model.image_size, grid=config.model.grid)
    groups = select_subset(faces)
    tell_of_emulation(accelerator, config.precision)
    told = accelerator.is_main_process
    with Metrics(run, 1, start=start, device=accelerator.device, told=told) as metrics, Progress(disable=not told) as progress:
        task = progress.add_task("vision", total=vision.steps, completed=start)
        for step, whole in enumerate(vision_batches(batches, accelerator, start), start):
            model.train()
            seed_step(accelerator, vision.seed, step)
            factor = schedule(step, steps=vision.steps, warmup=vision.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            keep_K = send_to_device(kept_patches(config, step), accelerator.device)
            pieces = [PairedBatch(*(tensor[rows] for tensor in whole)) for rows in own]
            shares_AN = loss_shares(torch.stack([VisionStep.counts(piece, keep_K) for piece in pieces]))
            optimizer.zero_grad(set_to_none=True)
            told_N = torch.zeros(len(VisionLosses._fields), device=accelerator.device)
            for number, piece in enumerate(pieces):
                with accelerator.no_sync(held) if number + 1 < len(pieces) else nullcontext():
                    found_N = torch.stack(held(piece, keep_K)) * shares_AN[number]
                    (accelerator.num_processes * VisionLosses(*found_N).total(vision)).backward()  # gradients are averaged over the processes
                told_N += found_N.detach()
            norm = torch.nn.utils.clip_grad_norm_(model.encoder.parameters(), vision.clip_norm)
            optimizer.step()
            ema.update(model.encoder, step)
            line = dict(zip(VisionLosses._fields, reduce(told_N, "sum").tolist(), strict=True))
            line |= {"norm": norm.item(), "lr": vision.lr_last_block * factor, **metrics.timed(2 * pairs)}
            done = step + 1
            if done % vision.eval_every == 0 or done == vision.steps:
                for averaged in with_ema_encoder(model, ema):
                    line |= evaluate_selection(averaged, groups, precision=config.precision)
            metrics.write(step, line)
            if done % vision.save_every == 0 or done == vision.steps:
                save_training(run / "vision-checkpoint", model=model, ema=ema, optimizer=optimizer, step=done, config=config)
            progress.update(task, completed=done, description=f"vision det {line['det']:.3f} patch {line['patch']:.3f}")
            metrics.start_clock()
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
    """A model with the encoder of a bundle or of another run, in place of a checkpoint of the vision stage: the language stage begins anew on it."""
    torch.manual_seed(config.language.seed)
    model = FiFaMLLM(config.model)
    load_encoder(model, bundle)
    return model, config


def continued(model: FiFaMLLM, trained: FiFaMLLM) -> FiFaMLLM:
    """The model with projector, decoders and box encoder of one whose language stage is done: its encoder stays. Returns `model`.

    Raises ValueError for other sizes.
    """
    if model.config != trained.config:
        raise ValueError("the model to continue from has other sizes than the encoder's; choose one trained on this encoder or its ancestor")
    for part in ("projector", "language", "box_encoder", "mask_decoder"):
        getattr(model, part).load_state_dict(getattr(trained, part).state_dict())
    return model


class LanguageLosses(NamedTuple):
    """Of one step of stage 2, or a piece of it."""

    text: Tensor
    mask: Tensor
    area: Tensor
    confidence: Tensor

    def total(self, config: LanguageConfig) -> Tensor:
        """What is descended."""
        return self.text + self.mask + config.area_masks * self.area + 0.2 * self.confidence


def language_losses(
    model: FiFaMLLM, features: Features, batch: LanguageBatch, config: LanguageConfig, *, precision: Precision = "bf16"
) -> LanguageLosses:  # fmt: skip
    """Read the questions of a batch behind their faces, and hold words and masks against the answers."""
    image_embeds, artifact_logits, query_embeds, statistics = (tensor[batch.view_B].float() for tensor in features[:4])
    box_row, seg_row = batch.box_at_K2[:, 0], batch.seg_at_M2[:, 0]
    with torch.autocast(image_embeds.device.type, torch.bfloat16, enabled=precision == "bf16"):
        prefix = model.projector(image_embeds, artifact_logits, query_embeds, statistics)
        boxes = model.box_encoder(image_embeds[box_row], artifact_logits[box_row], batch.box_K4)
        text = model.embed(batch.input_ids_BL, boxes, batch.box_at_K2)
        logits_BLV, hidden_BLE = model.read(prefix, text, batch.question_BL, batch.position_BL)
        seg_embeds = hidden_BLE[seg_row, batch.seg_at_M2[:, 1]]
        if config.routing == "detached":
            seg_embeds = seg_embeds.detach()
        seen = image_embeds if features.mask_embeds_NTD is None else features.mask_embeds_NTD[batch.view_B].float()
        masks = model.mask_decoder(seen[seg_row], artifact_logits[seg_row], seg_embeds)
    weights = {"bce_weight": config.mask_bce, "dice_weight": config.mask_dice}
    return LanguageLosses(
        losses.text_loss(logits_BLV, batch.target_BL),
        losses.mask_loss(masks.mask_logits_MHW, batch.mask_MHW, batch.mask_weight_M, **weights),
        losses.mask_loss(masks.area_logits_MHW, batch.area_MHW, batch.area_weight_M, **weights),
        losses.confidence_loss(masks.iou_logit_M, masks.mask_logits_MHW, batch.mask_MHW, batch.mask_weight_M),
    )


class LanguageStep(nn.Module):
    """`language_losses` as the one forward that processes share."""

    def __init__(self, model: FiFaMLLM, config: TrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, features: Features, batch: LanguageBatch) -> LanguageLosses:
        """Both on the model's device: see `with_features`."""
        return language_losses(self.model, features, batch, self.config.language, precision=self.config.precision)

    @staticmethod
    def counts(batch: LanguageBatch) -> Tensor:
        """What each loss is a mean over: tokens of answers, known masks, known areas, known masks."""
        known = batch.mask_weight_M.sum()
        return torch.stack([(batch.target_BL != -100).sum().float(), known, batch.area_weight_M.sum(), known])


def with_features(batch: LanguageBatch, features: Features, device: torch.device) -> tuple[Features, LanguageBatch]:
    """A batch and the features of its own rows on the device; those of all faces stay in the memory of the machine."""
    own: dict[str, Any] = {name: value[batch.view_B].to(device) for name, value in features._asdict().items() if isinstance(value, Tensor)}
    return features._replace(**own), send_to_device(batch._replace(view_B=torch.arange(len(batch.view_B))), device)


def language_optimizer(trained: nn.Module, language: LanguageConfig) -> torch.optim.Optimizer:
    """AdamW of stage 2; vectors do not decay."""
    grouped = [[p for p in trained.parameters() if p.requires_grad and (p.ndim > 1) == matrix] for matrix in (True, False)]
    return torch.optim.AdamW(
        [{"params": group, "weight_decay": decay} for group, decay in zip(grouped, (language.weight_decay, 0.0), strict=True)],
        lr=language.lr,
        betas=(0.9, 0.95),
    )


def train_language(config: TrainConfig, model: FiFaMLLM, faces: list[InstructedFace], vocabulary: Vocabulary, run: Path) -> None:
    """Stage 2 on a model whose encoder is trained. Blocks until done; leaves `run/model/` with the averaged weights."""
    accelerator, language = join_processes(), config.language
    torch.manual_seed(language.seed)
    if language.routing == "separate" and not model.adapters:
        add_adapters(model, "separate", train_base=True)
    trained = nn.ModuleList([model.projector, model.language, model.box_encoder, model.mask_decoder])
    for part in set(model.children()).difference(trained):
        part.requires_grad_(False).to(accelerator.device)
    features = encode_views(model, faces, views=language.views, seed=language.seed, precision=config.precision)
    if language.recompute:
        model.language.activation_checkpointing_enable({"use_reentrant": False, "context_fn": model.recompute_contexts})
    apart = set(model.parameters()).difference(trained.parameters())
    held = hold(accelerator, LanguageStep(model, config), shard=language.shard, apart=apart)
    optimizer = language_optimizer(trained, language)
    ema = Ema(trained, language.ema_decay)
    start = resume_training(run / "language-checkpoint", model=model, ema=ema, optimizer=optimizer)
    own = own_slices(accelerator, language.batch_faces, language.accumulate)
    batches = LanguageBatches(faces, features.face_N, vocabulary, language)
    told = accelerator.is_main_process
    with Metrics(run, 2, start=start, device=accelerator.device, told=told) as metrics, Progress(disable=not told) as progress:
        task = progress.add_task("language", total=language.steps, completed=start)
        for step in range(start, language.steps):
            model.train()
            seed_step(accelerator, language.seed, step)
            factor = schedule(step, steps=language.steps, warmup=language.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = language.lr * factor
            pieces = [with_features(batches.piece(step, rows), features, accelerator.device) for rows in own]
            shares_AN = loss_shares(torch.stack([LanguageStep.counts(piece) for _, piece in pieces]))
            optimizer.zero_grad(set_to_none=True)
            told_N = torch.zeros(len(LanguageLosses._fields), device=accelerator.device)
            for number, (seen, piece) in enumerate(pieces):
                with accelerator.no_sync(held) if number + 1 < len(pieces) else nullcontext():
                    found_N = torch.stack(held(seen, piece)) * shares_AN[number]
                    (accelerator.num_processes * LanguageLosses(*found_N).total(language)).backward()  # gradients are averaged over the processes
                told_N += found_N.detach()
            norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), language.clip_norm)
            optimizer.step()
            ema.update(trained, step)
            line = dict(zip(LanguageLosses._fields, reduce(told_N, "sum").tolist(), strict=True))
            whole_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            line |= {"norm": whole_norm.item(), "lr": language.lr * factor, **metrics.timed(language.batch_faces)}
            metrics.write(step, line)
            done = step + 1
            if done % language.save_every == 0 or done == language.steps:
                save_training(run / "language-checkpoint", model=model, ema=ema, optimizer=optimizer, step=done, config=config)
            progress.update(task, completed=done, description=f"language text {line['text']:.3f} mask {line['mask']:.3f}")
            metrics.start_clock()
    ema.copy_to(trained)
    save_model(run / "model", model, config, {"stage": "language", "steps": language.steps, "seed": language.seed, "faces": len(faces)})
    if told:
        vocabulary.tokenizer.save(str(run / "model" / "tokenizer.json"))
