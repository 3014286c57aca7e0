"""Ends the process when a step takes longer than it may.

A blocking call of a client library has no deadline that holds: kafka-python's transaction calls wait for ever on a broker that was restarted at the
wrong moment, and native inference cannot be interrupted at all. A member that hangs keeps its partitions; one that is gone is replaced.
"""

import contextlib
import faulthandler
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from fifa_stream.exits import ExitCode

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 0.25


def end_process(reason: str) -> None:
    """Say why, show where every thread stands, and leave without waiting for any of them."""
    logger.critical("%s", reason)
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    sys.stderr.flush()
    os._exit(ExitCode.STOPPED)


class Watchdog:
    """Watches steps from a thread of its own. Any number of threads may be inside `limit` at once."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, expired: Callable[[str], object] = end_process) -> None:
        """`expired` is called once, on the watchdog's thread, with the reason."""
        self._clock = clock
        self._expired = expired
        self._steps: dict[int, tuple[str, float, float]] = {}
        """What, how long it may take, and until when, by number."""
        self._numbers = itertools.count()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    @contextlib.contextmanager
    def limit(self, what: str, seconds: float) -> Iterator[None]:
        """Allow the step this long."""
        number = next(self._numbers)
        self._steps[number] = (what, seconds, self._clock() + seconds)
        try:
            yield
        finally:
            del self._steps[number]

    def check(self) -> bool:
        """Report the first step that is over its limit; False where there was one."""
        now = self._clock()
        for what, seconds, until in list(self._steps.values()):
            if now > until:
                self._expired(f"stopped: {what} takes longer than {seconds:g} s; nothing unanswered was committed, so a restart answers it again")
                return False
        return True

    def _run(self) -> None:
        while not self._closed.wait(CHECK_EVERY_S):
            if not self.check():
                return
