"""Which ONNX opset each part runs fastest in: the bundle's own weights exported anew in each, timed in turns.

The exporter writes other nodes for other opsets (from 23 on `RMSNormalization`, `RotaryEmbedding`), and the runtime has other kernels for them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from rich.console import Console

from bench.timing import cpu_ms, interleaved, ratios
from engines.bundle import Bundle
from engines.contracts import PartName, PartSpec
from engines.runtime import OrtEngine
from trainer import bundle as trainer_bundle
from trainer.model import FiFaMLLM

OPSETS = (20, 23)
CAPACITY = 128
"""Slots of the decoder's cache, as an explanation of 40 tokens has them."""
CASES: tuple[tuple[PartName, int, int], ...] = (
    ("encoder", 1, 0), ("encoder", 8, 0), ("mask_decoder", 4, 0),
    ("decoder", 1, 79), ("decoder", 1, 1), ("decoder", 1, 4), ("decoder", 16, 79), ("decoder", 16, 1), ("decoder", 16, 4),
)  # fmt: skip
"""Part, rows, and tokens of each row: of a question, of a step alone, of a step with guesses."""


@dataclass(frozen=True, slots=True)
class Row:
    """One part in one opset."""

    part: str
    rows: int
    tokens: int
    opset: int
    is_shipped: bool
    cpu_ms: float
    cpu_ratio: float
    """The shipped opset's time over this one's."""


def measure(bundle: Bundle, model: FiFaMLLM, *, rounds: int, console: Console) -> list[Row]:
    """Every case in every opset, one thread. Blocks for a minute or two of exports first."""
    with TemporaryDirectory() as scratch:
        engines = {}
        for opset in OPSETS:
            console.print(f"exporting in opset {opset}")
            folder = Path(scratch) / str(opset)
            for name, spec in export(model, bundle, folder, opset).items():
                engines[name, opset] = OrtEngine(folder / spec.file, spec, threads=1, rows_together=1 if name == "encoder" else None)
        cases = {(case, opset): work(bundle, engines[case[0], opset], *case) for case, opset in product(CASES, OPSETS)}
        samples = interleaved(cases, rounds, console, "opsets, 1 thread")
    shipped = {
        name: onnx.load(str(bundle.folder / part.file), load_external_data=False).opset_import[0].version
        for name, part in bundle.manifest.parts.items()
    }
    return [
        Row(*case, opset, opset == shipped[case[0]], cpu_ms(taken), ratios(samples[case, shipped[case[0]]], taken)[1])
        for (case, opset), taken in samples.items()
    ]


def export(model: FiFaMLLM, bundle: Bundle, out: Path, opset: int) -> dict[PartName, PartSpec]:
    """Every part in one opset; the detector, which no exporter wrote, as it is."""
    as_shipped = trainer_bundle.export_part
    trainer_bundle.export_part = lambda *arguments, **settings: as_shipped(*arguments, **{**settings, "opset": opset})
    try:
        detector = onnx.load(str(bundle.folder / bundle.manifest.parts["face_detector"].file))
        return trainer_bundle.write_parts(model, detector, bundle.folder / "tokenizer.json", out, precision="fp16")
    finally:
        trainer_bundle.export_part = as_shipped


def work(bundle: Bundle, engine: OrtEngine, part: PartName, rows: int, tokens: int) -> Callable[[], object]:
    """One run."""
    rng, spec = np.random.default_rng(0), bundle.manifest.decoder

    def noise(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    if part != "decoder":
        sizes = {tensor.name: [size for size in tensor.shape[1:] if isinstance(size, int)] for tensor in engine.inputs}
        feeds = {name: noise(rows, *size) for name, size in sizes.items()}
        return lambda: engine.run(feeds)
    names = [f"{kind}{layer}" for layer in range(spec.num_layers) for kind in "kv"]
    shape = (rows, spec.num_heads, CAPACITY, spec.head_dim)
    bound = engine.bind({f"past_{name}": f"present_{name}" for name in names}, {f"past_{name}": shape for name in names})
    first = 0 if tokens > CAPACITY // 2 else CAPACITY - 24
    feeds = {"inputs_embeds": noise(rows, tokens, spec.width), "positions": np.tile(np.arange(first, first + tokens), (rows, 1))}
    return lambda: bound.run(feeds)
