"""AdamW against torch's class, of which it is the function."""

import subprocess
import sys

import torch

from soma_agents.training.adamw import AdamW

RATES = (0.1, 0.02, 0.05)


def parameters():
    return {"a": torch.nn.Parameter(torch.ones(3, 4)), "b": torch.nn.Parameter(torch.zeros(5))}


def slope(named, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_it_steps_as_torch_s_class_and_goes_on_from_what_was_kept():
    theirs, ours, again = parameters(), parameters(), parameters()
    settings = {"betas": (0.8, 0.95), "eps": 1e-10}
    real = torch.optim.AdamW(theirs.values(), **settings, weight_decay=0.0, fused=True)
    own, kept = (AdamW(named, betas=(0.8, 0.95), epsilon=1e-10) for named in (ours, again))
    for step, rate in enumerate(RATES):
        if step == 2:
            kept.load({name: tensor.clone() for name, tensor in own.state().items()})
            for name, parameter in again.items():
                parameter.data.copy_(ours[name].data)
            slope(again, step)
            kept.step(rate)
        slope(theirs, step)
        slope(ours, step)
        real.param_groups[0]["lr"] = rate
        real.step()
        own.step(rate)

    for name, parameter in theirs.items():
        assert torch.equal(ours[name], parameter)
        assert torch.equal(again[name], parameter)


def test_a_parameter_without_a_gradient_stays_where_it_is():
    named = parameters()
    named["a"].grad = torch.ones(3, 4)

    AdamW(named).step(0.1)

    assert torch.equal(named["b"], torch.zeros(5))
    assert (named["a"] < 1).all()


ROUND = """
from soma_agents.training.adamw import AdamW
one = torch.nn.Parameter(torch.ones(2))
one.grad = torch.ones(2)
AdamW({"one": one}).step(0.1)
torch.nn.utils.clip_grad_norm_([one], 1.0)
"""
PRETRAINING = """
from soma_agents.pretraining.learner import Learner
from soma_agents.pretraining.optimiser import Optimisers
from soma_agents.pretraining.recipe import SHOWCASE
from soma_agents.training.group import Alone
recipe = SHOWCASE.settled()
learner = Learner(recipe)
optimisers = Optimisers(learner, recipe, Alone())
learner.refresh()
learner.loss(torch.zeros(1, 9, dtype=torch.int64))[0].backward()
optimisers.clip(1.0)
optimisers.step(0)
"""


def test_a_step_does_without_torch_s_compiler():
    whole = f"import sys, torch\n{ROUND}{PRETRAINING}\nsys.exit('torch._dynamo' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", whole], check=False).returncode == 0
