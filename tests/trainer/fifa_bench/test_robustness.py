"""Perturbations are pure and do what their names say; the sweep measures differences, in batches, whatever the order."""

import sys
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.faces import Face
from trainer.fifa_bench.detection import auc
from trainer.fifa_bench.intervals import bootstrap_interval
from trainer.fifa_bench.robustness import PERTURBATIONS, UNTOUCHED, Row, as_tables, sweep

SIDE = 64


def textured(seed: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Smooth colour with fine grain, as skin has."""
    rng = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(rng.uniform(0, 255, (height, width, 3)), (0, 0), 6) * 1.5 - 60
    return np.clip(smooth + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def difference(name: str, image: np.ndarray) -> float:
    """Root mean square in grey levels."""
    return float(np.sqrt(((PERTURBATIONS[name](image).astype(float) - image) ** 2).mean()))


@pytest.mark.parametrize("name", PERTURBATIONS)
@given(seed=st.integers(0, 1000), height=st.integers(17, 40), width=st.integers(17, 40))
@settings(max_examples=6)
def test_a_perturbation_is_a_pure_function_of_the_crop(name: str, seed: int, height: int, width: int) -> None:
    image = textured(seed, height, width)
    before = image.copy()
    first, again = PERTURBATIONS[name](image), PERTURBATIONS[name](before)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(image, before)
    assert first.shape == image.shape and first.dtype == np.uint8 and (first != image).any()


@pytest.mark.parametrize("kind", ["jpeg", "h264", "resize", "noise"])
def test_within_a_kind_the_later_is_the_stronger(kind: str) -> None:
    for seed in range(3):
        changes = [difference(name, textured(seed, 96, 96)) for name in PERTURBATIONS if name.startswith(kind)]
        assert changes == sorted(changes) and len(set(changes)) == len(changes) >= 2


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_nothing_moves_and_no_colour_shifts(name: str) -> None:
    image = np.full((SIDE, SIDE, 3), (180, 130, 90), np.uint8)
    image[20:44, 16:40] = (90, 160, 200)
    changed = PERTURBATIONS[name](image)
    ys, xs = np.nonzero(changed[..., 0] < 135)
    assert abs(ys.mean() - 31.5) < 0.5 and abs(xs.mean() - 27.5) < 0.5
    assert np.abs(changed[26:38, 22:34].mean((0, 1)) - (90, 160, 200)).max() < 6


def test_noise_has_the_spread_of_its_name() -> None:
    image = np.full((200, 200, 3), 128, np.uint8)
    assert difference("noise_3", image) == pytest.approx(3, abs=0.1) and difference("noise_8", image) == pytest.approx(8, abs=0.1)
    assert (PERTURBATIONS["noise_3"](image) != PERTURBATIONS["noise_3"](image + 1) - 1).any()  # other pixels, other noise


def test_h264_without_pyav_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fifa-stream\[video\]'"):
        PERTURBATIONS["h264_crf23"](textured(0))


def darkened(image_HWC: np.ndarray) -> np.ndarray:
    return image_HWC // 2


def brightness(crops_BHWC: np.ndarray) -> np.ndarray:
    return crops_BHWC.mean((1, 2, 3)) / 255


def bright_pixels(crops_BHWC: np.ndarray) -> list[np.ndarray]:
    return [crop.mean(2) >= 100 for crop in crops_BHWC]


@pytest.fixture
def levels(make_face: Callable[..., Face]) -> list[Face]:
    """Flat faces of six units: reals at 40, 80, 120 .. and fakes 20 levels above them; each fake's left half is brighter still."""
    faces = []
    for number in range(6):
        for fake in (False, True):
            image = np.full((SIDE, SIDE, 3), 40 * (number % 4) + 40 + 20 * fake, np.uint8)
            encoded = cv2.imencode(".png", image)[1].tobytes()
            faces.append(replace(make_face(number, dataset="dfdc", part="report", fake=fake), encoded=encoded))
    return faces


def swept(faces: list[Face], **changes: object) -> dict[str, Row]:
    arguments: dict = {"size": 32, "fake_at": 0.5, "groups": {"all": lambda face: True}, "perturbations": {"dark": darkened}, "resamples": 50}
    return {row.perturbation: row for row in sweep(brightness, faces, **(arguments | changes))}


def test_differences_are_those_counted_by_hand(levels: list[Face]) -> None:
    """Darkened, the bright reals (160) fall under the threshold of 127.5; the ranking stays, so the AUC does not move."""
    rows = swept(levels, locate=bright_pixels, reference=lambda face: np.ones((32, 32), bool) if face.is_fake else None)
    before, dark = rows[UNTOUCHED], rows["dark"]
    assert (before.faces, before.masks) == (12, 6) and before.delta_auc == before.delta_false_alarms == before.delta_mask_iou == 0
    assert before.auc == dark.auc == auc(np.array([f.is_fake for f in levels]), brightness(np.stack([f.image() for f in levels])))
    assert (dark.delta_auc, dark.delta_auc_low, dark.delta_auc_high) == (0, 0, 0)
    assert (before.false_alarms, dark.false_alarms, dark.delta_false_alarms) == (pytest.approx(1 / 6), 0, pytest.approx(-1 / 6))
    assert (before.mask_iou, dark.mask_iou, dark.delta_mask_iou) == (pytest.approx(4 / 6), 0, pytest.approx(-4 / 6))


def test_a_score_that_a_perturbation_blinds_falls_to_one_half(levels: list[Face]) -> None:
    rows = swept(levels, perturbations={"black": np.zeros_like})
    black, before = rows["black"], rows[UNTOUCHED]
    assert before.auc is not None and black.auc == 0.5 and black.delta_auc == 0.5 - before.auc
    assert black.delta_auc_low is not None and black.delta_auc_high is not None
    assert black.delta_auc_low <= black.delta_auc <= black.delta_auc_high < 0


def test_neither_batches_nor_the_order_of_faces_change_a_figure(levels: list[Face]) -> None:
    sizes: list[int] = []

    def watched(crops_BHWC: np.ndarray) -> np.ndarray:
        sizes.append(len(crops_BHWC))
        return brightness(crops_BHWC)

    arguments: dict = {"size": 32, "fake_at": 0.5, "groups": {"all": lambda face: True}, "resamples": 40}
    arguments["perturbations"] = {name: PERTURBATIONS[name] for name in ("jpeg_q50", "noise_8")}
    by_five = sweep(watched, levels, batch=5, **arguments)
    assert sizes == [5, 5, 5, 5, 5, 5, 2, 2, 2]
    assert by_five == sweep(brightness, levels, batch=12, **arguments)
    turned = sweep(brightness, levels[::-1], batch=7, **arguments)
    assert [(row.auc, row.delta_auc, row.false_alarms) for row in turned] == [(row.auc, row.delta_auc, row.false_alarms) for row in by_five]


def test_the_interval_is_that_of_the_paired_bootstrap_over_units(levels: list[Face]) -> None:
    """Against resampled rows: whole units drawn, the same for both scores."""
    rng = np.random.default_rng(5)
    truth = np.array([face.is_fake for face in levels * 3])
    before, after = (truth + rng.normal(0, spread, truth.size).round(1) for spread in (0.5, 2.0))
    named = [replace(face, unit=f"{face.unit}{number % 2}") for number, face in enumerate(levels * 3)]
    scores = iter((before, after))
    (_, row) = sweep(
        lambda crops: next(scores),
        named,
        size=8,
        fake_at=0.5,
        groups={"all": lambda face: True},
        perturbations={"any": np.copy},
        batch=99,
        resamples=300,
    )

    def delta(rows: np.ndarray) -> float:
        return auc(truth[rows], after[rows]) - auc(truth[rows], before[rows])

    expected = bootstrap_interval(delta, [f"dfdc/{face.unit}" for face in named], resamples=300)
    assert row.delta_auc == pytest.approx(delta(np.arange(truth.size)))
    assert (row.delta_auc_low, row.delta_auc_high) == pytest.approx(expected, abs=0.02)  # draws without both classes differ
    assert row.delta_auc_high - row.delta_auc_low > 0.1


def test_groups_are_measured_apart_and_what_has_no_value_is_none(levels: list[Face]) -> None:
    groups = {"reals": lambda f: not f.is_fake, "fakes": lambda f: f.is_fake, "one": lambda f: f.unit == "0", "nobody": lambda f: False}
    rows = sweep(brightness, levels, size=32, fake_at=0.5, groups=groups, perturbations={"dark": darkened}, resamples=20)
    assert [(row.group, row.perturbation, row.faces) for row in rows] == [
        ("reals", "none", 6), ("reals", "dark", 6), ("fakes", "none", 6), ("fakes", "dark", 6), ("one", "none", 2), ("one", "dark", 2),
    ]  # fmt: skip
    reals, fakes = rows[1], rows[3]
    assert (reals.auc, reals.delta_auc, reals.delta_auc_low) == (None, None, None) and reals.delta_false_alarms == pytest.approx(-1 / 6)
    assert (fakes.false_alarms, fakes.delta_false_alarms, fakes.mask_iou, fakes.masks) == (None, None, None, 0)
    tables = as_tables(rows)
    assert list(tables) == ["reals", "fakes", "one"] and list(tables["one"]) == ["none", "dark"]
    assert tables["one"]["dark"]["auc"] == rows[5].auc == 1.0
