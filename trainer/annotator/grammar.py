"""The grammar that words an explanation: every sentence names one FICT concept, one kind of artifact and rests on one measurement.

Written form: `(a|b|)` is a choice, `{P}` the marked phrase, `{is}` and its like agree with the phrase in number, `{very}` and `{adj}` say the
measured strength. The grammar holds no facts of its own: what is claimed comes in as `Claim`s (`annotate`). Deterministic in its generator.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from engines import fict
from engines.prompts import PHRASE, PHRASE_END, SEG

Kind = Literal[
    "softer", "sharper", "smoother", "noisier", "flatter", "rougher", "darker", "brighter", "redder", "paler", "warmer", "cooler",
    "hard_edge", "smeared_edge", "uneven", "altered",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class KindSpec:
    """How one kind of artifact is measured and said."""

    measurement: str
    """Key of `engines.measure.UNREMARKABLE`, or 'difference' from the twin."""
    sign: int
    """+1 where the measurement rises with the artifact."""
    comparatives: str = ""
    """Goes into '... is X than its surroundings'; empty where nothing is compared."""
    nouns: str = ""
    """Goes into 'shows X'."""
    clauses: str = ""
    """A whole predicate."""


KINDS: dict[Kind, KindSpec] = {
    "softer": KindSpec(
        "sharpness_ratio", -1, "(softer|blurrier|less sharp|more blurred)", "(a {adj}blur|{adj}softness|a {adj}loss of detail|{adj}lack of focus)",
        "({has} lost fine detail|{is} out of focus|{lacks} crisp lines)",
    ),
    "sharper": KindSpec(
        "sharpness_ratio", 1, "(sharper|crisper|harder in line)", "({adj}sharpness|a {adj}crisp look|{adj}sharp detail)",
        "({is} sharper than a camera would give|{has} lines that are too crisp)",
    ),
    "smoother": KindSpec(
        "noise_ratio", -1, "(smoother|cleaner|less grainy)", "(a {adj}lack of grain|a {adj}clean surface|{adj}loss of noise)",
        "({has} lost the grain of a camera|{is} too clean|{lacks} natural noise)",
    ),
    "noisier": KindSpec(
        "noise_ratio", 1, "(noisier|grainier|more speckled)", "({adj}grain|{adj}noise|a {adj}fine speckle)",
        "({is} full of grain|{carries} noise of {its} own|{has} too much grain)",
    ),
    "flatter": KindSpec(
        "texture_ratio", -1, "(flatter|less textured)", "(a {adj}flat texture|{adj}lack of relief|a {adj}loss of texture)",
        "({has} little texture|{lacks} relief)",
    ),
    "rougher": KindSpec(
        "texture_ratio", 1, "(rougher|coarser in texture)", "(a {adj}rough texture|{adj}relief|a {adj}coarse pattern)",
        "({has} too much texture|{carries} a coarse pattern)",
    ),
    "darker": KindSpec(
        "brightness_shift", -1, "(darker|more shaded)", "(a {adj}dark cast|{adj}shade|a {adj}lack of light)",
        "({lacks} light|{gets} too little light)",
    ),
    "brighter": KindSpec(
        "brightness_shift", 1, "(brighter|lighter|more lit)", "(a {adj}bright cast|a {adj}shine|{adj}bright light)",
        "({gets} too much light|{shines} too much)",
    ),
    "redder": KindSpec("red_shift", 1, "(redder|rosier)", "(a {adj}red tint|a {adj}rosy tone)", "({has} a red tint|{is} flushed)"),
    "paler": KindSpec("red_shift", -1, "(paler|less red|greener)", "(a {adj}pale tint|a {adj}loss of red)", "({has} lost red|{is} too pale)"),
    "warmer": KindSpec(
        "yellow_shift", 1, "(warmer|yellower)", "(a {adj}warm tint|a {adj}yellow tone)", "({has} a yellow tint|{is} too warm in colour)",
    ),
    "cooler": KindSpec(
        "yellow_shift", -1, "(cooler|bluer|colder)", "(a {adj}cool tint|a {adj}blue tone)", "({has} a blue tint|{is} too cold in colour)",
    ),
    "hard_edge": KindSpec(
        "boundary_gradient", 1, "", "(a {adj}hard edge|a {adj}seam|a {adj}sharp border|a {adj}cut line)",
        "({ends} in a hard edge|{is} set off by a seam|{has} a border that is too clear)",
    ),
    "smeared_edge": KindSpec(
        "boundary_gradient", -1, "", "(a {adj}smeared border|a {adj}washed edge|a {adj}blend line)",
        "({melts} into the skin without an edge|{has} a smeared border|{fades} out where an edge should be)",
    ),
    "uneven": KindSpec(
        "asymmetry", 1, "", "(a {adj}mismatch of both sides|a {adj}break of symmetry)",
        "({does} not mirror the other side|{breaks} the symmetry of the face|{is} uneven from side to side)",
    ),
    "altered": KindSpec(
        "difference", 1, "", "(a sign of editing|a changed shape|a trace of editing|redrawn detail)",
        "({looks} redrawn|{does} not belong to this face|{looks} changed)",
    ),
}  # fmt: skip

_AROUND = "(the skin|the area|the parts|the surface|what is|all that is) (around {it}|near {it}|beside {it}|next to {it}|close to {it}|close by)"

_COMPARED = (
    f"The {{P}} ({{is}}|{{looks}}|{{appears}}|{{seems}}) {{very}}{{X}} than {_AROUND}.",
    f"(Compared with|Against|Unlike) {_AROUND}, the {{P}} ({{is}}|{{looks}}|{{appears}}|{{seems}}) {{very}}{{X}}.",
    f"(Note|See|Look at|Notice) the {{P}}: {{it_is}} {{very}}{{X}} than {_AROUND}.",
    f"(Also|Then|Here|Again|Next), the {{P}} ({{turns}} out|{{comes}} out|{{seems}}|{{looks}}) {{very}}{{X}} than {_AROUND}.",
    f"{{very}}{{X}} than {_AROUND} {{is}} the {{P}}.",
    "(It|This) is {very}{X} (in|at|on) the {P} than (in|at|on) (the skin|the area|the parts) (nearby|close by|around|beside).",
)
_SHOWN = (
    "The {P} ({shows}|{has}|{reveals}|{carries}) {X}.",
    "(There is|One finds|You can see|We see|One can see|Here is) {X} (in|at|on|over|across) the {P}.",
    "(In|At|On|Over|Across) the {P} (there is|one finds|we see|one can see) {X}.",
    "(In|At|On|Over|Across) the {P}, {X} (stands out|is visible|can be seen|betrays the change|gives it away).",
    "{X} (marks|betrays|affects|covers) the {P}(| here).",
    "What (betrays|marks|gives away) the {P} is {X}.",
    "(Another|One|A) (sign|clue|trace|hint) (is|comes from|lies in) the {P} with {X}.",
    "(With|By|Through) {X}, the {P} {stands} (out|apart).",
    "(Look|See|Notice) how {X} (marks|affects|covers) the {P}.",
)
_STATED = (
    "The {P} {X}.",
    "(Here|Moreover|Also|Besides|Then|Again), the {P} {X}.",
    "(It seems that|Notice how|Clearly,|One sees that|See how|We see that|Note that) the {P} {X}.",
    "(Seen closely|On inspection), the {P} {X}.",
    "The {P} {X}(, which is unusual|, unlike in a photo|, and that is not natural| here).",
)

_OPENINGS = {
    "identity_swap": (
        "(This face|The face) (shows signs of|points to|looks like|suggests) an identity swap.",
        "(Another person|Someone else) (was|has been) (pasted|blended) into this (face|head).",
        "The identity of (this|the) face (was|has been) swapped.",
    ),
    "expression_swap": (
        "(This face|The face) (shows signs of|points to|suggests) (reenactment|an expression swap).",
        "The expression (was|has been) (changed|driven by another face).",
    ),
    "swap": (
        "(This face|The face) (shows signs of|points to|suggests) a (face swap or reenactment|swap or reenactment).",
        "A face swap or reenactment (is likely|left its traces|explains what we see).",
        "(Swapped|Reenacted) (content|parts) (seems|appears) to (cover|fill) (this|the) face.",
        "(Probably|Likely) (this is|we see) a (face swap|swap) or reenactment.",
    ),
    "attribute_manipulation": (
        "(This face|The face) (shows signs of|points to|suggests) (an attribute edit|edited attributes).",
        "(Some features|Parts) of (this|the) face (were|have been) (edited|retouched|changed).",
        "An (edit|attribute edit) (was made|can be seen|left traces) here.",
    ),
    "entire_synthesis": (
        "(This|The) (whole face|face) (is|appears to be|seems) (synthetic|generated|made by a machine).",
        "(A generator|A network) (made|drew) (this|the) (face|whole face).",
        "(Nothing here|No part of it) was (photographed|taken by a camera).",
    ),
}
_CLEAN = (
    "No (trace|sign) of (manipulation|editing) (is visible|can be seen|was found) (on|in) this face(|: {C}).",
    "This face (looks|appears|seems) (real|genuine|untouched)(|; {C}).",
    "(Nothing|No area) (here|on this face) (points to|suggests|hints at) (manipulation|an edit|a fake)(|, as {C}).",
    "(The|This) (photo|picture|image) (seems|appears) (genuine|untouched)(|: {C}).",
    "(We find|There is) no (artifact|manipulation) (on|in) (this|the) face(|, {C}).",
)
_CLEAN_REASONS = (
    "(skin|texture), (edges|colour) and (light|grain) (agree|are consistent|fit together)",
    "(all parts|its parts|the features) (fit together|belong together|agree with each other)",
    "(sharpness|grain|colour) is (even|consistent) (across|over) the (skin|face)",
)

_CONTINUERS = ("Also", "Then", "Moreover", "Besides", "Another", "Again", "Next")
"""A first sentence does not start like this."""

STRONG = 2.0
"""From this many standard deviations on a departure is called clear, below it slight."""

_PLURAL_ENDS = ("eyes", "eyebrows", "cheeks", "ears", "temples", "canthi", "eyelids", "corners", "accessories", "items", "feet", "teeth")
_AGREEMENT = {
    "is": "are", "was": "were", "has": "have", "does": "do", "its": "their", "it": "them", "it_is": "they are",
    **{f"{verb}s": verb for verb in ("look", "appear", "seem", "show", "reveal", "turn", "come", "lack", "get", "shine", "end", "melt", "fade")},
    **{f"{verb}s": verb for verb in ("break", "stand")},
    "carries": "carry",
}  # fmt: skip
_CHOICE = re.compile(r"\(([^()]*)\)")
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing an explanation says, and how strongly it was measured."""

    concept: str
    kind: Kind
    strength: float
    """In standard deviations of the measurement over real faces."""


def explain(rng: np.random.Generator, forgery_type: str, claims: Sequence[Claim]) -> str:
    """Return markup: an opening that names the family (always with one or two claims, else in half), then one sentence a claim, in order."""
    sentences = []
    if len(claims) <= 2 or (len(claims) == 3 and rng.random() < 0.5):
        sentences.append(_capital(_choose(rng, _pick(rng, _OPENINGS[forgery_type]))))
    for claim in claims:
        sentence = _sentence(rng, claim)
        while not sentences and sentence.startswith(_CONTINUERS):
            sentence = _sentence(rng, claim)
        sentences.append(sentence)
    return " ".join(sentences)


def clean(rng: np.random.Generator) -> str:
    """Return an answer for a face without artifacts; it marks no phrase."""
    reason = _choose(rng, _pick(rng, _CLEAN_REASONS))
    return _capital(_choose(rng, _pick(rng, _CLEAN)).replace("{C}", reason))


def is_plural(concept: str) -> bool:
    """Whether the concept's phrase takes a plural verb."""
    return fict.concepts()[concept].phrase.split()[-1] in _PLURAL_ENDS


def _sentence(rng: np.random.Generator, claim: Claim) -> str:
    spec = KINDS[claim.kind]
    forms = [(_SHOWN, spec.nouns), (_STATED, spec.clauses)] + ([(_COMPARED, spec.comparatives)] * 2 if spec.comparatives else [])
    frames, words = forms[int(rng.integers(len(forms)))]
    text = _choose(rng, _pick(rng, frames).replace("{X}", words))
    strong = claim.strength >= STRONG
    adverb = _choose(rng, "(clearly |visibly |much ||)" if strong else "(somewhat |slightly |a bit ||)")
    adjective = _choose(rng, "(clear |strong ||)" if strong else "(slight |faint |minor ||)")
    plural = is_plural(claim.concept)

    def fill(match: re.Match[str]) -> str:
        slot = match[1]
        if slot == "P":
            return f"{PHRASE} {fict.concepts()[claim.concept].phrase} {PHRASE_END} {SEG}"
        if slot in ("very", "adj"):
            return adverb if slot == "very" else adjective
        return _AGREEMENT[slot] if plural else slot.replace("_", " ")

    return _capital(_SLOT.sub(fill, text))


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _choose(rng: np.random.Generator, pattern: str) -> str:
    """Resolve every choice, innermost first."""
    while (match := _CHOICE.search(pattern)) is not None:
        pattern = pattern[: match.start()] + _pick(rng, match[1].split("|")) + pattern[match.end() :]
    return pattern


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
