"""FiFa-MLLM: one face encoder feeds the scores, the language decoder and the mask decoder (arXiv:2510.20531).

    crop -> FaceEncoder -> patch tokens -+-> artifact map -+-> DET query -> fake logit        (score path)
                                         |                 +-> CLS query -> forgery type
                                         +-> projector -> LanguageDecoder -> text with [SEG]  (explain path)
                                         +-> MaskDecoder, driven by [SEG] hidden states -> masks

Shapes: B faces, C channels, H W pixels or grid cells, T patches, N tokens (CLS first), Q queries (DET, CLS), D encoder width, E language width,
P prefix tokens, L text tokens, V vocabulary, M mask channels, F forgery types. Parts that are exported take and return tensors only.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

from engines.contracts import FORGERY_TYPES
from trainer.config import ModelConfig


class Attention(nn.Module):
    """Multi-head attention of one set of tokens to another."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries_BQD: Tensor, keys_BND: Tensor, values_BND: Tensor) -> Tensor:
        """Return (B, Q, D)."""
        q, k, v = (
            rearrange(project(x), "b n (h d) -> b h n d", h=self.heads)
            for project, x in ((self.q, queries_BQD), (self.k, keys_BND), (self.v, values_BND))
        )
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with GELU between."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths)):
        layers += [nn.GELU()] * (i > 0) + [nn.Linear(before, after)]
    return nn.Sequential(*layers)


class EncoderOutput(NamedTuple):
    """What one pass over a face crop yields."""

    det_logit_B: Tensor
    """float32; positive means fake. Uncalibrated."""
    type_logits_BF: Tensor
    """float32 over `FORGERY_TYPES`; meaningful for fakes."""
    artifact_logits_BT: Tensor
    """float32 per patch, row-major; positive means manipulated."""
    image_embeds_BTD: Tensor
    """Normalised patch tokens."""
    query_embeds_BQD: Tensor
    """DET and CLS query states, query width."""


class FaceEncoder(nn.Module):
    """DINOv2 blocks with the artifact map and the DET and CLS queries on top.

    The paper sends DET, CLS and [SEG] through one two-way decoder (our reading); here DET and CLS have a decoder of their own inside the encoder
    part, so that scoring is one graph and never waits for text.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, query_width = config.encoder_width, config.query_width
        self.backbone = Dinov2Model(
            Dinov2Config(
                hidden_size=width,
                num_hidden_layers=config.encoder_layers,
                num_attention_heads=config.encoder_heads,
                image_size=config.image_size,
                patch_size=config.patch_size,
            )
        )
        self.artifact_head = mlp(width, width // 2, 1)
        self.queries_QD = nn.Parameter(torch.randn(2, query_width) * 0.02)
        self.to_query_width = nn.Linear(width, query_width)
        self.norm_self, self.norm_cross, self.norm_mlp = (nn.LayerNorm(query_width) for _ in range(3))
        self.self_attention = Attention(width=query_width, heads=config.query_heads)
        self.cross_attention = Attention(width=query_width, heads=config.query_heads)
        self.query_mlp = mlp(query_width, 4 * query_width, query_width)
        self.det_norm = nn.LayerNorm(3 * width + query_width)
        self.det_head = mlp(3 * width + query_width + 1, 256, 1)
        self.cls_norm = nn.LayerNorm(width + query_width)
        self.cls_head = mlp(width + query_width, 128, len(FORGERY_TYPES))

    def forward(self, image_BCHW: Tensor, keep_K: Tensor | None = None) -> EncoderOutput:
        """Score face crops (float32, ImageNet-normalised). `keep_K` names the patches that are seen, all when None (PatchDropout)."""
        hidden = self.backbone.embeddings(image_BCHW)
        if keep_K is not None:
            hidden = torch.cat([hidden[:, :1], hidden[:, 1:][:, keep_K]], 1)
        for layer in self.backbone.encoder.layer:
            hidden = layer(hidden)
        tokens_BND = self.backbone.layernorm(hidden)
        class_BD, image_embeds_BTD = tokens_BND[:, 0], tokens_BND[:, 1:]
        artifact_logits_BT = self.artifact_head(image_embeds_BTD)[..., 0].float()

        keys = self.to_query_width(tokens_BND)
        queries = self.queries_QD.expand(image_BCHW.shape[0], -1, -1)
        normed = self.norm_self(queries)
        queries = queries + self.self_attention(normed, normed, normed)
        queries = queries + self.cross_attention(self.norm_cross(queries), keys, keys)
        query_embeds_BQD = queries + self.query_mlp(self.norm_mlp(queries))

        # Pooling of the 83-minute recipe: the map both weighs the tokens and speaks for itself through its highest patches (1/16 of them).
        weights_BT = artifact_logits_BT.softmax(-1).to(image_embeds_BTD.dtype)
        weighted_BD = torch.einsum("bt,btd->bd", weights_BT, image_embeds_BTD)
        top_B1 = artifact_logits_BT.topk(max(1, artifact_logits_BT.shape[1] // 16), dim=1).values.mean(1, keepdim=True)
        pooled = self.det_norm(torch.cat([class_BD, image_embeds_BTD.mean(1), weighted_BD, query_embeds_BQD[:, 0]], -1))
        det_logit_B = self.det_head(torch.cat([pooled, top_B1.to(pooled.dtype)], -1))[:, 0].float()
        type_logits_BF = self.cls_head(self.cls_norm(torch.cat([weighted_BD, query_embeds_BQD[:, 1]], -1))).float()
        return EncoderOutput(det_logit_B, type_logits_BF, artifact_logits_BT, image_embeds_BTD, query_embeds_BQD)


class Projector(nn.Module):
    """Patch tokens and queries to the language decoder's prefix: 2x2 patches merged into one token, each with its artifact logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.grid = config.grid
        merged = 4 * (config.encoder_width + 1)
        self.norm = nn.LayerNorm(merged)
        self.to_language = mlp(merged, 2 * config.lm_width, config.lm_width)
        self.query_to_language = nn.Linear(config.query_width, config.lm_width)

    def forward(self, image_embeds_BTD: Tensor, artifact_logits_BT: Tensor, query_embeds_BQD: Tensor) -> Tensor:
        """Return prefix_embeds_BPE: (grid/2)^2 merged patches in row-major order, then DET and CLS."""
        tokens = torch.cat([image_embeds_BTD, artifact_logits_BT[..., None].to(image_embeds_BTD.dtype)], -1)
        merged = rearrange(tokens, "b (h i w j) d -> b (h w) (i j d)", i=2, j=2, h=self.grid // 2, w=self.grid // 2)
        return torch.cat([self.to_language(self.norm(merged)), self.query_to_language(query_embeds_BQD)], 1)


class MaskDecoder(nn.Module):
    """One artifact mask for one [SEG] hidden state (SAM's two-way decoder, arXiv:2304.02643, at 1/3 of its width).

    The artifact map is its dense prompt, as a rough mask is SAM's. A learned token predicts the mask's IoU: the confidence a verdict carries.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.grid = config.mask_width, config.grid
        heads = 4
        self.to_image = nn.Linear(config.encoder_width, width)
        self.to_dense = nn.Linear(1, width)
        self.position_TM = nn.Parameter(torch.randn(config.grid**2, width) * 0.02)
        self.to_seg = mlp(config.lm_width, width, width)
        self.iou_token_M = nn.Parameter(torch.randn(width) * 0.02)
        self.layers = nn.ModuleList(TwoWayLayer(width=width, heads=heads) for _ in range(2))
        self.upscale = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, 2, 2), nn.GELU(), nn.ConvTranspose2d(width // 2, width // 4, 2, 2), nn.GELU()
        )
        self.kernel_head = mlp(width, width, width // 4)
        self.iou_head = mlp(width, width, 1)

    def forward(self, image_embeds_BTD: Tensor, artifact_logits_BT: Tensor, seg_embeds_BE: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask_logits_BHW (grid x 4, crop frame, positive means artifact) and iou_logit_B, both float32; one row per [SEG]."""
        dense = self.to_dense(artifact_logits_BT[..., None].to(image_embeds_BTD.dtype))
        image_BTM = self.to_image(image_embeds_BTD) + dense + self.position_TM
        tokens_B2M = torch.stack([self.to_seg(seg_embeds_BE), self.iou_token_M.expand(seg_embeds_BE.shape[0], -1)], 1)
        for layer in self.layers:
            tokens_B2M, image_BTM = layer(tokens_B2M, image_BTM)
        fine_BMHW = self.upscale(rearrange(image_BTM, "b (h w) m -> b m h w", h=self.grid))
        mask_logits_BHW = torch.einsum("bm,bmhw->bhw", self.kernel_head(tokens_B2M[:, 0]), fine_BMHW)
        return mask_logits_BHW.float(), self.iou_head(tokens_B2M[:, 1])[:, 0].float()


class TwoWayLayer(nn.Module):
    """Tokens attend to themselves and the image, then the image attends to the tokens (pre-norm)."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.self_attention, self.to_image, self.to_tokens = (Attention(width=width, heads=heads) for _ in range(3))
        self.norm_self, self.norm_tokens, self.norm_image, self.norm_mlp = (nn.LayerNorm(width) for _ in range(4))
        self.mlp = mlp(width, 4 * width, width)

    def forward(self, tokens_BND: Tensor, image_BTM: Tensor) -> tuple[Tensor, Tensor]:
        """Return both sets, updated."""
        normed = self.norm_self(tokens_BND)
        tokens = tokens_BND + self.self_attention(normed, normed, normed)
        image_normed = self.norm_image(image_BTM)
        tokens = tokens + self.to_image(self.norm_tokens(tokens), image_normed, image_normed)
        tokens = tokens + self.mlp(self.norm_mlp(tokens))
        return tokens, image_BTM + self.to_tokens(image_normed, tokens, tokens)


class FiFaMLLM(nn.Module):
    """The whole model; the parts are called by name, there is no forward with two meanings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = FaceEncoder(config)
        self.projector = Projector(config)
        self.language = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.lm_width,
                intermediate_size=config.lm_mlp,
                num_hidden_layers=config.lm_layers,
                num_attention_heads=config.lm_heads,
                num_key_value_heads=config.lm_heads,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                attn_implementation="sdpa",
            )
        )
        self.mask_decoder = MaskDecoder(config)

    def read(self, prefix_embeds_BPE: Tensor, input_ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher-forced pass over prefix and text; return logits_BLV and hidden_states_BLE of the text positions."""
        embeds = torch.cat([prefix_embeds_BPE, self.language.model.embed_tokens(input_ids_BL).to(prefix_embeds_BPE.dtype)], 1)
        hidden = self.language.model(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, prefix_embeds_BPE.shape[1] :]
        return self.language.lm_head(hidden), hidden
