"""Toys in place of a bundle: a detector that finds faces where it is told, and an analyzer that answers by brightness."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from engines.bundle import Bundle
from engines.contracts import (
    FORGERY_TYPES,
    Analysis,
    AreaAnswer,
    AreaQuery,
    Calibration,
    DecoderSpec,
    Evidence,
    Explanation,
    Manifest,
    OperatingPoint,
    PartSpec,
    PreprocessSpec,
    QueryLevel,
    TensorSpec,
)
from engines.face_detector import STRIDE
from fifa_stream.infer import FramePipeline, PipelineLimits

FaceAt = tuple[float, float, float, float, float]
"""(x0, y0, x1, y1) as fractions of the frame, then the roll of the eye line in degrees."""

FRONT: FaceAt = (0.25, 0.2, 0.75, 0.8, 0.0)


class ToyDetector:
    """CenterFace's interface; its answer is the same for every frame."""

    inputs = (TensorSpec(name="image", dtype="float32", shape=("batch", 3, "height", "width")),)
    outputs = tuple(
        TensorSpec(name=name, dtype="float32", shape=("batch", channels, "rows", "columns"))
        for name, channels in (("heatmap", 1), ("scale", 2), ("offset", 2), ("landmarks", 10))
    )

    def __init__(self, faces: Sequence[FaceAt] = (FRONT,), *, finds_from_side: int = 0) -> None:
        self.faces, self.finds_from_side = faces, finds_from_side
        self.sides: list[int] = []
        """Longer side of every input seen."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        height, width = feeds["image"].shape[2:]
        self.sides.append(max(height, width))
        grids = {spec.name: np.zeros((1, int(spec.shape[1]), height // STRIDE, width // STRIDE), np.float32) for spec in self.outputs}
        if self.sides[-1] < self.finds_from_side:
            return grids
        for rank, (x0, y0, x1, y1, roll_deg) in enumerate(self.faces):
            center_x, center_y = (x0 + x1) / 2 * width / STRIDE, (y0 + y1) / 2 * height / STRIDE
            cell = (0, slice(None), int(center_y), int(center_x))
            grids["heatmap"][cell] = 0.9 - 0.01 * rank
            grids["scale"][cell] = np.log([(y1 - y0) * height / STRIDE, (x1 - x0) * width / STRIDE])
            grids["offset"][cell] = [center_y - int(center_y) - 0.5, center_x - int(center_x) - 0.5]
            turn = np.deg2rad(roll_deg)
            points = np.array([[-0.2, -0.15], [0.2, -0.15], [0.0, 0.05], [-0.15, 0.25], [0.15, 0.25]])
            turned = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + 0.5
            grids["landmarks"][cell] = turned[:, ::-1].ravel()
        return grids

    def bind(self, state: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Any:
        raise NotImplementedError


@dataclass
class BrightnessAnalyzer:
    """Score = mean brightness of the crop; the mask is the right half of the crop as the viewer sees it, that of a box spills over the whole crop."""

    manifest: Manifest
    batches: list[int] = field(default_factory=list)
    policies: list[str] = field(default_factory=list)
    asked: list[AreaQuery | None] = field(default_factory=list)
    seconds_left: list[float | None] = field(default_factory=list)

    @property
    def operating_point(self) -> OperatingPoint:
        return self.manifest.operating_points["toy"]

    def analyze(
        self,
        crops_BHWC: NDArray[np.uint8],
        *,
        explain: Sequence[str],
        queries: Sequence[AreaQuery | None] | None = None,
        seconds_left: Sequence[float | None] | None = None,
        points: Sequence[OperatingPoint] | None = None,
    ) -> list[Analysis]:
        queries = queries or [None] * len(crops_BHWC)
        self.batches.append(len(crops_BHWC))
        self.policies.extend(explain)
        self.asked.extend(queries)
        self.seconds_left.extend(seconds_left or ())
        return [
            self._analysis(round(float(crop.mean()) / 255, 6), policy, query, point)
            for crop, policy, query, point in zip(crops_BHWC, explain, queries, points or [self.operating_point] * len(explain), strict=True)
        ]

    def _analysis(self, score: float, policy: str, query: AreaQuery | None, point: OperatingPoint) -> Analysis:
        mask_HW = np.zeros((56, 56), np.float32)
        mask_HW[:, 28:] = 1.0
        is_explained = policy == "always" or (policy == "auto" and score >= point.explain_at)
        return Analysis(
            score,
            0.25,
            (0.4, 0.3, 0.2, 0.1),
            np.zeros((14, 14), np.float32),
            _too_sharp(mask_HW) if is_explained else None,
            None if query is None else _answer(score, mask_HW if isinstance(query, str) else np.ones_like(mask_HW)),
        )


def _too_sharp(mask_HW: NDArray[np.float32]) -> Explanation:
    evidence = Evidence("left cheek", (4, 14), "left_cheek", mask_HW, 0.75, {"sharpness_ratio": 1.5}, {"sharpness_ratio": 1.02})
    return Explanation("The left cheek is too sharp.", "The <p> left cheek </p> [SEG] is too sharp.", (evidence,), words="measured")


def _answer(score: float, mask_HW: NDArray[np.float32]) -> AreaAnswer:
    if score >= 0.5:
        return AreaAnswer(True, score, mask_HW, 0.625, _too_sharp(mask_HW))
    clean = Explanation("Nothing here is manipulated.", "Nothing here is manipulated.", ())
    return AreaAnswer(False, score, np.zeros_like(mask_HW), 0.0, clean)


def make_bundle(detector: ToyDetector | None = None, query_levels: tuple[QueryLevel, ...] = ("region", "box")) -> Bundle:
    """A bundle whose only graph is the toy detector."""
    manifest = Manifest(
        name="toy",
        version="0",
        precision="fp32",
        backend="onnxruntime",
        parts={"encoder": PartSpec(file="encoder.onnx", sha256=hashlib.sha256(b"encoder").hexdigest(), size_bytes=7, inputs=(), outputs=())},
        files={},
        preprocess=PreprocessSpec(image_size=224, grid=14, mask_size=56, crop_scale=1.3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        decoder=DecoderSpec(num_layers=1, num_heads=1, head_dim=8, width=8, vocab_size=8, num_prefix_tokens=1, capacity=8, max_new_tokens=4),
        forgery_types=FORGERY_TYPES,
        fict_depth=33,
        query_levels=query_levels,
        calibration=Calibration(method="temperature", scale=1.0, bias=0.0, fitted_on="nothing"),
        operating_points={
            "toy": OperatingPoint(name="toy", fake_at=0.6, real_below=0.4, explain_at=0.5),
            "strict": OperatingPoint(name="strict", fake_at=0.99, real_below=0.9, explain_at=0.99),
        },
        default_operating_point="toy",
        score_baseline=(0.05,) * 20,
        licences={},
        provenance={},
        metrics={},
        digest=hashlib.sha256(b"toy").hexdigest(),
    )
    return Bundle(manifest, Path("toy"), {"face_detector": detector or ToyDetector()}, None, np.zeros((8, 8), np.float32))  # type: ignore[arg-type]


@dataclass
class Bench:
    """A pipeline of toys and its parts, to look into."""

    pipeline: FramePipeline
    analyzer: BrightnessAnalyzer
    detector: ToyDetector


@pytest.fixture(scope="session")
def make_bench() -> Callable[..., Bench]:
    """Build a pipeline: `make_bench(faces=..., limits=..., unix_time_s=..., query_levels=..., stream_points=...)`; its stage clock stands still."""

    def build(
        faces: Sequence[FaceAt] = (FRONT,),
        *,
        limits: PipelineLimits | None = None,
        unix_time_s: float = 0.0,
        query_levels: tuple[QueryLevel, ...] = ("region", "box"),
        stream_points: Mapping[str, str] | None = None,
    ) -> Bench:
        detector = ToyDetector(faces)
        bundle = make_bundle(detector, query_levels)
        analyzer = BrightnessAnalyzer(bundle.manifest)
        pipeline = FramePipeline(
            limits or PipelineLimits(), analyzer, bundle, stream_points=stream_points, clock_s=lambda: 0.0, unix_time_s=lambda: unix_time_s
        )
        return Bench(pipeline, analyzer, detector)

    return build


@pytest.fixture
def toy_detector() -> type[ToyDetector]:
    """The detector class."""
    return ToyDetector


@pytest.fixture(scope="session")
def make_image() -> Callable[..., bytes]:
    """Encode a noisy gray image: `make_image(width=, height=, level=, kind=)`; the same arguments give the same bytes."""

    def build(*, width: int = 320, height: int = 240, level: int = 190, kind: str = "PNG") -> bytes:
        noise_HW = np.random.default_rng(0).integers(-20, 21, (height, width))
        buffer = BytesIO()
        Image.fromarray(np.clip(level + noise_HW, 0, 255).astype(np.uint8)).convert("RGB").save(buffer, kind)
        return buffer.getvalue()

    return build
