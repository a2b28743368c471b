"""A disk with a cache: what was synced stays, of the rest anything may be left after a power cut.

The model is the pessimist's reading of POSIX: fsync of a file keeps its content, not its name;
fsync of a directory keeps its names, not what they stand for. Of unsynced writes any subset
survives, each whole, torn between sectors or bytes, or as a longer file full of zeros. To let any
subset survive, in order, is to let writes land out of order: a later one may be there without an
earlier one. Writes never harm the bytes beside them (SQLite calls that powersafe overwrite).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from bench.powercut.recorder import (
    ROOT,
    Create,
    Effect,
    Note,
    Rename,
    Sync,
    SyncDirectory,
    Truncate,
    Unlink,
    Write,
)

SECTOR = 512
_LUCK = (0.0, 0.3, 0.7, 0.95, 1.0)
"""How likely an unsynced effect survives; drawn once for each file or directory of a cut."""

Tree = Mapping[str, bytes | None]
"""Relative path → content, None for a directory; parents before their children."""


@dataclass(slots=True)
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Write | Truncate] = field(default_factory=list[Write | Truncate])


@dataclass(slots=True)
class _Directory:
    durable: dict[str, int] = field(default_factory=dict[str, int])
    pending: list[Create | Unlink | Rename] = field(default_factory=list[Create | Unlink | Rename])


class Disk:
    """What is on the disk for certain, and what is on its way there."""

    def __init__(self) -> None:
        self._files: dict[int, _File] = {}
        self._directories: dict[int, _Directory] = {ROOT: _Directory()}

    def apply(self, effect: Effect) -> None:
        """Take in the next effect of a recording."""
        match effect:
            case Write() | Truncate():
                self._files[effect.inode].pending.append(effect)
            case Sync():
                file = self._files[effect.inode]
                for change in file.pending:
                    _change(file.durable, change)
                file.pending.clear()
            case Create() | Unlink() | Rename():
                if isinstance(effect, Create):
                    self._make(effect)
                self._directories[effect.directory].pending.append(effect)
            case SyncDirectory():
                directory = self._directories[effect.directory]
                for change in directory.pending:
                    _enter(directory.durable, change)
                directory.pending.clear()
            case Note():
                pass

    def _make(self, effect: Create) -> None:
        if effect.is_directory:
            self._directories[effect.inode] = _Directory()
        else:
            self._files[effect.inode] = _File()

    def lose_power(self, dice: Random) -> Tree:
        """One of the states that may be found when the power comes back."""
        return dict(self._remains(ROOT, "", dice, _LUCK))

    def keep_power(self) -> Tree:
        """What the program itself sees: every effect, synced or not."""
        return dict(self._remains(ROOT, "", Random(0), (1.0,)))

    def _remains(
        self, inode: int, path: str, dice: Random, lucks: Sequence[float]
    ) -> Iterator[tuple[str, bytes | None]]:
        for name, child in _names(self._directories[inode], dice, dice.choice(lucks)).items():
            if child in self._directories:
                yield f"{path}{name}", None
                yield from self._remains(child, f"{path}{name}/", dice, lucks)
            else:
                yield f"{path}{name}", _content(self._files[child], dice, dice.choice(lucks))


def _names(directory: _Directory, dice: Random, luck: float) -> dict[str, int]:
    names = dict(directory.durable)
    for change in directory.pending:
        if dice.random() < luck:
            _enter(names, change)
    return names


def _content(file: _File, dice: Random, luck: float) -> bytes:
    content = bytearray(file.durable)
    for change in file.pending:
        if dice.random() < luck:
            _change(content, change)
        elif isinstance(change, Write):
            _tear(content, change, dice)
    return bytes(content)


def materialise(tree: Tree, directory: Path) -> None:
    """Write the state out, so that the real code can open it."""
    for name, content in tree.items():
        if content is None:
            (directory / name).mkdir()
        else:
            (directory / name).write_bytes(content)


def _enter(names: dict[str, int], change: Create | Unlink | Rename) -> None:
    match change:
        case Create():
            names[change.name] = change.inode
        case Unlink():
            names.pop(change.name, None)
        case Rename():
            names.pop(change.old, None)
            names[change.new] = change.inode


def _change(content: bytearray, change: Write | Truncate) -> None:
    match change:
        case Write():
            _stretch(content, change.offset)
            content[change.offset : change.offset + len(change.data)] = change.data
        case Truncate():
            del content[change.size :]
            _stretch(content, change.size)


def _stretch(content: bytearray, size: int) -> None:
    content.extend(bytes(max(0, size - len(content))))


def _tear(content: bytearray, write: Write, dice: Random) -> None:
    """Let a part of a write survive, or nothing."""
    match dice.choice(("nothing", "prefix", "sectors", "zeros")):
        case "prefix":
            kept = write.data[: dice.randrange(len(write.data))]
            _change(content, Write(write.inode, write.offset, kept))
        case "sectors":
            for offset, piece in _sectors(write):
                if dice.random() < 0.5:
                    _change(content, Write(write.inode, offset, piece))
        case "zeros":
            _stretch(content, write.offset + len(write.data))
        case _:
            pass


def _sectors(write: Write) -> Iterator[tuple[int, bytes]]:
    at, end = write.offset, write.offset + len(write.data)
    while at < end:
        upto = min(end, (at // SECTOR + 1) * SECTOR)
        yield at, write.data[at - write.offset : upto - write.offset]
        at = upto
