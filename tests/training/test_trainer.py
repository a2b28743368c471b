import asyncio
import json
import os
import signal
from contextlib import aclosing, suppress

import psutil
import pytest
import torch

from arbiters.model_events import TrainingFailed, TrainingFinished, TrainingRequested
from soma_agents.language.lora import LoraAdapter, adapter_id
from soma_agents.language.model import load_model
from soma_agents.storage.files import verify_manifest
from soma_agents.training.device import CPU
from soma_agents.training.group import Alone
from soma_agents.training.job import precision_of, train_here
from soma_agents.training.request import Job
from soma_agents.training.trainer import LocalTrainer
from tests.tiny_models import echoes, tiny_base, tiny_settings, write_dataset

ENDLESS = {"epochs": 2_000, "max_steps": 2_000, "checkpoint_every_s": 0.01}


@pytest.fixture
async def dataset_of():
    async def write(settings):
        return await write_dataset(
            settings, train=echoes("train", 8), validation=echoes("validation", 2)
        )

    return write


async def request_of(settings, dataset, **changes):
    return TrainingRequested(
        **{
            "round": "round-1",
            "dataset": dataset.id,
            "path": dataset.path,
            "parent": tiny_base(settings),
        }
        | changes
    )


async def all_of(trainer, request):
    return [event async for event in trainer.train(request)]


async def test_a_round_ends_with_an_adapter_that_says_where_it_came_from(tmp_path, dataset_of):
    settings = tiny_settings(tmp_path)
    dataset = await dataset_of(settings)

    *progress, finished = await all_of(LocalTrainer(settings), await request_of(settings, dataset))

    assert isinstance(finished, TrainingFinished)
    assert finished.validation_loss < finished.hyperparameters["base_validation_loss"]
    assert [event.step for event in progress] == sorted(event.step for event in progress)
    directory = settings.home / "models" / finished.model
    lineage = verify_manifest(directory)
    assert lineage["dataset"] == dataset.id
    assert lineage["base"] == tiny_base(settings)
    assert lineage["hyperparameters"]["precision"] == "float32"
    assert lineage["code_version"] == finished.code_version != ""
    assert adapter_id(directory, tiny_base(settings)) == finished.model
    LoraAdapter.load(directory, load_model(settings.engine.model).config)


async def test_a_round_goes_on_in_the_number_format_that_it_began_in(tmp_path, dataset_of):
    settings = tiny_settings(tmp_path, engine={"dtype": "bfloat16"})
    request = await request_of(settings, await dataset_of(settings))
    work = Job(request=request, settings=settings, cores=())
    work.directory.mkdir(parents=True)

    began = precision_of(work, torch.device("cuda"), Alone())  # bfloat16, as every GPU
    went_on = precision_of(work, CPU, Alone())
    outcome = train_here(work)

    assert began == went_on == torch.bfloat16
    assert outcome.precision == "bfloat16"


async def test_a_finished_round_is_told_again_without_training(tmp_path, dataset_of):
    settings = tiny_settings(tmp_path)
    request = await request_of(settings, await dataset_of(settings))
    first = await all_of(LocalTrainer(settings), request)

    again = await all_of(LocalTrainer(settings), request)

    assert again == first[-1:]


async def test_a_damaged_dataset_fails_the_round_with_the_reason(tmp_path, dataset_of):
    settings = tiny_settings(tmp_path)
    dataset = await dataset_of(settings)
    with open(f"{dataset.path}/train.jsonl", "a") as file:  # noqa: ASYNC230, PTH123
        file.write("x")

    (failed,) = await all_of(LocalTrainer(settings), await request_of(settings, dataset))

    assert isinstance(failed, TrainingFailed)
    assert "train.jsonl is damaged" in failed.because


async def test_a_round_for_another_base_fails_with_the_reason(tmp_path, dataset_of):
    settings = tiny_settings(tmp_path)
    request = await request_of(settings, await dataset_of(settings), parent="base-other")

    (failed,) = await all_of(LocalTrainer(settings), request)

    assert "'base-other'" in failed.because
    assert not list((settings.home / "models").glob("*"))


async def test_a_name_that_leaves_the_directory_is_refused(tmp_path, dataset_of):
    settings = tiny_settings(tmp_path)
    request = await request_of(settings, await dataset_of(settings), round="../outside")

    (failed,) = await all_of(LocalTrainer(settings), request)

    assert "cannot name a directory" in failed.because


def trainer_process():
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "soma_agents.training.job" in child.cmdline():
                return child
    return None


async def checkpointed(run):
    while not list((run / "checkpoints").glob("step-*")):  # noqa: ASYNC110 — another process
        await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_killed_training_process_goes_on_and_finishes(tmp_path, dataset_of):
    settings = tiny_settings(tmp_path, training={"epochs": 60, "checkpoint_every_s": 0.1})
    request = await request_of(settings, await dataset_of(settings))
    run = settings.home / "runs" / request.round

    task = asyncio.create_task(all_of(LocalTrainer(settings), request))
    await checkpointed(run)
    os.kill(trainer_process().pid, signal.SIGKILL)
    *_, finished = await task

    assert isinstance(finished, TrainingFinished)
    steps = [json.loads(line)["step"] for line in (run / "progress.jsonl").read_text().splitlines()]
    assert steps[-1] == finished.steps


async def test_leaving_the_iterator_ends_the_process(tmp_path, dataset_of):
    settings = tiny_settings(tmp_path, training=ENDLESS)
    request = await request_of(settings, await dataset_of(settings))
    own = os.getpriority(os.PRIO_PROCESS, 0)

    async with aclosing(LocalTrainer(settings).train(request)) as events:
        await anext(events)
        process = trainer_process()

    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert os.getpriority(os.PRIO_PROCESS, 0) == own
