"""One life of a SOMA: it starts, people talk to it, rounds run, until somebody kills it."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Literal, NoReturn

from arbiters.envelope import Envelope
from arbiters.errors import ConflictError
from arbiters.events import (
    ChatMessage,
    ClockTicked,
    ConversationImported,
    Event,
    FeedbackGiven,
    MessageReceived,
    ReplyGiven,
    Timings,
)
from arbiters.kernel import host
from arbiters.model_events import PromotionRequested, RollbackRequested, RoundRequested
from bench.kills.script import ScriptedExaminer, ScriptedTrainer
from soma_agents.persona.measures import ComputedMeasures
from soma_agents.runtime.local import LocalRuntime
from soma_agents.settings import Settings, load_settings

# What is imported late is imported before the fork, which starts neither threads nor a loop.
ComputedMeasures().of("I am glad that you are here.")

TALKERS = 3
TURNS = 5
"""Of a conversation."""
DIALOGUES = 80
MODEL = "base.gguf"
_PAUSE_S = 0.02
_NAMES = ("Ann", "Ben", "Cleo", "Dora")
_TOWNS = ("Kiel", "Bergen", "Porto")

Tale = tuple[Literal["up", "say", "heard", "refused"], Sequence[str]]
"""What a life tells its killer: `say` bears envelopes as JSON, `heard` idempotency keys."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a life goes. `again` are envelopes, as JSON, whose saying was perhaps cut short."""

    home: Path
    name: str
    seed: str
    again: Sequence[str] = ()


def prepare(home: Path) -> None:
    """Make the data directory with a base model; it is hashed at every start, never loaded."""
    home.mkdir()
    (home / MODEL).write_bytes(b"the base")


def settings_of(home: Path) -> Settings:
    """Small rounds, soon."""
    return load_settings(
        home,
        environ={},
        overrides={
            "engine": {"model": str(home / MODEL)},
            "training": {"min_new_messages": 60, "min_examples": 4},
        },
    )


@contextmanager
def hurried() -> Iterator[None]:
    """Lives are short: a wait of seconds after a failure would never end.

    Without such waits five deaths in a row beside one innocent event are no rarity on a busy machine,
    where handling it takes a good part of a life. So it takes more of them to bury it.
    """
    usual = host.MAX_ATTEMPTS, host.RETRY_SECONDS
    host.MAX_ATTEMPTS, host.RETRY_SECONDS = 20, (0.0, 0.02, 0.05, 0.1) + (0.2,) * 16
    try:
        yield
    finally:
        host.MAX_ATTEMPTS, host.RETRY_SECONDS = usual


def live(plan: Plan, tell: Connection) -> None:
    """Where a forked process begins."""
    try:
        with hurried():
            asyncio.run(_live(plan, tell))
    except ConflictError as error:
        tell.send(("refused", [str(error)]))


async def _live(plan: Plan, tell: Connection) -> NoReturn:
    runtime = await LocalRuntime.start(
        settings_of(plan.home),
        trainer=ScriptedTrainer(plan.home / "models", pause=_PAUSE_S),
        examiner=ScriptedExaminer(pause=_PAUSE_S),
    )
    tell.send(("up", []))
    people = [_Person(runtime, tell, f"{plan.name}-{n}", plan.seed) for n in range(TALKERS)]
    async with asyncio.TaskGroup() as talking:
        talking.create_task(people[0].repeat(plan.again))
        talking.create_task(people[0].bring(_dialogues()))
        for person in people:
            talking.create_task(person.talk())
    raise AssertionError("people never stop talking")


class _Person:
    """Somebody who talks, judges and asks for things, and tells the killer what was promised."""

    def __init__(self, runtime: LocalRuntime, tell: Connection, name: str, seed: str) -> None:
        self._runtime = runtime
        self._publisher = runtime.publisher
        self._tell = tell
        self._name = name
        self._user = f"user-{name[-1]}"
        self._dice = Random(f"{seed}/{name}")
        self._said = 0

    async def say(self, *envelopes: Envelope) -> None:
        """Publish as one group, and tell before and after."""
        self._tell.send(("say", [envelope.dump() for envelope in envelopes]))
        await self._publisher.publish_all(envelopes)
        self._tell.send(("heard", [envelope.idempotency for envelope in envelopes]))

    def envelope(self, event: Event) -> Envelope:
        """An event under a key that the same wish has in every life."""
        self._said += 1
        key = f"said/{self._name}/{self._said}"
        return self._publisher.wrap(event, user=self._user, idempotency=key)

    async def repeat(self, again: Sequence[str]) -> None:
        """Say again what an earlier life may have heard: a new envelope under the old key."""
        for text in again:
            envelope = Envelope.load(text)
            await self.say(envelope._replace(id=self._runtime.ids.new()))

    async def bring(self, dialogues: Sequence[ConversationImported]) -> None:
        """Import them, as every life does."""
        wrapped = [
            self._publisher.wrap(d, user=self._user, idempotency=f"import/{d.digest}")
            for d in dialogues
        ]
        await self.say(*wrapped)

    async def talk(self) -> None:
        """Turn after turn."""
        turn = 0
        while True:
            conversation = f"{self._name}-{turn // TURNS}"
            await self._turn(conversation, f"{conversation}-{turn}")
            if self._dice.random() < 0.1:
                await self.say(self.envelope(self._wish()))
            await asyncio.sleep(self._dice.expovariate(200))
            turn += 1

    async def _turn(self, conversation: str, message: str) -> None:
        asked = MessageReceived(
            conversation=conversation, message=message, content=self._sentence(message)
        )
        await self.say(self.envelope(asked))
        pointer = await self._runtime.directory.ask("evaluation", "pointer")
        reply = ReplyGiven(
            conversation=conversation,
            message=message,
            inference=f"inference-{message}",
            content=f"I have heard {message}.",
            model=pointer.champion,
            specialist="general",
            config_hash="none",
            finish="stop",
            timings=Timings(first_token=0.1, total=0.2, prompt_tokens=5, completion_tokens=5),
        )
        judgement = FeedbackGiven(
            feedback=f"feedback-{message}",
            target=reply.inference,
            target_kind="inference",
            name="rating",
            value=self._dice.choice((-1.0, 0.5, 1.0)),
        )
        await self.say(*map(self.envelope, self._dice.choice(((reply,), (reply, judgement)))))

    def _sentence(self, message: str) -> str:
        name, town = self._dice.choice(_NAMES), self._dice.choice(_TOWNS)
        texts = (f"My name is {name}.", f"I live in {town}!", f"What is it with {message} :)?")
        return self._dice.choice(texts)

    def _wish(self) -> Event:
        wishes: tuple[Event, ...] = (
            ClockTicked(at=self._runtime.clock.now()),
            RoundRequested(by="user"),
            RollbackRequested(),
            PromotionRequested(model=f"soma-v{self._dice.randrange(4)}"),
        )
        return self._dice.choice(wishes)


def _dialogues() -> list[ConversationImported]:
    """Sums, every third of them held out."""
    return [
        ConversationImported(
            conversation=f"sum-{n}",
            digest=f"sum-{n}",
            source="sums",
            messages=(
                ChatMessage(role="user", content=f"What is {n} and {n * n}?"),
                ChatMessage(role="assistant", content=f"That is {n + n * n}."),
            ),
            held_out=n % 3 == 0,
        )
        for n in range(DIALOGUES)
    ]
