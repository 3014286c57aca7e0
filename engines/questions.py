"""What is asked about faces, in tokens, and what one run of the decoder reads behind a question: nothing here is decoded.

What is asked stands in the prompt, as FICT's words or as the `<bbox>` embedding of the box encoder. Localisation has two answers, so the odds of
their first words tell which begins.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines import fict
from engines.bundle import Bundle
from engines.contracts import AreaQuery, Box, Words
from engines.decode import SLOTS, DecodeLoop, End
from engines.drafts import Drafts
from engines.prompts import BBOX, SEG, Level, PhraseTrie, Task, loc_answer

REBUILD_FOR_QUERIES = "export one that was trained on instruction data"


class Shown(NamedTuple):
    """The mask of one [SEG]."""

    probability_HW: NDArray[np.float32]
    confidence: np.float32
    measured: dict[str, float]
    usual: dict[str, float]


@dataclass(slots=True)
class Answer:
    """One answer: its tokens and, for each [SEG], the hidden state that drives the mask."""

    ids: list[int] = field(default_factory=list)
    seg_embeds: list[NDArray[np.float32]] = field(default_factory=list)
    """(E,) float32 each."""
    end: End = End.WHOLE
    within: Box | None = None
    """The asked box, in pixels of the crop: masks end a cell beyond it."""
    tampered_probability: float | None = None
    """Localisation: how sure the answer is that something is manipulated."""
    concept: str | None = None
    """The asked region, which a [SEG] without a phrase speaks of."""
    shown: list[Shown] | None = None
    """What each [SEG] shows on the face that was asked about, where it was looked at already."""
    words: Words = "fixed"

    @property
    def truncated(self) -> bool:
        """A limit ended the answer, not the model."""
        return self.end not in (End.WHOLE, End.NAMED)


@dataclass(frozen=True, slots=True)
class Place:
    """What localisation reads before anything is decided."""

    tampered_probability: float
    seg_embed_E: NDArray[np.float32]
    """The state that drives the mask, should the answer be tampered."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about one row of an encoded batch, in tokens."""

    row: int
    level: Level = "image"
    phrase: str | None = None
    concept: str | None = None
    box: Box | None = None
    box_embed_E: NDArray[np.float32] | None = None
    deadline_s: float | None = None
    place: Place | None = None
    """What localisation read, where it has looked already."""


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logistic function without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), np.float32)


class Reader:
    """Questions to tokens, through one bundle's vocabulary, box encoder and decoder."""

    def __init__(self, bundle: Bundle, *, slots: int = SLOTS, drafts: Drafts | None = None, clock_s: Callable[[], float] = time.monotonic) -> None:
        """`slots` questions are read together; `drafts` as in `DecodeLoop`."""
        self._bundle = bundle
        self._manifest = bundle.manifest
        self._slots, self._drafts, self._clock_s = slots, drafts, clock_s
        self._tries: dict[str | None, PhraseTrie] = {}

    @cached_property
    def loop(self) -> DecodeLoop:
        """Made when something is explained: scoring needs no decoder."""
        return DecodeLoop(self._bundle, slots=self._slots, drafts=self._drafts, clock_s=self._clock_s)

    def asked(self, encoded: dict[str, NDArray[Any]], rows: Sequence[int], queries: Sequence[AreaQuery | None]) -> list[Asked]:
        """Check queries and put them in words; boxes through the box encoder, in one run."""
        asked = [self.in_words(row, query) for row, query in zip(rows, queries, strict=True)]
        with_box = [one for one in asked if one.box is not None]
        if not with_box:
            return asked
        owners = [one.row for one in with_box]
        out = self._bundle.engines["box_encoder"].run(
            {
                "image_embeds": encoded["image_embeds"][owners],
                "artifact_logits": encoded["artifact_logits"][owners],
                "box": np.array([one.box for one in with_box], np.float32),
            }
        )
        embeds = iter(out["box_embeds"])
        return [one if one.box is None else replace(one, box_embed_E=next(embeds)) for one in asked]

    def in_words(self, row: int, query: AreaQuery | None) -> Asked:
        """A query in words. Raises ValueError as `Analyzer.ask`."""
        if query is None:
            return Asked(row)
        side, level = self._manifest.preprocess.image_size, "region" if isinstance(query, str) else "box"
        if level not in self._manifest.query_levels:
            known = ", ".join(self._manifest.query_levels) or "none"
            raise ValueError(f"the bundle {self._manifest.name} answers no {level} query (it answers: {known}); {REBUILD_FOR_QUERIES}")
        if isinstance(query, str):
            if query not in fict.concepts():
                raise ValueError(f"{query!r} is no FICT concept; use an id such as right_cheek")
            return Asked(row, "region", phrase=fict.concepts()[query].phrase, concept=query)
        x0, y0, x1, y1 = query
        if not (0 <= x0 < x1 <= side and 0 <= y0 < y1 <= side):
            raise ValueError(f"box {query} is empty or leaves the {side} px crop; clip it first")
        return Asked(row, "box", box=query)

    def locate(self, prefix_embeds_BPE: NDArray[np.float32], asked: Sequence[Asked]) -> list[Answer]:
        """Answers of localisation to each of `asked`."""
        places = self.places(prefix_embeds_BPE, asked)
        return [self.located_answer(one, place, place.tampered_probability) for one, place in zip(asked, places, strict=True)]

    def located_answer(self, one: Asked, place: Place, probability: float) -> Answer:
        """What is answered at that probability."""
        tampered = probability >= 0.5
        ids = self._bundle.vocabulary.tokenizer.encode(loc_answer(tampered, one.level, one.phrase)).ids
        return Answer(ids, [place.seg_embed_E] if tampered else [], within=one.box, tampered_probability=probability, concept=one.concept)

    def located(self, encoded: dict[str, NDArray[Any]], asked: Sequence[Asked]) -> list[Asked]:
        """The same questions with what localisation reads of each, on which texts and answers both rest."""
        return [replace(one, place=place) for one, place in zip(asked, self.places_of(encoded, asked), strict=True)]

    def places_of(self, encoded: dict[str, NDArray[Any]], asked: Sequence[Asked]) -> list[Place]:
        """What localisation reads of each question, looking only where it has not looked already."""
        read = iter(self.places(encoded["prefix_embeds"], [one for one in asked if one.place is None]))
        return [one.place or next(read) for one in asked]

    def places(self, prefix_embeds_BPE: NDArray[np.float32], asked: Sequence[Asked]) -> list[Place]:
        """Localisation has two answers, so nothing is decoded: one run over the question and the longer answer tells which begins, and its [SEG]."""
        vocabulary, places = self._bundle.vocabulary, []
        for first in range(0, len(asked), self._slots):
            together = asked[first : first + self._slots]
            either = [[vocabulary.tokenizer.encode(loc_answer(state, one.level, one.phrase)).ids for state in (True, False)] for one in together]
            inputs = [self.inputs(prefix_embeds_BPE, one, "loc", behind=tampered) for one, (tampered, _) in zip(together, either, strict=True)]
            out = self.loop.read(inputs)
            for row, (inputs_SE, (tampered, clean)) in enumerate(zip(inputs, either, strict=True)):
                begins = len(inputs_SE) - len(tampered)
                begun_V = out["logits"][row, begins - 1]
                probability = float(sigmoid(begun_V[tampered[0]] - begun_V[clean[0]]))
                places.append(Place(probability, out["hidden"][row, begins + tampered.index(vocabulary.ids[SEG])].copy()))
        return places

    def trie(self, concept: str | None) -> PhraseTrie:
        """The phrases an answer may use: all of FICT, or those of the asked concept and below it."""
        if concept not in self._tries:
            self._tries[concept] = PhraseTrie.of(self._bundle.vocabulary, concept)
        return self._tries[concept]

    def force(self, prefix_embeds_BPE: NDArray[np.float32], markups: Sequence[str], task: Task) -> list[Answer]:
        """What each row would mean had it written this markup: the [SEG] states of one run over question and answer, nothing decoded.

        Raises ValueError for markup that leaves no room in the cache.
        """
        capacity, vocabulary = self._manifest.decoder.capacity, self._bundle.vocabulary
        answers = [Answer(vocabulary.tokenizer.encode(markup).ids) for markup in markups]
        if not answers:
            return []
        asked = [Asked(row) for row in range(len(answers))]
        taken = max(len(self.inputs(prefix_embeds_BPE, one, task)) for one in asked)
        told = max(len(answer.ids) for answer in answers)
        if taken + told > capacity:
            raise ValueError(f"an answer of {told} tokens does not fit: the cache has {capacity} slots, the question takes {taken}; shorten it")
        self.fill_seg_embeds(prefix_embeds_BPE, asked, answers, task)
        return answers

    def fill_seg_embeds(self, prefix_embeds_BPE: NDArray[np.float32], asked: Sequence[Asked], answers: Sequence[Answer], task: Task) -> None:
        """Give answers the [SEG] states that they have behind their questions, a few rows at a time."""
        seg = self._bundle.vocabulary.ids[SEG]
        for first in range(0, len(answers), self._slots):
            together = answers[first : first + self._slots]
            behind = zip(asked[first : first + self._slots], together, strict=True)
            inputs = [self.inputs(prefix_embeds_BPE, one, task, behind=answer.ids) for one, answer in behind]
            for answer, inputs_SE, hidden_SE in zip(together, inputs, self.loop.read(inputs)["hidden"], strict=True):
                begins = len(inputs_SE) - len(answer.ids)
                answer.seg_embeds = [hidden_SE[begins + at].copy() for at, token in enumerate(answer.ids) if token == seg]

    def inputs(self, prefix_embeds_BPE: NDArray[np.float32], one: Asked, task: Task, behind: Sequence[int] = ()) -> NDArray[np.float32]:
        """(S, E) the face, the prompt and what stands `behind` it."""
        ids = [*self._bundle.vocabulary.prompt_ids(task, one.level, one.phrase), *behind]
        text_LE = self._bundle.token_embeddings_VE[ids]
        if one.box_embed_E is not None:
            text_LE[ids.index(self._bundle.vocabulary.ids[BBOX])] = one.box_embed_E
        return np.concatenate([prefix_embeds_BPE[one.row], text_LE])
