"""A corpus as token ids on disk: memory-mapped, documents behind each other, an end between them."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from arbiters.errors import CorruptError, InvalidError
from soma_agents.pretraining.readers import Document, Place, read
from soma_agents.pretraining.vocabulary import Vocabulary
from soma_agents.storage.files import make_directory, room_for, sync_file, write_atomic

TRAIN, HELD_OUT, INDEX = "train.bin", "held-out.bin", "index.json"
CHUNK = 1 << 20
"""Characters that are encoded together."""
FLUSH = 1 << 24
"""Characters after which the place reached is written down."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Token ids of both parts of a corpus, mapped from disk."""

    train: npt.NDArray[np.unsignedinteger]
    held_out: npt.NDArray[np.unsignedinteger]
    identity: str
    """Hash of what they were made from."""


@dataclass(slots=True)
class _Progress:
    """What has been written: the place behind it, and tokens of either part."""

    key: str
    place: Place
    train: int = 0
    held_out: int = 0
    done: bool = False


def pack(
    files: Sequence[Path],
    vocabulary: Vocabulary,
    directory: Path,
    *,
    held_out: Sequence[Path] = (),
    share: float = 0.01,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Packed:
    """Encode a corpus into `directory`, going on where a run before was interrupted.

    Where no files are `held_out`, a `share` of the documents is, chosen by a hash of their
    content. `on_progress` hears the number of files done.

    Raises:
        InvalidError: a file cannot be read, nothing is in it, or its ids are not this vocabulary's.
        StorageFullError: the disk is full.
    """
    make_directory(directory)
    key = _key(files, held_out, vocabulary, share)
    progress = _found(directory, key)
    with room_for(directory):
        if not progress.done:
            with _Writer(directory, vocabulary, progress) as writer:
                writer.take(files, share=0.0 if held_out else share, on_progress=on_progress)
                for text in _texts(list(held_out)):
                    writer.add(text, held_out=True)
                writer.finish()
    return Packed(
        _mapped(directory / TRAIN, vocabulary.size, progress.train),
        _mapped(directory / HELD_OUT, vocabulary.size, progress.held_out),
        key,
    )


def _texts(files: list[Path]) -> Iterator[Document]:
    return (found.document for found in read(files))


class _Writer:
    """Appends tokens to the two files, and says in the index how far they can be trusted."""

    def __init__(self, directory: Path, vocabulary: Vocabulary, progress: _Progress) -> None:
        self._directory = directory
        self._vocabulary = vocabulary
        self._progress = progress
        self._type = _type(vocabulary.size)
        self._waiting: dict[bool, list[str]] = {False: [], True: []}
        self._characters = self._since = 0
        self._files: dict[bool, BinaryIO] = {}

    def __enter__(self) -> Self:
        width = np.dtype(self._type).itemsize
        for name, tokens, part in (
            (TRAIN, self._progress.train, False),
            (HELD_OUT, self._progress.held_out, True),
        ):
            file = (self._directory / name).open("ab")
            file.truncate(tokens * width)  # what came behind the last index is written anew
            self._files[part] = file
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def take(
        self, files: Sequence[Path], *, share: float, on_progress: Callable[[int], None]
    ) -> None:
        """Everything behind the place reached; a share of the documents is held out."""
        for found in read(list(files), self._progress.place):
            self.add(found.document, held_out=_drawn(found.document, share))
            if self._since >= FLUSH:
                self._flush(found.behind)
            if found.behind.file != self._progress.place.file:
                on_progress(found.behind.file)
            self._progress.place = found.behind

    def add(self, document: Document, *, held_out: bool) -> None:
        """One document for either part."""
        if not isinstance(document, str):
            self._append(held_out, self._checked(document))
            return
        self._waiting[held_out].append(document)
        self._characters += len(document)
        self._since += len(document)
        if self._characters >= CHUNK:
            self._encode()

    def finish(self) -> None:
        """Write what waits, and that nothing is left to do."""
        self._encode()
        if not self._progress.train:
            raise InvalidError("the corpus is empty: there is not a token in it to learn from")
        self._progress.done = True
        self._flush(self._progress.place)

    def _encode(self) -> None:
        end = np.uint32(self._vocabulary.end)
        for part, texts in self._waiting.items():
            ids = [np.append(self._vocabulary.encode(text), end) for text in texts]
            if ids:
                self._append(part, np.concatenate(ids))
            texts.clear()
        self._characters = 0

    def _append(self, held_out: bool, ids: npt.NDArray[np.unsignedinteger]) -> None:
        self._files[held_out].write(ids.astype(self._type).tobytes())
        if held_out:
            self._progress.held_out += len(ids)
        else:
            self._progress.train += len(ids)

    def _checked(self, ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        if len(ids) and (top := int(ids.max())) >= self._vocabulary.size:
            raise InvalidError(
                f"packed token {top} is beyond this vocabulary of {self._vocabulary.size}; "
                "name the vocabulary they were made with (--tokenizer)"
            )
        return ids

    def _flush(self, place: Place) -> None:
        self._encode()
        for file in self._files.values():
            file.flush()
        for name in (TRAIN, HELD_OUT):
            sync_file(self._directory / name)
        self._progress.place = place
        state = self._progress
        content = {
            "key": state.key,
            "place": [place.file, place.document],
            "train": state.train,
            "held_out": state.held_out,
            "done": state.done,
        }
        write_atomic(self._directory / INDEX, json.dumps(content).encode())
        self._since = 0


def rows_of(tokens: npt.NDArray[np.unsignedinteger], row: int) -> int:
    """How many rows of `row` tokens, each with the one behind it, there are."""
    return max(0, (len(tokens) - 1) // row)


class Order:
    """Rows in an order that is drawn anew for each lap; any step's rows can be named at once."""

    def __init__(self, rows: int, *, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._lap = -1
        self._drawn: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def take(self, start: int, count: int) -> list[int]:
        """The rows of places `start` to `start + count` in the endless sequence of laps."""
        return [self._at(place) for place in range(start, start + count)]

    def _at(self, place: int) -> int:
        lap, within = divmod(place, self._rows)
        if lap != self._lap:
            self._lap = lap
            self._drawn = np.random.default_rng((self._seed, lap)).permutation(self._rows)
        return int(self._drawn[within])


def _drawn(document: Document, share: float) -> bool:
    if share <= 0:
        return False
    content = document.encode() if isinstance(document, str) else document.tobytes()
    return int.from_bytes(blake2b(content, digest_size=6).digest()) < share * 2**48


def _type(size: int) -> str:
    return "<u2" if size <= 1 << 16 else "<u4"


def _key(
    files: Sequence[Path], held_out: Sequence[Path], vocabulary: Vocabulary, share: float
) -> str:
    facts = [
        [[str(path.absolute()), path.stat().st_size] for path in part] for part in (files, held_out)
    ]
    text = json.dumps([facts, share, sha256(vocabulary.source.encode()).hexdigest()])
    return sha256(text.encode()).hexdigest()


def _found(directory: Path, key: str) -> _Progress:
    try:
        content = json.loads((directory / INDEX).read_text())
        if content["key"] == key:
            return _Progress(
                key,
                Place(*content["place"]),
                content["train"],
                content["held_out"],
                content["done"],
            )
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing of use: begin
    return _Progress(key, Place())


def _mapped(path: Path, vocabulary: int, tokens: int) -> npt.NDArray[np.unsignedinteger]:
    kind = np.dtype(_type(vocabulary))
    if path.stat().st_size != tokens * kind.itemsize:
        raise CorruptError(f"{str(path)!r} is not the {tokens} tokens it should be; delete it")
    return np.memmap(path, kind, "r") if tokens else np.empty(0, kind)
