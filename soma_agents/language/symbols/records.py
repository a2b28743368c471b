"""Token records: who each token of a stream is, as columns.

| column | type | formula |
|---|---|---|
| uid | uint64 | output `skip + index` of xorshift64* from `seed` (`uids.py`); never 0, never twice |
| content | uint64 | BLAKE2b of the token's bytes, 8 bytes, little-endian: equal bytes, equal content |
| global_id | uint64 | mix(mix(mix(mix(uid + G) + content + G) + index + G) + stream + G) |
| index | uint64 | place in the stream: 0, 1, … |
| stream | uint64 | number of the stream |
| previous | uint64 | uid of the token before; 0 before the first |
| next | uint64 | uid of the token after; 0 after the last |
| session | uint64 | BLAKE2b of the session's name, as for content |

mix is the finaliser of SplitMix64 (Steele, Lea, Flood 2014) and G its increment 0x9E3779B97F4A7C15;
sums and products are modulo 2^64. For one content, index and stream it maps uids one to one.
"""

from dataclasses import dataclass, fields
from hashlib import blake2b

import numpy as np

from arbiters.errors import InvalidError
from soma_agents.language.symbols.pieces import Pieces, Tokens
from soma_agents.language.symbols.text import utf8
from soma_agents.language.symbols.uids import MASK, UInt64s, uids

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
BLOCK = 1 << 13
"""Tokens mixed at a time: their numbers stay in the cache."""


@dataclass(frozen=True, eq=False)
class TokenRecords:
    """Columns of one stream, each (N,) uint64; the module's table says what they hold."""

    uid: UInt64s
    content: UInt64s
    global_id: UInt64s
    index: UInt64s
    stream: UInt64s
    previous: UInt64s
    next: UInt64s
    session: UInt64s

    def __len__(self) -> int:
        return len(self.uid)

    def columns(self) -> dict[str, UInt64s]:
        """Name → column."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def records(
    tokens: Tokens,
    *,
    seed: int = 1,
    stream: int = 0,
    session: str = "",
    skip: int = 0,
    contents: UInt64s | None = None,
) -> TokenRecords:
    """The records of a stream of tokens.

    Args:
        tokens: the stream.
        seed: of the uids, from 1 to 2^64 - 1.
        stream: number of the stream, to tell apart what one session reads.
        session: name of the session.
        skip: uids of this seed used up by earlier streams, so that none is given out twice.
        contents: `contents_of(tokens.pieces)`, where many streams share a vocabulary.

    Raises:
        InvalidError: a number is out of range.
    """
    if not 0 <= stream <= MASK:
        raise InvalidError(f"stream {stream!r} is not from 0 to 2^64 - 1")
    count = len(tokens.ids)
    padded = np.zeros(count + 2, np.uint64)
    padded[1:-1] = uids(seed, count, skip=skip)
    if contents is None:
        contents = contents_of(tokens.pieces)
    uid, content = padded[1:-1], contents[tokens.ids]
    index = np.arange(count, dtype=np.uint64)
    return TokenRecords(
        uid=uid,
        content=content,
        global_id=_global_ids(uid, content, index, np.uint64(stream)),
        index=index,
        stream=np.broadcast_to(np.uint64(stream), count),
        previous=padded[:-2],
        next=padded[2:],
        session=np.broadcast_to(np.uint64(content_id(utf8(session))), count),
    )


def contents_of(pieces: Pieces) -> UInt64s:
    """(V,) content id of each piece."""
    return np.fromiter(map(content_id, pieces.tolist()), np.uint64, len(pieces))


def content_id(piece: bytes) -> int:
    """What a token says, as a number."""
    return int.from_bytes(blake2b(piece, digest_size=8).digest(), "little")


def _global_ids(uid: UInt64s, content: UInt64s, index: UInt64s, stream: np.uint64) -> UInt64s:
    made = np.empty_like(uid)
    scratch = np.empty(BLOCK, np.uint64)
    for start in range(0, len(uid), BLOCK):
        part = slice(start, start + BLOCK)
        z = made[part]
        np.add(uid[part], GOLDEN, z)
        for column in (content[part], index[part], stream):
            mix(z, scratch[: len(z)])
            z += column
            z += GOLDEN
        mix(z, scratch[: len(z)])
    return made


def mix(z: UInt64s, scratch: UInt64s) -> None:
    """SplitMix64's finaliser, in place; `scratch` is of the same size."""
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        np.right_shift(z, np.uint64(shift), scratch)
        np.bitwise_xor(z, scratch, z)
        np.multiply(z, np.uint64(multiplier), z)
    np.right_shift(z, np.uint64(31), scratch)
    np.bitwise_xor(z, scratch, z)
