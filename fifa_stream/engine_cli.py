"""`fifa-stream engine`: look at engine bundles, build them for a runtime, hold them against the checkpoint, time them.

What builds needs the extra `build`; nothing here is imported by what serves.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from fifa_stream.exits import ExitCode, clear_errors, end

if TYPE_CHECKING:
    from engines.build import BuildRequest
    from engines.contracts import Manifest

app = typer.Typer(help="Build, check and time engine bundles.", no_args_is_help=True)

SourceArgument = Annotated[Path | None, typer.Argument(metavar="[SOURCE]", help="Bundle of ONNX parts; default: the one in the package.")]
FolderArgument = Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Engine bundle; default: the one in the package.")]
BackendOption = Annotated[str, typer.Option("--backend", help="onnxruntime, tensorrt or tensorrt-rtx.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="fp32, fp16, bf16 or int8 (the encoder's products; the rest is fp32).")]
MinOption = Annotated[list[str] | None, typer.Option("--min-shapes", metavar="NAME:1x3x224x224", help="Smallest shape of an input, repeatable.")]
OptOption = Annotated[list[str] | None, typer.Option("--opt-shapes", metavar="NAME:4x3x224x224", help="Shape that a plan is tuned for.")]
MaxOption = Annotated[list[str] | None, typer.Option("--max-shapes", metavar="NAME:16x3x224x224", help="Largest shape.")]
LevelOption = Annotated[int | None, typer.Option("--opt-level", help="Builder optimisation, 0 to 5; default: the library's own, 3.")]
WorkspaceOption = Annotated[str | None, typer.Option("--workspace", metavar="BYTES", help="Scratch memory of a layer, as 1G or 512M.")]
CacheFileOption = Annotated[Path | None, typer.Option("--timing-cache", metavar="FILE", help="Measurements of former builds (tensorrt).")]
CapabilityOption = Annotated[
    list[str] | None, typer.Option("--compute-capability", metavar="8.9", help="GPUs that the plan is for, repeatable (tensorrt-rtx).")
]
AcceptanceOption = Annotated[
    Path | None, typer.Option("--acceptance", metavar="DIR", help="Acceptance pack of `fifa-train export`: what differs too far is refused.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on standard output; progress stays on standard error.")]


@app.command()
def inspect(folder: FolderArgument = None, as_json: JsonOption = False) -> None:
    """Check every file of a bundle against its manifest, and say what it is. Loads nothing."""
    with clear_errors():
        from engines.bundle import read_manifest, verify_files

        where = _folder(folder)
        manifest = read_manifest(where)
        verify_files(where, manifest)
        typer.echo(manifest.model_dump_json(indent=2) if as_json else "\n".join(_described(manifest)))


def _described(manifest: "Manifest") -> list[str]:
    from engines.analyzer import find_operating_point

    point, build = find_operating_point(manifest, None, setting="default_operating_point"), manifest.build
    lines = [
        f"{manifest.name} {manifest.version}, {manifest.precision}, {manifest.backend}, manifest {manifest.digest}",
        f"operating point {point.name}: fake from {point.fake_at:g}, real below {point.real_below:g}, explained from {point.explain_at:g}",
        f"calibration {manifest.calibration.method}, fitted on {manifest.calibration.fitted_on}",
    ]
    if build is not None:
        gpus = f" for {', '.join(build.compute_capabilities)}" if build.compute_capabilities else ""
        run = "executed where it was built" if build.executed else "built and never executed by its builder"
        lines.append(f"built as {build.precision} by {manifest.backend} {build.runtime_version}{gpus} from {build.source_digest}; {run}")
        lines += [f"acceptance {name} {value:g}" for name, value in (build.acceptance or {}).items()]
    lines += [f"{name} {spec.size_bytes / 1e6:.2f} MB sha256 ok {spec.sha256}" for name, spec in [*manifest.parts.items(), *manifest.files.items()]]
    lines += [f"licence of {name}: {text}" for name, text in manifest.licences.items()]
    return [*lines, *(f"{name} {value:g}" for name, value in manifest.metrics.items())]


@app.command()
def build(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New folder for the bundle.")],
    source: SourceArgument = None,
    backend: BackendOption = "onnxruntime",
    precision: PrecisionOption = "fp32",
    min_shapes: MinOption = None,
    opt_shapes: OptOption = None,
    max_shapes: MaxOption = None,
    opt_level: LevelOption = None,
    workspace: WorkspaceOption = None,
    timing_cache: CacheFileOption = None,
    compute_capability: CapabilityOption = None,
    acceptance: AcceptanceOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, build nothing, print what would be built.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build a bundle of ONNX parts for one runtime and precision; a refused build leaves nothing behind."""
    with clear_errors():
        request = _request(
            backend, precision, (min_shapes, opt_shapes, max_shapes), opt_level, workspace, timing_cache, compute_capability, acceptance
        )  # fmt: skip
        from engines.build import build as build_bundle
        from engines.build import planned

        if dry_run:
            plan = planned(_folder(source), out, request)
            typer.echo(json.dumps(plan, indent=1) if as_json else "\n".join(f"{name}: {text}" for name, text in plan.items()))
            return
        manifest = build_bundle(_folder(source), out, request, told=_tell)
        typer.echo(manifest.model_dump_json(indent=1) if as_json else str(out))


@app.command()
def ensure(
    source: SourceArgument = None,
    cache: Annotated[Path | None, typer.Option("--cache", metavar="DIR", help="Folder of builds; default: fifa-stream's own in the user's.")] = None,
    backend: BackendOption = "onnxruntime",
    precision: PrecisionOption = "fp32",
    min_shapes: MinOption = None,
    opt_shapes: OptOption = None,
    max_shapes: MaxOption = None,
    opt_level: LevelOption = None,
    workspace: WorkspaceOption = None,
    timing_cache: CacheFileOption = None,
    compute_capability: CapabilityOption = None,
    acceptance: AcceptanceOption = None,
    pinned_digest: Annotated[str | None, typer.Option("--pinned-digest", metavar="HEX", help="Manifest digest; another source is refused.")] = None,
    link: Annotated[Path | None, typer.Option("--link", metavar="PATH", help="Make this a symbolic link to the folder.")] = None,
    wait: Annotated[
        float | None, typer.Option("--wait", min=0, metavar="SECONDS", help="Build nothing: wait for another builder, at most this long.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the folder of a build, which is made if it is not there; safe under several at once."""
    with clear_errors():
        request = _request(
            backend, precision, (min_shapes, opt_shapes, max_shapes), opt_level, workspace, timing_cache, compute_capability, acceptance
        )  # fmt: skip
        from engines.bundle import read_manifest
        from engines.ensure import await_built, link_to
        from engines.ensure import ensure as ensure_built

        where, cache = _folder(source), cache or Path(typer.get_app_dir("fifa-stream")) / "engines"
        read_manifest(where, pinned_digest=pinned_digest)
        if wait is None:
            folder, manifest = ensure_built(where, cache, request, told=_tell)
        else:
            folder, manifest = await_built(where, cache, request, timeout_s=wait, told=_tell)
        if link is not None:
            link_to(folder, link)
        typer.echo(json.dumps({"folder": str(folder), "digest": manifest.digest}) if as_json else str(folder))


@app.command()
def check(
    folder: FolderArgument = None,
    acceptance: AcceptanceOption = None,
    table: Annotated[bool, typer.Option("--table", help="Every precision that runs here against the checkpoint, one row each.")] = False,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Inside one inference; 0 lets the runtime choose.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Verify and load a bundle, and with a pack hold its scores, masks and words against the checkpoint's. Exit 1 where it differs too far."""
    with clear_errors():
        from engines.check import check_bundle, parity_rows, parity_text

        where = _folder(folder)
        if table:
            _require_build()
        if table and acceptance is None:
            end(ExitCode.USAGE, "--table compares with the checkpoint's answers; give --acceptance, the folder that `fifa-train export` wrote")
        if table:
            rows = parity_rows(where, cast(Path, acceptance), threads=threads, told=_tell)
        else:
            rows = [check_bundle(where, acceptance, threads=threads)]
        typer.echo(json.dumps([asdict(row) for row in rows], indent=1) if as_json else parity_text(rows))
        if any(row.failed for row in rows):
            raise typer.Exit(ExitCode.SOME_FAILED)


@app.command()
def bench(
    folder: FolderArgument = None,
    threads: Annotated[list[int] | None, typer.Option("--threads", min=1, help="Repeatable; default: 1 and 2.")] = None,
    faces: Annotated[list[int] | None, typer.Option("--faces", min=1, help="Together, repeatable; default: 1, 4, 8 and 16.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Figures are medians over these.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Time a bundle on this machine and print the settings that follow."""
    with clear_errors():
        from engines.bench import advise
        from engines.bench import bench as time_bundle

        timings = time_bundle(_folder(folder), threads=threads or (1, 2), faces=faces or (1, 4, 8, 16), rounds=rounds, told=_tell)
        advice = advise(timings)
        if as_json:
            typer.echo(json.dumps({"timings": [asdict(timing) for timing in timings], "advice": asdict(advice)}, indent=1))
            return
        typer.echo(f"{'work':8} {'threads':>7} {'faces':>5} {'ms a face':>9} {'tokens/s':>8}")
        for one in timings:
            tokens = "" if one.tokens_per_s is None else f"{one.tokens_per_s:.0f}"
            typer.echo(f"{one.work:8} {one.threads:7} {one.faces:5} {one.ms_per_face:9.1f} {tokens:>8}")
        typer.echo(f"\n[engine]\nthreads = {advice.threads}\n\n[batch]\nmax_frames = {advice.max_batch}")


@app.command()
def doctor(folder: FolderArgument = None, as_json: JsonOption = False) -> None:
    """Say what this machine can run and build, and what to do where it cannot. Exit 4 where the bundle does not run."""
    with clear_errors():
        from engines.doctor import examine

        findings = examine(_folder(folder))
        if as_json:
            typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
        for one in () if as_json else findings:
            typer.echo(f"{one.state:6} {one.subject}: {one.found}{f' -> {one.remedy}' if one.remedy else ''}")
        if any(finding.state == "broken" for finding in findings):
            raise typer.Exit(ExitCode.ENGINE)


def _folder(folder: Path | None) -> Path:
    from engines.bundle import bundled_engine

    return folder or bundled_engine()


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _require_build() -> None:
    """End with USAGE where the packages that build are not installed."""
    try:
        import engines.ensure  # noqa: F401
    except ModuleNotFoundError as missing:
        end(ExitCode.USAGE, f"building needs {missing.name}, which is not installed; pip install 'fifa-stream[build]'")


def _request(
    backend: str, precision: str, shapes: tuple[Sequence[str] | None, Sequence[str] | None, Sequence[str] | None], opt_level: int | None,
    workspace: str | None, timing_cache: Path | None, compute_capability: Sequence[str] | None, acceptance: Path | None,
) -> "BuildRequest":  # fmt: skip
    """Options to a request; one that makes no sense ends the program with USAGE."""
    _require_build()
    from engines.build import BuildRequest
    from engines.contracts import Backend, Precision
    from engines.trt_build import BuildOptions

    for option, value, known in (("--backend", backend, get_args(Backend)), ("--precision", precision, get_args(Precision))):
        if value not in known:
            end(ExitCode.USAGE, f"{option} {value!r} is none; choose from {', '.join(known)}")
    minimum, optimum, maximum = (tuple(texts or ()) for texts in shapes)
    try:
        options = BuildOptions(opt_level, _bytes(workspace), timing_cache, tuple(compute_capability or ()))
    except ValueError as error:
        end(ExitCode.USAGE, str(error))
    return BuildRequest(cast(Backend, backend), cast(Precision, precision), minimum, optimum, maximum, options, acceptance)


def _bytes(text: str | None) -> int | None:
    """'512M' to 536870912."""
    if text is None:
        return None
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if unit not in units or not number.isdigit():
        raise ValueError(f"--workspace {text!r} is no size; write it as 1G or 512M")
    return int(number) * units[unit]
