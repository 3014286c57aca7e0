"""What one member remembers of streams: of each partition, for as long as the partition stays. It stands between the loop, which shows it every
answer before it is sent, and the committer, which takes snapshots.

The loop's thread owns it, and holds the committer's lock where a partition must not go meanwhile; `take` runs under that lock on either thread.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from fifa_stream.cluster import BrokerError
from fifa_stream.config import Settings
from fifa_stream.memory.changelog import Changelog, snapshot_record
from fifa_stream.memory.partition import Forgotten, PartitionMemory, Seen
from fifa_stream.memory.stream import MemoryLimits
from fifa_stream.offsets import Assignment, Partition, Ticket
from fifa_stream.produce import DeliveryError
from fifa_stream.records import FrameRecord, OutRecord, Verdict
from fifa_stream.telemetry import STREAM_RESTORE_SECONDS, STREAM_SNAPSHOT_BYTES, STREAMS_FORGOTTEN, STREAMS_REMEMBERED, Meter

logger = logging.getLogger(__name__)


class MemberMemory:
    """Memories of partitions, each of one stay."""

    def __init__(self, settings: Settings, meter: Meter, changelog: Changelog | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Without a changelog every stay begins with nothing."""
        streams = settings.streams
        self._streams, self._group, self._meter, self._changelog, self._clock = streams, settings.kafka.group_id, meter, changelog, clock
        self._limits = MemoryLimits(
            max_tracks=streams.max_tracks, max_gap_ms=round(streams.max_gap_s * 1000), max_length_ms=round(streams.max_length_s * 1000)
        )
        self._memories: dict[Assignment, PartitionMemory] = {}
        self.topic = settings.kafka.state_topic
        for reason in Forgotten:
            meter.add(STREAMS_FORGOTTEN, 0, reason=reason.value)

    def has(self, stay: Assignment) -> bool:
        """Whether `see` may be asked."""
        return stay in self._memories

    def begin(self, stays: Mapping[Partition, Assignment]) -> None:
        """Of stays that have had their first record and answered none: take up what was remembered where they begin. Blocks while it is read.

        Raises DeliveryError.
        """
        began = self._clock()
        if self._changelog is None:
            snapshots = {}
        else:
            try:
                snapshots = self._changelog.read({number: stay.committed for (_, number), stay in stays.items()})
            except BrokerError as error:
                raise DeliveryError(f"what is remembered of streams cannot be restored: {error}") from None
        num_streams = 0
        for (_, number), stay in stays.items():
            memory = PartitionMemory(
                self._limits,
                max_streams=self._streams.max_streams,
                appearance=self._streams.appearance,
                snapshots=snapshots.get(number, ()),
                is_stored=self._changelog is not None,
            )
            num_streams += len(memory)
            self._memories[stay] = memory
        if self._changelog is not None:
            seconds = self._clock() - began
            self._meter.observe(STREAM_RESTORE_SECONDS, seconds)
            logger.info("streams restored: partitions=%s streams=%d seconds=%.2f", sorted(stays), num_streams, seconds)

    def see(self, ticket: Ticket, frame: FrameRecord, verdict: Verdict) -> Seen | None:
        """As `PartitionMemory.see`."""
        return self._memories[ticket.assignment].see(frame, verdict)

    def keep(self, ticket: Ticket, seen: Seen) -> None:
        """As `PartitionMemory.keep`."""
        self._memories[ticket.assignment].keep(seen)

    def take(self, stay: Assignment) -> Sequence[OutRecord]:
        """As `commit.Snapshots`."""
        memory = self._memories.get(stay)
        if memory is None:
            return ()
        records = [snapshot_record(self._group, snapshot) for snapshot in memory.take_snapshots()]
        if records:
            self._meter.add(STREAM_SNAPSHOT_BYTES, sum(record.size for record in records))
        return records

    def report(self, stays: Mapping[Partition, Assignment]) -> None:
        """Once a turn, with the stays that there are: forget those that went, and count."""
        current = set(stays.values())
        for stay in [stay for stay in self._memories if not stay.live or (stay not in current and not stay.pending)]:
            del self._memories[stay]
        for memory in self._memories.values():
            if memory.forgotten:
                self._meter.add_all(STREAMS_FORGOTTEN, {reason.value: number for reason, number in memory.forgotten.items()})
                memory.forgotten.clear()
        self._meter.set(STREAMS_REMEMBERED, sum(map(len, self._memories.values())))
