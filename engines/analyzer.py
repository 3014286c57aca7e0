"""The composition: face crops in, analyses out. Scores every face; explains only those that cross the explain threshold.

Score path: one run of the encoder for the whole batch; scoring never waits for text. Explain path: what localisation marks is measured and worded
(`engines.wording`), and one run of the decoder over those words gives their [SEG] states. Where the manifest leaves the words to the decoder, or
nothing is marked, texts go through one decode loop. Then one run of the mask decoder for all [SEG] states.
A face may be asked about one region or box: what is asked stands in the prompt, as FICT's words or as the `<bbox>` embedding of the box encoder.
Where the manifest says so, a region is located in the crop's mirror image too, and the two answers are averaged.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, repeat
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines import fict
from engines import wording as measured_words
from engines.bundle import Bundle
from engines.contracts import (
    APPEARANCE_SIZE,
    FORGERY_TYPES,
    Analysis,
    AreaAnswer,
    AreaQuery,
    Box,
    BundleError,
    BundleFault,
    EngineError,
    Evidence,
    Explanation,
    Manifest,
    OperatingPoint,
    QueryLevel,
    Wording,
    Words,
)
from engines.decode import SLOTS, DecodeLoop, End, Question
from engines.drafts import Drafts
from engines.findings import FACE_PARTS, ConceptEvidence, farthest, usual_at, within
from engines.measure import measure_region
from engines.preprocess import to_model_input
from engines.prompts import BBOX, SEG, Level, PhraseTrie, Task, loc_answer, parse_markup
from engines.regions import NUM_CHANNELS, FaceRegions, Regions
from engines.wording import MOST_PLACES

ExplainPolicy = Literal["auto", "always", "never"]
REBUILD_FOR_QUERIES = "export one that was trained on instruction data"
APPEARANCE_CELLS = 4
"""A side of the coarse grid that an appearance sees of a face."""
APPEARANCE_SEED = 20531
MOST_NAMED = 6
"""Places that are measured for an explanation, of which it names `MOST_PLACES`: as many as the annotator's."""


class _Shown(NamedTuple):
    """The mask of one [SEG]."""

    probability_HW: NDArray[np.float32]
    confidence: np.float32
    measured: dict[str, float]
    usual: dict[str, float]


@dataclass(slots=True)
class Answer:
    """One answer: its tokens and, for each [SEG], the hidden state that drives the mask."""

    ids: list[int] = field(default_factory=list)
    seg_embeds: list[NDArray[np.float32]] = field(default_factory=list)
    """(E,) float32 each."""
    end: End = End.WHOLE
    within: Box | None = None
    """The asked box, in pixels of the crop: masks end a cell beyond it."""
    tampered_probability: float | None = None
    """Localisation: how sure the answer is that something is manipulated."""
    concept: str | None = None
    """The asked region, which a [SEG] without a phrase speaks of."""
    shown: list[_Shown] | None = None
    """What each [SEG] shows on the face that was asked about, where it was looked at already."""
    words: Words = "fixed"

    @property
    def truncated(self) -> bool:
        """A limit ended the answer, not the model."""
        return self.end not in (End.WHOLE, End.NAMED)


@dataclass(frozen=True, slots=True)
class _Place:
    """What localisation reads before anything is decided."""

    tampered_probability: float
    seg_embed_E: NDArray[np.float32]
    """The state that drives the mask, should the answer be tampered."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question about one row of an encoded batch, in tokens."""

    row: int
    level: Level = "image"
    phrase: str | None = None
    concept: str | None = None
    box: Box | None = None
    box_embed_E: NDArray[np.float32] | None = None
    deadline_s: float | None = None
    place: _Place | None = None
    """What localisation read, where it has looked already."""


@dataclass(frozen=True, slots=True)
class _Spoken:
    """The region that a mask belongs to."""

    concept: str
    rim: bool
    """A phrase's mask may leave its region by a rim, as the annotator's do; that of an asked region may not."""


class _Words(NamedTuple):
    """What is said, in tokens, and what each phrase of it is about."""

    ids: list[int]
    told: tuple[ConceptEvidence, ...]


class _Draft(NamedTuple):
    """Words for what localisation marks."""

    one: _Asked
    found: Regions
    words: _Words


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logistic function without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), np.float32)


def softmax(logits_BF: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows to probabilities, (B, F) float32, without overflow."""
    powers_BF = np.exp(logits_BF - logits_BF.max(1, keepdims=True))
    return np.asarray(powers_BF / powers_BF.sum(1, keepdims=True), np.float32)


def find_operating_point(manifest: Manifest, name: str | None, *, setting: str = "engine.operating_point") -> OperatingPoint:
    """By name, the default one for None. Raises BundleError (unsupported), which names the setting."""
    name = name or manifest.default_operating_point
    if name not in manifest.operating_points:
        known = ", ".join(sorted(manifest.operating_points))
        raise BundleError(BundleFault.UNSUPPORTED, f"{setting} {name!r} is not in the bundle; it has: {known}")
    return manifest.operating_points[name]


class Analyzer:
    """Judges batches of face crops with one bundle. Not thread-safe: it runs engines."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        operating_point: str | None = None,
        slots: int = SLOTS,
        drafts: Drafts | None = None,
        appearance: bool = False,
        wording: Wording | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`operating_point` names one of the manifest's, for faces that `analyze` is given none for; None takes its default. `slots` answers are
        decoded together, with `drafts` as in `DecodeLoop`. `appearance` fills that of every analysis: where nobody follows people, none is computed.
        `wording` is the manifest's where it is None; "decoded" shows what the parts themselves write, which a build is held against.

        Raises BundleError (unsupported).
        """
        self._bundle = bundle
        self.manifest: Manifest = bundle.manifest
        self.operating_point: OperatingPoint = find_operating_point(self.manifest, operating_point)
        self._slots, self._drafts, self._clock_s = slots, drafts, clock_s
        self._tries: dict[str | None, PhraseTrie] = {}
        self._has_appearance = appearance
        self._is_measured = (wording or self.manifest.wording) == "measured" and "region_parser" in bundle.engines
        self._projection_FA: NDArray[np.float32] | None = None

    @cached_property
    def _loop(self) -> DecodeLoop:
        """Made when something is explained: scoring needs no decoder."""
        return DecodeLoop(self._bundle, slots=self._slots, drafts=self._drafts, clock_s=self._clock_s)

    @property
    def query_levels(self) -> tuple[QueryLevel, ...]:
        """Which of 'region' and 'box' may be asked about."""
        return self.manifest.query_levels

    def analyze(
        self,
        crops_BHWC: NDArray[np.uint8],
        *,
        explain: Sequence[ExplainPolicy],
        queries: Sequence[AreaQuery | None] | None = None,
        seconds_left: Sequence[float | None] | None = None,
        points: Sequence[OperatingPoint] | None = None,
    ) -> list[Analysis]:
        """Judge (B, size, size, 3) uint8 RGB crops, B may be 0; one explain policy per face, and one query or None where areas are asked about.

        `points` are the cuts of each face, where they are not the analyzer's own: whom `auto` explains, and who is told clean.
        `seconds_left` of a face end its texts at their last whole sentence. Time that is up before a text begins costs that text: the face is
        scored and not explained, and a query is answered by localisation alone.
        Raises ValueError for counts that do not match and for queries that cannot be asked (`ask`), EngineError for outputs that are no numbers.
        """
        count = len(crops_BHWC)
        if count == 0:
            return []
        given = {"explain policies": explain, "queries": queries, "times": seconds_left, "operating points": points}
        if any(values is not None and len(values) != count for values in given.values()):
            stated = " and ".join(f"{len(values)} {name}" for name, values in given.items() if values is not None)
            raise ValueError(f"{count} crops but {stated}; give one per crop")
        points_B = points or [self.operating_point] * count
        now_s = self._clock_s()
        deadlines_s = [None if left_s is None else now_s + left_s for left_s in seconds_left or [None] * count]
        encoded = self.encode(crops_BHWC)
        raw_B = encoded["det_logit"]
        self._refuse_no_numbers("scores", raw_B, encoded["type_logits"])
        scores_B = self.calibrated(raw_B)
        type_probs_BF = softmax(encoded["type_logits"])
        grid = self.manifest.preprocess.grid
        maps_BHW = sigmoid(encoded["artifact_logits"]).reshape(-1, grid, grid)
        wanted = [_Asked(i) for i, policy in enumerate(explain) if policy == "always" or (policy == "auto" and scores_B[i] >= points_B[i].explain_at)]
        queried = {row: query for row, query in enumerate(queries or ()) if query is not None}
        asked = self._located(encoded, self._asked(encoded, list(queried), list(queried.values())))
        together = [replace(one, deadline_s=deadlines_s[one.row]) for one in (*wanted, *asked)]
        told = self._tell(encoded, together, "age", points_B)
        texts = self._explanations(encoded, crops_BHWC, together, told)
        explanations = {
            one.row: text for one, answer, text in zip(wanted, told, texts, strict=False) if answer.end is not End.LATE
        }  # the texts of the queries come behind
        answers = dict(zip(queried, self._area_answers(encoded, crops_BHWC, asked, texts[len(wanted) :]), strict=True))
        appearances = self.appearances(encoded["image_embeds"]) if self._has_appearance else [b""] * count
        return [
            Analysis(
                fake_score=float(scores_B[i]),
                raw_score=float(raw_B[i]),
                type_probs=tuple(float(p) for p in type_probs_BF[i]),
                artifact_map_HW=maps_BHW[i],
                explanation=explanations.get(i),
                answer=answers.get(i),
                appearance=appearances[i],
            )
            for i in range(count)
        ]

    def _refuse_no_numbers(self, what: str, *outputs: NDArray[np.float32]) -> None:
        """NaN and infinity say nothing of a face: half precision that overflows, or a runtime that fails on this machine."""
        if not all(np.isfinite(output).all() for output in outputs):
            told = f"the engine {self.manifest.name} {self.manifest.version} gives {what} that are no numbers"
            raise EngineError(f"{told}; hold it against its checkpoint with: fifa-stream engine check, or build it in a higher precision")

    def encode(self, crops_BHWC: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Run the score path; every output of the encoder part, by name, and the crops, whose regions are found when they are asked for."""
        outputs = {**self._bundle.engines["encoder"].run({"image": to_model_input(crops_BHWC)}), "crops": crops_BHWC}
        if "region_parser" not in self._bundle.engines:
            return outputs
        size = self.manifest.preprocess.mask_size
        return forgotten({**outputs, "regions": np.empty((len(crops_BHWC), NUM_CHANNELS, size, size), np.float32)})

    def regions(self, encoded: dict[str, NDArray[Any]], rows: Iterable[int]) -> dict[int, FaceRegions]:
        """Where FICT lies on rows of an encoded batch, each parsed once; empty for a bundle without a region parser."""
        if "regions" not in encoded:
            return {}
        wanted = sorted(set(rows))
        new = [row for row in wanted if not encoded["regions_known"][row]]
        if new:
            encoded["regions"][new] = self._bundle.engines["region_parser"].run({"image": to_model_input(encoded["crops"][new])})["regions"]
            self._refuse_no_numbers("regions", encoded["regions"][new])
            encoded["regions_known"][new] = True
        return {row: FaceRegions(encoded["regions"][row]) for row in wanted}

    def calibrated(self, raw_B: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw logits to probabilities by the manifest's calibration."""
        calibration = self.manifest.calibration
        return sigmoid(raw_B * np.float32(calibration.scale) + np.float32(calibration.bias))

    def appearances(self, image_embeds_BPC: NDArray[np.float32]) -> list[bytes]:
        """What each face of an encoded batch looks like, as `Analysis.appearance`: where its features depart from their mean over the crop.

        That mean is what forgeries of all people have in common; without it a forged face still looks like the person it was made of. The projection
        is drawn, not learned: angles survive it (Johnson and Lindenstrauss 1984), and no face had to be kept for it.
        """
        grid = self.manifest.preprocess.grid
        cells = math.gcd(grid, APPEARANCE_CELLS)
        batch, _, channels = image_embeds_BPC.shape
        cells_BPC = image_embeds_BPC.reshape(batch, cells, grid // cells, cells, grid // cells, channels).mean((2, 4)).reshape(batch, -1, channels)
        departures_BF = (cells_BPC - cells_BPC.mean(1, keepdims=True)).reshape(batch, -1)
        seen_BA = departures_BF @ self._projection(departures_BF.shape[1])
        largest_B1 = np.abs(seen_BA).max(1, keepdims=True)
        return [row_A.tobytes() for row_A in np.rint(127 * seen_BA / np.where(largest_B1 > 0, largest_B1, 1)).astype(np.int8)]

    def _projection(self, num_features: int) -> NDArray[np.float32]:
        if self._projection_FA is None or len(self._projection_FA) != num_features:
            # RandomState: the one generator of NumPy whose numbers are promised to stay.
            drawn_FA = np.random.RandomState(APPEARANCE_SEED).standard_normal((num_features, APPEARANCE_SIZE))
            self._projection_FA = drawn_FA.astype(np.float32)
        return self._projection_FA

    def explain(self, encoded: dict[str, NDArray[Any]], crops_BHWC: NDArray[np.uint8], rows: Sequence[int]) -> list[Explanation]:
        """Explain the chosen rows of an encoded batch, in their order."""
        asked = [_Asked(row) for row in rows]
        return self._explanations(encoded, crops_BHWC, asked, self._tell(encoded, asked, "age"))

    def answer(
        self, encoded: dict[str, NDArray[Any]], crops_BHWC: NDArray[np.uint8], rows: Sequence[int], queries: Sequence[AreaQuery]
    ) -> list[AreaAnswer]:
        """Answer one query for each of the rows. Localisation decides; a text that says otherwise, or nothing, gives way to its sentence."""
        asked = self._located(encoded, self._asked(encoded, rows, queries))
        texts = self._explanations(encoded, crops_BHWC, asked, self._tell(encoded, asked, "age"))
        return self._area_answers(encoded, crops_BHWC, asked, texts)

    def _area_answers(
        self, encoded: dict[str, NDArray[Any]], crops_BHWC: NDArray[np.uint8], asked: Sequence[_Asked], texts: Sequence[Explanation]
    ) -> list[AreaAnswer]:
        """Locate what is asked and put it beside the texts."""
        located, masks_MHW, confidence_M = self._locate_areas(encoded, crops_BHWC, asked)
        size = self.manifest.preprocess.mask_size
        answers, shown = [], 0
        for one, place, text in zip(asked, located, texts, strict=True):
            tampered = bool(place.seg_embeds)
            mask_HW, confidence = (masks_MHW[shown], float(confidence_M[shown])) if tampered else (np.zeros((size, size), np.float32), 0.0)
            if tampered != bool(text.evidence) or not text.text:
                said = parse_markup(loc_answer(tampered, one.level, one.phrase))[0]
                text = Explanation(said, said, (), text.truncated, "fixed")
            assert place.tampered_probability is not None, "localisation states its probability"
            answers.append(AreaAnswer(tampered, place.tampered_probability, mask_HW, confidence, text))
            shown += tampered
        return answers

    def _located(self, encoded: dict[str, NDArray[Any]], asked: Sequence[_Asked]) -> list[_Asked]:
        """The same questions with what localisation reads of each, on which texts and answers both rest."""
        return [replace(one, place=place) for one, place in zip(asked, self._places_of(encoded, asked), strict=True)]

    def _places_of(self, encoded: dict[str, NDArray[Any]], asked: Sequence[_Asked]) -> list[_Place]:
        """What localisation reads of each question, looking only where it has not looked already."""
        read = iter(self._places(encoded["prefix_embeds"], [one for one in asked if one.place is None]))
        return [one.place or next(read) for one in asked]

    def _locate_areas(
        self, encoded: dict[str, NDArray[Any]], crops_BHWC: NDArray[np.uint8], asked: Sequence[_Asked]
    ) -> tuple[list[Answer], NDArray[np.float32], NDArray[np.float32]]:
        """Localisation of each area, with the masks and confidences of the tampered ones; regions as the manifest says, from one view or two."""
        places = self._places_of(encoded, asked)
        probabilities = [place.tampered_probability for place in places]
        regions = [number for number, one in enumerate(asked) if one.concept is not None] if self.manifest.mirrored_regions else []
        mirror, twins = self._mirrored(crops_BHWC, [asked[number] for number in regions]) if regions else ({}, [])
        seen = self._places(mirror["prefix_embeds"], twins) if regions else []
        for number, place in zip(regions, seen, strict=True):
            probabilities[number] = (probabilities[number] + place.tampered_probability) / 2
        located = [self._loc_answer(*told) for told in zip(asked, places, probabilities, strict=True)]
        masks_MHW, confidence_M = self.masks(encoded, [one.row for one in asked], located)
        again = [self._loc_answer(*told) for told in zip(twins, seen, [probabilities[number] for number in regions], strict=True)]
        mirrored_KHW, mirrored_confidence_K = self.masks(mirror, [twin.row for twin in twins], again)
        marked = [number for number, answer in enumerate(located) if answer.seg_embeds]
        both = [marked.index(number) for number in regions if located[number].seg_embeds]
        masks_MHW[both] = (masks_MHW[both] + mirrored_KHW[:, :, ::-1]) / 2
        confidence_M[both] = (confidence_M[both] + mirrored_confidence_K) / 2
        return located, masks_MHW, confidence_M

    def _mirrored(self, crops_BHWC: NDArray[np.uint8], asked: Sequence[_Asked]) -> tuple[dict[str, NDArray[Any]], list[_Asked]]:
        """The faces that are asked about a region, seen in a mirror and encoded, and the same questions there: a right cheek is a left one."""
        rows = sorted({one.row for one in asked})
        twins = [self._in_words(rows.index(one.row), fict.mirrored(one.concept or "")) for one in asked]
        return self.encode(crops_BHWC[rows][:, :, ::-1]), twins

    def tell(self, encoded: dict[str, NDArray[Any]], rows: Sequence[int], task: Task) -> list[Answer]:
        """Answer one task about the whole face for rows of an encoded batch, as it is served: a face that its score calls real is told clean."""
        return self._tell(encoded, [_Asked(row) for row in rows], task)

    def _tell(
        self, encoded: dict[str, NDArray[Any]], asked: Sequence[_Asked], task: Task, points_B: Sequence[OperatingPoint] | None = None
    ) -> list[Answer]:
        """`tell`, beside questions about areas; `points_B` by row of the batch."""
        scores_B = self.calibrated(encoded["det_logit"])
        clean = self._bundle.vocabulary.tokenizer.encode(loc_answer(False)).ids
        answers = [Answer(list(clean)) for _ in asked]
        points_B = points_B or [self.operating_point] * len(scores_B)
        doubted = [n for n, one in enumerate(asked) if one.level != "image" or scores_B[one.row] >= points_B[one.row].real_below]
        if self._is_measured and task != "loc" and "regions" in encoded:
            untouched = sorted(set(range(len(asked))) - set(doubted))
            faces = self.regions(encoded, [asked[number].row for number in untouched])
            for number in untouched:
                if ids := self._told_clean(encoded, asked[number], faces[asked[number].row].drawn(self._side)):
                    answers[number].ids, answers[number].words = ids, "measured"
        for number, answer in zip(doubted, self._decode(encoded, [asked[n] for n in doubted], task), strict=True):
            answers[number] = answer
        return answers

    def decode(self, prefix_embeds_BPE: NDArray[np.float32], task: Task) -> list[Answer]:
        """Answer one task about the whole face for each row."""
        return self._decode({"prefix_embeds": prefix_embeds_BPE}, [_Asked(row) for row in range(len(prefix_embeds_BPE))], task)

    def ask(self, encoded: dict[str, NDArray[Any]], rows: Sequence[int], task: Task, queries: Sequence[AreaQuery | None]) -> list[Answer]:
        """Answer one query for each of the rows of an encoded batch, where a row may come several times; None asks about the whole face.

        Raises ValueError for a level that the bundle does not answer, an unknown concept, and a box that is empty or leaves the crop.
        """
        return self._decode(encoded, self._asked(encoded, rows, queries), task)

    def _asked(self, encoded: dict[str, NDArray[Any]], rows: Sequence[int], queries: Sequence[AreaQuery | None]) -> list[_Asked]:
        """Check queries and put them in words; boxes through the box encoder, in one run."""
        asked = [self._in_words(row, query) for row, query in zip(rows, queries, strict=True)]
        with_box = [one for one in asked if one.box is not None]
        if not with_box:
            return asked
        owners = [one.row for one in with_box]
        out = self._bundle.engines["box_encoder"].run(
            {
                "image_embeds": encoded["image_embeds"][owners],
                "artifact_logits": encoded["artifact_logits"][owners],
                "box": np.array([one.box for one in with_box], np.float32),
            }
        )
        embeds = iter(out["box_embeds"])
        return [one if one.box is None else replace(one, box_embed_E=next(embeds)) for one in asked]

    def _in_words(self, row: int, query: AreaQuery | None) -> _Asked:
        if query is None:
            return _Asked(row)
        side, level = self.manifest.preprocess.image_size, "region" if isinstance(query, str) else "box"
        if level not in self.manifest.query_levels:
            known = ", ".join(self.manifest.query_levels) or "none"
            raise ValueError(f"the bundle {self.manifest.name} answers no {level} query (it answers: {known}); {REBUILD_FOR_QUERIES}")
        if isinstance(query, str):
            if query not in fict.concepts():
                raise ValueError(f"{query!r} is no FICT concept; use an id such as right_cheek")
            return _Asked(row, "region", phrase=fict.concepts()[query].phrase, concept=query)
        x0, y0, x1, y1 = query
        if not (0 <= x0 < x1 <= side and 0 <= y0 < y1 <= side):
            raise ValueError(f"box {query} is empty or leaves the {side} px crop; clip it first")
        return _Asked(row, "box", box=query)

    def _decode(self, encoded: dict[str, NDArray[Any]], asked: Sequence[_Asked], task: Task) -> list[Answer]:
        """Answer one question for each of `asked`, in their order."""
        if task == "loc":
            return self._locate(encoded["prefix_embeds"], asked)
        told = self._worded(encoded, asked, task) if self._is_measured and "regions" in encoded else {}
        left = [number for number in range(len(asked)) if number not in told]
        told |= zip(left, self._written(encoded, [asked[number] for number in left], task), strict=True)
        return [told[number] for number in range(len(asked))]

    def _written(self, encoded: dict[str, NDArray[Any]], asked: Sequence[_Asked], task: Task) -> list[Answer]:
        """What the decoder itself writes."""
        spec = self.manifest.decoder
        places = self._places_to_name(encoded, asked) if task == "age" else [None] * len(asked)

        def question(one: _Asked, to_name: tuple[str, ...] | None) -> Question:
            inputs_SE = self._inputs(encoded["prefix_embeds"], one, task)
            budget = min(spec.max_new_tokens, spec.capacity - len(inputs_SE))
            return Question(inputs_SE, self._trie(one.concept), budget, one.deadline_s, to_name)

        answers = [Answer(within=one.box, words="decoded") for one in asked]
        for number, written in self._loop.answers(map(question, asked, places)) if asked else ():
            answers[number].ids, answers[number].seg_embeds, answers[number].end = written.ids, written.seg_embeds, written.end
        return answers

    def _places_to_name(self, encoded: dict[str, NDArray[Any]], asked: Sequence[_Asked]) -> list[tuple[str, ...] | None]:
        """Where each answer may point: the concepts of what localisation marks, by the annotator's rule on the parser's regions.

        None leaves the choice to the decoder: without a parser, where nothing is marked, and for a whole face that was synthesised as a whole. There
        all is marked, and what is worth naming is what looks least like a photograph.
        """
        rows = [one.row for one in asked]
        regions = self.regions(encoded, rows)
        if not regions:
            return [None] * len(asked)
        located = self._places_of(encoded, asked)
        marked = [Answer(seg_embeds=[place.seg_embed_E], within=one.box) for one, place in zip(asked, located, strict=True)]
        masks_MHW, _ = self.masks(encoded, rows, marked)
        whole = encoded["type_logits"].argmax(1) == FORGERY_TYPES.index("entire_synthesis")
        found = []
        for one, mask_HW in zip(asked, masks_MHW, strict=True):
            places = regions[one.row].named(mask_HW >= 0.5, within=one.concept, most=MOST_PLACES)
            left_to_decoder = one.level == "image" and whole[one.row]
            found.append(() if left_to_decoder else tuple(place for place in places if place in self._trie(one.concept).phrases))
        return [places or None for places in found]

    def _worded(self, encoded: dict[str, NDArray[Any]], asked: Sequence[_Asked], task: Task) -> dict[int, Answer]:
        """Answers, by number, in measured words; where nothing can be said so the number is missing.

        Places are measured twice: under the mask of localisation, which makes a draft, and under the masks that the draft's phrases get. What is
        told is what the second finds: the words and the evidence beside them are about the same pixels.
        """
        rows, located, told, drafts = [one.row for one in asked], self._places_of(encoded, asked), dict[int, Answer](), dict[int, _Draft]()
        found = {row: face.drawn(self._side) for row, face in self.regions(encoded, rows).items()}
        marked = [Answer(seg_embeds=[place.seg_embed_E], within=one.box) for one, place in zip(asked, located, strict=True)]
        for number, (one, place, mask_HW) in enumerate(zip(asked, located, self.masks(encoded, rows, marked)[0], strict=True)):
            if one.deadline_s is not None and self._clock_s() >= one.deadline_s:
                told[number] = Answer(within=one.box, end=End.LATE)
            elif one.level == "image" or place.tampered_probability >= 0.5:
                if words := self._said(encoded, one, self._marked(encoded, one, found[one.row], mask_HW), task):
                    drafts[number] = _Draft(one, found[one.row], words)
            elif ids := self._told_clean(encoded, one, found[one.row]):
                told[number] = Answer(ids, within=one.box, words="measured")
        if task == "toe":
            return told | {number: Answer(draft.words.ids, within=draft.one.box, words="measured") for number, draft in drafts.items()}
        return told | dict(zip(drafts, self._grounded(encoded, list(drafts.values()), task), strict=True))

    def _grounded(self, encoded: dict[str, NDArray[Any]], drafts: Sequence[_Draft], task: Task) -> list[Answer]:
        """The [SEG] states of drafts, and the words for what is measured under the masks that they drive."""
        answers = [Answer(draft.words.ids, within=draft.one.box, words="measured") for draft in drafts]
        self._fill_seg_embeds(encoded["prefix_embeds"], [draft.one for draft in drafts], answers, task)
        drawn = zip(*self.masks(encoded, [draft.one.row for draft in drafts], answers), strict=True)
        for number, (draft, answer) in enumerate(zip(drafts, answers, strict=True)):
            concepts = [item.concept for item in draft.words.told]
            masks = dict(zip(concepts, islice(drawn, len(concepts)), strict=True))
            shown = {concept: _at_crop_size(mask_HW, self._side) for concept, (mask_HW, _) in masks.items()}
            evidence = measured_words.measured(encoded["crops"][draft.one.row], draft.found, shown, level=draft.one.level)
            if words := self._said(encoded, draft.one, evidence, task):
                embeds = dict(zip(concepts, answer.seg_embeds, strict=True))
                seen = [_Shown(*masks[item.concept], item.measured, usual_at(item.concept, item.measured, item.claim.extent)) for item in words.told]
                embeds_told = [embeds[item.concept] for item in words.told]
                answers[number] = Answer(words.ids, embeds_told, within=draft.one.box, shown=seen, words="measured")
        return answers

    def _marked(self, encoded: dict[str, NDArray[Any]], one: _Asked, found: Regions, mask_HW: NDArray[np.float32]) -> tuple[ConceptEvidence, ...]:
        """What is measured where localisation marks; of a face that was synthesised as a whole, where it looks least like a photograph."""
        crop_HWC = encoded["crops"][one.row]
        if one.level == "image" and self._type(encoded, one.row) == "entire_synthesis":
            return farthest({part: found.mask(part) for part in FACE_PARTS}, found, crop_HWC)
        names = self.regions(encoded, [one.row])[one.row].named(mask_HW >= 0.5, within=one.concept, most=MOST_NAMED)
        if not names and one.concept is not None:
            names = (one.concept,)  # it was asked by name, and something of it is marked
        marked_HW = _at_crop_size(mask_HW, self._side)
        return measured_words.measured(crop_HWC, found, {name: within(name, marked_HW, found) for name in names}, level=one.level)

    def _said(self, encoded: dict[str, NDArray[Any]], one: _Asked, evidence: Sequence[ConceptEvidence], task: Task) -> _Words | None:
        """What departs, in as many sentences as fit; None where there is nothing to say."""
        spec = self.manifest.decoder
        room = min(spec.max_new_tokens, spec.capacity - len(self._inputs(encoded["prefix_embeds"], one, task)))
        for most in range(MOST_PLACES, 0, -1):
            said = measured_words.worded(evidence, forgery_type=self._type(encoded, one.row), level=one.level, asked=one.concept, most=most)
            if said is None:
                return None
            ids = self._bundle.vocabulary.tokenizer.encode(parse_markup(said.markup)[0] if task == "toe" else said.markup).ids
            if len(ids) <= room:
                return _Words(ids, said.told)
        return None

    def _told_clean(self, encoded: dict[str, NDArray[Any]], one: _Asked, found: Regions) -> list[int]:
        """What a face or an area that is called untouched is told; empty where too little of it is seen."""
        crop_HWC, area_HW = encoded["crops"][one.row], None
        if one.box is not None:
            area_HW = box_cells(one.box, self._side, 1.0)
        elif one.concept is not None:
            area_HW = found.mask(one.concept)
        markup = measured_words.clean(crop_HWC, found, level=one.level, asked=one.concept, area_HW=area_HW)
        return [] if markup is None else list(self._bundle.vocabulary.tokenizer.encode(markup).ids)

    @property
    def _side(self) -> int:
        return self.manifest.preprocess.image_size

    def _type(self, encoded: dict[str, NDArray[Any]], row: int) -> str:
        return FORGERY_TYPES[int(encoded["type_logits"][row].argmax())]

    def _locate(self, prefix_embeds_BPE: NDArray[np.float32], asked: Sequence[_Asked]) -> list[Answer]:
        """Answers of localisation to each of `asked`."""
        places = self._places(prefix_embeds_BPE, asked)
        return [self._loc_answer(one, place, place.tampered_probability) for one, place in zip(asked, places, strict=True)]

    def _loc_answer(self, one: _Asked, place: _Place, probability: float) -> Answer:
        """What is answered at that probability."""
        tampered = probability >= 0.5
        ids = self._bundle.vocabulary.tokenizer.encode(loc_answer(tampered, one.level, one.phrase)).ids
        return Answer(ids, [place.seg_embed_E] if tampered else [], within=one.box, tampered_probability=probability, concept=one.concept)

    def _places(self, prefix_embeds_BPE: NDArray[np.float32], asked: Sequence[_Asked]) -> list[_Place]:
        """Localisation has two answers, so nothing is decoded: one run over the question and the longer answer tells which begins, and its [SEG]."""
        vocabulary, places = self._bundle.vocabulary, []
        for first in range(0, len(asked), self._slots):
            together = asked[first : first + self._slots]
            either = [[vocabulary.tokenizer.encode(loc_answer(state, one.level, one.phrase)).ids for state in (True, False)] for one in together]
            inputs = [self._inputs(prefix_embeds_BPE, one, "loc", behind=tampered) for one, (tampered, _) in zip(together, either, strict=True)]
            out = self._loop.read(inputs)
            for row, (inputs_SE, (tampered, clean)) in enumerate(zip(inputs, either, strict=True)):
                begins = len(inputs_SE) - len(tampered)
                begun_V = out["logits"][row, begins - 1]
                probability = float(sigmoid(begun_V[tampered[0]] - begun_V[clean[0]]))
                places.append(_Place(probability, out["hidden"][row, begins + tampered.index(vocabulary.ids[SEG])].copy()))
        return places

    def _trie(self, concept: str | None) -> PhraseTrie:
        """The phrases an answer may use: all of FICT, or those of the asked concept and below it."""
        if concept not in self._tries:
            self._tries[concept] = PhraseTrie.of(self._bundle.vocabulary, concept)
        return self._tries[concept]

    def force(self, prefix_embeds_BPE: NDArray[np.float32], markups: Sequence[str], task: Task) -> list[Answer]:
        """What each row would mean had it written this markup: the [SEG] states of one run over question and answer, nothing decoded.

        Raises ValueError for markup that leaves no room in the cache.
        """
        capacity, vocabulary = self.manifest.decoder.capacity, self._bundle.vocabulary
        answers = [Answer(vocabulary.tokenizer.encode(markup).ids) for markup in markups]
        if not answers:
            return []
        asked = [_Asked(row) for row in range(len(answers))]
        taken = max(len(self._inputs(prefix_embeds_BPE, one, task)) for one in asked)
        told = max(len(answer.ids) for answer in answers)
        if taken + told > capacity:
            raise ValueError(f"an answer of {told} tokens does not fit: the cache has {capacity} slots, the question takes {taken}; shorten it")
        self._fill_seg_embeds(prefix_embeds_BPE, asked, answers, task)
        return answers

    def _fill_seg_embeds(self, prefix_embeds_BPE: NDArray[np.float32], asked: Sequence[_Asked], answers: Sequence[Answer], task: Task) -> None:
        """Give answers the [SEG] states that they have behind their questions, a few rows at a time."""
        seg = self._bundle.vocabulary.ids[SEG]
        for first in range(0, len(answers), self._slots):
            together = answers[first : first + self._slots]
            behind = zip(asked[first : first + self._slots], together, strict=True)
            inputs = [self._inputs(prefix_embeds_BPE, one, task, behind=answer.ids) for one, answer in behind]
            for answer, inputs_SE, hidden_SE in zip(together, inputs, self._loop.read(inputs)["hidden"], strict=True):
                begins = len(inputs_SE) - len(answer.ids)
                answer.seg_embeds = [hidden_SE[begins + at].copy() for at, token in enumerate(answer.ids) if token == seg]

    def _inputs(self, prefix_embeds_BPE: NDArray[np.float32], one: _Asked, task: Task, behind: Sequence[int] = ()) -> NDArray[np.float32]:
        """(S, E) the face, the prompt and what stands `behind` it."""
        ids = [*self._bundle.vocabulary.prompt_ids(task, one.level, one.phrase), *behind]
        text_LE = self._bundle.token_embeddings_VE[ids]
        if one.box_embed_E is not None:
            text_LE[ids.index(self._bundle.vocabulary.ids[BBOX])] = one.box_embed_E
        return np.concatenate([prefix_embeds_BPE[one.row], text_LE])

    def markup(self, answer: Answer) -> str:
        """The markup of an answer; one that was cut off stops at its last whole sentence, and its later [SEG] states have no phrase."""
        written = self._bundle.vocabulary.markup(answer.ids)
        return written if answer.end is End.WHOLE else last_whole_sentence(written)

    def masks(
        self, encoded: dict[str, NDArray[Any]], rows: Sequence[int], answers: Sequence[Answer]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Masks for all [SEG] states: probabilities (M, mask_size, mask_size) over the crop and predicted IoU (M,)."""
        new = [(row, answer) for row, answer in zip(rows, answers, strict=True) if answer.shown is None]
        masks_MHW, confidence_M = self._draw([row for row, answer in new for _ in answer.seg_embeds], encoded, [answer for _, answer in new])
        if len(new) == len(answers):
            return masks_MHW, confidence_M
        drawn = zip(masks_MHW, confidence_M, strict=True)
        pairs = [
            pair
            for answer in answers
            for pair in (islice(drawn, len(answer.seg_embeds)) if answer.shown is None else (shown[:2] for shown in answer.shown))
        ]
        if not pairs:
            return masks_MHW, confidence_M
        return np.stack([mask_HW for mask_HW, _ in pairs]), np.array([confidence for _, confidence in pairs], np.float32)

    def _draw(
        self, owners: Sequence[int], encoded: dict[str, NDArray[Any]], answers: Sequence[Answer]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run the mask decoder; `owners` are the rows of the [SEG] states."""
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
        self._refuse_no_numbers("masks", out["mask_logits"], out["iou_logit"])
        masks_MHW = self._ground(encoded, owners, [spoken for answer in answers for spoken in self._spoken_of(answer)], out["mask_logits"])
        boxes = [answer.within for answer in answers for _ in answer.seg_embeds]
        for mask_HW, box in zip(masks_MHW, boxes, strict=True):
            if box is not None:
                mask_HW *= box_cells(_grown(box, self.manifest.preprocess.image_size / size), size, size / self.manifest.preprocess.image_size)
        return masks_MHW, sigmoid(out["iou_logit"])

    def _ground(
        self, encoded: dict[str, NDArray[Any]], owners: Sequence[int], spoken_of: Sequence[_Spoken | None], logits_MHW: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Probabilities of masks; one that speaks of a concept ends at its region, and is cut there where the manifest says.

        Where that leaves nothing the parser sees no such region, and the mask stays as it was drawn.
        """
        masks_MHW = sigmoid(logits_MHW)
        named = [(number, row, spoken) for number, (row, spoken) in enumerate(zip(owners, spoken_of, strict=True)) if spoken is not None]
        regions = self.regions(encoded, [row for _, row, _ in named])
        cut = self.manifest.region_mask_cut
        shift = np.float32(math.log((1 - cut) / cut))
        for number, row, spoken in named if regions else ():
            within_HW = np.minimum(sigmoid(logits_MHW[number] + shift), regions[row].of(spoken.concept, rim=spoken.rim))
            if within_HW.max() >= 0.5:
                masks_MHW[number] = within_HW
        return masks_MHW

    def _spoken_of(self, answer: Answer) -> list[_Spoken | None]:
        """What each [SEG] of an answer speaks of: its phrase, the asked region where it has none; None for the whole face or a box."""
        spans = parse_markup(self.markup(answer))[1][: len(answer.seg_embeds)]
        asked = None if answer.concept is None else _Spoken(answer.concept, rim=False)
        return [*(_Spoken(fict.by_phrase()[span.phrase], rim=True) for span in spans), *[asked] * (len(answer.seg_embeds) - len(spans))]

    def _explanations(
        self, encoded: dict[str, NDArray[Any]], crops_BHWC: NDArray[np.uint8], asked: Sequence[_Asked], answers: Sequence[Answer]
    ) -> list[Explanation]:
        """Answers as text with evidence; the masks in one run."""
        masks_MHW, confidence_M = self.masks(encoded, [one.row for one in asked], answers)
        by_phrase, explanations, taken = fict.by_phrase(), [], 0
        for one, answer in zip(asked, answers, strict=True):
            own = slice(taken, taken + len(answer.seg_embeds))
            taken = own.stop
            markup, crop_HWC = self.markup(answer), crops_BHWC[one.row]
            text, spans = parse_markup(markup)
            evidence = tuple(
                Evidence(
                    phrase=span.phrase,
                    char_span=(span.start, span.end),
                    concept=by_phrase[span.phrase],
                    mask_probability_HW=mask_HW,
                    mask_confidence=float(confidence),
                    measured=measure_region(crop_HWC, _at_crop_size(mask_HW, crop_HWC.shape[0])) if shown is None else shown.measured,
                    usual={} if shown is None else shown.usual,
                )
                for span, mask_HW, confidence, shown in zip(  # truncation drops the last phrases
                    spans, masks_MHW[own], confidence_M[own], answer.shown or repeat(None), strict=False
                )
            )
            explanations.append(Explanation(text, markup, evidence, answer.truncated, answer.words))
        return explanations


def forgotten(encoded: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """An encoded batch of whose faces no regions are known yet."""
    return {**encoded, "regions_known": np.zeros(len(encoded["crops"]), bool)}


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
    """Cut text that met a limit after its last full stop; '' when not one sentence is whole."""
    return markup[: markup.rfind(".") + 1]


def _at_crop_size(mask_HW: NDArray[np.float32], size: int) -> NDArray[np.bool_]:
    resized = Image.fromarray(mask_HW).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized) >= 0.5
