"""What the settings of ONNX Runtime's sessions cost and save: time, and memory of a process that has explained batches of eight.

Each setting is a process of its own, since an arena belongs to its process; they take turns. `engines.runtime.session_options` holds what is served.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import onnxruntime as ort
from rich.console import Console
from rich.progress import track

from engines import runtime
from engines.analyzer import Analyzer
from engines.bundle import bundled_engine, open_bundle
from engines.drafts import Drafts
from fifa_stream.demo_photographs import demo_frames
from fifa_stream.infer import EncodedImage, FramePipeline, PipelineLimits

ROOT = Path(__file__).resolve().parent.parent
BATCH, REPEATS = 8, 3
SHARED, SPINS = "session.use_env_allocators", "session.intra_op.allow_spinning"
SETTINGS = {
    "served: one arena for all sessions": {},
    "an arena for each session": {SHARED: "0"},
    "an arena for each session, memory patterns": {SHARED: "0", "patterns": "1"},
    "no arena": {SHARED: "0", "arena": "0"},
    "served, encoder in whole batches": {"groups": "0"},
    "served, threads that spin": {SPINS: "1"},
}


@dataclass(frozen=True, slots=True)
class Row:
    """One setting; medians over rounds."""

    setting: str
    threads: int
    opened_mib: float
    """Resident memory when the bundle is open."""
    peak_mib: float
    ms_per_face: float
    """From JPEG to explained verdict, token by token."""
    cpu_ms_per_face: float


def mib() -> float:
    """Peak of this process alone: ru_maxrss would begin with that of its parent."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None, "Linux states VmHWM"
    return int(found[1]) / 1024


def child(setting: dict[str, str], threads: int) -> dict[str, float]:
    """Measure one setting in this process."""
    serve = runtime.session_options
    ort.set_default_logger_severity(3)  # it warns of every setting that is set twice

    def options(count: int) -> ort.SessionOptions:
        made = serve(count)
        made.enable_cpu_mem_arena = setting.get("arena") != "0"
        made.enable_mem_pattern = "patterns" in setting
        for key in (SHARED, SPINS):
            if key in setting:
                made.add_session_config_entry(key, setting[key])
        return made

    runtime.session_options = options
    bundle = open_bundle(bundled_engine(), threads=threads)
    if setting.get("groups") == "0":
        bundle.engines["encoder"]._rows_together = None
    opened = mib()
    manipulated = [EncodedImage(frame.encoded, "image/jpeg") for frame in demo_frames() if frame.kind == "manipulated"]
    images = list(islice(cycle(manipulated), BATCH))
    pipeline, times = FramePipeline(PipelineLimits(explain="always"), Analyzer(bundle, drafts=Drafts(0)), bundle), []
    for _ in range(1 + REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        pipeline.judge(images)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall_s, cpu_s = (statistics.median(column) / BATCH for column in zip(*times[1:], strict=True))
    return {"opened_mib": opened, "peak_mib": mib(), "ms_per_face": 1000 * wall_s, "cpu_ms_per_face": 1000 * cpu_s}


def measure(threads: Sequence[int], rounds: int, console: Console) -> list[Row]:
    """Every setting at every number of threads."""
    cases = [(name, count) for count in threads for name in SETTINGS if "spin" not in name or count > 1]  # one thread waits for nobody
    found: dict[tuple[str, int], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in track(range(rounds), description="session settings", console=console):
        for name, count in cases:
            command = [sys.executable, "-m", "bench.sessions", "--setting", name, "--threads", str(count)]
            found[name, count].append(json.loads(subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout))
    return [
        Row(name, count, **{figure: statistics.median(one[figure] for one in taken) for figure in taken[0]}) for (name, count), taken in found.items()
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--setting", choices=list(SETTINGS), required=True)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    json.dump(child(SETTINGS[given.setting], given.threads), sys.stdout)
