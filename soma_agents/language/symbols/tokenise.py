"""The nine tokenisations, each reversible to the byte: one function, chosen by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from arbiters.errors import InvalidError
from soma_agents.language.symbols import segmentation
from soma_agents.language.symbols.bpe import Bpe
from soma_agents.language.symbols.pieces import Offsets, Pieces, Tokens, tokens_between
from soma_agents.language.symbols.segmentation import Script
from soma_agents.language.symbols.syllables import syllable
from soma_agents.language.symbols.text import utf8

CUTS: Mapping[str, Callable[[Script], Offsets]] = MappingProxyType(
    {
        "space": segmentation.space,
        "word": segmentation.word,
        "character": segmentation.character,
        "grammar": segmentation.grammar,
        "subword": segmentation.subword,
        "syllable": syllable,
        "frequency": segmentation.frequency,
    }
)
METHODS = (
    "space",
    "word",
    "character",
    "grammar",
    "subword",
    "bpe",
    "syllable",
    "frequency",
    "byte",
)
BYTES = Pieces.of([bytes([byte]) for byte in range(256)])


def tokenise(text: str, method: str, bpe: Bpe | None = None) -> Tokens:
    """`text` in tokens by one of `METHODS`.

    Args:
        text: anything that UTF-8 can carry.
        method: its name.
        bpe: the vocabulary, for the method of this name.

    Raises:
        InvalidError: no such method, no vocabulary, or a lone surrogate in the text.
    """
    if method == "byte":
        return Tokens(np.frombuffer(utf8(text), np.uint8).astype(np.uint32), BYTES)
    if method == "bpe":
        if bpe is None:
            raise InvalidError("method 'bpe' needs a vocabulary: load one or train one")
        return bpe.tokens(text)
    if method not in CUTS:
        raise InvalidError(f"no method {method!r}; known are {', '.join(METHODS)}")
    script = Script(text)
    return tokens_between(script.data, CUTS[method](script))
