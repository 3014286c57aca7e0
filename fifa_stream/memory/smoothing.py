"""What the frames of one person say together: a Markov model with two states, untouched and manipulated, that changes at given rates.

People differ in what the engine makes of their untouched frames, and by more than most forgeries add: a frame is held against the person's own quiet
level, which is learned from frames that are most likely untouched and begins where most people's is. What one frame adds is bounded, and frames in
quick succession share it: they show much the same.

`probability` is the forward filter: manipulated now, given all frames so far. `lead` is by how much (natural log) the most probable course that ends
manipulated beats the best that ends untouched: Viterbi's recursion, of which for two states one number is left. Where both courses come out of the
same state, what lies before is settled for good; `segments` reads that off. `run` is what the frames of the strongest stretch that ends now say,
summed (Page 1954), `level` their log-odds, smoothed: out of the highest values of both so far comes the score of the stream, which grows with the
length of a manipulation as with its clarity.
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from pydantic import Field

from fifa_stream.records import Score

Milliseconds = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
"""A time of a stream, as far as `pts-ms` reaches. Like all below it is bounded because a remembered state may be anybody's."""
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
LogOdds = Annotated[float, Field(ge=-100, le=100)]
"""Far beyond what `log_odds` gives."""


@dataclass(frozen=True, slots=True)
class Smoothing:
    """Parameters of the model. Log-odds are natural, of the calibrated score."""

    begins_per_s: float = 0.001
    ends_per_s: float = 0.1
    """Rates at which manipulation begins and ends."""
    usual_level: float = -0.75
    """Log-odds of an untouched frame of somebody not seen before ..."""
    usual_weight: float = 1.0
    """... which counts as much as so many frames."""
    level_memory: float = 240.0
    """Frames that a person's own level looks back on: it follows the light of an hour, not a minute's forgery."""
    lift: float = 1.5
    """What manipulation adds to them."""
    gain: float = 2.0
    """Weight of evidence of a frame one spread above the middle between the two levels."""
    limit: float = 4.5
    """A frame adds at most so much; less than a beginning costs after any silence, so that no single frame makes a segment."""
    least_spread: float = 0.16
    spread_slope: float = 0.2
    most_spread: float = 0.8
    """Standard deviation of one person's log-odds from frame to frame, which move the less the lower they are: the least at -3.1 and below."""
    independent_ms: int = 250
    """Frames nearer to each other share what one of them would say."""
    level_s: float = 1.0
    """How far back a smoothed level looks."""
    stream_bias: float = -1.26
    stream_run: float = 0.71
    stream_level: float = 0.3
    """Log-odds that a stream holds a manipulation: bias + run * square root of the highest run + level * highest level."""

    def __post_init__(self) -> None:
        if not self.limit < self.cost_of_beginning:
            raise ValueError(
                f"limit {self.limit} lets a single frame make a segment: after a long silence a beginning costs {self.cost_of_beginning:.2f}; "
                "lower it, or begins_per_s"
            )

    @property
    def cost_of_beginning(self) -> float:
        """Least log-odds against a manipulation that begins now."""
        return math.log((self.begins_per_s + self.ends_per_s) / self.begins_per_s)

    def spread(self, level: float) -> float:
        """Of the log-odds of a person at that level."""
        return min(self.most_spread, max(self.least_spread, self.least_spread + self.spread_slope * (level + 3.1)))


FITTED = Smoothing()
"""By `python -m bench.streams --fit`; docs/streams.md."""


class Source(IntEnum):
    """Out of which state the two best courses come."""

    APART = 0
    """Each out of its own."""
    UNTOUCHED = 1
    MANIPULATED = 2


@dataclass(slots=True)
class Belief:
    """Of one track."""

    probability: Score
    lead: float
    quiet: float
    """Log-odds of this person's untouched frames, ..."""
    quiet_weight: Annotated[float, Field(gt=0)]
    """... a mean over so many."""
    run: Annotated[float, Field(ge=0)] = 0.0
    level: LogOdds | None = None
    """None before a frame was heard."""
    fit_ms: Milliseconds | None = None
    """When a fit face was last seen."""

    @classmethod
    def before(cls, model: Smoothing) -> "Belief":
        """Of somebody not seen yet."""
        share = model.begins_per_s / (model.begins_per_s + model.ends_per_s)
        return cls(share, math.log(share / (1 - share)), model.usual_level, model.usual_weight)

    def leave(self, model: Smoothing) -> None:
        """They were away for long: what is known of them is how they look untouched."""
        fresh = Belief.before(model)
        self.probability, self.lead, self.run, self.level, self.fit_ms = fresh.probability, fresh.lead, fresh.run, fresh.level, fresh.fit_ms

    def hear(self, fake_score: float, t_ms: int, model: Smoothing) -> Source:
        """Take in the calibrated score of a fit face."""
        level, share, source, seconds = log_odds(fake_score), 1.0, Source.UNTOUCHED, model.independent_ms / 1000
        if self.fit_ms is not None:
            gap_ms = t_ms - self.fit_ms
            share, seconds = min(1.0, gap_ms / model.independent_ms), gap_ms / 1000
            source = self._pass(seconds, model)
        self.fit_ms = t_ms
        above = (level - self.quiet - model.lift / 2) / model.spread(self.quiet)
        evidence = share * min(model.limit, max(-model.limit, model.gain * above))
        odds = math.exp(evidence) * self.probability
        self.probability = odds / (odds + 1 - self.probability)
        self.lead += evidence
        self.run = max(0.0, self.run + evidence)
        before = min(level, model.usual_level) if self.level is None else self.level
        self.level = before - (level - before) * math.expm1(-seconds / model.level_s)
        heard = share * (1 - self.probability)
        self.quiet_weight = min(self.quiet_weight + heard, model.level_memory)
        self.quiet += min(model.lift, max(-model.lift, level - self.quiet)) * heard / self.quiet_weight
        return source

    def _pass(self, seconds: float, model: Smoothing) -> Source:
        total = model.begins_per_s + model.ends_per_s
        mixed = -math.expm1(-total * seconds)
        begins, ends = mixed * model.begins_per_s / total, mixed * model.ends_per_s / total
        self.probability = self.probability * (1 - ends) + (1 - self.probability) * begins
        stays_manipulated, turns_manipulated = self.lead + math.log1p(-ends), math.log(begins)
        stays_untouched, turns_untouched = math.log1p(-begins), self.lead + math.log(ends)
        self.lead = max(stays_manipulated, turns_manipulated) - max(stays_untouched, turns_untouched)
        if turns_manipulated > stays_manipulated:
            return Source.UNTOUCHED
        return Source.MANIPULATED if turns_untouched > stays_untouched else Source.APART


def stream_score(highest_run: float, highest_level: float, model: Smoothing) -> float:
    """Calibrated probability that a stream holds a manipulation."""
    return 1 / (1 + math.exp(-model.stream_bias - model.stream_run * math.sqrt(highest_run) - model.stream_level * highest_level))


def log_odds(fake_score: float) -> float:
    """Of a calibrated score, at most 4: what the engine says of its reals reaches -3.3, and one frame is never certain."""
    score = min(max(fake_score, 1e-6), 1 - 1e-6)
    return min(4.0, max(-4.0, math.log(score / (1 - score))))
