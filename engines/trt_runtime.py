"""Runs TensorRT plans: refuses what is not for this machine before it is loaded, then NumPy in and out, the KV cache in device memory.

Never executed on a GPU by us: the plans of the tests are real, what runs them is a toy with the same interface.

A binding's past and present have one address. That is safe in whatever order the kernels read and write, because the decoder's graph only scatters
new slots into the cache: doing it twice, or over a cache that already has them, gives the same.
"""

import logging
import math
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.contracts import Backend, BundleError, BundleFault, EngineError, Manifest, PartSpec, ProviderError
from engines.cuda import Buffer, CudaDevice, Device
from engines.trt_flavours import FLAVOURS, collect, errors, flavour, installed_version, library_logger, load

logger = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]
Shape = tuple[int, ...]
REBUILD = "build it again here with: fifa-stream engine build"
HEADER_BYTES = 64
"""Shorter files hold no plan."""
STATE_BYTES = 4
"""An element of a binding's state, float32."""
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "UINT8": "uint8", "BOOL": "bool"}
"""TensorRT's names of the types that a `TensorSpec` may state."""


def check_build(manifest: Manifest, folder: Path, *, device: Device | None = None) -> None:
    """Refuse plans of another library, release or GPU, or that are none, before anything of them is loaded. `device` None asks CUDA.

    Raises BundleError with the fault, ProviderError where the library or a GPU is missing.
    """
    build, backend = manifest.build, manifest.backend
    if build is None:
        raise BundleError(BundleFault.UNSUPPORTED, f"the bundle {manifest.name} says backend {backend} but not how it was built; {REBUILD}")
    _check_library(backend, build.runtime_version)
    for part, spec in manifest.parts.items():
        _check_header(folder / spec.file, f"{part} of {manifest.name}", backend, build.runtime_version)
    present = (device or CudaDevice()).compute_capability()
    if present not in build.compute_capabilities:
        raise BundleError(
            BundleFault.WRONG_COMPUTE_CAPABILITY,
            f"{manifest.name} was built for {', '.join(build.compute_capabilities)}, this GPU is {present}; {REBUILD} --backend {backend}",
        )


def _check_library(backend: Backend, version: str) -> None:
    """Is the library of the build installed, in the same release?"""
    try:
        installed = installed_version(backend)
    except ProviderError as error:
        for other in FLAVOURS:
            try:
                found = installed_version(other)
            except ProviderError:
                continue
            raise BundleError(
                BundleFault.WRONG_FLAVOUR, f"the plans are of {backend} {version}, installed is {other} {found}; {REBUILD} --backend {other}"
            ) from error
        raise
    if installed != version:
        raise BundleError(
            BundleFault.WRONG_VERSION,
            f"the plans are of {backend} {version}, installed is {installed}: install that, or {REBUILD} --backend {backend}",
        )


def _check_header(path: Path, name: str, backend: Backend, version: str) -> None:
    """A plan states its library, its size (TensorRT-RTX) and its release in its first bytes."""
    with path.open("rb") as handle:
        header = handle.read(HEADER_BYTES)
    remedy = f"copy the bundle again or {REBUILD} --backend {backend}"
    row, size = FLAVOURS[backend], path.stat().st_size
    for other, foreign in FLAVOURS.items():
        if other != backend and header.startswith(foreign.plan_magic):
            raise BundleError(BundleFault.WRONG_FLAVOUR, f"{path.name} ({name}) is a plan of {other}, the manifest says {backend}; {remedy}")
    if not header.startswith(row.plan_magic):
        raise BundleError(BundleFault.UNUSABLE_PLAN, f"{path.name} ({name}) is no plan of {backend}: it begins with {header[:4]!r}; {remedy}")
    stated = int.from_bytes(header[16:24], "little") if row.states_plan_size else HEADER_BYTES
    if size < HEADER_BYTES or (row.states_plan_size and size != stated):
        raise BundleError(BundleFault.UNUSABLE_PLAN, f"{path.name} ({name}) is cut short: {size} bytes, {stated} are stated; {remedy}")
    made_by = ".".join(map(str, header[24:28]))
    if header[4:8] == bytes(4) and made_by != version:  # where the release stands is known of the first layout only
        raise BundleError(BundleFault.WRONG_VERSION, f"{path.name} ({name}) is a plan of release {made_by}, the manifest says {version}; {remedy}")


class TrtEngine:
    """One plan. Not thread-safe: one thread runs it and its bindings. It has its own stream, so engines may run in threads of their own.

    Device memory is reserved once for the largest shapes of the profile and reused. Shapes that repeat run as a CUDA graph.
    """

    def __init__(self, path: Path, spec: PartSpec, *, backend: Backend, device: Device | None = None, library: Any = None) -> None:
        """After `check_build`; `device` None takes CUDA's, `library` None the installed one. Raises BundleError, ProviderError, EngineError."""
        self._trt = load(backend) if library is None else library
        self._device = device or CudaDevice()
        self._row, self.name = flavour(backend), path.name
        self.inputs, self.outputs = spec.inputs, spec.outputs
        self._plan = self._deserialize(path)
        self._check_interface()
        self._tensors = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
        self._limits: dict[str, tuple[Shape, Shape]] = {}
        for tensor in spec.inputs:
            low, _, high = self._plan.get_tensor_profile_shape(tensor.name, 0)
            self._limits[tensor.name] = (tuple(low), tuple(high))
        self._context = self._new_context()
        for name, (_, high) in self._limits.items():
            self._context.set_input_shape(name, high)
        self._largest: dict[str, Shape] = {name: tuple(self._context.get_tensor_shape(name)) for name in self._tensors}
        self._stream = self._device.create_stream()
        self._buffers: dict[str, Buffer] = {}
        self._spare_states: dict[tuple[str, ...], list[dict[str, Buffer]]] = {}
        self._queued: tuple[dict[str, Shape], dict[str, int]] | None = None
        self._graph: int | None = None
        self._captures = not self._row.captures_graphs
        batches = {tensor.shape[0] if tensor.shape else 0 for tensor in self._tensors.values()}
        self._batch_limit = min(high[0] for _, high in self._limits.values()) if len(batches) == 1 and isinstance(batches.pop(), str) else None

    def _deserialize(self, path: Path) -> Any:
        with collect(self._trt) as records:
            self._runtime = self._trt.Runtime(library_logger(self._trt))  # the engine lives no longer than it
            if any(record.severity != "WARNING" for record in records):  # it is a null object then, and every call on it a crash
                raise EngineError(f"{self._trt.__name__} {self._trt.__version__} does not start: {errors(records)}; check the NVIDIA driver")
            plan = path.read_bytes()
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise BundleError(
                    BundleFault.UNUSABLE_PLAN,
                    f"{self._trt.__name__} {self._trt.__version__} refuses {path}: {self._diagnosis(plan)}{errors(records)}; {REBUILD}",
                )
        return engine

    def _diagnosis(self, plan: bytes) -> str:
        """What TensorRT-RTX thinks of a plan, as "VERSION_MISMATCH: "; '' of the other."""
        if not self._row.diagnoses_plans:
            return ""
        _, flags = self._runtime.get_engine_validity(plan)
        names = [name for name, flag in self._trt.EngineInvalidityDiagnostics.__members__.items() if flags & flag.value]
        return "".join(f"{name}: " for name in names)

    def _check_interface(self) -> None:
        """Names, directions, dtypes and ranks against the manifest."""
        plan, input_mode = self._plan, self._trt.TensorIOMode.INPUT
        found: dict[str, list[tuple[str, str, int]]] = {"input": [], "output": []}
        for name in map(plan.get_tensor_name, range(plan.num_io_tensors)):
            dtype = plan.get_tensor_dtype(name).name
            side = "input" if plan.get_tensor_mode(name) == input_mode else "output"
            found[side].append((name, _DTYPES.get(dtype, dtype), len(plan.get_tensor_shape(name))))
        for side, tensors in (("input", self.inputs), ("output", self.outputs)):
            wanted = [(tensor.name, tensor.dtype, len(tensor.shape)) for tensor in tensors]
            if sorted(found[side]) != sorted(wanted):
                raise BundleError(BundleFault.WRONG_INTERFACE, f"{self.name} has {side}s {found[side]}, the manifest states {wanted}; {REBUILD}")

    def _new_context(self) -> Any:
        if self._row.captures_graphs:
            settings = self._plan.create_runtime_config()
            settings.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._plan.create_execution_context(settings)
        else:
            context = self._plan.create_execution_context()
        if context is None:
            raise EngineError(f"{self.name} gets no execution context: the GPU's memory may be full; stop what else uses it")
        return context

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """See `engines.runtime.Engine.run`. More rows than the plan takes run in pieces, where every input and output has them."""
        rows, limit = max((len(array) for array in feeds.values() if array.ndim), default=0), self._batch_limit
        if limit is None or rows <= limit:
            return self._execute(feeds, {}, {}, [tensor.name for tensor in self.outputs])
        pieces = [self.run({name: array[first : first + limit] for name, array in feeds.items()}) for first in range(0, rows, limit)]
        return {tensor.name: np.concatenate([piece[tensor.name] for piece in pieces]) for tensor in self.outputs}

    def bind(self, state: Mapping[str, str], shapes: Mapping[str, Shape]) -> "TrtBound":
        """See `engines.runtime.Engine.bind`."""
        for name, shape in shapes.items():
            self._check_shape(name, shape)
        return TrtBound(self, state, shapes)

    def _execute(
        self, feeds: Arrays, state_shapes: Mapping[str, Shape], state: Mapping[str, int], returned: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Run once: `feeds` and the inputs of `state_shapes` in, `returned` out; `state` has the addresses of inputs and outputs that stay.

        Raises ValueError for feeds that are not what the plan takes, EngineError when the GPU fails.
        """
        expected = {tensor.name for tensor in self.inputs} - state_shapes.keys()
        if feeds.keys() != expected:
            raise ValueError(f"{self.name} takes {sorted(expected)}, was given {sorted(feeds)}")
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        for name, array in arrays.items():
            self._check_shape(name, array.shape)
            if array.dtype != self._tensors[name].dtype:
                raise ValueError(f"input {name} of {self.name} is {self._tensors[name].dtype}, was given {array.dtype}")
        shapes = {**{name: array.shape for name, array in arrays.items()}, **state_shapes}
        addresses = {**{name: self._address(name) for name in self._tensors if name not in state}, **state}
        for name, array in arrays.items():
            self._device.upload(addresses[name], array, self._stream)
        self._queue(shapes, addresses)
        out = {name: np.empty(tuple(self._context.get_tensor_shape(name)), self._tensors[name].dtype) for name in returned}
        for name, array in out.items():
            self._device.download(array, addresses[name], self._stream)
        self._device.synchronize(self._stream)
        return out

    def _queue(self, shapes: dict[str, Shape], addresses: dict[str, int]) -> None:
        """Queue one execution: at once for new shapes or addresses, recorded the second time, replayed from then on."""
        if (shapes, addresses) != self._queued:
            self._forget_graph()
            self._queued = None
            for name, shape in shapes.items():
                if not self._context.set_input_shape(name, shape):
                    raise EngineError(f"{self.name} refuses {name} of shape {shape}; {REBUILD}")
            for name, address in addresses.items():
                self._context.set_tensor_address(name, address)
            self._enqueue()
            self._queued = (shapes, addresses)
            return
        if self._graph is None and self._captures:
            try:
                self._graph = self._device.capture(self._enqueue, self._stream)
            except EngineError as error:
                self._captures = False
                logger.warning("%s runs without CUDA graphs, slower: %s", self.name, error)
        if self._graph is None:
            self._enqueue()
        else:
            self._device.launch(self._graph, self._stream)

    def _enqueue(self) -> None:
        with collect(self._trt) as records:
            if not self._context.execute_async_v3(self._stream):
                raise EngineError(f"{self.name} failed on the GPU: {errors(records)}")

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self._device.release(self._graph)
            self._graph = None

    def _check_shape(self, name: str, shape: Shape) -> None:
        """Raises ValueError for a shape outside the profile."""
        low, high = self._limits[name]
        if len(shape) != len(low) or not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
            raise ValueError(f"input {name} of {self.name} takes {low} to {high}, was given {shape}; build with other --min-shapes or --max-shapes")

    def _bytes(self, name: str) -> int:
        return int(np.dtype(self._tensors[name].dtype).itemsize * math.prod(self._largest[name]))

    def _address(self, name: str) -> int:
        """Of the engine's own buffer, which is made when it is first used: what a binding keeps needs none."""
        if name not in self._buffers:
            self._buffers[name] = Buffer(self._device, self._bytes(name))
        return self._buffers[name].address


class TrtBound:
    """A plan with its state in device memory; see `engines.runtime.Bound`."""

    def __init__(self, engine: TrtEngine, state: Mapping[str, str], shapes: Mapping[str, Shape]) -> None:
        self._engine, self._shapes = engine, {name: tuple(shapes[name]) for name in state}
        spare = engine._spare_states.setdefault(tuple(state), [])
        self._buffers = spare.pop() if spare else {name: Buffer(engine._device, engine._bytes(name)) for name in state}
        weakref.finalize(self, spare.append, self._buffers)
        for buffer in self._buffers.values():
            engine._device.clear(buffer.address, buffer.size, engine._stream)
        self._addresses = {tensor: self._buffers[past].address for past, present in state.items() for tensor in (past, present)}
        self._returned = [tensor.name for tensor in engine.outputs if tensor.name not in self._addresses]

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """See `engines.runtime.Bound.run`."""
        rows = len(next(iter(feeds.values())))
        bound_rows = min(shape[0] for shape in self._shapes.values())
        if rows > bound_rows:
            raise ValueError(f"{rows} rows are fed to a binding of {bound_rows}; bind anew")
        return self._engine._execute(feeds, {name: (rows, *shape[1:]) for name, shape in self._shapes.items()}, self._addresses, self._returned)

    def place(self, rows: Sequence[int], source: "TrtBound", source_rows: Sequence[int]) -> None:
        """See `engines.runtime.Bound.place`. Raises ValueError where more than one axis has another size."""
        device, stream = self._engine._device, self._engine._stream
        for name, buffer in self._buffers.items():
            sizes, source_sizes = self._shapes[name][1:], source._shapes[name][1:]
            width, height = _common_block(sizes, source_sizes)
            size, source_size = math.prod(sizes) * STATE_BYTES, math.prod(source_sizes) * STATE_BYTES
            for row, source_row in zip(rows, source_rows, strict=True):
                target, origin = buffer.address + row * size, source._buffers[name].address + source_row * source_size
                device.copy_rows(target, size // height, origin, source_size // height, width, height, stream)


def _common_block(sizes: Shape, source_sizes: Shape) -> tuple[int, int]:
    """The common beginning of two C-contiguous arrays that differ in one axis at most: bytes that lie together, and how often."""
    differing = [axis for axis, (a, b) in enumerate(zip(sizes, source_sizes, strict=True)) if a != b]
    if len(differing) > 1:
        raise ValueError(f"state of shape {source_sizes} cannot be placed into {sizes}: more than one axis differs")
    axis = differing[0] if differing else 0
    return min(sizes[axis], source_sizes[axis]) * math.prod(sizes[axis + 1 :]) * STATE_BYTES, math.prod(sizes[:axis])
