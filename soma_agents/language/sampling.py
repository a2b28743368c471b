"""Choosing the next token from logits, one request at a time and the same for the same seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arbiters.errors import InvalidError

MOST_LOGPROBS = 20
SHORT_LISTS = (512, 4096)
"""So many candidates are sorted at first, and then; seldom is the nucleus not among them."""


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
        # From the largest down: divided by a tiny temperature the logits themselves would overflow.
        lead = logits.double() - logits.max()
        probabilities = torch.softmax(lead / self.sampling.temperature, dim=-1)
        values, tokens, mass = self._shortlist(logits, probabilities)
        cumulative = values.cumsum(-1)
        if self.sampling.top_p < 1:
            # The nucleus (arXiv:1904.09751): the fewest tokens that together reach top_p.
            reached = torch.searchsorted(cumulative, self.sampling.top_p * mass)
            cumulative = cumulative[: int(reached) + 1]
        point = torch.rand((), generator=self._generator, dtype=torch.double) * cumulative[-1]
        place = min(int(torch.searchsorted(cumulative, point, right=True)), len(cumulative) - 1)
        return int(tokens[place])

    def _shortlist(self, logits: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, float]:
        """Probabilities of the tokens in question, largest first unless all are; and the tokens.

        The last is the probability of all that top_k and min_p leave, listed or not.
        """
        sampling, size = self.sampling, len(probabilities)
        if sampling.top_p == 1 and not sampling.top_k and not sampling.min_p:
            return probabilities, torch.arange(size), 1.0
        values, tokens = _largest(logits, probabilities, sampling.top_k or SHORT_LISTS[0])
        for most in () if sampling.top_k else (*SHORT_LISTS[1:], size):
            if self._enough(values):
                break
            values, tokens = _largest(logits, probabilities, most)
        if not sampling.top_k and not sampling.min_p:
            return values, tokens, 1.0
        kept = values >= sampling.min_p * values[0]
        return values[kept], tokens[kept], float(values[kept].sum())

    def _enough(self, values: Tensor) -> bool:
        """Whether every token that may be drawn is among the listed."""
        if self.sampling.min_p:
            return float(values[-1]) < self.sampling.min_p * float(values[0])
        return float(values.sum()) >= self.sampling.top_p


def _largest(logits: Tensor, probabilities: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The largest probabilities, in order, and their tokens."""
    tokens = logits.topk(min(most, len(logits))).indices  # fp32: half the time of fp64
    return probabilities[tokens], tokens


def token_logprob(logits: Tensor, token: int, alternatives: int) -> TokenLogprob:
    """What the model itself thought of `token`: of fp32 logits (V), before any setting."""
    logprobs = torch.log_softmax(logits, dim=-1)
    values, tokens = logprobs.topk(min(alternatives, len(logprobs)))
    top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs[token]), top)
