from pathlib import Path

import pytest
import torch

from arbiters.model_events import TrainingRequested
from soma_agents.language.lora import LoraAdapter
from soma_agents.language.model import load_model
from soma_agents.settings import TrainingSettings
from soma_agents.training import group, job
from soma_agents.training.corpus import Corpus, pairs_of, samples_of
from soma_agents.training.device import best_device
from soma_agents.training.job import load_base
from soma_agents.training.loop import fit
from soma_agents.training.request import STOP, Job
from tests.pretended_device import HERE
from tests.tiny_models import (
    echoes,
    example,
    tiny_base,
    tiny_settings,
    write_dataset,
    write_tiny_model,
)

SETTINGS = TrainingSettings(
    rank=8,
    alpha=16,
    learning_rate=1e-2,
    batch_tokens=128,
    epochs=2,
    max_steps=3,
    rehearsal_share=0.2,
    context=128,
    patience=100,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def learn(path, tmp_path):
    """A short run on a device; its outcome. In `folder`, it stops after step `until`."""

    def run(device, *, folder=None, until=None):
        model = load_model(str(path), dtype=torch.float32)
        model.transformer.to(device)
        pairs = [example(f"p{n}", f"is it {n}?", f"yes, {n} it is", rejected="no") for n in "1"]
        rehearsal = [example("r", "hello", "good day to you")]
        corpus = Corpus(
            replies=samples_of(model.tokenizer, echoes("train", 3), context=128),
            preferences=pairs_of(model.tokenizer, pairs, context=128),
            rehearsal=samples_of(model.tokenizer, rehearsal, context=128),
            validation=samples_of(model.tokenizer, echoes("validation", 1), context=128),
        )
        directory = tmp_path / (folder or str(device))
        directory.mkdir(exist_ok=True)
        (directory / STOP).unlink(missing_ok=True)

        def heard(progress):
            if progress.step == until:
                (directory / STOP).touch()

        return fit(model, corpus, SETTINGS, directory=directory, on_progress=heard)

    return run


def assert_alike(there, here):
    assert there.step == here.step > 2
    assert there.train_loss == pytest.approx(here.train_loss, rel=1e-4)
    assert there.validation_loss == pytest.approx(here.validation_loss, rel=1e-4)
    for learnt, expected in zip(there.adapter.parameters(), here.adapter.parameters(), strict=True):
        assert learnt.device == HERE
        assert torch.allclose(learnt, expected, atol=1e-4)


def test_an_adapter_is_learnt_where_the_model_lies(learn, pretended):
    assert_alike(learn(pretended), learn(HERE))


@pytest.mark.parametrize("order", [1, -1])
def test_a_run_goes_on_on_another_kind_of_device(order, learn, pretended):
    first, second = (HERE, pretended)[::order]

    stopped = learn(first, folder="moved", until=2)
    moved = learn(second, folder="moved")

    assert stopped.stopped == "stop file"
    assert_alike(moved, learn(HERE))


async def test_a_round_is_trained_on_the_best_device_and_served_on_the_cpu(
    tmp_path, pretended, monkeypatch
):
    settings = tiny_settings(tmp_path, training={"max_steps": 1})
    dataset = await write_dataset(settings, train=echoes("train", 4))
    request = TrainingRequested(
        round="there", dataset=dataset.id, path=dataset.path, parent=tiny_base(settings)
    )
    work = Job(request=request, settings=settings, cores=())
    work.directory.mkdir(parents=True)
    bases = []
    monkeypatch.setattr(job, "load_base", lambda *how: bases.append(load_base(*how)) or bases[-1])
    monkeypatch.setattr(job, "best_device", lambda: pretended)

    finished = job.store(work, job.train_here(work), seconds=0.0)

    assert bases[0].transformer.head.weight.device == pretended
    assert LoraAdapter.load(Path(finished.path), bases[0].config).config.rank == 4


def test_what_workers_tell_each_other_lies_where_their_group_wants_it(pretended):
    here, there = torch.ones(2), torch.ones(2, 2, device=pretended)

    with group._together([here, there], pretended) as flat:
        assert flat.device == pretended
        flat.mul_(3)

    assert here.tolist() == [3, 3]
    assert there.cpu().tolist() == [[3, 3], [3, 3]]


def test_the_cpu_is_taken_where_no_gpu_can_be_seen():
    assert best_device() == HERE


@pytest.mark.gpu
def test_a_gpu_is_taken_and_learns_nearly_what_the_cpu_learns(learn):
    there, here = learn(best_device()), learn(HERE)

    assert best_device().type == "cuda"
    assert {p.device for p in there.adapter.parameters()} == {HERE}
    assert there.train_loss == pytest.approx(here.train_loss, rel=1e-2)
    assert there.validation_loss == pytest.approx(here.validation_loss, rel=1e-2)
