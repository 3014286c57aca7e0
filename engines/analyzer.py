"""The composition: face crops in, analyses out. Scores every face; explains only those that cross the explain threshold.

Score path: one run of the encoder for the whole batch. Explain path: prefill and decode over a slot KV cache that stays in the backend, one answer a
row, markup closed by an automaton; then one run of the mask decoder for all [SEG] states of the batch. Scoring never waits for text.
A face may be asked about one region or box: what is asked stands in the prompt, as FICT's words or as the `<bbox>` embedding of the box encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines import fict
from engines.contracts import (
    Analysis,
    AreaAnswer,
    AreaQuery,
    Box,
    BundleError,
    BundleFault,
    Evidence,
    Explanation,
    Label,
    Manifest,
    OperatingPoint,
    QueryLevel,
)
from engines.measure import measure_region
from engines.preprocess import to_model_input
from engines.prompts import BBOX, EOS, PAD, SEG, Level, MarkupAutomaton, PhraseTrie, Task, loc_answer, parse_markup
from engines.runtime import Bound, Bundle

ExplainPolicy = Literal["auto", "always", "never"]
REBUILD_FOR_QUERIES = "export one that was trained on instruction data"
MAX_EXPLAIN_ROWS = 16
"""Faces decoded together: past 8-16 rows a slot cache gains nothing on a CPU."""


@dataclass(slots=True)
class Answer:
    """One decoded answer: its tokens and, for each [SEG], the hidden state that drives the mask."""

    ids: list[int] = field(default_factory=list)
    seg_embeds: list[NDArray[np.float32]] = field(default_factory=list)
    """(E,) float32 each."""
    truncated: bool = False
    within: Box | None = None
    """The asked box, in pixels of the crop: masks end a cell beyond it."""
    tampered_probability: float | None = None
    """Localisation: how sure the answer is that something is manipulated."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question about one row of an encoded batch, in tokens."""

    row: int
    level: Level
    phrase: str | None
    concept: str | None
    box: Box | None


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logistic function without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), np.float32)


def softmax(logits_BF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows to probabilities, (B, F) float32, without overflow."""
    powers_BF = np.exp(logits_BF - logits_BF.max(1, keepdims=True))
    return np.asarray(powers_BF / powers_BF.sum(1, keepdims=True), np.float32)


class Analyzer:
    """Judges batches of face crops with one bundle. Not thread-safe: it runs engines."""

    def __init__(self, bundle: Bundle, *, operating_point: str | None = None) -> None:
        """`operating_point` names one of the manifest's; None takes its default. Raises BundleError (unsupported)."""
        self._bundle = bundle
        self.manifest: Manifest = bundle.manifest
        name = operating_point or self.manifest.default_operating_point
        if name not in self.manifest.operating_points:
            known = ", ".join(sorted(self.manifest.operating_points))
            raise BundleError(BundleFault.UNSUPPORTED, f"engine.operating_point {name!r} is not in the bundle; it has: {known}")
        self.operating_point: OperatingPoint = self.manifest.operating_points[name]
        self._tries: dict[str | None, PhraseTrie] = {}

    @property
    def query_levels(self) -> tuple[QueryLevel, ...]:
        """Which of 'region' and 'box' may be asked about."""
        return self.manifest.query_levels

    def analyze(
        self, crops_BHWC: NDArray[np.uint8], *, explain: Sequence[ExplainPolicy], queries: Sequence[AreaQuery | None] | None = None
    ) -> list[Analysis]:
        """Judge (B, size, size, 3) uint8 RGB crops, B may be 0; one explain policy per face, and one query or None where areas are asked about.

        Raises ValueError for counts that do not match and for queries that cannot be asked (`ask`).
        """
        if len(crops_BHWC) == 0:
            return []
        if len(explain) != len(crops_BHWC) or (queries is not None and len(queries) != len(crops_BHWC)):
            given = f"{len(explain)} explain policies" if queries is None else f"{len(explain)} explain policies and {len(queries)} queries"
            raise ValueError(f"{len(crops_BHWC)} crops but {given}; give one per crop")
        encoded = self.encode(crops_BHWC)
        raw_B = encoded["det_logit"]
        scores_B = self.calibrated(raw_B)
        type_probs_BF = softmax(encoded["type_logits"])
        grid = self.manifest.preprocess.grid
        maps_BHW = sigmoid(encoded["artifact_logits"]).reshape(-1, grid, grid)
        wanted = [
            i for i, policy in enumerate(explain) if policy == "always" or (policy == "auto" and scores_B[i] >= self.operating_point.explain_at)
        ]
        explanations = dict(zip(wanted, self.explain(encoded, crops_BHWC, wanted), strict=True))
        asked = {row: query for row, query in enumerate(queries or ()) if query is not None}
        answers = dict(zip(asked, self.answer(encoded, crops_BHWC, list(asked), list(asked.values())), strict=True))
        return [
            Analysis(float(scores_B[i]), float(raw_B[i]), tuple(float(p) for p in type_probs_BF[i]), maps_BHW[i], explanations.get(i), answers.get(i))
            for i in range(len(crops_BHWC))
        ]

    def encode(self, crops_BHWC: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Run the score path; every output of the encoder part, by name."""
        return self._bundle.engines["encoder"].run({"image": to_model_input(crops_BHWC)})

    def calibrated(self, raw_B: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw logits to probabilities by the manifest's calibration."""
        calibration = self.manifest.calibration
        return sigmoid(raw_B * np.float32(calibration.scale) + np.float32(calibration.bias))

    def label(self, fake_score: float) -> Label:
        """What the operating point makes of a calibrated score."""
        if fake_score >= self.operating_point.fake_at:
            return Label.FAKE
        return Label.REAL if fake_score < self.operating_point.real_below else Label.INCONCLUSIVE

    def explain(self, encoded: dict[str, NDArray[Any]], crops_BHWC: NDArray[np.uint8], rows: Sequence[int]) -> list[Explanation]:
        """Explain the chosen rows of an encoded batch, in their order."""
        explanations: list[Explanation] = []
        for first in range(0, len(rows), MAX_EXPLAIN_ROWS):
            chosen = list(rows[first : first + MAX_EXPLAIN_ROWS])
            answers = self.tell(encoded, chosen, "age")
            masks_MHW, confidence_M = self.masks(encoded, chosen, answers)
            taken = 0
            for row, answer in zip(chosen, answers, strict=True):
                count = len(answer.seg_embeds)
                part = slice(taken, taken + count)
                explanations.append(self._explanation(answer, masks_MHW[part], confidence_M[part], crops_BHWC[row]))
                taken += count
        return explanations

    def answer(
        self, encoded: dict[str, NDArray[Any]], crops_BHWC: NDArray[np.uint8], rows: Sequence[int], queries: Sequence[AreaQuery]
    ) -> list[AreaAnswer]:
        """Answer one query for each of the rows. Localisation decides; a text that says otherwise gives way to its sentence."""
        if not rows:
            return []
        asked = self._asked(rows, queries)
        box_embeds = self._box_embeds(encoded, asked)
        located, told = (self._in_rounds(encoded, asked, task, box_embeds) for task in ("loc", "age"))
        masks_MHW, confidence_M = self.masks(encoded, rows, located)
        evidence_MHW, evidence_confidence_M = self.masks(encoded, rows, told)
        size = self.manifest.preprocess.mask_size
        answers, shown, cited = [], 0, 0
        for one, place, text in zip(asked, located, told, strict=True):
            tampered = bool(place.seg_embeds)
            mask_HW, confidence = (masks_MHW[shown], float(confidence_M[shown])) if tampered else (np.zeros((size, size), np.float32), 0.0)
            own = slice(cited, cited + len(text.seg_embeds))
            explanation = self._explanation(text, evidence_MHW[own], evidence_confidence_M[own], crops_BHWC[one.row])
            if tampered != bool(explanation.evidence):
                said = parse_markup(loc_answer(tampered, one.level, one.phrase))[0]
                explanation = Explanation(said, said, ())
            assert place.tampered_probability is not None, "localisation states its probability"
            answers.append(AreaAnswer(tampered, place.tampered_probability, mask_HW, confidence, explanation))
            shown, cited = shown + tampered, cited + len(text.seg_embeds)
        return answers

    def tell(self, encoded: dict[str, NDArray[Any]], rows: Sequence[int], task: Task) -> list[Answer]:
        """Answer one task about the whole face for rows of an encoded batch, as it is served: a face that its score calls real is told clean."""
        scores = self.calibrated(encoded["det_logit"][list(rows)])
        doubted = [number for number, score in enumerate(scores) if score >= self.operating_point.real_below]
        clean = self._bundle.vocabulary.tokenizer.encode(loc_answer(False)).ids
        answers = [Answer(list(clean)) for _ in rows]
        for number, answer in zip(doubted, self.decode(encoded["prefix_embeds"][[rows[number] for number in doubted]], task), strict=True):
            answers[number] = answer
        return answers

    def decode(self, prefix_embeds_BPE: NDArray[np.float32], task: Task) -> list[Answer]:
        """Answer one task about the whole face for each row."""
        nothing = [None] * len(prefix_embeds_BPE)
        return self._tell(prefix_embeds_BPE, self._asked(range(len(nothing)), nothing), task, nothing)

    def ask(self, encoded: dict[str, NDArray[Any]], rows: Sequence[int], task: Task, queries: Sequence[AreaQuery | None]) -> list[Answer]:
        """Answer one query for each of the rows of an encoded batch, where a row may come several times; None asks about the whole face.

        Raises ValueError for a level that the bundle does not answer, an unknown concept, and a box that is empty or leaves the crop.
        """
        asked = self._asked(rows, queries)
        return self._in_rounds(encoded, asked, task, self._box_embeds(encoded, asked))

    def _box_embeds(self, encoded: dict[str, NDArray[Any]], asked: Sequence[_Asked]) -> list[NDArray[np.float32] | None]:
        """The `<bbox>` embedding of each question about a box, (E,), in one run; None for the others."""
        with_box = [one for one in asked if one.box is not None]
        if not with_box:
            return [None] * len(asked)
        owners = [one.row for one in with_box]
        out = self._bundle.engines["box_encoder"].run(
            {
                "image_embeds": encoded["image_embeds"][owners],
                "artifact_logits": encoded["artifact_logits"][owners],
                "box": np.array([one.box for one in with_box], np.float32),
            }
        )
        embeds = iter(out["box_embeds"])
        return [None if one.box is None else next(embeds) for one in asked]

    def _in_rounds(
        self, encoded: dict[str, NDArray[Any]], asked: Sequence[_Asked], task: Task, box_embeds: Sequence[NDArray[np.float32] | None]
    ) -> list[Answer]:
        """Answer any number of questions, `MAX_EXPLAIN_ROWS` together."""
        answers: list[Answer] = []
        for first in range(0, len(asked), MAX_EXPLAIN_ROWS):
            part = slice(first, first + MAX_EXPLAIN_ROWS)
            answers += self._tell(encoded["prefix_embeds"][[one.row for one in asked[part]]], asked[part], task, box_embeds[part])
        return answers

    def _asked(self, rows: Sequence[int], queries: Sequence[AreaQuery | None]) -> list[_Asked]:
        """Check queries and put them in words."""
        side = self.manifest.preprocess.image_size
        asked = []
        for row, query in zip(rows, queries, strict=True):
            level: Level = "image" if query is None else "region" if isinstance(query, str) else "box"
            if level != "image" and level not in self.manifest.query_levels:
                known = ", ".join(self.manifest.query_levels) or "none"
                raise ValueError(f"the bundle {self.manifest.name} answers no {level} query (it answers: {known}); {REBUILD_FOR_QUERIES}")
            if isinstance(query, str):
                if query not in fict.concepts():
                    raise ValueError(f"{query!r} is no FICT concept; use an id such as right_cheek")
                asked.append(_Asked(row, level, fict.concepts()[query].phrase, query, None))
            elif query is not None:
                x0, y0, x1, y1 = query
                if not (0 <= x0 < x1 <= side and 0 <= y0 < y1 <= side):
                    raise ValueError(f"box {query} is empty or leaves the {side} px crop; clip it first")
                asked.append(_Asked(row, level, None, None, query))
            else:
                asked.append(_Asked(row, level, None, None, None))
        return asked

    def _tell(
        self, prefix_embeds_BPE: NDArray[np.float32], asked: Sequence[_Asked], task: Task, box_embeds: Sequence[NDArray[np.float32] | None]
    ) -> list[Answer]:
        """Answer one question for each row, greedily, all rows together. Rows that end keep their slot until the batch ends."""
        if not asked:
            return []
        if task == "loc":
            return self._locate(prefix_embeds_BPE, asked, box_embeds)
        spec, vocabulary, table = self.manifest.decoder, self._bundle.vocabulary, self._bundle.token_embeddings_VE
        rows = len(asked)
        question_BSE, first_B = self._questions(prefix_embeds_BPE, asked, task, box_embeds)
        budgets = [min(spec.max_new_tokens, spec.capacity - int(first)) for first in first_B]
        bound = self._empty_cache(rows)
        # Shorter questions are padded on the right: what a pad writes is overwritten before anything sees it.
        out = bound.run({"inputs_embeds": question_BSE, "positions": _slots(rows, question_BSE.shape[1])})
        logits_BV = out["logits"][np.arange(rows), first_B - 1]
        answers = [Answer(within=one.box) for one in asked]
        automata = [MarkupAutomaton(vocabulary, self._trie(one.concept), budget) for one, budget in zip(asked, budgets, strict=True)]
        eos, seg, pad = (vocabulary.ids[token] for token in (EOS, SEG, PAD))
        live = [True] * rows
        for step in range(max(budgets)):
            tokens = [automaton.allow(logits) if alive else pad for automaton, logits, alive in zip(automata, logits_BV, live, strict=True)]
            for row, token in enumerate(tokens):
                if live[row] and token == eos:
                    answers[row].truncated, live[row] = automata[row].exhausted, False
                elif live[row]:
                    answers[row].ids.append(token)
            if not any(live):
                break
            # The last token's slot must exist even for rows that ended: they write pads where nothing is read.
            slots = np.minimum(first_B + step, spec.capacity - 1)[:, None]
            out = bound.run({"inputs_embeds": table[np.array(tokens)][:, None], "positions": slots})
            logits_BV = out["logits"][:, -1]
            for row, token in enumerate(tokens):
                if live[row] and token == seg:
                    answers[row].seg_embeds.append(out["hidden"][row, -1].copy())
        return answers

    def _locate(
        self, prefix_embeds_BPE: NDArray[np.float32], asked: Sequence[_Asked], box_embeds: Sequence[NDArray[np.float32] | None]
    ) -> list[Answer]:
        """Localisation has two answers, so nothing is decoded: one run over the question and the longer answer tells which begins, and its [SEG]."""
        vocabulary, rows = self._bundle.vocabulary, len(asked)
        either = [[vocabulary.tokenizer.encode(loc_answer(state, one.level, one.phrase)).ids for state in (True, False)] for one in asked]
        question_BSE, first_B = self._questions(prefix_embeds_BPE, asked, "loc", box_embeds, behind=[tampered for tampered, _ in either])
        out = self._empty_cache(rows).run({"inputs_embeds": question_BSE, "positions": _slots(rows, question_BSE.shape[1])})
        answers = []
        for row, ((tampered, clean), one) in enumerate(zip(either, asked, strict=True)):
            begun_V = out["logits"][row, first_B[row] - 1]
            probability = float(sigmoid(begun_V[tampered[0]] - begun_V[clean[0]]))
            answer = Answer(list(tampered if probability >= 0.5 else clean), within=one.box, tampered_probability=probability)
            if probability >= 0.5:
                answer.seg_embeds = [out["hidden"][row, first_B[row] + tampered.index(vocabulary.ids[SEG])].copy()]
            answers.append(answer)
        return answers

    def _trie(self, concept: str | None) -> PhraseTrie:
        """The phrases an answer may use: all of FICT, or those of the asked concept and below it."""
        if concept not in self._tries:
            self._tries[concept] = PhraseTrie.of(self._bundle.vocabulary, concept)
        return self._tries[concept]

    def force(self, prefix_embeds_BPE: NDArray[np.float32], markups: Sequence[str], task: Task) -> list[Answer]:
        """What each row would mean had it written this markup: the [SEG] states of one run over question and answer, nothing decoded.

        Raises ValueError for markup that leaves no room in the cache.
        """
        spec, vocabulary = self.manifest.decoder, self._bundle.vocabulary
        answers = [Answer(vocabulary.tokenizer.encode(markup).ids) for markup in markups]
        nothing = [None] * len(answers)
        asked = self._asked(range(len(answers)), nothing)
        inputs_BSE, first_B = self._questions(prefix_embeds_BPE, asked, task, nothing, behind=[answer.ids for answer in answers])
        if inputs_BSE.shape[1] > spec.capacity:
            longest = max(len(answer.ids) for answer in answers)
            raise ValueError(
                f"an answer of {longest} tokens does not fit: the cache has {spec.capacity} slots, the question takes {first_B[0]}; shorten it"
            )
        out = self._empty_cache(len(answers)).run({"inputs_embeds": inputs_BSE, "positions": _slots(len(answers), inputs_BSE.shape[1])})
        for row, answer in enumerate(answers):
            hidden_LE = out["hidden"][row, first_B[row] :]
            answer.seg_embeds = [hidden_LE[at].copy() for at, token in enumerate(answer.ids) if token == vocabulary.ids[SEG]]
        return answers

    def _questions(
        self,
        prefix_embeds_BPE: NDArray[np.float32],
        asked: Sequence[_Asked],
        task: Task,
        box_embeds: Sequence[NDArray[np.float32] | None],
        behind: Sequence[Sequence[int]] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(B, S, E) the face, the prompt and what stands `behind` it, padded on the right; and where each row's answer begins, (B,) int64."""
        vocabulary, table = self._bundle.vocabulary, self._bundle.token_embeddings_VE
        prompts = [vocabulary.prompt_ids(task, one.level, one.phrase) for one in asked]
        whole = [[*prompt, *after] for prompt, after in zip(prompts, behind or [()] * len(prompts), strict=True)]
        ids_BL = np.full((len(whole), max((len(ids) for ids in whole), default=0)), vocabulary.ids[PAD])
        for row, ids in enumerate(whole):
            ids_BL[row, : len(ids)] = ids
        text_BLE = table[ids_BL]
        for row, embed in enumerate(box_embeds):
            if embed is not None:
                text_BLE[row, prompts[row].index(vocabulary.ids[BBOX])] = embed
        first_B = prefix_embeds_BPE.shape[1] + np.array([len(prompt) for prompt in prompts], np.int64)
        return np.concatenate([prefix_embeds_BPE, text_BLE], 1), first_B

    def _empty_cache(self, rows: int) -> Bound:
        spec = self.manifest.decoder
        names = [f"{kind}{layer}" for layer in range(spec.num_layers) for kind in "kv"]
        shape = (rows, spec.num_heads, spec.capacity, spec.head_dim)
        return self._bundle.engines["decoder"].bind({f"past_{name}": f"present_{name}" for name in names}, {f"past_{name}": shape for name in names})

    def markup(self, answer: Answer) -> str:
        """The markup of an answer; one that hit the token limit ends at its last whole sentence, and its later [SEG] states have no phrase."""
        written = self._bundle.vocabulary.markup(answer.ids)
        return last_whole_sentence(written) if answer.truncated else written

    def masks(
        self, encoded: dict[str, NDArray[Any]], rows: Sequence[int], answers: Sequence[Answer]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Masks for all [SEG] states: probabilities (M, mask_size, mask_size) over the crop and predicted IoU (M,)."""
        owners = [row for row, answer in zip(rows, answers, strict=True) for _ in answer.seg_embeds]
        size = self.manifest.preprocess.mask_size
        if not owners:
            return np.zeros((0, size, size), np.float32), np.zeros(0, np.float32)
        out = self._bundle.engines["mask_decoder"].run(
            {
                "image_embeds": encoded["image_embeds"][owners],
                "artifact_logits": encoded["artifact_logits"][owners],
                "seg_embeds": np.stack([embed for answer in answers for embed in answer.seg_embeds]),
            }
        )
        masks_MHW = sigmoid(out["mask_logits"])
        boxes = [answer.within for answer in answers for _ in answer.seg_embeds]
        for mask_HW, box in zip(masks_MHW, boxes, strict=True):
            if box is not None:
                mask_HW *= box_cells(_grown(box, self.manifest.preprocess.image_size / size), size, size / self.manifest.preprocess.image_size)
        return masks_MHW, sigmoid(out["iou_logit"])

    def _explanation(
        self, answer: Answer, masks_MHW: NDArray[np.float32], confidence_M: NDArray[np.float32], crop_HWC: NDArray[np.uint8]
    ) -> Explanation:
        markup = self.markup(answer)
        text, spans = parse_markup(markup)
        by_phrase = fict.by_phrase()
        evidence = tuple(
            Evidence(
                phrase=span.phrase,
                char_span=(span.start, span.end),
                concept=by_phrase[span.phrase],
                mask_probability_HW=mask_HW,
                mask_confidence=float(confidence),
                measured=measure_region(crop_HWC, _at_crop_size(mask_HW, crop_HWC.shape[0])),
            )
            for span, mask_HW, confidence in zip(spans, masks_MHW, confidence_M, strict=False)  # truncation drops the last phrases
        )
        return Explanation(text, markup, evidence, answer.truncated)


def box_cells(box_xyxy: Box, size: int, scale: float) -> NDArray[np.bool_]:
    """(size, size) cells of a grid whose centres lie in a box; `scale` takes the box to cells. A box between centres keeps the cell it begins in."""

    def along(low: float, high: float) -> NDArray[np.bool_]:
        centres = np.arange(size) + 0.5
        inside = (centres >= low * scale) & (centres < high * scale)
        inside[min(max(int(low * scale), 0), size - 1)] |= not inside.any()
        return inside

    x0, y0, x1, y1 = box_xyxy
    return np.outer(along(y0, y1), along(x0, x1))


def _grown(box_xyxy: Box, margin: float) -> Box:
    """A cell more on every side: interpolation at the box's edge then meets no zero, and who shows the mask cuts it to the pixel."""
    x0, y0, x1, y1 = box_xyxy
    return x0 - margin, y0 - margin, x1 + margin, y1 + margin


def last_whole_sentence(markup: str) -> str:
    """Cut text that hit the token limit after its last full stop; '' when not one sentence is whole."""
    return markup[: markup.rfind(".") + 1]


def _slots(rows: int, count: int) -> NDArray[np.int64]:
    """(rows, count): the first slots of the cache, for every row."""
    return np.tile(np.arange(count, dtype=np.int64), (rows, 1))


def _at_crop_size(mask_HW: NDArray[np.float32], size: int) -> NDArray[np.bool_]:
    resized = Image.fromarray(mask_HW).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized) >= 0.5
