"""Encoders averaged, and a language stage that goes on elsewhere."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainer import soup
from trainer.config import tiny
from trainer.model import FiFaMLLM
from trainer.soup import average_encoders
from trainer.train import continued


def filled(value: float) -> FiFaMLLM:
    model = FiFaMLLM(tiny().model)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, value)
    return model


@pytest.fixture
def bundles(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two engines whose encoders hold ones and fives, without their graphs."""

    def load(model: FiFaMLLM, bundle: Path) -> None:
        model.encoder.load_state_dict(filled(float(bundle.name)).encoder.state_dict())

    monkeypatch.setattr(soup, "load_bundle_encoder", load)
    return [Path("1"), Path("5")]


def test_every_weight_of_the_encoder_is_the_mean_under_the_shares(bundles: list[Path]) -> None:
    model = average_encoders(tiny(), bundles, [0.25, 0.75])
    assert all(torch.equal(parameter, torch.full_like(parameter, 4.0)) for parameter in model.encoder.parameters())
    assert not any(torch.equal(parameter, torch.full_like(parameter, 4.0)) for parameter in model.mask_decoder.parameters())


@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.6]])
def test_shares_that_make_no_mean_are_refused(bundles: list[Path], shares: list[float]) -> None:
    with pytest.raises(ValueError, match="one for each, with the sum 1"):
        average_encoders(tiny(), bundles, shares)


def test_a_language_stage_goes_on_with_everything_but_the_encoder() -> None:
    model = continued(filled(1.0), filled(2.0))
    values = {name: {part.item() for part in parameter.unique()} for name, parameter in model.named_parameters()}
    assert all(found == ({1.0} if name.startswith("encoder.") else {2.0}) for name, found in values.items())
    with pytest.raises(ValueError, match="other sizes"):
        continued(filled(1.0), FiFaMLLM(replace(tiny().model, lm_layers=1)))
