"""Instruction data on disk: the same bytes whatever the work, nothing done twice, nothing believed that was not written."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from trainer import shards
from trainer.annotator.annotate import annotate_face, to_row
from trainer.faces import Face, fit
from trainer.instruct import Recipe, Subject, instruct
from trainer.samples import read_samples
from trainer.shards import Mapper, Member, on_cores, read_manifest, read_shards, write_instructions

RECIPE = Recipe(queries=1, seed=5)


@pytest.fixture
def asked(
    make_face: Callable[..., Face], annotation_row: Callable[..., dict[str, Any]], grid_annotator: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> list[Subject]:
    """Five annotated pairs, and two faces without annotation; the annotator is the grid."""
    monkeypatch.setattr(shards, "process_annotator", grid_annotator)
    pairs = [(make_face(number, dataset="dfdc", fake=True), make_face(number, dataset="dfdc")) for number in range(5)]
    return [Subject(fake, real, annotation_row(fake)) for fake, real in pairs] + [Subject(make_face(number), None, None) for number in (8, 9)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def counting(made: list[str]) -> Mapper:
    """Does the work here and writes down whose."""

    def mapped(work: Callable[[Subject], Member], todo: Sequence[Subject]) -> Iterator[Member]:
        for subject in todo:
            made.append(subject.face.name)
            yield work(subject)

    return mapped


def repack(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    """Write a tar of one's own in place of a shard and let the manifest believe it."""
    with tarfile.open(path, "w") as tar:
        for header, content in members:
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    manifest = json.loads((path.parent / shards.MANIFEST).read_text())
    for shard in manifest["shards"]:
        if shard["file"] == path.name:
            shard["sha256"] = shards._file_digest(path)
    (path.parent / shards.MANIFEST).write_text(json.dumps(manifest))


def unpacked(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as tar:
        return [(member, handle.read()) for member in tar if (handle := tar.extractfile(member)) is not None]


def test_what_was_written_is_read(asked: list[Subject], grid_annotator: Callable[..., Any], tmp_path: Path) -> None:
    manifest = write_instructions(asked, tmp_path, RECIPE, faces_per_shard=3)
    expected = {subject.face.name: subject for subject in asked}
    read = list(read_shards(tmp_path))
    assert sorted(samples[0].name for _, samples in read) == sorted(expected)
    for image_HWC, samples in read:
        subject = expected[samples[0].name]
        assert samples == instruct(subject, RECIPE, grid_annotator())
        assert np.abs(image_HWC.astype(int) - fit(subject.face.image(), 224)).mean() < 3
    together = [sample for _, samples in read for sample in samples]
    assert list(read_samples(tmp_path / shards.SAMPLES)) == together
    assert sum(manifest.counts.values()) == len(together) == sum(shard.samples for shard in manifest.shards)
    assert [shard.faces for shard in manifest.shards] == [3, 3, 1] and manifest.complete and manifest.parts == {"train": 7}
    assert {name: source.faces for name, source in manifest.sources.items()} == {"dfdc": 10, "ffhq_stylegan2": 2}


def test_the_bytes_do_not_depend_on_the_order_of_the_faces(asked: list[Subject], tmp_path: Path) -> None:
    write_instructions(asked, tmp_path / "a", RECIPE, faces_per_shard=3)
    write_instructions(asked[::-1], tmp_path / "b", RECIPE, faces_per_shard=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    write_instructions(asked, tmp_path / "c", replace(RECIPE, seed=6), faces_per_shard=3)
    assert contents(tmp_path / "a")["00000.tar"] != contents(tmp_path / "c")["00000.tar"]


def test_two_processes_write_the_bytes_of_one(make_face: Callable[..., Face], tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    cut = np.ascontiguousarray(pytest.importorskip("skimage.data").astronaut()[50:210, 145:305])  # NASA, public domain
    real = replace(make_face(0, dataset="dfdc"), encoded=cv2.imencode(".png", cut[..., ::-1])[1].tobytes())
    changed = cut.copy()
    changed[95:125, 50:110, 0] += 60 - changed[95:125, 50:110, 0] // 2
    fake = replace(make_face(0, dataset="dfdc", fake=True), encoded=cv2.imencode(".png", changed[..., ::-1])[1].tobytes())
    made = [
        Subject(face, twin, to_row(annotate_face(face, twin), dataset="dfdc", name=face.name, part="train"))
        for face, twin in ((real, None), (fake, real))
    ]
    made += [Subject(make_face(number), None, None) for number in range(7)]
    write_instructions(made, tmp_path / "one", RECIPE, faces_per_shard=4)
    write_instructions(made, tmp_path / "two", RECIPE, faces_per_shard=4, mapper=on_cores(2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    asked = {(sample.is_fake, sample.task, sample.level) for _, samples in read_shards(tmp_path / "two") for sample in samples}
    assert {(True, "age", "image"), (True, "age", "region"), (False, "age", "box")} <= asked


def test_an_interrupted_run_goes_on_with_the_first_missing_shard(asked: list[Subject], tmp_path: Path) -> None:
    def breaking(work: Callable[[Subject], Member], todo: Sequence[Subject]) -> Iterator[Member]:
        yield from map(work, islice(todo, 4))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_instructions(asked, tmp_path / "a", RECIPE, faces_per_shard=3, mapper=breaking)
    assert not read_manifest(tmp_path / "a").complete
    with pytest.raises(ValueError, match="not complete"):
        next(read_shards(tmp_path / "a"))
    made: list[str] = []
    write_instructions(asked, tmp_path / "a", RECIPE, faces_per_shard=3, mapper=counting(made))
    assert len(made) == 4  # seven faces, three of them in the finished shard
    write_instructions(asked, tmp_path / "b", RECIPE, faces_per_shard=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_a_torn_shard_is_written_again_and_the_others_are_kept(asked: list[Subject], tmp_path: Path, harm: str) -> None:
    write_instructions(asked, tmp_path, RECIPE, faces_per_shard=3)
    whole, path = contents(tmp_path), tmp_path / "00001.tar"
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content[:-700] if harm == "cut" else content)
    if harm == "remove":
        path.unlink()
    with pytest.raises(ValueError, match=r"00001\.tar is missing or not the shard"):
        list(read_shards(tmp_path))
    made: list[str] = []
    write_instructions(asked, tmp_path, RECIPE, faces_per_shard=3, mapper=counting(made))
    assert len(made) == 3 and contents(tmp_path) == whole


def test_only_shards_of_the_same_making_are_kept(asked: list[Subject], tmp_path: Path) -> None:
    write_instructions(asked, tmp_path, RECIPE, faces_per_shard=3)
    for changed, recipe, fresh in ((asked, replace(RECIPE, queries=2), 7), (asked, replace(RECIPE, queries=2), 0), (asked[:2], RECIPE, 2)):
        made: list[str] = []
        write_instructions(changed, tmp_path, recipe, faces_per_shard=3, mapper=counting(made))
        assert len(made) == fresh
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["00000.tar"]  # two faces need no more
    annotation = asked[0].row
    assert annotation is not None
    reworded = [replace(asked[0], row=annotation | {"markup": "The <p> main forehead </p> [SEG] is soft."}), asked[1]]
    made = []
    write_instructions(reworded, tmp_path, RECIPE, faces_per_shard=1, mapper=counting(made))
    assert len(made) == 2
    write_instructions(asked[:2], tmp_path, RECIPE, faces_per_shard=1, mapper=counting(made))
    assert made[2:] == [asked[0].face.name]


def test_shuffled_labels_keep_images_and_names_together(asked: list[Subject], tmp_path: Path) -> None:
    write_instructions(asked, tmp_path, replace(RECIPE, shuffle_labels=True))
    shown = {subject.face.name: subject.face for subject in asked}
    for image_HWC, samples in read_shards(tmp_path):
        assert np.abs(image_HWC.astype(int) - fit(shown[samples[0].name].image(), 224)).mean() < 3


def test_other_peoples_folders_are_left_alone(asked: list[Subject], tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(b"mine")
    with pytest.raises(ValueError, match="choose an empty folder"):
        write_instructions(asked, tmp_path, RECIPE)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="no manifest of fifa-instruct/1"):
        write_instructions(asked, tmp_path, RECIPE)
    assert (tmp_path / "00000.tar").read_bytes() == b"mine"
    with pytest.raises(FileNotFoundError, match="is missing; point at"):
        next(read_shards(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="1 of 8 faces occur twice"):
        write_instructions([*asked, asked[0]], tmp_path / "new", RECIPE)


def test_members_that_do_not_belong_are_refused(asked: list[Subject], tmp_path: Path) -> None:
    write_instructions(asked[:1], tmp_path, RECIPE)
    path = tmp_path / "00000.tar"
    image, listed = unpacked(path)

    def named(name: str, *, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
        header = tarfile.TarInfo(name)
        header.type, header.linkname = kind, target
        return header

    cases: list[tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = [
        ([(named("../x.jpg"), image[1]), listed], "does not belong"),
        ([(named("/etc/x.jpg"), image[1]), listed], "does not belong"),
        ([(named("x.jpg", kind=tarfile.SYMTYPE, target="/etc/passwd"), b"")], "does not belong"),
        ([image, listed, (named("readme.txt"), b"hi")], "does not belong"),
        ([listed, image], "without its other half"),
        ([image, (named("other.json"), listed[1])], "without its other half"),
        ([image], "is the last member"),
        ([(named("x.jpg"), b"no image"), (named("x.json"), listed[1])], "no 224 px crop"),
        ([image, (named(listed[0].name), b'[{"id": 1}]')], r"\.json: "),
    ]
    for members, message in cases:
        repack(path, members)
        with pytest.raises(ValueError, match=message):
            list(read_shards(tmp_path))


def test_keys_are_plain_and_tell_faces_apart(make_face: Callable[..., Face]) -> None:
    names = ("a/b.jpg", "a-b.jpg", "a.b.jpg", "grid.png#3:black_hair", "grid.png#3:real", "x" * 300, "\u00e9.jpg", "..")
    keys = [shards._key(replace(make_face(1), name=name)) for name in names]
    assert len(set(keys)) == len(names)
    assert all(shards._MEMBER.fullmatch(f"{key}.jpg") for key in keys)
