"""Whether the tests find bugs: `python -m bench.bugs [--only NAME]`.

Each bug is a small edit of the kind that is made by mistake. It is made in a copy of the sources,
and the tests named beside it must fail there: not stop, not be skipped, fail.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_COPIED = ("policies", "arbiters", "soma_agents", "bench", "tests", "deploy", "pyproject.toml")
PATIENCE_SECONDS = 90
"""A test that takes longer for a bug has found it."""
_FAILED = 1
"""pytest's exit code when tests ran and some failed."""


@dataclass(frozen=True, slots=True)
class Bug:
    """Edits (file, what stands there once, what is put there) and the tests that must fail."""

    edits: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


def _bug(file: str, old: str, new: str, *tests: str) -> Bug:
    return Bug(((file, old, new),), tests)


_HOST = "arbiters/kernel/host.py"
_DATABASE = "soma_agents/storage/database.py"
_LOG = "soma_agents/storage/event_log.py"
_CUTS = "tests/chaos/test_powercut.py::test_nothing_acknowledged_is_lost_and_nothing_is_damaged"

BUGS: dict[str, Bug] = {
    "acknowledged before the commit": _bug(
        _DATABASE,
        'await _settled(self._statement("COMMIT"))',
        'asyncio.ensure_future(self._statement("COMMIT"))',
        f"{_CUTS}[event_log]",
    ),
    "synchronous = NORMAL": _bug(
        _DATABASE, 'synchronous = FULL",', 'synchronous = NORMAL",', f"{_CUTS}[event_log]"
    ),
    "manifest before the files": _bug(
        "soma_agents/storage/files.py",
        "                sync_file(path)\n                name",
        "                name",
        "tests/storage/test_files.py",
    ),
    "name not synced": _bug(
        "soma_agents/storage/files.py",
        "        partial.replace(path)\n    sync_directory(path.parent)",
        "        partial.replace(path)",
        _CUTS,
    ),
    "attempt counted after the handler": _bug(
        _HOST,
        "        before = await self._ledger.attempt(envelope.offset)\n        if 0 < before",
        "        before = 0\n        if 0 < before",
        "tests/kernel/test_host.py",
    ),
    "cursor moved apart from the effects": _bug(
        _HOST,
        "        async with self._in_time(), self._ledger.transaction():\n",
        "        await self._ledger.advance(envelopes[-1].offset, [])\n"
        "        async with self._in_time(), self._ledger.transaction():\n",
        "tests/chaos/test_kill_storm.py",
    ),
    "outbox emptied before it is published": _bug(
        _HOST,
        "            await self._append(waiting)\n            await self._ledger.sent(waiting)",
        "            await self._ledger.sent(waiting)\n            await self._append(waiting)",
        "tests/kernel/test_host.py",
    ),
    "effect without a key of its own": _bug(
        _HOST,
        'key = f"{self.arbiter.name}/{cause.id}/{which}"',
        'key = self._publisher.wrap(event).id + f"/{which}"',
        "tests/kernel/test_host.py",
    ),
    "unique key left out": Bug(
        (
            (_LOG, "idempotency TEXT NOT NULL UNIQUE", "idempotency TEXT NOT NULL"),
            (_LOG, "return dict(found)", "return {}"),
        ),
        ("tests/contracts/test_event_log.py",),
    ),
    "second owner of a file let in": _bug(
        _DATABASE,
        '    "PRAGMA locking_mode = EXCLUSIVE",\n',
        "",
        "tests/storage/test_database.py",
    ),
    "cancelled in the middle of a transaction": _bug(
        _DATABASE,
        "await _settled(self._connection.rollback())",
        "await self._connection.rollback()",
        "tests/storage/test_database.py",
    ),
    "tenant filter dropped": _bug(
        "soma_agents/storage/conversations.py",
        "MATCH ? AND tenant = ? AND",
        "MATCH ? AND tenant <> ? || '.' AND",
        "tests/contracts/test_conversations.py",
    ),
    "pointer moved without a look": _bug(
        "soma_agents/storage/registry.py",
        "if pointer.champion != expected:",
        "if not expected:",
        "tests/contracts/test_models.py",
    ),
    "erased text left in the write-ahead log": _bug(
        _LOG,
        "        await self._database.checkpoint()\n        return erased",
        "        return erased",
        "tests/storage/test_event_log.py",
    ),
    "publishers never told to wait": _bug(
        "soma_agents/storage/chained_log.py",
        "if self._waiting and self._waiting + len(rows) > WAITING:",
        "if self._waiting < 0:",
        "tests/contracts/test_log_engines.py",
    ),
}


def plant(bug: Bug, root: Path) -> None:
    """Make the edits below `root`.

    Raises:
        ValueError: what is to be replaced does not stand there exactly once.
    """
    for name, old, new in bug.edits:
        text = (root / name).read_text()
        if (count := text.count(old)) != 1:
            raise ValueError(
                f"{old!r} stands {count} times in {name}, not once; mend bench/bugs.py"
            )
        (root / name).write_text(text.replace(old, new))


def copied(target: Path) -> Path:
    """A copy of what tests need, below `target`."""
    for name in _COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "dist")
            )
        else:
            shutil.copy(ROOT / name, target / name)
    return target


def caught(bug: Bug, seed: int) -> str:
    """The first test that failed for it; empty when none did."""
    with tempfile.TemporaryDirectory(prefix="soma-bench-") as place:
        root = copied(Path(place))
        plant(bug, root)
        options = ["-x", "-q", f"--randomly-seed={seed}", f"--timeout={PATIENCE_SECONDS}"]
        command = [sys.executable, "-m", "pytest", *options]
        done = subprocess.run(
            [*command, *bug.tests],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=False,
        )
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    return failed[0].split()[1] if done.returncode == _FAILED and failed else ""


def measure(names: list[str], seed: int) -> dict[str, Any]:
    """Plant one after the other."""
    by: dict[str, str] = {}
    for name in names:
        by[name] = caught(BUGS[name], seed)
        print(f"{name}: {by[name] or 'NOT CAUGHT'}", file=sys.stderr, flush=True)
    found = sum(bool(test) for test in by.values())
    return {
        "ok": found == len(names),
        "figure": found,
        "target": len(names),
        "unit": "seeded bugs caught",
        "seed": seed,
        "caught_by": by,
    }


def main() -> int:
    """The last line is the result."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", choices=sorted(BUGS), help="plant this one")
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    result = measure([chosen.only] if chosen.only else list(BUGS), chosen.seed)
    print(json.dumps(result))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
