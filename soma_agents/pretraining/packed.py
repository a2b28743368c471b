"""A corpus as token ids on disk: memory-mapped, documents behind each other, an end between them.

Beside the tokens of either part stand the edges of what is only heard in its dialogues: pairs of
places, int64, of which a corpus of plain text has none.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from arbiters.errors import CorruptError, InvalidError
from soma_agents.pretraining.readers import Dialogue, Document, Place, Turn, read
from soma_agents.pretraining.vocabulary import UNHEARD, Edges, Encoded, Vocabulary
from soma_agents.storage.files import make_directory, room_for, sync_file, write_atomic

TRAIN, HELD_OUT, INDEX = "train.bin", "held-out.bin", "index.json"
TRAIN_HEARD, HELD_OUT_HEARD = "train.heard", "held-out.heard"
PARTS = {False: (TRAIN, TRAIN_HEARD), True: (HELD_OUT, HELD_OUT_HEARD)}
"""Whether held out → the files of its tokens and of the edges in them."""
FORM = 2
"""Of what lies in the files; what another release packed is packed anew."""
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
    heard: Edges = field(default_factory=lambda: UNHEARD)
    held_out_heard: Edges = field(default_factory=lambda: UNHEARD)


@dataclass(slots=True)
class _Progress:
    """What has been written: the place behind it, and how many numbers are in each file."""

    key: str
    place: Place
    counts: dict[str, int]
    done: bool = False


def pack(
    files: Sequence[Path],
    vocabulary: Vocabulary,
    directory: Path,
    *,
    held_out: Sequence[Path] = (),
    share: float = 0.01,
    system: str = "",
    on_progress: Callable[[int], None] = lambda _: None,
) -> Packed:
    """Encode a corpus into `directory`, going on where a run before was interrupted.

    Where no files are `held_out`, a `share` of the documents is, chosen by a hash of their
    content. Dialogues that begin without a system message get `system`, unless it is empty.
    `on_progress` hears the number of files done.

    Raises:
        InvalidError: a file cannot be read, nothing is in it, or its ids are not this vocabulary's.
        StorageFullError: the disk is full.
    """
    make_directory(directory)
    key = _key(files, held_out, vocabulary, share, system)
    progress = _found(directory, key)
    with room_for(directory):
        if not progress.done:
            with _Writer(directory, vocabulary, progress, system) as writer:
                writer.take(files, share=0.0 if held_out else share, on_progress=on_progress)
                for text in _texts(list(held_out)):
                    writer.add(text, held_out=True)
                writer.finish()
    mapped = {
        name: _mapped(directory / name, _type(name, vocabulary.size), count)
        for name, count in progress.counts.items()
    }
    return Packed(mapped[TRAIN], mapped[HELD_OUT], key, mapped[TRAIN_HEARD], mapped[HELD_OUT_HEARD])


def _texts(files: list[Path]) -> Iterator[Document]:
    return (found.document for found in read(files))


class _Writer:
    """Appends tokens to the files, and says in the index how far they can be trusted."""

    def __init__(
        self, directory: Path, vocabulary: Vocabulary, progress: _Progress, system: str
    ) -> None:
        self._directory = directory
        self._vocabulary = vocabulary
        self._progress = progress
        self._before = (Turn("system", system),) if system else ()
        self._waiting: dict[bool, list[str | Dialogue]] = {False: [], True: []}
        self._characters = self._since = 0
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> Self:
        for name, count in self._progress.counts.items():
            file = (self._directory / name).open("ab")
            # What came behind the last index is written anew.
            file.truncate(count * np.dtype(_type(name, self._vocabulary.size)).itemsize)
            self._files[name] = file
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def take(
        self, files: Sequence[Path], *, share: float, on_progress: Callable[[int], None]
    ) -> None:
        """Everything behind the place reached; a share of the documents is held out."""
        for found in read(list(files), self._progress.place):
            before = self._progress.place.file
            self.add(found.document, held_out=_drawn(found.document, share))
            if self._since >= FLUSH:
                self._flush(found.behind)
            if found.behind.file != before:
                on_progress(found.behind.file)
            self._progress.place = found.behind

    def add(self, document: Document, *, held_out: bool) -> None:
        """One document for either part."""
        if isinstance(document, np.ndarray):
            self._append(held_out, self._checked(document), UNHEARD)
            return
        self._waiting[held_out].append(document)
        self._characters += len(_plain(document))
        self._since += len(_plain(document))
        if self._characters >= CHUNK:
            self._encode()

    def finish(self) -> None:
        """Write what waits, and that nothing is left to do."""
        self._encode()
        if not self._progress.counts[TRAIN]:
            raise InvalidError("the corpus is empty: there is not a token in it to learn from")
        self._progress.done = True
        self._flush(self._progress.place)

    def _encode(self) -> None:
        for part, documents in self._waiting.items():
            for encoded in map(self._encoded, documents):
                self._append(part, encoded.ids, encoded.heard)
            documents.clear()
        self._characters = 0

    def _encoded(self, document: str | Dialogue) -> Encoded:
        if isinstance(document, str):
            return self._vocabulary.text(document)
        begun = document and document[0].role == "system"
        return self._vocabulary.dialogue(document if begun else self._before + document)

    def _append(self, held_out: bool, ids: npt.NDArray[np.unsignedinteger], heard: Edges) -> None:
        tokens, edges = PARTS[held_out]
        self._put(edges, heard + self._progress.counts[tokens])
        self._put(tokens, ids)

    def _put(self, name: str, numbers: npt.NDArray[np.integer]) -> None:
        kind = _type(name, self._vocabulary.size)
        self._files[name].write(numbers.astype(kind).tobytes())
        self._progress.counts[name] += len(numbers)

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
        for name in self._files:
            sync_file(self._directory / name)
        self._progress.place = place
        state = self._progress
        content = {
            "key": state.key,
            "place": [place.file, place.document],
            "counts": state.counts,
            "done": state.done,
        }
        write_atomic(self._directory / INDEX, json.dumps(content).encode())
        self._since = 0


def taken(
    part: npt.NDArray[np.unsignedinteger], rows: Sequence[int], size: int, vocabulary: int
) -> npt.NDArray[np.int64]:
    """(B, T + 1) of these rows of `size` tokens, each with the token behind it.

    Raises:
        InvalidError: a token is not of this vocabulary.
    """
    found = np.stack([part[row * size : row * size + size + 1] for row in rows])
    if (top := int(found.max())) >= vocabulary:
        raise InvalidError(
            f"token {top} is beyond the model's {vocabulary}; "
            "the corpus was packed with another vocabulary"
        )
    return found.astype(np.int64)


def rows_of(tokens: npt.NDArray[np.unsignedinteger], row: int) -> int:
    """How many rows of `row` tokens, each with the one behind it, there are."""
    return max(0, (len(tokens) - 1) // row)


def learnt(heard: Edges, rows: Sequence[int], row: int) -> npt.NDArray[np.bool_]:
    """(B, row): which tokens that follow those of these rows are to be learnt, not only heard."""
    places = np.asarray(rows, np.int64)[:, None] * row + np.arange(1, row + 1)
    return np.searchsorted(heard, places, "right") % 2 == 0


def unheard(tokens: int, heard: Edges) -> int:
    """How many of so many tokens are to be learnt."""
    return tokens - int((heard[1::2] - heard[::2]).sum())


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
    packed = isinstance(document, np.ndarray)
    content = document.tobytes() if packed else _plain(document).encode()
    return int.from_bytes(blake2b(content, digest_size=6).digest()) < share * 2**48


def _plain(document: str | Dialogue) -> str:
    """A document's words: what it is told apart and measured by."""
    if isinstance(document, str):
        return document
    return "\0".join(part for turn in document for part in (turn.role, turn.content))


def _type(name: str, vocabulary: int) -> str:
    """How the numbers of a file are written."""
    if name in (TRAIN_HEARD, HELD_OUT_HEARD):
        return "<i8"
    return "<u2" if vocabulary <= 1 << 16 else "<u4"


def _key(
    files: Sequence[Path],
    held_out: Sequence[Path],
    vocabulary: Vocabulary,
    share: float,
    system: str,
) -> str:
    facts = [
        [[str(path.absolute()), path.stat().st_size] for path in part] for part in (files, held_out)
    ]
    words = sha256(vocabulary.source.encode()).hexdigest()
    text = json.dumps([FORM, facts, share, words, system])
    return sha256(text.encode()).hexdigest()


def _found(directory: Path, key: str) -> _Progress:
    try:
        content = json.loads((directory / INDEX).read_text())
        if content["key"] == key:
            counts = {name: int(content["counts"][name]) for name in _nothing()}
            return _Progress(key, Place(*content["place"]), counts, content["done"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing of use: begin
    return _Progress(key, Place(), _nothing())


def _nothing() -> dict[str, int]:
    return {name: 0 for names in PARTS.values() for name in names}


def _mapped(path: Path, kind: str, count: int) -> npt.NDArray[Any]:
    if path.stat().st_size != count * np.dtype(kind).itemsize:
        raise CorruptError(f"{str(path)!r} has not the {count} numbers it should; delete it")
    return np.memmap(path, kind, "r") if count else np.empty(0, kind)
