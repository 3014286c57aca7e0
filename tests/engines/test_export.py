"""What is written to a graph: half-precision weights behind casts, and nothing of the machine that wrote it."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engines.export import MIN_STORED_HALF, file_spec, round_half, round_module, write_part


def graph(weights: np.ndarray) -> onnx.ModelProto:
    """y = x @ weights, with traces of an exporter."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], doc_string="builder-7/project/model.py:12")
    made = helper.make_graph(
        [node],
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", weights.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_version="2.13.0+cpu")
    model.metadata_props.add(key="path", value="builder-7/project/model.py")
    return model


def test_half_stored_weights_compute_in_float32(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32)
    spec = write_part(graph(weights), tmp_path / "toy.onnx", precision="fp16")
    (stored,) = onnx.load(str(tmp_path / "toy.onnx")).graph.initializer
    assert stored.data_type == TensorProto.FLOAT16
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in (*spec.inputs, *spec.outputs)] == [
        ("x", "float32", ("batch", 32)), ("y", "float32", ("batch", 16)),
    ]  # fmt: skip
    x = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)
    (y,) = ort.InferenceSession(str(tmp_path / "toy.onnx"), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_allclose(y, x @ round_half(weights).astype(np.float32), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "precision"), [((32, 16), "fp32"), ((4, 4), "fp16")], ids=["asked-for", "too-small-to-save"])
def test_weights_stay_whole(tmp_path: Path, shape: tuple[int, int], precision: str) -> None:
    weights = np.full(shape, 1 / 3, np.float32)
    write_part(graph(weights), tmp_path / "toy.onnx", precision=precision)  # type: ignore[arg-type]
    (stored,) = onnx.load(str(tmp_path / "toy.onnx")).graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(stored), weights)


def test_a_graph_forgets_who_wrote_it(tmp_path: Path) -> None:
    spec = write_part(graph(np.ones((4, 4), np.float32)), tmp_path / "toy.onnx", precision="fp32")
    content = (tmp_path / "toy.onnx").read_bytes()
    assert b"someone" not in content and b"+cpu" not in content
    assert spec.sha256 == file_spec(tmp_path / "toy.onnx").sha256 and spec.size_bytes == len(content)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_rounding_never_overflows(value: float) -> None:
    rounded = float(round_half(np.array([value], np.float32))[0])
    assert np.isfinite(rounded)
    assert rounded == pytest.approx(np.clip(value, -65504, 65504), rel=2**-10, abs=2**-24)


def test_a_rounded_module_holds_what_is_stored() -> None:
    module = torch.nn.Linear(MIN_STORED_HALF, 2)
    before = {name: parameter.detach().numpy().copy() for name, parameter in module.named_parameters()}
    round_module(module)
    np.testing.assert_array_equal(module.weight.detach().numpy(), before["weight"].astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(module.bias.detach().numpy(), before["bias"])
