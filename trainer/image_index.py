"""An index of image files under one folder -> faces. Nothing outside the folder is read, and what cannot be taken is refused with one line."""

import struct
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.faces import Face, ImageHWC, Part

MAX_FACES = 100_000
MAX_FILE_BYTES = 32 << 20
MAX_PIXELS = 50_000_000
"""Of one image: the largest photographs of common cameras."""
MAX_TOTAL_BYTES = 16 << 30
"""Of all images of a set: faces stay in memory, encoded."""
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MASK_FROM = 128
"""Grey level from which a mask's pixel was changed."""
_EXIF_ORIENTATION, _FIRST_TURNED = 0x0112, 5
"""EXIF orientations from 5 on lay the picture on its side; decoding sets it right, so width and height change places."""

WindowXYWH = tuple[int, int, int, int]
Cropper = Callable[[ImageHWC], WindowXYWH | None]
"""(H, W, 3) uint8 RGB to the face's window in its pixels, or None without a face: the whole image is then taken."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of an index, before its image is opened. Fields as in `Face`; files lie below the folder and are written with forward slashes."""

    where: str
    """What errors call it."""
    name: str
    file: str
    is_fake: bool
    forgery_type: str | None
    unit: str
    part: Part
    real_twin: str | None = None
    mask_file: str | None = None


def read_faces(folder: Path, dataset: str, entries: Sequence[Entry], crop: Cropper | None = None) -> list[Face]:
    """Read every image and mask, in order. A fake is cut where its twin is if both have one size, so that a pair stays aligned.

    Raises ValueError for an empty or too large set; FileNotFoundError or ValueError for the first file that cannot be taken.
    """
    if not 0 < len(entries) <= MAX_FACES:
        raise ValueError(f"{folder}: {len(entries)} images, a set has 1 to {MAX_FACES}; choose another part of it, or fewer frames")
    root, total = folder.resolve(), 0
    faces: dict[str, Face] = {}
    sizes_wh: dict[str, tuple[int, int]] = {}
    for entry in sorted(entries, key=lambda e: e.is_fake):  # reals first: their windows decide
        encoded = _bytes_below(root, entry.file, entry.where)
        _, size_wh = _header(encoded, entry.file, entry.where)
        mask = None if entry.mask_file is None else _mask_bytes(root, entry.mask_file, size_wh, entry.where)
        total += len(encoded) + len(mask or b"")
        if total > MAX_TOTAL_BYTES:
            raise ValueError(f"{folder}: more than {MAX_TOTAL_BYTES >> 30} GiB of images; choose a part of the set, or fewer frames")
        face = Face(entry.name, dataset, encoded, None, entry.is_fake, entry.forgery_type, entry.unit, entry.part, entry.real_twin, mask_encoded=mask)
        if crop is not None:
            twin = entry.real_twin or ""
            window = faces[twin].window_xywh if sizes_wh.get(twin) == size_wh else crop(face.image())
            face = replace(face, window_xywh=window)
        faces[entry.name], sizes_wh[entry.name] = face, size_wh
    return [faces[entry.name] for entry in entries]


def exact_mask(face: Face) -> NDArray[np.bool_] | None:
    """Where the face was changed, (H, W) bool in the pixels of `face.image()`; None where its set brings no mask."""
    if face.mask_encoded is None:
        return None
    decoded_HW = cv2.imdecode(np.frombuffer(face.mask_encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
    if decoded_HW is None:
        raise ValueError(f"the mask of {face.dataset}/{face.name} does not decode; write it again as PNG")
    if face.window_xywh is not None:
        x, y, w, h = face.window_xywh
        decoded_HW = decoded_HW[y : y + h, x : x + w]
    return np.asarray(decoded_HW >= MASK_FROM)


def _bytes_below(root: Path, file: str, where: str) -> bytes:
    """Read a file of the resolved folder `root`, out of which neither the path nor a link leads."""
    plain = PurePosixPath(file)
    if not file or "\0" in file or plain.is_absolute() or ".." in plain.parts or not (path := (root / plain).resolve()).is_relative_to(root):
        raise ValueError(f"{where}: {file!r} is not below {root}; name a file in it, without .. and without a link that leads out")
    if not path.is_file():
        raise FileNotFoundError(f"{where}: there is no file {file!r} in {root}; correct the path or copy the file there")
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise ValueError(f"{where}: {file!r} has {size} bytes, {MAX_FILE_BYTES} are allowed; re-encode it")
    return path.read_bytes()


def _header(encoded: bytes, file: str, where: str) -> tuple[str, tuple[int, int]]:
    """Format and (width, height) that decoding will give; no pixel is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's looser limit of pixels, and of damaged EXIF
            with Image.open(BytesIO(encoded), formats=IMAGE_FORMATS) as image:
                kind, exif = image.format or "", Image.Exif()
                exif.load(image.info.get("exif", b""))  # `getexif` would decode a PNG
                turned = exif.get(_EXIF_ORIENTATION, 1) >= _FIRST_TURNED
                width, height = image.size[::-1] if turned else image.size
    except Image.DecompressionBombError:
        raise ValueError(f"{where}: {file!r} has more than {MAX_PIXELS} pixels; scale it down") from None
    except (OSError, ValueError, SyntaxError, TypeError, struct.error) as error:
        raise ValueError(f"{where}: {file!r} is no readable image of {', '.join(IMAGE_FORMATS)} ({type(error).__name__}); re-encode it") from None
    if width * height > MAX_PIXELS:
        raise ValueError(f"{where}: {file!r} has {width} x {height} pixels, more than {MAX_PIXELS}; scale it down")
    return kind, (width, height)


def _mask_bytes(root: Path, file: str, size_wh: tuple[int, int], where: str) -> bytes:
    encoded = _bytes_below(root, file, where)
    kind, mask_wh = _header(encoded, file, where)
    if kind != "PNG" or mask_wh != size_wh:
        found, wanted = (f"{side[0]} x {side[1]}" for side in (mask_wh, size_wh))
        raise ValueError(f"{where}: mask {file!r} is {kind} of {found} pixels; write a PNG of its image's size, {wanted}")
    return encoded
