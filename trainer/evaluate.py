"""Measures an engine bundle on one part of the dev sets through the serving analyzer: detection, type, localisation, explanations, parity.

Everything runs on the graphs that serve (or on the torch reference behind the same protocol). Tables come from *report*; *calibrate* sets the cuts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from engines.analyzer import Analyzer, sigmoid
from engines.contracts import Calibration, OperatingPoint
from trainer.annotator.annotate import decode_mask
from trainer.annotator.reference_mask import frozen_mask
from trainer.faces import Face, Part, fit, type_target
from trainer.fifa_bench import metrics

PHOTOGRAPHS = ("ffhq_stylegan2", "london", "amfd")
BATCH = 16
REFERENCE_SIZE = 224

GROUPS: dict[str, Callable[[Face], bool]] = {
    "dfdc": lambda f: f.dataset == "dfdc",
    "dfdc_curated": lambda f: f.dataset == "dfdc" and (not f.is_fake or f.pair_quality == "curated"),
    "stargan": lambda f: f.dataset == "stargan",
    "ffhq_stylegan2": lambda f: f.dataset == "ffhq_stylegan2",
    "sd21_photographs": lambda f: f.dataset == "sd21_faces" or (f.dataset in PHOTOGRAPHS and not f.is_fake),
    "survey_stylegan2": lambda f: f.dataset == "survey_stylegan2",
}
"""Detection groups: name -> which faces. `dfdc_curated` holds curated fakes and all reals."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Faces and what the score path said of them."""

    faces: tuple[Face, ...]
    raw_N: NDArray[np.float64]
    score_N: NDArray[np.float64]
    type_prob_NF: NDArray[np.float64]

    def where(self, keep: Callable[[Face], bool]) -> "Scored":
        """The faces that `keep` accepts."""
        chosen = np.array([keep(face) for face in self.faces], bool)
        return Scored(
            tuple(f for f, c in zip(self.faces, chosen, strict=True) if c), self.raw_N[chosen], self.score_N[chosen], self.type_prob_NF[chosen]
        )

    @property
    def is_fake_N(self) -> NDArray[np.bool_]:
        """Truth."""
        return np.array([face.is_fake for face in self.faces], bool)


def score_faces(analyzer: Analyzer, faces: Sequence[Face]) -> Scored:
    """Run the score path over faces that already are crops."""
    size = analyzer.manifest.preprocess.image_size
    raw, scores, types = [], [], []
    for start in track(range(0, len(faces), BATCH), description="score"):
        crops = np.stack([fit(face.image(), size) for face in faces[start : start + BATCH]])
        for analysis in analyzer.analyze(crops, explain=["never"] * len(crops)):
            raw.append(analysis.raw_score)
            scores.append(analysis.fake_score)
            types.append(analysis.type_probs)
    return Scored(tuple(faces), np.array(raw), np.array(scores), np.array(types).reshape(len(faces), -1))


def of_part(faces: Sequence[Face], part: Part) -> list[Face]:
    """The faces of one part."""
    return [face for face in faces if face.part == part]


def calibrate(scored: Scored) -> tuple[Calibration, dict[str, OperatingPoint], NDArray[np.float64]]:
    """Fit Platt scaling and cuts on all faces of *calibrate*.

    `standard`: `fake_at` keeps false alarms at 1 % or less on DFDC and on photographs apart; `real_below` lets at most 10 % of the fakes through
    unremarked. `screening` allows 5 % false alarms. Faces are explained from `real_below` on: whatever is not called real.
    """
    dfdc = scored.where(GROUPS["dfdc"])
    fitted = metrics.fit_platt(scored.is_fake_N, scored.raw_N)
    probability = fitted.probability(scored.raw_N)
    real_sets = [
        [p for p, f in zip(probability, scored.faces, strict=True) if not f.is_fake and keep(f)]
        for keep in (lambda f: f.dataset == "dfdc", lambda f: f.dataset in PHOTOGRAPHS)
    ]
    points = {}
    for name, fpr, miss in (("standard", 0.01, 0.10), ("screening", 0.05, 0.05)):
        fake_at = max(metrics.fake_cut(np.r_[np.zeros(len(reals), bool), True], np.r_[reals, 1.0], fpr) for reals in real_sets if reals)
        real_below = min(metrics.real_cut(scored.is_fake_N, probability, miss), fake_at)
        points[name] = OperatingPoint(
            name=name, fake_at=round(fake_at, 6), real_below=round(real_below, 6), explain_at=round(real_below, 6), fpr_target=fpr
        )
    error = metrics.ece(scored.is_fake_N, probability)
    count = f"{int(scored.is_fake_N.sum())} fakes and {int((~scored.is_fake_N).sum())} reals of the calibrate part ({len(dfdc.faces)} DFDC)"
    return (
        Calibration(method="platt", scale=round(fitted.scale, 6), bias=round(fitted.bias, 6), fitted_on=count, ece=round(error, 4)),
        points,
        probability,
    )


def detection_table(scored: Scored, point: OperatingPoint) -> dict[str, dict[str, float]]:
    """AUC with its interval over identities, AP, EER, TPR at 1 % FPR, calibration and label rates, by group."""
    table: dict[str, dict[str, float]] = {}
    for name, keep in GROUPS.items():
        group = scored.where(keep)
        truth, score = group.is_fake_N, group.score_N
        if truth.all() or not truth.any():
            continue

        def group_auc(rows: NDArray[np.intp], truth: NDArray[np.bool_] = truth, score: NDArray[np.float64] = score) -> float:
            return metrics.auc(truth[rows], score[rows])

        low, high = metrics.bootstrap_interval(group_auc, [f"{f.dataset}/{f.unit}" for f in group.faces], resamples=500)
        undecided = (score >= point.real_below) & (score < point.fake_at)
        table[name] = {
            "faces": float(len(truth)),
            "auc": metrics.auc(truth, score), "auc_low": low, "auc_high": high,
            "ap": metrics.average_precision(truth, score), "eer": metrics.eer(truth, score),
            "tpr_at_1pct_fpr": metrics.tpr_at_fpr(truth, score, 0.01),
            "ece": metrics.ece(truth, score), "fake_on_reals": float((score[~truth] >= point.fake_at).mean()),
            "fake_on_fakes": float((score[truth] >= point.fake_at).mean()),
            "inconclusive_on_reals": float(undecided[~truth].mean()), "inconclusive_on_fakes": float(undecided[truth].mean()),
        }  # fmt: skip
    return table


def type_table(scored: Scored) -> dict[str, float]:
    """Macro F1 of the forgery type over fakes whose label is known (DFDC's as the sum of the two swaps)."""
    fakes = scored.where(lambda face: face.is_fake)
    allowed = np.stack([type_target(face.forgery_type) > 0 for face in fakes.faces])
    return {"type_macro_f1": metrics.type_macro_f1(fakes.type_prob_NF, allowed), "fakes": float(len(fakes.faces))}


def resized_mask(probability_HW: NDArray[np.float32], size: int = REFERENCE_SIZE) -> NDArray[np.bool_]:
    """A mask grid at reference size, cut at 0.5."""
    return np.asarray(Image.fromarray(probability_HW).resize((size, size), Image.Resampling.BILINEAR)) >= 0.5


def oval_mask(size: int = REFERENCE_SIZE) -> NDArray[np.bool_]:
    """The trivial answer: the inner-face oval of a x1.3 crop, whatever the image."""
    ys, xs = (np.mgrid[0:size, 0:size] + 0.5) / size
    oval: NDArray[np.bool_] = ((xs - 0.5) / 0.32) ** 2 + ((ys - 0.52) / 0.40) ** 2 < 1
    return oval


def localise(analyzer: Analyzer, faces: Sequence[Face]) -> tuple[list[NDArray[np.bool_]], list[NDArray[np.bool_]]]:
    """Masks at 224 px for each face: by the Loc task's [SEG] (empty where the answer is clean), and by the encoder's artifact map alone."""
    size, grid = analyzer.manifest.preprocess.image_size, analyzer.manifest.preprocess.grid
    by_seg, by_map = [], []
    for start in track(range(0, len(faces), BATCH), description="localise"):
        crops = np.stack([fit(face.image(), size) for face in faces[start : start + BATCH]])
        encoded = analyzer.encode(crops)
        answers = analyzer.decode(encoded["prefix_embeds"], "loc")
        masks_MHW, _ = analyzer.masks(encoded, range(len(crops)), answers)
        taken = 0
        for row, answer in enumerate(answers):
            found = masks_MHW[taken : taken + len(answer.seg_embeds)]
            taken += len(answer.seg_embeds)
            by_seg.append(resized_mask(found.max(0)) if len(found) else np.zeros((REFERENCE_SIZE, REFERENCE_SIZE), bool))
            by_map.append(resized_mask(sigmoid(encoded["artifact_logits"][row].reshape(grid, grid))))
    return by_seg, by_map


def localisation_table(
    analyzer: Analyzer, faces: Sequence[Face], annotations: Mapping[tuple[str, str], dict[str, Any]], *, num_reals: int = 200
) -> dict[str, float]:
    """Honest mIoU on curated DFDC pairs against the frozen reference, and false area on reals.

    Beside it our annotator as reference, and a whole-face oval as the trivial answer.
    """
    by_name = {face.name: face for face in faces if face.dataset == "dfdc"}
    pairs = [face for face in faces if face.dataset == "dfdc" and face.pair_quality == "curated"]
    frozen = [frozen_mask(fit(by_name[f.real_twin or ""].image(), REFERENCE_SIZE), fit(f.image(), REFERENCE_SIZE)) for f in pairs]
    by_seg, by_map = localise(analyzer, pairs)
    reals = [face for face in faces if face.dataset == "dfdc" and not face.is_fake][:num_reals]
    real_seg, real_map = localise(analyzer, reals)
    annotated = [
        (mask, decode_mask(row["mask"]))
        for f, mask in zip(pairs, by_seg, strict=True)
        if (row := annotations.get((f.dataset, f.name))) and row["quality"] == "good"
    ]
    table = {
        "pairs": float(len(pairs)),
        "mean_area_frozen": float(np.mean([m.mean() for m in frozen])),
        "miou_seg": metrics.honest_miou(by_seg, frozen), "miou_map": metrics.honest_miou(by_map, frozen),
        "miou_oval": metrics.honest_miou([oval_mask()] * len(pairs), frozen),
        "missed": float(np.mean([not m.any() for m in by_seg])),
        "false_area_seg": metrics.false_area(real_seg), "false_area_map": metrics.false_area(real_map),
    }  # fmt: skip
    if annotated:
        table["miou_seg_annotator"] = metrics.honest_miou([m for m, _ in annotated], [m for _, m in annotated])
        table["mean_area_annotator"] = float(np.mean([m.mean() for _, m in annotated]))
    return table


def explanation_table(
    analyzer: Analyzer, faces: Sequence[Face], annotations: Mapping[tuple[str, str], dict[str, Any]]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """AGE on annotated faces, each explained whatever its score: text scores, grounding and what is invented; samples beside the figures."""
    chosen = [(f, row) for f in faces if (row := annotations.get((f.dataset, f.name))) and row["refused"] is None]
    size = analyzer.manifest.preprocess.image_size
    named, true, masks, targets, texts, references, samples = [], [], [], [], [], [], []
    mentions: list[frozenset[str]] = []
    for start in track(range(0, len(chosen), BATCH), description="explain"):
        rows = chosen[start : start + BATCH]
        crops = np.stack([fit(face.image(), size) for face, _ in rows])
        for (face, row), analysis in zip(rows, analyzer.analyze(crops, explain=["always"] * len(rows)), strict=True):
            explanation = analysis.explanation
            assert explanation is not None, "explain=always gave no explanation"
            concepts = frozenset(item.concept for item in explanation.evidence)
            samples.append(
                {"name": f"{face.dataset}/{face.name}", "score": round(analysis.fake_score, 4), "got": explanation.text, "reference": row["text"]}
            )
            if not face.is_fake:
                mentions.append(concepts)
                continue
            named.append(concepts)
            true.append(frozenset(concept["concept"] for concept in row["concepts"]))
            masks.append([resized_mask(item.mask_probability_HW) for item in explanation.evidence])
            targets.append([decode_mask(concept["mask"]) for concept in row["concepts"]])
            texts.append(explanation.text)
            references.append([row["text"]])
    constant = metrics.most_frequent_sentence([reference for (reference,) in references])
    scored, baseline = metrics.text_scores(texts, references), metrics.text_scores([constant] * len(texts), references)
    table = {
        "faces": float(len(texts)), "meteor": scored.meteor, "cider": scored.cider, "rouge_l": scored.rouge_l,
        "meteor_most_frequent_sentence": baseline.meteor, "self_bleu_4": metrics.self_bleu_4(texts), "distinct_2": metrics.distinct_2(texts),
        "self_bleu_4_reference": metrics.self_bleu_4([r for (r,) in references]),
        "distinct_2_reference": metrics.distinct_2([r for (r,) in references]),
        "age_miou": metrics.hungarian_miou(masks, targets), "age_miou_legacy": metrics.legacy_miou(masks, targets),
        "hallucination": metrics.hallucination_rate(named, true), "omission": metrics.omission_rate(named, true),
    }  # fmt: skip
    if mentions:
        table["mention_on_reals"] = metrics.mention_rate(mentions)
    return table, samples


def parity_table(served: Analyzer, reference: Analyzer, faces: Sequence[Face]) -> dict[str, float]:
    """Largest score difference, smallest mask IoU and token agreement of two analyzers on the same faces, all explained."""
    size = served.manifest.preprocess.image_size
    differences, ious, agree = [], [], []
    for start in track(range(0, len(faces), BATCH), description="parity"):
        crops = np.stack([fit(face.image(), size) for face in faces[start : start + BATCH]])
        encoded = [analyzer.encode(crops) for analyzer in (served, reference)]
        scores = [analyzer.calibrated(e["det_logit"]) for analyzer, e in zip((served, reference), encoded, strict=True)]
        differences += np.abs(scores[0] - scores[1]).tolist()
        answers = [analyzer.decode(e["prefix_embeds"], "age") for analyzer, e in zip((served, reference), encoded, strict=True)]
        masks = [analyzer.masks(e, range(len(crops)), a)[0] for analyzer, e, a in zip((served, reference), encoded, answers, strict=True)]
        agree += [a.ids == b.ids for a, b in zip(*answers, strict=True)]
        if all(agree[-len(crops) :]):
            ious += [metrics.mask_iou(resized_mask(a), resized_mask(b)) for a, b in zip(*masks, strict=True)]
    return {
        "faces": float(len(faces)), "max_score_difference": float(max(differences)), "min_mask_iou": float(min(ious, default=1.0)),
        "masks": float(len(ious)), "same_tokens": float(np.mean(agree)),
    }  # fmt: skip


def markdown(tables: Mapping[str, Any]) -> str:
    """The figures as Markdown tables, one a heading."""
    lines: list[str] = []
    for title, table in tables.items():
        lines += [f"## {title}", ""]
        if table and all(isinstance(row, dict) for row in table.values()):
            columns = list(next(iter(table.values())))
            lines += ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
            lines += [f"| {name} | " + " | ".join(_shown(row.get(column)) for column in columns) + " |" for name, row in table.items()]
        else:
            lines += ["| measure | value |", "|---|---|", *(f"| {name} | {_shown(value)} |" for name, value in table.items())]
        lines.append("")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return str(int(value)) if value == int(value) and abs(value) >= 2 else f"{value:.4g}"
