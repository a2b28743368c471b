"""What a token's text alone tells about it, and where it stands in words, sentences, paragraphs.

`features` has a column for each of these, 0 or 1 unless said otherwise, divided by `ACTIVE`:

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
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from soma_agents.pretraining.vocabulary import SPECIAL, Vocabulary

HASHES = 16
ACTIVE = 8.0
"""About so many features of a token are 1: a step moves its embedding as far as its own row does."""
CLASSES = 8
"""Kinds of token that the structure objective tells apart."""
DISTANCES = 8
"""Classes of the distance to the end of the sentence: 0, 1, 2-3, 4-7 … tokens."""

BEGINS = (r"^ ", r"^\n", r"^ ?[A-Z]", r"^ ?[a-z]", r"^ ?[0-9]", r"^ ?[^\w\s]", r"^[\t\r\f\v]")
WHOLE = (r" ?[A-Za-z]+", r" ?[A-Z]{2,}", r" ?[0-9]+", r" ?[^\w\s]+", r"\s+")
HAS = (r"[.!?]", r"[,;:]", r"[\"'`]", r"[\[\](){}<>]", r"\n", r"[-/]")
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


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of each token of a vocabulary, (V, …)."""

    lengths: Tensor
    """Bytes; 0 for special tokens."""
    features: Tensor
    kinds: Tensor
    """One of `CLASSES`."""
    begins_word: Tensor
    ends_sentence: Tensor
    ends_paragraph: Tensor


def traits_of(vocabulary: Vocabulary) -> Traits:
    """Look at every token once."""
    texts = vocabulary.texts()
    found = np.stack([_features(text) for text in texts])

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
    numbers = torch.arange(tokens.shape[1]).expand(tokens.shape)
    return torch.stack((numbers, words, *ended), dim=-1)


def sentence_distances(tokens: Tensor, traits: Traits) -> Tensor:
    """(B, T) → (B, T): class of the number of tokens from each to the end of its sentence.

    A sentence that the row cuts off counts as ending with the row.
    """
    ends = traits.ends_sentence[tokens].clone()
    ends[:, -1] = True
    width = tokens.shape[1]
    numbers = torch.arange(width).expand(tokens.shape)
    at = torch.where(ends, numbers, width)
    following = at.flip(1).cummin(1).values.flip(1)
    return (following - numbers + 1).float().log2().floor().long().clamp_(max=DISTANCES - 1)


def _features(text: str) -> npt.NDArray[np.float32]:
    special = text in SPECIAL
    bare = "" if special else text.strip()
    letters = "".join(filter(str.isalpha, bare)).lower()
    begins = [not special and re.search(p, text) is not None for p in BEGINS]
    begins += [not special and text.startswith("\ufffd"), special]
    whole = [not special and re.fullmatch(p, text) is not None for p in WHOLE]
    whole.append(not bare.isascii())
    has = [not special and re.search(p, text) is not None for p in HAS]
    size = min(9, len(bare.encode()))
    lengths = [size == n for n in range(1, 10)]
    endings = [len(letters) > len(e) and letters.endswith(e) for e in ENDINGS]
    endings.append(letters[-1:] in set("aeiou") and bool(letters))
    words = [letters in group.split() for group in WORDS]
    bucket = blake2b(letters.encode(), digest_size=1).digest()[0] % HASHES if letters else -1
    hashes = [bucket == n for n in range(HASHES)]
    vowels = sum(letter in "aeiou" for letter in letters) / max(1, len(letters))
    columns = [*begins, *whole, *has, *lengths, *endings, *words, *hashes, vowels]
    return np.array(columns, np.float32)


def _kind(text: str) -> int:
    """Special, line end, digits, punctuation, capitalised word, word, piece of a word, other."""
    if text in SPECIAL:
        return 0
    patterns = (r"\s*\n\s*", r" ?[0-9]+", r" ?[^\w\s]+", r" [A-Z][A-Za-z]*", r" [a-z]+", r"[a-z]+")
    for number, pattern in enumerate(patterns, 1):
        if re.fullmatch(pattern, text):
            return number
    return CLASSES - 1
