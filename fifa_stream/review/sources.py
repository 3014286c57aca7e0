"""Where verdicts and pictures come from: topics, recordings, files of `analyze --json`, folders of images.

Verdicts are read once; a picture only when it is looked at, by its place in the topic, its line in the recording, or its digest among files.
"""

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fifa_stream.claims import Store
from fifa_stream.cluster import BrokerError
from fifa_stream.recording import Line, RecordingError, read_line, read_lines
from fifa_stream.records import InputCoordinates, RawRecord, RecordError, TransientError, Verdict, parse_frame
from fifa_stream.review.cases import MAX_VERDICT_BYTES
from fifa_stream.topic_reader import TopicLookup

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".mp4")
"""Files that are taken out of a folder."""
MAX_MEDIA_BYTES = 512 << 20
"""Of a file that is taken for a picture; `analyze` takes a video as large."""


class SourceError(Exception):
    """A file cannot be used; the message names it."""


class NoPicture(Exception):
    """Why a case is shown without its picture; the message says it to the reviewer."""


class Media(Protocol):
    """A place to look for the picture of a verdict."""

    def find(self, verdict: Verdict) -> bytes | None:
        """The encoded image or chunk; None where this place does not know it. Raises NoPicture where it does and cannot give it. Any thread."""
        ...

    def close(self) -> None:
        """Let go of what is held open."""
        ...


def verdict_lines(file: Path) -> Iterator[tuple[str, bytes]]:
    """(where, bytes) of each verdict: lines of `analyze --json`, or records of the verdicts topic as `fifa_stream.recording` writes them. Lines about
    refused images, and empty ones, are left out. Raises SourceError."""
    try:
        with file.open("rb") as lines:
            number = 0
            while text := lines.readline(2 * MAX_VERDICT_BYTES):
                number += 1
                text = text.rstrip(b"\r\n")
                if text.strip() and (payload := _verdict_of(text)) is not None:
                    yield f"{file.name}:{number}", payload
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror}; give a file of `analyze --json`, or records of the verdicts topic") from None


def _verdict_of(text: bytes) -> bytes | None:
    """The bytes of a verdict as they were written; a line that is none is handed on, to be refused by name."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(tree, dict) or "schema_version" in tree:
        return text
    if isinstance(tree.get("value"), str) and "offset" in tree:
        with contextlib.suppress(ValueError):
            return base64.b64decode(tree["value"], validate=True)
    return None if "error" in tree else text


class RecordedFrames:
    """Frames in a file of `send --record`: found by their place or their digest, read by their line."""

    def __init__(self, file: Path, claims: Store | None, *, max_value_bytes: int) -> None:
        """Reads the file once. Raises RecordingError."""
        self._file, self._claims, self._max_value_bytes = file, claims, max_value_bytes
        self._by_place: dict[tuple[str, int, int], Line] = {}
        self._by_digest: dict[bytes, Line] = {}
        for line in read_lines(file):
            if line.record is not None:
                bare = Line(line.number, None, line.begin)
                self._by_place[line.record.topic, line.record.partition, line.record.offset] = bare
                if line.record.value:
                    self._by_digest[hashlib.sha256(line.record.value).digest()] = bare

    def find(self, verdict: Verdict) -> bytes | None:
        """By the place of its record, else by the digest."""
        at = verdict.input
        line = None if at is None else self._by_place.get((at.topic, at.partition, at.offset))
        line = line or self._by_digest.get(bytes.fromhex(verdict.media.sha256))
        if line is None:
            return None
        try:
            raw = read_line(self._file, line)
        except RecordingError as error:
            raise NoPicture(str(error)) from None
        return None if raw is None else media_of(raw, self._claims, max_value_bytes=self._max_value_bytes)

    def close(self) -> None:
        """Nothing is held open."""


class ImageFiles:
    """Images and chunks in folders: found by their digest."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Reads every file once. Raises SourceError."""
        self._by_digest: dict[bytes, Path] = {}
        for path in paths:
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()) if path.is_dir() else [path]
            for file in found:
                try:
                    if file.stat().st_size <= MAX_MEDIA_BYTES:
                        with file.open("rb") as handle:
                            self._by_digest[hashlib.file_digest(handle, "sha256").digest()] = file
                except OSError as error:
                    raise SourceError(f"{file} cannot be read: {error.strerror}; mend or remove it") from None

    def __len__(self) -> int:
        """How many there are."""
        return len(self._by_digest)

    def find(self, verdict: Verdict) -> bytes | None:
        """The file with this digest."""
        path = self._by_digest.get(bytes.fromhex(verdict.media.sha256))
        if path is None:
            return None
        try:
            with path.open("rb") as handle:
                return handle.read(MAX_MEDIA_BYTES + 1)
        except OSError as error:
            raise NoPicture(f"the file cannot be read: {error.strerror}") from None

    def close(self) -> None:
        """Nothing is held open."""


@dataclass(frozen=True, slots=True)
class TopicFrames:
    """Frames on the frames topic, by their place. A verdict that names another topic is not followed."""

    topic: str
    lookup: TopicLookup
    claims: Store | None
    max_value_bytes: int

    def find(self, verdict: Verdict) -> bytes | None:
        """The record that a verdict answers."""
        at = verdict.input
        if at is None or at.topic != self.topic or not 0 <= at.partition < 1 << 31 or not 0 <= at.offset < 1 << 63:
            return None
        try:
            raw = self.lookup.find(at.partition, at.offset)
        except BrokerError as error:
            raise NoPicture(str(error)) from None
        if raw is None:
            raise NoPicture(f"{_place(at)} is not on the topic any more")
        return media_of(raw, self.claims, max_value_bytes=self.max_value_bytes)

    def close(self) -> None:
        """Let the broker go."""
        self.lookup.close()


def _place(at: InputCoordinates) -> str:
    return f"{at.topic}/{at.partition}/{at.offset}"


def media_of(raw: RawRecord, claims: Store | None, *, max_value_bytes: int) -> bytes:
    """The encoded image of a frame's record; a claim is fetched inside the allow-list. Raises NoPicture."""
    try:
        frame = parse_frame(raw, max_value_bytes=max_value_bytes)
        if frame.claim is None:
            return frame.value
        if claims is None:
            raise NoPicture("the frame is a claim check, and no place is allowed: set claims.allowed")
        claims.check(frame.claim)
        return claims.fetch(frame.claim)
    except (RecordError, TransientError) as error:
        raise NoPicture(str(error)) from None


def verdict_records(records: Iterator[RawRecord]) -> Iterator[tuple[str, bytes]]:
    """(where, bytes) of each record with a value."""
    for raw in records:
        if raw.value:
            yield raw.place, raw.value
