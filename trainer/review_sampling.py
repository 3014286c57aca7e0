"""What may be concluded from reviewed faces for their queue: nothing, unless they were drawn at random or the queue's own scores are known.

A queue sorted by score is no random sample. Where the selection hangs on the score alone, faces of like scores still are one (ignorable given the
score), so that each stratum may be weighted by how many faces of the queue it stands for; strata in which nobody looked cannot be spoken of.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.reviews import Sampling
from trainer.reviews import Case

NUM_BINS = 20
"""Equal bins of the calibrated score in which a queue is counted, as the drift baseline of a manifest is."""
EDGES = tuple(np.linspace(0.0, 1.0, NUM_BINS + 1)[[0, 1, 2, 4, 7, 10, 13, 16, 18, 19, 20]].tolist())
"""Strata: whole bins, narrow at both ends, where most faces of a stream lie."""
MIN_STRATUM = 5
"""Reviewed faces from which on a stratum is spoken of."""
MAX_COUNT = 1 << 53
"""Faces in a bin: more are a mistake, and would not add up."""
MAX_UNSEEN = 0.02
"""Share of the queue that may lie in strata which are not: what is said of the queue then leaves it out."""
BY_SCORE = (Sampling.RANDOM, Sampling.SCORE, Sampling.UNCERTAINTY)


class Unrepresentative(StrEnum):
    """Why reviewed faces do not speak of their queue: the whole list."""

    NO_FACES = "no_faces"
    UNKNOWN_SELECTION = "unknown_selection"
    UNSEEN_STRATA = "unseen_strata"
    OTHER_QUEUE = "other_queue"


class SelectionError(ValueError):
    """Nothing is claimed beyond the reviewed faces; the message says why and what would help."""

    def __init__(self, fault: Unrepresentative, message: str) -> None:
        super().__init__(message)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Selected:
    """Faces that speak of their queue, and how loud."""

    cases: tuple[Case, ...]
    weight_N: NDArray[np.float64]
    """Mean 1."""
    basis: str
    """In words."""
    unseen: float
    """Share of the queue that nothing is said of."""


def stratum_of(fake_score: float) -> int:
    """Which of the strata between `EDGES` a calibrated score lies in."""
    return min(int(np.searchsorted(EDGES, fake_score, side="right")) - 1, len(EDGES) - 2)


def stratum_name(stratum: int) -> str:
    """As a table calls it."""
    return f"{EDGES[stratum]:.2f} to {EDGES[stratum + 1]:.2f}"


def in_strata(count_B: Sequence[int]) -> NDArray[np.int64]:
    """Counts of `NUM_BINS` bins as counts of strata."""
    total_S = np.zeros(len(EDGES) - 1, np.int64)
    for number, count in enumerate(count_B):
        total_S[stratum_of((number + 0.5) / NUM_BINS)] += count
    return total_S


def counted_in_bins(fake_scores: Iterable[float]) -> tuple[int, ...]:
    """A queue's scores as counts of `NUM_BINS` equal bins."""
    count_B, _ = np.histogram(np.fromiter(fake_scores, np.float64), bins=NUM_BINS, range=(0.0, 1.0))
    return tuple(int(count) for count in count_B)


def read_totals(path: Path) -> tuple[int, ...]:
    """A JSON list of how many faces of the queue lie in each of 20 equal bins of the calibrated score. Raises ValueError for anything else."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); write a list of {NUM_BINS} counts") from None
    if not isinstance(found, list) or len(found) != NUM_BINS or not all(type(count) is int and 0 <= count <= MAX_COUNT for count in found):
        raise ValueError(f"{path} is no list of {NUM_BINS} counts; count the queue's faces in {NUM_BINS} equal bins of fake_score")
    return tuple(found)


def selected(cases: Sequence[Case], totals: Sequence[int] | None) -> Selected:
    """The cases that speak of the whole queue, with weights by stratum where `totals` (`NUM_BINS` counts) tell its size.

    Without totals only faces that were drawn at random do. With them, faces whose selection hung on the score, and faces of which it is not said how
    they came up: that they were not chosen by what they show is then an assumption, and stands in `basis`. Raises SelectionError.
    """
    scored = [case for case in cases if case.first.fake_score is not None]
    drawn = tuple(case for case in scored if case.sampling is Sampling.RANDOM)
    if totals is None:
        if not drawn:
            raise SelectionError(
                Unrepresentative.NO_FACES if not scored else Unrepresentative.UNKNOWN_SELECTION,
                f"none of {len(scored)} reviewed faces was drawn at random; review some that are, or give the queue's totals (--verdicts, --totals)",
            )
        return _at_random(drawn)
    kept = [case for case in scored if case.sampling is None or case.sampling in BY_SCORE]
    if not kept:
        raise SelectionError(
            Unrepresentative.NO_FACES, f"none of {len(scored)} reviewed faces was selected by score or at random; review some that are"
        )
    stratum_N = np.array([stratum_of(case.first.fake_score or 0.0) for case in kept])
    total_S, seen_S = in_strata(totals), np.bincount(stratum_N, minlength=len(EDGES) - 1)
    if (over := np.flatnonzero(seen_S > total_S)).size:
        where = int(over[0])
        raise SelectionError(
            Unrepresentative.OTHER_QUEUE,
            f"{seen_S[where]} faces of score {stratum_name(where)} were reviewed, the totals count {total_S[where]}; give those of the whole queue",
        )
    spoken_S = seen_S >= np.minimum(MIN_STRATUM, np.maximum(total_S, 1))
    unseen = float(total_S[~spoken_S].sum() / total_S.sum())
    if unseen > MAX_UNSEEN and drawn:  # too few for strata; those drawn at random speak of the queue all the same
        return _at_random(drawn)
    if unseen > MAX_UNSEEN:
        names = ", ".join(stratum_name(int(stratum)) for stratum in np.flatnonzero(~spoken_S & (total_S > 0)))
        raise SelectionError(
            Unrepresentative.UNSEEN_STRATA,
            f"{unseen:.0%} of the queue lie where fewer than {MIN_STRATUM} faces were reviewed (score {names}); review some of these",
        )
    speaks_N = spoken_S[stratum_N]
    weight_N = (total_S[stratum_N] / seen_S[stratum_N])[speaks_N]
    speaking = tuple(case for case, speaks in zip(kept, speaks_N, strict=True) if speaks)
    unsaid = sum(case.sampling is None for case in speaking)
    basis = f"{len(speaking)} faces weighted by stratum of score to the {int(total_S.sum())} faces of the queue" + (
        f"; of {unsaid} it is not said how they came up, and that this hung on the score alone is assumed" if unsaid else ""
    )
    return Selected(speaking, weight_N / weight_N.mean(), basis, unseen)


def _at_random(drawn: tuple[Case, ...]) -> Selected:
    return Selected(drawn, np.ones(len(drawn)), f"{len(drawn)} faces drawn at random from the queue", 0.0)
