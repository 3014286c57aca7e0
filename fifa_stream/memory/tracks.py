"""Who is who from frame to frame: faces of a frame to the tracks of its stream, by where they are and what they look like.

Every pair of a track and a face has a weight of evidence (natural log-odds) that they are one person; the assignment with the largest sum wins, and a
face whose weight is not above zero begins a track of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple, Self

from pydantic import Field

from engines.contracts import APPEARANCE_SIZE, Box
from fifa_stream.memory.segments import Course
from fifa_stream.memory.smoothing import Belief, Count, Milliseconds, Smoothing
from fifa_stream.records import FaceVerdict

RIVAL_AREA = 8.0
"""In squared face widths: where else in the picture another person's face could have been."""
PLACE_SPREAD = 0.15
"""Standard deviation of a face around where its motion leads, in face widths ..."""
PLACE_SPREAD_PER_S = 0.6
"""... and what a second without it adds."""
MAX_PLACE_SPREAD = 3.0
SIZE_SPREAD = 0.25
"""Of the logarithm of its size."""
LOOK_ALIKE = 0.74
"""Cosine of two appearances that says nothing ..."""
LOOK_GAIN = 25.0
"""... and the log-odds that one more of cosine adds ..."""
LOOK_BOUNDS = (-8.0, 4.0)
"""... within these bounds."""
LOOK_MEMORY = 0.8
"""What a track keeps of its appearance when it is seen again."""
MOTION_MEMORY = 0.5
MOTION_STEP_S = 0.016
"""Frames nearer to each other, as by the timestamps of records sent in a burst, say less of motion: its variance goes by the inverse square."""

Pixels = Annotated[float, Field(ge=-1e12, le=1e12)]
"""Also in a second: a face across the largest picture in a millisecond is far below it, and its square far from the largest float."""


class Sighting(NamedTuple):
    """One face of one frame, as far as a track is concerned."""

    face: int
    """`id` in its frame."""
    box: Box
    """In frame pixels."""
    fake_score: float
    """Calibrated."""
    is_fit: bool
    """Passed quality: moves the score of its track. An unfit face is followed, no more."""
    types: dict[str, float]
    """Probabilities of the forgery families."""
    concepts: tuple[tuple[str, float], ...]
    """What its explanation points at: (FICT id, confidence of the mask)."""
    appearance: bytes
    """As `engines.contracts.Analysis.appearance`; empty where nobody keeps any."""

    @classmethod
    def of(cls, face: FaceVerdict) -> Self:
        """Of a face as its verdict has it."""
        return cls(
            face=face.id,
            box=face.box,
            fake_score=face.fake_score,
            is_fit=face.quality.passed,
            types=face.forgery_type.probs,
            concepts=tuple((item.concept, item.mask_confidence) for item in face.evidence),
            appearance=face.appearance,
        )


@dataclass(slots=True)
class Track:
    """One person."""

    number: Count
    box: tuple[Pixels, Pixels, Pixels, Pixels]
    """When last seen."""
    motion: tuple[Pixels, Pixels]
    """Of the centre, in pixels a second."""
    appearance: bytes
    last_ms: Milliseconds
    belief: Belief
    course: Course

    @classmethod
    def of(cls, number: int, sighting: Sighting, t_ms: int, model: Smoothing) -> Self:
        """Of somebody not seen before."""
        return cls(number, sighting.box, (0.0, 0.0), sighting.appearance, t_ms, Belief.before(model), Course())

    def see(self, sighting: Sighting, t_ms: int) -> None:
        """Take over where the face is now, how it got there and what it looks like."""
        seconds = (t_ms - self.last_ms) / 1000
        (x, y), (old_x, old_y) = _centre(sighting.box), _centre(self.box)
        new = (1 - MOTION_MEMORY) * min(1.0, seconds / MOTION_STEP_S) ** 2
        self.motion = (
            (1 - new) * self.motion[0] + new * (x - old_x) / seconds,
            (1 - new) * self.motion[1] + new * (y - old_y) / seconds,
        )
        self.box, self.last_ms = sighting.box, t_ms
        if len(sighting.appearance) == len(self.appearance):
            pairs = zip(_signed(self.appearance), _signed(sighting.appearance), strict=True)
            self.appearance = bytes(round(LOOK_MEMORY * old + (1 - LOOK_MEMORY) * new) & 0xFF for old, new in pairs)
        else:
            self.appearance = sighting.appearance or self.appearance

    def likeness(self, sighting: Sighting, t_ms: int) -> float:
        """Weight of evidence that the face is this person."""
        seconds = (t_ms - self.last_ms) / 1000
        width, height = _size(self.box)
        side = math.sqrt(width * height)
        (x, y), (old_x, old_y) = _centre(sighting.box), _centre(self.box)
        reach = min(seconds, 1.0)  # motion is not extrapolated for longer
        away = math.hypot(x - old_x - self.motion[0] * reach, y - old_y - self.motion[1] * reach) / side
        spread = min(PLACE_SPREAD + PLACE_SPREAD_PER_S * seconds, MAX_PLACE_SPREAD)
        new_width, new_height = _size(sighting.box)
        growth = math.log(new_width * new_height / (width * height)) / 2
        place = math.log(RIVAL_AREA / (2 * math.pi * spread * spread)) - (away / spread) ** 2 / 2 - (growth / SIZE_SPREAD) ** 2 / 2
        return place + looks(self.appearance, sighting.appearance)


def looks(one: bytes, other: bytes) -> float:
    """Weight of evidence of two appearances; 0 where one is missing."""
    if len(one) != APPEARANCE_SIZE or len(other) != APPEARANCE_SIZE:
        return 0.0
    a, b = _signed(one), _signed(other)
    norm = math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))
    if norm == 0:
        return 0.0
    low, high = LOOK_BOUNDS
    return min(high, max(low, LOOK_GAIN * (sum(x * y for x, y in zip(a, b, strict=True)) / norm - LOOK_ALIKE)))


def match(tracks: Sequence[Track], sightings: Sequence[Sighting], t_ms: int) -> list[int | None]:
    """For each face the place of its track in `tracks`, or None for a person not seen before."""
    if not tracks or not sightings:
        return [None] * len(sightings)
    weights = [[max(0.0, track.likeness(sighting, t_ms)) for track in tracks] for sighting in sightings]
    if len(sightings) <= len(tracks):
        return _chosen(weights)
    # The fewer choose, with the same sum: that a crowd chooses among a few tracks would take seconds.
    faces = {face: place for place, face in enumerate(_chosen(list(zip(*weights, strict=True))))}
    return [faces.get(face) for face in range(len(sightings))]


def _chosen(weights_NM: Sequence[Sequence[float]]) -> list[int | None]:
    """For each row its column, or None where none is left that speaks for it."""
    nobody = [0.0] * len(weights_NM)
    columns = assign([[*row, *nobody] for row in weights_NM])
    return [column if column < len(row) and row[column] > 0 else None for row, column in zip(weights_NM, columns, strict=True)]


def assign(weights_NM: Sequence[Sequence[float]]) -> list[int]:
    """Each row its own column so that the sum of the weights is largest; no more rows than columns. The Hungarian method: O(N * N * M).

    scipy has it too, in 60 MB that serving does without.
    """
    num_rows, num_columns = len(weights_NM), len(weights_NM[0])
    row_price, column_price = [0.0] * (num_rows + 1), [0.0] * (num_columns + 1)
    owner = [0] * (num_columns + 1)  # row, from 1, that holds a column; column 0 is where a row begins to look
    for row in range(1, num_rows + 1):
        owner[0], column = row, 0
        slack, came_from, done = [math.inf] * (num_columns + 1), [0] * (num_columns + 1), [False] * (num_columns + 1)
        while owner[column]:
            done[column] = True
            at, nearest, least = owner[column], 0, math.inf
            for other in range(1, num_columns + 1):
                if done[other]:
                    continue
                cost = -weights_NM[at - 1][other - 1] - row_price[at] - column_price[other]
                if cost < slack[other]:
                    slack[other], came_from[other] = cost, column
                if slack[other] < least:
                    least, nearest = slack[other], other
            for other in range(num_columns + 1):
                if done[other]:
                    row_price[owner[other]] += least
                    column_price[other] -= least
                else:
                    slack[other] -= least
            column = nearest
        while column:
            owner[column] = owner[came_from[column]]
            column = came_from[column]
    columns = [0] * num_rows
    for column in range(1, num_columns + 1):
        if owner[column]:
            columns[owner[column] - 1] = column - 1
    return columns


def _signed(appearance: bytes) -> list[int]:
    return [value - 256 if value > 127 else value for value in appearance]


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _size(box: Box) -> tuple[float, float]:
    return max(1.0, box[2] - box[0]), max(1.0, box[3] - box[1])
