"""Corpora of any size, document by document, with a place to go on from.

Text (`.txt`, `.md`), records (`.jsonl`, `.json`, `.csv`, `.parquet`), packed tokens (`.bin`), each
perhaps compressed (`.zst`), and folders of them. A record has a `text`, or `messages` with roles
and contents. Text is text, whatever it spells out: only a vocabulary makes marks of a conversation.
"""

import csv
import io
import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from arbiters.errors import InvalidError, NotFoundError

TEXT, MESSAGES = "text", "messages"
PIECE = 1 << 13
"""Characters of a text file that count as a document, up to the next blank line."""
LONGEST = 1 << 26
"""Characters of a line or record; more is no text."""
TOKENS = 1 << 20
"""Tokens of a `.bin` file that are read at a time."""
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side of a dialogue says; see `tokenizer.Message`."""

    role: str
    content: str


Dialogue = tuple[Turn, ...]
Document = str | Dialogue | npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a corpus: so many files done, so many documents of the next one read."""

    file: int = 0
    document: int = 0


@dataclass(frozen=True, slots=True)
class Read:
    """A document (text, a dialogue, or token ids of a `.bin`), and the place behind it."""

    document: Document
    behind: Place


def files_of(corpus: Path) -> list[Path]:
    """The files of a corpus in a fixed order.

    Raises:
        NotFoundError: nothing is there.
        InvalidError: no file in it is of a kind that can be read.
    """
    if not corpus.exists():
        raise NotFoundError(f"corpus {str(corpus)!r} does not exist; name a file or a folder")
    if corpus.is_file():
        _reader(corpus)
        return [corpus]
    found = sorted(p for p in corpus.rglob("*") if p.is_file() and _kind(p) in READERS)
    if not found:
        raise InvalidError(f"folder {str(corpus)!r} has no {', '.join(READERS)}, plain or .zst")
    return found


def read(files: list[Path], start: Place | None = None) -> Iterator[Read]:
    """Every document behind `start`, in order.

    Raises:
        InvalidError: a file is not of the kind that its name says; names it and the place.
    """
    start = start or Place()
    for number, path in enumerate(files[start.file :], start.file):
        skipped = start.document if number == start.file else 0
        with closing(_documents(path)) as documents:
            for count, document in enumerate(documents, 1):
                if count > skipped:
                    yield Read(document, Place(number, count))


def _documents(path: Path) -> Generator[Document]:
    try:
        with _opened(path) as source:
            yield from _reader(path)(path, source)
    except UnicodeDecodeError as error:
        raise InvalidError(
            f"{str(path)!r} is no UTF-8 text: byte {error.object[error.start]:#04x} "
            f"({error.reason}); convert it, or leave it out"
        ) from None
    except (OSError, EOFError, ValueError) as error:
        raise InvalidError(f"{str(path)!r} cannot be read: {error}") from None


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".zst":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _reader(path: Path) -> Any:
    if (kind := _kind(path)) not in READERS:
        raise InvalidError(
            f"{str(path)!r} is of unknown kind {kind!r}; use {', '.join(READERS)}, plain or .zst"
        )
    return READERS[kind]


def _opened(path: Path) -> BinaryIO:
    if path.suffix.lower() != ".zst":
        return path.open("rb")
    from backports import zstd

    return cast("BinaryIO", _Checked(zstd.open(path, "rb"), path, zstd.ZstdError))


class _Checked(io.RawIOBase):
    """A compressed file whose damage is an error of ours."""

    def __init__(self, source: Any, path: Path, damage: type[Exception]) -> None:
        self._source = source
        self._path = path
        self._damage = damage

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._source.readinto(buffer)
        except self._damage as error:
            raise InvalidError(f"{str(self._path)!r} is damaged: {error}") from None

    def close(self) -> None:
        self._source.close()
        super().close()


def _text(_: Path, source: BinaryIO) -> Iterator[str]:
    """Pieces of about `PIECE` characters that end at a blank line, where there is one."""
    piece: list[str] = []
    length = 0
    for line in _lines(source):
        piece.append(line)
        length += len(line)
        if (length >= PIECE and not line.strip()) or length >= 2 * PIECE:
            yield "".join(piece)
            piece, length = [], 0
    if "".join(piece).strip():
        yield "".join(piece)


def _lines(source: BinaryIO) -> Iterator[str]:
    with io.TextIOWrapper(io.BufferedReader(cast("Any", source)), encoding="utf-8") as text:
        while line := text.readline(LONGEST):
            if "\0" in line:
                raise ValueError("it has NUL bytes: it is no text")
            yield line


def _json_lines(_: Path, source: BinaryIO) -> Iterator[Document]:
    for number, line in enumerate(_lines(source), 1):
        if line.strip():
            yield _record(json.loads(line), f"line {number}")


def _json(_: Path, source: BinaryIO) -> Iterator[Document]:
    content = json.loads(source.read())
    for number, record in enumerate(content if isinstance(content, list) else [content], 1):
        yield _record(record, f"record {number}")


def _csv(_: Path, source: BinaryIO) -> Iterator[Document]:
    with io.TextIOWrapper(
        io.BufferedReader(cast("Any", source)), encoding="utf-8", newline=""
    ) as text:
        for number, record in enumerate(csv.DictReader(text), 1):
            yield _record(record, f"row {number}")


def _parquet(path: Path, source: BinaryIO) -> Iterator[Document]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(io.BytesIO(source.read()) if path.suffix == ".zst" else source)
        wanted = [name for name in (TEXT, MESSAGES) if name in file.schema_arrow.names]
        if not wanted:
            raise ValueError(f"its columns are {file.schema_arrow.names}, none is {TEXT!r}")
        for batch in file.iter_batches(columns=wanted):
            for record in batch.to_pylist():
                yield _record(record, "a row")
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def _packed(_: Path, source: BinaryIO) -> Iterator[npt.NDArray[np.uint32]]:
    """Token ids as little-endian uint16, the form that nanoGPT writes."""
    while block := source.read(2 * TOKENS):
        if len(block) % 2:
            raise ValueError("it has an odd number of bytes; tokens take two")
        yield np.frombuffer(block, "<u2").astype(np.uint32)


def _record(record: Any, where: str) -> Document:
    if isinstance(record, str):
        return record
    if isinstance(record, Mapping):
        if isinstance(text := record.get(TEXT), str):
            return text
        if isinstance(turns := record.get(MESSAGES), list):
            return tuple(_turn(turn, where) for turn in cast("list[Any]", turns))
        raise ValueError(f"{where} has {sorted(map(str, record))}, not {TEXT!r} or {MESSAGES!r}")
    raise ValueError(f"{where} is {str(record)[:40]!r}, no text and no object")


def _turn(turn: Any, where: str) -> Turn:
    match turn:
        case {"role": str(role), "content": str(content)} if role in ROLES:
            return Turn(role, content)
    raise ValueError(
        f"{where} has the message {str(turn)[:80]!r}; it needs a content of text and a role of "
        f"{', '.join(ROLES)}"
    )


READERS = {
    ".txt": _text,
    ".md": _text,
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".bin": _packed,
}
