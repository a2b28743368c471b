"""Low-rank adapters (arXiv:2106.09685), stored as the `peft` library stores them."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from arbiters.errors import CorruptError, InvalidError, NotFoundError
from soma_agents.language.architecture import PROJECTIONS, SITES, TransformerConfig

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
WIDEST = 8
"""Bytes of the widest number that a file may hold."""
HEADER = 1 << 20
"""Bytes that a file may need beside its numbers."""
ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Rank, scale (alpha / rank) and the projections that are corrected."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = PROJECTIONS
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises:
            InvalidError: names the field and its value.
        """
        if self.rank < 1:
            raise InvalidError(f"LoRA rank = {self.rank!r}; use 1 or more")
        if not math.isfinite(self.alpha) or self.alpha <= 0:
            raise InvalidError(f"LoRA alpha = {self.alpha!r}; use a number above 0")
        if not 0 <= self.dropout < 1:
            raise InvalidError(f"LoRA dropout = {self.dropout!r}; use 0 up to, not including, 1")
        if not self.targets or set(self.targets) - set(PROJECTIONS):
            raise InvalidError(f"LoRA targets = {self.targets!r}; choose from {PROJECTIONS}")

    @property
    def scale(self) -> float:
        """Factor of B(Ax)."""
        return self.alpha / self.rank


class LoraAdapter(nn.Module):
    """A (layers, rank, inputs) and B (layers, outputs, rank) of every target, in fp32.

    B starts at zero, so a fresh adapter changes nothing. Inputs of any dtype are served: the
    fp32 masters are cast to it, and gradients flow back to them.
    """

    def __init__(self, config: LoraConfig, shape: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.shape = shape
        served = {name for site in shape.sites for name in SITES[site]}
        if beyond := set(config.targets) - served:
            raise InvalidError(
                f"LoRA target {min(beyond)!r}: the model's MLPs are a mixture of experts; "
                f"choose from {sorted(served)}"
            )
        self.a = nn.ParameterDict()
        self.b = nn.ParameterDict()
        for name in config.targets:
            outputs, inputs = shape.shape(name)
            self.a[name] = nn.Parameter(torch.zeros(shape.layers, config.rank, inputs))
            self.b[name] = nn.Parameter(torch.zeros(shape.layers, outputs, config.rank))

    @classmethod
    def create(
        cls, config: LoraConfig, transformer_config: TransformerConfig, seed: int
    ) -> "LoraAdapter":
        """A fresh adapter: A uniform as in `nn.Linear`, B zero; the same for the same seed."""
        adapter = cls(config, transformer_config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name in config.targets:
                bound = 1 / math.sqrt(adapter.a[name].shape[-1])
                adapter.a[name].uniform_(-bound, bound, generator=generator)
        return adapter

    def delta(self, layer: int, site: str, x: Tensor) -> Tensor | None:
        """B(A x) · alpha / rank of the targets inside `site`, side by side; None when there are none."""
        names = [name for name in SITES[site] if name in self.a]
        if not names:
            return None
        if self.config.dropout:
            x = F.dropout(x, self.config.dropout, self.training)
        down = torch.cat([self.a[name][layer] for name in names]).to(x.dtype)
        parts = dict(zip(names, F.linear(x, down).split(self.config.rank, dim=-1), strict=True))
        return torch.cat([self._up(layer, name, x, parts.get(name)) for name in SITES[site]], -1)

    def _up(self, layer: int, name: str, x: Tensor, part: Tensor | None) -> Tensor:
        if part is None:
            return x.new_zeros(*x.shape[:-1], self.shape.shape(name)[0])
        return F.linear(part * self.config.scale, self.b[name][layer].to(x.dtype))

    def save(self, directory: Path, base_id: str) -> None:
        """Write both files, durably. The same adapter always gives the same bytes."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {key: weight.contiguous() for key, weight in self._by_peft_name()}
        _write(directory / CONFIG_FILE, json.dumps(self._peft_config(base_id), indent=2).encode())
        _write(directory / WEIGHTS_FILE, save(tensors, {"format": "pt"}))

    @classmethod
    def load(cls, directory: Path, transformer_config: TransformerConfig) -> "LoraAdapter":
        """Read an adapter that we or `peft` wrote.

        Raises:
            NotFoundError: a file is missing.
            CorruptError: a file is damaged, is for another model, or holds NaN or infinity.
            InvalidError: it uses a feature of `peft` beyond plain LoRA.
        """
        config, path = _read_config(directory), directory / WEIGHTS_FILE
        _refuse_other_sizes(config, transformer_config, path)
        adapter = cls(config, transformer_config)
        try:
            tensors = load(_read(path))
        except (SafetensorError, KeyError, ValueError) as error:
            raise CorruptError(f"adapter file {str(path)!r} is damaged: {error}") from error
        with torch.no_grad():
            for key, weight in adapter._by_peft_name():
                weight.copy_(_sound(tensors.pop(key, None), weight.shape, key, path))
        if tensors:
            raise CorruptError(f"adapter file {str(path)!r} has unknown tensor {min(tensors)!r}")
        return adapter

    def _by_peft_name(self) -> Iterator[tuple[str, Tensor]]:
        for layer in range(self.shape.layers):
            for name in self.config.targets:
                part = "self_attn" if name in ATTENTION else "mlp"
                stem = f"base_model.model.model.layers.{layer}.{part}.{name}"
                yield f"{stem}.lora_A.weight", self.a[name].data[layer]
                yield f"{stem}.lora_B.weight", self.b[name].data[layer]

    def _peft_config(self, base_id: str) -> dict[str, Any]:
        return {
            "base_model_name_or_path": base_id,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "lora_alpha": self.config.alpha,
            "lora_dropout": self.config.dropout,
            "peft_type": "LORA",
            "r": self.config.rank,
            "target_modules": sorted(self.config.targets),
            "task_type": "CAUSAL_LM",
            "use_dora": False,
            "use_rslora": False,
        }


def adapter_id(directory: Path, base_id: str) -> str:
    """The text lora- and 16 hex digits of SHA-256 over base id, configuration and weights.

    Raises:
        NotFoundError: a file is missing.
    """
    digest = hashlib.sha256(base_id.encode())
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        digest.update(_size(directory / name).to_bytes(8, "little"))
        with (directory / name).open("rb") as file:
            while piece := file.read(1 << 20):  # it may be larger than any adapter: not read yet
                digest.update(piece)
    return f"lora-{digest.hexdigest()[:16]}"


def _read_config(directory: Path) -> LoraConfig:
    path = directory / CONFIG_FILE
    try:
        if _size(path) > HEADER:
            raise CorruptError(f"adapter file {str(path)!r} has {_size(path)} bytes: too many")
        found = json.loads(_read(path))
        if not isinstance(found, dict) or found.get("peft_type") != "LORA":
            raise CorruptError(f"adapter file {str(path)!r} does not describe a LoRA")
        _refuse_beyond_lora(found, path)
        targets = tuple(name for name in PROJECTIONS if name in found["target_modules"])
        if len(targets) != len(found["target_modules"]):
            raise InvalidError(
                f"adapter {str(path)!r} targets {found['target_modules']!r}; "
                f"only {PROJECTIONS} are served"
            )
        return LoraConfig(int(found["r"]), float(found["lora_alpha"]), targets)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CorruptError(f"adapter file {str(path)!r} is damaged: {error!r}") from error


def _refuse_other_sizes(config: LoraConfig, shape: TransformerConfig, path: Path) -> None:
    """Nothing is read or allocated that the configuration and the file's length do not agree on."""
    shapes = [shape.shape(name) for name in config.targets]
    if config.rank > (most := max(min(sides) for sides in shapes)):
        raise InvalidError(
            f"adapter {str(path.parent)!r} has rank {config.rank}; "
            f"this model's matrices have rank {most} at most"
        )
    numbers = shape.layers * config.rank * sum(outputs + inputs for outputs, inputs in shapes)
    if not numbers < _size(path) <= numbers * WIDEST + HEADER:
        raise CorruptError(
            f"adapter file {str(path)!r} has {_size(path)} bytes; rank {config.rank} "
            f"on {config.targets!r} makes {numbers} numbers"
        )


def _refuse_beyond_lora(found: dict[str, Any], path: Path) -> None:
    plain = {"bias": "none"}
    for key in (
        "bias",
        "use_dora",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "layers_to_transform",
        "fan_in_fan_out",
        "lora_bias",
    ):
        value = found.get(key)
        if value and value != plain.get(key):
            raise InvalidError(
                f"adapter {str(path)!r} has {key} = {value!r}; only plain LoRA is served"
            )


def _sound(tensor: Tensor | None, shape: torch.Size, key: str, path: Path) -> Tensor:
    if tensor is None:
        raise CorruptError(f"adapter file {str(path)!r} lacks tensor {key!r}")
    if tensor.shape != shape:
        raise CorruptError(
            f"adapter file {str(path)!r}: {key!r} is {tuple(tensor.shape)}, not {tuple(shape)}; "
            "is the adapter for another model?"
        )
    if not torch.isfinite(tensor).all():
        raise CorruptError(f"adapter file {str(path)!r}: {key!r} holds NaN or infinity")
    return tensor


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise NotFoundError(f"no adapter file {str(path)!r}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"no adapter file {str(path)!r}") from None


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
