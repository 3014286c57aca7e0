"""CenterFace (arXiv:1911.03599) as NumPy around one engine call: a frame in, boxes and five landmarks out.

Input of the network: RGB, float32, 0..255, sides a multiple of 32. Outputs on a grid of stride 4: face heat map, log box size, box offset, landmarks.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STRIDE = 4
SIDE_MULTIPLE = 32
IOU_LIMIT = 0.3


@dataclass(frozen=True, slots=True)
class Detection:
    """One face in frame pixels."""

    box_xyxy: tuple[float, float, float, float]
    landmarks_52: NDArray[np.float32]
    """Right eye, left eye, nose tip, right and left mouth corner (the subject's sides), as (x, y)."""
    confidence: float


def detector_input(image_HWC: NDArray[np.uint8], max_side: int) -> tuple[NDArray[np.float32], float, float]:
    """Resize a frame for the network; return image_1CHW and the factors from network pixels to frame pixels (x, y)."""
    height, width = image_HWC.shape[:2]
    shrink = min(1.0, max_side / max(height, width))
    net_width = max(SIDE_MULTIPLE, math.ceil(width * shrink / SIDE_MULTIPLE) * SIDE_MULTIPLE)
    net_height = max(SIDE_MULTIPLE, math.ceil(height * shrink / SIDE_MULTIPLE) * SIDE_MULTIPLE)
    resized = Image.fromarray(image_HWC).resize((net_width, net_height), Image.Resampling.BILINEAR)
    image_1CHW = np.ascontiguousarray(np.asarray(resized, np.float32).transpose(2, 0, 1)[None])
    return image_1CHW, width / net_width, height / net_height


def decode_faces(
    heatmap_HW: NDArray[np.float32],
    scale_2HW: NDArray[np.float32],
    offset_2HW: NDArray[np.float32],
    landmarks_10HW: NDArray[np.float32],
    *,
    factor_xy: tuple[float, float],
    frame_size_wh: tuple[int, int],
    threshold: float,
) -> list[Detection]:
    """Turn the network's grids into faces in frame pixels, best first, after non-maximum suppression."""
    rows, columns = np.nonzero(heatmap_HW > threshold)
    if rows.size == 0:
        return []
    scores = heatmap_HW[rows, columns]
    heights = np.exp(scale_2HW[0, rows, columns]) * STRIDE
    widths = np.exp(scale_2HW[1, rows, columns]) * STRIDE
    left = (columns + offset_2HW[1, rows, columns] + 0.5) * STRIDE - widths / 2
    top = (rows + offset_2HW[0, rows, columns] + 0.5) * STRIDE - heights / 2
    points = landmarks_10HW[:, rows, columns].T.reshape(-1, 5, 2)  # (y, x) as fractions of the box
    landmarks = np.stack([left[:, None] + points[..., 1] * widths[:, None], top[:, None] + points[..., 0] * heights[:, None]], -1)
    boxes = np.stack([left, top, left + widths, top + heights], -1)
    factors = np.array([*factor_xy, *factor_xy], np.float32)
    boxes = boxes * factors
    landmarks = landmarks * factors[:2]
    limits = np.array([*frame_size_wh, *frame_size_wh], np.float32)
    faces = []
    for index in _keep_best(boxes, scores):
        x0, y0, x1, y1 = np.clip(boxes[index], 0, limits).tolist()
        if x1 - x0 >= 1 and y1 - y0 >= 1:
            faces.append(Detection((x0, y0, x1, y1), landmarks[index].astype(np.float32), float(scores[index])))
    return faces


def _keep_best(boxes_N4: NDArray[np.float32], scores_N: NDArray[np.float32]) -> list[int]:
    """Non-maximum suppression: indices of the boxes that no better box overlaps by more than `IOU_LIMIT`."""
    order = np.argsort(-scores_N, kind="stable")
    areas = (boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])
    kept: list[int] = []
    while order.size:
        best, rest = int(order[0]), order[1:]
        kept.append(best)
        top_left = np.maximum(boxes_N4[best, :2], boxes_N4[rest, :2])
        bottom_right = np.minimum(boxes_N4[best, 2:], boxes_N4[rest, 2:])
        overlap = np.prod(np.clip(bottom_right - top_left, 0, None), axis=1)
        order = rest[overlap / (areas[best] + areas[rest] - overlap) <= IOU_LIMIT]
    return kept
