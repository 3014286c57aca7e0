"""The composition over the torch parts and over the exported graphs: parity, batching, policies, and one mask for each [SEG]."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from engines import fict
from engines.analyzer import Analyzer, softmax
from engines.bundle import Bundle
from engines.claims import Measurement
from engines.contracts import Analysis, AreaAnswer, AreaQuery, BundleError, BundleFault, EngineError, Explanation, Label, OperatingPoint, TensorSpec
from engines.masks import box_cells, last_whole_sentence
from engines.prompts import EOS, PHRASE, PHRASE_END, SEG, Task, loc_answer, parse_markup
from engines.questions import Answer, sigmoid
from engines.regions import NUM_CHANNELS, channels
from engines.wording import measured, worded
from trainer.model import FiFaMLLM
from trainer.parts import CAPACITY, DecoderPart, TorchEngine, cache_names

Crops = Callable[[int], NDArray[np.uint8]]
PARITY = 1e-4


class Script:
    """A decoder that wants a given answer for each row, told apart by the first number of its prefix; its hidden state names row and token."""

    def __init__(self, bundle: Bundle, answers: list[list[int]], prompt_tokens: int) -> None:
        self.inputs, self.outputs = bundle.engines["decoder"].inputs, bundle.engines["decoder"].outputs
        self.spec, self.answers, self.first = bundle.manifest.decoder, answers, bundle.manifest.decoder.num_prefix_tokens + prompt_tokens
        self.eos = bundle.vocabulary.ids[EOS]
        self.steps: list[int] = []
        """Rows of every run."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        raise NotImplementedError

    def bind(self, state: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> "BoundScript":
        ((rows, _, _, _),) = set(shapes.values())
        return BoundScript(self, rows)


class BoundScript:
    """Remembers which answer each row writes, as the prefill said."""

    def __init__(self, script: Script, rows: int) -> None:
        self._script, self._rows = script, [0] * rows

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        script, positions = self._script, feeds["positions"]
        if positions[0, 0] == 0:
            self._rows[: len(positions)] = [int(value) for value in feeds["inputs_embeds"][:, 0, 0]]
        script.steps.append(len(positions))
        logits = np.zeros((*positions.shape, script.spec.vocab_size), np.float32)
        hidden = np.zeros((*positions.shape, script.spec.width), np.float32)
        logits[:, :, script.eos] = -1.0  # where its wish is blocked it goes on with any word
        for row, column in np.ndindex(*positions.shape):
            answer, step = script.answers[self._rows[row]], int(positions[row, column]) - script.first + 1
            if step >= 0:
                logits[row, column, answer[min(step, len(answer) - 1)]] = 9.0
            hidden[row, column, :2] = self._rows[row], step - 1
        return {"logits": logits, "hidden": hidden}

    def place(self, rows: Sequence[int], source: "BoundScript", source_rows: Sequence[int]) -> None:
        for row, source_row in zip(rows, source_rows, strict=True):
            self._rows[row] = source._rows[source_row]


def scripted(bundle: Bundle, answers: list[str], tokens: list[list[int]] | None = None) -> tuple[Analyzer, Script, list[list[int]]]:
    """An analyzer whose decoder writes these answers."""
    vocabulary = bundle.vocabulary
    ids = tokens or [vocabulary.answer_ids(answer) for answer in answers]
    script = Script(bundle, ids, len(vocabulary.prompt_ids("age")))
    doubts_all = OperatingPoint(name="all", fake_at=1.0, real_below=0.0, explain_at=0.0)
    manifest = bundle.manifest.model_copy(update={"operating_points": {"all": doubts_all}, "default_operating_point": "all"})
    return Analyzer(replace(bundle, manifest=manifest, engines={**bundle.engines, "decoder": script})), script, ids


def prefixes(bundle: Bundle, rows: list[int]) -> NDArray[np.float32]:
    """Prefixes whose first number names the answer."""
    prefix = np.zeros((len(rows), bundle.manifest.decoder.num_prefix_tokens, bundle.manifest.decoder.width), np.float32)
    prefix[:, 0, 0] = rows
    return prefix


def assert_same(one: Analysis, other: Analysis, tolerance: float = PARITY) -> None:
    assert one.fake_score == pytest.approx(other.fake_score, abs=tolerance)
    np.testing.assert_allclose(one.type_probs, other.type_probs, atol=tolerance)
    np.testing.assert_allclose(one.artifact_map_HW, other.artifact_map_HW, atol=tolerance)
    assert (one.explanation is None) == (other.explanation is None)
    if one.explanation is not None and other.explanation is not None:
        assert one.explanation.markup == other.explanation.markup
        for a, b in zip(one.explanation.evidence, other.explanation.evidence, strict=True):
            assert (a.phrase, a.char_span, a.concept) == (b.phrase, b.char_span, b.concept)
            np.testing.assert_allclose(a.mask_probability_HW, b.mask_probability_HW, atol=10 * tolerance)
            assert a.mask_confidence == pytest.approx(b.mask_confidence, abs=10 * tolerance)


def test_exported_bundle_says_what_torch_says(served: Bundle, reference: Bundle, crops: Crops) -> None:
    images, policies = crops(4), ["always"] * 4
    for one, other in zip(Analyzer(served).analyze(images, explain=policies), Analyzer(reference).analyze(images, explain=policies), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("task", ["age", "toe", "loc"])
def test_exported_decoder_writes_the_tokens_of_torch(served: Bundle, reference: Bundle, crops: Crops, task: Any) -> None:
    written = [Analyzer(bundle).decode(Analyzer(bundle).encode(crops(3))["prefix_embeds"], task) for bundle in (served, reference)]
    for one, other in zip(*written, strict=True):
        assert one.ids == other.ids
        np.testing.assert_allclose(np.array(one.seg_embeds), np.array(other.seg_embeds), atol=1e-3)


@pytest.mark.parametrize("backend", ["served", "reference"])
def test_a_batch_is_its_faces_one_by_one(backend: str, crops: Crops, request: pytest.FixtureRequest) -> None:
    analyzer, images = Analyzer(request.getfixturevalue(backend)), crops(3)
    together = analyzer.analyze(images, explain=["always"] * 3)
    alone = [analyzer.analyze(images[row : row + 1], explain=["always"])[0] for row in range(3)]
    for one, other in zip(together, alone, strict=True):
        assert_same(one, other)


def test_no_faces_give_no_analyses(analyzer: Analyzer, crops: Crops) -> None:
    assert analyzer.analyze(crops(0), explain=[]) == []


def test_a_policy_is_needed_for_each_crop(analyzer: Analyzer, crops: Crops) -> None:
    with pytest.raises(ValueError, match="2 crops but 1 explain policies"):
        analyzer.analyze(crops(2), explain=["never"])


def test_auto_explains_from_the_threshold_on_always_and_never_regardless(reference: Bundle, crops: Crops) -> None:
    images = crops(3)
    scores = sorted(analysis.fake_score for analysis in Analyzer(reference).analyze(images, explain=["never"] * 3))
    point = OperatingPoint(name="cut", fake_at=1.0, real_below=0.0, explain_at=scores[1])
    manifest = reference.manifest.model_copy(update={"operating_points": {"cut": point}, "default_operating_point": "cut"})
    analyzer = Analyzer(replace(reference, manifest=manifest))
    auto = analyzer.analyze(images, explain=["auto"] * 3)
    assert [analysis.explanation is not None for analysis in auto] == [analysis.fake_score >= scores[1] for analysis in auto]
    assert sum(analysis.explanation is not None for analysis in auto) == 2
    mixed = analyzer.analyze(images, explain=["never", "always", "never"])
    assert [analysis.explanation is not None for analysis in mixed] == [False, True, False]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("part", "output"), [("encoder", "det_logit"), ("encoder", "type_logits"), ("mask_decoder", "mask_logits"), ("mask_decoder", "iou_logit")]
)
def test_what_is_no_number_becomes_no_analysis(reference: Bundle, crops: Crops, part: Any, output: str, value: float) -> None:
    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        out = reference.engines[part].run(feeds)
        spoilt = np.array(out[output])
        spoilt.flat[-1] = value
        return {**out, output: spoilt}

    analyzer: Any = Analyzer(replace(reference, engines={**reference.engines, part: SimpleNamespace(run=run)}))
    state_E = np.zeros(analyzer.manifest.decoder.width, np.float32)
    with pytest.raises(EngineError, match=r"are no numbers; .* fifa-stream engine check"):
        if part == "encoder":
            analyzer.analyze(crops(2), explain=["never"] * 2)
        else:
            analyzer.masks(analyzer.encode(crops(2)), [0], [Answer(seg_embeds=[state_E])])


def test_scoring_alone_runs_neither_decoder(reference: Bundle, crops: Crops) -> None:
    engines = {name: engine for name, engine in reference.engines.items() if name == "encoder"}
    assert len(Analyzer(replace(reference, engines=engines)).analyze(crops(2), explain=["never"] * 2)) == 2


def test_one_mask_for_each_seg_of_each_row(reference: Bundle, crops: Crops) -> None:
    answers = [
        "The <p> mouth </p> [SEG] is soft and the <p> left iris </p> [SEG] is flat.",
        "Nothing.",
        "The <p> nose </p> [SEG] is soft.",
    ]
    analyzer, _, ids = scripted(reference, answers)
    seg = reference.vocabulary.ids[SEG]
    decoded = analyzer.decode(prefixes(reference, [2, 0, 1, 0]), "age")
    for answer, script in zip(decoded, (2, 0, 1, 0), strict=True):
        assert answer.ids == ids[script][:-1]
        # the state that follows the [SEG] token itself, of this row and no other
        assert [tuple(embed[:2]) for embed in answer.seg_embeds] == [(script, step) for step, token in enumerate(ids[script]) if token == seg]
        assert not answer.truncated
    encoded = analyzer.encode(crops(4))
    masks_MHW, confidence_M = analyzer.masks(encoded, range(4), decoded)
    size = reference.manifest.preprocess.mask_size
    assert masks_MHW.shape == (5, size, size) and confidence_M.shape == (5,)
    assert (masks_MHW >= 0).all() and (masks_MHW <= 1).all()


def test_evidence_follows_its_phrases(reference: Bundle, crops: Crops) -> None:
    analyzer, _, _ = scripted(reference, ["The <p> mouth </p> [SEG] is soft and the <p> left iris </p> [SEG] is flat."])
    encoded = analyzer.encode(crops(1)) | {"prefix_embeds": prefixes(reference, [0])}
    (explanation,) = analyzer.explain(encoded, crops(1), [0])
    masks_MHW, _ = analyzer.masks(encoded, [0], analyzer.decode(encoded["prefix_embeds"], "age"))
    assert [item.concept for item in explanation.evidence] == ["mouth", "left_iris"]
    for item, mask_HW in zip(explanation.evidence, masks_MHW, strict=True):
        assert explanation.text[slice(*item.char_span)] == item.phrase
        np.testing.assert_array_equal(item.mask_probability_HW, mask_HW)


def test_a_face_that_its_score_calls_real_is_told_clean(reference: Bundle, crops: Crops) -> None:
    analyzer, script, _ = scripted(reference, ["The <p> mouth </p> [SEG] is soft."] * 3)
    encoded = analyzer.encode(crops(3)) | {"prefix_embeds": prefixes(reference, [0, 1, 2]), "det_logit": np.array([4.0, -4.0, 4.0], np.float32)}
    point = OperatingPoint(name="cut", fake_at=0.9, real_below=0.5, explain_at=0.5)
    strict = Analyzer(
        replace(
            analyzer._bundle,
            manifest=analyzer.manifest.model_copy(update={"operating_points": {"cut": point}, "default_operating_point": "cut"}),
        )
    )
    told = strict.explain(encoded, crops(3), [0, 1, 2])
    assert [len(explanation.evidence) for explanation in told] == [1, 0, 1] and told[1].text == "No area of this face is manipulated."
    assert max(script.steps) == 2, "nothing is decoded for it"


def test_order_is_kept_with_more_faces_than_slots(reference: Bundle, crops: Crops) -> None:
    many, script, _ = scripted(reference, [f"Face {number}{' and' * number} the <p> mouth </p> [SEG] of it." for number in range(5)])
    encoded = many.encode(crops(5)) | {"prefix_embeds": prefixes(reference, [0, 1, 2, 3, 4])}
    explanations = Analyzer(many._bundle, slots=2).explain(encoded, crops(5), [4, 0, 3, 1, 2])
    assert [explanation.text[:6] for explanation in explanations] == ["Face 4", "Face 0", "Face 3", "Face 1", "Face 2"]
    assert max(script.steps) == 2
    for one, other in zip(explanations, many.explain(encoded, crops(5), [4, 0, 3, 1, 2]), strict=True):
        assert one.text == other.text
        np.testing.assert_allclose(one.evidence[0].mask_probability_HW, other.evidence[0].mask_probability_HW, atol=1e-6)


def test_explanations_and_answers_of_a_batch_are_decoded_together(reference: Bundle, crops: Crops) -> None:
    analyzer, script, _ = scripted(reference, ["The <p> nose </p> [SEG] is soft."])
    analyzer.analyze(crops(3), explain=["always"] * 3, queries=["nose", None, (0.0, 0.0, 14.0, 14.0)])
    assert max(script.steps) == 5


def test_an_answer_that_never_ends_is_cut_at_its_last_sentence_with_its_evidence(reference: Bundle, crops: Crops) -> None:
    vocabulary = reference.vocabulary
    once = vocabulary.tokenizer.encode("The <p> mouth </p> [SEG] is soft.").ids
    analyzer, _, _ = scripted(reference, [], [once * 60])
    encoded = analyzer.encode(crops(1)) | {"prefix_embeds": prefixes(reference, [0])}
    (explanation,) = analyzer.explain(encoded, crops(1), [0])
    assert explanation.truncated and explanation.text.endswith(".")
    assert len(explanation.evidence) == explanation.markup.count(SEG) >= 2
    assert all(explanation.text[slice(*item.char_span)] == item.phrase for item in explanation.evidence)


def test_a_decoder_that_wants_bare_segs_cannot_shift_the_masks(reference: Bundle) -> None:
    vocabulary = reference.vocabulary
    phrase = vocabulary.tokenizer.encode(" mouth").ids
    seg, ids = vocabulary.ids[SEG], vocabulary.ids
    analyzer, _, _ = scripted(reference, [], [[seg, ids[PHRASE], *phrase, ids[PHRASE_END], seg, ids[EOS]]])
    (answer,) = analyzer.decode(prefixes(reference, [0]), "age")
    _, spans = parse_markup(vocabulary.markup(answer.ids))
    assert len(spans) == len(answer.seg_embeds) == 1


class Clock:
    """Shows the next of the given times with each look, at last the last again and again."""

    def __init__(self, *times_s: float) -> None:
        self._times_s = list(times_s)

    def __call__(self) -> float:
        return self._times_s.pop(0) if len(self._times_s) > 1 else self._times_s[0]


def test_a_face_whose_time_is_up_is_scored_and_the_others_explained(reference: Bundle, crops: Crops) -> None:
    analyzer, script, _ = scripted(reference, ["The <p> mouth </p> [SEG] is soft."])
    late, timely, unhurried = analyzer.analyze(crops(3), explain=["always"] * 3, seconds_left=[-1.0, 1e6, None])
    assert late.explanation is None and late.fake_score > 0
    assert all(one.explanation is not None and len(one.explanation.evidence) == 1 for one in (timely, unhurried))
    assert max(script.steps) == 2, "nothing is decoded for it"


def test_a_query_whose_time_is_up_is_answered_by_localisation(reference: Bundle, crops: Crops) -> None:
    analyzer, _, _ = scripted(reference, ["The <p> nose </p> [SEG] is soft."])
    ((late,), (timely,)) = (analyzer.analyze(crops(1), explain=["never"], queries=["nose"], seconds_left=[left]) for left in (-1.0, None))
    assert late.answer is not None and timely.answer is not None
    assert late.answer.tampered_probability == timely.answer.tampered_probability
    assert late.answer.explanation.truncated and late.answer.explanation.text == parse_markup(loc_answer(late.answer.tampered, "region", "nose"))[0]


@pytest.mark.parametrize("steps", range(30))
def test_a_deadline_at_any_token_leaves_whole_sentences_with_their_masks(reference: Bundle, crops: Crops, steps: int) -> None:
    said = "The <p> mouth </p> [SEG] is soft. The <p> left iris </p> [SEG] is flat. The nose is."
    many, _, _ = scripted(reference, [said])
    clock = Clock(0.0, 0.0, *[0.5] * steps, 2.0)
    (analysis,) = Analyzer(many._bundle, clock_s=clock).analyze(crops(1), explain=["always"], seconds_left=[1.0])
    explanation = analysis.explanation
    assert explanation is not None and said.startswith(explanation.markup) and explanation.markup[-1:] in ("", ".")
    assert explanation.truncated or explanation.markup == said
    assert len(explanation.evidence) == explanation.markup.count(SEG)
    assert all(explanation.text[slice(*item.char_span)] == item.phrase for item in explanation.evidence)


def test_last_whole_sentence_may_be_none() -> None:
    assert last_whole_sentence("A whole one. And a ha") == "A whole one."
    assert last_whole_sentence("not one") == ""


def test_labels_follow_the_cuts(reference: Bundle) -> None:
    point = OperatingPoint(name="two", fake_at=0.8, real_below=0.3, explain_at=0.3)
    manifest = reference.manifest.model_copy(update={"operating_points": {"two": point}})
    analyzer = Analyzer(replace(reference, manifest=manifest), operating_point="two")
    labels = [analyzer.operating_point.label(score) for score in (0.0, 0.2999, 0.3, 0.7999, 0.8, 1.0)]
    assert labels == [Label.REAL, Label.REAL, Label.INCONCLUSIVE, Label.INCONCLUSIVE, Label.FAKE, Label.FAKE]


def test_an_operating_point_the_bundle_lacks_is_refused_by_name(reference: Bundle) -> None:
    with pytest.raises(BundleError, match=r"'strict' is not in the bundle; it has: uncalibrated") as error:
        Analyzer(reference, operating_point="strict")
    assert error.value.fault is BundleFault.UNSUPPORTED


def test_calibration_is_platts(reference: Bundle) -> None:
    calibration = reference.manifest.calibration.model_copy(update={"scale": 2.0, "bias": -1.0})
    analyzer = Analyzer(replace(reference, manifest=reference.manifest.model_copy(update={"calibration": calibration})))
    raw = np.array([-200.0, 0.0, 0.5, 200.0], np.float32)
    np.testing.assert_allclose(analyzer.calibrated(raw), [0.0, 1 / (1 + np.e), 0.5, 1.0], atol=1e-6)
    np.testing.assert_allclose(sigmoid(raw[1:3]), 1 / (1 + np.exp(-raw[1:3])), rtol=1e-6)


def test_type_probabilities_do_not_overflow() -> None:
    probs_BF = softmax(np.array([[1000.0, 0.0], [-1000.0, -1000.0]], np.float32))
    np.testing.assert_allclose(probs_BF, [[1.0, 0.0], [0.5, 0.5]])


# Forced answers.

FORCED = ["The <p> mouth </p> [SEG] is soft and the <p> left iris </p> [SEG] is flat.", "Nothing.", "The <p> nose </p> [SEG] is soft."]


@pytest.mark.parametrize("backend", ["served", "reference"])
def test_forced_answers_have_the_states_of_teacher_forcing(backend: str, model: FiFaMLLM, crops: Crops, request: pytest.FixtureRequest) -> None:
    analyzer = Analyzer(request.getfixturevalue(backend))
    prefix_BPE = analyzer.encode(crops(3))["prefix_embeds"]
    vocabulary = request.getfixturevalue("vocabulary")
    prompt, seg = vocabulary.prompt_ids("age"), vocabulary.ids[SEG]
    for row, (markup, answer) in enumerate(zip(FORCED, analyzer.force(prefix_BPE, FORCED, "age"), strict=True)):
        ids = vocabulary.tokenizer.encode(markup).ids
        assert answer.ids == ids and not answer.truncated and analyzer.markup(answer) == markup
        with torch.no_grad():
            _, hidden_BLE = read(model, torch.from_numpy(prefix_BPE[row : row + 1]), torch.tensor([prompt + ids]))
        wanted = [hidden_BLE[0, len(prompt) + at].numpy() for at, token in enumerate(ids) if token == seg]
        assert len(answer.seg_embeds) == len(wanted) == markup.count(SEG)
        if wanted:
            np.testing.assert_allclose(np.array(answer.seg_embeds), np.array(wanted), atol=1e-3)


def test_an_answer_that_does_not_fit_the_cache_is_refused(reference: Bundle, crops: Crops) -> None:
    analyzer = Analyzer(reference)
    with pytest.raises(ValueError, match=r"does not fit: the cache has \d+ slots"):
        analyzer.force(analyzer.encode(crops(1))["prefix_embeds"], ["soft " * CAPACITY], "age")


# Asked regions and boxes.

QUERIES: list[AreaQuery] = ["mouth", (0.0, 0.0, 14.0, 14.0), "left_iris", (42.0, 42.0, 56.0, 56.0), (3.0, 20.0, 50.0, 33.0)]


def test_exported_queries_are_answered_as_torch_answers_them(served: Bundle, reference: Bundle, crops: Crops) -> None:
    images, policies = crops(len(QUERIES)), ["never"] * len(QUERIES)
    found = [Analyzer(bundle).analyze(images, explain=policies, queries=QUERIES) for bundle in (served, reference)]
    for one, other in zip(*found, strict=True):
        assert one.answer is not None and other.answer is not None
        assert one.answer.explanation.markup == other.answer.explanation.markup
        assert one.answer.tampered_probability == pytest.approx(other.answer.tampered_probability, abs=1e-3)
        np.testing.assert_allclose(one.answer.mask_probability_HW, other.answer.mask_probability_HW, atol=1e-3)


@pytest.mark.parametrize("task", ["age", "toe", "loc"])
def test_questions_of_any_length_answered_together_are_answered_alone(analyzer: Analyzer, crops: Crops, task: Any) -> None:
    encoded = analyzer.encode(crops(2))
    rows = [0, 1, 1, 0, 0]
    together = analyzer.ask(encoded, rows, task, QUERIES)
    alone = [analyzer.ask(encoded, [row], task, [query])[0] for row, query in zip(rows, QUERIES, strict=True)]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(np.array(one.seg_embeds), np.array(other.seg_embeds), atol=1e-4)


def test_only_faces_with_a_query_are_answered(analyzer: Analyzer, crops: Crops) -> None:
    analyses = analyzer.analyze(crops(3), explain=["never"] * 3, queries=[None, "nose", None])
    assert [analysis.answer is not None for analysis in analyses] == [False, True, False]


def test_an_answer_about_a_region_names_nothing_outside_it(reference: Bundle, crops: Crops) -> None:
    analyzer, _, _ = scripted(reference, ["The <p> left iris </p> [SEG] is flat."])
    analyzer._bundle.engines["decoder"].first = (  # type: ignore[attr-defined]
        reference.manifest.decoder.num_prefix_tokens + len(reference.vocabulary.prompt_ids("age", "region", "nose"))
    )
    encoded = analyzer.encode(crops(1)) | {"prefix_embeds": prefixes(reference, [0])}
    (answer,) = analyzer.ask(encoded, [0], "age", ["nose"])
    _, spans = parse_markup(analyzer.markup(answer))
    assert spans and all("nose" in fict.concepts()[fict.by_phrase()[span.phrase]].path for span in spans)


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_the_mask_of_a_box_ends_a_cell_beyond_it_in_every_corner(analyzer: Analyzer, crops: Crops, corner: tuple[int, int]) -> None:
    size, scale = analyzer.manifest.preprocess.mask_size, analyzer.manifest.preprocess.mask_size / analyzer.manifest.preprocess.image_size
    x0, y0 = corner[0] * 42.0, corner[1] * 42.0
    embed = np.zeros(analyzer.manifest.decoder.width, np.float32)
    masks_MHW, _ = analyzer.masks(analyzer.encode(crops(1)), [0], [Answer(seg_embeds=[embed], within=(x0, y0, x0 + 14, y0 + 14))])
    left, top, side = round(x0 * scale), round(y0 * scale), round(14 * scale)
    inside = np.zeros((size, size), bool)
    inside[max(top - 1, 0) : top + side + 1, max(left - 1, 0) : left + side + 1] = True
    assert (masks_MHW[0][inside] > 0).all() and not masks_MHW[0][~inside].any()


class Halves(nn.Module):
    """A region parser: the left of every crop is one atom, the rest another; counts the crops it is shown."""

    def __init__(self, size: int, left: str = "right_iris", right: str = "background") -> None:
        super().__init__()
        self.shown = 0
        shares = torch.zeros(NUM_CHANNELS, size, size)
        shares[channels(left), :, : size // 2] = 1
        shares[channels(right), :, size // 2 :] = 1
        self.register_buffer("shares", shares)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.shown += len(image)
        return self.shares.expand(len(image), -1, -1, -1).clone()  # type: ignore[operator]


def part(module: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> TorchEngine:
    """A module as a part of a bundle."""
    specs = [tuple(TensorSpec(name=name, dtype="float32", shape=("batch",)) for name in names) for names in (inputs, outputs)]
    return TorchEngine(module, specs[0], specs[1])


def with_parser(bundle: Bundle, *atoms: str) -> tuple[Bundle, Halves]:
    parser = Halves(bundle.manifest.preprocess.mask_size, *atoms)
    return replace(bundle, engines={**bundle.engines, "region_parser": part(parser, ["image"], ["regions"])}), parser


class Everything(nn.Module):
    """A mask decoder that marks all of the crop."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, image_embeds: torch.Tensor, artifact_logits: torch.Tensor, seg_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((len(seg_embeds), self.size, self.size), 9.0), torch.zeros(len(seg_embeds))


def marking_everything(bundle: Bundle) -> Bundle:
    marker = part(Everything(bundle.manifest.preprocess.mask_size), ["image_embeds", "artifact_logits", "seg_embeds"], ["mask_logits", "iou_logit"])
    return replace(bundle, engines={**bundle.engines, "mask_decoder": marker})


def test_a_mask_stays_on_the_region_of_its_phrase_where_that_is_seen(reference: Bundle, crops: Crops) -> None:
    bundle = marking_everything(with_parser(reference)[0])
    analyzer, embed = Analyzer(bundle), np.zeros(bundle.manifest.decoder.width, np.float32)
    ids = bundle.vocabulary.tokenizer.encode("The <p> right iris </p> [SEG] and the <p> nose </p> [SEG] are soft.").ids
    eye_HW, nose_HW = analyzer.masks(analyzer.encode(crops(1)), [0], [Answer(ids, [embed, embed])])[0]
    half = eye_HW.shape[1] // 2
    assert (eye_HW[:, :half] > 0.5).all() and not eye_HW[:, half:].any()
    assert (nose_HW > 0.5).all()  # the parser sees no nose on this face


def test_an_explanation_names_what_localisation_marks_whatever_the_decoder_wants(reference: Bundle, crops: Crops) -> None:
    seeing = marking_everything(with_parser(reference)[0])
    said = " ".join(["The <p> nose </p> [SEG] is soft."] * 3)
    for bundle, places in ((reference, ["nose"] * 3), (seeing, ["right_eyeball", "background"])):
        analyzer, _, _ = scripted(bundle, [said])
        encoded = analyzer.encode(crops(1)) | {"prefix_embeds": prefixes(bundle, [0])}
        (explanation,) = analyzer.explain(encoded, crops(1), [0])
        assert sorted(evidence.concept for evidence in explanation.evidence) == sorted(places)
        assert not explanation.truncated and explanation.text.endswith(".")


def test_a_place_that_has_no_phrase_of_its_own_is_left_to_the_decoder(reference: Bundle, crops: Crops) -> None:
    """`hair` and its only sub-part share their words; an answer that may name nothing would break off at its first phrase."""
    analyzer = Analyzer(marking_everything(with_parser(reference, "hair_top", "hair_top")[0]))
    encoded = analyzer.encode(crops(1))
    for concept in ("hair_all", "hair", "hair_top", None):
        (places,) = analyzer._teller._places_to_name(encoded, [analyzer._reader.in_words(0, concept)])
        assert places is None or set(places) <= set(analyzer._reader.trie(concept).phrases)
        assert places != ()


def test_an_asked_region_is_marked_inside_it_alone_and_a_box_as_before(reference: Bundle, crops: Crops) -> None:
    reference = marking_everything(reference)
    bundle, _ = with_parser(reference)
    grounded, free = Analyzer(bundle), Analyzer(reference)
    half = bundle.manifest.preprocess.mask_size // 2
    queries: list[AreaQuery | None] = ["right_eyeball", (0.0, 0.0, 28.0, 28.0)]
    for ours, before in zip(*(a.analyze(crops(2), explain=["never"] * 2, queries=queries) for a in (grounded, free)), strict=True):
        assert ours.answer is not None and before.answer is not None and ours.answer.tampered_probability == before.answer.tampered_probability
    embed = np.zeros(bundle.manifest.decoder.width, np.float32)
    places: list[dict[str, Any]] = [{"concept": "right_eyeball"}, {"within": (0.0, 0.0, 28.0, 28.0)}, {}]
    answers = [Answer(seg_embeds=[embed], **place) for place in places]
    region_HW, box_HW, whole_HW = grounded.masks(grounded.encode(crops(1)), [0, 0, 0], answers)[0]
    _, box_before_HW, whole_before_HW = free.masks(free.encode(crops(1)), [0, 0, 0], answers)[0]
    assert region_HW[:, :half].any() and not region_HW[:, half:].any()
    np.testing.assert_array_equal(box_HW, box_before_HW)
    np.testing.assert_array_equal(whole_HW, whole_before_HW)


def test_a_face_is_parsed_once_and_only_when_a_place_is_spoken_of(reference: Bundle, crops: Crops) -> None:
    bundle, parser = with_parser(reference)
    analyzer = Analyzer(bundle)
    analyzer.analyze(crops(4), explain=["never"] * 4)
    assert parser.shown == 0
    encoded = analyzer.encode(crops(4))
    analyzer.regions(encoded, [1, 3, 1])
    assert parser.shown == 2
    assert set(analyzer.regions(encoded, [3, 2])) == {2, 3} and parser.shown == 3


def test_an_area_is_looked_at_once_for_its_text_and_its_answer(reference: Bundle, crops: Crops) -> None:
    analyzer = Analyzer(with_parser(reference)[0])
    looked, look = list[int](), analyzer._reader.places
    analyzer._reader.places = lambda prefix, asked: looked.append(len(asked)) or look(prefix, asked)  # type: ignore[func-returns-value, method-assign]
    analyzer.analyze(crops(2), explain=["never"] * 2, queries=["nose", (0.0, 0.0, 28.0, 28.0)])
    assert sum(looked) == 3  # the region in the mirror image too


def measuring(bundle: Bundle, *atoms: str) -> Bundle:
    """Two places on each face, all of it marked, room for any text of a tokenizer this small."""
    seeing = marking_everything(with_parser(bundle, *atoms)[0])
    decoder = seeing.manifest.decoder.model_copy(update={"capacity": 1024, "max_new_tokens": 600})
    return replace(seeing, manifest=seeing.manifest.model_copy(update={"wording": "measured", "decoder": decoder}))


def test_measured_words_and_the_evidence_beside_them_are_of_the_same_pixels(reference: Bundle, crops: Crops) -> None:
    analyzer, images = Analyzer(measuring(reference)), crops(3)
    encoded = analyzer.encode(images)
    answers = analyzer.ask(encoded, range(3), "age", [None] * 3)
    explanations = analyzer._explanations(encoded, images, [analyzer._reader.in_words(row, None) for row in range(3)], answers)
    for row, (answer, explanation) in enumerate(zip(answers, explanations, strict=True)):
        assert {evidence.concept for evidence in explanation.evidence} <= {"right_eyeball", "background"} and explanation.evidence
        shown = {e.concept: mask_HW >= 0.5 for e, mask_HW in zip(explanation.evidence, shown_at(explanation, 56), strict=True)}
        evidence = measured(images[row], analyzer.regions(encoded, [row])[row].drawn(56), shown, level="image")
        assert {item.concept: item.measured for item in evidence} == {e.concept: e.measured for e in explanation.evidence}
        assert all(set(e.usual) == set(e.measured) & set(get_args(Measurement)) and e.usual for e in explanation.evidence)
        again = worded(evidence, forgery_type=analyzer._teller._type(encoded, row), level="image", asked=None)
        assert again is not None and parse_markup(again.markup)[0] == explanation.text and not answer.truncated


def shown_at(explanation: Explanation, size: int) -> list[np.ndarray]:
    return [np.asarray(Image.fromarray(e.mask_probability_HW).resize((size, size), Image.Resampling.BILINEAR)) for e in explanation.evidence]


@pytest.mark.parametrize("task", ["age", "toe"])
def test_the_decoder_writes_only_what_cannot_be_measured(reference: Bundle, crops: Crops, task: Task) -> None:
    wrote = list[int]()
    for bundle, written in ((measuring(reference), 0), (measuring(reference, "hair_top", "hair_top"), 0), (replace(reference), 2)):
        analyzer = Analyzer(bundle)
        write = analyzer._teller._written
        analyzer._teller._written = lambda e, asked, t, w=write: wrote.append(len(asked)) or w(e, asked, t)  # type: ignore[func-returns-value, method-assign, misc]
        answers = analyzer.ask(analyzer.encode(crops(2)), range(2), task, [None] * 2)
        assert wrote.pop() == written
        assert all(bool(answer.seg_embeds) == (task == "age") for answer in answers) or written


def test_a_text_says_whose_words_it_has(reference: Bundle, crops: Crops) -> None:
    whose = {}
    for wording in ("measured", "decoded"):
        analyzer = Analyzer(measuring(reference), wording=wording)  # type: ignore[arg-type]
        doubted, certain = (analyzer.operating_point.model_copy(update={"real_below": cut}) for cut in (0.0, 1.0))
        (told,) = analyzer.analyze(crops(1), explain=["always"], queries=["right_iris"], points=[doubted])
        (clean,) = analyzer.analyze(crops(1), explain=["always"], points=[certain])
        assert told.explanation is not None and clean.explanation is not None and told.answer is not None
        whose[wording] = told.explanation.words, told.answer.explanation.words, clean.explanation.words
        assert all(bool(item.usual) == (wording == "measured") for item in told.explanation.evidence)
    assert whose["measured"] == ("measured",) * 3
    assert whose["decoded"][0] == "decoded" and whose["decoded"][1] in ("decoded", "fixed") and whose["decoded"][2] == "fixed"


def test_measured_words_are_left_to_the_decoder_where_it_is_asked_for(reference: Bundle, crops: Crops) -> None:
    bundle = measuring(reference)
    manifest = bundle.manifest.model_copy(update={"wording": "decoded"})
    analyzers = Analyzer(bundle, wording="decoded"), Analyzer(replace(bundle, manifest=manifest))
    told = [analyzer.analyze(crops(2), explain=["always"] * 2) for analyzer in analyzers]
    assert [analysis.explanation.text for analysis in told[0] if analysis.explanation] == [a.explanation.text for a in told[1] if a.explanation]


def test_an_answer_too_long_for_its_limit_names_fewer_places(reference: Bundle, crops: Crops) -> None:
    bundle = measuring(reference)
    lengths = []
    for limit in (600, 200, 4):
        decoder = bundle.manifest.decoder.model_copy(update={"max_new_tokens": limit})
        analyzer = Analyzer(replace(bundle, manifest=bundle.manifest.model_copy(update={"decoder": decoder})))
        encoded = analyzer.encode(crops(1))
        one, found = analyzer._reader.in_words(0, None), analyzer.regions(encoded, [0])[0].drawn(56)
        evidence = measured(encoded["crops"][0], found, {c: found.mask(c) for c in ("right_iris", "background")}, level="image")
        words = analyzer._teller._said(encoded, one, evidence, "age")
        assert words is None or len(words.ids) <= limit
        lengths.append(0 if words is None else len(words.told))
    assert lengths[0] == 2 and lengths == sorted(lengths, reverse=True) and lengths[-1] == 0


def test_a_region_asked_by_name_is_spoken_of_however_little_of_it_is_marked(reference: Bundle, crops: Crops) -> None:
    analyzer = Analyzer(measuring(reference))
    encoded = analyzer.encode(crops(1))
    found = analyzer.regions(encoded, [0])[0].drawn(56)
    size = analyzer.manifest.preprocess.mask_size
    speck_HW = np.zeros((size, size), np.float32)
    speck_HW[size // 2, 1] = 1.0
    for concept in ("right_iris", "right_eyeball"):
        (place,) = analyzer._teller._marked(encoded, analyzer._reader.in_words(0, concept), found, speck_HW)
        assert place.mask_HW.any() and concept in fict.concepts()[place.concept].path


def test_time_that_is_up_costs_a_measured_text(reference: Bundle, crops: Crops) -> None:
    analyzer = Analyzer(measuring(reference), clock_s=lambda: 5.0)
    doubted = analyzer.operating_point.model_copy(update={"real_below": 0.0})
    for analysis in analyzer.analyze(crops(2), explain=["always"] * 2, seconds_left=[-1.0, -1.0], points=[doubted] * 2):
        assert analysis.explanation is None


def test_a_box_between_the_centres_of_cells_still_has_one() -> None:
    assert box_cells((10.9, 3.0, 11.0, 3.1), 16, 1.0).sum() == 1
    assert box_cells((15.95, 15.95, 16.0, 16.0), 16, 1.0)[15, 15]
    assert box_cells((0.0, 0.0, 16.0, 16.0), 16, 1.0).all()


def test_localisation_decides_and_the_text_follows(analyzer: Analyzer, crops: Crops) -> None:
    analyses = analyzer.analyze(crops(4), explain=["never"] * 4, queries=["nose", "mouth", (0, 0, 30, 30), (20, 20, 56, 56)])
    for analysis in analyses:
        assert analysis.answer is not None
        assert analysis.answer.tampered == (analysis.answer.tampered_probability >= 0.5)
        if not analysis.answer.tampered:
            assert not analysis.answer.mask_probability_HW.any() and analysis.answer.explanation.evidence == ()


def mirroring(bundle: Bundle, mirrored_regions: bool) -> Analyzer:
    """Its analyzer, with regions located in the mirror image too or not."""
    return Analyzer(replace(bundle, manifest=bundle.manifest.model_copy(update={"mirrored_regions": mirrored_regions})))


def located(analyzer: Analyzer, images_BHWC: NDArray[np.uint8], queries: Sequence[AreaQuery]) -> list[AreaAnswer]:
    """Answers by localisation alone: no time is left for their texts."""
    count = len(images_BHWC)
    analyses = analyzer.analyze(images_BHWC, explain=["never"] * count, queries=queries, seconds_left=[-1.0] * count)
    return [analysis.answer for analysis in analyses if analysis.answer is not None]


@pytest.mark.parametrize("backend", ["served", "reference"])
@pytest.mark.parametrize(
    ("query", "twin"),
    [
        pytest.param("right_lower_cheek", "left_lower_cheek", id="side"),
        pytest.param("nose", "nose", id="middle"),
    ],
)
def test_a_region_and_its_twin_in_the_mirror_get_one_answer(
    backend: str, query: str, twin: str, crops: Crops, request: pytest.FixtureRequest
) -> None:
    images = crops(3)
    analyzer, alone = (mirroring(request.getfixturevalue(backend), also) for also in (True, False))

    def answers(who: Analyzer, images_BHWC: NDArray[np.uint8], region: str) -> list[AreaAnswer]:
        return located(who, images_BHWC, [region] * 3)

    told, mirrored = answers(analyzer, images, query), answers(analyzer, np.ascontiguousarray(images[:, :, ::-1]), twin)
    for one, other in zip(told, mirrored, strict=True):
        assert one.tampered_probability == pytest.approx(other.tampered_probability, abs=PARITY)
        np.testing.assert_allclose(one.mask_probability_HW, other.mask_probability_HW[:, ::-1], atol=10 * PARITY)
        assert one.mask_confidence == pytest.approx(other.mask_confidence, abs=10 * PARITY)
    views = answers(alone, images, query), answers(alone, np.ascontiguousarray(images[:, :, ::-1]), twin)
    means = [(one.tampered_probability + other.tampered_probability) / 2 for one, other in zip(*views, strict=True)]
    np.testing.assert_allclose([one.tampered_probability for one in told], means, atol=PARITY)
    assert max(abs(one.tampered_probability - mean) for one, mean in zip(views[0], means, strict=True)) > 10 * PARITY, "the views differ"


def test_only_faces_that_are_asked_about_a_region_are_seen_in_the_mirror(served: Bundle, crops: Crops) -> None:
    seen: list[int] = []

    class Counted:
        inputs, outputs = served.engines["encoder"].inputs, served.engines["encoder"].outputs

        def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            seen.append(len(feeds["image"]))
            return served.engines["encoder"].run(feeds)

    counted: Any = replace(served, engines={**served.engines, "encoder": Counted()})
    queries: list[AreaQuery | None] = [None, "nose", None, (0.0, 0.0, 20.0, 20.0)]
    for also, asked in ((True, queries), (True, None), (False, queries)):
        mirroring(counted, also).analyze(crops(4), explain=["never"] * 4, queries=asked, seconds_left=[-1.0] * 4)
    assert seen == [4, 1, 4, 4]


def test_a_mixed_batch_in_the_mirror_is_its_questions_one_by_one(served: Bundle, crops: Crops) -> None:
    images = crops(5)
    queries: list[AreaQuery] = ["right_cheek", (0.0, 0.0, 14.0, 14.0), "nose", (3.0, 20.0, 50.0, 33.0), "left_iris"]
    together = located(mirroring(served, True), images, queries)
    for row, (one, query) in enumerate(zip(together, queries, strict=True)):
        for mirrored_regions in [True] if isinstance(query, str) else [True, False]:  # boxes are asked of the crop alone
            (alone,) = located(mirroring(served, mirrored_regions), images[row : row + 1], [query])
            assert one.tampered_probability == pytest.approx(alone.tampered_probability, abs=PARITY)
            np.testing.assert_allclose(one.mask_probability_HW, alone.mask_probability_HW, atol=10 * PARITY)


def test_what_cannot_be_asked_is_refused(analyzer: Analyzer, reference: Bundle, crops: Crops) -> None:
    with pytest.raises(ValueError, match="is no FICT concept"):
        analyzer.analyze(crops(1), explain=["never"], queries=["third_eye"])
    with pytest.raises(ValueError, match="is empty or leaves the 56 px crop"):
        analyzer.analyze(crops(1), explain=["never"], queries=[(0.0, 0.0, 57.0, 10.0)])
    whole_only = Analyzer(replace(reference, manifest=reference.manifest.model_copy(update={"query_levels": ()})))
    with pytest.raises(ValueError, match="answers no region query"):
        whole_only.analyze(crops(1), explain=["never"], queries=["nose"])
    with pytest.raises(ValueError, match="1 crops but 1 explain policies and 2 queries"):
        analyzer.analyze(crops(1), explain=["never"], queries=["nose", "mouth"])


# The slot cache against teacher forcing. Shapes: B rows, P prefix tokens, L text tokens, E width, V vocabulary.


def empty_cache(model: FiFaMLLM, rows: int) -> list[torch.Tensor]:
    config = model.config
    return [torch.zeros(rows, config.lm_heads, CAPACITY, config.lm_width // config.lm_heads) for _ in cache_names(config)]


def read(model: FiFaMLLM, prefix_BPE: torch.Tensor, ids_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One question a row, teacher-forced."""
    positions_BL = torch.arange(ids_BL.shape[1]).expand(ids_BL.shape)
    return model.read(prefix_BPE, model.language.model.embed_tokens(ids_BL), torch.zeros_like(ids_BL), positions_BL)


def slots(rows: int, first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count).expand(rows, count).contiguous()


@torch.no_grad()
def test_prefill_and_decode_over_the_slot_cache_equal_teacher_forcing(model: FiFaMLLM) -> None:
    generator = torch.Generator().manual_seed(0)
    prefix_BPE = torch.randn(2, model.config.num_prefix_tokens, model.config.lm_width, generator=generator)
    ids_BL = torch.randint(0, model.config.vocab_size, (2, 9), generator=generator)
    logits_BLV, hidden_BLE = read(model, prefix_BPE, ids_BL)
    part, embed = DecoderPart(model.language, model.config), model.language.model.embed_tokens
    first, prompt = prefix_BPE.shape[1], 4
    inputs = torch.cat([prefix_BPE, embed(ids_BL[:, :prompt])], 1)
    logits, hidden, *past = part(inputs, slots(2, 0, first + prompt), empty_cache(model, 2))
    found = [(logits[:, first:], hidden[:, first:])]
    for step in range(prompt, ids_BL.shape[1]):
        logits, hidden, *past = part(embed(ids_BL[:, step : step + 1]), slots(2, first + step, 1), past)
        found.append((logits, hidden))
    torch.testing.assert_close(torch.cat([logits for logits, _ in found], 1), logits_BLV, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([hidden for _, hidden in found], 1), hidden_BLE, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_on_the_right_does_not_change_a_row(model: FiFaMLLM) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(1, 12, model.config.lm_width, generator=generator)
    follow = torch.randn(1, 1, model.config.lm_width, generator=generator)
    part, whole, short = DecoderPart(model.language, model.config), 12, 7
    logits_padded, _, *past_padded = part(inputs, slots(1, 0, whole), empty_cache(model, 1))
    logits, _, *past = part(inputs[:, :short], slots(1, 0, short), empty_cache(model, 1))
    torch.testing.assert_close(logits_padded[:, :short], logits, atol=1e-5, rtol=1e-5)
    after_padded, _, *_ = part(follow, slots(1, short, 1), past_padded)  # the pads' slots are overwritten or not yet seen
    after, _, *_ = part(follow, slots(1, short, 1), past)
    torch.testing.assert_close(after_padded, after, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_of_a_batch_may_stand_at_different_positions(model: FiFaMLLM) -> None:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(2, 8, model.config.lm_width, generator=generator)
    follow = torch.randn(2, 1, model.config.lm_width, generator=generator)
    part = DecoderPart(model.language, model.config)
    _, _, *past = part(inputs, slots(2, 0, 8), empty_cache(model, 2))
    together, _, *_ = part(follow, torch.tensor([[8], [5]]), past)
    for row, position in enumerate((8, 5)):
        _, _, *alone = part(inputs[row : row + 1, :position], slots(1, 0, position), empty_cache(model, 1))
        logits, _, *_ = part(follow[row : row + 1], torch.tensor([[position]]), alone)
        torch.testing.assert_close(together[row], logits[0], atol=1e-5, rtol=1e-5)
