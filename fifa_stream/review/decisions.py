"""What was decided: one review a line of a file, or one a record of a topic; never changed, of the same face and reviewer the latest one counts.

A line is written whole under a lock and is on the disk before the reviewer is told. Several desks may share a file: each reads what the others add.
"""

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import kafka as kafka_python
from kafka.errors import KafkaError
from pydantic import ValidationError

from engines.reviews import Review
from fifa_stream.cluster import BrokerError
from fifa_stream.config import KafkaSettings
from fifa_stream.records import event_time
from fifa_stream.review.cases import Case
from fifa_stream.topic_reader import read_topic

MAX_LINE_BYTES: Final = 1 << 20
REVIEW_TYPE: Final = "fifa.review.v1"
REVIEW_SOURCE: Final = "urn:fifa-stream:desk"


class DecisionError(Exception):
    """A decision was not kept; the message says why and what to do."""


class DecisionLog(Protocol):
    """Where decisions go."""

    num_unread: int
    """Lines or records that are no reviews, so far."""

    def append(self, review: Review) -> None:
        """Keep one; returns when it cannot be lost any more. Raises DecisionError."""
        ...

    def fresh(self) -> list[Review]:
        """What was added since the last call, by anybody, in order; at first all. Raises DecisionError."""
        ...

    def close(self) -> None:
        """Let go."""
        ...


class DecisionFile:
    """Reviews as JSON lines."""

    def __init__(self, path: Path) -> None:
        """Makes the file where there is none. Raises DecisionError."""
        self.path, self.num_unread = path, 0
        """Lines that are no reviews."""
        self._position = 0
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DecisionError(f"{path} cannot be written: {error.strerror}; give --decisions a file of your own") from None

    def append(self, review: Review) -> None:
        """One line, whole; a line that a crash left without an end is ended first."""
        line = review.model_dump_json().encode() + b"\n"
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                stat = os.fstat(self._file)
                if not stat.st_nlink:  # what is written to it would go with this process
                    raise DecisionError(f"the decision was not written: {self.path} was deleted or replaced; open the desk again")
                end = stat.st_size
                if end and os.pread(self._file, 1, end - 1) != b"\n":
                    line = b"\n" + line
                while line:
                    line = line[os.write(self._file, line) :]
                os.fsync(self._file)
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        except OSError as error:
            raise DecisionError(f"the decision was not written to {self.path}: {error.strerror}; mend that and decide again") from None

    def fresh(self) -> list[Review]:
        """Whole lines behind those that were read before."""
        found = []
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH)  # nobody is in the middle of a line
            try:
                with open(os.dup(self._file), "rb") as lines:
                    lines.seek(self._position)
                    while line := lines.readline(MAX_LINE_BYTES):
                        if not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES:
                            break  # what a crash left; the next line ends it
                        self._position += len(line)
                        if line.strip():
                            try:
                                found.append(Review.model_validate_json(line))
                            except ValidationError:
                                self.num_unread += 1
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        except OSError as error:
            raise DecisionError(f"{self.path} cannot be read: {error.strerror}; open the desk again, or give --decisions another file") from None
        return found

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class DecisionTopic:
    """Reviews as records, keyed by stream id. What others write is seen at the next start."""

    def __init__(self, kafka: KafkaSettings, topic: str) -> None:
        self._kafka, self._topic = kafka, topic
        self.num_unread = 0
        self._is_read = False
        self._producer: Any = None

    def append(self, review: Review) -> None:
        """One record, acknowledged by all replicas in sync."""
        try:
            if self._producer is None:
                self._producer = kafka_python.KafkaProducer(**self._kafka.client_options(), acks="all", max_block_ms=self._kafka.bootstrap_timeout_ms)
            key, value, headers = review_record(review)
            self._producer.send(self._topic, key=key, value=value, headers=headers).get(timeout=self._kafka.delivery_timeout_ms / 1000)
        except KafkaError as error:
            cause = f"{type(error).__name__}: {error}"
            raise DecisionError(
                f"the decision was not taken by topic {self._topic!r}: {cause}; check the kafka.* settings and decide again"
            ) from None

    def fresh(self) -> list[Review]:
        """Everything on the topic, once."""
        if self._is_read:
            return []
        self._is_read, found = True, []
        try:
            for raw in read_topic(self._kafka, self._topic):
                try:
                    found.append(Review.model_validate_json(raw.value or b""))
                except ValidationError:
                    self.num_unread += 1
        except BrokerError as error:
            raise DecisionError(str(error)) from None
        return found

    def close(self) -> None:
        """Let the broker go."""
        if self._producer is not None:
            self._producer.close(timeout=3.0)


def review_record(review: Review) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """Key, value and headers: CloudEvents in binary mode, as everything we write."""
    place = "/".join(str(part) for part in (review.verdict, review.frame, review.face, review.reviewer, review.decided_at.isoformat()))
    headers = [
        ("content-type", b"application/json"),
        ("ce_specversion", b"1.0"),
        ("ce_source", REVIEW_SOURCE.encode()),
        ("ce_type", REVIEW_TYPE.encode()),
        ("ce_id", place.encode()),
        ("ce_time", event_time(review.decided_at)),
    ]
    return (review.stream or review.verdict).encode(), review.model_dump_json().encode(), headers


class Subject(NamedTuple):
    """What a decision is about. The engine belongs to it: what is said of one engine's answer says nothing about another's."""

    verdict: str
    engine: str
    frame: int | None
    face: int | None

    @classmethod
    def of(cls, review: Review) -> "Subject":
        """Of a review."""
        return cls(review.verdict, review.engine, review.frame, review.face)


class Decided:
    """What counts now, of the verdicts at hand: others' reviews are passed over."""

    def __init__(self, cases: Iterable[Case]) -> None:
        self._known = {(case.verdict_id, case.engine, case.frame) for case in cases}
        self._by_picture: dict[tuple[str, str, int | None], dict[tuple[int | None, str], Review]] = {}

    def take(self, review: Review) -> None:
        """Let a review count, in place of the reviewer's earlier one, wherever that stands."""
        picture = (review.verdict, review.engine, review.frame)
        if picture not in self._known:
            return
        standing = self._by_picture.setdefault(picture, {})
        before = standing.get((review.face, review.reviewer))
        if before is None or review.decided_at >= before.decided_at:  # as the trainer counts them
            standing[review.face, review.reviewer] = review

    def of(self, case: Case) -> list[Review]:
        """Every review of a case that counts."""
        standing = self._by_picture.get((case.verdict_id, case.engine, case.frame), {})
        return [review for review in standing.values() if not review.withdrawn]

    def latest(self, subject: Subject, reviewer: str) -> Review | None:
        """A reviewer's last word on a face, withdrawn or not."""
        return self._by_picture.get(subject[:3], {}).get((subject.face, reviewer))

    def one(self, subject: Subject, reviewer: str) -> Review | None:
        """What a reviewer says of a face."""
        found = self.latest(subject, reviewer)
        return None if found is None or found.withdrawn else found

    def deciders(self, case: Case) -> frozenset[str]:
        """Who has decided about its leading face."""
        return frozenset(review.reviewer for review in self.of(case) if review.face == case.lead)
