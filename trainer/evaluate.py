"""`fifa-train evaluate`: a part of the dev sets becomes FiFa-Bench, an engine answers it, and `fifa_bench.score` makes the tables.

The bench is instruction data in the held-out grammar: the answers are worded as no training text is. Baselines answer the same samples, so that
every figure stands beside one of a system that never looks, and beside those of other systems whose files are given.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from engines.analyzer import Analyzer
from trainer.annotator.annotate import load_annotations, process_annotator
from trainer.annotator.reference_mask import frozen_mask
from trainer.calibrate import of_part
from trainer.faces import Face, ImageHWC, Part, fit
from trainer.fifa_bench import baselines
from trainer.fifa_bench.detection import auc
from trainer.fifa_bench.engine_probes import engine_probes
from trainer.fifa_bench.fairness import FAIRNESS_SETS, RealFace, error_rates, skin_luma
from trainer.fifa_bench.foreign import ADAPTERS
from trainer.fifa_bench.masks import MaskHW
from trainer.fifa_bench.predict import AskedFace, masks_by_answer, predict, resized_mask
from trainer.fifa_bench.robustness import as_tables, sweep
from trainer.fifa_bench.score import Tables, score
from trainer.fifa_bench.shortcut import JudgedFace, shortcut_table
from trainer.instruct import GROUPS, OWN, Recipe, subjects
from trainer.samples import SIDE, Prediction, Sample, read_predictions
from trainer.shards import on_cores, read_shards, write_instructions

BENCH_RECIPE = Recipe(grammar="held_out", queries=2, shuffled_queries=0.5)
"""What is asked of a dev face: all eleven tasks, two regions and two boxes; every second of them once more with another's question."""
MASK_FOLDERS = ("sida", "fakeshield")
MIN_SWEPT = 50
"""Groups of fewer drawn faces are left out of the sweep's table."""
PROBED_FACES = 320
"""Faces that the probes of a running engine look at, first in the bench's drawn order: each costs about 20 passes of the encoder."""
SWEPT_GROUPS = ("dfdc", "dfdc_curated", "stargan", "ffhq_stylegan2", "sd21_photographs")
COMPARED_GROUPS = ("dfdc", "stargan", "ffhq_stylegan2", "sd21_photographs", "survey_stylegan2")
"""Detection groups whose AUC stands beside those of other systems."""
LESS_IS_BETTER = ("hallucination", "unlisted")
"""Main figures that count what is wrong."""


def build_bench(faces: Sequence[Face], annotations: Path, part: Part, out: Path, *, workers: int = 1) -> None:
    """Write FiFa-Bench of one part into a folder; what stands there already is kept. Faces without an annotation are asked `det` and `cls`."""
    rows = [row for row in load_annotations(annotations / "dev.jsonl") if row["part"] == part]
    asked = subjects(rows, faces, annotations, extra=of_part(faces, part))
    write_instructions(asked, out, BENCH_RECIPE, mapper=on_cores(workers))


def bench_faces(bench: Path, originals: Iterable[Face] = ()) -> Iterator[AskedFace]:
    """The faces of a bench with their samples; where an original is given, its pixels in place of the shard's second JPEG."""
    by_name = {(face.dataset, face.name): face for face in originals}
    for crop_HWC, samples in read_shards(bench):
        original = by_name.get((samples[0].dataset, samples[0].name))
        yield (crop_HWC if original is None else original.image()), samples


def evaluate_engine(
    analyzer: Analyzer, bench: Path, originals: Sequence[Face], *, text: bool = True, others: Mapping[str, Path] | None = None
) -> tuple[Tables, list[Sample], list[Prediction]]:
    """Every table of FiFa-Bench for an engine; its probes, baselines, and `others` (`other_row`) by name beside it."""
    asked = list(bench_faces(bench, originals))
    samples = [sample for _, of_face in asked for sample in of_face]
    predictions = list(predict(analyzer, asked))
    by_name = {(face.dataset, face.name): face for face in originals}

    def twin_of(sample: Sample) -> ImageHWC | None:
        face = by_name.get((sample.dataset, sample.name))
        twin = by_name.get((face.dataset, face.real_twin)) if face is not None and face.real_twin else None
        return None if twin is None else twin.image()

    probes = engine_probes(analyzer, asked, regions_of=_regions_of, twin_of=twin_of, limit=PROBED_FACES)
    point = analyzer.operating_point
    tables = score(samples, predictions, text=text, cuts=(point.real_below, point.fake_at), engine_probes=probes)
    judged = judged_faces(asked, predictions)
    tables["sharpness as a shortcut"] = shortcut_table(
        partial(_scored, analyzer), [face for face, _ in judged], size=analyzer.manifest.preprocess.image_size
    )
    tables["error rates on real faces by group"] = error_rates(
        [_real_face(face, sample) for face, sample in judged if not sample.is_fake and sample.dataset in FAIRNESS_SETS],
        real_below=point.real_below,
        fake_at=point.fake_at,
    )
    tables["beside systems that do not look"] = rows = beside(tables, asked, samples, others or {}, text=text)
    tables["lead over the constant, least first"] = leads(rows)
    return tables, samples, predictions


def judged_faces(asked: Sequence[AskedFace], predictions: Iterable[Prediction]) -> list[tuple[JudgedFace, Sample]]:
    """Each face that has a `det` sample and a score for it, with that sample."""
    score_of = {prediction.id: prediction.fake_score for prediction in predictions}
    return [
        (JudgedFace(crop_HWC, sample.is_fake, f"{sample.dataset}/{sample.unit}", sample.group, score), sample)
        for crop_HWC, of_face in asked
        for sample in of_face
        if sample.task == "det" and (score := score_of.get(sample.id)) is not None
    ]


def _real_face(face: JudgedFace, sample: Sample) -> RealFace:
    region_of = _regions_of(face.crop_HWC)
    return RealFace(sample.dataset, sample.name, face.unit, face.fake_score, None if region_of is None else skin_luma(face.crop_HWC, region_of))


def _scored(analyzer: Analyzer, crops_BHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.asarray(analyzer.calibrated(analyzer.encode(crops_BHWC)["det_logit"]), np.float64)


def score_file(bench: Path, predictions: Path, *, system: str = "ours", masks: Path | None = None, text: bool = True) -> Tables:
    """Score what another system wrote. `system` is 'ours' (JSON lines of `samples.Prediction`) or one of `fifa_bench.foreign.ADAPTERS`, two of which
    keep their masks in a folder of their own. Raises ValueError for files of another shape."""
    if system != "ours" and system not in ADAPTERS:
        raise ValueError(f"{system!r} is no system whose files are read; choose from ours, {', '.join(ADAPTERS)}")
    if (masks is not None) != (system in MASK_FOLDERS):
        raise ValueError(f"{system} {'needs its' if masks is None else 'has no'} folder of masks; {', '.join(MASK_FOLDERS)} do")
    samples = [sample for _, of_face in read_shards(bench) for sample in of_face]
    if system == "ours":
        return score(samples, read_predictions(predictions), text=text)
    return score(samples, ADAPTERS[system](samples, predictions, *([masks] if masks else [])), text=text)


def detections(bench: Path, faces: Iterable[Face], score_faces: Callable[[list[Face]], NDArray[np.float32]]) -> Iterator[Prediction]:
    """What a classifier that is no engine answers to the `det` samples of a bench: `score_faces` gives (N,) raw logits, higher meaning fake.

    Manipulations of our own are no part of any set; the bench holds them. Raises ValueError where another face of it is not among `faces`.
    """
    by_name, asked = {(face.dataset, face.name): face for face in faces}, list[Sample]()
    for crop_HWC, of_face in read_shards(bench):
        asked += (detection := [sample for sample in of_face if sample.task == "det"])
        for sample in detection:
            if sample.dataset == OWN:
                by_name[OWN, sample.name] = _as_face(crop_HWC, sample)
    if lacking := [f"{sample.dataset}/{sample.name}" for sample in asked if (sample.dataset, sample.name) not in by_name]:
        raise ValueError(f"{len(lacking)} faces of {bench} are not in the data, {lacking[0]} first; give the data that the bench was made of")
    scores_N = expit(np.float64(score_faces([by_name[sample.dataset, sample.name] for sample in asked])))
    for sample, fake_score in zip(asked, scores_N, strict=True):
        yield Prediction(id=sample.id, fake_score=float(fake_score))


def _as_face(crop_HWC: NDArray[np.uint8], sample: Sample) -> Face:
    png = cv2.imencode(".png", crop_HWC[..., ::-1])[1].tobytes()
    return Face(sample.name, sample.dataset, png, None, sample.is_fake, sample.forgery_type, sample.unit, "report")


def beside(
    tables: Tables, asked: Sequence[AskedFace], samples: Sequence[Sample], others: Mapping[str, Path] | None = None, *, text: bool = False
) -> dict[str, dict[str, float]]:
    """The engine's main figures beside those of the constant answer, the spectrum heuristic, the perfect answer, and other systems' files by name.

    The constant is learned from the very samples that are scored, which favours it. `text` adds its METEOR, which needs Java (FileNotFoundError
    without it); the engine's is taken from `tables`. Raises ValueError for a name that is taken and for what `other_row` refuses.
    """
    rows = {"engine": _main_figures(tables)}
    constant = baselines.Constant.of(samples)
    for name, system in (("constant", constant), ("residual heuristic", baselines.residual_heuristic), ("oracle", baselines.oracle)):
        predictions = list(system(asked))
        rows[name] = _main_figures(score(samples, predictions, intervals=False, text=False))
        if text and system is constant:
            rows[name] |= _word_figures(samples, predictions)
    for name, path in (others or {}).items():
        if name in rows:
            raise ValueError(f"{name!r} names a row of the table already; give {path} another name")
        rows[name] = other_row(samples, path)
    return rows


def leads(rows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Each figure of the engine beside the constant's and by how much it is the better one, least first: below 0, who never looks is better."""
    table = {}
    for name in rows["engine"].keys() & rows["constant"].keys():
        engine, constant = rows["engine"][name], rows["constant"][name]
        table[name] = {"engine": engine, "constant": constant, "lead": constant - engine if name in LESS_IS_BETTER else engine - constant}
    return dict(sorted(table.items(), key=lambda item: (item[1]["lead"], item[0])))


def other_row(samples: Sequence[Sample], path: Path) -> dict[str, float]:
    """Main figures of another system on the same samples: of predictions (.jsonl), or of the scores of a plain classifier (.json, `read_scores`)."""
    if path.suffix == ".jsonl":
        return _main_figures(score(samples, read_predictions(path), intervals=False, text=False))
    return baseline_row(samples, read_scores(path))


def read_scores(path: Path) -> dict[str, float]:
    """A JSON object of raw scores by face, as 'dfdc/abc.jpg' (set and name), higher meaning fake. Raises ValueError for anything else."""
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); write an object of face -> raw score") from None
    if not isinstance(scores, dict) or not scores or not all(type(value) in (int, float) and isfinite(value) for value in scores.values()):
        raise ValueError(f"{path} is no object of face -> finite raw score; write it as {{'dfdc/abc.jpg': 1.73, ...}}")
    return {face: float(value) for face, value in scores.items()}


def baseline_row(samples: Sequence[Sample], scores: Mapping[str, float]) -> dict[str, float]:
    """The AUC of a plain classifier in each detection group that it scores as a whole; scores of other faces are passed over.

    Raises ValueError for a group of which it leaves faces out: an AUC over others is no comparison.
    """
    asked = [sample for sample in samples if sample.task == "det"]
    row = {}
    for group in COMPARED_GROUPS:
        members = [sample for sample in asked if group in sample.group]
        score_of = {sample.id: scores.get(f"{sample.dataset}/{sample.name}") for sample in members}
        if all(value is None for value in score_of.values()) or len({sample.is_fake for sample in members}) < 2:
            continue
        if missing := [sample for sample in members if score_of[sample.id] is None]:
            first = f"{missing[0].dataset}/{missing[0].name}"
            raise ValueError(f"{len(missing)} of {len(members)} faces of {group} have no score, the first is {first}; score all of them or none")
        row[f"auc_{group}"] = auc(np.array([sample.is_fake for sample in members]), np.array([score_of[sample.id] for sample in members], float))
    if not row:
        raise ValueError("not one detection group is scored; faces are named 'dfdc/abc.jpg', by set and name")
    return row


def _main_figures(tables: Mapping[str, Any]) -> dict[str, float]:
    wanted = {
        **{f"auc_{group}": ("detection", group, "auc") for group in COMPARED_GROUPS},
        "type_macro_f1": ("forgery type", "all", "macro_f1"),
        "loc_miou": ("localisation", "image", "miou"),
        "loc_miou_frozen": ("localisation against the frozen reference", "image", "miou"),
        **{f"loc_miou_{level}": ("localisation", level, "miou") for level in ("region", "box")},
        "balanced_accuracy": ("localisation", "image", "balanced_accuracy"),
        **{f"balanced_accuracy_{level}": ("localisation", level, "balanced_accuracy") for level in ("region", "box")},
        "age_miou": ("grounding", "image", "miou"),
        **{f"age_miou_{level}": ("grounding", level, "miou") for level in ("region", "box")},
        **{measure: ("text-mask alignment", "image", measure) for measure in LESS_IS_BETTER},
        "age_meteor": ("text", "age/image", "meteor"),
    }
    found = {name: tables.get(table, {}).get(row, {}).get(measure) for name, (table, row, measure) in wanted.items()}
    return {name: value for name, value in found.items() if value is not None}


def _word_figures(samples: Sequence[Sample], predictions: Sequence[Prediction]) -> dict[str, float]:
    """Main figures of text alone: of `age` of the whole face, so that Java reads no more than is shown."""
    told = [sample for sample in samples if (sample.task, sample.level) == ("age", "image")]
    ids = {sample.id for sample in told}
    found = score(told, [prediction for prediction in predictions if prediction.id in ids], intervals=False) if told else {}
    return _main_figures({"text": found.get("text", {})})


def _regions_of(crop_HWC: ImageHWC) -> Callable[[str], MaskHW] | None:
    found = process_annotator().regions(crop_HWC)
    return None if found is None else found.mask


def robustness_table(analyzer: Analyzer, faces: Sequence[Face], *, count: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """What JPEG, H.264, size, noise and blur cost `count` drawn faces, the same in every row.

    AUC and false alarms by group, and mask IoU on curated pairs against the frozen reference.
    """
    drawn = [faces[i] for i in sorted(np.random.default_rng(seed).permutation(len(faces))[:count])]
    twins = {(face.dataset, face.name): face for face in faces if not face.is_fake}

    def located(crops_BHWC: NDArray[np.uint8]) -> list[MaskHW]:
        encoded = analyzer.encode(crops_BHWC)
        found = masks_by_answer(analyzer, encoded, range(len(crops_BHWC)), analyzer.decode(encoded["prefix_embeds"], "loc"))
        return [resized_mask(masks_MHW.max(0)) if len(masks_MHW) else np.zeros((SIDE, SIDE), bool) for masks_MHW, _ in found]

    def reference(face: Face) -> MaskHW | None:
        twin = twins.get((face.dataset, face.real_twin or ""))
        return frozen_mask(fit(twin.image(), SIDE), fit(face.image(), SIDE)) if twin is not None and face.pair_quality == "curated" else None

    rows = sweep(
        partial(_scored, analyzer),
        drawn,
        size=analyzer.manifest.preprocess.image_size,
        fake_at=analyzer.operating_point.fake_at,
        groups={name: GROUPS[name] for name in SWEPT_GROUPS},
        locate=located,
        reference=reference,
    )
    return {
        f"{group}, {perturbation}": {name: float(value) for name, value in figures.items() if value is not None}
        for group, table in as_tables(rows).items()
        for perturbation, figures in table.items()
        if (figures["faces"] or 0) >= MIN_SWEPT
    }
