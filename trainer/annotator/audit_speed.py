"""How fast annotator processes are and whether they grow: pairs a second at one and two workers, memory after many pairs."""

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from multiprocessing.synchronize import Barrier
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from trainer.annotator.annotate import Annotator
from trainer.faces import Face

Pair = tuple[Face, Face]
"""A real face and its fake."""
WARM_UP = 5
"""Pairs that each process annotates before the clock starts: the first ones load models and tables."""
START_SECONDS = 300.0
"""A process that is not ready by then has failed, and the measurement with it."""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started inside run their compute libraries on one thread."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def pairs_of(faces: Sequence[Face], count: int) -> list[Pair]:
    """The first `count` fakes that have their twin among `faces`. Raises ValueError where there is none."""
    reals = {(face.dataset, face.name): face for face in faces if not face.is_fake}
    pairs = [(reals[face.dataset, face.real_twin], face) for face in faces if face.real_twin and (face.dataset, face.real_twin) in reals]
    if not pairs:
        raise ValueError("speed is measured on pairs, but no fake among these faces has its real twin there; load dfdc or stargan")
    return pairs[:count]


def throughput(pairs: Sequence[Pair], *, workers: int, each: int) -> float:
    """Pairs a second of `workers` processes, one thread each, decoding included; every process annotates `each` pairs, with repetition."""
    runs = _run(pairs, workers, (each,))
    started, ended = min(run[0][0] for run in runs), max(run[-1][0] for run in runs)
    return workers * each / (ended - started)


def resident_bytes(pairs: Sequence[Pair], marks: Sequence[int]) -> list[int]:
    """Resident memory of one process after each of the ascending numbers of pairs. Linux only (reads /proc)."""
    return [resident for _, resident in _run(pairs, 1, marks)[0][1:]]


def _run(pairs: Sequence[Pair], workers: int, marks: Sequence[int]) -> list[list[tuple[float, int]]]:
    """Of each process, (seconds on the common clock, resident bytes) at its start and at each mark."""
    context = multiprocessing.get_context("spawn")
    with one_thread_each(), ProcessPoolExecutor(workers, context, _begin, (context.Barrier(workers),)) as pool:
        return list(pool.map(_work, [list(pairs)] * workers, range(workers), [tuple(marks)] * workers))


_start: list[Barrier] = []


def _begin(start: Barrier) -> None:
    cv2.setNumThreads(1)
    _start.append(start)


def _work(pairs: list[Pair], number: int, marks: tuple[int, ...]) -> list[tuple[float, int]]:
    annotator = Annotator()
    images = cycle(pairs[number:] + pairs[:number])
    _annotate(annotator, islice(images, WARM_UP))
    _start[0].wait(START_SECONDS)  # every process takes one task, because none returns before all have begun
    seen = [(time.monotonic(), _resident())]
    done = 0
    for mark in marks:
        _annotate(annotator, islice(images, mark - done))
        done = mark
        seen.append((time.monotonic(), _resident()))
    return seen


def _annotate(annotator: Annotator, pairs: Iterator[Pair]) -> None:
    for real, fake in pairs:
        annotator.pair(_decoded(real), _decoded(fake), forgery_type=fake.forgery_type or "identity_swap")


def _decoded(face: Face) -> NDArray[np.uint8]:
    return np.ascontiguousarray(face.image())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
