"""Records for a desk: toy verdicts on real pictures, and what turns them into files, cases and a desk."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fifa_stream.infer import EncodedImage
from fifa_stream.recording import Recorded
from fifa_stream.records import InputCoordinates, OutRecord, Query, Segment, SegmentEvidence, StreamVerdict, TimelinePoint, Verdict
from fifa_stream.review.cases import CaseBook, collect
from fifa_stream.review.decisions import DecisionFile
from fifa_stream.review.desk import Desk
from fifa_stream.review.pictures import Pictures
from fifa_stream.review.sources import RecordedFrames

TOPIC = "fifa.frames"
MakeBench = Callable[..., Any]
MakeImage = Callable[..., bytes]


class Toys:
    """Makes verdicts, and the files they stand in."""

    def __init__(self, folder: Path, make_bench: MakeBench, make_image: MakeImage) -> None:
        self.folder, self._make_bench, self._make_image = folder, make_bench, make_image
        self._made: dict[tuple[Any, ...], tuple[bytes, Verdict]] = {}
        self._written: Sequence[Verdict] = ()

    def judged(self, level: int = 190, *, query: Query | None = None, faces: Any = None) -> tuple[bytes, Verdict]:
        """(image, verdict) of a picture of this brightness: fake from 153, real below 102, explained from 128."""
        key = (level, query, faces)
        if key not in self._made:
            image = self._make_image(level=level)
            bench = self._make_bench() if faces is None else self._make_bench(faces)
            (verdict,) = bench.pipeline.judge([EncodedImage(image, query=query)])
            assert isinstance(verdict, Verdict)
            self._made[key] = image, verdict
        return self._made[key]

    def verdict(self, offset: int, *, level: int = 190, camera: str = "door 7", query: Query | None = None, **changes: Any) -> Verdict:
        """The verdict on the record at an offset, half a second after the one before."""
        at = InputCoordinates(
            topic=TOPIC,
            partition=0,
            offset=offset,
            timestamp_ms=1_700_000_000_000 + offset,
            stream_id=camera,
            frame_index=offset,
            pts_ms=offset * 500,
        )
        return self.judged(level, query=query)[1].model_copy(update={"id": f"{TOPIC}/0/{offset}", "input": at, **changes})

    def of_a_stream(self, count: int, *, stream: str = "door 7", first: int = 0) -> list[Verdict]:
        """A stream with one track and, once a third is over, one segment that grows."""
        verdicts = []
        for number in range(count):
            level = (60, 110, 150, 190, 220)[number % 5]
            score = self.judged(level)[1].faces[0].fake_score
            t_ms, begin_ms = (first + number) * 500, (first + count // 3) * 500
            point = TimelinePoint(t_ms=t_ms, face=0, track=0, fake_score=score, smoothed=(score + number / count) / 2)
            evidence = SegmentEvidence(concept="left_cheek", weight=0.75, verdict=f"{TOPIC}/0/{first + count // 3}")
            segment = Segment(
                id=f"0.0.{begin_ms}",
                track=0,
                start_ms=begin_ms,
                end_ms=t_ms,
                is_open=number + 1 < count,
                peak_ms=t_ms,
                peak=point.smoothed,
                num_frames=number + 1 - count // 3,
                forgery_type="identity_swap",
                evidence=(evidence,),
            )
            told = StreamVerdict(
                id=stream,
                epoch=0,
                state="live",
                label="fake" if t_ms >= begin_ms else "real",
                fake_score=point.smoothed,
                start_ms=first * 500,
                t_ms=t_ms,
                fake_ms=max(0, t_ms - begin_ms),
                num_frames=number + 1,
                num_late=0,
                num_tracks=1,
                num_segments=int(t_ms >= begin_ms),
            )
            segments = (segment,) if t_ms >= begin_ms else ()
            verdicts.append(self.verdict(first + number, level=level, camera=stream, timeline=(point,), segments=segments, stream=told))
        return verdicts

    def write(self, verdicts: Sequence[Verdict], *, headers: Sequence[tuple[str, bytes]] = ()) -> tuple[Path, Path]:
        """Files of verdicts and of the frames they answer."""
        images = {verdict.media.sha256: image for image, verdict in self._made.values()}
        frames, answers = self.folder / "frames.jsonl", self.folder / "verdicts.jsonl"
        if self._written == verdicts and frames.exists() and not headers:
            return answers, frames
        self._written = verdicts
        with frames.open("w") as lines:
            for verdict in verdicts:
                at = verdict.input
                assert at is not None
                record = OutRecord(None, images[verdict.media.sha256], tuple(headers))
                lines.write(Recorded.of(record, topic=at.topic, partition=at.partition, offset=at.offset, timestamp_ms=at.timestamp_ms).line() + "\n")
        answers.write_bytes(b"".join(verdict.to_bytes() + b"\n" for verdict in verdicts))
        return answers, frames

    def book(self, verdicts: Sequence[Verdict], **options: Any) -> CaseBook:
        """Cases, without their pictures."""
        return collect(((verdict.id, verdict.to_bytes()) for verdict in verdicts), **options)

    def desk(self, verdicts: Sequence[Verdict], *, reviewer: str = "ann", shadow: Sequence[Verdict] = (), log: Path | None = None) -> Desk:
        """A desk whose decisions go to reviews.jsonl; its clock stands still."""
        _, frames = self.write(verdicts)
        book = self.book(verdicts, shadow=[(verdict.id, verdict.to_bytes()) for verdict in shadow])
        pictures = Pictures([RecordedFrames(frames, None, max_value_bytes=1 << 20)])
        return Desk(
            book,
            pictures,
            DecisionFile(log or self.log),
            reviewer=reviewer,
            kept_in="reviews.jsonl",
            now=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        )

    @property
    def log(self) -> Path:
        """Where decisions go."""
        return self.folder / "reviews.jsonl"

    def lines(self) -> list[dict[str, Any]]:
        """What was decided, as it lies there."""
        return [json.loads(line) for line in self.log.read_bytes().splitlines()]


@pytest.fixture
def toys(tmp_path: Path, make_bench: MakeBench, make_image: MakeImage) -> Toys:
    return Toys(tmp_path, make_bench, make_image)


@pytest.fixture(scope="module")
def toys_of_module(tmp_path_factory: pytest.TempPathFactory, make_bench: MakeBench, make_image: MakeImage) -> Toys:
    return Toys(tmp_path_factory.mktemp("desk"), make_bench, make_image)
