"""A corpus counted: the frequent words, the stream of them, and a sample of its lines."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from arbiters.errors import InvalidError
from soma_agents.language.geometry.lexicon import Lexicon
from soma_agents.language.geometry.skipgram import BREAK, Ids, Stream
from soma_agents.language.geometry.words import words_of
from soma_agents.language.symbols.pieces import Pieces
from soma_agents.language.symbols.text import utf8

TOGETHER = 1 << 23
"""Characters counted at a time."""
SAMPLE = 4096
"""Lines of the sample, at least that many where the corpus has twice as many texts."""
LINE = 1000
"""Characters of a line that are kept."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """What training needs of a corpus.

    Attributes:
        lexicon: its frequent words, the most frequent first.
        stream: where they stand.
        sample: lines of it.
        digest: hash of its texts.
    """

    lexicon: Lexicon
    stream: Stream
    sample: list[str]
    digest: str


def count(texts: Iterable[str], *, vocabulary: int, min_count: int) -> Corpus:
    """Read a corpus once.

    Args:
        texts: its documents; words of two are never neighbours.
        vocabulary: words to know at most.
        min_count: times a word must stand in it to be known.

    Raises:
        InvalidError: there is nothing in it, or too few words come often enough.
    """
    counting = _Counting()
    for some in _batches(texts):
        counting.add(some)
    return counting.done(vocabulary, min_count)


class _Counting:
    """Numbers words as they come."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._parts: list[Ids] = []
        self._digest = blake2b(digest_size=16)
        self._sample: list[str] = []
        self._seen, self._stride = 0, 1

    def add(self, texts: list[str]) -> None:
        for text in texts:
            self._digest.update(utf8(text) + b"\0")
            self._look_at(text)
        words = words_of(texts)
        numbers = self._numbers
        pieces = words.tokens.pieces.tolist()
        known = np.fromiter((numbers.setdefault(p, len(numbers)) for p in pieces), np.int32)
        ids = known[words.tokens.ids]
        begins = np.searchsorted(words.text, np.arange(words.count))
        self._parts.append(np.insert(ids, begins, BREAK))

    def _look_at(self, text: str) -> None:
        """Keep a line from the middle of every so many texts; when there are many, of fewer."""
        if self._seen % self._stride == 0:
            lines = [line for line in text.splitlines() if line.strip()]
            if lines:
                self._sample.append(lines[len(lines) // 2][:LINE])
            if len(self._sample) >= 2 * SAMPLE:
                self._sample, self._stride = self._sample[::2], 2 * self._stride
        self._seen += 1

    def done(self, vocabulary: int, min_count: int) -> Corpus:
        if not self._sample:
            raise InvalidError("the corpus is empty: there is no text in it to learn from")
        ids = np.concatenate(self._parts)
        counts = np.bincount(ids[ids != BREAK], minlength=len(self._numbers))
        order = np.argsort(-counts, kind="stable")[:vocabulary]
        order = order[counts[order] >= min_count]
        if len(order) < 2:  # noqa: PLR2004 - a pair needs two
            raise InvalidError(
                f"only {len(order)!r} of {len(counts)!r} words stand in the corpus {min_count!r}"
                " times: give it more text, or take a smaller --min-count"
            )
        pieces = list(self._numbers)
        known = Pieces.of([pieces[number] for number in order.tolist()])
        shares = (counts[order] / counts.sum()).astype(np.float32)
        stream = Stream(_renumbered(ids, order, len(counts)), counts[order])
        return Corpus(
            Lexicon.counted(known, shares), stream, self._sample, self._digest.hexdigest()
        )


def _renumbered(ids: Ids, order: npt.NDArray[np.int64], size: int) -> Ids:
    """Ids by rank; unknown words left out."""
    unknown = BREAK - 1
    ranks = np.full(size + 1, unknown, np.int32)
    ranks[order] = np.arange(len(order), dtype=np.int32)
    ranks[BREAK] = BREAK  # the last
    found = ranks[ids]
    return found[found != unknown]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    some: list[str] = []
    size = 0
    for text in texts:
        some.append(text)
        size += len(text)
        if size >= TOGETHER:
            yield some
            some, size = [], 0
    if some:
        yield some
