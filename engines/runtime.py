"""One graph and how it is run: the protocol of every backend, and ONNX Runtime on the CPU. Names, dtypes and ranks are checked once, at load.

The provider that runs is the provider that was asked for, or an error: there is no fallback.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engines.contracts import REBUILD, BundleError, BundleFault, PartSpec, ProviderError, TensorSpec, one_line

Arrays = Mapping[str, NDArray[Any]]


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

    def __init__(self, path: Path, spec: PartSpec, *, threads: int) -> None:
        """`threads` 0 lets the runtime choose. Raises BundleError, ProviderError."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning starves neighbours on shared cores
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
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
        return dict(zip(self._output_names, self._session.run(self._output_names, dict(feeds)), strict=True))

    def bind(self, state: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> "OrtBound":
        """See `Engine.bind`."""
        return OrtBound(self._session, state, shapes, [name for name in self._output_names if name not in state.values()])


class OrtBound:
    """An ONNX Runtime session with its state bound in place: past and present share one buffer, so a step copies no cache.

    All buffers are memory that NumPy and the runtime share, and stay bound from run to run while the shapes of the feeds stay the same.
    """

    def __init__(self, session: ort.InferenceSession, state: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], returned: list[str]) -> None:
        self._session, self._state, self._returned = session, state, returned
        self._kept = {name: np.zeros(shapes[name], np.float32) for name in state}
        self._fed: dict[str, NDArray[Any]] = {}
        self._given: dict[str, NDArray[Any]] = {}

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """See `Bound.run`."""
        if {name: array.shape for name, array in feeds.items()} != {name: array.shape for name, array in self._fed.items()}:
            return self._bind_and_run(feeds)
        for name, array in feeds.items():
            self._fed[name][...] = array
        self._session.run_with_iobinding(self._binding)
        return dict(self._given)

    def _bind_and_run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run on feeds of other shapes than before; the runtime allocates what it returns, which is bound for the runs that follow."""
        self._fed = {name: np.array(array, order="C") for name, array in feeds.items()}
        rows = len(next(iter(self._fed.values())))
        self._binding = self._session.io_binding()
        for name, array in self._fed.items():
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, output in self._state.items():
            shared = ort.OrtValue.ortvalue_from_numpy(self._kept[name][:rows])
            self._binding.bind_ortvalue_input(name, shared)
            self._binding.bind_ortvalue_output(output, shared)
        for name in self._returned:
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding)
        values = self._binding.get_outputs()[len(self._state) :]  # in the order they were bound
        for name, value in zip(self._returned, values, strict=True):
            self._binding.bind_ortvalue_output(name, value)
        self._given = {name: value.numpy() for name, value in zip(self._returned, values, strict=True)}
        return dict(self._given)

    def place(self, rows: Sequence[int], source: "OrtBound", source_rows: Sequence[int]) -> None:
        """See `Bound.place`."""
        place_rows(self._kept, rows, source._kept, source_rows)


def place_rows(
    kept: Mapping[str, NDArray[np.float32]], rows: Sequence[int], source: Mapping[str, NDArray[np.float32]], source_rows: Sequence[int]
) -> None:
    """`Bound.place` for states that NumPy can write."""
    for name, target in kept.items():
        common = tuple(slice(min(sizes)) for sizes in zip(target.shape[1:], source[name].shape[1:], strict=True))
        for row, source_row in zip(rows, source_rows, strict=True):
            target[row][common] = source[name][source_row][common]


def _dtype(onnx_type: str) -> str:
    """'tensor(float)' to 'float32'."""
    inner = onnx_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)
