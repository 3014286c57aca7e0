"""A bundle of ONNX parts to a bundle for one runtime: `fifa-stream engine build`.

    verified source -> each part in its precision -> plan, where the backend compiles -> acceptance pack -> sealed folder

No torch. The folder appears whole or not at all. What nothing here can run is built all the same and marked `executed: false`: the pack then judges
its graphs on ONNX Runtime, and the plans themselves are judged by `fifa-stream engine check` on a machine that has the GPU.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnxruntime as ort

from engines.acceptance import AcceptancePack, compare, judge, read_pack
from engines.analyzer import Analyzer
from engines.bundle import Bundle, file_spec, open_bundle, read_manifest, seal_manifest, verify_files
from engines.contracts import MANIFEST_SCHEMA, Backend, BuildSpec, EngineError, Manifest, PartName, PartSpec, Precision, Profile
from engines.precision import quantize_encoder, to_half
from engines.trt_build import BuildError, BuildOptions, compile_plan, parse_profiles
from engines.trt_flavours import FLAVOURS, installed_version

Told = Callable[[str], None]
"""Receives one line for each step."""


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What a user asks of a build."""

    backend: Backend
    precision: Precision
    minimum: tuple[str, ...] = ()
    """`name:1x3x224x224` texts in place of default profiles (`trt_build.parse_profiles`)."""
    optimum: tuple[str, ...] = ()
    maximum: tuple[str, ...] = ()
    options: BuildOptions = field(default_factory=BuildOptions)
    acceptance: Path | None = None
    """Folder of an acceptance pack; int8 takes its calibration images from it and is refused without."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built, before anything is read. Raises BuildError."""
        if self.backend == "onnxruntime":
            if self.precision == "bf16":
                raise BuildError("ONNX Runtime's CPU provider has no bf16 kernels; choose fp32, fp16 or int8, or a TensorRT backend")
            if self.minimum or self.optimum or self.maximum or self.options != BuildOptions():
                raise BuildError("shapes, --opt-level, --workspace, --timing-cache and --compute-capability are for plans; leave them out")
        if self.precision == "bf16" and self.acceptance is not None:
            raise BuildError("no runtime without a GPU computes bf16; build without --acceptance, then `fifa-stream engine check` where the GPU is")
        if self.precision == "int8" and self.acceptance is None:
            raise BuildError("int8 is calibrated and judged on an acceptance pack; give --acceptance, the folder that `fifa-train export` wrote")


class AcceptanceRefused(EngineError):
    """The build is not what the checkpoint is; nothing was left behind."""

    def __init__(self, precision: Precision, figures: Mapping[str, float], failed: Sequence[str]) -> None:
        super().__init__(f"{precision} is refused on the acceptance pack: {'; '.join(failed)}; build with a higher precision")
        self.figures, self.failed = dict(figures), tuple(failed)


def build(source: Path, out: Path, request: BuildRequest, *, told: Told = lambda line: None) -> Manifest:
    """Build `source` into the new folder `out`. Blocks for seconds (ONNX Runtime) to minutes.

    Raises BundleError for a damaged source, BuildError where it cannot be built, AcceptanceRefused where the pack says no.
    """
    manifest, profiles = _checked(source, out, request)
    compiles = request.backend in FLAVOURS
    pack = None if request.acceptance is None else read_pack(request.acceptance)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch_folder = TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)
    except OSError as error:
        raise BuildError(f"{out} cannot be written: {error.strerror}; give a folder where you may") from None
    with scratch_folder as scratch:
        graphs, made = Path(scratch) / "graphs", Path(scratch) / "bundle"
        graphs.mkdir()
        _copy_side_files(source, manifest, graphs)
        try:
            parts = {part: _in_precision(source, graphs, part, spec, request, pack, told) for part, spec in manifest.parts.items()}
        except ValueError as error:
            raise BuildError(f"{source} cannot be made {request.precision}: {error}") from None
        spec = _spec(manifest, request)
        draft = manifest.model_copy(update={"schema_version": MANIFEST_SCHEMA, "backend": "onnxruntime", "parts": parts, "build": spec})
        seal_manifest(graphs, draft)
        if pack is not None:
            spec = spec.model_copy(update={"acceptance": _accepted(open_bundle(graphs), pack, request.precision, told)})
        elif not compiles:
            open_bundle(graphs)  # what does not load is not built
        if compiles:
            made.mkdir()
            _copy_side_files(source, manifest, made)
            sealed = _compiled(graphs, made, draft, spec, profiles, request, told)
        else:
            sealed = seal_manifest(graphs, draft.model_copy(update={"build": spec.model_copy(update={"executed": pack is not None})}))
            made = graphs
        made.rename(out)
    told(f"{out}: {sealed.name} {sealed.version}, {request.backend} {request.precision}, manifest {sealed.digest[:12]}")
    return sealed


def planned(source: Path, out: Path, request: BuildRequest) -> dict[str, str]:
    """What `build` would do, by name, after all of its checks but the building. Raises what `build` raises before it begins."""
    manifest, profiles = _checked(source, out, request)
    if request.acceptance is not None:
        read_pack(request.acceptance)
    plan = {"source": f"{source}, manifest {manifest.digest[:12]}", "out": str(out), "backend": request.backend, "precision": request.precision}
    if request.backend in FLAVOURS:
        plan["release"] = installed_version(request.backend)
        targets = request.options.compute_capabilities or FLAVOURS[request.backend].targets
        plan["compute capabilities"] = ", ".join(targets) or "that of the present GPU"
    shapes = {f"{part}/{name}": shape for part, inputs in profiles.items() for name, shape in inputs.items()}
    return plan | {name: " / ".join("x".join(map(str, sizes)) for sizes in (p.min, p.opt, p.max)) for name, p in shapes.items()}


def _checked(source: Path, out: Path, request: BuildRequest) -> tuple[Manifest, dict[PartName, dict[str, Profile]]]:
    """The verified source and the shapes of its plans."""
    manifest = read_manifest(source)
    verify_files(source, manifest)
    if manifest.build is not None:
        raise BuildError(f"{source} was built from {manifest.build.source_digest[:12]} already; build from the bundle that `fifa-train export` wrote")
    if out.exists():
        raise BuildError(f"{out} is there already; give a new folder, or use `fifa-stream engine ensure`")
    if request.backend not in FLAVOURS:
        return manifest, {}
    try:
        return manifest, parse_profiles(manifest, request.minimum, request.optimum, request.maximum)
    except ValueError as error:
        raise BuildError(str(error)) from None


def _spec(source: Manifest, request: BuildRequest) -> BuildSpec:
    """What is known before anything was compiled or judged."""
    tools = {name: version(name) for name in ("onnx", "onnxruntime")}
    return BuildSpec(source_digest=source.digest, precision=request.precision, runtime_version=ort.__version__, tools=tools)


def _copy_side_files(source: Path, manifest: Manifest, folder: Path) -> None:
    for spec in manifest.files.values():
        shutil.copyfile(source / spec.file, folder / spec.file)


CONVOLUTIONS: tuple[PartName, ...] = ("face_detector", "region_parser")
"""Parts that stay fp32 in half-precision builds: a graph in bf16 knows no convolution, and these two cost little."""


def _in_precision(
    source: Path, folder: Path, part: PartName, spec: PartSpec, request: BuildRequest, pack: AcceptancePack | None, told: Told
) -> PartSpec:
    """Write one part as the graph that will be run or compiled; its interface stays what it was."""
    path, precision = folder / spec.file, request.precision
    if precision == "int8" and part == "encoder" and pack is not None:
        told(f"{part}: quantizing on {len(pack.calibration_NHWC)} crops")
        quantize_encoder(source / spec.file, path, pack.calibration_NHWC, symmetric=request.backend in FLAVOURS)
    elif precision in ("fp16", "bf16") and part not in CONVOLUTIONS:
        onnx.save(to_half(onnx.load(str(source / spec.file)), precision), str(path))
    else:
        shutil.copyfile(source / spec.file, path)
    return spec.model_copy(update={**file_spec(path).model_dump(), "source_sha256": spec.sha256})


def _accepted(bundle: Bundle, pack: AcceptancePack, precision: Precision, told: Told) -> dict[str, float]:
    """What the pack says of a bundle that can be run here. Raises AcceptanceRefused."""
    told(f"acceptance: {len(pack.judged_NHWC)} faces")
    found = compare(Analyzer(bundle, wording="decoded"), pack)
    if failed := judge(found, precision):
        raise AcceptanceRefused(precision, found, failed)
    return found


def _compiled(
    graphs: Path, out: Path, manifest: Manifest, build_spec: BuildSpec, profiles: Mapping[PartName, Mapping[str, Profile]], request: BuildRequest,
    told: Told,
) -> Manifest:  # fmt: skip
    """Compile every graph and seal the plans."""
    parts: dict[PartName, PartSpec] = {}
    seconds: dict[PartName, float] = {}
    options = {"opt_level": str(request.options.opt_level), "workspace_bytes": str(request.options.workspace_bytes)}
    options = {name: value for name, value in options.items() if value != "None"}
    tools, compiled_by, targets = dict(build_spec.tools), "", request.options.compute_capabilities
    for part, spec in manifest.parts.items():
        began = time.perf_counter()
        compiled = compile_plan(graphs / spec.file, profiles[part], request.backend, request.options)
        seconds[part] = round(time.perf_counter() - began, 2)
        path = out / f"{part}.plan"
        path.write_bytes(compiled.plan)
        parts[part] = spec.model_copy(update=file_spec(path).model_dump())
        if compiled.decomposed_attentions:
            options[f"{part}.decomposed_attentions"] = str(compiled.decomposed_attentions)
        compiled_by, targets = compiled.runtime_version, compiled.compute_capabilities
        tools["onnx_parser"] = str(compiled.parser_version)
        told(f"{part}: {compiled.layers} layers, {len(compiled.plan) / 1e6:.1f} MB in {seconds[part]:.1f} s")
    compiled_spec = build_spec.model_copy(
        update={
            "runtime_version": compiled_by, "compute_capabilities": targets, "options": options, "tools": tools, "seconds": seconds,
            "profiles": {part: dict(shapes) for part, shapes in profiles.items()},
        }
    )  # fmt: skip
    return seal_manifest(out, manifest.model_copy(update={"backend": request.backend, "parts": parts, "build": compiled_spec}))
