"""Records in a file: byte for byte what was sent, and any other line refused by its number."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fifa_stream.header_names import header_name
from fifa_stream.recording import MAX_LINE_BYTES, Recorded, RecordingError, read_lines
from fifa_stream.records import OutRecord, RawRecord

LINE = Recorded.of(OutRecord(b"cam", b"\x89PNG", (("stream-id", b"cam"),)), topic="t", partition=1, offset=2, timestamp_ms=3).line()


def written(folder: Path, *lines: str | bytes) -> Path:
    file = folder / "recorded.jsonl"
    file.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return file


def changed(**fields: Any) -> str:
    return json.dumps(json.loads(LINE) | fields)


BYTES = st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode("utf-8", "ignore"))


@given(
    key=st.none() | BYTES,
    value=st.none() | BYTES,
    headers=st.lists(st.tuples(st.text(st.characters(codec="utf-8"), max_size=12), BYTES), max_size=4).map(tuple),
    timestamp_ms=st.integers(-1, 2**60),
)
def test_a_record_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...], timestamp_ms: int
) -> None:
    line = Recorded.of(OutRecord(key, value, headers), topic="t", partition=1, offset=2, timestamp_ms=timestamp_ms).line()
    assert line.isascii() and line.isprintable()
    (read,) = read_lines(written(tmp_path_factory.mktemp("recording"), line))
    assert (read.number, read.record) == (1, RawRecord("t", 1, 2, timestamp_ms, key, value, headers))


def test_text_stays_legible(tmp_path: Path) -> None:
    assert json.loads(LINE) == {
        "topic": "t",
        "partition": 1,
        "offset": 2,
        "timestamp_ms": 3,
        "key": "cam",
        "headers": [["stream-id", "cam"]],
        "value": "iVBORw==",
    }


def test_a_name_that_is_no_text_keeps_its_bytes(tmp_path: Path) -> None:
    name = header_name(b"x\xff\xc3".decode("utf-8", "surrogateescape"))
    record = RawRecord("t", 1, 2, 3, None, b"v", ((name, b"1"),))
    line = Recorded.of(OutRecord(None, b"v", record.headers), topic="t", partition=1, offset=2, timestamp_ms=3).line()
    (read,) = read_lines(written(tmp_path, line))
    assert read.record == record and line.isascii()
    ((again, _),) = read.record.headers
    assert again.encode() == b"x\xff\xc3"


def test_lines_of_dead_letters_are_read_and_one_without_its_original_is_none(tmp_path: Path) -> None:
    whole, without = json.dumps({"letter": "0/1", "record": json.loads(LINE)}), json.dumps({"letter": "0/2", "record": None})
    lines = list(read_lines(written(tmp_path, whole, "", without)))
    assert [(line.number, line.record is None) for line in lines] == [(1, False), (3, True)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        pytest.param("not json", "is not JSON", id="no JSON"),
        pytest.param(b"\xff\xfe\x00", "is not JSON", id="no text"),
        pytest.param("[" * 100_000, "is not JSON", id="nested without end"),
        pytest.param("17", "is no record", id="a number"),
        pytest.param("{}", "topic: Field required", id="empty"),
        pytest.param('{"letter": "0/1"}', "is no record", id="a letter without its original"),
        pytest.param(changed(extra=1), "extra: Extra inputs are not permitted", id="a field that nobody knows"),
        pytest.param(changed(topic="a topic"), "topic: String should match", id="no name of a topic"),
        pytest.param(changed(value="???"), "'???'... is not base64", id="no base64"),
        pytest.param(changed(value=7), "value: Input should be a valid string", id="value of another type"),
        pytest.param(changed(headers=[["a"]]), "headers", id="a header without a value"),
        pytest.param(changed(headers=[["\ud800", ""]]), "is no name of a header", id="half a character in a name"),
        pytest.param(changed(timestamp_ms=10**30), "timestamp_ms", id="a time beyond all times"),
        pytest.param(changed(key={"base64": "?"}), "is not base64", id="no base64 in the key"),
        pytest.param('{"record": {"record": null}}', "topic: Field required", id="nested records"),
    ],
)
def test_a_line_that_is_no_record_is_refused_by_its_number(tmp_path: Path, line: str | bytes, says: str) -> None:
    file = written(tmp_path, LINE, line, LINE)
    with pytest.raises(RecordingError) as caught:
        list(read_lines(file))
    message = str(caught.value)
    assert message.startswith(f"{file}:2: ") and says in message and "\n" not in message and len(message) < 500


def test_a_line_without_end_is_refused_before_it_is_held(tmp_path: Path) -> None:
    file = tmp_path / "zeros"
    with file.open("wb") as zeros:
        zeros.truncate(MAX_LINE_BYTES + 10)
    with pytest.raises(RecordingError, match=f":1: the line has more than {MAX_LINE_BYTES} bytes"):
        list(read_lines(file))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="none cannot be read: No such file"):
        list(read_lines(tmp_path / "none"))
