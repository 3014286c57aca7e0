"""Figures of agreement where they can be counted by hand, and what they claim to speak of."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from engines.analyzer import Analyzer
from engines.contracts import OperatingPoint
from engines.reviews import Review
from trainer.agreement import agreement_tables, cohen_kappa, engine_of, fleiss_kappa, label_table, queue_table, rescored, write_agreement
from trainer.fifa_bench.intervals import UndefinedMetric, clustered_wilson
from trainer.review_sampling import MIN_STRATUM, NUM_BINS, SelectionError, Unrepresentative, counted_in_bins, read_totals, selected
from trainer.reviewer_error import reviewer_error, stated_error, without_error
from trainer.reviews import Case, Reviews

MakeReview = Callable[..., Review]
E = "e" * 64


def read(reviews: Sequence[Review]) -> Reviews:
    return Reviews(tuple(reviews), 0, 0, 0, "0" * 64)


def cases_of(reviews: Sequence[Review]) -> list[Case]:
    return list(read(reviews).cases())


# --- Intervals --------------------------------------------------------------------------------------------------------------------------------


@given(hits=st.lists(st.booleans(), min_size=2, max_size=60))
def test_with_a_stream_a_face_the_interval_is_wilsons_or_a_little_wider(hits: list[bool]) -> None:
    low, high = clustered_wilson(hits, [str(number) for number in range(len(hits))])
    plain = stats.binomtest(sum(hits), len(hits)).proportion_ci(0.95, "wilson")
    assert 0 <= low <= plain.low + 1e-9 and plain.high - 1e-9 <= high <= 1
    if sum(hits) in (0, len(hits)):
        assert (low, high) == pytest.approx((plain.low, plain.high), abs=1e-9)


@given(hits=st.lists(st.booleans(), min_size=3, max_size=20), copies=st.integers(2, 6))
def test_the_same_frames_again_tell_nothing_new(hits: list[bool], copies: int) -> None:
    streams = [str(number) for number in range(len(hits))]
    once, often = clustered_wilson(hits, streams), clustered_wilson(hits * copies, streams * copies)
    assert often == pytest.approx(once, abs=1e-9) or often.high - often.low >= (once.high - once.low) * 0.999


def test_an_interval_of_nothing_is_undefined() -> None:
    with pytest.raises(UndefinedMetric, match="no rows"):
        clustered_wilson([], [])


# --- Tables -----------------------------------------------------------------------------------------------------------------------------------


def test_every_decision_is_counted_once_and_intervals_are_over_streams(make_review: MakeReview) -> None:
    reviews = [make_review(number, stream=f"cam-{number % 5}") for number in range(6)]
    reviews += [
        make_review(10, truth="real"),
        make_review(11, decision="wrong_place"),
        make_review(12, decision="wrong_text"),
        make_review(13, truth=None),
    ]
    row = agreement_tables(read(reviews), E)["decisions"]["all"]
    assert (row["faces"], row["streams"], row["skipped"]) == (9, 8, 1)
    shares = {name: row[name] for name in ("agree", "disagree", "wrong_place", "wrong_text", "label_holds")}
    assert shares == pytest.approx({"agree": 6 / 9, "disagree": 1 / 9, "wrong_place": 1 / 9, "wrong_text": 1 / 9, "label_holds": 8 / 9})
    assert row["agree_low"] < row["agree"] < row["agree_high"]


def test_reviews_of_another_engine_are_counted_apart(make_review: MakeReview) -> None:
    other = "f" * 64
    tables = agreement_tables(read([make_review(1), make_review(2, truth="real", engine=other), make_review(3, truth="real", engine=other)]), E)
    assert tables["decisions"]["all"]["faces"] == 1 and tables["labels"]["called fake"]["precision"] == 1
    scored = {name: row["scored"] for name, row in tables["reviews"].items()}
    assert scored == {"engine eeeeeeeeeeee": "yes", "engine ffffffffffff": "no"}


def test_the_engine_is_named_where_the_file_leaves_a_choice(make_review: MakeReview) -> None:
    both = read([make_review(1), make_review(2, engine="f" * 64)])
    assert engine_of(both, "ff", None) == "f" * 64 and engine_of(both, None, E) == E and engine_of(read([make_review(1)]), None, "0" * 64) == E
    with pytest.raises(ValueError, match=r"several engines.*--of"):
        engine_of(both, None, None)
    with pytest.raises(ValueError, match="begins 0"):
        engine_of(both, "12", None)
    with pytest.raises(ValueError, match="no review speaks of engine"):
        agreement_tables(both, "1" * 64)


def test_concepts_bear_the_objections_that_name_them(make_review: MakeReview) -> None:
    reviews = [make_review(1), make_review(2, decision="wrong_place", objected=("mouth",)), make_review(3, decision="wrong_text", concepts=("nose",))]
    table = agreement_tables(read(reviews), E)["objections by concept"]
    assert table["mouth"]["faces"] == 2 and table["mouth"]["wrong_place"] == 0.5 and table["mouth"]["wrong_text"] == 0
    assert table["nose"]["faces"] == 3 and table["nose"]["wrong_place"] == 0 and table["nose"]["wrong_text"] == pytest.approx(1 / 3)
    unnamed = agreement_tables(read([make_review(1, decision="wrong_place")]), E)["objections by concept"]
    assert unnamed["mouth"]["wrong_place"] == unnamed["nose"]["wrong_place"] == 1 and unnamed["nose"]["unnamed"] == 1


def test_labels_say_how_far_they_speak(make_review: MakeReview) -> None:
    real = [make_review(number, label="real", truth="fake" if number == 0 else "real", fake_score=0.1, sampling="score") for number in range(4)]
    table = label_table(cases_of([make_review(10), make_review(11, truth="real"), *real]))
    assert table["called fake"]["precision"] == 0.5 and table["called fake"]["speaks of"] == "the queue"
    assert table["called real"]["overruled"] == 0.25 and table["called real"]["speaks of"] == "faces of like scores; not the queue"
    untold = label_table(cases_of([make_review(1, sampling=None)]))["called fake"]
    assert untold["speaks of"] == "the reviewed faces; how they came up is not said"


def test_tables_are_written_with_bounds_and_hostile_names_stay_text(make_review: MakeReview, tmp_path: Path) -> None:
    reviews = [make_review(number, reviewer=name) for number in range(12) for name in ("<b>|eve", "mallory")]
    write_agreement(agreement_tables(read(reviews), E), tmp_path)
    page = (tmp_path / "reviews.md").read_text()
    assert "&lt;b&gt;\\|eve" in page and "<b>" not in page and "1.000 (" in page and (tmp_path / "reviews.json").read_text().startswith("{")


# --- Between reviewers ------------------------------------------------------------------------------------------------------------------------


def test_kappas_are_those_of_the_books() -> None:
    pair = np.array([["a", "a"]] * 20 + [["a", "b"]] * 5 + [["b", "a"]] * 10 + [["b", "b"]] * 15)
    assert cohen_kappa(pair) == pytest.approx(0.4)
    fleiss = np.array(
        [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1], [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2],
         [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]
    )  # fmt: skip
    assert fleiss_kappa(fleiss) == pytest.approx(0.210, abs=5e-4)
    with pytest.raises(UndefinedMetric):
        cohen_kappa(np.array([["a", "a"]] * 3))


def test_the_error_of_reviewers_is_found_from_what_two_saw(make_review: MakeReview) -> None:
    rng = np.random.default_rng(0)
    reviews = []
    for number in range(2000):
        truth = rng.random() < 0.3
        for reviewer in ("ada", "grace"):
            reviews.append(make_review(number, reviewer=reviewer, truth="fake" if truth != (rng.random() < 0.1) else "real"))
    found = reviewer_error(cases_of(reviews))
    assert found is not None and found.low < 0.1 < found.high and found.rate == pytest.approx(0.1, abs=0.02)
    row = label_table(cases_of(reviews))["called fake"]
    assert row["corrected_low"] < 0.3 < row["corrected_high"] and row["corrected"] == pytest.approx(0.3, abs=0.04)
    assert reviewer_error(cases_of(reviews[:20])) is None
    with pytest.raises(ValueError, match="not in 0 to"):
        stated_error(0.5)


@given(share=st.floats(0, 1), rate=st.floats(0, 0.4))
def test_taking_errors_out_undoes_putting_them_in(share: float, rate: float) -> None:
    assert without_error(rate + (1 - 2 * rate) * share, rate) == pytest.approx(share, abs=1e-9)


# --- Beyond the reviewed faces ----------------------------------------------------------------------------------------------------------------


def test_what_was_not_drawn_at_random_does_not_speak_of_the_queue(make_review: MakeReview) -> None:
    sorted_ones = [make_review(number, sampling=sampling) for number, sampling in enumerate(("score", "uncertainty", None, "disagreement"))]
    with pytest.raises(SelectionError) as refused:
        selected(cases_of(sorted_ones), None)
    assert refused.value.fault is Unrepresentative.UNKNOWN_SELECTION
    kept = selected(cases_of([*sorted_ones, make_review(10)]), None)
    assert [case.first.stream for case in kept.cases] == ["cam-10"]
    assert "unknown_selection" in queue_table(cases_of(sorted_ones), None)["not estimated"]["why"]


def test_a_second_reviewer_who_begins_at_the_top_takes_no_fake_out_of_what_the_first_drew_at_random(make_review: MakeReview) -> None:
    """A queue of 100 faces whose first 10 are fake: half of it drawn at random by one, its top looked at by another."""
    drawn = [make_review(number, truth="fake" if number < 10 else "real", fake_score=1 - number / 100) for number in range(0, 100, 2)]
    top = [make_review(number, reviewer="b", sampling="score", fake_score=1 - number / 100) for number in range(10)]
    for reviews in (drawn, [*drawn, *top]):
        assert queue_table(cases_of(reviews), None)["fakes in the queue"]["share"] == 0.1


def test_strata_are_weighted_to_the_queue(make_review: MakeReview) -> None:
    low = [make_review(number, label="real", truth="real", fake_score=0.02, sampling="score") for number in range(10)]
    high = [make_review(100 + number, truth="fake" if number < 15 else "real", fake_score=0.97, sampling="score") for number in range(20)]
    totals = [0] * NUM_BINS
    totals[0], totals[-1] = 9_000, 1_000
    row = queue_table(cases_of([*low, *high]), totals)["fakes in the queue"]
    assert row["share"] == pytest.approx(0.1 * 15 / 20) and row["share_low"] < row["share"] < row["share_high"]


def test_strata_where_nobody_looked_are_not_spoken_of(make_review: MakeReview) -> None:
    high = cases_of([make_review(number, fake_score=0.97, sampling="score") for number in range(20)])
    totals = [0] * NUM_BINS
    totals[0], totals[-1] = 9_000, 1_000
    with pytest.raises(SelectionError, match=r"90% of the queue.*score 0.00 to 0.05") as refused:
        selected(high, totals)
    assert refused.value.fault is Unrepresentative.UNSEEN_STRATA
    totals[0] = 10
    assert selected(high, totals).unseen == pytest.approx(10 / 1010)
    totals[0], totals[-1] = 0, MIN_STRATUM
    with pytest.raises(SelectionError, match="give those of the whole queue"):
        selected(high, totals)


def test_faces_chosen_by_what_they_show_are_left_out_of_the_weights(make_review: MakeReview) -> None:
    fair = [make_review(number, fake_score=0.97, sampling=None) for number in range(10)]
    chosen = [make_review(20 + number, fake_score=0.97, sampling="disagreement") for number in range(10)]
    totals = [0] * (NUM_BINS - 1) + [100]
    found = selected(cases_of([*fair, *chosen]), totals)
    assert len(found.cases) == 10 and "assumed" in found.basis


def test_totals_are_twenty_counts(tmp_path: Path) -> None:
    assert sum(counted_in_bins([0.0, 0.05, 1.0])) == 3 and counted_in_bins([1.0])[-1] == 1
    for content in ("[]", "{", "[1.5]", str([-1] * NUM_BINS), str([10**30] * NUM_BINS), str([9 * 10**18] * NUM_BINS)):
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(ValueError, match=r"20 counts|list of 20"):
            read_totals(tmp_path / "t.json")
    (tmp_path / "t.json").write_text(str(list(range(NUM_BINS))))
    assert read_totals(tmp_path / "t.json") == tuple(range(NUM_BINS))


# --- Another engine ---------------------------------------------------------------------------------------------------------------------------


class BrightnessAnalyzer:
    """Calls bright faces fake."""

    operating_point = OperatingPoint(name="toy", fake_at=0.6, real_below=0.4, explain_at=0.4)
    manifest = SimpleNamespace(preprocess=SimpleNamespace(image_size=224), digest="d" * 64)

    def analyze(self, crops_BHWC: np.ndarray, *, explain: list[str]) -> list[Any]:
        return [SimpleNamespace(fake_score=float(crop.mean()) / 255) for crop in crops_BHWC]


def test_a_newer_engine_is_told_what_it_gets_right_and_what_it_loses(make_review: MakeReview, tmp_path: Path) -> None:
    reviews = []
    for number, (level, label, truth) in enumerate([(250, "real", "fake"), (250, "fake", "real"), (5, "real", "real"), (250, "real", "real")]):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((100, 100, 3), level - number, np.uint8)).save(path)
        digest = sha256(path.read_bytes()).hexdigest()
        reviews.append(make_review(number, label=label, truth=truth, media_sha256=digest, fake_score=0.5))
    reviews.append(make_review(9, media_sha256="9" * 64))
    table = rescored(cast(Analyzer, BrightnessAnalyzer()), cases_of(reviews), tmp_path, {})
    assert table["overruled"]["faces"] == 2 and table["overruled"]["right"] == 0.5 and table["overruled"]["wrong"] == 0.5
    assert table["upheld"]["faces"] == 2 and table["upheld"]["wrong"] == 0.5 and table["all"]["without picture"] == 1
