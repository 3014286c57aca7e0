"""The TensorRT adapter over a toy library and a toy GPU, both NumPy; and what is refused before anything is loaded."""

import gc
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from engines import trt_runtime
from engines.bundle import bundled_engine, read_manifest
from engines.contracts import Backend, BuildSpec, BundleError, BundleFault, EngineError, Manifest, PartSpec, Profile, ProviderError, TensorSpec
from engines.cuda import CudaDevice, CudaError
from engines.runtime import place_rows
from engines.trt_build import BuildOptions, compile_plan
from engines.trt_flavours import FLAVOURS, installed_version
from engines.trt_runtime import TrtEngine, check_build

NO_GPU = 35
"""cudaErrorInsufficientDriver."""


class ToyDevice:
    """Memory as one array of bytes; work is done at once, or recorded while a capture runs."""

    def __init__(self, *, capturable: bool = True) -> None:
        self.memory, self.live, self.next_address = np.zeros(1 << 20, np.uint8), {}, 256
        self.capturable, self.recording, self.graphs = capturable, None, {}
        self.did: list[str] = []

    def compute_capability(self) -> str:
        return "SM89"

    def allocate(self, size: int) -> int:
        address, self.next_address = self.next_address, self.next_address + size + 256
        self.live[address] = size
        self.memory[address : address + size] = 0xFF  # NaN to whoever reads what was not written
        self.did.append("allocate")
        return address

    def free(self, address: int) -> None:
        del self.live[address]

    def create_stream(self) -> int:
        return 7

    def view(self, address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert any(start <= address and address + size <= start + held for start, held in self.live.items()), "outside of what is allocated"
        return self.memory[address : address + size].view(dtype).reshape(shape)

    def submit(self, work: Callable[[], None]) -> None:
        if self.recording is None:
            work()
        elif not self.capturable:
            raise CudaError("cudaStreamEndCapture failed with cudaErrorStreamCaptureInvalidated")
        else:
            self.recording.append(work)

    def upload(self, address: int, array: np.ndarray, stream: int) -> None:
        self.view(address, array.shape, array.dtype)[...] = array
        self.did.append("upload")

    def download(self, array: np.ndarray, address: int, stream: int) -> None:
        array[...] = self.view(address, array.shape, array.dtype)
        self.did.append("download")

    def clear(self, address: int, size: int, stream: int) -> None:
        self.view(address, (size,), "uint8")[...] = 0

    def copy_rows(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int, stream: int) -> None:
        for number in range(height):
            block = self.view(source + number * source_pitch, (width,), "uint8")
            self.view(target + number * target_pitch, (width,), "uint8")[...] = block
        self.did.append("copy")

    def synchronize(self, stream: int) -> None:
        assert stream == 7

    def capture(self, enqueue: Callable[[], None], stream: int) -> int:
        self.did.append("capture")
        self.recording = []
        try:
            enqueue()
            self.graphs[len(self.did)] = self.recording
        finally:
            self.recording = None
        return len(self.did)

    def launch(self, graph: int, stream: int) -> None:
        self.did.append("launch")
        for work in self.graphs[graph]:
            work()

    def release(self, graph: int) -> None:
        self.did.append("release")
        del self.graphs[graph]


@dataclass
class Network:
    """What a toy plan stands for: shapes with names for dynamic axes, their limits, and a function over the arrays by name."""

    inputs: dict[str, tuple[str, tuple[int | str, ...]]]
    outputs: dict[str, tuple[str, tuple[int | str, ...]]]
    limits: dict[str, tuple[int, int]]
    compute: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]

    def spec(self, path: Path) -> PartSpec:
        """What the manifest says of it."""
        kinds = {"FLOAT": "float32", "INT64": "int64"}

        def tensors(side: Mapping[str, tuple[str, tuple[int | str, ...]]]) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(name=name, dtype=kinds[dtype], shape=shape) for name, (dtype, shape) in side.items())

        return PartSpec(file=path.name, sha256="0" * 64, size_bytes=0, inputs=tensors(self.inputs), outputs=tensors(self.outputs))


class ILogger:
    """Base class and severities, as the bindings have them."""

    Severity = Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])
    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING


@dataclass(eq=False)
class ToyLibrary:
    """The part of TensorRT's interface that the adapter uses; plans are keys of `networks`."""

    device: ToyDevice
    networks: dict[bytes, Network] = field(default_factory=dict)
    starts: bool = True
    contexts: list[Any] = field(default_factory=list)

    ILogger = ILogger
    TensorIOMode = Enum("TensorIOMode", ["INPUT", "OUTPUT"])
    DataType = Enum("DataType", ["FLOAT", "INT64"])
    CudaGraphStrategy = Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
    EngineInvalidityDiagnostics = Enum("EngineInvalidityDiagnostics", {"VERSION_MISMATCH": 1, "MALFORMED_ENGINE": 32})
    __version__ = "1.0.0.1"

    def __post_init__(self) -> None:
        self.__name__ = "toy_tensorrt"

    def Runtime(self, logger: Any) -> Any:
        if not self.starts:
            logger.log(ILogger.Severity.ERROR, "CUDA initialization failure\nwith error: 35")
        return ToyRuntime(self, logger)


@dataclass
class ToyRuntime:
    library: ToyLibrary
    logger: Any

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        assert self.library.starts, "a null Runtime crashes"
        if plan not in self.library.networks:
            self.logger.log(ILogger.Severity.ERROR, "Serialization assertion header.magicTag failed.")
            return None
        return ToyEngine(self.library, self.library.networks[plan])

    def get_engine_validity(self, plan: bytes) -> tuple[str, int]:
        return "INVALID", 1 | 32


class ToyEngine:
    def __init__(self, library: ToyLibrary, network: Network) -> None:
        self.library, self.network = library, network
        self.tensors = {**network.outputs, **network.inputs}  # in an order that is not the manifest's
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.library.TensorIOMode["INPUT" if name in self.network.inputs else "OUTPUT"]

    def get_tensor_dtype(self, name: str) -> Any:
        return self.library.DataType[self.tensors[name][0]]

    def get_tensor_shape(self, name: str) -> list[int]:
        return [-1 if isinstance(axis, str) else axis for axis in self.tensors[name][1]]

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        assert index == 0
        low, high = ([self.network.limits[axis][at] if isinstance(axis, str) else axis for axis in self.tensors[name][1]] for at in (0, 1))
        return [low, low, high]

    def create_runtime_config(self) -> Any:
        return type("Config", (), {"cuda_graph_strategy": self.library.CudaGraphStrategy.DISABLED})()

    def create_execution_context(self, config: Any = None) -> Any:
        self.library.contexts.append(ToyContext(self, config))
        return self.library.contexts[-1]


class ToyContext:
    def __init__(self, engine: ToyEngine, config: Any) -> None:
        self.engine, self.config, self.axes, self.addresses = engine, config, {}, {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.axes |= {axis: size for axis, size in zip(self.engine.tensors[name][1], shape, strict=True) if isinstance(axis, str)}
        return True

    def get_tensor_shape(self, name: str) -> list[int]:
        return [self.axes[axis] if isinstance(axis, str) else axis for axis in self.engine.tensors[name][1]]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        device, network, kinds = self.engine.library.device, self.engine.network, {"FLOAT": "float32", "INT64": "int64"}
        shapes, addresses = {name: tuple(self.get_tensor_shape(name)) for name in self.engine.tensors}, dict(self.addresses)

        def work() -> None:
            views = {name: device.view(addresses[name], shapes[name], kinds[dtype]) for name, (dtype, _) in self.engine.tensors.items()}
            for name, array in network.compute({name: views[name] for name in network.inputs}).items():
                views[name][...] = array

        device.submit(work)
        return True


def running_sum(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A cache of slots: writes `x` at `positions`, returns for each position the sum of the slots up to it."""
    present = feeds["past"].copy()
    for row, positions in enumerate(feeds["positions"]):
        present[row, :, positions] = feeds["x"][row][:, None]
    slots = np.arange(present.shape[2])
    seen = slots[None, None] <= feeds["positions"][:, :, None]
    return {"sum": np.einsum("bhcd,blc->bld", np.where(np.isnan(present), 1e9, present), seen.astype(np.float32)), "present": present}


DECODER = Network(
    inputs={
        "x": ("FLOAT", ("batch", "length", 2)),
        "positions": ("INT64", ("batch", "length")),
        "past": ("FLOAT", ("batch", 1, "capacity", 2)),
    },
    outputs={"sum": ("FLOAT", ("batch", "length", 2)), "present": ("FLOAT", ("batch", 1, "capacity", 2))},
    limits={"batch": (1, 4), "length": (1, 6), "capacity": (4, 6)},
    compute=running_sum,
)
DOUBLE = Network(
    inputs={"image": ("FLOAT", ("batch", 3))},
    outputs={"twice": ("FLOAT", ("batch", 3)), "total": ("FLOAT", ("batch",))},
    limits={"batch": (1, 4)},
    compute=lambda feeds: {"twice": feeds["image"] * 2, "total": feeds["image"].sum(1)},
)


def opened(network: Network, folder: Path, *, backend: Backend = "tensorrt", device: ToyDevice | None = None) -> tuple[TrtEngine, ToyDevice]:
    """An engine over a toy plan."""
    path, gpu = folder / "part.plan", device or ToyDevice()
    path.write_bytes(b"the plan")
    library = ToyLibrary(gpu, {b"the plan": network})
    return TrtEngine(path, network.spec(path), backend=backend, device=gpu, library=library), gpu


def step(tokens: list[list[float]], at: int) -> dict[str, np.ndarray]:
    """One token a row, all at one position."""
    x = np.array(tokens, np.float32)[:, None]
    return {"x": x, "positions": np.full((len(x), 1), at, np.int64)}


def test_a_run_gives_new_arrays_of_what_the_network_computes(tmp_path: Path) -> None:
    engine, _ = opened(DOUBLE, tmp_path)
    image = np.arange(6, dtype=np.float32).reshape(2, 3)
    first = engine.run({"image": image})
    second = engine.run({"image": image + 1})
    np.testing.assert_array_equal(first["twice"], image * 2)
    np.testing.assert_array_equal(second["total"], (image + 1).sum(1))


def test_memory_is_reserved_once_for_the_largest_shapes(tmp_path: Path) -> None:
    engine, gpu = opened(DOUBLE, tmp_path)
    for rows in (1, 4, 2, 4, 4):
        engine.run({"image": np.ones((rows, 3), np.float32)})
    assert sorted(gpu.live.values()) == [16, 48, 48]
    assert gpu.did.count("allocate") == 3


def test_memory_goes_with_the_engine(tmp_path: Path) -> None:
    engine, gpu = opened(DOUBLE, tmp_path)
    engine.run({"image": np.ones((1, 3), np.float32)})
    del engine
    gc.collect()
    assert not gpu.live


@given(rows=st.integers(1, 19))
@settings(deadline=None)
def test_any_batch_gives_what_its_rows_give(rows: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    engine, _ = opened(DOUBLE, tmp_path_factory.mktemp("plan"))
    image = np.random.default_rng(rows).random((rows, 3), np.float32)
    out = engine.run({"image": image})
    np.testing.assert_array_equal(out["twice"], image * 2)
    np.testing.assert_array_equal(out["total"], np.concatenate([engine.run({"image": row[None]})["total"] for row in image]))


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        pytest.param({"x": np.ones((1, 2), np.float32)}, r"part.plan takes \['image'\], was given \['x'\]", id="name"),
        pytest.param({"image": np.ones((1, 3))}, "input image of part.plan is float32, was given float64", id="dtype"),
        pytest.param(
            {"image": np.ones((1, 4), np.float32)}, r"takes \(1, 3\) to \(4, 3\), was given \(1, 4\); build with other --min-shapes", id="fixed axis"
        ),
        pytest.param({"image": np.ones((0, 3), np.float32)}, r"was given \(0, 3\)", id="no rows"),
        pytest.param({"image": np.ones(3, np.float32)}, r"was given \(3,\)", id="rank"),
    ],
)
def test_feeds_that_the_plan_does_not_take_are_refused(feeds: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    engine, _ = opened(DOUBLE, tmp_path)
    with pytest.raises(ValueError, match=message):
        engine.run(feeds)


def test_the_state_of_a_binding_never_leaves_the_device(tmp_path: Path) -> None:
    engine, gpu = opened(DECODER, tmp_path)
    bound = engine.bind({"past": "present"}, {"past": (2, 1, 4, 2)})
    out = [bound.run(step([[1, 2], [3, 4]], at)) for at in range(4)]
    np.testing.assert_array_equal(out[-1]["sum"][:, 0], [[4, 8], [12, 16]])
    assert [set(one) for one in out] == [{"sum"}] * 4
    assert (gpu.did.count("upload"), gpu.did.count("download")) == (8, 4)


def test_past_and_present_have_one_address(tmp_path: Path) -> None:
    engine, gpu = opened(DECODER, tmp_path)
    bound = engine.bind({"past": "present"}, {"past": (2, 1, 4, 2)})
    bound.run(step([[1, 2], [3, 4]], 0))
    (context,) = engine._trt.contexts
    assert context.addresses["past"] == context.addresses["present"]
    assert gpu.did.count("allocate") == 4


def test_a_binding_begins_with_zeros_in_memory_that_was_used_before(tmp_path: Path) -> None:
    engine, gpu = opened(DECODER, tmp_path)
    for _ in range(3):
        bound = engine.bind({"past": "present"}, {"past": (1, 1, 4, 2)})
        np.testing.assert_array_equal(bound.run(step([[1, 2]], 3))["sum"], [[[1, 2]]])
        del bound
        gc.collect()
    assert gpu.did.count("allocate") == 4


def test_two_bindings_have_states_of_their_own(tmp_path: Path) -> None:
    engine, _ = opened(DECODER, tmp_path)
    one, other = (engine.bind({"past": "present"}, {"past": (1, 1, 4, 2)}) for _ in range(2))
    for at in range(3):
        a, b = one.run(step([[1, 1]], at)), other.run(step([[10, 10]], at))
    np.testing.assert_array_equal((a["sum"][0, 0], b["sum"][0, 0]), ([3, 3], [30, 30]))


def test_fewer_rows_than_bound_leave_the_others_as_they_were(tmp_path: Path) -> None:
    engine, _ = opened(DECODER, tmp_path)
    bound = engine.bind({"past": "present"}, {"past": (3, 1, 4, 2)})
    bound.run(step([[1, 1], [2, 2], [3, 3]], 0))
    bound.run(step([[1, 1]], 1))
    np.testing.assert_array_equal(bound.run(step([[0, 0], [0, 0], [0, 0]], 3))["sum"][:, 0, 0], [2, 2, 3])


def test_more_rows_than_bound_are_refused(tmp_path: Path) -> None:
    engine, _ = opened(DECODER, tmp_path)
    bound = engine.bind({"past": "present"}, {"past": (1, 1, 4, 2)})
    with pytest.raises(ValueError, match="2 rows are fed to a binding of 1"):
        bound.run(step([[1, 1], [2, 2]], 0))


def test_a_binding_larger_than_the_profile_is_refused(tmp_path: Path) -> None:
    engine, _ = opened(DECODER, tmp_path)
    with pytest.raises(ValueError, match=r"input past .* takes \(1, 1, 4, 2\) to \(4, 1, 6, 2\), was given \(5, 1, 6, 2\)"):
        engine.bind({"past": "present"}, {"past": (5, 1, 6, 2)})


@given(
    capacities=st.tuples(st.integers(4, 6), st.integers(4, 6)), moves=st.dictionaries(st.integers(0, 3), st.integers(0, 3)), heads=st.integers(1, 3)
)
@settings(deadline=None)
def test_rows_are_placed_as_numpy_places_them(
    capacities: tuple[int, int], moves: dict[int, int], heads: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = ("batch", heads, "capacity", 2)
    network = Network({**DECODER.inputs, "past": ("FLOAT", shape)}, {**DECODER.outputs, "present": ("FLOAT", shape)}, DECODER.limits, running_sum)
    engine, gpu = opened(network, tmp_path_factory.mktemp("plan"))
    rng = np.random.default_rng(heads)
    arrays = [rng.random((4, heads, capacity, 2), np.float32) for capacity in capacities]
    bounds = [engine.bind({"past": "present"}, {"past": array.shape}) for array in arrays]
    views = [gpu.view(bound._addresses["past"], array.shape, "float32") for bound, array in zip(bounds, arrays, strict=True)]
    for view, array in zip(views, arrays, strict=True):
        view[...] = array
    bounds[0].place(list(moves), bounds[1], list(moves.values()))
    place_rows({"past": arrays[0]}, list(moves), {"past": arrays[1]}, list(moves.values()))
    np.testing.assert_array_equal(views[0], arrays[0])


def test_shapes_that_repeat_are_captured_once_and_replayed(tmp_path: Path) -> None:
    engine, gpu = opened(DECODER, tmp_path)
    bound = engine.bind({"past": "present"}, {"past": (1, 1, 4, 2)})
    sums = [float(bound.run(step([[1, 1]], at))["sum"][0, 0, 0]) for at in (0, 1, 2, 3, 3)]
    assert sums == [1, 2, 3, 4, 4]
    assert [word for word in gpu.did if word in ("capture", "launch", "release")] == ["capture", *["launch"] * 4]


def test_new_shapes_are_captured_anew(tmp_path: Path) -> None:
    engine, gpu = opened(DOUBLE, tmp_path)
    for rows in (2, 2, 2, 3, 3, 3):
        np.testing.assert_array_equal(engine.run({"image": np.full((rows, 3), rows, np.float32)})["total"], [3 * rows] * rows)
    assert [word for word in gpu.did if word in ("capture", "launch", "release")] == [
        "capture",
        "launch",
        "launch",
        "release",
        "capture",
        "launch",
        "launch",
    ]
    assert len(gpu.graphs) == 1


def test_what_cannot_be_captured_runs_as_before_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine, gpu = opened(DOUBLE, tmp_path, device=ToyDevice(capturable=False))
    with caplog.at_level(logging.WARNING):
        totals = [float(engine.run({"image": np.ones((1, 3), np.float32)})["total"][0]) for _ in range(4)]
    assert totals == [3] * 4
    assert gpu.did.count("capture") == 1
    assert [record.getMessage() for record in caplog.records] == [
        "part.plan runs without CUDA graphs, slower: cudaStreamEndCapture failed with cudaErrorStreamCaptureInvalidated"
    ]


def test_tensorrt_rtx_is_left_to_capture_by_itself(tmp_path: Path) -> None:
    engine, gpu = opened(DOUBLE, tmp_path, backend="tensorrt-rtx")
    for _ in range(3):
        engine.run({"image": np.ones((1, 3), np.float32)})
    (context,) = engine._trt.contexts
    assert context.config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert "capture" not in gpu.did


def test_a_plan_that_the_runtime_refuses_is_told_with_its_log_and_diagnosis(tmp_path: Path) -> None:
    path, gpu = tmp_path / "part.plan", ToyDevice()
    path.write_bytes(b"junk")
    with pytest.raises(
        BundleError, match=r"refuses .*part.plan: VERSION_MISMATCH: MALFORMED_ENGINE: Serialization .*; .*fifa-stream engine build"
    ) as caught:
        TrtEngine(path, DOUBLE.spec(path), backend="tensorrt-rtx", device=gpu, library=ToyLibrary(gpu))
    assert caught.value.fault is BundleFault.UNUSABLE_PLAN


def test_a_runtime_that_fails_to_start_is_never_called(tmp_path: Path) -> None:
    path, gpu = tmp_path / "part.plan", ToyDevice()
    path.write_bytes(b"the plan")
    with pytest.raises(EngineError, match=r"toy_tensorrt 1.0.0.1 does not start: CUDA .* failure with error: 35; check the NVIDIA driver"):
        TrtEngine(path, DOUBLE.spec(path), backend="tensorrt", device=gpu, library=ToyLibrary(gpu, starts=False))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"name": "picture"}, id="name"),
        pytest.param({"dtype": "int64"}, id="dtype"),
        pytest.param({"shape": ("batch", 3, 1)}, id="rank"),
    ],
)
def test_a_plan_with_another_interface_than_the_manifest_states_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path, gpu = tmp_path / "part.plan", ToyDevice()
    path.write_bytes(b"the plan")
    spec = DOUBLE.spec(path)
    odd = spec.model_copy(update={"inputs": (spec.inputs[0].model_copy(update=change),)})
    with pytest.raises(BundleError, match=r"part.plan has inputs \[\('image', 'float32', 2\)\], the manifest states") as caught:
        TrtEngine(path, odd, backend="tensorrt", device=gpu, library=ToyLibrary(gpu, {b"the plan": DOUBLE}))
    assert caught.value.fault is BundleFault.WRONG_INTERFACE


def plan_bytes(backend: Backend, version: str, size: int = 100) -> bytes:
    """The header of a plan as TensorRT-RTX 1.7 writes it, and padding."""
    header = FLAVOURS[backend].plan_magic + bytes(12) + size.to_bytes(8, "little") + bytes(map(int, version.split(".")))
    return header.ljust(size, b"\1")


@pytest.fixture
def built(tmp_path: Path) -> Manifest:
    """A manifest of one plan for the library that is installed, the plan beside it."""
    try:
        version = installed_version("tensorrt-rtx")
    except ProviderError as error:
        pytest.skip(str(error))
    (tmp_path / "encoder.plan").write_bytes(plan_bytes("tensorrt-rtx", version))
    shipped = read_manifest(bundled_engine())
    build = BuildSpec(source_digest=shipped.digest, precision="fp32", runtime_version=version, compute_capabilities=("SM86", "SM89"))
    spec = shipped.parts["encoder"].model_copy(update={"file": "encoder.plan"})
    return shipped.model_copy(update={"backend": "tensorrt-rtx", "build": build, "parts": {"encoder": spec}})


def refusal(manifest: Manifest, folder: Path, device: ToyDevice | None = None) -> tuple[BundleFault, str]:
    """Fault and message."""
    with pytest.raises(BundleError) as caught:
        check_build(manifest, folder, device=device or ToyDevice())
    assert "fifa-stream engine build" in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value.fault, str(caught.value)


def test_plans_for_this_library_and_gpu_pass(built: Manifest, tmp_path: Path) -> None:
    check_build(built, tmp_path, device=ToyDevice())


def test_a_plan_bundle_without_its_build_is_refused(built: Manifest, tmp_path: Path) -> None:
    assert refusal(built.model_copy(update={"build": None}), tmp_path)[0] is BundleFault.UNSUPPORTED


def test_plans_of_the_library_that_is_not_installed_are_refused(built: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_rtx(backend: Backend) -> str:
        if backend == "tensorrt":
            raise ProviderError("backend tensorrt cannot be imported")
        return "1.7.1.116"

    monkeypatch.setattr(trt_runtime, "installed_version", only_rtx)
    fault, message = refusal(built.model_copy(update={"backend": "tensorrt"}), tmp_path)
    assert fault is BundleFault.WRONG_FLAVOUR
    assert "installed is tensorrt-rtx 1.7.1.116" in message and "--backend tensorrt-rtx" in message


def test_where_neither_library_is_installed_it_is_no_fault_of_the_bundle(built: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(backend: Backend) -> str:
        raise ProviderError(f"backend {backend} cannot be imported")

    monkeypatch.setattr(trt_runtime, "installed_version", none)
    with pytest.raises(ProviderError, match="backend tensorrt-rtx cannot be imported"):
        check_build(built, tmp_path, device=ToyDevice())


def test_plans_of_another_release_are_refused(built: Manifest, tmp_path: Path) -> None:
    assert built.build is not None
    older = built.model_copy(update={"build": built.build.model_copy(update={"runtime_version": "1.6.0.5"})})
    fault, message = refusal(older, tmp_path)
    assert fault is BundleFault.WRONG_VERSION
    assert f"of tensorrt-rtx 1.6.0.5, installed is {built.build.runtime_version}" in message


def test_plans_for_other_gpus_are_refused(built: Manifest, tmp_path: Path) -> None:
    gpu = ToyDevice()
    gpu.compute_capability = lambda: "SM90"  # type: ignore[method-assign]
    fault, message = refusal(built, tmp_path, gpu)
    assert fault is BundleFault.WRONG_COMPUTE_CAPABILITY
    assert "built for SM86, SM89, this GPU is SM90" in message


@pytest.mark.parametrize(
    ("content", "fault", "said"),
    [
        pytest.param(lambda version: plan_bytes("tensorrt-rtx", version)[:90], BundleFault.UNUSABLE_PLAN, "cut short: 90 bytes, 100", id="truncated"),
        pytest.param(
            lambda version: plan_bytes("tensorrt-rtx", version)[:20], BundleFault.UNUSABLE_PLAN, "cut short: 20 bytes", id="cut in its header"
        ),
        pytest.param(lambda version: b"", BundleFault.UNUSABLE_PLAN, "is no plan of tensorrt-rtx: it begins with b''", id="empty"),
        pytest.param(lambda version: b"\x08\x0a\x12\x07pytorch" * 20, BundleFault.UNUSABLE_PLAN, "is no plan of tensorrt-rtx", id="ONNX"),
        pytest.param(
            lambda version: plan_bytes("tensorrt", "11.4.0.106"), BundleFault.WRONG_FLAVOUR, "is a plan of tensorrt, the", id="other library"
        ),
        pytest.param(lambda version: plan_bytes("tensorrt-rtx", "1.6.0.5"), BundleFault.WRONG_VERSION, "of release 1.6.0.5, the", id="other release"),
    ],
)
def test_a_file_that_is_no_such_plan_is_refused(
    content: Callable[[str], bytes], fault: BundleFault, said: str, built: Manifest, tmp_path: Path
) -> None:
    assert built.build is not None
    (tmp_path / "encoder.plan").write_bytes(content(built.build.runtime_version))
    found, message = refusal(built, tmp_path)
    assert found is fault
    assert said in message and "encoder.plan (encoder of " in message


def without_gpu() -> Any:
    """`cuda.bindings.runtime` on a machine without a GPU, or skip."""
    cuda = pytest.importorskip("cuda.bindings.runtime")
    if cuda.cudaGetDeviceCount()[0] == cuda.cudaError_t.cudaSuccess:
        pytest.skip("this machine has a GPU")
    return cuda


def test_a_machine_without_a_gpu_is_told_what_to_do(built: Manifest, tmp_path: Path) -> None:
    without_gpu()
    with pytest.raises(
        ProviderError, match=r"no usable CUDA device \(cudaError.*\); install an NVIDIA driver .* or use a bundle of backend onnxruntime"
    ):
        check_build(built, tmp_path)


def test_a_plan_that_was_built_here_passes_every_check_but_is_refused_by_a_runtime_without_gpu(built: Manifest, tmp_path: Path) -> None:
    without_gpu()
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("image", "twice")]
    model = helper.make_model(helper.make_graph([helper.make_node("Add", ["image"] * 2, ["twice"])], "toy", value[:1], value[1:]), ir_version=10)
    shapes = {"image": Profile(min=(1, 3), opt=(1, 3), max=(4, 3))}
    compiled = compile_plan(model.SerializeToString(), shapes, "tensorrt-rtx", BuildOptions(compute_capabilities=("8.6", "8.9")))
    path = tmp_path / "encoder.plan"
    path.write_bytes(compiled.plan)
    check_build(built, tmp_path, device=ToyDevice())
    with pytest.raises(BundleError, match=r"refuses .*encoder.plan: .*(Cuda|CUDA)") as caught:
        TrtEngine(path, built.parts["encoder"], backend="tensorrt-rtx", device=ToyDevice())
    assert caught.value.fault is BundleFault.UNUSABLE_PLAN
    path.write_bytes(compiled.plan[:-1])
    assert refusal(built, tmp_path)[0] is BundleFault.UNUSABLE_PLAN


def test_every_call_of_the_device_is_well_formed() -> None:
    """Without a GPU CUDA takes the arguments of each call and answers with the missing driver, where a wrong call would be a TypeError."""
    device = object.__new__(CudaDevice)
    device._cuda = without_gpu()
    array = np.zeros(4, np.float32)
    calls: list[Callable[[], Any]] = [
        device.compute_capability,
        lambda: device.allocate(16),
        lambda: device.free(16),
        device.create_stream,
        lambda: device.upload(16, array, 1),
        lambda: device.download(array, 16, 1),
        lambda: device.clear(16, 16, 1),
        lambda: device.copy_rows(16, 8, 32, 8, 8, 2, 1),
        lambda: device.synchronize(1),
        lambda: device.capture(lambda: None, 1),
        lambda: device.launch(1, 1),
        lambda: device.release(1),
    ]
    for call in calls:
        with pytest.raises(CudaError, match=r"cuda\w+ failed with cudaError\w+: "):
            call()
