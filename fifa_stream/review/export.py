"""One case as one file that can be handed on, and the check of such a file by who never saw the desk.

A ZIP archive without compression, its members in one order, with one date, and nothing else in it: `verify` writes the archive again from its members
and compares, so that a changed bit is found wherever it is. `manifest.json` names every part with its SHA-256 and states its own digest. A digest
shows that a file is whole and not who made it: hand it over on another way, and give it to `--digest`.

    manifest.json    the parts, what they are of, the digest of this manifest
    index.html       the case to look at: one page that loads nothing
    verdict.json     the verdict, byte for byte as it was shown
    media.jpg        the image or chunk that was judged, as it was sent (.png, .webp, .mp4)
    reviews.jsonl    what was decided, one review a line
    masks/*.png      every mask of the shown picture, white on black, in its pixels
"""

import hashlib
import json
import re
import struct
import zipfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from io import BytesIO
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.contracts import MaskError, Sha256, canonical_digest, tight_box
from engines.reviews import Review
from fifa_stream import __version__
from fifa_stream.decode import DecodeLimits, decode_image
from fifa_stream.media import JPEG, PNG, WEBP, sniff
from fifa_stream.mp4 import MP4
from fifa_stream.page import PageEntry, render_page
from fifa_stream.records import Box, EvidenceItem, RecordError, RunLengths, SampledFrame, Verdict
from fifa_stream.review.cases import flaw, picture_of
from fifa_stream.views import decode_mask

MAX_FILE_BYTES: Final = 256 << 20
MAX_PARTS: Final = 4_096
MAX_JSON_BYTES: Final = 16 << 20
MAX_PAGE_BYTES: Final = 64 << 20
MANIFEST: Final = "manifest.json"
PAGE: Final = "index.html"
VERDICT: Final = "verdict.json"
REVIEWS: Final = "reviews.jsonl"
_LIMITS: Final = DecodeLimits(max_image_bytes=MAX_FILE_BYTES)
_SUFFIXES: Final = {JPEG: "jpg", PNG: "png", WEBP: "webp", MP4: "mp4"}
_NAME = re.compile(
    r"manifest\.json|index\.html|verdict\.json|reviews\.jsonl|media\.(?:jpg|png|webp|mp4)|masks/face-[0-9]{1,9}(?:-asked)?-[0-9]{1,4}\.png"
)
"""Every name that a part may have: none leads out of the folder it is unpacked to."""
_NO_ARCHIVE = (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, struct.error)
"""What zipfile raises of bytes that are no archive. It documents the first alone."""
_DATE: Final = (1980, 1, 1, 0, 0, 0)
_END: Final = struct.Struct("<4s4H2LH")
"""End record of an archive: signature, four counts, size and place of the directory, length of a comment."""
_ENTRY_BYTES: Final = 46 + 40
"""Of one part in the directory, with the longest of names."""


class VerifyError(Exception):
    """The first thing in which a file is not what was exported."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Part(_Closed):
    """One member of the archive."""

    name: str
    sha256: Sha256
    size_bytes: int = Field(ge=0)


class CaseManifest(_Closed):
    """What an exported case consists of."""

    schema_version: Literal["1.0"] = "1.0"
    made_by: str
    """Program and version."""
    exported_at: datetime
    exported_by: str | None
    """The reviewer at whose desk it was made."""
    verdict: str
    """`id` of the verdict."""
    frame: int | None
    """Which sampled frame of a chunk is shown, by its index."""
    media_sha256: Sha256
    parts: tuple[Part, ...]
    digest: Sha256
    """sha256 of this manifest's canonical JSON without this field."""


class Verified(NamedTuple):
    """What a checked file holds."""

    manifest: CaseManifest
    verdict: Verdict
    reviews: tuple[Review, ...]
    num_masks: int


class _Named(NamedTuple):
    """A mask of the shown picture, and the file it is in."""

    file: str
    mask: RunLengths
    box: Box | None


def export_name(verdict: Verdict, frame: int | None) -> str:
    """A file name for a case: nothing of the record but digits."""
    place = verdict.media.sha256[:12] if verdict.input is None else f"{verdict.input.partition}-{verdict.input.offset}"
    return f"case-{place}{'' if frame is None else f'-frame-{frame}'}.zip"


def export_case(
    payload: bytes, frame: int | None, *, media: bytes, reviews: Sequence[Review], exported_by: str | None, exported_at: datetime
) -> bytes:
    """The archive of one case. `payload` is a verdict, `media` the bytes it speaks of; `frame` the shown frame of a chunk.

    Raises VerifyError for a case that `verify` would not let pass.
    """
    verdict = Verdict.from_bytes(payload)
    kind = sniff(media)
    if kind is None or hashlib.sha256(media).hexdigest() != verdict.media.sha256:
        raise VerifyError("the picture is not the one that the verdict speaks of")
    _check_spans_and_masks(verdict)
    entry = PageEntry(verdict.id, media, verdict, facts=(*_facts(verdict, payload, exported_by, exported_at), *_review_facts(reviews)), frame=frame)
    try:
        page = render_page([entry], title=f"Case {verdict.id}")
    except RecordError as error:
        raise VerifyError(f"the picture does not decode: {error}") from None
    parts = {
        PAGE: page.encode(),
        VERDICT: payload,
        f"media.{_SUFFIXES[kind]}": media,
        REVIEWS: b"".join(review.model_dump_json().encode() + b"\n" for review in reviews),
        **{named.file: _png(decode_mask(named.mask)) for named in _masks(verdict, frame)},
    }
    draft = {
        "schema_version": "1.0",
        "made_by": f"fifa-stream {__version__}",
        "exported_at": exported_at.isoformat(),
        "exported_by": exported_by,
        "verdict": verdict.id,
        "frame": frame,
        "media_sha256": verdict.media.sha256,
        "parts": [{"name": name, "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)} for name, content in parts.items()],
    }
    manifest = json.dumps(draft | {"digest": canonical_digest(draft)}, indent=1, ensure_ascii=False).encode() + b"\n"
    archive = archive_of({MANIFEST: manifest, **parts})
    verify(archive)
    return archive


def archive_of(members: dict[str, bytes]) -> bytes:
    """The one spelling of these members as a ZIP."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            one = zipfile.ZipInfo(name, _DATE)
            one.create_system, one.external_attr = 3, 0o100644 << 16
            archive.writestr(one, content)
    return buffer.getvalue()


def _facts(verdict: Verdict, payload: bytes, exported_by: str | None, exported_at: datetime) -> Iterator[tuple[str, str]]:
    yield "SHA-256 of the verdict", hashlib.sha256(payload).hexdigest()
    yield "SHA-256 of the picture", verdict.media.sha256
    yield "Engine manifest", verdict.engine.manifest_sha256
    if verdict.input is not None:
        yield "Stream", verdict.input.stream_id
    for segment in verdict.segments or ():
        yield f"Segment {segment.id}", segment.words
    if verdict.stream is not None:
        score = "" if verdict.stream.fake_score is None else f" ({verdict.stream.fake_score:.3f})"
        yield "The stream, by then", f"{verdict.stream.label.value}{score}"
    yield "Exported", f"{exported_at.isoformat(timespec='seconds')}{'' if exported_by is None else f' by {exported_by}'}"


def _review_facts(reviews: Sequence[Review]) -> Iterator[tuple[str, str]]:
    for review in reviews:
        face = "" if review.face is None else f" of face {review.face + 1}"
        truth = "" if review.truth is None else f": it is {review.truth}{'' if review.true_forgery_type is None else f', {review.true_forgery_type}'}"
        spoken_of = f"; phrases {', '.join(review.evidence)}" if review.evidence else ""
        comment = f"; {review.comment}" if review.comment else ""
        signed = f"{review.reviewer}, {review.decided_at.isoformat(timespec='seconds')}"
        yield f"Review{face}", f"{review.decision.value}{truth}{spoken_of}{comment}; {signed}"


def _masks(verdict: Verdict, frame: int | None) -> Iterator[_Named]:
    """Every mask of the shown picture, in order."""
    seen = picture_of(verdict, frame)
    for face in seen.faces:
        yield from (_Named(f"masks/face-{face.id}-{number}.png", item.mask, item.box) for number, item in enumerate(face.evidence))
    for answer in () if seen.query is None else seen.query.answers:
        masks = [(answer.mask, answer.box), *((item.mask, item.box) for item in answer.evidence)]
        yield from (_Named(f"masks/face-{answer.face}-asked-{number}.png", mask, box) for number, (mask, box) in enumerate(masks))


def _png(mask_HW: NDArray[np.bool_]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(mask_HW).save(buffer, "PNG")
    return buffer.getvalue()


def verify(archive: bytes, *, digest: str | None = None) -> Verified:
    """Check everything that can be checked without the engine; `digest` is the manifest's, told on another way. Raises VerifyError."""
    members = _read(archive)
    manifest = _manifest(members[MANIFEST], digest)
    _check_parts(manifest, members)
    if archive_of(members) != archive:
        raise VerifyError("the archive is not as it was written: something between its parts, or their order, was changed")
    payload = members[VERDICT]
    try:
        verdict = Verdict.from_bytes(payload)
    except ValidationError as error:
        raise VerifyError(f"{VERDICT}: it is no verdict: {error.errors(include_url=False, include_input=False)[0]['msg'][:200]}") from None
    if why := flaw(verdict):
        raise VerifyError(f"{VERDICT}: {why}")
    if verdict.id != manifest.verdict or verdict.media.sha256 != manifest.media_sha256:
        raise VerifyError(f"{VERDICT}: it is another verdict than {MANIFEST} says, or of another picture")
    if verdict.frames is not None and manifest.frame not in {frame.index for frame in verdict.frames}:
        raise VerifyError(f"{MANIFEST}: the verdict has no frame {manifest.frame}")
    if verdict.frames is None and manifest.frame is not None:
        raise VerifyError(f"{MANIFEST}: a frame is named, and the verdict is of an image")
    _check_media(verdict, manifest.frame, members)
    _check_spans_and_masks(verdict)
    num_masks = _check_mask_files(verdict, manifest.frame, members)
    return Verified(manifest, verdict, _check_reviews(verdict, payload, manifest.frame, members[REVIEWS]), num_masks)


def _read(archive: bytes) -> dict[str, bytes]:
    """Every member, in the order of the archive. Nothing is unpacked: members are stored as they are and do not overlap, so that all of them together
    are no larger than the file."""
    if len(archive) > MAX_FILE_BYTES:
        raise VerifyError(f"the file has more than {MAX_FILE_BYTES} bytes; no exported case has")
    _check_end(archive)
    members: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(BytesIO(archive)) as opened:
            listed = opened.infolist()
            if len(listed) > MAX_PARTS:
                raise VerifyError(f"the archive has {len(listed)} parts; no exported case has more than {MAX_PARTS}")
            if sum(one.compress_size for one in listed) > len(archive):  # zipfile looks for this from Python 3.11.8 on
                raise VerifyError("the parts of the archive overlap; those of an exported case do not")
            for one in listed:
                if not _NAME.fullmatch(one.filename) or one.filename in members:
                    raise VerifyError(f"the archive has a part {one.filename[:80]!a}, which no exported case has, or has it twice")
                if one.compress_type != zipfile.ZIP_STORED or one.flag_bits & 1 or one.compress_size != one.file_size:
                    raise VerifyError(f"{one.filename} is compressed or encrypted; no part of an exported case is")
                members[one.filename] = opened.read(one)
    except _NO_ARCHIVE as error:
        raise VerifyError(f"the file is no whole ZIP archive: {' '.join(str(error).split())[:200]}") from None
    for name in (MANIFEST, PAGE, VERDICT, REVIEWS):
        if name not in members:
            raise VerifyError(f"the archive has no {name}")
    for name, limit in ((MANIFEST, MAX_JSON_BYTES), (VERDICT, MAX_JSON_BYTES), (REVIEWS, MAX_JSON_BYTES), (PAGE, MAX_PAGE_BYTES)):
        if len(members[name]) > limit:
            raise VerifyError(f"{name} has more than {limit} bytes")
    return members


def _check_end(archive: bytes) -> None:
    """The directory is short: zipfile reads all of it, however long, before anything can be asked of it."""
    if len(archive) < _END.size:
        raise VerifyError("the file is no whole ZIP archive: it is too short")
    signature, *_, size_bytes, _, comment_bytes = _END.unpack(archive[-_END.size :])
    if signature != b"PK\x05\x06" or comment_bytes or archive[-_END.size - 20 :].startswith(b"PK\x06\x07"):
        raise VerifyError("the file is no whole ZIP archive: it does not end as an exported case does")
    if size_bytes > MAX_PARTS * _ENTRY_BYTES:
        raise VerifyError(f"the archive lists more than {MAX_PARTS} parts; no exported case has so many")


def _manifest(content: bytes, digest: str | None) -> CaseManifest:
    try:
        tree = json.loads(content)
        manifest = CaseManifest.model_validate_json(content)
        found = canonical_digest(tree)
    except ValidationError as error:
        raise VerifyError(f"{MANIFEST}: {error.errors(include_url=False, include_input=False)[0]['msg'][:200]}") from None
    except (ValueError, RecursionError):
        raise VerifyError(f"{MANIFEST} is not JSON") from None
    if manifest.digest != found:
        raise VerifyError(f"{MANIFEST} was changed: it states digest {manifest.digest[:12]}, its content gives {found[:12]}")
    if json.dumps(tree, indent=1, ensure_ascii=False).encode() + b"\n" != content:
        raise VerifyError(f"{MANIFEST} is not spelt as it was written")
    if digest is not None and digest.lower() != found:
        raise VerifyError(f"the file is another one: its digest is {found}, {digest[:80]!a} was told")
    return manifest


def _check_parts(manifest: CaseManifest, members: dict[str, bytes]) -> None:
    named = {part.name: part for part in manifest.parts}
    if len(named) != len(manifest.parts) or MANIFEST in named:
        raise VerifyError(f"{MANIFEST} names a part twice, or itself")
    for name, content in members.items():
        if name == MANIFEST:
            continue
        part = named.pop(name, None)
        if part is None:
            raise VerifyError(f"{name} is not named by {MANIFEST}")
        found = hashlib.sha256(content).hexdigest()
        if part.sha256 != found or part.size_bytes != len(content):
            raise VerifyError(f"{name} was changed: {MANIFEST} says sha256 {part.sha256[:12]}, it has {found[:12]}")
    if named:
        raise VerifyError(f"the archive has no {next(iter(named))[:80]!a}, which {MANIFEST} names")


def _check_media(verdict: Verdict, frame: int | None, members: dict[str, bytes]) -> None:
    names = [name for name in members if name.startswith("media.")]
    if len(names) != 1:
        raise VerifyError(f"the archive has {len(names)} pictures; an exported case has one")
    media = members[names[0]]
    if hashlib.sha256(media).hexdigest() != verdict.media.sha256:
        raise VerifyError(f"{names[0]} is not the picture that the verdict speaks of")
    if names[0] != f"media.{_SUFFIXES.get(sniff(media) or '')}":
        raise VerifyError(f"{names[0]} is not what its name says")
    height, width = verdict.media.height or 0, verdict.media.width or 0
    if height * width > _LIMITS.max_pixels:
        raise VerifyError(f"{VERDICT}: {names[0]} is said to have {width} x {height} pixels, more than {_LIMITS.max_pixels}; no exported case has")
    if frame is not None:
        return  # a chunk is not decoded here: its digest is that of the verdict, and PyAV may not be at hand
    try:
        shape = decode_image(media, content_type=None, limits=_LIMITS).image_HWC.shape
    except RecordError as error:
        raise VerifyError(f"{names[0]}: {error}") from None
    if None not in (verdict.media.width, verdict.media.height) and shape[:2] != (verdict.media.height, verdict.media.width):
        raise VerifyError(f"{names[0]} has {shape[1]} x {shape[0]} pixels, the verdict says {verdict.media.width} x {verdict.media.height}")


def _check_spans_and_masks(verdict: Verdict) -> None:
    """Phrases lie where their spans say, masks lie on the picture and in their boxes: of every picture of the verdict."""
    size = (verdict.media.height, verdict.media.width)
    for seen in (verdict,) if verdict.frames is None else verdict.frames:
        for where, text, evidence in _explained(seen):
            for item in evidence:
                start, end = item.char_span
                if not 0 <= start < end <= len(text) or text[start:end] != item.phrase:
                    raise VerifyError(f"{VERDICT}: {where}: the span {item.char_span} of the text is not its phrase {item.phrase[:80]!a}")
                _check_mask(f"{where}, {item.id[:80]!a}", item.mask, item.box, size)
        for answer in () if seen.query is None else seen.query.answers:
            _check_mask(f"answer of face {answer.face}", answer.mask, answer.box, size)


def _check_mask_files(verdict: Verdict, frame: int | None, members: dict[str, bytes]) -> int:
    """The mask files of the shown picture are its masks; how many there are."""
    size = (verdict.media.height, verdict.media.width)
    wanted = {named.file: named for named in _masks(verdict, frame)}
    found = [name for name in members if name.startswith("masks/")]
    for name in sorted({*found} ^ {*wanted}):
        raise VerifyError(f"{name}: the verdict has {'a mask that is not in the archive' if name in wanted else 'no such mask'}")
    for name in found:
        try:
            with PngImageFile(BytesIO(members[name])) as image:
                if image.size != (size[1], size[0]) or image.mode != "1":
                    raise VerifyError(f"{name} is not of the picture's size")
                mask_HW = np.array(image)
        except VerifyError:
            raise
        except Exception as error:  # a broken PNG has a dozen exception types
            raise VerifyError(f"{name} does not decode: {' '.join(str(error).split())[:120]}") from None
        if not np.array_equal(mask_HW, decode_mask(wanted[name].mask)):
            raise VerifyError(f"{name} is not the mask of the verdict")
    return len(found)


def _explained(seen: Verdict | SampledFrame) -> Iterator[tuple[str, str, tuple[EvidenceItem, ...]]]:
    """(whose, text, evidence) of every explanation of a picture."""
    for face in seen.faces:
        yield f"face {face.id}", "" if face.explanation is None else face.explanation.text, face.evidence
    for answer in () if seen.query is None else seen.query.answers:
        yield f"answer of face {answer.face}", answer.explanation.text, answer.evidence


def _check_mask(where: str, mask: RunLengths, box: Box | None, size: tuple[int | None, int | None]) -> None:
    if mask.size != size:
        raise VerifyError(f"{VERDICT}: {where}: a mask of {mask.size[0]} x {mask.size[1]} lies on a picture of {size[0]} x {size[1]}")
    try:
        found = tight_box(decode_mask(mask))
    except MaskError as error:
        raise VerifyError(f"{VERDICT}: {where}: {error}") from None
    if found != box:
        raise VerifyError(f"{VERDICT}: {where}: the box {box} is not that of its mask, {found}")


def _check_reviews(verdict: Verdict, payload: bytes, frame: int | None, lines: bytes) -> tuple[Review, ...]:
    """Reviews speak of these very bytes: a record that was answered again has another text, whose phrases another review means."""
    told = (verdict.id, hashlib.sha256(payload).hexdigest(), verdict.media.sha256, verdict.engine.manifest_sha256, frame)
    reviews = []
    for number, line in enumerate(lines.splitlines(), 1):
        try:
            review = Review.model_validate_json(line)
        except ValidationError as error:
            why = error.errors(include_url=False, include_input=False)[0]["msg"][:200]
            raise VerifyError(f"{REVIEWS}:{number}: it is no review: {why}") from None
        if (review.verdict, review.verdict_sha256, review.media_sha256, review.engine, review.frame) != told:
            raise VerifyError(f"{REVIEWS}:{number}: it is about another verdict, or another frame of it")
        reviews.append(review)
    return tuple(reviews)
