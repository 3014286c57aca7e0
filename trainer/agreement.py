"""`fifa-train evaluate --reviews`: how often people agree with an engine, per label, forgery type, concept and stratum of score, and with each other.

Only reviews of one engine are scored; those of others are counted apart. Intervals are over streams (`intervals.clustered_wilson`): frames of one
stream are not independent. What is said beyond the reviewed faces, and when nothing may be, is `review_sampling`'s. Definitions: docs/reviews.md.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from engines.analyzer import Analyzer
from engines.contracts import Label
from engines.reviews import Decision, Review, Sampling
from trainer.faces import fit
from trainer.fifa_bench.intervals import UndefinedMetric, bootstrap_interval, clustered_wilson
from trainer.fifa_bench.report import as_json, as_markdown
from trainer.review_frames import PictureKey, ShownFace, face_crop, read_pictures
from trainer.review_sampling import BY_SCORE, EDGES, SelectionError, in_strata, selected, stratum_name, stratum_of
from trainer.reviewer_error import MOST, ReviewerError, bounds_without_error, fake_voices, reviewer_error, without_error
from trainer.reviews import Case, CaseKey, Reviews

Row = dict[str, Any]
Tables = dict[str, dict[str, Row]]
"""Title -> row name -> measure -> figure, as `fifa_bench.report` writes them."""

DECISIONS = (Decision.AGREE, Decision.DISAGREE, Decision.WRONG_PLACE, Decision.WRONG_TEXT)
MIN_OVERLAP = 10
"""Faces that two reviewers, or all, must share before their agreement is given a figure."""
KAPPA_RESAMPLES = 300
TITLE = "Reviews"


def agreement_tables(reviews: Reviews, engine: str, *, totals: Sequence[int] | None = None) -> Tables:
    """Every table that needs the reviews alone, of one engine's digest; `totals` counts its queue (`review_sampling.read_totals`).

    Raises ValueError where no face of that engine was reviewed.
    """
    cases = reviews.cases(engine)
    if not cases:
        known = ", ".join(digest[:12] for digest in sorted(reviews.engines)) or "none"
        raise ValueError(f"no review speaks of engine {engine[:12]}; the file holds reviews of {known}: name one with --of")
    told = [case for case in cases if case.told]
    by_type = [case for case in told if case.first.label is Label.FAKE and case.first.forgery_type is not None]
    tables: Tables = {
        "reviews": _read_table(reviews, engine),
        "decisions": _grouped(cases, told, lambda case: ("all",) if case.first.label is Label.INCONCLUSIVE else ("all", "called fake or real")),
        "decisions by label": _grouped(cases, told, lambda case: (case.first.label.value,)),
        "decisions by forgery type, of faces called fake": _grouped(by_type, by_type, lambda case: (case.first.forgery_type or "",)),
        "objections by concept": _concepts(told),
        "labels": label_table(told),
        "by stratum of score": _strata(cases, totals),
        "over the whole queue": queue_table(told, totals),
        "between reviewers": _between(cases),
    }
    return tables


def write_agreement(tables: Tables, folder: Path) -> None:
    """Write reviews.json and reviews.md into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reviews.json").write_text(as_json(tables), encoding="utf-8")
    (folder / "reviews.md").write_text(as_markdown(tables, title=TITLE), encoding="utf-8")


def engine_of(reviews: Reviews, named: str | None, opened: str | None) -> str:
    """Whose reviews are scored: the digest that begins with `named`, else that of the engine at hand if it was reviewed, else the only one.

    Raises ValueError where that is none, or several.
    """
    digests = sorted(reviews.engines)
    if named is not None:
        found = [digest for digest in digests if digest.startswith(named)]
        if len(found) != 1:
            told = ", ".join(digest[:12] for digest in digests) or "no engine"
            raise ValueError(f"{named!r} begins {len(found)} of the reviewed engines' digests; the reviews speak of {told}")
        return found[0]
    if opened in digests:
        return str(opened)
    if len(digests) != 1:
        told = ", ".join(f"{digest[:12]} ({count})" for digest, count in sorted(reviews.engines.items())) or "none that counts"
        raise ValueError(f"the reviews speak of several engines or none, {told}; name one with --of")
    return digests[0]


# --- Shares -----------------------------------------------------------------------------------------------------------------------------------


def _share(row: Row, name: str, hits: Sequence[bool] | NDArray[np.bool_], cases: Sequence[Case], weight_N: NDArray[np.float64] | None = None) -> None:
    """A share with its bounds; nothing where nobody counts."""
    if cases:
        hit_N = np.asarray(hits, np.float64)
        row[name] = float(np.average(hit_N, weights=weight_N))
        row[f"{name}_low"], row[f"{name}_high"] = clustered_wilson(hit_N, [case.stream for case in cases], weight_N)


def _corrected(row: Row, cases: Sequence[Case], error: ReviewerError | None, weight_N: NDArray[np.float64] | None = None) -> None:
    """The share of fakes among faces if no reviewer erred; nothing where it is not known how often they do, or where that tells nothing."""
    heard_N = np.array([case.is_heard for case in cases], bool)
    if error is None or error.high > MOST or not heard_N.any():
        return
    heard = [case for case, is_heard in zip(cases, heard_N, strict=True) if is_heard]
    voice_N, weight_N = np.array([fake_voices(case) for case in heard]), None if weight_N is None else weight_N[heard_N]
    row["corrected"] = min(max(without_error(float(np.average(voice_N, weights=weight_N)), error.rate), 0.0), 1.0)
    bounds = clustered_wilson(voice_N, [case.stream for case in heard], weight_N)
    row["corrected_low"], row["corrected_high"] = bounds_without_error(bounds, error)


def _sizes(cases: Sequence[Case]) -> Row:
    return {"faces": len(cases), "streams": len({case.stream for case in cases})}


def decision_row(told: Sequence[Case]) -> Row:
    """Shares of what most reviewers decided; ties are counted, and in no share."""
    clear = [case for case in told if case.decision is not None]
    row = _sizes(told) | {"tied": len(told) - len(clear)}
    for decision in DECISIONS:
        _share(row, decision.value, [case.decision is decision for case in clear], clear)
    _share(row, "label_holds", [case.decision is not Decision.DISAGREE for case in clear], clear)
    return row


def _grouped(cases: Sequence[Case], told: Sequence[Case], groups_of: Callable[[Case], Iterable[str]]) -> dict[str, Row]:
    """Decisions by group; beside them how many faces everybody skipped."""
    names = sorted({name for case in cases for name in groups_of(case)})
    table = {}
    for name in names:
        row = decision_row([case for case in told if name in groups_of(case)])
        row["skipped"] = sum(not case.told and name in groups_of(case) for case in cases)
        table[name] = row
    return table


def _concepts(told: Sequence[Case]) -> dict[str, Row]:
    """Per concept, over the faces whose explanation pointed there: does the label hold, is the place wrong, are the words wrong.

    An objection that names no phrase speaks of all; `unnamed` says how many did, and so by how much the shares may be too high.
    """
    pointing: dict[str, list[Case]] = defaultdict(list)
    for case in told:
        for concept in set(case.first.concepts):
            pointing[concept].append(case)
    table = {}
    for concept, members in sorted(pointing.items(), key=lambda item: (-len(item[1]), item[0])):
        row = _sizes(members)
        clear = [case for case in members if case.decision is not None]
        _share(row, "label_holds", [case.decision is not Decision.DISAGREE for case in clear], clear)
        for decision in (Decision.WRONG_PLACE, Decision.WRONG_TEXT):
            _share(row, decision.value, [concept in case.objections(decision) for case in members], members)
        row["unnamed"] = sum(_is_unnamed(review) for case in members for review in case.told)
        table[concept] = row
    return table


def _is_unnamed(review: Review) -> bool:
    return review.decision in (Decision.WRONG_PLACE, Decision.WRONG_TEXT) and not review.objected and len(set(review.concepts)) > 1


def label_table(told: Sequence[Case]) -> dict[str, Row]:
    """What the faces of a label are, in the reviewers' eyes: the precision of 'fake', the overruled share of 'real'.

    Most voices count. `corrected` is the same if nobody erred, where enough faces were seen by two to know how often they do.
    """
    table = {}
    error = reviewer_error(told)
    for label in Label:
        members = [case for case in told if case.first.label is label]
        known = [case for case in members if case.truth is not None]
        row = _sizes(members) | {"truth_known": len(known), "disputed": sum(case.is_disputed for case in members)}
        name = {Label.FAKE: "precision", Label.REAL: "overruled", Label.INCONCLUSIVE: "fakes"}[label]
        _share(row, name, [case.truth == "fake" for case in known], known)
        _corrected(row, members, error)
        if members:
            row["speaks of"] = _reach(members)
            table[f"called {label.value}"] = row
    return table


def _reach(cases: Sequence[Case]) -> str:
    """How far a plain share of these cases goes."""
    ways = {case.sampling for case in cases}
    if ways == {Sampling.RANDOM}:
        return "the queue"
    if ways <= set(BY_SCORE):
        return "faces of like scores; not the queue"
    return "the reviewed faces; how they came up is not said" if None in ways else "the reviewed faces"


def _strata(cases: Sequence[Case], totals: Sequence[int] | None) -> dict[str, Row]:
    """Share of fakes by score: what a queue sorted by score leaves comparable."""
    total_S = None if totals is None else in_strata(totals)
    table = {}
    for stratum in range(len(EDGES) - 1):
        members = [case for case in cases if case.first.fake_score is not None and stratum_of(case.first.fake_score) == stratum]
        known = [case for case in members if case.truth is not None]
        row = _sizes(members)
        if total_S is not None:
            row["in queue"] = int(total_S[stratum])
        _share(row, "fakes", [case.truth == "fake" for case in known], known)
        if known:
            row["mean_score"] = float(np.mean([case.first.fake_score for case in known]))
            row["speaks of"] = _reach(known)
        if members or (total_S is not None and total_S[stratum]):
            table[stratum_name(stratum)] = row
    return table


def queue_table(told: Sequence[Case], totals: Sequence[int] | None) -> dict[str, Row]:
    """The figures that speak of the whole queue, or why there are none."""
    error = reviewer_error(told)
    try:
        chosen = selected([case for case in told if case.is_heard], totals)
    except SelectionError as refusal:
        return {"not estimated": {"why": f"{refusal.fault.value}: {refusal}"}}
    table: dict[str, Row] = {}
    parts = {"precision of fake": Label.FAKE, "overruled among real": Label.REAL, "fakes among inconclusive": Label.INCONCLUSIVE}
    for name, label in {**parts, "fakes in the queue": None}.items():
        keep_N = np.array([label is None or case.first.label is label for case in chosen.cases], bool)
        members, weight_M = [case for case, keep in zip(chosen.cases, keep_N, strict=True) if keep], chosen.weight_N[keep_N]
        clear_M = np.array([case.truth is not None for case in members], bool)
        clear = [case for case in members if case.truth is not None]
        row = _sizes(members)
        _share(row, "share", [case.truth == "fake" for case in clear], clear, weight_M[clear_M])
        _corrected(row, members, error, weight_M)
        table[name] = row
    table["basis"] = {"why": chosen.basis + (f"; {chosen.unseen:.1%} of the queue were not seen" if chosen.unseen else "")}
    return table


def _read_table(reviews: Reviews, engine: str) -> dict[str, Row]:
    table: dict[str, Row] = {}
    for digest in sorted(reviews.engines, key=lambda digest: (digest != engine, digest)):
        cases = reviews.cases(digest)
        rows = [review for case in cases for review in case.reviews]
        ways = Counter("not said" if case.sampling is None else case.sampling.value for case in cases)
        table[f"engine {digest[:12]}"] = {
            "scored": "yes" if digest == engine else "no", "reviews": len(rows), **_sizes(cases), "reviewers": len({row.reviewer for row in rows}),
            "skips": sum(row.decision is Decision.SKIP for row in rows), "disputed": sum(case.is_disputed for case in cases),
            "came up": ", ".join(f"{way} {count}" for way, count in sorted(ways.items())),
        }  # fmt: skip
    dropped = {"superseded": reviews.superseded, "withdrawn": reviews.withdrawn, "left out": reviews.left_out}
    return table | {name: {"reviews": count} for name, count in dropped.items() if count}


# --- Between reviewers ------------------------------------------------------------------------------------------------------------------------


def _between(cases: Sequence[Case]) -> dict[str, Row]:
    """Agreement beyond chance: Cohen's kappa of every pair, Fleiss's of all, on the truth and on the decision. Skips are no opinion."""
    table: dict[str, Row] = {}
    if (error := reviewer_error(cases)) is not None:
        measured = {"error_rate": error.rate, "error_rate_low": error.low, "error_rate_high": error.high}
        table["one reviewer"] = {"faces": error.shared, **measured}
    voices: dict[str, Callable[[Review], str | None]] = {
        "truth": lambda review: review.truth,
        "decision": lambda review: None if review.decision is Decision.SKIP else review.decision.value,
    }
    for what, voice in voices.items():
        said = [(case.stream, {r.reviewer: told for r in case.reviews if (told := voice(r)) is not None}) for case in cases]
        shared = [(stream, of) for stream, of in said if len(of) > 1]
        if len(shared) >= MIN_OVERLAP:
            row: Row = {"faces": len(shared), "streams": len({stream for stream, _ in shared})}
            counts_NK = _votes([of for _, of in shared])
            row["agree"] = _pairwise_agreement(counts_NK)
            _with_kappa(row, partial(_of_rows, fleiss_kappa, counts_NK), [stream for stream, _ in shared])
            table[f"{what}, all"] = row
        for one, other in combinations(sorted({name for _, of in shared for name in of}), 2):
            both = [(stream, of[one], of[other]) for stream, of in shared if one in of and other in of]
            if len(both) >= MIN_OVERLAP:
                row = {"faces": len(both), "streams": len({stream for stream, _, _ in both}), "agree": float(np.mean([a == b for _, a, b in both]))}
                pair_N2 = np.array([(a, b) for _, a, b in both])
                _with_kappa(row, partial(_of_rows, cohen_kappa, pair_N2), [stream for stream, _, _ in both])
                table[f"{what}, {one} and {other}"] = row
    return table


def _with_kappa(row: Row, kappa: Callable[[NDArray[np.intp]], float], streams: Sequence[str]) -> None:
    try:
        row["kappa"] = kappa(np.arange(len(streams)))
        row["kappa_low"], row["kappa_high"] = bootstrap_interval(kappa, streams, resamples=KAPPA_RESAMPLES)
    except UndefinedMetric as error:
        row.setdefault("why", str(error))


def _of_rows(kappa: Callable[[NDArray[Any]], float], said_NK: NDArray[Any], rows: NDArray[np.intp]) -> float:
    return kappa(said_NK[rows])


def cohen_kappa(said_N2: NDArray[np.str_]) -> float:
    """Of two reviewers on the same faces. Raises UndefinedMetric where both always say one and the same: chance then explains all."""
    if np.unique(said_N2).size < 2:
        raise UndefinedMetric("both reviewers say the same of every face")
    return float(cohen_kappa_score(said_N2[:, 0], said_N2[:, 1]))


def fleiss_kappa(count_NK: NDArray[np.int64]) -> float:
    """Of any number of reviewers, two at least on each face and not always the same ones: N faces, K answers (Fleiss, Psychol. Bull. 76, 1971, with
    a pair of voices as the unit). Raises UndefinedMetric where all say one and the same."""
    share_K = count_NK.sum(0) / count_NK.sum()
    chance = float((share_K**2).sum())
    if chance >= 1:
        raise UndefinedMetric("all reviewers say the same of every face")
    return (_pairwise_agreement(count_NK) - chance) / (1 - chance)


def _pairwise_agreement(count_NK: NDArray[np.int64]) -> float:
    """Share of agreeing pairs of voices, faces alike."""
    voices_N = count_NK.sum(1)
    return float(np.mean((count_NK * (count_NK - 1)).sum(1) / (voices_N * (voices_N - 1))))


def _votes(said: Sequence[Mapping[str, str]]) -> NDArray[np.int64]:
    answers = sorted({answer for of in said for answer in of.values()})
    return np.array([[sum(told == answer for told in of.values()) for answer in answers] for of in said], np.int64)


# --- Another engine on the reviewed faces -----------------------------------------------------------------------------------------------------


class _Again(NamedTuple):
    case: Case
    fake_score: float


def rescored(analyzer: Analyzer, cases: Sequence[Case], frames: Path, shown: Mapping[CaseKey, ShownFace]) -> dict[str, Row]:
    """What an engine says of reviewed faces whose pictures are at hand: how many overruled ones it now gets right, and what it loses.

    `shown` are faces of the verdicts: they tell how a face was turned. Raises what `read_pictures` raises.
    """
    by_picture: dict[PictureKey, list[Case]] = defaultdict(list)
    for case in cases:
        if case.truth is not None and case.first.box is not None:
            by_picture[PictureKey(case.first.media_sha256, case.first.frame)].append(case)
    again: list[_Again] = []
    for key, image_HWC in read_pictures(frames, by_picture):
        cut = [face_crop(image_HWC, case.first.box, shown.get(case.key)).image_HWC for case in by_picture[key] if case.first.box is not None]
        crops = [fit(crop_HWC, analyzer.manifest.preprocess.image_size) for crop_HWC in cut]
        found = analyzer.analyze(np.stack(crops), explain=["never"] * len(crops))
        again += [_Again(case, analysis.fake_score) for case, analysis in zip(by_picture[key], found, strict=True)]
    wanted = sum(map(len, by_picture.values()))
    point = analyzer.operating_point

    def is_right(label: Label, case: Case) -> bool:
        return label.value == case.truth

    groups: dict[str, Callable[[Case], bool]] = {
        "all": lambda case: True,
        "overruled": lambda case: case.first.label is not Label.INCONCLUSIVE and not is_right(case.first.label, case),
        "called fake, is real": lambda case: case.first.label is Label.FAKE and case.truth == "real",
        "called real, is fake": lambda case: case.first.label is Label.REAL and case.truth == "fake",
        "upheld": lambda case: is_right(case.first.label, case),
        "inconclusive": lambda case: case.first.label is Label.INCONCLUSIVE,
    }
    table: dict[str, Row] = {}
    for name, holds in groups.items():
        members = [one for one in again if holds(one.case)]
        row: Row = _sizes([one.case for one in members])
        for measure, fits in (("right", is_right), ("wrong", lambda label, case: label is not Label.INCONCLUSIVE and not is_right(label, case))):
            _share(row, measure, [fits(point.label(one.fake_score), one.case) for one in members], [one.case for one in members])
        table[name] = row
    table["all"]["without picture"] = wanted - len(again)
    return table
