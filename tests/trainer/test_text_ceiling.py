"""How far a perfect writer gets under another grammar."""

import shutil

import pytest

from trainer.text_ceiling import text_ceiling

ROWS = [
    {"part": part, "text": f"The {place} is smeared by {amount}%.", "held_out": f"Blurred by {amount}% is the <p> {place} </p> [SEG]."}
    for part, place, amount in (("report", "nose", 10), ("report", "left eye", 25), ("report", "mouth", 40), ("select", "chin", 5))
]


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
def test_a_perfect_writer_beats_one_that_speaks_of_other_faces() -> None:
    found = text_ceiling(ROWS, "report")
    assert found["ceiling"]["texts"] == 3 and found["chance"]["meteor"] < found["ceiling"]["meteor"] < 1


def test_a_part_without_texts_is_refused() -> None:
    with pytest.raises(ValueError, match="1 annotations of the part 'select' have a text; annotate more faces"):
        text_ceiling(ROWS, "select")
