"""Half precision learns as single precision does, and its overflows cost a step each."""

import math

import numpy as np
import pytest
import torch

from soma_agents.pretraining import scaling
from soma_agents.pretraining.learner import Learner
from soma_agents.pretraining.loop import fit
from soma_agents.pretraining.packed import Packed
from soma_agents.pretraining.scaling import FIRST, Scale
from soma_agents.pretraining.structure import plain_traits
from soma_agents.training.loop import DivergedError

TRAITS = plain_traits([2] * 300)


@pytest.fixture(scope="module")
def packed():
    cycle = np.tile(np.arange(20, dtype=np.uint16), 200)
    return Packed(cycle, cycle[:200], "cycle")


def test_half_precision_learns_what_single_precision_learns(packed, tmp_path, make_recipe):
    found = {
        precision: fit(
            make_recipe(precision=precision, tokens=128 * 30),
            packed,
            TRAITS,
            directory=tmp_path / precision,
        )
        for precision in ("float16", "float32")
    }

    assert found["float16"].bits_per_byte == pytest.approx(found["float32"].bits_per_byte, rel=0.05)


def test_a_step_that_overflows_is_left_out_and_the_scale_halved(
    packed, tmp_path, make_recipe, monkeypatch
):
    monkeypatch.setattr(scaling, "FIRST", 1024.0)
    real, taken = Learner.loss, []

    def overflows_when_large(learner, tokens, learnt=None):
        loss, nats = real(learner, tokens, learnt)
        taken.append(1)
        return (loss * math.inf if len(taken) <= 2 else loss), nats

    monkeypatch.setattr(Learner, "loss", overflows_when_large)
    seen = []
    fit(
        make_recipe(precision="float16", batch_tokens=64, tokens=64 * 6),
        packed,
        TRAITS,
        directory=tmp_path,
        on_progress=seen.append,
    )

    assert [progress.rate == 0 for progress in seen] == [True, True] + [False] * 4


def test_without_a_scale_to_lower_the_run_stops(packed, tmp_path, make_recipe, monkeypatch):
    real = Learner.loss

    def overflows(*arguments):
        loss, nats = real(*arguments)
        return loss * math.inf, nats

    monkeypatch.setattr(Learner, "loss", overflows)

    with pytest.raises(DivergedError):
        fit(make_recipe(), packed, TRAITS, directory=tmp_path)


def test_the_scale_grows_again_and_stays_within_bounds(monkeypatch):
    monkeypatch.setattr(scaling, "GROW_AFTER", 3)
    scale = Scale(FIRST)

    for _ in range(3):
        scale = scale.held()

    assert scale == Scale(2 * FIRST)
    assert Scale(scaling.MOST, 2).held().factor == scaling.MOST
    assert Scale(2.0).overflown() == Scale(1.0)
    assert Scale().held() == Scale()
    assert torch.finfo(torch.float16).max < FIRST * 2
