"""What the parser learns from: views that take image and labels the same way."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engines import fict
from engines.preprocess import IMAGE_MEAN, IMAGE_STD
from trainer.faces import Face
from trainer.region_parser import labels
from trainer.region_parser.labels import UNKNOWN, RegionBatches, chosen, mirrored_arcs, mirrored_atoms
from trainer.samples import SIDE

LEFT_CHEEK, RIGHT_CHEEK = (fict.cells(112).index(f"{side}_mid_cheek") for side in ("left", "right"))


def folder_of(path: Path, atoms_NHW: NDArray[np.uint8]) -> Path:
    """A folder of labels whose crops are bright where the first atom of the tree is not."""
    path.mkdir(parents=True, exist_ok=True)
    np.save(path / "atoms.npy", atoms_NHW)
    np.save(path / "arcs.npy", np.full_like(atoms_NHW, 8))
    np.save(path / "crops.npy", np.repeat(np.where(atoms_NHW > 0, 220, 30).astype(np.uint8)[..., None], 3, -1))
    (path / "labels.json").write_text(json.dumps({"faces": len(atoms_NHW)}))
    return path


@pytest.fixture()
def halves(tmp_path: Path) -> Path:
    """Faces whose image's right half is the left cheek."""
    atoms = np.zeros((3, SIDE, SIDE), np.uint8)
    atoms[:, 60:160, SIDE // 2 :] = LEFT_CHEEK
    return folder_of(tmp_path / "labels", atoms)


def test_labels_go_where_the_pixels_go(halves: Path) -> None:
    """Bright pixels are labelled as a cheek, dark ones are not, but for the border of both and for light that was drawn."""
    for step in range(6):
        batch = RegionBatches(halves, batch=4, steps=8, seed=1)[step]
        row, column = batch.phase
        shown = batch.image_BCHW.numpy().transpose(0, 2, 3, 1) * IMAGE_STD + IMAGE_MEAN
        at_label_BHW = shown.mean(-1)[:, 2 * row :: 4, 2 * column :: 4]
        atom_BHW = batch.atom_BHW.numpy()
        for bright_HW, atom_HW in zip(at_label_BHW, atom_BHW, strict=True):
            cheek = np.isin(atom_HW, (LEFT_CHEEK, RIGHT_CHEEK))
            other = ~cheek & (atom_HW != UNKNOWN)
            middle = (bright_HW[cheek].mean() + bright_HW[other].mean()) / 2
            assert (bright_HW[cheek] > middle).mean() > 0.93 and (bright_HW[other] < middle).mean() > 0.93


def test_in_a_mirror_the_left_cheek_is_a_right_one(halves: Path) -> None:
    seen = {LEFT_CHEEK: 0, RIGHT_CHEEK: 0}
    for step in range(4):
        for atom_HW in RegionBatches(halves, batch=4, steps=8, seed=2)[step].atom_BHW.numpy():
            cheek = {int(atom) for atom in np.unique(atom_HW) if atom in seen}
            assert len(cheek) == 1
            columns = np.nonzero(np.isin(atom_HW, tuple(cheek)))[1]
            assert (columns.mean() > atom_HW.shape[1] / 2) == (LEFT_CHEEK in cheek)  # the subject's left is the image's right, mirrored or not
            seen[cheek.pop()] += 1
    assert min(seen.values()) > 0


def test_mirroring_twice_changes_nothing() -> None:
    for table in (mirrored_atoms(), mirrored_arcs()):
        np.testing.assert_array_equal(table[table], np.arange(256))
        assert table[UNKNOWN] == UNKNOWN
    assert mirrored_arcs()[len(fict.BOUNDARY_ARCS)] == len(fict.BOUNDARY_ARCS)  # no arc


def test_a_step_shows_the_same_views_again(halves: Path) -> None:
    one, other = (RegionBatches(halves, batch=3, steps=5, seed=4)[2] for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_pixels_beyond_the_crop_have_no_label(tmp_path: Path) -> None:
    full = folder_of(tmp_path / "labels", np.full((1, SIDE, SIDE), LEFT_CHEEK, np.uint8))
    seen = [RegionBatches(full, batch=8, steps=3, seed=5)[step].atom_BHW.numpy() for step in range(3)]
    assert set(np.unique(np.concatenate(seen))) <= {LEFT_CHEEK, RIGHT_CHEEK, UNKNOWN}


def face(name: str, dataset: str, part: str, *, fake: bool = False) -> Face:
    return Face(name, dataset, b"", None, fake, None, name, part)  # type: ignore[arg-type]


def test_only_training_faces_are_chosen_and_large_sets_not_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "PER_SET", {("dfdc", False): 4})
    faces = [face(f"{n}", "dfdc", "train") for n in range(9)] + [face(f"{n}", "london", "train") for n in range(6)]
    faces += [face("dev", dataset, part) for dataset in ("dfdc", "london") for part in ("select", "report")]
    taken = chosen(faces)
    assert {one.part for one in taken} == {"train"}
    assert sum(one.dataset == "dfdc" for one in taken) == 4 and sum(one.dataset == "london" for one in taken) == 6
    assert [one.name for one in chosen(faces)] == [one.name for one in taken]


def test_maps_of_other_faces_are_not_taken_for_these(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps({"faces": 3, "without_mesh": 0, "names_sha256": "0" * 64}))
    with pytest.raises(ValueError, match="other faces than these 1; remove it"):
        labels.write_labels([face("a", "dfdc", "train")], tmp_path)


def test_a_torn_note_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"fac')
    with pytest.raises(ValueError, match=r"labels.json is no JSON .*; copy it again"):
        labels.write_labels([face("a", "dfdc", "train")], tmp_path)
