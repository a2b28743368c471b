"""The words that a corpus taught, and how frequent each is."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from soma_agents.language.geometry.features import GROUPS, Floats
from soma_agents.language.geometry.hashing import Grams
from soma_agents.language.symbols.pieces import Pieces
from soma_agents.language.symbols.uids import UInt64s

COMMON = 5e-4
"""a of a word's weight a / (a + p), p its share of all words (Arora et al. 2017)."""
GUESSED_SHARE = 4.5e-3
"""Share of the frequent words of `features.WORDS` where no corpus was counted: weight 0.1."""


@dataclass(frozen=True, eq=False)
class Lexicon:
    """Known words.

    Attributes:
        pieces: the words, folded, the most frequent first.
        shares: (V,) of all words of the corpus.
        unknown: share of a word that is not among them.
    """

    pieces: Pieces
    shares: Floats
    unknown: float

    @classmethod
    def counted(cls, pieces: Pieces, shares: Floats) -> "Lexicon":
        """Of a corpus: what it does not know is half as frequent as the rarest that it knows."""
        return cls(pieces, shares, float(shares.min()) / 2)

    @classmethod
    def guessed(cls) -> "Lexicon":
        """What is known of English without a corpus: its most frequent words."""
        words = sorted(GROUPS)
        pieces = Pieces.of([word.encode() for word in words])
        return cls(pieces, np.full(len(words), GUESSED_SHARE, np.float32), 0.0)

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def digest(self) -> str:
        """Hash of the words in their order."""
        return blake2b(b"\n".join(self.pieces.tolist()), digest_size=16).hexdigest()

    def find(self, hashes: UInt64s) -> npt.NDArray[np.int64]:
        """Number of each word by its hash (`Grams.words`), or -1."""
        ordered, numbers = self._by_hash
        if not len(ordered):
            return np.full(len(hashes), -1)
        at = np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)
        return np.where(ordered[at] == hashes, numbers[at], -1)

    def weights(self, found: npt.NDArray[np.int64]) -> Floats:
        """Weight of each word by its number; the rarer the more."""
        shares = np.append(self.shares, np.float32(self.unknown))  # -1 is the last
        return (COMMON / (COMMON + shares[found])).astype(np.float32)

    @cached_property
    def _by_hash(self) -> tuple[UInt64s, npt.NDArray[np.int64]]:
        hashes = Grams(self.pieces).words
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order
