"""What must hold after any number of kills."""

import asyncio
import json
import shutil
import sqlite3
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from arbiters.envelope import Envelope
from arbiters.errors import SomaError
from arbiters.evaluation.verdicts import CHAMPION_CHANGED
from bench.kills.life import settings_of
from bench.kills.replay import differences, settle
from soma_agents.settings import Settings
from soma_agents.storage.engines import open_log
from soma_agents.storage.files import verify_manifest

PUBLIC = "local"
"""The producer of what people say."""
_SETTLE_S = 60
_ONCE_A_ROUND = (
    "RoundStarted",
    "DatasetExported",
    "TrainingRequested",
    "TrainingFinished",
    "CandidateRegistered",
    "ComparisonRequested",
    "ComparisonFinished",
    "EvaluationFinished",
    "RoundFinished",
)


@dataclass(slots=True)
class Findings:
    """Promises that were broken, and what there was to break."""

    events: int = 0
    acknowledged: int = 0
    verdicts: Counter[str] = field(default_factory=Counter[str])
    lost: list[str] = field(default_factory=list[str])
    duplicated: list[str] = field(default_factory=list[str])
    broken: list[str] = field(default_factory=list[str])

    def __iadd__(self, other: "Findings") -> Self:
        self.events += other.events
        self.acknowledged += other.acknowledged
        self.verdicts += other.verdicts
        self.lost += other.lost
        self.duplicated += other.duplicated
        self.broken += other.broken
        return self


@dataclass(slots=True)
class Account:
    """What the lives said, as JSON by idempotency key, and what of it was acknowledged."""

    said: dict[str, str] = field(default_factory=dict[str, str])
    heard: set[str] = field(default_factory=set[str])

    def say(self, texts: Iterable[str]) -> None:
        """These are about to be published."""
        for text in texts:
            self.said.setdefault(json.loads(text)["idempotency"], text)

    def hear(self, keys: Iterable[str]) -> None:
        """These were acknowledged."""
        self.heard.update(keys)

    def cut_short(self) -> list[str]:
        """Said, but never acknowledged."""
        return [text for key, text in self.said.items() if key not in self.heard]


# --- after every kill ----------------------------------------------------------------------


def champion_holds(home: Path) -> str:
    """What is wrong with the champion as the kill left it; empty if nothing is."""
    source = settings_of(home).state_file("evaluation")
    if not source.exists():
        return ""
    with tempfile.TemporaryDirectory(dir=home.parent) as place:
        # A copy: the next life is to find the write-ahead log as the dead one left it.
        for file in source.parent.glob("evaluation.db*"):
            shutil.copy(file, place)
        database = sqlite3.connect(Path(place) / source.name)
        try:
            return _champion(database)
        finally:
            database.close()


def _champion(database: sqlite3.Connection) -> str:
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_schema")}
    if not {"pointer", "experiments"} <= tables:
        return ""
    pointers = database.execute("SELECT champion FROM pointer").fetchall()
    champions = database.execute(
        "SELECT id, number FROM models WHERE stage = 'champion'"
    ).fetchall()
    if not pointers and not champions:
        return ""  # killed before its first model was installed
    if len(pointers) != 1 or len(champions) != 1 or pointers[0][0] != champions[0][0]:
        return f"{pointers} in service, {champions} are champions"
    ((champion, number),) = champions
    passed = database.execute(
        "SELECT count(*) FROM experiments WHERE candidate = ? AND phase = 'finished'"
        " AND json_extract(offline, '$.passed')",
        (champion,),
    ).fetchone()[0]
    return "" if number == 0 or passed else f"{champion} is champion and never passed"


# --- at the end ----------------------------------------------------------------------------


def check(home: Path, anew: Path, account: Account) -> Findings:
    """Start once more, let everything come to its end, and look at all that is there."""
    findings = Findings(acknowledged=len(account.heard))
    try:
        asyncio.run(_check(settings_of(home), anew, account, findings))
    except (SomaError, TimeoutError, sqlite3.Error) as error:
        findings.broken.append(f"it did not come back: {type(error).__name__}: {error}")
    return findings


async def _check(settings: Settings, anew: Path, account: Account, findings: Findings) -> None:
    async with asyncio.timeout(_SETTLE_S):
        findings.broken += await settle(settings)
    log = await open_log(settings)
    try:
        findings.events = await log.verify()
        events = (await log.read(0, limit=findings.events + 1)).envelopes
    finally:
        await log.close()
    if [event.offset for event in events] != list(range(1, findings.events + 1)):
        findings.broken.append("the log has gaps")
    _compare_with(account, events, findings)
    _look_at_effects(events, findings)
    _look_at_rounds(events, findings)
    _look_at_models(events, findings)
    if finding := champion_holds(settings.home):
        findings.broken.append(finding)
    findings.broken += await differences(settings, anew)


def _compare_with(account: Account, events: Sequence[Envelope], findings: Findings) -> None:
    """Everything acknowledged is there once, as it was said; nothing is that nobody said."""
    found = defaultdict[str, list[Envelope]](list)
    for event in events:
        if event.producer == PUBLIC:
            found[event.idempotency].append(event)
    findings.lost += sorted(account.heard - found.keys())
    findings.broken += [f"nobody said {key}" for key in sorted(found.keys() - account.said.keys())]
    for key, there in found.items():
        if len(there) > 1:
            findings.duplicated.append(key)
        said = Envelope.load(account.said[key]) if key in account.said else None
        if said is not None and said.payload != there[0].payload:
            findings.broken.append(f"{key} is not what was said")


def _look_at_effects(events: Sequence[Envelope], findings: Findings) -> None:
    """Each arbiter answered each event once: under the keys 0, 1, … or by different content."""
    answers = defaultdict[tuple[str, str], list[Envelope]](list)
    for event in events:
        if event.producer != PUBLIC and event.cause is not None:
            answers[event.producer, event.cause].append(event)
    for (producer, cause), said in answers.items():
        contents = Counter(f"{event.type} {json.dumps(event.payload)}" for event in said)
        findings.duplicated += [
            f"{producer} on {cause} twice: {content}" for content, n in contents.items() if n > 1
        ]
        indices = [event.idempotency.removeprefix(f"{producer}/{cause}/") for event in said]
        numbers = [int(index) for index in indices if index.isdigit()]
        if numbers != list(range(len(numbers))):
            findings.broken.append(f"{producer} on {cause} said {indices}")


def _look_at_rounds(events: Sequence[Envelope], findings: Findings) -> None:
    """Every round that was started came to one end, with no step of it done twice."""
    rounds = defaultdict[str, Counter[str]](Counter)
    for event in events:
        if "round" in event.payload and event.payload["round"] is not None:
            rounds[event.payload["round"]][event.type] += 1
        if event.type == "RoundFinished":
            findings.verdicts[event.payload["verdict"]] += 1
    for round_, steps in rounds.items():
        findings.duplicated += [
            f"{kind} of {round_} {steps[kind]} times" for kind in _ONCE_A_ROUND if steps[kind] > 1
        ]
        if not steps["RoundStarted"] == steps["RoundFinished"] == 1:
            findings.broken.append(f"{round_} did not come to one end: {dict(steps)}")


def _look_at_models(events: Sequence[Envelope], findings: Findings) -> None:
    """Nothing was promoted without a verdict on the same model; every model is whole.

    Held for no other reason than that a person changed the champion meanwhile is proven, too: that
    person may choose it afterwards.
    """
    passed: set[str] = set()
    verdicts: dict[str, str] = {}
    for event in events:
        if event.type == "TrainingFinished":
            manifest = verify_manifest(Path(event.payload["path"]))
            if manifest["model"] != event.payload["model"]:
                findings.broken.append(f"{event.payload['model']} is not what its name says")
        elif event.type == "EvaluationFinished":
            verdict, because = event.payload["verdict"], event.payload["because"]
            verdicts[event.payload["candidate"]] = f"{verdict}: {because}"
            if verdict == "promoted" or because == CHAMPION_CHANGED:
                passed.add(event.payload["candidate"])
    # The first model has nobody to be compared with; a person may choose it again.
    promoted = {
        event.payload["model"]
        for event in events
        if event.type == "ModelPromoted" and event.payload["name"] != "soma-v0"
    }
    findings.broken += [
        f"{model} went live unproven ({verdicts.get(model, 'no verdict')})"
        for model in promoted - passed
    ]
