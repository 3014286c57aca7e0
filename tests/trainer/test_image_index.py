"""An index of image files: nothing outside its folder is read, and what cannot be taken is refused by name."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainer import image_index
from trainer.image_index import Entry, exact_mask, read_faces

WriteImage = Callable[..., None]


@pytest.fixture
def write_image() -> WriteImage:
    """Write a picture: `write_image(path, side=, level=)`; the format is that of the suffix."""

    def write(path: Path, *, width: int = 40, height: int = 30, level: int = 90) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((height, width, 3), level, np.uint8)).save(path)

    return write


def entry(file: str, *, fake: bool = False, twin: str | None = None, mask: str | None = None) -> Entry:
    return Entry("row 2", file, file, fake, "identity_swap" if fake else None, "u", "report", twin, mask)


def huge_png(side: int) -> bytes:
    """A PNG that promises side x side pixels and ends where they would begin."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT")
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)


def test_faces_come_in_the_order_of_the_index_with_their_bytes(tmp_path: Path, write_image: WriteImage) -> None:
    for name in ("f.png", "r.jpg"):
        write_image(tmp_path / name)
    faces = read_faces(tmp_path, "set", [entry("f.png", fake=True, twin="r.jpg"), entry("r.jpg")])
    assert [(f.name, f.is_fake, f.forgery_type, f.real_twin) for f in faces] == [
        ("f.png", True, "identity_swap", "r.jpg"), ("r.jpg", False, None, None),
    ]  # fmt: skip
    assert [f.encoded for f in faces] == [(tmp_path / name).read_bytes() for name in ("f.png", "r.jpg")]


@pytest.mark.parametrize("file", ["../out.png", "a/../../out.png", "/etc/passwd", "", "nul\0.png", "link.png", "linked/out.png"])
def test_nothing_outside_the_folder_is_read(tmp_path: Path, write_image: WriteImage, file: str) -> None:
    write_image(tmp_path / "out.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "out.png")
    (tmp_path / "set" / "linked").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"row 2: .* is not below .*without \.\."):
        read_faces(tmp_path / "set", "set", [entry(file)])


@given(parts=st.lists(st.sampled_from(["..", ".", "a", "set", "out.png", ""]), max_size=6))
def test_no_path_of_any_form_leads_out(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    outer = tmp_path_factory.mktemp("outer")
    Image.new("RGB", (4, 4)).save(outer / "out.png")
    (outer / "set").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match="row 2"):
        read_faces(outer / "set", "set", [entry(os.sep.join(parts))])


def test_a_link_within_the_folder_is_followed(tmp_path: Path, write_image: WriteImage) -> None:
    write_image(tmp_path / "a" / "x.png")
    (tmp_path / "y.png").symlink_to(tmp_path / "a" / "x.png")
    assert read_faces(tmp_path, "set", [entry("y.png")])[0].image().shape == (30, 40, 3)


def test_files_that_are_no_image_too_large_or_missing_are_named(tmp_path: Path, write_image: WriteImage, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "bomb.png").write_bytes(huge_png(20_000))
    (tmp_path / "large.png").write_bytes(huge_png(8_000))
    write_image(tmp_path / "film.gif")
    for file, message in (
        ("text.png", "no readable image of JPEG, PNG"), ("film.gif", "no readable image"), ("bomb.png", "pixels; scale it down"),
        ("large.png", "8000 x 8000 pixels"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_faces(tmp_path, "set", [entry(file)])
    with pytest.raises(FileNotFoundError, match=r"row 2: there is no file 'gone\.png'"):
        read_faces(tmp_path, "set", [entry("gone.png")])
    monkeypatch.setattr(image_index, "MAX_FILE_BYTES", 3)
    with pytest.raises(ValueError, match="has 8 bytes, 3 are allowed"):
        read_faces(tmp_path, "set", [entry("text.png")])


def test_a_set_that_is_empty_or_larger_than_memory_allows_is_refused(
    tmp_path: Path, write_image: WriteImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="0 images"):
        read_faces(tmp_path, "set", [])
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png")
    monkeypatch.setattr(image_index, "MAX_TOTAL_BYTES", (tmp_path / "a.png").stat().st_size)
    with pytest.raises(ValueError, match="GiB of images"):
        read_faces(tmp_path, "set", [entry("a.png"), entry("b.png")])
    monkeypatch.setattr(image_index, "MAX_FACES", 1)
    with pytest.raises(ValueError, match="2 images, a set has 1 to 1"):
        read_faces(tmp_path, "set", [entry("a.png"), entry("b.png")])


def test_a_mask_says_which_pixels_were_changed_within_the_window(tmp_path: Path, write_image: WriteImage) -> None:
    write_image(tmp_path / "f.png")
    mask_HW = np.zeros((30, 40), np.uint8)
    mask_HW[10:20, 5:25], mask_HW[0, 0] = 128, 127
    cv2.imwrite(str(tmp_path / "m.png"), mask_HW)
    listed = [entry("f.png", fake=True, mask="m.png")]
    (whole,), (cut,) = read_faces(tmp_path, "set", listed), read_faces(tmp_path, "set", listed, lambda _: (4, 8, 12, 16))
    found, found_cut = exact_mask(whole), exact_mask(cut)
    assert found is not None and found_cut is not None
    np.testing.assert_array_equal(found, mask_HW == 128)
    np.testing.assert_array_equal(found_cut, (mask_HW == 128)[8:24, 4:16])
    assert found_cut.shape == cut.image().shape[:2]
    assert exact_mask(read_faces(tmp_path, "set", [entry("f.png")])[0]) is None


@pytest.mark.parametrize(("name", "width"), [("m.png", 41), ("m.jpg", 40)])
def test_a_mask_of_another_size_or_a_lossy_one_is_refused(tmp_path: Path, write_image: WriteImage, name: str, width: int) -> None:
    write_image(tmp_path / "f.png")
    write_image(tmp_path / name, width=width)
    with pytest.raises(ValueError, match=rf"mask '{name}' is .* {width} x 30 pixels; write a PNG of its image's size, 40 x 30"):
        read_faces(tmp_path, "set", [entry("f.png", fake=True, mask=name)])


def test_the_size_of_a_turned_photograph_is_that_of_its_pixels(tmp_path: Path, write_image: WriteImage) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "f.jpg", exif=exif)
    write_image(tmp_path / "m.png", width=30, height=40)
    (face,) = read_faces(tmp_path, "set", [entry("f.jpg", fake=True, mask="m.png")])
    mask_HW = exact_mask(face)
    assert mask_HW is not None and face.image().shape[:2] == mask_HW.shape == (40, 30)


def test_a_pair_is_cut_at_one_place(tmp_path: Path, write_image: WriteImage) -> None:
    for name, width in (("r.png", 40), ("f.png", 40), ("g.png", 50)):
        write_image(tmp_path / name, width=width)
    asked: list[int] = []

    def crop(image: np.ndarray) -> tuple[int, int, int, int] | None:
        asked.append(image.shape[1])
        return (len(asked), 0, 8, 8)

    listed = [entry("f.png", fake=True, twin="r.png"), entry("g.png", fake=True, twin="r.png"), entry("r.png")]
    windows = [face.window_xywh for face in read_faces(tmp_path, "set", listed, crop)]
    assert windows == [(1, 0, 8, 8), (2, 0, 8, 8), (1, 0, 8, 8)] and asked == [40, 50]  # the larger fake is not aligned with its twin
