"""Text metrics against pycocoevalcap's own run and hand-computed values; one Java session serves all that need METEOR."""

from collections.abc import Callable, Iterator
from shutil import which

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu

from trainer.fifa_bench import text
from trainer.fifa_bench.intervals import UndefinedMetric
from trainer.fifa_bench.text import CorpusScores, TextScorer, text_scorer

TEXTS = ["The right cheek is softer than the left cheek.", "A seam runs along the jaw line below the mouth.", "The hair has lost its fine texture."]


SHORT = "The hair is short."
BROKEN = "The hair\r\nis\x85 short.\u2028"


@pytest.fixture(scope="module")
def scorer() -> Iterator[TextScorer]:
    """METEOR and the tokenizer take seconds to start."""
    if which("java") is None:
        pytest.skip("METEOR and the PTB tokenizer need Java")
    with text_scorer([*TEXTS, SHORT, BROKEN, "", "a ||| b"]) as started:
        yield started


def _figures(scores: CorpusScores) -> tuple[float, ...]:
    return scores[:4]


def test_text_scores_are_best_for_the_references_worst_for_silence_and_blind_to_order(scorer: TextScorer) -> None:
    references = [[text] for text in TEXTS]
    perfect, silent = scorer(TEXTS, references), scorer(["", "", ""], references)
    assert _figures(perfect) == pytest.approx((1.0, 10.0, 1.0, 1.0), abs=1e-6)
    assert _figures(silent) == pytest.approx((0.0, 0.0, 0.0, 0.0), abs=1e-6)
    partial = scorer([TEXTS[0], TEXTS[1], SHORT], references)
    assert all(worst < got < best for worst, got, best in zip(_figures(silent), _figures(partial), _figures(perfect), strict=True))
    # longest common subsequence "the hair": precision 2/4, recall 2/7, beta 1.2
    assert partial.rouge_l == pytest.approx((1 + 1 + (1 + 1.44) * (2 / 4) * (2 / 7) / (2 / 7 + 1.44 * (2 / 4))) / 3)
    moved = scorer([SHORT, TEXTS[0], TEXTS[1]], [references[2], *references[:2]])
    assert _figures(moved) == pytest.approx(_figures(partial))
    assert moved.meteor_N.tolist() == pytest.approx(np.roll(partial.meteor_N, 1).tolist())


def test_scores_are_those_of_pycocoevalcap(scorer: TextScorer) -> None:
    said, wanted = [TEXTS[0], SHORT, ""], [[TEXTS[1], TEXTS[0]], [TEXTS[2]], [TEXTS[0]]]
    got = scorer(said, wanted)
    tokens = {text: scorer._tokenized[" ".join(text.split()) or "."] for text in [*TEXTS, SHORT, ""]}
    said_by_id = {i: [tokens[text]] for i, text in enumerate(said)}
    wanted_by_id = {i: [tokens[text] for text in texts] for i, texts in enumerate(wanted)}
    meteor, each = scorer._meteor.compute_score(wanted_by_id, said_by_id)
    assert got.meteor == meteor and got.meteor_N.tolist() == each
    bleu, _ = Bleu(4).compute_score(wanted_by_id, said_by_id, verbose=0)
    assert got.bleu_4 == pytest.approx(bleu[3])


def test_line_breaks_and_separators_do_not_shift_the_answers(scorer: TextScorer) -> None:
    got = scorer([BROKEN, "a ||| b", TEXTS[0]], [[SHORT], [SHORT], [TEXTS[0]]])
    assert got.meteor_N[0] == got.meteor_N[2] == 1.0 and got.meteor_N[1] == 0.0


def test_text_scores_without_java_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="install a Java runtime"):
        text.text_scores(TEXTS, [[text] for text in TEXTS])


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.sampled_from(TEXTS), min_size=2, max_size=8), seed=st.integers(0, 2**31))
def test_diversity_is_worst_for_one_text_repeated_and_blind_to_order(texts: list[str], seed: int) -> None:
    shuffled = [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]
    assert text.self_bleu_4(shuffled) == pytest.approx(text.self_bleu_4(texts), abs=1e-9)
    assert text.distinct_2(shuffled) == text.distinct_2(texts)
    assert text.self_bleu_4([texts[0]] * len(texts)) == pytest.approx(1.0, abs=1e-6)
    assert text.distinct_2([texts[0]] * len(texts)) == pytest.approx(1 / len(texts))


def test_diversity_is_best_for_texts_that_share_nothing() -> None:
    assert text.self_bleu_4(["one two three four five", "six seven eight nine ten"]) == pytest.approx(0.0, abs=1e-6)
    assert text.distinct_2(["one two three", "four five six"]) == 1.0
    assert text.distinct_2(["one", ""]) == 0.0


def test_self_bleu_equals_the_hand_computed_value() -> None:
    # "a b c d e" and "a b c d f": precisions 4/5, 3/4, 2/3, 1/2, no brevity penalty
    assert text.self_bleu_4(["a b c d e", "a b c d f"]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=9).map(" ".join), min_size=2, max_size=6))
def test_self_bleu_is_pycocoevalcaps_bleu_against_all_others(texts: list[str]) -> None:
    others = {i: texts[:i] + texts[i + 1 :] for i in range(len(texts))}
    _, by_order = Bleu(4).compute_score(others, {i: [text] for i, text in enumerate(texts)}, verbose=0)
    assert text.self_bleu_4(texts) == pytest.approx(np.mean(by_order[3]))


def test_most_frequent_sentence_counts_texts_and_breaks_ties_by_alphabet() -> None:
    texts = ["The nose is soft. The chin is soft.", "The chin is soft. The chin is soft.", "The nose is soft."]
    assert text.most_frequent_sentence(texts) == "The chin is soft."
    assert text.most_frequent_sentence(texts[::-1]) == "The chin is soft."


def test_the_vocabulary_counts_words_once() -> None:
    assert text.vocabulary(["The nose, the NOSE.", "left-hand side"]) == 4
    assert text.vocabulary([]) == 0


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: text.text_scores([], []), id="text_scores"),
        pytest.param(lambda: text.self_bleu_4(["one text"]), id="self_bleu_4"),
        pytest.param(lambda: text.most_frequent_sentence([]), id="most_frequent_sentence"),
    ],
)
def test_nothing_to_measure_is_undefined(call: Callable[[], object]) -> None:
    with pytest.raises(UndefinedMetric):
        call()
