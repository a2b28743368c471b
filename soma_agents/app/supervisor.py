"""`soma up`, `soma down`, `soma status`: what the command line does to a supervisor."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from arbiters.errors import UnavailableError
from soma_agents.app.daemon import DRAIN_SECONDS, Supervisor
from soma_agents.app.lock import holder_of
from soma_agents.app.processes import lives, processes
from soma_agents.app.state import RunState, read_state
from soma_agents.settings import Settings
from soma_agents.storage.identifiers import SystemClock
from soma_agents.storage.keys import ApiKeys

_TAIL_LINES = 15
_ASK_SECONDS = 10.0

# --- up ------------------------------------------------------------------------------------


def up(settings: Settings, *, detach: bool) -> None:
    """Start SOMA and say where it is; stay with it unless detached.

    Raises:
        ConflictError: the data directory or the port is in use; says by whom.
        UnavailableError: it did not become ready; says why, with the end of the log.
    """
    print(f"starting SOMA in {settings.home}", flush=True)  # noqa: T201
    if detach:
        _announce(settings, _start_detached(settings))
    else:
        supervisor = Supervisor(settings, lambda run: _announce(settings, run))
        asyncio.run(supervisor.run())


def _start_detached(settings: Settings) -> RunState:
    output = settings.home / "logs" / "supervisor.out"
    output.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with output.open("w") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", "soma_agents.app.daemon"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd="/",
            start_new_session=True,
        )
    assert child.stdin is not None  # noqa: S101 - asked for above
    assert child.stdout is not None  # noqa: S101
    child.stdin.write(settings.model_dump_json() + "\n")
    child.stdin.close()
    line = child.stdout.readline()
    report: dict[str, Any] = json.loads(line) if line else {}
    if not report or "failed" in report:
        child.wait()
        why = report.get("failed", "the supervisor ended without a word")
        tail = _tail(settings.home / "logs" / "keeper.out") or _tail(output)
        raise UnavailableError(f"{why}\n{tail}".rstrip())
    return RunState(**report)


def _announce(settings: Settings, run: RunState) -> None:
    lines = [f"SOMA is ready at {run.url}"]
    if run.dashboard:
        token = settings.home / "run" / "ray_token"
        lines.append(f"Ray dashboard: {run.dashboard} (its token is in {token})")
    if not ApiKeys(settings.keys_file, SystemClock()).list():
        lines.append(
            "open: no API keys are configured, so every program on this machine may use it; "
            "`soma keys create NAME` closes it"
        )
    print("\n".join(lines), flush=True)  # noqa: T201


def _tail(path: Path) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
    except OSError:
        return ""


# --- down ----------------------------------------------------------------------------------


def down(settings: Settings) -> None:
    """Stop SOMA: it finishes what it accepted; what is left after half a minute is ended.

    Raises:
        UnavailableError: none runs in this data directory.
    """
    pid = holder_of(settings.home)
    if pid is None:
        raise UnavailableError(f"SOMA is not running in {str(settings.home)!r}")
    below = [process["pid"] for process in processes(pid)]
    _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + DRAIN_SECONDS + 5
    while (there := _there(settings, pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if there:
        for process in reversed(below):
            _signal(process, signal.SIGKILL)
    print("SOMA has stopped")  # noqa: T201


def _there(settings: Settings, supervisor: int) -> bool:
    """Whether anything is left: it lets go of the lock a moment before it ends."""
    return holder_of(settings.home) is not None or lives(supervisor)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# --- status --------------------------------------------------------------------------------


def status(settings: Settings) -> dict[str, Any]:
    """`ready`, `url`, `champion`, `round`, `processes`, `dashboard` of this data directory."""
    run = read_state(settings.home)
    pid = holder_of(settings.home)
    answer: dict[str, Any] = {"ready": False, "url": None, "champion": None, "round": None}
    if run is not None and pid is not None:
        answer |= {"url": run.url, "dashboard": run.dashboard}
        answer |= _asked(settings, run.url)
    alive = processes(pid) if pid is not None and psutil.pid_exists(pid) else []
    return answer | {"processes": alive}


def _asked(settings: Settings, url: str) -> dict[str, Any]:
    """What SOMA says of itself; nothing when it does not answer."""
    import httpx2

    try:
        response = httpx2.get(
            f"{url}/api/status", headers=_authorization(settings), timeout=_ASK_SECONDS
        )
        return response.raise_for_status().json()
    except (httpx2.HTTPError, ValueError):
        return {}


def _authorization(settings: Settings) -> dict[str, str]:
    token = settings.home / "run" / "cli_token"
    return {"Authorization": f"Bearer {token.read_text().strip()}"} if token.exists() else {}
