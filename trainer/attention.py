"""Attention as training on CPUs wants it: spelled out, and blind where packed questions do not see each other.

Shapes: B rows, N questions of a bucket, H heads, Q queries, L tokens of a row (P of them the face's prefix, then T of text), D width of a head.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

PACKED = "fifa_packed"
"""Name of `packed_attention` among transformers' attention implementations."""
BUCKET = 16
"""Questions that are padded to one length: those of a step, sorted by length and cut into buckets."""


def attend(q_BHQD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Scaled dot product attention, (B, H, Q, D); `mask` (bool, broadcast to (B, H, Q, L)) is True where a query may look.

    torch's fused kernel, but for training on a CPU: its way back in bfloat16 takes four times as long there as these lines (8 for masks).
    """
    if not (q_BHQD.requires_grad and q_BHQD.device.type == "cpu"):
        return F.scaled_dot_product_attention(q_BHQD, k_BHLD, v_BHLD, attn_mask=mask, scale=scale)
    scores = (q_BHQD * (scale or q_BHQD.shape[-1] ** -0.5)) @ k_BHLD.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ v_BHLD


class Bucket(NamedTuple):
    """Questions of about one length, gathered out of their rows."""

    row_N1: Tensor
    at_NT: Tensor
    """Column of each token within its row, the prefix counted; padding repeats the last."""
    is_token_NT: Tensor
    seen_TL: Tensor
    """What each place of a question may look at: the prefix and what stands before."""


class Packing(NamedTuple):
    """Which tokens of packed rows belong together; made once a step, read by every layer."""

    prefix: int
    seen_PP: Tensor
    buckets: tuple[Bucket, ...]
    row_K: Tensor
    """Row and column of all K tokens of questions, bucket by bucket."""
    at_K: Tensor


def packing_of(question_BL: Tensor, prefix: int) -> Packing:
    """Where the questions of rows stand, from the number of each token's question (-1 is padding); its tokens stand side by side."""
    device = question_BL.device
    spans: list[tuple[int, int, int]] = []
    for row, numbers_L in enumerate(question_BL.cpu()):
        kinds, counts = torch.unique_consecutive(numbers_L, return_counts=True)
        start = prefix
        for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True):
            if kind >= 0:
                spans.append((count, row, start))
            start += count
    spans.sort()
    buckets = tuple(_bucket(spans[start : start + BUCKET], prefix, device) for start in range(0, len(spans), BUCKET))
    nothing = torch.zeros(0, dtype=torch.long, device=device)
    row_K = torch.cat([nothing, *(bucket.row_N1.expand_as(bucket.at_NT)[bucket.is_token_NT] for bucket in buckets)])
    return Packing(
        prefix, _causal(prefix, 0, device), buckets, row_K, torch.cat([nothing, *(bucket.at_NT[bucket.is_token_NT] for bucket in buckets)])
    )


def _bucket(spans: Sequence[tuple[int, int, int]], prefix: int, device: torch.device) -> Bucket:
    length_N1, row_N1, start_N1 = torch.tensor(spans, device=device).T[..., None]
    step_T = torch.arange(int(length_N1.max()), device=device)
    return Bucket(row_N1, start_N1 + torch.minimum(step_T, length_N1 - 1), step_T < length_N1, _causal(len(step_T), prefix, device))


def _causal(tokens: int, before: int, device: torch.device) -> Tensor:
    """(tokens, before + tokens) bool: all that stands before, then oneself and what came earlier."""
    return torch.ones(tokens, before + tokens, dtype=torch.bool, device=device).tril(before)


def packed_attention(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, *, packing: Packing, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:  # fmt: skip
    """An attention implementation of transformers (query (B, H, L, D), keys and values of as many heads or fewer) for rows that `packing` describes.

    The face's tokens see those before them, a question's see the face and what stands before them in the question: the mask of
    `model.packed_mask`, of which most is blind, without computing what is blind. Returns (B, L, H, D), zeros for padding.
    """
    prefix, groups = packing.prefix, query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    face_key, face_value = key[:, :, :prefix], value[:, :, :prefix]
    by_token = [x.transpose(1, 2) for x in (query, key, value)]
    face = attend(query[:, :, :prefix], face_key, face_value, packing.seen_PP, scaling).transpose(1, 2)
    read = []
    for row_N1, at_NT, is_token_NT, seen_TL in packing.buckets:
        q, k, v = (x[row_N1, at_NT].transpose(1, 2) for x in by_token)
        row_N = row_N1[:, 0]
        seen_key, seen_value = torch.cat([face_key[row_N], k], 2), torch.cat([face_value[row_N], v], 2)
        read.append(attend(q, seen_key, seen_value, seen_TL, scaling).transpose(1, 2)[is_token_NT])
    out = torch.cat([face, torch.zeros_like(by_token[0][:, prefix:])], 1)
    return (out.index_put((packing.row_K, packing.at_K), torch.cat(read)) if read else out), None


AttentionInterface.register(PACKED, packed_attention)
