"""`Consumer` and `TransactionalProducer` on confluent-kafka (librdkafka): the extra `confluent`, chosen by kafka.client.

librdkafka works on threads of its own and tells what happened only when it is asked: every callback below runs inside a call, on the thread that
calls (but tokens for OAUTHBEARER, and what closing the consumer brings). Two of its habits shape the consumer:

    Records and events stand in one line. Whoever looks for an event (a rebalance) takes a record out when one stands before it; it is kept here.
    To pause a partition throws away what was fetched of it, and after its end nothing comes for a second. So `pause` only stops handing records on,
    and partitions are paused in the client when more than a few fetches are kept.
"""

import concurrent.futures
import contextlib
import functools
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import confluent_kafka as ck
from kafka.errors import KafkaError, RetriableError, for_code

from fifa_stream.cluster import BrokerError
from fifa_stream.config import KafkaSettings, token_provider
from fifa_stream.consume import (
    COMMIT_TIMEOUT_MS,
    REWIND_TIMEOUT_MS,
    TANSU_SESSION_TIMEOUT_MS,
    WATERMARKS_TIMEOUT_MS,
    GroupError,
    Partition,
    Rebalance,
    Watermark,
)
from fifa_stream.oauth import ClientCredentialsTokens, FileTokens, TokenError
from fifa_stream.produce import DeliveryError, Fenced
from fifa_stream.records import OutRecord, RawRecord

logger = logging.getLogger(__name__)
client_logger = logging.getLogger("kafka.librdkafka")
"""Below `kafka`, so that telemetry.kafka_log_level holds for it."""

STATISTICS_EVERY_MS = 60_000
"""With telemetry.kafka_log_level = DEBUG."""
QUEUED_FETCHES = 4
"""How many times kafka.max_partition_fetch_bytes may stand in the client's line: with one, it fetches a quarter as fast."""
KEPT_FETCHES = 4
"""The same for what is kept here before partitions are paused; they resume at half of it."""
MAX_OPTION_BYTES = 1_000_000_000
"""Highest value of librdkafka's options for fetch and message sizes ..."""
MAX_QUEUED_KBYTES = (1 << 21) - 1
"""... and of that for its line."""
UNBOUNDED = (1 << 31) - 1
"""Of librdkafka's own bounds, which count otherwise than kafka.max_unacknowledged_bytes."""
ASK_PLACE_S, ASK_PLACE_EVERY_S = 0.25, 0.5
"""For the answer where partitions begin, and before the next question when there is none."""
FIRST_NAP_S = 0.0005
"""Of a poll while paused; doubled each time. A fast engine is through in a millisecond, and for a slow one the loop need not turn a thousand times a
second."""
REQUEST_TIMEOUT_MS = 30_000
"""As with kafka-python: a connection that has fallen silent is given up after this long."""
CLOSE_TIMEOUT_S = 3.0
WAIT_LONGER_S = 0.5
"""For a timeout of librdkafka to be told as such."""
ANY_PARTITION = -1
"""RD_KAFKA_PARTITION_UA: the key says which."""
TRANSACTION_CALL_S = 5.0
"""For either call of a commit: it takes milliseconds, and one that takes long is better begun again."""

_FENCING = frozenset({ck.KafkaError._FENCED, ck.KafkaError.PRODUCER_FENCED, ck.KafkaError.INVALID_PRODUCER_EPOCH})
_STOPPED = frozenset({ck.KafkaError._AUTO_OFFSET_RESET, ck.KafkaError._LOG_TRUNCATION})
_FORBIDDEN = frozenset({ck.KafkaError.TOPIC_AUTHORIZATION_FAILED, ck.KafkaError.GROUP_AUTHORIZATION_FAILED})


def client_options(kafka: KafkaSettings) -> dict[str, Any]:
    """librdkafka's names for what every client shares: addresses, security, log. Raises TokenError, ConfigError (`KafkaSettings.secret`)."""
    options: dict[str, Any] = {
        "bootstrap.servers": kafka.bootstrap_servers,
        "client.id": "fifa-stream",
        "security.protocol": kafka.security_protocol,
        "ssl.endpoint.identification.algorithm": "https",
        "logger": client_logger,
    }
    for option, path in (("ca", kafka.ssl_cafile), ("certificate", kafka.ssl_certfile), ("key", kafka.ssl_keyfile)):
        if path is not None:
            options[f"ssl.{option}.location"] = str(path)
    if (passphrase := kafka.secret("ssl_password")) is not None:
        options["ssl.key.password"] = passphrase
    if kafka.security_protocol.startswith("SASL"):
        options["sasl.mechanism"] = kafka.sasl_mechanism
        if kafka.sasl_mechanism == "OAUTHBEARER":
            show = functools.partial(_show_token, token_provider(kafka))
            show("")  # told here why there is none: of a callback that fails librdkafka says after ten seconds that it failed
            options["oauth_cb"] = show
        else:
            options |= {"sasl.username": kafka.sasl_username, "sasl.password": kafka.secret("sasl_password")}
    if client_logger.isEnabledFor(logging.DEBUG):
        options |= {"statistics.interval.ms": STATISTICS_EVERY_MS, "stats_cb": lambda text: client_logger.debug("statistics: %s", text)}
    return options


def _show_token(tokens: FileTokens | ClientCredentialsTokens, _: str) -> tuple[str, float]:
    """Called on a thread of librdkafka, when 80 % of the last token's life have passed, and again until there is one."""
    try:
        token = tokens.current()
    except TokenError as error:
        logger.warning("no OAuth token: %s", error)
        raise
    return token.text, token.expires_at


class ConfluentConsumer:
    """`Consumer` on confluent-kafka."""

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        is_tansu: bool,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Nobody is asked yet: the group is joined after `subscribe`. Raises BrokerError for settings that librdkafka refuses, or without a token."""
        session_ms = min(kafka.session_timeout_ms, TANSU_SESSION_TIMEOUT_MS) if is_tansu else kafka.session_timeout_ms
        fetch_bytes = min(kafka.max_partition_fetch_bytes, MAX_OPTION_BYTES)
        options = {
            "group.id": kafka.group_id,
            "enable.auto.commit": False,
            # librdkafka 2.16 resets a partition although the group has an offset for it, when a rebalance meets an open transaction; Tansu has none.
            "auto.offset.reset": "earliest" if is_tansu else "error",
            "isolation.level": "read_committed",
            "partition.assignment.strategy": "range" if is_tansu else "cooperative-sticky",
            "session.timeout.ms": session_ms,
            "heartbeat.interval.ms": min(3_000, max(session_ms // 4, 100)),
            "max.poll.interval.ms": max(kafka.max_poll_interval_ms, session_ms),
            "max.partition.fetch.bytes": fetch_bytes,
            "fetch.max.bytes": fetch_bytes,
            "message.max.bytes": 1_000,  # its lowest: of a consumer it only bounds fetch.max.bytes from below
            "queued.max.messages.kbytes": min(max(1, QUEUED_FETCHES * fetch_bytes >> 10), MAX_QUEUED_KBYTES),
            "fetch.wait.max.ms": 100,  # what has just been assigned waits for the fetch on its way
            "fetch.queue.backoff.ms": 10,  # with the default of a second a full line, once empty, would stay empty for long
            "receive.message.max.bytes": max(100_000_000, fetch_bytes + (1 << 20)),
            "check.crcs": True,
            "socket.timeout.ms": REQUEST_TIMEOUT_MS,
            "error_cb": _log_error,
            "on_commit": self._on_commit,
        }
        if kafka.group_instance_id is not None:
            options["group.instance.id"] = kafka.group_instance_id
        self._client: ck.Consumer = _made(ck.Consumer, kafka, options, BrokerError)
        self._group_id, self._is_tansu = kafka.group_id, is_tansu
        self._clock, self._sleep = clock, sleep
        self._rebalance: Rebalance | None = None
        self._joined = False
        self._is_paused = False
        self._nap_s = FIRST_NAP_S
        self._kept: deque[Any] = deque()
        """Messages that came while events were looked for, in order; what stands in the client's line comes after them."""
        self._kept_bytes = 0
        self._max_kept = KEPT_FETCHES * fetch_bytes
        self._is_full = False
        """Partitions are paused in the client."""
        self._placeless: set[Partition] = set()
        """Of which the client does not know where to begin."""
        self._ask_again_at = 0.0
        self._begins: dict[Partition, int] = {}
        """Committed offsets of partitions that have given no record yet: of those librdkafka does not know the position."""

    @property
    def joined(self) -> bool:
        """An assignment, if only of no partitions, has come and was not lost."""
        return self._joined

    def subscribe(self, topic: str, rebalance: Rebalance) -> None:
        """Join in the background."""
        logger.info("joining: group=%s topic=%s", self._group_id, topic)
        self._rebalance = rebalance
        self._client.subscribe([topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def poll(self, *, max_records: int, timeout_s: float) -> list[RawRecord]:
        """Records in order within each partition. Raises kafka.errors.KafkaError when the group or the topic is forbidden."""
        if self._placeless:
            self._place()
        if self._is_paused:
            if not self._is_full:  # with records at hand the client would not wait
                self._sleep(min(self._nap_s, timeout_s))
                self._nap_s *= 2
                timeout_s = 0.0
            self._keep(self._next(timeout_s))
            return []
        self._resume_client()
        if self._kept:
            self._keep(self._next(0.0))  # only for its events
            messages = [self._kept.popleft() for _ in range(min(max_records, len(self._kept)))]
            self._kept_bytes -= sum(map(len, messages))
        else:
            messages = self._at_hand(max_records)
            if not messages and (first := self._next(timeout_s)) is not None:
                messages = [first, *self._at_hand(max_records)]
        return [raw_record(message) for message in messages if message.error() is None or self._report(message)]

    def _next(self, timeout_s: float) -> Any:
        try:
            return self._client.poll(timeout_s)
        except ck.KafkaException as error:  # a fatal one
            raise as_kafka_error(error.args[0]) from None

    def _at_hand(self, max_records: int) -> list[Any]:
        try:
            return self._client.consume(max_records, 0.0)  # with a timeout it would wait until all of max_records have come
        except ck.KafkaException as error:
            raise as_kafka_error(error.args[0]) from None

    def _keep(self, message: Any) -> None:
        if message is None or (message.error() is not None and not self._report(message)):
            return
        self._kept.append(message)
        self._kept_bytes += len(message)
        if self._kept_bytes >= self._max_kept:
            self._client.pause(self._client.assignment())
            self._is_full = True

    def _resume_client(self) -> None:
        if self._is_full and self._kept_bytes <= self._max_kept // 2:
            self._client.resume(self._client.assignment())
            self._is_full = False

    def _forget(self, partitions: Iterable[Partition]) -> None:
        """Drop what is kept of them: it is fetched again, by us or by others."""
        gone = set(partitions)
        for partition in gone:
            self._begins.pop(partition, None)
        self._kept = deque(message for message in self._kept if (message.topic(), message.partition()) not in gone)
        self._kept_bytes = sum(map(len, self._kept))

    def _give_up(self, partitions: Iterable[Partition]) -> None:
        self._forget(partitions)
        self._placeless.difference_update(partitions)

    def _report(self, message: Any) -> bool:
        """What stands in the line instead of a record. Returns False: there is no record."""
        error = message.error()
        if error.fatal() or error.code() in _FORBIDDEN:
            raise as_kafka_error(error)
        client_logger.warning("%s", error)
        if error.code() in _STOPPED:
            self._placeless.add((message.topic(), message.partition()))
        elif not self._is_tansu:  # it may be that the client has given up asking where these begin
            self._placeless |= {(at.topic, at.partition) for at in self._client.position(self._client.assignment()) if at.offset < 0}
        return False

    def _place(self) -> None:
        """Ask the group where these begin, and begin there. Offsets in an open transaction are no answer (KIP-447): asked again soon."""
        if self._clock() < self._ask_again_at:
            return
        self._placeless &= set(_names(self._client.assignment()))
        with contextlib.suppress(ck.KafkaException):  # asked again
            for at in self._client.committed([ck.TopicPartition(*partition) for partition in self._placeless], timeout=ASK_PLACE_S):
                if at.error is None:
                    begin = ck.TopicPartition(at.topic, at.partition, self._begin(at))
                    self._client.incremental_unassign([begin])  # a partition that does not know its place does not know how to seek
                    self._client.incremental_assign([begin])
                    self._placeless.discard((at.topic, at.partition))
        if self._placeless:
            self._ask_again_at = self._clock() + ASK_PLACE_EVERY_S

    def _begin(self, committed: ck.TopicPartition) -> int:
        """Where nothing is committed, and where it is not in the log, at the log's start."""
        if committed.offset < 0:
            return int(ck.OFFSET_BEGINNING)
        low, high = self._client.get_watermark_offsets(committed, timeout=ASK_PLACE_S)
        if low <= committed.offset <= high:
            return committed.offset
        logger.warning(
            "the log of %s/%d does not hold the committed offset %d: beginning at %d", committed.topic, committed.partition, committed.offset, low
        )
        return low

    def pause(self) -> None:
        """Hand nothing on. The client goes on fetching until what is kept is too much."""
        self._is_paused, self._nap_s = True, FIRST_NAP_S

    def resume(self) -> None:
        """Hand on again, first what is kept."""
        self._is_paused = False

    def commit(self, positions: Mapping[Partition, int]) -> bool:
        """Commit, and ask what is committed, up to `COMMIT_TIMEOUT_MS`: the client's own waiting commit has no limit, and the answer to one that does
        not wait stands in line behind all records. Raises kafka.errors.KafkaError when the group is forbidden."""
        if self.member() is None:  # a broker would answer a static member without an id by telling it to stop for good
            logger.warning("commit not sent, the group has put this member out: group=%s", self._group_id)
            return False
        try:
            self._client.commit(offsets=_partitions(positions), asynchronous=True)
            found = self._client.committed([ck.TopicPartition(*partition) for partition in positions], timeout=COMMIT_TIMEOUT_MS / 1000)
        except ck.KafkaException as error:
            cause = as_kafka_error(error.args[0])
            if not isinstance(cause, RetriableError):
                raise cause from None
            logger.warning("commit not accepted, trying again at the next interval: group=%s error=%s", self._group_id, cause)
            return False
        return {(at.topic, at.partition): at.offset for at in found if at.error is None} == dict(positions)

    def _on_commit(self, error: ck.KafkaError | None, partitions: list[ck.TopicPartition]) -> None:
        """Why a commit was not accepted, some time later."""
        error = error or next((at.error for at in partitions if at.error is not None), None)
        if error is not None and error.code() != ck.KafkaError._NO_OFFSET:
            logger.warning("commit not accepted, the next one covers it: group=%s error=%s", self._group_id, as_kafka_error(error))

    def member(self) -> object:
        """Group, member and generation as librdkafka knows them now; None while it has been put out and has not joined again.

        librdkafka forgets its identity some time before it tells of the loss, and a broker takes offsets in a transaction from a member without one.
        """
        metadata: bytes = self._client.consumer_group_metadata()
        return metadata if _is_member(metadata) else None

    def rewind(self, begins: Mapping[Partition, int]) -> None:
        """Ask the group and seek. Offsets of an open transaction are waited for (KIP-447)."""
        # What was given up meanwhile begins with its next owner, and what has no place yet will begin there by itself.
        ours = begins.keys() & set(_names(self._client.assignment())) - self._placeless
        self._forget(begins)
        if not ours:
            return
        try:
            found = self._client.committed([ck.TopicPartition(*partition) for partition in ours], timeout=REWIND_TIMEOUT_MS / 1000)
        except ck.KafkaException as error:
            raise GroupError(f"the committed offsets of {sorted(begins)} cannot be read: {_text(error)}") from None
        for committed in found:
            where = (committed.topic, committed.partition)
            if committed.error is not None:
                raise GroupError(f"the committed offset of {where} cannot be read: {committed.error.name()}: {committed.error.str()}")
            offset = committed.offset if committed.offset >= 0 else begins[where]
            try:
                self._client.seek(ck.TopicPartition(*where, offset))
            except ck.KafkaException as error:
                raise GroupError(f"{where} cannot go back to offset {offset}: {_text(error)}") from None

    def watermarks(self) -> dict[Partition, Watermark]:
        """Of partitions that gave a record or have a committed offset. While nothing is fetched the broker is asked for the end."""
        try:
            positions = {(at.topic, at.partition): at.offset for at in self._client.position(self._client.assignment())}
            positions |= self._committed_of([partition for partition, offset in positions.items() if offset < 0])
            for message in reversed(self._kept):
                positions[message.topic(), message.partition()] = message.offset()
            ends = self._ends(positions)
        except ck.KafkaException:
            return {}
        return {
            partition: Watermark(position, ends[partition])
            for partition, position in positions.items()
            if position >= 0 and ends.get(partition, -1) >= position
        }

    def _committed_of(self, partitions: list[Partition]) -> dict[Partition, int]:
        if unknown := [ck.TopicPartition(*partition) for partition in partitions if partition not in self._begins]:
            found = self._client.committed(unknown, timeout=WATERMARKS_TIMEOUT_MS / 1000)
            self._begins |= {(at.topic, at.partition): at.offset for at in found if at.error is None}
        return {partition: self._begins[partition] for partition in partitions if partition in self._begins}

    def _ends(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        if not self._is_paused or self._is_tansu:  # Tansu would answer wrongly
            return {partition: self._client.get_watermark_offsets(ck.TopicPartition(*partition), cached=True)[1] for partition in partitions}
        asked = [ck.TopicPartition(*partition, ck.OFFSET_END) for partition in partitions]
        found = self._client.offsets_for_times(asked, timeout=WATERMARKS_TIMEOUT_MS / 1000)
        return {(at.topic, at.partition): at.offset for at in found if at.error is None}

    def close(self) -> None:
        """Leave the group; partitions are revoked on the way, on a thread that is left behind with a broker that does not answer."""
        # librdkafka waits for the answer to every commit, which takes as long as the broker is silent.
        leaving = threading.Thread(target=self._client.close, name="leaving", daemon=True)
        leaving.start()
        leaving.join(CLOSE_TIMEOUT_S)
        if leaving.is_alive():
            logger.warning("consumer closed without the broker: group=%s", self._group_id)

    # librdkafka calls these inside the methods above. It gives partitions up when they return, and assigns those that were not.

    def _on_assign(self, client: object, assigned: list[ck.TopicPartition]) -> None:
        partitions = _names(assigned)
        logger.info("partitions assigned: %s", partitions)
        self._joined = True
        if not self._is_tansu:
            self._client.incremental_assign(self._begun(partitions))
        self._told.assigned(partitions)

    def _begun(self, partitions: Sequence[Partition]) -> list[ck.TopicPartition]:
        """Where they begin, as far as the group knows at once; of the others the client asks, and then we do."""
        begins: dict[Partition, int] = {}
        with contextlib.suppress(ck.KafkaException):
            for at in self._client.committed([ck.TopicPartition(*partition) for partition in partitions], timeout=ASK_PLACE_S) if partitions else ():
                if at.error is None:
                    begins[at.topic, at.partition] = at.offset if at.offset >= 0 else ck.OFFSET_BEGINNING
        return [ck.TopicPartition(*partition, begins.get(partition, ck.OFFSET_STORED)) for partition in partitions]

    def _on_revoke(self, client: object, revoked: list[ck.TopicPartition]) -> None:
        partitions = _names(revoked)
        logger.info("partitions revoked: %s", partitions)
        self._give_up(partitions)
        if (positions := self._told.revoked(partitions)) and self.member() is not None:
            with contextlib.suppress(ck.KafkaException):  # then they are answered again
                self._client.commit(offsets=_partitions(positions), asynchronous=True)  # sent before the partitions are given up

    def _on_lost(self, client: object, lost: list[ck.TopicPartition]) -> None:
        partitions = _names(lost)
        logger.warning("partitions lost, their unfinished records go to another member: %s", partitions)
        self._joined = False
        self._give_up(partitions)
        self._told.lost(partitions)

    @property
    def _told(self) -> Rebalance:
        assert self._rebalance is not None, "not subscribed"
        return self._rebalance


class ConfluentProducer:
    """`TransactionalProducer` on confluent-kafka: idempotent, acknowledged by all in-sync replicas. Without an id it has no transactions."""

    def __init__(self, kafka: KafkaSettings, *, transactional_id: str | None = None) -> None:
        """With an id: ends what an earlier producer of that id left open. Raises DeliveryError when the broker does not answer."""
        self._is_named = kafka.transactional_id is not None
        self._max_bytes = kafka.max_unacknowledged_bytes
        self._call_timeout_s = min(TRANSACTION_CALL_S, 0.4 * kafka.call_timeout_ms / 1000)  # less than the watchdog allows for both
        self._bytes = 0
        self._answers: deque[tuple[_Sent, ck.KafkaError | None]] = deque()
        """Filled by the client inside `poll` and `flush`, emptied in `poll`."""
        self._is_open = False
        self._is_closed = False
        options = {
            "enable.idempotence": True,  # and with it: acks of all replicas, order kept over retries
            "linger.ms": 5,
            "partitioner": "murmur2_random",  # kafka-python's and Java's: a stream keeps its partition whichever client writes
            "compression.type": kafka.compression,
            "message.max.bytes": min(kafka.max_request_bytes, MAX_OPTION_BYTES),
            "message.timeout.ms": kafka.delivery_timeout_ms,
            "queue.buffering.max.messages": 0,
            "queue.buffering.max.kbytes": UNBOUNDED,
            "error_cb": _log_error,
        }
        if transactional_id is None:
            options["socket.timeout.ms"] = min(REQUEST_TIMEOUT_MS, kafka.delivery_timeout_ms)
        else:
            options |= {
                "transactional.id": transactional_id,
                "transaction.timeout.ms": kafka.transaction_timeout_ms,
                "message.timeout.ms": min(kafka.delivery_timeout_ms, kafka.transaction_timeout_ms),
            }
        self._client: ck.Producer = _made(ck.Producer, kafka, options, DeliveryError)
        if transactional_id is not None:
            try:
                _within(kafka.bootstrap_timeout_ms / 1000, self._client.init_transactions)
            except (ck.KafkaException, TimeoutError) as error:
                self.close(0.0)
                raise DeliveryError(f"transactional id {transactional_id!r} cannot be used: {_text(error)}") from None

    @property
    def has_room(self) -> bool:
        """True while unacknowledged bytes are below the bound; one record may pass it."""
        return self._bytes < self._max_bytes

    def send(self, topic: str, record: OutRecord, *, answers: RawRecord, on_delivery: Callable[[], None], partition: int | None = None) -> None:
        """Hand over; never waits."""
        size = len(record.value or b"")
        sent, answered = (topic, answers, size, on_delivery), self._answers.append
        number = ANY_PARTITION if partition is None else partition
        try:
            self._client.produce(
                topic, record.value, record.key, number, on_delivery=lambda error, _: answered((sent, error)), headers=list(record.headers)
            )
        except ck.KafkaException as error:
            raise self._failure(sent, error.args[0]) from None
        self._bytes += size

    def poll(self) -> None:
        """Take in the answers that have come. Raises Fenced too."""
        try:
            self._client.poll(0.0)
        except ck.KafkaException as error:  # a fatal one: no delivery is reported any more
            raise self._classified(error.args[0], f"the producer has failed: {_text(error)}") from None
        while self._answers:
            sent, failure = self._answers.popleft()
            self._bytes -= sent[2]
            if failure is not None:
                raise self._failure(sent, failure)
            sent[3]()

    def begin(self) -> None:
        """Open a transaction; nothing is sent yet."""
        try:
            self._client.begin_transaction()
        except ck.KafkaException as error:
            raise self._classified(error.args[0], f"no transaction can be opened: {_text(error)}") from None
        self._is_open = True

    def flush(self, timeout_s: float) -> bool:
        """Wait for the acknowledgements; what they run comes with `poll`. Raises DeliveryError, Fenced."""
        try:
            return self._client.flush(timeout_s) == 0
        except ck.KafkaException as error:
            raise self._classified(error.args[0], f"the producer has failed: {_text(error)}") from None

    def commit(self, positions: Mapping[Partition, int], member: object) -> None:
        """Two calls of at most `TRANSACTION_CALL_S` each. After one that took longer the outcome is unknown: what is committed, the broker says."""
        if positions and member is None:
            raise DeliveryError("a transaction was not committed: the group has put this member out, and its records go to another")
        try:
            if positions:
                _within(self._call_timeout_s, functools.partial(self._client.send_offsets_to_transaction, _partitions(positions), member))
            _within(self._call_timeout_s, self._client.commit_transaction)
        except TimeoutError as error:
            raise DeliveryError(f"a transaction was not committed: {error}") from None
        except ck.KafkaException as error:
            raise self._classified(error.args[0], f"a transaction was not committed: {_text(error)}") from None
        self._is_open = False

    def close(self, timeout_s: float) -> None:
        """End within the time what is open, and forget the rest: it was never committed."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._is_open and timeout_s:
                _within(timeout_s, self._client.abort_transaction)  # else readers wait until the broker does it
            else:
                self._client.flush(timeout_s)
            self._client.purge()
            self._client.poll(0.0)
        except (ck.KafkaException, TimeoutError) as error:
            logger.warning("producer closed without the broker: %s", _text(error))
        # It ends now, whoever still holds this object: one that lives on asks for its transactional id again, and so takes it from the next.
        del self._client

    def _failure(self, sent: "_Sent", error: ck.KafkaError) -> Exception:
        topic, raw, *_ = sent
        return self._classified(
            error,
            f"the answer to {raw.place} was not delivered to {topic}: {error.name()}: {error.str()}; "
            "its offset stays uncommitted, so it is answered again",
        )

    def _classified(self, error: ck.KafkaError, message: str) -> Exception:
        code = error.code()
        if code == ck.KafkaError._FATAL:  # of this the cause is told once, by `poll`
            try:
                self._client.poll(0.0)
            except ck.KafkaException as told:
                code, message = told.args[0].code(), f"{message}: {_text(told)}"
        if self._is_named and code in _FENCING:
            return Fenced(f"{message}; another process uses kafka.transactional_id, or this one was silent beyond transaction_timeout_ms")
        return DeliveryError(message)


_Sent = tuple[str, RawRecord, int, Callable[[], None]]
"""Topic, what it answers, bytes, what its delivery runs."""


def _made(client: Callable[[dict[str, Any]], Any], kafka: KafkaSettings, options: dict[str, Any], failure: type[Exception]) -> Any:
    try:
        return client(client_options(kafka) | options)
    except TokenError as error:
        raise failure(str(error)) from None
    except ck.KafkaException as error:
        raise failure(f"librdkafka refuses the settings: {_text(error)}; check the kafka.* settings") from None


def raw_record(message: Any) -> RawRecord:
    """A message of confluent-kafka as ours."""
    try:
        headers = message.headers()
    except (SystemError, UnicodeDecodeError):
        place = f"{message.topic()}/{message.partition()}/{message.offset()}"
        raise KafkaError(
            f"{place} has a header whose name is not UTF-8, which confluent-kafka cannot read; set kafka.client to kafka-python until it is answered"
        ) from None
    return RawRecord(
        message.topic(),
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        tuple([(name, data or b"") for name, data in headers]) if headers else (),  # a header's value may be null on the wire
    )


def as_kafka_error(error: ck.KafkaError) -> KafkaError:
    """The broker's errors as kafka-python names them, librdkafka's own as passing ones unless they are fatal."""
    text = f"{error.name()}: {error.str()}"
    if error.code() > 0:
        found: KafkaError = for_code(error.code())(text)
        return found
    return KafkaError(text) if error.fatal() else RetriableError(text)


def _is_member(metadata: bytes) -> bool:
    """Whether this names a member at a generation. The bytes are librdkafka's own: b"CGMDv2:", int32 generation, group, NUL, member, NUL, ..."""
    generation, names = metadata[7:11], metadata[11:].split(b"\0")
    return metadata.startswith(b"CGMDv2:") and int.from_bytes(generation, sys.byteorder, signed=True) >= 0 and names[1] != b""


def _partitions(positions: Mapping[Partition, int]) -> list[ck.TopicPartition]:
    return [ck.TopicPartition(topic, number, offset) for (topic, number), offset in positions.items()]


def _names(partitions: Iterable[ck.TopicPartition]) -> list[Partition]:
    return sorted((partition.topic, partition.partition) for partition in partitions)


def _log_error(error: ck.KafkaError) -> None:
    client_logger.warning("%s: %s", error.name(), error.str())


def _within(seconds: float, call: Callable[[float], object]) -> None:
    """Call with a timeout that holds: librdkafka 2.16 does not look at that of send_offsets_to_transaction (its issue 5456), and waits for ever when
    a connection is cut at the wrong moment. Raises KafkaException, and TimeoutError, leaving a thread behind that ends when the id is taken over."""
    outcome = concurrent.futures.Future[None]()

    def run() -> None:
        try:
            call(seconds)
        except BaseException as error:  # carried to the caller
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    threading.Thread(target=run, name="transaction", daemon=True).start()
    try:
        outcome.result(seconds + WAIT_LONGER_S)
    except TimeoutError:
        raise TimeoutError(f"librdkafka did not return within {seconds:g} s") from None


def _text(error: Exception) -> str:
    cause = error.args[0]
    return f"{cause.name()}: {cause.str().strip()}" if isinstance(cause, ck.KafkaError) else str(cause)
