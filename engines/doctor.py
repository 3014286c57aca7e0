"""What this machine can run and build, one finding a line, each with what to do where something is missing: `fifa-stream engine doctor`."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import onnxruntime as ort

from engines.bundle import open_bundle
from engines.contracts import EngineError
from engines.cuda import CudaDevice
from engines.trt_flavours import FLAVOURS, flavour, installed_version

State = Literal["ok", "absent", "broken"]
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
"""What decides how fast fp32, int8 and bf16 are, in /proc/cpuinfo's words."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    state: State
    found: str
    remedy: str = ""
    """Empty where nothing is to be done."""


def examine(folder: Path, *, threads: int = 0, cpuinfo: Path = Path("/proc/cpuinfo")) -> list[Finding]:
    """Look at the CPU, the runtimes, the GPU and a bundle. Only the bundle's finding is 'broken': the rest is what a build may need."""
    found = [_cpu(cpuinfo), Finding("onnxruntime", "ok", f"{ort.__version__}, {ort.get_available_providers()[0]}"), _gpu()]
    found += [_library(backend) for backend in FLAVOURS]
    building = "onnx is installed" if find_spec("onnx") else "onnx is not installed"
    found.append(Finding("build", "ok" if find_spec("onnx") else "absent", building, "" if find_spec("onnx") else "pip install 'fifa-stream[build]'"))
    return [*found, _bundle(folder, threads)]


def _cpu(cpuinfo: Path) -> Finding:
    lines = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line) if cpuinfo.is_file() else {}
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    features = [feature for feature in CPU_FEATURES if feature in fields.get("flags", "").split()]
    name, known = fields.get("model name", "unknown"), " ".join(features) or "no feature that is known here"
    return Finding("cpu", "ok", f"{name}, {os.cpu_count()} cores, {known}")


def _gpu() -> Finding:
    try:
        return Finding("gpu", "ok", CudaDevice().compute_capability())
    except EngineError as error:
        return Finding("gpu", "absent", str(error), "ONNX Runtime on the CPU serves without one")


def _library(backend: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]) -> Finding:
    try:
        return Finding(backend, "ok", installed_version(backend))
    except EngineError as error:
        return Finding(backend, "absent", str(error), f"pip install {flavour(backend).install}")


def _bundle(folder: Path, threads: int) -> Finding:
    try:
        manifest = open_bundle(folder, threads=threads).manifest
    except EngineError as error:
        return Finding("bundle", "broken", str(error), "a message names its remedy")
    return Finding("bundle", "ok", f"{folder}: {manifest.name} {manifest.version} on {manifest.backend}, manifest {manifest.digest[:12]}")
