"""What encoded bytes are: by their first bytes, and held against what a record declares."""

from fifa_stream.mp4 import MP4, is_mp4
from fifa_stream.records import Reason, RecordError

JPEG, PNG, WEBP = "image/jpeg", "image/png", "image/webp"
UNDECLARED = "application/octet-stream"
"""Says 'bytes': treated as no declaration."""

_ALIASES = {
    "image/jpg": JPEG,
    "image/pjpeg": JPEG,
    "image/x-png": PNG,
    "video/quicktime": MP4,
    "video/x-m4v": MP4,
    "application/mp4": MP4,
}
_OTHER_FORMATS = (
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip"),
    (b"<svg", "SVG"),
    (b"<!doctype", "HTML"),
    (b"<html", "HTML"),
    (b"<?xml", "XML or SVG"),
    (b"{", "JSON"),
)


def sniff(value: bytes) -> str | None:
    """The content type that the first bytes show; None for anything but JPEG, PNG, WebP and MP4."""
    if value.startswith(b"\xff\xd8\xff"):
        return JPEG
    if value.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if value[:4] == b"RIFF" and value[8:12] == b"WEBP":
        return WEBP
    return MP4 if is_mp4(value) else None


def check_declared(content_type: str | None, found: str) -> None:
    """Hold a declared content type against the one that the bytes show. Raises RecordError (`media_mismatch`)."""
    declared = _ALIASES.get(content_type or "", content_type)
    if declared not in (None, "", UNDECLARED, found):
        message = f"content-type says {(declared or '')[:80]!a}, the bytes are {found}; declare what is sent or leave the header out"
        raise RecordError(Reason.MEDIA_MISMATCH, message)


def guess(value: bytes) -> str:
    """A name for bytes that `sniff` does not know, for a message."""
    start = value[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, name in _OTHER_FORMATS:
        if value.startswith(magic) or start.lower().startswith(magic):
            return name
    if value[4:8] == b"ftyp":
        return "an MP4, AVIF or HEIF container"
    return "plain text" if start.isascii() and b"\x00" not in start else "of no known image format"
