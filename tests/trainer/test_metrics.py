"""Three tellings of one run: lines, TensorBoard, curves."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.metrics import Metrics, plot_run, read_metrics, smooth

CPU = torch.device("cpu")


def tell(run: Path, losses: dict[int, float], *, stage: int = 1, told: bool = True) -> None:
    with Metrics(run, stage, start=min(losses), device=CPU, told=told) as metrics:
        for step, loss in losses.items():
            metrics.write(step, {"det": loss, "lr": 0.1})


def curve(run: Path, stage: str, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / "tensorboard" / stage)).Reload()
    return [(event.step, round(event.value, 5)) for event in events.Scalars(name)]


def test_tensorboard_shows_what_the_lines_say(tmp_path: Path) -> None:
    tell(tmp_path, {0: 0.7, 1: 0.123456789})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"stage": 1, "step": 0, "det": 0.7, "lr": 0.1}, {"stage": 1, "step": 1, "det": 0.12346, "lr": 0.1}]
    assert curve(tmp_path, "vision", "det") == [(0, 0.7), (1, 0.12346)]


def test_steps_trained_again_after_a_crash_count_once(tmp_path: Path) -> None:
    tell(tmp_path, {0: 0.9, 1: 0.8, 2: 0.7})
    tell(tmp_path, {1: 0.6, 2: 0.5})
    assert read_metrics(tmp_path)["vision"]["det"] == {0: 0.9, 1: 0.6, 2: 0.5}
    assert curve(tmp_path, "vision", "det") == [(0, 0.9), (1, 0.6), (2, 0.5)]


def test_a_line_that_a_full_disk_tore_does_not_keep_a_run_from_its_end(tmp_path: Path) -> None:
    """The curves are drawn before the model is saved."""
    tell(tmp_path, {0: 0.9})
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"stage": 1, "st')
    tell(tmp_path, {1: 0.6})
    assert read_metrics(tmp_path)["vision"]["det"] == {0: 0.9, 1: 0.6}


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path: Path) -> None:
    tell(tmp_path / "run", {0: 0.7}, told=False)
    assert not (tmp_path / "run").exists()


def test_without_tensorboard_the_lines_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    tell(tmp_path, {0: 0.7})
    assert read_metrics(tmp_path)["vision"]["det"] == {0: 0.7} and not (tmp_path / "tensorboard").exists()


def test_a_stage_that_ends_leaves_its_curves(tmp_path: Path) -> None:
    tell(tmp_path, {0: 0.7, 1: 0.6})
    tell(tmp_path, {step: 1 / (step + 1) for step in range(80)}, stage=2)
    assert plot_run(tmp_path) == [tmp_path / "plots" / "vision.png", tmp_path / "plots" / "language.png"]
    for path in (tmp_path / "plots").iterdir():
        image = cv2.imread(str(path))
        assert image is not None and image.min() < 128 and image.max() == 255


def test_a_stage_that_breaks_off_draws_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Metrics(tmp_path, 1, start=0, device=CPU) as metrics:
        metrics.write(0, {"det": 0.7})
        raise KeyboardInterrupt
    assert (tmp_path / "metrics.jsonl").is_file() and not (tmp_path / "plots").exists()


def test_the_clock_counts_faces_and_the_memory_is_that_of_the_process(tmp_path: Path) -> None:
    with Metrics(tmp_path, 1, start=0, device=CPU, told=False) as metrics:
        timed = metrics.timed(32)
    assert timed["faces_per_second"] == pytest.approx(32 / timed["seconds"])
    assert 0.05 < timed["memory_gib"] < 64


def test_smoothing_leaves_a_constant_and_follows_a_step() -> None:
    assert smooth([2.0] * 100) == pytest.approx([2.0] * 100)
    followed = smooth([0.0] * 100 + [1.0] * 100)
    assert followed[99] == 0 and 0.9 < followed[150] < 1 and np.all(np.diff(followed[99:]) > 0)
