"""Both grammars: every sentence marks its claim, says nothing that no claim says, agrees in number, and follows from the evidence alone."""

import re
from dataclasses import replace

import pytest

from engines import fict, grammar
from engines.claims import KINDS, Claim, Finding, Grammar, Kind, Measurement, Steady, agree
from engines.prompts import parse_markup
from trainer.annotator import held_out_grammar
from trainer.annotator.verify import verify
from trainer.fifa_bench.text import distinct_2, words

Said = tuple[str, list[Claim]]
GRAMMARS: dict[str, Grammar] = {"training": grammar, "held_out": held_out_grammar}
MEASUREMENTS: list[Measurement] = list(dict.fromkeys(measured.measurement for measured in KINDS.values()))


@pytest.fixture(params=list(GRAMMARS))
def wording(request: pytest.FixtureRequest) -> Grammar:
    return GRAMMARS[request.param]


def test_each_claim_becomes_one_marked_phrase_in_order(wording: Grammar, said: list[Said]) -> None:
    for family, claims in said:
        for markup in (wording.explain(family, claims), wording.explain_area(claims, None)):
            text, spans = parse_markup(markup)
            assert [span.phrase for span in spans] == [claim.phrase for claim in claims]
            assert all(text[span.start : span.end] == span.phrase for span in spans)


@pytest.mark.parametrize(
    ("one", "many"),
    [("lies", "lie"), ("dies away", "die away"), ("carries", "carry"), ("goes hazy", "go hazy"), ("clashes", "clash"), ("is", "are")],
)  # fmt: skip
def test_a_verb_follows_its_subject_into_the_plural(one: str, many: str) -> None:
    assert (agree(one, False), agree(one, True)) == (one, many)


def test_no_marker_and_no_slot_is_left_in_the_text(wording: Grammar, said: list[Said]) -> None:
    for family, claims in said:
        text = parse_markup(wording.explain(family, claims))[0]
        assert not re.search(r"<p>|</p>|\[SEG\]|[{}|_]|  | [.,;:]|None", text), text


def test_sentences_start_with_a_capital_or_a_number_and_end_with_a_stop(wording: Grammar, said: list[Said]) -> None:
    for family, claims in said:
        markup = wording.explain(family, claims)
        assert markup.endswith(".")
        assert all(re.match(r"[A-Z0-9]", sentence) for sentence in markup.removesuffix(".").split(". ")), markup


def test_no_word_stands_twice_in_a_row(wording: Grammar, said: list[Said]) -> None:
    for family, claims in said:
        text = parse_markup(wording.explain(family, claims))[0]
        assert not re.search(r"\b([a-z]+) \1\b", text.lower()), text


def test_every_place_side_and_measured_kind_named_is_a_claims_own(wording: Grammar, said: list[Said]) -> None:
    """Hallucination is 0 by construction: the check that guards rewrites finds nothing to refuse."""
    for family, claims in said:
        markup = wording.explain(family, claims)
        assert verify(markup, claims, source=markup) is None, (verify(markup, claims, source=markup), markup)


def test_an_answer_to_a_region_names_at_most_that_region_beside_its_claims(wording: Grammar, said: list[Said]) -> None:
    for _, claims in said[:200]:
        markup = wording.explain_area(claims, "forehead")
        assert verify(markup, claims, source=markup, query="forehead") is None, markup


def test_wording_is_a_function_of_the_claims(wording: Grammar, said: list[Said]) -> None:
    for family, claims in said[:50]:
        assert wording.explain(family, claims) == wording.explain(family, [replace(claim) for claim in claims])


def test_noise_within_a_bin_changes_no_word(wording: Grammar) -> None:
    claim = Claim("left_cheek", Finding("softer", 2.0, 0.800, 1.0, "around"), 0.60, "upper", ("nose",), "beside")
    nearly = replace(claim, finding=replace(claim.finding, value=0.802, strength=2.2), extent=0.62)
    assert wording.explain("swap", [claim]) == wording.explain("swap", [nearly])


def test_the_number_said_is_the_measured_one(wording: Grammar) -> None:
    soft = Claim("nose", Finding("softer", 2.0, 0.72, 0.9, "usual"), also=Finding("warmer", 1.5, 11.2, 1.0, "around"))
    assert {"20", "11"} <= set(words(parse_markup(wording.explain("swap", [soft]))[0]))


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_degree_reach_and_row_is_worded(wording: Grammar, kind: Kind) -> None:
    """No table lacks an entry; each kind is told in many ways, by its evidence."""
    shift = KINDS[kind].measurement.endswith("_shift")
    sign = KINDS[kind].sign
    texts = set()
    for size in (0.05, 0.2, 0.4, 0.7, 1.2):
        value = sign * 40 * size if shift else 2.718 ** (sign * size)
        for extent in (0.1, 0.3, 0.6, 0.95):
            for basis in ("around", "usual"):
                claim = Claim("nose", Finding(kind, 2.0, value, 0.0 if shift else 1.0, basis), extent)
                texts.add(wording.explain("swap", [claim] * 5))
    assert len(texts) >= 25


def test_plural_concepts_take_plural_verbs(wording: Grammar) -> None:
    singular = re.compile(
        r"(?<!of )the eyes (is|has|was|looks|seems|appears|shows|gets|turns|comes|stays|keeps|ends|proves|reads|feels|differs)\b", re.I
    )
    for kind in KINDS:
        for basis in ("around", "usual"):
            claim = Claim("eyes", Finding(kind, 2.0, 30.0 * KINDS[kind].sign if KINDS[kind].measurement.endswith("_shift") else 1.6, 1.0, basis))
            assert not singular.search(parse_markup(wording.explain("swap", [claim] * 4))[0])


def test_texts_are_varied_and_of_bounded_length(wording: Grammar, said: list[Said]) -> None:
    texts = [parse_markup(wording.explain(family, claims[:4]))[0] for family, claims in said]
    assert len(set(texts)) > 0.99 * len(texts)
    assert distinct_2(texts) > 0.2
    assert 20 < sum(len(words(text)) for text in texts) / len(texts) < 60
    assert 400 < len({word for text in texts for word in words(text)}) < 900


def test_clean_answers_mark_nothing_and_name_no_place(wording: Grammar) -> None:
    answers = set()
    for first in MEASUREMENTS:
        for second in MEASUREMENTS:
            for departure in (0.5, 1.5, 3.0):
                answers.add(wording.clean(Steady(None, (first, second), second, departure)))
    names = {word for phrase in fict.by_phrase() for word in [f" {phrase} "]}
    assert len(answers) == len(MEASUREMENTS) ** 2 * 3
    assert not any(re.search(r"<p>|\[SEG\]|[{}]", answer) or any(name in f" {answer.lower()} " for name in names) for answer in answers)


@pytest.mark.parametrize("query", ["eyes", "left_cheek", None])
def test_clean_answers_name_at_most_the_region_asked_for(wording: Grammar, query: str | None) -> None:
    for first in MEASUREMENTS:
        answer = wording.clean_area(query, Steady(query, (first, "noise_ratio"), "asymmetry", 1.2))
        assert not re.search(r"<p>|\[SEG\]|[{}]", answer)
        assert answer.endswith(".")
        assert query is None or fict.concepts()[query].phrase in answer
        assert ("left" in words(answer)) == (query == "left_cheek")
