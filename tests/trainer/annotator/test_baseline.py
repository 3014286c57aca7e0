"""What real faces show, out of faces."""

import numpy as np
import pytest
from numpy.typing import NDArray

from engines import fict
from engines.findings import comparable
from engines.measure import measure_region
from engines.regions import Regions
from trainer.annotator import baseline

S = 120


@pytest.fixture(scope="module")
def found() -> Regions:
    atom_HW = np.full((S, S), fict.cells(112).index("background"), np.int16)
    atom_HW[40:80, 50:70] = fict.cells(112).index("nose_tip")
    atom_HW[40:80, 15:50] = fict.cells(112).index("right_mid_cheek")
    return Regions(atom_HW, np.full((S, S), -1, np.int8))


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(90, 160, (S, S, 3), np.uint8)


def test_baseline_is_reproducible_and_leaves_rare_concepts_out(found: Regions, image: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "MIN_BASELINE_FACES", 3)
    table = baseline.measure_baseline([(image, found)] * 3)
    assert table == baseline.measure_baseline([(image, found)] * 3)
    assert {"nose_tip", "nose", "cheeks", "background"} <= set(table)
    assert "hair" not in table
    assert baseline.measure_baseline([(image, found)] * 2) == {}
    value = comparable(measure_region(image, found.mask("nose_tip")))["red_shift"]
    assert table["nose_tip"]["whole"]["red_shift"][0] == pytest.approx(value, abs=1e-3)
