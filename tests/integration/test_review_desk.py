"""The desk on real topics: verdicts read since a time, pictures by their offsets, decisions to a topic and back."""

import hashlib
from io import BytesIO
from pathlib import Path
from typing import Any

import kafka as kafka_python
import pytest
from PIL import Image

from engines.contracts import Label
from fifa_stream.cluster import create_topics
from fifa_stream.config import KafkaSettings, Settings
from fifa_stream.infer import EncodedImage, FramePipeline, PipelineLimits
from fifa_stream.records import RawRecord, Verdict, parse_frame, verdict_record
from fifa_stream.review.desk import Choice, Desk
from fifa_stream.review.opening import Sources, open_desk
from fifa_stream.review.queue import Order, Wanted
from fifa_stream.send import frame_record
from fifa_stream.testing import ToyAnalyzer, toy_bundle
from fifa_stream.topic_reader import TopicLookup

from .apache_kafka import ApacheKafka

pytestmark = [pytest.mark.kafka, pytest.mark.usefixtures("clean_environment")]
REVIEWS = "fifa.reviews"


@pytest.fixture
def kafka(request: pytest.FixtureRequest, apache: ApacheKafka) -> KafkaSettings:
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:8]
    topics = {"frames_topic": f"f-{name}", "verdicts_topic": f"v-{name}", "shadow_topic": f"s-{name}"}
    settings = KafkaSettings(bootstrap_servers=apache.bootstrap_servers, **topics)
    create_topics(settings, dict.fromkeys((*topics.values(), REVIEWS), 1), replication=1)
    return settings


def gray(level: int) -> bytes:
    """A picture as bright as the toy engine shall find it fake."""
    buffer = BytesIO()
    Image.new("RGB", (320, 240), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def answered(kafka: KafkaSettings) -> list[Verdict]:
    """Three frames of two streams with their verdicts, and one verdict of the engine that does not answer."""
    pipeline = FramePipeline(PipelineLimits(), ToyAnalyzer(), toy_bundle())
    producer = kafka_python.KafkaProducer(**kafka.client_options(), acks="all", max_request_size=4 << 20)
    verdicts = []
    try:
        for number, level in enumerate((60, 150, 220)):
            record = frame_record(gray(level), stream_id=f"door {number % 2}", frame_index=number)
            place = producer.send(kafka.frames_topic, key=record.key, value=record.value, headers=list(record.headers)).get(timeout=60)
            raw = RawRecord(kafka.frames_topic, place.partition, place.offset, place.timestamp, record.key, record.value, record.headers)
            frame = parse_frame(raw, max_value_bytes=4 << 20)
            (verdict,) = pipeline.judge([EncodedImage.of(frame)])
            assert isinstance(verdict, Verdict)
            verdicts.append(verdict)
            topics = (kafka.verdicts_topic, *((kafka.shadow_topic,) if number == 0 else ()))
            for topic in topics:
                shown = verdict if topic == kafka.verdicts_topic else verdict.model_copy(update={"fake_score": 0.99, "label": Label.FAKE})
                out = verdict_record(shown, frame)
                producer.send(topic, key=out.key, value=out.value, headers=list(out.headers)).get(timeout=60)
    finally:
        producer.close(timeout=10)
    return verdicts


def opened(kafka: KafkaSettings, **options: Any) -> Desk:
    return open_desk(Sources(**options), Settings(kafka=kafka), reviewer=options.pop("reviewer", "ann"), decisions=Path("unused"), to_topic=REVIEWS)


def test_cases_come_from_topics_and_decisions_go_to_one(kafka: KafkaSettings, answered: list[Verdict]) -> None:
    desk = opened(kafka)
    assert [case.verdict_id for case in desk.book.cases] == [verdict.id for verdict in answered]
    assert [desk.case(number)["noPicture"] for number in range(3)] == [None] * 3
    assert desk.queue(Order.DISAGREEMENT, Wanted())[0] == 0 and desk.case(0)["shadow"]["score"] == 0.99
    desk.decide(Choice(case=2, face=0, decision="agree"))
    desk.decide(Choice(case=1, face=0, decision="disagree", truth="fake"))
    desk.undo()
    desk.close()
    again = opened(kafka)
    assert [row["mine"] for row in again.rows([0, 1, 2])] == [None, None, "agree"]
    again.close()
    later = opened(kafka, since_ms=4_000_000_000_000)
    assert later.book.cases == []
    later.close()


def test_a_record_is_found_by_its_place_and_what_is_not_there_is_none(kafka: KafkaSettings, answered: list[Verdict]) -> None:
    lookup = TopicLookup(kafka, kafka.frames_topic, timeout_s=2.0)
    offsets = [verdict.input.offset for verdict in answered if verdict.input is not None]
    found = [lookup.find(0, offset) for offset in reversed(offsets)]
    assert [raw.offset for raw in found if raw is not None] == offsets[::-1]
    assert [hashlib.sha256(raw.value or b"").hexdigest() for raw in found if raw is not None] == [one.media.sha256 for one in reversed(answered)]
    assert lookup.find(0, offsets[-1] + 100) is None and lookup.find(7, 0) is None
    lookup.close()
