"""What all commands share: the data directory, JSON output, tables."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from soma_agents.settings import Settings, load_settings

Home = Annotated[
    Path | None, typer.Option("--home", help="Data directory [default: $SOMA_HOME or ~/.soma].")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]


def settings_of(context: typer.Context, home: Path | None, **overrides: Any) -> Settings:
    """The settings of the data directory named after or before the command."""
    return load_settings(home or context.find_root().obj, overrides=overrides)


def print_json(value: Any) -> None:
    """One JSON value on one line."""
    print(json.dumps(value, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A plain table on the terminal."""
    table = Table(*headings, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
    Console().print(table)
