"""Finished runs in a table: noise is not called a difference, each row has its own base, and what was not run is named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trainer.ablation_table import Run, Runs, Variant, compared, markdown, tabled
from trainer.config import tiny


@pytest.mark.parametrize(
    ("values", "against", "called"),
    [
        pytest.param([0.50, 0.52, 0.51], [0.51, 0.53, 0.50], "none", id="inside both"),
        pytest.param([0.60, 0.61, 0.62], [0.50, 0.51, 0.52], "higher", id="above both"),
        pytest.param([0.40, 0.41, 0.42], [0.50, 0.51, 0.52], "lower", id="below both"),
        pytest.param([0.60, 0.61, 0.62], [0.40, 0.51, 0.62], "none", id="inside the other's spread"),
        pytest.param([0.40, 0.51, 0.62], [0.60, 0.61, 0.62], "none", id="inside its own spread"),
        pytest.param([0.9], [0.1, 0.2, 0.3], None, id="one seed says nothing"),
        pytest.param([0.9, 0.8, 0.7], None, None, id="nothing to compare with"),
    ],
)
def test_a_difference_inside_the_spread_is_called_none(values: list[float], against: list[float] | None, called: str | None) -> None:
    cell = compared(values, against)
    assert (cell.called, cell.difference is None) == (called, called is None)
    assert cell.mean == pytest.approx(np.mean(values)) and cell.spread == pytest.approx(max(values) - min(values))


def run(variant: str, seed: int, **metrics: float) -> Run:
    return Run(variant=variant, seed=seed, made_of="", seconds=1, metrics=metrics)


def test_the_table_compares_each_row_with_its_own_base_and_names_what_was_not_run() -> None:
    variants = [
        Variant(name="base", config=tiny()),
        Variant(name="random", config=tiny()),
        Variant(name="narrow", config=tiny(), against="random", not_compared=("other",)),
        Variant(name="dual", config=tiny(), skipped="no second encoder"),
        Variant(name="late", config=tiny()),
    ]
    runs = [
        run(name, seed, auc=value + seed / 100, other=value) for name, value in (("base", 0.9), ("random", 0.6), ("narrow", 0.61)) for seed in (0, 1)
    ]
    table = tabled("vision", variants, runs, 2, {"steps": "2"})
    cells = {row.variant: row.cells.get("auc") for row in table.rows}
    assert [cell and cell.called for cell in cells.values()] == [None, "lower", "none", None, None]
    text = markdown(table)
    assert "| auc | 0.905 +- 0.010 | 0.605 +- 0.010, **-0.300** | 0.615 +- 0.010, none |" in text
    assert "| other | 0.900 +- 0.000 | 0.600 +- 0.000, **-0.300** | 0.610 +- 0.000 |" in text
    assert "narrow (against random)" in text and "**dual** not run: no second encoder." in text and "**late** not run: no time was left." in text


def test_two_processes_share_a_grid_by_naming_their_rows(tmp_path: Path) -> None:
    variants = [Variant(name="base", config=tiny()), Variant(name="late", config=replace(tiny(), precision="fp32"))]
    one, other = (Runs(tmp_path, "vision", variants, 2, {"steps": "2"}) for _ in range(2))
    assert [(v.name, seed) for v, seed in one.missing(["base"])] == [("base", 0), ("base", 1)]
    assert [(v.name, seed) for v, seed in other.missing(["late"])] == [("late", 0), ("late", 1)]
    for runs, variant in ((one, variants[0]), (other, variants[1])):
        for seed in (0, 1):
            runs.keep(variant, seed, {"auc": 0.5}, 1.0)
    assert [row.seeds for row in other.write_table().rows] == [2, 2] and other.missing() == []
    with pytest.raises(ValueError, match="no variant 'lat'; choose from 'base', 'late'"):
        one.missing(["lat"])
