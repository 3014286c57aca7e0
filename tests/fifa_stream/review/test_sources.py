"""Where verdicts and pictures are found, and what is not followed."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from fifa_stream.claims import ClaimStore
from fifa_stream.config import ClaimSettings
from fifa_stream.recording import Recorded
from fifa_stream.records import OutRecord, RawRecord, verdict_record
from fifa_stream.review.pictures import Pictures, Recent
from fifa_stream.review.sources import ImageFiles, NoPicture, RecordedFrames, SourceError, TopicFrames, media_of, verdict_lines


class ToyLookup:
    """A topic with one record."""

    def __init__(self, raw: RawRecord) -> None:
        self._raw = raw
        self.asked: list[tuple[int, int]] = []

    def find(self, partition: int, offset: int) -> RawRecord | None:
        self.asked.append((partition, offset))
        return self._raw if (partition, offset) == (self._raw.partition, self._raw.offset) else None


def test_lines_of_analyze_and_records_of_the_topic_are_the_same_verdict(toys: Any, tmp_path: Path) -> None:
    verdict = toys.verdict(0)
    frame = type("F", (), {"stream_id": "door 7", "frame_index": None, "pts_ms": None, "traceparent": None})()
    recorded = Recorded.of(verdict_record(verdict, frame), topic="fifa.verdicts", partition=0, offset=3, timestamp_ms=1)
    path = tmp_path / "v.jsonl"
    refused = json.dumps({"uri": "a.gif", "error": {"reason": "unsupported_media", "message": "no"}})
    path.write_bytes(b"\n".join([verdict.to_bytes(), refused.encode(), b"", recorded.line().encode(), b"junk"]) + b"\n")
    assert list(verdict_lines(path)) == [("v.jsonl:1", verdict.to_bytes()), ("v.jsonl:4", verdict.to_bytes()), ("v.jsonl:5", b"junk")]
    with pytest.raises(SourceError, match="cannot be read"):
        list(verdict_lines(tmp_path / "none"))


def test_a_recorded_frame_is_found_by_its_place_and_by_its_digest(toys: Any) -> None:
    verdicts = [toys.verdict(0, level=60), toys.verdict(1, level=220)]
    _, frames = toys.write(verdicts)
    recorded = RecordedFrames(frames, None, max_value_bytes=1 << 20)
    elsewhere = toys.judged(220)[1]
    assert recorded.find(verdicts[1]) == recorded.find(elsewhere) == toys.judged(220)[0]
    assert recorded.find(toys.judged(150)[1]) is None


def test_images_are_found_by_their_digest_whatever_their_name(toys: Any, tmp_path: Path) -> None:
    image, verdict = toys.judged(220)
    folder = tmp_path / "images" / "deep"
    folder.mkdir(parents=True)
    (folder / "<script>.png").write_bytes(image)
    (folder / "notes.txt").write_text("x")
    files = ImageFiles([tmp_path / "images"])
    assert len(files) == 1 and files.find(verdict) == image and files.find(toys.judged(60)[1]) is None
    (folder / "<script>.png").unlink()
    with pytest.raises(NoPicture):
        files.find(verdict)


def test_a_verdict_that_names_another_topic_is_not_followed(toys: Any) -> None:
    image, verdict = toys.judged(220)[0], toys.verdict(5, level=220)
    lookup = ToyLookup(RawRecord("fifa.frames", 0, 5, 0, None, image, ()))
    frames = TopicFrames("fifa.frames", lookup, None, 1 << 20)  # type: ignore[arg-type]
    assert frames.find(verdict) == image
    assert verdict.input is not None
    foreign = verdict.model_copy(update={"input": verdict.input.model_copy(update={"topic": "payroll"})})
    assert frames.find(foreign) is None and lookup.asked == [(0, 5)]
    with pytest.raises(NoPicture, match="not on the topic any more"):
        frames.find(toys.verdict(6, level=220))


def claim(uri: str, image: bytes) -> RawRecord:
    headers = (
        ("claim-uri", uri.encode()),
        ("claim-sha256", hashlib.sha256(image).hexdigest().encode()),
        ("claim-size", str(len(image)).encode()),
    )
    return RawRecord("fifa.frames", 0, 0, 0, None, b"", headers)


def test_a_claim_is_fetched_inside_the_allow_list_alone(toys: Any, tmp_path: Path) -> None:
    image, _ = toys.judged(220)
    (tmp_path / "in").mkdir()
    for path in (tmp_path / "in" / "a.png", tmp_path / "a.png"):
        path.write_bytes(image)
    store = ClaimStore(ClaimSettings(allowed=(f"file://{tmp_path}/in/",)))
    assert media_of(claim(f"file://{tmp_path}/in/a.png", image), store, max_value_bytes=1 << 20) == image
    for raw, allowed in ((claim(f"file://{tmp_path}/a.png", image), store), (claim(f"file://{tmp_path}/in/a.png", image), None)):
        with pytest.raises(NoPicture, match=r"claims\.allowed"):
            media_of(raw, allowed, max_value_bytes=1 << 20)


def test_a_picture_is_asked_for_once_and_checked_against_its_digest(toys: Any) -> None:
    verdict = toys.verdict(5, level=220)
    lookup = ToyLookup(RawRecord("fifa.frames", 0, 5, 0, None, toys.judged(220)[0], ()))
    pictures = Pictures([TopicFrames("fifa.frames", lookup, None, 1 << 20)])  # type: ignore[arg-type]
    assert pictures.frame(verdict, None).shape == (240, 320, 3)
    pictures.frame(verdict, None)
    assert len(lookup.asked) == 1
    changed = verdict.model_copy(update={"media": verdict.media.model_copy(update={"sha256": "0" * 64})})
    with pytest.raises(NoPicture, match="another digest"):
        pictures.frame(changed, None)


def test_bytes_that_are_no_picture_go_no_further_than_the_decoder(toys: Any) -> None:
    value = b"\x89PNG\r\n\x1a\n" + b"<script>" * 40
    lookup = ToyLookup(RawRecord("fifa.frames", 0, 0, 0, None, value, ()))
    verdict = toys.verdict(0, level=220)
    verdict = verdict.model_copy(update={"media": verdict.media.model_copy(update={"sha256": hashlib.sha256(value).hexdigest()})})
    with pytest.raises(NoPicture, match="undecodable_image"):
        Pictures([TopicFrames("fifa.frames", lookup, None, 1 << 20)]).frame(verdict, None)  # type: ignore[arg-type]


def test_a_cache_keeps_so_many_bytes_and_always_the_last() -> None:
    cache = Recent[bytes](10, len)
    for name in "abc":
        cache.put(name, name.encode() * 4)
    assert (cache.get("a"), cache.get("b"), cache.num_bytes) == (None, b"bbbb", 8)
    cache.put("d", b"d" * 100)
    assert (cache.get("b"), cache.get("c"), cache.get("d"), cache.num_bytes) == (None, None, b"d" * 100, 100)


def test_a_recording_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps({"value": base64.b64encode(b"x").decode()}))
    with pytest.raises(Exception, match=r"f\.jsonl:1"):
        RecordedFrames(path, None, max_value_bytes=1)


def test_a_record_is_not_believed_to_be_small(toys: Any) -> None:
    record = OutRecord(None, b"x" * 100, ())
    raw = RawRecord("fifa.frames", 0, 0, 0, None, record.value, ())
    with pytest.raises(NoPicture, match=r"limits\.max_record_bytes"):
        media_of(raw, None, max_value_bytes=10)
