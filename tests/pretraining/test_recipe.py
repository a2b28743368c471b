import math

import pytest
import torch

from arbiters.errors import InvalidError
from soma_agents.pretraining.learner import Learner
from soma_agents.pretraining.recipe import (
    SHOWCASE,
    V1,
    active_parameters,
    of_depth,
    parameters,
    preset,
    with_context,
    with_experts,
)


@pytest.mark.parametrize(("recipe", "count"), [(SHOWCASE, 663_552), (V1, 41_418_752)])
def test_the_stated_size_of_a_preset_is_its_true_size(recipe, count):
    with torch.device("meta"):
        learner = Learner(recipe.settled())

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


@pytest.mark.parametrize("recipe", [SHOWCASE, V1, of_depth(3)], ids=lambda recipe: recipe.name)
def test_a_mixture_is_larger_and_a_token_meets_no_more_of_it(recipe):
    mixture = with_experts(recipe, 8)

    with torch.device("meta"):
        learner = Learner(mixture.settled())
    routers = 8 * recipe.model.d_model * recipe.model.layers
    assert learner.size == parameters(mixture.model)
    assert parameters(mixture.model) > 1.5 * parameters(recipe.model)
    assert active_parameters(mixture.model) == parameters(recipe.model) + routers


def test_of_a_model_without_experts_a_token_meets_everything():
    assert active_parameters(V1.model) == parameters(V1.model)


@pytest.mark.parametrize("recipe", [SHOWCASE, V1, of_depth(12)], ids=lambda recipe: recipe.name)
def test_in_a_long_context_no_two_places_look_alike(recipe):
    long = with_context(recipe, 131_072)

    model = long.model
    slowest = 2 * math.pi * model.rope_theta ** (1 - 2 / model.head_dim)
    assert (model.context, long.row, long.batch_tokens) == (131_072,) * 3
    assert slowest > model.context  # its slowest pair has not turned once
    assert long.recompute


def test_a_shorter_context_leaves_rotations_as_they_are():
    short = with_context(V1, 512)

    assert short.model.rope_theta == V1.model.rope_theta
    assert (short.row, short.recompute) == (512, False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: with_experts(V1, 1), "experts = 1; use 2 to 1024"),
        (lambda: with_experts(V1, 2000), "experts = 2000"),
        (lambda: with_context(V1, 0), "context = 0"),
        (lambda: with_context(V1, 1 << 21), "context = 2097152; use 1 to 1048576"),
    ],
)
def test_sizes_that_no_model_has_are_refused(change, said):
    with pytest.raises(InvalidError, match=said):
        change()


def test_unknown_presets_and_depths_are_refused():
    with pytest.raises(InvalidError, match="preset 'v9'"):
        preset("v9")
    with pytest.raises(InvalidError, match="depth = 0"):
        of_depth(0)
