"""One stream: what frames make of its tracks, its segments and its verdict."""

import json
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.contracts import APPEARANCE_SIZE, FORGERY_TYPES, Label
from fifa_stream.memory.stream import MemoryLimits, Moment, StreamState, Told
from fifa_stream.memory.tracks import Sighting
from fifa_stream.records import OperatingPointUsed, Segment, TimelinePoint

POINT = OperatingPointUsed(name="toy", fake_at=0.9, real_below=0.4)
LIMITS = MemoryLimits(max_tracks=4, max_gap_ms=5_000)
PEOPLE = tuple(bytes((17 * person + 40 * place * place) % 251 for place in range(APPEARANCE_SIZE)) for person in range(4))
TYPES = dict(zip(FORGERY_TYPES, (0.7, 0.1, 0.1, 0.1), strict=True))


class Shown(NamedTuple):
    """A frame of a toy stream."""

    t_ms: int
    faces: tuple[Sighting, ...] = ()


def face(
    score: float, *, at: float = 100.0, person: int = 0, number: int = 0, is_fit: bool = True, concepts: Sequence[tuple[str, float]] = ()
) -> Sighting:
    """A face of 100 pixels whose left edge is `at`."""
    return Sighting(number, (at, 50.0, at + 100, 150.0), score, is_fit, TYPES, tuple(concepts), PEOPLE[person])


def clip(scores: Sequence[float], *, start_ms: int = 0, every_ms: int = 250) -> list[Shown]:
    """One person, who moves a little."""
    return [Shown(start_ms + every_ms * number, (face(score, at=100 + number % 7),)) for number, score in enumerate(scores)]


class Watched(NamedTuple):
    """What was told, and by whom."""

    state: StreamState
    points: list[TimelinePoint]
    segments: dict[str, Segment]
    told: list[Told]


def watch(frames: Sequence[Shown], state: StreamState | None = None, *, end: bool = False, reload_after: Sequence[int] = ()) -> Watched:
    """A record for each frame."""
    state = StreamState(LIMITS) if state is None else state
    points, segments, all_told = list[TimelinePoint](), dict[str, Segment](), list[Told]()
    for number, frame in enumerate(frames):
        told = Told()
        state.observe(Moment(frame.t_ms, 0), frame.faces, verdict=f"frames/0/{number}", told=told)
        if end and number == len(frames) - 1:
            state.end(told)
        points += told.timeline
        segments |= told.segments
        all_told.append(told)
        if number in reload_after:
            state = StreamState.load(state.dump(), LIMITS)
    return Watched(state, points, segments, all_told)


QUIET, FORGED = [0.1, 0.15, 0.12] * 4, [0.85, 0.9, 0.8] * 4


def test_a_manipulated_stretch_is_one_segment_that_closes_when_it_is_over() -> None:
    watched = watch(clip(QUIET + FORGED + QUIET))
    (segment,) = watched.segments.values()
    assert (segment.start_ms, segment.end_ms, segment.is_open, segment.num_frames) == (3000, 5750, False, 12)
    assert segment.id == f"0.{segment.track}.3000"
    assert segment.peak > 0.9 and 3000 <= segment.peak_ms <= 5750 and segment.forgery_type == "identity_swap"


def test_the_start_of_a_segment_is_final_when_it_is_first_told() -> None:
    told = watch(clip(QUIET + FORGED + QUIET)).told
    starts = {segment.start_ms for one in told for segment in one.segments.values()}
    assert starts == {3000}
    assert any(segment.is_open for one in told for segment in one.segments.values())


def test_a_single_bright_frame_is_no_segment() -> None:
    assert not watch(clip([*QUIET, 0.99, *QUIET]), end=True).segments


def test_smoothing_flickers_less_than_frames() -> None:
    points = watch(clip([0.1, 0.6, 0.1, 0.1, 0.55, 0.1] * 4)).points
    assert max(point.fake_score for point in points) == 0.6
    assert max(point.smoothed for point in points) < 0.4


def test_a_person_whose_frames_score_high_is_held_against_their_own_level() -> None:
    high = [0.45, 0.5, 0.4, 0.48] * 6
    assert not watch(clip(high), end=True).segments
    (segment,) = watch(clip([*high, *[0.95, 0.93, 0.96] * 4, *high]), end=True).segments.values()
    assert (segment.start_ms, segment.end_ms) == (6000, 8750)


def test_an_unfit_face_is_followed_and_moves_no_score() -> None:
    frames = clip(QUIET)
    blurred = [Shown(3000 + 250 * number, (face(0.99, is_fit=False),)) for number in range(8)]
    watched = watch(frames + blurred)
    after = watched.points[len(frames) - 1].smoothed
    assert {point.track for point in watched.points} == {0} and {point.smoothed for point in watched.points[len(frames) :]} == {after}
    assert not watched.segments


def test_a_stream_without_a_fit_face_is_inconclusive_with_a_note() -> None:
    watched = watch([Shown(0), Shown(250, (face(0.9, is_fit=False),))])
    verdict = watched.state.verdict("a", watched.told[-1], POINT)
    assert (verdict.label, verdict.fake_score) == (Label.INCONCLUSIVE, None) and verdict.notes


def test_the_label_of_a_stream_follows_the_cuts_of_its_operating_point() -> None:
    watched = watch(clip(QUIET + FORGED + QUIET))
    score = watched.state.verdict("a", Told(), POINT).fake_score
    assert score is not None and 0.5 < score < 1
    for fake_at, real_below, label in ((score, 0.1, Label.FAKE), (1.0, 0.1, Label.INCONCLUSIVE), (1.0, 1.0, Label.REAL)):
        cuts = OperatingPointUsed(name="cuts", fake_at=fake_at, real_below=real_below)
        assert watched.state.verdict("a", Told(), cuts).label is label


def test_a_stream_begins_real_and_stays_so_while_nothing_happens() -> None:
    state, labels = StreamState(LIMITS), set()
    for frame in clip(QUIET * 4):
        told = Told()
        state.observe(Moment(frame.t_ms, 0), frame.faces, verdict="v", told=told)
        labels.add(state.verdict("a", told, POINT).label)
    assert labels == {Label.REAL}


@pytest.mark.parametrize("t_ms", [0, 2750, 2749])
def test_a_frame_that_is_not_newer_than_the_newest_is_late_and_moves_nothing(t_ms: int) -> None:
    watched, told = watch(clip(QUIET)), Told()
    before = json.loads(watched.state.dump())
    assert watched.state.observe(Moment(t_ms, 0), (face(0.99),), verdict="v", told=told) == "late"
    assert not told.timeline and not told.segments
    assert watched.state.verdict("a", told, POINT).state == "late"
    assert json.loads(watched.state.dump()) == {**before, "num_late": 1}


def test_an_epoch_goes_by_the_clock_that_it_began_with() -> None:
    state, told = StreamState(LIMITS), Told()
    assert state.observe(Moment(None, 1_000_000), (face(0.1),), verdict="v", told=told) == "live"
    assert state.observe(Moment(5, 1_000_250), (face(0.1),), verdict="v", told=told) == "live"
    assert [point.t_ms for point in told.timeline] == [1_000_000, 1_000_250]
    by_pts = StreamState(LIMITS)
    by_pts.observe(Moment(0, 1_000_000), (face(0.1),), verdict="v", told=told)
    assert by_pts.observe(Moment(None, 2_000_000), (face(0.1),), verdict="v", told=told) == "late"


def test_after_a_gap_a_stream_begins_anew_and_open_segments_close_at_the_last_frame_before() -> None:
    watched = watch(clip(QUIET + FORGED))
    assert next(iter(watched.segments.values())).is_open
    later = watch([Shown(5750 + LIMITS.max_gap_ms + 1, (face(0.1),))], watched.state)
    (closed,) = later.segments.values()
    assert (closed.id, closed.end_ms, closed.is_open) == ("0.0.3000", 5750, False)
    verdict = later.state.verdict("a", later.told[-1], POINT)
    assert (verdict.epoch, verdict.num_frames, verdict.num_segments, verdict.fake_ms, verdict.start_ms) == (1, 1, 0, 0, 10751)
    at_the_limit = watch([Shown(5750 + LIMITS.max_gap_ms, (face(0.1),))], watch(clip(QUIET + FORGED)).state)
    assert at_the_limit.state.verdict("a", at_the_limit.told[-1], POINT).epoch == 0


def test_a_stream_that_never_ends_begins_anew_at_its_greatest_length_and_what_was_open_closes() -> None:
    limits = MemoryLimits(max_length_ms=5_750)
    whole = watch(clip(QUIET + FORGED), StreamState(limits))
    later = watch([Shown(6_000, (face(0.1),))], whole.state)
    (closed,) = later.segments.values()
    assert (closed.id, closed.end_ms, closed.is_open) == ("0.0.3000", 5750, False)
    verdict = later.state.verdict("a", later.told[-1], POINT)
    assert (verdict.epoch, verdict.start_ms, verdict.num_frames, verdict.num_segments) == (1, 6_000, 1, 0)


def test_the_last_frame_ends_a_stream_and_what_comes_later_begins_anew() -> None:
    watched = watch(clip(QUIET + FORGED), end=True)
    (segment,) = watched.segments.values()
    verdict = watched.state.verdict("a", watched.told[-1], POINT)
    assert (segment.is_open, verdict.state, verdict.epoch, verdict.num_segments, verdict.fake_ms) == (False, "ended", 0, 1, 2750)
    again = watch([Shown(0, (face(0.1),))], watched.state)
    verdict = again.state.verdict("a", again.told[-1], POINT)
    assert (verdict.state, verdict.epoch, verdict.start_ms, verdict.num_tracks) == ("live", 1, 0, 1)


def test_counts_of_a_verdict_are_those_of_its_epoch() -> None:
    watched = watch(clip(QUIET + FORGED + QUIET + FORGED + QUIET), end=True)
    verdict = watched.state.verdict("a", watched.told[-1], POINT)
    lengths = [segment.end_ms - segment.start_ms for segment in watched.segments.values()]
    assert (verdict.num_segments, verdict.fake_ms, verdict.num_frames, verdict.t_ms) == (2, sum(lengths), 60, 14750)


def test_the_strongest_evidence_of_a_segment_names_the_verdict_that_shows_it() -> None:
    frames = clip(QUIET + FORGED)
    shown = [(("nose", 0.4), ("mouth", 0.8)), (("nose", 0.9),), (("chin", 0.1),), (("chin", 0.2), ("brow", 0.3), ("eyes", 0.6), ("ears", 0.5))]
    for number, concepts in enumerate(shown, start=13):
        frames[number] = Shown(frames[number].t_ms, (face(0.9, concepts=concepts),))
    (segment,) = watch(frames, end=True).segments.values()
    assert [(item.concept, item.weight, item.verdict) for item in segment.evidence] == [
        ("nose", 0.9, "frames/0/14"),
        ("mouth", 0.8, "frames/0/13"),
        ("eyes", 0.6, "frames/0/16"),
        ("ears", 0.5, "frames/0/16"),
        ("brow", 0.3, "frames/0/16"),
    ]


def test_beyond_its_bound_a_stream_forgets_who_was_away_for_longest_and_closes_their_segment() -> None:
    watched = watch(clip(QUIET + FORGED))
    crowd = [Shown(6000 + 250 * n, tuple(face(0.1, at=400.0 + 300 * k, person=k % 4, number=k) for k in range(LIMITS.max_tracks))) for n in range(2)]
    later = watch(crowd, watched.state)
    (closed,) = later.segments.values()
    assert (closed.id, closed.is_open) == ("0.0.3000", False)
    assert len(json.loads(later.state.dump())["tracks"]) == LIMITS.max_tracks


def test_in_a_crowd_beyond_its_bound_those_who_came_first_are_followed() -> None:
    scores = QUIET + FORGED + QUIET
    people = range(LIMITS.max_tracks + 1)
    crowd = [
        Shown(250 * number, tuple(face(score if k == 1 else 0.1, at=300.0 * k, person=k % 4, number=k) for k in people))
        for number, score in enumerate(scores)
    ]
    (segment,) = watch(crowd, end=True).segments.values()
    assert (segment.id, segment.end_ms) == ("0.1.3000", 5750)


def test_a_person_who_is_away_for_longer_than_the_gap_begins_anew_and_keeps_their_track() -> None:
    watched = watch(clip(QUIET + FORGED))
    others = [Shown(6000 + 250 * number, (face(0.1, at=500, person=1),)) for number in range(40)]
    gone = watch(others[:20], watched.state)
    assert not gone.segments, "10 s have not passed"
    gone = watch(others[20:], gone.state)
    (closed,) = gone.segments.values()
    assert (closed.id, closed.end_ms, closed.is_open) == ("0.0.3000", 5750, False)
    back = watch(clip(QUIET, start_ms=16_000), gone.state)
    assert {point.track for point in back.points} == {0} and not back.segments
    assert back.points[0].smoothed < 0.1


def test_a_state_is_some_kilobytes_at_most() -> None:
    limits, told = MemoryLimits(), Told()
    state = StreamState(limits)
    concepts = [(f"concept_with_a_long_name_{number:03d}", 0.9 - number / 100) for number in range(12)]
    for number in range(60):
        crowd = tuple(
            face(FORGED[number % 12] if number > 20 else 0.1234567, at=300.0 * k, person=k % 4, number=k, concepts=concepts) for k in range(20)
        )
        state.observe(Moment(number * 250, 0), crowd, verdict="a-topic-of-a-usual-length/123/1234567890", told=told)
    size = len(state.dump())
    assert size < 27_000, f"{size} bytes with {limits.max_tracks} people"
    alone = watch(clip((QUIET + FORGED) * 3)).state
    assert len(alone.dump()) < 2_000


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{}x", id="no JSON"),
        pytest.param(b'{"version": 2}', id="another version"),
        pytest.param(b'{"version": 1, "tracks": [{}]}', id="half a track"),
        pytest.param(b'{"version": 1, "epoch": "0"}', id="text for a number"),
        pytest.param(b'{"version": 1, "colour": 1}', id="unknown field"),
    ],
)
def test_what_no_dump_wrote_is_refused_with_its_place(data: bytes) -> None:
    with pytest.raises(ValueError, match="the remembered state of a stream cannot be read"):
        StreamState.load(data, LIMITS)


def numbers_in(part: Any) -> Iterator[tuple[Any, Any]]:
    """Every number below, as what holds it and its key there."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        if isinstance(value, dict | list):
            yield from numbers_in(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield part, key


@pytest.mark.parametrize(
    "number", [-1e308, -1.0, 0, 2, 5_850, 1e308, 10**30, -(10**30), 10**4_300 - 1, math.nan, math.inf], ids=lambda number: repr(number)[:9]
)
def test_a_state_with_any_number_in_it_is_refused_or_goes_on(number: float) -> None:
    """Who may write to the topic may not stop the worker."""
    forged = [Shown(3_000 + 250 * place, (face(0.9, concepts=[("nose", 0.5)]),)) for place in range(10)]
    state = json.loads(watch([*clip(QUIET), *forged]).state.dump())
    num_refused, places = 0, list(numbers_in(state))
    for holder, key in places:
        before, holder[key] = holder[key], number
        written = json.dumps(state).encode()
        holder[key] = before
        for frame in (Shown(5_500), Shown(5_500, (face(0.9),)), Shown(5_850, (face(0.9),))):
            try:
                read = StreamState.load(written, LIMITS)
            except ValueError:
                num_refused += 1
                continue
            told = Told()
            read.observe(Moment(frame.t_ms, 0), frame.faces, verdict="v", told=told)
            StreamState.load(read.dump(), LIMITS)
            read.end(told)
            read.verdict("a", told, POINT)
    assert len(places) > 40 and (num_refused > 0 or number == 0)


@st.composite
def streams(draw: st.DrawFn) -> list[Shown]:
    """Up to three people who come and go, forged at times; frames at times late, at times after a gap."""
    t_ms, frames = 0, []
    for _ in range(draw(st.integers(1, 40))):
        t_ms += draw(st.sampled_from([40, 250, 250, 250, 1000, 4999, 5001, -300, 0]))
        forged = draw(st.sampled_from([0.1, 0.1, 0.9]))
        people = draw(st.lists(st.integers(0, 2), unique=True, max_size=3))
        faces = tuple(
            face(min(1.0, max(0.0, forged + draw(st.floats(-0.1, 0.1)))), at=150.0 * person + draw(st.floats(0, 20)), person=person, number=number,
                 is_fit=draw(st.booleans()) or draw(st.booleans()), concepts=[("nose", 0.5)] if draw(st.booleans()) else [])
            for number, person in enumerate(people)
        )  # fmt: skip
        frames.append(Shown(max(0, t_ms), faces))
    return frames


@settings(max_examples=60, deadline=None)
@given(streams(), st.data())
def test_a_state_that_was_dumped_and_loaded_goes_on_bit_for_bit(frames: list[Shown], data: st.DataObject) -> None:
    reloads = data.draw(st.lists(st.integers(0, len(frames) - 1), max_size=5))
    kept, reloaded = watch(frames, end=True), watch(frames, end=True, reload_after=reloads)
    assert kept.told == reloaded.told
    assert kept.state.dump() == reloaded.state.dump()


@settings(max_examples=60, deadline=None)
@given(streams())
def test_segments_of_a_track_never_overlap_and_are_told_without_contradiction(frames: list[Shown]) -> None:
    watched = watch(frames, end=True)
    by_track: dict[str, list[Segment]] = {}
    for segment in watched.segments.values():
        by_track.setdefault(segment.id.rpartition(".")[0], []).append(segment)
        assert segment.start_ms <= segment.peak_ms <= segment.end_ms and not segment.is_open and segment.num_frames >= 1
    for segments in by_track.values():
        ordered = sorted(segments, key=lambda segment: segment.start_ms)
        assert all(one.end_ms < other.start_ms for one, other in pairwise(ordered))
    closed = set[str]()
    for told in watched.told:
        for segment in told.segments.values():
            assert segment.id not in closed, "a closed segment moved"
            if not segment.is_open:
                closed.add(segment.id)


@settings(max_examples=60, deadline=None)
@given(streams(), st.data())
def test_late_frames_anywhere_change_nothing_but_their_count(frames: list[Shown], data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(frames)))
    newest = watch(frames[:at]).state
    t_ms = json.loads(newest.dump())["t_ms"]
    late = Shown(data.draw(st.integers(0, t_ms)), (face(0.99, person=3),))
    plain, disturbed = watch(frames, end=True), watch([*frames[:at], late, *frames[at:]], end=True)
    assert [(p.t_ms, p.track, p.smoothed) for p in plain.points] == [(p.t_ms, p.track, p.smoothed) for p in disturbed.points]
    assert set(plain.segments) == set(disturbed.segments)


@settings(max_examples=40, deadline=None)
@given(streams(), st.data())
def test_frames_in_chunks_say_what_frames_alone_say(frames: list[Shown], data: st.DataObject) -> None:
    alone, state, segments, points, number = watch(frames), StreamState(LIMITS), dict[str, Segment](), list[TimelinePoint](), 0
    while number < len(frames):
        told = Told()
        for index, frame in enumerate(frames[number : number + data.draw(st.integers(1, 8))]):
            state.observe(Moment(frame.t_ms, 0), frame.faces, verdict=f"frames/0/{number}", frame=index, told=told)
            number += 1
        segments |= told.segments
        points += told.timeline
    assert state.dump() == alone.state.dump()
    assert segments == alone.segments
    assert [point.model_copy(update={"frame": None}) for point in points] == alone.points


@settings(max_examples=40, deadline=None)
@given(streams())
def test_bounds_hold(frames: list[Shown]) -> None:
    limits = MemoryLimits(max_tracks=2, max_gap_ms=5_000)
    watched = watch(frames, StreamState(limits))
    assert len(json.loads(watched.state.dump())["tracks"]) <= 2
    verdict = watched.state.verdict("a", watched.told[-1], POINT)
    assert verdict.num_segments >= 0 and 0 <= verdict.fake_ms <= (verdict.t_ms - verdict.start_ms) * 3
    for point in watched.points:
        assert 0 <= point.smoothed <= 1 and math.isfinite(point.smoothed)


@given(st.floats(0, 1), st.integers(1, 10_000))
def test_no_single_frame_makes_a_segment_however_long_nothing_was_seen_before(score: float, gap_ms: int) -> None:
    quiet = clip([0.1] * 8)
    alone = Shown(quiet[-1].t_ms + min(gap_ms, LIMITS.max_gap_ms), (face(score),))
    assert not watch([*quiet, alone], end=True).segments
    assert not watch([alone], end=True).segments
