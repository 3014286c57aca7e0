"""`bench.encoders`: what an encoder is chosen by, and what it is not."""

from collections.abc import Callable

import numpy as np
import pytest

from bench import encoders
from bench.encoders import column, found_where, score, separation, sets_of
from trainer.config import tiny
from trainer.faces import Face
from trainer.model import FiFaMLLM


@pytest.fixture
def judged(make_face: Callable[..., Face]) -> list[Face]:
    """Reals and fakes of every set in the parts that may choose, and in the two that may not."""
    return [
        make_face(number, dataset=dataset, part=part, fake=fake)
        for dataset in ("dfdc", "stargan", "ffhq_stylegan2", "sd21_faces", "london")
        for part in ("train", "select", "calibrate", "report")
        for fake in (False, True)
        for number in range(2)
        if (fake or dataset != "sd21_faces") and not (fake and dataset == "london")
    ]


def test_nothing_of_report_or_train_chooses_an_encoder(judged: list[Face]) -> None:
    sets = sets_of(judged)
    assert {face.part for faces in sets.values() for face in faces} == {"select", "calibrate"}
    assert all({face.is_fake for face in faces} == {True, False} for faces in sets.values())


def test_separation_counts_fakes_above_all_but_one_percent_of_the_reals() -> None:
    real, fake = np.linspace(0, 1, 100), np.array([0.5, 0.985, 2.0, 3.0])
    assert separation(np.arange(104) >= 100, np.concatenate([real, fake])) == "0.870 / 0.500"


def test_what_is_found_is_counted_above_the_cut_that_so_many_reals_pass() -> None:
    real, fake = np.array([0.0, 4.0, 1.0, 3.0, 2.0]), np.array([0.5, 2.5, 3.5, 9.0])
    assert [found_where(passing, real, fake) for passing in (0, 1, 2, 4, 5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_column_has_every_row_and_the_same_encoder_the_same_column(judged: list[Face]) -> None:
    model = FiFaMLLM(tiny().model).eval()
    crops = [np.full((56, 56, 3), level, np.uint8) for level in (0, 128, 255)]
    cells = column(model, sets_of(judged), crops, {"portrait": crops})
    assert cells == column(model, sets_of(judged), crops, {"portrait": crops})
    scores = score(model, crops)
    assert cells["demo, portrait: as it is; its manipulations"].startswith(f"{scores[0]:.2f}; ")


def test_faces_from_elsewhere_are_held_against_the_cut_of_the_reals_of_dfdc(judged: list[Face], monkeypatch: pytest.MonkeyPatch) -> None:
    def brightness(model: FiFaMLLM, crops: list[np.ndarray]) -> np.ndarray:
        return np.array([crop.mean() for crop in crops])

    monkeypatch.setattr(encoders, "score", brightness)
    monkeypatch.setattr(encoders, "score_faces", lambda model, faces, precision: brightness(model, [face.image() for face in faces]))
    black, white = (np.full((56, 56, 3), level, np.uint8) for level in (0, 255))
    cells = column(FiFaMLLM(tiny().model), sets_of(judged), [black, white, white], {})
    assert cells["faces from elsewhere above it"] == "2 of 3"
