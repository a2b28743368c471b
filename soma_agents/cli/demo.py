"""`soma demo`: the whole loop in minutes, on real dialogues, with real training."""

import hashlib
from dataclasses import replace
from typing import Any

import typer
from rich.console import Console

from arbiters.errors import SomaError
from soma_agents.app import supervisor
from soma_agents.cli.client import Daemon
from soma_agents.cli.learning import print_receipt, wait_for_round
from soma_agents.cli.options import Home, Json, print_json, settings_of
from soma_agents.cli.people import send_conversations
from soma_agents.runtime.importers import ImportedConversation, chatterbot_dialogues

HELD_OUT = 5
"""One conversation in so many is never trained on, only judged by."""
SHOWN = 5
OWN = {"max_steps": 28, "min_new_messages": 100_000}
"""Training settings of a SOMA that the demo starts: minutes on two cores, and no round but its."""


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command()(demo)


def demo(context: typer.Context, home: Home = None, json: Json = False) -> None:
    """Import dialogues, train, judge, promote, roll back, promote again."""
    settings = settings_of(context, home, training=OWN)
    say = Console(stderr=True, quiet=json).print
    started = not supervisor.status(settings)["ready"]
    if started:
        say(f"starting SOMA in {settings.home}")
        supervisor.up(settings, detach=True)
    try:
        with Daemon(settings) as daemon:
            result = _loop(daemon, say, show=not json)
    finally:
        if started:
            say("stopping SOMA")
            supervisor.down(settings)
    if json:
        print_json(result)
    if result["receipt"]["verdict"] != "promoted":
        raise SomaError(f"the candidate was not promoted: {result['receipt']['because']}")


def _loop(daemon: Daemon, say: Any, *, show: bool) -> dict[str, Any]:
    dialogues = [mark_held_out(c) for c in chatterbot_dialogues()]
    held = sum(c.held_out for c in dialogues)
    imported = send_conversations(daemon, dialogues)
    say(f"imported {imported['conversations']} dialogues; {held} of {len(dialogues)} held out")
    say("one round: export, train, compare, judge")
    request = daemon.post("/api/training/rounds")["request"]
    receipt = wait_for_round(daemon, request, show=show)
    if show:
        print_receipt(receipt)
        _print_samples(receipt)
    result: dict[str, Any] = {"imported": imported, "receipt": receipt}
    if receipt["verdict"] == "promoted":
        result["rollback"] = daemon.post("/api/models/rollback")
        say(f"rolled back: {result['rollback']['champion']['name']} answers")
        name = receipt["candidate"]["name"]
        result["promotion"] = daemon.post(f"/api/models/{name}/promote")
        say(f"promoted again: {result['promotion']['champion']['name']} answers")
    return result


def mark_held_out(conversation: ImportedConversation) -> ImportedConversation:
    """Hold out a fixed fifth, chosen by content so that it is the same on every run."""
    bucket = int(hashlib.sha256(conversation.digest.encode()).hexdigest(), 16) % HELD_OUT
    return replace(conversation, held_out=bucket == 0)


def _print_samples(receipt: dict[str, Any]) -> None:
    for sample in receipt.get("samples", [])[:SHOWN]:
        print(f"\n  {sample['prompt']}")
        print(f"    before  {sample['champion']}")
        print(f"    after   {sample['candidate']}")
        print(f"    given   {sample['reference']}")
