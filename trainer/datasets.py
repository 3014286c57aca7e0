"""Sets on disk -> faces: the research sets with their splits, and adapters for other layouts.

Only `train` rows train; dev units are divided once by the committed `dev_parts.json`.
"""

import csv
import hashlib
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from trainer.faces import SWAP_SUM, Face, ImageHWC, Part


def _members(folder: Path) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    archives = sorted(folder.glob("*.tar"))
    if not archives:
        raise FileNotFoundError(f"no .tar in {folder}; point --data at the folder that holds dfdc/, stargan/, ...")
    for archive in archives:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and (handle := tar.extractfile(member)) is not None:
                    contents[Path(member.name).name if "/" not in member.name else member.name.removeprefix("./")] = handle.read()
    return contents


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


@cache
def dev_parts() -> dict[str, dict[str, Part]]:
    """Which dev unit belongs to select, calibrate or report, by dataset; divided once."""
    parts: dict[str, dict[str, Part]] = json.loads((files("trainer") / "dev_parts.json").read_text())
    return parts


def _part(dataset: str, unit: str, split: str) -> Part:
    return "train" if split == "train" else dev_parts()[dataset][unit]


def person_split(unit: str) -> str:
    """London and AMFD by person: a fifth in dev."""
    return "dev" if int(hashlib.sha256(unit.encode()).hexdigest(), 16) % 5 == 0 else "train"


def load_dfdc(root: Path) -> list[Face]:
    """DeepFake Detection Challenge: fakes name their original."""
    images = _members(root / "dfdc")
    return [
        Face(
            row["file"],
            "dfdc",
            images[row["file"]],
            None,
            row["label"] == "fake",
            SWAP_SUM if row["label"] == "fake" else None,
            row["identity"],
            _part("dfdc", row["identity"], row["split"]),
            row["original"] or None,
            row["pair"],
        )
        for row in _rows(root / "dfdc" / "index.csv")
    ]


STARGAN_EDITS = ("black_hair", "blond_hair", "brown_hair", "gender_flip", "age_flip")


def load_stargan(root: Path) -> list[Face]:
    """CelebA tiles and five edits each; the whole tile is re-synthesised."""
    images = _members(root / "stargan")
    faces = []
    for row in _rows(root / "stargan" / "index.csv"):
        unit, tile = f"{row['grid']}#{row['row']}", int(row["tile"])
        part = _part("stargan", unit, row["split"])
        for edit in ("real", *STARGAN_EDITS):
            window = (int(row[f"x_{edit}"]), int(row["y0"]), tile, tile)
            fake = edit != "real"
            faces.append(
                Face(
                    f"{unit}:{edit}",
                    "stargan",
                    images[row["grid"]],
                    window,
                    fake,
                    "attribute_manipulation" if fake else None,
                    unit,
                    part,
                    f"{unit}:real" if fake else None,
                )
            )
    return faces


def _load_flat(root: Path, dataset: str, unit_of: Callable[[dict[str, str]], str]) -> list[Face]:
    images = _members(root / dataset)
    return [
        Face(
            row["file"],
            dataset,
            images[row["file"]],
            None,
            row["label"] == "fake",
            "entire_synthesis" if row["label"] == "fake" else None,
            unit_of(row),
            _part(dataset, unit_of(row), row["split"]),
        )
        for row in _rows(root / dataset / "index.csv")
    ]


def _load_people(root: Path, dataset: str, unit_of: Callable[[str], str]) -> list[Face]:
    faces = []
    for name, encoded in sorted(_members(root / dataset).items()):
        if name.endswith(".jpg"):
            unit = unit_of(name)
            faces.append(Face(name, dataset, encoded, None, False, None, unit, _part(dataset, unit, person_split(f"{dataset}/{unit}"))))
    return faces


def london_person(name: str) -> str:
    """'neutral_front/005_03.jpg' is person 005."""
    return name.rpartition("/")[2][:3]


def amfd_person(name: str) -> str:
    """'SF-1048.jpg' is person F-1048, smiling."""
    return name.rpartition("/")[2].removesuffix(".jpg")[1:]


LOADERS: dict[str, Callable[[Path], list[Face]]] = {
    "dfdc": load_dfdc,
    "stargan": load_stargan,
    "ffhq_stylegan2": lambda root: _load_flat(root, "ffhq_stylegan2", lambda row: row["file"]),
    "sd21_faces": lambda root: _load_flat(root, "sd21_faces", lambda row: row["prompt"]),
    "survey_stylegan2": lambda root: _load_flat(root, "survey_stylegan2", lambda row: row["file"]),
    "london": lambda root: _load_people(root, "london", london_person),
    "amfd": lambda root: _load_people(root, "amfd", amfd_person),
}


def load_faces(root: Path, datasets: Sequence[str], crop: Callable[[ImageHWC], tuple[int, int, int, int] | None] | None = None) -> list[Face]:
    """Read the sets. `crop` finds the face window (x, y, w, h) in portraits that are not yet face crops (London, AMFD)."""
    faces = [face for dataset in datasets for face in LOADERS[dataset](root)]
    if crop is None:
        return faces
    return [replace(f, window_xywh=crop(f.image())) if f.dataset in ("london", "amfd") else f for f in faces]
