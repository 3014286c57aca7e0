"""The encoder of a sealed bundle back in a model: training goes on from what serves, where its checkpoint is not at hand.

An exported graph keeps some weights under their module's name and some anonymous and transposed. Which is which is not guessed: the same model with
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

from engines.bundle import read_manifest, verify_files
from trainer.bundle import write_encoder
from trainer.model import FiFaMLLM


def load_bundle_encoder(model: FiFaMLLM, bundle: Path) -> None:
    """Overwrite the encoder of a model with that of a bundle of the same sizes, as stored (fp16 ones rounded); projector and decoders stay.

    Every file is checked against the manifest first. Raises BundleError for a damaged bundle and ValueError for one of other sizes.
    """
    verify_files(bundle, read_manifest(bundle))
    fresh_model = FiFaMLLM(model.config)
    for parameter in fresh_model.parameters():
        torch.nn.init.normal_(parameter)  # zeros and ones of a young model look alike, and the exporter merges what is equal
    wanted = {f"encoder.{name}": parameter for name, parameter in fresh_model.encoder.named_parameters()}
    by_value = {_key(parameter.detach().numpy()): name for name, parameter in wanted.items()}
    found: dict[str, Tensor] = {}
    with TemporaryDirectory() as scratch:
        write_encoder(fresh_model, Path(scratch), precision="fp32")
        stored, fresh = (_initializers(folder / "encoder.onnx") for folder in (bundle, Path(scratch)))
    for tensor_name, value in fresh.items():
        name = tensor_name if tensor_name in wanted else by_value.get(_key(value))
        transposed = None if name else by_value.get(_key(value.T))
        if not (name or transposed):
            continue  # the projector's, a shape or a constant of the graph
        if tensor_name not in stored or stored[tensor_name].shape != value.shape:
            raise ValueError(f"{bundle / 'encoder.onnx'} was exported from a model of other sizes; choose the recipe it was trained with")
        weights = torch.from_numpy(np.array(stored[tensor_name], np.float32))
        found[name or transposed or ""] = weights if name else weights.T
    missing = sorted(name for name in set(wanted) - set(found) if "mask_token" not in name)  # DINOv2's mask token serves its pretraining only
    if missing:
        raise ValueError(f"{bundle} lacks {len(missing)} weights of the encoder, {missing[0]} first; choose the recipe it was trained with")
    own = {f"encoder.{name}": parameter for name, parameter in model.encoder.named_parameters()}
    with torch.no_grad():
        for name, weights in found.items():
            own[name].copy_(weights)


def _key(array: NDArray[np.float32]) -> bytes:
    return repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()


def _initializers(path: Path) -> dict[str, NDArray[np.float32]]:
    tensors = onnx.load(str(path)).graph.initializer
    return {tensor.name.removesuffix(".fp16"): numpy_helper.to_array(tensor) for tensor in tensors}
