"""The label-shuffle probe: labels that can be seen stand out, labels that only follow the family do not."""

import numpy as np
import pytest

from engines import fict
from trainer.label_probe import LabelledFeatures, concept_labels, label_probe, shuffled_within


def _faces(rng: np.random.Generator, count: int, *, seen: bool) -> LabelledFeatures:
    """Two families with habits of their own; where `seen`, the first features also show which concepts a face has."""
    family = np.arange(count) % 2
    habit = np.where(family[:, None] == 0, 0.7, 0.3)
    concepts = rng.random((count, 33)) < habit
    features = rng.normal(size=(count, 60)).astype(np.float32)
    features[:, 0] += 3 * family
    if seen:
        features[:, 1:34] += 2.0 * concepts
    return LabelledFeatures(features, concepts, np.array(["a", "b"])[family])


def test_labels_that_show_in_the_features_beat_shuffled_ones() -> None:
    rng = np.random.default_rng(0)
    table = label_probe(_faces(rng, 400, seen=True), _faces(rng, 200, seen=True))
    assert table["auc_true_labels"] > 0.85 and table["sight"] > 0.15


def test_labels_that_only_follow_the_family_gain_nothing_over_shuffled_ones() -> None:
    rng = np.random.default_rng(1)
    table = label_probe(_faces(rng, 400, seen=False), _faces(rng, 200, seen=False))
    assert table["auc_shuffled_labels"] > 0.6, "the family alone must be seen to give this much"
    assert abs(table["sight"]) < 0.05


def test_shuffling_keeps_every_row_in_its_family() -> None:
    family = np.array(list("aabbbcaaab"))
    order = shuffled_within(family, np.random.default_rng(0))
    assert sorted(order) == list(range(10)) and (family[order] == family).all()


def test_a_concept_counts_for_its_cell_and_a_part_for_all_of_its_cells() -> None:
    (row,) = concept_labels([{"concepts": [{"concept": "nose"}, {"concept": "right_lower_cheek"}]}])
    named = {cell for cell, is_named in zip(fict.cells(33), row, strict=True) if is_named}
    assert named == {"nasal_bridge", "nasal_lobule", "nasal_base", "right_cheek"}


def test_too_few_faces_is_an_error_that_says_so() -> None:
    rng = np.random.default_rng(2)
    few = _faces(rng, 6, seen=True)
    with pytest.raises(ValueError, match="annotate more faces"):
        label_probe(few, few)
