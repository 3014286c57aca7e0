"""`fifa-stream analyze VIDEO`: a whole file as one stream. Every sampled frame is scored, people are followed, and of each segment the frame that
shows it best is explained.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from engines.analyzer import ExplainPolicy
from fifa_stream.infer import EncodedImage, FramePipeline
from fifa_stream.memory.stream import MemoryLimits, Moment, StreamState, Told
from fifa_stream.memory.tracks import Sighting
from fifa_stream.records import SampledFrame, Verdict
from fifa_stream.video import VideoLimits

MAX_GAP_MS = 10_000
"""As `streams.max_gap_s` by default; more where frames that are looked at lie further apart, for a file is one stream."""
MAX_DURATION_S = 12 * 3600.0
"""Of a file: one stream, whatever its length."""


@dataclass(frozen=True, slots=True)
class VideoOptions:
    """How a file is looked at."""

    fps: float = 4.0
    """Frames looked at per second of video."""
    max_bytes: int = 512 << 20
    """The file is held in memory, twice while it is opened."""
    max_frames: int = 50_000
    """Looked at; where `fps` asks for more they are spread evenly over the video."""

    @property
    def limits(self) -> VideoLimits:
        """A file of one's own may be long: what is held does not grow with it."""
        return VideoLimits(
            max_bytes=self.max_bytes,
            sample_fps=self.fps,
            max_frames=self.max_frames,
            max_duration_s=MAX_DURATION_S,
            max_decoded_frames=round(MAX_DURATION_S * 60),
            decode_timeout_s=MAX_DURATION_S,
        )


def judge_video(
    image: EncodedImage,
    pipeline: FramePipeline,
    *,
    explain: ExplainPolicy = "auto",
    options: VideoOptions | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Verdict:
    """The verdict on a video with its timeline, all of its segments and what the stream says as a whole.

    `explain`: auto explains of each segment the frame at its peak, always every frame; a pipeline that never explains never does. `progress` as in
    `FramePipeline.judge_video`. Raises RecordError.
    """

    def to_explain(frames: Sequence[SampledFrame]) -> Collection[int]:
        if explain == "always":
            return [frame.index for frame in frames]
        told, _ = remember(frames)
        peaks = {(segment.peak_ms, segment.track) for segment in told.segments.values()}
        return {point.frame for point in told.timeline if (point.t_ms, point.track) in peaks and point.frame is not None}

    verdict = pipeline.judge_video(image, (options or VideoOptions()).limits, to_explain=to_explain, progress=progress)
    told, state = remember(verdict.frames or (), verdict.id)
    return verdict.model_copy(
        update={
            "timeline": tuple(told.timeline),
            "segments": tuple(told.segments.values()),
            "stream": state.verdict(image.uri or verdict.media.sha256, told, verdict.operating_point),
        }
    )


def remember(frames: Sequence[SampledFrame], verdict_id: str = "") -> tuple[Told, StreamState]:
    """What a memory makes of the frames of one video, in the order they are shown."""
    longest_ms = max((later.pts_ms - earlier.pts_ms for earlier, later in pairwise(frames)), default=0)
    state, told = StreamState(MemoryLimits(max_gap_ms=max(MAX_GAP_MS, longest_ms), max_length_ms=round(MAX_DURATION_S * 1000))), Told()
    for frame in frames:
        moment = Moment(frame.pts_ms, frame.pts_ms)
        state.observe(moment, [Sighting.of(face) for face in frame.faces], verdict=verdict_id, frame=frame.index, told=told)
    state.end(told)
    return told, state
