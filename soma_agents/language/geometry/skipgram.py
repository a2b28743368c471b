"""Word vectors from co-occurrence: skip-gram with negative sampling (Mikolov et al. 2013, arXiv 1310.4546).

Every two words at most `WINDOW` apart in one text are a pair, weighted by (WINDOW + 1 - distance) / WINDOW: what a
window of random size gives on average. Each pair has `NEGATIVES` words drawn beside it, in proportion to their
frequency to the power 3/4. Frequent words are left out at random: a word of share p is kept with the
probability √(t/p) + t/p, t = `KEEP`.

The text is read in blocks of `BLOCK` words, which share `BLOCK` negatives (as pWord2Vec does, Ji et al.
2016, arXiv 1604.04661): all their products are small matrix products. A table of co-occurrences is
never made, and a step reads and writes only the rows of its words: memory grows with the number of words, not its
square, however large the vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

WINDOW = 5
NEGATIVES = 5
KEEP = 1e-4
POWER = 0.75
BLOCK = 32
BLOCKS = 16
"""Blocks of one step."""
RATE = 0.1
"""Of AdaGrad (Duchi et al. 2011) with one sum of squares a row; falls to nothing in a straight line."""
ENOUGH = 20_000_000
"""Words that are read of the largest corpus; which ones is drawn."""
PASSES, LEAST = 20, 200_000
"""Of a smaller corpus: how often it is read, and how many words at least."""
BREAK = -1
"""Stands between texts."""

Ids = npt.NDArray[np.int32]
Report = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Stream:
    """A corpus as ids of words; `BREAK` between texts, unknown words left out."""

    ids: Ids
    counts: npt.NDArray[np.int64]


def learn(stream: Stream, dim: int, *, seed: int, report: Report) -> npt.NDArray[np.float32]:
    """(V, dim) vectors; the same for the same stream, seed and number of threads."""
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    tables = _Tables(len(stream.counts), dim)
    keep = _kept(stream.counts)
    noise = np.cumsum(stream.counts**POWER)
    done, total = 0, min(ENOUGH, max(LEAST, int(PASSES * (keep * stream.counts).sum())))
    while done < total:
        words, texts = _blocks(stream.ids, keep, generator)
        order = generator.permutation(len(words))
        for start in range(0, len(order), BLOCKS):
            rows = order[start : start + BLOCKS]
            drawn = np.searchsorted(noise, generator.random((len(rows), BLOCK)) * noise[-1])
            chosen, owners = torch.from_numpy(words[rows]), torch.from_numpy(texts[rows])
            rate = RATE * max(1 - done / total, 1e-3)
            tables.step(chosen, owners, torch.from_numpy(drawn), rate)
            done += drawn.size
            report(min(1.0, done / total))
            if done >= total:
                break
    return tables.vectors()


def _kept(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(V,) with what probability a word stays."""
    ratio = KEEP * counts.sum() / np.maximum(counts, 1)
    return np.minimum(1.0, np.sqrt(ratio) + ratio)


def _blocks(
    ids: Ids, keep: npt.NDArray[np.float64], generator: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The words of one pass and the numbers of their texts, (N, BLOCK); cut elsewhere each time."""
    is_word = ids != BREAK
    chance = keep.astype(np.float32)[np.where(is_word, ids, 0)]
    stays = is_word & (generator.random(len(ids), np.float32) < chance)
    words, texts = ids[stays].astype(np.int64), np.cumsum(~is_word)[stays]
    before = int(generator.integers(BLOCK))
    padding = (before, -(before + len(words)) % BLOCK)
    words = np.pad(words, padding).reshape(-1, BLOCK)
    texts = np.pad(texts, padding, constant_values=-1).reshape(-1, BLOCK)
    return words, texts


class _Tables:
    """The two vectors of every word, and the sums of squares of their rows."""

    def __init__(self, words: int, dim: int) -> None:
        self._centres = (torch.rand(words, dim) - 0.5) / dim
        self._contexts = torch.zeros(words, dim)
        self._squares = torch.full((2, words), 1e-6)
        apart = (torch.arange(BLOCK)[:, None] - torch.arange(BLOCK)).abs()
        self._weights = ((WINDOW + 1 - apart).clamp(min=0) / WINDOW).masked_fill(apart == 0, 0.0)

    def vectors(self) -> npt.NDArray[np.float32]:
        return self._centres.numpy()

    def step(self, words: Tensor, texts: Tensor, negatives: Tensor, rate: float) -> None:
        """One step over some blocks; words, texts and negatives (B, BLOCK)."""
        centres = self._centres[words]  # (B, T, D)
        contexts, noise = self._contexts[words], self._contexts[negatives]
        together = (texts[:, :, None] == texts[:, None, :]) & (texts[:, :, None] >= 0)
        pairs = self._weights * together  # (B, T, T); padding belongs to no text
        share = pairs.sum(2, keepdim=True) * (NEGATIVES / BLOCK)
        near = pairs * (torch.sigmoid(centres @ contexts.mT) - 1)
        far = share * torch.sigmoid(centres @ noise.mT)
        self._descend(0, words, near @ contexts + far @ noise, rate)
        self._descend(1, words, near.mT @ centres, rate)
        self._descend(1, negatives, far.mT @ centres, rate)

    def _descend(self, side: int, rows: Tensor, slopes: Tensor, rate: float) -> None:
        rows, slopes = rows.flatten(), slopes.flatten(0, 1)
        squares = self._squares[side]
        squares.index_add_(0, rows, slopes.square().mean(1))
        scale = -rate / squares[rows].sqrt()
        table = self._contexts if side else self._centres
        table.index_add_(0, rows, slopes * scale[:, None])
