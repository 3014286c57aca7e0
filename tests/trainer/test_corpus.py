"""Which faces are annotated, and how rows find their images again."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from trainer.corpus import annotated_faces, choose_faces
from trainer.faces import Face


def write_rows(folder: Path, *rows: dict[str, object]) -> None:
    (folder / "train.jsonl").write_text("".join(json.dumps({"refused": None, **row}) + "\n" for row in rows))


def test_train_rows_train_and_dev_rows_do_not(make_face: Callable[..., Face]) -> None:
    faces = [
        make_face(number, dataset=dataset, part=part, fake=fake)
        for number, part in enumerate(("train", "select", "calibrate", "report"))
        for dataset in ("dfdc", "ffhq_stylegan2", "survey_stylegan2")
        for fake in (False, True)
    ]
    train, dev = choose_faces(faces, 0)
    assert {(face.dataset, face.is_fake) for face in train} == {(dataset, fake) for dataset in ("dfdc", "ffhq_stylegan2") for fake in (False, True)}
    assert all(face.part == "train" for face in train) and all(face.part != "train" for face in dev)
    assert all(face.dataset == "dfdc" for face in dev if face.is_fake)
    assert not any(face.dataset == "survey_stylegan2" for face in (*train, *dev))
    assert choose_faces(faces, 0) == (train, dev)


def test_rows_find_their_images(make_face: Callable[..., Face], tmp_path: Path) -> None:
    face, own = make_face(1), np.full((8, 8, 3), (200, 40, 90), np.uint8)
    (tmp_path / "own").mkdir()
    cv2.imwrite(str(tmp_path / "own" / "0000.png"), own[..., ::-1])
    write_rows(
        tmp_path,
        {"dataset": face.dataset, "name": face.name},
        {"dataset": face.dataset, "name": "other.png", "refused": "no face"},
        {"dataset": "own", "name": "own/0000.png"},
    )
    found = annotated_faces(tmp_path, [face])
    assert [item.row["name"] for item in found] == [face.name, "own/0000.png"]
    np.testing.assert_array_equal(found[0].image_HWC, face.image())
    np.testing.assert_array_equal(found[1].image_HWC, own)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        pytest.param({"dataset": "dfdc", "name": "lost.jpg"}, r"train\.jsonl speaks of dfdc/lost\.jpg", id="face"),
        pytest.param({"dataset": "own", "name": "own/1.jpg"}, r"1\.jpg is missing", id="own-image"),
    ],
)
def test_a_row_without_its_image_is_named(tmp_path: Path, row: dict[str, object], words: str) -> None:
    write_rows(tmp_path, row)
    with pytest.raises(ValueError, match=words):
        annotated_faces(tmp_path, [])
