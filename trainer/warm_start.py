"""The weights of a sealed bundle back in a model: training goes on from what serves, and torch is timed on it, where its checkpoint is not at hand.

An exported graph keeps some weights under their module's name and some anonymous and transposed. Which is which is not guessed: the same model with
its own random weights is exported once more, and each of its tensors is recognised in the fresh graph by value.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load_file
from torch import Tensor

from engines.bundle import MANIFEST_NAME, read_manifest, verify_files
from trainer.bundle import write_encoder, write_parts
from trainer.checkpoint import load_model
from trainer.config import ModelConfig
from trainer.model import FiFaMLLM


def load_bundle_encoder(model: FiFaMLLM, bundle: Path) -> None:
    """Overwrite the encoder of a model with that of a bundle of the same sizes, as stored (fp16 ones rounded); projector and decoders stay.

    Every file is checked against the manifest first. Raises BundleError for a damaged bundle and ValueError for one of other sizes.
    """
    verify_files(bundle, read_manifest(bundle))
    fresh = _unlike_any_other(model)
    with TemporaryDirectory() as scratch:
        write_encoder(fresh, Path(scratch), precision="fp32")
        found = _recognised(fresh, Path(scratch), bundle)
    _overwrite(model, {name: weights for name, weights in found.items() if name.startswith("encoder.")}, bundle, prefix="encoder.")


def load_encoder(model: FiFaMLLM, source: Path) -> None:
    """Overwrite the encoder of a model with that of a sealed bundle or of a finished stage (`RUN/vision`).

    Raises ValueError for one of other sizes, FileNotFoundError for a folder that is neither, and what `load_bundle_encoder` raises.
    """
    if (source / MANIFEST_NAME).is_file():
        load_bundle_encoder(model, source)
        return
    trained, config = load_model(source)
    if config.model != model.config:
        raise ValueError(f"{source} is a model of other sizes; choose the recipe it was trained with")
    model.encoder.load_state_dict(trained.encoder.state_dict())


def load_bundle(model: FiFaMLLM, bundle: Path) -> None:
    """Overwrite every weight of a model, as `load_bundle_encoder` does those of the encoder. Blocks for about a minute: five exports."""
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    fresh = _unlike_any_other(model)
    with TemporaryDirectory() as scratch:
        detector, tokenizer = onnx.load(str(bundle / manifest.parts["face_detector"].file)), bundle / manifest.files["tokenizer"].file
        write_parts(fresh, detector, tokenizer, Path(scratch), precision="fp32")
        (Path(scratch) / manifest.parts["face_detector"].file).unlink()  # not a part of the model
        found = _recognised(fresh, Path(scratch), bundle)
    table_VE = load_file(bundle / manifest.files["token_embeddings"].file)["token_embeddings"]
    found["language.model.embed_tokens.weight"] = torch.from_numpy(table_VE.astype(np.float32))
    _overwrite(model, found, bundle)


def recovered_model(bundle: Path, config: ModelConfig) -> FiFaMLLM:
    """A model with the weights of a bundle of these sizes, as stored. Blocks for about a minute. Raises what `load_bundle` raises."""
    model = FiFaMLLM(config).eval()
    load_bundle(model, bundle)
    return model


def _unlike_any_other(model: FiFaMLLM) -> FiFaMLLM:
    """A model of the same sizes in which no two tensors are alike: zeros and ones of a young model are, and the exporter merges what is equal."""
    fresh = FiFaMLLM(model.config)
    for parameter in fresh.parameters():
        torch.nn.init.normal_(parameter)
    return fresh


def _recognised(fresh: FiFaMLLM, graphs: Path, bundle: Path) -> dict[str, Tensor]:
    """The bundle's weights by the parameter of `fresh` that stands in their place in a graph of `graphs`."""
    wanted = dict(fresh.named_parameters())
    by_value = {_key(parameter.detach().numpy()): name for name, parameter in wanted.items()}
    found: dict[str, Tensor] = {}
    for path in sorted(graphs.glob("*.onnx")):
        stored = _initializers(bundle / path.name)
        for tensor_name, value in _initializers(path).items():
            name = tensor_name if tensor_name in wanted else by_value.get(_key(value))
            transposed = None if name else by_value.get(_key(value.T))
            if not (name or transposed):
                continue  # a shape or a constant of the graph
            if tensor_name not in stored or stored[tensor_name].shape != value.shape:
                raise ValueError(f"{bundle / path.name} was exported from a model of other sizes; choose the recipe it was trained with")
            weights = torch.from_numpy(np.array(stored[tensor_name], np.float32))
            found[name or transposed or ""] = weights if name else weights.T
    return found


def _overwrite(model: FiFaMLLM, found: Mapping[str, Tensor], bundle: Path, prefix: str = "") -> None:
    own = {name: parameter for name, parameter in model.named_parameters() if name.startswith(prefix)}
    missing = sorted(name for name in set(own) - set(found) if "mask_token" not in name)  # DINOv2's mask token serves its pretraining only
    if missing:
        raise ValueError(f"{bundle} lacks {len(missing)} weights of the model, {missing[0]} first; choose the recipe it was trained with")
    with torch.no_grad():
        for name, weights in found.items():
            own[name].copy_(weights)


def _key(array: NDArray[np.float32]) -> bytes:
    return repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()


def _initializers(path: Path) -> dict[str, NDArray[np.float32]]:
    tensors = onnx.load(str(path)).graph.initializer
    return {tensor.name.removesuffix(".fp16"): numpy_helper.to_array(tensor) for tensor in tensors}
