"""Every figure the project reports, as pure functions of arrays, masks, texts and concept sets.

Scores run from 0 (real) to 1 (fake), labels are 1 for fake. Curves come from scikit-learn, mask overlap from pycocotools, text metrics from
pycocoevalcap (METEOR 1.5 and the PTB tokenizer are Java programs). A metric without a value on its input raises `UndefinedMetric`.

Shapes: N faces, F forgery types, H W pixels.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from shutil import which
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment, minimize
from scipy.special import expit
from sklearn import metrics as sk

from engines import fict

Scores = NDArray[np.float64]
Labels = NDArray[np.bool_]
MaskHW = NDArray[np.bool_]

ECE_BINS = 15


class UndefinedMetric(ValueError):
    """The metric has no value on this input; the message names what is missing."""


# --- Detection --------------------------------------------------------------------------------------------------------------------------------


def _both_classes(is_fake_N: Labels) -> None:
    if is_fake_N.all() or not is_fake_N.any():
        raise UndefinedMetric(f"{is_fake_N.size} faces of one class only; detection metrics need real and fake faces")


def auc(is_fake_N: Labels, score_N: Scores) -> float:
    """Area under the ROC curve; ties count half."""
    _both_classes(is_fake_N)
    return float(sk.roc_auc_score(is_fake_N, score_N))


def average_precision(is_fake_N: Labels, score_N: Scores) -> float:
    """Area under the precision-recall curve as a sum of steps, fake being the positive class."""
    _both_classes(is_fake_N)
    return float(sk.average_precision_score(is_fake_N, score_N))


def eer(is_fake_N: Labels, score_N: Scores) -> float:
    """Equal error rate: where the ROC curve, linear between its points, meets false positives = misses."""
    _both_classes(is_fake_N)
    fpr, tpr, _ = sk.roc_curve(is_fake_N, score_N, drop_intermediate=False)
    return float(np.interp(0.0, fpr + tpr - 1, fpr))  # strictly increasing: each threshold adds at least one face


def tpr_at_fpr(is_fake_N: Labels, score_N: Scores, fpr_target: float) -> float:
    """Share of fakes found by the best cut that flags at most `fpr_target` of the reals."""
    _both_classes(is_fake_N)
    fpr, tpr, _ = sk.roc_curve(is_fake_N, score_N, drop_intermediate=False)
    return float(tpr[fpr <= fpr_target].max())


def balanced_accuracy(is_fake_N: Labels, score_N: Scores, fake_at: float) -> float:
    """Mean of the two classes' accuracies when a face is called fake at or above `fake_at`."""
    _both_classes(is_fake_N)
    return float(sk.balanced_accuracy_score(is_fake_N, score_N >= fake_at))


def fake_cut(is_fake_N: Labels, score_N: Scores, fpr_target: float) -> float:
    """Smallest cut with at most `fpr_target` of the reals at or above it, in the middle of the gap to the next higher score."""
    _both_classes(is_fake_N)
    real_desc = np.sort(score_N[~is_fake_N])[::-1]
    num_allowed = int(np.floor(fpr_target * real_desc.size + 1e-9))
    if num_allowed >= real_desc.size:
        return float(score_N.min())
    return _just_above(score_N, real_desc[num_allowed])


def real_cut(is_fake_N: Labels, score_N: Scores, miss_target: float) -> float:
    """Largest cut with at most `miss_target` of the fakes below it: faces below are called real."""
    _both_classes(is_fake_N)
    fake_asc = np.sort(score_N[is_fake_N])
    num_allowed = int(np.floor(miss_target * fake_asc.size + 1e-9))
    return float(fake_asc[min(num_allowed, fake_asc.size - 1)])


def _just_above(score_N: Scores, value: float) -> float:
    higher = score_N[score_N > value]
    return float((value + higher.min()) / 2) if higher.size else float(np.nextafter(value, np.inf))


# --- Calibration ------------------------------------------------------------------------------------------------------------------------------


def ece(is_fake_N: Labels, probability_N: Scores, bins: int = ECE_BINS) -> float:
    """Expected calibration error over equal-mass bins; equal probabilities share a bin."""
    if is_fake_N.size == 0:
        raise UndefinedMetric("no faces; calibration error needs at least one")
    edges = np.quantile(probability_N, np.linspace(0, 1, bins + 1)[1:-1])
    bin_N = np.searchsorted(edges, probability_N, side="right")
    gap = np.bincount(bin_N, weights=probability_N, minlength=bins) - np.bincount(bin_N, weights=is_fake_N, minlength=bins)
    return float(np.abs(gap).sum() / is_fake_N.size)


def brier(is_fake_N: Labels, probability_N: Scores) -> float:
    """Mean squared difference between probability and outcome."""
    if is_fake_N.size == 0:
        raise UndefinedMetric("no faces; the Brier score needs at least one")
    return float(np.mean((probability_N - is_fake_N) ** 2))


class LogitMap(NamedTuple):
    """probability = sigmoid(logit * scale + bias)."""

    scale: float
    bias: float

    def probability(self, logit_N: Scores) -> Scores:
        """Calibrated probabilities in [0, 1]."""
        return np.asarray(expit(np.asarray(logit_N, np.float64) * self.scale + self.bias))


def fit_platt(is_fake_N: Labels, logit_N: Scores) -> LogitMap:
    """Scale and bias of least cross entropy against Platt's smoothed targets, which keep separable data finite (Platt 1999, Sec. 2.2)."""
    return _fit(is_fake_N, logit_N, with_bias=True)


def fit_temperature(is_fake_N: Labels, logit_N: Scores) -> LogitMap:
    """Scale alone (temperature = 1 / scale), bias 0; same targets as `fit_platt`."""
    return _fit(is_fake_N, logit_N, with_bias=False)


def _fit(is_fake_N: Labels, logit_N: Scores, *, with_bias: bool) -> LogitMap:
    _both_classes(is_fake_N)
    num_fake = int(is_fake_N.sum())
    num_real = is_fake_N.size - num_fake
    target_N = np.where(is_fake_N, (num_fake + 1) / (num_fake + 2), 1 / (num_real + 2))
    logit_N = np.asarray(logit_N, np.float64)

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scale, bias = float(np.exp(parameters[0])), float(parameters[1]) if with_bias else 0.0
        x_N = logit_N * scale + bias
        residual_N = expit(x_N) - target_N
        gradient = [float(np.mean(residual_N * logit_N)) * scale, float(residual_N.mean())]
        return float(np.mean(np.logaddexp(0, x_N) - target_N * x_N)), np.array(gradient[: parameters.size])

    found = minimize(loss, np.zeros(2 if with_bias else 1), jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-10})
    return LogitMap(float(np.exp(found.x[0])), float(found.x[1]) if with_bias else 0.0)


# --- Intervals --------------------------------------------------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """Bounds of a percentile interval."""

    low: float
    high: float


def bootstrap_interval(
    metric: Callable[[NDArray[np.intp]], float], unit_N: Sequence[str], *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Percentile interval of `metric(rows)` when whole units (identities) are drawn with replacement, all rows of a unit together.

    Resamples on which the metric is undefined are drawn again, at most `resamples` times in all. Raises UndefinedMetric beyond that.
    """
    names, unit_index_N = np.unique(np.asarray(unit_N), return_inverse=True)
    if names.size == 0:
        raise UndefinedMetric("no rows to resample")
    rows_of_unit = np.split(np.argsort(unit_index_N, kind="stable"), np.cumsum(np.bincount(unit_index_N))[:-1])
    rng = np.random.default_rng(seed)
    values: list[float] = []
    for _ in range(2 * resamples):
        drawn = rng.integers(names.size, size=names.size)
        try:
            values.append(metric(np.concatenate([rows_of_unit[unit] for unit in drawn])))
        except UndefinedMetric:
            continue
        if len(values) == resamples:
            low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
            return Interval(float(low), float(high))
    raise UndefinedMetric(
        f"the metric is undefined on {2 * resamples - len(values)} of {2 * resamples} resamples of {names.size} units; take more units"
    )


# --- Forgery type -----------------------------------------------------------------------------------------------------------------------------


def type_macro_f1(type_prob_NF: NDArray[np.float64], allowed_NF: NDArray[np.bool_]) -> float:
    """Macro F1 of the forgery type over fakes, where a label may allow several types (a swap of unnamed method allows two).

    Types that some label allows together are one class, predicted with the sum of their probabilities; classes that no label names are left out.
    """
    if allowed_NF.size == 0 or not allowed_NF.any(1).all():
        raise UndefinedMetric("every row must be a fake with at least one allowed type; leave real faces out")
    class_of_type = np.arange(allowed_NF.shape[1])
    for allowed_F in np.unique(allowed_NF, axis=0).astype(bool):
        together = np.isin(class_of_type, class_of_type[allowed_F])
        class_of_type[together] = class_of_type[together].min()
    class_prob_NF = np.stack([type_prob_NF[:, class_of_type == c].sum(1) for c in range(class_of_type.size)], 1)
    true_N = class_of_type[allowed_NF.argmax(1)]
    return float(sk.f1_score(true_N, class_prob_NF.argmax(1), labels=np.unique(true_N), average="macro", zero_division=0.0))


# --- Masks ------------------------------------------------------------------------------------------------------------------------------------


def _iou_matrix(predicted: Sequence[MaskHW], reference: Sequence[MaskHW]) -> NDArray[np.float64]:
    """IoU of every predicted (row) with every reference mask (column); two empty masks give 0."""
    if not predicted or not reference:
        return np.zeros((len(predicted), len(reference)))
    rows, columns = ([coco_mask.encode(np.asfortranarray(mask_HW, np.uint8)) for mask_HW in masks] for masks in (predicted, reference))
    return np.asarray(coco_mask.iou(rows, columns, [0] * len(columns)), np.float64)


def mask_iou(predicted_HW: MaskHW, reference_HW: MaskHW) -> float:
    """Intersection over union; 1 when both masks are empty."""
    if not predicted_HW.any() and not reference_HW.any():
        return 1.0
    return float(_iou_matrix([predicted_HW], [reference_HW])[0, 0])


def honest_miou(predicted: Sequence[MaskHW], reference: Sequence[MaskHW]) -> float:
    """Mean IoU over images whose reference is not empty; an image without a predicted pixel counts 0."""
    values = [mask_iou(p_HW, r_HW) for p_HW, r_HW in zip(predicted, reference, strict=True) if r_HW.any()]
    if not values:
        raise UndefinedMetric("no image has a reference mask; report false_area for reals instead")
    return float(np.mean(values))


def false_area(predicted_on_reals: Sequence[MaskHW]) -> float:
    """Mean share of the image that is masked on untouched faces."""
    if not predicted_on_reals:
        raise UndefinedMetric("no real faces")
    return float(np.mean([mask_HW.mean() for mask_HW in predicted_on_reals]))


def hungarian_miou(predicted: Sequence[Sequence[MaskHW]], reference: Sequence[Sequence[MaskHW]]) -> float:
    """Mean over images of the best one-to-one IoU sum divided by the larger mask count: every mask without a partner counts 0.

    Images with neither predicted nor reference masks are left out.
    """
    values = []
    for masks, targets in zip(predicted, reference, strict=True):
        if masks or targets:
            iou = _iou_matrix(masks, targets)
            rows, columns = linear_sum_assignment(iou, maximize=True)
            values.append(iou[rows, columns].sum() / max(len(masks), len(targets)))
    if not values:
        raise UndefinedMetric("no image has a predicted or a reference mask")
    return float(np.mean(values))


def legacy_miou(predicted: Sequence[Sequence[MaskHW]], reference: Sequence[Sequence[MaskHW]]) -> float:
    """GLaMM's mIoU (arXiv:2311.03356, evaluation code): greedy pairs, mean over pairs that overlap; missed and spurious masks cost nothing."""
    if not predicted:
        raise UndefinedMetric("no images")
    values = []
    for masks, targets in zip(predicted, reference, strict=True):
        iou, paired = _iou_matrix(masks, targets), []
        while iou.size and iou.max() > 0:
            row, column = np.unravel_index(iou.argmax(), iou.shape)
            paired.append(iou[row, column])
            iou = np.delete(np.delete(iou, row, 0), column, 1)
        values.append(np.mean(paired) if paired else 0.0)
    return float(np.mean(values))


# --- Text -------------------------------------------------------------------------------------------------------------------------------------


class TextScores(NamedTuple):
    """Corpus scores against references: METEOR and ROUGE-L in [0, 1] (papers print them times 100), CIDEr in [0, 10]."""

    meteor: float
    cider: float
    rouge_l: float


def text_scores(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> TextScores:
    """METEOR 1.5, CIDEr and ROUGE-L after PTB tokenization, as COCO caption evaluation computes them.

    CIDEr weighs n-grams by their rarity among the references, so it is 0 on a single text. Starts two Java processes. Raises FileNotFoundError
    without Java.
    """
    if not predicted:
        raise UndefinedMetric("no texts")
    if which("java") is None:
        raise FileNotFoundError("METEOR and the PTB tokenizer need Java, which is not on the PATH; install a Java runtime, version 8 or newer")
    tokenize = PTBTokenizer().tokenize
    said = tokenize({index: [{"caption": text or "."}] for index, text in enumerate(predicted)})
    wanted = tokenize({index: [{"caption": text} for text in texts] for index, texts in enumerate(references)})
    with _meteor() as scorer:
        meteor, _ = scorer.compute_score(wanted, said)
    cider, _ = Cider().compute_score(wanted, said)
    rouge_l, _ = Rouge().compute_score(wanted, said)
    return TextScores(float(meteor), float(cider), float(rouge_l))


@contextmanager
def _meteor() -> Iterator[Meteor]:
    """METEOR's Java process, ended and reaped with its pipes closed. Its own finalizer leaves two pipes open and waits for a lock it may hold."""
    scorer = Meteor()
    try:
        yield scorer
    finally:
        scorer.meteor_p.kill()
        scorer.meteor_p.communicate()
        if scorer.lock.locked():
            scorer.lock.release()


def words(text: str) -> list[str]:
    """Lower-case words; punctuation dropped."""
    return re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", text.lower())


def self_bleu_4(texts: Sequence[str], *, limit: int = 200, seed: int = 0) -> float:
    """Mean sentence BLEU-4 of each text against all others (arXiv:1802.01886): 1 = all alike. Beyond `limit` texts, a seeded draw of them."""
    chosen = [" ".join(words(text)) for text in sorted(texts)]
    if len(chosen) < 2:
        raise UndefinedMetric("self-BLEU compares texts; at least two are needed")
    if len(chosen) > limit:
        chosen = random.Random(seed).sample(chosen, limit)
    scorer = BleuScorer(n=4)
    for index, text in enumerate(chosen):
        scorer += (text, chosen[:index] + chosen[index + 1 :])
    _, by_order = scorer.compute_score(option="closest")
    return float(np.mean(by_order[3]))


def distinct_2(texts: Sequence[str]) -> float:
    """Distinct bigrams over all bigrams of the corpus (arXiv:1510.03055); 0 when no text has two words."""
    bigrams = [bigram for text in texts for tokens in (words(text),) for bigram in pairwise(tokens)]
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def most_frequent_sentence(texts: Sequence[str]) -> str:
    """The sentence most texts contain, first in the alphabet among equals: the answer of a system that never looks."""
    counts = Counter(sentence for text in texts for sentence in set(re.split(r"(?<=[.!?])\s+", text.strip())) if sentence)
    if not counts:
        raise UndefinedMetric("no sentences")
    return min(counts, key=lambda sentence: (-counts[sentence], sentence))


# --- Concepts named against concepts true -----------------------------------------------------------------------------------------------------


def _atoms(concept_ids: frozenset[str]) -> set[str]:
    return {atom for concept_id in concept_ids for atom in fict.concepts()[concept_id].atoms}


def _share_without(concepts: Sequence[frozenset[str]], others: Sequence[frozenset[str]]) -> float:
    """Share of all concepts of the first that share no atom with the second, image by image; 0 when there are none."""
    total = unmet = 0
    for ids, other_ids in zip(concepts, others, strict=True):
        other_atoms = _atoms(other_ids)
        total += len(ids)
        unmet += sum(other_atoms.isdisjoint(fict.concepts()[concept_id].atoms) for concept_id in ids)
    return unmet / total if total else 0.0


def hallucination_rate(named: Sequence[frozenset[str]], true: Sequence[frozenset[str]]) -> float:
    """Named FICT concepts none of whose atoms has a true artifact / all named; 0 when nothing is named, which `omission_rate` then shows."""
    return _share_without(named, true)


def omission_rate(named: Sequence[frozenset[str]], true: Sequence[frozenset[str]]) -> float:
    """True FICT concepts none of whose atoms is named / all true ones."""
    return _share_without(true, named)


def mention_rate(named_on_clean: Sequence[frozenset[str]]) -> float:
    """Share of untouched faces on which any concept is named."""
    if not named_on_clean:
        raise UndefinedMetric("no clean images")
    return sum(bool(ids) for ids in named_on_clean) / len(named_on_clean)
