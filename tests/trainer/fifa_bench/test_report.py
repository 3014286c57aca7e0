"""Reports: the same bytes for the same tables, bounds beside their figure, nothing from outside that a browser or a table would obey."""

import base64
import json
import re
from pathlib import Path

import pytest

from trainer.fifa_bench.report import as_html, as_json, as_markdown, write_report
from trainer.fifa_bench.score import Tables

EVIL = "<script>alert(1)</script> | [x](javascript:0)"


@pytest.fixture
def tables() -> Tables:
    return {
        "coverage": {"det/image": {"samples": 12.0, "answered": 11.0}},
        "curves": {
            "roc": {"all": {"fpr": [0.0, 0.5, 1.0], "tpr": [0.0, 0.9, 1.0]}, EVIL: {"fpr": [0.0, 1.0], "tpr": [0.0, 1.0]}},
            "reliability": {"all": {"predicted": [0.2, 0.8], "observed": [0.1, 0.9], "faces": [6, 6]}},
        },
        "detection": {"all": {"auc": 0.91234, "auc_low": 0.8, "auc_high": 0.95, "ece": 0.1}, EVIL: {"auc": 0.5, "ece": 0.25, "more": 1.0}},
        "concepts by depth": {"5": {"precision": 1.0, "recall": 0.5, "f1": 2 / 3}, "14": {"precision": 0.5, "recall": 0.5, "f1": 0.5}},
    }


def test_the_same_tables_give_the_same_bytes(tables: Tables, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_report(tables, tmp_path / name)
    for file in ("report.json", "report.md", "report.html"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() != b""


def test_the_json_holds_every_figure_and_refuses_what_is_no_number(tables: Tables) -> None:
    read = json.loads(as_json(tables))
    assert read["detection"]["all"] == {"auc": 0.91234, "auc_low": 0.8, "auc_high": 0.95, "ece": 0.1}
    assert read["curves"]["roc"]["all"]["tpr"] == [0.0, 0.9, 1.0]
    with pytest.raises(ValueError):
        as_json({"detection": {"all": {"auc": float("nan")}}})


def test_markdown_shows_bounds_beside_the_figure_and_a_dash_for_what_a_row_lacks(tables: Tables) -> None:
    lines = as_markdown(tables).splitlines()
    assert "| all | 0.912 (0.800 to 0.950) | 0.100 | - |" in lines
    assert "| det/image | 12 | 11 |" in lines
    rows = [line for line in lines if line.startswith("|")]
    assert not any("<script>" in row for row in rows)
    (evil,) = [row for row in rows if "script" in row]
    assert len(re.findall(r"(?<!\\)\|", evil)) == 5, "a bar in a name must not open a column"


def test_the_page_stands_alone_and_obeys_no_name(tables: Tables) -> None:
    page = as_html(tables, title=EVIL)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    images = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    assert len(images) == 3
    for image in images:
        assert base64.b64decode(image).startswith(b"\x89PNG")


def test_a_report_without_detection_and_concepts_has_no_plots() -> None:
    page = as_html({"curves": {"roc": {}, "reliability": {}}, "localisation": {"image": {"miou": 0.5}}})
    assert "<img" not in page and "0.500" in page
