"""FICT: counts, paths and phrases of the concept tree."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from engines import fict

SHARED = Path(os.environ.get("FIFA_SHARED", Path(__file__).parents[3] / "shared"))


@pytest.mark.parametrize("depth", [5, 14, 33, 112])
def test_each_depth_divides_the_face_into_that_many_cells(depth: fict.Depth) -> None:
    cells = fict.cells(depth)
    assert len(cells) == len(set(cells)) == depth


def test_every_cell_of_every_depth_holds_each_atom_exactly_once() -> None:
    known = fict.concepts()
    for depth in (5, 14, 33):
        atoms = Counter(atom for cell in fict.cells(depth) for atom in known[cell].atoms)
        assert atoms == Counter(fict.cells(112))


def test_paths_start_at_a_group_and_end_at_the_concept() -> None:
    for name, concept in fict.concepts().items():
        assert concept.path[-1] == concept.id == name
        assert concept.path[0] in (*fict.TREE, fict.BOUNDARY)


def test_ring_has_eight_arcs_outside_the_tree() -> None:
    assert len(fict.BOUNDARY_ARCS) == 8
    assert not set(fict.BOUNDARY_ARCS) & set(fict.cells(112))


@pytest.mark.parametrize(
    ("concept", "phrase"),
    [
        pytest.param("right_lower_cheek", "right lower cheek", id="side in front stays"),
        pytest.param("nasal_ala_left", "left nasal ala", id="side behind comes in front"),
        pytest.param("hair_all", "hair", id="collective is silent"),
        pytest.param("boundary_jaw_left", "left jaw face boundary", id="arc"),
    ],
)
def test_phrase_puts_the_subjects_side_first(concept: str, phrase: str) -> None:
    assert fict.concepts()[concept].phrase == phrase


def test_phrases_that_differ_name_different_places_and_lead_back_to_the_concept() -> None:
    for name, concept in fict.concepts().items():
        found = fict.concepts()[fict.by_phrase()[concept.phrase]]
        assert found.id == name or set(found.atoms) == set(concept.atoms)


def test_left_and_right_concepts_come_in_pairs() -> None:
    phrases = set(fict.by_phrase())
    for phrase in phrases:
        if phrase.startswith("right "):
            assert phrase.replace("right ", "left ", 1) in phrases


def test_every_concept_has_its_own_twin_in_the_mirror() -> None:
    for name, concept in fict.concepts().items():
        twin = fict.concepts()[fict.mirrored(name)]
        assert fict.mirrored(twin.id) == name and twin.level == concept.level
        assert {fict.mirrored(atom) for atom in concept.atoms} == set(twin.atoms)
        assert (twin.id == name) == (not {"left", "right"} & set(name.split("_")))


def test_tree_is_that_of_the_shared_proposal() -> None:
    source = SHARED / "facts" / "fict.json"
    if not source.exists():
        pytest.skip(f"{source} is not here; set FIFA_SHARED to compare with the proposal")
    proposal = json.loads(source.read_text())
    assert list(fict.cells(112)) == proposal["atoms"]
