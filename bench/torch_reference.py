"""The bundle in torch eager: the same weights, recovered from the bundle itself, the same threads, fp32 on the CPU."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from engines.bundle import Bundle
from engines.runtime import Arrays, Engine
from trainer.model import FiFaMLLM
from trainer.parts import torch_engines

AGREE = 1e-3
"""Largest difference between an output of torch and of the engine that is still rounding."""


def torch_bundle(bundle: Bundle, model: FiFaMLLM) -> Bundle:
    """The bundle with every graph in torch. Raises ValueError where an encoder's or a detector's outputs are not the bundle's own."""
    detector = TorchDetector(bundle.folder / bundle.manifest.parts["face_detector"].file, bundle.engines["face_detector"])
    engines = {**bundle.engines, **torch_engines(model), "face_detector": detector}
    rng, side = np.random.default_rng(0), bundle.manifest.preprocess.image_size
    for name, part in (("encoder", "image"), ("face_detector", bundle.engines["face_detector"].inputs[0].name)):
        feeds = {part: rng.random((1, 3, side, side), np.float32)}
        pairs = zip(bundle.engines[name].run(feeds).values(), engines[name].run(feeds).values(), strict=True)
        if (worst := max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)) > AGREE:
            raise ValueError(f"the {name} in torch is off by {worst:.2g}: these are not the weights of {bundle.folder.name}")
    return replace(bundle, engines=engines)


@dataclass(frozen=True, slots=True)
class _Step:
    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]


class TorchDetector:
    """The face detector's graph, one torch call a node: what a port to `nn.Module` would run."""

    def __init__(self, path: Path, engine: Engine) -> None:
        """`engine` runs the same graph."""
        graph = onnx.load(str(path)).graph
        self._weights = {tensor.name: torch.from_numpy(np.array(numpy_helper.to_array(tensor))) for tensor in graph.initializer}
        self._steps = []
        for node in graph.node:
            step = _Step(node.op_type, tuple(node.input), node.output[0], {each.name: helper.get_attribute_value(each) for each in node.attribute})
            if node.op_type == "Cast":  # of a weight, stored in half precision
                self._weights[step.output] = self._weights[step.inputs[0]].float()
            else:
                self._steps.append(step)
        self.inputs, self.outputs = engine.inputs, engine.outputs

    @torch.inference_mode()
    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """See `engines.runtime.Engine.run`."""
        values = {**self._weights, **{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}}
        for step in self._steps:
            values[step.output] = _KERNELS[step.kind]([values[name] for name in step.inputs], step.attributes)
        return {output.name: values[output.name].numpy() for output in self.outputs}


def _conv(inputs: list[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    image, weight, *bias = inputs
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right):
        image, top, left = F.pad(image, (left, right, top, bottom)), 0, 0
    return F.conv2d(
        image, weight, *bias, stride=tuple(attributes.get("strides", (1, 1))), padding=(top, left), groups=attributes.get("group", 1)
    )  # fmt: skip


def _conv_transpose(inputs: list[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    padding = tuple(attributes.get("pads", (0, 0, 0, 0))[:2])
    return F.conv_transpose2d(*inputs, stride=tuple(attributes["strides"]), padding=padding, groups=attributes.get("group", 1))


def _batch_norm(inputs: list[Tensor], attributes: Mapping[str, Any]) -> Tensor:
    image, scale, bias, mean, variance = inputs
    return F.batch_norm(image, mean, variance, scale, bias, eps=attributes.get("epsilon", 1e-5))


_KERNELS: dict[str, Callable[[list[Tensor], Mapping[str, Any]], Tensor]] = {
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Relu": lambda inputs, _: F.relu(inputs[0]),
    "Sigmoid": lambda inputs, _: inputs[0].sigmoid(),
}
