"""The parts of FiFa-MLLM where position matters: dropped patches, merged patches, packed questions, one mask for each [SEG]."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engines.preprocess import IMAGE_MEAN, IMAGE_STD
from trainer.backbones import CLIP_MEAN, CLIP_STD, block_of
from trainer.config import ModelConfig, small, tiny
from trainer.model import NUM_STATISTICS, FaceEncoder, FiFaMLLM, MaskDecoder, Projector

CONFIG = tiny().model
CLIP_CONFIG = replace(CONFIG, encoder_kind="clip")


@pytest.fixture(scope="module", params=[CONFIG, CLIP_CONFIG], ids=["dinov2", "clip"])
def encoder(request: pytest.FixtureRequest) -> FaceEncoder:
    torch.manual_seed(0)
    return FaceEncoder(request.param).eval()


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, CONFIG.image_size, CONFIG.image_size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_keeping_every_patch_is_keeping_none_back(encoder: FaceEncoder) -> None:
    whole, kept = encoder(images(2)), encoder(images(2), torch.arange(CONFIG.grid**2))
    for one, other in zip(whole, kept, strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_kept_patches_keep_their_places(encoder: FaceEncoder) -> None:
    order = torch.randperm(CONFIG.grid**2, generator=torch.Generator().manual_seed(2))
    whole, turned = encoder(images(1)), encoder(images(1), order)
    torch.testing.assert_close(whole.artifact_logits_BT[:, order], turned.artifact_logits_BT, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole.det_logit_B, turned.det_logit_B, atol=1e-5, rtol=1e-5)
    assert encoder(images(1), order[:5]).artifact_logits_BT.shape == (1, 5)


@torch.no_grad()
def test_clip_sees_the_pixels_it_was_trained_on() -> None:
    torch.manual_seed(0)
    encoder = FaceEncoder(CLIP_CONFIG).eval()
    seen = []
    encoder.backbone.embeddings.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels_HWC = np.random.default_rng(0).uniform(size=(56, 56, 3)).astype(np.float32)
    encoder(torch.from_numpy((pixels_HWC - IMAGE_MEAN) / IMAGE_STD).permute(2, 0, 1)[None])
    wanted = torch.from_numpy((pixels_HWC - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)).permute(2, 0, 1)[None]
    torch.testing.assert_close(seen[0], wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_encoder_is_one_graph_for_any_batch(encoder: FaceEncoder) -> None:
    """What the ONNX exporter needs of it."""
    program = torch.export.export(encoder, (images(2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for one, other in zip(program.module()(images(3)), encoder(images(3)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_the_names_that_checkpoints_hold_stay() -> None:
    with torch.device("meta"):
        names = set(FiFaMLLM(small().model).state_dict())
    for name in (
        "encoder.backbone.embeddings.position_embeddings",
        "encoder.backbone.embeddings.patch_embeddings.projection.weight",
        "encoder.backbone.encoder.layer.6.attention.q_proj.weight",
        "encoder.backbone.layernorm.weight",
        "language.model.embed_tokens.weight",
        "language.model.layers.5.self_attn.q_proj.weight",
        "language.lm_head.weight",
    ):
        assert name in names
    assert not any(name.startswith("mask_backbone") for name in names)


@pytest.mark.parametrize("config", [CONFIG, CLIP_CONFIG], ids=["dinov2", "clip"])
def test_every_parameter_of_an_encoder_knows_its_depth(config: ModelConfig) -> None:
    depths = {name: block_of(name, config.encoder_layers) for name, _ in FaceEncoder(config).named_parameters()}
    assert {depth for name, depth in depths.items() if name.startswith("backbone.")} == {-1, 0, 1}
    assert {depth for name, depth in depths.items() if not name.startswith("backbone.")} == {None}
    assert {depth for name, depth in depths.items() if "position" in name} == {-1}
    assert {depth for name, depth in depths.items() if "post_layernorm" in name or name.startswith("backbone.layernorm")} == {1}


@torch.no_grad()
def test_the_prefix_merges_neighbours_row_by_row() -> None:
    torch.manual_seed(0)
    projector, grid = Projector(CONFIG).eval(), CONFIG.grid
    embeds, logits = torch.randn(1, grid**2, CONFIG.encoder_width), torch.randn(1, grid**2)
    queries, statistics = torch.randn(1, 2, CONFIG.query_width), torch.randn(1, grid**2, NUM_STATISTICS)
    before = projector(embeds, logits, queries, statistics)
    assert before.shape == (1, CONFIG.num_prefix_tokens, CONFIG.lm_width)
    for patch in range(grid**2):
        changed, changed_statistics = logits.clone(), statistics.clone()
        changed[0, patch] += 3
        changed_statistics[0, patch, 2] += 3
        row, column = divmod(patch, grid)
        for after in (projector(embeds, changed, queries, statistics), projector(embeds, logits, queries, changed_statistics)):
            moved = (after - before).abs().amax(-1)[0] > 0
            assert moved.nonzero().flatten().tolist() == [row // 2 * (grid // 2) + column // 2]


@torch.no_grad()
def test_a_mask_depends_on_its_own_row_alone() -> None:
    torch.manual_seed(0)
    decoder, grid = MaskDecoder(CONFIG).eval(), CONFIG.grid
    arguments = torch.randn(3, grid**2, CONFIG.encoder_width), torch.randn(3, grid**2), torch.randn(3, CONFIG.lm_width)
    out, alone = decoder(*arguments), decoder(*(tensor[1:2] for tensor in arguments))
    assert out.mask_logits_MHW.shape == out.area_logits_MHW.shape == (3, 4 * grid, 4 * grid) and out.iou_logit_M.shape == (3,)
    for whole, row in zip(out, alone, strict=True):
        torch.testing.assert_close(whole[1:2], row, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_reading_looks_back_only_and_within_its_question() -> None:
    torch.manual_seed(0)
    model = FiFaMLLM(CONFIG).eval()
    prefix, text = torch.randn(1, CONFIG.num_prefix_tokens, CONFIG.lm_width), torch.randn(1, 8, CONFIG.lm_width)
    question, position = torch.tensor([[0, 0, 0, 1, 1, 1, 1, -1]]), torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0]])
    logits, hidden = model.read(prefix, text, question, position)
    assert logits.shape == (1, 8, CONFIG.vocab_size) and hidden.shape == (1, 8, CONFIG.lm_width)
    for changed, moved in ((1, [1, 2]), (4, [4, 5, 6]), (7, [7])):
        other = text.clone()
        other[0, changed] += 1
        after, _ = model.read(prefix, other, question, position)
        assert ((after - logits).abs().amax(-1)[0] > 1e-4).nonzero().flatten().tolist() == moved


@pytest.mark.parametrize(
    ("wrong", "words"),
    [pytest.param({"image_size": 225}, "no multiple of patch_size", id="size"), pytest.param({"image_size": 14 * 15}, "even grid", id="grid")],
)
def test_sizes_that_do_not_divide_are_refused(wrong: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelConfig(**wrong)
