"""A detector that takes sharpness for truth is found out, one that looks at evidence is not; and what that costs is bounded."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from trainer.fifa_bench.shortcut import CALIPER, DRAWN, SHORTCUT_GROUPS, JudgedFace, matched_pairs, sharpened, sharpness, shortcut_table

SIDE = 224


def picture(seed: int, grain: float, *, fake: bool) -> np.ndarray:
    """Grey with grain; a fake has a red patch."""
    rng = np.random.default_rng(seed)
    image = np.full((SIDE, SIDE, 3), 120.0) + rng.normal(0, grain, (SIDE, SIDE, 1))
    image[24:40, 24:40, 0] += 40 * fake
    return np.clip(image, 0, 255).astype(np.uint8)


def softness(crops_BHWC: np.ndarray) -> np.ndarray:
    """Soft is fake."""
    return np.array([1 / (1 + sharpness(crop)) for crop in crops_BHWC])


def redness(crops_BHWC: np.ndarray) -> np.ndarray:
    """Red is fake, however sharp."""
    return crops_BHWC[:, 24:40, 24:40, 0].mean((1, 2)) / 255


def judged(score: Callable[[np.ndarray], np.ndarray], count: int = 60, groups: tuple[str, ...] = ("dfdc",)) -> list[JudgedFace]:
    """As many reals as fakes: the grain of reals runs from 4 to 14, that of fakes from 2 to 10."""
    rng = np.random.default_rng(7)
    faces = []
    for number in range(count):
        for fake in (False, True):
            crop = picture(number, rng.uniform(2, 10) if fake else rng.uniform(4, 14), fake=fake)
            faces.append(JudgedFace(crop, fake, f"unit {number // 2}", groups, float(score(crop[None])[0])))
    return faces


def test_a_detector_of_sharpness_falls_to_chance_where_sharpness_is_matched_and_below_where_it_is_swapped() -> None:
    row = shortcut_table(softness, judged(softness), size=SIDE)["dfdc"]
    assert row["auc"] == row["auc_of_softness"] > 0.7
    assert row["pairs"] >= 20 and row["auc_matched"] == row["auc_of_softness_matched"] == pytest.approx(0.5, abs=0.03)
    assert row["loss_matched"] == pytest.approx(row["auc"] - row["auc_matched"]) and row["loss_matched_low"] > 0.1
    assert row["auc_soft_reals_sharp_fakes"] < 0.1 and row["loss_soft_reals_sharp_fakes_low"] > 0.5
    assert row["auc_sharp_reals_soft_fakes"] == 1


def test_a_detector_that_holds_what_was_sharpened_for_fake_loses_the_other_way_round() -> None:
    def hardness(crops_BHWC: np.ndarray) -> np.ndarray:
        return redness(crops_BHWC) - 10 * softness(crops_BHWC)

    row = shortcut_table(hardness, judged(hardness), size=SIDE)["dfdc"]
    assert row["auc_soft_reals_sharp_fakes"] == 1 and row["loss_soft_reals_sharp_fakes"] < 0
    assert row["loss_sharp_reals_soft_fakes_low"] > 0.2


def test_a_detector_of_evidence_loses_nothing() -> None:
    row = shortcut_table(redness, judged(redness), size=SIDE)["dfdc"]
    assert row["auc"] == row["auc_rescored"] == 1 and row["auc_of_softness"] > 0.7
    for change in ("matched", "equal_blur", "soft_reals_sharp_fakes", "sharp_reals_soft_fakes"):
        assert row[f"loss_{change}"] == row[f"loss_{change}_low"] == row[f"loss_{change}_high"] == 0


def test_a_loss_lies_within_its_interval() -> None:
    noise = np.random.default_rng(3)

    def unsure(crops_BHWC: np.ndarray) -> np.ndarray:
        return redness(crops_BHWC) + noise.normal(0, 0.1, len(crops_BHWC))

    row = shortcut_table(unsure, judged(unsure), size=SIDE)["dfdc"]
    for name in ("auc_matched", "loss_matched", "loss_equal_blur", "loss_soft_reals_sharp_fakes"):
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] and row[f"{name}_high"] - row[f"{name}_low"] > 0.02


def test_the_same_faces_are_scored_again_each_time_and_few_of_them() -> None:
    seen: list[int] = []

    def counted(crops_BHWC: np.ndarray) -> np.ndarray:
        seen.append(len(crops_BHWC))
        return redness(crops_BHWC)

    faces = judged(redness, 40, ("dfdc", "sd21_photographs")) + judged(redness, 5, ("stargan",))
    tables = [shortcut_table(counted, faces, size=SIDE, drawn=10) for _ in range(2)]
    assert tables[0] == tables[1] and tables[0]["dfdc"]["rescored"] == 20 and tables[0]["stargan"]["rescored"] == 10
    # 10 reals and 10 fakes of the first two groups, the same in both, and 5 and 5: all are scored blurred and sharpened
    assert sum(seen) == 2 * 2 * (20 + 10) and max(seen) <= 16
    assert len(SHORTCUT_GROUPS) * 4 * DRAWN <= 1200


def test_a_group_of_one_class_has_no_row_and_one_without_pairs_no_matched_figure() -> None:
    faces = [face for face in judged(redness, 20) if face.is_fake]
    assert shortcut_table(redness, faces, size=SIDE) == {}
    apart = [JudgedFace(picture(n, 3 if n % 2 else 30, fake=n % 2 == 1), n % 2 == 1, str(n), ("dfdc",), n % 2) for n in range(40)]
    row = shortcut_table(redness, apart, size=SIDE)["dfdc"]
    assert row["pairs"] == 0 and row["auc_of_softness"] == 1 and "auc_matched" not in row


def test_pairs_are_near_in_sharpness_and_nobody_is_taken_twice() -> None:
    rng = np.random.default_rng(0)
    is_fake = np.arange(300) % 3 == 0
    values = np.exp(rng.normal(np.where(is_fake, 2.0, 2.4), 0.4))
    pairs = matched_pairs(is_fake, values)
    assert len(pairs) > 60 and len(set(pairs.ravel().tolist())) == pairs.size
    assert is_fake[pairs[:, 0]].all() and not is_fake[pairs[:, 1]].any()
    assert np.abs(np.log(values[pairs[:, 0]] / values[pairs[:, 1]])).max() < CALIPER


def test_as_many_pairs_are_made_as_there_can_be() -> None:
    """Nearest first would pair 1.03 with 1.02 and leave 1.00 and 1.07 alone."""
    assert len(matched_pairs(np.array([True, True, False, False]), np.array([1.00, 1.03, 1.02, 1.07]))) == 2


def test_blur_softens_and_sharpening_sharpens() -> None:
    image = cv2.GaussianBlur(picture(0, 20, fake=False), (0, 0), 1.0)
    assert sharpness(cv2.GaussianBlur(image, (0, 0), 1.5)) < sharpness(image) < sharpness(sharpened(image, 1.5))
    assert sharpened(np.full((8, 8, 3), 250, np.uint8), 1.5).min() == 250
