"""Stretches of a track that are manipulated: the most probable course of `smoothing`, told when nothing to come can change its beginning."""

from dataclasses import dataclass, field
from typing import NamedTuple

from fifa_stream.memory.smoothing import Count, Milliseconds, Source
from fifa_stream.records import Score, Segment, SegmentEvidence

MAX_EVIDENCE = 5
"""Concepts kept of a segment, the strongest."""


class Seen(NamedTuple):
    """A fit face of a track, when the belief has heard it."""

    t_ms: int
    smoothed: float
    types: dict[str, float]
    concepts: tuple[tuple[str, float], ...]
    verdict: str


@dataclass(slots=True)
class Stretch:
    """Summary of successive frames of a track."""

    start_ms: Milliseconds
    end_ms: Milliseconds
    peak_ms: Milliseconds
    peak: Score
    num_frames: Count = 0
    types: dict[str, float] = field(default_factory=dict)
    """Summed over the frames."""
    concepts: dict[str, tuple[Score, str]] = field(default_factory=dict)
    """(highest confidence, verdict) of the strongest."""

    @classmethod
    def of(cls, seen: Seen) -> "Stretch":
        """One frame."""
        alone = cls(seen.t_ms, seen.t_ms, seen.t_ms, seen.smoothed, 1, dict(seen.types))
        alone._point_at({concept: (confidence, seen.verdict) for concept, confidence in reversed(sorted(seen.concepts, key=lambda item: -item[1]))})
        return alone

    def add(self, later: "Stretch") -> None:
        """Lengthen it."""
        self.end_ms = later.end_ms
        if later.peak > self.peak:
            self.peak, self.peak_ms = later.peak, later.peak_ms
        self.num_frames += later.num_frames
        for name, probability in later.types.items():
            self.types[name] = self.types.get(name, 0.0) + probability
        self._point_at(later.concepts)

    def _point_at(self, concepts: dict[str, tuple[float, str]]) -> None:
        for concept, (confidence, verdict) in concepts.items():
            if concept not in self.concepts or confidence > self.concepts[concept][0]:
                self.concepts[concept] = (confidence, verdict)
        strongest = sorted(self.concepts.items(), key=lambda item: (-item[1][0], item[0]))
        self.concepts = dict(strongest[:MAX_EVIDENCE])

    def told(self, epoch: int, track: int, *, is_open: bool) -> Segment:
        """As a verdict has it."""
        return Segment(
            id=f"{epoch}.{track}.{self.start_ms}",
            track=track,
            start_ms=self.start_ms,
            end_ms=self.end_ms,
            is_open=is_open,
            peak_ms=self.peak_ms,
            peak=self.peak,
            num_frames=self.num_frames,
            forgery_type=max(sorted(self.types), key=self.types.__getitem__, default=""),
            evidence=tuple(SegmentEvidence(concept=name, weight=weight, verdict=verdict) for name, (weight, verdict) in self.concepts.items()),
        )


@dataclass(slots=True)
class Course:
    """The two best courses of a track, told apart: one ends manipulated with the frames of `recent`, one ends before them."""

    settled: Stretch | None = None
    """Manipulated in both: an open segment."""
    recent: Stretch | None = None
    """Manipulated only if the track is so now."""

    def go(self, source: Source, seen: Seen) -> Stretch | None:
        """Take a frame in; what the belief made of it says whence the courses come. Gives back a segment that closes."""
        closed = None
        if source is Source.UNTOUCHED:
            closed, self.settled, self.recent = self.settled, None, None
        elif source is Source.MANIPULATED and self.recent is not None:
            if self.settled is None:
                self.settled = self.recent
            else:
                self.settled.add(self.recent)
            self.recent = None
        if self.recent is None:
            self.recent = Stretch.of(seen)
        else:
            self.recent.add(Stretch.of(seen))
        return closed

    def likely(self, lead: float) -> Stretch | None:
        """The segment that the better of the two courses ends with; None where that ends untouched and nothing is open."""
        if lead < 0 or self.recent is None:
            return self.settled
        if self.settled is None:
            return self.recent
        whole = Stretch(
            self.settled.start_ms,
            self.settled.end_ms,
            self.settled.peak_ms,
            self.settled.peak,
            self.settled.num_frames,
            dict(self.settled.types),
            dict(self.settled.concepts),
        )
        whole.add(self.recent)
        return whole
