"""Names of headers that are no text. Kafka does not look at them, and producers on librdkafka send any bytes.

kafka-python 3.0.12 reads every name as UTF-8 and gives up the whole partition at one that is not: no poll gets past such a record. Here it is read as
what it is and goes out as the bytes that came in, so that the record gets its answer like any other.
"""

from typing import Any


class HeaderName(str):
    """A name whose bytes are not UTF-8: these are kept as lone surrogates (PEP 383)."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """The bytes that came in, whatever is asked for."""
        return super().encode("utf-8", "surrogateescape")


def header_name(text: str) -> str:
    """A name as it can be sent. Raises ValueError for half a character that stands for no byte."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        name = HeaderName(text)
        name.encode()
        return name
    return text


class _Part(bytearray):
    """A part of a batch."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return header_name(super().decode("utf-8", "surrogateescape"))


class _Parts:
    """A batch whose parts can all be decoded. It is not copied: one batch may hold many such records."""

    def __init__(self, batch: bytearray) -> None:
        self._batch = batch

    def __getitem__(self, place: Any) -> Any:
        part = self._batch[place]
        return _Part(part) if isinstance(place, slice) else part


def read_any_names() -> None:
    """Teach kafka-python to read such names, once in a process."""
    from kafka.record.default_records import DefaultRecordBatch

    read_text_names = DefaultRecordBatch._read_msg

    def read(batch: Any) -> Any:
        try:
            return read_text_names(batch)
        except UnicodeDecodeError:
            buffer = batch._buffer
            batch._buffer = _Parts(buffer)
            try:
                return read_text_names(batch)  # from where the record begins: the position moves at its end
            finally:
                batch._buffer = buffer

    DefaultRecordBatch._read_msg = read
