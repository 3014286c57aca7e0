"""The contract with producers and consumers: headers in step with the code, schemas that only grow, verdicts that any CloudEvents reader takes."""

import base64
import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary
from cloudevents.core.formats.json import JSONFormat
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import BaseModel

from fifa_stream import schema
from fifa_stream.messages import DeadLetterHeaders, FrameHeaders, VerdictHeaders
from fifa_stream.records import (
    REPLAYED_HEADER,
    SCHEMA_VERSION,
    VERDICT_SCHEMA,
    DeadLetter,
    Headers,
    NoteCode,
    OutRecord,
    RawRecord,
    Reason,
    RecordError,
    Verdict,
    dead_letter_record,
    is_plain_uri,
    parse_frame,
    verdict_record,
)
from fifa_stream.testing import toy_result

from .schema_changes import breaking_changes

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
OPEN_LISTS = ("/code", "/schema_version", "/dlq-reason")
"""Minor versions may add note codes, reasons and, by their nature, versions."""


def raw(*headers: tuple[str, bytes], value: bytes | None = b"image", key: bytes | None = b"door-7", offset: int = 17) -> RawRecord:
    return RawRecord("fifa.frames", 2, offset, 1_700_000_000_000, key, value, headers)


def answered(record: RawRecord) -> OutRecord:
    frame = parse_frame(record, max_value_bytes=1 << 20)
    result = toy_result(frame)
    assert isinstance(result, Verdict)
    return verdict_record(result, frame)


def text(headers: Headers) -> dict[str, str]:
    return {name: data.decode() for name, data in headers}


def names(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def required(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items() if field.is_required()}


def schema_file(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((schema.schema_folder() / name).read_text("utf-8"))
    return loaded


def valid_headers(name: str, model: type[BaseModel]) -> jsonschema.Draft202012Validator:
    """By the committed schema, where they are one part of a message."""
    whole = schema_file(name)
    return jsonschema.Draft202012Validator(whole["$defs"].get(model.__name__, whole) | {"$defs": whole["$defs"]})


ALL_OPTIONAL = (
    ("stream-id", b"door-7"),
    ("frame-index", b"41"),
    ("pts-ms", b"1640"),
    ("traceparent", b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01"),
)


def test_a_verdict_has_the_headers_that_are_promised_and_no_other() -> None:
    assert text(answered(raw(*ALL_OPTIONAL)).headers).keys() == names(VerdictHeaders) - {"tracestate"}, "which the tracing writes"
    assert text(answered(raw()).headers).keys() == required(VerdictHeaders)
    for record in (raw(*ALL_OPTIONAL), raw()):
        valid_headers("verdict-headers.json", VerdictHeaders).validate(text(answered(record).headers))


def test_a_dead_letter_has_the_headers_that_are_promised_behind_those_of_the_frame() -> None:
    letter = dead_letter_record(raw(("stream-id", b"door-7")), RecordError(Reason.UNSUPPORTED_MEDIA, "it is a GIF; send JPEG"), group="g")
    assert [name for name, _ in letter.headers] == ["stream-id", *(field.alias for field in DeadLetterHeaders.model_fields.values())]
    message = {"key": "door-7", "headers": text(letter.headers), "value": base64.b64encode(letter.value or b"").decode()}
    jsonschema.Draft202012Validator(schema_file("dead-letter.json")).validate(message)


def test_every_header_of_a_frame_that_is_described_is_one_that_is_read() -> None:
    """Each description changes what is read; `dlq-replayed` shows in a dead letter, and `tracestate` is for the tracing."""
    plain = parse_frame(raw(key=None), max_value_bytes=100)
    claim = (("claim-uri", b"file:///srv/1.png"), ("claim-sha256", b"ab" * 32), ("claim-size", b"5"))
    samples = {
        "content-type": b"image/png",
        "stream-id": b"s",
        "frame-index": b"1",
        "pts-ms": b"1",
        "deadline-ms": b"1",
        "fifa-crop": b"true",
        "fifa-query": b"nose",
        "traceparent": ALL_OPTIONAL[-1][1],
        "stream-end": b"true",
        "ce_datacontenttype": b"image/png",
        "ce_partitionkey": b"s",
        "ce_traceparent": ALL_OPTIONAL[-1][1],
    }
    assert samples.keys() | dict(claim).keys() | {"claim-expires-ms", REPLAYED_HEADER, "tracestate"} == names(FrameHeaders)
    for name, value in samples.items():
        valid_headers("frame.json", FrameHeaders).validate({name: value.decode()})
        read = parse_frame(raw((name, value), key=None), max_value_bytes=100)
        assert read._replace(raw=plain.raw) != plain, name
    claimed = parse_frame(raw(*claim, ("claim-expires-ms", b"9"), value=b""), max_value_bytes=100)
    assert claimed.claim is not None and claimed.claim.expires_at_ms == 9
    letter = dead_letter_record(raw((REPLAYED_HEADER, b"3")), RecordError(Reason.EMPTY_VALUE, "x"), group="g")
    assert text(letter.headers)["dlq-attempts"] == "4"


def _header_values(properties: dict[str, Any]) -> st.SearchStrategy[dict[str, str]]:
    """Any choice of the headers of a frame, each with text that its schema allows."""

    def values(spec: dict[str, Any]) -> st.SearchStrategy[str]:
        alternatives = [{**spec, **alternative} for alternative in spec.get("anyOf", [spec])]
        return st.one_of(
            *(
                st.sampled_from(one["enum"]) if "enum" in one else
                st.from_regex(one["pattern"], fullmatch=True, alphabet=st.characters(codec="ascii")) if "pattern" in one else
                st.text(min_size=one.get("minLength", 0), max_size=one.get("maxLength", 20))
                for one in alternatives
            )
        )  # fmt: skip

    return st.fixed_dictionaries({}, optional={name: values(spec) for name, spec in properties.items()})


def _is_beyond_a_schema(headers: dict[str, str]) -> bool:
    """What the descriptions say and no pattern can: how a box is ordered, how a path is spelt."""
    box = headers.get("fifa-query", "")
    if "," in box:
        x0, y0, x1, y1 = map(float, box.split(","))
        if not (x0 < x1 < 1e6 and y0 < y1 < 1e6):
            return True
    return "claim-uri" in headers and not is_plain_uri(headers["claim-uri"])


FRAME = schema_file("frame.json")["$defs"]["FrameHeaders"]


@given(_header_values(FRAME["properties"]))
def test_every_frame_that_keeps_to_the_schema_is_read(headers: dict[str, str]) -> None:
    assume(len(headers.get("claim-uri", "")) <= 1024 and not _is_beyond_a_schema(headers))
    claim = {name for name in headers if name.startswith("claim-")}
    if claim and not jsonschema.Draft202012Validator(FRAME).is_valid(headers):
        headers = {name: value for name, value in headers.items() if name not in claim}
    jsonschema.Draft202012Validator(FRAME).validate(headers)
    value = b"" if "claim-uri" in headers else b"image"
    parse_frame(raw(*((name, text.encode()) for name, text in headers.items()), value=value), max_value_bytes=100)


# --- versions


VERSIONS = sorted(path.stem.removeprefix("verdict-") for path in (GOLDEN / "schemas").glob("verdict-[0-9]*.json"))
KNOWN_BREAKS = {
    "1.0": {
        "/query: additionalProperties was True, is False",  # reserved in 1.0, typed in 1.1
        "/media/type: 'video' is new",
        "/media/width: was integer, is integer or null",
        "/media/height: was integer, is integer or null",
    },
    "1.1": {
        "/media/type: 'video' is new",  # only where the extra `video` is installed
        "/media/width: was integer, is integer or null",  # null only with the note `shed`, which is off by default
        "/media/height: was integer, is integer or null",
    },
}
"""What 1.1 and 1.2 broke before there was this test. Nothing may be added."""
EMPTY_BEFORE_1_3 = ("/timeline/", "/segments/", "/stream/")
"""Reserved, and never on the wire before 1.3 gave them types: nobody can have read what was inside."""


def golden_schema(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((GOLDEN / "schemas" / name).read_text("utf-8"))
    return loaded


@pytest.mark.parametrize("version", VERSIONS)
def test_the_verdict_of_today_breaks_no_consumer_of_an_older_one(version: str) -> None:
    found = breaking_changes(golden_schema(f"verdict-{version}.json"), schema_file("verdict.json"), open_lists=OPEN_LISTS)
    if version < "1.3":
        found = [change for change in found if not change.replace(":", "/").startswith(EMPTY_BEFORE_1_3)]
    assert set(found) == KNOWN_BREAKS.get(version, set()), "add optional fields only, or raise the major version and ce_type (docs/contracts.md)"


@pytest.mark.parametrize(
    ("golden", "today"),
    [
        pytest.param("frame-1.json", "frame.json", id="frame"),
        pytest.param("verdict-headers-1.json", "verdict-headers.json", id="headers of a verdict"),
        pytest.param("dead-letter-1.json", "dead-letter.json", id="dead letter"),
    ],
)
def test_the_headers_of_today_break_nobody(golden: str, today: str) -> None:
    assert breaking_changes(golden_schema(golden), schema_file(today), open_lists=OPEN_LISTS) == []


def without_words(node: Any) -> Any:
    """A schema without its descriptions and titles."""
    if isinstance(node, list):
        return [without_words(one) for one in node]
    if not isinstance(node, dict):
        return node
    return {key: without_words(value) for key, value in node.items() if not (key in ("description", "title") and isinstance(value, str))}


def test_a_change_of_the_verdict_raises_its_version() -> None:
    """Raise SCHEMA_VERSION, add it to the literal of `schema_version`, and keep the new schema as tests/golden/schemas/verdict-VERSION.json."""
    assert VERSIONS[-1] == SCHEMA_VERSION
    assert without_words(golden_schema(f"verdict-{SCHEMA_VERSION}.json")) == without_words(schema_file("verdict.json"))


@pytest.mark.parametrize("name", ["verdict-1.0.json", "verdict-1.1.json", "verdict-1.2.json", "verdict-1.3.json", "verdict.json"])
def test_verdicts_of_every_version_are_valid_by_their_own_schema_and_still_read(name: str) -> None:
    payload = (GOLDEN / name).read_bytes()
    document = json.loads(payload)
    jsonschema.Draft202012Validator(golden_schema(f"verdict-{document['schema_version']}.json")).validate(document)
    assert Verdict.from_bytes(payload).id == document["id"]


SMALL = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 9}, "b": {"$ref": "#/$defs/B"}, "c": {"type": "array", "items": {"type": "integer"}}},
    "required": ["a"],
    "$defs": {"B": {"type": "object", "properties": {"code": {"enum": ["x", "y"], "type": "string"}, "size": {"type": "number"}}}},
}


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    new = copy.deepcopy(SMALL)
    change(new)
    return new


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(lambda new: new["properties"].pop("c"), "/c: removed", id="removed"),
        pytest.param(lambda new: new["$defs"]["B"]["properties"].pop("size"), "/b/size: removed", id="removed inside"),
        pytest.param(lambda new: new["properties"].update(a={"type": "integer"}), "/a: was string, is integer", id="retyped"),
        pytest.param(
            lambda new: new["properties"].update(c={"type": "array", "items": {"type": "string"}}), "/c/*: was integer, is string", id="items retyped"
        ),
        pytest.param(
            lambda new: new["properties"].update(b={"anyOf": [{"$ref": "#/$defs/B"}, {"type": "null"}]}),
            "/b: was object, is null or object",
            id="may be null",
        ),
        pytest.param(lambda new: new["required"].append("b"), "/b: newly required", id="newly required"),
        pytest.param(
            lambda new: (new["properties"].update(d={"type": "null"}), new["required"].append("d")), "/d: newly required", id="new and required"
        ),
        pytest.param(lambda new: new["required"].clear(), "/a: no longer required", id="no longer there for sure"),
        pytest.param(lambda new: new["$defs"]["B"]["properties"]["code"]["enum"].pop(), "/b/code: 'y' is gone", id="value gone"),
        pytest.param(lambda new: new["properties"]["a"].update(maxLength=3), "/a: maxLength was 9, is 3", id="narrowed"),
    ],
)  # fmt: skip
def test_a_breaking_change_is_named(change: Callable[[dict[str, Any]], object], told: str) -> None:
    assert told in breaking_changes(SMALL, changed(change), open_lists=("/code",))


def test_optional_fields_and_values_of_an_open_list_are_no_break() -> None:
    grown = changed(lambda new: (new["properties"].update(d={"type": "string"}), new["$defs"]["B"]["properties"]["code"]["enum"].append("z")))
    assert breaking_changes(SMALL, grown, open_lists=("/code",)) == []
    assert breaking_changes(SMALL, grown) == ["/b/code: 'z' is new"]


# --- CloudEvents


def event_of(record: OutRecord) -> Any:
    return from_binary(KafkaMessage(headers=dict(record.headers), key=record.key, value=record.value or b""), JSONFormat())


def test_a_verdict_is_a_cloud_event_to_the_sdk() -> None:
    record = answered(raw(*ALL_OPTIONAL))
    event = event_of(record)
    assert (event.get_specversion(), event.get_type(), event.get_source()) == ("1.0", "fifa.verdict.v1", "urn:fifa-stream")
    assert (event.get_id(), event.get_subject(), event.get_datacontenttype()) == ("fifa.frames/2/17", "door-7", "application/json")
    assert event.get_dataschema() == VERDICT_SCHEMA == schema_file("verdict.json")["$id"]
    assert event.get_extension("partitionkey") == "door-7" == (record.key or b"").decode()
    time = event.get_time()
    assert isinstance(time, datetime) and time.utcoffset() is not None and abs((datetime.now(UTC) - time).total_seconds()) < 600
    assert event.get_data() == json.loads(record.value or b"")


def test_attributes_of_a_cloud_event_have_names_that_the_specification_allows() -> None:
    attributes = [name.removeprefix("ce_") for name, _ in answered(raw(*ALL_OPTIONAL)).headers if name.startswith("ce_")]
    assert len(attributes) == len(set(attributes)) and all(name.isascii() and name.isalnum() and name.islower() for name in attributes)


OFFSETS = st.tuples(st.sampled_from(["fifa.frames", "fifa", "fifa.frames-2"]), st.integers(0, 99), st.integers(0, 10**12))


@given(OFFSETS, OFFSETS)
def test_source_and_id_are_the_same_for_a_repeated_verdict_and_for_no_other(one: tuple[str, int, int], other: tuple[str, int, int]) -> None:
    def identity(at: tuple[str, int, int]) -> tuple[str, str]:
        headers = text(answered(RawRecord(*at, 0, b"key", b"image", ())).headers)
        return headers["ce_source"], headers["ce_id"]

    assert identity(one) == identity(one)
    assert (identity(one) == identity(other)) == (one == other)


def test_a_dead_letter_is_read_back_by_the_names_that_are_promised() -> None:
    letter = dead_letter_record(raw(), RecordError(Reason.UNSUPPORTED_MEDIA, "it is a GIF; send JPEG"), group="g")
    read = DeadLetter.of(RawRecord("fifa.dead-letters", 0, 0, 0, letter.key, letter.value, letter.headers))
    promised = DeadLetterHeaders.model_validate(text(letter.headers))
    assert (read.reason, read.topic, read.value_sha256, read.kept) == (
        promised.dlq_reason,
        promised.dlq_topic,
        promised.dlq_value_sha256,
        promised.dlq_kept,
    )


def test_open_lists_are_those_that_the_schemas_have() -> None:
    assert set(schema_file("verdict.json")["$defs"]["NoteCode"]["enum"]) == set(NoteCode)
    assert set(schema_file("dead-letter.json")["$defs"]["Reason"]["enum"]) == set(Reason)


def test_the_page_names_every_header() -> None:
    page = (GOLDEN.parents[1] / "docs" / "contracts.md").read_text("utf-8")
    for model in (FrameHeaders, VerdictHeaders, DeadLetterHeaders):
        assert {name for name in names(model) if f"`{name}`" not in page} == set()
    assert f"`{SCHEMA_VERSION}`" in page and f"`{VERDICT_SCHEMA}`" in page
