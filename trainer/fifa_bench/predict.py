"""What an engine answers to samples: faces in, predictions out, through the serving analyzer.

A face is encoded once for all its samples, and a question that several samples ask of it is answered once. The engine asks in its own words: the
prompt of a sample is not passed on, only its task and its query. Of an area, `loc` and `age` are the two halves of one answer of serving, and masks
of a box end at the box, as serving cuts them in the frame.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines import fict
from engines.analyzer import Analyzer, softmax
from engines.contracts import FORGERY_TYPES, AreaAnswer, AreaQuery
from engines.masks import box_cells
from engines.prompts import Task, parse_markup
from engines.questions import Answer
from trainer.faces import ImageHWC, fit
from trainer.samples import SIDE, Level, PredictedMask, Prediction, Rle, Sample, TaskKind, write_jsonl

BATCH = 16
"""Faces encoded together; as many as the serving analyzer explains together."""
NOT_ANSWERED = "query_not_answered"

AskedFace = tuple[ImageHWC, Sequence[Sample]]
"""(H, W, 3) uint8 RGB face crop of any size, and all its samples."""
Encoded = dict[str, NDArray[Any]]
"""Every output of the encoder for a batch, by name."""
Query = AreaQuery | None
"""What is asked about, boxes in pixels of the engine's crop; None for the whole face."""
T = TypeVar("T")


class Predictor(Protocol):
    """A system under test: `partial(predict, analyzer)`, or a baseline."""

    def __call__(self, items: Iterable[AskedFace], *, batch: int = BATCH) -> Iterator[Prediction]:
        """One prediction for each sample of a task that the system offers, in their order."""
        ...


class Question(NamedTuple):
    """What a sample asks of its face; equal questions have one answer."""

    row: int
    """Of the batch."""
    task: TaskKind
    level: Level
    query: Query


def answers_level(analyzer: Analyzer, level: Level) -> bool:
    """Whether the engine answers questions at this level; those it does not answer are refused, not guessed from an answer about the whole face."""
    return level == "image" or level in analyzer.query_levels


def predict(analyzer: Analyzer, items: Iterable[AskedFace], *, batch: int = BATCH) -> Iterator[Prediction]:
    """Answer every sample of every face, in their order, `batch` faces at a time."""
    for faces in grouped(items, batch):
        crops_BHWC = engine_crops(analyzer, [crop_HWC for crop_HWC, _ in faces])
        asked = [(sample, _question(analyzer, row, sample)) for row, (_, samples) in enumerate(faces) for sample in samples]
        answers = _answer(analyzer, crops_BHWC, {question for _, question in asked})
        for sample, question in asked:
            yield answers[question].model_copy(update={"id": sample.id})


def predict_to_file(predictor: Predictor, items: Iterable[AskedFace], path: Path, *, batch: int = BATCH) -> int:
    """Write all predictions as JSON lines, and return how many. The file appears when it is whole."""
    unfinished = path.with_name(f"{path.name}.part")
    count = write_jsonl(unfinished, predictor(items, batch=batch))
    unfinished.replace(path)
    return count


def grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter. Raises ValueError for a size below 1."""
    if size < 1:
        raise ValueError(f"batch is {size}; take at least one face at a time")
    source = iter(items)
    while group := list(islice(source, size)):
        yield group


def engine_crops(analyzer: Analyzer, crops: Sequence[ImageHWC]) -> NDArray[np.uint8]:
    """(B, size, size, 3) at the engine's size, as serving resizes a face crop."""
    return np.stack([fit(crop_HWC, analyzer.manifest.preprocess.image_size) for crop_HWC in crops])


def resized_mask(probability_HW: NDArray[np.float32], size: int = SIDE) -> NDArray[np.bool_]:
    """A mask grid over the crop at (size, size), cut at 0.5 after bilinear interpolation."""
    return np.asarray(Image.fromarray(probability_HW).resize((size, size), Image.Resampling.BILINEAR)) >= 0.5


def masks_by_answer(
    analyzer: Analyzer, encoded: Encoded, rows: Sequence[int], answers: Sequence[Answer]
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """For each answer the mask probabilities of its [SEG] tokens, (M, mask_size, mask_size), and their confidence (M,); one run for all."""
    masks_MHW, confidence_M = analyzer.masks(encoded, rows, answers)
    ends = np.cumsum([len(answer.seg_embeds) for answer in answers])[:-1]
    return list(zip(np.split(masks_MHW, ends), np.split(confidence_M, ends), strict=True))


def phrase_masks(markup: str, masks_MHW: NDArray[np.float32], confidence_M: NDArray[np.float32]) -> tuple[PredictedMask, ...]:
    """One mask a phrase, in order; what lies beyond the last phrase belongs to a sentence that was cut off."""
    concept_of = fict.by_phrase()
    return tuple(
        PredictedMask(concept=concept_of[span.phrase], phrase=span.phrase, rle=Rle.of(resized_mask(mask_HW)), confidence=float(confidence))
        for span, mask_HW, confidence in zip(parse_markup(markup)[1], masks_MHW, confidence_M, strict=False)
    )


def _question(analyzer: Analyzer, row: int, sample: Sample) -> Question:
    if sample.box_xyxy is None:
        return Question(row, sample.task, sample.level, sample.concept)
    size = analyzer.manifest.preprocess.image_size
    x0, y0, x1, y1 = (edge * size / SIDE for edge in sample.box_xyxy)  # in this order a box to the crop's end stays one
    return Question(row, sample.task, sample.level, (x0, y0, x1, y1))


def _answer(analyzer: Analyzer, crops_BHWC: NDArray[np.uint8], questions: Collection[Question]) -> dict[Question, Prediction]:
    """Answers without an id."""
    encoded = analyzer.encode(crops_BHWC)
    scores_B, type_probs_BF = analyzer.calibrated(encoded["det_logit"]), softmax(encoded["type_logits"])
    found: dict[Question, Prediction] = {}
    told: dict[tuple[Task, Level], list[Question]] = defaultdict(list)
    areas: dict[Level, dict[tuple[int, AreaQuery], None]] = defaultdict(dict)
    for question in sorted(questions, key=repr):
        if question.task == "det":
            found[question] = Prediction(id="", fake_score=float(scores_B[question.row]))
        elif question.task == "cls":
            probs = dict(zip(FORGERY_TYPES, type_probs_BF[question.row].tolist(), strict=True))
            found[question] = Prediction(id="", type_probs={name: min(prob, 1.0) for name, prob in probs.items()})
        elif not answers_level(analyzer, question.level):
            found[question] = Prediction(id="", refused=NOT_ANSWERED)
        elif question.query is None or question.task == "toe":
            told[question.task, question.level].append(question)
        else:
            areas[question.level][question.row, question.query] = None
    for (task, _), alike in told.items():  # levels apart: their questions are of different length
        for together in grouped(alike, BATCH):
            found |= zip(together, _tell(analyzer, encoded, task, together), strict=True)
    for level, asked in areas.items():
        for pairs in grouped(asked, BATCH):
            rows, queries = [row for row, _ in pairs], [query for _, query in pairs]
            for row, query, answer in zip(rows, queries, analyzer.answer(encoded, crops_BHWC, rows, queries), strict=True):
                found[Question(row, "loc", level, query)], found[Question(row, "age", level, query)] = _halves(analyzer, query, answer)
    return found


def _tell(analyzer: Analyzer, encoded: Encoded, task: Task, questions: Sequence[Question]) -> Iterator[Prediction]:
    """Answer questions of one task and level: about the whole face, or about areas where no mask is asked for."""
    rows = [question.row for question in questions]
    if task != "loc" and questions[0].level == "image":
        answers = analyzer.tell(encoded, rows, task)
    else:
        answers = analyzer.ask(encoded, rows, task, [question.query for question in questions])
    if task == "toe":
        yield from (Prediction(id="", text=parse_markup(analyzer.markup(answer))[0]) for answer in answers)
        return
    for answer, (masks_MHW, confidence_M) in zip(answers, masks_by_answer(analyzer, encoded, rows, answers), strict=True):
        if task == "age":
            markup = analyzer.markup(answer)
            yield Prediction(id="", text=parse_markup(markup)[0], masks=phrase_masks(markup, masks_MHW, confidence_M))
        else:
            probability_HW = masks_MHW.max(0, initial=0.0)
            yield Prediction(id="", masks=_located(resized_mask(probability_HW), float(confidence_M.max(initial=0.0))))


def _halves(analyzer: Analyzer, query: AreaQuery, answer: AreaAnswer) -> tuple[Prediction, Prediction]:
    """`loc` and `age` of one answer of serving about an area."""
    within_HW = np.ones((SIDE, SIDE), bool)
    if not isinstance(query, str):
        within_HW = box_cells(query, SIDE, SIDE / analyzer.manifest.preprocess.image_size)
    evidence = tuple(
        PredictedMask(concept=e.concept, phrase=e.phrase, rle=Rle.of(resized_mask(e.mask_probability_HW) & within_HW), confidence=e.mask_confidence)
        for e in answer.explanation.evidence
    )
    located = _located(resized_mask(answer.mask_probability_HW) & within_HW, answer.mask_confidence)
    return Prediction(id="", masks=located), Prediction(id="", text=answer.explanation.text, masks=evidence)


def _located(mask_HW: NDArray[np.bool_], confidence: float) -> tuple[PredictedMask, ...]:
    return (PredictedMask(rle=Rle.of(mask_HW), confidence=confidence),) if mask_HW.any() else ()
