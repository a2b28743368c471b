import json

import numpy as np
import pytest
import torch

from soma_agents.language.model import load_model
from soma_agents.pretraining import run
from soma_agents.pretraining.learner import Learner
from soma_agents.pretraining.loop import fit
from soma_agents.pretraining.packed import Packed
from soma_agents.pretraining.structure import traits_of
from soma_agents.pretraining.vocabulary import Vocabulary
from tests.pretended_device import HERE, THERE

STEPS = 3
SHORT = {"batch_tokens": 64, "tokens": 64 * STEPS, "micro_rows": 1, "evaluations": 1}
MATRIX = 2e-3
"""Muon rounds to bfloat16: what another order of sums changes grows to so much."""
PARTS = {
    "gated": {},
    "windows": {"window": 8, "global_every": 2, "local_rope_theta": 100.0, "head_norm": True},
    "ungated": {"gated": False, "activation": "relu2"},
    "experts": {"experts": 4, "experts_per_token": 2},
}
OWN = {"features": True, "hierarchy": True, "objectives": ("structure", "hierarchy", "coherence")}


@pytest.fixture(scope="module")
def vocabulary(prose):
    return Vocabulary.learn(prose, 330)


@pytest.fixture(scope="module")
def packed():
    cycle = np.tile(np.arange(20, dtype=np.uint16), 200)
    heard = np.array([0, 5, 40, 45])
    return Packed(cycle, cycle[:200], "cycle", heard=heard)


@pytest.fixture
def learn(make_model, make_recipe, packed, vocabulary, tmp_path):
    """A short run on a device: its outcome, and the losses of its steps."""

    def learnt(device, *, folder=None, until=STEPS, model=None, **changes):
        recipe = make_recipe(model=make_model(vocab_size=330, **(model or {})), **(SHORT | changes))
        losses = []

        def heard(progress):
            losses.append(progress.loss)
            if progress.step == until < STEPS:
                raise KeyboardInterrupt

        return (
            fit(
                recipe,
                packed,
                traits_of(vocabulary),
                directory=tmp_path / (folder or str(device)),
                on_progress=heard,
                device=device,
            ),
            losses,
        )

    return learnt


def weights(outcome):
    return torch.cat([p.detach().cpu().reshape(-1) for p in outcome.learner.parameters()])


def assert_alike(there, here):
    assert there[1] == pytest.approx(here[1], rel=1e-4)
    assert there[0].bits_per_byte == pytest.approx(here[0].bits_per_byte, rel=1e-4)
    assert torch.allclose(weights(there[0]), weights(here[0]), atol=MATRIX)


@pytest.mark.parametrize("part", PARTS)
def test_a_learner_computes_where_it_lies(part, learn, pretended):
    there, here = learn(pretended, model=PARTS[part]), learn(HERE, model=PARTS[part])

    assert {p.device.type for p in there[0].learner.parameters()} == {THERE.type}
    assert_alike(there, here)


def test_what_is_somas_own_computes_where_the_learner_lies(learn, pretended):
    assert_alike(learn(pretended, **OWN), learn(HERE, **OWN))


def test_replies_are_learnt_where_the_learner_lies(learn, pretended):
    assert_alike(learn(pretended, replies_only=True), learn(HERE, replies_only=True))


@pytest.mark.parametrize("order", [1, -1])
def test_a_run_goes_on_on_another_kind_of_device(order, learn, pretended):
    whole = learn(HERE)
    first, second = (HERE, pretended)[::order]

    with pytest.raises(KeyboardInterrupt):
        learn(first, folder="moved", until=2)
    moved = learn(second, folder="moved")

    assert moved[1] == pytest.approx(whole[1][2:], rel=1e-4)
    assert torch.allclose(weights(moved[0]), weights(whole[0]), atol=MATRIX)


def test_a_model_is_learnt_on_the_best_device_and_served_on_the_cpu(
    make_recipe, prose, tmp_path, pretended, monkeypatch
):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in prose)
    (tmp_path / "corpus.jsonl").write_text(lines)
    monkeypatch.setattr(run, "best_device", lambda: pretended)

    made = run.pretrain(
        run.Sources(tmp_path / "corpus.jsonl"), make_recipe(features=True, **SHORT), tmp_path
    )

    assert {p.device for p in made.outcome.learner.parameters()} == {pretended}
    assert {p.device for p in made.outcome.learner.transformer().parameters()} == {HERE}
    assert load_model(str(made.model)).config.vocab_size == 300


def test_a_tensor_that_was_left_behind_is_found(make_recipe, pretended):
    learner = Learner(make_recipe()).to(pretended)
    learner.refresh()

    with pytest.raises(RuntimeError, match="tensors on cpu and lazy"):
        learner.loss(torch.zeros(2, 9, dtype=torch.long))


@pytest.mark.gpu
@pytest.mark.parametrize("part", PARTS)
def test_a_gpu_learns_nearly_what_the_cpu_learns(part, learn):
    there, here = learn(torch.device("cuda"), model=PARTS[part]), learn(HERE, model=PARTS[part])

    assert {p.device.type for p in there[0].learner.parameters()} == {"cuda"}
    assert there[1] == pytest.approx(here[1], rel=1e-2)
    assert there[0].bits_per_byte == pytest.approx(here[0].bits_per_byte, rel=1e-2)
