"""What ablations leave behind: a JSON file for each finished run, and the table of what a variant's difference does.

A run is known by its variant, its seed and a digest of what it was made of. The table is made of these files alone; a difference is called one only
where it leaves the spread of both rows over their seeds, and "none" otherwise (docs/ablations.md).
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from trainer.config import TrainConfig

BASE = "base"
"""The variant that the others are compared with, unless they say otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One recipe of a grid, under every seed."""

    name: str
    config: TrainConfig
    against: str = BASE
    """The variant that this one is compared with: it differs in one thing from it."""
    not_compared: tuple[str, ...] = ()
    """Metrics that mean something else under this variant: shown, never called a difference."""
    skipped: str | None = None
    """Why it is not run."""


V = TypeVar("V", bound=Variant)


# --- Runs on disk -------------------------------------------------------------------------------------------------------------------------------


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Run(_Closed):
    """One finished run."""

    variant: str
    seed: int
    made_of: str
    """Digest of variant, seed and inputs."""
    seconds: float
    metrics: dict[str, float]


class Cell(_Closed):
    """One metric of one variant."""

    mean: float
    spread: float
    """Largest minus smallest over the seeds."""
    values: tuple[float, ...]
    """By seed."""
    difference: float | None = None
    """From the mean of the variant it is compared with; None for the base, for what is not comparable, and where one seed is all there is."""
    called: Literal["none", "higher", "lower"] | None = None
    """'none' where the difference lies inside the spread of either."""


class Row(_Closed):
    """One variant."""

    variant: str
    against: str
    seeds: int
    """Finished runs."""
    skipped: str | None
    cells: dict[str, Cell]


class Table(_Closed):
    """What a grid measured."""

    grid: str
    seeds: int
    settings: dict[str, str]
    rows: tuple[Row, ...]


class Runs(Generic[V]):
    """The runs of a grid, each a JSON file of one folder."""

    def __init__(self, out: Path, grid: str, variants: Sequence[V], seeds: int, inputs: Mapping[str, str]) -> None:
        """`inputs` names what all runs are made of, as digests or numbers. Raises ValueError for a folder with runs made of something else."""
        if len({_slug(variant.name) for variant in variants}) < len(variants):
            raise ValueError("two variants share a name; a run is known by its variant's")
        self.folder, self.grid, self.variants, self.seeds, self.inputs = out / grid, grid, tuple(variants), seeds, dict(inputs)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.done = self._finished()

    def _finished(self) -> dict[tuple[str, int], Run]:
        return {(v.name, seed): run for v in self.variants for seed in range(self.seeds) if (run := self._read(v, seed)) is not None}

    def missing(self, only: Sequence[str] = ()) -> list[tuple[V, int]]:
        """What is still to be run, variant by variant: of all of them, or of those named. Raises ValueError for a name that is no variant's."""
        if unknown := set(only) - {variant.name for variant in self.variants}:
            known = ", ".join(repr(variant.name) for variant in self.variants)
            raise ValueError(f"the grid {self.grid} has no variant {min(unknown)!r}; choose from {known}")
        wanted = [v for v in self.variants if v.skipped is None and (not only or v.name in only)]
        return [(v, seed) for v in wanted for seed in range(self.seeds) if (v.name, seed) not in self.done]

    def keep(self, variant: V, seed: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Write down a finished run, and the table as it now stands."""
        rounded = {name: round(value, 6) for name, value in metrics.items()}
        run = Run(variant=variant.name, seed=seed, made_of=self._made_of(variant, seed), seconds=round(seconds, 1), metrics=rounded)
        _write(self._path(variant, seed), run.model_dump_json(indent=1) + "\n")
        self.write_table()

    def write_table(self) -> Table:
        """`ablation.json` and `ablation.md`, of what other processes finished in the same folder too."""
        self.done = self._finished()
        table = tabled(self.grid, self.variants, list(self.done.values()), self.seeds, self.inputs)
        _write(self.folder / "ablation.json", table.model_dump_json(indent=1) + "\n")
        _write(self.folder / "ablation.md", markdown(table))
        return table

    def _path(self, variant: V, seed: int) -> Path:
        return self.folder / f"{_slug(variant.name)}-{seed}.json"

    def _made_of(self, variant: V, seed: int) -> str:
        facts = {name: value for name, value in asdict(variant).items() if name not in ("name", "against", "not_compared", "skipped")}
        return hashlib.sha256(json.dumps([facts, seed, self.inputs], sort_keys=True).encode()).hexdigest()

    def _read(self, variant: V, seed: int) -> Run | None:
        path = self._path(variant, seed)
        if variant.skipped is not None or not path.is_file():
            return None
        run = Run.model_validate_json(path.read_bytes())
        if run.made_of != self._made_of(variant, seed):
            raise ValueError(f"{path} was run with other settings or data; choose another --out, or remove it to run it again")
        return run


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


# --- The table ----------------------------------------------------------------------------------------------------------------------------------


def compared(values: Sequence[float], against: Sequence[float] | None) -> Cell:
    """Mean and spread over seeds, and the difference from what the variant is compared with.

    The spread is the range, not the standard deviation: of three seeds without any effect, 5 % of the differences leave the larger of two ranges and
    21 % the larger of two standard deviations (normal values, 200,000 draws).
    """
    mean, spread = float(np.mean(values)), float(np.ptp(values))
    if against is None or min(len(values), len(against)) < 2:
        return Cell(mean=mean, spread=spread, values=tuple(values))
    difference = mean - float(np.mean(against))
    inside = abs(difference) <= max(spread, float(np.ptp(against)))
    return Cell(
        mean=mean, spread=spread, values=tuple(values), difference=difference, called="none" if inside else "higher" if difference > 0 else "lower"
    )


def tabled(grid: str, variants: Sequence[Variant], runs: Sequence[Run], seeds: int, settings: Mapping[str, str]) -> Table:
    """Gather finished runs into the table of a grid."""
    found: dict[str, dict[str, list[float]]] = {}
    for variant in variants:
        of_variant = sorted((run for run in runs if run.variant == variant.name), key=lambda run: run.seed)
        found[variant.name] = {name: [run.metrics[name] for run in of_variant if name in run.metrics] for name in dict.fromkeys(_names(of_variant))}
    rows = []
    for variant in variants:
        base = {} if variant.name == BASE else found.get(variant.against, {})
        own = variant.not_compared
        cells = {name: compared(values, None if name in own else base.get(name)) for name, values in found[variant.name].items()}
        count = sum(run.variant == variant.name for run in runs)
        rows.append(Row(variant=variant.name, against=variant.against, seeds=count, skipped=variant.skipped, cells=cells))
    return Table(grid=grid, seeds=seeds, settings=dict(settings), rows=tuple(rows))


def _names(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        yield from run.metrics


def markdown(table: Table) -> str:
    """One line a metric, one column a variant: mean +- spread, then the difference or "none"."""
    run_rows = [row for row in table.rows if row.cells]
    names = dict.fromkeys(name for row in run_rows for name in row.cells)
    lines = [f"Grid `{table.grid}`, {table.seeds} seeds; {', '.join(f'{name} {_short(value)}' for name, value in table.settings.items())}.", ""]
    lines += ["Mean +- spread (largest minus smallest over the seeds); behind it the difference, or none where that lies inside the spread.", ""]
    if run_rows:
        lines += ["| | " + " | ".join(_heading(row, table.seeds) for row in run_rows) + " |", "|---" * (len(run_rows) + 1) + "|"]
        lines += [f"| {name} | " + " | ".join(_cell(row.cells.get(name)) for row in run_rows) + " |" for name in names]
        lines.append("")
    lines += [f"- **{row.variant}** not run: {row.skipped or 'no time was left'}." for row in table.rows if not row.cells]
    return "\n".join(lines).rstrip() + "\n"


def _short(value: str) -> str:
    return value[:12] if re.fullmatch(r"[0-9a-f]{64}", value) else value


def _heading(row: Row, seeds: int) -> str:
    notes = [] if row.against == BASE else [f"against {row.against}"]
    notes += [f"{row.seeds} of {seeds} seeds"] * (row.seeds < seeds)
    return row.variant + (f" ({', '.join(notes)})" if notes else "")


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = f"{cell.mean:.3f} +- {cell.spread:.3f}"
    if cell.difference is None:
        return text
    return f"{text}, none" if cell.called == "none" else f"{text}, **{cell.difference:+.3f}**"
