"""AdamW against torch's class, of which it is the function."""

import subprocess
import sys

import torch

from soma_agents.training.adamw import BETAS, AdamW

RATES = (0.1, 0.02, 0.05)


def parameters():
    return {"a": torch.nn.Parameter(torch.ones(3, 4)), "b": torch.nn.Parameter(torch.zeros(5))}


def slope(named, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_it_steps_as_torch_s_class_and_goes_on_from_what_was_kept():
    theirs, ours, again = parameters(), parameters(), parameters()
    real = torch.optim.AdamW(theirs.values(), betas=BETAS, weight_decay=0.0)
    own = AdamW(ours)
    for step, rate in enumerate(RATES):
        if step == 2:
            kept = AdamW(again)
            kept.load({name: tensor.clone() for name, tensor in own.state().items()}, steps=2)
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


def test_a_step_does_without_torch_s_compiler():
    work = """
import sys, torch
from soma_agents.training.adamw import AdamW
one = torch.nn.Parameter(torch.ones(2))
one.grad = torch.ones(2)
AdamW({"one": one}).step(0.1)
torch.nn.utils.clip_grad_norm_([one], 1.0)
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", work], check=False).returncode == 0
