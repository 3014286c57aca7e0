"""The command line: one clear line and a documented status for every expected error, and a quick start."""

import importlib
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fifa_stream.analyze_video import VideoOptions
from fifa_stream.cli import app, reference_page
from fifa_stream.exits import EXPECTED_ERRORS, ExitCode
from fifa_stream.records import Query

UNREACHABLE = {"FIFA_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1", "FIFA_KAFKA__BOOTSTRAP_TIMEOUT_MS": "300", "FIFA_RUNTIME__HEALTH_PORT": "0"}
DOCS = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("FIFA_"):
            monkeypatch.delenv(name)


def invoke(*arguments: str, env: dict[str, str] | None = None) -> Any:
    return CliRunner().invoke(app, list(arguments), env=env or {})


def one_line(text: str) -> str:
    """The error, which must be a single line."""
    (line,) = text.strip().splitlines()
    return line


def test_the_documentation_is_what_the_code_says() -> None:
    assert DOCS.read_text("utf-8") == reference_page(), "run: fifa-stream reference > docs/configuration.md"


def test_help_imports_nothing_heavy() -> None:
    heavy = "numpy", "pydantic", "kafka", "onnxruntime", "PIL", "prometheus_client"
    code = f"import sys, fifa_stream.cli; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.strip() == "[]"


def test_every_expected_error_exists() -> None:
    for kinds in EXPECTED_ERRORS.values():
        for kind in kinds:
            module, _, name = kind.rpartition(".")
            assert issubclass(getattr(importlib.import_module(module), name), Exception)


def test_statuses_are_distinct_and_explained() -> None:
    assert len({code.value for code in ExitCode}) == len(ExitCode)
    assert all(code.meaning.endswith(".") for code in ExitCode)


def test_an_unreachable_broker_ends_run_with_3_and_one_line() -> None:
    environment = {**os.environ, **UNREACHABLE, "FIFA_TELEMETRY__LOG_LEVEL": "ERROR"}
    ended = subprocess.run([sys.executable, "-m", "fifa_stream.cli", "run"], capture_output=True, text=True, env=environment, timeout=60)
    assert ended.returncode == ExitCode.BROKER
    assert "127.0.0.1:1" in one_line(ended.stderr)


@pytest.mark.parametrize(
    "arguments",
    [pytest.param(("topics", "create"), id="topics create"), pytest.param(("send", str(DOCS)), id="send")],
)
def test_other_commands_say_the_same_of_an_unreachable_broker(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments, env=UNREACHABLE)
    assert result.exit_code == ExitCode.BROKER
    assert "127.0.0.1:1" in one_line(result.stderr)


def test_the_bootstrap_option_wins_over_the_settings() -> None:
    result = invoke("topics", "create", "--bootstrap", "127.0.0.1:2", env=UNREACHABLE)
    assert "127.0.0.1:2" in one_line(result.stderr)


@pytest.mark.parametrize("command", ["run", "send", "topics"])
def test_a_wrong_setting_is_status_2_and_one_line(command: str) -> None:
    arguments = {"run": ["run"], "send": ["send", str(DOCS)], "topics": ["topics", "create"]}[command]
    result = invoke(*arguments, env={"FIFA_KAFKA__SESSION_TIMEOUT_MS": "soon"})
    assert result.exit_code == ExitCode.USAGE
    assert "FIFA_KAFKA__SESSION_TIMEOUT_MS" in one_line(result.stderr)


def test_a_missing_settings_file_is_status_2(tmp_path: Path) -> None:
    result = invoke("run", "--config", str(tmp_path / "none.toml"))
    assert result.exit_code == ExitCode.USAGE
    assert "none.toml" in one_line(result.stderr)


def test_an_unreadable_image_is_not_sent(tmp_path: Path) -> None:
    result = invoke("send", str(tmp_path / "none.png"), env=UNREACHABLE)
    assert result.exit_code == ExitCode.SOME_FAILED
    assert "none.png" in one_line(result.stderr)


def test_a_folder_without_a_bundle_is_status_4(tmp_path: Path) -> None:
    result = invoke("engine", "inspect", str(tmp_path))
    assert result.exit_code == ExitCode.ENGINE
    assert str(tmp_path) in one_line(result.stderr)


def test_an_unexpected_error_keeps_its_traceback_and_is_status_70(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(frames: Path | None, out: Path) -> int:
        raise ZeroDivisionError("zero")

    monkeypatch.setitem(sys.modules, "fifa_stream.demo", stand_in(run_demo=broken))
    result = invoke("demo")
    assert result.exit_code == ExitCode.STOPPED
    assert "Traceback" in result.stderr and "ZeroDivisionError: zero" in result.stderr


def stand_in(**functions: Any) -> types.ModuleType:
    module = types.ModuleType("stand_in")
    for name, function in functions.items():
        setattr(module, name, function)
    return module


@pytest.mark.parametrize(
    ("options", "query"),
    [
        pytest.param((), None, id="no question"),
        pytest.param(("--region", "right_cheek"), Query(region="right_cheek"), id="region"),
        pytest.param(("--region", "right cheek"), Query(region="right_cheek"), id="region in words"),
        pytest.param(("--box", "1,2,3,4"), Query(box_xyxy=(1.0, 2.0, 3.0, 4.0)), id="box"),
    ],
)
def test_analyze_hands_its_options_on(monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], query: Query | None) -> None:
    calls: list[dict[str, Any]] = []

    def analyze_paths(paths: list[Path], **rest: Any) -> int:
        calls.append({"paths": paths, **rest})
        return 1

    monkeypatch.setitem(sys.modules, "fifa_stream.analyze", stand_in(analyze_paths=analyze_paths))
    result = invoke("analyze", "a.png", "b", "--crop", "--explain", "always", "--json", "--html", "page.html", "--fps", "2", *options)
    assert result.exit_code == ExitCode.SOME_FAILED, "analyze_paths says that an image failed"
    expected = {"paths": [Path("a.png"), Path("b")], "engine": None, "crop": True, "query": query, "explain": "always"}
    assert calls == [expected | {"as_json": True, "html": Path("page.html"), "video": VideoOptions(fps=2)}]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        pytest.param(("--region", "nose", "--box", "1,2,3,4"), ("--region 'nose'", "--box '1,2,3,4'", "ask one"), id="two questions"),
        pytest.param(("--box", "nose"), ("--box 'nose'", "x0,y0,x1,y1", "--region"), id="box without numbers"),
        pytest.param(("--region", "1,2,3,4"), ("--region '1,2,3,4'", "right_cheek", "--box"), id="region of numbers"),
        pytest.param(("--region", "third_eye"), ("--region 'third_eye'", "right_cheek"), id="no such concept"),
        pytest.param(("--region", ""), ("--region ''", "right_cheek"), id="no name"),
        pytest.param(("--box", "4,3,2,1"), ("--box box '4,3,2,1'", "x0 < x1"), id="box inside out"),
        pytest.param(("--box", "1,2,3"), ("--box '1,2,3'", "four numbers"), id="box of three"),
        pytest.param(("--box", "1,2,3,nan"), ("'1,2,3,nan'", "y0 < y1"), id="box of NaN"),
        pytest.param(("--box", "1,2,3\n,x"), ("--box", "four numbers"), id="two lines"),
    ],
)
@pytest.mark.parametrize("command", ["analyze", "send"])
def test_a_question_that_makes_no_sense_is_status_2_and_one_line(command: str, options: tuple[str, ...], parts: tuple[str, ...]) -> None:
    result = invoke(command, "a.png", *options)
    assert result.exit_code == ExitCode.USAGE
    assert all(part in one_line(result.stderr) for part in parts)


def test_an_unknown_policy_is_status_2() -> None:
    assert invoke("analyze", "a.png", "--explain", "sometimes").exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("options", "query"),
    [
        pytest.param((), None, id="no question"),
        pytest.param(("--region", "right cheek"), Query(region="right_cheek"), id="region in words"),
        pytest.param(("--box", "1,2,3,4"), Query(box_xyxy=(1.0, 2.0, 3.0, 4.0)), id="box"),
    ],
)
def test_send_hands_the_question_on(monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], query: Query | None) -> None:
    asked: list[Query | None] = []

    def send_images(kafka: Any, images: list[Path], *, query: Query | None, **rest: Any) -> int:
        asked.append(query)
        return len(images)

    monkeypatch.setitem(sys.modules, "fifa_stream.send", stand_in(send_images=send_images, LargeImages=None))
    result = invoke("send", "a.png", *options)
    assert (result.exit_code, result.stdout, asked) == (ExitCode.OK, "1 sent to fifa.frames\n", [query])


@pytest.mark.parametrize("command", ["list", "replay"])
def test_a_reason_that_is_none_is_refused_before_the_broker_is_asked(command: str) -> None:
    told = CliRunner().invoke(app, ["dead-letters", command, "--reason", "no_such", "--bootstrap", "127.0.0.1:1"])
    assert told.exit_code == ExitCode.USAGE
    assert "--reason 'no_such' is none; choose from empty_value" in told.output
