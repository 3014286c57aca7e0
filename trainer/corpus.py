"""The annotated corpus: which faces are annotated, our own manipulations among them, and how rows find their images again.

A folder holds `train.jsonl`, `dev.jsonl` and `own/` (the images of own manipulations, JPEG). The draw of faces depends on the seed alone.
"""

import json
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from trainer.annotator import manipulate
from trainer.annotator.annotate import annotate_faces, load_annotations, process_annotator, to_row
from trainer.annotator.artifact import SIZE
from trainer.datasets import LOADERS
from trainer.faces import Face, ImageHWC, Part, fit

TRAIN_FAKES = {"dfdc": 2500, "stargan": 600, "ffhq_stylegan2": 160, "sd21_faces": 300}
TRAIN_REALS = {"dfdc": 650, "stargan": 150, "ffhq_stylegan2": 250, "london": 75, "amfd": 75}
DEV_FAKES = {"stargan": 300, "ffhq_stylegan2": 100, "sd21_faces": 122}
"""Beside every curated DFDC pair."""
DEV_REALS = 400
NUM_OWN = {"train": 900, "dev": 450}
OWN = "own"
OWN_DATASETS = ("dfdc", "ffhq_stylegan2", "london", "amfd")
"""Sets whose real faces are manipulated."""
OWN_AREA = 0.005, 0.40
"""Shares of the face oval, drawn log-uniformly."""
OWN_JPEG_QUALITY = 95


def _drawn(rng: np.random.Generator, faces: Iterable[Face], count: int) -> list[Face]:
    pool = list(faces)
    return [pool[i] for i in rng.permutation(len(pool))[:count]]


def _worth_annotating(face: Face) -> bool:
    return face.dataset != "dfdc" or not face.is_fake or face.pair_quality == "curated"


def choose_faces(faces: Sequence[Face], seed: int, share: float = 1.0) -> tuple[list[Face], list[Face]]:
    """Faces of `train.jsonl` and of `dev.jsonl`: curated DFDC fakes, the other families, and reals for clean answers.

    Sets without a quota (adapters) are taken whole; `share` lowers the quotas of training faces, whose smaller draw is part of the larger.
    """
    rng = np.random.default_rng([20531, seed])
    other = [face for face in faces if face.dataset not in LOADERS]
    train: list[Face] = [face for face in other if face.part == "train"]
    for quota, fake in ((TRAIN_FAKES, True), (TRAIN_REALS, False)):
        for dataset, count in quota.items():
            pool = (f for f in faces if f.dataset == dataset and f.part == "train" and f.is_fake is fake and _worth_annotating(f))
            train += _drawn(rng, pool, round(count * share))
    dev = [f for f in faces if f.part != "train" and f.dataset == "dfdc" and f.pair_quality == "curated"]
    for dataset, count in DEV_FAKES.items():
        dev += _drawn(rng, (f for f in faces if f.part != "train" and f.dataset == dataset and f.is_fake), count)
    dev += _drawn(rng, (f for f in faces if f.part != "train" and not f.is_fake and f.dataset in TRAIN_REALS), DEV_REALS)
    dev += [face for face in other if face.part != "train"]
    return [train[i] for i in rng.permutation(len(train))], dev


def annotate_corpus(faces: Sequence[Face], out: Path, *, workers: int, seed: int, share: float = 1.0) -> None:
    """Write the whole folder; rows that are there already are kept."""
    train, dev = choose_faces(faces, seed, share)
    reals = [face for face in faces if not face.is_fake]
    for file, chosen in (("train", train), ("dev", dev)):
        annotate_faces(chosen, out / f"{file}.jsonl", workers, twins=reals)
        sources = [f for f in reals if (f.part == "train") == (file == "train") and f.dataset in OWN_DATASETS]
        if len(sources) > 1:
            count = round(NUM_OWN[file] * (share if file == "train" else 1.0))
            annotate_own(sources, out, file=file, count=count, seed=seed, workers=workers)


class _Job(NamedTuple):
    """One own manipulation to be made."""

    name: str
    seed: tuple[int, ...]
    source: Face
    donor: Face
    out: Path


def annotate_own(reals: Sequence[Face], out: Path, *, file: str, count: int, seed: int, workers: int = 1) -> None:
    """Make `count` manipulations with exact masks, in turn of each local family, keep their images, add their rows to `{file}.jsonl`.

    Source and donor come from one part, so that no row of *report* shows a face of another. Faces without a mesh give no row.
    """
    path = out / f"{file}.jsonl"
    (out / OWN).mkdir(parents=True, exist_ok=True)
    done = {row["name"] for row in load_annotations(path) if row["dataset"] == OWN} if path.exists() else set()
    by_part: dict[Part, list[Face]] = {}
    for face in reals:
        by_part.setdefault(face.part, []).append(face)
    jobs = []
    for number in range(count):
        name, own_seed = f"{OWN}/{file}-{number:04d}.jpg", (7, int(file == "dev"), seed, number)
        rng = np.random.default_rng([*own_seed, 0])
        source = reals[int(rng.integers(len(reals)))]
        donor = by_part[source.part][int(rng.integers(len(by_part[source.part])))]
        if name not in done:
            jobs.append(_Job(name, own_seed, source, donor, out))
    with path.open("a", encoding="utf-8") as sink:
        for row in track(_mapped(jobs, workers), description=f"own {file}", total=len(jobs), console=Console(stderr=True)):
            if row is not None:
                sink.write(json.dumps(row, separators=(",", ":")) + "\n")
                sink.flush()


def _mapped(jobs: Sequence[_Job], workers: int) -> Iterator[dict[str, Any] | None]:
    if workers <= 1:
        yield from map(_own_row, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_own_row, jobs, chunksize=8)


def _own_row(job: _Job) -> dict[str, Any] | None:
    made = own_manipulation(job.source.image(), job.donor.image(), np.random.default_rng([*job.seed, 1]), family_number=job.seed[-1])
    if made is None:
        return None
    cv2.imwrite(str(job.out / job.name), made.image_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, OWN_JPEG_QUALITY])
    saved = _read(job.out / job.name)
    note = process_annotator().exact(job.source.image(), saved, made.alpha_HW, forgery_type=made.forgery_type)
    return to_row(note, dataset=OWN, name=job.name, part=job.source.part) | {"source": [job.source.dataset, job.source.name], "recipe": made.recipe}


def own_manipulation(real_HWC: ImageHWC, donor_HWC: ImageHWC, rng: np.random.Generator, *, family_number: int) -> manipulate.Manipulation | None:
    """One manipulation at 224 px by a drawn recipe of a local family (counted round), of a drawn size; None where the face shows no mesh."""
    annotator = process_annotator()
    real, donor = (np.ascontiguousarray(fit(image, SIZE)) for image in (real_HWC, donor_HWC))
    landmarks, found = annotator.landmarks(real), annotator.regions(real)
    if landmarks is None or found is None:
        return None
    recipes = manipulate.RECIPES[list(manipulate.RECIPES)[family_number % len(manipulate.RECIPES)]]
    guide = manipulate.Guide(landmarks, found.oval_HW, found.mask)
    area = float(np.exp(rng.uniform(*np.log(OWN_AREA))))
    return manipulate.make(rng, str(rng.choice(recipes)), real, guide, donor, annotator.landmarks(donor), area)


def _read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    if image is None:
        raise ValueError(f"{path} is missing or no image; annotate again")
    return np.ascontiguousarray(image[..., ::-1])
