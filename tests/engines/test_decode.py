"""The decode loop over a toy that forgives no misplaced row, over the exported graph and over torch: whoever is beside, an answer is the same."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.bundle import Bundle
from engines.contracts import EngineError, TensorSpec
from engines.decode import DecodeLoop, End, Question, Written, cache_lengths
from engines.drafts import Drafts
from engines.preprocess import to_model_input
from engines.prompts import PhraseTrie
from engines.runtime import OrtEngine

BUDGETS = (1, 3, 30, 13, 21, 2, 34, 8)
Lengths = tuple[int, ...]


class Sponge:
    """A decoder whose every token hangs on all that its row has read, exactly: row after row it hashes the slots up to its own position."""

    def __init__(self, bundle: Bundle, *, axis: str | int = "capacity") -> None:
        spec = bundle.manifest.decoder
        self.inputs = (TensorSpec(name="past_k0", dtype="float32", shape=("batch", spec.num_heads, axis, spec.head_dim)),)
        self.outputs: tuple[TensorSpec, ...] = ()
        self.vocab_size, self.width = spec.vocab_size, spec.width
        self.runs: list[tuple[int, int, int, int]] = []
        """Rows, tokens, length of the cache and last position of every run."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        raise NotImplementedError

    def bind(self, state: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> "BoundSponge":
        ((rows, _, length, _),) = set(shapes.values())
        return BoundSponge(self, np.zeros((rows, length)))


class BoundSponge:
    """What each row has read, by slot."""

    def __init__(self, sponge: Sponge, read_BC: NDArray[np.float64]) -> None:
        self._sponge, self._read_BC = sponge, read_BC

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        sponge, fed_BS, positions_BS = self._sponge, feeds["inputs_embeds"][:, :, 0], feeds["positions"]
        sponge.runs.append((*fed_BS.shape, self._read_BC.shape[1], int(positions_BS.max())))
        logits = np.zeros((*fed_BS.shape, sponge.vocab_size), np.float32)
        hidden = np.zeros((*fed_BS.shape, sponge.width), np.float32)
        for row, column in np.ndindex(*fed_BS.shape):
            self._read_BC[row, positions_BS[row, column]] = fed_BS[row, column]
            seen = self._read_BC[row, : positions_BS[row, column] + 1]
            hidden[row, column] = abs(hash(tuple(seen.tolist()))) % 1009
            logits[row, column] = np.random.default_rng(int(hidden[row, column, 0])).random(sponge.vocab_size)
        return {"logits": logits, "hidden": hidden}

    def place(self, rows: Sequence[int], source: "BoundSponge", source_rows: Sequence[int]) -> None:
        assert source is not self or not set(rows) & set(source_rows)
        common = min(self._read_BC.shape[1], source._read_BC.shape[1])
        self._read_BC[list(rows), :common] = source._read_BC[list(source_rows), :common]


@pytest.fixture(scope="session")
def sponge(served: Bundle) -> Bundle:
    """The tiny bundle with the toy for its decoder."""
    numbers_VE = np.tile(np.arange(served.manifest.decoder.vocab_size, dtype=np.float32)[:, None], served.manifest.decoder.width)
    return replace(served, engines={**served.engines, "decoder": Sponge(served)}, token_embeddings_VE=numbers_VE)


def asked(bundle: Bundle, budgets: Sequence[int] = BUDGETS) -> list[Question]:
    """Questions of several lengths with these budgets."""
    rng, trie = np.random.default_rng(4), PhraseTrie.of(bundle.vocabulary)
    spec, table_VE = bundle.manifest.decoder, bundle.token_embeddings_VE
    return [
        Question(table_VE[rng.integers(0, spec.vocab_size, spec.num_prefix_tokens + 3 * (number % 4))], trie, budget)
        for number, budget in enumerate(budgets)
    ]


class Babble(Drafts):
    """Guesses as it likes: what the answer will say, something else, or nothing."""

    def __init__(self, answers: Sequence[Sequence[int]], seed: int, vocab_size: int) -> None:
        super().__init__(5)
        self._answers, self._rng, self._vocab_size = answers, np.random.default_rng(seed), vocab_size

    def guess(self, ids: Sequence[int], room: int) -> list[int]:
        right = next((answer[len(ids) :] for answer in self._answers if list(answer[: len(ids)]) == list(ids)), [])
        guessed = [int(token) if self._rng.random() < 0.8 else int(self._rng.integers(self._vocab_size)) for token in [*right, 0, 0]]
        return guessed[: min(room, int(self._rng.integers(6)))]


def alone(bundle: Bundle, questions: Sequence[Question]) -> list[Written]:
    """Each question by itself in a cache of the whole capacity, token by token."""
    loop = DecodeLoop(bundle, slots=1, lengths=[bundle.manifest.decoder.capacity], drafts=Drafts(0))
    return [written for question in questions for _, written in loop.answers([question])]


ALONE: dict[str, list[Written]] = {}


@st.composite
def cache_lengths_of(draw: st.DrawFn, capacity: int) -> Lengths:
    return (*sorted(draw(st.sets(st.integers(20, capacity - 1), max_size=6))), capacity)


def assert_as_alone(bundle: Bundle, name: str, order: Sequence[int], slots: int, lengths: Lengths | None, seed: int) -> None:
    questions = asked(bundle)
    if name not in ALONE:
        ALONE[name] = alone(bundle, questions)
    drafts = Babble([written.ids for written in ALONE[name]], seed, bundle.manifest.decoder.vocab_size)
    found = dict(DecodeLoop(bundle, slots=slots, lengths=lengths, drafts=drafts).answers(questions[number] for number in order))
    assert sorted(found) == list(range(len(order)))
    for place, number in enumerate(order):
        written, wanted = found[place], ALONE[name][number]
        assert (written.ids, written.end) == (wanted.ids, wanted.end)
        np.testing.assert_allclose(np.array(written.seg_embeds), np.array(wanted.seg_embeds), atol=1e-4)


ORDERS = st.lists(st.integers(0, len(BUDGETS) - 1), max_size=14)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), order=ORDERS, slots=st.integers(1, 9), seed=st.integers(0, 99))
def test_any_admission_and_any_guess_write_what_each_question_alone_writes(
    sponge: Bundle, data: st.DataObject, order: list[int], slots: int, seed: int
) -> None:
    assert_as_alone(sponge, "sponge", order, slots, data.draw(cache_lengths_of(sponge.manifest.decoder.capacity)), seed)


@pytest.mark.parametrize("backend", ["served", "reference"])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), order=ORDERS, slots=st.integers(1, 9), seed=st.integers(0, 99))
def test_any_admission_and_any_guess_write_the_tokens_of_each_question_alone_on_every_backend(
    request: pytest.FixtureRequest, backend: str, data: st.DataObject, order: list[int], slots: int, seed: int
) -> None:
    bundle = request.getfixturevalue(backend)
    spec = bundle.manifest.decoder
    is_open = len(cache_lengths(bundle.engines["decoder"], spec)) > 1
    assert_as_alone(bundle, backend, order, slots, data.draw(cache_lengths_of(spec.capacity)) if is_open else None, seed)


def runs_of(sponge: Bundle) -> list[tuple[int, int, int, int]]:
    engine = sponge.engines["decoder"]
    assert isinstance(engine, Sponge)
    engine.runs.clear()
    return engine.runs


def test_a_slot_that_falls_free_is_filled_at_once_and_only_live_rows_run(sponge: Bundle) -> None:
    runs, questions = runs_of(sponge), asked(sponge, [20] * 9)
    sizes = [len(written.ids) for written in alone(sponge, questions)]
    runs.clear()
    list(DecodeLoop(sponge, slots=4, drafts=Drafts(0)).answers(questions))
    assert runs[0][0] == 4 and sum(rows for rows, tokens, *_ in runs if tokens > 1) == 9
    steps = [rows for rows, tokens, *_ in runs if tokens == 1]
    assert sum(steps) == sum(sizes), "no step is run for a row that ended"
    last_admission = max(at for at, (_, tokens, *_) in enumerate(runs) if tokens > 1)
    assert all(rows == 4 for rows, tokens, *_ in runs[:last_admission] if tokens == 1)
    assert steps == sorted(steps, reverse=True)


def test_the_cache_is_as_long_as_its_longest_row_needs_or_one_length_longer(sponge: Bundle) -> None:
    runs, capacity = runs_of(sponge), sponge.manifest.decoder.capacity
    lengths = (*range(20, capacity, 5), capacity)
    list(DecodeLoop(sponge, slots=3, lengths=lengths, drafts=Drafts(0)).answers(asked(sponge, (100, 2, 2, 9, 9, 9, 40, 5, 5))))
    for _, _, length, position in runs:
        needed = next(at for at, one in enumerate(lengths) if one > position)
        assert lengths.index(length) in (needed, needed + 1)
    assert len({length for _, _, length, _ in runs}) > 3


def test_the_lengths_are_eighths_where_the_graph_leaves_them_open(served: Bundle) -> None:
    spec = served.manifest.decoder
    assert cache_lengths(Sponge(served, axis=spec.capacity), spec) == (spec.capacity,)
    assert cache_lengths(Sponge(served), spec.model_copy(update={"capacity": 256})) == (32, 64, 96, 128, 160, 192, 224, 256)
    assert cache_lengths(Sponge(served), spec.model_copy(update={"capacity": 3})) == (1, 2, 3)


def test_answers_come_as_they_end_and_questions_are_taken_no_sooner_than_a_slot_is_free(sponge: Bundle) -> None:
    taken: list[int] = []

    def questions() -> Iterator[Question]:
        for number, question in enumerate(asked(sponge, (40, 1, 1, 1, 1))):
            taken.append(number)
            yield question

    given: list[int] = []
    for number, _ in DecodeLoop(sponge, slots=2).answers(questions()):
        assert len(taken) <= len(given) + 2
        given.append(number)
    assert given == [1, 2, 3, 4, 0]


def test_an_answer_given_before_is_written_in_a_quarter_of_the_steps(sponge: Bundle) -> None:
    runs, (question,) = runs_of(sponge), asked(sponge, [60])
    loop = DecodeLoop(sponge, slots=1)
    ((_, first),) = loop.answers([question])
    slow = len(runs) - 1
    runs.clear()
    ((_, again),) = loop.answers([question])
    assert again == first and slow >= 20
    assert len(runs) - 1 == math.ceil(slow / 4), "a step writes the token it must and the three that were guessed"


def test_guesses_leave_room_in_the_cache_to_its_last_slot(sponge: Bundle) -> None:
    spec, question = sponge.manifest.decoder, asked(sponge, [1])[0]
    question = replace(question, budget=spec.capacity - len(question.inputs_SE))
    (whole,) = alone(sponge, [question])
    runs = runs_of(sponge)
    drafts = Babble([whole.ids], 3, spec.vocab_size)
    ((_, written),) = DecodeLoop(sponge, slots=1, drafts=drafts).answers([question])
    assert written.ids == whole.ids and max(position for *_, position in runs) < spec.capacity


def test_a_gpu_is_given_one_token_a_step(sponge: Bundle) -> None:
    runs, questions = runs_of(sponge), asked(sponge, [20, 20])
    bundle = replace(sponge, manifest=sponge.manifest.model_copy(update={"backend": "tensorrt"}))
    loop = DecodeLoop(bundle, slots=1)
    for _ in range(2):
        list(loop.answers(questions[:1]))
    assert {tokens for _, tokens, *_ in runs} == {1, len(questions[0].inputs_SE)}


def test_nothing_asked_runs_nothing(sponge: Bundle) -> None:
    runs = runs_of(sponge)
    assert list(DecodeLoop(sponge).answers([])) == [] and runs == []


def test_logits_that_are_no_numbers_become_no_words(sponge: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = BoundSponge.run

    def broken(bound: BoundSponge, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        out = runs(bound, feeds)
        out["logits"][..., 100] = np.nan
        return out

    monkeypatch.setattr(BoundSponge, "run", broken)
    with pytest.raises(EngineError, match=r"logits that are no numbers; .* fifa-stream engine check"):
        list(DecodeLoop(sponge).answers(asked(sponge)))


def test_the_budget_ends_an_answer(sponge: Bundle) -> None:
    for question, written in zip(asked(sponge), alone(sponge, asked(sponge)), strict=True):
        assert len(written.ids) <= question.budget - 1 and written.end in (End.WHOLE, End.BUDGET)
    assert alone(sponge, asked(sponge, [1]))[0].end is End.BUDGET


@pytest.mark.parametrize("budget", [0, 300])
def test_a_question_that_does_not_fit_the_cache_is_refused(sponge: Bundle, budget: int) -> None:
    with pytest.raises(ValueError, match=rf"with an answer of {budget} does not fit the cache of 256 slots"):
        list(DecodeLoop(sponge).answers(asked(sponge, [budget])))


def test_a_deadline_ends_its_answer_and_no_other(sponge: Bundle) -> None:
    questions, now_s = asked(sponge, [34] * 6), 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += 1
        return now_s

    whole = alone(sponge, questions)
    hurried = [replace(question, deadline_s=9.0) if number % 2 else question for number, question in enumerate(questions)]
    found = dict(DecodeLoop(sponge, slots=3, clock_s=clock).answers(hurried))
    for number, (written, wanted) in enumerate(zip((found[number] for number in range(6)), whole, strict=True)):
        assert written.ids == wanted.ids[: len(written.ids)]
        assert written.end is wanted.end if number % 2 == 0 else written.end in (End.DEADLINE, End.LATE, wanted.end)
    assert End.DEADLINE in {written.end for written in found.values()} and found[5].end is End.LATE and found[5].ids == []


def test_a_question_whose_deadline_has_passed_takes_no_slot(sponge: Bundle) -> None:
    runs = runs_of(sponge)
    first, second, third = asked(sponge, [5] * 3)
    late = [replace(question, deadline_s=1.0) for question in (first, second)]
    found = dict(DecodeLoop(sponge, slots=1, clock_s=lambda: 1.0).answers([*late, third]))
    assert [found[number].end is End.LATE for number in range(3)] == [True, True, False]
    assert sum(rows for rows, tokens, *_ in runs if tokens > 1) == 1


# What the loop asks of a backend.


def bound_rows(bundle: Bundle, rows: int, length: int | None = None) -> Any:
    spec = bundle.manifest.decoder
    names = [f"{kind}{layer}" for layer in range(spec.num_layers) for kind in "kv"]
    shape = (rows, spec.num_heads, length or spec.capacity, spec.head_dim)
    return bundle.engines["decoder"].bind({f"past_{name}": f"present_{name}" for name in names}, dict.fromkeys((f"past_{n}" for n in names), shape))


def fed(bundle: Bundle, rows: int, first: int, count: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    embeds = np.random.default_rng(seed).standard_normal((rows, count, bundle.manifest.decoder.width)).astype(np.float32)
    return {"inputs_embeds": embeds, "positions": np.tile(np.arange(first, first + count), (rows, 1))}


@pytest.mark.parametrize("backend", ["served", "reference"])
def test_a_placed_row_goes_on_as_it_would_have(backend: str, request: pytest.FixtureRequest) -> None:
    bundle = request.getfixturevalue(backend)
    source, target = bound_rows(bundle, 3), bound_rows(bundle, 4)
    source.run(fed(bundle, 3, 0, 9))
    target.run(fed(bundle, 4, 0, 12, seed=1))
    target.place([3, 1], source, [0, 2])
    target.place([2], target, [3])
    step = fed(bundle, 3, 9, 1, seed=2)
    wanted = {name: array.copy() for name, array in source.run(step).items()}
    rows = [0, 2, 0, 0]
    found = target.run({name: array[rows] for name, array in step.items()})
    for name in ("logits", "hidden"):
        np.testing.assert_allclose(found[name][1:], wanted[name][[2, 0, 0]], atol=1e-5)


@pytest.mark.parametrize("backend", ["served", "reference"])
def test_the_first_rows_run_without_the_others(backend: str, request: pytest.FixtureRequest) -> None:
    bundle = request.getfixturevalue(backend)
    some, all_rows = bound_rows(bundle, 4), bound_rows(bundle, 4)
    for bound in (some, all_rows):
        bound.run(fed(bundle, 4, 0, 9))
    step = fed(bundle, 4, 9, 1, seed=2)
    wanted = {name: array.copy() for name, array in all_rows.run(step).items()}
    for rows in (2, 1, 2, 3):
        found = some.run({name: array[:rows] for name, array in step.items()})
        for name in ("logits", "hidden"):
            assert len(found[name]) == rows
            np.testing.assert_allclose(found[name], wanted[name][:rows], atol=1e-5)


def test_rows_that_run_in_groups_give_what_they_give_together(served: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    together, grouped = bound_rows(served, 7), bound_rows(served, 7)
    monkeypatch.setattr(grouped, "_tokens_together", 20)
    for first, count in ((0, 9), (9, 1), (10, 11), (21, 30)):  # groups of two rows, all seven, one and one
        feeds = fed(served, 7, first, count, seed=first)
        wanted = {name: array.copy() for name, array in together.run(feeds).items()}
        found = grouped.run(feeds)
        for name in ("logits", "hidden"):
            np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)
    for name, array in together._kept.items():
        np.testing.assert_allclose(grouped._kept[name], array, atol=1e-5)


def test_a_face_scores_the_same_in_whatever_group_it_runs(served: Bundle, crops: Callable[[int], NDArray[np.uint8]]) -> None:
    part = served.manifest.parts["encoder"]
    image_BCHW = to_model_input(crops(5))
    found = [
        OrtEngine(served.folder / part.file, part, threads=threads, rows_together=together).run({"image": image_BCHW})
        for threads, together in ((1, None), (1, 1), (2, 2), (1, 3))
    ]
    for name, together in found[0].items():
        for in_groups in found[1:]:
            np.testing.assert_allclose(in_groups[name], together, atol=1e-5)


def test_the_runtime_writes_the_very_memory_that_rows_are_copied_from(served: Bundle) -> None:
    bound, feeds = bound_rows(served, 2), fed(served, 2, 0, 9)
    buffers = dict(bound._kept)
    bound.run(feeds)
    written = served.engines["decoder"].run({**feeds, **{name: np.zeros_like(array) for name, array in buffers.items()}})
    for name, array in buffers.items():
        assert array is bound._kept[name]
        np.testing.assert_array_equal(array, written[name.replace("past", "present")])
