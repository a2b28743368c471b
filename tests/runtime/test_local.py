"""All of SOMA's arbiters in one process."""

import pytest

from arbiters.errors import CorruptError
from soma_agents.runtime.local import LocalRuntime
from soma_agents.settings import load_settings


async def test_a_start_that_one_damaged_database_prevents_leaves_none_open(tmp_path):
    settings = load_settings(tmp_path, environ={})
    await (await LocalRuntime.start(settings)).close()
    damaged = tmp_path / "state" / "evaluation.db"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"not a database" * 1000)

    with pytest.raises(CorruptError, match="evaluation"):
        await LocalRuntime.start(settings)
    damaged.write_bytes(whole)
    soma = await LocalRuntime.start(settings)

    assert not await soma.directory.dead_letters("evaluation")
    await soma.close()
