"""Range asymmetric numeral systems (Duda 2013), many lanes at once.

Decision i belongs to lane i mod W. A lane's state stays in [2^31, 2^63) and moves 32 bits at a time;
the words of all lanes lie in one sequence, in the order in which the decoder wants them (Giesen
2014, "Interleaved entropy coders").
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from arbiters.errors import CorruptError
from soma_agents.language.symbols.compression.parts import Reader, Writer

LOWEST = np.uint64(1 << 31)
WORD = np.uint64(32)

Counts = npt.NDArray[np.uint64]


def encode(groups: Iterable[tuple[Counts, Counts]], scale: int, lanes: int, out: Writer) -> None:
    """Write decisions.

    Args:
        groups: from the last to the first, what the lanes decide together: (≤ W,) where each
            decision's share of 2^scale begins, and how large it is, at least 1.
        scale: at most 31.
        lanes: W.
        out: where to.
    """
    states = np.full(lanes, LOWEST)
    limit = np.uint64(1 << (63 - scale))
    words = [np.zeros(0, np.uint32)]
    for starts, shares in groups:
        x = states[: len(shares)]
        full = x >= shares * limit
        words.append(x[full].astype(np.uint32))
        quotient, rest = np.divmod(np.where(full, x >> WORD, x), shares)
        x[:] = (quotient << np.uint64(scale)) + rest + starts
    out.blob(states.astype("<u8").tobytes())
    out.blob(np.concatenate(words[::-1]).astype("<u4").tobytes())


class Decoder:
    """Reads decisions back, W at a time.

    Raises:
        CorruptError: the data ends too soon, or `end` finds that it was not what was written.
    """

    def __init__(self, data: Reader, scale: int, lanes: int) -> None:
        self._states = np.frombuffer(data.blob_of(8 * lanes), "<u8").astype(np.uint64)
        words = data.blob()
        if len(words) % 4:
            raise CorruptError(f"compressed tokens are damaged: {len(words)} bytes of words")
        self._words = np.frombuffer(words, "<u4").astype(np.uint64)
        self._used = 0
        self._mask = np.uint64((1 << scale) - 1)
        self._bits = np.uint64(scale)

    def slots(self, count: int) -> Counts:
        """Where in 2^scale the next decisions of the first `count` lanes lie."""
        return self._states[:count] & self._mask

    def advance(self, slots: Counts, starts: Counts, shares: Counts) -> None:
        """The decisions at `slots` were those with these shares."""
        x = self._states[: len(slots)]
        x[:] = shares * (x >> self._bits) + slots - starts
        empty = np.flatnonzero(x < LOWEST)
        fresh = self._words[self._used : self._used + len(empty)]
        if len(fresh) < len(empty):
            raise CorruptError("compressed tokens are cut off: the coder's words are used up")
        x[empty] = (x[empty] << WORD) | fresh
        self._used += len(empty)

    def end(self) -> None:
        """Every word must be used and every lane be where it began."""
        if self._used != len(self._words) or (self._states != LOWEST).any():
            raise CorruptError("compressed tokens are damaged: the coder ends in another state")
