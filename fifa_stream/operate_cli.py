"""`fifa-stream check`, `topics create`, `lag`, `replay`: what an operator asks before, beside and after a run."""

import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fifa_stream.exits import ExitCode, clear_errors, end
from fifa_stream.options import BootstrapOption, ConfigOption, load_settings

if TYPE_CHECKING:
    from fifa_stream.group import Group
    from fifa_stream.lag import PartitionLag
    from fifa_stream.topics import Outcome

topics_app = typer.Typer(help="Make the topics.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="For machines; docs/operate.md has the fields.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
DEFAULT_RATE = 100.0


def check(as_json: JsonOption = False, bootstrap: BootstrapOption = None, config: ConfigOption = None) -> None:
    """Look at the whole deployment: settings, broker, topics, permissions, engine, stores, ports. Exit 1 where something is wrong."""
    with clear_errors():
        from fifa_stream.analyze import printable
        from fifa_stream.check import State, checked

        counts = Counter[str]()
        lines = []
        for line in checked(lambda: load_settings(config, bootstrap)):
            counts[line.state] += 1
            if as_json:
                lines.append(asdict(line))
            else:
                typer.echo(printable(f"{line.state:8}{line.subject}: {line.why}{f' -> {line.remedy}' if line.remedy else ''}"))
        if as_json:
            typer.echo(json.dumps(lines, indent=1))
        else:
            typer.echo(", ".join(f"{counts[state]} {state}" for state in (State.WRONG, State.ADVICE, State.OK, State.SKIPPED) if counts[state]))
        if counts[State.WRONG]:
            raise typer.Exit(ExitCode.SOME_FAILED)


@topics_app.command("create")
def topics_create(
    partitions: Annotated[int, typer.Option("--partitions", min=1, help="Of frames and verdicts; a keyed topic cannot grow later.")] = 3,
    replication: Annotated[int | None, typer.Option("--replication", min=1, help="Copies; default: 3, or as many as there are brokers.")] = None,
    frames_kept: Annotated[str, typer.Option("--keep-frames", metavar="TIME", help="90m, 24h, 7d.")] = "24h",
    verdicts_kept: Annotated[str, typer.Option("--keep-verdicts", metavar="TIME")] = "7d",
    letters_kept: Annotated[str, typer.Option("--keep-dead-letters", metavar="TIME")] = "14d",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    bootstrap: BootstrapOption = None,
    config: ConfigOption = None,
) -> None:
    """Make the topics of the settings; existing ones stay as they are, and what differs is told."""
    with clear_errors():
        kept = [
            _milliseconds(option, text)
            for option, text in (("--keep-frames", frames_kept), ("--keep-verdicts", verdicts_kept), ("--keep-dead-letters", letters_kept))
        ]
        from fifa_stream.topics import Retention, create

        settings = load_settings(config, bootstrap)
        outcomes = create(
            settings.kafka,
            partitions=partitions,
            replication=replication,
            retention=Retention(*kept),
            has_state=settings.has_state_topic,
            dry_run=dry_run,
        )
        if as_json:
            typer.echo(json.dumps([_described(one) for one in outcomes], indent=1))
            return
        for one in outcomes:
            typer.echo(_told(one, dry_run=dry_run))
            for difference in one.differences:
                typer.echo(f"  {difference}")


def _described(one: "Outcome") -> dict[str, object]:
    plan = one.plan
    return {
        "topic": plan.name,
        "created": one.made,
        "partitions": plan.partitions,
        "replication": plan.replication,
        "configs": dict(plan.configs),
        "differences": list(one.differences),
    }


def _told(one: "Outcome", *, dry_run: bool) -> str:
    plan = one.plan
    if not one.made:
        return f"{plan.name}: exists{', and stays as it is:' if one.differences else ''}"
    configs = ", ".join(f"{name}={value}" for name, value in plan.configs.items())
    return f"{plan.name}: {'would be created' if dry_run else 'created'}, {plan.partitions} partitions, replication {plan.replication}, {configs}"


def lag(as_json: JsonOption = False, bootstrap: BootstrapOption = None, config: ConfigOption = None) -> None:
    """Say how far the group is behind: records and seconds of each partition of the frames topic, and who has it."""
    with clear_errors():
        import time

        from fifa_stream.cluster import find_cluster
        from fifa_stream.group import find_group
        from fifa_stream.lag import group_lag

        kafka = load_settings(config, bootstrap).kafka
        if find_cluster(kafka).is_tansu:
            typer.echo("fifa-stream: the broker is Tansu, which gives as its end where the last batch begins: the lag may be larger", err=True)
        partitions, group = group_lag(kafka), find_group(kafka)
        rows = _lag_rows(partitions, group, now_ms=time.time() * 1000)
        ages = [row["oldest_age_s"] for row in rows if isinstance(row["oldest_age_s"], float)]
        whole = {
            "group": kafka.group_id,
            "topic": kafka.frames_topic,
            "state": group.state,
            "lag_records": sum(one.records for one in partitions),
            "oldest_age_s": max(ages, default=None),
            "partitions": rows,
            "members": [asdict(member) for member in group.members],
        }
        if as_json:
            typer.echo(json.dumps(whole, indent=1))
            return
        from fifa_stream.analyze import printable

        names = ("partition", "committed", "end", "lag_records", "oldest_age_s", "member")
        widths = (9, 12, 12, 11, 12, 0)
        typer.echo("  ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True)))
        for row in rows:
            cells = ("-" if row[name] is None else str(row[name]) for name in names)
            typer.echo(printable("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))))
        oldest = "" if whole["oldest_age_s"] is None else f", the oldest {whole['oldest_age_s']:g} s old"
        typer.echo(f"group {kafka.group_id} ({group.state}, {len(group.members)} members) is {whole['lag_records']} records behind{oldest}")


def _lag_rows(partitions: "list[PartitionLag]", group: "Group", *, now_ms: float) -> list[dict[str, object]]:
    owners = {number: member.client_id for member in group.members for number in member.partitions}
    return [
        {
            "partition": one.partition[1],
            "committed": one.committed,
            "end": one.end,
            "lag_records": one.records,
            "oldest_age_s": None if one.oldest_ms is None else round(max(0.0, now_ms - one.oldest_ms) / 1000, 3),
            "member": owners.get(one.partition[1]),
        }
        for one in partitions
    ]


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Of `send --record`, or of `dead-letters list --json --records`.")],
    topic: Annotated[str | None, typer.Option("--topic", help="Where to; default: kafka.frames_topic.")] = None,
    rate: Annotated[float, typer.Option("--rate", help="Records a second, at most.")] = DEFAULT_RATE,
    from_line: Annotated[int, typer.Option("--from-line", min=1, help="Leave out what stands before.")] = 1,
    new_timestamps: Annotated[bool, typer.Option("--new-timestamps", help="Now, instead of when each was recorded.")] = False,
    dry_run: DryRunOption = False,
    bootstrap: BootstrapOption = None,
    config: ConfigOption = None,
) -> None:
    """Send recorded frames again: key, value, headers and timestamp as they were. Exit 1 where a dead letter does not hold its original."""
    with clear_errors():
        if not 0 < rate < float("inf"):
            end(ExitCode.USAGE, f"--rate {rate:g} is no rate; give records a second above 0")
        from itertools import islice

        from fifa_stream.recording import read_lines
        from fifa_stream.replay import MAX_UNACKNOWLEDGED, examine
        from fifa_stream.replay import replay as replay_lines

        kafka = load_settings(config, bootstrap).kafka
        topic = topic or kafka.frames_topic
        if topic in kafka.answer_topics:
            end(ExitCode.USAGE, f"--topic {topic} is where answers go; frames go to {kafka.frames_topic} or to a topic of your own")
        contents = examine(file)  # to its end, before anything is sent
        seen = islice(read_lines(file), contents.records + contents.without_original)  # what is being written behind may be half a line
        chosen = (line for line in seen if line.number >= from_line)
        if dry_run:
            typer.echo(f"{sum(line.record is not None for line in chosen)} would be sent to {topic}, {contents.value_bytes} bytes in the file")
        else:
            sent, reached = 0, from_line - 1
            try:
                for one in replay_lines(kafka, chosen, topic=topic, rate=rate, keep_timestamps=not new_timestamps):
                    sent, reached = sent + 1, one.line
            except KeyboardInterrupt:
                on = f"go on with --from-line {reached + 1}"
                end(ExitCode.ABORTED, f"interrupted, {sent} sent to {topic}; {on}; up to {MAX_UNACKNOWLEDGED} more lines may be sent")
            typer.echo(f"{sent} sent to {topic}")
        if contents.without_original:
            end(ExitCode.SOME_FAILED, f"{contents.without_original} dead letters of {file} do not hold their original")


def _milliseconds(option: str, text: str) -> int:
    """'7d' to 604800000."""
    if not (parts := re.fullmatch(r"([1-9][0-9]{0,6})([smhd])", text)):
        end(ExitCode.USAGE, f"{option} {text!r} is no time; write 90m, 24h or 7d")
    return int(parts[1]) * {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[parts[2]] * 1_000
