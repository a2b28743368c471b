"""`soma train`, `receipts`, `models`, `promote`, `rollback`."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from soma_agents.cli.client import Daemon, daemon_of
from soma_agents.cli.options import Home, Json, print_json, print_table, settings_of

POLL_SECONDS = 1.0
ModelName = Annotated[str, typer.Argument(help="Name (soma-v2) or id of a model version.")]


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    for command in (train, receipts, promote, rollback):
        app.command()(command)
    models_app = typer.Typer(invoke_without_command=True)
    models_app.callback()(models)
    models_app.command()(add)
    models_app.command()(remove)
    app.add_typer(models_app, name="models")


def train(
    context: typer.Context,
    now: Annotated[bool, typer.Option("--now", help="Start a round now.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the verdict.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Start a training round; the gate decides what becomes of it."""
    daemon = daemon_of(context, home)
    if not now:
        print_json(daemon.get("/api/training/stats")) if json else _print_due(daemon)
        return
    request = daemon.post("/api/training/rounds")["request"]
    if not wait:
        print_json(pending_receipt(None)) if json else print(f"asked for a round: {request}")
        return
    receipt = wait_for_round(daemon, request, show=not json)
    print_json(receipt) if json else print_receipt(receipt)
    if receipt["verdict"] == "failed":
        raise typer.Exit(1)


def _print_due(daemon: Daemon) -> None:
    print(daemon.get("/api/training/stats")["because"])


def pending_receipt(round_: str | None) -> dict[str, Any]:
    """The receipt of a round that has no verdict yet."""
    return {
        "round": round_,
        "verdict": None,
        "because": "",
        "candidate": None,
        "target": None,
        "guardrails": [],
        "seconds": None,
    }


def wait_for_round(daemon: Daemon, request: str, *, show: bool) -> dict[str, Any]:
    """Follow the round that a request started to its end; its receipt."""
    columns = (TextColumn("{task.description:<12}"), BarColumn(), TimeElapsedColumn())
    console = Console(file=sys.stderr, quiet=not show)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=1.0)

        def see(round_: dict[str, Any]) -> None:
            progress.update(task, description=round_["step"], completed=round_["progress"])

        round_ = _until_finished(daemon, request, see)
    found = daemon.get("/api/receipts", limit=50)["data"]
    for receipt in found:
        if receipt["round"] == round_["id"]:
            return receipt
    return pending_receipt(round_["id"]) | {
        "verdict": round_["verdict"],
        "because": round_["because"],
        "seconds": round_["seconds"],
    }


def _until_finished(
    daemon: Daemon, request: str, see: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    while True:
        round_ = daemon.get(f"/api/training/rounds/{request}")
        see(round_)
        if round_["step"] == "finished":
            return round_
        time.sleep(POLL_SECONDS)


def receipts(
    context: typer.Context,
    home: Home = None,
    json: Json = False,
    limit: Annotated[int, typer.Option("--limit", help="How many rounds.")] = 10,
) -> None:
    """What was learnt, and did it help? Newest first."""
    found = daemon_of(context, home).get("/api/receipts", limit=limit)["data"]
    if json:
        print_json(found)
        return
    if not found:
        print("no round has finished yet")
    for receipt in found:
        print_receipt(receipt)
        print()


def print_receipt(receipt: dict[str, Any]) -> None:
    """A receipt as people read it."""
    candidate = receipt["candidate"] or {}
    print(
        f"round {receipt['round']}: {str(receipt['verdict']).upper()} {candidate.get('name', '')}"
    )
    print(f"  because {receipt['because']}")
    rows = []
    for change in filter(None, [receipt["target"], *receipt["guardrails"]]):
        low, high = change.get("interval") or (None, None)
        interval = f"[{low:+.4f}, {high:+.4f}]" if low is not None else ""
        before, after = f"{change['before']:.4f}", f"{change['after']:.4f}"
        ok = {True: "ok", False: "NOT OK", None: ""}[change.get("ok")]
        item = change.get("item")
        name = f"{change['name']} {item!r}" if item else change["name"]
        rows.append((name, before, after, interval, change.get("margin"), ok))
    print_table(("measure", "before", "after", "change (interval)", "margin", ""), rows)
    if receipt["seconds"] is not None:
        print(f"  in {receipt['seconds']:.0f} s")


def models(context: typer.Context, home: Home = None, json: Json = False) -> None:
    """List every model version with its stage, newest first; then the specialists."""
    if context.invoked_subcommand is not None:
        return
    found = daemon_of(context, home).get("/api/models")["data"]
    if json:
        print_json(found)
        return
    rows = [(m["name"], m["stage"], m["id"], m["registered_at"][:19]) for m in found]
    print_table(("name", "stage", "id", "registered"), rows)


def add(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A .sou file that can converse.")],
    specialist: Annotated[str, typer.Option("--specialist", help="Name to be asked for by.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Let a model of one's own be asked for by name, beside the first one."""
    from soma_agents.runtime.bases import keep_base

    settings = settings_of(context, home)
    daemon = daemon_of(context, home)
    model = keep_base(file.absolute(), settings.home / "models")
    answer = daemon.post("/api/specialists", {"name": specialist, "model": model})
    print_json(answer) if json else print(f"{specialist} answers as {model} now")


def remove(
    context: typer.Context,
    specialist: Annotated[str, typer.Argument(help="Name of a specialist.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Let nobody ask for a specialist any more; its file stays among the models."""
    answer = daemon_of(context, home).delete(f"/api/specialists/{specialist}")
    print_json(answer) if json else print(f"{specialist} answers nobody any more")


def promote(
    context: typer.Context, model: ModelName, home: Home = None, json: Json = False
) -> None:
    """Make a model version the champion; only one that has passed the gate."""
    answer = daemon_of(context, home).post(f"/api/models/{model}/promote")
    print_json(answer) if json else print(f"{answer['champion']['name']} is champion now")


def rollback(context: typer.Context, home: Home = None, json: Json = False) -> None:
    """Undo the last promotion."""
    answer = daemon_of(context, home).post("/api/models/rollback")
    print_json(answer) if json else print(f"{answer['champion']['name']} is champion again")
