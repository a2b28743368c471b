"""What a token's text tells the learner, and where it stands in words, sentences, paragraphs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from soma_agents.language.geometry.features import text_features
from soma_agents.pretraining.vocabulary import SPECIAL, Vocabulary

ACTIVE = 8.0
"""About so many features of a token are 1: a step moves its embedding as far as its own row does."""
CLASSES = 8
"""Kinds of token that the structure objective tells apart."""
DISTANCES = 8
"""Classes of the distance to the end of the sentence: 0, 1, 2-3, 4-7 … tokens."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of each token of a vocabulary, (V, …)."""

    lengths: Tensor
    """Bytes; 0 for special tokens."""
    features: Tensor
    """The 65 columns of `language.geometry.features`, divided by `ACTIVE`."""
    kinds: Tensor
    """One of `CLASSES`."""
    begins_word: Tensor
    ends_sentence: Tensor
    ends_paragraph: Tensor

    def to(self, device: torch.device) -> "Traits":
        """The same in a device's memory."""
        return Traits(*(getattr(self, field.name).to(device) for field in fields(self)))


def traits_of(vocabulary: Vocabulary) -> Traits:
    """Look at every token once."""
    texts = vocabulary.texts()
    found = text_features(texts, SPECIAL)

    def flags(pattern: str) -> Tensor:
        return torch.tensor(
            [text in SPECIAL or re.search(pattern, text) is not None for text in texts]
        )

    return Traits(
        lengths=torch.from_numpy(vocabulary.lengths()),
        features=torch.from_numpy(found) / ACTIVE,
        kinds=torch.tensor([_kind(text) for text in texts]),
        begins_word=flags(r"^\s|^[^\w\s]"),
        ends_sentence=flags(r"[.!?]\W*$"),
        ends_paragraph=flags(r"\n\n|\n$"),
    )


def plain_traits(lengths: Sequence[int] | npt.NDArray[np.int64]) -> Traits:
    """Of tokens of which only the lengths are known."""
    count = len(lengths)
    none = torch.zeros(count, dtype=torch.bool)
    kinds = torch.zeros(count, dtype=torch.long)
    return Traits(torch.as_tensor(lengths), torch.zeros(count, 1), kinds, none, none, none)


def places(tokens: Tensor, traits: Traits) -> Tensor:
    """(B, T) → (B, T, 4): number of the token, its word, sentence and paragraph in the row."""
    words = traits.begins_word[tokens].cumsum(1)
    # The mark itself still belongs to what it ends.
    ended = [
        flags[tokens].cumsum(1) - flags[tokens].long()
        for flags in (traits.ends_sentence, traits.ends_paragraph)
    ]
    numbers = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    return torch.stack((numbers, words, *ended), dim=-1)


def sentence_distances(tokens: Tensor, traits: Traits) -> Tensor:
    """(B, T) → (B, T): class of the number of tokens from each to the end of its sentence.

    A sentence that the row cuts off counts as ending with the row.
    """
    ends = traits.ends_sentence[tokens].clone()
    ends[:, -1] = True
    width = tokens.shape[1]
    numbers = torch.arange(width, device=tokens.device).expand(tokens.shape)
    at = torch.where(ends, numbers, width)
    following = at.flip(1).cummin(1).values.flip(1)
    return (following - numbers + 1).float().log2().floor().long().clamp_(max=DISTANCES - 1)


def _kind(text: str) -> int:
    """Special, line end, digits, punctuation, capitalised word, word, piece of a word, other."""
    if text in SPECIAL:
        return 0
    patterns = (r"\s*\n\s*", r" ?[0-9]+", r" ?[^\w\s]+", r" [A-Z][A-Za-z]*", r" [a-z]+", r"[a-z]+")
    for number, pattern in enumerate(patterns, 1):
        if re.fullmatch(pattern, text):
            return number
    return CLASSES - 1
