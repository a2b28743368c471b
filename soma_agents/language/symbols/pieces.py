"""Tokens as numbers: an id for each token, and for each id its bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from arbiters.errors import InvalidError

Ids = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pieces:
    """The bytes behind ids 0 … V-1, end to end.

    Attributes:
        data: (total length,) uint8.
        starts: (V + 1,) int64; piece i is `data[starts[i]:starts[i + 1]]`.
    """

    data: npt.NDArray[np.uint8]
    starts: Offsets

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> "Pieces":
        """Pieces numbered as they come."""
        lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        return cls(np.frombuffer(b"".join(pieces), np.uint8), starts_of(lengths))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def lengths(self) -> Offsets:
        """(V,) bytes of each piece."""
        return np.diff(self.starts)

    def tolist(self) -> list[bytes]:
        """Every piece."""
        data, starts = self.data.tobytes(), self.starts.tolist()
        return [data[a:b] for a, b in pairwise(starts)]

    def join(self, ids: npt.NDArray[np.integer]) -> bytes:
        """The bytes of these tokens, end to end.

        Raises:
            InvalidError: an id has no piece.
        """
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self):
            raise InvalidError(
                f"ids from {ids.min()!s} to {ids.max()!s} do not belong to {len(self)} pieces"
            )
        return self.data[spans(self.starts[:-1][ids], self.lengths[ids])].tobytes()


@dataclass(frozen=True, eq=False)
class Tokens:
    """A text in tokens: their pieces, joined, are its UTF-8 bytes.

    Attributes:
        ids: (N,) uint32, which piece each token is.
        pieces: the different tokens.
    """

    ids: Ids
    pieces: Pieces

    def to_bytes(self) -> bytes:
        """The text's bytes."""
        return self.pieces.join(self.ids)

    def to_text(self) -> str:
        """The text."""
        return self.to_bytes().decode()


def tokens_between(data: bytes, starts: Offsets) -> Tokens:
    """Tokens of `data` that begin at `starts` (ascending, the first 0), equal ones one id.

    Ids count pieces in the order in which they first stand in the text.
    """
    import pyarrow as pa

    bounds = np.append(starts, len(data)).astype(np.int64, copy=False)
    array = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(starts), [None, pa.py_buffer(bounds), pa.py_buffer(data)]
    )
    encoded = array.dictionary_encode()
    ids = encoded.indices.to_numpy(zero_copy_only=False).astype(np.uint32)
    return Tokens(ids, Pieces.of(encoded.dictionary.to_pylist()))


def starts_of(lengths: npt.NDArray[np.integer]) -> Offsets:
    """(n + 1,) where stretches of these lengths begin, and where the last ends."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def spans(
    starts: npt.NDArray[np.integer], lengths: npt.NDArray[np.integer]
) -> npt.NDArray[np.int64]:
    """Every place of every stretch: `starts[0]`, `starts[0] + 1` … for `lengths[0]` places, and so on."""
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
