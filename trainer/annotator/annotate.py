"""FiFa-Annotator: a fake and its twin (or its exact mask, or neither) -> artifact mask -> FICT concepts -> measured evidence -> explanation.

arXiv:2510.20531, Sec. 2.2, widened to four forgery families. No language model: the text comes from `grammar`, every sentence bound to a measurement
of `engines.measure` that departs from the twin (or, without one, from real faces) and is visible on the fake alone. The same facts are worded a
second time by `held_out_grammar`, which only evaluation may read. Everything is done at 224 px on the face crop, and nothing is drawn by chance.
"""

import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from engines import grammar
from engines.contracts import Mask
from engines.findings import (
    BELIEVED,
    FACE_PARTS,
    MIN_CONCEPT_PX,
    MOST_PARTS,
    ConceptEvidence,
    farthest,
    measured_at,
    rle,
    steady_for,
    within,
    worth_saying,
)
from engines.prompts import parse_markup
from engines.regions import Regions
from trainer.annotator import held_out_grammar
from trainer.annotator.artifact import SIZE, ArtifactMask, artifact_mask
from trainer.annotator.concepts import select_arc, select_concepts
from trainer.annotator.manipulate import ALPHA_CUT
from trainer.annotator.mesh import PRESENCE_MIN, FaceMesh, Mesh
from trainer.annotator.regions import MeshRegions, regions
from trainer.faces import Face, fit
from trainer.image_index import exact_mask
from trainer.samples import Rle

ImageHWC = NDArray[np.uint8]

MAX_CONCEPTS = 4
"""Sentences of an explanation."""
CLEAN_SHARE, TAMPERED_SHARE = 0.01, 0.10
"""An asked area is clean with less of it masked, tampered from `TAMPERED_SHARE` of it or of the whole mask on; in between it is not asked."""


@dataclass(frozen=True, slots=True)
class Texts:
    """One set of facts in words, twice."""

    markup: str
    """In the training grammar, `<p> phrase </p> [SEG]` where a concept is named; empty where nothing is said."""
    held_out: str
    """The same facts in the grammar that only evaluation reads."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """What the annotator says of one face."""

    forgery_type: str | None
    """None for a real face."""
    mask_HW: NDArray[np.bool_]
    """(224, 224) artifact mask; empty for a real face."""
    selected: tuple[str, ...]
    """Every concept the rule names for the mask, most mask first; the text tells the measured ones of them."""
    concepts: tuple[ConceptEvidence, ...]
    """What the text tells, in the order of the sentences."""
    texts: Texts
    quality: str
    """'good'; 'diffuse': use the text, doubt the mask; 'refused'."""
    refused: str | None
    """Why nothing is said: no_mesh, no_concept, no_twin, or one of `artifact`'s reasons."""
    facts: dict[str, float]

    @property
    def markup(self) -> str:
        """The explanation with its phrases marked."""
        return self.texts.markup

    @property
    def text(self) -> str:
        """The explanation without markup."""
        return parse_markup(self.markup)[0]


@dataclass(frozen=True, slots=True)
class AreaAnnotation:
    """What the annotator says of one asked area of a face."""

    concepts: tuple[ConceptEvidence, ...]
    """Within the area, in the order of the sentences; empty where it is clean."""
    texts: Texts

    @property
    def tampered(self) -> bool:
        """Whether an artifact was found in the area."""
        return bool(self.concepts)


class Annotator:
    """Holds the mesh model; one a process. Images are (H, W, 3) uint8 RGB face crops of any size, resized to 224 px."""

    def __init__(self, *, max_concepts: int = MAX_CONCEPTS) -> None:
        self._mesh = FaceMesh()
        self.max_concepts = max_concepts

    def regions(self, face_HWC: ImageHWC) -> MeshRegions | None:
        """FICT on a crop, at 224 px; None where no face mesh is found."""
        face = fit(face_HWC, SIZE)
        mesh = self._found_mesh(face)
        return None if mesh is None else regions(mesh, face, SIZE)

    def landmarks(self, face_HWC: ImageHWC) -> NDArray[np.float32] | None:
        """(468, 2) float32 mesh points (x, y) in pixels at 224 px; None where no face mesh is found."""
        mesh = self._found_mesh(fit(face_HWC, SIZE))
        return None if mesh is None else mesh.landmarks_NM2[0]

    def artifact(self, real_HWC: ImageHWC, fake_HWC: ImageHWC) -> ArtifactMask:
        """Where a fake departs from its twin; the meshes of both, where found, help to register them."""
        real, fake = fit(real_HWC, SIZE), fit(fake_HWC, SIZE)
        of_real, of_fake = self.landmarks(real), self.landmarks(fake)
        return artifact_mask(real, fake, landmarks=None if of_real is None or of_fake is None else (of_real, of_fake))

    def pair(self, real_HWC: ImageHWC, fake_HWC: ImageHWC, *, forgery_type: str) -> Annotation:
        """Annotate a fake by its real twin."""
        return self.tell(real_HWC, fake_HWC, self.artifact(real_HWC, fake_HWC), forgery_type=forgery_type)

    def tell(self, real_HWC: ImageHWC, fake_HWC: ImageHWC, artifact: ArtifactMask, *, forgery_type: str) -> Annotation:
        """Annotate a pair whose artifact mask is at hand."""
        if artifact.refused is not None:
            return _refused(forgery_type, artifact.refused, artifact.facts)
        return self._told(fit(real_HWC, SIZE), fit(fake_HWC, SIZE), artifact, forgery_type=forgery_type)

    def exact(self, real_HWC: ImageHWC | None, fake_HWC: ImageHWC, alpha_HW: NDArray[np.float32], *, forgery_type: str) -> Annotation:
        """Annotate a manipulation whose (H, W) float32 alpha is known: the mask is `alpha > 0.1`, with a twin or without."""
        fake = fit(fake_HWC, SIZE)
        real = None if real_HWC is None else fit(real_HWC, SIZE)
        mask = cv2.resize(alpha_HW, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR) > ALPHA_CUT
        if not mask.any():
            return _refused(forgery_type, "empty_mask", {"area": 0.0})
        change_HW = np.zeros((SIZE, SIZE), np.float32) if real is None else cv2.absdiff(real, fake).max(-1).astype(np.float32)
        known = ArtifactMask(mask, change_HW, {"area": round(float(mask.mean()), 4)}, "good", None)
        return self._told(real, fake, known, forgery_type=forgery_type)

    def single(self, fake_HWC: ImageHWC, *, forgery_type: str) -> Annotation:
        """Annotate a fake without a twin (entire synthesis): the mask is the face oval, the concepts are the parts farthest from real faces."""
        fake = fit(fake_HWC, SIZE)
        found = self.regions(fake)
        if found is None:
            return _refused(forgery_type, "no_mesh", {})
        parts = {part: found.mask(part) & (found.oval_HW if part not in ("hair", "ears", "neck") else True) for part in FACE_PARTS}
        chosen = farthest(parts, found, fake, min(MOST_PARTS, self.max_concepts))
        facts = {"area": round(float(found.oval_HW.mean()), 4)}
        named = tuple(item.concept for item in chosen)
        return Annotation(forgery_type, found.oval_HW, named, chosen, _explained(forgery_type, chosen), "good", None, facts)

    def located(self, fake_HWC: ImageHWC, places: Mapping[str, NDArray[np.bool_]], mask_HW: NDArray[np.bool_], *, forgery_type: str) -> Annotation:
        """Annotate a fake without a twin of which somebody says where it was manipulated: `places` are FICT ids with their (224, 224) masks,
        `mask_HW` is all of it that is known. What is said of a place is measured there against real faces; no other place is named."""
        fake = fit(fake_HWC, SIZE)
        found = self.regions(fake)
        facts = {"area": round(float(mask_HW.mean()), 4)}
        if found is None:
            return _refused(forgery_type, "no_mesh", facts)
        evidence = [self._evidence(name, found, None, fake, place_HW) for name, place_HW in places.items()]
        chosen = worth_saying([item for item in evidence if int(item.mask_HW.sum()) >= MIN_CONCEPT_PX], self.max_concepts)
        if not chosen:
            return _refused(forgery_type, "no_concept", facts)
        return Annotation(forgery_type, mask_HW, tuple(places), chosen, _explained(forgery_type, chosen), "good", None, facts)

    def real(self, face_HWC: ImageHWC) -> Annotation:
        """A clean answer, resting on what is measured over the face."""
        face = fit(face_HWC, SIZE)
        found = self.regions(face)
        if found is None:
            return _refused(None, "no_mesh", {})
        steady = steady_for(face, found)
        texts = Texts(grammar.clean(steady), held_out_grammar.clean(steady))
        return Annotation(None, np.zeros((SIZE, SIZE), bool), (), (), texts, "good", None, {})

    def area(
        self,
        real_HWC: ImageHWC | None,
        fake_HWC: ImageHWC,
        mask_HW: NDArray[np.bool_],
        found: Regions,
        *,
        query: str | None,
        area_HW: NDArray[np.bool_],
    ) -> AreaAnnotation:
        """Answer for one asked area: a FICT concept (`query`) or a box (None); `area_HW` is its (224, 224) mask, `mask_HW` the artifact mask.

        Less than 1 % of the area masked is a clean answer.
        """
        fake = fit(fake_HWC, SIZE)
        real = None if real_HWC is None else fit(real_HWC, SIZE)
        inside = mask_HW & area_HW
        names = []
        if int(inside.sum()) >= CLEAN_SHARE * int(area_HW.sum()):
            names = select_concepts(found, inside, within=query) or ([query] if query is not None else [])
        evidence = [self._evidence(name, found, real, fake, inside) for name in names]
        chosen = worth_saying([item for item in evidence if item.mask_HW.any()], self.max_concepts)
        if not chosen:
            steady = steady_for(fake, found, area_HW, query)
            return AreaAnnotation((), Texts(grammar.clean_area(query, steady), held_out_grammar.clean_area(query, steady)))
        claims = [item.claim for item in chosen]
        return AreaAnnotation(chosen, Texts(grammar.explain_area(claims, query), held_out_grammar.explain_area(claims, query)))

    def _found_mesh(self, face_HWC: ImageHWC) -> Mesh | None:
        mesh = self._mesh(np.ascontiguousarray(face_HWC))
        return mesh if mesh.presence >= PRESENCE_MIN else None

    def _told(self, real: ImageHWC | None, fake: ImageHWC, artifact: ArtifactMask, *, forgery_type: str) -> Annotation:
        found = self.regions(fake)
        if found is None:
            return _refused(forgery_type, "no_mesh", artifact.facts)
        selected = tuple(select_concepts(found, artifact.mask_HW))
        evidence = [self._evidence(name, found, real, fake, artifact.mask_HW) for name in selected]
        chosen = worth_saying([item for item in evidence if int(item.mask_HW.sum()) >= MIN_CONCEPT_PX], self.max_concepts)
        arc = select_arc(found, artifact)
        if arc is not None:
            ring = self._evidence(arc, found, real, fake, artifact.mask_HW)
            if ring.strength >= BELIEVED and int(ring.mask_HW.sum()) >= MIN_CONCEPT_PX:
                chosen = (*chosen[: self.max_concepts - 1], ring)
        if not chosen:
            return _refused(forgery_type, "no_concept", artifact.facts)
        texts = _explained(forgery_type, chosen)
        return Annotation(forgery_type, artifact.mask_HW, selected, chosen, texts, artifact.quality, None, artifact.facts)

    def _evidence(self, concept: str, found: Regions, real: ImageHWC | None, fake: ImageHWC, mask_HW: NDArray[np.bool_]) -> ConceptEvidence:
        return measured_at(concept, within(concept, mask_HW, found), found, fake, real)


def _explained(forgery_type: str, evidence: Sequence[ConceptEvidence]) -> Texts:
    claims = [item.claim for item in evidence]
    return Texts(grammar.explain(forgery_type, claims), held_out_grammar.explain(forgery_type, claims))


def _refused(forgery_type: str | None, reason: str, facts: dict[str, float]) -> Annotation:
    return Annotation(forgery_type, np.zeros((SIZE, SIZE), bool), (), (), Texts("", ""), "refused", reason, facts)


@cache
def process_annotator() -> Annotator:
    """The one annotator of this process, on one thread: what a pool's workers share."""
    cv2.setNumThreads(1)
    return Annotator()


# Many faces -> JSON lines.


def annotate_face(face: Face, twin: Face | None) -> Annotation:
    """Annotate whatever a set gives: a real face, a pair, an exact mask, or a face synthesised whole. Any other fake alone is refused.

    Raises ValueError for a fake without a type.
    """
    annotator = process_annotator()
    if not face.is_fake:
        return annotator.real(face.image())
    if face.forgery_type is None:
        raise ValueError(f"fake {face.dataset}/{face.name} has no forgery type; set it where the index is read")
    exact_HW = exact_mask(face)
    if exact_HW is not None:
        alpha_HW = exact_HW.astype(np.float32)
        return annotator.exact(None if twin is None else twin.image(), face.image(), alpha_HW, forgery_type=face.forgery_type)
    if twin is None:
        if face.forgery_type != "entire_synthesis":  # a part of the face was changed, and nothing says which
            return _refused(face.forgery_type, "no_twin", {})
        return annotator.single(face.image(), forgery_type=face.forgery_type)
    return annotator.pair(twin.image(), face.image(), forgery_type=face.forgery_type)


def to_row(annotation: Annotation, *, dataset: str, name: str, part: str) -> dict[str, Any]:
    """One JSON line."""
    return {
        "dataset": dataset, "name": name, "part": part, "is_fake": annotation.forgery_type is not None, "forgery_type": annotation.forgery_type,
        "quality": annotation.quality, "refused": annotation.refused, "mask": rle(Mask.encode(annotation.mask_HW)),
        "selected": list(annotation.selected), "concepts": [item.to_json() for item in annotation.concepts],
        "text": annotation.text, "markup": annotation.markup,
        "held_out": annotation.texts.held_out, "facts": annotation.facts,
    }  # fmt: skip


def annotate_faces(faces: Sequence[Face], out: Path, workers: int = 1, *, twins: Sequence[Face] = ()) -> None:
    """Annotate faces into JSON lines at `out`; faces that stand there already are skipped, a torn last line is dropped.

    Real twins are looked up in `faces` and `twins` by (dataset, name).
    """
    done = {(row["dataset"], row["name"]) for row in _resumable(out)}
    reals = {(face.dataset, face.name): face for face in (*twins, *faces) if not face.is_fake}
    jobs = [(face, reals.get((face.dataset, face.real_twin)) if face.real_twin else None) for face in faces if (face.dataset, face.name) not in done]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as sink:
        for row in track(_rows(jobs, workers), description="annotate", total=len(jobs), console=Console(stderr=True)):
            sink.write(json.dumps(row, separators=(",", ":")) + "\n")
            sink.flush()


def load_annotations(path: Path) -> list[dict[str, Any]]:
    """Read the JSON lines that `annotate_faces` wrote, refused ones included. Raises FileNotFoundError where there are none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; make it with `fifa-train annotate --out {path.parent}`")
    with path.open(encoding="utf-8") as source:
        return [json.loads(line) for line in source if line.endswith("\n")]


def decode_mask(rle: dict[str, Any]) -> NDArray[np.bool_]:
    """(224, 224) mask of a row or of one of its concepts. Raises ValueError for run lengths that do not fill their size."""
    return Rle(size=rle["size"], counts=rle["counts"]).decode()


def _resumable(out: Path) -> list[dict[str, Any]]:
    """Rows already written; cuts a last line that a killed run left unfinished."""
    if not out.exists():
        return []
    written = out.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    if len(whole) < len(written):
        out.write_bytes(whole)
    return load_annotations(out)


def _rows(jobs: Sequence[tuple[Face, Face | None]], workers: int) -> Iterator[dict[str, Any]]:
    if workers <= 1:
        yield from map(_row, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_row, jobs, chunksize=8)


def _row(job: tuple[Face, Face | None]) -> dict[str, Any]:
    face, twin = job
    return to_row(annotate_face(face, twin), dataset=face.dataset, name=face.name, part=face.part)
