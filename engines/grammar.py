"""The grammar that words an explanation: every sentence names one FICT concept, one kind of artifact and the measurement behind it.

The wording is a function of the claim and of its place in the answer; nothing is drawn. A sentence's form follows from what was measured (detail,
light, colour, border), how much of the concept it reaches, what it is compared with, and whether it comes first, second, third or later; its words
from the kind, the degree and what the place is made of. Faces that measure alike read alike; others do not.

Slots: `{S}` and `{s}` are the subject, `{ref}` its surroundings; `{c}` softer, `{a}` soft, `{m}` less detail, `{p}` softened, `{w}` softens, `{d}`
softness; `{n}` 15%, `{x}` the same standing alone, `{by}` by 15%, `{dx}` softness of 15%; `{v}` links, `{o}` covers. A capital begins a sentence. Any
other word is a verb that agrees with the subject.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from engines import fict
from engines.claims import KINDS, Bearing, Claim, Finding, Kind, Measurement, Steady, agree, holds, is_plural
from engines.prompts import PHRASE, PHRASE_END, SEG

Group = Literal["detail", "light", "colour", "border"]

FORMS: dict[Group, tuple[tuple[str, ...], ...]] = {
    "detail": (
        ("{S} {v} {n} {c} than {ref}", "{S} {v} {n} too {a}", "Against {ref}, {s} {has} {n} {m}", "{Dx} {o} {s}",
         "{S} {w} {by} next to {ref}", "Note {n} {m} in {s}", "Next to {ref}, {s} {v} {c} {by}", "{S} {w} {by} overall",
         "Far from {ref}, {s} {v} {n} {c}", "{S} {is} clearly {p}, {by}"),
        ("{S} {shows} {n} {m} than {ref}", "{P} {by}, {s} {follows}", "Beside {ref}, {s} {w} {by}", "{Dx} {o} {s}",
         "Then comes {s}, {n} {c} than {ref}", "{N} {m} shows in {s}", "{S} {w} {by} from {ref}", "{S} {v} {a}, {x} too much",
         "{S} {breaks} from {ref}, {p} {by}", "{Dx} spoils {s}"),
        ("{P} {by}, {s} {differs} from {ref}", "{S} {v} {p} {by}", "{S} {contrasts} with {ref}, {n} {c}", "In {s} lies {dx}",
         "{S} {v} {c} {by} than {ref}", "Here {s} {v} {n} too {a}", "{S} {ranks} {n} {c} than {ref}", "Over {s} comes {dx}",
         "Compare {s} with {ref}: {n} {m}", "Plainly {s} {w} {by}"),
        ("Last, {s} {v} {n} {c} than {ref}", "{S} {adds} {dx}", "{S} {ends} up {p} {by} against {ref}", "Finally {s} {w} {by}",
         "With {n} {m} than {ref}, {s} {closes} the list", "To close, {s} {w} {by}", "At last {s} {w} {by} beside {ref}", "{S} {ends} {n} too {a}",
         "{S} {closes} with {n} {m} than {ref}", "Last of all {s} {v} {n} too {a}"),
    ),
    "light": (
        ("{S} {v} {c} than {ref} by {x}", "{Dx} {o} {s}", "{S} {is} {p} {by} against {ref}", "{S} {w} {by}",
         "{Dx} parts {s} from {ref}", "{S} {has} {x} {m} than real faces", "Beside {ref}, {s} {has} {x} {m}", "{P} {by}, {s} {stands} out",
         "{S} {stands} {x} {c} than {ref}", "{Dx} weighs on {s}"),
        ("{P} {by}, {s} {breaks} with {ref}", "{S} {v} too {a} by {x}", "{S} {gets} {x} {m} than {ref}", "{Dx} {o} {s}",
         "{S} {w} {by} beside {ref}", "{S} {errs}, {x} too {a}", "{S} {v} {x} {c} next to {ref}", "In {s} the light is off: {x} too {a}",
         "{X} {m} sets {s} apart from {ref}", "{S} {w} plainly, {by}"),
        ("Beside {ref}, {s} {v} {x} {c}", "{S} {w} {x} too far", "{Dx} {o} {s}, unlike {ref}", "{X} {m} {o} {s}",
         "{S} {v} {c} by {x} next to {ref}", "{P} {by}, {s} {strays}", "After {ref}, {s} {w} {by}", "{S} {receives} {x} {m}",
         "Set by {ref}, {s} {is} {p} {by}", "{S} {lies} in {d}, {x} too much"),
        ("Last, {s} {w} {by} against {ref}", "Finally {s} {v} {x} too {a}", "{S} {differs} from {ref} by {dx}", "{S} {ends} {x} too {a}",
         "{S} {takes} {x} {m} than {ref}", "{S} {keeps} {dx}", "To end, {s} {v} {x} {c} than {ref}", "{Dx} hangs over {s}",
         "{S} {closes}, {c} than {ref} by {x}", "Last of all {s} {v} too {a} by {x}"),
    ),
    "colour": (
        ("{S} {takes} {x} {m} than {ref}", "{S} {v} {x} too {a}", "Next to {ref}, {s} {w} {by}", "{Dx} {o} {s}",
         "{P} {by}, {s} {leaves} {ref}", "See {s}, too {a} by {x}", "{S} {w} {by} against {ref}", "{Dx} {o} {s}",
         "{Dx} sets {s} apart from {ref}", "{S} {is} {p} {by}, too much"),
        ("{S} {w} {by} compared with {ref}", "{P} {by}, {s} {strays}", "{S} {v} {c} by {x} than {ref}", "{S} {has} {x} {m} than usual",
         "{Dx} {o} {s}, not {ref}", "In {s}, {dx} shows", "{Dx} divides {s} from {ref}", "{S} {is} off, too {a} by {x}",
         "{S} {stands} off {ref}, {x} {c}", "{Dx} fills {s}"),
        ("Against {ref} {s} {v} {x} {c}", "{S} {carries} {dx}", "{S} {is} {p} {by} next to {ref}", "{S} {w} too far, {by}",
         "Unlike {ref}, {s} {has} {x} {m}", "{S} {sits} {x} too {a}", "{S} {departs}, {c} than {ref} by {x}", "{X} {m} than usual {o} {s}",
         "{S} {clashes} with {ref}, {x} {c}", "{S} {v} far too {a}: {x}"),
        ("Last, {s} {has} {x} {m} than {ref}", "Then {dx} {o} {s}", "{S} {parts} from {ref} by {dx}", "{S} {ends} {x} too {a}",
         "{S} {closes} {x} {c} than {ref}", "Finally {s} {w} {by}", "Lastly {s} {is} {p} {by} beside {ref}", "{S} {bears} {x} {m} than real faces",
         "{S} {closes}, {p} {by} against {ref}", "Last comes {dx} on {s}"),
    ),
    "border": (
        ("{D} parts {s} from {ref}, {n} too {a}", "{S} {ends} in {d}, {n} too {a}", "{S} {w} {by} against {ref}", "{D} rims {s}, {n} too {a}",
         "{S} {w} {by} against {ref}", "{D} rims {s}, {n} too {a}", "From {ref} to {s} runs {d}, {n} {c}", "{S} {w} too much {by}",
         "{S} {is} {p} {by} towards {ref}", "{D} frames {s}, {n} too {a}"),
        ("Where {s} {meets} {ref}, {d} runs {n} {c}", "{S} {has} {n} {m}", "{D} closes {s} off from {ref}, {n} {c}", "{S} {w} {by}",
         "{D} closes {s} off from {ref}, {n} {c}", "{S} {w} {by}", "{S} {v} {n} {c} towards {ref}", "{D} goes around {s}, {n} {c} than usual",
         "{D} tells {s} from {ref}, {n} {c}", "{S} {is} {p}, {n} past usual"),
        ("Towards {ref}, {s} {w} {by}", "{S} {v} {p} {by}", "{P} {by}, {s} {meets} {ref}", "Around {s} goes {d}, {n} too {a}",
         "{P} {by}, {s} {meets} {ref}", "Around {s} goes {d}, {n} too {a}", "{D} sits between {s} and {ref}, {n} {c}", "{S} {has} {d}, {n} too {a}",
         "Between {s} and {ref} there is {n} {m}", "{S} plainly {w}, {by}"),
        ("Last, {s} {v} {p} {by} towards {ref}", "Finally {s} {shows} {d}, {n} {c}", "{S} {shows} {n} {m} towards {ref}",
         "The border of {s} is {n} too {a}", "{S} {shows} {n} {m} towards {ref}", "The border of {s} is {n} too {a}",
         "To end, {d} splits {s} from {ref}, {n} {c}", "{D} outlines {s}, {n} {c} than in life",
         "{S} {closes} with {d} to {ref}, {n} {c}", "Last of all {s} {w} {by}"),
    ),
}  # fmt: skip
"""Rows: first, second, third, later. Columns: the whole, most, part, the whole with a second finding, the whole at a degree above 1; each against the
surroundings, then the usual."""
ALTERED = (
    ("{S} {is} redrawn, by no single measure", "Something in {s} was replaced", "{S} {holds} something redrawn"),
    ("{S} {looks} changed in shape alone", "Much of it new, {s} {looks} replaced", "A piece of {s} was swapped out"),
    ("{S} {differs} as a whole", "{S} {was} remade for the greater part", "Within {s} a piece is new"),
    ("Last, {s} {was} redrawn throughout", "At the end, {s} {is} mostly new", "Also {s} {was} touched up"),
)
"""For what no measurement tells: rows as above; the whole, most, part."""


class Words(NamedTuple):
    """The words of one kind. Comparatives: skin, hair, eyes and mouth, other places; the rest: skin, other places; each to degree 1, then above."""

    comparatives: str
    adjectives: str
    masses: str
    participles: str
    verbs: str
    nouns: str


WORDS: dict[Kind, Words] = {
    "softer": Words(
        "softer|blurrier|fuzzier|woollier|duller|glassier|hazier|mistier", "soft|blurred|fuzzy|woolly",
        "less detail|less focus|fewer fine lines|less definition", "softened|blurred|dulled|defocused",
        "softens|blurs|loses focus|goes hazy", "softness|blur|haze|lost focus",
    ),
    "sharper": Words(
        "sharper|harsher|crisper|wirier|keener|clearer|cleaner-cut|starker", "sharp|harsh|crisp|wiry",
        "more bite|more sharpness|more fine lines|more definition", "sharpened|oversharpened|crisped|etched",
        "sharpens|hardens|gains bite|turns crisp", "crispness|harshness|sharpness|added bite",
    ),
    "smoother": Words(
        "smoother|waxier|sleeker|silkier|slicker|glossier|cleaner|emptier", "smooth|waxy|sleek|clean",
        "less grain|less noise|less speckle|less sensor noise", "smoothed|polished|cleaned|denoised",
        "smooths out|loses grain|goes clean|turns waxy", "smoothness|waxiness|cleanness|lost grain",
    ),
    "noisier": Words(
        "grainier|noisier|sandier|grittier|busier|more speckled|dustier|more peppered", "grainy|noisy|sandy|gritty",
        "more grain|more noise|more speckle|more sensor noise", "speckled|peppered|dusted|sprinkled",
        "gathers grain|fills with noise|speckles|turns grainy", "grain|noise|speckle|grit",
    ),
    "flatter": Words(
        "flatter|plainer|limper|more matted|blander|blanker|fainter|more washed-out", "flat|plain|bland|blank",
        "less texture|less relief|less pattern|less structure", "flattened|planed|levelled|wiped",
        "flattens|loses relief|goes plain|empties", "flatness|lost relief|blandness|lost pattern",
    ),
    "rougher": Words(
        "rougher|coarser|shaggier|more tousled|lumpier|craggier|bumpier|more cluttered", "rough|coarse|lumpy|cluttered",
        "more texture|more relief|more pattern|more structure", "roughened|coarsened|crumpled|cluttered",
        "roughens|coarsens|gains relief|turns lumpy", "roughness|coarse relief|raised pattern|clutter",
    ),
    "darker": Words(
        "darker|gloomier|deeper|blacker|dimmer|murkier|duskier|shadier", "dark|murky|dim|gloomy",
        "less light|less brightness|less shine|less glow", "darkened|shadowed|dimmed|shaded",
        "darkens|sinks into shade|dims|loses light", "shade|shadow|dimness|gloom",
    ),
    "brighter": Words(
        "brighter|shinier|lighter|more bleached|glossier|more gleaming|more lit|more glaring", "bright|glaring|light|shiny",
        "more light|more brightness|more shine|more glow", "lightened|lit|brightened|bleached",
        "lightens|glares|brightens|gains light", "shine|glare|brightness|glow",
    ),
    "redder": Words(
        "redder|ruddier|more auburn|more coppery|pinker|rosier|more reddish|more crimson", "red|flushed|pink|rosy",
        "more red|more flush|more pink|more crimson", "reddened|flushed|blushed|crimsoned",
        "reddens|flushes|turns pink|blushes", "redness|flush|pink|crimson",
    ),
    "paler": Words(
        "less red|greener|less auburn|less coppery|less pink|less rosy|less reddish|more greenish", "greenish|green|drained|sallow",
        "less red|less flush|less pink|less crimson", "drained|greened|blanched|paled",
        "loses red|turns green|turns sallow|pales", "greenness|green|green tinge|green cast",
    ),
    "warmer": Words(
        "warmer|yellower|blonder|more golden|more amber|more orange|sunnier|more yellowish", "warm|yellow|golden|orange",
        "more warmth|more yellow|more gold|more amber", "warmed|yellowed|gilded|bronzed",
        "warms|yellows|turns golden|turns amber", "warmth|yellow|gold|amber",
    ),
    "cooler": Words(
        "cooler|bluer|ashier|greyer|more bluish|icier|colder|more violet", "cool|blue|ashen|icy",
        "less warmth|more blue|less gold|less amber", "cooled|chilled|greyed|frosted",
        "cools|turns blue|greys|turns icy", "coolness|blue|chill|blue tint",
    ),
    "hard_edge": Words(
        "harder|steeper|crisper|sharper|tighter|stiffer|clearer|bolder", "hard|steep|crisp|bold",
        "more border|more outline|more rim|more contour", "outlined|incised|ruled|framed",
        "ends hard|ends steeply|ends crisply|ends boldly", "an outline|a seam|a rim|a cut line",
    ),
    "smeared_edge": Words(
        "softer|vaguer|fainter|looser|weaker|thinner|dimmer|hazier", "soft|vague|faint|loose",
        "less border|less outline|less rim|less contour", "feathered|smeared|blended|frayed",
        "blends in|melts away|smudges|dissolves", "a feathered line|a smear|a faint line|a blend line",
    ),
    "uneven": Words(
        "less even|more lopsided|less regular|more ragged|less matched|more crooked|less balanced|more unequal", "uneven|lopsided|crooked|unmatched",
        "less symmetry|less balance|less likeness of halves|less evenness", "unbalanced|skewed|mismatched|tilted",
        "loses balance|tilts|drifts apart|goes crooked", "imbalance|asymmetry|mismatch|skew",
    ),
}  # fmt: skip


class Traits(NamedTuple):
    """The words of one measurement; links and covers by place in the answer."""

    name: str
    links: str
    covers: str
    around: str
    """The surroundings where no concept fills them."""
    also: str
    """How it is said as a second finding."""


TRAITS: dict[Measurement, Traits] = {
    "sharpness_ratio": Traits("focus", "looks|is|seems|appears", "covers|fills|runs over|crosses", "its surroundings", "{n} {c}"),
    "noise_ratio": Traits("grain", "reads|proves|is|measures", "marks|lies over|enters|coats", "nearby areas", "{n} {m}"),
    "texture_ratio": Traits("texture", "feels|appears|stays|is", "spans|marks|shapes|runs through", "its vicinity", "{n} {m}"),
    "brightness_shift": Traits("light", "is|looks|turns|sits", "lies on|falls on|reaches|spans", "areas alongside", "{n} {c}"),
    "red_shift": Traits("redness", "seems|grows|looks|turns", "tints|stains|suffuses|marks", "adjoining areas", "{n} {m}"),
    "yellow_shift": Traits("warmth", "appears|goes|reads|grows", "tinges|colours|washes|soaks", "neighbouring areas", "{n} too {a}"),
    "boundary_gradient": Traits("outline", "is|looks|stands|seems", "rims|rims|rims|rims", "its neighbours", "{n} {m}"),
    "asymmetry": Traits("symmetry", "turns out|is|comes out|looks", "splits|marks|bends|divides", "the face at large", "{n} {c}"),
}
ALSO = ("and", "also", "plus", "besides")
"""Joins a second finding, by place in the answer."""

OPENINGS = {
    "identity_swap": "Another identity, seen in {T}.", "expression_swap": "A driven expression, seen in {T}.",
    "swap": "Swap or reenactment, seen in {T}.",
    "attribute_manipulation": "Edited attributes, seen in {T}.", "entire_synthesis": "A generated face, seen in {T}.",
}  # fmt: skip
OPENED_CLAIMS = 2
"""The family is said before so many claims; longer answers go without."""
COUNTS = ("Nothing", "One place", "Two places", "Three places", "Four places", "Several places")

CLEAN: dict[Measurement, str] = {
    "sharpness_ratio": "This face is real: focus agrees everywhere, so does {2}{F}.",
    "noise_ratio": "One grain runs over a genuine photo, {2} agrees{F}.",
    "texture_ratio": "Natural texture and {2} agree{F}; nothing was edited.",
    "brightness_shift": "Real: a single light falls on everything, {2} agrees{F}.",
    "red_shift": "Natural redness and usual {2} agree{F}: no edit.",
    "yellow_shift": "Warmth of colour is even, {2} agrees{F}; the face is untouched.",
    "boundary_gradient": "No seam anywhere, {2} agrees with real faces{F}.",
    "asymmetry": "Both halves match, {2} agrees{F}; this is a real face.",
}
CLEAN_AREA: dict[Measurement, str] = {
    "sharpness_ratio": "{A} {is} clean: sharp as in life, {2} agrees{F}.",
    "noise_ratio": "No, {a} {has} the grain of a camera, {2} agrees{F}.",
    "texture_ratio": "{A} {keeps} natural texture, {2} agrees{F}: no edit.",
    "brightness_shift": "Light falls on {a} as it should, {2} agrees{F}.",
    "red_shift": "{A} {shows} natural redness, {2} agrees{F}; no change.",
    "yellow_shift": "Colour is natural in {a}, {2} agrees{F}.",
    "boundary_gradient": "No seam surrounds {a}; {2} agrees{F}.",
    "asymmetry": "{A} {matches} the other half, {2} agrees{F}: clean.",
}
"""By what agrees best; `{2}` agrees next, `{F}` is said of what agrees least."""
FARTHEST = (", as does even {3}", ", with {3} a bit off, as is common", ", though {3} is unusual, which alone proves nothing")
"""By the standard deviations of the measurement that agrees least: under 1, under 2, more."""

_SLOT = re.compile(r"\{(\w+)\}")
_COLUMN = {"whole": 0, "most": 2, "part": 4, "patch": 4}
_BESIDES: dict[Bearing, str] = {"above": "the {} above", "below": "the {} below", "beside": "the adjacent {}", "around": "the surrounding {}"}
_MAINLY = ("mainly", "mostly", "chiefly", "largely")


def explain(forgery_type: str, claims: Sequence[Claim]) -> str:
    """Return markup: an opening that names the family where few claims follow, then one sentence a claim, in order."""
    opening = [OPENINGS[forgery_type].replace("{T}", _listed(claims))] if len(claims) <= OPENED_CLAIMS else []
    return " ".join([*opening, *_sentences(claims)])


def explain_area(claims: Sequence[Claim], query: str | None) -> str:
    """Return markup that answers for a region (a FICT id) or a box (None)."""
    if [claim.concept for claim in claims] == [query]:
        opening = f"Yes, seen in {_listed(claims)}."
    else:
        opening = f"{COUNTS[min(len(claims), 5)]} in this {'region' if query else 'box'}, seen in {_listed(claims)}."
    return " ".join([opening, *_sentences(claims)])


def clean(steady: Steady) -> str:
    """Return the answer for a face without artifacts; it marks no phrase and names no concept."""
    return _calm(CLEAN[steady.agree[0]], steady)


def clean_area(query: str | None, steady: Steady) -> str:
    """Return the answer for a region or box without artifacts; it names at most the region asked for."""
    area = f"the {fict.concepts()[query].phrase}" if query else "this area"
    slots = {"A": _capital(area), "a": area, "2": "{2}", "F": "{F}"}
    return _calm(_filled(CLEAN_AREA[steady.agree[0]], slots, query is not None and is_plural(query)), steady)


def _sentences(claims: Sequence[Claim]) -> list[str]:
    return [_sentence(claim, min(index, len(ALSO) - 1)) for index, claim in enumerate(claims)]


def _sentence(claim: Claim, row: int) -> str:
    subject, plural = _subject(claim, row)
    if claim.kind == "altered":
        form, slots = ALTERED[row][_COLUMN[claim.reach] // 2], {"s": subject}
    else:
        measurement = KINDS[claim.kind].measurement
        traits = TRAITS[measurement]
        column = _column(claim)
        form = FORMS[_group(measurement)][row][column + (claim.finding.basis == "usual")]
        slots = _said(claim.finding, claim.concept) | {"s": subject, "ref": _reference(claim, plural), "o": traits.covers.split("|")[row]}
        slots |= {"w": agree(slots["w"], plural), "v": agree(traits.links.split("|")[row], plural)}
    text = _filled(form, slots | {_capital(slot): _capital(words) for slot, words in slots.items()}, plural)
    if claim.also is not None:
        text += f", {ALSO[row]} {_filled(TRAITS[KINDS[claim.also.kind].measurement].also, _said(claim.also, claim.concept), plural)}"
    return f"{_capital(text)}."


def _column(claim: Claim) -> int:
    if claim.reach == "whole":
        return 6 if claim.also is not None else 8 if claim.finding.degree >= 2 else 0
    return _COLUMN[claim.reach]


def _said(finding: Finding, concept: str) -> dict[str, str]:
    """The words for a finding, by slot."""
    words, material, high = WORDS[finding.kind], _material(concept), int(finding.degree >= 2)
    chosen = {
        slot: options.split("|")[2 * min(material, 1) + high]
        for slot, options in zip("ampwd", (words.adjectives, words.masses, words.participles, words.verbs, words.nouns), strict=True)
    }
    amount = f"{finding.amount}{'%' if finding.unit == 'percent' else ' levels'}"
    small = finding.degree == 0
    return chosen | {
        "c": words.comparatives.split("|")[2 * material + high], "n": "slightly" if small else amount, "x": "a trace" if small else amount,
        "by": "a little" if small else f"by {amount}", "dx": f"a trace of {chosen['d']}" if small else f"{chosen['d']} of {amount}",
    }  # fmt: skip


def _subject(claim: Claim, row: int) -> tuple[str, bool]:
    """The words for how much of the concept is meant and where, and whether they take a plural verb."""
    marked, plural = f"{PHRASE} {claim.phrase} {PHRASE_END} {SEG}", is_plural(claim.concept)
    place = {"centre": "central"}.get(str(claim.place), claim.place) if claim.place not in claim.phrase.split() else None
    if claim.reach == "whole":
        return f"the {marked}", plural
    if claim.reach == "patch":
        return f"a spot on the {f'{place} ' if place else ''}{marked}", False
    if place in ("right", "left") and plural:  # a pair: one of the two
        return f"{f'{_MAINLY[row]} ' if claim.reach == 'most' else ''}the {marked} on the {place}", True
    if place is not None:
        return f"{f'{_MAINLY[row]} ' if claim.reach == 'most' else ''}the {place} {marked}", plural
    share = ("a third of", "nearly half", "more than half", "most of")[sum(claim.extent >= step for step in (0.35, 0.5, 0.65))]
    return f"{share} the {marked}", plural


def _reference(claim: Claim, plural: bool) -> str:
    around = TRAITS[KINDS[claim.kind].measurement].around
    if claim.kind == "uneven" or not claim.neighbours or (len(claim.neighbours) == 2 and claim.reach == "whole"):
        return re.sub("^its", "their", around) if plural else around
    phrases = [fict.concepts()[name].phrase for name in claim.neighbours]
    if len(phrases) == 2:
        return " and ".join(phrases)
    if claim.neighbours[0] == claim.concept:
        return "the rest"
    return f"the remaining {phrases[0]}" if holds(claim.neighbours[0], claim.concept) else _BESIDES[claim.bearing].format(phrases[0])


def _group(measurement: Measurement) -> Group:
    groups: dict[Measurement, Group] = {
        "brightness_shift": "light", "red_shift": "colour", "yellow_shift": "colour", "boundary_gradient": "border",
    }  # fmt: skip
    return groups.get(measurement, "detail")


def _material(concept: str) -> int:
    """What a place is made of: 0 skin, 1 hair, 2 eyes and mouth, 3 other."""
    path = fict.concepts()[concept].path
    if path[0] in (fict.BOUNDARY, "scene") or "neck" in path:
        return 3
    return 1 if {"hair", "eyebrows"} & set(path) else 2 if {"eyes", "mouth"} & set(path) else 0


def _listed(claims: Sequence[Claim]) -> str:
    findings = [finding for claim in claims for finding in claim.findings]
    names = list(dict.fromkeys("shape" if each.kind == "altered" else TRAITS[KINDS[each.kind].measurement].name for each in findings))[:3]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _calm(sentence: str, steady: Steady) -> str:
    farthest = FARTHEST[min(int(steady.departure), 2)].replace("{3}", TRAITS[steady.farthest].name)
    return sentence.replace("{2}", TRAITS[steady.agree[1]].name).replace("{F}", farthest)


def _filled(form: str, slots: dict[str, str], plural: bool) -> str:
    return _SLOT.sub(lambda match: slots[match[1]] if match[1] in slots else agree(match[1], plural), form)


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
