"""What is guessed of an answer: what stood behind the same tokens last time, and nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from engines.drafts import CONTEXT, MAX_KNOWN, Drafts

ANSWERS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), max_size=8)


def taught(*answers: list[int], guesses: int = 3) -> Drafts:
    drafts = Drafts(guesses)
    for answer in answers:
        drafts.learn(answer)
    return drafts


def test_an_answer_known_by_heart_is_guessed_to_its_end_and_no_further() -> None:
    drafts = taught([1, 2, 3, 4, 5, 6])
    assert drafts.guess([1], 9) == [2, 3, 4]
    assert drafts.guess([1, 2, 3, 4], 9) == [5, 6]
    assert drafts.guess([1, 2, 3, 4, 5, 6], 9) == []


def test_the_longest_known_context_speaks() -> None:
    drafts = taught([1, 2, 7, 8], [5, 2, 7, 9], guesses=1)
    assert (drafts.guess([1, 2, 7], 1), drafts.guess([5, 2, 7], 1), drafts.guess([4, 2, 7], 1)) == ([8], [9], [9])


def test_the_last_answer_speaks_where_two_differ() -> None:
    assert taught([1, 2], [1, 3]).guess([1], 9) == [3]
    assert taught([1, 3], [1, 2]).guess([1], 9) == [2]


def test_nothing_is_guessed_of_what_was_never_seen() -> None:
    assert Drafts().guess([1, 2], 3) == [] and taught([1, 2]).guess([9], 3) == []


def test_no_guesses_asked_for_are_none_learned() -> None:
    drafts = taught([1, 2, 3], guesses=0)
    assert drafts.known == {} and drafts.guess([1], 3) == []


def test_memory_has_an_end() -> None:
    drafts = taught(*([n, n + 1, n + 2] for n in range(0, 3 * MAX_KNOWN, 3)))
    assert MAX_KNOWN // 2 < len(drafts.known) <= MAX_KNOWN + 6
    last = 3 * (MAX_KNOWN - 1)
    assert drafts.guess([last], 3) == [last + 1, last + 2]


@given(answers=ANSWERS, asked=st.lists(st.integers(0, 9), min_size=1, max_size=6), room=st.integers(0, 6), guesses=st.integers(0, 5))
def test_every_guess_stood_behind_its_context_in_an_answer(answers: list[list[int]], asked: list[int], room: int, guesses: int) -> None:
    guessed = taught(*answers, guesses=guesses).guess(asked, room)
    assert len(guessed) <= min(room, guesses)
    told = [*asked]
    for token in guessed:
        behind = {answer[at] for answer in answers for at in range(1, len(answer)) if answer[at - 1] == told[-1]}
        assert token in behind
        told.append(token)


def test_the_context_is_no_longer_than_stated() -> None:
    assert {len(context) for context in taught(list(range(10))).known} == set(range(1, CONTEXT + 1))
