"""A second grammar, for evaluation alone: the same claims in other words, with no template of `grammar` in it and no training text made from it.

Where that one says what a place is like (softer, too red), this one says what a quantity does there (sharpness drops, a surplus of red content). Its
forms follow from the reach, the comparison and the place in the answer; its quantities from what was measured, how strongly, and on what. A system
that learned facts scores here as well; one that learned sentences does not.

Slots: `{q}` the quantity, `{v}` drops 20%, `{k}` a 20% drop, `{l}` where, `{r}` what it is held against, `{s}` the
subject, `{a}` soft, `{c}` softer, `{n}` 20%. A capital begins a sentence; any other word is a verb that agrees with the subject.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from engines import fict
from engines.claims import KINDS, Bearing, Claim, Finding, Kind, Measurement, Steady, agree, holds, is_plural
from engines.prompts import PHRASE, PHRASE_END, SEG

FORMS: dict[bool, tuple[tuple[str, ...], ...]] = {
    False: (
        ("{Q} {v} {l}, {c} than {r}", "{L} {q} {v}, too {a}", "{L} it gets {c}, {q} {v} from {r}", "{Q} {v} {l}, now {a}",
         "It is {c} {l} than {r}, by {n}", "{K} leaves {s} {a}", "{L}, unlike {r}, {q} {v}", "{Q} {v} and {s} {looks} {a}",
         "Seen against {r}, {q} {v} {l}", "{K} spoils {s}: too {a}"),
        ("{S} {comes} {c} than {r}: {q} {v}", "Next {is} {s}, {a} by {k}", "{K} sets {s} against {r}", "{S} {gets} {a} as {q} {v}",
         "{Q} of {s} {v}, {c} than {r}", "{S} {is} {a} since {q} {v}", "{Q} {v} from {r} to {s}", "{S} {turns} too {a}, {q} {v}",
         "{K} divides {r} and {s}", "{L} we see {k}"),
        ("From {r} to {s}, {q} {v}", "{Q} {v}, hence {s} {appears} {a}", "{K} contrasts {s} with {r}", "{S} {has} {k}, {a} to see",
         "{S}, {c} than {r}, {shows} {k}", "Too {a}, {s} {has} {k}", "{S} {differs}: {q} {v} past {r}", "{K} renders {s} {a}",
         "{R} aside, {q} {v} {l}", "{S} {suffers} from {k}"),
        ("{S} {stays} {c} than {r}, {q} {v}", "{Q} {l} {v}, which looks {a}", "{Q} {v} once {s} {meets} {r}", "{S} {is} also {a}, {q} {v}",
         "{Q} {v} between {r} and {s}", "{S} {remains} {a} for {k}", "{S} beside {r} {shows} {k}", "{L} remains {k}, too {a}",
         "{S} {runs} {c} than {r}, {k}", "In closing, {s} {looks} {a}: {q} {v}"),
    ),
    True: (
        ("{C} than {r}, {s} {has} {k}", "{S} {looks} too {a}, {k}", "{Q} of {s} {v} against {r}", "{K} makes {s} {a}",
         "{S} {is} {c} than {r}, {k}", "{Q} {v}, so {s} {looks} {a}", "{K} marks {s} against {r}", "{L}, {q} {v}",
         "{S} {shows} {k} over {r}", "{L} one sees {k}, too {a}"),
        ("{Q} {v} as one goes from {r} to {s}", "{S}, {a} to see, {gets} {k}", "{C} than {r}, {s} {gets} {k}", "After that {q} {v} {l}",
         "{Q} {v} {l} but not on {r}", "{S} {gets} {k}, hence {a}", "{S} {parts} with {r} as {q} {v}", "{S} {comes} out {a}, {q} {v}",
         "{R} and {s} disagree: {q} {v}", "{S} {is} {a} through {k}"),
        ("{K} tells {s} from {r}", "{Q} {l} {v}: too {a}", "With {k}, {s} {departs} from {r}", "{S} {grows} {a} with {k}",
         "{Q} {v} {l}, {c} than {r}", "As {q} {v}, {s} {turns} {a}", "{S} {leaves} {r} behind, {q} {v}", "With {k}, {s} {is} too {a}",
         "{Q} of {s} {v} past {r}", "{S} {suffers} {k}, all too {a}"),
        ("Set against {r}, {s} {has} {k}", "Lastly {q} {l} {v}, too {a}", "{S} {stays} {c} than {r}: {k}", "{S} {remains} too {a}, {q} {v}",
         "{Q} {v} on the way from {r} to {s}", "{K} remains {l}, {a} to see", "Beyond {r}, {q} {l} {v}", "{S} {keeps} {a} as {q} {v}",
         "In closing {q} {v} from {r} to {s}", "At the end, {s} {turns} {a}, {q} {v}"),
    ),
}  # fmt: skip
"""False: of detail and border, True: of light and colour. Rows: first, second, third, later. Columns: the whole, most, part, the whole with a second
finding, the whole at a degree above 1; each against the surroundings, then the usual."""
UNTOLD = (
    ("{L} content is new, yet every quantity keeps to its range", "{L} content is foreign", "Pixels {l} were substituted"),
    ("{S} {was} replaced, nothing measurable", "{S} {was} partly rebuilt", "New pixels sit {l}"),
    ("Nothing measurable, but {s} {is} foreign", "Rebuilt pixels cover {s}", "Foreign pixels lie {l}"),
    ("At the end, substitution shows {l}", "Lastly content {l} is rebuilt", "A small substitution sits {l}"),
)
"""Rows as above; the whole, most, part."""


class Quantity(NamedTuple):
    """The words of one measurement."""

    names: str
    """Skin, hair, eyes and mouth, other places; each to degree 1, then above."""
    around: str
    """What it is held against where no concept fills the surroundings."""


QUANTITIES: dict[Measurement, Quantity] = {
    "sharpness_ratio": Quantity("detail|focus|line detail|definition|sharpness|clarity|fine detail|resolution", "the surroundings"),
    "noise_ratio": Quantity("grain|noise|speckle|sensor noise|granularity|noisiness|grain level|noise level", "nearby pixels"),
    "texture_ratio": Quantity("texture|relief|pattern|structure|surface pattern|variation|patterning|surface relief", "the vicinity"),
    "brightness_shift": Quantity("light|brightness|shine|glow|lightness|luminosity|illumination|light level", "what adjoins"),
    "red_shift": Quantity("red|redness|pink|red tone|rosiness|red content|pinkness|crimson tone", "adjoining pixels"),
    "yellow_shift": Quantity("warmth|yellow|gold|amber|yellowness|yellow content|golden tone|amber tone", "areas near"),
    "boundary_gradient": Quantity("border|outline|rim|contour|rim contrast|edge contrast|border contrast|edge strength", "either side"),
    "asymmetry": Quantity("asymmetry|imbalance|mismatch|mirror error|unevenness|lopsidedness|inequality|skew", "the face in general"),
}
RISES = {
    False: ("rises|climbs|soars", "climbs|jumps|surges", "grows|mounts|leaps", "gains|swells|spikes"),
    True: ("increases|strengthens|intensifies", "advances|deepens|floods in", "strengthens|builds|takes over", "lifts|increases|bursts out"),
}
FALLS = {
    False: ("drops|sinks|plunges", "dips|falls|slumps", "falls|shrinks|collapses", "slips|drops|crashes"),
    True: ("decreases|weakens|drains", "recedes|ebbs|fails", "weakens|wanes|runs dry", "fades|decreases|dies away"),
}
"""Verbs of detail and border, then of light and colour, by place in the answer; to degree 1, degree 2, above."""
LESS = ("{n} less {q}", "{n} reduced {q}", "{q} cut by {n}", "{n} missing {q}")
MORE = ("{n} more {q}", "{n} extra {q}", "{q} raised by {n}", "{n} added {q}")
ALSO = {
    False: (", {c} by {n} too", ", likewise {n} {c}", ", and {k}", ", {q} {n} off"),
    True: (", with {k}", ", too {a} by {n}", ", {a} by {n} too", ", and {q} {v}"),
}
"""Second findings of detail and border, then of light and colour, by place in the answer."""

LOOKS: dict[Kind, str] = {
    "softer": "soft|blurred|fuzzy|woolly|dull|glassy|hazy|misty", "sharper": "sharp|harsh|crisp|wiry|keen|etched|clear-cut|stark",
    "smoother": "smooth|waxy|sleek|silky|slick|polished|clean|empty", "noisier": "grainy|noisy|sandy|gritty|busy|speckled|dusty|peppered",
    "flatter": "flat|plain|limp|matted|bland|blank|faint|washed out", "rougher": "rough|coarse|shaggy|tousled|lumpy|craggy|bumpy|cluttered",
    "darker": "dark|gloomy|deep|black|dim|murky|dusky|shady", "brighter": "bright|shiny|light|bleached|glossy|gleaming|lit up|glaring",
    "redder": "red|flushed|auburn|coppery|pink|rosy|reddish|crimson", "paler": "greenish|green|drained|faded|bloodless|sallow|sickly|olive",
    "warmer": "warm|yellow|blond|golden|amber|orange|sunny|yellowish", "cooler": "cool|blue|ashen|grey|bluish|icy|cold|violet",
    "hard_edge": "outlined|carved|ruled off|framed|bordered|incised|bounded|severed",
    "smeared_edge": "feathered|smeared|blended|frayed|melted|dissolved|edgeless|merged",
    "uneven": "uneven|lopsided|irregular|ragged|unmatched|crooked|unbalanced|unequal",
}  # fmt: skip
"""What a place looks like then: order as in `Quantity.names`."""
COMPARATIVES: dict[Kind, str] = {
    "softer": "softer|blurrier|fuzzier|more woolly|duller|more glassy|hazier|more misty",
    "sharper": "sharper|harsher|crisper|more wiry|keener|more etched|clearer|starker",
    "smoother": "smoother|waxier|sleeker|silkier|slicker|more polished|cleaner|emptier",
    "noisier": "grainier|noisier|sandier|grittier|busier|more speckled|dustier|more peppered",
    "flatter": "flatter|plainer|limper|more matted|blander|blanker|fainter|more washed out",
    "rougher": "rougher|coarser|shaggier|more tousled|lumpier|craggier|bumpier|more cluttered",
    "darker": "darker|gloomier|deeper|blacker|dimmer|murkier|duskier|shadier",
    "brighter": "brighter|shinier|lighter|more bleached|glossier|more gleaming|more lit up|more glaring",
    "redder": "redder|more flushed|more auburn|more coppery|pinker|rosier|more reddish|more crimson",
    "paler": "less red|greener|more drained|more faded|less pink|more sallow|less reddish|more olive",
    "warmer": "warmer|yellower|blonder|more golden|more amber|more orange|sunnier|more yellowish",
    "cooler": "cooler|bluer|more ashen|greyer|more bluish|icier|colder|more violet",
    "hard_edge": "more outlined|more carved|more ruled off|more framed|more bordered|more incised|more bounded|more severed",
    "smeared_edge": "more feathered|more smeared|more blended|more frayed|more melted|more dissolved|vaguer|more merged",
    "uneven": "less even|more lopsided|less regular|more ragged|less matched|more crooked|less balanced|more unequal",
}

TYPES = {
    "identity_swap": "Identity swap: {T}.", "expression_swap": "Expression swap: {T}.", "swap": "Swap or reenactment: {T}.",
    "attribute_manipulation": "Attribute edit: {T}.", "entire_synthesis": "Full synthesis: {T}.",
}  # fmt: skip
CLOSED_CLAIMS = 2
"""The family is said after so many claims; longer answers go without."""

AGREE: dict[Measurement, str] = {
    "sharpness_ratio": "sharpness measures like that of a camera picture", "noise_ratio": "noise stays uniform as out of one sensor",
    "texture_ratio": "relief measures as it would in life", "brightness_shift": "brightness follows the lamp or sky",
    "red_shift": "redness is that of living skin", "yellow_shift": "the yellow component is ordinary",
    "boundary_gradient": "contours meet without any cut", "asymmetry": "each side mirrors its counterpart",
}  # fmt: skip
FARTHEST = ("{Q} strays most, by little", "{Q} strays somewhat, inside the ordinary range", "{Q} strays far, yet without company")

_SLOT = re.compile(r"\{(\w+)\}")
_COLUMN = {"whole": 0, "most": 2, "part": 4, "patch": 4}
_ON = ("on", "across", "over", "at")
_MAINLY = ("mainly", "mostly", "chiefly", "largely")
_BORDERING: dict[Bearing, str] = {"above": "above it", "below": "below it", "beside": "next to it", "around": "around it"}


def explain(forgery_type: str, claims: Sequence[Claim]) -> str:
    """Return markup: one sentence a claim, in order; where they are few, the family comes last."""
    closing = [TYPES[forgery_type].replace("{T}", _listed(claims))] if len(claims) <= CLOSED_CLAIMS else []
    return " ".join([*_sentences(claims), *closing])


def explain_area(claims: Sequence[Claim], query: str | None) -> str:
    """Return markup that answers for a region (a FICT id) or a box (None)."""
    area = f"the {fict.concepts()[query].phrase}" if query else "the marked box"
    return " ".join([*_sentences(claims), f"Tampering within {area} ({_listed(claims)})."])


def clean(steady: Steady) -> str:
    """Return the answer for a face without artifacts; it marks no phrase and names no concept."""
    return f"Authentic: {_calm(steady)}"


def clean_area(query: str | None, steady: Steady) -> str:
    """Return the answer for a region or box without artifacts; it names at most the region asked for."""
    area = f"On the {fict.concepts()[query].phrase}" if query else "Inside the marked box"
    return f"{area}, {_calm(steady)}"


def _sentences(claims: Sequence[Claim]) -> list[str]:
    return [_sentence(claim, min(index, len(_ON) - 1)) for index, claim in enumerate(claims)]


def _sentence(claim: Claim, row: int) -> str:
    subject, plural = _subject(claim, row)
    slots = {"s": subject, "l": f"{_ON[row]} {subject}"}
    if claim.kind == "altered":
        form = UNTOLD[row][_COLUMN[claim.reach] // 2]
    else:
        column = _column(claim)
        form = FORMS[claim.finding.unit == "levels"][row][column + (claim.finding.basis == "usual")]
        slots |= _measured(claim.finding, claim.concept, row) | {"r": _held_against(claim)}
    text = _filled(form, slots, plural)
    if claim.also is not None:
        text += _filled(ALSO[claim.also.unit == "levels"][row], _measured(claim.also, claim.concept, row), plural)
    return f"{_capital(text)}."


def _column(claim: Claim) -> int:
    if claim.reach == "whole":
        return 6 if claim.also is not None else 8 if claim.finding.degree >= 2 else 0
    return _COLUMN[claim.reach]


def _measured(finding: Finding, concept: str, row: int) -> dict[str, str]:
    measurement, sign = KINDS[finding.kind]
    choice = 2 * _stuff(concept) + (finding.degree >= 2)
    verb, measure = (RISES, MORE) if sign > 0 else (FALLS, LESS)
    amount = "slightly" if finding.degree == 0 else f"{finding.amount}{'%' if finding.unit == 'percent' else ' levels'}"
    slots = {"q": QUANTITIES[measurement].names.split("|")[choice], "n": amount, "a": LOOKS[finding.kind].split("|")[choice]}
    moves = verb[finding.unit == "levels"][row].split("|")[min(max(finding.degree - 1, 0), 2)]
    return slots | {
        "v": f"{moves} {amount}",
        "c": COMPARATIVES[finding.kind].split("|")[choice],
        "k": _SLOT.sub(lambda match: slots[match[1]], measure[row]).replace("by slightly", "slightly"),
    }


def _stuff(concept: str) -> int:
    """0 skin, 1 hair, 2 eyes and mouth, 3 other."""
    path = set(fict.concepts()[concept].path)
    if path & {fict.BOUNDARY, "scene", "neck"}:
        return 3
    return 1 if path & {"hair", "eyebrows"} else 2 if path & {"eyes", "mouth"} else 0


def _subject(claim: Claim, row: int) -> tuple[str, bool]:
    marked, plural = f"{PHRASE} {claim.phrase} {PHRASE_END} {SEG}", is_plural(claim.concept)
    if claim.reach == "whole":
        return f"the {marked}", plural
    if claim.place is not None and claim.place not in claim.phrase.split():
        place = f"{'middle' if claim.place == 'centre' else claim.place} "
        if claim.reach == "patch":
            return f"one point of the {place}{marked}", False
        return f"the {f'{_MAINLY[row]} ' if claim.reach == 'most' else ''}{place}{marked}", plural
    shares = ("one point of", "some of", "almost half", "half of", "most of")
    return f"{shares[sum(claim.extent >= step for step in (0.2, 0.35, 0.5, 0.65))]} the {marked}", plural and claim.reach != "patch"


def _held_against(claim: Claim) -> str:
    if claim.kind == "uneven" or not claim.neighbours or (len(claim.neighbours) == 2 and claim.reach == "whole"):
        return QUANTITIES[KINDS[claim.kind].measurement].around
    phrases = [fict.concepts()[name].phrase for name in claim.neighbours]
    if len(phrases) == 2:
        return f"{phrases[1]} and {phrases[0]}"
    if holds(claim.neighbours[0], claim.concept):
        return f"other {phrases[0]} areas"
    it = "them" if is_plural(claim.concept) else "it"
    return f"the {phrases[0]} {_BORDERING[claim.bearing].removesuffix('it') + it}"


def _listed(claims: Sequence[Claim]) -> str:
    findings = [finding for claim in claims for finding in claim.findings]
    names = ("content" if each.kind == "altered" else QUANTITIES[KINDS[each.kind].measurement].names.split("|")[0] for each in findings)
    return ", ".join(list(dict.fromkeys(names))[:3])


def _calm(steady: Steady) -> str:
    first, second = steady.agree[:2]
    farthest = FARTHEST[min(int(steady.departure), 2)].replace("{Q}", _capital(QUANTITIES[steady.farthest].names.split("|")[0]))
    return f"{AGREE[first]}; {AGREE[second]}. {farthest}."


def _filled(form: str, slots: dict[str, str], plural: bool) -> str:
    slots = slots | {_capital(slot): _capital(words) for slot, words in slots.items()}
    return _SLOT.sub(lambda match: slots[match[1]] if match[1] in slots else agree(match[1], plural), form)


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
