"""What fp16 and int8 cost and gain on this machine's CPU: builds of the shipped engine on the score path, in turns.

    python -m bench.precisions --acceptance PACK

PACK is what `fifa-train export --no-bundle --acceptance PACK` writes: a build that its pack refuses is not timed. Milliseconds are those of a face.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from rich import box
from rich.console import Console
from rich.table import Table

from bench.faces import frames
from bench.paths import BATCHES, path_cases
from bench.timing import interleaved, ratios, wall_ms
from engines.build import AcceptanceRefused, BuildRequest, build
from engines.bundle import bundled_engine, open_bundle
from engines.check import ON_CPU

PATHS = ("score", "decode, detect, score")


def main() -> None:
    """Build, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acceptance", type=Path, required=True)
    parser.add_argument("--engine", type=Path, default=bundled_engine(), help="an engine bundle")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    console = Console(width=150)
    table = Table("path", "precision", "threads", "batch", "ms", "fp32 / it", "fp32 / it, CPU", "encoder MB", box=box.MARKDOWN)
    with TemporaryDirectory() as scratch:
        folders: dict[str, Path] = {}
        for precision in ON_CPU:
            try:
                build(options.engine, Path(scratch) / precision, BuildRequest("onnxruntime", precision, acceptance=options.acceptance))
                folders[precision] = Path(scratch) / precision
            except AcceptanceRefused as refused:
                console.print(refused)
        for threads in options.threads:
            bundles = {precision: open_bundle(folder, threads=threads) for precision, folder in folders.items()}
            cases = path_cases(bundles, frames(bundles["fp32"]), [])
            samples = interleaved({key: cases[key] for key in cases if key[0] in PATHS}, options.rounds, console, f"precisions, {threads} threads")
            for path in PATHS:
                for batch in BATCHES:
                    for precision, folder in folders.items():
                        taken = samples[path, precision, batch]
                        gained = (f"{ratio:.2f}" for ratio in ratios(samples[path, "fp32", batch], taken))
                        size = f"{(folder / 'encoder.onnx').stat().st_size / 1e6:.1f}"
                        table.add_row(path, precision, str(threads), str(batch), f"{wall_ms(taken) / batch:.1f}", *gained, size)
    console.print(table)


if __name__ == "__main__":
    main()
