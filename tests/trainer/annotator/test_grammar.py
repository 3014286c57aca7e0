"""The grammar: every sentence marks its concept, markup round-trips, wording varies within a small vocabulary."""

import re

import numpy as np
import pytest

from engines import fict
from engines.prompts import parse_markup
from trainer.annotator import grammar
from trainer.annotator.grammar import Claim, Kind

TYPES = ["identity_swap", "expression_swap", "swap", "attribute_manipulation", "entire_synthesis"]


def _sample(count: int) -> list[tuple[list[Claim], str]]:
    rng = np.random.default_rng(5)
    names, kinds = list(fict.concepts()), list(grammar.KINDS)
    made = []
    for number in range(count):
        picked = rng.choice(names, int(rng.integers(1, 5)), replace=False)
        claims = [Claim(str(name), kinds[int(rng.integers(len(kinds)))], float(rng.uniform(0, 5))) for name in picked]
        made.append((claims, grammar.explain(rng, TYPES[number % len(TYPES)], claims)))
    return made


SAMPLE = _sample(600)


def test_each_claim_becomes_one_marked_phrase_in_order() -> None:
    for claims, markup in SAMPLE:
        _, spans = parse_markup(markup)
        assert [span.phrase for span in spans] == [fict.concepts()[claim.concept].phrase for claim in claims]


def test_spans_point_at_their_phrases_and_no_marker_is_left_in_the_text() -> None:
    for _, markup in SAMPLE:
        text, spans = parse_markup(markup)
        assert all(text[span.start : span.end] == span.phrase for span in spans)
        assert not re.search(r"<p>|</p>|\[SEG\]|[{}()|]|  | [.,;:]", text)


def test_sentences_start_with_a_capital_and_end_with_a_stop() -> None:
    for _, markup in SAMPLE:
        assert all(re.match(r"[A-Z<]", sentence) for sentence in markup.removesuffix(".").split(". "))
        assert markup.endswith(".")


def test_same_generator_same_text() -> None:
    claims = [Claim("mouth", "softer", 2.0), Claim("eyes", "hard_edge", 1.0)]
    texts = {grammar.explain(np.random.default_rng(9), "swap", claims) for _ in range(5)}
    assert len(texts) == 1


def test_plural_concepts_take_plural_verbs() -> None:
    rng = np.random.default_rng(0)
    texts = [parse_markup(grammar.explain(rng, "swap", [Claim("eyes", kind, 2.0)]))[0] for kind in grammar.KINDS for _ in range(40)]
    singular = re.compile(r"^(?!.*What).*\beyes (is|has|was|does|looks|seems|appears|shows|reveals|lacks|turns|comes)\b")
    assert not [text for text in texts if singular.search(text)]


def test_first_sentence_does_not_continue_another() -> None:
    for _, markup in SAMPLE:
        assert not markup.startswith(("Also", "Then", "Moreover", "Besides", "Another sign", "Another clue", "Again", "Next"))


@pytest.mark.parametrize("kind", list(grammar.KINDS))
def test_every_kind_has_many_wordings(kind: Kind) -> None:
    rng = np.random.default_rng(1)
    assert len({grammar.explain(rng, "swap", [Claim("nose", kind, 2.0)] * 3) for _ in range(60)}) > 55


def test_vocabulary_stays_small_enough_for_a_small_decoder() -> None:
    rng = np.random.default_rng(2)
    words = {word for _, markup in SAMPLE for word in re.findall(r"[a-z]+", parse_markup(markup)[0].lower())}
    words |= {word for _ in range(200) for word in re.findall(r"[a-z]+", grammar.clean(rng).lower())}
    assert len(words) < 400


def test_clean_answers_mark_nothing_and_vary() -> None:
    rng = np.random.default_rng(4)
    answers = {grammar.clean(rng) for _ in range(100)}
    assert len(answers) > 60
    assert not any("<p>" in answer or "[SEG]" in answer or re.search(r"[{}()|]", answer) for answer in answers)
