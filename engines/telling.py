"""What is said of faces: what localisation marks is measured and worded (`engines.wording`), and one run of the decoder over those words gives their
[SEG] states. Where the manifest leaves the words to the decoder, or nothing is marked, texts go through one decode loop.
"""

import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines import wording as measured_words
from engines.bundle import Bundle
from engines.contracts import FORGERY_TYPES, Wording
from engines.decode import End, Question
from engines.findings import FACE_PARTS, ConceptEvidence, farthest, usual_at, within
from engines.masks import MaskDrawer, at_crop_size, box_cells
from engines.prompts import Task, loc_answer, parse_markup
from engines.questions import Answer, Asked, Reader, Shown
from engines.regions import Regions
from engines.wording import MOST_PLACES

MOST_NAMED = 6
"""Places that are measured for an explanation, of which it names `MOST_PLACES`: as many as the annotator's."""


class _Words(NamedTuple):
    """What is said, in tokens, and what each phrase of it is about."""

    ids: list[int]
    told: tuple[ConceptEvidence, ...]


class _Draft(NamedTuple):
    """Words for what localisation marks."""

    one: Asked
    found: Regions
    words: _Words


class Teller:
    """Words for encoded faces and what is asked about them, each with the [SEG] states of its phrases."""

    def __init__(
        self, bundle: Bundle, reader: Reader, drawer: MaskDrawer, *, wording: Wording | None = None, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        """`wording` is the manifest's where it is None; without a region parser the decoder writes."""
        self._bundle, self._manifest = bundle, bundle.manifest
        self._reader, self._drawer = reader, drawer
        self._is_measured = (wording or self._manifest.wording) == "measured" and "region_parser" in bundle.engines
        self._clock_s = clock_s

    def tell(self, encoded: dict[str, NDArray[Any]], asked: Sequence[Asked], task: Task) -> list[Answer]:
        """Answer one question for each of `asked`, in their order."""
        if task == "loc":
            return self._reader.locate(encoded["prefix_embeds"], asked)
        told = self._worded(encoded, asked, task) if self._is_measured and "regions" in encoded else {}
        left = [number for number in range(len(asked)) if number not in told]
        told |= zip(left, self._written(encoded, [asked[number] for number in left], task), strict=True)
        return [told[number] for number in range(len(asked))]

    def tell_clean(self, encoded: dict[str, NDArray[Any]], asked: Sequence[Asked], task: Task) -> list[Answer]:
        """Answer about faces that their scores call real: what is measured on them, else localisation's sentence."""
        measured: list[list[int]] = [[] for _ in asked]
        if self._is_measured and task != "loc" and "regions" in encoded:
            faces = self._drawer.regions(encoded, [one.row for one in asked])
            measured = [self._told_clean(encoded, one, faces[one.row].drawn(self._side)) for one in asked]
        fixed = self._bundle.vocabulary.tokenizer.encode(loc_answer(False)).ids
        return [Answer(ids, words="measured") if ids else Answer(list(fixed)) for ids in measured]

    def _told_clean(self, encoded: dict[str, NDArray[Any]], one: Asked, found: Regions) -> list[int]:
        """What a face or an area that is called untouched is told; empty where too little of it is seen."""
        crop_HWC, area_HW = encoded["crops"][one.row], None
        if one.box is not None:
            area_HW = box_cells(one.box, self._side, 1.0)
        elif one.concept is not None:
            area_HW = found.mask(one.concept)
        markup = measured_words.clean(crop_HWC, found, level=one.level, asked=one.concept, area_HW=area_HW)
        return [] if markup is None else list(self._bundle.vocabulary.tokenizer.encode(markup).ids)

    def _written(self, encoded: dict[str, NDArray[Any]], asked: Sequence[Asked], task: Task) -> list[Answer]:
        """What the decoder itself writes."""
        spec = self._manifest.decoder
        places = self._places_to_name(encoded, asked) if task == "age" else [None] * len(asked)

        def question(one: Asked, to_name: tuple[str, ...] | None) -> Question:
            inputs_SE = self._reader.inputs(encoded["prefix_embeds"], one, task)
            budget = min(spec.max_new_tokens, spec.capacity - len(inputs_SE))
            return Question(inputs_SE, self._reader.trie(one.concept), budget, one.deadline_s, to_name)

        answers = [Answer(within=one.box, words="decoded") for one in asked]
        for number, written in self._reader.loop.answers(map(question, asked, places)) if asked else ():
            answers[number].ids, answers[number].seg_embeds, answers[number].end = written.ids, written.seg_embeds, written.end
        return answers

    def _places_to_name(self, encoded: dict[str, NDArray[Any]], asked: Sequence[Asked]) -> list[tuple[str, ...] | None]:
        """Where each answer may point: the concepts of what localisation marks, by the annotator's rule on the parser's regions.

        None leaves the choice to the decoder: without a parser, where nothing is marked, and for a whole face that was synthesised as a whole. There
        all is marked, and what is worth naming is what looks least like a photograph.
        """
        rows = [one.row for one in asked]
        regions = self._drawer.regions(encoded, rows)
        if not regions:
            return [None] * len(asked)
        located = self._reader.places_of(encoded, asked)
        marked = [Answer(seg_embeds=[place.seg_embed_E], within=one.box) for one, place in zip(asked, located, strict=True)]
        masks_MHW, _ = self._drawer.masks(encoded, rows, marked)
        whole = encoded["type_logits"].argmax(1) == FORGERY_TYPES.index("entire_synthesis")
        found = []
        for one, mask_HW in zip(asked, masks_MHW, strict=True):
            places = regions[one.row].named(mask_HW >= 0.5, within=one.concept, most=MOST_PLACES)
            left_to_decoder = one.level == "image" and whole[one.row]
            found.append(() if left_to_decoder else tuple(place for place in places if place in self._reader.trie(one.concept).phrases))
        return [places or None for places in found]

    def _worded(self, encoded: dict[str, NDArray[Any]], asked: Sequence[Asked], task: Task) -> dict[int, Answer]:
        """Answers, by number, in measured words; where nothing can be said so the number is missing.

        Places are measured twice: under the mask of localisation, which makes a draft, and under the masks that the draft's phrases get. What is
        told is what the second finds: the words and the evidence beside them are about the same pixels.
        """
        rows, located, told, drafts = [one.row for one in asked], self._reader.places_of(encoded, asked), dict[int, Answer](), dict[int, _Draft]()
        found = {row: face.drawn(self._side) for row, face in self._drawer.regions(encoded, rows).items()}
        marked = [Answer(seg_embeds=[place.seg_embed_E], within=one.box) for one, place in zip(asked, located, strict=True)]
        for number, (one, place, mask_HW) in enumerate(zip(asked, located, self._drawer.masks(encoded, rows, marked)[0], strict=True)):
            if one.deadline_s is not None and self._clock_s() >= one.deadline_s:
                told[number] = Answer(within=one.box, end=End.LATE)
            elif one.level == "image" or place.tampered_probability >= 0.5:
                if words := self._said(encoded, one, self._marked(encoded, one, found[one.row], mask_HW), task):
                    drafts[number] = _Draft(one, found[one.row], words)
            elif ids := self._told_clean(encoded, one, found[one.row]):
                told[number] = Answer(ids, within=one.box, words="measured")
        if task == "toe":
            return told | {number: Answer(draft.words.ids, within=draft.one.box, words="measured") for number, draft in drafts.items()}
        return told | dict(zip(drafts, self._grounded(encoded, list(drafts.values()), task), strict=True))

    def _grounded(self, encoded: dict[str, NDArray[Any]], drafts: Sequence[_Draft], task: Task) -> list[Answer]:
        """The [SEG] states of drafts, and the words for what is measured under the masks that they drive."""
        answers = [Answer(draft.words.ids, within=draft.one.box, words="measured") for draft in drafts]
        self._reader.fill_seg_embeds(encoded["prefix_embeds"], [draft.one for draft in drafts], answers, task)
        drawn = zip(*self._drawer.masks(encoded, [draft.one.row for draft in drafts], answers), strict=True)
        for number, (draft, answer) in enumerate(zip(drafts, answers, strict=True)):
            concepts = [item.concept for item in draft.words.told]
            masks = dict(zip(concepts, islice(drawn, len(concepts)), strict=True))
            shown = {concept: at_crop_size(mask_HW, self._side) for concept, (mask_HW, _) in masks.items()}
            evidence = measured_words.measured(encoded["crops"][draft.one.row], draft.found, shown, level=draft.one.level)
            if words := self._said(encoded, draft.one, evidence, task):
                embeds = dict(zip(concepts, answer.seg_embeds, strict=True))
                seen = [Shown(*masks[item.concept], item.measured, usual_at(item.concept, item.measured, item.claim.extent)) for item in words.told]
                embeds_told = [embeds[item.concept] for item in words.told]
                answers[number] = Answer(words.ids, embeds_told, within=draft.one.box, shown=seen, words="measured")
        return answers

    def _marked(self, encoded: dict[str, NDArray[Any]], one: Asked, found: Regions, mask_HW: NDArray[np.float32]) -> tuple[ConceptEvidence, ...]:
        """What is measured where localisation marks; of a face that was synthesised as a whole, where it looks least like a photograph."""
        crop_HWC = encoded["crops"][one.row]
        if one.level == "image" and self._type(encoded, one.row) == "entire_synthesis":
            return farthest({part: found.mask(part) for part in FACE_PARTS}, found, crop_HWC)
        names = self._drawer.regions(encoded, [one.row])[one.row].named(mask_HW >= 0.5, within=one.concept, most=MOST_NAMED)
        if not names and one.concept is not None:
            names = (one.concept,)  # it was asked by name, and something of it is marked
        marked_HW = at_crop_size(mask_HW, self._side)
        return measured_words.measured(crop_HWC, found, {name: within(name, marked_HW, found) for name in names}, level=one.level)

    def _said(self, encoded: dict[str, NDArray[Any]], one: Asked, evidence: Sequence[ConceptEvidence], task: Task) -> _Words | None:
        """What departs, in as many sentences as fit; None where there is nothing to say."""
        spec = self._manifest.decoder
        room = min(spec.max_new_tokens, spec.capacity - len(self._reader.inputs(encoded["prefix_embeds"], one, task)))
        for most in range(MOST_PLACES, 0, -1):
            said = measured_words.worded(evidence, forgery_type=self._type(encoded, one.row), level=one.level, asked=one.concept, most=most)
            if said is None:
                return None
            ids = self._bundle.vocabulary.tokenizer.encode(parse_markup(said.markup)[0] if task == "toe" else said.markup).ids
            if len(ids) <= room:
                return _Words(ids, said.told)
        return None

    @property
    def _side(self) -> int:
        return self._manifest.preprocess.image_size

    def _type(self, encoded: dict[str, NDArray[Any]], row: int) -> str:
        return FORGERY_TYPES[int(encoded["type_logits"][row].argmax())]
