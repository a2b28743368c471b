"""What a token's text alone tells about it: a column for each of these, 0 or 1 unless said otherwise.

| columns | what |
|---|---|
| 0-8 | begins with a blank · a line end · a capital · a small letter · a digit · punctuation · other whitespace · a byte that goes on a character · is a special token |
| 9-14 | has letters only (behind the blank) · capitals only · digits only · punctuation only · blanks only · bytes beyond ASCII |
| 15-20 | has a full stop · a comma · a quote · a bracket · a line end · a hyphen or slash |
| 21-29 | has 1 · 2 · … · 8 · more bytes behind the blank |
| 30-39 | ends in -s, -ed, -ing, -ly, -er, -tion, -al, -e, -y, a vowel |
| 40-47 | is one of the frequent words: article · preposition · conjunction · pronoun · auxiliary · negation · question word · number word |
| 48-63 | falls into this of 16 classes by a hash of its lower-case letters, so that "The", " the" and "the" share one |
| 64 | its share of vowels |

Capitals, small letters, digits and vowels are those of ASCII; letters are Unicode's.
"""

import string
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from soma_agents.language.symbols.pieces import starts_of

COLUMNS = 65
HASHES = 16
SIZES = 9
CAPITALS, SMALL = frozenset(string.ascii_uppercase), frozenset(string.ascii_lowercase)
DIGITS, VOWELS = frozenset(string.digits), frozenset("aeiou")
GONE_ON = "\ufffd"
"""What stands for a byte that goes on a character, or begins one that is cut off."""
LONG = 32
"""Letters of a token beyond which its columns are not kept for the next time."""
HAS = (".!?", ",;:", "\"'`", "[](){}<>", "\n", "-/")
ENDINGS = ("s", "ed", "ing", "ly", "er", "tion", "al", "e", "y")
WORDS = (
    "the a an",
    "of in on at by to from with for into over under about between through",
    "and or but if because while when that than as",
    "i you he she it we they me him her us them his its their my your our this these those",
    "is are was were be been am has have had do does did will would can could may might should must",
    "not no never none nor n't",
    "who what which where why how whose whom",
    "one two three four five six seven eight nine ten hundred thousand million first second",
)
GROUPS = {word: group for group, words in enumerate(WORDS) for word in words.split()}
LETTER_COLUMNS = len(ENDINGS) + 1 + len(WORDS) + HASHES + 1

Floats = npt.NDArray[np.float32]
Marks = npt.NDArray[np.bool_]


def text_features(texts: Sequence[str], special: Collection[str] = ()) -> Floats:
    """(N, 65) what the module's table says, of each text; `special` ones have only their mark."""
    found = np.zeros((len(texts), COLUMNS), np.float32)
    marked = np.fromiter((text in special for text in texts), bool, len(texts))
    points = _Points(["" if mark else text for text, mark in zip(texts, marked, strict=True)])
    shapes = [*_begins(points), marked, *_whole(points), *_has(points), *_sizes(points)]
    found[:, : len(shapes)] = np.stack(shapes, axis=1)
    letters = ["".join(filter(str.isalpha, text)).lower() for text in points.texts]
    found[:, len(shapes) :] = np.frombuffer(
        b"".join(map(_of_letters, letters)), np.float32
    ).reshape(len(texts), LETTER_COLUMNS)
    return found


class _Points:
    """Texts as code points end to end."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        data = "".join(texts).encode("utf-32-le", "surrogatepass")
        self.points = np.frombuffer(data, np.uint32)
        self.lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        self._starts = starts_of(self.lengths)[:-1]
        self._owner = np.repeat(np.arange(len(texts)), self.lengths)
        self._different, self._which = np.unique(self.points, return_inverse=True)
        self.space = self.that(str.isspace)
        self.mark = ~self.space & self.that(lambda c: not (c.isalnum() or c == "_"))
        self.blank = self.first(self.that(" ".__eq__)).astype(np.int64)
        """(N,) 1 where a text begins with a blank."""

    def that(self, holds: Callable[[str], bool]) -> Marks:
        """(points,) for which of them it holds."""
        each = [holds(chr(point)) for point in self._different.tolist()]  # a few hundred
        return np.array(each, bool)[self._which]

    def first(self, marks: Marks, skip: npt.NDArray[np.int64] | int = 0) -> Marks:
        """(N,) texts of which the first point, or the one behind `skip`, is marked."""
        there = self.lengths > skip
        found = np.zeros(len(self.lengths), bool)
        found[there] = marks[(self._starts + skip)[there]]
        return found

    def count(
        self, marks: Marks, weights: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.int64]:
        """(N,) how many points of each text are marked."""
        weights = None if weights is None else weights[marks]
        size = len(self.lengths)
        return np.bincount(self._owner[marks], weights, minlength=size).astype(np.int64)

    def bare(self) -> Marks:
        """(points,) those that `str.strip` leaves."""
        solid = np.flatnonzero(~self.space)
        first = np.full(len(self.lengths), len(self.points))
        last = np.full(len(self.lengths), -1)
        first[self._owner[solid[::-1]]] = solid[::-1]  # the last one set stays
        last[self._owner[solid]] = solid
        places = np.arange(len(self.points))
        return (places >= first[self._owner]) & (places <= last[self._owner])


def _begins(points: _Points) -> list[Marks]:
    kinds = (CAPITALS, SMALL, DIGITS)
    return [
        points.blank > 0,
        points.first(points.that("\n".__eq__)),
        *(points.first(points.that(kind.__contains__), points.blank) for kind in kinds),
        points.first(points.mark, points.blank),
        points.first(points.that(frozenset("\t\r\f\v").__contains__)),
        points.first(points.that(GONE_ON.__eq__)),
    ]


def _whole(points: _Points) -> list[Marks]:
    behind = points.lengths - points.blank

    def all_are(marks: Marks, at_least: int = 1) -> Marks:
        return (behind >= at_least) & (points.count(marks) == behind)

    return [
        all_are(points.that((CAPITALS | SMALL).__contains__)),
        all_are(points.that(CAPITALS.__contains__), 2),
        all_are(points.that(DIGITS.__contains__)),
        all_are(points.mark),
        (points.lengths > 0) & (points.count(points.space) == points.lengths),
        points.count(points.bare() & (points.points > 0x7F)) > 0,  # noqa: PLR2004 - ASCII's last
    ]


def _has(points: _Points) -> list[Marks]:
    return [points.count(points.that(frozenset(marks).__contains__)) > 0 for marks in HAS]


def _sizes(points: _Points) -> list[Marks]:
    code = points.points
    sizes = 1 + (code > 0x7F) + (code > 0x7FF) + (code > 0xFFFF).astype(np.int64)  # noqa: PLR2004 - RFC 3629, section 3
    size = np.minimum(points.count(points.bare(), sizes), SIZES)
    return [size == n for n in range(1, SIZES + 1)]


def _of_letters(letters: str) -> bytes:
    """Columns 30 to 64 as float32, of the lower-case letters of a token."""
    endings = [len(letters) > len(e) and letters.endswith(e) for e in ENDINGS]
    endings.append(letters[-1:] in VOWELS)
    group = GROUPS.get(letters, -1)
    words = [group == n for n in range(len(WORDS))]
    bucket = blake2b(letters.encode(), digest_size=1).digest()[0] % HASHES if letters else -1
    hashes = [bucket == n for n in range(HASHES)]
    vowels = sum(letter in VOWELS for letter in letters) / max(1, len(letters))
    return np.array([*endings, *words, *hashes, vowels], np.float32).tobytes()


_kept = lru_cache(1 << 16)(_of_letters)
