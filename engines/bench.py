"""How long one bundle takes on this machine, and which settings follow: `fifa-stream engine bench`.

Sizes are interleaved over rounds and every figure is the median: a neighbour's burst of load hits all alike. `make bench` compares with torch.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.analyzer import Analyzer, forgotten
from engines.bundle import open_bundle
from engines.drafts import Drafts

MIN_SECONDS = 0.2
"""A case runs at least this long in each round."""
WORTH_BATCHING = 0.9
"""A larger batch is advised where it costs at most this share of the smaller one's time a face: it makes faces wait for each other."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One row."""

    work: str
    """"score", or "explain": decoding one answer and its masks, the score path not counted."""
    threads: int
    faces: int
    """Together."""
    ms_per_face: float
    tokens_per_s: float | None = None
    """Of "explain"."""


@dataclass(frozen=True, slots=True)
class Advice:
    """Settings that the timings speak for."""

    threads: int
    max_batch: int


Told = Callable[[str], None]


def bench(folder: Path, *, threads: Sequence[int], faces: Sequence[int], rounds: int, told: Told = lambda line: None) -> list[Timing]:
    """Time score and explain path of a bundle on noise; `tokens_per_s` speaks of whatever it writes about it. Raises EngineError.

    Nothing is guessed (`engines.drafts`): it writes the same again and again, and would know it by heart. Few faces together are explained faster.
    """
    cases: list[tuple[str, int, int, Callable[[], int]]] = []
    for count in threads:
        analyzer = Analyzer(open_bundle(folder, threads=count), drafts=Drafts(0))
        size = analyzer.manifest.preprocess.image_size
        noise_BHWC = np.random.default_rng(0).integers(0, 256, (max(faces), size, size, 3), np.uint8)
        for batch in faces:
            crops_BHWC = noise_BHWC[:batch]
            encoded = analyzer.encode(crops_BHWC)

            def score(analyzer: Analyzer = analyzer, crops_BHWC: np.ndarray = crops_BHWC) -> int:
                analyzer.encode(crops_BHWC)
                return 0

            def explain(analyzer: Analyzer = analyzer, encoded: dict[str, np.ndarray] = encoded, batch: int = batch) -> int:
                fresh = forgotten(encoded)
                answers = analyzer.ask(fresh, range(batch), "age", [None] * batch)
                analyzer.masks(fresh, range(batch), answers)
                return sum(len(answer.ids) for answer in answers)

            cases += [("score", count, batch, score), ("explain", count, batch, explain)]
    seconds: dict[int, list[float]] = {number: [] for number in range(len(cases))}
    tokens = [case[3]() for case in cases]  # lazy initialisation, and how much is written
    for turn in range(rounds):
        told(f"round {turn + 1} of {rounds}")
        for number, (_, _, _, work) in enumerate(cases):
            began, calls = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - began) < MIN_SECONDS:
                work()
                calls += 1
            seconds[number].append(elapsed / calls)
    medians = [statistics.median(seconds[number]) for number in range(len(cases))]
    return [
        Timing(work, count, batch, 1000 * median / batch, written / median if work == "explain" else None)
        for (work, count, batch, _), median, written in zip(cases, medians, tokens, strict=True)
    ]


def advise(timings: Sequence[Timing]) -> Advice:
    """Threads with the fastest single face; the batch grows as long as it pays."""
    scored = [timing for timing in timings if timing.work == "score"]
    smallest = min(timing.faces for timing in scored)
    threads = min((timing for timing in scored if timing.faces == smallest), key=lambda timing: timing.ms_per_face).threads
    best = smallest
    costs = {timing.faces: timing.ms_per_face for timing in scored if timing.threads == threads}
    for faces in sorted(costs):
        if costs[faces] <= WORTH_BATCHING * costs[best]:
            best = faces
    return Advice(threads, best)
