"""Frame to face crop to model input: the one implementation that trains, calibrates and serves.

A crop is a square around the detector's box, `CROP_SCALE` times its shorter side and never smaller than its longer one (CenterFace boxes are tall:
faces then fill the crop as they do in the training sets), turned upright when the eye line is tilted by more than `ROLL_LIMIT_DEG`, and resized
with antialiasing. Every crop carries the affine map back to frame pixels, so masks can go home.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CROP_SCALE = 1.3
ROLL_LIMIT_DEG = 15.0
"""Faces tilted less than this are cropped axis-aligned: training sees +-10 degrees, and turning costs sharpness."""

IMAGE_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGE_STD = np.array([0.229, 0.224, 0.225], np.float32)
"""ImageNet statistics, as DINOv2 was trained with."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A square face crop and its place in the frame."""

    image_HWC: NDArray[np.uint8]
    """(size, size, 3) RGB."""
    to_frame_23: NDArray[np.float64]
    """Affine map from crop pixels (x, y, 1) to frame pixels (x, y)."""


def crop_side(box_xyxy: tuple[float, float, float, float]) -> float:
    """Side of the square around a face box, in the box's pixels; at least 1."""
    x0, y0, x1, y1 = box_xyxy
    shorter, longer = sorted((x1 - x0, y1 - y0))
    return max(shorter * CROP_SCALE, longer, 1.0)


def crop_face(
    image_HWC: NDArray[np.uint8],
    box_xyxy: tuple[float, float, float, float],
    landmarks_52: NDArray[np.float32] | None,
    size: int,
) -> Crop:
    """Cut one face out of an RGB frame.

    `box_xyxy` and `landmarks_52` (right eye, left eye, nose, mouth corners, the subject's right first) are in frame pixels. What lies outside
    the frame is black.
    """
    x0, y0, x1, y1 = box_xyxy
    center_x, center_y = (x0 + x1) / 2, (y0 + y1) / 2
    side = crop_side(box_xyxy)
    roll = 0.0
    if landmarks_52 is not None:
        dx, dy = (landmarks_52[1] - landmarks_52[0]).tolist()
        roll = math.atan2(dy, dx)
        if abs(math.degrees(roll)) < ROLL_LIMIT_DEG or abs(math.degrees(roll)) > 120:
            roll = 0.0
    scale = side / size
    cos, sin = math.cos(roll) * scale, math.sin(roll) * scale
    half = size / 2
    # Pixel centres: crop (size/2, size/2) lands on the box centre.
    to_frame_23 = np.array([[cos, -sin, center_x - cos * half + sin * half], [sin, cos, center_y - sin * half - cos * half]], np.float64)
    if roll == 0.0:
        left, top = center_x - side / 2, center_y - side / 2
        box = (math.floor(left), math.floor(top), math.ceil(left + side), math.ceil(top + side))
        # Pillow copies what it is given, so it is given no more of the frame than the face is cut from (a pixel at least).
        height, width = image_HWC.shape[:2]
        x, y = min(max(box[0], 0), width - 1), min(max(box[1], 0), height - 1)
        near = Image.fromarray(image_HWC[y : max(box[3], y + 1), x : max(box[2], x + 1)])
        window = near.crop((box[0] - x, box[1] - y, box[2] - x, box[3] - y))  # pads with black beyond the frame
        crop = window.resize(
            (size, size),
            Image.Resampling.BILINEAR,
            box=(left - box[0], top - box[1], left - box[0] + side, top - box[1] + side),
        )
    else:
        # Turn at no less than the frame's own resolution, then shrink with antialiasing: an affine transform alone would alias.
        fine = max(size, math.ceil(side))
        ratio = size / fine
        coefficients = (*(to_frame_23[0, :2] * ratio), to_frame_23[0, 2], *(to_frame_23[1, :2] * ratio), to_frame_23[1, 2])
        turned = Image.fromarray(image_HWC).transform((fine, fine), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
        crop = turned.resize((size, size), Image.Resampling.BILINEAR)
    return Crop(np.asarray(crop), to_frame_23)


def whole_image_crop(image_HWC: NDArray[np.uint8], size: int) -> Crop:
    """Take an image that already is a face crop: resized to the model's square, aspect ratio not kept."""
    height, width = image_HWC.shape[:2]
    crop = Image.fromarray(image_HWC).resize((size, size), Image.Resampling.BILINEAR)
    to_frame_23 = np.array([[width / size, 0.0, 0.0], [0.0, height / size, 0.0]], np.float64)
    return Crop(np.asarray(crop), to_frame_23)


def to_model_input(crops_BHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return image_BCHW float32, normalised by ImageNet statistics, from (B, H, W, 3) uint8 RGB."""
    image_BCHW = crops_BHWC.transpose(0, 3, 1, 2).astype(np.float32, order="C")  # planes first: what follows then runs along whole rows, in place
    image_BCHW /= 255.0
    image_BCHW -= IMAGE_MEAN[:, None, None]
    image_BCHW /= IMAGE_STD[:, None, None]
    return image_BCHW
