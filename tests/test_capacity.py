"""The capacity plan: its arithmetic, and that it still reads what `make bench` and `make overhead` write."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.capacity import (
    FOLDER,
    Assumptions,
    Costs,
    MissingMeasurement,
    Sizes,
    affordable_ms,
    frame_ms,
    page,
    plan,
    read_costs,
    rows,
    with_engine,
)

COSTS = Costs(threads=2, decode_ms=1, detect_ms=20, score_ms=40, explain_ms=30, loop_ms=0.5)
SIZES = Sizes(frame_bytes=50_000, scored_bytes=800, explanation_bytes=400)
STREAM = Assumptions(
    faces_per_frame=2, explained_share=0.1, utilisation=0.5, replication=3, frames_retention_h=1, verdicts_retention_h=10, price_per_worker_hour=0.25
)


def test_a_frame_costs_its_stages_its_faces_and_the_loop() -> None:
    assert frame_ms(COSTS, STREAM) == pytest.approx(1 + 20 + 2 * (40 + 0.1 * 30) + 0.5)


def test_a_plan_is_what_the_formula_says() -> None:
    made = plan(1_000, COSTS, SIZES, STREAM)
    assert (made.workers, made.cores, made.partitions) == (215, 430, 269)
    assert (made.frames_in_MB_s, made.verdicts_out_MB_s) == pytest.approx((50, 0.88))
    assert made.written_MB_s == pytest.approx(3 * 50.88)
    assert made.disk_TB == pytest.approx(3 * (50 * 3_600 + 0.88 * 36_000) / 1e6)
    assert made.price_per_hour == pytest.approx(215 * 0.25)


def test_without_a_price_there_is_no_cost() -> None:
    stream = replace(STREAM, price_per_worker_hour=None)
    assert plan(10, COSTS, SIZES, stream).price_per_hour is None
    assert "price an hour" not in page(COSTS, SIZES, stream, sources="a test")
    assert "price an hour" in page(COSTS, SIZES, STREAM, sources="a test")


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_the_planned_workers_afford_a_frame_and_one_fewer_would_not(rate: int, more: int) -> None:
    made, larger = plan(rate, COSTS, SIZES, STREAM), plan(rate + more, COSTS, SIZES, STREAM)
    cost_ms = frame_ms(COSTS, STREAM)
    assert affordable_ms(rate, made.workers, STREAM) >= cost_ms * (1 - 1e-9)
    assert affordable_ms(rate, made.workers - 1, STREAM) < cost_ms * (1 + 1e-9)
    assert made.workers <= larger.workers and made.disk_TB < larger.disk_TB and made.workers <= made.partitions


@pytest.mark.parametrize("threads", [1, 2])
def test_the_committed_tables_of_measurements_are_read(threads: int) -> None:
    costs = read_costs(max(FOLDER.glob("20??-??-??.md")), FOLDER / "overhead.md", threads)
    assert costs.threads == threads
    assert min(costs.decode_ms, costs.detect_ms, costs.score_ms, costs.explain_ms, costs.loop_ms) > 0


def test_what_was_not_measured_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bench.capacity.ROOT", tmp_path)
    with pytest.raises(MissingMeasurement, match=r"none\.md has no table headed 'loop'; run make bench and make overhead"):
        rows(tmp_path / "none.md", "loop")
    with pytest.raises(MissingMeasurement, match="for 64 threads"):
        read_costs(max(FOLDER.glob("20??-??-??.md")), FOLDER / "overhead.md", 64)
    with pytest.raises(MissingMeasurement, match="engine bench --threads 2 --json"):
        with_engine(COSTS, [{"work": "score", "threads": 1, "faces": 8, "ms_per_face": 1.0}])


def test_times_of_another_machine_replace_those_of_the_model_alone() -> None:
    timings: list[dict[str, float | str | None]] = [
        {"work": work, "threads": 2, "faces": faces, "ms_per_face": ms, "tokens_per_s": None}
        for work, faces, ms in (("score", 1, 9.0), ("score", 16, 0.3), ("explain", 1, 8.0), ("explain", 16, 2.5))
    ]
    assert with_engine(COSTS, timings) == replace(COSTS, score_ms=0.3, explain_ms=2.5)
