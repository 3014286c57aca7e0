"""Two analyzers on the same faces: how far scores, tokens and masks of one engine are from those of another."""

from collections.abc import Sequence

import numpy as np
from rich.progress import track

from engines.analyzer import Analyzer
from trainer.faces import Face, fit
from trainer.fifa_bench.masks import mask_iou
from trainer.fifa_bench.predict import BATCH, resized_mask


def parity_table(served: Analyzer, reference: Analyzer, faces: Sequence[Face]) -> dict[str, float]:
    """Largest score difference, smallest mask IoU and token agreement of two analyzers on the same faces, all explained."""
    size = served.manifest.preprocess.image_size
    differences, ious, agree = [], [], []
    for start in track(range(0, len(faces), BATCH), description="parity"):
        crops = np.stack([fit(face.image(), size) for face in faces[start : start + BATCH]])
        encoded = [analyzer.encode(crops) for analyzer in (served, reference)]
        scores = [analyzer.calibrated(e["det_logit"]) for analyzer, e in zip((served, reference), encoded, strict=True)]
        differences += np.abs(scores[0] - scores[1]).tolist()
        rows, whole = range(len(crops)), [None] * len(crops)
        answers = [analyzer.ask(e, rows, "age", whole) for analyzer, e in zip((served, reference), encoded, strict=True)]
        agree += (same := [ours.ids == theirs.ids for ours, theirs in zip(*answers, strict=True)])
        alike = [row for row in rows if same[row]]  # other words have other masks
        masks = [
            analyzer.masks(e, alike, [said[row] for row in alike])[0] for analyzer, e, said in zip((served, reference), encoded, answers, strict=True)
        ]
        ious += [mask_iou(resized_mask(ours), resized_mask(theirs)) for ours, theirs in zip(*masks, strict=True)]
    return {
        "faces": float(len(faces)), "max_score_difference": float(max(differences)), "min_mask_iou": float(min(ious, default=1.0)),
        "masks": float(len(ious)), "same_tokens": float(np.mean(agree)),
    }  # fmt: skip
