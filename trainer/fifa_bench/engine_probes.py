"""Whether an engine means what it says: probes that need it running, on the explanations of faces that have an image-level `age` sample.

Phrase swap: exchange two phrases of the engine's own answer; masks that follow the words must change places. In region: how much of a mask lies where
its phrase says, before anything is clipped. Mentions: what is named on a real face when an explanation is forced. Deletion: see `deletion`.

Every figure stands with its count and a 95 % interval over units. Shapes: H W pixels of a 224 px crop.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import NamedTuple

from engines.analyzer import Analyzer
from engines.measure import dilate
from engines.prompts import PHRASE, PHRASE_END
from trainer.faces import ImageHWC
from trainer.fifa_bench.alignment import REGION_DILATION_PX
from trainer.fifa_bench.deletion import (
    Deletion,
    Filled,
    TwinOf,
    cover_reals,
    delete_by_cover,
    delete_by_paint,
    delete_by_twin,
    deletion_row,
    filled_row,
    paint_reals,
)
from trainer.fifa_bench.explained import Cited, ExplainedFaces, Row, explain_faces, figure
from trainer.fifa_bench.masks import MaskHW, mask_iou, oval_mask
from trainer.fifa_bench.predict import BATCH, AskedFace, grouped, masks_by_answer, resized_mask
from trainer.samples import SIDE, Sample

RegionsOf = Callable[[ImageHWC], Callable[[str], MaskHW] | None]
"""Face crop to a function from FICT id to its (224, 224) region; None where the face is not understood."""

_PHRASE = re.compile(rf"(?<={re.escape(PHRASE)} ).+?(?= {re.escape(PHRASE_END)})")


class Swap(NamedTuple):
    """One phrase that was moved: IoU of its new mask with its own former mask, and with the mask that stood at its new place."""

    unit: str
    phrase_iou: float
    place_iou: float


class Inside(NamedTuple):
    """Share of a phrase's mask that lies in its region, and what a mask of the whole face would reach there."""

    unit: str
    share: float
    share_of_oval: float


class Mention(NamedTuple):
    """Whether anything was named on a real face."""

    unit: str
    named: bool


@dataclass(slots=True)
class Findings:
    """What the probes saw, gathered batch by batch."""

    swaps: list[Swap] = field(default_factory=list)
    by_paint: list[Deletion] = field(default_factory=list)
    by_cover: list[Deletion] = field(default_factory=list)
    by_twin: list[Deletion] = field(default_factory=list)
    painted: list[Filled] = field(default_factory=list)
    covered: list[Filled] = field(default_factory=list)
    inside: list[Inside] = field(default_factory=list)
    mentions: list[Mention] = field(default_factory=list)
    fakes: int = 0


def engine_probes(
    analyzer: Analyzer, items: Iterable[AskedFace], *, regions_of: RegionsOf, twin_of: TwinOf = lambda _: None, batch: int = BATCH,
    limit: int | None = None,
) -> dict[str, Row]:  # fmt: skip
    """All probes in one pass over the first `limit` explained faces: swap, deletion and region on fakes, paint, cover and mentions on reals.

    Every probe has its row, with `n` = 0 where no face would do.
    """
    found = Findings()
    for faces in grouped(islice(_with_age(items), limit), batch):
        explained = explain_faces(analyzer, faces)
        found.fakes += len(explained.fakes)
        found.swaps += swap_phrases(analyzer, explained)
        found.by_paint += delete_by_paint(analyzer, explained)
        found.by_cover += delete_by_cover(analyzer, explained)
        found.by_twin += delete_by_twin(analyzer, explained, twin_of)
        found.painted += paint_reals(analyzer, explained)
        found.covered += cover_reals(analyzer, explained)
        found.inside += look_inside(explained, regions_of)
        found.mentions += [Mention(explained.unit(row), bool(explained.cited[row])) for row in explained.reals]
    return {
        "phrase swap": swap_row(found.swaps, fakes=found.fakes),
        "deletion by paint": deletion_row(found.by_paint, fakes=found.fakes),
        "paint on reals": filled_row(found.painted),
        "deletion by cover": deletion_row(found.by_cover, fakes=found.fakes),
        "cover on reals": filled_row(found.covered),
        "deletion by twin": deletion_row(found.by_twin, fakes=found.fakes),
        "in region": inside_row(found.inside),
        "mentions on reals": mention_row(found.mentions),
    }


def _with_age(items: Iterable[AskedFace]) -> Iterator[tuple[ImageHWC, Sample]]:
    for crop_HWC, samples in items:
        chosen = [s for s in samples if s.task == "age" and s.level == "image" and s.probe is None]
        if chosen:
            yield crop_HWC, chosen[0]


# --- Phrase swap ------------------------------------------------------------------------------------------------------------------------------


def swap_phrases(analyzer: Analyzer, faces: ExplainedFaces) -> list[Swap]:
    """Two findings for each fake whose answer has two phrases to exchange; its own answer and the changed one are both teacher-forced."""
    chosen = {row: pair for row in faces.fakes if (pair := distinct_pair(faces.cited[row])) is not None}
    rows = list(chosen)
    before = _forced_masks(analyzer, faces, rows, [faces.markups[row] for row in rows])
    after = _forced_masks(analyzer, faces, rows, [exchanged(faces.markups[row], *chosen[row]) for row in rows])
    findings = []
    for row, was, now in zip(rows, before, after, strict=True):
        first, second = chosen[row]
        for place, former in ((first, second), (second, first)):
            findings.append(Swap(faces.unit(row), mask_iou(now[place], was[former]), mask_iou(now[place], was[place])))
    return findings


def distinct_pair(cited: Sequence[Cited]) -> tuple[int, int] | None:
    """The places of the two phrases whose masks overlap least: masks that coincide cannot show a move. None without two masks of two concepts."""
    pairs = [
        (mask_iou(cited[a].mask_HW, cited[b].mask_HW), a, b)
        for a, b in combinations(range(len(cited)), 2)
        if cited[a].concept != cited[b].concept and cited[a].mask_HW.any() and cited[b].mask_HW.any()
    ]
    return min(pairs)[1:] if pairs else None


def exchanged(markup: str, first: int, second: int) -> str:
    """The markup with two of its phrases in each other's place, by their number."""
    phrases = _PHRASE.findall(markup)
    phrases[first], phrases[second] = phrases[second], phrases[first]
    following = iter(phrases)
    return _PHRASE.sub(lambda _: next(following), markup)


def _forced_masks(analyzer: Analyzer, faces: ExplainedFaces, rows: Sequence[int], markups: Sequence[str]) -> list[list[MaskHW]]:
    if not rows:
        return []
    answers = analyzer.force(faces.encoded["prefix_embeds"][list(rows)], markups, "age")
    return [[resized_mask(mask_HW) for mask_HW in masks_MHW] for masks_MHW, _ in masks_by_answer(analyzer, faces.encoded, rows, answers)]


def swap_row(swaps: Sequence[Swap], *, fakes: int) -> Row:
    """`moved`: share of exchanged phrases whose mask fits their own former mask better than the one that stood there; and both mean IoUs.

    The pairs are those of least overlap, so the IoU with the place is low by choice wherever masks follow phrases.
    """
    row = {"n": float(len(swaps)), "answers": len(swaps) / 2, "fakes": float(fakes)}
    units = [swap.unit for swap in swaps]
    row |= figure("moved", [swap.phrase_iou > swap.place_iou for swap in swaps], units)
    row |= figure("iou_with_own_phrase", [swap.phrase_iou for swap in swaps], units)
    return row | figure("iou_with_own_place", [swap.place_iou for swap in swaps], units)


# --- In region, mentions ----------------------------------------------------------------------------------------------------------------------


def look_inside(faces: ExplainedFaces, regions_of: RegionsOf) -> list[Inside]:
    """One finding for each phrase of a fake whose mask is not empty and whose region the face shows."""
    findings = []
    oval_HW = oval_mask(SIDE)
    for row in faces.fakes:
        region_of = regions_of(faces.crops[row])
        if region_of is None:
            continue
        for cited in faces.cited[row]:
            region_HW = region_of(cited.concept)
            if cited.mask_HW.any() and region_HW.any():
                grown_HW = dilate(region_HW, REGION_DILATION_PX)  # the annotator cuts masks to regions grown by as much
                findings.append(Inside(faces.unit(row), float(grown_HW[cited.mask_HW].mean()), float(grown_HW[oval_HW].mean())))
    return findings


def inside_row(findings: Sequence[Inside]) -> Row:
    """`inside`: mean share over phrases; `inside_of_oval`: what the whole face as mask would reach in the same regions."""
    units = [item.unit for item in findings]
    row = {"n": float(len(findings))} | figure("inside", [item.share for item in findings], units)
    return row | figure("inside_of_oval", [item.share_of_oval for item in findings], units)


def mention_row(mentions: Sequence[Mention]) -> Row:
    """`rate`: share of real faces on which anything is named."""
    return {"n": float(len(mentions))} | figure("rate", [item.named for item in mentions], [item.unit for item in mentions])
