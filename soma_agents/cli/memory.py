"""`soma memory search`: what was said before, by meaning."""

from typing import Annotated

import typer

from soma_agents.cli.client import daemon_of
from soma_agents.cli.options import Home, Json, print_json, print_table

memory = typer.Typer(help="What was said before.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.add_typer(memory, name="memory")


@memory.callback()
def group() -> None:
    """Keep `search` a command of its own: typer would fold a single one into its group."""


@memory.command()
def search(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="What to look for, in any words.")],
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many.")] = 10,
    home: Home = None,
    json: Json = False,
) -> None:
    """Show what was said that is most like a text, the nearest first."""
    found = daemon_of(context, home).get("/api/memory/search", q=text, limit=limit)
    if json:
        print_json(found["data"])
        return
    rows = [
        (f"{m['likeness']:.3f}", m["at"][:16], m["role"], " ".join(m["content"].split())[:100])
        for m in found["data"]
    ]
    print_table(("likeness", "when", "who", "what"), rows)
