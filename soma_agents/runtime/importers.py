"""Reading conversations from files of other programs: pure parsing, the format told by the content.

* ChatGPT's export, `conversations.json`: a tree of messages, of which the current branch is read
* OpenAI's chat JSONL: `{"messages": [{"role": "user", "content": "…"}, …]}` a line, or as one list
* ShareGPT: `{"conversations": [{"from": "human", "value": "…"}, …]}` a line, or as one list
* plain text: lines of `User: …` and `Assistant: …` (or `A:` and `B:`, or `Q:` and `A:`);
  a blank line ends a conversation

What cannot be read is reported with its line; the rest goes in.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from arbiters.errors import InvalidError
from arbiters.events import ChatMessage, Role

TITLE_CHARACTERS = 200
_WHITE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class ImportedConversation:
    """A conversation from elsewhere. `digest` is of its words: equal ones are the same."""

    messages: tuple[ChatMessage, ...]
    source: str
    digest: str
    title: str = ""
    happened_at: datetime | None = None
    held_out: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """What could not be read, where it begins (from 1) and why."""

    line: int
    why: str


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What a file held."""

    conversations: list[ImportedConversation] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


def read_conversations(path: Path) -> ImportResult:
    """Every conversation in a file.

    Raises:
        InvalidError: there is no such file, it is not UTF-8, empty, or of no known format.
    """
    text = _read(path)
    if text.lstrip()[:1] in {"{", "["}:
        found = _collect(_records(text), _from_record)
    else:
        found = _collect(_blocks(text), _from_block)
    if not found.conversations and not _looks_known(text, found.rejected):
        raise InvalidError(
            f"{path} is of no known format; known are ChatGPT's conversations.json, chat JSONL, "
            "ShareGPT JSON and text with lines like 'User: …' and 'Assistant: …'"
        )
    return found


def conversation_of(
    turns: Iterable[tuple[Role, str]],
    *,
    source: str,
    title: str = "",
    happened_at: datetime | None = None,
) -> ImportedConversation:
    """A conversation of these turns, without empty ones.

    Raises:
        InvalidError: no user's turn is followed by an assistant's.
    """
    said = tuple(ChatMessage(role=role, content=text) for role, text in turns if text.strip())
    roles = [message.role for message in said if message.role != "system"]
    if ("user", "assistant") not in pairwise(roles):
        raise InvalidError("nobody asks and is answered in it")
    return ImportedConversation(
        messages=said,
        source=source,
        digest=_digest(said),
        title=" ".join(title.split())[:TITLE_CHARACTERS],
        happened_at=happened_at,
    )


def chatterbot_dialogues() -> list[ImportedConversation]:
    """The English dialogues of the installed `chatterbot-corpus` package, each once, in a fixed order."""
    import yaml

    found: dict[str, ImportedConversation] = {}
    folder = resources.files("chatterbot_corpus") / "data" / "english"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        # BaseLoader makes nothing but text: to a full loader the reply "Yes" is a boolean.
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506
        for lines in content["conversations"]:
            turns = [str(line) for line in lines]
            turns = turns[: len(turns) // 2 * 2]  # The last question of an odd one has no answer.
            if turns and all(turn.strip() for turn in turns):
                named = zip(("user", "assistant") * (len(turns) // 2), turns, strict=True)
                title = file.name.removesuffix(".yml")
                dialogue = conversation_of(named, source="chatterbot-corpus", title=title)
                found.setdefault(dialogue.digest, dialogue)
    return list(found.values())


# --- files ---------------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InvalidError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidError(
            f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8 and import it again"
        ) from None
    if not text.strip():
        raise InvalidError(f"{path} is empty")
    return text


T = TypeVar("T")


def _collect(
    parts: Iterator[tuple[int, T | InvalidError]], read: Callable[[T], ImportedConversation]
) -> ImportResult:
    result = ImportResult()
    for line, part in parts:
        try:
            if isinstance(part, InvalidError):
                raise part
            result.conversations.append(read(part))
        except InvalidError as error:
            result.rejected.append(Rejected(line, str(error)))
    return result


def _looks_known(text: str, rejected: Sequence[Rejected]) -> bool:
    """Whether a file without a single good conversation is of a known format all the same."""
    known = re.search(
        r'"(?:mapping|messages|conversations|role)"\s*:|^(?:user|human)\s*:', text, _FLAGS
    )
    return bool(known and rejected)


def _digest(messages: Sequence[ChatMessage]) -> str:
    """SHA-256 over roles and words, whatever their spacing and Unicode form."""
    turns = [
        [message.role, " ".join(unicodedata.normalize("NFC", message.content).split())]
        for message in messages
    ]
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()


# --- JSON ----------------------------------------------------------------------------------


def _records(text: str) -> Iterator[tuple[int, Any]]:
    """(line, record) for the items of a JSON list, or for the values of JSON lines."""
    try:
        whole = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        yield from _lines(text)
        return
    if isinstance(whole, list) and not _is_turns(whole):
        yield from _items(text, len(whole))
    else:
        yield 1, whole


def _lines(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                yield number, InvalidError(f"not JSON: {error.msg} at column {error.colno}")
            except RecursionError:
                yield number, InvalidError("not JSON that can be read: nested too deeply")


def _items(text: str, count: int) -> Iterator[tuple[int, Any]]:
    """The items of a JSON list that is known to be one, each with the line it begins in."""
    decoder = json.JSONDecoder()
    place = text.index("[") + 1
    line, counted = 1, 0
    for _ in range(count):
        place = _spaces(text, place)
        line, counted = line + text.count("\n", counted, place), place
        value, place = decoder.raw_decode(text, place)
        yield line, value
        place = _spaces(text, place) + 1  # the comma


def _spaces(text: str, place: int) -> int:
    """Where the white space at `place` ends."""
    return next(_WHITE.finditer(text, place)).end()


def _is_turns(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and "role" in turn for turn in value)
    )


def _from_record(record: Any) -> ImportedConversation:
    if _is_turns(record):
        return conversation_of(_openai_turns(record), source="openai")
    if not isinstance(record, dict):
        raise InvalidError(f"a conversation is an object, not {_kind(record)}")
    title = record.get("title")
    title = title if isinstance(title, str) else ""
    happened_at = _time(record.get("create_time"))
    for name, source, read in (
        ("mapping", "chatgpt", lambda value: _chatgpt_turns(value, record.get("current_node"))),
        ("messages", "openai", _openai_turns),
        ("conversations", "sharegpt", _sharegpt_turns),
        ("conversation", "sharegpt", _sharegpt_turns),
    ):
        if name in record:
            turns = list(read(record[name]))
            return conversation_of(turns, source=source, title=title, happened_at=happened_at)
    raise InvalidError("it has none of 'mapping', 'messages' and 'conversations'")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else "a value")


def _time(seconds: Any) -> datetime | None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return None


_OPENAI_ROLES: dict[str, Role | None] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": None,
    "function": None,
}
_SHAREGPT_ROLES: dict[str, Role | None] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "tool": None,
    "function_call": None,
    "observation": None,
}


def _openai_turns(turns: Any) -> Iterator[tuple[Role, str]]:
    return _turns(turns, "role", "content", _OPENAI_ROLES)


def _sharegpt_turns(turns: Any) -> Iterator[tuple[Role, str]]:
    return _turns(turns, "from", "value", _SHAREGPT_ROLES)


def _turns(
    turns: Any, speaker: str, words: str, roles: Mapping[str, Role | None]
) -> Iterator[tuple[Role, str]]:
    if not isinstance(turns, list):
        raise InvalidError(f"its turns are {_kind(turns)}, not a list")
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise InvalidError(f"turn {number} is {_kind(turn)}, not an object")
        name = turn.get(speaker)
        if not isinstance(name, str) or name.lower() not in roles:
            raise InvalidError(f"turn {number} has unknown {speaker} {name!r}")
        if role := roles[name.lower()]:
            yield role, _content(turn.get(words), number)


def _content(content: Any, number: int) -> str:
    """A turn's text; of one in parts, the parts that are text."""
    if content is None:
        return ""  # An assistant that called a tool.
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        return "\n".join(text for text in texts if isinstance(text, str))
    raise InvalidError(f"turn {number} has {_kind(content)} for its text")


def _chatgpt_turns(mapping: Any, current: Any) -> Iterator[tuple[Role, str]]:
    """The branch that ends in `current_node`, from the root; people's and the model's turns."""
    if not isinstance(mapping, dict) or not all(isinstance(n, dict) for n in mapping.values()):
        raise InvalidError("its mapping is not an object of nodes")
    node = current if isinstance(current, str) else next(reversed(mapping), None)
    branch: list[Any] = []
    while isinstance(node, str) and node in mapping:
        if len(branch) > len(mapping):
            raise InvalidError(f"its messages go in a circle at node {node!r}")
        branch.append(mapping[node].get("message"))
        node = mapping[node].get("parent")
    for message in reversed(branch):
        match message:
            case {"metadata": {"is_visually_hidden_from_conversation": True}}:
                continue
            case {
                "author": {"role": ("user" | "assistant") as role},
                "content": {"content_type": "text" | "multimodal_text", "parts": list(parts)},
            }:
                yield role, "\n".join(part for part in parts if isinstance(part, str))
            case _:
                continue  # The system's, a tool's, code, pictures.


# --- text ----------------------------------------------------------------------------------

_FLAGS = re.IGNORECASE | re.MULTILINE
_LABEL = re.compile(
    r"\s*(user|human|me|you|assistant|ai|bot|soma|chatgpt|gpt|system|a|b|q)\s*:\s*", re.IGNORECASE
)
_SPEAKERS: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "me", "a", "q"), "user"),
    **dict.fromkeys(("assistant", "ai", "bot", "soma", "chatgpt", "gpt", "you", "b"), "assistant"),
    "system": "system",
}


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, lines) of what stands between blank lines."""
    block: list[str] = []
    first = 1
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if line.strip():
            first = first if block else number
            block.append(line)
        elif block:
            yield first, block
            block = []


def _from_block(lines: list[str]) -> ImportedConversation:
    """A line without a speaker goes on with the turn before it."""
    turns: list[tuple[str, str]] = []
    for line in lines:
        if match := _LABEL.match(line):
            turns.append((match[1].lower(), line[match.end() :].rstrip()))
        elif turns:
            turns[-1] = (turns[-1][0], f"{turns[-1][1]}\n{line.rstrip()}")
        else:
            raise InvalidError(f"no speaker in {line.strip()[:40]!r}; expected 'User: …'")
    answers = {"a": "assistant"} if any(label == "q" for label, _ in turns) else {}
    speakers: Mapping[str, Any] = _SPEAKERS | answers
    return conversation_of(((speakers[label], said) for label, said in turns), source="text")
