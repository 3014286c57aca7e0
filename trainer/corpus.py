"""The annotated corpus of stage 2: which faces are annotated, our own manipulations among them, and how rows find their images again.

A folder holds `train.jsonl`, `dev.jsonl` and `own/` (the images of own manipulations, JPEG). The draw of faces depends on the seed alone.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from trainer.annotator import manipulate
from trainer.annotator.annotate import annotate_exact, annotate_faces, face_seed, load_annotations, to_row
from trainer.annotator.artifact import SIZE
from trainer.faces import Face, fit
from trainer.language_data import AnnotatedFace

TRAIN_FAKES = {"dfdc": 2500, "stargan": 600, "ffhq_stylegan2": 160, "sd21_faces": 300}
TRAIN_REALS = {"dfdc": 650, "stargan": 150, "ffhq_stylegan2": 250, "london": 75, "amfd": 75}
DEV_REALS = 300
NUM_OWN = 500
OWN = "own"
OWN_JPEG_QUALITY = 95


def _drawn(rng: np.random.Generator, faces: Iterable[Face], count: int) -> list[Face]:
    pool = list(faces)
    return [pool[i] for i in rng.permutation(len(pool))[:count]]


def choose_faces(faces: Sequence[Face], seed: int) -> tuple[list[Face], list[Face]]:
    """Faces of `train.jsonl` and of `dev.jsonl`: curated DFDC fakes, the other families, and reals for clean answers."""
    rng = np.random.default_rng([20531, seed])
    train: list[Face] = []
    for dataset, count in TRAIN_FAKES.items():
        curated = dataset == "dfdc"
        train += _drawn(
            rng,
            (f for f in faces if f.dataset == dataset and f.part == "train" and f.is_fake and (f.pair_quality == "curated" or not curated)),
            count,
        )
    for dataset, count in TRAIN_REALS.items():
        train += _drawn(rng, (f for f in faces if f.dataset == dataset and f.part == "train" and not f.is_fake), count)
    dev = [f for f in faces if f.part != "train" and f.dataset == "dfdc" and f.pair_quality == "curated"]
    dev += _drawn(rng, (f for f in faces if f.part != "train" and not f.is_fake and f.dataset != "survey_stylegan2"), DEV_REALS)
    return [train[i] for i in rng.permutation(len(train))], dev


def annotate_corpus(faces: Sequence[Face], out: Path, *, workers: int, seed: int) -> None:
    """Write the whole folder; rows that are there already are kept."""
    train, dev = choose_faces(faces, seed)
    reals = [face for face in faces if not face.is_fake]
    annotate_faces(train, out / "train.jsonl", workers, twins=reals, seed=seed)
    annotate_faces(dev, out / "dev.jsonl", workers, twins=reals, seed=seed)
    annotate_own([f for f in reals if f.part == "train" and f.dataset in ("ffhq_stylegan2", "dfdc")], out, count=NUM_OWN, seed=seed)


def annotate_own(reals: Sequence[Face], out: Path, *, count: int, seed: int) -> None:
    """Make `count` manipulations with exact masks (half local edits, a quarter self-blends, a quarter swaps), keep their images, add their rows."""
    path = out / "train.jsonl"
    (out / OWN).mkdir(parents=True, exist_ok=True)
    done = {row["name"] for row in load_annotations(path) if row["dataset"] == OWN} if path.exists() else set()
    with path.open("a", encoding="utf-8") as sink:
        for number in range(count):
            name = f"{OWN}/{number:04d}.jpg"
            if name in done:
                continue
            rng = np.random.default_rng([7, seed, number])
            source, donor = (reals[int(i)] for i in rng.choice(len(reals), 2, replace=False))
            real, other = (np.ascontiguousarray(fit(face.image(), SIZE)) for face in (source, donor))
            if number % 2:
                made = manipulate.local_edit(rng, real)
            else:
                made = manipulate.self_blend(rng, real) if number % 4 == 0 else manipulate.face_swap(rng, real, other)
            cv2.imwrite(str(out / name), made.image_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, OWN_JPEG_QUALITY])
            note = annotate_exact(real, _read(out / name), made.alpha_HW, forgery_type=made.forgery_type, seed=face_seed(seed, OWN, name))
            row = to_row(note, dataset=OWN, name=name, part="train") | {"source": [source.dataset, source.name]}
            sink.write(json.dumps(row, separators=(",", ":")) + "\n")
            sink.flush()


def annotated_faces(folder: Path, faces: Sequence[Face], file: str = "train.jsonl") -> list[AnnotatedFace]:
    """Rows that were not refused, with their images. Raises ValueError for a row whose face is not among `faces`."""
    by_name = {(face.dataset, face.name): face for face in faces}
    found = []
    for row in load_annotations(folder / file):
        if row["refused"] is not None:
            continue
        key = row["dataset"], row["name"]
        if row["dataset"] == OWN:
            found.append(AnnotatedFace(row, _read(folder / row["name"])))
        elif key in by_name:
            found.append(AnnotatedFace(row, by_name[key].image()))
        else:
            raise ValueError(f"{folder / file} speaks of {key[0]}/{key[1]}, which the data folder does not hold; annotate again with the same --data")
    return found


def _read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    if image is None:
        raise ValueError(f"{path} is missing or no image; annotate again")
    return np.ascontiguousarray(image[..., ::-1])
