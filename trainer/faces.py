"""One labelled face image, whatever set it came from."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.contracts import FORGERY_TYPES

ImageHWC = NDArray[np.uint8]
Part = Literal["train", "select", "calibrate", "report"]
SWAP_SUM = "swap"
"""Type label of DFDC fakes: the method is not named, so they train the sum of identity_swap and expression_swap."""


@dataclass(frozen=True, slots=True)
class Face:
    """One labelled face image, still encoded."""

    name: str
    """Unique within its set."""
    dataset: str
    encoded: bytes
    window_xywh: tuple[int, int, int, int] | None
    """The face within a larger image, or None for the whole."""
    is_fake: bool
    forgery_type: str | None
    unit: str
    """Identity cluster, person, prompt or grid: what a split must not divide."""
    part: Part
    real_twin: str | None = None
    """Name of the real image this fake was made from."""
    pair_quality: str = ""
    """DFDC: 'curated', 'loose' or ''."""
    mask_encoded: bytes | None = None
    """PNG of the whole image's size that marks exactly what was changed (`trainer.image_index.exact_mask` reads it), where a set brings one."""

    def image(self) -> ImageHWC:
        """Decode to (H, W, 3) uint8 RGB."""
        decoded = cv2.imdecode(np.frombuffer(self.encoded, np.uint8), cv2.IMREAD_COLOR)
        if decoded is None:
            raise ValueError(f"{self.dataset}/{self.name} does not decode; re-extract the set")
        if self.window_xywh is not None:
            x, y, w, h = self.window_xywh
            decoded = decoded[y : y + h, x : x + w].copy()  # not a view: a StarGAN tile would keep its whole grid in memory
        return decoded[..., ::-1]


def type_target(forgery_type: str | None) -> NDArray[np.float32]:
    """Allowed types as a 0/1 vector: DFDC's swaps allow two."""
    allowed = ("identity_swap", "expression_swap") if forgery_type == SWAP_SUM else (forgery_type,)
    return np.array([t in allowed for t in FORGERY_TYPES], np.float32)


def fit(image_HWC: ImageHWC, size: int) -> ImageHWC:
    """Resize to the model's square, as serving does with a face crop."""
    if image_HWC.shape[:2] == (size, size):
        return image_HWC
    shrinks = min(image_HWC.shape[:2]) > size
    return cv2.resize(image_HWC, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
