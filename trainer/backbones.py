"""The vision transformers a face encoder stands on: DINOv2 (arXiv:2304.07193) or CLIP (arXiv:2103.00020), also FaRL's make (arXiv:2112.03109).

A backbone is made from the sizes of a `ModelConfig`; a local Hugging Face folder only fills it. Shapes: B faces, C channels, H W pixels, N tokens
(CLS first), K kept patches, D width.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model, PreTrainedModel

from engines.preprocess import IMAGE_MEAN, IMAGE_STD
from trainer.config import EncoderKind, ModelConfig

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels that CLIP and FaRL were trained on, R G B in [0, 1]."""
_POSITIONS: dict[EncoderKind, str] = {"dinov2": "embeddings.position_embeddings", "clip": "embeddings.position_embedding.weight"}
_SETTINGS: dict[EncoderKind, tuple[str, ...]] = {
    "dinov2": ("hidden_size", "num_attention_heads", "patch_size", "mlp_ratio", "hidden_act", "layer_norm_eps", "qkv_bias", "use_swiglu_ffn"),
    "clip": ("hidden_size", "num_attention_heads", "patch_size", "intermediate_size", "hidden_act", "layer_norm_eps"),
}
"""What must be the same in a folder and in the backbone that it fills: weights of the same shapes would compute something else."""


def new_backbone(config: ModelConfig) -> PreTrainedModel:
    """A `Dinov2Model` or `CLIPVisionModel` with random weights."""
    if config.encoder_kind == "clip":
        return CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=config.encoder_width,
                intermediate_size=4 * config.encoder_width,
                num_hidden_layers=config.encoder_layers,
                num_attention_heads=config.encoder_heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
            )
        )
    return Dinov2Model(
        Dinov2Config(
            hidden_size=config.encoder_width,
            num_hidden_layers=config.encoder_layers,
            num_attention_heads=config.encoder_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
        )
    )


def face_tokens(backbone: PreTrainedModel, image_BCHW: Tensor, keep_K: Tensor | None = None) -> Tensor:
    """Tokens after the last norm (B, N, D); `keep_K` names the patches that the blocks see, all when None. Input is ImageNet-normalised.

    CLIP norms its class token alone; here every token goes through that norm, as DINOv2's do, so that the heads read both alike.
    """
    if isinstance(backbone, CLIPVisionModel):
        hidden = backbone.pre_layrnorm(_kept(backbone.embeddings(_as_clip_sees(image_BCHW)), keep_K))
        for layer in backbone.encoder.layers:
            hidden = layer(hidden, None)
        return backbone.post_layernorm(hidden)
    hidden = _kept(backbone.embeddings(image_BCHW), keep_K)
    for layer in backbone.encoder.layer:
        hidden = layer(hidden)
    return backbone.layernorm(hidden)


def _kept(hidden_BND: Tensor, keep_K: Tensor | None) -> Tensor:
    return hidden_BND if keep_K is None else torch.cat([hidden_BND[:, :1], hidden_BND[:, 1:][:, keep_K]], 1)


def _as_clip_sees(image_BCHW: Tensor) -> Tensor:
    statistics = (IMAGE_MEAN, IMAGE_STD, CLIP_MEAN, CLIP_STD)
    mean, std, clip_mean, clip_std = (torch.as_tensor(v, dtype=torch.float32, device=image_BCHW.device).view(1, 3, 1, 1) for v in statistics)
    return image_BCHW * (std / clip_std) + (mean - clip_mean) / clip_std


def load_backbone(backbone: PreTrainedModel, folder: Path, config: ModelConfig) -> None:
    """Fill a backbone from a local Hugging Face folder (safetensors), cutting depth and resizing positions (bicubic, once).

    A whole CLIP model gives its vision half. Raises FileNotFoundError where nothing is, ValueError where the folder holds another architecture or
    less than is needed.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; give a local Hugging Face folder of a {config.encoder_kind} model")
    kind = config.encoder_kind
    model_class = CLIPVisionModel if kind == "clip" else Dinov2Model
    source, report = model_class.from_pretrained(folder, local_files_only=True, use_safetensors=True, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(f"{folder} lacks {len(report['missing_keys'])} weights, {min(report['missing_keys'])} first; is it a {kind} model?")
    for setting in _SETTINGS[kind]:
        found, wanted = getattr(source.config, setting), getattr(backbone.config, setting)
        if found != wanted:
            raise ValueError(f"{folder} has {setting} {found}, the model {wanted}; change the recipe's encoder sizes or give another folder")
    if source.config.num_hidden_layers < config.encoder_layers:
        raise ValueError(f"{folder} has {source.config.num_hidden_layers} layers, the recipe asks for {config.encoder_layers}; lower encoder_layers")
    wanted_names = backbone.state_dict()
    state = {name: tensor for name, tensor in source.state_dict().items() if name in wanted_names}
    state[_POSITIONS[kind]] = resized_positions(state[_POSITIONS[kind]].float(), config.grid)
    backbone.load_state_dict(state)


def resized_positions(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings (..., N, D) of another square grid on this one, the class token's left alone."""
    side = math.isqrt(positions.shape[-2] - 1)
    if side == grid:
        return positions
    class_position, patches = positions[..., :1, :], positions[..., 1:, :].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([class_position, resized.permute(0, 2, 3, 1).reshape(*positions.shape[:-2], grid**2, -1)], -2)


def block_of(name: str, layers: int) -> int | None:
    """Depth of a face encoder's parameter, for layer-wise learning rates: -1 below the first block, the last block's for the norm above it.

    None for what is no part of the backbone.
    """
    block = re.match(r"backbone\.encoder\.layers?\.(\d+)\.", name)
    if block:
        return int(block[1])
    if name.startswith(("backbone.embeddings", "backbone.pre_layrnorm")):
        return -1
    return layers - 1 if name.startswith("backbone.") else None


_OPENAI_NAMES = (
    ("class_embedding", "embeddings.class_embedding"),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("conv1.", "embeddings.patch_embedding."),
    ("ln_pre.", "pre_layrnorm."),
    ("ln_post.", "post_layernorm."),
    ("transformer.resblocks.", "encoder.layers."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)


def clip_from_openai(state: Mapping[str, Tensor]) -> PreTrainedModel:
    """A float32 `CLIPVisionModel` from the `visual.` tensors of a checkpoint in OpenAI's layout, which FaRL's release has."""
    visual = {name.removeprefix("visual."): tensor.float() for name, tensor in state.items() if name.startswith("visual.")}
    if "conv1.weight" not in visual:
        raise ValueError(f"no visual.conv1.weight among {len(state)} tensors; give a vision transformer in OpenAI's CLIP layout")
    width, _, patch_size, _ = visual["conv1.weight"].shape
    model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=len({name.split(".")[2] for name in visual if name.startswith("transformer.resblocks.")}),
            num_attention_heads=width // 64,  # OpenAI's rule: the checkpoint does not say
            image_size=math.isqrt(len(visual["positional_embedding"]) - 1) * patch_size,
            patch_size=patch_size,
        )
    )
    renamed: dict[str, Tensor] = {}
    for name, tensor in visual.items():
        for theirs, ours in _OPENAI_NAMES:
            name = name.replace(theirs, ours)
        block, packed, kind = name.partition(".attn.in_proj_")
        if packed:
            renamed |= {f"{block}.self_attn.{part}_proj.{kind}": third for part, third in zip("qkv", tensor.chunk(3), strict=True)}
        elif name != "proj":  # into the space shared with texts
            renamed[name] = tensor
    model.load_state_dict(renamed)
    return model


def convert_farl(checkpoint: Path, folder: Path) -> None:
    """FaRL's weights in OpenAI's layout, as safetensors, to a Hugging Face folder, once. Raises ValueError for another kind of file."""
    if checkpoint.suffix != ".safetensors":
        raise ValueError(f"{checkpoint} is no .safetensors; nothing pickled is read here: save its state_dict with safetensors.torch.save_file first")
    clip_from_openai(load_file(checkpoint)).save_pretrained(folder)
