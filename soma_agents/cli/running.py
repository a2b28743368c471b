"""`soma up`, `down`, `status`, `doctor`."""

from typing import Annotated

import typer

from soma_agents.app import doctor as doctor_
from soma_agents.app import supervisor
from soma_agents.cli.options import Home, Json, print_json, print_table, settings_of

Port = Annotated[int | None, typer.Option("--port", help="TCP port of the HTTP interface.")]
Detach = Annotated[bool, typer.Option("--detach", help="Return when ready.")]


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    for command in (up, down, status, doctor):
        app.command()(command)


def up(
    context: typer.Context, home: Home = None, port: Port = None, detach: Detach = False
) -> None:
    """Start SOMA and print its address."""
    overrides = {} if port is None else {"server": {"port": port}}
    supervisor.up(settings_of(context, home, **overrides), detach=detach)


def down(context: typer.Context, home: Home = None) -> None:
    """Stop SOMA: finish what was accepted, then stop every process."""
    supervisor.down(settings_of(context, home))


def status(context: typer.Context, home: Home = None, json: Json = False) -> None:
    """Say whether SOMA is ready, who is champion, which round runs, which processes live."""
    state = supervisor.status(settings_of(context, home))
    if json:
        print_json(state)
        return
    champion = state["champion"] or {"name": "none", "id": ""}
    round_ = state["round"]
    print(f"ready     {'yes' if state['ready'] else 'no'}")
    print(f"url       {state['url'] or '-'}")
    print(f"champion  {champion['name']}  {champion['id']}")
    print(f"round     {round_['id'] + ' ' + round_['step'] if round_ else 'none'}")
    print_table(("pid", "role"), [(p["pid"], p["role"]) for p in state["processes"]])


def doctor(context: typer.Context, home: Home = None, json: Json = False) -> None:
    """Check this machine and this data directory; each finding with a way out."""
    findings = doctor_.doctor(settings_of(context, home))
    if json:
        print_json(findings)
    else:
        rows = [("ok" if f["ok"] else "!!", f["check"], f["found"], f["way_out"]) for f in findings]
        print_table(("", "check", "found", "way out"), rows)
    if not all(finding["ok"] for finding in findings):
        raise typer.Exit(1)
