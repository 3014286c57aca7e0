"""Files of reviews: what counts, what is refused and where, and who belongs to whom."""

import base64
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.reviews import Decision, Review, Sampling
from trainer.reviews import MAX_LINE_BYTES, Case, Fault, ReviewsError, key_of, read_reviews, same_identity

MakeReview = Callable[..., Review]
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def write(path: Path, *reviews: Review) -> Path:
    path.write_text("".join(review.model_dump_json() + "\n" for review in reviews), encoding="utf-8")
    return path


def case_of(*reviews: Review) -> Case:
    return Case(key_of(reviews[0]), reviews)


def test_of_one_reviewer_and_face_the_latest_counts_wherever_it_stands(make_review: MakeReview, tmp_path: Path) -> None:
    late = make_review(1, truth="real", decided_at=NOON)
    path = write(tmp_path / "r.jsonl", late, make_review(1, decided_at=NOON - timedelta(hours=1)), make_review(1, reviewer="grace"))
    read = read_reviews(path)
    assert {review.reviewer: review.truth for review in read.counted} == {"ada": "real", "grace": "fake"} and read.superseded == 1
    assert len(read.cases()) == 1 and read.cases()[0].is_disputed and read.cases()[0].truth is None


def test_what_was_withdrawn_counts_nothing(make_review: MakeReview, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", make_review(1), make_review(1, truth=None, withdrawn=True, decided_at=NOON), make_review(2))
    read = read_reviews(path)
    assert [review.stream for review in read.counted] == ["cam-2"] and read.withdrawn == 1 and read.superseded == 1


def test_two_engines_that_answer_one_record_are_two_cases(make_review: MakeReview, tmp_path: Path) -> None:
    read = read_reviews(write(tmp_path / "r.jsonl", make_review(1), make_review(1, engine="f" * 64)))
    assert len(read.cases()) == 2 and len(read.cases("f" * 64)) == 1 and read.superseded == 0


def test_a_stream_may_be_left_out(make_review: MakeReview, tmp_path: Path) -> None:
    read = read_reviews(write(tmp_path / "r.jsonl", *(make_review(number) for number in range(4))), without=["cam-1"])
    assert {review.stream for review in read.counted} == {"cam-0", "cam-2", "cam-3"} and read.left_out == 1


@settings(max_examples=20)
@given(order=st.randoms())
def test_cases_do_not_depend_on_the_order_of_the_file(
    make_review: MakeReview, tmp_path_factory: pytest.TempPathFactory, order: random.Random
) -> None:
    reviews = [make_review(n // 2, reviewer=f"r{n % 2}", decided_at=NOON + timedelta(seconds=n)) for n in range(8)]
    shuffled = order.sample(reviews, len(reviews))
    folder = tmp_path_factory.mktemp("order")
    assert read_reviews(write(folder / "a", *reviews)).cases() == read_reviews(write(folder / "b", *shuffled)).cases()


@pytest.mark.parametrize(
    ("line", "fault", "words"),
    [
        pytest.param("{", Fault.NOT_JSON, "line 2: '{", id="not-json"),
        pytest.param("{}", Fault.NOT_A_REVIEW, "line 2: verdict: Field required", id="not-a-review"),
        pytest.param("7", Fault.NOT_A_REVIEW, "line 2: the line", id="no-object"),
        pytest.param("x" * (MAX_LINE_BYTES + 1), Fault.LINE_TOO_LONG, "line 2: more than", id="too-long"),
    ],
)
def test_the_first_line_that_is_no_review_is_named(make_review: MakeReview, tmp_path: Path, line: str, fault: Fault, words: str) -> None:
    path = write(tmp_path / "r.jsonl", make_review(1))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ReviewsError, match=words) as refused:
        read_reviews(path)
    assert refused.value.fault is fault


@pytest.mark.parametrize(
    ("changed", "fault", "words"),
    [
        pytest.param({"truth": "real"}, Fault.NOT_A_REVIEW, "means truth fake, got real", id="contradiction"),
        pytest.param({"engine": "short"}, Fault.NOT_A_REVIEW, "engine: .*'short'", id="digest"),
        pytest.param({"concepts": ["mouthh"]}, Fault.UNKNOWN_CONCEPT, "'mouthh' is no FICT concept", id="concept"),
        pytest.param({"sampling": "chance"}, Fault.NOT_A_REVIEW, "sampling: .*'chance'", id="sampling"),
        pytest.param({"mood": "good"}, Fault.NOT_A_REVIEW, "mood: Extra inputs", id="unknown-field"),
    ],
)
def test_a_field_that_does_not_fit_is_named_with_its_value(
    make_review: MakeReview, tmp_path: Path, changed: dict[str, object], fault: Fault, words: str
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(json.loads(make_review(1).model_dump_json()) | changed))
    with pytest.raises(ReviewsError, match=f"line 1: .*{words}") as refused:
        read_reviews(path)
    assert refused.value.fault is fault


def test_a_recording_of_the_topic_is_read_as_the_reviews_in_it(make_review: MakeReview, tmp_path: Path) -> None:
    reviews = [make_review(number) for number in range(3)]
    records = [{"topic": "fifa.reviews", "offset": 0, "value": base64.b64encode(review.model_dump_json().encode()).decode()} for review in reviews]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (*records, records[0] | {"value": None})))
    assert read_reviews(tmp_path / "r.jsonl").cases() == read_reviews(write(tmp_path / "plain", *reviews)).cases()
    (tmp_path / "r.jsonl").write_text(json.dumps(records[0] | {"value": "no base64"}))
    with pytest.raises(ReviewsError, match="line 1: the value of the record is not base64"):
        read_reviews(tmp_path / "r.jsonl")


def test_a_record_whose_value_is_not_base64_is_named(make_review: MakeReview, tmp_path: Path) -> None:
    path = tmp_path / "reviews.jsonl"
    for value in ("not base64", "\u00e4"):
        path.write_text(
            make_review(1).model_dump_json() + "\n" + json.dumps({"offset": 1, "value": value}, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        with pytest.raises(ReviewsError, match=r"reviews\.jsonl, line 2: the value of the record is not base64"):
            read_reviews(path)


def test_a_file_is_bounded(make_review: MakeReview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.reviews.MAX_REVIEWS", 2)
    with pytest.raises(ReviewsError, match="line 3: more than 2 reviews"):
        read_reviews(write(tmp_path / "r.jsonl", *(make_review(number) for number in range(3))))


def test_no_file_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReviewsError, match="is missing"):
        read_reviews(tmp_path / "none")
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(ReviewsError, match="holds no review"):
        read_reviews(tmp_path / "empty")
    with pytest.raises(ReviewsError, match="cannot be read"):
        read_reviews(tmp_path)


def test_most_voices_decide_and_a_tie_decides_nothing(make_review: MakeReview) -> None:
    three = case_of(make_review(1), make_review(1, reviewer="b"), make_review(1, truth="real", reviewer="c"))
    assert three.truth == "fake" and three.decision is Decision.AGREE and three.is_disputed
    two = case_of(make_review(1), make_review(1, truth="real", reviewer="b"))
    assert two.truth is None and two.decision is None
    skipped = case_of(make_review(1, truth=None), make_review(1, reviewer="b"))
    assert skipped.decision is Decision.AGREE and case_of(make_review(1, truth=None)).decision is Decision.SKIP


def test_an_objection_speaks_of_the_phrases_it_names_else_of_all(make_review: MakeReview) -> None:
    named = make_review(1, decision="wrong_place", evidence=("0.0",), objected=("mouth",))
    assert case_of(named).objections(Decision.WRONG_PLACE) == {"mouth"} and not case_of(named).objections(Decision.WRONG_TEXT)
    assert case_of(make_review(1, decision="wrong_place")).objections(Decision.WRONG_PLACE) == {"mouth", "nose"}
    assert not case_of(named, make_review(1, reviewer="b")).objections(Decision.WRONG_PLACE), "half of the voices are not most"


def test_a_case_that_came_from_a_segment_was_not_drawn_at_random(make_review: MakeReview) -> None:
    assert case_of(make_review(1)).sampling is Sampling.RANDOM
    assert case_of(make_review(1, segment="0.0.40")).sampling is Sampling.OTHER


def test_what_one_reviewer_drew_at_random_stays_so_whoever_else_looks(make_review: MakeReview) -> None:
    def by(*ways: str | None) -> Sampling | None:
        return case_of(*(make_review(1, reviewer=f"r{number}", sampling=way) for number, way in enumerate(ways))).sampling

    assert by("random", "score") is by("disagreement", None, "random") is Sampling.RANDOM
    assert by("disagreement", "score") is Sampling.SCORE and by("uncertainty", None) is Sampling.UNCERTAINTY
    assert by("disagreement", None) is by(None) is None and by("disagreement", "other") is Sampling.OTHER
    assert case_of(make_review(1), make_review(1, reviewer="b", segment="0.0.40")).sampling is Sampling.RANDOM


def test_streams_that_show_one_picture_are_one_identity(make_review: MakeReview) -> None:
    shared = make_review(1, stream="b")
    chain = [make_review(1, stream="c"), shared, make_review(2, stream="b"), make_review(2, stream="a"), make_review(3, stream="d")]
    found = same_identity(chain)
    assert {found[f"stream {name}"] for name in "abc"} == {"stream a"} and found["stream d"] == "stream d"
    alone = same_identity([make_review(4, stream=None), make_review(5, stream=None)])
    assert len(set(alone.values())) == 2, "pictures of no stream are each by themselves"
