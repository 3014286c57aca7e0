"""What decoding costs on this machine: the engine's decode loop against torch eager under the same loop, with the same weights, faces and threads.

    python bench/decode.py --faces 1 4 8 16 --rounds 5 --threads 1 --checkpoint RUN/model

Backends are interleaved, and a ratio (torch / engine) is taken within a round before the median over rounds, so a neighbour's load hits both alike;
CPU time is the figure to trust on a shared machine. Milliseconds are those of a face, without encoder and masks. The faces are the demo's manipulated
ones, so texts differ in length.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from engines.analyzer import Analyzer
from engines.bundle import Bundle, bundled_engine, open_bundle
from fifa_stream.decode import DecodeLimits, decode_image
from fifa_stream.demo_photographs import demo_frames
from fifa_stream.detect import DetectLimits, FaceDetector

MIN_SECONDS = 0.5
"""A case repeats within a round at least this long."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one backend."""

    wall_s: float
    cpu_s: float
    tokens: int


def prefixes(bundle: Bundle, count: int) -> NDArray[np.float32]:
    """(count, P, E): the demo's manipulated faces, from the beginning again where there are fewer."""
    detector = FaceDetector(bundle.engines["face_detector"], crop_size=bundle.manifest.preprocess.image_size, limits=DetectLimits())
    manipulated = [frame.encoded for frame in demo_frames() if frame.kind == "manipulated"]
    frames = [decode_image(encoded, content_type="image/jpeg", limits=DecodeLimits()).image_HWC for encoded in manipulated]
    crops = [face.crop.image_HWC for frame in frames for face in detector.detect(frame).faces]
    embeds: NDArray[np.float32] = Analyzer(bundle).encode(np.stack(list(islice(cycle(crops), count))))["prefix_embeds"]
    return embeds


def sample(analyzer: Analyzer, prefix_BPE: NDArray[np.float32]) -> Sample:
    """Decode the faces again and again; mean seconds and tokens of one time."""
    wall, cpu, calls, tokens = time.perf_counter(), time.process_time(), 0, 0
    while (elapsed := time.perf_counter() - wall) < MIN_SECONDS:
        tokens += sum(len(answer.ids) + 1 for answer in analyzer.decode(prefix_BPE, "age"))
        calls += 1
    return Sample(elapsed / calls, (time.process_time() - cpu) / calls, tokens // calls)


def table(samples: dict[tuple[str, int], list[Sample]], counts: Sequence[int], *, compared: bool) -> Table:
    """Medians over rounds; a row for each number of faces and backend."""
    shown = Table("faces", "backend", "tokens", "ms", "CPU ms", "tok/s", "tok/CPU s", "ratio", "CPU ratio")
    for count in counts:
        for backend in ("engine", "torch") if compared else ("engine",):
            rounds = samples[backend, count]
            wall, cpu = (statistics.median(seconds) for seconds in ([one.wall_s for one in rounds], [one.cpu_s for one in rounds]))
            ratios = ["", ""]
            if backend == "torch":
                pairs = list(zip(samples["engine", count], rounds, strict=True))
                ratios = [
                    f"{statistics.median(ratio):.2f}"
                    for ratio in ([torch.wall_s / ours.wall_s for ours, torch in pairs], [torch.cpu_s / ours.cpu_s for ours, torch in pairs])
                ]
            tokens = rounds[0].tokens
            figures = (1000 * wall / count, 1000 * cpu / count, tokens / wall, tokens / cpu)
            shown.add_row(str(count), backend, str(tokens), *(f"{figure:.1f}" for figure in figures), *ratios)
    return shown


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engine", type=Path, default=bundled_engine(), help="an engine bundle")
    parser.add_argument("--checkpoint", type=Path, help="the bundle's model folder; without it torch is not measured")
    options = parser.parse_args()
    console = Console()
    bundle = open_bundle(options.engine, threads=options.threads)
    analyzers = {"engine": Analyzer(bundle)}
    if options.checkpoint is not None:
        import torch

        from trainer.acceptance_pack import reference_bundle

        torch.set_num_threads(options.threads)
        analyzers["torch"] = Analyzer(reference_bundle(bundle, options.checkpoint, rounded=bundle.manifest.precision == "fp16"))
    prefix_BPE = prefixes(bundle, max(options.faces))
    samples: dict[tuple[str, int], list[Sample]] = {(backend, count): [] for backend in analyzers for count in options.faces}
    for analyzer in analyzers.values():
        analyzer.decode(prefix_BPE, "age")  # allocations and lazy initialisation
    for _ in track(range(options.rounds), description="rounds", console=console):
        for (backend, count), taken in samples.items():
            taken.append(sample(analyzers[backend], prefix_BPE[:count]))
    console.print(table(samples, options.faces, compared="torch" in analyzers))


if __name__ == "__main__":
    main()
