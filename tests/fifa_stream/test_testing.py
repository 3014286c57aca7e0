"""The toys stand where the engine stands: the real pipeline takes them and answers with whole verdicts."""

from collections.abc import Callable

import numpy as np
import pytest

from engines import fict
from engines.contracts import Label
from fifa_stream.infer import EncodedImage, FramePipeline, PipelineLimits
from fifa_stream.records import Query, RecordError, Verdict
from fifa_stream.testing import ToyAnalyzer, toy_answer, toy_bundle, toy_operating_point

MakeImage = Callable[..., bytes]


@pytest.fixture
def pipeline() -> FramePipeline:
    """The serving pipeline with toys in place of both engines."""
    return FramePipeline(PipelineLimits(), ToyAnalyzer(), toy_bundle())


def test_brightness_decides_and_the_wire_takes_the_answer(pipeline: FramePipeline, make_image: MakeImage) -> None:
    outcomes = pipeline.judge([EncodedImage(make_image(level=level)) for level in (60, 130, 220)] + [EncodedImage(b"text")])
    verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
    assert [verdict.label for verdict in verdicts] == [Label.REAL, Label.INCONCLUSIVE, Label.FAKE] and isinstance(outcomes[3], RecordError)
    assert [len(verdict.faces) for verdict in verdicts] == [1, 1, 1] and verdicts[0].operating_point.name == toy_operating_point().name
    assert all(Verdict.from_bytes(verdict.to_bytes()) == verdict for verdict in verdicts)


def test_the_face_is_the_middle_half_and_its_evidence_the_upper_part_of_the_crop(pipeline: FramePipeline, make_image: MakeImage) -> None:
    (outcome,) = pipeline.judge([EncodedImage(make_image(width=320, height=256, level=220))])
    assert isinstance(outcome, Verdict)
    (face,) = outcome.faces
    assert face.box == pytest.approx((80, 64, 240, 192), abs=3)
    (item,) = face.evidence
    assert face.explanation is not None and face.explanation.text[slice(*item.char_span)] == item.phrase == fict.concepts()[item.concept].phrase
    assert item.concept_path == fict.concepts()[item.concept].path
    assert item.box is not None and item.box[3] == pytest.approx(128, abs=3)  # the middle of the crop is that of the face


def test_a_crop_is_judged_whole(pipeline: FramePipeline, make_image: MakeImage) -> None:
    (outcome,) = pipeline.judge([EncodedImage(make_image(width=200, height=200, level=220), is_crop=True)])
    assert isinstance(outcome, Verdict) and outcome.faces[0].box == (0, 0, 200, 200)
    assert outcome.faces[0].evidence[0].box == (0, 0, 200, 100)


@pytest.mark.parametrize(
    ("level", "query", "text", "box"),
    [
        pytest.param(220, Query(region="right_cheek"), "The right cheek is too bright.", (77, 45, 243, 128), id="bright region"),
        pytest.param(60, Query(region="right_cheek"), "No area on the right cheek is manipulated.", None, id="dark region"),
        pytest.param(220, Query(box_xyxy=(101, 81, 180, 150)), "The forehead is too bright.", (101, 81, 180, 150), id="bright box"),
        pytest.param(60, Query(box_xyxy=(101, 81, 180, 150)), "No area in this box is manipulated.", None, id="dark box"),
    ],
)
def test_the_toy_answers_about_regions_and_boxes(
    pipeline: FramePipeline, make_image: MakeImage, level: int, query: Query, text: str, box: tuple[float, ...] | None
) -> None:
    (outcome,) = pipeline.judge([EncodedImage(make_image(width=320, height=256, level=level), query=query)])
    assert isinstance(outcome, Verdict) and outcome.query is not None and Verdict.from_bytes(outcome.to_bytes()) == outcome
    (answer,) = outcome.query.answers
    assert answer.tampered == (answer.tampered_probability >= 0.5) == (box is not None) == bool(answer.evidence)
    assert answer.explanation.text == text and all(text[slice(*item.char_span)] == item.phrase for item in answer.evidence)
    assert answer.box == (None if box is None else pytest.approx(box, abs=3))


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("third_eye", id="no concept"),
        pytest.param((5.0, 5.0, 5.0, 9.0), id="empty box"),
        pytest.param((0.0, 0.0, 225.0, 9.0), id="box beyond the crop"),
        pytest.param((-1.0, 0.0, 9.0, 9.0), id="box before the crop"),
    ],
)
def test_the_toy_refuses_what_the_engine_refuses(query: str | tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"third_eye|box"):
        toy_answer(np.zeros((224, 224, 3), np.uint8), query)
