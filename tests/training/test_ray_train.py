import pytest

from arbiters.events import TrainingFailed, TrainingFinished, TrainingRequested
from soma_agents.training.ray_train import RayTrainer
from soma_agents.training.trainer import LocalTrainer
from tests.tiny_models import echoes, tiny_base, tiny_settings, write_dataset

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


async def trained(trainer, settings, run, **changes):
    dataset = await write_dataset(
        settings, train=echoes("train", 8), validation=echoes("validation", 2)
    )
    request = TrainingRequested(
        **{
            "round": run,
            "dataset": dataset.id,
            "path": dataset.path,
            "parent": tiny_base(settings),
        }
        | changes
    )
    return [event async for event in trainer.train(request)][-1]


@pytest.mark.parametrize("workers", [1, 2])
async def test_workers_of_ray_train_learn_what_one_process_learns(tmp_path, workers):
    settings = tiny_settings(tmp_path, training={"workers": workers})

    together = await trained(RayTrainer(settings), settings, "together")
    alone = await trained(LocalTrainer(settings), settings, "alone")

    assert isinstance(together, TrainingFinished), together
    assert together.steps == alone.steps
    assert together.validation_loss == pytest.approx(alone.validation_loss, rel=1e-3)
    if workers == 1:
        assert together.model == alone.model


async def test_a_reason_to_give_up_is_told_and_not_tried_again(tmp_path):
    settings = tiny_settings(tmp_path, training={"workers": 2, "learning_rate": 1e30, "clip": 1e30})

    failed = await trained(RayTrainer(settings), settings, "diverging")

    assert isinstance(failed, TrainingFailed)
    assert "diverged" in failed.because
