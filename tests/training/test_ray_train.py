import pytest

from arbiters.model_events import TrainingFailed, TrainingFinished, TrainingRequested
from soma_agents.cluster.workshop import ClusterTrainer
from soma_agents.training.job import store, train_here
from soma_agents.training.request import Job
from tests.tiny_models import echoes, tiny_base, tiny_settings, write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


async def request_of(settings, run):
    dataset = await write_dataset(
        settings, train=echoes("train", 8), validation=echoes("validation", 2)
    )
    return TrainingRequested(
        round=run, dataset=dataset.id, path=dataset.path, parent=tiny_base(settings)
    )


async def trained(settings, run):
    request = await request_of(settings, run)
    return [event async for event in ClusterTrainer(settings).train(request)][-1]


async def trained_here(settings, run):
    job = Job(request=await request_of(settings, run), settings=settings, cores=())
    job.directory.mkdir(parents=True)
    return store(job, train_here(job), seconds=0.0)


async def test_workers_of_ray_train_learn_what_one_process_learns(tmp_path):
    settings = tiny_settings(tmp_path, training={"workers": 2})

    together = await trained(settings, "together")
    alone = await trained_here(settings, "alone")

    assert isinstance(together, TrainingFinished), together
    assert together.steps == alone.steps
    assert together.validation_loss == pytest.approx(alone.validation_loss, rel=1e-3)


async def test_a_reason_to_give_up_is_told_and_not_tried_again(tmp_path):
    settings = tiny_settings(tmp_path, training={"learning_rate": 1e30, "clip": 1e30})

    failed = await trained(settings, "diverging")

    assert isinstance(failed, TrainingFailed)
    assert "diverged" in failed.because
