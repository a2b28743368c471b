"""An envelope as a row of a log, and the chain of hashes over the rows.

The same for every engine. A row bears sha256(hash of the row before, envelope without payload,
payload hash). The payload's hash is salted and the salt is erased with the payload: otherwise a
short message could be found again by guessing.
"""

import os
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from pydantic_core import to_json

from arbiters.errors import InvalidError
from soma_agents.storage.database import Row

# Quoted: `offset` and `user` are words of SQL's own.
ENVELOPE_COLUMNS = (
    '"offset", id, type, version, at, tenant, "user", key, producer, cause, correlation,'
    " idempotency, payload"
)
"""The fields of an `Envelope`, in their order."""
ALL_COLUMNS = f"{ENVELOPE_COLUMNS}, salt, payload_hash, hash"
"""What `holds` checks, in the order of a row."""

_SALT_BYTES = 16


class Entry(NamedTuple):
    """An envelope as it is stored, but for what depends on its place."""

    header: tuple[Any, ...]
    hashed_header: bytes
    payload: str
    salt: bytes
    payload_hash: bytes

    @classmethod
    def of(cls, row: Row, salt: bytes) -> "Entry":
        """The entry of an envelope or its row, whatever its offset.

        Raises:
            InvalidError: a text is not Unicode.
        """
        header, payload = tuple(row[1:-1]), row[-1]
        try:
            return cls(header, _hashed(header), payload, salt, _payload_hash(salt, payload))
        except ValueError as error:
            raise cannot_store(row, error) from error

    @property
    def id(self) -> str:
        """The event's id."""
        return self.header[0]

    @property
    def idempotency(self) -> str:
        """The key under which it is stored once."""
        return self.header[-1]


def entries(rows: Sequence[Row]) -> list[Entry]:
    """Their entries, each with a salt of its own; raises what `Entry.of` raises."""
    salts = os.urandom(_SALT_BYTES * len(rows))
    places = range(0, len(salts), _SALT_BYTES)
    return [
        Entry.of(row, salts[place : place + _SALT_BYTES])
        for row, place in zip(rows, places, strict=True)
    ]


def placed(
    entries: Sequence[Entry], offsets: dict[str, int], end: int, last_hash: bytes
) -> tuple[int, bytes, list[Row]]:
    """Put the entries behind a log that ends at `end` with `last_hash`.

    Entries whose key is in `offsets` are left out; the others are added to it.

    Returns:
        The new end, its hash, and the rows to store.
    """
    rows: list[Row] = []
    for entry in entries:
        if entry.idempotency in offsets:
            continue
        end += 1
        last_hash = _chain(last_hash, end, entry.hashed_header, entry.payload_hash)
        offsets[entry.idempotency] = end
        rows.append((end, *entry.header, entry.payload, entry.salt, entry.payload_hash, last_hash))
    return end, last_hash, rows


def holds(row: Row, last_hash: bytes) -> bool:
    """Whether a row of `ALL_COLUMNS` is what was written behind `last_hash`."""
    payload, salt, payload_hash, chained = row[-4:]
    if not matches(payload, salt, payload_hash):
        return False
    return _chain(last_hash, row[0], _hashed(row[1:-4]), payload_hash) == chained


def matches(payload: str | None, salt: bytes | None, payload_hash: bytes) -> bool:
    """Whether a payload is what was written; one that was erased is as good."""
    return payload is None or _payload_hash(salt or b"", payload) == payload_hash


def cannot_store(row: Row, error: Exception) -> InvalidError:
    """Why an envelope cannot be stored."""
    return InvalidError(
        f"{row[2]} {row[1]!r} cannot be stored: {error}; it may hold what JSON can, in Unicode"
    )


def _payload_hash(salt: bytes, payload: str) -> bytes:
    return sha256(salt + payload.encode()).digest()


def _hashed(header: Sequence[Any]) -> bytes:
    """The header as it is hashed: as JSON, open in front for the offset."""
    return to_json(header)[1:]


def _chain(previous: bytes, offset: int, header: bytes, payload_hash: bytes) -> bytes:
    return sha256(previous + b"[%d," % offset + header + payload_hash).digest()
