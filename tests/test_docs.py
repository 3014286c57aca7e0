"""The pages under docs/: what they link to and what they name exists, and what ends the program is explained."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from fifa_stream import cli
from fifa_stream.config import ENV_DELIMITER, ENV_PREFIX, Settings
from fifa_stream.connect import Step
from fifa_stream.exits import EXPECTED_ERRORS, ExitCode

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
OPERATOR_PAGES = [DOCS / f"{name}.md" for name in ("capacity", "install", "privacy", "secure", "troubleshoot", "tune", "upgrade")]
TROUBLESHOOT = (DOCS / "troubleshoot.md").read_text("utf-8")


def links(page: Path) -> Iterator[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    missing = [target for target in links(page) if not (page.parent / target.partition("#")[0]).exists()]
    assert missing == []


def settings() -> set[str]:
    found = set()
    for section, field in Settings.model_fields.items():
        assert field.annotation is not None
        found |= {f"{section}.{name}" for name in field.annotation.model_fields}
    return found


@pytest.mark.parametrize("page", OPERATOR_PAGES, ids=lambda page: page.stem)
def test_settings_and_variables_that_a_page_names_exist(page: Path) -> None:
    text, known = page.read_text("utf-8"), settings()
    sections = "|".join(Settings.model_fields)
    named = set(re.findall(rf"`((?:{sections})\.[a-z_0-9]+)`", text))
    named |= {name.removeprefix(ENV_PREFIX).lower().replace(ENV_DELIMITER, ".") for name in re.findall(rf"\b{ENV_PREFIX}[A-Z_]+__[A-Z_0-9]+", text)}
    assert named <= known, named - known
    assert named or page.stem == "capacity", "a page for operators that names no setting"


def commands(command: Any, name: str = "fifa-stream") -> Iterator[tuple[str, set[str]]]:
    """Every command with its options; typer brings a click of its own, so it is asked for what it has."""
    yield name, {option for parameter in command.params for option in parameter.opts}
    for below, one in getattr(command, "commands", {}).items():
        yield from commands(one, f"{name} {below}")


@pytest.mark.parametrize("page", OPERATOR_PAGES, ids=lambda page: page.stem)
def test_commands_and_options_that_a_page_names_exist(page: Path) -> None:
    known = dict(commands(typer.main.get_command(cli.app)))
    text = page.read_text("utf-8").replace("\\\n", " ")
    shown = re.findall(r"^(?:[A-Z_]+=\S+ )*(fifa-stream .*)$", text, flags=re.MULTILINE) + re.findall(r"`(fifa-stream [^`]*)`", text)
    for line in shown:
        words = line.partition("#")[0].split()
        name = max((" ".join(words[:length]) for length in range(1, 4) if " ".join(words[:length]) in known), key=len)
        assert name != "fifa-stream" or words[1].startswith("-"), f"{line}: no such command"
        assert {word for word in words if word.startswith("--")} <= known[name] | {"--help"}, line


@pytest.mark.parametrize("page", OPERATOR_PAGES, ids=lambda page: page.stem)
def test_make_targets_that_a_page_names_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    text = page.read_text("utf-8")
    named = set(re.findall(r"^make ([a-z-]+)", text, flags=re.MULTILINE)) | set(re.findall(r"`make ([a-z-]+)", text))
    assert named <= targets


@pytest.mark.parametrize("page", OPERATOR_PAGES, ids=lambda page: page.stem)
def test_metrics_that_a_page_names_exist(page: Path) -> None:
    known = set(re.findall(r"^\| `(fifa_\w+)` \|", (DOCS / "configuration.md").read_text("utf-8"), flags=re.MULTILINE))
    assert known
    assert set(re.findall(r"`(fifa_[a-z_]+)`", page.read_text("utf-8"))) <= known


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name)
def test_every_exit_status_is_explained(code: ExitCode) -> None:
    assert f"| {code.value} | {code.name} |" in TROUBLESHOOT
    expected = {kind.rpartition(".")[2] for kind in EXPECTED_ERRORS.get(code, set())}
    if expected:
        section = TROUBLESHOOT.partition(f"## Status {code.value}\n")[2].partition("\n## ")[0]
        assert {name for name in expected if name not in section} == set()


def test_every_step_towards_a_broker_is_explained() -> None:
    assert [step.value for step in Step if f"| {step.value} |" not in TROUBLESHOOT] == []
