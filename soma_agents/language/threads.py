"""Keeping a thread, and the OpenMP workers that torch starts for it, on given cores."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

TASKS = Path("/proc/self/task")
MARK_LENGTH = 15
"""Longest thread name that Linux keeps, in bytes."""


def mark_thread(name: str) -> None:
    """Name the calling thread for the kernel; threads that it starts inherit the name."""
    if TASKS.is_dir():
        mark = name.encode()[:MARK_LENGTH]
        (TASKS / str(threading.get_native_id()) / "comm").write_bytes(mark)


def confine(name: str, cores: Sequence[int]) -> None:
    """Let the calling thread, marked `name`, compute on `cores` only, with one worker each.

    torch's OpenMP workers belong to the thread that first computed, and keep the affinity they
    were born with; those of this thread bear its mark, so they are found and moved. Where the
    system knows no affinity only the number of workers is set.
    """
    torch.set_num_threads(len(cores))
    if not TASKS.is_dir():
        return
    for task in _marked(name):
        try:
            os.sched_setaffinity(task, cores)
        except ProcessLookupError:
            continue  # it ended meanwhile
    # Workers that are started from now on inherit the calling thread's new affinity.


def _marked(name: str) -> list[int]:
    mark = name.encode()[:MARK_LENGTH]
    found: list[int] = []
    for task in TASKS.iterdir():
        try:
            if (task / "comm").read_bytes().rstrip(b"\n") == mark:
                found.append(int(task.name))
        except FileNotFoundError:
            continue  # it ended meanwhile
    return found
