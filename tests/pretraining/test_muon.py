import pytest
import torch

from soma_agents.pretraining.muon import Muon, orthogonal

RATE = 0.02


def drawn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(7, 5), (4, 6), (5, 5), (1, 3)])
def test_in_bfloat16_its_steps_are_those_of_torch(shape):
    ours, theirs = (torch.nn.Parameter(drawn(*shape)) for _ in range(2))
    mine = Muon({"it": ours}, momentum=0.9, decay=0.1, dtype=torch.bfloat16)
    own = torch.optim.Muon([theirs], lr=RATE, momentum=0.9, ns_steps=5, weight_decay=0.1)

    for seed in range(3):
        ours.grad, theirs.grad = drawn(*shape, seed=seed), drawn(*shape, seed=seed)
        mine.step(RATE)
        own.step()

    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(24, 64), (64, 24), (24, 30)])
def test_in_float32_it_is_the_same_but_for_rounding(shape):
    exact, short = (orthogonal(drawn(*shape), d) for d in (torch.float32, torch.bfloat16))

    assert torch.allclose(exact, short.float(), atol=0.03)
    assert all(0.6 < size < 1.3 for size in torch.linalg.svdvals(exact))


@pytest.mark.parametrize("noise", [1.0, 1e-3, 1e-6])
def test_among_squares_it_iterates_as_with_the_matrix_itself(noise):
    matrix = drawn(24, 2) @ drawn(2, 96, seed=2) + noise * drawn(24, 96, seed=3)

    ours = orthogonal(matrix, torch.float32)
    plain = orthogonal(matrix.double(), torch.float64)

    assert torch.allclose(ours, plain.float(), atol=1e-3)


def test_a_gradient_that_is_taken_stays_as_it_was():
    gradient = drawn(3, 4)
    before = gradient.clone()

    orthogonal(gradient, torch.float32)

    assert torch.equal(gradient, before)
