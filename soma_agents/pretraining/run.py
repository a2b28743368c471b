"""A whole run: vocabulary, packed corpus, learning, judging, and the model's file."""

import json
import math
import resource
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog
import torch

from arbiters.errors import CorruptError, InvalidError
from soma_agents.language.sou.card import Card
from soma_agents.language.source import base_id
from soma_agents.pretraining.artifact import load_weights, save_model
from soma_agents.pretraining.loop import EVALUATED, STOP, Outcome, Progress, fit
from soma_agents.pretraining.packed import Packed, pack
from soma_agents.pretraining.readers import files_of, read
from soma_agents.pretraining.recipe import Recipe, parameters
from soma_agents.pretraining.structure import traits_of
from soma_agents.pretraining.vocabulary import Vocabulary
from soma_agents.storage.files import make_directory, write_atomic
from soma_agents.training.device import best_device
from soma_agents.training.group import Workers

TOKENIZER, TOKENS, METRICS, MODEL = "tokenizer.json", "tokens", "metrics.jsonl", "model.sou"
RECIPE = "recipe.json"
"""The recipe of the run as it was settled, so that it goes on in the number format it began with."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a run's text is. `held_out` None takes a share of the corpus."""

    corpus: Path
    held_out: Path | None = None
    tokenizer: Path | None = None
    """A vocabulary to use instead of learning one."""
    base: Path | None = None
    """A trained model's `.sou` file to begin with, instead of random weights; its vocabulary is used."""
    system: str = ""
    """Put before dialogues that have no system message, and into the model's file."""


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A finished run: the file of the model, and how it went."""

    model: Path
    outcome: Outcome
    parameters: int


@dataclass(frozen=True, slots=True)
class Hooks:
    """Who hears what: the phase that begins, and each step."""

    on_phase: Callable[[str], None] = lambda _: None
    on_progress: Callable[[Progress], None] = lambda _: None


def pretrain(
    sources: Sources,
    recipe: Recipe,
    directory: Path,
    *,
    hooks: Hooks | None = None,
    max_seconds: float = math.inf,
) -> Pretrained:
    """Learn a model from a corpus; called again with the same arguments, it goes on.

    Raises:
        CorruptError: a file of the run's folder is damaged.
        InvalidError: the corpus, vocabulary and recipe do not fit each other.
        DivergedError: the loss is not a number any more.
    """
    hooks = hooks or Hooks()
    recipe = settled(recipe, directory, best_device())
    prepare(sources, recipe, directory, hooks)
    hooks.on_phase("learning")
    return learn(sources, recipe, directory, hooks=hooks, max_seconds=max_seconds)


def settled(recipe: Recipe, directory: Path, device: torch.device) -> Recipe:
    """A recipe in the number format that its run began with; of a new run the fastest on `device`.

    Raises:
        CorruptError: the folder's `recipe.json` is damaged.
    """
    file = directory / RECIPE
    if recipe.precision is not None or not file.exists():
        return recipe.settled(device.type)
    try:
        began = json.loads(file.read_text())
        precision = began.pop("precision")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(
            f"{file} is damaged: {error!r}; say --precision, or choose another folder"
        ) from error
    said = json.loads(json.dumps(recipe.facts()))
    del said["precision"]
    return recipe.but(precision=precision) if began == said else recipe.settled(device.type)


def prepare(sources: Sources, recipe: Recipe, directory: Path, hooks: Hooks) -> None:
    """Settled recipe, vocabulary and packed corpus in the run's folder; nothing where they are there.

    Raises:
        InvalidError: the corpus, vocabulary and recipe do not fit each other.
    """
    if recipe.hierarchy:
        raise InvalidError("hierarchy = True is for comparisons only: it cannot be served")
    if sources.base is not None and load_weights(sources.base)[0] != recipe.model:
        raise InvalidError(f"model {str(sources.base)!r} has other sizes than {recipe.name}")
    make_directory(directory)
    (directory / STOP).unlink(missing_ok=True)  # who left it is gone
    write_atomic(directory / RECIPE, json.dumps(recipe.facts(), indent=2).encode())
    hooks.on_phase("vocabulary")
    vocabulary = vocabulary_of(sources, recipe, directory)
    hooks.on_phase("packing")
    pack_corpus(sources, vocabulary, directory, lambda done: hooks.on_phase(f"packed {done}"))


def learn(
    sources: Sources,
    recipe: Recipe,
    directory: Path,
    *,
    hooks: Hooks,
    max_seconds: float = math.inf,
    workers: Workers | None = None,
    sharded: bool = False,
    device: torch.device | None = None,
) -> Pretrained:
    """The rest of a run that is prepared, on a GPU unless another device is named.

    Of several workers the first leaves the model.
    """
    vocabulary = vocabulary_of(sources, recipe, directory)
    packed = pack_corpus(sources, vocabulary, directory)
    first = workers is None or workers.rank == 0
    outcome = fit(
        recipe,
        packed,
        traits_of(vocabulary),
        directory=directory,
        on_progress=_recorder(directory / METRICS, hooks.on_progress) if first else lambda _: None,
        max_seconds=max_seconds,
        workers=workers,
        sharded=sharded,
        device=device or best_device(),
        start=None if sources.base is None else load_weights(sources.base)[1],
        origin="" if sources.base is None else base_id(sources.base),
    )
    # Of a parted model every worker brings its rows of each weight, and only the first keeps them.
    weights = {n: w.bfloat16() for n, w in outcome.learner.exported() if first}
    if not first:
        return Pretrained(directory / MODEL, outcome, parameters(recipe.model))
    lineage = {
        "name": f"soma-lm-{recipe.name}",
        "lineage": json.dumps(_facts(sources, recipe, packed, outcome)),
    }
    model = save_model(
        directory / MODEL,
        recipe.model,
        weights,
        vocabulary,
        lineage,
        card=Card(system=sources.system),
    )
    return Pretrained(model, outcome, parameters(recipe.model))


def vocabulary_of(sources: Sources, recipe: Recipe, directory: Path) -> Vocabulary:
    """The vocabulary of this run: the one named, the one learnt before, or a new one.

    Raises:
        InvalidError: it has another size than the model.
    """
    kept = directory / TOKENIZER
    if sources.base is not None:
        vocabulary = load_weights(sources.base)[2]
    elif sources.tokenizer is not None:
        vocabulary = Vocabulary.load(sources.tokenizer)
    elif kept.is_file():
        vocabulary = Vocabulary.load(kept)
    else:
        vocabulary = Vocabulary.learn(_texts(sources.corpus), recipe.model.vocab_size)
    if vocabulary.size != recipe.model.vocab_size:
        raise InvalidError(
            f"vocabulary {str(sources.base or sources.tokenizer or kept)!r} has {vocabulary.size} "
            f"tokens, the model {recipe.model.vocab_size}; say what the run began with, or begin "
            "another one in a folder of its own (--out)"
        )
    write_atomic(kept, vocabulary.source.encode())
    return vocabulary


def pack_corpus(
    sources: Sources,
    vocabulary: Vocabulary,
    directory: Path,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Packed:
    """The corpus as token ids in the run's folder; `on_progress` hears how many files are done."""
    held_out = [] if sources.held_out is None else files_of(sources.held_out)
    corpus = [file for file in files_of(sources.corpus) if file not in held_out]
    return pack(
        corpus,
        vocabulary,
        directory / TOKENS,
        held_out=held_out,
        system=sources.system,
        on_progress=on_progress,
    )


def _texts(corpus: Path) -> Iterator[str]:
    """All that a vocabulary is learnt from: texts, and what is said in dialogues."""
    for found in read(files_of(corpus)):
        if isinstance(found.document, str):
            yield found.document
        elif isinstance(found.document, tuple):
            yield from (turn.content for turn in found.document)


def _recorder(file: Path, also: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Append each step to the live curve; what a run that is gone on with takes again is cut."""
    kept = [line for line in file.read_text().splitlines() if line] if file.exists() else []
    first = True

    def write(progress: Progress) -> None:
        nonlocal first
        if first:
            whole = [line for line in kept if _step(line) < progress.step]
            file.write_text("".join(line + "\n" for line in whole))
            first = False
        with file.open("a") as output:
            output.write(json.dumps(_without_nan(asdict(progress))) + "\n")
        also(progress)

    return write


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # half a line: the run was killed while it wrote


def _without_nan(record: dict[str, float | None]) -> dict[str, float | None]:
    """JSON knows no NaN."""
    return {
        name: None if value is not None and not math.isfinite(value) else value
        for name, value in record.items()
    }


def _facts(sources: Sources, recipe: Recipe, packed: Packed, outcome: Outcome) -> dict[str, object]:
    """The lineage that the model's file tells."""
    began: dict[str, object] = {} if sources.base is None else {"base": base_id(sources.base)}
    return began | {
        "recipe": recipe.facts(),
        "parameters": parameters(recipe.model),
        "corpus": packed.identity,
        "corpus_tokens": len(packed.train),
        "held_out_tokens_judged": min(EVALUATED, len(packed.held_out)),
        "steps": outcome.step,
        "tokens": outcome.tokens,
        "seconds": outcome.seconds,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "ended": outcome.ended,
        **_without_nan(
            {
                "train_loss": outcome.loss,
                "bits_per_byte_before": outcome.before,
                "bits_per_byte": outcome.bits_per_byte,
            }
        ),
    }
