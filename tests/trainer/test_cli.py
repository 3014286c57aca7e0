"""`fifa-train` starts without torch, and says what is wrong in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from trainer import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | None:
    monkeypatch.setattr(sys, "argv", ["fifa-train", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code  # type: ignore[return-value]


@pytest.mark.parametrize("arguments", [("--help",), ()], ids=["asked", "no-arguments"])
def test_help_names_the_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    assert not run(monkeypatch, *arguments)
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("annotate", "audit", "instruct", "train", "evaluate", "export"))


@pytest.mark.parametrize("command", ["annotate", "audit", "evaluate", "export", "instruct", "probe", "regions", "train"])
def test_every_command_has_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert not run(monkeypatch, command, "--help")
    assert "--data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(("train", "--run", "r"), "--data", id="missing-option"),
        pytest.param(("train", "--data", "d", "--run", "r", "--steps", "many"), "--steps", id="not-a-number"),
        pytest.param(
            ("train", "--data", "d", "--run", "r", "--recipe", "large"),
            "choose from small, small_continued, small_longer, small_marked, small_graded, small_branch, small_onward, small_averaged, "
            "small_located, plain_classifier, tiny",
            id="recipe",
        ),
        pytest.param(("train", "--data", "d", "--run", "r", "--stage", "third"), "choose vision, language or all", id="stage"),
        pytest.param(("train", "--data", "d", "--run", "r"), "--instructions", id="no-instructions"),
        pytest.param(("evaluate", "--dota", "d"), "--dota", id="unknown-option"),
        pytest.param(("evaluate", "--predictions", "p.jsonl"), "--bench", id="no-bench"),
        pytest.param(("evaluate", "--engine", "e"), "--data", id="no-data"),
        pytest.param(("evaluate", "--predictions", "p.jsonl", "--bench", "b", "--seal"), "leave --predictions", id="seal-of-another-system"),
        pytest.param(("evaluate", "--data", "d", "--out", "o", "--part", "select", "--seal"), "leave --predictions", id="seal-of-another-part"),
        pytest.param(("instruct", "--data", "d", "--annotations", "a", "--out", "o", "--part", "test"), "choose from train, select", id="part"),
        pytest.param(("annotate", "--data", "pairs:none", "--out", "o"), "none", id="no-such-set"),
        pytest.param(("annotate", "--data", "d", "--out", "o", "--share", "2"), "2.0 is no share", id="share"),
        pytest.param(
            ("instruct", "--data", "d", "--annotations", "a", "--out", "o", "--grammar", "latin"), "choose from training, held_out", id="grammar"
        ),
        pytest.param(("evaluate", "--data", "d", "--out", "o", "--baseline", "plain"), "give NAME=FILE", id="baseline"),
        pytest.param(("plot", "--run", "nowhere"), "nowhere holds no metrics.jsonl", id="no-metrics"),
        pytest.param(("ablate", "--grid", "all", "--out", "o"), "choose language, vision or families", id="grid"),
        pytest.param(("regions", "--data", "d", "--run", "r", "--steps", "0"), "--steps", id="no-steps"),
        pytest.param(("regions", "--data", "d", "--run", "r", "--into", "nowhere"), "no engine manifest at nowhere", id="into-nothing"),
        pytest.param(("regions", "--data", "d", "--run", "r", "--bundle-version", "2"), "give --into", id="version-of-nothing"),
        pytest.param(("export", "--data", "d", "--run", "r", "--out", "o", "--regions", "nowhere"), "fifa-train regions", id="no-parser"),
        pytest.param(
            ("export", "--data", "d", "--out", "o", "--no-bundle", "--acceptance", "a", "--regions", "r"),
            "no bundle is written",
            id="parser-of-no-bundle",
        ),
        pytest.param(("explain", "nowhere.png"), "nowhere.png is missing or no image", id="no-image"),
        pytest.param(("manipulate", "f.png", "--out", "o", "--recipe", "face_swap"), "--donor", id="no-donor"),
        pytest.param(("manipulate", "f.png", "--out", "o", "--recipe", "eye_warp", "--area", "2"), "choose one in (0, 1)", id="area"),
        pytest.param(("observe",), "observe", id="unknown-command"),
    ],
)
def test_a_wrong_option_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.delenv("FIFA_DATA", raising=False)
    assert run(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.startswith("fifa-train: ")
    assert captured.err.count("\n") == 1 and captured.out == ""


def test_rows_may_be_reworded_in_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Half a file must not take the place of the annotations, which took hours."""
    rows = tmp_path / "train.jsonl"
    rows.write_text('{"concepts":[],"markup":""}\n')
    command = ("rewrite", str(rows), "--out", str(rows), "--url", "http://127.0.0.1:9/v1", "--model", "m")
    assert not run(monkeypatch, *command)
    assert rows.read_text() == '{"concepts":[],"markup":"","reworded":false}\n'
    assert list(tmp_path.iterdir()) == [rows]


def test_a_data_folder_without_data_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr("trainer.portraits.PortraitCropper", lambda: None)  # needs the pretrained wheels
    assert run(monkeypatch, "annotate", "--data", str(tmp_path), "--out", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "dfdc") in error and "--data" in error and error.count("\n") == 1


def test_help_needs_no_torch() -> None:
    blocked = "import sys; sys.modules.update(torch=None, transformers=None, cv2=None, onnx=None); sys.argv = ['fifa-train', '--help']; "
    ended = subprocess.run([sys.executable, "-c", blocked + "from trainer.cli import main; main()"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
