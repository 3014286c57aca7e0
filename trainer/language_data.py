"""Stage 2 data: instruction shards as encoder features, computed once, with the questions, answers and masks of every face.

The encoder rests in this stage, so each face is encoded a few times (as it is, and under drawn light and codec) and the features are kept in half
precision. Geometry is left alone: masks and the subject's sides stay true. A row of a batch is one face with several questions behind it, which do
not see each other: the face is read once for all of them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import cv2
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from engines import fict
from engines.findings import REGION_DILATION_PX
from engines.measure import dilate
from engines.preprocess import to_model_input
from engines.prompts import BBOX, PAD, SEG, Task, Vocabulary
from trainer import augment
from trainer.config import LanguageConfig, Precision
from trainer.faces import fit
from trainer.model import EncoderOutput, FiFaMLLM
from trainer.samples import SIDE, BoxXYXY, Level, Rle, Sample
from trainer.shards import read_shards
from trainer.tokenizer import train_tokenizer


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its answer in tokens, and what each [SEG] of the answer must show."""

    task: Task
    level: Level
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    box_xyxy: BoxXYXY | None
    """In pixels of the model's crop."""
    mask_MHW: NDArray[np.uint8]
    """Share of manipulated pixels per cell of the mask grid, 255 for all."""
    area_MHW: NDArray[np.uint8]
    """Share that belongs to the area spoken of."""
    mask_known: bool
    """False where the annotation's mask is in doubt."""
    area_known_M: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class InstructedFace:
    """A face crop with its questions; `det` and `cls` belong to stage 1 and are left out."""

    name: str
    image_HWC: NDArray[np.uint8]
    questions: tuple[Question, ...]


class Features(NamedTuple):
    """What the frozen encoder says of N views; kept in half precision."""

    image_embeds_NTD: Tensor
    artifact_logits_NT: Tensor
    query_embeds_NQD: Tensor
    statistics_NTS: Tensor
    face_N: NDArray[np.int64]
    """Index of the face behind each view."""
    mask_embeds_NTD: Tensor | None = None
    """Patch tokens of the mask decoder's own encoder, where it has one."""


class LanguageBatch(NamedTuple):
    """One step: a face and its questions in each right-padded row, and one target mask for each [SEG] in row order."""

    view_B: Tensor
    input_ids_BL: Tensor
    target_BL: Tensor
    """Next token, -100 outside the answers."""
    question_BL: Tensor
    """Number of the question within its row, -1 for padding."""
    position_BL: Tensor
    """Tokens since the question began."""
    box_at_K2: Tensor
    """(row, column) of the `<bbox>` tokens."""
    box_K4: Tensor
    """float32 (x0, y0, x1, y1) in pixels of the crop."""
    seg_at_M2: Tensor
    """(row, column) of the [SEG] tokens."""
    mask_MHW: Tensor
    """float32 share of manipulated pixels on the mask grid."""
    mask_weight_M: Tensor
    """0 where the annotation's mask is in doubt."""
    area_MHW: Tensor
    area_weight_M: Tensor
    """0 where the face does not show the region that the phrase names."""


def texts_of(folder: Path) -> Iterator[str]:
    """Prompts and answers of a folder of instruction data: what the tokenizer learns from."""
    for _, samples in read_shards(folder):
        for sample in samples:
            yield sample.prompt
            yield sample.answer


def vocabulary_of(folder: Path, size: int) -> Vocabulary:
    """A vocabulary learned from the texts of a folder of instruction data."""
    return Vocabulary(train_tokenizer(texts_of(folder), size))


def instructed_faces(folder: Path, vocabulary: Vocabulary, *, image_size: int, mask_size: int, limit: int | None = None) -> list[InstructedFace]:
    """Read a folder that `fifa-train instruct` wrote, or its first `limit` faces with questions. Faces without an annotation have none."""
    found: list[InstructedFace] = []
    for image_HWC, samples in track(read_shards(folder), description="instructions"):
        asked = tuple(questions_of(samples, vocabulary, scale=image_size / SIDE, mask_size=mask_size))
        if asked:
            found.append(InstructedFace(f"{samples[0].dataset}/{samples[0].name}", fit(image_HWC, image_size), asked))
        if limit is not None and len(found) >= limit:
            break
    return found


def questions_of(samples: Sequence[Sample], vocabulary: Vocabulary, *, scale: float, mask_size: int) -> Iterator[Question]:
    regions = FaceRegions(next((sample.regions for sample in samples if sample.regions), {}))
    for sample in samples:
        if sample.task in ("det", "cls") or sample.probe is not None:
            continue
        answer_ids = tuple(vocabulary.answer_ids(sample.answer))
        masks = sample.masks if sample.task != "toe" else ()
        if answer_ids.count(vocabulary.ids[SEG]) != len(masks):
            count = answer_ids.count(vocabulary.ids[SEG])
            raise ValueError(f"{sample.id}: {len(masks)} masks but {count} {SEG} in {sample.answer!r}; instruct again")
        areas = [_area(sample, mask.concept, regions) for mask in masks]
        grid = np.zeros((len(masks), mask_size, mask_size), np.uint8)
        areas_MHW = grid.copy()
        for number, (mask, area_HW) in enumerate(zip(masks, areas, strict=True)):
            grid[number] = _shares(mask.rle.decode(), mask_size)
            if area_HW is not None:
                areas_MHW[number] = _shares(area_HW, mask_size)
        box = None if sample.box_xyxy is None else cast(BoxXYXY, tuple(edge * scale for edge in sample.box_xyxy))
        task = cast(Task, sample.task)
        yield Question(
            task, sample.level, tuple(vocabulary.question_ids(sample.prompt)), answer_ids, box, grid, areas_MHW, sample.mask_known,
            np.array([area_HW is not None for area_HW in areas], bool),
        )  # fmt: skip


class FaceRegions:
    """FICT on one face, decoded at most once a concept."""

    def __init__(self, regions: Mapping[str, Rle]) -> None:
        self._regions = regions
        self._known: dict[str, NDArray[np.bool_] | None] = {}

    def __getitem__(self, concept: str) -> NDArray[np.bool_] | None:
        """(224, 224), grown as the annotator grows it; None where the face does not show it."""
        if concept not in self._known:
            parts = [self._regions[atom].decode() for atom in fict.concepts()[concept].atoms if atom in self._regions]
            self._known[concept] = dilate(np.any(parts, 0), REGION_DILATION_PX) if parts else None
        return self._known[concept]


def _area(sample: Sample, concept: str | None, regions: FaceRegions) -> NDArray[np.bool_] | None:
    if concept is not None:
        return regions[concept]
    return np.ones((SIDE, SIDE), bool) if sample.area is None else sample.area.decode()


def _shares(mask_HW: NDArray[np.bool_], size: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(mask_HW.astype(np.uint8) * np.uint8(255), (size, size), interpolation=cv2.INTER_AREA), np.uint8)


def features_of(outputs: Iterable[EncoderOutput], face_N: NDArray[np.int64]) -> Features:
    """Gather encoder outputs in half precision; what comes after the last view is left out."""
    parts: dict[str, list[Tensor]] = {}
    for output in outputs:
        for name, tensor in output._asdict().items():
            if tensor is not None:
                parts.setdefault(name, []).append(tensor.half())
    kept = {name: torch.cat(parts[name])[: len(face_N)] for name in parts}
    return Features(
        kept["image_embeds_BTD"], kept["artifact_logits_BT"], kept["query_embeds_BQD"], kept["statistics_BTS"], face_N, kept.get("mask_embeds_BTD")
    )


@torch.no_grad()
def encode_views(
    model: FiFaMLLM, faces: Sequence[InstructedFace], *, views: int, seed: int, batch: int = 32, precision: Precision = "bf16"
) -> Features:  # fmt: skip
    """Encode each face as it is and under `views - 1` draws of light and codec. Processes share the work, and each gets all of it."""
    size, process, device = model.config.image_size, PartialState(), next(model.encoder.parameters()).device
    jobs = [(index, view) for view in range(views) for index in range(len(faces))]
    together = batch * process.num_processes
    # Processes can only exchange as much as each of them has: the last view fills up what is missing.
    filled = jobs if process.num_processes == 1 else jobs + jobs[-1:] * (-len(jobs) % together)
    model.eval()

    def outputs() -> Iterator[EncoderOutput]:
        for start in track(range(process.process_index * batch, len(filled), together), description="encode", disable=not process.is_main_process):
            crops = []
            for index, view in filled[start : start + batch]:
                crop = np.ascontiguousarray(fit(faces[index].image_HWC, size))
                if view:
                    rng = np.random.default_rng([seed, index, view])
                    drawn = replace(augment.draw(rng, size), center_xy=(0.5, 0.5), zoom=1.0, angle_deg=0.0, flip=False)
                    crop = drawn.image(crop)
                crops.append(crop)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                out = model.encode(torch.from_numpy(to_model_input(np.stack(crops))).to(device))
            gathered = gather({name: tensor for name, tensor in out._asdict().items() if tensor is not None})
            yield EncoderOutput(**{name: tensor.cpu() for name, tensor in gathered.items()})

    return features_of(outputs(), np.array([index for index, _ in jobs], np.int64))


class LanguageBatches:
    """Step number -> batch; deterministic in (seed, step)."""

    def __init__(self, faces: Sequence[InstructedFace], face_N: NDArray[np.int64], vocabulary: Vocabulary, config: LanguageConfig) -> None:
        """`face_N` is the face behind each view of the features."""
        self.faces, self.face_N, self.vocabulary, self.config = faces, face_N, vocabulary, config

    def __getitem__(self, step: int) -> LanguageBatch:
        return self.piece(step, slice(None))

    def piece(self, step: int, rows: slice) -> LanguageBatch:
        """Some faces of a step's batch: what one of several processes reads of it."""
        rng = np.random.default_rng([self.config.seed, step])
        views = rng.integers(len(self.face_N), size=self.config.batch_faces)
        asked = [draw_questions(rng, self.faces[self.face_N[view]].questions, self.config) for view in views]
        return collate(self.vocabulary, views[rows], asked[rows])


def draw_questions(rng: np.random.Generator, questions: Sequence[Question], config: LanguageConfig) -> list[Question]:
    """As many of each level as the config asks, none twice, tasks by their share."""
    drawn: list[Question] = []
    for level, count in config.questions.items():
        pool = [q for q in questions if q.level == level and config.task_shares.get(q.task)]
        if pool:
            share = np.array([config.task_shares[q.task] for q in pool])
            chosen = rng.choice(len(pool), size=min(count, len(pool)), replace=False, p=share / share.sum())
            drawn += [pool[index] for index in chosen]
    return drawn


def collate(vocabulary: Vocabulary, views: NDArray[np.int64], asked: Sequence[Sequence[Question]]) -> LanguageBatch:
    """Lay the questions of each face behind one another and pad to the longest row."""
    ids = vocabulary.ids
    length = max(sum(len(q.prompt_ids) + len(q.answer_ids) - 1 for q in of_face) for of_face in asked)
    inputs = torch.full((len(asked), length), ids[PAD])
    target, question = torch.full_like(inputs, -100), torch.full_like(inputs, -1)
    position = torch.zeros_like(inputs)
    for row, of_face in enumerate(asked):
        start = 0
        for number, q in enumerate(of_face):
            tokens = torch.tensor(q.prompt_ids + q.answer_ids)
            end = start + len(tokens) - 1
            inputs[row, start:end] = tokens[:-1]
            target[row, start + len(q.prompt_ids) - 1 : end] = tokens[len(q.prompt_ids) :]
            question[row, start:end], position[row, start:end] = number, torch.arange(end - start)
            start = end
    all_asked = [q for of_face in asked for q in of_face]
    boxes = [q.box_xyxy for q in all_asked if q.box_xyxy is not None]
    masks, areas = (np.concatenate([getattr(q, name) for q in all_asked]).astype(np.float32) / 255 for name in ("mask_MHW", "area_MHW"))
    return LanguageBatch(
        torch.from_numpy(np.asarray(views)), inputs, target, question, position,
        (inputs == ids[BBOX]).nonzero(), torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        (inputs == ids[SEG]).nonzero(), torch.from_numpy(masks),
        torch.tensor([float(q.mask_known) for q in all_asked for _ in q.mask_MHW]),
        torch.from_numpy(areas), torch.from_numpy(np.concatenate([q.area_known_M for q in all_asked])).float(),
    )  # fmt: skip
