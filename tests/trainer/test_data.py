"""Labelled sets as paired batches: a batch depends on its number alone, and only train faces enter it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from engines.contracts import FORGERY_TYPES
from trainer import data
from trainer.config import VisionConfig
from trainer.data import PairedBatch, PairedBatches
from trainer.faces import Face, fit, type_target

EVERY_SOURCE = {"dfdc": 1, "stargan": 1, "stylegan2": 1, "diffusion": 1, "self_blend": 1, "face_swap": 1, "local_edit": 1}


def batches(faces: list[Face], *, seed: int = 7, pairs: dict[str, int] | None = None) -> PairedBatches:
    return PairedBatches(faces, VisionConfig(steps=20, pairs=pairs or EVERY_SOURCE, seed=seed), image_size=56, grid=4)


def marked(faces: list[Face], pairs: dict[str, int]) -> PairedBatches:
    return PairedBatches(faces, VisionConfig(steps=20, pairs=pairs, synthesis_marked=True), image_size=56, grid=4)


def same(one: PairedBatch, other: PairedBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_batch_depends_on_seed_and_step_alone(faces: list[Face]) -> None:
    forward, backward = batches(faces), batches(faces)
    first = [forward[step] for step in range(3)]
    assert all(same(first[step], backward[step]) for step in (2, 0, 1))
    assert not same(first[0], first[1])
    assert not same(first[0], batches(faces, seed=8)[0])


def test_rows_alternate_real_and_fake_with_targets_for_fakes_only(faces: list[Face]) -> None:
    batch = batches(faces)[0]
    rows = 2 * len(EVERY_SOURCE)
    assert batch.image_BCHW.shape == (rows, 3, 56, 56) and batch.patch_target_BHW.shape == (rows, 4, 4)
    assert batch.is_fake_B.tolist() == [0.0, 1.0] * len(EVERY_SOURCE), "no pair of this batch has all its evidence hidden"
    assert not batch.patch_target_BHW[0::2].any() and not batch.type_target_BF[0::2].any()
    assert (batch.patch_weight_BHW[0::2] == 1).all()
    weight_B = batch.patch_weight_BHW[1::2].mean((1, 2)).tolist()
    assert weight_B == [weight_B[0], 0, 0, 0, 1, 1, 1]  # no mask is known
    assert batch.type_target_BF[1::2].sum(1).tolist() == [2, 1, 1, 1, 1, 1, 1]  # DFDC's method is not named
    assert (batch.patch_target_BHW >= 0).all() and (batch.patch_target_BHW <= 1).all()


def test_both_members_of_a_pair_get_one_look(faces: list[Face], monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that only fakes had would be learned as their mark."""
    monkeypatch.setattr(data, "REFOCUSED", 0.0)
    seen = []
    for share in (0.0, 1.0):
        source = PairedBatches(faces, VisionConfig(steps=20, pairs={"dfdc": 2}, look_share=share), image_size=56, grid=4)
        draw_pair = source._pair
        monkeypatch.setattr(source, "_pair", lambda rng, name, draw_pair=draw_pair: replace(pair := draw_pair(rng, name), fake_HWC=pair.real_HWC))
        batch = source[0]
        assert torch.equal(batch.image_BCHW[0::2], batch.image_BCHW[1::2])
        seen.append(batch.image_BCHW)
    assert not torch.equal(*seen)


def test_a_graded_face_is_as_real_as_before(faces: list[Face]) -> None:
    batch = batches(faces, pairs={"graded": 4})[0]
    assert not batch.is_fake_B.any() and not batch.type_target_BF.any() and not batch.patch_target_BHW.any()
    assert (batch.patch_weight_BHW == 1).all()
    assert all(not torch.equal(*pair) for pair in zip(batch.image_BCHW[0::2], batch.image_BCHW[1::2], strict=True))


def test_synthesis_is_marked_all_over_where_a_recipe_says_so(faces: list[Face], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "COVERED", 0.0)
    for step in range(4):
        batch = marked(faces, {"stylegan2": 1, "diffusion": 1})[step]
        assert batch.is_fake_B.tolist() == [0, 1, 0, 1], "what was drawn everywhere can not be hidden"
        assert (batch.patch_target_BHW[1::2] == 1).all() and not batch.patch_target_BHW[0::2].any()
        assert (batch.patch_weight_BHW == 1).all()


def test_a_covered_part_of_a_synthesised_face_is_not_marked(faces: list[Face], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "COVERED", 1.0)
    target_SHW = torch.stack([marked(faces, {"stylegan2": 1})[step].patch_target_BHW[1] for step in range(8)])
    assert (target_SHW < 1).any() and (target_SHW.mean((1, 2)) >= 0.5).all()


def test_an_edit_that_draws_a_whole_tile_is_marked_where_it_changed_most_and_denied_nowhere(make_face: Callable[..., Face]) -> None:
    pair = [make_face(1, dataset="stargan", side=128, fake=fake) for fake in (False, True)]
    for step in range(4):
        batch = marked(pair, {"stargan": 1})[step]
        target_HW, weight_HW = batch.patch_target_BHW[1], batch.patch_weight_BHW[1]
        assert torch.equal(weight_HW == 1, target_HW > 0.5) and torch.equal(weight_HW == 0, target_HW <= 0.5)
        assert weight_HW.any() and (batch.patch_weight_BHW[0] == 1).all() and not batch.patch_target_BHW[0].any()


@pytest.mark.parametrize("source", ["self_blend", "face_swap", "local_edit"])
def test_own_manipulations_are_marked_where_they_are(faces: list[Face], source: str) -> None:
    marked = [batches(faces, pairs={source: 1})[step].patch_target_BHW[1].max().item() for step in range(6)]
    assert sum(share > 0 for share in marked) >= 5  # an edit may fall outside the augmented window


def test_a_curated_pair_counts_and_a_loose_one_only_where_it_is_aligned(make_face: Callable[..., Face]) -> None:
    real, fake = make_face(1, dataset="dfdc", side=224), make_face(1, dataset="dfdc", fake=True, side=224)
    shifted = make_face(2, dataset="dfdc", side=224)  # another picture under the same name: nothing is aligned
    unchanged = replace(fake, is_fake=False)
    for twin, quality, weight in (
        (real, "curated", 1.0), (shifted, "curated", 1.0), (real, "loose", 0.5), (shifted, "loose", 0.0), (unchanged, "loose", 0.0),
    ):  # fmt: skip
        pair = [replace(twin, name=real.name, is_fake=False, forgery_type=None, real_twin=None), replace(fake, pair_quality=quality)]
        assert batches(pair, pairs={"dfdc": 1})[0].patch_weight_BHW.mean((1, 2)).tolist() == [1.0, weight], (twin.name, quality)


def test_a_fake_whose_evidence_is_all_hidden_counts_as_real_and_only_then(faces: list[Face], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "COVERED", 0.0)
    for share, labels in ((1.0, {0.0}), (0.0, {1.0})):
        monkeypatch.setattr(data, "ALL_HIDDEN", share)
        made = [batches(faces, pairs={"face_swap": 1})[step] for step in range(6)]
        seen = [batch for batch in made if share == 0.0 or not batch.patch_target_BHW.any()]
        assert {batch.is_fake_B[1].item() for batch in seen} == labels and len(seen) == 6
        assert all(bool(batch.type_target_BF[1].any()) == (labels == {1.0}) for batch in made)


def test_a_drawn_cover_leaves_most_of_the_evidence_in_sight(faces: list[Face], monkeypatch: pytest.MonkeyPatch) -> None:
    marked = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(data, "COVERED", share)
        monkeypatch.setattr(data, "ALL_HIDDEN", 0.0)
        marked.append(np.array([batches(faces, pairs={"face_swap": 1})[step].patch_target_BHW[1].sum().item() for step in range(8)]))
        assert all(batches(faces, pairs={"face_swap": 1})[step].is_fake_B[1] == 1 for step in range(8))
    assert (marked[1] >= 0.5 * marked[0]).all() and (marked[1] < marked[0]).any()


def test_a_guided_manipulation_is_visible_or_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = np.full((224, 224, 3), 128, np.uint8)
    assert data.guided(np.random.default_rng(0), flat, flat) is None, "no mesh, nothing to guide by"


def test_dev_faces_never_train(faces: list[Face]) -> None:
    pools = batches(faces)
    drawn = [*pools.by_name.values(), *pools.reals, *pools.dfdc_fakes, *pools.stargan_fakes, *pools.stylegan2, *pools.diffusion]
    assert drawn and all(face.part == "train" for face in drawn)


def test_types_that_a_label_allows() -> None:
    assert type_target("swap").tolist() == [1, 1, 0, 0]
    assert type_target(None).tolist() == [0, 0, 0, 0]
    assert [type_target(kind).argmax() for kind in FORGERY_TYPES] == [0, 1, 2, 3]


def test_fit_keeps_what_fits_and_averages_what_is_larger() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    assert fit(image, 8) is image
    np.testing.assert_allclose(fit(image, 4), image.reshape(4, 2, 4, 2, 3).mean((1, 3)), atol=1)


def test_a_window_is_cut_from_its_grid(make_face: Callable[..., Face]) -> None:
    face = make_face(1)
    np.testing.assert_array_equal(replace(face, window_xywh=(8, 4, 20, 30)).image(), face.image()[4:34, 8:28])


def test_a_face_that_does_not_decode_is_named(make_face: Callable[..., Face]) -> None:
    with pytest.raises(ValueError, match=r"ffhq_stylegan2/1r\.png does not decode"):
        replace(make_face(1), encoded=b"no image").image()
