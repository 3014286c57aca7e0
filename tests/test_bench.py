"""`make bench`: what it measures is what it says, and others can read it."""

from pathlib import Path

import numpy as np
import pytest

from bench.capacity import read_costs
from bench.cascade import NUM_FRAMES, PERCENTS, stream
from bench.cascade import Row as Stream
from bench.decode import NUM_EXPLAINED, Known, measured_and_known
from bench.decode import Row as Decoded
from bench.faces import Frame
from bench.operators import Row as Operator
from bench.paths import PathTime
from bench.run import asked, page, tables
from bench.timing import Sample, beyond, ratios
from engines.drafts import GUESSES

EXPLAIN_AT = 0.4


def judged(count: int = 90) -> list[Frame]:
    """Frames from the most to the least suspicious, each with bytes of its own."""
    crop_HWC = np.zeros((2, 2, 3), np.uint8)
    return [Frame(str(number).encode(), crop_HWC, 1 - number / count) for number in range(count)]


@pytest.mark.parametrize("percent", PERCENTS)
def test_a_stream_has_its_share_of_suspicious_frames_spread_evenly(percent: int) -> None:
    scores = {frame.encoded: frame.fake_score for frame in judged()}
    places = [place for place, image in enumerate(stream(judged(), percent, EXPLAIN_AT)) if scores[image.value] >= EXPLAIN_AT]
    assert len(places) == NUM_FRAMES * percent // 100
    gaps = np.diff(places)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_no_frame_is_both_measured_and_known() -> None:
    measured, known = measured_and_known(judged())
    assert len(measured) == 16 and len(known) == NUM_EXPLAINED - 16
    assert not {frame.encoded for frame in measured} & {frame.encoded for frame in known}
    suspicious = {image.value for image in stream(judged(), 100, EXPLAIN_AT)}
    assert suspicious == {frame.encoded for frame in measured}


def test_a_benchmark_learns_nothing_of_what_it_repeats() -> None:
    drafts = Known(3, [[1, 2, 3]])
    drafts.learn([7, 8, 9])
    assert (drafts.guess([7], 3), drafts.guess([1], 3), drafts.asked) == ([], [2, 3], 2)


def test_a_ratio_is_taken_within_a_round() -> None:
    slow, fast = [Sample(2, 2), Sample(20, 8), Sample(4, 4)], [Sample(1, 1), Sample(10, 2), Sample(1, 2)]
    assert ratios(slow, fast) == (2, 2)
    assert beyond(slow, fast) == [Sample(1, 1), Sample(10, 6), Sample(3, 2)]


def found() -> dict[str, list[object]]:
    """Tables of a run, made up."""
    times = {"JPEG decode": 1.0, "detect and crop": 40.0, "score": 60.0, "decode, detect, score": 101.0, "explain": 90.0}
    paths = [PathTime(path, "onnxruntime", 1, batch, ms, 1.05, 1.06) for path, ms in times.items() for batch in (1, 8)]
    torch = [PathTime(path, "torch", 1, batch, 999.0, None, None) for path in times for batch in (1, 8)]
    decoded = [
        Decoded("onnxruntime", guesses, 1, faces, 60, 2.0, 20.0, 20.0, 1.0, 1.0, 5.0, 5.0 - 3 * (guesses == 0), 5.0, 6.0)
        for guesses in (0, GUESSES) for faces in (1, 4, 8, 16)
    ]  # fmt: skip
    cascade = [Stream(percent, NUM_FRAMES, 0, 1, 9.0, 7.0, 1.25, 1.3) for percent in PERCENTS]
    operators = [Operator("encoder", "MatMul", 69, 48.0, 80.0, True), Operator("encoder", "Gelu", 11, 4.0, 7.0, False)]
    return {"paths": [*paths, *torch], "decode": decoded, "cascade": cascade, "operators": operators}


def test_what_was_asked_stands_beside_what_was_measured_and_what_can_be_had() -> None:
    rows = {row.what: row for row in asked(found())}
    crop = rows["torch / engine, score, batch of 1"]
    assert not crop.is_met and crop.limit == pytest.approx(1.05 / 0.8)
    assert rows["torch / engine, decode, detect, score, batch of 8"].is_met
    assert rows["torch / engine, decoding 4 together"].measured == 5.0
    five = rows["explaining all / cascade, 5 % suspicious"]
    assert (five.is_met, five.measured, five.limit) == (False, 1.25, 1.3)


def test_the_capacity_plan_reads_the_page(tmp_path: Path) -> None:
    bench, overhead = tmp_path / "2026-01-01.md", tmp_path / "overhead.md"
    bench.write_text(page("Benchmark", ["two cores"], tables({"asked": asked(found()), **found()}, {"import s": 0.2})))
    overhead.write_text("| loop | us a record |\n|---|---|\n| at_least_once | 200 |\n")
    costs = read_costs(bench, overhead, 1)
    assert (costs.decode_ms, costs.detect_ms, costs.score_ms, costs.explain_ms, costs.loop_ms) == (1.0, 40.0, 60.0, 30.0, 0.2)
