"""FiFa-Annotator: real/fake pair -> artifact mask -> FICT concepts -> measured evidence -> explanation (arXiv:2510.20531, Sec. 2.2).

No language model: the text comes from `grammar`, every sentence bound to a measurement of `engines.measure` that departs from the twin (or, without
one, from real faces) and is visible on the fake alone. One JSON line a face. Everything is done at 224 px on the crop. Deterministic in (seed,
dataset, name).
"""

import hashlib
import json
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from engines import fict
from engines.contracts import Mask
from engines.measure import dilate, measure_region
from engines.prompts import parse_markup
from trainer import grammar
from trainer.data import Face, fit
from trainer.mesh import PRESENCE_MIN, FaceMesh, Regions, regions
from trainer.reference_mask import border_difference, frozen_mask

ImageHWC = NDArray[np.uint8]

SIZE = 224
CODEC_QUALITIES = (95, 88, 80, 70, 55)
"""JPEG re-encodes of the real twin that make up the noise floor; the one whose quiet fifth is nearest the pair's is taken."""
QUIET_SHARE = 0.2
"""The least changed fifth of a pair is taken as unmanipulated: it sets the noise level."""
FALSE_DISCOVERY = 0.01
FALSE_DISCOVERY_LOW = 0.05
"""Second threshold of the hysteresis: pixels above it count where they touch one above the first."""
THRESHOLD_MIN = 3.0
"""Grey levels; differences below are not believed whatever the noise floor says."""
NOISE_SOFTENING = 6.0
"""Grey levels added to the local noise before dividing by it: 0 trusts the codec's local noise fully, infinity ignores it."""
CLOSE_PX, OPEN_PX = 15, 5
MIN_COMPONENT, MAX_HOLE = 0.0005, 0.01
"""Shares of the crop."""
MIN_CONCEPT_PX = 60
MIN_CONCEPTS, MAX_CONCEPTS = 2, 4
"""Sentences of an explanation: places without a believed measurement are named only to reach the lesser number."""
ATOM_COVERED, ATOM_MASS, ATOM_MASS_COVERED, PARENT_SHARE = 0.20, 0.10, 0.02, 0.60
REGION_DILATION_PX = 2
BELIEVED = 0.7
"""Departures under this many standard deviations (over real faces) are not named; the sentence then says only that the place is changed."""
AREA_DIFFUSE = 0.7
BORDER_DIFFUSE = 4.5


@dataclass(frozen=True, slots=True)
class ArtifactMask:
    """Where a fake departs from its twin, and how that was decided."""

    mask_HW: NDArray[np.bool_]
    """(224, 224)."""
    difference_HW: NDArray[np.float32]
    """(224, 224) float32 grey levels: max over channels of |real - fake|, smoothed 5x5."""
    facts: dict[str, float]


def artifact_mask(real_HWC: ImageHWC, fake_HWC: ImageHWC) -> ArtifactMask:
    """Adaptive mask of a pair, both (224, 224, 3) uint8.

    The difference d = G(5x5) * max_c |real - fake| is taken on the codec's own scale: linear light hides changes in the shadows (IoU with exact
    masks 0.76 against 0.82 on 60 own manipulations). The null is the same of (real, JPEG of real), scaled up to the pair's noise by their quiet
    fifths. Both are divided by the local null, softened. Threshold: the least t with N(t) / O(t) <= 1 %, where N and O are the shares of null and
    pair above t (Benjamini and Hochberg's false-discovery rate with the null proportion at 1); hysteresis down to 5 %.
    """
    moved_HWC, shift_xy = _registered(real_HWC, fake_HWC)
    difference = _difference(moved_HWC, fake_HWC)
    nulls = [_difference(real_HWC, _jpeg(real_HWC, quality)) for quality in CODEC_QUALITIES]
    quiet = float(np.quantile(difference, QUIET_SHARE))
    quiet_nulls = [float(np.quantile(null, QUIET_SHARE)) for null in nulls]
    nearest = int(np.argmin(np.abs(np.array(quiet_nulls) - quiet)))
    null = nulls[nearest] * max(1.0, quiet / max(quiet_nulls[nearest], 0.05))
    local = (cv2.GaussianBlur(null, (0, 0), NOISE_SOFTENING) + NOISE_SOFTENING) / NOISE_SOFTENING
    high, low = _thresholds(difference / local, null / local)
    mask = _clean(_hysteresis(difference / local, high, low)) if math.isfinite(high) else np.zeros(difference.shape, bool)
    border = _border(moved_HWC, fake_HWC)
    facts = {
        "threshold": high if math.isfinite(high) else -1.0, "threshold_low": low if math.isfinite(low) else -1.0,
        "noise_floor": float(null.mean()), "noise_quality": float(CODEC_QUALITIES[nearest]), "area": float(mask.mean()),
        "shift_x": shift_xy[0], "shift_y": shift_xy[1], "registration_error": border,
    }  # fmt: skip
    return ArtifactMask(mask, difference, {name: round(value, 4) for name, value in facts.items()})


def top_share_mask(difference_HW: NDArray[np.float32], share: float = 0.05) -> NDArray[np.bool_]:
    """The paper's mask: the pixels with the largest differences, a fixed share of them whatever they are."""
    top: NDArray[np.bool_] = difference_HW >= np.quantile(difference_HW, 1 - share)
    return top


def iou(a_HW: NDArray[np.bool_], b_HW: NDArray[np.bool_]) -> float:
    """Intersection over union; 1 for two empty masks."""
    union = int((a_HW | b_HW).sum())
    return int((a_HW & b_HW).sum()) / union if union else 1.0


def _difference(real_HWC: ImageHWC, fake_HWC: ImageHWC) -> NDArray[np.float32]:
    red, green, blue = cv2.split(cv2.absdiff(np.ascontiguousarray(real_HWC), np.ascontiguousarray(fake_HWC)))
    return np.asarray(cv2.GaussianBlur(cv2.max(cv2.max(red, green), blue).astype(np.float32), (5, 5), 0), np.float32)


def _border(real_HWC: ImageHWC, fake_HWC: ImageHWC) -> float:
    change_HWC = cv2.absdiff(np.ascontiguousarray(real_HWC), np.ascontiguousarray(fake_HWC))
    return border_difference(change_HWC.astype(np.float32) @ np.full(3, 1 / 3, np.float32))


def _jpeg(image_HWC: ImageHWC, quality: int) -> ImageHWC:
    encoded = cv2.imencode(".jpg", np.ascontiguousarray(image_HWC[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]


def _registered(real_HWC: ImageHWC, fake_HWC: ImageHWC) -> tuple[ImageHWC, tuple[float, float]]:
    """Shift the real image onto the fake (ECC, translation) where that lowers the border difference by a tenth or more."""
    before = _border(real_HWC, fake_HWC)
    if before < 2.0:
        return real_HWC, (0.0, 0.0)
    warp = np.eye(2, 3, dtype=np.float32)
    grays = [cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY) for image in (fake_HWC, real_HWC)]
    try:
        _, warp = cv2.findTransformECC(grays[0], grays[1], warp, cv2.MOTION_TRANSLATION, (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 1e-3))
    except cv2.error:  # ECC does not converge on flat images
        return real_HWC, (0.0, 0.0)
    moved = cv2.warpAffine(real_HWC, warp, (SIZE, SIZE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
    after = _border(moved, fake_HWC)
    return (moved, (float(warp[0, 2]), float(warp[1, 2]))) if after < 0.9 * before else (real_HWC, (0.0, 0.0))


def _thresholds(observed: NDArray[np.float32], null: NDArray[np.float32]) -> tuple[float, float]:
    """Least levels at which the false-discovery rate falls to 1 % and to 5 %; inf where it never does."""
    levels = np.linspace(0.0, float(observed.max()) + 1e-3, 512)
    above = [1.0 - np.searchsorted(np.sort(values.ravel()), levels) / values.size for values in (null, observed)]
    rate = above[0] / np.maximum(above[1], 1e-9)
    found = []
    for limit in (FALSE_DISCOVERY, FALSE_DISCOVERY_LOW):
        reached = np.flatnonzero((rate <= limit) & (above[1] > 0))
        found.append(float(levels[reached[0]]) if len(reached) else math.inf)
    return max(found[0], THRESHOLD_MIN), found[1]


def _hysteresis(level_HW: NDArray[np.float32], high: float, low: float) -> NDArray[np.bool_]:
    _, labels = cv2.connectedComponents((level_HW >= low).astype(np.uint8))
    kept = np.zeros(int(labels.max()) + 1, bool)
    kept[np.unique(labels[level_HW >= high])] = True
    kept[0] = False
    connected: NDArray[np.bool_] = kept[labels]
    return connected


def _clean(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Close gaps and holes where the fake happens to equal its twin, then drop specks."""
    disc_close, disc_open = (cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (px, px)) for px in (CLOSE_PX, OPEN_PX))
    solid = cv2.morphologyEx(mask_HW.astype(np.uint8), cv2.MORPH_CLOSE, disc_close)
    solid = cv2.morphologyEx(solid, cv2.MORPH_OPEN, disc_open)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(solid)
    kept = stats[:, cv2.CC_STAT_AREA] >= MIN_COMPONENT * solid.size
    kept[0] = False
    cleaned: NDArray[np.bool_] = kept[labels]
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~cleaned).astype(np.uint8), connectivity=4)
    holes = stats[:, cv2.CC_STAT_AREA] < MAX_HOLE * solid.size
    holes[0] = False
    filled: NDArray[np.bool_] = cleaned | holes[labels]
    return filled


def select_concepts(
    found: Regions, mask_HW: NDArray[np.bool_], *, coarsest: Literal["group", "part"] = "part", max_concepts: int = 6, min_px: int = MIN_CONCEPT_PX
) -> list[str]:
    """Name a mask by FICT, most mask pixels first, what lies off the head last.

    An atom is selected if at least 20 % of it is masked, or if it holds 10 % of the mask with 2 % of it covered; a parent replaces its children when
    60 % of its visible atoms are selected, up to the `coarsest` level: by groups, nearly every swap would read "upper face, mid face, lower face".
    """
    covered = np.bincount(found.atom_HW[mask_HW], minlength=112)
    share = covered / np.maximum(found.atom_pixels, 1)
    chosen = (share >= ATOM_COVERED) | ((covered >= ATOM_MASS * max(1, int(mask_HW.sum()))) & (share >= ATOM_MASS_COVERED))
    selected = {atom for atom, is_chosen in zip(fict.cells(112), chosen, strict=True) if is_chosen and atom in found.visible}
    pixels = dict(zip(fict.cells(112), covered.tolist(), strict=True))
    roots = tuple(fict.TREE) if coarsest == "group" else fict.cells(14)
    named = [name for root in roots for name in _resolve(root, selected, found.visible)]
    mass = {name: sum(pixels[atom] for atom in fict.concepts()[name].atoms) for name in named}
    ranked = sorted(mass, key=lambda name: (fict.concepts()[name].path[0] == "scene", -mass[name]))
    return [name for name in ranked if mass[name] >= min_px][:max_concepts]


def select_arc(found: Regions, artifact: ArtifactMask) -> str | None:
    """The arc of the face boundary that holds more difference a pixel than the mask at large and is half masked, or None."""
    inside = artifact.mask_HW
    if not inside.any():
        return None
    average = float(artifact.difference_HW[inside].mean())
    best, best_level = None, average
    for k, arc in enumerate(fict.BOUNDARY_ARCS):
        ring = found.arc_HW == k
        masked = ring & inside
        if int(masked.sum()) >= max(MIN_CONCEPT_PX, 0.5 * int(ring.sum())):
            level = float(artifact.difference_HW[masked].mean())
            if level > best_level:
                best, best_level = arc, level
    return best


def _resolve(name: str, selected: set[str], visible: frozenset[str]) -> list[str]:
    """The fewest nodes at or below `name` that stand for the selected atoms."""
    node = fict.concepts()[name]
    shown = [atom for atom in node.atoms if atom in visible]
    hit = [atom for atom in shown if atom in selected]
    if not hit:
        return []
    if node.level == "atom" or name in node.atoms:
        return [name]
    children = [child for child in _children(name) if any(atom in visible for atom in fict.concepts()[child].atoms)]
    only_child = len(children) == 1 and node.level in ("group", "part") and fict.concepts()[children[0]].phrase != node.phrase
    if len(hit) >= PARENT_SHARE * len(shown) and not only_child:
        return [name]
    return [found for child in children for found in _resolve(child, selected, visible)]


@cache
def _children(name: str) -> tuple[str, ...]:
    parent = fict.concepts()[name]
    if parent.level == "sub_part":
        return parent.atoms
    level = len(parent.path)
    below = (node.path for node in fict.concepts().values() if node.path[:level] == parent.path and len(node.path) > level)
    return tuple(dict.fromkeys(path[level] for path in below))


# Measurements become comparable as departures in standard deviations over real faces.


@cache
def baseline() -> dict[str, dict[str, list[float]]]:
    """Concept -> measurement -> [mean, standard deviation] of `comparable` values over real training faces."""
    table: dict[str, dict[str, list[float]]] = json.loads((files("trainer") / "measure_baseline.json").read_text())
    return table


def comparable(measured: dict[str, float]) -> dict[str, float]:
    """Ratios as logarithms, shifts in grey levels as they are: values whose differences mean the same everywhere."""
    return {name: value if name.endswith("_shift") else math.log(max(value, 1e-3)) for name, value in measured.items()}


@dataclass(frozen=True, slots=True)
class ConceptEvidence:
    """One named place of an annotation and what was measured there."""

    concept: str
    mask_HW: NDArray[np.bool_]
    """(224, 224): artifact and region."""
    measured: dict[str, float]
    """`engines.measure` on the fake."""
    kind: grammar.Kind
    strength: float
    """Departure behind the sentence, in standard deviations over real faces."""

    def to_json(self) -> dict[str, Any]:
        """As in the JSON line."""
        mask = Mask.encode(self.mask_HW)
        return {
            "concept": self.concept, "phrase": fict.concepts()[self.concept].phrase, "mask": _rle(mask), "area": round(float(self.mask_HW.mean()), 5),
            "kind": self.kind, "strength": round(self.strength, 3), "measured": self.measured,
        }  # fmt: skip


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


def _choose_kind(fake: dict[str, float], twin: dict[str, float] | None, concept: str) -> tuple[grammar.Kind, float]:
    """The kind whose measurement departs most from the twin and, on the fake alone, to the same side of what real faces show there."""
    normal = next(baseline()[node] for node in reversed(fict.concepts()[concept].path) if node in baseline())  # atoms: that of their sub-part
    best: tuple[grammar.Kind, float] = ("altered", 0.0)
    values, reference = comparable(fake), comparable(twin) if twin is not None else None
    for kind, spec in grammar.KINDS.items():
        if spec.measurement == "difference":
            continue
        mean, spread = normal[spec.measurement]
        alone = spec.sign * (values[spec.measurement] - mean) / spread
        against_twin = alone if reference is None else spec.sign * (values[spec.measurement] - reference[spec.measurement]) / spread
        strength = min(against_twin, alone + BELIEVED) if reference is not None else alone
        if alone > 0.0 and strength >= max(best[1], BELIEVED):
            best = (kind, strength)
    return best


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
                kind, strength = _choose_kind(measured, None, part)
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
        kind, strength = _choose_kind(measured, measure_region(real, region), concept)
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
        "quality": annotation.quality, "refused": annotation.refused, "mask": _rle(Mask.encode(annotation.mask_HW)),
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


def _rle(mask: Mask) -> dict[str, Any]:
    return {"size": list(mask.size_hw), "counts": mask.counts}


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
