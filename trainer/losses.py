"""Losses as pure functions of tensors. Shapes as in `model`."""

import torch
import torch.nn.functional as F
from torch import Tensor


def detection_loss(det_logit_B: Tensor, is_fake_B: Tensor, smoothing: float) -> Tensor:
    """Binary cross entropy with labels `smoothing` and 1 - `smoothing`."""
    return F.binary_cross_entropy_with_logits(det_logit_B, is_fake_B * (1 - 2 * smoothing) + smoothing)


def patch_loss(artifact_logits_BT: Tensor, target_BT: Tensor, weight_BT: Tensor) -> Tensor:
    """Binary cross entropy per patch, weighted mean: patches of which nothing is known are left out."""
    per_patch_BT = F.binary_cross_entropy_with_logits(artifact_logits_BT, target_BT, reduction="none")
    return (per_patch_BT * weight_BT).sum() / weight_BT.sum().clamp(min=1.0)


def type_loss(type_logits_BF: Tensor, allowed_BF: Tensor) -> Tensor:
    """Negative log of the probability mass on the allowed types, over fakes: a swap of unnamed method trains a sum."""
    is_fake_B = allowed_BF.sum(1) > 0
    log_mass_B = torch.logsumexp(type_logits_BF.log_softmax(1) + (allowed_BF + 1e-9).log(), 1)
    return -(log_mass_B * is_fake_B).sum() / is_fake_B.sum().clamp(min=1)


def mask_loss(mask_logits_MHW: Tensor, target_MHW: Tensor, weight_M: Tensor, *, bce_weight: float, dice_weight: float) -> Tensor:
    """Weighted BCE + Dice of masks, mean over the masks that count."""
    bce_M = F.binary_cross_entropy_with_logits(mask_logits_MHW, target_MHW, reduction="none").mean((1, 2))
    probability = mask_logits_MHW.sigmoid()
    overlap_M = (probability * target_MHW).sum((1, 2))
    dice_M = 1 - (2 * overlap_M + 1) / (probability.sum((1, 2)) + target_MHW.sum((1, 2)) + 1)
    return ((bce_weight * bce_M + dice_weight * dice_M) * weight_M).sum() / weight_M.sum().clamp(min=1.0)


def confidence_loss(iou_logit_M: Tensor, mask_logits_MHW: Tensor, target_MHW: Tensor, weight_M: Tensor) -> Tensor:
    """Teach the predicted IoU the IoU that the mask has (SAM's IoU head, on logits)."""
    predicted, wanted = mask_logits_MHW.detach() > 0, target_MHW > 0.5
    union_M = (predicted | wanted).sum((1, 2)).clamp(min=1)
    iou_M = (predicted & wanted).sum((1, 2)) / union_M
    per_mask_M = F.binary_cross_entropy_with_logits(iou_logit_M, iou_M, reduction="none")
    return (per_mask_M * weight_M).sum() / weight_M.sum().clamp(min=1.0)


def text_loss(logits_BLV: Tensor, target_BL: Tensor) -> Tensor:
    """Token cross entropy; target -100 is left out."""
    return F.cross_entropy(logits_BLV.flatten(0, 1).float(), target_BL.flatten(), ignore_index=-100)
