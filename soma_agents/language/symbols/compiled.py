"""The ids' loop in C, where `make setup` found a compiler. Needs no more than numpy."""

import ctypes
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

SOURCE = Path(__file__).with_name("uids.c")
TOGETHER_BITS = 3
TOGETHER = 1 << TOGETHER_BITS
"""Lanes and steps come in multiples of it."""

UInt64s = npt.NDArray[np.uint64]
Fill = Callable[[UInt64s, UInt64s], None]
"""Writes the ids after each of the states (lanes) into its row of an array (lanes, steps)."""


def library() -> Path:
    """The file that holds the loop as the source has it now."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()
    return SOURCE.with_name(f"uids-{digest[:12]}.so")


@cache
def compiled() -> Fill | None:
    """The loop; None where it is not compiled."""
    if not (path := library()).exists():
        return None
    function = ctypes.CDLL(str(path)).fill
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long, ctypes.c_long]
    function.restype = None

    def fill(made: UInt64s, states: UInt64s) -> None:
        function(states.ctypes.data, made.ctypes.data, *made.shape)

    return fill
