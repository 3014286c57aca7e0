"""The streams of a partition: bounded, forgotten in a defined order, and the same from any snapshot on."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fifa_stream.memory.partition import FORGET_AFTER_MS, Forgotten, PartitionMemory, Seen, Snapshot
from fifa_stream.memory.stream import MemoryLimits
from fifa_stream.records import FrameRecord, RawRecord, SampledFrame, StreamVerdict, Verdict, parse_frame
from fifa_stream.shedding import Shed, ShedReason
from fifa_stream.testing import ToyProcessor, toy_faces, toy_result

LIMITS = MemoryLimits(max_gap_ms=2_000)


def memory(max_streams: int = 100, **options: Any) -> PartitionMemory:
    return PartitionMemory(LIMITS, max_streams=max_streams, **options)


def frame(
    offset: int, stream: str = "s", *, number: int = 0, pts_ms: int | None = None, sent_ms: int | None = None, last: bool = False
) -> FrameRecord:
    headers = [("stream-id", stream.encode()), ("frame-index", str(number).encode())]
    headers += [("pts-ms", str(pts_ms).encode())] if pts_ms is not None else []
    headers += [("stream-end", b"true")] if last else []
    raw = RawRecord("frames", 0, offset, offset if sent_ms is None else sent_ms, None, b"face", tuple(headers))
    return parse_frame(raw, max_value_bytes=100)


def judged(record: FrameRecord) -> Verdict:
    verdict = toy_result(record)
    assert isinstance(verdict, Verdict)
    return verdict


def show(memory: PartitionMemory, record: FrameRecord) -> Seen:
    seen = memory.see(record, judged(record))
    assert seen is not None
    memory.keep(seen)
    return seen


def stream_of(seen: Seen) -> StreamVerdict:
    assert seen.verdict.stream is not None
    return seen.verdict.stream


def test_a_verdict_gains_its_stream_and_looking_alone_moves_nothing() -> None:
    streams, record = memory(), frame(7, pts_ms=40)
    for _ in range(2):
        seen = streams.see(record, judged(record))
        assert seen is not None and seen.verdict.timeline is not None
        assert [(point.t_ms, point.face, point.frame) for point in seen.verdict.timeline] == [(40, face.id, None) for face in seen.verdict.faces]
        assert (stream_of(seen).id, stream_of(seen).num_frames) == ("s", 1)
        assert seen.verdict.model_copy(update={"timeline": None, "segments": None, "stream": None}) == judged(record)
    assert len(streams) == 0 and streams.take_snapshots() == []


def test_an_epoch_begins_at_an_offset_so_that_no_segment_comes_twice_under_one_id() -> None:
    streams = memory()
    first = show(streams, frame(5, pts_ms=0))
    gap = show(streams, frame(6, number=1, pts_ms=10_000))
    end = show(streams, frame(7, number=2, pts_ms=10_100, last=True))
    again = show(streams, frame(8, pts_ms=0))
    assert [stream_of(seen).epoch for seen in (first, gap, end, again)] == [5, 6, 6, 8]
    assert [stream_of(seen).state for seen in (first, gap, end, again)] == ["live", "live", "ended", "live"]


def test_without_times_of_its_own_a_stream_goes_by_the_records_and_a_frame_without_its_clock_is_late() -> None:
    streams = memory()
    assert stream_of(show(streams, frame(1, "a", sent_ms=1_000))).t_ms == 1_000
    assert stream_of(show(streams, frame(2, "a", number=1, pts_ms=5, sent_ms=1_040))).t_ms == 1_040
    show(streams, frame(3, "b", pts_ms=70, sent_ms=9_000))
    late = show(streams, frame(4, "b", number=1, sent_ms=9_040))
    assert (stream_of(late).state, stream_of(late).t_ms, late.verdict.timeline) == ("late", 70, ())


def test_sampled_frames_of_a_chunk_are_seen_one_by_one() -> None:
    streams, record = memory(), frame(3, sent_ms=50_000)
    sampled = tuple(
        SampledFrame(index=index, pts_ms=40 * index, label=judged(record).label, fake_score=None, faces=toy_faces("s", index)) for index in (0, 5, 9)
    )
    seen = streams.see(record, judged(record).model_copy(update={"faces": (), "frames": sampled}))
    assert seen is not None and seen.verdict.timeline is not None
    assert sorted({(point.frame, point.t_ms) for point in seen.verdict.timeline}) == [(0, 50_000), (5, 50_200), (9, 50_360)]
    assert stream_of(seen).num_frames == 3


def test_a_skipped_frame_says_nothing_of_its_stream_but_that_it_ends() -> None:
    streams, shed = memory(), Shed(ShedReason.TOO_OLD, "old")
    plain, last = frame(2, number=1, pts_ms=40), frame(3, number=2, pts_ms=80, last=True)
    assert streams.see(plain, ToyProcessor().skip(plain, shed)) is None
    assert streams.see(last, ToyProcessor().skip(last, shed)) is None, "of a stream that nobody knows"
    show(streams, frame(1, pts_ms=0))
    seen = streams.see(last, ToyProcessor().skip(last, shed))
    assert seen is not None and (stream_of(seen).state, stream_of(seen).num_frames, seen.verdict.timeline) == ("ended", 1, ())
    streams.keep(seen)
    assert len(streams) == 0


def test_the_stream_that_was_silent_for_longest_makes_room() -> None:
    streams = memory(max_streams=2)
    for offset, name in enumerate(("a", "b", "a", "c")):
        show(streams, frame(offset, name, number=offset, pts_ms=offset * 40))
    assert {snapshot.stream_id: snapshot.state is None for snapshot in streams.take_snapshots()} == {"a": False, "b": True, "c": False}
    assert streams.forgotten == {Forgotten.NO_ROOM: 1}
    show(streams, frame(4, "d"))
    assert [(snapshot.stream_id, snapshot.next_offset) for snapshot in streams.take_snapshots() if snapshot.state is None] == [("a", 5)]


def test_a_stream_that_is_silent_for_a_day_is_forgotten_and_one_wrong_clock_does_not_end_the_others() -> None:
    streams, day = memory(), FORGET_AFTER_MS
    for offset, name in enumerate(("old", "b", "c")):
        show(streams, frame(offset, name, pts_ms=0, sent_ms=1_000))
    show(streams, frame(3, "wrong", pts_ms=0, sent_ms=400 * day))
    for offset, sent_ms in enumerate((2_000, day), start=2):
        show(streams, frame(2 * offset, "b", pts_ms=40 * offset, sent_ms=sent_ms))
        show(streams, frame(2 * offset + 1, "c", pts_ms=40 * offset, sent_ms=sent_ms))
        assert len(streams) == 4
    show(streams, frame(8, "b", pts_ms=200, sent_ms=day + 1_500))
    show(streams, frame(9, "c", pts_ms=200, sent_ms=day + 1_500))
    assert streams.forgotten == {Forgotten.SILENT: 1} and len(streams) == 3


def test_a_clock_that_is_ahead_keeps_nobody_else_from_being_forgotten() -> None:
    streams, day = memory(), FORGET_AFTER_MS
    sent = [("ahead", 400 * day), *((name, 1_000) for name in ("old", "b", "c")), *((name, day + 2_000) for name in ("b", "c"))]
    for offset, (name, sent_ms) in enumerate(sent):
        show(streams, frame(offset, name, number=offset, pts_ms=40 * offset, sent_ms=sent_ms))
    assert streams.forgotten == {Forgotten.SILENT: 1} and {snapshot.stream_id for snapshot in streams.take_snapshots() if snapshot.state} == {
        "ahead",
        "b",
        "c",
    }


def test_a_clock_that_is_behind_keeps_no_stream_from_being_remembered() -> None:
    """As of a camera that begins in 1970, or of old footage beside what is live."""
    streams = memory()
    for offset in range(16):
        name = ("b", "c", "behind", "d")[offset % 4]
        seen = show(streams, frame(offset, name, number=offset, pts_ms=40 * offset, sent_ms=offset + 400 * FORGET_AFTER_MS * (name != "behind")))
        assert stream_of(seen).num_frames == 1 + offset // 4
    assert not streams.forgotten


def test_where_nobody_takes_snapshots_none_are_noted() -> None:
    streams = memory(is_stored=False)
    show(streams, frame(0, "a", pts_ms=0))
    show(streams, frame(1, "b", pts_ms=0, last=True))
    assert streams.take_snapshots() == []


def test_what_cannot_be_read_begins_anew_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    streams = memory(snapshots=[Snapshot(name, offset, 0, b"no state") for offset, name in enumerate("abc")])
    for offset, name in enumerate("abc", start=10):
        assert stream_of(show(streams, frame(offset, name, pts_ms=0))).epoch == offset
    assert streams.forgotten == {Forgotten.UNREADABLE: 3} and len(caplog.records) == 1


def test_appearances_are_kept_only_where_that_is_wanted() -> None:
    with_it, without = memory(), memory(appearance=False)
    for offset in range(3):
        for streams in (with_it, without):
            show(streams, frame(offset, number=offset, pts_ms=40 * offset))
    (longer,), (shorter,) = with_it.take_snapshots(), without.take_snapshots()
    assert longer.state is not None and shorter.state is not None
    assert b'"appearance":""' in shorter.state and b'"appearance":""' not in longer.state


def test_an_appearance_of_a_time_when_it_was_wanted_is_forgotten() -> None:
    before = memory()
    show(before, frame(0, pts_ms=0))
    after = memory(appearance=False, snapshots=before.take_snapshots())
    show(after, frame(1, number=1, pts_ms=40))
    (snapshot,) = after.take_snapshots()
    tracks = json.loads(snapshot.state or b"")["tracks"]
    assert tracks and not any(track["appearance"] for track in tracks)


Step = tuple[int, int, int]
"""Stream, what kind of frame, whether to take snapshots or to go on from them."""


@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 5)), max_size=80),
    max_streams=st.integers(1, 4),
)
@settings(deadline=None, max_examples=300)
def test_from_the_snapshots_of_any_record_on_the_rest_is_told_the_same(steps: Sequence[Step], max_streams: int) -> None:
    """And no more is restored than was remembered."""
    straight, handed_on = memory(max_streams), memory(max_streams)
    stored: dict[str, Snapshot] = {}
    numbers = [0] * 6
    for offset, (stream, kind, then) in enumerate(steps):
        numbers[stream] += {0: -2, 1: 60}.get(kind, 1)
        number = max(0, numbers[stream])
        sent_ms = offset + FORGET_AFTER_MS * (kind // 4)  # clocks that are days apart
        record = frame(offset, f"s{stream}", number=number, pts_ms=None if kind == 2 else number * 40, sent_ms=sent_ms, last=kind == 3)
        assert show(handed_on, record) == show(straight, record)
        if then in (1, 2):
            stored |= {snapshot.stream_id: snapshot for snapshot in handed_on.take_snapshots()}
            assert {name for name, snapshot in stored.items() if snapshot.state is not None} == set(straight._streams)
            if then == 2:
                handed_on = memory(max_streams, snapshots=stored.values())
        assert len(straight) == len(handed_on) <= max_streams
