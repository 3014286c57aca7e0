"""Weights go into a bundle and come back."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from engines.contracts import PartName, PartSpec
from engines.export import write_part
from trainer.bundle import draft_manifest, seal, write_encoder, write_parts
from trainer.config import tiny
from trainer.model import FiFaMLLM
from trainer.warm_start import load_bundle, load_bundle_encoder


def _stand_in() -> onnx.ModelProto:
    """Any graph, without weights of the model's."""
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["heatmap"])],
        "stand-in",
        [helper.make_tensor_value_info("image", kind, [1])],
        [helper.make_tensor_value_info("heatmap", kind, [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _distinct_model() -> FiFaMLLM:
    torch.manual_seed(1)
    model = FiFaMLLM(tiny().model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # as after training: no two tensors alike
    return model


def _sealed(folder: Path, parts: dict[PartName, PartSpec]) -> Path:
    seal(folder, draft_manifest(tiny().model, parts, folder, name="toy", version_="1", precision="fp32", provenance={}))
    return folder


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[FiFaMLLM, Path]:
    """A tiny model and a sealed bundle that stores its encoder exactly; the other parts are stand-ins."""
    folder = tmp_path_factory.mktemp("bundle")
    model = _distinct_model()
    for name in ("tokenizer.json", "token_embeddings.safetensors"):
        (folder / name).write_text("{}")
    others: tuple[PartName, ...] = ("decoder", "mask_decoder", "box_encoder", "face_detector")
    parts = {name: write_part(_stand_in(), folder / f"{name}.onnx", precision="fp32") for name in others}
    return model, _sealed(folder, {"encoder": write_encoder(model, folder, precision="fp32"), **parts})


def _is_restored(fresh: torch.nn.Module, model: torch.nn.Module) -> None:
    want = dict(model.named_parameters())
    for name, parameter in fresh.named_parameters():
        if "mask_token" not in name:
            torch.testing.assert_close(parameter, want[name], rtol=0, atol=0, msg=name)


def test_every_weight_of_the_encoder_comes_back_in_its_place(encoded: tuple[FiFaMLLM, Path]) -> None:
    fresh = FiFaMLLM(tiny().model)
    load_bundle_encoder(fresh, encoded[1])
    _is_restored(fresh.encoder, encoded[0].encoder)


@pytest.mark.slow
def test_every_weight_comes_back_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    model, fresh = _distinct_model(), FiFaMLLM(tiny().model)
    parts = write_parts(model, _stand_in(), tmp_path / "tokenizer.json", tmp_path, precision="fp32")
    load_bundle(fresh, _sealed(tmp_path, parts))
    _is_restored(fresh, model)


def test_a_model_of_other_sizes_is_refused(encoded: tuple[FiFaMLLM, Path]) -> None:
    wider = FiFaMLLM(replace(tiny().model, query_width=24))
    with pytest.raises(ValueError, match="other sizes"):
        load_bundle_encoder(wider, encoded[1])
