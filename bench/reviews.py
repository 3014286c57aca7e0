"""What reviews are worth: simulated reviewers on the shipped engine's own scores of the *select* part, where the truth is known. Writes a page.

    python -m bench.reviews --data DATA [--scores build/select-scores.json] [--out docs/bench/reviews.md]

A queue of streams is drawn from the scored faces; some of it comes to simulated reviewers, who err; `trainer.agreement` and `trainer.recalibrate` are
given their reviews and nothing else. What these say is held against the queue's truth. `--scores` keeps the engine's scores between runs.
"""

import argparse
import json
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from engines.analyzer import Analyzer, find_operating_point
from engines.bundle import bundled_engine, open_bundle, read_manifest
from engines.contracts import FORGERY_TYPES, Label, Manifest
from engines.reviews import Decision, Review, Sampling, truth_of
from trainer.agreement import label_table, queue_table
from trainer.calibrate import family_of, of_part, score_faces
from trainer.dataset_adapters import open_dataset
from trainer.fifa_bench.detection import LogitMap, ece
from trainer.fifa_bench.intervals import clustered_wilson, mean_interval
from trainer.recalibrate import RecalibrationError, propose
from trainer.review_sampling import SelectionError, counted_in_bins
from trainer.reviews import Case, Reviews, key_of

STREAMS = 1_500
MEAN_FRAMES, MOST_FRAMES = 8, 40
BUDGET = 400
SEEDS, CALIBRATION_SEEDS = 60, 10
BUDGETS = (100, 200, 400, 800, 1600)
CARE = ((0.0, "a quarter twice"), (0.05, "a quarter twice"), (0.05, "all three times"), (0.20, "a quarter twice"), (0.20, "all three times"))
"""How often a reviewer errs, and how often faces are seen."""
SEEN: dict[str, Callable[[int], int]] = {
    "all once": lambda number: 1,
    "a quarter twice": lambda number: 2 if number % 4 == 0 else 1,
    "all three times": lambda number: 3,
}
"""Reviewers of a face by its number among the reviewed."""
START = datetime(2026, 1, 1, tzinfo=UTC)


class ScoredFace(NamedTuple):
    """One face of the *select* part."""

    family: str
    cluster: str
    """Identity, person, prompt or grid."""
    is_fake: bool
    raw: float
    forgery_type: str
    """As the engine has it."""


@dataclass(frozen=True, slots=True)
class Queue:
    """Faces of many streams, M of them."""

    stream_M: NDArray[np.int64]
    raw_M: NDArray[np.float64]
    is_fake_M: NDArray[np.bool_]
    score_M: NDArray[np.float64]
    label_M: NDArray[np.object_]
    type_M: NDArray[np.object_]

    @property
    def totals(self) -> tuple[int, ...]:
        """As `--totals` takes them."""
        return counted_in_bins(self.score_M)


def scored_select(data: str, kept: Path | None) -> list[ScoredFace]:
    """The shipped engine on every face of *select*; kept in a file by the engine's digest."""
    digest = read_manifest(bundled_engine()).digest
    if kept is not None and kept.is_file() and (found := json.loads(kept.read_text()))["engine"] == digest:
        return [ScoredFace(*face) for face in found["faces"]]
    scored = score_faces(Analyzer(open_bundle(bundled_engine(), threads=1)), of_part(open_dataset(f"research:{data}"), "select"))
    faces = [
        ScoredFace(family_of(face), f"{face.dataset}/{face.unit}", face.is_fake, float(raw), FORGERY_TYPES[int(kinds.argmax())])
        for face, raw, kinds in zip(scored.faces, scored.raw_N, scored.type_prob_NF, strict=True)
    ]
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"engine": digest, "faces": faces}))
    return faces


def drawn_queue(rng: np.random.Generator, faces: Sequence[ScoredFace], manifest: Manifest, fake_share: float) -> Queue:
    """`STREAMS` streams, each of one cluster and one class; families alike often, a cluster as often as it has faces."""
    calibration = LogitMap(manifest.calibration.scale, manifest.calibration.bias)
    point = find_operating_point(manifest, None)
    by_class: dict[bool, dict[str, list[ScoredFace]]] = {kind: {} for kind in (False, True)}
    clusters: dict[tuple[str, bool], list[ScoredFace]] = {}
    for face in faces:
        by_class[face.is_fake].setdefault(face.family, []).append(face)
        clusters.setdefault((face.cluster, face.is_fake), []).append(face)
    streams, shown = [], []
    for number, is_fake in enumerate(rng.random(STREAMS) < fake_share):
        families = by_class[bool(is_fake)]
        family = families[sorted(families)[int(rng.integers(len(families)))]]
        cluster = clusters[family[int(rng.integers(len(family)))].cluster, bool(is_fake)]
        frames = min(int(rng.geometric(1 / MEAN_FRAMES)), MOST_FRAMES)
        shown += [cluster[int(place)] for place in rng.integers(len(cluster), size=frames)]
        streams += [number] * frames
    raw_M = np.array([face.raw for face in shown])
    score_M = calibration.probability(raw_M)
    return Queue(
        np.array(streams),
        raw_M,
        np.array([face.is_fake for face in shown]),
        score_M,
        np.array([point.label(float(score)) for score in score_M], object),
        np.array([face.forgery_type for face in shown], object),
    )


def _random_faces(rng: np.random.Generator, queue: Queue, budget: int) -> NDArray[np.intp]:
    return np.asarray(rng.permutation(queue.raw_M.size)[:budget])


def _random_streams(rng: np.random.Generator, queue: Queue, budget: int) -> NDArray[np.intp]:
    """Whole streams in a random order until the budget is spent."""
    order = rng.permutation(queue.stream_M.max() + 1)
    place_M = np.argsort(order)[queue.stream_M]
    sizes = np.bincount(place_M)
    streams = int(np.searchsorted(np.cumsum(sizes), budget)) + 1
    return np.flatnonzero(place_M < streams)


def _by_uncertainty(rng: np.random.Generator, queue: Queue, budget: int) -> NDArray[np.intp]:
    """As the desk orders it: between the cuts first, then the nearest to one."""
    outside_M = queue.label_M != Label.INCONCLUSIVE
    low, high = queue.score_M[~outside_M].min(), queue.score_M[~outside_M].max()
    return np.lexsort((np.minimum(abs(queue.score_M - low), abs(queue.score_M - high)), outside_M))[:budget]


def _by_score(rng: np.random.Generator, queue: Queue, budget: int) -> NDArray[np.intp]:
    return np.argsort(-queue.score_M, kind="stable")[:budget]


QUEUES: dict[str, tuple[Callable[[np.random.Generator, Queue, int], NDArray[np.intp]], Sampling]] = {
    "random faces": (_random_faces, Sampling.RANDOM),
    "random streams, whole": (_random_streams, Sampling.RANDOM),
    "by uncertainty": (_by_uncertainty, Sampling.UNCERTAINTY),
    "by score": (_by_score, Sampling.SCORE),
}


def reviewed(
    rng: np.random.Generator, queue: Queue, rows: NDArray[np.intp], manifest: Manifest, *, error: float, seen: str, sampling: Sampling
) -> list[Review]:
    """What simulated reviewers say of some faces: the truth, or with probability `error`, each by himself, its opposite."""
    reviews = []
    for number, row in enumerate(rows.tolist()):
        for reviewer in range(SEEN[seen](number)):
            truth = "fake" if queue.is_fake_M[row] != (rng.random() < error) else "real"
            label: Label = queue.label_M[row]
            holds = label is not Label.INCONCLUSIVE and truth_of(label, Decision.AGREE) == truth
            reviews.append(
                Review(
                    verdict=f"fifa.frames/0/{row}", verdict_sha256="0" * 64, media_sha256=f"{row:064x}", engine=manifest.digest,
                    stream=f"stream-{queue.stream_M[row]}", face=0, box=(0.0, 0.0, 100.0, 100.0), label=label, fake_score=float(queue.score_M[row]),
                    raw_score=float(queue.raw_M[row]), forgery_type=str(queue.type_M[row]),
                    decision=Decision.AGREE if holds else Decision.DISAGREE, truth=truth, reviewer=f"reviewer {reviewer}",
                    decided_at=START + timedelta(seconds=row), sampling=sampling,
                )
            )  # fmt: skip
    return reviews


def as_cases(reviews: Sequence[Review]) -> list[Case]:
    """Reviews of one face after another, together."""
    cases: dict[Any, list[Review]] = {}
    for review in reviews:
        cases.setdefault(key_of(review), []).append(review)
    return [Case(key, tuple(told)) for key, told in cases.items()]


# --- Agreement --------------------------------------------------------------------------------------------------------------------------------

FIGURES = {
    "precision of fake": (Label.FAKE, "called fake", "precision"),
    "overruled among real": (Label.REAL, "called real", "overruled"),
}


class Outcome(NamedTuple):
    """One figure of one seed."""

    true: float
    said: float | None
    low: float
    high: float


def agreement_rows(queues: Sequence[Queue], manifest: Manifest) -> list[str]:
    """How often a 95 % interval holds the queue's own figure, by queue, care and figure."""
    lines = [
        "| queue | a reviewer errs | faces are seen | figure | true | said | holds | width | corrected | holds | width | of the whole queue |",
        "|---|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, (draw, sampling) in QUEUES.items():
        for error, seen in CARE if sampling is Sampling.RANDOM else CARE[:1]:
            told: dict[tuple[str, str], list[Outcome]] = {(figure, kind): [] for figure in FIGURES for kind in ("plain", "corrected", "whole")}
            refused: Counter[str] = Counter()
            for seed in range(len(queues)):
                rng, queue = np.random.default_rng([9, seed]), queues[seed]
                cases = as_cases(reviewed(rng, queue, draw(rng, queue, BUDGET), manifest, error=error, seen=seen, sampling=sampling))
                labels, over = label_table(cases), queue_table(cases, queue.totals)
                if "not estimated" in over:
                    refused[str(over["not estimated"]["why"]).partition(":")[0]] += 1
                for figure, (label, row, measure) in FIGURES.items():
                    true = float(queue.is_fake_M[queue.label_M == label].mean())
                    told[figure, "plain"].append(_outcome(true, labels.get(row, {}), measure))
                    told[figure, "corrected"].append(_outcome(true, labels.get(row, {}), "corrected"))
                    told[figure, "whole"].append(_outcome(true, over.get(figure, {}), "corrected"))
            for figure in FIGURES:
                whole = told[figure, "whole"]
                estimated = [f"corrected {_mean(whole):.3f}, holds {_held(whole)}"] if any(o.said is not None for o in whole) else []
                why = "; ".join([*estimated, *(f"refused {count} times: {fault}" for fault, count in refused.items())]) or "-"
                really = f"{np.mean([outcome.true for outcome in whole]):.3f}"
                both = " | ".join(_summary(told[figure, kind]) for kind in ("plain", "corrected"))
                lines.append(f"| {name} | {error:.0%} | {seen} | {figure} | {really} | {both} | {why} |")
    return lines


def _outcome(true: float, row: dict[str, Any], measure: str) -> Outcome:
    if measure not in row:
        return Outcome(true, None, 0.0, 0.0)
    return Outcome(true, row[measure], row[f"{measure}_low"], row[f"{measure}_high"])


def _mean(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([o.said for o in outcomes if o.said is not None]))


def _held(outcomes: Sequence[Outcome]) -> str:
    told = [o for o in outcomes if o.said is not None]
    held = np.mean([o.low <= o.true <= o.high for o in told])
    return f"{held:.0%}" + (f" of {len(told)}" if len(told) < len(outcomes) else "")


def _summary(outcomes: Sequence[Outcome]) -> str:
    told = [o for o in outcomes if o.said is not None]
    return f"{_mean(told):.3f} | {_held(outcomes)} | {np.mean([o.high - o.low for o in told]):.3f}" if told else "none reviewed | - | -"


def interval_rows(queues: Sequence[Queue]) -> list[str]:
    """Three intervals on the same reviews without error."""
    lines = [
        "| queue | faces | figure | Wilson, trials by the spread between streams (ours) | percentile bootstrap of streams | Wilson over faces |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for name in ("random faces", "random streams, whole"):
        for budget in (100, 400, 1600):
            held: dict[str, list[list[bool]]] = {figure: [[], [], []] for figure in FIGURES}
            for seed in range(len(queues)):
                rng, queue = np.random.default_rng([11, seed]), queues[seed]
                rows = QUEUES[name][0](rng, queue, budget)
                for figure, (label, _, _) in FIGURES.items():
                    true = float(queue.is_fake_M[queue.label_M == label].mean())
                    kept = rows[queue.label_M[rows] == label]
                    if kept.size:
                        hits, streams = queue.is_fake_M[kept].astype(float), queue.stream_M[kept].astype(str).tolist()
                        plain = stats.binomtest(int(hits.sum()), kept.size).proportion_ci(0.95, "wilson")
                        bounds = [clustered_wilson(hits, streams), mean_interval(hits, streams), (plain.low, plain.high)]
                        for kind, (low, high) in enumerate(bounds):
                            held[figure][kind].append(low <= true <= high)
            for figure, kinds in held.items():
                lines.append(f"| {name} | {budget} | {figure} | " + " | ".join(f"{np.mean(kind):.0%}" for kind in kinds) + " |")
    return lines


# --- Calibration ------------------------------------------------------------------------------------------------------------------------------


class Calibrated(NamedTuple):
    """What came of some queues that were reviewed in one way."""

    error: float
    seen: str
    budget: int
    proposed: float
    """Share of the queues."""
    line: str


def needed(rows: Sequence[Calibrated]) -> str:
    """The fewest faces from which on nine queues in ten give a proposal, by care."""
    told = []
    for error, seen in dict.fromkeys((row.error, row.seen) for row in rows):
        enough = [row.budget for row in rows if (row.error, row.seen) == (error, seen) and row.proposed >= 0.9]
        most = max(row.budget for row in rows)
        faces = f"{min(enough)} faces" if enough else f"more than {most} faces"
        told.append(f"{faces} where reviewers err on {error:.0%} ({seen})")
    return "Nine queues in ten give a proposal from: " + "; ".join(told) + "."


def calibration_rows(
    queues: Sequence[Queue],
    manifest: Manifest,
    budgets: Sequence[int],
    names: Sequence[str] = ("random faces",),
    care: Sequence[tuple[float, str]] = CARE,
) -> list[Calibrated]:
    """What becomes of a proposal when it is applied to the whole queue, or why there is none."""
    rows = []
    old = LogitMap(manifest.calibration.scale, manifest.calibration.bias)
    for name in names:
        draw, sampling = QUEUES[name]
        for error, seen in care:
            for budget in budgets:
                refused: Counter[str] = Counter()
                before, after, told, better = [], [], [], []
                for seed in range(len(queues)):
                    rng, queue = np.random.default_rng([13, seed]), queues[seed]
                    reviews = reviewed(rng, queue, draw(rng, queue, budget), manifest, error=error, seen=seen, sampling=sampling)
                    try:
                        proposal = propose(Reviews(tuple(reviews), 0, 0, 0, "0" * 64), manifest, totals=queue.totals, now=START)
                    except (RecalibrationError, SelectionError) as refusal:
                        refused[refusal.fault.value] += 1
                        continue
                    new = LogitMap(proposal.proposed.scale, proposal.proposed.bias)
                    before.append(ece(queue.is_fake_M, old.probability(queue.raw_M)))
                    after.append(ece(queue.is_fake_M, new.probability(queue.raw_M)))
                    told.append(proposal.figures["ece"].after)
                    better.append(after[-1] < before[-1])
                why = ", ".join(f"{fault} {count}" for fault, count in sorted(refused.items())) or "-"
                measured = (
                    f"{np.mean(before):.3f} | {np.mean(after):.3f} | {np.mean(told):.3f} | {np.mean(better):.0%}" if before else "- | - | - | -"
                )
                line = f"| {name} | {error:.0%} | {seen} | {budget} | {len(before)} of {len(queues)} | {measured} | {why} |"
                rows.append(Calibrated(error, seen, budget, len(before) / len(queues), line))
    return rows


CALIBRATION_HEAD = [
    "| queue | a reviewer errs | faces are seen | faces | proposed | ECE of the queue now | with it | as it says | lower | refused |",
    "|---|---:|---|---:|---:|---:|---:|---:|---:|---|",
]


def page(faces: Sequence[ScoredFace], manifest: Manifest, *, seeds: int, calibration_seeds: int) -> str:
    """The whole page."""
    fakes, clusters = sum(face.is_fake for face in faces), len({face.cluster for face in faces})
    fifths, rare, halves = (
        [drawn_queue(np.random.default_rng([7, seed]), faces, manifest, share) for seed in range(count)]
        for share, count in ((0.2, seeds), (0.05, calibration_seeds), (0.5, calibration_seeds))
    )
    care = calibration_rows(rare, manifest, BUDGETS)
    others = calibration_rows(rare, manifest, (BUDGET,), care=((0.0, "all once"),))
    others += calibration_rows(rare, manifest, BUDGETS[-1:], ("random streams, whole", "by uncertainty", "by score"), CARE[:1])
    engine = f"`{manifest.digest[:12]}` ({manifest.name} {manifest.version})"
    lines = [
        "# Simulated reviewers on real scores",
        "",
        "Written by `python -m bench.reviews --data DATA`; what the figures are stands in [reviews.md](../reviews.md).",
        "",
        f"Engine {engine} scored the {len(faces)} faces of the *select* part ({fakes} fakes, {clusters} identities, prompts and grids), on which",
        f"its own calibration was fitted too. A queue is {STREAMS} streams drawn from them, each of one identity and one class, {MEAN_FRAMES} frames",
        f"on average, {MOST_FRAMES} at most; families of sets alike often. Reviewers say the truth or, each by himself with the stated probability,",
        "its opposite. Scores and labels are the engine's, the truth is the sets', the reviewers are simulated: people err together where a face is",
        "hard, and no figure here says how often they err.",
        "",
        "## Does what reviewers say hold of the queue?",
        "",
        f"A fifth of the streams are fake; {BUDGET} faces are reviewed; {seeds} queues. *holds*: how often the 95 % interval holds the queue's own",
        "figure. *corrected*: reviewers' errors taken out, at the rate at which those who saw the same faces differ. *of the whole queue*: the same",
        "with every stratum of score weighted to the queue's totals.",
        "",
        *agreement_rows(fifths, manifest),
        "",
        "## Which interval",
        "",
        f"Reviewers without error, a fifth of the streams fake, {seeds} queues: how often each 95 % interval holds the truth. A bootstrap has no",
        "width where every reviewed face of a label is of one kind, which happens often to precise labels.",
        "",
        *interval_rows(fifths),
        "",
        "## A calibration for a stream that is 95 % real",
        "",
        f"{calibration_seeds} queues a row. *ECE of the queue* is over all its faces with their true labels, which no proposal sees; *lower* is the",
        "share of proposals that lower it.",
        "",
        *CALIBRATION_HEAD,
        *(row.line for row in (*care, *others)),
        "",
        needed(care),
        "",
        "## And for one like the sets it was calibrated on",
        "",
        "Half of the streams are fake: there is little to gain, and a proposal that is made should not lose.",
        "",
        *CALIBRATION_HEAD,
        *(row.line for row in calibration_rows(halves, manifest, (BUDGET, BUDGETS[-1]), care=CARE[:2])),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="Folder of the research sets.")
    parser.add_argument("--scores", type=Path, help="File that keeps the engine's scores.")
    parser.add_argument("--out", type=Path, default=Path("docs/bench/reviews.md"))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--calibration-seeds", type=int, default=CALIBRATION_SEEDS)
    arguments = parser.parse_args()
    faces = scored_select(arguments.data, arguments.scores)
    manifest = read_manifest(bundled_engine())
    written = page(faces, manifest, seeds=arguments.seeds, calibration_seeds=arguments.calibration_seeds)
    arguments.out.write_text(written, encoding="utf-8")
    print(f"{arguments.out}: {len(faces)} faces, {platform.machine()}")


if __name__ == "__main__":
    main()
