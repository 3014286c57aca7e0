"""Writes the acceptance pack (`engines.acceptance`): which faces, and what the checkpoint says of them.

The reference is the checkpoint in torch, its weights rounded to the precision that the bundle stores, computed in fp32.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.acceptance import PackSpec, observe, write_pack
from engines.analyzer import Analyzer
from engines.bundle import Bundle
from engines.contracts import PartName
from engines.export import round_module
from engines.runtime import Engine
from trainer.calibrate import of_part
from trainer.checkpoint import load_model
from trainer.faces import Face, Part, fit
from trainer.model import FiFaMLLM
from trainer.parts import torch_engines

JUDGED_PART: Part = "select"
CALIBRATION_PART: Part = "calibrate"
"""Quantization is calibrated on other people than it is judged on."""
NUM_JUDGED = 400
NUM_CALIBRATION = 100
NUM_EXPLAINED = 64


def acceptance_pack(faces: Sequence[Face], bundle: Bundle, model: FiFaMLLM, out: Path) -> PackSpec:
    """Write the pack of a bundle and the model it was exported from (`checkpoint_of`, or `recovered_model` where no checkpoint is at hand).

    The model's weights are rounded in place. Raises ValueError where the faces to judge lack reals or fakes.
    """
    manifest = bundle.manifest
    judged = evenly(of_part(faces, JUDGED_PART), NUM_JUDGED)
    explained = [face for face in judged if face.is_fake][:NUM_EXPLAINED]
    if not explained or len(explained) == len(judged):
        raise ValueError(f"{len(judged)} faces of the {JUDGED_PART} part, {len(explained)} fakes, are no acceptance pack; it needs reals and fakes")
    judged = [*explained, *(face for face in judged if face not in explained)]
    calibration = evenly(of_part(faces, CALIBRATION_PART), NUM_CALIBRATION)
    size = manifest.preprocess.image_size
    judged_NHWC = _crops(judged, size)
    reference = Analyzer(reference_bundle(bundle, model, rounded=manifest.precision == "fp16"), wording="decoded")
    counts = Counter((face.dataset, face.is_fake) for face in judged)
    return write_pack(
        out,
        judged_NHWC=judged_NHWC,
        is_fake_N=np.array([face.is_fake for face in judged]),
        calibration_NHWC=_crops(calibration, size),
        reference=observe(reference, judged_NHWC, explained=len(explained)),
        about={
            "checkpoint_sha256": manifest.provenance.get("checkpoint_sha256", "unknown"),
            "stored": manifest.precision,
            "parts": {"judged": JUDGED_PART, "calibration": CALIBRATION_PART},
            "counts": {dataset: (counts[dataset, False], counts[dataset, True]) for dataset in sorted({face.dataset for face in judged})},
            "names": [hashlib.sha256(f"{face.dataset}/{face.name}".encode()).hexdigest() for face in (*judged, *calibration)],
        },
    )


def checkpoint_of(bundle: Bundle, checkpoint: Path) -> FiFaMLLM:
    """The model that a bundle was exported from. Raises ValueError where the checkpoint is another, and what `load_model` raises."""
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    if (stated := bundle.manifest.provenance.get("checkpoint_sha256", "unknown")) != digest:
        raise ValueError(f"{bundle.folder} was exported from checkpoint {stated[:12]}, {checkpoint} is {digest[:12]}; give the run that it is from")
    return load_model(checkpoint)[0]


def reference_bundle(bundle: Bundle, model: FiFaMLLM, *, rounded: bool) -> Bundle:
    """The bundle with the parts of its model in torch; `rounded`, in place, to fp16 as the bundle stores them, or as trained."""
    if rounded:
        round_module(model)
    table = bundle.token_embeddings_VE if rounded else model.language.model.embed_tokens.weight.detach().numpy().copy()
    engines: dict[PartName, Engine] = {**bundle.engines, **torch_engines(model)}  # detector and region parser are no parts of the model
    return replace(bundle, engines=engines, token_embeddings_VE=table)


def evenly(faces: Sequence[Face], count: int) -> list[Face]:
    """Up to `count` faces in turn from each set's reals and fakes, and within each from every person; what is small is taken whole."""
    rng = np.random.default_rng(0)
    strata: dict[tuple[str, bool], dict[str, list[Face]]] = defaultdict(lambda: defaultdict(list))
    for number in rng.permutation(len(faces)):
        face = faces[number]
        strata[face.dataset, face.is_fake][face.unit].append(face)
    return _in_turn([_in_turn(list(strata[key].values())) for key in sorted(strata)])[:count]


def _in_turn(rows: Sequence[Sequence[Face]]) -> list[Face]:
    """The first of each row, then the second of each, and so on."""
    return [face for face in chain.from_iterable(zip_longest(*rows)) if face is not None]


def _crops(faces: Sequence[Face], size: int) -> NDArray[np.uint8]:
    return np.stack([fit(face.image(), size) for face in faces])
