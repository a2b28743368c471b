"""SOMA-LM while it learns: float32 masters, a working copy in the format that computes fastest.

The same arithmetic as `language.transformer.Transformer`, which is its oracle, with the kernels
of this package. Norms have no scale of their own while learning: a scale of one goes into the
export.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from arbiters.errors import InvalidError
from soma_agents.language.transformer import SITES, Transformer, TransformerConfig
from soma_agents.pretraining.kernels import (
    attention,
    cross_entropy,
    gated_unit,
    norm,
    rotated,
    squared_relu,
)

MATRICES = "matrices."
"""Names of the weights that Muon takes begin so."""


class Learner(nn.Module):
    """Parameters of a language model, and its loss."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        seed: int,
        dtype: torch.dtype = torch.bfloat16,
        recompute: bool = False,
    ) -> None:
        """`recompute` keeps only what goes into each block, and goes through it twice."""
        super().__init__()
        if config.gated != (config.activation == "silu"):
            raise InvalidError(
                f"activation {config.activation!r} with gated = {config.gated!r} cannot be learnt; "
                "use 'silu' with a gate, or 'relu2' without"
            )
        self.config = config
        self.dtype = dtype
        self._recompute = recompute
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.d_model))
        self.matrices = nn.ParameterDict(
            {
                f"{layer}-{site}": nn.Parameter(torch.empty(config.site_shape(site)))
                for layer in range(config.layers)
                for site in SITES
            }
        )
        if not self.embedding.is_meta:
            self._draw(seed)
        self._work: dict[str, Tensor] = {}
        self._turns = _turns(config, dtype)

    def _draw(self, seed: int) -> None:
        """Embeddings from N(0, 0.02²), matrices uniform with variance 1/inputs.

        Those that write to the stream are zero: each block begins as the identity.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.embedding.normal_(0, 0.02, generator=generator)
            for name, weight in self.matrices.items():
                if name.endswith(("out", "down")):
                    weight.zero_()
                else:
                    reach = (3 / weight.shape[1]) ** 0.5
                    weight.uniform_(-reach, reach, generator=generator)

    @property
    def size(self) -> int:
        """Numbers that are learnt."""
        return sum(parameter.numel() for parameter in self.parameters())

    # --- one micro-batch -------------------------------------------------------------------

    def refresh(self) -> None:
        """Take the masters as they are now into the working copy; gradients become zero."""
        for name, master in self.named_parameters():
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            else:
                master.grad.zero_()
            self._work[name] = master.detach().to(self.dtype)
            self._work[name].requires_grad_(name != "embedding")

    @torch.no_grad()
    def collect(self) -> None:
        """Add the working copy's gradients to the masters' in float32."""
        for name, master in self.named_parameters():
            leaf = self._work[name]
            if leaf.grad is not None and master.grad is not None:
                master.grad += leaf.grad
                leaf.grad = None

    def loss(self, tokens: Tensor) -> Tensor:
        """Sum of nats of tokens (B, T + 1) behind the first of each row."""
        hidden = self.hidden(tokens[:, :-1]).reshape(-1, self.config.d_model)
        targets = tokens[:, 1:].reshape(-1)
        return cross_entropy(hidden, self.embedding, self._work["embedding"], targets)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Normed states (B, T, C) behind the last block of tokens (B, T)."""
        x = F.embedding(tokens, self.embedding).to(self.dtype)
        turn = tuple(table[None, : tokens.shape[1]] for table in self._turns)
        for layer in range(self.config.layers):
            if self._recompute and torch.is_grad_enabled():
                x = checkpoint(self._block, x, layer, turn, use_reentrant=False)
            else:
                x = self._block(x, layer, turn)
        return norm(x, self.config.norm_eps)

    def _block(self, x: Tensor, layer: int, turn: tuple[Tensor, Tensor]) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        x = x + self._attend(norm(x, self.config.norm_eps), layer, turn)
        activate = gated_unit if self.config.gated else squared_relu
        inner = activate(self._project(norm(x, self.config.norm_eps), layer, "gate_up"))
        return x + self._project(inner, layer, "down")

    def _attend(self, x: Tensor, layer: int, turn: tuple[Tensor, Tensor]) -> Tensor:
        B, T, _ = x.shape
        H, G, D = self.config.heads, self.config.kv_heads, self.config.head_dim
        heads = self._project(x, layer, "qkv").view(B, T, -1, D)
        q, k = heads[:, :, :H], heads[:, :, H : H + G]
        if self.config.head_norm:
            q, k = norm(q, self.config.norm_eps), norm(k, self.config.norm_eps)
        cos, sin = turn
        q = rotated(q, cos * D**-0.5, sin * D**-0.5)  # attention wants its queries scaled
        k = rotated(k, cos, sin)
        v = heads[:, :, H + G :].transpose(1, 2).contiguous()
        return self._project(attention(q, k, v).transpose(1, 2).reshape(B, T, -1), layer, "out")

    def _project(self, x: Tensor, layer: int, site: str) -> Tensor:
        return F.linear(x, self._work[f"matrices.{layer}-{site}"])

    # --- what comes of it ------------------------------------------------------------------

    @torch.no_grad()
    def nats(self, tokens: Tensor) -> Tensor:
        """Nats (B, T) of tokens (B, T + 1) behind the first of each row, exact to float32."""
        hidden = self.hidden(tokens[:, :-1])
        head = self._work["embedding"]
        rows = [
            F.cross_entropy(F.linear(h, head).float(), t, reduction="none")
            for h, t in zip(hidden, tokens[:, 1:], strict=True)
        ]
        return torch.stack(rows)

    def exported(self) -> dict[str, Tensor]:
        """The weights as `Transformer.state_dict` names them, without a tied head."""
        ones = torch.ones(self.config.d_model)
        weights = {"embedding.weight": self.embedding.detach(), "norm.weight": ones}
        for layer in range(self.config.layers):
            stem = f"blocks.{layer}"
            weights |= {f"{stem}.attention_norm.weight": ones, f"{stem}.mlp_norm.weight": ones}
            if self.config.head_norm:
                names = (f"{stem}.query_norm.weight", f"{stem}.key_norm.weight")
                weights |= dict.fromkeys(names, torch.ones(self.config.head_dim))
            for site in SITES:
                weights[f"{stem}.{site}.weight"] = self.matrices[f"{layer}-{site}"].detach()
        return weights

    def transformer(self, dtype: torch.dtype = torch.float32) -> Transformer:
        """The same model as serving knows it."""
        weights: Mapping[str, Tensor] = self.exported()
        return Transformer.from_weights(self.config, {n: w.to(dtype) for n, w in weights.items()})


def _turns(config: TransformerConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (context, D/2) of every position, as `language.transformer.rotation`."""
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
    places = torch.arange(config.context, dtype=torch.float32)
    angles = places[:, None] / config.rope_theta ** (steps / config.head_dim)
    return angles.cos().to(dtype), angles.sin().to(dtype)
