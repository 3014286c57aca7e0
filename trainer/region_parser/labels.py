"""What the parser learns from: crops of training faces and the annotator's map of each, made once, and drawn views of them.

A folder holds `crops.npy` (N, 224, 224, 3), `atoms.npy` and `arcs.npy` (N, 224, 224), all uint8, without pickle, and `labels.json`. The view of a
face is a function of (seed, step).
"""

import hashlib
import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from engines import fict
from engines.preprocess import to_model_input
from engines.regions import NUM_ARCS, NUM_ATOMS, channels
from trainer import augment
from trainer.annotator.annotate import process_annotator
from trainer.checkpoint import read_note
from trainer.faces import Face, ImageHWC, fit
from trainer.samples import SIDE

PER_SET = {("dfdc", False): 2600, ("dfdc", True): 1600, ("stargan", False): 800, ("stargan", True): 600}
"""Faces of the sets that have more than the others; those are taken whole."""
UNKNOWN = 255
"""Label of pixels that no crop shows."""
ZOOM, ANGLE_DEG = (0.8, 1.12), 18.0
"""Side of the window over the crop's, and turn to either side: detectors are not of one mind about a face's box."""


class RegionMap(NamedTuple):
    """The annotator's regions of one crop, (224, 224) uint8 each."""

    atom_HW: NDArray[np.uint8]
    """Index into `fict.cells(112)`."""
    arc_HW: NDArray[np.uint8]
    """Index into `fict.BOUNDARY_ARCS`; one more is none."""

    def region(self, concept: str) -> NDArray[np.bool_]:
        """(224, 224) the region of a concept."""
        wanted = channels(concept)
        return np.isin(self.arc_HW, wanted - NUM_ATOMS) if wanted[0] >= NUM_ATOMS else np.isin(self.atom_HW, wanted)


def region_map(crop_HWC: ImageHWC) -> RegionMap | None:
    """Map an (H, W, 3) uint8 RGB crop; None where no mesh is found."""
    found = process_annotator().regions(crop_HWC)
    if found is None:
        return None
    arc_HW = np.where(found.arc_HW < 0, NUM_ARCS, found.arc_HW)
    return RegionMap(found.atom_HW.astype(np.uint8), arc_HW.astype(np.uint8))


def chosen(faces: Sequence[Face], seed: int = 0) -> list[Face]:
    """Training faces to learn regions from, real and fake alike, in a drawn order."""
    rng = np.random.default_rng([20531, 112, seed])
    taken: list[Face] = []
    groups: dict[tuple[str, bool], list[Face]] = {}
    for face in faces:
        if face.part == "train":
            groups.setdefault((face.dataset, face.is_fake), []).append(face)
    for key, members in groups.items():
        taken += [members[i] for i in rng.permutation(len(members))[: PER_SET.get(key)]]
    return [taken[i] for i in rng.permutation(len(taken))]


def write_labels(faces: Sequence[Face], out: Path, *, workers: int = 1) -> int:
    """Map faces and write the folder, unless it is whole already; faces without a mesh are left out. Returns how many stand there.

    Raises ValueError for a folder that was made of other faces, and for one whose note is torn.
    """
    note, names = out / "labels.json", hashlib.sha256("\n".join(f"{face.dataset}/{face.name}" for face in faces).encode()).hexdigest()
    if note.is_file():
        made = read_note(note)
        if made["names_sha256"] != names:
            raise ValueError(f"{out} holds maps of other faces than these {len(faces)}; remove it, or give another --run")
        return int(made["faces"])
    out.mkdir(parents=True, exist_ok=True)
    shapes = {"crops": (SIDE, SIDE, 3), "atoms": (SIDE, SIDE), "arcs": (SIDE, SIDE)}
    written = {
        name: np.lib.format.open_memmap(out / f"{name}.npy", mode="w+", dtype=np.uint8, shape=(len(faces), *shape)) for name, shape in shapes.items()
    }
    count = 0
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        mapped = pool.imap(_mapped, faces, chunksize=8)
        for crop_HWC, found in track(mapped, description="map regions", total=len(faces), console=Console(stderr=True)):
            if found is not None:
                written["crops"][count], written["atoms"][count], written["arcs"][count] = crop_HWC, found.atom_HW, found.arc_HW
                count += 1
    for array in written.values():
        array.flush()
    note.write_text(json.dumps({"faces": count, "without_mesh": len(faces) - count, "names_sha256": names}))
    return count


def _mapped(face: Face) -> tuple[ImageHWC, RegionMap | None]:
    crop_HWC = np.ascontiguousarray(fit(face.image(), SIDE))
    return crop_HWC, region_map(crop_HWC)


class RegionBatch(NamedTuple):
    """One training step's views."""

    image_BCHW: Tensor
    atom_BHW: Tensor
    """int64, on every second row and column of a grid of half the crop's side, from `phase` on; `UNKNOWN` where nothing is known."""
    arc_BHW: Tensor
    phase: tuple[int, int]


class RegionBatches(Dataset[RegionBatch]):
    """Step -> batch."""

    def __init__(self, folder: Path, *, batch: int, steps: int, seed: int) -> None:
        self._count = int(read_note(folder / "labels.json")["faces"])
        self._crops, self._atoms, self._arcs = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("crops", "atoms", "arcs"))
        self._batch, self._steps, self._seed = batch, steps, seed

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> RegionBatch:
        rng = np.random.default_rng([self._seed, step])
        views = [self._view(rng, int(i)) for i in rng.integers(0, self._count, self._batch)]
        image = to_model_input(np.stack([image for image, _, _ in views]))
        row, column = (int(first) for first in rng.integers(0, 2, 2))
        atom, arc = (torch.from_numpy(np.stack([view[k][row::2, column::2] for view in views]).astype(np.int64)) for k in (1, 2))
        return RegionBatch(torch.from_numpy(image), atom, arc, (row, column))

    def _view(self, rng: np.random.Generator, number: int) -> tuple[ImageHWC, NDArray[np.uint8], NDArray[np.uint8]]:
        draw = augment.draw(rng, SIDE)
        zoom = float(rng.uniform(*ZOOM))
        slack = abs(1 - zoom) / 2 + 0.03
        center = (0.5 + float(rng.uniform(-slack, slack)), 0.5 + float(rng.uniform(-slack, slack)))
        draw = replace(draw, zoom=zoom, center_xy=center, angle_deg=float(rng.uniform(-ANGLE_DEG, ANGLE_DEG)))
        image = draw.image(np.asarray(self._crops[number]))
        atom, arc = (draw.labels(np.asarray(of[number]), size=SIDE // 2, unknown=UNKNOWN) for of in (self._atoms, self._arcs))
        if draw.flip:
            atom, arc = mirrored_atoms()[atom], mirrored_arcs()[arc]
        return image, atom, arc


def _mirrored(names: Sequence[str]) -> NDArray[np.uint8]:
    """(256,) uint8: each label's twin on the other side; what is no name stays."""
    table = np.arange(256, dtype=np.uint8)
    table[: len(names)] = [names.index(fict.mirrored(name)) for name in names]
    return table


@cache
def mirrored_atoms() -> NDArray[np.uint8]:
    """Of `RegionMap.atom_HW`."""
    return _mirrored(fict.cells(112))


@cache
def mirrored_arcs() -> NDArray[np.uint8]:
    """Of `RegionMap.arc_HW`."""
    return _mirrored(fict.BOUNDARY_ARCS)
