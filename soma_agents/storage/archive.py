"""Old content of the event log, moved out of its database into files of their own.

A segment is a gzip file of JSON lines `[offset, payload, salt]`, named by its first offset; payload
and salt (hex) are null where they were erased. Everything else of an event (ids, causes, keys, the
chain of hashes) stays in the log, so that lineage, order and deduplication need no archive.
"""

import gzip
import json
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

from arbiters.errors import CorruptError
from soma_agents.storage.chain import matches
from soma_agents.storage.database import Row
from soma_agents.storage.files import make_directory, write_atomic

Content = tuple[str, bytes] | tuple[None, None]
"""A payload and its salt, both None once erased."""

_CACHED = 4
"""Segments kept in memory for readers that come from far behind."""


class Archive:
    """The segments of one log. Blocking; to be called outside the event loop."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._cache: OrderedDict[int, dict[int, Content]] = OrderedDict()

    def write(self, segment: int, contents: Iterable[tuple[int, Content]]) -> None:
        """Store a segment, durably; one that is there already is replaced.

        Raises:
            StorageFullError: there is no room; what was there stands.
        """
        lines = (
            json.dumps(
                [offset, payload, salt.hex() if salt is not None else None], ensure_ascii=False
            )
            for offset, (payload, salt) in contents
        )
        make_directory(self.directory)
        packed = gzip.compress("\n".join(lines).encode(), compresslevel=6, mtime=0)
        write_atomic(self._file(segment), packed)
        self._cache.pop(segment, None)

    def contents(self, segment: int) -> dict[int, Content]:
        """Offset → content of everything in a segment.

        Raises:
            CorruptError: it is missing, or not what was written.
        """
        if segment not in self._cache:
            self._cache[segment] = self._read(segment)
            while len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(segment)
        return self._cache[segment]

    def erase(self, segment: int, offsets: Iterable[int]) -> None:
        """Remove content for good; raises what `contents` and `write` raise."""
        gone = dict.fromkeys(offsets, (None, None))
        self.write(segment, (self.contents(segment) | gone).items())

    def content(self, segment: int, offset: int, payload_hash: bytes) -> Content:
        """The content of one event, proven by its hash; raises what `contents` raises."""
        found = self.contents(segment).get(offset)
        if found is None or not matches(*found, payload_hash):
            raise self._damaged(segment, f"the content of event {offset} is not what was written")
        return found

    def restored(self, rows: Sequence[Row]) -> list[Row]:
        """Rows of `ALL_COLUMNS` and their segment as `ALL_COLUMNS`, with content from the archive."""
        return [self._restored(row[:-1], row[-1]) for row in rows]

    def _restored(self, row: Row, segment: int | None) -> Row:
        if segment is None:
            return row
        *header, _, _, payload_hash, chained = row
        payload, salt = self.content(segment, row[0], payload_hash)
        return (*header, payload, salt, payload_hash, chained)

    def _file(self, segment: int) -> Path:
        return self.directory / f"{segment:012d}.jsonl.gz"

    def _read(self, segment: int) -> dict[int, Content]:
        try:
            text = gzip.decompress(self._file(segment).read_bytes()).decode()
            # Not `splitlines`: that parts texts at separators of Unicode's own, too.
            lines = [json.loads(line) for line in text.split("\n")]
            return {
                offset: (payload, bytes.fromhex(salt)) if payload is not None else (None, None)
                for offset, payload, salt in lines
            }
        except FileNotFoundError:
            raise self._damaged(segment, "it is missing") from None
        except (OSError, EOFError, ValueError, TypeError, zlib.error) as error:
            raise self._damaged(segment, str(error)) from error

    def _damaged(self, segment: int, why: str) -> CorruptError:
        return CorruptError(f"{self._file(segment)}: {why}; restore it from a backup")
