"""A tiny model, and what is compared: as it is, and with an adapter that says other things."""

import pytest
import torch

from soma_agents.evaluation.arms import Arm
from soma_agents.language.lora import LoraAdapter, LoraConfig
from soma_agents.language.model import load_model
from tests.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
    return load_model(str(path), dtype=torch.float32)


@pytest.fixture(scope="module")
def arms(model):
    adapter = LoraAdapter.create(LoraConfig(rank=4, alpha=8), model.config, seed=1)
    with torch.no_grad():
        for up in adapter.b.values():
            up.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    return Arm(model.id, None, None), Arm("lora-other", adapter, None)
