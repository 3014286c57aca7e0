"""`make bench`: what a face costs on this machine, as a table here and as Markdown in docs/bench/.

Cases are interleaved and repeated in rounds; each figure is the median over rounds, so a neighbour's burst of load hits all cases alike. The frame
is one of the demo's manipulated portraits; `explain` includes `score`. The torch reference runs beside the bundle where torch is installed: with
`--checkpoint` on the bundle's own weights, without it on random ones, which time the score path only (how long a text becomes depends on them).
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from engines.analyzer import Analyzer, ExplainPolicy
from engines.bundle import MANIFEST_NAME, Bundle, bundled_engine, open_bundle
from fifa_stream.decode import DecodeLimits, decode_image
from fifa_stream.demo_photographs import demo_frames
from fifa_stream.detect import DetectLimits, FaceDetector

ROOT = Path(__file__).resolve().parent.parent
FRAME = "astronaut, mouth widened (1)"
"""The demo frame that is measured: a fake, so that explaining it takes sentences and masks."""
BATCHES, THREADS = (1, 8), (1, 2)
MIN_SECONDS = 0.3
"""A case runs at least this long in each round: one call of the short ones would time the clock."""
COLD = r"""
import json, re, sys, time; began = time.perf_counter()
import numpy as np
from engines.analyzer import Analyzer
from engines.bundle import bundled_engine, open_bundle
imported = time.perf_counter()
bundle = open_bundle(bundled_engine(), threads=1); opened = time.perf_counter()
# the peak of this process alone: ru_maxrss would begin with that of its parent
mib = lambda: int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
at_open = mib()
size = bundle.manifest.preprocess.image_size
Analyzer(bundle).analyze(np.zeros((8, size, size, 3), np.uint8), explain=["always"] * 8)
seconds = {"import s": imported - began, "open_bundle s": opened - imported}
json.dump({**seconds, "RSS opened MiB": at_open, "RSS after 8 explained MiB": mib()}, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One row: what runs, on which backend, and the work itself."""

    path: str
    backend: str
    threads: int
    batch: int
    work: Callable[[], object]


def torch_bundle(bundle: Bundle, checkpoint: Path | None) -> Bundle:
    """The bundle's encoder, decoder and mask decoder in torch."""
    from trainer.checkpoint import load_model
    from trainer.config import small
    from trainer.model import FiFaMLLM
    from trainer.parts import torch_engines

    model = load_model(checkpoint)[0] if checkpoint is not None else FiFaMLLM(small().model).eval()
    return replace(bundle, engines={**bundle.engines, **torch_engines(model)})


def cases(threads: int, checkpoint: Path | None) -> Iterator[Case]:
    """Every case at one number of threads."""
    bundle = open_bundle(bundled_engine(), threads=threads)
    jpeg = next(frame.encoded for frame in demo_frames() if frame.name == FRAME)
    detector = FaceDetector(bundle.engines["face_detector"], crop_size=bundle.manifest.preprocess.image_size, limits=DetectLimits())

    def frame() -> NDArray[np.uint8]:
        return decode_image(jpeg, content_type="image/jpeg", limits=DecodeLimits()).image_HWC

    def face() -> NDArray[np.uint8]:
        return detector.detect(frame()).faces[0].crop.image_HWC

    crop, still = face(), frame()
    yield from (Case("JPEG decode", "Pillow", threads, 1, frame), Case("detect and crop", "onnxruntime", threads, 1, lambda: detector.detect(still)))
    backends = {"onnxruntime": bundle}
    if find_spec("torch") is not None:
        backends["torch"] = torch_bundle(bundle, checkpoint)
    for backend, opened in backends.items():
        analyzer = Analyzer(opened)
        for batch in BATCHES:
            crops = np.stack([crop] * batch)
            policies: tuple[ExplainPolicy, ...] = ("never", "always") if backend == "onnxruntime" or checkpoint is not None else ("never",)
            for policy in policies:
                path, explain = ("score" if policy == "never" else "explain"), [policy] * batch
                yield Case(path, backend, threads, batch, lambda a=analyzer, c=crops, e=explain: a.analyze(c, explain=e))  # type: ignore[misc]
                if backend == "onnxruntime":
                    yield Case(
                        f"decode, detect, {path}", backend, threads, batch,
                        lambda a=analyzer, n=batch, e=explain: a.analyze(np.stack([face() for _ in range(n)]), explain=e),  # type: ignore[misc]
                    )  # fmt: skip


def measure(chosen: list[Case], rounds: int, console: Console) -> dict[Case, float]:
    """Median milliseconds per face of each case."""
    seconds: dict[Case, list[float]] = {case: [] for case in chosen}
    for case in chosen:
        case.work()  # allocations and lazy initialisation
    for _ in track(range(rounds), description="rounds", console=console):
        for case in chosen:
            if case.backend == "torch":  # its threads belong to the process, not to a session
                import_module("torch").set_num_threads(case.threads)
            gc.collect()
            began, calls = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - began) < MIN_SECONDS:
                case.work()
                calls += 1
            seconds[case].append(elapsed / calls / case.batch)
    return {case: 1000 * statistics.median(values) for case, values in seconds.items()}


def surroundings(rounds: int) -> dict[str, float]:
    """Cold start and memory in fresh processes, the time of `--help`, the size of the serving environment."""
    cold = [json.loads(subprocess.run([sys.executable, "-c", COLD], capture_output=True, check=True, cwd=ROOT).stdout) for _ in range(rounds)]
    figures = {name: statistics.median(run[name] for run in cold) for name in cold[0]}
    helps = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "fifa_stream.cli", "--help"], capture_output=True, check=True, cwd=ROOT)
        helps.append(time.perf_counter() - began)
    figures["fifa-stream --help s"] = statistics.median(helps)
    packages = next((ROOT / ".venv").glob("lib/python*/site-packages"), None)
    if packages is not None:
        figures["serving site-packages MB"] = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file()) / 1e6
    return figures


def machine() -> str:
    """Cores, processor, load and versions; no paths."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    modules = {"onnxruntime": "onnxruntime", "numpy": "numpy", "pillow": "PIL", "torch": "torch"}
    tools = ", ".join(f"{package} {version(package)}" for package, module in modules.items() if find_spec(module) is not None)
    return f"{os.cpu_count()} cores, {processor}, load {os.getloadavg()[0]:.1f} at the start; Python {platform.python_version()}, {tools}"


def tables(milliseconds: dict[Case, float], figures: dict[str, float]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, columns, rows); the ratio is torch's time over that of the bundle for the same work."""
    torch_ms = {(case.path, case.threads, case.batch): ms for case, ms in milliseconds.items() if case.backend == "torch"}
    rows = []
    for case, ms in milliseconds.items():
        other = torch_ms.get((case.path, case.threads, case.batch))
        ratio = f"{other / ms:.2f}" if case.backend == "onnxruntime" and other is not None else ""
        rows.append([case.path, case.backend, str(case.threads), str(case.batch), f"{ms:.2f}", ratio])
    return [
        ("Milliseconds per face", ["path", "backend", "threads", "batch", "ms", "torch / onnxruntime"], rows),
        ("Around it", ["what", "median"], [[name, f"{value:.2f}"] for name, value in figures.items()]),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="What a face costs on this machine.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checkpoint", type=Path, help="folder of the bundle's own model: times torch on the explain path too")
    options = parser.parse_args()
    console = Console()
    if not (bundled_engine() / MANIFEST_NAME).is_file():
        console.print("skipped: the package holds no engine bundle; write one with fifa-train export --out engines/bundles/small")
        return
    header = machine()
    console.print(header)
    milliseconds = measure([case for threads in THREADS for case in cases(threads, options.checkpoint)], options.rounds, console)
    manifest = open_bundle(bundled_engine(), threads=1).manifest
    engine = f"{manifest.name} {manifest.version}, digest {manifest.digest[:12]}; medians of {options.rounds} interleaved rounds"
    page = [f"# Benchmark, {date.today():%Y-%m-%d}", "", f"{header}.", "", f"Engine {engine}.", ""]
    for title, columns, rows in tables(milliseconds, surroundings(options.rounds)):
        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        page += [f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows), ""]
    out = ROOT / "docs" / "bench" / f"{date.today():%Y-%m-%d}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(page))
    console.print(f"written to {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
