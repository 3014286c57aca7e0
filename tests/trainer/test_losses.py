"""Losses against numbers worked out by hand."""

import math

import pytest
import torch
from torch import tensor

from trainer.losses import confidence_loss, detection_loss, mask_loss, patch_loss, text_loss, type_loss

LOG3 = math.log(3)


def test_detection_loss_is_smoothed_cross_entropy() -> None:
    # p(fake) = 3/4 for a fake, 1/2 for a real
    loss = detection_loss(tensor([LOG3, 0.0]), tensor([1.0, 0.0]), 0.1)
    fake = -(0.9 * math.log(0.75) + 0.1 * math.log(0.25))
    assert loss.item() == pytest.approx((fake + math.log(2)) / 2, rel=1e-6)


def test_patch_loss_leaves_patches_out_of_which_nothing_is_known() -> None:
    logits, target = tensor([[LOG3, -LOG3], [9.0, LOG3]]), tensor([[1.0, 0.0], [0.0, 1.0]])
    assert patch_loss(logits, target, tensor([[1.0, 1.0], [0.0, 1.0]])).item() == pytest.approx(-math.log(0.75), rel=1e-6)
    assert patch_loss(logits, target, torch.zeros(2, 2)).item() == 0.0


def test_patch_loss_is_a_mean_by_weight() -> None:
    logits, target = tensor([[LOG3, 0.0]]), tensor([[1.0, 1.0]])
    assert patch_loss(logits, target, tensor([[3.0, 1.0]])).item() == pytest.approx((-3 * math.log(0.75) + math.log(2)) / 4, rel=1e-6)


def test_type_loss_is_the_mass_on_the_allowed_types() -> None:
    logits = tensor([1.0, 3.0, 4.0, 2.0]).log()[None]
    assert type_loss(logits, tensor([[1.0, 1, 0, 0]])).item() == pytest.approx(-math.log(0.4), rel=1e-6)
    assert type_loss(logits, tensor([[0.0, 0, 1, 0]])).item() == pytest.approx(-math.log(0.4), rel=1e-6)
    assert type_loss(logits, tensor([[1.0, 1, 1, 1]])).item() == pytest.approx(0.0, abs=1e-6)


def test_type_loss_of_a_sum_does_not_say_which_member() -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    type_loss(logits, tensor([[1.0, 1, 0, 0]])).backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-0.25, -0.25, 0.25, 0.25])


def test_type_loss_is_over_fakes_alone() -> None:
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    fake = tensor([0.0, 1, 0, 0])
    both = type_loss(logits, torch.stack([fake, torch.zeros(4)]))
    assert both.item() == pytest.approx(type_loss(logits[:1], fake[None]).item(), rel=1e-6)
    assert type_loss(logits, torch.zeros(2, 4)).item() == 0.0


def test_mask_loss_is_bce_plus_dice_over_the_masks_that_count() -> None:
    logits = torch.stack([torch.full((2, 2), LOG3), torch.full((2, 2), 50.0)])
    target = torch.stack([tensor([[1.0, 1], [0, 0]]), torch.zeros(2, 2)])
    bce = -(math.log(0.75) + math.log(0.25)) / 2
    dice = 1 - (2 * 1.5 + 1) / (3 + 2 + 1)
    loss = mask_loss(logits, target, tensor([1.0, 0.0]), bce_weight=2.0, dice_weight=0.5)
    assert loss.item() == pytest.approx(2 * bce + 0.5 * dice, rel=1e-6)


def test_no_masks_cost_nothing() -> None:
    empty = torch.zeros(0, 2, 2)
    assert mask_loss(empty, empty, torch.zeros(0), bce_weight=2.0, dice_weight=0.5).item() == 0.0
    assert confidence_loss(torch.zeros(0), empty, empty, torch.zeros(0)).item() == 0.0


def test_confidence_learns_the_iou_that_the_mask_has() -> None:
    logits, target = tensor([[[1.0, 1], [1, -1]]]), tensor([[[1.0, 0.2], [0, 0.9]]])  # 1 of 4 in common
    per_mask = -(0.25 * math.log(0.75) + 0.75 * math.log(0.25))
    assert confidence_loss(tensor([LOG3]), logits, target, tensor([1.0])).item() == pytest.approx(per_mask, rel=1e-6)


def test_text_loss_skips_what_is_not_answer() -> None:
    logits = tensor([[[LOG3, 0.0], [50.0, -50.0]]])
    assert text_loss(logits, tensor([[0, -100]])).item() == pytest.approx(-math.log(0.75), rel=1e-6)
