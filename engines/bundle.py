"""A bundle on disk: manifest first, then every digest, then the graphs in the backend they were made for.

A bundle that is not what its manifest says is refused with a named fault before anything of it is executed.
"""

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from engines.contracts import (
    FORGERY_TYPES,
    REBUILD,
    BundleError,
    BundleFault,
    FileSpec,
    Manifest,
    PartName,
    one_line,
)
from engines.preprocess import CROP_SCALE, IMAGE_MEAN, IMAGE_STD
from engines.prompts import Vocabulary
from engines.regions import NUM_CHANNELS
from engines.runtime import Engine, OrtEngine
from engines.sealed import SealError, SealFault, read_sealed, write_sealed

MANIFEST_NAME = "manifest.json"
MAX_PART_BYTES = 4 << 30
FACE_BY_FACE: tuple[PartName, ...] = ("encoder", "region_parser")
"""Parts whose rows are whole faces: on a CPU a batch at once takes more memory and is no faster."""
MAX_CAPACITY = 1 << 16
"""Slots of the KV cache; memory is taken by what a manifest states."""
_SEAL_FAULTS = {
    SealFault.MISSING: BundleFault.MISSING_FILE,
    SealFault.UNREADABLE: BundleFault.UNREADABLE_MANIFEST,
    SealFault.DIGEST: BundleFault.MANIFEST_DIGEST,
}


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened engine bundle."""

    manifest: Manifest
    folder: Path
    engines: Mapping[PartName, Engine]
    vocabulary: Vocabulary
    token_embeddings_VE: NDArray[np.float32]


def bundled_engine() -> Path:
    """The engine that ships inside the package."""
    return Path(str(files("engines") / "bundles" / "small"))


def read_manifest(folder: Path, *, pinned_digest: str | None = None) -> Manifest:
    """Read and check `manifest.json` alone. Raises BundleError."""
    path = folder / MANIFEST_NAME
    try:
        manifest = read_sealed(path, Manifest)
    except SealError as error:
        told = f"no engine manifest at {path}; point engine.folder at a bundle or" if error.fault is SealFault.MISSING else f"{error};"
        raise BundleError(_SEAL_FAULTS[error.fault], f"{told} {REBUILD}") from None
    if pinned_digest is not None and pinned_digest != manifest.digest:
        raise BundleError(
            BundleFault.PINNED_DIGEST,
            f"engine.pinned_digest is {pinned_digest[:12]}, {folder} has {manifest.digest[:12]}; deploy the pinned bundle or change the pin",
        )
    return manifest


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Check presence, size and sha256 of every file the manifest names. Raises BundleError."""
    specs: list[FileSpec] = [*manifest.parts.values(), *manifest.files.values()]
    for spec in specs:
        try:
            _verify_file(folder / spec.file, spec)
        except OSError as error:
            told = f"engine file {folder / spec.file} cannot be read: {error.strerror}"
            raise BundleError(BundleFault.MISSING_FILE, f"{told}; let whoever serves read it, copy the whole bundle again or {REBUILD}") from None


def _verify_file(path: Path, spec: FileSpec) -> None:
    if not path.is_file():
        raise BundleError(BundleFault.MISSING_FILE, f"engine file {path} is missing; copy the whole bundle again or {REBUILD}")
    size = path.stat().st_size
    if size != spec.size_bytes or size > MAX_PART_BYTES:
        raise BundleError(
            BundleFault.FILE_DIGEST, f"engine file {path} has {size} bytes, the manifest states {spec.size_bytes}; copy it again or {REBUILD}"
        )
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != spec.sha256:
        raise BundleError(
            BundleFault.FILE_DIGEST,
            f"engine file {path} has sha256 {digest[:12]}, the manifest states {spec.sha256[:12]}; copy it again or {REBUILD}",
        )


def check_support(manifest: Manifest) -> None:
    """Refuse a bundle whose conventions this code does not implement. Raises BundleError."""
    spec = manifest.preprocess
    ours = (CROP_SCALE, tuple(round(float(v), 6) for v in IMAGE_MEAN), tuple(round(float(v), 6) for v in IMAGE_STD))
    theirs = (spec.crop_scale, tuple(round(v, 6) for v in spec.mean), tuple(round(v, 6) for v in spec.std))
    if ours != theirs:
        raise BundleError(BundleFault.UNSUPPORTED, f"the bundle was made with preprocessing {theirs}, this version implements {ours}; {REBUILD}")
    if manifest.forgery_types != FORGERY_TYPES:
        raise BundleError(
            BundleFault.UNSUPPORTED, f"the bundle knows forgery types {manifest.forgery_types}, this version {FORGERY_TYPES}; {REBUILD}"
        )
    if manifest.default_operating_point not in manifest.operating_points:
        raise BundleError(BundleFault.UNSUPPORTED, f"the bundle has no operating point {manifest.default_operating_point!r}; {REBUILD}")
    optional = {"region_parser"} | (set() if "box" in manifest.query_levels else {"box_encoder"})
    if missing := set(get_args(PartName)) - optional - set(manifest.parts):
        raise BundleError(BundleFault.UNSUPPORTED, f"the bundle has no part {', '.join(sorted(missing))}; {REBUILD}")
    calibration, decoder = manifest.calibration, manifest.decoder
    if not (math.isfinite(calibration.scale) and math.isfinite(calibration.bias)):
        told = f"the bundle calibrates by scale {calibration.scale} and bias {calibration.bias}, which are no numbers"
        raise BundleError(BundleFault.UNSUPPORTED, f"{told}; {REBUILD}")
    if not (decoder.max_new_tokens > 0 and decoder.num_prefix_tokens < decoder.capacity <= MAX_CAPACITY):
        told = f"the bundle writes {decoder.max_new_tokens} tokens behind {decoder.num_prefix_tokens} of the face into {decoder.capacity} slots"
        raise BundleError(BundleFault.UNSUPPORTED, f"{told}; at least 1 token, more slots than the face takes and at most {MAX_CAPACITY}; {REBUILD}")
    _check_sizes(manifest)


def _check_sizes(manifest: Manifest) -> None:
    """Sizes that this code takes from `preprocess` and `decoder` are those of the parts' inputs and outputs; None stands for any."""
    spec, decoder = manifest.preprocess, manifest.decoder
    side, cells, mask, width = spec.image_size, spec.grid * abs(spec.grid), spec.mask_size, decoder.width
    cache = (None, decoder.num_heads, decoder.capacity, decoder.head_dim)
    wanted: dict[PartName, dict[str, tuple[int | None, ...]]] = {
        "encoder": {
            "image": (None, 3, side, side), "det_logit": (None,), "type_logits": (None, len(FORGERY_TYPES)), "artifact_logits": (None, cells),
            "image_embeds": (None, cells, None), "prefix_embeds": (None, decoder.num_prefix_tokens, width),
        },
        "decoder": {
            "inputs_embeds": (None, None, width), "past_k0": cache, "logits": (None, None, decoder.vocab_size), "hidden": (None, None, width),
        },
        "mask_decoder": {"seg_embeds": (None, width), "mask_logits": (None, mask, mask), "iou_logit": (None,)},
        "box_encoder": {"box": (None, 4), "box_embeds": (None, width)},
        "region_parser": {"image": (None, 3, side, side), "regions": (None, NUM_CHANNELS, mask, mask)},
    }  # fmt: skip
    for part, graph in manifest.parts.items():
        stated = {tensor.name: tensor.shape for tensor in (*graph.inputs, *graph.outputs)}
        for name, sizes in wanted.get(part, {}).items():
            shape = stated.get(name, ())
            if len(shape) != len(sizes) or any(isinstance(axis, int) and size not in (None, axis) for axis, size in zip(shape, sizes, strict=True)):
                told = f"{name} of the {part} is {shape}, what the manifest says of preprocessing and decoder asks for {sizes}"
                raise BundleError(BundleFault.WRONG_INTERFACE, f"{told}; {REBUILD}")
    layers = sum(tensor.name.startswith("past_k") for tensor in manifest.parts["decoder"].inputs)
    if layers != decoder.num_layers:
        told = f"the decoder keeps the state of {layers} layers, the manifest states {decoder.num_layers}"
        raise BundleError(BundleFault.WRONG_INTERFACE, f"{told}; {REBUILD}")


def open_bundle(folder: Path, *, threads: int = 0, pinned_digest: str | None = None) -> Bundle:
    """Check everything, then load every part. Blocks for about a second. Raises BundleError, ProviderError."""
    manifest = read_manifest(folder, pinned_digest=pinned_digest)
    verify_files(folder, manifest)
    check_support(manifest)
    engines = _open_parts(folder, manifest, threads)
    try:
        vocabulary = Vocabulary(Tokenizer.from_file(str(folder / manifest.files["tokenizer"].file)))
        embeddings = load_file(folder / manifest.files["token_embeddings"].file)["token_embeddings"].astype(np.float32)
    except Exception as error:  # both libraries raise exceptions of their own, tokenizers the bare class
        raise BundleError(
            BundleFault.WRONG_INTERFACE, f"tokenizer or token embeddings of {folder} are unusable: {one_line(error)}; {REBUILD}"
        ) from error
    if embeddings.shape != (manifest.decoder.vocab_size, manifest.decoder.width):
        raise BundleError(
            BundleFault.WRONG_INTERFACE,
            f"token embeddings are {embeddings.shape}, the manifest states {(manifest.decoder.vocab_size, manifest.decoder.width)}; {REBUILD}",
        )
    return Bundle(manifest, folder, engines, vocabulary, embeddings)


def _open_parts(folder: Path, manifest: Manifest, threads: int) -> dict[PartName, Engine]:
    """Every graph in the backend that the manifest names."""
    if manifest.backend == "onnxruntime":
        # A thread has work enough in one face. In int8, sums of two faces together round otherwise than those of one alone (MatMulNBits).
        faces = 1 if manifest.build is not None and manifest.build.precision == "int8" else threads or os.cpu_count() or 1
        return {
            name: OrtEngine(folder / part.file, part, threads=threads, rows_together=faces if name in FACE_BY_FACE else None)
            for name, part in manifest.parts.items()
        }
    from engines.trt_runtime import TrtEngine, check_build  # what serves on a CPU never asks for a GPU's libraries

    check_build(manifest, folder)
    return {name: TrtEngine(folder / part.file, part, backend=manifest.backend) for name, part in manifest.parts.items()}


def file_spec(path: Path) -> FileSpec:
    """Name, digest and size of a file of a bundle."""
    content = path.read_bytes()
    return FileSpec(file=path.name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def seal_manifest(folder: Path, draft: Manifest) -> Manifest:
    """Write `manifest.json` with its own digest in place of the draft's."""
    return write_sealed(folder / MANIFEST_NAME, draft)
