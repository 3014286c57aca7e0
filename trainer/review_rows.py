"""Reviewed faces -> training rows: truth by the reviewers, places from the masks they did not object to, words measured there, provenance on each.

A folder holds `reviews.csv` (read it with --data csv:FOLDER/reviews.csv), `train.jsonl`, `dev.jsonl`, `faces/` (crops, PNG) and `left-out.jsonl`. All
of it is a function of the reviews and what is given beside them: what is left out the next time is gone from it.

A stream is one identity, as are two that show the same picture: all of it trains, or all of it is of *report*.
"""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from engines import fict
from engines.reviews import Decision, Review
from trainer.annotator.annotate import Annotation, Annotator, load_annotations, process_annotator, to_row
from trainer.dataset_adapters import COLUMNS, TYPES
from trainer.faces import Part
from trainer.review_frames import ImageHWC, PictureKey, ShownFace, ShownVerdict, face_crop, mask_in_crop, read_pictures, read_verdicts
from trainer.reviews import Case, Reviews, same_identity, stream_of

DATASET = "csv-reviews"
"""What `trainer.dataset_adapters` calls the set of `reviews.csv`."""
INDEX, FACES, LEFT_OUT = "reviews.csv", "faces", "left-out.jsonl"
ROWS: Mapping[str, Part] = {"train.jsonl": "train", "dev.jsonl": "report"}
REPORT_SHARE = 5
"""One identity of so many is of *report*."""


class Why(StrEnum):
    """Why a reviewed face gives no row: the whole list."""

    NOT_TOLD = "not_told"
    """Nobody said whether it is real or fake."""
    CONFLICT = "conflict"
    """Reviewers say both, of this verdict or of another about the same face."""
    TYPES_CONFLICT = "types_conflict"
    NO_TYPE = "no_type"
    """A fake that was called real, of no family that a reviewer named."""
    NO_FACE = "no_face"
    """The picture was reviewed, not a face in it."""
    NO_PICTURE = "no_picture"
    """Not among the frames given."""
    OTHER_VERDICT = "other_verdict"
    """The verdict given is not the one that was shown."""


_Place = tuple[str, str, str]
"""Engine, id and digest of a verdict."""


class LeftOut(NamedTuple):
    """One face without a row."""

    why: Why
    verdict: str
    frame: int | None
    face: int | None
    stream: str | None
    said: tuple[str, ...]
    """'reviewer: decision, truth' of each."""
    streams: tuple[str, ...] = ()
    """All that show the face."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a folder holds now."""

    rows: Counter[str]
    """By 'part, truth'."""
    refused: Counter[str]
    """Rows that train `det` and `cls` alone, by why the annotator says nothing."""
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, slots=True)
class _Subject:
    """One face of one picture, with every case about it."""

    picture: PictureKey
    cases: tuple[Case, ...]

    @property
    def reviews(self) -> tuple[Review, ...]:
        return tuple(review for case in self.cases for review in case.told)

    @property
    def streams(self) -> tuple[str, ...]:
        """All that show the face, those where nobody told what it is among them: forgetting any of them forgets the face."""
        return tuple(sorted({review.stream for case in self.cases for review in case.reviews if review.stream is not None}))

    def left_out(self, why: Why) -> LeftOut:
        key, first = self.cases[0].key, self.cases[0].first
        said = tuple(f"{r.reviewer}: {r.decision.value}, {r.truth or 'open'}" for case in self.cases for r in case.reviews)
        return LeftOut(why, key.verdict, key.frame, key.face, first.stream, said, self.streams)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A subject that becomes a row as soon as its picture is there."""

    subject: _Subject
    is_fake: bool
    forgery_type: str | None
    type_by: str
    shown: ShownFace | None
    place: "_Place | None"
    """Of the verdict that `shown` is of."""
    part: Part
    identity: str

    @property
    def file(self) -> str:
        first = self.subject.cases[0].first
        return f"{FACES}/{sha256(repr((*self.subject.picture, first.box)).encode()).hexdigest()[:24]}.png"


def annotate_reviews(
    reviews: Reviews, frames: Path, out: Path, *, verdicts: Path | None = None, annotator: Annotator | None = None, report_share: int = REPORT_SHARE
) -> Made:
    """Write the whole folder anew. Without `verdicts` no fake has masks, and its rows train `det` and `cls` alone.

    Raises what `read_pictures` and `read_verdicts` raise, and ValueError for a mask that is not of its picture.
    """
    shown = _shown(reviews, () if verdicts is None else read_verdicts(verdicts))
    identity_of = same_identity(reviews.counted)
    wanted: list[_Wanted] = []
    left_out: list[LeftOut] = []
    for subject in _subjects(reviews.cases()):
        found = _decided(subject, shown, identity_of, report_share)
        left_out.append(subject.left_out(found)) if isinstance(found, Why) else wanted.append(found)
    by_picture: dict[PictureKey, list[_Wanted]] = defaultdict(list)
    for one in wanted:
        by_picture[one.subject.picture].append(one)
    (out / FACES).mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    seen = set()
    pictures = track(read_pictures(frames, by_picture), description="annotate", total=len(by_picture), console=Console(stderr=True))
    for key, image_HWC in pictures:
        seen.add(key)
        for one in by_picture[key]:
            crop_HWC, annotation = _annotated(one, image_HWC, annotator or process_annotator())
            _write_png(out / one.file, crop_HWC)
            rows[one.file] = _row(one, annotation)
    left_out += [one.subject.left_out(Why.NO_PICTURE) for key, ones in by_picture.items() if key not in seen for one in ones]
    _write(out, [rows[one.file] for one in wanted if one.file in rows], left_out)
    counted = Counter(f"{row['part']}, {'fake' if row['is_fake'] else 'real'}" for row in rows.values())
    return Made(counted, Counter(row["refused"] for row in rows.values() if row["refused"] is not None), tuple(left_out))


def forget(folder: Path, streams: Collection[str]) -> int:
    """Remove every row, crop and note of some streams from a folder; returns how many rows. Instruction data made of it is to be made again.

    Raises FileNotFoundError where there are no rows, and ValueError for a folder that was not made of reviews, which stays as it is.
    """
    rows = [row for name in ROWS for row in load_annotations(folder / name)]
    if not (folder / LEFT_OUT).is_file() or not all("review" in row for row in rows):
        raise ValueError(f"{folder} was not made of reviews, so that its rows name no stream; give the --out of `fifa-train annotate --reviews`")
    kept = [row for row in rows if not set(row["review"]["streams"]) & set(streams)]
    notes = [json.loads(line) for line in (folder / LEFT_OUT).read_text(encoding="utf-8").splitlines()]
    left_out = [LeftOut(**note) for note in notes if not {note["stream"], *note.get("streams", ())} & set(streams)]
    _write(folder, kept, left_out)
    return len(rows) - len(kept)


# --- Which rows -------------------------------------------------------------------------------------------------------------------------------


def _subjects(cases: Iterable[Case]) -> list[_Subject]:
    """Cases about one face of one picture together, whichever verdict they speak of: a box in whole pixels is a face."""
    groups: dict[tuple[Any, ...], list[Case]] = defaultdict(list)
    for case in cases:
        picture = PictureKey(case.first.media_sha256, case.first.frame)
        box = None if case.first.box is None else tuple(round(side) for side in case.first.box)
        groups[picture.media_sha256, -1 if picture.frame is None else picture.frame, box or ()].append(case)
    return [_Subject(PictureKey(c[0].first.media_sha256, c[0].first.frame), tuple(c)) for _, c in sorted(groups.items(), key=lambda item: item[0])]


def _decided(subject: _Subject, shown: "_Shown", identity_of: Mapping[str, str], report_share: int) -> _Wanted | Why:
    truths = {review.truth for review in subject.reviews if review.truth is not None}
    first = subject.cases[0].first
    if len(truths) > 1:
        return Why.CONFLICT
    if not truths:
        return Why.NOT_TOLD
    if first.face is None or first.box is None:
        return Why.NO_FACE
    is_fake = truths == {"fake"}
    forgery_type, type_by = None, ""
    if is_fake:
        named = {review.true_forgery_type for review in subject.reviews if review.true_forgery_type is not None}
        agreed = {r.forgery_type for r in subject.reviews if r.label.value == "fake" and r.forgery_type is not None}
        kinds, type_by = (named, "reviewer") if named else (agreed, "engine, not objected to")
        if len(kinds) > 1:
            return Why.TYPES_CONFLICT
        if not kinds or (forgery_type := next(iter(kinds))) not in TYPES:
            return Why.NO_TYPE
    face, place = None, None
    for review in (review for case in subject.cases for review in case.reviews):
        if (verdict := shown.exact.get(_place(review))) is not None and review.face is not None:
            face, place = verdict.faces.get((review.frame, review.face)), _place(review)
            break
    if place is None and any(case.key[:2] in shown.ids for case in subject.cases):
        return Why.OTHER_VERDICT
    identity = identity_of[stream_of(first)]
    number = int(sha256(identity.encode()).hexdigest(), 16)
    part: Part = "report" if number % report_share == 0 else "train"
    return _Wanted(subject, is_fake, forgery_type, type_by, face, place, part, f"stream-{number:064x}"[:23])


def _place(review: Review) -> _Place:
    return review.engine, review.verdict, review.verdict_sha256


class _Shown(NamedTuple):
    """Verdicts that reviews speak of."""

    exact: dict[_Place, ShownVerdict]
    """Those whose bytes were shown, by engine, id and digest."""
    ids: set[tuple[str, str]]
    """Engine and id of every verdict there is."""


def _shown(reviews: Reviews, verdicts: Iterable[ShownVerdict]) -> _Shown:
    spoken = {_place(review) for review in reviews.counted}
    shown = _Shown({}, set())
    for verdict in verdicts:
        shown.ids.add((verdict.engine, verdict.id))
        if (place := (verdict.engine, verdict.id, verdict.sha256)) in spoken:
            shown.exact[place] = verdict
    return shown


# --- One row ----------------------------------------------------------------------------------------------------------------------------------


def _annotated(one: _Wanted, image_HWC: ImageHWC, annotator: Annotator) -> tuple[ImageHWC, Annotation]:
    box = one.subject.cases[0].first.box
    assert box is not None, "a face without a box was left out"
    crop = face_crop(image_HWC, box, one.shown)
    if not one.is_fake:
        return crop.image_HWC, annotator.real(crop.image_HWC)
    assert one.forgery_type is not None, "a fake without a type was left out"
    height, width = image_HWC.shape[:2]
    in_place, in_words = _agreed(one)
    masks = [(item.concept, item.id, mask_in_crop(item.mask, crop, (height, width))) for item in (one.shown.evidence if one.shown else ())]
    known = [(concept, identity, mask_HW) for concept, identity, mask_HW in masks if (concept, identity) in in_place and mask_HW.any()]
    mask_HW = np.logical_or.reduce([mask for _, _, mask in known]) if known else np.zeros(crop.image_HWC.shape[:2], bool)
    places: dict[str, NDArray[np.bool_]] = {}
    for concept, identity, place_HW in known:
        if (concept, identity) in in_words:
            places[concept] = places.get(concept, False) | place_HW
    return crop.image_HWC, annotator.located(crop.image_HWC, places, mask_HW, forgery_type=one.forgery_type)


def _agreed(one: _Wanted) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Phrases (concept, id) whose masks, and whose masks and words, nobody objects to. An overruled label takes everything with it."""
    phrases = {(item.concept, item.id) for item in (one.shown.evidence if one.shown else ()) if item.concept in fict.concepts()}
    in_place, in_words = set(phrases), set(phrases)
    for review in one.subject.reviews:
        if review.label.value == "real" or review.decision is Decision.DISAGREE:
            return set(), set()
        if review.decision in (Decision.WRONG_PLACE, Decision.WRONG_TEXT):
            named = review.evidence if _place(review) == one.place else ()  # of another verdict ids are others, and concepts alone the same
            spoken = {
                (concept, identity)
                for concept, identity in phrases
                if identity in named or (not named and (not review.objected or concept in review.objected))
            }
            in_words -= spoken
            if review.decision is Decision.WRONG_PLACE:
                in_place -= spoken
    return in_place, in_words


def _row(one: _Wanted, annotation: Annotation) -> dict[str, Any]:
    first = one.subject.cases[0].first
    provenance = {
        "streams": list(one.subject.streams),
        "media_sha256": first.media_sha256, "frame": first.frame, "face": first.face, "box": first.box, "identity": one.identity,
        "type_by": one.type_by,
        "reviews": [
            {
                "verdict": review.verdict, "verdict_sha256": review.verdict_sha256, "engine": review.engine, "reviewer": review.reviewer,
                "decided_at": review.decided_at.isoformat(), "label": review.label.value, "decision": review.decision.value, "truth": review.truth,
            }
            for review in one.subject.reviews
        ],
    }  # fmt: skip
    row = to_row(annotation, dataset=DATASET, name=one.file, part=one.part) | {"review": provenance}
    return row | {"partial": True} if one.is_fake else row


# --- The folder -------------------------------------------------------------------------------------------------------------------------------


def _write(out: Path, rows: Sequence[Mapping[str, Any]], left_out: Sequence[LeftOut]) -> None:
    """Rows, index and notes; crops that no row names are deleted."""
    for name, part in ROWS.items():
        lines = (json.dumps(row, separators=(",", ":")) + "\n" for row in rows if row["part"] == part)
        (out / name).write_text("".join(lines), encoding="utf-8")
    with (out / INDEX).open("w", newline="", encoding="utf-8") as sink:
        table = csv.DictWriter(sink, COLUMNS, restval="", lineterminator="\n")
        table.writeheader()
        for row in rows:
            kind = row["forgery_type"] or ""
            told = {"file": row["name"], "label": "fake" if row["is_fake"] else "real", "type": kind, "identity": row["review"]["identity"]}
            table.writerow({**told, "split": row["part"]})
    (out / LEFT_OUT).write_text("".join(json.dumps(note._asdict()) + "\n" for note in left_out), encoding="utf-8")
    named = {row["name"] for row in rows}
    for path in (out / FACES).glob("*.png"):
        if f"{FACES}/{path.name}" not in named:
            path.unlink()


def _write_png(path: Path, image_HWC: ImageHWC) -> None:
    if not cv2.imwrite(str(path), np.ascontiguousarray(image_HWC[..., ::-1])):
        raise ValueError(f"{path} cannot be written; choose another --out")
