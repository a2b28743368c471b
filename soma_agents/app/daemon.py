"""The supervisor: a small process that keeps everything else running.

It knows no Ray. It holds the lock of the data directory, starts the keeper (which has Ray and all
of ours below it), reads its reports, and starts it anew when it ends.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import psutil
import structlog

from arbiters.errors import ConflictError, SomaError, UnavailableError
from policies.supervision import GiveUp, Restart, RestartRules, restart
from soma_agents.app import logs
from soma_agents.app.lock import HomeLock, holder_of
from soma_agents.app.processes import lives
from soma_agents.app.state import RunState, forget_state, write_state
from soma_agents.cluster.head import private_token
from soma_agents.settings import Settings

DRAIN_SECONDS = 28.0
SILENCE_SECONDS = 60.0
"""A keeper that ran and reports nothing for so long is as good as dead."""

log = structlog.get_logger(__name__)
Announce = Callable[[RunState], None]


class Supervisor:
    """Runs one SOMA until told to stop."""

    def __init__(self, settings: Settings, announce: Announce) -> None:
        self._settings = settings
        self._announce = announce
        self._rules = RestartRules()
        self._failures = 0
        """Starts in a row that failed."""
        self._was_ready = False
        self._stop = asyncio.Event()
        self._why = ""

    async def run(self) -> None:
        """Start, keep running, stop cleanly on SIGTERM or SIGINT.

        Raises:
            ConflictError: the data directory or the port is taken.
            UnavailableError: it did not become ready the first time, or too often later; says why.
        """
        lock = await _locked(self._settings)
        try:
            check_port(self._settings)
            logs.setup(self._settings, "supervisor", console=True)
            _adopt_orphans()
            private_token(self._settings.home / "run" / "cli_token")
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
            while not self._stop.is_set():
                await self._one_life(lock)
                if not self._stop.is_set():
                    await self._after_death()
        finally:
            forget_state(self._settings.home)
            lock.release()

    # --- one keeper, from start to end -----------------------------------------------------

    async def _one_life(self, lock: HomeLock) -> None:
        read, write = os.pipe()
        keeper = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "soma_agents.app.keeper",
            str(write),
            stdin=subprocess.PIPE,
            stdout=self._output(),
            stderr=subprocess.STDOUT,
            # The keeper shares the lock: no other SOMA starts while it still drains.
            pass_fds=(write, lock.descriptor),
            start_new_session=True,
        )
        os.close(write)
        assert keeper.stdin is not None  # noqa: S101 - it was asked for
        keeper.stdin.write(self._settings.model_dump_json().encode() + b"\n")
        keeper.stdin.close()
        reports = await _reader(read)
        try:
            await self._listen(reports)
        finally:
            await self._end(keeper)

    def _output(self) -> int:
        """What Ray prints goes to a file of its own."""
        path = self._settings.home / "logs" / "keeper.out"
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    async def _listen(self, reports: asyncio.StreamReader) -> None:
        """Follow the reports until the keeper falls silent or we are to stop."""
        self._failures += 1  # until it is ready
        stopping = asyncio.create_task(self._stop.wait())
        state: dict[str, Any] = {}
        self._why = "it ended without a word"
        # Ray's start and the imports block the keeper for as long as they take.
        patience = self._settings.cluster.start_timeout_s
        while not self._stop.is_set():
            line = asyncio.create_task(reports.readline())
            await asyncio.wait(
                [line, stopping],
                timeout=patience,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not line.done():
                line.cancel()
                self._why = f"it reported nothing for {patience:g} seconds"
                break
            if not line.result():
                break
            state |= json.loads(line.result())
            self._heard(state)
            if state["state"] == "running":
                patience = SILENCE_SECONDS
        stopping.cancel()

    def _heard(self, state: dict[str, Any]) -> None:
        match state["state"]:
            case "ray" | "ready":
                ready = state["state"] == "ready"
                run = RunState(
                    pid=os.getpid(),
                    url=self._settings.url,
                    ray=state.get("address", ""),
                    dashboard=state.get("dashboard", ""),
                    ready=ready,
                )
                write_state(self._settings.home, run)
                if ready:
                    self._failures = 0
                if ready and not self._was_ready:
                    self._was_ready = True
                    self._announce(run)
                log.info("the keeper reports", **state)
            case "failed":
                self._why = state["why"]

    async def _end(self, keeper: asyncio.subprocess.Process) -> None:
        """Let the keeper drain, then see to it that nothing of it is left."""
        deadline = time.monotonic() + DRAIN_SECONDS
        with contextlib.suppress(ProcessLookupError):
            keeper.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await keeper.wait()
        await asyncio.to_thread(_end_all_below, deadline)

    async def _after_death(self) -> None:
        """Wait as the policy says.

        Raises:
            UnavailableError: it never was ready, or no start succeeds any more.
        """
        if not self._was_ready:
            log.error("not ready", why=self._why)
            raise UnavailableError(f"SOMA did not start: {self._why}")
        match restart(self._failures, self._rules):
            case Restart(wait, because):
                log.warning("starting the cluster anew", why=self._why, because=because)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._stop.wait()
            case GiveUp(because):
                log.error("giving up", why=self._why, because=because)
                raise UnavailableError(f"SOMA gave up: {because}; the last reason: {self._why}")


# --- processes -----------------------------------------------------------------------------


async def _locked(settings: Settings) -> HomeLock:
    """The lock, once the processes of a supervisor that was killed have drained."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while True:
        try:
            return HomeLock(settings.home)
        except ConflictError:
            holder = holder_of(settings.home)
            orphaned = holder is not None and not lives(holder)
            if not orphaned or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


def _adopt_orphans() -> None:
    """Make every orphaned descendant our child, so that it can be found and ended.

    Linux: prctl(2), PR_SET_CHILD_SUBREAPER.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1)


def _end_all_below(deadline: float) -> None:
    """End every descendant: politely where there is time, and reap it."""
    below = psutil.Process().children(recursive=True)
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(below, timeout=min(2.0, max(0.2, deadline - time.monotonic())))
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=2)
    # Orphans that we adopted are not reaped by anybody else.
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


async def _reader(descriptor: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
    )
    return reader


def check_port(settings: Settings) -> None:
    """See that the HTTP port is free.

    Raises:
        ConflictError: names the port, and who has it where the system tells.
    """
    host, port = settings.server.host, settings.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConflictError(
                f"port {port} on {host} cannot be used ({error.strerror}){_listener(port)}; "
                "stop that or choose another with --port"
            ) from None


def _listener(port: int) -> str:
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address and address.port == port:
                return f", process {connection.pid} listens there" if connection.pid else ""
    return ""


# --- as a program --------------------------------------------------------------------------


def main() -> None:
    """Run detached: settings on standard input; one line on standard output when ready."""
    settings = Settings.model_validate_json(sys.stdin.readline())

    def announce(run: RunState) -> None:
        sys.stdout.write(json.dumps(asdict(run)) + "\n")
        sys.stdout.flush()
        # Whoever waits for the end of our output need not wait for ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    try:
        asyncio.run(Supervisor(settings, announce).run())
    except SomaError as error:
        sys.stdout.write(json.dumps({"failed": str(error)}) + "\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
