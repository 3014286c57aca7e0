"""The faces of the language grid, their answers at a depth of FICT, and what a trained variant makes of them.

Evaluation is teacher-forced: the true question and the true answer are read, and words and masks are taken from the very pass that is trained.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from engines import fict
from engines.fict import Depth
from engines.prompts import Task, Vocabulary, loc_answer, parse_markup
from trainer import language_data
from trainer.config import ModelConfig, TrainConfig
from trainer.faces import fit
from trainer.language_data import Features, InstructedFace, LanguageBatch, Question, collate
from trainer.model import FiFaMLLM, MaskOutput
from trainer.samples import SIDE, Rle, Sample, TaskKind, TrueMask
from trainer.shards import read_shards
from trainer.train import language_losses

BATCH_FACES = 16
"""Faces of a batch that is evaluated, and at most of one that is trained on."""
EVALUATED: Mapping[TaskKind, int] = {"loc": 3, "age": 1, "toe": 1}
"""Questions of each level that an evaluated face is asked, as far as it has them."""
COARSER: tuple[Depth, ...] = (33, 14)
"""Depths at which the masks of an explanation are also compared joined."""
_TREE_LEVEL: Mapping[Depth, int] = {5: 1, 14: 2, 33: 3, 112: 4}
_GROUNDED = re.compile(r"<p> .+? </p> \[SEG\]")


# --- Depth of FICT ------------------------------------------------------------------------------------------------------------------------------


def ancestor(concept: str, depth: Depth) -> str:
    """The concept's ancestor at a depth of FICT, or itself where it lies as high already; arcs of the boundary count as parts."""
    return fict.concepts()[concept].path[: _TREE_LEVEL[depth]][-1]


def at_depth(samples: Sequence[Sample], depth: Depth) -> list[Sample]:
    """The samples of one face with every grounded concept replaced by its ancestor; questions, and words that only echo them, stay.

    Phrases and masks keep their number and order. An ancestor's mask is the asked area's artifact (of the `loc` sample beside) within the ancestor's
    region, and what the replaced concepts show in any case; phrases that meet in one ancestor show the same. `toe` stays the plain text of its `age`.
    The samples are those of a face that `instruct` made, probes left out; raises ValueError for others.
    """
    regions = language_data.FaceRegions(next((sample.regions for sample in samples if sample.regions), {}))
    by_id = {sample.id: sample for sample in samples}
    coarse = {sample.id: _coarser(sample, depth, by_id.get(_beside(sample, "loc")), regions) for sample in samples if sample.task == "age"}
    changed = []
    for sample in samples:
        if sample.task == "toe":
            explained = by_id.get(_beside(sample, "age"))
            if explained is None or parse_markup(explained.answer)[0] != sample.answer:
                raise ValueError(f"{sample.id}: its text is not that of the explanation beside it; instruct again")
            sample = sample.model_copy(update={"answer": parse_markup(coarse[explained.id].answer)[0]})
        changed.append(coarse.get(sample.id, sample))
    return changed


def _beside(sample: Sample, task: Task) -> str:
    """The id of another task's sample about the same area."""
    face, _, asked = sample.id.rpartition("#")
    return f"{face}#{task}{asked.removeprefix(sample.task)}"


def _coarser(sample: Sample, depth: Depth, located: Sample | None, regions: language_data.FaceRegions) -> Sample:
    if len(_GROUNDED.findall(sample.answer)) != len(sample.masks):
        raise ValueError(f"{sample.id}: {len(sample.masks)} masks, but other phrases in {sample.answer!r}; instruct again")
    named = [mask.concept for mask in sample.masks if mask.concept is not None]
    if len(named) < len(sample.masks):
        raise ValueError(f"{sample.id}: a mask of an explanation names no concept; instruct again")
    names = [ancestor(concept, depth) for concept in named]
    if names == named:
        return sample
    shown = [mask.rle.decode() for mask in sample.masks]
    artifact_HW = located.masks[0].rle.decode() if located is not None and located.mask_known and located.masks else None
    masks: dict[str, TrueMask] = {}
    for name in dict.fromkeys(names):
        parts = [mask_HW for own, mask_HW in zip(names, shown, strict=True) if own == name]
        region_HW = regions[name]
        if artifact_HW is not None and region_HW is not None:
            parts.append(artifact_HW & region_HW)
        masks[name] = TrueMask(concept=name, rle=Rle.of(np.any(parts, 0)))
    phrases = iter(names)
    answer = _GROUNDED.sub(lambda _: f"<p> {fict.concepts()[next(phrases)].phrase} </p> [SEG]", sample.answer)
    return sample.model_copy(update={"answer": answer, "masks": tuple(masks[name] for name in names)})


# --- Faces of the language grid -----------------------------------------------------------------------------------------------------------------


class Joined(NamedTuple):
    """The masks of an explanation joined at a coarser depth of FICT."""

    group_M: tuple[int, ...]
    """The ancestor that each [SEG] falls under, numbered."""
    mask_GHW: NDArray[np.uint8]
    """What each ancestor must show, as `Question.mask_MHW`."""


class EvaluatedFace(NamedTuple):
    """A face with the questions of evaluation."""

    face: InstructedFace
    joined: tuple[Mapping[Depth, Joined], ...]
    """By question; empty for all but explanations with masks."""


def trained_faces(folder: Path, vocabulary: Vocabulary, model: ModelConfig, *, depth: Depth, limit: int) -> list[InstructedFace]:
    """The first `limit` faces of a folder that have questions, their answers at a depth of FICT."""
    found: list[InstructedFace] = []
    for image_HWC, samples in track(read_shards(folder), description=f"faces at FICT depth {depth}"):
        questions = questions_of(at_depth(_in_text(samples), depth), vocabulary, model)
        if questions:
            found.append(_face(image_HWC, samples, questions, model))
        if len(found) >= limit:
            break
    return found


def evaluated_faces(folder: Path, vocabulary: Vocabulary, model: ModelConfig, *, depth: Depth, limit: int) -> list[EvaluatedFace]:
    """The first `limit` faces of a folder that have questions, with `EVALUATED` of these and their masks joined at `COARSER` depths."""
    found: list[EvaluatedFace] = []
    for image_HWC, samples in track(read_shards(folder), description=f"evaluated faces at FICT depth {depth}"):
        in_text = _in_text(samples)
        chosen = _first_of_each(in_text)
        asked = [sample for sample in at_depth(in_text, depth) if sample.id in chosen]
        questions = questions_of(asked, vocabulary, model)
        joined: dict[str, dict[Depth, Joined]] = {sample.id: {} for sample in asked}
        for coarser in (coarser for coarser in COARSER if coarser <= depth):
            explained = [sample for sample in at_depth(in_text, coarser) if sample.id in chosen and sample.task == "age"]
            for sample, question in zip(explained, questions_of(explained, vocabulary, model), strict=True):
                if sample.masks:
                    joined[sample.id][coarser] = _joined(sample, question)
        if questions:
            found.append(EvaluatedFace(_face(image_HWC, samples, questions, model), tuple(joined[sample.id] for sample in asked)))
        if len(found) >= limit:
            break
    return found


def _in_text(samples: Sequence[Sample]) -> list[Sample]:
    """What stage 2 answers."""
    return [sample for sample in samples if sample.task in EVALUATED and sample.probe is None]


def _first_of_each(samples: Sequence[Sample]) -> set[str]:
    """Ids of the first `EVALUATED` samples of each task and level."""
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for sample in samples:
        kinds[sample.task, sample.level].append(sample.id)
    return {name for (task, _), names in kinds.items() for name in names[: EVALUATED[task]]}  # type: ignore[index]


def questions_of(samples: Sequence[Sample], vocabulary: Vocabulary, model: ModelConfig) -> tuple[Question, ...]:
    return tuple(language_data.questions_of(samples, vocabulary, scale=model.image_size / SIDE, mask_size=4 * model.grid))


def _face(image_HWC: NDArray[np.uint8], samples: Sequence[Sample], questions: tuple[Question, ...], model: ModelConfig) -> InstructedFace:
    return InstructedFace(f"{samples[0].dataset}/{samples[0].name}", fit(image_HWC, model.image_size), questions)


def _joined(sample: Sample, question: Question) -> Joined:
    names = [mask.concept for mask in sample.masks]
    groups = list(dict.fromkeys(names))
    return Joined(tuple(groups.index(name) for name in names), question.mask_MHW[[names.index(name) for name in groups]])


# --- Evaluation ---------------------------------------------------------------------------------------------------------------------------------


class Means:
    """Running means by name."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, name: str, total: float, count: int = 1) -> None:
        """Add a sum of `count` values; none add nothing."""
        before, seen = self._sums.get(name, (0.0, 0))
        if count:
            self._sums[name] = before + total, seen + count

    def __call__(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in sorted(self._sums.items())}


class Answered(NamedTuple):
    """What a model reads out of a batch under true questions and answers."""

    logits_BLV: Tensor
    mask_logits_MHW: Tensor


@torch.no_grad()
def answered(model: FiFaMLLM, features: Features, batch: LanguageBatch, config: TrainConfig) -> Answered:
    """Words and masks of the pass that `language_losses` makes, so that what is measured is what is trained, wherever the mask loss is routed."""
    words: list[Tensor] = []
    masks: list[MaskOutput] = []
    hooks = [
        model.language.lm_head.register_forward_hook(lambda _module, _inputs, output: words.append(output)),
        model.mask_decoder.register_forward_hook(lambda _module, _inputs, output: masks.append(output)),
    ]
    try:
        language_losses(model, features, batch, config.language, precision=config.precision)
    finally:
        for hook in hooks:
            hook.remove()
    return Answered(words[0], masks[0].mask_logits_MHW)


def evaluate_language(
    model: FiFaMLLM, features: Features, faces: Sequence[EvaluatedFace], vocabulary: Vocabulary, config: TrainConfig
) -> dict[str, float]:
    """Figures of a trained variant on faces whose features have one view each; what no face can tell is left out (docs/ablations.md names them all).

    Masks are compared on the mask grid, a cell counting as masked from one half on; a mask without a cell in the truth is not compared.
    """
    model.eval()
    first_words = tuple(vocabulary.answer_ids(loc_answer(tampered))[0] for tampered in (True, False))
    means = Means()
    for start in track(range(0, len(faces), BATCH_FACES), description="evaluate"):
        items = faces[start : start + BATCH_FACES]
        batch = collate(vocabulary, np.arange(start, start + len(items)), [item.face.questions for item in items])
        out = answered(model, features, batch, config)
        nll_BL = F.cross_entropy(out.logits_BLV.flatten(0, 1).float(), batch.target_BL.flatten(), ignore_index=-100, reduction="none")
        nll_BL = nll_BL.view_as(batch.target_BL)
        shown_MHW = (out.mask_logits_MHW > 0).numpy()
        mask = 0
        for row, item in enumerate(items):
            for number, (question, joined) in enumerate(zip(item.face.questions, item.joined, strict=True)):
                learned_L = (batch.question_BL[row] == number) & (batch.target_BL[row] != -100)
                means.add(f"text_{question.task}", float(nll_BL[row, learned_L].sum()), int(learned_L.sum()))
                if question.task == "loc" and question.level != "image":
                    tampered, clean = out.logits_BLV[row, learned_L][0, list(first_words)].tolist()
                    is_tampered = question.answer_ids[0] == first_words[0]
                    means.add(f"{'tampered' if is_tampered else 'clean'}_{question.level}", float((tampered > clean) == is_tampered))
                _count_masks(means, question, joined, shown_MHW[mask : mask + len(question.mask_MHW)])
                mask += len(question.mask_MHW)
    found = means()
    for level in ("region", "box"):
        recalls = [found.pop(f"{state}_{level}", None) for state in ("tampered", "clean")]
        if None not in recalls:
            found[f"balanced_{level}"] = float(np.mean([recall for recall in recalls if recall is not None]))
    return found


def _count_masks(means: Means, question: Question, joined: Mapping[Depth, Joined], shown_MHW: NDArray[np.bool_]) -> None:
    """Add the masks of one answer, predicted ones given."""
    kind = f"loc_miou_{question.level}" if question.task == "loc" else "age_miou"
    if question.mask_known:
        for shown_HW, wanted_HW in zip(shown_MHW, question.mask_MHW, strict=True):
            _count_overlap(means, kind, shown_HW, wanted_HW)
        for depth, (group_M, mask_GHW) in joined.items():
            for group, wanted_HW in enumerate(mask_GHW):
                _count_overlap(means, f"age_miou_{depth}", shown_MHW[np.array(group_M) == group].any(0), wanted_HW)
    if question.task == "age":
        for shown_HW, area_HW, known in zip(shown_MHW, question.area_MHW, question.area_known_M, strict=True):
            if known and shown_HW.any():
                means.add("age_inside", float((area_HW[shown_HW] > 0).mean()))


def _count_overlap(means: Means, name: str, shown_HW: NDArray[np.bool_], wanted_share_HW: NDArray[np.uint8]) -> None:
    wanted_HW = wanted_share_HW > 127
    if wanted_HW.any():
        means.add(name, float((shown_HW & wanted_HW).sum() / (shown_HW | wanted_HW).sum()))
