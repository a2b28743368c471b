"""Pattern coding: pairs that recur become new symbols, round after round.

Larsson and Moffat's Re-Pair (1999), many pairs a round; what is left is coded by frequency.
"""

import numpy as np
import numpy.typing as npt

from arbiters.errors import CorruptError
from soma_agents.language.symbols.compression import frequencies
from soma_agents.language.symbols.compression.parts import Reader, Stream, Writer
from soma_agents.language.symbols.pieces import starts_of

ROUNDS = 40
RULE_BITS = 26.0
"""What a rule costs, about: two symbols and a place in the table of frequencies."""
SHARE = 4.0
"""A round takes the pairs that gain at least the best pair's gain over this."""

Places = npt.NDArray[np.int64]


def pack(stream: Stream, out: Writer) -> None:
    """Write a stream: its alphabet, the rules, then symbols and rules by frequency."""
    alphabet, left = np.unique(stream, return_inverse=True)
    text, rules = left.astype(np.int64), np.zeros((0, 2), np.int64)
    for _ in range(ROUNDS):
        pairs = _pairs_worth_a_rule(text)
        if not len(pairs):
            break
        text = _replaced(text, pairs, len(alphabet) + len(rules))
        rules = np.concatenate([rules, pairs])
    out.number(len(rules))
    out.number(len(alphabet))
    out.packed(np.diff(alphabet.astype(np.int64), prepend=0))
    out.number(len(text))
    frequencies.pack(np.concatenate([text, rules.reshape(-1)]).astype(np.uint32), out)


def unpack(data: Reader, count: int) -> Stream:
    """Read a stream of `count` values."""
    rule_count, size = data.number(), data.number()
    if rule_count > count or size > count:
        raise CorruptError(f"compressed tokens are damaged: {rule_count} rules, {count} tokens")
    alphabet = np.cumsum(data.packed(size).astype(np.uint64))
    length = data.number()
    if length > count or (size and int(alphabet[-1]) >> 32):
        raise CorruptError(f"compressed tokens are damaged: {length} symbols, {count} tokens")
    coded = frequencies.unpack(data, length + 2 * rule_count).astype(np.int64)
    text, rules = coded[:length], coded[length:].reshape(-1, 2)
    if (rules >= size + np.arange(rule_count)[:, None]).any() or (
        length and text.max() >= size + rule_count
    ):
        raise CorruptError("compressed tokens are damaged: a rule leads to itself or nowhere")
    return alphabet[_expanded(text, rules, size, count)].astype(np.uint32)


def _pairs_worth_a_rule(text: Places) -> Places:
    """(R, 2) pairs that as one symbol make the text smaller, the best first.

    A pair seen c times among n symbols of which its halves make up a and b saves c·log2(c·n/(a·b))
    bits of entropy.
    """
    if len(text) < 4:  # noqa: PLR2004 - nothing recurs in three symbols
        return np.zeros((0, 2), np.int64)
    codes, counts = np.unique(text[:-1] << 32 | text[1:], return_counts=True)
    often = counts > 1
    codes, counts = codes[often], counts[often]
    pairs = np.stack([codes >> 32, codes & 0xFFFFFFFF], axis=1)
    single = np.bincount(text)
    expected = single[pairs[:, 0]] * (single[pairs[:, 1]] / len(text))
    gains = counts * np.log2(counts / expected) - RULE_BITS
    chosen = np.flatnonzero(gains > max(gains.max(initial=0.0) / SHARE, 0.0))
    return pairs[chosen[np.argsort(-gains[chosen], kind="stable")]]


def _replaced(text: Places, pairs: Places, first: int) -> Places:
    """The text with pair r as symbol `first + r`; where pairs overlap, the better one goes first."""
    codes = pairs[:, 0] << 32 | pairs[:, 1]
    order = np.argsort(codes)
    here = text[:-1] << 32 | text[1:]
    found = np.searchsorted(codes[order], here)
    rank = np.full(len(text) + 1, len(pairs))  # rank[i + 1]: of the pair at i; none at the ends
    hit = codes[order][np.minimum(found, len(codes) - 1)] == here
    rank[1:-1][hit] = order[found[hit]]
    taken = _without_overlap(rank, len(pairs))
    made = text.copy()
    made[taken] = first + rank[1:][taken]
    keep = np.ones(len(text), bool)
    keep[taken + 1] = False
    return made[keep]


def _without_overlap(rank: Places, none: int) -> Places:
    """Places whose pair outranks both neighbours; in a run of one pair every second."""
    here = rank[1:]
    before, after = rank[:-1], np.append(rank[2:], none)
    local = (here < none) & (here <= before) & (here <= after)
    starts = local.copy()
    starts[1:] &= ~local[:-1]
    begin = np.maximum.accumulate(np.where(starts, np.arange(len(local)), 0))
    return np.flatnonzero(local & ((np.arange(len(local)) - begin) % 2 == 0))


def _expanded(text: Places, rules: Places, size: int, count: int) -> Places:
    """The text with every rule carried out, all of one depth at a time."""
    lengths = _lengths(rules, size)
    if int(lengths[text].sum()) != count:
        raise CorruptError(f"compressed tokens are damaged: they do not make {count} tokens")
    while len(text) < count:
        composed = text >= size
        starts = starts_of(1 + composed)[:-1]
        wider = np.empty(len(text) + int(composed.sum()), np.int64)
        wider[starts] = text
        wider[starts[composed]] = rules[text[composed] - size, 0]
        wider[starts[composed] + 1] = rules[text[composed] - size, 1]
        text = wider
    return text


def _lengths(rules: Places, size: int) -> Places:
    """Tokens that each symbol stands for."""
    lengths, depths = [1] * size, [0] * size
    for left, right in rules.tolist():
        lengths.append(min(lengths[left] + lengths[right], 1 << 40))
        depths.append(1 + max(depths[left], depths[right]))
    if max(depths, default=0) > ROUNDS:
        raise CorruptError(f"compressed tokens are damaged: rules {max(depths)} deep")
    return np.array(lengths, np.int64)
