"""How the program ends: every status with its meaning, expected errors as one line on standard error, and a way out that native threads survive."""

import contextlib
import enum
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import NoReturn

import typer


class ExitCode(enum.IntEnum):
    """Every status the program ends with; the second value is its meaning."""

    meaning: str

    def __new__(cls, status: int, meaning: str) -> "ExitCode":
        """A number that carries its meaning."""
        member = int.__new__(cls, status)
        member._value_ = status
        member.meaning = meaning
        return member

    OK = 0, "Done. `run`: stopped by a signal, everything in flight answered and committed."
    SOME_FAILED = (
        1,
        "`analyze`: an image has no verdict. `send`: an image was not sent. `demo`: what was got is not what was expected. `engine check`: an engine "
        "differs too far from its checkpoint. `dead-letters`: there is no such letter, or `replay` skipped one. `check`: something is wrong. "
        "`replay`: a dead letter does not hold its original. `review verify`: the file is not as it was exported.",
    )
    USAGE = 2, "An option, a setting or the settings file is wrong."
    BROKER = 3, "The broker cannot be reached, refuses, or lacks a topic."
    ENGINE = 4, "The engine bundle is missing, damaged, not the pinned one, cannot run here, cannot be built, or is refused by its acceptance pack."
    STOPPED = (
        70,
        "`run` stopped itself before a commit: deliveries fail, a step hangs, too many dead letters, or an error that no record explains. Nothing is "
        "lost; restart it.",
    )
    DRAIN_TIMEOUT = 75, "`run` could not finish within `runtime.drain_timeout_s`; the rest is answered again after a restart."
    ABORTED = 130, "A second signal; what was in flight is answered again after a restart."


EXPECTED_ERRORS = {
    ExitCode.SOME_FAILED: {"fifa_stream.send.SendError", "fifa_stream.demo.DemoError", "fifa_stream.review.export.VerifyError"},
    ExitCode.USAGE: {
        "fifa_stream.config.ConfigError",
        "fifa_stream.records.RecordError",
        "fifa_stream.recording.RecordingError",
        "fifa_stream.telemetry.PortTaken",
        "fifa_stream.consume.CodecMissing",
        "fifa_stream.embedded.EmbeddedBrokerError",
        "fifa_stream.review.decisions.DecisionError",
        "fifa_stream.review.sources.SourceError",
    },
    ExitCode.BROKER: {"fifa_stream.cluster.BrokerError", "fifa_stream.produce.TopicError"},
    ExitCode.ENGINE: {"engines.contracts.EngineError"},
    ExitCode.STOPPED: {
        "fifa_stream.dead_letters.TooManyDeadLetters",
        "fifa_stream.produce.DeliveryError",
        "fifa_stream.produce.Fenced",
        "fifa_stream.runner.ProcessingError",
        "kafka.errors.KafkaError",
    },
}
"""By home and name, so that a command imports nothing only to name its errors."""


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """An expected error is one line on standard error and its exit status; anything else is shown with its traceback and ends with STOPPED."""
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):  # the last of `... | head`: whoever read has enough, and typer ends in silence
        raise
    except Exception as error:
        names = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
        status = next((status for status, kinds in EXPECTED_ERRORS.items() if names & kinds), None)
        if status is None:
            traceback.print_exc()
            leave(ExitCode.STOPPED)
        end(status, " ".join(str(error).split()))


def end(status: ExitCode, message: str) -> NoReturn:
    """Say one line on standard error and leave."""
    typer.echo(f"fifa-stream: {message}", err=True)
    leave(status)


def leave(status: ExitCode) -> NoReturn:
    """End with a status."""
    if any(thread.name == "inference" for thread in threading.enumerate()):
        # It may be inside native code, which does not survive an orderly interpreter shutdown.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise typer.Exit(status)
