"""The weights of a sealed bundle back in a model: training goes on from what serves, where its checkpoint is not at hand.

Exported graphs keep some weights under their module's name and some anonymous and transposed. Which is which is not guessed: the same model with
its own random weights is exported once more, and each of its tensors is recognised in the fresh graph by value.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from engines.runtime import read_manifest, verify_files
from trainer.bundle import write_parts
from trainer.model import FiFaMLLM

PARTS = ("encoder", "decoder", "mask_decoder")


def load_bundle_weights(model: FiFaMLLM, bundle: Path) -> None:
    """Overwrite the weights of a fresh (randomly initialised) model with those of a bundle of the same sizes, as stored (fp16 ones rounded).

    Every file is checked against the manifest first. Raises BundleError for a damaged bundle and ValueError for one of other sizes.
    """
    verify_files(bundle, read_manifest(bundle))
    parameters = {name: parameter for name, parameter in model.named_parameters() if name != "language.lm_head.weight"}
    for parameter in parameters.values():
        torch.nn.init.normal_(parameter)  # zeros and ones of a young model look alike, and the exporter merges what is equal
    by_value = {_key(parameter.detach().numpy()): name for name, parameter in parameters.items()}
    found: dict[str, Tensor] = {}
    with TemporaryDirectory() as scratch:
        write_parts(model, onnx.load(str(bundle / "face_detector.onnx")), bundle / "tokenizer.json", Path(scratch), precision="fp32")
        for part in PARTS:
            stored = _initializers(bundle / f"{part}.onnx")
            for tensor_name, fresh in _initializers(Path(scratch) / f"{part}.onnx").items():
                name = _named(tensor_name, part, parameters) or by_value.get(_key(fresh))
                transposed = None if name else by_value.get(_key(fresh.T))
                if not (name or transposed):
                    continue  # a shape or a constant of the graph
                if tensor_name not in stored or stored[tensor_name].shape != fresh.shape:
                    raise ValueError(f"{bundle / part}.onnx was exported from a model of other sizes; choose the recipe it was trained with")
                value = torch.from_numpy(np.array(stored[tensor_name], np.float32))
                found[name or transposed or ""] = value if name else value.T
    missing = sorted(name for name in set(parameters) - set(found) if "mask_token" not in name)  # DINOv2's mask token serves its pretraining only
    if missing:
        raise ValueError(f"{bundle} lacks {len(missing)} weights of the model, {missing[0]} first; choose the recipe it was trained with")
    with torch.no_grad():
        for name, value in found.items():
            parameters[name].copy_(value)


def _named(tensor_name: str, part: str, parameters: dict[str, torch.nn.Parameter]) -> str | None:
    """The parameter that kept its name through the export, or None. The mask decoder is exported alone, without its prefix."""
    candidates = (tensor_name, f"{part}.{tensor_name}")
    return next((name for name in candidates if name in parameters), None)


def _key(array: NDArray[np.float32]) -> bytes:
    return repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()


def _initializers(path: Path) -> dict[str, NDArray[np.float32]]:
    tensors = onnx.load(str(path)).graph.initializer
    return {tensor.name.removesuffix(".fp16"): numpy_helper.to_array(tensor) for tensor in tensors}
