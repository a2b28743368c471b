import pytest
import torch

from arbiters.errors import InvalidError
from soma_agents.pretraining.learner import Learner
from soma_agents.pretraining.recipe import SHOWCASE, V1, of_depth, parameters, preset


@pytest.mark.parametrize(("recipe", "count"), [(SHOWCASE, 663_552), (V1, 41_418_752)])
def test_the_stated_size_of_a_preset_is_its_true_size(recipe, count):
    with torch.device("meta"):
        learner = Learner(recipe)

    assert learner.size == parameters(recipe.model) == count


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 8, 12, 24, 64])
def test_one_dial_derives_a_whole_run(depth):
    recipe = of_depth(depth)

    assert recipe.model.layers == depth
    assert recipe.tokens >= 20 * parameters(recipe.model)
    assert recipe.steps > 100


def test_deeper_is_larger_longer_and_gentler():
    small, large = of_depth(4), of_depth(12)

    assert parameters(large.model) > parameters(small.model)
    assert large.tokens > small.tokens
    assert large.batch_tokens > small.batch_tokens
    assert large.embedding_rate < small.embedding_rate


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"row": 2000}, "row = 2000; use 1 to the context of 1024"),
        ({"tokens": 5}, "tokens = 5; use at least a batch"),
        ({"schedule": "sawtooth"}, "schedule = 'sawtooth'"),
        ({"matrix_rate": float("nan")}, "matrix_rate = nan"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(changes, said):
    with pytest.raises(InvalidError, match=said):
        V1.but(**changes)


def test_unknown_presets_and_depths_are_refused():
    with pytest.raises(InvalidError, match="preset 'v9'"):
        preset("v9")
    with pytest.raises(InvalidError, match="depth = 0"):
        of_depth(0)
