"""The tables of `score` as JSON, as Markdown, and as one HTML file with its plots inside. The same tables give the same bytes.

All names in the tables (groups, families, measures) are taken as text from outside: Markdown and HTML escape them.
"""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from trainer.fifa_bench.score import EVERYONE, Tables

CURVES = "curves"
LOW, HIGH = "_low", "_high"
DPI = 110
DASH = "-"
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}div{overflow-x:auto}img{max-width:100%}"
    "th,td{border-bottom:1px solid #ddd;padding:.2rem .7rem;text-align:right;vertical-align:top}th:first-child,td:first-child{text-align:left}"
)


def write_report(tables: Tables, folder: Path, *, title: str = "FiFa-Bench") -> None:
    """Write report.json, report.md and report.html into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(as_json(tables), encoding="utf-8")
    (folder / "report.md").write_text(as_markdown(tables, title=title), encoding="utf-8")
    (folder / "report.html").write_text(as_html(tables, title=title), encoding="utf-8")


def as_json(tables: Tables) -> str:
    """Everything, curves included, at six significant digits. Raises ValueError for a figure that is not finite."""
    return json.dumps(_rounded(tables), indent=1, allow_nan=False, ensure_ascii=True) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


# --- Tables -----------------------------------------------------------------------------------------------------------------------------------


def as_markdown(tables: Tables, *, title: str = "FiFa-Bench") -> str:
    """One table a heading; bounds stand behind their figure."""
    lines = [f"# {_cell(title)}", ""]
    for heading, table in _shown_tables(tables):
        columns = _columns(table)
        lines += [f"## {_cell(heading)}", "", _line(["", *columns]), "|---" + "|---:" * len(columns) + "|"]
        lines += [_line([name, *(_with_bounds(row, column) for column in columns)]) for name, row in table.items()]
        lines.append("")
    return "\n".join(lines)


def _shown_tables(tables: Tables) -> list[tuple[str, Mapping[str, Mapping[str, Any]]]]:
    return [(heading, table) for heading, table in tables.items() if heading != CURVES and table]


def _columns(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Measures of all rows in the order of first use, bounds left out."""
    named = list(dict.fromkeys(column for row in table.values() for column in row))
    return [column for column in named if not any(column.endswith(end) and column.removesuffix(end) in named for end in (LOW, HIGH))]


def _with_bounds(row: Mapping[str, Any], column: str) -> str:
    if column not in row:
        return DASH
    low, high = row.get(column + LOW), row.get(column + HIGH)
    bounds = f" ({_number(low)} to {_number(high)})" if low is not None and high is not None else ""
    return _number(row[column]) + bounds


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return str(int(value)) if value == 0 or (value.is_integer() and abs(value) >= 2) else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    """Text that neither ends a cell nor opens HTML or a link."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    for mark in "\\|`*[]":
        escaped = escaped.replace(mark, "\\" + mark)
    return escaped


# --- HTML -------------------------------------------------------------------------------------------------------------------------------------


def as_html(tables: Tables, *, title: str = "FiFa-Bench") -> str:
    """One page without scripts or anything fetched; plots are embedded PNG."""
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>',
        f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>",
        "<p>Definitions: docs/fifa-bench.md. In brackets: 95 % interval over identities.</p>",
    ]
    plots = [("ROC", _roc_plot(tables)), ("Reliability", _reliability_plot(tables)), ("Concept F1 by depth", _depth_plot(tables))]
    parts += [_image(name, figure) for name, figure in plots if figure is not None]
    for heading, table in _shown_tables(tables):
        columns = _columns(table)
        head = "".join(f"<th>{html.escape(column)}</th>" for column in ("", *columns))
        body = "".join(
            f"<tr><td>{html.escape(name)}</td>" + "".join(f"<td>{html.escape(_with_bounds(row, c))}</td>" for c in columns) + "</tr>"
            for name, row in table.items()
        )
        parts.append(f"<h2>{html.escape(heading)}</h2><div><table><tr>{head}</tr>{body}</table></div>")
    return "\n".join([*parts, "</body></html>", ""])


def _image(name: str, figure: Figure) -> str:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return f'<h2>{html.escape(name)}</h2><img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure((width, height), dpi=DPI, layout="constrained")
    return figure, figure.add_subplot()


def _plain(name: str) -> str:
    """A label that matplotlib does not read as mathematics or hide."""
    return name.replace("$", r"\$").lstrip("_") or "?"


def _roc_plot(tables: Tables) -> Figure | None:
    curves = tables[CURVES]["roc"]
    if not curves:
        return None
    figure, axes = _figure(6, 5)
    axes.plot([0, 1], [0, 1], color="#bbb", linewidth=1)
    for name, curve in curves.items():
        axes.plot(
            curve["fpr"], curve["tpr"], linewidth=2 if name == EVERYONE else 1.2, label=_plain(f"{name} ({tables['detection'][name]['auc']:.3f})")
        )
    axes.set(xlabel="false positives among reals", ylabel="fakes found", xlim=(0, 1), ylim=(0, 1.01))
    axes.legend(fontsize=8, title="group (AUC)")
    return figure


def _reliability_plot(tables: Tables) -> Figure | None:
    curves = tables[CURVES]["reliability"]
    if not curves:
        return None
    figure, axes = _figure(6, 5)
    axes.plot([0, 1], [0, 1], color="#bbb", linewidth=1)
    for name, curve in curves.items():
        label = _plain(f"{name} (ECE {tables['detection'][name]['ece']:.3f})")
        axes.plot(curve["predicted"], curve["observed"], marker="o", markersize=3, linewidth=1, label=label)
    axes.set(xlabel="mean score of the bin", ylabel="share of fakes in the bin", xlim=(0, 1), ylim=(0, 1.01))
    axes.legend(fontsize=8)
    return figure


def _depth_plot(tables: Tables) -> Figure | None:
    table = tables.get("concepts by depth")
    if not table:
        return None
    figure, axes = _figure(6, 3.2)
    for measure in ("precision", "recall", "f1"):
        axes.plot(list(table), [row[measure] for row in table.values()], marker="o", label=measure)
    axes.set(xlabel="cells of FICT", ylim=(0, 1.01))
    axes.legend(fontsize=8)
    return figure
