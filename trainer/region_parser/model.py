"""Face crop -> FICT: the share of every pixel that each atom and each boundary arc takes.

The annotator finds regions by two landmark models and a page of image rules (`trainer.annotator.regions`). Serving has neither; this network learns
what they draw. It reads pixels alone, not the encoder's tokens: a displacement field read off those is 7 px of 224 wrong (docs/experiments.md), and a
parser of its own stays right when an encoder is trained anew.

Shapes: B faces, C channels, H W pixels, A the 112 atoms, G cells along a side of the answer.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.regions import NUM_ATOMS, NUM_CHANNELS

WIDTHS = 24, 48, 96, 144, 160
"""Channels at 1/2, 1/4, ... 1/32 of the crop's side."""
EXPANSION = 3


class RegionParser(nn.Module):
    """A U-Net (arXiv:1505.04597) whose coarse levels are ConvNeXt blocks (arXiv:2201.03545): 0.8 GMAC, 1.8 M weights at 224 px."""

    def __init__(self, grid: int = 64) -> None:
        """`grid` cells along a side of what `forward` returns: those of the mask decoder."""
        super().__init__()
        self.grid = grid
        self.stem = _convolution(3, WIDTHS[0], stride=2)
        self.downs = nn.ModuleList(_convolution(before, after, stride=2) for before, after in pairwise(WIDTHS))
        self.levels = nn.ModuleList([_Residual(WIDTHS[1]), _Residual(WIDTHS[2]), _wide(WIDTHS[3], 2), _wide(WIDTHS[4], 3)])
        self.laterals = nn.ModuleList(nn.Conv2d(before, after, 1, bias=False) for after, before in pairwise(WIDTHS[1:]))
        self.ups = nn.ModuleList([_Residual(WIDTHS[1]), _Residual(WIDTHS[2]), _wide(WIDTHS[3], 1)])
        self.head = nn.Sequential(_convolution(WIDTHS[1], 2 * WIDTHS[1]), nn.Conv2d(2 * WIDTHS[1], NUM_CHANNELS + 1, 1))

    def logits(self, image_BCHW: Tensor) -> Tensor:
        """(B, 121, H/4, W/4): the atoms, the arcs, no arc. Reads ImageNet-normalised float32 crops."""
        x, skipped = self.stem(image_BCHW), []
        for down, level in zip(self.downs, self.levels, strict=True):
            x = level(down(x))
            skipped.append(x)
        for lateral, up, finer in zip(reversed(self.laterals), reversed(self.ups), reversed(skipped[:-1]), strict=True):
            x = up(finer + F.interpolate(lateral(x), size=finer.shape[-2:], mode="bilinear", align_corners=False))
        found: Tensor = self.head(x)
        return found

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, 120, G, G) float32 in [0, 1]: what each atom of `fict.cells(112)` takes of a cell, together all, then what each arc takes."""
        fine = F.interpolate(self.logits(image_BCHW), size=(2 * self.grid, 2 * self.grid), mode="bilinear", align_corners=False)
        return F.avg_pool2d(torch.cat([_shares(fine[:, :NUM_ATOMS]), _shares(fine[:, NUM_ATOMS:])[:, :-1]], 1), 2)


def _shares(logits_BCHW: Tensor) -> Tensor:
    """Softmax over channels, spelled out: along an axis that is not the last, ONNX Runtime's takes longer than all else of the graph."""
    powers = (logits_BCHW - logits_BCHW.amax(1, keepdim=True)).exp()
    return powers / powers.sum(1, keepdim=True)


def every_second(coarse_BCHW: Tensor, phase: tuple[int, int]) -> Tensor:
    """What twofold bilinear interpolation puts on every second row and column, from `phase` (0 or 1 each) on: a quarter of the work."""
    for axis, odd in zip((-2, -1), phase, strict=True):
        size = coarse_BCHW.shape[axis]
        beside = torch.arange(size, device=coarse_BCHW.device) + (1 if odd else -1)
        coarse_BCHW = 0.75 * coarse_BCHW + 0.25 * coarse_BCHW.index_select(axis, beside.clamp(0, size - 1))
    return coarse_BCHW


def _convolution(before: int, after: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True))


class _Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut (arXiv:1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(x_BCHW + self.second(self.first(x_BCHW)))


class _Wide(nn.Module):
    """Looks far by a 7x7 convolution of each channel, mixes channels by two products."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.look = nn.Sequential(nn.Conv2d(width, width, 7, 1, 3, groups=width, bias=False), nn.BatchNorm2d(width))
        self.mix = nn.Sequential(nn.Conv2d(width, EXPANSION * width, 1), nn.ReLU(inplace=True), nn.Conv2d(EXPANSION * width, width, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        mixed: Tensor = x_BCHW + self.mix(self.look(x_BCHW))
        return mixed


def _wide(width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(_Wide(width) for _ in range(blocks)))
