"""A small model of random weights whose matrices fit every number format."""

from dataclasses import replace

import pytest
import torch

from soma_agents.language.sou.convert import save_model
from soma_agents.language.transformer import Transformer


@pytest.fixture(scope="session")
def small(tiny, make_config):
    config = make_config(d_ff=128, vocab_size=320)
    transformer = Transformer.random(config, seed=3).requires_grad_(requires_grad=False).eval()
    with torch.no_grad():
        for weight in transformer.parameters():
            weight.mul_(5 if weight.dim() > 1 else 1)
    return replace(tiny, id="base-small", config=config, transformer=transformer)


@pytest.fixture
def sou(small, tmp_path):
    """The small model's file in a number format."""

    def write(kind="Q8", **more):
        path = tmp_path / f"small.{kind}.sou"
        save_model(path, small, kind, **more)
        return path

    return write
