"""From options to a desk: which sources there are, and where decisions go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from fifa_stream.claims import ClaimStore
from fifa_stream.config import Settings
from fifa_stream.decode import DecodeLimits
from fifa_stream.review.cases import MAX_CASES, CaseBook, collect
from fifa_stream.review.decisions import DecisionFile, DecisionTopic
from fifa_stream.review.desk import Desk
from fifa_stream.review.pictures import Pictures
from fifa_stream.review.sources import IMAGE_SUFFIXES, ImageFiles, Media, RecordedFrames, TopicFrames, verdict_lines, verdict_records
from fifa_stream.topic_reader import Span, TopicLookup, read_topic


@dataclass(frozen=True, slots=True)
class Sources:
    """Where cases come from: files, or without a file of verdicts the topics of the settings."""

    verdicts: tuple[Path, ...] = ()
    shadow: tuple[Path, ...] = ()
    frames: tuple[Path, ...] = ()
    """Recordings, images and folders of images; with topics beside the frames topic."""
    since_ms: int | None = None
    """Unix time: of the topics only newer verdicts."""
    max_cases: int = MAX_CASES


def read_cases(sources: Sources, settings: Settings) -> tuple[CaseBook, Pictures]:
    """All cases and the way to their pictures. Raises SourceError, RecordingError, BrokerError, ConfigError."""
    kafka, limits = settings.kafka, settings.limits
    claims = ClaimStore(settings.claims) if settings.claims.allowed else None
    media: list[Media] = [RecordedFrames(path, claims, max_value_bytes=limits.max_record_bytes) for path in sources.frames if _is_recording(path)]
    if images := [path for path in sources.frames if not _is_recording(path)]:
        media.append(ImageFiles(images))
    if sources.verdicts:
        book = collect(_lines(sources.verdicts), shadow=_lines(sources.shadow), max_cases=sources.max_cases)
    else:
        span = Span(since_ms=sources.since_ms)
        shadow = _lines(sources.shadow)
        if kafka.shadow_topic is not None:
            shadow = chain(shadow, verdict_records(read_topic(kafka, kafka.shadow_topic, span)))
        verdicts = verdict_records(read_topic(kafka, kafka.verdicts_topic, span))
        book = collect(verdicts, shadow=shadow, max_cases=sources.max_cases)
        media.append(TopicFrames(kafka.frames_topic, TopicLookup(kafka, kafka.frames_topic), claims, limits.max_record_bytes))
    return book, Pictures(
        media, image=DecodeLimits(max_image_bytes=max(limits.max_record_bytes, settings.claims.max_bytes), max_pixels=limits.max_pixels)
    )


def _is_recording(path: Path) -> bool:
    return not path.is_dir() and path.suffix.lower() not in IMAGE_SUFFIXES


def _lines(files: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    return chain.from_iterable(verdict_lines(file) for file in files)


def open_desk(sources: Sources, settings: Settings, *, reviewer: str, decisions: Path, to_topic: str | None) -> Desk:
    """A desk with everything that was decided before. Raises DecisionError as well."""
    book, pictures = read_cases(sources, settings)
    log = DecisionFile(decisions) if to_topic is None else DecisionTopic(settings.kafka, to_topic)
    return Desk(book, pictures, log, reviewer=reviewer, kept_in=decisions.name if to_topic is None else f"topic {to_topic}")
