"""FiFa-Bench: any system's predictions against a split, for all eleven tasks, as nested plain dicts.

`score` reads nothing but the two kinds of records (`trainer.samples`), so it scores other systems as it scores ours. Every figure is defined in
docs/fifa-bench.md. Results do not depend on the order of either file.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from engines.contracts import FORGERY_TYPES
from trainer.faces import type_target
from trainer.fifa_bench import detection, mask_tables, probes
from trainer.fifa_bench.intervals import UndefinedMetric, mean_interval
from trainer.fifa_bench.mask_tables import Row, with_interval
from trainer.fifa_bench.pairing import Item, asked, attempted, coverage, paired
from trainer.fifa_bench.text import TextScorer, distinct_2, most_frequent_sentence, self_bleu_4, text_scorer, vocabulary, words
from trainer.samples import Level, Prediction, Sample, TaskKind

Tables = dict[str, Any]
"""Title -> row name -> measure -> float; under 'curves', lists for plots."""

LEVELS: tuple[Level, ...] = ("image", "region", "box")
TEXT_TASKS: tuple[TaskKind, ...] = ("toe", "age")
EVERYONE = "all"
FPR_TARGETS = {"tpr_at_1pct_fpr": 0.01, "tpr_at_0.1pct_fpr": 0.001}
CURVE_POINTS = 400
"""At most this many points of a ROC curve are kept for plots."""


def score(
    samples: Iterable[Sample],
    predictions: Iterable[Prediction],
    *,
    intervals: bool = True,
    text: bool = True,
    cuts: tuple[float, float] | None = None,
    engine_probes: Mapping[str, Mapping[str, float]] | None = None,
) -> Tables:
    """Every table of FiFa-Bench that the samples allow; tasks for which nothing was answered have a line in 'coverage' alone.

    `intervals` adds 95 % bounds from 1,000 resamples of whole units, as `<measure>_low` and `<measure>_high`. `text` runs the text metrics, which
    need Java (FileNotFoundError without it). `cuts` are (real below, fake at) of an operating point. `engine_probes` are rows that need the engine
    and not only files (phrase swap, deletion test), taken over as they are. Raises ValueError for files that do not fit each other.
    """
    items = paired(samples, predictions)
    if not items:
        raise ValueError("the split holds no samples; build one with `fifa-train`")
    tables: Tables = {"coverage": coverage(items), "curves": {"roc": {}, "reliability": {}}}
    _detection(tables, asked(items, "det"), intervals=intervals, cuts=cuts)
    _types(tables, asked(items, "cls"))
    _masks(tables, items, intervals=intervals)
    _probes(tables, items)
    if text:
        _texts(tables, items, intervals=intervals)
    if engine_probes:
        tables["engine probes"] = {name: dict(row) for name, row in engine_probes.items()}
    return tables


# --- Detection and type -----------------------------------------------------------------------------------------------------------------------


def _detection(tables: Tables, items: Sequence[Item], *, intervals: bool, cuts: tuple[float, float] | None) -> None:
    names = [EVERYONE, *sorted({group for item in items for group in item.sample.group} - {EVERYONE})]
    for name in names:
        members = [item for item in items if name == EVERYONE or name in item.sample.group]
        scored = [item for item in members if item.prediction is not None and item.prediction.fake_score is not None]
        is_fake_N = np.array([item.sample.is_fake for item in scored], bool)
        if not scored or is_fake_N.all() or not is_fake_N.any():
            continue
        score_N = np.array([_fake_score(item) for item in scored])
        row = {"faces": float(len(scored)), "scored_share": len(scored) / len(members)} | _ranking(is_fake_N, score_N)
        if intervals:
            _detection_intervals(row, is_fake_N, score_N, [item.unit for item in scored])
        tables.setdefault("detection", {})[name] = row
        if cuts is not None:
            tables.setdefault("detection at the cuts", {})[name] = _at_cuts(is_fake_N, score_N, *cuts)
        _curves(tables["curves"], name, is_fake_N, score_N)


def _fake_score(item: Item) -> float:
    return cast(float, cast(Prediction, item.prediction).fake_score)


def _ranking(is_fake_N: NDArray[np.bool_], score_N: NDArray[np.float64]) -> Row:
    return {
        "auc": detection.auc(is_fake_N, score_N),
        "ap": detection.average_precision(is_fake_N, score_N),
        "eer": detection.eer(is_fake_N, score_N),
        **{name: detection.tpr_at_fpr(is_fake_N, score_N, target) for name, target in FPR_TARGETS.items()},
        "ece": detection.ece(is_fake_N, score_N),
        "ece_balanced": detection.balanced_ece(is_fake_N, score_N),
        "brier": detection.brier(is_fake_N, score_N),
        "nll": detection.nll(is_fake_N, score_N),
    }


def _detection_intervals(row: Row, is_fake_N: NDArray[np.bool_], score_N: NDArray[np.float64], units: Sequence[str]) -> None:
    with_interval(row, "brier", mean_interval((score_N - is_fake_N) ** 2, units))
    try:
        found = detection.ranking_intervals(is_fake_N, score_N, units, list(FPR_TARGETS.values()))
    except UndefinedMetric:  # too few units to draw from: the figures stand without bounds
        return
    for name in ("auc", "ap", "eer"):
        with_interval(row, name, found[name])
    for name, target in FPR_TARGETS.items():
        with_interval(row, name, found[f"tpr@{target:g}"])


def _at_cuts(is_fake_N: NDArray[np.bool_], score_N: NDArray[np.float64], real_below: float, fake_at: float) -> Row:
    undecided_N, fake_N = (score_N >= real_below) & (score_N < fake_at), score_N >= fake_at
    return {
        "fake_on_reals": float(fake_N[~is_fake_N].mean()), "fake_on_fakes": float(fake_N[is_fake_N].mean()),
        "inconclusive_on_reals": float(undecided_N[~is_fake_N].mean()), "inconclusive_on_fakes": float(undecided_N[is_fake_N].mean()),
        "balanced_accuracy": detection.balanced_accuracy(is_fake_N, score_N, fake_at),
    }  # fmt: skip


def _curves(curves: dict[str, Any], name: str, is_fake_N: NDArray[np.bool_], score_N: NDArray[np.float64]) -> None:
    fpr_T, tpr_T = detection.roc(is_fake_N, score_N)
    kept = np.unique(np.linspace(0, len(fpr_T) - 1, CURVE_POINTS).round().astype(int))
    curves["roc"][name] = {"fpr": fpr_T[kept].tolist(), "tpr": tpr_T[kept].tolist()}
    predicted, observed, faces = detection.reliability(is_fake_N, score_N)
    curves["reliability"][name] = {"predicted": predicted.tolist(), "observed": observed.tolist(), "faces": faces.astype(int).tolist()}


def _types(tables: Tables, items: Sequence[Item]) -> None:
    """Forgery type over fakes with a label; no answer is a wrong one."""
    labelled = [item for item in items if item.sample.is_fake and item.sample.forgery_type is not None]
    if not labelled or not attempted(items):
        return
    allowed_NF = np.stack([type_target(item.sample.forgery_type) > 0 for item in labelled])
    type_prob_NF = np.array([[_type_probs(item).get(kind, 0.0) for kind in FORGERY_TYPES] for item in labelled])
    answers = detection.type_answers(type_prob_NF, allowed_NF)
    names = ["+".join(FORGERY_TYPES[kind] for kind in kinds) for kinds in answers.classes]
    f1 = detection.type_f1s(answers)
    right_N = answers.true_N == answers.predicted_N
    tables["forgery type"] = {
        "all": {"fakes": float(len(labelled)), "accuracy": float(right_N.mean()), "macro_f1": float(f1.mean())},
        **{
            name: {"fakes": float((answers.true_N == k).sum()), "accuracy": float(right_N[answers.true_N == k].mean()), "f1": float(f1[k])}
            for k, name in enumerate(names)
        },
    }
    predicted_names = [*names, "another or none"]
    tables["forgery type: share of the true class (row) called each class"] = {
        name: {
            called: float((answers.predicted_N[answers.true_N == k] == (j if j < len(names) else -1)).mean())
            for j, called in enumerate(predicted_names)
        }
        for k, name in enumerate(names)
    }


def _type_probs(item: Item) -> Mapping[str, float]:
    return (item.prediction.type_probs or {}) if item.prediction else {}


# --- Masks ------------------------------------------------------------------------------------------------------------------------------------


def _masks(tables: Tables, items: Sequence[Item], *, intervals: bool) -> None:
    for level in LEVELS:
        loc, age = asked(items, "loc", level), asked(items, "age", level)
        if attempted(loc):
            tables.setdefault("localisation", {})[level] = mask_tables.loc_table(loc, intervals=intervals)
            frozen = mask_tables.frozen_table(loc, intervals=intervals)
            if frozen is not None:
                tables.setdefault("localisation against the frozen reference", {})[level] = frozen
            for family, row in mask_tables.families_table(loc).items():
                tables.setdefault("localisation by family", {})[f"{level}, {family}"] = row
        if attempted(age):
            tables.setdefault("grounding", {})[level] = mask_tables.age_table(age, intervals=intervals)
            tables.setdefault("text-mask alignment", {})[level] = mask_tables.alignment_table(age, intervals=intervals)
            if level == "image":
                tables["concepts by depth"] = mask_tables.concept_table(age)


def _probes(tables: Tables, items: Sequence[Item]) -> None:
    offered = [item for level in LEVELS for task in probes.MEASURES if attempted(rows := _of(items, task, level)) for item in rows]
    query = probes.query_shuffle_table(offered)
    if query:
        tables["query shuffle"] = query
    label = probes.label_shuffle_table(offered)
    if label:
        tables["score under shuffled labels"] = label


def _of(items: Sequence[Item], task: str, level: Level) -> list[Item]:
    """The items of a task and level, probes included."""
    return [item for item in items if item.sample.task == task and item.sample.level == level]


# --- Text -------------------------------------------------------------------------------------------------------------------------------------


def _texts(tables: Tables, items: Sequence[Item], *, intervals: bool) -> None:
    """Tampered and clean samples apart: one clean sentence repeated must not lift the score of explanations."""
    groups: dict[str, list[Item]] = {}
    for task in TEXT_TASKS:
        for level in LEVELS:
            rows = asked(items, task, level)
            if attempted(rows):
                groups[f"{task}/{level}"] = [item for item in rows if item.sample.tampered and item.sample.mask_known]
                groups[f"{task}/{level}, clean"] = [item for item in rows if not item.sample.tampered]
    groups = {name: members for name, members in groups.items() if members}
    if not groups:
        return
    constants = {name: most_frequent_sentence([item.reference for item in members]) for name, members in groups.items()}
    everything = [text for members in groups.values() for item in members for text in (item.text, item.reference)]
    with text_scorer([*everything, *constants.values()]) as scorer:
        for name, members in groups.items():
            tables.setdefault("text", {})[name] = _text_row(members, constants[name], scorer, intervals=intervals)
            shuffled = None if name.endswith("clean") else probes.text_shuffle_row(members, scorer)
            if shuffled is not None:
                tables.setdefault("score under shuffled labels", {})[f"{name}, METEOR"] = shuffled


def _text_row(items: Sequence[Item], constant: str, scorer: TextScorer, *, intervals: bool) -> Row:
    said, wanted = [item.text for item in items], [item.reference for item in items]
    scores, baseline = scorer(said, [[text] for text in wanted]), scorer([constant] * len(items), [[text] for text in wanted])
    row: Row = {
        "texts": float(len(items)), "silent": float(np.mean([not text.strip() for text in said])),
        "meteor": scores.meteor, "cider": scores.cider, "rouge_l": scores.rouge_l, "bleu_4": scores.bleu_4,
        "meteor_most_frequent_sentence": baseline.meteor, "cider_most_frequent_sentence": baseline.cider,
        "distinct_2": distinct_2(said), "distinct_2_reference": distinct_2(wanted),
        "vocabulary": float(vocabulary(said)), "vocabulary_reference": float(vocabulary(wanted)),
        "words": float(np.mean([len(words(text)) for text in said])),
    }  # fmt: skip
    if len(items) > 1:
        row |= {"self_bleu_4": self_bleu_4(said), "self_bleu_4_reference": self_bleu_4(wanted)}
    if intervals:
        units = [item.unit for item in items]
        for name, value_N in (("meteor", scores.meteor_N), ("cider", scores.cider_N), ("rouge_l", scores.rouge_l_N)):
            with_interval(row, name, mean_interval(value_N, units))
    return row
