"""The annotator measured against what is known: exact masks, real/real pairs, the concepts of the exact mask, its own speed and memory.

Faces are real faces that nothing was trained on. One row a trial, drawn by a generator of its own (seed and number), so that no table depends on the
number of workers; `audit_tables` sums the rows up.
"""

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from engines import fict
from trainer.annotator import audit_speed, manipulate
from trainer.annotator.annotate import Annotator
from trainer.annotator.artifact import CODEC_QUALITIES, SIZE, iou, top_share_mask
from trainer.annotator.audit_tables import DEPTHS, MASKS, Row, Table, concept_table, control_table, markdown, mask_table, speed_table
from trainer.annotator.concepts import select_concepts
from trainer.annotator.regions import MeshRegions
from trainer.faces import Face, fit

ImageHWC = NDArray[np.uint8]
MaskHW = NDArray[np.bool_]

DATASETS = ("dfdc", "ffhq_stylegan2", "london", "amfd")
"""Sets whose real dev faces are audited: nothing of the annotator was fitted to them."""
AREA = 0.005, 0.40
"""Shares of the face oval, drawn log-uniformly."""
SAVED_QUALITY = 75, 95
"""JPEG qualities at which a manipulation and every real face is saved, both included: those of
the data sets on disk (75 to 92), and a little better."""
UNSEEN_QUALITIES = tuple(quality for quality in range(45, 98) if quality not in CODEC_QUALITIES)
"""JPEG qualities of the second face of a real/real pair: such as the noise floor does not re-encode at."""
ROUNDS = 2
"""Manipulations that a face may take part in."""
SPEED_PAIRS, SPEED_EACH = 64, 200
"""Pairs that speed is measured on, and how many each process annotates."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One face to manipulate or to disturb."""

    number: int
    face: Face
    donor: Face
    """Whose features a swap pastes."""


def audit(faces: Sequence[Face], out: Path, *, count: int, seed: int, workers: int, speed_pairs: int = 0) -> Table:
    """Audit on the real dev faces among `faces`; writes audit.json and audit.md into the folder `out`, returns what audit.json holds.

    `count` manipulations and as many real/real pairs; `speed_pairs` annotated pairs to measure memory over (10,000 take half an hour), 0 leaves speed
    and memory out. Raises ValueError where the faces do not suffice.
    """
    queue = trials(unseen(faces), seed)
    made = rows(partial(exact_row, seed=seed), queue, count, workers, "exact masks")
    controls = rows(partial(control_row, seed=seed), queue, count, workers, "real/real pairs")
    report: Table = {
        "seed": seed, "faces": len({row["face"] for row in made}), "masks": mask_table(made), "real_pairs": control_table(controls),
        "concepts": concept_table(made), "speed": measure_speed(faces, speed_pairs) if speed_pairs else None,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "audit.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (out / "audit.md").write_text(markdown(report), encoding="utf-8")
    return report


# Faces.


def unseen(faces: Sequence[Face]) -> list[Face]:
    """Real dev faces of `DATASETS`."""
    return [face for face in faces if not face.is_fake and face.part != "train" and face.dataset in DATASETS]


def trials(faces: Sequence[Face], seed: int) -> list[Trial]:
    """Every face `ROUNDS` times, in a drawn order that takes from each set in turn until it is used up: photographs are few beside DFDC.

    Raises ValueError with fewer than two faces.
    """
    if len(faces) < 2:
        raise ValueError(f"the audit needs at least two real dev faces of {', '.join(DATASETS)}, got {len(faces)}; see --data")
    rng = np.random.default_rng([seed, 0])
    piles = [[face for face in faces if face.dataset == dataset] for dataset in sorted({face.dataset for face in faces})]
    drawn: list[Face] = []
    for _ in range(ROUNDS):
        places = [(turn, dataset, pile[i]) for dataset, pile in enumerate(piles) for turn, i in enumerate(rng.permutation(len(pile)))]
        drawn += [face for _, _, face in sorted(places, key=lambda place: place[:2])]
    donors = rng.integers(1, len(drawn), len(drawn))
    return [Trial(k, face, drawn[(k + int(offset)) % len(drawn)]) for k, (face, offset) in enumerate(zip(drawn, donors, strict=True))]


def through_codec(image_HWC: ImageHWC, extension: str, quality: int) -> ImageHWC:
    """Encode and decode by '.jpg' or '.webp'."""
    flag = cv2.IMWRITE_JPEG_QUALITY if extension == ".jpg" else cv2.IMWRITE_WEBP_QUALITY
    encoded = cv2.imencode(extension, np.ascontiguousarray(image_HWC[..., ::-1]), [flag, quality])[1]
    return np.ascontiguousarray(np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)[..., ::-1])


@cache
def _annotator() -> Annotator:
    return Annotator()


def _crop(face: Face) -> ImageHWC:
    return np.ascontiguousarray(fit(face.image(), SIZE))


# Own manipulations: masks and concepts.


def exact_row(trial: Trial, seed: int) -> Row | None:
    """Manipulate one face, save it and its twin, and compare masks and concepts with the exact ones; None where the face shows no mesh."""
    rng = np.random.default_rng([seed, 1, trial.number])
    real, donor = _crop(trial.face), _crop(trial.donor)
    annotator = _annotator()
    landmarks, found = annotator.landmarks(real), annotator.regions(real)
    if landmarks is None or found is None:
        return None
    family = list(manipulate.RECIPES)[trial.number % len(manipulate.RECIPES)]
    recipe = str(rng.choice(manipulate.RECIPES[family]))
    area = float(np.exp(rng.uniform(*np.log(AREA))))
    guide = manipulate.Guide(landmarks, found.oval_HW, found.mask)
    made = manipulate.make(rng, recipe, real, guide, donor, annotator.landmarks(donor), area)
    real, fake = (through_codec(image, ".jpg", int(rng.integers(SAVED_QUALITY[0], SAVED_QUALITY[1] + 1))) for image in (real, made.image_HWC))
    exact_HW = made.alpha_HW > manipulate.ALPHA_CUT
    artifact = annotator.artifact(real, fake)
    masks = {"adaptive": artifact.mask_HW} | {
        name: top_share_mask(artifact.difference_HW, percent / 100) for name, percent in MASKS.items() if percent
    }
    levels = manipulate.change_levels(real, fake, exact_HW)
    note = annotator.tell(real, fake, artifact, forgery_type=made.forgery_type)
    found = annotator.regions(fake) or found
    return {
        "face": f"{trial.face.dataset}/{trial.face.name}", "family": family, "recipe": recipe, "area": round(area, 5), "levels": round(levels, 3),
        "faint": levels < manipulate.FAINT_LEVELS, "iou": {name: round(iou(mask_HW, exact_HW), 4) for name, mask_HW in masks.items()},
        "refused": note.refused, **concept_facts(found, exact_HW, note.mask_HW, [item.concept for item in note.concepts]),
    }  # fmt: skip


def concept_facts(found: MeshRegions, exact_HW: MaskHW, mask_HW: MaskHW, told: Sequence[str]) -> Row:
    """What the annotator named against what the exact mask holds.

    `cells`: by depth, the cells of the truth (the selection rule on the exact mask), of the rule on the annotator's mask, and of what its text names.
    `hallucinated`: named without one exact pixel in the place; `wrong_side`: on top of that, named on a side of the face that holds no exact pixel
    while the other does.
    """
    named = {"truth": select_concepts(found, exact_HW), "selected": select_concepts(found, mask_HW) if mask_HW.any() else [], "told": list(told)}
    hallucinated = [concept for concept in told if not (found.mask(concept) & exact_HW).any()]
    cells = {str(depth): {basis: cells_of(concepts, depth, found.visible) for basis, concepts in named.items()} for depth in DEPTHS}
    wrong_side = [concept for concept in hallucinated if _on_wrong_side(concept, found, exact_HW)]
    return {"cells": cells, "told": list(told), "hallucinated": hallucinated, "wrong_side": wrong_side}


def cells_of(concepts: Sequence[str], depth: fict.Depth, visible: frozenset[str]) -> list[str]:
    """Cells at one depth that share a visible atom with a named concept: ancestors of finer names, descendants of coarser ones. Arcs have none."""
    atoms = {atom for concept in concepts for atom in fict.concepts()[concept].atoms} & visible
    return [cell for cell in fict.cells(depth) if atoms & set(fict.concepts()[cell].atoms)]


def _on_wrong_side(concept: str, found: MeshRegions, exact_HW: MaskHW) -> bool:
    sides = [side for side in ("right", "left") if side in concept.split("_")]
    if not sides:
        return False
    names = {side: [atom for atom in (*fict.cells(112), *fict.BOUNDARY_ARCS) if side in atom.split("_")] for side in ("right", "left")}
    touched = {side: any((found.mask(atom) & exact_HW).any() for atom in atoms) for side, atoms in names.items()}
    return not touched[sides[0]] and touched["left" if sides[0] == "right" else "right"]


# Real/real pairs.


def _unseen_jpeg(rng: np.random.Generator, image_HWC: ImageHWC) -> ImageHWC:
    return through_codec(image_HWC, ".jpg", int(rng.choice(UNSEEN_QUALITIES)))


def _resized(rng: np.random.Generator, image_HWC: ImageHWC) -> ImageHWC:
    """To half or up to one and a half times the size, and back."""
    side = round(SIZE * float(rng.uniform(0.5, 1.5)))
    there, back = (int(way) for way in rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_LANCZOS4], 2))
    return cv2.resize(cv2.resize(image_HWC, (side, side), interpolation=there), (SIZE, SIZE), interpolation=back)


def _shifted(rng: np.random.Generator, image_HWC: ImageHWC) -> ImageHWC:
    """By one pixel to one of the eight sides."""
    dx, dy = ((-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (0, 1), (1, 1))[int(rng.integers(8))]
    return cv2.warpAffine(image_HWC, np.array([[1, 0, dx], [0, 1, dy]], np.float32), (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)


def _gamma(rng: np.random.Generator, image_HWC: ImageHWC) -> ImageHWC:
    gamma = float(np.exp(rng.uniform(np.log(0.8), np.log(1.25))))
    return np.round(255 * (image_HWC / 255.0) ** gamma).astype(np.uint8)


DISTURBANCES: dict[str, Callable[[np.random.Generator, ImageHWC], ImageHWC]] = {
    "jpeg": _unseen_jpeg,
    "jpeg_both": _unseen_jpeg,
    "jpeg_twice": lambda rng, image: _unseen_jpeg(rng, _unseen_jpeg(rng, image)),
    "webp": lambda rng, image: through_codec(image, ".webp", int(rng.integers(50, 96))),
    "resize": lambda rng, image: _unseen_jpeg(rng, _resized(rng, image)),
    "shift": lambda rng, image: _unseen_jpeg(rng, _shifted(rng, image)),
    "gamma": lambda rng, image: _unseen_jpeg(rng, _gamma(rng, image)),
}
"""What happens to a real face's twin that is no manipulation; all but WebP end in a JPEG of unseen quality. The first face is saved
as data sets save theirs; in `jpeg_both` it too has a quality that the noise floor never saw."""


def control_row(trial: Trial, seed: int) -> Row:
    """Annotate a real face against itself, differently disturbed: nothing must be found."""
    rng = np.random.default_rng([seed, 2, trial.number])
    real = _crop(trial.face)
    kind = list(DISTURBANCES)[trial.number % len(DISTURBANCES)]
    other = DISTURBANCES[kind](rng, real)
    real = _unseen_jpeg(rng, real) if kind == "jpeg_both" else through_codec(real, ".jpg", int(rng.integers(SAVED_QUALITY[0], SAVED_QUALITY[1] + 1)))
    note = _annotator().pair(real, other, forgery_type="identity_swap")
    area = note.facts["area"]  # that of the mask, told also where the pair is refused after it was made
    return {
        "face": f"{trial.face.dataset}/{trial.face.name}", "disturbance": kind, "area": area, "refused": note.refused,
        "empty_mask": area == 0.0 and not note.mask_HW.any(), "empty_text": note.markup == "",
    }  # fmt: skip


# Many.


def rows(work: Callable[[Trial], Row | None], queue: Sequence[Trial], count: int, workers: int, description: str) -> list[Row]:
    """The first `count` rows that are not None, in the order of the queue whatever the number of processes. Raises ValueError where it runs dry."""
    kept: list[Row] = []
    found = (row for row in _mapped(work, queue, workers) if row is not None)
    for row in track(found, description=description, total=count, console=Console(stderr=True)):
        kept.append(row)
        if len(kept) == count:
            return kept
    raise ValueError(f"{description}: {count} asked, but {len(queue)} trials gave {len(kept)}; ask for fewer or give more faces")


def _mapped(work: Callable[[Trial], Row | None], queue: Sequence[Trial], workers: int) -> Iterator[Row | None]:
    if workers <= 1:
        _single_thread()
        yield from map(work, queue)
        return
    with audit_speed.one_thread_each():
        pool = multiprocessing.get_context("spawn").Pool(workers, initializer=_single_thread)
    with pool:
        yield from pool.imap(work, queue, chunksize=4)


def _single_thread() -> None:
    cv2.setNumThreads(1)


def measure_speed(faces: Sequence[Face], memory_pairs: int) -> Table:
    """Pairs a second at one and two workers; resident memory of a worker after a tenth of `memory_pairs` and after all of them."""
    pairs = audit_speed.pairs_of([face for face in faces if face.part != "train"], SPEED_PAIRS)
    rates = [audit_speed.throughput(pairs, workers=workers, each=SPEED_EACH) for workers in (1, 2)]
    marks = max(1, memory_pairs // 10), memory_pairs
    return speed_table(rates, marks, audit_speed.resident_bytes(pairs, marks))
