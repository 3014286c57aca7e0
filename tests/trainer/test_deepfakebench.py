"""DeepfakeBench's index: frames spread over the whole video, videos kept apart, twins and units by the names of FaceForensics++."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer.dataset_adapters import open_dataset
from trainer.deepfakebench import even_positions, load_deepfakebench
from trainer.faces import Face
from trainer.image_index import exact_mask

ELSEWHERE = "D:\\work\\datasets\\"
"""Where the index was written."""


def video(root: Path, folder: str, label: str, *, numbers: range = range(10), mask: bool = False, style: str = "windows") -> dict[str, Any]:
    """Write a video's frames and return its record, whose frames are listed out of order."""
    paths: dict[str, list[str]] = {"frames": [], "masks": []}
    for kind in ("frames", "masks") if mask else ("frames",):
        for number in sorted(numbers, key=lambda n: (n * 7) % 11):
            path = f"{folder.format(kind=kind)}/{number:03d}.png"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((6, 8, 3), 200 if kind == "masks" and number % 2 else number, np.uint8)).save(root / path)
            paths[kind].append((ELSEWHERE + path.replace("/", "\\")) if style == "windows" else path)
    return {"label": label, **paths}


@pytest.fixture
def ff(tmp_path: Path) -> Path:
    """FF-DF.json with two pairs of videos in test, one in train; the folder is called as theirs, with plus signs."""
    real, fake = "FaceForensics++/original_sequences/youtube/c23/{kind}", "FaceForensics++/manipulated_sequences/Deepfakes/c23/{kind}"
    tests = {name: video(tmp_path, f"{real}/{name}", "FF-real") for name in ("000", "003", "010")}
    fakes = {name: video(tmp_path, f"{fake}/{name}", "FF-DF", mask=True) for name in ("000_003", "003_000")}
    fakes["010_011"] = video(tmp_path, f"{fake}/010_011", "FF-DF", numbers=range(40, 44))
    trains = {"500": video(tmp_path, f"{real}/500", "FF-real", numbers=range(2))}
    train_fakes = {"500_501": video(tmp_path, f"{fake}/500_501", "FF-DF", numbers=range(2))}
    content = {
        "FF-real": {"train": {"c23": trains, "c40": {}}, "val": {"c23": {}, "c40": {}}, "test": {"c23": tests, "c40": {}}},
        "FF-DF": {"train": {"c23": train_fakes}, "val": {"c23": {}}, "test": {"c23": fakes}},
    }
    (tmp_path / "FF-DF.json").write_text(json.dumps({"FF-DF": content}))
    return tmp_path


def by_name(faces: list[Face]) -> dict[str, Face]:
    found = {face.name: face for face in faces}
    assert len(found) == len(faces)
    return found


def test_every_frame_of_a_fake_has_the_same_frame_of_its_original(ff: Path) -> None:
    faces = by_name(load_deepfakebench(ff / "FF-DF.json", ff, frames=4))
    fake = [face for name, face in faces.items() if name.startswith("FF-DF/000_003/")]
    assert [face.name for face in fake] == [f"FF-DF/000_003/{number:03d}" for number in (1, 3, 6, 8)]
    assert [face.real_twin for face in fake] == [f"FF-real/000/{number:03d}" for number in (1, 3, 6, 8)]
    for face in fake:
        np.testing.assert_array_equal(face.image(), faces[face.real_twin or ""].image())
    assert {(f.forgery_type, f.part, f.dataset) for f in fake} == {("identity_swap", "report", "deepfakebench-FF-DF")}
    short = [face for name, face in faces.items() if name.startswith("FF-DF/010_011/")]
    assert [face.real_twin for face in short] == [None] * 4  # its frames are not those of the original


def test_a_unit_holds_both_originals_of_a_pair_and_every_fake_between_them(ff: Path) -> None:
    units: dict[str, set[str]] = {}
    for name, face in by_name(load_deepfakebench(ff / "FF-DF.json", ff)).items():
        units.setdefault(face.unit, set()).add(name.rsplit("/", 1)[0])
    assert sorted(units.values(), key=sorted) == [{"FF-DF/000_003", "FF-DF/003_000", "FF-real/000", "FF-real/003"}, {"FF-DF/010_011", "FF-real/010"}]


def test_the_exact_mask_of_a_frame_is_found_by_its_number(ff: Path) -> None:
    faces = by_name(load_deepfakebench(ff / "FF-DF.json", ff, frames=4))
    masks = {name: exact_mask(face) for name, face in faces.items()}
    assert {name for name, mask in masks.items() if mask is not None} == {n for n in faces if n.startswith(("FF-DF/000", "FF-DF/003"))}
    assert all(mask.all() == (int(name[-3:]) % 2 == 1) for name, mask in masks.items() if mask is not None)


def test_the_spec_reads_what_the_loader_reads(ff: Path) -> None:
    listed = load_deepfakebench(ff / "FF-DF.json", ff, split="train", frames=1)
    assert [face.part for face in listed] == ["train"] * 2
    assert open_dataset(f"deepfakebench:{ff}/FF-DF.json?root={ff}&split=train&frames=1&compression=c23") == listed
    below = open_dataset(f"deepfakebench:{ff}/FF-DF.json?root={ff}/FaceForensics++&split=train&frames=1")
    assert [face.name for face in below] == [face.name for face in listed]


def write_index(root: Path, labels: dict[str, Any], dataset: str = "Set") -> Path:
    (root / "index.json").write_text(json.dumps({dataset: labels}))
    return root / "index.json"


def test_a_real_and_a_fake_video_of_one_name_stay_two(tmp_path: Path) -> None:
    content = {
        f"UADFV_{kind}": {"test": {"0000": video(tmp_path, f"{kind}/frames/0000", f"UADFV_{kind}", style="plain")}} for kind in ("Real", "Fake")
    }
    faces = by_name(load_deepfakebench(write_index(tmp_path, content), tmp_path, frames=2))
    assert {face.unit for face in faces.values()} == {"UADFV_Real/0000", "UADFV_Fake/0000"} and len(faces) == 4


def test_a_video_that_test_names_too_never_trains(tmp_path: Path) -> None:
    names = {"CelebDFv2_real": ["id0_0000", "id1_0000", "00007"], "CelebDFv2_fake": ["id0_id1_0000", "id1_id0_0000"]}
    content: dict[str, Any] = {}
    for label, videos in names.items():
        listed = {name: video(tmp_path, f"{label}/{name}", label, numbers=range(2), style="plain") for name in videos}
        content[label] = {"train": listed, "val": {}, "test": {name: record for name, record in listed.items() if name.startswith("id0_")}}
    index = write_index(tmp_path, content)
    train, test = (load_deepfakebench(index, tmp_path, split=split, frames=1) for split in ("train", "test"))
    assert {face.unit for face in train} == {"id1", "CelebDFv2_real/00007"} and {face.unit for face in test} == {"id0"}
    content = {label: {split: splits["train"] for split in ("train", "val", "test")} for label, splits in content.items()}
    with pytest.raises(ValueError, match="split 'train' has no video that a later split does not name too"):
        load_deepfakebench(write_index(tmp_path, content), tmp_path, split="train")


@given(count=st.integers(1, 500), wanted=st.integers(1, 64))
def test_positions_spread_evenly_over_the_whole_video(count: int, wanted: int) -> None:
    positions = even_positions(count, wanted)
    assert len(set(positions)) == len(positions) == min(count, wanted) and positions == sorted(positions)
    steps = np.diff([-positions[0] - 1, *positions, 2 * count - 1 - positions[-1]])  # as if the video went on, mirrored, at both ends
    assert positions[0] >= 0 and positions[-1] < count and steps.max() - steps.min() <= 2


def test_an_index_of_another_shape_is_told_where(tmp_path: Path) -> None:
    good = video(tmp_path, "v", "FF-real", style="plain")
    for labels, message in (
        ({"FF-real": {"test": {"c40": {"000": good}}}}, r"FF-real > test has no compression 'c23'; choose c40"),
        ({"FF-real": {"train": {"000": good}}}, r"FF-real > test does not list videos by name"),
        ({"FF-real": {"test": good}}, r"FF-real > test does not list videos by name"),  # as their DFDC index has it for val
        ({"FF-real": {"test": {"000": {"label": "FF-real"}}}}, r"FF-real > test > 000 is no \{label, frames, masks\}"),
        ({"FF-real": {"test": {"000": {**good, "frames": [1]}}}}, r"FF-real > test > 000 is no"),
        ({"new": {"test": {"000": {**good, "label": "new_Fake"}}}}, r"new > test > 000: label 'new_Fake' is not known; known are FF-real"),
        ({"FF-real": {"test": {}}}, r"split 'test' has no video; choose another"),
        ({"FF-real": {"test": {"000": {**good, "frames": ["x/001.png"]}}}}, r"neither 'x/001.png' nor an end of it is a file below .* root=DIR"),
        ({"FF-real": {"test": {"000": {**good, "frames": ["../v/001.png"]}}}}, r"neither|not below"),
    ):  # fmt: skip
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_deepfakebench(write_index(tmp_path, labels), tmp_path / "inner" if ".." in str(labels) else tmp_path)
    for text in ("[]", "{}", "{", '{"a": {}, "b": {}}', '{"a": []}'):
        (tmp_path / "index.json").write_text(text)
        with pytest.raises(ValueError, match=r"is no JSON|does not hold one dataset"):
            load_deepfakebench(tmp_path / "index.json", tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no index"):
        load_deepfakebench(tmp_path / "none.json", tmp_path)


def test_a_video_without_frames_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    videos = {"000": video(tmp_path, "v", "FF-real", numbers=range(3), style="plain"), "001": {"label": "FF-real", "frames": []}}
    faces = load_deepfakebench(write_index(tmp_path, {"FF-real": {"test": videos}}), tmp_path)
    assert len(faces) == 3 and "1 of 2 videos of split test list no frame" in caplog.text
