"""Which faces are annotated, and how rows find their images again."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from trainer.corpus import TRAIN_FAKES, TRAIN_REALS, annotate_own, choose_faces
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
    assert {face.dataset for face in dev if face.is_fake} == {"dfdc", "ffhq_stylegan2"}
    assert not any(face.dataset == "survey_stylegan2" for face in (*train, *dev))
    assert choose_faces(faces, 0) == (train, dev)


def test_a_set_without_a_quota_is_taken_whole(make_face: Callable[..., Face]) -> None:
    faces = [make_face(number, dataset="pairs-mine", part=part) for number, part in enumerate(("train", "report", "report"))]
    train, dev = choose_faces(faces, 0)
    assert len(train) == 1 and len(dev) == 2


def test_own_manipulations_are_the_same_whatever_the_workers_and_stay_in_their_part(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="the annotator needs the annotate extra (ai-edge-litert)")
    data = pytest.importorskip("skimage.data")
    cut = cv2.resize(np.ascontiguousarray(data.astronaut()[50:210, 145:305, ::-1]), (224, 224), interpolation=cv2.INTER_CUBIC)
    image = cv2.imencode(".png", cut)[1].tobytes()
    reals = [Face(f"{part}.png", "dfdc", image, None, False, None, part, part) for part in ("select", "report")]
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        annotate_own(reals, tmp_path / str(workers), file="dev", count=3, seed=0, workers=workers)
    one, two = ((tmp_path / workers / "dev.jsonl").read_bytes() for workers in "12")
    assert one == two
    rows = [json.loads(line) for line in one.splitlines()]
    assert [row["forgery_type"] for row in rows] == ["attribute_manipulation", "identity_swap", "expression_swap"]
    assert all(row["part"] == row["source"][1].removesuffix(".png") for row in rows)
    annotate_own(reals, tmp_path / "1", file="dev", count=3, seed=0)
    assert (tmp_path / "1" / "dev.jsonl").read_bytes() == one, "rows that are there are kept"


def test_a_smaller_share_is_part_of_the_whole_draw(make_face: Callable[..., Face]) -> None:
    faces = [make_face(number, dataset="ffhq_stylegan2", fake=number % 2 == 1) for number in range(900)]
    whole, _ = choose_faces(faces, 0)
    half, _ = choose_faces(faces, 0, 0.5)
    assert len(half) == round(TRAIN_FAKES["ffhq_stylegan2"] / 2) + round(TRAIN_REALS["ffhq_stylegan2"] / 2)
    assert {face.name for face in half} < {face.name for face in whole}
