"""The rules of the house as tests: who may import whom, what serving needs, what a wheel may hold, and that committed schemas are current."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from fifa_stream import schema

ROOT = Path(__file__).parent.parent
PACKAGES = ("engines", "fifa_stream", "trainer")
NOT_SERVING = {"engines.export"}
"""Modules of the serving packages that need the `export` extra."""
HEAVY = ("cv2", "torch", "transformers")
MAX_BUNDLE_BYTES = 45_000_000
MAX_OTHER_FILE_BYTES = 1_000_000
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules(*packages: str) -> dict[str, Path]:
    return {module_name(path): path for package in packages for path in sorted((ROOT / package).rglob("*.py"))}


SERVING = {name: path for name, path in modules("engines", "fifa_stream").items() if name not in NOT_SERVING}


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def canonical(requirement: str) -> str:
    name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_import_contracts_are_kept() -> None:
    done = subprocess.run([Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_serving_module_imports_without_torch_transformers_and_opencv() -> None:
    names = sorted(SERVING)
    done = run_python(f"import importlib, sys\nfor name in {HEAVY}: sys.modules[name] = None\nfor name in {names}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


def test_serving_imports_only_what_the_distribution_declares() -> None:
    declared = {canonical(requirement) for requirement in PYPROJECT["project"]["dependencies"]}
    extras = PYPROJECT["project"]["optional-dependencies"]
    serving_extras = ("build", "claims", "confluent", "demo", "otlp", "review", "tensorrt", "tensorrt-rtx", "video")
    declared |= {canonical(requirement) for extra in serving_extras for requirement in extras[extra]}
    providers = packages_distributions()
    for name, path in SERVING.items():
        for top in imported(path) - set(PACKAGES) - sys.stdlib_module_names:
            assert {canonical(distribution) for distribution in providers.get(top, [top])} & declared, f"{name} imports {top}, which is not declared"


def test_serving_lock_holds_every_dependency_at_a_hashed_version() -> None:
    for lock, extras in (("serve", ()), ("demo", ("demo",)), ("dev", ("annotate", "demo", "dev", "export", "otlp", "train"))):
        text = (ROOT / "requirements" / f"{lock}.lock").read_text()
        entries = re.split(r"\n(?=\S)", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).strip())
        assert all("--hash=sha256:" in entry for entry in entries)
        wanted = {canonical(requirement) for requirement in PYPROJECT["project"]["dependencies"]}
        wanted |= {canonical(requirement) for extra in extras for requirement in PYPROJECT["project"]["optional-dependencies"][extra]}
        assert wanted - {"fifa-stream", "torch"} <= {canonical(entry) for entry in entries}
        assert "://" not in text, f"{lock}.lock names a host; a lock must work with any index"


@pytest.mark.parametrize("name", ["cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"])
def test_nothing_is_pickled(name: str) -> None:
    assert [module for module, path in modules(*PACKAGES).items() if name in imported(path)] == []


def test_torch_files_are_never_loaded_or_saved_by_pickle() -> None:
    offenders = [module for module, path in modules(*PACKAGES).items() if re.search(r"\btorch\.(load|save)\(|allow_pickle", path.read_text())]
    assert offenders == []


def test_no_module_is_a_drawer() -> None:
    assert [name for name in modules(*PACKAGES) if name.rpartition(".")[2] in {"base", "common", "helpers", "misc", "utils"}] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_package_init_holds_a_docstring_and_at_most_a_version(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert ast.get_docstring(ast.Module(body, []))
        assert all(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__" for node in body[1:])


def test_only_the_cli_and_its_page_print() -> None:
    allowed = {"fifa_stream.cli", "trainer.cli"}
    calls = {
        name
        for name, path in modules(*PACKAGES).items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert calls <= allowed


def test_readme_tree_names_every_module_and_no_other() -> None:
    tree = re.search(r"^```\n(fifa_stream/.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert tree, "README.md has no annotated tree"
    sections = re.split(r"^(\w+)/", tree[1], flags=re.MULTILINE)[1:]
    named = {package: set(re.findall(r"\b(\w+)\.py\b", text)) for package, text in zip(sections[::2], sections[1::2], strict=True)}
    for package in PACKAGES:
        assert named[package] == {path.stem for path in (ROOT / package).rglob("*.py")} - {"__init__"}


def test_shipped_files_keep_their_size_limits() -> None:
    shipped = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    bundles = ROOT / "engines" / "bundles"
    for bundle in bundles.glob("*/"):
        assert sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) <= MAX_BUNDLE_BYTES
    large = {str(path.relative_to(ROOT)) for path in shipped if bundles not in path.parents and path.stat().st_size > MAX_OTHER_FILE_BYTES}
    assert large == set()


def test_every_bundle_ships_its_licence_and_notice() -> None:
    for bundle in (ROOT / "engines" / "bundles").glob("*/"):
        for name in ("WEIGHTS_LICENCE.txt", "NOTICE.txt"):
            assert (bundle / name).stat().st_size > 0


@pytest.mark.parametrize("name", schema.MODELS)
def test_committed_schema_is_the_generated_one(name: str) -> None:
    committed = (schema.schema_folder() / name).read_text(encoding="utf-8")
    assert committed == schema.schema_text(name), "run: make schemas"
    assert json.loads(committed)["$schema"] == schema.DIALECT


def test_code_and_pages_are_ascii_and_name_no_machine() -> None:
    pages = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml")]
    pages += [*(ROOT / "docs").rglob("*.md"), *modules(*PACKAGES).values(), *(ROOT / "tests").rglob("*.py")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert page.suffix != ".py" or text.isascii(), f"{page} has characters beyond ASCII"
        assert not re.search(r"(?<![\w.])/(work|home|root|tmp)/\w", text), f"{page} names a path of one machine"
