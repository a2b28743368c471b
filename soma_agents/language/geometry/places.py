"""What a token's record tells about it beside its text: fifteen more columns, 0 or 1 unless said otherwise.

| column | what |
|---|---|
| 65 | its place in the stream, from 0 (the first token) to 1 (the last) |
| 66 | log2(1 + index) / 16 |
| 67 | is the first of its stream (`previous` is 0) |
| 68 | is the last (`next` is 0) |
| 69 | log2(tokens of the stream) / 16 |
| 70 | log2(tokens of the stream with its content) / 16 |
| 71 | no other token of the stream has its content |
| 72 | none before it has |
| 73 | the token before has |
| 74 | the token after has |
| 75 | 1 / the distance to the token before it with its content, 0 where there is none |
| 76 | the token before ends a sentence |
| 77 | the token before is a blank or line end |
| 78 | the token after is punctuation |
| 79 | the token after is a blank or line end |
"""

import numpy as np
import numpy.typing as npt

from soma_agents.language.geometry.features import COLUMNS as TEXT_COLUMNS
from soma_agents.language.geometry.features import Floats, text_features
from soma_agents.language.symbols.pieces import Tokens
from soma_agents.language.symbols.records import TokenRecords

COLUMNS = TEXT_COLUMNS + 15
SCALE = 16.0
"""log2 of a stream's length stays below it for 65,536 tokens."""
PUNCTUATION, BLANK, SENTENCE = 12, 13, 15
"""Columns of the text that neighbours look at."""


def record_features(tokens: Tokens, found: TokenRecords) -> Floats:
    """(N, 80) features of each token of one or more streams, one behind the other."""
    texts = text_features([piece.decode(errors="replace") for piece in tokens.pieces.tolist()])
    places = place_features(tokens, found, texts)
    return np.concatenate((texts[tokens.ids], places), axis=1)


def place_features(tokens: Tokens, found: TokenRecords, texts: Floats) -> Floats:
    """(N, 15) columns 65 to 79; `texts` are the (V, 65) features of the pieces."""
    size = len(found)
    index = found.index.astype(np.int64)
    first, last = found.previous == 0, found.next == 0
    stream = np.cumsum(first) - 1
    lengths = np.bincount(stream, minlength=1)[stream]
    ids = tokens.ids.astype(np.int64)
    same, counts, before = _alike(stream * max(1, len(tokens.pieces)) + ids)
    has_before = before >= 0
    distance = np.where(has_before, np.arange(size) - before, 1)
    left, right = np.roll(ids, 1), np.roll(ids, -1)
    columns = (
        index / np.maximum(lengths - 1, 1),
        np.log2(1 + index) / SCALE,
        first,
        last,
        np.log2(np.maximum(lengths, 1)) / SCALE,
        np.log2(counts[same]) / SCALE,
        counts[same] == 1,
        ~has_before,
        (left == ids) & ~first,
        (right == ids) & ~last,
        has_before / distance,
        (texts[left, SENTENCE] > 0) & ~first,
        (texts[left, BLANK] > 0) & ~first,
        (texts[right, PUNCTUATION] > 0) & ~last,
        (texts[right, BLANK] > 0) & ~last,
    )
    return np.stack(columns, axis=1).astype(np.float32)


def _alike(
    keys: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each key: its class; for each class: how many; for each key: the place of the last equal one, or -1."""
    _, same, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(same, kind="stable")
    before = np.full(len(keys), -1)
    equal = same[order[1:]] == same[order[:-1]]
    before[order[1:][equal]] = order[:-1][equal]
    return same, counts, before
