"""A review says one thing: decision, label and truth fit together."""

from datetime import UTC, datetime
from itertools import product
from typing import Any

import pytest
from pydantic import ValidationError

from engines.contracts import Label
from engines.reviews import Decision, Review

TRUTHS = ("real", "fake", None)
FITTING = {
    Label.FAKE: {Decision.AGREE: {"fake"}, Decision.DISAGREE: {"real"}, Decision.WRONG_PLACE: {"fake"}, Decision.WRONG_TEXT: {"fake"}},
    Label.REAL: {Decision.AGREE: {"real"}, Decision.DISAGREE: {"fake"}, Decision.WRONG_PLACE: {"real"}, Decision.WRONG_TEXT: {"real"}},
    Label.INCONCLUSIVE: {
        Decision.AGREE: {"real", "fake", None},
        Decision.DISAGREE: {"real", "fake"},
        Decision.WRONG_PLACE: {"real", "fake", None},
        Decision.WRONG_TEXT: {"real", "fake", None},
    },
}
"""What a decision may say the face is; a skip says nothing of any."""


def review(**changes: Any) -> Review:
    fields: dict[str, Any] = {
        "verdict": "fifa.frames/0/7",
        "verdict_sha256": "a" * 64,
        "media_sha256": "b" * 64,
        "engine": "c" * 64,
        "label": Label.FAKE,
        "fake_score": 0.9,
        "decision": Decision.SKIP,
        "reviewer": "ann",
        "decided_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return Review(**fields | changes)


@pytest.mark.parametrize(("label", "decision", "truth"), [*product(Label, Decision, TRUTHS)])
def test_label_decision_and_truth_fit_or_are_refused(label: Label, decision: Decision, truth: Any) -> None:
    if truth in FITTING[label].get(decision, {None}):
        assert review(label=label, decision=decision, truth=truth).truth == truth
    else:
        with pytest.raises(ValidationError):
            review(label=label, decision=decision, truth=truth)


def test_what_was_withdrawn_is_told_as_a_skip() -> None:
    assert review(withdrawn=True).truth is None
    with pytest.raises(ValidationError, match="told as skip"):
        review(withdrawn=True, decision=Decision.AGREE, truth="fake")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_score_or_a_box_beyond_measure_is_refused(value: str) -> None:
    """JSON has no such numbers and Python reads them: a calibration fitted on one would be proposed, since no bound is exceeded by NaN."""
    line = review(raw_score=2.5, box=(0.0, 1.0, 2.0, 3.0)).model_dump_json()
    assert Review.model_validate_json(line).raw_score == 2.5
    for good in ('"raw_score":2.5', '"box":[0.0,1.0,2.0,3.0]'):
        with pytest.raises(ValidationError, match="finite"):
            Review.model_validate_json(line.replace(good, good.replace("2.5", value).replace("3.0", value)))


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValidationError, match="time zone"):
        review(decided_at=datetime(2026, 1, 1))
