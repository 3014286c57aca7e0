"""Stage 2 data: annotated faces as encoder features, computed once, with the texts and masks they must answer.

The encoder rests in this stage, so each face is encoded a few times (as it is, and under drawn light and codec) and the features are kept in half
precision. Geometry is left alone: masks and the subject's sides stay true.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from engines.preprocess import to_model_input
from engines.prompts import LOC_ANSWER, LOC_CLEAN_ANSWER, PAD, SEG, Task, Vocabulary, parse_markup
from trainer import augment
from trainer.annotator.annotate import decode_mask
from trainer.faces import fit
from trainer.model import FiFaMLLM

TASK_MIX: tuple[tuple[Task, float], ...] = (("age", 0.65), ("loc", 0.25), ("toe", 0.10))


@dataclass(frozen=True, slots=True)
class AnnotatedFace:
    """An annotation row with the image it speaks of."""

    row: dict[str, Any]
    image_HWC: NDArray[np.uint8]


class Features(NamedTuple):
    """What the frozen encoder says of N views; kept in half precision."""

    image_embeds_NTD: Tensor
    artifact_logits_NT: Tensor
    query_embeds_NQD: Tensor
    face_N: NDArray[np.int64]
    """Index of the annotated face behind each view."""


class LanguageBatch(NamedTuple):
    """One step: right-padded texts, and one target mask for each [SEG] in row order."""

    view_B: Tensor
    input_ids_BL: Tensor
    target_BL: Tensor
    """Next token, -100 outside the answer."""
    seg_row_M: Tensor
    seg_column_M: Tensor
    """Where the [SEG] tokens stand in `input_ids_BL`."""
    mask_MHW: Tensor
    """float32 share of masked pixels on the mask grid."""
    mask_weight_M: Tensor
    """0 where the annotation's mask is in doubt."""


@torch.no_grad()
def encode_views(model: FiFaMLLM, faces: Sequence[AnnotatedFace], *, views: int, seed: int, batch: int = 32) -> Features:
    """Encode each face as it is and under `views - 1` draws of light and codec."""
    size = model.config.image_size
    jobs = [(index, view) for view in range(views) for index in range(len(faces))]
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    model.eval()
    for start in track(range(0, len(jobs), batch), description="encode"):
        crops = []
        for index, view in jobs[start : start + batch]:
            crop = np.ascontiguousarray(fit(faces[index].image_HWC, size))
            if view:
                rng = np.random.default_rng([seed, index, view])
                draw = replace(augment.draw(rng, size), center_xy=(0.5, 0.5), zoom=1.0, angle_deg=0.0, flip=False)
                crop = draw.image(crop)
            crops.append(crop)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model.encoder(torch.from_numpy(to_model_input(np.stack(crops))))
        parts.append((out.image_embeds_BTD.half(), out.artifact_logits_BT.half(), out.query_embeds_BQD.half()))
    image, artifact, query = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Features(image, artifact, query, np.array([index for index, _ in jobs], np.int64))


class LanguageBatches:
    """Step number -> batch; deterministic in (seed, step)."""

    def __init__(
        self, faces: Sequence[AnnotatedFace], features: Features, vocabulary: Vocabulary, *, batch_faces: int, mask_size: int, seed: int
    ) -> None:
        self.faces, self.features, self.vocabulary = faces, features, vocabulary
        self.batch_faces, self.mask_size, self.seed = batch_faces, mask_size, seed
        self._masks = [[small_mask(decode_mask(concept["mask"]), mask_size) for concept in face.row["concepts"]] for face in faces]
        self._whole = [small_mask(decode_mask(face.row["mask"]), mask_size) for face in faces]

    def __getitem__(self, step: int) -> LanguageBatch:
        rng = np.random.default_rng([self.seed, step])
        views = rng.integers(len(self.features.face_N), size=self.batch_faces)
        tasks = rng.choice(len(TASK_MIX), size=self.batch_faces, p=[share for _, share in TASK_MIX])
        return self.collate(views, [TASK_MIX[task][0] for task in tasks])

    def answer(self, index: int, task: Task) -> tuple[str, list[NDArray[np.float32]]]:
        """The markup a face must answer, and its masks."""
        row = self.faces[index].row
        if task == "loc":
            return (LOC_ANSWER, [self._whole[index]]) if row["is_fake"] else (LOC_CLEAN_ANSWER, [])
        return (row["markup"], self._masks[index]) if task == "age" else (parse_markup(row["markup"])[0], [])

    def collate(self, views: NDArray[np.int64], tasks: Sequence[Task]) -> LanguageBatch:
        """Pad to the longest row."""
        vocabulary, rows, masks, weights = self.vocabulary, [], [], []
        for view, task in zip(views, tasks, strict=True):
            index = int(self.features.face_N[view])
            markup, targets = self.answer(index, task)
            prompt, answer = vocabulary.prompt_ids(task), vocabulary.answer_ids(markup)
            if answer.count(vocabulary.ids[SEG]) != len(targets):
                raise ValueError(f"{self.faces[index].row['name']}: {len(targets)} masks but {answer.count(vocabulary.ids[SEG])} [SEG] in {markup!r}")
            rows.append((prompt, answer))
            masks += targets
            weights += [1.0 if self.faces[index].row["quality"] == "good" else 0.0] * len(targets)
        length = max(len(prompt) + len(answer) for prompt, answer in rows) - 1
        inputs = torch.full((len(rows), length), vocabulary.ids[PAD])
        target = torch.full((len(rows), length), -100)
        for row, (prompt, answer) in enumerate(rows):
            ids = prompt + answer
            inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            target[row, len(prompt) - 1 : len(ids) - 1] = torch.tensor(answer)
        seg_row, seg_column = (inputs == vocabulary.ids[SEG]).nonzero(as_tuple=True)
        stacked = np.stack(masks) if masks else np.zeros((0, self.mask_size, self.mask_size), np.float32)
        return LanguageBatch(
            torch.from_numpy(np.asarray(views)),
            inputs,
            target,
            seg_row,
            seg_column,
            torch.from_numpy(stacked),
            torch.tensor(weights, dtype=torch.float32),
        )


def small_mask(mask_HW: NDArray[np.bool_], size: int) -> NDArray[np.float32]:
    """Share of masked pixels per cell of the mask grid."""
    return cv2.resize(mask_HW.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
