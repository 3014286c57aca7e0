"""Frames to verdicts: one answer each, faces batched across frames, masks at home in frame pixels."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from engines.contracts import Label, Mask
from engines.preprocess import Crop, crop_face, whole_image_crop
from engines.runtime import Bundle
from fifa_stream.detect import DetectLimits
from fifa_stream.infer import EncodedImage, PipelineLimits, mask_in_frame, tight_box
from fifa_stream.records import NoteCode, Query, RawRecord, Reason, RecordError, Verdict, parse_frame

GOLDEN = Path(__file__).resolve().parent.parent / "golden"

MakeBench = Callable[..., Any]
MakeImage = Callable[..., bytes]

LEFT = (0.05, 0.2, 0.4, 0.8, 0.0)
RIGHT = (0.6, 0.2, 0.95, 0.8, 0.0)


def _verdict(outcome: Verdict | RecordError) -> Verdict:
    assert isinstance(outcome, Verdict), outcome
    return outcome


def _codes(notes: Any) -> list[NoteCode]:
    return [note.code for note in notes]


def _split_image(left_level: int, right_level: int) -> bytes:
    """A PNG whose halves differ in brightness."""
    noise_HW = np.random.default_rng(3).integers(-12, 13, (240, 320))
    noise_HW[:, :160] += left_level
    noise_HW[:, 160:] += right_level
    buffer = io.BytesIO()
    Image.fromarray(np.clip(noise_HW, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_one_frame_becomes_the_golden_verdict_byte_for_byte(make_bench: MakeBench) -> None:
    """After a wanted change write the bytes of this verdict to tests/golden/verdict.json. The frame is lossless: codecs differ between builds."""
    headers = (("stream-id", b"door-7"), ("content-type", b"image/png"), ("frame-index", b"41"), ("pts-ms", b"1640"), ("fifa-query", b"left_cheek"))
    raw = RawRecord("fifa.frames", 2, 17, 1_700_000_000_000, b"door-7", (GOLDEN / "frame.png").read_bytes(), headers)
    (outcome,) = make_bench().pipeline.process([parse_frame(raw, max_value_bytes=1 << 20)])
    assert _verdict(outcome).to_bytes() == (GOLDEN / "verdict.json").read_bytes().rstrip(b"\n")


def test_every_image_is_answered_in_order_and_a_bad_one_harms_no_neighbour(make_bench: MakeBench, make_image: MakeImage) -> None:
    good = make_image()
    outcomes = make_bench().pipeline.judge([EncodedImage(value) for value in (good, b"text", good, good[:60], b"", good)])
    assert [type(outcome) for outcome in outcomes] == [Verdict, RecordError, Verdict, RecordError, RecordError, Verdict]
    reasons = [outcome.reason for outcome in outcomes if isinstance(outcome, RecordError)]
    assert reasons == [Reason.UNSUPPORTED_MEDIA, Reason.UNDECODABLE_IMAGE, Reason.EMPTY_VALUE]
    assert outcomes[0] == outcomes[2] == outcomes[5]


def test_nothing_in_nothing_out(make_bench: MakeBench) -> None:
    bench = make_bench()
    assert bench.pipeline.process([]) == [] and bench.analyzer.batches == []


def test_all_faces_of_all_frames_are_judged_together_up_to_the_limit(make_bench: MakeBench, make_image: MakeImage) -> None:
    bench = make_bench([LEFT, RIGHT], limits=PipelineLimits(max_batch_faces=4))
    outcomes = bench.pipeline.judge([EncodedImage(make_image())] * 3)
    assert bench.analyzer.batches == [4, 2]
    assert [len(_verdict(outcome).faces) for outcome in outcomes] == [2, 2, 2]


def test_the_face_with_the_highest_score_decides(make_bench: MakeBench) -> None:
    (outcome,) = make_bench([LEFT, RIGHT]).pipeline.judge([EncodedImage(_split_image(60, 220))])
    verdict = _verdict(outcome)
    by_place = sorted(verdict.faces, key=lambda face: face.box)
    assert [face.label for face in by_place] == [Label.REAL, Label.FAKE]
    assert verdict.label is Label.FAKE and verdict.fake_score == by_place[1].fake_score


def test_a_face_that_fails_quality_is_scored_but_does_not_decide(make_bench: MakeBench) -> None:
    limits = PipelineLimits(detect=DetectLimits(max_brightness=200))
    (outcome,) = make_bench([LEFT, RIGHT], limits=limits).pipeline.judge([EncodedImage(_split_image(60, 230))])
    verdict = _verdict(outcome)
    dark, bright = sorted(verdict.faces, key=lambda face: face.box)
    assert (bright.label, bright.quality.passed) == (Label.INCONCLUSIVE, False) and bright.fake_score > 0.8
    assert _codes(bright.notes) == [NoteCode.TOO_BRIGHT, NoteCode.NOT_EXPLAINED] and bright.explanation is None
    assert verdict.label is Label.REAL and verdict.fake_score == dark.fake_score


def test_without_a_fit_face_the_frame_is_inconclusive_and_says_why(make_bench: MakeBench, make_image: MakeImage) -> None:
    limits = PipelineLimits(detect=DetectLimits(min_face_px=1000))
    (outcome,) = make_bench([LEFT, RIGHT], limits=limits).pipeline.judge([EncodedImage(make_image())])
    verdict = _verdict(outcome)
    assert (verdict.label, verdict.fake_score) == (Label.INCONCLUSIVE, None)
    assert _codes(verdict.notes) == [NoteCode.FACE_TOO_SMALL]


def test_without_a_face_the_frame_is_inconclusive(make_bench: MakeBench, make_image: MakeImage) -> None:
    bench = make_bench([])
    (outcome,) = bench.pipeline.judge([EncodedImage(make_image())])
    verdict = _verdict(outcome)
    assert (verdict.label, verdict.fake_score, verdict.faces) == (Label.INCONCLUSIVE, None, ())
    assert _codes(verdict.notes) == [NoteCode.NO_FACE] and bench.analyzer.batches == []


def test_a_late_frame_is_scored_and_not_explained(make_bench: MakeBench, make_image: MakeImage) -> None:
    bench = make_bench(unix_time_s=1000.001)
    late, timely = bench.pipeline.judge([EncodedImage(make_image(), deadline_ms=1_000_000), EncodedImage(make_image(), deadline_ms=1_000_001)])
    assert bench.analyzer.policies == ["never", "auto"]
    assert _codes(_verdict(late).notes) == [NoteCode.DEADLINE_PASSED]
    assert _verdict(late).faces[0].explanation is None and NoteCode.NOT_EXPLAINED in _codes(_verdict(late).faces[0].notes)
    assert _verdict(timely).faces[0].explanation is not None and _verdict(timely).notes == ()


@pytest.mark.parametrize(
    ("query", "echo"),
    [
        pytest.param(Query(region="nose"), {"region": "nose"}, id="region"),
        pytest.param(Query(box_xyxy=(1, 2, 30, 40)), {"box": (1, 2, 30, 40)}, id="box"),
    ],
)
def test_a_query_is_echoed_and_noted_as_not_answered(make_bench: MakeBench, make_image: MakeImage, query: Query, echo: dict[str, Any]) -> None:
    (outcome,) = make_bench().pipeline.judge([EncodedImage(make_image(), query=query)])
    assert _verdict(outcome).query == echo and NoteCode.QUERY_NOT_ANSWERED in _codes(_verdict(outcome).notes)


def test_a_crop_is_judged_whole_and_its_mask_covers_the_named_half(make_bench: MakeBench, make_image: MakeImage) -> None:
    (outcome,) = make_bench().pipeline.judge([EncodedImage(make_image(width=300, height=200), is_crop=True)])
    (face,) = _verdict(outcome).faces
    assert face.box == (0, 0, 300, 200) and face.detection_confidence is None
    (item,) = face.evidence
    assert item.box == (150, 0, 300, 200) and item.concept_path == ("mid_face", "cheeks", "left_cheek")
    assert Mask(item.mask.size, item.mask.counts).area == 150 * 200


def test_phrases_lie_where_their_spans_say(make_bench: MakeBench, make_image: MakeImage) -> None:
    (outcome,) = make_bench().pipeline.judge([EncodedImage(make_image())])
    (face,) = _verdict(outcome).faces
    assert face.explanation is not None
    assert [face.explanation.text[slice(*item.char_span)] for item in face.evidence] == [item.phrase for item in face.evidence] == ["left cheek"]


def test_a_verdict_survives_the_wire(make_bench: MakeBench, make_image: MakeImage) -> None:
    (outcome,) = make_bench([LEFT, RIGHT]).pipeline.judge([EncodedImage(make_image(kind="JPEG"), "image/jpeg", uri="a.jpg")])
    verdict = _verdict(outcome)
    assert Verdict.from_bytes(verdict.to_bytes()) == verdict
    assert verdict.id == verdict.media.sha256 and verdict.input is None and verdict.media.uri == "a.jpg"
    assert set(json.loads(verdict.to_bytes())) & {"query", "timeline", "segments", "stream"} == set()


def test_each_stage_is_timed_and_the_total_is_their_sum(make_bench: MakeBench, make_image: MakeImage) -> None:
    bench = make_bench([LEFT, RIGHT])
    ticks = iter(range(1000))
    pipeline = type(bench.pipeline)(PipelineLimits(), bench.analyzer, _bundle_of(bench), clock_s=lambda: float(next(ticks)))
    first, second = (_verdict(outcome).timings_ms for outcome in pipeline.judge([EncodedImage(make_image())] * 2))
    assert first == second == {"decode": 1000.0, "detect": 1000.0, "analyze": 500.0, "masks": 1000.0, "total": 3500.0}


def _bundle_of(bench: Any) -> Any:
    return Bundle(bench.analyzer.manifest, Path("toy"), {"face_detector": bench.detector}, None, np.zeros((8, 8), np.float32))  # type: ignore[arg-type]


def _rotated_crop(frame: NDArray[np.uint8], center: tuple[float, float], side: float, roll_deg: float) -> Crop:
    x, y = center
    turn = np.deg2rad(roll_deg)
    eyes = np.array([[-np.cos(turn), -np.sin(turn)], [np.cos(turn), np.sin(turn)]]) * side / 5 + center
    landmarks = np.vstack([eyes, np.zeros((3, 2))]).astype(np.float32)
    return crop_face(frame, (x - side / 2, y - side / 2, x + side / 2, y + side / 2), landmarks, 224)


@given(
    center=st.tuples(st.floats(60, 580), st.floats(60, 420)),
    side=st.floats(48, 220),
    roll_deg=st.floats(-80, 80),
    disc=st.tuples(st.floats(0.3, 0.7), st.floats(0.3, 0.7), st.floats(0.12, 0.3)),
)
@settings(max_examples=40, deadline=None)
def test_a_mask_comes_home_to_where_it_was_cut_from(
    center: tuple[float, float], side: float, roll_deg: float, disc: tuple[float, float, float]
) -> None:
    """Draw a disc in crop coordinates, and the same disc in the frame through the crop's own map: both must agree."""
    frame = np.zeros((480, 640, 3), np.uint8)
    crop = _rotated_crop(frame, center, side, roll_deg)
    u, v, radius = disc
    grid_y, grid_x = (np.mgrid[0:112, 0:112] + 0.5) / 112
    mask_HW = mask_in_frame(((grid_x - u) ** 2 + (grid_y - v) ** 2 < radius**2).astype(np.float32), crop, (480, 640))
    ys, xs = np.mgrid[0:480, 0:640] + 0.5
    middle = crop.to_frame_23 @ (u * 224, v * 224, 1.0)
    expected_HW = (xs - middle[0]) ** 2 + (ys - middle[1]) ** 2 < (radius * 224 * np.hypot(*crop.to_frame_23[:, 0])) ** 2
    assert (mask_HW & expected_HW).sum() >= 0.93 * (mask_HW | expected_HW).sum()


def test_what_lies_beyond_the_frame_is_lost_and_nothing_else() -> None:
    frame = np.zeros((100, 120, 3), np.uint8)
    crop = crop_face(frame, (-40.0, -40.0, 40.0, 40.0), None, 224)
    mask_HW = mask_in_frame(np.ones((56, 56), np.float32), crop, (100, 120))
    assert tight_box(mask_HW) == (0, 0, 52, 52) and mask_HW[:52, :52].all()
    far = replace(crop, to_frame_23=crop.to_frame_23 + np.array([[0, 0, 1000], [0, 0, 0]]))
    assert tight_box(mask_in_frame(np.ones((56, 56), np.float32), far, (100, 120))) is None


def test_an_empty_mask_has_no_box() -> None:
    crop = whole_image_crop(np.zeros((50, 70, 3), np.uint8), 224)
    mask_HW = mask_in_frame(np.full((56, 56), 0.49, np.float32), crop, (50, 70))
    assert not mask_HW.any() and tight_box(mask_HW) is None
