"""Probes of toy engines whose habits are known: those that mean what they say pass, those that do not fail."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.prompts import parse_markup
from trainer.fifa_bench.deletion import COVER_GREY, MIN_MATCHED_SHARE, covered, matched_areas, painted_over, undone
from trainer.fifa_bench.engine_probes import Swap, distinct_pair, engine_probes, exchanged, swap_row
from trainer.fifa_bench.explained import Cited
from trainer.fifa_bench.masks import oval_mask
from trainer.fifa_bench.predict import AskedFace
from trainer.samples import SIDE, Sample

Make = Callable[..., Any]
TWO = "The <p> nose </p> [SEG] is odd and the <p> mouth </p> [SEG] is soft."
CLEAN = "Nothing is odd."


@pytest.fixture
def items(crop: Make, ask: Make) -> list[AskedFace]:
    """Eight faces, every second one fake, with a bright nose where it is."""
    return [(crop(number, bright=["nose"][number % 2 :]), [ask(number, "det"), ask(number, "age")]) for number in range(8)]


def probed(analyzer: Any, items: list[AskedFace], region: Make, batch: int = 3) -> dict[str, dict[str, float]]:
    return engine_probes(analyzer, items, regions_of=lambda _: region, batch=batch)


# --- Phrase swap ------------------------------------------------------------------------------------------------------------------------------


def test_an_engine_whose_masks_follow_its_phrases_passes_the_swap(toy_analyzer: Make, items: list[AskedFace], region: Make) -> None:
    row = probed(toy_analyzer(lambda face, task: TWO), items, region)["phrase swap"]
    assert (row["fakes"], row["answers"], row["n"]) == (4, 4, 8)
    assert row["moved"] == row["moved_low"] == row["moved_high"] == 1
    assert row["iou_with_own_phrase"] == 1 and row["iou_with_own_place"] == 0


def test_an_engine_whose_masks_ignore_its_phrases_fails_the_swap(toy_analyzer: Make, items: list[AskedFace], region: Make) -> None:
    row = probed(toy_analyzer(lambda face, task: TWO, follows=False), items, region)["phrase swap"]
    assert row["n"] == 8 and row["moved"] == row["moved_high"] == 0
    assert row["iou_with_own_phrase"] == 0 and row["iou_with_own_place"] == 1


def test_answers_without_two_phrases_swap_nothing(toy_analyzer: Make, items: list[AskedFace], region: Make) -> None:
    row = probed(toy_analyzer(lambda face, task: "The <p> nose </p> [SEG] is odd."), items, region)["phrase swap"]
    assert row == {"n": 0, "answers": 0, "fakes": 4}


def test_masks_that_overlap_least_are_exchanged() -> None:
    def strip(first: int, last: int) -> NDArray[np.bool_]:
        mask_HW = np.zeros((SIDE, SIDE), bool)
        mask_HW[first:last] = True
        return mask_HW

    nose, mouth, chin = Cited("nose", strip(0, 40)), Cited("mouth", strip(30, 60)), Cited("chin", strip(50, 90))
    assert distinct_pair([nose, mouth, chin]) == (0, 2)
    assert distinct_pair([nose, Cited("nose", strip(60, 70)), mouth]) == (1, 2)  # not the same concept twice
    assert distinct_pair([nose, Cited("mouth", strip(0, 0))]) is None  # nothing is shown for the mouth
    assert distinct_pair([nose]) is None and distinct_pair([]) is None


@given(st.permutations(["nose", "mouth", "left iris", "cheeks"]), st.integers(0, 3), st.integers(0, 3))
def test_exchanging_moves_two_phrases_and_twice_moves_none(phrases: list[str], first: int, second: int) -> None:
    markup = "On it " + " and ".join(f"the <p> {phrase} </p> [SEG] is odd" for phrase in phrases) + "."
    changed = exchanged(markup, first, second)
    expected = list(phrases)
    expected[first], expected[second] = expected[second], expected[first]
    assert [span.phrase for span in parse_markup(changed)[1]] == expected
    assert exchanged(changed, first, second) == markup
    assert sorted(changed) == sorted(markup)


def test_a_tie_is_no_move() -> None:
    row = swap_row([Swap("a", 0.0, 0.0), Swap("b", 0.5, 0.4)], fakes=1)
    assert row["moved"] == 0.5


# --- Deletion ---------------------------------------------------------------------------------------------------------------------------------


def test_a_score_that_rests_on_what_is_cited_falls_with_it_alone(toy_analyzer: Make, items: list[AskedFace], region: Make) -> None:
    row = probed(toy_analyzer(lambda face, task: "The <p> nose </p> [SEG] is odd."), items, region)["deletion by paint"]
    assert row["n"] == row["n_matched"] == 4 and row["fell"] == row["matched_fell"] == 1
    assert row["drop"] > 0.5 and row["control_fell"] == 0 and row["control_drop"] == pytest.approx(0, abs=1e-3)
    assert row["drop_beyond_control_low"] > 0.5
    assert row["matched_area"] == pytest.approx(1 / 16, abs=1e-3)


def test_a_score_that_rests_elsewhere_does_not_fall(toy_analyzer: Make, items: list[AskedFace], region: Make) -> None:
    row = probed(toy_analyzer(lambda face, task: "The <p> mouth </p> [SEG] is odd."), items, region)["deletion by paint"]
    assert row["n"] == 4 and row["fell"] == 0 and row["drop"] == pytest.approx(0, abs=1e-3)


def test_hiding_what_the_score_rests_on_lowers_it_and_hiding_as_much_beside_it_does_not(
    toy_analyzer: Make, items: list[AskedFace], region: Make
) -> None:
    rows = {
        phrase: probed(toy_analyzer(lambda face, task, phrase=phrase: f"The <p> {phrase} </p> [SEG] is odd."), items, region)["deletion by cover"]
        for phrase in ("nose", "mouth")
    }
    assert rows["nose"]["n"] == rows["nose"]["n_matched"] == 4 and rows["nose"]["fell"] == 1 and rows["nose"]["drop"] > 0.4
    assert rows["nose"]["control_drop"] == pytest.approx(0, abs=1e-3) and rows["nose"]["drop_beyond_control_low"] > 0.4
    assert rows["mouth"]["fell"] == 0 and rows["mouth"]["drop"] == pytest.approx(0, abs=1e-3)


def test_a_cover_on_reals_shows_an_engine_that_takes_covers_for_forgery(toy_analyzer: Make, items: list[AskedFace], region: Make) -> None:
    """The toy takes brightness for forgery, and a grey cover is brighter than its dark faces."""
    row = probed(toy_analyzer(lambda face, task: CLEAN), items, region)["cover on reals"]
    assert row["n"] == 4 and row["fell"] == 0 and row["drop_high"] < -0.2
    grey = [(np.where(crop_HWC == 40, COVER_GREY, crop_HWC).astype(np.uint8), samples) for crop_HWC, samples in items]
    neutral = probed(toy_analyzer(lambda face, task: CLEAN), grey, region)["cover on reals"]
    assert neutral["n"] == 4 and neutral["drop"] == pytest.approx(0, abs=1e-3)


def test_undoing_the_forgery_where_it_is_cited_lowers_the_score(toy_analyzer: Make, items: list[AskedFace], crop: Make, region: Make) -> None:
    def twin_of(sample: Sample) -> NDArray[np.uint8] | None:
        return None if sample.name == "0.png" else crop(int(sample.name.removesuffix(".png")) + 1)  # dark, as before the forgery

    rows = {
        text: engine_probes(toy_analyzer(lambda face, task, text=text: text), items, regions_of=lambda _: region, twin_of=twin_of)["deletion by twin"]
        for text in ("The <p> nose </p> [SEG] is odd.", "The <p> mouth </p> [SEG] is odd.")
    }
    nose, mouth = rows.values()
    assert nose["n"] == mouth["n"] == 3 and nose["fakes"] == 4  # the twin of one is not known
    assert nose["fell"] == 1 and nose["drop"] > 0.5 and nose["control_drop"] == pytest.approx(0, abs=1e-3)
    assert mouth["fell"] == 0 and mouth["drop"] == pytest.approx(0, abs=1e-3)


def test_a_fake_of_which_nothing_is_cited_has_no_deletion(toy_analyzer: Make, items: list[AskedFace], region: Make) -> None:
    row = probed(toy_analyzer(lambda face, task: CLEAN), items, region)["deletion by paint"]
    assert row == {"n": 0, "fakes": 4, "n_matched": 0}


def test_paint_on_reals_shows_an_engine_that_takes_paint_for_forgery(toy_analyzer: Make, items: list[AskedFace], region: Make) -> None:
    analyzer = toy_analyzer(lambda face, task: CLEAN)
    row = probed(analyzer, items, region)["paint on reals"]
    assert row["n"] == 4 and row["drop"] == pytest.approx(0, abs=0.01)  # an even face stays even
    bright_round_the_nose = [(np.where(crop_HWC == 40, 240, 40).astype(np.uint8), samples) for crop_HWC, samples in items[1::2]]
    for number, (crop_HWC, _) in enumerate(bright_round_the_nose):
        crop_HWC[16:32, 16:32], crop_HWC[0, 0] = 40, number
    row = probed(analyzer, bright_round_the_nose, region)["paint on reals"]
    assert row["n"] == 4 and row["fell"] == 0 and row["drop_high"] < -0.1


@given(st.integers(0, SIDE - 1), st.integers(0, SIDE - 1), st.integers(1, SIDE), st.integers(1, SIDE))
def test_matched_areas_are_equal_and_lie_where_they_say(y: int, x: int, height: int, width: int) -> None:
    cited_HW = np.zeros((SIDE, SIDE), bool)
    cited_HW[y : y + height, x : x + width] = True
    free_HW = oval_mask(SIDE) & ~cited_HW
    matched = matched_areas(cited_HW)
    if min(cited_HW.sum(), free_HW.sum()) < MIN_MATCHED_SHARE * SIDE**2:
        assert matched is None
        return
    assert matched is not None
    part_HW, control_HW = matched
    assert part_HW.sum() == control_HW.sum() == min(cited_HW.sum(), free_HW.sum())
    assert not (part_HW & ~cited_HW).any() and not (control_HW & ~free_HW).any()


def test_paint_takes_its_colour_from_the_border_and_leaves_the_rest(crop: Make, region: Make) -> None:
    image_HWC = crop(0, bright=["nose"])
    nose_HW = np.asarray(image_HWC == 240).all(2)
    painted_HWC = painted_over(image_HWC, region("nose"))
    assert painted_HWC.dtype == np.uint8 and np.abs(painted_HWC[nose_HW].astype(int) - 40).max() <= 4
    np.testing.assert_array_equal(painted_HWC[~nose_HW], image_HWC[~nose_HW])
    assert (image_HWC[nose_HW] == 240).all()  # what was given stays as it was


def test_a_cover_is_flat_grey_and_leaves_the_rest(crop: Make, region: Make) -> None:
    image_HWC = crop(0, bright=["nose"])
    nose_HW = np.asarray(image_HWC == 240).all(2)
    covered_HWC = covered(image_HWC, region("nose"))
    assert covered_HWC.dtype == np.uint8 and (covered_HWC[nose_HW] == COVER_GREY).all()
    np.testing.assert_array_equal(covered_HWC[~nose_HW], image_HWC[~nose_HW])
    assert (image_HWC[nose_HW] == 240).all()  # what was given stays as it was


def test_a_twin_of_another_size_is_stretched(crop: Make, region: Make) -> None:
    small_HWC = np.full((16, 16, 3), 7, np.uint8)
    undone_HWC = undone(small_HWC, crop(0, bright=["nose"]), region("nose"))
    nose_HW = np.asarray(crop(0, bright=["nose"]) == 240).all(2)
    assert (undone_HWC[nose_HW] == 7).all()
    np.testing.assert_array_equal(undone_HWC[~nose_HW], crop(0)[~nose_HW])


# --- In region, mentions ----------------------------------------------------------------------------------------------------------------------


def test_masks_in_their_regions_are_inside_and_others_are_not(toy_analyzer: Make, items: list[AskedFace], region: Make) -> None:
    faithful, blind = (probed(toy_analyzer(lambda face, task: TWO, follows=follows), items, region)["in region"] for follows in (True, False))
    assert faithful["n"] == 8 and faithful["inside"] == faithful["inside_low"] == 1
    swapped = probed(toy_analyzer(lambda face, task: "The <p> mouth </p> [SEG] is odd.", follows=False), items, region)["in region"]
    assert blind["inside"] == 1  # the toy's first two places happen to be those of nose and mouth
    assert swapped["n"] == 4 and swapped["inside"] < 0.05
    assert 0 < faithful["inside_of_oval"] < 0.3


def test_faces_and_concepts_that_are_not_seen_count_nowhere(toy_analyzer: Make, items: list[AskedFace], region: Make) -> None:
    analyzer = toy_analyzer(lambda face, task: TWO)
    assert engine_probes(analyzer, items, regions_of=lambda _: None)["in region"] == {"n": 0}

    def only_nose(concept: str) -> NDArray[np.bool_]:
        return np.asarray(region(concept) & (concept == "nose"))

    assert engine_probes(analyzer, items, regions_of=lambda _: only_nose)["in region"]["n"] == 4


def test_mentions_count_real_faces_on_which_something_is_named(toy_analyzer: Make, items: list[AskedFace], region: Make) -> None:
    tables = probed(toy_analyzer(lambda face, task: TWO if face in (0, 1, 2) else CLEAN), items, region)
    assert tables["mentions on reals"]["n"] == 4 and tables["mentions on reals"]["rate"] == 0.25
    assert tables["phrase swap"]["answers"] == 2


# --- All of them ------------------------------------------------------------------------------------------------------------------------------


def test_the_size_of_a_batch_changes_no_figure(toy_analyzer: Make, items: list[AskedFace], region: Make) -> None:
    def text(face: int, task: str) -> str:
        return TWO if face < 5 else "The <p> eyes </p> [SEG] are odd."

    tables = [probed(toy_analyzer(text), items, region, batch=batch) for batch in (1, 3, 8)]
    for other in tables[1:]:
        assert other.keys() == tables[0].keys()
        for name, row in other.items():
            assert row == pytest.approx(tables[0][name], abs=1e-6)


def test_faces_without_an_age_sample_are_left_out(toy_analyzer: Make, crop: Make, ask: Make, region: Make) -> None:
    items = [(crop(number), [ask(number, "det"), ask(number, "toe")]) for number in range(4)]
    tables = probed(toy_analyzer(lambda face, task: TWO), items, region)
    assert {name: row["n"] for name, row in tables.items()} == dict.fromkeys(tables, 0)
