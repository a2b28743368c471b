"""Choosing the next token from logits, one request at a time and the same for the same seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from arbiters.errors import InvalidError

MOST_LOGPROBS = 20
LEAST_TEMPERATURE = 1e-30
"""Anything below would be 0 in fp32."""

Weights = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a reply is chosen and when it ends.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 do nothing.
    `logprobs` asks for the log-probability of each token and of so many alternatives.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int = 512
    logprobs: int | None = None

    def __post_init__(self) -> None:
        """Refuse what makes no sense; comparisons are written so that NaN fails them.

        Raises:
            InvalidError: names the field and its value.
        """
        checks = {
            "temperature": ("from 0 to 100", 0 <= self.temperature <= 100),  # noqa: PLR2004
            "top_p": ("above 0, up to 1", 0 < self.top_p <= 1),
            "top_k": ("0 or more", self.top_k >= 0),
            "min_p": ("from 0 to 1", 0 <= self.min_p <= 1),
            "repetition_penalty": ("above 0, finite", 0 < self.repetition_penalty < math.inf),
            "max_tokens": ("1 or more", self.max_tokens >= 1),
            "logprobs": (f"from 0 to {MOST_LOGPROBS}", 0 <= (self.logprobs or 0) <= MOST_LOGPROBS),
            "stop": ("of non-empty strings", all(self.stop)),
        }
        for name, (allowed, ok) in checks.items():
            if not ok:
                raise InvalidError(f"{name} = {getattr(self, name)!r}; use a value {allowed}")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of a token under the model, and of the likeliest alternatives."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """The choices of one request. Nothing outside the request influences them."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % 2**63)
        self._seen = torch.tensor(sorted(set(prompt)), dtype=torch.long)

    @property
    def greedy(self) -> bool:
        """Whether the choice is simply the largest logit."""
        return self.sampling.temperature == 0 and self.sampling.repetition_penalty == 1

    def choose(self, logits: Tensor) -> int:
        """The next token, from fp32 logits (V)."""
        sampling = self.sampling
        if sampling.repetition_penalty != 1:
            logits = self._penalise(logits)
        token = int(logits.argmax()) if sampling.temperature == 0 else self._draw(logits)
        if sampling.repetition_penalty != 1:
            self._seen = torch.cat((self._seen, torch.tensor([token]))).unique()
        return token

    def _penalise(self, logits: Tensor) -> Tensor:
        """Make tokens seen less likely (arXiv:1909.05858, section 4.1)."""
        penalty = self.sampling.repetition_penalty
        seen = logits[self._seen]
        return logits.index_put(
            (self._seen,), torch.where(seen > 0, seen / penalty, seen * penalty)
        )

    def _draw(self, logits: Tensor) -> int:
        weights = _weights(logits.numpy(), self.sampling.temperature)
        tokens, mass = self._candidates(logits, weights)
        cumulative = weights[tokens].cumsum(dtype=np.float64)
        if self.sampling.top_p < 1:
            # The nucleus (arXiv:1904.09751): the fewest tokens that together reach top_p.
            reached = cumulative.searchsorted(self.sampling.top_p * mass)
            cumulative = cumulative[: int(reached) + 1]
        point = float(torch.rand((), generator=self._generator, dtype=torch.double))
        place = cumulative.searchsorted(point * cumulative[-1], side="right")
        place = min(int(place), len(cumulative) - 1)
        return place if isinstance(tokens, slice) else int(tokens[place])

    def _candidates(self, logits: Tensor, weights: Weights) -> tuple[Tokens | slice, float]:
        """The tokens that may be drawn, likeliest first unless all may.

        And the weight of all that top_k and min_p leave, listed or not, where top_p asks for it.
        """
        sampling = self.sampling
        if sampling.top_k:
            tokens = logits.topk(min(sampling.top_k, len(logits))).indices.numpy()
            tokens = tokens[weights[tokens] >= sampling.min_p]
            return tokens, float(weights[tokens].sum())
        if sampling.min_p:
            tokens = _likeliest(weights, sampling.min_p)
            return tokens, float(weights[tokens].sum())
        if sampling.top_p == 1:
            return slice(None), math.inf
        mass = float(weights.sum())
        # All tokens below an equal share of what the nucleus leaves out are together less than that.
        return _likeliest(weights, (1 - sampling.top_p) * mass / len(weights)), mass


def _weights(logits: Weights, temperature: float) -> Weights:
    """How likely each token is, over how likely the likeliest."""
    # From the largest down: divided by a tiny temperature the logits themselves would overflow.
    with np.errstate(over="ignore", under="ignore"):
        lead = logits - logits.max()
        lead /= max(temperature, LEAST_TEMPERATURE)
        return np.exp(lead, out=lead)


def _likeliest(weights: Weights, least: float) -> Tokens:
    """The tokens that weigh `least` or more, in order."""
    tokens = np.flatnonzero(weights >= least)
    return tokens[np.argsort(-weights[tokens], kind="stable")]


def token_logprob(logits: Tensor, token: int, alternatives: int) -> TokenLogprob:
    """What the model itself thought of `token`: of fp32 logits (V), before any setting."""
    logprobs = torch.log_softmax(logits, dim=-1)
    values, tokens = logprobs.topk(min(alternatives, len(logprobs)))
    top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs[token]), top)
