"""The loop: records in, verdicts out, offsets committed only after delivery or together with it (`fifa_stream.commit`).

One thread runs the loop and owns the clients; one more runs the engine, so that the group never waits for inference; a third watches both. What fails
in delivery goes back to the committed offsets with a new producer. `stop` may come from a signal handler or another thread.
"""

import contextlib
import functools
import gc
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from engines.contracts import Label
from fifa_stream.batch_metrics import BatchMetrics
from fifa_stream.claims import ClaimStore, FetchPool, Store
from fifa_stream.commit import AtLeastOnce, Checkpoints, Committed, Committer, ExactlyOnce
from fifa_stream.config import Settings
from fifa_stream.consume import Consumer
from fifa_stream.dead_letters import DeadLetterGuard, TooManyDeadLetters, fitted_dead_letter
from fifa_stream.drift import ScoreDrift
from fifa_stream.engine_thread import BATCHES_AT_WORKER, Done, FrameProcessor, Result, Work, Worker, WorkerThread
from fifa_stream.lag import LagReport
from fifa_stream.memory.changelog import Changelog
from fifa_stream.memory.member import MemberMemory
from fifa_stream.memory.partition import Seen
from fifa_stream.offsets import InOrder, OffsetTracker, Partition, Ticket
from fifa_stream.produce import DeliveryError, Producer
from fifa_stream.records import (
    SHADOW_SOURCE,
    FrameRecord,
    OutRecord,
    RawRecord,
    Reason,
    RecordError,
    TransientError,
    Verdict,
    event_time,
    parse_frame,
    trace_parent,
    verdict_record,
)
from fifa_stream.shadow import Shadow
from fifa_stream.shedding import Shedder, ShedReason
from fifa_stream.telemetry import (
    BATCH_RETRIES,
    COMMITS,
    DEAD_LETTERS_SENT,
    E2E_SECONDS,
    FRAME_SECONDS,
    FRAMES_SHED,
    IN_FLIGHT_BYTES,
    IN_FLIGHT_RECORDS,
    LAST_POLL,
    PARTITIONS,
    PAUSED,
    QUEUE_DEPTH,
    REBALANCES,
    RECORDS_HANDED_OVER,
    RECORDS_POLLED,
    RESTARTS,
    STAGE_SECONDS,
    VERDICTS_SENT,
    Health,
    Meter,
)
from fifa_stream.tracing import NoTracing, OpenSpan, Tracing, carrying
from fifa_stream.watchdog import Watchdog

logger = logging.getLogger(__name__)

IDLE_POLL_S = 0.1
"""kafka-python has no wakeup: this bounds how late a stop is noticed."""
BUSY_POLL_S = 0.01
"""While answers are due, so that a verdict does not wait for the next frame."""
HEADER_BYTES = 8 << 10
"""Kept free of kafka.max_request_bytes: more than key and headers of a verdict can take, each of them bounded, and the batch's own."""
SETTLE_S = 5.0
"""For the acknowledgements of what was sent before a worker stops itself."""
COLLECT_EVERY_S = 5.0
"""Between two collections of garbage that forms cycles."""
RETRY_FIRST_S = 0.1
"""Wait before the second try of a batch; doubled each time."""


class ProcessingError(Exception):
    """A batch failed for a reason that is not the records': the process stops before its offsets are committed."""


class Outcome(Enum):
    """How a run ended."""

    DRAINED = "drained"
    DRAIN_TIMEOUT = "drain timeout"
    ABORTED = "aborted"


@dataclass(slots=True, eq=False)
class Answer:
    """What is to be sent of a record; compared by identity."""

    ticket: Ticket
    since: float
    frame: FrameRecord | None
    """None for a record whose headers could not be read."""
    result: Result | None
    """None once it is made: what is sent and not acknowledged holds no verdict."""
    made_at: bytes | None
    span: OpenSpan | None
    """Of a traced frame; ends with the answer."""
    shadow: Verdict | None
    """What a second engine says of the frame: on a topic of its own, and acknowledged before the offset may go."""
    reason: Reason | None = None
    """Of a dead letter; None for a verdict. Known, as the label is, when the answer is made."""
    label: str = ""
    """Of its metric: the reason, or the verdict's label."""
    num_sent: int = 1
    """Records whose acknowledgement is awaited."""


class TimedCollection:
    """Collects garbage that forms cycles, by time. A poll of kafka-python 3.0.12 that times out leaves some (error, traceback, frame, future), and
    with it stay the bytes of a whole fetch: 30 MiB of them, and more from hour to hour, where only the number of allocations said when."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = clock() + COLLECT_EVERY_S

    def turn(self) -> None:
        """Collect if it is time: all generations, for what a younger one lets live is looked at no more."""
        if self._clock() >= self._next:
            gc.collect()
            self._next = self._clock() + COLLECT_EVERY_S


class Runner:
    """The loop over injected parts."""

    def __init__(
        self,
        settings: Settings,
        processor: FrameProcessor,
        *,
        consumer: Consumer,
        open_producer: Callable[[], Producer],
        worker: Callable[[Callable[[Sequence[Work]], Done]], Worker] = WorkerThread,
        meter: Meter | None = None,
        health: Health | None = None,
        watchdog: Watchdog | None = None,
        store: Store | None = None,
        tracing: Tracing | None = None,
        score_baseline: Sequence[float] = (),
        shadow: Shadow | None = None,
        changelog: Changelog | None = None,
        clock: Callable[[], float] = time.monotonic,
        unix_time_s: Callable[[], float] = time.time,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self._settings = settings
        self._processor = processor
        self._shadow = shadow
        self._consumer = consumer
        self._clock = clock
        self._unix_time_s = unix_time_s
        self._stop = threading.Event()
        self._abort = threading.Event()
        self._pause = pause or self._abort.wait
        self._meter = meter or Meter()
        _begin_at_zero(self._meter)
        self._health = health or Health(clock=clock)
        self._watchdog = watchdog or Watchdog(clock=clock)
        self._tracing: Tracing = tracing or NoTracing()
        self._offsets = OffsetTracker()
        self._lag = LagReport(consumer, self._offsets, self._meter, group=settings.kafka.group_id, clock=clock, unix_time_s=unix_time_s)
        self._batch_metrics = BatchMetrics(self._meter, ScoreDrift(score_baseline, window=settings.telemetry.drift_window))
        self._memory = None if settings.streams.memory == "off" else MemberMemory(settings, self._meter, changelog, clock=clock)
        self._committer = self._make_committer(open_producer, durable=settings.has_state_topic)
        self._order = InOrder[Answer | None]()
        self._shedder = Shedder(settings.shedding)
        self._guard = DeadLetterGuard(settings.dead_letters)
        self._num_restarts = 0
        """Since the last commit."""
        self._sent: set[Answer] = set()
        """Not acknowledged."""
        self._acknowledged: list[Answer] = []
        """Since the last turn."""
        self._timed: tuple[Answer, float] | None = None
        """The one answer whose way to the broker is being timed, and since when."""
        self._worker = worker(self._process)
        self._claims = FetchPool[Work](
            store or ClaimStore(settings.claims),
            threads=settings.claims.threads,
            max_bytes_inside=settings.limits.max_in_flight_bytes,
            attempts=settings.runtime.transient_attempts,
        )
        self._to_fetch: deque[Work] = deque()
        """Their images are elsewhere."""
        self._waiting: deque[Work] = deque()
        self._answers: deque[Answer] = deque()
        self._is_paused = False
        self._next_commit = 0.0
        self._collection = TimedCollection()

    def _make_committer(self, open_producer: Callable[[], Producer], *, durable: bool) -> Committer:
        snapshots = self._memory if durable else None
        parts = self._offsets, self._consumer, open_producer
        watchdog, call_timeout_s = self._watchdog, self._settings.kafka.call_timeout_ms / 1000
        if self._settings.kafka.processing_guarantee == "exactly_once":
            return ExactlyOnce(*parts, watchdog=watchdog, call_timeout_s=call_timeout_s, snapshots=snapshots)
        if snapshots is not None:
            return Checkpoints(*parts, watchdog=watchdog, call_timeout_s=call_timeout_s, snapshots=snapshots)
        return AtLeastOnce(*parts, watchdog=watchdog, call_timeout_s=call_timeout_s)

    @property
    def num_in_flight(self) -> int:
        """Records polled and neither answered nor let go."""
        return self._offsets.num_in_flight

    def stop(self) -> None:
        """Finish what is in flight, commit, leave. A second call abandons what is in flight: it is repeated by whoever comes next."""
        if self._stop.is_set():
            self._abort.set()
        self._stop.set()

    def run(self) -> Outcome:
        """Turn until stopped. Raises ProcessingError, TooManyDeadLetters, DeliveryError, Fenced; whatever it is, nothing unanswered was committed."""
        self._consumer.subscribe(self._settings.kafka.frames_topic, self)
        self._next_commit = self._clock() + self._settings.kafka.commit_interval_ms / 1000
        try:
            while not self._stop.is_set():
                self.turn()
            return self._drain()
        except TooManyDeadLetters:
            self._settle()
            raise
        finally:
            self._health.ready = False
            self._worker.close()
            self._claims.close()
            with self._watchdog.limit("leaving the group", self._settings.kafka.call_timeout_ms / 1000):
                self._consumer.close()
                self._committer.close(timeout_s=0.0 if self._abort.is_set() else 3.0)

    def turn(self) -> None:
        """One pass over the stages. Every record polled here leaves as a verdict or as a dead letter."""
        self._health.turn()
        try:
            self._pass()
        except DeliveryError as error:
            self._restart(error)
        self._report()

    def _pass(self) -> None:
        self._balance()
        began = self._clock()
        with self._watchdog.limit("a poll of the group", self._settings.kafka.call_timeout_ms / 1000):
            records = self._consumer.poll(max_records=self._settings.batch.max_frames * 2, timeout_s=self._poll_time())
        self._meter.set(LAST_POLL, self._unix_time_s())
        if records:
            self._meter.observe(STAGE_SECONDS, self._clock() - began, stage="poll")
        self._take_in(records)
        self._fetch()
        self._hand_to_worker()
        for done in self._worker.results():
            self._batch_metrics.take(done.results, waited_s=done.waited_s, seconds=done.seconds)
            made_at = event_time()
            for place, (work, result) in enumerate(zip(done.batch, done.results, strict=True)):
                self._answer(work.ticket, work.since, work.frame, result, made_at=made_at, batch=done.span, shadow=done.shadows.get(place))
        self._send_answers()
        self._committer.poll()  # acknowledgements arrive here and advance the watermark
        if self._clock() >= self._next_commit:
            self._commit()

    def _restart(self, error: DeliveryError) -> None:
        """Go back to what is committed; give up when that does not help."""
        while True:
            self._num_restarts += 1
            if self._num_restarts >= self._settings.runtime.transient_attempts or self._abort.is_set():
                raise error
            logger.warning("beginning again at the committed offsets: attempt=%d error=%s", self._num_restarts, error)
            self._meter.add(RESTARTS)
            try:
                self._committer.restart()
            except DeliveryError as another:
                error = another
                self._pause(RETRY_FIRST_S * 2**self._num_restarts)
            else:
                for answer in self._sent:  # the producer that held them is gone
                    self._hand_over(answer.ticket, answer.span)
                self._sent.clear()
                self._timed = None
                return

    # The consumer calls these three on its own thread.

    def assigned(self, partitions: Iterable[Partition]) -> None:
        """Begin to track."""
        self._offsets.assign(self._told("assigned", partitions))

    def revoked(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        """Stop tracking; what is finished may still be committed."""
        return self._committer.revoked(self._told("revoked", partitions))

    def lost(self, partitions: Iterable[Partition]) -> None:
        """Stop tracking."""
        self._committer.lost(self._told("lost", partitions))

    def _told(self, event: str, partitions: Iterable[Partition]) -> tuple[Partition, ...]:
        """Count a change; a rebalance that changes nothing here is none."""
        if told := tuple(partitions):
            self._meter.add(REBALANCES, event=event)
        return told

    def _balance(self) -> None:
        """Pause at the limits, resume at half of them. Paused is still polled: the group drops a member that does not."""
        limits, load = self._settings.limits, self._offsets
        if not self._is_paused and (load.num_in_flight >= limits.max_in_flight_records or load.bytes_in_flight >= limits.max_in_flight_bytes):
            self._consumer.pause()
            self._is_paused = True
        elif (
            self._is_paused
            and not self._stop.is_set()
            and load.num_in_flight <= limits.max_in_flight_records // 2
            and load.bytes_in_flight <= limits.max_in_flight_bytes // 2
        ):
            self._consumer.resume()
            self._is_paused = False

    def _poll_time(self) -> float:
        return BUSY_POLL_S if self._offsets.num_in_flight else IDLE_POLL_S

    def _take_in(self, records: Sequence[RawRecord]) -> None:
        if self._stop.is_set():
            return  # not started, so not committed: the next member gets them
        now, num_started = self._clock(), 0
        for record in records:
            ticket = self._offsets.start(record)
            if ticket is None:
                self._meter.add(RECORDS_HANDED_OVER)
                continue
            self._order.expect(ticket)
            num_started += 1
            try:
                frame = parse_frame(record, max_value_bytes=self._settings.limits.max_record_bytes)
            except RecordError as error:
                self._answer(ticket, now, None, error)
            else:
                (self._waiting if frame.claim is None else self._to_fetch).append(Work(ticket, frame, now))
        self._meter.add(RECORDS_POLLED, num_started)

    def _fetch(self) -> None:
        """Send for images while few wait for the worker; take in what has come. The pool has tried again already what is worth it."""
        while self._to_fetch and self._claims.has_room and len(self._waiting) < self._settings.batch.max_frames * BATCHES_AT_WORKER:
            work = self._to_fetch.popleft()
            assert work.frame.claim is not None
            self._claims.submit(work, work.frame.claim)
        for work, fetched in self._claims.results():
            if not work.ticket.live:
                self._release(work.ticket, None)
            elif isinstance(fetched, RecordError):
                self._answer(work.ticket, work.since, work.frame, fetched)
            elif isinstance(fetched, TransientError):
                raise ProcessingError(f"gave up fetching the image of {work.frame.raw.place}: {fetched}") from fetched
            else:
                self._waiting.append(work._replace(frame=work.frame._replace(fetched=fetched)))

    def _hand_to_worker(self) -> None:
        """Form batches by count or by the age of the first frame, while the worker has room."""
        self._shed()
        batch = self._settings.batch
        while self._waiting and self._worker.has_room:
            full = len(self._waiting) >= batch.max_frames
            due = self._clock() - self._waiting[0].since >= batch.max_delay_ms / 1000
            if not (full or due or self._stop.is_set()):
                return
            ours: list[Work] = []
            for _ in range(min(batch.max_frames, len(self._waiting))):
                work = self._waiting.popleft()
                if work.ticket.live:
                    ours.append(work)
                else:
                    self._release(work.ticket, None)
            if ours:
                self._worker.submit(ours)

    def _shed(self) -> None:
        """Answer the waiting frames that the policy skips. While the worker has room nothing waits for long."""
        if self._shedder.is_off or not self._waiting or self._worker.has_room:
            return
        works, self._waiting = self._waiting, deque()
        for work, shed in zip(works, self._shedder.choose([work.frame for work in works], round(self._unix_time_s() * 1000)), strict=True):
            if shed is None:
                self._waiting.append(work)
            else:
                self._meter.add(FRAMES_SHED, reason=shed.reason.value)
                self._answer(work.ticket, work.since, work.frame, self._processor.skip(work.frame, shed))

    def _process(self, batch: Sequence[Work]) -> Done:
        """Run on the worker."""
        began = self._clock()
        frames = [work.frame for work in batch]
        with self._tracing.batch(frames) as span:
            results = self._results(frames)
            seconds = self._clock() - began
            shadows = {} if self._shadow is None else self._compared(self._shadow, frames, results)
        return Done(batch, results, began - batch[0].since, seconds, span, shadows)

    def _compared(self, shadow: Shadow, frames: Sequence[FrameRecord], results: Sequence[Result]) -> Mapping[int, Verdict]:
        with self._watchdog.limit(f"the shadow engine on a batch of {len(frames)} records", self._settings.runtime.batch_timeout_s):
            return shadow.judge(frames, results)

    def _results(self, frames: Sequence[FrameRecord]) -> Sequence[Result]:
        """The one place that catches everything: it names the records, and the process stops."""
        names = ", ".join(frame.raw.place for frame in frames)
        attempts = self._settings.runtime.transient_attempts
        for attempt in range(attempts):
            try:
                with self._watchdog.limit(f"a batch of {len(frames)} records ({names})", self._settings.runtime.batch_timeout_s):
                    results = self._processor.process(frames)
            except TransientError as error:
                if attempt + 1 == attempts or self._abort.is_set():
                    raise ProcessingError(f"gave up after {attempt + 1} tries of {names}: {error}") from error
                logger.warning("trying again: attempt=%d records=%s error=%s", attempt + 1, names, error)
                self._meter.add(BATCH_RETRIES)
                self._pause(RETRY_FIRST_S * 2**attempt)
            except Exception as error:
                logger.exception("processing failed: records=%s", names)
                raise ProcessingError(f"{type(error).__name__} while processing {names}: {error}") from error
            else:
                if len(results) != len(frames):
                    raise ProcessingError(f"the processor gave {len(results)} results for {len(frames)} frames: {names}")
                return results
        raise AssertionError("transient_attempts is at least 1")

    def _answer(
        self,
        ticket: Ticket,
        since: float,
        frame: FrameRecord | None,
        result: Result,
        *,
        made_at: bytes | None = None,
        batch: object | None = None,
        shadow: Verdict | None = None,
    ) -> None:
        span = self._begin_span(ticket.record, since, frame, batch) if self._tracing.is_on else None
        if frame is not None and frame.fetched is not None:
            frame = frame._replace(fetched=None)  # answers wait for one another and for the broker, and nobody counts what was fetched
        self._release(ticket, Answer(ticket, since, frame, result, made_at, span, shadow))

    def _make(self, answer: Answer) -> tuple[str, OutRecord, OutRecord | None, Seen | None]:
        """Topic, record, that of the second engine, and what the stream is to be remembered by. The answer learns under which label it counts. The
        memory is asked here, in the order of records, and moves when the answer is sent."""
        kafka, ticket, frame, result = self._settings.kafka, answer.ticket, answer.frame, answer.result
        assert result is not None, "an answer is made once"
        answer.frame = answer.result = None
        limit = kafka.max_request_bytes - HEADER_BYTES
        if isinstance(result, Verdict):
            assert frame is not None, "a verdict without its frame"
            seen = None if self._memory is None else self._memory.see(ticket, frame, result)
            record = verdict_record(result if seen is None else seen.verdict, frame, time=answer.made_at)
            if len(record.value or b"") <= limit:
                if answer.span is not None:
                    record = carrying(record, answer.span)
                beside = None
                if answer.shadow is not None and kafka.shadow_topic is not None:
                    beside = self._beside(answer.shadow, frame, answer.made_at, limit)
                answer.label = result.label.value
                return kafka.verdicts_topic, record, beside, seen
            result = RecordError(
                Reason.RECORD_TOO_LARGE,
                f"the verdict has {record.size} bytes, {limit} fit kafka.max_request_bytes; raise it, or lower limits.max_faces",
            )
        record = fitted_dead_letter(ticket.record, result, group=kafka.group_id, keep_image=self._settings.dead_letters.keep_image, max_bytes=limit)
        answer.reason, answer.label = result.reason, result.reason.value
        return kafka.dead_letters_topic, record, None, None

    def _beside(self, shadow: Verdict, frame: FrameRecord, made_at: bytes | None, limit: int) -> OutRecord | None:
        record = verdict_record(shadow, frame, time=made_at, source=SHADOW_SOURCE)
        if len(record.value or b"") <= limit:
            return record
        logger.warning("a shadow verdict is too large for kafka.max_request_bytes and is left out: record=%s", frame.raw.place)
        return None

    def _begin_span(self, record: RawRecord, since: float, frame: FrameRecord | None, batch: object | None) -> OpenSpan | None:
        traceparent = trace_parent(record.headers) if frame is None else frame.traceparent
        return self._tracing.answer(record, traceparent, seconds_ago=self._clock() - since, batch=batch)

    def _release(self, ticket: Ticket, answer: Answer | None) -> None:
        """Queue what may be sent now that this record is through; None drops it, its partition is another member's."""
        if answer is None:
            self._hand_over(ticket)
        for ready in self._order.ready(ticket, answer):
            if ready is not None:
                self._answers.append(ready)

    def _send_answers(self) -> None:
        while self._answers and self._committer.has_room:
            answer = self._answers[0]
            if self._memory is not None and answer.ticket.live and not self._memory.has(answer.ticket.assignment):
                if not self._restore(answer.ticket):
                    return
                continue  # there may be no room any more
            if (lock := self._committer.lock) is None:
                sent = self._send(answer)
            else:
                with lock:  # what is remembered, sent, acknowledged and stored of a partition has one order, whenever it goes
                    sent = self._send(answer)
            self._answers.popleft()
            if sent:
                if self._timed is None:
                    self._timed = answer, self._clock()
            else:
                self._hand_over(answer.ticket, answer.span)

    def _send(self, answer: Answer) -> bool:
        """False: its partition has gone."""
        ticket = answer.ticket
        if not ticket.live:
            return False
        topic, record, beside, seen = self._make(answer)
        self._guard.answered(ticket, answer.reason)
        on_delivery = functools.partial(self._delivered, answer)
        if not self._committer.send(topic, record, ticket=ticket, on_delivery=on_delivery):
            return False
        if seen is not None and self._memory is not None:
            self._memory.keep(ticket, seen)
        if beside is not None and self._settings.kafka.shadow_topic is not None:
            answer.num_sent += self._committer.send(self._settings.kafka.shadow_topic, beside, ticket=ticket, on_delivery=on_delivery)
        self._sent.add(answer)  # not before: what is refused stays queued, and is let go of from there
        return True

    def _restore(self, ticket: Ticket) -> bool:
        """Take up what is remembered of the streams of a stay, and of the others that have come. False: not yet, something must be committed first
        that the broker would not leave open for so long."""
        assert self._memory is not None
        if self._committer.is_pressed and self._commit() is Committed.NOT_YET:
            self._next_commit = self._clock()  # and so at every turn
            return False
        stays = {partition: stay for partition, stay in self._offsets.stays().items() if stay.last_started >= 0 and not self._memory.has(stay)}
        stays[ticket.record.topic, ticket.record.partition] = ticket.assignment
        self._memory.begin(stays)
        return True

    def _delivered(self, answer: Answer) -> None:
        answer.num_sent -= 1
        if answer.num_sent:
            return
        self._sent.remove(answer)
        self._offsets.done(answer.ticket)
        self._acknowledged.append(answer)

    def _count_acknowledged(self) -> None:
        """Once a turn, not once a record."""
        if not self._acknowledged:
            return
        now, acknowledged = self._clock(), self._acknowledged
        self._acknowledged = []
        self._meter.add_all(VERDICTS_SENT, Counter(answer.label for answer in acknowledged if answer.reason is None))
        self._meter.add_all(DEAD_LETTERS_SENT, Counter(answer.label for answer in acknowledged if answer.reason is not None))
        self._meter.observe_all(FRAME_SECONDS, [now - answer.since for answer in acknowledged])
        now_ms = self._unix_time_s() * 1000
        ages_ms = [now_ms - timestamp_ms for answer in acknowledged if (timestamp_ms := answer.ticket.record.timestamp_ms) > 0]
        self._meter.observe_all(E2E_SECONDS, [age_ms / 1000 if age_ms > 0 else 0.0 for age_ms in ages_ms])
        if self._tracing.is_on:
            for answer in acknowledged:
                if answer.span is not None:
                    answer.span.end(**({"label": answer.label} if answer.reason is None else {"error": answer.label}))

    def _settle(self) -> None:
        """Commit what was sent before the limit, so that a restart does not send it again."""
        deadline = self._clock() + SETTLE_S
        with contextlib.suppress(DeliveryError):
            while self._sent and self._clock() < deadline:
                self._committer.poll()
                self._pause(BUSY_POLL_S)
            while self._committer.commit() is Committed.NOT_YET and self._clock() < deadline:
                self._committer.poll()
                self._pause(BUSY_POLL_S)
        self._count_acknowledged()

    def _hand_over(self, ticket: Ticket, span: OpenSpan | None = None) -> None:
        """Its partition went to another member, which answers it."""
        self._offsets.done(ticket)
        self._meter.add(RECORDS_HANDED_OVER)
        if span is not None:
            span.end(error="handed_over")

    def _commit(self) -> Committed:
        began = self._clock()
        outcome = self._committer.commit()
        if outcome is Committed.NOT_YET:
            return outcome  # tried again at the next turn
        self._next_commit = self._clock() + self._settings.kafka.commit_interval_ms / 1000
        if outcome is not Committed.NOTHING:
            self._meter.add(COMMITS, outcome=outcome.value)
            self._meter.observe(STAGE_SECONDS, self._clock() - began, stage="commit")
        if outcome is Committed.ACCEPTED:
            self._num_restarts = 0
        return outcome

    def _drain(self) -> Outcome:
        self._health.ready = False
        deadline = self._clock() + self._settings.runtime.drain_timeout_s
        logger.info("draining: in_flight=%d", self._offsets.num_in_flight)
        self._consumer.pause()
        self._is_paused = True
        while self._offsets.num_in_flight:
            if self._abort.is_set() or self._clock() > deadline:
                outcome = Outcome.ABORTED if self._abort.is_set() else Outcome.DRAIN_TIMEOUT
                logger.warning(
                    "stopped before the end (%s): in_flight=%d, to be answered by the next member", outcome.value, self._offsets.num_in_flight
                )
                with contextlib.suppress(DeliveryError):
                    self._commit()
                return outcome
            self.turn()
        try:
            while self._commit() is Committed.NOT_YET:
                if self._clock() > deadline:
                    return Outcome.DRAIN_TIMEOUT
                self.turn()
        except DeliveryError as error:
            logger.warning("the last commit failed, what it held is answered by the next member: %s", error)
            return Outcome.DRAIN_TIMEOUT
        return Outcome.DRAINED

    def _report(self) -> None:
        if not self._health.ready and not self._stop.is_set() and self._consumer.joined:
            self._health.ready = self._health.started = True
            logger.info("ready: group=%s topic=%s", self._settings.kafka.group_id, self._settings.kafka.frames_topic)
        self._collection.turn()
        self._count_acknowledged()
        if self._timed is not None and self._timed[0] not in self._sent:
            self._meter.observe(STAGE_SECONDS, self._clock() - self._timed[1], stage="produce")
            self._timed = None
        self._lag.turn()
        for name, records in (("fetch", self._to_fetch), ("engine", self._waiting), ("send", self._answers)):
            self._meter.set(QUEUE_DEPTH, len(records), queue=name)
        self._meter.set(IN_FLIGHT_RECORDS, self._offsets.num_in_flight)
        self._meter.set(IN_FLIGHT_BYTES, self._offsets.bytes_in_flight)
        self._meter.set(PAUSED, float(self._is_paused))
        self._meter.set(PARTITIONS, len(self._offsets.partitions))
        if self._memory is not None:
            with self._committer.lock or contextlib.nullcontext():
                self._memory.report(self._offsets.stays())


def _begin_at_zero(meter: Meter) -> None:
    """Make every series known whose labels are: a rate sees no first event, and a ratio is empty where its denominator is."""
    for label in Label:
        meter.add(VERDICTS_SENT, 0, label=label.value)
    for reason in Reason:
        meter.add(DEAD_LETTERS_SENT, 0, reason=reason.value)
    for shed in ShedReason:
        meter.add(FRAMES_SHED, 0, reason=shed.value)
    for outcome in (Committed.ACCEPTED, Committed.REFUSED):
        meter.add(COMMITS, 0, outcome=outcome.value)
    for event in ("assigned", "revoked", "lost"):
        meter.add(REBALANCES, 0, event=event)
