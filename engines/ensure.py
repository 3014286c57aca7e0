"""Built engines by what they are built from: `fifa-stream engine ensure` builds at most once, whoever asks and however many ask at a time.

The key names the inputs of a build (a plan differs from build to build), its folder appears whole by one rename, and a lock file keeps a second
builder waiting for the first.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from engines.acceptance import read_pack
from engines.build import BuildRequest, Told, build
from engines.bundle import read_manifest, verify_files
from engines.contracts import Manifest
from engines.cuda import CudaDevice
from engines.trt_build import BuildError
from engines.trt_flavours import FLAVOURS, installed_version

BUILD_REVISION = 2
"""Counts up when the same request would be built differently."""
LOCK_TIMEOUT_S = 3600.0
"""A build that takes longer than this is taken for hung."""
LOOK_EVERY_S = 2.0
"""How often a build that another one makes is looked for."""


def ensure(
    source: Path, cache: Path, request: BuildRequest, *, told: Told = lambda line: None, timeout_s: float = LOCK_TIMEOUT_S
) -> tuple[Path, Manifest]:
    """The folder of the build and its manifest, verified; built first where it is missing. Safe under several builders at once.

    Raises what `build` raises, BundleError for a damaged folder in the cache, and BuildError where another builder holds the lock for too long.
    """
    key = build_key(source, request)
    folder = cache / key
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(f"the cache {cache} cannot be written: {error.strerror}; give a folder where you may with --cache") from None
    try:
        with FileLock(cache / f".{key}.lock", timeout=timeout_s):
            if not folder.exists():
                for left in cache.glob(f".{key}.*/"):  # of a builder that was killed: who builds this holds the lock
                    shutil.rmtree(left, ignore_errors=True)
                return folder, build(source, folder, request, told=told)
    except Timeout:
        raise BuildError(f"another builder has held {cache / f'.{key}.lock'} for {timeout_s:g} s; see whether it hangs, or wait for it") from None
    except OSError as error:
        if not folder.exists():
            raise BuildError(f"the cache {cache} cannot be written: {error.strerror or error}; give a folder where you may with --cache") from None
    return folder, _verified(folder, told)


def await_built(
    source: Path,
    cache: Path,
    request: BuildRequest,
    *,
    timeout_s: float,
    told: Told = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Path, Manifest]:
    """The folder of a build that another process makes, and its manifest, verified. Builds nothing and writes nothing.

    Raises BuildError where it is not there within `timeout_s`, else what `ensure` raises.
    """
    folder = cache / build_key(source, request)
    until = clock() + timeout_s
    if not folder.exists():
        told(f"{folder}: waited for, {timeout_s:g} s at most")
    while not folder.exists():
        if clock() >= until:
            raise BuildError(
                f"nobody has built {folder} within {timeout_s:g} s; see why its builder has not finished, or leave --wait out to build it here"
            )
        sleep(LOOK_EVERY_S)
    return folder, _verified(folder, told)


def link_to(folder: Path, link: Path) -> None:
    """Make `link` a symbolic link to the folder, at once in place of an older one. Raises BuildError."""
    # The folder's name follows from what the build is made of, so who starts the worker cannot know it: the link has a fixed name.
    made = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        made.symlink_to(folder.resolve())
        os.replace(made, link)
    except OSError as error:
        with contextlib.suppress(OSError):
            made.unlink(missing_ok=True)
        raise BuildError(f"{link} cannot be made a link: {error.strerror}; give --link a new name in a folder where you may write") from None


def _verified(folder: Path, told: Told) -> Manifest:
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    told(f"{folder}: built before, manifest {manifest.digest[:12]}")
    return manifest


def build_key(source: Path, request: BuildRequest) -> str:
    """Name of a build's folder: backend, precision and a digest of all that it depends on. Raises BundleError, AcceptanceError, ProviderError."""
    options = request.options
    compiles = FLAVOURS.get(request.backend)
    inputs = {
        "revision": BUILD_REVISION,
        "source": read_manifest(source).digest,
        "backend": request.backend,
        "precision": request.precision,
        "shapes": [request.minimum, request.optimum, request.maximum],
        "opt_level": options.opt_level,
        "workspace_bytes": options.workspace_bytes,
        "acceptance": None if request.acceptance is None else read_pack(request.acceptance).spec.digest,
        "runtime": None if compiles is None else installed_version(request.backend),
        # without a list, the library's own targets or the GPU that is present
        "targets": None if compiles is None else options.compute_capabilities or compiles.targets or CudaDevice().compute_capability(),
    }
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return f"{request.backend}-{request.precision}-{digest[:16]}"
