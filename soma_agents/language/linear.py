"""Matrices in the form in which decoding reads them fastest.

Decoding a few tokens is bound by reading weights. Those that a file stores in blocks of 32
values with 2, 4, 5 or 8 bits are therefore multiplied from blocks of 4 or 8 bits, as true to the file
as bf16 weights are: by our kernel, which rounds inputs to bytes, or torch's with bf16 inputs. All
others stay dense.
"""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType
from torch import Tensor
from torch.nn import functional as F

from soma_agents.language.gguf_file import GgufFile
from soma_agents.language.native import kernels
from soma_agents.language.sou.blocks import Blocks

GROUP = 32
"""Values that share a scale in the formats Q4_0, Q4_1 and Q8_0."""

TILE = 64
"""The kernel wants outputs in multiples of it."""


class Linear(Protocol):
    """x (B, inputs) → (B, outputs)."""

    def __call__(self, x: Tensor, /) -> Tensor: ...


class DenseLinear:
    """The plain product."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)


class BiasedLinear:
    """Any product, and a bias (outputs) added to it."""

    def __init__(self, linear: Linear, bias: Tensor) -> None:
        self._linear = linear
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return self._linear(x) + self._bias


class BlockLinear:
    """A product with (q - 8) · scale + zero, q in 0 … 15, by torch's kernel."""

    def __init__(self, q: Tensor, scale: Tensor, zero: Tensor) -> None:
        """`q` (outputs, inputs) int32; `scale`, `zero` (outputs, inputs / 32) fp32."""
        self._packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1)  # noqa: SLF001
        pairs = torch.stack((scale.T, zero.T), dim=-1)  # (inputs / 32, outputs, 2)
        self._scales = pairs.to(torch.bfloat16).contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(  # noqa: SLF001
            x, self._packed, GROUP, self._scales
        )


class DoubleBlockLinear:
    """A product with q · scale + zero, q in -128 … 127, as two of the above side by side."""

    def __init__(self, q: Tensor, scale: Tensor, zero: Tensor) -> None:
        """As above; q = 16 · high + low."""
        self._both = BlockLinear(
            torch.cat(((q >> 4) + 8, q & 15), dim=1),
            torch.cat((16 * scale, scale), dim=1),
            torch.cat((zero, 8 * scale), dim=1),
        )

    def __call__(self, x: Tensor) -> Tensor:
        return self._both(torch.cat((x, x), dim=-1))


class Stored(NamedTuple):
    """A matrix (outputs, inputs) in blocks of 32 inputs: a value is q · scale + zero."""

    bits: int
    """4 or 8, of `q`."""
    q: Tensor
    """(outputs, inputs) int8, -8 … 7 or -128 … 127."""
    scale: Tensor
    """(outputs, inputs / 32) fp32"""
    zero: Tensor
    """(outputs, inputs / 32) fp32"""

    def product(self) -> Linear:
        """By our own kernel where it runs, else by torch's."""
        if (found := kernels()) is not None:
            return found.product(*self)
        if self.bits == 4:  # noqa: PLR2004 - what torch's kernel has
            return BlockLinear(self.q.int() + 8, self.scale, self.zero)
        return DoubleBlockLinear(self.q.int(), self.scale, self.zero)


def stored_linear(
    file: GgufFile, names: tuple[str, ...], orders: dict[str, Tensor]
) -> Linear | None:
    """The named tensors above each other, as the file stores them; None if no kernel fits.

    `orders` gives a new order of rows to some of them.
    """
    kinds = {file.tensors[name].type for name in names}
    outputs = sum(file.tensors[name].shape[0] for name in names)
    if len(kinds) != 1 or outputs % TILE or kinds.isdisjoint(READERS):
        return None
    read = READERS[kinds.pop()]
    parts = [read(file.raw(name)) for name in names]
    ordered = [
        [values[orders[name]] if name in orders else values for values in part[1:]]
        for name, part in zip(names, parts, strict=True)
    ]
    columns = (torch.cat(column) for column in zip(*ordered, strict=True))
    return Stored(parts[0].bits, *columns).product()


def block_linear(blocks: Blocks, bits: int) -> Linear | None:
    """The product with a matrix of a `.sou` file; None if no kernel fits its rows."""
    if blocks.q.shape[0] % TILE:
        return None
    repeats = blocks.q.shape[1] // blocks.scale.shape[1] // GROUP
    scale = blocks.scale.repeat_interleave(repeats, dim=1)
    q, zero = blocks.q.to(torch.int8), torch.zeros_like(scale)
    if blocks.offset is not None:
        zero = -blocks.offset.repeat_interleave(repeats, dim=1)
    if bits > 4:  # noqa: PLR2004 - what half a byte holds
        return Stored(8, q, scale, zero).product()
    half = 2 ** (bits - 1)  # to the middle of the kernel's 16 steps
    return Stored(4, q - half, scale, zero + half * scale).product()


def _q4_0(raw: npt.NDArray[np.uint8]) -> Stored:
    blocks = raw.reshape(raw.shape[0], -1, 18)
    scale = _halves(blocks[:, :, :2])
    return Stored(4, _nibbles(blocks[:, :, 2:]), scale, torch.zeros_like(scale))


def _q4_1(raw: npt.NDArray[np.uint8]) -> Stored:
    blocks = raw.reshape(raw.shape[0], -1, 20)
    scale, least = _halves(blocks[:, :, :2]), _halves(blocks[:, :, 2:4])
    return Stored(4, _nibbles(blocks[:, :, 4:]), scale, least + 8 * scale)


def _q8_0(raw: npt.NDArray[np.uint8]) -> Stored:
    blocks = raw.reshape(raw.shape[0], -1, 34)
    values = np.ascontiguousarray(blocks[:, :, 2:]).view(np.int8).reshape(raw.shape[0], -1)
    scale = _halves(blocks[:, :, :2])
    return Stored(8, torch.from_numpy(values), scale, torch.zeros_like(scale))


READERS = {
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q4_1: _q4_1,
    GGMLQuantizationType.Q8_0: _q8_0,
}


def _halves(pairs: npt.NDArray[np.uint8]) -> Tensor:
    halves = np.ascontiguousarray(pairs).view(np.float16)[:, :, 0]
    return torch.from_numpy(halves.astype(np.float32))


def _nibbles(packed: npt.NDArray[np.uint8]) -> Tensor:
    """16 bytes of a block → its 32 values less 8: low halves first, then high halves."""
    values = np.concatenate((packed & 15, packed >> 4), axis=-1).view(np.int8) - np.int8(8)
    return torch.from_numpy(values.reshape(packed.shape[0], -1))
