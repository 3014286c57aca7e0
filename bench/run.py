"""`make bench`: what a face costs on this machine, as tables here and as Markdown and JSON in docs/bench/.

Cases take turns and every figure is the median over rounds (`bench.timing`). Where torch is installed, torch eager runs beside the engine on the same
weights, frames and threads (`bench.torch_reference`); it writes token by token. Frames are the demo's, under several lights and codecs
(`bench.faces`). The engine guesses from what other faces were told, never from what it is measured on (`bench.decode`).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import cascade, decode, operators, sessions
from bench.decode import answers_to, measured_and_known
from bench.faces import frames
from bench.paths import FACES, PathTime, explaining, paths
from engines.analyzer import Analyzer
from engines.bench import Timing, advise
from engines.bundle import MANIFEST_NAME, bundled_engine, open_bundle
from engines.drafts import GUESSES, Drafts

ROOT = Path(__file__).resolve().parent.parent
THREADS = (1, 2)
COLD = r"""
import json, sys, time; began = time.perf_counter()
from bench.sessions import mib
from engines.analyzer import Analyzer
from engines.bundle import bundled_engine, open_bundle
from fifa_stream.demo_photographs import demo_frames
from fifa_stream.infer import EncodedImage, FramePipeline, PipelineLimits
imported = time.perf_counter()
bundle = open_bundle(bundled_engine(), threads=1); opened = time.perf_counter()
at_open = mib()
images = [EncodedImage(frame.encoded, "image/jpeg") for frame in demo_frames() if frame.kind == "manipulated"]
pipeline = FramePipeline(PipelineLimits(explain="always"), Analyzer(bundle), bundle)
ready = time.perf_counter()
pipeline.judge(images[-1:]); answered = time.perf_counter()
pipeline.judge((images * 2)[:8])
seconds = {"import s": imported - began, "open_bundle s": opened - imported, "first explained verdict s": answered - ready}
json.dump({**seconds, "RSS opened MiB": at_open, "RSS after 8 explained MiB": mib()}, sys.stdout)
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of this machine, and what it does."""

    what: str
    asked: float
    measured: float
    is_met: bool
    limit: float | None = None
    """The most that can be had."""


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


def asked(found: Mapping[str, Sequence[Any]]) -> list[Asked]:
    """What was asked, one thread, beside what was measured."""
    torch_over = {(row.path, row.batch): row.torch_ratio for row in found["paths"] if row.threads == 1 and row.backend == "onnxruntime"}
    decoding = {row.faces: row for row in found["decode"] if row.backend == "onnxruntime" and row.guesses == GUESSES}
    wanted = [
        (f"torch / engine, {path}, batch of {batch}", least, torch_over[path, batch])
        for path in ("score", "decode, detect, score")
        for batch, least in ((1, 1.3), (8, 1.0))
    ]
    for faces, least in ((1, 4.0), (4, 4.0), (16, 2.5)):
        wanted.append((f"torch / engine, decoding {faces} together", least, decoding[faces].torch_ratio))
        wanted.append(("the same, after the question is read", least, decoding[faces].torch_ratio_after_question))
    rows = [Asked(what, least, ratio, ratio >= least) for what, least, ratio in wanted if ratio is not None]
    # at the crop: the products are torch's as well, and everything else cannot take less than nothing
    share = operators.product_share(found["operators"], "encoder")
    rows = [replace(row, limit=row.measured / share) if ", score, batch" in row.what and "detect" not in row.what else row for row in rows]
    five = next(row for row in found["cascade"] if row.suspicious_percent == 5)
    return [*rows, Asked("explaining all / cascade, 5 % suspicious", 8.0, five.speedup, five.speedup >= 8.0, five.limit)]


def advice(found: Sequence[PathTime]) -> str:
    """What `fifa-stream engine bench` would say of these times."""
    told = advise([Timing("score", row.threads, row.batch, row.ms) for row in found if row.path == "score" and row.backend == "onnxruntime"])
    return f"engine.threads = {told.threads}, batch.max_frames = {told.max_batch}"


TITLES = {
    "asked": "Asked and measured",
    "paths": "Milliseconds per face",
    "decode": "Decoding, beside torch eager",
    "explained": "Explaining, ms per face",
    "cascade": "Cascade",
    "operators": "Where the score path's time goes",
    "sessions": "Sessions of ONNX Runtime",
    "opsets": "Opsets",
    "around": "Around it",
}
HEADINGS = {"torch_ratio": "torch / onnxruntime", "torch_cpu_ratio": "torch / onnxruntime, CPU"}


def tables(found: Mapping[str, Sequence[Any]], figures: Mapping[str, float]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, columns, rows) of everything that was measured."""
    made = []
    for key, rows in found.items():
        if rows:
            names = [field.name for field in fields(rows[0])]
            columns = [HEADINGS.get(name, name.removeprefix("is_").replace("_", " ")) for name in names]
            made.append((TITLES[key], columns, [[shown(getattr(row, name)) for name in names] for row in rows]))
    return [*made, (TITLES["around"], ["what", "median"], [[name, f"{value:.2f}"] for name, value in figures.items()])]


def page(title: str, notes: Sequence[str], made: Sequence[tuple[str, list[str], list[list[str]]]]) -> str:
    """As Markdown."""
    lines = [f"# {title}", "", *(line for note in notes for line in (note, ""))]
    for heading, columns, rows in made:
        lines += [f"## {heading}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows), ""]
    return "\n".join(lines)


def shown(value: object) -> str:
    """A cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def measure(options: argparse.Namespace, console: Console) -> tuple[dict[str, list[Any]], dict[str, float], cascade.Parts]:
    """Everything, in the order of `TITLES`."""
    with_torch = find_spec("torch") is not None and not options.no_torch
    bundle = open_bundle(bundled_engine(), threads=1)
    judged = frames(bundle)
    told = answers_to(Analyzer(bundle, drafts=Drafts(0)), measured_and_known(judged)[1])
    model = None
    if with_torch:
        from trainer.config import small
        from trainer.warm_start import recovered_model

        console.print("recovering the model from the bundle")
        model = recovered_model(bundle.folder, small().model)
    found: dict[str, list[Any]] = {key: [] for key in TITLES if key != "around"}
    for threads in THREADS:
        opened = open_bundle(bundled_engine(), threads=threads)
        backends = {"onnxruntime": opened}
        if model is not None:
            import torch

            from bench.torch_reference import torch_bundle

            torch.set_num_threads(threads)
            backends["torch"] = torch_bundle(opened, model)
        found["paths"] += paths(backends, judged, told, threads, options.rounds, console)
        found["explained"] += explaining(opened, judged, told, threads, options.rounds, console)
        if threads == 1:
            found["decode"] += decode.compare(
                backends, judged, faces=FACES, guesses=(0, GUESSES), threads=threads, rounds=options.rounds, console=console
            )  # fmt: skip
    streams, parts = cascade.measure(bundle, judged, told, threads=1, rounds=options.rounds, console=console)
    found["cascade"] += streams
    found["operators"] += operators.measure(bundle)
    found["sessions"] += sessions.measure(THREADS, min(3, options.rounds), console)
    if model is not None:
        from bench import opsets

        found["opsets"] += opsets.measure(bundle, model, rounds=options.rounds, console=console)
    found["asked"] += asked(found)
    return found, surroundings(options.rounds), parts


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="What a face costs on this machine.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-torch", action="store_true", help="time the engine alone; leaves out the opsets, which torch exports")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench", help="folder of the two dated files")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when torch is loaded: its threads do not spin either
    if not (bundled_engine() / MANIFEST_NAME).is_file():
        console.print("skipped: the package holds no engine bundle; write one with fifa-train export --out engines/bundles/small")
        return
    header = machine()
    console.print(header)
    found, figures, parts = measure(options, console)
    manifest = open_bundle(bundled_engine(), threads=1).manifest
    engine = f"{manifest.name} {manifest.version}, digest {manifest.digest[:12]}; medians of {options.rounds} interleaved rounds"
    spoken = ", ".join(f"{name.removesuffix('_ms').replace('_', ' ')} {value:.1f} ms" for name, value in asdict(parts).items())
    notes = [f"Parts of the cascade: {spoken}.", f"`fifa-stream engine bench` would advise: {advice(found['paths'])}."]
    made = tables(found, figures)
    for title, columns, rows in made:
        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    named = options.out / f"{date.today():%Y-%m-%d}"
    named.with_suffix(".md").write_text(page(f"Benchmark, {date.today():%Y-%m-%d}", [f"{header}.", f"Engine {engine}.", *notes], made))
    record: dict[str, Any] = {key: [asdict(row) for row in rows] for key, rows in found.items()}
    about = {"date": f"{date.today():%Y-%m-%d}", "machine": header, "engine": manifest.digest, "rounds": options.rounds, "cores": os.cpu_count()}
    named.with_suffix(".json").write_text(json.dumps({**about, **record, "cascade_parts": asdict(parts), "around": figures}, indent=1) + "\n")
    console.print(*notes, f"written to {named}.md and .json", sep="\n")


if __name__ == "__main__":
    main()
