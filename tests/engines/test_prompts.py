"""Markup to spans, tokens to markup, and the automaton that keeps markup closed whatever the weights say."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from engines import fict
from engines.prompts import (
    BBOX,
    BOS,
    CLS,
    DET,
    EOS,
    PHRASE,
    PHRASE_END,
    PROMPTS,
    SEG,
    SEP,
    SPECIAL_TOKENS,
    Level,
    MarkupAutomaton,
    PhraseTrie,
    Task,
    TaskKind,
    Vocabulary,
    cls_answer,
    det_answer,
    loc_answer,
    parse_markup,
    question,
)

PHRASES = sorted(fict.by_phrase())
words = st.text("abcdefgh \u00e9\u00df\u20ac\U0001d11e,;", min_size=1, max_size=20).map(str.strip).filter(bool)


@pytest.fixture(scope="module")
def trie(vocabulary: Vocabulary) -> PhraseTrie:
    return PhraseTrie.of(vocabulary)


def answer(vocabulary: Vocabulary, trie: PhraseTrie, seed: int, budget: int, favour: dict[str, float]) -> tuple[list[int], MarkupAutomaton]:
    """Decode random logits until `<eos>`; `favour` is added to the logits of these tokens."""
    rng = np.random.default_rng(seed)
    automaton = MarkupAutomaton(vocabulary, trie, budget)
    ids: list[int] = []
    while not ids or ids[-1] != vocabulary.ids[EOS]:
        logits_V = rng.standard_normal(vocabulary.size).astype(np.float32)
        for token, amount in favour.items():
            logits_V[vocabulary.tokenizer.token_to_id(token)] += amount
        ids.append(automaton.allow(logits_V))
        assert len(ids) <= budget, "the answer outran its budget"
    return ids, automaton


@given(st.lists(st.tuples(words, st.sampled_from(PHRASES)), max_size=4), words)
def test_spans_point_at_their_phrases(parts: list[tuple[str, str]], tail: str) -> None:
    markup = " ".join([*(f"{before} <p> {phrase} </p> [SEG]" for before, phrase in parts), tail])
    text, spans = parse_markup(markup)
    assert text == " ".join([*(f"{before} {phrase}" for before, phrase in parts), tail])
    assert [span.phrase for span in spans] == [phrase for _, phrase in parts]
    assert all(text[span.start : span.end] == span.phrase for span in spans)


def test_a_seg_without_a_phrase_leaves_the_text_and_moves_no_span() -> None:
    text, ((start, end, phrase),) = parse_markup("Here. [SEG] The <p> left iris </p> [SEG] too. [SEG]")
    assert text == "Here. The left iris too."
    assert text[start:end] == phrase == "left iris"


def test_a_phrase_may_open_the_text_and_stand_before_a_full_stop() -> None:
    text, spans = parse_markup("<p> mouth </p> [SEG] and <p> nose </p> [SEG].")
    assert text == "mouth and nose."
    assert [text[span.start : span.end] for span in spans] == ["mouth", "nose"]


@pytest.mark.parametrize("markup", ["a <p> b", "a </p> b", "a <p> b </p> c", "<p> b </p> [SEG] <p>"])
def test_markup_that_does_not_close_is_refused(markup: str) -> None:
    with pytest.raises(ValueError, match="every <p> needs its </p>"):
        parse_markup(markup)


def test_special_tokens_take_the_first_ids_in_order(vocabulary: Vocabulary) -> None:
    assert [vocabulary.ids[token] for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))


@pytest.mark.parametrize("missing", SPECIAL_TOKENS)
def test_a_tokenizer_without_a_special_token_is_refused_by_name(missing: str) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_special_tokens([token for token in SPECIAL_TOKENS if token != missing])
    with pytest.raises(ValueError) as refused:
        Vocabulary(tokenizer)
    assert repr(missing) in str(refused.value) and "retrain" in str(refused.value)


@pytest.mark.parametrize(
    "markup",
    [
        "The <p> left lower cheek </p> [SEG] is too smooth.",
        "The <p> mouth </p> [SEG], the <p> nose tip </p> [SEG] and hair differ; all else does not.",
        "The manipulated area is here. [SEG]",
        "No area of this face is manipulated.",
    ],
)
def test_markup_survives_its_tokens(vocabulary: Vocabulary, markup: str) -> None:
    assert vocabulary.markup(vocabulary.answer_ids(markup)) == markup


def test_prompts_and_answers_are_framed(vocabulary: Vocabulary) -> None:
    prompt, ids = vocabulary.prompt_ids("age"), vocabulary.answer_ids("a")
    assert (prompt[0], prompt[-1], ids[-1]) == (vocabulary.ids[BOS], vocabulary.ids[SEP], vocabulary.ids[EOS])


def test_the_trie_holds_every_phrase_of_fict_and_no_other(vocabulary: Vocabulary, trie: PhraseTrie) -> None:
    closed = [prefix for prefix, allowed in trie.children.items() if vocabulary.ids[PHRASE_END] in allowed]
    assert sorted(vocabulary.tokenizer.decode(list(prefix)).strip() for prefix in closed) == PHRASES
    assert trie.longest == max(map(len, closed)) + 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    budget=st.integers(1, 90),
    favour=st.dictionaries(st.sampled_from([PHRASE, PHRASE_END, SEG, EOS, "<", "p", "/", ">", "["]), st.floats(-3, 12), max_size=4),
)
def test_random_weights_write_closed_markup_that_names_only_fict(
    vocabulary: Vocabulary, trie: PhraseTrie, seed: int, budget: int, favour: dict[str, float]
) -> None:
    ids, automaton = answer(vocabulary, trie, seed, budget, favour)
    text, spans = parse_markup(vocabulary.markup(ids))
    assert {span.phrase for span in spans} <= set(PHRASES)
    assert len(spans) == ids.count(vocabulary.ids[SEG]) == ids.count(vocabulary.ids[PHRASE])
    assert all(text[span.start : span.end] == span.phrase for span in spans)
    assert automaton.exhausted or len(ids) < budget


def test_weights_that_only_want_phrases_still_end_within_the_budget(vocabulary: Vocabulary, trie: PhraseTrie) -> None:
    ids, automaton = answer(vocabulary, trie, 1, 150, {PHRASE: 50.0, EOS: -50.0})
    assert automaton.exhausted  # it had more to say
    assert ids.count(vocabulary.ids[PHRASE]) >= 150 // (trie.longest + 2) - 1


def test_nothing_may_point_without_a_phrase(vocabulary: Vocabulary, trie: PhraseTrie) -> None:
    logits_V = np.zeros(vocabulary.size, np.float32)
    logits_V[vocabulary.ids[SEG]] = 9.0
    assert MarkupAutomaton(vocabulary, trie, 20).allow(logits_V) != vocabulary.ids[SEG]


def written(vocabulary: Vocabulary, trie: PhraseTrie, seed: int, places: list[str] | None, budget: int = 150) -> tuple[list[str], MarkupAutomaton]:
    """The concepts that weights name which want phrases, and little else, and the automaton."""
    rng, automaton, ids = np.random.default_rng(seed), MarkupAutomaton(vocabulary, trie, budget, places), [0]
    while ids[-1] != vocabulary.ids[EOS]:
        logits_V = rng.standard_normal(vocabulary.size).astype(np.float32)
        logits_V[vocabulary.ids[PHRASE]] += 6.0
        ids.append(automaton.allow(logits_V))
    return [fict.by_phrase()[span.phrase] for span in parse_markup(vocabulary.markup(ids))[1]], automaton


@given(places=st.lists(st.sampled_from(sorted(fict.by_phrase().values())), min_size=1, max_size=5, unique=True), seed=st.integers(0, 99))
def test_only_given_places_are_named_each_once(vocabulary: Vocabulary, trie: PhraseTrie, places: list[str], seed: int) -> None:
    named, automaton = written(vocabulary, trie, seed, places)
    assert set(named) <= set(places) and len(named) == len(set(named))
    assert automaton.named_all or automaton.exhausted or len(named) < len(places)


def test_an_answer_that_wants_another_place_ends_when_all_are_named(vocabulary: Vocabulary, trie: PhraseTrie) -> None:
    named, automaton = written(vocabulary, trie, 3, ["nose", "left_iris"])
    assert set(named) == {"nose", "left_iris"} and automaton.named_all and not automaton.exhausted


def test_without_places_the_weights_choose(vocabulary: Vocabulary, trie: PhraseTrie) -> None:
    assert len(set(written(vocabulary, trie, 3, None)[0])) > 2


@pytest.mark.parametrize("letter", ["<", "["])
def test_no_word_may_look_like_markup(vocabulary: Vocabulary, trie: PhraseTrie, letter: str) -> None:
    logits_V = np.zeros(vocabulary.size, np.float32)
    logits_V[vocabulary.tokenizer.token_to_id(letter)] = 9.0
    token = MarkupAutomaton(vocabulary, trie, 60).allow(logits_V)
    assert letter not in vocabulary.tokenizer.decode([token])


TEXT_TASKS: tuple[Task, ...] = ("age", "toe", "loc")


def test_the_image_is_asked_as_the_shipped_engine_was_taught() -> None:
    assert {task: question(task) for task in TEXT_TASKS} == PROMPTS == {
        "age": "Explain what is manipulated on this face and show where.",
        "toe": "Explain what is manipulated on this face.",
        "loc": "Show the manipulated area.",
    }  # fmt: skip
    assert loc_answer(True) == "The manipulated area is here. [SEG]" and loc_answer(False) == "No area of this face is manipulated."


@given(st.sampled_from(TEXT_TASKS), st.sampled_from(PHRASES))
def test_a_region_is_asked_by_its_words_and_a_box_by_its_token(task: Task, phrase: str) -> None:
    region, box = question(task, "region", phrase), question(task, "box")
    assert f"on the {phrase}" in region and BBOX not in region
    assert box.count(BBOX) == 1 and not any(name in box for name in PHRASES)


def test_no_two_questions_are_alike() -> None:
    asked = [question("det"), question("cls"), *(question(task, level) for task in TEXT_TASKS for level in ("image", "box"))]  # type: ignore[arg-type]
    asked += [question(task, "region", phrase) for task in TEXT_TASKS for phrase in PHRASES]
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize(
    ("task", "level", "phrase"), [("det", "region", "nose"), ("cls", "box", None), ("age", "region", None), ("loc", "box", "nose")]
)
def test_what_is_no_task_is_not_asked(task: TaskKind, level: Level, phrase: str | None) -> None:
    with pytest.raises(ValueError, match=r"none of the eleven|region queries name a region"):
        question(task, level, phrase)


@pytest.mark.parametrize(("level", "phrase"), [("image", None), ("region", "left upper eyelid"), ("box", None)])
def test_a_tampered_area_is_pointed_at_once_and_a_clean_one_never(level: Level, phrase: str | None) -> None:
    assert loc_answer(True, level, phrase).count(SEG) == 1
    assert SEG not in loc_answer(False, level, phrase)
    assert not any(BBOX in loc_answer(tampered, level, phrase) for tampered in (True, False))  # the automaton lets no answer say it


def test_scores_and_types_are_answered_in_words_before_their_token() -> None:
    assert [det_answer(True), det_answer(False)] == [f"fake {DET}", f"real {DET}"]
    assert cls_answer("attribute_manipulation") == f"attribute manipulation {CLS}"
    assert cls_answer("swap") == f"identity swap or expression swap {CLS}"
