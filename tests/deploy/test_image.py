"""The image without a container runtime: its Dockerfile read, its environment made by its own commands, its entry point on a read-only root.

What no test here sees: the base image's Python 3.12 at work, and the GPU.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement

from .dockerfile import ROOT, BuildWithoutContainer, Dockerfile, context_files

DOCKERFILE_PATH = ROOT / "deploy" / "Dockerfile"
DOCKERFILE = Dockerfile.read(DOCKERFILE_PATH)
TARGETS = ("cpu", "gpu")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAX_ENVIRONMENT_BYTES = 300_000_000
GLIBC = {f"lib{name}" for name in ("c.so.6", "dl.so.2", "m.so.6", "pthread.so.0", "rt.so.1", "util.so.1")}
IN_BASE_IMAGE = GLIBC | {"ld-linux-x86-64.so.2", "linux-vdso.so.1", "libgcc_s.so.1", "libstdc++.so.6", "libz.so.1"}
"""Shared libraries of the packages that dpkg and apt need, which are in every slim image."""
READ_ONLY = "mount --make-rprivate / && mount -o remount,ro,bind / && mount -t tmpfs -o mode=1777 tmpfs /tmp && cd /tmp"
SANDBOX = f"{READ_ONLY} && exec setpriv --bounding-set=-all --inh-caps=-all"


def pins(lock: str) -> dict[str, tuple[str, Marker | None]]:
    """Version and marker of each package of requirements/NAME.lock."""
    found = {}
    for line in (ROOT / "requirements" / f"{lock}.lock").read_text().splitlines():
        if line and not line.startswith((" ", "#")):
            requirement = Requirement(line.removesuffix("\\").strip())
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            found[requirement.name] = (specifier.version, requirement.marker)
    return found


def test_hadolint_finds_nothing() -> None:
    linted = subprocess.run([Path(sys.executable).with_name("hadolint"), DOCKERFILE_PATH], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    careless = tmp_path / "Dockerfile"
    careless.write_text("FROM python:latest\nRUN pip install numpy\nENTRYPOINT fifa-stream\n")
    linted = subprocess.run([Path(sys.executable).with_name("hadolint"), careless], capture_output=True, text=True, check=False)
    assert linted.returncode == 1
    assert {"DL3007", "DL3013", "DL3025"} <= set(re.findall(r"DL\d+", linted.stdout))


def copied() -> list[str]:
    """Every path of the context that is copied, with the default arguments."""
    sources = []
    for stage in DOCKERFILE.stages.values():
        arguments = {name: value for one in stage.all("ARG") for name, value in one.pairs.items()}
        for one in stage.all("COPY"):
            if one.flag("from") is None:
                sources += [re.sub(r"\$\{(\w+)\}", lambda found, known=arguments: known[found[1]], word) for word in one.words[:-1]]
    return sources


def test_every_copied_path_is_in_the_context_and_little_else_is() -> None:
    allowed = sorted(context_files(ROOT))
    sources = copied()
    assert {"engines", "fifa_stream", "trainer", "pyproject.toml", "requirements/cpu.lock", "requirements/gpu.lock"} <= set(sources)
    for source in sources:
        assert any(path == Path(source) or path.is_relative_to(source) for path in allowed), f"{source} does not reach the build"
    idle = {str(path) for path in allowed if not any(path.is_relative_to(source) for source in sources)}
    assert idle <= {".dockerignore", *(f"requirements/{lock}.lock" for lock in ("demo", "dev", "serve"))}
    assert not [path for path in allowed if "__pycache__" in path.parts or path.suffix == ".pyc"]


def test_every_base_is_the_argument_and_its_default_has_a_digest() -> None:
    bases = {stage.base for stage in DOCKERFILE.stages.values()} - set(DOCKERFILE.stages)
    assert bases == {"${PYTHON_IMAGE}"}
    assert re.fullmatch(r"python:3\.12-slim-bookworm@sha256:[0-9a-f]{64}", DOCKERFILE.arguments["PYTHON_IMAGE"])


@pytest.mark.parametrize(
    ("image", "status"),
    [
        pytest.param(DOCKERFILE.arguments["PYTHON_IMAGE"], 0, id="the default"),
        pytest.param("mirror.example:5000/python:3.12@sha256:" + "0" * 64, 0, id="a mirror's"),
        pytest.param("python:3.12-slim-bookworm", 1, id="a tag alone"),
        pytest.param("", 1, id="nothing"),
    ],
)
def test_a_base_without_a_digest_ends_the_build_before_anything_is_installed(image: str, status: int) -> None:
    first = DOCKERFILE.stages["wheel"].all("RUN", "COPY")[0]
    ended = subprocess.run(["sh", "-c", first.text], env={"PYTHON_IMAGE": image}, capture_output=True, text=True, check=False)
    assert ended.returncode == status
    assert bool(ended.stderr) == bool(status)
    for target in TARGETS:
        before = {one.flag("from") for stage in DOCKERFILE.chain(f"{target}-environment") for one in stage.all("COPY")}
        assert "wheel" in before, "BuildKit leaves out a stage that no other needs"


def test_packages_come_as_wheels_by_hash_and_nothing_is_resolved() -> None:
    commands = [command for stage in DOCKERFILE.stages.values() for one in stage.all("RUN") for command in re.split(r"\s&&\s", one.text)]
    pips = [command.split() for command in commands if re.search(r"\bpip\b.*\b(install|wheel)\b", command)]
    assert len(pips) == 5
    for words in pips:
        assert {"--no-deps", "--no-cache-dir"} <= set(words)
        assert "--no-index" in words or {"--require-hashes", "--only-binary=:all:", "--requirement"} <= set(words), " ".join(words)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_as_a_numeric_user_without_a_shell_and_stops_on_sigterm(target: str) -> None:
    last = {one.keyword: one for stage in DOCKERFILE.chain(target) for one in stage.instructions}
    assert last["USER"].text == "10001:10001"
    assert last["STOPSIGNAL"].text == "SIGTERM"
    assert (last["ENTRYPOINT"].words, last["CMD"].words) == (["fifa-stream"], ["run"])
    assert last["ENTRYPOINT"].text.startswith("[") and last["CMD"].text.startswith("[")
    assert "HEALTHCHECK" not in last and "VOLUME" not in last


@pytest.mark.parametrize("target", TARGETS)
def test_only_temporary_files_and_engines_have_a_place_to_be_written(target: str) -> None:
    environment = {name: value for stage in DOCKERFILE.chain(target) for one in stage.all("ENV") for name, value in one.pairs.items()}
    assert environment["HOME"] == "/tmp" and environment["PYTHONDONTWRITEBYTECODE"] == "1"
    assert environment["PATH"].startswith("/opt/fifa/bin:")
    assert not [name for name in environment if name.startswith("FIFA_")], "a variable of the image would win over a mounted settings file"
    (prepared,) = DOCKERFILE.stages["runtime"].all("RUN")
    assert re.findall(r"--owner=10001 .*?(/\S+)", prepared.text) == ["/engines"]


def test_only_the_image_with_a_gpu_asks_for_one() -> None:
    asked = {target: " ".join(one.text for stage in DOCKERFILE.chain(target) for one in stage.all("ENV")) for target in TARGETS}
    assert "NVIDIA" not in asked["cpu"]
    assert "NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility" in asked["gpu"]


@pytest.mark.parametrize("target", TARGETS)
def test_labels_say_what_it_is_from_which_commit_and_under_which_licence(target: str) -> None:
    labels = {name: value for stage in DOCKERFILE.chain(target) for one in stage.all("LABEL") for name, value in one.pairs.items()}
    prefix = "org.opencontainers.image."
    asked = {"title", "description", "licenses", "version", "revision", "created", "base.name"}
    assert set(labels) == {prefix + name for name in asked}
    assert labels[prefix + "licenses"] == PYPROJECT["project"]["license"]


def test_the_images_hold_what_serving_is_locked_to() -> None:
    serve, cpu, gpu = pins("serve"), pins("cpu"), pins("gpu")
    assert serve.items() <= cpu.items()
    assert cpu.items() <= gpu.items()


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        pytest.param("cpu", ("claims", "confluent", "otlp"), id="cpu"),
        pytest.param("gpu", ("build", "claims", "confluent", "otlp", "tensorrt-rtx"), id="gpu"),
    ],
)
def test_a_lock_holds_its_extras_by_hash_for_the_python_of_the_image(lock: str, extras: tuple[str, ...]) -> None:
    locked, text = pins(lock), (ROOT / "requirements" / f"{lock}.lock").read_text()
    linux = default_environment() | {
        "python_version": "3.12",
        "python_full_version": "3.12.15",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
    }
    wanted = [Requirement(line) for extra in extras for line in PYPROJECT["project"]["optional-dependencies"][extra]]
    for requirement in wanted:
        if requirement.name != "fifa-stream":
            version, marker = locked[requirement.name]
            assert version in requirement.specifier and (marker is None or marker.evaluate(linux)), requirement
    assert "://" not in text
    entries = re.split(r"\n(?=[a-z])", text.split("\n", 2)[2])
    assert len(entries) == len(locked) and all("--hash=sha256:" in entry for entry in entries)


def test_the_wheel_is_built_by_the_locked_build_system() -> None:
    locked = pins("wheel")
    for line in PYPROJECT["build-system"]["requires"]:
        requirement = Requirement(line)
        assert locked[requirement.name][0] in requirement.specifier
    assert PYPROJECT["dependency-groups"]["wheel"] == PYPROJECT["build-system"]["requires"]


@pytest.fixture(scope="module")
def built() -> Iterator[Path]:
    """The root under which the commands of the Dockerfile made the environment of the CPU image."""
    with tempfile.TemporaryDirectory(prefix="fifa-image-", dir="/var/tmp") as name:
        root = Path(name)
        root.chmod(0o755)
        BuildWithoutContainer(DOCKERFILE, ROOT, root).run("wheel")
        BuildWithoutContainer(DOCKERFILE, ROOT, root).run("cpu-environment")
        yield root


@pytest.fixture
def entry_point(built: Path) -> list[str]:
    """Begins a command in the environment: the whole root read-only, an empty /tmp, no network, no capabilities; `fifa-stream` follows."""
    probe = subprocess.run(["unshare", "--mount", "--net", "sh", "-c", f"{SANDBOX} true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"needs root and namespaces of mounts and networks: {probe.stderr.strip()}")
    run = f'{SANDBOX} env -i HOME=/tmp PATH="$0" PYTHONDONTWRITEBYTECODE=1 "$@"'
    return ["unshare", "--mount", "--net", "sh", "-c", run, f"{built}/opt/fifa/bin:{os.defpath}"]


def said(command: list[str]) -> str:
    """Standard output; AssertionError for another status than 0."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_entry_point_starts_and_judges_a_frame_on_a_read_only_root_without_a_network(built: Path, entry_point: list[str]) -> None:
    (portrait,) = (built / "opt" / "fifa").glob("lib/python*/site-packages/fifa_stream/demo_frames/astronaut.jpg")
    assert "Usage: fifa-stream" in said([*entry_point, "fifa-stream", "--help"])
    assert "sha256 ok" in said([*entry_point, "fifa-stream", "engine", "inspect"])
    verdict = json.loads(said([*entry_point, "fifa-stream", "analyze", "--json", str(portrait)]))
    assert len(verdict["faces"]) == 1 and 0 <= verdict["fake_score"] <= 1


@pytest.mark.slow
def test_the_root_of_that_test_cannot_be_written(built: Path, entry_point: list[str]) -> None:
    refused = subprocess.run([*entry_point, "touch", str(built / "opt" / "fifa" / "written")], capture_output=True, text=True, check=False)
    assert "Read-only file system" in refused.stderr


@pytest.mark.slow
def test_the_environment_is_small_whole_and_readable_for_any_user(built: Path) -> None:
    (packages,) = (built / "opt" / "fifa").glob("lib/python*/site-packages")
    files = [path for path in packages.rglob("*") if path.is_file()]
    bundle = packages / "engines" / "bundles"
    assert sum(path.stat().st_size for path in files if not path.is_relative_to(bundle)) <= MAX_ENVIRONMENT_BYTES
    assert all(path.stat().st_mode & 0o444 == 0o444 and not path.stat().st_mode & 0o022 for path in files)
    names = {path.name.partition("-")[0].lower() for path in packages.glob("*.dist-info")}
    assert names == {name.replace("-", "_") for name, (_, marker) in pins("cpu").items() if marker is None or marker.evaluate()} | {"fifa_stream"}
    assert {"pip", "hatchling", "torch"}.isdisjoint(names)


@pytest.mark.slow
def test_the_environment_needs_no_shared_library_that_the_base_lacks(built: Path) -> None:
    libraries = [path for path in (built / "opt" / "fifa").rglob("*.so*") if path.is_file()]
    assert libraries
    for library in libraries:
        listed = subprocess.run(["ldd", library], capture_output=True, text=True, check=False).stdout
        found = re.findall(r"^\s*(\S+)(?: => (.*?))? \(0x", listed, flags=re.MULTILINE)
        assert "not found" not in listed, f"{library.name}: {listed}"
        assert {Path(name).name for name, place in found if not place.startswith(str(built))} <= IN_BASE_IMAGE, library.name


@pytest.mark.slow
def test_byte_code_is_bound_to_its_source_and_the_wheel_to_the_files_not_to_their_times(built: Path, tmp_path: Path) -> None:
    (packages,) = (built / "opt" / "fifa").glob("lib/python*/site-packages")
    compiled = next((packages / "fifa_stream" / "__pycache__").glob("cli.*.pyc")).read_bytes()
    assert int.from_bytes(compiled[4:8], "little") == 0b11, "not a checked hash"
    for path in (built / "build").rglob("*.py"):
        os.utime(path, (1, 1))
    (first,) = (built / "opt" / "wheels").glob("*.whl")
    command = DOCKERFILE.stages["wheel"].all("RUN")[-1].text.replace("/opt/wheels", str(tmp_path)).replace("/opt/", f"{built}/opt/")
    environment = os.environ | DOCKERFILE.stages["wheel"].all("ARG")[-1].pairs
    again = subprocess.run(["sh", "-c", command], cwd=built / "build", env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert next(tmp_path.glob("*.whl")).read_bytes() == first.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("lock", "machine"), [pytest.param("gpu", "x86_64", id="gpu"), pytest.param("cpu", "aarch64", id="cpu, arm64")])
def test_every_locked_package_has_a_wheel_for_the_image(lock: str, machine: str, tmp_path: Path) -> None:
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(36, 16, -1)] + [f"manylinux2014_{machine}"]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--target", str(tmp_path), "--quiet"]
    command += ["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312", "--abi", "abi3", "--abi", "none"]
    command += [part for tag in tags for part in ("--platform", tag)]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--requirement", str(ROOT / "requirements" / f"{lock}.lock")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
