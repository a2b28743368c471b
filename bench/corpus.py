"""Text to measure with: the corpus beside the project, or the project's own where it is absent."""

import json
from itertools import islice
from pathlib import Path

from backports import zstd

ROOT = Path(__file__).parent.parent
CORPUS = ROOT.parent / "shared" / "corpus"


def mixed() -> tuple[str, str]:
    """A sample of many kinds of text (2 MB), and its name."""
    path = CORPUS / "small.txt"
    if path.exists():
        return path.read_bytes().decode(), path.name
    files = sorted([*ROOT.glob("*/**/*.py"), *ROOT.glob("**/*.md")])
    return "".join(file.read_text(encoding="utf-8") for file in files), "this repository"


def documents(name: str, characters: int) -> list[str]:
    """The first texts of a file of the corpus, about so many characters together; [] if absent."""
    path = CORPUS / name
    found: list[str] = []
    if not path.exists():
        return found
    with zstd.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            text = record.get("text") or "\n".join(m["content"] for m in record["messages"])
            found.append(text)
            characters -= len(text)
            if characters <= 0:
                break
    return found


def dialogues(name: str, count: int) -> list[tuple[str, ...]]:
    """The turns of the first dialogues of a file of the corpus; [] if it is absent."""
    path = CORPUS / name
    if not path.exists():
        return []
    with zstd.open(path, "rt", encoding="utf-8") as lines:
        records = (json.loads(line) for line in islice(lines, count))
        return [tuple(m["content"] for m in record["messages"]) for record in records]
