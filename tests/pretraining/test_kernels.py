"""Each kernel against the plain form that torch differentiates by itself."""

import pytest
import torch
from torch.nn import functional

from soma_agents.language.transformer import attention as plain_attention
from soma_agents.language.transformer import rotate
from soma_agents.pretraining import kernels


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


def assert_alike(fast, plain, *inputs):
    """Values and gradients, the latter behind a loss that weighs each output differently."""
    grads = []
    for form in (fast, plain):
        y = form(*inputs)
        weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
        grads.append((y, *torch.autograd.grad((y * weights).sum(), inputs)))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_a_norm_is_the_plain_norm():
    assert_alike(
        lambda x: kernels.norm(x, 1e-6),
        lambda x: functional.rms_norm(x, (24,), eps=1e-6),
        drawn(3, 5, 24),
    )


def test_a_rotation_is_the_plain_rotation():
    angles = torch.rand(1, 7, 4)

    def plain(x):
        cos, sin = (
            torch.cat((f(angles), f(angles)), -1)[:, :, None] for f in (torch.cos, torch.sin)
        )
        return rotate(x, cos, sin).transpose(1, 2)

    assert_alike(lambda x: kernels.rotated(x, angles.cos(), angles.sin()), plain, drawn(2, 7, 3, 8))


@pytest.mark.parametrize("length", [5, 128, 300])
@pytest.mark.parametrize("window", [0, 1, 70, 128, 200])
@pytest.mark.parametrize("kept", [0, kernels.KEPT])
def test_attention_in_blocks_is_the_plain_attention(length, window, kept, monkeypatch):
    monkeypatch.setattr(kernels, "KEPT", kept)
    q, k, v = drawn(2, 4, length, 8), drawn(2, 2, length, 8), drawn(2, 2, length, 8)
    seen = torch.ones(length, length, dtype=torch.bool).tril()

    def fast(q, k, v):
        return kernels.attention(q * 8**-0.5, k, v, window)

    def plain(q, k, v):
        return plain_attention(q, k, v, seen.triu(1 - window) if window else seen)

    assert_alike(fast, plain, q, k, v)


def test_a_gated_unit_is_the_plain_one():
    def plain(x):
        gate, up = x.chunk(2, dim=-1)
        return functional.silu(gate) * up

    assert_alike(kernels.gated_unit, plain, drawn(4, 3, 20))


def test_a_squared_relu_is_the_plain_one():
    assert_alike(kernels.squared_relu, lambda x: functional.relu(x) ** 2, drawn(4, 3, 20))


@pytest.mark.parametrize("cap", [0.0, 5.0])
def test_cross_entropy_in_blocks_is_the_plain_one(cap):
    hidden, table = drawn(700, 12), drawn(30, 12)
    targets = torch.arange(700) % 30

    def plain(hidden, table):
        logits = hidden @ table.T
        return functional.cross_entropy(
            cap * (logits / cap).tanh() if cap else logits, targets, reduction="sum"
        )

    def fast(hidden, table):
        return kernels.cross_entropy(hidden, table, table.detach(), targets, cap=cap)

    assert_alike(fast, plain, hidden, table)


def test_an_impossible_target_costs_much_but_not_infinitely_much():
    hidden, table = torch.tensor([[1e4]]), torch.tensor([[1.0], [-1.0]])

    loss = kernels.cross_entropy(hidden, table, table, torch.tensor([1]))

    assert 80 < loss < 100
