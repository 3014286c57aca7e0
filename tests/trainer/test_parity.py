"""Two engines on the same faces."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from engines.analyzer import Analyzer
from trainer.faces import Face
from trainer.parity import parity_table


class Toy:
    """Answers face `n` with the words and the one mask that it is given, and scores it `shift` above n / 10."""

    def __init__(self, words: Sequence[str], masks: Sequence[np.ndarray], shift: float = 0.0) -> None:
        self.manifest = SimpleNamespace(preprocess=SimpleNamespace(image_size=28))
        self._words, self._masks, self._shift = words, masks, shift

    def encode(self, crops_NHWC: np.ndarray) -> dict[str, np.ndarray]:
        return {"det_logit": np.arange(len(crops_NHWC)) / 10 + self._shift}

    def calibrated(self, logit_N: np.ndarray) -> np.ndarray:
        return logit_N

    def ask(self, encoded: Any, rows: Sequence[int], task: str, queries: Any) -> list[Any]:
        return [SimpleNamespace(ids=self._words[row], row=row) for row in rows]

    def masks(self, encoded: Any, rows: Sequence[int], answers: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        assert list(rows) == [answer.row for answer in answers]
        return np.array([self._masks[row] for row in rows], np.float32).reshape(-1, 4, 4), np.ones(len(rows), np.float32)


def half(top: bool) -> np.ndarray:
    mask_HW = np.zeros((4, 4), np.float32)
    mask_HW[: 2 if top else 4] = 1.0
    return mask_HW


def test_a_face_with_other_words_costs_its_own_masks_alone(make_face: Callable[..., Face]) -> None:
    faces = [make_face(number) for number in range(3)]
    ours, theirs = Toy("aba", [half(True)] * 3, shift=0.25), Toy("aaa", [half(True), half(True), half(False)])
    found = parity_table(cast(Analyzer, ours), cast(Analyzer, theirs), faces)
    assert found["masks"] == 2 and found["same_tokens"] == pytest.approx(2 / 3) and found["faces"] == 3
    assert found["min_mask_iou"] == 0.5 and found["max_score_difference"] == 0.25


def test_engines_that_never_agree_compare_no_mask(make_face: Callable[..., Face]) -> None:
    found = parity_table(cast(Analyzer, Toy("a", [half(True)])), cast(Analyzer, Toy("b", [half(True)])), [make_face(0)])
    assert found["masks"] == 0 and found["same_tokens"] == 0
