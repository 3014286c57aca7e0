"""`python -m bench.streams`: what a sequence shows is what its script says, and a figure means what the page says."""

import math
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest

from bench.sequences import INTERVAL_S, Interval, Plan, Script, Shot, pictures, plans, records, restless_plans
from bench.streams import (
    Heard,
    Judged,
    decoded,
    fit,
    flips,
    found,
    identity,
    objective,
    oracle,
    overlap,
    replay,
    restless_rows,
    segment_rows,
    stream_scores,
    used,
)
from engines.contracts import APPEARANCE_SIZE, Label
from fifa_stream.memory.smoothing import FITTED
from fifa_stream.memory.tracks import Sighting
from fifa_stream.records import OperatingPointUsed
from fifa_stream.testing import toy_bundle
from trainer.faces import Face

POINT = OperatingPointUsed(name="toy", fake_at=0.9, real_below=0.4)


def jpeg(level: int) -> bytes:
    """A plain still of 64 pixels."""
    return cv2.imencode(".jpg", np.full((64, 64, 3), level, np.uint8))[1].tobytes()


def toy_faces() -> list[Face]:
    """Pairs of the sets that sequences are made of, without photographs of people."""
    faces = []
    for number in range(12):
        for dataset, kind in (("dfdc", "swap"), ("stargan", "attribute_manipulation")):
            for quality in ("curated", "loose") if dataset == "dfdc" else ("",):
                name, unit = f"{number}-{quality}", f"unit-{number}"
                faces.append(Face(f"real-{name}", dataset, jpeg(60), None, False, None, unit, "report"))
                faces.append(Face(f"fake-{name}", dataset, jpeg(200), None, True, kind, unit, "report", f"real-{name}", quality))
        faces.append(Face(f"made-{number}", "sd21_faces", jpeg(220), None, True, "entire_synthesis", f"prompt-{number}", "report"))
        faces.append(Face(f"seen-{number}", "amfd", jpeg(80), None, False, None, f"person-{number}", "report"))
    return faces


@pytest.fixture(scope="module")
def planned() -> list[Plan]:
    """Sequences of all families but the one that needs a mesh."""
    return plans(toy_faces(), "report", 40, families=("swap_curated", "swap_loose", "attribute", "synthesis"))


def test_tampered_intervals_lie_inside_shots_of_their_person_with_untouched_frames_between(planned: list[Plan]) -> None:
    assert {len(plan.script.tampered) for plan in planned} >= {0, 1, 2}
    for plan in planned:
        script = plan.script
        assert script.shots[0].first == 0 and script.shots[-1].end == script.num_frames
        assert all(one.end == other.first for one, other in pairwise(script.shots))
        for interval in script.tampered:
            shots = [shot for shot in script.shots if shot.first <= interval.first and interval.end <= shot.end]
            assert shots and interval.person in shots[0].people and interval.end > interval.first
            if interval != (0, shots[0].first, shots[0].end) and script.family != "synthesis":
                assert script.fps * INTERVAL_S[0] - 1 <= interval.end - interval.first <= script.fps * INTERVAL_S[1] + 1
        for one, other in pairwise(script.tampered):
            assert one.end < other.first or script.staging == "cut"
        if script.family != "synthesis":
            assert len(set(script.units)) == len(script.units)


def test_a_plan_is_drawn_from_its_name_alone(planned: list[Plan]) -> None:
    again = plans(toy_faces(), "report", 40, families=("swap_curated", "swap_loose", "attribute", "synthesis"))
    assert [plan.script for plan in again] == [plan.script for plan in planned]
    assert all((one == other).all() for one, other in zip(pictures(planned[0]), pictures(again[0]), strict=True))


def test_pictures_show_the_forgery_inside_the_interval_and_nowhere_else(planned: list[Plan]) -> None:
    plan = next(plan for plan in planned if plan.script.staging == "one" and len(plan.script.tampered) == 1 and plan.script.family == "swap_curated")
    middle = [float(picture_HWC[150:210, 210:270].mean()) for picture_HWC in pictures(plan)]
    for frame, level in enumerate(middle):
        assert (level > 130) is plan.script.is_tampered(0, frame), f"frame {frame} has {level:.0f}"


def test_the_control_jumps_between_two_photographs_of_one_person_and_nobody_is_manipulated() -> None:
    faces = [face for face in toy_faces() if face.dataset == "dfdc" and not face.is_fake]
    lighter = [replace(face, name=f"{face.name}-again", encoded=jpeg(120)) for face in faces]
    made = restless_plans([*faces, *lighter], "report", 8)
    assert len(made) == 8 and all(plan.script.swapped and not plan.script.tampered for plan in made)
    assert restless_plans(faces[:1], "report", 8) == []
    plan = next(plan for plan in made if plan.people[0].real_HWC.mean() != plan.people[0].fake_HWC.mean())  # type: ignore[union-attr]
    levels = [float(picture_HWC[150:210, 210:270].mean()) for picture_HWC in pictures(plan)]
    second = [plan.script.shows_second(0, frame) for frame in range(plan.script.num_frames)]
    is_lighter = bool(plan.people[0].fake_HWC.mean() > 90)  # type: ignore[union-attr]
    assert [level > 90 for level in levels] == [shown is is_lighter for shown in second]
    assert Judged.from_json(judged(plan.script).to_json()).script == plan.script
    quiet, loud = (replay(judged(plan.script, real=real), POINT) for real in (0.1, 0.97))
    assert [row[3] for row in restless_rows([quiet], [loud])] == [0, 1]


def test_records_hold_every_frame_once_as_jpeg_or_in_chunks(planned: list[Plan]) -> None:
    pytest.importorskip("av", reason="needs the extra video")
    for codec in ("jpeg", "h264"):
        plan = next(plan for plan in planned if plan.script.codec == codec)
        sent = list(records(plan))
        assert [frame for record in sent for frame in record.frames] == list(range(plan.script.num_frames))
        assert {record.content_type for record in sent} == {"image/jpeg" if codec == "jpeg" else "video/mp4"}
        assert [record.start_ms for record in sent] == [record.frames[0] * plan.script.frame_ms for record in sent]


def script(tampered: tuple[Interval, ...], *, num_frames: int = 48, name: str = "toy") -> Script:
    """One person, four frames a second."""
    return Script(name, "swap_curated", "one", 4, num_frames, ("dfdc/a",), (Shot(0, num_frames, (0,)),), tampered, "jpeg")


def judged(of: Script, *, real: float = 0.1, fake: float = 0.9) -> Judged:
    """An engine that is always right, or as right as that."""
    look = bytes(range(APPEARANCE_SIZE))
    return Judged(
        of,
        tuple(
            (Sighting(0, (200.0, 100.0, 300.0, 220.0), fake if of.is_tampered(0, frame) else real, True, {"identity_swap": 1.0}, (), look),)
            for frame in range(of.num_frames)
        ),
    )


ONCE = script((Interval(0, 16, 32),))


def test_scores_that_were_kept_are_read_as_they_were_written() -> None:
    assert Judged.from_json(judged(ONCE).to_json()) == judged(ONCE)


def test_a_right_engine_finds_its_interval_whole_and_nothing_else() -> None:
    replayed = replay(judged(ONCE), POINT)
    (interval,), false = found(replayed)
    assert (interval.iou, interval.seconds, false) == (1.0, 4.0, 0)
    assert identity([replayed]).purity == 1 and stream_scores(replayed)["stream"] > 0.5
    (one,) = oracle(judged(ONCE), {False: -2.0, True: 2.0})
    assert one.iou == 1.0
    assert segment_rows([replayed], {False: -2.0, True: 2.0})[-1].iou == 1.0


def test_a_blind_engine_misses_and_a_wrong_one_is_charged_with_a_false_segment() -> None:
    (missed,), false = found(replay(judged(ONCE, fake=0.1), POINT))
    assert (missed.iou, false) == (0.0, 0)
    wrong = Judged(script(()), judged(ONCE).faces)
    intervals, false = found(replay(wrong, POINT))
    assert (intervals, false) == ([], 1)


def test_overlap_is_of_time() -> None:
    assert overlap((0, 1000), (500, 1500)) == pytest.approx(1 / 3)
    assert (overlap((0, 1000), (0, 1000)), overlap((0, 1000), (1000, 2000))) == (1.0, 0.0)


def test_a_change_of_label_counts_between_untouched_frames_of_the_same_whom() -> None:
    real, fake = Label.REAL, Label.FAKE
    told = [("a", True, real), ("b", True, fake), ("a", True, fake), ("a", False, real), ("a", True, fake), ("a", True, fake), ("b", True, fake)]
    assert flips(told) == (1, 6)


def test_an_oracle_does_not_see_a_forgery_that_scores_below_its_person() -> None:
    course = [Heard(frame, -1.0 if 10 <= frame < 20 else 0.5, 10 <= frame < 20) for frame in range(30)]
    assert decoded(course, {False: -1.5, True: 1.0}) == []
    assert decoded([heard._replace(level=-heard.level) for heard in course], {False: -1.5, True: 1.0}) == [(10, 19)]
    assert decoded([], {False: -1.5, True: 1.0}) == []


def test_the_search_never_ends_below_where_it_began() -> None:
    some = [judged(script((Interval(0, 16, 32),), name=f"s{n}"), real=0.3, fake=0.3 + 0.1 * n) for n in range(5)] + [judged(script(()))]
    best = fit(some, POINT, steps={"lift": (1.0, 1.5), "gain": (1.0, 3.0)})
    assert objective(some, POINT, best) >= objective(some, POINT, FITTED)
    assert math.isfinite(best.stream_bias) and best.stream_run > 0


def test_operating_points_are_named_with_the_default_first() -> None:
    assert [point.name for point in used(toy_bundle())] == ["toy"]
