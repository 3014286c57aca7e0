"""What an explanation may say: claims about a manipulated place, the steadiness of an untouched one, and the protocol of a grammar that words them.

A claim holds measured things only, and its quantised forms (`degree`, `reach`) are what grammars speak of: bins are wide, so that a little noise in
a measurement seldom changes a word. Wording is a function of the claim; nothing here or in a grammar draws at random.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol, cast

from pydantic import TypeAdapter, ValidationError

from engines import fict

Kind = Literal[
    "softer", "sharper", "smoother", "noisier", "flatter", "rougher", "darker", "brighter", "redder", "paler", "warmer", "cooler",
    "hard_edge", "smeared_edge", "uneven", "altered",
]  # fmt: skip
Measurement = Literal[
    "sharpness_ratio", "noise_ratio", "texture_ratio", "brightness_shift", "red_shift", "yellow_shift", "boundary_gradient", "asymmetry",
]  # fmt: skip
Degree = Literal[0, 1, 2, 3, 4]
Unit = Literal["percent", "levels"]
Reach = Literal["whole", "most", "part", "patch"]
Place = Literal["upper", "lower", "inner", "outer", "right", "left", "centre"]
Bearing = Literal["above", "below", "beside", "around"]
Basis = Literal["around", "usual"]


class Measured(NamedTuple):
    """Which measurement a kind rests on, and to which side."""

    measurement: Measurement
    sign: Literal[-1, 1]
    """+1 where the measurement rises with the artifact."""


KINDS: dict[Kind, Measured] = {
    "softer": Measured("sharpness_ratio", -1), "sharper": Measured("sharpness_ratio", 1),
    "smoother": Measured("noise_ratio", -1), "noisier": Measured("noise_ratio", 1),
    "flatter": Measured("texture_ratio", -1), "rougher": Measured("texture_ratio", 1),
    "darker": Measured("brightness_shift", -1), "brighter": Measured("brightness_shift", 1),
    "redder": Measured("red_shift", 1), "paler": Measured("red_shift", -1),
    "warmer": Measured("yellow_shift", 1), "cooler": Measured("yellow_shift", -1),
    "hard_edge": Measured("boundary_gradient", 1), "smeared_edge": Measured("boundary_gradient", -1),
    "uneven": Measured("asymmetry", 1),
}  # fmt: skip
"""'altered' is missing: it says that a place was changed and that no measurement tells how."""

OPPOSITE: dict[Kind, Kind] = {
    a: b for a, (measurement, sign) in KINDS.items() for b, other in KINDS.items() if other == Measured(measurement, -1 if sign == 1 else 1)
}  # fmt: skip

RATIO_STEPS = (1.12, 1.3, 1.6, 2.3)
"""A ratio and its inverse count alike: up to 12 % barely, then about a fifth, a third, a half, more."""
LEVEL_STEPS = (3.0, 7.0, 14.0, 25.0)
"""Grey levels: up to 3 a shade, then about five, ten, twenty, more."""
PERCENT_GRID: tuple[int, ...] = (*range(2, 30, 2), *range(30, 100, 5), *range(100, 210, 10))
LEVEL_GRID: tuple[int, ...] = (*range(1, 20), *range(20, 40, 2), *range(40, 65, 5))
"""Numbers that may be said: right to about a tenth."""
REACH_STEPS = (0.2, 0.5, 0.8)
"""Shares of a concept: a patch, a part, most of it, the whole."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One measurement that departs, at one place."""

    kind: Kind
    strength: float
    """Departure in standard deviations over real faces."""
    value: float
    """The measurement of `engines.measure`: a ratio, or a shift in grey levels, inside against around."""
    usual: float
    """What real faces show there, in the same unit."""
    basis: Basis
    """What a sentence compares with: the surroundings, where real faces show no difference from them; else what is usual there."""

    @property
    def unit(self) -> Unit:
        """Of the amount."""
        return "levels" if self.kind != "altered" and KINDS[self.kind].measurement.endswith("_shift") else "percent"

    @property
    def against_basis(self) -> float:
        """The ratio to what the sentence compares with, or the shift from it in grey levels; 1 or 0 where nothing departs."""
        if self.unit == "levels":
            return self.value - (self.usual if self.basis == "usual" else 0.0)
        return self.value / (self.usual if self.basis == "usual" else 1.0) if self.kind != "altered" else 1.0

    @property
    def degree(self) -> Degree:
        """How much, in five steps (`RATIO_STEPS`, `LEVEL_STEPS`); 0 for 'altered'."""
        if self.unit == "levels":
            return cast(Degree, _step(abs(self.against_basis), LEVEL_STEPS))
        return cast(Degree, _step(max(self.against_basis, 1.0 / max(self.against_basis, 1e-3)), RATIO_STEPS))

    @property
    def amount(self) -> int:
        """The number a sentence may say: percent (`PERCENT_GRID`) or grey levels (`LEVEL_GRID`)."""
        if self.unit == "levels":
            return min(LEVEL_GRID, key=lambda levels: abs(levels - abs(self.against_basis)))
        return min(PERCENT_GRID, key=lambda percent: abs(percent - 100 * abs(self.against_basis - 1.0)))


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing an explanation says: a named place, what departs there, how much of the place, next to what."""

    concept: str
    """FICT id."""
    finding: Finding
    extent: float = 1.0
    """Share of the concept's visible region that the mask covers, in [0, 1]."""
    place: Place | None = None
    """Where in the concept the mask lies; inner and outer for places of one side, the subject's right and left for others. None: nowhere special."""
    neighbours: tuple[str, ...] = ()
    """FICT ids of what makes up most of the ring around the mask, at most two; a single one may be the concept itself or stand above it in FICT: the
    rest of that. Empty: nothing does."""
    bearing: Bearing = "around"
    """Where a single neighbour lies, seen from the mask."""
    also: Finding | None = None
    """A second measurement that departs."""

    @property
    def kind(self) -> Kind:
        """Of the first finding."""
        return self.finding.kind

    @property
    def strength(self) -> float:
        """Of the first finding."""
        return self.finding.strength

    @property
    def reach(self) -> Reach:
        """The extent in four steps."""
        reaches: tuple[Reach, ...] = ("patch", "part", "most", "whole")
        return reaches[_step(self.extent, REACH_STEPS)]

    @property
    def phrase(self) -> str:
        """The words of FICT for the concept."""
        return fict.concepts()[self.concept].phrase

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The first, and the second where there is one."""
        return (self.finding,) if self.also is None else (self.finding, self.also)

    def to_json(self) -> dict[str, Any]:
        """As in the JSON line; `read_claim` reads it back."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Steady:
    """What stands behind a clean answer: which measurements are as on real faces."""

    concept: str | None
    """FICT id of the area; None for a face or a box."""
    agree: tuple[Measurement, ...]
    """Those nearest to what real faces show, the nearest first."""
    farthest: Measurement
    """The one that departs most."""
    departure: float
    """By how many standard deviations over real faces."""


class Grammar(Protocol):
    """Words claims. Deterministic: the same claims give the same text. Modules `grammar` and `held_out_grammar` are such."""

    def explain(self, forgery_type: str, claims: Sequence[Claim]) -> str:
        """Return markup for a manipulated face: one sentence a claim, in order."""

    def explain_area(self, claims: Sequence[Claim], query: str | None) -> str:
        """Return markup that answers for a region (a FICT id) or a box (None) which holds artifacts."""

    def clean(self, steady: Steady) -> str:
        """Return the answer for a face without artifacts; it marks no phrase and names no concept."""

    def clean_area(self, query: str | None, steady: Steady) -> str:
        """Return the answer for a region or box without artifacts; it marks no phrase and names at most the region asked for."""


def read_claim(stored: dict[str, Any]) -> Claim:
    """Read what `Claim.to_json` wrote. Raises ValueError naming what does not fit."""
    try:
        claim = _reader().validate_python(stored)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"claim {'.'.join(map(str, first['loc']))}: {first['msg']}; annotate again with this version") from None
    for concept in (claim.concept, *claim.neighbours):
        if concept not in fict.concepts():
            raise ValueError(f"{concept!r} is no FICT concept; see `engines.fict.concepts()`")
    return claim


def bound_concepts(claims: Sequence[Claim]) -> frozenset[str]:
    """Every FICT id that a text about these claims may name: what is manipulated, and what it is compared with."""
    return frozenset(name for claim in claims for name in (claim.concept, *claim.neighbours))


def is_plural(concept: str) -> bool:
    """Whether the concept's phrase takes a plural verb."""
    return fict.concepts()[concept].phrase.split()[-1] in _PLURAL_ENDS


def agree(verb: str, plural: bool) -> str:
    """A verb in the third person, with what follows it, in the subject's number: 'loses focus' -> 'lose focus'."""
    head, gap, tail = verb.partition(" ")
    if not plural:
        return verb
    for ending, length, added in (("ies", 3, "y"), ("shes", 2, ""), ("sses", 2, ""), ("ches", 2, ""), ("s", 1, "")):
        if head not in _IRREGULAR and head.endswith(ending) and len(head) > length + 1:  # 'lies' is no 'carries'
            return f"{head[:-length]}{added}{gap}{tail}"
    return f"{_IRREGULAR[head]}{gap}{tail}"


def holds(outer: str, inner: str) -> bool:
    """Whether `outer` is `inner` or stands above it in FICT."""
    return outer in fict.concepts()[inner].path


_PLURAL_ENDS = (
    "eyes",
    "eyebrows",
    "cheeks",
    "ears",
    "temples",
    "canthi",
    "eyelids",
    "corners",
    "accessories",
    "items",
    "eyeglasses",
    "feet",
    "teeth",
)


_IRREGULAR = {"is": "are", "was": "were", "has": "have", "goes": "go", "does": "do"}


@cache
def _reader() -> TypeAdapter[Claim]:
    return TypeAdapter(Claim)


def _step(amount: float, steps: tuple[float, ...]) -> int:
    return sum(amount >= step for step in steps)
