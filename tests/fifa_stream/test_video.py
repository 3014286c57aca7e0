"""A chunk becomes its sampled frames with exact times, or one RecordError; and one chunk is one verdict. Clips are made here, by libx264."""

import io
import itertools
import json
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.contracts import Label
from fifa_stream.analyze import analyze_images
from fifa_stream.infer import MAX_HELD_FACES, EncodedImage, FramePipeline, PipelineLimits
from fifa_stream.mp4 import MAX_EDITS, read_layout
from fifa_stream.page import PageEntry, render_page
from fifa_stream.records import NoteCode, Query, RawRecord, Reason, RecordError, Verdict, parse_frame, verdict_record
from fifa_stream.testing import ToyAnalyzer, toy_bundle
from fifa_stream.video import Chunk, ChunkFrame, VideoLimits, decode_ranges, open_chunk, sample_frames

av = pytest.importorskip("av", reason="needs the extra video")

TIME_BASE = Fraction(1, 12_800)
FRAME = 512
"""Ticks of a frame at 25 a second."""
FRAGMENTED = "+frag_keyframe+empty_moov+default_base_moof"
EVERY = VideoLimits(sample_fps=1000, max_frames=1000)
"""Every frame is looked at."""

MakeBench = Callable[..., Any]


def level(index: int) -> int:
    """The gray of frame `index`: five apart, so that a frame is known by its colour."""
    return 20 + 5 * index % 215


def make_clip(
    count: int = 50,
    *,
    size: tuple[int, int] = (64, 48),
    times: Sequence[int] | None = None,
    levels: Sequence[int] | None = None,
    gop: int = 12,
    bframes: int = 2,
    x264: str = "",
    movflags: str = "",
    codec: str = "libx264",
    pictures: Callable[[int], NDArray[np.uint8]] | None = None,
) -> bytes:
    """An MP4 of plain gray frames, one per entry of `times` in ticks."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = *size, "yuv420p", TIME_BASE
        context = stream.codec_context
        context.time_base, context.thread_count = TIME_BASE, 1
        context.options = {"g": str(gop), "bf": str(bframes), "preset": "fast", "sc_threshold": "0", "qp": "4"}
        if x264:
            context.options = {**context.options, "x264-params": x264}
        for index in range(count):
            gray = levels[index] if levels is not None else level(index)
            image_HWC = np.full((size[1], size[0], 3), gray, np.uint8) if pictures is None else pictures(index)
            frame = av.VideoFrame.from_ndarray(image_HWC, format="rgb24")
            frame.pts, frame.time_base = FRAME * index if times is None else times[index], TIME_BASE
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return buffer.getvalue()


CLIP = make_clip()
FRAGMENTS = make_clip(movflags=FRAGMENTED)


def box_at(value: bytes, *path: bytes) -> tuple[int, int]:
    """(start, end) of a box, header included, along a path such as moov, trak."""
    start, end = 0, len(value)
    for kind in path:
        at = start
        while value[at + 4 : at + 8] != kind:
            at += int.from_bytes(value[at : at + 4])
            assert at < end, f"no {kind!r}"
        start, end = at + 8, at + int.from_bytes(value[at : at + 4])
    return start - 8, end


def with_box(value: bytes, payload: bytes, *path: bytes, kind: bytes | None = None) -> bytes:
    """Another payload for a box, or with `kind` one more box behind the children of `path`. The media data stands before the header: offsets stay."""
    start, end = box_at(value, *path)
    new = payload if kind is None else value[start + 8 : end] + (8 + len(payload)).to_bytes(4) + kind + payload
    grown, out = 8 + len(new) - (end - start), bytearray(value)
    for depth in range(1, len(path) + 1):
        at = box_at(value, *path[:depth])[0]
        out[at : at + 4] = (int.from_bytes(out[at : at + 4]) + grown).to_bytes(4)
    out[start + 8 : end] = new
    return bytes(out)


MDIA = (b"moov", b"trak", b"mdia")
STBL = (*MDIA, b"minf", b"stbl")


def payload_of(value: bytes, *path: bytes) -> bytes:
    start, end = box_at(value, *path)
    return value[start + 8 : end]


def numbers(*values: int) -> bytes:
    return b"".join((value & 0xFFFFFFFF).to_bytes(4) for value in values)


def opened(value: bytes, limits: VideoLimits = EVERY, content_type: str | None = None, **rest: Any) -> Chunk:
    return open_chunk(value, content_type=content_type, limits=limits, **rest)


def frames_of(value: bytes, limits: VideoLimits = EVERY) -> list[ChunkFrame]:
    return sorted(opened(value, limits).frames(), key=lambda frame: frame.index)


def refusal(value: bytes, limits: VideoLimits = EVERY, content_type: str | None = None, **rest: Any) -> RecordError:
    with pytest.raises(RecordError) as caught:
        list(opened(value, limits, content_type, **rest).frames())
    message = str(caught.value)
    assert "\n" not in message and message.isascii() and 0 < len(message) < 400
    return caught.value


def shows(frame: ChunkFrame, index: int) -> bool:
    """Whether the pixels are those of frame `index` of the clip."""
    return abs(float(frame.image_HWC.mean()) - level(index)) < 2.4


# --- What comes out ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clip", "start_ms"),
    [
        pytest.param(CLIP, 0, id="b-frames"),
        pytest.param(make_clip(bframes=0), 0, id="no b-frames"),
        pytest.param(make_clip(gop=250), 0, id="one key frame"),
        pytest.param(make_clip(gop=10, bframes=3, x264="open-gop=1:b-pyramid=normal"), 0, id="open gop and pyramid"),
        pytest.param(FRAGMENTS, 80, id="fragments, no edit list: the delay of b-frames shows"),
        pytest.param(make_clip(times=[FRAME * index + 38_400 for index in range(50)]), 3_000, id="later start"),
    ],
)
def test_each_frame_comes_out_once_with_its_time_and_pixels(clip: bytes, start_ms: int) -> None:
    chunk = opened(clip)
    frames = sorted(chunk.frames(), key=lambda frame: frame.index)
    assert (chunk.num_frames, chunk.num_sampled, chunk.duration_ms, chunk.size_bytes) == (50, 50, 2_000, len(clip))
    assert [(frame.index, frame.pts_ms) for frame in frames] == [(index, start_ms + 40 * index) for index in range(50)]
    assert all(shows(frame, index) for index, frame in enumerate(frames))
    assert {frame.image_HWC.shape for frame in frames} == {(48, 64, 3)} and not frames[0].image_HWC.flags.writeable


def test_times_that_vary_are_kept_to_the_millisecond() -> None:
    times = np.cumsum([0, 512, 90, 4_001, 512, 13, 12_800, 7]).tolist()
    frames = frames_of(make_clip(8, times=times))
    assert [frame.pts_ms for frame in frames] == [round(Fraction(time) * TIME_BASE * 1000) for time in times]
    assert all(shows(frame, index) for index, frame in enumerate(frames))


def test_an_edit_list_moves_the_time_line_and_hides_what_it_cuts() -> None:
    """It begins at the 18th frame, in the middle of the second group of pictures."""
    entries = payload_of(CLIP, b"moov", b"trak", b"edts", b"elst")
    media_time = int.from_bytes(entries[12:16]) + 17 * FRAME
    chunk = opened(with_box(CLIP, entries[:12] + numbers(media_time) + entries[16:], b"moov", b"trak", b"edts", b"elst"))
    frames = sorted(chunk.frames(), key=lambda frame: frame.index)
    assert chunk.num_frames == len(frames) == 33 and [frame.pts_ms for frame in frames] == [40 * index for index in range(33)]
    assert all(shows(frame, 17 + index) for index, frame in enumerate(frames))


@pytest.mark.parametrize("x264", ["", "open-gop=1", "b-pyramid=normal:ref=5"])
def test_sampled_frames_are_what_decoding_everything_gives(x264: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (48, 200, 3)).astype(np.uint8)
    clip = make_clip(60, gop=15, bframes=3, x264=x264, pictures=lambda index: np.ascontiguousarray(noise[:, index : index + 64]))
    with av.open(io.BytesIO(clip)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for limits in (VideoLimits(sample_fps=3), VideoLimits(sample_fps=25, max_frames=7), VideoLimits(sample_fps=11, max_frames=40)):
        frames = frames_of(clip, limits)
        assert all(np.array_equal(frame.image_HWC, whole[frame.index]) for frame in frames) and frames[0].index == 0


def test_no_more_is_decoded_than_the_sampled_frames_rest_on() -> None:
    """The clock is read twice for each packet and each flush: of 100 frames in groups of ten, the first one and those of the last group."""
    reads = itertools.count()
    chunk = opened(make_clip(100, gop=10, bframes=0), VideoLimits(sample_fps=25, max_frames=2), clock_s=lambda: next(reads) * 0.0)
    assert [frame.index for frame in chunk.frames()] == [0, 99]
    assert next(reads) == 2 * (1 + 1 + 10 + 1)


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        pytest.param((1, 0, 0, 1), lambda image: image, id="upright"),
        pytest.param((0, 1, -1, 0), lambda image: np.rot90(image, -1), id="90 clockwise"),
        pytest.param((-1, 0, 0, -1), lambda image: np.rot90(image, 2), id="180"),
        pytest.param((0, -1, 1, 0), lambda image: np.rot90(image, 1), id="90 counter-clockwise"),
        pytest.param((-1, 0, 0, 1), np.fliplr, id="mirrored"),
        pytest.param((1, 1, -1, 1), lambda image: image, id="askew stays as stored"),
    ],
)
def test_the_display_matrix_turns_the_picture_upright(matrix: tuple[int, ...], turned: Callable[[Any], Any]) -> None:
    def quarters(_: int) -> NDArray[np.uint8]:
        image_HWC = np.full((48, 64, 3), 40, np.uint8)
        image_HWC[:24, :32], image_HWC[:24, 32:] = 220, 130
        return image_HWC

    clip = make_clip(2, pictures=quarters)
    header = payload_of(clip, b"moov", b"trak", b"tkhd")
    a, b, c, d = (65_536 * factor for factor in matrix)
    clip = with_box(clip, header[:40] + numbers(a, b, 0, c, d, 0, 0, 0, 1 << 30) + header[76:], b"moov", b"trak", b"tkhd")
    (first, _) = frames_of(clip)
    expected = turned(quarters(0))
    assert first.image_HWC.shape == expected.shape and np.abs(first.image_HWC.astype(int) - expected).mean() < 3


def test_sound_and_metadata_are_not_even_shown_to_the_demuxer() -> None:
    bomb = numbers(0, 0, 0xFFFFFFFF)
    hidden = with_box(CLIP, (8 + len(bomb)).to_bytes(4) + b"stsz" + bomb, b"moov", kind=b"trak")
    refused = refusal(hidden)
    assert refused.reason is Reason.UNDECODABLE_VIDEO  # a track that is none
    hidden = with_box(CLIP, (8 + len(bomb)).to_bytes(4) + b"stsz" + bomb, b"moov", kind=b"udta")
    assert b"udta" in hidden and len(frames_of(hidden)) == 50
    cleaned = read_layout(hidden, max_samples=50).cleaned
    assert not any(kind in cleaned for kind in (b"udta", b"dinf", b"vmhd"))


def _with_sound(video_streams: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(video_streams)]
        sound = container.add_stream("aac", rate=48_000)
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for stream in streams:
            for index in range(10):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level(index), np.uint8), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                for packet in stream.encode(frame):
                    container.mux(packet)
            for packet in stream.encode(None):
                container.mux(packet)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1024), np.int16), format="s16", layout="stereo")
        silence.sample_rate, silence.pts = 48_000, 0
        for packet in (*sound.encode(silence), *sound.encode(None)):
            container.mux(packet)
    return buffer.getvalue()


def test_sound_is_ignored() -> None:
    assert [frame.pts_ms for frame in frames_of(_with_sound(1))] == [40 * index for index in range(10)]


# --- Which frames are looked at ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        pytest.param(VideoLimits(), [0, 25], id="one a second"),
        pytest.param(VideoLimits(sample_fps=5), list(range(0, 50, 5)), id="five a second"),
        pytest.param(VideoLimits(sample_fps=25, max_frames=4), [0, 16, 33, 49], id="spread evenly"),
        pytest.param(VideoLimits(sample_fps=25, max_frames=1), [0], id="the first alone"),
        pytest.param(VideoLimits(sample_fps=0.01), [0], id="the first at least"),
    ],
)
def test_the_policy_chooses(limits: VideoLimits, expected: list[int]) -> None:
    assert [frame.index for frame in frames_of(CLIP, limits)] == expected


STEPS = st.lists(st.fractions(0, 3, max_denominator=1000), max_size=60)
FPS = st.integers(1, 40_000).map(lambda thousandths: thousandths / 1000)


@given(steps=STEPS, fps=FPS, max_frames=st.integers(1, 20))
def test_the_first_frame_is_always_chosen_and_no_limit_is_passed(steps: list[Fraction], fps: float, max_frames: int) -> None:
    seconds = list(itertools.accumulate(steps, initial=Fraction(0)))
    every, chosen = sample_frames(seconds, fps, 1000), sample_frames(seconds, fps, max_frames)
    assert chosen[0] == 0 and chosen == sorted(set(chosen)) and set(chosen) <= set(every)
    assert len(chosen) == min(len(every), max_frames) and (max_frames == 1 or chosen[-1] == every[-1])
    periods = [int(seconds[index] * Fraction(fps).limit_denominator(1000)) for index in every]
    assert len(set(periods)) == len(periods)  # never two in one period


@given(data=st.data(), count=st.integers(1, 40))
def test_ranges_hold_every_wanted_frame_and_what_it_rests_on(data: st.DataObject, count: int) -> None:
    pts: list[int | None] = list(data.draw(st.permutations(range(count))))
    is_key = [True, *data.draw(st.lists(st.booleans(), min_size=count - 1, max_size=count - 1))]
    wanted = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    ranges = decode_ranges(wanted, pts, is_key)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))
    for order in wanted:
        (first,) = [first for first, last in ranges if first <= order <= last]
        earlier = [at for at in range(order + 1) if is_key[at] and (pts[at] or 0) <= (pts[order] or 0)]
        assert first <= max(earlier, default=0)


def test_hours_behind_one_key_frame_are_planned_at_once() -> None:
    count = 400_000
    start = time.process_time()
    assert decode_ranges(range(0, count, 10), range(count), [True] + [False] * (count - 1)) == [(0, count - 10)]
    assert time.process_time() - start < 2


# --- What is refused --------------------------------------------------------------------------------------------------------------------------


def _sizes_changed() -> bytes:
    """Two sizes in one track: the second group of pictures brings its own parameter sets."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 64, 48, "yuv420p", Fraction(1, 25)
        container.start_encoding()
        for number, (width, height) in enumerate(((64, 48), (80, 64))):
            encoder = av.VideoCodecContext.create("libx264", "w")
            encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, "yuv420p", Fraction(1, 25)
            encoder.options, encoder.thread_count = {"bf": "0"}, 1
            packets = []
            for index in range(5):
                frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90, np.uint8), format="rgb24")
                frame.pts, frame.time_base = 5 * number + index, Fraction(1, 25)
                packets += encoder.encode(frame)
            for packet in (*packets, *encoder.encode(None)):
                packet.stream = stream
                container.mux(packet)
    return buffer.getvalue()


def _with_url(url: bytes) -> bytes:
    entry = numbers(12 + len(url) + 1) + b"url " + numbers(0) + url + b"\0"
    return with_box(CLIP, numbers(0, 1) + entry, *MDIA, b"minf", b"dinf", b"dref")


def _all_at_one_place() -> bytes:
    """Fifty samples that are the first one each: a small file that would be large in memory."""
    sizes, offsets = payload_of(CLIP, *STBL, b"stsz"), payload_of(CLIP, *STBL, b"stco")
    clip = with_box(CLIP, numbers(0, 0, 50) + sizes[12:16] * 50, *STBL, b"stsz")
    clip = with_box(clip, numbers(0, 1, 1, 1, 1), *STBL, b"stsc")
    return with_box(clip, numbers(0, 50) + offsets[8:12] * 50, *STBL, b"stco")


def _with_size(value: bytes, width: int, height: int) -> bytes:
    start, _ = box_at(value, *STBL, b"stsd")
    at = start + 16 + 32
    return value[:at] + width.to_bytes(2) + height.to_bytes(2) + value[at + 4 :]


SMALL = VideoLimits(max_bytes=1000)
PADDING = numbers(100_008) + b"mdat" + bytes(100_000)


@pytest.mark.parametrize(
    ("value", "limits", "reason", "says"),
    [
        pytest.param(b"", EVERY, Reason.EMPTY_VALUE, "no bytes", id="nothing"),
        pytest.param(CLIP, SMALL, Reason.RECORD_TOO_LARGE, "at most 1000", id="too many bytes"),
        pytest.param(CLIP[:1000], EVERY, Reason.UNDECODABLE_VIDEO, "claims", id="cut off"),
        pytest.param(CLIP[:32], EVERY, Reason.UNDECODABLE_VIDEO, "no moov", id="no header"),
        pytest.param(FRAGMENTS[box_at(FRAGMENTS, b"moof")[0] :], EVERY, Reason.UNDECODABLE_VIDEO, "no moov", id="a fragment alone"),
        pytest.param(FRAGMENTS[: box_at(FRAGMENTS, b"moof")[0]], EVERY, Reason.UNDECODABLE_VIDEO, "no frames", id="a header alone"),
        pytest.param(CLIP + b"\0\0", EVERY, Reason.UNDECODABLE_VIDEO, "left over", id="bytes behind the end"),
        pytest.param(make_clip(codec="mpeg4"), EVERY, Reason.UNSUPPORTED_MEDIA, "'mp4v', not H.264", id="mpeg-4 part 2"),
        pytest.param(CLIP.replace(b"avc1\0\0", b"hvc1\0\0"), EVERY, Reason.UNSUPPORTED_MEDIA, "'hvc1', not H.264", id="hevc"),
        pytest.param(CLIP.replace(b"avc1\0\0", b"encv\0\0"), EVERY, Reason.UNSUPPORTED_MEDIA, "encrypted", id="encrypted"),
        pytest.param(_with_sound(2), EVERY, Reason.UNSUPPORTED_MEDIA, "2 video tracks", id="two video tracks"),
        pytest.param(_with_sound(0), EVERY, Reason.UNSUPPORTED_MEDIA, "no video track", id="sound alone"),
        pytest.param(_sizes_changed(), EVERY, Reason.UNSUPPORTED_MEDIA, "64x48 to 80x64", id="another size inside"),
        pytest.param(_with_url(b"http://127.0.0.1/x"), EVERY, Reason.UNSUPPORTED_MEDIA, "outside the file", id="data elsewhere"),
        pytest.param(_with_size(CLIP, 65_535, 65_535), EVERY, Reason.IMAGE_TOO_LARGE, "65535x65535", id="declared too large"),
        pytest.param(CLIP, VideoLimits(max_pixels=64 * 48 - 1), Reason.IMAGE_TOO_LARGE, "64x48", id="too large"),
        pytest.param(make_clip(2, size=(64, 16)), EVERY, Reason.IMAGE_TOO_SMALL, "64x16", id="too small"),
        pytest.param(CLIP, VideoLimits(max_duration_s=1.9), Reason.VIDEO_TOO_LONG, "2.0 s", id="too long"),
        pytest.param(CLIP, VideoLimits(max_decoded_frames=49), Reason.VIDEO_TOO_LONG, "50 frames", id="too many frames"),
        pytest.param(FRAGMENTS, VideoLimits(max_decoded_frames=49), Reason.VIDEO_TOO_LONG, "50 frames", id="too many frames in fragments"),
        pytest.param(_all_at_one_place(), EVERY, Reason.UNDECODABLE_VIDEO, "share bytes", id="samples that share bytes"),
        pytest.param(
            with_box(CLIP, numbers(0, MAX_EDITS + 1) + numbers(400, 0, 65_536) * (MAX_EDITS + 1), b"moov", b"trak", b"edts", b"elst"),
            EVERY,
            Reason.UNSUPPORTED_MEDIA,
            "edit list",
            id="many edits",
        ),
        pytest.param(
            with_box(CLIP, numbers(0, MAX_EDITS) + numbers(2_000, 1_024, 65_536) * MAX_EDITS, b"moov", b"trak", b"edts", b"elst") + PADDING,
            VideoLimits(max_decoded_frames=400),
            Reason.VIDEO_TOO_LONG,
            "more than",
            id="edits that repeat the clip",
        ),
        pytest.param(with_box(CLIP, b"\0" * 8, *MDIA, kind=b"hdlr"), EVERY, Reason.UNDECODABLE_VIDEO, "second hdlr", id="two handlers"),
    ],
)
def test_a_bad_chunk_has_one_reason_and_one_line(value: bytes, limits: VideoLimits, reason: Reason, says: str) -> None:
    error = refusal(value, limits)
    assert (error.reason, says in str(error)) == (reason, True), str(error)


@pytest.mark.parametrize("content_type", [None, "", "video/mp4", "video/quicktime", "application/mp4", "application/octet-stream"])
def test_it_may_be_declared_by_its_names_or_not_at_all(content_type: str | None) -> None:
    assert opened(CLIP, content_type=content_type).num_frames == 50


@pytest.mark.parametrize("content_type", ["image/jpeg", "video/webm", "text/plain"])
def test_a_content_type_that_disagrees_with_the_bytes_is_refused(content_type: str) -> None:
    assert refusal(CLIP, content_type=content_type).reason is Reason.MEDIA_MISMATCH


def _claims_four_billion(value: bytes, at: int) -> bytes:
    return value[:at] + b"\xff\xff\xff\xff" + value[at + 4 :]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(_claims_four_billion(CLIP, box_at(CLIP, *STBL, b"stsz")[0] + 16), id="sample sizes"),
        pytest.param(_claims_four_billion(CLIP, box_at(CLIP, *STBL, b"stts")[0] + 16), id="sample times"),
        pytest.param(_claims_four_billion(CLIP, box_at(CLIP, *STBL, b"ctts")[0] + 16), id="composition offsets"),
        pytest.param(_claims_four_billion(FRAGMENTS, FRAGMENTS.index(b"trun") + 8), id="samples of a fragment"),
    ],
)
def test_a_header_that_claims_billions_of_frames_costs_nothing(value: bytes) -> None:
    tracemalloc.start()
    assert refusal(value).reason is Reason.VIDEO_TOO_LONG
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_a_picture_larger_than_its_header_says_is_not_decoded() -> None:
    clip = _with_size(make_clip(5, size=(640, 360)), 64, 48)
    assert refusal(clip, VideoLimits(max_pixels=100_000)).reason is Reason.IMAGE_TOO_LARGE


def test_media_data_elsewhere_is_not_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        assert refusal(_with_url(b"http://127.0.0.1:%d/clip.mp4" % port)).reason is Reason.UNSUPPORTED_MEDIA
        with pytest.raises(BlockingIOError):
            server.accept()


def test_decoding_ends_when_its_time_is_up() -> None:
    seconds = itertools.count()
    error = refusal(CLIP, VideoLimits(sample_fps=25, decode_timeout_s=5), clock_s=lambda: float(next(seconds)))
    assert error.reason is Reason.VIDEO_TOO_LONG and "video.decode_timeout_s 5" in str(error)
    assert next(seconds) <= 14


def test_damage_where_a_sampled_frame_lies_is_found() -> None:
    start, end = box_at(CLIP, b"mdat")
    damaged = CLIP[: start + 40] + bytes(end - start - 40) + CLIP[end:]
    assert refusal(damaged).reason is Reason.UNDECODABLE_VIDEO


def test_without_pyav_a_chunk_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    error = refusal(CLIP)
    assert error.reason is Reason.UNSUPPORTED_MEDIA and "fifa-stream[video]" in str(error)


def test_pyav_is_imported_with_the_first_chunk() -> None:
    code = "import sys, fifa_stream.infer, fifa_stream.page\nassert 'av' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


CORPUS = [make_clip(24), make_clip(24, movflags=FRAGMENTED), make_clip(24, gop=8, bframes=3, x264="open-gop=1"), _with_sound(1)]
HEADERS = [(clip, *box_at(clip, b"moov")) for clip in CORPUS]


@given(
    clip=st.sampled_from(HEADERS),
    in_header=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=12),
    kept=st.integers(1, 100_000),
)
@settings(max_examples=400, deadline=None)
def test_mutated_chunks_give_frames_or_a_record_error(
    clip: tuple[bytes, int, int], in_header: bool, changes: list[tuple[int, int]], kept: int
) -> None:
    value, start, end = bytearray(clip[0]), clip[1], clip[2]
    for position, byte in changes:
        value[start + position % (end - start) if in_header else position % len(value)] = byte
    limits = VideoLimits(sample_fps=5, max_frames=4, max_decoded_frames=100, max_pixels=100_000)
    try:
        frames = list(opened(bytes(value[:kept]), limits).frames())
    except RecordError as error:
        assert "\n" not in str(error) and str(error).isascii()
    else:
        assert 1 <= len(frames) <= 4 and all(frame.image_HWC.ndim == 3 for frame in frames)


@given(st.binary(max_size=300), st.sampled_from([b"", b"\0\0\0\x14ftypisom", CLIP[:32], CLIP[: box_at(CLIP, b"moov")[0] + 8]]))
@settings(max_examples=150, deadline=None)
def test_junk_behind_any_beginning_is_a_record_error(junk: bytes, beginning: bytes) -> None:
    with pytest.raises(RecordError):
        list(opened(beginning + junk).frames())


# --- One chunk, one verdict -------------------------------------------------------------------------------------------------------------------


def faces_clip(levels: Sequence[int] = (60, 220, 130)) -> bytes:
    """One frame a second, its gray the score: in the toys' eyes the middle is a face."""
    grain = np.random.default_rng(1).integers(-15, 16, (128, 160, 1))
    return make_clip(
        len(levels),
        size=(160, 128),
        times=[12_800 * index for index in range(len(levels))],
        gop=1,
        pictures=lambda index: np.repeat(np.clip(levels[index] + grain, 0, 255), 3, axis=2).astype(np.uint8),
    )


@pytest.fixture
def toys() -> FramePipeline:
    return FramePipeline(PipelineLimits(), ToyAnalyzer(), toy_bundle())


def judged(outcome: Verdict | RecordError) -> Verdict:
    assert isinstance(outcome, Verdict), outcome
    return outcome


def codes(notes: Any) -> list[NoteCode]:
    return [note.code for note in notes]


def test_one_chunk_record_is_one_verdict_with_its_frames_on_the_streams_time_line(toys: FramePipeline) -> None:
    clip = faces_clip()
    headers = (("stream-id", b"door-7"), ("content-type", b"video/mp4"), ("pts-ms", b"90000"), ("frame-index", b"4"))
    record = parse_frame(RawRecord("fifa.frames", 0, 5, 0, None, clip, headers), max_value_bytes=1 << 20)
    (outcome,) = toys.process([record])
    verdict = judged(outcome)
    assert verdict.frames is not None and verdict.faces == () and verdict.query is None and verdict.notes == ()
    assert [(frame.index, frame.pts_ms) for frame in verdict.frames] == [(0, 90_000), (1, 91_000), (2, 92_000)]
    assert [frame.label for frame in verdict.frames] == [Label.REAL, Label.FAKE, Label.INCONCLUSIVE]
    assert (verdict.label, verdict.fake_score) == (Label.FAKE, verdict.frames[1].fake_score)
    media = verdict.media
    assert (media.type, media.content_type, media.width, media.height) == ("video", "video/mp4", 160, 128)
    assert (media.duration_ms, media.num_frames, media.size_bytes) == (2_040, 3, len(clip))  # the last frame is a 25th of a second long
    assert Verdict.from_bytes(verdict.to_bytes()) == verdict
    assert dict(verdict_record(verdict, record).headers)["fifa-label"] == b"fake"


def test_a_verdict_on_an_image_says_nothing_of_video(toys: FramePipeline, make_image: Callable[..., bytes]) -> None:
    image, chunk = (json.loads(judged(outcome).to_bytes()) for outcome in toys.judge([EncodedImage(make_image()), EncodedImage(faces_clip())]))
    assert "frames" not in image and not {"duration_ms", "num_frames"} & image["media"].keys()
    assert "query" not in chunk and not any("query" in frame for frame in chunk["frames"])


def test_chunks_and_images_share_runs_of_the_engine_and_a_dead_chunk_harms_no_neighbour(
    make_bench: MakeBench, make_image: Callable[..., bytes]
) -> None:
    bench = make_bench(limits=PipelineLimits(max_batch_faces=3, max_explained_frames=0))
    good, image = faces_clip(), make_image()
    values = (image, good, good[:900], image, b"\0\0\0\x14ftypisom", good)
    outcomes = bench.pipeline.judge([EncodedImage(value) for value in values])
    assert [type(outcome) for outcome in outcomes] == [Verdict, Verdict, RecordError, Verdict, RecordError, Verdict]
    assert bench.analyzer.batches == [3, 3, 2]
    assert outcomes[1] == outcomes[5] and outcomes[0] == outcomes[3]


def test_the_best_frames_are_explained_and_the_others_say_why_not(make_bench: MakeBench) -> None:
    bench = make_bench(limits=PipelineLimits(max_explained_frames=2))
    (outcome,) = bench.pipeline.judge([EncodedImage(faces_clip((200, 60, 230, 180)))])
    frames = judged(outcome).frames or ()
    assert [frame.faces[0].explanation is not None for frame in frames] == [True, False, True, False]
    assert bench.analyzer.policies == ["never"] * 4 + ["always"] * 2
    (note,) = frames[3].faces[0].notes
    assert note.code is NoteCode.NOT_EXPLAINED and "video.max_explained_frames" in note.message and frames[1].faces[0].notes == ()


@pytest.mark.parametrize("explain", ["always", "never"])
def test_the_other_policies_hold_for_every_frame(make_bench: MakeBench, explain: Any) -> None:
    bench = make_bench(limits=PipelineLimits(explain=explain))
    (outcome,) = bench.pipeline.judge([EncodedImage(faces_clip())])
    assert {frame.faces[0].explanation is not None for frame in judged(outcome).frames or ()} == {explain == "always"}
    assert bench.analyzer.policies == [explain] * 3


def test_a_question_is_asked_of_every_sampled_frame(make_bench: MakeBench) -> None:
    (outcome,) = make_bench().pipeline.judge([EncodedImage(faces_clip(), query=Query(region="nose"))])
    verdict = judged(outcome)
    answers = [frame.query.answers[0].tampered for frame in verdict.frames or () if frame.query is not None]
    assert answers == [False, True, True] and verdict.query is None


def test_a_late_chunk_is_scored_and_not_explained(make_bench: MakeBench) -> None:
    bench = make_bench(unix_time_s=1000.001)
    (outcome,) = bench.pipeline.judge([EncodedImage(faces_clip(), deadline_ms=1_000_000)])
    verdict = judged(outcome)
    assert verdict.label is Label.FAKE and codes(verdict.notes) == [NoteCode.DEADLINE_PASSED] and bench.analyzer.policies == ["never"] * 3
    assert {frame.notes for frame in verdict.frames or ()} == {()}


def test_a_chunk_without_a_face_is_inconclusive_and_says_so_once(make_bench: MakeBench) -> None:
    (outcome,) = make_bench([]).pipeline.judge([EncodedImage(faces_clip())])
    verdict = judged(outcome)
    assert (verdict.label, verdict.fake_score) == (Label.INCONCLUSIVE, None)
    assert codes(verdict.notes) == [NoteCode.NO_FACE] and "3 sampled frames" in verdict.notes[0].message
    assert [codes(frame.notes) for frame in verdict.frames or ()] == [[NoteCode.NO_FACE]] * 3


def test_a_chunk_of_crops_is_judged_whole(make_bench: MakeBench) -> None:
    bench = make_bench()
    (outcome,) = bench.pipeline.judge([EncodedImage(faces_clip(), is_crop=True)])
    assert {frame.faces[0].box for frame in judged(outcome).frames or ()} == {(0, 0, 160, 128)} and bench.detector.sides == []


def test_a_crowd_is_judged_before_its_crops_pile_up(make_bench: MakeBench) -> None:
    crowd = [(x / 8, y / 8, x / 8 + 0.1, y / 8 + 0.1, 0.0) for x in range(4) for y in range(4)]
    bench = make_bench(crowd, limits=PipelineLimits(max_batch_faces=1000, max_explained_frames=0, video=VideoLimits(sample_fps=1000)))
    clip = make_clip(16, size=(640, 640))
    assert len(bench.pipeline.judge([EncodedImage(clip)] * 2)) == 2
    assert bench.analyzer.batches == [MAX_HELD_FACES] * 2


def test_analyze_takes_a_clip_and_the_page_shows_its_frames(
    tmp_path: Any, make_bench: MakeBench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "clip.mp4").write_bytes(faces_clip())
    assert analyze_images([tmp_path], make_bench().pipeline, query=Query(region="nose"), html=tmp_path / "page.html") == 0
    said = capsys.readouterr().out
    assert "3 in 3 frames" in said and "nose, face 1 at 1000 ms: tampered" in said and "left cheek" in said
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert [f"Frame {index} at {1000 * index} ms" in page for index in range(3)] == [True] * 3
    assert page.count("data:image/jpeg") == 6  # each frame and its face


def test_a_page_without_the_clip_has_the_words(toys: FramePipeline) -> None:
    (outcome,) = toys.judge([EncodedImage(faces_clip())])
    page = render_page([PageEntry("a", None, judged(outcome))], title="t")
    assert "Frame 1 at 1000 ms" in page and "too bright" in page and "data:image/jpeg" not in page
