"""The model cut into the parts of an engine: tensor-only modules for ONNX export, and the same parts behind the Engine protocol in torch.

`TorchEngine` is the reference that every other backend is compared with; the analyzer runs over it unchanged.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from engines.contracts import PartName, TensorSpec
from engines.runtime import Arrays, place_rows
from trainer.config import ModelConfig
from trainer.model import FaceEncoder, FiFaMLLM, MaskDecoder, Projector

CAPACITY = 256
"""Slots of the KV cache: 66 prefix tokens, a prompt of about 12, answers up to 170 tokens."""


BLIND = -1e9
"""Added to the attention of what a row must not see: finite, so that no row becomes NaN, and within the range of bf16."""


class ScorePart(nn.Module):
    """Encoder, heads and projector: everything a face needs once. The projector costs 1 % of the encoder and saves a part."""

    def __init__(self, encoder: FaceEncoder, projector: Projector) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return det_logit, type_logits, artifact_logits, image_embeds, prefix_embeds."""
        out = self.encoder(image_BCHW)
        prefix = self.projector(out.image_embeds_BTD, out.artifact_logits_BT, out.query_embeds_BQD, out.statistics_BTS)
        return out.det_logit_B, out.type_logits_BF, out.artifact_logits_BT, out.image_embeds_BTD, prefix


class MaskPart(nn.Module):
    """The mask decoder without its auxiliary maps."""

    def __init__(self, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.mask_decoder = mask_decoder

    def forward(self, image_embeds_MTD: Tensor, artifact_logits_MT: Tensor, seg_embeds_ME: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask_logits and iou_logit."""
        out = self.mask_decoder(image_embeds_MTD, artifact_logits_MT, seg_embeds_ME)
        return out.mask_logits_MHW, out.iou_logit_M


class DecoderPart(nn.Module):
    """One graph for prefill and decode over a slot KV cache: row b writes its S tokens at `positions`, and sees the slots up to there.

    A token written past a row's end is overwritten before anything attends to it, so rows may be padded on the right.
    """

    def __init__(self, language: LlamaForCausalLM, config: ModelConfig) -> None:
        super().__init__()
        self.language = language
        self.heads, self.head_dim = config.lm_heads, config.lm_width // config.lm_heads

    def forward(self, inputs_embeds_BSE: Tensor, positions_BS: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        """`past` is k, v per layer, each (B, heads, capacity, head_dim). Return logits_BSV, hidden_BSE and the new k, v per layer."""
        model = self.language.model
        batch, length, _ = inputs_embeds_BSE.shape
        capacity = past[0].shape[2]
        cos, sin = model.rotary_emb(inputs_embeds_BSE, positions_BS)
        seen = (torch.arange(capacity)[None, None, :] <= positions_BS[:, :, None])[:, None]
        bias = torch.where(seen, 0.0, BLIND)
        rows, heads = torch.arange(batch)[:, None, None], torch.arange(self.heads)[None, :, None]
        slots = tuple(index.expand(batch, self.heads, length) for index in (rows, heads, positions_BS[:, None, :]))
        hidden, present = inputs_embeds_BSE, []
        for layer, past_k, past_v in zip(model.layers, past[0::2], past[1::2], strict=True):
            normed = layer.input_layernorm(hidden)
            q, k, v = (
                project(normed).view(batch, length, self.heads, self.head_dim).transpose(1, 2)
                for project in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
            )
            q, k = apply_rotary_pos_emb(q, k, cos, sin)
            # Whole vectors are written (ScatterND) and attention is spelled out: half the time of scatter and a fused attention in a small graph.
            keys, values = torch.index_put(past_k, slots, k), torch.index_put(past_v, slots, v)
            weights = torch.softmax((q * self.head_dim**-0.5) @ keys.transpose(-1, -2) + bias, -1)
            hidden = hidden + layer.self_attn.o_proj((weights @ values).transpose(1, 2).reshape(batch, length, self.heads * self.head_dim))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            present += [keys, values]
        hidden = model.norm(hidden)
        return self.language.lm_head(hidden), hidden, *present


def cache_names(config: ModelConfig) -> list[str]:
    """'k0', 'v0', 'k1', ... in the order of the graph."""
    return [f"{kind}{layer}" for layer in range(config.lm_layers) for kind in "kv"]


class TorchEngine:
    """A part as an `engines.runtime.Engine`, computed in fp32 by torch on the CPU."""

    def __init__(self, module: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], *, packs_past: bool = False) -> None:
        self._module, self.inputs, self.outputs, self._packs_past = module.eval(), inputs, outputs, packs_past

    @torch.inference_mode()
    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """See `engines.runtime.Engine.run`."""
        arguments: list[Any] = [torch.from_numpy(np.ascontiguousarray(feeds[tensor.name])) for tensor in self.inputs]
        if self._packs_past:
            arguments = [*arguments[:2], arguments[2:]]
        found = self._module(*arguments)
        returned = (found,) if isinstance(found, Tensor) else found
        return {spec.name: tensor.numpy() for spec, tensor in zip(self.outputs, returned, strict=True)}

    def bind(self, state: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> "TorchBound":
        """See `engines.runtime.Engine.bind`."""
        return TorchBound(self, state, {name: np.zeros(shapes[name], np.float32) for name in state})


class TorchBound:
    """State carried from run to run."""

    def __init__(self, engine: TorchEngine, state: Mapping[str, str], kept: dict[str, NDArray[Any]]) -> None:
        self._engine, self._state, self._kept = engine, state, kept

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """See `engines.runtime.Bound.run`."""
        rows = len(next(iter(feeds.values())))
        out = self._engine.run({**feeds, **{name: array[:rows] for name, array in self._kept.items()}})
        for name, output in self._state.items():
            present = out.pop(output)
            if rows == len(self._kept[name]):
                self._kept[name] = present
            else:
                self._kept[name][:rows] = present
        return out

    def place(self, rows: Sequence[int], source: "TorchBound", source_rows: Sequence[int]) -> None:
        """See `engines.runtime.Bound.place`."""
        place_rows(self._kept, rows, source._kept, source_rows)


def torch_engines(model: FiFaMLLM) -> dict[PartName, TorchEngine]:
    """Encoder, decoder, mask decoder and box encoder of a checkpoint; shapes are symbolic names only."""

    def floats(*names: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=name, dtype="float32", shape=("batch",)) for name in names)

    caches = tuple(TensorSpec(name=f"past_{n}", dtype="float32", shape=("batch", "heads", "capacity", "head_dim")) for n in cache_names(model.config))
    positions = TensorSpec(name="positions", dtype="int64", shape=("batch", "length"))
    return {
        "encoder": TorchEngine(
            ScorePart(model.encoder, model.projector),
            floats("image"),
            floats("det_logit", "type_logits", "artifact_logits", "image_embeds", "prefix_embeds"),
        ),
        "decoder": TorchEngine(
            DecoderPart(model.language, model.config),
            (*floats("inputs_embeds"), positions, *caches),
            floats("logits", "hidden", *(f"present_{name}" for name in cache_names(model.config))),
            packs_past=True,
        ),
        "mask_decoder": TorchEngine(
            MaskPart(model.mask_decoder), floats("image_embeds", "artifact_logits", "seg_embeds"), floats("mask_logits", "iou_logit")
        ),
        "box_encoder": TorchEngine(model.box_encoder, floats("image_embeds", "artifact_logits", "box"), floats("box_embeds")),
    }
