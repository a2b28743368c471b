"""How numbers are stored in a `.sou` file: plain floats, or whole numbers that share a scale.

Q8 is symmetric with one scale for 64 values of a row, as Q8_0 of llama.cpp has one for 32. Q5, Q4
and Q2 are affine, with scale and offset of a group in 8 bits each, relative to the row's largest:
the idea of llama.cpp's k-quants (https://github.com/ggml-org/llama.cpp/pull/1684) without their
super-blocks of 256, of which narrow models have no whole number in a row. Scale and offset are
fitted by alternating least squares. Each part of a tensor (whole numbers, row scales, codes) is one
plane, so that it can be used where it lies in the file.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from arbiters.errors import InvalidError

Kind = Literal["F32", "F16", "BF16", "Q8", "Q5", "Q4", "Q2"]
FLOATS: dict[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
BITS = {"Q8": 8, "Q5": 5, "Q4": 4, "Q2": 2}
GROUPS = {"Q8": 64, "Q5": 64, "Q4": 32, "Q2": 32}
"""Values of a row that share a scale."""
FITS = 3
"""Rounds of least squares; further ones change nothing that can be measured."""
CODES = 255
"""Largest 8-bit code: stands for the largest scale or offset of the row."""
PIECE = 1 << 22
"""Values quantised at once."""
TINY = torch.finfo(torch.float32).tiny
"""Divisor where a scale is zero: what is divided is zero, too, or smaller than F16 can tell."""


class Blocks(NamedTuple):
    """A quantised matrix taken apart: value = q · scale - offset."""

    q: Tensor
    """(rows, columns) uint8, or int8 for Q8."""
    scale: Tensor
    """(rows, groups) fp32."""
    offset: Tensor | None
    """(rows, groups) fp32; none for Q8."""


@dataclass(frozen=True, slots=True)
class _Planes:
    """Bytes of each part of a tensor, in the order in which they are stored."""

    values: int
    rows: int
    codes: int


def fits(kind: Kind, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape can be stored so."""
    if kind in FLOATS:
        return True
    return len(shape) == 2 and shape[1] % GROUPS[kind] == 0  # noqa: PLR2004 - a matrix


def size_of(kind: Kind, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; whole numbers of Python, which never overflow.

    Raises:
        InvalidError: a tensor of this shape cannot be stored so.
    """
    if not fits(kind, shape):
        raise InvalidError(
            f"a tensor of shape {shape!r} cannot be {kind}: that takes a matrix whose rows "
            f"are multiples of {GROUPS[kind]}"
        )
    if kind in FLOATS:
        return math.prod(shape) * FLOATS[kind].itemsize
    planes = _planes(kind, *shape)
    return planes.values + planes.rows + planes.codes


def encode(kind: Kind, tensor: Tensor) -> bytes:
    """The bytes of a tensor.

    Raises:
        InvalidError: it holds NaN or infinity, or numbers beyond the range of the kind.
    """
    if kind in FLOATS:
        stored = tensor.to(FLOATS[kind])
        _refuse_broken(stored, kind)
        return _bytes(stored)
    values = tensor.float()
    _refuse_broken(values, kind)
    step = max(1, PIECE // values.shape[1])
    encoder = _symmetric if kind == "Q8" else _affine(BITS[kind], GROUPS[kind])
    parts = [encoder(piece) for piece in values.split(step)]
    return b"".join(_bytes(torch.cat(plane)) for plane in zip(*parts, strict=True))


def decode(kind: Kind, shape: tuple[int, ...], raw: memoryview, dtype: torch.dtype) -> Tensor:
    """The tensor in `raw`, which has exactly `size_of` bytes. Floats of that dtype are not copied.

    Raises:
        InvalidError: it holds NaN or infinity.
    """
    if kind in FLOATS:
        plain = torch.frombuffer(raw, dtype=FLOATS[kind]).view(shape)
        _refuse_broken(plain, kind)
        return plain.to(dtype)
    return value_of(split(kind, shape, raw), dtype)


def split(kind: Kind, shape: tuple[int, ...], raw: memoryview) -> Blocks:
    """A quantised matrix in its parts; the whole numbers of Q8 are not copied.

    Raises:
        InvalidError: a scale is NaN or infinity.
    """
    rows, columns = shape
    planes = _planes(kind, rows, columns)
    if kind == "Q8":
        q = torch.frombuffer(raw[: planes.values], dtype=torch.int8).view(shape)
        scale = torch.frombuffer(raw[planes.values :], dtype=torch.float16).view(rows, -1).float()
        _refuse_broken(scale, kind)
        return Blocks(q, scale, None)
    middle = planes.values + planes.rows
    packed = torch.frombuffer(raw[: planes.values], dtype=torch.uint8)
    largest = torch.frombuffer(raw[planes.values : middle], dtype=torch.float16).view(rows, 2)
    _refuse_broken(largest, kind)
    codes = torch.frombuffer(raw[middle:], dtype=torch.uint8).view(rows, 2, -1)
    scale, offset = (codes * (largest.float() / CODES)[..., None]).unbind(1)
    return Blocks(_unpack(packed, BITS[kind]).view(shape), scale, offset)


def value_of(blocks: Blocks, dtype: torch.dtype) -> Tensor:
    """The matrix (rows, columns) that quantised parts stand for, a piece of rows at a time."""
    rows, columns = blocks.q.shape
    values = torch.empty(rows, columns, dtype=dtype)
    step = max(1, PIECE // columns)
    for start in range(0, rows, step):
        end = min(rows, start + step)
        grouped = blocks.q[start:end].view(end - start, blocks.scale.shape[1], -1)
        product = grouped * blocks.scale[start:end, :, None]
        if blocks.offset is not None:
            product -= blocks.offset[start:end, :, None]
        values[start:end] = product.view(end - start, columns)
    return values


def _planes(kind: Kind, rows: int, columns: int) -> _Planes:
    groups = columns // GROUPS[kind]
    if kind == "Q8":
        return _Planes(rows * columns, 0, rows * groups * 2)
    return _Planes(rows * columns * BITS[kind] // 8, rows * 2 * 2, rows * 2 * groups)


def _symmetric(x: Tensor) -> tuple[Tensor, ...]:
    groups = x.view(len(x), -1, GROUPS["Q8"])
    scale = (groups.abs().amax(-1) / 127).half()  # 127: the largest signed byte
    _refuse_broken(scale, "Q8")
    q = (groups / scale.float().clamp(min=TINY)[..., None]).round().clamp(-127, 127)
    return q.to(torch.int8).view(x.shape), scale


def _affine(bits: int, group: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
    def encoder(x: Tensor) -> tuple[Tensor, ...]:
        groups = x.view(len(x), -1, group)
        pair = torch.stack(_fitted(groups, 2**bits - 1), dim=1)  # (rows, 2, groups)
        largest = pair.amax(-1).half()
        _refuse_broken(largest, f"Q{bits}")
        steps = (largest.float() / CODES)[..., None]
        codes = (pair / steps.clamp(min=TINY)).round().clamp(max=CODES)
        scale, offset = (codes * steps)[..., None].unbind(1)
        q = _nearest(groups, scale, offset, 2**bits - 1).to(torch.uint8)
        return *_pack(q.view(-1), bits), largest, codes.to(torch.uint8)

    return encoder


def _fitted(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Scale and offset (rows, groups), both at least 0, that come near to the least squares."""
    offset = (-x.amin(-1, keepdim=True)).clamp(min=0)
    scale = (x.amax(-1, keepdim=True).clamp(min=0) + offset) / most
    best, least = (scale, offset), _error(x, scale, offset, most)
    mean = x.mean(-1, keepdim=True)
    for _ in range(FITS):
        q = _nearest(x, scale, offset, most)
        spread = q - q.mean(-1, keepdim=True)
        power = spread.square().sum(-1, keepdim=True)
        slope = (spread * x).sum(-1, keepdim=True) / power
        scale = torch.where(power > 0, slope, scale).clamp(min=0)
        offset = (scale * q.mean(-1, keepdim=True) - mean).clamp(min=0)
        error = _error(x, scale, offset, most)
        better = error < least
        best = (torch.where(better, scale, best[0]), torch.where(better, offset, best[1]))
        least = torch.where(better, error, least)
    return best[0][..., 0], best[1][..., 0]


def _nearest(x: Tensor, scale: Tensor, offset: Tensor, most: int) -> Tensor:
    return ((x + offset) / scale.clamp(min=TINY)).round().clamp(0, most)


def _error(x: Tensor, scale: Tensor, offset: Tensor, most: int) -> Tensor:
    found = _nearest(x, scale, offset, most) * scale - offset
    return (x - found).square().sum(-1, keepdim=True)


def _pack(q: Tensor, bits: int) -> tuple[Tensor, ...]:
    """Neighbours in a byte, the first in its lowest bits; of five bits the highest goes apart."""
    if bits == 5:  # noqa: PLR2004 - not a divisor of eight
        return *_pack(q & 15, 4), *_pack(q >> 4, 1)
    parts = q.view(-1, 8 // bits)
    packed = parts[:, 0].clone()
    for place in range(1, 8 // bits):
        packed |= parts[:, place] << (bits * place)
    return (packed,)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    if bits == 5:  # noqa: PLR2004 - see `_pack`
        low = len(packed) // 5 * 4
        return _unpack(packed[:low], 4) | _unpack(packed[low:], 1) << 4
    parts = [packed >> (bits * place) & 2**bits - 1 for place in range(8 // bits)]
    return torch.stack(parts, dim=-1).view(-1)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _refuse_broken(numbers: Tensor, kind: str) -> None:
    if not torch.isfinite(numbers).all():
        raise InvalidError(f"numbers stored as {kind} hold NaN or infinity")
