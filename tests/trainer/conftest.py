"""Synthetic labelled faces: gradients with an oval, told apart by their numbers."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from engines import fict
from engines.contracts import Label, Mask
from engines.regions import Regions
from engines.reviews import Decision, Review, truth_of
from trainer.faces import Face

SIDE = 64


def picture(number: int, side: int = SIDE) -> np.ndarray:
    """(side, side, 3) uint8 RGB."""
    rng = np.random.default_rng(number)
    ys, xs = (np.mgrid[:side, :side] + 0.5) / side
    oval = ((xs - 0.5) / 0.33) ** 2 + ((ys - 0.5) / 0.42) ** 2 < 1
    image = np.where(oval[..., None], rng.uniform(90, 220, 3), rng.uniform(20, 120, 3)) + 30 * np.sin(12 * xs + number)[..., None]
    return np.clip(image + rng.normal(0, 4, (side, side, 3)), 0, 255).astype(np.uint8)


def encoded(image_HWC: np.ndarray) -> bytes:
    """Lossless, as a data set would hold it."""
    return cv2.imencode(".png", image_HWC[..., ::-1])[1].tobytes()


@pytest.fixture(scope="session")
def make_face() -> Callable[..., Face]:
    """Build a labelled face: `make_face(number, dataset=..., part=..., fake=...)`; a fake's twin is the real face of the same number."""

    def build(number: int, *, dataset: str = "ffhq_stylegan2", part: str = "train", fake: bool = False, side: int = SIDE) -> Face:
        image = picture(number, side)
        if fake:
            image[side // 4 : side // 2, side // 4 : side // 2] = 255 - image[side // 4 : side // 2, side // 4 : side // 2]
        name = f"{number}{'f' if fake else 'r'}.png"
        face = Face(name, dataset, encoded(image), None, fake, "entire_synthesis" if fake else None, str(number), part)  # type: ignore[arg-type]
        if not fake or dataset not in ("dfdc", "stargan"):
            return face
        kind = "swap" if dataset == "dfdc" else "attribute_manipulation"
        return replace(face, forgery_type=kind, real_twin=f"{number}r.png", pair_quality="curated" if dataset == "dfdc" else "")

    return build


@pytest.fixture(scope="session")
def faces(make_face: Callable[..., Face]) -> list[Face]:
    """Every set the recipes draw from, in train; a few of *select* with both labels."""
    train = [make_face(number, dataset=dataset) for dataset in ("dfdc", "stargan", "ffhq_stylegan2", "london") for number in range(3)]
    train += [make_face(number, dataset=dataset, fake=True) for dataset in ("dfdc", "stargan", "ffhq_stylegan2", "sd21_faces") for number in range(3)]
    return train + [make_face(10 + number, dataset="ffhq_stylegan2", part="select", fake=number % 2 == 0) for number in range(4)]


class GridAnnotator:
    """Stands in for FiFa-Annotator where only its answers matter: FICT is a grid of 16 x 28 px atoms, and one sentence tells one concept."""

    def __init__(self, *, believes: bool = True) -> None:
        self.believes = believes
        """False: an annotator that sees no artifact anywhere."""

    def regions(self, face_HWC: np.ndarray) -> Regions:
        atom_HW = np.repeat(np.repeat(np.arange(112, dtype=np.int16).reshape(8, 14), 28, 0), 16, 1)
        return Regions(atom_HW, np.full((224, 224), -1, np.int8))

    def area(
        self, real_HWC: np.ndarray | None, fake_HWC: np.ndarray, mask_HW: np.ndarray, found: Regions, *, query: str | None, area_HW: np.ndarray
    ) -> SimpleNamespace:
        inside = mask_HW & area_HW
        if not self.believes or inside.sum() < 0.01 * area_HW.sum():
            return SimpleNamespace(concepts=(), tampered=False, texts=SimpleNamespace(markup="All is well there.", held_out="Untouched."))
        concept = query or fict.cells(112)[int(np.bincount(found.atom_HW[inside], minlength=112).argmax())]
        named = SimpleNamespace(concept=concept, mask_HW=inside & found.mask(concept))
        phrase = fict.concepts()[concept].phrase
        texts = SimpleNamespace(markup=f"The <p> {phrase} </p> [SEG] is soft.", held_out=f"Softness: <p> {phrase} </p> [SEG].")
        return SimpleNamespace(concepts=(named,), tampered=True, texts=texts)


@pytest.fixture(scope="session")
def grid_annotator() -> Callable[..., GridAnnotator]:
    """Build a `GridAnnotator`."""
    return GridAnnotator


@pytest.fixture(scope="session")
def annotation_row() -> Callable[..., dict[str, Any]]:
    """Build the annotation row of a face: a fake's mask covers the upper left quarter of the crop, its text names the forehead there."""

    def build(face: Face, **changed: object) -> dict[str, Any]:
        mask_HW = np.zeros((224, 224), bool)
        mask_HW[:112, :112] = face.is_fake
        named_HW = np.zeros((224, 224), bool)
        named_HW[:28, :96] = True

        def rle(mask: np.ndarray) -> dict[str, Any]:
            return {"size": [224, 224], "counts": Mask.encode(mask).counts}

        row = {
            "dataset": face.dataset, "name": face.name, "part": face.part, "is_fake": face.is_fake, "forgery_type": face.forgery_type,
            "quality": "good", "refused": None, "mask": rle(mask_HW), "facts": {},
            "concepts": [{"concept": "forehead_main", "mask": rle(named_HW)}] if face.is_fake else [],
            "markup": "The <p> main forehead </p> [SEG] is too smooth." if face.is_fake else "This face is real.",
            "held_out": "Smoothness marks the <p> main forehead </p> [SEG]." if face.is_fake else "Nothing here departs from a photograph.",
        }  # fmt: skip
        return row | changed

    return build


@pytest.fixture(scope="session")
def make_review() -> Callable[..., Review]:
    """Build a review: `make_review(number, truth="real", label="fake", ...)`; the decision follows where none is given."""

    def build(number: int, *, truth: str | None = "fake", label: str = "fake", fake_score: float = 0.99, **changed: Any) -> Review:
        called = Label(label)
        agrees = called is not Label.INCONCLUSIVE and truth_of(called, Decision.AGREE) == truth
        decision = Decision.SKIP if truth is None else Decision.AGREE if agrees else Decision.DISAGREE
        return Review.model_validate(
            {
                "verdict": f"fifa.frames/0/{number}", "verdict_sha256": "a" * 64, "media_sha256": f"{number:064x}", "engine": "e" * 64,
                "stream": f"cam-{number}", "face": 0, "box": (10.0, 10.0, 90.0, 90.0), "label": label, "fake_score": fake_score, "raw_score": 3.0,
                "forgery_type": "identity_swap", "concepts": ("mouth", "nose"), "decision": decision, "truth": truth, "reviewer": "ada",
                "decided_at": datetime(2026, 1, 1, tzinfo=UTC), "sampling": "random",
            }
            | changed
        )  # fmt: skip

    return build
