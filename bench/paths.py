"""One face, or a batch of them, all the way: from JPEG or from crops, scored or explained, by the engine and by torch eager.

`decode, detect, score` is the whole score path: JPEG decode, detection, alignment, preprocessing, encoder and heads. `score` begins at the crop.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bench.decode import Known, answers_to, crops_of, measured_and_known
from bench.faces import Frame
from bench.timing import interleaved, ratios, wall_ms
from engines.analyzer import Analyzer
from engines.bundle import Bundle
from engines.drafts import GUESSES, Drafts
from fifa_stream.decode import DecodeLimits, decode_image
from fifa_stream.detect import DetectLimits, FaceDetector

BATCHES, FACES = (1, 8), (1, 4, 8, 16)
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class PathTime:
    """One way through the engine; milliseconds of a face, or of a frame where no face is judged."""

    path: str
    backend: str
    threads: int
    batch: int
    ms: float
    torch_ratio: float | None
    """Torch's time for the same work over this one."""
    torch_cpu_ratio: float | None


@dataclass(frozen=True, slots=True)
class Explained:
    """Crops to explanations, by the engine."""

    threads: int
    faces: int
    ms_per_face: float
    """Score, text, masks and what is measured under them."""
    explain_ms_per_face: float
    """Of it, beyond the score."""
    tokens_per_s: float


def path_cases(backends: Mapping[str, Bundle], judged: Sequence[Frame], told: Sequence[Sequence[int]]) -> dict[tuple[str, str, int], Work]:
    """Work by path, backend and batch."""
    measured = measured_and_known(judged)[0][: max(BATCHES)]

    def frame(jpeg: bytes) -> NDArray[np.uint8]:
        return decode_image(jpeg, content_type="image/jpeg", limits=DecodeLimits()).image_HWC

    jpegs, crops_BHWC = [one.encoded for one in measured], crops_of(measured)
    still = frame(jpegs[0])
    cases: dict[tuple[str, str, int], Work] = {("JPEG decode", "Pillow", 1): lambda: frame(jpegs[0])}
    for backend, bundle in backends.items():
        detector = FaceDetector(bundle.engines["face_detector"], crop_size=bundle.manifest.preprocess.image_size, limits=DetectLimits())
        drafts = Known(GUESSES, told) if backend == "onnxruntime" else Drafts(0)
        analyzer = Analyzer(bundle, drafts=drafts)

        def detected(batch: int, detector: FaceDetector = detector) -> NDArray[np.uint8]:
            return np.stack([detector.detect(frame(jpeg)).faces[0].crop.image_HWC for jpeg in jpegs[:batch]])

        cases["detect and crop", backend, 1] = lambda detector=detector: detector.detect(still)
        for batch in BATCHES:
            for path, policy in (("score", "never"), ("explain", "always")):
                explain = [policy] * batch
                cases[path, backend, batch] = lambda a=analyzer, n=batch, e=explain: a.analyze(crops_BHWC[:n], explain=e)
                cases[f"decode, detect, {path}", backend, batch] = lambda a=analyzer, n=batch, e=explain, d=detected: a.analyze(d(n), explain=e)
    return cases


def paths(
    backends: Mapping[str, Bundle], judged: Sequence[Frame], told: Sequence[Sequence[int]], threads: int, rounds: int, console: Console
) -> list[PathTime]:
    """Every path at one number of threads."""
    samples = interleaved(path_cases(backends, judged, told), rounds, console, f"paths, {threads} threads")
    rows = []
    for (path, backend, batch), taken in samples.items():
        reference = None if backend == "torch" else samples.get((path, "torch", batch))
        ratio = (None, None) if reference is None else ratios(reference, taken)
        rows.append(PathTime(path, backend, threads, batch, wall_ms(taken) / batch, *ratio))
    return rows


def explaining(
    bundle: Bundle, judged: Sequence[Frame], told: Sequence[Sequence[int]], threads: int, rounds: int, console: Console
) -> list[Explained]:
    """Crops to explanations, at several numbers of faces."""
    crops_BHWC = crops_of(measured_and_known(judged)[0])
    analyzer = Analyzer(bundle, drafts=Known(GUESSES, told))
    tokens = {n: sum(len(ids) + 1 for ids in answers_to(analyzer, measured_and_known(judged)[0][:n])) for n in FACES}
    cases: dict[tuple[str, int], Work] = {}
    for n in FACES:
        prefix_BPE = analyzer.encode(crops_BHWC[:n])["prefix_embeds"]
        cases["whole", n] = lambda n=n: analyzer.analyze(crops_BHWC[:n], explain=["always"] * n)
        cases["score", n] = lambda n=n: analyzer.analyze(crops_BHWC[:n], explain=["never"] * n)
        cases["decode", n] = lambda prefix_BPE=prefix_BPE: analyzer.decode(prefix_BPE, "age")
    samples = interleaved(cases, rounds, console, f"explaining, {threads} threads")
    return [
        Explained(
            threads, n, wall_ms(samples["whole", n]) / n, (wall_ms(samples["whole", n]) - wall_ms(samples["score", n])) / n,
            1000 * tokens[n] / wall_ms(samples["decode", n]),
        )
        for n in FACES
    ]  # fmt: skip
