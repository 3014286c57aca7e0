"""The desk without its web: cases as JSON for a page, and what the reviewer at it decides.

Everything a record says leaves as a string of a JSON document, with what could steer a terminal or turn a line around made visible. Texts are cut at
their phrases here, where a character is a code point, as in the verdict.
"""

import hashlib
import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from engines.contracts import FORGERY_TYPES, MaskError
from engines.reviews import Decision, Review, Sampling, truth_of
from fifa_stream.records import EvidenceItem, FaceAnswer, FaceVerdict, Note, RunLengths, SampledFrame, StreamVerdict, Verdict
from fifa_stream.review.cases import Case, CaseBook, Point, Stream, picture_of
from fifa_stream.review.decisions import Decided, DecisionLog, Subject
from fifa_stream.review.export import export_case, export_name
from fifa_stream.review.pictures import Pictures
from fifa_stream.review.queue import Order, Standing, Wanted, ordered, sampling_of
from fifa_stream.review.sources import NoPicture
from fifa_stream.views import INKS, FaceView, hit_path, jpeg, measurements, origin, pieces, shown_frame, tint

Json = dict[str, Any]

MAX_ROWS: Final = 200
"""Of the queue in one answer."""
MAX_POINTS: Final = 2_000
"""Of one track in one answer; a longer one keeps the lowest and highest of each stretch."""
MAX_TEXT: Final = 20_000
"""Characters of one string in a case; what is longer is cut, and says so."""
MAX_NAME: Final = 120
"""Characters of a name in a row."""


class Refusal(ValueError):
    """What was asked for is not there, or does not fit; the message goes to the reviewer."""


class Choice(BaseModel):
    """What a reviewer says of one face."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    case: Annotated[int, Field(ge=0)]
    face: Annotated[int, Field(ge=0)] | None = None
    decision: Decision
    phrases: tuple[Annotated[int, Field(ge=0)], ...] = Field((), max_length=400)
    """Which phrases a decision about place or text speaks of, by their number on the page; none: all."""
    truth: Literal["real", "fake"] | None = None
    """Needed where the label is inconclusive and the decision `disagree`; elsewhere it follows from the decision."""
    true_forgery_type: str | None = None
    comment: str = Field("", max_length=2_000)
    sampling: Sampling | None = None
    segment: str | None = Field(None, max_length=256)


@dataclass(slots=True)
class _Undo:
    subject: Subject
    case: int
    before: Review | None
    after: Review


class Desk:
    """One reviewer's desk. May be shared by threads."""

    def __init__(
        self,
        book: CaseBook,
        pictures: Pictures,
        log: DecisionLog,
        *,
        reviewer: str,
        kept_in: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`kept_in` says where decisions go. Raises DecisionError when earlier ones cannot be read."""
        self.book, self.pictures, self.reviewer = book, pictures, reviewer
        self._log, self._kept_in, self._now = log, kept_in, now
        self._lock = threading.Lock()
        self._decided = Decided(book.cases)
        self._undo: list[_Undo] = []
        self._catch_up()

    def _catch_up(self) -> None:
        for review in self._log.fresh():
            self._decided.take(review)

    @property
    def num_unread(self) -> int:
        """Lines or records among the decisions that are no reviews, and count nothing."""
        return self._log.num_unread

    def head(self) -> Json:
        """What the page says before a case is chosen."""
        with self._lock:
            self._catch_up()
            mine = sum(self.reviewer in self._decided.deciders(case) for case in self.book.cases)
        types = Counter(case.forgery_type for case in self.book.cases if case.forgery_type)
        return {
            "reviewer": visible(self.reviewer),
            "kept_in": visible(self._kept_in),
            "cases": len(self.book.cases),
            "decided": mine,
            "streams": [[number, visible(stream.name, MAX_NAME), len(stream.cases)] for number, stream in enumerate(self.book.streams)],
            "types": [visible(name, MAX_NAME) for name in sorted(types)],
            "true_types": list(FORGERY_TYPES),
            "refused": [[visible(why), count] for why, count in self.book.refused.most_common(20)],
            "left_out": self.book.num_left_out,
            "compared": any(case.disagreement >= 0 for case in self.book.cases),
        }

    def queue(self, order: Order, wanted: Wanted) -> list[int]:
        """Numbers of the cases that wait, in order."""
        with self._lock:
            self._catch_up()
            if wanted.stream is not None and not 0 <= wanted.stream < len(self.book.streams):
                raise Refusal("there is no such stream")
            return ordered(self.book, order, wanted, deciders=self._decided.deciders, me=self.reviewer)

    def sampling(self, order: Order, wanted: Wanted) -> Sampling:
        """How the cases of such a queue come up: what may be concluded from decisions beyond them hangs on that."""
        with self._lock:
            standing = (review for case in self.book.cases for review in self._decided.of(case) if review.face == case.lead)
            passed_over = {
                Standing.OPEN: lambda: {review.sampling for review in standing if review.reviewer == self.reviewer},
                Standing.UNTOUCHED: lambda: {review.sampling for review in standing},
            }
            return sampling_of(order, wanted, passed_over.get(wanted.standing, set)())

    def rows(self, numbers: Sequence[int]) -> list[Json]:
        """Those cases as lines of the queue."""
        if len(numbers) > MAX_ROWS:
            raise Refusal(f"{len(numbers)} rows are asked for, {MAX_ROWS} at most are given")
        cases = [self._case(number) for number in numbers]
        with self._lock:
            return [self._row(case) for case in cases]

    def _row(self, case: Case) -> Json:
        mine = self._decided.one(Subject(case.verdict_id, case.engine, case.frame, case.lead), self.reviewer)
        return {
            "n": case.number,
            "name": visible(case.name, MAX_NAME),
            "t": case.t_ms,
            "label": case.label.value,
            "score": case.fake_score,
            "type": None if case.forgery_type is None else visible(case.forgery_type, MAX_NAME),
            "apart": round(case.disagreement, 3),
            "mine": None if mine is None else mine.decision.value,
            "others": len(self._decided.deciders(case) - {self.reviewer}),
        }

    def _case(self, number: int) -> Case:
        if not 0 <= number < len(self.book.cases):
            raise Refusal(f"there is no case {number}")
        return self.book.cases[number]

    def case(self, number: int) -> Json:
        """Everything about one case."""
        case = self._case(number)
        verdict, _ = self.book.verdict(case)
        seen, media, point = picture_of(verdict, case.frame), verdict.media, verdict.operating_point
        missing = None
        try:
            self.pictures.frame(verdict, case.frame)
        except NoPicture as error:
            missing = visible(str(error), 1_000)
        with self._lock:
            decisions, row = [_told(review, self.reviewer) for review in self._decided.of(case)], self._row(case)
        return row | {
            "verdict": visible(verdict.id),
            "frame": case.frame,
            "stream": case.stream,
            "uri": None if media.uri is None else visible(media.uri, 1_000),
            "point": {"name": visible(point.name, MAX_NAME), "fakeAt": point.fake_at, "realBelow": point.real_below},
            "engine": visible(f"{verdict.engine.name} {verdict.engine.version}", MAX_NAME),
            "manifest": verdict.engine.manifest_sha256[:12],
            "media": visible(f"{media.type} {media.content_type}", MAX_NAME),
            "sha256": media.sha256,
            "width": media.width,
            "height": media.height,
            "noPicture": missing,
            "asked": None if seen.query is None else {"words": visible(seen.query.words, 300), "box": seen.query.box},
            "lead": case.lead,
            "faces": [self._face(face, seen, verdict) for face in seen.faces],
            "notes": _notes(
                (*seen.notes, *(verdict.notes if seen is not verdict else ()), *(() if verdict.stream is None else verdict.stream.notes))
            ),
            "shadow": None if case.shadow is None else {"label": case.shadow.label.value, "score": case.shadow.fake_score},
            "told": None if case.told is None else {"label": case.told.label.value, "score": case.told.fake_score},
            "decisions": decisions,
        }

    def _face(self, face: FaceVerdict, seen: Verdict | SampledFrame, verdict: Verdict) -> Json:
        size = (verdict.media.height or 1, verdict.media.width or 1)
        view = FaceView.around(face.box, width=size[1], height=size[0])
        answer = _answer_of(face, seen)
        asked = None
        if answer is not None and seen.query is not None:
            first = len(face.evidence)
            asked = {
                "words": visible(seen.query.words, 300),
                "tampered": answer.tampered,
                "probability": answer.tampered_probability,
                "area": None if answer.box is None else _mark(view, size, answer.mask, first + len(answer.evidence), seen.query.words),
                "pieces": [[visible(part, MAX_TEXT), None if index is None else first + index] for part, index in _cut(answer)],
                "origin": origin(answer.explanation),
            }
        return {
            "id": face.id,
            "box": face.box,
            "label": face.label.value,
            "score": face.fake_score,
            "passed": face.quality.passed,
            "type": visible(face.forgery_type.label, MAX_NAME),
            "types": [[visible(name, MAX_NAME), p] for name, p in list(face.forgery_type.probs.items())[:16]],
            "view": [view.width, view.height],
            "pieces": [[visible(part, MAX_TEXT), index] for part, index in _cut(face)],
            "origin": origin(face.explanation),
            "marks": [_mark(view, size, item.mask, number, item.phrase) | _measured(item) for number, item in enumerate(_phrases(face, answer))],
            "answer": asked,
            "askedBox": None if seen.query is None or seen.query.box is None else view.box(seen.query.box),
            "notes": _notes(face.notes),
        }

    def frame_jpeg(self, number: int) -> bytes:
        """The picture of a case, small. Raises NoPicture."""
        case = self._case(number)
        return jpeg(shown_frame(self.pictures.frame(self.book.verdict(case)[0], case.frame)))

    def face_jpeg(self, number: int, face_id: int) -> bytes:
        """One face of it. Raises NoPicture."""
        case = self._case(number)
        verdict, _ = self.book.verdict(case)
        face = next((face for face in picture_of(verdict, case.frame).faces if face.id == face_id), None)
        if face is None:
            raise Refusal(f"case {number} has no face {face_id}")
        image_HWC = self.pictures.frame(verdict, case.frame)
        return jpeg(FaceView.around(face.box, width=image_HWC.shape[1], height=image_HWC.shape[0]).picture(image_HWC))

    def stream(self, number: int) -> Json:
        """One stream's time line."""
        if not 0 <= number < len(self.book.streams):
            raise Refusal(f"there is no stream {number}")
        stream, cases = self.book.streams[number], self.book.cases
        tracks: dict[tuple[int, int], list[Point]] = {}
        for point in stream.points:
            tracks.setdefault((point.epoch, point.track), []).append(point)
        return {
            "n": number,
            "name": visible(stream.name, MAX_NAME),
            "hasTimes": all(cases[one].t_ms is not None for one in stream.cases),
            "frames": [[cases[one].t_ms, one, cases[one].fake_score, cases[one].label.value] for one in stream.cases],
            "tracks": [
                {"epoch": epoch, "track": track, "points": [[one.t_ms, one.fake_score, one.smoothed] for one in thinned(points)]}
                for (epoch, track), points in sorted(tracks.items())
            ],
            "segments": [self._segment(stream, segment_id) for segment_id in sorted(stream.segments, key=lambda one: stream.segments[one].start_ms)],
            "cuts": [cases[stream.cases[0]].real_below, cases[stream.cases[0]].fake_at] if stream.cases else [0.0, 1.0],
            "verdict": None if stream.verdict is None else _stream_verdict(stream.verdict),
        }

    def _segment(self, stream: Stream, segment_id: str) -> Json:
        segment = stream.segments[segment_id]
        at_peak = min(stream.cases, key=lambda one: abs((self.book.cases[one].t_ms or 0) - segment.peak_ms), default=None)
        by_verdict = {self.book.cases[one].verdict_id: one for one in stream.cases}
        return {
            "id": segment.id if 1 <= len(segment.id) <= 256 else None,
            "name": visible(segment.id, MAX_NAME),
            "track": segment.track,
            "start": segment.start_ms,
            "end": segment.end_ms,
            "open": segment.is_open,
            "peak": segment.peak,
            "peakAt": segment.peak_ms,
            "peakCase": at_peak,
            "frames": segment.num_frames,
            "type": visible(segment.forgery_type, MAX_NAME),
            "evidence": [[visible(one.concept, MAX_NAME), one.weight, by_verdict.get(one.verdict)] for one in segment.evidence[:16]],
        }

    def decide(self, choice: Choice) -> Json:
        """Keep a decision; what counts for its case afterwards. Raises Refusal, DecisionError."""
        case = self._case(choice.case)
        with self._lock:
            review = self.review(case, choice)
            subject = Subject.of(review)
            self._catch_up()
            undo = _Undo(subject, case.number, self._decided.one(subject, self.reviewer), review)
            self._keep(review)
            self._undo.append(undo)
            return self._after(case)

    def undo(self) -> Json:
        """Take back the last decision of this desk: what counted before counts again. Raises Refusal, DecisionError."""
        with self._lock:
            if not self._undo:
                raise Refusal("there is nothing to undo")
            last = self._undo[-1]
            if last.before is None:
                changes = {
                    "decision": Decision.SKIP,
                    "truth": None,
                    "true_forgery_type": None,
                    "evidence": (),
                    "objected": (),
                    "comment": "",
                    "withdrawn": True,
                }
                review = last.after.model_copy(update=changes)
            else:
                review = last.before
            self._keep(review)
            self._undo.pop()
            return self._after(self.book.cases[last.case]) | {"undone": last.after.decision.value, "sampling": last.after.sampling}

    def _keep(self, review: Review) -> None:
        """Now, and not before what it follows: a clock that was set back would let the earlier one count."""
        now, before = self._now(), self._decided.latest(Subject.of(review), self.reviewer)
        review = Review.model_validate(review.model_dump() | {"decided_at": now if before is None else max(now, before.decided_at)})
        self._log.append(review)
        self._decided.take(review)
        self._catch_up()

    def _after(self, case: Case) -> Json:
        return {"row": self._row(case), "decisions": [_told(review, self.reviewer) for review in self._decided.of(case)], "canUndo": bool(self._undo)}

    def review(self, case: Case, choice: Choice) -> Review:
        """A choice with everything that scoring it needs. Raises Refusal for one that does not fit its case."""
        verdict, payload = self.book.verdict(case)
        seen = picture_of(verdict, case.frame)
        face = None
        if choice.face is not None or seen.faces:
            face = next((face for face in seen.faces if face.id == choice.face), None)
            if face is None:
                raise Refusal(f"case {case.number} has no face {choice.face}")
        label = seen.label if face is None else face.label
        phrases = () if face is None else _phrases(face, _answer_of(face, seen))
        if any(number >= len(phrases) for number in choice.phrases):
            raise Refusal(f"case {case.number} has {len(phrases)} phrases, got numbers {choice.phrases}")
        objected = [phrases[number] for number in choice.phrases] if choice.decision in (Decision.WRONG_PLACE, Decision.WRONG_TEXT) else []
        if choice.true_forgery_type is not None and choice.true_forgery_type not in FORGERY_TYPES:
            raise Refusal(f"{choice.true_forgery_type[:80]!r} is no type of forgery; choose one of {', '.join(FORGERY_TYPES)}")
        stream = self.book.streams[case.stream].name
        truth = None if choice.decision is Decision.SKIP else truth_of(label, choice.decision) or choice.truth
        try:
            return Review(
                verdict=verdict.id,
                verdict_sha256=hashlib.sha256(payload).hexdigest(),
                media_sha256=verdict.media.sha256,
                engine=verdict.engine.manifest_sha256,
                stream=stream if verdict.input is not None and 1 <= len(stream) <= 256 else None,
                frame=case.frame,
                t_ms=case.t_ms,
                face=None if face is None else face.id,
                box=None if face is None else face.box,
                segment=choice.segment,
                label=label,
                fake_score=seen.fake_score if face is None else face.fake_score,
                raw_score=None if face is None or not math.isfinite(face.raw_score) else face.raw_score,
                forgery_type=None if face is None or not 1 <= len(face.forgery_type.label) <= 256 else face.forgery_type.label,
                concepts=() if face is None else tuple(dict.fromkeys(item.concept for item in face.evidence if 1 <= len(item.concept) <= 256)),
                decision=choice.decision,
                evidence=tuple(dict.fromkeys(item.id for item in objected)),
                objected=tuple(dict.fromkeys(item.concept for item in objected if 1 <= len(item.concept) <= 256)),
                truth=truth,
                true_forgery_type=choice.true_forgery_type if truth == "fake" else None,
                reviewer=self.reviewer,
                decided_at=self._now(),
                comment=choice.comment,
                sampling=choice.sampling,
            )
        except ValueError as error:
            raise Refusal(f"the decision does not fit: {' '.join(str(error).split())[:300]}") from None

    def export(self, number: int) -> tuple[str, bytes]:
        """A case as a file: its name and its bytes, with what was decided of this very verdict. Raises NoPicture, VerifyError."""
        case = self._case(number)
        verdict, payload = self.book.verdict(case)
        digest = hashlib.sha256(payload).hexdigest()
        reviews = [review for review in self.reviews(case) if review.verdict_sha256 == digest]
        exported = export_case(
            payload, case.frame, media=self.pictures.encoded(verdict), reviews=reviews, exported_by=self.reviewer, exported_at=self._now()
        )
        return export_name(verdict, case.frame), exported

    def reviews(self, case: Case) -> list[Review]:
        """Every review of a case that counts."""
        with self._lock:
            self._catch_up()
            return self._decided.of(case)

    def close(self) -> None:
        """Let the log, the pictures and the verdicts go."""
        self.pictures.close()
        self._log.close()
        self.book.payloads.close()


def visible(text: str, limit: int = MAX_TEXT) -> str:
    """Control characters, and those that turn a line around or have no width, as what they are; cut at `limit` characters."""
    cut = text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
    if cut.isprintable():
        return cut
    return "".join(one if one.isprintable() or one == "\n" else f"\\u{{{ord(one):x}}}" for one in cut)


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most `MAX_POINTS`: of each stretch the lowest and the highest smoothed score, in order."""
    if len(points) <= MAX_POINTS:
        return points
    kept, size = list[Point](), math.ceil(2 * len(points) / MAX_POINTS)
    for begin in range(0, len(points), size):
        stretch = points[begin : begin + size]
        ends = {min(stretch, key=lambda one: one.smoothed), max(stretch, key=lambda one: one.smoothed)}
        kept += sorted(ends, key=lambda one: one.t_ms)
    return kept


def _answer_of(face: FaceVerdict, seen: Verdict | SampledFrame) -> FaceAnswer | None:
    return None if seen.query is None else next((answer for answer in seen.query.answers if answer.face == face.id), None)


def _phrases(face: FaceVerdict, answer: FaceAnswer | None) -> tuple[EvidenceItem, ...]:
    """In the order of their numbers on the page."""
    return face.evidence if answer is None else (*face.evidence, *answer.evidence)


def _cut(explained: FaceVerdict | FaceAnswer) -> list[tuple[str, int | None]]:
    return [] if explained.explanation is None else pieces(explained.explanation.text, explained.evidence)


def _mark(view: FaceView, size: tuple[int, int], run_lengths: RunLengths, number: int, words: str) -> Json:
    mark: Json = {"n": number, "ink": number % len(INKS), "words": visible(words, 1_000), "mask": None, "hit": None, "pixels": 0}
    try:
        if run_lengths.size != size:  # before a pixel of it is set: a few bytes of run lengths may be a mask of any size
            raise MaskError(f"a mask of {run_lengths.size[0]} x {run_lengths.size[1]} lies on a picture of {size[0]} x {size[1]}")
        mask_HW = view.mask(run_lengths)
    except MaskError as error:
        return mark | {"flaw": visible(str(error), 300)}
    if not mask_HW.any():
        return mark
    return mark | {"mask": tint(mask_HW, mark["ink"]), "hit": hit_path(mask_HW), "pixels": int(mask_HW.sum())}


def _measured(item: EvidenceItem) -> Json:
    return {
        "path": " / ".join(visible(part, MAX_NAME) for part in item.concept_path[:12]),
        "confidence": item.mask_confidence,
        "measured": [[visible(name, MAX_NAME), value] for name, value in measurements(item)[:24]],
    }


def _stream_verdict(verdict: StreamVerdict) -> Json:
    return {"label": verdict.label.value, "score": verdict.fake_score, "fakeMs": verdict.fake_ms, "state": verdict.state}


def _notes(notes: Sequence[Note]) -> list[list[str]]:
    return [[note.code.value, visible(note.message, 1_000)] for note in notes[:50]]


def _told(review: Review, me: str) -> Json:
    return {
        "face": review.face,
        "reviewer": visible(review.reviewer, MAX_NAME),
        "mine": review.reviewer == me,
        "decision": review.decision.value,
        "truth": review.truth,
        "type": None if review.true_forgery_type is None else visible(review.true_forgery_type, MAX_NAME),
        "phrases": len(review.evidence),
        "comment": visible(review.comment),
        "at": review.decided_at.isoformat(timespec="seconds"),
    }
