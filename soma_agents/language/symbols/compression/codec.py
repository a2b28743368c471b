"""A compressed token stream: bytes of its own format, checked when they are read.

| bytes | content |
|---|---|
| 4 | `SOMT` |
| 1 | version, 1 |
| 1 | method: its place in `METHODS` |
| 1 … 9 | number of tokens, LEB128 |
| 4 | CRC-32 of the tokens as little-endian uint32 |
| rest | the method's own parts (`runs`, `patterns`, `frequencies`, `mixing`) |
"""

from collections.abc import Callable
from typing import NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from arbiters.errors import CorruptError, InvalidError
from soma_agents.language.symbols.compression import frequencies, mixing, patterns, runs
from soma_agents.language.symbols.compression.parts import Reader, Stream, Writer

MAGIC = b"SOMT"
VERSION = 1
AT_MOST = 1 << 26
"""Tokens a stream may claim to hold, unless the caller allows more."""


class Codec(NamedTuple):
    """One method: writes a stream, reads it back."""

    pack: Callable[[Stream, Writer], None]
    unpack: Callable[[Reader, int], Stream]


CODECS = {
    "rle": Codec(runs.pack, runs.unpack),
    "pattern": Codec(patterns.pack, patterns.unpack),
    "frequency": Codec(frequencies.pack, frequencies.unpack),
    "adaptive": Codec(mixing.pack, mixing.unpack),
}
METHODS = tuple(CODECS)


def compress(tokens: npt.NDArray[np.integer], method: str = "adaptive") -> bytes:
    """Token ids, from 0 below 2^32, in few bytes.

    Raises:
        InvalidError: no such method, or an id is out of range.
    """
    if method not in CODECS:
        raise InvalidError(f"no compression {method!r}; known are {', '.join(METHODS)}")
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise InvalidError(f"tokens are {tokens.dtype} of shape {tokens.shape}, not a row of ids")
    if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < 1 << 32:
        raise InvalidError(f"ids from {tokens.min()!s} to {tokens.max()!s} are not from 0 to 2^32")
    stream = tokens.astype(np.uint32)
    out = Writer()
    out.raw(MAGIC + bytes([VERSION, METHODS.index(method)]))
    out.number(len(stream))
    out.raw(_checksum(stream))
    CODECS[method].pack(stream, out)
    return out.done()


def decompress(data: bytes, *, at_most: int = AT_MOST) -> Stream:
    """(N,) uint32, what was compressed.

    Args:
        data: from `compress`.
        at_most: refuse a stream that claims more tokens, before anything is made.

    Raises:
        CorruptError: the bytes are not what `compress` wrote.
        InvalidError: a newer version, or more tokens than allowed.
    """
    found = Reader(data)
    if found.take(len(MAGIC)) != MAGIC:
        raise CorruptError(f"these are no compressed tokens: they begin with {data[:4]!r}")
    version, method = found.take(2)
    if version != VERSION:
        raise InvalidError(f"compressed tokens of version {version!r}; this SOMA reads {VERSION}")
    if method >= len(METHODS):
        raise CorruptError(f"compressed tokens are damaged: method {method!r}")
    count = found.number()
    if count > at_most:
        raise InvalidError(f"compressed tokens claim to be {count}; at most {at_most} are allowed")
    checksum = found.take(4)
    stream = CODECS[METHODS[method]].unpack(found, count)
    found.end()
    if _checksum(stream) != checksum:
        raise CorruptError("compressed tokens are damaged: their checksum differs")
    return stream


def _checksum(stream: Stream) -> bytes:
    return crc32(np.ascontiguousarray(stream, "<u4").tobytes()).to_bytes(4, "little")
