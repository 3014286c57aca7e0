"""The training sets as pairs: index files to faces, faces to paired batches, one batch per step number.

Data order is a function of (seed, step) alone, so a resumed run and one with more workers see the same batches. Real faces and their fakes come in
one batch under one draw of augmentation (`augment`). Only `train` rows train; dev units are divided once by the committed `dev_parts.json`.
"""

import csv
import hashlib
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from engines.contracts import FORGERY_TYPES
from engines.preprocess import to_model_input
from trainer import augment, manipulate
from trainer.config import VisionConfig
from trainer.reference_mask import border_difference, frozen_mask

ImageHWC = NDArray[np.uint8]
Part = Literal["train", "select", "calibrate", "report"]
SWAP_SUM = "swap"
"""Type label of DFDC fakes: the method is not named, so they train the sum of identity_swap and expression_swap."""


@dataclass(frozen=True, slots=True)
class Face:
    """One labelled face image, still encoded."""

    name: str
    """Unique within its set."""
    dataset: str
    encoded: bytes
    window_xywh: tuple[int, int, int, int] | None
    """The face within a larger image, or None for the whole."""
    is_fake: bool
    forgery_type: str | None
    unit: str
    """Identity cluster, person, prompt or grid: what a split must not divide."""
    part: Part
    real_twin: str | None = None
    """Name of the real image this fake was made from."""
    pair_quality: str = ""
    """DFDC: 'curated', 'loose' or ''."""

    def image(self) -> ImageHWC:
        """Decode to (H, W, 3) uint8 RGB."""
        decoded = cv2.imdecode(np.frombuffer(self.encoded, np.uint8), cv2.IMREAD_COLOR)
        if decoded is None:
            raise ValueError(f"{self.dataset}/{self.name} does not decode; re-extract the set")
        if self.window_xywh is not None:
            x, y, w, h = self.window_xywh
            decoded = decoded[y : y + h, x : x + w]
        return decoded[..., ::-1]


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


class PairedBatch(NamedTuple):
    """One training step's faces; row 2k is real, row 2k+1 its fake."""

    image_BCHW: Tensor
    is_fake_B: Tensor
    """float32."""
    patch_target_BHW: Tensor
    """float32 share of manipulated pixels per patch."""
    patch_weight_B: Tensor
    """float32; 0 where the mask is unknown."""
    type_target_BF: Tensor
    """float32, 1 for each type the label allows; all 0 for reals."""


def type_target(forgery_type: str | None) -> NDArray[np.float32]:
    """Allowed types as a 0/1 vector: DFDC's swaps allow two."""
    allowed = ("identity_swap", "expression_swap") if forgery_type == SWAP_SUM else (forgery_type,)
    return np.array([t in allowed for t in FORGERY_TYPES], np.float32)


@dataclass(frozen=True, slots=True)
class _Pair:
    real_HWC: ImageHWC
    fake_HWC: ImageHWC
    alpha_HW: NDArray[np.float32] | None
    """Where the fake was changed; None when unknown."""
    mask_weight: float
    forgery_type: str
    twins: bool
    """Same scene: both members share the draw of geometry."""


class PairedBatches(Dataset[PairedBatch]):
    """Batch number -> batch. Deterministic in (seed, step)."""

    def __init__(self, faces: list[Face], config: VisionConfig, *, image_size: int, grid: int) -> None:
        train = [face for face in faces if face.part == "train"]
        self.config, self.image_size, self.grid = config, image_size, grid
        self.by_name = {(f.dataset, f.name): f for f in train}
        self.reals = [f for f in train if not f.is_fake]
        self.dfdc_fakes = [f for f in train if f.dataset == "dfdc" and f.is_fake]
        self.stargan_fakes = [f for f in train if f.dataset == "stargan" and f.is_fake]
        self.stylegan2 = [f for f in train if f.dataset == "ffhq_stylegan2" and f.is_fake]
        self.diffusion = [f for f in train if f.dataset == "sd21_faces"]
        self.photographs = [f for f in self.reals if f.dataset in ("ffhq_stylegan2", "london", "amfd")]
        self.ffhq = [f for f in self.reals if f.dataset == "ffhq_stylegan2"]
        self.sharp_reals = [f for f in self.reals if f.dataset != "stargan"]

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> PairedBatch:
        rng = np.random.default_rng([self.config.seed, step])
        members = [self._member(rng, source) for source, count in self.config.pairs.items() for _ in range(count)]
        images, fakes, patches, weights, types = zip(*(row for member in members for row in member), strict=True)
        return PairedBatch(
            torch.from_numpy(to_model_input(np.stack(images))),
            torch.tensor(fakes, dtype=torch.float32),
            torch.from_numpy(np.stack(patches)),
            torch.tensor(weights, dtype=torch.float32),
            torch.from_numpy(np.stack(types)),
        )

    def _member(self, rng: np.random.Generator, source: str) -> list[tuple[ImageHWC, bool, NDArray[np.float32], float, NDArray[np.float32]]]:
        """Draw one pair and augment it; two rows, the real first."""
        pair = self._pair(rng, source)
        real, fake = pair.real_HWC, pair.fake_HWC
        draw = augment.draw(rng, self.image_size)
        if rng.random() < 0.25:
            real, fake = augment.refocus_one(rng, real, fake)
        other = draw if pair.twins else replace(augment.draw(rng, self.image_size), jpeg=draw.jpeg, down=draw.down, blur=draw.blur)
        clean = np.zeros((self.grid, self.grid), np.float32)
        target = clean
        if pair.alpha_HW is not None:
            manipulated = (draw.alpha(pair.alpha_HW) > 0.1).astype(np.float32)
            target = cv2.resize(manipulated, (self.grid, self.grid), interpolation=cv2.INTER_AREA)
        return [
            (draw.image(real), False, clean, 1.0, type_target(None)),
            (other.image(fake), True, target, pair.mask_weight, type_target(pair.forgery_type)),
        ]

    def _pair(self, rng: np.random.Generator, source: str) -> _Pair:
        def pick(faces: list[Face]) -> Face:
            return faces[int(rng.integers(len(faces)))]

        if source in ("dfdc", "stargan"):
            fake = pick(self.dfdc_fakes if source == "dfdc" else self.stargan_fakes)
            real_HWC, fake_HWC = self.by_name[fake.dataset, fake.real_twin or ""].image(), fake.image()
            assert fake.forgery_type is not None, f"fake {fake.name} has no type"
            if source == "stargan":
                return _Pair(real_HWC, fake_HWC, None, 0.0, fake.forgery_type, True)
            alpha = frozen_mask(real_HWC, fake_HWC).astype(np.float32)
            border = border_difference(np.abs(real_HWC.astype(np.float32) - fake_HWC.astype(np.float32)).mean(-1))
            weight = 1.0 if fake.pair_quality == "curated" else 0.5 if border <= 4.5 and alpha.mean() > 0.01 else 0.0
            return _Pair(real_HWC, fake_HWC, alpha, weight, fake.forgery_type, True)
        if source == "stylegan2":
            return _Pair(pick(self.ffhq).image(), pick(self.stylegan2).image(), None, 0.0, "entire_synthesis", False)
        if source == "diffusion":
            return _Pair(pick(self.photographs).image(), pick(self.diffusion).image(), None, 0.0, "entire_synthesis", False)
        # Half the own fakes are made from photographs: sharp originals that DFDC does not have.
        real = pick(self.photographs if rng.random() < 0.5 and self.photographs else self.sharp_reals)
        real_HWC = fit(real.image(), self.image_size)
        if source == "self_blend":
            made = manipulate.self_blend(rng, real_HWC)
        elif source == "face_swap":
            donor = pick(self.sharp_reals)
            while (donor.dataset, donor.unit) == (real.dataset, real.unit):
                donor = pick(self.sharp_reals)
            made = manipulate.face_swap(rng, real_HWC, fit(donor.image(), self.image_size))
        else:
            made = manipulate.local_edit(rng, real_HWC)
        return _Pair(real_HWC, made.image_HWC, made.alpha_HW, 1.0, made.forgery_type, True)


def fit(image_HWC: ImageHWC, size: int) -> ImageHWC:
    """Resize to the model's square, as serving does with a face crop."""
    if image_HWC.shape[:2] == (size, size):
        return image_HWC
    shrinks = min(image_HWC.shape[:2]) > size
    return cv2.resize(image_HWC, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
