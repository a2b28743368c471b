"""Long work on a model in a process of its own: low priority, given cores, gone with its parent."""

import asyncio
import os
import signal
import stat
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

NICENESS = 10
"""Chat comes first."""


@asynccontextmanager
async def apart(
    module: str,
    *arguments: str,
    cores: Sequence[int],
    log: Path,
    environ: dict[str, str] | None = None,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `python -m module arguments` in a process group of its own; leaving kills the group.

    What it prints goes to `log`. It must call `settle` first.
    """
    threads = str(max(1, len(cores)))
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *arguments,
            stdin=asyncio.subprocess.PIPE,  # it closes when we die: see `settle`
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={
                **os.environ,
                # Idle OpenMP workers that spin would take a core from the engine.
                "OMP_WAIT_POLICY": "PASSIVE",
                "OMP_NUM_THREADS": threads,
                "TOKENIZERS_PARALLELISM": "false",
                **(environ or {}),
            },
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.shield(process.wait())


def settle(cores: Sequence[int]) -> None:
    """In the new process: low priority, these cores, one thread each, an end with the parent."""
    os.nice(NICENESS)
    keep_to(cores)
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def keep_to(cores: Sequence[int]) -> None:
    """Let this process compute on `cores` only, as far as the system knows affinity."""
    import torch

    if cores and hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # a core that is not ours: then where we are
            os.sched_setaffinity(0, cores)
    torch.set_num_threads(max(1, len(cores)))


def _end_with_parent() -> None:
    """Wait for the end of standard input, which nobody writes to: the parent is gone."""
    while os.read(0, 4096):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)
