"""Opens a bundle and runs its graphs: manifest first, then every digest, then the sessions; names, dtypes and ranks are checked once.

A bundle that is not what its manifest says is refused with a named fault before anything of it is executed. The provider that runs is the provider
that was asked for, or an error: there is no fallback.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from engines.contracts import (
    FORGERY_TYPES,
    BundleError,
    BundleFault,
    FileSpec,
    Manifest,
    PartName,
    PartSpec,
    ProviderError,
    TensorSpec,
    canonical_digest,
)
from engines.preprocess import CROP_SCALE, IMAGE_MEAN, IMAGE_STD
from engines.prompts import Vocabulary

Arrays = Mapping[str, NDArray[Any]]
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_PART_BYTES = 4 << 30
REBUILD = "export it again with: fifa-train export"


class Bound(Protocol):
    """A graph with state tensors that stay where the backend keeps them between runs (the KV cache)."""

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run once more on the same state; return the outputs that are not state."""
        ...


class Engine(Protocol):
    """One graph of a bundle. Not thread-safe: one thread runs it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Feed every input by name; return every output by name, as new arrays."""
        ...

    def bind(self, state: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Bound:
        """Keep `state` (input name to output name, float32) inside the backend, zeroed, with these shapes."""
        ...


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
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(BundleFault.UNREADABLE_MANIFEST, f"{path} is larger than {MAX_MANIFEST_BYTES} bytes; {REBUILD}")
        raw = json.loads(path.read_bytes())
        digest = canonical_digest(raw) if isinstance(raw, dict) else ""
    except FileNotFoundError:
        raise BundleError(BundleFault.MISSING_FILE, f"no engine manifest at {path}; point engine.folder at a bundle or {REBUILD}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(BundleFault.UNREADABLE_MANIFEST, f"{path} cannot be read: {error}; {REBUILD}") from None
    if not isinstance(raw, dict):
        raise BundleError(BundleFault.UNREADABLE_MANIFEST, f"{path} holds no JSON object; {REBUILD}")
    if raw.get("digest") != digest:
        stated = str(raw.get("digest"))[:12]
        raise BundleError(
            BundleFault.MANIFEST_DIGEST, f"{path} was changed after export: it states digest {stated}, its content gives {digest[:12]}; {REBUILD}"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(BundleFault.UNREADABLE_MANIFEST, f"{path}: field {where}: {first['msg']}; {REBUILD}") from None
    if pinned_digest is not None and pinned_digest != digest:
        raise BundleError(
            BundleFault.PINNED_DIGEST,
            f"engine.pinned_digest is {pinned_digest[:12]}, {folder} has {digest[:12]}; deploy the pinned bundle or change the pin",
        )
    return manifest


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Check presence, size and sha256 of every file the manifest names. Raises BundleError."""
    specs: list[FileSpec] = [*manifest.parts.values(), *manifest.files.values()]
    for spec in specs:
        path = folder / spec.file
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
    optional = set() if "box" in manifest.query_levels else {"box_encoder"}
    if missing := set(get_args(PartName)) - optional - set(manifest.parts):
        raise BundleError(BundleFault.UNSUPPORTED, f"the bundle has no part {', '.join(sorted(missing))}; {REBUILD}")


class OrtEngine:
    """A graph in an ONNX Runtime CPU session."""

    def __init__(self, path: Path, spec: PartSpec, *, threads: int) -> None:
        """`threads` 0 lets the runtime choose. Raises BundleError, ProviderError."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning starves neighbours on shared cores
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own exception types are not public
            raise BundleError(
                BundleFault.WRONG_INTERFACE, f"ONNX Runtime {ort.__version__} cannot load {path}: {_one_line(error)}; {REBUILD}"
            ) from error
        if (running := self._session.get_providers()[0]) != "CPUExecutionProvider":
            raise ProviderError(f"asked for CPUExecutionProvider, {running} runs {path.name}; install the plain onnxruntime package")
        self.inputs, self.outputs = spec.inputs, spec.outputs
        for side, stated, actual in (("input", spec.inputs, self._session.get_inputs()), ("output", spec.outputs, self._session.get_outputs())):
            found = [(value.name, _dtype(value.type), len(value.shape)) for value in actual]
            wanted = [(tensor.name, tensor.dtype, len(tensor.shape)) for tensor in stated]
            if found != wanted:
                raise BundleError(BundleFault.WRONG_INTERFACE, f"{path.name} has {side}s {found}, the manifest states {wanted}; {REBUILD}")
        self._output_names = [tensor.name for tensor in spec.outputs]

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """See `Engine.run`."""
        return dict(zip(self._output_names, self._session.run(self._output_names, dict(feeds)), strict=True))

    def bind(self, state: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> "OrtBound":
        """See `Engine.bind`; input and output share one buffer, so a step copies no cache."""
        return OrtBound(self._session, state, shapes, [name for name in self._output_names if name not in state.values()])


class OrtBound:
    """An ONNX Runtime session with its state bound in place."""

    def __init__(self, session: ort.InferenceSession, state: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], returned: list[str]) -> None:
        self._session, self._returned = session, returned
        self._binding = session.io_binding()
        self._kept = {name: ort.OrtValue.ortvalue_from_numpy(np.zeros(shapes[name], np.float32)) for name in state}
        for name, output in state.items():
            self._binding.bind_ortvalue_input(name, self._kept[name])
            self._binding.bind_ortvalue_output(output, self._kept[name])

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """See `Bound.run`."""
        for name, array in feeds.items():
            self._binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._returned:
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding)
        values = self._binding.get_outputs()  # in the order they were first bound: state, then what is returned
        return {name: value.numpy() for name, value in zip(self._returned, values[len(self._kept) :], strict=True)}


def _one_line(error: Exception) -> str:
    """What a library says, short."""
    return " ".join(str(error).split())[:200]


def _dtype(onnx_type: str) -> str:
    """'tensor(float)' to 'float32'."""
    inner = onnx_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)


def open_bundle(folder: Path, *, threads: int = 0, pinned_digest: str | None = None) -> Bundle:
    """Check everything, then load every part. Blocks for about a second. Raises BundleError, ProviderError."""
    manifest = read_manifest(folder, pinned_digest=pinned_digest)
    verify_files(folder, manifest)
    check_support(manifest)
    engines: dict[PartName, Engine] = {name: OrtEngine(folder / part.file, part, threads=threads) for name, part in manifest.parts.items()}
    try:
        vocabulary = Vocabulary(Tokenizer.from_file(str(folder / manifest.files["tokenizer"].file)))
        embeddings = load_file(folder / manifest.files["token_embeddings"].file)["token_embeddings"].astype(np.float32)
    except Exception as error:  # both libraries raise exceptions of their own, tokenizers the bare class
        raise BundleError(
            BundleFault.WRONG_INTERFACE, f"tokenizer or token embeddings of {folder} are unusable: {_one_line(error)}; {REBUILD}"
        ) from error
    if embeddings.shape != (manifest.decoder.vocab_size, manifest.decoder.width):
        raise BundleError(
            BundleFault.WRONG_INTERFACE,
            f"token embeddings are {embeddings.shape}, the manifest states {(manifest.decoder.vocab_size, manifest.decoder.width)}; {REBUILD}",
        )
    return Bundle(manifest, folder, engines, vocabulary, embeddings)
