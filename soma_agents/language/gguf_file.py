"""Reading GGUF version 3 files: metadata and tensors, with every size checked against the file.

A model file is hostile input: nothing is allocated that the file's own length does not pay for.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import contextlib
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from arbiters.errors import CorruptError, InvalidError, NotFoundError

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
STRING, ARRAY = 8, 9
SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""Value type in the file → numpy's name of it."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies; `shape` is in numpy's order (rows first)."""

    shape: tuple[int, ...]
    type: GGMLQuantizationType
    start: int
    size: int


class GgufFile:
    """One open GGUF file: `metadata` by key, tensors by name.

    Raises:
        NotFoundError: there is no such file.
        CorruptError: it is not GGUF, of another version, cut off, or contradicts itself.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise NotFoundError(
                f"no model file {str(path)!r}; name an existing GGUF file"
            ) from None
        except ValueError:  # mmap refuses an empty file
            raise CorruptError(f"{str(path)!r} is empty; fetch the file again") from None
        self._path = path
        self._at = 0
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            self._read_header()
        except (UnicodeDecodeError, ValueError) as error:
            raise self._corrupt(str(error)) from error

    def close(self) -> None:
        """Unmap the file, at the latest when the last error that saw its bytes is gone."""
        with contextlib.suppress(BufferError):
            self._bytes.close()

    def tensor(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor, de-quantised to fp32."""
        info = self._info(name)
        raw = np.frombuffer(self._bytes, np.uint8, count=info.size, offset=info.start)
        try:
            with np.errstate(all="ignore"):  # what comes out is checked below
                values = dequantize(raw.reshape(*info.shape[:-1], -1), info.type)
        except NotImplementedError as error:
            raise InvalidError(f"model tensor {name!r} is {info.type.name}: {error}") from None
        if not np.isfinite(values).all():
            raise self._corrupt(f"tensor {name!r} holds NaN or infinity")
        return np.array(values, np.float32).reshape(info.shape)  # a copy: the file will close

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """One tensor's bytes as stored, copied, one row of blocks a row."""
        info = self._info(name)
        raw = np.frombuffer(self._bytes, np.uint8, count=info.size, offset=info.start)
        return raw.reshape(info.shape[0], -1).copy()

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise self._corrupt(f"tensor {name!r} is missing")
        return info

    def _read_header(self) -> None:
        if (magic := self._take(4)) != MAGIC:
            raise self._corrupt(f"it begins with {magic!r}, not {MAGIC!r}")
        if (version := self._number("<u4")) != VERSION:
            raise self._corrupt(f"it is GGUF version {version!r}, this SOMA reads {VERSION}")
        tensors, entries = self._number("<u8"), self._number("<u8")
        for _ in range(entries):
            key = self._string()
            self.metadata[key] = self._value(self._number("<u4"))
        declared = [self._declaration() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise self._corrupt(f"general.alignment is {alignment!r}")
        start = -(-self._at // alignment) * alignment
        for name, shape, kind, offset in declared:
            self.tensors[name] = self._place(name, shape, kind, start + offset)

    def _declaration(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        dimensions = self._number("<u4")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._corrupt(f"tensor {name!r} has {dimensions!r} dimensions")
        shape = tuple(self._number("<u8") for _ in range(dimensions))
        if 0 in shape:
            raise self._corrupt(f"tensor {name!r} has shape {shape!r}")
        return name, shape[::-1], self._number("<u4"), self._number("<u8")

    def _place(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> TensorInfo:
        quantisation = GGMLQuantizationType(kind)
        values, size = GGML_QUANT_SIZES[quantisation]
        if shape[-1] % values:
            raise self._corrupt(f"tensor {name!r} has rows of {shape[-1]!r}, blocks of {values!r}")
        total = size
        for extent in (*shape[:-1], shape[-1] // values):
            total *= extent  # Python's integers do not overflow
        if start + total > len(self._bytes):
            raise self._corrupt(f"tensor {name!r} ends at byte {start + total}, beyond the file")
        return TensorInfo(shape, quantisation, start, total)

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            return self._array()
        return self._number(self._scalar(kind))

    def _array(self) -> list[Any]:
        kind, length = self._number("<u4"), self._number("<u8")
        if kind == STRING:
            # Each takes at least its length's 8 bytes, so a false count ends at the file's end.
            return [self._string() for _ in range(length)]
        dtype = np.dtype(self._scalar(kind))
        return np.frombuffer(self._take(length * dtype.itemsize), dtype).tolist()

    def _scalar(self, kind: int) -> str:
        if kind not in SCALARS:
            raise self._corrupt(f"byte {self._at} declares unknown value type {kind!r}")
        return SCALARS[kind]

    def _number(self, dtype: str) -> Any:
        raw = self._take(np.dtype(dtype).itemsize)
        return np.frombuffer(raw, dtype)[0].item()

    def _string(self) -> str:
        (length,) = struct.unpack("<Q", self._take(8))
        return self._take(length).decode()

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._bytes):
            raise self._corrupt(f"byte {self._at} announces {size} more, the file ends before")
        piece = self._bytes[self._at : end]
        self._at = end
        return piece

    def _corrupt(self, why: str) -> CorruptError:
        return CorruptError(f"{str(self._path)!r} is not a sound GGUF file: {why}; fetch it again")
