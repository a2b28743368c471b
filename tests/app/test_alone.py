"""SOMA in one process lets go of what it opened when it does not start."""

import asyncio

import pytest

from arbiters.errors import NotFoundError
from soma_agents.app.alone import run_alone
from soma_agents.settings import EmbeddingsSettings
from soma_agents.storage.event_log import SqliteEventLog
from tests.tiny_models import tiny_settings


async def test_a_start_that_fails_leaves_no_file_open(tmp_path):
    missing = EmbeddingsSettings(model=str(tmp_path / "nowhere.embed"))
    settings = tiny_settings(tmp_path).model_copy(update={"embeddings": missing})

    with pytest.raises(NotFoundError, match="nowhere"):
        await run_alone(settings, asyncio.Event(), lambda _: None)

    log = await SqliteEventLog.open(settings.log_file)
    await log.close()
