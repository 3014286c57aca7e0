"""A run's settings survive the JSON beside its checkpoint."""

import json

import pytest

from trainer.config import RECIPES, TrainConfig


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_config_survives_json(recipe: str) -> None:
    config = RECIPES[recipe]()
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
