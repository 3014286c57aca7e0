"""Where a graph's time goes, by the runtime's own profile: operators of the encoder and the detector, one face or frame, one thread.

Profiling itself takes some microseconds a node, so that many small nodes look dearer than they are: a share of the large ones is a lower bound.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime as ort

from engines.bundle import Bundle
from engines.contracts import PartName
from engines.runtime import session_options

RUNS, SHOWN = 15, 6
PRODUCTS = frozenset({"Conv", "ConvTranspose", "FusedMatMul", "Gemm", "MatMul"})
"""Operators whose arithmetic is the model's, whoever runs it."""
DETECTOR_SIDE = 512
"""As the demo's frames."""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of operator in one part."""

    part: str
    operator: str
    nodes: int
    ms: float
    """Of one run: medians of its nodes, summed."""
    percent: float
    is_product: bool


def measure(bundle: Bundle) -> list[Row]:
    """The dearest operators of both graphs of the score path, the dearest first."""
    side = bundle.manifest.preprocess.image_size
    return [*profile(bundle, "encoder", side), *profile(bundle, "face_detector", DETECTOR_SIDE)]


def profile(bundle: Bundle, part: PartName, side: int) -> list[Row]:
    """Run a graph of one image input and read the profile."""
    with TemporaryDirectory() as scratch:
        options = session_options(1)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(scratch) / part)
        session = ort.InferenceSession(str(bundle.folder / bundle.manifest.parts[part].file), options, providers=["CPUExecutionProvider"])
        image_1CHW = np.random.default_rng(0).random((1, 3, side, side), np.float32)
        for _ in range(RUNS):
            session.run(None, {session.get_inputs()[0].name: image_1CHW})
        events = json.loads(Path(session.end_profiling()).read_text())
    microseconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            microseconds[event["args"]["op_name"], event["name"]].append(event["dur"])
    by_operator: dict[str, list[float]] = defaultdict(list)
    for (operator, _), taken in microseconds.items():
        by_operator[operator].append(statistics.median(taken) / 1000)
    whole = sum(map(sum, by_operator.values()))
    dearest = sorted(by_operator.items(), key=lambda item: -sum(item[1]))[:SHOWN]
    return [Row(part, name, len(nodes), sum(nodes), 100 * sum(nodes) / whole, name in PRODUCTS) for name, nodes in dearest]


def product_share(rows: Sequence[Row], part: PartName) -> float:
    """Of a part's time, what its products take."""
    return sum(row.percent for row in rows if row.part == part and row.is_product) / 100
