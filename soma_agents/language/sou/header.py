"""The first bytes of a `.sou` file: that it is one, how long it is, and its seal."""

import hashlib
import struct
from pathlib import Path

from arbiters.errors import InvalidError

MAGIC = b"\x89SOU\r\n\x1a\n"
"""As PNG's: a transfer that changes line ends or clears the eighth bit breaks it."""
VERSION = 1
HEADER = struct.Struct("<8sIIQQ")
"""Magic, version, 0, bytes of the file, bytes of the directory; the seal follows."""
HEAD = HEADER.size + hashlib.sha256().digest_size
"""Bytes before the directory."""
MOST_DIRECTORY = 16 << 20
"""Bytes of the longest directory."""


def is_sou(path: Path) -> bool:
    """Whether a file begins as a `.sou` file does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def seal_of(path: Path) -> str:
    """What a file is known by, in hex: it covers the directory and through it every piece.

    Not checked here. Whoever reads the file finds out whether the seal fits.
    """
    with path.open("rb") as file:
        return file.read(HEAD)[HEADER.size :].hex()


def head_of(directory: bytes, length: int) -> bytes:
    """Header and seal of a file of `length` bytes with this directory."""
    header = HEADER.pack(MAGIC, VERSION, 0, length, len(directory))
    return header + hashlib.sha256(header + directory).digest()


def read_head(head: bytes, length: int) -> int:
    """Bytes of the directory of a file that is `length` bytes long.

    Raises:
        InvalidError: it is no `.sou` file, of another version, or cut off.
    """
    if len(head) < HEAD or not head.startswith(MAGIC):
        raise InvalidError(f"it begins with {head[:8]!r}, not {MAGIC!r}")
    _, version, reserved, declared, directory = HEADER.unpack_from(head)
    if version != VERSION or reserved:
        raise InvalidError(f"it is version {version!r}.{reserved!r}; this SOMA reads {VERSION!r}")
    if declared != length:
        raise InvalidError(f"it declares {declared!r} bytes and has {length!r}: cut off?")
    if not 0 < directory <= min(MOST_DIRECTORY, length - HEAD):
        raise InvalidError(f"its directory would be {directory!r} bytes long")
    return directory
