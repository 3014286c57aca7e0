"""What reviews speak of: verdicts with their masks, and the pictures, out of files alone. Nothing of the serving package is needed to read them.

Verdicts come as JSON lines, or as records of a recording whose value is a verdict; pictures as the files of a folder, told by their digest whatever
they are called, or as records whose value is a picture. Boxes and masks are in frame pixels; a face is cut as serving cut it (`engines.preprocess`).
"""

import hashlib
import re
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.contracts import Box, Mask
from engines.preprocess import Crop, crop_face, whole_image_crop
from trainer.image_index import IMAGE_FORMATS, MAX_FILE_BYTES, MAX_PIXELS
from trainer.recorded import value_of
from trainer.samples import SIDE

MAX_LINE_BYTES = 64 << 20
"""A recorded frame of 48 MiB in base64."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
NAMED = re.compile(r"([0-9a-f]{64})(?:-([0-9]{1,6}))?")
"""Stem of a file that says what it is: `SHA256.jpg` is checked against its name; `SHA256-12.png` is the still of frame 12 of a chunk."""

ImageHWC = NDArray[np.uint8]


class PictureKey(NamedTuple):
    """A picture, or one sampled frame of a chunk."""

    media_sha256: str
    frame: int | None


class _Read(BaseModel):
    """Of a verdict only what is needed here: newer minor versions add fields."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class RunLengths(_Read):
    """COCO run lengths over the frame."""

    size: tuple[int, int]
    counts: str = Field(max_length=10_000_000)


class ShownEvidence(_Read):
    """One phrase and its mask, in frame pixels."""

    id: str
    concept: str
    mask: RunLengths


class ShownQuality(_Read):
    """Of the crop."""

    passed: bool
    roll_deg: float | None = None


class ShownFace(_Read):
    """One face of a verdict."""

    id: int
    box: Box
    detection_confidence: float | None
    quality: ShownQuality
    fake_score: float
    evidence: tuple[ShownEvidence, ...] = ()


class _Frame(_Read):
    index: int
    faces: tuple[ShownFace, ...]


class _Engine(_Read):
    manifest_sha256: str


class _Verdict(_Read):
    id: str
    engine: _Engine
    faces: tuple[ShownFace, ...]
    frames: tuple[_Frame, ...] | None = None


@dataclass(frozen=True, slots=True)
class ShownVerdict:
    """One verdict, as far as reviews speak of it."""

    id: str
    engine: str
    sha256: str
    """Of its bytes."""
    faces: dict[tuple[int | None, int], ShownFace]
    """By sampled frame (None in an image) and id."""


def read_verdicts(path: Path) -> Iterator[ShownVerdict]:
    """Every verdict of a file. Raises ValueError naming the line that is none."""
    for number, line in _lines(path, "verdicts"):
        where = f"{path}, line {number}"
        payload = value_of(where, line, plain=True)
        if payload is None:
            continue
        try:
            verdict = _Verdict.model_validate_json(payload)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            at = ".".join(str(part) for part in first["loc"]) or "the line"
            raise ValueError(f"{where}: {at}: {first['msg']}; give verdicts as JSON lines, or a recording of their topic") from None
        faces: dict[tuple[int | None, int], ShownFace] = {(None, face.id): face for face in verdict.faces}
        faces |= {(frame.index, face.id): face for frame in verdict.frames or () for face in frame.faces}
        yield ShownVerdict(verdict.id, verdict.engine.manifest_sha256, hashlib.sha256(payload).hexdigest(), faces)


def read_pictures(path: Path, wanted: Collection[PictureKey]) -> Iterator[tuple[PictureKey, ImageHWC]]:
    """The wanted pictures that a folder or a recording holds, each once, (H, W, 3) uint8 RGB upright.

    Raises FileNotFoundError for neither, ValueError for a picture that is not the one its name says, or that cannot be decoded.
    """
    open_keys = set(wanted)
    for where, key, encoded in _named(path, open_keys) if path.is_dir() else _recorded(path, open_keys):
        open_keys.remove(key)
        yield key, decoded(where, encoded)


def _named(folder: Path, wanted: Collection[PictureKey]) -> Iterator[tuple[str, PictureKey, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file() or path.is_symlink():
            continue
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise ValueError(f"{path} has {size} bytes, {MAX_FILE_BYTES} are allowed; re-encode it, or take it out of the folder")
        content = path.read_bytes()
        found, named = hashlib.sha256(content).hexdigest(), NAMED.fullmatch(path.stem)
        if named is not None and named[2] is None and named[1] != found:
            raise ValueError(f"{path} has sha256 {found[:12]}, not what its name says; export it again, byte for byte")
        key = PictureKey(found, None) if named is None or named[2] is None else PictureKey(named[1], int(named[2]))
        if key in wanted:
            yield str(path), key, content


def _recorded(path: Path, wanted: Collection[PictureKey]) -> Iterator[tuple[str, PictureKey, bytes]]:
    for number, line in _lines(path, "frames"):
        value = value_of(f"{path}, line {number}", line, plain=False)
        if value is None:
            continue
        key = PictureKey(hashlib.sha256(value).hexdigest(), None)
        if key in wanted:
            yield f"{path}, line {number}", key, value


def _lines(path: Path, what: str) -> Iterator[tuple[int, bytes]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; give a file of {what} (JSON lines)")
    with path.open("rb") as source:
        number = 0
        while line := source.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"{path}, line {number}: more than {MAX_LINE_BYTES} bytes; no record is as long")
            if line.strip():
                yield number, line.rstrip(b"\r\n")


def decoded(where: str, content: bytes) -> ImageHWC:
    """(H, W, 3) uint8 RGB, upright. Raises ValueError for what is no picture or too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's looser limit of pixels; damaged EXIF
            with Image.open(BytesIO(content), formats=IMAGE_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{where} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}; scale it down")
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where} is no readable picture of {', '.join(IMAGE_FORMATS)} ({type(error).__name__}); export it again") from None


def face_crop(image_HWC: ImageHWC, box: Box, shown: ShownFace | None) -> Crop:
    """The face at 224 px, as serving cut it: whole where the frame came as a crop, turned upright where the verdict tells that it was tilted."""
    height, width = image_HWC.shape[:2]
    if (shown is not None and shown.detection_confidence is None) or (shown is None and box == (0.0, 0.0, float(width), float(height))):
        return whole_image_crop(image_HWC, SIDE)
    eyes_52 = None
    if shown is not None and shown.quality.roll_deg is not None:
        roll = np.radians(shown.quality.roll_deg)
        eyes_52 = np.zeros((5, 2), np.float32)
        eyes_52[1] = np.cos(roll), np.sin(roll)  # only the direction of the eye line counts
    return crop_face(image_HWC, box, eyes_52, SIDE)


def mask_in_crop(mask: RunLengths, crop: Crop, frame_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask of the frame on the (224, 224) crop. Raises ValueError for one of another frame's size, or that is none."""
    if mask.size != frame_hw:
        raise ValueError(
            f"a mask is of {mask.size[0]} x {mask.size[1]} pixels, its picture of {frame_hw[0]} x {frame_hw[1]}; they do not belong together"
        )
    try:
        decoded_HW = Mask(mask.size, mask.counts).decode()
    except ValueError as error:
        raise ValueError(f"run lengths {mask.counts[:20]!r} are none of a mask ({error}); give the verdict as it was written") from None
    # Pixel centres: crop pixel (x, y) has its centre at (x + 0.5, y + 0.5), OpenCV counts from centre to centre.
    matrix_23 = crop.to_frame_23.copy()
    matrix_23[:, 2] += matrix_23[:, :2] @ np.array([0.5, 0.5]) - 0.5
    warped = cv2.warpAffine(decoded_HW.astype(np.uint8) * 255, matrix_23, (SIDE, SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return np.asarray(warped >= 128)
