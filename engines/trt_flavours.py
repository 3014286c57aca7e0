"""The two TensorRTs behind one adapter: everything in which `tensorrt` and `tensorrt-rtx` differ stands in `FLAVOURS`.

Neither is imported before it is asked for. Each library keeps the first logger of the process and ignores any other, so there is one for each, here.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from engines.contracts import Backend, ProviderError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Flavour:
    """What is particular about one of the libraries."""

    modules: tuple[str, ...]
    """Import names, tried in order: the metapackage's, then that of the bindings by themselves."""
    install: str
    """Arguments of pip."""
    oldest: tuple[int, ...]
    """First release that this code was written against."""
    plan_magic: bytes
    """First bytes of a plan. `vtrt` was read from plans that were built here, `ftrt` from the source of NVIDIA's trtexec."""
    states_plan_size: bool
    """Bytes 16 to 24 of a plan hold its size; seen in plans of TensorRT-RTX, unknown of the other."""
    targets: tuple[str, ...]
    """Compute capabilities that a build without a list is for; empty where a build is for the present GPU and takes no list."""
    has_timing_cache: bool
    captures_graphs: bool
    """The runtime captures CUDA graphs itself, by shape. A capture from outside would freeze the kernels that it replaces in the background."""
    diagnoses_plans: bool
    """`Runtime.get_engine_validity` says why a plan is refused."""


FLAVOURS: dict[Backend, Flavour] = {
    "tensorrt": Flavour(
        modules=("tensorrt", "tensorrt_bindings"),
        install="--extra-index-url https://pypi.nvidia.com 'fifa-stream[tensorrt]'",
        oldest=(11,),
        plan_magic=b"ftrt",
        states_plan_size=False,
        targets=(),
        has_timing_cache=True,
        captures_graphs=False,
        diagnoses_plans=False,
    ),
    "tensorrt-rtx": Flavour(
        modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
        install="'fifa-stream[tensorrt-rtx]'",
        oldest=(1, 7),
        plan_magic=b"vtrt",
        states_plan_size=True,
        targets=("SM86", "SM89", "SM120"),
        has_timing_cache=False,
        captures_graphs=True,
        diagnoses_plans=True,
    ),
}


def flavour(backend: Backend) -> Flavour:
    """The row of `backend`. Raises ValueError for a backend that compiles no plans."""
    if backend not in FLAVOURS:
        raise ValueError(f"backend {backend} compiles no plans; those that do: {', '.join(FLAVOURS)}")
    return FLAVOURS[backend]


def load(backend: Backend) -> ModuleType:
    """Import the library. Raises ProviderError with what to install."""
    row = flavour(backend)
    causes = []
    for name in row.modules:
        try:
            module = import_module(name)
        except (ImportError, OSError) as error:
            causes.append(str(error))
            continue
        if tuple(int(number) for number in re.findall(r"\d+", module.__version__)) < row.oldest:
            oldest = ".".join(map(str, row.oldest))
            raise ProviderError(f"backend {backend} needs release {oldest} or later, installed is {module.__version__}; pip install {row.install}")
        return module
    raise ProviderError(f"backend {backend} cannot be imported ({causes[-1]}); pip install {row.install}")


def installed_version(backend: Backend) -> str:
    """Exact release, as "1.7.1.116". Raises ProviderError."""
    return str(load(backend).__version__)


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One message of the library, a warning or worse."""

    severity: str
    """WARNING, ERROR or INTERNAL_ERROR."""
    message: str


def errors(records: list[LogRecord]) -> str:
    """The errors among `records` in one line, or that there was none."""
    found = [" ".join(record.message.split()) for record in records if record.severity != "WARNING"]
    return "; ".join(found) if found else "the library logged no reason"


@cache
def library_logger(trt: Any) -> Any:
    """The process's one logger of a loaded library; what it hears goes to `collect`, or to Python's logging while nothing collects."""
    grave = {trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING}

    class Collector(trt.ILogger):  # type: ignore[misc]  # the base is known only once a library is loaded
        sinks: list[list[LogRecord]]

        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 wants it called by name
            self.sinks = []

        def log(self, severity: Any, message: str) -> None:
            if severity not in grave:
                return
            for sink in self.sinks:
                sink.append(LogRecord(severity.name, message))
            if not self.sinks:
                logger.log(logging.WARNING if severity == trt.ILogger.WARNING else logging.ERROR, "%s: %s", trt.__name__, message)

    return Collector()


@contextmanager
def collect(trt: Any) -> Iterator[list[LogRecord]]:
    """Gather what the library says meanwhile, of every thread: it logs from threads of its own."""
    records: list[LogRecord] = []
    sinks = library_logger(trt).sinks
    sinks.append(records)
    try:
        yield records
    finally:
        sinks[:] = [sink for sink in sinks if sink is not records]
