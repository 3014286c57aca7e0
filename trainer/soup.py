"""Encoders of several engines and runs averaged weight by weight: one that costs what each of them cost (model soups, arXiv:2203.05482).

It works where the encoders descend from one another, as `small` and `small_continued` do: their weights lie in one basin.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from trainer.config import TrainConfig
from trainer.model import FiFaMLLM
from trainer.warm_start import load_encoder


def average_encoders(config: TrainConfig, sources: Sequence[Path], shares: Sequence[float]) -> FiFaMLLM:
    """A model whose encoder is the mean of the sources' under `shares`; all else begins at random under the language stage's seed.

    A source is a sealed bundle or a finished stage of a run (`RUN/vision`). Raises ValueError for shares that are not one for each source or do not
    sum to 1 and for encoders of other sizes, FileNotFoundError for a folder that is neither, and what `load_encoder` raises.
    """
    if len(shares) != len(sources) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"{len(sources)} encoders and the shares {', '.join(f'{share:g}' for share in shares)}; give one for each, with the sum 1")
    torch.manual_seed(config.language.seed)
    model, other = FiFaMLLM(config.model), FiFaMLLM(config.model)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.zero_()
        for source, share in zip(sources, shares, strict=True):
            load_encoder(other, source)
            for parameter, added in zip(model.encoder.parameters(), other.encoder.parameters(), strict=True):
                parameter.add_(added, alpha=share)
    return model
