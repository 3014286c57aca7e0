"""The acceptance pack: face crops with what the checkpoint says of them, and whether an engine says the same. A build is refused on it.

A pack is a folder: `pack.json`, checked first, and two safetensors files, checked against it. Crops are stored without loss, so that every machine
judges the same pixels. None of them is of the *report* part, and those that quantization is calibrated on are of other people than those judged.

    AcceptanceError (EngineError)   the pack cannot be used; carries one of `AcceptanceFault`
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.numpy import load, save

from engines.analyzer import Analyzer
from engines.contracts import EngineError, FileSpec, Manifest, Precision, Sha256
from engines.masks import last_whole_sentence
from engines.questions import Answer, sigmoid
from engines.sealed import SealError, SealFault, read_sealed, write_sealed

PACK_NAME = "pack.json"
BATCH = 16
MAX_CROPS = 500
MAX_FILE_BYTES = 128 << 20
WRITE_AGAIN = "write it again with: fifa-train export --acceptance"

Bar = tuple[Literal["at most", "at least"], float]
BARS: dict[Precision, dict[str, Bar]] = {
    "fp32": {
        "max_score_difference": ("at most", 1e-4), "map_iou": ("at least", 0.999), "mask_iou": ("at least", 0.999),
        "token_agreement": ("at least", 1.0),
    },
    "fp16": {
        "max_score_difference": ("at most", 0.005), "auc_drop": ("at most", 0.001), "map_iou": ("at least", 0.995), "mask_iou": ("at least", 0.995),
        "token_agreement": ("at least", 0.9),
    },
    "bf16": {
        "max_score_difference": ("at most", 0.03), "auc_drop": ("at most", 0.002), "map_iou": ("at least", 0.97), "mask_iou": ("at least", 0.97),
        "token_agreement": ("at least", 0.5),
    },
    "int8": {"auc_drop": ("at most", 0.002), "map_iou": ("at least", 0.97), "mask_iou": ("at least", 0.97)},
}  # fmt: skip
"""What a build of each precision must reach against the reference, by the names of `compare`.

fp32 may differ by the order of its sums. The shipped bundle in fp16, its products accumulated in fp32, differs by 0.0012, 0.9998, 0.9994 and 0.984:
its bars leave four times that. bf16 rounds eight times as coarsely: 0.008 and 0.987 for score and map, measured with torch's autocast."""


class AcceptanceFault(StrEnum):
    """Why a pack is refused."""

    MISSING_FILE = "missing_file"
    UNREADABLE_PACK = "unreadable_pack"
    PACK_DIGEST = "pack_digest"
    FILE_DIGEST = "file_digest"
    WRONG_CONTENT = "wrong_content"
    OTHER_CHECKPOINT = "other_checkpoint"
    """Written from another checkpoint than the engine, or one stored otherwise."""


class AcceptanceError(EngineError):
    """The pack is refused before anything is judged by it."""

    def __init__(self, fault: AcceptanceFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


_SEAL_FAULTS = {
    SealFault.MISSING: AcceptanceFault.MISSING_FILE,
    SealFault.UNREADABLE: AcceptanceFault.UNREADABLE_PACK,
    SealFault.DIGEST: AcceptanceFault.PACK_DIGEST,
}


class PackSpec(BaseModel):
    """`pack.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    schema_version: Literal["1.0"] = "1.0"
    checkpoint_sha256: Sha256
    """Of the weights that the reference was computed with."""
    stored: Literal["fp32", "fp16", "bf16"]
    """The precision they were rounded to first, as the bundle stores them."""
    image_size: int = Field(ge=16, le=1024)
    grid: int = Field(ge=1, le=128)
    mask_size: int = Field(ge=1, le=512)
    num_judged: int = Field(ge=2, le=MAX_CROPS)
    num_explained: int = Field(ge=1, le=MAX_CROPS)
    """The first of the judged crops; all of them are fakes."""
    num_calibration: int = Field(ge=0, le=MAX_CROPS)
    """Crops behind the judged ones, which quantization may see."""
    parts: dict[Literal["judged", "calibration"], str]
    """Which part of the development data each is of."""
    counts: dict[str, tuple[int, int]]
    """Judged reals and fakes of each set."""
    names: tuple[Sha256, ...]
    """sha256 of "set/name" of every crop, in order."""
    files: dict[Literal["crops", "reference"], FileSpec]
    digest: Sha256
    """sha256 of this file's canonical JSON without this field."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What one engine says of N crops, the first of which it explains."""

    raw_N: NDArray[np.float32]
    """Uncalibrated score."""
    maps_NHW: NDArray[np.bool_]
    """Artifact map on the patch grid: probability 0.5 or more."""
    token_ids: tuple[tuple[int, ...], ...]
    """Its own answer to each explained crop."""
    masks: tuple[NDArray[np.bool_], ...]
    """(K, H, W) for each explained crop: probability 0.5 or more, one mask for each [SEG] of the text that was forced."""


@dataclass(frozen=True, slots=True)
class AcceptancePack:
    """A pack that was read and checked."""

    spec: PackSpec
    judged_NHWC: NDArray[np.uint8]
    is_fake_N: NDArray[np.bool_]
    calibration_NHWC: NDArray[np.uint8]
    reference: Observed


def observe(analyzer: Analyzer, crops_NHWC: NDArray[np.uint8], *, explained: int, texts: Sequence[Sequence[int]] | None = None) -> Observed:
    """Run an engine over crops and explain the first of them; masks are those of the whole sentences of `texts` (token ids), or of its own."""
    raw, maps, answers = [], [], []
    masks: list[NDArray[np.bool_]] = []
    grid = analyzer.manifest.preprocess.grid
    for start in range(0, len(crops_NHWC), BATCH):
        encoded = analyzer.encode(crops_NHWC[start : start + BATCH])
        raw.append(encoded["det_logit"])
        maps.append(sigmoid(encoded["artifact_logits"]).reshape(-1, grid, grid) >= 0.5)
        rows = range(min(max(explained - start, 0), len(encoded["det_logit"])))
        if not rows:
            continue
        prefix_BPE = encoded["prefix_embeds"][list(rows)]
        told = [tuple(answer.ids) for answer in analyzer.ask(encoded, rows, "age", [None] * len(rows))]
        written = told if texts is None else texts[start : start + len(rows)]
        forced = analyzer.force(prefix_BPE, [last_whole_sentence(analyzer.markup(Answer(list(ids)))) for ids in written], "age")
        masks_MHW, _ = analyzer.masks(encoded, rows, forced)
        ends = np.cumsum([len(answer.seg_embeds) for answer in forced])
        masks += np.split(masks_MHW >= 0.5, ends[:-1])
        answers += told
    return Observed(np.concatenate(raw), np.concatenate(maps), tuple(answers), tuple(masks))


def compare(analyzer: Analyzer, pack: AcceptancePack) -> dict[str, float]:
    """Measure an engine against the reference of the pack; takes about a minute on two cores. Raises AcceptanceError (other_checkpoint).

    `mask_iou` is the mean overlap of the mask decoder's masks behind the reference's own text, so that an answer worded otherwise does not enter: the
    masks of verdicts. `map_iou` is that of the artifact maps, which no verdict shows, over the patches of all faces together, `face_map_iou` its mean
    over faces, which has no bar: many maps are a patch or two at the cut and flip whole. Means leave out pairs that are empty on both sides.
    `token_agreement` is the share of explained faces told in the same tokens, `auc_drop` what the engine loses of the reference's AUC, and scores are
    the calibrated ones.
    """
    _check_source(analyzer.manifest, pack.spec)
    reference = pack.reference
    found = observe(analyzer, pack.judged_NHWC, explained=pack.spec.num_explained, texts=reference.token_ids)
    difference_N = np.abs(analyzer.calibrated(found.raw_N) - analyzer.calibrated(reference.raw_N))
    reached = auc(pack.is_fake_N, found.raw_N)
    if [len(masks) for masks in found.masks] != [len(masks) for masks in reference.masks]:
        raise AcceptanceError(AcceptanceFault.OTHER_CHECKPOINT, f"the engine's tokenizer reads the pack's texts otherwise; {WRITE_AGAIN}")
    ours_MHW, theirs_MHW = np.concatenate(found.masks), np.concatenate(reference.masks)
    agree = [ours == theirs for ours, theirs in zip(found.token_ids, reference.token_ids, strict=True)]
    return {
        "faces": float(len(found.raw_N)),
        "explained": float(len(agree)),
        "masks": float(len(ours_MHW)),
        "max_score_difference": float(difference_N.max()),
        "auc": reached,
        "auc_drop": auc(pack.is_fake_N, reference.raw_N) - reached,
        "map_iou": mean_iou(found.maps_NHW[None], reference.maps_NHW[None]),
        "face_map_iou": mean_iou(found.maps_NHW, reference.maps_NHW),
        "mask_iou": mean_iou(ours_MHW, theirs_MHW),
        "token_agreement": float(np.mean(agree)),
    }


def judge(found: Mapping[str, float], precision: Precision) -> list[str]:
    """The bars of `BARS` that were not reached, one sentence each; none when the build is accepted."""
    return [
        f"{name} is {found[name]:.4g}, a build of {precision} needs {side} {bar:g}"
        for name, (side, bar) in BARS[precision].items()
        if not (found[name] <= bar if side == "at most" else found[name] >= bar)  # so that NaN fails
    ]


def auc(is_fake_N: NDArray[np.bool_], score_N: NDArray[np.floating[Any]]) -> float:
    """Area under the ROC curve; ties count half."""
    fakes, reals = score_N[is_fake_N], np.sort(score_N[~is_fake_N])
    below = np.searchsorted(reals, fakes, "left") + np.searchsorted(reals, fakes, "right")
    return float(below.mean() / (2 * len(reals)))


def mean_iou(found_NHW: NDArray[np.bool_], reference_NHW: NDArray[np.bool_]) -> float:
    """Mean intersection over union of the pairs that mark anything, axis 0 counting pairs; 1 where none does."""
    axes = tuple(range(1, found_NHW.ndim))
    union_N = (found_NHW | reference_NHW).sum(axes)
    marked_N = union_N > 0
    return float(((found_NHW & reference_NHW).sum(axes)[marked_N] / union_N[marked_N]).mean()) if marked_N.any() else 1.0


def read_pack(folder: Path) -> AcceptancePack:
    """Read and check a pack whole. Raises AcceptanceError."""
    spec = _read_spec(folder)
    num_crops = spec.num_judged + spec.num_calibration
    if num_crops != len(spec.names) or num_crops > MAX_CROPS or spec.num_explained > spec.num_judged:
        raise AcceptanceError(
            AcceptanceFault.WRONG_CONTENT,
            f"{folder / PACK_NAME} counts {spec.num_judged} judged, {spec.num_explained} explained and {spec.num_calibration} calibration crops, "
            f"{len(spec.names)} names, of {MAX_CROPS} allowed; {WRITE_AGAIN}",
        )
    crops = _read_tensors(folder, spec.files["crops"])
    told = _read_tensors(folder, spec.files["reference"])
    judged, explained, grid, side = spec.num_judged, spec.num_explained, spec.grid, spec.mask_size
    for tensors, name, dtype, shape in (
        (crops, "webp", np.uint8, (None,)),
        (crops, "ends", np.int64, (num_crops,)),
        (crops, "is_fake", np.bool_, (judged,)),
        (told, "raw_score", np.float32, (judged,)),
        (told, "artifact_map", np.bool_, (judged, grid, grid)),
        (told, "token_ids", np.int64, (None,)),
        (told, "token_ends", np.int64, (explained,)),
        (told, "masks", np.bool_, (None, side, side)),
        (told, "mask_ends", np.int64, (explained,)),
    ):
        found = tensors.get(name, np.zeros(0))
        if found.dtype != dtype or found.ndim != len(shape) or any(want not in (None, have) for have, want in zip(found.shape, shape, strict=True)):
            raise AcceptanceError(
                AcceptanceFault.WRONG_CONTENT,
                f"tensor {name} of {folder} is {found.dtype} {found.shape}, not {np.dtype(dtype)} {shape}; {WRITE_AGAIN}",
            )
    is_fake_N = crops["is_fake"]
    if is_fake_N.all() or not is_fake_N[:explained].all():
        raise AcceptanceError(
            AcceptanceFault.WRONG_CONTENT, f"{folder} holds {int(is_fake_N.sum())} fakes of {judged}, the first {explained} not all; {WRITE_AGAIN}"
        )
    images_NHWC = np.stack([_decoded(part.tobytes(), spec.image_size, folder) for part in _split(crops["webp"], crops["ends"], folder)])
    reference = Observed(
        told["raw_score"],
        told["artifact_map"],
        tuple(tuple(ids.tolist()) for ids in _split(told["token_ids"], told["token_ends"], folder)),
        tuple(_split(told["masks"], told["mask_ends"], folder)),
    )
    return AcceptancePack(spec, images_NHWC[:judged], is_fake_N, images_NHWC[judged:], reference)


def write_pack(
    folder: Path,
    *,
    judged_NHWC: NDArray[np.uint8],
    is_fake_N: NDArray[np.bool_],
    calibration_NHWC: NDArray[np.uint8],
    reference: Observed,
    about: Mapping[str, Any],
) -> PackSpec:
    """Write a pack; `about` holds the fields of `PackSpec` that arrays do not tell. The same content gives the same bytes."""
    crops = [_encoded(crop) for crop in (*judged_NHWC, *calibration_NHWC)]
    masks_MHW = np.concatenate(reference.masks)
    tensors = {
        "crops": {
            "webp": np.frombuffer(b"".join(crops), np.uint8),
            "ends": np.cumsum([len(crop) for crop in crops]),
            "is_fake": is_fake_N,
        },
        "reference": {
            "raw_score": reference.raw_N,
            "artifact_map": reference.maps_NHW,
            "token_ids": np.array([token for ids in reference.token_ids for token in ids], np.int64),
            "token_ends": np.cumsum([len(ids) for ids in reference.token_ids]),
            "masks": masks_MHW,
            "mask_ends": np.cumsum([len(masks) for masks in reference.masks]),
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, arrays in tensors.items():
        content = save(arrays)
        (folder / f"{name}.safetensors").write_bytes(content)
        files[name] = {"file": f"{name}.safetensors", "sha256": sha256(content).hexdigest(), "size_bytes": len(content)}
    body = {
        **about, "image_size": judged_NHWC.shape[1], "grid": reference.maps_NHW.shape[1], "mask_size": masks_MHW.shape[1],
        "num_judged": len(judged_NHWC), "num_explained": len(reference.token_ids), "num_calibration": len(calibration_NHWC), "files": files,
    }  # fmt: skip
    return write_sealed(folder / PACK_NAME, PackSpec.model_validate({**body, "digest": "0" * 64}))


def _read_spec(folder: Path) -> PackSpec:
    path = folder / PACK_NAME
    try:
        return read_sealed(path, PackSpec)
    except SealError as error:
        told = f"no acceptance pack at {path}" if error.fault is SealFault.MISSING else str(error)
        raise AcceptanceError(_SEAL_FAULTS[error.fault], f"{told}; {WRITE_AGAIN}") from None


def _read_tensors(folder: Path, spec: FileSpec) -> dict[str, NDArray[Any]]:
    path = folder / spec.file
    if not path.is_file():
        raise AcceptanceError(AcceptanceFault.MISSING_FILE, f"{path} is missing; copy the whole pack again or {WRITE_AGAIN}")
    with path.open("rb") as handle:
        content = handle.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES or sha256(content).hexdigest() != spec.sha256:
        raise AcceptanceError(
            AcceptanceFault.FILE_DIGEST, f"{path} is not the file of {spec.size_bytes} bytes that {PACK_NAME} states; copy it again or {WRITE_AGAIN}"
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise AcceptanceError(AcceptanceFault.WRONG_CONTENT, f"{path} holds no tensors: {error}; {WRITE_AGAIN}") from None


def _split(array: NDArray[Any], ends: NDArray[np.int64], folder: Path) -> list[NDArray[Any]]:
    """Cut along the first axis at the stated ends."""
    if (np.diff(ends, prepend=0) < 0).any() or (ends[-1] if len(ends) else 0) != len(array):
        raise AcceptanceError(AcceptanceFault.WRONG_CONTENT, f"{folder} states ends that do not cut its {len(array)} entries; {WRITE_AGAIN}")
    return np.split(array, ends[:-1])


def _encoded(crop_HWC: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(crop_HWC).save(out, "WEBP", lossless=True)
    return out.getvalue()


def _decoded(content: bytes, side: int, folder: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(content), formats=("WEBP",)) as image:
            if image.size == (side, side):
                return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        pass
    raise AcceptanceError(AcceptanceFault.WRONG_CONTENT, f"{folder} holds a crop that is no WebP of {side} x {side} px; {WRITE_AGAIN}")


def _check_source(manifest: Manifest, spec: PackSpec) -> None:
    checkpoint = manifest.provenance.get("checkpoint_sha256", "unknown")
    theirs = (checkpoint, manifest.precision, manifest.preprocess.image_size, manifest.preprocess.grid, manifest.preprocess.mask_size)
    ours = (spec.checkpoint_sha256, spec.stored, spec.image_size, spec.grid, spec.mask_size)
    if theirs != ours:
        shown = " and ".join(
            f"{of} of checkpoint {sha[:12]} stored in {kind}, {rest}" for of, (sha, kind, *rest) in (("a pack", ours), ("a bundle", theirs))
        )
        raise AcceptanceError(AcceptanceFault.OTHER_CHECKPOINT, f"{shown} do not compare; {WRITE_AGAIN}")
