"""What waits first."""

from typing import Any

import pytest

from engines.contracts import Label
from fifa_stream.review.queue import Order, Standing, Wanted, ordered

LEVELS = (60, 110, 150, 190, 220)
"""Real, inconclusive, inconclusive near the cut at 0.6, fake, fake; without a face at last."""


@pytest.fixture
def book(toys: Any) -> Any:
    verdicts = [toys.verdict(offset, level=level, camera=f"door {offset % 2}") for offset, level in enumerate(LEVELS)]
    verdicts.append(verdicts[0].model_copy(update={"id": "fifa.frames/0/9", "faces": (), "fake_score": None, "label": Label.INCONCLUSIVE}))
    return toys.book(verdicts, shadow=[("s", toys.verdict(0, level=220).to_bytes()), ("s", toys.verdict(3, level=150).to_bytes())])


def numbers(book: Any, order: Order, wanted: Wanted | None = None, decided: dict[int, str] | None = None) -> list[int]:
    by_case = decided or {}
    return ordered(book, order, wanted or Wanted(), deciders=lambda case: frozenset(by_case.get(case.number, "").split()), me="ann")


def test_the_highest_score_comes_first_and_no_score_last(book: Any) -> None:
    assert numbers(book, Order.SCORE) == [4, 3, 2, 1, 0, 5]


def test_the_least_certain_lies_between_the_cuts_and_near_their_middle(book: Any) -> None:
    assert numbers(book, Order.UNCERTAINTY)[:3] == [1, 2, 3] and numbers(book, Order.UNCERTAINTY)[-1] == 5


def test_opposite_labels_are_disputed_most_and_what_is_compared_with_nothing_least(book: Any) -> None:
    assert numbers(book, Order.DISAGREEMENT) == [0, 3, 1, 2, 4, 5]


def test_time_goes_stream_by_stream(book: Any) -> None:
    assert numbers(book, Order.TIME) == [0, 5, 2, 4, 1, 3]


def test_chance_is_the_same_for_everybody_and_says_nothing_about_the_score(book: Any) -> None:
    assert numbers(book, Order.RANDOM) == numbers(book, Order.RANDOM, decided={1: "bob"})
    assert sorted(numbers(book, Order.RANDOM)) == list(range(6)) and numbers(book, Order.RANDOM) != numbers(book, Order.SCORE)


def test_filters_hold_together(book: Any) -> None:
    assert numbers(book, Order.SCORE, Wanted(label=Label.FAKE)) == [4, 3]
    assert numbers(book, Order.SCORE, Wanted(label=Label.FAKE, stream=1)) == [3]
    assert numbers(book, Order.SCORE, Wanted(forgery_type="identity_swap")) == [4, 3, 2, 1, 0]
    assert numbers(book, Order.SCORE, Wanted(forgery_type="entire_synthesis")) == []


@pytest.mark.parametrize(
    ("standing", "left"),
    [(Standing.ALL, [4, 3, 2, 1, 0, 5]), (Standing.OPEN, [2, 1, 0, 5]), (Standing.MINE, [4, 3]), (Standing.UNTOUCHED, [1, 0, 5])],
)
def test_what_is_decided_counts_for_its_reviewer(book: Any, standing: Standing, left: list[int]) -> None:
    assert numbers(book, Order.SCORE, Wanted(standing=standing), {4: "ann", 3: "ann bob", 2: "bob"}) == left
