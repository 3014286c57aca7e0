"""What people decided about verdicts, read back: JSON lines of `engines.reviews.Review`, or a recording of their topic, one case a face.

A file is bounded and read whole. Of one reviewer's decisions about one face of one engine's verdict the latest counts; a withdrawn one does not.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from pydantic import ValidationError

from engines import fict
from engines.reviews import Decision, Review, Sampling
from trainer.recorded import value_of

MAX_LINE_BYTES = 1 << 20
"""No review of bounded fields is as long, recorded or plain."""
MAX_REVIEWS = 1_000_000

T = TypeVar("T")
Truth = Literal["real", "fake"]


class Fault(StrEnum):
    """Why a file of reviews is refused: the whole list."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    TOO_MANY = "too_many"
    LINE_TOO_LONG = "line_too_long"
    NOT_JSON = "not_json"
    NOT_A_REVIEW = "not_a_review"
    UNKNOWN_CONCEPT = "unknown_concept"


class ReviewsError(ValueError):
    """The file is refused; the message gives line, value and remedy."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class CaseKey(NamedTuple):
    """One face of one engine's verdict."""

    engine: str
    verdict: str
    frame: int | None
    face: int | None


@dataclass(frozen=True, slots=True)
class Case:
    """One reviewed face and everybody's last word on it, by reviewer; skips included."""

    key: CaseKey
    reviews: tuple[Review, ...]

    @property
    def first(self) -> Review:
        """Whoever's: what the verdict said is the same in all."""
        return self.reviews[0]

    @property
    def stream(self) -> str:
        """What is drawn together: frames of a stream are not independent. A picture of no stream is one by itself."""
        return stream_of(self.first)

    @property
    def told(self) -> tuple[Review, ...]:
        """Those that decide something."""
        return tuple(review for review in self.reviews if review.decision is not Decision.SKIP)

    @property
    def decision(self) -> Decision | None:
        """The majority's among those that decide; skip where nobody does; None where the largest camps are equal."""
        return _most([review.decision for review in self.told]) if self.told else Decision.SKIP

    @property
    def truth(self) -> Truth | None:
        """What most of those who tell say the face is; None where nobody does or both sides are equal."""
        return _most([review.truth for review in self.told if review.truth is not None])

    @property
    def is_heard(self) -> bool:
        """Whether anybody says what the face is."""
        return any(review.truth is not None for review in self.told)

    @property
    def is_disputed(self) -> bool:
        """Whether reviewers say both real and fake."""
        return len({review.truth for review in self.told if review.truth is not None}) > 1

    @property
    def sampling(self) -> Sampling | None:
        """How the case came up; None where that is not said. What one reviewer drew at random stays so whoever else looks at it and why: else those
        whom somebody chose would be missing from the draw. A review that came from a segment was chosen by its stream."""
        ways = {Sampling.OTHER if review.segment is not None else review.sampling for review in self.reviews}
        best = next((way for way in (Sampling.RANDOM, Sampling.SCORE, Sampling.UNCERTAINTY) if way in ways), None)
        if best is not None or None in ways:
            return best
        return ways.pop() if len(ways) == 1 else Sampling.OTHER

    def objections(self, decision: Decision) -> frozenset[str]:
        """FICT ids whose place or text most of those who decide object to; where no phrase is named, all that the explanation pointed at."""
        votes: Counter[str] = Counter()
        for review in self.told:
            if review.decision is decision:
                votes.update(set(review.objected or review.concepts))
        return frozenset(concept for concept, count in votes.items() if 2 * count > len(self.told))


@dataclass(frozen=True, slots=True)
class Reviews:
    """A file, read."""

    counted: tuple[Review, ...]
    """The last word of every reviewer on every face, in the order of the cases."""
    superseded: int
    """Earlier decisions of the same reviewer about the same face."""
    withdrawn: int
    left_out: int
    """Of streams that were asked to be left out."""
    sha256: str
    """Of the file's bytes."""

    def cases(self, engine: str | None = None) -> tuple[Case, ...]:
        """By face, of one engine or of all; the order does not hang on that of the file."""
        groups: dict[CaseKey, list[Review]] = defaultdict(list)
        for review in self.counted:
            if engine is None or review.engine == engine:
                groups[key_of(review)].append(review)
        return tuple(Case(key, tuple(sorted(groups[key], key=lambda review: review.reviewer))) for key in sorted(groups, key=_order))

    @property
    def engines(self) -> Counter[str]:
        """Counted reviews by manifest digest."""
        return Counter(review.engine for review in self.counted)


def stream_of(review: Review) -> str:
    """The stream's id, or the picture's own digest."""
    return f"stream {review.stream}" if review.stream is not None else f"picture {review.media_sha256}"


def key_of(review: Review) -> CaseKey:
    """Two engines may answer one record under one verdict id, so the engine is part of the key."""
    return CaseKey(review.engine, review.verdict, review.frame, review.face)


def read_reviews(path: Path, *, without: Collection[str] = ()) -> Reviews:
    """Read a file whole; reviews of the streams `without` are passed over. Raises ReviewsError at the first line that is none."""
    latest: dict[tuple[CaseKey, str], Review] = {}
    superseded = left_out = count = 0
    digest = sha256()
    for number, line in _lines(path):
        digest.update(line)
        where = f"{path}, line {number}"
        try:
            payload = value_of(where, line, plain=True) if line.strip() else None
        except ValueError as error:
            raise ReviewsError(Fault.NOT_JSON, str(error)) from None
        if payload is None:
            continue
        count += 1
        if count > MAX_REVIEWS:
            raise ReviewsError(Fault.TOO_MANY, f"{where}: more than {MAX_REVIEWS} reviews; split the file by engine or by month")
        review = _parsed(where, payload)
        if review.stream in without:
            left_out += 1
            continue
        key = key_of(review), review.reviewer
        before = latest.get(key)
        superseded += before is not None
        if before is None or review.decided_at >= before.decided_at:
            latest[key] = review
    if count == 0:
        raise ReviewsError(Fault.EMPTY, f"{path} holds no review; give a file that the review desk wrote")
    counted = tuple(review for _, review in sorted(latest.items(), key=lambda item: (_order(item[0][0]), item[0][1])) if not review.withdrawn)
    return Reviews(counted, superseded, len(latest) - len(counted), left_out, digest.hexdigest())


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as source:
            number = 0
            while line := source.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise ReviewsError(Fault.LINE_TOO_LONG, f"{path}, line {number}: more than {MAX_LINE_BYTES} bytes; no review is as long")
                yield number, line
    except FileNotFoundError:
        raise ReviewsError(Fault.MISSING, f"{path} is missing; give a file that the review desk wrote") from None
    except OSError as error:
        raise ReviewsError(Fault.UNREADABLE, f"{path} cannot be read: {error.strerror}; give a file of JSON lines") from None


def _parsed(where: str, line: bytes) -> Review:
    try:
        review = Review.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        if first["type"] == "json_invalid":
            raise ReviewsError(
                Fault.NOT_JSON, f"{where}: {line[:40].decode(errors='replace').rstrip()!r} is not JSON; a torn last line may be cut off"
            ) from None
        at = ".".join(str(part) for part in first["loc"]) or "the line"
        value = "" if isinstance(first["input"], dict) else f" (got {str(first['input'])[:60]!r})"
        raise ReviewsError(Fault.NOT_A_REVIEW, f"{where}: {at}: {first['msg']}{value}; see the record Review in docs/reviews.md") from None
    for concept in (*review.concepts, *review.objected):
        if concept not in fict.concepts():
            raise ReviewsError(Fault.UNKNOWN_CONCEPT, f"{where}: {concept[:60]!r} is no FICT concept; see `engines.fict.concepts()`")
    return review


def _order(key: CaseKey) -> tuple[str, str, int, int]:
    return key.engine, key.verdict, -1 if key.frame is None else key.frame, -1 if key.face is None else key.face


def _most(votes: Sequence[T]) -> T | None:
    """The most frequent vote; None for a tie or without votes."""
    first = Counter(votes).most_common(2)
    return None if not first or (len(first) == 2 and first[0][1] == first[1][1]) else first[0][0]


def same_identity(reviews: Iterable[Review]) -> dict[str, str]:
    """Stream -> identity, for all that are reviewed: streams that show one picture are one, and are called by the least of their names."""
    of_picture: dict[str, str] = {}
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for review in reviews:
        stream = stream_of(review)
        parent.setdefault(stream, stream)
        low, high = sorted((root(stream), root(of_picture.setdefault(review.media_sha256, stream))))
        parent[high] = low
    return {stream: root(stream) for stream in parent}
