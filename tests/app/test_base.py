"""What was learnt over one model is not mistaken for another's."""

import asyncio
from pathlib import Path

import pytest

from arbiters.errors import InvalidError
from soma_agents.app.verify import look
from soma_agents.runtime.local import LocalRuntime
from tests.tiny_models import tiny_base, tiny_settings


@pytest.fixture
def settings(tmp_path):
    """Of a data directory that has a first model."""

    async def live(settings):
        await (await LocalRuntime.start(settings)).close()
        return settings

    return asyncio.run(live(tiny_settings(tmp_path)))


def test_another_first_model_over_what_was_learnt_is_refused_with_the_ways_out(settings):
    known, model = tiny_base(settings), Path(settings.engine.model)
    look(settings)
    model.write_bytes(model.read_bytes() + b"\0")

    with pytest.raises(InvalidError, match=r"soma models add .* --home") as told:
        look(settings)

    assert known in str(told.value)
    assert tiny_base(settings) in str(told.value)
