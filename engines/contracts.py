"""What goes into and comes out of an engine: forgery types, masks, evidence, analyses, and the manifest of a bundle.

Boxes and masks here are in the pixel frame of the face crop (origin top left, x right); `fifa_stream.infer` takes them home to the frame.

    EngineError                 nothing wrong with the caller's frame: the bundle or its runtime cannot be used
      BundleError               the files are not what the manifest says; carries one of `BundleFault`
      ProviderError             the runtime asked for is not the one that runs
      BuildError                a graph, its shapes or an option that a library does not build (`trt_build`)
      AcceptanceError           the acceptance pack cannot be used (`acceptance`)
      AcceptanceRefused         a build says other things than the checkpoint (`build`)
      CudaError                 the GPU refused a call (`cuda`)
"""

import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

FORGERY_TYPES = ("identity_swap", "expression_swap", "attribute_manipulation", "entire_synthesis")
"""The four families, in the order of every type vector."""

MANIFEST_SCHEMA = "1.5"
"""1.1 adds `query_levels` and the part `box_encoder`; bundles of 1.0 are read as ones that answer for whole faces only. 1.2 adds `build`: how and
for what the parts were compiled; bundles before it are ONNX as exported. 1.3 adds `mirrored_regions`; bundles before it locate in the crop alone. 1.4
adds the part `region_parser` and `region_mask_cut`; bundles before it name places and draw masks as their decoders will. 1.5 adds `wording`; bundles
before it say what their decoders write."""

Wording = Literal["decoded", "measured"]
Words = Literal["measured", "decoded", "fixed"]
"""Whose words one text has. "measured": each amount in it was measured on the crop. "decoded": the decoder wrote it, and amounts in it are what such
faces tend to show, not what this one does. "fixed": a set sentence without amounts."""

APPEARANCE_SIZE = 32
"""Bytes of `Analysis.appearance`."""

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1), far edges exclusive."""
AreaQuery = str | Box
"""What is asked about: a FICT id, or a box in pixels of the face crop."""

REBUILD = "export it again with: fifa-train export"
"""The remedy for a bundle that is not whole."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PlainFileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A name inside the bundle folder: no separators, so a manifest cannot point outside."""


class Label(StrEnum):
    """What a verdict says of a face or frame."""

    REAL = "real"
    FAKE = "fake"
    INCONCLUSIVE = "inconclusive"


def label_of(fake_score: float, *, fake_at: float, real_below: float) -> Label:
    """What two cuts make of a calibrated score."""
    if fake_score >= fake_at:
        return Label.FAKE
    return Label.REAL if fake_score < real_below else Label.INCONCLUSIVE


class BundleFault(StrEnum):
    """Why a bundle is refused."""

    MISSING_FILE = "missing_file"
    UNREADABLE_MANIFEST = "unreadable_manifest"
    MANIFEST_DIGEST = "manifest_digest"
    PINNED_DIGEST = "pinned_digest"
    FILE_DIGEST = "file_digest"
    WRONG_INTERFACE = "wrong_interface"
    WRONG_FLAVOUR = "wrong_flavour"
    """Compiled by the other TensorRT."""
    WRONG_VERSION = "wrong_version"
    """Compiled by another release of the runtime."""
    WRONG_COMPUTE_CAPABILITY = "wrong_compute_capability"
    """Compiled for GPUs of another kind."""
    UNUSABLE_PLAN = "unusable_plan"
    """Not a plan, cut short, or refused by the runtime that made it."""
    UNSUPPORTED = "unsupported"


class EngineError(Exception):
    """The engine cannot be used; the message gives cause, value and remedy."""


class BundleError(EngineError):
    """The bundle is refused before anything of it is run."""

    def __init__(self, fault: BundleFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class ProviderError(EngineError):
    """The requested runtime is not installed or is not the one that would run."""


class MaskError(ValueError):
    """Run lengths that are not those of a mask of their size."""


@dataclass(frozen=True, slots=True)
class Mask:
    """A binary mask as COCO run lengths (column-major, compressed string)."""

    size_hw: tuple[int, int]
    counts: str

    @staticmethod
    def encode(mask_HW: NDArray[np.bool_]) -> "Mask":
        """Compress a boolean mask."""
        rle = coco_mask.encode(np.asfortranarray(mask_HW, np.uint8))
        return Mask((int(mask_HW.shape[0]), int(mask_HW.shape[1])), rle["counts"].decode("ascii"))

    def runs(self) -> list[int]:
        """Lengths of the runs, down the columns, unmasked first; together they are all pixels. Raises MaskError; sets no pixel.

        Read here because pycocotools decodes without bounds what a stranger may have written, and shows old memory where runs end early.
        """
        height, width = self.size_hw
        if height < 1 or width < 1:
            raise MaskError(f"a mask of {height} x {width} has no pixels")
        runs, covered, position, text = list[int](), 0, 0, self.counts
        while position < len(text):
            value = shift = 0
            while True:
                if position >= len(text) or shift > 60:
                    raise MaskError("the run lengths of a mask end inside a number")
                digit = ord(text[position]) - 48
                if not 0 <= digit < 64:
                    raise MaskError(f"the run lengths of a mask hold {text[position]!a}")
                value |= (digit & 31) << shift
                position, shift = position + 1, shift + 5
                if not digit & 32:
                    break
            if digit & 16:
                value -= 1 << shift
            if len(runs) > 2:
                value += runs[-2]
            covered += value
            if value < 0 or covered > height * width:
                raise MaskError(f"the run lengths of a mask leave its {height} x {width} pixels")
            runs.append(value)
        if covered != height * width:
            raise MaskError(f"the run lengths of a mask cover {covered} of {height} x {width} pixels")
        return runs

    def decode(self) -> NDArray[np.bool_]:
        """Return the (H, W) mask. Raises MaskError."""
        runs, (height, width) = self.runs(), self.size_hw
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape((width, height)).T

    @property
    def area(self) -> int:
        """Number of masked pixels."""
        return int(coco_mask.area({"size": list(self.size_hw), "counts": self.counts.encode("ascii")}))


def tight_box(mask_HW: NDArray[np.bool_]) -> Box | None:
    """Around the true pixels of a mask; None for an empty one."""
    columns, rows = np.flatnonzero(mask_HW.any(axis=0)), np.flatnonzero(mask_HW.any(axis=1))
    if columns.size == 0:
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


@dataclass(frozen=True, slots=True)
class Evidence:
    """One phrase of an explanation and where it points."""

    phrase: str
    char_span: tuple[int, int]
    """Unicode code points into the plain text, end exclusive: `text[slice(*char_span)] == phrase`."""
    concept: str
    """FICT id."""
    mask_probability_HW: NDArray[np.float32]
    """(H, W) float32 in [0, 1] on the mask decoder's grid, which covers the whole crop."""
    mask_confidence: float
    """Predicted IoU of the mask, in [0, 1]."""
    measured: dict[str, float] = field(default_factory=dict)
    """Measurements of the crop inside against around the mask, by name (`engines.measure`)."""
    usual: dict[str, float] = field(default_factory=dict)
    """The same of real faces, at the same concept and for a like share of it: their mean. Empty in a text that was not worded from measurements."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Text with its evidence, in the order of the phrases."""

    text: str
    markup: str
    """The same text with `<p> phrase </p> [SEG]`."""
    evidence: tuple[Evidence, ...]
    truncated: bool = False
    """The token limit or the deadline was reached; the text ends at the last whole sentence."""
    words: Words = "decoded"


@dataclass(frozen=True, slots=True)
class AreaAnswer:
    """What the engine says of one asked region or box of a face."""

    tampered: bool
    """Whether the area holds an artifact."""
    tampered_probability: float
    """In [0, 1]; `tampered` is 0.5 or more."""
    mask_probability_HW: NDArray[np.float32]
    """(H, W) float32 in [0, 1] on the mask decoder's grid, which covers the whole crop; all 0 for a clean area and beyond a
    cell around an asked box: who shows it cuts it to the pixel."""
    mask_confidence: float
    """Predicted IoU of the mask, in [0, 1]; 0 for a clean area."""
    explanation: Explanation
    """Speaks of the asked area only; a clean answer has no evidence."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """What the engine says of one face crop."""

    fake_score: float
    """Calibrated probability that the face is manipulated."""
    raw_score: float
    """The uncalibrated logit."""
    type_probs: tuple[float, ...]
    """Over `FORGERY_TYPES`; given that the face is fake."""
    artifact_map_HW: NDArray[np.float32]
    """Patch probabilities of manipulation, float32 (grid, grid)."""
    explanation: Explanation | None
    """None when it was not asked for, or too late."""
    answer: AreaAnswer | None = None
    """To the face's query; None when nothing was asked."""
    appearance: bytes = b""
    """What tells this person from others in the same stream: a direction in the encoder's feature space, `APPEARANCE_SIZE` signed bytes; empty where
    an engine gives none. Good for minutes of one stream, not to find a person again."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TensorSpec(_Closed):
    """Name, dtype and shape of one input or output; a string stands for a dynamic dimension."""

    name: str
    dtype: Literal["float32", "float16", "int64", "uint8", "bool"]
    shape: tuple[int | str, ...]


PartName = Literal["encoder", "decoder", "mask_decoder", "box_encoder", "region_parser", "face_detector"]
QueryLevel = Literal["region", "box"]


class FileSpec(_Closed):
    """One file of the bundle."""

    file: PlainFileName
    sha256: Sha256
    size_bytes: int = Field(ge=0)


class PartSpec(FileSpec):
    """One graph of the bundle."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    source_sha256: Sha256 | None = None
    """Of the ONNX file that this one was made from; None for a part as exported."""


Backend = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
"""Of the arithmetic of a build: int8 speaks of the matrix products of the encoder's blocks, all else of such a build is fp32."""


class Profile(_Closed):
    """Shapes that one input of a plan takes: smallest, the one it is tuned for, largest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class BuildSpec(_Closed):
    """What `fifa-stream engine build` made of a bundle of ONNX parts, and with what."""

    source_digest: Sha256
    """Manifest digest of the bundle that was built from."""
    precision: Precision
    runtime_version: str
    """Exact release of the runtime that compiled, and the only one that loads, a plan; for ONNX Runtime the one that was measured."""
    compute_capabilities: tuple[str, ...] = ()
    """GPUs that a plan is for, as "SM89"; empty for ONNX Runtime."""
    profiles: dict[PartName, dict[str, Profile]] = {}
    """By part and input."""
    options: dict[str, str] = {}
    """Builder options that change the plan: optimisation level, workspace, attention that was made decomposable."""
    tools: dict[str, str] = {}
    """Releases of what made the graphs: onnx, onnxruntime, the ONNX parser."""
    seconds: dict[PartName, float] = {}
    executed: bool = False
    """Whether anything of this build has been run where it was built; False says: compiled, never executed."""
    acceptance: dict[str, float] | None = None
    """What the acceptance pack said of it, by name; None when it was not asked."""


class Calibration(_Closed):
    """Raw logit to probability: sigmoid(logit * scale + bias) (Platt; `bias` 0 is temperature scaling)."""

    method: Literal["temperature", "platt"]
    scale: float = Field(gt=0)
    bias: float
    fitted_on: str
    """Which faces, in words."""
    ece: float | None = None
    """Expected calibration error on held-out faces, 15 equal-mass bins."""


class OperatingPoint(_Closed):
    """Two cuts on the calibrated score: fake at or above `fake_at`, real below `real_below`, inconclusive between."""

    name: str
    fake_at: float = Field(ge=0, le=1)
    real_below: float = Field(ge=0, le=1)
    explain_at: float = Field(ge=0, le=1)
    """Faces that score at or above this are explained when explanations are on 'auto'."""
    fpr_target: float | None = None

    def label(self, fake_score: float) -> Label:
        """What the cuts make of a calibrated score."""
        return label_of(fake_score, fake_at=self.fake_at, real_below=self.real_below)


class DecoderSpec(_Closed):
    """What the decode loop must know of the language decoder."""

    num_layers: int
    num_heads: int
    head_dim: int
    width: int
    vocab_size: int
    num_prefix_tokens: int
    capacity: int
    """Slots of the KV cache; prefix, prompt and answer must fit."""
    max_new_tokens: int


class PreprocessSpec(_Closed):
    """How a frame becomes the encoder's input; the values that this code implements are checked, not configured."""

    image_size: int
    grid: int
    mask_size: int
    crop_scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Manifest(_Closed):
    """All that is known of a bundle; read and checked before any other file is opened."""

    schema_version: Literal["1.0", "1.1", "1.2", "1.3", "1.4", "1.5"] = "1.5"
    name: str
    version: str
    precision: Literal["fp32", "fp16", "bf16"]
    """Stored weights; the ONNX Runtime CPU backend computes in fp32, a build in `build.precision`."""
    backend: Backend
    parts: dict[PartName, PartSpec]
    files: dict[Literal["tokenizer", "token_embeddings", "model_card", "weights_licence", "notice"], FileSpec]
    preprocess: PreprocessSpec
    decoder: DecoderSpec
    forgery_types: tuple[str, ...]
    fict_depth: Literal[5, 14, 33, 112]
    query_levels: tuple[QueryLevel, ...] = ()
    """What may be asked about beside the whole face."""
    mirrored_regions: bool = False
    """A region is located in the crop and in its mirror image, and the two answers are averaged: a face that is asked about one is encoded twice."""
    region_mask_cut: float = Field(default=0.5, gt=0, lt=1)
    """With a `region_parser`: from that probability on a cell of a phrase's mask, or of an asked region's, is marked within its region. What is shown
    is shifted so that the cut lies at 0.5, as everywhere."""
    wording: Wording = "decoded"
    """Whose words an explanation has: those that the decoder writes, or, with a `region_parser`, the grammar's for what is measured on the crop."""
    calibration: Calibration
    operating_points: dict[str, OperatingPoint]
    default_operating_point: str
    score_baseline: tuple[float, ...]
    """Share of calibrated scores in 20 equal bins on held-out faces: what drift is measured against."""
    licences: dict[str, str]
    """Code, weights, data and pretrained parts, each in one line."""
    provenance: dict[str, str]
    """Digest of the checkpoint, tool versions."""
    build: BuildSpec | None = None
    """None for a bundle as exported."""
    metrics: dict[str, float]
    """Measured on the *report* part; the model card says how."""
    digest: Sha256
    """sha256 of this manifest's canonical JSON without this field."""


def one_line(error: Exception) -> str:
    """What a library says, short."""
    return " ".join(str(error).split())[:200]


def canonical_digest(manifest: dict[str, Any]) -> str:
    """sha256 of the canonical JSON (sorted keys, no spaces, UTF-8) of a manifest without its own `digest`."""
    body = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()
