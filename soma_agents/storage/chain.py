"""An envelope as a row of a log, and the chain of hashes over the rows.

The same for every engine. A row bears sha256(hash of the row before, envelope without payload,
payload hash). The payload's hash is salted and the salt is erased with the payload: otherwise a
short message could be found again by guessing.
"""

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from arbiters.errors import InvalidError
from arbiters.events import Envelope
from soma_agents.storage.database import Row, as_text

FIELDS: tuple[str, ...] = (
    "offset",
    "id",
    "type",
    "version",
    "at",
    "tenant",
    "user",
    "key",
    "producer",
    "cause",
    "correlation",
    "idempotency",
)
# Quoted: `offset` and `user` are words of SQL's own.
_HEADER = ", ".join(f'"{name}"' for name in FIELDS)
ENVELOPE_COLUMNS = f"{_HEADER}, payload"
"""What `envelope_of` reads."""
ALL_COLUMNS = f"{ENVELOPE_COLUMNS}, salt, payload_hash, hash"
"""What `holds` checks, in the order of a row."""

_SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """An envelope as it is stored, but for what depends on its place."""

    header: tuple[Any, ...]
    hashed_header: bytes
    payload: str
    salt: bytes
    payload_hash: bytes

    @classmethod
    def of(cls, envelope: Envelope) -> "Entry":
        """The entry of an envelope, with a salt of its own.

        Raises:
            InvalidError: the payload is not JSON, or a text is not Unicode.
        """
        header = (
            envelope.id,
            envelope.type,
            envelope.version,
            as_text(envelope.at),
            envelope.tenant,
            envelope.user,
            envelope.key,
            envelope.producer,
            envelope.cause,
            envelope.correlation,
            envelope.idempotency,
        )
        salt = secrets.token_bytes(_SALT_BYTES)
        try:
            payload = json.dumps(envelope.payload, ensure_ascii=False, separators=(",", ":"))
            return cls(header, _hashed(header), payload, salt, _payload_hash(salt, payload))
        except (TypeError, ValueError) as error:
            raise InvalidError(
                f"{envelope.type} {envelope.id!r} cannot be stored: {error}; "
                "it may hold what JSON can, in Unicode"
            ) from error

    @property
    def id(self) -> str:
        """The event's id."""
        return self.header[0]

    @property
    def idempotency(self) -> str:
        """The key under which it is stored once."""
        return self.header[-1]


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
    if payload is not None and _payload_hash(salt or b"", payload) != payload_hash:
        return False
    return _chain(last_hash, row[0], _hashed(row[1:-4]), payload_hash) == chained


def envelope_of(row: Row) -> Envelope:
    """An envelope from `ENVELOPE_COLUMNS`, which were validated when they were written."""
    fields = dict(zip(FIELDS, row, strict=False))
    fields["at"] = datetime.fromisoformat(row[4])
    fields["payload"] = json.loads(row[-1]) if row[-1] is not None else {}
    return Envelope.model_construct(**fields)


def _payload_hash(salt: bytes, payload: str) -> bytes:
    return hashlib.sha256(salt + payload.encode()).digest()


def _hashed(header: Sequence[Any]) -> bytes:
    """The header as it is hashed: as JSON, open in front for the offset."""
    return json.dumps(header, ensure_ascii=False, separators=(",", ":"))[1:].encode()


def _chain(previous: bytes, offset: int, header: bytes, payload_hash: bytes) -> bytes:
    return hashlib.sha256(previous + b"[%d," % offset + header + payload_hash).digest()
