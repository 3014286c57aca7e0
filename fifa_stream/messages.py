"""Frames, verdicts and dead letters as messages of key, headers and value: the contract for whoever writes or reads our topics, in any language.

Header values are bytes on the wire and UTF-8 text here. What is written here for producers is narrower than what `parse_frame` forgives: every frame
that keeps to it is read. Headers that are not named are kept and ignored; of a repeated one the last counts.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue

from engines import fict
from engines.contracts import Label
from fifa_stream.records import Kept, Reason

Count = Annotated[str, Field(pattern=r"^[0-9]{1,18}$")]
"""Decimal digits."""
Timestamp = Annotated[str, Field(pattern=r"^-?[0-9]{1,18}$")]
"""Decimal digits; -1 where the record has no timestamp."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Topic = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,249}$")]
Place = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,249}/[0-9]+/[0-9]+$")]
"""'topic/partition/offset'."""
Traceparent = Annotated[str, Field(pattern=r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")]
"""W3C Trace Context; another one is as good as none."""

_NUMBER = r"[0-9]+(\.[0-9]+)?"
_QUESTION: Final[dict[str, Any]] = {"type": "string", "anyOf": [{"enum": list(fict.concepts())}, {"pattern": f"^{_NUMBER}(,{_NUMBER}){{3}}$"}]}

CLAIM: Final = ("claim-uri", "claim-sha256", "claim-size")
"""Together or not at all."""


Encoded = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
"""Bytes on the wire, base64 where a message is written as JSON."""


class _Headers(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """A header is there or not; it is never null."""
        schema = handler(core_schema)
        for header in handler.resolve_ref_schema(schema)["properties"].values():
            alternatives = [one for one in header.get("anyOf", ()) if one != {"type": "null"}]
            if "default" in header and len(alternatives) == 1:
                del header["anyOf"]
                header |= alternatives[0]
            header.pop("default", None)
        return schema


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FrameHeaders(_Headers):
    """Of a frame. All are optional; the key, or `stream-id`, says which stream it belongs to."""

    model_config = ConfigDict(json_schema_extra={"dependentRequired": {name: list(CLAIM) for name in (*CLAIM, "claim-expires-ms")}})

    content_type: str | None = Field(None, alias="content-type", max_length=256)
    """image/jpeg, image/png, image/webp or video/mp4. Left out it is told by the first bytes; one that they contradict is dead-lettered."""
    stream_id: Name | None = Field(None, alias="stream-id")
    """Camera, call or session: its frames stay in order and its verdicts carry it. Left out: the key, else 'topic/partition'."""
    frame_index: Count | None = Field(None, alias="frame-index")
    """Position in the stream; handed on to the verdict."""
    pts_ms: Count | None = Field(None, alias="pts-ms")
    """Presentation time in the stream; handed on to the verdict."""
    stream_end: Literal["true", "false"] | None = Field(None, alias="stream-end")
    """true: the last frame of its stream. Segments close, and what comes later begins anew. Of no effect where streams are not remembered."""
    deadline_ms: Count | None = Field(None, alias="deadline-ms")
    """Unix time by which the verdict is still of use; later the frame is scored and not explained, or skipped where shedding is on."""
    fifa_crop: Literal["true", "false"] | None = Field(None, alias="fifa-crop")
    """true: the image already is one face crop, and no face is looked for."""
    fifa_query: str | None = Field(None, alias="fifa-query", json_schema_extra=_QUESTION)
    """A question about one area of every face: a FICT id, or a box x0,y0,x1,y1 in pixels with x0 < x1 and y0 < y1."""
    traceparent: Traceparent | None = None
    """Trace that the frame belongs to."""
    tracestate: str | None = None
    """What tracing systems add to it."""
    claim_uri: str | None = Field(
        None, alias="claim-uri", max_length=1024, pattern=r"^(file|s3|https)://[A-Za-z0-9.:-]*/[A-Za-z0-9._~!$&'()*+,;=@:/-]+$"
    )
    """The image lies here and the value is empty; spelt plainly, without escapes, query, empty or dotted parts."""
    claim_sha256: Sha256 | None = Field(None, alias="claim-sha256")
    """Digest of the image there."""
    claim_size: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,17}$")] | None = Field(None, alias="claim-size")
    """Bytes of the image there."""
    claim_expires_ms: Count | None = Field(None, alias="claim-expires-ms")
    """Unix time after which the image may be gone."""
    ce_datacontenttype: str | None = Field(None, max_length=256)
    """CloudEvents; read where content-type is missing."""
    ce_partitionkey: Name | None = None
    """CloudEvents; read where stream-id is missing."""
    ce_traceparent: Traceparent | None = None
    """CloudEvents; read where traceparent is missing."""
    dlq_replayed: Count | None = Field(None, alias="dlq-replayed")
    """Written by `fifa-stream dead-letters replay`: how often the frame failed before."""


class VerdictHeaders(_Headers):
    """Of a verdict: a CloudEvent in binary mode. `ce_source` and `ce_id` name the frame, so a verdict that is repeated has them again."""

    content_type: Literal["application/json"] = Field(alias="content-type")
    """The value is JSON in UTF-8."""
    ce_specversion: Literal["1.0"]
    """Of CloudEvents."""
    ce_id: Annotated[str, Field(min_length=1)]
    """'topic/partition/offset' of the frame; unique within one Kafka cluster."""
    ce_source: Literal["urn:fifa-stream"]
    """Who speaks."""
    ce_type: Literal["fifa.verdict.v1"]
    """Its last part is the major version of the verdict."""
    ce_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When the verdict was reached, RFC 3339 in UTC."""
    ce_subject: Name
    """The stream id."""
    ce_partitionkey: Name
    """The stream id: the record's key."""
    ce_dataschema: Annotated[str, Field(pattern=r"^urn:fifa-stream:verdict:1\.[0-9]+$")]
    """`$id` of the JSON Schema of the value; its last part is the version."""
    stream_id: Name = Field(alias="stream-id")
    """The stream id."""
    fifa_schema_version: Annotated[str, Field(pattern=r"^1\.[0-9]+$")] = Field(alias="fifa-schema-version")
    """Of the verdict, major.minor."""
    fifa_label: Label = Field(alias="fifa-label")
    """`label` of the verdict, to choose by without parsing it."""
    fifa_engine: Sha256 = Field(alias="fifa-engine")
    """Digest of the engine's manifest."""
    fifa_input: Place = Field(alias="fifa-input")
    """'topic/partition/offset' of the frame: the idempotency key for sinks."""
    frame_index: Count | None = Field(None, alias="frame-index")
    """As the frame had it."""
    pts_ms: Count | None = Field(None, alias="pts-ms")
    """As the frame had it."""
    traceparent: Traceparent | None = None
    """Trace that the verdict belongs to: the frame's, or with tracing on the span of this worker in it."""
    tracestate: str | None = None
    """What tracing systems add to it; only with tracing on."""


class DeadLetterHeaders(_Headers):
    """Of a dead letter: those of the frame, untouched, and behind them these eleven in this order."""

    dlq_reason: Reason = Field(alias="dlq-reason")
    """Why; docs/dead-letters.md says what to do about each."""
    dlq_error: Annotated[str, Field(max_length=500)] = Field(alias="dlq-error")
    """Cause, value and remedy; never a byte of the image."""
    dlq_topic: Topic = Field(alias="dlq-topic")
    """Where the frame lay."""
    dlq_partition: Count = Field(alias="dlq-partition")
    """Where the frame lay."""
    dlq_offset: Count = Field(alias="dlq-offset")
    """Where the frame lay."""
    dlq_timestamp: Timestamp = Field(alias="dlq-timestamp")
    """The frame's, Unix milliseconds."""
    dlq_attempts: Count = Field(alias="dlq-attempts")
    """How often the frame was tried, with this time."""
    dlq_consumer_group: str = Field(alias="dlq-consumer-group")
    """Who tried."""
    dlq_version: Literal["1"] = Field(alias="dlq-version")
    """Of these headers."""
    dlq_value_sha256: Sha256 = Field(alias="dlq-value-sha256")
    """Digest of the frame's value, also where that is left out."""
    dlq_kept: Kept = Field(alias="dlq-kept")
    """all; headers: the image was left out; nothing: key and headers as well."""


class FrameMessage(_Message):
    """A frame: one image, or one chunk of video."""

    key: Name | None = None
    """The stream id, so that a stream stays on one partition and in order."""
    headers: FrameHeaders
    value: Encoded
    """JPEG, PNG or WebP, or H.264 in MP4 with the extra `video`; empty beside a claim."""


class DeadLetterMessage(_Message):
    """A frame that cannot become a verdict, and why."""

    key: str | None = None
    """The frame's."""
    headers: DeadLetterHeaders
    value: Encoded
    """The frame's; empty where `dlq-kept` is not all."""
