"""Reading `.sou` files: mapped into memory, each piece checked against its hash when it is used."""

import contextlib
import hashlib
import mmap
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from arbiters.errors import CorruptError, InvalidError, NotFoundError
from soma_agents.language.sou import blocks
from soma_agents.language.sou.blocks import FLOATS, Blocks
from soma_agents.language.sou.header import HEAD, HEADER, read_head
from soma_agents.language.sou.layout import (
    Directory,
    Section,
    SectionName,
    StoredTensor,
    read_directory,
)

PIECE = 1 << 24
"""Bytes hashed at once, so that other threads get their turn."""


class SouFile:
    """One open `.sou` file. Pages are read when they are touched.

    The mapping is private: tensors that share its memory may be written to and the file stays as
    it is. While a model is in use its file may be replaced, but not written over.

    Raises:
        NotFoundError: there is no such file.
        InvalidError: it is no `.sou` file, of another version, cut off, or contradicts itself.
        CorruptError: the seal, or the hash of a piece that is used, does not fit.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._named():
            self._map, self.directory, self.seal, self._end = _opened(path)
        self._view = memoryview(self._map)
        self._sound: set[int] = set()
        self.sections = {piece.name: piece for piece in self.directory.sections}
        self.tensors = {piece.name: piece for piece in self.directory.tensors}

    def close(self) -> None:
        """Unmap the file, unless tensors still share its memory: then they keep it."""
        with contextlib.suppress(BufferError):
            self._view.release()
            self._map.close()

    def text(self, name: SectionName) -> str:
        """A section of text; empty if the file has none."""
        with self._named():
            if (piece := self.sections.get(name)) is None:
                return ""
            try:
                return bytes(self._content(piece)).decode()
            except UnicodeDecodeError as error:
                raise InvalidError(f"section {name!r} is no UTF-8: {error}") from None

    def tensor(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor's values. Floats that the file holds as `dtype` are not copied."""
        with self._named(name):
            piece = self._piece(name)
            return blocks.decode(piece.kind, piece.shape, self._content(piece), dtype)

    def blocks(self, name: str) -> Blocks | None:
        """A tensor's whole numbers and scales; None if it is stored as floats."""
        with self._named(name):
            piece = self._piece(name)
            if piece.kind in FLOATS:
                return None
            return blocks.split(piece.kind, piece.shape, self._content(piece))

    def verify(self) -> None:
        """Read everything: each hash, and that nothing hides between the pieces."""
        with self._named():
            at = self._end
            for piece in self.directory.pieces:
                self._content(piece)
                if any(self._view[at : piece.at]):
                    raise CorruptError(f"bytes before {piece.name!r} are not zero")
                at = piece.at + piece.bytes
        for name in self.tensors:
            self.tensor(name)

    def _piece(self, name: str) -> StoredTensor:
        if (piece := self.tensors.get(name)) is None:
            raise InvalidError("it is missing")
        return piece

    def _content(self, piece: Section) -> memoryview:
        content = self._view[piece.at : piece.at + piece.bytes]
        if piece.at not in self._sound:
            digest = hashlib.sha256()
            for start in range(0, piece.bytes, PIECE):
                digest.update(content[start : start + PIECE])
            if digest.hexdigest() != piece.sha256:
                raise CorruptError(f"{piece.name!r} is not what was written")
            self._sound.add(piece.at)
        return content

    @contextmanager
    def _named(self, tensor: str = "") -> Generator[None]:
        where = f"{str(self.path)!r}" + (f", tensor {tensor!r}" if tensor else "")
        try:
            yield
        except (InvalidError, CorruptError) as error:
            kind = type(error)
            raise kind(f"model file {where}: {error}; fetch it again or convert anew") from error


def _opened(path: Path) -> tuple[mmap.mmap, Directory, str, int]:
    """The mapping, what is in it, its seal, and where its directory ends."""
    if not path.is_file():
        raise NotFoundError(f"no model file {str(path)!r}; name an existing .sou file")
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        head = file.read(HEAD)
        size = read_head(head, length)
        directory = read_directory(head, file.read(size), length)
        mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY)
    return mapped, directory, head[HEADER.size :].hex(), HEAD + size
