"""Whether a rewritten explanation still says what was measured, all of it and nothing else: the check behind `rewrite`.

Each sentence is held against the claims whose places it marks (a sentence that marks none belongs to the one before). The check knows words, not
meanings, and errs on the side of refusal.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal, NamedTuple

from engines import fict, grammar
from engines.claims import KINDS, OPPOSITE, Claim, Kind, agree
from engines.prompts import PHRASE, PHRASE_END, SEG, Span, parse_markup
from trainer.annotator import held_out_grammar

Reason = Literal[
    "no_answer", "not_plain", "markup_open", "too_long", "unbound_concept", "dropped_concept", "order", "flipped_side", "changed_kind",
    "dropped_kind", "invented_number",
]  # fmt: skip


class Refusal(NamedTuple):
    """Why a rewrite is not taken."""

    reason: Reason
    detail: str
    """The word or phrase that decided, for the log of a developer."""


WORDS_A_CLAIM, WORDS_ASIDE = 32, 24

GENERIC = frozenset((
    "upper", "lower", "inner", "outer", "right", "left", "center", "middle", "mid", "main", "front", "top", "side", "all", "zone", "line", "tip",
    "base", "face", "surround", "under", "root", "scene", "head", "feet", "items",
))  # fmt: skip
"""Words of FICT phrases that are no part of a face by themselves."""
ANATOMY = frozenset((
    "lip", "brow", "lash", "eyelash", "beard", "moustache", "mustache", "scalp", "throat", "skull", "shoulder", "eyeball", "wrinkle", "pore",
    "tooth",
))  # fmt: skip
SAME = {
    "eyebrow": "brow", "nasal": "nose", "canthi": "canthus", "teeth": "tooth", "eyelash": "lash", "mustache": "moustache", "nosetip": "nose",
}  # fmt: skip
DIRECTIONS = {
    **{word: word for word in ("right", "left", "upper", "lower", "inner", "outer", "above", "below")},
    "top": "upper", "bottom": "lower", "beneath": "below", "underneath": "below", "rightward": "right", "leftward": "left",
}  # fmt: skip
VIEWERS = frozenset(("viewer", "viewers", "observer", "observers", "onlooker"))
"""Right and left are the subject's: who speaks of a viewer means other sides."""

POLAR: dict[Kind, str] = {
    "softer": "softly blurry unsharp unfocused", "sharper": "sharply crispy oversharp", "smoother": "smoothly plastic", "noisier": "noisily",
    "flatter": "flatly textureless", "rougher": "roughly coarsely", "darker": "darkly underexposed shadowy",
    "brighter": "brightly overexposed luminous",
    "redder": "redly ruddy", "paler": "pale paler", "warmer": "warmly", "cooler": "coolly", "hard_edge": "hard-edged", "smeared_edge": "smudged",
    "uneven": "asymmetric asymmetrical",
}  # fmt: skip
"""Everyday words beside those of the two grammars."""
GENUINE = frozenset(("genuine", "authentic", "untouched", "unaltered", "unedited", "unmanipulated", "pristine"))
FAMILIES = frozenset((
    "identity", "expression", "reenactment", "reenacted", "swap", "swapped", "attribute", "attributes", "synthesis", "synthetic", "generated",
    "generator", "deepfake",
))  # fmt: skip
NEGATORS = frozenset((
    "less", "not", "no", "never", "without", "lacks", "lack", "lacking", "loses", "lose", "losing", "lost", "isn't", "aren't", "nor", "fewer",
))  # fmt: skip
MORE = frozenset((
    "more", "extra", "added", "raised", "higher", "greater", "excess", "increased", "stronger", "heavier",
))  # fmt: skip
LESS = NEGATORS | frozenset((
    "reduced", "missing", "cut", "weaker", "lower", "decreased", "thin", "thinner",
))  # fmt: skip
RISING, FALLING = (
    frozenset(verb for rows in table.values() for row in rows for verb in row.split("|") if " " not in verb)
    for table in (held_out_grammar.RISES, held_out_grammar.FALLS)
)
QUALIFIERS = frozenset(("level", "content", "tone"))
COMMA = ","
"""Stands among the words for what ends a clause: commas and their like, and marked phrases."""
REACH = 2
"""Words before and after a word that can turn its meaning."""

SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen",
    "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred")
NUMBERS = {word: value for value, word in enumerate(SMALL)} | {word: 10 * value for value, word in enumerate(TENS, 2)}
MULTIPLES = frozenset((
    "twice", "thrice", "double", "doubles", "doubled", "triple", "triples", "tripled", "dozen", "dozens", "thousand", "fifth", "tenth", "quarter",
    "quarters", "thirds",
))  # fmt: skip
SHARES = frozenset(("half", "third"))
"""May say how much of a place is masked, where it is neither all nor a spot."""

_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*|\d+(?:\.\d+)?")
_TOKEN = re.compile(_WORD.pattern + "|,")
_END = re.compile(r"[.!?]+(?:\s+|$)")


def verify(markup: str, claims: Sequence[Claim], *, source: str | None = None, query: str | None = None) -> Refusal | None:
    """Return why a rewrite is refused, or None.

    Args:
        markup: the rewrite.
        claims: what it must say, in order.
        source: the grammar's markup; a family of forgery is only named where it names it.
        query: the FICT id asked for, in an answer to a region: it may be named.
    """
    if not markup.isascii() or not markup.isprintable() or re.search(r"https?:|www\.|[*_`{}\\|#]", markup):
        return Refusal("not_plain", markup[:40])
    try:
        text, spans = parse_markup(markup)
    except ValueError:
        return Refusal("markup_open", markup[:40])
    marks = [markup.count(token) for token in (PHRASE, PHRASE_END, SEG)]
    if set(marks) != {len(spans)} or re.search(r"[<>\[\]]", text):
        return Refusal("markup_open", f"{marks} marks for {len(spans)} phrases")
    if len(_WORD.findall(text.lower())) > WORDS_A_CLAIM * len(claims) + WORDS_ASIDE:
        return Refusal("too_long", f"{len(text)} characters")
    return _phrases(spans, claims) or _family(text, source) or _sentences(text, spans, claims, query)


def _phrases(spans: Sequence[Span], claims: Sequence[Claim]) -> Refusal | None:
    said, wanted = [span.phrase for span in spans], [claim.phrase for claim in claims]
    mirrored = {_mirrored(phrase) for phrase in wanted}
    for phrase in said:
        if phrase not in wanted:
            return Refusal("flipped_side" if phrase in mirrored else "unbound_concept", phrase)
    for phrase in wanted:
        if phrase not in said:
            return Refusal("dropped_concept", phrase)
    return Refusal("order", ", ".join(said)) if said != wanted else None


def _family(text: str, source: str | None) -> Refusal | None:
    allowed = set(_WORD.findall(source.lower())) if source is not None else FAMILIES
    for word in _WORD.findall(text.lower()):
        if word in GENUINE or (word in FAMILIES and word not in allowed):
            return Refusal("changed_kind", word)
    return None


def _sentences(text: str, spans: Sequence[Span], claims: Sequence[Claim], query: str | None) -> Refusal | None:
    """Check each sentence against its claims; every claim must be measured in the sentences that are its own."""
    measured: set[int] = set()
    current: list[int] = list(range(len(claims)))
    for start, end in _bounds(text):
        own = [index for index, span in enumerate(spans) if start <= span.start < end]
        current = own or current
        words = _TOKEN.findall(re.sub("[;:()]", COMMA, _outside(text, start, end, spans).lower()))
        about = [claims[index] for index in current]
        refusal = _named(words, about, query) or _sided(words, about, query) or _kinds(words, about) or _numbers(words, about, len(claims))
        if refusal is not None:
            return refusal
        measured |= {index for index in current if claims[index].kind == "altered" or _names_kind(words, claims[index].kind)}
    missing = [claim.phrase for index, claim in enumerate(claims) if index not in measured]
    return Refusal("dropped_kind", missing[0]) if missing else None


def _bounds(text: str) -> list[tuple[int, int]]:
    ends = [match.end() for match in _END.finditer(text)]
    if not ends or ends[-1] < len(text):
        ends.append(len(text))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _outside(text: str, start: int, end: int, spans: Sequence[Span]) -> str:
    """The sentence without its marked phrases."""
    kept, position = [], start
    for span in spans:
        if start <= span.start < end:
            kept.append(text[position : span.start])
            position = min(span.end, end)
    return f" {COMMA} ".join([*kept, text[position:end]])


def _named(words: Sequence[str], about: Sequence[Claim], query: str | None) -> Refusal | None:
    allowed = {_stem(word) for name in _ids(about, query) for word in fict.concepts()[name].phrase.split()}
    for word in _parts(words):
        if _stem(word) in _anatomy() and _stem(word) not in allowed:
            return Refusal("unbound_concept", word)
    return None


def _sided(words: Sequence[str], about: Sequence[Claim], query: str | None) -> Refusal | None:
    allowed = {word for name in _ids(about, query) for word in fict.concepts()[name].phrase.split()}
    allowed = {DIRECTIONS.get(word, word) for word in allowed}
    allowed |= {word for claim in about for word in (claim.place, claim.bearing) if word is not None}
    for word in _parts(words):
        if word.removesuffix("'s") in VIEWERS or (word in DIRECTIONS and DIRECTIONS[word] not in allowed):
            return Refusal("flipped_side", word)
    return None


def _parts(words: Sequence[str]) -> list[str]:
    return [part for word in words for part in word.split("-")]


def _kinds(words: Sequence[str], about: Sequence[Claim]) -> Refusal | None:
    claimed = {finding.kind for claim in about for finding in claim.findings}
    for index, word in enumerate(words):
        before = _clause(words[max(0, index - REACH) : index][::-1])
        after = [other for other in words[index + 1 : index + 1 + REACH] if other not in QUALIFIERS][:1]
        kinds = _polarity(bool(NEGATORS & set(before))).get(word) or _moved(word, before, after)
        if kinds and not kinds & claimed:
            return Refusal("changed_kind", word)
    return None


def _clause(words: Sequence[str]) -> list[str]:
    """The words up to the first comma, colon or mark."""
    return list(words[: next((index for index, word in enumerate(words) if word == COMMA), len(words))])


def _moved(word: str, before: Sequence[str], after: Sequence[str]) -> frozenset[Kind]:
    """The kinds that a measured trait speaks for where it is said to be more or less, or to rise or fall."""
    moves = [other in MORE for other in before if other in MORE | LESS] + [other in RISING for other in after if other in RISING | FALLING]
    return _traits_moved(moves[0]).get(word, frozenset()) if moves else frozenset()


def _numbers(words: Sequence[str], about: Sequence[Claim], total: int) -> Refusal | None:
    amounts = {finding.amount for claim in about for finding in claim.findings if finding.kind != "altered"}
    shares = SHARES if any(claim.reach in ("part", "most") for claim in about) else frozenset()
    for word in _parts(words):
        value = NUMBERS.get(word, float(word) if word[0].isdigit() else None)
        if value is not None and value not in amounts and not (word in NUMBERS and 0 < value <= max(1, total)):
            return Refusal("invented_number", word)
        if word in MULTIPLES or (word in ("half", "third") and word not in shares):
            return Refusal("invented_number", word)
    return None


def _names_kind(words: Sequence[str], kind: Kind) -> bool:
    polar = [_polarity(negated) for negated in (False, True)]
    return any(word in _traits(kind) or any(kind in table.get(word, ()) for table in polar) for word in words)


# The words of the two grammars, sorted by what they mean.


@cache
def _polarity(negated: bool) -> dict[str, frozenset[Kind]]:
    """Word -> kinds that it speaks for; after a negator, those that 'less' of it speaks for."""
    plain: dict[str, set[Kind]] = {}
    less: dict[str, set[Kind]] = {}
    for kind in KINDS:
        for expression in _expressions(kind):
            words = _WORD.findall(expression)
            for word in words:
                if word not in _neutral() | RISING | FALLING:
                    (less if NEGATORS & set(words) else plain).setdefault(word, set()).add(kind)
    for word, kinds in plain.items():
        less.setdefault(word, set()).update(OPPOSITE[kind] for kind in kinds if kind in OPPOSITE)
    return {word: frozenset(kinds) for word, kinds in (less if negated else plain).items()}


@cache
def _traits(kind: Kind) -> frozenset[str]:
    """Words for what the kind's measurement measures: 'focus', 'grain'."""
    quantity = held_out_grammar.QUANTITIES[KINDS[kind].measurement].names.split("|")
    masses = grammar.WORDS[kind].masses.split("|")
    found = {word for expression in (*quantity, *masses, grammar.TRAITS[KINDS[kind].measurement].name) for word in _WORD.findall(expression)}
    return frozenset(found - _FUNCTION)


@cache
def _traits_moved(more: bool) -> dict[str, frozenset[Kind]]:
    """Trait -> the kinds that more of it (or less) amounts to."""
    found: dict[str, set[Kind]] = {}
    for kind, (measurement, sign) in KINDS.items():
        for mass in grammar.WORDS[kind].masses.split("|"):
            amount, *trait = _WORD.findall(mass)
            meant = kind if (amount == "more") == more else OPPOSITE.get(kind)
            if meant is not None:
                found.setdefault(trait[-1], set()).add(meant)
        if (sign > 0) == more:
            for word in _WORD.findall(held_out_grammar.QUANTITIES[measurement].names):
                found.setdefault(word, set()).add(kind)
    return {word: frozenset(kinds) for word, kinds in found.items() if word not in _FUNCTION}


@cache
def _neutral() -> frozenset[str]:
    return frozenset(word for kind in KINDS for word in _traits(kind)) | _FUNCTION


def _expressions(kind: Kind) -> Iterable[str]:
    words = grammar.WORDS[kind]
    tables = (words.comparatives, words.adjectives, words.participles, words.verbs, words.nouns, held_out_grammar.LOOKS[kind])
    listed = "|".join((*tables, held_out_grammar.COMPARATIVES[kind])).split("|")
    return [*listed, *(agree(verb, True) for verb in words.verbs.split("|")), *POLAR[kind].split()]


_FUNCTION = frozenset((
    "a", "more", "less", "lost", "added", "of", "off", "out", "up", "in", "into", "on", "by", "from", "away", "with", "to", "turns", "turn",
    "takes", "take", "goes", "go", "gains", "gain", "gets", "loses", "fills", "fades", "stands", "sinks", "ends", "end", "cuts", "breaks", "break",
    "apart", "through", "raised", "cut", "cast", "level", "tone", "share", "content", "line",
))  # fmt: skip


@cache
def _anatomy() -> frozenset[str]:
    named = {word for concept in fict.concepts().values() for word in concept.phrase.split()} - GENERIC
    return frozenset(_stem(word) for word in named | ANATOMY)


def _stem(word: str) -> str:
    single = SAME.get(word, word)
    single = single[:-1] if single.endswith("s") and not single.endswith("ss") else single
    return SAME.get(single, single)


def _ids(about: Sequence[Claim], query: str | None) -> set[str]:
    return {name for claim in about for name in (claim.concept, *claim.neighbours)} | ({query} if query is not None else set())


def _mirrored(phrase: str) -> str:
    swap = {"right": "left", "left": "right"}
    return " ".join(swap.get(word, word) for word in phrase.split())
