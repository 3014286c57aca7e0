"""FiFa-MLLM: one face encoder feeds the scores, the language decoder and the mask decoder (arXiv:2510.20531).

    crop -> FaceEncoder -> patch tokens -+-> artifact map -+-> DET query -> fake logit        (score path)
                                         |                 +-> CLS query -> forgery type
                                         +-> projector -> LanguageDecoder -> text with [SEG]  (explain path)
                                         |       box -> BoxEncoder -> <bbox>-+
                                         +-> MaskDecoder, driven by [SEG] hidden states -> masks

One code for every scale: `ModelConfig` says how wide, and a causal language model of transformers may stand in for the own decoder (`trainer.paper`).
Shapes: B faces, C channels, H W pixels or grid cells, T patches, N tokens (CLS first), Q queries (DET, CLS), D encoder width, E language width,
P prefix tokens, L text tokens, V vocabulary, M mask channels, F forgery types, S patch statistics, R cells along a box, K boxes.
Parts that are exported take and return tensors only.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from engines.contracts import FORGERY_TYPES
from engines.preprocess import IMAGE_STD
from trainer.attention import PACKED, attend, packing_of
from trainer.backbones import face_tokens, new_backbone
from trainer.config import ModelConfig, Routing

NUM_STATISTICS = 8
"""Of `patch_statistics`."""
TEXT_ADAPTER, SEG_ADAPTER = "text", "seg"
"""LoRA adapters (arXiv:2106.09685) of the language decoder, by what they learn from."""


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
        return self.out(rearrange(attend(q, k, v), "b h n d -> b n (h d)"))


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
    statistics_BTS: Tensor
    """float32 colour, contrast and sharpness of every patch (`patch_statistics`), whatever patches the blocks saw."""
    mask_embeds_BTD: Tensor | None = None
    """Patch tokens of the mask decoder's own encoder (`ModelConfig.mask_encoder`), None where it reads `image_embeds_BTD`."""

    @property
    def tokens_for_masks_BTD(self) -> Tensor:
        """What the mask decoder reads."""
        return self.image_embeds_BTD if self.mask_embeds_BTD is None else self.mask_embeds_BTD


def patch_statistics(image_BCHW: Tensor, patch_size: int) -> Tensor:
    """Colour, contrast, sharpness at two scales, highlights and chroma edges of each patch, (B, T, 8) float32 of order 1.

    What the middle of a network forgets and an explanation speaks of: too warm, too soft, shiny. Input is ImageNet-normalised.
    """
    std = torch.as_tensor(IMAGE_STD, dtype=torch.float32, device=image_BCHW.device)
    image = image_BCHW.float() * std.view(1, 3, 1, 1) * 4  # one unit is a quarter of the range
    luma, chroma = image.mean(1, keepdim=True), image[:, :1] - image[:, 2:]
    half = F.avg_pool2d(luma, 2)

    def pooled(x: Tensor, size: int) -> Tensor:
        return rearrange(F.avg_pool2d(x, size), "b c h w -> b (h w) c")

    def edges(x: Tensor) -> Tensor:
        return F.pad((x[..., 1:] - x[..., :-1]).abs(), (0, 1)) + F.pad((x[..., 1:, :] - x[..., :-1, :]).abs(), (0, 0, 0, 1))

    mean = pooled(luma, patch_size)
    spread = (pooled(luma**2, patch_size) - mean**2).clamp(min=0).add(1e-6).sqrt()
    highlights = rearrange(F.max_pool2d(luma, patch_size), "b c h w -> b (h w) c") - mean
    sharpness = [4 * pooled(edges(luma), patch_size), 4 * pooled(edges(half), patch_size // 2), 4 * pooled(edges(chroma), patch_size)]
    return torch.cat([pooled(image, patch_size), spread, highlights, *sharpness], -1)


class FaceEncoder(nn.Module):
    """A vision transformer (DINOv2 or CLIP) with the artifact map and the DET and CLS queries on top.

    The paper sends DET, CLS and [SEG] through one two-way decoder (our reading); here DET and CLS have a decoder of their own inside the encoder
    part, so that scoring is one graph and never waits for text.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, query_width = config.encoder_width, config.query_width
        self.patch_size = config.patch_size
        self.backbone = new_backbone(config)
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
        tokens_BND = face_tokens(self.backbone, image_BCHW, keep_K)
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
        statistics_BTS = patch_statistics(image_BCHW, self.patch_size)
        return EncoderOutput(det_logit_B, type_logits_BF, artifact_logits_BT, image_embeds_BTD, query_embeds_BQD, statistics_BTS)


class Projector(nn.Module):
    """Patch tokens and queries to the language decoder's prefix: 2x2 patches merged into one token, each with its artifact logits and statistics."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.grid = config.grid
        merged = 4 * (config.encoder_width + 1)
        self.norm = nn.LayerNorm(merged)
        self.to_language = mlp(merged, 2 * config.lm_width, config.lm_width)
        self.statistics_to_language = mlp(4 * NUM_STATISTICS, config.lm_width, config.lm_width)
        self.query_to_language = nn.Linear(config.query_width, config.lm_width)

    def forward(self, image_embeds_BTD: Tensor, artifact_logits_BT: Tensor, query_embeds_BQD: Tensor, statistics_BTS: Tensor) -> Tensor:
        """Return prefix_embeds_BPE: (grid/2)^2 merged patches in row-major order, then DET and CLS."""
        tokens = torch.cat([image_embeds_BTD, artifact_logits_BT[..., None].to(image_embeds_BTD.dtype)], -1)
        patches = self.to_language(self.norm(self._merged(tokens))) + self.statistics_to_language(self._merged(statistics_BTS))
        return torch.cat([patches, self.query_to_language(query_embeds_BQD)], 1)

    def _merged(self, tokens_BTD: Tensor) -> Tensor:
        return rearrange(tokens_BTD, "b (h i w j) d -> b (h w) (i j d)", i=2, j=2, h=self.grid // 2, w=self.grid // 2)


class BoxEncoder(nn.Module):
    """The `<bbox>` embedding: patch tokens averaged over the cells of a box, and where the box lies.

    Every cell takes each patch by the share of it that it covers: RoIAlign (arXiv:1703.06870), its sampling replaced by the exact integral. GLaMM,
    whose region encoder this stands for, scales boxes by another size than its grid's; here one grid serves both (tested at all four corners).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.grid, self.image_size, self.cells = config.grid, config.image_size, config.box_cells
        self.to_cell = nn.Linear(config.encoder_width + 1, config.mask_width)
        self.to_language = mlp(config.mask_width * config.box_cells**2 + 6, config.lm_width, config.lm_width)

    def overlaps(self, low_K: Tensor, high_K: Tensor) -> Tensor:
        """Share of each box cell that lies in each patch along one axis, (K, R, grid) float32 with rows that sum to 1; edges in patches."""
        cells = torch.arange(self.cells, dtype=torch.float32, device=low_K.device)
        step_K1 = ((high_K - low_K) / self.cells)[:, None]
        start_KR = low_K[:, None] + cells * step_K1
        patch = torch.arange(self.grid, dtype=torch.float32, device=low_K.device)
        upper, lower = torch.minimum((start_KR + step_K1)[..., None], patch + 1), torch.maximum(start_KR[..., None], patch)
        return (upper - lower).clamp(min=0) / step_K1[..., None]

    def forward(self, image_embeds_KTD: Tensor, artifact_logits_KT: Tensor, box_K4: Tensor) -> Tensor:
        """Return box_embeds_KE. Boxes are (x0, y0, x1, y1) in pixels of the crop, far edges exclusive, inside it and not empty."""
        tokens = torch.cat([image_embeds_KTD, artifact_logits_KT[..., None].to(image_embeds_KTD.dtype)], -1)
        maps_KHWM = rearrange(self.to_cell(tokens).float(), "k (h w) m -> k h w m", h=self.grid)
        x0, y0, x1, y1 = (box_K4.float() * (self.grid / self.image_size)).unbind(-1)
        cells_KRRM = torch.einsum("kyh,kxw,khwm->kyxm", self.overlaps(y0, y1), self.overlaps(x0, x1), maps_KHWM)
        place_K6 = torch.stack([x0, y0, x1, y1, x1 - x0, y1 - y0], -1) / self.grid
        return self.to_language(torch.cat([cells_KRRM.flatten(1), place_K6], -1))


class MaskOutput(NamedTuple):
    """Masks of M [SEG] tokens, float32."""

    mask_logits_MHW: Tensor
    """Grid x 4 over the crop, positive means artifact of the area spoken of."""
    iou_logit_M: Tensor
    """The mask's IoU with the truth, as the decoder expects it."""
    area_logits_MHW: Tensor
    """The area spoken of, manipulated or not (auxiliary region-mask prediction): a phrase's region, the asked area, everything for the whole face."""


class MaskDecoder(nn.Module):
    """One artifact mask for one [SEG] hidden state (SAM's two-way decoder, arXiv:2304.02643, at 1/3 of its width).

    The artifact map is its dense prompt, as a rough mask is SAM's. A mask is the soft minimum of two maps, what is manipulated and where the text
    speaks of; the second is supervised by itself, on real faces too (the paper's auxiliary region masks). A learned token predicts the mask's IoU:
    the confidence a verdict carries.
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
        self.kernel_head = mlp(width, width, 2 * (width // 4 + 1))
        self.iou_head = mlp(width, width, 1)

    def forward(self, image_embeds_MTD: Tensor, artifact_logits_MT: Tensor, seg_embeds_ME: Tensor) -> MaskOutput:
        """One row per [SEG]; the image of a face is repeated for each of its own."""
        dense = self.to_dense(artifact_logits_MT[..., None].to(image_embeds_MTD.dtype))
        image_MTC = self.to_image(image_embeds_MTD) + dense + self.position_TM
        tokens_M2C = torch.stack([self.to_seg(seg_embeds_ME), self.iou_token_M.expand(seg_embeds_ME.shape[0], -1)], 1)
        for layer in self.layers:
            tokens_M2C, image_MTC = layer(tokens_M2C, image_MTC)
        fine_MCHW = self.upscale(rearrange(image_MTC, "m (h w) c -> m c h w", h=self.grid))
        kernels_M2C = rearrange(self.kernel_head(tokens_M2C[:, 0]), "m (k c) -> m k c", k=2)
        maps_M2HW = torch.einsum("mkc,mchw->mkhw", kernels_M2C[..., 1:], fine_MCHW).float() + kernels_M2C[..., :1, None].float()
        artifact_MHW, area_MHW = maps_M2HW[:, 0], maps_M2HW[:, 1]
        mask_logits_MHW = artifact_MHW - F.softplus(artifact_MHW - area_MHW)  # -log(e^-artifact + e^-area)
        return MaskOutput(mask_logits_MHW, self.iou_head(tokens_M2C[:, 1])[:, 0].float(), area_MHW)


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

    def __init__(self, config: ModelConfig, language: PreTrainedModel | None = None) -> None:
        """`language` is a causal language model of transformers of the width that `config` gives; without it the own decoder is made."""
        super().__init__()
        self.config = config
        self.encoder = FaceEncoder(config)
        self.projector = Projector(config)
        self.language = new_language(config) if language is None else _checked(language, config)
        self.box_encoder = BoxEncoder(config)
        self.mask_decoder = MaskDecoder(config)
        self.mask_backbone = new_backbone(config).requires_grad_(False) if config.mask_encoder == "own" else None
        self.adapters: tuple[str, ...] = ()
        """LoRA adapters within `language`: see `add_adapters`."""

    def encode(self, image_BCHW: Tensor) -> EncoderOutput:
        """What the encoder says of whole faces, with the tokens of the mask decoder's own encoder where it has one."""
        out = self.encoder(image_BCHW)
        if self.mask_backbone is None:
            return out
        with torch.no_grad():
            return out._replace(mask_embeds_BTD=face_tokens(self.mask_backbone, image_BCHW)[:, 1:])

    def embed(self, input_ids_BL: Tensor, box_embeds_KE: Tensor, box_at_K2: Tensor) -> Tensor:
        """Text embeddings (B, L, E) with each `<bbox>` token's replaced by its box's; `box_at_K2` holds (row, column) of these tokens."""
        embeds = self.language.model.embed_tokens(input_ids_BL)
        return embeds.index_put((box_at_K2[:, 0], box_at_K2[:, 1]), box_embeds_KE.to(embeds.dtype))

    def read(self, prefix_embeds_BPE: Tensor, text_embeds_BLE: Tensor, question_BL: Tensor, position_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher-forced pass over faces, each with several questions in one row; return logits_BLV and hidden_states_BLE of the text.

        A token sees the face and what stands before it in its own question: `question_BL` numbers the questions of a row (-1 is padding) and
        `position_BL` counts tokens within each, so that every question is read as if it stood alone behind the face. With a [SEG] adapter the text
        is read twice, and the hidden states are that adapter's: their gradient ends in it, before base, text adapter, prefix and embeddings.
        """
        prefix = prefix_embeds_BPE.shape[1]
        embeds = torch.cat([prefix_embeds_BPE, text_embeds_BLE.to(prefix_embeds_BPE.dtype)], 1)
        face_positions = torch.arange(prefix, device=position_BL.device).expand(len(embeds), -1)
        positions = torch.cat([face_positions, position_BL + prefix], 1)
        seen: dict[str, Any] = {}
        if self.language.config._attn_implementation == PACKED:
            seen["packing"] = packing_of(question_BL, prefix)
        else:
            seen["attention_mask"] = packed_mask(question_BL, prefix)
        if self.language.config._attn_implementation == "eager":  # which adds the mask to the scores: True would be one, and hide nothing
            hidden = ~seen["attention_mask"]
            seen["attention_mask"] = torch.zeros_like(hidden, dtype=embeds.dtype).masked_fill(hidden, torch.finfo(embeds.dtype).min)

        def states(embeds: Tensor) -> Tensor:
            found = self.language.model(inputs_embeds=embeds, position_ids=positions, use_cache=False, **seen)
            return found.last_hidden_state[:, prefix:]

        hidden = states(embeds)
        logits = self.language.lm_head(hidden)
        if SEG_ADAPTER not in self.adapters:
            return logits, hidden
        with seg_decoder(self.language):
            return logits, states(embeds.detach())

    def recompute_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """`context_fn` of torch's checkpoint: a layer computed again on the way back finds the adapter it was read with, long put aside by then."""
        return nullcontext(), seg_decoder(self.language) if _active(self.language) == [SEG_ADAPTER] else nullcontext()

    def check_exportable(self) -> None:
        """Raise ValueError where an engine cannot hold this model, with what to do about it."""
        language = self.language.config
        if not self.config.exportable:
            raise ValueError("a mask decoder with an encoder of its own has no place in an engine; export a model with mask_encoder='shared'")
        if SEG_ADAPTER in self.adapters:
            raise ValueError(SEPARATE_IS_TWO_DECODERS)
        if self.adapters:
            raise ValueError("the language decoder still has its adapter beside it; fold it in with trainer.model.merged")
        heads = language.num_attention_heads
        if language.model_type != "llama" or language.num_key_value_heads != heads or language.head_dim * heads != language.hidden_size:
            raise ValueError(f"the exported decoder is a Llama whose queries share no keys; this {language.model_type} is of another make")


def new_language(config: ModelConfig) -> PreTrainedModel:
    """The own decoder: a small Llama (arXiv:2302.13971) with random weights, tied embeddings."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.lm_width,
            intermediate_size=config.lm_mlp,
            num_hidden_layers=config.lm_layers,
            num_attention_heads=config.lm_heads,
            num_key_value_heads=config.lm_heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            attn_implementation=PACKED,
        )
    )


def _checked(language: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    found = language.config
    if not (hasattr(language, "model") and hasattr(language, "lm_head")):
        raise ValueError(f"{type(language).__name__} is not of Llama's make (.model and .lm_head); choose a Llama, Vicuna or Qwen")
    if found.hidden_size != config.lm_width:
        raise ValueError(f"the language model is {found.hidden_size} wide, lm_width is {config.lm_width}; make the config from its folder")
    if found._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(f"{found._attn_implementation!r} attention takes no mask of packed questions; load the model with 'sdpa' or 'eager'")
    if "sliding_attention" in (getattr(found, "layer_types", None) or ()):
        raise ValueError("the language model has sliding windows, which the mask of packed questions would undo; set use_sliding_window to false")
    return language


def packed_mask(question_BL: Tensor, prefix: int) -> Tensor:
    """Who sees whom, (B, 1, P + L, P + L) bool: causal, the face seen by all, questions blind to each other. Padding sees the face, to see at all."""
    groups = F.pad(question_BL, (prefix, 0), value=-2)
    same = (groups[:, :, None] == groups[:, None, :]) | (groups[:, None, :] == -2)
    return (same & torch.ones_like(same[0]).tril())[:, None]


SEPARATE_IS_TWO_DECODERS = (
    "separate adapters make two language decoders: the base with the text adapter writes, the base with the [SEG] adapter reads the answer again "
    "for its masks; an engine has one. Train with routing 'shared' or 'detached' to merge and export"
)


def add_adapters(model: FiFaMLLM, routing: Routing, *, rank: int = 8, alpha: int = 16, dropout: float = 0.05, train_base: bool = False) -> None:
    """Put LoRA on q_proj and v_proj of the language decoder, with GLaMM's sizes unless others are given.

    The base is frozen but for its token embeddings and head (as in GLaMM: no pretraining filled the rows that the special tokens have there), which
    become float32 as the adapters are. Text is learned by an adapter, masks by the same one (`shared`, `detached`) or by one of their own
    (`separate`). With `train_base` the base stays as it is and learns from text itself, so that only the [SEG] adapter of `separate` is added.
    """
    from peft import LoraConfig, LoraModel

    names = [*([] if train_base else [TEXT_ADAPTER]), *([SEG_ADAPTER] if routing == "separate" else [])]
    if not names:
        raise ValueError(f"with routing {routing!r} a base that is trained itself needs no adapter; leave add_adapters out")
    if model.adapters:
        raise ValueError(f"the model has the adapters {', '.join(model.adapters)} already; add them once, to a new model")
    language = model.language
    trained = [parameter for parameter in language.parameters() if parameter.requires_grad]
    lora = {name: LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=["q_proj", "v_proj"]) for name in names}
    tuner = LoraModel(language, lora, names[0])
    for name in names[1:]:
        tuner.inject_adapter(language, name)
    learning = [table for layer in _adapted(language) for table in (layer.lora_A, layer.lora_B)]
    if not train_base:
        learning += [language.model.embed_tokens, language.lm_head]
        trained = []
    for module in learning:
        module.float()  # bfloat16 would swallow most of what a step adds to a weight
    model.adapters = tuple(names)
    _activate(language, [TEXT_ADAPTER] if TEXT_ADAPTER in names else [])
    for parameter in [*trained, *(parameter for module in learning for parameter in module.parameters())]:
        parameter.requires_grad_(True)


def _adapted(language: PreTrainedModel) -> list[Any]:
    """The layers that peft put in place of linear ones."""
    return [module for module in language.modules() if hasattr(module, "lora_A")]


def _active(language: PreTrainedModel) -> list[str]:
    return next((list(layer.active_adapters) for layer in _adapted(language)), [])


def _activate(language: PreTrainedModel, names: list[str]) -> None:
    for layer in _adapted(language):
        layer.set_adapter(names)


@contextmanager
def seg_decoder(language: PreTrainedModel) -> Iterator[None]:
    """Within, the language model computes with the [SEG] adapter, and that adapter alone takes gradients."""
    active, learns = _active(language), {name: parameter.requires_grad for name, parameter in language.named_parameters()}
    _activate(language, [SEG_ADAPTER])
    for name, parameter in language.named_parameters():
        parameter.requires_grad_(learns[name] and f".{SEG_ADAPTER}." in name)
    try:
        yield
    finally:
        _activate(language, active)
        for name, parameter in language.named_parameters():
            # peft freezes the adapter it puts aside, and autograd drops what arrives at a frozen weight, from passes made before as well
            parameter.requires_grad_(learns[name])


def merged(model: FiFaMLLM) -> FiFaMLLM:
    """Fold the text adapter into the weights below it, in place; the model computes what it did. Raises ValueError for separate adapters."""
    if SEG_ADAPTER in model.adapters:
        raise ValueError(SEPARATE_IS_TWO_DECODERS)
    for name, layer in list(model.language.named_modules()):
        if hasattr(layer, "lora_A"):
            layer.merge(safe_merge=True, adapter_names=[TEXT_ADAPTER])
            parent, _, child = name.rpartition(".")
            setattr(model.language.get_submodule(parent), child, layer.get_base_layer())
    if model.adapters:
        del model.language.peft_config
    model.adapters = ()
    return model
