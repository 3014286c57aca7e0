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
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.contracts import Mask
from fifa_stream.decode import DecodeLimits, decode_image
from fifa_stream.records import (
    Box,
    EvidenceItem,
    FaceAnswer,
    FaceVerdict,
    Note,
    OperatingPointUsed,
    QueryAnswered,
    RunLengths,
    SampledFrame,
    Verdict,
)
from fifa_stream.video import VideoLimits, open_chunk

FRAME_SIDE_PX = 640
"""Longest side of an embedded frame."""
VIEW_SIDE_PX = 384
"""Longest side of an embedded face view."""
VIEW_SCALE = 1.45
"""Side of a face view, in longer sides of its box: a little more than the crop that was judged (`engines.preprocess.CROP_SCALE`)."""
HIT_CELL_PX = 2
"""Masks answer the pointer on a grid of this pitch."""
_INKS = ((230, 159, 0), (86, 180, 233), (47, 191, 143), (240, 228, 66), (204, 121, 167), (255, 138, 92), (185, 165, 255))
"""RGB of the classes k0..k6 of the style sheet (Okabe and Ito's palette, lightened)."""


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


@dataclass(frozen=True, slots=True)
class _Mark:
    """A mask and what names it: what is pointed at lights the other."""

    id: str
    ink: int
    """Which of `_INKS`."""
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
        body = f"{_notes(outcome.notes)}{foot}{_frames(number, outcome.frames, outcome.operating_point, encoded)}"
    return (
        f'<article id="image-{number}"><div class="top"><h2>{escape(entry.name)}</h2>{_chip(outcome.label.value)}'
        f'<span class="quiet">{media.width} x {media.height}, {escape(media.content_type)}</span></div>{_remark(entry)}'
        f"{body}</article>"
    )


def _frames(number: int, frames: Sequence[SampledFrame], point: OperatingPointUsed, encoded: bytes | None) -> str:
    """The sampled frames of a chunk. One that the default sampling does not meet is shown without its picture."""
    told = {frame.index: frame for frame in frames}
    pictured: dict[int, str] = {}
    if encoded is not None:
        chunk = open_chunk(encoded, content_type=None, limits=VideoLimits(len(encoded), max_pixels=(1 << 31) - 1))
        for shown in chunk.frames():  # one picture at a time
            if shown.index in told:
                pictured[shown.index] = _columns(f"{number}-{shown.index}", told[shown.index], point, shown.image_HWC)
    return "".join(
        f'<div class="top"><h3>Frame {frame.index} at {frame.pts_ms} ms</h3>{_chip(frame.label.value)}</div>'
        f"{pictured.get(frame.index) or _columns(f'{number}-{frame.index}', frame, point, None)}"
        for frame in frames
    )


def _columns(prefix: str, seen: Verdict | SampledFrame, point: OperatingPointUsed, image_HWC: NDArray[np.uint8] | None, foot: str = "") -> str:
    """A picture with what is remarked of it, and its faces."""
    faces = "".join(_face(f"{prefix}-{face.id}", face, seen.query, point, image_HWC) for face in seen.faces)
    frame = "" if image_HWC is None else f'<div class="frame">{_frame_picture(image_HWC, seen)}</div>'
    return f'<div class="columns"><div>{frame}{_notes(seen.notes)}{foot}</div><div class="faces">{faces}</div></div>'


def _remark(entry: PageEntry) -> str:
    return f"<p>{escape(entry.remark)}</p>" if entry.remark else ""


def _frame_picture(image_HWC: NDArray[np.uint8], seen: Verdict | SampledFrame) -> str:
    height, width = image_HWC.shape[:2]
    image = Image.fromarray(image_HWC)
    image.thumbnail((FRAME_SIDE_PX, FRAME_SIDE_PX))
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
        f'<image href="{_jpeg(image)}" width="{width}" height="{height}" preserveAspectRatio="none"/>{"".join(boxes)}</svg>'
    )


def _asked_box(box: Box, scale: float = 1.0) -> str:
    x0, y0, x1, y1 = (side * scale for side in box)
    return f'<rect class="asked" x="{x0:g}" y="{y0:g}" width="{x1 - x0:g}" height="{y1 - y0:g}"/>'


def _face(face_id: str, face: FaceVerdict, query: QueryAnswered | None, point: OperatingPointUsed, image_HWC: NDArray[np.uint8] | None) -> str:
    marks = _marks(face_id, 0, face.evidence)
    asked = None if query is None else _asked(face_id, face, query)
    shown = marks if asked is None else (*marks, *asked.marks)
    view = "" if image_HWC is None else _view(face, shown, image_HWC, None if query is None else query.box)
    explanation = "" if face.explanation is None else _explanation(face.explanation.text, face.evidence, marks)
    return (
        f'<section data-face="{face_id}"><div class="view">{view}</div><div><div class="heading"><h3>Face {face.id + 1}</h3>'
        f'<span class="score">{face.fake_score:.3f}</span>{_chip(face.label.value)}</div>{_scale(face.fake_score, point)}'
        f"{_types(face)}{explanation}{_evidence_table(face.evidence)}{'' if asked is None else _answer(asked)}{_notes(face.notes)}</div></section>"
    )


def _marks(prefix: str, first_ink: int, evidence: Sequence[EvidenceItem]) -> tuple[_Mark, ...]:
    return tuple(_Mark(f"{prefix}-{index}", (first_ink + index) % len(_INKS), item.phrase, item.mask) for index, item in enumerate(evidence))


def _asked(face_id: str, face: FaceVerdict, query: QueryAnswered) -> _Asked | None:
    """The answer of this face, its inks behind those of the explanation."""
    answer = next((answer for answer in query.answers if answer.face == face.id), None)
    if answer is None:
        return None
    area = None if answer.box is None else _Mark(f"{face_id}-asked", len(face.evidence) % len(_INKS), query.words, answer.mask)
    return _Asked(query, answer, area, _marks(f"{face_id}-asked", len(face.evidence) + 1, answer.evidence))


def _answer(asked: _Asked) -> str:
    answer, words = asked.answer, asked.query.words
    area = escape(words) if asked.area is None else asked.area.button(words)
    return (
        f'<div class="answer"><div class="heading"><h4>Asked: {area}</h4><span>{answer.tampered_probability:.3f}</span>'
        f"{_chip('tampered' if answer.tampered else 'clean')}</div>"
        f"{_explanation(answer.explanation.text, answer.evidence, asked.evidence)}{_evidence_table(answer.evidence)}</div>"
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


def _explanation(text: str, evidence: Sequence[EvidenceItem], marks: Sequence[_Mark]) -> str:
    """The plain text with a button on the character span of each phrase; spans that overlap an earlier one stay text."""
    position, out = 0, []
    for item, mark in sorted(zip(evidence, marks, strict=True), key=lambda pair: pair[0].char_span):
        start, end = item.char_span
        if start < position:
            continue
        out.append(escape(text[position:start]) + mark.button(text[start:end]))
        position = end
    out.append(escape(text[position:]))
    return f'<p class="explanation">{"".join(out)}</p>'


def _evidence_table(evidence: Sequence[EvidenceItem]) -> str:
    if not evidence:
        return ""
    rows = []
    for item in evidence:
        measured = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in item.measured.items())
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
    x0, y0, x1, y1 = face.box
    half = VIEW_SCALE * max(x1 - x0, y1 - y0) / 2
    left, top = max(0, int((x0 + x1) / 2 - half)), max(0, int((y0 + y1) / 2 - half))
    right, bottom = min(width, int(np.ceil((x0 + x1) / 2 + half))), min(height, int(np.ceil((y0 + y1) / 2 + half)))
    scale = VIEW_SIDE_PX / max(right - left, bottom - top)
    size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    picture = Image.fromarray(np.ascontiguousarray(image_HWC[top:bottom, left:right])).resize(size, Image.Resampling.LANCZOS)
    masks = []
    for mark in marks:
        mask_HW = Mask(mark.mask.size, mark.mask.counts).decode()[top:bottom, left:right]
        shown = Image.fromarray(mask_HW.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
        masks.append((mark, np.asarray(shown) >= 128))
    masks.sort(key=lambda entry: -int(entry[1].sum()))  # the smallest lies on top and can be pointed at
    layers = "".join(
        f'<image class="mask" data-evidence="{mark.id}" href="{_tint(mask_HW, mark.ink)}" width="{size[0]}" height="{size[1]}"/>'
        for mark, mask_HW in masks
    )
    hits = "".join(_hit(mark, mask_HW) for mark, mask_HW in masks if mask_HW.any())
    if asked_box is not None:
        x0, y0, x1, y1 = asked_box
        layers += _asked_box((x0 - left, y0 - top, x1 - left, y1 - top), scale)
    return (
        f'<svg viewBox="0 0 {size[0]} {size[1]}" role="group" aria-label="Face {face.id + 1}">'
        f'<image href="{_jpeg(picture)}" width="{size[0]}" height="{size[1]}"/>{layers}{hits}</svg>'
    )


def _hit(mark: _Mark, mask_HW: NDArray[np.bool_]) -> str:
    """An invisible shape over the mask that can be pointed at and focused: one box per run of grid cells."""
    pitch = HIT_CELL_PX
    cells_HW = mask_HW[::pitch, ::pitch]
    steps_HW = np.diff(np.pad(cells_HW, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps_HW == 1)
    _, ends = np.nonzero(steps_HW == -1)
    path = "".join(f"M{s * pitch} {r * pitch}h{(e - s) * pitch}v{pitch}h{(s - e) * pitch}z" for r, s, e in zip(rows, starts, ends, strict=True))
    return (
        f'<path class="hit" data-evidence="{mark.id}" d="{path}" tabindex="0" role="button" aria-pressed="false" '
        f'aria-label="mask of: {escape(mark.words)}"><title>{escape(mark.words)}</title></path>'
    )


def _tint(mask_HW: NDArray[np.bool_], ink: int) -> str:
    """A PNG data URI: the mask in the ink of its words, transparent elsewhere, its edge opaque."""
    padded = np.pad(mask_HW, 2)
    eroded = np.ones_like(mask_HW)
    for dy, dx in ((0, 2), (4, 2), (2, 0), (2, 4), (1, 1), (1, 3), (3, 1), (3, 3)):
        eroded &= padded[dy : dy + mask_HW.shape[0], dx : dx + mask_HW.shape[1]]
    levels = Image.fromarray(np.where(eroded, 1, np.where(mask_HW, 2, 0)).astype(np.uint8))
    levels.putpalette([0, 0, 0, *_INKS[ink], *_INKS[ink]])
    buffer = BytesIO()
    levels.save(buffer, "PNG", transparency=bytes([0, 130, 255]), bits=2, optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _jpeg(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=86)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
