"""The head of our own Ray: how it is started, told from foreign ones, looked at and stopped.

It lives in the process that calls `start` (the keeper) and dies with it. No other Ray on the
machine is ever touched: nothing is found by name, only as a child of that process. With
`cluster.address` there is no head of our own: the keeper joins a cluster that others run.
"""

import hashlib
import importlib
import os
import secrets
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from arbiters.errors import SomaError
from soma_agents.cluster.names import NAMESPACE
from soma_agents.settings import Settings
from soma_agents.web.last_word import PROXY_CALLBACK

_SOCKET_PATH_LIMIT = 107
_SESSION_SOCKET = "/r/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_LongModuleHead"
_ESSENTIAL = ("gcs_server", "raylet")
_SESSIONS_KEPT = 3


@dataclass(frozen=True, slots=True)
class Head:
    """Where the running head is reached; whether it is `ours` to watch and stop."""

    address: str
    dashboard: str
    ours: bool


# --- before the start ----------------------------------------------------------------------


def environment(settings: Settings) -> dict[str, str]:
    """What Ray's processes and ours below them find in their environment."""
    token = str(token_file(settings))
    if settings.cluster.address:
        # The cluster's own token, where one is named.
        token = os.environ.get("RAY_AUTH_TOKEN_PATH", token)
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": token,
        "RAY_GCS_SERVER_PORT": str(port_or_free(settings.cluster.gcs_port)),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        # Workers are not second-class here: the engine and the arbiters are the service. The
        # trainer lowers its own priority.
        "RAY_worker_niceness": "0",
        # Idle workers cost 85 MB each and none of ours is interchangeable.
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        # Batches of events go straight to the caller instead of through the object store.
        "RAY_max_direct_call_object_size": "4000000",
        "RAY_memory_usage_threshold": "0.95",
        # Logs rotate.
        "RAY_ROTATION_MAX_BYTES": "10000000",
        "RAY_ROTATION_BACKUP_COUNT": "2",
        "RAY_BACKEND_LOG_LEVEL": "warning",
        # Pages and metrics nobody has asked for are not gathered.
        "RAY_enable_metrics_collection": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # When a replica dies its clients are told so.
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": PROXY_CALLBACK,
        # Two threads that spin while they wait leave nothing of two cores to anybody else.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
    }


def token_file(settings: Settings) -> Path:
    """The file with the token of the cluster and its dashboard."""
    return private_token(settings.home / "run" / "ray_token")


def private_token(file: Path) -> Path:
    """A file with a secret that only its owner can read.

    It is made when it is missing, and made anew when others could have read it.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if file.exists() and file.stat().st_mode & 0o077:
        file.unlink()
    if not file.exists():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
    return file


def port_or_free(port: int) -> int:
    """`port`, or a free one when something listens there already."""
    for candidate in (port, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", candidate))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise SomaError(f"port {port} is taken and the system has no free one; stop something")


def session_root(settings: Settings) -> Path:
    """Where Ray keeps sockets and logs: below the data directory if its path is short enough.

    Raises:
        SomaError: the directory belongs to somebody else.
    """
    root = settings.home / "run" / "ray"
    if len(str(root)) + len(_SESSION_SOCKET) > _SOCKET_PATH_LIMIT:
        digest = hashlib.sha256(str(settings.home).encode()).hexdigest()[:8]
        root = Path(tempfile.gettempdir()) / f"soma-{os.getuid()}-{digest}"
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    if root.stat().st_uid != os.getuid():
        raise SomaError(f"{root} belongs to another user; remove it or set TMPDIR")
    root.chmod(0o700)
    # Ray opens its directory to all users; what is around it keeps them out.
    inner = root / "r"
    inner.mkdir(exist_ok=True)
    return inner


def forget_old_sessions(root: Path) -> None:
    """Remove the sockets and logs of all but the last few starts."""
    sessions = sorted(path for path in root.glob("session_2*") if path.is_dir())
    for path in sessions[:-_SESSIONS_KEPT]:
        shutil.rmtree(path, ignore_errors=True)


# --- running -------------------------------------------------------------------------------


def start(settings: Settings) -> Head:
    """Start a head below this process and connect to it.

    Raises:
        SomaError: Ray did not start; the message has its reason.
    """
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update(environment(settings))
    join = settings.cluster.address
    import ray

    _read_environment_again()
    try:
        context: Any = ray.init(
            address=join or "local",
            namespace=NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
            runtime_env={"worker_process_setup_hook": "soma_agents.cluster.lean.forgo"},
            **({} if join else _own(settings)),
        )
    except Exception as error:
        where = f"joining the Ray cluster at {join!r}" if join else "starting Ray"
        raise SomaError(f"{where} failed: {type(error).__name__}: {error}") from error
    address = context.address_info
    dashboard = f"http://{address['webui_url']}" if address["webui_url"] else ""
    return Head(address=address["gcs_address"], dashboard=dashboard, ours=not join)


def _read_environment_again() -> None:
    """Whoever imported Ray before made it read the environment as it was then."""
    raylet: Any = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _own(settings: Settings) -> dict[str, Any]:
    """How a head of our own is started."""
    root = session_root(settings)
    forget_old_sessions(root)
    return {
        # One for the gateway, and one for each worker of the trainer at least.
        "num_cpus": max(os.cpu_count() or 2, 1 + settings.training.workers),
        "object_store_memory": settings.cluster.object_store_bytes,
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
        "dashboard_port": port_or_free(settings.cluster.dashboard_port),
        "_temp_dir": str(root),
    }


def missing(process: psutil.Process | None = None) -> list[str]:
    """Which of the processes without which there is no cluster are gone from below `process`."""
    alive = set[str]()
    for child in (process or psutil.Process()).children():
        try:
            if child.status() != psutil.STATUS_ZOMBIE:
                alive.add(child.name())
        except psutil.NoSuchProcess:
            continue
    return [name for name in _ESSENTIAL if name not in alive]


def stop() -> None:
    """Stop the head and all of its workers."""
    import ray

    ray.shutdown()
