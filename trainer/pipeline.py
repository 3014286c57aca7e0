"""Checkpoint to bundle, and bundle against checkpoint: the steps of `fifa-train export`, in order."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

import numpy as np

from engines.analyzer import Analyzer
from engines.bundle import MANIFEST_NAME, Bundle, bundled_engine, open_bundle, read_manifest, verify_files
from engines.contracts import MANIFEST_SCHEMA, BundleError, BundleFault, Manifest
from engines.export import Precision
from trainer.acceptance_pack import reference_bundle
from trainer.bundle import LICENCES, draft_manifest, score_histogram, seal, write_parts, write_region_parser
from trainer.calibrate import FITTED_PARTS, calibrate, of_part, score_faces
from trainer.checkpoint import load_model
from trainer.faces import Face
from trainer.parity import parity_table
from trainer.pretrained import centerface
from trainer.region_parser.model import RegionParser
from trainer.region_parser.train import load_parser

PARITY_FACES = 100
REGION_MASK_CUT = 0.2
"""Of masks within their regions, chosen on *select* (docs/experiments.md): the mask decoder leaves the rims of regions out."""
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
    scored = score_faces(Analyzer(open_bundle(out)), [face for part in FITTED_PARTS for face in of_part(faces, part)])
    calibration, points, probability = calibrate(scored)
    draft |= {
        "calibration": calibration.model_dump(mode="json"),
        "operating_points": {key: point.model_dump(mode="json") for key, point in points.items()},
        "default_operating_point": "standard",
        "score_baseline": score_histogram(probability),
    }
    return seal(out, draft)


def find_parser(source: Path, *, grid: int = 64) -> Manifest | RegionParser:
    """The manifest of a sealed bundle that has a region parser, or the parser of a finished run of `regions`; all files of either are looked at.

    Raises BundleError for a damaged bundle, ValueError for one without a parser and for a torn run, FileNotFoundError for an unfinished one.
    """
    if not (source / MANIFEST_NAME).is_file():
        return load_parser(source, grid=grid)
    manifest = read_manifest(source)
    verify_files(source, manifest)
    if "region_parser" not in manifest.parts or manifest.build is not None:
        kind = "is a build" if manifest.build is not None else "has no region parser"
        raise ValueError(f"{source} {kind}; name a bundle that was exported with one, or a run of: fifa-train regions")
    return manifest


def add_region_parser(bundle: Path, source: Path, *, version: str | None = None) -> Manifest:
    """Put a region parser into a bundle and seal it as `version` or as the one it was; every other graph stays. `source` is a finished run, whose
    parser is stored as the bundle stores its weights, or another bundle, whose graph is taken over as it is.

    Raises BundleError for a damaged bundle and for a build, FileNotFoundError for an unfinished run, ValueError for a source of another kind.
    """
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    if manifest.build is not None:
        raise BundleError(BundleFault.UNSUPPORTED, f"{bundle} is a build; put the parser into the bundle that it was built from, and build again")
    preprocess = manifest.preprocess
    other = find_parser(source, grid=preprocess.mask_size)
    if isinstance(other, RegionParser):
        part = write_region_parser(other, bundle, image_size=preprocess.image_size, precision=cast(Precision, manifest.precision))
        digest = hashlib.sha256((source / "parser" / "model.safetensors").read_bytes()).hexdigest()
    else:
        part, theirs = other.parts["region_parser"], other.preprocess
        if (theirs.image_size, theirs.mask_size, other.precision) != (preprocess.image_size, preprocess.mask_size, manifest.precision):
            raise ValueError(f"the parser of {source} is for other sizes, or stored otherwise; train one with: fifa-train regions --into {bundle}")
        shutil.copyfile(source / part.file, bundle / part.file)
        digest = other.provenance["region_parser_sha256"]
    body = json.loads(manifest.model_dump_json()) | {"schema_version": MANIFEST_SCHEMA, "region_mask_cut": REGION_MASK_CUT, "wording": "measured"}
    body["version"] = version or manifest.version
    body["licences"]["region_parser"] = LICENCES["region_parser"]
    body["parts"]["region_parser"] = part.model_dump(mode="json")
    body["provenance"]["region_parser_sha256"] = digest
    return seal(bundle, body)


def parity_tables(engine: Path, checkpoint: Path, faces: Sequence[Face], *, threads: int) -> dict[str, dict[str, dict[str, float]]]:
    """A bundle against its checkpoint: as stored, and what the storing cost."""
    bundle = open_bundle(engine, threads=threads)
    as_stored, price = _parity(bundle, Analyzer(bundle, wording="decoded"), checkpoint, faces)
    return {"parity": {"against torch, as stored": as_stored, "against torch, fp32": price}}


def _parity(bundle: Bundle, analyzer: Analyzer, checkpoint: Path, faces: Sequence[Face]) -> tuple[dict[str, float], dict[str, float]]:
    """Against the checkpoint rounded to the stored precision, and what the rounding itself costs against the fp32 checkpoint."""
    rng = np.random.default_rng(0)
    sample = [faces[i] for i in rng.permutation(len(faces))[:PARITY_FACES]]
    found = []
    for rounded in (True, False):
        reference = Analyzer(reference_bundle(bundle, load_model(checkpoint)[0], rounded=rounded), wording="decoded")
        found.append(parity_table(analyzer, reference, sample))
    return found[0], found[1]
