"""The second grammar says the same facts in other words: no template in common, few runs of words, numbers and places alike."""

import re
from itertools import chain
from shutil import which

import pytest

from engines import fict, grammar
from engines.claims import Claim
from engines.prompts import parse_markup
from trainer.annotator import held_out_grammar
from trainer.fifa_bench.text import text_scorer, words

Said = tuple[str, list[Claim]]


def _templates(module: object) -> set[str]:
    """Every form of a grammar, slots made alike."""
    forms = [*module.FORMS.values(), getattr(module, "ALTERED", ()), getattr(module, "UNTOLD", ())]
    return {re.sub(r"\{\w+\}", "_", form).lower() for form in chain.from_iterable(chain.from_iterable(forms))}


def _runs(texts: list[str]) -> set[tuple[str, ...]]:
    """Runs of four words, with places and numbers made alike."""
    phrases = sorted(fict.by_phrase(), key=len, reverse=True)
    places = re.compile(r"\b(" + "|".join(map(re.escape, phrases)) + r")\b")
    split = (words(re.sub(r"\d+", "0", places.sub("place", text.lower()))) for text in texts)
    return {tuple(tokens[index : index + 4]) for tokens in split for index in range(len(tokens) - 3)}


def _exact_templates(module: object) -> set[str]:
    return {form for rows in module.FORMS.values() for row in rows for form in row}


def test_the_grammars_share_no_template() -> None:
    assert not _exact_templates(grammar) & _exact_templates(held_out_grammar)
    wordless = {template for template in _templates(grammar) if not re.search(r"[a-z]", template)}
    assert _templates(grammar) & _templates(held_out_grammar) <= wordless


def test_few_runs_of_four_words_are_shared(said: list[Said]) -> None:
    ours, theirs = (_runs([parse_markup(module.explain(family, claims))[0] for family, claims in said]) for module in (grammar, held_out_grammar))
    assert len(ours & theirs) < 0.05 * min(len(ours), len(theirs))


def test_numbers_and_places_are_the_same(said: list[Said]) -> None:
    for family, claims in said[:100]:
        first, second = (parse_markup(module.explain(family, claims))[0] for module in (grammar, held_out_grammar))
        assert sorted(re.findall(r"\d+", first)) == sorted(re.findall(r"\d+", second))


@pytest.mark.slow
@pytest.mark.skipif(which("java") is None, reason="METEOR needs Java")
def test_the_same_facts_in_other_words_score_far_above_other_facts(said: list[Said]) -> None:
    first, second = ([parse_markup(module.explain(family, claims))[0] for family, claims in said[:60]] for module in (grammar, held_out_grammar))
    with text_scorer([*first, *second]) as scorer:
        same = scorer(first, [[text] for text in second]).meteor
        other = scorer(first, [[text] for text in second[1:] + second[:1]]).meteor
    assert same > 0.2
    assert same > 2 * other
