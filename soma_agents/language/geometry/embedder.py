"""Texts as vectors by one of four methods; cosines tell how alike texts are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from arbiters.errors import InvalidError
from soma_agents.language.geometry.features import Floats
from soma_agents.language.geometry.lexicon import Lexicon
from soma_agents.language.geometry.parts import FeaturePart, HashPart, Read, SemanticPart, unit
from soma_agents.language.geometry.words import Words, words_of
from soma_agents.language.symbols.records import mix

METHODS = ("feature", "hash", "semantic", "hybrid")
HASH_DIM = 1024
PLAIN = "untrained"
WEIGHTS = {"hash": 1.0, "semantic": 0.5, "feature": 0.1}
"""Of the parts of a hybrid; a text's vector is their concatenation, each part times its weight."""
TOGETHER = 1 << 18
"""Characters read at a time, or one text."""


@dataclass(frozen=True, eq=False)
class Embedder:
    """Parts side by side; all that a file holds."""

    method: str
    lexicon: Lexicon
    hashed: HashPart | None = None
    semantic: SemanticPart | None = None
    features: FeaturePart | None = None
    corpus: str = PLAIN
    """Hash of the texts it was taught."""

    @classmethod
    def untrained(cls) -> "Embedder":
        """Hashes and features: needs no corpus."""
        return cls("hybrid", Lexicon.guessed(), HashPart(HASH_DIM), None, FeaturePart.plain())

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return sum(part.dim for _, part in self._parts())

    def embed(self, texts: Sequence[str]) -> Floats:
        """(texts, dim) vectors of length 1.

        Raises:
            InvalidError: a lone surrogate stands in a text.
        """
        return self.counted(texts)[0]

    def counted(self, texts: Sequence[str]) -> tuple[Floats, int]:
        """The same, and how many words the texts have together."""
        made, words = [np.zeros((0, self.dim), np.float32)], 0
        for some in _batches(texts):
            found = words_of(some)
            made.append(self._embed(some, found))
            words += len(found.text)
        return np.concatenate(made), words

    def _embed(self, texts: Sequence[str], words: Words) -> Floats:
        read = Read.of(texts, words, self.lexicon)
        blocks = [part.vectors(read) * weight for weight, part in self._parts()]
        return unit(np.concatenate(blocks, axis=1))

    def _parts(self) -> list[tuple[float, HashPart | SemanticPart | FeaturePart]]:
        named = (("hash", self.hashed), ("semantic", self.semantic), ("feature", self.features))
        return [(WEIGHTS[name], part) for name, part in named if part is not None]

    def near(self, text: str, lines: Sequence[str], top: int) -> list[tuple[int, float]]:
        """The numbers of the `top` lines most like a text, with their cosines, the nearest first."""
        (wanted,) = self.embed([text])
        parts = [self._embed(some, words_of(some)) @ wanted for some in _batches(lines)]
        cosines = np.concatenate([np.zeros(0, np.float32), *parts])
        order = np.argsort(-cosines, kind="stable")[:top]
        return list(zip(order.tolist(), cosines[order].tolist(), strict=True))


def fold(vectors: Floats, dimensions: int) -> Floats:
    """(N, dimensions): columns added up in buckets with signs, which keeps cosines in expectation.

    Raises:
        InvalidError: there are fewer columns.
    """
    width = vectors.shape[1]
    if not 1 <= dimensions <= width:
        raise InvalidError(f"dimensions {dimensions!r} is not from 1 to {width!r}")
    if dimensions == width:
        return vectors
    hashes = np.arange(1, width + 1, dtype=np.uint64)
    mix(hashes, np.empty_like(hashes))
    # Every bucket gets as many columns as the next, give or take one.
    bucket = np.argsort(np.argsort(hashes)) % dimensions
    signs = np.where(hashes & np.uint64(1), 1, -1)
    folded = np.zeros((dimensions, len(vectors)), np.float32)
    np.add.at(folded, bucket, (vectors * signs).T)
    return unit(folded.T)


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start, size = 0, 0
    for number, text in enumerate(texts):
        if number > start and size + len(text) > TOGETHER:
            yield texts[start:number]
            start, size = number, 0
        size += len(text) + 256
    if start < len(texts):
        yield texts[start:]
