"""Folders of pairs, CSV indices and the spec that names a set: read in full, or refused with the place and the remedy."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from trainer import dataset_adapters
from trainer.dataset_adapters import load_csv, load_pairs, open_dataset
from trainer.faces import Face
from trainer.image_index import exact_mask

MakeFace = Callable[..., Face]


def put(path: Path, face: Face) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(face.encoded)


@pytest.fixture
def pairs(tmp_path: Path, make_face: MakeFace) -> Path:
    """Two pairs, one of them with a mask, a lone real and a lone fake."""
    folder = tmp_path / "mine"
    for number in range(3):
        put(folder / "real" / f"p{number}.png", make_face(number))
    for number in (0, 1, 9):
        put(folder / "fake" / f"p{number}.png", make_face(number, fake=True))
    (folder / "mask").mkdir()
    mask_HW = np.zeros((64, 64), np.uint8)
    mask_HW[16:32, 16:32] = 255
    cv2.imwrite(str(folder / "mask" / "p1.png"), mask_HW)
    (folder / "real" / ".hidden").write_text("")
    return folder


def test_twins_share_a_unit_and_find_each_other(pairs: Path) -> None:
    faces = {face.name: face for face in load_pairs(pairs, forgery_type="attribute_manipulation")}
    assert set(faces) == {"real/p0.png", "real/p1.png", "real/p2.png", "fake/p0.png", "fake/p1.png", "fake/p9.png"}
    assert {name: face.real_twin for name, face in faces.items() if face.is_fake} == {
        "fake/p0.png": "real/p0.png", "fake/p1.png": "real/p1.png", "fake/p9.png": None,
    }  # fmt: skip
    assert all(face.dataset == "pairs-mine" and face.part == "report" for face in faces.values())
    assert faces["real/p0.png"].unit == faces["fake/p0.png"].unit != faces["real/p1.png"].unit
    assert {face.forgery_type for face in faces.values() if face.is_fake} == {"attribute_manipulation"}
    changed = exact_mask(faces["fake/p1.png"])
    assert changed is not None and changed.sum() == 256 and exact_mask(faces["fake/p0.png"]) is None
    np.testing.assert_array_equal((faces["fake/p1.png"].image() != faces["real/p1.png"].image()).any(2) & ~changed, False)


def test_what_is_no_pair_is_named(pairs: Path, make_face: MakeFace, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no images in real/ or fake/"):
        load_pairs(tmp_path / "empty")
    put(pairs / "real" / "p0.jpg", make_face(0))
    with pytest.raises(ValueError, match=r"p0\.png and real/p0\.jpg have one name"):
        load_pairs(pairs)
    (pairs / "real" / "p0.jpg").rename(pairs / "real" / "notes.txt")
    with pytest.raises(ValueError, match=r"notes\.txt is no image by its name"):
        load_pairs(pairs)
    (pairs / "real" / "notes.txt").unlink()
    put(pairs / "mask" / "p2.png", make_face(2))
    with pytest.raises(ValueError, match=r"mask/p2\.png marks no fake"):
        load_pairs(pairs)


@pytest.fixture
def write_csv(pairs: Path) -> Callable[..., Path]:
    """Write an index beside the pairs: `write_csv(rows, header=)`."""

    def write(*rows: str, header: str = "file,label,original,type,identity,split,mask") -> Path:
        (pairs / "index.csv").write_text("\n".join((header, *rows)) + "\n")
        return pairs / "index.csv"

    return write


def test_a_row_becomes_the_face_it_describes(write_csv: Callable[..., Path]) -> None:
    faces = load_csv(
        write_csv(
            "fake/p1.png,fake,real/p1.png,swap,,val,mask/p1.png",
            "real/p1.png,real,,,anna,val,",
            "real/p0.png,real,,,,train,",
            "fake/p9.png,fake,,,,,",
        )
    )
    assert [(f.name, f.is_fake, f.forgery_type, f.unit, f.part, f.real_twin) for f in faces] == [
        ("fake/p1.png", True, "swap", "anna", "select", "real/p1.png"),
        ("real/p1.png", False, None, "anna", "select", None),
        ("real/p0.png", False, None, "real/p0.png", "train", None),
        ("fake/p9.png", True, None, "fake/p9.png", "report", None),
    ]
    assert exact_mask(faces[0]) is not None and {f.dataset for f in faces} == {"csv-index"}


def test_two_columns_are_enough_in_any_order_and_with_a_byte_order_mark(write_csv: Callable[..., Path]) -> None:
    index = write_csv("real,real/p0.png", "fake, fake/p0.png ", header="\ufefflabel,file")
    assert [(f.name, f.is_fake) for f in load_csv(index)] == [("real/p0.png", False), ("fake/p0.png", True)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["real/p0.png,FAKE,,,,,"], r"row 2: label 'FAKE'; choose real, fake"),
        (["real/p0.png,real,,,,,", "fake/p0.png,fake,,magic,,,"], r"row 3: type 'magic'; choose identity_swap, .*swap"),
        (["real/p0.png,real,,,,later,"], r"row 2: split 'later'; choose"),
        (["real/p0.png,real,,swap,,,"], r"row 2: type 'swap' of a real face"),
        (["fake/p0.png,fake,real/p0.png,,,,"], r"row 2: original 'real/p0.png' is the file of no real row"),
        (["fake/p0.png,fake,fake/p1.png,,,,", "fake/p1.png,fake,,,,,"], r"row 2: original 'fake/p1.png' is the file of no real row"),
        (["real/p0.png,real,,,,,", "real/p0.png,real,,,,,"], r"row 3: file 'real/p0.png' is that of row 2 too"),
        (["real/p0.png,real,,,,train,", "./real//p0.png,real,,,,test,"], r"row 3: file 'real/p0.png' is that of row 2 too"),
        (["real/p0.png,real,,,a,train,", "real/p1.png,real,,,a,test,"], r"row 3: identity 'a' is in another split than in index.csv, row 2"),
        (["real/p0.png,real,,,a,train,", "fake/p0.png,fake,real/p0.png,,b,test,"], r"row 3: split 'test' is not that of its original"),
        (["real/p0.png,real"], r"row 2: not as many cells"),
        (["real/p0.png,real,,,,,,,"], r"row 2: not as many cells"),
        (["../mine/real/p0.png,real,,,,,"], r"row 2: '../mine/real/p0.png' is not below"),
        (["fake/p0.png,fake,,,,,mask/p9.png"], r"row 2: there is no file 'mask/p9.png'"),
        (['real/p0.png,"real" x,,,,,'], r"after row 1: .*UTF-8 CSV"),
    ],
)
def test_a_bad_row_is_told_by_number_value_and_remedy(write_csv: Callable[..., Path], rows: list[str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_csv(write_csv(*rows))
    assert "\n" not in str(caught.value) and "; " in str(caught.value)  # one line, the remedy after the semicolon


@pytest.mark.parametrize("header", ["file", "file,label,age", "file,label,label", "label,original", ""])
def test_the_columns_are_a_closed_list(write_csv: Callable[..., Path], header: str) -> None:
    with pytest.raises(ValueError, match=r"row 1: columns .*write file,label and any of original,type,identity,split,mask"):
        load_csv(write_csv(header=header))


def test_an_index_with_too_many_rows_is_refused_before_an_image_is_opened(write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_adapters, "MAX_FACES", 2)
    with pytest.raises(ValueError, match="row 4: more than 2 images"):
        load_csv(write_csv(*(f"none{number}.png,real,,,,," for number in range(3))))


def test_a_spec_opens_the_set_it_names(pairs: Path, write_csv: Callable[..., Path]) -> None:
    index = write_csv("real/p0.png,real,,,,,")
    assert open_dataset(f"pairs:{pairs}?type=identity_swap") == load_pairs(pairs, forgery_type="identity_swap")
    assert open_dataset(f"csv:{index}") == open_dataset(f"csv:{index}?crop=none") == load_csv(index)
    assert open_dataset(f"csv:{index}?crop=detect") == load_csv(index)  # the detector sees no face in an oval: the image stays whole
    with pytest.raises(FileNotFoundError, match="--data"):
        open_dataset(f"research:{pairs}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("/some/folder", "names no set; begin with one of research:, pairs:, csv:, deepfakebench:"),
        ("zip:a.zip", "names no set"),
        ("pairs:", "names no path"),
        ("pairs:d?", "'' is not one of pairs's options"),
        ("pairs:d?crop", "'crop' is not one of"),
        ("pairs:d?crop=detect&crop=none", "given twice"),
        ("pairs:d?frames=8", "they are type, crop"),
        ("research:d?crop=none", "they are none"),
        ("pairs:d?crop=some", "crop='some' is not supported; choose none, detect"),
        ("pairs:d?type=magic", "type='magic' is not supported; choose identity_swap"),
        ("deepfakebench:i.json?frames=-1", "frames='-1' is no number"),
        ("deepfakebench:i.json?frames=0", "frames=0 of each video; take at least 1"),
        ("deepfakebench:i.json?split=dev", "split='dev' is not supported; choose test, val, train"),
        ("deepfakebench:i.json?compression=c10", "compression='c10' is not supported"),
    ],
)
def test_a_spec_outside_the_grammar_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        open_dataset(spec)
