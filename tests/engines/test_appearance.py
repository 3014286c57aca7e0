"""What tracks tell people apart by."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engines.analyzer import APPEARANCE_CELLS, APPEARANCE_SEED, Analyzer
from engines.contracts import APPEARANCE_SIZE


def cosine(one: bytes, other: bytes) -> float:
    """Of two appearances."""
    a, b = (np.frombuffer(value, np.int8).astype(float) for value in (one, other))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def embeds(analyzer: Analyzer, count: int, seed: int = 0) -> NDArray[np.float32]:
    """Random features of faces, (B, P, C)."""
    grid = analyzer.manifest.preprocess.grid
    return np.random.default_rng(seed).normal(size=(count, grid * grid, 24)).astype(np.float32)


def test_every_analysis_says_what_its_face_looks_like(analyzer: Analyzer, crops: Callable[[int], NDArray[np.uint8]]) -> None:
    analyses = Analyzer(analyzer._bundle, appearance=True).analyze(crops(3), explain=["never"] * 3)
    assert [len(analysis.appearance) for analysis in analyses] == [APPEARANCE_SIZE] * 3
    assert len({analysis.appearance for analysis in analyses}) == 3


def test_where_nobody_follows_people_nothing_is_kept_of_a_face(analyzer: Analyzer, crops: Callable[[int], NDArray[np.uint8]]) -> None:
    assert {analysis.appearance for analysis in analyzer.analyze(crops(2), explain=["never"] * 2)} == {b""}


def test_an_appearance_does_not_depend_on_the_faces_beside_it(analyzer: Analyzer) -> None:
    together = embeds(analyzer, 5)
    assert analyzer.appearances(together)[3] == analyzer.appearances(together[3:4])[0]


def test_an_appearance_is_the_drawn_projection_of_how_cells_depart_from_their_mean(analyzer: Analyzer) -> None:
    seen = embeds(analyzer, 1)
    grid, cells = analyzer.manifest.preprocess.grid, APPEARANCE_CELLS
    cells_PC = seen.reshape(cells, grid // cells, cells, grid // cells, -1).mean((1, 3)).reshape(cells * cells, -1)
    departures_F = (cells_PC - cells_PC.mean(0)).ravel()
    projected_A = departures_F @ np.random.RandomState(APPEARANCE_SEED).standard_normal((departures_F.size, APPEARANCE_SIZE)).astype(np.float32)
    expected_A = np.rint(projected_A * (127 / np.abs(projected_A).max()))
    np.testing.assert_allclose(np.frombuffer(analyzer.appearances(seen)[0], np.int8), expected_A, atol=1)


def test_what_a_face_has_everywhere_is_no_part_of_its_appearance(analyzer: Analyzer) -> None:
    seen = embeds(analyzer, 1)
    tinted = seen + np.random.default_rng(1).normal(0, 3, (1, 1, seen.shape[2])).astype(np.float32)
    assert cosine(analyzer.appearances(seen)[0], analyzer.appearances(tinted)[0]) > 0.999
    assert abs(cosine(analyzer.appearances(seen)[0], analyzer.appearances(embeds(analyzer, 1, seed=9))[0])) < 0.7


def test_features_that_are_the_same_everywhere_have_a_blank_appearance(analyzer: Analyzer) -> None:
    assert analyzer.appearances(np.ones_like(embeds(analyzer, 1))) == [bytes(APPEARANCE_SIZE)]
