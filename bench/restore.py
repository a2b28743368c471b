"""A restore drill: `python -m bench.restore [--messages N] [--seed S]`.

SOMA lives (imports, facts, feedback, a round that ends in a promotion), is backed up while writers
go on writing, and is restored elsewhere with the original out of the way. Then everything
acknowledged before the backup began must be there, word for word; and the state that was
backed up must be the state that a replay of the restored log gives.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

from arbiters.envelope import Envelope
from arbiters.events import (
    ChatMessage,
    ConversationImported,
    Event,
    FactStated,
    FeedbackGiven,
    MessageReceived,
    ReplyGiven,
    Timings,
)
from arbiters.model_events import (
    ComparisonFinished,
    ComparisonRequested,
    Observation,
    RoundRequested,
    TrainingFinished,
    TrainingRequested,
)
from soma_agents.app.backup import back_up, restore
from soma_agents.app.lock import HomeLock
from soma_agents.runtime.local import LocalRuntime
from soma_agents.runtime.snapshots import SNAPSHOTS, take_snapshot
from soma_agents.settings import Settings, load_settings
from soma_agents.storage.files import make_directory, put_in_place, write_manifest

MESSAGES = 20_000
WRITERS = 4
LEISURE_S = 0.05
"""Pause of a writer who has written its share and goes on while the backup is under way."""
DIALOGUES = 120
_WORDS = [
    "tide",
    "heron",
    "lantern",
    "moss",
    "river",
    "violin",
    "ember",
    "harbour",
    "clover",
    "glacier",
    "saffron",
    "comet",
]


class SealingTrainer:
    """A `Trainer` that seals a directory of random weights and says that it was trained."""

    def __init__(self, settings: Settings) -> None:
        self._models = settings.home / "models"

    async def train(self, request: TrainingRequested) -> AsyncIterator[TrainingFinished]:
        model = f"lora-{request.dataset}"
        partial = self._models / f".{model}.partial"
        make_directory(partial)
        (partial / "adapter_model.safetensors").write_bytes(Random(model).randbytes(50_000))
        write_manifest(partial, {"model": model})
        put_in_place(partial, self._models / model)
        yield TrainingFinished(
            round=request.round,
            model=model,
            path=str(self._models / model),
            hyperparameters={},
            code_version="drill",
            steps=1,
            tokens=1,
            seconds=1.0,
            train_loss=1.0,
            validation_loss=1.0,
        )


class PleasedExaminer:
    """An `Examiner` that finds every candidate better."""

    async def compare(self, request: ComparisonRequested) -> ComparisonFinished:
        values = dict.fromkeys(("forgetting", "safety", "personality", "latency", "triggers"), 2.0)
        observations = [
            Observation(suite=suite, item=str(item), champion=2.0, candidate=value)
            for suite, value in (values | {"target": 1.5}).items()
            for item in range(40)
        ]
        return ComparisonFinished(
            round=request.round,
            experiment=request.experiment,
            candidate=request.candidate,
            observations=tuple(observations),
            seconds=1.0,
        )


# --- a life --------------------------------------------------------------------------------


@asynccontextmanager
async def living(settings: Settings) -> AsyncIterator[LocalRuntime]:
    """SOMA in this process, holding the lock as a supervisor does."""
    lock = HomeLock(settings.home)
    runtime = await LocalRuntime.start(
        settings, trainer=SealingTrainer(settings), examiner=PleasedExaminer()
    )
    try:
        yield runtime
    finally:
        await runtime.close()
        lock.release()


async def learn(soma: LocalRuntime, dice: Random) -> None:
    """Import dialogues and have a round end in a promotion."""
    imports = [_dialogue(number, dice) for number in range(DIALOGUES)]
    await soma.publisher.publish_all([soma.publisher.wrap(one) for one in imports])
    asked = await soma.publisher.publish(RoundRequested(by="user"))
    cursor, finished = asked.offset, frozenset({"RoundFinished"})
    while True:
        batch = await soma.log.read(cursor, types=finished, wait=5)
        if batch.envelopes:
            break
        cursor = batch.end
    if batch.envelopes[0].payload["verdict"] != "promoted":
        raise RuntimeError(f"the round did not end well: {batch.envelopes[0].payload}")


async def talk(soma: LocalRuntime, who: str, number: int, dice: Random) -> list[Envelope]:
    """A message with what follows from it, acknowledged together."""
    name = f"{who}-{number}"
    said = [
        MessageReceived(conversation=who, message=name, content=_sentence(dice)),
        _reply(who, name, _sentence(dice)),
        FeedbackGiven(
            feedback=f"f-{name}",
            target=f"i-{name}",
            target_kind="inference",
            name="rating",
            value=1.0,
        ),
    ]
    if number % 5 == 0:
        said.append(_fact(name, _sentence(dice)))
    wrapped = [soma.publisher.wrap(event, idempotency=f"{name}/{event.type}") for event in said]
    offsets = await soma.log.append(wrapped)
    return [e._replace(offset=o) for e, o in zip(wrapped, offsets, strict=True)]


def _reply(who: str, name: str, content: str) -> ReplyGiven:
    timings = Timings(first_token=0.1, total=0.2, prompt_tokens=3, completion_tokens=3)
    return ReplyGiven(
        conversation=who,
        message=f"r-{name}",
        inference=f"i-{name}",
        content=content,
        model="m",
        specialist="assistant",
        config_hash="c",
        finish="stop",
        timings=timings,
    )


def _fact(name: str, value: str) -> Event:
    return FactStated(
        fact=name, message=name, subject=f"about.{name}", value=value, kind="fact", quote=value
    )


def _dialogue(number: int, dice: Random) -> ConversationImported:
    return ConversationImported(
        conversation=f"dialogue-{number}",
        digest=f"digest-{number}",
        source="drill",
        messages=(
            ChatMessage(role="user", content=f"Question {number}: {_sentence(dice)}?"),
            ChatMessage(role="assistant", content=f"Answer {number}: {_sentence(dice)}."),
        ),
        held_out=number % 4 == 0,
    )


def _sentence(dice: Random) -> str:
    return " ".join(dice.choices(_WORDS, k=12)) + f" {dice.getrandbits(64):x}"


# --- the drill -----------------------------------------------------------------------------


async def drill(place: Path, *, messages: int, seed: int) -> dict[str, Any]:
    """Run it and count what was compared.

    Raises:
        AssertionError: something is missing or different.
    """
    dice = Random(seed)
    settings = _settings(place / "home")
    async with living(settings) as soma:
        await learn(soma, dice)
        known = [e for n in range(messages // 2) for e in await talk(soma, "before", n, dice)]
        began = time.perf_counter()
        made, during = await _back_up_under_load(soma, place / "backup", known, messages // 2, seed)
        seconds = time.perf_counter() - began
    (place / "home").rename(place / "gone")
    for name in ("restored", "replayed"):
        found = restore(place / "backup", place / name)
        assert all(finding["ok"] for finding in found), found
    events = await _compare_log(place, known)
    for database in (place / "replayed" / "state").iterdir():
        database.unlink()
    restored, replayed = await _state(place / "restored"), await _state(place / "replayed")
    for question, answer in restored.items():
        assert answer == replayed[question], f"{question} differs after a replay"
    return {
        "acknowledged_before": len(known),
        "acknowledged_during": during,
        "events_compared": events,
        "state_compared": sum(len(answer) for answer in restored.values()),
        "models": len(restored["models"]),
        "backup_bytes": made["bytes"],
        "backup_seconds": round(seconds, 2),
    }


async def _back_up_under_load(
    soma: LocalRuntime, target: Path, known: list[Envelope], messages: int, seed: int
) -> tuple[dict[str, Any], int]:
    """Back up from another thread, as the command line does; `known` gets what came before."""
    loop, taking, done = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    written: list[Envelope] = []

    async def write(who: str) -> None:
        dice, number = Random(f"{seed}/{who}"), 0
        while not done.is_set() or number < messages // WRITERS:
            written.extend(await talk(soma, who, number, dice))
            number += 1
            if number == messages // WRITERS // 2:
                taking.set()
            if number >= messages // WRITERS:
                await asyncio.sleep(LEISURE_S)

    def snapshot() -> Path:
        directory = soma.settings.home / SNAPSHOTS / "drill"
        work = take_snapshot(soma, soma.settings, directory)
        asyncio.run_coroutine_threadsafe(work, loop).result()
        return directory

    async with asyncio.TaskGroup() as writers:
        for number in range(WRITERS):
            writers.create_task(write(f"writer{number}"))
        await taking.wait()
        known += written
        made = await asyncio.to_thread(back_up, soma.settings, target, snapshot)
        done.set()
    return made, len(written)


async def _compare_log(place: Path, known: Sequence[Envelope]) -> int:
    """What was acknowledged is in the restored log, which is a beginning of the original."""
    original, restored = await _events(place / "gone"), await _events(place / "restored")
    assert restored == original[: len(restored)], "the restored log is not the original's beginning"
    for envelope in known:
        assert restored[envelope.offset - 1] == envelope, f"{envelope.id} is not there"
    assert len(restored) < len(original), "nothing was written during the backup"
    return len(restored)


async def _events(home: Path) -> list[Envelope]:
    from soma_agents.storage.event_log import SqliteEventLog

    log = await SqliteEventLog.open(home / "log" / "events.db")
    try:
        return list((await log.read(0, limit=10_000_000)).envelopes)
    finally:
        await log.close()


async def _state(home: Path) -> dict[str, list[Any]]:
    """What the arbiters answer once they have handled the whole log. Times of day are left out."""
    async with living(_settings(home)) as soma:
        end = await soma.log.end()

        async def ask(arbiter: str, question: str, **arguments: Any) -> Any:
            return await soma.directory.ask(arbiter, question, at_least=end, **arguments)

        while True:  # what they say while they catch up is to be heard as well
            for arbiter in soma.directory.names():
                await _until_there(soma, arbiter, end)
            if (newer := await soma.log.end()) == end:
                break
            end = newer
        who = {"tenant": "local", "user": "owner"}
        conversations = await ask("conversation_history", "export_all", **who)
        pointer = await ask("evaluation", "pointer")
        return {
            "messages": [message for one in conversations for message in one["messages"]],
            "profile": await ask("user_profile", "profile", **who),
            "personality": [await ask("personality_forge", "current", **who)],
            "models": [(m.id, m.name, m.stage) for m in await ask("evaluation", "models")],
            "pointer": [(pointer.champion, pointer.previous)],
            "rounds": [
                (r.id, r.step, r.verdict) for r in await ask("auto_training_coordinator", "rounds")
            ],
        }


async def _until_there(soma: LocalRuntime, arbiter: str, end: int) -> None:
    host = soma.directory._hosts[arbiter]  # noqa: SLF001 - a question would need one that fits all
    await host._reach(end)  # noqa: SLF001


def _settings(home: Path) -> Settings:
    return load_settings(home, environ={}, overrides={"training": {"min_new_messages": 10**9}})


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON line; 0 iff nothing was missing and nothing differed."""
    parser = argparse.ArgumentParser(prog="bench.restore", description=__doc__)
    parser.add_argument("--messages", type=int, default=MESSAGES)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        try:
            counted = asyncio.run(drill(Path(place), messages=options.messages, seed=options.seed))
            differences = 0
        except AssertionError as error:
            counted, differences = {"because": str(error)}, 1
    result = {
        "ok": differences == 0,
        "figure": differences,
        "target": 0,
        "unit": "differences after a restore",
        "messages": options.messages,
        "seed": options.seed,
    }
    print(json.dumps(result | counted))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
