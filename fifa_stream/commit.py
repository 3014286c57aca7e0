"""How answers and offsets become durable: the two guarantees.

    AtLeastOnce   answers first; once they are acknowledged, offsets by a commit of the group. A crash in between repeats answers.
    Checkpoints   the same where streams are remembered: behind the answers goes what was remembered there, and no later offset is committed.
    ExactlyOnce   answers, what is remembered and offsets in one Kafka transaction, which the broker refuses when the group has moved on (KIP-447).

All end a failure in the same way: `restart` throws the producer away, forgets everything in flight and goes back to what the broker says is
committed.
Nothing is ever resent by an old producer, whose state after a failed delivery cannot be trusted (kafka-python 3.0.12 falls silent for ever).
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Protocol, cast

from fifa_stream.consume import Consumer, GroupError
from fifa_stream.offsets import Assignment, OffsetTracker, Partition, Ticket
from fifa_stream.produce import DeliveryError, Fenced, Producer, TransactionalProducer
from fifa_stream.records import OutRecord, RawRecord
from fifa_stream.watchdog import Watchdog

logger = logging.getLogger(__name__)

FLUSH_S = 0.25
"""What a commit waits for acknowledgements before the loop turns again."""
REVOKE_FLUSH_S = 2.0
"""The same while partitions are given up: the client's thread sends no heartbeat meanwhile."""


class Committed(Enum):
    """What became of a commit."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    """By the group, for now: the next commit covers it."""
    NOT_YET = "not yet"
    """Acknowledgements are missing, and with exactly_once no answer is taken until they have come: call again soon."""
    NOTHING = "nothing"
    """To commit."""


class Snapshots(Protocol):
    """What is remembered along the records of a partition."""

    topic: str
    """Where it goes: to the partition with the same number."""

    def take(self, stay: Assignment) -> Sequence[OutRecord]:
        """What changed since the last call, as it is behind the last record whose answer was sent."""
        ...


class Committer(Protocol):
    """Sends answers and commits the offsets of their records. The loop's thread owns it; `revoked` and `lost` come on the client's."""

    @property
    def lock(self) -> AbstractContextManager[object] | None:
        """Held around several calls, it keeps partitions from going, and what was sent from being acknowledged, in between. None: that is done on the
        loop's thread, or nothing is to be done then."""
        ...

    @property
    def is_pressed(self) -> bool:
        """Whether something is open that the broker ends by itself if it is not committed soon."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether `send` may be called."""
        ...

    def send(self, topic: str, record: OutRecord, *, ticket: Ticket, on_delivery: Callable[[], None]) -> bool:
        """Hand an answer over; `on_delivery` runs inside a later call. False: the record is no longer ours to answer. Raises DeliveryError."""
        ...

    def poll(self) -> None:
        """Run what was acknowledged. Raises DeliveryError."""
        ...

    def commit(self) -> Committed:
        """Commit what is answered. Raises DeliveryError, Fenced."""
        ...

    def revoked(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        """Stop tracking; return what the group may still commit."""
        ...

    def lost(self, partitions: Iterable[Partition]) -> None:
        """Stop tracking what has gone already."""
        ...

    def restart(self) -> None:
        """Begin again at what is committed, with a new producer. Raises DeliveryError when the broker does not let us."""
        ...

    def close(self, timeout_s: float) -> None:
        """Disconnect the producer."""
        ...


class _Common:
    """The producer and its replacement."""

    def __init__(
        self, offsets: OffsetTracker, consumer: Consumer, open_producer: Callable[[], Producer], *, watchdog: Watchdog, call_timeout_s: float
    ) -> None:
        self._offsets = offsets
        self._consumer = consumer
        self._open_producer = open_producer
        self._watchdog = watchdog
        self._call_timeout_s = call_timeout_s
        self._producer = open_producer()
        self._begins: dict[Partition, int] = {}
        """Where partitions are to go back to. Kept until they have: a restart that fails is tried again, and by then the tracker knows of nothing."""

    def _forget_what_is_in_flight(self) -> None:
        self._begins |= self._offsets.restart()

    def _replace_producer(self) -> None:
        with self._watchdog.limit("the replacement of the producer", self._call_timeout_s):
            self._producer.close(timeout_s=0.0)
            self._producer = self._open_producer()

    def _rewind(self) -> None:
        try:
            with self._watchdog.limit("the return to the committed offsets", self._call_timeout_s):
                self._consumer.rewind(self._begins)
        except GroupError as error:
            raise DeliveryError(str(error)) from None
        self._begins = {}

    def close(self, timeout_s: float) -> None:
        """Disconnect; what is not acknowledged was not committed."""
        self._producer.close(timeout_s=timeout_s)


class AtLeastOnce(_Common):
    """`Committer` by commits of the group."""

    lock = None
    is_pressed = False

    @property
    def has_room(self) -> bool:
        """The producer's bound in bytes."""
        return self._producer.has_room

    def send(self, topic: str, record: OutRecord, *, ticket: Ticket, on_delivery: Callable[[], None]) -> bool:
        """Hand over unless the partition has gone."""
        if not ticket.live:
            return False
        self._producer.send(topic, record, answers=ticket.record, on_delivery=on_delivery)
        return True

    def poll(self) -> None:
        """Acknowledgements advance the watermark."""
        self._producer.poll()

    def commit(self) -> Committed:
        """Offsets of what is acknowledged."""
        if not (positions := self._offsets.to_commit()):
            return Committed.NOTHING
        with self._watchdog.limit("a commit of offsets", self._call_timeout_s):
            accepted = self._consumer.commit(positions)
        if not accepted:
            return Committed.REFUSED
        self._offsets.committed(positions)
        return Committed.ACCEPTED

    def revoked(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        """What is finished is committed with the partitions' going."""
        return self._offsets.revoke(partitions)

    def lost(self, partitions: Iterable[Partition]) -> None:
        """Nothing can be committed."""
        self._offsets.revoke(partitions)

    def restart(self) -> None:
        """New producer, old offsets."""
        self._forget_what_is_in_flight()
        self._replace_producer()
        self._rewind()


class _Locked(_Common):
    """Answers, what is remembered and partitions that go have one order: that of the lock. What fails on the client's thread, the loop hears of."""

    def __init__(
        self,
        offsets: OffsetTracker,
        consumer: Consumer,
        open_producer: Callable[[], Producer],
        *,
        watchdog: Watchdog,
        call_timeout_s: float,
        snapshots: Snapshots | None,
    ) -> None:
        super().__init__(offsets, consumer, open_producer, watchdog=watchdog, call_timeout_s=call_timeout_s)
        self.lock = threading.RLock()
        self._snapshots = snapshots
        self._spoiled: DeliveryError | Fenced | None = None
        """Why nothing more may be committed before a restart."""

    def poll(self) -> None:
        """Take in acknowledgements."""
        with self.lock:
            self._refuse_spoiled()
            self._producer.poll()

    def restart(self) -> None:
        """New producer, whose first act ends an open transaction of the old one; only then the committed offsets are the truth."""
        with self.lock:
            self._forget_what_is_in_flight()
            self._forget_what_is_open()
            self._replace_producer()
            self._spoiled = None
        self._rewind()

    def _forget_what_is_open(self) -> None:
        """A checkpoint or a transaction: before the producer goes, for partitions that go meanwhile would ask it."""
        raise NotImplementedError

    def _refuse_spoiled(self) -> None:
        if self._spoiled is not None:
            raise self._spoiled

    def _send_snapshots(self, partition: Partition, stay: Assignment, offset: int, on_delivery: Callable[[], None]) -> int:
        """What is remembered of a stay behind the record before `offset`; returns how many records that is."""
        if self._snapshots is None:
            return 0
        topic, number = partition
        named = RawRecord(topic, number, offset - 1, 0, None, None, ())
        records = self._snapshots.take(stay)
        for record in records:
            self._producer.send(self._snapshots.topic, record, answers=named, on_delivery=on_delivery, partition=number)
        return len(records)


class Checkpoints(_Locked):
    """`Committer` by commits of the group, each of exactly what snapshots stand for.

    A checkpoint is, for each partition, the offset behind the last answer that was sent when it began, and what is remembered there. Answers of a
    partition are sent in the order of its records (`offsets.InOrder`), so that offset and that memory belong together. Once the answers below it and
    its snapshots are acknowledged it is whole, and its offsets are committed: they, and no later ones, however many answers were acknowledged since.
    One that is not whole is never committed, and the next does not begin before. What a crash repeats is therefore told by the same memory again.

    Partitions that go take a last checkpoint along, on the client's thread, if that is quick. The lock makes answers, memory and checkpoints one
    order. Under it nothing waits for the consumer's thread.
    """

    is_pressed = False

    def __init__(
        self,
        offsets: OffsetTracker,
        consumer: Consumer,
        open_producer: Callable[[], Producer],
        *,
        watchdog: Watchdog,
        call_timeout_s: float,
        snapshots: Snapshots,
    ) -> None:
        super().__init__(offsets, consumer, open_producer, watchdog=watchdog, call_timeout_s=call_timeout_s, snapshots=snapshots)
        self._sent: dict[Assignment, int] = {}
        """Of stays with answers since their last checkpoint: the offset behind the last."""
        self._open: dict[Assignment, int] = {}
        """The checkpoint that is not whole yet."""
        self._whole: dict[Assignment, int] = {}
        """Those that are, and not committed."""
        self._num_missing = 0
        """Snapshots of the open one that are not acknowledged."""

    @property
    def has_room(self) -> bool:
        """The producer's bound in bytes."""
        return self._producer.has_room

    def send(self, topic: str, record: OutRecord, *, ticket: Ticket, on_delivery: Callable[[], None]) -> bool:
        """Hand over unless the partition has gone."""
        with self.lock:
            self._refuse_spoiled()
            if not ticket.live:
                return False
            self._producer.send(topic, record, answers=ticket.record, on_delivery=on_delivery)
            self._sent[ticket.assignment] = ticket.record.offset + 1
            return True

    def commit(self) -> Committed:
        """Begin a checkpoint, or commit the one that has become whole."""
        with self.lock:
            self._refuse_spoiled()
            if not self._whole:
                if not self._open:
                    self._begin()
                if not self._is_whole():
                    return Committed.NOT_YET
            self._whole = {stay: offset for stay, offset in self._whole.items() if stay.live}
            positions = {partition: self._whole[stay] for partition, stay in self._offsets.stays().items() if stay in self._whole}
            if not positions:
                self._whole = {}  # of a log that went back
                return Committed.NOTHING
            committed = dict(self._whole)
        # Outside the lock: it may wait for the client's thread, which may wait for the lock in `revoked`.
        with self._watchdog.limit("a commit of offsets", self._call_timeout_s):
            accepted = self._consumer.commit(positions)
        if not accepted:
            return Committed.REFUSED
        with self.lock:
            self._offsets.committed(positions)
            # What has become whole meanwhile, because partitions went, is left for the next time.
            self._whole = {stay: offset for stay, offset in self._whole.items() if committed.get(stay) != offset}
        return Committed.ACCEPTED

    def _begin(self) -> None:
        for partition, stay in self._offsets.stays().items():
            if (offset := self._sent.get(stay)) is not None:
                self._open[stay] = offset
                self._num_missing += self._send_snapshots(partition, stay, offset, self._delivered)
        self._sent = {}

    def _delivered(self) -> None:
        self._num_missing -= 1

    def _is_whole(self) -> bool:
        """Whether nothing of the open checkpoint is missing; it is then no longer open."""
        if self._num_missing or not all(self._offsets.reached(stay, offset) for stay, offset in self._open.items() if stay.live):
            return False
        self._whole |= self._open
        self._open = {}
        return True

    def revoked(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        """A last checkpoint, where its acknowledgements come soon; else the last one that is whole, and the rest is answered again."""
        partitions = tuple(partitions)
        with self.lock:
            try:
                with self._watchdog.limit("a checkpoint before partitions go", self._call_timeout_s):
                    self._complete()
            except DeliveryError as error:
                self._spoiled = error
            stays = self._offsets.stays()
            positions = {partition: offset for partition in partitions if (offset := self._whole.get(stays.get(partition, _NONE))) is not None}
            self._offsets.revoke(partitions)
            return positions

    def _complete(self) -> None:
        """The open checkpoint, and then one of what was answered since."""
        self._refuse_spoiled()
        for _ in range(2):
            if not self._open:
                self._begin()
            if not self._open or not self._producer.flush(REVOKE_FLUSH_S):
                return
            self._producer.poll()
            if not self._is_whole():
                return

    def lost(self, partitions: Iterable[Partition]) -> None:
        """Nothing can be committed."""
        with self.lock:
            self._offsets.revoke(partitions)

    def _forget_what_is_open(self) -> None:
        self._sent, self._open, self._whole, self._num_missing = {}, {}, {}, 0


_NONE = Assignment()


class ExactlyOnce(_Locked):
    """`Committer` by transactions.

    A transaction opens with its first answer. Answers of a partition are sent in the order of its records (`offsets.InOrder`), so once all are
    acknowledged the watermark lies right behind them: the transaction commits exactly the offsets that it answers.

    Partitions that go take their answers along: the transaction is committed before they do, on the client's thread, or else it is never committed.
    What streams are remembered by goes into the same transaction before it ends: everything answered is in order, so it is what is remembered at
    exactly the offsets that are committed.

    The lock makes "these partitions are ours" and "this is in the transaction" one fact. Under it nothing waits for the consumer's thread.
    """

    def __init__(
        self,
        offsets: OffsetTracker,
        consumer: Consumer,
        open_producer: Callable[[], Producer],
        *,
        watchdog: Watchdog,
        call_timeout_s: float,
        snapshots: Snapshots | None = None,
    ) -> None:
        super().__init__(offsets, consumer, open_producer, watchdog=watchdog, call_timeout_s=call_timeout_s, snapshots=snapshots)
        self._is_open = False
        self._is_sealed = False
        """Due to be committed: takes no further answer."""
        self._times_back = 0

    @property
    def _transactions(self) -> TransactionalProducer:
        return cast(TransactionalProducer, self._producer)

    @property
    def is_pressed(self) -> bool:
        """The broker aborts a transaction after kafka.transaction_timeout_ms."""
        return self._is_open

    @property
    def has_room(self) -> bool:
        """Not between the end of one transaction and the begin of the next."""
        return not self._is_sealed and self._producer.has_room

    def send(self, topic: str, record: OutRecord, *, ticket: Ticket, on_delivery: Callable[[], None]) -> bool:
        """Into the open transaction, or a new one."""
        with self.lock:
            self._refuse_spoiled()
            if not ticket.live:
                return False
            if not self._is_open:
                self._transactions.begin()
                self._is_open, self._times_back = True, self._offsets.num_times_back
            self._producer.send(topic, record, answers=ticket.record, on_delivery=on_delivery)
            return True

    def commit(self) -> Committed:
        """Answers and offsets at once."""
        member = self._consumer.member()  # before the lock: it may wait for the client's thread, which may wait for the lock in `revoked`
        with self.lock:
            self._refuse_spoiled()
            if not self._is_open:
                return Committed.NOTHING
            self._seal()
            with self._watchdog.limit("the commit of a transaction", self._call_timeout_s):
                if not self._transactions.flush(FLUSH_S):
                    return Committed.NOT_YET
                self._producer.poll()
                self._finish(member)
            return Committed.ACCEPTED

    def _seal(self) -> None:
        if self._is_sealed:
            return
        self._is_sealed = True
        for partition, stay in self._offsets.stays().items():
            self._send_snapshots(partition, stay, stay.position, _nothing)

    def _finish(self, member: object) -> None:
        if self._offsets.num_times_back != self._times_back:
            raise DeliveryError("a partition delivered records again while their answers were in an open transaction")
        positions = self._offsets.to_commit()
        self._transactions.commit(positions, member)
        self._offsets.committed(positions)
        self._is_open = self._is_sealed = False

    def revoked(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        """Commit what is open before the partitions go, or spoil it. The group itself has nothing to commit."""
        with self.lock:
            if self._is_open and self._spoiled is None:
                try:
                    with self._watchdog.limit("the commit of a transaction before partitions go", self._call_timeout_s):
                        self._seal()
                        if not self._transactions.flush(REVOKE_FLUSH_S):
                            raise DeliveryError("answers were not acknowledged before their partitions went to another member")
                        self._producer.poll()
                        self._finish(self._consumer.member())
                except (DeliveryError, Fenced) as error:
                    self._spoiled = error
            self._offsets.revoke(partitions)
            return {}

    def lost(self, partitions: Iterable[Partition]) -> None:
        """An open transaction may hold answers that another member gives as well."""
        with self.lock:
            self._offsets.revoke(partitions)
            if self._is_open and self._spoiled is None:
                self._spoiled = DeliveryError("partitions were lost while their answers were in an open transaction")

    def _forget_what_is_open(self) -> None:
        self._is_open = self._is_sealed = False


def _nothing() -> None:
    """A transaction ends only when all that it holds is acknowledged."""
