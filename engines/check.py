"""A bundle against the checkpoint it came from, through an acceptance pack: `fifa-stream engine check`.

With `--table` every precision that this machine can run is built on the spot and stands in a row of its own; a backend that cannot run here is
named with the reason, never left out in silence.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from engines.acceptance import AcceptancePack, compare, judge, read_pack
from engines.analyzer import Analyzer
from engines.bundle import open_bundle, read_manifest
from engines.contracts import Backend, EngineError, Precision
from engines.cuda import CudaDevice
from engines.trt_flavours import FLAVOURS, installed_version

Told = Callable[[str], None]
ON_CPU: tuple[Precision, ...] = ("fp32", "fp16", "int8")
ON_GPU: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True, slots=True)
class ParityRow:
    """One backend and precision."""

    backend: str
    precision: str
    figures: dict[str, float] = field(default_factory=dict)
    """What `acceptance.compare` gives; empty where nothing was compared."""
    failed: tuple[str, ...] = ()
    """Bars of this precision that were missed, in words."""
    absent: str = ""
    """Why nothing could be run here; empty where it ran."""


def check_bundle(folder: Path, acceptance: Path | None, *, threads: int = 0) -> ParityRow:
    """Verify and load a bundle, and compare it with the pack where one is given. Raises EngineError."""
    analyzer = Analyzer(open_bundle(folder, threads=threads), wording="decoded")
    build_spec = analyzer.manifest.build
    precision: Precision = "fp32" if build_spec is None else build_spec.precision
    if acceptance is None:
        return ParityRow(analyzer.manifest.backend, precision)
    return _row(analyzer, read_pack(acceptance), precision)


def parity_rows(folder: Path, acceptance: Path, *, threads: int = 0, told: Told = lambda line: None) -> list[ParityRow]:
    """Every precision of ONNX Runtime and of each TensorRT against the pack, built from the bundle `folder` of ONNX parts. Raises EngineError."""
    pack = read_pack(acceptance)
    if read_manifest(folder).build is not None:
        raise EngineError(f"{folder} is a build; a table is made from the bundle of ONNX parts that it was built from")
    rows = [_built(folder, "onnxruntime", precision, acceptance, pack, threads, told) for precision in ON_CPU]
    for backend in FLAVOURS:
        rows += [_built(folder, backend, precision, acceptance, pack, threads, told) for precision in ON_GPU]
    return rows


def _built(
    folder: Path, backend: Backend, precision: Precision, acceptance: Path, pack: AcceptancePack, threads: int, told: Told
) -> ParityRow:  # fmt: skip
    from engines.build import AcceptanceRefused, BuildRequest, build  # needs the extra `build`; checking one bundle does not

    told(f"{backend} {precision}")
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "bundle"
        try:
            if backend in FLAVOURS:
                installed_version(backend)
                CudaDevice()  # nothing is compiled that could not be run
            judges = backend not in FLAVOURS  # what ONNX Runtime runs is judged as it is built; of plans the pack saw the graphs alone
            manifest = build(folder, out, BuildRequest(backend, precision, acceptance=acceptance if judges or precision == "int8" else None))
            if judges and manifest.build is not None:
                return ParityRow(backend, precision, manifest.build.acceptance or {})
            return _row(Analyzer(open_bundle(out, threads=threads), wording="decoded"), pack, precision)
        except AcceptanceRefused as refused:
            return ParityRow(backend, precision, refused.figures, refused.failed)
        except EngineError as error:
            return ParityRow(backend, precision, absent=str(error))


def _row(analyzer: Analyzer, pack: AcceptancePack, precision: Precision) -> ParityRow:
    figures = compare(analyzer, pack)
    return ParityRow(analyzer.manifest.backend, precision, figures, tuple(judge(figures, precision)))


def parity_text(rows: list[ParityRow]) -> str:
    """The rows as a table, one line each, and what failed or is absent under it."""
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    lines = [" ".join([f"{'backend':14} {'precision':9}", *(f"{name:>22}" for name in names)])]
    for row in rows:
        cells = [f"{row.figures[name]:22.6g}" if name in row.figures else f"{'-':>22}" for name in names]
        lines.append(" ".join([f"{row.backend:14} {row.precision:9}", *cells]))
    lines += [f"{row.backend} {row.precision} FAILED: {'; '.join(row.failed)}" for row in rows if row.failed]
    return "\n".join([*lines, *(f"{row.backend} {row.precision} did not run: {row.absent}" for row in rows if row.absent)])
