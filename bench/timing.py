"""Cases that take turns: a neighbour's burst of load then hits all alike, and a ratio is taken within a round before the median over rounds.

CPU seconds are of the whole process, all threads: on a shared machine they are the figure to trust.
"""

import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import track

MIN_SECONDS = 0.3
"""A case runs at least this long in each round: one call of the short ones would time the clock."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Sample:
    """One call, as the mean of one round."""

    wall_s: float
    cpu_s: float


def interleaved(cases: Mapping[Key, Callable[[], object]], rounds: int, console: Console, what: str) -> dict[Key, list[Sample]]:
    """One sample of every case in every round; `what` stands beside the progress."""
    for work in cases.values():
        work()  # allocations and lazy initialisation
    samples: dict[Key, list[Sample]] = {key: [] for key in cases}
    for _ in track(range(rounds), description=what, console=console):
        for key, work in cases.items():
            gc.collect()
            samples[key].append(sample(work))
    return samples


def sample(work: Callable[[], object]) -> Sample:
    """Call again and again for `MIN_SECONDS`."""
    began, cpu, calls = time.perf_counter(), time.process_time(), 0
    while (elapsed := time.perf_counter() - began) < MIN_SECONDS:
        work()
        calls += 1
    return Sample(elapsed / calls, (time.process_time() - cpu) / calls)


def wall_ms(samples: Sequence[Sample]) -> float:
    """Median milliseconds of a call."""
    return 1000 * statistics.median(one.wall_s for one in samples)


def cpu_ms(samples: Sequence[Sample]) -> float:
    """Median CPU milliseconds of a call."""
    return 1000 * statistics.median(one.cpu_s for one in samples)


def ratios(over: Sequence[Sample], under: Sequence[Sample]) -> tuple[float, float]:
    """Wall and CPU time of one case over another's, round by round; the medians."""
    pairs = list(zip(over, under, strict=True))
    return statistics.median(a.wall_s / b.wall_s for a, b in pairs), statistics.median(a.cpu_s / b.cpu_s for a, b in pairs)


def beyond(whole: Sequence[Sample], part: Sequence[Sample]) -> list[Sample]:
    """What one case takes more than another, round by round."""
    return [Sample(a.wall_s - b.wall_s, a.cpu_s - b.cpu_s) for a, b in zip(whole, part, strict=True)]
