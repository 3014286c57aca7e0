"""What a reader is shown of a verdict: a face cut out of its frame, masks in ink, shapes to point at, texts cut at their phrases.

The HTML page and the desk both draw with this. Nothing in a verdict is believed: run lengths are counted before a pixel is set, boxes are clipped.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.contracts import Box, Mask, MaskError
from fifa_stream.records import EvidenceItem, ExplanationText, RunLengths

FRAME_SIDE_PX = 640
"""Longest side of a frame as it is shown."""
VIEW_SIDE_PX = 384
"""Longest side of a face view."""
VIEW_SCALE = 1.45
"""Side of a face view, in longer sides of its box: a little more than the crop that was judged (`engines.preprocess.CROP_SCALE`)."""
HIT_CELL_PX = 2
"""Masks answer the pointer on a grid of this pitch."""
INKS = ((230, 159, 0), (86, 180, 233), (47, 191, 143), (240, 228, 66), (204, 121, 167), (255, 138, 92), (185, 165, 255))
"""RGB of the classes k0..k6 of the style sheet (Okabe and Ito's palette, lightened)."""
JPEG_QUALITY = 86


@dataclass(frozen=True, slots=True)
class FaceView:
    """Which part of a frame shows a face, and at what size."""

    left: int
    top: int
    right: int
    bottom: int
    """In frame pixels, far edges exclusive."""
    width: int
    height: int
    """Of the view."""

    @classmethod
    def around(cls, box: Box, *, width: int, height: int) -> "FaceView":
        """A square of `VIEW_SCALE` around a box, clipped to a frame of width x height; at least a pixel of it. The box is finite."""
        x0, y0, x1, y1 = box
        half = VIEW_SCALE * max(x1 - x0, y1 - y0) / 2
        left, top = (min(max(0, int((low + high) / 2 - half)), side - 1) for low, high, side in ((x0, x1, width), (y0, y1, height)))
        right = max(left + 1, min(width, int(np.ceil((x0 + x1) / 2 + half))))
        bottom = max(top + 1, min(height, int(np.ceil((y0 + y1) / 2 + half))))
        scale = VIEW_SIDE_PX / max(right - left, bottom - top)
        return cls(left, top, right, bottom, max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))

    @property
    def scale(self) -> float:
        """View pixels in a frame pixel."""
        return VIEW_SIDE_PX / max(self.right - self.left, self.bottom - self.top)

    def picture(self, image_HWC: NDArray[np.uint8]) -> Image.Image:
        """The face of a frame, (height, width, 3) RGB."""
        cut_HWC = np.ascontiguousarray(image_HWC[self.top : self.bottom, self.left : self.right])
        return Image.fromarray(cut_HWC).resize((self.width, self.height), Image.Resampling.LANCZOS)

    def mask(self, run_lengths: RunLengths) -> NDArray[np.bool_]:
        """A mask of the frame as (height, width) of the view. Raises MaskError."""
        cut_HW = decode_mask(run_lengths)[self.top : self.bottom, self.left : self.right]
        if cut_HW.shape != (self.bottom - self.top, self.right - self.left):
            raise MaskError(f"a mask of {run_lengths.size[0]} x {run_lengths.size[1]} does not cover the frame that it speaks of")
        shown = Image.fromarray(cut_HW.astype(np.uint8) * 255).resize((self.width, self.height), Image.Resampling.BILINEAR)
        return np.asarray(shown) >= 128

    def box(self, box: Box) -> Box:
        """A box of the frame in pixels of the view."""
        x0, y0, x1, y1 = box
        return ((x0 - self.left) * self.scale, (y0 - self.top) * self.scale, (x1 - self.left) * self.scale, (y1 - self.top) * self.scale)


def decode_mask(run_lengths: RunLengths) -> NDArray[np.bool_]:
    """(height, width) of the run lengths of a verdict. Raises MaskError."""
    return Mask(run_lengths.size, run_lengths.counts).decode()


GUESSED = "These are the words of the language decoder: amounts in them are what such faces tend to show, not what was measured on this one."


def origin(explanation: ExplanationText | None) -> str:
    """What a reader must know of the words; empty where they can be taken as they are, or nobody knows."""
    return GUESSED if explanation is not None and explanation.words == "decoded" else ""


def measurements(item: EvidenceItem) -> list[tuple[str, str]]:
    """Name and value, with what real faces show there where that is known."""
    usual = {name: f" (usually {value:g})" for name, value in item.usual.items()}
    return [(name.replace("_", " "), f"{value:g}{usual.get(name, '')}") for name, value in item.measured.items()]


def pieces(text: str, evidence: Sequence[EvidenceItem]) -> list[tuple[str, int | None]]:
    """A text cut at its phrases, each with the index of its evidence; what overlaps an earlier phrase, and what lies outside, stays text."""
    position, out = 0, list[tuple[str, int | None]]()
    for index in sorted(range(len(evidence)), key=lambda index: evidence[index].char_span):
        start, end = evidence[index].char_span
        if not position <= start < end <= len(text):
            continue
        out += [(text[position:start], None), (text[start:end], index)]
        position = end
    return [(part, index) for part, index in [*out, (text[position:], None)] if part]


def hit_path(mask_HW: NDArray[np.bool_]) -> str:
    """An SVG path over a mask of a view: one box per run of grid cells."""
    pitch = HIT_CELL_PX
    cells_HW = mask_HW[::pitch, ::pitch]
    steps_HW = np.diff(np.pad(cells_HW, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps_HW == 1)
    _, ends = np.nonzero(steps_HW == -1)
    return "".join(f"M{s * pitch} {r * pitch}h{(e - s) * pitch}v{pitch}h{(s - e) * pitch}z" for r, s, e in zip(rows, starts, ends, strict=True))


def tint(mask_HW: NDArray[np.bool_], ink: int) -> str:
    """A PNG data URI: the mask in the ink of its words, transparent elsewhere, its edge opaque."""
    padded = np.pad(mask_HW, 2)
    eroded = np.ones_like(mask_HW)
    for dy, dx in ((0, 2), (4, 2), (2, 0), (2, 4), (1, 1), (1, 3), (3, 1), (3, 3)):
        eroded &= padded[dy : dy + mask_HW.shape[0], dx : dx + mask_HW.shape[1]]
    levels = Image.fromarray(np.where(eroded, 1, np.where(mask_HW, 2, 0)).astype(np.uint8))
    levels.putpalette([0, 0, 0, *INKS[ink], *INKS[ink]])
    buffer = BytesIO()
    levels.save(buffer, "PNG", transparency=bytes([0, 130, 255]), bits=2, optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def jpeg(image: Image.Image) -> bytes:
    """Encoded for showing: nothing of the file that a picture came in is left."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def shown_frame(image_HWC: NDArray[np.uint8]) -> Image.Image:
    """A frame, its longest side at most `FRAME_SIDE_PX`."""
    image = Image.fromarray(image_HWC)
    image.thumbnail((FRAME_SIDE_PX, FRAME_SIDE_PX))
    return image
