"""`soma sou`: look into model files, make them, and write them for other programs."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from soma_agents.cli.options import Json, print_json, print_table

if TYPE_CHECKING:
    from soma_agents.language.sou.memory import MemoryPlan

Source = Annotated[
    str, typer.Argument(help="'smollm2', a .sou or GGUF file, or a transformers directory.")
]
SouPath = Annotated[Path, typer.Argument(help="A .sou file.")]
Target = Annotated[Path, typer.Argument(help="The .sou file to write.")]
Kind = Annotated[str, typer.Option("--type", help="F32, F16, BF16, Q8, Q4 or Q2.")]
_MB = 1e6

sou = typer.Typer(help="Model files: one file holds a whole model.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    for command in (inspect, verify, convert, quantise, build, export, generate):
        sou.command()(command)
    app.add_typer(sou, name="sou")


def inspect(
    file: SouPath,
    json: Json = False,
    context: Annotated[int, typer.Option("--context", help="Tokens; 0: the model's own.")] = 0,
    streams: Annotated[int, typer.Option("--streams", help="Replies at once.")] = 1,
    text: Annotated[bool, typer.Option("--text", help="Print the text form.")] = False,
) -> None:
    """Say what a file holds and what memory serving it takes."""
    from soma_agents.language.sou.checkpoint import SouCheckpoint
    from soma_agents.language.sou.memory import plan_of
    from soma_agents.language.sou.modelfile import Modelfile, written

    opened = SouCheckpoint(file).file
    if text:
        adapter = "(in the file)" if opened.directory.adapter else ""
        print(written(Modelfile(str(file), adapter, opened.directory.card)), end="")
        return
    plan = plan_of(opened, context=context or opened.directory.config.context, streams=streams)
    memory = asdict(plan) | {"cache": plan.cache, "total": plan.total}
    if json:
        whole = opened.directory.model_dump(mode="json")
        print_json(whole | {"seal": opened.seal, "memory": memory})
        return
    kinds: dict[str, int] = {}
    for piece in opened.directory.tensors:
        kinds[piece.kind] = kinds.get(piece.kind, 0) + piece.bytes
    print(f"seal        {opened.seal}")
    print(f"parameters  {plan.parameters:,}")
    for name, value in asdict(opened.directory.config).items():
        print(f"{name:<18}{value}")
    print_table(("type", "MB"), [(kind, f"{size / _MB:.1f}") for kind, size in kinds.items()])
    for name, value in opened.directory.metadata.items():
        print(f"{name:<18}{value}")
    _print_memory(plan)


def _print_memory(plan: "MemoryPlan") -> None:
    rows = {
        "file": plan.file,
        "weights, bf16": plan.weights,
        "blocks for decoding": plan.products,
        f"cache, {plan.streams} x {plan.context} tokens": plan.cache,
        "total in memory": plan.total,
    }
    print_table(("memory", "MB"), [(name, f"{size / _MB:.1f}") for name, size in rows.items()])


def verify(file: SouPath) -> None:
    """Read a whole file and check every hash."""
    from soma_agents.language.sou.checkpoint import SouCheckpoint

    checkpoint = SouCheckpoint(file)
    checkpoint.file.verify()
    checkpoint.tokenizer()
    print(f"{file} is what was written: {checkpoint.file.seal}")


def convert(source: Source, target: Target, type: Kind = "Q8") -> None:  # noqa: A002 - the option's name
    """Write a model of any known format as a .sou file."""
    from soma_agents.language.hub.source import open_source
    from soma_agents.language.sou.convert import convert as convert_
    from soma_agents.language.sou.convert import kind_named

    checkpoint = open_source(source)
    convert_(checkpoint, target, kind_named(type))
    print(f"{target}  {target.stat().st_size / _MB:.1f} MB")


def quantise(file: SouPath, target: Target, type: Kind = "Q4") -> None:  # noqa: A002 - the option's name
    """Write a .sou file anew with other numbers; all else in it is kept."""
    from soma_agents.language.sou.checkpoint import SouCheckpoint
    from soma_agents.language.sou.convert import convert as convert_
    from soma_agents.language.sou.convert import kind_named

    convert_(SouCheckpoint(file), target, kind_named(type))
    print(f"{target}  {target.stat().st_size / _MB:.1f} MB")


def build(
    modelfile: Annotated[Path, typer.Argument(help="A text form: FROM, PARAMETER, …")],
    target: Target,
    type: Kind = "Q8",  # noqa: A002 - the option's name
) -> None:
    """Make a .sou file of what a text form says."""
    from soma_agents.language.hub.build import build as build_
    from soma_agents.language.sou.convert import kind_named

    build_(modelfile, target, kind_named(type))
    print(f"{target}  {target.stat().st_size / _MB:.1f} MB")


def export(
    source: Source,
    directory: Annotated[Path, typer.Argument(help="A directory to write into.")],
    format: Annotated[  # noqa: A002 - the option's name
        str, typer.Option("--format", help="'transformers' or 'gguf' (with a Modelfile).")
    ] = "transformers",
    type: Annotated[  # noqa: A002 - the option's name
        str, typer.Option("--type", help="Of GGUF: F16, BF16, Q8_0, Q4_1 or Q4_0.")
    ] = "Q8_0",
) -> None:
    """Write a model for transformers, or for Ollama and llama.cpp."""
    from soma_agents.language.hub.source import open_source, write_for

    for path in write_for(open_source(source), directory, format, type):
        print(path)


def generate(
    file: SouPath,
    prompt: Annotated[str, typer.Argument(help="What to say to it.")],
    user: Annotated[str, typer.Option("--user", help="As whom; the file's ACL decides.")] = "owner",
    tokens: Annotated[int, typer.Option("--tokens", help="At most so many.")] = 128,
) -> None:
    """Answer once, under the file's own parameters, system message and personality."""
    import asyncio

    from soma_agents.language.sou.answer import answer

    async def speak() -> None:
        async for piece in answer(file, prompt, user=user, tokens=tokens):
            print(piece, end="", flush=True)
        print()

    asyncio.run(speak())
