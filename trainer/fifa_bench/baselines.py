"""Systems that need no engine, with the signature of a predictor: what a figure is worth beside an answer that never looks, and beside a perfect one.

`Constant` gives one answer to everybody, `oracle` reads the answer off the sample, `residual_heuristic` looks at the spectrum and learns nothing.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from engines import fict
from engines.contracts import FORGERY_TYPES
from engines.prompts import parse_markup
from trainer.faces import ImageHWC, fit, type_target
from trainer.fifa_bench.masks import CocoRle, decoded, encoded, iou_matrix, oval_mask
from trainer.fifa_bench.pairing import Item
from trainer.fifa_bench.predict import BATCH, AskedFace
from trainer.fifa_bench.text import words
from trainer.samples import SIDE, Level, PredictedMask, Prediction, Rle, Sample

LEVELS: tuple[Level, ...] = ("image", "region", "box")
CUTS = tuple(range(5, 100, 5))
"""Where a mean mask is tried to be cut, in percent of the masks that hold a pixel."""
CANDIDATES = 200
"""At most this many answers are tried as everybody's; each is compared with all."""

MID_CYCLES = (1 / 16, 1 / 4)
HIGH_CYCLES = (1 / 4, 1 / 2)
"""Bands of spatial frequency in cycles a pixel at 224 px; below the middle one lie shading and the face's own shape."""


@dataclass(frozen=True)
class Constant:
    """The same answer for every face, the best that counting finds: prior score, prior types, one mask, and one whole explanation with its masks.

    Of a region or box it marks the whole asked area, whatever its explanation names.
    """

    fake_score: float
    type_probs: dict[str, float]
    told: dict[Level, str]
    """What `toe` and `age` are answered at each level, with markup."""
    located: Rle = field(default_factory=lambda: _oval())
    """Whole-face `loc`; a face oval where no true mask is known."""
    shown: dict[str, Rle] = field(default_factory=dict)
    """Whole-face `age`: the mask of a named concept; `located` for others."""

    @staticmethod
    def of(samples: Iterable[Sample]) -> "Constant":
        """Learn from samples: those of the training part, or those it will be scored on, which favours this baseline; probes are passed over.

        Texts are medoids of the answers about tampered areas, masks are mean true masks (`best_cut`). Both are the annotator's, of samples whose mask
        is known: the frozen reference is answered with the same mask. The order of samples is irrelevant. Raises ValueError without fakes.
        """
        counted = sorted((sample for sample in samples if sample.probe is None), key=lambda sample: sample.id)  # sums of floats have an order
        fakes = {(s.dataset, s.name): s.forgery_type for s in counted if s.is_fake}
        faces = {(s.dataset, s.name) for s in counted}
        if not fakes:
            raise ValueError("the constant baseline counts fakes and there are none; give it the samples of a whole split")
        allowed_NF = np.stack([type_target(forgery_type) for forgery_type in fakes.values()])
        prior_F = (allowed_NF / np.maximum(allowed_NF.sum(1, keepdims=True), 1)).mean(0)
        tampered = [sample for sample in counted if sample.tampered and sample.mask_known]
        told = {level: medoid(answers) for level in LEVELS if (answers := _answers(tampered, level))}
        true = [Item(sample, None) for sample in tampered if sample.level == "image"]
        wholes = [item.true_mask for item in true if item.sample.task == "loc" and item.truths]
        parts = {fict.by_phrase()[span.phrase]: list[CocoRle]() for span in parse_markup(told.get("image", ""))[1]}
        for concept, rle in (truth for item in true if item.sample.task == "age" for truth in item.truths):
            if concept in parts:
                parts[concept].append(rle)
        return Constant(
            len(fakes) / len(faces),
            dict(zip(FORGERY_TYPES, prior_F.tolist(), strict=True)),
            told,
            best_cut(wholes) if wholes else _oval(),
            {concept: best_cut(rles) for concept, rles in parts.items() if rles},
        )

    def __call__(self, items: Iterable[AskedFace], *, batch: int = BATCH) -> Iterator[Prediction]:
        """See `predict.Predictor`."""
        return (self._answer(sample) for _, samples in items for sample in samples)

    def _answer(self, sample: Sample) -> Prediction:
        if sample.task == "det":
            return Prediction(id=sample.id, fake_score=self.fake_score)
        if sample.task == "cls":
            return Prediction(id=sample.id, type_probs=self.type_probs)
        whole = self.located if sample.level == "image" else _asked_area(sample)
        if sample.task == "loc":
            return Prediction(id=sample.id, masks=(PredictedMask(rle=whole),))
        text, spans = parse_markup(self.told.get(sample.level, ""))
        if sample.task == "toe":
            return Prediction(id=sample.id, text=text)
        shown = self.shown if sample.level == "image" else {}
        named = [(fict.by_phrase()[span.phrase], span.phrase) for span in spans]
        masks = [PredictedMask(concept=concept, phrase=phrase, rle=shown.get(concept, whole)) for concept, phrase in named]
        return Prediction(id=sample.id, text=text, masks=tuple(masks or [PredictedMask(rle=whole)]))


def _oval() -> Rle:
    return Rle.of(oval_mask(SIDE))


def _answers(tampered: Sequence[Sample], level: Level) -> list[str]:
    """The marked answers of `age`, or those of `toe` where there are none."""
    of_task = ([s.answer for s in tampered if s.task == task and s.level == level and s.answer] for task in ("age", "toe"))
    return next((answers for answers in of_task if answers), [])


def best_cut(masks: Sequence[CocoRle]) -> Rle:
    """The pixels that a share of the masks holds, the share being that of `CUTS` with the best mean IoU over all the masks; the lowest among equals.

    Takes at least one mask of (SIDE, SIDE), none of them empty. Masks are summed one by one, so that thousands fit into memory.
    """
    held_HW = np.zeros((SIDE, SIDE), np.int64)
    for mask in masks:
        held_HW += decoded(mask)
    tried = [encoded(held_HW * 100 >= cut * len(masks)) for cut in CUTS]
    return Rle(counts=tried[int(iou_matrix(tried, masks).mean(1).argmax())]["counts"].decode("ascii"))


def medoid(answers: Iterable[str]) -> str:
    """The marked answer most like all of them: by mean unigram F1 of lower-case words without markup, each occurrence of a word counted.

    One without a phrase is taken only if none has one; among equals the most frequent, then the first in the alphabet. At most `CANDIDATES` distinct
    answers are tried: the repeated ones, and an even draw through the alphabet of the others. The order of answers is irrelevant. Raises ValueError
    without answers and for markup that does not close.
    """
    times = Counter(answers)
    bags = {answer: Counter(words(parse_markup(answer)[0])) for answer in sorted(times)}
    marked = [answer for answer in bags if parse_markup(answer)[1]] or list(bags)
    return max(_candidates(marked, times), key=lambda tried: sum(times[answer] * unigram_f1(bags[tried], bag) for answer, bag in bags.items()))


def _candidates(marked: Sequence[str], times: Counter[str]) -> list[str]:
    """Out of answers in alphabetical order."""
    ordered = sorted(marked, key=lambda answer: -times[answer])
    repeated = [answer for answer in ordered if times[answer] > 1][:CANDIDATES]
    others = ordered[len(repeated) :]
    room = min(CANDIDATES - len(repeated), len(others))
    return repeated + [others[place * len(others) // room] for place in range(room)]


def unigram_f1(said: Counter[str], wanted: Counter[str]) -> float:
    """F1 of two multisets of words; 0 without any word."""
    return 2 * (said & wanted).total() / max(said.total() + wanted.total(), 1)


def _asked_area(sample: Sample) -> Rle:
    """Of a region or box query."""
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
