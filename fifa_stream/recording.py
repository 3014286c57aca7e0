"""Records in a file: one JSON object a line, byte for byte what was sent. `send --record` and `dead-letters list --records` write, `replay` reads.

A key or the value of a header is a string where it is UTF-8, else {"base64": ...}; the value of a record is always base64. Bytes of a header's name
that are not UTF-8 are lone surrogates (PEP 383). A line of `dead-letters` has more fields, and the original under `record`: null where the letter
does not hold it.
"""

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fifa_stream.header_names import header_name
from fifa_stream.records import OutRecord, RawRecord

MAX_LINE_BYTES: Final = 64 << 20
"""A record of 48 MiB; more is no frame of ours."""


class RecordingError(Exception):
    """A file or a line of it cannot be used; the message names both."""


class Bytes(BaseModel):
    """What is no text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base64: str


class Recorded(BaseModel):
    """One record."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    topic: str = Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$")
    """Where it lay."""
    partition: int
    """Where it lay."""
    offset: int
    """Where it lay."""
    timestamp_ms: int = Field(ge=-1 << 63, lt=1 << 63)
    """Its own, Unix milliseconds; below 0 for none."""
    key: str | Bytes | None
    headers: tuple[tuple[str, str | Bytes], ...]
    """In their order; a name may come twice."""
    value: str | None
    """In base64."""

    @classmethod
    def of(cls, record: OutRecord, *, topic: str, partition: int, offset: int, timestamp_ms: int) -> Self:
        """Of a record and where it lies."""
        return cls(
            topic=topic,
            partition=partition,
            offset=offset,
            timestamp_ms=timestamp_ms,
            key=None if record.key is None else _written(record.key),
            headers=tuple((str(name), _written(data)) for name, data in record.headers),
            value=None if record.value is None else base64.b64encode(record.value).decode(),
        )

    def line(self) -> str:
        """JSON without a line feed in it, ASCII."""
        return json.dumps(self.model_dump())

    def raw(self) -> RawRecord:
        """As a record that was read. Raises ValueError for base64 that is none."""
        headers = tuple((_name(name), _read(data)) for name, data in self.headers)
        key = None if self.key is None else _read(self.key)
        value = None if self.value is None else _decoded(self.value)
        return RawRecord(self.topic, self.partition, self.offset, self.timestamp_ms, key, value, headers)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file."""

    number: int
    """From 1."""
    record: RawRecord | None
    """None: a dead letter that does not hold its original."""
    begin: int
    """Byte of the file at which it begins."""


def read_lines(file: Path) -> Iterator[Line]:
    """Every line, in order; empty ones are left out. Raises RecordingError at the first that is no record."""
    try:
        with file.open("rb") as lines:
            number = end = 0
            while text := lines.readline(MAX_LINE_BYTES + 1):
                number, begin, end = number + 1, end, end + len(text)
                if len(text) > MAX_LINE_BYTES:
                    raise RecordingError(f"{file}:{number}: the line has more than {MAX_LINE_BYTES} bytes; no frame is as large")
                if text.strip():
                    yield Line(number, _record(file, number, text), begin)
    except OSError as error:
        raise RecordingError(f"{file} cannot be read: {error.strerror}; give a file of `send --record` or `dead-letters list --records`") from None


def read_line(file: Path, line: Line) -> RawRecord | None:
    """A line again, for who keeps only where it stands. Raises RecordingError."""
    try:
        with file.open("rb") as lines:
            lines.seek(line.begin)
            return _record(file, line.number, lines.readline(MAX_LINE_BYTES + 1))
    except OSError as error:
        raise RecordingError(f"{file} cannot be read: {error.strerror}; keep the file as long as it is looked at") from None


def _record(file: Path, number: int, text: bytes) -> RawRecord | None:
    try:
        tree = json.loads(text)
        if isinstance(tree, dict) and "record" in tree:
            tree = tree["record"]
            if tree is None:
                return None
        return Recorded.model_validate(tree).raw()
    except (UnicodeError, json.JSONDecodeError, RecursionError):
        raise RecordingError(f"{file}:{number}: the line is not JSON; nothing of the file was sent") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier())
        raise RecordingError(f"{file}:{number}: the line is no record: {where or 'it'}: {first['msg']}; nothing of the file was sent") from None
    except ValueError as error:
        raise RecordingError(f"{file}:{number}: the line is no record: {error}; nothing of the file was sent") from None


def _written(data: bytes) -> str | Bytes:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return Bytes(base64=base64.b64encode(data).decode())


def _read(data: str | Bytes) -> bytes:
    return data.encode("utf-8") if isinstance(data, str) else _decoded(data.base64)


def _name(text: str) -> str:
    """Of a header."""
    try:
        return header_name(text)
    except UnicodeEncodeError:
        raise ValueError(f"{text[:20]!a} is no name of a header: half a character") from None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{text[:20]!r}... is not base64: {error}") from None
