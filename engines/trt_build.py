"""ONNX parts to TensorRT plans: which shapes a plan takes, and the build itself. Needs no GPU for TensorRT-RTX; TensorRT builds for the GPU present.

The arithmetic is what the graph states: fp32 means fp32, so TF32 is off. Builds are not reproducible byte for byte.
"""

import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from engines.contracts import Backend, EngineError, Manifest, PartName, Profile, TensorSpec
from engines.cuda import CudaDevice
from engines.trt_flavours import Flavour, LogRecord, collect, errors, flavour, library_logger, load

Shape = tuple[int, ...]
MAX_OPT_LEVEL = 5
"""TensorRT takes higher numbers for this one without a word."""


class BuildError(EngineError):
    """The library refuses a graph, its shapes or an option."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What a user may say of a build; None and () leave it to the library. Raises ValueError."""

    opt_level: int | None = None
    """0 (fast build) to 5 (slow build, maybe a faster engine); the library's own is 3."""
    workspace_bytes: int | None = None
    """Most device memory that a layer may take for intermediate results."""
    timing_cache: Path | None = None
    """File with measurements of former builds; read if it exists, then written."""
    compute_capabilities: tuple[str, ...] = ()
    """GPUs that the plan is for; "8.9", "89" and "SM89" are the same and kept as the last."""

    def __post_init__(self) -> None:
        """Check and normalize."""
        if self.opt_level is not None and not 0 <= self.opt_level <= MAX_OPT_LEVEL:
            raise ValueError(f"optimization level {self.opt_level} is outside 0 to {MAX_OPT_LEVEL}")
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            raise ValueError(f"a workspace of {self.workspace_bytes} bytes holds nothing; give more, or leave it out")
        object.__setattr__(self, "compute_capabilities", tuple(dict.fromkeys(map(_compute_capability, self.compute_capabilities))))


@dataclass(frozen=True, slots=True)
class CompiledPlan:
    """A plan and what is worth knowing of its build."""

    plan: bytes
    runtime_version: str
    """The only release that loads it."""
    parser_version: int
    """Of the ONNX parser, as it numbers itself."""
    compute_capabilities: tuple[str, ...]
    parse_seconds: float
    build_seconds: float
    layers: int
    """Of the network as parsed, before fusion."""
    decomposed_attentions: int
    """Attention operators that may be built out of single operations."""
    warnings: tuple[str, ...]


def default_profiles(manifest: Manifest, part: PartName) -> dict[str, Profile]:
    """Shapes for each input of a part, by what serving feeds it. Raises ValueError for a dynamic axis whose meaning is unknown."""
    batch = {
        "mask_decoder": (1, 8, 64),  # one row a [SEG] of up to 16 faces; a larger batch runs in pieces
        "face_detector": (1, 1, 1),  # frame by frame
    }.get(part, (1, 4, 16))
    axes = {
        "batch": batch,
        "length": (1, 1, manifest.decoder.capacity),  # tuned for the step that writes one token
        "capacity": (1, manifest.decoder.capacity, manifest.decoder.capacity),
        "height": (32, 384, 1280),  # a frame of 16:9 at a longer side of 640, in multiples of 32; the second look goes to 1280
        "width": (32, 640, 1280),
    }

    def sizes(tensor: TensorSpec, at: int) -> Shape:
        unknown = [axis for axis in tensor.shape if isinstance(axis, str) and axis not in axes]
        if unknown:
            raise ValueError(f"input {tensor.name} of {part} has a dynamic axis {unknown[0]!r}; the axes with known limits are {', '.join(axes)}")
        return tuple(axes[axis][at] if isinstance(axis, str) else axis for axis in tensor.shape)

    return {tensor.name: Profile(min=sizes(tensor, 0), opt=sizes(tensor, 1), max=sizes(tensor, 2)) for tensor in manifest.parts[part].inputs}


def parse_profiles(manifest: Manifest, minimum: Iterable[str], optimum: Iterable[str], maximum: Iterable[str]) -> dict[PartName, dict[str, Profile]]:
    """The default profiles of every part with what the texts say in their place.

    A text is `name:1x3x224x224`, several separated by commas. A name speaks of the input of every part that has it, `part/name` of one part's.
    Raises ValueError for a text that is none, an unknown name, a wrong rank, a fixed axis that changes, and minimum > optimum > maximum.
    """
    profiles = {part: default_profiles(manifest, part) for part in manifest.parts}
    for field, texts in (("min", minimum), ("opt", optimum), ("max", maximum)):
        for name, shape in _shapes(texts):
            owner, _, plain = name.rpartition("/")
            found = [part for part, inputs in profiles.items() if plain in inputs and owner in ("", part)]
            if not found:
                known = ", ".join(f"{part}/{tensor}" for part, inputs in profiles.items() for tensor in inputs)
                raise ValueError(f"--{field}-shapes names {name!r}, which no part takes; the inputs are {known}")
            for part in found:
                profiles[part][plain] = profiles[part][plain].model_copy(update={field: shape})
    for part, spec in manifest.parts.items():
        for tensor in spec.inputs:
            _check(part, tensor, profiles[part][tensor.name])
    return profiles


def _shapes(texts: Iterable[str]) -> list[tuple[str, Shape]]:
    """ "a:1x2,b:3" to [("a", (1, 2)), ("b", (3,))]."""
    found = []
    for item in (item.strip() for text in texts for item in text.split(",")):
        name, _, shape = item.rpartition(":")
        if not (name and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape, re.ASCII)):
            raise ValueError(f"{item!r} is no shape; write it as name:1x3x224x224")
        found.append((name, tuple(map(int, shape.split("x")))))
    return found


def _check(part: PartName, tensor: TensorSpec, profile: Profile) -> None:
    """Raises ValueError where a profile does not fit its input."""
    name = f"{part}/{tensor.name}"
    for word, shape in (("minimum", profile.min), ("optimum", profile.opt), ("maximum", profile.max)):
        if len(shape) != len(tensor.shape):
            raise ValueError(f"the {word} {_text(shape)} of {name} has {len(shape)} axes, the graph {len(tensor.shape)}: {_text(tensor.shape)}")
        if any(isinstance(axis, int) and size != axis for axis, size in zip(tensor.shape, shape, strict=True)):
            raise ValueError(f"the {word} {_text(shape)} of {name} changes a fixed axis of {_text(tensor.shape)}; only named axes may differ")
    if not all(low <= best <= high for low, best, high in zip(profile.min, profile.opt, profile.max, strict=True)):
        shapes = f"{_text(profile.min)}, {_text(profile.opt)}, {_text(profile.max)}"
        raise ValueError(f"{name} has minimum, optimum and maximum {shapes}; they must not fall: give all three")


def _text(shape: Iterable[int | str]) -> str:
    return "x".join(map(str, shape))


def _compute_capability(text: str) -> str:
    digits = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.strip().lower(), re.ASCII)
    if digits is None:
        raise ValueError(f"{text!r} is no compute capability; write it as 8.9 or SM89")
    return f"SM{digits[1]}{digits[2]}"


def compile_plan(model: Path | bytes, profiles: Mapping[str, Profile], backend: Backend, options: BuildOptions) -> CompiledPlan:
    """Compile one ONNX graph; takes seconds to minutes. Raises BuildError, ProviderError."""
    row = flavour(backend)
    _refuse_what_is_missing(backend, row, options)
    trt = load(backend)
    targets = options.compute_capabilities or row.targets or (CudaDevice().compute_capability(),)
    with collect(trt) as records:
        builder = trt.Builder(library_logger(trt))
        network = builder.create_network(0)
        started = time.perf_counter()
        parser = trt.OnnxParser(network, library_logger(trt))  # owns the weights: it must live until the plan is built
        _parse(parser, model, f"{backend} {trt.__version__}")
        parsed = time.perf_counter()
        attentions = _make_decomposable(trt, network)
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)
        if options.opt_level is not None:
            config.builder_optimization_level = options.opt_level
        if options.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
        if row.targets:
            _set_targets(trt, config, targets)
        _set_profiles(builder, network, config, profiles, records)
        cache = None if options.timing_cache is None else _read_timing_cache(config, options.timing_cache)
        host_memory = builder.build_serialized_network(network, config)
        built = time.perf_counter()
    if host_memory is None:
        raise BuildError(f"{backend} {trt.__version__} cannot build {_name(model)}: {errors(records)}; change the graph, its shapes or the backend")
    if options.timing_cache is not None:
        _write_timing_cache(cache, options.timing_cache)
    return CompiledPlan(
        plan=bytes(memoryview(host_memory)),
        runtime_version=str(trt.__version__),
        parser_version=int(trt.get_nv_onnx_parser_version()),
        compute_capabilities=targets,
        parse_seconds=parsed - started,
        build_seconds=built - parsed,
        layers=int(network.num_layers),
        decomposed_attentions=attentions,
        warnings=tuple(record.message for record in records if record.severity == "WARNING"),
    )


def _refuse_what_is_missing(backend: Backend, row: Flavour, options: BuildOptions) -> None:
    """An option that this library would ignore. Raises BuildError."""
    if options.compute_capabilities and not row.targets:
        raise BuildError(f"{backend} builds for the GPU that is present and takes no --compute-capability; leave it out, or build for tensorrt-rtx")
    if options.timing_cache is not None and not row.has_timing_cache:
        raise BuildError(f"{backend} measures nothing when it builds and keeps no --timing-cache; leave it out")


def _name(model: Path | bytes) -> str:
    return model.name if isinstance(model, Path) else "the graph"


def _parse(parser: Any, model: Path | bytes, library: str) -> None:
    """Fill the parser's network from ONNX. Raises BuildError with node, operator and description of what the parser refuses."""
    if parser.parse(model.read_bytes() if isinstance(model, Path) else model):
        return
    faults = [parser.get_error(number) for number in range(parser.num_errors)]
    said = "; ".join(f"node {fault.node_name()!r} ({fault.node_operator()}): {' '.join(fault.desc().split())}" for fault in faults)
    raise BuildError(f"{library} cannot parse {_name(model)}: {said or 'no reason given'}; export it without that, or for onnxruntime")


def _make_decomposable(trt: ModuleType, network: Any) -> int:
    """Allow attention out of single operations: fp32 has no fused kernel and is refused without. Return how many there are."""
    count = 0
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings hand out the base class
            layer.attention.decomposable = True
            count += 1
    return count


def _set_targets(trt: ModuleType, config: Any, targets: tuple[str, ...]) -> None:
    """One plan for several kinds of GPU. Raises BuildError for one that the library does not know."""
    known = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    if unknown := [name for name in targets if name not in known]:
        raise BuildError(f"{trt.__name__} {trt.__version__} builds for no {unknown[0]}; it knows {', '.join(known)}")
    config.num_compute_capabilities = len(targets)
    for number, name in enumerate(targets):
        config.set_compute_capability(trt.ComputeCapability.__members__[name], number)


def _set_profiles(builder: Any, network: Any, config: Any, profiles: Mapping[str, Profile], records: list[LogRecord]) -> None:
    """Give every input its shapes. Raises BuildError."""
    inputs = [graph_input.name for graph_input in map(network.get_input, range(network.num_inputs))]
    if sorted(inputs) != sorted(profiles):
        raise BuildError(f"the graph takes {', '.join(sorted(inputs))}, shapes are given for {', '.join(sorted(profiles))}; give one for each")
    ranges = builder.create_optimization_profile()
    for name, shapes in profiles.items():
        ranges.set_shape(name, shapes.min, shapes.opt, shapes.max)
    if config.add_optimization_profile(ranges) < 0:
        raise BuildError(f"the shapes {dict(profiles)} are refused: {errors(records)}; see --min-shapes, --opt-shapes, --max-shapes")


def _read_timing_cache(config: Any, path: Path) -> Any:
    """Start from a file of former measurements, or from nothing. Raises BuildError."""
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise BuildError(f"the timing cache {path} is unusable; delete it")
    return cache


def _write_timing_cache(cache: Any, path: Path) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(bytes(memoryview(cache.serialize())))
    partial.replace(path)
