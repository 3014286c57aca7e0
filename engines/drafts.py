"""Guesses of what an answer says next, out of earlier answers: the decode loop runs them along with the last token and keeps what is right.

Explanations of one engine repeat each other's turns of phrase, so what followed the same few tokens last time follows them again more often than not.
A guess decides nothing: the model's own choice does, as it would without (greedy speculative decoding, arXiv:2302.01318; copying from text at hand
instead of a second model, arXiv:2304.04487).
"""

from collections.abc import Sequence

GUESSES = 3
"""Tokens guessed a step on a CPU: `python -m bench.decode --guesses 0 1 2 3 4 5`."""
CONTEXT = 3
"""Tokens that a guess looks back on, at most."""
MAX_KNOWN = 20_000
"""At this size, about 3 MB, everything is forgotten and learned anew."""


class Drafts:
    """Which token came last time behind the same few tokens; the longest context that is known speaks. Not thread-safe."""

    def __init__(self, guesses: int = GUESSES) -> None:
        """At most `guesses` at once; 0 neither guesses nor learns."""
        self.guesses = guesses
        self.known: dict[tuple[int, ...], int | None] = {}
        """1 to `CONTEXT` tokens to the one behind them; None is the end of an answer."""

    def learn(self, ids: Sequence[int]) -> None:
        """Take in a whole answer, without the token that ends it."""
        if not self.guesses:
            return
        if len(self.known) >= MAX_KNOWN:
            self.known.clear()
        for length in range(1, CONTEXT + 1):
            self.known.update((tuple(ids[at - length : at]), token) for at, token in enumerate((*ids, None)) if at >= length)

    def guess(self, ids: Sequence[int], room: int) -> list[int]:
        """What may come behind the answer so far: at most `room` tokens, and none that nothing speaks for."""
        context, guessed = tuple(ids[-CONTEXT:]), list[int]()
        while len(guessed) < min(room, self.guesses) and (token := self._behind(context)) is not None:
            guessed.append(token)
            context = (*context, token)[-CONTEXT:]
        return guessed

    def _behind(self, context: tuple[int, ...]) -> int | None:
        return next((self.known[context[at:]] for at in range(len(context)) if context[at:] in self.known), None)
