"""Bytes become a frame or a RecordError of a closed reason, whatever they are."""

import hashlib
import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from fifa_stream.decode import DecodeLimits, Frame, decode_image
from fifa_stream.records import Reason, RecordError

LIMITS = DecodeLimits()
WIDTH, HEIGHT = 48, 40


def _gradient() -> NDArray[np.uint8]:
    ys, xs = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([xs * 5, ys * 6, xs + ys], -1).astype(np.uint8)


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


JPEG = _encode(Image.fromarray(_gradient()), "JPEG", quality=95)
PNG = _encode(Image.fromarray(_gradient()), "PNG")
WEBP = _encode(Image.fromarray(_gradient()), "WEBP", lossless=True)


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(width: int, height: int, pixels: bytes = b"", depth: int = 8, color: int = 2) -> bytes:
    header = _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _png_chunk(b"IDAT", zlib.compress(pixels)) + _png_chunk(b"IEND", b"")


def _webp(width: int, height: int, flags: int = 0) -> bytes:
    body = struct.pack("<I", flags) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"WEBP" + b"VP8X" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunk)) + chunk


def _refusal(value: bytes, content_type: str | None = None, limits: DecodeLimits = LIMITS) -> RecordError:
    with pytest.raises(RecordError) as caught:
        decode_image(value, content_type=content_type, limits=limits)
    message = str(caught.value)
    assert "\n" not in message and message.isascii() and 0 < len(message) < 400
    return caught.value


def _decode(value: bytes, content_type: str | None = None) -> Frame:
    return decode_image(value, content_type=content_type, limits=LIMITS)


@pytest.mark.parametrize(
    ("value", "content_type", "tolerance"),
    [pytest.param(JPEG, "image/jpeg", 12, id="jpeg"), pytest.param(PNG, "image/png", 0, id="png"), pytest.param(WEBP, "image/webp", 0, id="webp")],
)
def test_three_formats_become_rgb_with_digest_and_size(value: bytes, content_type: str, tolerance: int) -> None:
    for declared in (None, content_type, "application/octet-stream"):
        frame = _decode(value, declared)
        assert frame.content_type == content_type
        assert (frame.sha256, frame.size_bytes) == (hashlib.sha256(value).hexdigest(), len(value))
        assert frame.image_HWC.shape == (HEIGHT, WIDTH, 3) and frame.image_HWC.dtype == np.uint8
        assert np.abs(frame.image_HWC.astype(int) - _gradient()).max() <= tolerance
        assert not frame.image_HWC.flags.writeable


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(b"", Reason.EMPTY_VALUE, id="zero-bytes"),
        pytest.param(bytes(32 * 1024 * 1024 + 1), Reason.RECORD_TOO_LARGE, id="over-32-mb"),
        pytest.param(bytes(1024), Reason.UNSUPPORTED_MEDIA, id="zeros"),
        pytest.param(b"hello, this is text", Reason.UNSUPPORTED_MEDIA, id="text"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", Reason.UNSUPPORTED_MEDIA, id="svg"),
        pytest.param(b"<?xml version='1.0'?><svg/>", Reason.UNSUPPORTED_MEDIA, id="svg-with-prolog"),
        pytest.param(b"\n<!DOCTYPE html><html></html>", Reason.UNSUPPORTED_MEDIA, id="html"),
        pytest.param(_encode(Image.fromarray(_gradient()), "GIF"), Reason.UNSUPPORTED_MEDIA, id="gif"),
        pytest.param(_encode(Image.fromarray(_gradient()), "BMP"), Reason.UNSUPPORTED_MEDIA, id="bmp"),
        pytest.param(_encode(Image.fromarray(_gradient()), "TIFF"), Reason.UNSUPPORTED_MEDIA, id="tiff"),
        pytest.param(b"\x00\x00\x00\x20ftypavif" + bytes(64), Reason.UNSUPPORTED_MEDIA, id="avif"),
        pytest.param(b"RIFF\x10\x00\x00\x00WAVEfmt " + bytes(64), Reason.UNSUPPORTED_MEDIA, id="wav"),
        pytest.param(JPEG[: len(JPEG) // 2], Reason.UNDECODABLE_IMAGE, id="truncated-jpeg"),
        pytest.param(JPEG[:3], Reason.UNDECODABLE_IMAGE, id="jpeg-magic-only"),
        pytest.param(PNG[: len(PNG) // 2], Reason.UNDECODABLE_IMAGE, id="truncated-png"),
        pytest.param(PNG[:8], Reason.UNDECODABLE_IMAGE, id="png-magic-only"),
        pytest.param(WEBP[: len(WEBP) // 2], Reason.UNDECODABLE_IMAGE, id="truncated-webp"),
        pytest.param(WEBP[:12], Reason.UNDECODABLE_IMAGE, id="webp-magic-only"),
        pytest.param(_png(60_000, 60_000), Reason.IMAGE_TOO_LARGE, id="60k-png"),
        pytest.param(_png(0, 0), Reason.IMAGE_TOO_SMALL, id="empty-png"),
        pytest.param(_png(8, 4000, bytes(25 * 4000)), Reason.IMAGE_TOO_SMALL, id="sliver"),
        pytest.param(_webp(16_384, 16_384), Reason.IMAGE_TOO_LARGE, id="huge-webp-canvas"),
        pytest.param(_webp(64, 64, flags=0x02), Reason.UNSUPPORTED_MEDIA, id="webp-animation-flag"),
    ],
)
def test_bad_bytes_have_one_reason_and_one_line(value: bytes, reason: Reason) -> None:
    assert _refusal(value).reason is reason


@pytest.mark.parametrize(
    ("value", "content_type"),
    [
        pytest.param(PNG, "image/jpeg", id="png-as-jpeg"),
        pytest.param(JPEG, "text/plain", id="jpeg-as-text"),
        pytest.param(JPEG, "video/mp4", id="jpeg-as-video"),
    ],
)
def test_a_content_type_that_disagrees_with_the_bytes_is_refused(value: bytes, content_type: str) -> None:
    assert _refusal(value, content_type).reason is Reason.MEDIA_MISMATCH


def test_image_jpg_is_understood() -> None:
    assert _decode(JPEG, "image/jpg").content_type == "image/jpeg"


@pytest.mark.parametrize("value", [pytest.param(_png(60_000, 60_000, bytes(4096)), id="png"), pytest.param(_webp(16_000, 16_000), id="webp")])
def test_a_header_that_claims_gigapixels_costs_nothing(value: bytes) -> None:
    tracemalloc.start()
    start = time.process_time()
    assert _refusal(value).reason is Reason.IMAGE_TOO_LARGE
    spent_s, (_, peak_bytes) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent_s < 0.2 and peak_bytes < 1_000_000


def test_a_large_jpeg_is_refused_by_its_header() -> None:
    value = JPEG.replace(struct.pack(">HH", HEIGHT, WIDTH), struct.pack(">HH", 60_000, 60_000))
    assert _refusal(value).reason is Reason.IMAGE_TOO_LARGE


def _jpeg_of_scans(count: int) -> bytes:
    """A progressive picture whose last scan, a refinement of a few bytes, is repeated until there are so many."""
    value = _encode(Image.fromarray(_gradient()).convert("L"), "JPEG", progressive=True)
    last = value.rindex(b"\xff\xda")
    return value[:last] + value[last:-2] * (count - value.count(b"\xff\xda") + 1) + value[-2:]


def _jpeg_with(segment: bytes, count: int) -> bytes:
    return JPEG[:2] + segment * count + JPEG[2:]


def _segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", 2 + len(body)) + body


EXIF_BLOCK = _segment(0xE1, b"Exif\0\0abcd")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        pytest.param(_jpeg_of_scans(65), "more than 64 scans", id="scans"),
        pytest.param(_jpeg_with(EXIF_BLOCK, 200_000), "more than 16 Exif blocks", id="exif"),
        pytest.param(_jpeg_with(_segment(0xE1, b"\xff\xda") + EXIF_BLOCK, 20_000), "more than 16 Exif blocks", id="exif-behind-a-seeming-scan"),
        pytest.param(_jpeg_with(b"\xff\xd9" + EXIF_BLOCK, 20_000), "more than 16 Exif blocks", id="exif-behind-a-seeming-end"),
        pytest.param(_jpeg_with(b"\xff\xf0" + EXIF_BLOCK, 20_000), "more than 16 Exif blocks", id="exif-where-pillow-reads-no-length"),
        pytest.param(_jpeg_with(_segment(0xFE, b""), 200_000), "more than 4096 segments", id="segments"),
        pytest.param(
            PNG[:33] + _png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1_000_000))) * 500 + PNG[33:], "16 colour profiles", id="profiles"
        ),
    ],
)
def test_an_image_that_takes_a_decoder_long_is_refused_at_once(value: bytes, says: str) -> None:
    start = time.process_time()
    error = _refusal(value)
    assert error.reason is Reason.UNSUPPORTED_MEDIA and says in str(error)
    assert time.process_time() - start < 0.2


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(_jpeg_of_scans(64), id="scans"),
        pytest.param(_jpeg_with(EXIF_BLOCK, 16), id="exif"),
        pytest.param(JPEG + b"\xff\xda" * 500, id="behind-the-end"),
        pytest.param(_jpeg_with(_segment(0xE2, b"\xff\xda" * 500), 1), id="inside-a-segment"),
    ],
)
def test_scans_and_blocks_that_cameras_write_are_not_in_the_way(value: bytes) -> None:
    assert _decode(value).image_HWC.shape == (HEIGHT, WIDTH, 3)


def test_the_pixel_limit_is_ours_and_not_pillows() -> None:
    limits = DecodeLimits(max_pixels=WIDTH * HEIGHT - 1)
    assert _refusal(PNG, limits=limits).reason is Reason.IMAGE_TOO_LARGE
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    pictures = [Image.fromarray(np.full((HEIGHT, WIDTH, 3), level, np.uint8)) for level in (0, 120, 240)]
    value = _encode(pictures[0], kind, save_all=True, append_images=pictures[1:])
    assert _refusal(value).reason is Reason.UNSUPPORTED_MEDIA


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = Image.fromarray(_gradient())
    back = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if back is None else upright.transpose(back)
    assert np.array_equal(_decode(_encode(stored, "PNG", exif=exif)).image_HWC, _gradient())


def test_broken_exif_leaves_the_image_as_stored() -> None:
    value = _encode(Image.fromarray(_gradient()), "JPEG", quality=95, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert _decode(value).image_HWC.shape == (HEIGHT, WIDTH, 3)


def test_transparency_is_laid_on_black() -> None:
    pixels = np.full((HEIGHT, WIDTH, 4), 200, np.uint8)
    pixels[..., 3] = 0
    pixels[:20, :, 3] = 255
    for value in (_encode(Image.fromarray(pixels), "PNG"), _encode(Image.fromarray(pixels), "WEBP", lossless=True)):
        image_HWC = _decode(value).image_HWC
        assert (image_HWC[:20] == 200).all() and (image_HWC[20:] == 0).all()


def test_a_palette_with_a_transparent_color_is_laid_on_black() -> None:
    palette = Image.fromarray(np.repeat([[0, 1]], HEIGHT, 0).repeat(WIDTH // 2, 1).astype(np.uint8), "P")
    palette.putpalette([255, 255, 255, 10, 20, 30])
    image_HWC = _decode(_encode(palette, "PNG", transparency=0)).image_HWC
    assert (image_HWC[:, 0] == 0).all() and (image_HWC[:, -1] == (10, 20, 30)).all()


def test_sixteen_bit_gray_keeps_its_range() -> None:
    levels = np.linspace(0, 65_535, WIDTH).astype(np.uint16)
    image_HWC = _decode(_encode(Image.fromarray(np.repeat(levels[None], HEIGHT, 0)), "PNG")).image_HWC
    assert np.array_equal(image_HWC[0, :, 1], levels >> 8)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(np.full((HEIGHT, WIDTH, 3), 255, np.uint8)).convert(mode)
    value = _encode(image, "JPEG" if mode == "CMYK" else "PNG")
    assert (_decode(value).image_HWC >= 250).all()


@given(
    value=st.sampled_from([JPEG, PNG, WEBP]),
    changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=12),
    length=st.integers(1, 4000),
)
@settings(max_examples=150, deadline=None)
def test_mutated_bytes_give_an_image_or_a_record_error(value: bytes, changes: list[tuple[int, int]], length: int) -> None:
    mutated = bytearray(value[: max(length, len(value) // 4)])
    for position, byte in changes:
        mutated[position % len(mutated)] = byte
    try:
        frame = decode_image(bytes(mutated), content_type=None, limits=LIMITS)
    except RecordError as error:
        assert "\n" not in str(error)
    else:
        assert frame.image_HWC.ndim == 3 and frame.image_HWC.shape[2] == 3


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x00\x00\x00\x00WEBPVP8X", PNG[:33], JPEG[:200]]))
@settings(max_examples=150, deadline=None)
def test_junk_behind_any_magic_is_a_record_error(junk: bytes, magic: bytes) -> None:
    with pytest.raises(RecordError):
        decode_image(magic + junk, content_type=None, limits=LIMITS)
