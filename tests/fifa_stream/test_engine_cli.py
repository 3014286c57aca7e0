"""`fifa-stream engine`: exit statuses for scripts, one line for every refusal, JSON where it is asked for."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engines.bundle import MANIFEST_NAME, bundled_engine, read_manifest, seal_manifest
from fifa_stream.cli import app
from fifa_stream.exits import ExitCode


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["engine", *arguments])


def one_line(text: str) -> str:
    """The error, which must be a single line."""
    (line,) = text.strip().splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(("--backend", "openvino"), "choose from onnxruntime, tensorrt, tensorrt-rtx", id="backend"),
        pytest.param(("--precision", "fp8"), "choose from fp32, fp16, bf16, int8", id="precision"),
        pytest.param(("--workspace", "much"), "write it as 1G or 512M", id="workspace"),
        pytest.param(("--opt-level", "9"), "outside 0 to 5", id="level"),
        pytest.param(("--compute-capability", "turing"), "write it as 8.9 or SM89", id="capability"),
    ],
)
def test_a_wrong_option_is_status_2(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    result = invoke("build", "--out", str(tmp_path / "out"), *arguments)
    assert result.exit_code == ExitCode.USAGE and words in one_line(result.stderr)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(("--precision", "int8"), "give --acceptance", id="int8 without a pack"),
        pytest.param(("--precision", "int8", "--acceptance", "nowhere"), "no acceptance pack", id="no pack"),
        pytest.param(("--opt-level", "2"), "are for plans", id="an option of plans"),
        pytest.param(("--backend", "tensorrt-rtx", "--max-shapes", "photo:1x3"), "which no part takes", id="unknown input"),
    ],
)
def test_a_build_that_cannot_be_made_is_status_4_and_leaves_nothing(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    result = invoke("build", "--out", str(tmp_path / "out"), *arguments)
    assert result.exit_code == ExitCode.ENGINE and words in one_line(result.stderr) and not list(tmp_path.iterdir())


def test_a_dry_run_prints_what_would_be_built(tmp_path: Path) -> None:
    result = invoke("build", "--out", str(tmp_path / "out"), "--precision", "fp16", "--dry-run", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["precision"] == "fp16" and not list(tmp_path.iterdir())


def test_a_source_that_is_not_the_pinned_one_is_never_built(tmp_path: Path) -> None:
    result = invoke("ensure", "--cache", str(tmp_path / "cache"), "--pinned-digest", "0" * 64)
    assert result.exit_code == ExitCode.ENGINE and "deploy the pinned bundle or change the pin" in one_line(result.stderr)
    assert not list(tmp_path.iterdir())


def test_ensure_points_a_link_of_a_known_name_at_the_build(tmp_path: Path) -> None:
    pin = read_manifest(bundled_engine()).digest
    arguments = ("ensure", "--cache", str(tmp_path / "cache"), "--pinned-digest", pin, "--link", str(tmp_path / "engine"), "--json")
    built = invoke(*arguments)
    assert built.exit_code == 0 and Path(json.loads(built.stdout)["folder"]) == (tmp_path / "engine").resolve()
    found = invoke(*arguments, "--wait", "0")
    assert found.exit_code == 0 and found.stdout == built.stdout
    absent = invoke(*arguments, "--wait", "0", "--precision", "fp16")
    assert absent.exit_code == ExitCode.ENGINE and "nobody has built" in absent.stderr


def test_a_bundle_whose_default_point_is_missing_is_told_in_one_line(tmp_path: Path) -> None:
    for path in bundled_engine().iterdir():
        if path.name != MANIFEST_NAME:
            (tmp_path / path.name).symlink_to(path)
    seal_manifest(tmp_path, read_manifest(bundled_engine()).model_copy(update={"default_operating_point": "none"}))
    result = invoke("inspect", str(tmp_path))
    assert result.exit_code == ExitCode.ENGINE and "default_operating_point 'none' is not in the bundle" in one_line(result.stderr)


def test_the_shipped_bundle_is_inspected_checked_and_examined() -> None:
    assert json.loads(invoke("inspect", "--json").stdout)["backend"] == "onnxruntime"
    row = json.loads(invoke("check", "--threads", "1", "--json").stdout)[0]
    assert (row["backend"], row["precision"], row["failed"]) == ("onnxruntime", "fp32", [])
    findings = {finding["subject"]: finding for finding in json.loads(invoke("doctor", "--json").stdout)}
    assert findings["bundle"]["state"] == findings["onnxruntime"]["state"] == "ok" and str(bundled_engine()) in findings["bundle"]["found"]
    assert all(finding["remedy"] for finding in findings.values() if finding["state"] != "ok")


def test_a_table_without_a_pack_is_status_2_and_a_broken_bundle_4(tmp_path: Path) -> None:
    assert invoke("check", "--table").exit_code == ExitCode.USAGE
    assert invoke("doctor", str(tmp_path)).exit_code == ExitCode.ENGINE
    assert invoke("check", str(tmp_path)).exit_code == ExitCode.ENGINE


def test_the_bench_prints_settings_that_the_program_takes() -> None:
    result = invoke("bench", "--threads", "1", "--faces", "1", "--faces", "2", "--rounds", "1", "--json")
    told = json.loads(result.stdout)
    assert {(timing["work"], timing["faces"]) for timing in told["timings"]} == {("score", 1), ("score", 2), ("explain", 1), ("explain", 2)}
    assert told["advice"]["threads"] == 1 and told["advice"]["max_batch"] in (1, 2)


def test_without_the_extra_a_build_names_it_and_a_check_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(sys.modules):
        if name in ("engines.build", "engines.ensure", "engines.precision"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = invoke("build", "--out", str(tmp_path / "out"))
    assert result.exit_code == ExitCode.USAGE and "pip install 'fifa-stream[build]'" in one_line(result.stderr)
    assert invoke("check", "--threads", "1").exit_code == 0
