"""The AsyncAPI document: current, valid, whole, and what its examples say is true."""

import json
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from fifa_stream import asyncapi
from fifa_stream.config import KafkaSettings
from fifa_stream.records import OutRecord, RawRecord, RecordError, Verdict, parse_frame, verdict_record
from fifa_stream.testing import toy_result

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = asyncapi.document()


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(reference: str) -> Any:
    """Where a reference leads inside the document. Raises KeyError."""
    assert reference.startswith("#/"), f"{reference} leads out of the document"
    node: Any = DOCUMENT
    for part in reference[2:].split("/"):
        node = node[part]
    return node


def validator(schema: dict[str, Any]) -> jsonschema.Draft7Validator:
    """Of one schema of the document, references followed."""
    whole = {"allOf": [schema], "components": DOCUMENT["components"]}
    jsonschema.Draft7Validator.check_schema(whole)
    return jsonschema.Draft7Validator(whole)


def test_the_committed_document_is_the_generated_one() -> None:
    assert (ROOT / "docs" / "contracts" / "asyncapi.json").read_text("utf-8") == asyncapi.text(), "run: make schemas"


def test_every_reference_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert len(found) > 20
    for reference in found:
        assert resolve(reference)


def test_every_schema_is_referred_to() -> None:
    used = {reference.rpartition("/")[2] for reference in references(DOCUMENT)}
    assert DOCUMENT["components"]["schemas"].keys() <= used and DOCUMENT["components"]["messages"].keys() <= used


def test_operations_use_messages_of_their_own_channel() -> None:
    for operation in DOCUMENT["operations"].values():
        channel = operation["channel"]["$ref"]
        assert operation["messages"] and all(one["$ref"].startswith(f"{channel}/messages/") for one in operation["messages"])


def test_the_channels_are_the_topics_of_the_settings() -> None:
    document = asyncapi.document(KafkaSettings(frames_topic="a", verdicts_topic="b", dead_letters_topic="c"))
    assert {name: channel["address"] for name, channel in document["channels"].items()} == {"frames": "a", "verdicts": "b", "dead_letters": "c"}


def test_the_document_is_valid_asyncapi(npm_ci: Callable[[Path], Path]) -> None:
    folder = npm_ci(ROOT / "tests" / "asyncapi") / "node_modules" / "@asyncapi" / "specs" / "schemas"
    meta = json.loads((folder / f"{DOCUMENT['asyncapi']}-without-$id.json").read_text("utf-8"))
    checker = jsonschema.Draft7Validator(meta)
    assert [f"{list(error.absolute_path)}: {error.message[:200]}" for error in checker.iter_errors(DOCUMENT)] == []
    assert not checker.is_valid({**DOCUMENT, "operations": {"judge": {"action": "read", "channel": {"$ref": "#/channels/frames"}}}}), "it can say no"


@pytest.mark.parametrize("name", DOCUMENT["components"]["messages"])
def test_examples_are_valid_by_the_schemas_beside_them(name: str) -> None:
    message = DOCUMENT["components"]["messages"][name]
    for example in message["examples"]:
        validator(message["headers"]).validate(example["headers"])
        validator(message["payload"]).validate(example["payload"])


def test_the_examples_of_frames_are_read() -> None:
    for name, value in (("frame", asyncapi.IMAGE), ("claim", b"")):
        headers = tuple((header, text.encode()) for header, text in asyncapi.EXAMPLE_HEADERS[name].items())
        assert parse_frame(RawRecord("fifa.frames", 2, 17, 0, b"door-7", value, headers), max_value_bytes=1 << 20).stream_id == "door-7"
    assert Image.open(BytesIO(asyncapi.IMAGE)).size == (1, 1)


def test_the_example_of_a_verdict_is_one() -> None:
    verdict = Verdict.from_bytes(json.dumps(asyncapi.EXAMPLE_VERDICT).encode())
    (evidence,) = verdict.faces[0].evidence
    assert verdict.faces[0].explanation is not None
    assert verdict.faces[0].explanation.text[slice(*evidence.char_span)] == evidence.phrase
    x, y, width, height = coco_mask.toBbox({"size": list(evidence.mask.size), "counts": evidence.mask.counts.encode()})
    assert evidence.box == (x, y, x + width, y + height)


def real_verdict() -> OutRecord:
    headers = (("frame-index", b"3"), ("fifa-query", b"nose"))
    frame = parse_frame(RawRecord("fifa.frames", 2, 17, 0, b"door-7", b"image", headers), max_value_bytes=100)
    result = toy_result(frame)
    assert not isinstance(result, RecordError)
    return verdict_record(result, frame)


def test_what_is_really_written_is_valid_by_the_document() -> None:
    message, record = DOCUMENT["components"]["messages"]["verdict"], real_verdict()
    validator(message["headers"]).validate({name: value.decode() for name, value in record.headers})
    validator(message["payload"]).validate(json.loads(record.value or b""))
    for golden in ("verdict-1.0.json", "verdict-1.1.json", "verdict-1.2.json", "verdict-1.3.json", "verdict.json"):
        validator(message["payload"]).validate(json.loads((ROOT / "tests" / "golden" / golden).read_bytes()))


def test_what_the_next_minor_version_adds_is_valid_too() -> None:
    payload = DOCUMENT["components"]["messages"]["verdict"]["payload"]
    later = json.loads(real_verdict().value or b"")
    later |= {"schema_version": "1.99", "provenance": {"c2pa": None}, "notes": [{"code": "underwater", "message": "fish", "depth_m": 3}]}
    validator(payload).validate(later)
    for broken in ({"label": "perhaps"}, {"fake_score": 2}, {"faces": [{}]}, {"schema_version": "2.0"}):
        assert not validator(payload).is_valid(later | broken), broken


def test_the_document_is_ascii_and_names_no_machine() -> None:
    text = asyncapi.text()
    assert text.isascii() and not re.search(r"(?<![\w.:/])/(work|home|root|tmp)/\w", text)
