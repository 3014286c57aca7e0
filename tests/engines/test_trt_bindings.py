"""Every name of TensorRT that the adapter uses stands in NVIDIA's own bindings, of both libraries; the names are read from our source.

TensorRT's libraries come from NVIDIA's package index alone; its bindings also load over three stub libraries that export what they ask for.
"""

import ast
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from engines import trt_build, trt_flavours, trt_runtime

OWNERS = {
    "trt": "",
    "self._trt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "graph_input": "ITensor",
    "layer": "IAttentionInputLayer",
    "layer.attention": "IAttention",
    "parser": "OnnxParser",
    "fault": "ParserError",
    "config": "IBuilderConfig",
    "ranges": "IOptimizationProfile",
    "cache": "ITimingCache",
    "self._runtime": "Runtime",
    "self._plan": "ICudaEngine",
    "plan": "ICudaEngine",
    "settings": "IRuntimeConfig",
    "self._context": "IExecutionContext",
}
"""What our modules call the objects of the library, and the class of each; '' is the library itself."""
RTX_ONLY = {
    "ComputeCapability",
    "CudaGraphStrategy",
    "EngineInvalidityDiagnostics",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IRuntimeConfig.cuda_graph_strategy",
    "Runtime.get_engine_validity",
}
"""Used for the flavours that have them."""
STUBS = {
    "nvinfer": (
        "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL", "getBuilderPluginRegistry", "getPluginRegistry",
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
    "nvonnxparser": ("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getNvOnnxParserVersion"),
}  # fmt: skip
"""Library to the symbols that the bindings leave undefined."""
ASK = """
import functools, importlib, sys
library = importlib.import_module(sys.argv[1])
def exists(path):
    try:
        functools.reduce(getattr, path.split("."), library)
    except AttributeError:
        return False
    return True
print(library.__version__, *(path for path in sys.argv[2:] if not exists(path)))
"""


def names_used() -> set[str]:
    """Dotted names below the library, as "Builder.create_network"."""
    names = {f"DataType.{name}" for name in trt_runtime._DTYPES}
    for module in (trt_build, trt_flavours, trt_runtime):
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and (owner := OWNERS.get(ast.unparse(node.value))) is not None:
                names.add(f"{owner}.{node.attr}".removeprefix("."))
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value).startswith(("trt.", "self._trt.")):
                names.add(ast.unparse(node).removeprefix("self._").removeprefix("trt."))
    return {name for name in names if not name.startswith("__")}


def missing(module: str, environment: dict[str, str]) -> tuple[str, set[str]]:
    """Release of the bindings, and which of the names they lack; of a class that they lack its name alone. Asked in a process of its own."""
    command = [sys.executable, "-c", ASK, module, *sorted(names_used())]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    version, *names = done.stdout.split()
    return version, {name.partition(".")[0] if name.partition(".")[0] in names else name for name in names}


def test_the_names_are_found_in_the_source() -> None:
    used = names_used()
    assert used > RTX_ONLY | {
        "Builder.build_serialized_network",
        "IExecutionContext.execute_async_v3",
        "ILogger.INTERNAL_ERROR",
        "LayerType.ATTENTION_INPUT",
    }
    assert len(used) > 60


def test_tensorrt_has_every_name_but_those_of_rtx(tmp_path: Path) -> None:
    try:
        version = distribution("tensorrt-cu13-bindings").version
    except PackageNotFoundError:
        pytest.skip("tensorrt-cu13-bindings is not installed")
    for library, symbols in STUBS.items():
        source = tmp_path / f"{library}.c"
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols))
        name = f"lib{library}.so.{version.split('.')[0]}"
        subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(tmp_path / name), str(source)], check=True)
    assert missing("tensorrt_bindings", {"LD_LIBRARY_PATH": str(tmp_path)}) == (version, RTX_ONLY)


def test_tensorrt_rtx_has_every_name() -> None:
    try:
        version = distribution("tensorrt-rtx-cu13-bindings").version
    except PackageNotFoundError:
        pytest.skip("tensorrt-rtx-cu13-bindings is not installed")
    assert missing("tensorrt_rtx_bindings", {}) == (version, set())
