"""One graph and how it is run: the protocol of every backend, and ONNX Runtime on the CPU. Names, dtypes and ranks are checked once, at load.

The provider that runs is the provider that was asked for, or an error: there is no fallback.

On a CPU, rows run in groups that keep a core's cache: together they would be slower and need more memory, and no row knows of another. `make bench`
measures this and the arena.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engines.contracts import REBUILD, BundleError, BundleFault, PartSpec, ProviderError, TensorSpec, one_line

Arrays = Mapping[str, NDArray[Any]]
TOKENS_TOGETHER = 320
"""Tokens that one thread runs together in a graph with state: about what a face's patches are to the encoder, of which one thread takes one face."""

LEFT_OUT_OF_STEPS = ["MatMulScaleFusion"]
"""Of ONNX Runtime's optimizers, in a graph with state: it moves the scale of attention into the product as a factor, which keeps the product of a
single row from the kernel made for one row."""


class Bound(Protocol):
    """A graph with state tensors that stay where the backend keeps them between runs (the KV cache); axis 0 of each counts the rows of the batch.

    Another number of rows or another capacity is another binding: bind anew, then `place` what is kept.
    """

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run the first n rows on their state, n being the rows of `feeds` (1 to all); return the outputs that are not state, n rows each.

        Rows behind them may be overwritten with anything finite. The returned arrays may be overwritten by the next run: copy what is kept.
        """
        ...

    def place(self, rows: Sequence[int], source: Self, source_rows: Sequence[int]) -> None:
        """Copy the state of `source_rows` of a binding of the same engine into `rows`, one for one, inside the backend.

        `source` may be this binding where no row is in both. Of axes of different sizes (capacity) the common beginning is copied; the rest of
        `rows` keeps what it holds.
        """
        ...


class Engine(Protocol):
    """One graph of a bundle. Not thread-safe: one thread runs it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Feed every input by name; return every output by name, as new arrays."""
        ...

    def bind(self, state: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Bound:
        """Keep `state` (input name to output name, float32) inside the backend, zeroed, with these shapes.

        Axes that `inputs` states as numbers take no other size. Several bindings of one engine may live at once.
        """
        ...


class OrtEngine:
    """A graph in an ONNX Runtime CPU session."""

    def __init__(self, path: Path, spec: PartSpec, *, threads: int, rows_together: int | None = None) -> None:
        """`threads` 0 lets the runtime choose. `rows_together`: axis 0 of every input and output counts rows, and so many of them run at a time.

        Raises BundleError, ProviderError.
        """
        options = session_options(threads)
        threads = threads or os.cpu_count() or 1
        self._rows_together, self._tokens_together = rows_together, TOKENS_TOGETHER * threads
        left_out = LEFT_OUT_OF_STEPS if any(tensor.name.startswith("past_") for tensor in spec.inputs) else []
        # Weights in a file beside the graph, which no digest covers, are not found: the graph comes as bytes, and what it names lies nowhere.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        try:
            self._session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out)
        except Exception as error:  # the runtime's own exception types are not public
            raise BundleError(
                BundleFault.WRONG_INTERFACE, f"ONNX Runtime {ort.__version__} cannot load {path}: {one_line(error)}; {REBUILD}"
            ) from error
        if (running := self._session.get_providers()[0]) != "CPUExecutionProvider":
            raise ProviderError(f"asked for CPUExecutionProvider, {running} runs {path.name}; install the plain onnxruntime package")
        self.inputs, self.outputs = spec.inputs, spec.outputs
        for side, stated, actual in (("input", spec.inputs, self._session.get_inputs()), ("output", spec.outputs, self._session.get_outputs())):
            found = [(value.name, _dtype(value.type), len(value.shape)) for value in actual]
            wanted = [(tensor.name, tensor.dtype, len(tensor.shape)) for tensor in stated]
            if found != wanted:
                raise BundleError(BundleFault.WRONG_INTERFACE, f"{path.name} has {side}s {found}, the manifest states {wanted}; {REBUILD}")
        self._output_names = [tensor.name for tensor in spec.outputs]

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        rows, together = len(next(iter(feeds.values()))), self._rows_together
        if together is None or rows <= together:
            return dict(zip(self._output_names, self._session.run(self._output_names, dict(feeds)), strict=True))
        groups = [self.run({name: array[first : first + together] for name, array in feeds.items()}) for first in range(0, rows, together)]
        return {name: np.concatenate([group[name] for group in groups]) for name in self._output_names}

    def bind(self, state: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> "OrtBound":
        """See `Engine.bind`."""
        returned = [name for name in self._output_names if name not in state.values()]
        return OrtBound(self._session, state, shapes, returned, tokens_together=self._tokens_together)


class OrtBound:
    """An ONNX Runtime session with its state bound in place: past and present share one buffer, so a step copies no cache.

    All buffers are memory that NumPy and the runtime share; what is bound for feeds of some shapes stays bound for the next of these shapes.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        state: Mapping[str, str],
        shapes: Mapping[str, tuple[int, ...]],
        returned: list[str],
        *,
        tokens_together: int,
    ) -> None:
        """Feeds are (rows, tokens, ...): rows of more tokens than `tokens_together` run in groups."""
        self._session, self._state, self._returned, self._tokens_together = session, state, returned, tokens_together
        self._kept = {name: np.zeros(shapes[name], np.float32) for name in state}
        self._groups: dict[tuple[int, tuple[tuple[int, ...], ...]], _OrtGroup] = {}

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """See `Bound.run`."""
        rows, tokens = next(iter(feeds.values())).shape[:2]
        together = max(1, self._tokens_together // tokens)
        if rows <= together:
            return dict(self._run_group(0, feeds))
        firsts = range(0, rows, together)
        groups = [self._run_group(first, {name: array[first : first + together] for name, array in feeds.items()}) for first in firsts]
        return {name: np.concatenate([group[name] for group in groups]) for name in self._returned}

    def _run_group(self, first: int, feeds: Arrays) -> Arrays:
        """Run on the rows from `first` on."""
        key = first, tuple(array.shape for array in feeds.values())
        if (group := self._groups.get(key)) is not None:
            return group.run(feeds)
        rows = len(next(iter(feeds.values())))
        state = {(name, output): self._kept[name][first : first + rows] for name, output in self._state.items()}
        self._groups[key] = group = _OrtGroup(self._session, feeds, state, self._returned)
        return group.given

    def place(self, rows: Sequence[int], source: "OrtBound", source_rows: Sequence[int]) -> None:
        """See `Bound.place`."""
        place_rows(self._kept, rows, source._kept, source_rows)


class _OrtGroup:
    """Some rows of a binding with feeds of some shapes: everything bound once, at the first run."""

    def __init__(
        self, session: ort.InferenceSession, feeds: Arrays, state: Mapping[tuple[str, str], NDArray[np.float32]], returned: Sequence[str]
    ) -> None:
        """Bind and run; the runtime allocates what it returns, which is bound for the runs that follow."""
        self._session, self._binding = session, session.io_binding()
        self._fed = {name: np.array(array, order="C") for name, array in feeds.items()}
        for name, array in self._fed.items():
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for (name, output), rows in state.items():
            shared = ort.OrtValue.ortvalue_from_numpy(rows)
            self._binding.bind_ortvalue_input(name, shared)
            self._binding.bind_ortvalue_output(output, shared)
        for name in returned:
            self._binding.bind_output(name, "cpu")
        session.run_with_iobinding(self._binding)
        values = self._binding.get_outputs()[len(state) :]  # in the order they were bound
        for name, value in zip(returned, values, strict=True):
            self._binding.bind_ortvalue_output(name, value)
        self.given: Arrays = {name: value.numpy() for name, value in zip(returned, values, strict=True)}

    def run(self, feeds: Arrays) -> Arrays:
        """Run on feeds of the same shapes."""
        for name, array in feeds.items():
            self._fed[name][...] = array
        self._session.run_with_iobinding(self._binding)
        return self.given


def place_rows(
    kept: Mapping[str, NDArray[np.float32]], rows: Sequence[int], source: Mapping[str, NDArray[np.float32]], source_rows: Sequence[int]
) -> None:
    """`Bound.place` for states that NumPy can write."""
    for name, target in kept.items():
        common = tuple(slice(min(sizes)) for sizes in zip(target.shape[1:], source[name].shape[1:], strict=True))
        for row, source_row in zip(rows, source_rows, strict=True):
            target[row][common] = source[name][source_row][common]


def session_options(threads: int) -> ort.SessionOptions:
    """How every session runs here; `threads` 0 lets the runtime choose."""
    _share_arena()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning starves neighbours on shared cores
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.enable_mem_pattern = False  # a pattern of its own for every shape met: more memory, no time gained
    return options


@cache
def _share_arena() -> None:
    """One arena for all sessions of the process: each by itself would hold on to the most that it ever needed, and never at the same time."""
    ort.create_and_register_allocator(ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT), None)


def _dtype(onnx_type: str) -> str:
    """'tensor(float)' to 'float32'."""
    inner = onnx_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)
