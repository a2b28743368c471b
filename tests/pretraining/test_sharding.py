"""Two workers over gloo of which each holds half of the model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from soma_agents.pretraining.loop import fit
from soma_agents.pretraining.packed import Packed
from soma_agents.pretraining.sharding import rows
from soma_agents.pretraining.shards import Shards
from soma_agents.pretraining.structure import plain_traits
from soma_agents.training.group import Alone

WORKER = Path(__file__).with_name("gloo_worker.py")
ROUNDING = 0.02
"""Of weights, relative: sums are taken in another order, and Muon orthogonalises in bfloat16."""


@pytest.fixture(scope="module")
def recipe(make_recipe):
    """Five rows for two workers, two at a time: the second one runs out of them."""
    return make_recipe(batch_tokens=160, tokens=160 * 8, micro_rows=2)


@pytest.fixture(scope="module")
def others(recipe, make_model):
    """Experts that do not go evenly into two, and what else a recipe may switch on."""
    experts = make_model(experts=3, experts_per_token=2, d_ff=24)
    served = {"activation": "relu2", "gated": False, "head_norm": True}
    local = make_model(window=16, global_every=2, **served)
    objectives = ("structure", "hierarchy", "coherence")
    return [
        recipe.but(model=experts, recompute=True),
        recipe.but(model=local, precision="bfloat16", objectives=objectives, features=True),
    ]


@pytest.fixture(scope="module")
def run_alone(recipe):
    cycle = np.tile(np.arange(20, dtype=np.uint16), 200)
    packed = Packed(cycle, cycle[:200], "cycle")

    def run(folder, until=0):
        def interrupt(progress):
            if progress.step == until:
                raise KeyboardInterrupt

        traits = plain_traits([2] * 300)
        return fit(recipe, packed, traits, directory=folder, on_progress=interrupt)

    return run


@pytest.fixture(scope="module")
def found(tmp_path_factory, recipe, others, run_alone):
    """What two workers did; see `gloo_worker.py`."""
    folder = tmp_path_factory.mktemp("sharding")
    facts = [each.facts() for each in (recipe, *others)]
    (folder / "recipes.json").write_text(json.dumps(facts))
    with pytest.raises(KeyboardInterrupt):
        run_alone(folder / "taken over", until=3)
    command = [sys.executable, "-W", "error", WORKER]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [
        subprocess.Popen([*command, str(rank), "2", folder], env=settings) for rank in range(2)
    ]
    try:
        assert [each.wait(200) for each in started] == [0, 0]
    finally:
        for each in started:
            each.kill()
            each.wait()
    told = [json.loads((folder / f"worker-{rank}.json").read_text()) for rank in range(2)]
    return SimpleNamespace(folder=folder, told=told)


def weights(found, name):
    tensors = load_file(found.folder / f"{name}.safetensors")
    return torch.cat([tensors[each].flatten() for each in sorted(tensors)])


def apart(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def test_it_learns_what_workers_learn_that_have_all_of_the_model(found):
    ours, theirs = found.told[0]["whole"], found.told[0]["copied"]

    assert len(ours["losses"]) == 8
    assert ours["losses"] == found.told[1]["whole"]["losses"]
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=5e-3)
    assert ours["bits"] == pytest.approx(theirs["bits"], rel=5e-3)
    assert apart(weights(found, "whole"), weights(found, "copied")) < ROUNDING


def test_each_worker_holds_half_of_the_model(found):
    for told in found.told:
        assert told["bytes"] == pytest.approx(told["whole bytes"] / 2, rel=0.01)


def test_a_step_of_muon_is_that_of_the_whole_matrix(found):
    for told in found.told:
        assert told["muon"] == pytest.approx([0, 0, 0], abs=1e-5)


def test_an_interrupted_run_ends_as_one_that_was_not(found):
    assert len(found.told[0]["parts"]["losses"]) == 5
    assert torch.equal(weights(found, "parts"), weights(found, "whole"))


def test_one_process_ends_what_parted_workers_began(found, run_alone):
    ended = run_alone(found.folder / "handed on")

    assert ended.bits_per_byte == pytest.approx(found.told[0]["whole"]["bits"], rel=5e-3)
    ours = dict(ended.learner.exported())
    flat = torch.cat([ours[name].flatten() for name in sorted(ours)])
    assert apart(flat, weights(found, "whole")) < ROUNDING


def test_parted_workers_end_what_one_process_began(found):
    assert len(found.told[0]["taken over"]["losses"]) == 5
    assert apart(weights(found, "taken over"), weights(found, "whole")) < ROUNDING


@pytest.mark.parametrize(
    ("number", "rounding"),
    [(0, 1e-5), (1, 1e-5), (2, 0.01)],
    ids=["llama", "experts", "SOMA's own in bfloat16"],
)
def test_its_gradients_are_those_of_the_whole_model(found, number, rounding):
    for told in found.told:
        assert len(told["slopes"][number]) > 8
        assert max(map(abs, told["slopes"][number])) < rounding


def test_what_is_no_number_in_one_worker_stops_all(found):
    for told in found.told:
        assert "pretraining diverged in batch 1 of 8" in told["diverged"]


def test_each_worker_writes_only_its_rows(found):
    files = [
        load_file(
            next((found.folder / "parts" / "checkpoints").glob(f"worker-{n}/*/*.safetensors"))
        )
        for n in range(2)
    ]

    assert files[0].keys() == files[1].keys()
    for name in (
        "now/embedding",
        "state/embedding/exp_avg",
        "state/matrices.1-out/momentum_buffer",
    ):
        assert len(files[0][name]) + len(files[1][name]) == (300 if "embedding" in name else 32)
        assert len(files[0][name]) == len(files[1][name])


def test_workers_that_find_different_checkpoints_are_stopped(found):
    for told in found.told:
        assert "workers find different checkpoints" in told["disagreed"]


def one_of(rank, count):
    worker = Alone()
    worker.rank, worker.count = rank, count
    return worker


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (4, 1)])
def test_another_number_of_workers_finds_its_rows(tmp_path, before, after):
    matrix, row = torch.arange(35.0).view(7, 5), torch.ones(1, 5)
    for rank in range(before):
        worker = one_of(rank, before)
        parts = {n: t[rows(len(t), rank, before)].clone() for n, t in (("m", matrix), ("r", row))}
        own = {"step": torch.tensor(4.0)}
        Shards(tmp_path, "run", worker, sharded=True).save({"step": 4}, own, parts)

    read = [
        Shards(tmp_path, "run", one_of(r, after), sharded=True).newest().tensors
        for r in range(after)
    ]

    assert torch.equal(torch.cat([each["m"] for each in read]), matrix)
    assert torch.equal(torch.cat([each["r"] for each in read]), row)
    assert all(each["step"] == 4 for each in read)
    assert set(read[0]) == {"m", "r", "step"}
    assert "x" not in read[0]
