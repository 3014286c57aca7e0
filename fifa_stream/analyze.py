"""`fifa-stream analyze`: the verdict of the stream, for image and MP4 files and without a broker; a video is a stream by itself.

Results go to stdout, progress and complaints to stderr.
"""

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from engines.analyzer import Analyzer, ExplainPolicy
from engines.bundle import bundled_engine, open_bundle
from fifa_stream.analyze_video import VideoOptions, judge_video
from fifa_stream.decode import DecodeLimits
from fifa_stream.infer import EncodedImage, FramePipeline, PipelineLimits
from fifa_stream.media import sniff
from fifa_stream.mp4 import MP4
from fifa_stream.page import PageEntry, write_page
from fifa_stream.records import FaceVerdict, Query, RecordError, SampledFrame, Verdict

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".mp4")
"""Files that are taken out of a folder; a path given by itself is taken whatever its name."""
IMAGES_PER_CALL = 8
"""Enough faces for one batch; decoded frames of this many images are held at once."""

UNREADABLE = "unreadable_file"
"""The reason for what is wrong with a path; for what is wrong with the bytes see `records.Reason`."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a path has no verdict."""

    reason: str
    message: str


def analyze_paths(
    paths: Sequence[Path],
    *,
    engine: Path | None = None,
    crop: bool = False,
    query: Query | None = None,
    explain: ExplainPolicy = "auto",
    video: VideoOptions | None = None,
    as_json: bool = False,
    html: Path | None = None,
) -> int:
    """Analyze images, videos and folders of them with an engine bundle (default: the one in the package); return the exit status.

    Raises EngineError when the bundle cannot be used and OSError when the page cannot be written.
    """
    bundle = open_bundle(engine or bundled_engine())
    pipeline = FramePipeline(PipelineLimits(explain=explain), Analyzer(bundle, appearance=True), bundle)
    return analyze_images(paths, pipeline, crop=crop, query=query, explain=explain, video=video, as_json=as_json, html=html)


def analyze_images(
    paths: Sequence[Path],
    pipeline: FramePipeline,
    *,
    crop: bool = False,
    query: Query | None = None,
    explain: ExplainPolicy = "auto",
    video: VideoOptions | None = None,
    as_json: bool = False,
    html: Path | None = None,
) -> int:
    """The same with a pipeline at hand. Return 1 if some image has no verdict, else 0."""
    video = video or VideoOptions()
    files = list(image_files(paths))
    stderr = Console(stderr=True)
    outcomes: list[tuple[Path, Verdict | Refusal]] = []
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task("analyze", total=len(files))
        for batch in _batches(files):
            if _is_video(batch[0]):
                of_video = progress.add_task(printable(batch[0].name), total=None)
                judged = [_judge_video(batch[0], pipeline, crop, query, explain, video, functools.partial(_show, progress, of_video))]
                progress.remove_task(of_video)
            else:
                judged = _judge(batch, pipeline, crop=crop, query=query)
            for path, outcome in zip(batch, judged, strict=True):
                if isinstance(outcome, Refusal):
                    line = printable(f"{shown(path)}: {outcome.reason}: {outcome.message}")
                    progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
                if as_json:
                    sys.stdout.write(_json_line(path, outcome) + "\n")
                    sys.stdout.flush()
                outcomes.append((path, outcome))
            progress.advance(task, len(batch))
    if not as_json:
        Console().print(_table(outcomes))
    if html is not None:
        entries = [_page_entry(path, outcome) for path, outcome in outcomes]
        write_page(html, entries, title="Face forgery analysis")
    return int(any(isinstance(outcome, Refusal) for _, outcome in outcomes))


def image_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Files as given, folders as the images below them, sorted by path. A folder without images is passed on, to be refused by name."""
    for path in paths:
        if os.path.isdir(path):  # a Path would raise of a name that is too long
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
            yield from found or [path]
        else:
            yield path


def _batches(files: Iterable[Path]) -> Iterator[list[Path]]:
    """Images together, each video by itself, in their order."""
    images: list[Path] = []
    for path in files:
        is_video = _is_video(path)
        if images and (is_video or len(images) == IMAGES_PER_CALL):
            yield images
            images = []
        if is_video:
            yield [path]
        else:
            images.append(path)
    if images:
        yield images


def _is_video(path: Path) -> bool:
    try:
        with path.open("rb") as handle:
            return sniff(handle.read(64)) == MP4
    except OSError:
        return False  # which `_read` will say


def _show(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)


def _judge_video(
    path: Path,
    pipeline: FramePipeline,
    crop: bool,
    query: Query | None,
    explain: ExplainPolicy,
    options: VideoOptions,
    progress: Callable[[int, int], object],
) -> Verdict | Refusal:
    value = _read(path, options.max_bytes)
    if isinstance(value, Refusal):
        return value
    try:
        image = EncodedImage(value, is_crop=crop, query=query, uri=shown(path))
        return judge_video(image, pipeline, explain=explain, options=options, progress=progress)
    except RecordError as error:
        return Refusal(error.reason.value, str(error))


def _judge(files: Sequence[Path], pipeline: FramePipeline, *, crop: bool, query: Query | None) -> list[Verdict | Refusal]:
    read = [_read(path) for path in files]
    images = [
        EncodedImage(value, is_crop=crop, query=query, uri=shown(path)) for path, value in zip(files, read, strict=True) if isinstance(value, bytes)
    ]
    verdicts = iter(pipeline.judge(images))
    outcomes: list[Verdict | Refusal] = []
    for value in read:
        outcome = value if isinstance(value, Refusal) else next(verdicts)
        outcomes.append(outcome if isinstance(outcome, Verdict | Refusal) else Refusal(outcome.reason.value, str(outcome)))
    return outcomes


def _read(path: Path, max_bytes: int = DecodeLimits().max_image_bytes) -> bytes | Refusal:
    """At most one byte more than is accepted, so that a huge file costs nothing."""
    if os.path.isdir(path):
        return Refusal(UNREADABLE, f"the folder holds no {', '.join(IMAGE_SUFFIXES)} file")
    try:
        with path.open("rb") as handle:
            return handle.read(max_bytes + 1)
    except OSError as error:
        return Refusal(UNREADABLE, f"{error.strerror or error}; check the path and its permissions")


def _json_line(path: Path, outcome: Verdict | Refusal) -> str:
    if isinstance(outcome, Verdict):
        return outcome.to_bytes().decode()
    return json.dumps({"uri": shown(path), "error": {"reason": outcome.reason, "message": outcome.message}}, ensure_ascii=False)


def _page_entry(path: Path, outcome: Verdict | Refusal) -> PageEntry:
    if isinstance(outcome, Verdict):
        return PageEntry(shown(path), path, outcome)
    return PageEntry(shown(path), None, f"{outcome.reason}: {outcome.message}")


def _table(outcomes: Sequence[tuple[Path, Verdict | Refusal]]) -> Table:
    table = Table("image", "verdict", "score", "faces", "says")
    for path, outcome in outcomes:
        name = Text(printable(shown(path)), overflow="fold")
        if isinstance(outcome, Refusal):
            table.add_row(name, Text("refused", style="yellow"), "", "", Text(outcome.reason))
            continue
        said = outcome.stream or outcome
        style = {"fake": "red", "real": "green", "inconclusive": "yellow"}[said.label.value]
        score = "" if said.fake_score is None else f"{said.fake_score:.3f}"
        texts = [face.explanation.text for face in outcome.all_faces if face.explanation is not None]
        remarked: tuple[Verdict | SampledFrame | FaceVerdict, ...] = (outcome, *(outcome.frames or ()), *outcome.all_faces)
        codes = sorted({note.code.value for one in remarked for note in one.notes})
        num_faces = str(len(outcome.all_faces)) + ("" if outcome.frames is None else f" in {len(outcome.frames)} frames")
        lines = [*(segment.words for segment in outcome.segments or ()), " ".join([*texts, *codes]), *_answers(outcome)]
        says = Text("\n".join(printable(line) for line in lines if line), overflow="fold")
        table.add_row(name, Text(said.label.value, style=style), score, num_faces, says)
    return table


def _answers(verdict: Verdict) -> list[str]:
    """A line for each face that was asked, in each sampled frame of a chunk."""
    asked = [("", verdict.query), *((f" at {frame.pts_ms} ms", frame.query) for frame in verdict.frames or ())]
    return [
        f"{query.words}, face {answer.face + 1}{when}: {'tampered' if answer.tampered else 'clean'} "
        f"({answer.tampered_probability:.3f}). {answer.explanation.text}"
        for when, query in asked
        if query is not None
        for answer in query.answers
    ]


def shown(path: Path) -> str:
    """The path as text that any encoding of ours can carry: bytes that are not UTF-8 are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


def printable(text: str) -> str:
    """Without control characters: a file name may not steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
