"""What the fault bench and the soak conclude from what they see: each of their refusals can happen."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench.exposure import Answer, Exposure, NotedRebalance, bounds, num_moves
from bench.faults import Tally
from bench.soak import Sample, judge
from fifa_stream.consume import Partition


class Silent:
    """A `Rebalance` that does nothing."""

    def assigned(self, partitions: object) -> None: ...

    def revoked(self, partitions: object) -> Mapping[Partition, int]:
        return {("frames", 1): 7}

    def lost(self, partitions: object) -> None: ...


def test_the_note_of_a_members_partitions_follows_every_rebalance(tmp_path: Path) -> None:
    path = tmp_path / "owned.json"
    noted = NotedRebalance(Silent(), path)
    noted.assigned([("frames", 0), ("frames", 1)])
    assert json.loads(path.read_text()) == [0, 1]
    assert noted.revoked([("frames", 1)]) == {("frames", 1): 7}
    assert json.loads(path.read_text()) == [0]
    noted.lost([("frames", 0)])
    assert json.loads(path.read_text()) == []
    assert num_moves(tmp_path) == 2


def test_a_kill_explains_what_its_victim_had_answered_and_not_committed_once() -> None:
    answers = [Answer(0, offset, 1, offset) for offset in range(6)]
    kill = Exposure(committed={1: 4}, ends={0: 6})
    assert kill.of(answers) == {(1, 4), (1, 5)}
    assert bounds([*answers, Answer(0, 6, 1, 4), Answer(0, 7, 1, 5)], [kill]) == (2, 0)
    assert bounds([*answers, Answer(0, 6, 1, 4), Answer(0, 7, 1, 4)], [kill]) == (2, 1)
    assert bounds([*answers, Answer(0, 6, 1, 3)], [kill]) == (2, 1), "it was committed"


def test_a_kill_explains_neither_other_partitions_nor_later_answers() -> None:
    kill = Exposure(committed={1: 0}, ends={0: 1})
    assert kill.of([Answer(0, 0, 2, 0), Answer(0, 1, 1, 0), Answer(3, 0, 1, 1)]) == set()


@pytest.mark.parametrize(
    ("guarantee", "tally", "keeps"),
    [
        ("at_least_once", Tally(repeated=5, exposed=5), True),
        ("at_least_once", Tally(repeated=6, exposed=5, beyond=1), False),
        ("at_least_once", Tally(repeated=6, exposed=5, beyond=1, moves=1), True),
        ("at_least_once", Tally(repeated=900, exposed=5, beyond=895, moves=3), False),
        ("exactly_once", Tally(repeated=1, exposed=5), False),
        ("at_least_once", Tally(lost=1), False),
        ("exactly_once", Tally(told_otherwise=1), False),
        ("exactly_once", Tally(foreign=1), False),
    ],
)
def test_a_promise_is_kept_or_not(guarantee: str, tally: Tally, keeps: bool) -> None:
    assert tally.keeps(guarantee) is keeps


def samples(*, grows_mib_h: float = 0.0, more_files: int = 0, slower: float = 1.0) -> list[Sample]:
    """Half an hour, with a step in its last five minutes."""
    looks = []
    for number in range(1, 181):
        at_s, is_late = number * 10.0, number > 150
        latency_s = 0.1 * (slower if is_late else 1.0)
        rss_mib = 100 + grows_mib_h * at_s / 3600 + 0.05 * (number % 3)
        looks.append(Sample(at_s, rss_mib, 15 + (more_files if is_late else 0), 7, 3, (latency_s,) * 20))
    return looks


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ""),
        ({"grows_mib_h": 1.9}, ""),
        ({"grows_mib_h": 2.1}, "memory grows by 2.1"),
        ({"more_files": 2}, "open files went from 15 to 17"),
        ({"slower": 1.3}, "the 99th percentile went from 0.100 to 0.130 s"),
    ],
)
def test_a_soak_holds_or_says_what_does_not(changes: dict[str, float], says: str) -> None:
    failures = judge(samples(**changes), lag_at_end=0, status=0).failures  # type: ignore[arg-type]
    assert len(failures) == (1 if says else 0) and says in "".join(failures)


def test_a_soak_that_leaves_records_or_ends_otherwise_does_not_hold() -> None:
    assert len(judge(samples(), lag_at_end=1, status=70).failures) == 2
