"""Texts in words as geometry counts them: folded, so that "Cats" and "cats" are one.

A word is a run of letters, marks and digits (Unicode categories L, M, N), an apostrophe between two of them
included; a Chinese or Japanese character is a word by itself. Texts are folded first: NFKC, then full case
folding (Unicode Standard, 3.13). Every text has at least one word: where there is none, all that is not
blank counts as one, and a blank text as `BLANK`.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from soma_agents.language.symbols.pieces import Tokens, starts_of, tokens_between
from soma_agents.language.symbols.segmentation import CODE_POINTS
from soma_agents.language.symbols.text import utf8

BLANK = "\u2423"
"""The word of a text that has nothing but blanks."""
SPACE, OTHER, JOINT, LETTER, ALONE = range(5)
"""Kinds of code point, in an order that comparisons use."""
ALONE_RANGES = (
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Words:
    """The words of several texts, in order.

    Attributes:
        tokens: the words; equal ones have one id.
        text: (N,) number of the text that each stands in, ascending.
        count: of texts.
    """

    tokens: Tokens
    text: Numbers
    count: int

    def bag(self) -> "Bag":
        """How often each word stands in each text."""
        different = max(1, len(self.tokens.pieces))
        keys, times = np.unique(self.text * different + self.tokens.ids, return_counts=True)
        return Bag(keys // different, keys % different, times)


@dataclass(frozen=True, eq=False)
class Bag:
    """Pairs of a text and a word in it, ordered by text.

    Attributes:
        text: (P,) number of the text.
        word: (P,) id of the word.
        times: (P,) how often it stands there.
    """

    text: Numbers
    word: Numbers
    times: Numbers


def words_of(texts: Sequence[str]) -> Words:
    """The words of each text.

    Raises:
        InvalidError: a lone surrogate stands in a text.
    """
    folded = [_folded(text) for text in texts]
    sizes = np.fromiter(map(len, folded), np.int64, len(folded)) + 1  # and what parts them
    places = starts_of(sizes)
    joined = "\n".join([*folded, ""])
    data = np.frombuffer(utf8(joined), np.uint8)
    points = data if joined.isascii() else np.frombuffer(joined.encode("utf-32-le"), np.uint32)
    inside, starts = _runs(_kinds(points), places)
    if points is not data:
        lengths = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF).astype(np.int64)  # noqa: PLR2004 - RFC 3629, section 3
        before = starts_of(lengths * inside)[starts]
        inside = np.repeat(inside, lengths)
    else:
        before = starts_of(inside.astype(np.int64))[starts]
    text = np.searchsorted(places, starts, side="right") - 1
    return Words(tokens_between(data[inside].tobytes(), before), text, len(texts))


def _folded(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    return text if text.strip() else BLANK


def _kinds(points: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    seen = np.zeros(CODE_POINTS, np.uint8)
    seen[points] = 1
    for point in np.flatnonzero(seen).tolist():  # a few hundred, however long the text
        seen[point] = _kind(point)
    return seen[points]


@lru_cache(1 << 16)
def _kind(point: int) -> int:
    character = chr(point)
    if character == "'":
        return JOINT
    if unicodedata.category(character)[0] in "LMN":
        return ALONE if any(low <= point <= high for low, high in ALONE_RANGES) else LETTER
    return SPACE if character.isspace() else OTHER


def _runs(kinds: npt.NDArray[np.uint8], places: Numbers) -> tuple[npt.NDArray[np.bool_], Numbers]:
    """Which code points belong to words, and where words start; texts begin at `places`."""
    inside = kinds >= LETTER
    joint = kinds == JOINT
    joint[:1] = joint[-1:] = False
    joint[1:-1] &= inside[:-2] & inside[2:]
    inside |= joint
    wordless = ~np.logical_or.reduceat(inside, places[:-1]) if len(inside) else inside
    if wordless.any():
        inside |= np.repeat(wordless, np.diff(places)) & (kinds != SPACE)
    alone = kinds == ALONE
    begins = inside.copy()
    begins[1:] &= ~inside[:-1] | alone[1:] | alone[:-1]
    return inside, np.flatnonzero(begins)
