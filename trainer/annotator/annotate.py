"""FiFa-Annotator: real/fake pair -> artifact mask -> FICT concepts -> measured evidence -> explanation (arXiv:2510.20531, Sec. 2.2).

No language model: the text comes from `grammar`, every sentence bound to a measurement of `engines.measure` that departs from the twin (or, without
one, from real faces) and is visible on the fake alone. One JSON line a face. Everything is done at 224 px on the crop. Deterministic in (seed,
dataset, name).
"""

import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from engines import fict
from engines.contracts import Mask
from engines.measure import dilate, measure_region
from engines.prompts import parse_markup
from trainer.annotator import grammar
from trainer.annotator.artifact import SIZE, ArtifactMask, artifact_mask, iou, top_share_mask
from trainer.annotator.concepts import MIN_CONCEPT_PX, select_arc, select_concepts
from trainer.annotator.evidence import BELIEVED, ConceptEvidence, choose_kind, rle
from trainer.annotator.mesh import PRESENCE_MIN, FaceMesh
from trainer.annotator.reference_mask import frozen_mask
from trainer.annotator.regions import Regions, regions
from trainer.faces import Face, fit

ImageHWC = NDArray[np.uint8]

MIN_CONCEPTS, MAX_CONCEPTS = 2, 4
"""Sentences of an explanation: places without a believed measurement are named only to reach the lesser number."""
REGION_DILATION_PX = 2
AREA_DIFFUSE = 0.7
BORDER_DIFFUSE = 4.5


@dataclass(frozen=True, slots=True)
class Annotation:
    """What the annotator says of one face."""

    forgery_type: str | None
    """None for a real face."""
    mask_HW: NDArray[np.bool_]
    """(224, 224) artifact mask; empty for a real face."""
    concepts: tuple[ConceptEvidence, ...]
    """In the order of the sentences."""
    markup: str
    quality: str
    """'good'; 'diffuse' where the mask covers most of the crop or the pair is noisy: use the text, doubt the mask; 'refused'."""
    refused: str | None
    """Why nothing is said: no_mesh, empty_mask, no_concept."""
    facts: dict[str, float]

    @property
    def text(self) -> str:
        """The explanation without markup."""
        return parse_markup(self.markup)[0]


class Annotator:
    """Holds the mesh model; one a process."""

    def __init__(self, *, max_concepts: int = MAX_CONCEPTS) -> None:
        self._mesh = FaceMesh()
        self.max_concepts = max_concepts

    def regions(self, face_HWC: ImageHWC) -> Regions | None:
        """FICT on a (224, 224, 3) crop; None where no face mesh is found."""
        mesh = self._mesh(np.ascontiguousarray(face_HWC))
        return regions(mesh.landmarks_NM2[0], (SIZE, SIZE), SIZE) if mesh.presence >= PRESENCE_MIN else None

    def pair(self, real_HWC: ImageHWC, fake_HWC: ImageHWC, *, forgery_type: str, seed: int) -> Annotation:
        """Annotate a fake by its aligned real twin; any sizes, resized to 224 px."""
        real, fake = fit(real_HWC, SIZE), fit(fake_HWC, SIZE)
        artifact = artifact_mask(real, fake)
        facts = artifact.facts | {
            "iou_top5": round(iou(artifact.mask_HW, top_share_mask(artifact.difference_HW)), 4),
            "iou_frozen": round(iou(artifact.mask_HW, frozen_mask(real, fake)), 4),
        }
        return self._told(real, fake, ArtifactMask(artifact.mask_HW, artifact.difference_HW, facts), forgery_type=forgery_type, seed=seed)

    def exact(self, real_HWC: ImageHWC, fake_HWC: ImageHWC, alpha_HW: NDArray[np.float32], *, forgery_type: str, seed: int) -> Annotation:
        """Annotate a manipulation whose alpha is known: the mask is `alpha > 0.1`; the adaptive mask's IoU with it goes into the facts."""
        real, fake = fit(real_HWC, SIZE), fit(fake_HWC, SIZE)
        mask = cv2.resize(alpha_HW, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR) > 0.1
        estimate = artifact_mask(real, fake)
        facts = {
            "area": round(float(mask.mean()), 4), "iou_adaptive": round(iou(estimate.mask_HW, mask), 4),
            "iou_top5": round(iou(top_share_mask(estimate.difference_HW), mask), 4), "iou_frozen": round(iou(frozen_mask(real, fake), mask), 4),
        }  # fmt: skip
        return self._told(real, fake, ArtifactMask(mask, estimate.difference_HW, facts), forgery_type=forgery_type, seed=seed)

    def single(self, fake_HWC: ImageHWC, *, forgery_type: str, seed: int) -> Annotation:
        """Annotate a fake without a twin (entire synthesis): the mask is the face oval, the concepts are the parts farthest from real faces."""
        fake = fit(fake_HWC, SIZE)
        found = self.regions(fake)
        if found is None:
            return _refused(forgery_type, "no_mesh", {})
        evidence = []
        for part in fict.cells(14):
            if fict.concepts()[part].path[0] == "scene":
                continue
            region = found.mask(part) & (found.oval_HW if part not in ("hair", "ears", "neck") else True)
            if int(region.sum()) >= MIN_CONCEPT_PX:
                measured = measure_region(fake, region)
                kind, strength = choose_kind(measured, None, part)
                evidence.append(ConceptEvidence(part, region, measured, kind, strength))
        evidence.sort(key=lambda item: -item.strength)
        chosen = tuple(evidence[: min(3, self.max_concepts)])
        markup = _explain(forgery_type, chosen, seed)
        return Annotation(forgery_type, found.oval_HW, chosen, markup, "good", None, {"area": round(float(found.oval_HW.mean()), 4)})

    def real(self, *, seed: int) -> Annotation:
        """A clean answer."""
        return Annotation(None, np.zeros((SIZE, SIZE), bool), (), grammar.clean(np.random.default_rng(seed)), "good", None, {})

    def _told(self, real: ImageHWC, fake: ImageHWC, artifact: ArtifactMask, *, forgery_type: str, seed: int) -> Annotation:
        if not artifact.mask_HW.any():
            return _refused(forgery_type, "empty_mask", artifact.facts)
        found = self.regions(fake)
        if found is None:
            return _refused(forgery_type, "no_mesh", artifact.facts)
        evidence = [self._evidence(name, found, real, fake, artifact) for name in select_concepts(found, artifact.mask_HW)]
        believed = [item for item in evidence if item.strength >= BELIEVED]
        unmeasured = [item for item in evidence if item.strength < BELIEVED]
        evidence = (believed + unmeasured[: max(0, MIN_CONCEPTS - len(believed))])[: self.max_concepts]
        arc = select_arc(found, artifact)
        if arc is not None:
            ring = self._evidence(arc, found, real, fake, artifact)
            if ring.strength >= BELIEVED:
                evidence = [*evidence[: self.max_concepts - 1], ring]
        chosen = tuple(item for item in evidence if int(item.mask_HW.sum()) >= MIN_CONCEPT_PX)
        if not chosen:
            return _refused(forgery_type, "no_concept", artifact.facts)
        diffuse = float(artifact.mask_HW.mean()) > AREA_DIFFUSE or artifact.facts.get("registration_error", 0.0) > BORDER_DIFFUSE
        markup = _explain(forgery_type, chosen, seed)
        return Annotation(forgery_type, artifact.mask_HW, chosen, markup, "diffuse" if diffuse else "good", None, artifact.facts)

    def _evidence(self, concept: str, found: Regions, real: ImageHWC, fake: ImageHWC, artifact: ArtifactMask) -> ConceptEvidence:
        region = artifact.mask_HW & dilate(found.mask(concept), REGION_DILATION_PX)
        measured = measure_region(fake, region)
        kind, strength = choose_kind(measured, measure_region(real, region), concept)
        return ConceptEvidence(concept, region, measured, kind, strength)


def _explain(forgery_type: str, evidence: Sequence[ConceptEvidence], seed: int) -> str:
    claims = [grammar.Claim(item.concept, item.kind, item.strength) for item in evidence]
    return grammar.explain(np.random.default_rng(seed), forgery_type, claims)


def _refused(forgery_type: str, reason: str, facts: dict[str, float]) -> Annotation:
    return Annotation(forgery_type, np.zeros((SIZE, SIZE), bool), (), "", "refused", reason, facts)


@cache
def _annotator() -> Annotator:
    cv2.setNumThreads(1)
    return Annotator()


def annotate_pair(real_HWC: ImageHWC | None, fake_HWC: ImageHWC, *, forgery_type: str, seed: int) -> Annotation:
    """Annotate one fake: by its aligned twin, or alone (entire synthesis) where there is none."""
    if real_HWC is None:
        return _annotator().single(fake_HWC, forgery_type=forgery_type, seed=seed)
    return _annotator().pair(real_HWC, fake_HWC, forgery_type=forgery_type, seed=seed)


def annotate_exact(real_HWC: ImageHWC, fake_HWC: ImageHWC, alpha_HW: NDArray[np.float32], *, forgery_type: str, seed: int) -> Annotation:
    """Annotate one of our own manipulations, whose (H, W) float32 alpha is known."""
    return _annotator().exact(real_HWC, fake_HWC, alpha_HW, forgery_type=forgery_type, seed=seed)


# Many faces -> JSON lines.


def face_seed(seed: int, dataset: str, name: str) -> int:
    """One generator a face, whatever the order of work."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{dataset}/{name}".encode()).digest()[:8], "big")


def to_row(annotation: Annotation, *, dataset: str, name: str, part: str) -> dict[str, Any]:
    """One JSON line."""
    return {
        "dataset": dataset, "name": name, "part": part, "is_fake": annotation.forgery_type is not None, "forgery_type": annotation.forgery_type,
        "quality": annotation.quality, "refused": annotation.refused, "mask": rle(Mask.encode(annotation.mask_HW)),
        "concepts": [item.to_json() for item in annotation.concepts], "text": annotation.text, "markup": annotation.markup, "facts": annotation.facts,
    }  # fmt: skip


def annotate_faces(faces: Sequence[Face], out: Path, workers: int = 1, *, twins: Sequence[Face] = (), seed: int = 0) -> None:
    """Annotate faces into JSON lines at `out`; faces that stand there already are skipped, a torn last line is dropped.

    Real twins are looked up in `faces` and `twins` by (dataset, name).
    """
    done = {(row["dataset"], row["name"]) for row in _resumable(out)}
    reals = {(face.dataset, face.name): face for face in (*twins, *faces) if not face.is_fake}
    jobs = [(face, reals.get((face.dataset, face.real_twin)) if face.real_twin else None) for face in faces if (face.dataset, face.name) not in done]
    out.parent.mkdir(parents=True, exist_ok=True)
    work = partial(_annotate_face, seed=seed)
    with out.open("a", encoding="utf-8") as sink:
        for row in track(_mapped(work, jobs, workers), description="annotate", total=len(jobs), console=Console(stderr=True)):
            sink.write(json.dumps(row, separators=(",", ":")) + "\n")
            sink.flush()


def load_annotations(path: Path) -> list[dict[str, Any]]:
    """Read the JSON lines that `annotate_faces` wrote, refused ones included."""
    with path.open(encoding="utf-8") as source:
        return [json.loads(line) for line in source if line.endswith("\n")]


def decode_mask(rle: dict[str, Any]) -> NDArray[np.bool_]:
    """(224, 224) mask of a row or of one of its concepts."""
    height, width = rle["size"]
    return Mask((height, width), rle["counts"]).decode()


def _resumable(out: Path) -> list[dict[str, Any]]:
    """Rows already written; cuts a last line that a killed run left unfinished."""
    if not out.exists():
        return []
    written = out.read_bytes()
    whole = written[: written.rfind(b"\n") + 1]
    if len(whole) < len(written):
        out.write_bytes(whole)
    return load_annotations(out)


def _mapped(work: Any, jobs: Sequence[Any], workers: int) -> Iterator[dict[str, Any]]:
    if workers <= 1:
        yield from map(work, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(work, jobs, chunksize=8)


def _annotate_face(job: tuple[Face, Face | None], *, seed: int) -> dict[str, Any]:
    face, twin = job
    own_seed = face_seed(seed, face.dataset, face.name)
    if not face.is_fake:
        annotation = _annotator().real(seed=own_seed)
    elif face.forgery_type is None:
        raise ValueError(f"fake {face.dataset}/{face.name} has no forgery type; set it where the index is read")
    else:
        annotation = annotate_pair(twin.image() if twin is not None else None, face.image(), forgery_type=face.forgery_type, seed=own_seed)
    return to_row(annotation, dataset=face.dataset, name=face.name, part=face.part)
