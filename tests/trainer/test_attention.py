"""Packed attention against the mask it stands for, and attention spelled out against torch's."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.attention import PACKED, attend, packing_of
from trainer.config import tiny
from trainer.model import FiFaMLLM

QUESTION = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2], [0, 0, 0, 0, 0, 1, -1, -1], [-1] * 8])
IS_TOKEN = QUESTION >= 0


def test_packed_rows_are_read_and_learned_from_as_under_the_whole_mask() -> None:
    torch.manual_seed(0)
    packed = FiFaMLLM(tiny().model)
    masked = copy.deepcopy(packed)
    masked.language.set_attn_implementation("sdpa")
    assert packed.language.config._attn_implementation == PACKED
    width, prefix_tokens = packed.config.lm_width, packed.config.num_prefix_tokens
    prefix, text = torch.randn(3, prefix_tokens, width), torch.randn(3, 8, width)
    position = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 0, 0, 0], [0] * 8])
    found: list[tuple[Tensor, Tensor, list[Tensor]]] = []
    for model in (packed, masked):
        own_prefix = prefix.clone().requires_grad_()
        logits, hidden = model.read(own_prefix, text, QUESTION, position)
        (logits[IS_TOKEN].square().mean() + hidden[IS_TOKEN].square().mean()).backward()
        gradients = [parameter.grad for parameter in model.language.parameters() if parameter.grad is not None]
        assert own_prefix.grad is not None
        found.append((logits[IS_TOKEN], hidden[IS_TOKEN], [own_prefix.grad, *gradients]))
    (logits, hidden, gradients), (wanted_logits, wanted_hidden, wanted_gradients) = found
    torch.testing.assert_close(logits, wanted_logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(hidden, wanted_hidden, atol=1e-5, rtol=1e-4)
    assert len(gradients) == len(wanted_gradients) > 10
    for gradient, wanted in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-3)


def test_a_packing_names_every_token_once() -> None:
    packing = packing_of(QUESTION, prefix=5)
    named = [
        (row, at)
        for bucket in packing.buckets
        for row, at in zip(bucket.row_N1.expand_as(bucket.at_NT)[bucket.is_token_NT].tolist(), bucket.at_NT[bucket.is_token_NT].tolist(), strict=True)
    ]
    assert sorted(named) == [(row, 5 + at) for row, at in IS_TOKEN.nonzero().tolist()]


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_spelled_out_is_torchs(masked: bool, scale: float | None) -> None:
    q, k, v = (torch.randn(2, 3, tokens, 8) for tokens in (4, 6, 6))
    mask = torch.ones(4, 6, dtype=torch.bool).tril(2) if masked else None
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    torch.testing.assert_close(attend(q.requires_grad_(), k, v, mask, scale), wanted, atol=1e-5, rtol=1e-4)
