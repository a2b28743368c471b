"""What a run will take on this machine's CPU, before it is started: parameters, memory, time.

Memory is counted from the sizes; time from the rate at which this machine multiplies matrices and
moves bytes, and from what it takes to start a step's operations, whatever their size: all measured
here, for some seconds. `bench.train` and docs/log.md say how far off that is.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import psutil
import torch
from torch.nn import functional as F

from arbiters.errors import InvalidError
from soma_agents.language.architecture import TransformerConfig
from soma_agents.pretraining.kernels import KEPT, QUERIES
from soma_agents.pretraining.learner import Learner
from soma_agents.pretraining.muon import ITERATIONS, among_squares
from soma_agents.pretraining.optimiser import Optimisers
from soma_agents.pretraining.recipe import Recipe, active_parameters, matrices_of, parameters
from soma_agents.training.group import Alone

SHARE = 0.85
"""Of the memory that is free, what a run may plan with."""
PROCESS = 600 << 20
"""Bytes of an interpreter with torch in it."""
SHORT, NARROW_ROWS = 512, 4
"""Tokens of a row, and rows, at most, that the start of operations is measured with."""
MEASURED_SECONDS = 0.4
"""For each thing that this machine does again and again."""
BACKWARD = 3
"""A step forward and back costs three times the step forward."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine can do: FLOP/s in matrix products, bytes/s in passes, bytes free."""

    products: float
    passes: float
    memory: int
    cores: int
    starts: Callable[[Recipe], float] | None = None
    """Seconds of a recipe's step that go into starting operations; None: they are left out."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is predicted to take. Memory in bytes, time in seconds."""

    precision: str
    """The number format that is computed in."""
    parameters: int
    active: int
    """Parameters that one token meets: all, but of a mixture's experts."""
    steps: int
    tokens: int
    weights: int
    optimiser: int
    activations: int
    memory: int
    """Of one worker."""
    here: int
    """Workers that share this machine's memory."""
    free: int
    tokens_per_second: float
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether the memory that is free holds it."""
        return self.here * self.memory <= SHARE * self.free


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers of a run: how many, how many of them on this machine, whether they part the model."""

    workers: int = 1
    here: int = 1
    sharded: bool = False


def plan(recipe: Recipe, machine: Machine | None = None, crew: Crew | None = None) -> Plan:
    """The prediction for a recipe; nothing of it is allocated."""
    recipe = recipe.settled()
    machine, crew = machine or measured(recipe.format), crew or Crew()
    with torch.device("meta"):
        count = Learner(recipe).size
    weights, optimiser = _weights(recipe, count, crew)
    activations = _activations(recipe)
    starts = machine.starts(recipe) if machine.starts else 0.0
    rate = recipe.rows * recipe.row / (_step_seconds(recipe, machine) + starts)
    return Plan(
        precision=recipe.format,
        parameters=count,
        active=count - parameters(recipe.model) + active_parameters(recipe.model),
        steps=recipe.steps,
        tokens=recipe.steps * recipe.rows * recipe.row,
        weights=weights,
        optimiser=optimiser,
        activations=activations,
        memory=PROCESS + weights + optimiser + activations,
        here=crew.here,
        free=machine.memory,
        tokens_per_second=rate,
        seconds=recipe.steps * recipe.rows * recipe.row / rate,
    )


def require(recipe: Recipe, machine: Machine | None = None, crew: Crew | None = None) -> Plan:
    """The plan of a recipe that fits this machine.

    Raises:
        InvalidError: it does not fit; says by how much, and the nearest that does.
    """
    recipe = recipe.settled()
    machine, crew = machine or measured(recipe.format), crew or Crew()
    found = plan(recipe, machine, crew)
    if found.fits:
        return found
    near = nearest(recipe, machine, crew)
    instead = "nothing of its kind fits" if near is None else f"the nearest that fits: {near}"
    each = "" if crew.here == 1 else f" for each of {crew.here} workers"
    raise InvalidError(
        f"{recipe.name} with {found.parameters:,} parameters needs {_gib(found.memory)} of memory"
        f"{each} ({_gib(found.weights)} weights and gradients, {_gib(found.optimiser)} optimiser, "
        f"{_gib(found.activations)} activations); {_gib(int(SHARE * found.free))} can be had; {instead}"
    )


def nearest(recipe: Recipe, machine: Machine, crew: Crew | None = None) -> str | None:
    """The smallest change that makes a recipe fit: fewer rows at once, recomputing, less depth."""
    tried, machine = recipe, replace(machine, starts=None)  # only memory matters
    while tried.micro_rows > 1:
        tried = replace(tried, micro_rows=tried.micro_rows // 2)
        if plan(tried, machine, crew).fits:
            return f"--micro-rows {tried.micro_rows}"
    tried = replace(tried, recompute=True)
    if plan(tried, machine, crew).fits:
        return "--micro-rows 1 --recompute"
    for layers in range(recipe.model.layers - 1, 0, -1):
        shallow = replace(tried, model=replace(tried.model, layers=layers))
        if plan(shallow, machine, crew).fits:
            return f"--micro-rows 1 --recompute with {layers} layers"
    return None


def _weights(recipe: Recipe, count: int, crew: Crew) -> tuple[int, int]:
    """Bytes of masters, gradients and copies of one worker; bytes of its optimisers' state."""
    table = recipe.model.vocab_size * recipe.model.d_model
    sizes = [a * b for a, b in matrices_of(recipe.model).values()]
    optimiser = 4 * (count + table) // crew.workers + 3 * 2 * max(sizes)
    kept = 3 * 4 * count  # masters, gradients, and the best weights so far
    width = 4 if recipe.format == "float32" else 2
    if not crew.sharded:
        return kept + (0 if width == 4 else 2 * width * count), optimiser  # noqa: PLR2004
    # A block, the next one, its gradients, and those in float32 that are on their way; the table.
    gathered = (3 * width + 4) * sum(sizes) + 3 * 4 * table
    return kept // crew.workers + gathered, optimiser + 2 * 4 * max(sizes)


def _activations(recipe: Recipe) -> int:
    """Bytes that a micro-batch keeps between its way forward and its way back."""
    model, tokens = recipe.model, recipe.micro_rows * recipe.row
    width = 4 if recipe.format == "float32" else 2
    qkv = model.site_shape("qkv")[0]
    kept = 4 * model.d_model + 2 * qkv + model.heads * model.head_dim + _inner(model)
    blocks = [tokens * (kept + model.heads * _kept_keys(recipe, n)) for n in range(model.layers)]
    layers = sum(blocks)
    if recipe.recompute:
        layers = model.layers * tokens * model.d_model + max(blocks)
    rows = min(512, tokens)
    head = 3 * rows * model.vocab_size * width + 2 * 4 * model.vocab_size * model.d_model
    return int(layers * width + head)


def _inner(model: TransformerConfig) -> int:
    """Numbers of a token inside a block's MLP; for each expert of a mixture, it is copied twice."""
    inner = model.site_shape("gate_up")[0] + model.d_ff
    return model.experts_per_token * (inner + 2 * model.d_model) if model.experts else inner


def _kept_keys(recipe: Recipe, layer: int) -> float:
    """Weights that attention keeps a token and head: of long rows those of a block of queries."""
    keys = _keys(recipe, layer)
    return keys if recipe.row <= KEPT else 4 * keys * QUERIES / recipe.row


def _keys(recipe: Recipe, layer: int) -> float:
    """Keys that a token's scores are computed for, on average, a block of queries at a time."""
    causal = (recipe.row + QUERIES) / 2
    if recipe.model.local(layer):
        return min(causal, recipe.model.window + QUERIES)
    return causal


def _step_seconds(recipe: Recipe, machine: Machine) -> float:
    """Seconds of one optimiser step, its operations started."""
    model, tokens = recipe.model, recipe.rows * recipe.row
    scores = model.heads * sum(_keys(recipe, layer) for layer in range(model.layers))
    again = 4 / 3 if recipe.recompute else 1.0
    twice = 7 / 6 if recipe.row > KEPT else 1.0
    """Attention's products, of which long rows make one again on the way back."""
    attention = 2 * model.head_dim * scores * twice
    work = 2 * BACKWARD * again * tokens * (active_parameters(model) + attention)
    width = 4 if recipe.format == "float32" else 2
    qkv = model.site_shape("qkv")[0]
    touched = model.layers * (24 * model.d_model + 8 * qkv + 6 * _inner(model))
    touched += 8 * scores + 6 * model.vocab_size
    bytes_ = again * tokens * touched * width + 40 * parameters(model)
    muon = model.layers * sum(
        _orthogonal(*shape, recipe.format) for shape in matrices_of(model).values()
    )
    return (work + muon) / machine.products + bytes_ / machine.passes


def _orthogonal(rows: int, columns: int, precision: str) -> float:
    """FLOP of Muon's Newton-Schulz iterations of one matrix."""
    small, large = sorted((rows, columns))
    if among_squares((rows, columns), getattr(torch, precision)):
        return 4 * small * small * large + (8 * ITERATIONS - 6) * small**3
    return ITERATIONS * (4 * small * small * large + 2 * small**3)


@cache
def measured(precision: str) -> Machine:
    """This machine, looked at for a second."""
    dtype = getattr(torch, precision)
    x, w = torch.randn(2048, 512).to(dtype), torch.randn(2048, 512).to(dtype)
    wide = torch.randn(2048, 2048).to(dtype)
    products = 2 * 2048 * 512 * 2048 / _best(lambda: F.linear(x, w))
    passes = 2 * wide.numel() * wide.element_size() / _best(lambda: F.relu(wide))
    free, cores = psutil.virtual_memory().available, os.cpu_count() or 1
    return Machine(products, passes, free, cores, _starts)


def _starts(recipe: Recipe) -> float:
    """Seconds of a step that go into starting operations: those of a model too narrow to compute.

    Its passes and its optimiser are measured with one block and with two, its rows shortened to
    `SHORT` tokens; more of either take as much again.
    """
    model = recipe.model
    narrow = replace(
        model, vocab_size=64, d_model=32, d_ff=32, heads=1, kv_heads=1, head_dim=32, layers=1
    )
    one = _narrow_step(recipe, narrow)
    two = _narrow_step(recipe, replace(narrow, layers=2))
    more = model.layers - 1
    passes, update = (
        first + more * max(0.0, then - first) for first, then in zip(one, two, strict=True)
    )
    micro_batches = math.ceil(recipe.rows / recipe.micro_rows)
    return micro_batches * passes * max(1.0, recipe.row / SHORT) + update


@cache
def _narrow_step(recipe: Recipe, model: TransformerConfig) -> tuple[float, float]:
    """Seconds of a micro-batch there and back, and of what follows, at their best."""
    row = min(recipe.row, SHORT)
    rows = min(recipe.micro_rows, recipe.rows, max(1, SHORT * NARROW_ROWS // row))
    small = replace(recipe, model=model, row=row, features=False, hierarchy=False, objectives=())
    learner = Learner(small)
    optimisers = Optimisers(learner, small, Alone())
    tokens = torch.arange(rows * (row + 1)).view(rows, -1) % model.vocab_size  # for all experts
    learner.refresh()

    def there_and_back() -> None:
        learner.loss(tokens)[0].backward()

    def update() -> None:
        learner.collect()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), recipe.clip)
        optimisers.step(1)
        learner.refresh()

    there_and_back()
    update()
    return _best(there_and_back), _best(update)


def _best(work: Callable[[], object]) -> float:
    least = math.inf
    until = time.perf_counter() + MEASURED_SECONDS
    while time.perf_counter() < until:
        started = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - started)
    return least


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
