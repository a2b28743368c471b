"""Entropy coding by frequency: each symbol in as many bits as its share of the stream calls for.

Shares are kept as quarters of an octave: two thousandths of a bit a token for a table of half the
size.
"""

from math import isqrt

import numpy as np
import numpy.typing as npt
from backports import zstd

from arbiters.errors import CorruptError, InvalidError
from soma_agents.language.symbols.compression import rans
from soma_agents.language.symbols.compression.parts import Reader, Stream, Writer
from soma_agents.language.symbols.compression.rans import Counts

LANE_TOKENS = 1024
"""Tokens a lane carries at least: its last state costs 8 bytes."""
MOST_LANES = 4096
MOST_SYMBOLS = 1 << 24
QUARTERS = 4
WEIGHTS = np.array(
    [0, *(isqrt(isqrt(2**quarter * 16**4)) for quarter in range(QUARTERS * 33))], np.uint64
)
"""Weight of a symbol by its code: 0 is absent, code c stands for 16 · 2^((c - 1) / 4)."""


def pack(stream: Stream, out: Writer) -> None:
    """Write a stream.

    Raises:
        InvalidError: it has more than MOST_SYMBOLS different tokens.
    """
    symbols, places = np.unique(stream, return_inverse=True)
    if len(symbols) > MOST_SYMBOLS:
        raise InvalidError(
            f"{len(symbols)} different tokens are more than {MOST_SYMBOLS}: compress by 'adaptive'"
        )
    codes = _codes(np.bincount(places, minlength=len(symbols)))
    out.number(len(symbols))
    _pack_symbols(symbols, out)
    out.blob(zstd.compress(codes.tobytes(), 19))
    if len(symbols) > 1:
        frequencies, scale = _frequencies(codes)
        starts, lanes = _starts(frequencies), lanes_for(len(places))
        firsts = reversed(range(0, len(places), lanes))
        groups = (places[first : first + lanes] for first in firsts)
        rans.encode(((starts[g], frequencies[g]) for g in groups), scale, lanes, out)


def unpack(data: Reader, count: int) -> Stream:
    """Read a stream of `count` values."""
    present = data.number()
    if present > min(count, MOST_SYMBOLS) or (count and not present):
        raise CorruptError(f"compressed tokens are damaged: {present} symbols, {count} tokens")
    symbols = _unpack_symbols(data, present)
    codes = np.frombuffer(_inflated(data.blob(), present), np.uint8)
    if len(codes) and not 0 < codes.min() <= codes.max() < len(WEIGHTS):
        raise CorruptError("compressed tokens are damaged: a frequency is out of range")
    if present <= 1:
        return np.repeat(symbols, count)
    frequencies, scale = _frequencies(codes)
    return symbols[_decode(data, count, frequencies, scale)]


def lanes_for(count: int) -> int:
    """Lanes that a stream of this length is spread over."""
    return max(1, min(MOST_LANES, count // LANE_TOKENS))


def _pack_symbols(symbols: Stream, out: Writer) -> None:
    """Ascending symbols: the gaps between them."""
    gaps = np.diff(symbols.astype(np.int64), prepend=-1) - 1
    inner = Writer()
    inner.packed(gaps)
    out.blob(zstd.compress(inner.done(), 19))


def _unpack_symbols(data: Reader, present: int) -> Stream:
    inner = Reader(_inflated(data.blob(), 4 * present + 1, exactly=False))
    symbols = np.cumsum(inner.packed(present).astype(np.int64) + 1) - 1
    inner.end()
    if present and symbols[-1] >> 32:
        raise CorruptError(f"compressed tokens are damaged: symbol {int(symbols[-1])!r}")
    return symbols.astype(np.uint32)


def _inflated(data: bytes, length: int, *, exactly: bool = True) -> bytes:
    try:
        found = zstd.ZstdDecompressor().decompress(data, max_length=length + 1)
    except zstd.ZstdError as error:
        raise CorruptError(f"compressed tokens are damaged: {error}") from error
    if len(found) > length or (exactly and len(found) < length):
        raise CorruptError(f"compressed tokens are damaged: a table is not of {length} bytes")
    return found


def _codes(counts: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """(V,) nearest quarter of an octave of each count, 1 and up."""
    return (1 + np.rint(QUARTERS * np.log2(np.maximum(counts, 1)))).astype(np.uint8)


def _frequencies(codes: npt.NDArray[np.uint8]) -> tuple[Counts, int]:
    """(V,) shares of 2^scale, none 0, and the scale. Integers only: alike on every machine."""
    weights = WEIGHTS[codes]
    scale = max(12, min(24, len(codes).bit_length() + 5))
    free = np.uint64((1 << scale) - len(codes))
    # 2^39 at most for a weight: the sums below need more than 64 bits only beyond 2^25 symbols.
    total = int(weights.sum())
    shift = max(0, total.bit_length() - 38)
    weights = weights >> np.uint64(shift)
    shares = np.uint64(1) + weights * free // np.uint64(max(int(weights.sum()), 1))
    shares[int(shares.argmax())] += np.uint64((1 << scale) - int(shares.sum()))
    return shares, scale


def _decode(data: Reader, count: int, frequencies: Counts, scale: int) -> npt.NDArray[np.uint32]:
    """(count,) which symbol stands at each place."""
    lanes = lanes_for(count)
    decoder = rans.Decoder(data, scale, lanes)
    starts = _starts(frequencies)
    symbol_at = np.repeat(np.arange(len(frequencies), dtype=np.uint32), frequencies.astype(np.intp))
    places = np.empty(count, np.uint32)
    for first in range(0, count, lanes):
        slots = decoder.slots(min(lanes, count - first))
        symbols = symbol_at[slots.astype(np.intp)]
        places[first : first + lanes] = symbols
        decoder.advance(slots, starts[symbols], frequencies[symbols])
    decoder.end()
    return places


def _starts(frequencies: Counts) -> Counts:
    return np.cumsum(frequencies) - frequencies
