"""Several workers that share one run: rows, optimiser state and checkpoints are parted."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from soma_agents.pretraining import loop
from soma_agents.pretraining.loop import fit
from soma_agents.pretraining.optimiser import owners
from soma_agents.pretraining.packed import Packed
from soma_agents.pretraining.structure import plain_traits
from soma_agents.training.group import Alone

TRAITS = plain_traits([2] * 300)


class Meeting:
    """Where workers in threads meet: what each brings, in the order of their ranks."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count)
        self.brought = [None] * count

    def of_all(self, rank, tensors):
        self.brought[rank] = [tensor.detach().clone() for tensor in tensors]
        self.barrier.wait(60)
        found = list(self.brought)
        self.barrier.wait(60)
        return found


class Together:
    """One of the workers."""

    def __init__(self, rank, meeting):
        self.rank = rank
        self.count = len(meeting.brought)
        self._meeting = meeting

    @torch.no_grad()
    def sum(self, tensors):
        for tensor, parts in zip(
            tensors, zip(*self._meeting.of_all(self.rank, tensors), strict=True), strict=True
        ):
            tensor.copy_(sum(parts))

    @torch.no_grad()
    def share(self, tensors, owners):
        brought = self._meeting.of_all(self.rank, tensors)
        for place, (tensor, owner) in enumerate(zip(tensors, owners, strict=True)):
            tensor.copy_(brought[owner][place])


@pytest.fixture(scope="module")
def packed():
    cycle = np.tile(np.arange(20, dtype=np.uint16), 200)
    return Packed(cycle, cycle[:200], "cycle")


@pytest.fixture
def fitted(packed, tmp_path, make_recipe):
    def run(name, *, workers=1, max_seconds=math.inf):
        meeting = Meeting(workers)
        ranks = [Alone()] if workers == 1 else [Together(r, meeting) for r in range(workers)]
        with ThreadPoolExecutor(workers) as pool:
            outcomes = pool.map(
                lambda each: fit(
                    make_recipe(),
                    packed,
                    TRAITS,
                    directory=tmp_path / name,
                    workers=each,
                    max_seconds=max_seconds,
                ),
                ranks,
            )
            return list(outcomes)

    return run


def weights(outcome):
    return torch.cat([p.detach().reshape(-1) for p in outcome.learner.parameters()])


def test_three_workers_learn_what_one_learns(fitted):
    (alone,) = fitted("alone")

    together = fitted("together", workers=3)

    for each in together:
        assert torch.equal(weights(each), weights(together[0]))
    assert together[0].bits_per_byte == pytest.approx(alone.bits_per_byte, rel=1e-3)


def test_each_keeps_its_own_part_of_the_optimisers_state(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    fitted("run", workers=2)

    parts = [
        load_file(max((tmp_path / "run" / "checkpoints" / worker).glob("step-*")) / name)
        for worker, name in (
            ("worker-0", "tensors.safetensors"),
            ("worker-1", "tensors.safetensors"),
        )
    ]
    states = [{name for name in part if name.startswith("state/")} for part in parts]

    assert states[0]
    assert states[1]
    assert not states[0] & states[1]
    assert not any(name.startswith("now/") for name in parts[1])


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 3)])
def test_what_some_workers_began_others_end(fitted, before, after, monkeypatch):
    whole = fitted("whole", workers=after)[0]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
        patch.setattr(loop.Run, "advance", stopping_at(5, loop.Run.advance))
        with pytest.raises(KeyboardInterrupt):
            fitted("parts", workers=before)

    ended = fitted("parts", workers=after)[0]

    assert ended.step == whole.step
    assert ended.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-3)
    if before == after:
        assert torch.equal(weights(ended), weights(whole))


def stopping_at(step, advance):
    def stop(run):
        if run._state.step == step:
            raise KeyboardInterrupt
        return advance(run)

    return stop


def test_workers_that_are_told_to_stop_leave_a_checkpoint_each(fitted, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "advance", telling_at(3, loop.Run.advance))
        with pytest.raises(KeyboardInterrupt):
            fitted("run", workers=2)
    (tmp_path / "run" / loop.STOP).unlink()
    began = []
    monkeypatch.setattr(loop.Run, "advance", noting(began, loop.Run.advance))

    fitted("run", workers=2)

    assert min(began) == 4


def telling_at(step, advance):
    def tell(run):
        if run._state.step == step:
            (run._directory / loop.STOP).touch()
        return advance(run)

    return tell


def test_parts_of_different_steps_are_not_put_together(fitted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
        patch.setattr(loop.Run, "advance", stopping_at(5, loop.Run.advance))
        with pytest.raises(KeyboardInterrupt):
            fitted("run", workers=2)
    newest = max((tmp_path / "run" / "checkpoints" / "worker-1").glob("step-*"))
    (newest / "tensors.safetensors").write_bytes(b"torn")
    began = []
    monkeypatch.setattr(loop.Run, "advance", noting(began, loop.Run.advance))

    fitted("run", workers=2)

    assert min(began) == 4


def noting(began, advance):
    def note(run):
        began.append(run._state.step)
        return advance(run)

    return note


def test_the_load_is_even():
    sizes = [100, 60, 50, 40, 30, 20, 10, 10]

    found = owners(sizes, 3)

    loads = [
        sum(size for size, owner in zip(sizes, found, strict=True) if owner == worker)
        for worker in range(3)
    ]
    assert max(loads) - min(loads) <= 20
    assert owners(sizes, 1) == [0] * len(sizes)
