"""`make capacity`: workers, partitions, network and disk for a rate of frames, out of what was measured here; docs/capacity.md holds the formula.

Nothing is assumed that was measured, and what is assumed is an option and stands in the page. Times come from the tables of `make bench` and
`make overhead`, sizes of records from the demo's frames, judged anew. With --engine, times of the model come from `fifa-stream engine bench --json`
on the machine that is planned for; detection is not in there and stays what it takes on this CPU.
"""

import argparse
import gzip
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from rich.console import Console

from engines.analyzer import Analyzer, ExplainPolicy
from engines.bundle import bundled_engine, open_bundle
from fifa_stream.demo_photographs import demo_frames
from fifa_stream.infer import EncodedImage, FramePipeline, PipelineLimits
from fifa_stream.records import Verdict

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "bench"
RATES = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
FLEETS = (100, 1_000, 10_000)
"""Numbers of workers for which the page says what a frame may take."""
BATCH = 8


class MissingMeasurement(Exception):
    """A table or a row that the plan needs is not there; the message says which command writes it."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured: milliseconds of a worker that runs the engine with `threads` threads."""

    threads: int
    decode_ms: float
    """Of a frame."""
    detect_ms: float
    """Of a frame."""
    score_ms: float
    """Of a face, in batches."""
    explain_ms: float
    """Of a face that is explained, beyond its score."""
    loop_ms: float
    """Of a record: the loop around the engine, at least once, without an engine."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Measured: bytes of a record's value, means over the demo's frames. Verdicts by gzip, each by itself: a batch packs better."""

    frame_bytes: float
    scored_bytes: float
    """Of a verdict without explanations."""
    explanation_bytes: float
    """More, where its face is explained."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Not measured: of the stream and of the cluster that are planned for."""

    faces_per_frame: float = 1.0
    explained_share: float = 0.05
    """Of the faces."""
    utilisation: float = 0.7
    """Of a worker at the rate planned for; the rest is for peaks, rebalances and restarts."""
    replication: int = 3
    frames_retention_h: float = 24.0
    verdicts_retention_h: float = 168.0
    price_per_worker_hour: float | None = None
    """In whatever currency; without it there is no cost."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rate asks for."""

    rate: int
    workers: int
    cores: int
    partitions: int
    """Of the frames topic: one for each worker, and a quarter more to grow into; a keyed topic that grows later breaks the order of its streams."""
    frames_in_MB_s: float
    verdicts_out_MB_s: float
    written_MB_s: float
    """By all brokers together, copies among them."""
    disk_TB: float
    """Of all brokers together."""
    price_per_hour: float | None


def frame_ms(costs: Costs, given: Assumptions) -> float:
    """Milliseconds of one worker for one frame."""
    face_ms = costs.score_ms + given.explained_share * costs.explain_ms
    return costs.decode_ms + costs.detect_ms + given.faces_per_frame * face_ms + costs.loop_ms


def plan(rate: int, costs: Costs, sizes: Sizes, given: Assumptions) -> Plan:
    """For `rate` frames a second."""
    workers = math.ceil(rate * frame_ms(costs, given) / 1000 / given.utilisation)
    explained_per_frame = given.faces_per_frame * given.explained_share
    frames, verdicts = rate * sizes.frame_bytes, rate * (sizes.scored_bytes + explained_per_frame * sizes.explanation_bytes)
    kept = frames * given.frames_retention_h + verdicts * given.verdicts_retention_h
    return Plan(
        rate=rate,
        workers=workers,
        cores=workers * costs.threads,
        partitions=math.ceil(1.25 * workers),
        frames_in_MB_s=frames / 1e6,
        verdicts_out_MB_s=verdicts / 1e6,
        written_MB_s=given.replication * (frames + verdicts) / 1e6,
        disk_TB=given.replication * 3600 * kept / 1e12,
        price_per_hour=None if given.price_per_worker_hour is None else workers * given.price_per_worker_hour,
    )


def affordable_ms(rate: int, workers: int, given: Assumptions) -> float:
    """What a frame may take if so many workers shall suffice."""
    return 1000 * given.utilisation * workers / rate


def rows(page: Path, first_column: str) -> list[dict[str, str]]:
    """The Markdown table of a page whose first column is headed so. Raises MissingMeasurement."""
    lines = page.read_text("utf-8").splitlines() if page.is_file() else []
    start = next((number for number, line in enumerate(lines) if line.startswith(f"| {first_column} |")), None)
    if start is None:
        raise MissingMeasurement(f"{page.relative_to(ROOT)} has no table headed {first_column!r}; run make bench and make overhead")
    header, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:] if line.startswith("|") or not line]
    found = []
    for cells in body:
        if len(cells) != len(header):
            break
        found.append(dict(zip(header, cells, strict=True)))
    return found


def read_costs(bench: Path, overhead: Path, threads: int) -> Costs:
    """Out of the pages of `make bench` and `make overhead`. Raises MissingMeasurement."""
    times = {
        (row["path"], int(row["batch"])): float(row["ms"])
        for row in rows(bench, "path")
        if row["backend"] != "torch" and row["threads"] == str(threads)
    }
    loop_us = {row["loop"]: float(row["us a record"]) for row in rows(overhead, "loop")}
    try:
        score_ms = times["score", BATCH]
        return Costs(
            threads=threads,
            decode_ms=times["JPEG decode", 1],
            detect_ms=times["detect and crop", 1],
            score_ms=score_ms,
            explain_ms=times["explain", BATCH] - score_ms,
            loop_ms=loop_us["at_least_once"] / 1000,
        )
    except KeyError as error:
        raise MissingMeasurement(
            f"no row {error.args[0]} for {threads} threads in {bench.name} or {overhead.name}; run make bench and make overhead"
        ) from None


def with_engine(costs: Costs, timings: Sequence[dict[str, float | str | None]]) -> Costs:
    """Times of score and explanation from `engine bench --json`, at its largest batch with `costs.threads` threads. Raises MissingMeasurement."""
    found = {(row["work"], row["faces"]): float(str(row["ms_per_face"])) for row in timings if row["threads"] == costs.threads}
    try:
        faces = max(int(str(count)) for _, count in found)
        return replace(costs, score_ms=found["score", faces], explain_ms=found["explain", faces])
    except (KeyError, ValueError):
        raise MissingMeasurement(f"no rows for {costs.threads} threads; run fifa-stream engine bench --threads {costs.threads} --json") from None


def measure_sizes() -> Sizes:
    """Judge the demo's frames and weigh what goes over the wire."""
    bundle = open_bundle(bundled_engine())
    encoded = [frame.encoded for frame in demo_frames()]

    def verdict_bytes(explain: ExplainPolicy) -> float:
        outcomes = FramePipeline(PipelineLimits(explain=explain), Analyzer(bundle), bundle).judge([EncodedImage(value) for value in encoded])
        verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict) and outcome.faces]
        return statistics.mean(len(gzip.compress(verdict.to_bytes())) for verdict in verdicts)

    scored = verdict_bytes("never")
    return Sizes(statistics.mean(map(len, encoded)), scored, verdict_bytes("always") - scored)


def shown(value: float | int | None) -> str:
    """Three significant digits, whole numbers with commas."""
    if value is None:
        return "-"
    if isinstance(value, int) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def markdown(columns: Sequence[str], body: Sequence[Sequence[float | int | None]]) -> list[str]:
    """A table."""
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(map(shown, row))} |" for row in body), ""]


def page(costs: Costs, sizes: Sizes, given: Assumptions, *, sources: str) -> str:
    """The whole page."""
    plans = [plan(rate, costs, sizes, given) for rate in RATES]
    columns = ["frames/s", "workers", "cores", "partitions", "frames in, MB/s", "verdicts out, MB/s", "brokers write, MB/s", "disk, TB"]
    body = [list(asdict(one).values()) for one in plans]
    if given.price_per_worker_hour is None:
        body = [row[:-1] for row in body]
    else:
        columns.append("price an hour")
    top, cost_ms = RATES[-1], frame_ms(costs, given)
    allowed = [[count, affordable_ms(top, count, given), cost_ms / affordable_ms(top, count, given)] for count in FLEETS]
    measured = ", ".join(f"{one.name} {shown(getattr(part, one.name))}" for part in (costs, sizes) for one in fields(part))
    assumed = ", ".join(f"{one.name} {shown(getattr(given, one.name))}" for one in fields(given))
    a_second, loops = 1000 * given.utilisation / cost_ms, math.ceil(top * costs.loop_ms / 1000 / given.utilisation)
    lines = [
        "# Capacity",
        "",
        f"`make capacity`, out of {sources}. Formula and reading: [docs/capacity.md](../capacity.md).",
        "",
        f"Measured: {measured}.",
        "",
        f"Assumed: {assumed}.",
        "",
        f"A frame takes a worker {shown(cost_ms)} ms; at this utilisation a worker answers {shown(a_second)} frames a second.",
        "",
        "## Sizing",
        "",
        *markdown(columns, body),
        f"## What {shown(top)} frames a second ask for",
        "",
        f"The loop alone, without an engine, takes {shown(loops)} workers at {shown(costs.loop_ms)} ms a record.",
        "",
        *markdown(["workers", "a frame may take, ms", "times faster than measured"], allowed),
    ]
    return "\n".join(lines)


def main() -> None:
    """Read, measure, print, write."""
    parser = argparse.ArgumentParser(description="What a rate of frames asks for.")
    parser.add_argument("--threads", type=int, default=1, help="of the engine in one worker: a worker is so many cores")
    parser.add_argument("--engine", type=Path, metavar="FILE", help="JSON of `fifa-stream engine bench --json` on the machine that is planned for")
    parser.add_argument("--frame-bytes", type=float, help="instead of the demo's mean")
    for one in fields(Assumptions):
        kind = int if one.type is int else float
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=kind, default=one.default)
    parser.add_argument("--out", type=Path, default=FOLDER / "capacity.md")
    options = parser.parse_args()
    console = Console()
    given = Assumptions(**{one.name: getattr(options, one.name) for one in fields(Assumptions)})
    try:
        bench = max(FOLDER.glob("20??-??-??.md"), default=FOLDER / "DATE.md")
        costs = read_costs(bench, FOLDER / "overhead.md", options.threads)
        sources = f"[{bench.name}]({bench.name}) and [overhead.md](overhead.md)"
        if options.engine is not None:
            costs = with_engine(costs, json.loads(options.engine.read_text("utf-8"))["timings"])
            sources += f", times of the model from `engine bench --json` in {options.engine.name}"
    except MissingMeasurement as error:
        raise SystemExit(f"capacity: {error}") from None
    sizes = measure_sizes()
    if options.frame_bytes is not None:
        sizes = replace(sizes, frame_bytes=options.frame_bytes)
    text = page(costs, sizes, given, sources=sources)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    options.out.write_text(text)


if __name__ == "__main__":
    main()
