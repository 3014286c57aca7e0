"""Instruction data: an annotated face -> questions and answers of the eleven tasks (FiFa-11).

Every face is asked `det`, every fake `cls`; an annotated face is asked `loc`, `toe` and `age` of the whole image, of some FICT regions and of some
boxes. Part of the regions and boxes of a fake are clean, and real faces are asked too: who answers every question with an artifact is wrong often.
Deterministic in (recipe, face), whatever the order of work. Frame: the face crop at 224 x 224 px.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines import fict, prompts
from engines.prompts import SEG, parse_markup
from engines.regions import Regions
from trainer.annotator.annotate import Annotator, AreaAnnotation, decode_mask
from trainer.annotator.reference_mask import frozen_mask
from trainer.faces import Face, fit
from trainer.queries import AskedAreas, Query
from trainer.samples import SIDE, Level, Rle, Sample, TaskKind, TrueMask

Grammar = Literal["training", "held_out"]
Row = dict[str, Any]
"""A line of `trainer.annotator.annotate.load_annotations`."""
OWN = "own"
"""Data set of own manipulations, whose images lie beside the annotations."""
PHOTOGRAPHS = ("ffhq_stylegan2", "london", "amfd")
SEEN_APART = 0.5
"""A shuffled query asks of an area that holds less than this share of the answer's mask: reading the question then costs half the mask at least."""

GROUPS: dict[str, Callable[[Face], bool]] = {
    "dfdc": lambda f: f.dataset == "dfdc",
    "dfdc_curated": lambda f: f.dataset == "dfdc" and (not f.is_fake or f.pair_quality == "curated"),
    "stargan": lambda f: f.dataset == "stargan",
    "ffhq_stylegan2": lambda f: f.dataset == "ffhq_stylegan2",
    "sd21_photographs": lambda f: f.dataset == "sd21_faces" or (f.dataset in PHOTOGRAPHS and not f.is_fake),
    "survey_stylegan2": lambda f: f.dataset == "survey_stylegan2",
}
"""Detection groups: name -> which faces. `dfdc_curated` holds curated fakes and all reals."""


def groups_of(face: Face) -> tuple[str, ...]:
    """The detection groups a face counts in; a set that no group knows is a group of its own."""
    return tuple(name for name, holds in GROUPS.items() if holds(face)) or (face.dataset,)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is made of a face."""

    seed: int = 0
    queries: int = 3
    """Region queries and box queries of a face, each asked `loc`, `toe` and `age`."""
    clean_share: float = 0.30
    """Share of these that ask of a clean area, on fakes (xdfa: 30 % negatives)."""
    grammar: Grammar = "training"
    """'held_out' words the same facts in the grammar that no training data shares, and keeps what only a benchmark needs."""
    shuffled_queries: float = 0.0
    """Share of tampered region and box `loc` and `age` samples that get a probe with another question."""
    shuffle_labels: bool = False
    """Give every face the questions and answers of another (`shuffled_labels`): what is learned from that is no sight."""

    def __post_init__(self) -> None:
        if self.queries < 0 or not 0 <= self.clean_share <= 1 or not 0 <= self.shuffled_queries <= 1:
            raise ValueError(f"{self}: queries must not be negative and shares lie in [0, 1]")


@dataclass(frozen=True, slots=True)
class Subject:
    """One face to be asked about, with all that its answers need."""

    face: Face
    twin: Face | None
    """The real image a fake was made from, aligned."""
    row: Row | None
    """Its annotation; without one only `det` and `cls` are asked."""
    shown: Face | None = None
    """Shuffled labels: the face whose image and name stand in place of `face`'s."""

    @property
    def seen(self) -> Face:
        """The face whose image is shown."""
        return self.shown or self.face


class _Asked(NamedTuple):
    """A query with its answer."""

    query: Query
    said: AreaAnnotation
    mask_HW: NDArray[np.bool_]
    """(224, 224) artifact mask within the asked area."""


def subjects(rows: Sequence[Row], faces: Sequence[Face], folder: Path, extra: Sequence[Face] = ()) -> list[Subject]:
    """One subject an annotation row, and one for each `extra` face that has no row.

    `faces` holds the rows' faces and their real twins, `folder` the images of own manipulations. Raises ValueError for a row whose face is missing.
    """
    by_name = {(face.dataset, face.name): face for face in faces}
    made = []
    for row in rows:
        key = row["dataset"], row["name"]
        face = _own_face(row, folder, by_name) if row["dataset"] == OWN else by_name.get(key)
        if face is None:
            raise ValueError(f"the annotations speak of {key[0]}/{key[1]}, which the data folder does not hold; annotate again with the same --data")
        shown = by_name.get(tuple(row["source"]), face) if row["dataset"] == OWN else face
        if row["part"] != shown.part:  # or a face that has moved since would train in one part and be judged in another
            raise ValueError(f"{key[0]}/{key[1]} was annotated as {row['part']} and is of {shown.part} now; annotate into an empty folder")
        twin = tuple(row["source"]) if row["dataset"] == OWN else (face.dataset, face.real_twin)
        made.append(Subject(face, by_name.get(twin) if face.is_fake else None, row))
    annotated = {(row["dataset"], row["name"]) for row in rows}
    return made + [Subject(face, None, None) for face in extra if (face.dataset, face.name) not in annotated]


def _own_face(row: Row, folder: Path, by_name: Mapping[tuple[str, str], Face]) -> Face:
    path = folder / row["name"]
    if not path.is_file():
        raise ValueError(f"{path} is missing; annotate again")
    source = by_name.get(tuple(row["source"]))
    unit = source.unit if source is not None else "/".join(row["source"])
    return Face(row["name"], OWN, path.read_bytes(), None, True, row["forgery_type"], unit, row["part"])


def shuffled_labels(asked: Sequence[Subject], seed: int) -> list[Subject]:
    """The label-shuffle probe's data: questions, answers and masks stay together and move to another face of the same set, part and family.

    Nobody keeps its own; a family of one is left out. Deterministic in the seed, whatever the order of `asked`.
    """
    families: dict[tuple[str, str, str], list[Subject]] = defaultdict(list)
    for subject in sorted(asked, key=lambda subject: (subject.face.dataset, subject.face.name)):
        families[subject.face.dataset, subject.face.part, subject.face.forgery_type or "real"].append(subject)
    moved = []
    for family, members in sorted(families.items()):
        if len(members) > 1:
            order = [members[index] for index in _rng(seed, "shuffle", *family).permutation(len(members))]
            moved += [replace(owner, shown=other.face) for owner, other in zip(order, [*order[1:], order[0]], strict=True)]
    return moved


def _rng(seed: int, *names: str) -> np.random.Generator:
    """One generator a face, whatever the order of work."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256("/".join((str(seed), *names)).encode()).digest()[:8], "big"))


def instruct(subject: Subject, recipe: Recipe, annotator: Annotator | None) -> list[Sample]:
    """Every sample of one face. Raises ValueError for a fake without a type, and for an annotation that lacks a text."""
    asker = _Asker(subject)
    face, row = subject.face, subject.row
    samples = [asker.sample("det", answer=prompts.det_answer(face.is_fake))]
    if face.is_fake:
        if face.forgery_type is None:
            raise ValueError(f"fake {face.dataset}/{face.name} has no forgery type; set it where the index is read")
        samples.append(asker.sample("cls", answer=prompts.cls_answer(face.forgery_type)))
    if row is None or (row["refused"] is not None and recipe.grammar == "training"):
        return samples
    frozen = _frozen(subject) if recipe.grammar == "held_out" else None
    if row["refused"] is not None:  # the figures on the frozen reference count every curated pair
        return samples if frozen is None else [*samples, _frozen_only(asker, frozen)]
    assert annotator is not None, "annotated faces need an annotator"
    found = annotator.regions(face.image())
    regions = {} if found is None else _region_masks(found)
    samples += _image_samples(asker, row, recipe, regions, frozen)
    if found is not None and row["quality"] == "good":
        drawn = _answered(subject, recipe, annotator, found)
        for level, asked in drawn.items():
            samples += _area_samples(asker, level, asked, recipe, regions if recipe.grammar == "held_out" else {})
        samples += _probes(_rng(recipe.seed, face.dataset, face.name, "probes"), samples, recipe.shuffled_queries)
    return samples


def _frozen_only(asker: "_Asker", frozen: Rle) -> Sample:
    return asker.sample("loc", answer=prompts.loc_answer(True), masks=(TrueMask(concept=None, rle=frozen),), mask_known=False, frozen=frozen)


@dataclass(frozen=True, slots=True)
class _Asker:
    """Fills in what all samples of one face share."""

    subject: Subject

    def sample(
        self,
        task: TaskKind,
        level: Level = "image",
        *,
        answer: str,
        number: int | None = None,
        query: Query | None = None,
        tampered: bool | None = None,
        masks: tuple[TrueMask, ...] = (),
        mask_known: bool = True,
        frozen: Rle | None = None,
        regions: dict[str, Rle] | None = None,
    ) -> Sample:
        seen, face = self.subject.seen, self.subject.face
        if task in ("loc", "age") and answer.count(SEG) != len(masks):
            raise ValueError(f"{face.dataset}/{face.name}: {len(masks)} masks but {answer.count(SEG)} {SEG} in {answer!r}; annotate again")
        return Sample(
            id=f"{seen.dataset}/{seen.name}#{task}-{level}" + ("" if number is None else f"-{number}"),
            dataset=seen.dataset, name=seen.name, unit=seen.unit, group=groups_of(seen), task=task, level=level,
            concept=query.concept if query else None, box_xyxy=query.box_xyxy if query else None,
            prompt=prompts.question(task, level, query.phrase if query else None), answer=answer,
            is_fake=face.is_fake, forgery_type=face.forgery_type, tampered=face.is_fake if tampered is None else tampered,
            mask_known=mask_known, masks=masks, frozen=frozen, area=Rle.of(query.area_HW) if query else None, regions=regions or {},
        )  # fmt: skip


def _image_samples(asker: _Asker, row: Row, recipe: Recipe, regions: dict[str, Rle], frozen: Rle | None) -> list[Sample]:
    """`loc`, `toe` and `age` of the whole face. A diffuse mask is not asked for, and no mask of such a face is scored."""
    markup = row["markup" if recipe.grammar == "training" else "held_out"]
    known = row["quality"] == "good"
    masks = tuple(TrueMask(concept=concept["concept"], rle=Rle.of(decode_mask(concept["mask"]))) for concept in row["concepts"])
    samples = [
        asker.sample("toe", answer=parse_markup(markup)[0]),
        asker.sample("age", answer=markup, masks=masks, mask_known=known, regions=regions),
    ]
    if known and not _is_partial(row):
        whole = (TrueMask(concept=None, rle=Rle.of(decode_mask(row["mask"]))),) if row["is_fake"] else ()
        samples.insert(0, asker.sample("loc", answer=prompts.loc_answer(row["is_fake"]), masks=whole, frozen=frozen))
    elif frozen is not None:
        samples.insert(0, _frozen_only(asker, frozen))
    return samples


def _is_partial(row: Row) -> bool:
    """Whether the mask is only a part of what was manipulated (reviewed faces): it is asked for in the places it names, never as the whole, and
    nothing outside it counts as clean."""
    return bool(row.get("partial"))


def _answered(subject: Subject, recipe: Recipe, annotator: Annotator, found: Regions) -> dict[Level, list[_Asked]]:
    """The drawn queries of a face, by level; what the annotator does not see as the shares of masked pixels do is not asked."""
    face, row = subject.face, subject.row
    assert row is not None
    rng = _rng(recipe.seed, face.dataset, face.name)
    mask_HW = decode_mask(row["mask"])
    never_clean = face.is_fake and (face.forgery_type == "entire_synthesis" or _is_partial(row))
    areas = AskedAreas(rng, found, mask_HW, outside_is_clean=not never_clean)
    clean_share = 1.0 if not face.is_fake else 0.0 if never_clean else recipe.clean_share
    fake_HWC, real_HWC = face.image(), subject.twin.image() if subject.twin else None

    def answers(queries: Iterator[Query], tampered: bool) -> Iterator[_Asked]:
        for query in queries:
            said = annotator.area(real_HWC, fake_HWC, mask_HW, found, query=query.concept, area_HW=query.area_HW)
            if said.tampered is tampered:
                yield _Asked(query, said, mask_HW & query.area_HW)

    drawn: dict[Level, list[_Asked]] = {}
    levels: tuple[tuple[Level, Callable[..., Iterator[Query]]], ...] = (("region", areas.regions), ("box", areas.boxes))
    for level, ask in levels:
        tampered_N = (rng.random(recipe.queries) >= clean_share).tolist()
        sources = {tampered: answers(ask(tampered=tampered), tampered) for tampered in (True, False)}
        drawn[level] = [asked for tampered in tampered_N if (asked := next(sources[tampered], None)) is not None]
    return drawn


def _area_samples(asker: _Asker, level: Level, drawn: Sequence[_Asked], recipe: Recipe, regions: dict[str, Rle]) -> list[Sample]:
    """`loc`, `toe` and `age` of each asked area."""
    samples = []
    for number, (query, said, mask_HW) in enumerate(drawn):
        markup = said.texts.markup if recipe.grammar == "training" else said.texts.held_out
        whole = (TrueMask(concept=None, rle=Rle.of(mask_HW)),) if said.tampered else ()
        named = tuple(TrueMask(concept=concept.concept, rle=Rle.of(concept.mask_HW)) for concept in said.concepts)
        answers: tuple[tuple[TaskKind, str, tuple[TrueMask, ...]], ...] = (
            ("loc", prompts.loc_answer(said.tampered, level, query.phrase), whole), ("toe", parse_markup(markup)[0], ()), ("age", markup, named),
        )  # fmt: skip
        for task, answer, masks in answers:
            own_regions = regions if task == "age" else {}
            made = asker.sample(task, level, answer=answer, number=number, query=query, tampered=said.tampered, masks=masks, regions=own_regions)
            samples.append(made)
    return samples


def _region_masks(found: Regions) -> dict[str, Rle]:
    atoms = {name: Rle.of(found.atom_HW == index) for index, name in enumerate(fict.cells(112)) if name in found.visible}
    return atoms | {name: Rle.of(found.arc_HW == index) for index, name in enumerate(fict.BOUNDARY_ARCS) if name in found.visible}


def _frozen(subject: Subject) -> Rle | None:
    """The frozen reference of a curated pair."""
    face, twin = subject.face, subject.twin
    if twin is None or face.pair_quality != "curated":
        return None
    return Rle.of(frozen_mask(fit(twin.image(), SIDE), fit(face.image(), SIDE)))


def _probes(rng: np.random.Generator, samples: Sequence[Sample], share: float) -> list[Sample]:
    """Twins of tampered samples that ask another question of the same task, level and face, while answer, masks and area stay."""
    kinds: dict[tuple[TaskKind, Level], list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.task in ("loc", "age") and sample.level != "image":
            kinds[sample.task, sample.level].append(sample)
    probes = []
    for members in kinds.values():
        for sample in members:
            drawn, order = rng.random() < share, rng.permutation(len(members))
            others = [members[index] for index in order if drawn and sample.tampered and _apart(sample, members[index])]
            if others:
                asked = {"prompt": others[0].prompt, "concept": others[0].concept, "box_xyxy": others[0].box_xyxy}
                probes.append(sample.model_copy(update=asked | {"id": f"{sample.id}~shuffled", "probe": "shuffled_query", "probed": sample.id}))
    return probes


def _apart(sample: Sample, other: Sample) -> bool:
    """Whether the other's area holds too little of this sample's masks to be answered by them."""
    if other is sample or other.area is None:
        return False
    masked = np.any([mask.rle.decode() for mask in sample.masks], 0)
    return int((masked & other.area.decode()).sum()) < SEEN_APART * int(masked.sum())
