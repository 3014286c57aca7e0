"""Encoders averaged, and a language stage that goes on elsewhere."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engines.bundle import MANIFEST_NAME
from trainer import warm_start
from trainer.checkpoint import save_model
from trainer.config import TrainConfig, tiny
from trainer.model import FiFaMLLM
from trainer.soup import average_encoders
from trainer.train import continued, model_of_bundle


def filled(value: float, config: TrainConfig | None = None) -> FiFaMLLM:
    model = FiFaMLLM((config or tiny()).model)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, value)
    return model


@pytest.fixture
def bundles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Two engines whose encoders hold ones and fives, without their graphs."""

    def load(model: FiFaMLLM, bundle: Path) -> None:
        model.encoder.load_state_dict(filled(float(bundle.name)).encoder.state_dict())

    monkeypatch.setattr(warm_start, "load_bundle_encoder", load)
    for name in ("1", "5"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST_NAME).touch()
    return [tmp_path / "1", tmp_path / "5"]


def finished(run: Path, config: TrainConfig, value: float) -> Path:
    """The vision stage of a run whose encoder holds one value."""
    save_model(run / "vision", filled(value, config), config, {"stage": "vision"})
    return run / "vision"


def test_every_weight_of_the_encoder_is_the_mean_under_the_shares(bundles: list[Path]) -> None:
    model = average_encoders(tiny(), bundles, [0.25, 0.75])
    assert all(torch.equal(parameter, torch.full_like(parameter, 4.0)) for parameter in model.encoder.parameters())
    assert not any(torch.equal(parameter, torch.full_like(parameter, 4.0)) for parameter in model.mask_decoder.parameters())


def test_a_run_is_averaged_with_the_engine_that_it_began_from(bundles: list[Path], tmp_path: Path) -> None:
    model = average_encoders(tiny(), [bundles[0], finished(tmp_path / "run", tiny(), 2.0)], [0.5, 0.5])
    assert all(torch.equal(parameter, torch.full_like(parameter, 1.5)) for parameter in model.encoder.parameters())


def test_a_stage_begins_with_the_encoder_of_a_bundle_or_of_another_run(bundles: list[Path], tmp_path: Path) -> None:
    for source, value in ((bundles[1], 5.0), (finished(tmp_path / "run", tiny(), 2.0), 2.0)):
        model, _ = model_of_bundle(tiny(), source)
        assert all(torch.equal(parameter, torch.full_like(parameter, value)) for parameter in model.encoder.parameters())
        assert not any(torch.equal(parameter, torch.full_like(parameter, value)) for parameter in model.mask_decoder.parameters())


def test_what_is_no_encoder_of_the_recipe_is_refused(bundles: list[Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no model"):
        average_encoders(tiny(), [bundles[0], tmp_path], [0.5, 0.5])
    deeper = replace(tiny(), model=replace(tiny().model, encoder_layers=3))
    with pytest.raises(ValueError, match="other sizes"):
        average_encoders(tiny(), [bundles[0], finished(tmp_path / "deeper", deeper, 2.0)], [0.5, 0.5])


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
