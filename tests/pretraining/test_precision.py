"""A recipe leaves the number format to the machine; a run keeps the one that it began with."""

import json

import pytest
import torch

from arbiters.errors import CorruptError, InvalidError
from soma_agents.language import precision
from soma_agents.pretraining.learner import Learner
from soma_agents.pretraining.planning import Machine, plan
from soma_agents.pretraining.recipe import PRESETS, V1, of_base, of_depth
from soma_agents.pretraining.run import RECIPE, Sources, pretrain, settled
from soma_agents.training.device import CPU

SLOW = Machine(products=4e11, passes=1e10, memory=16 << 30, cores=2)


@pytest.fixture
def processor(monkeypatch):
    """A processor with these instructions for bfloat16, "" without any."""

    def has(instructions):
        monkeypatch.setattr(precision, "bfloat16_instructions", lambda: instructions)

    return has


@pytest.mark.parametrize("recipe", [*PRESETS.values(), of_depth(4), of_base(V1.model)])
def test_what_is_fastest_is_settled_on_the_machine(recipe, processor):
    wide = recipe.model.d_model >= 256

    processor("AMX")
    assert recipe.settled().format == ("bfloat16" if wide else "float32")

    processor("")
    assert recipe.settled().format == "float32"
    assert recipe.settled("cuda").format == ("bfloat16" if wide else "float32")


def test_what_was_said_stands(processor):
    processor("")

    assert V1.but(precision="float16").settled().format == "float16"


def test_a_recipe_that_is_not_settled_is_not_learnt_by():
    with pytest.raises(InvalidError, match="recipe 'v1' has no precision yet"):
        Learner(V1)


def test_a_run_goes_on_in_the_format_that_it_began_with(
    tmp_path, prose, make_recipe, make_model, processor
):
    (tmp_path / "corpus.txt").write_text("\n\n".join(prose))
    model = make_model(d_model=256, heads=4, head_dim=64, layers=1)
    recipe = make_recipe(model=model, tokens=256, evaluations=1, precision=None)
    processor("AMX")

    pretrain(Sources(tmp_path / "corpus.txt"), recipe, tmp_path)
    processor("")

    assert settled(recipe, tmp_path, CPU).format == "bfloat16"
    assert settled(recipe.but(seed=9), tmp_path, CPU).format == "float32"  # that is another run
    assert settled(recipe.but(precision="float16"), tmp_path, CPU).format == "float16"


def test_a_damaged_recipe_is_named(tmp_path):
    (tmp_path / RECIPE).write_text(json.dumps(["half"]))

    with pytest.raises(CorruptError, match=r"recipe\.json is damaged"):
        settled(V1, tmp_path, CPU)


def test_in_float32_a_block_computes_with_the_masters_themselves(make_recipe):
    learner = Learner(make_recipe())
    learner.refresh()
    before = {name: p.grad.data_ptr() for name, p in learner.named().items()}

    learner.loss(torch.arange(66).view(2, 33))[0].backward()
    learner.collect()

    assert {name: p.grad.data_ptr() for name, p in learner.named().items()} == before
    assert all(p.grad.abs().sum() > 0 for name, p in learner.named().items() if "out" in name)


def test_float32_takes_no_working_copy_and_wider_activations():
    short, exact = (plan(V1.but(precision=p), SLOW) for p in ("bfloat16", "float32"))

    assert exact.weights == 12 * exact.parameters < short.weights
    assert exact.activations > 1.7 * short.activations
    assert exact.memory > short.memory
