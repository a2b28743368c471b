"""The directory of a `.sou` file: what is in it and where, checked before anything is read.

Everything here runs on numbers and names from an untrusted file; nothing is allocated but the
directory itself, whose length is bounded.
"""

import hashlib
import json
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from arbiters.errors import CorruptError, InvalidError
from soma_agents.language.sou.blocks import Kind, size_of
from soma_agents.language.sou.card import Card
from soma_agents.language.sou.header import HEAD, HEADER
from soma_agents.language.transformer import TransformerConfig

ALIGNMENT = 64
"""Every section and tensor begins at a multiple of it: a cache line."""
UNKNOWN_HASH = "0" * 64

Count = Annotated[int, Field(ge=0, lt=2**63)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Section(_Strict):
    """A piece of the file: where it begins, how long it is, what it must hash to."""

    name: Name
    at: Count
    bytes: Count
    sha256: Hash


class StoredTensor(Section):
    """A piece that is a tensor."""

    kind: Kind
    shape: Annotated[
        tuple[Annotated[int, Field(ge=1, lt=2**48)], ...],
        Field(min_length=1, max_length=4, strict=False),
    ]


class StoredAdapter(_Strict):
    """Sizes of the LoRA whose matrices are the tensors `adapter.<projection>.a` and `.b`."""

    rank: Annotated[int, Field(ge=1, le=4096)]
    alpha: Annotated[float, Field(gt=0)]
    targets: Annotated[tuple[Name, ...], Field(min_length=1, max_length=16, strict=False)]


class Directory(_Strict):
    """What the file holds."""

    config: TransformerConfig
    eos_ids: Annotated[tuple[Count, ...], Field(max_length=64, strict=False)] = ()
    card: Card = Card()
    metadata: dict[Name, Annotated[str, Field(max_length=65536)]] = Field(default_factory=dict)
    adapter: StoredAdapter | None = None
    sections: tuple[Section, ...] = Field(strict=False)
    tensors: tuple[StoredTensor, ...] = Field(strict=False)

    @property
    def pieces(self) -> tuple[Section, ...]:
        """Sections, then tensors: the order in which they lie in the file."""
        return (*self.sections, *self.tensors)

    def encoded(self) -> bytes:
        """The directory as it stands in the file."""
        value: dict[str, Any] = self.model_dump(
            mode="json", exclude={"config"}, exclude_defaults=True
        )
        whole = {"config": asdict(self.config), **value}
        return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()


def aligned(at: int) -> int:
    """`at` rounded up to where a piece may begin."""
    return -(-at // ALIGNMENT) * ALIGNMENT


def read_directory(head: bytes, directory: bytes, length: int) -> Directory:
    """The checked directory: every piece lies where the one before it ends, inside the file.

    Raises:
        CorruptError: the seal does not fit: something was changed.
        InvalidError: the directory contradicts itself or the file's length.
    """
    if hashlib.sha256(head[: HEADER.size] + directory).digest() != head[HEADER.size :]:
        raise CorruptError("its seal does not fit: it is not what was written")
    try:
        found = Directory.model_validate_json(directory)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the directory"
        raise InvalidError(f"{where[:200]}: {first['msg'][:200]}") from None
    _check_places(found, HEAD + len(directory), length)
    return found


def _check_places(directory: Directory, at: int, length: int) -> None:
    names: set[tuple[bool, str]] = set()
    for piece in directory.pieces:
        tensor = isinstance(piece, StoredTensor)
        if (tensor, piece.name) in names:
            raise InvalidError(f"{piece.name!r} is in it twice")
        names.add((tensor, piece.name))
        if isinstance(piece, StoredTensor) and piece.bytes != (
            needed := size_of(piece.kind, piece.shape)
        ):
            raise InvalidError(
                f"tensor {piece.name!r} of {piece.shape!r} {piece.kind} takes {needed!r} bytes, "
                f"not {piece.bytes!r}"
            )
        if piece.at != aligned(at) or piece.at + piece.bytes > length:
            raise InvalidError(
                f"{piece.name!r} is said to lie at {piece.at!r} with {piece.bytes!r} bytes, "
                f"where {aligned(at)!r} of {length!r} is free"
            )
        at = piece.at + piece.bytes
    if at != length:
        raise InvalidError(f"{length - at!r} bytes at its end belong to nothing")


SectionName = Literal["tokenizer", "template"]
"""A Hugging Face `tokenizer.json`, and the chat template in Jinja; either may be absent."""
