"""`soma pretrain`, `generate`, `plan`: a language model from nothing but text."""

import asyncio
import logging
import math
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from arbiters.errors import InvalidError
from soma_agents.cli.options import Json, print_json, print_table

Corpus = Annotated[Path, typer.Argument(help="A file or folder of text; see docs/pretraining.md.")]
Preset = Annotated[str, typer.Option("--preset", help="showcase or v1.")]
MaybePreset = Annotated[
    str | None, typer.Option("--preset", help="showcase (unless you say) or v1.")
]
Depth = Annotated[int | None, typer.Option("--depth", help="Derive everything from it instead.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the run; an old one goes on.")]
HeldOut = Annotated[Path | None, typer.Option("--held-out", help="Text to judge by, not to learn.")]
Tokenizer = Annotated[
    Path | None, typer.Option("--tokenizer", help="A tokenizer.json to use, whatever its size.")
]
Base = Annotated[
    Path | None,
    typer.Option("--from", help="Go on with this model; of dialogues it learns the replies."),
]
System = Annotated[
    str | None,
    typer.Option(
        "--system", help="With --from: what dialogues begin with; SOMA's persona unless you say."
    ),
]
Tokens = Annotated[int | None, typer.Option("--tokens", help="How many tokens to learn from.")]
Batch = Annotated[int | None, typer.Option("--batch-tokens", help="Tokens of a step.")]
Row = Annotated[int | None, typer.Option("--row", help="Tokens that are read together.")]
Experts = Annotated[
    int | None, typer.Option("--experts", help="MLPs to choose two from, half as wide each.")
]
Context = Annotated[
    int | None, typer.Option("--context", help="Tokens that the model can look back on.")
]
Schedule = Annotated[str | None, typer.Option("--schedule", help="How the rates move.")]
MicroRows = Annotated[int | None, typer.Option("--micro-rows", help="Rows at a time.")]
Recompute = Annotated[
    bool | None, typer.Option("--recompute", help="Less memory for a third more time.")
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", help="bfloat16, float16 or float32; the fastest unless you say."),
]
Minutes = Annotated[float, typer.Option("--minutes", help="Stop then; called again, go on.")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes, by Ray Train.")]
Shard = Annotated[
    bool, typer.Option("--shard", help="Each worker holds a part of the model only (FSDP2).")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Of weights and order.")]

Temperature = Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Tokens at most.")]
Prompt = Annotated[str, typer.Argument(help="Text to go on with.")]
Chat = Annotated[bool, typer.Option("--chat", help="Say it to the model and hear its answer.")]
Model = Annotated[Path, typer.Option("--model", help="A file that `soma pretrain` left.")]

BARS = "▁▂▃▄▅▆▇█"
CURVE = 32
"""Columns of the curve beside the progress bar."""


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    for command in (pretrain, generate, plan):
        app.command()(command)


def pretrain(
    corpus: Corpus,
    preset: MaybePreset = None,
    depth: Depth = None,
    experts: Experts = None,
    context: Context = None,
    out: Out = Path("soma-lm"),
    held_out: HeldOut = None,
    tokenizer: Tokenizer = None,
    base: Base = None,
    system: System = None,
    tokens: Tokens = None,
    batch_tokens: Batch = None,
    row: Row = None,
    schedule: Schedule = None,
    micro_rows: MicroRows = None,
    recompute: Recompute = None,
    precision: Precision = None,
    minutes: Minutes = math.inf,
    seed: Seed = None,
    workers: Workers = 1,
    shard: Shard = False,
    json: Json = False,
) -> None:
    """Learn a vocabulary and a model from a corpus; interrupted, the same command goes on."""
    # Before torch is loaded: idle OpenMP workers that spin would take a core from who works.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from soma_agents.pretraining import planning, run
    from soma_agents.training.device import best_device

    recipe = _begun(base, tokenizer, preset, depth, experts, context).but(
        tokens=tokens,
        batch_tokens=batch_tokens,
        row=row,
        schedule=schedule,
        micro_rows=micro_rows,
        recompute=recompute,
        precision=precision,
        seed=seed,
    )
    crew = _crew(workers, shard)
    planned = planning.require(run.settled(recipe, out, best_device()), crew=crew)
    shown: AbstractContextManager[Any] = nullcontext(run.Hooks()) if json else _Bar()
    sources = run.Sources(corpus, held_out, tokenizer, base, _system(base, system))
    with shown as hooks:
        made = _learn(sources, recipe, out.absolute(), crew, hooks, minutes * 60)
    told = _told(made, planned)
    print_json(told) if json else print(_summary(told, chat=base is not None))


def _learn(sources: Any, recipe: Any, out: Path, crew: Any, hooks: Any, max_seconds: float) -> Path:
    """The run in this process, or on workers of a Ray of its own; the model's file."""
    from soma_agents.pretraining import run

    if crew.workers == 1:
        return run.pretrain(sources, recipe, out, hooks=hooks, max_seconds=max_seconds).model
    import ray

    from soma_agents.pretraining.ray_train import pretrain_with_ray

    threads = max(1, (os.cpu_count() or 1) // crew.workers)
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        return pretrain_with_ray(
            sources,
            recipe,
            out,
            workers=crew.workers,
            sharded=crew.sharded,
            threads=threads,
            hooks=hooks,
            max_seconds=max_seconds,
        )
    finally:
        ray.shutdown()


def _crew(workers: int, shard: bool) -> Any:
    """The workers of a run; those of a Ray that is named lie on machines of their own."""
    from soma_agents.pretraining.planning import Crew

    if shard and workers == 1:
        raise InvalidError(
            "--shard parts the model among workers; add --workers 2 or more, or leave it out"
        )
    return Crew(workers, 1 if "RAY_ADDRESS" in os.environ else workers, shard)


def _told(model: Path, planned: Any) -> dict[str, Any]:
    """What came of a run, as its model tells it, beside what was planned."""
    from json import loads

    from soma_agents.language.sou.checkpoint import SouCheckpoint

    facts = loads(SouCheckpoint(model).file.directory.metadata["lineage"])
    kept = ("parameters", "ended", "steps", "tokens", "bits_per_byte_before", "bits_per_byte")
    return {
        "model": str(model),
        **{name: facts[name] for name in kept},
        "seconds": round(facts["seconds"], 1),
        "planned_seconds": round(planned.seconds, 1),
        "peak_bytes": facts["peak_bytes"],
        "planned_bytes": planned.memory,
        "train_loss": round(facts["train_loss"], 4),
    }


def _summary(told: dict[str, Any], *, chat: bool) -> str:
    """What came of a run, for people, and what to do with it."""
    bits = told["bits_per_byte"]
    judged = "no text held out" if bits is None else f"{bits:.4f} bits a byte held out"
    if told["bits_per_byte_before"] is not None:
        judged += f", {told['bits_per_byte_before']:.4f} before"
    words = '--chat "Hello"' if chat else '"Once upon a time"'
    return (
        f"{told['parameters']:,} parameters, {told['ended']} after {told['tokens']:,} tokens in "
        f"{told['seconds']:.0f} s: {told['train_loss']:.3f} nats a token in training, {judged}\n"
        f"soma generate {words} --model {told['model']}"
    )


def _begun(
    base: Path | None,
    tokenizer: Path | None,
    preset: str | None,
    depth: int | None,
    experts: int | None,
    context: int | None,
) -> Any:
    """The recipe that options change: that of a preset or a depth, or of a base to go on with."""
    from soma_agents.pretraining import recipe as recipes
    from soma_agents.pretraining.artifact import load_weights
    from soma_agents.pretraining.vocabulary import Vocabulary

    if base is None:
        recipe = _recipe(preset or "showcase", depth, experts, context)
        if tokenizer is None:
            return recipe
        return recipes.with_vocabulary(recipe, Vocabulary.load(tokenizer).size)
    if any(said is not None for said in (tokenizer, preset, depth, experts, context)):
        raise InvalidError(
            "--from brings its own vocabulary and sizes; leave out --tokenizer, --preset, --depth, "
            "--experts and --context"
        )
    return recipes.of_base(load_weights(base)[0])


def _system(base: Path | None, said: str | None) -> str:
    """What dialogues begin with that have no system message."""
    if base is None:
        if said is not None:
            raise InvalidError("--system belongs to --from: name the model that learns to converse")
        return ""
    from soma_agents.persona.voice import PERSONA

    return PERSONA if said is None else said


def _recipe(preset: str, depth: int | None, experts: int | None, context: int | None) -> Any:
    from soma_agents.pretraining import recipe as recipes

    recipe = recipes.preset(preset) if depth is None else recipes.of_depth(depth)
    if experts is not None:
        recipe = recipes.with_experts(recipe, experts)
    return recipe if context is None else recipes.with_context(recipe, context)


def plan(
    preset: Preset = "showcase",
    depth: Depth = None,
    experts: Experts = None,
    context: Context = None,
    tokens: Tokens = None,
    batch_tokens: Batch = None,
    row: Row = None,
    micro_rows: MicroRows = None,
    recompute: Recompute = None,
    workers: Workers = 1,
    shard: Shard = False,
    json: Json = False,
) -> None:
    """Say what a run would take on this machine; fail if that cannot fit."""
    from dataclasses import asdict

    from soma_agents.pretraining import planning

    recipe = _recipe(preset, depth, experts, context).but(
        tokens=tokens,
        batch_tokens=batch_tokens,
        row=row,
        micro_rows=micro_rows,
        recompute=recompute,
    )
    crew = _crew(workers, shard)
    found = planning.plan(recipe, crew=crew)
    if json:
        print_json(asdict(found) | {"fits": found.fits})
    else:
        print_table((recipe.name, ""), _rows(found))
    planning.require(recipe, crew=crew)


def _rows(found: Any) -> list[tuple[str, str]]:
    """A plan, line by line."""
    each = f", of each of {found.here} workers" if found.here > 1 else ""
    return [
        ("parameters", f"{found.parameters:,}"),
        ("a token meets", f"{found.active:,}"),
        ("tokens", f"{found.tokens:,} in {found.steps:,} steps"),
        ("memory", f"{found.memory / 2**30:.2f} GiB of {found.free / 2**30:.2f} GiB free{each}"),
        ("weights, gradients", f"{found.weights / 2**30:.2f} GiB"),
        ("optimiser", f"{found.optimiser / 2**30:.2f} GiB"),
        ("activations", f"{found.activations / 2**30:.2f} GiB"),
        ("speed", f"{found.tokens_per_second:,.0f} tokens/s on the CPU, in {found.precision}"),
        ("time", f"{found.seconds / 3600:.2f} h"),
    ]


class _Bar:
    """A progress bar with the curve of the loss beside it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[curve]}"),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
        )
        self._task = self._bar.add_task("starting", total=None, curve="")
        self._losses: list[float] = []
        self._bits = ""

    def __enter__(self) -> Any:
        from soma_agents.pretraining.run import Hooks

        self._bar.start()
        return Hooks(self._phase, self._step)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _phase(self, name: str) -> None:
        self._bar.update(self._task, description=name)

    def _step(self, progress: Any) -> None:
        self._losses.append(progress.loss)
        if progress.bits_per_byte is not None and not math.isnan(progress.bits_per_byte):
            self._bits = f"{progress.bits_per_byte:.3f} bits/byte"
        text = f"{curve(self._losses)} {progress.loss:.3f} {self._bits} "
        self._bar.update(
            self._task,
            total=progress.steps,
            completed=progress.step,
            curve=f"{text}{progress.tokens_per_second:,.0f} tokens/s",
        )


def curve(losses: list[float]) -> str:
    """Losses as a row of bars, the last one newest."""
    size = -(-len(losses) // CURVE)
    means = [
        sum(losses[i : i + size]) / len(losses[i : i + size]) for i in range(0, len(losses), size)
    ]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def generate(
    prompt: Prompt,
    model: Model = Path("soma-lm/model.sou"),
    max_tokens: MaxTokens = 200,
    temperature: Temperature = 0.8,
    seed: Seed = None,
    chat: Chat = False,
    json: Json = False,
) -> None:
    """Go on with a text, or answer it."""
    from soma_agents.language.sampling import Sampling

    sampling = Sampling(temperature=temperature, top_p=0.95, max_tokens=max_tokens, seed=seed)
    work = _generate(prompt, model.absolute(), sampling, chat=chat, show=not json)
    text, facts = asyncio.run(work)
    print_json({"text": text} | facts) if json else print()


async def _generate(
    prompt: str, file: Path, sampling: Any, *, chat: bool, show: bool
) -> tuple[str, dict[str, Any]]:
    from soma_agents.language.engine import Engine
    from soma_agents.language.model import load_model
    from soma_agents.language.requests import GenerationRequest, Piece
    from soma_agents.language.sou.answer import asked

    model = load_model(str(file))
    text = asked(model, prompt) if chat else prompt
    ids = model.tokenizer.encode(text) or list(model.tokenizer.eos_ids)
    engine = Engine(model, slots=1)
    engine.start()
    text, facts = "", {}
    try:
        print(prompt, end="", flush=True) if show and not chat else None
        async for item in engine.generate(GenerationRequest(tuple(ids), sampling)):
            if isinstance(item, Piece):
                text += item.text
                print(item.text, end="", flush=True) if show else None
                continue
            spent = max(1, item.completion_tokens - 1)
            facts = {
                "reason": item.reason,
                "tokens": item.completion_tokens,
                "ms_per_token": round(1000 * (item.total_s - item.first_token_s) / spent, 3),
            }
    finally:
        await engine.close()
    return text, facts
