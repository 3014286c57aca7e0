"""The AsyncAPI 3 document of our three topics, generated from the models: `python -m fifa_stream.asyncapi > docs/contracts/asyncapi.json`.

JSON is YAML as well. Its schemas are those of the models in the dialect that every AsyncAPI tool reads (JSON Schema draft 07), and open: they say
what a consumer may rely on, so that what the next minor version adds is no error.
"""

import base64
import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from fifa_stream.config import KafkaSettings
from fifa_stream.messages import DeadLetterHeaders, FrameHeaders, VerdictHeaders
from fifa_stream.records import EVENT_SOURCE, SCHEMA_VERSION, VERDICT_SCHEMA, VERDICT_TYPE, NoteCode, Reason, Verdict

OPEN_LISTS: Final = (NoteCode.__name__, Reason.__name__)
"""Lists that minor versions extend: no `enum` for consumers, but `x-extensible-enum`."""
IMAGE: Final = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg==")
"""A PNG of one pixel, for short examples."""
_MASK: Final = f"\\WP3<d>{'0' * 77}dPi5"
"""COCO run lengths of the box 205, 140, 245, 152."""
_DIGEST: Final = hashlib.sha256(IMAGE).hexdigest()
_ENGINE: Final = hashlib.sha256(b"manifest").hexdigest()

EXAMPLE_VERDICT: Final[dict[str, Any]] = {
    "schema_version": SCHEMA_VERSION,
    "id": "fifa.frames/2/17",
    "input": {
        "topic": "fifa.frames",
        "partition": 2,
        "offset": 17,
        "timestamp_ms": 1_700_000_000_000,
        "stream_id": "door-7",
        "frame_index": 41,
        "pts_ms": 1640,
    },
    "engine": {
        "name": "small",
        "version": "0.4.0",
        "manifest_sha256": _ENGINE,
        "encoder_sha256": hashlib.sha256(b"encoder").hexdigest(),
        "precision": "fp16",
        "backend": "onnxruntime",
    },
    "media": {"type": "image", "content_type": "image/png", "sha256": _DIGEST, "size_bytes": len(IMAGE), "width": 640, "height": 480, "uri": None},
    "label": "fake",
    "fake_score": 0.98,
    "operating_point": {"name": "default", "fake_at": 0.7, "real_below": 0.3, "fpr_target": 0.01},
    "faces": [
        {
            "id": 0,
            "box": [181.0, 58.0, 270.0, 178.0],
            "detection_confidence": 0.93,
            "quality": {"passed": True, "face_px": 89.0, "sharpness": 14.2, "brightness": 121.5, "roll_deg": -1.5},
            "fake_score": 0.98,
            "raw_score": 3.9,
            "label": "fake",
            "forgery_type": {
                "label": "identity_swap",
                "probs": {"identity_swap": 0.95, "expression_swap": 0.03, "attribute_manipulation": 0.01, "entire_synthesis": 0.01},
            },
            "evidence": [
                {
                    "id": "0.0",
                    "phrase": "mouth",
                    "char_span": [4, 9],
                    "concept": "mouth",
                    "concept_path": ["lower_face", "mouth"],
                    "mask": {"size": [480, 640], "counts": _MASK},
                    "mask_confidence": 0.81,
                    "box": [205.0, 140.0, 245.0, 152.0],
                    "measured": {"sharpness_ratio": 1.4},
                }
            ],
            "explanation": {"text": "The mouth is too sharp.", "markup": "The <p> mouth </p> [SEG] is too sharp."},
            "notes": [],
        }
    ],
    "notes": [],
    "timings_ms": {"decode": 4.1, "detect": 21.0, "infer": 61.5},
}
"""Made up, whole and valid."""

EXAMPLE_HEADERS: Final[dict[str, dict[str, str]]] = {
    "frame": {
        "content-type": "image/png",
        "stream-id": "door-7",
        "frame-index": "41",
        "pts-ms": "1640",
        "fifa-query": "right_cheek",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    },
    "claim": {
        "stream-id": "door-7",
        "content-type": "image/png",
        "claim-uri": f"s3://camera-frames/door-7/{_DIGEST}.png",
        "claim-sha256": _DIGEST,
        "claim-size": str(len(IMAGE)),
    },
    "verdict": {
        "content-type": "application/json",
        "ce_specversion": "1.0",
        "ce_id": "fifa.frames/2/17",
        "ce_source": EVENT_SOURCE,
        "ce_type": VERDICT_TYPE,
        "ce_time": "2026-01-31T12:00:00.125Z",
        "ce_subject": "door-7",
        "ce_partitionkey": "door-7",
        "ce_dataschema": VERDICT_SCHEMA,
        "stream-id": "door-7",
        "fifa-schema-version": SCHEMA_VERSION,
        "fifa-label": "fake",
        "fifa-engine": _ENGINE,
        "fifa-input": "fifa.frames/2/17",
        "frame-index": "41",
        "pts-ms": "1640",
    },
    "dead_letter": {
        "stream-id": "door-7",
        "dlq-reason": "image_too_small",
        "dlq-error": "the image is 1x1 pixels, each side needs 32; send a larger one",
        "dlq-topic": "fifa.frames",
        "dlq-partition": "2",
        "dlq-offset": "18",
        "dlq-timestamp": "1700000000040",
        "dlq-attempts": "1",
        "dlq-consumer-group": "fifa-stream",
        "dlq-version": "1",
        "dlq-value-sha256": _DIGEST,
        "dlq-kept": "all",
    },
}


def document(kafka: KafkaSettings | None = None) -> dict[str, Any]:
    """The whole document, with the topics of the settings as its channels."""
    kafka = kafka or KafkaSettings()
    schemas: dict[str, Any] = {}
    for model in (FrameHeaders, VerdictHeaders, Verdict, DeadLetterHeaders):
        schemas |= _components(model)
    return {
        "asyncapi": "3.0.0",
        "id": EVENT_SOURCE,
        "info": {
            "title": "FiFa-Stream",
            "version": f"{SCHEMA_VERSION}.0",
            "description": "Frames in, face-forgery verdicts out, over Kafka. Minor versions add optional fields, headers, note codes and reasons: "
            "ignore what you do not know.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"kafka": {"host": "localhost:9092", "protocol": "kafka", "description": "Yours: kafka.bootstrap_servers."}},
        "channels": {
            "frames": _channel(kafka.frames_topic, "Images and video chunks to judge, keyed by stream id.", "frame", "claim"),
            "verdicts": _channel(kafka.verdicts_topic, "One verdict for each frame, keyed by stream id, in the order of its frames.", "verdict"),
            "dead_letters": _channel(kafka.dead_letters_topic, "Frames that cannot become a verdict, as they came.", "dead_letter"),
        },
        "operations": {
            "judge": _operation("receive", "frames", "Read frames.", "frame", "claim"),
            "answer": _operation("send", "verdicts", "Say what is fake and show where.", "verdict"),
            "set_aside": _operation("send", "dead_letters", "Keep what cannot be judged, with the reason.", "dead_letter"),
        },
        "components": {"messages": _messages(), "schemas": schemas},
    }


def _channel(topic: str, description: str, *messages: str) -> dict[str, Any]:
    return {
        "address": topic,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {"kafka": {"topic": topic, "bindingVersion": "0.5.0"}},
    }


def _operation(action: str, channel: str, summary: str, *messages: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages],
    }


def _messages() -> dict[str, Any]:
    key = {"type": "string", "minLength": 1, "maxLength": 256, "description": "The stream id."}
    image = base64.b64encode(IMAGE).decode()
    encoded = {"type": "string", "contentEncoding": "base64", "description": "Bytes as they are on the wire; base64 only in the examples here."}
    return {
        "frame": _message("A frame that carries its image", FrameHeaders, encoded, key, "image/*", EXAMPLE_HEADERS["frame"], image),
        "claim": _message(
            "A frame whose image lies elsewhere", FrameHeaders, {"type": "string", "maxLength": 0}, key, "image/*", EXAMPLE_HEADERS["claim"], ""
        ),
        "verdict": _message(
            "A CloudEvent in binary mode",
            VerdictHeaders,
            {"$ref": f"#/components/schemas/{Verdict.__name__}"},
            key,
            "application/json",
            EXAMPLE_HEADERS["verdict"],
            EXAMPLE_VERDICT,
        ),
        "dead_letter": _message(
            "A frame as it came, and behind its headers why it failed",
            DeadLetterHeaders,
            encoded,
            {"type": "string", "description": "The frame's; may be missing or no text."},
            "application/octet-stream",
            EXAMPLE_HEADERS["dead_letter"],
            image,
        ),
    }


def _message(
    summary: str, headers: type[BaseModel], payload: dict[str, Any], key: dict[str, Any], content_type: str, example_headers: Mapping[str, str],
    example: object,
) -> dict[str, Any]:  # fmt: skip
    return {
        "summary": summary,
        "contentType": content_type,
        "headers": {"$ref": f"#/components/schemas/{headers.__name__}"},
        "payload": payload,
        "bindings": {"kafka": {"key": key, "bindingVersion": "0.5.0"}},
        "examples": [{"headers": dict(example_headers), "payload": example}],
    }


def _components(model: type[BaseModel]) -> dict[str, Any]:
    """A model and what it refers to, by name, as AsyncAPI schemas."""
    whole = model.model_json_schema()
    parts = {**whole.pop("$defs", {}), model.__name__: whole}
    return {name: _opened(name, _draft_07(part)) for name, part in parts.items()}


def _opened(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    if name in OPEN_LISTS:
        return {**{key: value for key, value in schema.items() if key != "enum"}, "x-extensible-enum": schema["enum"]}
    if name == Verdict.__name__:  # of this version and of later ones
        schema["properties"]["schema_version"] = {"type": "string", "pattern": r"^1\.[0-9]+$"}
    return schema


def _draft_07(node: Any) -> Any:
    """A schema in draft 2020-12 as one in draft 07; closed objects are opened, and titles that only repeat a name left out."""
    if isinstance(node, list):
        return [_draft_07(one) for one in node]
    if not isinstance(node, dict):
        return node
    schema = {key: _draft_07(value) for key, value in node.items() if not (key == "additionalProperties" and value is False)}
    if isinstance(schema.get("title"), str):
        del schema["title"]
    if "prefixItems" in schema:
        schema |= {"items": schema.pop("prefixItems"), "additionalItems": False}
    if "dependentRequired" in schema:
        schema["dependencies"] = schema.pop("dependentRequired")
    if isinstance(schema.get("$ref"), str):
        reference = {"$ref": schema.pop("$ref").replace("#/$defs/", "#/components/schemas/")}
        # What stands beside a reference does not count in draft 07.
        return {"allOf": [reference], **schema} if schema else reference
    return schema


def text() -> str:
    """The document as committed."""
    return json.dumps(document(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
