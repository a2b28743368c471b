"""The processes of a running SOMA: which there are, what they are for, what they hold."""

import contextlib
import re
from collections.abc import Iterable
from typing import TypedDict

import psutil

from soma_agents.cluster.names import actor_name

_ROLES = (
    ("gcs_server", "ray gcs"),
    ("raylet/raylet", "ray raylet"),
    ("ray::DashboardAgent", "ray dashboard agent"),
    ("ray::RuntimeEnvAgent", "ray runtime environment agent"),
    ("ray-dashboard-", "ray dashboard"),
    ("dashboard/dashboard.py", "ray dashboard"),
    ("multiprocessing.forkserver", "ray dashboard"),
    ("multiprocessing.resource_tracker", "ray dashboard"),
    ("autoscaler/_private/monitor.py", "ray autoscaler monitor"),
    ("ray/_private/log_monitor.py", "ray log monitor"),
    ("ray::ServeController", "serve controller"),
    ("ray::ProxyActor", "serve proxy"),
    ("ray::ServeReplica:soma:Gateway", "gateway"),
    ("ray::ServeReplica:soma:Engine", "engine"),
    ("ray::ServeReplica", "serve replica"),
    ("ray::TrainController", "trainer"),
    ("soma_agents.training.", "trainer"),
    ("soma_agents.evaluation.compare", "examiner"),
    ("ray::RayTrainWorker", "trainer"),
    ("ray::IDLE", "ray idle worker"),
    ("soma_agents.app.keeper", "keeper"),
)


class Process(TypedDict):
    """A process as `soma status` shows it."""

    pid: int
    role: str


def processes(supervisor: int) -> list[Process]:
    """The supervisor and everything below it, with roles."""
    try:
        top = psutil.Process(supervisor)
        below = top.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    found = [Process(pid=supervisor, role="supervisor")]
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.status() != psutil.STATUS_ZOMBIE:
                role = _role(" ".join(process.cmdline()))
                found.append(Process(pid=process.pid, role=role))
    return found


def lives(pid: int) -> bool:
    """Whether there is such a process; a zombie is dead."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _role(command: str) -> str:
    for part, role in _ROLES:
        if part in command:
            return role
    title = re.match(r"ray::(\w+)", command)
    return actor_name(title[1]) if title else "helper"


def memory(pids: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Pid → resident bytes, and the same with shared pages divided among those who share them."""
    found: dict[int, tuple[int, int]] = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            full = psutil.Process(pid).memory_full_info()
            found[pid] = (full.rss, getattr(full, "pss", full.rss))
    return found
