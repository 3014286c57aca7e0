"""Stage 2: encoded bytes to a frame of RGB pixels. Nothing about a byte string is believed before it is checked.

The format is what the magic bytes say (JPEG, PNG, WebP), a declared content type must agree with it, and the size is read from the header before any
pixel is decoded. Animations (APNG, WebP) are refused: a verdict on the first picture would be silent about the others.
"""

import hashlib
import re
import struct
import warnings
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from fifa_stream.media import JPEG, PNG, check_declared, guess, sniff
from fifa_stream.mp4 import MP4
from fifa_stream.records import Reason, RecordError

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_JPEG_SCANS = 64
"""Each goes over all pixels (30 ms of 33 megapixels) and may be a few dozen bytes; progressive encoders write about ten."""
MAX_JPEG_SEGMENTS = 4096
"""One holds 64 KB, so a file of 32 MiB needs 512 for whatever it carries."""
MAX_JPEG_EXIF = 16
"""Pillow joins them one by one, copying what it has each time; cameras write one."""
MAX_PNG_PROFILES = 16
"""The standard knows one; Pillow unpacks each that it meets, to a megabyte."""
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""Neither a stuffed byte of pixel data nor a restart inside it."""
_JPEG_BARE = frozenset((0x01, 0xD8, 0xD9, *range(0xF0, 0xFE)))
"""Markers that Pillow reads no length behind."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What an encoded image may be."""

    max_image_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 33_554_432
    """8192x4096, which an 8K video frame fits: 100 MB as RGB."""
    min_side_px: int = 32


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded image."""

    image_HWC: NDArray[np.uint8]
    """(height, width, 3) RGB, upright as EXIF says, transparency on black, read-only."""
    content_type: str
    """As found in the bytes, not as declared."""
    sha256: str
    """Of the encoded bytes."""
    size_bytes: int


def decode_image(value: bytes, *, content_type: str | None, limits: DecodeLimits) -> Frame:
    """Decode one JPEG, PNG or WebP.

    Raises RecordError (`empty_value`, `record_too_large`, `unsupported_media`, `media_mismatch`, `image_too_large`, `image_too_small`,
    `undecodable_image`) and nothing else for any bytes.
    """
    if not value:
        raise RecordError(Reason.EMPTY_VALUE, "the image has no bytes; send the encoded image as the value")
    if len(value) > limits.max_image_bytes:
        raise RecordError(
            Reason.RECORD_TOO_LARGE, f"the image has {len(value)} bytes, at most {limits.max_image_bytes} are accepted; compress it more"
        )
    found = sniff(value)
    if found is None:
        raise RecordError(Reason.UNSUPPORTED_MEDIA, f"the bytes are {guess(value)}, not JPEG, PNG, WebP or MP4; convert them before sending")
    if found == MP4:
        raise RecordError(Reason.UNSUPPORTED_MEDIA, f"the bytes are {MP4}, and one picture is wanted; give JPEG, PNG or WebP")
    check_declared(content_type, found)
    try:
        with warnings.catch_warnings():
            # Pillow warns about what it can live with (broken EXIF, odd chunks); an operator can do nothing about a sender's metadata.
            warnings.simplefilter("ignore")
            image_HWC = _decode(value, found, limits)
    except (RecordError, MemoryError):
        raise
    except Exception as error:  # decoders raise a dozen types on broken bytes: OSError, SyntaxError, ValueError, struct.error, ...
        cause = " ".join(str(error).split())[:120] or type(error).__name__
        raise RecordError(Reason.UNDECODABLE_IMAGE, f"the {found} cannot be decoded: {cause}; send the whole, undamaged file") from error
    image_HWC.flags.writeable = False
    return Frame(image_HWC, found, hashlib.sha256(value).hexdigest(), len(value))


def _decode(value: bytes, found: str, limits: DecodeLimits) -> NDArray[np.uint8]:
    # The plugin classes are used directly: Image.open warns or raises by Pillow's own global pixel limit, ours is checked here.
    image: ImageFile.ImageFile
    if found == JPEG:
        _refuse_slow_jpeg(value)
        image = JpegImageFile(BytesIO(value))  # reads markers up to the first scan
        _check_size(*image.size, limits)
    elif found == PNG:
        _check_size(*_png_size(value), limits)
        if value.count(b"iCCP") > MAX_PNG_PROFILES:
            raise RecordError(Reason.UNSUPPORTED_MEDIA, f"the image/png has more than {MAX_PNG_PROFILES} colour profiles; save it anew")
        image = PngImageFile(BytesIO(value))
        _check_size(*image.size, limits)  # a second IHDR may say something else
    else:
        _check_size(*_webp_size(value), limits)  # first: Pillow's constructor already allocates the canvas, twice
        image = WebPImageFile(BytesIO(value))
    with image:
        if getattr(image, "n_frames", 1) > 1:
            raise RecordError(Reason.UNSUPPORTED_MEDIA, f"the {found} is an animation; send each picture as its own record")
        image.load()
        upright = _UPRIGHT.get(_orientation(image))
        return _to_rgb(image if upright is None else image.transpose(upright))


def _refuse_slow_jpeg(value: bytes) -> None:
    """Count what a decoder takes time for, however small the file: segments and scans up to the end of the picture."""
    num_segments, num_exif, num_scans, at = 0, 0, 0, 2
    counts_scans = value.count(b"\xff\xda") > MAX_JPEG_SCANS  # else nothing behind the first one need be read
    while (marker := _JPEG_MARKER.search(value, at)) is not None:
        kind, at = value[marker.end() - 1], marker.end()
        num_segments += 1
        num_scans += kind == 0xDA
        if num_scans and (kind == 0xD9 or not counts_scans):
            return
        if kind == 0xE1:
            num_exif += value.startswith(b"Exif\0\0", at + 2)
        limits = (num_scans, MAX_JPEG_SCANS, "scans"), (num_exif, MAX_JPEG_EXIF, "Exif blocks"), (num_segments, MAX_JPEG_SEGMENTS, "segments")
        for count, limit, what in limits:
            if count > limit:
                raise RecordError(Reason.UNSUPPORTED_MEDIA, f"the image/jpeg has more than {limit} {what}; save it anew")
        if kind not in _JPEG_BARE:
            at += int.from_bytes(value[at : at + 2])


def _check_size(width: int, height: int, limits: DecodeLimits) -> None:
    if width * height > limits.max_pixels:
        raise RecordError(
            Reason.IMAGE_TOO_LARGE, f"the image is {width}x{height} pixels, limits.max_pixels is {limits.max_pixels}; send a smaller one"
        )
    if min(width, height) < limits.min_side_px:
        raise RecordError(Reason.IMAGE_TOO_SMALL, f"the image is {width}x{height} pixels, each side needs {limits.min_side_px}; send a larger one")


def _png_size(value: bytes) -> tuple[int, int]:
    if value[12:16] != b"IHDR":
        raise ValueError("the first PNG chunk is not IHDR")
    width, height = struct.unpack(">II", value[16:24])
    return width, height


def _webp_size(value: bytes) -> tuple[int, int]:
    """Canvas size from the first chunk (RFC 9649, Sec. 2.5-2.7)."""
    kind = value[12:16]
    if kind == b"VP8X":
        if value[20] & 0x02:
            raise RecordError(Reason.UNSUPPORTED_MEDIA, "the image/webp is an animation; send each picture as its own record")
        return 1 + int.from_bytes(value[24:27], "little"), 1 + int.from_bytes(value[27:30], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", value[21:25])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", value[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("the first WebP chunk is none of VP8, VP8L, VP8X")


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation; 1 (upright) where there is none or it cannot be read, as image viewers do."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a broken EXIF block has as many exception types as a broken image, and the pixels are whole
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """8-bit RGB from any mode that the three formats decode to: 16-bit gray keeps its high byte, transparency is laid on black."""
    if image.mode.startswith("I"):  # I;16 of 16-bit PNG, I of older Pillow: values 0..65535, which convert() would clip at 255
        gray_HW = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(np.repeat(gray_HW[..., None], 3, axis=2))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return np.array(Image.alpha_composite(black, rgba).convert("RGB"))
    return np.array(image.convert("RGB"))
