"""What the frames of one person say together: a Markov model with two states, untouched and manipulated, that changes at given rates.

`probability` is its forward filter: manipulated now, given all frames so far. `lead` is by how much (natural log) the most probable course that ends
manipulated beats the best that ends untouched: Viterbi's recursion, of which for two states one number is left. Where both courses come out of the
same state, what lies before is settled for good; `segments` reads that off.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

BEGINS_PER_S = 0.02
ENDS_PER_S = 0.1
"""Rates at which manipulation begins and ends."""
CENTRE = 0.0
"""Log-odds of a frame that speaks for neither."""
GAIN = 1.0
LIMIT = 2.5
"""A frame adds at most so much."""
INDEPENDENT_MS = 250
"""Frames nearer to each other than this share what one of them would say: they show much the same."""


class Source(IntEnum):
    """Out of which state the two best courses come."""

    APART = 0
    """Each out of its own."""
    UNTOUCHED = 1
    MANIPULATED = 2


@dataclass(slots=True)
class Belief:
    """Of one track."""

    probability: float = BEGINS_PER_S / (BEGINS_PER_S + ENDS_PER_S)
    lead: float = math.log(BEGINS_PER_S / ENDS_PER_S)
    fit_ms: int | None = None
    """When a fit face was last seen."""

    def hear(self, fake_score: float, t_ms: int) -> Source:
        """Take in the calibrated score of a fit face."""
        evidence = weight_of(fake_score)
        source = Source.UNTOUCHED
        if self.fit_ms is not None:
            gap_ms = t_ms - self.fit_ms
            evidence *= min(1.0, gap_ms / INDEPENDENT_MS)
            source = self._pass(gap_ms / 1000)
        self.fit_ms = t_ms
        self.lead += evidence
        odds = math.exp(evidence) * self.probability / (1 - self.probability)
        self.probability = odds / (1 + odds)
        return source

    def _pass(self, seconds: float) -> Source:
        total = BEGINS_PER_S + ENDS_PER_S
        mixed = -math.expm1(-total * seconds)
        begins, ends = mixed * BEGINS_PER_S / total, mixed * ENDS_PER_S / total
        self.probability = self.probability * (1 - ends) + (1 - self.probability) * begins
        stays_manipulated, turns_manipulated = self.lead + math.log1p(-ends), math.log(begins)
        stays_untouched, turns_untouched = math.log1p(-begins), self.lead + math.log(ends)
        self.lead = max(stays_manipulated, turns_manipulated) - max(stays_untouched, turns_untouched)
        if turns_manipulated > stays_manipulated:
            return Source.UNTOUCHED
        return Source.MANIPULATED if turns_untouched > stays_untouched else Source.APART


def weight_of(fake_score: float) -> float:
    """Bounded log-odds that one frame adds."""
    score = min(max(fake_score, 1e-6), 1 - 1e-6)
    return min(LIMIT, max(-LIMIT, GAIN * (math.log(score / (1 - score)) - CENTRE)))
