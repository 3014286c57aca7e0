"""Kafka records in batches: group membership, pause and resume, commits."""

import contextlib
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import kafka as kafka_python
from kafka import ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    KafkaError,
    RebalanceInProgressError,
    RetriableError,
    UnknownMemberIdError,
)
from kafka.structs import MemberState

from fifa_stream.config import KafkaSettings
from fifa_stream.header_names import read_any_names
from fifa_stream.records import RawRecord

logger = logging.getLogger(__name__)

read_any_names()

Partition = tuple[str, int]
"""(topic, partition)."""

TANSU_SESSION_TIMEOUT_MS = 2_000
"""Tansu holds every join for half the session timeout, in steps of a second: 1.0 s at 2 s, 23 s at Kafka's default of 45 s."""
COMMIT_TIMEOUT_MS = 5_000
"""A commit that takes longer is tried again at the next interval; kafka-python would retry for 30 s while nothing is polled."""

POSITION_TIMEOUT_MS = 100
"""Only a partition that has just been assigned makes anybody wait."""
WATERMARKS_TIMEOUT_MS = 1_000
"""For a lag that is shown later rather than a loop that waits."""
COMPLAIN_EVERY_S = 10.0
"""Of polls that fail one after the other the log tells only so often."""
REWIND_TIMEOUT_MS = 15_000
"""Beyond the default transaction_timeout_ms: the group does not answer while a dead member's transaction holds the offsets."""


class Watermark(NamedTuple):
    """How far a partition was read here, and how far it was written."""

    position: int
    """Offset of the next record that a poll may return."""
    end: int
    """High watermark: the offset after its last record."""


class Rebalance(Protocol):
    """Told of every change of assignment, on the client's own thread: only bookkeeping, never a blocking call."""

    def assigned(self, partitions: Iterable[Partition]) -> None:
        """New partitions begin."""
        ...

    def revoked(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        """These go to another member; return the positions to commit first."""
        ...

    def lost(self, partitions: Iterable[Partition]) -> None:
        """These have gone already; nothing can be committed."""
        ...


class Consumer(Protocol):
    """A member of a consumer group. One thread owns it."""

    @property
    def joined(self) -> bool:
        """Whether the group has settled with us in it, with or without partitions."""
        ...

    def subscribe(self, topic: str, rebalance: Rebalance) -> None:
        """Join the group at the next poll."""
        ...

    def poll(self, *, max_records: int, timeout_s: float) -> list[RawRecord]:
        """Return what has arrived; wait up to `timeout_s` for the first. Keeps the membership alive, paused or not."""
        ...

    def pause(self) -> None:
        """Fetch nothing, on partitions yet to be assigned neither, until `resume`."""
        ...

    def resume(self) -> None:
        """Undo `pause`."""
        ...

    def commit(self, positions: Mapping[Partition, int]) -> bool:
        """Store next offsets. False: not accepted now (rebalance, slow broker); the next commit covers it."""
        ...

    def member(self) -> object:
        """Who we are to the group now, for `TransactionalProducer.commit`."""
        ...

    def rewind(self, begins: Mapping[Partition, int]) -> None:
        """Go back to the committed offsets of these partitions, where there are none to the given ones. Raises GroupError."""
        ...

    def watermarks(self) -> dict[Partition, Watermark]:
        """Of the assigned partitions, where they are known. Asked every few seconds: at most one round trip, and never an error."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


class GroupError(Exception):
    """The group does not tell what is committed."""


class CodecMissing(ImportError):
    """The C checksum is not installed."""


class KafkaConsumer:
    """`Consumer` on kafka-python."""

    def __init__(self, kafka: KafkaSettings, *, is_tansu: bool, max_poll_records: int) -> None:
        try:
            import crc32c  # noqa: F401
        except ImportError:
            # kafka-python would fall back in silence to a checksum in Python: 4 MB/s instead of 20 GB/s.
            raise CodecMissing("the package crc32c is not installed, and checksums in Python allow 4 MB/s; pip install crc32c") from None
        session_ms = min(kafka.session_timeout_ms, TANSU_SESSION_TIMEOUT_MS) if is_tansu else kafka.session_timeout_ms
        self._group_id = kafka.group_id
        self._is_tansu = is_tansu
        self._paused = False
        self._silent_until = 0.0
        self._consumer = kafka_python.KafkaConsumer(
            **kafka.client_options(),
            group_id=kafka.group_id,
            group_instance_id=kafka.group_instance_id,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            partition_assignment_strategy=(RangePartitionAssignor if is_tansu else CooperativeStickyAssignor,),
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=min(3_000, max(session_ms // 4, 100)),
            max_poll_interval_ms=max(kafka.max_poll_interval_ms, session_ms),
            max_poll_records=max_poll_records,
            max_partition_fetch_bytes=kafka.max_partition_fetch_bytes,
            fetch_max_bytes=4 * kafka.max_partition_fetch_bytes,  # prefetched records are outside the limits of the loop
        )

    @property
    def joined(self) -> bool:
        """The group is stable."""
        return bool(self._consumer.group_metadata().state == MemberState.STABLE)

    def subscribe(self, topic: str, rebalance: Rebalance) -> None:
        """Join at the next poll."""
        logger.info("joining: group=%s topic=%s", self._group_id, topic)
        self._consumer.subscribe([topic], listener=_Listener(self, rebalance))

    def poll(self, *, max_records: int, timeout_s: float) -> list[RawRecord]:
        """Records of all partitions, in order within each; none while the broker is away."""
        try:
            batches = self._consumer.poll(timeout_ms=round(timeout_s * 1000), max_records=max_records)
        except RetriableError as error:
            # kafka-python 3.0.12 overcomes these at a later poll, and raises some nevertheless: a coordinator looked up on a broker that is gone.
            if time.monotonic() >= self._silent_until:
                self._silent_until = time.monotonic() + COMPLAIN_EVERY_S
                logger.warning("the broker is away, polling on: group=%s error=%s", self._group_id, error)
            time.sleep(timeout_s)
            return []
        self._keep_joining()
        return [raw_record(record) for records in batches.values() for record in records]

    def _keep_joining(self) -> None:
        """Take up a join again that outlasted the poll.

        A leader joins anew when its topic gains partitions, or when it first joined before it knew of any. kafka-python 3.0.12 then decides at each
        poll whether a join is due by comparing what it dealt out with what it knows, and forgets one that runs: from when it has dealt out until the
        group has answered, the two are equal. A poll that ends in between leaves a member that sends no heartbeat and never asks again.
        """
        if self._consumer.group_metadata().state == MemberState.REBALANCING:
            self._consumer._coordinator.request_rejoin()

    def pause(self) -> None:
        """Stop fetching."""
        self._paused = True
        self._pause_assigned()

    def _pause_assigned(self) -> None:
        self._consumer.pause(*self._consumer.assignment())

    def resume(self) -> None:
        """Fetch again."""
        self._paused = False
        self._consumer.resume(*self._consumer.paused())

    def commit(self, positions: Mapping[Partition, int]) -> bool:
        """Commit and wait, up to `COMMIT_TIMEOUT_MS`."""
        try:
            self._consumer.commit(self._offsets(positions), timeout_ms=COMMIT_TIMEOUT_MS)
        except (CommitFailedError, RebalanceInProgressError, IllegalGenerationError, UnknownMemberIdError) as error:
            logger.warning("commit not accepted, the group is rebalancing: group=%s error=%s", self._group_id, type(error).__name__)
            return False
        except RetriableError as error:
            logger.warning("commit not accepted, trying again at the next interval: group=%s error=%s", self._group_id, type(error).__name__)
            return False
        return True

    def member(self) -> object:
        """Group, member and generation as kafka-python knows them now."""
        return self._consumer.group_metadata()

    def rewind(self, begins: Mapping[Partition, int]) -> None:
        """Ask the group and seek. Offsets of an open transaction are waited for (KIP-447)."""
        for partition, begin in begins.items():
            where = TopicPartition(*partition)
            try:
                committed = self._consumer.committed(where, timeout_ms=REWIND_TIMEOUT_MS)
                self._consumer.seek(where, begin if committed is None else committed)
            except KafkaError as error:
                raise GroupError(f"the committed offset of {partition} cannot be read: {type(error).__name__}: {error}") from None
            except ValueError:
                continue  # given up meanwhile: its next owner begins at what is committed

    def watermarks(self) -> dict[Partition, Watermark]:
        """High watermarks come with what is fetched. While nothing is, because of a pause, the broker is asked; Tansu would answer wrongly."""
        partitions = sorted(self._consumer.assignment())
        ends: dict[Any, int] = {}
        if self._paused and partitions and not self._is_tansu:
            with contextlib.suppress(KafkaError):
                ends = self._consumer.end_offsets(partitions, timeout_ms=WATERMARKS_TIMEOUT_MS)
        found = {}
        for partition in partitions:
            with contextlib.suppress(KafkaError):  # given up meanwhile, or not positioned yet
                end = ends.get(partition, self._consumer.highwater(partition))
                position = None if end is None else self._consumer.position(partition, timeout_ms=POSITION_TIMEOUT_MS)
                if end is not None and position is not None:
                    found[partition.topic, partition.partition] = Watermark(position, end)
        return found

    def _offsets(self, positions: Mapping[Partition, int]) -> dict[Any, Any]:
        return {TopicPartition(*partition): OffsetAndMetadata(offset, "", -1) for partition, offset in positions.items()}

    def commit_soon(self, positions: Mapping[Partition, int]) -> None:
        """Send a commit and do not wait: the only kind allowed on the client's thread; it goes out before the partition is given up."""
        self._consumer.commit_async(self._offsets(positions))

    def assigned(self) -> None:
        """Partitions that arrive during a pause are paused too."""
        if self._paused:
            self._pause_assigned()

    def close(self) -> None:
        """Leave the group; a dead broker is not waited for beyond 3 s."""
        try:
            self._consumer.close(timeout_ms=3_000)
        except KafkaError as error:
            logger.warning("consumer closed without the broker: group=%s error=%s", self._group_id, type(error).__name__)


def raw_record(record: Any) -> RawRecord:
    """A record of kafka-python as ours."""
    headers = tuple([(name, data or b"") for name, data in record.headers])  # a header's value may be null on the wire
    return RawRecord(record.topic, record.partition, record.offset, record.timestamp, record.key, record.value, headers)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python is untyped
    """Hands kafka-python's events on."""

    def __init__(self, consumer: KafkaConsumer, rebalance: Rebalance) -> None:
        self._consumer = consumer
        self._rebalance = rebalance

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        partitions = _partitions(assigned)
        logger.info("partitions assigned: %s", partitions)
        self._rebalance.assigned(partitions)
        self._consumer.assigned()

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        partitions = _partitions(revoked)
        logger.info("partitions revoked: %s", partitions)
        if positions := self._rebalance.revoked(partitions):
            self._consumer.commit_soon(positions)

    def on_partitions_lost(self, lost: Iterable[Any]) -> None:
        partitions = _partitions(lost)
        logger.warning("partitions lost, their unfinished records go to another member: %s", partitions)
        self._rebalance.lost(partitions)


def _partitions(partitions: Iterable[Any]) -> list[Partition]:
    return sorted((partition.topic, partition.partition) for partition in partitions)
