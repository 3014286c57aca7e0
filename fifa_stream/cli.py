"""`fifa-stream`: parses, builds the settings, calls. No import at the top that `--help` would have to wait for."""

import contextlib
import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fifa_stream import dead_letters_cli, engine_cli, operate_cli, review_cli
from fifa_stream.exits import ExitCode, clear_errors, end, leave
from fifa_stream.options import BootstrapOption, ConfigOption, load_settings

if TYPE_CHECKING:
    from fifa_stream.records import Query


class Explain(enum.StrEnum):
    """Which faces get an explanation."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


app = typer.Typer(
    name="fifa-stream",
    help="Face-forgery verdicts for frames from Kafka, with explanations whose every phrase points at pixels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(dead_letters_cli.app, name="dead-letters")
app.add_typer(engine_cli.app, name="engine")
app.add_typer(operate_cli.topics_app, name="topics")
app.add_typer(review_cli.app, name="review")

EngineOption = Annotated[Path | None, typer.Option("--engine", help="Engine bundle; default: the one in the package.")]
RegionOption = Annotated[str | None, typer.Option("--region", metavar="NAME", help="Ask about one facial concept: right_cheek, or 'right cheek'.")]
BoxOption = Annotated[str | None, typer.Option("--box", metavar="X0,Y0,X1,Y1", help="Ask about a box, in pixels of the image; far edges exclusive.")]


@app.command()
def run(config: ConfigOption = None) -> None:
    """Serve: frames in, verdicts out, until SIGTERM."""
    with clear_errors():
        import logging

        from fifa_stream.runner import Outcome
        from fifa_stream.serve import load_pipeline, serve
        from fifa_stream.telemetry import configure_logging

        settings = load_settings(config)
        telemetry = settings.telemetry
        configure_logging(level=telemetry.log_level, style=telemetry.log_format, kafka_level=telemetry.kafka_log_level)
        logging.getLogger("fifa_stream").info("settings: %s", settings.masked_json())
        outcome = serve(settings, lambda: load_pipeline(settings), load_shadow=lambda: load_pipeline(settings, is_shadow=True))
        ends = {Outcome.DRAINED: ExitCode.OK, Outcome.DRAIN_TIMEOUT: ExitCode.DRAIN_TIMEOUT, Outcome.ABORTED: ExitCode.ABORTED}
        leave(ends[outcome])


@app.command()
def send(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    bootstrap: BootstrapOption = None,
    topic: Annotated[str | None, typer.Option("--topic", help="Default: kafka.frames_topic.")] = None,
    stream_id: Annotated[str, typer.Option("--stream-id", help="Key of the records; one stream stays in order.")] = "cli",
    crop: Annotated[bool, typer.Option("--crop", help="The images already are face crops.")] = False,
    region: RegionOption = None,
    box: BoxOption = None,
    store: Annotated[
        str | None,
        typer.Option("--store", metavar="URI_PREFIX", help="Put large images here and send claims: file:///FOLDER/ or s3://BUCKET/PREFIX/."),
    ] = None,
    record: Annotated[Path | None, typer.Option("--record", metavar="FILE", help="And write what was sent to a new file, for `replay`.")] = None,
    config: ConfigOption = None,
) -> None:
    """Put images on the frames topic."""
    with clear_errors():
        query = _query(region, box)
        from fifa_stream.send import LargeImages, send_images
        from fifa_stream.tracing import open_tracing

        settings = load_settings(config, bootstrap)
        kafka = settings.kafka
        topic = topic or kafka.frames_topic
        large_images = LargeImages(store, settings.claims) if store else None
        with contextlib.closing(open_tracing(settings.telemetry)) as tracing:
            count = send_images(
                kafka,
                images,
                topic=topic,
                stream_id=stream_id,
                crop=crop,
                query=query,
                large_images=large_images,
                record_to=record,
                tracing=tracing,
            )
        typer.echo(f"{count} sent to {topic}")


@app.command()
def analyze(
    paths: Annotated[list[Path], typer.Argument(metavar="IMAGE|VIDEO|DIR...", help="Image and MP4 files, or folders of them.")],
    crop: Annotated[bool, typer.Option("--crop", help="The images already are face crops.")] = False,
    region: RegionOption = None,
    box: BoxOption = None,
    explain: Annotated[Explain, typer.Option("--explain", help="auto: only faces that look manipulated.")] = Explain.AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line an image, in the order given.")] = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="PAGE", help="Write a page with faces, scores and masks.")] = None,
    fps: Annotated[float, typer.Option("--fps", min=0.01, max=120.0, help="Frames looked at per second of a video.")] = 4.0,
    engine: EngineOption = None,
) -> None:
    """Judge images without a broker; of a video also who is manipulated when."""
    with clear_errors():
        query = _query(region, box)
        from fifa_stream.analyze import analyze_paths
        from fifa_stream.analyze_video import VideoOptions

        video = VideoOptions(fps=fps)
        raise typer.Exit(analyze_paths(paths, engine=engine, crop=crop, query=query, explain=explain.value, video=video, as_json=as_json, html=html))


@app.command()
def demo(
    frames: Annotated[Path | None, typer.Option("--frames", metavar="DIR", help="Your own images instead of the built-in stream.")] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the page goes.")] = Path("demo-out"),
) -> None:
    """Run the whole path on this machine: embedded broker, stream, verdicts, page."""
    with clear_errors():
        from fifa_stream.demo import run_demo

        raise typer.Exit(run_demo(frames, out))


for command in (operate_cli.check, operate_cli.lag, operate_cli.replay):
    app.command()(command)


@app.command(hidden=True)
def reference() -> None:
    """Print docs/configuration.md."""
    typer.echo(reference_page(), nl=False)


def reference_page() -> str:
    """All settings, metrics, probes and exit statuses, from the code that defines them."""
    from fifa_stream import config, telemetry

    codes = "\n".join(f"| {code.value} | {code.name} | {code.meaning} |" for code in ExitCode)
    return f"""# Configuration

Generated by `fifa-stream reference > docs/configuration.md`; a test keeps it in step.

Defaults are overridden by the TOML file of `--config`, and that by environment variables: `kafka.group_id` is `FIFA_KAFKA__GROUP_ID`, or `group_id`
under `[kafka]` in the file. An unknown name is an error. The effective settings are logged once at start, passwords masked.

## Settings

{config.reference()}
## Questions

Header `fifa-query` of a frame asks every face about one area: a FICT id (`right_cheek`), its words (`right cheek`), or a box `x0,y0,x1,y1` in
pixels of the frame, far edges exclusive. `fifa-stream send` sets it from `--region` or `--box`; `fifa-stream analyze` takes the same two. A value
that is neither is dead-lettered as `invalid_header`.

`query` of the verdict repeats the question and holds an answer for each face that was asked: whether the area is tampered and how probably, a
mask, and an explanation of this area whose phrases point at pixels. A clean area has a sentence, an empty mask and no evidence. Masks of a box
question hold only pixels that lie in the box with their whole area. Score, label and explanation of the whole face are what they are without a
question.

A face is not asked when it is unfit to be judged, when its frame is late, or when the box covers less than a pixel of its crop. Where no face was
asked, a note of the verdict says why: `query_not_on_a_face` (no face is there) or `query_not_answered` (the frame is late, the face is unfit, or
the bundle answers no such questions: `query_levels` of its manifest).

## Health

One port, `runtime.health_port`: `/health/started` (engine loaded and group joined once), `/health/ready` (member of the group and not draining),
`/health/live` (the loop turned within the last {telemetry.STALL_AFTER_S:.0f} s), each 200 or 503, and `/metrics` in the Prometheus text format.

## Metrics

{telemetry.reference()}
## Exit statuses

| status | name | meaning |
|---|---|---|
{codes}
"""


def _query(region: str | None, box: str | None) -> "Query | None":
    """Read the two options that ask about an area; RecordError for a text that is no question ends the program with USAGE."""
    if region is not None and box is not None:
        end(ExitCode.USAGE, f"--region {region!r} and --box {box!r} are two questions; ask one")
    if region is not None and "," in region:
        end(ExitCode.USAGE, f"--region {region!r} is not a name such as right_cheek; a box goes to --box")
    if box is not None and "," not in box:
        end(ExitCode.USAGE, f"--box {box!r} is not four numbers x0,y0,x1,y1; a name goes to --region")
    text, option = (region, "--region") if box is None else (box, "--box")
    if text is None:
        return None
    from fifa_stream.records import parse_query

    return parse_query(text, source=option)


if __name__ == "__main__":
    app()
