"""What real faces show at each concept: the content of `engines/measure_baseline.json`."""

from collections.abc import Iterable
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from engines import fict
from engines.claims import Measurement
from engines.findings import MIN_BASELINE_PX, comparable
from engines.measure import measure_region
from engines.regions import Regions

PATCH_SHARES = (0.15, 0.45)
MIN_BASELINE_FACES = 40


def measure_baseline(faces: Iterable[tuple[NDArray[np.uint8], Regions]], seed: int = 0) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Measure real (224, 224, 3) faces: the content of `measure_baseline.json`, which is made of `train` rows only.

    Each concept is measured as a whole and, once a face, as a round patch of 15 to 45 % of it. Tails are cut at 2.5 % on both sides before mean and
    standard deviation, the latter scaled back to that of a normal sample. Concepts that fewer than 40 faces show are left to those above them.
    """
    seen: dict[str, dict[str, list[dict[str, float]]]] = {}
    for number, (image_HWC, found) in enumerate(faces):
        rng = np.random.default_rng([20531, seed, number])
        for concept in fict.concepts():
            region_HW = found.mask(concept)
            if int(region_HW.sum()) >= MIN_BASELINE_PX:
                table = seen.setdefault(concept, {"whole": [], "patch": []})
                table["whole"].append(comparable(measure_region(image_HWC, region_HW)))
                table["patch"].append(comparable(measure_region(image_HWC, _random_patch(rng, region_HW))))
    return {
        concept: {form: {name: _mean_spread(np.array([row[name] for row in rows])) for name in get_args(Measurement)} for form, rows in table.items()}
        for concept, table in seen.items()
        if len(table["whole"]) >= MIN_BASELINE_FACES
    }


def _random_patch(rng: np.random.Generator, region_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    ys, xs = np.nonzero(region_HW)
    center = int(rng.integers(len(ys)))
    distance = (ys - ys[center]) ** 2 + (xs - xs[center]) ** 2
    nearest = np.argsort(distance, kind="stable")[: max(1, int(rng.uniform(*PATCH_SHARES) * len(ys)))]
    patch = np.zeros_like(region_HW)
    patch[ys[nearest], xs[nearest]] = True
    return patch


def _mean_spread(values_N: NDArray[np.float64]) -> list[float]:
    low, high = np.quantile(values_N, [0.025, 0.975])
    kept = values_N[(values_N >= low) & (values_N <= high)]
    return [round(float(kept.mean()), 3), round(max(float(kept.std()) / 0.871, 0.05), 3)]  # 0.871: deviation of a normal sample so cut
