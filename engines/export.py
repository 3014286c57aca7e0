"""PyTorch modules to ONNX parts with half-precision weights, and the manifest around them. The only module of `engines` that imports torch.

It is given modules, examples and names, and knows no trainer. Weights are stored in fp16 and cast back to fp32 inside the graph, so the CPU computes
in fp32 what the checkpoint rounded to fp16 computes (ONNX Runtime folds the casts when it loads).
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from engines.bundle import file_spec
from engines.contracts import PartSpec, TensorSpec

OPSET = 20
"""Of a part unless it is given another: encoder and mask decoder gain at most 5 % from opset 23, the language decoder a tenth (docs/engines.md)."""
MIN_STORED_HALF = 256
"""Tensors smaller than this stay fp32: shapes, scales and biases where half precision saves nothing."""

Precision = Literal["fp32", "fp16"]


def export_part(
    module: nn.Module,
    path: Path,
    *,
    example: Sequence[Any],
    dynamic: Sequence[Any],
    input_names: Sequence[str],
    output_names: Sequence[str],
    precision: Precision,
    opset: int = OPSET,
) -> PartSpec:
    """Write one graph. `example` sizes of dynamic axes must exceed 1; `dynamic` names the axes as torch.export does."""
    logger_level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the exporter narrates
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                tuple(example),
                dynamo=True,
                opset_version=opset,
                verbose=False,
                dynamic_shapes=tuple(dynamic),
                input_names=list(input_names),
                output_names=list(output_names),
            )
    finally:
        logging.disable(logger_level)
    assert program is not None, "torch.onnx.export returned nothing"
    return write_part(program.model_proto, path, precision=precision)


def write_part(model: onnx.ModelProto, path: Path, *, precision: Precision) -> PartSpec:
    """Store weights at `precision`, strip names of the machine that exported, check and write."""
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    model.producer_version = model.producer_version.split("+")[0]
    if precision == "fp16":
        _store_half(model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    file = file_spec(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    return PartSpec(
        **file.model_dump(),
        inputs=tuple(_tensor_spec(value) for value in model.graph.input if value.name not in weights),
        outputs=tuple(_tensor_spec(value) for value in model.graph.output),
    )


def _store_half(graph: onnx.GraphProto) -> None:
    """Replace each large fp32 initializer by an fp16 one and a Cast."""
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) < MIN_STORED_HALF:
            continue
        name = tensor.name
        half = numpy_helper.from_array(round_half(numpy_helper.to_array(tensor)), f"{name}.fp16")
        tensor.CopyFrom(half)
        casts.append(helper.make_node("Cast", [half.name], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def round_half(array: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """To fp16, clipped to its range."""
    limit = np.finfo(np.float16).max
    return np.asarray(np.clip(array, -limit, limit), np.float16)


def round_module(module: nn.Module) -> None:
    """Round a module's weights as `write_part` stores them: the reference that parity is measured against."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() >= MIN_STORED_HALF:
                parameter.copy_(torch.from_numpy(round_half(parameter.numpy())).float())


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kinds: Mapping[int, Literal["float32", "float16", "int64", "uint8", "bool"]] = {
        TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.INT64: "int64",
        TensorProto.UINT8: "uint8", TensorProto.BOOL: "bool",
    }  # fmt: skip
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_param or int(dim.dim_value) for dim in tensor.shape.dim)
    return TensorSpec(name=value.name, dtype=kinds[tensor.elem_type], shape=shape)
