"""Verdicts become cases: the last one counts, what cannot be shown is counted, and only so many are kept."""

import json
from typing import Any

import pytest

from engines.contracts import Label
from fifa_stream.records import SampledFrame
from fifa_stream.review.cases import UNNAMED, collect, picture_of


def sampled(toys: Any, index: int, level: int) -> SampledFrame:
    _, verdict = toys.judged(level)
    return SampledFrame(index=index, pts_ms=index * 40, label=verdict.label, fake_score=verdict.fake_score, faces=verdict.faces)


def test_of_one_record_the_last_verdict_counts_and_its_bytes_are_kept(toys: Any) -> None:
    first, second = toys.verdict(7, level=60), toys.verdict(7, level=220)
    book = toys.book([first, toys.verdict(8), second])
    assert [(case.verdict_id, case.label) for case in book.cases] == [("fifa.frames/0/8", Label.FAKE), ("fifa.frames/0/7", Label.FAKE)]
    assert book.verdict(book.cases[1]) == (second, second.to_bytes())


def test_of_one_segment_the_last_state_counts(toys: Any) -> None:
    verdicts = toys.of_a_stream(9)
    (stream,) = toys.book([*verdicts[:6], *verdicts]).streams  # answered twice up to the sixth
    assert [(segment.end_ms, segment.is_open) for segment in stream.segments.values()] == [(4000, False)]
    assert len(stream.points) == 9 and [point.t_ms for point in stream.points] == sorted(point.t_ms for point in stream.points)
    assert stream.verdict is not None and stream.verdict.t_ms == 4000


def test_every_sampled_frame_of_a_chunk_is_a_case(toys: Any) -> None:
    frames = (sampled(toys, 0, 60), sampled(toys, 25, 220))
    verdict = toys.verdict(3, frames=frames, faces=())
    book = toys.book([verdict])
    assert [(case.frame, case.t_ms, case.label) for case in book.cases] == [(0, 0, Label.REAL), (25, 1000, Label.FAKE)]
    assert picture_of(book.verdict(book.cases[1])[0], 25) == frames[1]
    assert book.find("fifa.frames/0/3", 25) is book.cases[1] and book.find("fifa.frames/0/3", 7) is None


def test_frames_are_in_the_order_of_their_time_whatever_the_order_of_the_verdicts(toys: Any) -> None:
    book = toys.book([toys.verdict(offset) for offset in (4, 0, 2)])
    (stream,) = book.streams
    assert [book.cases[number].t_ms for number in stream.cases] == [0, 1000, 2000]


def test_the_engine_that_does_not_answer_is_joined_by_the_record(toys: Any) -> None:
    answered, other = [toys.verdict(0, level=220), toys.verdict(1, level=60)], toys.verdict(0, level=60)
    book = toys.book(answered, shadow=[("shadow", other.to_bytes()), ("shadow", toys.verdict(9).to_bytes())])
    assert [case.disagreement for case in book.cases] == [pytest.approx(2 + answered[0].fake_score - other.fake_score), -1]


def test_files_without_a_broker_belong_to_no_stream(toys: Any) -> None:
    _, verdict = toys.judged(190)
    book = toys.book([verdict.model_copy(update={"media": verdict.media.model_copy(update={"uri": "in/door 7.png"})})])
    assert [(stream.name, len(stream.cases)) for stream in book.streams] == [(UNNAMED, 1)]
    assert (book.cases[0].name, book.cases[0].t_ms) == ("door 7.png", None)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param({"id": "x" * 513}, "characters", id="an id too long"),
        pytest.param({"id": ""}, "characters", id="no id"),
        pytest.param({"media": {"sha256": "../../etc/passwd"}}, "SHA-256", id="a digest that is none"),
        pytest.param({"engine": {"manifest_sha256": "<script>"}}, "SHA-256", id="an engine without a digest"),
        pytest.param({"media": {"width": 1 << 40, "height": 1 << 40}}, "size", id="a picture beyond measure"),
        pytest.param({"media": {"width": None}}, "size", id="faces on no picture"),
        pytest.param({"faces": [{"box": [0, 0, 1e30, 1]}]}, "box", id="a box beyond measure"),
        pytest.param({"faces": [{"box": [9, 0, 1, 1]}]}, "box", id="a box inside out"),
        pytest.param({"faces": [{"id": -1}]}, "ids", id="a face below zero"),
        pytest.param({"label": "maybe"}, "no verdict: label", id="another label"),
    ],
)
def test_what_cannot_be_shown_is_counted_and_left_out(toys: Any, change: dict[str, Any], why: str) -> None:
    tree = json.loads(toys.verdict(0).to_bytes())
    for name, value in change.items():
        if name == "faces":
            tree[name][0] |= value[0]
        elif isinstance(value, dict):
            tree[name] |= value
        else:
            tree[name] = value
    book = collect([("a:1", json.dumps(tree).encode()), ("a:2", toys.verdict(1).to_bytes()), ("a:3", b"\xff{")])
    assert len(book.cases) == 1 and book.refused.total() == 2
    assert book.first_refused is not None and book.first_refused.where == "a:1" and why in book.first_refused.why


def test_a_box_of_infinity_is_no_box(toys: Any) -> None:
    payload = toys.verdict(0).to_bytes().replace(b'"box":[', b'"box":[1e999,', 1)
    assert not collect([("a:1", payload)]).cases


def test_a_segment_at_a_time_beyond_measure_is_no_segment(toys: Any) -> None:
    """Else its case could not be exported: there is no such number of seconds."""
    tree = json.loads(toys.of_a_stream(3)[-1].to_bytes())
    tree["segments"][0]["start_ms"] = -(10**400)
    book = collect([("a:1", json.dumps(tree).encode())])
    assert not book.cases and book.first_refused is not None and book.first_refused.why == "a time of its segments is none"


def test_beyond_the_limit_the_oldest_are_left_out(toys: Any) -> None:
    book = toys.book([toys.verdict(offset) for offset in range(10)], max_cases=4)
    assert [case.verdict_id for case in book.cases] == [f"fifa.frames/0/{offset}" for offset in (6, 7, 8, 9)] and book.num_left_out == 6


def test_what_is_left_out_or_replaced_is_kept_nowhere(toys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A topic may hold more than memory and the temporary folder do."""
    monkeypatch.setattr("fifa_stream.review.cases.MAX_DROPPED_BYTES", 0)
    verdicts = toys.of_a_stream(30)
    size = len(verdicts[0].to_bytes())
    book = toys.book([*verdicts, *verdicts * 3], max_cases=4)
    assert len(book.cases) == 4 and book.payloads.num_bytes < 12 * size and len(book.payloads._places) == 4
    assert [book.verdict(case)[0] for case in book.cases] == verdicts[-4:]
    book.payloads.close()


def test_a_segment_none_of_whose_frames_is_left_is_not_shown(toys: Any) -> None:
    first, later = toys.of_a_stream(6), toys.of_a_stream(6, first=60)
    assert [*toys.book([*first, *later]).streams[0].segments] == ["0.0.1000", "0.0.31000"]
    assert [*toys.book([*first, *later], max_cases=4).streams[0].segments] == ["0.0.31000"]
