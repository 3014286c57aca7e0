"""Claims of every shape, for the grammars and what checks them."""

import numpy as np
import pytest

from engines import fict
from engines.claims import KINDS, Bearing, Claim, Finding, Kind, Place, is_plural
from engines.contracts import FORGERY_TYPES
from engines.findings import side_of

Said = tuple[str, list[Claim]]


def made_finding(rng: np.random.Generator, kind: Kind) -> Finding:
    """A finding that departs to its kind's side, by anything from barely to grossly."""
    measurement, sign = KINDS[kind]
    usual = float(rng.normal(0, 6)) if measurement.endswith("_shift") else float(rng.uniform(0.8, 1.3))
    basis = "usual" if rng.random() < 0.5 else "around"
    origin = usual if basis == "usual" else (0.0 if measurement.endswith("_shift") else 1.0)
    value = origin + sign * float(rng.exponential(12)) if measurement.endswith("_shift") else origin * float(np.exp(sign * rng.exponential(0.4)))
    return Finding(kind, float(rng.uniform(0.7, 5)), value, usual, basis)


def made_claim(rng: np.random.Generator, concept: str) -> Claim:
    """A claim as `claim_for` makes them: places, neighbours and second findings agree with the concept."""
    kinds = list(KINDS)
    first, second = (kinds[int(k)] for k in rng.choice(len(kinds), 2, replace=False))
    finding = made_finding(rng, first) if rng.random() < 0.95 else Finding("altered", 0.0, 0.0, 0.0, "around")
    also = made_finding(rng, second) if rng.random() < 0.4 and KINDS[first].measurement != KINDS[second].measurement else None
    sides: list[Place] = ["inner", "outer"] if side_of(concept) else ["right", "left"]
    places: list[Place | None] = [None, None, "upper", "lower", "centre", *sides]
    cells = [name for name in fict.cells(14) if name not in fict.concepts()[concept].path]
    near = [cells[int(k)] for k in rng.choice(len(cells), int(rng.integers(0, 3)), replace=False)]
    bearings: list[Bearing] = ["above", "below", "beside", "around"]
    bearing = bearings[int(rng.integers(4))] if len(near) == 1 else "around"
    if rng.random() < 0.15:
        near, bearing = [concept], "around"
    return Claim(concept, finding, float(rng.uniform(0.05, 1)), places[int(rng.integers(len(places)))], tuple(near), bearing, also)


@pytest.fixture(scope="session")
def said() -> list[Said]:
    """500 faces: a family, and one to five claims about places of their own."""
    rng = np.random.default_rng(5)
    names = [name for name in fict.concepts() if is_plural(name) or rng.random() < 0.7]
    families = (*FORGERY_TYPES, "swap")
    return [
        (families[number % len(families)], [made_claim(rng, str(name)) for name in rng.choice(names, int(rng.integers(1, 6)), replace=False)])
        for number in range(500)
    ]
