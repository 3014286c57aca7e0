"""`fifa-stream dead-letters`: what became of records without a verdict; look at them, and send them again.

Everything in a letter may come from a stranger: no control character of it reaches the terminal.
"""

import json
import re
from collections import Counter, deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fifa_stream.exits import ExitCode, clear_errors, end
from fifa_stream.options import BootstrapOption, ConfigOption, SinceOption, load_settings, unix_ms

if TYPE_CHECKING:
    from fifa_stream.dead_letter_tools import Replay
    from fifa_stream.records import DeadLetter
    from fifa_stream.topic_reader import Span

app = typer.Typer(help="Look at dead letters, and send them again.", no_args_is_help=True)

ReasonOption = Annotated[str | None, typer.Option("--reason", metavar="NAME", help="Only letters of this reason.")]
PartitionOption = Annotated[int | None, typer.Option("--partition", min=0, help="Of the dead-letters topic; default: all.")]
OffsetOption = Annotated[int | None, typer.Option("--offset", min=0, help="Begin here; needs --partition.")]
DUMPED_BYTES = 64
MAX_SHOWN_CHARACTERS = 400
ROWS = 100
"""Of a table, unless told otherwise."""


@app.command("list")
def list_letters(
    reason: ReasonOption = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=0, help="Rows, the last ones; default: 100 in a table, which counts all below, and all with --json.")
    ] = None,
    partition: PartitionOption = None,
    offset: OffsetOption = None,
    since: SinceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a letter.")] = False,
    records: Annotated[bool, typer.Option("--records", help="With --json: and the original, as `fifa-stream replay` reads it.")] = False,
    bootstrap: BootstrapOption = None,
    config: ConfigOption = None,
) -> None:
    """Say of each letter where it lies, when it was written, why, and which record it was; then how many there are by reason."""
    with clear_errors():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        from fifa_stream.dead_letter_tools import read_letters
        from fifa_stream.records import DeadLetter

        if records and not as_json:
            end(ExitCode.USAGE, "--records is for machines; give --json as well")
        kafka, span = load_settings(config, bootstrap).kafka, _span(partition, offset, since)
        rows: deque[dict[str, object]] = deque(maxlen=ROWS if limit is None else limit)
        reasons, num_strays = Counter[str](), 0
        for letter in read_letters(kafka, span, reason=_known(reason)):
            if isinstance(letter, DeadLetter):
                reasons[letter.reason] += 1
                row = _row(letter) | ({"record": _original(letter)} if records else {})
                if as_json and limit is None:
                    typer.echo(json.dumps(row))  # none is left out of a file, and none is held
                else:
                    rows.append(row)
            else:
                num_strays += 1
        if as_json:
            for row in rows:
                typer.echo(json.dumps(row))  # ASCII: control characters are escaped
            return
        names = ("letter", "written", "reason", "original", "tries", "error")
        table = Table(*names)
        for row in rows:
            table.add_row(*(Text(_plain(str(row[name])), overflow="fold") for name in names))
        if rows:
            Console().print(table)
        by_reason = ", ".join(f"{_plain(name)} {count}" for name, count in reasons.most_common())
        typer.echo(f"{reasons.total()} dead letters{f': {by_reason}' if reasons else ''}{_strays(num_strays)}")


@app.command()
def show(
    letter: Annotated[str, typer.Argument(metavar="PARTITION/OFFSET", help="As `list` names it.")],
    save: Annotated[Path | None, typer.Option("--save", metavar="FILE", help="Write the original value here; never over a file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line with the original, as `fifa-stream replay` reads it.")] = False,
    bootstrap: BootstrapOption = None,
    config: ConfigOption = None,
) -> None:
    """Show one letter: the error, the original's headers, and what its value is."""
    with clear_errors():
        if not (named := re.fullmatch(r"([0-9]{1,9})/([0-9]{1,18})", letter)):
            end(ExitCode.USAGE, f"{_plain(letter)!r} names no letter; give PARTITION/OFFSET, as `dead-letters list` does")
        if save is not None and save.exists():
            end(ExitCode.USAGE, f"{save} exists and stays as it is; give another file to --save")
        from fifa_stream.dead_letter_tools import read_letters
        from fifa_stream.topic_reader import Span

        kafka = load_settings(config, bootstrap).kafka
        partition, offset = int(named[1]), int(named[2])
        found = next(read_letters(kafka, Span(partition=partition, offset=offset)), None)
        if isinstance(found, ValueError):
            end(ExitCode.SOME_FAILED, _plain(str(found)))
        if found is None or found.raw.offset != offset:
            end(ExitCode.SOME_FAILED, f"there is no letter {letter} on {kafka.dead_letters_topic}; `dead-letters list` names them")
        for line in () if as_json else _described(found):
            typer.echo(_plain(line))
        if as_json:
            typer.echo(json.dumps(_row(found) | {"record": _original(found)}))
        if save is not None:
            if not found.is_whole:
                end(ExitCode.SOME_FAILED, f"letter {letter} does not hold the original value; nothing was saved")
            try:
                with save.open("xb") as file:
                    file.write(found.raw.value or b"")
            except OSError as error:
                end(ExitCode.SOME_FAILED, f"{save} cannot be written: {error.strerror}; give another file to --save")
            typer.echo(f"saved to {save}", err=as_json)


@app.command()
def replay(
    topic: Annotated[str | None, typer.Option("--topic", help="Where to; default: where each original lay.")] = None,
    reason: ReasonOption = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most this many letters, from the first on.")] = None,
    partition: PartitionOption = None,
    offset: OffsetOption = None,
    since: SinceOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
    bootstrap: BootstrapOption = None,
    config: ConfigOption = None,
) -> None:
    """Send originals again: key, value and headers as they were, behind them `dlq-replayed`. The letters stay. Exit 1 where one was skipped."""
    with clear_errors():
        from itertools import islice

        from fifa_stream.dead_letter_tools import MAX_UNACKNOWLEDGED, read_letters
        from fifa_stream.dead_letter_tools import replay as replay_letters
        from fifa_stream.records import DeadLetter

        kafka, span, wanted = load_settings(config, bootstrap).kafka, _span(partition, offset, since), _known(reason)
        strays: list[object] = []

        def letters() -> Iterator["DeadLetter"]:
            for letter in read_letters(kafka, span, reason=wanted):
                if isinstance(letter, DeadLetter):
                    yield letter
                else:
                    strays.append(letter)

        sent, skipped, reached = Counter[str](), Counter[str](), dict[int, int]()
        try:
            for one in replay_letters(kafka, islice(letters(), limit), topic=topic, dry_run=dry_run):
                if one.record is None:
                    skipped[one.skipped] += 1
                else:
                    sent[one.topic] += 1
                if dry_run or one.record is None:
                    typer.echo(_plain(_told(one)))
                reached[one.letter.raw.partition] = one.letter.raw.offset + 1
        except KeyboardInterrupt:  # the letters stay: who does not know how far it came sends them twice
            on = "".join(f", --partition {number} --offset {following}" for number, following in sorted(reached.items()))
            end(ExitCode.ABORTED, f"interrupted, {sent.total()} sent; go on with the same command{on}; up to {MAX_UNACKNOWLEDGED} more may be sent")
        done = "would be sent" if dry_run else "sent"
        typer.echo(f"{sent.total()} {done}{''.join(f', {count} to {_plain(name)}' for name, count in sent.items())}{_strays(len(strays))}")
        if skipped:
            reasons = ", ".join(f"{count}: {why}" for why, count in skipped.most_common())
            end(ExitCode.SOME_FAILED, f"{skipped.total()} letters skipped ({reasons})")


def _told(one: "Replay") -> str:
    letter = one.letter
    what = f"{letter.raw.partition}/{letter.raw.offset} ({letter.topic}/{letter.partition}/{letter.offset}, {letter.reason})"
    if one.record is None:
        return f"{what} skipped: {one.skipped}"
    return f"{what} to {one.topic}: {len(one.record.value or b'')} bytes, {len(one.record.headers)} headers, try {letter.attempts + 1}"


def _row(letter: "DeadLetter") -> dict[str, object]:
    return {
        "letter": f"{letter.raw.partition}/{letter.raw.offset}",
        "written": _time(letter.raw.timestamp_ms),
        "reason": letter.reason,
        "original": f"{letter.topic}/{letter.partition}/{letter.offset}",
        "tries": letter.attempts,
        "error": letter.error,
        "group": letter.group,
        "kept": letter.kept.value,
        "value_bytes": len(letter.raw.value or b""),
        "value_sha256": letter.value_sha256,
    }


def _original(letter: "DeadLetter") -> dict[str, object] | None:
    """What `fifa-stream replay` sends; None where the letter does not hold it."""
    from fifa_stream.recording import Recorded

    if not letter.is_whole:
        return None
    original = Recorded.of(letter.original(), topic=letter.topic, partition=letter.partition, offset=letter.offset, timestamp_ms=letter.timestamp_ms)
    return original.model_dump()


def _described(letter: "DeadLetter") -> Iterator[str]:
    raw, value = letter.raw, letter.raw.value or b""
    yield f"letter     {raw.place}, written {_time(raw.timestamp_ms)} by group {letter.group}"
    yield f"reason     {letter.reason}"
    yield f"error      {letter.error}"
    yield f"original   {letter.topic}/{letter.partition}/{letter.offset}, {_time(letter.timestamp_ms)}, tried {letter.attempts} times"
    yield f"key        {'null' if raw.key is None else _shown(raw.key)}"
    for name, data in letter.headers:
        yield f"header     {name[:MAX_SHOWN_CHARACTERS]}: {_shown(data)}"
    yield f"value      {len(value)} bytes here, sha256 of the original {letter.value_sha256}, kept: {letter.kept.value}"
    for start in range(0, min(len(value), DUMPED_BYTES), 16):
        part = value[start : min(start + 16, DUMPED_BYTES)]
        letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield f"  {start:04x}  {part.hex(' '):47}  {letters}"


def _shown(data: bytes) -> str:
    text = data.decode("utf-8", "backslashreplace")
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}... ({len(data)} bytes)"


def _plain(text: str) -> str:
    """Without what steers a terminal: controls, escapes, marks that turn the direction of writing."""
    from fifa_stream.analyze import printable

    return printable(text)


def _time(unix_ms: int) -> str:
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return f"{unix_ms} ms"


def _strays(count: int) -> str:
    return f"; {count} records on the topic are no letters of ours" if count else ""


def _known(reason: str | None) -> str | None:
    from fifa_stream.records import Reason

    if reason is not None and reason not in list(Reason):
        end(ExitCode.USAGE, f"--reason {_plain(reason)!r} is none; choose from {', '.join(Reason)}")
    return reason


def _span(partition: int | None, offset: int | None, since: str | None) -> "Span":
    from fifa_stream.topic_reader import Span

    if offset is not None and partition is None:
        end(ExitCode.USAGE, f"--offset {offset} is of one partition; give --partition as well")
    return Span(partition, offset, None if since is None else unix_ms(since))
