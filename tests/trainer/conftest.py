"""Synthetic labelled faces: gradients with an oval, told apart by their numbers."""

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest

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
