"""The adaptive mask: empty for a real pair whatever camera and codec did, on the spot for a known edit, refused where nothing can be said."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainer.annotator.artifact import CODEC_QUALITIES, SIZE, artifact_mask, iou, top_share_mask
from trainer.annotator.nuisance import explain

ImageHWC = NDArray[np.uint8]


def _saved(image_HWC: ImageHWC, quality: int, extension: str = ".jpg") -> ImageHWC:
    flag = cv2.IMWRITE_JPEG_QUALITY if extension == ".jpg" else cv2.IMWRITE_WEBP_QUALITY
    encoded = cv2.imencode(extension, np.ascontiguousarray(image_HWC[..., ::-1]), [flag, quality])[1]
    return np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1])


def _moved(image_HWC: ImageHWC, dx: float, dy: float, degrees: float = 0.0, scale: float = 1.0) -> ImageHWC:
    matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), degrees, scale)
    matrix[:, 2] += dx, dy
    return np.asarray(cv2.warpAffine(image_HWC, matrix, (SIZE, SIZE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT), np.uint8)


def _resized(image_HWC: ImageHWC, share: float) -> ImageHWC:
    small = cv2.resize(image_HWC, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC), np.uint8)


def _toned(image_HWC: ImageHWC, gamma: float) -> ImageHWC:
    return np.round(255 * (image_HWC / 255.0) ** gamma).astype(np.uint8)


@pytest.fixture(scope="module")
def real_HWC() -> ImageHWC:
    """NASA's astronaut portrait in scikit-image (public domain), cut to the face, 224 px, once through JPEG."""
    data = pytest.importorskip("skimage.data")
    cut = cv2.resize(np.ascontiguousarray(data.astronaut()[50:210, 145:305]), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return _saved(cut, 92)


def _spot(center_xy: tuple[int, int], radius: int) -> NDArray[np.float32]:
    alpha = np.zeros((SIZE, SIZE), np.float32)
    cv2.circle(alpha, center_xy, radius, 1.0, -1)
    return np.asarray(cv2.GaussianBlur(alpha, (0, 0), 1.5), np.float32)


def _edited(real_HWC: ImageHWC, alpha_HW: NDArray[np.float32], shift: tuple[float, float, float] = (26.0, 0.0, 0.0)) -> ImageHWC:
    """Blur and redden a place."""
    source = cv2.GaussianBlur(real_HWC, (0, 0), 4.0).astype(np.float32) + np.array(shift, np.float32)
    return np.clip(source * alpha_HW[..., None] + real_HWC * (1 - alpha_HW[..., None]), 0, 255).astype(np.uint8)


DISTURBED = {
    **{f"jpeg {quality}": lambda x, quality=quality: _saved(x, quality) for quality in (*CODEC_QUALITIES[::2], 91, 63)},
    "webp": lambda x: _saved(x, 72, ".webp"),
    "jpeg twice": lambda x: _saved(_saved(x, 73), 86),
    "resize": lambda x: _resized(x, 0.6),
    "one pixel": lambda x: _moved(x, 1, -1),
    "part of a pixel": lambda x: _moved(x, 0.4, -0.7),
    "gamma": lambda x: _toned(x, 0.8),
    "brighter": lambda x: np.clip(x * 1.1 + 8, 0, 255).astype(np.uint8),
    "shift, then jpeg": lambda x: _saved(_moved(x, -1, 0), 77),
    "gamma and resize": lambda x: _resized(_toned(x, 1.2), 0.8),
}


@pytest.mark.parametrize("kind", DISTURBED)
def test_a_real_pair_keeps_no_mask_whatever_camera_and_codec_did(real_HWC: ImageHWC, kind: str) -> None:
    artifact = artifact_mask(real_HWC, DISTURBED[kind](real_HWC))
    assert (artifact.quality, artifact.refused, artifact.facts["area"]) == ("refused", "empty_mask", 0.0)
    assert not artifact.mask_HW.any()


@settings(max_examples=12, deadline=None)
@given(x=st.integers(50, 170), y=st.integers(50, 170), radius=st.integers(10, 40), quality=st.integers(80, 97))
def test_an_edit_is_found_where_it_was_made_after_the_codec(real_HWC: ImageHWC, x: int, y: int, radius: int, quality: int) -> None:
    alpha = _spot((x, y), radius)
    artifact = artifact_mask(real_HWC, _saved(_edited(real_HWC, alpha), quality))
    assert artifact.refused is None
    assert iou(artifact.mask_HW, alpha > 0.1) > 0.6
    assert artifact.facts["area"] == pytest.approx(float(artifact.mask_HW.mean()), abs=1e-4)


@pytest.mark.parametrize("kind", ["one pixel", "gamma", "resize"])
def test_an_edit_is_found_under_what_the_whole_image_went_through(real_HWC: ImageHWC, kind: str) -> None:
    alpha = _spot((80, 130), 25)
    artifact = artifact_mask(real_HWC, DISTURBED[kind](_edited(real_HWC, alpha, (50.0, 0.0, -30.0))))
    assert iou(artifact.mask_HW, alpha > 0.1) > 0.5


def test_adaptive_follows_the_area_where_a_fixed_share_cannot(real_HWC: ImageHWC) -> None:
    for radius in (10, 60):
        alpha = _spot((112, 112), radius)
        artifact = artifact_mask(real_HWC, _edited(real_HWC, alpha))
        assert iou(artifact.mask_HW, alpha > 0.1) > iou(top_share_mask(artifact.difference_HW), alpha > 0.1) + 0.1


def test_a_shift_of_several_pixels_is_registered_and_reported(real_HWC: ImageHWC) -> None:
    told = explain(real_HWC, _moved(real_HWC, 4, -3))
    assert told.motion.shift_xy == pytest.approx((-4, 3), abs=0.5)
    assert told.misfit < 0.3


def test_landmarks_register_what_ecc_alone_does_not(real_HWC: ImageHWC) -> None:
    degrees, shift = 14.0, (16.0, -12.0)
    points = np.random.default_rng(0).uniform(40, 180, (468, 2)).astype(np.float32)
    matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), degrees, 1.0)
    matrix[:, 2] += shift
    moved = _moved(real_HWC, *shift, degrees)
    alone, helped = (
        explain(real_HWC, moved, landmarks) for landmarks in (None, (points, (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)))
    )
    assert helped.misfit < 0.6 * alone.misfit
    assert helped.correlation > alone.correlation


def test_another_scene_is_refused(real_HWC: ImageHWC) -> None:
    data = pytest.importorskip("skimage.data")
    other = np.ascontiguousarray(cv2.resize(data.coffee(), (SIZE, SIZE)))
    artifact = artifact_mask(real_HWC, other)
    assert (artifact.quality, artifact.refused) == ("refused", "different_scene")
    assert not artifact.mask_HW.any()


def test_a_stricter_rate_never_lowers_the_thresholds(real_HWC: ImageHWC) -> None:
    fake = _saved(_edited(real_HWC, _spot((90, 90), 18)), 70)
    strict, loose = (artifact_mask(real_HWC, fake, false_discovery=rate).facts for rate in (0.0001, 0.05))
    assert strict["threshold"] >= loose["threshold"]
    assert strict["threshold_low"] >= loose["threshold_low"] > 0


def test_the_same_pair_gives_the_same_record(real_HWC: ImageHWC) -> None:
    fake = _saved(_edited(real_HWC, _spot((90, 90), 18)), 85)
    first, second = artifact_mask(real_HWC, fake), artifact_mask(real_HWC, fake)
    np.testing.assert_array_equal(first.mask_HW, second.mask_HW)
    assert first.facts == second.facts and all(np.isfinite(value) for value in first.facts.values())


def test_other_sizes_and_impossible_rates_are_told(real_HWC: ImageHWC) -> None:
    with pytest.raises(ValueError, match=r"resize them with trainer\.faces\.fit"):
        artifact_mask(real_HWC[:200], real_HWC[:200])
    with pytest.raises(ValueError, match="false_discovery"):
        artifact_mask(real_HWC, real_HWC, false_discovery=0.0)


def test_a_flat_crop_is_empty_not_an_error() -> None:
    flat = np.full((SIZE, SIZE, 3), 90, np.uint8)
    empty = artifact_mask(flat, flat)
    assert empty.refused == "empty_mask" and np.isfinite(list(empty.facts.values())).all(), "what is not finite is no JSON"
    patched = flat.copy()
    patched[60:160, 60:160] += 60
    exact = (patched != flat).any(-1)
    assert iou(artifact_mask(flat, patched).mask_HW, exact) > 0.8
