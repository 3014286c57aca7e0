"""The loop: records in, verdicts out, offsets committed only after delivery or together with it (`fifa_stream.commit`).

One thread runs the loop and owns the clients; one more runs the engine, so that the group never waits for inference; a third watches both. What fails
in delivery goes back to the committed offsets with a new producer. `stop` may come from a signal handler or another thread.
"""

import contextlib
import functools
import logging
import queue
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from types import FrameType
from typing import Protocol

from fifa_stream.claims import ClaimStore, FetchPool, Store
from fifa_stream.cluster import BrokerError, Cluster, find_cluster
from fifa_stream.commit import AtLeastOnce, Committed, Committer, ExactlyOnce
from fifa_stream.config import KafkaSettings, Settings
from fifa_stream.consume import Consumer, KafkaConsumer
from fifa_stream.dead_letters import DeadLetterGuard, TooManyDeadLetters, fitted_dead_letter
from fifa_stream.offsets import InOrder, OffsetTracker, Partition, Ticket
from fifa_stream.produce import DeliveryError, KafkaProducer, Producer, check_topics
from fifa_stream.records import (
    FrameRecord,
    OutRecord,
    RawRecord,
    Reason,
    RecordError,
    TransientError,
    Verdict,
    parse_frame,
    verdict_record,
)
from fifa_stream.shedding import Shed, Shedder
from fifa_stream.telemetry import (
    BATCH_RETRIES,
    BATCH_SECONDS,
    BATCH_SIZE,
    COMMITS,
    DEAD_LETTERS_SENT,
    FRAME_SECONDS,
    IN_FLIGHT_BYTES,
    IN_FLIGHT_RECORDS,
    PARTITIONS,
    PAUSED,
    RECORDS_HANDED_OVER,
    RECORDS_POLLED,
    RESTARTS,
    VERDICTS_SENT,
    Health,
    HealthServer,
    Meter,
)
from fifa_stream.watchdog import Watchdog

logger = logging.getLogger(__name__)

IDLE_POLL_S = 0.1
"""kafka-python has no wakeup: this bounds how late a stop is noticed."""
BUSY_POLL_S = 0.01
"""While answers are due, so that a verdict does not wait for the next frame."""
BATCHES_AT_WORKER = 2
"""One running, one ready behind it."""
HEADER_BYTES = 4 << 10
"""Kept free of kafka.max_request_bytes for our own headers and the batch's."""
SETTLE_S = 5.0
"""For the acknowledgements of what was sent before a worker stops itself."""
RETRY_FIRST_S = 0.1
"""Wait before the second try of a batch; doubled each time."""

Result = Verdict | RecordError


class FrameProcessor(Protocol):
    """Frames to verdicts. Called by one thread."""

    def process(self, frames: Sequence[FrameRecord]) -> list[Result]:
        """One result per frame, in order. Raises TransientError when the whole batch is worth another try."""
        ...

    def skip(self, frame: FrameRecord, shed: Shed) -> Verdict:
        """The answer to a frame that is not looked at. Called by the loop's thread, beside `process`."""
        ...


class ProcessingError(Exception):
    """A batch failed for a reason that is not the records': the process stops before its offsets are committed."""


class Outcome(Enum):
    """How a run ended."""

    DRAINED = "drained"
    DRAIN_TIMEOUT = "drain timeout"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Work:
    """A frame on its way, since when."""

    ticket: Ticket
    frame: FrameRecord
    since: float


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A record ready to be sent; compared by identity."""

    ticket: Ticket
    since: float
    topic: str
    record: OutRecord
    reason: Reason | None
    """Of a dead letter; None for a verdict."""
    label: str
    """Of its metric: the reason, or the verdict's label."""


@dataclass(frozen=True, slots=True)
class Done:
    """A batch that came back."""

    batch: Sequence[Work]
    results: Sequence[Result]
    seconds: float


class Worker(Protocol):
    """Where batches are processed, in order."""

    @property
    def has_room(self) -> bool:
        """Whether `submit` may be called."""
        ...

    def submit(self, batch: Sequence[Work]) -> None:
        """Hand a batch over."""
        ...

    def results(self) -> list[Done]:
        """What has come back since the last call. Raises ProcessingError."""
        ...

    def close(self) -> None:
        """Start nothing more. Does not wait for what runs."""
        ...


class WorkerThread:
    """`Worker` on one daemon thread."""

    def __init__(self, process: Callable[[Sequence[Work]], Done]) -> None:
        self._process = process
        self._inbox: queue.SimpleQueue[Sequence[Work] | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Done | BaseException] = queue.SimpleQueue()
        self._num_inside = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    @property
    def has_room(self) -> bool:
        """At most `BATCHES_AT_WORKER` inside."""
        return self._num_inside < BATCHES_AT_WORKER

    def submit(self, batch: Sequence[Work]) -> None:
        """Queue a batch."""
        self._num_inside += 1
        self._inbox.put(batch)

    def results(self) -> list[Done]:
        """Take what is ready; re-raise what the thread died of."""
        done: list[Done] = []
        while not self._outbox.empty():
            item = self._outbox.get()
            if isinstance(item, BaseException):
                raise item
            self._num_inside -= 1
            done.append(item)
        return done

    def close(self) -> None:
        """End the thread after the batch it runs."""
        self._closed.set()
        self._inbox.put(None)

    def _run(self) -> None:
        while (batch := self._inbox.get()) is not None and not self._closed.is_set():
            try:
                self._outbox.put(self._process(batch))
            except BaseException as error:  # carried to the loop, which stops the process
                self._outbox.put(error)
                return


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
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self._settings = settings
        self._processor = processor
        self._consumer = consumer
        self._clock = clock
        self._stop = threading.Event()
        self._abort = threading.Event()
        self._pause = pause or self._abort.wait
        self._meter = meter or Meter()
        self._health = health or Health(clock=clock)
        self._watchdog = watchdog or Watchdog(clock=clock)
        self._offsets = OffsetTracker()
        guarantee = ExactlyOnce if settings.kafka.processing_guarantee == "exactly_once" else AtLeastOnce
        self._committer: Committer = guarantee(
            self._offsets, consumer, open_producer, watchdog=self._watchdog, call_timeout_s=settings.kafka.call_timeout_ms / 1000
        )
        self._order = InOrder[Answer | None]()
        self._shedder = Shedder(settings.shedding)
        self._guard = DeadLetterGuard(settings.dead_letters)
        self._num_restarts = 0
        """Since the last commit."""
        self._sent: set[Answer] = set()
        """Not acknowledged."""
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
        with self._watchdog.limit("a poll of the group", self._settings.kafka.call_timeout_ms / 1000):
            records = self._consumer.poll(max_records=self._settings.batch.max_frames * 2, timeout_s=self._poll_time())
        self._take_in(records)
        self._fetch()
        self._hand_to_worker()
        for done in self._worker.results():
            self._meter.observe(BATCH_SIZE, len(done.batch))
            self._meter.observe(BATCH_SECONDS, done.seconds)
            for work, result in zip(done.batch, done.results, strict=True):
                self._answer(work.ticket, work.since, work.frame, result)
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
                    self._hand_over(answer.ticket)
                self._sent.clear()
                return

    # The consumer calls these three on its own thread.

    def assigned(self, partitions: Iterable[Partition]) -> None:
        """Begin to track."""
        self._offsets.assign(partitions)

    def revoked(self, partitions: Iterable[Partition]) -> Mapping[Partition, int]:
        """Stop tracking; what is finished may still be committed."""
        return self._committer.revoked(partitions)

    def lost(self, partitions: Iterable[Partition]) -> None:
        """Stop tracking."""
        self._committer.lost(partitions)

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
                self._waiting.append(replace(work, frame=replace(work.frame, fetched=fetched)))

    def _hand_to_worker(self) -> None:
        """Form batches by count or by the age of the first frame, while the worker has room."""
        self._shed()
        batch = self._settings.batch
        while self._waiting and self._worker.has_room:
            full = len(self._waiting) >= batch.max_frames
            due = self._clock() - self._waiting[0].since >= batch.max_delay_ms / 1000
            if not (full or due or self._stop.is_set()):
                return
            works = [self._waiting.popleft() for _ in range(min(batch.max_frames, len(self._waiting)))]
            for work in works:
                if not work.ticket.live:
                    self._release(work.ticket, None)
            if ours := [work for work in works if work.ticket.live]:
                self._worker.submit(ours)

    def _shed(self) -> None:
        """Answer the waiting frames that the policy skips. While the worker has room nothing waits for long."""
        if self._shedder.is_off or not self._waiting or self._worker.has_room:
            return
        works, self._waiting = self._waiting, deque()
        for work, shed in zip(works, self._shedder.choose([work.frame for work in works], round(time.time() * 1000)), strict=True):
            if shed is None:
                self._waiting.append(work)
            else:
                self._answer(work.ticket, work.since, work.frame, self._processor.skip(work.frame, shed))

    def _process(self, batch: Sequence[Work]) -> Done:
        """Run on the worker. The one place that catches everything: it names the records, and the process stops."""
        began = self._clock()
        frames = [work.frame for work in batch]
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
                return Done(batch, results, self._clock() - began)
        raise AssertionError("transient_attempts is at least 1")

    def _answer(self, ticket: Ticket, since: float, frame: FrameRecord | None, result: Result) -> None:
        kafka = self._settings.kafka
        limit = kafka.max_request_bytes - HEADER_BYTES
        if isinstance(result, Verdict):
            assert frame is not None, "a verdict without its frame"
            record = verdict_record(result, frame)
            if record.size <= limit:
                self._release(ticket, Answer(ticket, since, kafka.verdicts_topic, record, None, result.label.value))
                return
            result = RecordError(
                Reason.RECORD_TOO_LARGE,
                f"the verdict has {record.size} bytes, {limit} fit kafka.max_request_bytes; raise it, or lower limits.max_faces",
            )
        record = fitted_dead_letter(ticket.record, result, group=kafka.group_id, keep_image=self._settings.dead_letters.keep_image, max_bytes=limit)
        self._release(ticket, Answer(ticket, since, kafka.dead_letters_topic, record, result.reason, result.reason.value))

    def _release(self, ticket: Ticket, answer: Answer | None) -> None:
        """Queue what may be sent now that this record is through; None drops it, its partition is another member's."""
        if answer is None:
            self._hand_over(ticket)
        self._answers.extend(ready for ready in self._order.ready(ticket, answer) if ready is not None)

    def _send_answers(self) -> None:
        while self._answers and self._committer.has_room:
            answer = self._answers[0]
            if answer.ticket.live:
                self._guard.answered(answer.ticket, answer.reason)
            sent = self._committer.send(answer.topic, answer.record, ticket=answer.ticket, on_delivery=functools.partial(self._delivered, answer))
            self._answers.popleft()
            if sent:
                self._sent.add(answer)
            else:
                self._hand_over(answer.ticket)

    def _delivered(self, answer: Answer) -> None:
        self._sent.remove(answer)
        self._offsets.done(answer.ticket)
        if answer.reason is None:
            self._meter.add(VERDICTS_SENT, label=answer.label)
        else:
            self._meter.add(DEAD_LETTERS_SENT, reason=answer.label)
        self._meter.observe(FRAME_SECONDS, self._clock() - answer.since)

    def _settle(self) -> None:
        """Commit what was sent before the limit, so that a restart does not send it again."""
        deadline = self._clock() + SETTLE_S
        with contextlib.suppress(DeliveryError):
            while self._sent and self._clock() < deadline:
                self._committer.poll()
                self._pause(BUSY_POLL_S)
            self._committer.commit()

    def _hand_over(self, ticket: Ticket) -> None:
        """Its partition went to another member, which answers it."""
        self._offsets.done(ticket)
        self._meter.add(RECORDS_HANDED_OVER)

    def _commit(self) -> Committed:
        outcome = self._committer.commit()
        if outcome is Committed.NOT_YET:
            return outcome  # tried again at the next turn
        self._next_commit = self._clock() + self._settings.kafka.commit_interval_ms / 1000
        if outcome is not Committed.NOTHING:
            self._meter.add(COMMITS, outcome=outcome.value)
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
        self._meter.set(IN_FLIGHT_RECORDS, self._offsets.num_in_flight)
        self._meter.set(IN_FLIGHT_BYTES, self._offsets.bytes_in_flight)
        self._meter.set(PAUSED, float(self._is_paused))
        self._meter.set(PARTITIONS, len(self._offsets.partitions))


@contextlib.contextmanager
def stop_on_signals(runner: Runner) -> Iterator[None]:
    """SIGTERM and SIGINT drain; a second one abandons what is in flight. Main thread only."""

    def handle(number: int, frame: FrameType | None) -> None:
        runner.stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def load_pipeline(settings: Settings) -> FrameProcessor:
    """Open the engine bundle and build what turns frames into verdicts. Raises EngineError."""
    # Imported here: the loop itself needs no inference runtime, and toys run without one.
    from engines.analyzer import Analyzer
    from engines.bundle import bundled_engine, open_bundle
    from fifa_stream.decode import DecodeLimits
    from fifa_stream.detect import DetectLimits
    from fifa_stream.infer import FramePipeline, PipelineLimits
    from fifa_stream.video import VideoLimits

    engine, limits, video = settings.engine, settings.limits, settings.video
    max_bytes = max(limits.max_record_bytes, settings.claims.max_bytes)  # each way in has its own limit before
    bundle = open_bundle(engine.folder or bundled_engine(), threads=engine.threads, pinned_digest=engine.pinned_digest)
    pipeline_limits = PipelineLimits(
        decode=DecodeLimits(max_image_bytes=max_bytes, max_pixels=limits.max_pixels),
        detect=DetectLimits(max_side_px=limits.max_side, max_faces=limits.max_faces, min_face_px=limits.min_face_px),
        max_batch_faces=settings.batch.max_faces,
        explain=engine.explain,
        video=VideoLimits(
            max_bytes=max_bytes,
            max_pixels=min(limits.max_pixels, video.max_pixels),
            sample_fps=video.sample_fps,
            max_frames=video.max_frames,
            max_duration_s=video.max_duration_s,
            max_decoded_frames=video.max_decoded_frames,
            decode_timeout_s=video.decode_timeout_s,
        ),
        max_explained_frames=video.max_explained_frames,
    )
    logger.info("engine loaded: name=%s version=%s manifest=%s", bundle.manifest.name, bundle.manifest.version, bundle.manifest.digest)
    return FramePipeline(pipeline_limits, Analyzer(bundle, operating_point=engine.operating_point), bundle)


class Clients:
    """The clients of a broker, on kafka-python."""

    def check(self, kafka: KafkaSettings) -> None:
        """Look the topics up. Raises TopicError."""
        check_topics(kafka)

    def consumer(self, kafka: KafkaSettings, cluster: Cluster, max_poll_records: int) -> Consumer:
        """The member of the group."""
        return KafkaConsumer(kafka, is_tansu=cluster.is_tansu, max_poll_records=max_poll_records)

    def producers(self, kafka: KafkaSettings) -> Callable[[], Producer]:
        """Makes producers; with exactly_once all under one transactional id, so that each ends what the one before left open."""
        name = None
        if kafka.processing_guarantee == "exactly_once":
            name = kafka.transactional_id or f"{kafka.group_id}-{uuid.uuid4()}"
        return lambda: KafkaProducer(kafka, transactional_id=name)


def refuse_pretence(kafka: KafkaSettings) -> None:
    """Of a broker whose transactions do not hold. Raises BrokerError where they are asked for."""
    if kafka.processing_guarantee == "exactly_once":
        raise BrokerError(
            f"kafka.processing_guarantee exactly_once needs transactions that hold, and the broker at {kafka.bootstrap_servers} is Tansu, which "
            "shows aborted records to read_committed readers; use Apache Kafka 2.5 or newer, or set at_least_once"
        )


def serve(settings: Settings, load_processor: Callable[[], FrameProcessor], *, clients: Clients | None = None) -> Outcome:
    """Run against Kafka until a signal. Raises ConfigError, BrokerError, TopicError, PortTaken, EngineError and what `Runner.run` does."""
    clients = clients or Clients()
    health, meter = Health(), Meter()
    with contextlib.ExitStack() as stack:
        if settings.runtime.health_port:
            server = HealthServer(health, meter, host=settings.runtime.health_host, port=settings.runtime.health_port)
            stack.callback(server.close)
        store = ClaimStore(settings.claims)
        cluster = find_cluster(settings.kafka, access=True)
        if cluster.is_tansu:
            refuse_pretence(settings.kafka)
            logger.warning("the broker is Tansu: in memory, for demonstration; nothing survives its end")
        watchdog = Watchdog()
        watchdog.start()
        stack.callback(watchdog.close)
        processor = load_processor()
        open_producer = clients.producers(settings.kafka)
        clients.check(settings.kafka)
        consumer = clients.consumer(settings.kafka, cluster, settings.batch.max_frames * 2)
        runner = Runner(
            settings, processor, consumer=consumer, open_producer=open_producer, meter=meter, health=health, watchdog=watchdog, store=store
        )
        with stop_on_signals(runner):
            return runner.run()
