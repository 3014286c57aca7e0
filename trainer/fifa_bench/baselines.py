"""Systems that need no engine, with the signature of a predictor: what a figure is worth beside an answer that never looks, and beside a perfect one.

`Constant` gives one answer to everybody, `oracle` reads the answer off the sample, `residual_heuristic` looks at the spectrum and learns nothing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from engines import fict
from engines.contracts import FORGERY_TYPES
from engines.prompts import parse_markup
from trainer.faces import ImageHWC, fit, type_target
from trainer.fifa_bench.masks import oval_mask
from trainer.fifa_bench.predict import BATCH, AskedFace
from trainer.fifa_bench.text import most_frequent_sentence
from trainer.samples import SIDE, Level, PredictedMask, Prediction, Rle, Sample, TaskKind

Told = dict[tuple[TaskKind, Level], str]

MID_CYCLES = (1 / 16, 1 / 4)
HIGH_CYCLES = (1 / 4, 1 / 2)
"""Bands of spatial frequency in cycles a pixel at 224 px; below the middle one lie shading and the face's own shape."""


@dataclass(frozen=True)
class Constant:
    """The same answer for every face: prior score, prior types, most frequent sentence, and the whole face (or the whole asked area) as mask."""

    fake_score: float
    type_probs: dict[str, float]
    markup: Told
    """The most frequent sentence of tampered samples, by text task and level."""

    @staticmethod
    def of(samples: Iterable[Sample]) -> "Constant":
        """Count samples: those of the training part, or, which favours this baseline, those it will be scored on. Raises ValueError without fakes."""
        counted = [sample for sample in samples if sample.probe is None]
        fakes = {(s.dataset, s.name): s.forgery_type for s in counted if s.is_fake}
        faces = {(s.dataset, s.name) for s in counted}
        if not fakes:
            raise ValueError("the constant baseline counts fakes and there are none; give it the samples of a whole split")
        allowed_NF = np.stack([type_target(forgery_type) for forgery_type in fakes.values()])
        prior_F = (allowed_NF / np.maximum(allowed_NF.sum(1, keepdims=True), 1)).mean(0)
        texts: dict[tuple[TaskKind, Level], list[str]] = {}
        for sample in counted:
            if sample.task in ("toe", "age") and sample.tampered and sample.answer:
                texts.setdefault((sample.task, sample.level), []).append(sample.answer)
        return Constant(
            len(fakes) / len(faces),
            dict(zip(FORGERY_TYPES, prior_F.tolist(), strict=True)),
            {key: most_frequent_sentence(markups) for key, markups in texts.items()},
        )

    def __call__(self, items: Iterable[AskedFace], *, batch: int = BATCH) -> Iterator[Prediction]:
        """See `predict.Predictor`."""
        return (self._answer(sample) for _, samples in items for sample in samples)

    def _answer(self, sample: Sample) -> Prediction:
        if sample.task == "det":
            return Prediction(id=sample.id, fake_score=self.fake_score)
        if sample.task == "cls":
            return Prediction(id=sample.id, type_probs=self.type_probs)
        everywhere = _asked_area(sample)
        if sample.task == "loc":
            return Prediction(id=sample.id, masks=(PredictedMask(rle=everywhere),))
        text, spans = parse_markup(self.markup.get((sample.task, sample.level), ""))
        named = [PredictedMask(concept=fict.by_phrase()[span.phrase], phrase=span.phrase, rle=everywhere) for span in spans]
        masks = named or [PredictedMask(rle=everywhere)]
        return Prediction(id=sample.id, text=text, masks=tuple(masks) if sample.task == "age" else ())


def _asked_area(sample: Sample) -> Rle:
    if sample.level == "image":
        return Rle.of(oval_mask(SIDE))
    if sample.area is not None:
        return sample.area
    area_HW = np.zeros((SIDE, SIDE), bool)
    if sample.box_xyxy is not None:
        x0, y0, x1, y1 = (round(edge) for edge in sample.box_xyxy)
        area_HW[y0:y1, x0:x1] = True
    return Rle.of(area_HW)


def oracle(items: Iterable[AskedFace], *, batch: int = BATCH) -> Iterator[Prediction]:
    """Perfect answers read off the samples: what every figure must call best.

    A shuffled query is answered as if it had not been read, for the record holds no other answer: there a high figure is a bad sign.
    """
    return (_true_answer(sample) for _, samples in items for sample in samples)


def _true_answer(sample: Sample) -> Prediction:
    if sample.task == "det":
        return Prediction(id=sample.id, fake_score=float(sample.is_fake))
    if sample.task == "cls":
        allowed_F = type_target(sample.forgery_type)
        probs_F = allowed_F / allowed_F.sum() if allowed_F.any() else np.full(len(FORGERY_TYPES), 1 / len(FORGERY_TYPES))
        return Prediction(id=sample.id, type_probs=dict(zip(FORGERY_TYPES, probs_F.tolist(), strict=True)))
    text, spans = parse_markup(sample.answer)
    if sample.task == "toe":
        return Prediction(id=sample.id, text=text)
    if sample.task == "loc":
        return Prediction(id=sample.id, masks=tuple(PredictedMask(rle=mask.rle) for mask in sample.masks))
    masks = tuple(  # a fake whose mask is not known has an answer and no masks
        PredictedMask(concept=mask.concept, phrase=span.phrase, rle=mask.rle) for mask, span in zip(sample.masks, spans, strict=bool(sample.masks))
    )
    return Prediction(id=sample.id, text=text, masks=masks)


def residual_heuristic(items: Iterable[AskedFace], *, batch: int = BATCH) -> Iterator[Prediction]:
    """`det` alone, from `softness`: swaps and re-synthesis blur what the camera had resolved. It ranks faces, its values are no probabilities."""
    for crop_HWC, samples in items:
        asked = [sample for sample in samples if sample.task == "det"]
        if asked:
            score = softness(crop_HWC)
            yield from (Prediction(id=sample.id, fake_score=score) for sample in asked)


def softness(crop_HWC: ImageHWC) -> float:
    """Mid over mid plus high frequency amplitude of the inner face's luma, in [0, 1]: a logistic of minus their log ratio, with no fitted constant.

    The face is taken at 224 px under a Hann window that ends at the middle of the crop's margins, so that background counts little.
    """
    luma_HW = cv2.cvtColor(np.ascontiguousarray(fit(crop_HWC, SIDE)), cv2.COLOR_RGB2GRAY).astype(np.float64)
    window_HW = np.outer(np.hanning(SIDE), np.hanning(SIDE))
    amplitude_HW = np.abs(np.fft.fft2((luma_HW - luma_HW.mean()) * window_HW))
    frequency = np.fft.fftfreq(SIDE)
    radius_HW = np.hypot(frequency[:, None], frequency[None, :])
    mid, high = (_mean_within(amplitude_HW, radius_HW, band) for band in (MID_CYCLES, HIGH_CYCLES))
    return float(mid / (mid + high)) if mid + high > 0 else 0.5


def _mean_within(amplitude_HW: NDArray[np.float64], radius_HW: NDArray[np.float64], band: tuple[float, float]) -> float:
    return float(amplitude_HW[(radius_HW >= band[0]) & (radius_HW < band[1])].mean())
