"""The composition: face crops in, analyses out. Scores every face; explains only those that cross the explain threshold.

Score path: one run of the encoder for the whole batch. Explain path: prefill and decode over a slot KV cache that stays in the backend, one answer a
row, markup closed by an automaton; then one run of the mask decoder for all [SEG] states of the batch. Scoring never waits for text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines import fict
from engines.contracts import Analysis, BundleError, BundleFault, Evidence, Explanation, Label, Manifest, OperatingPoint
from engines.measure import measure_region
from engines.preprocess import to_model_input
from engines.prompts import EOS, PAD, SEG, MarkupAutomaton, PhraseTrie, Task, parse_markup
from engines.runtime import Bound, Bundle

ExplainPolicy = Literal["auto", "always", "never"]
MAX_EXPLAIN_ROWS = 16
"""Faces decoded together: past 8-16 rows a slot cache gains nothing on a CPU."""


@dataclass(slots=True)
class Answer:
    """One decoded answer: its tokens and, for each [SEG], the hidden state that drives the mask."""

    ids: list[int] = field(default_factory=list)
    seg_embeds: list[NDArray[np.float32]] = field(default_factory=list)
    """(E,) float32 each."""
    truncated: bool = False


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
        self._trie = PhraseTrie.of(bundle.vocabulary)

    def analyze(self, crops_BHWC: NDArray[np.uint8], *, explain: Sequence[ExplainPolicy]) -> list[Analysis]:
        """Judge (B, size, size, 3) uint8 RGB crops, B may be 0; one explain policy per face."""
        if len(crops_BHWC) == 0:
            return []
        if len(explain) != len(crops_BHWC):
            raise ValueError(f"{len(crops_BHWC)} crops but {len(explain)} explain policies; give one per crop")
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
        return [
            Analysis(float(scores_B[i]), float(raw_B[i]), tuple(float(p) for p in type_probs_BF[i]), maps_BHW[i], explanations.get(i))
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
            answers = self.decode(encoded["prefix_embeds"][chosen], "age")
            masks_MHW, confidence_M = self.masks(encoded, chosen, answers)
            taken = 0
            for row, answer in zip(chosen, answers, strict=True):
                count = len(answer.seg_embeds)
                part = slice(taken, taken + count)
                explanations.append(self._explanation(answer, masks_MHW[part], confidence_M[part], crops_BHWC[row]))
                taken += count
        return explanations

    def decode(self, prefix_embeds_BPE: NDArray[np.float32], task: Task) -> list[Answer]:
        """Answer one task for each row, greedily, all rows together. Rows that end keep their slot until the batch ends."""
        spec, vocabulary, table = self.manifest.decoder, self._bundle.vocabulary, self._bundle.token_embeddings_VE
        rows = len(prefix_embeds_BPE)
        question_BSE = self._question(prefix_embeds_BPE, task)
        first = question_BSE.shape[1]
        budget = min(spec.max_new_tokens, spec.capacity - first)
        bound = self._empty_cache(rows)
        out = bound.run({"inputs_embeds": question_BSE, "positions": _slots(rows, first)})
        logits_BV = out["logits"][:, -1]
        answers = [Answer() for _ in range(rows)]
        automata = [MarkupAutomaton(vocabulary, self._trie, budget, bare_seg=task == "loc") for _ in range(rows)]
        eos, seg, pad = (vocabulary.ids[token] for token in (EOS, SEG, PAD))
        live = [True] * rows
        for step in range(budget):
            tokens = [automaton.allow(logits) if alive else pad for automaton, logits, alive in zip(automata, logits_BV, live, strict=True)]
            for row, token in enumerate(tokens):
                if live[row] and token == eos:
                    answers[row].truncated, live[row] = automata[row].exhausted, False
                elif live[row]:
                    answers[row].ids.append(token)
            if not any(live):
                break
            # The last token's slot must exist even for rows that ended: they write pads where nothing is read.
            out = bound.run({"inputs_embeds": table[np.array(tokens)][:, None], "positions": np.full((rows, 1), first + step, np.int64)})
            logits_BV = out["logits"][:, -1]
            for row, token in enumerate(tokens):
                if live[row] and token == seg:
                    answers[row].seg_embeds.append(out["hidden"][row, -1].copy())
        return answers

    def force(self, prefix_embeds_BPE: NDArray[np.float32], markups: Sequence[str], task: Task) -> list[Answer]:
        """What each row would mean had it written this markup: the [SEG] states of one run over question and answer, nothing decoded.

        Raises ValueError for markup that leaves no room in the cache.
        """
        spec, vocabulary = self.manifest.decoder, self._bundle.vocabulary
        answers = [Answer(vocabulary.tokenizer.encode(markup).ids) for markup in markups]
        question_BSE = self._question(prefix_embeds_BPE, task)
        first, longest = question_BSE.shape[1], max((len(answer.ids) for answer in answers), default=0)
        if first + longest > spec.capacity:
            raise ValueError(
                f"an answer of {longest} tokens does not fit: the cache has {spec.capacity} slots, the question takes {first}; shorten it"
            )
        tokens_BL = np.full((len(answers), longest), vocabulary.ids[PAD])  # padding on the right: no state before it sees it
        for row, answer in enumerate(answers):
            tokens_BL[row, : len(answer.ids)] = answer.ids
        inputs_BSE = np.concatenate([question_BSE, self._bundle.token_embeddings_VE[tokens_BL]], 1)
        out = self._empty_cache(len(answers)).run({"inputs_embeds": inputs_BSE, "positions": _slots(len(answers), first + longest)})
        for answer, hidden_LE in zip(answers, out["hidden"][:, first:], strict=True):
            answer.seg_embeds = [hidden_LE[at].copy() for at, token in enumerate(answer.ids) if token == vocabulary.ids[SEG]]
        return answers

    def _question(self, prefix_embeds_BPE: NDArray[np.float32], task: Task) -> NDArray[np.float32]:
        """(B, S, E): the face, then the prompt."""
        prompt_SE = self._bundle.token_embeddings_VE[self._bundle.vocabulary.prompt_ids(task)]
        return np.concatenate([prefix_embeds_BPE, np.broadcast_to(prompt_SE, (len(prefix_embeds_BPE), *prompt_SE.shape))], 1)

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
        return sigmoid(out["mask_logits"]), sigmoid(out["iou_logit"])

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


def last_whole_sentence(markup: str) -> str:
    """Cut text that hit the token limit after its last full stop; '' when not one sentence is whole."""
    return markup[: markup.rfind(".") + 1]


def _slots(rows: int, count: int) -> NDArray[np.int64]:
    """(rows, count): the first slots of the cache, for every row."""
    return np.tile(np.arange(count, dtype=np.int64), (rows, 1))


def _at_crop_size(mask_HW: NDArray[np.float32], size: int) -> NDArray[np.bool_]:
    resized = Image.fromarray(mask_HW).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized) >= 0.5
