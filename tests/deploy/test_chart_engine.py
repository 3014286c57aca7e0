"""The builder's arguments, as the chart renders them, run: what they build is what the worker's settings file names."""

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engines.bundle import bundled_engine, open_bundle, read_manifest, verify_files
from fifa_stream.cli import app
from tests.deploy import semantics
from tests.deploy.chart import CHART, Chart, Rendered, merge, require_helm, values_of, with_value

require_helm()


def on_this_machine(text: str, root: Path) -> str:
    """The paths of the container, below a folder."""
    for path in ("/engines", "/run/fifa-stream"):
        text = text.replace(path, f"{root}{path}")
    return text


def arguments(one: Rendered, kind: str, root: Path) -> list[str]:
    pod = one.one(kind)["spec"]["template"]["spec"]
    (builder,) = (container for container in (*pod.get("initContainers", ()), *pod["containers"]) if container["name"] == "engine")
    return [on_this_machine(str(argument), root) for argument in builder["args"]]


def folder_of(one: Rendered, root: Path) -> Path:
    settings = tomllib.loads(on_this_machine(semantics.config_map(one)["data"]["settings.toml"], root))
    assert "pinned_digest" not in settings["engine"], "a build has a digest of its own"
    return Path(settings["engine"]["folder"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu-hpa", "gpu-keda"])
def test_what_the_init_container_builds_is_what_the_worker_opens(name: str, tmp_path: Path) -> None:
    values = values_of(CHART / "ci" / f"{name}-values.yaml")
    one = Chart().render(values)
    done = CliRunner().invoke(app, arguments(one, "Deployment", tmp_path))
    assert done.exit_code == 0, done.output
    folder = folder_of(one, tmp_path)
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    assert (manifest.backend, manifest.build and manifest.build.precision) == (
        merge({"engine": {"backend": "onnxruntime"}}, values)["engine"]["backend"],
        "fp16",
    )
    assert manifest.build is not None and manifest.build.source_digest == read_manifest(bundled_engine()).digest
    if manifest.backend == "onnxruntime":
        open_bundle(folder, threads=1)


@pytest.mark.slow
def test_a_job_builds_and_the_worker_waits_for_it(tmp_path: Path) -> None:
    values = merge(values_of(CHART / "ci" / "cpu-hpa-values.yaml"), {"engine": {"ensure": {"mode": "job"}, "cache": {"type": "pvc"}}})
    impatient = Chart().render(with_value(values, "engine.ensure.timeoutSeconds", 1))
    early = CliRunner().invoke(app, arguments(impatient, "Deployment", tmp_path))
    assert early.exit_code == 4 and "nobody has built" in early.output
    one = Chart().render(values)
    built = CliRunner().invoke(app, arguments(one, "Job", tmp_path))
    assert built.exit_code == 0, built.output
    (tmp_path / "engines").chmod(0o555)  # the worker's mount is read-only
    found = CliRunner().invoke(app, arguments(one, "Deployment", tmp_path))
    (tmp_path / "engines").chmod(0o755)
    assert found.exit_code == 0 and found.stdout == built.stdout and read_manifest(folder_of(one, tmp_path)).backend == "onnxruntime"


def test_another_engine_than_the_pinned_one_is_not_built(tmp_path: Path) -> None:
    values = merge(values_of(CHART / "ci" / "cpu-hpa-values.yaml"), {"settings": {"engine": {"pinned_digest": "1" * 64}}})
    done = CliRunner().invoke(app, arguments(Chart().render(values), "Deployment", tmp_path))
    assert done.exit_code == 4 and "deploy the pinned bundle or change the pin" in done.output
