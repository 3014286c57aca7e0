"""Which cases wait, and in which order: worst score, least certain, most disputed, or as time went."""

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum

from engines.contracts import Label
from engines.reviews import Sampling
from fifa_stream.review.cases import Case, CaseBook


class Order(StrEnum):
    """What the queue begins with."""

    SCORE = "score"
    """The highest score."""
    UNCERTAINTY = "uncertainty"
    """The score nearest to the cuts, inside first."""
    DISAGREEMENT = "disagreement"
    """Where the engine that does not answer, or the stream, says otherwise."""
    TIME = "time"
    """Stream by stream, the earliest frame."""
    RANDOM = "random"
    """By chance, and the same for everybody: what a share of it says holds for all."""


class Standing(StrEnum):
    """What was decided of a case so far."""

    ALL = "all"
    OPEN = "open"
    """Not by me."""
    MINE = "mine"
    """By me."""
    UNTOUCHED = "untouched"
    """By nobody."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to leave in; None leaves everything."""

    label: Label | None = None
    forgery_type: str | None = None
    stream: int | None = None
    standing: Standing = Standing.ALL


def ordered(book: CaseBook, order: Order, wanted: Wanted, *, deciders: Callable[[Case], frozenset[str]], me: str) -> list[int]:
    """Numbers of the cases; ties as the verdicts were written."""
    chosen = [case for case in book.cases if _is_wanted(case, wanted) and _stands(deciders(case), wanted.standing, me)]
    keys: dict[Order, Callable[[Case], tuple[float, ...]]] = {
        Order.SCORE: lambda case: (2.0 if case.fake_score is None else -case.fake_score,),
        Order.UNCERTAINTY: lambda case: case.uncertainty,
        Order.DISAGREEMENT: lambda case: (-case.disagreement,),
        Order.RANDOM: lambda case: (_chance(case),),
        Order.TIME: lambda case: (case.stream, -1 if case.t_ms is None else case.t_ms),
    }
    return [case.number for case in sorted(chosen, key=keys[order])]


def sampling_of(order: Order, wanted: Wanted, passed_over: Collection[Sampling | None]) -> Sampling:
    """How the cases of a queue come up. `passed_over` says it of those that do not come again, since they were decided before: what is left of a
    queue whose top is gone is no draw from all of it, though one from cases of like scores."""
    is_chosen = wanted.forgery_type is not None or wanted.stream is not None or wanted.standing is Standing.MINE
    if is_chosen or order is Order.TIME or (order is Order.RANDOM and wanted.label is not None):
        return Sampling.OTHER
    if order is not Order.RANDOM or set(passed_over) <= {Sampling.RANDOM}:
        return Sampling(order.value)
    return Sampling.SCORE if set(passed_over) <= {Sampling.RANDOM, Sampling.SCORE, Sampling.UNCERTAINTY} else Sampling.OTHER


def _chance(case: Case) -> float:
    return int.from_bytes(hashlib.sha256(f"{case.verdict_id}/{case.frame}".encode("utf-8", "surrogatepass")).digest()[:6])


def _is_wanted(case: Case, wanted: Wanted) -> bool:
    return (
        (wanted.label is None or case.label is wanted.label)
        and (wanted.forgery_type is None or case.forgery_type == wanted.forgery_type)
        and (wanted.stream is None or case.stream == wanted.stream)
    )


def _stands(deciders: frozenset[str], standing: Standing, me: str) -> bool:
    return {
        Standing.ALL: True,
        Standing.OPEN: me not in deciders,
        Standing.MINE: me in deciders,
        Standing.UNTOUCHED: not deciders,
    }[standing]
