"""Stand-ins for tests, ours and our users': an in-memory broker, a clock that is set by hand, and toys in place of the engine.

`python -m fifa_stream.testing worker` runs the real loop against a real broker with `ToyProcessor`.
"""

import argparse
import hashlib
import math
import os
import sys
import threading
import time
import zlib
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import typer
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from engines import fict
from engines.bundle import Bundle
from engines.contracts import (
    FORGERY_TYPES,
    Analysis,
    AreaAnswer,
    AreaQuery,
    Calibration,
    DecoderSpec,
    Evidence,
    Explanation,
    Label,
    Manifest,
    OperatingPoint,
    PartSpec,
    PreprocessSpec,
    TensorSpec,
)
from engines.face_detector import STRIDE
from engines.prompts import SPECIAL_TOKENS, Vocabulary, loc_answer, parse_markup
from engines.runtime import Bound
from fifa_stream.config import load
from fifa_stream.consume import Partition, Rebalance, Watermark
from fifa_stream.engine_thread import Done, Result, Work
from fifa_stream.exits import ExitCode, clear_errors
from fifa_stream.memory.changelog import Restore
from fifa_stream.memory.partition import Snapshot
from fifa_stream.produce import DeliveryError
from fifa_stream.records import (
    EngineIdentity,
    EvidenceItem,
    FaceVerdict,
    ForgeryType,
    FrameRecord,
    InputCoordinates,
    Media,
    OperatingPointUsed,
    OutRecord,
    Quality,
    RawRecord,
    Reason,
    RecordError,
    RunLengths,
    Verdict,
)
from fifa_stream.runner import Outcome
from fifa_stream.serve import serve
from fifa_stream.shedding import Shed, shed_verdict
from fifa_stream.telemetry import configure_logging

_IDLE_POLL_S = 0.001
"""A poll that found nothing waits this long at most: a loop that never waits would keep the other threads from the interpreter lock."""


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


@dataclass(slots=True, eq=False)
class _Group:
    members: list["MemoryConsumer"] = field(default_factory=list)
    generation: int = 0
    committed: dict[Partition, int] = field(default_factory=dict)


class MemoryBroker:
    """Topics, partitions and consumer groups in one process: enough for the loop. Partition of a key: sum of its bytes modulo the partitions."""

    def __init__(self, topics: Mapping[str, int]) -> None:
        self._logs: dict[Partition, list[RawRecord]] = {(topic, number): [] for topic, count in topics.items() for number in range(count)}
        self._num_partitions = dict(topics)
        self._groups: dict[str, _Group] = {}

    def append(self, topic: str, record: OutRecord, *, partition: int | None = None, skip: int = 0) -> RawRecord:
        """Add a record; `skip` leaves a gap of offsets before it, as compaction and transaction markers do."""
        number = sum(record.key or b"") % self._num_partitions[topic] if partition is None else partition
        log = self._logs[topic, number]
        offset = (log[-1].offset + 1 if log else 0) + skip
        raw = RawRecord(topic, number, offset, 1_700_000_000_000 + offset, record.key, record.value, record.headers)
        log.append(raw)
        return raw

    def records(self, topic: str) -> list[RawRecord]:
        """All records of a topic, by partition and offset."""
        return [record for (name, _), log in sorted(self._logs.items()) if name == topic for record in log]

    def committed(self, group: str) -> dict[Partition, int]:
        """Next offsets of a group."""
        return dict(self._group(group).committed)

    def rewrite(self, topic: str, partition: int, records: Sequence[RawRecord]) -> None:
        """Replace a log, as deleting and making a topic anew does."""
        self._logs[topic, partition] = list(records)

    def read(self, partition: Partition, position: int, limit: int) -> list[RawRecord]:
        """Up to `limit` records from `position` on."""
        log = self._logs[partition]
        first = bisect_left(log, position, key=lambda record: record.offset)
        return log[first : first + limit]

    def end(self, partition: Partition) -> int:
        """The offset after the last record."""
        log = self._logs[partition]
        return log[-1].offset + 1 if log else 0

    def rebalance(self, group: str, topic: str) -> None:
        """Deal the partitions of a topic round among the members; only what moves is revoked."""
        members = self._group(group).members
        self._group(group).generation += 1
        wanted: dict[MemoryConsumer, list[Partition]] = {member: [] for member in members}
        for number in range(self._num_partitions[topic]):
            if members:
                wanted[members[number % len(members)]].append((topic, number))
        for member, partitions in wanted.items():
            member.give_up([partition for partition in member.positions if partition not in partitions])
        for member, partitions in wanted.items():
            member.receive([partition for partition in partitions if partition not in member.positions])

    def _group(self, group: str) -> _Group:
        return self._groups.setdefault(group, _Group())

    def join(self, group: str, member: "MemoryConsumer", topic: str) -> None:
        """Add a member."""
        self._group(group).members.append(member)
        self.rebalance(group, topic)

    def leave(self, group: str, member: "MemoryConsumer", topic: str) -> None:
        """Remove a member; it keeps what it knows, its partitions go on."""
        self._group(group).members.remove(member)
        self.rebalance(group, topic)

    def commit(self, group: str, positions: Mapping[Partition, int]) -> None:
        """Store next offsets."""
        self._group(group).committed.update(positions)

    def is_current(self, group: str, member: "MemoryConsumer", generation: int) -> bool:
        """Whether the group takes this member's word at this generation."""
        return member in self._group(group).members and generation == self._group(group).generation

    def generation(self, group: str) -> int:
        """Goes up with each rebalance."""
        return self._group(group).generation


class MemoryConsumer:
    """`Consumer` on a `MemoryBroker`. With a clock, an empty poll takes its timeout."""

    def __init__(self, broker: MemoryBroker, group: str, *, clock: FakeClock | None = None) -> None:
        self._broker = broker
        self._group = group
        self._clock = clock
        self._topic = ""
        self._rebalance: Rebalance | None = None
        self._paused = False
        self.positions: dict[Partition, int] = {}
        self.commits: list[dict[Partition, int]] = []
        """Every accepted commit, in order."""
        self.refuse_commits = False
        self.closed = False
        self.on_poll: Callable[[], None] = lambda: None
        """Runs at the start of each poll: the place for a test to make something happen."""

    @property
    def joined(self) -> bool:
        """Subscribed and not gone."""
        return self._rebalance is not None and not self.closed

    def subscribe(self, topic: str, rebalance: Rebalance) -> None:
        """Join at once."""
        self._topic, self._rebalance = topic, rebalance
        self._broker.join(self._group, self, topic)

    def poll(self, *, max_records: int, timeout_s: float) -> list[RawRecord]:
        """Records in order within each partition."""
        self.on_poll()
        polled: list[RawRecord] = []
        if not self._paused:
            for partition, position in self.positions.items():
                records = self._broker.read(partition, position, max_records - len(polled))
                if records:
                    self.positions[partition] = records[-1].offset + 1
                    polled += records
        if not polled and self._clock is not None:
            self._clock.advance(timeout_s)
        elif not polled:
            time.sleep(min(timeout_s, _IDLE_POLL_S))
        return polled

    def pause(self) -> None:
        """Return nothing."""
        self._paused = True

    def resume(self) -> None:
        """Return records again."""
        self._paused = False

    def commit(self, positions: Mapping[Partition, int]) -> bool:
        """Accepted unless `refuse_commits`, or a partition is another's."""
        if self.refuse_commits or not positions.keys() <= self.positions.keys():
            return False
        self.commits.append(dict(positions))
        self._broker.commit(self._group, positions)
        return True

    def member(self) -> object:
        """(group, member, generation)."""
        return self._group, self, self._broker.generation(self._group)

    def rewind(self, begins: Mapping[Partition, int]) -> None:
        """To what is committed."""
        committed = self._broker.committed(self._group)
        self.positions |= {partition: committed.get(partition, begin) for partition, begin in begins.items() if partition in self.positions}

    def watermarks(self) -> dict[Partition, Watermark]:
        """Always known."""
        return {partition: Watermark(position, self._broker.end(partition)) for partition, position in self.positions.items()}

    def give_up(self, partitions: Sequence[Partition]) -> None:
        """Hand partitions back, committing what is finished."""
        if partitions and self._rebalance is not None:
            self._broker.commit(self._group, self._rebalance.revoked(partitions))
            for partition in partitions:
                del self.positions[partition]

    def receive(self, partitions: Sequence[Partition]) -> None:
        """Begin at the committed offsets."""
        if partitions and self._rebalance is not None:
            committed = self._broker.committed(self._group)
            self.positions |= {partition: committed.get(partition, 0) for partition in partitions}
            self._rebalance.assigned(partitions)

    def lose(self) -> None:
        """Be thrown out, as a member that was silent too long is: nothing is committed."""
        assert self._rebalance is not None, "not subscribed"
        self._rebalance.lost(tuple(self.positions))
        self.positions.clear()
        self._broker.leave(self._group, self, self._topic)

    def close(self) -> None:
        """Leave the group."""
        if not self.closed:
            self.closed = True
            self.give_up(tuple(self.positions))
            self._broker.leave(self._group, self, self._topic)


class MemoryProducer:
    """`Producer` on a `MemoryBroker`. Records are written and acknowledged in `poll`, unless held back."""

    def __init__(self, broker: MemoryBroker, *, max_unacknowledged: int = 1_000_000) -> None:
        self._broker = broker
        self._max_unacknowledged = max_unacknowledged
        self._sent: deque[tuple[str, OutRecord, RawRecord, Callable[[], None], int | None]] = deque()
        self.hold = False
        """While True nothing is acknowledged."""
        self.fail_after: int | None = None
        """Refuse every record after this many."""
        self.closed = False
        self._num_delivered = 0

    @property
    def has_room(self) -> bool:
        """Fewer than `max_unacknowledged` records wait."""
        return len(self._sent) < self._max_unacknowledged

    @property
    def num_waiting(self) -> int:
        """Sent and not acknowledged."""
        return len(self._sent)

    def send(self, topic: str, record: OutRecord, *, answers: RawRecord, on_delivery: Callable[[], None], partition: int | None = None) -> None:
        """Accept a record."""
        self._sent.append((topic, record, answers, on_delivery, partition))

    def poll(self) -> None:
        """Write and acknowledge what waits, first in first out."""
        while self._sent and not self.hold:
            topic, record, answers, on_delivery, partition = self._sent.popleft()
            if self.fail_after is not None and self._num_delivered >= self.fail_after:
                raise DeliveryError(f"the answer to {answers.place} was not delivered to {topic}: told to fail")
            self._broker.append(topic, record, partition=partition)
            self._num_delivered += 1
            on_delivery()

    def flush(self, timeout_s: float) -> bool:
        """Whether everything sent can be acknowledged."""
        return not self.hold or not self._sent

    def close(self, timeout_s: float) -> None:
        """Forget what waits: it was never acknowledged."""
        self.closed = True
        self._sent.clear()


class MemoryTransactions(MemoryProducer):
    """`TransactionalProducer` on a `MemoryBroker`: acknowledged at once, written at the commit, with the offsets, if the group agrees."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self._held: list[tuple[str, OutRecord, int | None]] = []
        self._is_open = False
        self.commits_until_failure: int | None = None
        """Fail the commit after this many: before anything is written, or, with `lose_answer`, after everything is."""
        self.lose_answer = False

    def begin(self) -> None:
        """Open."""
        assert not self._is_open, "a transaction is open already"
        self._is_open = True

    def send(self, topic: str, record: OutRecord, *, answers: RawRecord, on_delivery: Callable[[], None], partition: int | None = None) -> None:
        """Accept a record of the open transaction."""
        assert self._is_open, "no transaction is open"
        super().send(topic, record, answers=answers, on_delivery=on_delivery, partition=partition)

    def poll(self) -> None:
        """Acknowledge what waits; readers see none of it."""
        while self._sent and not self.hold:
            topic, record, _, on_delivery, partition = self._sent.popleft()
            self._held.append((topic, record, partition))
            on_delivery()

    def commit(self, positions: Mapping[Partition, int], member: object) -> None:
        """All or nothing."""
        group, consumer, generation = cast(tuple[str, MemoryConsumer, int], member)
        assert not self._sent, "a commit before everything was acknowledged"
        fails = self.commits_until_failure == 0
        if self.commits_until_failure is not None:
            self.commits_until_failure -= 1
        if (fails and not self.lose_answer) or not self._broker.is_current(group, consumer, generation):
            raise DeliveryError("the transaction was refused")
        for topic, record, partition in self._held:
            self._broker.append(topic, record, partition=partition)
        self._broker.commit(group, positions)
        self._held.clear()
        self._is_open = False
        if fails:
            raise DeliveryError("the answer to a commit was lost")


class MemoryChangelog:
    """`Changelog` on a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker, topic: str, group: str) -> None:
        self._broker, self._topic, self._group = broker, topic, group
        self.reads: list[Mapping[int, int]] = []
        """What was asked for, in order."""

    def read(self, begins: Mapping[int, int]) -> dict[int, list[Snapshot]]:
        """Everything is there at once."""
        self.reads.append(dict(begins))
        found = {}
        for number, begin in begins.items():
            restore = Restore(self._group, begin)
            for record in self._broker.read((self._topic, number), 0, sys.maxsize):
                restore.add(record)
            found[number] = list(restore.snapshots())
        return found


class InlineWorker:
    """`Worker` without a thread: a batch is processed when its result is asked for."""

    def __init__(self, process: Callable[[Sequence[Work]], Done]) -> None:
        self._process = process
        self._inbox: deque[Sequence[Work]] = deque()
        self.capacity = 2
        self.hold = False
        """While True nothing comes back."""
        self.closed = False

    @property
    def has_room(self) -> bool:
        """Fewer than `capacity` batches inside."""
        return len(self._inbox) < self.capacity

    def submit(self, batch: Sequence[Work]) -> None:
        """Queue a batch."""
        self._inbox.append(batch)

    def results(self) -> list[Done]:
        """Process what is queued."""
        return [] if self.hold else [self._process(self._inbox.popleft()) for _ in range(len(self._inbox))]

    def close(self) -> None:
        """Nothing to end."""
        self.closed = True


def toy_operating_point() -> OperatingPoint:
    """Fake from 0.6, real below 0.4, explained from 0.4."""
    return OperatingPoint(name="toy", fake_at=0.6, real_below=0.4, explain_at=0.4)


def toy_manifest() -> Manifest:
    """A manifest for toys that answer without an engine: of its parts only the encoder, whose digest every verdict states."""
    return Manifest(
        name="toy",
        version="0",
        precision="fp32",
        backend="onnxruntime",
        parts={"encoder": PartSpec(file="encoder.onnx", sha256=hashlib.sha256(b"toy encoder").hexdigest(), size_bytes=0, inputs=(), outputs=())},
        files={},
        preprocess=PreprocessSpec(image_size=224, grid=16, mask_size=64, crop_scale=1.3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        decoder=DecoderSpec(num_layers=1, num_heads=1, head_dim=8, width=8, vocab_size=8, num_prefix_tokens=1, capacity=8, max_new_tokens=4),
        forgery_types=FORGERY_TYPES,
        fict_depth=14,
        query_levels=("region", "box"),
        calibration=Calibration(method="temperature", scale=1.0, bias=0.0, fitted_on="nothing"),
        operating_points={"toy": toy_operating_point()},
        default_operating_point="toy",
        score_baseline=(0.05,) * 20,
        licences={},
        provenance={},
        metrics={},
        digest=hashlib.sha256(b"toy").hexdigest(),
    )


class ToyDetector:
    """Answers like the bundle's face detector: one upright face in the middle half of every frame."""

    inputs: tuple[TensorSpec, ...] = (TensorSpec(name="image", dtype="float32", shape=("batch", 3, "height", "width")),)
    outputs: tuple[TensorSpec, ...] = tuple(
        TensorSpec(name=name, dtype="float32", shape=("batch", channels, "rows", "columns"))
        for name, channels in (("heatmap", 1), ("scale", 2), ("offset", 2), ("landmarks", 10))
    )
    _LANDMARKS_YX = (0.35, 0.3, 0.35, 0.7, 0.55, 0.5, 0.75, 0.35, 0.75, 0.65)
    """Right eye, left eye, nose tip, mouth corners as fractions of the box."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The network's grids, empty but for the middle cell."""
        rows, columns = (side // STRIDE for side in feeds["image"].shape[2:])
        grids = {spec.name: np.zeros((1, int(spec.shape[1]), rows, columns), np.float32) for spec in self.outputs}
        middle = (0, slice(None), rows // 2, columns // 2)
        grids["heatmap"][middle] = 0.9
        grids["scale"][middle] = np.log([rows / 2, columns / 2])
        grids["offset"][middle] = -0.5
        grids["landmarks"][middle] = self._LANDMARKS_YX
        return grids

    def bind(self, state: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Bound:
        """A detector has no state to keep. Raises NotImplementedError."""
        raise NotImplementedError("a face detector keeps no state; call run")


def toy_bundle() -> Bundle:
    """What `fifa_stream.infer.FramePipeline` needs beside a `ToyAnalyzer`: the manifest and a face detector."""
    vocabulary = Vocabulary(Tokenizer(WordLevel({token: number for number, token in enumerate(SPECIAL_TOKENS)}, unk_token=SPECIAL_TOKENS[0])))
    return Bundle(toy_manifest(), Path("toy"), {"face_detector": ToyDetector()}, vocabulary, np.zeros((vocabulary.size, 8), np.float32))


class ToyAnalyzer:
    """Answers like `engines.analyzer.Analyzer`, from mean brightness: the brighter the crop, or the asked part of it, the more fake."""

    def __init__(self) -> None:
        self.manifest = toy_manifest()
        self.operating_point = toy_operating_point()

    def analyze(
        self,
        crops_BHWC: NDArray[np.uint8],
        *,
        explain: Sequence[str],
        queries: Sequence[AreaQuery | None] | None = None,
        seconds_left: Sequence[float | None] | None = None,
        points: Sequence[OperatingPoint] | None = None,
    ) -> list[Analysis]:
        """One analysis per crop, at once, whatever time is left; the mask is the upper half. An asked region is that as well, an asked box itself."""
        analyses = []
        count = len(crops_BHWC)
        for crop_HWC, policy, query, point in zip(
            crops_BHWC, explain, queries or [None] * count, points or [self.operating_point] * count, strict=True
        ):
            score = float(crop_HWC.mean()) / 255
            wanted = policy == "always" or (policy == "auto" and score >= point.explain_at)
            mask_HW = np.zeros((64, 64), np.float32)
            mask_HW[:32] = 0.9
            explanation = Explanation(
                text="The forehead is too bright.",
                markup="The <p> forehead </p> [SEG] is too bright.",
                evidence=(Evidence("forehead", (4, 12), "forehead", mask_HW, 0.8, {"brightness": float(crop_HWC.mean())}),),
            )
            logit = float(np.log(max(score, 1e-6) / max(1 - score, 1e-6)))
            analyses.append(
                Analysis(
                    fake_score=score,
                    raw_score=logit,
                    type_probs=(0.7, 0.1, 0.1, 0.1),
                    artifact_map_HW=np.full((16, 16), score, np.float32),
                    explanation=explanation if wanted else None,
                    answer=None if query is None else toy_answer(crop_HWC, query),
                )
            )
        return analyses


def toy_answer(crop_HWC: NDArray[np.uint8], query: AreaQuery) -> AreaAnswer:
    """Tampered where the asked area is brighter than half: all of it, or nothing. Raises ValueError for what the engine refuses."""
    size, mask_size = len(crop_HWC), toy_manifest().preprocess.mask_size
    if isinstance(query, str):
        if query not in fict.concepts():
            raise ValueError(f"{query!r} is no FICT id; ask about one such as right_cheek")
        phrase, concept, (x0, y0, x1, y1) = fict.concepts()[query].phrase, query, (0.0, 0.0, float(size), size / 2)
    else:
        phrase, concept, (x0, y0, x1, y1) = None, "forehead", query
        if not (0 <= x0 < x1 <= size and 0 <= y0 < y1 <= size):
            raise ValueError(f"box {query} is empty or leaves the crop of {size} x {size} pixels; clip it")
    probability = float(crop_HWC[int(y0) : math.ceil(y1), int(x0) : math.ceil(x1)].mean()) / 255
    mask_HW = np.zeros((mask_size, mask_size), np.float32)
    if probability < 0.5:
        clean = loc_answer(False, "region" if phrase else "box", phrase)
        return AreaAnswer(False, probability, mask_HW, 0.0, Explanation(clean, clean, ()))
    cell = size / mask_size
    mask_HW[int(y0 / cell) : math.ceil(y1 / cell), int(x0 / cell) : math.ceil(x1 / cell)] = 0.9
    markup = f"The <p> {fict.concepts()[concept].phrase} </p> [SEG] is too bright."
    text, ((start, end, named),) = parse_markup(markup)
    evidence = Evidence(named, (start, end), concept, mask_HW, 0.8, {"brightness": 255 * probability})
    return AreaAnswer(True, probability, mask_HW, 0.8, Explanation(text, markup, (evidence,)))


class ToyProcessor:
    """Frames to verdicts without looking at pixels: a value that begins with b'bad' becomes a dead letter, one that begins with b'face' a verdict
    with `toy_faces`, any other one without faces."""

    def __init__(self, *, seconds_per_frame: float = 0.0, hang_after: int | None = None, engine: EngineIdentity | None = None) -> None:
        """`hang_after`: once this many frames were processed a call never returns, as native code may."""
        self._seconds_per_frame = seconds_per_frame
        self._hang_after = hang_after
        self.batches: list[int] = []
        """Number of frames in each call."""
        self.engine = engine or TOY_ENGINE
        self.score_baseline: tuple[float, ...] = ()

    def process(self, frames: Sequence[FrameRecord]) -> list[Result]:
        """One result per frame, in order."""
        if self._hang_after is not None and sum(self.batches) >= self._hang_after:
            threading.Event().wait()
        self.batches.append(len(frames))
        if self._seconds_per_frame:
            time.sleep(self._seconds_per_frame * len(frames))
        return [toy_result(frame, self.engine) for frame in frames]

    def skip(self, frame: FrameRecord, shed: Shed) -> Verdict:
        """As every processor does."""
        return shed_verdict(frame, shed, engine=self.engine, operating_point=_toy_point_used())


TOY_ENGINE = EngineIdentity(name="toy", version="0", manifest_sha256="0" * 64, encoder_sha256="0" * 64, precision="fp32", backend="onnxruntime")
TOY_CANDIDATE = TOY_ENGINE.model_copy(update={"version": "1", "manifest_sha256": "1" * 64})


def _toy_point_used() -> OperatingPointUsed:
    point = toy_operating_point()
    return OperatingPointUsed(name=point.name, fake_at=point.fake_at, real_below=point.real_below)


def toy_faces(stream_id: str, number: int) -> tuple[FaceVerdict, ...]:
    """One or two people who are manipulated now and then: a function of the stream and the number of its frame alone."""
    seed = zlib.crc32(stream_id.encode())
    faces = []
    for person in range(1 + seed % 2):
        period = 6 + (seed >> 4 + person) % 5
        is_fake = (number + (seed >> 8)) // period % 2 == 1
        noise = zlib.crc32(f"{stream_id} {person} {number}".encode()) / 2**32
        score = round(0.95 - 0.2 * noise if is_fake else 0.02 + 0.2 * noise, 6)
        x, concept = 50.0 + 300 * person + number % 10, ("mouth", "nose")[noise > 0.5]
        evidence = EvidenceItem(
            id=f"{person}.0",
            phrase=concept,
            char_span=(4, 4 + len(concept)),
            concept=concept,
            concept_path=fict.concepts()[concept].path,
            mask=RunLengths(size=(4, 4), counts="`0"),
            mask_confidence=round(0.5 + noise / 2, 6),
            box=None,
        )
        face = FaceVerdict(
            id=person,
            box=(x, 40.0, x + 100, 160.0),
            detection_confidence=0.9,
            quality=Quality(passed=noise < 0.9, face_px=100.0, sharpness=20.0, brightness=120.0),
            fake_score=score,
            raw_score=round(math.log(score / (1 - score)), 6),
            label=toy_operating_point().label(score),
            forgery_type=ForgeryType(label=FORGERY_TYPES[0], probs=dict(zip(FORGERY_TYPES, (0.7, 0.1, 0.1, 0.1), strict=True))),
            evidence=(evidence,) if is_fake else (),
        )
        faces.append(face.seen_as(hashlib.sha256(f"{stream_id} {person}".encode()).digest()))
    return tuple(faces)


def toy_result(frame: FrameRecord, engine: EngineIdentity = TOY_ENGINE) -> Result:
    """A function of the record alone, in the name of an engine."""
    value = frame.value
    if value.startswith(b"bad"):
        return RecordError(Reason.UNDECODABLE_IMAGE, "the toy processor was sent a value that begins with 'bad'; send another")
    faces = toy_faces(frame.stream_id, frame.frame_index or 0) if value.startswith(b"face") else ()
    deciding = max((face for face in faces if face.quality.passed), key=lambda face: face.fake_score, default=None)
    return Verdict(
        id=frame.raw.place,
        input=InputCoordinates.of(frame),
        engine=engine,
        media=Media(
            content_type="image/png",
            sha256=hashlib.sha256(value).hexdigest(),
            size_bytes=len(value),
            width=1,
            height=1,
            uri=None if frame.claim is None else frame.claim.uri,
        ),
        label=Label.INCONCLUSIVE if deciding is None else deciding.label,
        fake_score=None if deciding is None else deciding.fake_score,
        operating_point=_toy_point_used(),
        faces=faces,
        timings_ms={},
    )


def _worker(arguments: argparse.Namespace) -> int:
    settings = load()
    configure_logging(level=settings.telemetry.log_level, style=settings.telemetry.log_format, kafka_level=settings.telemetry.kafka_log_level)
    answers, compared = (TOY_CANDIDATE, TOY_ENGINE) if settings.engine.roll_out == "promoted" else (TOY_ENGINE, TOY_CANDIDATE)
    with clear_errors():
        outcome = serve(
            settings,
            lambda: ToyProcessor(seconds_per_frame=arguments.frame_ms / 1000, hang_after=arguments.hang_after, engine=answers),
            load_shadow=lambda: ToyProcessor(engine=compared),
        )
        return ExitCode.OK if outcome is Outcome.DRAINED else ExitCode.DRAIN_TIMEOUT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the toy worker, configured by FIFA_ variables."""
    parser = argparse.ArgumentParser(prog="python -m fifa_stream.testing")
    worker = parser.add_subparsers(required=True).add_parser("worker", help="the real loop with a toy processor")
    worker.add_argument("--frame-ms", type=float, default=0.0, help="milliseconds each frame takes")
    worker.add_argument("--hang-after", type=int, help="frames after which the processor never returns")
    return _worker(parser.parse_args(arguments))


if __name__ == "__main__":
    try:
        status = main()
    except typer.Exit as told:
        status = told.exit_code
    sys.stderr.flush()
    os._exit(status)  # as the CLI does: the inference thread may be inside a native call
