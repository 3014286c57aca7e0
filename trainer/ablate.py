"""Ablations: recipes that differ from a base in one thing, each trained shortly under several seeds.

A grid is a function that returns variants. A finished run is not run again (`ablation_table`). Language runs share one frozen encoder, whose features
are computed once; how they are evaluated stands in `ablation_evaluation`.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import nn

from engines.fict import Depth
from engines.prompts import Vocabulary
from trainer.ablation_evaluation import BATCH_FACES, evaluate_language, evaluated_faces, trained_faces
from trainer.ablation_table import BASE, Runs, Table, Variant
from trainer.backbones import load_backbone
from trainer.checkpoint import Ema
from trainer.config import TrainConfig
from trainer.data import PairedBatches
from trainer.faces import Face
from trainer.language_data import Features, InstructedFace, LanguageBatches, encode_views, vocabulary_of
from trainer.model import FiFaMLLM, add_adapters
from trainer.shards import finished
from trainer.train import (
    VisionStep,
    choose_trained,
    evaluate_selection,
    kept_patches,
    language_losses,
    language_optimizer,
    schedule,
    select_subset,
    vision_groups,
)

logger = logging.getLogger(__name__)

LANGUAGE_STEPS, VISION_STEPS = 400, 200
"""Areas are learned between steps 200 and 300 of the language stage: a shorter grid compares noise (docs/ablations.md)."""
FACES, EVALUATED_FACES, SEEDS = 4000, 300, 3
VISION_PAIRS = {"dfdc": 3, "stargan": 1, "stylegan2": 1, "diffusion": 1, "self_blend": 1, "face_swap": 1}
"""Pairs of one short vision step: half the shipped batch, every source in it."""
FAMILIES: Mapping[str, str] = {"stargan": "stargan", "stylegan2": "ffhq_stylegan2", "diffusion": "sd21_faces"}
"""Sources that can be left out, and the set that their fakes come from."""
OF_OWN_ANSWERS = ("age_inside", "age_miou", "text_age", "text_toe")
"""Metrics that a variant with other answers measures on those: coarser phrases are easier to write and have larger areas."""
SECOND_ENCODER = any(name.startswith("mask") for name in Features._fields)
"""Whether encoded faces hold what a mask decoder with an encoder of its own reads."""
NO_BACKBONE = "no pretrained backbone is given"


# --- Variants -----------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageVariant(Variant):
    """A way to train stage 2."""

    depth: Depth = 112
    """Answers name no concept below this depth of FICT; 112 leaves them as they were annotated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionVariant(Variant):
    """A way to train stage 1."""

    pretrained: bool = True
    """Begin with the given backbone."""
    left_out: str | None = None
    """A key of `FAMILIES` whose fakes are not trained on."""


def language_base(config: TrainConfig, steps: int = LANGUAGE_STEPS) -> TrainConfig:
    """A recipe's second stage, cut to `steps` steps of `BATCH_FACES` faces at most, each face seen as it is."""
    language = config.language
    short = replace(language, steps=steps, batch_faces=min(language.batch_faces, BATCH_FACES), views=1, warmup_steps=max(1, steps // 10))
    return replace(config, language=short)


def language_grid(base: TrainConfig, *, pretrained: bool = True) -> list[LanguageVariant]:
    """Auxiliary masks, depth of FICT, where the mask loss goes, and what the mask decoder sees. `pretrained` says whether a backbone is at hand."""

    def changed(**values: Any) -> TrainConfig:
        return replace(base, language=replace(base.language, **values))

    own = replace(base, model=replace(base.model, mask_encoder="own"))
    lacking = "features keep no tokens of a second encoder" if pretrained else NO_BACKBONE
    return [
        LanguageVariant(name=BASE, config=base),
        LanguageVariant(name="no auxiliary area masks", config=changed(area_masks=0.0)),
        LanguageVariant(name="FICT depth 33", config=base, depth=33, not_compared=OF_OWN_ANSWERS),
        LanguageVariant(name="FICT depth 14", config=base, depth=14, not_compared=OF_OWN_ANSWERS),
        LanguageVariant(name="routing detached", config=changed(routing="detached")),
        LanguageVariant(name="routing separate", config=changed(routing="separate")),
        LanguageVariant(name="mask encoder of its own", config=own, skipped=None if pretrained and SECOND_ENCODER else lacking),
    ]


def vision_base(config: TrainConfig, steps: int = VISION_STEPS, pairs: Mapping[str, int] = VISION_PAIRS) -> TrainConfig:
    """A recipe's first stage, cut to `steps` steps of a few pairs."""
    return replace(config, vision=replace(config.vision, steps=steps, pairs=dict(pairs), warmup_steps=max(1, steps // 10)))


def vision_grid(base: TrainConfig, *, pretrained: bool = True) -> list[VisionVariant]:
    """Auxiliary tasks, the encoder's origin, depth and width, and PatchDropout. `pretrained` says whether a backbone is at hand."""
    model, vision = base.model, base.vision
    random = "random encoder"
    missing = None if pretrained else f"{NO_BACKBONE}, the base begins at random too"
    clip = replace(model, encoder_kind="clip")
    narrow = replace(model, encoder_width=model.encoder_width // 2, encoder_heads=max(1, model.encoder_heads // 2))
    return [
        VisionVariant(name=BASE, config=base),
        VisionVariant(name="no masks", config=replace(base, vision=replace(vision, patch_weight=0.0))),
        VisionVariant(name="no masks, no types", config=replace(base, vision=replace(vision, patch_weight=0.0, type_weight=0.0))),
        VisionVariant(name=random, config=base, pretrained=False, skipped=missing),
        VisionVariant(name="half the blocks", config=replace(base, model=replace(model, encoder_layers=max(1, model.encoder_layers // 2)))),
        VisionVariant(  # no pretrained weights have its width
            name="random encoder of half the width", config=replace(base, model=narrow), pretrained=False, against=random if pretrained else BASE
        ),
        VisionVariant(name="random CLIP encoder", config=replace(base, model=clip), pretrained=False, against=random if pretrained else BASE),
        VisionVariant(name="no PatchDropout", config=replace(base, vision=replace(vision, keep_patches=1.0))),
    ]


def families_grid(base: TrainConfig) -> list[VisionVariant]:
    """One family of fakes left out of training in turn; its pairs go to DFDC, so that batches keep their size."""
    variants = [VisionVariant(name=BASE, config=base)]
    for family in FAMILIES:
        pairs = dict(base.vision.pairs)
        freed = pairs.pop(family, 0)
        pairs["dfdc"] = pairs.get("dfdc", 0) + freed
        without = replace(base, vision=replace(base.vision, pairs=pairs))
        skipped = None if freed else f"the base draws no {family} pairs"
        variants.append(VisionVariant(name=f"without {family}", config=without, left_out=family, skipped=skipped))
    return variants


# --- Language runs ------------------------------------------------------------------------------------------------------------------------------


def train_language_variant(
    variant: LanguageVariant, seed: int, features: Features, faces: Sequence[InstructedFace], vocabulary: Vocabulary
) -> FiFaMLLM:
    """Stage 2 of a variant on features of its faces, from random weights: `train_language` without checkpoints. Returns the averaged weights."""
    config, language = variant.config, replace(variant.config.language, seed=seed)
    torch.manual_seed(seed)
    model = FiFaMLLM(config.model)
    if language.routing == "separate":
        add_adapters(model, language.routing, train_base=True)
    trained = nn.ModuleList([model.projector, model.language, model.box_encoder, model.mask_decoder])
    optimizer = language_optimizer(trained, language)
    ema = Ema(trained, language.ema_decay)
    batches = LanguageBatches(faces, features.face_N, vocabulary, language)
    model.train()
    for step in track(range(language.steps), description=f"{variant.name}, seed {seed}"):
        for group in optimizer.param_groups:
            group["lr"] = language.lr * schedule(step, steps=language.steps, warmup=language.warmup_steps)
        optimizer.zero_grad(set_to_none=True)
        language_losses(model, features, batches[step], language, precision=config.precision).total(language).backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), language.clip_norm)
        optimizer.step()
        ema.update(trained, step)
    ema.copy_to(trained)
    return model.eval()


def ablate_language(
    variants: Sequence[LanguageVariant],
    model: FiFaMLLM,
    instructions: Path,
    evaluate: Path,
    out: Path,
    *,
    backbone: Path | None = None,
    faces: int = FACES,
    evaluated: int = EVALUATED_FACES,
    seeds: int = SEEDS,
    only: Sequence[str] = (),
    minutes: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Table:
    """Run the language grid, or the variants that `only` names, on the encoder of `model` and write `out/language/`.

    Blocks until done, or starts no run after `minutes`.

    `backbone` fills a mask encoder of a variant's own. Raises ValueError where a face stands in both folders.
    """
    inputs = {
        "steps": str(variants[0].config.language.steps), "faces": str(faces), "evaluated": str(evaluated), "encoder": _digest_of(model.encoder),
        "instructions": finished(instructions), "evaluation": finished(evaluate),
    }  # fmt: skip
    runs = Runs(out, "language", variants, seeds, inputs)
    missing, began = runs.missing(only), clock()
    if not missing:
        return runs.write_table()
    sizes = variants[0].config.model
    vocabulary = vocabulary_of(instructions, sizes.vocab_size)
    features: dict[str, tuple[Features, Features]] = {}
    for depth in dict.fromkeys(variant.depth for variant, _ in missing):
        if _is_over(began, minutes, clock):
            break
        learned = trained_faces(instructions, vocabulary, sizes, depth=depth, limit=faces)
        asked = evaluated_faces(evaluate, vocabulary, sizes, depth=depth, limit=evaluated)
        if not features:
            both = {face.name for face in learned} & {item.face.name for item in asked}
            if both:
                raise ValueError(f"{len(both)} evaluated faces are trained on, {min(both)} first; evaluate on another part")
            for kind in dict.fromkeys(variant.config.model.mask_encoder for variant, _ in missing):
                reader = with_mask_encoder(model, backbone) if kind == "own" else model
                features[kind] = _encoded(reader, learned), _encoded(reader, [item.face for item in asked])
        learned = [replace(face, image_HWC=np.empty((0, 0, 3), np.uint8)) for face in learned]  # 0.6 GB of 4,000 crops that nobody reads any more
        for variant, seed in missing:
            if variant.depth != depth or _is_over(began, minutes, clock):
                continue
            started = clock()
            learned_features, asked_features = features[variant.config.model.mask_encoder]
            trained = train_language_variant(variant, seed, learned_features, learned, vocabulary)
            metrics = evaluate_language(trained, asked_features, asked, vocabulary, variant.config)
            runs.keep(variant, seed, metrics, clock() - started)
            logger.info("%s, seed %d: %s", variant.name, seed, metrics)
    return runs.write_table()


def _encoded(model: FiFaMLLM, faces: Sequence[InstructedFace]) -> Features:
    """Each face as it is."""
    return encode_views(model, faces, views=1, seed=0)


def with_mask_encoder(model: FiFaMLLM, backbone: Path | None) -> FiFaMLLM:
    """The model with a second encoder, for its mask decoder alone, filled from a local Hugging Face folder. Raises ValueError without one."""
    if backbone is None:
        raise ValueError("a mask encoder of its own is a pretrained one; give the folder of a backbone, or leave the variant out")
    second = FiFaMLLM(replace(model.config, mask_encoder="own"))
    second.encoder.load_state_dict(model.encoder.state_dict())
    assert second.mask_backbone is not None, "the config asks for it"
    load_backbone(second.mask_backbone, backbone, second.config)
    return second


def _is_over(began: float, minutes: float | None, clock: Callable[[], float]) -> bool:
    return minutes is not None and clock() - began > 60 * minutes


def _digest_of(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


# --- Vision runs --------------------------------------------------------------------------------------------------------------------------------


def batches_of(variant: VisionVariant, faces: Sequence[Face], seed: int) -> PairedBatches:
    """The variant's batches under a seed; fakes of a family that is left out are not even among the faces to draw from."""
    config = variant.config
    hidden = FAMILIES.get(variant.left_out or "")
    shown = [face for face in faces if not (face.is_fake and face.dataset == hidden)]
    return PairedBatches(shown, replace(config.vision, seed=seed), image_size=config.model.image_size, grid=config.model.grid)


def train_vision_variant(variant: VisionVariant, seed: int, faces: Sequence[Face], backbone: Path | None) -> FiFaMLLM:
    """Stage 1 of a variant: `train_vision` without checkpoints. Returns the averaged weights."""
    config = replace(variant.config, vision=replace(variant.config.vision, seed=seed))
    vision = config.vision
    torch.manual_seed(seed)
    model = FiFaMLLM(config.model)
    if variant.pretrained and backbone is not None:
        load_backbone(model.encoder.backbone, backbone, config.model)
    choose_trained(model, config)
    optimizer = torch.optim.AdamW(vision_groups(model, config), betas=(0.9, 0.999))
    ema = Ema(model.encoder, vision.ema_decay)
    batches = batches_of(variant, faces, seed)
    model.train()
    for step in track(range(vision.steps), description=f"{variant.name}, seed {seed}"):
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule(step, steps=vision.steps, warmup=vision.warmup_steps)
        optimizer.zero_grad(set_to_none=True)
        VisionStep(model.encoder, config)(batches[step], kept_patches(config, step)).total(vision).backward()
        torch.nn.utils.clip_grad_norm_(model.encoder.parameters(), vision.clip_norm)
        optimizer.step()
        ema.update(model.encoder, step)
    ema.copy_to(model.encoder)
    return model.eval()


def ablate_vision(
    grid: str, variants: Sequence[VisionVariant], faces: Sequence[Face], out: Path,
    *, backbone: Path | None, seeds: int = SEEDS, only: Sequence[str] = (), minutes: float | None = None, clock: Callable[[], float] = time.monotonic,
) -> Table:  # fmt: skip
    """Run a grid of the first stage, or the variants that `only` names, and write `out/GRID/`: AUC by group of the *select* part.

    Blocks until done, or starts no run after `minutes`.

    `backbone` is a local Hugging Face folder; without it every encoder begins at random.
    """
    listed = hashlib.sha256("\n".join(sorted(f"{face.dataset}/{face.name} {face.part} {face.is_fake}" for face in faces)).encode()).hexdigest()
    started_from = "random" if backbone is None else _file_digest(backbone / "model.safetensors")
    runs = Runs(out, grid, variants, seeds, {"steps": str(variants[0].config.vision.steps), "faces": listed, "backbone": started_from})
    groups, began = select_subset(list(faces)), clock()
    for variant, seed in runs.missing(only):
        if _is_over(began, minutes, clock):
            break
        started = clock()
        metrics = evaluate_selection(train_vision_variant(variant, seed, faces, backbone), groups, precision=variant.config.precision)
        metrics["auc_mean"] = float(np.mean(list(metrics.values())))
        runs.keep(variant, seed, metrics, clock() - started)
        logger.info("%s, seed %d: %s", variant.name, seed, metrics)
    return runs.write_table()


def _file_digest(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
