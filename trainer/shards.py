"""Instruction data on disk: sharded tar (WebDataset's manner), JSON lines, and a manifest that says what they were made of.

`NNNNN.tar` holds `{key}.jpg`, a face crop at 224 px, and `{key}.json`, the list of its samples; `samples.jsonl` holds all samples again. The bytes
depend on recipe and faces alone, not on the workers. A finished shard is known by its digest and kept; a torn one is written again.
"""

import hashlib
import io
import json
import multiprocessing
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import track

from trainer.annotator.annotate import process_annotator
from trainer.faces import Face, fit
from trainer.instruct import Recipe, Subject, instruct, shuffled_labels
from trainer.samples import SIDE, Rle, Sample

FORMAT = "fifa-instruct/1"
"""Part of every shard's input digest: raise it when the same inputs come to give other samples."""
FACES_PER_SHARD = 500
JPEG_QUALITY = 95
"""One codec for all sets, or a detector learns the set by its codec."""
MAX_MEMBER_BYTES = 32 << 20
"""A face with all its samples and regions takes less than a thirtieth."""
MANIFEST, SAMPLES = "manifest.json", "samples.jsonl"
_MEMBER = re.compile(r"([A-Za-z0-9_-]{1,90})\.(jpg|json)")
_SHARD_NAME = r"^\d{5}\.tar$"
_FACE_SAMPLES = TypeAdapter(list[Sample])


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Closed):
    """One finished tar."""

    file: str = Field(pattern=_SHARD_NAME)
    sha256: str
    inputs: str
    """Digest of recipe, faces, twins and annotations that went in."""
    faces: int
    samples: int


class Source(_Closed):
    """What one data set gave."""

    faces: int
    sha256: str
    """Over the digests of its faces and twins, in the order of names."""


class Manifest(_Closed):
    """What a folder of instruction data is made of."""

    format: str = Field(default=FORMAT, pattern=f"^{FORMAT}$")
    project_version: str
    recipe: Recipe
    faces_per_shard: int
    complete: bool = False
    """False while shards are missing."""
    faces: int
    parts: dict[str, int]
    """Faces by part."""
    counts: dict[str, int] = {}
    """Samples by 'task/level', probes with their name behind."""
    annotations_sha256: str
    sources: dict[str, Source]
    samples_sha256: str | None = None
    shards: tuple[Shard, ...]


class Member(NamedTuple):
    """One face as it goes into a shard."""

    key: str
    jpeg: bytes
    samples: tuple[str, ...]
    """JSON, one a sample."""


Mapper = Callable[[Callable[[Subject], Member], Sequence[Subject]], Iterable[Member]]
"""Applies a function to every subject and gives the results in the order of the subjects."""


def on_cores(workers: int) -> Mapper:
    """Map over `workers` processes, one thread each; in this process for one."""

    def mapped(work: Callable[[Subject], Member], asked: Sequence[Subject]) -> Iterator[Member]:
        if workers <= 1:
            yield from map(work, asked)
            return
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            yield from pool.imap(work, asked, chunksize=4)

    return mapped


# Writing.


def write_instructions(
    asked: Sequence[Subject], out: Path, recipe: Recipe, *, mapper: Mapper | None = None, faces_per_shard: int = FACES_PER_SHARD
) -> Manifest:
    """Write or finish a folder of instruction data; shards that stand there already, made of the same, are kept.

    The seed spreads faces over shards. `mapper` is where the work is done, this process when not given. Raises ValueError for a face that occurs
    twice and for a folder that holds something else.
    """
    ordered = _ordered(shuffled_labels(asked, recipe.seed) if recipe.shuffle_labels else asked, recipe.seed)
    chunks = [ordered[start : start + faces_per_shard] for start in range(0, len(ordered), faces_per_shard)]
    digests = {id(face): _face_digest(face) for subject in ordered for face in _faces(subject)}
    inputs = [_digest([FORMAT, asdict(recipe), *([digests[id(face)] for face in _faces(s)] + [s.row] for s in chunk)]) for chunk in chunks]
    out.mkdir(parents=True, exist_ok=True)
    done = _finished(out, inputs)
    manifest = Manifest(
        project_version=version("fifa-stream"), recipe=recipe, faces_per_shard=faces_per_shard, faces=len(ordered),
        parts=dict(sorted(Counter(subject.seen.part for subject in ordered).items())),
        annotations_sha256=_digest([subject.row for subject in ordered]), sources=_sources(ordered, digests), shards=_in_order(done),
    )  # fmt: skip
    _write_manifest(out, manifest)
    missing = [number for number in range(len(chunks)) if number not in done]
    todo = [subject for number in missing for subject in chunks[number]]
    members = (mapper or on_cores(1))(partial(make_member, recipe=recipe), todo) if todo else ()
    shown = iter(track(members, description="instruct", total=len(todo), console=Console(stderr=True)))
    for number in missing:
        done[number] = _write_shard(out, number, islice(shown, len(chunks[number])), inputs[number])
        manifest = manifest.model_copy(update={"shards": _in_order(done)})
        _write_manifest(out, manifest)
    next(shown, None)  # lets the workers go
    counts, samples_sha256 = _collect_samples(out, manifest.shards)
    manifest = manifest.model_copy(update={"complete": True, "counts": counts, "samples_sha256": samples_sha256})
    _write_manifest(out, manifest)
    return manifest


def make_member(subject: Subject, recipe: Recipe) -> Member:
    """One face's crop and samples."""
    samples = instruct(subject, recipe, process_annotator() if subject.row is not None else None)
    crop_HWC = fit(subject.seen.image(), SIDE)
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    jpeg = cv2.imencode(".jpg", np.ascontiguousarray(crop_HWC[..., ::-1]), options)[1].tobytes()
    return Member(_key(subject.seen), jpeg, tuple(sample.model_dump_json(exclude_defaults=True) for sample in samples))


def _key(face: Face) -> str:
    """A file name of the face, without a dot: WebDataset ends keys at the first."""
    words = re.sub(r"[^A-Za-z0-9_]+", "-", f"{face.dataset}-{Path(face.name).stem}")[:70]
    return f"{words}-{hashlib.sha256(f'{face.dataset}/{face.name}'.encode()).hexdigest()[:12]}"


def _ordered(asked: Sequence[Subject], seed: int) -> list[Subject]:
    by_name = {(subject.seen.dataset, subject.seen.name): subject for subject in asked}
    if len(by_name) < len(asked):
        raise ValueError(f"{len(asked) - len(by_name)} of {len(asked)} faces occur twice; ask each face once")
    ordered = [by_name[name] for name in sorted(by_name)]
    return [ordered[index] for index in np.random.default_rng(seed).permutation(len(ordered))]


def _faces(subject: Subject) -> list[Face]:
    return [face for face in (subject.face, subject.twin, subject.shown) if face is not None]


def _face_digest(face: Face) -> str:
    facts = [face.dataset, face.name, face.window_xywh, face.is_fake, face.forgery_type, face.unit, face.part, face.real_twin, face.pair_quality]
    return hashlib.sha256(json.dumps(facts).encode() + face.encoded).hexdigest()


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _sources(asked: Sequence[Subject], digests: dict[int, str]) -> dict[str, Source]:
    faces = {(face.dataset, face.name): face for subject in asked for face in _faces(subject)}
    sets: dict[str, list[str]] = {}
    for (dataset, _), face in sorted(faces.items()):
        sets.setdefault(dataset, []).append(digests[id(face)])
    return {dataset: Source(faces=len(found), sha256=_digest(found)) for dataset, found in sets.items()}


def _finished(out: Path, inputs: Sequence[str]) -> dict[int, Shard]:
    """Shards that were made of the same inputs and are whole; shards that an older manifest names and this one will not are removed."""
    if not (out / MANIFEST).exists():
        if any(out.glob("*.tar")):
            raise ValueError(f"{out} holds .tar files but no {MANIFEST}; choose an empty folder")
        return {}
    kept = {}
    for shard in read_manifest(out).shards:
        number, path = int(shard.file[:5]), out / shard.file
        if number >= len(inputs):
            path.unlink(missing_ok=True)
        elif shard.inputs == inputs[number] and path.is_file() and _file_digest(path) == shard.sha256:
            kept[number] = shard
    return kept


def _in_order(done: dict[int, Shard]) -> tuple[Shard, ...]:
    return tuple(done[number] for number in sorted(done))


def _write_shard(out: Path, number: int, members: Iterable[Member], inputs: str) -> Shard:
    path = out / f"{number:05}.tar"
    part = path.with_suffix(".part")
    faces = samples = 0
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member in members:
            faces, samples = faces + 1, samples + len(member.samples)
            listed = "[" + ",\n".join(member.samples) + "]\n"
            for name, content in ((f"{member.key}.jpg", member.jpeg), (f"{member.key}.json", listed.encode())):
                header = tarfile.TarInfo(name)  # fixed owner, mode and time
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    os.replace(part, path)
    return Shard(file=path.name, sha256=_file_digest(path), inputs=inputs, faces=faces, samples=samples)


def _write_manifest(out: Path, manifest: Manifest) -> None:
    part = out / f"{MANIFEST}.part"
    part.write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    os.replace(part, out / MANIFEST)


def _collect_samples(out: Path, shards: Sequence[Shard]) -> tuple[dict[str, int], str]:
    """Write `samples.jsonl` out of the shards; returns counts by task, level and probe, and the file's digest."""
    counts: Counter[str] = Counter()
    part = out / f"{SAMPLES}.part"
    with part.open("w", encoding="utf-8") as sink:
        for shard in shards:
            for _, _, listed in _members(out / shard.file):
                for sample in json.loads(listed):
                    probe = sample.get("probe")
                    counts["/".join([sample["task"], sample.get("level", "image"), *([probe] if probe else [])])] += 1
                    sink.write(json.dumps(sample, separators=(",", ":"), ensure_ascii=False) + "\n")
    os.replace(part, out / SAMPLES)
    return dict(sorted(counts.items())), _file_digest(out / SAMPLES)


def _file_digest(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


# Reading.


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest. Raises FileNotFoundError without one, ValueError for one of another format."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; point at a folder of instruction data")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{path} is no manifest of {FORMAT}: {'.'.join(map(str, first['loc']))}: {first['msg']}; choose another folder") from None


def finished(folder: Path) -> str:
    """SHA-256 of all samples. Raises ValueError where the data is incomplete, and what `read_manifest` raises."""
    samples = read_manifest(folder).samples_sha256
    if samples is None:
        raise ValueError(f"{folder} is not complete; run the same command again to finish it")
    return samples


def read_shards(folder: Path) -> Iterator[tuple[NDArray[np.uint8], list[Sample]]]:
    """Faces in the order of the shards: (224, 224, 3) uint8 RGB and all samples of the face.

    Nothing is unpacked to disk. Raises ValueError where the data is incomplete, a shard is not the one of the manifest, or a member is not what it
    should be.
    """
    manifest = read_manifest(folder)
    if not manifest.complete:
        raise ValueError(f"{folder} is not complete; run the same command again to finish it")
    for shard in manifest.shards:
        path = folder / shard.file
        if not path.is_file() or _file_digest(path) != shard.sha256:
            raise ValueError(f"{path} is missing or not the shard of {MANIFEST}; run the command that made it again")
        for key, jpeg, listed in _members(path):
            decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
            if decoded is None or decoded.shape != (SIDE, SIDE, 3):
                raise ValueError(f"{path}: {key}.jpg is no {SIDE} px crop")
            try:
                samples = _FACE_SAMPLES.validate_json(listed)
            except ValidationError as error:
                raise ValueError(f"{path}: {key}.json: {error.errors(include_url=False)[0]['msg']}") from None
            yield np.ascontiguousarray(decoded[..., ::-1]), _sharing_regions(samples)


def _sharing_regions(samples: list[Sample]) -> list[Sample]:
    """The samples of a face with one copy of its regions: a bench of thousands of faces then fits into memory."""
    known: list[dict[str, Rle]] = []
    shared = []
    for sample in samples:
        same = next((regions for regions in known if regions == sample.regions), None)
        if same is None:
            known.append(sample.regions)
        shared.append(sample if same is None else sample.model_copy(update={"regions": same}))
    return shared


def _members(path: Path) -> Iterator[tuple[str, bytes, bytes]]:
    """Key, JPEG and JSON of each face; plain files of plain names and bounded size, in pairs."""
    image: tuple[str, bytes] | None = None
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            name = _MEMBER.fullmatch(member.name)
            if name is None or not member.isreg() or member.size > MAX_MEMBER_BYTES:
                raise ValueError(f"{path}: {member.name[:80]!r} ({member.size} bytes) does not belong into a shard")
            handle = tar.extractfile(member)
            assert handle is not None, "a regular member has content"
            content = handle.read()
            if (name[2] == "jpg") != (image is None) or (image is not None and image[0] != name[1]):
                raise ValueError(f"{path}: {member.name!r} stands without its other half; a .jpg is followed by the .json of its key")
            if image is None:
                image = name[1], content
            else:
                yield name[1], image[1], content
                image = None
    if image is not None:
        raise ValueError(f"{path}: {image[0]}.jpg is the last member; its .json is missing")
