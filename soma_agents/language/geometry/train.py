"""Teaching an embedder from a corpus."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from arbiters.errors import InvalidError
from soma_agents.language.geometry.corpus import Corpus, count
from soma_agents.language.geometry.embedder import HASH_DIM, METHODS, Embedder
from soma_agents.language.geometry.features import Floats
from soma_agents.language.geometry.hashing import Grams
from soma_agents.language.geometry.lexicon import Lexicon
from soma_agents.language.geometry.parts import (
    FeaturePart,
    HashPart,
    Read,
    SemanticPart,
    feature_means,
    unit,
    word_hashes,
)
from soma_agents.language.geometry.skipgram import learn
from soma_agents.language.geometry.words import words_of

SEMANTIC_DIM = 128
GUESS_DIM = 512
RIDGE = 0.1
"""Weight of the square of the guessing matrix, beside V words."""
NOTHING = 0.01
"""Size of a guess where there is nothing to guess from."""
LEAST_DIM, MOST_DIM = 8, 4096
VARIANCE = 1e-3
"""A column that hardly varies is not blown up."""

Report = Callable[[str, float], None]
"""What is being done, and how much of it, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to teach."""

    method: str = "hybrid"
    dim: int | None = None
    """Of word vectors (semantic, hybrid) or of hash buckets (hash)."""
    vocabulary: int = 50_000
    min_count: int = 5
    seed: int = 1

    def check(self) -> None:
        """Refuse what cannot be done.

        Raises:
            InvalidError: names the value.
        """
        if self.method not in METHODS:
            raise InvalidError(f"no method {self.method!r}; known are {', '.join(METHODS)}")
        if self.dim is not None and self.method == "feature":
            raise InvalidError(
                f"--dim {self.dim!r} with --method feature: it has 80 columns, always"
            )
        if self.dim is not None and not LEAST_DIM <= self.dim <= MOST_DIM:
            raise InvalidError(f"--dim {self.dim!r} is not from {LEAST_DIM!r} to {MOST_DIM!r}")
        if self.vocabulary < 2 or self.min_count < 1:  # noqa: PLR2004 - a pair needs two
            raise InvalidError(
                f"--vocabulary {self.vocabulary!r} must be 2 or more,"
                f" --min-count {self.min_count!r} 1 or more"
            )


def train(texts: Iterable[str], plan: Plan, report: Report = lambda _, __: None) -> Embedder:
    """Learn from the documents of a corpus.

    Raises:
        InvalidError: the plan or the corpus will not do; says why.
    """
    plan.check()
    report("counting words", 0.0)
    corpus = count(texts, vocabulary=plan.vocabulary, min_count=plan.min_count)
    wants = plan.method == "hybrid"
    hashed = features = semantic = None
    if wants or plan.method == "hash":
        hashed = HashPart(plan.dim if plan.dim and not wants else HASH_DIM)
    if wants or plan.method == "feature":
        features = _features(corpus)
    if wants or plan.method == "semantic":
        semantic = _semantic(corpus, plan, report)
    return Embedder(plan.method, corpus.lexicon, hashed, semantic, features, corpus.digest)


def _features(corpus: Corpus) -> FeaturePart:
    means = feature_means(corpus.sample)
    spread = np.sqrt(means.var(axis=0) + VARIANCE)
    return FeaturePart(means.mean(axis=0), spread.astype(np.float32))


def _semantic(corpus: Corpus, plan: Plan, report: Report) -> SemanticPart:
    def told(share: float) -> None:
        report("learning words", share)

    vectors = learn(corpus.stream, plan.dim or SEMANTIC_DIM, seed=plan.seed, report=told)
    if not np.isfinite(vectors).all():
        raise InvalidError("the word vectors are not finite: leave out what is no text")
    table = unit(vectors)
    report("guessing unknown words", 1.0)
    guess = _guess(corpus.lexicon, table)
    # As a file holds them, so that a model is the same before and after.
    part = SemanticPart(_rounded(table), _rounded(guess), np.zeros(table.shape[1], np.float32))
    read = Read.of(corpus.sample, words_of(corpus.sample), corpus.lexicon)
    means = part.means(read)
    _, _, directions = np.linalg.svd(means, full_matrices=False)
    return SemanticPart(part.table, part.guess, directions[0].astype(np.float32))


def _guess(lexicon: Lexicon, table: Floats) -> Floats:
    """(H, D) by ridge regression from the words' hash vectors to their vectors."""
    hashes = word_hashes(Grams(lexicon.pieces), GUESS_DIM)
    square = hashes.T @ hashes + RIDGE * np.eye(GUESS_DIM, dtype=np.float32)
    found = np.linalg.solve(square, hashes.T @ table)
    # Whatever no known word resembles gets a direction of its own, rather than none.
    return (found + NOTHING * np.random.default_rng(0).normal(size=found.shape)).astype(np.float32)


def _rounded(values: Floats) -> Floats:
    return values.astype(np.float16).astype(np.float32)
