"""Which frames are skipped, and that a skipped frame has its answer."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.contracts import Label
from fifa_stream.config import SheddingSettings
from fifa_stream.records import Claim, FrameRecord, NoteCode, RawRecord, Verdict, parse_frame, verdict_record
from fifa_stream.shedding import Shed, Shedder, ShedReason, shed_verdict
from fifa_stream.testing import toy_result

NOW_MS = 1_700_000_100_000
PNG = b"\x89PNG\r\n\x1a\n..."
MP4 = b"\x00\x00\x00\x18ftypisom...."
AN_HOUR_MS = 3_600_000
SHED = Shed(ShedReason.TOO_OLD, "the record was old")


def frame(
    stream: str = "cam", *, age_ms: int = 0, deadline_ms: int | None = None, value: bytes = PNG, content_type: bytes | None = None, offset: int = 0
) -> FrameRecord:
    headers = [("stream-id", stream.encode())]
    if deadline_ms is not None:
        headers.append(("deadline-ms", str(deadline_ms).encode()))
    if content_type is not None:
        headers.append(("content-type", content_type))
    return parse_frame(RawRecord("frames", 0, offset, NOW_MS - age_ms, None, value, tuple(headers)), max_value_bytes=1 << 20)


def chosen(settings: SheddingSettings, *frames: FrameRecord) -> list[ShedReason | None]:
    return [None if shed is None else shed.reason for shed in Shedder(settings).choose(frames, NOW_MS)]


FRAMES = st.lists(
    st.builds(
        frame,
        st.sampled_from(["cam-1", "cam-2", "cam-3"]),
        age_ms=st.integers(-AN_HOUR_MS, AN_HOUR_MS),
        deadline_ms=st.none() | st.integers(NOW_MS - AN_HOUR_MS, NOW_MS + AN_HOUR_MS),
    ),
    max_size=24,
)


@given(FRAMES)
def test_off_sheds_nothing(frames: list[FrameRecord]) -> None:
    shedder = Shedder(SheddingSettings())
    assert shedder.is_off
    assert shedder.choose(frames, NOW_MS) == [None] * len(frames)


@given(FRAMES, st.integers(1, 2 * AN_HOUR_MS))
def test_late_sheds_what_is_too_old_or_past_its_deadline_and_nothing_else(frames: list[FrameRecord], max_age_ms: int) -> None:
    reasons = chosen(SheddingSettings(policy="late", max_age_ms=max_age_ms), *frames)
    assert len(reasons) == len(frames)
    for one, reason in zip(frames, reasons, strict=True):
        passed = one.deadline_ms is not None and one.deadline_ms < NOW_MS
        assert (reason is ShedReason.DEADLINE_PASSED) == passed
        assert (reason is ShedReason.TOO_OLD) == (not passed and NOW_MS - one.raw.timestamp_ms > max_age_ms)


@given(FRAMES, st.integers(1, 4))
def test_newest_keeps_the_last_frames_of_every_stream_in_order(frames: list[FrameRecord], limit: int) -> None:
    reasons = chosen(SheddingSettings(policy="newest", max_waiting_per_stream=limit), *frames)
    assert len(reasons) == len(frames)
    for stream in {one.stream_id for one in frames}:
        of_stream = [reason for one, reason in zip(frames, reasons, strict=True) if one.stream_id == stream]
        num_shed = max(0, len(of_stream) - limit)
        assert of_stream == [ShedReason.NEWER_FRAMES_WAIT] * num_shed + [None] * (len(of_stream) - num_shed)


def test_what_is_due_now_is_not_late() -> None:
    settings = SheddingSettings(policy="late", max_age_ms=1_000)
    assert chosen(settings, frame(age_ms=1_000, deadline_ms=NOW_MS)) == [None]
    assert chosen(settings, frame(age_ms=1_001), frame(deadline_ms=NOW_MS - 1)) == [ShedReason.TOO_OLD, ShedReason.DEADLINE_PASSED]


def test_a_record_without_a_timestamp_is_never_too_old() -> None:
    assert chosen(SheddingSettings(policy="late"), frame(age_ms=NOW_MS + 1)) == [None]


def test_a_skipped_frame_has_a_verdict_that_says_so() -> None:
    one = frame("cam-1", offset=17)
    verdict = shed_verdict(one, SHED, **identity())
    assert (verdict.id, verdict.label, verdict.fake_score, verdict.faces) == ("frames/0/17", Label.INCONCLUSIVE, None, ())
    (note,) = verdict.notes
    assert note.code is NoteCode.SHED and "the record was old" in note.message
    assert verdict.input is not None and (verdict.input.stream_id, verdict.input.offset) == ("cam-1", 17)
    media = verdict.media
    assert (media.type, media.content_type, media.sha256, media.size_bytes) == ("image", "image/png", hashlib.sha256(PNG).hexdigest(), len(PNG))
    assert (media.width, media.height) == (None, None)
    assert Verdict.from_bytes(verdict.to_bytes()) == verdict
    assert dict(verdict_record(verdict, one).headers)["fifa-label"] == b"inconclusive"


def identity() -> dict[str, object]:
    """Of the toy engine."""
    verdict = toy_result(frame())
    assert isinstance(verdict, Verdict)
    return {"engine": verdict.engine, "operating_point": verdict.operating_point}


@pytest.mark.parametrize(
    ("value", "declared", "expected"),
    [
        pytest.param(PNG, b"image/jpeg", ("image", "image/png"), id="the bytes win"),
        pytest.param(MP4, None, ("video", "video/mp4"), id="a chunk"),
        pytest.param(b"?", b"video/x-m4v", ("video", "video/x-m4v"), id="declared"),
        pytest.param(b"?", None, ("image", "application/octet-stream"), id="unknown"),
        pytest.param(b"?", b"x" * 10_000, ("image", "application/octet-stream"), id="no content type"),
    ],
)
def test_the_media_is_what_the_first_bytes_or_the_record_say(value: bytes, declared: bytes | None, expected: tuple[str, str]) -> None:
    verdict = shed_verdict(frame(value=value, content_type=declared), SHED, **identity())
    assert (verdict.media.type, verdict.media.content_type) == expected
    assert verdict.frames == (() if expected[0] == "video" else None)
    assert Verdict.from_bytes(verdict.to_bytes()) == verdict


def test_a_skipped_claim_is_not_fetched() -> None:
    claim = Claim("s3://bucket/a.jpg", "a" * 64, 123, "image/jpeg")
    headers = tuple((name, text.encode()) for name, text in claim.headers.items())
    verdict = shed_verdict(parse_frame(RawRecord("frames", 0, 0, 0, None, None, headers), max_value_bytes=100), SHED, **identity())
    media = verdict.media
    assert (media.uri, media.sha256, media.size_bytes, media.content_type) == (claim.uri, claim.sha256, 123, "image/jpeg")
