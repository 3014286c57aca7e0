"""Weights go into a bundle and come back."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from trainer.bundle import draft_manifest, seal, write_parts
from trainer.config import tiny
from trainer.model import FiFaMLLM
from trainer.warm_start import load_bundle, load_bundle_encoder


def _stand_in_detector() -> onnx.ModelProto:
    """Any graph: its weights are not the model's."""
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["heatmap"])],
        "detector",
        [helper.make_tensor_value_info("image", kind, [1])],
        [helper.make_tensor_value_info("heatmap", kind, [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[FiFaMLLM, Path]:
    """A tiny model and its sealed bundle, stored exactly."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "tokenizer.json").write_text("{}")
    torch.manual_seed(1)
    model = FiFaMLLM(tiny().model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # as after training: no two tensors alike
    parts = write_parts(model, _stand_in_detector(), folder / "tokenizer.json", folder, precision="fp32")
    seal(folder, draft_manifest(tiny().model, parts, folder, name="toy", version_="1", precision="fp32", provenance={}))
    return model, folder


def test_every_weight_of_the_encoder_comes_back_in_its_place(saved: tuple[FiFaMLLM, Path]) -> None:
    model, folder = saved
    fresh = FiFaMLLM(tiny().model)
    load_bundle_encoder(fresh, folder)
    want = dict(model.named_parameters())
    for name, parameter in fresh.encoder.named_parameters():
        if "mask_token" not in name:
            torch.testing.assert_close(parameter, want[f"encoder.{name}"], rtol=0, atol=0)


@pytest.mark.slow
def test_every_weight_comes_back_in_its_place(saved: tuple[FiFaMLLM, Path]) -> None:
    model, folder = saved
    fresh = FiFaMLLM(tiny().model)
    load_bundle(fresh, folder)
    want = dict(model.named_parameters())
    for name, parameter in fresh.named_parameters():
        if "mask_token" not in name:
            torch.testing.assert_close(parameter, want[name], rtol=0, atol=0)


def test_a_model_of_other_sizes_is_refused(saved: tuple[FiFaMLLM, Path]) -> None:
    wider = FiFaMLLM(replace(tiny().model, query_width=24))
    with pytest.raises(ValueError, match="other sizes"):
        load_bundle_encoder(wider, saved[1])
