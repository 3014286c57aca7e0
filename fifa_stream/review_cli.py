"""`fifa-stream review`: the desk in a browser; one case as a file, and the check of such a file."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fifa_stream.exits import ExitCode, clear_errors, end
from fifa_stream.options import BootstrapOption, ConfigOption, SinceOption, load_settings, unix_ms

if TYPE_CHECKING:
    from fifa_stream.review.opening import Sources

app = typer.Typer(help="Look at verdicts beside their frames, and agree or overrule: a desk in the browser.", add_completion=False)

VerdictsOption = Annotated[
    list[Path] | None,
    typer.Option("--verdicts", metavar="FILE", help="Lines of `analyze --json`, or recorded verdicts; default: the verdicts topic. May come again."),
]
FramesOption = Annotated[
    list[Path] | None,
    typer.Option("--frames", metavar="FILE|DIR", help="A file of `send --record`, images, or folders of them. May come again."),
]
ShadowOption = Annotated[
    list[Path] | None, typer.Option("--shadow", metavar="FILE", help="Verdicts of the engine that does not answer; default: kafka.shadow_topic.")
]
MaxCasesOption = Annotated[int, typer.Option("--max-cases", min=1, help="Beyond it the oldest are left out; about 3.5 KiB each.")]
ReviewerOption = Annotated[str | None, typer.Option("--reviewer", metavar="NAME", help="Whose decisions these are.")]
DecisionsOption = Annotated[Path, typer.Option("--decisions", metavar="FILE", help="Where they go, one JSON line each; several desks may share it.")]
ToTopicOption = Annotated[str | None, typer.Option("--to-topic", metavar="NAME", help="They go to a topic instead, such as fifa.reviews.")]


@app.callback(invoke_without_command=True)
def review(
    context: typer.Context,
    reviewer: ReviewerOption = None,
    verdicts: VerdictsOption = None,
    frames: FramesOption = None,
    shadow: ShadowOption = None,
    since: SinceOption = None,
    max_cases: MaxCasesOption = 100_000,
    decisions: DecisionsOption = Path("reviews.jsonl"),
    to_topic: ToTopicOption = None,
    host: Annotated[str, typer.Option("--host", help="Address to bind. Beyond this machine a token is asked for.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any.")] = 8571,
    token_file: Annotated[Path | None, typer.Option("--token-file", help="File with the token; default: one is made up and printed.")] = None,
    allow_host: Annotated[list[str] | None, typer.Option("--allow-host", metavar="NAME", help="Name of a proxy before the desk.")] = None,
    tls_certificate: Annotated[Path | None, typer.Option("--tls-certificate", help="PEM file: answer by HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="PEM file with its key.")] = None,
    bootstrap: BootstrapOption = None,
    config: ConfigOption = None,
) -> None:
    """Open the desk; Ctrl-C closes it."""
    if context.invoked_subcommand is not None:
        return
    with clear_errors():
        name = _named(reviewer)
        if (tls_certificate is None) != (tls_key is None):
            end(ExitCode.USAGE, "--tls-certificate and --tls-key go together")
        _needs_extra()
        from fifa_stream.review.opening import open_desk
        from fifa_stream.review.server import Address, serve_desk

        settings = load_settings(config, bootstrap)
        desk = open_desk(
            _sources(verdicts, shadow, frames, since, max_cases), settings, reviewer=name, decisions=decisions, to_topic=_topic(to_topic)
        )
        head = desk.head()
        typer.echo(f"{head['cases']} cases of {len(head['streams'])} streams, {head['decided']} decided; decisions go to {head['kept_in']}")
        if head["left_out"]:
            typer.echo(f"{head['left_out']} older ones are left out; see --max-cases", err=True)
        if desk.num_unread:
            where = decisions if to_topic is None else f"topic {to_topic}"
            typer.echo(
                f"{desk.num_unread} entries of {where} are no reviews and count nothing; `fifa-train evaluate --reviews` names the first", err=True
            )
        if (first := desk.book.first_refused) is not None:
            typer.echo(f"{desk.book.refused.total()} verdicts are not shown; {_plain(first.where)}: {_plain(first.why)}", err=True)

        def is_open(url: str, token: str | None) -> None:
            typer.echo(f"open {url}")
            if token is not None:
                typer.echo(f"token: {token}")

        try:
            serve_desk(desk, Address(host, port, token_file, tuple(allow_host or ()), tls_certificate, tls_key), is_open=is_open)
        finally:
            desk.close()


@app.command("export")
def export(
    case: Annotated[str, typer.Argument(metavar="VERDICT", help="Id of the verdict: topic/partition/offset, or the digest of a file.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="A new file.")],
    frame: Annotated[int | None, typer.Option("--frame", min=0, help="Of a chunk: index of the frame; default: the first.")] = None,
    reviewer: ReviewerOption = None,
    verdicts: VerdictsOption = None,
    frames: FramesOption = None,
    since: SinceOption = None,
    decisions: DecisionsOption = Path("reviews.jsonl"),
    to_topic: ToTopicOption = None,
    bootstrap: BootstrapOption = None,
    config: ConfigOption = None,
) -> None:
    """Write one case with its picture, masks and reviews to a file that can be handed on, and say its digest."""
    with clear_errors():
        name = _named(reviewer)
        from fifa_stream.review.export import verify as verify_archive
        from fifa_stream.review.opening import open_desk

        sources, settings = _sources(verdicts, None, frames, since, 100_000), load_settings(config, bootstrap)
        desk = open_desk(sources, settings, reviewer=name, decisions=decisions, to_topic=_topic(to_topic))
        try:
            found = desk.book.find(case, frame)
            if found is None:
                asked = f"{case!r}{'' if frame is None else f' with a frame {frame}'}"
                end(ExitCode.SOME_FAILED, f"there is no verdict {asked} among {len(desk.book.cases)} cases; give an id as the desk shows it")
            _, archive = desk.export(found.number)
        finally:
            desk.close()
        try:
            with out.open("xb") as file:
                file.write(archive)
        except OSError as error:
            end(ExitCode.USAGE, f"--out {str(out)!r} cannot be written: {error.strerror}; give a new file")
        typer.echo(f"{out}: digest {verify_archive(archive).manifest.digest}")


@app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Of `fifa-stream review export`, or of the desk's export button.")],
    digest: Annotated[str | None, typer.Option("--digest", metavar="HEX", help="What the one who exported it says its digest is.")] = None,
) -> None:
    """Check an exported case: say ok, or the first thing that is not as it was written."""
    with clear_errors():
        from fifa_stream.review.export import MAX_FILE_BYTES
        from fifa_stream.review.export import verify as verify_archive

        try:
            with file.open("rb") as handle:
                archive = handle.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            end(ExitCode.USAGE, f"{file} cannot be read: {error.strerror}; give a file of `fifa-stream review export`")
        found = verify_archive(archive, digest=digest)
        manifest = found.manifest
        by = "" if manifest.exported_by is None else f" by {_plain(manifest.exported_by)}"
        typer.echo(
            f"ok: {len(manifest.parts)} parts, {found.num_masks} masks, {len(found.reviews)} reviews of verdict {_plain(manifest.verdict)}; "
            f"exported {manifest.exported_at.isoformat(timespec='seconds')}{by} with {_plain(manifest.made_by)}"
        )
        typer.echo(f"digest {manifest.digest}")
        if digest is None:
            typer.echo("the file is whole; who made it is shown only by a digest that came on another way (--digest)")


def _sources(verdicts: list[Path] | None, shadow: list[Path] | None, frames: list[Path] | None, since: str | None, max_cases: int) -> "Sources":
    from fifa_stream.review.opening import Sources

    if verdicts and since is not None:
        end(ExitCode.USAGE, "--since is of the topics; files are read whole")
    return Sources(tuple(verdicts or ()), tuple(shadow or ()), tuple(frames or ()), None if since is None else unix_ms(since), max_cases)


def _named(reviewer: str | None) -> str:
    if reviewer is None or not 1 <= len(reviewer.strip()) <= 256 or not reviewer.isprintable():
        end(ExitCode.USAGE, "--reviewer NAME says whose decisions these are; give a name")
    return reviewer.strip()


def _topic(name: str | None) -> str | None:
    if name is not None and not re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", name):
        end(ExitCode.USAGE, f"--to-topic {name!r} is no name of a topic; use up to 249 letters, digits, dots, underscores and hyphens")
    return name


def _needs_extra() -> None:
    from importlib.util import find_spec

    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        end(ExitCode.USAGE, f"the desk needs {' and '.join(missing)}; install fifa-stream[review]")


def _plain(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text)
