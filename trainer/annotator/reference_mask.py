"""The frozen reference mask of a real/fake pair: the recipe every asked figure counts on. Never change it; `annotate` holds the better one.

Mean RGB difference, Gaussian sigma 4 px, threshold max(7, 2.2 x border difference), opening 5x5, closing 15x15, at 224 px. The border difference
is the mean difference in a frame of 8 px, before smoothing (our reading: the recipe names it without its width).
"""

import cv2
import numpy as np
from numpy.typing import NDArray

BORDER_PX = 8


def border_difference(difference_HW: NDArray[np.float32]) -> float:
    """Mean grey-level difference in the outer frame: how badly the pair is aligned or re-encoded."""
    frame = np.ones(difference_HW.shape, bool)
    frame[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = False
    return float(difference_HW[frame].mean())


def frozen_mask(real_HWC: NDArray[np.uint8], fake_HWC: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the (H, W) mask of where the fake differs from its real twin; both (224, 224, 3) uint8."""
    difference = np.abs(real_HWC.astype(np.float32) - fake_HWC.astype(np.float32)).mean(-1)
    threshold = max(7.0, 2.2 * border_difference(difference))
    mask = (cv2.GaussianBlur(difference, (0, 0), 4.0) > threshold).astype(np.uint8)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    return cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((15, 15), np.uint8)).astype(bool)
