"""Text in and out of the language decoder: special tokens, task prompts, markup to spans, and the automaton that keeps markup closed.

Markup is `<p> phrase </p> [SEG]`: a phrase, then the token whose hidden state drives its mask (GLaMM's grounded conversation form).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engines import fict

Task = Literal["age", "toe", "loc"]
"""Image-level tasks answered in text: artifact-grounding explanation, text-only explanation, localisation."""

PAD, BOS, SEP, EOS, PHRASE, PHRASE_END, SEG = "<pad>", "<bos>", "<sep>", "<eos>", "<p>", "</p>", "[SEG]"
REGION, BBOX, DET, CLS = "<region>", "<bbox>", "[DET]", "[CLS]"
SPECIAL_TOKENS = (PAD, BOS, SEP, EOS, PHRASE, PHRASE_END, SEG, REGION, BBOX, DET, CLS)
"""In id order. `<region>`, `<bbox>`, [DET] and [CLS] belong to the region, box and score tasks; they have ids from the first tokenizer on."""

PROMPTS: dict[Task, str] = {
    "age": "Explain what is manipulated on this face and show where.",
    "toe": "Explain what is manipulated on this face.",
    "loc": "Show the manipulated area.",
}
LOC_ANSWER = "The manipulated area is here. [SEG]"
LOC_CLEAN_ANSWER = "No area of this face is manipulated."

TaskKind = Literal["det", "cls", "loc", "toe", "age"]
Level = Literal["image", "region", "box"]
"""Of what is asked: the whole face, a region of FICT, or a box."""

DET_PROMPT = "Is this face real or manipulated?"
CLS_PROMPT = "What kind of manipulation is this?"
_AREA_PROMPTS: dict[Task, str] = {
    "age": "Explain what is manipulated {where} and show where.",
    "toe": "Explain what is manipulated {where}.",
    "loc": "Show the manipulated area {where}.",
}
_AREA_LOC_ANSWER, _AREA_LOC_CLEAN_ANSWER = "The manipulated area {where} is here. [SEG]", "No area {where} is manipulated."
_TYPE_WORDS = {"swap": "identity swap or expression swap"}
"""`swap` stands where identity and expression swap are not told apart; every other type is its own id in words."""

_PHRASE_PATTERN = re.compile(r" ?<p> (.+?) </p> \[SEG\]")
_BARE_SEG_PATTERN = re.compile(r" ?\[SEG\]")


class Span(NamedTuple):
    """A phrase in the plain text: Unicode code points, end exclusive."""

    start: int
    end: int
    phrase: str


def parse_markup(markup: str) -> tuple[str, tuple[Span, ...]]:
    """Split markup into the plain text and its phrases; `text[start:end] == phrase`. Raises ValueError where markup does not close."""
    text, spans, position = "", [], 0
    for match in _PHRASE_PATTERN.finditer(markup):
        text += _BARE_SEG_PATTERN.sub("", markup[position : match.start()])
        if text and not text.endswith(" "):
            text += " "
        spans.append(Span(len(text), len(text) + len(match[1]), match[1]))
        text += match[1]
        position = match.end()
    text += _BARE_SEG_PATTERN.sub("", markup[position:])
    if any(token in text for token in (PHRASE, PHRASE_END)):
        raise ValueError(f"markup does not close: {markup[:120]!r}; every <p> needs its </p> [SEG]")
    return text, tuple(spans)


def question(task: TaskKind, level: Level = "image", phrase: str | None = None) -> str:
    """What is asked in one of the eleven tasks; `phrase` names the region of a region query in FICT's words, `<bbox>` stands for the box feature.

    Raises ValueError for a task that is none of the eleven and for a phrase without a region query.
    """
    if (level == "region") != (phrase is not None):
        raise ValueError(f"level {level} with the phrase {phrase!r}: region queries name a region, all others name none")
    if task == "det" or task == "cls":
        if level != "image":
            raise ValueError(f"{task} at level {level} is none of the eleven tasks; det and cls are asked of the image")
        return DET_PROMPT if task == "det" else CLS_PROMPT
    return PROMPTS[task] if level == "image" else _AREA_PROMPTS[task].format(where=_where(phrase, BBOX))


def det_answer(is_fake: bool) -> str:
    """What a perfect system answers to `det`."""
    return f"{'fake' if is_fake else 'real'} {DET}"


def cls_answer(forgery_type: str) -> str:
    """What a perfect system answers to `cls`: the forgery type in words."""
    return f"{_TYPE_WORDS.get(forgery_type, forgery_type.replace('_', ' '))} {CLS}"


def loc_answer(tampered: bool, level: Level = "image", phrase: str | None = None) -> str:
    """What a perfect system answers to `loc`: one [SEG] where something of the asked area is manipulated, none where it is clean."""
    if level == "image":
        return LOC_ANSWER if tampered else LOC_CLEAN_ANSWER
    return (_AREA_LOC_ANSWER if tampered else _AREA_LOC_CLEAN_ANSWER).format(where=_where(phrase, "this box"))


def _where(phrase: str | None, box: str) -> str:
    return f"in {box}" if phrase is None else f"on the {phrase}"


class Vocabulary:
    """A tokenizer with the ids this package relies on."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: dict[str, int] = {}
        for token in SPECIAL_TOKENS:
            token_id = tokenizer.token_to_id(token)
            if token_id is None:
                raise ValueError(f"the tokenizer lacks {token!r}; retrain it with engines.prompts.SPECIAL_TOKENS")
            self.ids[token] = token_id
        self.size = tokenizer.get_vocab_size()
        special = set(self.ids.values())
        look_alikes = [i for token, i in tokenizer.get_vocab().items() if i not in special and set("<[") & set(token)]
        never = (PAD, BOS, SEP, PHRASE_END, REGION, BBOX, DET, CLS, SEG)  # a [SEG] without a phrase would put masks and phrases out of step
        self.blocked = np.array([*(self.ids[token] for token in never), *look_alikes])
        """What no answer says outside of a phrase: these, and ordinary tokens that could spell markup letter by letter."""

    def prompt_ids(self, task: Task, level: Level = "image", phrase: str | None = None) -> list[int]:
        """The tokens of `question(task, level, phrase)`."""
        return self.question_ids(question(task, level, phrase))

    def question_ids(self, prompt: str) -> list[int]:
        """`<bos>` prompt `<sep>`."""
        return [self.ids[BOS], *self.tokenizer.encode(prompt).ids, self.ids[SEP]]

    def answer_ids(self, markup: str) -> list[int]:
        """Answer, then `<eos>`."""
        return [*self.tokenizer.encode(markup).ids, self.ids[EOS]]

    def markup(self, ids: Sequence[int]) -> str:
        """Ids back to markup, one space around each special token; `<eos>` and padding are dropped."""
        silent = {self.ids[token] for token in (PAD, BOS, SEP, EOS)}
        names = {self.ids[token]: token for token in SPECIAL_TOKENS}
        out: list[str] = []
        run: list[int] = []
        for token_id in [*ids, self.ids[EOS]]:
            if token_id in names:
                if run:
                    out.append(self.tokenizer.decode(run).strip() if out else self.tokenizer.decode(run).lstrip())
                    run = []
                if token_id not in silent:
                    out.append(names[token_id])
            else:
                run.append(token_id)
        return re.sub(r" ([.,;:])", r"\1", " ".join(out))


@dataclass(frozen=True)
class PhraseTrie:
    """Which tokens may follow inside `<p>`: the FICT phrases as token sequences."""

    phrases: Mapping[str, tuple[int, ...]]
    """By concept, the tokens of its phrase and `</p>`."""

    @staticmethod
    def of(vocabulary: Vocabulary, within: str | None = None) -> "PhraseTrie":
        """Build from every concept of FICT, or from one and what lies below it."""
        return PhraseTrie(
            {
                concept: (*vocabulary.tokenizer.encode(f" {phrase}").ids, vocabulary.ids[PHRASE_END])
                for phrase, concept in fict.by_phrase().items()
                if within is None or within in fict.concepts()[concept].path
            }
        )

    def only(self, concepts: Iterable[str]) -> "PhraseTrie":
        """Those of these concepts that it holds."""
        return PhraseTrie({concept: self.phrases[concept] for concept in concepts if concept in self.phrases})

    @cached_property
    def children(self) -> Mapping[tuple[int, ...], tuple[int, ...]]:
        """Prefix of a phrase to its allowed next ids; a complete phrase allows `</p>`."""
        found: dict[tuple[int, ...], set[int]] = {}
        for ids in self.phrases.values():
            for end, token in enumerate(ids):
                found.setdefault(ids[:end], set()).add(token)
        return {prefix: tuple(sorted(allowed)) for prefix, allowed in found.items()}

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest phrase, `</p>` included."""
        return max(len(ids) for ids in self.phrases.values())


class MarkupAutomaton:
    """Follows one answer token by token and says what may come next: markup closes and names only FICT concepts, whatever the weights say."""

    def __init__(self, vocabulary: Vocabulary, trie: PhraseTrie, max_new_tokens: int, places: Iterable[str] | None = None) -> None:
        """With `places` only these concepts are named, each once, in the order that the weights want; None leaves the choice to the weights."""
        self._ids, self._trie = vocabulary.ids, trie
        self._blocked = vocabulary.blocked
        self._phrase: tuple[int, ...] | None = None
        self._seg_due = False
        self._left = max_new_tokens
        self._unnamed = None if places is None else trie.only(places)
        self.named_all = False
        """The answer ended because it went on to name a place when all `places` were named."""

    def allow(self, logits_V: NDArray[np.float32]) -> int:
        """Return the best allowed token and move on. The last token of the budget is `<eos>`."""
        ids = self._ids
        self._left -= 1
        if self._seg_due:
            self._seg_due = False
            return ids[SEG]
        if self._phrase is not None:
            return self._within_phrase(logits_V, self._phrase)
        if self._left <= 0:
            return ids[EOS]
        open_logits = logits_V.copy()
        open_logits[self._blocked] = -np.inf
        token = int(open_logits.argmax())
        if token == ids[PHRASE]:
            if self._unnamed is not None and not self._unnamed.phrases:
                self.named_all = True
                return ids[EOS]
            if self._left < self._trie.longest + 3:  # no room to close another phrase
                self._left = 0
                return ids[EOS]
            self._phrase = ()
        return token

    def _within_phrase(self, logits_V: NDArray[np.float32], phrase: tuple[int, ...]) -> int:
        allowed = (self._trie if self._unnamed is None else self._unnamed).children[phrase]
        token = allowed[int(logits_V.take(allowed).argmax())]
        self._phrase = (*phrase, token)
        if token == self._ids[PHRASE_END]:
            if self._unnamed is not None:
                self._unnamed = self._unnamed.only(concept for concept, ids in self._unnamed.phrases.items() if ids != self._phrase)
            self._phrase, self._seg_due = None, True
        return token

    @property
    def exhausted(self) -> bool:
        """The budget ran out before the model ended its answer."""
        return self._left <= 0
