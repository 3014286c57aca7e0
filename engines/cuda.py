"""The little of CUDA that an engine needs, behind a Protocol: memory, one stream's copies, graphs. Sizes in bytes, addresses and handles as integers.

`CudaDevice` goes through NVIDIA's `cuda-bindings`. It has never been executed on a GPU by us: without one only its refusal is tested.
"""

import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

from numpy.typing import NDArray

from engines.contracts import EngineError, ProviderError

WITHOUT = "or use a bundle of backend onnxruntime"


class CudaError(EngineError):
    """A CUDA call failed."""


class Device(Protocol):
    """One GPU. Copies and launches are queued on a stream and done after `synchronize`; until then host arrays must live."""

    def compute_capability(self) -> str:
        """As "SM89"."""
        ...

    def allocate(self, size: int) -> int:
        """Reserve memory."""
        ...

    def free(self, address: int) -> None:
        """Give it back."""
        ...

    def create_stream(self) -> int:
        """A stream that does not wait for the default one."""
        ...

    def upload(self, address: int, array: NDArray[Any], stream: int) -> None:
        """Copy a C-contiguous array to the device."""
        ...

    def download(self, array: NDArray[Any], address: int, stream: int) -> None:
        """Fill a C-contiguous array from the device."""
        ...

    def clear(self, address: int, size: int, stream: int) -> None:
        """Write zeros."""
        ...

    def copy_rows(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int, stream: int) -> None:
        """Copy `height` rows of `width` bytes inside the device; pitches are the distances of their beginnings."""
        ...

    def synchronize(self, stream: int) -> None:
        """Wait until all that was queued is done."""
        ...

    def capture(self, enqueue: Callable[[], None], stream: int) -> int:
        """Record what `enqueue` queues, without running it. Raises CudaError where something in it cannot be recorded."""
        ...

    def launch(self, graph: int, stream: int) -> None:
        """Queue a recorded graph."""
        ...

    def release(self, graph: int) -> None:
        """Forget a recorded graph."""
        ...


class Buffer:
    """Device memory that is given back with this object."""

    def __init__(self, device: Device, size: int) -> None:
        self.address = device.allocate(size)
        self.size = size
        weakref.finalize(self, device.free, self.address).atexit = False  # the end of the process gives all back


class CudaDevice:
    """The first GPU that CUDA shows; CUDA_VISIBLE_DEVICES chooses another."""

    def __init__(self) -> None:
        """Raises ProviderError where there is no GPU, driver or `cuda-bindings`."""
        try:
            self._cuda: Any = import_module("cuda.bindings.runtime")
        except ImportError as missing:
            raise ProviderError(f"a GPU backend needs cuda-bindings ({missing}); pip install 'fifa-stream[tensorrt-rtx]' {WITHOUT}") from None
        error, count = self._cuda.cudaGetDeviceCount()
        if error != self._cuda.cudaError_t.cudaSuccess:
            raise ProviderError(
                f"no usable CUDA device ({self._text(error)}); install an NVIDIA driver of 580 or later on a machine with a GPU, {WITHOUT}"
            )
        if not count:
            raise ProviderError(f"CUDA shows no device; check CUDA_VISIBLE_DEVICES, {WITHOUT}")

    def _text(self, error: Any) -> str:
        return f"{error.name}: {self._cuda.cudaGetErrorString(error)[1].decode()}"

    def _call(self, name: str, *arguments: Any) -> Any:
        """The single value that a call returns beside its status, if any. Raises CudaError."""
        error, *values = getattr(self._cuda, name)(*arguments)
        if error != self._cuda.cudaError_t.cudaSuccess:
            raise CudaError(f"{name} failed with {self._text(error)}")
        return values[0] if values else None

    def compute_capability(self) -> str:
        """See `Device`."""
        kinds = self._cuda.cudaDeviceAttr
        major, minor = (
            self._call("cudaDeviceGetAttribute", kind, 0)
            for kind in (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
        )
        return f"SM{major}{minor}"

    def allocate(self, size: int) -> int:
        """See `Device`."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """See `Device`."""
        self._call("cudaFree", address)

    def create_stream(self) -> int:
        """See `Device`."""
        return int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def upload(self, address: int, array: NDArray[Any], stream: int) -> None:
        """See `Device`."""
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def download(self, array: NDArray[Any], address: int, stream: int) -> None:
        """See `Device`."""
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    def clear(self, address: int, size: int, stream: int) -> None:
        """See `Device`."""
        self._call("cudaMemsetAsync", address, 0, size, stream)

    def copy_rows(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int, stream: int) -> None:
        """See `Device`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", target, target_pitch, source, source_pitch, width, height, kind, stream)

    def synchronize(self, stream: int) -> None:
        """See `Device`."""
        self._call("cudaStreamSynchronize", stream)

    def capture(self, enqueue: Callable[[], None], stream: int) -> int:
        """See `Device`."""
        self._call("cudaStreamBeginCapture", stream, self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            enqueue()
        finally:
            graph = self._call("cudaStreamEndCapture", stream)  # must end, or the stream stays unusable
        try:
            return int(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        """See `Device`."""
        self._call("cudaGraphLaunch", graph, stream)

    def release(self, graph: int) -> None:
        """See `Device`."""
        self._call("cudaGraphExecDestroy", graph)
