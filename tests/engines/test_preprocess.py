"""Crop geometry: what the affine map says is where the pixels are."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from engines.preprocess import CROP_SCALE, IMAGE_MEAN, IMAGE_STD, Crop, crop_face, to_model_input, whole_image_crop

SIZE = 112
WIDTH, HEIGHT = 320, 240
BOXES = [
    pytest.param((100.0, 80.0, 180.0, 180.0), id="inside"),
    pytest.param((101.3, 77.7, 160.9, 139.2), id="between-pixels"),
    pytest.param((-20.0, 60.0, 60.0, 150.0), id="left-border"),
    pytest.param((270.0, 60.0, 345.0, 150.0), id="right-border"),
    pytest.param((120.0, -25.0, 200.0, 60.0), id="top-border"),
    pytest.param((120.0, 190.0, 200.0, 262.0), id="bottom-border"),
]
ROLLS = [pytest.param(roll, id=f"roll{roll:+}") for roll in (0, 10, 30, -45, 90, -100)]
Box = tuple[float, float, float, float]


def landmarks(box_xyxy: Box, roll_deg: float) -> NDArray[np.float32]:
    """Five points of a face in this box, turned by `roll_deg` (clockwise on the screen)."""
    x0, y0, x1, y1 = box_xyxy
    points = np.array([[-0.2, -0.15], [0.2, -0.15], [0, 0], [-0.15, 0.2], [0.15, 0.2]]) * (x1 - x0)
    turn = np.deg2rad(roll_deg)
    turned = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return (turned + np.array([(x0 + x1) / 2, (y0 + y1) / 2])).astype(np.float32)


def to_frame(crop: Crop, x: float, y: float) -> NDArray[np.float64]:
    return np.asarray(crop.to_frame_23 @ [x, y, 1.0])


def centroid(weight_HW: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centre of mass in pixel coordinates, pixel centres at +0.5."""
    ys, xs = np.mgrid[: weight_HW.shape[0], : weight_HW.shape[1]] + 0.5
    return np.array([(xs * weight_HW).sum(), (ys * weight_HW).sum()]) / weight_HW.sum()


@pytest.mark.parametrize("box", BOXES)
def test_corners_of_an_upright_crop_lie_on_the_square_around_the_box(box: Box) -> None:
    crop = crop_face(np.zeros((HEIGHT, WIDTH, 3), np.uint8), box, None, SIZE)
    shorter, longer = sorted((box[2] - box[0], box[3] - box[1]))
    half = max(shorter * CROP_SCALE, longer) / 2
    center = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    assert crop.image_HWC.shape == (SIZE, SIZE, 3)
    for corner, sign in (((0, 0), (-1, -1)), ((SIZE, 0), (1, -1)), ((0, SIZE), (-1, 1)), ((SIZE, SIZE), (1, 1))):
        np.testing.assert_allclose(to_frame(crop, *corner), center + half * np.array(sign), atol=1e-9)


@pytest.mark.parametrize("roll", [30, -45, 90, -100])
def test_a_rolled_face_comes_out_upright(roll: float) -> None:
    box = (100.0, 60.0, 200.0, 160.0)
    points = landmarks(box, roll)
    crop = crop_face(np.zeros((HEIGHT, WIDTH, 3), np.uint8), box, points, SIZE)
    inverse = np.linalg.inv(np.vstack([crop.to_frame_23, [0, 0, 1]]))
    right_eye, left_eye = ((inverse @ [*point, 1])[:2] for point in points[:2])
    assert right_eye[1] == pytest.approx(left_eye[1], abs=1e-4)
    assert right_eye[0] < left_eye[0]
    np.testing.assert_allclose(to_frame(crop, SIZE / 2, SIZE / 2), [150, 110])


@pytest.mark.parametrize("roll", ROLLS)
@pytest.mark.parametrize("box", BOXES)
def test_a_dot_in_the_frame_is_found_where_the_map_says(box: Box, roll: float) -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    x, y = (int(np.clip((box[i] + box[i + 2]) / 2 + 14, 6, limit - 6)) for i, limit in ((0, WIDTH), (1, HEIGHT)))
    image[y - 2 : y + 3, x - 2 : x + 3, 1] = 255
    crop = crop_face(image, box, landmarks(box, roll), SIZE)
    found = to_frame(crop, *centroid(crop.image_HWC[..., 1].astype(float)))
    np.testing.assert_allclose(found, [x + 0.5, y + 0.5], atol=0.15)


@pytest.mark.parametrize("roll", ROLLS)
@pytest.mark.parametrize("box", BOXES)
def test_what_lies_outside_the_frame_is_black_and_what_lies_inside_is_not(box: Box, roll: float) -> None:
    crop = crop_face(np.full((HEIGHT, WIDTH, 3), 200, np.uint8), box, landmarks(box, roll), SIZE)
    ys, xs = np.mgrid[:SIZE, :SIZE] + 0.5
    frame_x, frame_y = np.einsum("ij,jhw->ihw", crop.to_frame_23, np.stack([xs, ys, np.ones_like(xs)]))
    depth = np.minimum(np.minimum(frame_x, WIDTH - frame_x), np.minimum(frame_y, HEIGHT - frame_y))
    assert (crop.image_HWC[depth > 3] == 200).all()
    assert (crop.image_HWC[depth < -3] == 0).all()


OUTSIDE = [
    pytest.param((400.0, 300.0, 460.0, 360.0), id="beyond-the-frame"),
    pytest.param((-90.0, -80.0, -10.0, -5.0), id="before-the-frame"),
    pytest.param((-400.0, -300.0, 700.0, 600.0), id="around-the-frame"),
    pytest.param((319.2, 239.2, 320.0, 240.0), id="last-pixel"),
]


@pytest.mark.parametrize("box", [*BOXES, *OUTSIDE])
def test_a_crop_is_the_same_to_the_byte_whatever_black_the_frame_goes_on_with(box: Box) -> None:
    frame_HWC = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    larger_HWC = np.pad(frame_HWC, ((700, 700), (700, 700), (0, 0)))
    x0, y0, x1, y1 = (side + 700 for side in box)
    assert (crop_face(frame_HWC, box, None, SIZE).image_HWC == crop_face(larger_HWC, (x0, y0, x1, y1), None, SIZE).image_HWC).all()


def test_no_more_of_a_large_frame_is_copied_than_a_face_is_cut_from(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, ...]] = []
    copies = Image.fromarray

    def watched(array: NDArray[np.uint8]) -> Image.Image:
        given.append(array.shape)
        return copies(array)

    monkeypatch.setattr(Image, "fromarray", watched)
    crop_face(np.zeros((2160, 3840, 3), np.uint8), (1000.0, 1000.0, 1100.0, 1120.0), None, SIZE)
    assert given == [(130, 130, 3)]


def test_a_face_without_area_still_gives_a_crop() -> None:
    assert crop_face(np.zeros((8, 8, 3), np.uint8), (4.0, 4.0, 4.0, 4.0), None, SIZE).image_HWC.shape == (SIZE, SIZE, 3)


def test_a_whole_image_keeps_its_corners_and_its_dots() -> None:
    image = np.zeros((90, 200, 3), np.uint8)
    image[20:26, 150:156] = 255
    crop = whole_image_crop(image, SIZE)
    np.testing.assert_allclose(to_frame(crop, SIZE, SIZE), [200, 90])
    np.testing.assert_allclose(to_frame(crop, *centroid(crop.image_HWC[..., 0].astype(float))), [153, 23], atol=0.2)


def test_model_input_is_normalised_channels_first() -> None:
    crops = np.stack([np.full((2, 2, 3), (0, 128, 255), np.uint8), np.full((2, 2, 3), (255, 0, 64), np.uint8)])
    image_BCHW = to_model_input(crops)
    assert image_BCHW.dtype == np.float32 and image_BCHW.shape == (2, 3, 2, 2) and image_BCHW.flags.c_contiguous
    np.testing.assert_allclose(image_BCHW[:, :, 1, 0] * IMAGE_STD + IMAGE_MEAN, np.array([[0, 128, 255], [255, 0, 64]]) / 255, atol=1e-6)


def test_constants_are_imagenets() -> None:
    np.testing.assert_allclose([*IMAGE_MEAN, *IMAGE_STD], [0.485, 0.456, 0.406, 0.229, 0.224, 0.225], rtol=1e-6)
