"""What decoding costs on this machine: the engine's decode loop against torch eager under the same loop, with the same weights, faces and threads.

    python -m bench.decode --faces 1 4 8 16 --guesses 0 3 --rounds 5 --threads 1

Milliseconds are those of a face, without encoder and masks. Guesses (`engines.drafts`) come from what other faces than the measured ones were told,
and nothing is learned while the clock runs: a benchmark repeats itself, and would soon know its answers by heart.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.faces import Frame, frames
from bench.timing import beyond, cpu_ms, interleaved, ratios, wall_ms
from engines.analyzer import Analyzer
from engines.bundle import Bundle, bundled_engine, open_bundle
from engines.drafts import GUESSES, Drafts

NUM_EXPLAINED = 48
"""Frames that the engine finds most fake: what they are told has sentences and masks. Every third is measured, the others are known."""


@dataclass(frozen=True, slots=True)
class Row:
    """One number of faces on one backend."""

    backend: str
    guesses: int
    threads: int
    faces: int
    tokens: int
    tokens_per_step: float
    """Of a row; the first token of an answer is no step."""
    ms_per_face: float
    cpu_ms_per_face: float
    tokens_per_s: float
    tokens_per_cpu_s: float
    question_ms_per_face: float
    """Of it, reading face and question, before the first token."""
    torch_ratio: float | None
    """Torch's time, token by token, over this one; None without torch."""
    torch_cpu_ratio: float | None
    torch_ratio_after_question: float | None
    """The same of what comes behind the question."""


class Known(Drafts):
    """Guesses from what it was told before, learns nothing more, and counts how often it is asked: once a step and row."""

    def __init__(self, guesses: int, answers: Sequence[Sequence[int]]) -> None:
        super().__init__(guesses)
        for answer in answers:
            super().learn(answer)
        self.asked = 0

    def learn(self, ids: Sequence[int]) -> None:
        """Nothing."""

    def guess(self, ids: Sequence[int], room: int) -> list[int]:
        """See `Drafts.guess`."""
        self.asked += 1
        return super().guess(ids, room)


def measured_and_known(judged: Sequence[Frame]) -> tuple[list[Frame], list[Frame]]:
    """Of the frames that are explained at length: those that are measured, and those whose explanations are known."""
    explained = judged[:NUM_EXPLAINED]
    return list(explained[::3]), [frame for number, frame in enumerate(explained) if number % 3]


def crops_of(chosen: Sequence[Frame]) -> NDArray[np.uint8]:
    """(N, size, size, 3)."""
    return np.stack([frame.crop_HWC for frame in chosen])


def answers_to(analyzer: Analyzer, chosen: Sequence[Frame]) -> list[list[int]]:
    """What these frames are told."""
    return [answer.ids for answer in analyzer.decode(analyzer.encode(crops_of(chosen))["prefix_embeds"], "age")]


def compare(
    backends: dict[str, Bundle], judged: Sequence[Frame], *, faces: Sequence[int], guesses: Sequence[int], threads: int, rounds: int, console: Console
) -> list[Row]:
    """Time every backend at every number of faces and guesses; torch, where it is among them, is told its threads by whoever calls."""
    measured, known = measured_and_known(judged)
    engine = Analyzer(backends["onnxruntime"], drafts=Drafts(0))
    told = answers_to(engine, known)
    prefix_BPE = engine.encode(crops_of(measured))["prefix_embeds"]
    texts = [answer.ids for answer in engine.decode(prefix_BPE, "age")]
    cases, steps = {}, {}
    for backend, count, guessed in product(backends, guesses, faces):
        drafts = Known(count, told)
        analyzer = Analyzer(backends[backend], drafts=drafts)
        if [answer.ids for answer in analyzer.decode(prefix_BPE[:guessed], "age")] != texts[:guessed]:
            console.print(f"{backend} with {count} guesses writes other texts: its times are of other work")
        steps[backend, count, guessed] = drafts.asked
        cases[backend, count, guessed] = lambda analyzer=analyzer, number=guessed: analyzer.decode(prefix_BPE[:number], "age")
        cases[backend, "question", guessed] = lambda analyzer=analyzer, number=guessed: analyzer.force(prefix_BPE[:number], [""] * number, "age")
    samples = interleaved(cases, rounds, console, f"decoding, {threads} threads")
    rows = []
    for backend, count, number in product(backends, guesses, faces):
        taken, question = samples[backend, count, number], samples[backend, "question", number]
        tokens = sum(len(ids) + 1 for ids in texts[:number])
        compared: tuple[float | None, ...] = (None, None, None)
        if "torch" in backends and 0 in guesses:
            torch, torch_question = samples["torch", 0, number], samples["torch", "question", number]
            compared = *ratios(torch, taken), ratios(beyond(torch, torch_question), beyond(taken, question))[0]
        wall, cpu = wall_ms(taken), cpu_ms(taken)
        rows.append(
            Row(
                backend, count, threads, number, tokens, (tokens - number) / steps[backend, count, number],
                wall / number, cpu / number, 1000 * tokens / wall, 1000 * tokens / cpu, wall_ms(question) / number, *compared,
            )
        )  # fmt: skip
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--guesses", type=int, nargs="+", default=[0, GUESSES])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engine", type=Path, default=bundled_engine(), help="an engine bundle")
    parser.add_argument("--no-torch", action="store_true", help="time the engine alone")
    options = parser.parse_args()
    console = Console()
    bundle = open_bundle(options.engine, threads=options.threads)
    backends = {"onnxruntime": bundle}
    if not options.no_torch:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when torch is loaded: its threads do not spin either
        import torch

        from bench.torch_reference import torch_bundle
        from trainer.config import small
        from trainer.warm_start import recovered_model

        torch.set_num_threads(options.threads)
        backends["torch"] = torch_bundle(bundle, recovered_model(bundle.folder, small().model))
    rows = compare(
        backends, frames(bundle), faces=options.faces, guesses=options.guesses, threads=options.threads, rounds=options.rounds, console=console
    )  # fmt: skip
    table = Table(
        "backend", "guesses", "faces", "tokens", "a step", "ms", "CPU ms", "tok/s", "tok/CPU s", "question ms", "torch / this", "CPU", "steps"
    )
    for row in rows:
        figures = (row.ms_per_face, row.cpu_ms_per_face, row.tokens_per_s, row.tokens_per_cpu_s, row.question_ms_per_face)
        ratio_columns = (row.torch_ratio, row.torch_cpu_ratio, row.torch_ratio_after_question)
        compared = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratio_columns]
        table.add_row(
            row.backend, str(row.guesses), str(row.faces), str(row.tokens), f"{row.tokens_per_step:.2f}", *(f"{x:.1f}" for x in figures), *compared
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
