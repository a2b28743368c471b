"""Where tokens begin: the methods that need no learnt vocabulary.

Each function takes a `Script` and returns the ascending byte offsets at which tokens begin. Because
tokens lie between offsets, joining them gives the text back whatever the offsets are.

Words and grapheme clusters are those of Unicode Standard Annex 29, by `unicode_segmentation_rs`.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt
import unicode_segmentation_rs as unicode

from soma_agents.language.symbols.pieces import Offsets, starts_of, tokens_between
from soma_agents.language.symbols.text import utf8

CODE_POINTS = 0x110000
WORD_SIZE = 3
"""Grapheme clusters in a piece of the subword method."""
FREQUENT = 2
"""Times a word must stand in the text for the frequency method to leave it whole."""

Marks = npt.NDArray[np.bool_]


class Script:
    """A text, and where its code points, grapheme clusters and words begin, in bytes."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.data = utf8(text)
        self.points = np.frombuffer(text.encode("utf-32-le"), np.uint32)

    @cached_property
    def point_starts(self) -> Offsets:
        """(code points + 1,) byte at which each code point begins, and the end."""
        points = self.points
        lengths = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF).astype(np.int64)  # noqa: PLR2004 - RFC 3629, section 3
        return starts_of(lengths)

    @cached_property
    def graphemes(self) -> Offsets:
        """Byte at which each extended grapheme cluster begins."""
        return self._starts(unicode.graphemes(self.text, is_extended=True))

    @cached_property
    def segments(self) -> Offsets:
        """Byte at which each segment between two word boundaries begins."""
        return self._starts(unicode.split_word_bounds(self.text))

    def at(self, starts: Offsets) -> Marks:
        """(bytes,) true where one of the stretches begins."""
        begins = np.zeros(len(self.data), bool)
        begins[starts] = True
        return begins

    def merged(self, starts: Offsets, further: Offsets) -> Offsets:
        """Both lists of offsets in one, ascending, each once."""
        begins = self.at(starts)
        begins[further] = True
        return np.flatnonzero(begins)

    def marks(self, starts: Offsets, holds: Callable[[str], bool], *, every: bool) -> Marks:
        """For each stretch: whether its code points hold, any of them or every one."""
        held = self.points_that(holds)
        at = np.searchsorted(self.point_starts, starts)
        combine = np.logical_and if every else np.logical_or
        return combine.reduceat(held, at) if len(starts) else np.zeros(0, bool)

    def points_that(self, holds: Callable[[str], bool]) -> Marks:
        """(code points,) for which of them it holds."""
        seen = np.zeros(CODE_POINTS, bool)
        seen[self.points] = True
        for point in np.flatnonzero(seen).tolist():  # a few hundred, however long the text
            seen[point] = holds(chr(point))
        return seen[self.points]

    def _starts(self, parts: list[str]) -> Offsets:
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        return self.point_starts[starts_of(lengths)[:-1]]


def space(script: Script) -> Offsets:
    """Runs of white space and runs of anything else."""
    blank = script.points_that(str.isspace)
    return script.point_starts[:-1][_changes(blank)]


def word(script: Script) -> Offsets:
    """Words, and whatever stands between two words as one token."""
    starts = script.segments
    words = is_word(script, starts)
    return starts[words | _changes(words)]


def grammar(script: Script) -> Offsets:
    """Words, every mark of punctuation by itself, runs of white space."""
    starts = script.segments
    blank = script.marks(starts, str.isspace, every=True)
    return starts[~blank | _changes(blank)]


def character(script: Script) -> Offsets:
    """Grapheme clusters: what a reader calls one character."""
    return script.graphemes


def subword(script: Script) -> Offsets:
    """The tokens of `grammar`, words cut after every `WORD_SIZE` grapheme clusters."""
    starts = grammar(script)
    inside, owner = _graphemes_of(script, starts)
    first = np.searchsorted(inside, starts)
    place = np.arange(len(inside)) - first[owner]
    cut = (place % WORD_SIZE == 0) & is_word(script, starts)[owner]
    return script.merged(starts, inside[cut])


def frequency(script: Script) -> Offsets:
    """The tokens of `grammar`, words that stand fewer than `FREQUENT` times cut into characters."""
    starts = grammar(script)
    ids = tokens_between(script.data, starts).ids
    rare = (np.bincount(ids)[ids] < FREQUENT) & is_word(script, starts)
    inside, owner = _graphemes_of(script, starts)
    return script.merged(starts, inside[rare[owner]])


def is_word(script: Script, starts: Offsets) -> Marks:
    """Which stretches are words: those with a letter or a digit."""
    return script.marks(starts, str.isalnum, every=False)


def _graphemes_of(script: Script, starts: Offsets) -> tuple[Offsets, Offsets]:
    """Every grapheme cluster's first byte, and the stretch it lies in."""
    inside = script.graphemes
    begins = script.at(starts)
    return inside, np.cumsum(begins)[inside] - 1


def _changes(marks: Marks) -> Marks:
    """Where a mark differs from the one before; the first does."""
    changed = np.ones(len(marks), bool)
    np.not_equal(marks[1:], marks[:-1], out=changed[1:])
    return changed
