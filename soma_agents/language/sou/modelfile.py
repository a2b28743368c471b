"""The text form of a model, in the manner of Ollama's Modelfile: what it is built from, line by line.

    FROM smollm2
    PARAMETER temperature 0.7
    PERSONALITY warmth 0.8
    SYSTEM \"\"\"
    You answer in rhymes.
    \"\"\"
    ADAPTER ./adapters/poet
    RAG ./poems
    ACL allow ann
    ACL deny *

A line is an instruction and what it says: bare text up to the line's end, a JSON string, or any text
between triple quotes. `#` begins a line that is not read. Compare
https://github.com/ollama/ollama/blob/main/docs/modelfile.md
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from arbiters.errors import InvalidError
from policies.personality import DIMENSIONS
from soma_agents.language.sou.card import Card, Parameters, Rule

QUOTES = '"""'
REPEATED = {"stop"}
"""Parameters that may stand several times."""
TRAITS = tuple(dimension.name for dimension in DIMENSIONS)


@dataclass(frozen=True, slots=True)
class Modelfile:
    """A text form, read. `base` and `adapter` are as written."""

    base: str
    adapter: str = ""
    card: Card = field(default_factory=Card)


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    instruction: str
    rest: str


@dataclass(slots=True)
class _Found:
    """What the lines so far have said."""

    base: str = ""
    adapter: str = ""
    system: str = ""
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    personality: dict[str, float] = field(default_factory=dict[str, float])
    sources: list[str] = field(default_factory=list[str])
    rules: list[Rule] = field(default_factory=list[Rule])


def parse(text: str, *, name: str = "Modelfile") -> Modelfile:
    """Read a text form.

    Raises:
        InvalidError: names the file, the line, what is wrong with it, and what may stand there.
    """
    found = _Found()
    for line in _lines(text, name):
        try:
            _read(found, line)
        except (InvalidError, ValueError) as error:
            said = _first(error) if isinstance(error, ValidationError) else str(error)
            raise InvalidError(f"{name}:{line.number}: {line.instruction}: {said}") from None
    if not found.base:
        raise InvalidError(f"{name}: no FROM says which model it is built from")
    card = Card(
        system=found.system,
        parameters=Parameters(**found.parameters),
        personality=found.personality,
        sources=tuple(found.sources),
        rules=tuple(found.rules),
    )
    return Modelfile(found.base, found.adapter, card)


def written(modelfile: Modelfile) -> str:
    """The text form that `parse` reads back to the same."""
    card = modelfile.card
    lines = [f"FROM {_quoted(modelfile.base)}"]
    for key, value in card.parameters.model_dump(exclude_defaults=True).items():
        items = value if key in REPEATED else (value,)
        lines += [f"PARAMETER {key} {_quoted(str(item))}" for item in items]
    lines += [f"PERSONALITY {trait} {point}" for trait, point in card.personality.items()]
    if card.system:
        lines.append(f"SYSTEM {_quoted(card.system)}")
    if modelfile.adapter:
        lines.append(f"ADAPTER {_quoted(modelfile.adapter)}")
    lines += [f"RAG {_quoted(source)}" for source in card.sources]
    lines += [f"ACL {rule.effect} {_quoted(rule.user)}" for rule in card.rules]
    return "\n".join(lines) + "\n"


def _lines(text: str, name: str) -> Iterator[_Line]:
    """The instructions, those between triple quotes put together."""
    rows = enumerate(text.split("\n"), start=1)
    for number, row in rows:
        instruction, _, rest = row.strip().partition(" ")
        if not instruction or instruction.startswith("#"):
            continue
        rest = rest.strip()
        if rest.startswith(QUOTES):
            rest = json.dumps(_between_quotes(rest, rows, f"{name}:{number}: {instruction}"))
        yield _Line(number, instruction.upper(), rest)


def _between_quotes(first: str, rows: Iterator[tuple[int, str]], where: str) -> str:
    """What stands between triple quotes; a line end right behind or before them is not part of it."""
    text = first.removeprefix(QUOTES)
    while QUOTES not in text:
        _, row = next(rows, (0, None))
        if row is None:
            raise InvalidError(f"{where}: no {QUOTES} ends the text")
        text += "\n" + row
    inner, _, after = text.partition(QUOTES)
    if after.strip():
        raise InvalidError(f"{where}: {after.strip()!r} stands behind the closing {QUOTES}")
    return inner.removeprefix("\n").removesuffix("\n")


def _read(found: _Found, line: _Line) -> None:
    if line.instruction not in INSTRUCTIONS:
        raise InvalidError(_unknown("instruction", line.instruction, INSTRUCTIONS))
    if not line.rest:
        raise InvalidError("nothing stands behind it")
    INSTRUCTIONS[line.instruction](found, line.rest)


def _from(found: _Found, rest: str) -> None:
    if found.base:
        raise InvalidError(f"there is a FROM already: {found.base!r}")
    found.base = _value(rest)


def _adapter(found: _Found, rest: str) -> None:
    if found.adapter:
        raise InvalidError(f"there is an ADAPTER already: {found.adapter!r}")
    found.adapter = _value(rest)


def _system(found: _Found, rest: str) -> None:
    if found.system:
        raise InvalidError("there is a SYSTEM already")
    found.system = _value(rest)


def _parameter(found: _Found, rest: str) -> None:
    key, value = _pair(rest)
    if key not in Parameters.model_fields:
        raise InvalidError(_unknown("parameter", key, Parameters.model_fields))
    if key in REPEATED:
        found.parameters[key] = (*found.parameters.get(key, ()), value)
    elif key in found.parameters:
        raise InvalidError(f"{key!r} was set before")
    else:
        found.parameters[key] = _number(value)
    Parameters(**found.parameters)


def _personality(found: _Found, rest: str) -> None:
    trait, value = _pair(rest)
    if trait not in TRAITS:
        raise InvalidError(_unknown("trait", trait, TRAITS))
    if trait in found.personality:
        raise InvalidError(f"{trait!r} was set before")
    point = _number(value)
    if not 0 <= point <= 1:
        raise InvalidError(f"{trait} is {value!r}; use 0 to 1")
    found.personality[trait] = float(point)


def _rag(found: _Found, rest: str) -> None:
    found.sources.append(_value(rest))


def _acl(found: _Found, rest: str) -> None:
    effect, user = _pair(rest)
    if effect not in ("allow", "deny"):
        raise InvalidError(_unknown("effect", effect, ("allow", "deny")))
    found.rules.append(Rule(effect=effect, user=user))


INSTRUCTIONS: dict[str, Callable[[_Found, str], None]] = {
    "FROM": _from,
    "PARAMETER": _parameter,
    "PERSONALITY": _personality,
    "SYSTEM": _system,
    "ADAPTER": _adapter,
    "RAG": _rag,
    "ACL": _acl,
}


def _pair(rest: str) -> tuple[str, str]:
    key, _, value = rest.partition(" ")
    if not value.strip():
        raise InvalidError(f"{key!r} needs a value behind it")
    return key.lower(), _value(value.strip())


def _value(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        raise InvalidError(f"{text!r} is no JSON string; close the quotes") from None
    if not value:
        raise InvalidError("the text is empty")
    return str(value)


def _quoted(text: str) -> str:
    bare = text.isprintable() and text == text.strip() and not text.startswith('"')
    return text if bare and text else json.dumps(text)


def _number(text: str) -> int | float:
    try:
        return int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else float(text)
    except ValueError:
        raise InvalidError(f"{text!r} is no number") from None


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"unknown {what} {name!r}; did you mean {near[0]!r}?"


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg']}"
