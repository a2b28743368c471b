"""Starting lives, killing them, stopping and resuming some, over one data directory at a time."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from signal import SIGCONT, SIGKILL, SIGSTOP, Signals
from typing import cast

import psutil

from bench.kills.life import Plan, Tale, hurried, live, prepare
from bench.kills.promises import Account, Findings, champion_holds, check

KILLS_A_HOME = 100
"""Kills over one data directory before it is settled and looked through."""
_STARTING_S = 0.06
"""About how long a start takes, until starts are seen: every fourth kill comes within it."""
_LONGEST_START_S = 0.5
_LIFE_STARTS = 5
"""The longest life, in starts: on a busy machine it must come as far as on a quiet one."""
_PATIENCE_S = 20.0
_AGAIN = 0.7
"""Share of what was cut short that the next life says again; others give up."""

# A server process that has imported everything and forks. It has no event loop, and no thread but
# that of pyarrow's allocator, which knows of forks.
_lives = multiprocessing.get_context("forkserver")
_lives.set_forkserver_preload(["bench.kills.life", "pyarrow.parquet", "pandas"])


@dataclass(slots=True)
class Tally:
    """What came of a storm."""

    kills: int = 0
    killed_starting: int = 0
    stopped: int = 0
    refused: int = 0
    stale_accepted: int = 0
    orphans: int = 0
    findings: Findings = field(default_factory=Findings)


@dataclass(slots=True)
class _Life:
    """A process, and what it has told so far."""

    process: BaseProcess
    told: Connection
    born: float = field(default_factory=time.monotonic)
    is_up: bool = False
    refusal: str = ""
    heard: int = 0

    def send(self, signal: Signals) -> None:
        """A signal, unless it has ended already."""
        if self.process.is_alive():
            psutil.Process(self.process.pid).send_signal(signal)


class _Storm:
    """Kills over one data directory."""

    def __init__(self, home: Path, seed: str, tally: Tally) -> None:
        self._home = home
        self._seed = seed
        self._dice = Random(seed)
        self._tally = tally
        self._born = 0
        self._start_s = _STARTING_S
        self.account = Account()

    def rage(self, kills: int) -> None:
        """Kill so many lives, some of them, and the first, with another beside them."""
        upto = self._tally.kills + kills
        do = self._stop_one
        while self._tally.kills < upto:
            do()
            do = self._stop_one if self._dice.random() < 0.1 else self._kill_one
            if finding := champion_holds(self._home):
                self._report(finding)

    # --- deaths ----------------------------------------------------------------------------

    def _kill_one(self) -> None:
        life = self._bear()
        self._listen([life], self._moment())
        self._end(life)

    def _stop_one(self) -> None:
        """A life sleeps past any patience while another is started beside it, then goes on.

        The log is locked until the process that has it dies, however long that sleeps. So one of
        the two is refused, and from a stale one nothing is accepted.
        """
        stale = self._bear()
        self._listen([stale], self._moment())
        stale.send(SIGSTOP)
        fresh = self._bear()
        self._listen([fresh], _PATIENCE_S, until=lambda: fresh.is_up or bool(fresh.refusal))
        before = stale.heard
        stale.send(SIGCONT)
        self._listen([stale, fresh], self._moment())
        self._tally.stopped += 1
        self._tally.refused += bool(stale.refusal) + bool(fresh.refusal)
        if fresh.is_up:
            self._tally.stale_accepted += stale.heard - before
        for life in (stale, fresh):
            self._end(life)

    def _end(self, life: _Life) -> None:
        life.process.kill()
        life.process.join()
        self._listen([life], _PATIENCE_S, until=lambda: life.told.closed)
        if life.process.exitcode == -SIGKILL:
            self._tally.kills += 1
            self._tally.killed_starting += not life.is_up
        elif not life.refusal:
            self._report(f"{life.process.name} ended by itself: exit code {life.process.exitcode}")

    def _moment(self) -> float:
        """Seconds until the next thing happens to a life."""
        if self._dice.random() < 0.25:
            return self._dice.uniform(0, self._start_s)
        return self._start_s * self._dice.uniform(1, _LIFE_STARTS)

    def _report(self, finding: str) -> None:
        self._tally.findings.broken.append(f"{self._seed}, kill {self._tally.kills}: {finding}")

    # --- lives -----------------------------------------------------------------------------

    def _bear(self) -> _Life:
        self._born += 1
        name = f"life-{self._born}"
        again = [text for text in self.account.cut_short() if self._dice.random() < _AGAIN]
        plan = Plan(home=self._home, name=name, seed=self._seed, again=again)
        told, tell = _lives.Pipe(duplex=False)
        process = _lives.Process(target=live, args=(plan, tell), name=name, daemon=True)
        process.start()
        tell.close()
        return _Life(process, told)

    def _listen(
        self, lives: list[_Life], seconds: float, until: Callable[[], bool] = lambda: False
    ) -> None:
        """Take in what they tell, for so long or until it is enough."""
        deadline = time.monotonic() + seconds
        while not until() and (left := deadline - time.monotonic()) > 0:
            telling = {life.told: life for life in lives if not life.told.closed}
            if not telling:
                time.sleep(left)
            for told in cast("list[Connection]", wait(list(telling), left)):
                try:
                    self._take_in(telling[told], told.recv())
                except EOFError:
                    told.close()

    def _take_in(self, life: _Life, tale: Tale) -> None:
        match tale:
            case "up", _:
                life.is_up = True
                seen = min(time.monotonic() - life.born, _LONGEST_START_S)
                self._start_s += 0.2 * (seen - self._start_s)
            case "say", texts:
                self.account.say(texts)
            case "heard", keys:
                life.heard += len(keys)
                self.account.hear(keys)
            case "refused", (because, *_):
                life.refusal = because


def storm(kills: int, seed: int, *, a_home: int = KILLS_A_HOME) -> Tally:
    """So many kills, over as many data directories as that takes, each looked through at the end."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # more would be threads in the server
    tally, number = Tally(), 0
    with hurried():
        while tally.kills < kills:
            number += 1
            with tempfile.TemporaryDirectory(dir=_fast()) as place:
                home = Path(place) / "home"
                prepare(home)
                one = _Storm(home, f"{seed}/{number}", tally)
                one.rage(min(a_home, kills - tally.kills))
                tally.orphans += _orphans()
                tally.findings += check(home, Path(place) / "anew", one.account)
    return tally


def _orphans() -> int:
    """Processes that dead lives left behind, below the one that forks them."""
    servers = [
        child
        for child in psutil.Process().children()
        if any("multiprocessing.forkserver" in word for word in child.cmdline())
    ]
    return sum(len(server.children()) for server in servers)


def _fast() -> str | None:
    """Memory, where there is any to be had as files: a kill leaves the disk's cache alone."""
    memory = Path("/dev/shm")  # noqa: S108 - only as the parent of a temporary directory
    return str(memory) if memory.is_dir() else None
