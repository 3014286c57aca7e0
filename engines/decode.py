"""One decode loop for every backend: questions are admitted as slots fall free, each is answered greedily, and what ends is handed out at once.

Row i of the KV cache belongs to the i-th live question, so a step runs live rows only. New questions are read together, in a cache of their own, and
their rows are placed where others ended. The cache is as long as its longest row needs, in eighths of the whole capacity: attention over slots costs
by capacity, not by what is used. The state never leaves the backend (`engines.runtime.Bound`).

A step runs the last token of every row and guesses of those behind it (`engines.drafts`): where a guess is what the row then chooses, the step has
written one token more. A wrong guess costs nothing but its place: it is overwritten before anything sees it, as padding is.

Shapes: B rows, S tokens of a question or a step, E width, V vocabulary.
"""

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle import Bundle
from engines.contracts import DecoderSpec, EngineError
from engines.drafts import GUESSES, Drafts
from engines.prompts import EOS, SEG, MarkupAutomaton, PhraseTrie
from engines.runtime import Bound, Engine

SLOTS = 16
"""Questions answered together: past 8-16 rows a slot cache gains nothing on a CPU."""
STEP_TOKENS = 12
"""Tokens of all rows in one step with guesses: from seven rows on nothing is guessed. ONNX Runtime multiplies up to twelve rows at a time on x86, so
the thirteenth token costs more than it is likely to save."""


class End(StrEnum):
    """Why a text ended."""

    WHOLE = "whole"
    BUDGET = "budget"
    DEADLINE = "deadline"
    NAMED = "named"
    """Every place that it may name was named, and it went on to name another: the sentence that it was in is not part of it."""
    LATE = "late"
    """The deadline had passed before there was a slot: nothing was decoded."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and how far the answer may go."""

    inputs_SE: NDArray[np.float32]
    """(S, E) float32: the face and the prompt, embedded."""
    trie: PhraseTrie
    """The phrases that the answer may use."""
    budget: int
    """Tokens of the answer, `<eos>` included; with the question they fit the cache."""
    deadline_s: float | None = None
    """On the loop's clock; an answer that meets it ends there, in the middle of a sentence."""
    places: tuple[str, ...] | None = None
    """FICT ids that the answer may name, each once; None leaves that to the weights."""


@dataclass(slots=True)
class Written:
    """An answer as it was written; markup of one that is not whole closes up to its last whole sentence."""

    ids: list[int] = field(default_factory=list)
    seg_embeds: list[NDArray[np.float32]] = field(default_factory=list)
    """(E,) float32: the state that follows each [SEG]."""
    end: End = End.WHOLE


@dataclass(slots=True)
class _Row:
    """A live row of the cache."""

    number: int
    automaton: MarkupAutomaton
    deadline_s: float
    position: int
    """The slot of the next token that is run."""
    written: Written = field(default_factory=Written)
    is_live: bool = True

    def go_on(self, logits_V: NDArray[np.float32], eos: int, now_s: float) -> None:
        """Choose the next token, or end. Raises EngineError where the largest of the logits is NaN."""
        if now_s >= self.deadline_s:
            self.is_live, self.written.end = False, End.DEADLINE
            return
        token = self.automaton.allow(logits_V)
        if np.isnan(logits_V[token]):  # the largest of some numbers is NaN where any of them is
            raise EngineError("the decoder gives logits that are no numbers; hold the engine against its checkpoint with: fifa-stream engine check")
        if token == eos:
            self.is_live = False
            self.written.end = End.NAMED if self.automaton.named_all else End.BUDGET if self.automaton.exhausted else End.WHOLE
        else:
            self.written.ids.append(token)


@dataclass(frozen=True, slots=True)
class _Cache:
    bound: Bound
    length: int


def cache_lengths(engine: Engine, spec: DecoderSpec) -> tuple[int, ...]:
    """Lengths that the cache may have, rising: eighths of the capacity where the graph leaves that axis open, else the capacity alone."""
    axis = next((tensor.shape[2] for tensor in engine.inputs if tensor.name == "past_k0"), spec.capacity)
    if isinstance(axis, int):
        return (spec.capacity,)
    return tuple(sorted({math.ceil(spec.capacity * eighths / 8) for eighths in range(1, 9)}))


class DecodeLoop:
    """Answers questions with the decoder of a bundle. Not thread-safe: it runs an engine."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        slots: int = SLOTS,
        lengths: Sequence[int] | None = None,
        drafts: Drafts | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`slots` questions are answered together; `lengths` of the cache rise up to the capacity, None takes `cache_lengths`.

        `drafts` guesses what comes next; None guesses on a CPU, and not on a GPU, where graphs are recorded for steps of one token.
        """
        self._engine, self._spec, self._slots, self._clock_s = bundle.engines["decoder"], bundle.manifest.decoder, slots, clock_s
        self._vocabulary, self._table_VE = bundle.vocabulary, bundle.token_embeddings_VE
        self._eos, self._seg = (bundle.vocabulary.ids[token] for token in (EOS, SEG))
        self._lengths = tuple(lengths or cache_lengths(self._engine, self._spec))
        self._drafts = drafts or Drafts(GUESSES if bundle.manifest.backend == "onnxruntime" else 0)

    def answers(self, questions: Iterable[Question]) -> Iterator[tuple[int, Written]]:
        """Answer every question; yield the number of the question and the answer as soon as it ends.

        The next question is taken when a slot is free, no sooner. Raises ValueError for one that does not fit the cache.
        """
        waiting = enumerate(questions)
        cache: _Cache | None = None
        rows: list[_Row] = []
        while True:
            ended = [slot for slot, row in enumerate(rows) if not row.is_live]
            yield from ((rows[slot].number, rows[slot].written) for slot in ended)
            admitted: list[tuple[int, Question]] = []
            while len(admitted) < self._slots - len(rows) + len(ended) and (following := next(waiting, None)) is not None:
                number, question = following
                if question.deadline_s is not None and question.deadline_s <= self._clock_s():
                    yield number, Written(end=End.LATE)
                else:
                    admitted.append((number, question))
            if admitted:
                cache, ended = self._seat(cache, rows, ended, admitted), ended[len(admitted) :]
            if cache is None or len(ended) == len(rows):
                return
            if ended:
                _close_up(cache.bound, rows, ended)
            if all(row.is_live for row in rows):
                cache = self._fitted(cache, rows)
                self._step(cache, rows)

    def read(self, inputs: Sequence[NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
        """Run over (S, E) inputs together and decode nothing: `logits` (B, S, V) and `hidden` (B, S, E), S of the longest."""
        return self._read(inputs)[1]

    def _read(self, inputs: Sequence[NDArray[np.float32]]) -> tuple[_Cache, dict[str, NDArray[Any]]]:
        """Fill a cache of its own, a row for each of the inputs."""
        lengths = [len(row_SE) for row_SE in inputs]
        # Shorter inputs are padded on the right: what a pad writes is overwritten before anything sees it.
        inputs_BSE = np.zeros((len(inputs), max(lengths), self._spec.width), np.float32)
        for row_SE, padded_SE in zip(inputs, inputs_BSE, strict=True):
            padded_SE[: len(row_SE)] = row_SE
        cache = self._empty(len(inputs), self._lengths[self._at(max(lengths))])
        positions_BS = np.tile(np.arange(max(lengths), dtype=np.int64), (len(inputs), 1))
        return cache, cache.bound.run({"inputs_embeds": inputs_BSE, "positions": positions_BS})

    def _seat(self, cache: _Cache | None, rows: list[_Row], ended: list[int], admitted: list[tuple[int, Question]]) -> _Cache:
        """Read new questions together and give them the slots of rows that ended; the first ones make the cache."""
        for _, question in admitted:
            if not 0 < question.budget <= self._spec.capacity - len(question.inputs_SE):
                raise ValueError(
                    f"a question of {len(question.inputs_SE)} tokens with an answer of {question.budget} does not fit the cache of "
                    f"{self._spec.capacity} slots; shorten one"
                )
        fresh, out = self._read([question.inputs_SE for _, question in admitted])
        now_s = self._clock_s()
        slots = ended[: len(admitted)] if cache else range(len(admitted))
        for slot, (number, question), logits_SV in zip(slots, admitted, out["logits"], strict=True):
            deadline_s = math.inf if question.deadline_s is None else question.deadline_s
            automaton = MarkupAutomaton(self._vocabulary, question.trie, question.budget, question.places)
            row = _Row(number, automaton, deadline_s, len(question.inputs_SE))
            row.go_on(logits_SV[row.position - 1], self._eos, now_s)
            rows[slot : slot + 1] = [row]
        if cache is None:
            return fresh
        cache = self._fitted(cache, rows)
        cache.bound.place(slots, fresh.bound, range(len(admitted)))
        return cache

    def _step(self, cache: _Cache, rows: list[_Row]) -> None:
        """Run the last token of every row with what is guessed behind it; choose the next tokens as far as the guesses are right."""
        room = min(cache.length - max(row.position for row in rows), self._at_once(rows)) - 1
        lines = [[row.written.ids[-1], *self._drafts.guess(row.written.ids, room)] for row in rows]
        longest = max(len(line) for line in lines)
        tokens_BS = np.array([[*line, *line[-1:] * (longest - len(line))] for line in lines])
        positions_BS = np.array([row.position for row in rows], np.int64)[:, None] + np.arange(longest)
        out = cache.bound.run({"inputs_embeds": self._table_VE[tokens_BS], "positions": positions_BS})
        now_s = self._clock_s()
        for row, line, logits_SV, hidden_SE in zip(rows, lines, out["logits"], out["hidden"], strict=True):
            for token, guess, logits_V, hidden_E in zip(line, [*line[1:], None], logits_SV, hidden_SE, strict=False):
                if token == self._seg:
                    row.written.seg_embeds.append(hidden_E.copy())
                row.position += 1
                row.go_on(logits_V, self._eos, now_s)
                if not row.is_live or row.written.ids[-1] != guess:
                    break
            if not row.is_live:
                self._drafts.learn(row.written.ids)

    def _fitted(self, cache: _Cache, rows: list[_Row]) -> _Cache:
        """The cache, or its rows in another: longer when a next token does not fit, shorter when a whole length stays to spare."""
        tokens = max(row.position for row in rows) + self._at_once(rows)
        wanted, held = self._at(min(tokens, self._spec.capacity)), self._lengths.index(cache.length)
        if wanted <= held <= wanted + 1:
            return cache
        fitted = self._empty(len(rows), self._lengths[wanted if wanted > held else wanted + 1])
        fitted.bound.place(range(len(rows)), cache.bound, range(len(rows)))
        return fitted

    def _at_once(self, rows: list[_Row]) -> int:
        """Tokens of each row in a step, guesses among them."""
        return max(1, min(1 + self._drafts.guesses, STEP_TOKENS // len(rows)))

    def _at(self, tokens: int) -> int:
        """Which is the smallest of the lengths that holds so many tokens."""
        return bisect_left(self._lengths, tokens)

    def _empty(self, rows: int, length: int) -> _Cache:
        spec = self._spec
        names = [f"{kind}{layer}" for layer in range(spec.num_layers) for kind in "kv"]
        shape = (rows, spec.num_heads, length, spec.head_dim)
        bound = self._engine.bind({f"past_{name}": f"present_{name}" for name in names}, {f"past_{name}": shape for name in names})
        return _Cache(bound, length)


def _close_up(bound: Bound, rows: list[_Row], ended: list[int]) -> None:
    """Move the last live rows into the slots of rows that ended, so that live rows stand first."""
    kept = len(rows) - len(ended)
    holes, moving = [slot for slot in ended if slot < kept], [slot for slot in range(kept, len(rows)) if slot not in ended]
    bound.place(holes, bound, moving)
    for hole, slot in zip(holes, moving, strict=True):
        rows[hole] = rows[slot]
    del rows[kept:]
