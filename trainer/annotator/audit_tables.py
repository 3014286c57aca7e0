"""Rows of the audit -> its tables: plain nested dictionaries, and the same as Markdown. Every verdict stands beside the figures it is drawn from."""

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Row = dict[str, Any]
Table = dict[str, Any]

MASKS = {"adaptive": 0, "fixed_1": 1, "fixed_2": 2, "fixed_5": 5, "fixed_10": 10}
"""The annotator's mask, and the fixed share of largest differences in per cent; 5 % is the paper's."""
DEPTHS: tuple[Literal[14, 33, 112], ...] = (14, 33, 112)
BASES = ("selected", "told")
"""What is compared with the concepts of the exact mask: those of the annotator's mask by the same rule, and those its text names (at most four)."""
MISSED_IOU = 0.1
"""A manipulation is missed where the adaptive mask's IoU with the exact one stays below this; an empty mask is missed."""
QUINTILES = 5
EXAMPLES = 20
"""Pairs with a hallucinated concept that are listed by name."""
GAIN_ASKED, LOSS_ALLOWED = 0.10, 0.05
EMPTY_ASKED = 0.99
CONCEPTS_ASKED = 0.85
SPEED_UP_ASKED, GROWTH_ALLOWED = 1.8, 1.05


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if len(values) else None


def mask_table(rows: Sequence[Row]) -> Table:
    """Mean IoU with the exact mask by family and quintile of area (of the face oval), with the miss rates; faint manipulations are in all of them.

    Verdicts: in every family adaptive beats the fixed 5 % by 0.10; in no quintile, of all families together, is it worse by more than 0.05.
    """
    edges = np.quantile([row["area"] for row in rows], np.linspace(0, 1, QUINTILES + 1)[1:-1]) if rows else np.zeros(QUINTILES - 1)
    quintile = [int(np.searchsorted(edges, row["area"], side="right")) + 1 for row in rows]
    families = sorted({row["family"] for row in rows})
    lines = [
        _mask_line(family, str(fifth), [row for row, own in zip(rows, quintile, strict=True) if _in(row, own, family, fifth)])
        for family in ("all", *families)
        for fifth in ("all", *range(1, QUINTILES + 1))
    ]
    recipes = [_mask_line(family, recipe, [row for row in rows if row["recipe"] == recipe]) for family, recipe in _recipes(rows)]
    gains = {line["family"]: _gain(line) for line in lines if line["quintile"] == "all" and line["family"] != "all"}
    losses = {line["quintile"]: _gain(line) for line in lines if line["family"] == "all" and line["quintile"] != "all"}
    cells = {f"{line['family']}, {line['quintile']}": _gain(line) for line in lines if line["family"] != "all" and line["quintile"] != "all"}
    return {
        "lines": lines,
        "by_recipe": [{"family": line["family"], "recipe": line.pop("quintile"), **line} for line in recipes],
        "area_edges": [round(float(edge), 4) for edge in edges],
        "verdicts": {
            "gain_over_fixed_5_by_family": {"figures": gains, "asked": f">= {GAIN_ASKED}", "holds": _holds(gains, GAIN_ASKED)},
            "gain_over_fixed_5_by_quintile": {"figures": losses, "asked": f">= -{LOSS_ALLOWED}", "holds": _holds(losses, -LOSS_ALLOWED)},
            "gain_over_fixed_5_by_family_and_quintile": {"figures": cells, "asked": f">= -{LOSS_ALLOWED}", "holds": _holds(cells, -LOSS_ALLOWED)},
        },
    }


def _in(row: Row, own: int, family: str, fifth: int | str) -> bool:
    return family in ("all", row["family"]) and fifth in ("all", own)


def _recipes(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return sorted({(row["family"], row["recipe"]) for row in rows})


def _mask_line(family: str, quintile: str, rows: Sequence[Row]) -> Row:
    faint = [row for row in rows if row["faint"]]
    shown = [row for row in rows if not row["faint"]]
    return {
        "family": family, "quintile": quintile, "n": len(rows), "area": _mean([row["area"] for row in rows]),
        **{name: _mean([row["iou"][name] for row in rows]) for name in MASKS},
        "adaptive_not_faint": _mean([row["iou"]["adaptive"] for row in shown]),
        "missed": _mean([_missed(row) for row in rows]), "faint": len(faint), "missed_faint": _mean([_missed(row) for row in faint]),
        "missed_not_faint": _mean([_missed(row) for row in shown]),
    }  # fmt: skip


def _missed(row: Row) -> bool:
    return bool(row["iou"]["adaptive"] < MISSED_IOU)


def _gain(line: Row) -> float | None:
    return None if line["adaptive"] is None else round(line["adaptive"] - line["fixed_5"], 4)


def _holds(figures: dict[str, float | None], least: float) -> bool:
    return bool(figures) and all(figure is not None and figure >= least for figure in figures.values())


def control_table(rows: Sequence[Row]) -> Table:
    """Shares of real/real pairs with an empty mask and with an empty text, for each disturbance; 99 % asked of all together."""
    lines = []
    for kind in ("all", *dict.fromkeys(row["disturbance"] for row in rows)):
        own = [row for row in rows if kind in ("all", row["disturbance"])]
        lines.append({
            "disturbance": kind, "n": len(own), "empty_mask": _mean([row["empty_mask"] for row in own]),
            "empty_text": _mean([row["empty_text"] for row in own]), "both": _mean([row["empty_mask"] and row["empty_text"] for row in own]),
            "area_where_not_empty": _mean([row["area"] for row in own if not row["empty_mask"]]),
        })  # fmt: skip
    figure = {"all": lines[0]["both"]}
    return {
        "lines": lines,
        "refused_as": _counts([row["refused"] or "not refused" for row in rows]),
        "verdicts": {"empty_mask_and_text": {"figures": figure, "asked": f">= {EMPTY_ASKED}", "holds": _holds(figure, EMPTY_ASKED)}},
    }


def concept_table(rows: Sequence[Row]) -> Table:
    """Concept precision and recall, micro-averaged over cells, by depth; hallucinated and side errors counted over what the texts name.

    Over annotated pairs, and over all of them: a refused pair names nothing, so its concepts count as missed.
    """
    annotated = [row for row in rows if row["refused"] is None]
    lines = [
        {"depth": depth, "basis": basis, "pairs": name, "n": len(own), **_agreement([row["cells"][str(depth)] for row in own], basis)}
        for depth in DEPTHS
        for basis in BASES
        for name, own in (("annotated", annotated), ("all", rows))
    ]
    at_33 = {
        f"{basis}_at_33": {
            f"{line['pairs']}, {measure}": line[measure]
            for line in lines
            if line["depth"] == 33 and line["basis"] == basis
            for measure in ("precision", "recall")
        }
        for basis in BASES
    }
    errors = {name: sum(len(row[name]) for row in rows) for name in ("hallucinated", "wrong_side")}
    return {
        "lines": lines,
        "refused_as": _counts([row["refused"] or "not refused" for row in rows]),
        "named": sum(len(row["told"]) for row in rows),
        **errors,
        "examples": [f"{row['face']}, {row['recipe']}: {', '.join(row['hallucinated'])}" for row in rows if row["hallucinated"]][:EXAMPLES],
        "verdicts": {
            **{
                name: {"figures": figures, "asked": f">= {CONCEPTS_ASKED}", "holds": _holds(figures, CONCEPTS_ASKED)}
                for name, figures in at_33.items()
            },
            "no_hallucinated_concept_and_no_side_error": {"figures": errors, "asked": "0", "holds": not any(errors.values())},
        },
    }


def _agreement(cells: Sequence[dict[str, list[str]]], basis: str) -> Row:
    both = sum(len(set(row["truth"]) & set(row[basis])) for row in cells)
    named, true = (sum(len(set(row[key])) for row in cells) for key in (basis, "truth"))
    return {"precision": round(both / named, 4) if named else None, "recall": round(both / true, 4) if true else None}


def _counts(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}


def speed_table(rates: Sequence[float], marks: tuple[int, int], resident: Sequence[int]) -> Table:
    """Pairs a second at one and two workers and the resident bytes of one worker at two numbers of pairs, with their ratios."""
    speed_up, growth = rates[1] / rates[0], resident[1] / resident[0]
    return {
        "lines": [
            {"what": "pairs/s, 1 worker", "figure": round(rates[0], 2)}, {"what": "pairs/s, 2 workers", "figure": round(rates[1], 2)},
            {"what": "speed-up", "figure": round(speed_up, 3)},
            *({"what": f"resident MiB after {mark} pairs", "figure": round(size / 2**20, 1)} for mark, size in zip(marks, resident, strict=True)),
            {"what": "growth", "figure": round(growth, 4)},
        ],
        "verdicts": {
            "speed_up": {"figures": {"2 over 1": round(speed_up, 3)}, "asked": f">= {SPEED_UP_ASKED}", "holds": speed_up >= SPEED_UP_ASKED},
            "memory": {"figures": {"last over first": round(growth, 4)}, "asked": f"<= {GROWTH_ALLOWED}", "holds": growth <= GROWTH_ALLOWED},
        },
    }  # fmt: skip


# Markdown.

CAPTIONS = {
    "masks": "Masks of own manipulations against the exact mask: mean IoU. `area` is a share of the face oval, its quintiles are those of all rows. "
    "`fixed_k` is the top k % of differences. Missed: IoU below 0.1. Faint: changed by less than 3 grey levels more inside the mask than outside it, "
    "after the codec; faint ones count in every column that does not say otherwise. Entire synthesis has no local mask and is not here.",
    "real_pairs": "Real faces against themselves, disturbed as the noise floor has not seen: share without mask and without text.",
    "concepts": "Concepts against those of the exact mask by the same selection rule. A cell counts as named when it shares a visible atom with a "
    "named concept; micro-averaged. `selected`: the rule on the annotator's mask; `told`: what the text names. `all`: refused pairs count as missed.",
    "speed": "One thread a process, decoding included.",
}


def markdown(report: Table) -> str:
    """The report as audit.md."""
    parts = [f"# Audit of the annotator\n\nSeed {report['seed']}, {report['faces']} faces.\n"]
    for name, caption in CAPTIONS.items():
        table = report[name]
        if table is None:
            continue
        parts.append(f"## {name.replace('_', ' ').capitalize()}\n\n{caption}\n\n{_pipe(table['lines'])}")
        parts += [f"By recipe\n\n{_pipe(table['by_recipe'])}"] if "by_recipe" in table else []
        single = {key: value for key, value in table.items() if key not in ("lines", "by_recipe", "verdicts")}
        parts += [f"- {key.replace('_', ' ')}: {json.dumps(value)}" for key, value in single.items()]
        parts += [f"- {_verdict(key, value)}" for key, value in table["verdicts"].items()]
    return "\n".join(parts) + "\n"


def _verdict(name: str, verdict: Row) -> str:
    figures = ", ".join(f"{key} {value}" for key, value in verdict["figures"].items())
    return f"**{name.replace('_', ' ')}** (asked {verdict['asked']}): {'holds' if verdict['holds'] else 'does not hold'}; {figures}"


def _pipe(lines: Sequence[Row]) -> str:
    if not lines:
        return "nothing\n"
    cells = [list(lines[0]), ["---"] * len(lines[0]), *([_cell(value) for value in line.values()] for line in lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
