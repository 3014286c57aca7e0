"""Lower precision: what is rounded, what is left alone, and that the graph around it stays what it was."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engines.bundle import read_manifest
from engines.contracts import Manifest, PartName
from engines.precision import BLOCK, HALF_TYPES, _in_blocks, quantize_encoder, to_half, unfold_weights
from engines.preprocess import to_model_input

PARTS: tuple[PartName, ...] = ("encoder", "decoder", "mask_decoder", "box_encoder", "face_detector")


def toy(*, opset: int = 20) -> onnx.ModelProto:
    """Angles of positions, a product of their cosines with a weight stored in fp16, a guarded softmax, another product."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((8, 8)).astype(np.float16), "w.fp16"),
        numpy_helper.from_array(np.linspace(0.1, 1, 8, dtype=np.float32), "frequencies"),
        numpy_helper.from_array(np.float32(0), "zero"),
    ]
    nodes = [
        helper.make_node("Cast", ["w.fp16"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["position"], ["at"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["at", "frequencies"], ["angle"]),
        helper.make_node("Cos", ["angle"], ["cos"]),
        helper.make_node("MatMul", ["cos", "w"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"]),
        helper.make_node("IsNaN", ["shares"], ["lost"]),
        helper.make_node("Where", ["lost", "zero", "shares"], ["kept"]),
        helper.make_node("MatMul", ["kept", "w"], ["told"]),
        helper.make_node("Tanh", ["told"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("position", TensorProto.INT64, ["batch", 1])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 8]) for name in ("cos", "out")],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def session(model: onnx.ModelProto | Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def interface(model: onnx.ModelProto) -> list[bytes]:
    return [value.SerializeToString() for value in (*model.graph.input, *model.graph.output)]


@pytest.mark.parametrize(("kind", "tolerance"), [("fp16", 2e-3), ("bf16", 2e-2)])
def test_half_precision_computes_what_fp32_does_within_its_rounding(kind: str, tolerance: float) -> None:
    feeds = {"position": np.arange(250, 256)[:, None]}
    exact = ReferenceEvaluator(toy()).run(None, feeds)
    found = ReferenceEvaluator(to_half(toy(), kind)).run(None, feeds)  # type: ignore[arg-type]
    assert [array.dtype for array in found] == [np.float32, np.float32]
    np.testing.assert_array_equal(found[0], exact[0])  # angles of positions keep every bit
    np.testing.assert_allclose(found[1], exact[1], atol=tolerance)
    assert not np.array_equal(found[1], exact[1])


def test_products_are_half_and_softmax_is_single() -> None:
    halved = onnx.shape_inference.infer_shapes(to_half(toy(), "fp16"))
    types = {value.name: value.type.tensor_type.elem_type for value in halved.graph.value_info}
    made = {node.op_type: types[node.output[0]] for node in halved.graph.node if node.output[0] in types}
    assert made["MatMul"] == made["Tanh"] == TensorProto.FLOAT16
    assert made["Softmax"] == TensorProto.FLOAT


def test_a_guard_against_rows_that_see_nothing_is_dropped() -> None:
    assert {"IsNaN", "Where"} & {node.op_type for node in to_half(toy(), "fp16").graph.node} == set()


def test_a_tensor_is_cast_once_however_many_read_it() -> None:
    model = toy()
    model.graph.node.append(helper.make_node("MatMul", ["cos", "w"], ["again"]))
    model.graph.output.append(helper.make_tensor_value_info("again", TensorProto.FLOAT, ["batch", 8]))
    outputs = Counter(name for node in to_half(model, "fp16").graph.node for name in node.output)
    assert max(outputs.values()) == 1
    assert outputs["cos.fp16"] == 1


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_every_part_of_a_bundle_keeps_its_interface_in_half_precision(sealed: Path, part: PartName, kind: str) -> None:
    source = onnx.load(str(sealed / f"{part}.onnx"))
    halved = to_half(source, kind)  # type: ignore[arg-type]  # which checks the graph whole
    assert interface(halved) == interface(source)
    halves = {tensor.data_type for tensor in halved.graph.initializer} & {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    assert halves == (set() if (kind, part) == ("bf16", "face_detector") else {HALF_TYPES[kind]}), "a detector is convolutions, which know no bf16"


@pytest.mark.parametrize("part", ["encoder", "mask_decoder", "box_encoder", "face_detector"])
def test_every_part_in_fp16_runs_near_fp32(sealed: Path, part: PartName) -> None:
    manifest = read_manifest(sealed)
    source = onnx.load(str(sealed / f"{part}.onnx"))
    feeds = feed(manifest, part)
    for exact, found in zip(session(source).run(None, feeds), session(to_half(source, "fp16")).run(None, feeds), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, exact, atol=0.01 * max(1.0, float(np.abs(exact).max())))


def test_the_cache_of_a_decoder_in_fp16_stays_fp32_and_is_written_in_place(sealed: Path) -> None:
    halved = to_half(onnx.load(str(sealed / "decoder.onnx")), "fp16")
    written = {node.output[0] for node in halved.graph.node if node.op_type.startswith("Scatter")}
    assert written == {value.name for value in halved.graph.output if value.name.startswith("present_")}


def test_a_graph_with_a_subgraph_has_no_half_precision() -> None:
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "branch", [], [helper.make_tensor_value_info("y", 1, [1])])
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)],
        "branching",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("x", 1, [1])],
        [helper.make_tensor_value_info("z", 1, [1])],
    )
    with pytest.raises(ValueError, match="subgraph"):
        to_half(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), "fp16")


def test_unfolded_weights_compute_the_same_bits() -> None:
    feeds = {"position": np.arange(5)[:, None]}
    unfolded = unfold_weights(toy())
    assert Counter(node.op_type for node in unfolded.graph.node)["Cast"] == 1
    np.testing.assert_array_equal(session(unfolded).run(["out"], feeds)[0], session(toy()).run(["out"], feeds)[0])


def quantized_products(path: Path, exact: onnx.ModelProto) -> tuple[set[str], set[str]]:
    """Products that take dequantized values, and those with weights in blocks; nothing but products does either."""
    model = onnx.load(str(path))
    assert interface(model) == interface(exact)
    dequantized = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    static = [node for node in model.graph.node if any(name in dequantized for name in node.input) and node.op_type != "QuantizeLinear"]
    assert {node.op_type for node in static} == {"MatMul"}
    return {node.output[0] for node in static}, {node.output[0] for node in model.graph.node if node.op_type == "MatMulNBits"}


def products_of_blocks(exact: onnx.ModelProto) -> dict[str, str]:
    """Output to input of the encoder's products with a weight that the patch tokens come from."""
    weights = {tensor.name for tensor in unfold_weights(exact).graph.initializer}
    products = {node.output[0]: node.input[0] for node in exact.graph.node if node.op_type == "MatMul" and node.input[1] in weights}
    return {out: given for out, given in products.items() if out in ancestors(exact, "image_embeds")}


def ancestors(model: onnx.ModelProto, name: str) -> set[str]:
    """Every tensor that a tensor is computed from."""
    maker, seen, waiting = {out: node for node in model.graph.node for out in node.output}, set[str](), [name]
    while waiting:
        if (tensor := waiting.pop()) not in seen:
            seen.add(tensor)
            waiting += maker[tensor].input if tensor in maker else []
    return seen


def test_on_a_cpu_what_reads_a_norm_behind_the_first_block_is_static_and_all_else_in_blocks(
    sealed: Path, crops: Callable[[int], np.ndarray], tmp_path: Path
) -> None:
    quantize_encoder(sealed / "encoder.onnx", tmp_path / "encoder.onnx", crops(5))
    exact = onnx.load(str(sealed / "encoder.onnx"))
    static, in_blocks = quantized_products(tmp_path / "encoder.onnx", exact)
    products = products_of_blocks(exact)
    norms = [node.output[0] for node in exact.graph.node if node.op_type == "LayerNormalization" and node.output[0] in products.values()]
    assert static == {out for out, given in products.items() if given in norms[2:]}
    assert static and static | in_blocks == set(products) and not static & in_blocks


def test_for_tensorrt_every_product_is_static_and_without_a_zero_point(sealed: Path, crops: Callable[[int], np.ndarray], tmp_path: Path) -> None:
    quantize_encoder(sealed / "encoder.onnx", tmp_path / "encoder.onnx", crops(5), symmetric=True)
    exact = onnx.load(str(sealed / "encoder.onnx"))
    static, in_blocks = quantized_products(tmp_path / "encoder.onnx", exact)
    behind_gelu = {node.output[0] for node in exact.graph.node if node.op_type == "Gelu"}
    products = products_of_blocks(exact)
    assert not in_blocks and static == {out for out, given in products.items() if given not in behind_gelu}
    zero_points = [numpy_helper.to_array(t) for t in onnx.load(str(tmp_path / "encoder.onnx")).graph.initializer if t.name.endswith("zero_point")]
    assert zero_points and not any(zero.any() for zero in zero_points)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 300), st.integers(1, 3)), elements=st.floats(-8, 8, width=32)))
def test_a_weight_in_blocks_is_off_by_half_a_step_at_most(weight_KN: np.ndarray) -> None:
    rounded, scales = _in_blocks(weight_KN)
    assert rounded.shape == (weight_KN.shape[1], -(-len(weight_KN) // BLOCK), BLOCK) and scales.shape == rounded.shape[:2]
    back_NK = ((rounded.astype(np.float32) - 128) * scales[..., None]).reshape(len(rounded), -1)[:, : len(weight_KN)]
    step_NK = np.repeat(scales, BLOCK, 1)[:, : len(weight_KN)]
    assert (np.abs(back_NK - weight_KN.T) <= 0.501 * step_NK + 1e-6).all()


def test_an_int8_encoder_scores_near_fp32(sealed: Path, crops: Callable[[int], np.ndarray], tmp_path: Path) -> None:
    quantize_encoder(sealed / "encoder.onnx", tmp_path / "encoder.onnx", crops(8))
    feeds = {"image": to_model_input(crops(8))}
    exact, found = (session(folder / "encoder.onnx").run(["det_logit", "image_embeds"], feeds) for folder in (sealed, tmp_path))
    assert not np.array_equal(found[1], exact[1])
    for quantized, single in zip(found, exact, strict=True):
        np.testing.assert_allclose(quantized, single, atol=0.1 * max(1.0, float(np.abs(single).max())))


def test_an_encoder_is_not_quantized_blindly(sealed: Path, crops: Callable[[int], np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the acceptance pack has none"):
        quantize_encoder(sealed / "encoder.onnx", tmp_path / "out.onnx", crops(0))
    with pytest.raises(ValueError, match="no product of a weight"):
        quantize_encoder(sealed / "box_encoder.onnx", tmp_path / "out.onnx", crops(1))


def feed(manifest: Manifest, part: PartName) -> dict[str, np.ndarray]:
    """Two rows of noise in the shape that a part takes; boxes that lie in the crop."""
    rng = np.random.default_rng(1)
    feeds = {}
    for tensor in manifest.parts[part].inputs:
        shape = tuple(size if isinstance(size, int) else 2 if size == "batch" else 64 for size in tensor.shape)
        feeds[tensor.name] = rng.standard_normal(shape).astype(np.float32)
    if "box" in feeds:
        feeds["box"] = np.array([[0, 0, 20, 20], [5, 7, 40, 30]], np.float32)
    return feeds
