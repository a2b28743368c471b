"""What goes to the bus and comes from it, as MessagePack (https://msgpack.org).

Every arbiter reads every row, and reading JSON takes longer. An event inside a row is JSON text, as
it is stored.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

_msgpack: Any = import_module("msgpack")
_header = _msgpack.Packer().pack_array_header


def pack(value: object) -> bytes:
    """Lists or tuples of texts, numbers and None.

    Raises:
        ValueError: a text is not Unicode.
    """
    return _msgpack.packb(value)


def pack_all(packed: Sequence[bytes]) -> bytes:
    """A list of what is packed already."""
    return b"".join((_header(len(packed)), *packed))


def unpack(data: bytes) -> Any:
    """What was packed, lists as tuples."""
    return _msgpack.unpackb(data, use_list=False)
