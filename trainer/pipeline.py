"""Checkpoint to bundle, bundle to tables: the steps of `fifa-train export` and `fifa-train evaluate`, in order."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from engines.analyzer import Analyzer
from engines.contracts import Manifest, PartName
from engines.export import Precision, round_module
from engines.runtime import Bundle, Engine, bundled_engine, open_bundle
from trainer.annotator.annotate import load_annotations
from trainer.bundle import draft_manifest, score_histogram, seal, write_parts
from trainer.checkpoint import load_model
from trainer.evaluate import (
    calibrate,
    detection_table,
    explanation_table,
    localisation_table,
    of_part,
    parity_table,
    score_faces,
    type_table,
)
from trainer.faces import Face, Part
from trainer.parts import torch_engines
from trainer.pretrained import centerface

PARITY_FACES = 100
LICENCE_FILES = ("WEIGHTS_LICENCE.txt", "NOTICE.txt", "MODEL_CARD.md")


def export_bundle(faces: Sequence[Face], checkpoint: Path, out: Path, *, name: str, version: str, precision: str) -> Manifest:
    """Write, calibrate and seal a bundle. Raises ValueError for an unknown precision."""
    if precision not in get_args(Precision):
        raise ValueError(f"--precision {precision!r} is not supported; choose {' or '.join(get_args(Precision))}")
    model, config = load_model(checkpoint)
    parts = write_parts(model, centerface(), checkpoint / "tokenizer.json", out, precision=cast(Precision, precision))
    for file in LICENCE_FILES:
        source = bundled_engine() / file
        if source.is_file() and source.resolve() != (out / file).resolve():
            shutil.copyfile(source, out / file)
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    draft = draft_manifest(
        config.model, parts, out, name=name, version_=version, precision=cast(Precision, precision), provenance={"checkpoint_sha256": digest}
    )
    seal(out, draft)
    scored = score_faces(Analyzer(open_bundle(out)), of_part(faces, "calibrate"))
    calibration, points, probability = calibrate(scored)
    draft |= {
        "calibration": calibration.model_dump(mode="json"),
        "operating_points": {key: point.model_dump(mode="json") for key, point in points.items()},
        "default_operating_point": "standard",
        "score_baseline": score_histogram(probability),
    }
    return seal(out, draft)


def evaluate_bundle(
    faces: Sequence[Face],
    engine: Path | None,
    *,
    part: str,
    annotations: Path | None,
    checkpoint: Path | None,
    threads: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the tables and the explanation samples. Raises ValueError for an unknown part."""
    if part not in get_args(Part) or part == "train":
        raise ValueError(f"--part {part!r} is not a dev part; choose select, calibrate or report")
    chosen = of_part(faces, cast(Part, part))
    bundle = open_bundle(engine or bundled_engine(), threads=threads)
    analyzer = Analyzer(bundle)
    scored = score_faces(analyzer, chosen)
    rows = {(row["dataset"], row["name"]): row for row in load_annotations(annotations / "dev.jsonl")} if annotations is not None else {}
    tables: dict[str, Any] = {"Detection": detection_table(scored, analyzer.operating_point), "Forgery type": type_table(scored)}
    tables["Localisation"] = localisation_table(analyzer, chosen, rows)
    samples: list[dict[str, Any]] = []
    if rows:
        tables["Explanations"], samples = explanation_table(analyzer, chosen, rows)
    if checkpoint is not None:
        tables["Parity with torch"], tables["Price of fp16 storage"] = _parity(bundle, analyzer, checkpoint, chosen)
    return tables, samples


def _parity(bundle: Bundle, analyzer: Analyzer, checkpoint: Path, faces: Sequence[Face]) -> tuple[dict[str, float], dict[str, float]]:
    """Against the checkpoint rounded to the stored precision, and what the rounding itself costs against the fp32 checkpoint."""
    rng = np.random.default_rng(0)
    sample = [faces[i] for i in rng.permutation(len(faces))[:PARITY_FACES]]
    found = []
    for rounds in (True, False):
        model, _ = load_model(checkpoint)
        table = model.language.model.embed_tokens.weight.detach().numpy().copy()
        if rounds:
            round_module(model)
            table = bundle.token_embeddings_VE
        engines: dict[PartName, Engine] = {**torch_engines(model), "face_detector": bundle.engines["face_detector"]}
        found.append(parity_table(analyzer, Analyzer(replace(bundle, engines=engines, token_embeddings_VE=table)), sample))
    return found[0], found[1]
