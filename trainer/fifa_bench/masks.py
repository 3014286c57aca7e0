"""Where it was forged: overlap, boundaries and grounding, as pure functions of masks.

Masks are (H, W) bool arrays, or COCO run lengths (`Rle`), on which pycocotools computes without decoding. A metric without a value on its input
raises `UndefinedMetric`.

Shapes: H W pixels, P predicted and T true masks of one image.
"""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.optimize import linear_sum_assignment

from trainer.fifa_bench.intervals import UndefinedMetric

MaskHW = NDArray[np.bool_]
CocoRle = dict[str, Any]
"""`{"size": [H, W], "counts": bytes}`, as pycocotools takes it."""

FOUND_IOU = 0.5
"""From this IoU on a mask counts as found (AP50, recall)."""
BOUNDARY_SHARE = 0.02
"""Boundary tolerance as a share of the image diagonal: 6 px at 224 px. Boundary IoU (arXiv:2103.16562) uses the same."""
STRICT_BOUNDARY_SHARE = 0.008
"""The tolerance of DAVIS (Perazzi et al., CVPR 2016): 3 px at 224 px. Csurka et al. (BMVC 2013) use 0.75 %."""


# --- Run lengths ------------------------------------------------------------------------------------------------------------------------------


def encoded(mask_HW: MaskHW) -> CocoRle:
    """An (H, W) mask as run lengths."""
    return coco_mask.encode(np.asfortranarray(mask_HW, np.uint8))


def decoded(rle: CocoRle) -> MaskHW:
    """(H, W) bool."""
    return np.asarray(coco_mask.decode(rle)).astype(bool)


def area(rle: CocoRle) -> int:
    """Pixels."""
    return int(coco_mask.area(rle))


def intersection(a: CocoRle, b: CocoRle) -> CocoRle:
    """Pixels of both."""
    return coco_mask.merge([a, b], intersect=True)


def union(rles: Sequence[CocoRle], size: int) -> CocoRle:
    """Pixels of any; an empty (size, size) mask without masks."""
    return coco_mask.merge(list(rles)) if rles else encoded(np.zeros((size, size), bool))


def iou_matrix(predicted: Sequence[CocoRle], reference: Sequence[CocoRle]) -> NDArray[np.float64]:
    """(P, T) IoU; two empty masks give 0."""
    if not predicted or not reference:
        return np.zeros((len(predicted), len(reference)))
    return np.asarray(coco_mask.iou(list(predicted), list(reference), [0] * len(reference)), np.float64)


# --- One mask an image ------------------------------------------------------------------------------------------------------------------------


def mask_iou(predicted_HW: MaskHW, reference_HW: MaskHW) -> float:
    """Intersection over union; 1 when both masks are empty."""
    if not predicted_HW.any() and not reference_HW.any():
        return 1.0
    return float(iou_matrix([encoded(predicted_HW)], [encoded(reference_HW)])[0, 0])


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


def cumulative_iou(predicted: Sequence[CocoRle], reference: Sequence[CocoRle]) -> float:
    """cIoU: summed intersections over summed unions. Large masks weigh more, which the mean per image avoids."""
    shared, either = overlap_areas(predicted, reference)
    if not either.sum():
        raise UndefinedMetric("no masked pixel in predictions and references")
    return float(shared.sum() / either.sum())


def overlap_areas(predicted: Sequence[CocoRle], reference: Sequence[CocoRle]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixels of the intersection and of the union, image by image."""
    shared = np.array([area(intersection(p, r)) for p, r in zip(predicted, reference, strict=True)], float)
    total = np.array([area(p) + area(r) for p, r in zip(predicted, reference, strict=True)], float)
    return shared, total - shared


def boundary_f1(predicted_HW: MaskHW, reference_HW: MaskHW, share_of_diagonal: float = BOUNDARY_SHARE) -> float:
    """F1 of boundary pixels that have a pixel of the other boundary within the tolerance (Csurka et al., BMVC 2013; DAVIS).

    The tolerance is `share_of_diagonal` times the diagonal, rounded. Where a mask meets the edge of the crop it has no boundary. 1 when neither
    mask has a boundary, 0 when one has.
    """
    tolerance = max(1.0, round(share_of_diagonal * float(np.hypot(*predicted_HW.shape))))
    edges = [_boundary(mask_HW) for mask_HW in (predicted_HW, reference_HW)]
    if not edges[0].any() or not edges[1].any():
        return float(not edges[0].any() and not edges[1].any())
    far = [cv2.distanceTransform((~edge_HW).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for edge_HW in edges]
    precision, recall = (float((far[1 - side][edges[side]] <= tolerance).mean()) for side in (0, 1))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask_HW: MaskHW) -> MaskHW:
    """Masked pixels with a bare pixel among their four neighbours; pixels beyond the image count as masked."""
    padded = np.pad(mask_HW, 1, constant_values=True)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask_HW & ~inner


def oval_mask(size: int = 224) -> MaskHW:
    """The trivial answer: the inner-face oval of a x1.3 crop, whatever the image."""
    ys, xs = (np.mgrid[0:size, 0:size] + 0.5) / size
    oval: MaskHW = ((xs - 0.5) / 0.32) ** 2 + ((ys - 0.52) / 0.40) ** 2 < 1
    return oval


# --- Several masks an image -------------------------------------------------------------------------------------------------------------------


def hungarian_iou(iou_PT: NDArray[np.float64]) -> float:
    """Best one-to-one IoU sum of one image over the larger mask count; an image without any mask raises UndefinedMetric."""
    if not max(iou_PT.shape):
        raise UndefinedMetric("the image has neither a predicted nor a reference mask")
    rows, columns = linear_sum_assignment(iou_PT, maximize=True)
    return float(iou_PT[rows, columns].sum() / max(iou_PT.shape))


def legacy_iou(iou_PT: NDArray[np.float64]) -> float:
    """GLaMM's value of one image: greedy pairs, mean over those that overlap, 0 without one (eval/gcg/evaluate.py, mbzuai-oryx/groundingLMM)."""
    paired, left_PT = [], iou_PT
    while left_PT.size and left_PT.max() > 0:
        row, column = np.unravel_index(left_PT.argmax(), left_PT.shape)
        paired.append(left_PT[row, column])
        left_PT = np.delete(np.delete(left_PT, row, 0), column, 1)
    return float(np.mean(paired)) if paired else 0.0


def hungarian_miou(predicted: Sequence[Sequence[MaskHW]], reference: Sequence[Sequence[MaskHW]]) -> float:
    """Mean over images of the best one-to-one IoU sum divided by the larger mask count: every mask without a partner counts 0.

    Images with neither predicted nor reference masks are left out.
    """
    values = [hungarian_iou(iou_PT) for iou_PT in _matrices(predicted, reference) if max(iou_PT.shape)]
    if not values:
        raise UndefinedMetric("no image has a predicted or a reference mask")
    return float(np.mean(values))


def legacy_miou(predicted: Sequence[Sequence[MaskHW]], reference: Sequence[Sequence[MaskHW]]) -> float:
    """GLaMM's mIoU (arXiv:2311.03356, evaluation code): greedy pairs, mean over pairs that overlap; missed and spurious masks cost nothing."""
    if not predicted:
        raise UndefinedMetric("no images")
    return float(np.mean([legacy_iou(iou_PT) for iou_PT in _matrices(predicted, reference)]))


def _matrices(predicted: Sequence[Sequence[MaskHW]], reference: Sequence[Sequence[MaskHW]]) -> list[NDArray[np.float64]]:
    return [iou_matrix([encoded(m) for m in found], [encoded(m) for m in wanted]) for found, wanted in zip(predicted, reference, strict=True)]


def num_found(iou_PT: NDArray[np.float64], phrase_fits_PT: NDArray[np.bool_]) -> int:
    """True masks found: the largest one-to-one matching of pairs with IoU >= 0.5 whose phrase fits."""
    fits_PT = (iou_PT >= FOUND_IOU) & phrase_fits_PT
    rows, columns = linear_sum_assignment(fits_PT, maximize=True)
    return int(fits_PT[rows, columns].sum())


class Ranked(NamedTuple):
    """A predicted mask and how sure the system is of it."""

    rle: CocoRle
    confidence: float


def ap50(predicted: Sequence[Sequence[Ranked]], reference: Sequence[Sequence[CocoRle]]) -> float:
    """COCO's average precision at IoU 0.5 over all masks as one class, ranked by confidence; at most 100 masks an image. Run by COCOeval.

    Images without a reference mask take part: what is predicted there is a false positive. Raises UndefinedMetric without any reference.
    """
    if not any(reference):
        raise UndefinedMetric("no reference mask")
    truth, found = COCO(), COCO()
    images = [{"id": index, "height": 0, "width": 0} for index in range(1, len(reference) + 1)]
    wanted = [(index, rle, 1.0) for index, rles in enumerate(reference, 1) for rle in rles]
    answered = [(index, ranked.rle, ranked.confidence) for index, masks in enumerate(predicted, 1) for ranked in masks]
    with redirect_stdout(io.StringIO()):
        for coco, masks in ((truth, wanted), (found, answered)):
            coco.dataset = {"images": images, "categories": [{"id": 1}], "annotations": [_annotation(n, *mask) for n, mask in enumerate(masks, 1)]}
            coco.createIndex()
        run = COCOeval(truth, found, "segm")
        run.params.iouThrs, run.params.maxDets = np.array([FOUND_IOU]), [100]
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.evaluate()
        run.accumulate()
    precision = run.eval["precision"]
    return float(precision[precision > -1].mean())


def _annotation(number: int, image: int, rle: CocoRle, confidence: float) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": 1, "segmentation": rle, "area": area(rle), "iscrowd": 0, "score": confidence}
