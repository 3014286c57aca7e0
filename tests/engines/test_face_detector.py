"""CenterFace around its network: planted grids give the planted faces."""

import numpy as np
import pytest

from engines.face_detector import IOU_LIMIT, SIDE_MULTIPLE, STRIDE, Detection, decode_faces, detector_input

POINTS = np.array([[0.3, 0.35], [0.7, 0.35], [0.5, 0.55], [0.35, 0.8], [0.65, 0.8]])
"""Landmarks as (x, y) fractions of the box."""
Box = tuple[float, float, float, float]


def decode(faces: list[tuple[Box, float]], *, factor_xy: tuple[float, float] = (1.0, 1.0), size: tuple[int, int] = (160, 128)) -> list[Detection]:
    """Plant faces (box in network pixels, confidence) and read them back."""
    width, height = size
    heatmap, scale, offset, landmarks = (np.zeros((channels, height // STRIDE, width // STRIDE), np.float32) for channels in (1, 2, 2, 10))
    for (x0, y0, x1, y1), confidence in faces:
        center_x, center_y = (x0 + x1) / 2 / STRIDE, (y0 + y1) / 2 / STRIDE
        cell = int(center_y), int(center_x)
        heatmap[0, *cell] = confidence
        scale[:, *cell] = np.log([(y1 - y0) / STRIDE, (x1 - x0) / STRIDE])
        offset[:, *cell] = center_y - cell[0] - 0.5, center_x - cell[1] - 0.5
        landmarks[:, *cell] = POINTS[:, ::-1].ravel()
    frame_size_wh = round(width * factor_xy[0]), round(height * factor_xy[1])
    return decode_faces(heatmap[0], scale, offset, landmarks, factor_xy=factor_xy, frame_size_wh=frame_size_wh, threshold=0.5)


def test_planted_faces_come_back_with_their_landmarks_best_first() -> None:
    planted = [((10.0, 12.0, 42.0, 60.0), 0.7), ((90.0, 40.0, 130.0, 101.0), 0.9)]
    found = decode(planted, factor_xy=(2.0, 1.5))
    assert [round(face.confidence, 3) for face in found] == [0.9, 0.7]
    for face, ((x0, y0, x1, y1), _) in zip(found, reversed(planted), strict=True):
        np.testing.assert_allclose(face.box_xyxy, [2 * x0, 1.5 * y0, 2 * x1, 1.5 * y1], rtol=1e-5)
        np.testing.assert_allclose(face.landmarks_52, (POINTS * [x1 - x0, y1 - y0] + [x0, y0]) * [2.0, 1.5], rtol=1e-5)


def test_nothing_is_found_below_the_threshold() -> None:
    assert decode([((10.0, 10.0, 40.0, 40.0), 0.49)]) == []


def test_of_overlapping_boxes_only_the_best_stays() -> None:
    found = decode([((20.0, 20.0, 60.0, 60.0), 0.6), ((24.0, 22.0, 64.0, 62.0), 0.95), ((28.0, 20.0, 68.0, 60.0), 0.7)])
    assert [face.confidence for face in found] == [pytest.approx(0.95)]


@pytest.mark.parametrize(("shift", "kept"), [pytest.param(20.0, 1, id="iou-above-limit"), pytest.param(24.0, 2, id="iou-below-limit")])
def test_boxes_are_rivals_from_the_limit_on(shift: float, kept: int) -> None:
    iou = (40 - shift) / (40 + shift)
    assert (iou > IOU_LIMIT) is (kept == 1)
    assert len(decode([((20.0, 20.0, 60.0, 60.0), 0.9), ((20.0 + shift, 20.0, 60.0 + shift, 60.0), 0.8)])) == kept


def test_boxes_end_at_the_frame() -> None:
    (face,) = decode([((-10.0, -8.0, 30.0, 40.0), 0.9)])
    assert face.box_xyxy == pytest.approx((0.0, 0.0, 30.0, 40.0), abs=1e-4)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (1080, 1920), (33, 31), (7, 500)])
def test_network_input_maps_back_to_the_frame(height: int, width: int) -> None:
    image_1CHW, factor_x, factor_y = detector_input(np.full((height, width, 3), 77, np.uint8), 640)
    _, channels, net_height, net_width = image_1CHW.shape
    assert channels == 3 and image_1CHW.dtype == np.float32 and (image_1CHW == 77).all()
    assert net_height % SIDE_MULTIPLE == 0 and net_width % SIDE_MULTIPLE == 0 and max(net_height, net_width) <= 640
    assert (net_width * factor_x, net_height * factor_y) == pytest.approx((width, height))
