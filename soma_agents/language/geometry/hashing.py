"""Hash embeddings: words and their character n-grams as signed buckets, the same in every process.

Feature hashing (Weinberger et al. 2009, arXiv 0902.2206) of each word, into several buckets, and of its
n-grams of `GRAMS` characters, the word's ends marked (Bojanowski et al. 2016, arXiv 1607.04606). The hash
of the characters c_0 … c_(n-1) is mix(s·G + Σ c_k·P^k) modulo 2^64, s = n (of whole words: `WHOLE`), G and mix
as in `symbols.records`: a difference of prefix sums, so that every n-gram of every word costs one
subtraction and one product.
"""

import numpy as np
import numpy.typing as npt

from soma_agents.language.geometry.words import Bag
from soma_agents.language.symbols.pieces import Pieces, spans, starts_of
from soma_agents.language.symbols.records import GOLDEN, mix
from soma_agents.language.symbols.uids import MASK, UInt64s

GRAMS = (3, 4, 5)
GRAM_SHARE = 0.35
"""Of a word's squared length, what its n-grams have together."""
WHOLE = (0, 64, 65, 66)
"""Salts of the buckets that a whole word falls into: in several, no two words are taken for one."""
BASE = 0x9E6C63D0876A9A47
"""P: odd, so that it has an inverse modulo 2^64."""
OPEN, CLOSE = ord("<"), ord(">")

Floats = npt.NDArray[np.float32]


class Grams:
    """The hashes of some words and of their n-grams.

    Attributes:
        words: (V,) uint64, one hash a word.
    """

    def __init__(self, pieces: Pieces) -> None:
        points = np.frombuffer(pieces.data.tobytes().decode().encode("utf-32-le"), np.uint32)
        begins = (pieces.data & 0xC0) != 0x80  # noqa: PLR2004 - RFC 3629: not a byte that goes on
        lengths = np.diff(starts_of(begins.astype(np.int64))[pieces.starts]) + 2  # and both ends
        self._starts = starts_of(lengths)
        self._lengths = lengths
        marked = np.empty(self._starts[-1], np.uint64)
        inner = np.ones(len(marked), bool)
        inner[self._starts[:-1]] = inner[self._starts[1:] - 1] = False
        marked[inner] = points
        marked[self._starts[:-1]], marked[self._starts[1:] - 1] = OPEN, CLOSE
        self._prefix = np.zeros(len(marked) + 1, np.uint64)
        np.cumsum(marked * _powers(BASE, len(marked)), out=self._prefix[1:])
        self._inverse = _powers(pow(BASE, -1, 1 << 64), len(marked))
        self.words = self.whole(0)

    def whole(self, salt: int) -> UInt64s:
        """(V,) a hash of each word."""
        return self._hash(self._starts[:-1], self._starts[1:], salt)

    def of_size(self, n: int) -> tuple[npt.NDArray[np.int64], UInt64s]:
        """(V,) how many n-grams of this size each word has, and their hashes, word after word."""
        counts = np.maximum(self._lengths - n + 1, 0)
        starts = spans(self._starts[:-1], counts)
        return counts, self._hash(starts, starts + n, n)

    def _hash(
        self, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], salt: int
    ) -> UInt64s:
        found = (self._prefix[ends] - self._prefix[starts]) * self._inverse[starts]
        found += np.uint64(salt * int(GOLDEN) & MASK)
        mix(found, np.empty_like(found))
        return found


def hash_vectors(bag: Bag, grams: Grams, weights: Floats, texts: int, dim: int) -> Floats:
    """(texts, dim) the words of each text, with their n-grams, in signed buckets.

    Args:
        bag: which words stand where; a word counts √times.
        grams: of the words.
        weights: (V,) of each word.
        texts: how many.
        dim: how many buckets.
    """
    strength = np.sqrt(bag.times) * weights[bag.word]
    sizes = [grams.of_size(n) for n in GRAMS]
    whole = strength * np.sqrt((1 - GRAM_SHARE) / len(WHOLE))
    made = np.zeros((texts, dim))
    for salt in WHOLE:
        made += _buckets(bag.text, grams.whole(salt)[bag.word], whole, texts, dim)
    each = np.sqrt(GRAM_SHARE / np.maximum(sum(counts for counts, _ in sizes), 1))
    for counts, hashes in sizes:
        repeats = counts[bag.word]
        chosen = hashes[spans(starts_of(counts)[:-1][bag.word], repeats)]
        signed = np.repeat(strength * each[bag.word], repeats)
        made += _buckets(np.repeat(bag.text, repeats), chosen, signed, texts, dim)
    return made.astype(np.float32)


def _buckets(
    text: npt.NDArray[np.int64],
    hashes: UInt64s,
    strength: npt.NDArray[np.floating],
    texts: int,
    dim: int,
) -> npt.NDArray[np.float64]:
    """The bucket is in the upper half of a hash, the sign in its last bit."""
    bucket = ((hashes >> np.uint64(32)) * np.uint64(dim) >> np.uint64(32)).astype(np.int64)
    signed = np.where(hashes & np.uint64(1), strength, -strength)
    sums = np.bincount(text * dim + bucket, signed, texts * dim).astype(np.float64, copy=False)
    return sums.reshape(texts, dim)


def _powers(base: int, count: int) -> UInt64s:
    """(count,) base^0, base^1 … modulo 2^64."""
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors)
