"""Who is who from frame to frame."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from engines.contracts import APPEARANCE_SIZE, Box
from fifa_stream.memory.smoothing import FITTED, Belief
from fifa_stream.memory.tracks import Sighting, Track, assign, looks, match


def person(number: int) -> bytes:
    """An appearance that is like no other's."""
    drawn = np.random.RandomState(number).standard_normal(APPEARANCE_SIZE)
    return np.rint(127 * drawn / np.abs(drawn).max()).astype(np.int8).tobytes()


def seen(x: float, look: bytes = b"", *, y: float = 0.0, size: float = 100.0) -> Sighting:
    """A face whose box begins at (x, y)."""
    box: Box = (x, y, x + size, y + size)
    return Sighting(0, box, 0.5, True, {}, (), look)


def known(x: float, look: bytes = b"", *, number: int = 0, t_ms: int = 0) -> Track:
    """Somebody who was at x."""
    return Track.of(number, seen(x, look), t_ms, FITTED)


def test_the_assignment_is_the_best_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows = int(rng.integers(1, 7))
        weights_NM = rng.normal(0, 3, (rows, rows + int(rng.integers(0, 5)))).round(int(rng.integers(0, 3)))  # ties among them
        columns = assign(weights_NM.tolist())
        assert len(set(columns)) == rows
        _, best = linear_sum_assignment(weights_NM, maximize=True)
        assert weights_NM[range(rows), columns].sum() == pytest.approx(weights_NM[range(rows), best].sum())


@given(st.lists(st.floats(0, 600), min_size=1, max_size=5), st.lists(st.floats(0, 600), min_size=1, max_size=5), st.integers(1, 3000))
def test_no_track_is_given_to_two_faces(tracks_x: list[float], faces_x: list[float], t_ms: int) -> None:
    tracks = [known(x, person(number), number=number) for number, x in enumerate(tracks_x)]
    given_ = [place for place in match(tracks, [seen(x, person(number)) for number, x in enumerate(faces_x)], t_ms) if place is not None]
    assert len(given_) == len(set(given_))


def test_a_crowd_beside_few_tracks_is_dealt_out_as_well_as_by_the_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    """And by the few: rows are what takes time."""
    rng, rows = np.random.default_rng(1), list[int]()

    def counting(weights_NM: Sequence[Sequence[float]]) -> list[int]:
        rows.append(len(weights_NM))
        return assign(weights_NM)

    monkeypatch.setattr("fifa_stream.memory.tracks.assign", counting)
    tracks = [known(float(x), number=number) for number, x in enumerate(rng.uniform(0, 900, 5))]
    faces = [seen(float(x)) for x in rng.uniform(0, 900, 60)]
    weights = np.array([[max(0.0, track.likeness(face, 250)) for track in tracks] for face in faces])
    places = match(tracks, faces, 250)
    _, best = linear_sum_assignment(np.hstack([weights, np.zeros((60, 60))]), maximize=True)
    assert places == [place if place < 5 and weights[face, place] > 0 else None for face, place in enumerate(best)] and rows == [5]


@pytest.mark.parametrize("look", [b"", person(1)], ids=["by place alone", "with appearance"])
def test_somebody_who_moves_smoothly_stays_who_they_are(look: bytes) -> None:
    track = known(0, look)
    for number in range(1, 20):
        assert match([track], [seen(25.0 * number, look)], 250 * number) == [0]
        track.see(seen(25.0 * number, look), 250 * number)
    assert track.motion[0] == pytest.approx(100, rel=0.01)


def test_somebody_whose_frames_come_in_bursts_stays_who_they_are() -> None:
    """As by the timestamps of records that were sent together."""
    track, noise = known(0), np.random.default_rng(0).normal(0, 1.5, 200)
    for number in range(1, 200):
        t_ms, face = 200 * (number // 5) + number % 5, seen(3.0 * number + noise[number])
        assert match([track], [face], t_ms) == [0], t_ms
        track.see(face, t_ms)


def test_a_cut_to_another_person_in_the_same_place_begins_a_track_where_there_is_an_appearance() -> None:
    assert match([known(0, person(1))], [seen(0, person(2))], 250) == [None]
    assert match([known(0)], [seen(0)], 250) == [0], "by place alone nobody can tell"


def test_somebody_who_comes_back_after_a_cut_goes_on_in_their_old_track() -> None:
    tracks = [known(0, person(1), t_ms=0), known(5, person(2), number=1, t_ms=3000)]
    assert match(tracks, [seen(40, person(1))], 3250) == [0]


def test_two_people_who_change_places_are_told_apart_by_what_they_look_like() -> None:
    tracks = [known(0, person(1)), known(150, person(2), number=1)]
    assert match(tracks, [seen(0, person(2)), seen(150, person(1))], 500) == [1, 0]
    tracks = [known(0), known(150, number=1)]
    assert match(tracks, [seen(10), seen(140)], 500) == [0, 1]


def test_a_face_across_the_picture_is_somebody_else_unless_it_looks_the_same() -> None:
    assert match([known(0)], [seen(500)], 250) == [None]
    assert match([known(0, person(1))], [seen(200, person(1))], 1000) == [0]


def test_looks_say_nothing_where_one_is_missing_or_blank() -> None:
    assert looks(person(1), b"") == looks(b"", b"") == looks(bytes(APPEARANCE_SIZE), person(1)) == 0
    assert looks(person(1), person(1)) > 0 > looks(person(1), person(2))


def test_an_appearance_moves_slowly_with_what_is_seen() -> None:
    track, new = known(0, person(1)), person(2)
    before = looks(track.appearance, new)
    for number in range(1, 40):
        track.see(seen(0, new), 250 * number)
    assert before < 0 < looks(track.appearance, new)
    track.see(seen(0), 20_000)
    assert len(track.appearance) == APPEARANCE_SIZE


def test_everybody_has_a_belief_of_their_own() -> None:
    one, other = known(0), known(0)
    one.belief.hear(0.99, 0, FITTED)
    assert other.belief == Belief.before(FITTED) != one.belief
