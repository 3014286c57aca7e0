"""The label-shuffle probe: do the annotations say something about each image, or only about its set and family?

A model trained and tested on one annotator can look good by learning that annotator's habits ("swaps are cheeks and nose"). The probe makes that
visible without training the model: a ridge regression reads the concepts of a face off the engine's frozen features, once with its own labels and
once with labels that were permuted among faces of the same set and family. What the second reaches is the shortcut; only the rest is sight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from engines import fict
from engines.analyzer import Analyzer
from engines.prompts import parse_markup
from trainer.annotator.annotate import load_annotations
from trainer.faces import Face, fit
from trainer.fifa_bench.text import distinct_2, self_bleu_4, text_scorer, vocabulary

MIN_PER_CLASS = 5
"""Concepts with fewer test faces for or against are left out."""
POOLED = 4
"""Patch features are averaged over a 4 x 4 grid: coarse places are kept, as concepts are places."""
COMPONENTS = 128
RIDGE = 100.0


@dataclass(frozen=True, slots=True)
class LabelledFeatures:
    """N annotated faces as the probe sees them."""

    feature_NK: NDArray[np.float32]
    concept_NC: NDArray[np.bool_]
    """Cells of FICT at depth 33 that the annotation names, by atoms."""
    family_N: NDArray[np.str_]
    """Set and forgery type: labels are permuted inside it."""


def features(analyzer: Analyzer, crops_NHWC: NDArray[np.uint8], *, batch: int = 16) -> NDArray[np.float32]:
    """Frozen encoder features of (N, size, size, 3) uint8 crops: patch embeddings pooled 4 x 4 and the artifact map; (N, K) float32."""
    grid = analyzer.manifest.preprocess.grid
    rows = []
    for start in range(0, len(crops_NHWC), batch):
        out = analyzer.encode(crops_NHWC[start : start + batch])
        embeds_BTD = out["image_embeds"]
        cell = grid // POOLED
        pooled = embeds_BTD.reshape(len(embeds_BTD), POOLED, cell, POOLED, cell, -1).mean((2, 4))
        rows.append(np.concatenate([pooled.reshape(len(embeds_BTD), -1), out["artifact_logits"].reshape(len(embeds_BTD), -1)], 1))
    return np.concatenate(rows).astype(np.float32)


def concept_labels(rows: Sequence[dict[str, Any]]) -> NDArray[np.bool_]:
    """Annotation rows to (N, 33): a cell counts when one of its atoms is named."""
    cells = [set(fict.concepts()[cell].atoms) for cell in fict.cells(33)]
    named = [{atom for concept in row["concepts"] for atom in fict.concepts()[concept["concept"]].atoms} for row in rows]
    return np.array([[bool(atoms & cell) for cell in cells] for atoms in named], bool).reshape(len(rows), len(cells))


def shuffled_within(family_N: NDArray[np.str_], rng: np.random.Generator) -> NDArray[np.intp]:
    """A permutation of rows that keeps every row inside its family."""
    order = np.arange(len(family_N))
    for family in np.unique(family_N):
        members = np.flatnonzero(family_N == family)
        order[members] = rng.permutation(members)
    return order


def probe_annotations(analyzer: Analyzer, faces: Sequence[Face], folder: Path, *, limit: int, seed: int = 0) -> dict[str, float]:
    """The probe on a folder of annotations: learned on fakes of `train.jsonl`, tested on fakes of `dev.jsonl`, at most `limit` of each."""
    by_name = {(face.dataset, face.name): face for face in faces}
    sides = []
    for number, file in enumerate(("train.jsonl", "dev.jsonl")):
        rows = [
            row for row in load_annotations(folder / file) if row["is_fake"] and row["refused"] is None and (row["dataset"], row["name"]) in by_name
        ]
        rows = [rows[i] for i in np.random.default_rng([seed, number]).permutation(len(rows))[:limit]]
        size = analyzer.manifest.preprocess.image_size
        crops = np.stack([fit(by_name[row["dataset"], row["name"]].image(), size) for row in rows])
        families = np.array([f"{row['dataset']}/{row['forgery_type']}" for row in rows])
        sides.append(LabelledFeatures(features(analyzer, crops), concept_labels(rows), families))
    return label_probe(*sides, seed=seed) | text_facts(load_annotations(folder / "dev.jsonl"))


def text_facts(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How varied both grammars are over the explanations of annotation rows, and METEOR between them: what a system that says every fact
    in the words of training can reach against held-out references.

    METEOR needs Java (FileNotFoundError without it).
    """
    told = [row for row in rows if row["concepts"]]
    training, held_out = ([parse_markup(row[key])[0] for row in told] for key in ("markup", "held_out"))
    with text_scorer([*training, *held_out]) as scorer:
        meteor = scorer(training, [[text] for text in held_out]).meteor
    return {
        "texts": float(len(told)), "self_bleu_4_training": self_bleu_4(training), "self_bleu_4_held_out": self_bleu_4(held_out),
        "distinct_2_training": distinct_2(training), "distinct_2_held_out": distinct_2(held_out),
        "vocabulary_training": float(vocabulary(training)), "vocabulary_held_out": float(vocabulary(held_out)), "meteor_between_grammars": meteor,
    }  # fmt: skip


def label_probe(train: LabelledFeatures, test: LabelledFeatures, *, shuffles: int = 5, seed: int = 0) -> dict[str, float]:
    """Mean AUC over concepts with true labels, and mean and spread of it with labels shuffled within families.

    Raises ValueError where no concept has enough test faces on both sides.
    """
    counts = test.concept_NC.sum(0)
    kept = np.flatnonzero((counts >= MIN_PER_CLASS) & (counts <= len(test.concept_NC) - MIN_PER_CLASS) & train.concept_NC.any(0))
    if not len(kept):
        raise ValueError(f"no concept stands on {MIN_PER_CLASS} test faces and is absent from as many; annotate more faces")
    rng = np.random.default_rng(seed)
    true = _reached(train.feature_NK, train.concept_NC[:, kept], test.feature_NK, test.concept_NC[:, kept])
    by_chance = [
        _reached(train.feature_NK, train.concept_NC[shuffled_within(train.family_N, rng)][:, kept], test.feature_NK, test.concept_NC[:, kept])
        for _ in range(shuffles)
    ]
    return {
        "train_faces": float(len(train.feature_NK)), "test_faces": float(len(test.feature_NK)), "concepts": float(len(kept)),
        "auc_true_labels": true, "auc_shuffled_labels": float(np.mean(by_chance)), "auc_shuffled_spread": float(np.std(by_chance)),
        "sight": true - float(np.mean(by_chance)),
    }  # fmt: skip


def _reached(train_NK: NDArray[np.float32], label_NC: NDArray[np.bool_], test_NK: NDArray[np.float32], truth_NC: NDArray[np.bool_]) -> float:
    components = min(COMPONENTS, len(train_NK) - 1, train_NK.shape[1])
    model = make_pipeline(StandardScaler(), PCA(components, random_state=0), StandardScaler(), Ridge(RIDGE))
    model.fit(train_NK, label_NC.astype(np.float32))
    predicted = model.predict(test_NK).reshape(len(test_NK), -1)
    return float(np.mean([roc_auc_score(truth_NC[:, k], predicted[:, k]) for k in range(truth_NC.shape[1])]))
