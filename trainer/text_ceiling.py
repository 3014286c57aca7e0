"""The most that a text metric can give: what is true of each face, said in the training grammar, against the same said in the held-out grammar.

A model that learned every fact and every habit of its training texts writes exactly this. Beside it stands chance: the texts against other faces'.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from engines.prompts import parse_markup
from trainer.faces import Part
from trainer.fifa_bench.text import self_bleu_4, text_scores


def text_ceiling(rows: Sequence[Mapping[str, Any]], part: Part, *, seed: int = 0) -> dict[str, dict[str, float]]:
    """METEOR, CIDEr, ROUGE-L and self-BLEU-4 of the annotations of a part, by "ceiling" and "chance"; needs Java.

    Raises ValueError where fewer than two have a text.
    """
    told = [(row["text"], parse_markup(row["held_out"])[0]) for row in rows if row["part"] == part and row["text"] and row["held_out"]]
    if len(told) < 2:
        raise ValueError(f"{len(told)} annotations of the part {part!r} have a text; annotate more faces")
    written, references = ([pair[side] for pair in told] for side in (0, 1))
    exchanged = references.copy()
    random.Random(seed).shuffle(exchanged)
    return {
        name: {**text_scores(written, [[text] for text in wanted])._asdict(), "self_bleu_4": self_bleu_4(written), "texts": float(len(told))}
        for name, wanted in (("ceiling", references), ("chance", exchanged))
    }
