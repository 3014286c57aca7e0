"""The wire: headers in, CloudEvents out, and nothing but RecordError for a record that cannot be read."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fifa_stream.records import (
    FrameRecord,
    Headers,
    Query,
    QueryAnswered,
    RawRecord,
    Reason,
    RecordError,
    Verdict,
    dead_letter_record,
    event_time,
    parse_frame,
    parse_query,
    verdict_record,
)
from fifa_stream.testing import toy_result

GOLDEN_1_0 = Path(__file__).resolve().parent.parent / "golden" / "verdict-1.0.json"
"""As version 1.0 wrote it."""
TRACEPARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
GOLDEN_1_1 = GOLDEN_1_0.with_name("verdict-1.1.json")


def raw(*headers: tuple[str, bytes], value: bytes | None = b"image", key: bytes | None = None) -> RawRecord:
    return RawRecord("fifa.frames", 2, 17, 1_700_000_000_000, key, value, headers)


def parsed(*headers: tuple[str, bytes], key: bytes | None = None) -> FrameRecord:
    return parse_frame(raw(*headers, key=key), max_value_bytes=100)


def verdict(frame: FrameRecord) -> Verdict:
    result = toy_result(frame)
    assert isinstance(result, Verdict)
    return result


def test_plain_headers_are_read() -> None:
    frame = parsed(
        ("Content-Type", b"image/PNG; q=1"),
        ("stream-id", b"cam-1"),
        ("frame-index", b"3"),
        ("pts-ms", b"120"),
        ("deadline-ms", b"1700000000500"),
        ("fifa-crop", b"true"),
        ("fifa-query", b"right_cheek"),
        ("traceparent", TRACEPARENT),
    )
    assert frame.content_type == "image/png"
    assert (frame.stream_id, frame.frame_index, frame.pts_ms, frame.deadline_ms) == ("cam-1", 3, 120, 1_700_000_000_500)
    assert frame.is_crop
    assert frame.query == Query(region="right_cheek")
    assert frame.traceparent == TRACEPARENT.decode()


def test_cloudevents_headers_are_read() -> None:
    frame = parsed(("ce_datacontenttype", b"image/webp"), ("ce_partitionkey", b"cam-2"), ("ce_traceparent", TRACEPARENT))
    assert (frame.content_type, frame.stream_id, frame.traceparent) == ("image/webp", "cam-2", TRACEPARENT.decode())


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"00-aa-bb-01", id="too short"),
        pytest.param(TRACEPARENT.upper(), id="upper case"),
        pytest.param(TRACEPARENT + b"-00", id="more than version 00 has"),
        pytest.param(b"ff" + TRACEPARENT[2:], id="forbidden version"),
        pytest.param(b"00-" + b"0" * 32 + TRACEPARENT[35:], id="no trace"),
        pytest.param(TRACEPARENT[:36] + b"0" * 16 + b"-01", id="no span"),
        pytest.param(b"01" + TRACEPARENT[2:] + b"-" + b"x" * 1_000_000, id="a megabyte"),
    ],
)
def test_a_trace_context_that_is_none_is_left_out(value: bytes) -> None:
    frame = parsed(("traceparent", value))
    assert frame.traceparent is None
    assert "traceparent" not in dict(verdict_record(verdict(frame), frame).headers)


def test_of_two_trace_contexts_the_last_goes_on_once() -> None:
    frame = parsed(("traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-00"), ("traceparent", TRACEPARENT))
    assert [data for name, data in verdict_record(verdict(frame), frame).headers if name == "traceparent"] == [TRACEPARENT]


@pytest.mark.parametrize(
    ("headers", "key", "expected"),
    [
        pytest.param((("stream-id", b"header"),), b"key", "header", id="header first"),
        pytest.param((), b"key", "key", id="then key"),
        pytest.param((), None, "fifa.frames/2", id="then topic and partition"),
    ],
)
def test_a_frame_always_has_a_stream_id(headers: Headers, key: bytes | None, expected: str) -> None:
    assert parsed(*headers, key=key).stream_id == expected


def test_the_last_of_repeated_headers_counts() -> None:
    assert parsed(("frame-index", b"1"), ("frame-index", b"2")).frame_index == 2


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        pytest.param(raw(value=b""), Reason.EMPTY_VALUE, id="empty value"),
        pytest.param(raw(value=None), Reason.EMPTY_VALUE, id="null value"),
        pytest.param(raw(value=b"x" * 101), Reason.RECORD_TOO_LARGE, id="too large"),
        pytest.param(raw(("stream-id", b"\xff\xfe")), Reason.INVALID_HEADER, id="header not UTF-8"),
        pytest.param(raw(key=b"\xff"), Reason.INVALID_HEADER, id="key not UTF-8"),
        pytest.param(raw(("stream-id", b"x" * 257)), Reason.INVALID_HEADER, id="stream id too long"),
        pytest.param(raw(("frame-index", b"one")), Reason.INVALID_HEADER, id="index not a number"),
        pytest.param(raw(("frame-index", b"-1")), Reason.INVALID_HEADER, id="index negative"),
        pytest.param(raw(("pts-ms", b"9" * 5000)), Reason.INVALID_HEADER, id="absurdly long number"),
        pytest.param(raw(("deadline-ms", b"NaN")), Reason.INVALID_HEADER, id="deadline NaN"),
        pytest.param(raw(("fifa-crop", b"maybe")), Reason.INVALID_HEADER, id="crop neither true nor false"),
        pytest.param(raw(("fifa-query", b"1,2,3")), Reason.INVALID_HEADER, id="box of three"),
        pytest.param(raw(("fifa-query", b"5,0,1,9")), Reason.INVALID_HEADER, id="box inside out"),
        pytest.param(raw(("fifa-query", b"nan,nan,nan,nan")), Reason.INVALID_HEADER, id="box of NaN"),
        pytest.param(raw(("fifa-query", b"third_eye")), Reason.INVALID_HEADER, id="no such concept"),
    ],
)
def test_a_bad_record_is_refused_with_its_reason(record: RawRecord, reason: Reason) -> None:
    with pytest.raises(RecordError) as caught:
        parse_frame(record, max_value_bytes=100)
    assert caught.value.reason is reason
    assert "\n" not in str(caught.value)


def test_a_query_is_a_concept_in_either_spelling_or_four_numbers() -> None:
    assert parse_query("left cheek") == parse_query("left_cheek") == Query(region="left_cheek")
    assert parse_query("1, 2.5,3,4") == Query(box_xyxy=(1.0, 2.5, 3.0, 4.0))


SIDES = st.floats(0, 1e5)


@given(st.tuples(SIDES, SIDES, SIDES, SIDES).filter(lambda box: box[0] < box[2] and box[1] < box[3]))
def test_a_query_written_as_text_is_read_as_itself(box: tuple[float, float, float, float]) -> None:
    assert parse_query(Query(box_xyxy=box).text) == Query(box_xyxy=box)
    assert parse_query(Query(region="right_cheek").text) == Query(region="right_cheek")


@pytest.mark.parametrize("query", [pytest.param({}, id="nothing"), pytest.param({"region": "nose", "box_xyxy": (0, 0, 1, 1)}, id="both")])
def test_a_query_asks_one_thing(query: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give one"):
        Query(**query)


NAMES = st.sampled_from(
    ["stream-id", "frame-index", "pts-ms", "deadline-ms", "fifa-crop", "fifa-query", "content-type", "traceparent", "ce_partitionkey"]
)
VALUES = st.binary(max_size=40) | st.text(max_size=40).map(str.encode) | st.sampled_from([b"0,0,1e400,inf", b"1" * 6000, b"\xd9\xa3", b"1_0", b" 7 "])


@settings(deadline=None)
@given(
    headers=st.lists(st.tuples(NAMES | st.text(max_size=12), VALUES), max_size=8),
    key=st.none() | st.binary(max_size=300),
    value=st.none() | st.binary(max_size=120),
)
def test_whatever_arrives_only_a_record_error_comes_out(headers: list[tuple[str, bytes]], key: bytes | None, value: bytes | None) -> None:
    try:
        frame = parse_frame(RawRecord("t", 0, 0, 0, key, value, tuple(headers)), max_value_bytes=100)
    except RecordError as error:
        assert len(str(error)) < 1000
    else:
        assert frame.stream_id


def test_a_verdict_is_a_cloudevent_keyed_by_its_stream() -> None:
    frame = parsed(("stream-id", "kamera-\u00e4".encode()), ("frame-index", b"3"), ("traceparent", TRACEPARENT))
    record = verdict_record(verdict(frame), frame, time=event_time(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)))
    headers = dict(record.headers)
    assert record.key == "kamera-\u00e4".encode()
    assert headers["content-type"] == b"application/json"
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_id"] == b"fifa.frames/2/17"
    assert headers["ce_time"] == b"2026-01-02T03:04:05.000Z"
    assert headers["fifa-input"] == b"fifa.frames/2/17"
    assert headers["frame-index"] == b"3"
    assert headers["traceparent"] == TRACEPARENT


def test_a_verdict_survives_the_wire() -> None:
    answer = verdict(parsed())
    assert Verdict.from_bytes(answer.to_bytes()) == answer
    assert not {"query", "timeline", "segments", "stream"} & json.loads(answer.to_bytes()).keys()


@pytest.mark.parametrize(
    ("echo", "words"),
    [
        pytest.param({"region": "left_cheek"}, "left cheek", id="region"),
        pytest.param({"box": [1.0, 2.5, 30.0, 40.0]}, "box 1, 2.5, 30, 40", id="box"),
        pytest.param(None, None, id="no question"),
    ],
)
def test_a_verdict_of_version_1_0_is_still_read(echo: dict[str, Any] | None, words: str | None) -> None:
    """Its `query` was the bare question, and always unanswered."""
    old = json.loads(GOLDEN_1_0.read_bytes())
    assert old["schema_version"] == "1.0" and old.pop("query") == {"region": "left_cheek"}
    read = Verdict.from_bytes(json.dumps(old if echo is None else {**old, "query": echo}).encode())
    assert (read.query and read.query.words) == words and (read.query or QueryAnswered()).answers == ()
    assert read.schema_version == "1.0" and Verdict.from_bytes(read.to_bytes()) == read


def test_a_verdict_of_version_1_1_is_read_and_written_as_it_was() -> None:
    """What 1.2 adds is left out of a verdict on an image."""
    old = GOLDEN_1_1.read_bytes().rstrip(b"\n")
    assert Verdict.from_bytes(old).schema_version == "1.1" and Verdict.from_bytes(old).to_bytes() == old


def test_a_verdict_states_its_version_in_body_and_headers() -> None:
    frame = parsed()
    answer = verdict(frame)
    headers = dict(verdict_record(answer, frame).headers)
    assert json.loads(answer.to_bytes())["schema_version"] == "1.4"
    assert (headers["fifa-schema-version"], headers["ce_dataschema"]) == (b"1.4", b"urn:fifa-stream:verdict:1.4")


def test_a_dead_letter_keeps_key_value_and_headers_and_says_where_and_why() -> None:
    record = dead_letter_record(raw(("x", b"1"), key=b"k"), RecordError(Reason.EMPTY_VALUE, "why"), group="g")
    headers = dict(record.headers)
    assert (record.key, record.value, record.headers[0]) == (b"k", b"image", ("x", b"1"))
    assert (headers["dlq-reason"], headers["dlq-error"], headers["dlq-consumer-group"]) == (b"empty_value", b"why", b"g")
    assert (headers["dlq-topic"], headers["dlq-partition"], headers["dlq-offset"]) == (b"fifa.frames", b"2", b"17")


def test_a_dead_letter_without_the_image_keeps_its_digest() -> None:
    record = dead_letter_record(raw(), RecordError(Reason.RECORD_TOO_LARGE, "why"), group="g", keep_value=False)
    assert record.value == b""
    assert dict(record.headers)["dlq-value-sha256"] == b"6105d6cc76af400325e94d588ce511be5bfdbb73b437dc51eca43917d7a43e3d"
