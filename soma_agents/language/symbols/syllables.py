"""Syllables: words cut where hyphenation dictionaries allow a break.

Alphabets with a dictionary are cut by it (Liang's patterns, by `pyphen`); of scripts that write
syllables each grapheme cluster is one; words of other scripts, whose vowels are not written out,
stay whole. Reversible in every case, and right as often as hyphenation is.
"""

import unicodedata
from functools import lru_cache

import numpy as np
import pyphen

from soma_agents.language.symbols.pieces import Offsets, spans, starts_of, tokens_between
from soma_agents.language.symbols.segmentation import Script, grammar, is_word

DICTIONARIES = {"LATIN": "en_US", "CYRILLIC": "ru_RU", "GREEK": "el_GR"}
"""Which hyphenation dictionary cuts words of which script."""
# fmt: off
SYLLABIC = frozenset((
    "BENGALI", "CHEROKEE", "CJK", "DEVANAGARI", "ETHIOPIC", "GUJARATI", "GURMUKHI", "HANGUL",
    "HIRAGANA", "KANNADA", "KATAKANA", "KHMER", "LAO", "MALAYALAM", "MYANMAR", "ORIYA",
    "SINHALA", "TAMIL", "TELUGU", "THAI", "TIBETAN", "VAI", "YI",
))
# fmt: on
"""Scripts whose grapheme clusters are syllables, or nearly."""


def syllable(script: Script) -> Offsets:
    """The tokens of `grammar`, words cut into syllables."""
    starts = grammar(script)
    words = is_word(script, starts)
    lengths = np.diff(np.append(starts, len(script.data)))[words]
    joined = np.frombuffer(script.data, np.uint8)[spans(starts[words], lengths)].tobytes()
    tokens = tokens_between(joined, starts_of(lengths)[:-1])
    cuts = [_cuts(piece.decode()) for piece in tokens.pieces.tolist()]  # once a different word
    flat = np.fromiter((cut for group in cuts for cut in group), np.int64)
    bounds = starts_of(np.fromiter(map(len, cuts), np.int64, len(cuts)))
    count = np.diff(bounds)[tokens.ids]
    inside = np.repeat(starts[words], count) + flat[spans(bounds[:-1][tokens.ids], count)]
    whole = inside[script.at(script.graphemes)[inside]]  # never inside a grapheme cluster
    return script.merged(starts, whole)


def _cuts(word: str) -> list[int]:
    """Bytes of a word at which a syllable begins, the first left out; perhaps inside a cluster."""
    alphabet = _alphabet(word)
    if alphabet in SYLLABIC:
        places = list(range(1, len(word)))
    elif alphabet in DICTIONARIES:
        places = [place for place in _dictionary(alphabet).positions(word) if place < len(word)]
    else:
        return []
    return [len(word[:place].encode()) for place in places]


def _alphabet(word: str) -> str:
    """First word of the Unicode name of the first letter: LATIN, HANGUL, CJK."""
    for letter in filter(str.isalpha, word):
        return unicodedata.name(letter, "UNKNOWN").split()[0]
    return "NONE"


@lru_cache
def _dictionary(alphabet: str) -> pyphen.Pyphen:
    return pyphen.Pyphen(lang=DICTIONARIES[alphabet])
