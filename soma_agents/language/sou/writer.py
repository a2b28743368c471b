"""Writing `.sou` files: one tensor in memory at a time, there whole or not at all."""

import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from arbiters.errors import InvalidError, StorageFullError
from soma_agents.language.sou.blocks import Kind, encode, size_of
from soma_agents.language.sou.card import Card
from soma_agents.language.sou.header import HEAD, MOST_DIRECTORY, head_of
from soma_agents.language.sou.layout import (
    UNKNOWN_HASH,
    Directory,
    Section,
    StoredAdapter,
    StoredTensor,
    aligned,
)
from soma_agents.language.transformer import TransformerConfig


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to be written: how, and where it comes from when its turn has come."""

    kind: Kind
    shape: tuple[int, ...]
    fetch: Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Draft:
    """All that is to be in a file. `tensors` are named as in `Transformer.state_dict`."""

    config: TransformerConfig
    tensors: Mapping[str, Planned]
    tokenizer: str = ""
    """A Hugging Face `tokenizer.json`."""
    template: str = ""
    eos_ids: tuple[int, ...] = ()
    card: Card = field(default_factory=Card)
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    adapter: StoredAdapter | None = None


def write_sou(path: Path, draft: Draft) -> None:
    """Write a file durably; the same draft always gives the same bytes.

    Raises:
        InvalidError: a tensor cannot be stored so, is of another shape, or is broken.
        StorageFullError: the disk is full; what was there stands.
    """
    texts = {"tokenizer": draft.tokenizer.encode(), "template": draft.template.encode()}
    texts = {name: text for name, text in texts.items() if text}
    directory = _placed(draft, texts)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            _fill(file, draft, texts, directory)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(f"no room left to write {path}; free some disk space") from error
        raise
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
    _sync_directory(path.absolute().parent)


def _placed(draft: Draft, texts: Mapping[str, bytes]) -> Directory:
    """The directory with every place in it, hashes not yet known.

    Places depend on the directory's length and stand in it: they are moved until they fit.
    """
    length = 0
    for _ in range(8):
        at = HEAD + length
        sections: list[Section] = []
        for name, text in texts.items():
            at = aligned(at)
            sections.append(Section(name=name, at=at, bytes=len(text), sha256=UNKNOWN_HASH))
            at += len(text)
        tensors: list[StoredTensor] = []
        for name, planned in draft.tensors.items():
            at, size = aligned(at), size_of(planned.kind, planned.shape)
            tensors.append(
                StoredTensor(
                    name=name,
                    at=at,
                    bytes=size,
                    sha256=UNKNOWN_HASH,
                    kind=planned.kind,
                    shape=planned.shape,
                )
            )
            at += size
        directory = _directory(draft, sections, tensors)
        if (found := len(directory.encoded())) == length:
            return directory
        length = found
    raise InvalidError(f"the directory of {len(draft.tensors)!r} tensors finds no fixed length")


def _directory(draft: Draft, sections: list[Section], tensors: list[StoredTensor]) -> Directory:
    directory = Directory(
        config=draft.config,
        eos_ids=draft.eos_ids,
        card=draft.card,
        metadata=dict(draft.metadata),
        adapter=draft.adapter,
        sections=tuple(sections),
        tensors=tuple(tensors),
    )
    if (size := len(directory.encoded())) > MOST_DIRECTORY:
        raise InvalidError(f"a directory of {size!r} bytes; {MOST_DIRECTORY!r} is the most")
    return directory


def _fill(file: BinaryIO, draft: Draft, texts: Mapping[str, bytes], directory: Directory) -> None:
    """Pieces first; header and directory last, when the hashes are known."""

    def put(piece: Section, content: bytes) -> str:
        file.write(bytes(piece.at - file.tell()))  # zeros up to the alignment
        file.write(content)
        return hashlib.sha256(content).hexdigest()

    file.write(bytes(HEAD + len(directory.encoded())))
    sections = tuple(
        piece.model_copy(update={"sha256": put(piece, texts[piece.name])})
        for piece in directory.sections
    )
    tensors = tuple(
        piece.model_copy(update={"sha256": put(piece, _content(piece, draft.tensors[piece.name]))})
        for piece in directory.tensors
    )
    length = file.tell()
    found = directory.model_copy(update={"sections": sections, "tensors": tensors}).encoded()
    file.seek(0)
    file.write(head_of(found, length) + found)


def _content(piece: StoredTensor, planned: Planned) -> bytes:
    tensor = planned.fetch()
    if tuple(tensor.shape) != piece.shape:
        raise InvalidError(
            f"tensor {piece.name!r} is {tuple(tensor.shape)!r}, announced as {piece.shape!r}"
        )
    try:
        return encode(piece.kind, tensor)
    except InvalidError as error:
        raise InvalidError(f"tensor {piece.name!r}: {error}") from error


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
