"""Kernels in C for what decoding does most, where they are compiled: for AVX512 or for AVX2.

They are torch's arithmetic (bf16 in and out, sums in fp32) without what a call of torch costs. A
product with stored blocks rounds its input to bytes, 32 numbers by their range, and multiplies whole
numbers.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from soma_agents.language.architecture import SITES, TransformerConfig
from soma_agents.language.native.pages import Shelf
from soma_agents.language.native.place import INSTRUCTIONS, library

GROUP, TILE, WIDE = 32, 16, 8
"""Values that share a scale; outputs computed together; bits of the wider blocks."""
READS, READS_BESIDE_TILES = 128, 16
"""Rows of a prompt up to which the stack is quicker than dense bf16 products by torch: measured
without AMX, where 128 are as far as anybody asks; with it those are several times as fast."""
WIDEST_SITE = max(map(len, SITES.values()))
"""Projections of a fused matrix at most."""

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
_SIGNATURES = {
    "pack": [_POINTER, *[_LONG] * 3, _POINTER],
    "product": [_POINTER, _POINTER, _LONG, _POINTER],
    "attend": [*[_POINTER] * 7, *[_LONG] * 7],
    "rms_norm": [_POINTER, _POINTER, _FLOAT, _POINTER, _LONG, _LONG],
    "gated_silu": [_POINTER, _POINTER, _LONG, _LONG],
    "through_blocks": [*[_POINTER] * 9, *[_LONG] * 7],
}


class _Matrix(ctypes.Structure):
    _fields_ = [
        ("packed", _POINTER),
        ("scales", _POINTER),
        *((name, ctypes.c_int64) for name in ("bits", "outputs", "inputs", "affine")),
    ]


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("attention_norm", "mlp_norm")),
        *((name, _Matrix) for name in ("qkv", "out", "gate_up", "down")),
    ]


class _LowRank(ctypes.Structure):
    _fields_ = [("down", _POINTER), ("up", _POINTER)]


class _Adapter(ctypes.Structure):
    _fields_ = [("projections", _POINTER), ("ranks", ctypes.c_int64)]


class _Stack(ctypes.Structure):
    _fields_ = [
        ("blocks", _POINTER),
        *((name, ctypes.c_int64) for name in ("layers", "width", "inner")),
        ("eps", _FLOAT),
    ]


class Product:
    """A product with stored blocks (see `linear.Stored`) or bf16: x (B, inputs) → (B, outputs)."""

    def __init__(
        self, multiply: Callable[..., None], bits: int, packed: Tensor, scales: Tensor | None
    ) -> None:
        """`packed` (outputs, inputs · bits / 8) bytes, `scales` (tiles, groups, 1 or 2, 16)."""
        outputs, inputs = packed.shape[0], packed.shape[1] * 8 // bits
        self._multiply, self._kept, self._outputs = multiply, (packed, scales), outputs
        affine, address = (0, None) if scales is None else (scales.shape[2] - 1, scales.data_ptr())
        self.matrix = _Matrix(packed.data_ptr(), address, bits, outputs, inputs, affine)
        self._matrix = ctypes.addressof(self.matrix)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = x.new_empty(len(x), self._outputs)
        self._multiply(self._matrix, x.data_ptr(), len(x), y.data_ptr())
        return y


class LowRank:
    """An adapter as `Stack` reads it."""

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor] | None]) -> None:
        """A (ranks, inputs) and B (outputs, ranks) of every projection of every block, in bf16."""
        ranks = max(len(pair[0]) for pair in pairs if pair)
        self.ranks = -(-ranks // TILE) * TILE
        self._kept = [pair and self._packed(*pair) for pair in pairs]
        self._projections = (_LowRank * len(pairs))(
            *[_LowRank(*[part.data_ptr() for part in packed or ()]) for packed in self._kept]
        )
        self._adapter = _Adapter(ctypes.addressof(self._projections), self.ranks)
        self.address = ctypes.addressof(self._adapter)

    def _packed(self, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        more = self.ranks - len(down)
        pairs = F.pad(up, (0, more)).view(len(up) // TILE, TILE, self.ranks // 2, 2)
        return F.pad(down, (0, 0, 0, more)).contiguous(), pairs.transpose(1, 2).contiguous()


class Stack:
    """All blocks of a model of the LLaMA family, whose matrices are all stored in blocks."""

    def __init__(
        self,
        function: Callable[..., None],
        config: TransformerConfig,
        norms: Sequence[tuple[Tensor, Tensor]],
        products: Sequence[dict[str, Product]],
        reads: int,
    ) -> None:
        """`norms` and `products` of each block, as `kernels.c` names them."""
        self.reads = reads
        self._function, self._config, self._kept = function, config, (norms, products)
        blocks = (_Block * config.layers)()
        for block, pair, by_site in zip(blocks, norms, products, strict=True):
            block.attention_norm, block.mlp_norm = (norm.data_ptr() for norm in pair)
            for site, product in by_site.items():
                setattr(block, site, product.matrix)
        self._stack = _Stack(
            ctypes.addressof(blocks), config.layers, config.d_model, config.d_ff, config.norm_eps
        )
        self._blocks = blocks

    def __call__(
        self,
        x: Tensor,
        stored: Sequence[Tensor],
        places: tuple[Tensor, Tensor],
        turn: tuple[Tensor, Tensor],
        adapters: Iterable[LowRank | None] = (),
    ) -> Tensor:
        """The residual stream (B, C) behind the last block; the others as for `Kernels.attend`.

        `adapters` has one for each row, or is empty.
        """
        c, rows = self._config, len(x)
        by_row = list(adapters)
        ranks = max((adapter.ranks for adapter in by_row if adapter), default=0)
        inner = (c.heads * 2 + c.kv_heads * 2) * c.head_dim
        scratch = x.new_empty(rows * (2 * c.d_model + inner + 3 * c.d_ff + WIDEST_SITE * ranks))
        x = x.clone()
        layers = (_POINTER * len(stored))(*[layer.data_ptr() for layer in stored])
        corrections = (_POINTER * rows)(*[adapter and adapter.address for adapter in by_row])
        self._function(
            ctypes.addressof(self._stack),
            x.data_ptr(),
            ctypes.addressof(layers),
            scratch.data_ptr(),
            *[tensor.data_ptr() for tensor in (*places, *turn)],
            ctypes.addressof(corrections),
            ranks,
            rows,
            c.heads,
            c.kv_heads,
            c.head_dim,
            turn[0].shape[-1],
            stored[0].shape[2],
        )
        return x


class Kernels:
    """The compiled functions, on tensors. All numbers are bf16."""

    def __init__(self, library: ctypes.CDLL, fixed_rows: int) -> None:
        self.fixed_rows = fixed_rows
        """What a step costs however few its rows are, in rows."""
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
        self._shelf = Shelf()
        self._pack, self._product = library.pack, library.product
        self._attend, self._norm = library.attend, library.rms_norm
        self._gated_silu, self._through_blocks = library.gated_silu, library.through_blocks
        self._reads = READS_BESIDE_TILES if library.multiplies_tiles() else READS

    def product(self, bits: int, q: Tensor, scale: Tensor, zero: Tensor) -> Product:
        """See `linear.Stored`, whose numbers these are."""
        outputs, inputs = q.shape
        packed = torch.empty(outputs, inputs * bits // 8, dtype=torch.uint8)
        self._pack(q.contiguous().data_ptr(), outputs, inputs, bits, packed.data_ptr())
        columns = [scale, zero] if bits < WIDE or zero.any() else [scale]
        rows = (
            torch.stack(columns, dim=-1)
            .to(torch.bfloat16)
            .view(outputs // TILE, TILE, inputs // GROUP, -1)
        )
        scales = rows.permute(0, 2, 3, 1)
        return Product(self._product, bits, self._shelf.put(packed), self._shelf.put(scales))

    def dense(self, weight: Tensor) -> Product | None:
        """The product with a bf16 matrix (outputs, inputs); None where its sizes do not fit."""
        outputs, inputs = weight.shape
        if outputs % TILE or inputs % GROUP:
            return None
        tiles = weight.view(outputs // TILE, TILE, inputs // 2, 2).transpose(1, 2)
        packed = tiles.reshape(outputs, inputs).view(torch.uint8)
        return Product(self._product, 8 * weight.itemsize, self._shelf.put(packed), None)

    def stack(
        self,
        config: TransformerConfig,
        norms: Sequence[tuple[Tensor, Tensor]],
        linears: Sequence[dict[str, Any]],
    ) -> Stack | None:
        """The blocks of a model of the LLaMA family, if all its products are ours."""
        fits = not config.d_model % TILE and not config.d_ff % TILE and not config.head_dim % 32
        ours = all(isinstance(linear, Product) for sites in linears for linear in sites.values())
        if not (fits and ours):
            return None
        return Stack(self._through_blocks, config, norms, linears, self._reads)

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
        places: tuple[Tensor, Tensor],
        turn: tuple[Tensor, Tensor],
        *,
        window: int,
    ) -> Tensor:
        """Turn queries and keys, store keys and values, and attend: (B, H + 2K, D) → (B, H · D).

        `stored` (slots, 2K, capacity, D) is a layer of the cache, `places` slots and positions there
        (B) int64, `turn` cosines and sines (B, 1, R), half the sines negated. D is a multiple of 32.
        `window` 0 sees all.
        """
        (rows, every, size), kv_heads = heads.shape, stored.shape[1] // 2
        y = heads.new_empty(rows, (every - 2 * kv_heads) * size)
        cos, sin = turn
        tensors = (heads.contiguous(), stored, *places, cos, sin, y)
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


def loaded(instructions: str) -> Kernels | None:
    """The kernels for one kind of processor; None where they are not compiled or this is none.

    torch is loaded by now, so both use the same OpenMP workers.
    """
    path = library(instructions)
    if not path.exists() or not (found := ctypes.CDLL(str(path))).supported():
        return None
    return Kernels(found, INSTRUCTIONS[instructions].fixed_rows)


@cache
def kernels() -> Kernels | None:
    """The quickest kernels that this processor runs; None where there are none."""
    return next(filter(None, map(loaded, INSTRUCTIONS)), None)
