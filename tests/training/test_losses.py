import pytest
import torch
from torch.nn import functional

from soma_agents.training import losses


@pytest.fixture
def material():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(losses.ROWS + 30, 12, generator=generator, requires_grad=True)
    head = torch.randn(40, 12, generator=generator)
    targets = torch.randint(0, 40, (len(hidden),), generator=generator)
    weights = torch.rand(len(hidden), generator=generator)
    return hidden, head, targets, weights


def gradient(loss, hidden):
    (found,) = torch.autograd.grad(loss, hidden)
    return found


def test_cross_entropy_and_its_gradient_equal_the_plain_formula(material):
    hidden, head, targets, weights = material

    ours = losses.cross_entropy(hidden, head, targets)
    plain = functional.cross_entropy(hidden @ head.T, targets, reduction="none")

    assert torch.allclose(ours, plain, atol=1e-5)
    assert torch.allclose(
        gradient((ours * weights).sum(), hidden),
        gradient((plain * weights).sum(), hidden),
        atol=1e-5,
    )


def test_divergence_and_its_gradient_equal_the_plain_formula(material):
    hidden, head, _, weights = material
    reference = hidden.detach() + 0.3 * torch.randn(
        hidden.shape, generator=torch.Generator().manual_seed(1)
    )

    ours = losses.divergence(hidden, head, reference)
    plain = functional.kl_div(
        (hidden @ head.T).log_softmax(-1),
        (reference @ head.T).log_softmax(-1),
        log_target=True,
        reduction="none",
    ).sum(-1)

    assert torch.allclose(ours, plain, atol=1e-5)
    assert torch.allclose(
        gradient((ours * weights).sum(), hidden),
        gradient((plain * weights).sum(), hidden),
        atol=1e-5,
    )


def test_a_model_does_not_diverge_from_itself(material):
    hidden, head, _, _ = material

    found = losses.divergence(hidden, head, hidden.detach())

    assert found.abs().max() < 1e-5
    assert gradient(found.sum(), hidden).abs().max() < 1e-5


def test_a_preference_costs_less_the_more_the_better_reply_gained():
    gained = torch.tensor([3.0, 0.0, -3.0])

    found = losses.preference(gained, torch.zeros(3), beta=0.5)

    expected = [-torch.log(torch.sigmoid(torch.tensor(0.5 * x))) for x in (3.0, 0.0, -3.0)]
    assert torch.allclose(found, torch.stack(expected))
    assert found[0] < found[1] < found[2]
