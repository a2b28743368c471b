"""`soma verify`, `backup` and `restore`: whether all is what was written, and a second copy of it."""

from pathlib import Path
from typing import Annotated

import typer

from soma_agents.app.doctor import Finding
from soma_agents.cli.client import Daemon
from soma_agents.cli.options import Home, Json, print_json, print_table, settings_of
from soma_agents.settings import Settings

SNAPSHOT_SECONDS = 600.0


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    for command in (verify, backup, restore):
        app.command()(command)


def verify(context: typer.Context, home: Home = None, json: Json = False) -> None:
    """Read everything that is kept: chain of hashes, databases, models, datasets, keys."""
    from soma_agents.app import backup as backup_
    from soma_agents.app import verify as verify_

    settings = settings_of(context, home)
    with backup_.databases(settings, lambda: _snapshot(settings)) as found:
        findings = verify_.verify(settings, found)
    _print(findings, json=json)


def backup(
    context: typer.Context,
    target: Annotated[Path, typer.Argument(help="A directory that is not there yet.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Copy everything that is worth keeping, while SOMA runs or stands still."""
    from soma_agents.app import backup as backup_

    settings = settings_of(context, home)
    made = backup_.back_up(settings, target.absolute(), lambda: _snapshot(settings))
    if json:
        print_json(made)
        return
    print(f"{made['files']} files, {made['bytes']} bytes in {made['target']}")
    if settings.log.url:
        print("the event log is not in it: run pg_dump now, after this")
    for name in made["left_out"]:
        print(f"damaged, left out: {name}; see `soma verify`")


def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", help="A backup's directory.")],
    home: Annotated[Path, typer.Option("--home", help="Data directory to make; empty or absent.")],
    json: Json = False,
) -> None:
    """Make a data directory out of a backup; it counts once everything in it was verified."""
    from soma_agents.app import backup as backup_

    findings = backup_.restore(source.absolute(), home.expanduser().absolute())
    _print(findings, json=json)


def _snapshot(settings: Settings) -> Path:
    with Daemon(settings) as daemon:
        answer = daemon.post("/api/snapshot", seconds=SNAPSHOT_SECONDS)
    return Path(answer["directory"])


def _print(findings: list[Finding], *, json: bool) -> None:
    if json:
        print_json(findings)
    else:
        rows = [("ok" if f["ok"] else "!!", f["check"], f["found"], f["way_out"]) for f in findings]
        print_table(("", "check", "found", "way out"), rows)
    if not all(finding["ok"] for finding in findings):
        raise typer.Exit(1)
