"""Two shortcuts made visible from files alone: answers that ignore the question, and answers that ignore the picture.

Query shuffle: a probe asks another sample's question while the answer stays; who reads the question does badly there, and the drop says so.
Label shuffle: the same predictions against the truth of another face of the same set and family; what is reached there needs no look at the face.
"""

import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from trainer.fifa_bench.mask_tables import Row, grounding_iou, iou
from trainer.fifa_bench.pairing import Item
from trainer.fifa_bench.text import TextScorer

Measure = Callable[[Item, Item], float]
"""How well the first item's answer meets the second item's truth."""


def loc_measure(item: Item, truth: Item) -> float:
    """IoU of the answer's mask with the true one."""
    return iou(item.mask, truth.true_mask)


def age_measure(item: Item, truth: Item) -> float:
    """Hungarian IoU of the answer's masks with the true ones."""
    return grounding_iou(item, [rle for _, rle in truth.truths])


MEASURES: dict[str, Measure] = {"loc": loc_measure, "age": age_measure}


def query_shuffle_table(items: Sequence[Item]) -> dict[str, Row]:
    """mIoU of `loc` and `age` with the question asked and with another's, over the same samples, by task and level.

    Raises ValueError where a probe names a sample that is not in the split.
    """
    by_id = {item.sample.id: item for item in items}
    groups: dict[str, list[tuple[Item, Item]]] = defaultdict(list)
    for item in items:
        sample = item.sample
        if sample.probe is None:
            continue
        partner = by_id.get(sample.probed or "")
        if partner is None:
            raise ValueError(f"the probe {sample.id!r} names {sample.probed!r}, which is no sample of the split; keep probes beside what they probe")
        if sample.task in MEASURES and partner.sample.mask_known and partner.truths:
            groups[f"{sample.task}/{sample.level}"].append((item, partner))
    table = {}
    for key, pairs in sorted(groups.items()):
        measure = MEASURES[key.split("/")[0]]
        asked = float(np.mean([measure(partner, partner) for _, partner in pairs]))
        shuffled = float(np.mean([measure(probe, partner) for probe, partner in pairs]))
        table[key] = {"pairs": float(len(pairs)), "miou": asked, "miou_shuffled_query": shuffled, "drop": asked - shuffled}
    return table


def shuffled_truths(items: Sequence[Item], *, seed: int = 0) -> list[tuple[Item, Item]]:
    """Each item with another's truth, of the same task, level, set and family, and for region queries of the same concept.

    The members of a group are put in a random order and each takes the truth of the next, so nobody keeps its own; groups of one are left out. The
    concept of a region query stays, for otherwise the truth would lie elsewhere and any answer to the question would seem to see.
    """
    groups: dict[tuple[str, ...], list[Item]] = defaultdict(list)
    for item in items:
        sample = item.sample
        groups[sample.task, sample.level, sample.dataset, sample.forgery_type or "real", sample.concept or ""].append(item)
    pairs = []
    for key, members in sorted(groups.items()):
        if len(members) > 1:
            rng = np.random.default_rng([seed, zlib.crc32("\n".join(key).encode())])
            order = [members[index] for index in rng.permutation(len(members))]
            pairs += list(zip(order, [*order[1:], order[0]], strict=True))
    return pairs


def label_shuffle_table(items: Sequence[Item], *, seed: int = 0) -> dict[str, Row]:
    """mIoU of `loc` and `age` under the true and under shuffled labels, over the same tampered samples, by task and level."""
    tampered = [item for item in items if item.sample.probe is None and item.sample.mask_known and item.truths]
    table = {}
    for task, level in sorted({(item.sample.task, item.sample.level) for item in tampered if item.sample.task in MEASURES}):
        pairs = shuffled_truths([item for item in tampered if (item.sample.task, item.sample.level) == (task, level)], seed=seed)
        if pairs:
            true = float(np.mean([MEASURES[task](item, item) for item, _ in pairs]))
            shuffled = float(np.mean([MEASURES[task](item, other) for item, other in pairs]))
            table[f"{task}/{level}, miou"] = _row(len(pairs), true, shuffled)
    return table


def text_shuffle_row(items: Sequence[Item], scorer: TextScorer, *, seed: int = 0) -> Row | None:
    """METEOR under the true and under shuffled references, over the same samples of one task and level; None where no two can be swapped."""
    pairs = shuffled_truths(items, seed=seed)
    if not pairs:
        return None
    said = [item.text for item, _ in pairs]
    true, shuffled = (scorer(said, [[owner.reference] for owner in owners]).meteor for owners in zip(*pairs, strict=True))
    return _row(len(pairs), true, shuffled)


def _row(samples: int, true: float, shuffled: float) -> Row:
    return {"samples": float(samples), "true_labels": true, "shuffled_labels": shuffled, "difference": true - shuffled}
