"""One draw for image and mask: what is marked stays where it is seen."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.augment import COVER_SHARE, Cover, Draw, Look, beyond_the_frame, cover, draw, look, refocus_one

SIZE = 64


def only_geometry(*, zoom: float, angle_deg: float, flip: bool, center_xy: tuple[float, float]) -> Draw:
    return Draw(
        size=SIZE, center_xy=center_xy, zoom=zoom, angle_deg=angle_deg, flip=flip, gain=1.0, bias=0.0, saturation=1.0,
        down=None, blur=None, noise=None, jpeg=None, noise_seed=0,
    )  # fmt: skip


def centroid(weight_HW: np.ndarray) -> np.ndarray:
    """(x, y), pixel centres at +0.5."""
    ys, xs = np.mgrid[: weight_HW.shape[0], : weight_HW.shape[1]] + 0.5
    return np.array([(xs * weight_HW).sum(), (ys * weight_HW).sum()]) / weight_HW.sum()


@given(
    side=st.sampled_from([64, 80, 200]),
    zoom=st.floats(0.8, 1.0),
    angle_deg=st.floats(-10, 10),
    flip=st.booleans(),
    center_xy=st.tuples(st.floats(0.45, 0.55), st.floats(0.45, 0.55)),
    dot_xy=st.tuples(st.floats(0.35, 0.65), st.floats(0.35, 0.65)),
)
def test_a_dot_and_its_mask_land_on_the_same_place(
    side: int, zoom: float, angle_deg: float, flip: bool, center_xy: tuple[float, float], dot_xy: tuple[float, float]
) -> None:
    drawn = only_geometry(zoom=zoom, angle_deg=angle_deg, flip=flip, center_xy=center_xy)
    ys, xs = np.mgrid[:side, :side] + 0.5
    dot = np.exp(-((xs - dot_xy[0] * side) ** 2 + (ys - dot_xy[1] * side) ** 2) / (2 * (side / 24) ** 2)).astype(np.float32)
    in_image = centroid(drawn.image(np.repeat((dot * 255).astype(np.uint8)[..., None], 3, -1))[..., 0].astype(float))
    in_mask = centroid(drawn.alpha(dot))
    np.testing.assert_allclose(in_image, in_mask, atol=0.5)
    np.testing.assert_allclose(drawn.geometry((side, side)) @ [*in_mask, 1], np.array(dot_xy) * side, atol=0.5 * side / SIZE)


def test_the_whole_image_drawn_without_change_is_itself() -> None:
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    unchanged = only_geometry(zoom=1.0, angle_deg=0.0, flip=False, center_xy=(0.5, 0.5))
    np.testing.assert_array_equal(unchanged.image(image), image)
    mirrored = only_geometry(zoom=1.0, angle_deg=0.0, flip=True, center_xy=(0.5, 0.5))
    np.testing.assert_array_equal(mirrored.image(image), image[:, ::-1])


def test_one_draw_gives_the_same_picture_again() -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    for seed in range(20):
        drawn = draw(np.random.default_rng(seed), SIZE)
        assert drawn == draw(np.random.default_rng(seed), SIZE)
        np.testing.assert_array_equal(drawn.image(image), drawn.image(image))
        assert drawn.image(image).shape == (SIZE, SIZE, 3)


def test_the_window_stays_inside_the_image() -> None:
    for seed in range(200):
        drawn = draw(np.random.default_rng(seed), SIZE)
        assert all(drawn.zoom / 2 <= value <= 1 - drawn.zoom / 2 for value in drawn.center_xy)


def edges(image: np.ndarray) -> float:
    return float(np.abs(np.diff(image.astype(float), axis=0)).mean())


def test_refocus_changes_one_member_only_and_leans_against_soft_fakes() -> None:
    image = np.random.default_rng(9).integers(60, 190, (32, 32, 3), np.uint8)
    softer = []
    for seed in range(200):
        real, fake = refocus_one(np.random.default_rng(seed), image, image.copy())
        assert np.array_equal(real, image) != np.array_equal(fake, image)
        softer.append("real" if edges(real) < edges(fake) else "fake")
    assert 0.5 < softer.count("real") / 200 < 0.7, "either member may be the softer one: one direction alone would be a habit to learn"


@pytest.mark.parametrize("seed", range(8))
def test_a_cover_hides_the_same_pixels_of_both_members_and_their_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    real, fake = rng.integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    covered = replace(only_geometry(zoom=1.0, angle_deg=0.0, flip=False, center_xy=(0.5, 0.5)), cover=cover(rng, SIZE))
    assert covered.cover is not None
    hidden = covered.cover.hidden_HW
    if covered.cover.colour is not None:
        assert (covered.image(real)[hidden] == covered.cover.colour).all() and (covered.image(fake)[hidden] == covered.cover.colour).all()
    np.testing.assert_array_equal(covered.image(real)[~hidden], real[~hidden])
    alpha = covered.alpha(np.ones((SIZE, SIZE), np.float32))
    assert not alpha[hidden].any() and (alpha[~hidden] == 1).all()


def test_covers_are_of_every_kind_and_of_the_stated_sizes() -> None:
    drawn = [cover(np.random.default_rng(seed), 224) for seed in range(100)]
    assert {None, (0, 0, 0), (128, 128, 128)} < {one.colour for one in drawn}
    assert max(one.hidden_HW.mean() for one in drawn) <= COVER_SHARE[1] * 1.05


def test_a_mosaic_is_made_of_the_image_itself() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    shown = Cover(np.ones((64, 64), bool), None).lay(image)
    assert len(np.unique(shown[:4, :4].reshape(-1, 3), axis=0)) == 1
    np.testing.assert_allclose(shown[:4, :4].mean((0, 1)), image[:4, :4].mean((0, 1)), atol=1)


PLAIN = Look(
    lights=((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)), toward_rad=0.0, gamma=1.0, contrast=0.0,
    vignette=0.0, retouch=0.0, sharpen=0.0, grain=0.0, gray=False,
)  # fmt: skip


def test_a_look_that_does_nothing_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.float32)
    np.testing.assert_allclose(PLAIN.of(image, 0), image, atol=1e-3)


def test_two_lights_colour_opposite_sides() -> None:
    lit = replace(PLAIN, lights=((1.0, 1.0, 1.0), (1.0, 1.0, 0.5))).of(np.full((SIZE, SIZE, 3), 100, np.float32), 0)
    assert lit[:, 0, 2].mean() == pytest.approx(100, abs=1)
    assert lit[:, -1, 2].mean() == pytest.approx(50, abs=1)
    np.testing.assert_allclose(lit[..., 0], 100, atol=0.1)


def test_retouching_smooths_skin_and_keeps_edges() -> None:
    image = np.full((SIZE, SIZE, 3), 60, np.float32)
    image[:, SIZE // 2 :] = 200
    relief = np.random.default_rng(1).normal(0, 6, (SIZE, SIZE, 1)).astype(np.float32)
    smooth = replace(PLAIN, retouch=1.0).of(image + relief, 0)
    assert smooth[:, : SIZE // 2 - 4].std() < 0.7 * relief[:, : SIZE // 2 - 4].std()
    assert smooth[:, SIZE // 2 + 2].mean() - smooth[:, SIZE // 2 - 3].mean() > 130


@given(seed=st.integers(0, 2**32 - 1))
def test_drawn_looks_keep_pictures_finite_and_are_drawn_again_from_their_seed(seed: int) -> None:
    drawn = look(np.random.default_rng(seed))
    assert drawn == look(np.random.default_rng(seed))
    for level in (0, 255):
        assert np.isfinite(drawn.of(np.full((16, 16, 3), level, np.float32), seed)).all()


@given(seed=st.integers(0, 2**32 - 1))
def test_a_face_at_the_edge_of_a_frame_is_black_on_one_side_or_two(seed: int) -> None:
    edge = beyond_the_frame(np.random.default_rng(seed), SIZE)
    hidden = edge.hidden_HW
    sides = [bool(side.all()) for side in (hidden[0], hidden[-1], hidden[:, 0], hidden[:, -1])]
    assert 1 <= sum(sides) <= 2
    assert edge.colour == (0, 0, 0)
    assert not hidden[SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4].any()
