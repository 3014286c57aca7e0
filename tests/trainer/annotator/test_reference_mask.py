"""The frozen recipe: asked figures count on it, so its answers are pinned."""

import numpy as np
from numpy.typing import NDArray

from trainer.annotator.reference_mask import BORDER_PX, border_difference, frozen_mask


def gray(level: int) -> NDArray[np.uint8]:
    return np.full((224, 224, 3), level, np.uint8)


def test_identical_images_have_no_mask() -> None:
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    assert not frozen_mask(image, image).any()


def test_a_changed_square_is_masked_and_little_else() -> None:
    fake = gray(100)
    fake[80:140, 60:150] = 140
    mask = frozen_mask(gray(100), fake)
    assert mask[80:140, 60:150].all()
    grown = np.zeros_like(mask)
    grown[72:148, 52:158] = True
    assert not mask[~grown].any()


def test_changes_below_seven_grey_levels_do_not_count() -> None:
    assert not frozen_mask(gray(100), gray(106)).any()


def test_a_pair_that_differs_at_the_border_raises_the_threshold() -> None:
    fake = gray(110)
    fake[80:140, 80:140] = 130
    mask = frozen_mask(gray(100), fake)  # ten levels everywhere: 22 are needed, the square has 30
    assert mask[90:130, 90:130].all() and not mask[:60].any()
    fake[80:140, 80:140] = 118
    assert not frozen_mask(gray(100), fake).any()


def test_border_difference_reads_the_frame_only() -> None:
    difference = np.full((224, 224), 50.0, np.float32)
    difference[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = 200.0
    assert border_difference(difference) == 50.0
