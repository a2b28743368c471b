"""Run-length coding: each value once, with how often it stands in a row."""

import numpy as np

from arbiters.errors import CorruptError
from soma_agents.language.symbols.compression.parts import Reader, Stream, Writer


def pack(stream: Stream, out: Writer) -> None:
    """Write the runs of a stream."""
    first = np.ones(len(stream), bool)
    np.not_equal(stream[1:], stream[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    out.number(len(starts))
    out.packed(stream[starts])
    out.packed(np.diff(np.append(starts, len(stream))) - 1)


def unpack(data: Reader, count: int) -> Stream:
    """Read a stream of `count` values."""
    runs = data.number()
    if runs > count:
        raise CorruptError(f"compressed tokens are damaged: {runs} runs make {count} tokens")
    values, lengths = data.packed(runs), data.packed(runs).astype(np.int64) + 1
    if int(lengths.sum()) != count:
        raise CorruptError(
            f"compressed tokens are damaged: runs of {int(lengths.sum())} make {count} tokens"
        )
    return np.repeat(values, lengths)
