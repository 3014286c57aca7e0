"""Graphs of lower precision out of fp32 ones: half precision by the rules of autocast, int8 by quantization. Builds use it; serving never.

ONNX Runtime's own converter (`onnxruntime.transformers.float16`) gives graphs that `onnx.checker` refuses, rounds positions and knows no bf16.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from engines.preprocess import to_model_input

HALF_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Computed in half precision wherever they stand."""
SINGLE = frozenset({"BatchNormalization", "Cast", "LayerNormalization", "Pow", "RMSNormalization", "ReduceMean", "ScatterND", "Softmax", "Softplus"})
"""Computed in fp32 wherever they stand: sums of squares leave the range of fp16 at a root mean square of 256, exponentials magnify rounding, a cast
says itself what it makes, and the KV cache that ScatterND writes is fp32 state of the Engine protocol."""
BLOCK = 128
"""Weights along a row of an int8 product that share a scale. Blocks of 32 are no closer to fp32 and a sixth slower (docs/engines.md)."""
CONTRIBUTED = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
NORMS_OF_A_BLOCK = 2
CALIBRATION_BATCH = 4
"""Crops that are run together: the quantizer keeps every activation of a run."""


def to_half(model: onnx.ModelProto, kind: Literal["fp16", "bf16"]) -> onnx.ModelProto:
    """A new graph that computes in half precision; its inputs and outputs, and with them the KV cache, stay fp32.

    As in torch's autocast: `PRODUCTS` are half, `SINGLE` is fp32, every other operator follows the widest of what it is given that was computed. So
    what no product has touched stays fp32: statistics of pixels, angles of positions, boxes, and a residual stream that begins with an embedding.
    An operator that ONNX does not define for the type stays fp32 too (convolutions and Einsum know no bf16 at opset 20).

    Raises ValueError for a graph that holds subgraphs or whose types cannot be inferred.
    """
    half = HALF_TYPES[kind]
    source = unfold_weights(model)
    _drop_nan_guards(source.graph)
    source = onnx.shape_inference.infer_shapes(source)
    graph, opset = source.graph, source.opset_import[0].version
    floats = _float_tensors(graph)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    kept: dict[str, TensorProto] = {}
    nodes: list[onnx.NodeProto] = []
    born_half: set[str] = set()
    cast: set[str] = set()

    def read(name: str, *, in_half: bool) -> str:
        """The name of a tensor in the wanted precision, which is made where it is missing."""
        wanted = f"{name}.{kind}" if in_half and name in floats else name
        if name in weights:
            kept[wanted] = weights[name] if wanted == name else _rounded(weights[name], wanted, half)
        elif name in floats and in_half != (name in born_half) and wanted not in cast:
            cast.add(wanted)
            given = name if in_half else f"{name}.{kind}"
            nodes.append(helper.make_node("Cast", [given], [wanted], name=f"{wanted}.cast", to=half if in_half else TensorProto.FLOAT))
        return wanted

    for node in graph.node:
        computed = [name for name in node.input if name in floats and name not in weights]
        follows = node.op_type not in SINGLE and len(computed) > 0 and born_half.issuperset(computed)
        in_half = (node.op_type in PRODUCTS or follows) and _defined_for(node, opset, half)
        node.input[:] = [read(name, in_half=in_half) for name in node.input]
        if in_half:
            born_half.update(name for name in node.output if name in floats)
            node.output[:] = [f"{name}.{kind}" if name in floats else name for name in node.output]
        nodes.append(node)
    for value in graph.output:
        read(value.name, in_half=False)
    made = helper.make_model(
        helper.make_graph(nodes, graph.name, graph.input, graph.output, list(kept.values())),
        opset_imports=source.opset_import,
        ir_version=source.ir_version,
        producer_name=source.producer_name,
        producer_version=source.producer_version,
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def quantize_encoder(source: Path, out: Path, crops_NHWC: NDArray[np.uint8], *, symmetric: bool = False) -> None:
    """Write an encoder whose transformer blocks multiply in int8; it is calibrated on uint8 crops of its size.

    What reads a norm behind the first block (queries, keys, values, the first product of an MLP) is static QDQ, weights per channel. All other
    products of the blocks have their weights in blocks of `BLOCK` and round what they are given block by block, row by row, as it comes (MatMulNBits
    of ONNX Runtime): the first block tolerates nothing coarser, and no norm tames what comes out of attention and GELU. `symmetric`: as TensorRT
    asks, all products are static QDQ without zero points, but for those behind a GELU, which is one-sided: they stay fp32.

    Patch embedding, attention itself, heads and projector stay fp32. Ranges of single channels that the norms let through are moved into the weights
    first (SmoothQuant, arXiv:2211.10438, alpha 0.5). Raises ValueError where there are no crops or no blocks.
    """
    if len(crops_NHWC) == 0:
        raise ValueError("int8 is calibrated on crops and the acceptance pack has none; write one of more faces with: fifa-train export --acceptance")
    model = unfold_weights(onnx.load(str(source)))
    graph = model.graph
    products = _block_products(graph)
    if not products:
        raise ValueError(f"{source} has no product of a weight before its output image_embeds; export the part again")
    norms = _smooth(model, products, crops_NHWC)
    gelus = {node.output[0] for node in graph.node if node.op_type == "Gelu"}
    behind_first = norms[NORMS_OF_A_BLOCK:]
    static = [node.name for node in products if (node.input[0] not in gelus if symmetric else node.input[0] in behind_first)]
    with TemporaryDirectory() as scratch:
        smoothed = Path(scratch) / "encoder.onnx"
        helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})  # the exporter has done what the quantizer would ask for
        onnx.save(model, str(smoothed))
        quantize_static(
            smoothed,
            out,
            _Crops(crops_NHWC),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=static,
            extra_options={
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": ["MatMul"],
            },
        )
    if not symmetric:
        _quantize_in_blocks(out, [node.name for node in products if node.name not in static])


def _quantize_in_blocks(path: Path, names: Sequence[str]) -> None:
    """Give these products of a graph int8 weights in blocks; ONNX Runtime rounds what they multiply (its accuracy level 4) at run time.

    The runtime's own quantizer does as much, but sets up the root logger of whoever imports it.
    """
    model = onnx.load(str(path))
    graph = model.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.name not in names:
            continue
        weight_KN = weights[node.input[1]]
        (inner, outer), rounded, scales = weight_KN.shape, f"{node.output[0]}.int8", f"{node.output[0]}.scales"
        rounded_NKb, scales_NK = _in_blocks(weight_KN)
        graph.initializer.extend([numpy_helper.from_array(rounded_NKb, rounded), numpy_helper.from_array(scales_NK, scales)])
        sizes = {"K": inner, "N": outer, "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
        node.CopyFrom(helper.make_node("MatMulNBits", [node.input[0], rounded, scales], node.output, name=node.name, domain=CONTRIBUTED, **sizes))
    _drop_unread(graph)
    model.opset_import.append(helper.make_opsetid(CONTRIBUTED, 1))
    onnx.save(model, str(path))


def _in_blocks(weight_KN: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A weight as MatMulNBits reads it: (N, blocks, BLOCK) uint8 around 128, and the scale of each block, (N, blocks)."""
    padded_NK = np.pad(weight_KN.T, ((0, 0), (0, -len(weight_KN) % BLOCK)))
    blocks = padded_NK.reshape(len(padded_NK), -1, BLOCK)
    scales = np.abs(blocks).max(-1) / 127
    return np.asarray(np.rint(blocks / np.where(scales > 0, scales, 1)[..., None]) + 128, np.uint8), np.asarray(scales, np.float32)


class _Crops(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    """Crops as the quantizer reads them."""

    def __init__(self, crops_NHWC: NDArray[np.uint8]) -> None:
        self._batches = iter(_batches(crops_NHWC))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """See `CalibrationDataReader`."""
        return next(self._batches, None)


def _batches(crops_NHWC: NDArray[np.uint8]) -> Iterator[dict[str, NDArray[np.float32]]]:
    for start in range(0, len(crops_NHWC), CALIBRATION_BATCH):
        yield {"image": to_model_input(crops_NHWC[start : start + CALIBRATION_BATCH])}


def _block_products(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The products with a weight that the patch tokens come from."""
    weights = {tensor.name for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    before, waiting = [], ["image_embeds"]
    while waiting:
        if (node := maker.pop(waiting.pop(), None)) is not None:
            before.append(node)
            waiting += node.input
    return [node for node in before if node.op_type == "MatMul" and node.input[1] in weights]


def _smooth(model: onnx.ModelProto, products: Sequence[onnx.NodeProto], crops_NHWC: NDArray[np.uint8]) -> list[str]:
    """Divide each channel of a norm that only products read by the root of its peak over its weights' peak, and multiply those weights by it.

    Return what those norms give, in the order of the graph.
    """
    graph = model.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    norms = [
        node for node in graph.node
        if node.op_type == "LayerNormalization" and readers[node.output[0]] and all(reader in products for reader in readers[node.output[0]])
    ]  # fmt: skip
    peaks = _peaks(model, [norm.output[0] for norm in norms], crops_NHWC)
    for norm, peak_D in zip(norms, peaks, strict=True):
        reading = readers[norm.output[0]]
        weight_peak_D = np.max([np.abs(weights[product.input[1]]).max(1) for product in reading], 0)
        scale_D = np.sqrt(np.maximum(peak_D, 1e-5) / np.maximum(weight_peak_D, 1e-5))
        for place in range(1, len(norm.input)):
            _replace(graph, norm, place, weights[norm.input[place]] / scale_D)
        for product in reading:
            _replace(graph, product, 1, weights[product.input[1]] * scale_D[:, None])
    _drop_unread(graph)
    return [norm.output[0] for norm in norms]


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Leave only weights that a node reads."""
    read = {name for node in graph.node for name in node.input}
    left = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(left)


def _peaks(model: onnx.ModelProto, names: Sequence[str], crops_NHWC: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Largest magnitude of each channel of inner tensors over the crops, (D,) each."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    found = [[np.abs(array).max((0, 1)) for array in session.run(list(names), feeds)] for feeds in _batches(crops_NHWC)]
    return [np.max(of_batches, 0) for of_batches in zip(*found, strict=True)]


def _replace(graph: onnx.GraphProto, node: onnx.NodeProto, place: int, weight: NDArray[np.float32]) -> None:
    """Give a node a weight of its own."""
    node.input[place] = f"{node.output[0]}.smooth{place}"
    graph.initializer.append(numpy_helper.from_array(np.asarray(weight, np.float32), node.input[place]))


def unfold_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose weights are fp32 again: the casts that `engines.export` puts behind weights stored in fp16 are computed."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    nodes = []
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in stored:
            tensor = stored[node.input[0]]
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), node.output[0]))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return made


def _drop_nan_guards(graph: onnx.GraphProto) -> None:
    """Let `Where(IsNaN(x), 0, x)` be x. The exporter guards masked attention against rows that see nothing; every row of ours sees slot 0.

    TensorRT-RTX 1.7.1 does not compile a guarded fp32 softmax between half-precision products (a check of its attention fusion fails).
    """
    maker = {name: node for node in graph.node for name in node.output}
    guarded = {
        node.output[0]: node.input[2]
        for node in graph.node
        if node.op_type == "Where" and (test := maker.get(node.input[0])) is not None and test.op_type == "IsNaN" and test.input[0] == node.input[2]
    }
    tests = {node.input[0] for node in graph.node if node.output[0] in guarded}
    nodes = [node for node in graph.node if node.output[0] not in guarded and node.output[0] not in tests]
    for node in nodes:
        node.input[:] = [guarded.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(nodes)


def _float_tensors(graph: onnx.GraphProto) -> set[str]:
    """Names of all fp32 tensors of a graph with inferred types."""
    typed = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}
    typed |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        if any(attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in node.attribute):
            raise ValueError(
                f"{node.op_type} {node.name!r} of graph {graph.name!r} holds a subgraph, which has no half precision here; build it as fp32"
            )
        if missing := [name for name in node.output if name and not typed.get(name)]:
            raise ValueError(f"the type of {missing[0]!r} in graph {graph.name!r} cannot be inferred; export the part again")
    return {name for name, kind in typed.items() if kind == TensorProto.FLOAT}


def _rounded(tensor: TensorProto, name: str, half: int) -> TensorProto:
    """A weight in half precision, clipped to the range of fp16."""
    limit = np.finfo(np.float16).max
    return numpy_helper.from_array(np.clip(numpy_helper.to_array(tensor), -limit, limit).astype(helper.tensor_dtype_to_np_dtype(half)), name)


def _defined_for(node: onnx.NodeProto, opset: int, half: int) -> bool:
    """Whether ONNX lets every fp32 operand of the operator be of the half type."""
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    wanted = f"tensor({'float16' if half == TensorProto.FLOAT16 else 'bfloat16'})"
    return all(wanted in c.allowed_type_strs for c in schema.type_constraints if "tensor(float)" in c.allowed_type_strs)
