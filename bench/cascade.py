"""What the cascade saves: frames a second where only suspicious faces are explained, against explaining every face.

Whole frames go through the pipeline that serves, as JPEG, in batches. Suspicious frames are those that `bench.decode` measures, among the highest of
the engine's scores; ordinary ones are its lowest, below `explain_at`. Explaining all means both cuts at 0: with the policy `always` alone a face that
its score calls real is told that it is clean, unread, which costs nothing.

The limit is Amdahl's, out of parts measured in the same rounds: s to score a frame, o and f to explain an ordinary and a suspicious one; with a share
p of suspicious frames it is (s + (1 - p) o + p f) / (s + p f). Nothing that leaves the model alone can be faster than that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle

from rich.console import Console

from bench.decode import Known, measured_and_known
from bench.faces import Frame
from bench.timing import beyond, interleaved, ratios, wall_ms
from engines.analyzer import Analyzer, ExplainPolicy
from engines.bundle import Bundle
from engines.drafts import GUESSES
from fifa_stream.infer import EncodedImage, FramePipeline, PipelineLimits
from fifa_stream.records import Verdict

NUM_FRAMES = 20
PERCENTS = (0, 5, 20, 100)
"""Suspicious frames in a hundred."""


@dataclass(frozen=True, slots=True)
class Row:
    """One stream."""

    suspicious_percent: int
    frames: int
    explained: int
    threads: int
    cascade_fps: float
    explain_all_fps: float
    speedup: float
    limit: float


@dataclass(frozen=True, slots=True)
class Parts:
    """Milliseconds of a frame, medians over rounds."""

    score_ms: float
    """JPEG decode, detect, align, encode."""
    explain_ordinary_ms: float
    explain_suspicious_ms: float


def stream(judged: Sequence[Frame], percent: int, explain_at: float) -> list[EncodedImage]:
    """`NUM_FRAMES` frames, the suspicious ones spread evenly; again from the beginning where a kind has fewer."""
    suspicious = cycle(frame for frame in measured_and_known(judged)[0] if frame.fake_score >= explain_at)
    ordinary = cycle(frame for frame in reversed(judged) if frame.fake_score < explain_at)
    wanted = round(NUM_FRAMES * percent / 100)
    places = {round((number + 0.5) * NUM_FRAMES / wanted - 0.5) for number in range(wanted)}
    return [EncodedImage(next(suspicious if place in places else ordinary).encoded, "image/jpeg") for place in range(NUM_FRAMES)]


def explains_all(bundle: Bundle) -> Bundle:
    """The bundle with every operating point's lower cuts at 0: no face is passed over, none is called clean unread."""
    points = {name: point.model_copy(update={"explain_at": 0.0, "real_below": 0.0}) for name, point in bundle.manifest.operating_points.items()}
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"operating_points": points}))


def measure(
    bundle: Bundle, judged: Sequence[Frame], told: Sequence[Sequence[int]], *, threads: int, rounds: int, console: Console
) -> tuple[list[Row], Parts]:
    """Every share of suspicious frames; `told` are the answers that guesses come from."""

    def pipeline(opened: Bundle, explain: ExplainPolicy) -> FramePipeline:
        return FramePipeline(PipelineLimits(explain=explain), Analyzer(opened, drafts=Known(GUESSES, told)), opened)

    explain_at = bundle.manifest.operating_points[bundle.manifest.default_operating_point].explain_at
    pipelines = {"cascade": pipeline(bundle, "auto"), "all": pipeline(explains_all(bundle), "auto"), "score": pipeline(bundle, "never")}
    streams = {percent: stream(judged, percent, explain_at) for percent in PERCENTS}
    explained = {percent: _explained(pipelines["cascade"].judge(images)) for percent, images in streams.items()}
    cases = {
        (name, percent): lambda pipe=pipe, images=images: pipe.judge(images)
        for percent, images in streams.items()
        for name, pipe in pipelines.items()
        if name != "score" or percent in (0, 100)
    }
    samples = interleaved(cases, rounds, console, f"cascade, {threads} threads")
    score, ordinary, suspicious = (
        [*samples["score", 0], *samples["score", 100]],
        beyond(samples["all", 0], samples["score", 0]),
        beyond(samples["all", 100], samples["score", 100]),
    )
    parts = Parts(*(wall_ms(taken) / NUM_FRAMES for taken in (score, ordinary, suspicious)))
    rows = []
    for percent in PERCENTS:
        cascade, everything, share = samples["cascade", percent], samples["all", percent], explained[percent] / NUM_FRAMES
        told_ms = (1 - share) * parts.explain_ordinary_ms + share * parts.explain_suspicious_ms
        rows.append(
            Row(
                percent, NUM_FRAMES, explained[percent], threads,
                1000 * NUM_FRAMES / wall_ms(cascade), 1000 * NUM_FRAMES / wall_ms(everything),
                ratios(everything, cascade)[0],
                (parts.score_ms + told_ms) / (parts.score_ms + share * parts.explain_suspicious_ms),
            )
        )  # fmt: skip
    return rows, parts


def _explained(outcomes: Sequence[object]) -> int:
    return sum(isinstance(outcome, Verdict) and any(face.explanation is not None for face in outcome.faces) for outcome in outcomes)
