"""`soma events`, `why`, `dead-letters`: what happened, and because of what."""

from typing import Annotated, Any

import typer

from soma_agents.cli.client import daemon_of
from soma_agents.cli.options import Home, Json, print_json, print_table

EventId = Annotated[str, typer.Argument(help="Id of an event.")]
Follow = Annotated[bool, typer.Option("--follow", help="Stay and print what comes.")]
After = Annotated[int, typer.Option("--after", help="Only events after this offset.")]
Type = Annotated[list[str] | None, typer.Option("--type", help="Only events of this type.")]

dead_letters = typer.Typer(help="Events that an arbiter could not handle.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.command()(events)
    app.command()(why)
    dead_letters.command("list")(list_dead_letters)
    dead_letters.command("replay")(replay_dead_letter)
    app.add_typer(dead_letters, name="dead-letters")


def events(
    context: typer.Context,
    home: Home = None,
    json: Json = False,
    follow: Follow = False,
    after: After = 0,
    type: Type = None,  # noqa: A002 - the option's name
) -> None:
    """Print the event log: one line an event, with --json one envelope a line."""
    daemon = daemon_of(context, home)
    query: dict[str, Any] = {"after": after, "follow": follow}
    if type:
        query["types"] = ",".join(type)
    try:
        for envelope in daemon.lines("/api/events", **query):
            print_json(envelope) if json else print(_line(envelope))
    except KeyboardInterrupt:
        return


def why(context: typer.Context, event: EventId, home: Home = None, json: Json = False) -> None:
    """Say what led to an event, and what followed from it."""
    chain = daemon_of(context, home).get(f"/api/events/{event}/why")
    if json:
        print_json(chain)
        return
    for depth, envelope in enumerate(chain["because"]):
        print("  " * depth + _line(envelope))
    depth = len(chain["because"])
    print("  " * depth + _line(chain["event"]) + "   <- asked")
    for envelope in chain["caused"]:
        print("  " * (depth + 1) + _line(envelope))


def list_dead_letters(context: typer.Context, home: Home = None, json: Json = False) -> None:
    """List the events that no longer will be handled unless replayed."""
    letters = daemon_of(context, home).get("/api/dead-letters")["data"]
    if json:
        print_json(letters)
        return
    rows = [(x["arbiter"], x["event"], x["type"], x["attempts"], x["error"]) for x in letters]
    print_table(("arbiter", "event", "type", "attempts", "error"), rows)


def replay_dead_letter(
    context: typer.Context,
    arbiter: Annotated[str, typer.Argument(help="Name of the arbiter.")],
    event: EventId,
    home: Home = None,
) -> None:
    """Try a dead letter again."""
    daemon_of(context, home).post(f"/api/dead-letters/{arbiter}/{event}/replay")
    print(f"{arbiter} has handled {event}")


def _line(envelope: dict[str, Any]) -> str:
    payload = envelope["payload"] or {}
    said = payload.get("because") or payload.get("content") or payload.get("model") or ""
    short = " ".join(str(said).split())[:72]
    offset, at, kind = envelope["offset"], envelope["at"][:19], envelope["type"]
    return f"{offset:>8}  {at}  {kind:<22} {envelope['id']}  {short}"
