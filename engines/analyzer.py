"""The composition: face crops in, analyses out. Scores every face; explains only those that cross the explain threshold.

Score path: one run of the encoder for the whole batch; scoring never waits for text. Explain path: what is asked (`engines.questions`) is told
(`engines.telling`), and one run of the mask decoder draws all [SEG] states (`engines.masks`).
A face may be asked about one region or box. Where the manifest says so, a region is located in the crop's mirror image too, and the two answers are
averaged.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import compress, repeat
from operator import not_
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engines import fict
from engines.bundle import Bundle
from engines.contracts import (
    APPEARANCE_SIZE,
    Analysis,
    AreaAnswer,
    AreaQuery,
    BundleError,
    BundleFault,
    Evidence,
    Explanation,
    Manifest,
    OperatingPoint,
    QueryLevel,
    Wording,
)
from engines.decode import SLOTS, End
from engines.drafts import Drafts
from engines.masks import MaskDrawer, at_crop_size, refuse_no_numbers
from engines.measure import measure_region
from engines.preprocess import to_model_input
from engines.prompts import Task, loc_answer, parse_markup
from engines.questions import Answer, Asked, Reader, sigmoid
from engines.regions import NUM_CHANNELS, FaceRegions
from engines.telling import Teller

ExplainPolicy = Literal["auto", "always", "never"]
APPEARANCE_CELLS = 4
"""A side of the coarse grid that an appearance sees of a face."""
APPEARANCE_SEED = 20531


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
        self._clock_s = clock_s
        self._has_appearance = appearance
        self._reader = Reader(bundle, slots=slots, drafts=drafts, clock_s=clock_s)
        self._drawer = MaskDrawer(bundle)
        self._teller = Teller(bundle, self._reader, self._drawer, wording=wording, clock_s=clock_s)
        self._projection_FA: NDArray[np.float32] | None = None

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
        refuse_no_numbers(self.manifest, "scores", raw_B, encoded["type_logits"])
        scores_B = self.calibrated(raw_B)
        type_probs_BF = softmax(encoded["type_logits"])
        grid = self.manifest.preprocess.grid
        maps_BHW = sigmoid(encoded["artifact_logits"]).reshape(-1, grid, grid)
        wanted = [Asked(i) for i, policy in enumerate(explain) if policy == "always" or (policy == "auto" and scores_B[i] >= points_B[i].explain_at)]
        queried = {row: query for row, query in enumerate(queries or ()) if query is not None}
        asked = self._reader.located(encoded, self._reader.asked(encoded, list(queried), list(queried.values())))
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

    def encode(self, crops_BHWC: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Run the score path; every output of the encoder part, by name, and the crops, whose regions are found when they are asked for."""
        outputs = {**self._bundle.engines["encoder"].run({"image": to_model_input(crops_BHWC)}), "crops": crops_BHWC}
        if "region_parser" not in self._bundle.engines:
            return outputs
        size = self.manifest.preprocess.mask_size
        return forgotten({**outputs, "regions": np.empty((len(crops_BHWC), NUM_CHANNELS, size, size), np.float32)})

    def regions(self, encoded: dict[str, NDArray[Any]], rows: Iterable[int]) -> dict[int, FaceRegions]:
        """Where FICT lies on rows of an encoded batch, as `MaskDrawer.regions`."""
        return self._drawer.regions(encoded, rows)

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
        asked = [Asked(row) for row in rows]
        return self._explanations(encoded, crops_BHWC, asked, self._tell(encoded, asked, "age"))

    def answer(
        self, encoded: dict[str, NDArray[Any]], crops_BHWC: NDArray[np.uint8], rows: Sequence[int], queries: Sequence[AreaQuery]
    ) -> list[AreaAnswer]:
        """Answer one query for each of the rows. Localisation decides; a text that says otherwise, or nothing, gives way to its sentence."""
        asked = self._reader.located(encoded, self._reader.asked(encoded, rows, queries))
        texts = self._explanations(encoded, crops_BHWC, asked, self._tell(encoded, asked, "age"))
        return self._area_answers(encoded, crops_BHWC, asked, texts)

    def _area_answers(
        self, encoded: dict[str, NDArray[Any]], crops_BHWC: NDArray[np.uint8], asked: Sequence[Asked], texts: Sequence[Explanation]
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

    def _locate_areas(
        self, encoded: dict[str, NDArray[Any]], crops_BHWC: NDArray[np.uint8], asked: Sequence[Asked]
    ) -> tuple[list[Answer], NDArray[np.float32], NDArray[np.float32]]:
        """Localisation of each area, with the masks and confidences of the tampered ones; regions as the manifest says, from one view or two."""
        places = self._reader.places_of(encoded, asked)
        probabilities = [place.tampered_probability for place in places]
        regions = [number for number, one in enumerate(asked) if one.concept is not None] if self.manifest.mirrored_regions else []
        mirror, twins = self._mirrored(crops_BHWC, [asked[number] for number in regions]) if regions else ({}, [])
        seen = self._reader.places(mirror["prefix_embeds"], twins) if regions else []
        for number, place in zip(regions, seen, strict=True):
            probabilities[number] = (probabilities[number] + place.tampered_probability) / 2
        located = [self._reader.located_answer(*told) for told in zip(asked, places, probabilities, strict=True)]
        masks_MHW, confidence_M = self.masks(encoded, [one.row for one in asked], located)
        again = [self._reader.located_answer(*told) for told in zip(twins, seen, [probabilities[number] for number in regions], strict=True)]
        mirrored_KHW, mirrored_confidence_K = self.masks(mirror, [twin.row for twin in twins], again)
        marked = [number for number, answer in enumerate(located) if answer.seg_embeds]
        both = [marked.index(number) for number in regions if located[number].seg_embeds]
        masks_MHW[both] = (masks_MHW[both] + mirrored_KHW[:, :, ::-1]) / 2
        confidence_M[both] = (confidence_M[both] + mirrored_confidence_K) / 2
        return located, masks_MHW, confidence_M

    def _mirrored(self, crops_BHWC: NDArray[np.uint8], asked: Sequence[Asked]) -> tuple[dict[str, NDArray[Any]], list[Asked]]:
        """The faces that are asked about a region, seen in a mirror and encoded, and the same questions there: a right cheek is a left one."""
        rows = sorted({one.row for one in asked})
        twins = [self._reader.in_words(rows.index(one.row), fict.mirrored(one.concept or "")) for one in asked]
        return self.encode(crops_BHWC[rows][:, :, ::-1]), twins

    def tell(self, encoded: dict[str, NDArray[Any]], rows: Sequence[int], task: Task) -> list[Answer]:
        """Answer one task about the whole face for rows of an encoded batch, as it is served: a face that its score calls real is told clean."""
        return self._tell(encoded, [Asked(row) for row in rows], task)

    def _tell(
        self, encoded: dict[str, NDArray[Any]], asked: Sequence[Asked], task: Task, points_B: Sequence[OperatingPoint] | None = None
    ) -> list[Answer]:
        """`tell`, beside questions about areas; `points_B` by row of the batch."""
        scores_B = self.calibrated(encoded["det_logit"])
        points_B = points_B or [self.operating_point] * len(scores_B)
        is_doubted = [one.level != "image" or bool(scores_B[one.row] >= points_B[one.row].real_below) for one in asked]
        untouched = iter(self._teller.tell_clean(encoded, list(compress(asked, map(not_, is_doubted))), task))
        doubted = iter(self._teller.tell(encoded, list(compress(asked, is_doubted)), task))
        return [next(doubted if doubt else untouched) for doubt in is_doubted]

    def decode(self, prefix_embeds_BPE: NDArray[np.float32], task: Task) -> list[Answer]:
        """Answer one task about the whole face for each row."""
        return self._teller.tell({"prefix_embeds": prefix_embeds_BPE}, [Asked(row) for row in range(len(prefix_embeds_BPE))], task)

    def ask(self, encoded: dict[str, NDArray[Any]], rows: Sequence[int], task: Task, queries: Sequence[AreaQuery | None]) -> list[Answer]:
        """Answer one query for each of the rows of an encoded batch, where a row may come several times; None asks about the whole face.

        Raises ValueError for a level that the bundle does not answer, an unknown concept, and a box that is empty or leaves the crop.
        """
        return self._teller.tell(encoded, self._reader.asked(encoded, rows, queries), task)

    def force(self, prefix_embeds_BPE: NDArray[np.float32], markups: Sequence[str], task: Task) -> list[Answer]:
        """What each row would mean had it written this markup, as `Reader.force`."""
        return self._reader.force(prefix_embeds_BPE, markups, task)

    def markup(self, answer: Answer) -> str:
        """As `MaskDrawer.markup`."""
        return self._drawer.markup(answer)

    def masks(
        self, encoded: dict[str, NDArray[Any]], rows: Sequence[int], answers: Sequence[Answer]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What each [SEG] shows, as `MaskDrawer.masks`."""
        return self._drawer.masks(encoded, rows, answers)

    def _explanations(
        self, encoded: dict[str, NDArray[Any]], crops_BHWC: NDArray[np.uint8], asked: Sequence[Asked], answers: Sequence[Answer]
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
                    measured=measure_region(crop_HWC, at_crop_size(mask_HW, crop_HWC.shape[0])) if shown is None else shown.measured,
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
