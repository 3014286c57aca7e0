"""`evaluate_engine` over a toy engine: every table that needs it running is there, and rests on the faces of the bench."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer import evaluate
from trainer.fifa_bench.predict import AskedFace

Make = Callable[..., Any]


@pytest.fixture
def bench(crop: Make, ask: Make, monkeypatch: pytest.MonkeyPatch) -> list[AskedFace]:
    """Twelve faces of DFDC, every second one fake, in place of a folder; the toy's annotator sees all skin on the forehead."""
    dfdc = {"dataset": "dfdc", "group": ("dfdc",)}
    faces = [(crop(number, bright=["nose"][number % 2 :]), [ask(number, task, **dfdc) for task in ("det", "loc", "age")]) for number in range(12)]

    def regions_of(crop_HWC: NDArray[np.uint8]) -> Callable[[str], NDArray[np.bool_]]:
        return lambda concept: np.full((224, 224), concept in ("forehead_main", "nose"))

    monkeypatch.setattr(evaluate, "read_shards", lambda folder: iter(faces))
    monkeypatch.setattr(evaluate, "_regions_of", regions_of)
    return faces


def test_all_tables_of_a_running_engine_are_made(toy_analyzer: Make, bench: list[AskedFace], tmp_path: Path) -> None:
    scores = tmp_path / "plain.json"
    scores.write_text(json.dumps({f"dfdc/{number}.png": float(number % 3 == 0) for number in range(12)}))
    analyzer = toy_analyzer(lambda face, task: "The manipulated area is here. [SEG]" if task == "loc" else "The <p> nose </p> [SEG] is odd.")
    tables, samples, predictions = evaluate.evaluate_engine(analyzer, tmp_path, [], text=False, others={"plain": scores})
    assert len(samples) == len(predictions) == 36 and tables["detection"]["dfdc"]["auc"] == 1
    shortcut = tables["sharpness as a shortcut"]
    assert list(shortcut) == ["dfdc"] and shortcut["dfdc"]["faces"] == shortcut["dfdc"]["rescored"] == 12
    assert shortcut["dfdc"]["auc_rescored"] == 1 and shortcut["dfdc"]["loss_equal_blur"] == pytest.approx(0, abs=0.01)
    rates = tables["error rates on real faces by group"]
    assert rates["dfdc"]["faces"] == 6 and rates["dfdc"]["called_fake"] == 0 and rates["dfdc"]["skin_luma"] == pytest.approx(40, abs=1)
    assert {"deletion by cover", "cover on reals"} <= set(tables["engine probes"])
    assert tables["beside systems that do not look"]["plain"] == {"auc_dfdc": 0.5}
    assert tables["beside systems that do not look"]["engine"]["auc_dfdc"] == 1
    lead = tables["lead over the constant, least first"]
    assert lead["auc_dfdc"] == {"engine": 1, "constant": 0.5, "lead": 0.5} and "auc_stargan" not in lead
