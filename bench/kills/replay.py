"""The state of every arbiter, and the same made anew from the log."""

import json
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.kills.script import ScriptedExaminer, ScriptedTrainer
from soma_agents.runtime.assembly import ARBITERS, Opened, build_host
from soma_agents.settings import Settings
from soma_agents.storage.chained_log import ChainedLog
from soma_agents.storage.engines import open_log

STATEFUL = (
    "conversation_history",
    "user_profile",
    "personality_forge",
    "auto_training_coordinator",
    "evaluation",
)
"""Arbiters whose state follows from the log alone. The others keep none."""
_OWN = {"cursor", "outbox", "attempts", "dead_letters", "soma_schema", "sqlite_sequence"}
"""Tables of the ledger and of the file itself."""
_TIMES = {"started_at", "finished_at", "registered_at", "since", "watch_until", "seconds", "at"}
_BY_THE_CLOCK = ("auto_training_coordinator", "evaluation")
"""Their times are those of handling, not of the events: another run has others."""


async def settle(settings: Settings) -> list[str]:
    """Start every arbiter and let all that is under way come to its end; what is wrong then."""
    log = await open_log(settings)
    hosts = {
        name: await build_host(
            name,
            settings,
            log=log,
            trainer=ScriptedTrainer(settings.home / "models", pause=0),
            examiner=ScriptedExaminer(pause=0),
        )
        for name in ARBITERS
    }
    await _drain(log, hosts)
    wrong: list[str] = []
    for name in STATEFUL:
        wrong += [
            f"{name} buried {letter.envelope.type} {letter.envelope.id}: {letter.error}"
            for letter in await hosts[name].host.dead_letters()
        ]
    for one in hosts.values():
        await one.close()
    await log.close()
    return wrong + [
        f"{name} has an outbox" for name in ARBITERS if _tables(settings.state_file(name))["outbox"]
    ]


async def differences(settings: Settings, anew: Path) -> list[str]:
    """Where the state is not what the log makes of a fresh home; and that it has no more to say."""
    shutil.copytree(settings.log_file.parent, anew / settings.log_file.parent.name)
    fresh = settings.model_copy(update={"home": anew})
    log = await open_log(fresh)
    end = await log.end()
    hosts = {name: await build_host(name, fresh, log=log) for name in STATEFUL}
    await _drain(log, hosts)
    found = [f"replayed, there are {more} events more"] if (more := await log.end() - end) else []
    for one in hosts.values():
        await one.close()
    await log.close()
    for name in STATEFUL:
        there, made = _tables(settings.state_file(name)), _tables(fresh.state_file(name))
        timeless = name in _BY_THE_CLOCK
        for table in (there.keys() | made.keys()) - _OWN:
            one, other = _rows(there, table, timeless), _rows(made, table, timeless)
            if one != other:
                found.append(f"{name}.{table}: {_first(one, other)}")
    return found


async def _drain(log: ChainedLog, hosts: Mapping[str, Opened]) -> None:
    end = -1
    while end != (end := await log.end()):
        for one in hosts.values():
            await one.host.drain()


# --- tables --------------------------------------------------------------------------------

Table = Sequence[Mapping[str, Any]]


def _tables(path: Path) -> Mapping[str, Table]:
    """Every row of every table, in the order of writing; the search index is made of others."""
    database = sqlite3.connect(path)
    database.row_factory = sqlite3.Row
    names = [
        name
        for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        if not name.startswith("found")
    ]
    found = {
        name: [dict(row) for row in database.execute(f"SELECT * FROM {name} ORDER BY rowid")]
        for name in names
    }
    database.close()
    return found


def _rows(tables: Mapping[str, Table], name: str, timeless: bool) -> list[Any]:
    rows = [dict(row) for row in tables.get(name, ())]
    return [_without_times(row) for row in rows] if timeless else rows


def _without_times(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(("{", "[")):
        return _without_times(json.loads(value))
    if isinstance(value, dict):
        return {key: _without_times(each) for key, each in value.items() if key not in _TIMES}
    return value


def _first(one: Sequence[Any], other: Sequence[Any]) -> str:
    pairs = zip([*one, None], [*other, None], strict=False)
    row, made = next(((a, b) for a, b in pairs if a != b), (len(one), len(other)))
    return f"{row} there, {made} from the log"
