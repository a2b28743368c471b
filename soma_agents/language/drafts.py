"""Drafts of how a reply goes on, looked up in what was said before, to be checked all in one step.

Prompt lookup (A. Saxena, "Prompt Lookup Decoding", 2023): where the last tokens stood before, what
followed there may follow again. The model's choice stays what it is: of a draft only what it would
have chosen anyway is kept, so a wrong one costs a little time and nothing else.
"""

from collections.abc import Sequence
from itertools import takewhile

LONGEST = 6
"""Tokens that are compared, to know how far to trust a place."""
SHORTEST = 2
"""Tokens that must have stood before."""
SIZES = (4, SHORTEST)
"""So many are looked up, the most first."""
PRIOR = (0.45, 0.6, 0.7, 0.8, 0.9)
"""How often the next token was right, by how many tokens had stood before, from SHORTEST on
(`python -m bench.lookup`, `right_by_match`)."""
PRIOR_WEIGHT = 4.0
MEMORY = 0.9
"""Share of what was learnt about this reply that a step leaves."""
MOST_ROWS = 16
"""Rows of a step with drafts at most."""
FIRST_ROWS = 8
"""Rows beyond the first ones cost twice as much (`python -m bench.lookup`, `step_ms`), so that with as
many replies no draft pays."""


class Drafter:
    """What may follow in one reply, and how far that can be trusted."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._tokens = list(prompt)
        self._behind: dict[int, dict[tuple[int, ...], int]] = {}
        """By length: where what followed such tokens begins; the newest are not in it yet."""
        for size in SIZES:
            grams = zip(*(self._tokens[i:] for i in range(size)), strict=False)
            self._behind[size] = dict(zip(grams, range(size, len(prompt)), strict=False))
        self._guess: list[int] = []
        self.matched = SHORTEST
        """Tokens that had stood before where the guess was found, LONGEST at most."""
        self._right = self._tried = 0.0

    def push(self, token: int) -> None:
        """The reply's next token; it tells how good the last guess was, checked or not."""
        for size, behind in self._behind.items():
            behind[tuple(self._tokens[-size:])] = len(self._tokens)
        self._tokens.append(token)
        if self._guess:
            right = self._guess.pop(0) == token
            self._right = MEMORY * self._right + right
            self._tried = MEMORY * self._tried + 1
            if not right:
                self._guess = []

    def guess(self, most: int) -> list[int]:
        """What may follow, `most` tokens at most; nothing if the last tokens are new."""
        found = (behind.get(tuple(self._tokens[-size:])) for size, behind in self._behind.items())
        start = next((place for place in found if place), None)
        if start is None:
            self._guess = []
        else:
            self.matched = self._stood_before(start)
            followed = self._tokens[start : start + max(most, 1)]
            # What goes beyond the newest token goes round: it repeats itself.
            self._guess = (followed * (most // len(followed) + 1))[:most]
        return self._guess

    def _stood_before(self, start: int) -> int:
        """How many of the last tokens, LONGEST at most, stood before `start`, too."""
        before = reversed(self._tokens[max(0, start - LONGEST) : start])
        pairs = zip(before, reversed(self._tokens), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def trust(self) -> float:
        """How likely a token of the guess is to be right, given those before it."""
        prior = PRIOR[self.matched - SHORTEST]
        return (prior * PRIOR_WEIGHT + self._right) / (PRIOR_WEIGHT + self._tried)


def worthwhile(drafters: Sequence[tuple[Drafter, int]], fixed_rows: int) -> list[list[int]]:
    """A draft for each, the number at most: the tokens whose chances outweigh the rows they cost.

    `fixed_rows` is what a step costs however few its rows are, in rows.
    """
    rows = len(drafters)
    guesses = [drafter.guess(min(most, MOST_ROWS - rows)) for drafter, most in drafters]
    chances = [
        (drafter.trust() ** place, at)
        for at, (drafter, _) in enumerate(drafters)
        for place in range(1, len(guesses[at]) + 1)
    ]
    lengths, expected = [0] * rows, float(rows)
    for chance, at in sorted(chances, reverse=True)[: MOST_ROWS - rows]:
        cost = fixed_rows + rows + max(0, rows - FIRST_ROWS)
        more = 1 if rows < FIRST_ROWS else 2
        if chance * cost <= expected * more:  # fewer tokens for the time than without it
            break
        lengths[at] += 1
        rows, expected = rows + 1, expected + chance
    return [guess[:length] for guess, length in zip(guesses, lengths, strict=True)]
