"""The frames that are measured: the demo's photographs, untouched and manipulated, each under several lights and codecs, with the engine's score.

What is explained is decided by that score and nothing else, so a stream with any share of explained faces can be made of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from engines.analyzer import Analyzer
from engines.bundle import Bundle
from fifa_stream.decode import DecodeLimits, decode_image
from fifa_stream.demo_photographs import demo_frames
from fifa_stream.detect import DetectLimits, FaceDetector

_EDITS: tuple[tuple[Callable[[Image.Image], Image.Image], int], ...] = (
    (lambda image: image, 60),
    (lambda image: image, 75),
    (lambda image: ImageEnhance.Brightness(image).enhance(1.2), 92),
    (lambda image: ImageEnhance.Brightness(image).enhance(0.7), 92),
    (lambda image: ImageEnhance.Contrast(image).enhance(0.8), 92),
    (lambda image: ImageEnhance.Contrast(image).enhance(1.3), 92),
    (lambda image: ImageEnhance.Color(image).enhance(0.6), 92),
    (lambda image: ImageEnhance.Color(image).enhance(1.4), 92),
    (lambda image: ImageEnhance.Sharpness(image).enhance(2.0), 92),
    (lambda image: image.filter(ImageFilter.GaussianBlur(1)), 92),
    (lambda image: image.convert("L").convert("RGB"), 92),
)
"""What is done to a photograph, and the JPEG quality it is stored in."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A JPEG with one face."""

    encoded: bytes
    crop_HWC: NDArray[np.uint8]
    fake_score: float


def frames(bundle: Bundle) -> list[Frame]:
    """About a hundred frames, those first that the engine finds most fake."""
    detector = FaceDetector(bundle.engines["face_detector"], crop_size=bundle.manifest.preprocess.image_size, limits=DetectLimits())
    photographs = [frame.encoded for frame in demo_frames() if frame.kind in ("untouched", "manipulated")]
    encoded = [jpeg for photograph in photographs for jpeg in (photograph, *_edited(photograph))]
    found = [detector.detect(decode_image(jpeg, content_type="image/jpeg", limits=DecodeLimits()).image_HWC).faces for jpeg in encoded]
    crops = [(jpeg, faces[0].crop.image_HWC) for jpeg, faces in zip(encoded, found, strict=True) if len(faces) == 1 and faces[0].quality.passed]
    analyzer = Analyzer(bundle)
    scores = analyzer.calibrated(analyzer.encode(np.stack([crop for _, crop in crops]))["det_logit"])
    judged = [Frame(jpeg, crop, float(score)) for (jpeg, crop), score in zip(crops, scores, strict=True)]
    return sorted(judged, key=lambda frame: -frame.fake_score)


def _edited(photograph: bytes) -> list[bytes]:
    with Image.open(BytesIO(photograph)) as opened:
        image = opened.convert("RGB")
    edited = []
    for edit, quality in _EDITS:
        buffer = BytesIO()
        edit(image).save(buffer, "JPEG", quality=quality)
        edited.append(buffer.getvalue())
    return edited
