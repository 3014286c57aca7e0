"""Faces are found, cropped and measured; only crops that no one could judge fail."""

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from engines.contracts import EngineError
from fifa_stream.detect import DetectLimits, FaceDetector, assess, laplacian_std
from fifa_stream.records import NoteCode

CROP_SIZE = 224


def _frame(level: int = 120, width: int = 640, height: int = 480) -> NDArray[np.uint8]:
    noise = np.random.default_rng(1).integers(-30, 31, (height, width, 3))
    return np.clip(level + noise, 0, 255).astype(np.uint8)


def _codes(notes: Any) -> list[NoteCode]:
    return [note.code for note in notes]


def test_box_landmarks_and_crop_are_in_frame_pixels(toy_detector: Any) -> None:
    detector = FaceDetector(toy_detector([(0.25, 0.25, 0.5, 0.75, 0.0)]), crop_size=CROP_SIZE, limits=DetectLimits())
    (face,) = detector.detect(_frame()).faces
    assert face.box_xyxy == pytest.approx((160, 120, 320, 360), abs=1e-3)
    assert face.landmarks_52 is not None and face.landmarks_52[0] == pytest.approx((208, 204), abs=1e-3)
    assert face.crop.image_HWC.shape == (CROP_SIZE, CROP_SIZE, 3)
    assert face.quality.passed and face.quality.face_px == pytest.approx(160, abs=0.1) and face.notes == ()


def test_a_frame_without_a_face_says_so(toy_detector: Any) -> None:
    found = FaceDetector(toy_detector([]), crop_size=CROP_SIZE, limits=DetectLimits()).detect(_frame())
    assert found.faces == () and _codes(found.notes) == [NoteCode.NO_FACE]


@pytest.mark.parametrize("output", ["heatmap", "scale", "offset", "landmarks"])
def test_a_detector_that_gives_no_numbers_does_not_say_that_there_is_no_face(toy_detector: Any, output: str) -> None:
    class Broken(toy_detector):  # type: ignore[misc]
        def run(self, feeds: Any) -> Any:
            found = super().run(feeds)
            found[output][:] = np.nan
            return found

    detector = FaceDetector(Broken(), crop_size=CROP_SIZE, limits=DetectLimits())
    with pytest.raises(EngineError, match=r"outputs that are no numbers; .* fifa-stream engine check"):
        detector.detect(_frame())


def test_a_large_frame_without_a_face_is_looked_at_twice_and_a_small_one_once(toy_detector: Any) -> None:
    engine = toy_detector(finds_from_side=1280)
    detector = FaceDetector(engine, crop_size=CROP_SIZE, limits=DetectLimits())
    assert len(detector.detect(_frame(width=1920, height=1080)).faces) == 1
    assert engine.sides == [640, 1280]
    assert detector.detect(_frame()).faces == ()
    assert engine.sides == [640, 1280, 640]


def test_of_too_many_faces_the_largest_are_kept(toy_detector: Any) -> None:
    places = [(0.05 + 0.2 * k, 0.3, 0.15 + 0.2 * k + 0.01 * k, 0.6, 0.0) for k in range(4)]
    found = FaceDetector(toy_detector(places), crop_size=CROP_SIZE, limits=DetectLimits(max_faces=2)).detect(_frame())
    assert _codes(found.notes) == [NoteCode.TOO_MANY_FACES]
    assert [round(face.quality.face_px) for face in found.faces] == [83, 77]


def test_a_ready_made_crop_is_one_face_with_the_whole_image_as_its_box(toy_detector: Any) -> None:
    engine = toy_detector()
    (face,) = FaceDetector(engine, crop_size=CROP_SIZE, limits=DetectLimits()).whole(_frame(width=300, height=260)).faces
    assert engine.sides == []
    assert (face.box_xyxy, face.confidence, face.landmarks_52) == ((0, 0, 300, 260), None, None)
    assert face.quality.face_px == 260 and face.quality.roll_deg is None


def _small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((60, 45)))


def _blurred(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(12)))


@pytest.mark.parametrize(
    ("frame", "place", "code"),
    [
        pytest.param(_small(_frame()), (0.25, 0.2, 0.75, 0.8, 0.0), NoteCode.FACE_TOO_SMALL, id="small"),
        pytest.param(_blurred(_frame()), (0.25, 0.2, 0.75, 0.8, 0.0), NoteCode.BLURRED, id="blurred"),
        pytest.param(_frame() // 30, (0.25, 0.2, 0.75, 0.8, 0.0), NoteCode.TOO_DARK, id="dark"),
        pytest.param(255 - _frame() // 30, (0.25, 0.2, 0.75, 0.8, 0.0), NoteCode.TOO_BRIGHT, id="bright"),
        pytest.param(_frame(), (-0.3, 0.2, 0.25, 0.9, 0.0), NoteCode.PARTLY_OUTSIDE, id="outside"),
    ],
)
def test_an_unusable_face_fails_with_its_note(toy_detector: Any, frame: NDArray[np.uint8], place: Any, code: NoteCode) -> None:
    x0, _, x1, _, _ = place
    if x0 < 0:  # the toy marks the cell under the centre: it must lie in the frame
        place = (-(x1 - 0.01), *place[1:])
    (face,) = FaceDetector(toy_detector([place]), crop_size=CROP_SIZE, limits=DetectLimits()).detect(frame).faces
    assert not face.quality.passed and code in _codes(face.notes)


def test_a_tilted_face_is_noted_and_does_not_fail(toy_detector: Any) -> None:
    (face,) = FaceDetector(toy_detector([(0.25, 0.2, 0.75, 0.8, 40.0)]), crop_size=CROP_SIZE, limits=DetectLimits()).detect(_frame()).faces
    assert face.quality.passed and _codes(face.notes) == [NoteCode.ROTATED]


def test_training_faces_pass(shared: Path) -> None:
    """Dark and soft video frames are what the engine was trained on: the limits must let them through."""
    failed = 0
    with tarfile.open(shared / "data" / "dfdc" / "dev-00.tar") as archive:
        members = [member for member in archive if member.isfile()][:300]
        for member in members:
            stored = archive.extractfile(member)
            assert stored is not None
            crop = Image.open(stored).convert("RGB")
            quality, _ = assess(np.asarray(crop), face_px=min(crop.size), roll_deg=None, is_inside=True, limits=DetectLimits())
            failed += not quality.passed
    assert len(members) == 300 and failed == 0


def test_sharpness_of_a_flat_image_is_zero_and_grows_with_detail() -> None:
    assert laplacian_std(np.full((8, 8), 90, np.float32)) == 0
    sharp = _frame().astype(np.float32).mean(-1)
    assert laplacian_std(sharp) > 5 * laplacian_std(_blurred(_frame()).astype(np.float32).mean(-1))
