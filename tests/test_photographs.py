"""Photographs from elsewhere: found by what they are, and counted as an operating point calls them."""

import hashlib
import json
from pathlib import Path

import pytest

from bench import photographs
from bench.photographs import Photograph, page
from fifa_stream.testing import toy_faces, toy_manifest


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the two files of a list, under names of their own."""
    files = {"a/first.jpg": b"first", "second.png": b"second"}
    index = {"npm faces@1": {path: hashlib.sha256(encoded).hexdigest() for path, encoded in files.items()}}
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
    assert found == [Photograph("npm faces@1", "a/first.jpg", b"first"), Photograph("npm faces@1", "second.png", b"second")]


def test_a_photograph_that_changed_is_missing_by_name(unpacked: Path) -> None:
    (unpacked / "0").write_bytes(b"second, cropped")
    with pytest.raises(ValueError, match=r"lacks 1 of 2 photographs, second\.png first; unpack npm faces@1 there"):
        photographs.photographs(unpacked)


def test_every_listed_photograph_has_its_digest_once() -> None:
    index = json.loads(photographs.LIST.read_text())
    assert len(photographs.listed()) == sum(map(len, index.values())) >= 30


def test_the_page_counts_labels_at_every_operating_point() -> None:
    manifest = toy_manifest()
    (point,) = manifest.operating_points.values()
    (face,) = toy_faces("stream", 0)[:1]
    scores = (point.fake_at, (point.fake_at + point.real_below) / 2, 0.0, 0.0)
    faces = [(Photograph("npm faces@1", f"{number}.jpg", b""), face.model_copy(update={"fake_score": score})) for number, score in enumerate(scores)]
    lines = list(page(faces, manifest))
    assert any(line.endswith("| 1 (25%) | 1 (25%) | 2 (50%) |") for line in lines)
    assert [line for line in lines if line.startswith("- ")] == [f"- npm faces@1, `0.jpg`: {point.fake_at:.3f}, {face.forgery_type.label}"]
