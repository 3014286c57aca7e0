"""Stage 2 for video: a chunk of H.264 in MP4 to a few RGB frames. Nothing about a byte string is believed before it is checked.

One chunk is one record and stands by itself. `open_chunk` reads its boxes (`fifa_stream.mp4`) and times and chooses which frames are looked at;
`Chunk.frames` decodes no more than the chosen ones rest on and holds one RGB frame at a time.

PyAV is the extra `video` and is imported with the first chunk. libav gets bytes, one format, one decoder and one thread; it opens nothing by name.
"""

import hashlib
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from types import ModuleType
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from fifa_stream.media import check_declared
from fifa_stream.mp4 import MP4, read_layout
from fifa_stream.records import Reason, RecordError

if TYPE_CHECKING:
    from av import Packet, VideoCodecContext, VideoFrame, VideoStream
    from av.container import InputContainer
    from av.sidedata.sidedata import SideData


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """What a chunk may be, and which of its frames are looked at."""

    max_bytes: int = 32 << 20
    max_pixels: int = 9_437_184
    """4096x2304. A decoder may have to keep 16 pictures to refer to and as many to put in order, of 1.5 bytes a pixel: 500 MB."""
    min_side_px: int = 32
    sample_fps: float = 1.0
    """Frames looked at per second of video; the first one always is."""
    max_frames: int = 16
    """Frames looked at per chunk; where `sample_fps` asks for more they are spread evenly."""
    max_duration_s: float = 60.0
    max_decoded_frames: int = 3_600
    """Frames in a chunk: a minute at 60 a second. None is decoded twice."""
    decode_timeout_s: float = 10.0
    """For decoding one chunk, looked at between frames."""


@dataclass(frozen=True, slots=True)
class ChunkFrame:
    """One sampled frame."""

    index: int
    """Among the frames of the chunk in the order they are shown, from 0."""
    pts_ms: int
    """On the time line of the container, edit list applied, rounded to a millisecond."""
    image_HWC: NDArray[np.uint8]
    """(height, width, 3) RGB, upright as the display matrix says, read-only. Pixels are as stored where they are not square."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """A frame that the container shows."""

    order: int
    """Of its packet."""
    pts: int
    index: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk that was opened: what is known of it before a picture is decoded."""

    sha256: str
    """Of the encoded bytes."""
    size_bytes: int
    duration_ms: int
    """From the first frame's start to the last one's end."""
    num_frames: int
    """In the chunk, not sampled."""
    _sampled: tuple[_Shown, ...]
    _packets: "tuple[Packet[VideoStream], ...]"
    _container: "InputContainer"
    """Kept open: the packets are its."""
    _decoder: "VideoCodecContext"
    _time_base: Fraction
    _limits: VideoLimits
    _clock_s: Callable[[], float]

    @property
    def num_sampled(self) -> int:
        """How many frames `frames` gives."""
        return len(self._sampled)

    def frames(self) -> Iterator[ChunkFrame]:
        """Decode the sampled frames; once. Raises RecordError (`undecodable_video`, `unsupported_media`, `video_too_long`)."""
        wanted = {shown.pts: shown for shown in self._sampled}
        size_wh: tuple[int, int] | None = None
        with self._container:
            for frame in self._decoded(frozenset(wanted)):
                size_wh = size_wh or (frame.width, frame.height)
                if (frame.width, frame.height) != size_wh:
                    change = f"from {size_wh[0]}x{size_wh[1]} to {frame.width}x{frame.height}"
                    raise RecordError(Reason.UNSUPPORTED_MEDIA, f"the picture size changes inside the chunk {change}; send one chunk per size")
                shown = wanted.pop(frame.pts, None) if frame.pts is not None else None
                if shown is None:
                    continue
                if frame.is_corrupt:
                    raise _undecodable(f"the frame at {_milliseconds(shown.pts, self._time_base)} ms is damaged")
                yield ChunkFrame(shown.index, _milliseconds(shown.pts, self._time_base), _upright_rgb(frame))
        if wanted:
            raise _undecodable(f"{len(wanted)} of {self.num_sampled} sampled frames did not come out of the decoder")

    def _decoded(self, wanted: frozenset[int]) -> "Iterator[VideoFrame]":
        """Every frame that comes out on the way to the wanted ones."""
        spent_s = 0.0
        for first, last in decode_ranges([shown.order for shown in self._sampled], *_keys(self._packets)):
            for packet in (*self._packets[first : last + 1], None):
                if spent_s > self._limits.decode_timeout_s:
                    raise RecordError(
                        Reason.VIDEO_TOO_LONG,
                        f"the chunk was not decoded within video.decode_timeout_s {self._limits.decode_timeout_s:g}; send shorter or smaller video",
                    )
                began_s = self._clock_s()
                # Frames that nothing refers to are dropped unless they are wanted.
                self._decoder.skip_frame = "DEFAULT" if packet is None or packet.pts in wanted else "NONREF"
                try:
                    frames = self._decoder.decode(packet)
                except Exception as error:
                    raise _refusal(error) from error
                spent_s += self._clock_s() - began_s
                yield from frames
            self._decoder.flush_buffers()


def open_chunk(
    value: bytes,
    *,
    content_type: str | None,
    limits: VideoLimits,
    only: Collection[int] | None = None,
    clock_s: Callable[[], float] = time.monotonic,
) -> Chunk:
    """Check an MP4 and choose the frames to look at: by the limits, or `only` these, by their index. `clock_s` is held against `decode_timeout_s`.

    Raises RecordError (`empty_value`, `record_too_large`, `unsupported_media`, `media_mismatch`, `image_too_large`, `image_too_small`,
    `video_too_long`, `undecodable_video`) and nothing else for any bytes.
    """
    if not value:
        raise RecordError(Reason.EMPTY_VALUE, "the video has no bytes; send the encoded chunk as the value")
    if len(value) > limits.max_bytes:
        raise RecordError(Reason.RECORD_TOO_LARGE, f"the video has {len(value)} bytes, at most {limits.max_bytes} are accepted; send shorter chunks")
    check_declared(content_type, MP4)
    layout = read_layout(value, max_samples=limits.max_decoded_frames)
    _check_size(layout.width, layout.height, limits)
    av = _pyav()
    try:
        container = av.open(
            BytesIO(layout.cleaned),
            "r",
            format="mov",
            options=_libav_options(limits),
            metadata_errors="replace",
            io_open=_refuse_to_open,
            timeout=limits.decode_timeout_s,
        )
        return _plan(container, value, limits, only, clock_s)
    except Exception as error:
        raise _refusal(error) from error


def sample_frames(seconds: Sequence[Fraction], fps: float, max_frames: int) -> list[int]:
    """Which frames are looked at, given the ascending times of all since the first one's: the first at or after each multiple of 1/fps, and of these
    `max_frames` spread evenly, the first among them."""
    rate, due, chosen = Fraction(fps).limit_denominator(1000), 0, []
    for index, second in enumerate(seconds):
        if second * rate >= due:
            chosen.append(index)
            due = int(second * rate) + 1
    if len(chosen) <= max_frames:
        return chosen
    steps = max(1, max_frames - 1)
    return [chosen[(position * (len(chosen) - 1) + steps // 2) // steps] for position in range(max_frames)]


def decode_ranges(wanted: Sequence[int], pts: Sequence[int | None], is_key: Sequence[bool]) -> list[tuple[int, int]]:
    """Disjoint, ascending ranges of packets (both ends included) that decode the wanted ones, given what each packet is in the order of decoding.

    A range starts at the last key frame that is shown no later than the wanted frame: one that is shown before its key frame rests on the one before.
    """
    keys, ranges = [order for order, key in enumerate(is_key) if key], list[tuple[int, int]]()
    for order in wanted:
        before = bisect_right(keys, order) - 1
        while before >= 0 and not _is_no_later(pts[keys[before]], pts[order]):
            before -= 1
        ranges.append((keys[before] if before >= 0 else 0, order))
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return merged


def _is_no_later(pts: int | None, than: int | None) -> bool:
    return pts is not None and than is not None and pts <= than


def _keys(packets: "Sequence[Packet[VideoStream]]") -> tuple[list[int | None], list[bool]]:
    return [packet.pts for packet in packets], [packet.is_keyframe for packet in packets]


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError:
        message = f"the bytes are {MP4}, and this worker cannot decode video: PyAV is not installed; pip install 'fifa-stream[video]'"
        raise RecordError(Reason.UNSUPPORTED_MEDIA, message) from None
    return av


def _libav_options(limits: VideoLimits) -> dict[str, str]:
    return {
        **_decoder_options(limits),
        "codec_whitelist": "h264",
        "format_whitelist": "mov",
        "protocol_whitelist": "none",
        "enable_drefs": "0",
        "use_absolute_path": "0",
        "threads": "1",
        # Opening decodes a frame to learn its format; one is enough, since the decoder learns the rest from the stream.
        "probesize": "32",
        "analyzeduration": "1",
    }


def _decoder_options(limits: VideoLimits) -> dict[str, str]:
    # strict: the order of frames is taken from the stream, where it is silent after the longest delay, and never guessed.
    return {"max_pixels": str(limits.max_pixels), "err_detect": "explode", "strict": "strict"}


def _refuse_to_open(url: str, flags: int, options: dict[str, str]) -> object:
    raise RecordError(Reason.UNSUPPORTED_MEDIA, "the MP4 refers to media data outside the file; send a self-contained file")


def _plan(container: "InputContainer", value: bytes, limits: VideoLimits, only: Collection[int] | None, clock_s: Callable[[], float]) -> Chunk:
    """Read the packets, without decoding one."""
    if len(container.streams.video) != 1:
        raise RecordError(Reason.UNSUPPORTED_MEDIA, f"the MP4 has {len(container.streams.video)} video tracks; send a file with exactly one")
    stream = container.streams.video[0]
    decoder = stream.codec_context
    if decoder is None or decoder.name != "h264":
        raise RecordError(Reason.UNSUPPORTED_MEDIA, "the video is not H.264; convert it")
    _check_size(decoder.width, decoder.height, limits)
    decoder.thread_count, decoder.thread_type, decoder.options = 1, "NONE", _decoder_options(limits)
    packets = _packets(container, stream, len(value), limits)
    if stream.time_base is None or len(packets) < len(stream.index_entries):
        raise _undecodable(f"{len(packets)} of {len(stream.index_entries)} frames could be read")
    shown = sorted((packet.pts, order) for order, packet in enumerate(packets) if packet.pts is not None and not packet.is_discard)
    if not shown:
        raise _undecodable("it has no frames")
    times = [pts for pts, _ in shown]
    if len(set(times)) < len(times):
        raise _undecodable("two frames are shown at the same time")
    time_base, last = stream.time_base, packets[shown[-1][1]]
    seconds = [(pts - times[0]) * time_base for pts in times]
    duration_s = seconds[-1] + max(0, last.duration or 0) * time_base
    if duration_s > limits.max_duration_s:
        raise RecordError(
            Reason.VIDEO_TOO_LONG,
            f"the chunk lasts {float(duration_s):.1f} s, video.max_duration_s is {limits.max_duration_s:g}; send shorter chunks",
        )
    chosen = sample_frames(seconds, limits.sample_fps, limits.max_frames) if only is None else sorted({*only} & {*range(len(shown))})
    sampled = tuple(_Shown(shown[index][1], shown[index][0], index) for index in chosen)
    sha256, duration_ms = hashlib.sha256(value).hexdigest(), round(duration_s * 1000)
    return Chunk(sha256, len(value), duration_ms, len(shown), sampled, tuple(packets), container, decoder, time_base, limits, clock_s)


def _packets(container: "InputContainer", stream: "VideoStream", size_bytes: int, limits: VideoLimits) -> "list[Packet[VideoStream]]":
    """All packets, in the order of decoding. Samples that share bytes could make a small file large: together they may not exceed it."""
    packets: list[Packet[VideoStream]] = []
    held_bytes = 0
    for packet in container.demux(stream):
        if packet.size == 0:
            continue  # the last one, which only says that there are no more
        held_bytes += packet.size
        if packet.is_corrupt or held_bytes > size_bytes:
            raise _undecodable("a frame is cut off" if packet.is_corrupt else "its frames share bytes")
        packets.append(packet)
        if len(packets) > limits.max_decoded_frames:  # an edit list repeats samples
            raise RecordError(
                Reason.VIDEO_TOO_LONG,
                f"the chunk has more than video.max_decoded_frames {limits.max_decoded_frames} frames; send shorter chunks",
            )
    return packets


def _check_size(width: int, height: int, limits: VideoLimits) -> None:
    if width * height > limits.max_pixels:
        raise RecordError(Reason.IMAGE_TOO_LARGE, f"the video is {width}x{height} pixels, {limits.max_pixels} are accepted; send a smaller one")
    if min(width, height) < limits.min_side_px:
        raise RecordError(Reason.IMAGE_TOO_SMALL, f"the video is {width}x{height} pixels, each side needs {limits.min_side_px}; send a larger one")


def _undecodable(cause: str) -> RecordError:
    return RecordError(Reason.UNDECODABLE_VIDEO, f"the video cannot be decoded: {cause}; send the whole, undamaged file")


def _refusal(error: Exception) -> RecordError:
    """What a failure inside PyAV says of the record. Its types are many: OSError, ValueError, MemoryError, ... by libav's error number."""
    if isinstance(error, RecordError):
        return error
    if isinstance(error, MemoryError) and not isinstance(error, _pyav().error.FFmpegError):  # libav's own is about a size that a broken file claims
        raise error
    cause = getattr(error, "strerror", None) or type(error).__name__  # libav's words for its number; they hold nothing of the file
    return _undecodable(" ".join(str(cause).split())[:120])


def _milliseconds(pts: int, time_base: Fraction) -> int:
    return round(pts * time_base * 1000)


def _upright_rgb(frame: "VideoFrame") -> NDArray[np.uint8]:
    image_HWC = np.asarray(frame.to_ndarray(format="rgb24", threads=1), np.uint8)
    upright_HWC = np.ascontiguousarray(_turned(image_HWC, frame))
    upright_HWC.flags.writeable = False
    return upright_HWC


def _turned(image_HWC: NDArray[np.uint8], frame: "VideoFrame") -> NDArray[np.uint8]:
    """The image under the display matrix: quarter turns and mirrors. Any other matrix leaves it as stored, as unreadable EXIF does."""
    matrix = cast("SideData | None", frame.side_data.get("DISPLAYMATRIX"))
    if matrix is None:
        return image_HWC
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if a and d and not b and not c:
        return image_HWC[:: 1 if d > 0 else -1, :: 1 if a > 0 else -1]
    if b and c and not a and not d:
        # Stored (x, y) is shown at (c y, b x): the axes change places, and each runs backwards where its factor is negative.
        return image_HWC.transpose(1, 0, 2)[:: 1 if b > 0 else -1, :: 1 if c > 0 else -1]
    return image_HWC
