"""What handling costs a detector: JPEG, H.264, scaling, noise and blur on the same faces, as differences from the untouched crops.

Perturbations are pure functions of one (H, W, 3) uint8 RGB crop: the same pixels give the same pixels, whatever was done before, and no pixel
moves, so masks stay where they were. They act on the crop, not on the frame it was cut from: our choice, since faces come as crops.

The sweep knows no engine. It takes what scores a batch of crops, and optionally what marks the forged pixels of one.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from trainer.augment import h264
from trainer.faces import Face, ImageHWC, fit
from trainer.fifa_bench.detection import auc, resampled_auc, usable_percentiles
from trainer.fifa_bench.intervals import drawn_units
from trainer.fifa_bench.masks import mask_iou

CropsBHWC = NDArray[np.uint8]
MaskHW = NDArray[np.bool_]
ScoreFaces = Callable[[CropsBHWC], NDArray[np.float64]]
"""(B, H, W, 3) uint8 RGB crops to (B,) scores; 1 is fake."""
LocateFakes = Callable[[CropsBHWC], Sequence[MaskHW]]
"""The same crops to one mask each, of the references' size."""


# --- Perturbations ----------------------------------------------------------------------------------------------------------------------------


def jpeg(image_HWC: ImageHWC, quality: int) -> ImageHWC:
    """JPEG at a libjpeg quality, chroma halved (4:2:0). A crop that was stored as JPEG keeps its blocks: a mild quality then changes little."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    _, encoded = cv2.imencode(".jpg", image_HWC[..., ::-1], options)
    return np.ascontiguousarray(np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))[..., ::-1])


def rescaled(image_HWC: ImageHWC, divisor: int) -> ImageHWC:
    """Shrunk by area, and enlarged again linearly."""
    height, width = image_HWC.shape[:2]
    small = cv2.resize(image_HWC, (max(1, width // divisor), max(1, height // divisor)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def noisy(image_HWC: ImageHWC, sigma: float) -> ImageHWC:
    """Gaussian noise of `sigma` grey levels, each channel on its own, drawn from the pixels themselves."""
    rng = np.random.default_rng(zlib.crc32(image_HWC.tobytes()))
    noise_HWC = rng.normal(0.0, sigma, image_HWC.shape)
    return np.clip(np.rint(image_HWC + noise_HWC), 0, 255).astype(np.uint8)


def blurred(image_HWC: ImageHWC, sigma: float) -> ImageHWC:
    """Gaussian blur of `sigma` pixels."""
    return cv2.GaussianBlur(image_HWC, (0, 0), sigma)


PERTURBATIONS: Mapping[str, Callable[[ImageHWC], ImageHWC]] = {
    **{f"jpeg_q{quality}": partial(jpeg, quality=quality) for quality in (90, 70, 50, 40, 30)},
    **{f"h264_crf{crf}": partial(h264, crf=crf) for crf in (23, 40)},
    **{f"resize_1/{divisor}": partial(rescaled, divisor=divisor) for divisor in (2, 4)},
    **{f"noise_{sigma}": partial(noisy, sigma=sigma) for sigma in (3, 8)},
    "blur_2": partial(blurred, sigma=2.0),
}
"""By name, from mild to strong within a kind."""
UNTOUCHED = "none"


# --- The sweep --------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One perturbation on one group of faces; None where a figure has no value (a group of one class, too few units, no masks)."""

    perturbation: str
    group: str
    faces: int
    auc: float | None
    delta_auc: float | None
    """AUC less that of the untouched crops; bounds of its 95 % interval when the same units are drawn for both."""
    delta_auc_low: float | None
    delta_auc_high: float | None
    false_alarms: float | None
    """Share of reals called fake at the fixed threshold."""
    delta_false_alarms: float | None
    masks: int
    """Faces with a reference mask."""
    mask_iou: float | None
    """Mean over them; no mask counts 0."""
    delta_mask_iou: float | None


def sweep(
    score: ScoreFaces,
    faces: Sequence[Face],
    *,
    size: int,
    fake_at: float,
    groups: Mapping[str, Callable[[Face], bool]],
    perturbations: Mapping[str, Callable[[ImageHWC], ImageHWC]] = PERTURBATIONS,
    locate: LocateFakes | None = None,
    reference: Callable[[Face], MaskHW | None] = lambda face: None,
    batch: int = 16,
    resamples: int = 500,
    seed: int = 0,
) -> list[Row]:
    """Measure every group untouched and under each perturbation, group by group, in order; groups without a face are left out.

    Crops are resized to `size` x `size` before they are perturbed. `fake_at` is the threshold of the operating point, the same for all. With
    `locate`, faces whose `reference` marks a pixel are localised too.
    """
    changes: dict[str, Callable[[ImageHWC], ImageHWC]] = {UNTOUCHED: np.copy, **perturbations}
    score_PN, iou_PN = np.zeros((len(changes), len(faces))), np.full((len(changes), len(faces)), np.nan)
    for start in track(range(0, len(faces), batch), description="robustness"):
        part = faces[start : start + batch]
        crops = [np.ascontiguousarray(fit(face.image(), size)) for face in part]
        masks = {row: mask for row, face in enumerate(part) if locate and (mask := reference(face)) is not None and mask.any()}
        for number, change in enumerate(changes.values()):
            changed_BHWC = np.stack([change(crop) for crop in crops])
            score_PN[number, start : start + len(part)] = score(changed_BHWC)
            found = locate(changed_BHWC[list(masks)]) if locate and masks else []
            for (row, mask_HW), found_HW in zip(masks.items(), found, strict=True):
                iou_PN[number, start + row] = mask_iou(found_HW, mask_HW)
    rows = []
    for name, keep in groups.items():
        chosen = [number for number, face in enumerate(faces) if keep(face)]
        if chosen:
            group = _Group(name, [faces[number] for number in chosen], score_PN[0, chosen], iou_PN[0, chosen], fake_at, resamples, seed)
            rows += [group.row(change, score_PN[number, chosen], iou_PN[number, chosen]) for number, change in enumerate(changes)]
    return rows


@dataclass(frozen=True, slots=True)
class _Group:
    """The untouched faces of a group, against which a perturbation is measured."""

    name: str
    faces: Sequence[Face]
    score_N: NDArray[np.float64]
    iou_N: NDArray[np.float64]
    """NaN without a reference."""
    fake_at: float
    resamples: int
    seed: int

    def row(self, perturbation: str, score_N: NDArray[np.float64], iou_N: NDArray[np.float64]) -> Row:
        auc, auc_before = self._auc(score_N), self._auc(self.score_N)
        alarms, alarms_before = self._false_alarms(score_N), self._false_alarms(self.score_N)
        iou, iou_before = _mean(iou_N[~np.isnan(iou_N)]), _mean(self.iou_N[~np.isnan(self.iou_N)])
        low, high = self._interval(score_N)
        return Row(
            perturbation, self.name, len(self.faces), auc, _less(auc, auc_before), low, high,
            alarms, _less(alarms, alarms_before), int((~np.isnan(iou_N)).sum()), iou, _less(iou, iou_before),
        )  # fmt: skip

    @property
    def _is_fake_N(self) -> NDArray[np.bool_]:
        return np.array([face.is_fake for face in self.faces], bool)

    def _auc(self, score_N: NDArray[np.float64]) -> float | None:
        return auc(self._is_fake_N, score_N) if len(set(self._is_fake_N)) == 2 else None

    def _false_alarms(self, score_N: NDArray[np.float64]) -> float | None:
        return _mean(score_N[~self._is_fake_N] >= self.fake_at)

    def _interval(self, score_N: NDArray[np.float64]) -> tuple[float, float] | tuple[None, None]:
        units = [f"{face.dataset}/{face.unit}" for face in self.faces]
        unit_N, count_RU = drawn_units(units, resamples=self.resamples, seed=self.seed)
        after_R, before_R = (resampled_auc(self._is_fake_N, values_N, unit_N, count_RU) for values_N in (score_N, self.score_N))
        return usable_percentiles(after_R - before_R) or (None, None)


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if values.size else None


def _less(value: float | None, before: float | None) -> float | None:
    return None if value is None or before is None else value - before


def as_tables(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Figures by group, perturbation and column, for the reports."""
    tables: dict[str, dict[str, dict[str, float | None]]] = {}
    for row in rows:
        figures = {name: value for name, value in asdict(row).items() if name not in ("perturbation", "group")}
        tables.setdefault(row.group, {})[row.perturbation] = figures
    return tables
