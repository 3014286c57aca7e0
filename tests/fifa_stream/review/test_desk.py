"""What the page is told of a case, and what a decision holds."""

import base64
import hashlib
import json
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.contracts import Label
from engines.reviews import Decision, Review, Sampling
from fifa_stream.records import Query, RunLengths
from fifa_stream.review.cases import Point
from fifa_stream.review.desk import MAX_POINTS, Choice, Refusal, thinned, visible
from fifa_stream.review.queue import Order, Standing, Wanted
from fifa_stream.review.sources import NoPicture

HOSTILE = "<script>alert(1)</script>\u202edlo\u0000\u2066<img src=x onerror=a()>"
COUNTS_OF_2_40 = "PPPPPPPP1"
"""One run of 2**40 pixels, as COCO spells it."""
TWO_FACES = ((0.05, 0.2, 0.45, 0.8, 0.0), (0.55, 0.2, 0.95, 0.8, 0.0))
LEVELS = {Label.REAL: 60, Label.INCONCLUSIVE: 150, Label.FAKE: 220}
OPPOSITE = {Label.REAL: "fake", Label.FAKE: "real"}


def test_a_case_has_its_phrases_and_their_masks(toys: Any) -> None:
    told = toys.desk([toys.verdict(0, level=220, query=Query(region="left_cheek"))]).case(0)
    (face,) = told["faces"]
    assert face["pieces"] == [["The ", None], ["left cheek", 0], [" is too sharp.", None]]
    assert face["answer"]["pieces"] == [["The ", None], ["left cheek", 1], [" is too sharp.", None]]
    assert [mark["words"] for mark in face["marks"]] == ["left cheek", "left cheek"] and face["answer"]["area"]["n"] == 2
    assert all(mark["mask"].startswith("data:image/png;base64,") and mark["hit"].startswith("M") for mark in (*face["marks"], face["answer"]["area"]))
    assert told["noPicture"] is None and told["label"] == "fake" and told["stream"] == 0
    json.dumps(told, allow_nan=False)


def test_pictures_are_encoded_anew(toys: Any) -> None:
    desk, (sent, _) = toys.desk([toys.verdict(0, level=220)]), toys.judged(220)
    for encoded in (desk.frame_jpeg(0), desk.face_jpeg(0, 0)):
        assert encoded.startswith(b"\xff\xd8\xff") and encoded != sent and not sent.startswith(b"\xff\xd8\xff")
    with pytest.raises(Refusal):
        desk.face_jpeg(0, 5)


def test_a_picture_that_is_not_the_judged_one_is_not_shown(toys: Any) -> None:
    verdict = toys.verdict(0, level=220)
    desk = toys.desk([verdict])
    image, _ = toys.judged(60)
    frames = toys.folder / "frames.jsonl"
    line = json.loads(frames.read_text())
    frames.write_text(json.dumps(line | {"value": base64.b64encode(image).decode()}))
    told = desk.case(0)
    assert "another digest" in told["noPicture"] and told["faces"][0]["marks"][0]["mask"], "words and masks are still there"
    with pytest.raises(NoPicture):
        desk.frame_jpeg(0)


def test_a_mask_larger_than_its_picture_is_not_drawn(toys: Any) -> None:
    verdict = toys.verdict(0, level=220)
    (face,) = verdict.faces
    huge = RunLengths(size=(1 << 40, 1), counts=COUNTS_OF_2_40)
    item = face.evidence[0].model_copy(update={"mask": huge})
    desk = toys.desk([verdict.model_copy(update={"faces": (face.model_copy(update={"evidence": (item,)}),)})])
    (mark,) = desk.case(0)["faces"][0]["marks"]
    assert mark["mask"] is None and "lies on a picture of 240 x 320" in mark["flaw"]


@pytest.mark.parametrize("label", Label)
@pytest.mark.parametrize("decision", Decision)
def test_every_decision_about_every_label_is_a_review(toys: Any, label: Label, decision: Decision) -> None:
    verdict = toys.verdict(0, level=LEVELS[label])
    assert verdict.label is label
    desk = toys.desk([verdict])
    needs_truth = label is Label.INCONCLUSIVE and decision is Decision.DISAGREE
    if needs_truth:
        with pytest.raises(Refusal, match="needs the truth"):
            desk.decide(Choice(case=0, face=0, decision=decision))
    desk.decide(Choice(case=0, face=0, decision=decision, truth="fake" if needs_truth else None))
    (review,) = [Review.model_validate(line) for line in toys.lines()]
    holds = None if label is Label.INCONCLUSIVE else label.value
    expected = {Decision.SKIP: None, Decision.DISAGREE: OPPOSITE.get(label, "fake")}
    assert (review.truth, review.label, review.decision) == (expected.get(decision, holds), label, decision)


def test_a_decision_holds_all_that_scoring_needs(toys: Any) -> None:
    verdict = toys.verdict(4, level=220, query=Query(region="left_cheek"))
    choice = Choice(
        case=0, face=0, decision="wrong_place", phrases=(1,), comment=HOSTILE, segment="0.0.0", sampling="score", true_forgery_type="entire_synthesis"
    )
    toys.desk([verdict]).decide(choice)
    (review,) = [Review.model_validate(line) for line in toys.lines()]
    face = verdict.faces[0]
    assert review.verdict_sha256 == hashlib.sha256(verdict.to_bytes()).hexdigest() and review.media_sha256 == verdict.media.sha256
    assert (review.verdict, review.engine, review.stream, review.t_ms) == (verdict.id, verdict.engine.manifest_sha256, "door 7", 2000)
    assert (review.face, review.box, review.fake_score, review.raw_score) == (0, face.box, face.fake_score, face.raw_score)
    assert (review.concepts, review.objected, review.segment) == (("left_cheek",), ("left_cheek",), "0.0.0")
    assert review.evidence == (verdict.query.answers[0].evidence[0].id,)
    assert (review.reviewer, review.comment, review.sampling, review.true_forgery_type) == ("ann", HOSTILE, "score", "entire_synthesis")


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param({"case": 5}, id="no such case"),
        pytest.param({"face": 7}, id="no such face"),
        pytest.param({"face": None}, id="no face where there is one"),
        pytest.param({"phrases": (9,), "decision": "wrong_text"}, id="no such phrase"),
        pytest.param({"true_forgery_type": HOSTILE}, id="no such type"),
    ],
)
def test_a_decision_that_does_not_fit_is_refused_and_not_written(toys: Any, choice: dict[str, Any]) -> None:
    desk = toys.desk([toys.verdict(0, level=220)])
    with pytest.raises(Refusal):
        desk.decide(Choice(**{"case": 0, "face": 0, "decision": "agree"} | choice))
    assert toys.lines() == []


def test_each_face_is_decided_by_itself(toys: Any) -> None:
    _, judged = toys.judged(220, faces=TWO_FACES)
    verdict = judged.model_copy(update={"id": "fifa.frames/0/0", "input": toys.verdict(0).input})
    desk = toys.desk([verdict])
    told = desk.case(0)
    assert len(told["faces"]) == 2 and told["lead"] in (0, 1)
    other = 1 - told["lead"]
    desk.decide(Choice(case=0, face=other, decision="disagree"))
    assert desk.rows([0])[0]["mine"] is None, "the case is decided by its leading face"
    desk.decide(Choice(case=0, face=told["lead"], decision="agree"))
    assert desk.rows([0])[0]["mine"] == "agree" and {one["face"] for one in desk.case(0)["decisions"]} == {0, 1}


def test_a_picture_without_a_face_can_be_decided(toys: Any) -> None:
    _, judged = toys.judged(220, faces=())
    desk = toys.desk([judged.model_copy(update={"id": "fifa.frames/0/0", "input": toys.verdict(0).input})])
    assert desk.case(0)["faces"] == [] and desk.case(0)["notes"][0][0] == "no_face"
    desk.decide(Choice(case=0, decision="agree"))
    assert toys.lines()[0]["face"] is None and desk.rows([0])[0]["mine"] == "agree"


def test_masks_that_are_none_are_told_and_not_drawn(toys: Any) -> None:
    verdict = toys.verdict(0, level=220)
    (face,) = verdict.faces
    broken = face.evidence[0].model_copy(update={"mask": face.evidence[0].mask.model_copy(update={"counts": "~~~"})})
    wrong_size = face.evidence[0].model_copy(update={"mask": face.evidence[0].mask.model_copy(update={"size": (2, 2), "counts": "4"})})
    (told,) = toys.desk([verdict.model_copy(update={"faces": (face.model_copy(update={"evidence": (broken, wrong_size)}),)})]).case(0)["faces"]
    assert [mark["mask"] for mark in told["marks"]] == [None, None] and all(mark["flaw"] for mark in told["marks"])


def test_strings_of_a_record_leave_with_what_steers_them_made_visible(toys: Any) -> None:
    long = "y" * 40_000
    verdict = toys.verdict(0, level=220, camera=HOSTILE)
    (face,) = verdict.faces
    assert face.explanation is not None
    explained = face.explanation.model_copy(update={"text": HOSTILE + long})
    hostile = face.model_copy(update={"explanation": explained, "forgery_type": face.forgery_type.model_copy(update={"label": HOSTILE})})
    changed = verdict.model_copy(update={"id": HOSTILE, "faces": (hostile,), "media": verdict.media.model_copy(update={"uri": HOSTILE})})
    desk = toys.desk([changed])
    told = json.dumps([desk.head(), desk.rows([0]), desk.case(0), desk.stream(0)], ensure_ascii=False)
    assert not {"\u202e", "\u0000", "\u2066"} & set(told) and "\\\\u{202e}" in told and "(40" in told
    desk.decide(Choice(case=0, face=0, decision="agree"))
    assert toys.lines()[0]["verdict"] == HOSTILE, "the record itself holds what was sent"


def test_visible_text_is_printable_and_cut() -> None:
    assert visible("a\nb\u202e\x1b[0m") == "a\nb\\u{202e}\\u{1b}[0m" and visible("abc", 2) == "ab... (3 characters)"


def test_a_stream_has_its_frames_tracks_and_segments(toys: Any) -> None:
    desk = toys.desk(toys.of_a_stream(9))
    told = desk.stream(0)
    assert [frame[:2] for frame in told["frames"]] == [[number * 500, number] for number in range(9)] and told["hasTimes"]
    (track,), (segment,) = told["tracks"], told["segments"]
    assert len(track["points"]) == 9 and (segment["start"], segment["end"], segment["open"], segment["peakCase"]) == (1500, 4000, False, 8)
    assert segment["evidence"] == [["left_cheek", 0.75, 3]] and told["verdict"]["label"] == "fake"


def test_a_long_track_is_thinned_to_its_extremes() -> None:
    points = [Point(number, 0, 0, 0.5, abs(np.sin(number)), number) for number in range(50_000)]
    kept = thinned(points)
    assert len(kept) <= MAX_POINTS and [one.t_ms for one in kept] == sorted(one.t_ms for one in kept)
    assert max(points, key=lambda one: one.smoothed) in kept and min(points, key=lambda one: one.smoothed) in kept


def test_a_frame_is_shown_small(toys: Any) -> None:
    desk = toys.desk([toys.verdict(0, level=220)])
    with Image.open(BytesIO(desk.frame_jpeg(0))) as shown:
        assert max(shown.size) <= 640


def test_what_is_left_of_a_queue_whose_top_is_gone_is_no_draw_from_all_of_it(toys: Any) -> None:
    """Else a reviewer who begins at the top and goes on by chance would tell the trainer that fakes are rarer than they are."""
    desk = toys.desk(toys.of_a_stream(6))

    def came_up(standing: Standing, order: Order = Order.RANDOM, **wanted: Any) -> Sampling:
        return desk.sampling(order, Wanted(standing=standing, **wanted))

    def decide(number: int, sampling: Sampling) -> None:
        desk.decide(Choice(case=number, face=0, decision="skip", sampling=sampling))

    assert {came_up(standing) for standing in (Standing.ALL, Standing.OPEN, Standing.UNTOUCHED)} == {Sampling.RANDOM}
    decide(0, Sampling.RANDOM)
    assert came_up(Standing.OPEN) is Sampling.RANDOM, "the rest of a draw is one"
    decide(1, Sampling.SCORE)
    assert came_up(Standing.OPEN) is came_up(Standing.UNTOUCHED) is Sampling.SCORE and came_up(Standing.ALL) is Sampling.RANDOM
    decide(2, Sampling.DISAGREEMENT)
    assert came_up(Standing.OPEN) is came_up(Standing.MINE) is Sampling.OTHER
    assert came_up(Standing.OPEN, Order.SCORE) is Sampling.SCORE and came_up(Standing.ALL, Order.TIME) is Sampling.OTHER
    assert came_up(Standing.ALL, label=Label.FAKE) is came_up(Standing.ALL, stream=0) is Sampling.OTHER
    desk.undo()
    others = toys.desk(toys.of_a_stream(6), reviewer="bob")
    for standing, expected in ((Standing.OPEN, Sampling.RANDOM), (Standing.UNTOUCHED, Sampling.SCORE)):
        assert others.sampling(Order.RANDOM, Wanted(standing=standing)) is expected
