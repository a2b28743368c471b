"""Training examples as a Parquet table, for whoever looks at them with other tools."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from arbiters.records import Example


def write_parquet(path: Path, examples: Sequence[Example]) -> None:
    """Write one row an example; `messages` is a list of (role, content)."""
    # By name: pyarrow comes without types, and loading it takes longer than all else here.
    pa: Any = import_module("pyarrow")
    pq: Any = import_module("pyarrow.parquet")
    table = pa.Table.from_pylist([_row(example) for example in examples], schema=_schema(pa))
    pq.write_table(table, path)


def _schema(pa: Any) -> Any:
    text = pa.string()
    message = pa.struct([("role", text), ("content", text)])
    return pa.schema(
        [
            ("id", text),
            ("kind", text),
            ("messages", pa.list_(message)),
            ("rejected", text),
            ("group", text),
            ("events", pa.list_(text)),
            ("user", text),
            ("trust", text),
            ("at", pa.timestamp("us", tz="UTC")),
        ]
    )


def _row(example: Example) -> dict[str, Any]:
    return {
        "id": example.id,
        "kind": example.kind,
        "messages": [message.model_dump() for message in example.messages],
        "rejected": example.rejected,
        "group": example.group,
        "events": list(example.events),
        "user": example.user,
        "trust": example.trust,
        "at": example.at,
    }
