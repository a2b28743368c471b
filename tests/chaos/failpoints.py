"""Where a round can be struck, and by what: around the ports, with nothing of it in the product."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd  # noqa: F401 — pyarrow asks for it: the first export would take as long as a hang
import pytest

from arbiters.envelope import Envelope
from arbiters.errors import StorageFullError
from arbiters.events import ChatMessage, ConversationImported
from arbiters.kernel import host
from arbiters.kernel.arbiter import Arbiter
from arbiters.model_events import (
    ComparisonFinished,
    Observation,
    RoundRequested,
    TrainingFinished,
    TrainingProgressed,
)
from arbiters.training_data_exporter.arbiter import TrainingDataExporter
from policies.evaluation import SUITES
from soma_agents.runtime import assembly, local
from soma_agents.runtime.local import LocalRuntime
from soma_agents.settings import Settings, load_settings
from soma_agents.storage.datasets import FileDatasetWriter
from soma_agents.storage.engines import open_log
from soma_agents.storage.registry import SqliteRegistry

STEPS = {
    "export": "DatasetExported",
    "train": "TrainingFinished",
    "evaluate": "ComparisonFinished",
    "promote": "EvaluationFinished",
}
"""Step → the event that tells its result."""
FAULTS = ("kill", "exception", "hang", "disk full")
MOMENTS = {
    "before": "the port is called",
    "after": "it has done its work and nobody knows",
    "telling": "the result goes to the log",
    "told": "the log has it, and whoever told it does not know",
}
FOR_GOOD = 1_000
LIMIT_S = 1.0
PATIENT_S = 60.0
"""Limits where something is to hang, and where nothing is."""


@dataclass
class Failpoint:
    """A fault at a moment of a step, as long as it has strikes left."""

    step: str = ""
    moment: str = ""
    fault: str = ""
    struck: int = 0
    lifted: bool = False

    def __str__(self) -> str:
        return f"{self.fault} {self.moment} {self.step}".replace(" ", "-")

    @property
    def limit_s(self) -> float:
        """Seconds that anything may take."""
        return LIMIT_S if self.fault == "hang" else PATIENT_S

    @property
    def strikes(self) -> int:
        """A port that is broken stays so for the round; a log must come back for there to be one."""
        if self.fault == "kill":
            return 1
        if self.fault == "disk full" or self.moment in {"telling", "told"}:
            return 2
        return FOR_GOOD

    async def reach(self, step: str, moment: str) -> None:
        """Strike, if this is the place."""
        if self.lifted or (step, moment) != (self.step, self.moment) or self.struck >= self.strikes:
            return
        self.struck += 1
        match self.fault:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exception":
                raise RuntimeError("struck")
            case "hang":
                await asyncio.Event().wait()
            case _:
                raise StorageFullError("no room left; free some disk space")


def every() -> list[Failpoint]:
    """One for each step, moment and fault there is."""
    return [Failpoint(*place) for place in product(STEPS, MOMENTS, FAULTS)]


# --- the ports -----------------------------------------------------------------------------


class Log:
    """The real log; what tells a step's result may be struck on its way."""

    def __init__(self, log, failpoint):
        self._log = log
        self._failpoint = failpoint
        self._steps = {told: step for step, told in STEPS.items()}

    def __getattr__(self, name):
        return getattr(self._log, name)

    async def append(self, envelopes: Sequence[Envelope]) -> list[int]:
        steps = [self._steps[e.type] for e in envelopes if e.type in self._steps]
        for step in steps:
            await self._failpoint.reach(step, "telling")
        offsets = await self._log.append(envelopes)
        for step in steps:
            await self._failpoint.reach(step, "told")
        return offsets


class Writer(FileDatasetWriter):
    """The real writer."""

    def __init__(self, failpoint, directory):
        super().__init__(directory)
        self._failpoint = failpoint

    async def write(self, splits, manifest):
        await self._failpoint.reach("export", "before")
        written = await super().write(splits, manifest)
        await self._failpoint.reach("export", "after")
        return written


class Registry(SqliteRegistry):
    """The real registry."""

    def __init__(self, failpoint, database):
        super().__init__(database)
        self._failpoint = failpoint

    async def swap(self, **change):
        await self._failpoint.reach("promote", "before")
        pointer = await super().swap(**change)
        await self._failpoint.reach("promote", "after")
        return pointer


class Trainer:
    """Trains at once, another model in each round."""

    def __init__(self, failpoint):
        self._failpoint = failpoint
        self._runs = 0

    async def train(self, request):
        self._runs += 1
        yield TrainingProgressed(
            round=request.round, step=1, steps=2, train_loss=2.0, tokens_per_second=9.0
        )
        await self._failpoint.reach("train", "before")
        finished = TrainingFinished(
            round=request.round,
            model=f"lora-of-{request.round}",
            path=f"models/lora-of-{request.round}",
            hyperparameters={},
            code_version="1",
            steps=2,
            tokens=100,
            seconds=float(self._runs),  # as in life no two runs are the same
            train_loss=1.0,
            validation_loss=1.1,
        )
        await self._failpoint.reach("train", "after")
        yield finished


class Examiner:
    """Finds every candidate better."""

    def __init__(self, failpoint):
        self._failpoint = failpoint
        self._runs = 0

    async def compare(self, request):
        self._runs += 1
        await self._failpoint.reach("evaluate", "before")
        finished = ComparisonFinished(
            round=request.round,
            experiment=request.experiment,
            candidate=request.candidate,
            observations=better(),
            seconds=float(self._runs),
        )
        await self._failpoint.reach("evaluate", "after")
        return finished


def better(**found: float) -> tuple[Observation, ...]:
    """What is seen of a candidate that is better; `found` says otherwise of a suite."""
    values = dict.fromkeys(SUITES, 2.0) | {"target": 1.5} | found
    return tuple(
        Observation(suite=suite, item=str(item), champion=2.0, candidate=value)
        for suite, value in values.items()
        for item in range(40)
    )


# --- a SOMA around them --------------------------------------------------------------------


def settings_of(home: Path, limit_s: float) -> Settings:
    """Of a home whose model is never loaded."""
    home.mkdir(exist_ok=True)
    model = home / "words.gguf"
    model.write_bytes(b"no weights")
    return load_settings(
        home,
        environ={},
        overrides={
            "engine": {"model": str(model)},
            "training": {"min_examples": 4, "silence_s": limit_s},
            "evaluation": {"max_seconds": limit_s},
        },
    )


@contextmanager
def _struck(failpoint: Failpoint) -> Iterator[None]:
    async def opened(settings):
        return Log(await open_log(settings), failpoint)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "FileDatasetWriter", partial(Writer, failpoint))
        patch.setattr(assembly, "SqliteRegistry", partial(Registry, failpoint))
        patch.setattr(local, "open_log", opened)
        patch.setattr(host, "RETRY_SECONDS", (0.0,) * 5)
        patch.setattr(host, "POLL_SECONDS", 0.05)
        patch.setattr(host, "APPEND_SECONDS", failpoint.limit_s)
        patch.setattr(Arbiter, "limit_s", failpoint.limit_s)
        patch.setattr(TrainingDataExporter, "limit_s", failpoint.limit_s)
        yield


@asynccontextmanager
async def running(home: Path, failpoint: Failpoint) -> AsyncGenerator[LocalRuntime]:
    """A SOMA with real storage, from its start to its end."""
    with _struck(failpoint):
        soma = await LocalRuntime.start(
            settings_of(home, failpoint.limit_s),
            trainer=Trainer(failpoint),
            examiner=Examiner(failpoint),
        )
        try:
            yield soma
        finally:
            await soma.close()


async def play(
    home: Path, failpoint: Failpoint, check: Callable[[LocalRuntime], Awaitable[None]]
) -> None:
    """A struck round, a whole one and a look at what is left; anew whenever a part of SOMA dies."""
    while True:
        async with running(home, failpoint) as soma:
            work = asyncio.create_task(_two_rounds(soma, failpoint, check))
            await asyncio.wait([work, *soma._tasks], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            work.cancel()
            await asyncio.wait([work])


async def _two_rounds(soma, failpoint, check):
    wrapped = [soma.publisher.wrap(d, idempotency=d.digest) for d in _dialogues()]
    await soma.publisher.publish_all(wrapped)
    for number in (1, 2):
        wish = RoundRequested(by="user")
        # After a restart it is the same wish, not another one.
        asked = await soma.publisher.publish(wish, idempotency=f"test/{number}")
        await _over(soma, asked.offset)
        failpoint.lifted = True
    await check(soma)


async def _over(soma: LocalRuntime, after: int) -> None:
    """Until everybody has heard that the round is over."""
    batch = await soma.log.read(after, types=frozenset({"RoundFinished"}), wait=60)
    while not batch.envelopes:
        batch = await soma.log.read(batch.end, types=frozenset({"RoundFinished"}), wait=60)
    offset = batch.envelopes[0].offset
    for arbiter, question in (("evaluation", "pointer"), ("auto_training_coordinator", "status")):
        await soma.directory.ask(arbiter, question, at_least=offset)


def _dialogues() -> list[ConversationImported]:
    return [
        ConversationImported(
            conversation=f"dialogue-{n}",
            digest=f"dialogue-{n}",
            source="test",
            messages=(
                ChatMessage(role="user", content=f"What is {n} and {n}?"),
                ChatMessage(role="assistant", content=f"It is {2 * n}, I should think."),
            ),
            held_out=n % 3 == 0,
        )
        for n in range(60)
    ]


async def _nothing(_: LocalRuntime) -> None:
    """Whoever is killed looks at nothing."""


if PLACE := globals().get("PLACE"):  # given where this file is run in a process of its own
    asyncio.run(play(Path(PLACE[0]), Failpoint(*PLACE[1:], "kill"), _nothing))
