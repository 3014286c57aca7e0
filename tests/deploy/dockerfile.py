"""A Dockerfile read as instructions, and its stages run without a container: what lies under a folder of the test stands for the image's root."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from docker.utils.build import PatternMatcher

ROOT = Path(__file__).resolve().parents[2]
IN_IMAGE = re.compile(r"(?<![\w./])/(?=(?:build|opt)\b)")
"""Where a path begins that is written to while an environment is made."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its continued lines joined."""

    keyword: str
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments without flags; of the JSON form, its items."""
        return json.loads(self.text) if self.text.startswith("[") else [word for word in shlex.split(self.text) if not word.startswith("--")]

    @property
    def pairs(self) -> dict[str, str]:
        """NAME=VALUE of ENV, LABEL and ARG; an ARG without a value is left out."""
        return dict(word.split("=", 1) for word in shlex.split(self.text) if "=" in word)

    def flag(self, name: str) -> str | None:
        """The value of --name=VALUE."""
        return next((word.removeprefix(f"--{name}=") for word in shlex.split(self.text) if word.startswith(f"--{name}=")), None)


@dataclass(frozen=True, slots=True)
class Stage:
    """From one FROM to the next."""

    name: str
    base: str
    instructions: tuple[Instruction, ...]

    def all(self, *keywords: str) -> list[Instruction]:
        """Those with one of the keywords, in order."""
        return [one for one in self.instructions if one.keyword in keywords]


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """Global arguments, then stages by name in order."""

    arguments: Mapping[str, str]
    stages: Mapping[str, Stage]

    @classmethod
    def read(cls, path: Path) -> "Dockerfile":
        """Every stage must have a name."""
        lines = [line for line in path.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
        logical = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
        found = [Instruction(*line.split(maxsplit=1)) for line in logical if line.strip()]
        starts = [index for index, one in enumerate(found) if one.keyword == "FROM"]
        stages = {}
        for start, end in zip(starts, [*starts[1:], len(found)], strict=True):
            base, _, name = found[start].words
            stages[name] = Stage(name, base, tuple(found[start + 1 : end]))
        return cls({name: value for one in found[: starts[0]] for name, value in one.pairs.items()}, stages)

    def chain(self, name: str) -> list[Stage]:
        """A stage with all it is built from, the first one first."""
        stage = self.stages[name]
        return [*(self.chain(stage.base) if stage.base in self.stages else []), stage]


def context_files(context: Path) -> Iterator[Path]:
    """What the .dockerignore of `context` lets through, relative to it."""
    rules = (context / ".dockerignore").read_text().splitlines()
    matcher = PatternMatcher([rule for rule in rules if rule and not rule.startswith("#")])
    for path in matcher.walk(str(context)):
        if (context / path).is_file():
            yield Path(path)


class BuildWithoutContainer:
    """Runs WORKDIR, ARG, ENV, COPY and RUN as they stand; absolute paths under /build and /opt become folders of `root`, `python` is this one."""

    def __init__(self, dockerfile: Dockerfile, context: Path, root: Path, **arguments: str) -> None:
        """`arguments` are what --build-arg gives."""
        self._dockerfile, self._context, self._root, self._given = dockerfile, context, root, arguments
        self._files = sorted(context_files(context))

    def run(self, name: str) -> None:
        """Build a stage with all it is built from. AssertionError with what it said for an instruction that fails."""
        for stage in self._dockerfile.chain(name):
            folder, values = self._root, {}
            for one in stage.instructions:
                if one.keyword == "WORKDIR":
                    folder = self._place(one.text)
                    folder.mkdir(parents=True, exist_ok=True)
                elif one.keyword == "ARG":
                    argument = one.text.partition("=")[0]
                    values |= {argument: self._given.get(argument) or one.pairs.get(argument) or self._dockerfile.arguments[argument]}
                elif one.keyword == "ENV":
                    values |= one.pairs
                elif one.keyword == "COPY":
                    self._copy(one, folder, values)
                else:
                    assert one.keyword == "RUN", f"{one.keyword} is not known here"
                    self._shell(one, folder, values)

    def _place(self, path: str) -> Path:
        return self._root / path.removeprefix("/")

    def _copy(self, one: Instruction, folder: Path, values: Mapping[str, str]) -> None:
        *sources, target = (re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], word) for word in one.words)
        if one.flag("from") is not None:
            assert sources == [target], "stages share one folder here: a path must keep its name"
            return
        place = self._place(target) if target.startswith("/") else folder / target
        for source in sources:
            inside = [path for path in self._files if path == Path(source) or path.is_relative_to(source)]
            assert inside, f"COPY {source}: not in the build context"
            for path in inside:
                is_file = path == Path(source)
                copied = (place / path.name if target.endswith("/") else place) if is_file else place / path.relative_to(source)
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._context / path, copied)

    def _shell(self, one: Instruction, folder: Path, values: Mapping[str, str]) -> None:
        command = re.sub(r"^(?:--\S+\s+)+", "", one.text)
        command = IN_IMAGE.sub(f"{self._root}/", command)
        environment = {**os.environ, **values, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
