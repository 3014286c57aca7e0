"""What is drawn of a verdict lies where the verdict says, and nothing in it is believed before it is counted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from engines.contracts import Mask, MaskError, tight_box
from fifa_stream.records import EvidenceItem, ExplanationText, RunLengths
from fifa_stream.views import FaceView, decode_mask, measurements, origin, pieces


def run_lengths(mask_HW: NDArray[np.bool_]) -> RunLengths:
    mask = Mask.encode(mask_HW)
    return RunLengths(size=mask.size_hw, counts=mask.counts)


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_a_mask_comes_back_as_it_was_encoded(mask_HW: NDArray[np.bool_]) -> None:
    assert np.array_equal(decode_mask(run_lengths(mask_HW)), mask_HW)


@given(st.text(max_size=60) | st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=60), st.integers(-2, 50), st.integers(-2, 50))
def test_any_run_lengths_are_a_whole_mask_or_refused(counts: str, height: int, width: int) -> None:
    try:
        mask_HW = decode_mask(RunLengths(size=(height, width), counts=counts))
    except MaskError:
        return
    assert mask_HW.shape == (height, width)


def test_a_huge_mask_is_counted_before_it_is_made() -> None:
    with pytest.raises(MaskError, match="cover 0 of"):
        decode_mask(RunLengths(size=(1 << 40, 1 << 40), counts=""))


def test_the_box_of_a_mask_is_tight() -> None:
    mask_HW = np.zeros((10, 20), bool)
    assert tight_box(mask_HW) is None
    mask_HW[2:5, 7:9] = True
    assert tight_box(mask_HW) == (7, 2, 9, 5)


sides = st.floats(-1e6, 1e6)


@given(st.tuples(sides, sides, sides, sides), st.integers(1, 5000), st.integers(1, 5000))
def test_a_view_lies_in_its_frame_whatever_the_box(corners: tuple[float, float, float, float], width: int, height: int) -> None:
    x0, x1 = sorted(corners[:2])
    y0, y1 = sorted(corners[2:])
    view = FaceView.around((x0, y0, x1, y1), width=width, height=height)
    assert 0 <= view.left < view.right <= width and 0 <= view.top < view.bottom <= height
    assert 1 <= view.width <= 384 and 1 <= view.height <= 384


def item(span: tuple[int, int]) -> EvidenceItem:
    mask = RunLengths(size=(1, 1), counts="1")
    return EvidenceItem(id="0.0", phrase="", char_span=span, concept="", concept_path=(), mask=mask, mask_confidence=0, box=None)


@given(st.text(max_size=30), st.lists(st.tuples(st.integers(-5, 40), st.integers(-5, 40)), max_size=6))
def test_a_text_is_cut_and_never_changed(text: str, spans: list[tuple[int, int]]) -> None:
    cut = pieces(text, [item(span) for span in spans])
    assert "".join(part for part, _ in cut) == text
    assert all(text[slice(*spans[index])] == part for part, index in cut if index is not None)


def test_a_phrase_that_overlaps_an_earlier_one_stays_text() -> None:
    assert pieces("left eye and nose", [item((0, 8)), item((5, 12)), item((13, 17))]) == [("left eye", 0), (" and ", None), ("nose", 2)]


def test_a_measurement_stands_beside_what_real_faces_show_and_guessed_amounts_are_said_to_be() -> None:
    mask = RunLengths(size=(2, 2), counts="04")
    item = EvidenceItem(
        id="0.0", phrase="nose", char_span=(0, 4), concept="nose", concept_path=("nose",), mask=mask, mask_confidence=0.5, box=None,
        measured={"sharpness_ratio": 0.85, "asymmetry": 1.2}, usual={"sharpness_ratio": 1.09},
    )  # fmt: skip
    assert measurements(item) == [("sharpness ratio", "0.85 (usually 1.09)"), ("asymmetry", "1.2")]
    told = ExplanationText(text="The nose is flat.", markup="The <p> nose </p> [SEG] is flat.")
    assert [bool(origin(told.model_copy(update={"words": words}))) for words in ("decoded", "measured", "fixed", None)] == [True, False, False, False]
    assert origin(None) == ""
