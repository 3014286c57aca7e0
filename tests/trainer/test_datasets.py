"""The research sets on disk: nothing leaks between parts, and twins stay together."""

import csv
import io
import json
import tarfile
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from trainer.datasets import LOADERS, dev_parts, load_dfdc, load_faces
from trainer.faces import Face


def write_set(folder: Path, rows: list[dict[str, str]]) -> None:
    """A DFDC-like folder: index.csv and one tar."""
    folder.mkdir(parents=True)
    with (folder / "index.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with tarfile.open(folder / "images.tar", "w") as tar:
        for row in rows:
            content = row["file"].encode()
            member = tarfile.TarInfo(f"./{row['file']}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_a_unit_of_dev_stands_in_exactly_one_part() -> None:
    for dataset, parts in dev_parts().items():
        assert set(parts.values()) <= {"select", "calibrate", "report"}, dataset
    text = (Path(__file__).parents[2] / "trainer" / "dev_parts.json").read_text()
    pairs = json.loads(text, object_pairs_hook=lambda items: items)  # a dict would hide a unit that is listed twice
    assert all(len({unit for unit, _ in units}) == len(units) for _, units in pairs)


def test_rows_take_the_part_of_their_identity_and_twins_stay_together(tmp_path: Path) -> None:
    dev = dict(list(dev_parts()["dfdc"].items())[:4])
    rows = [
        {"file": f"{unit}{kind}.jpg", "label": kind, "original": original, "split": "dev", "identity": unit, "pair": ""}
        for unit in dev
        for kind, original in (("real", ""), ("fake", f"{unit}real.jpg"))
    ]
    rows.append({"file": "t.jpg", "label": "real", "original": "", "split": "train", "identity": "9999", "pair": ""})
    write_set(tmp_path / "dfdc", rows)
    found = {face.name: face for face in load_dfdc(tmp_path)}
    assert {name: face.part for name, face in found.items()} == {row["file"]: dev.get(row["identity"], "train") for row in rows}
    assert all(face.encoded == name.encode() for name, face in found.items())
    assert all(found[face.real_twin].part == face.part for face in found.values() if face.real_twin)


def test_a_folder_without_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--data"):
        load_faces(tmp_path, ["dfdc"])


@pytest.mark.slow
def test_real_data_shares_no_unit_between_parts(shared: Path) -> None:
    root = shared / "data"
    if not (root / "dfdc" / "index.csv").is_file():
        pytest.skip(f"needs the research data: {root} holds no dfdc/index.csv")
    faces = load_faces(root, list(LOADERS))
    parts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for face in faces:
        parts[face.dataset, face.unit].add(face.part)
    assert all(len(found) == 1 for found in parts.values())
    assert {part for found in parts.values() for part in found} == {"train", "select", "calibrate", "report"}
    assert not any(face.part == "train" for face in faces if face.dataset == "survey_stylegan2")
    by_name = {(face.dataset, face.name): face for face in faces}
    assert len(by_name) == len(faces)
    twins = [(face, by_name[face.dataset, face.real_twin]) for face in faces if face.real_twin]
    assert twins and all(not real.is_fake and real.part == fake.part for fake, real in twins)
    again = load_faces(root, list(LOADERS))
    assert [(f.dataset, f.name, f.part) for f in faces] == [(f.dataset, f.name, f.part) for f in again]


def test_a_window_does_not_keep_the_rest_of_its_image_in_memory() -> None:
    grid = cv2.imencode(".png", np.zeros((640, 640, 3), np.uint8))[1].tobytes()
    tile = Face("g:real", "stargan", grid, (128, 0, 128, 128), False, None, "g", "train").image()
    owner = tile
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert tile.shape == (128, 128, 3) and owner.nbytes == tile.nbytes
