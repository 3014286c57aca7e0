"""A tiny model with random weights, its tokenizer, and the bundle exported from it once a session."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from engines.analyzer import Analyzer
from engines.bundle import Bundle, open_bundle
from engines.export import round_module
from engines.prompts import Vocabulary
from trainer.bundle import draft_manifest, seal, write_parts
from trainer.config import tiny
from trainer.model import FiFaMLLM
from trainer.parts import torch_engines
from trainer.tokenizer import train_tokenizer

ANSWER = "The face is changed. The <p> left lower cheek </p> [SEG] is too smooth."


def toy_detector() -> onnx.ModelProto:
    """CenterFace's interface around one strided convolution: 15 channels on a grid of stride 4, split into the four outputs."""
    names = {"heatmap": 1, "scale": 2, "offset": 2, "landmarks": 10}
    weights = numpy_helper.from_array(np.random.default_rng(0).standard_normal((15, 3, 4, 4)).astype(np.float32) * 1e-3, "weights")
    sizes = numpy_helper.from_array(np.array(list(names.values()), np.int64), "sizes")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "weights"], ["grids"], strides=[4, 4], kernel_shape=[4, 4]),
            helper.make_node("Split", ["grids", "sizes"], list(names), axis=1),
        ],
        "toy-detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, "rows", "columns"]) for name, channels in names.items()],
        [weights, sizes],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of the tiny model's vocabulary."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer([ANSWER] * 5, tiny().model.vocab_size).save(str(path))
    return path


@pytest.fixture(scope="session")
def vocabulary(tokenizer_file: Path) -> Vocabulary:
    """The tiny tokenizer with its ids."""
    return Vocabulary(train_tokenizer([ANSWER] * 5, tiny().model.vocab_size))


@pytest.fixture(scope="session")
def model() -> FiFaMLLM:
    """The tiny model, its weights rounded to fp16 as the bundle stores them."""
    torch.manual_seed(3)
    made = FiFaMLLM(tiny().model).eval()
    with torch.no_grad():
        for parameter in made.language.parameters():  # spread the logits, so that greedy decoding does not hang on the last bits
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    round_module(made)
    return made


@pytest.fixture(scope="session")
def sealed(model: FiFaMLLM, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported bundle. Read only: `copied` gives a test its own."""
    folder = tmp_path_factory.mktemp("bundle")
    parts = write_parts(model, toy_detector(), tokenizer_file, folder, precision="fp16")
    seal(folder, draft_manifest(tiny().model, parts, folder, name="tiny", version_="0", precision="fp16", provenance={}))
    return folder


@pytest.fixture
def copied(sealed: Path, tmp_path: Path) -> Path:
    """A copy of the bundle to damage."""
    return Path(shutil.copytree(sealed, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def served(sealed: Path) -> Bundle:
    """The bundle, opened."""
    return open_bundle(sealed, threads=1)


@pytest.fixture(scope="session")
def reference(served: Bundle, model: FiFaMLLM) -> Bundle:
    """The same bundle over the torch parts."""
    return replace(served, engines={**served.engines, **torch_engines(model)})


@pytest.fixture(scope="session")
def crops() -> Callable[[int], np.ndarray]:
    """`crops(count)`: noisy gradients of the tiny model's size, each its own."""

    def build(count: int) -> np.ndarray:
        rng = np.random.default_rng(5)
        size = tiny().model.image_size
        ramp = np.linspace(0, 200, size)[None, :, None, None] * rng.random((count, 1, size, 3))
        return np.clip(ramp + rng.normal(30, 20, (count, size, size, 3)), 0, 255).astype(np.uint8)

    return build


@pytest.fixture(scope="session")
def analyzer(reference: Bundle) -> Analyzer:
    """The analyzer over the torch parts."""
    return Analyzer(reference)
