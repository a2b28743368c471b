"""Kernels in C for what decoding does most, where they are compiled and the processor has AVX512-BF16.

They are torch's arithmetic (bf16 in and out, sums in fp32) without what a call of torch costs, and a
product with stored blocks in which eight rows cost little more than three.
"""

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from soma_agents.language.native.place import library

GROUP, TILE = 32, 16
"""Values that share a scale; outputs computed together."""

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
_SIGNATURES = {
    "pack": [_POINTER, *[_LONG] * 3, _POINTER],
    "block_product": [_POINTER, _LONG, _LONG, _POINTER, _POINTER, _LONG, _LONG, _POINTER],
    "attend": [*[_POINTER] * 6, *[_LONG] * 7],
    "rms_norm": [_POINTER, _POINTER, _FLOAT, _POINTER, _LONG, _LONG],
    "gated_silu": [_POINTER, _POINTER, _LONG, _LONG],
}


class Kernels:
    """The compiled functions, on tensors. All numbers are bf16."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
        self._pack, self._product = library.pack, library.block_product
        self._attend, self._norm = library.attend, library.rms_norm
        self._gated_silu = library.gated_silu

    def product(
        self, bits: int, q: Tensor, scale: Tensor, zero: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """See `linear.Stored`, whose numbers these are."""
        outputs, inputs = q.shape
        packed = torch.empty(outputs, inputs * bits // 8, dtype=torch.uint8)
        self._pack(q.contiguous().data_ptr(), outputs, inputs, bits, packed.data_ptr())
        pairs = torch.stack((scale, zero), dim=-1).view(outputs // TILE, TILE, -1, 2)
        scales = pairs.permute(0, 2, 3, 1).to(torch.bfloat16).contiguous()

        def multiply(x: Tensor) -> Tensor:
            x = x.contiguous()
            y = x.new_empty(len(x), outputs)
            blocks = packed.data_ptr(), scales.data_ptr(), bits, outputs
            self._product(x.data_ptr(), len(x), inputs, *blocks, y.data_ptr())
            return y

        return multiply

    def rms_norm(self, weight: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
        """The norm of the last dimension, a multiple of `TILE`."""
        size = len(weight)

        def norm(x: Tensor) -> Tensor:
            x = x.contiguous()
            y = torch.empty_like(x)
            rows = x.numel() // size
            self._norm(x.data_ptr(), weight.data_ptr(), eps, y.data_ptr(), rows, size)
            return y

        return norm

    def gated_silu(self, x: Tensor) -> Tensor:
        """(B, 2 · size) → silu(first half) · second half; `size` is a multiple of `TILE`."""
        size = x.shape[1] // 2
        y = x.new_empty(len(x), size)
        self._gated_silu(x.data_ptr(), y.data_ptr(), len(x), size)
        return y

    def attend(
        self,
        heads: Tensor,
        stored: Tensor,
        positions: Tensor,
        turn: tuple[Tensor, Tensor],
        *,
        window: int,
    ) -> Tensor:
        """Turn queries and keys, store keys and values, and attend: (B, H + 2K, D) → (B, H · D).

        `stored` (rows, 2K, capacity, D) is a layer of the cache, `positions` (B) int64, `turn`
        cosines and sines (B, 1, R), half the sines negated. D is a multiple of 32. `window` 0 sees all.
        """
        (rows, every, size), kv_heads = heads.shape, stored.shape[1] // 2
        y = heads.new_empty(rows, (every - 2 * kv_heads) * size)
        cos, sin = turn
        tensors = (heads.contiguous(), stored, positions, cos, sin, y)
        self._attend(
            *[tensor.data_ptr() for tensor in tensors],
            rows,
            every - 2 * kv_heads,
            kv_heads,
            size,
            cos.shape[-1],
            stored.shape[2],
            window,
        )
        return y


@cache
def kernels() -> Kernels | None:
    """The compiled kernels; None where there are none for this processor.

    torch is loaded by now, so both use the same OpenMP workers.
    """
    path = library()
    if not path.exists():
        return None
    found = ctypes.CDLL(str(path))
    return Kernels(found) if found.supported() else None
