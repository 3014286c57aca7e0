"""What an engine answers to samples: faces in, predictions out, through the serving analyzer.

A face is encoded once for all its samples, and a question that several samples ask of it is answered once. The engine asks in its own words: the
prompt of a sample is not passed on, only its task and its query.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines import fict
from engines.analyzer import Analyzer, Answer, softmax
from engines.contracts import FORGERY_TYPES
from engines.prompts import Task, parse_markup
from trainer.faces import ImageHWC, fit
from trainer.samples import SIDE, BoxXYXY, Level, PredictedMask, Prediction, Rle, Sample, TaskKind, write_jsonl

BATCH = 16
"""Faces encoded together; as many as the serving analyzer explains together."""
NOT_ANSWERED = "query_not_answered"

AskedFace = tuple[ImageHWC, Sequence[Sample]]
"""(H, W, 3) uint8 RGB face crop of any size, and all its samples."""
Encoded = Mapping[str, NDArray[Any]]
"""Every output of the encoder for a batch, by name."""
Query = str | BoxXYXY | None
"""A FICT id, a box in pixels of the engine's crop, or None for the whole face."""
T = TypeVar("T")


class Predictor(Protocol):
    """A system under test: `partial(predict, analyzer)`, or a baseline."""

    def __call__(self, items: Iterable[AskedFace], *, batch: int = BATCH) -> Iterator[Prediction]:
        """One prediction for each sample of a task that the system offers, in their order."""
        ...


@runtime_checkable
class AnswersQueries(Protocol):
    """What an analyzer has that also answers about a region or a box."""

    query_levels: Collection[Level]
    """Which of 'region' and 'box' its bundle was trained for."""

    def ask(self, encoded: Encoded, rows: Sequence[int], task: Task, queries: Sequence[Query]) -> list[Answer]:
        """Answer one query for each of the rows of an encoded batch, where a row may come several times."""
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
    return level == "image" or (isinstance(analyzer, AnswersQueries) and level in analyzer.query_levels)


def predict(analyzer: Analyzer, items: Iterable[AskedFace], *, batch: int = BATCH) -> Iterator[Prediction]:
    """Answer every sample of every face, in their order, `batch` faces at a time."""
    for faces in grouped(items, batch):
        crops_BHWC = engine_crops(analyzer, [crop_HWC for crop_HWC, _ in faces])
        asked = [(sample, _question(analyzer, row, sample)) for row, (_, samples) in enumerate(faces) for sample in samples]
        answers = _answer(analyzer, analyzer.encode(crops_BHWC), {question for _, question in asked})
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
    masks_MHW, confidence_M = analyzer.masks(dict(encoded), rows, answers)
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
    scale = analyzer.manifest.preprocess.image_size / SIDE
    x0, y0, x1, y1 = (edge * scale for edge in sample.box_xyxy)
    return Question(row, sample.task, sample.level, (x0, y0, x1, y1))


def _answer(analyzer: Analyzer, encoded: Encoded, questions: Collection[Question]) -> dict[Question, Prediction]:
    """Answers without an id."""
    scores_B, type_probs_BF = analyzer.calibrated(encoded["det_logit"]), softmax(encoded["type_logits"])
    found: dict[Question, Prediction] = {}
    told: dict[tuple[Task, Level], list[Question]] = defaultdict(list)
    for question in sorted(questions, key=repr):
        if question.task == "det":
            found[question] = Prediction(id="", fake_score=float(scores_B[question.row]))
        elif question.task == "cls":
            probs = dict(zip(FORGERY_TYPES, type_probs_BF[question.row].tolist(), strict=True))
            found[question] = Prediction(id="", type_probs={name: min(prob, 1.0) for name, prob in probs.items()})
        elif answers_level(analyzer, question.level):
            told[question.task, question.level].append(question)
        else:
            found[question] = Prediction(id="", refused=NOT_ANSWERED)
    for (task, level), alike in told.items():
        for together in grouped(alike, BATCH):
            found |= zip(together, _tell(analyzer, encoded, task, level, together), strict=True)
    return found


def _tell(analyzer: Analyzer, encoded: Encoded, task: Task, level: Level, questions: Sequence[Question]) -> Iterator[Prediction]:
    """Decode questions of one task and level together."""
    rows = [question.row for question in questions]
    if level == "image":
        answers = analyzer.decode(encoded["prefix_embeds"][rows], task)
    else:
        answers = cast(AnswersQueries, analyzer).ask(encoded, rows, task, [question.query for question in questions])
    for answer, (masks_MHW, confidence_M) in zip(answers, masks_by_answer(analyzer, encoded, rows, answers), strict=True):
        yield _told(task, analyzer.markup(answer), masks_MHW, confidence_M)


def _told(task: Task, markup: str, masks_MHW: NDArray[np.float32], confidence_M: NDArray[np.float32]) -> Prediction:
    if task == "age":
        return Prediction(id="", text=parse_markup(markup)[0], masks=phrase_masks(markup, masks_MHW, confidence_M))
    if task == "toe":
        return Prediction(id="", text=parse_markup(markup)[0])
    mask_HW = resized_mask(masks_MHW.max(0)) if len(masks_MHW) else np.zeros((SIDE, SIDE), bool)
    shown = (PredictedMask(rle=Rle.of(mask_HW), confidence=float(confidence_M.max())),) if mask_HW.any() else ()
    return Prediction(id="", masks=shown)
