"""The three things that a text's vector can be made of; each gives rows of length 1."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from soma_agents.language.geometry.features import Floats, text_features
from soma_agents.language.geometry.hashing import Grams, hash_vectors
from soma_agents.language.geometry.lexicon import Lexicon
from soma_agents.language.geometry.places import COLUMNS, place_features
from soma_agents.language.geometry.words import BLANK, Bag, Words
from soma_agents.language.symbols.pieces import Tokens
from soma_agents.language.symbols.records import records
from soma_agents.language.symbols.tokenise import tokenise

METHOD = "grammar"
"""The tokenisation whose tokens have features."""
SMALL = 1e-12
GUESSED = 0.5
"""How much a guessed word vector weighs beside a known one."""


@dataclass(frozen=True, eq=False)
class Read:
    """Some texts, read once for all parts.

    Attributes:
        texts: as they are.
        bag: their words.
        grams: hashes of the different words.
        known: (V,) number of each in the lexicon, or -1.
        weights: (V,) of each.
    """

    texts: Sequence[str]
    bag: Bag
    grams: Grams
    known: npt.NDArray[np.int64]
    weights: Floats

    @classmethod
    def of(cls, texts: Sequence[str], words: Words, lexicon: Lexicon) -> "Read":
        """Look every different word up once."""
        grams = Grams(words.tokens.pieces)
        known = lexicon.find(grams.words)
        return cls(texts, words.bag(), grams, known, lexicon.weights(known))


@dataclass(frozen=True, slots=True)
class HashPart:
    """Words and n-grams in `dim` signed buckets; see `hashing`."""

    dim: int

    def vectors(self, read: Read) -> Floats:
        """(texts, dim)."""
        made = hash_vectors(read.bag, read.grams, read.weights, len(read.texts), self.dim)
        return unit(made)


@dataclass(frozen=True, eq=False)
class SemanticPart:
    """Means of word vectors, frequent words weighing less, what all texts share taken out.

    "A simple but tough-to-beat baseline for sentence embeddings" (Arora, Liang, Ma 2017). A word that
    the lexicon has not is guessed from its n-grams.

    Attributes:
        table: (V, D) vector of each word of the lexicon.
        guess: (H, D) from a word's hash vector to its own.
        common: (D,) the direction that all texts share, of length 1.
    """

    table: Floats
    guess: Floats
    common: Floats

    @property
    def dim(self) -> int:
        """D."""
        return self.table.shape[1]

    def vectors(self, read: Read) -> Floats:
        """(texts, dim)."""
        return unit(self.without_common(self.means(read)))

    def means(self, read: Read) -> Floats:
        """(texts, dim) weighted means, of length 1."""
        weights = np.where(read.known < 0, GUESSED, 1) * read.weights
        each = self._of_words(read)[read.bag.word]
        each *= (weights[read.bag.word] * read.bag.times)[:, None]
        starts = np.searchsorted(read.bag.text, np.arange(len(read.texts)))
        return unit(np.add.reduceat(each, starts, axis=0))

    def without_common(self, vectors: Floats) -> Floats:
        """(texts, dim)."""
        along = (vectors @ self.common)[:, None]
        return (vectors - along * self.common).astype(np.float32)

    def _of_words(self, read: Read) -> Floats:
        made = self.table[read.known]
        unknown = np.flatnonzero(read.known < 0)
        if len(unknown):
            made[unknown] = unit(word_hashes(read.grams, len(self.guess))[unknown] @ self.guess)
        return made


@dataclass(frozen=True, eq=False)
class FeaturePart:
    """Means of the features of a text's token records, standardised.

    Attributes:
        mean, scale: (80,) of such means over the texts of a corpus.
    """

    mean: Floats
    scale: Floats

    @classmethod
    def plain(cls) -> "FeaturePart":
        """As they are, where no corpus was looked at."""
        return cls(np.zeros(COLUMNS, np.float32), np.ones(COLUMNS, np.float32))

    @property
    def dim(self) -> int:
        """How many columns."""
        return COLUMNS

    def vectors(self, read: Read) -> Floats:
        """(texts, dim)."""
        return unit((feature_means(read.texts) - self.mean) / self.scale)


def word_hashes(grams: Grams, dim: int) -> Floats:
    """(V, dim) each word by itself in signed buckets, rows of length 1."""
    count = len(grams.words)
    numbers = np.arange(count)
    bag = Bag(numbers, numbers, np.ones(count, np.int64))
    return unit(hash_vectors(bag, grams, np.ones(count, np.float32), count, dim))


def feature_means(texts: Sequence[str]) -> Floats:
    """(texts, 80) mean features of each text's token records, blanks at its ends left out."""
    tokens, text = _grammar([text.strip() or BLANK for text in texts])
    pieces = text_features([piece.decode(errors="replace") for piece in tokens.pieces.tolist()])
    starts = np.searchsorted(text, np.arange(len(texts) + 1))
    lengths = np.diff(starts)
    # What a content is called has no part in the features: only where it stands again.
    found = records(tokens, contents=np.zeros(len(tokens.pieces), np.uint64))
    index = np.arange(len(text)) - starts[text]
    found = replace(
        found,
        index=index.astype(np.uint64),
        previous=np.where(index == 0, np.uint64(0), found.previous),
        next=np.where(index == lengths[text] - 1, np.uint64(0), found.next),
    )
    places = place_features(tokens, found, pieces)
    made = np.empty((len(texts), COLUMNS), np.float32)
    width = pieces.shape[1]
    made[:, :width] = np.add.reduceat(pieces[tokens.ids], starts[:-1], axis=0)
    made[:, width:] = np.add.reduceat(places, starts[:-1], axis=0)
    return made / lengths[:, None].astype(np.float32)


def _grammar(texts: list[str]) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """Tokens of stripped texts, cut together, and the text that each belongs to."""
    joined = tokenise("\n".join(texts), METHOD)
    ends = np.cumsum([len(text.encode()) + 1 for text in texts])
    begins = np.cumsum(joined.pieces.lengths[joined.ids]) - joined.pieces.lengths[joined.ids]
    between = np.isin(begins, ends - 1)  # the line end that parts two texts is a token by itself
    text = np.searchsorted(ends, begins, side="right")
    return Tokens(joined.ids[~between], joined.pieces), text[~between]


def unit(vectors: Floats) -> Floats:
    """Rows of length 1; a row of nothing stays so."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, SMALL)).astype(np.float32)
