"""Frames to verdicts: one answer each, faces batched across frames, masks at home in frame pixels."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from engines.bundle import Bundle, BundleError
from engines.contracts import Analysis, Box, Label, Mask, tight_box
from engines.preprocess import Crop, crop_face, whole_image_crop
from fifa_stream.detect import DetectLimits
from fifa_stream.in_frame import box_in_crop, mask_in_frame, whole_pixels
from fifa_stream.infer import EncodedImage, PipelineLimits
from fifa_stream.records import InputCoordinates, NoteCode, Query, QueryAnswered, RawRecord, Reason, RecordError, RunLengths, Verdict, parse_frame

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


def test_each_stream_is_judged_by_the_longest_pattern_that_its_id_matches(make_bench: MakeBench, make_image: MakeImage) -> None:
    bench = make_bench(stream_points={"live*": "toy", "live-*": "strict"})
    coordinates = InputCoordinates(topic="t", partition=0, offset=0, timestamp_ms=0, stream_id="live-7")
    here, there = bench.pipeline.judge(
        [EncodedImage(make_image(), input=coordinates.model_copy(update={"stream_id": name})) for name in ("live-7", "studio")]
    )
    assert (_verdict(here).operating_point.name, _verdict(there).operating_point.name) == ("strict", "toy")
    assert _verdict(here).fake_score == _verdict(there).fake_score
    assert (_verdict(here).label, _verdict(there).label) == (Label.REAL, Label.FAKE)
    assert _verdict(here).faces[0].explanation is None and _verdict(there).faces[0].explanation is not None


def test_a_point_of_a_stream_that_the_bundle_lacks_is_refused_by_the_settings_name(make_bench: MakeBench) -> None:
    with pytest.raises(BundleError, match=r"engine\.stream_operating_points 'live-\*': 'lax' is not in the bundle; it has: strict, toy"):
        make_bench(stream_points={"live-*": "lax"})


def test_a_late_frame_is_scored_and_not_explained(make_bench: MakeBench, make_image: MakeImage) -> None:
    bench = make_bench(unix_time_s=1000.001)
    late, timely = bench.pipeline.judge([EncodedImage(make_image(), deadline_ms=1_000_000), EncodedImage(make_image(), deadline_ms=1_000_001)])
    assert bench.analyzer.policies == ["never", "auto"]
    assert _codes(_verdict(late).notes) == [NoteCode.DEADLINE_PASSED]
    assert _verdict(late).faces[0].explanation is None and NoteCode.NOT_EXPLAINED in _codes(_verdict(late).faces[0].notes)
    assert _verdict(timely).faces[0].explanation is not None and _verdict(timely).notes == ()


def test_texts_get_the_time_that_is_left_to_their_frame(make_bench: MakeBench, make_image: MakeImage) -> None:
    bench = make_bench([LEFT, RIGHT], unix_time_s=1000.0)
    bench.pipeline.judge([EncodedImage(make_image(), deadline_ms=1_000_250), EncodedImage(make_image())])
    assert bench.analyzer.seconds_left == [0.25, 0.25, None, None]


NOSE = Query(region="nose")
OVER_LEFT = Query(box_xyxy=(20.0, 60.0, 70.0, 120.0))
"""Inside the crop of the face at `LEFT` in a frame of 320 x 240, and in no other's."""


def _answered(outcome: Verdict | RecordError) -> QueryAnswered:
    answered = _verdict(outcome).query
    assert answered is not None, "no question in the verdict"
    return answered


def _mask(lengths: RunLengths) -> NDArray[np.bool_]:
    return Mask(lengths.size, lengths.counts).decode()


def test_a_region_is_asked_of_every_face_and_each_answers_for_itself(make_bench: MakeBench) -> None:
    bench = make_bench([LEFT, RIGHT])
    (outcome,) = bench.pipeline.judge([EncodedImage(_split_image(60, 220), query=NOSE)])
    verdict, answered = _verdict(outcome), _answered(outcome)
    assert bench.analyzer.asked == ["nose", "nose"] and (answered.region, answered.box, verdict.notes) == ("nose", None, ())
    clean, tampered = sorted(answered.answers, key=lambda answer: answer.tampered)
    assert [verdict.faces[answer.face].label for answer in (clean, tampered)] == [Label.REAL, Label.FAKE]
    assert not _mask(clean.mask).any() and (clean.box, clean.evidence, clean.mask_confidence) == (None, (), 0)
    assert clean.explanation.text == "Nothing here is manipulated." and clean.tampered_probability < 0.5
    (item,) = tampered.evidence
    assert tampered.explanation.text[slice(*item.char_span)] == item.phrase and tampered.tampered_probability > 0.5
    assert tampered.box == tight_box(_mask(tampered.mask)) == item.box and tampered.mask_confidence == 0.625


def test_a_box_over_one_of_two_faces_is_asked_of_that_face_alone(make_bench: MakeBench) -> None:
    bench = make_bench([LEFT, RIGHT])
    (outcome,) = bench.pipeline.judge([EncodedImage(_split_image(220, 60), query=OVER_LEFT)])
    verdict, answered = _verdict(outcome), _answered(outcome)
    assert answered.box == OVER_LEFT.box_xyxy and verdict.notes == ()
    (answer,) = answered.answers
    assert answer.tampered and verdict.faces[answer.face].box[0] < 160
    assert answer.box == (20, 60, 70, 120) and answer.evidence[0].box == (20, 60, 70, 120)  # the toy's mask spills over the whole crop
    assert [query for query in bench.analyzer.asked if query is not None] == [bench.analyzer.asked[answer.face]]


def test_a_question_changes_nothing_that_is_said_of_the_whole_face(make_bench: MakeBench, make_image: MakeImage) -> None:
    plain, asked = make_bench([LEFT, RIGHT]).pipeline.judge([EncodedImage(make_image()), EncodedImage(make_image(), query=NOSE)])
    assert _verdict(asked).model_copy(update={"query": None}) == plain


def test_a_question_is_answered_when_explanations_are_off(make_bench: MakeBench, make_image: MakeImage) -> None:
    (outcome,) = make_bench(limits=PipelineLimits(explain="never")).pipeline.judge([EncodedImage(make_image(), query=NOSE)])
    assert _verdict(outcome).faces[0].explanation is None and _answered(outcome).answers[0].tampered


def test_questions_of_a_batch_reach_their_own_faces(make_bench: MakeBench, make_image: MakeImage) -> None:
    bench = make_bench([LEFT, RIGHT], limits=PipelineLimits(max_batch_faces=3))
    images = [EncodedImage(make_image()), EncodedImage(make_image(), query=NOSE), EncodedImage(make_image(), query=Query(region="left_eyelids"))]
    outcomes = bench.pipeline.judge(images)
    assert bench.analyzer.asked == [None, None, "nose", "nose", "left_eyelids", "left_eyelids"]
    assert [len(outcome.query.answers) if outcome.query else None for outcome in map(_verdict, outcomes)] == [None, 2, 2]


@pytest.mark.parametrize(
    ("levels", "query"),
    [
        pytest.param((), NOSE, id="whole faces only"),
        pytest.param(("box",), NOSE, id="boxes only"),
        pytest.param(("region",), OVER_LEFT, id="regions only"),
    ],
)
def test_a_bundle_without_the_level_is_not_asked_and_says_so(
    make_bench: MakeBench, make_image: MakeImage, levels: tuple[str, ...], query: Query
) -> None:
    bench = make_bench([LEFT], query_levels=levels)
    (outcome,) = bench.pipeline.judge([EncodedImage(make_image(), query=query)])
    assert bench.analyzer.asked == [None] and _codes(_verdict(outcome).notes) == [NoteCode.QUERY_NOT_ANSWERED]
    assert _answered(outcome) == QueryAnswered(region=query.region, box=query.box_xyxy)


@pytest.mark.parametrize(
    ("faces", "query", "says"),
    [
        pytest.param([], NOSE, "there is no face", id="no face"),
        pytest.param([LEFT], Query(box_xyxy=(200, 10, 300, 200)), "touches no face", id="beside the face"),
        pytest.param([LEFT], Query(box_xyxy=(400, 10, 500, 200)), "320 x 240", id="beyond the frame"),
        pytest.param([LEFT], Query(box_xyxy=(50.2, 80.2, 50.9, 90)), "touches no face", id="no whole pixel"),
    ],
)
def test_a_question_that_is_on_no_face_says_so(make_bench: MakeBench, make_image: MakeImage, faces: list[Any], query: Query, says: str) -> None:
    bench = make_bench(faces)
    (outcome,) = bench.pipeline.judge([EncodedImage(make_image(), query=query)])
    note = _verdict(outcome).notes[-1]
    assert note.code is NoteCode.QUERY_NOT_ON_A_FACE and says in note.message and _answered(outcome).answers == ()
    assert bench.analyzer.asked == [None] * len(faces)


def test_a_box_on_the_black_beyond_the_frame_is_on_no_face(make_bench: MakeBench, make_image: MakeImage) -> None:
    """The crop reaches over the right edge of the frame; what it shows there is padding."""
    bench = make_bench([(0.7, 0.2, 1.0, 0.8, 0.0)])
    beyond, across = bench.pipeline.judge(
        [EncodedImage(make_image(), query=Query(box_xyxy=box)) for box in ((321.0, 100.0, 340.0, 140.0), (300.0, 100.0, 340.0, 140.0))]
    )
    assert NoteCode.QUERY_NOT_ON_A_FACE in _codes(_verdict(beyond).notes) and bench.analyzer.asked[0] is None
    assert _answered(across).answers[0].box == (300, 100, 320, 140)


def test_a_late_face_is_not_asked(make_bench: MakeBench, make_image: MakeImage) -> None:
    bench = make_bench(unix_time_s=1000.001)
    (outcome,) = bench.pipeline.judge([EncodedImage(make_image(), deadline_ms=1_000_000, query=NOSE)])
    assert bench.analyzer.asked == [None] and _answered(outcome).answers == ()
    assert _codes(_verdict(outcome).notes) == [NoteCode.DEADLINE_PASSED, NoteCode.QUERY_NOT_ANSWERED]


def test_an_unfit_face_is_not_asked_and_others_are(make_bench: MakeBench) -> None:
    limits = PipelineLimits(detect=DetectLimits(max_brightness=200))
    bench = make_bench([LEFT, RIGHT], limits=limits)
    both, unfit = bench.pipeline.judge([EncodedImage(_split_image(230, 60), query=query) for query in (NOSE, OVER_LEFT)])
    (answer,) = _answered(both).answers
    assert _verdict(both).faces[answer.face].quality.passed and _verdict(both).notes == ()
    assert _answered(unfit).answers == () and _codes(_verdict(unfit).notes) == [NoteCode.QUERY_NOT_ANSWERED]
    assert "fit to be judged" in _verdict(unfit).notes[0].message


def test_an_answer_that_hit_the_length_limit_is_noted_on_its_face(
    make_bench: MakeBench, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    whole = bench.analyzer.analyze

    def cut_short(crops_BHWC: NDArray[np.uint8], **rest: Any) -> list[Analysis]:
        analyses: list[Analysis] = whole(crops_BHWC, **rest)
        answers = [analysis.answer for analysis in analyses]
        assert all(answers), "every face is asked"
        return [
            replace(analysis, answer=replace(answer, explanation=replace(answer.explanation, truncated=True)))
            for analysis, answer in zip(analyses, answers, strict=True)
            if answer is not None
        ]

    monkeypatch.setattr(bench.analyzer, "analyze", cut_short)
    (outcome,) = bench.pipeline.judge([EncodedImage(make_image(), query=NOSE)])
    (note,) = _verdict(outcome).faces[0].notes
    assert note.code is NoteCode.EXPLANATION_TRUNCATED and "answer" in note.message


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
    scale = np.hypot(*crop.to_frame_23[:, 0])
    from_edge_HW = np.hypot(xs - middle[0], ys - middle[1]) - radius * 224 * scale
    # A disc of 8 px is mostly edge, so no share of its area is asked for: what differs lies within 0.6 mask cells of the edge (a cell is 2 px).
    assert np.abs(from_edge_HW[mask_HW != (from_edge_HW < 0)]).max(initial=0) < 0.6 * 2 * scale


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


FRAME_HW = (240, 320)


def _crop_at(box_xyxy: Box, roll_deg: float = 0.0) -> Crop:
    x0, y0, x1, y1 = box_xyxy
    frame = np.zeros((*FRAME_HW, 3), np.uint8)
    return _rotated_crop(frame, ((x0 + x1) / 2, (y0 + y1) / 2), x1 - x0, roll_deg) if roll_deg else crop_face(frame, box_xyxy, None, 224)


def _to_crop(crop: Crop, points_N2: NDArray[np.float64]) -> NDArray[np.float64]:
    """Frame to crop, by solving the crop's own map for each point."""
    moved: NDArray[np.float64] = np.linalg.solve(crop.to_frame_23[:, :2], (points_N2 - crop.to_frame_23[:, 2]).T).T
    return moved


@pytest.mark.parametrize(
    ("box", "in_crop"),
    [
        pytest.param((50, 40, 100, 90), (0, 0, 56, 56), id="over the top left corner"),
        pytest.param((150, 40, 200, 90), (168, 0, 224, 56), id="over the top right corner"),
        pytest.param((50, 140, 100, 190), (0, 168, 56, 224), id="over the bottom left corner"),
        pytest.param((150, 140, 200, 190), (168, 168, 224, 224), id="over the bottom right corner"),
        pytest.param((100, 90, 150, 140), (56, 56, 168, 168), id="inside"),
        pytest.param((0, 0, 320, 240), (0, 0, 224, 224), id="around it"),
        pytest.param((0, 0, 75, 65), None, id="touching the top left corner from outside"),
        pytest.param((175, 0, 320, 65), None, id="touching the top right corner from outside"),
        pytest.param((0, 165, 75, 240), None, id="touching the bottom left corner from outside"),
        pytest.param((175, 165, 320, 240), None, id="touching the bottom right corner from outside"),
        pytest.param((60, 100, 75.4, 130), None, id="less than a crop pixel of it"),
        pytest.param((60, 100, 76, 130), (0, 78.4, 2.24, 145.6), id="more than a crop pixel of it"),
    ],
)
def test_a_box_in_the_frame_is_a_box_in_the_crop(box: Box, in_crop: Box | None) -> None:
    """The crop is (75, 65) to (175, 165) in the frame, 2.24 of its pixels to one of the frame."""
    crop = _crop_at((95.0, 65.0, 155.0, 165.0))
    assert crop.to_frame_23[:, 2] == pytest.approx((75, 65))
    taken = box_in_crop(box, crop)
    assert taken == (None if in_crop is None else pytest.approx(in_crop))


@pytest.mark.parametrize("at", [pytest.param((x, y), id=f"{x},{y}") for x in (0, 1) for y in (0, 1)])
def test_each_corner_of_an_image_that_is_a_crop_is_its_own(at: tuple[int, int], make_bench: MakeBench, make_image: MakeImage) -> None:
    x, y = at
    box = (x * 270.0, y * 160.0, 30 + x * 270.0, 40 + y * 160.0)
    bench = make_bench()
    (outcome,) = bench.pipeline.judge([EncodedImage(make_image(width=300, height=200), is_crop=True, query=Query(box_xyxy=box))])
    assert bench.analyzer.asked == [pytest.approx((x * 201.6, y * 179.2, 22.4 + x * 201.6, 44.8 + y * 179.2))]
    assert _answered(outcome).answers[0].box == box


@pytest.mark.parametrize(
    ("beside", "is_touched"),
    [
        pytest.param((-20, -20, 20, -3), False, id="above it: only the frame's axes tell"),
        pytest.param((5, -20, 40, 3), False, id="right of it: only the crop's axes tell"),
        pytest.param((-20, -20, 20, 3), True, id="over it"),
        pytest.param((5, -20, 40, 9), True, id="over its right side"),
    ],
)
def test_a_box_near_the_corner_of_a_turned_crop_touches_it_or_does_not(beside: Box, is_touched: bool) -> None:
    crop = _crop_at((100.0, 60.0, 200.0, 160.0), roll_deg=45.0)
    x, y = crop.to_frame_23 @ (0.0, 0.0, 1.0)  # the corner that points up
    x0, y0, x1, y1 = beside
    assert (box_in_crop((x + x0, y + y0, x + x1, y + y1), crop) is not None) == is_touched


CROPS = st.builds(
    lambda x, y, side, roll_deg: _crop_at((x - side / 2, y - side / 2, x + side / 2, y + side / 2), roll_deg),
    st.floats(-20, 340),
    st.floats(-20, 260),
    st.floats(30, 260),
    st.just(0.0) | st.floats(16, 80) | st.floats(-80, -16),
)
BOXES = st.builds(
    lambda x, y, width, height: (x, y, x + width, y + height), st.floats(0, 330), st.floats(0, 250), st.floats(0.1, 330), st.floats(0.1, 250)
)


@given(crop=CROPS, box=BOXES)
@settings(max_examples=150, deadline=None)
def test_what_a_box_shares_with_a_crop_is_inside_its_box_in_the_crop(crop: Crop, box: Box) -> None:
    x0, y0, x1, y1 = box
    points_N2 = np.stack(np.meshgrid(np.linspace(x0, x1, 23), np.linspace(y0, y1, 23)), -1).reshape(-1, 2)
    moved_N2 = _to_crop(crop, points_N2)
    shared_N2 = moved_N2[((moved_N2 >= 0) & (moved_N2 <= 224)).all(axis=1)]
    taken = box_in_crop(box, crop)
    if taken is None:
        assert len(shared_N2) == 0 or np.ptp(shared_N2, axis=0).min() < 1
        return
    u0, v0, u1, v1 = taken
    assert min(u0, v0) >= 0 and max(u1, v1) <= 224 and min(u1 - u0, v1 - v0) >= 1
    assert (shared_N2 >= np.array([u0, v0]) - 1e-6).all() and (shared_N2 <= np.array([u1, v1]) + 1e-6).all()


@given(crop=CROPS, box=BOXES)
@settings(max_examples=100, deadline=None)
def test_a_mask_cut_to_a_box_keeps_every_pixel_that_lies_in_it_whole_and_no_other(crop: Crop, box: Box) -> None:
    full_HW = mask_in_frame(np.ones((56, 56), np.float32), crop, FRAME_HW)
    cut_HW = mask_in_frame(np.ones((56, 56), np.float32), crop, FRAME_HW, only_in=box)
    ys, xs = np.mgrid[0 : FRAME_HW[0], 0 : FRAME_HW[1]]
    inside_HW = (xs >= box[0]) & (xs + 1 <= box[2]) & (ys >= box[1]) & (ys + 1 <= box[3])
    assert (cut_HW == (full_HW & inside_HW)).all()
    assert (whole_pixels(box, FRAME_HW) is None) == (not inside_HW.any())


@given(box=BOXES, roll_deg=st.sampled_from([0.0, 33.0]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_box_is_asked_the_answer_stays_inside_it_or_a_note_says_why_there_is_none(
    make_bench: MakeBench, make_image: MakeImage, box: Box, roll_deg: float
) -> None:
    """Both fixtures only build, so sharing them between examples is sound."""
    bench = make_bench([(*LEFT[:4], roll_deg), (*RIGHT[:4], roll_deg)])
    (outcome,) = bench.pipeline.judge([EncodedImage(make_image(), query=Query(box_xyxy=box))])
    answers = _answered(outcome).answers
    assert bool(answers) != (NoteCode.QUERY_NOT_ON_A_FACE in _codes(_verdict(outcome).notes))
    for answer in answers:
        for tight in (answer.box, *(item.box for item in answer.evidence)):
            assert tight is None or (box[0] <= tight[0] and box[1] <= tight[1] and tight[2] <= box[2] and tight[3] <= box[3])
    for asked in bench.analyzer.asked:
        assert asked is None or (min(asked) >= 0 and asked[0] < asked[2] <= 224 and asked[1] < asked[3] <= 224)
