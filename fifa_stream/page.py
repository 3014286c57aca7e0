"""One self-contained HTML page of verdicts: each face, its score, its explanation and its answer, where words show their mask and a mask its words.

The page loads nothing: pictures are data URIs, and its policy admits exactly the style and the script below, by hash. Every string of a record is
escaped here, once, in Python; the script never writes text.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fifa_stream.decode import DecodeLimits, decode_image
from fifa_stream.records import (
    Box,
    EvidenceItem,
    ExplanationText,
    FaceAnswer,
    FaceVerdict,
    Note,
    OperatingPointUsed,
    QueryAnswered,
    RunLengths,
    SampledFrame,
    Segment,
    Verdict,
)
from fifa_stream.video import VideoLimits, open_chunk
from fifa_stream.views import INKS, FaceView, hit_path, jpeg, measurements, origin, pieces, shown_frame, tint

MAX_SHOWN_FRAMES = 24
"""Of one video."""
_UNLIMITED = VideoLimits(max_bytes=1 << 40, max_pixels=(1 << 31) - 1, max_duration_s=1e6, max_decoded_frames=1 << 31, decode_timeout_s=3600.0)
"""What is shown was judged already, within limits."""


@dataclass(frozen=True, slots=True)
class PageEntry:
    """One image of the page: a verdict, or why there is none."""

    name: str
    encoded: bytes | Path | None
    """The image or chunk that the verdict is about, as it was sent, or its file; None leaves the pictures out."""
    outcome: Verdict | str
    """A string says why the image was refused."""
    remark: str = ""
    """What else is known of the image."""
    expected: str | None = None
    """What should have come out, in words; shown beside what did."""
    is_as_expected: bool | None = None
    facts: tuple[tuple[str, str], ...] = ()
    """What else there is to say of it, by name."""
    frame: int | None = None
    """Of a chunk only this sampled frame, by its index."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """A mask and what names it: what is pointed at lights the other."""

    id: str
    ink: int
    """Which of `INKS`."""
    words: str
    mask: RunLengths

    def button(self, text: str) -> str:
        """Words that show the mask."""
        return f'<button type="button" class="phrase k{self.ink}" data-evidence="{self.id}" aria-pressed="false">{escape(text)}</button>'


@dataclass(frozen=True, slots=True)
class _Asked:
    """What one face answered."""

    query: QueryAnswered
    answer: FaceAnswer
    area: _Mark | None
    """The whole artifact in the asked area; None for an empty mask."""
    evidence: tuple[_Mark, ...]

    @property
    def marks(self) -> tuple[_Mark, ...]:
        """All that can be pointed at."""
        return self.evidence if self.area is None else (self.area, *self.evidence)


def write_page(path: Path, entries: Sequence[PageEntry], *, title: str, banner: str | None = None) -> None:
    """Write the page; the folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_page(entries, title=title, banner=banner), encoding="utf-8")


def render_page(entries: Sequence[PageEntry], *, title: str, banner: str | None = None) -> str:
    """Return the HTML document."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    verdicts = [entry.outcome for entry in entries if isinstance(entry.outcome, Verdict)]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{style}</style></head><body>',
            f"<header><h1>{escape(title)}</h1>{_engine_line(verdicts)}",
            f'<p class="banner">{escape(banner)}</p>' if banner else "",
            '<p class="quiet">A score is the calibrated probability that a face is manipulated. Point at or tab to a phrase to see the pixels it '
            "speaks of, or to a coloured area to find its phrase; click to keep it. Left and right are the subject's.</p></header>",
            f"<main>{_summary(entries)}{''.join(_article(number, entry) for number, entry in enumerate(entries))}</main>",
            f'<footer class="quiet">{len(entries)} images. Made by fifa-stream.</footer>',
            f"<script>{script}</script></body></html>",
        ]
    )


def _asset(name: str) -> str:
    return (files("fifa_stream") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _engine_line(verdicts: Sequence[Verdict]) -> str:
    """Every engine and operating point that answered; normally one."""
    lines = {
        f"Engine {v.engine.name} {v.engine.version} ({v.engine.precision}, {v.engine.backend}), manifest {v.engine.manifest_sha256[:12]}; "
        f"operating point {v.operating_point.name}: fake from {v.operating_point.fake_at:.3g}, real below {v.operating_point.real_below:.3g}"
        for v in verdicts
    }
    return "".join(f'<p class="quiet">{escape(line)}</p>' for line in sorted(lines))


def _summary(entries: Sequence[PageEntry]) -> str:
    has_expectations = any(entry.expected is not None for entry in entries)
    expected_head = "<th>Expected</th><th>As expected</th>" if has_expectations else ""
    rows = []
    for number, entry in enumerate(entries):
        outcome = entry.outcome
        if isinstance(outcome, Verdict):
            got, faces = _chip(outcome.label.value), str(len(outcome.all_faces))
            score = "" if outcome.fake_score is None else f"{outcome.fake_score:.3f}"
        else:
            got, score, faces = _chip("error", "refused"), "", ""
        expected = ""
        if has_expectations:
            held = {True: "yes", False: "NO", None: ""}[entry.is_as_expected]
            expected = f"<td>{escape(entry.expected or '')}</td><td>{held}</td>"
        rows.append(
            f'<tr><td><a href="#image-{number}">{escape(entry.name)}</a></td><td class="number">{faces}</td>'
            f'<td class="number">{score}</td><td>{got}</td>{expected}</tr>'
        )
    return (
        '<div class="scroll"><table><thead><tr><th>Image</th><th class="number">Faces</th><th class="number">Score</th><th>Verdict</th>'
        f"{expected_head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _chip(kind: str, text: str | None = None) -> str:
    return f'<span class="chip {kind}">{escape(text or kind)}</span>'


def _article(number: int, entry: PageEntry) -> str:
    outcome = entry.outcome
    if isinstance(outcome, str):
        return (
            f'<article id="image-{number}"><div class="top"><h2>{escape(entry.name)}</h2>{_chip("error", "refused")}</div>{_remark(entry)}'
            f'<p class="mono">{escape(outcome)}</p></article>'
        )
    media = outcome.media
    encoded = entry.encoded.read_bytes() if isinstance(entry.encoded, Path) else entry.encoded
    if encoded is not None and hashlib.sha256(encoded).hexdigest() != media.sha256:  # a file may have changed since; its masks would then lie
        encoded = None
    timings = ", ".join(f"{stage} {milliseconds:.1f} ms" for stage, milliseconds in outcome.timings_ms.items())
    foot = f'<p class="quiet">{escape(timings)}</p>'
    if outcome.frames is None:
        image_HWC = None if encoded is None else decode_image(encoded, content_type=None, limits=DecodeLimits(len(encoded), 1 << 31)).image_HWC
        body = _columns(str(number), outcome, outcome.operating_point, image_HWC, foot)
    else:
        told = [frame for frame in outcome.frames if entry.frame in (None, frame.index)]
        body = f"{_notes(outcome.notes)}{foot}{_segments(outcome.segments or ())}{_frames(number, told, outcome.operating_point, encoded)}"
    return (
        f'<article id="image-{number}"><div class="top"><h2>{escape(entry.name)}</h2>{_chip(outcome.label.value)}'
        f'<span class="quiet">{media.width} x {media.height}, {escape(media.content_type)}</span></div>{_remark(entry)}'
        f"{body}{_facts(entry.facts)}</article>"
    )


def _frames(number: int, frames: Sequence[SampledFrame], point: OperatingPointUsed, encoded: bytes | None) -> str:
    """Sampled frames of a chunk: all, or those of a long video that show most."""
    num_frames, frames = len(frames), _worth_showing(frames)
    told = {frame.index: frame for frame in frames}
    pictured: dict[int, str] = {}
    if encoded is not None:
        for shown in open_chunk(encoded, content_type=None, limits=_UNLIMITED, only=told).frames():  # one picture at a time
            pictured[shown.index] = _columns(f"{number}-{shown.index}", told[shown.index], point, shown.image_HWC)
    left_out = f'<p class="quiet">{len(frames)} of {num_frames} frames that were looked at.</p>' if len(frames) < num_frames else ""
    return left_out + "".join(
        f'<div class="top"><h3>Frame {frame.index} at {frame.pts_ms} ms</h3>{_chip(frame.label.value)}</div>'
        f"{pictured.get(frame.index) or _columns(f'{number}-{frame.index}', frame, point, None)}"
        for frame in frames
    )


def _worth_showing(frames: Sequence[SampledFrame]) -> Sequence[SampledFrame]:
    """Those with an explanation first, then by score; in the order they are shown."""
    ranked = sorted(frames, key=lambda frame: (all(face.explanation is None for face in frame.faces), -(frame.fake_score or 0.0), frame.index))
    return sorted(ranked[:MAX_SHOWN_FRAMES], key=lambda frame: frame.index)


def _segments(segments: Sequence[Segment]) -> str:
    """A line for each segment of a stream."""
    if not segments:
        return ""
    rows = "".join(f"<li>{escape(segment.words)}</li>" for segment in segments)
    return f"<h3>Segments</h3><ul>{rows}</ul>"


def _columns(prefix: str, seen: Verdict | SampledFrame, point: OperatingPointUsed, image_HWC: NDArray[np.uint8] | None, foot: str = "") -> str:
    """A picture with what is remarked of it, and its faces."""
    faces = "".join(_face(f"{prefix}-{face.id}", face, seen.query, point, image_HWC) for face in seen.faces)
    frame = "" if image_HWC is None else f'<div class="frame">{_frame_picture(image_HWC, seen)}</div>'
    return f'<div class="columns"><div>{frame}{_notes(seen.notes)}{foot}</div><div class="faces">{faces}</div></div>'


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    if not facts:
        return ""
    return f'<dl class="facts">{"".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)}</dl>'


def _remark(entry: PageEntry) -> str:
    return f"<p>{escape(entry.remark)}</p>" if entry.remark else ""


def _frame_picture(image_HWC: NDArray[np.uint8], seen: Verdict | SampledFrame) -> str:
    height, width = image_HWC.shape[:2]
    letter_px = max(width, height) / 22
    boxes = []
    for face in seen.faces:
        x0, y0, x1, y1 = face.box
        boxes.append(
            f'<rect class="{face.label.value}" x="{x0:g}" y="{y0:g}" width="{x1 - x0:g}" height="{y1 - y0:g}"/>'
            f'<text x="{x0 + letter_px / 4:g}" y="{y0 + letter_px:g}" font-size="{letter_px:g}" stroke-width="{letter_px / 8:g}">{face.id + 1}</text>'
        )
    if seen.query is not None and seen.query.box is not None:
        boxes.append(_asked_box(seen.query.box))
    label = f"The frame with {len(seen.faces)} face{'' if len(seen.faces) == 1 else 's'} marked"
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f'<image href="{_data_uri(shown_frame(image_HWC))}" width="{width}" height="{height}" preserveAspectRatio="none"/>{"".join(boxes)}</svg>'
    )


def _asked_box(box: Box) -> str:
    x0, y0, x1, y1 = box
    return f'<rect class="asked" x="{x0:g}" y="{y0:g}" width="{x1 - x0:g}" height="{y1 - y0:g}"/>'


def _face(face_id: str, face: FaceVerdict, query: QueryAnswered | None, point: OperatingPointUsed, image_HWC: NDArray[np.uint8] | None) -> str:
    marks = _marks(face_id, 0, face.evidence)
    asked = None if query is None else _asked(face_id, face, query)
    shown = marks if asked is None else (*marks, *asked.marks)
    view = "" if image_HWC is None else _view(face, shown, image_HWC, None if query is None else query.box)
    explanation = "" if face.explanation is None else _explanation(face.explanation, face.evidence, marks)
    return (
        f'<section data-face="{face_id}"><div class="view">{view}</div><div><div class="heading"><h3>Face {face.id + 1}</h3>'
        f'<span class="score">{face.fake_score:.3f}</span>{_chip(face.label.value)}</div>{_scale(face.fake_score, point)}'
        f"{_types(face)}{explanation}{_evidence_table(face.evidence)}{'' if asked is None else _answer(asked)}{_notes(face.notes)}</div></section>"
    )


def _marks(prefix: str, first_ink: int, evidence: Sequence[EvidenceItem]) -> tuple[_Mark, ...]:
    return tuple(_Mark(f"{prefix}-{index}", (first_ink + index) % len(INKS), item.phrase, item.mask) for index, item in enumerate(evidence))


def _asked(face_id: str, face: FaceVerdict, query: QueryAnswered) -> _Asked | None:
    """The answer of this face, its inks behind those of the explanation."""
    answer = next((answer for answer in query.answers if answer.face == face.id), None)
    if answer is None:
        return None
    area = None if answer.box is None else _Mark(f"{face_id}-asked", len(face.evidence) % len(INKS), query.words, answer.mask)
    return _Asked(query, answer, area, _marks(f"{face_id}-asked", len(face.evidence) + 1, answer.evidence))


def _answer(asked: _Asked) -> str:
    answer, words = asked.answer, asked.query.words
    area = escape(words) if asked.area is None else asked.area.button(words)
    return (
        f'<div class="answer"><div class="heading"><h4>Asked: {area}</h4><span>{answer.tampered_probability:.3f}</span>'
        f"{_chip('tampered' if answer.tampered else 'clean')}</div>"
        f"{_explanation(answer.explanation, answer.evidence, asked.evidence)}{_evidence_table(answer.evidence)}</div>"
    )


def _scale(score: float, point: OperatingPointUsed) -> str:
    real, fake = 100 * point.real_below, 100 * point.fake_at
    return (
        '<svg class="scale" viewBox="0 0 100 14" preserveAspectRatio="none" role="img" '
        f'aria-label="score {score:.3f} on a scale from 0, real, to 1, fake">'
        f'<rect class="real" y="4" width="{real:g}" height="6"/><rect class="between" x="{real:g}" y="4" width="{fake - real:g}" height="6"/>'
        f'<rect class="fake" x="{fake:g}" y="4" width="{100 - fake:g}" height="6"/>'
        f'<rect class="at" x="{min(99.2, 100 * score):g}" width="0.8" height="14"/></svg>'
    )


def _types(face: FaceVerdict) -> str:
    rows = "".join(
        f'<span>{escape(name.replace("_", " "))}</span><svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="8"/><rect class="bar" width="{100 * p:g}" height="8"/></svg>'
        f'<span class="value">{100 * p:.0f} %</span>'
        for name, p in face.forgery_type.probs.items()
    )
    return f'<div class="quiet">If it is a fake, it is of type</div><div class="types">{rows}</div>'


def _explanation(told: ExplanationText, evidence: Sequence[EvidenceItem], marks: Sequence[_Mark]) -> str:
    """The plain text with a button on the character span of each phrase; spans that overlap an earlier one stay text."""
    parts = (escape(part) if index is None else marks[index].button(part) for part, index in pieces(told.text, evidence))
    known = f'<p class="quiet">{escape(said)}</p>' if (said := origin(told)) else ""
    return f'<p class="explanation">{"".join(parts)}</p>{known}'


def _evidence_table(evidence: Sequence[EvidenceItem]) -> str:
    if not evidence:
        return ""
    rows = []
    for item in evidence:
        measured = ", ".join(f"{name} {value}" for name, value in measurements(item))
        rows.append(
            f"<tr><td>{escape(item.phrase)}</td><td>{escape(' / '.join(item.concept_path))}</td>"
            f'<td class="number">{item.mask_confidence:.2f}</td><td>{escape(measured)}</td></tr>'
        )
    head = '<tr><th>Phrase</th><th>Concept</th><th class="number">Mask confidence</th><th>Measured, inside against around</th></tr>'
    table = f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
    return f"<details><summary>Evidence</summary>{table}</details>"


def _notes(notes: Sequence[Note]) -> str:
    if not notes:
        return ""
    return f'<ul class="notes">{"".join(f"<li><b>{escape(note.code.value)}</b>: {escape(note.message)}</li>" for note in notes)}</ul>'


def _view(face: FaceVerdict, marks: Sequence[_Mark], image_HWC: NDArray[np.uint8], asked_box: Box | None) -> str:
    height, width = image_HWC.shape[:2]
    view = FaceView.around(face.box, width=width, height=height)
    masks = [(mark, view.mask(mark.mask)) for mark in marks]
    masks.sort(key=lambda entry: -int(entry[1].sum()))  # the smallest lies on top and can be pointed at
    size = f'width="{view.width}" height="{view.height}"'
    layers = "".join(f'<image class="mask" data-evidence="{mark.id}" href="{tint(mask_HW, mark.ink)}" {size}/>' for mark, mask_HW in masks)
    hits = "".join(_hit(mark, mask_HW) for mark, mask_HW in masks if mask_HW.any())
    if asked_box is not None:
        layers += _asked_box(view.box(asked_box))
    return (
        f'<svg viewBox="0 0 {view.width} {view.height}" role="group" aria-label="Face {face.id + 1}">'
        f'<image href="{_data_uri(view.picture(image_HWC))}" {size}/>{layers}{hits}</svg>'
    )


def _hit(mark: _Mark, mask_HW: NDArray[np.bool_]) -> str:
    """An invisible shape over the mask that can be pointed at and focused."""
    return (
        f'<path class="hit" data-evidence="{mark.id}" d="{hit_path(mask_HW)}" tabindex="0" role="button" aria-pressed="false" '
        f'aria-label="mask of: {escape(mark.words)}"><title>{escape(mark.words)}</title></path>'
    )


def _data_uri(image: Image.Image) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(image)).decode()
