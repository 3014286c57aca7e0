"""The Facial Image Concept Tree (FICT): 112 atoms under 33 sub-parts, 14 parts and 5 groups.

FICT is the vocabulary of every explanation (arXiv:2510.20531; the published list is not public, this tree is our proposal). Left and right are
always the subject's. The face-boundary ring is an overlay of 8 arcs outside the tree: identity swaps show at the blend line, which no atom isolates.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

Depth = Literal[5, 14, 33, 112]
"""How many cells the face is divided into: 5 groups, 14 parts, 33 sub-parts or 112 atoms."""


_EYEBALL = ("{s}_pupil", "{s}_iris", "{s}_sclera_inner", "{s}_sclera_outer")
_EYELIDS = ("{s}_upper_eyelid", "{s}_eyelid_crease", "{s}_lower_eyelid", "{s}_upper_lash_line", "{s}_lower_lash_line")
_CANTHI = ("{s}_inner_canthus", "{s}_outer_canthus")
_BROW = ("{s}_brow_inner", "{s}_brow_middle", "{s}_brow_outer")
_UNDER_EYE = ("{s}_tear_trough", "{s}_eye_bag", "{s}_crows_feet")
_CHEEK = ("{s}_cheekbone", "{s}_infraorbital_cheek", "{s}_mid_cheek", "{s}_lateral_cheek", "{s}_lower_cheek", "{s}_nasolabial_fold")
_JAW = ("{s}_marionette_zone", "{s}_jowl", "{s}_jawline", "{s}_jaw_angle")
_EAR = ("{s}_ear_helix", "{s}_ear_lobe")


def _side(side: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.replace("{s}", side) for name in names)


TREE: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "upper_face": {
        "forehead": {
            "forehead_main": (
                "forehead_upper_right",
                "forehead_upper_center",
                "forehead_upper_left",
                "forehead_lower_right",
                "forehead_lower_center",
                "forehead_lower_left",
            ),
            "glabella_zone": ("glabella",),
            "temples": ("temple_right", "temple_left"),
        },
        "eyebrows": {"right_eyebrow": _side("right", _BROW), "left_eyebrow": _side("left", _BROW)},
        "eyes": {
            f"{side}_{name}": _side(side, atoms)
            for side in ("right", "left")
            for name, atoms in (("eyeball", _EYEBALL), ("eyelids", _EYELIDS), ("canthi", _CANTHI))
        },
        "periorbital": {"right_under_eye": _side("right", _UNDER_EYE), "left_under_eye": _side("left", _UNDER_EYE)},
    },
    "mid_face": {
        "nose": {
            "nasal_bridge": ("nasal_root", "nasal_bridge_upper", "nasal_bridge_lower", "nasal_sidewall_right", "nasal_sidewall_left"),
            "nasal_lobule": ("nose_tip", "nasal_ala_right", "nasal_ala_left"),
            "nasal_base": ("nostril_right", "nostril_left", "columella", "alar_crease_right", "alar_crease_left"),
        },
        "cheeks": {"right_cheek": _side("right", _CHEEK), "left_cheek": _side("left", _CHEEK)},
    },
    "lower_face": {
        "mouth": {
            "upper_lip_skin": ("philtrum", "upper_lip_skin_right", "upper_lip_skin_left"),
            "upper_lip": ("upper_lip_right", "upper_lip_center", "upper_lip_left"),
            "lower_lip": ("lower_lip_right", "lower_lip_center", "lower_lip_left"),
            "mouth_corners": ("mouth_corner_right", "mouth_corner_left"),
            "mouth_interior": ("upper_teeth", "lower_teeth", "tongue", "oral_cavity"),
        },
        "chin_jaw": {
            "chin": ("labiomental_crease", "chin_center", "chin_right", "chin_left", "chin_tip"),
            "right_jaw": _side("right", _JAW),
            "left_jaw": _side("left", _JAW),
        },
    },
    "head_surround": {
        "hair": {"hair_all": ("hair_top", "hair_fringe", "hair_right_side", "hair_left_side")},
        "ears": {"right_ear": _side("right", _EAR), "left_ear": _side("left", _EAR)},
        "neck": {"neck_all": ("neck_front", "neck_right", "neck_left")},
    },
    "scene": {
        "accessories": {"worn_items": ("eyeglasses", "headwear", "jewellery")},
        "clothing": {"clothing_all": ("clothing",)},
        "background": {"background_all": ("background",)},
    },
}

BOUNDARY = "face_boundary"
BOUNDARY_ARCS: tuple[str, ...] = (
    "boundary_hairline_right",
    "boundary_hairline_center",
    "boundary_hairline_left",
    "boundary_temple_right",
    "boundary_temple_left",
    "boundary_jaw_right",
    "boundary_jaw_left",
    "boundary_chin",
)
"""The ring (face oval dilated in and out by 3 %), outside the 112: overlay concepts, not partition cells."""


@dataclass(frozen=True, slots=True)
class Concept:
    """One node of FICT: a group, part, sub-part or atom, or the boundary ring and its arcs."""

    id: str
    level: Literal["group", "part", "sub_part", "atom", "overlay"]
    path: tuple[str, ...]
    """Ids from the group down to this node, this node included."""
    atoms: tuple[str, ...]
    """The atoms (or arcs) below this node, in tree order; an atom holds itself."""

    @property
    def phrase(self) -> str:
        """The words an explanation uses: 'right lower cheek', always with the subject's side in front."""
        words = self.id.removeprefix("boundary_").split("_")
        side = [word for word in words if word in ("right", "left", "main")]
        rest = [word for word in words if word not in ("right", "left", "main", "all")]
        noun = " ".join(side + rest)
        return f"{noun} face boundary" if self.id.startswith("boundary_") else noun


def cells(depth: Depth) -> tuple[str, ...]:
    """The ids that divide the face at one depth, in tree order: len(cells(depth)) == depth."""
    if depth == 5:
        return tuple(TREE)
    parts = [part for group in TREE.values() for part in group.items()]
    if depth == 14:
        return tuple(name for name, _ in parts)
    sub_parts = [sub_part for _, part in parts for sub_part in part.items()]
    if depth == 33:
        return tuple(name for name, _ in sub_parts)
    return tuple(atom for _, atoms in sub_parts for atom in atoms)


@cache
def concepts() -> dict[str, Concept]:
    """Every concept by id, in tree order, the ring last.

    `clothing` and `background` are part and atom at once: they stand here as the atom, whose path still shows the part.
    """
    found: dict[str, Concept] = {}

    def add(level: Literal["group", "part", "sub_part", "atom", "overlay"], path: tuple[str, ...], atoms: tuple[str, ...]) -> None:
        found[path[-1]] = Concept(path[-1], level, path, atoms)

    for group, parts in TREE.items():
        add("group", (group,), tuple(a for part in parts.values() for sub in part.values() for a in sub))
        for part, sub_parts in parts.items():
            add("part", (group, part), tuple(a for sub in sub_parts.values() for a in sub))
            for sub_part, atoms in sub_parts.items():
                add("sub_part", (group, part, sub_part), atoms)
                for atom in atoms:
                    add("atom", (group, part, sub_part, atom), (atom,))
    add("overlay", (BOUNDARY,), BOUNDARY_ARCS)
    for arc in BOUNDARY_ARCS:
        add("overlay", (BOUNDARY, arc), (arc,))
    return found


def mirrored(concept_id: str) -> str:
    """The concept on the other side of the face; one that has no side is its own."""
    other = {"right": "left", "left": "right"}
    return "_".join(other.get(word, word) for word in concept_id.split("_"))


@cache
def by_phrase() -> dict[str, str]:
    """Concept id by the words that name it; where a part and its only sub-part share words ('hair'), the part."""
    return {concept.phrase: concept.id for concept in reversed(concepts().values())}
