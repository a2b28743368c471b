"""Embedders in files: safetensors, the facts in its metadata (docs/geometry.md has the table).

A file is hostile until looked at: the format's library checks every length against the file's own, then names,
types and shapes must be those that the method has, every number finite, and the seal that of the content.
"""

import json
import struct
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from arbiters.errors import CorruptError, InvalidError, NotFoundError
from soma_agents.language.geometry.embedder import METHODS, Embedder
from soma_agents.language.geometry.lexicon import Lexicon
from soma_agents.language.geometry.parts import FeaturePart, HashPart, SemanticPart
from soma_agents.language.geometry.places import COLUMNS
from soma_agents.language.symbols.pieces import Pieces

FORMAT, VERSION = "soma-embed", "1"
MOST_BUCKETS = 1 << 16
Tensors = dict[str, npt.NDArray[Any]]

TYPES: dict[str, tuple[type[np.generic], int]] = {
    "words": (np.uint8, 1),
    "shares": (np.float32, 1),
    "table": (np.float16, 2),
    "guess": (np.float16, 2),
    "common": (np.float32, 1),
    "mean": (np.float32, 1),
    "scale": (np.float32, 1),
}
"""Name → type and number of dimensions."""
PARTS = {"hash": (), "semantic": ("table", "guess", "common"), "feature": ("mean", "scale")}


def to_bytes(embedder: Embedder) -> bytes:
    """The file's content; the same embedder always gives the same bytes."""
    lexicon = embedder.lexicon
    tensors: Tensors = {
        "words": np.frombuffer(b"\n".join(lexicon.pieces.tolist()), np.uint8),
        "shares": lexicon.shares,
    }
    if (semantic := embedder.semantic) is not None:
        tensors |= {"table": semantic.table, "guess": semantic.guess, "common": semantic.common}
    if (features := embedder.features) is not None:
        tensors |= {"mean": features.mean, "scale": features.scale}
    tensors = {
        name: np.ascontiguousarray(tensor, TYPES[name][0]) for name, tensor in tensors.items()
    }
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "method": embedder.method,
        "dim": str(embedder.dim),
        "buckets": str(embedder.hashed.dim if embedder.hashed is not None else 0),
        "vocabulary": lexicon.digest,
        "corpus": embedder.corpus,
    }
    return _ordered(save(tensors, facts | {"seal": _seal(facts, tensors)}))


def _ordered(content: bytes) -> bytes:
    """The library writes the names of the head in any order; sorted, the same facts are the same bytes."""
    (length,) = struct.unpack_from("<Q", content)
    head = json.loads(content[8 : 8 + length])
    text = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    return content[:8] + text.ljust(length) + content[8 + length :]


def load(path: Path) -> Embedder:
    """Read a file that `soma embed train` wrote.

    Raises:
        NotFoundError: no such file.
        InvalidError: it is no such file, or of another version.
        CorruptError: it is damaged; says where.
    """
    if not path.is_file():
        raise NotFoundError(f"no file {str(path)!r}: make one with soma embed train")
    try:
        with safe_open(path, "np") as file:
            facts = dict(file.metadata() or {})
            _check_kind(path, facts)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidError(f"{str(path)!r} is no embedding file: {error}") from None
    try:
        return _built(facts, tensors)
    except CorruptError as error:
        raise CorruptError(f"{str(path)!r} {error}; train it anew, or restore it") from None


def _check_kind(path: Path, facts: dict[str, str]) -> None:
    if facts.get("format") != FORMAT:
        raise ValueError(f"its format is {facts.get('format')!r}, not {FORMAT!r}")
    if facts.get("version") != VERSION:
        raise InvalidError(
            f"{str(path)!r} is of version {facts.get('version')!r}, this SOMA reads {VERSION!r}:"
            " update SOMA or train it anew"
        )


def _built(facts: dict[str, str], tensors: Tensors) -> Embedder:
    method = facts.get("method", "")
    if method not in METHODS:
        raise CorruptError(f"names the method {method!r}")
    parts = tuple(PARTS) if method == "hybrid" else (method,)
    expected = {"words", "shares", *(name for part in parts for name in PARTS[part])}
    if set(tensors) != expected:
        raise CorruptError(f"has the tensors {sorted(tensors)!r}, not {sorted(expected)!r}")
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
    seal = facts.pop("seal", "")
    if seal != _seal(facts, tensors):
        raise CorruptError("is not what was written: its seal does not fit")
    lexicon = _lexicon(tensors)
    return Embedder(
        method,
        lexicon,
        HashPart(_buckets(facts)) if "hash" in parts else None,
        _semantic(tensors, len(lexicon)) if "semantic" in parts else None,
        _features(tensors) if "feature" in parts else None,
        facts.get("corpus", ""),
    )


def _check_tensor(name: str, tensor: npt.NDArray[Any]) -> None:
    dtype, dimensions = TYPES[name]
    if tensor.dtype != dtype or tensor.ndim != dimensions or not tensor.size:
        raise CorruptError(f"has {name!r} as {tensor.dtype!s} of shape {tensor.shape!r}")
    if dtype is not np.uint8 and not np.isfinite(tensor).all():
        raise CorruptError(f"has numbers in {name!r} that are not finite")


def _lexicon(tensors: Tensors) -> Lexicon:
    words = tensors["words"].tobytes().split(b"\n")
    try:
        tensors["words"].tobytes().decode()
    except UnicodeDecodeError as error:
        raise CorruptError(f"has words that are not UTF-8: {error.reason}") from None
    shares = tensors["shares"]
    if len(words) != len(shares) or not ((shares >= 0) & (shares <= 1)).all():
        raise CorruptError(f"has {len(words)!r} words and {len(shares)!r} shares of them")
    return Lexicon.counted(Pieces.of(words), shares)


def _semantic(tensors: Tensors, words: int) -> SemanticPart:
    table, guess, common = (tensors[name].astype(np.float32) for name in PARTS["semantic"])
    if len(table) != words or not guess.shape[1] == len(common) == table.shape[1]:
        raise CorruptError(
            f"has {words!r} words, 'table' {table.shape!r}, 'guess' {guess.shape!r},"
            f" 'common' {common.shape!r}"
        )
    return SemanticPart(table, guess, common)


def _features(tensors: Tensors) -> FeaturePart:
    mean, scale = tensors["mean"], tensors["scale"]
    if not len(mean) == len(scale) == COLUMNS or not (scale > 0).all():
        raise CorruptError(f"has {len(mean)!r} feature columns, not {COLUMNS!r}, or no scale")
    return FeaturePart(mean, scale)


def _buckets(facts: dict[str, str]) -> int:
    text = facts.get("buckets", "")
    if not text.isdecimal() or not 1 <= int(text[:9]) <= MOST_BUCKETS:
        raise CorruptError(f"has {text!r} buckets, not 1 to {MOST_BUCKETS!r}")
    return int(text)


def _seal(facts: dict[str, str], tensors: Tensors) -> str:
    digest = blake2b(digest_size=16)
    for name, value in sorted(facts.items()):
        digest.update(f"{name}={value}\n".encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
