"""What each [SEG] of an answer shows on the face: masks, and the regions that they end at."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines import fict
from engines.bundle import Bundle
from engines.contracts import Box, EngineError, Manifest
from engines.decode import End
from engines.preprocess import to_model_input
from engines.prompts import parse_markup
from engines.questions import Answer, sigmoid
from engines.regions import FaceRegions


@dataclass(frozen=True, slots=True)
class _Spoken:
    """The region that a mask belongs to."""

    concept: str
    rim: bool
    """A phrase's mask may leave its region by a rim, as the annotator's do; that of an asked region may not."""


class MaskDrawer:
    """Masks and regions of encoded faces, by one bundle's mask decoder and region parser."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._manifest = bundle.manifest

    def regions(self, encoded: dict[str, NDArray[Any]], rows: Iterable[int]) -> dict[int, FaceRegions]:
        """Where FICT lies on rows of an encoded batch, each parsed once; empty for a bundle without a region parser."""
        if "regions" not in encoded:
            return {}
        wanted = sorted(set(rows))
        new = [row for row in wanted if not encoded["regions_known"][row]]
        if new:
            encoded["regions"][new] = self._bundle.engines["region_parser"].run({"image": to_model_input(encoded["crops"][new])})["regions"]
            refuse_no_numbers(self._manifest, "regions", encoded["regions"][new])
            encoded["regions_known"][new] = True
        return {row: FaceRegions(encoded["regions"][row]) for row in wanted}

    def markup(self, answer: Answer) -> str:
        """The markup of an answer; one that was cut off stops at its last whole sentence, and its later [SEG] states have no phrase."""
        written = self._bundle.vocabulary.markup(answer.ids)
        return written if answer.end is End.WHOLE else last_whole_sentence(written)

    def masks(
        self, encoded: dict[str, NDArray[Any]], rows: Sequence[int], answers: Sequence[Answer]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Masks for all [SEG] states: probabilities (M, mask_size, mask_size) over the crop and predicted IoU (M,)."""
        new = [(row, answer) for row, answer in zip(rows, answers, strict=True) if answer.shown is None]
        masks_MHW, confidence_M = self._draw([row for row, answer in new for _ in answer.seg_embeds], encoded, [answer for _, answer in new])
        if len(new) == len(answers):
            return masks_MHW, confidence_M
        drawn = zip(masks_MHW, confidence_M, strict=True)
        pairs = [
            pair
            for answer in answers
            for pair in (islice(drawn, len(answer.seg_embeds)) if answer.shown is None else (shown[:2] for shown in answer.shown))
        ]
        if not pairs:
            return masks_MHW, confidence_M
        return np.stack([mask_HW for mask_HW, _ in pairs]), np.array([confidence for _, confidence in pairs], np.float32)

    def _draw(
        self, owners: Sequence[int], encoded: dict[str, NDArray[Any]], answers: Sequence[Answer]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run the mask decoder; `owners` are the rows of the [SEG] states."""
        size = self._manifest.preprocess.mask_size
        if not owners:
            return np.zeros((0, size, size), np.float32), np.zeros(0, np.float32)
        out = self._bundle.engines["mask_decoder"].run(
            {
                "image_embeds": encoded["image_embeds"][owners],
                "artifact_logits": encoded["artifact_logits"][owners],
                "seg_embeds": np.stack([embed for answer in answers for embed in answer.seg_embeds]),
            }
        )
        refuse_no_numbers(self._manifest, "masks", out["mask_logits"], out["iou_logit"])
        masks_MHW = self._ground(encoded, owners, [spoken for answer in answers for spoken in self._spoken_of(answer)], out["mask_logits"])
        boxes = [answer.within for answer in answers for _ in answer.seg_embeds]
        for mask_HW, box in zip(masks_MHW, boxes, strict=True):
            if box is not None:
                mask_HW *= box_cells(_grown(box, self._manifest.preprocess.image_size / size), size, size / self._manifest.preprocess.image_size)
        return masks_MHW, sigmoid(out["iou_logit"])

    def _ground(
        self, encoded: dict[str, NDArray[Any]], owners: Sequence[int], spoken_of: Sequence[_Spoken | None], logits_MHW: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Probabilities of masks; one that speaks of a concept ends at its region, and is cut there where the manifest says.

        Where that leaves nothing the parser sees no such region, and the mask stays as it was drawn.
        """
        masks_MHW = sigmoid(logits_MHW)
        named = [(number, row, spoken) for number, (row, spoken) in enumerate(zip(owners, spoken_of, strict=True)) if spoken is not None]
        regions = self.regions(encoded, [row for _, row, _ in named])
        cut = self._manifest.region_mask_cut
        shift = np.float32(math.log((1 - cut) / cut))
        for number, row, spoken in named if regions else ():
            within_HW = np.minimum(sigmoid(logits_MHW[number] + shift), regions[row].of(spoken.concept, rim=spoken.rim))
            if within_HW.max() >= 0.5:
                masks_MHW[number] = within_HW
        return masks_MHW

    def _spoken_of(self, answer: Answer) -> list[_Spoken | None]:
        """What each [SEG] of an answer speaks of: its phrase, the asked region where it has none; None for the whole face or a box."""
        spans = parse_markup(self.markup(answer))[1][: len(answer.seg_embeds)]
        asked = None if answer.concept is None else _Spoken(answer.concept, rim=False)
        return [*(_Spoken(fict.by_phrase()[span.phrase], rim=True) for span in spans), *[asked] * (len(answer.seg_embeds) - len(spans))]


def refuse_no_numbers(manifest: Manifest, what: str, *outputs: NDArray[np.float32]) -> None:
    """NaN and infinity say nothing of a face: half precision that overflows, or a runtime that fails on this machine."""
    if not all(np.isfinite(output).all() for output in outputs):
        told = f"the engine {manifest.name} {manifest.version} gives {what} that are no numbers"
        raise EngineError(f"{told}; hold it against its checkpoint with: fifa-stream engine check, or build it in a higher precision")


def box_cells(box_xyxy: Box, size: int, scale: float) -> NDArray[np.bool_]:
    """(size, size) cells of a grid whose centres lie in a box; `scale` takes the box to cells. A box between centres keeps the cell it begins in."""

    def along(low: float, high: float) -> NDArray[np.bool_]:
        centres = np.arange(size) + 0.5
        inside = (centres >= low * scale) & (centres < high * scale)
        inside[min(max(int(low * scale), 0), size - 1)] |= not inside.any()
        return inside

    x0, y0, x1, y1 = box_xyxy
    return np.outer(along(y0, y1), along(x0, x1))


def _grown(box_xyxy: Box, margin: float) -> Box:
    """A cell more on every side: interpolation at the box's edge then meets no zero, and who shows the mask cuts it to the pixel."""
    x0, y0, x1, y1 = box_xyxy
    return x0 - margin, y0 - margin, x1 + margin, y1 + margin


def last_whole_sentence(markup: str) -> str:
    """Cut text that met a limit after its last full stop; '' when not one sentence is whole."""
    return markup[: markup.rfind(".") + 1]


def at_crop_size(mask_HW: NDArray[np.float32], size: int) -> NDArray[np.bool_]:
    """(size, size) pixels of the crop that a mask of probabilities holds."""
    resized = Image.fromarray(mask_HW).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized) >= 0.5
