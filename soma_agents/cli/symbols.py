"""`soma tokenize`: a text in tokens, with the identity of each."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arbiters.errors import InvalidError
from soma_agents.cli.options import Json, print_json, print_table

if TYPE_CHECKING:
    from soma_agents.language.symbols.bpe import Bpe
    from soma_agents.language.symbols.pieces import Tokens
    from soma_agents.language.symbols.records import TokenRecords

SHOWN = 20
"""Tokens that the table shows unless told otherwise."""


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command()(tokenize)


def tokenize(
    file: Annotated[Path, typer.Argument(help="A UTF-8 text; - for standard input.")],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="space, word, character, grammar, subword, bpe, syllable, frequency or byte.",
        ),
    ] = "word",
    vocabulary: Annotated[
        Path | None, typer.Option("--vocabulary", help="tokenizer.json to use (bpe).")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option("--vocab-size", help="Learn so many tokens from the text (bpe).")
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", help="Where to write what was learnt (bpe).")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the uids, not 0.")] = 1,
    stream: Annotated[int, typer.Option("--stream", help="Number of this stream.")] = 0,
    session: Annotated[str, typer.Option("--session", help="Name of the session.")] = "",
    compress: Annotated[
        str | None,
        typer.Option("--compress", help="Also compress: rle, pattern, frequency or adaptive."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=0, help="Tokens to print [default: 20, all as JSON]."),
    ] = None,
    json: Json = False,
) -> None:
    """Cut a text into tokens, give each its identity, print them."""
    from soma_agents.language.symbols.records import records
    from soma_agents.language.symbols.text import read_text
    from soma_agents.language.symbols.tokenise import tokenise

    text = read_text(file)
    tokens = tokenise(text, method, _vocabulary(text, method, vocabulary, vocab_size, save))
    found = records(tokens, seed=seed, stream=stream, session=session)
    summary = _summary(method, tokens) | _compressed(tokens, compress)
    if json:
        print_json(summary | _columns(tokens, found, len(found) if limit is None else limit))
        return
    print("  ".join(f"{name} {value}" for name, value in summary.items()))
    _print_table(tokens, found, SHOWN if limit is None else limit)


def _vocabulary(
    text: str, method: str, vocabulary: Path | None, vocab_size: int | None, save: Path | None
) -> "Bpe | None":
    from soma_agents.language.symbols.bpe import Bpe

    if method != "bpe":
        if (vocabulary, vocab_size, save) != (None, None, None):
            raise InvalidError(
                f"--vocabulary, --vocab-size and --save belong to --method bpe, not to {method!r}"
            )
        return None
    if (vocabulary is None) == (vocab_size is None) or (vocabulary and save):
        raise InvalidError(
            "--method bpe needs either --vocabulary FILE, or --vocab-size N to learn one from the"
            " text (--save FILE keeps it)"
        )
    if vocabulary is not None:
        return Bpe.load(vocabulary)
    bpe = Bpe.train([text], vocab_size or 0)
    if save is not None:
        bpe.save(save)
    return bpe


def _summary(method: str, tokens: "Tokens") -> dict[str, Any]:
    import numpy as np

    return {
        "method": method,
        "bytes": int(tokens.pieces.lengths[tokens.ids].sum()),
        "tokens": len(tokens.ids),
        "different": len(np.unique(tokens.ids)),
    }


def _compressed(tokens: "Tokens", method: str | None) -> dict[str, Any]:
    from soma_agents.language.symbols.compression.codec import compress

    if method is None:
        return {}
    size = len(compress(tokens.ids, method))
    bits = round(8 * size / max(len(tokens.ids), 1), 3)
    return {"compression": method, "compressed_bytes": size, "bits_per_token": bits}


def _columns(tokens: "Tokens", found: "TokenRecords", limit: int) -> dict[str, Any]:
    """Everything, so that the pieces of the ids, joined, are the text."""
    columns = found.columns()
    index = columns.pop("index")
    return {
        "pieces": [_as_json(piece) for piece in tokens.pieces.tolist()],
        "ids": tokens.ids[:limit].tolist(),
        "index": index[:limit].tolist(),
    } | {name: _hex(column[:limit]) for name, column in columns.items()}


def _as_json(piece: bytes) -> str | dict[str, str]:
    try:
        return piece.decode()
    except UnicodeDecodeError:  # a part of a character
        return {"hex": piece.hex()}


def _hex(column: Any) -> list[str]:
    """64 bits do not fit into the numbers that every reader of JSON knows."""
    return [f"{value:016x}" for value in column.tolist()]


def _print_table(tokens: "Tokens", found: "TokenRecords", limit: int) -> None:
    pieces = tokens.pieces.tolist()
    rows = [
        (place, repr(_as_json(pieces[id_])), id_, *identity)
        for place, (id_, *identity) in enumerate(
            zip(
                tokens.ids[:limit].tolist(),
                *(_hex(column[:limit]) for column in (found.uid, found.content, found.global_id)),
                strict=True,
            )
        )
    ]
    print_table(("index", "token", "id", "uid", "content", "global id"), rows)
    left = len(tokens.ids) - len(rows)
    if left:
        print(f"and {left} more (--limit, or --json for all)")
