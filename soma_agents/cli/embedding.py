"""`soma embed train`, `soma embed query`: vectors for words and texts, with no pretrained model."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from arbiters.errors import InvalidError
from soma_agents.cli.options import Json, print_json, print_table

commands = typer.Typer(help="Vectors for words and texts.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    app.add_typer(commands, name="embed")


@commands.command()
def train(
    corpus: Annotated[Path, typer.Argument(help="A file or folder of text.")],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    method: Annotated[
        str, typer.Option("--method", help="feature, hash, semantic or hybrid.")
    ] = "hybrid",
    dim: Annotated[
        int | None,
        typer.Option(
            "--dim", help="Of word vectors [128], or of hashes with --method hash [1024]."
        ),
    ] = None,
    vocabulary: Annotated[
        int, typer.Option("--vocabulary", help="Words to know at most.")
    ] = 50_000,
    min_count: Annotated[
        int, typer.Option("--min-count", help="Times a word must stand in the corpus.")
    ] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Of what is drawn.")] = 1,
    json: Json = False,
) -> None:
    """Learn words from a corpus and write them to a file."""
    from soma_agents.language.geometry import file
    from soma_agents.language.geometry import train as training
    from soma_agents.storage.files import write_atomic

    plan = training.Plan(method, dim, vocabulary, min_count, seed)
    plan.check()
    if not out.absolute().parent.is_dir() or out.is_dir():
        raise InvalidError(f"--out {str(out)!r} must be a file in a folder that is there")
    texts = _texts(corpus)
    shown: AbstractContextManager[Any] = nullcontext(lambda _, __: None) if json else _Bar()
    with shown as report:
        embedder = training.train(texts, plan, report)
    content = file.to_bytes(embedder)
    write_atomic(out, content)
    told = _told(out, embedder) | {"bytes": len(content)}
    if json:
        print_json(told)
        return
    print("  ".join(f"{name} {value}" for name, value in told.items()))
    print(f'soma embed query {out} "a word or a text"')


@commands.command()
def query(
    model: Annotated[Path, typer.Argument(help="A file that `soma embed train` wrote.")],
    text: Annotated[str, typer.Argument(help="A word or a text.")],
    near: Annotated[
        Path | None, typer.Option("--near", help="Show the nearest lines of this file, not words.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="How many.")] = 10,
    json: Json = False,
) -> None:
    """Show what is nearest to a text: words, or the lines of a file."""
    from soma_agents.language.geometry import file
    from soma_agents.language.symbols.text import read_text

    embedder = file.load(model)
    if near is None:
        found = [word.decode() for word in embedder.lexicon.pieces.tolist()]
    else:
        found = [line for line in read_text(near).splitlines() if line.strip()]
    # A text is near itself: that is no news.
    hits = [
        (found[number], cosine)
        for number, cosine in embedder.near(text, found, top + 1)
        if found[number] != text.casefold() or near is not None
    ][:top]
    if json:
        listed = [{"text": said, "cosine": round(cosine, 6)} for said, cosine in hits]
        print_json(_told(model, embedder) | {"nearest": listed})
        return
    print_table(("cosine", "text"), [(f"{cosine:.3f}", said) for said, cosine in hits])


def _texts(corpus: Path) -> Iterator[str]:
    from soma_agents.pretraining.readers import files_of, read

    for found in read(files_of(corpus)):
        if isinstance(found.document, str):
            yield found.document
        elif isinstance(found.document, tuple):
            yield "\n".join(turn.content for turn in found.document)
        else:
            raise InvalidError(f"{str(corpus)!r} holds token ids (.bin): embeddings need text")


def _told(path: Path, embedder: Any) -> dict[str, Any]:
    return {
        "model": str(path),
        "method": embedder.method,
        "dim": embedder.dim,
        "words": len(embedder.lexicon),
        "vocabulary": embedder.lexicon.digest,
        "corpus": embedder.corpus,
    }


class _Bar:
    """A progress bar on the terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(file=sys.stderr))
        self._task = self._bar.add_task("starting", total=1.0)

    def __enter__(self) -> Any:
        self._bar.start()
        return self._report

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _report(self, name: str, share: float) -> None:
        self._bar.update(self._task, description=name, completed=share)
