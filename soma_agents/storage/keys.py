"""API keys in one file that only its owner can read; of each secret only the hash is kept."""

import fcntl
import hashlib
import hmac
import secrets
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from arbiters.errors import ConflictError, CorruptError, InvalidError, NotFoundError
from arbiters.ports import Clock
from soma_agents.storage.files import make_directory, room_for, seal_of, write_atomic

KeyRole = Literal["user", "admin"]
PREFIX = "soma-"
_SECRET_BYTES = 32


class ApiKey(BaseModel):
    """Who comes in with a key and what for. `digest` is the secret's sha256 in hex."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    user: str
    role: KeyRole
    digest: str
    created_at: datetime
    tenant: str = "local"


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: tuple[ApiKey, ...]
    seal: str | None = None
    """See `seal_of`; files of the first release have none."""

    def sealed(self) -> str:
        """What the seal must be: a key must not come to speak for somebody else."""
        return seal_of(self.model_dump(mode="json", exclude={"seal"}))


class ApiKeys:
    """The keys in a file. Changes that another process makes are seen at the next look."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._stamp: tuple[int, int, int] | None = None
        self._keys: tuple[ApiKey, ...] = ()

    def create(self, name: str, user: str = "owner", role: KeyRole = "user") -> str:
        """Add a key and return its secret, which nothing can show again.

        Raises:
            InvalidError: the name or user is empty, or the role unknown.
            ConflictError: there is a key of this name.
        """
        if not name.strip() or not user.strip():
            raise InvalidError(f"a key needs a name and a user, not {name!r} and {user!r}")
        if role not in get_args(KeyRole):
            raise InvalidError(f"role {role!r} is not one of {', '.join(get_args(KeyRole))}")
        secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        with self._changing():
            if any(key.name == name for key in self.list()):
                raise ConflictError(f"there is a key {name!r} already; revoke it first")
            key = ApiKey(
                name=name,
                user=user,
                role=role,
                digest=_digest(secret),
                created_at=self._clock.now(),
            )
            self._save([*self.list(), key])
        return secret

    def list(self) -> tuple[ApiKey, ...]:
        """Every key, oldest first.

        Raises:
            CorruptError: the file cannot be read; nobody comes in.
        """
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._stamp, self._keys = None, ()
            return ()
        stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
        if stamp != self._stamp:
            self._keys = self._load()
            self._stamp = stamp
        return self._keys

    def revoke(self, name: str) -> None:
        """Remove a key.

        Raises:
            NotFoundError: there is none of this name.
        """
        with self._changing():
            left = [key for key in self.list() if key.name != name]
            if len(left) == len(self.list()):
                raise NotFoundError(f"there is no key {name!r}; see `soma keys list`")
            self._save(left)

    def lookup(self, secret: str) -> ApiKey | None:
        """The key with this secret. How long it takes says nothing about any secret."""
        digest = _digest(secret)
        found: ApiKey | None = None
        for key in self.list():
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    # --- the file --------------------------------------------------------------------------

    @contextmanager
    def _changing(self) -> Generator[None]:
        """One process at a time reads, changes and writes."""
        with room_for(self._path):
            make_directory(self._path.parent)
            with self._path.with_name(f".{self._path.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield

    def _load(self) -> tuple[ApiKey, ...]:
        try:
            found = _KeyFile.model_validate_json(self._path.read_bytes())
        except ValidationError as error:
            raise CorruptError(
                f"{self._path} is not a list of keys ({error.error_count()} errors, first "
                f"{error.errors()[0]['msg']!r}); restore it from a backup, or remove it and make keys anew"
            ) from None
        if found.seal not in (None, found.sealed()):
            raise CorruptError(
                f"{self._path} is not what was written; restore it from a backup, or remove it "
                "and make keys anew"
            )
        return found.keys

    def _save(self, keys: Sequence[ApiKey]) -> None:
        file = _KeyFile(keys=tuple(keys))
        content = file.model_copy(update={"seal": file.sealed()}).model_dump_json(indent=1)
        write_atomic(self._path, content.encode() + b"\n")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
