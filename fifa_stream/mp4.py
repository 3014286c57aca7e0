"""What an MP4 holds, read before libav sees it; and a copy in which libav finds one H.264 track and nothing else.

A header of a few bytes can announce billions of samples, hidden tracks, a compressed header or a file elsewhere, and a demuxer acts on all of it
while it opens. So the boxes (ISO/IEC 14496-12) are walked here, sample counts are held against a limit, and every box that decoding does not need is
renamed to one that demuxers skip: sound, other tracks, metadata, references, indices. Sizes and offsets stay as they are.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fifa_stream.records import Reason, RecordError

MP4 = "video/mp4"
"""QuickTime's own files are of the same family and go by the same name here."""

MAX_EDITS = 16
"""Entries of an edit list; each may repeat every sample. Recorders write one or two."""

_H264 = (b"avc1", b"avc3")
_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heim", b"heis", b"heix", b"hevc", b"hevx", b"mif1", b"msf1")
"""AVIF and HEIF, from one picture to image sequences."""
_SAMPLE_ENTRY_BYTES = 78
"""Fixed fields of a visual sample entry behind its box header."""
_SKIPPED = b"skip"
_KEPT: dict[bytes, frozenset[bytes]] = {
    b"file": frozenset((b"ftyp", b"moov", b"moof", b"mdat")),
    b"moov": frozenset((b"mvhd", b"trak", b"mvex")),
    b"mvex": frozenset((b"trex",)),
    b"trak": frozenset((b"tkhd", b"edts", b"mdia")),
    b"edts": frozenset((b"elst",)),
    b"mdia": frozenset((b"mdhd", b"hdlr", b"minf")),
    b"minf": frozenset((b"dinf", b"stbl")),
    b"dinf": frozenset((b"dref",)),
    b"stbl": frozenset((b"stsd", b"stts", b"ctts", b"stss", b"stsc", b"stsz", b"stco", b"co64")),
    b"stsd": frozenset((*_H264, b"encv")),
    b"avc1": frozenset((b"avcC", b"pasp", b"colr")),
    b"moof": frozenset((b"mfhd", b"traf")),
    b"traf": frozenset((b"tfhd", b"tfdt", b"trun")),
}
"""What stays of the children of a box."""
_REPEATED = frozenset((b"mdat", b"moof", b"trak", b"traf", b"trex", b"trun"))
"""All others stand once in their parent: of two headers nobody could say which one a demuxer believes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A file with one H.264 track, as its boxes describe it. Nothing of the coded pictures has been looked at."""

    cleaned: bytes
    """The file for the demuxer."""
    width: int
    height: int
    """As the sample entry declares, before rotation."""


class _Box(NamedTuple):
    at: int
    """Of the four letters of its kind."""
    start: int
    end: int
    """Its payload."""


_Boxes = dict[bytes, list[_Box]]


def is_mp4(value: bytes) -> bool:
    """Whether the first bytes show a file of this family that is no still image."""
    return value[4:8] == b"ftyp" and value[8:12] not in _STILL_BRANDS


def read_layout(value: bytes, *, max_samples: int) -> Layout:
    """Walk the boxes of an MP4 (ISO base media or QuickTime with `ftyp`, plain or fragmented).

    Raises RecordError (`undecodable_video`, `unsupported_media`, `video_too_long`) and nothing else.
    """
    data = bytearray(value)
    top = _children(data, b"file", 0, len(data))
    moov = _children(data, b"moov", *_one(top, b"moov")[1:])
    tracks = [track for box in moov[b"trak"] if (track := _video_track(data, box)) is not None]
    if len(tracks) != 1:
        what = "no video track" if not tracks else f"{len(tracks)} video tracks"
        raise RecordError(Reason.UNSUPPORTED_MEDIA, f"the MP4 has {what}; send a file with exactly one, in H.264")
    (track,) = tracks
    for box in moov[b"mvex"]:
        _children(data, b"mvex", *box[1:])
    table = _children(data, b"stbl", *_one(track, b"stbl")[1:])
    width, height = _sample_entry(data, _one(table, b"stsd"))
    _refuse_references(data, track)
    num_samples = _num_samples(data, table) + _num_fragment_samples(data, top[b"moof"], _track_id(data, _one(track, b"tkhd")), max_samples)
    if num_samples == 0:
        raise _broken("it has no frames")
    if num_samples > max_samples:
        raise _too_many(num_samples, max_samples)
    _refuse_edits(data, track)
    # A closing box, so that the last four bytes are no offset of a fragment index, which libav would follow into the media data.
    return Layout(bytes(data) + b"\x00\x00\x00\x08" + _SKIPPED, width, height)


def _broken(cause: str) -> RecordError:
    return RecordError(Reason.UNDECODABLE_VIDEO, f"the MP4 cannot be read: {cause}; send the whole, undamaged file")


def _too_many(count: int, limit: int) -> RecordError:
    return RecordError(Reason.VIDEO_TOO_LONG, f"the chunk has {count} frames, video.max_decoded_frames is {limit}; send shorter chunks")


def _children(data: bytearray, parent: bytes, start: int, end: int) -> _Boxes:
    """The boxes that tile [start, end), by kind; those that the parent need not have are renamed."""
    found: _Boxes = defaultdict(list)
    at = start
    while at < end:
        if end - at < 8:
            if parent == b"file":
                raise _broken(f"{end - at} bytes are left over at byte {at}")
            break  # QuickTime ends some boxes with four zeros
        size, kind, header = int.from_bytes(data[at : at + 4]), bytes(data[at + 4 : at + 8]), 8
        if size == 1:
            size, header = int.from_bytes(data[at + 8 : at + 16]), 16
        elif size == 0 and parent == b"file":
            size = end - at  # the last box may leave its end open
        if size < header or size > end - at:
            raise _broken(f"the box at byte {at} claims {size} bytes, {end - at} are there")
        if kind in _KEPT[parent]:
            if found[kind] and kind not in _REPEATED:
                raise _broken(f"a second {kind.decode()} box stands at byte {at}")
            found[kind].append(_Box(at + 4, at + header, at + size))
        else:
            data[at + 4 : at + 8] = _SKIPPED
        at += size
    return found


def _one(boxes: _Boxes, kind: bytes) -> _Box:
    if not boxes[kind]:
        raise _broken(f"it has no {kind.decode()} box")
    return boxes[kind][0]


def _number(data: bytearray, at: int, end: int, size: int = 4) -> int:
    if at + size > end:
        raise _broken(f"the box that ends at byte {end} is too short")
    return int.from_bytes(data[at : at + size])


def _video_track(data: bytearray, box: _Box) -> _Boxes | None:
    """The boxes of a video track, those of `mdia` and `minf` among them; a track of another kind is hidden."""
    track = _children(data, b"trak", *box[1:])
    media = _children(data, b"mdia", *_one(track, b"mdia")[1:])
    handler = _one(media, b"hdlr")
    if data[handler.start + 8 : min(handler.start + 12, handler.end)] != b"vide":
        data[box.at : box.at + 4] = _SKIPPED
        return None
    _one(media, b"mdhd")
    track.update(media)
    track.update(_children(data, b"minf", *_one(media, b"minf")[1:]))
    return track


def _sample_entry(data: bytearray, box: _Box) -> tuple[int, int]:
    """(width, height) of the only sample entry, which is H.264."""
    count = _number(data, box.start + 4, box.end)
    if count != 1:
        raise RecordError(Reason.UNSUPPORTED_MEDIA, f"the video has {count} sample descriptions; send one whose size and codec do not change")
    entry_at = box.start + 8
    codec = bytes(data[entry_at + 4 : min(entry_at + 8, box.end)])
    entries = _children(data, b"stsd", entry_at, box.end)
    if entries[b"encv"]:
        raise RecordError(Reason.UNSUPPORTED_MEDIA, "the video is encrypted; send it in the clear")
    entry = next((entries[kind][0] for kind in _H264 if entries[kind]), None)
    if entry is None:
        raise RecordError(Reason.UNSUPPORTED_MEDIA, f"the video is coded as {codec.decode('ascii', 'replace')!a}, not H.264 (avc1); convert it")
    if entry.end - entry.start < _SAMPLE_ENTRY_BYTES:
        raise _broken("its sample entry is too short")
    _children(data, b"avc1", entry.start + _SAMPLE_ENTRY_BYTES, entry.end)
    return _number(data, entry.start + 24, entry.end, 2), _number(data, entry.start + 26, entry.end, 2)


def _refuse_references(data: bytearray, track: _Boxes) -> None:
    """Media data must lie in the file itself; the boxes that could say otherwise are hidden."""
    for info in track[b"dinf"]:
        for table in _children(data, b"dinf", *info[1:])[b"dref"]:
            at = table.start + 8
            while at < table.end:
                size = _number(data, at, table.end)
                if not _number(data, at + 8, table.end) & 1:  # flag: self-contained
                    raise RecordError(Reason.UNSUPPORTED_MEDIA, "the MP4 refers to media data outside the file; send a self-contained file")
                if size < 12:
                    raise _broken("a data reference is too short")
                at += size
        data[info.at : info.at + 4] = _SKIPPED


def _refuse_edits(data: bytearray, track: _Boxes) -> None:
    for edits in track[b"edts"]:
        for table in _children(data, b"edts", *edits[1:])[b"elst"]:
            count = _number(data, table.start + 4, table.end)
            if count > MAX_EDITS:
                raise RecordError(Reason.UNSUPPORTED_MEDIA, f"the edit list has {count} entries, at most {MAX_EDITS} are read; cut the video anew")


def _num_samples(data: bytearray, table: _Boxes) -> int:
    """The largest number of samples that one of the tables speaks of."""
    sizes = _one(table, b"stsz")
    return max(_number(data, sizes.start + 8, sizes.end), *(_run_lengths(data, box) for kind in (b"stts", b"ctts") for box in table[kind]), 0)


def _run_lengths(data: bytearray, box: _Box) -> int:
    """Samples in a table of (count, value) pairs."""
    rows = _number(data, box.start + 4, box.end)
    if box.start + 8 + 8 * rows > box.end:
        raise _broken(f"a table claims {rows} rows and holds {(box.end - box.start - 8) // 8}")
    return int(np.frombuffer(data, ">u4", 2 * rows, box.start + 8)[::2].sum(dtype=np.uint64))


def _track_id(data: bytearray, header: _Box) -> int:
    return _number(data, header.start + (20 if _number(data, header.start, header.end, 1) == 1 else 12), header.end)


def _num_fragment_samples(data: bytearray, fragments: list[_Box], track_id: int, max_samples: int) -> int:
    """Samples of the track in all fragments; fragments of other tracks are hidden."""
    if len(fragments) > max_samples:
        raise _too_many(len(fragments), max_samples)
    count = 0
    for fragment in fragments:
        for box in _children(data, b"moof", *fragment[1:])[b"traf"]:
            parts = _children(data, b"traf", *box[1:])
            header = _one(parts, b"tfhd")
            if _number(data, header.start + 4, header.end) == track_id:
                count += sum(_number(data, run.start + 4, run.end) for run in parts[b"trun"])
            else:
                data[box.at : box.at + 4] = _SKIPPED
    return count
