"""Faces to paired batches, one batch per step number.

Data order is a function of (seed, step) alone, so a resumed run and one with more workers see the same batches. Real faces and their fakes come in
one batch under one draw of augmentation (`augment`).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from engines.preprocess import to_model_input
from trainer import augment
from trainer.annotator import manipulate
from trainer.annotator.annotate import process_annotator
from trainer.annotator.reference_mask import border_difference, frozen_mask
from trainer.config import VisionConfig
from trainer.faces import Face, ImageHWC, fit, type_target

GUIDED_AREA = 0.02, 0.5
"""Shares of the face oval that a guided manipulation changes, drawn log-uniformly. Smaller ones vanish in a 14 px patch and a codec."""
REFOCUSED = 0.35
"""Share of pairs of which one member alone is softened or sharpened."""
COVERED, ALL_HIDDEN = 0.15, 0.05
"""Shares of pairs under a drawn cover, and under one that hides all that was manipulated."""
EDGE_PER_LOOK = 0.25
"""Pairs at the edge of a frame for each pair with a look."""
GUIDED_TRIES = 3
"""Draws until a guided manipulation is not faint: who must call the invisible fake learns to call everything fake."""


class PairedBatch(NamedTuple):
    """One training step's faces; row 2k is real, row 2k+1 its fake, or (`graded`) the same real face under another look."""

    image_BCHW: Tensor
    is_fake_B: Tensor
    """float32."""
    patch_target_BHW: Tensor
    """float32 share of manipulated pixels per patch."""
    patch_weight_BHW: Tensor
    """float32; 0 where it is unknown whether the patch was manipulated."""
    type_target_BF: Tensor
    """float32, 1 for each type the label allows; all 0 for reals."""


@dataclass(frozen=True, slots=True)
class _Pair:
    real_HWC: ImageHWC
    fake_HWC: ImageHWC
    alpha_HW: NDArray[np.float32] | None
    """Where the fake was changed; None when unknown."""
    mask_weight: float
    forgery_type: str | None
    """None where the second member is the first, to be graded: no forgery."""
    twins: bool
    """Same scene: both members share the draw of geometry."""
    all_known: bool = True
    """Whether patches outside `alpha_HW` are known to be untouched."""

    @property
    def hideable(self) -> bool:
        """Whether a cover over `alpha_HW` hides all that is forged: of a face that was drawn anew as a whole something always shows."""
        return self.mask_weight > 0 and self.all_known and self.twins


_Row = tuple[ImageHWC, bool, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
"""Image, whether it is fake, target and weight of its patches, allowed types."""


class PairedBatches(Dataset[PairedBatch]):
    """Batch number -> batch. Deterministic in (seed, step)."""

    def __init__(self, faces: list[Face], config: VisionConfig, *, image_size: int, grid: int) -> None:
        train = [face for face in faces if face.part == "train"]
        self.config, self.image_size, self.grid = config, image_size, grid
        self.by_name = {(f.dataset, f.name): f for f in train}
        self.reals = [f for f in train if not f.is_fake]
        self.dfdc_fakes = [f for f in train if f.dataset == "dfdc" and f.is_fake]
        self.stargan_fakes = [f for f in train if f.dataset == "stargan" and f.is_fake]
        self.stylegan2 = [f for f in train if f.dataset == "ffhq_stylegan2" and f.is_fake]
        self.diffusion = [f for f in train if f.dataset == "sd21_faces"]
        self.photographs = [f for f in self.reals if f.dataset in ("ffhq_stylegan2", "london", "amfd")]
        self.ffhq = [f for f in self.reals if f.dataset == "ffhq_stylegan2"]
        self.sharp_reals = [f for f in self.reals if f.dataset != "stargan"]

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> PairedBatch:
        rng = np.random.default_rng([self.config.seed, step])
        members = [self._member(rng, source) for source, count in self.config.pairs.items() for _ in range(count)]
        images, fakes, patches, weights, types = zip(*(row for member in members for row in member), strict=True)
        return PairedBatch(
            torch.from_numpy(to_model_input(np.stack(images))),
            torch.tensor(fakes, dtype=torch.float32),
            torch.from_numpy(np.stack(patches)),
            torch.from_numpy(np.stack(weights)),
            torch.from_numpy(np.stack(types)),
        )

    def _member(self, rng: np.random.Generator, source: str) -> list[_Row]:
        """Draw one pair and augment it; two rows, the real first."""
        pair = self._pair(rng, source)
        real, fake = pair.real_HWC, pair.fake_HWC
        draw = augment.draw(rng, self.image_size)
        if rng.random() < REFOCUSED:
            real, fake = augment.refocus_one(rng, real, fake)
        draw, is_fake = self._covered(rng, draw, pair)
        if self.config.h264_share and rng.random() < self.config.h264_share:  # recipes without it draw what they always drew
            draw = replace(draw, crf=int(rng.integers(augment.CRF[0], augment.CRF[1] + 1)))
        if self.config.look_share:
            draw = self._taken(rng, draw)
        other = draw
        if not pair.twins:
            other = replace(augment.draw(rng, self.image_size), jpeg=draw.jpeg, down=draw.down, blur=draw.blur)
            other = replace(other, cover=draw.cover, crf=draw.crf, look=draw.look)
        if pair.forgery_type is None:
            other, is_fake = replace(draw, look=augment.look(rng)), False
        clean, known = np.zeros((self.grid, self.grid), np.float32), np.ones((self.grid, self.grid), np.float32)
        target = clean
        if pair.alpha_HW is not None:
            manipulated = (other.alpha(pair.alpha_HW) > 0.1).astype(np.float32)
            target = cv2.resize(manipulated, (self.grid, self.grid), interpolation=cv2.INTER_AREA)
        weight = pair.mask_weight * (known if pair.all_known else (target > 0.5).astype(np.float32))
        return [
            (draw.image(real), False, clean, known, type_target(None)),
            (other.image(fake), is_fake, target, weight, type_target(pair.forgery_type if is_fake else None)),
        ]

    def _taken(self, rng: np.random.Generator, draw: augment.Draw) -> augment.Draw:
        """Some pairs with a look, some at the edge of a frame."""
        if rng.random() < self.config.look_share:
            draw = replace(draw, look=augment.look(rng))
        if draw.cover is None and rng.random() < self.config.look_share * EDGE_PER_LOOK:
            draw = replace(draw, cover=augment.beyond_the_frame(rng, self.image_size))
        return draw

    def _covered(self, rng: np.random.Generator, draw: augment.Draw, pair: _Pair) -> tuple[augment.Draw, bool]:
        """Lay a cover on some pairs; a fake whose manipulated area is all hidden shows nothing forged, and counts as real."""
        kind = rng.random()
        if kind < COVERED:
            covered = replace(draw, cover=augment.cover(rng, self.image_size))
            if pair.alpha_HW is None:
                return covered, True
            before, after = (float((d.alpha(pair.alpha_HW) > 0.1).sum()) for d in (draw, covered))
            return (covered if after >= 0.6 * before else draw), True
        if kind < COVERED + ALL_HIDDEN and pair.alpha_HW is not None and pair.hideable:
            near_HW = cv2.dilate((draw.alpha(pair.alpha_HW) > 0.1).astype(np.uint8), np.ones((13, 13), np.uint8)).astype(bool)
            if near_HW.any():
                return replace(draw, cover=augment.Cover(near_HW, augment.cover_fill(rng))), False
        return draw, True

    def _pair(self, rng: np.random.Generator, source: str) -> _Pair:
        def pick(faces: list[Face]) -> Face:
            return faces[int(rng.integers(len(faces)))]

        marked = self.config.synthesis_marked
        if source in ("dfdc", "stargan"):
            fake = pick(self.dfdc_fakes if source == "dfdc" else self.stargan_fakes)
            real_HWC, fake_HWC = self.by_name[fake.dataset, fake.real_twin or ""].image(), fake.image()
            assert fake.forgery_type is not None, f"fake {fake.name} has no type"
            if source == "stargan":
                # The rest of the tile was drawn anew too, if less so.
                changed = frozen_mask(real_HWC, fake_HWC).astype(np.float32) if marked else None
                return _Pair(real_HWC, fake_HWC, changed, float(marked), fake.forgery_type, True, all_known=False)
            alpha = frozen_mask(real_HWC, fake_HWC).astype(np.float32)
            border = border_difference(np.abs(real_HWC.astype(np.float32) - fake_HWC.astype(np.float32)).mean(-1))
            weight = 1.0 if fake.pair_quality == "curated" else 0.5 if border <= 4.5 and alpha.mean() > 0.01 else 0.0
            return _Pair(real_HWC, fake_HWC, alpha, weight, fake.forgery_type, True)
        if source in ("stylegan2", "diffusion"):
            reals, fakes = (self.ffhq, self.stylegan2) if source == "stylegan2" else (self.photographs, self.diffusion)
            real_HWC, fake_HWC = pick(reals).image(), pick(fakes).image()
            everywhere = np.ones(fake_HWC.shape[:2], np.float32) if marked else None
            return _Pair(real_HWC, fake_HWC, everywhere, float(marked), "entire_synthesis", False)
        # Half the own fakes are made from photographs: sharp originals that DFDC does not have.
        real = pick(self.photographs if rng.random() < 0.5 and self.photographs else self.sharp_reals)
        donor = pick(self.sharp_reals)
        while (donor.dataset, donor.unit) == (real.dataset, real.unit):
            donor = pick(self.sharp_reals)
        real_HWC = np.ascontiguousarray(fit(real.image(), self.image_size))

        def donated() -> ImageHWC:
            return np.ascontiguousarray(fit(donor.image(), self.image_size))

        if source == "graded":
            return _Pair(real_HWC, real_HWC, None, 1.0, None, True)
        if source == "self_blend":
            made = manipulate.self_blend(rng, real_HWC)
        elif source == "face_swap":
            made = manipulate.face_swap(rng, real_HWC, donated())
        elif source == "guided":
            made = guided(rng, real_HWC, donated()) or manipulate.self_blend(rng, real_HWC)
        else:
            made = manipulate.local_edit(rng, real_HWC)
        return _Pair(real_HWC, made.image_HWC, made.alpha_HW, 1.0, made.forgery_type, True)


def guided(rng: np.random.Generator, real_HWC: ImageHWC, donor_HWC: ImageHWC) -> manipulate.Manipulation | None:
    """A visible manipulation of any local family, laid on the face by its mesh; None where no mesh is found or every draw is faint (about 45 ms)."""
    annotator = process_annotator()
    landmarks, found = annotator.landmarks(real_HWC), annotator.regions(real_HWC)
    if landmarks is None or found is None:
        return None
    guide = manipulate.Guide(landmarks, found.oval_HW, found.mask)
    for _ in range(GUIDED_TRIES):
        recipe = str(rng.choice(manipulate.RECIPES[str(rng.choice(list(manipulate.RECIPES)))]))
        area = float(np.exp(rng.uniform(*np.log(GUIDED_AREA))))
        donor_landmarks = annotator.landmarks(donor_HWC) if recipe == "face_swap" else None
        made = manipulate.make(rng, recipe, real_HWC, guide, donor_HWC, donor_landmarks, area)
        if manipulate.change_levels(real_HWC, made.image_HWC, made.alpha_HW > manipulate.ALPHA_CUT) >= manipulate.FAINT_LEVELS:
            return made
    return None
