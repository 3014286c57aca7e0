"""No decision is lost: not by two desks on one file, not by a crash in the middle of a line, not by an undo."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from engines.contracts import Label
from engines.reviews import Decision, Review
from fifa_stream.review.decisions import Decided, DecisionError, DecisionFile, review_record
from fifa_stream.review.desk import Choice


def review(number: int = 0, **changes: Any) -> Review:
    fields: dict[str, Any] = {
        "verdict": f"fifa.frames/0/{number}",
        "verdict_sha256": "a" * 64,
        "media_sha256": "b" * 64,
        "engine": "c" * 64,
        "face": 0,
        "label": Label.FAKE,
        "fake_score": 0.9,
        "decision": Decision.AGREE,
        "truth": "fake",
        "reviewer": "ann",
        "decided_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return Review(**fields | changes)


def test_a_desk_reads_what_it_and_others_wrote_once(tmp_path: Path) -> None:
    one, other = DecisionFile(tmp_path / "r.jsonl"), DecisionFile(tmp_path / "r.jsonl")
    one.append(review(1))
    other.append(review(2))
    assert one.fresh() == other.fresh() == [review(1), review(2)]
    one.append(review(3))
    assert other.fresh() == [review(3)] and other.fresh() == []


WRITER = """
import sys
from pathlib import Path
from engines.reviews import Review
from fifa_stream.review.decisions import DecisionFile
template = Review.model_validate_json(sys.argv[2])
log = DecisionFile(Path(sys.argv[1]))
sys.stdin.read(1)
for number in range(60):
    log.append(template.model_copy(update={"verdict": f"{sys.argv[3]}/{number}", "comment": "x" * number * 25}))
"""


def test_two_desks_at_once_lose_no_line(tmp_path: Path) -> None:
    path, names = tmp_path / "r.jsonl", ("one", "other")
    command = [sys.executable, "-c", WRITER, str(path), review().model_dump_json()]
    writers = [subprocess.Popen([*command, name], stdin=subprocess.PIPE) for name in names]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"g")
        writer.stdin.close()
    assert [writer.wait(120) for writer in writers] == [0, 0]
    found = DecisionFile(path).fresh()
    for name in names:
        assert [one.verdict for one in found if one.verdict.startswith(f"{name}/")] == [f"{name}/{number}" for number in range(60)]


def test_a_line_that_a_crash_cut_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(review(1).model_dump_json().encode() + b'\n{"schema_ver')
    log = DecisionFile(path)
    assert log.fresh() == [review(1)]
    log.append(review(2))
    assert log.fresh() == [review(2)] and log.num_unread == 1
    assert path.read_bytes().count(b"\n") == 3


def test_what_is_no_review_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"{}\n\n[1]\n" + b"x" * (3 << 20) + b"\n" + review(1).model_dump_json().encode() + b"\n")
    log = DecisionFile(path)
    assert log.fresh() == [review(1)] and log.num_unread >= 3


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(DecisionError, match="cannot be written"):
        DecisionFile(tmp_path)


def test_a_record_of_a_review_is_a_cloud_event_keyed_by_its_stream() -> None:
    key, value, headers = review_record(review(stream="door 7"))
    assert key == b"door 7" and Review.model_validate_json(value) == review(stream="door 7")
    assert {"ce_id", "ce_source", "ce_type", "ce_specversion", "ce_time"} < {name for name, _ in headers}
    assert review_record(review(4))[0] == b"fifa.frames/0/4"


def test_the_last_decision_of_a_reviewer_about_a_face_of_an_engine_counts(toys: Any) -> None:
    book = toys.book([toys.verdict(0), toys.verdict(1)])
    (case, other), engine = book.cases, book.cases[0].engine
    decided = Decided(book.cases)
    disagrees = {"decision": Decision.DISAGREE, "truth": "real"}
    for one in (
        review(engine=engine),
        review(engine=engine, **disagrees),
        review(engine=engine, reviewer="bob"),
        review(engine=engine, face=3, reviewer="cyd"),
        review(engine="d" * 64, reviewer="dan"),
        review(77, engine=engine),
    ):
        decided.take(one)
    assert decided.deciders(case) == {"ann", "bob"} and decided.of(other) == []
    assert {(one.reviewer, one.decision) for one in decided.of(case)} == {
        ("ann", Decision.DISAGREE),
        ("bob", Decision.AGREE),
        ("cyd", Decision.AGREE),
    }
    decided.take(review(engine=engine, decision=Decision.SKIP, truth=None, withdrawn=True))
    assert decided.deciders(case) == {"bob"}


def test_an_undo_takes_back_one_decision_and_what_counted_before_counts_again(toys: Any) -> None:
    desk = toys.desk([toys.verdict(0, level=220), toys.verdict(1, level=220)])
    for decision in ("agree", "disagree"):
        desk.decide(Choice(case=0, face=0, decision=decision))
    assert desk.undo()["undone"] == "disagree" and desk.rows([0])[0]["mine"] == "agree"
    after = desk.undo()
    assert after["row"]["mine"] is None and after["decisions"] == [] and not after["canUndo"]
    with pytest.raises(ValueError, match="nothing to undo"):
        desk.undo()
    assert [(line["decision"], line["withdrawn"]) for line in toys.lines()] == [
        ("agree", False),
        ("disagree", False),
        ("agree", False),
        ("skip", True),
    ]
    reopened = toys.desk([toys.verdict(0, level=220)])
    assert reopened.rows([0])[0]["mine"] is None, "what was withdrawn stays so"


def test_a_clock_that_was_set_back_lets_no_earlier_decision_count(toys: Any) -> None:
    """A reader goes by `decided_at`: of the file, of a topic's partitions, of files that were put together."""
    desk, clock = toys.desk([toys.verdict(0, level=220)]), iter(datetime(2026, 1, 9 - number, tzinfo=UTC) for number in range(9))
    desk._now = lambda: next(clock)

    def counts() -> tuple[str, bool]:
        told = max(enumerate(toys.lines()), key=lambda one: (one[1]["decided_at"], one[0]))[1]
        return told["decision"], told["withdrawn"]

    for decision in ("agree", "disagree"):
        desk.decide(Choice(case=0, face=0, decision=decision))
        assert counts() == (decision, False)
    desk.undo()
    assert counts() == ("agree", False)
    desk.undo()
    assert counts() == ("skip", True)
    desk.decide(Choice(case=0, face=0, decision="wrong_text"))
    assert counts() == ("wrong_text", False) and desk.rows([0])[0]["mine"] == "wrong_text"


def test_of_two_decisions_the_later_one_counts_wherever_it_stands(toys: Any) -> None:
    """As `trainer.reviews` counts them: desks with the same reviewer on two machines write in either order."""
    desk = toys.desk([toys.verdict(0, level=220)])
    desk.decide(Choice(case=0, face=0, decision="disagree"))
    (line,) = toys.lines()
    earlier = line | {"decision": "agree", "truth": "fake", "decided_at": "2025-01-01T00:00:00Z"}
    with toys.log.open("a") as log:
        log.write(json.dumps(earlier) + "\n")
    assert desk.head()["decided"] == 1 and desk.rows([0])[0]["mine"] == "disagree"


def test_a_decision_is_not_written_to_a_file_that_was_deleted(toys: Any) -> None:
    desk = toys.desk([toys.verdict(0, level=220)])
    toys.log.unlink()
    with pytest.raises(DecisionError, match="deleted or replaced; open the desk again"):
        desk.decide(Choice(case=0, face=0, decision="agree"))
    assert desk.rows([0])[0]["mine"] is None


def test_a_desk_that_opens_again_shows_what_was_decided(toys: Any) -> None:
    desk = toys.desk([toys.verdict(0, level=220)])
    desk.decide(Choice(case=0, face=0, decision="agree", comment="plain"))
    again, others = toys.desk([toys.verdict(0, level=220)]), toys.desk([toys.verdict(0, level=220)], reviewer="bob")
    assert again.head()["decided"] == 1 and again.case(0)["decisions"][0]["comment"] == "plain"
    assert others.head()["decided"] == 0 and others.rows([0])[0]["others"] == 1


def test_a_decision_stands_on_the_disk_before_the_reviewer_is_told(toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, synced = toys.desk([toys.verdict(0, level=220)]), []
    monkeypatch.setattr("fifa_stream.review.decisions.os.fsync", lambda file: synced.append(toys.log.read_bytes()))
    desk.decide(Choice(case=0, face=0, decision="agree"))
    assert [json.loads(one)["decision"] for one in synced] == ["agree"]
