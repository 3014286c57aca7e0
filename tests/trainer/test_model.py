"""The parts of FiFa-MLLM where position matters: dropped patches, merged patches, one mask for each [SEG]."""

import numpy as np
import pytest
import torch

from trainer.config import ModelConfig, tiny
from trainer.model import FaceEncoder, FiFaMLLM, MaskDecoder, Projector

CONFIG = tiny().model


@pytest.fixture(scope="module")
def encoder() -> FaceEncoder:
    torch.manual_seed(0)
    return FaceEncoder(CONFIG).eval()


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
def test_the_prefix_merges_neighbours_row_by_row() -> None:
    torch.manual_seed(0)
    projector, grid = Projector(CONFIG).eval(), CONFIG.grid
    embeds, logits = torch.randn(1, grid**2, CONFIG.encoder_width), torch.randn(1, grid**2)
    queries = torch.randn(1, 2, CONFIG.query_width)
    before = projector(embeds, logits, queries)
    assert before.shape == (1, CONFIG.num_prefix_tokens, CONFIG.lm_width)
    for patch in range(grid**2):
        changed = logits.clone()
        changed[0, patch] += 3
        moved = (projector(embeds, changed, queries) - before).abs().amax(-1)[0] > 0
        row, column = divmod(patch, grid)
        assert moved.nonzero().flatten().tolist() == [row // 2 * (grid // 2) + column // 2]


@torch.no_grad()
def test_a_mask_depends_on_its_own_row_alone() -> None:
    torch.manual_seed(0)
    decoder, grid = MaskDecoder(CONFIG).eval(), CONFIG.grid
    arguments = torch.randn(3, grid**2, CONFIG.encoder_width), torch.randn(3, grid**2), torch.randn(3, CONFIG.lm_width)
    masks, confidence = decoder(*arguments)
    assert masks.shape == (3, 4 * grid, 4 * grid) and confidence.shape == (3,)
    alone, alone_confidence = decoder(*(tensor[1:2] for tensor in arguments))
    torch.testing.assert_close(masks[1:2], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(confidence[1:2], alone_confidence, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_reading_looks_back_only() -> None:
    torch.manual_seed(0)
    model = FiFaMLLM(CONFIG).eval()
    prefix, ids = torch.randn(1, CONFIG.num_prefix_tokens, CONFIG.lm_width), torch.arange(8)[None]
    logits, hidden = model.read(prefix, ids)
    assert logits.shape == (1, 8, CONFIG.vocab_size) and hidden.shape == (1, 8, CONFIG.lm_width)
    changed = ids.clone()
    changed[0, 5] = 99
    after, _ = model.read(prefix, changed)
    torch.testing.assert_close(after[:, :5], logits[:, :5])
    assert not np.allclose(after[:, 5:], logits[:, 5:])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [pytest.param({"image_size": 225}, "no multiple of patch_size", id="size"), pytest.param({"image_size": 14 * 15}, "even grid", id="grid")],
)
def test_sizes_that_do_not_divide_are_refused(wrong: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelConfig(**wrong)
