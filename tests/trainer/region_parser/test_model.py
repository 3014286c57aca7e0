"""The parser: shares that make sense whatever the weights, and an export that says the same."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F

from engines.regions import NUM_ATOMS, NUM_CHANNELS
from trainer.bundle import write_region_parser
from trainer.region_parser.model import RegionParser, every_second


@pytest.fixture(scope="module")
def parser() -> RegionParser:
    torch.manual_seed(0)
    return RegionParser(grid=24).eval()


@pytest.mark.parametrize("phase", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_phase_is_what_interpolation_puts_there(phase: tuple[int, int]) -> None:
    coarse = torch.randn(2, 5, 7, 9)
    fine = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
    torch.testing.assert_close(every_second(coarse, phase), fine[:, :, phase[0] :: 2, phase[1] :: 2])


@torch.no_grad()
def test_atoms_share_out_every_cell_and_arcs_leave_some(parser: RegionParser) -> None:
    shares = parser(torch.randn(2, 3, 96, 96))
    assert shares.shape == (2, NUM_CHANNELS, 24, 24) and shares.min() >= 0
    torch.testing.assert_close(shares[:, :NUM_ATOMS].sum(1), torch.ones(2, 24, 24))
    assert (shares[:, NUM_ATOMS:].sum(1) <= 1 + 1e-5).all()


@torch.no_grad()
def test_the_graph_finds_what_torch_finds(parser: RegionParser, tmp_path: Path) -> None:
    part = write_region_parser(parser, tmp_path, image_size=96, precision="fp32")
    assert [tensor.shape for tensor in part.outputs] == [("batch", NUM_CHANNELS, 24, 24)]
    image = torch.randn(3, 3, 96, 96)
    (found,) = ort.InferenceSession(str(tmp_path / part.file), providers=["CPUExecutionProvider"]).run(None, {"image": image.numpy()})
    np.testing.assert_allclose(found, parser(image).numpy(), atol=1e-4)
