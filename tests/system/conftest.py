from collections.abc import Awaitable, Callable

import pytest

from soma_agents.evaluation.examiner import LocalExaminer
from soma_agents.runtime.local import LocalRuntime
from soma_agents.settings import Settings, load_settings
from soma_agents.training.trainer import LocalTrainer

SMALL = {
    "training": {
        "rank": 8,
        "alpha": 16,
        "epochs": 1,
        "max_steps": 14,
        "learning_rate": 1e-3,
        "batch_tokens": 512,
        "checkpoint_every_s": 1,
    },
    "evaluation": {"max_items": 60},
}
"""A round in about a minute: the real model, few steps, few items."""

Start = Callable[[Settings], Awaitable[LocalRuntime]]


@pytest.fixture
def settings(tmp_path) -> Settings:
    return load_settings(tmp_path / "home", environ={}, overrides=SMALL)


@pytest.fixture
async def start():
    """Start runtimes with real trainers and examiners; they are closed at the end."""
    started: list[LocalRuntime] = []

    async def begin(settings: Settings) -> LocalRuntime:
        runtime = await LocalRuntime.start(
            settings, trainer=LocalTrainer(settings), examiner=LocalExaminer(settings)
        )
        started.append(runtime)
        return runtime

    yield begin
    await started[-1].close()
