"""Builds: sealed with what they were made of, refused by the pack, never half there, and made once however many ask."""

import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import build as build_module
from engines import ensure as ensure_module
from engines.acceptance import observe, write_pack
from engines.analyzer import Analyzer
from engines.build import AcceptanceRefused, BuildRequest, build, planned
from engines.bundle import Bundle, open_bundle, read_manifest, seal_manifest, verify_files
from engines.check import check_bundle, parity_rows, parity_text
from engines.contracts import BundleError, BundleFault
from engines.ensure import await_built, build_key, ensure, link_to
from engines.trt_build import BuildError, BuildOptions

CHECKPOINT = "c" * 64


@pytest.fixture(scope="session")
def exported(sealed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, saying which checkpoint it is of. Read only."""
    folder = Path(shutil.copytree(sealed, tmp_path_factory.mktemp("exported") / "bundle"))
    seal_manifest(folder, read_manifest(folder).model_copy(update={"provenance": {"checkpoint_sha256": CHECKPOINT}}))
    return folder


@pytest.fixture(scope="session")
def pack(reference: Bundle, crops: Callable[[int], np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An acceptance pack of the tiny model, told by its torch parts."""
    folder, judged_NHWC = tmp_path_factory.mktemp("pack"), crops(12)
    about = {
        "checkpoint_sha256": CHECKPOINT, "stored": "fp16", "parts": {"judged": "select", "calibration": "calibrate"}, "counts": {"toy": (6, 6)},
        "names": ["0" * 64] * 20,
    }  # fmt: skip
    told = observe(Analyzer(reference), judged_NHWC, explained=3)
    write_pack(folder, judged_NHWC=judged_NHWC, is_fake_N=np.arange(12) < 6, calibration_NHWC=crops(8), reference=told, about=about)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_build_for_onnxruntime_runs_and_says_what_it_was_made_of(precision: Any, exported: Path, pack: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    manifest = build(exported, tmp_path / "out", BuildRequest("onnxruntime", precision, acceptance=pack), told=lines.append)
    spec, source = manifest.build, read_manifest(exported)
    assert spec is not None and spec.source_digest == source.digest and spec.precision == precision and spec.executed
    assert spec.acceptance is not None and spec.acceptance["faces"] == 12 and lines[-1].startswith(str(tmp_path / "out"))
    assert {name: part.source_sha256 for name, part in manifest.parts.items()} == {name: part.sha256 for name, part in source.parts.items()}
    assert open_bundle(tmp_path / "out").manifest == manifest == read_manifest(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing is left beside the build"


def test_a_build_that_nothing_ran_does_not_say_it_was_executed(exported: Path, tmp_path: Path) -> None:
    spec = build(exported, tmp_path / "out", BuildRequest("onnxruntime", "fp32")).build
    assert spec is not None and not spec.executed and spec.acceptance is None


def test_a_folder_that_cannot_be_written_is_one_error(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    request = BuildRequest("onnxruntime", "fp32")
    with pytest.raises(BuildError, match="out cannot be written: Not a directory; give a folder where you may"):
        build(exported, tmp_path / "file" / "sub" / "out", request)
    with pytest.raises(BuildError, match="cannot be written: File name too long; give a folder where you may"):
        build(exported, tmp_path / ("a" * 250), request)
    with pytest.raises(BuildError, match="cannot be written: Not a directory; give a folder where you may with --cache"):
        ensure(exported, tmp_path / "file" / "cache", request)


def test_a_bundle_is_checked_against_the_checkpoint(exported: Path, pack: Path) -> None:
    row = check_bundle(exported, pack, threads=1)
    assert (row.backend, row.precision, row.failed) == ("onnxruntime", "fp32", ()) and row.figures["token_agreement"] == 1
    assert check_bundle(exported, None).figures == {}


def test_a_build_that_differs_too_far_is_refused_and_leaves_nothing(
    exported: Path, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def blunt(source: Path, out: Path, crops_NHWC: np.ndarray, *, symmetric: bool) -> None:
        import onnx
        from onnx import numpy_helper

        model = onnx.load(str(source))
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.ndim > 1 and values.dtype in (np.float16, np.float32):
                tensor.CopyFrom(numpy_helper.from_array(-values, tensor.name))
        onnx.save(model, str(out))

    monkeypatch.setattr(build_module, "quantize_encoder", blunt)
    with pytest.raises(AcceptanceRefused, match=r"int8 is refused on the acceptance pack: .*; build with a higher precision"):
        build(exported, tmp_path / "out", BuildRequest("onnxruntime", "int8", acceptance=pack))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param({"backend": "onnxruntime", "precision": "bf16"}, "no bf16 kernels", id="bf16"),
        pytest.param({"backend": "onnxruntime", "precision": "int8"}, "give --acceptance", id="int8"),
        pytest.param({"backend": "tensorrt-rtx", "precision": "bf16", "acceptance": Path("pack")}, "engine check` where the GPU is", id="bf16 pack"),
        pytest.param({"backend": "onnxruntime", "precision": "fp32", "minimum": ("image:1x3x56x56",)}, "are for plans", id="shapes"),
        pytest.param({"backend": "onnxruntime", "precision": "fp32", "options": BuildOptions(opt_level=2)}, "are for plans", id="options"),
    ],
)
def test_a_request_that_no_backend_can_meet_is_refused_before_anything_is_read(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(BuildError, match=words):
        BuildRequest(**arguments)


def test_a_build_of_a_build_and_one_over_another_are_refused(exported: Path, tmp_path: Path) -> None:
    request = BuildRequest("onnxruntime", "fp32")
    build(exported, tmp_path / "out", request)
    with pytest.raises(BuildError, match="is there already"):
        build(exported, tmp_path / "out", request)
    with pytest.raises(BuildError, match=r"was built from .* already"):
        build(tmp_path / "out", tmp_path / "again", request)


def test_a_dry_run_checks_all_and_writes_nothing(exported: Path, tmp_path: Path) -> None:
    plan = planned(exported, tmp_path / "out", BuildRequest("onnxruntime", "fp32"))
    assert plan["backend"] == "onnxruntime" and not (tmp_path / "out").exists()
    (copied := Path(shutil.copytree(exported, tmp_path / "copy")) / "encoder.onnx").write_bytes(b"")
    with pytest.raises(BundleError) as refused:
        planned(copied.parent, tmp_path / "out", BuildRequest("onnxruntime", "fp32"))
    assert refused.value.fault is BundleFault.FILE_DIGEST


def _ensure(source: str, cache: str) -> tuple[str, list[str]]:
    lines: list[str] = []
    folder, _ = ensure(Path(source), Path(cache), BuildRequest("onnxruntime", "fp32"), told=lines.append)
    return str(folder), lines


def test_two_builders_at_once_make_one_build(exported: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.starmap(_ensure, [(str(exported), str(tmp_path / "cache"))] * 2)
    assert found[0][0] == found[1][0] and sorted(len(lines) for _, lines in found)[0] == 1
    assert sum("built before" in line for _, lines in found for line in lines) == 1
    verify_files(Path(found[0][0]), read_manifest(Path(found[0][0])))


def test_a_damaged_build_in_the_cache_is_refused_not_rebuilt(exported: Path, tmp_path: Path) -> None:
    folder, _ = ensure(exported, tmp_path, BuildRequest("onnxruntime", "fp32"))
    (folder / "encoder.onnx").write_bytes(b"cut")
    with pytest.raises(BundleError) as refused:
        ensure(exported, tmp_path, BuildRequest("onnxruntime", "fp32"))
    assert refused.value.fault is BundleFault.FILE_DIGEST


def test_a_build_hung_for_too_long_is_named(exported: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    key = build_key(exported, BuildRequest("onnxruntime", "fp32"))
    with FileLock(tmp_path / f".{key}.lock"), pytest.raises(BuildError, match=r"another builder has held .* for 0.1 s"):
        ensure(exported, tmp_path, BuildRequest("onnxruntime", "fp32"), timeout_s=0.1)


def test_what_a_killed_builder_left_is_gone_after_the_next_build(exported: Path, tmp_path: Path) -> None:
    key = build_key(exported, BuildRequest("onnxruntime", "fp32"))
    (tmp_path / f".{key}.killed" / "graphs").mkdir(parents=True)
    (tmp_path / f".{key}.killed" / "graphs" / "encoder.onnx").write_bytes(b"half")
    (tmp_path / ".another-build.running").mkdir()
    ensure(exported, tmp_path, BuildRequest("onnxruntime", "fp32"))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [".another-build.running", key]


def test_a_cache_that_cannot_be_written_is_one_error_or_gives_what_is_built(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = BuildRequest("onnxruntime", "fp32")
    built, _ = ensure(exported, tmp_path / "cache", request)

    def locked(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ensure_module, "FileLock", locked)
    assert ensure(exported, tmp_path / "cache", request)[0] == built
    with pytest.raises(BuildError, match=r"the cache .*empty cannot be written: Permission denied; give a folder where you may with --cache"):
        ensure(exported, tmp_path / "empty", request)


def test_who_waits_for_a_build_gets_it_and_builds_nothing(exported: Path, tmp_path: Path) -> None:
    request, cache, now = BuildRequest("onnxruntime", "fp32"), tmp_path / "cache", [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] >= 6:
            ensure(exported, cache, request)

    folder, manifest = await_built(exported, cache, request, timeout_s=60, clock=lambda: now[0], sleep=sleep)
    assert now[0] == 6 and manifest == read_manifest(folder) and folder == cache / build_key(exported, request)


def test_a_build_that_nobody_makes_is_waited_for_in_vain_and_named(exported: Path, tmp_path: Path) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    with pytest.raises(BuildError, match=r"nobody has built .* within 5 s"):
        await_built(exported, tmp_path / "cache", BuildRequest("onnxruntime", "fp32"), timeout_s=5, clock=lambda: now[0], sleep=sleep)
    assert not list(tmp_path.iterdir()), "who waits writes nothing"


def test_a_link_moves_from_one_build_to_the_next_at_once(tmp_path: Path) -> None:
    link = tmp_path / "run" / "engine"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        link_to(tmp_path / name, link)
        assert link.resolve() == tmp_path / name and [path.name for path in link.parent.iterdir()] == ["engine"]


def test_a_link_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    with pytest.raises(BuildError, match=r"engine cannot be made a link: .*; give --link a new name"):
        link_to(tmp_path, tmp_path / "engine")
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_whatever_changes_a_build_changes_its_key(exported: Path) -> None:
    changed = BuildOptions(), BuildOptions(opt_level=2), BuildOptions(workspace_bytes=1 << 20), BuildOptions(compute_capabilities=("8.6",))
    requests = [
        BuildRequest("onnxruntime", "fp32"),
        BuildRequest("onnxruntime", "fp16"),
        *(BuildRequest("tensorrt-rtx", "fp16", options=options) for options in changed),
        BuildRequest("tensorrt-rtx", "fp16", maximum=("image:8x3x56x56",)),
    ]
    keys = [build_key(exported, request) for request in requests]
    assert len(set(keys)) == len(keys) and keys == [build_key(exported, replace(request)) for request in requests]


def test_the_parity_table_names_what_cannot_run_here(exported: Path, pack: Path) -> None:
    rows = parity_rows(exported, pack, threads=1)
    assert [(row.backend, row.precision) for row in rows][:3] == [("onnxruntime", precision) for precision in ("fp32", "fp16", "int8")]
    assert all(row.figures and not row.absent for row in rows[:3]) and not rows[0].failed
    assert all(bool(row.figures) != bool(row.absent) for row in rows[3:])
    text = parity_text(rows)
    assert text.count("did not run:") == sum(bool(row.absent) for row in rows) and "tensorrt bf16" in text
