"""Memory in pages of 2 MiB, where the system has them, for what every step reads from end to end.

With the usual pages of 4 KiB a core that streams weights waits for page tables as much as for memory.
"""

import mmap
import threading
from math import prod

import torch
from torch import Tensor

HUGE = 2 << 20
ROOM = 16 * HUGE
"""Bytes that are asked for at once."""
LINE = 64
"""Tensors begin at multiples of it: a cache line."""


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros in a mapping of its own, given back with it."""
    size = prod(shape) * dtype.itemsize
    return _mapped(size)[:size].view(dtype).view(shape)


class Shelf:
    """Keeps copies of tensors close beside each other; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._room = torch.empty(0, dtype=torch.uint8)

    def put(self, tensor: Tensor) -> Tensor:
        """The copy."""
        size = tensor.nbytes
        with self._lock:
            if size > len(self._room):
                self._room = _mapped(max(size, ROOM))
            place, self._room = self._room[:size], self._room[-(-size // LINE) * LINE :]
        return place.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _mapped(size: int) -> Tensor:
    """`size` bytes of zeros or some more, from the beginning of a page on."""
    found = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if advice := getattr(mmap, "MADV_HUGEPAGE", None):
        found.madvise(advice)
    every = torch.frombuffer(found, dtype=torch.uint8)
    return every[-every.data_ptr() % HUGE :]
