"""A video file is a stream by itself: who is manipulated when, and one explained frame a segment, whatever is held at once."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.analyzer import ExplainPolicy
from engines.contracts import Label
from fifa_stream.analyze import analyze_images
from fifa_stream.analyze_video import VideoOptions, judge_video, remember
from fifa_stream.infer import EncodedImage, FramePipeline, PipelineLimits
from fifa_stream.records import Reason, RecordError, Verdict
from fifa_stream.testing import ToyAnalyzer, toy_bundle
from fifa_stream.video import Chunk
from tests.fifa_stream.test_video import faces_clip

UNTOUCHED, MANIPULATED = 50, 215
LEVELS = [UNTOUCHED] * 12 + [MANIPULATED] * 8 + [UNTOUCHED] * 12
"""Grays of a clip with one frame a second; the toy engine's score."""


def toys(limits: PipelineLimits | None = None) -> FramePipeline:
    return FramePipeline(limits or PipelineLimits(), ToyAnalyzer(), toy_bundle())


def judged(levels: list[int], pipeline: FramePipeline | None = None, **options: float) -> Verdict:
    return judge_video(EncodedImage(faces_clip(levels), uri="clip.mp4"), pipeline or toys(), options=VideoOptions(**options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    return judged(LEVELS)


def test_a_manipulated_stretch_is_one_segment_with_its_times(verdict: Verdict) -> None:
    assert verdict.segments is not None and verdict.stream is not None
    (segment,) = verdict.segments
    assert (segment.start_ms, segment.end_ms, segment.is_open) == (12_000, 19_000, False)
    assert (segment.forgery_type, [item.concept for item in segment.evidence]) == ("identity_swap", ["forehead"])
    assert (verdict.stream.id, verdict.stream.state, verdict.stream.label, verdict.stream.num_segments) == ("clip.mp4", "ended", Label.FAKE, 1)


def test_every_sampled_frame_has_its_point_on_the_timeline(verdict: Verdict) -> None:
    assert verdict.timeline is not None and verdict.frames is not None
    assert [(point.frame, point.t_ms) for point in verdict.timeline] == [(frame.index, frame.pts_ms) for frame in verdict.frames]
    assert {point.track for point in verdict.timeline} == {0}


def test_of_a_segment_the_frame_at_its_peak_is_explained_and_no_other(verdict: Verdict) -> None:
    assert verdict.frames is not None and verdict.segments is not None
    explained = [frame.pts_ms for frame in verdict.frames if any(face.explanation for face in frame.faces)]
    assert explained == [verdict.segments[0].peak_ms]


def test_an_untouched_video_has_no_segment_and_is_real() -> None:
    untouched = judged([UNTOUCHED] * 16)
    assert untouched.segments == () and untouched.stream is not None and untouched.stream.label is Label.REAL


def test_the_size_of_a_batch_changes_nothing(verdict: Verdict) -> None:
    alone = judged(LEVELS, toys(PipelineLimits(max_batch_faces=1)))
    assert alone == verdict


def test_a_file_is_one_stream_however_few_of_its_frames_are_looked_at() -> None:
    seldom = judged([MANIPULATED, *LEVELS[1:]], fps=0.08)
    assert seldom.frames is not None and [frame.pts_ms for frame in seldom.frames] == [0, 13_000, 25_000]
    assert seldom.stream is not None
    assert (seldom.stream.epoch, seldom.stream.start_ms, seldom.stream.num_frames) == (0, 0, 3)


def test_explanations_are_made_for_every_frame_or_for_none_when_asked() -> None:
    image = EncodedImage(faces_clip(LEVELS[10:14]))
    never = judge_video(image, toys(PipelineLimits(explain="never")), explain="never")
    always = judge_video(image, toys(PipelineLimits(explain="always")), explain="always")
    assert [face.explanation is None for face in never.all_faces] == [True] * 4
    assert [face.explanation is None for face in always.all_faces] == [False] * 4


def test_the_verdict_of_a_file_goes_over_the_wire_and_back(verdict: Verdict) -> None:
    assert Verdict.from_bytes(verdict.to_bytes()) == verdict


def test_a_video_that_is_cut_off_is_one_refusal_with_its_reason() -> None:
    with pytest.raises(RecordError) as caught:
        judge_video(EncodedImage(faces_clip(LEVELS[:4])[:-200]), toys())
    assert caught.value.reason is Reason.UNDECODABLE_VIDEO


def test_what_was_remembered_of_a_part_is_what_the_whole_says_of_it(verdict: Verdict) -> None:
    assert verdict.frames is not None and verdict.timeline is not None
    told, _ = remember(verdict.frames[:15], verdict.id)
    assert [point.smoothed for point in told.timeline] == [point.smoothed for point in verdict.timeline[:15]]


def test_videos_and_images_are_answered_in_the_order_given(tmp_path: Path, make_image: object, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "c.png"):
        (tmp_path / name).write_bytes(make_image())  # type: ignore[operator]
    (tmp_path / "b.mp4").write_bytes(faces_clip(LEVELS))
    (tmp_path / "d.mp4").write_bytes(faces_clip(LEVELS)[:80])
    assert analyze_images([tmp_path], toys(), as_json=True, html=tmp_path / "page.html") == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line.get("uri") or line["media"]["uri"]).name for line in lines] == ["a.png", "b.mp4", "c.png", "d.mp4"]
    assert [("stream" in line, line.get("error", {}).get("reason")) for line in lines] == [
        (False, None),
        (True, None),
        (False, None),
        (False, "undecodable_video"),
    ]
    page = (tmp_path / "page.html").read_text()
    assert "track 0, 12.0-19.0 s: identity swap" in page and "24 of 32 frames that were looked at" in page


def test_the_table_tells_the_stream_and_its_segments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b.mp4").write_bytes(faces_clip(LEVELS))
    assert analyze_images([tmp_path / "b.mp4"], toys()) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "32 in 32" in told and "track 0" in told


def test_frames_without_a_face_are_not_held_back(make_bench: Callable[..., Any]) -> None:
    """A long video of nothing is looked at in pieces as well, and shows its progress."""
    told: list[tuple[int, int]] = []
    pipeline = make_bench([], limits=PipelineLimits(max_batch_faces=4)).pipeline
    pieces = watched_pieces(pipeline, faces_clip([0] * 10), told)
    assert not any(picture.found.faces for pictures in pieces for picture in pictures)
    assert [len(pictures) for pictures in pieces] == [4, 4, 2] and told[-1] == (10, 10)


def watched_pieces(pipeline: FramePipeline, clip: bytes, told: list[tuple[int, int]]) -> list[list[Any]]:
    pieces: list[list[Any]] = []
    watched = pipeline._watched

    def noting(chunk: Chunk, image: EncodedImage, pictures: list[Any], explain: ExplainPolicy) -> Iterator[Any]:
        pieces.append(list(pictures))
        return watched(chunk, image, pictures, explain)

    pipeline._watched = noting  # type: ignore[method-assign]
    pipeline.judge_video(EncodedImage(clip), VideoOptions().limits, to_explain=lambda frames: [], progress=lambda *at: told.append(at))
    return pieces
