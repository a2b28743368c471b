"""`soma`: start, stop, look, teach, judge, undo."""

import sys
from pathlib import Path

import typer

from arbiters.errors import SomaError
from soma_agents.cli import (
    demo,
    embedding,
    keeping,
    learning,
    looking,
    memory,
    people,
    pretraining,
    running,
    sou,
    symbols,
)

app = typer.Typer(
    help="A self-hosted assistant that learns from the people who use it and proves it got better.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for part in (
    running,
    people,
    memory,
    learning,
    looking,
    keeping,
    sou,
    symbols,
    embedding,
    pretraining,
    demo,
):
    part.add_to(app)


@app.callback()
def options(context: typer.Context, home: Path | None = None) -> None:
    """Options before the command.

    Args:
        context: carries the data directory to the commands.
        home: data directory, instead of $SOMA_HOME or ~/.soma.
    """
    context.obj = home


def main() -> None:
    """Run the command; an error of ours is one line and exit code 1."""
    try:
        app()
    except SomaError as error:
        print(f"soma: {error}", file=sys.stderr)
        sys.exit(1)
