"""The engine's side of the loop: what turns frames into verdicts, and the thread that it runs on, so that the group never waits for inference."""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from fifa_stream.offsets import Ticket
from fifa_stream.records import EngineIdentity, FrameRecord, RecordError, Verdict
from fifa_stream.shedding import Shed

BATCHES_AT_WORKER = 2
"""One running, one ready behind it."""

Result = Verdict | RecordError


class FrameProcessor(Protocol):
    """Frames to verdicts. Called by one thread."""

    @property
    def engine(self) -> EngineIdentity:
        """Which weights answer, for `serve` to show."""
        ...

    @property
    def score_baseline(self) -> Sequence[float]:
        """Shares of scores that drift is measured against; empty where none are known."""
        ...

    def process(self, frames: Sequence[FrameRecord]) -> list[Result]:
        """One result per frame, in order. Raises TransientError when the whole batch is worth another try."""
        ...

    def skip(self, frame: FrameRecord, shed: Shed) -> Verdict:
        """The answer to a frame that is not looked at. Called by the loop's thread, beside `process`."""
        ...


class Work(NamedTuple):
    """A frame on its way, since when."""

    ticket: Ticket
    frame: FrameRecord
    since: float


class Done(NamedTuple):
    """A batch that came back."""

    batch: Sequence[Work]
    results: Sequence[Result]
    waited_s: float
    """Of its first frame, for the engine."""
    seconds: float
    span: object | None
    """Of the batch, for those of its frames; None where none is traced."""
    shadows: Mapping[int, Verdict]
    """Of a second engine, by place in the batch."""


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
