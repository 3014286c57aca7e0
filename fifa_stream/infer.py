"""Stage 4: frames to verdicts. Decodes, finds faces, judges all faces of all frames in one batch, takes questions to crops and masks home.

`FramePipeline.process` serves Kafka records; `judge` serves images that never saw a broker. Both answer every image, and every video chunk with its
sampled frames, by one verdict or one RecordError.
"""

import functools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines import fict
from engines.analyzer import ExplainPolicy, find_operating_point
from engines.bundle import Bundle
from engines.contracts import FORGERY_TYPES, Analysis, AreaAnswer, AreaQuery, Box, Evidence, Label, Manifest, Mask, OperatingPoint, tight_box
from engines.preprocess import Crop
from fifa_stream.decode import DecodeLimits, decode_image
from fifa_stream.detect import DetectLimits, Face, FaceDetector, FoundFaces
from fifa_stream.in_frame import box_in_crop, mask_in_frame, whole_pixels
from fifa_stream.media import sniff
from fifa_stream.mp4 import MP4
from fifa_stream.records import (
    EngineIdentity,
    EvidenceItem,
    ExplanationText,
    FaceAnswer,
    FaceVerdict,
    ForgeryType,
    FrameRecord,
    InputCoordinates,
    Media,
    Note,
    NoteCode,
    OperatingPointUsed,
    Query,
    QueryAnswered,
    RecordError,
    RunLengths,
    SampledFrame,
    Verdict,
)
from fifa_stream.shedding import Shed, shed_verdict
from fifa_stream.video import Chunk, VideoLimits, open_chunk

MAX_HELD_FACES = 256
"""Crops that wait for the rest of their batch, 150 KB each: as many as one image or one chunk may have by default. At this number they are judged."""


class FaceAnalyzer(Protocol):
    """What the pipeline asks of an engine: `engines.analyzer.Analyzer`, or a toy."""

    @property
    def manifest(self) -> Manifest:
        """Of the bundle that answers."""
        ...

    @property
    def operating_point(self) -> OperatingPoint:
        """The two cuts in use where a stream has none of its own."""
        ...

    def analyze(
        self,
        crops_BHWC: NDArray[np.uint8],
        *,
        explain: Sequence[ExplainPolicy],
        queries: Sequence[AreaQuery | None] | None = None,
        seconds_left: Sequence[float | None] | None = None,
        points: Sequence[OperatingPoint] | None = None,
    ) -> list[Analysis]:
        """Judge a batch of face crops; one policy per face, one question or None, the seconds that its texts may take, and its cuts."""
        ...


@dataclass(frozen=True, slots=True)
class PipelineLimits:
    """What is accepted, how faces are looked for, and how many are judged at once."""

    decode: DecodeLimits = field(default_factory=DecodeLimits)
    detect: DetectLimits = field(default_factory=DetectLimits)
    max_batch_faces: int = 16
    """Faces per run of the engine; more are split."""
    explain: ExplainPolicy = "auto"
    video: VideoLimits = field(default_factory=VideoLimits)
    max_explained_frames: int = 1
    """Frames of a chunk whose faces are explained with `explain` auto, those with the highest scores."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image or a video chunk to judge, still encoded, and what is known of it."""

    value: bytes
    content_type: str | None = None
    """As declared; checked against the bytes."""
    is_crop: bool = False
    deadline_ms: int | None = None
    """Unix time; faces judged later are neither explained nor asked, and a text that meets it ends at its last whole sentence."""
    query: Query | None = None
    input: InputCoordinates | None = None
    """Which record it came in; None without a broker."""
    uri: str | None = None

    @staticmethod
    def of(record: FrameRecord) -> "EncodedImage":
        """Take what judging needs out of a record."""
        uri = None if record.claim is None else record.claim.uri
        return EncodedImage(record.value, record.content_type, record.is_crop, record.deadline_ms, record.query, InputCoordinates.of(record), uri)


@dataclass(slots=True)
class _Picture:
    """Pixels in which faces were looked for: an image, or a sampled frame of a chunk."""

    size_hw: tuple[int, int]
    found: FoundFaces
    index: int = 0
    """Of a sampled frame, as its time."""
    pts_ms: int = 0
    asked: tuple[AreaQuery | None, ...] = ()
    """One for each face found."""
    notes: tuple[Note, ...] = ()
    """Why nothing is asked."""
    analyses: list[Analysis] = field(default_factory=list)
    unexplained: str = "explanations are off or the deadline has passed"
    """Why a face that deserves an explanation has none."""


@dataclass(slots=True)
class _Open:
    """An image or a chunk on its way: what is known so far."""

    image: EncodedImage
    media: Media
    pictures: list[_Picture]
    """One for an image."""
    is_late: bool
    timings_ms: dict[str, float]
    point: OperatingPoint
    """That of its stream."""

    @property
    def is_video(self) -> bool:
        return self.media.type == "video"


@dataclass(frozen=True, slots=True)
class _Job:
    """A face for the engine, and what is wanted of it."""

    item: _Open
    face: Face
    explain: ExplainPolicy
    asked: AreaQuery | None = None


class FramePipeline:
    """Everything between a record and its verdict. Not thread-safe: it runs engines."""

    def __init__(
        self,
        limits: PipelineLimits,
        analyzer: FaceAnalyzer,
        bundle: Bundle,
        *,
        stream_points: Mapping[str, str] | None = None,
        clock_s: Callable[[], float] = time.perf_counter,
        unix_time_s: Callable[[], float] = time.time,
    ) -> None:
        """`bundle` gives the face detector; `stream_points` are `engine.stream_operating_points`; `clock_s` times the stages, `unix_time_s` is held
        against deadlines. Raises BundleError (unsupported) for a point that the bundle does not have."""
        self._limits, self._analyzer, self._clock_s, self._unix_time_s = limits, analyzer, clock_s, unix_time_s
        manifest = bundle.manifest
        self._detector = FaceDetector(bundle.engines["face_detector"], crop_size=manifest.preprocess.image_size, limits=limits.detect)
        self._engine = EngineIdentity(
            name=manifest.name,
            version=manifest.version,
            manifest_sha256=manifest.digest,
            encoder_sha256=manifest.parts["encoder"].sha256,
            precision=manifest.precision,
            backend=manifest.backend,
        )
        self._score_baseline = manifest.score_baseline
        self._points = StreamPoints(manifest, analyzer.operating_point, stream_points or {})

    @property
    def engine(self) -> EngineIdentity:
        """As every verdict names it."""
        return self._engine

    @property
    def score_baseline(self) -> tuple[float, ...]:
        """Of the bundle; empty in one that was not calibrated."""
        return self._score_baseline

    def process(self, frames: Sequence[FrameRecord]) -> list[Verdict | RecordError]:
        """Answer every record, in order."""
        return self.judge([EncodedImage.of(frame) for frame in frames])

    def skip(self, frame: FrameRecord, shed: Shed) -> Verdict:
        """Answer without a look."""
        return shed_verdict(frame, shed, engine=self._engine, operating_point=_used(self._points.of(frame.stream_id)))

    def judge(self, images: Sequence[EncodedImage]) -> list[Verdict | RecordError]:
        """Answer every image and chunk, in order. A bad one is its RecordError; whatever else goes wrong is raised."""
        outcomes: list[Verdict | RecordError] = []
        opened: list[_Open | RecordError] = []
        num_held = 0
        for image in images:
            item = self._open(image)
            opened.append(item)
            num_held += 0 if isinstance(item, RecordError) else sum(len(picture.found.faces) for picture in item.pictures)
            if num_held >= MAX_HELD_FACES:
                outcomes += self._answer(opened)
                opened, num_held = [], 0
        return outcomes + self._answer(opened)

    def judge_video(
        self,
        image: EncodedImage,
        limits: VideoLimits,
        *,
        to_explain: Callable[[Sequence[SampledFrame]], Collection[int]],
        progress: Callable[[int, int], object] = lambda done, total: None,
    ) -> Verdict:
        """Answer a whole video, as long as its own `limits` allow: of its pixels no more is held than a batch of faces.

        First all sampled frames are scored; `to_explain` then names those, by index, that are decoded once more and explained. `progress` is told how
        many frames of how many are scored. Raises RecordError.
        """
        chunk = open_chunk(image.value, content_type=image.content_type, limits=limits)
        frames: dict[int, SampledFrame] = {}
        size_hw = (0, 0)
        for picture_hw, frame in self._watch(chunk, image, "never"):
            size_hw, frames[frame.index] = picture_hw, frame
            progress(len(frames), chunk.num_sampled)
        if self._limits.explain != "never" and (only := to_explain([frames[index] for index in sorted(frames)])):
            again = open_chunk(image.value, content_type=image.content_type, limits=limits, only=only)
            frames |= {frame.index: frame for _, frame in self._watch(again, image, "always")}
        item = _Open(image, _video_media(chunk, image, size_hw), [], False, {}, self._points.of(None))
        return self._composed(item, tuple(frames[index] for index in sorted(frames)), {})

    def _watch(self, chunk: Chunk, image: EncodedImage, explain: ExplainPolicy) -> Iterator[tuple[tuple[int, int], SampledFrame]]:
        """Sampled frames as they are decoded, each with its picture's size."""
        held: list[_Picture] = []
        num_faces = 0
        for frame in chunk.frames():
            held.append(self._picture(frame.image_HWC, is_crop=image.is_crop, index=frame.index, pts_ms=frame.pts_ms))
            num_faces += len(held[-1].found.faces)
            if max(num_faces, len(held)) >= self._limits.max_batch_faces:  # frames without a face are handed on as well
                yield from self._watched(chunk, image, held, explain)
                held, num_faces = [], 0
        yield from self._watched(chunk, image, held, explain)

    def _watched(
        self, chunk: Chunk, image: EncodedImage, pictures: list[_Picture], explain: ExplainPolicy
    ) -> Iterator[tuple[tuple[int, int], SampledFrame]]:
        if not pictures:
            return
        item = _Open(image, _video_media(chunk, image, pictures[0].size_hw), pictures, False, {"analyze": 0.0}, self._points.of(None))
        jobs = []
        for picture in pictures:
            picture.unexplained = "of a segment the frame that shows it best is explained"
            picture.asked, picture.notes = self._ask(image.query, picture.found.faces, picture.size_hw, False)
            faces = zip(picture.found.faces, picture.asked, strict=True)
            jobs += [(picture, _Job(item, face, explain if face.quality.passed else "never", asked)) for face, asked in faces]
        for (picture, _), analysis in zip(jobs, self._run([job for _, job in jobs]), strict=True):
            picture.analyses.append(analysis)
        for picture in pictures:
            yield picture.size_hw, self._sampled_frame(item, picture)

    def _answer(self, opened: Sequence[_Open | RecordError]) -> list[Verdict | RecordError]:
        self._analyze([item for item in opened if isinstance(item, _Open)])
        return [self._verdict(item) if isinstance(item, _Open) else item for item in opened]

    def _open(self, image: EncodedImage) -> _Open | RecordError:
        try:
            media, pictures, timings_ms = self._open_chunk(image) if sniff(image.value) == MP4 else self._open_image(image)
        except RecordError as error:
            return RecordError(error.reason, str(error))  # a new one: the traceback of the other holds bytes, pixels and decoders
        left_s = self._seconds_left(image)
        is_late = left_s is not None and left_s < 0
        for picture in pictures:
            picture.asked, picture.notes = self._ask(image.query, picture.found.faces, picture.size_hw, is_late)
        point = self._points.of(None if image.input is None else image.input.stream_id)
        return _Open(image, media, pictures, is_late, {**timings_ms, "analyze": 0.0}, point)

    def _open_image(self, image: EncodedImage) -> tuple[Media, list[_Picture], dict[str, float]]:
        start = self._clock_s()
        frame = decode_image(image.value, content_type=image.content_type, limits=self._limits.decode)
        decoded = self._clock_s()
        picture = self._picture(frame.image_HWC, is_crop=image.is_crop)
        height, width = picture.size_hw
        media = Media(content_type=frame.content_type, sha256=frame.sha256, size_bytes=frame.size_bytes, width=width, height=height, uri=image.uri)
        return media, [picture], {"decode": (decoded - start) * 1000, "detect": (self._clock_s() - decoded) * 1000}

    def _open_chunk(self, image: EncodedImage) -> tuple[Media, list[_Picture], dict[str, float]]:
        """Faces are looked for in each sampled frame as it is decoded: of its pixels only the crops stay."""
        mark = self._clock_s()
        timings_ms = {"decode": 0.0, "detect": 0.0}
        chunk = open_chunk(image.value, content_type=image.content_type, limits=self._limits.video)
        pictures = []
        for frame in chunk.frames():
            decoded = self._clock_s()
            pictures.append(self._picture(frame.image_HWC, is_crop=image.is_crop, index=frame.index, pts_ms=frame.pts_ms))
            timings_ms["decode"] += (decoded - mark) * 1000
            mark = self._clock_s()
            timings_ms["detect"] += (mark - decoded) * 1000
        timings_ms["decode"] += (self._clock_s() - mark) * 1000
        pictures.sort(key=lambda picture: picture.index)
        return _video_media(chunk, image, pictures[0].size_hw), pictures, timings_ms

    def _picture(self, image_HWC: NDArray[np.uint8], *, is_crop: bool, index: int = 0, pts_ms: int = 0) -> _Picture:
        found = self._detector.whole(image_HWC) if is_crop else self._detector.detect(image_HWC)
        return _Picture(image_HWC.shape[:2], found, index, pts_ms)

    def _ask(
        self, query: Query | None, faces: Sequence[Face], frame_size_hw: tuple[int, int], is_late: bool
    ) -> tuple[tuple[AreaQuery | None, ...], tuple[Note, ...]]:
        """What each face is asked; a note says why where none is."""
        nobody = (None,) * len(faces)
        if query is None:
            return nobody, ()
        levels, wanted = self._analyzer.manifest.query_levels, "region" if query.box_xyxy is None else "box"
        if wanted not in levels:
            known = " and ".join(("the whole face", *(f"a {level}" for level in levels)))
            message = f"engine {self._engine.name} {self._engine.version} answers about {known}, not about a {wanted}"
            return nobody, (Note(code=NoteCode.QUERY_NOT_ANSWERED, message=message),)
        places: list[AreaQuery | None]
        if query.box_xyxy is None:
            places = [query.region] * len(faces)
        else:
            pixels = whole_pixels(query.box_xyxy, frame_size_hw)
            places = [None if pixels is None else box_in_crop(pixels, face.crop) for face in faces]
        asked = tuple(place if face.quality.passed and not is_late else None for face, place in zip(faces, places, strict=True))
        if any(asked):
            return asked, ()
        if not any(places):
            height, width = frame_size_hw
            message = "the box touches no face" if faces else "there is no face to ask about"
            return nobody, (Note(code=NoteCode.QUERY_NOT_ON_A_FACE, message=f"{message}; the frame is {width} x {height} pixels"),)
        reason = "the deadline has passed" if is_late else "no face that the question is about is fit to be judged"
        return nobody, (Note(code=NoteCode.QUERY_NOT_ANSWERED, message=f"{reason}: not asked"),)

    def _analyze(self, items: Sequence[_Open]) -> None:
        """Judge all faces of all pictures; then, with `explain` auto, explain the frames of each chunk that score highest."""
        faces = [
            (picture, _Job(item, face, self._policy(item, face), asked))
            for item in items
            for picture in item.pictures
            for face, asked in zip(picture.found.faces, picture.asked, strict=True)
        ]
        for (picture, _), analysis in zip(faces, self._run([job for _, job in faces]), strict=True):
            picture.analyses.append(analysis)
        if self._limits.explain != "auto":
            return
        doubted = [(item, *place) for item in items if item.is_video and not item.is_late for place in self._to_explain(item)]
        jobs = [_Job(item, picture.found.faces[number], "always") for item, picture, number in doubted]
        for (_, picture, number), analysis in zip(doubted, self._run(jobs), strict=True):
            picture.analyses[number] = replace(picture.analyses[number], explanation=analysis.explanation)

    def _to_explain(self, item: _Open) -> list[tuple[_Picture, int]]:
        """The faces that deserve an explanation in the frames of one chunk that score highest, by their number in the picture."""
        pictures = item.pictures
        scores = [
            {
                number: analysis.fake_score
                for number, (face, analysis) in enumerate(zip(picture.found.faces, picture.analyses, strict=True))
                if face.quality.passed and analysis.fake_score >= item.point.explain_at
            }
            for picture in pictures
        ]
        ranked = sorted((place for place, of_faces in enumerate(scores) if of_faces), key=lambda place: -max(scores[place].values()))
        limit = self._limits.max_explained_frames
        for place in ranked[limit:]:
            pictures[place].unexplained = f"of a chunk the frames with the highest scores are explained, at most {limit} (video.max_explained_frames)"
        return [(pictures[place], number) for place in ranked[:limit] for number in scores[place]]

    def _run(self, jobs: Sequence[_Job]) -> Iterator[Analysis]:
        """Runs of at most `max_batch_faces`; each image or chunk is charged its share of a run's time."""
        for first in range(0, len(jobs), self._limits.max_batch_faces):
            batch = jobs[first : first + self._limits.max_batch_faces]
            start = self._clock_s()
            analyses = self._analyzer.analyze(
                np.stack([job.face.crop.image_HWC for job in batch]),
                explain=[job.explain for job in batch],
                queries=[job.asked for job in batch],
                seconds_left=[self._seconds_left(job.item.image) for job in batch],
                points=[job.item.point for job in batch],
            )
            share_ms = (self._clock_s() - start) * 1000 / len(batch)
            for job, analysis in zip(batch, analyses, strict=True):
                job.item.timings_ms["analyze"] += share_ms
                yield analysis

    def _seconds_left(self, image: EncodedImage) -> float | None:
        return None if image.deadline_ms is None else image.deadline_ms / 1000 - self._unix_time_s()

    def _policy(self, item: _Open, face: Face) -> ExplainPolicy:
        """Of the first run: which frames of a chunk are explained is known after it."""
        if item.is_late or (self._limits.explain == "auto" and (item.is_video or not face.quality.passed)):
            return "never"
        return self._limits.explain

    def _verdict(self, item: _Open) -> Verdict:
        start = self._clock_s()
        frames = tuple(self._sampled_frame(item, picture) for picture in item.pictures)
        timings_ms = {**item.timings_ms, "masks": (self._clock_s() - start) * 1000}
        return self._composed(item, frames, {**timings_ms, "total": sum(timings_ms.values())})

    def _composed(self, item: _Open, frames: tuple[SampledFrame, ...], timings_ms: Mapping[str, float]) -> Verdict:
        media, coordinates = item.media, item.image.input
        deciding = max((frame for frame in frames if frame.fake_score is not None), key=lambda frame: frame.fake_score or 0.0, default=None)
        return Verdict(
            id=media.sha256 if coordinates is None else f"{coordinates.topic}/{coordinates.partition}/{coordinates.offset}",
            input=coordinates,
            engine=self._engine,
            media=media,
            label=Label.INCONCLUSIVE if deciding is None else deciding.label,
            fake_score=None if deciding is None else deciding.fake_score,
            operating_point=_used(item.point),
            faces=() if item.is_video else frames[0].faces,
            notes=_chunk_notes(item, frames) if item.is_video else frames[0].notes,
            timings_ms={stage: round(milliseconds, 3) for stage, milliseconds in timings_ms.items()},
            query=None if item.is_video else frames[0].query,
            frames=frames if item.is_video else None,
        )

    def _sampled_frame(self, item: _Open, picture: _Picture) -> SampledFrame:
        """What is said of one picture; of an image as well, whose verdict takes it over."""
        faces = tuple(
            self._face_verdict(number, item.point, picture, face, analysis)
            for number, (face, analysis) in enumerate(zip(picture.found.faces, picture.analyses, strict=True))
        )
        deciding = max((face for face in faces if face.quality.passed), key=lambda face: face.fake_score, default=None)
        notes = list(picture.found.notes)
        if faces and deciding is None:
            faults = {note.code: note for face in reversed(picture.found.faces) for note in face.notes if note.code is not NoteCode.ROTATED}
            notes.extend(Note(code=note.code, message=f"no face is fit to decide: {note.message}") for note in faults.values())
        if not item.is_video:
            notes.extend(_deadline_notes(item))
        notes.extend(picture.notes)
        start_ms = (item.image.input.pts_ms or 0) if item.image.input is not None else 0
        return SampledFrame(
            index=picture.index,
            pts_ms=start_ms + picture.pts_ms,
            label=Label.INCONCLUSIVE if deciding is None else deciding.label,
            fake_score=None if deciding is None else deciding.fake_score,
            faces=faces,
            notes=tuple(notes),
            query=None if item.image.query is None else _answered(item.image.query, picture),
        )

    def _face_verdict(self, number: int, point: OperatingPoint, picture: _Picture, face: Face, analysis: Analysis) -> FaceVerdict:
        notes = list(face.notes)
        explanation = analysis.explanation
        if explanation is None and analysis.fake_score >= point.explain_at:
            reason = "the face is not fit to be judged" if not face.quality.passed else picture.unexplained
            notes.append(Note(code=NoteCode.NOT_EXPLAINED, message=f"{reason}: scored only"))
        if explanation is not None and explanation.truncated:
            notes.append(
                Note(
                    code=NoteCode.EXPLANATION_TRUNCATED,
                    message="the length limit or the deadline was reached; the text ends at the last whole sentence",
                )
            )
        if analysis.answer is not None and analysis.answer.explanation.truncated:
            notes.append(
                Note(
                    code=NoteCode.EXPLANATION_TRUNCATED,
                    message="the answer to the query reached the length limit or the deadline; it ends at its last whole sentence",
                )
            )
        probs = {name: round(float(p), 6) for name, p in zip(FORGERY_TYPES, analysis.type_probs, strict=True)}
        return FaceVerdict(
            id=number,
            box=_rounded(face.box_xyxy),
            detection_confidence=None if face.confidence is None else round(face.confidence, 4),
            quality=face.quality,
            fake_score=analysis.fake_score,
            raw_score=analysis.raw_score,
            label=point.label(analysis.fake_score) if face.quality.passed else Label.INCONCLUSIVE,
            forgery_type=ForgeryType(label=max(probs, key=probs.__getitem__), probs=probs),
            evidence=()
            if explanation is None
            else tuple(
                _evidence_item(f"{number}.{index}", evidence, face.crop, picture.size_hw) for index, evidence in enumerate(explanation.evidence)
            ),
            explanation=None if explanation is None else ExplanationText(text=explanation.text, markup=explanation.markup, words=explanation.words),
            notes=tuple(notes),
        ).seen_as(analysis.appearance)


class StreamPoints:
    """Which pair of cuts judges a stream: that of the longest pattern its id matches, else the default. Safe for two threads."""

    def __init__(self, manifest: Manifest, default: OperatingPoint, by_pattern: Mapping[str, str]) -> None:
        """Patterns as of `fnmatch`, case counts. Raises BundleError (unsupported) for a name that the bundle does not have."""
        named = [
            (pattern, find_operating_point(manifest, name, setting=f"engine.stream_operating_points {pattern!r}:"))
            for pattern, name in sorted(by_pattern.items(), key=lambda item: (-len(item[0]), item[0]))  # not every source of settings keeps an order
        ]
        # Ids repeat from frame to frame; what is remembered of them is bounded.
        self.of: Callable[[str | None], OperatingPoint] = functools.lru_cache(4_096)(
            lambda stream_id: next((point for pattern, point in named if fnmatchcase(stream_id or "", pattern)), default)
        )


def _video_media(chunk: Chunk, image: EncodedImage, size_hw: tuple[int, int]) -> Media:
    height, width = size_hw
    return Media(
        type="video",
        content_type=MP4,
        sha256=chunk.sha256,
        size_bytes=chunk.size_bytes,
        width=width,
        height=height,
        uri=image.uri,
        duration_ms=chunk.duration_ms,
        num_frames=chunk.num_frames,
    )


def _used(point: OperatingPoint) -> OperatingPointUsed:
    return OperatingPointUsed(name=point.name, fake_at=point.fake_at, real_below=point.real_below, fpr_target=point.fpr_target)


def _deadline_notes(item: _Open) -> tuple[Note, ...]:
    if not item.is_late:
        return ()
    return (Note(code=NoteCode.DEADLINE_PASSED, message=f"judged after deadline-ms {item.image.deadline_ms}: scored, not explained"),)


_UNDECIDED = frozenset(NoteCode) - {NoteCode.TOO_MANY_FACES, NoteCode.QUERY_NOT_ANSWERED, NoteCode.QUERY_NOT_ON_A_FACE}
"""Of the notes on a frame, those that say why it decides nothing."""


def _chunk_notes(item: _Open, frames: Sequence[SampledFrame]) -> tuple[Note, ...]:
    """Of the chunk: why none of its frames decides, each reason once, and that it was late. What concerns one frame stands in that frame."""
    if any(frame.fake_score is not None for frame in frames):
        return _deadline_notes(item)
    reasons = {note.code: note for frame in reversed(frames) for note in frame.notes if note.code in _UNDECIDED}
    return (
        *(Note(code=note.code, message=f"none of the {len(frames)} sampled frames decides: {note.message}") for note in reasons.values()),
        *_deadline_notes(item),
    )


def _answered(query: Query, picture: _Picture) -> QueryAnswered:
    answers = []
    for number, (face, asked, analysis) in enumerate(zip(picture.found.faces, picture.asked, picture.analyses, strict=True)):
        if asked is not None:
            assert analysis.answer is not None, f"the engine was asked about {asked!r} and did not answer"
            answers.append(_face_answer(number, analysis.answer, face.crop, picture.size_hw, query.box_xyxy))
    return QueryAnswered(region=query.region, box=query.box_xyxy, answers=tuple(answers))


def _face_answer(number: int, answer: AreaAnswer, crop: Crop, frame_size_hw: tuple[int, int], box_xyxy: Box | None) -> FaceAnswer:
    mask_HW = mask_in_frame(answer.mask_probability_HW, crop, frame_size_hw, only_in=box_xyxy)
    explanation = answer.explanation
    return FaceAnswer(
        face=number,
        tampered=answer.tampered,
        tampered_probability=answer.tampered_probability,
        mask=_run_lengths(mask_HW),
        mask_confidence=answer.mask_confidence,
        box=tight_box(mask_HW),
        explanation=ExplanationText(text=explanation.text, markup=explanation.markup, words=explanation.words),
        evidence=tuple(
            _evidence_item(f"{number}.query.{index}", evidence, crop, frame_size_hw, only_in=box_xyxy)
            for index, evidence in enumerate(explanation.evidence)
        ),
    )


def _evidence_item(item_id: str, evidence: Evidence, crop: Crop, frame_size_hw: tuple[int, int], *, only_in: Box | None = None) -> EvidenceItem:
    mask_HW = mask_in_frame(evidence.mask_probability_HW, crop, frame_size_hw, only_in=only_in)
    return EvidenceItem(
        id=item_id,
        phrase=evidence.phrase,
        char_span=evidence.char_span,
        concept=evidence.concept,
        concept_path=fict.concepts()[evidence.concept].path,
        mask=_run_lengths(mask_HW),
        mask_confidence=evidence.mask_confidence,
        box=tight_box(mask_HW),
        measured={name: round(value, 4) for name, value in evidence.measured.items()},
        usual=evidence.usual,
    )


def _run_lengths(mask_HW: NDArray[np.bool_]) -> RunLengths:
    mask = Mask.encode(mask_HW)
    return RunLengths(size=mask.size_hw, counts=mask.counts)


def _rounded(box_xyxy: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (round(side, 2) for side in box_xyxy)
    return x0, y0, x1, y1
