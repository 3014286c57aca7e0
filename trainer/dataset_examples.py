"""Example pages of instruction data: faces with their masks drawn, phrases in the colours of their masks, questions and answers.

Whatever a sample says is escaped; the page holds its images itself and needs no script.
"""

import base64
import hashlib
import html
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, groupby, zip_longest

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.prompts import parse_markup
from trainer.samples import Rle, Sample, TrueMask

ImageHWC = NDArray[np.uint8]

PALETTE = ((255, 214, 0), (0, 200, 255), (255, 120, 200), (120, 255, 120), (255, 150, 60), (190, 160, 255))
"""RGB of masks and their phrases, in the order of the answer; seen on skin and behind black letters alike."""
ZOOM = 2
"""Crops are drawn at this many times their size: outlines stay fine."""
FILL = 0.25
JPEG_QUALITY = 85


class Examples:
    """Keeps a few faces of every set and family: those whose names hash lowest, whatever the order they come in."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: dict[tuple[str, str], list[tuple[str, ImageHWC, list[Sample]]]] = defaultdict(list)

    def offer(self, image_HWC: ImageHWC, samples: list[Sample]) -> None:
        """Consider one face; faces without an explanation are not shown."""
        if not any(sample.task == "age" for sample in samples):
            return
        first = samples[0]
        kept = self._kept[first.dataset, first.forgery_type or "real"]
        kept.append((hashlib.sha256(f"{first.dataset}/{first.name}".encode()).hexdigest(), image_HWC, samples))
        kept.sort(key=lambda item: item[0])
        del kept[self._count :]

    def chosen(self) -> list[tuple[ImageHWC, list[Sample]]]:
        """One of each family in turn, until there are enough."""
        columns = [kept for _, kept in sorted(self._kept.items())]
        in_turn = [item for item in chain.from_iterable(zip_longest(*columns)) if item is not None]
        return [(image_HWC, samples) for _, image_HWC, samples in in_turn[: self._count]]


def data_uri(content: bytes, kind: str) -> str:
    """An image that stands in the page itself."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def examples_html(examples: Examples) -> str:
    """The chosen faces, one under the other."""
    return "\n".join(_face_html(image_HWC, samples) for image_HWC, samples in examples.chosen())


def markup_html(markup: str) -> str:
    """Escaped text, each phrase on the colour of its mask."""
    text, spans = parse_markup(markup)
    parts, position = [], 0
    for number, (start, end, phrase) in enumerate(spans):
        color = f"rgb{PALETTE[number % len(PALETTE)]}"
        parts += [html.escape(text[position:start]), f"<mark style='background:{color}'>{html.escape(phrase)}</mark>"]
        position = end
    return "".join([*parts, html.escape(text[position:])])


def draw(image_HWC: ImageHWC, sample: Sample, whole: Sequence[TrueMask] = ()) -> ImageHWC:
    """The crop with the masks of one sample filled and outlined, `whole` outlined in black and the asked area in white; (448, 448, 3) uint8."""
    height, width = image_HWC.shape[:2]
    canvas = cv2.resize(image_HWC, (ZOOM * width, ZOOM * height), interpolation=cv2.INTER_CUBIC)
    for mask in whole:
        _outline(canvas, _zoomed(mask.rle), (0, 0, 0))
    for number, mask in enumerate(sample.masks):
        mask_HW = _zoomed(mask.rle)
        color = PALETTE[number % len(PALETTE)]
        canvas[mask_HW > 0] = np.round((1 - FILL) * canvas[mask_HW > 0] + FILL * np.array(color)).astype(np.uint8)
        _outline(canvas, mask_HW, color)
    if sample.area is not None:
        _outline(canvas, _zoomed(sample.area), (255, 255, 255))
    return canvas


def _zoomed(rle: Rle) -> NDArray[np.uint8]:
    return rle.decode().repeat(ZOOM, 0).repeat(ZOOM, 1).astype(np.uint8)


def _outline(canvas: ImageHWC, mask_HW: NDArray[np.uint8], color: tuple[int, int, int]) -> None:
    contours, _ = cv2.findContours(mask_HW, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, color, 2)


def _face_html(image_HWC: ImageHWC, samples: Sequence[Sample]) -> str:
    first = samples[0]
    scores = "; ".join(f"{sample.prompt} {sample.answer}" for sample in samples if sample.task in ("det", "cls"))
    told = [sample for sample in samples if sample.task in ("loc", "toe", "age")]
    panels = [_panel(image_HWC, list(asked)) for _, asked in groupby(told, key=_question_of)]
    title = html.escape(f"{first.dataset}/{first.name}: {first.forgery_type or 'real'}")
    return f"<div class='face'><h3>{title}</h3><p class='q'>{html.escape(scores)}</p><div class='asked'>{''.join(panels)}</div></div>"


def _question_of(sample: Sample) -> tuple[str, str | None, object, str | None]:
    return sample.level, sample.concept, sample.box_xyxy, sample.probe


def _panel(image_HWC: ImageHWC, asked: Sequence[Sample]) -> str:
    """One asked area: the face under the masks of its explanation, the mask of `loc` in black, and every question about it."""
    shown = next((sample for sample in asked if sample.task == "age"), asked[0])
    drawn = draw(image_HWC, shown, [mask for sample in asked if sample.task == "loc" for mask in sample.masks])
    jpeg = cv2.imencode(".jpg", np.ascontiguousarray(drawn[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    lines = []
    for sample in asked:
        answer = markup_html(sample.answer) if sample is shown else html.escape(parse_markup(sample.answer)[0])
        notes = [sample.probe or "", "" if sample.mask_known else "mask not known"]
        note = html.escape(", ".join(filter(None, notes)))
        lines.append(f"<p><span class='task'>{sample.task}</span> <span class='q'>{html.escape(sample.prompt)} {note}</span><br>{answer}</p>")
    return f"<div class='panel'><img alt='' src='{data_uri(jpeg, 'jpeg')}'>{''.join(lines)}</div>"
