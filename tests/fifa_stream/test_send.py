"""Sending images: what is written is what the loop reads."""

from pathlib import Path

import pytest

from fifa_stream.config import KafkaSettings
from fifa_stream.records import OutRecord, Query, RawRecord, parse_frame
from fifa_stream.send import SendError, frame_record, send_images


def as_polled(record: OutRecord) -> RawRecord:
    return RawRecord("fifa.frames", 0, 0, 0, record.key, record.value, record.headers)


def test_what_is_sent_is_what_the_loop_reads() -> None:
    record = frame_record(b"image", stream_id="cam-1", frame_index=4, content_type="image/png", crop=True, query=Query(box_xyxy=(1.0, 2.0, 3.0, 4.0)))
    frame = parse_frame(as_polled(record), max_value_bytes=100)
    assert (frame.stream_id, frame.frame_index, frame.content_type, frame.is_crop) == ("cam-1", 4, "image/png", True)
    assert frame.query == Query(box_xyxy=(1.0, 2.0, 3.0, 4.0))
    assert record.key == b"cam-1"


def test_an_unreadable_image_is_named_before_the_broker_is_asked(tmp_path: Path) -> None:
    with pytest.raises(SendError, match=r"missing\.png cannot be read"):
        send_images(KafkaSettings(bootstrap_servers="127.0.0.1:1"), [tmp_path / "missing.png"], topic="fifa.frames", stream_id="s")
