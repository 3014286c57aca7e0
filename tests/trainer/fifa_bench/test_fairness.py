"""Groups are those of file names and of measured skin; rates are counted by hand, and the worst is named."""

import numpy as np
import pytest

from trainer.fifa_bench.fairness import MIN_NAMED, SKIN, RealFace, error_rates, labels_of, skin_luma
from trainer.samples import SIDE

CUTS = {"real_below": 0.3, "fake_at": 0.7}


def face(number: int, score: float, *, dataset: str = "dfdc", luma: float | None = 100.0, name: str = "") -> RealFace:
    return RealFace(dataset, name or f"{number}.jpg", f"{dataset}/{number // 2}", score, luma)


@pytest.mark.parametrize(
    ("dataset", "name", "labels"),
    [
        pytest.param("amfd", "images/SF-1048.jpg", ("smiling", "F in the file name"), id="amfd-smiling"),
        pytest.param("amfd", "NM-1003.jpg", ("neutral", "M in the file name"), id="amfd-neutral"),
        pytest.param("london", "neutral_front/005_03.jpg", ("neutral",), id="london"),
        pytest.param("dfdc", "abcdefghij.jpg", (), id="nothing-labelled"),
    ],
)
def test_labels_are_those_of_the_file_name_and_no_others(dataset: str, name: str, labels: tuple[str, ...]) -> None:
    assert labels_of(dataset, name) == labels


def test_rates_of_each_group_are_those_counted_by_hand() -> None:
    faces = [face(n, 0.9 if n == 0 else 0.5 if n in (1, 2) else 0.1, dataset="amfd", name=f"{'NS'[n % 2]}F-{n // 2}.jpg") for n in range(8)]
    table = error_rates(faces, **CUTS)
    assert (table["amfd"]["faces"], table["amfd"]["people"]) == (8, 4)
    assert table["amfd"]["called_fake"] == 1 / 8 and table["amfd"]["called_inconclusive"] == 2 / 8
    assert table["amfd, neutral"]["called_fake"] == 1 / 4 and table["amfd, smiling"]["called_fake"] == 0
    assert table["amfd, F in the file name"]["faces"] == 8


def test_skin_is_divided_into_equal_thirds_and_faces_without_any_stand_apart() -> None:
    faces = [face(n, 0.9 if n < 10 else 0.1, luma=float(n)) for n in range(30)] + [face(99, 0.5, luma=None)]
    table = error_rates(faces, **CUTS)
    thirds = [table[f"dfdc, {words} third of skin luma"] for words in ("darkest", "middle", "brightest")]
    assert [row["faces"] for row in thirds] == [10, 10, 10] and [row["called_fake"] for row in thirds] == [1, 0, 0]
    assert [row["skin_luma"] for row in thirds] == [4.5, 14.5, 24.5]
    assert table["dfdc, no skin found"]["called_inconclusive"] == 1 and "skin_luma" not in table["dfdc, no skin found"]


def test_the_worst_group_that_is_large_enough_is_named() -> None:
    few = [face(n, 0.9, dataset="amfd", name=f"NM-{n}.jpg", luma=None) for n in range(3)]
    many = [face(n, 0.9 if n < 2 else 0.5 if n > 55 else 0.1, luma=float(n)) for n in range(3 * MIN_NAMED)]
    table = error_rates(few + many, **CUTS)
    named = {name.partition(": ")[0]: name.partition(": ")[2] for name in table if name.startswith("worst")}
    assert named == {
        "worst in false alarms": "dfdc, darkest third of skin luma", "worst in inconclusive": "dfdc, brightest third of skin luma"
    }  # fmt: skip
    assert table["worst in false alarms: dfdc, darkest third of skin luma"] == table["dfdc, darkest third of skin luma"]


def test_a_group_without_an_error_is_still_uncertain() -> None:
    row = error_rates([face(n, 0.1) for n in range(8)], **CUTS)["dfdc"]
    assert row["called_fake"] == row["called_fake_low"] == 0
    assert row["called_fake_high"] == pytest.approx(1 - 0.05**0.25)  # four people


def test_no_faces_make_no_table() -> None:
    assert error_rates([], **CUTS) == {}


def test_skin_is_measured_where_the_face_shows_it() -> None:
    image = np.full((448, 448, 3), 30, np.uint8)
    image[100:200, 100:200] = (200, 150, 100)

    def region_of(concept: str) -> np.ndarray:
        mask_HW = np.zeros((SIDE, SIDE), bool)
        if concept == SKIN[1]:
            mask_HW[55:90, 55:90] = True
        return mask_HW

    assert skin_luma(image, region_of) == pytest.approx(0.299 * 200 + 0.587 * 150 + 0.114 * 100, abs=1)
    assert skin_luma(image, lambda concept: np.zeros((SIDE, SIDE), bool)) is None
