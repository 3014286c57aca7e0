"""What a stream's memory is worth where the truth is known: `bench.sequences` through the engine that ships, then through `fifa_stream.memory`.

    python -m bench.streams --data DIR --scores DIR                 figures on *report* people -> docs/bench/streams.md
    python -m bench.streams --data DIR --scores DIR --part select   the same on those whom parameters were fitted on; prints, writes nothing
    python -m bench.streams --data DIR --scores DIR --fit           searches parameters on *select* and prints them

What the engine says of each sequence is kept under --scores, so that only the first call takes long.

A tampered interval is found as well as the segment that overlaps it best: temporal IoU, where either lasts from its first frame to the end of its
last, and only segments of tracks that mostly show the interval's person count. An interval that none overlaps counts 0. A segment that overlaps no
interval of its person is a false one.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from base64 import b64decode, b64encode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from scipy.optimize import minimize

from bench.run import ROOT, machine
from bench.sequences import FAMILIES, Interval, Plan, Script, Shot, plans, records, restless_plans
from engines.analyzer import Analyzer, ExplainPolicy
from engines.bundle import Bundle, bundled_engine, open_bundle
from engines.contracts import Label
from fifa_stream.infer import EncodedImage, FramePipeline, PipelineLimits
from fifa_stream.memory.smoothing import FITTED, Belief, Smoothing, log_odds
from fifa_stream.memory.stream import MemoryLimits, Moment, StreamState, Told
from fifa_stream.memory.tracks import Sighting
from fifa_stream.records import OperatingPointUsed, RecordError, Segment, StreamVerdict, TimelinePoint
from fifa_stream.video import VideoLimits
from trainer.datasets import load_faces
from trainer.faces import Part
from trainer.fifa_bench.detection import auc, ece
from trainer.fifa_bench.intervals import UndefinedMetric, bootstrap_interval

DATASETS = ("dfdc", "stargan", "ffhq_stylegan2", "sd21_faces", "london", "amfd")
COUNTS: dict[str, int] = {"select": 96, "report": 208}
RESTLESS: dict[str, int] = {"select": 24, "report": 48}
"""Sequences of the control."""
RULES = ("stream", "mean of frames", "max of frames")
COSTS = (1, 4)
"""Faces of a frame whose cost is measured."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A sequence and what the engine says of its faces, frame by frame."""

    script: Script
    faces: tuple[tuple[Sighting, ...], ...]

    def to_json(self) -> str:
        """One line."""
        faces = [[{**sighting._asdict(), "appearance": b64encode(sighting.appearance).decode()} for sighting in frame] for frame in self.faces]
        return json.dumps({"script": asdict(self.script), "faces": faces})

    @classmethod
    def from_json(cls, line: str) -> "Judged":
        """What `to_json` wrote."""
        tree = json.loads(line)
        script = tree["script"]
        script["units"] = tuple(script["units"])
        script["shots"] = tuple(Shot(first, end, tuple(people)) for first, end, people in script["shots"])
        for name in ("tampered", "swapped"):
            script[name] = tuple(Interval(*interval) for interval in script.get(name, ()))
        return cls(Script(**script), tuple(tuple(_sighting(face) for face in frame) for frame in tree["faces"]))


def _sighting(face: dict[str, Any]) -> Sighting:
    concepts = tuple((name, confidence) for name, confidence in face["concepts"])
    return Sighting(**{**face, "box": tuple(face["box"]), "concepts": concepts, "appearance": b64decode(face["appearance"])})


def judge(plan: Plan, pipeline: FramePipeline) -> Judged:
    """Send a sequence through the engine. Raises RecordError, which no sequence should."""
    faces: list[tuple[Sighting, ...]] = []
    for outcome in pipeline.judge([EncodedImage(record.value, record.content_type) for record in records(plan)]):
        if isinstance(outcome, RecordError):
            raise outcome
        faces += [tuple(map(Sighting.of, frame.faces)) for frame in outcome.frames or (outcome,)]
    assert len(faces) == plan.script.num_frames, f"{plan.script.name} has {plan.script.num_frames} frames, {len(faces)} were judged"
    return Judged(plan.script, tuple(faces))


def pipeline_of(bundle: Bundle, *, max_batch_faces: int = 16, explain: ExplainPolicy = "never") -> FramePipeline:
    """Every frame of a chunk is looked at."""
    limits = PipelineLimits(explain=explain, max_batch_faces=max_batch_faces, video=VideoLimits(sample_fps=1000, max_frames=1000))
    return FramePipeline(limits, Analyzer(bundle, appearance=True), bundle)


def judged_sequences(made: Sequence[Plan], scores: Path, part: Part, bundle: Bundle, console: Console) -> list[Judged]:
    """Those kept under `scores`, and the rest through the engine."""
    kept, pipeline, all_judged = scores / part, pipeline_of(bundle), []
    kept.mkdir(parents=True, exist_ok=True)
    for plan in track(made, description=f"{part} sequences", console=console):
        file = kept / f"{plan.script.name}.json"
        if not file.exists():
            partly = file.with_suffix(".part")
            partly.write_text(judge(plan, pipeline).to_json())
            partly.replace(file)
        all_judged.append(Judged.from_json(file.read_text()))
    return all_judged


class Replayed(NamedTuple):
    """What the memory makes of a sequence."""

    judged: Judged
    points: tuple[tuple[TimelinePoint, ...], ...]
    """By frame."""
    segments: tuple[Segment, ...]
    """As they were told last."""
    verdicts: tuple[StreamVerdict, ...]
    """By frame."""


def replay(judged: Judged, point: OperatingPointUsed, *, smoothing: Smoothing = FITTED, appearance: bool = True) -> Replayed:
    """Frame by frame through a memory of its own, the last frame with `stream-end`."""
    state, script = StreamState(MemoryLimits(), smoothing=smoothing), judged.script
    points, segments, verdicts = [], dict[str, Segment](), []
    for frame, faces in enumerate(judged.faces):
        told = Told()
        seen = faces if appearance else [face._replace(appearance=b"") for face in faces]
        state.observe(Moment(frame * script.frame_ms, 0), seen, verdict=f"frames/0/{frame}", told=told)
        if frame == script.num_frames - 1:
            state.end(told)
        points.append(tuple(told.timeline))
        segments |= told.segments
        verdicts.append(state.verdict(script.name, told, point))
    return Replayed(judged, tuple(points), tuple(segments.values()), tuple(verdicts))


class Found(NamedTuple):
    """How well one tampered interval was found."""

    person: int
    seconds: float
    iou: float


def overlap(one: tuple[int, int], other: tuple[int, int]) -> float:
    """Intersection over union of two stretches of time, ends exclusive."""
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return max(0, shared) / (max(one[1], other[1]) - min(one[0], other[0]) if shared > 0 else 1)


def people_of_tracks(replayed: Replayed) -> dict[int, int]:
    """Whom each track shows in most of its frames."""
    script, shows = replayed.judged.script, defaultdict[int, Counter[int]](Counter)
    for frame, (faces, points) in enumerate(zip(replayed.judged.faces, replayed.points, strict=True)):
        boxes = {face.face: face.box for face in faces}
        for point in points:
            shows[point.track][script.person_at(frame, boxes[point.face])] += 1
    return {track_number: counts.most_common(1)[0][0] for track_number, counts in shows.items()}


def found(replayed: Replayed) -> tuple[list[Found], int]:
    """Each tampered interval, and how many segments overlap none."""
    script = replayed.judged.script
    shows = people_of_tracks(replayed)
    stretches = [(shows[segment.track], (segment.start_ms, segment.end_ms + script.frame_ms)) for segment in replayed.segments]
    return matched(script, stretches)


def found_by_time(replayed: Replayed) -> list[float]:
    """IoU of each tampered interval where segments of any track count: who is who left aside."""
    script = replayed.judged.script
    stretches = [(segment.start_ms, segment.end_ms + script.frame_ms) for segment in replayed.segments]
    spans = [(interval.first * script.frame_ms, interval.end * script.frame_ms) for interval in script.tampered]
    return [max((overlap(span, stretch) for stretch in stretches), default=0.0) for span in spans]


def matched(script: Script, stretches: Sequence[tuple[int, tuple[int, int]]]) -> tuple[list[Found], int]:
    truth = [(interval.person, (interval.first * script.frame_ms, interval.end * script.frame_ms)) for interval in script.tampered]
    best = [
        Found(
            person,
            (span[1] - span[0]) / 1000,
            max((overlap(span, stretch) for of, stretch in stretches if of == person), default=0.0),
        )
        for person, span in truth
    ]
    return best, sum(all(of != person or overlap(span, stretch) == 0 for person, span in truth) for of, stretch in stretches)


def restless_rows(restless: Sequence[Replayed], ours: Sequence[Replayed]) -> list[list[object]]:
    """False segments and final labels of people who jump, beside those of untouched people who do not."""
    untouched = [one for one in ours if not one.judged.script.tampered]
    rows: list[list[object]] = []
    for name, some in (("jumps to another photograph", restless), ("does not", untouched)):
        jumps = sum(2 * len(one.judged.script.swapped) for one in some)
        labels = Counter(one.verdicts[-1].label for one in some)
        shares = [f"{100 * labels[label] / max(1, len(some)):.0f} %" for label in (Label.REAL, Label.INCONCLUSIVE, Label.FAKE)]
        rows.append([name, len(some), jumps, mean(found(one)[1] for one in some), *shares])
    return rows


def flips(labels: Iterable[tuple[object, bool, Label]]) -> tuple[int, int]:
    """(changes of label, frames) over untouched frames, out of (whom, is_untouched, label) in the order of time. A change counts between successive
    frames of the same whom that are both untouched."""
    last, changes, untouched = dict[object, tuple[bool, Label]](), 0, 0
    for whom, is_untouched, label in labels:
        untouched += is_untouched
        if is_untouched and whom in last:
            was_untouched, before = last[whom]
            changes += was_untouched and before != label
        last[whom] = is_untouched, label
    return changes, untouched


def label_of(score: float | None, point: OperatingPointUsed) -> Label:
    """By the two cuts."""
    if score is None:
        return Label.INCONCLUSIVE
    return Label.FAKE if score >= point.fake_at else Label.REAL if score < point.real_below else Label.INCONCLUSIVE


def flip_rates(all_replayed: Sequence[Replayed], point: OperatingPointUsed) -> dict[str, float]:
    """Changes of label per 100 untouched frames: of each face alone, of its track, and of the stream, where nobody in the frame is manipulated."""
    totals: dict[str, list[int]] = {"face alone": [0, 0], "track": [0, 0], "stream": [0, 0]}
    for replayed in all_replayed:
        script, shows = replayed.judged.script, people_of_tracks(replayed)
        seen = [(point_, not script.is_tampered(shows[point_.track], frame)) for frame, points in enumerate(replayed.points) for point_ in points]
        streams = [
            ("", not any(script.is_tampered(person, frame) for person in script.shown(frame)), verdict.label)
            for frame, verdict in enumerate(replayed.verdicts)
        ]
        counted = {
            "face alone": flips((point_.track, untouched, label_of(point_.fake_score, point)) for point_, untouched in seen),
            "track": flips((point_.track, untouched, label_of(point_.smoothed, point)) for point_, untouched in seen),
            "stream": flips(streams),
        }
        for name, (changes, frames) in counted.items():
            totals[name][0] += changes
            totals[name][1] += frames
    return {name: 100 * changes / frames for name, (changes, frames) in totals.items()}


def stream_scores(replayed: Replayed) -> dict[str, float]:
    """What may be said of a whole sequence, by several rules."""
    alone = [face.fake_score for faces in replayed.judged.faces for face in faces if face.is_fit]
    final = replayed.verdicts[-1].fake_score
    return {
        "stream": 0.0 if final is None else final,
        "mean of frames": statistics.fmean(alone) if alone else 0.0,
        "max of frames": max(alone, default=0.0),
    }


class Heard(NamedTuple):
    """A fit face of one person, in the order of time."""

    frame: int
    level: float
    """Its log-odds."""
    is_tampered: bool


def course_of(judged: Judged, person: int) -> list[Heard]:
    """One person's fit faces, without any doubt who is who; of several in one frame the largest."""
    script, course = judged.script, list[Heard]()
    for frame, faces in enumerate(judged.faces):
        theirs = [face for face in faces if face.is_fit and script.person_at(frame, face.box) == person]
        if theirs:
            largest = max(theirs, key=lambda face: (face.box[2] - face.box[0]) * (face.box[3] - face.box[1]))
            course.append(Heard(frame, log_odds(largest.fake_score), script.is_tampered(person, frame)))
    return course


def oracle(judged: Judged, usual: Mapping[bool, float]) -> list[Found]:
    """What the frame scores allow: each person's course decoded at once, by somebody who knows its mean log-odds untouched and manipulated and how
    far single frames lie from them. `usual` stands for the state that a person is never seen in."""
    script, stretches = judged.script, list[tuple[int, tuple[int, int]]]()
    for person in range(len(script.units)):
        runs = decoded(course_of(judged, person), usual)
        stretches += [(person, (first * script.frame_ms, (last + 1) * script.frame_ms)) for first, last in runs]
    return matched(script, stretches)[0]


COST_OF_CHANGE = math.log(20)
"""Of the oracle: what one change of state must be worth. Costs from 5 to 100 move its figure by less than 0.02."""


def decoded(course: Sequence[Heard], usual: Mapping[bool, float]) -> list[tuple[int, int]]:
    """(first, last) frames of the manipulated stretches of the most probable course: Viterbi with two known normal distributions."""
    if not course:
        return []
    seen = {state: [heard.level for heard in course if heard.is_tampered is state] for state in (False, True)}
    levels = {state: statistics.fmean(values) if values else usual[state] for state, values in seen.items()}
    spread = max(0.1, math.sqrt(statistics.fmean((heard.level - levels[heard.is_tampered]) ** 2 for heard in course)))
    score, came = {False: 0.0, True: 0.0}, list[dict[bool, bool]]()
    for heard in course:
        # A person whose forgery scores lower than they do is beyond an oracle too: it knows that higher means fake.
        above = max(0.0, levels[True] - levels[False]) * (2 * heard.level - levels[True] - levels[False]) / (2 * spread * spread)
        step = {state: state if score[state] >= score[not state] - COST_OF_CHANGE else not state for state in (False, True)}
        score = {state: score[step[state]] - COST_OF_CHANGE * (step[state] is not state) + above * state for state in (False, True)}
        came.append(step)
    state, states = score[True] > score[False], list[bool]()
    for step in reversed(came):
        states.append(state)
        state = step[state]
    ordered, runs = states[::-1], list[tuple[int, int]]()
    for place, is_fake in enumerate(ordered):
        if is_fake and place > 0 and ordered[place - 1]:
            runs[-1] = runs[-1][0], course[place].frame
        elif is_fake:
            runs.append((course[place].frame, course[place].frame))
    return runs


class Row(NamedTuple):
    """Of one family, or of all."""

    family: str
    sequences: int
    untouched: int
    intervals: int
    iou: float
    found: float
    """Share of the intervals that some segment overlaps."""
    iou_of_found: float
    oracle_iou: float
    oracle_found: float
    false_untouched: float
    """False segments per untouched sequence."""
    false_tampered: float
    """... and per tampered one."""
    type_right: float
    """Of found intervals, whose best segment names the right forgery type; swaps of either kind count as right for DFDC, which does not say."""
    frame_auc: float
    """Of single faces, tampered against untouched."""


TYPES: dict[str, tuple[str, ...]] = {
    "swap_curated": ("identity_swap", "expression_swap"),
    "swap_loose": ("identity_swap", "expression_swap"),
    "attribute": ("attribute_manipulation",),
    "synthesis": ("entire_synthesis",),
}


def segment_rows(all_replayed: Sequence[Replayed], usual: Mapping[bool, float]) -> list[Row]:
    """By family, and all together."""
    return [
        _segment_row(name, [one for one in all_replayed if name in (one.judged.script.family, "all")], usual)
        for name in (*FAMILIES, "all")
        if any(name in (one.judged.script.family, "all") for one in all_replayed)
    ]


def _segment_row(name: str, some: Sequence[Replayed], usual: Mapping[bool, float]) -> Row:
    all_found, false = list[Found](), {True: list[int](), False: list[int]()}
    known = [one for replayed in some for one in oracle(replayed.judged, usual)]
    for replayed in some:
        intervals, num_false = found(replayed)
        all_found += intervals
        false[bool(replayed.judged.script.tampered)].append(num_false)
    hits = [one.iou for one in all_found if one.iou > 0]
    return Row(
        family=name,
        sequences=len(some),
        untouched=len(false[False]),
        intervals=len(all_found),
        iou=mean(one.iou for one in all_found),
        found=len(hits) / max(1, len(all_found)),
        iou_of_found=mean(hits),
        oracle_iou=mean(one.iou for one in known),
        oracle_found=mean(one.iou > 0 for one in known),
        false_untouched=mean(false[False]),
        false_tampered=mean(false[True]),
        type_right=mean(right for replayed in some for right in _types_right(replayed)),
        frame_auc=_frame_auc(some),
    )


def _types_right(replayed: Replayed) -> list[bool]:
    script, shows = replayed.judged.script, people_of_tracks(replayed)
    if script.family not in TYPES:
        return []
    right = []
    for interval in script.tampered:
        span = interval.first * script.frame_ms, interval.end * script.frame_ms
        theirs = [
            (overlap(span, (segment.start_ms, segment.end_ms + script.frame_ms)), segment.forgery_type)
            for segment in replayed.segments
            if shows[segment.track] == interval.person
        ]
        best, kind = max(theirs, default=(0.0, ""))
        if best > 0:
            right.append(kind in TYPES[script.family])
    return right


def _frame_auc(some: Sequence[Replayed]) -> float:
    heard = [one for replayed in some for person in range(len(replayed.judged.script.units)) for one in course_of(replayed.judged, person)]
    labels = np.array([one.is_tampered for one in heard], bool)
    return auc(labels, np.array([one.level for one in heard])) if labels.any() and not labels.all() else math.nan


def rise(judged: Judged, person: int) -> float:
    """By how much a person's mean log-odds rise when they are manipulated; NaN where they are seen in one state only."""
    course = course_of(judged, person)
    means = {state: mean(heard.level for heard in course if heard.is_tampered is state) for state in (False, True)}
    return means[True] - means[False]


def mean(values: Iterable[float]) -> float:
    """NaN where there is none."""
    known = list(values)
    return statistics.fmean(known) if known else math.nan


class Identity(NamedTuple):
    """Do tracks follow people."""

    purity: float
    """Share of faces on a track that mostly shows their person."""
    tracks_per_person: float
    back_after_cut: float
    """Share of cuts back to somebody seen before whose old track goes on."""


def identity(all_replayed: Sequence[Replayed]) -> Identity:
    """Over all sequences."""
    right = total = tracks = people = back = cuts = 0
    for replayed in all_replayed:
        script, shows = replayed.judged.script, people_of_tracks(replayed)
        tracks += len(shows)
        people += len({person for shot in script.shots for person in shot.people})
        last: dict[int, int] = {}
        for frame, (faces, points) in enumerate(zip(replayed.judged.faces, replayed.points, strict=True)):
            boxes = {face.face: face.box for face in faces}
            for point in points:
                person = script.person_at(frame, boxes[point.face])
                right += shows[point.track] == person
                total += 1
                is_back = frame > 0 and person not in script.shown(frame - 1) and person in last
                cuts += is_back
                back += is_back and last[person] == point.track
                last[person] = point.track
    return Identity(right / total, tracks / people, back / cuts if cuts else math.nan)


def detection(all_replayed: Sequence[Replayed], families: Sequence[str] = (*FAMILIES, "all")) -> list[list[str]]:
    """AUC of whole sequences, tampered against untouched, by family and rule, with intervals over people."""
    rows = []
    for name in families:
        some = [one for one in all_replayed if name in (one.judged.script.family, "all")]
        labels = np.array([bool(one.judged.script.tampered) for one in some], bool)
        scores = {rule: np.array([stream_scores(one)[rule] for one in some]) for rule in RULES}
        units = [one.judged.script.first_suspect for one in some]
        cells = [name, str(int((~labels).sum())), str(int(labels.sum()))]
        cells += [_with_interval(partial(_auc, labels, values), units) for values in scores.values()]
        cells.append(_with_interval(partial(_gain, labels, scores["stream"], scores["mean of frames"]), units, sign="+"))
        rows.append(cells)
    return rows


def _auc(labels_N: NDArray[np.bool_], scores_N: NDArray[np.float64], rows: NDArray[np.intp]) -> float:
    return auc(labels_N[rows], scores_N[rows])


def _gain(labels_N: NDArray[np.bool_], ours_N: NDArray[np.float64], other_N: NDArray[np.float64], rows: NDArray[np.intp]) -> float:
    return _auc(labels_N, ours_N, rows) - _auc(labels_N, other_N, rows)


def _with_interval(metric: Callable[[NDArray[np.intp]], float], units: Sequence[str], *, sign: str = "") -> str:
    """A figure with its 95 % interval over identities, as far as either has a value."""
    try:
        figure = f"{metric(np.arange(len(units))):{sign}.3f}"
        low, high = bootstrap_interval(metric, units, resamples=300)
    except UndefinedMetric:
        return ""
    return f"{figure} ({low:{sign}.3f} to {high:{sign}.3f})"


def labels_table(all_replayed: Sequence[Replayed], points: Sequence[OperatingPointUsed]) -> list[list[str]]:
    """How many sequences end with which label."""
    rows = []
    for point in points:
        for is_tampered in (False, True):
            some = [one for one in all_replayed if bool(one.judged.script.tampered) is is_tampered]
            counts = Counter(label_of(one.verdicts[-1].fake_score, point) for one in some)
            cells = [f"{100 * counts[label] / max(1, len(some)):.0f} %" for label in (Label.REAL, Label.INCONCLUSIVE, Label.FAKE)]
            rows.append([point.name, "tampered" if is_tampered else "untouched", str(len(some)), *cells])
    return rows


def calibration_errors(all_replayed: Sequence[Replayed]) -> dict[str, float]:
    """Of single faces, of tracks, and of whole sequences at their end."""
    faces = [
        (script.is_tampered(shows[point.track], frame), point.fake_score, point.smoothed)
        for replayed in all_replayed
        for script, shows in [(replayed.judged.script, people_of_tracks(replayed))]
        for frame, points in enumerate(replayed.points)
        for point in points
    ]
    labels_N = np.array([is_tampered for is_tampered, _, _ in faces], bool)
    streams_N = np.array([bool(replayed.judged.script.tampered) for replayed in all_replayed], bool)
    return {
        "faces alone": ece(labels_N, np.array([alone for _, alone, _ in faces])),
        "smoothed": ece(labels_N, np.array([smoothed for _, _, smoothed in faces])),
        "streams": ece(streams_N, np.array([stream_scores(replayed)["stream"] for replayed in all_replayed])),
    }


def objective(all_judged: Sequence[Judged], point: OperatingPointUsed, smoothing: Smoothing) -> float:
    """What the search maximises: mean IoU, less a quarter of the false segments per sequence, less a twentieth of the flips beyond 1 in 100."""
    all_replayed = [replay(judged, point, smoothing=smoothing) for judged in all_judged]
    matches = [found(one) for one in all_replayed]
    iou = mean(one.iou for intervals, _ in matches for one in intervals)
    false = mean(number for _, number in matches)
    return iou - false / 4 - max(0.0, flip_rates(all_replayed, point)["track"] - 1) / 20


STEPS: dict[str, tuple[float, ...]] = {
    "begins_per_s": (0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    "ends_per_s": (0.05, 0.1, 0.15, 0.2, 0.3, 0.5),
    "usual_level": (-1.5, -1.0, -0.75, -0.5, 0.0),
    "usual_weight": (1.0, 2.0, 3.0, 5.0, 8.0),
    "lift": (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5),
    "gain": (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0),
    "limit": (2.0, 2.5, 3.0, 3.5, 4.0, 4.5),
    "least_spread": (0.08, 0.12, 0.16, 0.2, 0.3),
    "spread_slope": (0.1, 0.2, 0.3, 0.4),
    "most_spread": (0.4, 0.5, 0.6, 0.8, 1.0),
}


def fit(all_judged: Sequence[Judged], point: OperatingPointUsed, *, steps: Mapping[str, Sequence[float]] = STEPS) -> Smoothing:
    """Coordinate ascent over `STEPS` until nothing gains, then bias and run of the stream's score by logistic regression over single people,
    classes weighted alike."""
    best, value = FITTED, objective(all_judged, point, FITTED)
    moved = True
    while moved:
        moved = False
        for name, values in steps.items():
            for step in values:
                try:
                    tried = replace(best, **{name: step})  # type: ignore[arg-type]
                except ValueError:  # a single frame would make a segment
                    continue
                reached = objective(all_judged, point, tried)
                if reached > value + 1e-3:
                    best, value, moved = tried, reached, True
    people = [(judged, course) for judged in all_judged for person in range(len(judged.script.units)) if (course := course_of(judged, person))]
    reached_N2 = np.array([_reached(judged, course, best) for judged, course in people])
    is_fake_N = np.array([any(heard.is_tampered for heard in course) for _, course in people], bool)
    weight_N = np.where(is_fake_N, 0.5 / max(1, is_fake_N.sum()), 0.5 / max(1, (~is_fake_N).sum()))

    def loss(parameters: NDArray[np.float64]) -> float:
        odds_N = parameters[0] + parameters[1] * reached_N2[:, 0] + best.stream_level * reached_N2[:, 1]
        return float((weight_N * np.logaddexp(0, np.where(is_fake_N, -odds_N, odds_N))).sum())

    bias, run = minimize(loss, [best.stream_bias, best.stream_run]).x
    return replace(best, stream_bias=round(float(bias), 2), stream_run=round(float(run), 2))


def _reached(judged: Judged, course: Sequence[Heard], smoothing: Smoothing) -> tuple[float, float]:
    """What the score of a stream is made of, of one person: the root of the highest run, and the highest level."""
    belief, runs, levels = Belief.before(smoothing), list[float](), list[float]()
    for heard in course:
        belief.hear(1 / (1 + math.exp(-heard.level)), heard.frame * judged.script.frame_ms, smoothing)
        runs.append(belief.run)
        levels.append(belief.level or 0.0)
    return math.sqrt(max(runs)), max(levels)


class Cost(NamedTuple):
    """CPU time of one frame."""

    faces: int
    memory_us: float
    """Load, observe, verdict, dump: as a worker does for every record."""
    score_path_ms: float
    """Decode, detect, score."""
    state_bytes: int


def costs(judged: Sequence[Judged], plan: Plan, bundle: Bundle, point: OperatingPointUsed, *, rounds: int = 300) -> list[Cost]:
    """Faces of a real sequence, as many beside each other as asked for."""
    pipeline = pipeline_of(bundle)
    images = [EncodedImage(record.value, record.content_type) for record in records(plan)][:8]
    pipeline.judge(images)
    start = time.process_time()
    pipeline.judge(images)
    one_ms = (time.process_time() - start) * 1000 / len(images)
    crops = np.zeros((16, bundle.manifest.preprocess.image_size, bundle.manifest.preprocess.image_size, 3), np.uint8)
    analyzer = Analyzer(bundle, appearance=True)
    start = time.process_time()
    analyzer.encode(crops)
    face_ms = (time.process_time() - start) * 1000 / len(crops)
    frames = [faces[0] for one in judged for faces in one.faces if faces][:rounds]
    told = []
    for count in COSTS:
        state, dumped = StreamState(MemoryLimits()), b""
        start = time.process_time()
        for number, face in enumerate(frames):
            x0, y0, x1, y1 = face.box
            beside = [face._replace(face=place, box=(x0 + 400 * place, y0, x1 + 400 * place, y1)) for place in range(count)]
            if dumped:
                state = StreamState.load(dumped, MemoryLimits())
            said = Told()
            state.observe(Moment(number * 250, 0), beside, verdict=f"frames/0/{number}", told=said)
            state.verdict("stream", said, point)
            dumped = state.dump()
        microseconds = (time.process_time() - start) * 1e6 / len(frames)
        told.append(Cost(count, microseconds, one_ms + (count - 1) * face_ms, len(dumped)))
    return told


class Batching(NamedTuple):
    """The same sequences with another number of faces in a run of the engine."""

    max_batch_faces: int
    sequences: int
    frames: int
    score_difference: float
    """Largest, of one face."""
    smoothed_difference: float
    moved_segments: int
    """With another begin, end or track."""
    moved_labels: int
    """Of frames of the stream."""
    moved_appearances: int


def batching(made: Sequence[Plan], bundle: Bundle, point: OperatingPointUsed) -> list[Batching]:
    """Against one face a run."""
    alone = [replay(judge(plan, pipeline_of(bundle, max_batch_faces=1)), point) for plan in made]
    rows = []
    for size in (7, 16):
        others = [replay(judge(plan, pipeline_of(bundle, max_batch_faces=size)), point) for plan in made]
        pairs = [
            pair
            for one, other in zip(alone, others, strict=True)
            for faces in zip(one.judged.faces, other.judged.faces, strict=True)
            for pair in zip(*faces, strict=True)
        ]
        points = [pair for one, other in zip(alone, others, strict=True) for pair in zip(_flat(one), _flat(other), strict=True)]
        rows.append(
            Batching(
                size,
                len(made),
                sum(plan.script.num_frames for plan in made),
                max(abs(face.fake_score - twin.fake_score) for face, twin in pairs),
                max(abs(point_.smoothed - twin.smoothed) for point_, twin in points),
                sum(len(_places(one) ^ _places(other)) for one, other in zip(alone, others, strict=True)),
                sum(v.label != w.label for one, other in zip(alone, others, strict=True) for v, w in zip(one.verdicts, other.verdicts, strict=True)),
                sum(face.appearance != twin.appearance for face, twin in pairs),
            )
        )
    return rows


class Explained(NamedTuple):
    """Sequences whose suspicious faces are explained, as they are by default."""

    sequences: int
    segments: int
    with_evidence: int
    concepts: float
    """Of a segment, mean."""
    strongest: float
    """Confidence of its surest mask, mean."""
    named_before: bool
    """Whether every piece of evidence names a verdict of its own segment."""


def explained(made: Sequence[Plan], bundle: Bundle, point: OperatingPointUsed) -> Explained:
    """What segments say of the evidence inside them."""
    pipeline = pipeline_of(bundle, explain="auto")
    told = [(plan.script, segment) for plan in made for segment in replay(judge(plan, pipeline), point).segments]
    inside = [
        segment.start_ms <= int(item.verdict.rpartition("/")[2]) * script.frame_ms <= segment.end_ms
        for script, segment in told
        for item in segment.evidence
    ]
    return Explained(
        len(made),
        len(told),
        sum(bool(segment.evidence) for _, segment in told),
        mean(len(segment.evidence) for _, segment in told),
        mean(segment.evidence[0].weight for _, segment in told if segment.evidence),
        all(inside),
    )


def _flat(replayed: Replayed) -> list[TimelinePoint]:
    return [point for points in replayed.points for point in points]


def _places(replayed: Replayed) -> set[tuple[str, int, int]]:
    return {(segment.id, segment.end_ms, segment.num_frames) for segment in replayed.segments}


def used(bundle: Bundle) -> list[OperatingPointUsed]:
    """The bundle's points as verdicts name them, the default first."""
    manifest = bundle.manifest
    ordered = sorted(manifest.operating_points.values(), key=lambda point: point.name != manifest.default_operating_point)
    return [OperatingPointUsed(name=point.name, fake_at=point.fake_at, real_below=point.real_below, fpr_target=point.fpr_target) for point in ordered]


def usual_levels(all_judged: Sequence[Judged]) -> dict[bool, float]:
    """Mean log-odds over people, untouched and manipulated."""
    seen: dict[bool, list[float]] = {False: [], True: []}
    for judged in all_judged:
        for person in range(len(judged.script.units)):
            course = course_of(judged, person)
            for state, values in seen.items():
                levels = [heard.level for heard in course if heard.is_tampered is state]
                if levels:
                    values.append(statistics.fmean(levels))
    return {state: statistics.fmean(values) for state, values in seen.items()}


def shown(value: object) -> str:
    """A cell."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3g}" if abs(value) < 0.01 else f"{value:.2f}"
    return str(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Markdown."""
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(map(shown, row))} |" for row in rows), ""]


def page(all_judged: Sequence[Judged], restless: Sequence[Judged], points: Sequence[OperatingPointUsed], part: Part) -> list[str]:
    """The figures that follow from scores alone."""
    point, usual = points[0], usual_levels(all_judged)
    kinds: dict[str, Callable[[Judged], Replayed]] = {
        "with appearance": lambda judged: replay(judged, point),
        "without": lambda judged: replay(judged, point, appearance=False),
    }
    runs = {name: [run(judged) for judged in all_judged] for name, run in kinds.items()}
    ours = runs["with appearance"]
    frames = sum(judged.script.num_frames for judged in all_judged)
    faces = sum(len(seen) for judged in all_judged for seen in judged.faces)
    scripts = [judged.script for judged in all_judged]
    stagings = ", ".join(f"{count} {name}" for name, count in sorted(Counter(script.staging for script in scripts).items()))
    people = len({unit for script in scripts for unit in script.units})
    lines = [
        f"{len(scripts)} sequences of *{part}* people ({people} identities), {frames} frames, {faces} faces; "
        f"{sum(not script.tampered for script in scripts)} untouched, {sum(len(script.tampered) for script in scripts)} tampered intervals; "
        f"staging: {stagings}; {sum(script.codec == 'h264' for script in scripts)} as H.264.",
        "",
    ]
    matches = [found(one) for one in ours]
    flipped = {used_point.name: flip_rates([replay(judged, used_point) for judged in all_judged], used_point) for used_point in points}
    overall = detection(ours, ["all"])[0]
    lines += table(
        ("asked", "measured"),
        [
            ("temporal IoU of segments, 0.7", mean(interval.iou for of_one, _ in matches for interval in of_one)),
            ("changes of the stream's label per 100 untouched frames, at most 1", ", ".join(f"{n} {r['stream']:.2f}" for n, r in flipped.items())),
            ("AUC of the stream above that of the mean of frames", f"{overall[3]} against {overall[4]}, difference {overall[-1]}"),
        ],
    )
    lines += ["## Segments", ""]
    columns = (
        "family",
        "sequences",
        "of which untouched",
        "intervals",
        "temporal IoU",
        "found",
        "IoU of found",
        "oracle: IoU",
        "found",
        "false segments, untouched",
        "tampered",
        "type right",
        "AUC of frames",
    )
    lines += table(columns, segment_rows(ours, usual))
    intervals = [(one.judged.script.first_suspect, interval) for one in ours for interval in found(one)[0]]
    low, high = bootstrap_interval(lambda n: mean(intervals[i][1].iou for i in n), [unit for unit, _ in intervals])
    lines += [f"Temporal IoU, all: 95 % interval over identities {low:.2f}-{high:.2f}.", ""]
    by_time = {
        name: mean(iou for one in ours if name in (one.judged.script.family, "all") for iou in found_by_time(one)) for name in (*FAMILIES, "all")
    }
    spoken = ", ".join(f"{name} {iou:.2f}" for name, iou in by_time.items())
    lines += [f"Where segments of any track count, whoever it mostly shows: {spoken}.", ""]
    kinds_of_interval: list[tuple[str, list[Found]]] = [
        ("1 to 2 s long", [f for _, f in intervals if f.seconds <= 2]),
        ("2 to 4 s", [f for _, f in intervals if 2 < f.seconds <= 4]),
        ("over 4 s", [f for _, f in intervals if f.seconds > 4]),
    ]
    rises = [(rise(one.judged, interval.person), interval) for one in ours for interval in found(one)[0]]
    kinds_of_interval += [
        ("the person's mean log-odds rise by less than 0.5", [f for value, f in rises if value < 0.5]),
        ("by 0.5 to 1.5", [f for value, f in rises if 0.5 <= value < 1.5]),
        ("by 1.5 or more", [f for value, f in rises if value >= 1.5]),
        ("the person is never seen untouched", [f for value, f in rises if math.isnan(value)]),
    ]
    rows = [[name, len(some), mean(f.iou for f in some), mean(f.iou > 0 for f in some)] for name, some in kinds_of_interval]
    lines += table(("tampered intervals", "number", "temporal IoU", "found"), rows)
    lines += ["## Changes of label per 100 untouched frames", ""]
    lines += table(
        ("operating point", "each face alone", "its track, smoothed", "the stream"), [[name, *rates.values()] for name, rates in flipped.items()]
    )
    lines += ["## Whole sequences: AUC, tampered against untouched", ""]
    lines += table(("family", "untouched", "tampered", "stream.fake_score", "mean of frames", "max of frames", "stream less mean"), detection(ours))
    errors = ", ".join(f"{name} {error:.3f}" for name, error in calibration_errors(ours).items())
    lines += [f"Calibration error, 15 equal-mass bins, at the share of forgeries that these sequences have: {errors}.", ""]
    lines += ["## Labels at the end", ""]
    lines += table(("operating point", "sequences", "number", "real", "inconclusive", "fake"), labels_table(ours, points))
    lines += ["## Jumps that are no manipulation", "", "A person nobody touched, who changes places with another photograph of theirs and back.", ""]
    headings = ("the person", "sequences", "jumps", "false segments a sequence", "ends real", "inconclusive", "fake")
    lines += table(headings, restless_rows([replay(judged, point) for judged in restless], ours))
    lines += ["## Who is who", ""]
    lines += table(
        ("", "faces on a track of their person", "tracks per person", "old track goes on after a cut", "temporal IoU", "AUC of the stream"),
        [[name, *identity(run), mean(f.iou for one in run for f in found(one)[0]), detection(run, ["all"])[0][3]] for name, run in runs.items()],
    )
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the research sets")
    parser.add_argument("--scores", type=Path, required=True, help="folder where the engine's answers are kept")
    parser.add_argument("--part", choices=("select", "report"), default="report")
    parser.add_argument("--fit", action="store_true", help="search parameters on *select*")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bench" / "streams.md")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    bundle = open_bundle(bundled_engine(), threads=1)
    points, faces = used(bundle), load_faces(options.data, DATASETS)
    part: Part = "select" if options.fit else options.part
    made = plans(faces, part, COUNTS[part])
    all_judged = judged_sequences(made, options.scores, part, bundle, console)
    if options.fit:
        console.print(fit(all_judged, points[0]))
        return
    restless = judged_sequences(restless_plans(faces, part, RESTLESS[part]), options.scores, part, bundle, console)
    lines = page(all_judged, restless, points, options.part)
    if options.part != "report":
        print("\n".join(lines))
        return
    few = made[:: len(made) // 6][:6]
    lines += ["## Other batches", "", "Against one face in a run of the engine.", ""]
    headings: tuple[str, ...] = (
        "faces in a run",
        "sequences",
        "frames",
        "largest difference of a score",
        "of a smoothed one",
        "segments that differ",
        "labels",
        "appearances",
    )
    lines += table(headings, batching(few, bundle, points[0]))
    suspicious = [plan for plan in made if plan.script.tampered and plan.script.codec == "jpeg" and plan.script.staging == "one"][::8][:6]
    lines += ["## Evidence", "", "Sequences whose faces at or above `explain_at` are explained.", ""]
    headings = ("sequences", "segments", "with evidence", "concepts of a segment", "surest mask", "all of it inside its segment")
    lines += table(headings, [explained(suspicious, bundle, points[0])])
    lines += ["## Cost of a frame", "", "CPU time; the memory as a worker keeps it: state read, frame observed, verdict composed, state written.", ""]
    headings = ("faces", "memory, us", "decode, detect, score, ms", "share", "state, bytes")
    measured = costs(all_judged, made[0], bundle, points[0])
    lines += table(
        headings,
        [[c.faces, round(c.memory_us), round(c.score_path_ms, 1), f"{c.memory_us / 10 / c.score_path_ms:.1f} %", c.state_bytes] for c in measured],
    )
    manifest = bundle.manifest
    engine = f"Engine {manifest.name} {manifest.version}, digest {manifest.digest[:12]}"
    head = ["# Streams", "", f"{machine()}.", f"{engine}; `python -m bench.streams`, explained in [streams.md](../streams.md).", ""]
    options.out.write_text("\n".join([*head, *lines]).rstrip() + "\n")
    console.print(*lines, f"written to {options.out}", sep="\n", markup=False)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
