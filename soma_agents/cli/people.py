"""`soma import` and `soma keys`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from soma_agents.cli.client import Daemon, daemon_of
from soma_agents.cli.options import Home, Json, print_json, print_table, settings_of
from soma_agents.runtime.importers import ImportedConversation, read_conversations
from soma_agents.settings import Settings
from soma_agents.storage.identifiers import SystemClock
from soma_agents.storage.keys import ApiKeys

GROUP = 200
"""Conversations sent in one request."""

keys = typer.Typer(help="API keys. Without any, SOMA is open on loopback.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.command("import")(import_)
    keys.command("create")(create_key)
    keys.command("list")(list_keys)
    keys.command("revoke")(revoke_key)
    app.add_typer(keys, name="keys")


def import_(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="ChatGPT export, chat JSONL, ShareGPT, or text.")],
    home: Home = None,
    json: Json = False,
) -> None:
    """Import conversations; the same conversation is taken once."""
    daemon = daemon_of(context, home)
    found = read_conversations(file)
    sent = send_conversations(daemon, found.conversations)
    rejected = [{"line": r.line, "why": r.why} for r in found.rejected]
    if json:
        print_json(sent | {"rejected": rejected})
        return
    for line in rejected:
        print(f"{file}:{line['line']}: {line['why']}")
    print(
        f"{sent['conversations']} conversations with {sent['messages']} messages; "
        f"{sent['duplicates']} known before, {len(rejected)} lines rejected"
    )


def send_conversations(daemon: Daemon, conversations: list[ImportedConversation]) -> dict[str, int]:
    """Send conversations in groups and add up what became of them."""
    total = {"conversations": 0, "messages": 0, "duplicates": 0}
    for start in range(0, len(conversations), GROUP):
        group = [_wire(c) for c in conversations[start : start + GROUP]]
        answer = daemon.post("/api/import", {"conversations": group})
        total = {name: total[name] + answer[name] for name in total}
    return total


def _wire(conversation: ImportedConversation) -> dict[str, Any]:
    return {
        "messages": [m.model_dump() for m in conversation.messages],
        "title": conversation.title,
        "source": conversation.source,
        "digest": conversation.digest,
        "happened_at": conversation.happened_at and conversation.happened_at.isoformat(),
        "held_out": conversation.held_out,
    }


def create_key(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    user: Annotated[str, typer.Option("--user", help="User the key speaks for.")] = "owner",
    admin: Annotated[bool, typer.Option("--admin", help="May manage models and rounds.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Make a key and print it, once; only its hash is kept."""
    secret = _keys(settings_of(context, home)).create(
        name, user=user, role="admin" if admin else "user"
    )
    print_json({"name": name, "key": secret}) if json else print(secret)


def list_keys(context: typer.Context, home: Home = None, json: Json = False) -> None:
    """List the keys without their secrets."""
    found = _keys(settings_of(context, home)).list()
    rows = [(key.name, key.user, key.role) for key in found]
    if json:
        print_json([dict(zip(("name", "user", "role"), row, strict=True)) for row in rows])
    else:
        print_table(("name", "user", "role"), rows)


def revoke_key(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the key.")],
    home: Home = None,
) -> None:
    """Make a key useless from now on."""
    left = _keys(settings_of(context, home))
    left.revoke(name)
    print(f"revoked {name}")
    if not left.list():
        print("no key is left: on loopback SOMA is open to everyone on this machine")


def _keys(settings: Settings) -> ApiKeys:
    return ApiKeys(settings.keys_file, SystemClock())
