"""Numbers and byte strings one after another, written and read with every length checked."""

import numpy as np
import numpy.typing as npt

from arbiters.errors import CorruptError

Stream = npt.NDArray[np.uint32]
NUMBER_BYTES = 9
BLOCK = 1 << 16
"""Values packed at a time, a multiple of 8: every block but the last ends on a whole byte."""


class Writer:
    """Collects parts."""

    def __init__(self) -> None:
        self._parts = bytearray()

    def number(self, value: int) -> None:
        """An integer from 0 as LEB128: seven bits a byte, the lowest first."""
        while value > 0x7F:  # noqa: PLR2004 - seven bits
            self._parts.append(value & 0x7F | 0x80)
            value >>= 7
        self._parts.append(value)

    def raw(self, data: bytes) -> None:
        """Bytes whose length the reader knows."""
        self._parts += data

    def blob(self, data: bytes) -> None:
        """Bytes, their length before them."""
        self.number(len(data))
        self.raw(data)

    def packed(self, values: npt.NDArray[np.integer]) -> None:
        """Integers from 0 below 2^32, each in as many bits as the largest needs."""
        width = int(values.max(initial=0)).bit_length()
        self.number(width)
        shifts = np.arange(width, dtype=np.uint32)
        for start in range(0, len(values), BLOCK):
            part = values[start : start + BLOCK, None].astype(np.uint32)
            bits = (part >> shifts & np.uint32(1)).astype(np.uint8)
            self._parts += np.packbits(bits.reshape(-1), bitorder="little").tobytes()

    def done(self) -> bytes:
        """Everything written."""
        return bytes(self._parts)


class Reader:
    """Gives the parts back, in the same order.

    Each method raises CorruptError where the data ends too soon.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self) -> int:
        """What `Writer.number` wrote."""
        value = 0
        for place in range(NUMBER_BYTES):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << 7 * place
            if byte < 0x80:  # noqa: PLR2004 - the last byte of a number has no eighth bit
                return value
        raise CorruptError("compressed tokens are damaged: a number has no end")

    def blob(self) -> bytes:
        """What `Writer.blob` wrote."""
        return self.take(self.number())

    def blob_of(self, length: int) -> bytes:
        """What `Writer.blob` wrote, which must have this length."""
        found = self.number()
        if found != length:
            raise CorruptError(
                f"compressed tokens are damaged: a part has {found} bytes instead of {length}"
            )
        return self.take(length)

    def packed(self, count: int) -> Stream:
        """What `Writer.packed` wrote of `count` values."""
        width = self.number()
        if width > 32:  # noqa: PLR2004 - bits of a token id
            raise CorruptError(f"compressed tokens are damaged: a value has {width!r} bits")
        bits = np.frombuffer(self.take(-(-count * width // 8)), np.uint8)
        values = np.zeros(count, np.uint32)
        weights = np.uint32(1) << np.arange(width, dtype=np.uint32)
        for start in range(0, count, BLOCK):
            part = values[start : start + BLOCK]
            raw = bits[start * width // 8 :][: -(-len(part) * width // 8)]
            each = np.unpackbits(raw, count=len(part) * width, bitorder="little")
            np.matmul(each.reshape(len(part), width).astype(np.uint32), weights, out=part)
        return values

    def take(self, length: int) -> bytes:
        """The next bytes."""
        part = self._data[self._at : self._at + length]
        if len(part) < length:
            raise CorruptError(
                f"compressed tokens are cut off: {length} bytes are due at byte {self._at},"
                f" {len(part)} are there"
            )
        self._at += length
        return part

    def end(self) -> None:
        """Nothing may be left."""
        if self._at != len(self._data):
            left = len(self._data) - self._at
            raise CorruptError(f"compressed tokens are damaged: {left} bytes are left over")
