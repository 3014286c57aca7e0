"""`python -m bench.encoders A B --data DATA`: which encoder to go on with, before decoders are settled and a bundle is made; prints a table.

A and B are bundles or finished vision stages (`RUN/vision`); besides them their means, weight by weight (`trainer.soup`), at each share of B. Nothing
of *report* is seen: AUC on *select* and *calibrate*, under the codecs that cost most, and against real photographs of no set of ours (first list of
`bench.photographs` only). Raw scores of the float32 encoder.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench import photographs
from engines.bundle import bundled_engine, open_bundle
from engines.contracts import EngineError
from engines.preprocess import to_model_input
from fifa_stream.decode import DecodeLimits, decode_image
from fifa_stream.demo_photographs import demo_frames
from fifa_stream.detect import DetectLimits, FaceDetector
from trainer.config import small
from trainer.dataset_adapters import open_dataset
from trainer.faces import Face, fit
from trainer.fifa_bench.detection import auc
from trainer.fifa_bench.robustness import PERTURBATIONS
from trainer.model import FiFaMLLM
from trainer.soup import average_encoders
from trainer.train import score as score_faces

CODECS = ("jpeg_q40", "resize_1/2", "h264_crf40")
FALSE_ALARMS = 0.01
PASSING = (2, 4, 6)
"""Faces from elsewhere that a cut lets pass: what an encoder finds there says more of sets we do not have than any cut of our own reals."""
BATCH = 16
_Crops = Sequence[NDArray[np.uint8]]


def crops_of(frames: Sequence[bytes], detector: FaceDetector) -> list[list[NDArray[np.uint8]]]:
    """(S, S, 3) crops of the faces of each image that may decide a label, as serving cuts them."""
    pixels = (decode_image(frame, content_type=None, limits=DecodeLimits()).image_HWC for frame in frames)
    return [[face.crop.image_HWC for face in detector.detect(image_HWC).faces if face.quality.passed] for image_HWC in pixels]


@torch.inference_mode()
def score(model: FiFaMLLM, crops: _Crops) -> NDArray[np.float64]:
    """Raw scores, one per crop."""
    batches = (np.stack(crops[start : start + BATCH]) for start in range(0, len(crops), BATCH))
    logits = [model.encoder(torch.from_numpy(to_model_input(batch_BHWC))).det_logit_B.double().numpy() for batch_BHWC in batches]
    return np.concatenate(logits) if logits else np.zeros(0)


def separation(is_fake_N: NDArray[np.bool_], score_N: NDArray[np.float64]) -> str:
    """AUC, and the share of fakes above the quantile of the reals that `FALSE_ALARMS` of them pass: the cut that other rows are held against."""
    cut = np.quantile(score_N[~is_fake_N], 1 - FALSE_ALARMS)
    return f"{auc(is_fake_N, score_N):.3f} / {(score_N[is_fake_N] > cut).mean():.3f}"


def found_where(passing: int, real_N: NDArray[np.float64], fake_M: NDArray[np.float64]) -> float:
    """Share of the fakes above the lowest cut that so many of the reals pass; all where there are no more reals than that."""
    cut = np.sort(real_N)[-passing - 1] if passing < real_N.size else -np.inf
    return float((fake_M > cut).mean())


def sets_of(faces: Sequence[Face]) -> dict[str, list[Face]]:
    """What an AUC is taken of: *select* and *calibrate*, synthesis against photographs."""
    chosen = [face for face in faces if face.part in ("select", "calibrate")]
    reals = [face for face in chosen if face.dataset in ("ffhq_stylegan2", "london", "amfd") and not face.is_fake]
    return {
        "DFDC": [face for face in chosen if face.dataset == "dfdc"],
        "DFDC, *select*": [face for face in chosen if face.dataset == "dfdc" and face.part == "select"],
        "StarGAN": [face for face in chosen if face.dataset == "stargan"],
        "FFHQ v. StyleGAN2": [face for face in chosen if face.dataset == "ffhq_stylegan2"],
        "StyleGAN2 v. all photographs": [face for face in chosen if face.dataset == "ffhq_stylegan2" and face.is_fake] + reals,
        "SD 2.1 v. photographs": [face for face in chosen if face.dataset == "sd21_faces"] + reals,
    }


def column(model: FiFaMLLM, sets: Mapping[str, Sequence[Face]], elsewhere: _Crops, demo: Mapping[str, _Crops]) -> dict[str, str]:
    """Every row of the table for one encoder."""
    size, cells = model.config.image_size, {}
    known = {id(face): face for faces in sets.values() for face in faces}
    ordered = list(known.values())
    logit = dict(zip(known, score_faces(model, ordered, precision="fp32").astype(np.float64), strict=True))
    for name, faces in sets.items():
        cells[f"{name}, {len(faces)} faces"] = separation(np.array([face.is_fake for face in faces]), np.array([logit[id(face)] for face in faces]))
    every_second = sets["DFDC, *select*"][::2]
    for codec in CODECS:
        changed = [PERTURBATIONS[codec](np.ascontiguousarray(fit(face.image(), size))) for face in every_second]
        cells[f"DFDC, *select*, every second, {codec}"] = separation(np.array([face.is_fake for face in every_second]), score(model, changed))
    real = {name: np.array([logit[id(face)] for face in sets[name] if not face.is_fake]) for name in ("DFDC", "SD 2.1 v. photographs")}
    cut = float(np.quantile(real["DFDC"], 1 - FALSE_ALARMS))
    cells["cut that 1 % of DFDC's reals pass"] = f"{cut:.2f}"
    cells["our photographs above it"] = f"{(real['SD 2.1 v. photographs'] > cut).sum()} of {real['SD 2.1 v. photographs'].size}"
    if elsewhere:
        foreign = score(model, elsewhere)
        cells["faces from elsewhere above it"] = f"{(foreign > cut).sum()} of {foreign.size}"
        for name in ("DFDC, *select*", "StarGAN", "FFHQ v. StyleGAN2", "SD 2.1 v. photographs"):
            fakes = np.array([logit[id(face)] for face in sets[name] if face.is_fake])
            mixed = np.arange(fakes.size + foreign.size) < fakes.size
            cells[f"fakes of {name} v. faces from elsewhere, AUC"] = f"{auc(mixed, np.concatenate([fakes, foreign])):.3f}"
        fakes = np.array([logit[id(face)] for face in sets["DFDC"] if face.is_fake])
        found = "; ".join(f"{found_where(passing, foreign, fakes):.3f}" for passing in PASSING)
        cells[f"fakes of DFDC above, where {'; '.join(map(str, PASSING))} faces from elsewhere pass"] = found
        cells["faces from elsewhere: median, 90 %, 95 %"] = ", ".join(f"{np.quantile(foreign, share):.2f}" for share in (0.5, 0.9, 0.95))
    for name, crops in demo.items():
        original, *manipulated = score(model, crops)
        cells[f"demo, {name}: as it is; its manipulations"] = f"{original:.2f}; " + ", ".join(f"{one:.2f}" for one in manipulated)
    return cells


def compare(first: Path, second: Path, data: str, elsewhere: Path | None, shares: Sequence[float]) -> None:
    """Print each encoder's figures as they come, then the table."""
    models = {share: average_encoders(small(), (first, second), (1 - share, share)).eval() for share in shares}
    bundle = open_bundle(bundled_engine())
    detector = FaceDetector(bundle.engines["face_detector"], crop_size=bundle.manifest.preprocess.image_size, limits=DetectLimits())
    listed = photographs.photographs(elsewhere) if elsewhere else []
    foreign = [crop for crops in crops_of([file.encoded for file in listed if file.part == "first"], detector) for crop in crops]
    shown: dict[str, list[NDArray[np.uint8]]] = {}
    frames = [frame for frame in demo_frames() if frame.kind in ("untouched", "manipulated")]
    for frame, crops in zip(frames, crops_of([frame.encoded for frame in frames], detector), strict=True):
        shown.setdefault(frame.twin or frame.name, []).extend(crops[:1])
    sets = sets_of(open_dataset(f"research:{data}"))
    columns = {}
    for share, model in models.items():
        columns[share] = column(model, sets, foreign, shown)
        print(f"{share:g} of {second}: {columns[share]}", flush=True)
    print("\n| AUC / TPR at 1 % FPR, raw scores | " + " | ".join(f"{share:g} of the second" for share in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name in next(iter(columns.values())):
        print(f"| {name} | " + " | ".join(cells[name] for cells in columns.values()) + " |")


def main() -> None:
    """Score, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--photographs", type=Path, help="the folder of `bench.photographs`")
    parser.add_argument("--share", type=float, action="append", help="of the second in a mean; 0 and 1 are the two themselves (default: 0, 0.5, 1)")
    options = parser.parse_args()
    try:
        compare(options.first, options.second, options.data, options.photographs, options.share or (0.0, 0.5, 1.0))
    except (ValueError, EngineError, OSError) as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
