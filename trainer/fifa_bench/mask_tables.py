"""Tables of localisation, grounding and alignment for one level of query (image, region or box)."""

from collections.abc import Sequence
from functools import cache

import numpy as np

from engines.contracts import FORGERY_TYPES
from trainer.fifa_bench import alignment
from trainer.fifa_bench.intervals import Interval, UndefinedMetric, class_mean_interval, mean_interval, ratio_interval
from trainer.fifa_bench.masks import (
    STRICT_BOUNDARY_SHARE,
    CocoRle,
    Ranked,
    ap50,
    area,
    boundary_f1,
    decoded,
    encoded,
    hungarian_iou,
    intersection,
    iou_matrix,
    legacy_iou,
    num_found,
    oval_mask,
    overlap_areas,
)
from trainer.fifa_bench.pairing import Item, coco
from trainer.samples import SIDE

Row = dict[str, float]
PIXELS = SIDE * SIDE


def with_interval(row: Row, name: str, interval: Interval) -> None:
    """Put the bounds beside the figure."""
    row[f"{name}_low"], row[f"{name}_high"] = interval


def iou(predicted: CocoRle, reference: CocoRle) -> float:
    """IoU of two masks, one of them not empty."""
    return float(iou_matrix([predicted], [reference])[0, 0])


def trivial_answer(item: Item) -> CocoRle | None:
    """What a system that never looks would mark: a face oval, or the whole asked area; None where that area is not known."""
    return _oval() if item.sample.level == "image" else item.asked_area


@cache
def _oval() -> CocoRle:
    return encoded(oval_mask(SIDE))


def loc_table(items: Sequence[Item], *, intervals: bool) -> Row:
    """Localisation of one level. Samples whose mask is not known are counted and left out; a miss is an empty mask."""
    known = [item for item in items if item.sample.mask_known]
    tampered = [item for item in known if item.truths]
    clean = [item for item in known if not item.sample.tampered]
    row: Row = {"samples": float(len(items)), "mask_unknown": float(len(items) - len(known)), "tampered": float(len(tampered))}
    if tampered:
        row |= _overlap_row([item.mask for item in tampered], [item.true_mask for item in tampered])
        row |= _trivial_row(tampered, [item.true_mask for item in tampered])
        if intervals:
            with_interval(row, "miou", mean_interval([iou(item.mask, item.true_mask) for item in tampered], [item.unit for item in tampered]))
    row |= _called_row(tampered, clean, intervals=intervals)
    answered = [item for item in clean if item.prediction is not None]
    reals = [item for item in answered if not item.sample.is_fake]
    row["clean"] = float(len(clean))
    if answered:
        row["false_area"] = float(np.mean([area(item.mask) for item in answered])) / PIXELS
    if reals:
        row["false_area_on_reals"] = float(np.mean([area(item.mask) for item in reals])) / PIXELS
    return row | _asked_area_row(tampered, answered, intervals=intervals)


def _called_row(tampered: Sequence[Item], clean: Sequence[Item], *, intervals: bool) -> Row:
    """Tampered or clean, and the mean of the two where there are both."""
    row: Row = {}
    found, kept = _called(tampered, tampered=True), _called(clean, tampered=False)
    for name, right in (("tampered_called_tampered", found), ("clean_called_clean", kept)):
        if right:
            row[name] = float(np.mean(right))
    if found and kept:
        row["balanced_accuracy"] = (float(np.mean(found)) + float(np.mean(kept))) / 2
        if intervals:
            units = [item.unit for item in (*tampered, *clean)]
            with_interval(row, "balanced_accuracy", class_mean_interval([*found, *kept], [True] * len(found) + [False] * len(kept), units))
    return row


def _called(items: Sequence[Item], *, tampered: bool) -> list[bool]:
    """Which samples are called tampered (any pixel) or clean (none), as they should be; no answer is never right."""
    return [item.prediction is not None and bool(area(item.mask)) == tampered for item in items]


def _overlap_row(predicted: Sequence[CocoRle], reference: Sequence[CocoRle]) -> Row:
    values = np.array([iou(p, r) for p, r in zip(predicted, reference, strict=True)])
    shared, either = overlap_areas(predicted, reference)
    pairs = [(decoded(p), decoded(r)) for p, r in zip(predicted, reference, strict=True)]
    row = {
        "mean_area": float(np.mean([area(r) for r in reference])) / PIXELS,
        "predicted_area": float(np.mean([area(p) for p in predicted])) / PIXELS,
        "miou": float(values.mean()),
        "missed": float(np.mean([not area(p) for p in predicted])),
        "ciou": float(shared.sum() / either.sum()),
        "boundary_f1": float(np.mean([boundary_f1(p, r) for p, r in pairs])),
        "boundary_f1_strict": float(np.mean([boundary_f1(p, r, STRICT_BOUNDARY_SHARE) for p, r in pairs])),
    }
    if (values > 0).any():
        row["miou_legacy"] = float(values[values > 0].mean())
    return row


def _trivial_row(items: Sequence[Item], reference: Sequence[CocoRle]) -> Row:
    values = [iou(answer, r) for item, r in zip(items, reference, strict=True) if (answer := trivial_answer(item)) is not None]
    return {"miou_trivial": float(np.mean(values))} if values else {}


def _asked_area_row(tampered: Sequence[Item], clean: Sequence[Item], *, intervals: bool) -> Row:
    """What region and box queries add: overlap within the asked area, and what leaves it."""
    row: Row = {}
    areas = [(item, asked) for item in tampered if (asked := item.asked_area) is not None]
    inside = [(item, intersection(item.true_mask, asked), asked) for item, asked in areas]
    values = [iou(intersection(item.mask, asked), truth) for item, truth, asked in inside if area(truth)]
    if values:
        row["miou_in_area"] = float(np.mean(values))
    everyone = [*areas, *((item, asked) for item in clean if (asked := item.asked_area) is not None)]
    shown = [(item, asked) for item, asked in everyone if area(item.mask)]
    if shown:
        outside = [1 - alignment.share_inside(item.mask, asked) for item, asked in shown]
        row |= {"masks_shown": float(len(shown)), "outside_area": float(np.mean(outside))}
        if intervals:
            with_interval(row, "outside_area", mean_interval(outside, [item.unit for item, _ in shown]))
    marked = [area(intersection(item.mask, asked)) / area(asked) for item in clean if (asked := item.asked_area) is not None and area(asked)]
    if marked:
        row["false_share_of_area"] = float(np.mean(marked))
    return row


def frozen_table(items: Sequence[Item], *, intervals: bool) -> Row | None:
    """Localisation against the frozen reference, beside the annotator's reference on the same samples; None where no sample has one."""
    held = [(item, frozen) for item in items if item.sample.frozen is not None and area(frozen := coco(item.sample.frozen))]
    if not held:
        return None
    tampered, reference = [item for item, _ in held], [frozen for _, frozen in held]
    row = {"samples": float(len(held))} | _overlap_row([item.mask for item in tampered], reference)
    row |= _trivial_row(tampered, reference)
    known = [item for item in tampered if item.sample.mask_known and item.truths]
    if known:
        row["miou_annotator"] = float(np.mean([iou(item.mask, item.true_mask) for item in known]))
        row["mean_area_annotator"] = float(np.mean([area(item.true_mask) for item in known])) / PIXELS
    if intervals:
        with_interval(row, "miou", mean_interval([iou(i.mask, r) for i, r in held], [i.unit for i in tampered]))
    return row


def families_table(items: Sequence[Item]) -> dict[str, Row]:
    """Overlap by forgery family: a mean over all hides a family that fails."""
    table = {}
    for family in sorted({*FORGERY_TYPES, "swap"}):
        members = [item for item in items if item.sample.forgery_type == family and item.sample.mask_known and item.truths]
        if members:
            truths = [item.true_mask for item in members]
            table[family] = {
                "samples": float(len(members)), "mean_area": float(np.mean([area(r) for r in truths])) / PIXELS,
                "miou": float(np.mean([iou(item.mask, r) for item, r in zip(members, truths, strict=True)])),
                **_trivial_row(members, truths),
            }  # fmt: skip
    return table


def grounding_iou(item: Item, truths: Sequence[CocoRle]) -> float:
    """Hungarian IoU of an answer's masks with the true ones, of which there is at least one."""
    return hungarian_iou(iou_matrix(item.masks, truths))


def age_table(items: Sequence[Item], *, intervals: bool) -> Row:
    """Grounding of one level: overlap and recall over tampered samples, AP50 over clean ones too, whose masks are false positives."""
    known = [item for item in items if item.sample.mask_known]
    tampered = [item for item in known if item.truths]
    row: Row = {"samples": float(len(known)), "tampered": float(len(tampered))}
    row |= {"masks_true": float(sum(len(i.truths) for i in tampered)), "masks_predicted": float(sum(len(i.masks) for i in known))}
    if not tampered:
        return row
    true_masks = [[rle for _, rle in item.truths] for item in known]
    for name, keep in (("ap50", True), ("ap50_confidence_1", False)):
        row[name] = ap50([_ranked(item, real=keep) for item in known], true_masks)
    matrices = [iou_matrix(item.masks, [rle for _, rle in item.truths]) for item in tampered]
    values = [hungarian_iou(iou_PT) for iou_PT in matrices]
    row |= {"miou": float(np.mean(values)), "miou_legacy": float(np.mean([legacy_iou(iou_PT) for iou_PT in matrices]))}
    for name, rule in (("recall_50", "fits"), ("recall_50_same_concept", "same"), ("recall_50_any_phrase", "any")):
        found = [num_found(iou_PT, _phrases_fit(item, rule)) for item, iou_PT in zip(tampered, matrices, strict=True)]
        row[name] = sum(found) / row["masks_true"]
        if intervals and rule == "fits":
            with_interval(row, name, ratio_interval(found, [len(i.truths) for i in tampered], [i.unit for i in tampered]))
    if intervals:
        with_interval(row, "miou", mean_interval(values, [item.unit for item in tampered]))
    return row


def _ranked(item: Item, *, real: bool) -> list[Ranked]:
    if item.prediction is None:
        return []
    return [Ranked(rle, mask.confidence if real else 1.0) for rle, mask in zip(item.masks, item.prediction.masks, strict=True)]


def _phrases_fit(item: Item, rule: str) -> np.ndarray:
    named = [mask.concept for mask in item.prediction.masks] if item.prediction else []
    fits = [[rule == "any" or alignment.phrase_fits(said, true, exact=rule == "same") for true, _ in item.truths] for said in named]
    return np.array(fits, bool).reshape(len(named), len(item.truths))


def alignment_table(items: Sequence[Item], *, intervals: bool) -> Row:
    """Whether phrases and masks of one level speak of one place, and of a place that was touched."""
    told = [item for item in items if item.sample.tampered and item.truths]
    clean = [item for item in items if not item.sample.tampered and item.prediction is not None]
    row = _hallucination_row(items, intervals=intervals)
    named, true = [item.named for item in told], [item.true_concepts for item in told]
    if told:
        row |= {"unlisted": alignment.unlisted_rate(named, true), "omission": alignment.omission_rate(named, true)}
        if intervals and any(named):
            unlisted = [alignment.unmet(said, wanted) for said, wanted in zip(named, true, strict=True)]
            with_interval(row, "unlisted", ratio_interval(unlisted, [len(said) for said in named], [item.unit for item in told]))
    if clean:
        row["clean_mention"] = float(np.mean([bool(item.masks) for item in clean]))
    masks = [(rle, mask) for item in items if item.prediction for rle, mask in zip(item.masks, item.prediction.masks, strict=True)]
    if masks:
        row |= {"phrases": float(len(masks)), "phrases_outside_fict": float(np.mean([mask.concept is None for _, mask in masks]))}
        row["phrases_without_a_pixel"] = float(np.mean([not area(rle) for rle, _ in masks]))
    return row | _in_region_row(items, intervals=intervals)


def _hallucination_row(items: Sequence[Item], *, intervals: bool) -> Row:
    """Named concepts with no true artifact over all named, 0 where nothing is named; samples of which that cannot be said are counted apart."""
    judged = [(item, invented) for item in items if (invented := _num_invented(item)) is not None]
    row: Row = {}
    for name, members in (("hallucination", judged), ("hallucination_on_fakes", [pair for pair in judged if pair[0].sample.is_fake])):
        named, invented_of = [len(item.named) for item, _ in members], [number for _, number in members]
        if members:
            row[name] = sum(invented_of) / sum(named) if any(named) else 0.0
        if intervals and any(named):
            with_interval(row, name, ratio_interval(invented_of, named, [item.unit for item, _ in members]))
    return row | {"artifact_unknown": float(len(items) - len(judged))}


def _num_invented(item: Item) -> int | None:
    """How many named concepts have no true artifact: on a real face all. None for a fake whose artifact, or FICT on it, is not known."""
    if not item.sample.is_fake:
        return len(item.named)
    artifact = item.artifact
    if artifact is None or not item.regions:
        return None
    return sum(alignment.is_hallucinated(concept, item.regions, artifact, SIDE) for concept in item.named)


def _in_region_row(items: Sequence[Item], *, intervals: bool) -> Row:
    """Share of each mask inside its phrase's region, before any clipping, and inside the regions of the answer's other phrases."""
    own: list[float] = []
    units: list[str] = []
    other: list[float] = []
    for item in items:
        if item.prediction is None or not item.sample.regions:
            continue
        atoms = {name: coco(rle) for name, rle in item.sample.regions.items()}
        regions = {concept: alignment.region_of(concept, atoms, SIDE) for concept in sorted(item.named)}
        for rle, mask in zip(item.masks, item.prediction.masks, strict=True):
            if mask.concept is not None and area(rle):
                own.append(alignment.share_inside(rle, regions[mask.concept]))
                units.append(item.unit)
                other += [alignment.share_inside(rle, region) for name, region in regions.items() if name != mask.concept]
    row: Row = {"masks_in_known_regions": float(len(own))}
    if own:
        row["in_region"] = float(np.mean(own))
        if intervals:
            with_interval(row, "in_region", mean_interval(own, units))
    if other:
        row["in_other_phrases_region"] = float(np.mean(other))
    return row


def concept_table(items: Sequence[Item]) -> dict[str, Row]:
    """Named against true cells of FICT at each depth, over tampered samples of image-level `age`."""
    told = [item for item in items if item.truths]
    table = {}
    for depth in (5, 14, 33, 112):
        try:
            overlap = alignment.concept_overlap([item.named for item in told], [item.true_concepts for item in told], depth)
        except UndefinedMetric:
            continue
        table[str(depth)] = overlap._asdict()
    return table
