"""What was said of it: corpus scores against references, and how varied the texts are.

METEOR 1.5, CIDEr, ROUGE-L and BLEU-4 are pycocoevalcap's, after its PTB tokenizer, as COCO caption evaluation computes them; METEOR and the tokenizer
are Java programs. nltk's METEOR is another metric: never mix the two. A metric without a value on its input raises `UndefinedMetric`.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from shutil import which
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocoevalcap.bleu.bleu_scorer import BleuScorer, cook_test, precook
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from trainer.fifa_bench.intervals import UndefinedMetric

SILENCE = "."
"""Stands for an empty text before the tokenizer, which drops lines of nothing and would shift all that follow; it leaves no word."""


class TextScores(NamedTuple):
    """Corpus scores against references: METEOR and ROUGE-L in [0, 1] (papers print them times 100), CIDEr in [0, 10]."""

    meteor: float
    cider: float
    rouge_l: float


class CorpusScores(NamedTuple):
    """Corpus scores, and the scores of each text in the order given. METEOR pools its counts: its corpus score is not the mean of `meteor_N`."""

    meteor: float
    cider: float
    rouge_l: float
    bleu_4: float
    meteor_N: NDArray[np.float64]
    cider_N: NDArray[np.float64]
    rouge_l_N: NDArray[np.float64]


class TextScorer:
    """METEOR's process and the tokenized texts; made by `text_scorer`."""

    def __init__(self, meteor: Meteor, texts: Iterable[str]) -> None:
        self._meteor = meteor
        self._statistics: dict[tuple[str, tuple[str, ...]], str] = {}
        plain = sorted({_one_line(text) for text in texts})
        tokenized = PTBTokenizer().tokenize({index: [{"caption": text}] for index, text in enumerate(plain)}) if plain else {}
        self._tokenized = {text: tokenized[index][0] for index, text in enumerate(plain)}

    def __call__(self, predicted: Sequence[str], references: Sequence[Sequence[str]]) -> CorpusScores:
        """Score texts that were announced to `text_scorer`, each against its references. Raises UndefinedMetric without texts."""
        if not predicted:
            raise UndefinedMetric("no texts")
        said = {index: [self._tokenized[_one_line(text)]] for index, text in enumerate(predicted)}
        wanted = {index: [self._tokenized[_one_line(text)] for text in texts] for index, texts in enumerate(references)}
        meteor, meteor_N = self._pooled([self._statistic(said[index][0], tuple(wanted[index])) for index in said])
        cider, cider_N = Cider().compute_score(wanted, said)
        rouge_l, rouge_l_N = Rouge().compute_score(wanted, said)
        bleu = BleuScorer(n=4)
        for index, (text,) in said.items():
            bleu += (text, wanted[index])
        bleu_4 = bleu.compute_score(option="closest")[0][3]
        return CorpusScores(meteor, float(cider), float(rouge_l), float(bleu_4), meteor_N, np.asarray(cider_N), np.asarray(rouge_l_N))

    def _statistic(self, text: str, references: tuple[str, ...]) -> str:
        if (text, references) not in self._statistics:
            self._statistics[text, references] = self._meteor._stat(text, list(references))
        return self._statistics[text, references]

    def _pooled(self, statistics: Sequence[str]) -> tuple[float, NDArray[np.float64]]:
        """METEOR's corpus score and the score of each text, from its counts."""
        process = self._meteor.meteor_p
        process.stdin.write((" ||| ".join(["EVAL", *statistics]) + "\n").encode())
        process.stdin.flush()
        *each, pooled = [float(process.stdout.readline()) for _ in range(len(statistics) + 1)]
        return pooled, np.array(each)


@contextmanager
def text_scorer(texts: Iterable[str]) -> Iterator[TextScorer]:
    """Start the two Java processes once for all `texts`, predictions and references alike. Raises FileNotFoundError without Java."""
    if which("java") is None:
        raise FileNotFoundError("METEOR and the PTB tokenizer need Java, which is not on the PATH; install a Java runtime, version 8 or newer")
    meteor = Meteor()
    try:
        yield TextScorer(meteor, texts)
    finally:  # its own finalizer leaves two pipes open and waits for a lock it may hold
        meteor.meteor_p.kill()
        meteor.meteor_p.communicate()
        if meteor.lock.locked():
            meteor.lock.release()


def _one_line(text: str) -> str:
    """METEOR and the tokenizer take one text a line: every kind of line break would shift the answers that follow."""
    return " ".join(text.split()) or SILENCE


def text_scores(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> TextScores:
    """METEOR 1.5, CIDEr and ROUGE-L after PTB tokenization, as COCO caption evaluation computes them.

    CIDEr weighs n-grams by their rarity among the references, so it is 0 on a single text. Starts two Java processes. Raises FileNotFoundError
    without Java.
    """
    if not predicted:
        raise UndefinedMetric("no texts")
    with text_scorer([*predicted, *(text for texts in references for text in texts)]) as scorer:
        scores = scorer(predicted, references)
    return TextScores(scores.meteor, scores.cider, scores.rouge_l)


def words(text: str) -> list[str]:
    """Lower-case words; punctuation dropped."""
    return re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", text.lower())


def self_bleu_4(texts: Sequence[str], *, limit: int = 200, seed: int = 0) -> float:
    """Mean sentence BLEU-4 of each text against all others (arXiv:1802.01886): 1 = all alike. Beyond `limit` texts, a seeded draw of them."""
    chosen = [" ".join(words(text)) for text in sorted(texts)]
    if len(chosen) < 2:
        raise UndefinedMetric("self-BLEU compares texts; at least two are needed")
    if len(chosen) > limit:
        chosen = random.Random(seed).sample(chosen, limit)
    scorer = BleuScorer(n=4)
    cooked = [precook(text) for text in chosen]
    for index, (text, most_elsewhere) in enumerate(zip(chosen, _most_elsewhere([counts for _, counts in cooked]), strict=True)):
        lengths = [length for other, (length, _) in enumerate(cooked) if other != index]
        scorer.crefs.append((lengths, most_elsewhere))
        scorer.ctest.append(cook_test(text, scorer.crefs[-1]))
    _, by_order = scorer.compute_score(option="closest")
    return float(np.mean(by_order[3]))


def _most_elsewhere(counts: Sequence[Mapping[tuple[str, ...], int]]) -> Iterator[dict[tuple[str, ...], int]]:
    """For each text and each of its n-grams, the largest count in any other text: the two largest counts overall tell it."""
    largest: dict[tuple[str, ...], tuple[int, int]] = {}
    for own in counts:
        for ngram, count in own.items():
            first, second = largest.get(ngram, (0, 0))
            largest[ngram] = (max(first, count), max(second, min(first, count)))
    for own in counts:
        yield {ngram: largest[ngram][1] if count == largest[ngram][0] else largest[ngram][0] for ngram, count in own.items()}


def distinct_2(texts: Sequence[str]) -> float:
    """Distinct bigrams over all bigrams of the corpus (arXiv:1510.03055); 0 when no text has two words. Falls with the number of texts."""
    bigrams = [bigram for text in texts for tokens in (words(text),) for bigram in pairwise(tokens)]
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def vocabulary(texts: Sequence[str]) -> int:
    """Distinct words."""
    return len({word for text in texts for word in words(text)})


def most_frequent_sentence(texts: Sequence[str]) -> str:
    """The sentence most texts contain, first in the alphabet among equals: the answer of a system that never looks."""
    counts = Counter(sentence for text in texts for sentence in set(re.split(r"(?<=[.!?])\s+", text.strip())) if sentence)
    if not counts:
        raise UndefinedMetric("no sentences")
    return min(counts, key=lambda sentence: (-counts[sentence], sentence))
