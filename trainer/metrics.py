"""What a run tells of itself: one line a step in `metrics.jsonl`, the same for TensorBoard, and learning curves as PNG."""

import json
import logging
import math
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

STAGES = {1: "vision", 2: "language"}
BESIDE = "stage", "step", "lr"
"""What a line holds that needs no curve."""
FEW = 50
"""Fewer points than this are drawn as they are, more of them smoothed as well."""


def peak_memory_gib(device: torch.device) -> float:
    """The most that this process has held: of the GPU it trains on, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


class Metrics:
    """The lines of one stage of a run; silent where `told` is False, which is all processes but one."""

    def __init__(self, run: Path, stage: int, *, start: int, device: torch.device, told: bool = True) -> None:
        """A run that goes on from step `start` hides what TensorBoard was told of later steps."""
        self.run, self.stage, self.device, self.told = run, stage, device, told
        self._tensorboard: Any = None
        if not told:
            return
        run.mkdir(parents=True, exist_ok=True)
        lines = run / "metrics.jsonl"
        if lines.exists() and not (written := lines.read_bytes()).endswith(b"\n"):  # torn by a full disk: no curve could be drawn any more
            lines.write_bytes(written[: written.rfind(b"\n") + 1])
        self._lines = lines.open("a", buffering=1)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            logger.info("no files for TensorBoard: %s", error)
        else:
            self._tensorboard = SummaryWriter(run / "tensorboard" / STAGES[stage], purge_step=start)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self.told:
            self._lines.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self.told and kind is None:
            plot_run(self.run)

    def timed(self, faces: int) -> dict[str, float]:
        """Seconds since `start_clock` or the beginning, waiting for data included, and what they were good for."""
        seconds = time.monotonic() - self._began
        return {"seconds": seconds, "faces_per_second": faces / seconds, "memory_gib": peak_memory_gib(self.device)}

    def write(self, step: int, line: dict[str, float]) -> None:
        """Tell a step."""
        if self.told:
            self._lines.write(json.dumps({"stage": self.stage, "step": step, **{name: round(value, 5) for name, value in line.items()}}) + "\n")
        if self._tensorboard is not None:
            for name, value in line.items():
                self._tensorboard.add_scalar(name, value, step)

    def start_clock(self) -> None:
        """Begin to time the next step: what came between (evaluation, a checkpoint) is not its."""
        self._began = time.monotonic()


def read_metrics(run: Path) -> dict[str, dict[str, dict[int, float]]]:
    """Stage -> name -> step -> value. A step that was trained twice, after a crash, counts as it was the second time."""
    curves: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    if not (run / "metrics.jsonl").is_file():
        raise FileNotFoundError(f"{run} holds no metrics.jsonl; point --run at a folder that fifa-train train wrote")
    for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        for name, value in line.items():
            if name not in BESIDE:
                curves[STAGES[line["stage"]]][name][line["step"]] = value
    return curves


def plot_run(run: Path) -> list[Path]:
    """Draw the learning curves of each stage into `run/plots/`; return the files."""
    written = []
    for stage, curves in read_metrics(run).items():
        columns = min(3, len(curves))
        rows = math.ceil(len(curves) / columns)
        figure = Figure(figsize=(4 * columns, 2.6 * rows), dpi=110, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (name, curve) in zip(panels, curves.items(), strict=False):
            steps = sorted(curve)
            values = [curve[step] for step in steps]
            few = len(steps) < FEW
            axes.plot(steps, values, color="#4477aa", linewidth=1, alpha=1 if few else 0.3, marker="o" if few else None, markersize=3)
            if not few:
                axes.plot(steps, smooth(values), color="#4477aa", linewidth=1.5)
            axes.set_title(name.replace("_", " "), fontsize=10)
        for axes in panels[len(curves) :]:
            axes.set_axis_off()
        (run / "plots").mkdir(exist_ok=True)
        path = run / "plots" / f"{stage}.png"
        figure.suptitle(f"{stage}, by step")
        figure.savefig(path, metadata={"Software": None})
        written.append(path)
    return written


def smooth(values: list[float], share: float = 0.05) -> list[float]:
    """Exponential average over about `share` of the steps; young averages move faster."""
    averaged: list[float] = []
    for number, value in enumerate(values):
        weight = max(1 / (number + 1), 1 / max(1.0, share * len(values)))
        averaged.append(value if not averaged else averaged[-1] + weight * (value - averaged[-1]))
    return averaged
